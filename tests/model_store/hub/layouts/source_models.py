"""Seeded torch models with their preprocessing and tokenisers: what every written layout is compared with."""

from __future__ import annotations

import gzip
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import open_clip
import timm
import torch
from numpy.typing import NDArray
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer, default_bpe
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import CLIPTokenizer, PreTrainedTokenizerFast

from model_store.modality.text import END, START, clip_vocabulary

CLIP_MERGES = 49_152 - 256 - 2
TINY_MERGES = 500
TINY_SIGLIP = "clipworks_test_siglip"
_LINES = (
    "a photo of a red shoe on a table",
    "two dogs run over the green grass, and a cat sleeps",
    "one blue car in front of an old house; people walk by",
    "An x-ray of 12 small birds: UPPER and lower case, été, naïve, Straße",
)


@dataclass(frozen=True, kw_only=True)
class SourceModel:
    """An open_clip model in eval mode. `config` is its open_clip configuration; scales have exp() applied.

    `hub_tokenizer` is the same vocabulary as transformers saves it, `tokenize` is open_clip's: texts -> int64 [n, L].
    """

    model: nn.Module
    config: dict[str, Any]
    preprocess: PreprocessCfg
    tokenize: Callable[[list[str]], Tensor]
    hub_tokenizer: PreTrainedTokenizerFast | CLIPTokenizer
    logit_scale: float
    logit_bias: float | None

    @property
    def context_length(self) -> int:
        return self.config["text_cfg"]["context_length"]

    @property
    def size_px(self) -> int:
        return self.config["vision_cfg"]["image_size"]

    def image_vectors(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """float32 [n, D], not normalised, of pictures through open_clip's own preprocessing."""
        transform: Any = image_transform_v2(self.preprocess, is_train=False)
        with torch.inference_mode():
            return self.model.encode_image(torch.stack([transform(image) for image in images])).numpy()

    def text_vectors(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """float32 [n, D], not normalised, of texts through open_clip's own tokeniser."""
        with torch.inference_mode():
            return self.model.encode_text(self.tokenize(list(texts))).numpy()


def tiny_clip(*, seed: int = 0, quick_gelu: bool = False) -> SourceModel:
    """A CLIP of 32 px, width 32 and the first 500 merges; about 300 kB."""
    config = {
        "embed_dim": 32,
        "quick_gelu": quick_gelu,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {
            "context_length": 77,
            "vocab_size": 2 * 256 + TINY_MERGES + 2,
            "width": 32,
            "heads": 2,
            "layers": 2,
        },
    }
    return _clip_of(config, merges=TINY_MERGES, seed=seed, scale=43.5)


def small_clip(*, seed: int = 0) -> SourceModel:
    """As `tiny_clip`, with the whole vocabulary that open_clip's own tokeniser has; about 7 MB."""
    config = dict(tiny_clip().config)
    config["text_cfg"] = {**config["text_cfg"], "vocab_size": 2 * 256 + CLIP_MERGES + 2}
    return _clip_of(config, merges=CLIP_MERGES, seed=seed, scale=43.5)


def vit_b_32(*, layers: int = 12, seed: int = 0, quick_gelu: bool = False) -> SourceModel:
    """ViT-B-32 (151 M parameters if it is whole) with random weights, CLIP's own vocabulary, and so many layers."""
    config = open_clip.get_model_config("ViT-B-32-quickgelu" if quick_gelu else "ViT-B-32")
    assert config
    for tower in ("vision_cfg", "text_cfg"):
        config[tower]["layers"] = layers
    return _clip_of(config, merges=CLIP_MERGES, seed=seed, scale=100.0)


def tiny_siglip(*, seed: int = 0) -> SourceModel:
    """A SigLIP: squashed pictures, mean and std .5, pooling by attention, sigmoid bias, text of 64 without a mask."""
    hub_tokenizer = unigram_tokenizer()
    config: dict[str, Any] = {
        "embed_dim": 32,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": {
            "image_size": 32,
            "timm_model_name": TINY_SIGLIP,
            "timm_model_pretrained": False,
            "timm_pool": "map",
            "timm_proj": "none",
        },
        "text_cfg": {
            "context_length": 64,
            "vocab_size": len(hub_tokenizer),
            "hf_tokenizer_name": "clipworks-test/tiny-siglip",
            "tokenizer_kwargs": {"clean": "canonicalize"},
            "width": 32,
            "heads": 2,
            "layers": 2,
            "no_causal_mask": True,
            "proj_bias": True,
            "pool_type": "last",
            "norm_kwargs": {"eps": 1e-6},
        },
    }
    with _seeded(seed):
        model = open_clip.CustomTextCLIP(**{key: value for key, value in config.items() if key != "custom_text"})
        _spread(model, gain=4.0)
    half = (0.5, 0.5, 0.5)
    with tempfile.TemporaryDirectory() as folder:
        hub_tokenizer.save_pretrained(folder)
        tokenize = HFTokenizer(folder, context_length=64, clean="canonicalize")
    return _source(
        model,
        config,
        PreprocessCfg(size=32, mean=half, std=half, interpolation="bicubic", resize_mode="squash"),
        tokenize,
        hub_tokenizer,
        scale=117.25,
        bias=-12.75,
    )


@register_model
def clipworks_test_siglip(**kwargs: Any) -> VisionTransformer:
    """timm's SigLIP tower, two blocks of width 32 on 4 x 4 patches."""
    kwargs.pop("pretrained", None)
    kwargs.pop("pretrained_cfg", None)
    kwargs.pop("pretrained_cfg_overlay", None)
    kwargs.pop("cache_dir", None)
    shape = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    return VisionTransformer(**{**shape, "class_token": False, "global_pool": "map", **kwargs})


assert clipworks_test_siglip.__name__ == TINY_SIGLIP
assert timm.is_model(TINY_SIGLIP)


@cache
def clip_tokenizer(merges: int) -> CLIPTokenizer:
    """transformers' CLIP tokeniser of the first `merges` merges; its special tokens are spelled as open_clip's are."""
    text = _merges_text(merges)
    vocabulary, pairs = clip_vocabulary(text)
    hub_spelling = {START: "<|startoftext|>", END: "<|endoftext|>"}
    vocabulary = {hub_spelling.get(token, token): index for token, index in vocabulary.items()}
    return CLIPTokenizer(vocab=vocabulary, merges=pairs, model_max_length=77)


def unigram_tokenizer() -> PreTrainedTokenizerFast:
    """A Unigram tokeniser with T5's form (text, </s>, padding on the right), trained on a few lines."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator([*_LINES, *(line.lower() for line in _LINES)], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="</s>", eos_token="</s>", unk_token="<unk>", model_max_length=64
    )


def _clip_of(config: dict[str, Any], *, merges: int, seed: int, scale: float) -> SourceModel:
    with _seeded(seed):
        model = open_clip.CLIP(**config)
        _spread(model)
    size = config["vision_cfg"]["image_size"]
    return _source(
        model, config, PreprocessCfg(size=size), _openclip_tokenizer(merges), clip_tokenizer(merges), scale=scale
    )


def _source(
    model: nn.Module,
    config: dict[str, Any],
    preprocess: PreprocessCfg,
    tokenize: Callable[[list[str]], Tensor],
    hub_tokenizer: PreTrainedTokenizerFast | CLIPTokenizer,
    *,
    scale: float,
    bias: float | None = None,
) -> SourceModel:
    with torch.no_grad():
        model.logit_scale.fill_(np.log(scale))
        if bias is not None:
            model.logit_bias.fill_(bias)
    return SourceModel(
        model=model.eval().requires_grad_(False),
        config=config,
        preprocess=preprocess,
        tokenize=tokenize,
        hub_tokenizer=hub_tokenizer,
        logit_scale=scale,
        logit_bias=bias,
    )


@cache
def _openclip_tokenizer(merges: int) -> SimpleTokenizer:
    with tempfile.NamedTemporaryFile(suffix=".txt.gz") as file:
        file.write(gzip.compress(_merges_text(merges).encode("utf-8")))
        file.flush()
        return SimpleTokenizer(file.name)


def _merges_text(count: int) -> str:
    with gzip.open(default_bpe()) as stream:
        lines = stream.read().decode("utf-8").split("\n")
    return "\n".join(lines[: count + 1])


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _spread(model: nn.Module, *, gain: float = 2.0) -> None:
    """Make biases and norms matter, which start as zeros and ones, and inputs differ more than at initialisation."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(gain if parameter.ndim > 1 else 1.0)
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
