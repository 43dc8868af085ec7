"""The language model as an ONNX graph with a cache, one for the prompt and for every token after it.

The graph is written from the weights, not traced: a traced one has three times as many nodes, most of which compute
shapes, and they take as long as the arithmetic of a row. onnxruntime-genai builds its graphs in this way too.
`check_graphs` in `checks.py` compares every exported graph with the model it came from.

Shapes in comments: I images, N image tokens an image; B rows of the cache, and R rows after `rows` has selected among
them; T new tokens, of which the last L get logits; P tokens in the cache, S = P + T; H heads of keys and values, G
query heads for each; E the width of a head, D that of the model, V the size of the vocabulary; F the length of a layer
prefix, 0 but for prompts with images. A prefix is in the cache, and neither in `attention_mask` nor in `position_ids`.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from ..core.errors import ConfigError
from ..model.layer_prefix import LayerPrefix
from ..towers.captioner import CaptionerModel
from .blocks import PackedWeights
from .builder import FLOAT, INT64, GraphBuilder, quantize_columns, to_numpy, value
from .smoothing import GreatestInputs, smoothing_factors


@dataclass(frozen=True)
class _Sizes:
    """The sizes of a language model's attention."""

    layers: int
    groups: int  # G
    heads: int  # H
    width: int  # E


def build_language_graph(
    core: CaptionerModel,
    int8: bool,
    packed: PackedWeights | None = None,
    greatest: GreatestInputs | None = None,
) -> onnx.ModelProto:
    """Returns the language model's graph.

    Its inputs are `input_ids` int64 [R, T] with image placeholders; `image_embeds` float [I, N, D], used up in their
    order, where I may be 0; `attention_mask` int64 [R, S], 0 at padding; `position_ids` int64 [R, T]; `rows` int64
    [R]; `keep` int64 [1], L; `top` int64 [1], K; and for each layer `past.LAYER.key` and `past.LAYER.value`, float
    [B, H, P, E], where P may be 0. `rows` selects rows of the cache before the new tokens are added: beams change
    places, a prompt becomes several beams, and rows that have ended leave the batch.

    Its outputs are `logits` float [R · L, V] of the tokens after the last L ones; `log_sum` float [R · L, 1], the
    logarithm of the sum of their exponentials; `top_logits` float and `top_ids` int64 [R · L, K], the K greatest in
    descending order; and for each layer `present.LAYER.key` and `present.LAYER.value`, float [R, H, S, E].

    Args:
        core: The captioner, without adapters.
        int8: Whether linear layers and the embeddings are quantised.
        packed: Gets the weights of the quantised layers, which then are not in the graph; see `GraphBuilder`.
        greatest: What `greatest_inputs` returned, to smooth the outliers of quantised layers with.

    Raises:
        ConfigError: The language model is of another family than GPT-2 or Llama, or is built in an unusual way.
    """
    kind = core.config.text_config.model_type
    if kind not in _FAMILIES:
        raise ConfigError(
            f"A {kind} language model cannot be exported, only those of the families {' and '.join(_FAMILIES)}."
        )
    return _FAMILIES[kind](core, GraphBuilder(int8, packed), greatest or {}).build()


