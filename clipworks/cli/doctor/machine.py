"""Checks of what the machine gives a server: devices, cores, memory, open files."""

from __future__ import annotations

import os
from pathlib import Path

from clipworks.cli.doctor.diagnosis import Diagnosis, failure, ok, warning
from clipworks.cli.doctor.subject import Subject, served_model, store_of

_CUDA = "CUDAExecutionProvider"
_NVIDIA = Path("/proc/driver/nvidia")
_NO_GPU_MEANT = "set CLIPWORKS_DEVICE=cpu"
_MIB = 2**20


def check_device(subject: Subject) -> Diagnosis | None:
    """ONNX Runtime's providers beside the device that is asked for."""
    if subject.settings is None:
        return None
    from model_store.session import available_providers

    wanted = subject.settings.device
    providers = available_providers()
    found = f"CLIPWORKS_DEVICE is {wanted}; ONNX Runtime has {', '.join(providers)}"
    has_provider, has_driver = _CUDA in providers, _NVIDIA.exists()
    if wanted == "cpu" or (has_provider and has_driver):
        return ok(found)
    other_flavour = "pip uninstall onnxruntime, then pip install 'clipworks[serve-gpu]'"
    if wanted == "cuda" and not has_provider:
        return failure(found, f"{other_flavour}; or {_NO_GPU_MEANT}")
    driver = "install the NVIDIA driver, or start the container with --gpus all"
    if wanted == "cuda":
        return failure(f"{found}; there is no NVIDIA driver", f"{driver}; or {_NO_GPU_MEANT}")
    if has_driver:
        return warning(f"{found}: the GPU of this machine stays idle", f"{other_flavour}; or {_NO_GPU_MEANT}")
    if has_provider:
        return warning(f"{found}; without an NVIDIA driver models run on the CPU", f"{driver}; or {_NO_GPU_MEANT}")
    return ok(f"{found}: models run on the CPU")


def check_threads(subject: Subject) -> Diagnosis | None:
    """Threads that the settings start beside the cores that this process may use."""
    settings = subject.settings
    if settings is None:
        return None
    from service.cgroups import cpu_quota
    from service.settings import available_cores

    usable, quota = available_cores(), cpu_quota()
    threads = {
        "CLIPWORKS_INTRA_THREADS": settings.intra_threads or usable,
        "CLIPWORKS_DECODE_WORKERS": settings.decode_workers or usable,
        "CLIPWORKS_SEARCH_THREADS": settings.search_threads or usable,
    }
    found = f"{usable} cores of {os.cpu_count()} may be used"
    found += "" if quota is None else f" (a quota of {quota:g})"
    found += "; threads: {} for a model run, {} to decode, {} to search".format(*threads.values())
    remedies = [f"set {name}={usable}" for name, count in threads.items() if count > usable]
    openmp = subject.environment.get("OMP_NUM_THREADS", "")
    if openmp:
        found += f"; OMP_NUM_THREADS is {openmp}"
        if not openmp.isdigit() or not 1 <= int(openmp) <= usable:
            remedies.append(f"unset OMP_NUM_THREADS, or set it to {usable}")
    if remedies:
        return warning(f"{found}: more than there are cores make everything slower", "; ".join(remedies))
    return ok(found)


def check_memory(subject: Subject) -> Diagnosis | None:
    """What the model weighs and what the settings allow for requests beside what this process may have."""
    settings = subject.settings
    if settings is None:
        return None
    from service.settings import DECODE_BYTES_PER_WORKER, available_cores

    limit = _memory_bytes()
    if limit is None:
        return None
    weights = _weights_bytes(subject)
    decoding = settings.decode_memory_bytes or DECODE_BYTES_PER_WORKER * (settings.decode_workers or available_cores())
    requests = decoding + settings.max_bodies_bytes + settings.max_unread_bytes
    model = "a model of unknown size" if weights is None else f"{_mib(weights)} of weights"
    found = f"{_mib(limit)} may be used; {model}, and requests may take {_mib(requests)} at most"
    if weights is not None and weights > limit:
        return failure(found, "raise the container's memory limit (mem_limit, MemoryMax), or serve a smaller model")
    if (weights or 0) + requests > limit:
        return warning(
            f"{found}: under load the process may be killed",
            "raise the memory limit (mem_limit, MemoryMax), or lower CLIPWORKS_DECODE_MEMORY_BYTES, "
            "CLIPWORKS_MAX_BODIES_BYTES and CLIPWORKS_MAX_UNREAD_BYTES",
        )
    return ok(found)


def check_files(subject: Subject) -> Diagnosis | None:
    """The limit of open files beside the connections that the settings allow; a server raises the soft one itself."""
    if subject.settings is None:
        return None
    try:
        import resource
    except ImportError:
        return None
    from service.connection.descriptors import files_for, room_among

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = subject.settings.max_connections
    unlimited = resource.RLIM_INFINITY in (soft, hard)
    found = f"{soft} open files, {'without a' if unlimited else f'{hard} as'} hard limit"
    room = wanted if unlimited else room_among(max(soft, hard), wanted)
    if room < wanted:
        return warning(
            f"{found}: room for {room} of {wanted} connections",
            f"raise `ulimit -n` (--ulimit nofile, LimitNOFILE) to {files_for(wanted)}, "
            f"or set CLIPWORKS_MAX_CONNECTIONS={room}",
        )
    return ok(f"{found}: room for {wanted} connections")


def _memory_bytes() -> int | None:
    """The machine's memory, or less where a control group says so."""
    from service.cgroups import memory_limit

    try:
        physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError):
        physical = None
    return min((each for each in (physical, memory_limit()) if each), default=None)


def _weights_bytes(subject: Subject) -> int | None:
    """Bytes of the graphs that are loaded at start; None where there is no such model, which another check says."""
    from model_store.errors import ClipworksError
    from model_store.manifest import ENCODERS

    if subject.settings is None:
        return None
    try:
        artifact = served_model(subject.settings, store_of(subject.settings))
    except ClipworksError:
        return None
    if artifact is None:
        return None
    wanted = "fp32" if subject.settings.precision == "auto" else subject.settings.precision
    found = [artifact.graph_spec(role, artifact.served_precision(role, wanted)) for role in ENCODERS]
    return sum(owner.entry(path).size_bytes for owner, spec in filter(None, found) for path in spec.files)


def _mib(count: int) -> str:
    return f"{count / _MIB:,.0f} MiB"
