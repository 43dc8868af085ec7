"""The one way to open a picture.

Training, feature caching and captioning all go through `open_image`, so that one file never gives two pictures.
"""

import base64
import contextlib
import hashlib
import importlib
import io
import os
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Union
from urllib.parse import unquote_to_bytes

import numpy as np
from PIL import ExifTags, Image, ImageOps

from ..core.errors import (
    ImageError,
    ImageNotFoundError,
    ImageTooLargeError,
    NotAnImageError,
    TruncatedImageError,
    UnsupportedImageError,
)
from .limits import MAX_BYTES, MAX_PIXELS
from .pixels import from_array, is_tensor, read_array, to_rgb
from .stored import StoredPicture

if TYPE_CHECKING:
    import torch

# Formats whose size stands in the header and that Pillow decodes by itself: EPS would start Ghostscript, an icon may
# hide a larger picture than its header says, and TGA has no signature to recognise it by.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jfif", ".mpo", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif"}
    | {".jp2", ".ppm", ".pgm", ".pbm"}
)

_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx")

# What JPEG, PNG, WebP, GIF, BMP and TIFF begin with in base64.
_BASE64_STARTS = ("/9j/", "iVBORw0KGgo", "UklGR", "R0lGOD", "Qk", "SUkqA", "TU0AK")

_LONGEST_NAME = 4096  # PATH_MAX

# A progressive JPEG takes 10 scans as a rule. Each costs time for all pixels, however few bytes it has.
_MAX_SCANS = 100

_JPEG_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])")

TIMEOUT = 20.0

# Part of the key of cached features: raise it whenever `open_image` gives other pixels for the same file.
PIXELS_VERSION = 1

ImageSource = Union[str, os.PathLike, bytes, BinaryIO, StoredPicture, Image.Image, np.ndarray, "torch.Tensor"]


