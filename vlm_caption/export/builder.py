"""Writes an ONNX graph node by node, with linear layers in float32 or in int8."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from .smoothing import smoothing_factors

if TYPE_CHECKING:
    from .blocks import PackedWeights

OPSET = 20  # with Gelu, in onnxruntime from 1.17 on
IR_VERSION = 9

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


class GraphBuilder:
    """Collects nodes and weights, and puts them together to a model.

    Args:
        int8: Whether linear layers are quantised.
        packed: Where the weights of quantised linear layers are kept in 4 bits, or None to keep 8.

    Attributes:
        nodes: The nodes so far.
        weights: The weights and constants so far, by name.
    """

    def __init__(self, int8: bool, packed: "PackedWeights | None" = None) -> None:
        self.int8, self.packed = int8, packed
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, onnx.TensorProto] = {}

    def add(self, op: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """Adds a node with one output, and returns the output's name.

        Args:
            op: The type of the node.
            *inputs: The names of its inputs.
            name: The output's name, by default a new one.
            **attributes: Its attributes.
        """
        return self.split(op, *inputs, names=[name or f"{op}_{len(self.nodes)}"], **attributes)[0]

    def split(self, op: str, *inputs: str, names: Sequence[str], **attributes: Any) -> list[str]:
        """Adds a node with several outputs, and returns their names."""
        self.nodes.append(helper.make_node(op, inputs, names, name=f"{op}_{len(self.nodes)}", **attributes))
        return list(names)

    def weight(self, name: str, value: Any) -> str:
        """Adds a tensor under a name, if there is none of this name, and returns the name."""
        if name not in self.weights:
            self.weights[name] = numpy_helper.from_array(np.asarray(to_numpy(value), order="C"), name)
        return name

    def constant(self, value: Any, dtype: Any = np.int64) -> str:
        """Adds a small tensor and returns its name; equal ones are shared."""
        array = np.asarray(value, dtype)
        return self.weight(f"constant_{array.dtype}_{array.shape}_{array.ravel().tolist()}".replace(" ", ""), array)

    def scalar(self, value: float) -> str:
        """Adds a float number and returns its name."""
        return self.constant(value, np.float32)

    def linear(
        self,
        values: str,
        name: str,
        weight: Any,
        bias: Any = None,
        pack: bool = True,
        greatest: np.ndarray | None = None,
    ) -> str:
        """Adds a linear layer, and returns its output's name.

        Args:
            values: The input, float [..., K].
            name: The layer's name.
            weight: float [K, N].
            bias: float [N], or None.
            pack: Whether its weights may be kept in 4 bits.
            greatest: The greatest absolute input of each channel, float [K], to smooth outliers with in int8.
        """
        if self.int8:
            output = self.quantized_linear(values, name, to_numpy(weight), pack, greatest)
        else:
            output = self.add("MatMul", values, self.weight(f"{name}.weight", weight))
        return output if bias is None else self.add("Add", output, self.weight(f"{name}.bias", bias))

    def quantized_linear(
        self, values: str, name: str, weight: np.ndarray, pack: bool = False, greatest: np.ndarray | None = None
    ) -> str:
        """Adds the product of activations and weights that are both rounded to 8 bits; see `quantize_columns`.

        The activations of a token are scaled by their own greatest, so a token's result depends neither on the tokens
        nor on the pictures beside it (onnxruntime's DynamicQuantizeLinear has one scale for all of them).

        Args:
            values: The input, float [..., K].
            name: The layer's name.
            weight: float [K, N].
            pack, greatest: See `linear`.
        """
        factors = smoothing_factors(greatest, weight)
        if greatest is not None:
            values = self.add("Div", values, self.weight(f"{name}.factors", factors))
        integers = f"{name}.weight_int8"
        if pack and self.packed is not None and self.packed.takes(weight):
            self.weights[integers], scales = self.packed.add(integers, weight, factors)
        else:
            rounded, scales = quantize_columns(weight * factors[:, None])
            self.weight(integers, rounded)
        return self.integer_product(values, integers, self.weight(f"{name}.scales", scales))

    def integer_product(self, values: str, integers: str, scales: str) -> str:
        """Adds the product of float activations [..., K] and int8 weights [K, N] with float scales [N]."""
        greatest = self.add("ReduceMax", self.add("Abs", values), self.constant([-1]), keepdims=1)
        greatest = self.add("Max", greatest, self.scalar(1e-30))
        shares = self.add("Mul", values, self.add("Div", self.scalar(127), greatest))
        # Unsigned, because only products of uint8 and int8 have fast kernels on x86.
        shifted = self.add("Add", self.add("Round", shares), self.scalar(128))
        quantized = self.add("Cast", shifted, to=TensorProto.UINT8)
        products = self.add("MatMulInteger", quantized, integers, self.constant(128, np.uint8))
        steps = self.add("Mul", greatest, self.scalar(1 / 127))
        return self.add("Mul", self.add("Mul", self.add("Cast", products, to=FLOAT), steps), scales)

    def model(self, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto]) -> onnx.ModelProto:
        """Returns the model.

        Args:
            inputs, outputs: What `value` returns.
        """
        graph = helper.make_graph(self.nodes, "captioner", inputs, outputs, list(self.weights.values()))
        opsets = [helper.make_opsetid("", OPSET)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="vlm_caption")


def value(name: str, dtype: int, shape: Sequence[int | str]) -> onnx.ValueInfoProto:
    """Describes an input or an output of a graph; sizes that are names may differ from run to run."""
    return helper.make_tensor_value_info(name, dtype, shape)


def quantize_columns(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rounds weights to whole multiples, -127 to 127, of a scale for each output channel.

    On x86 processors without VNNI, onnxruntime adds the products of two neighbouring weights with uint8 activations in
    16 bits (`vpmaddubsw`). So the scale is such that two of them, the first and second, third and fourth and so on,
    never add up to more than 128: 255 · 128 fits.

    Args:
        weight: float [K, N].

    Returns:
        The multiples, int8 [K, N], and the scales, float [N].
    """
    even = np.pad(weight, ((0, len(weight) % 2), (0, 0)))
    pairs = np.abs(even[::2] + even[1::2]).max(axis=0)
    # Of 127: rounding adds up to 1 to a sum of two.
    scales = np.maximum(np.maximum(np.abs(weight).max(axis=0), pairs) / 127, np.float32(1e-30)).astype(np.float32)
    return np.rint(weight / scales).astype(np.int8), scales


def to_numpy(tensor: Any) -> np.ndarray:
    """Returns a tensor as an array; floats of any precision as float32."""
    if isinstance(tensor, torch.Tensor):
        tensor = tensor.detach().cpu()
        tensor = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    return cast(np.ndarray, tensor)
