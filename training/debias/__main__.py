"""`python -m training.debias --base NAME --name NEW --prompts FILE`: a group taken out of a model's vectors.

Nothing is trained: prompts that name the groups, or pictures with groups, span a subspace, and texts (with --sides both
pictures too) are projected onto what is left. What is published derives from the model and is served like any other.
With --captions, texts that find pictures nine tenths as well as before keep the model's space, and its collections.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from evaluation.bias.groups_file import read_groups
from evaluation.encoder import open_artifact
from evaluation.standard.captioned import read_captioned
from model_store.errors import ClipworksError
from model_store.store import Store
from training.debias.projection import fitted_on_pictures, fitted_on_prompts, holds, publish, space_proof
from training.debias.prompts_file import read_prompts


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m training.debias", description=__doc__)
    parser.add_argument("--base", required=True, metavar="NAME[@VERSION]", help="a model of the store")
    parser.add_argument("--store", type=Path, required=True, help="folder of models, to which the new one is added")
    parser.add_argument("--name", required=True, help="of the new model; again makes its next version")
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--prompts", type=Path, metavar="FILE", help="texts that name the groups, .txt or .json")
    given.add_argument("--groups", type=Path, metavar="FILE", help="pictures with groups, as for eval --suite bias")
    parser.add_argument("--sides", choices=("texts", "both"), default="texts", help="what is projected")
    parser.add_argument("--span", choices=("differences", "prompts"), default="differences", help="what is taken out")
    parser.add_argument("--calibrate", type=float, default=0.0, metavar="WEIGHT", help="by the pairs of --prompts")
    parser.add_argument("--captions", metavar="PATH", help="captioned pictures for the proof that the space is kept")
    options = parser.parse_args()
    try:
        if options.groups and (options.calibrate or options.span != "differences"):
            raise ValueError("--calibrate and --span are for --prompts")
        if options.captions and options.sides == "both":
            raise ValueError("--captions proves that pictures need not be indexed again; with --sides both they must")
        store = Store(options.store)
        base = store.open(options.base)
        encoder = open_artifact(base)
        if options.prompts:
            prompts = read_prompts(options.prompts)
            found = fitted_on_prompts(
                encoder, prompts, sides=options.sides, span=options.span, weight=options.calibrate
            )
        else:
            found = fitted_on_pictures(encoder, read_groups(options.groups), sides=options.sides)
        proof = space_proof(encoder, found, read_captioned(options.captions)) if options.captions else None
        made = publish(base, found, options.name, store, proof=proof)
    except (ValueError, OSError, ClipworksError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{made.reference}: {found.removed} of {len(found.texts)} dimensions of texts taken out ({found.said})")
    if proof is not None:
        kept = "kept" if holds(proof) else "not kept"
        print(
            f"R@10 {proof.value:.3f}, of the base {proof.base_value or 0:.3f}, {proof.n} captions: its space is {kept}"
        )
    elif options.sides == "texts":
        print("the space is its own; --captions can prove that collections of the base still fit")
    return 0


if __name__ == "__main__":
    sys.exit(main())
