"""The dense role in torch and as graphs: what positions add up to, which attention is which, one file of weights."""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportIndexIssue=false, reportOperatorIssue=false, reportOptionalMemberAccess=false

from __future__ import annotations

from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from torch import Tensor, nn
from torch.nn import functional

from model_store.errors import ExportRefused
from model_store.golden import dense_goldens
from model_store.graph import Graph
from model_store.manifest import DenseSpec, GraphSpec, ImageSpec
from model_store.precisions.variants import build_variant
from model_store.towers import DenseTower
from training.config import ImageTowerConfig, SmallConfig, TextTowerConfig
from training.exporting.dense import DENSE_FILE, check_module, encode_dense, measure_dense, write_dense
from training.exporting.dense_build import build_dense
from training.exporting.export import image_tower
from training.exporting.graphs import EncoderGraph, ImageGraph, image_tensors, write_graph
from training.models.building import build_model
from training.models.dense import DenseSource, dense_of_openclip, dense_of_own
from training.models.dense_towers import NoPositions, ResNetDense, TimmDense, VitDense, attention_weights, split_heads
from training.models.positions import resample_grid
from training.models.towers import SmallDualEncoder
from training.tiny import tiny_config

SIDE_PX = 32


def spec_of(side_px: int) -> ImageSpec:
    return ImageSpec(
        height_px=side_px, width_px=side_px, resize_mode="shortest", interpolation="bicubic", mean=(0.5, 0.4, 0.3),
        std=(0.3, 0.3, 0.2),
    )  # fmt: skip


def own(pool: str) -> SmallDualEncoder:
    torch.manual_seed(0)
    config = SmallConfig(
        kind="small",
        embed_dim=24,
        image=ImageTowerConfig.model_validate({"trunk": "clipworks_conv_t", "size_px": SIDE_PX, "pool": pool}),
        text=TextTowerConfig(merges=1, context_length=10, width=16, layers=1, heads=2, pool="eos"),
    )
    model = build_model(config, vocab_size=50, end_id=49)
    assert isinstance(model, SmallDualEncoder)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model.eval().requires_grad_(False)


def tiny_vit(**changes: object) -> nn.Module:
    torch.manual_seed(1)
    config = tiny_config()
    config["vision_cfg"] |= changes
    return open_clip.CLIP(**config).visual.eval().requires_grad_(False)


def pixels(count: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, 256, (count, height, width, 3), dtype=torch.uint8, generator=generator)


def normal(height: int, width: int) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(3))


# Own heads


