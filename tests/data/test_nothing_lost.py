"""What goes in comes out: corpora as careless tools write them, with odd names and captions.

Every record is taken or told as a problem, none is merged into another, and a caption that is taken is the one that
was written.
"""

import csv
import io
import json
import tarfile
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vlm_caption.data import Problem, Record, clean_caption, read_records

# Without "/", "\0" and what no file system takes; a name is a path in every format.
LETTERS = st.sampled_from("abcÄé小 .,;|'\"#%@+=&()[]{}~$!-_\\") | st.characters(
    exclude_categories=["Cs", "Cc"], exclude_characters="/\\"
)
STEMS = st.text(LETTERS, min_size=1, max_size=8).filter(lambda stem: stem.strip(" .") == stem and stem[0] != "-")
CAPTIONS = st.text(
    st.sampled_from("ab c,;|\t\"'\\#\r\n\u2028\x85=") | st.characters(exclude_categories=["Cs"]),
    min_size=1,
    max_size=20,
).filter(lambda text: clean_caption(text))
ONE_LINE = CAPTIONS.map(lambda text: " ".join(text.split())).filter(lambda text: clean_caption(text))
fuzzy = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def rows(captions):
    """A corpus: one caption for each of a few names that differ whatever the case."""
    pairs = st.lists(st.tuples(STEMS, captions), min_size=1, max_size=5, unique_by=lambda pair: pair[0].lower())
    return pairs.map(lambda pairs: [(f"{stem}.jpg", caption) for stem, caption in pairs])


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("corpora")


def write(folder: Path, pairs, files: dict[str, bytes]) -> Path:
    corpus = Path(tempfile.mkdtemp(dir=folder))
    for name, _ in pairs:
        (corpus / name).write_bytes(name.encode())
    for name, content in files.items():
        (corpus / name).write_bytes(content)
    return corpus


def come_out(path: Path, kind: str) -> tuple[list[tuple[str, str]], list[Problem]]:
    """The pairs of picture and caption that are read, and the problems."""
    taken, problems = [], []
    for record in read_records(path, kind):
        if isinstance(record, Record):
            taken += [(record.image, clean_caption(caption)) for caption in record.captions]
        else:
            problems.append(record)
    return taken, problems


def expect(corpus: Path, pairs) -> list[tuple[str, str]]:
    return [(f"{corpus}/{name}", clean_caption(caption)) for name, caption in pairs]


@given(pairs=rows(CAPTIONS), separator=st.sampled_from([",", ";", "|", "\t"]), bom=st.booleans(), end=st.booleans())
@fuzzy
def test_a_table_that_is_quoted_well_comes_out_whole(scratch, pairs, separator, bom, end):
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter=separator, lineterminator="\r\n" if end else "\n")
    writer.writerows([("image", "caption"), *pairs])
    content = ("\ufeff" * bom + buffer.getvalue()).encode()
    corpus = write(scratch, pairs, {"captions.csv": content})
    taken, problems = come_out(corpus / "captions.csv", "table")
    assert not problems
    assert taken == expect(corpus, pairs)


@given(pairs=rows(ONE_LINE), separator=st.sampled_from([",", "\t"]), blank=st.booleans())
@fuzzy
def test_of_a_table_that_nobody_quoted_every_row_is_taken_or_told(scratch, pairs, separator, blank):
    pairs = [*pairs, ("the last one.jpg", "A dog")]  # without a good row, the table as a whole is refused
    end = "\n\n" if blank else "\n"
    lines = [separator.join(pair) for pair in [("image", "caption"), *pairs]]
    name = "captions.tsv" if separator == "\t" else "captions.csv"
    corpus = write(scratch, pairs, {name: (end.join(lines) + end).encode()})
    taken, problems = come_out(corpus / name, "table")
    assert len(taken) + len(problems) == len(pairs)
    if separator == "\t":
        written = {f"{corpus}/{name}": clean_caption(caption) for name, caption in pairs}
        assert all(caption in (written[image], unquoted(written[image])) for image, caption in taken)


