"""The vision tower and the projector as an ONNX graph, traced by torch."""

import warnings
from typing import Any, cast

import onnx
import torch
from onnx import helper, numpy_helper
from torch import nn

from ..captioning.signals import pool_features
from ..core.errors import ConfigError
from ..towers.captioner import CaptionerModel
from .builder import OPSET, GraphBuilder

_FAMILIES = {
    "clip_vision_model": "CLIP",
    "dinov2": "DINOv2",
    "dinov2_with_registers": "DINOv2 with registers",
    "siglip_vision_model": "SigLIP",
    "vit": "ViT",
}


class _Encoder(nn.Module):
    def __init__(self, core: CaptionerModel) -> None:
        super().__init__()
        self.core = core

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = cast(torch.Tensor, self.core.encode_images(pixel_values).pooler_output)
        embeds = self.core.get_image_features(image_features=features).pooler_output
        return cast(torch.Tensor, embeds), pool_features(features)


def check_vision_tower(core: CaptionerModel) -> None:
    """Checks that the tower can be exported.

    Raises:
        ConfigError: There is none, or it is of another family.
    """
    if core.config.feature_size is not None:
        raise ConfigError("A captioner of vectors has no vision tower, and cannot be exported.")
    kind = core.config.vision_config.model_type
    if kind not in _FAMILIES:
        raise ConfigError(
            f"A {kind} vision tower cannot be exported, only those of the families {', '.join(_FAMILIES.values())}."
        )


def build_vision_graph(core: CaptionerModel, pixel_values: torch.Tensor, int8: bool) -> onnx.ModelProto:
    """Returns the graph of the vision tower and the projector.

    Its input is `pixel_values` float [I, 3, h, w], of which only I may vary. Its outputs are `image_embeds` float
    [I, N, D], and `pooled_features` float [I, D_pooled], which `pool_features` makes of the tower's features.

    Args:
        core: The captioner, without adapters.
        pixel_values: Two images as the image processor makes them, float [2, 3, h, w].
        int8: Whether linear layers are quantised.

    Raises:
        ConfigError: See `check_vision_tower`.
    """
    check_vision_tower(core)
    core.vision_tower.set_attn_implementation("eager")  # its graph is the simplest
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own making
        program = torch.onnx.export(
            _Encoder(core).eval(),
            (pixel_values,),
            dynamo=True,
            optimize=False,  # takes minutes; onnxruntime does it in a second when it loads the graph
            verbose=False,
            opset_version=OPSET,
            input_names=["pixel_values"],
            output_names=["image_embeds", "pooled_features"],
            dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
        )
    model = cast(Any, program).model_proto
    del model.graph.value_info[:]
    for node in model.graph.node:  # where in torch each came from, megabytes of it
        del node.metadata_props[:]
    if int8:
        _quantize(model)
    return model


def _quantize(model: onnx.ModelProto) -> None:
    """Replaces the products with constant matrices by products of int8; see `GraphBuilder.quantized_linear`."""
    graph = model.graph
    weights = {weight.name: weight for weight in graph.initializer}
    matrices = {name: numpy_helper.to_array(weight) for name, weight in weights.items() if len(weight.dims) == 2}
    builder = GraphBuilder(int8=True)
    for number, node in enumerate(graph.node):
        if node.op_type == "Transpose" and node.input[0] in matrices:
            matrices[node.output[0]] = matrices[node.input[0]].T
        matrix = matrices.get(node.input[1]) if node.op_type in ("MatMul", "Gemm") else None
        if matrix is None:
            builder.nodes.append(node)
            continue
        attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        matrix = matrix.T if attributes.get("transB") else matrix
        output = builder.quantized_linear(node.input[0], f"linear_{number}", matrix)
        if len(node.input) > 2:
            builder.add("Add", output, node.input[2])
        builder.nodes[-1].output[0] = node.output[0]
    _replace(graph, builder)


def _replace(graph: onnx.GraphProto, builder: GraphBuilder) -> None:
    """Puts a builder's nodes into a graph, and drops nodes and weights that nothing reads any more."""
    outputs = {output.name for output in graph.output}
    nodes: list[onnx.NodeProto] = []
    used = set(outputs)
    for node in reversed(builder.nodes):
        if used & set(node.output):
            used |= set(node.input)
            nodes.append(node)
    weights = [weight for weight in (*graph.initializer, *builder.weights.values()) if weight.name in used]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(reversed(nodes))
    graph.initializer.extend(weights)
