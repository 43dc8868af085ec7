"""Weights of 8 bits that are stored in 4, and the ONNX graph that unpacks them when the captioner is loaded.

Each block of 32 weights of an output channel has a step and a lowest value in float16, as in GGUF's Q4_1. Weights that
come from such a file are on this grid already, so they become the same as in int8. onnxruntime's own product with
4-bit weights is slower than that of int8 with more than one row; unpacked, they are as fast as int8.
"""

import numpy as np
import onnx
from onnx import TensorProto

from ..runtime.files import BLOCKS
from .builder import FLOAT, GraphBuilder, quantize_columns, value

BLOCK = 32

# Of the file that `language.onnx` names and nobody writes: the runtime gives its content to onnxruntime.
UNPACKED = f"{BLOCKS}.unpacked"


class PackedWeights:
    """Collects weights, and puts them together to a graph without inputs that has each of them as an output.

    Attributes:
        size: The number of weights so far.
    """

    def __init__(self) -> None:
        self._builder = GraphBuilder(int8=False)
        self._outputs: list[onnx.ValueInfoProto] = []
        self.size = 0

    @staticmethod
    def takes(weight: np.ndarray) -> bool:
        """Returns whether weights float [K, N] come in whole blocks."""
        return len(weight) % BLOCK == 0

    def add(self, name: str, weight: np.ndarray, factors: np.ndarray) -> tuple[onnx.TensorProto, np.ndarray]:
        """Adds a linear layer's weights.

        Args:
            name: The name of the int8 tensor.
            weight: float [K, N], K a multiple of `BLOCK`.
            factors: What the weights of each input channel are multiplied by when they are unpacked, float [K].

        Returns:
            The tensor int8 [K, N] without its content, for the graph that reads it, and the scales, float [N]: what
            `quantize_columns` returns of the weights on the grid of 4 bits times the factors.
        """
        add, builder = self._builder.add, self._builder
        codes, steps, lows = pack_blocks(weight)
        column = factors[:, None]
        _, scales = quantize_columns(unpack_blocks(codes, steps, lows) * column)
        halves = builder.weight(f"{name}.codes", codes[:, ::2] | codes[:, 1::2] << 4)  # [K / 32, 16, N]
        even = add("BitwiseAnd", halves, builder.constant(15, np.uint8))
        odd = add("BitShift", halves, builder.constant(4, np.uint8), direction="RIGHT")
        pairs = [add("Unsqueeze", half, builder.constant([2])) for half in (even, odd)]
        shape = builder.constant([len(codes), BLOCK, -1])
        numbers = add("Cast", add("Reshape", add("Concat", *pairs, axis=2), shape), to=FLOAT)
        step, low = (
            add("Cast", builder.weight(f"{name}.{part}", array), to=FLOAT)
            for part, array in (("steps", steps), ("lows", lows))
        )
        weights = add("Reshape", add("Add", add("Mul", numbers, step), low), builder.constant(weight.shape))
        weights = add("Mul", weights, builder.weight(f"{name}.factors", column))
        multiples = add("Round", add("Div", weights, builder.weight(f"{name}.scales", scales)))
        add("Cast", multiples, to=TensorProto.INT8, name=name)
        self._outputs.append(value(name, TensorProto.INT8, weight.shape))
        tensor = TensorProto(
            name=name, data_type=TensorProto.INT8, dims=weight.shape, data_location=TensorProto.EXTERNAL
        )
        for key, entry in (("location", UNPACKED), ("offset", self.size), ("length", weight.size)):
            tensor.external_data.append(onnx.StringStringEntryProto(key=key, value=str(entry)))
        self.size += weight.size
        return tensor, scales

    def model(self) -> onnx.ModelProto:
        """Returns the graph; its outputs are in the order in which they were added."""
        return self._builder.model([], self._outputs)


def pack_blocks(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rounds weights to one of 16 values at equal distances between the least and the greatest of a block.

    Args:
        weight: float [K, N], K a multiple of `BLOCK`.

    Returns:
        The numbers of the values, uint8 [K / 32, 32, N], and the steps and the lowest values, float16 [K / 32, 1, N].
    """
    blocks = weight.reshape(-1, BLOCK, weight.shape[1])
    lows = blocks.min(axis=1, keepdims=True)
    steps = ((blocks.max(axis=1, keepdims=True) - lows) / 15).astype(np.float16)
    lows = lows.astype(np.float16)
    codes = np.rint((blocks - lows) / np.maximum(steps.astype(np.float32), np.float32(1e-30)))
    return codes.clip(0, 15).astype(np.uint8), steps, lows


def unpack_blocks(codes: np.ndarray, steps: np.ndarray, lows: np.ndarray) -> np.ndarray:
    """Returns the weights, float32 [K, N], of what `pack_blocks` returns."""
    weights = codes.astype(np.float32) * steps.astype(np.float32) + lows.astype(np.float32)
    return weights.reshape(-1, codes.shape[2])