@pytest.mark.parametrize("pool", ["mean", "flat", "attention"])
def test_one_run_gives_positions_and_the_encoders_own_vector(pool: str) -> None:
    model, rows = own(pool), pixels(3, SIDE_PX, SIDE_PX)
    positions, pooled = model.encode_dense_and_pooled(rows)
    torch.testing.assert_close(pooled, model.encode_image(rows), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(positions, model.encode_dense(rows))
    if pool != "attention":
        torch.testing.assert_close(positions.mean(dim=(1, 2)), model.encode_image(rows), rtol=1e-5, atol=1e-6)


def test_a_flat_heads_shares_sum_to_its_embedding() -> None:
    head = own("flat").image_projection
    features = torch.randn(2, 128, 4, 4)
    alone = []
    for place in range(16):
        only = torch.zeros(2, 128, 16)
        only[:, :, place] = features.flatten(2)[:, :, place]
        alone.append(head(only.view(2, 128, 4, 4)) - head.bias)
    torch.testing.assert_close(torch.stack(alone, dim=1).sum(dim=1) + head.bias, head(features), rtol=1e-4, atol=1e-5)
    shares = (head.dense(features) - head.bias).flatten(1, 2) / 16
    torch.testing.assert_close(shares, torch.stack(alone, dim=1), rtol=1e-4, atol=1e-5)


def test_an_attention_heads_pooled_vector_is_a_mixture_of_values() -> None:
    head = own("attention").image_projection
    features = torch.randn(1, 128, 1, 1).expand(1, 128, 6, 9).clone()
    with torch.no_grad():
        head.position.zero_()
    positions, pooled = head.dense_and_pooled(features)
    assert positions.shape == (1, 6, 9, 24)
    # All values are equal, so however they are weighed the answer is that value.
    torch.testing.assert_close(positions.mean(dim=(1, 2)), pooled, rtol=1e-4, atol=1e-5)


# Positions


@pytest.mark.parametrize(("rows", "columns"), [(5, 7), (8, 3), (14, 20), (1, 2)])
def test_positions_are_resampled_as_torch_does(rows: int, columns: int) -> None:
    table = torch.randn(20, 6)
    planes = table.view(4, 5, 6).permute(2, 0, 1)[None]
    expected = functional.interpolate(planes, size=(rows, columns), mode="bicubic", align_corners=False)
    torch.testing.assert_close(
        resample_grid(table, (4, 5), rows, columns), expected[0].permute(1, 2, 0).flatten(0, 1), rtol=1e-4, atol=1e-5
    )


def test_at_its_own_grid_a_table_of_positions_keeps_every_bit() -> None:
    table = torch.randn(49, 8)
    assert torch.equal(resample_grid(table, (7, 7), 7, 7), table)


# ViT


@pytest.mark.parametrize("changes", [{}, {"pool_type": "avg"}, {"pool_type": "avg", "final_ln_after_pool": True}])
def test_a_vits_pooled_vector_is_its_own(changes: dict[str, object]) -> None:
    visual = tiny_vit(**changes)
    _, pooled = VitDense(visual, "naclip")(normal(48, 48))
    torch.testing.assert_close(pooled, visual(normal(48, 48)), rtol=1e-5, atol=1e-6)


def by_definition(visual: nn.Module, x: Tensor, weights: Tensor | None, *, whole_block: bool) -> Tensor:
    """Patch vectors [B, L, D], from the block's parts, one head at a time; no weights: each position's own value."""
    tokens = visual._embeds(x)
    for block in visual.transformer.resblocks[:-1]:
        tokens = block(tokens)
    last = visual.transformer.resblocks[-1]
    width, heads = 32, last.attn.num_heads
    value = last.ln_1(tokens) @ last.attn.in_proj_weight[2 * width :].T + last.attn.in_proj_bias[2 * width :]
    if weights is not None:
        parts = value.chunk(heads, dim=-1)
        value = torch.cat([weights[:, head] @ part for head, part in enumerate(parts)], dim=-1)
    out = value @ last.attn.out_proj.weight.T + last.attn.out_proj.bias
    if whole_block:
        out = tokens + out
        out = out + last.mlp(last.ln_2(out))
    return (visual.ln_post(out) @ visual.proj)[:, 1:]


def test_maskclip_is_the_value_of_each_position() -> None:
    visual, x = tiny_vit(), normal(48, 48)
    positions, _ = VitDense(visual, "maskclip")(x)
    expected = by_definition(visual, x, None, whole_block=False)
    torch.testing.assert_close(positions.flatten(1, 2), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("attention", ["sclip", "naclip"])
def test_identity_attention_is_maskclip(attention: str, monkeypatch: pytest.MonkeyPatch) -> None:
    visual, x = tiny_vit(), normal(48, 72)
    monkeypatch.setattr(
        "training.models.dense_towers.attention_weights",
        lambda _kind, _q, _k, rows, columns: torch.eye(1 + rows * columns),
    )
    if attention == "naclip":
        expected, _ = VitDense(visual, "maskclip")(x)
    else:  # SCLIP keeps the block's residual and MLP
        x = normal(48, 48)
        expected = by_definition(visual, x, None, whole_block=True).view(2, 4, 4, 32)
    torch.testing.assert_close(VitDense(visual, attention)(x)[0], expected, rtol=1e-4, atol=1e-5)


def test_each_attention_is_its_formula() -> None:
    visual = tiny_vit()
    last = visual.transformer.resblocks[-1]
    query, key, _ = split_heads(last, torch.randn(2, 7, 32))
    naclip, sclip = (attention_weights(kind, query, key, 2, 3) for kind in ("naclip", "sclip"))
    for batch in range(2):
        for head in range(2):
            q, k = query[batch, head], key[batch, head]
            near = torch.zeros(7, 7)
            for one in range(6):
                for other in range(6):
                    squared = (one // 3 - other // 3) ** 2 + (one % 3 - other % 3) ** 2
                    near[one + 1, other + 1] = np.exp(-squared / (2 * 5.0**2))
            torch.testing.assert_close(naclip[batch, head], (k @ k.T / 4 + near).softmax(dim=-1))
            both = (q @ q.T / 4).softmax(dim=-1) + (k @ k.T / 4).softmax(dim=-1)
            torch.testing.assert_close(sclip[batch, head], both)


def mirrored_vit() -> nn.Module:
    """A ViT that cannot tell left from right: patches and position embeddings are their own mirror images."""
    visual = tiny_vit()
    with torch.no_grad():
        visual.conv1.weight.copy_((visual.conv1.weight + visual.conv1.weight.flip(-1)) / 2)
        table = visual.positional_embedding[1:].view(4, 4, -1)
        visual.positional_embedding[1:] = ((table + table.flip(1)) / 2).flatten(0, 1)
    return visual


@pytest.mark.parametrize("attention", ["maskclip", "sclip", "naclip"])
def test_a_mirrored_picture_gives_the_mirrored_map(attention: str) -> None:
    tower, x = VitDense(mirrored_vit(), attention), normal(36, 60)
    positions, pooled = tower(x)
    mirrored, mirrored_pooled = tower(x.flip(-1))
    torch.testing.assert_close(mirrored, positions.flip(2), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mirrored_pooled, pooled, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(positions, positions.flip(2), atol=1e-3)


@pytest.mark.parametrize("attention", ["maskclip", "sclip"])
def test_a_constant_picture_has_a_constant_map_without_positions(attention: str) -> None:
    # Not NACLIP: at the picture's edge its Gaussian is cut, and the class token weighs more.
    visual = tiny_vit()
    with torch.no_grad():
        visual.positional_embedding[1:] = visual.positional_embedding[1:2]
    positions, _ = VitDense(visual, attention)(torch.full((1, 3, 48, 84), 0.3))
    torch.testing.assert_close(positions, positions[:, :1, :1].expand_as(positions), rtol=1e-4, atol=1e-5)


def test_what_has_no_positions_says_so() -> None:
    spec = spec_of(48)
    for changes, message in (({"attentional_pool": True}, "CoCa"), ({"block_type": "custom"}, "last block")):
        reason = dense_of_openclip(tiny_vit(**changes), spec, "naclip")
        assert isinstance(reason, str)
        assert message in reason
    assert dense_of_openclip(tiny_vit(), spec, "none") is None
    with pytest.raises(NoPositions, match="not a mean over positions"):
        TimmDense(TimmModel("vit_tiny_patch16_224", 16, image_size=32, pool="", proj="linear"))


# Other open_clip trunks


def test_a_resnets_positions_go_through_its_attention_pool() -> None:
    torch.manual_seed(4)
    visual = ModifiedResNet((1, 1, 1, 1), output_dim=16, heads=4, image_size=64, width=8).eval().requires_grad_(False)
    x = normal(64, 64)
    positions, pooled = ResNetDense(visual)(x)
    torch.testing.assert_close(pooled, visual(x), rtol=1e-4, atol=1e-5)
    features = visual.layer4(visual.layer3(visual.layer2(visual.layer1(visual.stem(x)))))
    pool = visual.attnpool
    cell = features[:, :, 1, 0] + pool.positional_embedding[1 + 2]
    torch.testing.assert_close(positions[:, 1, 0], pool.c_proj(pool.v_proj(cell)), rtol=1e-4, atol=1e-5)
    larger, _ = ResNetDense(visual)(normal(96, 160))
    assert larger.shape == (2, 3, 5, 16)


def test_a_convnexts_positions_average_to_its_embedding() -> None:
    torch.manual_seed(5)
    visual = TimmModel("convnext_atto", 16, image_size=64, pool="", proj="linear").eval().requires_grad_(False)
    nn.init.normal_(visual.trunk.head.norm.bias)
    positions, pooled = TimmDense(visual)(normal(64, 96))
    assert positions.shape == (2, 2, 3, 16)
    torch.testing.assert_close(positions.mean(dim=(1, 2)), visual(normal(64, 96)), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(pooled, visual(normal(64, 96)), rtol=1e-3, atol=1e-5)


# Graphs


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DenseSource, int]:
    """A folder with the image encoder of an own trunk and its dense graph; the encoder's bytes before."""
    folder = tmp_path_factory.mktemp("dense")
    model, spec = own("mean"), spec_of(SIDE_PX)
    source = dense_of_own(model, spec)
    image = EncoderGraph(model, "encode_image").eval()
    files = write_graph(image, image_tensors(spec, 24), folder / "image_encoder.fp32.onnx")
    before = sum(path.stat().st_size for path in files)
    rows = pixels(4, SIDE_PX, SIDE_PX).numpy()

    class Rows:
        pixels = rows

    tower = image_tower(image, spec, Rows())
    graph = build_variant(tower, "fp32", folder / "image_encoder.fp32.onnx", ())
    found = build_dense(source, image, graph, rows, folder)
    assert found.graph.external_files == found.image.external_files
    assert found.graph.batch_invariant
    (folder / "entry.json").write_text(found.graph.model_dump_json())
    return folder, source, before


@pytest.mark.long
def test_both_graphs_read_one_file_of_weights(built: tuple[Path, DenseSource, int]) -> None:
    folder, _, before = built
    after = sum(path.stat().st_size for path in folder.glob("*") if path.suffix != ".json")
    assert after <= 1.1 * before


@pytest.mark.parametrize(("height", "width"), [(16, 16), (SIDE_PX, SIDE_PX), (112, 160), (160, 24)])
def test_the_graph_is_the_torch_module_at_every_size(
    built: tuple[Path, DenseSource, int], height: int, width: int
) -> None:
    folder, source, _ = built
    entry = GraphSpec.model_validate_json((folder / "entry.json").read_text())
    tower = DenseTower(Graph.open(folder / DENSE_FILE, entry))
    rows = pixels(3, height, width)
    got, (positions, pooled) = tower(rows.numpy()), source.module(rows)
    assert got.positions.shape == (3, height // 8, width // 8, 24)
    for found, expected in ((got.positions, positions.numpy()), (got.pooled, pooled.numpy())):
        assert np.abs(found - expected).max() <= 1e-5 * np.linalg.norm(expected, axis=-1).max()
    np.testing.assert_allclose(got.positions.mean(axis=(1, 2)), got.pooled, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("wrong", ["channels", "transposed", "pooled"])
def test_a_graph_that_is_not_the_module_is_refused(built: tuple[Path, DenseSource, int], wrong: str) -> None:
    folder, source, _ = built

    class Bent(nn.Module):
        def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
            positions, pooled = source.module(rows.flip(-1) if wrong == "channels" else rows)
            if wrong == "transposed":
                positions = positions.flip(1)
            return positions, pooled * 1.001 if wrong == "pooled" else pooled

    bent = DenseSource(module=Bent(), spec=source.spec)
    entry = GraphSpec.model_validate_json((folder / "entry.json").read_text())
    with pytest.raises(ExportRefused, match="not the torch model"):
        measure_dense(bent, entry, folder)


def test_a_module_whose_pooled_vector_is_another_is_refused(built: tuple[Path, DenseSource, int]) -> None:
    _, source, _ = built
    other = own("mean")
    with torch.no_grad():
        other.image_projection.bias += 0.1
    rows = pixels(2, SIDE_PX, SIDE_PX).numpy()
    with pytest.raises(ExportRefused, match="not the image encoder's"):
        check_module(source, EncoderGraph(other, "encode_image"), rows)


@pytest.mark.long
def test_a_flat_head_has_fixed_sizes_and_a_vit_graph_takes_free_ones(tmp_path: Path) -> None:
    flat = dense_of_own(own("flat"), spec_of(SIDE_PX))
    assert (flat.spec.sizes, flat.spec.height_px, flat.spec.pooling) == ("fixed", SIDE_PX, "flat")
    spec = spec_of(48)
    visual = tiny_vit()
    source = dense_of_openclip(visual, spec, "sclip")
    assert isinstance(source, DenseSource)
    assert (source.spec.short_px, source.spec.stride_px, source.spec.attention) == (14 * 12, 12, "sclip")
    check_module(source, ImageGraph(visual, spec.mean, spec.std), pixels(2, 48, 48).numpy())
    entry = measure_dense(source, write_dense(source, tmp_path), tmp_path)
    assert entry.outputs[0].shape == ("batch", "rows", "columns", 32)
    reference = encode_dense(source)
    for name, rows in dense_goldens(DenseSpec.model_validate(source.spec.model_dump() | {"short_px": 60})).items():
        got = DenseTower(Graph.open(tmp_path / DENSE_FILE, entry))(rows)
        np.testing.assert_allclose(got.positions, reference(rows)[0], rtol=1e-3, atol=1e-5, err_msg=name)


class InCompany(nn.Module):
    """Means of 8 x 8 patches; one of its two outputs takes a little of all pictures of the batch."""

    def __init__(self, part: str) -> None:
        super().__init__()
        self.part = part

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        cells = SIDE_PX // 8
        positions = rows.float().reshape(-1, cells, 8, cells, 8, 3).mean(dim=(2, 4)) - 100
        pooled, company = positions.mean(dim=(1, 2)), positions.mean(dim=(0, 1, 2))
        if self.part == "positions":
            positions = positions + 0.01 * company
        return positions, pooled + 0.01 * company if self.part == "pooled" else pooled


@pytest.mark.parametrize("part", ["neither", "positions", "pooled"])
def test_company_that_moves_positions_or_the_pooled_vector_is_measured(tmp_path: Path, part: str) -> None:
    source = DenseSource(module=InCompany(part).eval(), spec=dense_of_own(own("flat"), spec_of(SIDE_PX)).spec)
    entry = measure_dense(source, write_dense(source, tmp_path), tmp_path)
    assert entry.batch_invariant == (part == "neither")
    assert (entry.batch_difference > 1e-4) == (part != "neither")
