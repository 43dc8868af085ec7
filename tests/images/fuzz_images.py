"""Damaged and hostile pictures by the thousand: `python tests/images/fuzz_images.py --count 20000 --seed 1`.

Each must end in a picture or in an `ImageError`, within 2 s of CPU time and 1 GB of memory. Case N of a seed is always
the same one: `--start N --count 1` repeats it, `--save FOLDER` writes the failed ones down.
"""

import argparse
import io
import random
import resource
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageCms, PngImagePlugin, TiffImagePlugin

from vlm_caption.core.errors import ImageError
from vlm_caption.images.opening import open_image

MAX_SECONDS = 2.0
MAX_BYTES = 1 << 30
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP")
SUFFIXES = (".jpg", ".png", ".webp", ".gif", ".tiff", ".bmp", ".txt", "")


@cache
def originals(image_format: str) -> list[bytes]:
    """Good files of a format, small, of the kinds that its decoder treats differently."""
    generator = np.random.default_rng(0)
    smooth = generator.integers(0, 256, (3, 4, 3), dtype=np.uint8)
    rgb = Image.fromarray(smooth).resize((60, 40), Image.Resampling.BICUBIC)
    noise = Image.fromarray(generator.integers(0, 256, (24, 32, 3), dtype=np.uint8))
    alpha = rgb.convert("RGBA")
    alpha.putalpha(noise.resize(rgb.size).convert("L"))
    deep = Image.fromarray(generator.integers(0, 4096, (24, 32), dtype=np.uint16))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.ImageDescription] = "a picture"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    frames = {"save_all": True, "append_images": [noise.resize(rgb.size), rgb.rotate(180)], "duration": 50}

    def encode(image: Image.Image, **options) -> bytes:
        buffer = io.BytesIO()
        image.save(buffer, image_format, **options)
        return buffer.getvalue()

    if image_format == "JPEG":
        return [
            encode(rgb, exif=exif, icc_profile=profile),
            encode(rgb, progressive=True, subsampling=0),
            encode(rgb.convert("L"), restart_marker_blocks=2),
            encode(rgb.convert("CMYK")),
            encode(noise, optimize=True),
        ]
    if image_format == "PNG":
        text = PngImagePlugin.PngInfo()
        text.add_text("comment", "word " * 50, zip=True)
        return [
            encode(rgb, exif=exif, icc_profile=profile, pnginfo=text),
            encode(alpha),
            encode(deep),
            encode(rgb.quantize(16), transparency=3),
            encode(rgb.convert("1")),
            encode(rgb, **frames),
            encode(noise.convert("L"), transparency=7),
        ]
    if image_format == "WEBP":
        return [
            encode(rgb, exif=exif, icc_profile=profile),
            encode(alpha, lossless=True),
            encode(alpha, quality=50),
            encode(rgb, **frames),
        ]
    if image_format == "GIF":
        return [encode(rgb.quantize(64)), encode(rgb.quantize(8), transparency=2), encode(rgb, **frames)]
    if image_format == "TIFF":
        tiled = TiffImagePlugin.ImageFileDirectory_v2()
        tiled[TiffImagePlugin.ROWSPERSTRIP] = 8
        return [
            encode(rgb, exif=exif, icc_profile=profile),
            encode(rgb, compression="tiff_lzw", tiffinfo=tiled),
            encode(rgb, compression="tiff_adobe_deflate"),
            encode(rgb, compression="jpeg"),
            encode(noise, compression="packbits"),
            encode(rgb.convert("1"), compression="group4"),
            encode(deep, compression="tiff_deflate"),
            encode(Image.fromarray(np.linspace(0, 1, 600, dtype=np.float32).reshape(20, 30))),
            encode(rgb, big_tiff=True),
            encode(rgb.convert("CMYK")),
            encode(rgb.convert("LAB")),
            encode(alpha, **frames),
        ]
    return [encode(rgb), encode(rgb.quantize(16)), encode(rgb.convert("1")), encode(rgb.convert("L"))]


