"""An architecture's tokeniser as data: CLIP's merges or a tokenizer.json, with open_clip's own to compare."""

from __future__ import annotations

import gzip
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import snapshot_download
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer, default_bpe
from tokenizers import Tokenizer as HubTokenizer
from transformers import AutoTokenizer

from model_store.errors import ExportRefused
from model_store.golden import GOLDEN_TEXTS
from model_store.manifest import TextSpec
from model_store.modality.text import Tokenizer
from model_store.precisions.calibration import CALIBRATION_TEXTS

Clean = Literal["lower", "whitespace", "canonicalize"]
_MERGES_IN_USE = 49_152 - 256 - 2  # what open_clip reads of its file
TOKENIZER_FILES = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"]


@dataclass(frozen=True, kw_only=True)
class ImportedTokenizer:
    """`data` is the file's content for `spec`; `reference` is open_clip's tokeniser: texts -> int64 [n, context]."""

    spec: TextSpec
    data: bytes
    reference: Callable[[list[str]], torch.Tensor]


def import_tokenizer(
    text_config: dict[str, Any],
    *,
    file: Path | None,
    context_length: int,
    table_rows: int,
    dynamic_length: bool,
    cache_dir: Path | None = None,
) -> ImportedTokenizer:
    """The tokeniser that `text_config` (an open_clip text_cfg) asks for.

    file: a merges file for CLIP's BPE; for the others a tokenizer.json, or the folder that save_pretrained wrote.
    table_rows: size of the model's embedding table; a tokeniser that could give a larger id is refused.

    Raises:
        ExportRefused: unsupported tokeniser options, a missing or unfit file.
    """
    options = dict(text_config.get("tokenizer_kwargs") or {})
    clean = options.pop("clean", None)
    if text_config.get("tokenizer_mode"):
        raise ExportRefused(f"tokenizer_mode {text_config['tokenizer_mode']!r} is not supported")
    if options:
        raise ExportRefused(f"tokenizer options {sorted(options)} change ids after tokenising; not supported")
    if text_config.get("hf_tokenizer_name"):
        imported = _from_json(
            text_config["hf_tokenizer_name"], file, clean or "whitespace", context_length, dynamic_length, cache_dir
        )
    else:
        imported = _from_merges(file, clean or "lower", context_length, dynamic_length)
    if imported.spec.vocab_size > table_rows:
        raise ExportRefused(
            f"the tokenizer has {imported.spec.vocab_size} tokens, the model's table {table_rows} rows: "
            "give the tokenizer it was trained with"
        )
    return imported


def check_against_transformers(imported: ImportedTokenizer, folder: Path) -> None:
    """Stop unless the ids are those of the tokenizer of transformers that the folder holds.

    Compared on the golden and calibration texts that cleaning leaves as they are: what open_clip's cleaning changes,
    such as wrongly decoded characters, transformers takes as it comes. A class that cannot be made here (SigLIP's own
    needs sentencepiece) is left out; its tokenizer.json is compared with open_clip's reading of it all the same.

    Raises:
        ExportRefused: names the first text that differs.
    """
    try:
        theirs: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (ImportError, ValueError, OSError):
        return
    ours = Tokenizer(imported.spec, imported.data)
    texts = [text for text in (*GOLDEN_TEXTS, *CALIBRATION_TEXTS) if ours.cleaned(text) == text]
    length = imported.spec.context_length
    found = theirs(texts, padding="max_length", truncation=True, max_length=length)["input_ids"]
    for text, own, other in zip(texts, ours(texts).tolist(), found, strict=True):
        if own != other:
            raise ExportRefused(
                f"text {text[:60]!r}: token ids {own[:12]} differ from {other[:12]}, those of transformers' "
                f"{type(theirs).__name__}"
            )


