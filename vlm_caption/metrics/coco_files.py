"""Captions and references from COCO's file formats.

Results are `[{"image_id": 1, "caption": "…"}, …]`, one entry an image; annotations are `{"images": [{"id": 1}, …],
"annotations": [{"image_id": 1, "caption": "…"}, …]}`, several entries an image (https://cocodataset.org, "Results
Format" and "Data Format").
"""

import json
import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import DataError
from ..core.text import read_text
from ..core.untrusted import load_json

ImageId = int | str


@dataclass(frozen=True)
class CaptionPairs:
    """Captions beside their references, in the order of the references.

    Attributes:
        image_ids, captions, references: One for each image.
        missing: The images with references and without a caption, which are not scored.
        extra: The images with a caption and without references, which are not scored.
    """

    image_ids: list[ImageId]
    captions: list[str]
    references: list[list[str]]
    missing: list[ImageId]
    extra: list[ImageId]


def read_results(path: str | os.PathLike) -> dict[ImageId, str]:
    """Reads a results file: the caption of each image id, in the file's order.

    Raises:
        DataError: The file cannot be read or is not such a list, an entry has no image id or no caption that is text,
            or an image has several captions. An empty caption is accepted, and scores badly.
    """
    entries = _read_json(path)
    if not isinstance(entries, list):
        raise DataError(f"{path}: expected a list of entries with image_id and caption, found {_describe(entries)}")
    pairs = _read_captions(path, entries)
    _refuse_repeated(path, "captions of one image: keep one an image, image id", (image for image, _ in pairs))
    return dict(pairs)


def read_references(path: str | os.PathLike) -> dict[ImageId, list[str]]:
    """Reads an annotations file: the references of each image id, in the order of its `images`.

    Raises:
        DataError: The file cannot be read or has no such lists, an entry is malformed (see `read_results`), a
            reference is empty, an image is listed twice or has no references, or a reference is of an image that is
            not listed.
    """
    content = _read_json(path)
    lists = ("images", "annotations")
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in lists):
        found = _describe(content)
        raise DataError(f"{path}: expected an object with the lists images and annotations, found {found}")
    without_id = [
        number
        for number, entry in enumerate(content["images"], start=1)
        if not isinstance(entry, dict) or not _is_id(entry.get("id"))
    ]
    if without_id:
        raise DataError(f"{path}: {_count(without_id, 'images without an id that is a number or text, number')}")
    images = [entry["id"] for entry in content["images"]]
    _refuse_repeated(path, "images listed more than once, id", images)
    references: dict[ImageId, list[str]] = {image: [] for image in images}
    pairs = _read_captions(path, content["annotations"])
    unlisted = [image for image, _ in pairs if image not in references]
    if unlisted:
        raise DataError(f"{path}: {_count(unlisted, 'annotations of images that are not listed, image id')}")
    empty = [image for image, caption in pairs if not caption.strip()]
    if empty:
        raise DataError(f"{path}: {_count(empty, 'empty captions, image id')}")
    for image, caption in pairs:
        references[image].append(caption)
    bare = [image for image, captions in references.items() if not captions]
    if bare:
        raise DataError(f"{path}: {_count(bare, 'images without references, id')}")
    if not references:
        raise DataError(f"{path}: there are no images")
    return references


def read_file_names(path: str | os.PathLike) -> dict[ImageId, str]:
    """Reads the `file_name` of each image of an annotations file that has one; of a file that `read_references` takes.

    Raises:
        DataError: The file cannot be read.
    """
    return {
        entry["id"]: entry["file_name"]
        for entry in _read_json(path)["images"]
        if isinstance(entry.get("file_name"), str) and entry["file_name"]
    }


def pair_captions(
    results: Mapping[ImageId, str], references: Mapping[ImageId, Sequence[str]], allow_missing: bool = False
) -> CaptionPairs:
    """Puts captions and references of the same images side by side.

    Args:
        results: What `read_results` returns.
        references: What `read_references` returns.
        allow_missing: Whether to leave out images that only one of the two has. The result names them.

    Raises:
        DataError: An image is in one of the two only, and `allow_missing` does not permit it; or none is in both.
    """
    missing = [image for image in references if image not in results]
    extra = [image for image in results if image not in references]
    shared = [image for image in references if image in results]
    if not shared:
        hint = ""
        if {str(image) for image in results} & {str(image) for image in references}:
            hint = ": ids are numbers in one file and text in the other"
        raise DataError(f"no image has both a caption and references{hint}")
    if not allow_missing and (missing or extra):
        faults = [_count(missing, "images have no caption, id")] if missing else []
        faults += [_count(extra, "captions have no references, image id")] if extra else []
        raise DataError(f"{'; '.join(faults)}; to score the other {len(shared)} images, allow missing ones")
    return CaptionPairs(
        image_ids=shared,
        captions=[results[image] for image in shared],
        references=[list(references[image]) for image in shared],
        missing=missing,
        extra=extra,
    )


def _read_json(path: str | os.PathLike) -> Any:
    try:
        return load_json(read_text(Path(path)), str(path))
    except DataError as error:
        if isinstance(error.__cause__, json.JSONDecodeError):
            raise DataError(f"{path}, line {error.__cause__.lineno}: not JSON ({error.__cause__.msg})") from error
        raise


def _read_captions(path: str | os.PathLike, entries: Sequence[Any]) -> list[tuple[ImageId, str]]:
    without_id = [
        number
        for number, entry in enumerate(entries, start=1)
        if not isinstance(entry, dict) or not _is_id(entry.get("image_id"))
    ]
    if without_id:
        raise DataError(
            f"{path}: {_count(without_id, 'entries without an image_id that is a number or text, entry number')}"
        )
    no_text = [entry["image_id"] for entry in entries if not isinstance(entry.get("caption"), str)]
    if no_text:
        raise DataError(f"{path}: {_count(no_text, 'captions missing or no text, image id')}")
    return [(entry["image_id"], entry["caption"]) for entry in entries]


def _is_id(value: Any) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool)


def _refuse_repeated(path: str | os.PathLike, what: str, images: Iterable[ImageId]) -> None:
    repeated = [image for image, times in Counter(images).items() if times > 1]
    if repeated:
        raise DataError(f"{path}: {_count(repeated, what)}")


def _count(found: Collection[Any], what: str) -> str:
    """Says how many of something there are, and names up to three of them."""
    examples = ", ".join(repr(item) if isinstance(item, str) else str(item) for item in list(found)[:3])
    return f"{len(found)} {what} {examples}{', …' if len(found) > 3 else ''}"


def _describe(content: Any) -> str:
    if isinstance(content, dict):
        return f"an object with {', '.join(map(repr, list(content)[:5])) or 'nothing in it'}"
    return "an empty list" if content == [] else f"a {type(content).__name__}"
