"""Runs the two graphs of an exported captioner with onnxruntime.

Shapes in comments: I images of N tokens; R rows; T new tokens; S tokens so far; M tokens of a caption; K candidates; D
the width of the embeddings; V the size of the vocabulary.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnxruntime

from ..captioning.decoding import Logits
from ..core.console import first_line_of
from ..core.errors import CheckpointError
from ..core.files import is_file
from .files import BLOCKS

# The logits of a vocabulary for every token of a caption take megabytes.
_ROWS_TO_SCORE = 8


def open_session(
    path: Path, threads: int | None, weights: Mapping[str, np.ndarray] | None = None, optimize: bool = True
) -> onnxruntime.InferenceSession:
    """Loads a graph.

    Args:
        path: The file.
        threads: The number of threads; by default onnxruntime's, one a core.
        weights: Tensors that the graph names, but that are not in its files.
        optimize: Whether the graph is made faster first.

    Raises:
        CheckpointError: The file is damaged, or needs a newer onnxruntime.
    """
    options = onnxruntime.SessionOptions()
    options.enable_mem_pattern = False  # for inputs that always have the same shapes
    options.log_severity_level = 3  # errors: it warns of what it does not fold
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if threads is not None:
        options.intra_op_num_threads = threads
    if weights:
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in weights.values()]
        options.add_external_initializers(list(weights), values)
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # classes of its own, without a common base
        raise CheckpointError(f"The graph {str(path)!r} cannot be loaded: {first_line_of(error)}") from error


def unpack_weights(path: Path, threads: int | None) -> dict[str, np.ndarray]:
    """Returns the weights that a graph without inputs computes, by name.

    Args:
        path: The file; where there is none, there are no such weights.
        threads: See `open_session`.

    Raises:
        CheckpointError: See `open_session`.
    """
    if not is_file(path):
        return {}
    # Optimised, it would compute all of them at once, with gigabytes of results in between.
    session = open_session(path, threads, optimize=False)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, cast(list[np.ndarray], session.run(names, {})), strict=True))


class VisionGraph:
    """The vision tower and the projector.

    Args:
        path: The file.
        threads: See `open_session`.

    Attributes:
        pooled_size: The number of a picture's pooled features.
    """

    def __init__(self, path: Path, threads: int | None) -> None:
        self._session = open_session(path, threads)
        outputs = {output.name: output.shape for output in self._session.get_outputs()}
        self.pooled_size: int = outputs["pooled_features"][1]

    def run(self, pixel_values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the image tokens float [I, N, D] and the pooled features float [I, D_pooled] of pictures.

        Args:
            pixel_values: float [I, 3, H, W].
        """
        outputs = self._session.run(["image_embeds", "pooled_features"], {"pixel_values": pixel_values})
        return cast(tuple[np.ndarray, np.ndarray], tuple(outputs))


