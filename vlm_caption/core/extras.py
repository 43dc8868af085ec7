"""Packages that only some uses need, and the extra of this package that installs each."""

import importlib
from types import ModuleType

from .errors import MissingPackageError

_EXTRAS = {
    "torch": "torch",
    "transformers": "torch",
    "accelerate": "torch",
    "safetensors": "torch",
    "yaml": "torch",
    "jinja2": "torch",
    "datasets": "train",
    "matplotlib": "train",
    "pyarrow": "train",
    "gguf": "wheels",
    "onnx": "wheels",
    "onnxruntime": "runtime",
    "onnxscript": "onnx",
    "gradio": "serve",
    "peft": "lora",
    "ray": "ray",
    "timm": "timm",
    "torchmetrics": "clip",
    "pycocoevalcap": "metrics",
    "pillow_heif": "heic",
    "pyexiv2": "xmp",
}


def require(package: str, purpose: str) -> ModuleType:
    """Imports a package of an extra.

    Args:
        package: The name of the package.
        purpose: What needs it, as the subject of a sentence.

    Raises:
        MissingPackageError: The package is not installed. The message names the extra.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise MissingPackageError(_advise(package, purpose), name=package) from error


def explain_missing(error: ModuleNotFoundError) -> str | None:
    """Returns a sentence that names the extra with the missing package, or None if no extra has it."""
    if isinstance(error, MissingPackageError):
        return str(error)
    package = (error.name or "").partition(".")[0]
    return _advise(package, "This") if package in _EXTRAS else None


def _advise(package: str, purpose: str) -> str:
    return f"{purpose} needs the package {package}: pip install 'vlm-caption[{_EXTRAS[package]}]'."
