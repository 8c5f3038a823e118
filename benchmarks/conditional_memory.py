"""Peak memory and time of a step of cocoop by batch, all texts at once and in blocks; each case in its own process.

The text tower is one of open_clip's with drawn weights; a step reads batch x classes texts and takes their gradients.
python benchmarks/conditional_memory.py --architecture ViT-B-32 --classes 24
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

BATCHES = (1, 8, 32)
WORDS = ("red", "green", "blue", "dark", "pale", "wooden", "striped")
THINGS = ("chair", "table", "shirt", "shoe", "lamp", "cup", "bicycle")


def measure(architecture: str, classes: int, batch: int, texts: int, device: str) -> dict[str, float]:
    """Of one step; the peak is that of the process on a CPU, and of torch's memory on a GPU.

    batch 0: no step, for what the process and the weights take.
    """
    import torch

    from model_store.modality.text import Tokenizer
    from training.config import OpenClipConfig
    from training.data.vocabulary import clip_merges, clip_text_spec
    from training.methods.parts.conditional import ConditionalText, MetaNet, logits_in_blocks
    from training.methods.parts.contexts import LearnedContexts, PromptedText, name_ids, word_vectors
    from training.methods.parts.token_reader import token_reader
    from training.models.building import build_model

    torch.manual_seed(0)
    config = OpenClipConfig(kind="open_clip", architecture=architecture)
    tokenizer = Tokenizer(clip_text_spec(48894, context_length=77), clip_merges(48894))
    model = build_model(config, vocab_size=49408, end_id=49407).requires_grad_(False).eval().to(device)
    reader = token_reader(model)
    contexts = LearnedContexts(word_vectors("a photo of a", reader, tokenizer))
    names = tuple(f"{word} {thing} {number}" for number in range(9) for word in WORDS for thing in THINGS)[:classes]
    ids = name_ids(names, tokenizer, count=contexts.count).to(device)
    prompted = PromptedText(reader, contexts, position="end")
    dim = prompted(ids[:1]).shape[1]
    head = ConditionalText(prompted, MetaNet(dim, contexts.vectors.shape[1], hidden=dim // 16), scale=100.0).to(device)
    took_s = 0.0
    if batch:
        images = torch.nn.functional.normalize(torch.randn(batch, dim, device=device), dim=1)
        truth = torch.arange(batch, device=device) % classes
        began_s = time.perf_counter()
        torch.nn.functional.cross_entropy(logits_in_blocks(head, images, ids, texts=texts), truth).backward()
        if device == "cuda":
            torch.cuda.synchronize()
        took_s = time.perf_counter() - began_s
    on_gpu = torch.cuda.max_memory_allocated() if device == "cuda" else 0
    return {"peak_gb": (on_gpu or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024) / 1e9, "step_s": took_s}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", default="ViT-B-32")
    parser.add_argument("--classes", type=int, default=24)
    parser.add_argument("--texts", type=int, default=128, help="of a block")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int)
    given = parser.parse_args()
    if given.batch is not None:
        print(json.dumps(measure(given.architecture, given.classes, given.batch, given.texts, given.device)))
        return
    for batch in (0, *BATCHES):
        for texts in (10**9, given.texts) if batch else (10**9,):
            command = [sys.executable, *sys.argv, "--batch", str(batch), "--texts", str(texts)]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            case = f"{texts} texts at once" if texts < 10**9 else "all at once"
            print(f"batch {batch:3} {case:20} {found['peak_gb']:6.2f} GB {found['step_s']:7.1f} s", flush=True)


if __name__ == "__main__":
    main()
