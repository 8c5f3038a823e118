"""One seeded random ViT-B-32 in two formats: open_clip's for clipworks, transformers' for infinity_emb.

A comparison of servers means nothing unless both compute the same function. The weights are drawn here once, written
as an open_clip state dict (`open_clip.safetensors`) and as a transformers CLIPModel folder (`transformers/`) whose
tokenizer files are derived from open_clip's BPE table, and `--check` proves that the two agree. A trained checkpoint
would do as well, but this one needs no download, and speed does not depend on what the weights know.

    python benchmarks/peer_weights.py --out .runs/weights --check --peer-python .runs/peer-env/bin/python
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

ARCHITECTURE = "ViT-B-32-quickgelu"
OPEN_CLIP_FILE = "open_clip.safetensors"
TRANSFORMERS_FOLDER = "transformers"
SEED = 20260521
MIN_COSINE = 0.99999
MEAN = [0.48145466, 0.4578275, 0.40821073]
STD = [0.26862954, 0.26130258, 0.27577711]
CHECK_TEXTS = (
    "a cat",
    "a photo of a red bicycle, leaning on a wall",
    "Ünïcödé & <b>tags</b> 123!",
    "zwei Hunde im Schnee",
)


def random_model() -> torch.nn.Module:
    """open_clip's ViT-B-32-quickgelu, seeded, rescaled so that different inputs get clearly different vectors.

    At open_clip's initial scale every image lands on nearly the same vector (the class token and the position table
    outweigh the picture), which would hide a wrong pixel. Louder patches and attention, and quieter constants, spread
    the vectors without changing a single shape.
    """
    import open_clip
    import torch

    torch.manual_seed(SEED)
    model = open_clip.create_model(ARCHITECTURE, pretrained=None).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("visual.class_embedding", "positional_embedding")):
                parameter.mul_(0.3)
            elif name == "visual.conv1.weight":
                parameter.mul_(3.0)
            elif name.endswith(("attn.in_proj_weight", "attn.out_proj.weight")):
                parameter.mul_(2.0)
            elif name.endswith("bias"):
                parameter.normal_(std=0.02)
    return model


def to_transformers(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """open_clip names and layouts -> transformers' CLIPModel."""
    fixed = {
        "logit_scale": "logit_scale",
        "visual.class_embedding": "vision_model.embeddings.class_embedding",
        "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
        "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
        "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
        "positional_embedding": "text_model.embeddings.position_embedding.weight",
    }
    prefixes = {
        "visual.ln_pre.": "vision_model.pre_layrnorm.",
        "visual.ln_post.": "vision_model.post_layernorm.",
        "ln_final.": "text_model.final_layer_norm.",
    }
    inside = {
        "ln_1.": "layer_norm1.",
        "ln_2.": "layer_norm2.",
        "attn.out_proj.": "self_attn.out_proj.",
        "mlp.c_fc.": "mlp.fc1.",
        "mlp.c_proj.": "mlp.fc2.",
    }
    out: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        prefix = next((p for p in prefixes if name.startswith(p)), None)
        if name in fixed:
            out[fixed[name]] = tensor
        elif name in ("visual.proj", "text_projection"):
            out["visual_projection.weight" if name == "visual.proj" else "text_projection.weight"] = tensor.T
        elif prefix:
            out[prefixes[prefix] + name.removeprefix(prefix)] = tensor
        elif "transformer.resblocks." in name:
            tower = "vision_model" if name.startswith("visual.") else "text_model"
            number, rest = name.split("resblocks.")[1].split(".", 1)
            layer = f"{tower}.encoder.layers.{number}."
            if rest.startswith("attn.in_proj_"):
                kind = rest.removeprefix("attn.in_proj_")
                for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                    out[f"{layer}self_attn.{part}_proj.{kind}"] = piece
            else:
                old = next(key for key in inside if rest.startswith(key))
                out[layer + inside[old] + rest.removeprefix(old)] = tensor
        elif name != "attn_mask":
            raise ValueError(f"no transformers name for {name!r}")
    return {name: tensor.contiguous().clone() for name, tensor in out.items()}


def tokenizer_files() -> dict[str, str]:
    """vocab.json and merges.txt of transformers' CLIPTokenizer, from the BPE table that open_clip ships."""
    from open_clip.tokenizer import SimpleTokenizer

    bpe = SimpleTokenizer()
    merges = [" ".join(pair) for pair, _ in sorted(bpe.bpe_ranks.items(), key=lambda item: item[1])]
    vocab = {
        token.replace("<start_of_text>", "<|startoftext|>").replace("<end_of_text>", "<|endoftext|>"): index
        for token, index in bpe.encoder.items()
    }
    return {
        "vocab.json": json.dumps(vocab, ensure_ascii=False),
        "merges.txt": "#version: 0.2\n" + "\n".join(merges) + "\n",
    }


