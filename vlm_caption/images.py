"""The one way to open a picture.

Training, feature caching and captioning all go through `open_image`, so that one file never gives two pictures.
"""

import io
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image

# Formats whose size stands in the header and that Pillow decodes by itself: EPS would start Ghostscript, an icon may
# hide a larger picture than its header says, and TGA has no signature to recognise it by.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jfif", ".mpo", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jp2"}
    | {".ppm", ".pgm", ".pbm"}
)

_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx")

# EXIF orientation -> what makes the picture upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(ValueError):
    """A picture cannot be opened: `source` says which one, `reason` why and what to do."""

    def __init__(self, source: str, reason: str) -> None:
        # Both go to ValueError as they are: a worker process pickles the error as its class and its arguments.
        super().__init__(source, reason)
        self.source = source
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.source}: {self.reason}"


class ImageNotFoundError(ImageError):
    """There is no such file, or no picture in the folder."""


class NotAnImageError(ImageError):
    """There is something, and it is no picture: text, a web page, an empty file, a folder."""


class TruncatedImageError(ImageError):
    """The picture is cut short or damaged."""


class ImageTooLargeError(ImageError):
    """The picture has more pixels than allowed."""


class UnsupportedImageError(ImageError):
    """The picture is of a kind that is not read: a URL, HEIC, SVG, an array out of range."""


def open_image(
    source: str | os.PathLike | bytes | BinaryIO | Image.Image | np.ndarray, max_pixels: int = 128_000_000
) -> Image.Image:
    """Open a picture as an upright, opaque, fully decoded RGB image.

    EXIF orientation is applied and transparency is laid on white. Of an animation the first frame is taken. 16-bit
    pixels (modes I and I;16, uint16 arrays) are scaled from 0..65535, float pixels from 0..1 if none is above 1 and
    from 0..255 otherwise.

    Args:
        source: A path, an encoded file's bytes, a binary file (left open; read from its start where it can seek), a
            Pillow image (its current frame, left as it is), or a uint8, uint16 or float array of height x width
            (x 1, 3 or 4 channels).
        max_pixels: The most pixels (width x height) to accept; checked before anything is decoded.

    Raises:
        ImageNotFoundError: There is no such file.
        NotAnImageError: The source is no picture.
        TruncatedImageError: The picture is cut short or damaged.
        ImageTooLargeError: The picture has more than `max_pixels` pixels.
        UnsupportedImageError: The kind of source, format or pixel range is not read.
        ImageError: The file cannot be read, for example for lack of permission.
    """
    name = describe(source)
    if isinstance(source, np.ndarray):
        return _to_rgb(_from_array(source, name, max_pixels), name, max_pixels)
    if isinstance(source, Image.Image):
        _check_size(source.size, name, max_pixels)
        return _to_rgb(_decode(source, name), name, max_pixels)
    with _open_file(source, name) as file:
        image = _read_header(file, name)
        _check_size(image.size, name, max_pixels)
        return _to_rgb(_decode(image, name), name, max_pixels)


def find_images(paths: Iterable[str | os.PathLike]) -> list[Path]:
    """List the pictures named by files and folders, each once.

    A folder stands for the files below it that end like a picture (`IMAGE_SUFFIXES`), in sorted order and without
    hidden ones. A file is kept whatever its ending, and a path that does not exist too: opening it reports it.

    Raises:
        ImageNotFoundError: A folder holds no pictures.
        UnsupportedImageError: A path is a URL.
        ImageError: A folder cannot be listed.
    """
    found: dict[str, Path] = {}
    for given in paths:
        name = describe(given)
        _refuse_url(name)
        path = Path(given)
        for image in _walk(path, name) if path.is_dir() else [path]:
            found.setdefault(os.path.abspath(image), image)  # noqa: PTH100 - one name for a file, links kept
    return list(found.values())