class _LanguageGraph:
    """Builds what both families have in common: embeddings, mask, attention and head.

    Args:
        core: The captioner.
        builder: Collects the graph.
        greatest: The greatest inputs of linear layers.
    """

    sizes: _Sizes

    def __init__(self, core: CaptionerModel, builder: GraphBuilder, greatest: GreatestInputs) -> None:
        self.core = core
        self.greatest = greatest
        self.model: Any = core.language_model
        self.config: Any = core.config.text_config
        self.builder = builder
        self.prefix = ""  # float [2 · layers, R, H, F, E], keys and values by turns; "" without one
        self.tokens_seen, self.positions = "attention_mask", "position_ids"

    def build(self) -> onnx.ModelProto:
        """Returns the graph."""
        add, constant = self.builder.add, self.builder.constant
        if self.core.layer_prefix is not None:
            self.add_prefix(self.core.layer_prefix)
        hidden = self.embed()
        mask = self.mask()
        hidden = self.blocks(hidden, mask)
        last = add("Slice", hidden, add("Neg", "keep"), constant([2**31]), constant([1]))  # [R, L, D]
        width = self.config.hidden_size
        self.head(self.final_norm(add("Reshape", last, constant([-1, width]))))
        sizes = self.sizes
        cache = [f"{layer}.{part}" for layer in range(sizes.layers) for part in ("key", "value")]
        inputs = [
            value("input_ids", INT64, ["R", "T"]),
            value("image_embeds", FLOAT, ["I", "N", width]),
            value("attention_mask", INT64, ["R", "S"]),
            value("position_ids", INT64, ["R", "T"]),
            value("rows", INT64, ["R"]),
            value("keep", INT64, [1]),
            value("top", INT64, [1]),
            *(value(f"past.{name}", FLOAT, ["B", sizes.heads, "P", sizes.width]) for name in cache),
        ]
        outputs = [
            value("logits", FLOAT, ["R·L", self.model.get_output_embeddings().weight.shape[0]]),
            value("log_sum", FLOAT, ["R·L", 1]),
            value("top_logits", FLOAT, ["R·L", "K"]),
            value("top_ids", INT64, ["R·L", "K"]),
            *(value(f"present.{name}", FLOAT, ["R", sizes.heads, "S", sizes.width]) for name in cache),
        ]
        return self.builder.model(inputs, outputs)

    def add_prefix(self, layer_prefix: LayerPrefix) -> None:
        """Adds the keys and values of the images in front of each layer, and counts them in mask and positions."""
        add, constant, builder, sizes = self.builder.add, self.builder.constant, self.builder, self.sizes
        ones = np.ones(self.core.config.text_embedding_size, np.float32)
        values = add("LayerNormalization", "image_embeds", builder.weight("prefix.norm", ones), axis=-1, epsilon=1e-5)
        down, (up, bias) = layer_prefix.down, layer_prefix.fused()
        values = add("MatMul", values, builder.weight("prefix.down", down.weight.T))
        values = add("Gelu", add("Add", values, builder.weight("prefix.down_bias", down.bias)), approximate="none")
        values = add("MatMul", values, builder.weight("prefix.up", up))
        values = add("Add", values, builder.weight("prefix.bias", bias))  # [I, N, layers · 2 · H · E]
        rows = add("Shape", "input_ids", start=0, end=1)
        shape = add("Concat", rows, constant([-1, 2 * sizes.layers, sizes.heads, sizes.width]), axis=0)
        self.prefix = add("Transpose", add("Reshape", values, shape), perm=[2, 0, 3, 1, 4])
        lengths = [
            add("Shape", self.prefix, start=3, end=4),
            add("Shape", "past.0.key", start=2, end=3),
            add("Shape", "input_ids", start=1, end=2),
        ]
        total = add("Add", add("Add", lengths[0], lengths[1]), lengths[2])
        missing = add("Sub", total, add("Shape", "attention_mask", start=1, end=2))  # [1], the prefix so far
        in_front = add("Expand", constant([1]), add("Concat", rows, missing, axis=0))
        self.tokens_seen = add("Concat", in_front, "attention_mask", axis=1)
        self.positions = add("Add", "position_ids", missing)

    def embed(self) -> str:
        """Adds the embeddings, with image tokens in the placeholders' places, float [R, T, D]."""
        add, constant, builder = self.builder.add, self.builder.constant, self.builder
        placeholder = constant(self.core.config.image_token_id)
        is_image = add("Equal", "input_ids", placeholder)  # [R, T]
        text = self.look_up(add("Where", is_image, constant(0), "input_ids"))
        width = self.config.hidden_size
        images = add("Reshape", "image_embeds", constant([-1, width]))
        # A row of zeros behind them: there is something to read where there are no images.
        images = add("Concat", images, builder.weight("no_image", np.zeros((1, width), np.float32)), axis=0)
        flat = add("Cast", add("Reshape", is_image, constant([-1])), to=INT64)
        places = add("Reshape", add("CumSum", flat, constant(0)), add("Shape", "input_ids"))
        places = add("Where", is_image, add("Sub", places, constant(1)), constant(-1))
        image = add("Gather", images, places, axis=0)  # [R, T, D]
        return add("Where", add("Unsqueeze", is_image, constant([-1])), image, text)

    def look_up(self, ids: str) -> str:
        """Adds the lookup of token embeddings, float [R, T, D]."""
        add, builder = self.builder.add, self.builder
        table = self.model.get_input_embeddings().weight  # [V, D]
        if not builder.int8:
            return add("Gather", builder.weight("embeddings", table), ids, axis=0)
        weight = to_numpy(table).T  # of the head's form, [D, V], so that both can share it
        greatest = self.greatest.get(self.model.get_output_embeddings()) if self.is_tied else None
        factors = smoothing_factors(greatest, weight)
        integers, scales = quantize_columns(weight * factors[:, None])
        builder.weight("embeddings.weight_int8", integers)
        builder.weight("embeddings.scales", scales)
        columns = add("Gather", "embeddings.weight_int8", ids, axis=1)  # [D, R, T]
        rows = add("Cast", add("Transpose", columns, perm=[1, 2, 0]), to=FLOAT)
        rows = add("Div", rows, builder.weight("embeddings.factors", factors))
        row_scales = add("Gather", "embeddings.scales", ids, axis=0)
        return add("Mul", rows, add("Unsqueeze", row_scales, builder.constant([-1])))

    @cached_property
    def is_tied(self) -> bool:
        """Whether the head has the weights of the embeddings."""
        head, table = self.model.get_output_embeddings(), self.model.get_input_embeddings().weight
        return head.weight is table or torch.equal(head.weight, table)

    def head(self, hidden: str) -> None:
        """Adds the logits of hidden states [R · L, D], the logarithms of their sums of exponentials, the greatest."""
        add, builder = self.builder.add, self.builder
        head = self.model.get_output_embeddings()
        if self.is_tied:
            if builder.int8:
                hidden = add("Div", hidden, "embeddings.factors")
                logits = builder.integer_product(hidden, "embeddings.weight_int8", "embeddings.scales")
            else:
                logits = add("Gemm", hidden, "embeddings", transB=1)
        else:
            logits = builder.linear(hidden, "head", head.weight.T, pack=False, greatest=self.greatest.get(head))
        if head.bias is not None:
            logits = add("Add", logits, builder.weight("head.bias", head.bias))
        add("Identity", logits, name="logits")
        # Most decoding needs no more than these, and a vocabulary of logits is slow to search outside.
        add("ReduceLogSumExp", "logits", builder.constant([-1]), name="log_sum", keepdims=1)
        builder.split("TopK", "logits", "top", names=["top_logits", "top_ids"], axis=-1)

    def mask(self) -> str:
        """Adds the mask that is added to scores: 0 or the lowest float, [R, 1, G·T, S]."""
        add, constant = self.builder.add, self.builder.constant
        new = add("Shape", "input_ids", start=1, end=2)  # [1], T
        length = add("Shape", self.tokens_seen, start=1, end=2)  # [1], S, with the prefix
        places = add("CumSum", add("Expand", constant([1]), length), constant(0))  # [S], 1 to S
        own = add("Slice", places, add("Neg", new), constant([2**31]), constant([0]))  # [T]
        is_seen = add("LessOrEqual", places, add("Unsqueeze", own, constant([1])))  # [T, S]
        is_seen = add("Concat", *[is_seen] * self.sizes.groups, axis=0)  # [G·T, S]
        is_text = add("Cast", add("Unsqueeze", self.tokens_seen, constant([1, 2])), to=onnx.TensorProto.BOOL)
        is_seen = add("And", is_text, is_seen)
        lowest = self.builder.scalar(float(np.finfo(np.float32).min))
        return add("Where", is_seen, self.builder.scalar(0), lowest)

    def attend(self, query: str, key: str, values: str, layer: int, mask: str, scale: float) -> str:
        """Adds attention over the cache and the new tokens.

        Args:
            query: float [R, T, G·H, E].
            key, values: float [R, T, H, E].
            layer: The layer, whose cache is read and written.
            mask: What `mask` returned.
            scale: The factor of the scores.

        Returns:
            The name of float [R, T, G·H·E].
        """
        add, constant, sizes = self.builder.add, self.builder.constant, self.sizes
        present = []
        for number, (part, new) in enumerate((("key", key), ("value", values))):
            past = add("Gather", f"past.{layer}.{part}", "rows", axis=0)
            new = add("Transpose", new, perm=[0, 2, 1, 3])  # [R, H, T, E]
            parts = [past, new]
            if self.prefix:
                parts.insert(0, add("Gather", self.prefix, constant(2 * layer + number), axis=0))  # [R, H, F, E]
            present.append(add("Concat", *parts, name=f"present.{layer}.{part}", axis=2))  # [R, H, S, E]
        query = add("Transpose", query, perm=[0, 2, 1, 3])  # [R, G·H, T, E]
        # Query heads that share keys and values become rows of one product, so these are not copied for them.
        query = add("Reshape", query, constant([0, sizes.heads, -1, sizes.width]))  # [R, H, G·T, E]
        scores = add("MatMul", query, add("Transpose", present[0], perm=[0, 1, 3, 2]))
        scores = add("Mul", scores, self.builder.scalar(scale))
        shares = add("Softmax", add("Add", scores, mask), axis=-1)
        mixed = add("MatMul", shares, present[1])
        mixed = add("Reshape", mixed, constant([0, sizes.heads * sizes.groups, -1, sizes.width]))
        return add("Reshape", add("Transpose", mixed, perm=[0, 2, 1, 3]), constant([0, 0, -1]))

    def activation(self, name: str, values: str) -> str:
        """Adds an activation function of transformers.

        Raises:
            ConfigError: It is another than those below.
        """
        add = self.builder.add
        if name in ("silu", "swish"):
            return add("Mul", values, add("Sigmoid", values))
        if name in ("gelu_new", "gelu_pytorch_tanh", "gelu"):
            return add("Gelu", values, approximate="none" if name == "gelu" else "tanh")
        if name == "relu":
            return add("Relu", values)
        raise ConfigError(f"A language model with the activation {name} cannot be exported: silu, gelu and relu can.")

    def blocks(self, hidden: str, mask: str) -> str:
        """Adds all layers, and returns the hidden states' name, float [R, T, D]."""
        raise NotImplementedError

    def final_norm(self, hidden: str) -> str:
        """Adds the normalisation before the head."""
        raise NotImplementedError


