"""transformers' own tests: taken from the source distribution of the installed version, and made importable.

They are private to transformers and change with each of its releases, so they are fetched by name and never copied
into this repository. The source distribution carries the mixins and little of what stands around them; what else they
import is put in their place here.
"""

import functools
import importlib
import json
import os
import sys
import tarfile
import tempfile
import types
from pathlib import Path
from typing import Any
from unittest import mock

import transformers

from vlm_caption.core.cache import cache_dir
from vlm_caption.towers.wheels import pip_download

# Not `tests`, which is what they call themselves: that name belongs to whoever runs them.
PACKAGE = "transformers_tests"

# The release whose tests the stand-ins below are made for. Others import other things, and test other names.
RELEASE = "5.24"

PICTURE = Path(__file__).parents[2] / "examples" / "astronaut.jpg"


class SdistError(RuntimeError):
    """transformers' tests cannot be had; the message is one sentence that says why."""


@functools.cache
def tests_dir() -> Path:
    """The folder `tests` of the installed transformers version's source distribution, fetched into the cache.

    Raises:
        SdistError: if there is no such source distribution, or it cannot be fetched.
    """
    version = transformers.__version__
    target = cache_dir() / "transformers-tests" / version
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Beside the target, for a rename is atomic only within a file system.
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{version}-") as scratch:
            unpacked = _unpack(_download(version, Path(scratch)), Path(scratch, "unpacked"))
            try:
                unpacked.rename(target)
            except OSError:
                if not target.is_dir():  # else another process was faster, with the same result
                    raise
    except OSError as error:
        raise SdistError(f"transformers' tests could not be unpacked under {target.parent} ({error})") from error
    return target


def _download(version: str, directory: Path) -> Path:
    # pip also asks a source distribution for its metadata, with build requirements that may well be wheels.
    options = ["--no-binary=transformers", "--retries=1"]
    try:
        return pip_download(f"transformers=={version}", directory, options, "transformers-*.tar.gz")
    except ValueError as error:
        raise SdistError(f"pip could not fetch the tests of transformers {version}: {error}") from error


def _unpack(archive: Path, directory: Path) -> Path:
    with tarfile.open(archive) as opened:
        members = [member for member in opened.getmembers() if Path(member.name).parts[1:2] == ("tests",)]
        opened.extractall(directory, members=members, filter="data")
    found = list(directory.glob("*/tests"))
    if len(found) != 1:
        raise SdistError(f"{archive.name} carries no tests")
    return found[0]


def _module(name: str, **members) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__dict__.update(members)
    module.__path__ = []  # so that it may have submodules
    return module


@functools.cache
def upstream(name: str) -> Any:
    """A module of transformers' tests, such as `test_modeling_common`.

    Raises:
        SdistError: as of [`tests_dir`], or if another release is installed.
    """
    if not transformers.__version__.startswith(f"{RELEASE}."):
        raise SdistError(f"the harness is for transformers {RELEASE}, and {transformers.__version__} is installed")
    if PACKAGE not in sys.modules:
        _install(tests_dir())
    with (
        tempfile.TemporaryDirectory() as tiny_models,
        # Two of the modules execute transformers' `__init__` anew, from the checkout that they expect around them.
        # That would put a second copy in place of the one that all the rest of this process uses.
        mock.patch.object(transformers.utils, "direct_transformers_import", return_value=transformers),
        # They add a folder of that checkout to the path.
        mock.patch.object(sys, "path", list(sys.path)),
        # One reads a list of the tiny models on the Hub, or of those in the folder that this variable names.
        mock.patch.dict(os.environ, TRANSFORMERS_TINY_MODEL_PATH=tiny_models),
    ):
        summary = Path(tiny_models, "reports", "tiny_model_summary.json")
        summary.parent.mkdir()
        summary.write_text(json.dumps({}))
        return importlib.import_module(f"{PACKAGE}.{name}")


def _install(directory: Path) -> None:
    """Makes the folder a package, beside stand-ins for the modules that the source distribution leaves out."""
    package = _module(PACKAGE)
    package.__path__ = [str(directory)]
    stand_ins = [
        package,
        _module(f"{PACKAGE}.exporters"),
        _module(f"{PACKAGE}.generation"),
        _module(f"{PACKAGE}.utils"),
        # Mixins, of which the model's mixin inherits or asks for. Without them their tests are not run.
        _module(f"{PACKAGE}.exporters.test_export", ExportTesterMixin=type("ExportTesterMixin", (), {})),
        _module(f"{PACKAGE}.generation.test_utils", GenerationTesterMixin=type("GenerationTesterMixin", (), {})),
        # Settings that are tried on configurations without sub-configurations only.
        _module(f"{PACKAGE}.utils.test_configuration_utils", config_common_kwargs={}),
        # Maps the addresses of pictures, videos and sounds to files that transformers' CI fetched beforehand.
        _module(
            "fetch_hub_objects_for_ci", url_to_local_path=lambda url: str(PICTURE) if url.endswith(".png") else url
        ),
    ]
    sys.modules.update({module.__name__: module for module in stand_ins})
