"""The private and undocumented names of other libraries that the package depends on, in one table.

A library may rename such a name in any release, and Python says nothing: an override that the base class no longer
calls is silently dead. Here the rename is one red line with the name and the reason why we need it.

To stop depending on a name, delete its row. To depend on another, add one; `test_the_table_is_whole` asks for it.
"""

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import EllipsisType
from typing import Any

import pytest
import torch
import transformers
from torch.utils.data import Sampler
from transformers import TrainerCallback

import vlm_caption

PACKAGE = Path(vlm_caption.__file__).parent


@dataclass
class Name:
    """A name that must exist.

    Attributes:
        path: Its importable path, for an attribute of an instance that of its class.
        parameters: Its parameters without `self`, all of them, or with `...` at the end those that must be among them;
            None where we do not depend on any.
        reason: What the package needs it for.
    """

    path: str
    parameters: tuple[str | EllipsisType, ...] | None
    reason: str


# Class attributes by which every model of transformers, its own too, says what it can do; there is no public form.
FLAGS = [
    Name(f"transformers.PreTrainedModel.{flag}", None, "lets a user choose an attention, and compile generation")
    for flag in (
        *("_supports_flash_attn", "_supports_sdpa", "_supports_flex_attn", "_supports_attention_backend"),
        "_can_compile_fullgraph",
    )
]

MODEL = [
    Name("transformers.PreTrainedModel._init_weights", ("module",), "draws the projector and the soft tokens"),
    Name("transformers.PreTrainedModel._keep_in_fp32_modules", None, "the projector beside a quantised tower"),
    Name("transformers.PreTrainedModel._keys_to_ignore_on_save", None, "a bridge leaves frozen towers out"),
    Name("transformers.PreTrainedModel.dtype", None, "the projector's"),
    Name("transformers.PreTrainedModel.get_input_embeddings", (), "the language model's"),
    Name("transformers.PreTrainedModel.set_input_embeddings", ("value",), "the language model's"),
    Name("transformers.PreTrainedModel.get_output_embeddings", (), "the language model's"),
    Name("transformers.PreTrainedModel.resize_token_embeddings", None, "refused"),
    Name("transformers.PreTrainedModel.train", ("mode",), "what is frozen stays in eval mode"),
    Name(
        "transformers.PreTrainedModel.save_pretrained",
        ("save_directory", "is_main_process", "state_dict", "push_to_hub", "save_original_format", ...),
        "bridge and full checkpoints, under the names of the model at hand",
    ),
    Name("transformers.PreTrainedModel.push_to_hub", ("repo_id", "max_shard_size", ...), "uploads a bridge"),
    Name(
        "transformers.PreTrainedModel.from_pretrained",
        ("pretrained_model_name_or_path", "*model_args", "config", "revision", "**kwargs", ...),
        "fetches the towers that a bridge names",
    ),
    Name("transformers.modeling_utils.initialization", None, "draws weights, except those that were loaded"),
    Name("transformers.initialization.uniform_", None, "the same"),
    Name("transformers.PreTrainedConfig.sub_configs_defaults", None, "default towers"),
    Name("transformers.configuration_utils.SubConfigSpec", ("config_class", "model_type", "init_kwargs", ...), "same"),
    Name("transformers.quantizers.base.get_keys_to_not_convert", ("model",), "the head is not quantised"),
    Name("transformers.utils.generic.can_return_tuple", None, "return_dict=False"),
    Name("transformers.pytorch_utils.Conv1D", None, "GPT-2's linear layers"),
    Name("transformers.activations.ACT2FN", None, "activations by name"),
    Name("transformers.activations.NewGELUActivation", None, "swapped for a faster one"),
    Name(
        "transformers.models.bit.image_processing_pil_bit.BitImageProcessorPil", None, "DINOv2's, without torchvision"
    ),
    Name("transformers.CLIPModel.get_image_features", ("pixel_values", ...), "CLIPScore on tensors"),
    Name("transformers.CLIPModel.get_text_features", ("input_ids", "attention_mask", ...), "CLIPScore on tensors"),
]

GENERATION = [
    Name("transformers.GenerationMixin.generate", ("inputs", "generation_config", "assistant_model", ...), "an image"),
    Name("transformers.generation.utils.mm_encoder_outputs", None, "encodes an image once for all beams"),
    Name("torch.compiler.set_stance", ("stance", ...), "no compilation for every new length"),
]

