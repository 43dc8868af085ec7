"""Corpora as other projects and careless tools write them."""

import io
import json
import tarfile
import zipfile

import datasets
import numpy as np
import pytest
from datasets import Dataset
from PIL import Image

from vlm_caption.data import DataError, Place, load_captions, open_corpus

NAMES = ("a.png", "b.png")
CAPTIONS = (["A dog."], ["A cat."])


def encode(name: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((4, 3, 3), ord(name[0]), np.uint8)).save(file, "PNG")
    return file.getvalue()


PHOTOS = {name: encode(name) for name in NAMES}


@pytest.fixture
def photos(tmp_path):
    for name, content in PHOTOS.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


def read(path, **options) -> dict[str, list[str]]:
    """The captions by the picture that is really behind each place."""
    contents = {content: name for name, content in PHOTOS.items()}
    dataset = load_captions(path, dev_share=0, **options)
    return {contents[Place.parse(row["image"]).read()]: row["captions"] for row in dataset}


EXPECTED = dict(zip(NAMES, CAPTIONS, strict=True))


@pytest.mark.parametrize("as_list", [False, True])
def test_lavis_lists_images_with_captions(photos, as_list):
    entries = [{"image": n, "caption": c if as_list else c[0], "image_id": f"coco_{n}"} for n, c in EXPECTED.items()]
    (photos / "flickr_train.json").write_text(json.dumps(entries))
    corpus = open_corpus(photos)
    assert corpus.format == "json"
    assert read(photos) == read(photos / "flickr_train.json") == EXPECTED


def test_clipcap_lists_ids_of_coco(tmp_path):
    (tmp_path / "train2014").mkdir()
    (tmp_path / "val2014").mkdir()
    (tmp_path / "train2014" / "COCO_train2014_000000000009.jpg").write_bytes(PHOTOS["a.png"])
    (tmp_path / "val2014" / "COCO_val2014_000000000012.jpg").write_bytes(PHOTOS["b.png"])
    entries = [{"image_id": "9", "caption": "A dog.", "id": 1}, {"image_id": 12, "caption": "A cat.", "id": 2}]
    (tmp_path / "train_caption.json").write_text(json.dumps(entries))
    assert read(tmp_path / "train_caption.json") == EXPECTED


def test_a_list_of_results_beside_a_corpus_makes_it_no_other(photos):
    (photos / "captions.csv").write_text("image,caption\na.png,A dog.\nb.png,A cat.\n")
    (photos / "results.json").write_text(json.dumps([{"image_id": 1, "caption": "x"}]))
    assert open_corpus(photos).format == "table"


def turns(answer, asked="<image>\nWhat?", roles=("human", "gpt"), names=("from", "value")):
    return [{names[0]: role, names[1]: text} for role, text in zip(roles, (asked, answer), strict=True)]


@pytest.mark.parametrize(
    "sample",
    [
        lambda name, answer: {"image": name, "conversations": turns(answer)},
        lambda name, answer: {"image": [name], "conversations": turns(answer)},
        lambda name, answer: {"images": [name], "conversations": turns(answer, roles=("user", "assistant"))},
        lambda name, answer: {
            "images": [name],
            "messages": turns(answer, "What?", ("user", "assistant"), ("role", "content")),
        },
        # As a table is written whose rows have other fields.
        lambda name, answer: {
            "image": None,
            "images": [name],
            "conversations": None,
            "messages": [
                {"from": None, "value": None, "role": role, "content": text}
                for role, text in (("user", "<image>\nWhat?"), ("assistant", answer))
            ],
        },
        lambda name, answer: {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": [{"type": "image", "image": name}, {"type": "text", "text": "What?"}]},
                {"role": "assistant", "content": [{"type": "text", "text": answer}]},
            ]
        },
    ],
)
@pytest.mark.parametrize("lines", [False, True])
def test_conversations_of_every_kind_are_read(photos, sample, lines):
    samples = [sample(name, captions[0]) for name, captions in EXPECTED.items()]
    name = "talk.jsonl" if lines else "talk.json"
    (photos / name).write_text("\n".join(map(json.dumps, samples)) if lines else json.dumps(samples))
    assert open_corpus(photos / name).format == "llava"
    assert read(photos) == EXPECTED


def image_lists(images):
    features = {
        "images": datasets.List(datasets.Image()),
        "texts": datasets.List({"user": datasets.Value("string"), "assistant": datasets.Value("string")}),
    }
    texts = [[{"user": "What?", "assistant": c[0]}, {"user": "Else?", "assistant": "No."}] for c in CAPTIONS]
    return Dataset.from_dict({"images": images, "texts": texts}, features=datasets.Features(features))


def test_parquet_of_nanovlm_has_lists_of_images_and_texts(tmp_path):
    images = [[{"bytes": content, "path": None}] for content in PHOTOS.values()]
    image_lists(images).to_parquet(tmp_path / "train-00000.parquet")
    assert read(tmp_path) == EXPECTED
    rows = load_captions(tmp_path, dev_share=0, questions=True)
    assert rows[0]["questions"] == ["What?", "What?\nA dog.\nElse?"]  # what was said before comes first
    assert rows[0]["captions"] == ["A dog.", "No."]


def test_a_row_of_several_pictures_is_a_problem(tmp_path):
    both = [{"bytes": content, "path": None} for content in PHOTOS.values()]
    image_lists([both, both[1:]]).to_parquet(tmp_path / "train-00000.parquet")
    problems = []
    assert len(load_captions(tmp_path, dev_share=0, on_problem=problems.append)) == 1
    assert "several" in problems[0].reason


