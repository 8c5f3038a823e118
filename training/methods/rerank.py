"""A reranker behind a frozen dual encoder: tokens of a text look at positions of a picture, a logit says if they fit.

ALBEF's image-text matching with hard negatives (Li et al., 2021, "Align before Fuse", section 3.2), its two unimodal
encoders replaced by a trained CLIP that stays as it is. Vectors, and so every index, remain the base's; the answer is
for ordering the first candidates of a search again.
"""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from training import distributed
from training.data.protocol import Source
from training.data.scenes import scene_splits
from training.data.source import JUDGED, SceneSource
from training.encoder import TorchEncoder
from training.exporting.derive import DerivationSource
from training.losses import unit
from training.method import Context, ModuleUse, Needs, ParamGroup, Produced, StepMethod
from training.methods.parts.pair_negatives import Wrong, draw, matching_loss, wrong_pairs
from training.methods.parts.positions_of_rows import dense_at, positions_of_rows
from training.methods.parts.prompt_averages import follow
from training.methods.parts.rerank_run import VALIDATION, RerankRun, TorchReranker, probed
from training.methods.parts.token_states import TokenStates, WordStates
from training.models.fusion import Fusion, Looks
from training.options import Options
from training.publication import Publication
from training.saved import SavedRun

_SEED_STRIDE = 2**32


class RerankOptions(Options):
    """layers, heads, width, hidden: of the fusion. looks: "pooled" gives tokens the mean position alone (a control).

    words: a vector for each token of the vocabulary is learnt beside the base's states, which are the same for any
    words that its training never had.

    dense_px: short side of the pictures whose positions are read; none: as the base's dense role is exported. Another
    one needs a base artifact whose dense role takes it.

    negatives: a pair's wrong picture and wrong text are drawn by the dual encoder's softmax ("hard"), or any is as
    likely ("random", a control). own_negatives: the data's false captions are among the texts. excuse_true: texts that
    are true of a picture, or may be, are never called wrong; data with an oracle only.

    distill: alpha of momentum distillation, a slow copy of the fusion (`momentum`) answers beside the truth; it
    rises from 0 within `ramp_steps`, none: within the first epoch. ALBEF softens its other losses so, not this one.
    """

    layers: int = Field(default=2, ge=1)
    heads: int = Field(default=4, ge=1)
    width: int = Field(default=128, ge=8)
    hidden: int = Field(default=512, ge=8)
    looks: Looks = "positions"
    words: bool = False
    dense_px: int | None = Field(default=None, ge=8)
    negatives: Literal["hard", "random"] = "hard"
    own_negatives: bool = True
    excuse_true: bool = False
    distill: float = Field(default=0.0, ge=0, lt=1)
    momentum: float = Field(default=0.995, ge=0, le=1)
    ramp_steps: int | None = Field(default=None, ge=1)


def create(options: dict[str, Any]) -> RerankMethod:
    return RerankMethod(RerankOptions.parse(options, method="rerank"))