class _Llama(_LanguageGraph):
    def __init__(self, core: CaptionerModel, builder: GraphBuilder, greatest: GreatestInputs) -> None:
        super().__init__(core, builder, greatest)
        config = self.config
        heads = config.num_key_value_heads
        groups = config.num_attention_heads // heads
        self.sizes = _Sizes(config.num_hidden_layers, groups, heads, config.head_dim)
        if "dynamic" in config.rope_parameters["rope_type"] or config.rope_parameters["rope_type"] == "longrope":
            raise ConfigError("A llama model whose rotary frequencies depend on the length cannot be exported.")

    def blocks(self, hidden: str, mask: str) -> str:
        add, sizes = self.builder.add, self.sizes
        cos, sin = self.rotations()
        for layer, block in enumerate(self.model.model.layers):
            name = f"layers.{layer}"
            attention, mlp = block.self_attn, block.mlp
            values = self.norm(hidden, f"{name}.input_norm", block.input_layernorm)
            values = self.fused(values, f"{name}.qkv", [attention.q_proj, attention.k_proj, attention.v_proj])
            parts = [(sizes.groups + 1) * sizes.heads, sizes.heads]  # queries and keys, values
            rotated, value_heads = self.split_heads(values, f"{name}.heads", parts)
            rotated = self.rotate(rotated, cos, sin)
            query, key = self.builder.split(
                "Split",
                rotated,
                self.builder.constant([sizes.groups * sizes.heads, sizes.heads]),
                names=[f"{name}.query", f"{name}.key"],
                axis=2,
            )
            values = self.attend(query, key, value_heads, layer, mask, attention.scaling)
            hidden = add("Add", hidden, self.fused(values, f"{name}.output", [attention.o_proj]))
            values = self.norm(hidden, f"{name}.mlp_norm", block.post_attention_layernorm)
            values = self.fused(values, f"{name}.gate_up", [mlp.gate_proj, mlp.up_proj])
            gate, up = self.builder.split(
                "Split", values, names=[f"{name}.gate", f"{name}.up"], axis=-1, num_outputs=2
            )
            values = add("Mul", self.activation(self.config.hidden_act, gate), up)
            hidden = add("Add", hidden, self.fused(values, f"{name}.down", [mlp.down_proj]))
        return hidden

    def split_heads(self, values: str, name: str, heads: list[int]) -> list[str]:
        """Adds the split of [R, T, heads · E] into parts of that many heads, [R, T, heads, E] each."""
        constant = self.builder.constant
        values = self.builder.add("Reshape", values, constant([0, 0, sum(heads), self.sizes.width]))
        names = [f"{name}.{part}" for part in range(len(heads))]
        return self.builder.split("Split", values, constant(heads), names=names, axis=2)

    def final_norm(self, hidden: str) -> str:
        return self.norm(hidden, "final_norm", self.model.model.norm)

    def fused(self, values: str, name: str, layers: list[nn.Linear]) -> str:
        """Adds one linear layer that stands for several of the same input, whose outputs it puts side by side."""
        weight = torch.cat([layer.weight for layer in layers]).T
        bias = None if layers[0].bias is None else torch.cat([layer.bias for layer in layers])
        return self.builder.linear(values, name, weight, bias, greatest=self.greatest.get(layers[0]))

    def norm(self, values: str, name: str, layer: Any) -> str:
        """Adds a normalisation by the root of the mean square, in the form that onnxruntime makes one node of."""
        add, scalar = self.builder.add, self.builder.scalar
        square = add("ReduceMean", add("Pow", values, scalar(2)), self.builder.constant([-1]), keepdims=1)
        root = add("Sqrt", add("Add", square, scalar(layer.variance_epsilon)))
        return add("Mul", add("Div", values, root), self.builder.weight(f"{name}.weight", layer.weight))

    def rotations(self) -> tuple[str, str]:
        """Adds cosines and sines of the positions, float [R, T, 1, E]; the sines' first half has its sign changed."""
        add, builder = self.builder.add, self.builder
        rotary = self.model.model.rotary_emb
        position = add("Unsqueeze", add("Cast", self.positions, to=FLOAT), builder.constant([-1]))
        angles = add("Mul", position, builder.weight("rotary.frequencies", rotary.inv_freq))  # [R, T, E / 2]
        cos, sin = (add("Mul", add(op, angles), builder.scalar(rotary.attention_scaling)) for op in ("Cos", "Sin"))
        cos, sin = add("Concat", cos, cos, axis=-1), add("Concat", add("Neg", sin), sin, axis=-1)
        return add("Unsqueeze", cos, builder.constant([2])), add("Unsqueeze", sin, builder.constant([2]))

    def rotate(self, values: str, cos: str, sin: str) -> str:
        """Adds the rotation of heads [R, T, heads, E] by their positions."""
        add = self.builder.add
        first, second = self.builder.split(
            "Split", values, names=[f"{values}.first", f"{values}.second"], axis=-1, num_outputs=2
        )
        swapped = add("Concat", second, first, axis=-1)
        return add("Add", add("Mul", values, cos), add("Mul", swapped, sin))


