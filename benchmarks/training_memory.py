"""Peak memory and time of a step: a whole batch, a batch in parts, recomputed blocks, both; each in its own process.

python benchmarks/training_memory.py --architecture ViT-B-32 --batch 64 --parts 8
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from contextlib import nullcontext

CASES = ("weights only", "whole", "parts", "recomputed", "parts, recomputed")


def measure(case: str, architecture: str, batch: int, parts: int, device: str) -> dict[str, float]:
    """Of the second of two steps of AdamW; the peak is that of the process on a CPU, and of torch's memory on a GPU."""
    import torch

    from training import method as methods
    from training.accumulation import add_gradients
    from training.config import OpenClipConfig
    from training.methods.base import BaseMethod
    from training.models.building import build_model, image_spec

    config = OpenClipConfig(kind="open_clip", architecture=architecture)
    torch.manual_seed(0)
    method = methods.create("base", {})
    if not isinstance(method, BaseMethod):
        raise TypeError(f"expected the method base, got {type(method)}")
    method.model = build_model(config, vocab_size=49408, end_id=49407).to(device).train()
    if "recomputed" in case:
        method.model.checkpoint_gradients()
    side = image_spec(config).height_px
    rows = {
        "image": torch.randint(256, (batch, side, side, 3), dtype=torch.uint8, device=device),
        "text": torch.randint(1, 40000, (batch, 77), device=device),
        "caption_id": torch.arange(batch, device=device),
    }
    optimizer = torch.optim.AdamW(method.model.parameters())
    took_s = 0.0
    for _ in range(2):
        began_s = time.perf_counter()
        optimizer.zero_grad()
        if case == "weights only":
            for parameter in method.model.parameters():
                parameter.grad = torch.zeros_like(parameter)
        else:
            add_gradients(
                method,
                rows,
                0.0,
                parts=parts if case.startswith("parts") else 1,
                modules=[method.model],
                autocast=nullcontext,
                scaled=lambda loss: loss,
                reseed=lambda: torch.manual_seed(1),
                before_last=lambda: None,
            )
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()
        took_s = time.perf_counter() - began_s
    on_gpu = torch.cuda.max_memory_allocated() if device == "cuda" else 0
    return {"peak_gb": (on_gpu or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024) / 1e9, "step_s": took_s}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", default="ViT-B-32")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--parts", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--case", choices=CASES)
    given = parser.parse_args()
    if given.case:
        print(json.dumps(measure(given.case, given.architecture, given.batch, given.parts, given.device)))
        return
    for case in CASES:
        command = [sys.executable, *sys.argv, "--case", case]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(f"{case:20} {found['peak_gb']:6.2f} GB {found['step_s']:7.1f} s", flush=True)


if __name__ == "__main__":
    main()