class RerankMethod(StepMethod):
    def __init__(self, options: RerankOptions) -> None:
        if options.width % options.heads:
            raise ValueError(f"rerank: width {options.width} is no multiple of {options.heads} heads")
        self.options = options
        own = ("negative_text", "negative_id", "has_negative") if options.own_negatives else ()
        excused = ("excused",) if options.excuse_true else ()
        self.needs = Needs(fields=("row", "text", "caption_id", *own, *excused))

    # Training

    def setup(self, context: Context) -> None:
        base = context.required_base("rerank")
        self.model, self._source, self._seed = base.model.to(context.device), context.source, context.seed
        self._states = TokenStates(base.model).to(context.device)
        self.tokens, self.words = self._tokens(self._states, vocabulary=context.tokenizer.spec.vocab_size)
        self._dense = dense_at(base, self.options.dense_px)
        with distributed.first_alone():
            self._rows = positions_of_rows(
                base,
                self._dense,
                context.source,
                folder=context.features_folder,
                device=context.device,
                track=context.track,
            )
        grid, dim = self._rows.positions.shape[1], self._rows.positions.shape[3]
        self.fusion = self._fusion(grid=grid, image_dim=dim, tokens=self.tokens)
        mean, spread = self._rows.statistics()
        self.fusion.mean.copy_(mean)
        self.fusion.spread.fill_(spread)
        self.fusion.to(context.device)
        self.slow = copy.deepcopy(self.fusion).requires_grad_(False) if self.options.distill else None
        self._scale, self._templates = base.model.logit_scale.detach().exp(), base.info.templates
        self._ramp = self.options.ramp_steps or max(1, len(context.source.pixels) // context.batch_size)
        self._reranker = TorchReranker(self.tokens, self.fusion, context.tokenizer, self._dense)

    def modules(self) -> dict[str, tuple[nn.Module, ModuleUse]]:
        found: dict[str, tuple[nn.Module, ModuleUse]] = {"fusion": (self.fusion, "export")}
        if self.words is not None:
            found["words"] = (self.words, "export")
        if self.slow is not None:
            found["slow"] = (self.slow, "train_only")
        return {**found, "model": (self.model, "frozen")}

    def param_groups(self) -> list[ParamGroup]:
        trained = {"fusion": self.fusion, **({} if self.words is None else {"words": self.words})}
        found = {f"{name}.{path}": p for name, each in trained.items() for path, p in each.named_parameters()}
        return [ParamGroup(parameters=found)]

    def prepare(self, step: int, progress: float) -> None:
        self._dice = torch.Generator().manual_seed(self._seed * _SEED_STRIDE + step)
        self._alpha = self.options.distill * min(1.0, step / self._ramp)

    def step(self, batch: dict[str, Tensor], progress: float) -> dict[str, Tensor]:
        ids, logits = self._asked(batch)
        states, mask = self.tokens(ids).float(), self._states.mask(ids)
        wrong = self._wrong(batch)
        count, hard = len(batch["row"]), self.options.negatives == "hard"
        text, has_text = draw(logits, wrong.texts, hard=hard, generator=self._dice)
        picture, has_picture = draw(logits[:, :count].T, wrong.pictures, hard=hard, generator=self._dice)
        own = torch.arange(count, device=text.device)
        # Each pair, each picture with a wrong text, each text with a wrong picture.
        pictures, texts = torch.cat([own, own, picture]), torch.cat([own, text, own])
        truth = torch.cat([torch.ones(count), torch.zeros(2 * count)]).to(text.device)
        counts = torch.cat([torch.ones_like(has_text), has_text, has_picture])
        grids = torch.from_numpy(self._rows.positions[batch["row"].cpu().numpy()]).to(states)
        with torch.no_grad():
            target = self._softened(truth, grids, states[texts], mask[texts], pictures)
        found = self.fusion.match(self.fusion.seen(grids), states[texts], mask[texts], pictures)
        return {"matching": matching_loss(found, target, counts)}

    def stepped(self, step: int, progress: float) -> None:
        if self.slow is not None:
            follow(self.slow, self.fusion, 1 - self.options.momentum)

    def validated(self) -> dict[str, Any] | None:
        if not isinstance(self._source, SceneSource):
            return None
        self.fusion.eval()
        try:
            return _judged(self._reranker, self._source, "validation")
        finally:
            self.fusion.train()

    def artifact(self) -> Produced:
        return Produced(
            graphs={
                "image_encoder": "model.encode_image",
                "text_encoder": "model.encode_text",
                "token_encoder": "model.encode_text" if self.words is None else "words.forward",
                "reranker": "fusion.forward",
            },
            templates=self._templates,
            inherited=("image_encoder", "text_encoder", "dense_encoder"),
        )

    # Publishing and judging, from a checkpoint

    def derivation(self, publication: Publication) -> DerivationSource:
        return self.opened(publication.run).derivation(publication)

    def encoder(self, run: SavedRun) -> TorchEncoder:
        """The base's vectors: a reranker changes neither tower."""
        base = run.base()
        return run.encoder(base.model.encode_image, base.model.encode_text, base=base)

    def judge(self, run: SavedRun, source: Source, *, split: Literal["validation", "test"]) -> dict[str, Any]:
        """Of drawn scenes, pairs as the reranker judges them; of other data, its base's vectors."""
        if isinstance(source, SceneSource):
            return _judged(self.opened(run).reranker, source, split)
        return source.judge(self.encoder(run), split=split)

    def opened(self, run: SavedRun) -> RerankRun:
        """A checkpoint of these options as what judges pairs."""
        state, base = run.state("fusion"), run.base()
        tokens, _ = self._tokens(TokenStates(base.model), vocabulary=base.tokenizer.spec.vocab_size)
        grid = round(len(state["places"]) ** 0.5)
        fusion = self._fusion(grid=grid, image_dim=len(state["mean"]), tokens=tokens)
        return RerankRun.of(run, tokens, fusion, side_px=self.options.dense_px)

    def _tokens(self, states: TokenStates, *, vocabulary: int) -> tuple[TokenStates | WordStates, nn.Embedding | None]:
        """What reads a text, and what of it is trained."""
        if not self.options.words:
            return states, None
        words = nn.Embedding(vocabulary, states.width).to(next(states.parameters()).device)
        nn.init.zeros_(words.weight)
        return WordStates(states, words), words

    def _fusion(self, *, grid: int, image_dim: int, tokens: TokenStates | WordStates) -> Fusion:
        options = self.options
        return Fusion(
            image_dim=image_dim,
            text_dim=tokens.width,
            width=options.width,
            layers=options.layers,
            heads=options.heads,
            hidden=options.hidden,
            grid=grid,
            context_length=tokens.context_length,
            looks=options.looks,
        )

    @torch.no_grad()
    def _asked(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """T captions, the data's false ones behind, as ids [T, L], and the logits [B, T] with which the dual encoder
        takes them for its pictures'."""
        ids = batch["text"]
        if self.options.own_negatives:
            false = batch["negative_text"]
            longest = max(ids.shape[1], false.shape[1])
            both = [nn.functional.pad(each, (0, longest - each.shape[1]), value=self._pad) for each in (ids, false)]
            ids = torch.cat(both)
        image = torch.from_numpy(self._rows.pooled[batch["row"].cpu().numpy()]).to(ids.device)
        logits = self._scale * unit(image) @ unit(self.model.encode_text(ids)).T
        return ids, logits

    @property
    def _pad(self) -> int:
        return self._reranker.tokenizer.spec.pad_id

    def _wrong(self, batch: dict[str, Tensor]) -> Wrong:
        return wrong_pairs(
            batch["caption_id"],
            excused=batch.get("excused"),
            negative_id=batch.get("negative_id"),
            has_negative=batch.get("has_negative"),
        )

    def _softened(self, truth: Tensor, grids: Tensor, states: Tensor, mask: Tensor, pictures: Tensor) -> Tensor:
        """Targets [N]: the truth, and a share of what the slow copy says (section 3.3)."""
        if self.slow is None or not self._alpha:
            return truth
        said = self.slow.match(self.slow.seen(grids), states, mask, pictures).float().sigmoid()
        return (1 - self._alpha) * truth + self._alpha * said


def _judged(reranker: TorchReranker, source: SceneSource, split: Literal["validation", "test"]) -> dict[str, Any]:
    pairs = scene_splits(source.data).validation.pairs
    return {**probed(reranker, pairs=pairs, seed=JUDGED[split], size=VALIDATION)}