def unquoted(caption: str) -> str:
    """A caption that happens to be written as a quoted field."""
    return clean_caption(next(csv.reader([caption], delimiter="\t"), [""])[0])


@given(pairs=rows(CAPTIONS), escaped=st.booleans())
@fuzzy
def test_json_comes_out_whole(scratch, pairs, escaped):
    lines = [json.dumps({"image": name, "caption": caption}, ensure_ascii=escaped) for name, caption in pairs]
    images = [{"id": number, "file_name": name} for number, (name, _) in enumerate(pairs)]
    annotations = [{"image_id": number, "caption": caption} for number, (_, caption) in enumerate(pairs)]
    split = [{"filename": name, "split": "train", "sentences": [{"raw": caption}]} for name, caption in pairs]
    turn = {"from": "human", "value": "<image>"}
    talk = [{"image": name, "conversations": [turn, {"from": "gpt", "value": text}]} for name, text in pairs]
    files = {
        "table": ("captions.jsonl", "\n".join(lines)),
        "json": ("pairs.json", f"[{','.join(lines)}]"),
        "coco": ("captions.json", json.dumps({"images": images, "annotations": annotations}, ensure_ascii=escaped)),
        "karpathy": ("dataset.json", json.dumps({"images": split}, ensure_ascii=escaped)),
        "llava": ("talk.json", json.dumps(talk, ensure_ascii=escaped)),
    }
    corpus = write(scratch, pairs, {name: text.encode() for name, text in files.values()})
    for kind, (name, _) in files.items():
        taken, problems = come_out(corpus / name, kind)
        assert not problems
        assert taken == expect(corpus, pairs)


@given(pairs=rows(CAPTIONS))
@fuzzy
def test_tokens_and_bars_come_out_line_by_line(scratch, pairs):
    pairs = [(name.replace("|", "_"), caption.replace("\n", " ")) for name, caption in pairs]
    pairs = list({name.lower(): (name, caption) for name, caption in pairs}.values())
    tokens = "".join(f"{name}#0\t{caption}\n" for name, caption in pairs)
    results = "".join(f"{name}| 0| {caption}\n" for name, caption in pairs)
    corpus = write(scratch, pairs, {"Flickr8k.token.txt": tokens.encode(), "results.csv": results.encode()})
    for kind in ("flickr8k", "flickr30k"):
        taken, problems = come_out(corpus, kind)
        assert not problems
        assert taken == expect(corpus, pairs)


@given(
    pairs=rows(ONE_LINE), end=st.sampled_from(["\n", "\r\n", "\r"]), suffix=st.sampled_from(["txt", "TXT", "caption"])
)
@fuzzy
def test_texts_beside_pictures_come_out_line_by_line(scratch, pairs, end, suffix):
    texts = {f"{name[:-4]}.{suffix}": f"{caption}{end}{caption} again{end}".encode() for name, caption in pairs}
    corpus = write(scratch, pairs, texts)
    visible = [(name, caption) for name, caption in pairs if not name.startswith(".")]
    if visible:
        taken, problems = come_out(corpus, "text_files")
        assert not problems
        expected = [(name, text) for name, caption in visible for text in (caption, f"{caption} again")]
        assert sorted(taken) == sorted(expect(corpus, expected))


@given(pairs=rows(CAPTIONS))
@fuzzy
def test_a_tar_of_files_with_any_names_gives_every_picture_or_tells_of_it(scratch, pairs):
    corpus = write(scratch, [], {})
    with tarfile.open(corpus / "0.tar", "w") as tar:
        for name, caption in pairs:
            for member, content in ((name, name.encode()), (f"{name[:-4]}.txt", caption.encode())):
                entry = tarfile.TarInfo(member)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    taken, problems = come_out(corpus, "webdataset")
    visible = [pair for pair in pairs if not pair[0].startswith(".")]
    assert len(taken) + len(problems) == len(visible)
    captions = dict(pairs)
    for image, caption in taken:
        stretch = image.rpartition("@")[2].partition("+")
        with (corpus / "0.tar").open("rb") as file:
            file.seek(int(stretch[0]))
            name = file.read(int(stretch[2])).decode()
        assert caption == clean_caption(captions[name])
