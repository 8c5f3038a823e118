"""The calibration of searches: what is searched for, the curves and their threshold, the whole over folders."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from evaluation.encoder import open_artifact
from model_store.errors import IntegrityError
from model_store.manifest import Manifest, SearchCalibration
from model_store.seal import MANIFEST_FILE, write_manifest
from model_store.search_presence import match_probability
from model_store.store import Store
from tests.stores import SHOP_STORE
from training.shipped.presence_fit import open_folder
from training.shipped.search_fit import (
    REFUSED,
    WORDINGS,
    NothingToTell,
    SearchedPictures,
    fit,
    judge,
    main,
    match_probabilities,
    read_folders,
    searches,
)

pytestmark = pytest.mark.torch
LABELS = ("shirt", "watch", "bag", "jeans")
NEUTRAL = ("a photo",)


def encode(texts: Sequence[str]) -> NDArray[np.float32]:
    """A direction for each label, whatever the wording; of a neutral text all of them."""
    rows = [[float(label in text) for label in LABELS] for text in texts]
    found = np.array([row if any(row) else [1.0] * len(LABELS) for row in rows], np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def pictures(noise: float, *, seed: int = 0, count: int = 400) -> SearchedPictures:
    rng = np.random.default_rng(seed)
    kinds = rng.integers(0, 3, count)  # nothing shows jeans
    vectors = encode([LABELS[kind] for kind in kinds]) + noise * rng.standard_normal((count, len(LABELS)))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return SearchedPictures("drawn", vectors.astype(np.float32), {n: kinds == i for i, n in enumerate(LABELS)})


def test_every_label_is_searched_for_with_its_pictures_and_without() -> None:
    drawn = pictures(0.0)
    found = searches(drawn, encode, NEUTRAL, seed=0)
    parts = 1 + 3 * 4  # all pictures, and four draws of each smaller share
    assert found.has_match.sum() == 3 * len(WORDINGS) * parts  # jeans have no match anywhere
    assert (~found.has_match).sum() == 4 * len(WORDINGS) * parts
    assert found.weights[found.has_match].sum() == pytest.approx(0.5)
    assert [found.weights.sum(), found.hit_weights.sum()] == pytest.approx([1, 1])
    # Of exact vectors a match has 1 - .5 of evidence, and what is left 0 - .5.
    assert set(np.round(found.best[found.has_match], 6)) == {0.5}
    assert set(np.round(found.best[~found.has_match], 6)) == {-0.5}
    assert found.hits[found.shows] == pytest.approx(0.5)
    assert found.hits[~found.shows] == pytest.approx(-0.5)


def test_the_threshold_is_the_highest_that_refuses_one_in_ten() -> None:
    sets = [searches(pictures(noise, seed=seed), encode, NEUTRAL, seed=0) for seed, noise in enumerate((0.3, 0.6))]
    curves = fit(sets, NEUTRAL)
    assert curves.neutral_texts == NEUTRAL

    def refused(threshold: float) -> float:
        return float(np.mean([(match_probabilities(s.best[s.has_match], curves) < threshold).mean() for s in sets]))

    assert refused(curves.threshold) <= REFUSED < refused(curves.threshold + 0.01)
    for each in sets:
        told = judge(each, curves)
        p = np.array([match_probability(np.array([best]), curves) for best in each.best])
        assert told["no good match, wrongly"] == (p[each.has_match] < curves.threshold).mean()
        assert told["no good match, rightly"] == (p[~each.has_match] < curves.threshold).mean()
        ranks = p.argsort().argsort()[each.has_match] + 1  # Mann and Whitney: no two are equal here but by chance
        here, away = len(ranks), len(p) - len(ranks)
        assert told["AUROC"] == pytest.approx((ranks.sum() - here * (here + 1) / 2) / (here * away), abs=0.02)
        assert told["AUROC"] > 0.6


def test_curves_that_fall_are_refused() -> None:
    drawn = searches(pictures(0.5), encode, NEUTRAL, seed=0)
    turned = type(drawn)(-drawn.best, drawn.has_match, drawn.weights, -drawn.hits, drawn.shows, drawn.hit_weights)
    with pytest.raises(NothingToTell, match="has no more evidence than others"):
        fit([turned], NEUTRAL)


def test_labels_that_every_picture_shows_teach_nothing() -> None:
    drawn = pictures(0.1)
    every = SearchedPictures("drawn", drawn.vectors, {"shirt": np.ones(len(drawn.vectors), bool)})
    with pytest.raises(ValueError, match="drawn: no label is shown by some of its 400 pictures and not by 10"):
        searches(every, encode, NEUTRAL, seed=0)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    trained = Store(SHOP_STORE, builtin=False).open("fashion-small")
    return Path(shutil.copytree(trained.folder, tmp_path_factory.mktemp("fit") / "1"))


@pytest.fixture(scope="module")
def folders(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Patterns, each in the folder of what the model takes it for: there is something to calibrate."""
    folder = tmp_path_factory.mktemp("pictures")
    encoder = open_artifact(open_folder(artifact))
    names = encoder.encode_texts(LABELS)
    rng = np.random.default_rng(0)
    for number in range(90):
        pixels = np.kron(rng.integers(0, 256, (4, 4, 3)), np.ones((16, 16, 1))).astype(np.uint8)
        path = folder / f"{number}.png"
        Image.fromarray(pixels).save(path)
        (vector,) = encoder.encode_images([path.read_bytes()])
        own = folder / LABELS[int((names @ vector).argmax())]
        own.mkdir(exist_ok=True)
        path.rename(own / path.name)
    assert len(list(folder.iterdir())) > 1
    (folder / "a note.txt").write_text("no folder")
    return folder


