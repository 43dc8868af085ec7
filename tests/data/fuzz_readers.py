"""Damaged and hostile data files by the thousand: `python tests/data/fuzz_readers.py --count 20000 --seed 1`.

Each must end in records and problems, or in a `DataError` or `ConfigError`, within 20 s; a crash of the interpreter
shows in the exit code. Case N of a seed is always the same one: `--start N --count 1` repeats it.
"""

import argparse
import base64
import faulthandler
import io
import json
import logging
import os
import random
import shutil
import signal
import struct
import sys
import tarfile
import tempfile
import time
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from safetensors.numpy import save as save_safetensors

from vlm_caption.captioning.caption_file import CaptionFile
from vlm_caption.config.run_config import RunConfig
from vlm_caption.core.errors import ConfigError, DataError, ImageError
from vlm_caption.data import Place, Problem, open_corpus, open_vectors, read_records
from vlm_caption.metrics.coco_files import read_references, read_results

MAX_SECONDS = 20
_CAPTIONS = ("A dog, on a mat.", 'A sign that says "stop"', "小さな犬")

Files = dict[str, bytes]


@cache
def picture() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 3), "red").save(file, "PNG")
    return file.getvalue()


def _tar(members: Files) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def _zip(members: Files) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def _parquet(columns: dict) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


def _array(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


@cache
def originals() -> dict[str, tuple[Files, str]]:
    """Good files of each format, by a name that begins with the format's: the files, and the one to damage."""
    names = ("a.png", "b.png", "c.png")
    rows = list(zip(names, _CAPTIONS, strict=True))
    encoded = base64.b64encode(picture() * 2).decode()
    images = [{"id": number, "file_name": name} for number, name in enumerate(names)]
    annotations = [{"image_id": number, "caption": text} for number, text in enumerate(_CAPTIONS)]
    coco = _json({"images": images, "annotations": annotations})
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A dog"}]
    talk = [{"image": name, "conversations": turns} for name in names]
    karpathy = {"images": [{"filename": n, "split": "train", "sentences": [{"raw": t}]} for n, t in rows]}
    tar_json = {"a.png": picture(), "a.json": _json({"caption": "A"}), "b.png": picture(), "b.txt": b"B"}
    struct_rows = [{"bytes": picture(), "path": "a.png"}, {"bytes": None, "path": "b.png"}]
    return {
        "table csv": ({"t.csv": b"image,caption\n" + b"".join(f'{n},"{t}"\n'.encode() for n, t in rows)}, "t.csv"),
        "table base64": ({"t.csv": f"image,caption\n{encoded},A dog\na.png,B\n".encode()}, "t.csv"),
        "table tsv": ({"t.tsv": b"image\tcaption\n" + b"".join(f"{n}\t{t}\n".encode() for n, t in rows)}, "t.tsv"),
        "table jsonl": ({"t.jsonl": b"".join(_json({"image": n, "caption": t}) + b"\n" for n, t in rows)}, "t.jsonl"),
        "table parquet": ({"t.parquet": _parquet({"image": names, "caption": _CAPTIONS})}, "t.parquet"),
        "dataset struct": ({"data.parquet": _parquet({"image": struct_rows, "caption": ["A", "B"]})}, "data.parquet"),
        "table zip": (
            {
                "captions.csv": b"image,caption\na.png,A\nb.png,B\n",
                "p.zip": _zip(dict.fromkeys(("a.png", "b.png"), picture())),
            },
            "p.zip",
        ),
        "coco": ({"captions_train2017.json": coco}, "captions_train2017.json"),
        "karpathy": ({"dataset.json": _json(karpathy)}, "dataset.json"),
        "llava": ({"talk.json": _json(talk)}, "talk.json"),
        "llava lines": ({"talk.jsonl": b"".join(_json(entry) + b"\n" for entry in talk)}, "talk.jsonl"),
        "json": ({"pairs.json": _json([{"image": n, "caption": t} for n, t in rows])}, "pairs.json"),
        "webdataset": ({"0.tar": _tar(tar_json)}, "0.tar"),
        "flickr8k": ({"Flickr8k.token.txt": b"a.png#0\tA dog\nb.png#0\tA cat\n"}, "Flickr8k.token.txt"),
        "flickr30k": ({"results.csv": b"image_name| comment_number| comment\na.png| 0| A dog\n"}, "results.csv"),
        "text_files": ({"a.txt": b"A dog\nOne dog\n"}, "a.txt"),
        "vectors npy": ({"v.npy": _array(np.ones((3, 4), np.float32))}, "v.npy"),
        "vectors safetensors": ({"v.safetensors": save_safetensors({"a": np.ones(4, np.float32)})}, "v.safetensors"),
        "config": ({"c.yaml": b"data:\n  path: &a x\n  limit: 5\ntraining: {seed: 1}\nstages: []\n"}, "c.yaml"),
        "captions": ({"o.jsonl": b'{"image": "a.png", "caption": "A dog", "score": -1.5}\n'}, "o.jsonl"),
        "results": ({"r.json": _json(annotations)}, "r.json"),
        "references": ({"r.json": coco}, "r.json"),
    }


TOKENS = [
    *(b"[" * 5000, b"{" * 5000, b'{"a":' * 3000, b"9" * 5000, b"-1e999", b"NaN", b"null", b"[]", b"{}", b"true"),
    *(b'"', b'""', b",", b";", b"\t", b"\r", b"\n", b"\r\n", b"|", b"#0\t", b"\0", b"\xff", b"\xef\xbb\xbf", b" "),
    *(b"\\ud800", "\u2028".encode(), b"../../etc/passwd", b"/dev/zero", b"/etc/passwd", b"a.png", b"x" * 300, b"="),
    *(
        b"&a [*a]",
        b"*a",
        b"!!python/object:os.system x",
        b"2001-99-99",
        b"1:2:3",
        b"? [a]\n: b",
        b"<image>",
        b"(" * 500,
    ),
    *(struct.pack("<Q", 2**63), struct.pack("<I", 2**31), struct.pack("<i", -1), b"}" * 300, b"'descr': '<f8'", b"%"),
]


def mutate(content: bytes, draw: random.Random) -> bytes:
    """Damages a file in one to four places."""
    data = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 4))):
        place, length = draw.randrange(len(data) + 1), draw.choice((1, 1, 2, 8, 40))
        match draw.randrange(7):
            case 0:
                del data[place:]
            case 1:
                data[place : place + length] = draw.randbytes(length)
            case 2:
                del data[place : place + length]
            case 3:
                data[place:place] = draw.choice(TOKENS)
            case 4:
                data[place : place + length] = draw.choice(TOKENS)
            case 5:
                other = draw.randrange(len(data) + 1)
                data[place:place] = data[other : other + draw.choice((4, 40, 400))]
            case 6 if data:
                data[place % len(data)] ^= 1 << draw.randrange(8)
    return bytes(data)


