"""The pages for people with data of their own: their marked blocks run, in a folder with such data."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("torch")
from tests.model_store.hub.layouts import transformers_layouts  # noqa: E402
from tests.model_store.hub.layouts.captions import taught_captions  # noqa: E402
from tests.model_store.hub.layouts.source_models import tiny_clip  # noqa: E402
from training.methods.tinyclip import MaskOptions, TinyclipOptions  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.slow]

DOCS = Path(__file__).parents[2] / "docs"
BLOCK = re.compile(r"<!-- run -->\n```bash\n(.*?)```", re.DOTALL)
RunPage = Callable[[str, Path], str]
COLOURS = ("red", "green", "blue", "white", "black")


@pytest.fixture
def run_page(warm: Path) -> RunPage:
    return partial(_run_page, warm)


def _run_page(warm: Path, name: str, folder: Path) -> str:
    """What the page's blocks print, one after the other; each must end well."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("CLIPWORKS_")}
    path = (str(warm), str(Path(sys.executable).parent), os.environ["PATH"])
    environment |= {"PATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1"}
    printed = ""
    for block in BLOCK.findall((DOCS / name).read_text(encoding="utf-8")):
        command = ["bash", "-euo", "pipefail", "-c", block]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
        printed += done.stdout + done.stderr
    return printed


@pytest.mark.long
def test_train_on_your_own_captions(tmp_path: Path, run_page: RunPage) -> None:
    folder = tmp_path / "my-pictures"
    folder.mkdir()
    with (folder / "captions.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption"])
        for number in range(50):
            colour = COLOURS[number % 5]
            Image.new("RGB", (64, 48), colour).save(folder / f"{number:04}.png")
            writer.writerow([f"{number:04}.png", f"a {colour} wall"])
    printed = run_page("own-captions.md", tmp_path)
    assert "t2i_r@1" in printed
    assert json.loads((tmp_path / "held-out.json").read_text())["report"]["all"]


@pytest.mark.long
def test_distil_a_smaller_model(tmp_path: Path, run_page: RunPage) -> None:
    (tmp_path / "my-pictures" / "more").mkdir(parents=True)
    for number in range(60):
        pixels = Image.new("RGB", (64, 48 + number % 5), COLOURS[number % 5])
        pixels.paste((20 * (number % 12), 4 * number, 99), (number % 40, 0, 60, 30))
        pixels.save(tmp_path / "my-pictures" / ("more" if number % 3 else ".") / f"{number:03}.png")
    printed = run_page("distillation.md", tmp_path)
    assert "agreement/found_across" in printed
    manifest = json.loads((tmp_path / "models" / "try" / "1" / "manifest.json").read_text())
    assert (manifest["base"]["name"], manifest["image"]["height_px"]) == ("everyday-small", 64)
    assert "space proof/R@1" in manifest["metrics"]
    assert re.search(r"000\.png\t(red|green|blue)\t", printed)


@pytest.mark.long
def test_a_smaller_model(tmp_path: Path, run_page: RunPage) -> None:
    folder = tmp_path / "my-pictures"
    folder.mkdir()
    with (folder / "captions.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption"])
        for number in range(50):
            colour = COLOURS[number % 5]
            Image.new("RGB", (64, 48), colour).save(folder / f"{number:04}.png")
            writer.writerow([f"{number:04}.png", f"a {colour} wall"])
    run_page("tinyclip.md", tmp_path)
    runs = {name: tmp_path / "runs" / name for name in ("large", "by-hand", "by-masks")}
    sizes = {name: (folder / "weights.safetensors").stat().st_size for name, folder in runs.items()}
    assert max(sizes["by-hand"], sizes["by-masks"]) < 0.9 * sizes["large"]
    told = {name: json.loads((each / "checkpoint.json").read_text()) for name, each in runs.items()}
    models = {name: each["config"]["model"] for name, each in told.items()}
    assert "slim" not in models["large"]
    assert models["by-hand"]["slim"]["image"]["heads"] == [2, 2, 2]
    assert models["by-masks"]["slim"].keys() == {"image", "text"}


def test_every_option_of_tinyclip_is_in_its_page() -> None:
    page = (DOCS / "tinyclip.md").read_text(encoding="utf-8")
    for table, options in (("| option | default |", TinyclipOptions), ("| `masks` | default |", MaskOptions)):
        start = page.index(table)
        rows = [row.split("|")[1:3] for row in page[start : page.index("\n\n", start)].splitlines()[2:]]
        told = {name: default.strip() for names, default in rows for name in re.findall(r"`(\w+)`", names)}
        fields = options.model_fields if options is MaskOptions else options.__annotations__
        assert sorted(told) == sorted(fields)
        for name, default in told.items():
            value = options.model_fields[name].default
            if isinstance(value, float):
                assert float(default) == value, name


@pytest.mark.long
def test_five_classes_a_few_pictures_each(tmp_path: Path, run_page: RunPage) -> None:
    for colour in COLOURS:
        (tmp_path / "my-classes" / colour).mkdir(parents=True)
        for number in range(5):
            Image.new("RGB", (64, 48 + number), colour).save(tmp_path / "my-classes" / colour / f"{number}.png")
    printed = run_page("few-classes.md", tmp_path)
    assert "head/accuracy 1.000" in printed
    assert json.loads((tmp_path / "held-out.json").read_text())["report"]["head"]["accuracy"]["n"] == 5
    assert re.search(r"red/0\.png\tred\t", printed)


@pytest.mark.long
def test_shots_on_a_pulled_model(tmp_path: Path, run_page: RunPage) -> None:
    (tmp_path / "my-export").mkdir()
    transformers_layouts.write_transformersjs_joint(
        tmp_path / "my-export", taught_captions(tiny_clip()), external_data=True
    )
    for colour in COLOURS:
        (tmp_path / "my-classes" / colour).mkdir(parents=True)
        for number in range(8):
            Image.new("RGB", (64, 48 + number), colour).save(tmp_path / "my-classes" / colour / f"{number}.png")
    printed = run_page("few-shot.md", tmp_path)
    assert "class, validation: 5 classes" in printed
    rows = dict(re.findall(r"^\| (\w+) \| all \| ([\d.]+) ", printed, re.MULTILINE))
    assert {name: rows[name] for name in ("gda", "linear_probe", "tip_adapter")} == dict.fromkeys(
        ("gda", "linear_probe", "tip_adapter"), "100.0"
    ), printed
    zero_shot = re.search(r"^\| zero-shot \| 0 \| ([\d.]+) ", printed, re.MULTILINE)
    assert zero_shot
    assert float(zero_shot[1]) < 100, "the model does not know colours, the heads learned them from its vectors"
    assert not list(tmp_path.rglob("checkpoint.json"))