PROCESSOR = [
    Name("transformers.ProcessorMixin.from_pretrained", ("pretrained_model_name_or_path", "**kwargs", ...), "backend"),
    Name("transformers.ProcessorMixin.to_dict", (), "keeps the prompt's settings"),
    Name(
        "transformers.ProcessorMixin.apply_chat_template", ("conversation", "chat_template", "**kwargs", ...), "images"
    ),
    Name(
        "transformers.ProcessorMixin.get_text_with_replacements",
        ("text", "images_replacements", ...),
        "puts the start token in front",
    ),
    Name("transformers.ProcessorMixin.replace_image_token", ("image_inputs", "image_idx", "**kwargs"), "placeholders"),
    Name("transformers.image_utils.make_flat_list_of_images", None, "counts images"),
]

OTHERS = [
    Name("peft.tuners.lora.LoraLayer.lora_A", None, "recognises adapters by it, and by `.lora_` in names"),
    Name("peft.tuners.lora.LoraLayer.lora_B", None, "holds both in float32"),
    Name("peft.tuners.lora.LoraLayer.base_layer", None, "recognises adapted weights by `.base_layer.` in names"),
    Name("peft.tuners.lora.LoraLayer.scaling", None, "another alpha for an adapter that is there"),
    Name("peft.tuners.lora.LoraLayer.lora_dropout", None, "the same of its dropout"),
    Name(
        "peft.tuners.lora.LoraLayer.reset_lora_parameters", ("adapter_name", "init_lora_weights"), "draws an adapter"
    ),
    Name("peft.tuners.lora.Linear.get_delta_weight", ("adapter",), "merges in float32"),
    Name("accelerate.utils.launch.ACCELERATE_USE_", None, "refuses what `accelerate launch` cannot give here"),
    Name("accelerate.utils.launch.ACCELERATE_MIXED_PRECISION", None, "recognises `accelerate launch`"),
    Name("PIL.Image.OPEN", None, "a format's own check of the first bytes"),
    Name("PIL.Image.Image._new", ("im",), "pixels without their file, and no second copy"),
    Name(
        "gradio.blocks.Block.async_move_resource_to_block_cache",
        ("url_or_file_path",),
        "the page fetches no address that a browser sends",
    ),
    Name("pycocoevalcap.meteor.meteor.Meteor.meteor_p", None, "ends METEOR's process"),
    Name("pycocoevalcap.meteor.meteor.Meteor.lock", None, "lets its destructor end"),
]

NAMES = FLAGS + MODEL + GENERATION + PROCESSOR + OTHERS

LIBRARIES = {
    *("transformers", "peft", "accelerate", "datasets", "torch", "torchmetrics", "timm", "tokenizers", "PIL"),
    *("pycocoevalcap", "huggingface_hub", "safetensors", "pyarrow"),
}
# Their methods are documented as the ones to override.
MADE_TO_BE_SUBCLASSED = {*torch.nn.Module.__mro__, *torch.autograd.Function.__mro__, Sampler, TrainerCallback}
# Modules of transformers whose names are documented as imported from there.
DOCUMENTED_MODULES = {
    f"transformers.{module}" for module in ("utils", "modeling_outputs", "processing_utils", "image_utils")
}
# Documented, with an underscore: methods of named tuples, and `os._exit`.
DOCUMENTED = {"_replace", "_asdict", "_fields", "_make", "_exit"}


def resolve(path: str) -> tuple[Any, str]:
    """Returns the module, class or function that holds the last part of a path, and this part."""
    *parts, last = path.split(".")
    owner = importlib.import_module(parts[0])
    for number, part in enumerate(parts[1:], start=2):
        try:
            owner = getattr(owner, part)
        except AttributeError:
            owner = importlib.import_module(".".join(parts[:number]))
    return owner, last


def is_mentioned(name: str, owner: Any) -> bool:
    """Whether a name that exists only at run time, such as an instance's attribute, is in the source of its owner."""
    holders = [base for base in owner.__mro__ if base is not object] if inspect.isclass(owner) else [owner]
    try:
        return any(re.search(word(name), inspect.getsource(holder)) for holder in holders)
    except (OSError, TypeError):  # it is not written in Python
        return False


def word(name: str) -> str:
    """A pattern that finds a name, or what begins with it where it ends in `_`."""
    return rf"\b{name}" + ("" if name.endswith("_") else r"\b")


def parameters_of(value: Any) -> list[str]:
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    parameters = inspect.signature(value).parameters.values()
    names = [stars.get(parameter.kind, "") + parameter.name for parameter in parameters]
    return names[1:] if names[:1] in (["self"], ["cls"]) else names