def case(seed: int, number: int) -> tuple[str, Files]:
    """The name and the files of a case."""
    draw = random.Random(f"{seed} {number}")
    name = draw.choice(list(originals()))
    files, damaged = originals()[name]
    return name, files | {damaged: mutate(files[damaged], draw)}


def read_corpus(path: Path, name: str) -> str:
    """Reads records and pictures, and now and then a whole corpus through the cache."""
    kind = name.split()[0]
    count = Counter()
    for record in read_records(path, kind):
        count[type(record).__name__] += 1
        if not isinstance(record, Problem) and record.image:
            try:
                Place.parse(record.image).read(1 << 20)
            except ImageError:
                count["unreadable"] += 1
    corpus = open_corpus(path, kind, on_bad_record="skip", dev_share=0)
    taken = sum(len(corpus.load(split, on_missing=lambda problem: None)) for split in corpus.splits)
    if not taken + sum(1 for _ in corpus.problems()) + sum(corpus.dropped.values()):
        raise RuntimeError("nothing is taken or told")
    return f"{name}: read"


def consume(name: str, folder: Path, file: Path) -> str:
    """Reads a case's file with what is made for it."""
    readers: dict[str, Callable[[Path], object]] = {
        "vectors": lambda path: open_vectors(path)[:],
        "config": lambda path: RunConfig.load(path),
        "captions": lambda path: CaptionFile(path).__exit__(None, None, None),
        "results": read_results,
        "references": read_references,
    }
    kind = name.split()[0]
    try:
        if kind in readers:
            readers[kind](file)
            return f"{name}: read"
        one_file = kind in ("table", "json", "llava", "karpathy") and file.suffix != ".zip"
        return read_corpus(file if one_file else folder, name)
    except (DataError, ConfigError) as error:
        if "\n" in str(error):
            raise RuntimeError("the message has several lines") from error
        return f"{name}: refused"


def check(seed: int, number: int) -> tuple[str, str | None]:
    """How a case ends, and what harm it did."""

    def too_slow(signum, frame):
        raise TimeoutError(f"after {MAX_SECONDS} s")

    name, files = case(seed, number)
    signal.signal(signal.SIGALRM, too_slow)
    with tempfile.TemporaryDirectory(prefix="fuzz-readers-") as scratch:
        folder = Path(scratch, "corpus")
        folder.mkdir()
        for photo in ("a.png", "b.png", "c.png") if "p.zip" not in files else ():
            (folder / photo).write_bytes(picture())
        for path, content in files.items():
            (folder / path).write_bytes(content)
        os.environ["VLM_CAPTION_CACHE"] = str(Path(scratch, "cache"))
        signal.alarm(MAX_SECONDS)
        try:
            return consume(name, folder, folder / originals()[name][1]), None
        except Exception:
            return f"{name}: harm", traceback.format_exc()
        finally:
            signal.alarm(0)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", type=Path, help="a folder for the files of cases that do harm")
    options = parser.parse_args(arguments)
    ends: Counter[str] = Counter()
    harms = 0
    began = time.monotonic()
    for number in range(options.start, options.start + options.count):
        end, harm = check(options.seed, number)
        ends[end] += 1
        if harm is not None:
            harms += 1
            print(f"case {number} of seed {options.seed} ({end}):\n{harm}", flush=True)
            if options.save is not None:
                folder = options.save / str(number)
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
                for path, content in case(options.seed, number)[1].items():
                    (folder / path).write_bytes(content)
    for end, count in sorted(ends.items()):
        print(f"{count:7,} {end}")
    print(f"{options.count:,} cases in {time.monotonic() - began:.0f} s, {harms} did harm")
    return 1 if harms else 0


if __name__ == "__main__":
    faulthandler.enable()
    logging.disable(logging.CRITICAL)
    sys.exit(main())
