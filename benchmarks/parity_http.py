"""The same pictures and texts through a real server and through torch: what HTTP answers is what open_clip computes.

    python benchmarks/parity_http.py --model vit-b-32-random --store STORE --architecture ViT-B-32-quickgelu \
        --weights FILE.safetensors
    python benchmarks/parity_http.py --model everyday-small --checkpoint FOLDER

Reference of an architecture: open_clip's own transform, tokeniser and model. Reference of a checkpoint: its torch model
with open_clip's transform and tokeniser at the checkpoint's size and merges. Exits with 1 above the tolerance.
"""

from __future__ import annotations

import argparse
import gzip
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from open_clip.tokenizer import SimpleTokenizer
from open_clip.transform import image_transform
from PIL import Image

from clipworks import Client
from model_store.fidelity import measure
from model_store.golden import GOLDEN_TEXTS
from model_store.precisions.calibration import CALIBRATION_TEXTS, calibration_photographs
from training.checkpoint import load_model

RELATIVE_L2_MAX = 1e-4
SIZES = [(61, 83), (131, 49), (97, 187), (225, 224), (640, 427), (333, 501), (1000, 301), (224, 225)]
Encode = Callable[[list[Any]], NDArray[np.float32]]


def pictures() -> list[bytes]:
    """PNG files of odd, non-square sizes: shipped photographs, resized; no JPEG, so decoders cannot differ."""
    found: list[bytes] = []
    for index, data in enumerate(calibration_photographs()):
        image = Image.open(BytesIO(data)).convert("RGB").resize(SIZES[index % len(SIZES)], Image.Resampling.BICUBIC)
        buffer = BytesIO()
        image.save(buffer, "PNG")
        found.append(buffer.getvalue())
    return found


def open_clip_reference(architecture: str, weights: Path) -> tuple[Encode, Encode]:
    loaded: Any = open_clip.create_model_from_pretrained(architecture, pretrained=str(weights))
    model, transform = loaded
    tokenizer = open_clip.get_tokenizer(architecture)
    return _encoders(model.eval(), transform, tokenizer, model.encode_image, model.encode_text)


def checkpoint_reference(folder: Path) -> tuple[Encode, Encode]:
    loaded = load_model(folder)
    spec = loaded.info.image_spec
    # encode_pixels takes [0, 1] and normalises itself, so the transform must not.
    transform = image_transform(spec.height_px, is_train=False, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    with tempfile.TemporaryDirectory() as name:
        packed = Path(name) / "merges.gz"
        packed.write_bytes(gzip.compress(loaded.tokenizer_bytes))
        tokenizer = SimpleTokenizer(bpe_path=str(packed), context_length=loaded.info.text_spec.context_length)
    model = loaded.model.eval()
    return _encoders(model, transform, tokenizer, model.encode_pixels, model.encode_text)


def _encoders(
    model: torch.nn.Module, transform: Any, tokenizer: Any, encode_image: Any, encode_text: Any
) -> tuple[Encode, Encode]:
    def images(data: list[Any]) -> NDArray[np.float32]:
        with torch.inference_mode():
            batch = torch.stack([transform(Image.open(BytesIO(each)).convert("RGB")) for each in data])
            return encode_image(batch).numpy()

    def texts(found: list[Any]) -> NDArray[np.float32]:
        with torch.inference_mode():
            return encode_text(tokenizer(found)).numpy()

    return images, texts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--store", type=Path)
    parser.add_argument("--architecture")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--precision", default="fp32")
    options = parser.parse_args()
    if options.checkpoint:
        images, texts = checkpoint_reference(options.checkpoint)
    else:
        images, texts = open_clip_reference(options.architecture, options.weights)
    environment = {**os.environ, "CLIPWORKS_PORT": "0", "CLIPWORKS_LOG_LEVEL": "warning"}
    environment["CLIPWORKS_PRECISION"] = options.precision
    environment |= {"CLIPWORKS_MODEL": options.model} | (
        {"CLIPWORKS_STORE": str(options.store)} if options.store else {}
    )
    with subprocess.Popen(
        [sys.executable, "-m", "service"], env=environment, stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            address = ""
            for line in server.stdout or ():
                address = line.split()[-1] if "listening on" in line else address
                if line.strip().endswith("ready"):
                    break
            with Client(address, timeout_s=120) as client:
                found = pictures()
                words = [text for text in (*GOLDEN_TEXTS, *CALIBRATION_TEXTS) if text]
                served = [
                    ("images", client.embed(images=found, normalize=False), images(found)),
                    ("texts", client.embed(texts=words, normalize=False), texts(words)),
                ]
        finally:
            server.terminate()
    worst = 0.0
    for kind, vectors, reference in served:
        measured = measure(np.asarray(vectors), reference)
        worst = max(worst, measured.centred_relative_l2)
        print(
            f"{options.model} {options.precision} {kind}: n {measured.n}, min cosine {measured.cosine_min:.7f}, "
            f"centred min cosine {measured.centred_cosine_min:.7f}, "
            f"centred relative L2 {measured.centred_relative_l2:.2e}"
        )
    return int(options.precision == "fp32" and worst > RELATIVE_L2_MAX)


if __name__ == "__main__":
    sys.exit(main())