def _walk(folder: Path, name: str) -> list[Path]:
    def fail(error: OSError) -> None:
        raise ImageError(name, f"cannot be listed ({error})") from error

    images = []
    for parent, folders, files in os.walk(folder, onerror=fail):
        folders[:] = [child for child in folders if not child.startswith(".")]
        images += [
            Path(parent, file)
            for file in files
            if not file.startswith(".") and Path(file).suffix.lower() in IMAGE_SUFFIXES
        ]
    if not images:
        raise ImageNotFoundError(name, f"the folder holds no pictures ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return sorted(images)


def describe(source: object) -> str:
    """Name a source in error messages."""
    if isinstance(source, (str, os.PathLike)):
        return os.fsdecode(source) or "<empty path>"
    if isinstance(source, np.ndarray):
        return f"<{source.dtype} array of shape {source.shape}>"
    if isinstance(source, bytes):
        return f"<{len(source)} bytes>"
    known = getattr(source, "filename", None) or getattr(source, "name", None)
    return known if isinstance(known, str) else f"<{type(source).__name__}>"


def _refuse_url(name: str) -> None:
    if name.lower().startswith(("http://", "https://")):
        raise UnsupportedImageError(name, "URLs are not read: download the picture and give the file's path")


def _open_file(source: str | os.PathLike | bytes | BinaryIO, name: str) -> BinaryIO:
    """Give a seekable binary file that the caller closes, whatever the source."""
    if isinstance(source, bytes):
        return io.BytesIO(source)
    if isinstance(source, (str, os.PathLike)):
        _refuse_url(name)
        path = Path(source)
        try:
            kind = path.stat().st_mode
            if stat.S_ISDIR(kind):
                raise NotAnImageError(name, "this is a folder: give a picture in it")
            if not stat.S_ISREG(kind):  # opening a pipe could wait for ever
                raise NotAnImageError(name, "this is not a regular file")
            return path.open("rb")
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ImageNotFoundError(name, "there is no such file") from error
        except OSError as error:
            raise ImageError(name, f"the file cannot be read ({error.strerror or error})") from error
        except ImageError:
            raise
        except ValueError as error:  # a zero byte in the path
            raise ImageNotFoundError(name, f"this is no file name ({error})") from error
    if not hasattr(source, "read"):
        raise UnsupportedImageError(
            name, "give a path, bytes, a binary file, a Pillow image or a NumPy array as the picture"
        )
    try:
        if source.seekable():
            source.seek(0)
        content = source.read()
    except (OSError, ValueError) as error:
        raise ImageError(name, f"the file cannot be read ({error})") from error
    if not isinstance(content, bytes):
        raise UnsupportedImageError(name, "the file is open in text mode: open it with mode 'rb'")
    return io.BytesIO(content)


def _read_header(file: BinaryIO, name: str) -> Image.Image:
    """Recognise the format and read the header, no pixels.

    This is `PIL.Image.open` without its check against `PIL.Image.MAX_IMAGE_PIXELS`. That limit is one for the whole
    process, so lifting it here, even for a moment, would lift it for every other thread.
    """
    Image.init()
    head = file.read(512)
    for image_format in _FORMATS:
        if image_format not in Image.OPEN:  # AVIF came with Pillow 11.2
            continue
        opener, accept = Image.OPEN[image_format]
        accepted = accept is None or accept(head[:16])
        if isinstance(accepted, str):
            raise UnsupportedImageError(name, f"this Pillow cannot read {image_format} ({accepted})")
        if not accepted:
            continue
        file.seek(0)
        try:
            return opener(file, "")
        except Exception as error:
            # "BM" and "P1" are too short a signature to call a text file a damaged picture.
            if image_format in ("BMP", "PPM") and _is_text(head):
                break
            raise _explain(error, name) from error
    raise _not_an_image(head, name)


def _not_an_image(head: bytes, name: str) -> ImageError:
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        return NotAnImageError(name, "the file is empty")
    if head[4:8] == b"ftyp" and head[8:12] in _HEIC_BRANDS:
        return UnsupportedImageError(name, "HEIC is not read: convert the picture to JPEG")
    if start.startswith((b"<!doctype html", b"<html")):
        return NotAnImageError(name, "this is a web page (HTML): download the picture itself")
    if b"<svg" in start:
        return UnsupportedImageError(name, "SVG is not read: convert the drawing to PNG")
    what = "text" if _is_text(head) else "unknown data"
    return NotAnImageError(name, f"this is {what}, not a picture ({', '.join(_FORMATS)})")


def _is_text(head: bytes) -> bool:
    return all(byte >= 32 or byte in b"\t\n\f\r" for byte in head)


def _explain(error: Exception, name: str) -> Exception:
    """Turn what Pillow raised into the error to raise."""
    if isinstance(error, MemoryError):
        return error
    # A few decoders (TIFF, WebP) hold on to Pillow's own limit after the header.
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return ImageTooLargeError(
            name, f"the picture is over Pillow's own limit, PIL.Image.MAX_IMAGE_PIXELS ({error})"
        )
    text = str(error) or type(error).__name__
    if any(word in text.lower() for word in ("unknown", "unsupported", "not supported", "not available")):
        return UnsupportedImageError(name, f"this kind of picture is not read ({text}): convert it to PNG or JPEG")
    return TruncatedImageError(name, f"the picture is cut short or damaged ({text})")


def _check_size(size: tuple[int, int], name: str, max_pixels: int) -> None:
    width, height = size
    if not width or not height:
        raise UnsupportedImageError(name, f"the picture has no pixels ({width} x {height})")
    if width * height > max_pixels:
        raise ImageTooLargeError(
            name, f"the picture has {width} x {height} pixels and the limit is {max_pixels}: scale it down"
        )


def _decode(image: Image.Image, name: str) -> Image.Image:
    # Pillow's decoders raise nearly anything on damaged data: OSError, SyntaxError, struct.error, IndexError...
    try:
        image.load()
    except Exception as error:
        raise _explain(error, name) from error
    # After the pixels: a PNG may hold its EXIF behind them, and a TIFF comes upright from its decoder.
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # damaged EXIF takes nothing from the pixels
        return image
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _from_array(array: np.ndarray, name: str, max_pixels: int) -> Image.Image:
    if array.ndim not in (2, 3) or array.shape[2:] not in ((), (1,), (3,), (4,)):
        raise UnsupportedImageError(
            name, f"the shape is {array.shape}: give height x width, or height x width x 1, 3 or 4 channels"
        )
    _check_size((array.shape[1], array.shape[0]), name, max_pixels)
    if array.shape[2:] == (1,):
        array = array[:, :, 0]
    if array.dtype.kind == "f":
        low, high = array.min(), array.max()
        if not (low >= 0 and high <= 255):  # NaN fails both
            raise UnsupportedImageError(
                name, f"the float pixels run from {low:g} to {high:g}: give all of them in 0..1 or in 0..255"
            )
        array = np.rint(array.astype(np.float32) * (255 if high <= 1 else 1)).astype(np.uint8)
    elif array.dtype.kind == "u" and array.dtype.itemsize == 2:
        array = ((array.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise UnsupportedImageError(name, f"the pixels are {array.dtype}: give uint8, uint16 or float")
    return Image.fromarray(np.ascontiguousarray(array))


def _to_rgb(image: Image.Image, name: str, max_pixels: int) -> Image.Image:
    try:
        if image.mode == "F" or image.mode.startswith("I;16"):
            image = _from_array(np.asarray(image), name, max_pixels)
        elif image.mode == "I":
            pixels = np.asarray(image)
            if pixels.min() < 0 or pixels.max() > 65535:
                raise UnsupportedImageError(
                    name, f"the pixels run from {pixels.min()} to {pixels.max()}: give 8 or 16 bits a channel"
                )
            image = _from_array(pixels.astype(np.uint16), name, max_pixels)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        rgb = image.convert("RGB")
    except ImageError:
        raise
    except ValueError as error:
        raise UnsupportedImageError(name, f"pixels of mode {image.mode} are not read: convert it to RGB") from error
    rgb.info = {}  # with its EXIF left on, the picture would be turned again when it comes back here
    return rgb
