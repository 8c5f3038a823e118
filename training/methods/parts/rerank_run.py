"""A trained reranker behind its base: as what judges pairs, and as a derivation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from evaluation.probes import binding, relation
from evaluation.probes.matching import Grids, MatchReader
from evaluation.probes.pool import Pool, PoolSize
from evaluation.scenes.config import Pair
from model_store.modality.image import prepare_dense
from model_store.modality.text import Tokenizer
from model_store.reranking import PairMatcher, TextTokens
from training.checkpoint import LoadedModel
from training.exporting.derive import DerivationSource
from training.exporting.reranking import RerankSource
from training.methods.parts.positions_of_rows import dense_at
from training.methods.parts.token_states import TokenStates, WordStates
from training.models.dense import DenseSource
from training.models.fusion import Fusion
from training.publication import Publication
from training.saved import SavedRun

VALIDATION = PoolSize(compass=16, class_groups=1, squares=1, counts=1, additions=1, spoilt=2)
PROBES = {"binding": binding.build, "relation": relation.build}
F32 = NDArray[np.float32]
I64 = NDArray[np.int64]


class TorchReranker(PairMatcher):
    """The modules themselves, in fp32 without gradients; the caller puts them into eval mode."""

    def __init__(
        self, tokens: TokenStates | WordStates, fusion: Fusion, tokenizer: Tokenizer, dense: DenseSource
    ) -> None:
        self.tokens, self.fusion, self.tokenizer, self.dense = tokens, fusion, tokenizer, dense
        self._device = fusion.head.weight.device

    def tokens_of(self, ids: I64, mask: I64) -> TextTokens:
        with torch.inference_mode():
            return TextTokens(self.tokens(torch.from_numpy(ids).to(self._device)).float().cpu().numpy(), mask)

    def match(self, positions: NDArray[np.floating], texts: TextTokens) -> F32:
        with torch.inference_mode():
            given = (np.asarray(positions, dtype=np.float32), texts.states, texts.mask)
            return self.fusion(*(torch.from_numpy(each).to(self._device) for each in given)).float().cpu().numpy()

    def see(self, pictures: Sequence[NDArray[np.uint8]]) -> list[F32]:
        """Positions [rows, columns, D] of pictures uint8 [H, W, 3], prepared as they are served."""
        grids: list[F32] = []
        with torch.inference_mode():
            for picture in pictures:
                pixels = prepare_dense(Image.fromarray(picture), self.dense.spec)[None]
                grids.append(self.dense.module(torch.from_numpy(pixels).to(self._device))[0][0].float().cpu().numpy())
        return grids

    def match_texts(self, grids: Grids, texts: Sequence[str]) -> F32:
        """Logits [N] of N pairs; a text that several pairs have is read once."""
        unique = list(dict.fromkeys(texts))
        rows = [unique.index(text) for text in texts]
        return self.match_each(grids, self.text_tokens(unique).pick(rows))


def probed(
    reranker: TorchReranker, *, pairs: tuple[Pair, ...], seed: int, size: PoolSize
) -> dict[str, dict[str, float]]:
    """Scores of who has which colour and of what stands where, by probe and row; higher is better."""
    spec = reranker.dense.spec
    reader = MatchReader(reranker.see, reranker.match_texts, size_px=spec.height_px or spec.short_px)
    pool = Pool(size, seed=seed, pairs=pairs)
    found = {name: build(pool).measure(reader) for name, build in PROBES.items()}
    return {name: {row.name: row.value for row in rows} for name, rows in found.items()}


@dataclass(frozen=True, kw_only=True)
class RerankRun:
    """Averaged weights, in eval mode and without gradients, behind the very base they were trained behind."""

    run: SavedRun
    base: LoadedModel
    reranker: TorchReranker

    @classmethod
    def of(cls, run: SavedRun, tokens: TokenStates | WordStates, fusion: Fusion, *, side_px: int | None) -> RerankRun:
        """tokens, fusion: of the options of the run; what is trained of them with any weights.

        Raises:
            ValueError: the base is not where the recipe says, or is another one.
        """
        base = run.base()
        fusion.load_state_dict(run.state("fusion"))
        if isinstance(tokens, WordStates):
            tokens.words.load_state_dict(run.state("words"))
        for module in (fusion, tokens):
            module.eval().requires_grad_(False)
        return cls(run=run, base=base, reranker=TorchReranker(tokens, fusion, base.tokenizer, dense_at(base, side_px)))

    def derivation(self, publication: Publication) -> DerivationSource:
        """Both graphs of the reranker; pictures, texts and templates stay the base's."""
        base, spec = publication.base(roles=("dense_encoder",)), self.reranker.dense.spec
        fingerprints = base.manifest.fingerprint
        structure = f"rerank/1;{self.run.info.config.method};{fingerprints.image};{fingerprints.text}"
        return DerivationSource(
            base=base,
            structure=structure,
            provenance=publication.provenance(structure, f"a reranker behind {base.reference}"),
            reranker=RerankSource(
                tokens=self.reranker.tokens,
                fusion=self.reranker.fusion,
                context_length=self.reranker.tokens.context_length,
                side_px=spec.height_px or spec.short_px,
            ),
            metrics=publication.metrics(),
        )
