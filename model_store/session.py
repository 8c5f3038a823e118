"""ONNX Runtime sessions with explicit threads and provider; imports nothing of ours but errors, so it starts fast."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnxruntime as ort

from model_store.errors import GraphError, ProviderError

Device = Literal["cpu", "cuda"]
_SILENT = 4


@dataclass(frozen=True, kw_only=True)
class SessionSettings:
    """How a session runs.

    intra_threads: threads inside one operator; 0 lets ONNX Runtime take every core.
    spinning: waiting threads burn their core for a little latency; off when cores are shared with decoding.
    arena: keep freed memory for the next run (faster, larger).
    full_optimization: ONNX Runtime's layout transforms as well; they crash on fp16 ViT graphs on the CPU.
    memory_limit_bytes: of the CUDA arena, 0 = none.
    prepack: copy weights into the layout that products read fastest. Without it they stay mapped from their file, one
        copy in memory for all sessions of it.
    """

    device: Device = "cpu"
    intra_threads: int = 0
    spinning: bool = False
    arena: bool = True
    full_optimization: bool = True
    memory_limit_bytes: int = 0
    prepack: bool = True


def provider_names(device: Device) -> tuple[str, ...]:
    return ("CUDAExecutionProvider", "CPUExecutionProvider") if device == "cuda" else ("CPUExecutionProvider",)


def available_providers() -> tuple[str, ...]:
    """What this ONNX Runtime was built with."""
    return tuple(ort.get_available_providers())


def session_options(settings: SessionSettings) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = settings.intra_threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.enable_cpu_mem_arena = settings.arena
    options.log_severity_level = _SILENT
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if settings.spinning else "0")
    if not settings.prepack:
        options.add_session_config_entry("session.disable_prepacking", "1")
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if settings.full_optimization else level.ORT_ENABLE_EXTENDED
    return options


def open_session(
    path: str, settings: SessionSettings, label: str, options: ort.SessionOptions | None = None
) -> ort.InferenceSession:
    names = provider_names(settings.device)
    available = ort.get_available_providers()
    if names[0] not in available:
        raise ProviderError(f"device {settings.device} needs {names[0]}; this ONNX Runtime has {available}")
    if settings.device == "cuda":
        ort.preload_dlls()  # CUDA and cuDNN that came as Python packages are found by nobody else
    cuda: dict[str, str] = {"use_tf32": "0", "arena_extend_strategy": "kSameAsRequested"}
    if settings.memory_limit_bytes:
        cuda["gpu_mem_limit"] = str(settings.memory_limit_bytes)
    none: dict[str, str] = {}
    provider_options = [cuda, none] if settings.device == "cuda" else [none]
    try:
        session = ort.InferenceSession(
            path, options or session_options(settings), providers=list(names), provider_options=provider_options
        )
    except Exception as error:
        raise GraphError(f"{label} does not load: {first_line(error)}") from error
    if names[0] not in session.get_providers():
        raise ProviderError(f"{names[0]} was asked for, ONNX Runtime fell back to {session.get_providers()}")
    return session


def first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300] if lines else ''}"


def runtime_versions() -> dict[str, str]:
    """Versions that a build's numbers depend on."""
    return {"onnxruntime": ort.__version__, "numpy": np.__version__, "python": sys.version.split()[0]}