def _from_merges(file: Path | None, clean: Clean, context_length: int, dynamic_length: bool) -> ImportedTokenizer:
    raw = gzip.decompress(Path(default_bpe()).read_bytes()) if file is None else _read(file)
    data = "\n".join(raw.decode("utf-8").split("\n")[: 1 + _MERGES_IN_USE]).encode("utf-8")
    vocab_size = 512 + data.count(b"\n") + 2
    spec = TextSpec(
        kind="clip_bpe",
        tokenizer_file="tokenizer/merges.txt",
        clean=clean,
        context_length=context_length,
        vocab_size=vocab_size,
        pad_id=0,
        start_id=vocab_size - 2,
        end_id=vocab_size - 1,
        truncation="keep_end",
        dynamic_length=dynamic_length,
    )
    with tempfile.TemporaryDirectory() as folder:
        packed = Path(folder) / "merges.txt.gz"
        packed.write_bytes(gzip.compress(data))
        reference = SimpleTokenizer(bpe_path=str(packed), context_length=context_length, clean=clean)
    return ImportedTokenizer(spec=spec, data=data, reference=reference)


def _from_json(
    name: str, file: Path | None, clean: Clean, context_length: int, dynamic_length: bool, cache_dir: Path | None
) -> ImportedTokenizer:
    if file is None:
        file = _from_hub(name, cache_dir)
    json_file = file / "tokenizer.json" if file.is_dir() else file
    # Old folders have vocab.json and merges.txt alone.
    data = _as_json(file) if file.is_dir() and not json_file.is_file() else _read(json_file)
    hub = HubTokenizer.from_str(data.decode("utf-8"))
    pad_token = _pad_token(json_file, hub)
    pad_id = hub.token_to_id(pad_token)
    if pad_id is None:
        raise ExportRefused(f"{json_file.name}: its pad token {pad_token!r} is not in its vocabulary")
    spec = TextSpec(
        kind="tokenizers_json",
        tokenizer_file="tokenizer/tokenizer.json",
        clean=clean,
        context_length=context_length,
        vocab_size=hub.get_vocab_size(with_added_tokens=True),
        pad_id=pad_id,
        start_id=None,
        end_id=None,
        truncation="tokenizer",
        dynamic_length=dynamic_length,
    )
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "tokenizer.json").write_bytes(data)
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": pad_token}
        (Path(folder) / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
        reference = HFTokenizer(folder, context_length=context_length, clean=clean)
    return ImportedTokenizer(spec=spec, data=data, reference=reference)


def _as_json(folder: Path) -> bytes:
    """The tokenizer of a folder that transformers can read, as the content of a tokenizer.json."""
    try:
        read: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        return read.backend_tokenizer.to_str().encode("utf-8")
    except (ImportError, ValueError, OSError, AttributeError) as error:
        raise ExportRefused(f"{folder.name} has no tokenizer.json, and transformers cannot read it: {error}") from error


def _from_hub(name: str, cache_dir: Path | None) -> Path:
    try:
        return Path(snapshot_download(name, allow_patterns=TOKENIZER_FILES, cache_dir=cache_dir))
    except Exception as error:  # hub errors of several libraries; without the file there is no tokeniser
        raise ExportRefused(
            f"this architecture's tokenizer is {name!r}, which cannot be downloaded here; "
            "give its tokenizer.json, or the folder that save_pretrained wrote, with --tokenizer"
        ) from error


def _pad_token(json_file: Path, hub: HubTokenizer) -> str:
    """The pad token of tokenizer_config.json beside the file, else of the file's own padding section."""
    config_file = json_file.with_name("tokenizer_config.json")
    if config_file.is_file():
        token = json.loads(config_file.read_text(encoding="utf-8")).get("pad_token")
        if token:
            return token["content"] if isinstance(token, dict) else token
    if hub.padding:
        return hub.padding["pad_token"]
    raise ExportRefused(f"{json_file.name} names no pad token, and there is no tokenizer_config.json beside it")


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ExportRefused(f"cannot read tokenizer file {file.name}: {error.strerror}") from error
