"""The weights of a published BERT sentence encoder under this package's own names."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from safetensors.torch import load_file
from torch import Tensor

from training.aligned_config import AlignedTextConfig
from training.locations import located
from training.models.bert import BertTower, FactorisedTable

_LAYER_NAMES = {
    "attention.self.query": "query",
    "attention.self.key": "key",
    "attention.self.value": "value",
    "attention.output.dense": "attention_out",
    "attention.output.LayerNorm": "attention_norm",
    "intermediate.dense": "mlp_in",
    "output.dense": "mlp_out",
    "output.LayerNorm": "mlp_norm",
}


def load_sentence_encoder(tower: BertTower, config: AlignedTextConfig, *, kept_ids: Sequence[int]) -> None:
    """Put the published weights into `tower`; its vocabulary is rows `kept_ids` of theirs, its centre stays.

    A tower of fewer MLP units takes those with the largest products of norms, ingoing by outgoing; a table of two
    factors starts as the nearest product of its rank.

    Raises:
        ValueError: a weight is missing or has another shape.
    """
    path = located(config.encoder) / "model.safetensors"
    try:
        stored = load_file(path)
    except OSError as error:
        raise ValueError(f"{path}: {error}") from error
    # Written with a pooler and a head, or as the bare encoder.
    stored = {name.removeprefix("bert."): tensor.float() for name, tensor in stored.items()}
    try:
        weights = _renamed(stored, tower, layers=config.layers, kept_ids=kept_ids)
        if isinstance(tower.tokens, FactorisedTable):
            weights |= _factors(weights.pop("tokens.weight"), rank=tower.tokens.widen.in_features)
        if config.hidden is not None:
            for layer in range(len(tower.layers)):
                _keep_units(weights, f"layers.{layer}.", config.hidden)
        tower.load_state_dict({**weights, "centre": tower.centre})
    except KeyError as error:
        raise ValueError(f"{path} has no weight {error}") from error
    except RuntimeError as error:
        raise ValueError(f"{path}: weights of another model: {str(error).splitlines()[1].strip()}") from error


def _renamed(
    stored: dict[str, Tensor], tower: BertTower, *, layers: Sequence[int], kept_ids: Sequence[int]
) -> dict[str, Tensor]:
    """BERT's published names -> those of BertTower; the one segment's vector is added to every position."""
    length = len(tower.positions)
    segment = stored["embeddings.token_type_embeddings.weight"][0]
    found = {
        "tokens.weight": stored["embeddings.word_embeddings.weight"][torch.tensor(kept_ids)],
        "positions": stored["embeddings.position_embeddings.weight"][:length] + segment,
    }
    names = {"norm": "embeddings.LayerNorm"}
    for here, there in enumerate(layers or range(len(tower.layers))):
        names |= {f"layers.{here}.{ours}": f"encoder.layer.{there}.{theirs}" for theirs, ours in _LAYER_NAMES.items()}
    return found | {
        f"{ours}.{kind}": stored[f"{theirs}.{kind}"] for ours, theirs in names.items() for kind in ("weight", "bias")
    }


def _factors(rows: Tensor, *, rank: int) -> dict[str, Tensor]:
    """[V, W] -> a table [V, rank] and a matrix whose product is nearest (Eckart and Young, 1936)."""
    directions = torch.linalg.eigh((rows.T @ rows).double()).eigenvectors[:, -rank:].float()
    return {"tokens.table.weight": rows @ directions, "tokens.widen.weight": directions}


def _keep_units(weights: dict[str, Tensor], layer: str, count: int) -> None:
    into, out = weights[f"{layer}mlp_in.weight"], weights[f"{layer}mlp_out.weight"]
    kept = (into.norm(dim=1) * out.norm(dim=0)).argsort(descending=True)[:count].sort().values
    weights[f"{layer}mlp_in.weight"] = into[kept]
    weights[f"{layer}mlp_in.bias"] = weights[f"{layer}mlp_in.bias"][kept]
    weights[f"{layer}mlp_out.weight"] = out[:, kept]