@pytest.mark.parametrize("name", NAMES, ids=lambda name: name.path)
def test_exists(name):
    pytest.importorskip(name.path.partition(".")[0])
    gone = f"{name.path} is gone; we need it: {name.reason}"
    try:
        owner, last = resolve(name.path)
    except ImportError:
        pytest.fail(gone)
    assert hasattr(owner, last) or is_mentioned(last, owner), gone
    if name.parameters is not None:
        found = parameters_of(getattr(owner, last))
        others = f"{name.path} has the parameters {found}; we need it: {name.reason}"
        if name.parameters[-1:] == (...,):
            assert {*name.parameters} - {...} <= {*found}, others
        else:
            assert list(name.parameters) == found, others


@dataclass
class Use:
    """A name that the package overrides, reads or passes, and where."""

    name: str
    where: str


@cache
def sources() -> dict[Path, str]:
    return {file: file.read_text() for file in sorted(PACKAGE.rglob("*.py"))}


def uses() -> Iterator[Use]:
    own = {name for source in sources().values() for name in names_defined(ast.parse(source))}
    for file, source in sources().items():
        tree = ast.parse(source)
        found = [*overrides(tree, file), *imports(tree), *attributes(tree, own), *keywords(tree)]
        yield from (Use(name, f"{file.relative_to(PACKAGE)}:{line}") for name, line in found)


def names_defined(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_own(node.value):
            yield node.attr


def is_own(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def overrides(tree: ast.AST, file: Path) -> Iterator[tuple[str, int]]:
    """Methods that override a library's, and private class attributes that do."""
    path = ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts)
    module = importlib.import_module(path.removesuffix(".__init__"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            bases = [base for written in node.bases if (base := find_base(written, tree, module)) is not None]
            mro = [owner for base in bases for owner in base.__mro__]
            for statement in node.body:
                for name in names_bound(statement):
                    owner = next((owner for owner in mro if name in vars(owner) and is_library(owner)), None)
                    if owner is not None and owner not in MADE_TO_BE_SUBCLASSED:
                        yield name, statement.lineno


def names_bound(statement: ast.stmt) -> list[str]:
    if isinstance(statement, ast.FunctionDef):
        return [] if statement.name.startswith("__") else [statement.name]
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    names = [target.id for target in targets if isinstance(target, ast.Name)]
    return [name for name in names if is_private(name)]


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def find_base(written: ast.expr, tree: ast.AST, module: Any) -> type | None:
    name = ast.unparse(written).partition("[")[0]
    first, *rest = name.split(".")
    value = getattr(module, first, None)
    for node in ast.walk(tree):  # imported inside a function
        if value is None and isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                if (alias.asname or alias.name) == first:
                    value = getattr(importlib.import_module(str(node.module)), alias.name, None)
    for part in rest:
        value = getattr(value, part, None)
    return value if isinstance(value, type) else None


def is_library(owner: type) -> bool:
    return owner.__module__.partition(".")[0] in LIBRARIES


def imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Private names that are imported, and those that transformers has in a module of its own alone."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not node.level:
            module = str(node.module)
            library = module.partition(".")[0]
            for alias in node.names:
                private = library in LIBRARIES and (alias.name.startswith("_") or "._" in module)
                deep = library == "transformers" and module not in DOCUMENTED_MODULES
                if private or (deep and not hasattr(transformers, alias.name)):
                    yield alias.name, node.lineno


def attributes(tree: ast.AST, own: set[str]) -> Iterator[tuple[str, int]]:
    """Private attributes that the package itself does not define."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in own | DOCUMENTED:
            yield node.attr, node.lineno


def keywords(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Private arguments that are passed."""
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg and node.arg.startswith("_"):
            yield node.arg, node.value.lineno


def test_the_table_is_whole():
    named = {name.path.rpartition(".")[2] for name in NAMES}
    named |= {parameter for name in NAMES for parameter in name.parameters or () if parameter is not ...}
    missing = sorted({f"{use.name} ({use.where})" for use in uses() if use.name not in named})
    assert not missing, "private or undocumented names without a row in the table: " + ", ".join(missing)


def test_the_table_has_no_more_than_the_package_uses():
    everything = "\n".join(sources().values())
    left = [name.path for name in NAMES if not re.search(word(name.path.rpartition(".")[2]), everything)]
    assert not left, "the package does not use these any more, remove their rows: " + ", ".join(left)


def test_fewer_than_ten_names_are_private():
    private = [name.path for name in NAMES if name.path.rpartition(".")[2].startswith("_") and name not in FLAGS]
    assert len([*private, "the flags"]) < 10, private
