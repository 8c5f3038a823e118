"""CoCoOp: nothing is added before the first step, a picture reads its own contexts alone, and blocks change nothing."""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from evaluation.encoder import open_artifact
from model_store.errors import ExportRefused
from model_store.modality.text import Tokenizer
from model_store.store import Store
from model_store.towers import blocks
from tests.training.prompt_towers import LENGTH, models, small
from training import report
from training.bases import StoredTowers
from training.checkpoint import load_model, read_checkpoint
from training.data.vocabulary import clip_merges, clip_text_spec
from training.exporting.conditional import ConditionalSource
from training.exporting.derive import DerivationSource, export_derivation
from training.exporting.derived_graphs import AdapterSource, linear_head
from training.exporting.export import provenance
from training.features import cached_features
from training.loop import train
from training.method import Context, create
from training.methods.cocoop import CocoopMethod, CocoopOptions
from training.methods.parts.conditional import ConditionalText, MetaNet, judge_conditions, logits_in_blocks
from training.methods.parts.conditional_run import ConditionalRun
from training.methods.parts.contexts import LearnedContexts, PromptedText, name_ids, word_vectors
from training.methods.parts.token_reader import token_reader
from training.models.towers import DualEncoder
from training.opening import open_checkpoint
from training.saved import SavedRun

pytestmark = pytest.mark.torch

Train, MakeContext = Callable[..., Path], Callable[..., Context]

COLOURS = ("blue", "green", "red", "white")
NAMES = ("red", "dark green", "the colour of snow")
KINDS = ("eos+bag", "open_clip")
TINY_STORE = Path(__file__).parents[1] / "fixtures" / "tiny_store"
SHOTS = ("method=cocoop", "method_options.label=colour", "method_options.shots=8", "method_options.n_ctx=4")
META = ("meta_net.first.weight", "meta_net.first.bias", "meta_net.last.weight", "meta_net.last.bias")
SCALE = 20.0


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(clip_text_spec(2000, context_length=LENGTH), clip_merges(2000))


def drawn(*shape: int, seed: int = 5) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def unit(*shape: int, seed: int = 5) -> torch.Tensor:
    return nn.functional.normalize(drawn(*shape, seed=seed), dim=-1)


def head_in(model: DualEncoder, vectors: torch.Tensor | None, tokenizer: Tokenizer, *, silent: bool) -> ConditionalText:
    """vectors: None starts from words. silent: as before the first step."""
    reader = token_reader(model)
    contexts = LearnedContexts(word_vectors("a photo of a", reader, tokenizer) if vectors is None else vectors)
    prompted = PromptedText(reader, contexts, position="end")
    dim = prompted(name_ids(NAMES, tokenizer, count=contexts.count)).shape[1]
    torch.manual_seed(7)
    meta = MetaNet(dim, contexts.vectors.shape[1], hidden=6)
    if not silent:
        nn.init.normal_(meta.last.weight)
    return ConditionalText(prompted, meta, scale=SCALE).eval()


def shown(head: ConditionalText, count: int) -> torch.Tensor:
    return unit(count, head.meta_net.first.weight.shape[1], seed=11)


# Before the first step


@pytest.mark.parametrize("kind", KINDS)
def test_a_silent_meta_net_is_coop_of_the_same_context(tokenizer: Tokenizer, kind: str) -> None:
    head = head_in(models(tokenizer)[kind], drawn(4, 12), tokenizer, silent=True)
    images, ids = shown(head, 3), name_ids(NAMES, tokenizer, count=4)
    texts = nn.functional.normalize(head.prompted(ids), dim=1)
    assert torch.equal(head.texts(images[:1], ids)[0], texts)
    torch.testing.assert_close(head(images, ids), SCALE * images @ texts.T, rtol=0, atol=SCALE * 1e-6)
    assert (head(images, ids).std(dim=1) > 0.1).all()


@pytest.mark.parametrize("kind", KINDS)
def test_words_and_no_step_are_the_hand_written_prompt(tokenizer: Tokenizer, kind: str) -> None:
    model = models(tokenizer)[kind]
    head = head_in(model, None, tokenizer, silent=True)
    hand = tokenizer.pad([tokenizer.encode(f"a photo of a {name}") for name in NAMES])
    expected = nn.functional.normalize(model.encode_text(torch.from_numpy(hand)), dim=1)
    images = shown(head, 2)
    found = head.texts(images, name_ids(NAMES, tokenizer, count=head.prompted.contexts.count))
    for texts in found:
        torch.testing.assert_close(texts, expected, rtol=0, atol=1e-6)