def test_the_script_calibrates_on_ones_own_pictures(
    folders: Path, artifact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = Manifest.model_validate_json((artifact / MANIFEST_FILE).read_bytes())
    with pytest.raises(SystemExit):
        main([str(artifact), "--folders", str(folders), "--test"])
    assert "was not calibrated for searches: fit it first" in capsys.readouterr().err
    main([str(artifact), "--folders", str(folders)])
    assert Manifest.model_validate_json((artifact / MANIFEST_FILE).read_bytes()) == before
    main([str(artifact), "--folders", str(folders), "--write"])
    after = Manifest.model_validate_json((artifact / MANIFEST_FILE).read_bytes())
    assert after.search is not None
    assert after.model_copy(update={"search": None}) == before
    assert "log loss" in capsys.readouterr().out
    main([str(artifact), "--folders", str(folders), "--test"])
    assert capsys.readouterr().out.startswith(f"test, {folders.name}: searches ")
    with pytest.raises(SystemExit):
        main([str(artifact)])
    with pytest.raises(SystemExit):
        main([str(artifact), "--folders", str(folders), "--test", "--write"])


def test_halves_of_folders_share_no_picture(folders: Path, tmp_path: Path) -> None:
    fitted, labels = read_folders(folders, "validation")
    judged, _ = read_folders(folders, "test")
    assert not {*fitted} & {*judged}
    assert len(fitted) + len(judged) == 90
    assert np.sum([*labels.values()], axis=0).tolist() == [1] * len(fitted)
    for name, shown in labels.items():
        assert [path.parent.name == name for path in fitted] == shown.tolist()
    with pytest.raises(ValueError, match="expected two folders"):
        read_folders(tmp_path, "validation")
    for name in ("a b", "a_b"):
        (tmp_path / name).mkdir()
        for path in fitted[:1]:
            shutil.copy(path, tmp_path / name)
    with pytest.raises(ValueError, match="two of its folders have one label"):
        read_folders(tmp_path, "validation")


def test_an_artifact_whose_files_changed_is_left_alone(folders: Path, artifact: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(artifact, tmp_path / "1"))
    tokenizer = next(broken.glob("tokenizer*"))
    tokenizer.write_bytes(tokenizer.read_bytes() + b" ")
    before = (broken / MANIFEST_FILE).read_bytes()
    with pytest.raises(IntegrityError):
        main([str(broken), "--folders", str(folders), "--write"])
    assert (broken / MANIFEST_FILE).read_bytes() == before


def test_a_derivation_of_the_same_space_keeps_it_and_another_does_not(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from training.exporting.derive import DerivationSource, export_derivation
    from training.exporting.derived_graphs import AdapterSource, HeadSource
    from training.exporting.export import provenance

    store = Path(shutil.copytree(SHOP_STORE, tmp_path / "store"))
    opened = Store(store, builtin=False)
    curves = SearchCalibration(
        neutral_texts=("a bag",), hit_slope=1, hit_offset=0, match_slope=1, match_offset=0, threshold=0.5
    )
    base = opened.open("fashion-small")
    write_manifest(base.folder, base.manifest.model_copy(update={"search": curves}))
    base = opened.open("fashion-small")
    made = provenance(source="a test", architecture="small", activation="gelu", structure="t", licence="none")
    dim = base.manifest.dim
    source = DerivationSource(base=base, structure="t", provenance=made)
    same = replace(source, heads={"things": HeadSource(module=torch.nn.Linear(dim, 2).eval(), labels=("a", "b"))})
    moved = replace(source, image_adapter=AdapterSource(module=torch.nn.Linear(dim, dim).eval()))
    assert export_derivation(same, name="headed", store=opened).manifest.search == curves
    assert export_derivation(moved, name="moved", store=opened).manifest.search is None