def transformers_config() -> dict[str, Any]:
    """config.json of openai/clip-vit-base-patch32's shape.

    `max_length` is stated because infinity_emb reads it and transformers 4's default for a missing one is 20 tokens.
    """
    text = {"model_type": "clip_text_model", "hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8}
    vision = {"model_type": "clip_vision_model", "hidden_size": 768, "intermediate_size": 3072, "patch_size": 32}
    common = {"num_hidden_layers": 12, "hidden_act": "quick_gelu", "projection_dim": 512, "layer_norm_eps": 1e-5}
    tokens = {"bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 49407}
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": 512,
        "max_length": 77,
        "logit_scale_init_value": 2.6592,
        "torch_dtype": "float32",
        "text_config": {**text, **common, **tokens, "vocab_size": 49408, "max_position_embeddings": 77},
        "vision_config": {**vision, **common, "num_attention_heads": 12, "image_size": 224, "num_channels": 3},
    }


def processor_files() -> dict[str, Any]:
    ends = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>"}
    ends |= {"unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    return {
        "preprocessor_config.json": {
            "processor_class": "CLIPProcessor",
            "image_processor_type": "CLIPImageProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "size": {"shortest_edge": 224},
            "resample": 3,
            "do_center_crop": True,
            "crop_size": {"height": 224, "width": 224},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": MEAN,
            "image_std": STD,
        },
        "tokenizer_config.json": {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, **ends},
        "special_tokens_map.json": ends,
    }


def build(folder: Path) -> None:
    """Write both formats below `folder`; the same seed gives the same files."""
    import safetensors.torch

    state = {name: tensor.contiguous() for name, tensor in random_model().state_dict().items()}
    target = folder / TRANSFORMERS_FOLDER
    target.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(state, folder / OPEN_CLIP_FILE)
    safetensors.torch.save_file(to_transformers(state), target / "model.safetensors", metadata={"format": "pt"})
    for name, text in tokenizer_files().items():
        (target / name).write_text(text, encoding="utf-8")
    for name, value in {"config.json": transformers_config(), **processor_files()}.items():
        (target / name).write_text(json.dumps(value, indent=1), encoding="utf-8")


def check_images() -> list[NDArray[np.uint8]]:
    """A dozen 224 px pictures: photographs' statistics are not needed to compare two copies of one function."""
    rng = np.random.default_rng(SEED)
    grids = rng.integers(0, 256, (12, 7, 7, 3), dtype=np.uint8)
    return [np.kron(grid, np.ones((32, 32, 1), dtype=np.uint8)) for grid in grids]


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def open_clip_vectors(folder: Path) -> dict[str, NDArray[np.float32]]:
    """Unit vectors of the check images and texts by open_clip's own code."""
    import open_clip
    import torch

    model = open_clip.create_model(ARCHITECTURE, pretrained=str(folder / OPEN_CLIP_FILE)).eval()
    mean, std = np.array(MEAN, np.float32), np.array(STD, np.float32)
    pixels = np.stack([(image / np.float32(255) - mean) / std for image in check_images()]).transpose(0, 3, 1, 2)
    with torch.inference_mode():
        image = model.encode_image(torch.from_numpy(np.ascontiguousarray(pixels, dtype=np.float32)))
        text = model.encode_text(open_clip.get_tokenizer(ARCHITECTURE)(list(CHECK_TEXTS)))
    return {"image": unit(image.numpy()), "text": unit(text.numpy())}


def transformers_vectors(folder: Path) -> dict[str, NDArray[np.float32]]:
    """The same by transformers' CLIPModel and CLIPProcessor; runs in the peer's environment."""
    import torch
    from PIL import Image
    from transformers import AutoModel, AutoProcessor  # type: ignore[import-not-found]

    source = str(folder / TRANSFORMERS_FOLDER)
    model, processor = AutoModel.from_pretrained(source).eval(), AutoProcessor.from_pretrained(source)
    pictures = [Image.fromarray(image) for image in check_images()]
    inputs = processor(images=pictures, text=list(CHECK_TEXTS), return_tensors="pt", padding=True)
    with torch.inference_mode():
        image = model.get_image_features(pixel_values=inputs["pixel_values"])
        text = model.get_text_features(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
    return {"image": unit(image.numpy()), "text": unit(text.numpy())}


def check(folder: Path, peer_python: Path) -> bool:
    """Print how the two formats agree and how spread out the vectors are; False if they differ."""
    mine = open_clip_vectors(folder)
    command = [str(peer_python), __file__, "--out", str(folder), "--vectors", str(folder / "vectors.npz")]
    subprocess.run(command, check=True, env={"HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin"})
    theirs = np.load(folder / "vectors.npz")
    good = True
    for tower, vectors in mine.items():
        cosine = (vectors * theirs[tower]).sum(axis=1)
        company = vectors @ vectors.T
        others = company[~np.eye(len(company), dtype=bool)]
        print(
            f"{tower}: cosine open_clip / transformers min {cosine.min():.7f}; between inputs mean {others.mean():.3f}"
        )
        good &= bool(cosine.min() > MIN_COSINE)
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(".runs/weights"))
    parser.add_argument("--check", action="store_true", help="compare the two formats through both libraries")
    parser.add_argument("--peer-python", type=Path, default=Path(".runs/peer-env/bin/python"))
    parser.add_argument(
        "--vectors", type=Path, help="only write transformers' vectors there (the peer's half of --check)"
    )
    options = parser.parse_args()
    if options.vectors:
        found = transformers_vectors(options.out)
        np.savez(options.vectors, image=found["image"], text=found["text"])
        return 0
    if not (options.out / OPEN_CLIP_FILE).exists():
        build(options.out)
    if options.check and not check(options.out, options.peer_python):
        print(f"the two formats differ: cosine at most {MIN_COSINE}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