class LanguageGraph:
    """The language model. Its cache stays with onnxruntime.

    Args:
        path: The file.
        threads: See `open_session`.
        cache: "layers", "heads" and "width" of the cache.
    """

    def __init__(self, path: Path, threads: int | None, cache: dict[str, int]) -> None:
        self._session = open_session(path, threads, unpack_weights(path.with_name(BLOCKS), threads))
        self._names = [f"{layer}.{part}" for layer in range(cache["layers"]) for part in ("key", "value")]
        self._head_shape = (cache["heads"], 0, cache["width"])
        [self._vocab_size] = (output.shape[1] for output in self._session.get_outputs() if output.name == "logits")
        [self._width] = (entry.shape[2] for entry in self._session.get_inputs() if entry.name == "image_embeds")

    def start(self, prompts: Sequence[Sequence[int]], image_embeds: np.ndarray) -> "GraphRows":
        """Returns rows that begin with these prompts, which `GraphRows.read_prompts` will read.

        Args:
            prompts: Token ids, with placeholders for the images' tokens in their order.
            image_embeds: The images of all prompts, float [I, N, D].
        """
        return GraphRows(self, prompts, image_embeds)

    def log_probs(self, prompts: Sequence[Sequence[int]], written: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """Returns the log-probability of each token behind a prompt without images, float [M] for each prompt.

        Args:
            prompts: Token ids, without placeholders.
            written: The tokens behind each.
        """
        found = []
        no_images = np.zeros((0, 1, self._width), np.float32)
        for start in range(0, len(prompts), _ROWS_TO_SCORE):
            targets = written[start : start + _ROWS_TO_SCORE]
            read = [[*prompt, *ids[:-1]] for prompt, ids in zip(prompts[start:], targets, strict=False)]
            found += self.start(read, no_images).read_targets(targets)
        return found

    def run(self, inputs: dict[str, np.ndarray], cache: list[Any] | None, full: bool) -> tuple[Logits, list[Any]]:
        """Runs the graph.

        Args:
            inputs: Its inputs, but for the cache.
            cache: What the last run returned, or None for an empty one.
            full: Whether all logits are needed.

        Returns:
            The logits and the new cache.
        """
        value = onnxruntime.OrtValue.ortvalue_from_numpy
        if cache is None:
            empty = value(np.zeros((len(inputs["rows"]), *self._head_shape), np.float32))
            cache = [empty] * len(self._names)
        inputs["top"] = np.minimum(inputs["top"], self._vocab_size)
        feeds = {name: value(np.ascontiguousarray(array)) for name, array in inputs.items()}
        feeds |= {f"past.{name}": tensor for name, tensor in zip(self._names, cache, strict=True)}
        wanted = ["log_sum", "top_logits", "top_ids", *(["logits"] if full else [])]
        outputs = self._session.run_with_ort_values([*wanted, *(f"present.{name}" for name in self._names)], feeds)
        numbers = [output.numpy() for output in outputs[: len(wanted)]]
        return Logits(*numbers[:3], numbers[3] if full else None), list(outputs[len(wanted) :])


class GraphRows:
    """Token sequences that are being written.

    Args:
        graph: The language model.
        prompts, image_embeds: See `LanguageGraph.start`.
    """

    def __init__(self, graph: LanguageGraph, prompts: Sequence[Sequence[int]], image_embeds: np.ndarray) -> None:
        self._graph = graph
        length = max(map(len, prompts))
        self._ids = np.zeros((len(prompts), length), np.int64)
        self._mask = np.zeros((len(prompts), length), np.int64)  # [R, S]
        for row, prompt in enumerate(prompts):  # padded on the left
            self._ids[row, length - len(prompt) :] = prompt
            self._mask[row, length - len(prompt) :] = 1
        self._images = image_embeds
        self._cache: list[Any] | None = None

    def read_prompts(self, top: int, full: bool) -> Logits:
        """See `Rows` of `vlm_caption.captioning.decoding`."""
        return self._read(1, top, full)

    def read_targets(self, targets: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """Returns the log-probability of tokens, float [M] for each row, and adds nothing to the rows.

        Args:
            targets: The tokens of each row. The last of them comes after the row's prompt, the others are in it.
        """
        longest = max(map(len, targets))
        logits = self._read(longest, 1, full=True)
        assert logits.full is not None
        ends = longest * np.arange(1, len(targets) + 1)  # the positions of all rows stand one after the other
        places = [np.arange(end - len(ids), end) for end, ids in zip(ends, targets, strict=True)]
        return [
            logits.full[place, np.array(ids, np.int64)] - logits.log_sum[place, 0]
            for place, ids in zip(places, targets, strict=True)
        ]

    def _read(self, keep: int, top: int, full: bool) -> Logits:
        positions = np.maximum(self._mask.cumsum(axis=1) - 1, 0)
        return self._run(self._ids, self._images, positions, np.arange(len(self._ids)), top, full, keep)

    def advance(self, tokens: np.ndarray, rows: np.ndarray, top: int, full: bool) -> Logits:
        """See `Rows` of `vlm_caption.captioning.decoding`."""
        mask = self._mask[rows]
        positions = mask.sum(axis=1, keepdims=True)
        self._mask = np.concatenate([mask, np.ones((len(rows), 1), np.int64)], axis=1)
        return self._run(tokens[:, None], self._images[:0], positions, rows, top, full)

    def _run(
        self,
        ids: np.ndarray,
        images: np.ndarray,
        positions: np.ndarray,
        rows: np.ndarray,
        top: int,
        full: bool,
        keep: int = 1,
    ) -> Logits:
        inputs = {
            "input_ids": ids,
            "image_embeds": images,
            "attention_mask": self._mask,
            "position_ids": positions,
            "rows": rows,
            "keep": np.array([keep]),
            "top": np.array([top]),
        }
        logits, self._cache = self._graph.run(inputs, self._cache, full)
        return logits