def open_image(
    source: ImageSource, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES, timeout: float = TIMEOUT
) -> Image.Image:
    """Open a picture as an upright, opaque, fully decoded RGB image.

    EXIF orientation is applied, colours are brought to sRGB where a readable ICC profile says how, and transparency
    is laid on white. Of an animation the first frame is taken. Pixels of 16 bits (modes I and I;16,
    uint16 arrays) are scaled from the range that the file names and else from 0..2^n - 1, with n the smallest of 8,
    10, 12, 14 and 16 that holds all of them: data of 12 bits lies unshifted in many files of 16, and would be black in
    the full range. Float pixels are scaled from 0..1 if none is above 1 and from 0..255 otherwise.

    Args:
        source: A path, a URL (http, https or data), an encoded file's bytes, a binary file (left open; read from its
            start where it can seek), a Pillow image (its current frame, left as it is), or a uint8, uint16 or float
            array or tensor of height x width, or with 1, 3 or 4 channels as the first or the last axis.
        max_pixels: The most pixels (width x height) to accept; checked before anything is decoded. Half as many of a
            WebP file, whose decoder takes twice the memory.
        max_bytes: The most bytes of the encoded file to accept; checked before more are read.
        timeout: Seconds until a picture must have come from its URL.

    Raises:
        ImageNotFoundError: There is no such file.
        ImageFetchError: The picture cannot be had from its URL.
        NotAnImageError: The source is no picture.
        TruncatedImageError: The picture is cut short or damaged.
        ImageTooLargeError: The picture has more than `max_pixels` pixels or `max_bytes` bytes.
        UnsupportedImageError: The kind of source, format or pixel range is not read.
        ImageError: The file cannot be read, for example for lack of permission or because the disk fails; or memory
            runs out.
    """
    name = describe(source)
    try:
        if isinstance(source, np.ndarray) or is_tensor(source):
            array = read_array(source, name)
            _check_size((array.shape[1], array.shape[0]), name, max_pixels)
            return to_rgb(from_array(array, name), name)
        if isinstance(source, Image.Image):
            _check_size(source.size, name, max_pixels)
            return _decode(source, name, keep=True)
        with _open_file(source, name, max_bytes, timeout) as file:
            image = _read_header(file, name)
            _check_size(image.size, name, max_pixels // 2 if image.format == "WEBP" else max_pixels)
            if image.format in ("JPEG", "MPO"):
                _check_jpeg(image, file, name)
            return _decode(image, name)
    # A disk that fails or memory that runs out costs this picture, not the thousands around it.
    except OSError as error:
        raise ImageError(name, f"the file cannot be read ({error.strerror or error})") from error
    except MemoryError as error:
        raise ImageError(name, "the picture needs more memory than there is: scale it down") from error


def describe(source: object) -> str:
    """Name a source in error messages."""
    if isinstance(source, (str, os.PathLike)):
        name = os.fsdecode(source)
        if url_scheme(name) in ("http", "https"):
            return re.sub(r"(?<=//)[^/?#]*@", "…@", name)  # a password is not for the log
        return _shorten(name) if url_scheme(name) == "data" or len(name) > _LONGEST_NAME else name or "<empty path>"
    if isinstance(source, np.ndarray):
        return f"<{source.dtype} array of shape {source.shape}>"
    if is_tensor(source):
        return f"<{source.dtype} tensor of shape {tuple(source.shape)}>"
    if isinstance(source, bytes):
        return f"<{len(source)} bytes>"
    known = getattr(source, "filename", None) or getattr(source, "name", None)
    return known if isinstance(known, str) else f"<{type(source).__name__}>"


def _shorten(name: str) -> str:
    """Returns the beginning of a long name, and a digest that tells it from others that begin in the same way."""
    digest = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()
    return f"{name[:30]}… ({len(name)} characters, SHA-256 {digest[:12]})"


def url_scheme(name: str) -> str | None:
    """The scheme of a URL, in lower case; None for a path. One letter is a drive."""
    match = re.match(r"([a-z][a-z0-9+.-]+)://|(data):", name, re.IGNORECASE)
    return match and (match[1] or match[2]).lower()


def _open_file(
    source: str | os.PathLike | bytes | BinaryIO | StoredPicture, name: str, max_bytes: int, timeout: float
) -> BinaryIO:
    """Give a seekable binary file that the caller closes, whatever the source."""
    if isinstance(source, StoredPicture):
        source = source.read(max_bytes + 1)
    if isinstance(source, bytes):
        _check_bytes(len(source), name, max_bytes)
        return io.BytesIO(source)
    if isinstance(source, (str, os.PathLike)):
        text = os.fsdecode(source)
        match url_scheme(text):
            case None:
                return _open_path(text, name, max_bytes)
            case "http" | "https":
                from .download import download  # an HTTP client, which few pictures need

                return download(text, name, max_bytes, timeout)
            case "data":
                return _read_data_url(text, name, max_bytes)
            case scheme:
                raise UnsupportedImageError(
                    name, f"URLs of {scheme} are not read: give one of http or https, or a file's path"
                )
    if not hasattr(source, "read"):
        raise UnsupportedImageError(
            name, "give a path, a URL, bytes, a binary file, a Pillow image, a NumPy array or a tensor as the picture"
        )
    try:
        if source.seekable():
            source.seek(0)
        content = io.BytesIO()
        while chunk := source.read(max_bytes + 1 - content.tell()):  # an unbuffered file gives less than asked for
            if not isinstance(chunk, bytes):
                raise UnsupportedImageError(name, "the file is open in text mode: open it with mode 'rb'")
            content.write(chunk)
            _check_bytes(content.tell(), name, max_bytes)
    except ImageError:
        raise
    except (OSError, ValueError) as error:
        raise ImageError(name, f"the file cannot be read ({error})") from error
    content.seek(0)
    return content


def _open_path(path: str, name: str, max_bytes: int) -> BinaryIO:
    try:
        status = os.stat(path)  # noqa: PTH116 - a Path would drop a slash at the end, and with it an error
        if stat.S_ISDIR(status.st_mode):
            raise NotAnImageError(name, "this is a folder: give a picture in it")
        if not stat.S_ISREG(status.st_mode):  # opening a pipe could wait for ever
            raise NotAnImageError(name, "this is not a regular file")
        _check_bytes(status.st_size, name, max_bytes)
        return Path(path).open("rb")
    except OSError as error:
        # Before all else: as a name it may be too long for the system.
        if path.startswith(_BASE64_STARTS) and len(path) > 60:
            raise UnsupportedImageError(
                _shorten(path),
                "this looks like base64, not like a path: decode it, or put `data:;base64,` in front",
            ) from error
        if isinstance(error, (FileNotFoundError, NotADirectoryError)):
            raise ImageNotFoundError(name, "there is no such file") from error
        raise ImageError(name, f"the file cannot be read ({error.strerror or error})") from error
    except ImageError:
        raise
    except ValueError as error:  # a zero byte in the path
        raise ImageNotFoundError(name, f"this is no file name ({error})") from error


def _read_data_url(url: str, name: str, max_bytes: int) -> BinaryIO:
    head, comma, body = url.partition(",")
    try:
        if not comma:
            raise ValueError("no comma")
        content = unquote_to_bytes(body)
        if head.lower().endswith(";base64"):
            content = base64.b64decode(content)
    except ValueError as error:
        raise NotAnImageError(name, f"this is a damaged data URL ({error})") from error
    _check_bytes(len(content), name, max_bytes)
    return io.BytesIO(content)


def _check_bytes(size: int, name: str, max_bytes: int) -> None:
    if size > max_bytes:
        raise ImageTooLargeError(name, f"the file has more than {max_bytes} bytes, which is the limit")


def _read_header(file: BinaryIO, name: str) -> Image.Image:
    """Recognise the format and read the header, no pixels.

    This is `PIL.Image.open` without its check against `PIL.Image.MAX_IMAGE_PIXELS`. That limit is one for the whole
    process, so lifting it here, even for a moment, would lift it for every other thread.
    """
    Image.init()
    head = file.read(512)
    formats = _FORMATS
    if _is_heic(head):
        _register_heif()
        formats = ("HEIF",)
    for image_format in formats:
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


def _is_heic(head: bytes) -> bool:
    # The major brand may be that of the container alone, which AVIF has in common.
    brands = {head[start : start + 4] for start in range(8, min(int.from_bytes(head[:4]), len(head)), 4)}
    return head[4:8] == b"ftyp" and not brands.isdisjoint(_HEIC_BRANDS)


def _register_heif() -> None:
    with contextlib.suppress(ImportError):  # an extra
        importlib.import_module("pillow_heif").register_heif_opener()


def _not_an_image(head: bytes, name: str) -> ImageError:
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        return NotAnImageError(name, "the file is empty")
    if _is_heic(head):
        return UnsupportedImageError(
            name, "HEIC is read with pillow-heif: `pip install pillow-heif`, or convert the picture to JPEG"
        )
    if head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis"):
        return UnsupportedImageError(name, "AVIF is read by Pillow from 11.2 on: `pip install --upgrade pillow`")
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
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno is not None):
        return error  # no fault of the picture's: `open_image` says so
    # A few decoders (TIFF, WebP) hold on to Pillow's own limit after the header.
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return ImageTooLargeError(
            name, f"the picture is over Pillow's own limit, PIL.Image.MAX_IMAGE_PIXELS ({error})"
        )
    text = str(error) or type(error).__name__
    if "too large" in text.lower():  # a compressed comment or colour profile
        return ImageTooLargeError(name, f"the file holds more than Pillow reads ({text})")
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