def flip_bits(content: bytearray, rng: random.Random) -> None:
    """Turns over one bit to some hundred, mostly few, half of the time in the first 200 bytes."""
    reach = min(200, len(content)) if rng.random() < 0.5 else len(content)
    for _ in range(1 << rng.randrange(8)):
        content[rng.randrange(reach)] ^= 1 << rng.randrange(8)


def cut(content: bytearray, rng: random.Random) -> None:
    """Drops the end, anything from a byte to all."""
    del content[rng.randrange(len(content)) :]


def swap_header(content: bytearray, rng: random.Random) -> None:
    """Puts the start of another file in front, over as many bytes or in addition."""
    other = rng.choice(originals(rng.choice(FORMATS)))
    size = rng.choice((2, 4, 8, 16, 32, 64))
    content[: size * rng.randrange(2)] = other[:size]


def splice(content: bytearray, rng: random.Random) -> None:
    """Drops, repeats or moves a piece."""
    start, end = sorted(rng.randrange(len(content)) for _ in range(2))
    piece = bytes(content[start:end]) * rng.choice((0, 2, 2, 30))
    content[start:end] = piece
    if rng.random() < 0.3:
        place = rng.randrange(len(content) + 1)
        content[place:place] = content[: rng.randrange(1, 64)]


def set_number(content: bytearray, rng: random.Random) -> None:
    """Writes numbers that are on the edge of something, at any place."""
    for _ in range(rng.randrange(1, 4)):
        numbers = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x10000, (1 << 31) - 1, 1 << 31, (1 << 64) - 1, len(content))
        size, order = rng.choice((1, 2, 4, 8)), rng.choice(("big", "little"))
        number = rng.choice(numbers) & ((1 << 8 * size) - 1)
        place = rng.randrange(min(400, len(content)) if rng.random() < 0.7 else len(content))
        content[place : place + size] = number.to_bytes(size, order)


def claim_size(content: bytearray, rng: random.Random) -> None:
    """Has the header tell of another size, mostly a huge one, and makes it otherwise consistent."""
    sizes = (0, 1, 59, 61, 1000, 8191, 11000, 11313, 16383, 30000, 65535, 1 << 20, (1 << 31) - 1, (1 << 32) - 1)
    width, height = rng.choice(sizes), rng.choice(sizes)
    short = struct.pack(">HH", height & 0xFFFF, width & 0xFFFF)
    if content[:4] == b"\x89PNG":
        content[16:24] = struct.pack(">II", width, height)
        content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    elif content[:2] == b"\xff\xd8":
        for marker in (b"\xff\xc0", b"\xff\xc2"):
            if (place := content.find(marker)) >= 0:
                content[place + 5 : place + 9] = short
    elif content[:3] == b"GIF":
        content[6:10] = struct.pack("<HH", width & 0xFFFF, height & 0xFFFF)
        if (place := content.find(b",", 13)) >= 0 and rng.random() < 0.5:
            content[place + 5 : place + 9] = struct.pack("<HH", width & 0xFFFF, height & 0xFFFF)
    elif content[:2] == b"BM":
        content[18:26] = struct.pack("<II", width, height)
    elif content[:4] == b"RIFF":
        if content[12:16] == b"VP8X":
            content[24:30] = (width & 0xFFFFFF).to_bytes(3, "little") + (height & 0xFFFFFF).to_bytes(3, "little")
        elif content[12:16] == b"VP8L":
            content[21:25] = struct.pack("<I", (width & 0x3FFF) | (height & 0x3FFF) << 14)
        else:
            content[26:30] = struct.pack("<HH", width & 0x3FFF, height & 0x3FFF)
    elif content[:4] in (b"II*\0", b"MM\0*"):
        set_tiff_tags(content, rng)