# Pictures and their contexts


def test_what_is_worked_out_by_hand_is_the_same(tokenizer: Tokenizer) -> None:
    """Every picture adds its own vector to every context vector, and nothing else moves."""
    model = small(tokenizer)
    head = head_in(model, drawn(4, 12), tokenizer, silent=False)
    images, ids = shown(head, 3), name_ids(NAMES, tokenizer, count=4)
    for image, row in zip(images, head(images, ids), strict=True):
        hidden = torch.relu(head.meta_net.first.weight @ image + head.meta_net.first.bias)
        moved = head.prompted.contexts.vectors + head.meta_net.last.weight @ hidden + head.meta_net.last.bias
        alone = PromptedText(token_reader(model), LearnedContexts(moved), position="end")
        texts = nn.functional.normalize(alone(ids), dim=1)
        torch.testing.assert_close(row, SCALE * texts @ image, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_company_changes_nothing_and_another_picture_does(tokenizer: Tokenizer, kind: str) -> None:
    head = head_in(models(tokenizer)[kind], drawn(4, 12), tokenizer, silent=False)
    images, ids = shown(head, 8), name_ids(NAMES, tokenizer, count=4)
    together = head(images, ids)
    alone = torch.cat([head(image[None], ids) for image in images])
    torch.testing.assert_close(together, alone, rtol=0, atol=SCALE * 1e-5)
    order = torch.tensor([3, 1, 7, 0, 2, 6, 5, 4])
    torch.testing.assert_close(head(images[order], ids), together[order], rtol=0, atol=SCALE * 1e-5)
    by_text = torch.cat([head(images, ids[at : at + 1]) for at in (2, 0, 1)], dim=1)
    torch.testing.assert_close(by_text, together[:, [2, 0, 1]], rtol=0, atol=SCALE * 1e-5)
    texts = head.texts(images, ids)
    assert (texts - texts[order]).abs().amax(dim=(1, 2))[order != torch.arange(8)].min() > 1e-3


@pytest.mark.parametrize(("pictures", "texts", "rows"), [(5, 3, 7), (5, 3, 1), (2, 9, 4), (1, 1, 64), (4, 4, 4)])
def test_blocks_cover_every_pair_once_and_none_is_too_large(pictures: int, texts: int, rows: int) -> None:
    seen = np.zeros((pictures, texts), dtype=int)
    for picture, text in blocks(pictures, texts, rows=rows):
        seen[picture, text] += 1
        assert seen[picture, text].size <= rows
    assert (seen == 1).all()


@pytest.mark.parametrize("texts", [2, 7])
def test_blocks_give_the_logits_and_gradients_of_the_whole(tokenizer: Tokenizer, texts: int) -> None:
    head = head_in(small(tokenizer), drawn(4, 12), tokenizer, silent=False)
    images, ids, truth = shown(head, 5), name_ids(NAMES, tokenizer, count=4), torch.arange(5) % 3
    found: list[dict[str, torch.Tensor]] = []
    for most in (10_000, texts):
        head.zero_grad()
        logits = logits_in_blocks(head, images, ids, texts=most)
        nn.functional.cross_entropy(logits, truth).backward()
        trained = {name: each for name, each in head.named_parameters() if each.requires_grad}
        assert set(trained) == {*META, "prompted.contexts.vectors"}
        found.append({"logits": logits.detach(), **{name: each.grad.clone() for name, each in trained.items()}})
    whole, blocked = found
    for name, expected in whole.items():
        assert expected.abs().max() > 1e-3, name
        torch.testing.assert_close(blocked[name], expected, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_a_block_holds_no_more_texts_than_was_said(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    head = head_in(small(tokenizer), drawn(4, 12), tokenizer, silent=False)
    read: list[int] = []
    among = head.prompted.among

    def counted(ids: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
        read.append(len(ids))
        return among(ids, vectors)

    monkeypatch.setattr(head.prompted, "among", counted)
    logits_in_blocks(head, shown(head, 8), name_ids(NAMES, tokenizer, count=4), texts=7).sum().backward()
    assert max(read) <= 7
    assert sum(read) == 2 * 8 * 3  # each once more for its gradient


def test_the_controls_take_the_condition_away_and_leave_the_picture(tokenizer: Tokenizer) -> None:
    """A meta-net that answers with the class: true pictures are named, the mean says nothing, another is misleading."""

    class Spelled(ConditionalText):
        def texts(self, given: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
            towards = torch.where(given[:, :1] > 0.5, 1.0, -1.0) * torch.where(given[:, :1].abs() < 0.2, 0.0, 1.0)
            first = torch.cat([towards, torch.zeros_like(given[:, 1:])], dim=1)
            return torch.stack([first * 0.5, -first], dim=1)

    images = np.array([[1.0, 0.0], [-1.0, 0.0]] * 20, dtype=np.float32)
    # With its own condition the first class always fits; the truth is then class 0 for all.
    truth = np.zeros(40, dtype=np.int64)
    head = Spelled.__new__(Spelled)
    nn.Module.__init__(head)
    head.scale = 1.0
    found = judge_conditions(head, images, truth, torch.zeros(2, 3, dtype=torch.int64))
    assert set(found) == {"head", "given_mean", "given_another"}
    accuracy = {name: each["accuracy"]["value"] for name, each in found.items()}
    assert accuracy["head"] == 1.0
    assert 0.2 < accuracy["given_another"] < 0.8  # right where the other picture is of the same side
    assert found["given_mean"]["chance"] == 0.5


# Training


def method_in(context: MakeContext, base: Path, folder: Path, **options: object) -> CocoopMethod:
    method = create("cocoop", {"label": "colour", "shots": 2, "n_ctx": 4, "reduction": 2, **options})
    assert isinstance(method, CocoopMethod)
    whole = context(base=base)
    assert whole.base is not None
    features = cached_features(
        whole.base, whole.source, level="features", captions=0, negatives=False, folder=folder, device="cpu"
    )
    torch.manual_seed(0)
    method.setup(replace(whole, features=features))
    for module, use in method.modules().values():
        if use == "frozen":
            module.requires_grad_(False).eval()
    return method


def test_gradients_reach_meta_net_and_contexts_and_the_base_stays(
    make_context: MakeContext, square_base: Path, tmp_path: Path
) -> None:
    method = method_in(make_context, square_base, tmp_path, texts_at_once=5)
    before = {name: each.clone() for name, each in method.model.state_dict().items()}
    (group,) = method.param_groups()
    assert set(group.parameters) == {*META, "contexts.vectors"}
    optimizer = torch.optim.SGD(group.parameters.values(), lr=1.0)
    batches = method.batches(batch_size=8, seed=0)
    start = {name: each.detach().clone() for name, each in group.parameters.items()}
    for step in range(3):
        optimizer.zero_grad()
        (loss,) = method.step(batches(step), 0.0).values()
        loss.backward()
        reached = {name for name, each in group.parameters.items() if each.grad is not None and each.grad.any()}
        # A last layer of zeros hides the first one until it has moved.
        assert reached == {*(META if step else META[2:]), "contexts.vectors"}
        optimizer.step()
    assert all(not torch.equal(each, start[name]) for name, each in group.parameters.items())
    assert all(torch.equal(each, before[name]) for name, each in method.model.state_dict().items())
    assert all(parameter.grad is None for parameter in method.model.parameters())


def test_the_loss_is_what_is_worked_out_row_by_row(
    make_context: MakeContext, square_base: Path, tmp_path: Path
) -> None:
    method = method_in(make_context, square_base, tmp_path, n_ctx=None, words="a photo of")
    batch = method.batches(batch_size=5, seed=0)(0)
    loaded = load_model(square_base)
    said = [loaded.tokenizer.encode(f"a photo of {name}") for name in COLOURS]
    texts = nn.functional.normalize(loaded.model.encode_text(torch.from_numpy(loaded.tokenizer.pad(said))), dim=1)
    losses = []
    for vector, label in zip(batch["image_embeds"], batch["class_id"], strict=True):
        logits = loaded.model.logit_scale.exp() * torch.stack([vector @ text for text in texts]) / vector.norm()
        losses.append(-torch.log_softmax(logits, dim=0)[label])
    (found,) = method.step(batch, 0.0).values()
    torch.testing.assert_close(found.detach(), torch.stack(losses).mean())


def test_a_run_is_refused_before_its_first_step(train_squares: Train, square_base: Path) -> None:
    bag = train_squares('model.text.pool="bag"', "optim.steps=1", name="bag")
    with pytest.raises(ValueError, match=r'cocoop: pool = "bag" adds token vectors up'):
        train_squares(*SHOTS, 'model.text.pool="bag"', base=bag, name="never")
    stored = StoredTowers.__new__(StoredTowers)
    nn.Module.__init__(stored)
    with pytest.raises(ValueError, match="take its checkpoint as base"):
        token_reader(stored)
    with pytest.raises(ValueError, match="take fewer"):
        train_squares(*SHOTS[:3], "method_options.n_ctx=14", base=square_base, name="long")
    with pytest.raises(ValueError, match=r"n_context: there is no such option; is n_ctx meant\?"):
        create("cocoop", {"label": "colour", "n_context": 4})


@pytest.fixture(scope="module")
def learnt(squares: Path, square_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("learnt") / "cocoop"
    options = (*SHOTS, "method_options.reduction=2", "method_options.texts_at_once=20", "optim.steps=60")
    places = (f"run.folder={json.dumps(str(folder))}", f"base={json.dumps(str(square_base))}")
    train(squares, [*places, *options, "optim.rate=0.03", "optim.batch_size=8"])
    return folder


def opened(folder: Path) -> ConditionalRun:
    return ConditionalRun.of(SavedRun(folder=folder, info=read_checkpoint(folder)), position="end")


def test_training_names_more_than_zero_shot_and_ships_contexts_and_meta_net_alone(
    learnt: Path, square_base: Path
) -> None:
    info, weights = read_checkpoint(learnt), load_file(learnt / "weights.safetensors")
    assert {name: tuple(each.shape) for name, each in weights.items()} == {
        "contexts.vectors": (4, 16),
        "meta_net.first.weight": (8, 16),
        "meta_net.first.bias": (8,),
        "meta_net.last.weight": (16, 8),
        "meta_net.last.bias": (16,),
    }
    judged = info.metrics["validation"]
    assert judged["head"]["class_mean"] - judged["zero_shot"]["class_mean"] > 0.2, judged
    assert {"given_mean", "given_another"} <= set(judged)
    assert info.labels == COLOURS
    # The checkpoint, opened again, says on the same split what training said; as an encoder it is its base.
    told = report.report_split(learnt, split="validation")
    names = ("head", "zero_shot", "given_mean", "given_another")
    assert {name: told[name] for name in names} == {name: judged[name] for name in names}
    ours, base = open_checkpoint(learnt), open_checkpoint(square_base)
    np.testing.assert_array_equal(ours.encode_texts(["red", "a shirt"]), base.encode_texts(["red", "a shirt"]))
    assert ours.templates == base.templates


def test_another_picture_makes_other_texts_after_training(learnt: Path) -> None:
    run = opened(learnt)
    images = unit(2, 16)
    texts = run.head.texts(images, name_ids(COLOURS, run.base.tokenizer, count=4))
    assert (texts[0] - texts[1]).abs().max() > 1e-2


def test_the_pages_recipe_trains(squares: Path, square_base: Path, tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "adapters.md").read_text(encoding="utf-8")
    ours = tomllib.loads(re.findall(r"## cocoop\n.*?```toml\n(.*?)```", page, flags=re.S)[0])
    assert CocoopOptions.parse(ours["method_options"], method="cocoop") == CocoopOptions(label="colour")
    assert set(CocoopOptions.model_fields) - set(ours["method_options"]) == {"n_ctx", "least", "only", "templates"}
    settings = [f"optim.{name}={value}" for name, value in {**ours["optim"], "steps": 2}.items()]
    places = [f"run.folder={json.dumps(str(tmp_path / 'run'))}", f"base={json.dumps(str(square_base))}"]
    assert train(squares, [*places, *SHOTS, *settings]).step == 2


# Publishing


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """tiny, and `named`: a head with a text tower inside that is not tiny's, which no test needs."""
    folder = shutil.copytree(TINY_STORE, tmp_path_factory.mktemp("conditional") / "store")
    found = Store(Path(folder), builtin=False)
    export_derivation(replace(source_on(found, "tiny"), conditional=conditional(found)), name="named", store=found)
    return found


def source_on(store: Store, name: str) -> DerivationSource:
    made = provenance(source="a test", architecture="tiny", activation="gelu", structure="t", licence="none")
    return DerivationSource(base=store.open(name), structure="t", provenance=made)


def conditional(store: Store) -> ConditionalSource:
    tokenizer = store.open("tiny").tokenizer()
    tower = small(tokenizer, embed_dim=32, context_length=24)
    head = head_in(tower, drawn(4, 12), tokenizer, silent=False).requires_grad_(False)
    return ConditionalSource(module=head, context_length=24)


@pytest.mark.long
def test_it_is_exported_as_a_conditional_head_and_all_else_is_the_bases(store: Store) -> None:
    before, artifact = store.open("tiny").manifest, store.open("named")
    found = artifact.manifest
    (graph,) = found.graphs
    assert (graph.role, graph.precision, graph.file) == ("conditional_head", "fp32", "conditional_head.fp32.onnx")
    assert (graph.batch_invariant, graph.normalized_input) == (True, True)
    assert graph.batch_difference < 1e-5
    assert set(graph.chain) == {"fp32", "int8"}
    assert (found.fingerprint, found.space, found.templates) == (before.fingerprint, before.space, before.templates)
    assert (found.heads, found.space_proofs) == ((), ())
    # Names, nothing, and more than there is room for.
    names, tokenizer = [*COLOURS, "purple shirt", "", "a very long name " * 9], artifact.tokenizer()
    pictures = [np.full((16, 16, 3), colour, dtype=np.uint8) for colour in ((220, 20, 20), (20, 200, 20), (9, 9, 9))]
    encoder = open_artifact(artifact)
    images = torch.from_numpy(encoder.encode_images(pictures))
    ids = torch.from_numpy(tokenizer.pad([tokenizer.encode(name) for name in names]))
    expected = conditional(store).module(images, ids).numpy()
    assert np.abs(expected - expected.mean(axis=0)).max() > 0.1
    np.testing.assert_allclose(encoder.label_logits(names, pictures), expected, atol=1e-3)


@pytest.mark.long
def test_a_derivation_keeps_the_head_while_pictures_and_texts_are_the_bases(store: Store) -> None:
    source, named = source_on(store, "named"), store.open("named")
    head = linear_head(np.eye(2, 32), None, ("a", "b"))
    above = export_derivation(replace(source, heads={"x": head}), name="above", store=store)
    assert set(above.roles()) == {*named.roles(), "class_head"}
    owner = above.owner("conditional_head")
    assert (owner and owner.reference, above.build("fp32") == named.build("fp32")) == (named.reference, False)
    adapter = AdapterSource(module=nn.Linear(32, 32).eval())
    for name, bent in (
        ("pictures", replace(source, image_adapter=adapter)),
        ("texts", replace(source, text_adapter=adapter)),
    ):
        assert "conditional_head" not in export_derivation(bent, name=name, store=store).roles()


class Company(nn.Module):
    """A head whose answer for one picture depends on the others."""

    def forward(self, images: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return images.sum(dim=1, keepdim=True) * ids[:, 1].float()[None] + 1000 * images.mean()


class Padding(nn.Module):
    """A head that counts places."""

    def forward(self, images: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return images.sum(dim=1, keepdim=True) * (ids == ids).float().sum(dim=1)[None]


class Turned(nn.Module):
    def forward(self, images: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return ids.float() @ images.mean() + images


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (Company(), "company or padding moves a row"),
        (Padding(), "company or padding moves a row"),
        (Turned(), "does not take vectors|gives shape"),
    ],
)
def test_a_head_that_heeds_company_or_padding_is_not_exported(store: Store, module: nn.Module, reason: str) -> None:
    wrong = ConditionalSource(module=module.eval(), context_length=24)
    with pytest.raises(ExportRefused, match=reason):
        export_derivation(replace(source_on(store, "tiny"), conditional=wrong), name="never", store=store)
    assert "never" not in {each.manifest.name for each in store.list()}