def _check_jpeg(image: Image.Image, file: BinaryIO, name: str) -> None:
    """Refuse a small JPEG that would take the decoder's memory or time, and leave a grey picture in the end."""
    width, height = image.size
    place = file.tell()
    length = file.seek(0, os.SEEK_END)
    if length * 8 < -(-width // 8) * -(-height // 8):  # a block of 8 x 8 pixels takes a bit at least
        raise TruncatedImageError(
            name, f"the picture is cut short or damaged ({length} bytes for {width} x {height} pixels)"
        )
    file.seek(0)
    scans = _count_scans(file.read())
    if scans > _MAX_SCANS:
        raise ImageTooLargeError(name, f"the picture is coded in {scans} scans and the limit is {_MAX_SCANS}")
    file.seek(place)


def _count_scans(content: bytes) -> int:
    """How many times the decoder of a JPEG goes over the whole picture: once for most, often for a progressive one."""
    scans, place = 0, 2
    while (marker := _JPEG_MARKER.search(content, place)) and marker[1] != b"\xd9":
        scans += marker[1] == b"\xda"
        place = marker.end() + int.from_bytes(content[marker.end() : marker.end() + 2])
    return scans


def _decode(image: Image.Image, name: str, keep: bool = False) -> Image.Image:
    """Make the picture that `open_image` gives; with `keep`, from an image that stays the caller's."""
    # Pillow's decoders raise nearly anything on damaged data: OSError, SyntaxError, struct.error, IndexError...
    try:
        image.load()
    except Exception as error:
        raise _explain(error, name) from error
    # After the pixels: a PNG may hold its EXIF behind them, and a TIFF comes upright from its decoder.
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # damaged EXIF takes nothing from the pixels
        orientation = None
    rgb = to_rgb(image, name)
    if rgb is image:
        rgb = image.copy() if keep else image._new(image.im)  # the pixels without their file, and no second copy
    rgb.info = {}  # with its EXIF left on, the picture would be turned again when it comes back here
    if orientation is not None:
        rgb.getexif()[ExifTags.Base.Orientation] = orientation
        ImageOps.exif_transpose(rgb, in_place=True)
    return rgb
