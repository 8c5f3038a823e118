"""Weights read back from the graphs of a stored artifact, for training to start from; only exact copies are given out.

An exported graph keeps some weights under their own names, others transposed, reshaped or under a number. So the same
architecture is exported once more with random weights, which shows where each of its weights lies in the graph; at
those places the artifact's own are read. Whether they are the very weights is decided by the artifact: the fingerprints
of the towers are digests of all weights by name, and the golden vectors must come out again.
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import open_clip
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from model_store.errors import ExportRefused
from model_store.golden import GOLDEN_TEXTS, Goldens
from model_store.hub.names import suggestion
from model_store.identity import fingerprint
from model_store.manifest import ImageSpec, Role, TextSpec
from model_store.modality.text import Tokenizer
from model_store.precisions.calibration import CALIBRATION_TEXTS
from model_store.precisions.measure import MeasuredRows
from model_store.store import Artifact
from training.config import OpenClipConfig
from training.data.vocabulary import tokenizer_of
from training.exporting.export import weight_arrays
from training.exporting.graphs import GRAPH_RECIPE, ImageGraph, TextGraph, write_graph
from training.exporting.reference import torch_vectors
from training.models.building import image_spec as image_spec_of

_SEED = 0
_OTHERWISE = "start from its checkpoint (base), or from a tag or file of its weights (model.pretrained)"


@dataclass(frozen=True)
class GraphWeights:
    """What a graph computes but for its weights, node by node, and its weights by (node, input).

    Every float constant of several numbers counts as a weight.
    """

    nodes: tuple[bytes, ...]
    weights: Mapping[tuple[int, int], NDArray[np.float32]]

    @classmethod
    def of(cls, model: onnx.ModelProto) -> GraphWeights:
        constants = {each.name: onnx.numpy_helper.to_array(each) for each in model.graph.initializer}
        weights: dict[tuple[int, int], NDArray[np.float32]] = {}
        nodes: list[bytes] = []
        for at, node in enumerate(model.graph.node):
            attributes = sorted(node.attribute, key=lambda each: each.name)
            said = [node.op_type.encode(), *(each.SerializeToString(deterministic=True) for each in attributes)]
            for position, name in enumerate(node.input):
                array = constants.get(name)
                if array is not None and array.dtype == np.float32 and array.size > 1:
                    weights[at, position] = array
                elif array is not None:
                    said.append(f"{position} {array.dtype} {array.tolist()}".encode())
            nodes.append(b"\0".join(said))
        return cls(nodes=tuple(nodes), weights=weights)

    def fits(self, other: GraphWeights) -> bool:
        """Whether both are the same graph but for the numbers; `other` may leave biases of zeros out."""
        shapes = {place: array.shape for place, array in self.weights.items()}
        same = all(shapes.get(place) == array.shape for place, array in other.weights.items())
        return same and self.nodes == other.nodes


def read_stored_weights(artifact: Artifact, config: OpenClipConfig) -> dict[str, Tensor]:
    """The state dict of the open_clip model that `artifact` was exported from, bit by bit; its scale is the manifest's.

    Raises:
        ExportRefused: its weights cannot be had exactly; with the reason, and what to start from instead.
        ArtifactError: a file is damaged.
    """
    image_spec, text_spec = artifact.image_spec, artifact.text_spec
    if image_spec is None or text_spec is None:
        raise ExportRefused(f"{artifact.reference} has not both towers")
    _refuse_other_kinds(artifact, config)
    with torch.random.fork_rng():
        clip: Any = open_clip.create_model(config.architecture, pretrained=None).float().eval()
    image = ImageGraph(clip.visual, image_spec.mean, image_spec.std).eval()
    text = TextGraph(clip).eval()
    _refuse_folded_norms(artifact, image)
    _refuse_other_inputs(artifact, config)
    artifact.verify()
    names, tokenizer = artifact.manifest.fingerprint, artifact.read(text_spec.tokenizer_file)
    image.load_state_dict(_weights_of(artifact, "image_encoder", image))
    _prove(artifact, "image_encoder", image, image_spec, names.image)
    text.load_state_dict(_weights_of(artifact, "text_encoder", text))
    _prove(artifact, "text_encoder", text, text_spec, names.text, tokenizer)
    with torch.no_grad():
        if artifact.manifest.logit_scale is not None:
            clip.logit_scale.fill_(math.log(artifact.manifest.logit_scale))
        if clip.logit_bias is not None:
            clip.logit_bias.fill_(artifact.manifest.logit_bias)
    return clip.state_dict()


def _refuse_other_kinds(artifact: Artifact, config: OpenClipConfig) -> None:
    """What can be said before anything is read."""
    name, provenance = artifact.reference, artifact.manifest.provenance
    if artifact.base is not None:
        raise ExportRefused(f"{name} is a derivation of {artifact.base.reference}, which alone has weights: name that")
    if provenance.verified == "wrapped":
        known = suggestion(provenance.repository or "")
        instead = f'model.pretrained = "{known.tag}" for {known.arch}' if known else "a tag or file of its weights"
        raise ExportRefused(
            f"{name} is another project's export ({provenance.layout}), whose graphs do not say which weight is which: "
            f"start from {instead}. Methods that work on vectors take it as base = artifact:{artifact.manifest.name}"
        )
    structure, described = _structure_of(artifact), provenance.architecture
    if "slim" in structure:
        raise ExportRefused(f"{name} is smaller than its architecture ({described}): start from its checkpoint (base)")
    if structure.get("kind") in ("small", "aligned"):
        raise ExportRefused(
            f"{name} is a {described}, no model of open_clip; its batch norms were folded into the convolutions, so "
            f"its graphs hold other numbers than were trained: start from its checkpoint (base)"
        )
    if described != config.architecture and described in open_clip.list_models():
        raise ExportRefused(f"{name} is a {described}: set model.architecture to it")
    activation = "quickgelu" if (open_clip.get_model_config(config.architecture) or {}).get("quick_gelu") else "gelu"
    if provenance.activation != activation:
        raise ExportRefused(
            f"{name} computes {provenance.activation}, {config.architecture} {activation}: set model.architecture to "
            "the form that fits"
        )


def _structure_of(artifact: Artifact) -> dict[str, Any]:
    """The model that the recipe of a graph describes, where it is one of ours; else nothing."""
    try:
        described = json.loads(artifact.manifest.provenance.recipe.removeprefix(f"{GRAPH_RECIPE};"))
    except ValueError:
        return {}
    return described if isinstance(described, dict) else {}


def _refuse_folded_norms(artifact: Artifact, module: nn.Module) -> None:
    folded = next((name for name, part in module.named_modules() if isinstance(part, _BatchNorm)), None)
    if folded is not None:
        raise ExportRefused(
            f"{artifact.reference} has batch norms ({folded}), which were folded into the convolutions when it was "
            f"exported: its graphs hold other numbers than were trained; {_OTHERWISE}"
        )


def _refuse_other_inputs(artifact: Artifact, config: OpenClipConfig) -> None:
    """Pictures and texts must be prepared as training prepares them."""
    ours, theirs = image_spec_of(config), artifact.image_spec
    for name in ImageSpec.model_fields:
        if (mine := getattr(ours, name)) != (other := getattr(theirs, name)):
            raise ExportRefused(
                f"{artifact.reference} was trained on pictures with {name} {other}, training prepares them with {mine}"
            )
    tokenizer, stored = Tokenizer(*tokenizer_of(config)), artifact.tokenizer()
    different = [text for text in (*GOLDEN_TEXTS, *CALIBRATION_TEXTS) if tokenizer.encode(text) != stored.encode(text)]
    if different:
        raise ExportRefused(
            f"{artifact.reference} has another tokenizer than training gives {config.architecture}: "
            f"{different[0][:40]!r} has other ids"
        )


def _weights_of(artifact: Artifact, role: Role, module: nn.Module) -> dict[str, Tensor]:
    """The state of `module` as the artifact's graph has it; `module` itself is left with random weights.

    Raises:
        ExportRefused: the graph is not the one that `module` is exported as.
    """
    manifest = artifact.manifest
    spec = manifest.graph(role, "fp32")
    if spec is None:
        raise ExportRefused(
            f"{artifact.reference} has no {role} in fp32, and other precisions are rounded: {_OTHERWISE}"
        )
    _fill_with_noise(module)
    with tempfile.TemporaryDirectory() as folder:
        written = write_graph(module, (spec.inputs[0], spec.outputs[0]), Path(folder) / "noise.onnx")
        ours = GraphWeights.of(onnx.load(written[0]))
    theirs = GraphWeights.of(onnx.load(artifact.path(spec.file)))
    if not ours.fits(theirs):
        made = manifest.provenance.tools.get("torch", "unknown")
        raise ExportRefused(
            f"{artifact.reference}: its {role} is not the graph that this architecture is exported as here (it was "
            f"exported with torch {made}, this is {torch.__version__}): {_OTHERWISE}"
        )
    found = matched(module.state_dict(), ours, theirs)
    if lost := sorted(module.state_dict().keys() - found.keys()):
        raise ExportRefused(
            f"{artifact.reference}: {len(lost)} weights of its {role} are not in its graph as they were trained, among "
            f"them {lost[0]}: {_OTHERWISE}"
        )
    return found


def matched(state: Mapping[str, Tensor], ours: GraphWeights, theirs: GraphWeights) -> dict[str, Tensor]:
    """Weights by name from `theirs`, taken where `ours`, a graph of `state`, holds the numbers of `state`.

    A weight may lie there as it is, with other axes of length 1, or as a transposed matrix. A constant that `theirs`
    does not have is a bias of zeros, which the exporter leaves out.
    """
    names: dict[bytes, tuple[str, bool]] = {}
    for name, tensor in state.items():
        array = tensor.detach().numpy()
        names[_digest(array)] = (name, False)
        if array.ndim == 2:
            names[_digest(array.T)] = (name, True)
    found: dict[str, Tensor] = {}
    for place, our in ours.weights.items():
        name, transposed = names.get(_digest(our), (None, False))
        if name is not None:
            their = theirs.weights.get(place, np.zeros_like(our))
            array = their.T if transposed else their.reshape(tuple(state[name].shape))
            found[name] = torch.from_numpy(np.array(array, order="C"))
    return found


def _digest(array: NDArray[np.float32]) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(array).data).digest()


def _fill_with_noise(module: nn.Module) -> None:
    """Every weight other numbers, so that no two of them can be taken for each other."""
    generator = torch.Generator().manual_seed(_SEED)
    with torch.no_grad():
        for tensor in module.state_dict().values():
            tensor.copy_(torch.randn(tensor.shape, generator=generator))


def _prove(
    artifact: Artifact,
    role: Role,
    module: nn.Module,
    spec: ImageSpec | TextSpec,
    expected: str | None,
    tokenizer: bytes | None = None,
) -> None:
    """Raises:
    ExportRefused: the tower has other weights than those that were published.
    GoldenError: it gives other vectors than those that were published.
    """
    weights, recipe = weight_arrays(module.state_dict()), artifact.manifest.provenance.recipe
    if fingerprint(weights, spec, recipe, tokenizer) != expected:
        raise ExportRefused(
            f"{artifact.reference}: its {role} holds other weights than its fingerprint says: {_OTHERWISE}"
        )
    Goldens(artifact).check_vectors(role, "fp32", lambda rows: torch_vectors(module, MeasuredRows(padded=rows)))
