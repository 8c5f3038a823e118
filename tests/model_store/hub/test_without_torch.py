"""Weights that only torch can export, in an environment without it: a sentence with the command."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest


@pytest.mark.skipif(find_spec("open_clip") is not None, reason="torch and open_clip are installed")
def test_weights_for_torch_are_refused_with_the_command(tmp_path: Path) -> None:
    (tmp_path / "CLIP-ViT-B-32").mkdir()
    (tmp_path / "CLIP-ViT-B-32" / "open_clip_config.json").write_text(json.dumps({"model_cfg": {}}))
    (tmp_path / "CLIP-ViT-B-32" / "open_clip_model.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")
    command = [sys.executable, "-m", "clipworks", "models", "pull", "--from", str(tmp_path / "CLIP-ViT-B-32")]
    done = subprocess.run(
        [*command, "--store", str(tmp_path / "store")], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 3
    assert "no ONNX graph, but weights for torch (open_clip_model.safetensors)" in done.stderr
    assert "pip install 'clipworks[train,serve]'" in done.stderr
