"""A reranker: what is right is never called wrong, padding says nothing, places count, what is served was trained."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from model_store.errors import ExportRefused, GoldenError
from model_store.golden import ARRAYS_FILE
from model_store.manifest import Manifest
from model_store.modality.text import Tokenizer
from model_store.proving import Proof
from model_store.reranking import open_reranker
from model_store.session import SessionSettings
from model_store.store import Artifact, Store, file_entries
from model_store.towers import open_dense_tower
from tests.training.prompt_towers import LENGTH, models, small
from training.bases import StoredDense, stored_digest
from training.checkpoint import load_model, read_checkpoint
from training.data.vocabulary import clip_merges, clip_text_spec
from training.exporting.derive import export_derivation
from training.exporting.derived_graphs import AdapterSource
from training.exporting.reranking import build_reranker
from training.loop import train
from training.method import Context, create
from training.methods.parts.pair_negatives import draw, matching_loss, wrong_pairs
from training.methods.parts.rerank_run import RerankRun, TorchReranker
from training.methods.parts.token_reader import token_reader
from training.methods.parts.token_states import TokenStates, WordStates
from training.methods.rerank import RerankMethod
from training.models.dense import DenseSource
from training.models.fusion import Fusion
from training.publication import Publication
from training.publish import publish_checkpoint
from training.saved import SavedRun

pytestmark = pytest.mark.torch

MakeContext = Callable[..., Context]
OPTIONS = {"layers": 1, "heads": 2, "width": 16, "hidden": 24}
TEXTS = ["plain red shirt 1", "a green one", "", "plain blue shirt and a plain white shirt 2"]
SETTINGS = SessionSettings(intra_threads=1)
TINY_STORE = Path(__file__).parents[1] / "fixtures" / "tiny_store"


def drawn(*shape: int, seed: int = 5) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def fusion(**changes: object) -> Fusion:
    torch.manual_seed(1)
    given = {**OPTIONS, "image_dim": 6, "text_dim": 5, "grid": 3, "context_length": 8, **changes}
    made = Fusion(**given).eval()  # type: ignore[arg-type]
    nn.init.normal_(made.head.weight)
    return made


# Wrong pairs


def test_what_is_right_or_may_be_is_never_called_wrong() -> None:
    """Against a loop over pairs, with captions that repeat, false captions that are true elsewhere, and excuses."""
    rng = np.random.default_rng(0)
    for _ in range(30):
        ids, negative = rng.integers(4, size=6), rng.integers(6, size=6)
        has, excused = rng.random(6) < 0.7, rng.random((6, 12)) < 0.3
        facts = {"negative_id": torch.tensor(negative), "has_negative": torch.tensor(has)}
        wrong = wrong_pairs(torch.tensor(ids), excused=torch.tensor(excused), **facts)
        alone = wrong_pairs(torch.tensor(ids), **facts)
        for picture in range(6):
            for text in range(12):
                said = ids[text] if text < 6 else negative[text - 6]
                plain = said != ids[picture] and (text < 6 or has[text - 6])
                assert wrong.texts[picture, text] == (plain and not excused[picture, text])
                assert alone.texts[picture, text] == (plain and (text < 6 or text - 6 == picture))
        assert torch.equal(wrong.pictures, wrong.texts[:, :6].T)
        logits = 50 * drawn(6, 12)
        for hard in (True, False):
            for seed in range(20):
                columns, there = draw(logits, wrong.texts, hard=hard, generator=torch.Generator().manual_seed(seed))
                assert torch.equal(there, wrong.texts.any(dim=1))
                assert wrong.texts[torch.arange(6), columns][there].all()


def test_hard_ones_are_drawn_by_the_dual_encoder_and_random_ones_evenly() -> None:
    logits = torch.log(torch.tensor([[0.7, 0.2, 0.1, 0.9]])).expand(8000, 4)
    allowed = torch.tensor([True, True, True, False]).expand(8000, 4)
    dice = torch.Generator().manual_seed(0)
    for hard, expected in ((True, [0.7, 0.2, 0.1, 0.0]), (False, [1 / 3, 1 / 3, 1 / 3, 0.0])):
        columns, _ = draw(logits, allowed, hard=hard, generator=dice)
        found = torch.bincount(columns, minlength=4) / 8000
        torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=0.02)


def test_pairs_that_do_not_count_leave_the_loss_alone() -> None:
    logits, truth = drawn(5), torch.tensor([1.0, 0.0, 0.0, 1.0, 0.6])
    counts = torch.tensor([True, True, False, True, False])
    p = 1 / (1 + np.exp(-logits.numpy()))
    each = -(truth.numpy() * np.log(p) + (1 - truth.numpy()) * np.log(1 - p))
    assert matching_loss(logits, truth, counts).item() == pytest.approx(each[[0, 1, 3]].mean(), rel=1e-5)
    assert matching_loss(logits, truth, torch.zeros(5, dtype=torch.bool)).item() == 0


# The fusion


def test_the_mask_masks_and_padding_says_nothing() -> None:
    made, grids, states = fusion(), drawn(2, 3, 4, 6), drawn(2, 5, 5)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    found = made(grids, states, mask)
    noise = states.clone()
    noise[0, 3:] = 100 * drawn(2, 5, seed=9)
    torch.testing.assert_close(made(grids, noise, mask), found, rtol=0, atol=1e-5)
    torch.testing.assert_close(made(grids[:1], states[:1, :3], mask[:1, :3]), found[:1], rtol=0, atol=1e-5)
    assert (made(grids, noise, torch.ones_like(mask))[0] - found[0]).abs() > 1e-2
    noise[0, 1] = drawn(5, seed=8)  # a token that counts
    assert (made(grids, noise, mask)[0] - found[0]).abs() > 1e-3


def test_places_count_unless_positions_are_pooled() -> None:
    grids, states, mask = drawn(1, 3, 3, 6), drawn(1, 4, 5), torch.ones(1, 4, dtype=torch.int64)
    moved = grids.flatten(1, 2)[:, torch.randperm(9, generator=torch.Generator().manual_seed(0))].view_as(grids)
    for looks, differs in (("positions", True), ("pooled", False)):
        made = fusion(looks=looks)
        assert ((made(grids, states, mask) - made(moved, states, mask)).abs().item() > 1e-3) == differs


def test_pictures_that_are_seen_once_answer_several_texts() -> None:
    made, grids, states = fusion(), drawn(3, 2, 5, 6), drawn(4, 4, 5)
    mask, which = torch.ones(4, 4, dtype=torch.int64), torch.tensor([2, 0, 2, 1])
    torch.testing.assert_close(made.match(made.seen(grids), states, mask, which), made(grids[which], states, mask))


@pytest.mark.parametrize("kind", ["eos", "open_clip", "bert"])
def test_token_states_are_those_that_the_tower_pools(kind: str) -> None:
    tokenizer = Tokenizer(clip_text_spec(2000, context_length=LENGTH), clip_merges(2000))
    model = models(tokenizer)[kind]
    ids = torch.from_numpy(tokenizer.pad([tokenizer.encode(text) for text in TEXTS]))
    if kind == "bert":
        ids[ids == tokenizer.spec.pad_id] = 0
    states = TokenStates(model)
    found, mask, end = states(ids), states.mask(ids), token_reader(model).end_of(ids)
    assert torch.equal(mask.sum(dim=1), end + 1)
    if kind == "bert":
        mean = (found * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
        pooled = nn.functional.normalize(mean, dim=1) - model.text.centre  # type: ignore[operator]
    else:
        last = found[torch.arange(len(ids)), end]
        pooled = last @ model.clip.text_projection if kind == "open_clip" else model.text.projection(last)  # type: ignore
    torch.testing.assert_close(pooled, model.encode_text(ids), rtol=1e-4, atol=1e-5)


def test_a_bag_gives_its_embeddings_and_a_stored_model_is_refused() -> None:
    tokenizer = Tokenizer(clip_text_spec(2000, context_length=LENGTH), clip_merges(2000))
    bag, ids = small(tokenizer, pool="bag"), torch.tensor([[3, 7]])
    assert torch.equal(TokenStates(bag)(ids), bag.text.token_embedding(ids))
    with pytest.raises(ValueError, match="known here"):
        TokenStates(nn.Linear(2, 2))  # type: ignore[arg-type]


# Training


@dataclass(frozen=True)
class Lab:
    """A checkpoint, and the artifact of a reranker behind the tiny model, whose modules are drawn."""

    folder: Path
    store: Store
    run: RerankRun
    base: Artifact
    artifact: Artifact

    @property
    def publication(self) -> Publication:
        return Publication(run=self.run.run, store=self.store)


@pytest.fixture(scope="module")
def lab(squares: Path, square_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    folder = tmp_path_factory.mktemp("rerank")
    options = [f"method_options.{name}={value}" for name, value in OPTIONS.items()]
    places = [f"run.folder={json.dumps(str(folder / 'run'))}", f"base={json.dumps(str(square_base))}"]
    more = ("method_options.words=true", "method_options.distill=0.4", "optim.rate=0.01", "optim.steps=3")
    train(squares, [*places, "method=rerank", *options, *more])
    shutil.copytree(TINY_STORE, folder / "store")
    store = Store(folder / "store", builtin=False)
    base = next(each for each in store.list() if {"dense_encoder", "text_encoder"} <= set(each.roles()))
    assert base.dense_spec is not None
    tokenizer, side = base.tokenizer(), base.dense_spec.height_px or base.dense_spec.short_px
    info = replace(
        read_checkpoint(folder / "run"), base_sha256=stored_digest(base), image_spec=base.image_spec
    )  # as if it had been trained behind the tiny model
    tokens = TokenStates(small(tokenizer, context_length=tokenizer.spec.context_length))
    words = nn.Embedding(tokenizer.spec.vocab_size, tokens.width)
    made = fusion(image_dim=base.manifest.dim, text_dim=tokens.width, grid=4, context_length=tokens.context_length)
    tower = open_dense_tower(base, "fp32", SETTINGS)
    reranker = TorchReranker(
        WordStates(tokens, words).eval(),
        made,
        tokenizer,
        DenseSource(module=StoredDense(tower), spec=base.dense_spec.model_copy(update={"short_px": side})),
    )
    run = RerankRun(run=SavedRun(folder=folder / "run", info=info), base=load_model(square_base), reranker=reranker)
    source = run.derivation(Publication(run=run.run, store=store))
    artifact = export_derivation(source, name="again", store=store, precisions=("fp32",))
    return Lab(folder / "run", store, run, base, artifact)


@pytest.mark.long
def test_a_checkpoint_is_opened_as_it_was_trained(lab: Lab, square_base: Path) -> None:
    info, weights = read_checkpoint(lab.folder), load_file(lab.folder / "weights.safetensors")
    assert set(info.inherited) == {"image_encoder", "text_encoder", "dense_encoder"}
    assert {name.split(".")[0] for name in weights} == {"fusion", "words"}
    method = create("rerank", dict(info.config.method_options))
    assert isinstance(method, RerankMethod)
    opened = method.opened(SavedRun(folder=lab.folder, info=info))
    tokens, made = opened.reranker.tokens, opened.reranker.fusion
    assert isinstance(tokens, WordStates)
    base, ids = load_model(square_base), torch.tensor([[1, 2, 3, 5]])
    assert torch.equal(tokens(ids), TokenStates(base.model)(ids) + weights["words.weight"][ids])
    assert weights["words.weight"].abs().max() > 0
    assert all(torch.equal(each, weights[f"fusion.{name}"]) for name, each in made.state_dict().items())
    assert not any(each.requires_grad for module in (made, tokens) for each in module.parameters())


def test_a_step_moves_the_fusion_alone_and_the_slow_copy_follows(
    make_context: MakeContext, square_base: Path, tmp_path: Path
) -> None:
    for momentum in (1.0, 0.5):
        method = create("rerank", {**OPTIONS, "distill": 0.4, "momentum": momentum, "ramp_steps": 4})
        assert isinstance(method, RerankMethod)
        torch.manual_seed(0)
        method.setup(replace(make_context(base=square_base), features_folder=tmp_path))
        assert method.slow is not None
        base = {name: each.clone() for name, each in method.model.state_dict().items()}
        start = {name: each.clone() for name, each in method.slow.state_dict().items()}
        (group,) = method.param_groups()
        optimizer = torch.optim.SGD(group.parameters.values(), lr=0.1)
        tokens = torch.from_numpy(method._reranker.tokenizer.pad([[1, 2, 3]] * 8))
        batch = {
            "row": torch.arange(8), "text": tokens, "negative_text": tokens, "caption_id": torch.arange(8) % 5,
            "negative_id": torch.arange(8) + 9, "has_negative": torch.ones(8, dtype=torch.bool),
        }  # fmt: skip
        for step, alpha in ((0, 0.0), (2, 0.2), (9, 0.4)):
            method.prepare(step, 0.0)
            assert method._alpha == pytest.approx(alpha)
            optimizer.zero_grad()
            method.step(batch, 0.0)["matching"].backward()
            optimizer.step()
            method.stepped(step, 0.5)
        assert all(torch.equal(each, base[name]) for name, each in method.model.state_dict().items())
        moved = [name for name, each in method.slow.state_dict().items() if not torch.equal(each, start[name])]
        assert bool(moved) == (momentum < 1)


def test_the_artifact_is_the_modules_and_the_base_is_untouched(lab: Lab) -> None:
    manifest, base = lab.artifact.manifest, lab.base.manifest
    assert {graph.role for graph in manifest.graphs} == {"token_encoder", "reranker"}
    assert (manifest.space, manifest.fingerprint, manifest.space_proofs) == (base.space, base.fingerprint, ())
    served, dense = open_reranker(lab.artifact, SETTINGS), open_dense_tower(lab.artifact, "fp32", SETTINGS)
    Proof(lab.artifact).check_reranker(served)
    rng, spec = np.random.default_rng(3), lab.artifact.dense_spec
    assert spec is not None
    sizes = [(spec.short_px, spec.short_px), (spec.short_px, 2 * spec.short_px), (spec.short_px, spec.short_px)]
    pictures = [rng.integers(256, size=(*size, 3)).astype(np.uint8) for size in sizes]
    grids = [dense(picture[None]).positions[0] for picture in pictures]
    torch_side = lab.run.reranker
    for ours, theirs in zip(grids, torch_side.see(pictures), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)
    pairs = [(picture, text) for picture in grids for text in TEXTS]
    found = served.match_each([picture for picture, _ in pairs], served.text_tokens([text for _, text in pairs]))
    expected = torch_side.match_texts([picture for picture, _ in pairs], [text for _, text in pairs])
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)
    one = [served.match(picture[None], served.text_tokens([text]))[0] for picture, text in pairs]
    np.testing.assert_allclose(one, found, rtol=0, atol=2e-5)
    np.testing.assert_allclose(served.match_each([grids[0]], served.text_tokens(TEXTS)), found[: len(TEXTS)], atol=2e-5)
    with pytest.raises(ValueError, match="no pairs"):
        served.match_each(grids[:2], served.text_tokens(TEXTS))


def test_an_artifact_that_was_changed_is_not_opened(lab: Lab, tmp_path: Path) -> None:
    shutil.copytree(lab.store.root or tmp_path, tmp_path / "store")
    store = Store(tmp_path / "store", builtin=False)
    found = store.open("again")
    with np.load(found.folder / ARRAYS_FILE) as stored:
        arrays = {key: stored[key] for key in stored.files}
    served = open_reranker(found, SETTINGS)

    def proven(without: str = "", **changes: np.ndarray) -> None:
        kept = {key: each for key, each in {**arrays, **changes}.items() if key != without}
        np.savez_compressed(found.folder / ARRAYS_FILE, **kept)
        manifest = found.manifest.model_copy(update={"files": file_entries(found.folder)})
        Proof(replace(found, manifest=manifest)).check_reranker(served)

    proven()
    logits = next(key for key in arrays if key.startswith("reranker."))
    with pytest.raises(GoldenError, match="a logit is"):
        proven(**{logits: arrays[logits] + 0.01})
    with pytest.raises(GoldenError, match="token_encoder"):
        proven(token_encoder=arrays["token_encoder"][:, ::-1].copy())
    with pytest.raises(GoldenError, match="missing"):
        proven(without="rerank_ids")
    with pytest.raises(GoldenError, match="logits of the reranker are missing"):
        proven(without=logits)


def test_it_stands_on_the_bases_positions_and_tokens(lab: Lab, tmp_path: Path) -> None:
    made, source = lab.run.reranker.fusion, lab.run.derivation(lab.publication)
    assert source.reranker is not None
    wider = replace(source.reranker, side_px=source.reranker.side_px + 8)
    with pytest.raises(ExportRefused, match="trained on pictures of"):
        build_reranker(wider, lab.base, lab.base.tokenizer(), tmp_path)
    dim = lab.base.manifest.dim
    both = replace(source, image_adapter=AdapterSource(module=nn.Linear(dim, dim).eval()))
    with pytest.raises(ExportRefused, match="changes a tower"):
        export_derivation(both, name="both", store=lab.store, precisions=("fp32",))
    made.train()
    try:
        with pytest.raises(ExportRefused, match="training mode"):
            build_reranker(source.reranker, lab.base, lab.base.tokenizer(), tmp_path)
    finally:
        made.eval()


def test_whoever_changes_what_it_reads_does_not_inherit_it(lab: Lab) -> None:
    own, some = lab.artifact.manifest, lab.artifact.manifest.graphs[0]
    for role, kept in (("class_head", True), ("text_adapter", True), ("image_adapter", False), ("text_encoder", False)):
        graph = some.model_copy(update={"role": role, "head": "colour" if role == "class_head" else None})
        above = replace(lab.artifact, manifest=own.model_copy(update={"graphs": (graph,)}), base=lab.artifact)
        assert {"reranker", "token_encoder"} <= set(above.roles()) or not kept, role
        assert not {"reranker", "token_encoder"} & set(above.roles()) or kept, role
    with pytest.raises(ValueError, match="come together"):
        Manifest.model_validate_json(
            json.dumps({**json.loads(own.model_dump_json()), "graphs": [json.loads(some.model_dump_json())]})
        )


def test_a_base_that_was_moved_is_looked_for_where_it_lies(lab: Lab, squares: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportRefused, match="works behind the base .*moved; it is not there: say where it lies now"):
        publish_checkpoint(lab.folder, "moved", lab.store, base_folder=tmp_path / "moved")
    train(squares, [f"run.folder={json.dumps(str(tmp_path / 'other'))}", "seed=4", "optim.steps=1"])
    with pytest.raises(ExportRefused, match=r"was fitted on weights .*, the base .*other has "):
        publish_checkpoint(lab.folder, "moved", lab.store, base_folder=tmp_path / "other")