def set_tiff_tags(content: bytearray, rng: random.Random) -> None:
    """Rewrites entries of a TIFF's directory: sizes, strips, tiles, bits, anything."""
    order = "<" if content[:2] == b"II" else ">"
    (start,) = struct.unpack_from(order + "I", content, 4)
    if start + 2 > len(content):
        return
    (entries,) = struct.unpack_from(order + "H", content, start)
    for _ in range(rng.randrange(1, 5)):
        place = start + 2 + 12 * rng.randrange(max(1, entries))
        if place + 12 > len(content):
            continue
        number = rng.choice((0, 1, 3, 8, 16, 256, 11000, 65535, 1 << 20, 1 << 30, (1 << 32) - 1))
        if rng.random() < 0.2:
            tags = (256, 257, 258, 259, 262, 273, 277, 278, 279, 284, 317, 322, 323, 324, 325, 339, 347, 34675)
            struct.pack_into(order + "H", content, place, rng.choice(tags))
        if rng.random() < 0.2:
            struct.pack_into(order + "I", content, place + 4, number)
        else:
            struct.pack_into(order + "HI", content, place + 2, rng.choice((3, 4)), rng.choice((1, 1, 1, 2, 100)))
            struct.pack_into(order + "I", content, place + 8, number)


MUTATIONS = (flip_bits, cut, swap_header, splice, set_number, claim_size)


def case(seed: int, number: int) -> tuple[str, bytes, str | None]:
    """What was done to what, the damaged file, and the ending of the name it is opened by (None: from memory)."""
    rng = random.Random(seed << 32 | number)
    image_format = FORMATS[number % len(FORMATS)]
    which = rng.randrange(len(originals(image_format)))
    content = bytearray(originals(image_format)[which])
    done = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        mutate = rng.choice(MUTATIONS)
        done.append(mutate.__name__)
        if content:
            mutate(content, rng)
    suffix = rng.choice(SUFFIXES) if rng.random() < 0.1 else None
    return f"{image_format} {which} {'+'.join(done)}", bytes(content), suffix


def check(source: bytes | Path) -> tuple[str, str | None]:
    """Opens a damaged file: what came of it, and what is wrong with that."""
    start, before = time.process_time(), memory()
    wrong = None
    try:
        image = open_image(source)
        outcome = "a picture"
        if image.mode != "RGB" or not image.width or not image.height:
            wrong = f"a picture of mode {image.mode} and size {image.size}"
        del image
    except ImageError as error:
        outcome = type(error).__name__
    except Exception:
        outcome, wrong = "another error", traceback.format_exc()
    seconds, grown = time.process_time() - start, peak_memory() - before
    if seconds > MAX_SECONDS:
        wrong = f"{outcome} after {seconds:.1f} s"
    if grown > MAX_BYTES:
        wrong = f"{outcome} with {grown / 1e9:.2f} GB"
    return outcome, wrong


def memory() -> int:
    """Bytes that this process holds now; where that cannot be told, the most it has ever held."""
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * resource.getpagesize() if status.exists() else peak_memory()


def peak_memory() -> int:
    """The most bytes that this process has ever held, or since `forget_peak`."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if "VmHWM" in line)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def forget_peak() -> None:
    """Has `peak_memory` start anew, where Linux allows it; elsewhere only a new highest peak is seen."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0, or 1 if a file did harm."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=3000, help="how many (3000)")
    parser.add_argument("--seed", type=int, default=0, help="which ones (0)")
    parser.add_argument("--start", type=int, default=0, help="the number of the first one (0)")
    parser.add_argument("--save", type=Path, help="a folder for the files that do harm")
    arguments = parser.parse_args(argv)
    warnings.simplefilter("ignore")  # Pillow's, of damage
    outcomes: Counter[str] = Counter()
    failures, slowest = 0, 0.0
    with tempfile.TemporaryDirectory() as folder:
        for number in range(arguments.start, arguments.start + arguments.count):
            what, content, suffix = case(arguments.seed, number)
            source: bytes | Path = content
            if suffix is not None:
                source = Path(folder, f"picture{suffix}")
                source.write_bytes(content)
            forget_peak()
            begun = time.process_time()
            outcome, wrong = check(source)
            slowest = max(slowest, time.process_time() - begun)
            outcomes[outcome] += 1
            if wrong:
                failures += 1
                print(f"{number} ({what}): {wrong}", flush=True)
                if arguments.save:
                    arguments.save.mkdir(parents=True, exist_ok=True)
                    (arguments.save / f"{arguments.seed}-{number}").write_bytes(content)
    counts = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common())
    print(f"{arguments.count} files of seed {arguments.seed}: {counts}; slowest {slowest:.2f} s; {failures} did harm")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
