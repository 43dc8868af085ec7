"""Flickr8k in its official layout: `Flickr8k.token.txt`, a list of names for each split, a folder of photos."""

from collections.abc import Iterator
from pathlib import Path

from .captions import CaptionedImage, DataError, clean_caption, read_text

TOKEN_FILE = "Flickr8k.token.txt"

_LISTS = {split: f"Flickr_8k.{split}Images.txt" for split in ("train", "dev", "test")}
_PHOTO_FOLDERS = ("Flicker8k_Dataset", "Flickr8k_Dataset", "Images")  # the first is the official spelling


def holds_flickr8k(source: Path) -> bool:
    """Whether `source` is a folder with Flickr8k's token file."""
    return (source / TOKEN_FILE).is_file()


def read_flickr8k(source: Path, split: str) -> Iterator[CaptionedImage]:
    """Yield the images of `split` (train, dev or test) in the order of its list, with their captions.

    Images that the list does not name are passed over. Whether the photos exist is not looked at.

    Raises:
        DataError: A file or folder is missing, a line is malformed, or a listed image has no captions.
    """
    if split not in _LISTS:
        raise DataError(f"{source}: Flickr8k has no split {split!r}: choose one of {', '.join(_LISTS)}")
    if not (source / _LISTS[split]).is_file():
        there = [other for other, name in _LISTS.items() if (source / name).is_file()]
        raise DataError(
            f"{source}: the list of the {split} split, {_LISTS[split]}, is missing; "
            f"splits that are there: {', '.join(there) or 'none'}"
        )
    photos = next((source / name for name in _PHOTO_FOLDERS if (source / name).is_dir()), None)
    if photos is None:
        raise DataError(f"{source}: there is no folder of photos: looked for {', '.join(_PHOTO_FOLDERS)}")

    names = (line.strip() for line in read_text(source / _LISTS[split]).split("\n"))
    captions: dict[str, list[str]] = {name: [] for name in names if name}
    for name, caption in _read_tokens(source / TOKEN_FILE):
        if name in captions:
            captions[name].append(caption)

    bare = [name for name, found in captions.items() if not found]
    if bare:
        raise DataError(
            f"{source / TOKEN_FILE}: {len(bare)} of the {len(captions)} images in {_LISTS[split]} have no captions, "
            f"first: {bare[0]}"
        )
    for name, found in captions.items():
        yield CaptionedImage(str(photos / name), tuple(found))


def _read_tokens(path: Path) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        key, _, caption = line.partition("\t")
        name, _, _ = key.rpartition("#")
        caption = clean_caption(caption)
        if not name or not caption:
            raise DataError(f"{path}, line {number}: expected NAME.jpg#K, a tab and a caption, found {line[:80]!r}")
        yield name, caption