@pytest.mark.parametrize("separator", [";", "|", "\t", ","])
def test_the_separator_of_a_csv_is_found(photos, separator):
    lines = [
        separator.join(row) for row in [("image", "caption", "x"), ("a.png", "A dog.", "1"), ("b.png", "A cat.", "")]
    ]
    (photos / "t.csv").write_text("\n".join(lines))
    assert open_corpus(photos / "t.csv").format == "table"
    assert read(photos / "t.csv") == EXPECTED


@pytest.mark.parametrize("name", ["{stem}.TXT", "{stem}.caption", "{stem}.png.txt", "{stem}.PNG.TXT"])
def test_texts_beside_pictures_may_be_called_otherwise(photos, name):
    for picture, captions in EXPECTED.items():
        (photos / name.format(stem=picture[0])).write_text(captions[0])
    assert read(photos) == EXPECTED


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("inside", ["", "photos/"])
@pytest.mark.parametrize("given", [False, True])
def test_pictures_may_be_in_a_zip(tmp_path, compression, inside, given):
    with zipfile.ZipFile(tmp_path / "photos.zip", "w", compression) as archive:
        for name, content in PHOTOS.items():
            archive.writestr(f"{inside}{name}", content)
    (tmp_path / "t.csv").write_text("image,caption\na.png,A dog.\nb.png,A cat.\n")
    images = tmp_path / "photos.zip" if given else None
    assert read(tmp_path / "t.csv", images=images) == EXPECTED


def test_a_zip_beside_the_table_of_a_subfolder_is_read_again_too(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "metadata.csv").write_text("file_name,caption\na.png,A dog.\nb.png,A cat.\n")
    for order in (["a.png", "b.png"], ["b.png", "a.png"]):
        with zipfile.ZipFile(tmp_path / "train" / "photos.zip", "w") as archive:
            for name in order:
                archive.writestr(name, PHOTOS[name])
        assert read(tmp_path) == EXPECTED


@pytest.mark.parametrize("given", [False, True])
def test_a_zip_that_was_packed_again_is_read_again(tmp_path, given):
    (tmp_path / "t.csv").write_text("image,caption\na.png,A dog.\nb.png,A cat.\n")
    for order in (["a.png", "b.png"], ["b.png", "a.png"]):
        with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
            for name in order:
                archive.writestr(name, PHOTOS[name])
        assert read(tmp_path / "t.csv", images=tmp_path / "photos.zip" if given else None) == EXPECTED


def test_a_picture_that_is_not_in_the_zip_is_told(tmp_path):
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.writestr("a.png", PHOTOS["a.png"])
    (tmp_path / "t.csv").write_text("image,caption\na.png,A dog.\nb.png,A cat.\n")
    with pytest.raises(DataError, match=r"row 3: the picture b\.png is not in .*photos\.zip"):
        load_captions(tmp_path / "t.csv")
    (tmp_path / "photos.zip").write_bytes(b"PK no zip")
    with pytest.raises(DataError, match="zip archive is damaged"):
        load_captions(tmp_path / "t.csv", images=tmp_path / "photos.zip")


def test_windows_paths_and_spaces_around_names_are_understood(photos):
    (photos / "photos").mkdir()
    (photos / "a.png").rename(photos / "photos" / "a.png")
    (photos / "t.csv").write_text("image;caption\nphotos\\a.png;A dog.\n b.png ;A cat.\n")
    assert read(photos / "t.csv") == EXPECTED


def test_a_stray_quotation_mark_merges_no_rows(photos):
    (photos / "t.csv").write_text('image,caption\na.png,"Hello\nb.png,A cat."\na.png,A dog.\n')
    problems = []
    dataset = load_captions(photos / "t.csv", dev_share=0, on_problem=problems.append)
    assert {row["image"][-5:]: row["captions"] for row in dataset} == {"b.png": ['A cat."'], "a.png": ["A dog."]}
    assert [problem.where[-5:] for problem in problems] == ["row 2"]
    (photos / "t.tsv").write_text('image\tcaption\na.png\t"Hello\nb.png\t"Stop" it says\n')
    assert read(photos / "t.tsv") == {"a.png": ['"Hello'], "b.png": ['"Stop" it says']}


def test_the_first_line_of_results_without_a_header_is_a_record(photos):
    (photos / "results.csv").write_text("a.png| 0| A dog.\nb.png| 0| A cat.\n")
    assert read(photos) == EXPECTED


def write_tar(path, *members):
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


def test_names_with_dots_in_a_tar_are_names(tmp_path):
    a, b = PHOTOS.values()
    members = [("x.1.png", a), ("x.1.txt", b"A dog."), ("x.2.png", b), ("x.2.txt", b"A cat.")]
    write_tar(tmp_path / "0.tar", *members)
    assert read(tmp_path) == EXPECTED
    write_tar(tmp_path / "0.tar", ("x.1.png", a), ("y.png", b), ("y.txt", b"A cat."))
    with pytest.raises(DataError, match=r"x\.1\.png: it has no caption of its own name"):
        load_captions(tmp_path)


def test_two_pictures_of_one_name_in_a_tar_are_two(tmp_path):
    a, b = PHOTOS.values()
    write_tar(tmp_path / "0.tar", ("1.png", a), ("1.txt", b"A dog."), ("1.png", b), ("1.txt", b"A cat."))
    assert read(tmp_path) == EXPECTED


def test_linked_folders_and_lonely_texts_are_told(photos, tmp_path_factory, caplog):
    caplog.set_level("INFO", "vlm_caption")
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (photos / "more").symlink_to(elsewhere)
    (photos / "README.txt").write_text("Hello")
    for picture, captions in EXPECTED.items():
        (photos / f"{picture[0]}.txt").write_text(captions[0])
    assert read(photos) == EXPECTED
    assert any("1 linked folders" in message for message in caplog.messages)
    assert any("1 texts without a picture" in message for message in caplog.messages)