class _GPT2(_LanguageGraph):
    def __init__(self, core: CaptionerModel, builder: GraphBuilder, greatest: GreatestInputs) -> None:
        super().__init__(core, builder, greatest)
        heads = self.config.num_attention_heads
        self.sizes = _Sizes(self.config.num_hidden_layers, 1, heads, self.config.hidden_size // heads)
        if self.config.add_cross_attention:
            raise ConfigError("A gpt2 model with cross-attention cannot be exported.")

    def blocks(self, hidden: str, mask: str) -> str:
        add, constant, builder, sizes = self.builder.add, self.builder.constant, self.builder, self.sizes
        places = add("Gather", builder.weight("positions", self.model.transformer.wpe.weight), self.positions, axis=0)
        hidden = add("Add", hidden, places)
        for layer, block in enumerate(self.model.transformer.h):
            name = f"layers.{layer}"
            values = self.norm(hidden, f"{name}.input_norm", block.ln_1)
            values = self.conv(values, f"{name}.qkv", block.attn.c_attn)
            values = add("Reshape", values, constant([0, 0, 3 * sizes.heads, sizes.width]))
            query, key, value_heads = builder.split(
                "Split", values, names=[f"{name}.{part}" for part in ("query", "key", "value")], axis=2, num_outputs=3
            )
            values = self.attend(query, key, value_heads, layer, mask, self.scale(layer))
            hidden = add("Add", hidden, self.conv(values, f"{name}.output", block.attn.c_proj))
            values = self.norm(hidden, f"{name}.mlp_norm", block.ln_2)
            values = self.conv(values, f"{name}.up", block.mlp.c_fc)
            values = self.activation(self.config.activation_function, values)
            hidden = add("Add", hidden, self.conv(values, f"{name}.down", block.mlp.c_proj))
        return hidden

    def final_norm(self, hidden: str) -> str:
        return self.norm(hidden, "final_norm", self.model.transformer.ln_f)

    def scale(self, layer: int) -> float:
        """Returns the factor of a layer's scores."""
        scale = self.sizes.width**-0.5 if self.config.scale_attn_weights else 1.0
        return scale / (layer + 1) if self.config.scale_attn_by_inverse_layer_idx else scale

    def conv(self, values: str, name: str, layer: Any) -> str:
        """Adds one of GPT-2's linear layers, which hold their weights as [K, N]."""
        return self.builder.linear(values, name, layer.weight, layer.bias, greatest=self.greatest.get(layer))

    def norm(self, values: str, name: str, layer: nn.LayerNorm) -> str:
        """Adds a layer normalisation."""
        weights = [self.builder.weight(f"{name}.{part}", getattr(layer, part)) for part in ("weight", "bias")]
        return self.builder.add("LayerNormalization", values, *weights, axis=-1, epsilon=layer.eps)


_FAMILIES = {"gpt2": _GPT2, "llama": _Llama}
