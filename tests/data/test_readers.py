import csv
import json
import os
import tarfile

import pandas as pd
import pytest
from datasets import Dataset, Features, List, Value
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from vlm_caption.data import FORMATS, Cleaning, DataError, Format, clean_caption, load_captions, open_corpus
from vlm_caption.data.records import find_split, settle_names


def add_photos(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (2, 2)).save(folder / name, "JPEG")


def write_table(path, *rows):
    """A CSV or TSV as `path` ends: rows of cells. A JSON lines file: rows of dicts."""
    if path.suffix == ".jsonl":
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    else:
        lines = [("\t" if path.suffix == ".tsv" else ",").join(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def as_pairs(dataset, folder):
    return [(str(row["image"]).removeprefix(f"{folder}/"), row["captions"]) for row in dataset]


@pytest.fixture
def corpus(tmp_path):
    add_photos(tmp_path / "Flicker8k_Dataset", "a.jpg", "b.jpg", "c.jpg")
    lines = [
        "a.jpg#0\tA dog .",
        "b.jpg#0\tA cat .",
        "a.jpg#1\tOne dog , brown .",
        "c.jpg#0\tA hat .",
        "x.jpg.1#0\tNo .",
    ]
    (tmp_path / "Flickr8k.token.txt").write_text("\n".join(lines) + "\n")
    (tmp_path / "Flickr_8k.trainImages.txt").write_text("b.jpg\na.jpg\n")
    (tmp_path / "Flickr_8k.devImages.txt").write_text("c.jpg\n")
    return tmp_path


def test_flickr8k_is_recognised_and_read_in_the_order_of_its_list(corpus):
    dataset = load_captions(corpus)
    assert as_pairs(dataset, corpus / "Flicker8k_Dataset") == [
        ("b.jpg", ["A cat."]),
        ("a.jpg", ["A dog.", "One dog, brown."]),
    ]
    assert dataset.features == Features({"image": Value("string"), "captions": List(Value("string"))})
    assert as_pairs(load_captions(str(corpus), "dev"), corpus / "Flicker8k_Dataset") == [("c.jpg", ["A hat."])]


@pytest.mark.parametrize("folder", ["Flickr8k_Dataset", "Images"])
def test_flickr8k_photos_under_their_other_names(corpus, folder):
    (corpus / "Flicker8k_Dataset").rename(corpus / folder)
    assert load_captions(corpus)[0]["image"] == str(corpus / folder / "b.jpg")


def test_flickr8k_without_a_folder_of_photos(corpus):
    (corpus / "Flicker8k_Dataset").rename(corpus / "photos")
    with pytest.raises(DataError, match="Flicker8k_Dataset"):
        load_captions(corpus)


def test_a_flickr8k_image_without_captions_is_named(corpus):
    (corpus / "Flickr_8k.trainImages.txt").write_text("a.jpg\nnone.jpg\nb.jpg\n")
    with pytest.raises(DataError, match=r"trainImages\.txt, line 2: the image none\.jpg has no captions"):
        load_captions(corpus)
    assert len(load_captions(corpus, "dev")) == 1  # what is wrong with train is not wrong with dev


def test_missing_photos_are_named_and_counted(corpus):
    (corpus / "Flicker8k_Dataset/a.jpg").unlink()
    with pytest.raises(DataError, match=r"1 of 2 images are missing, first: .*a\.jpg"):
        load_captions(corpus)
    assert len(load_captions(corpus, limit=1)) == 1


def test_a_flickr8k_split_that_is_not_there(corpus):
    with pytest.raises(DataError, match="no image is in the split 'test'; splits that are there: dev, train"):
        load_captions(corpus, "test")


def test_an_empty_flickr8k_list(corpus):
    (corpus / "Flickr_8k.devImages.txt").write_text("\n")
    with pytest.raises(DataError, match="no image is in the split 'dev'"):
        load_captions(corpus, "dev")


@pytest.mark.parametrize("line", ["a.jpg#0 A dog .", "a.jpg\tA dog .", "a.jpg#k\tA dog ."])
def test_a_malformed_flickr8k_line_is_numbered(corpus, line):
    (corpus / "Flickr8k.token.txt").write_text(f"b.jpg#0\tA cat .\n{line}\n")
    with pytest.raises(DataError, match=r"token\.txt, line 2"):
        load_captions(corpus)


@pytest.mark.flickr8k
def test_the_real_flickr8k(flickr8k_dir):
    train, dev = (load_captions(flickr8k_dir, split) for split in ("train", "dev"))
    assert (len(train), len(dev)) == (6000, 1000)
    for dataset in (train, dev):
        assert {len(captions) for captions in dataset["captions"]} == {5}
        assert len(set(dataset["image"])) == len(dataset)
    assert not set(train["image"]) & set(dev["image"])


TWO_SPLITS = [("train", "a.jpg", "A dog ."), ("dev", "b.jpg", "A cat ."), ("train", "a.jpg", "One dog .")]


@pytest.mark.parametrize("name", ["captions.csv", "metadata.csv", "any.csv", "any.tsv"])
def test_a_table_of_rows_is_grouped_by_image(tmp_path, name):
    add_photos(tmp_path, "a.jpg", "b.jpg")
    table = write_table(tmp_path / name, (" Split", "File_Name", "caption "), *TWO_SPLITS)
    for path in [table] if table.stem == "any" else [table, tmp_path]:
        assert as_pairs(load_captions(path), tmp_path) == [("a.jpg", ["A dog.", "One dog."])]
        assert as_pairs(load_captions(path, "dev"), tmp_path) == [("b.jpg", ["A cat."])]


def test_json_lines_hold_captions_or_lists_of_them(tmp_path):
    add_photos(tmp_path / "photos", "a.jpg", "b.jpg")
    write_table(
        tmp_path / "metadata.jsonl",
        {"image": "photos/b.jpg", "text": ["A cat .", "One cat\u2028."], "split": "train"},
        {"image": "photos/a.jpg", "text": "A dog .", "split": "train"},
        {"image": "./photos/b.jpg", "text": "Cat", "split": "train"},
    )
    assert as_pairs(load_captions(tmp_path), tmp_path) == [
        ("photos/b.jpg", ["A cat.", "One cat.", "Cat"]),
        ("photos/a.jpg", ["A dog."]),
    ]


def test_quoted_fields_and_a_byte_order_mark(tmp_path):
    add_photos(tmp_path, "a.jpg")
    text = 'image,caption,split\r\na.jpg,"A dog, ""Rex"",\r\nruns",train\r\n'
    (tmp_path / "captions.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert as_pairs(load_captions(tmp_path), tmp_path) == [("a.jpg", ['A dog, "Rex", runs'])]


def table_of(folder, images):
    add_photos(folder, *images)
    return write_table(
        folder / "any.csv", ("image", "caption"), *[(image, f"{image} {k}") for k in "12" for image in images]
    )


def test_without_a_split_column_dev_is_cut_by_image(tmp_path):
    images = [f"{number:03}.jpg" for number in range(300)]
    table = table_of(tmp_path, images)
    train, dev = (as_pairs(load_captions(table, split), tmp_path) for split in ("train", "dev"))
    assert 5 <= len(dev) <= 30
    assert sorted(train + dev) == [(image, [f"{image} 1", f"{image} 2"]) for image in images]
    assert [image for image, _ in train] == sorted(image for image, _ in train)

    # Neither the folder's name nor the rows' order matters, and more images move none.
    other = table_of(tmp_path / "other", [*reversed(images), "new.jpg"])
    others = {image for image, _ in as_pairs(load_captions(other, "dev"), tmp_path / "other")}
    assert others - {"new.jpg"} == {image for image, _ in dev}


@pytest.mark.parametrize("count", [2, 3])
def test_a_small_table_has_an_image_in_each_split(tmp_path, count):
    table = table_of(tmp_path, [f"{number}.jpg" for number in range(count)])
    assert len(load_captions(table, "dev")) == 1
    assert len(load_captions(table, "train")) == count - 1


def test_a_single_image_is_for_training(tmp_path):
    table = table_of(tmp_path, ["a.jpg"])
    assert len(load_captions(table)) == 1
    with pytest.raises(DataError, match="'dev'; splits that are there: train"):
        load_captions(table, "dev")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("t.csv", b"image,words\na.jpg,A dog\n", r"no caption column: .* found image, words: set data.caption_col"),
        ("t.csv", b"photo,caption\na.jpg,A dog\n", r"no image column: .* found photo, caption"),
        ("t.csv", b"image,caption\na.jpg,A dog\na.jpg, \n", r"t\.csv, row 3: .*caption"),
        ("t.csv", b"image,caption\n\n ,A dog\n", r"t\.csv, row 3: .*'image'"),
        ("t.csv", b"image,caption\na.jpg,A dog, brown\n", r"row 2: 3 fields, and the header has 2: put a field that"),
        ("t.csv", b"image,caption\na.jpg\n", r"row 2: 1 field, and the header has 2: add what is missing"),
        ("t.csv", b'image,caption\na.jpg,"A" dog\n', r"row 2: .*quotation"),
        ("t.csv", b'image,caption\na.jpg,A dog\na.jpg,"A dog\n', r"row 3: .*quotation"),
        ("t.csv", b"image,caption\n", r"no rows"),
        ("t.csv", b"", r"no rows"),
        ("t.csv", b"image,caption,split\na.jpg,A dog,train\na.jpg,A dog,\n", r"row 3: .*'split'"),
        ("t.csv", b"image,caption,split\na.jpg,A dog,train\na.jpg,A dog,dev\n", r"row 3: .*one split"),
        ("t.csv", b"image,caption,split\na.jpg,A dog,val\n", r"'train'; splits that are there: val"),
        ("t.csv", "image,caption\na.jpg,A café\n".encode("latin-1"), r"t\.csv: .*UTF-8"),
        ("t.jsonl", b'{"image": "a.jpg", "text": "A dog"}\n\n{"image"\n', r"t\.jsonl, line 3: .*JSON"),
        ("t.jsonl", b"[1]\n", r"line 1: .*JSON object"),
        ("t.jsonl", b'{"image": "a.jpg", "text": []}\n', r"line 1: .*'text'"),
        ("t.jsonl", b'{"image": "a.jpg", "text": ["A dog", null]}\n', r"line 1: .*'text'"),
        ("t.jsonl", b'{"image": "a.jpg", "text": "A dog"}\n{"image": "a.jpg"}\n', r"line 2: .*'text'"),
        (
            "t.jsonl",
            b'{"path": "a.jpg", "text": "A"}\n{"path": "b", "text": "B", "split": "dev"}\n',
            r"line 1: .*'split'",
        ),
        (
            "t.csv",
            b"image,caption\na.jpg,A dog\n../a.jpg,A cat\n",
            r"row 3: the path \.\./a\.jpg leads out .*data\.images",
        ),
        ("t.csv", b"image,caption\na.jpg,A dog\n/etc/a.jpg,A cat\n", r"row 3: the path /etc/a\.jpg leads out of the"),
        ("t.csv", b"image,caption\na.jpg,A\nhttp://a.org/a.jpg,B\n", r"row 3: http://a\.org/a\.jpg is a URL"),
        ("t.jsonl", b'{"image": "a.jpg", "text": "A \\ud83d"}\n', r"line 1: a caption holds half a character"),
        ("t.jsonl", b'{"image": "a\\ud83d.jpg", "text": "A"}\n', r"line 1: the file name .* is not UTF-8"),
        ("t.parquet", b"image,caption\n", r"t\.parquet: the Parquet file cannot be read"),
        ("t.tar", b"image,caption\n", r"t\.tar: the tar is damaged or none"),
        ("t.tar.gz", b"image,caption\n", r"compressed tar cannot be read in any order: decompress it"),
        ("t.json", b'{"images": [', r"t\.json: this is not JSON in UTF-8"),
        ("t.json", b'[{"image": "a.jpg", "text": "A dog"}]', r"format is not recognised"),
        ("t.jsonl", b'{"image": 7, "text": "A dog"}\n', r"line 1: .*'image'"),
    ],
)
def test_a_malformed_table_is_reported_with_its_place(tmp_path, name, content, words):
    add_photos(tmp_path, "a.jpg")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=words):
        load_captions(tmp_path / name)


def test_two_tables_in_a_folder_are_not_chosen_between(tmp_path):
    for name in ("metadata.csv", "captions.csv"):
        write_table(tmp_path / name, ("image", "caption"))
    with pytest.raises(DataError, match=r"metadata\.csv \(imagefolder\) and captions\.csv \(table\): set data.format"):
        load_captions(tmp_path)
    write_table(tmp_path / "metadata.jsonl", {})
    (tmp_path / "captions.csv").unlink()
    with pytest.raises(DataError, match=r"metadata\.csv and metadata\.jsonl: give the path"):
        load_captions(tmp_path)


def test_limit_takes_the_first_images(tmp_path):
    table = table_of(tmp_path, [f"{number}.jpg" for number in range(9)])
    whole = as_pairs(load_captions(table), tmp_path)
    assert as_pairs(load_captions(table, limit=3), tmp_path) == whole[:3]
    assert as_pairs(load_captions(table, limit=99), tmp_path) == whole
    with pytest.raises(DataError, match="at least 1"):
        load_captions(table, limit=0)


def test_an_unrecognised_folder_says_what_was_looked_for_and_found(tmp_path):
    add_photos(tmp_path, "a.jpg")
    with pytest.raises(DataError, match=r"Flickr8k\.token\.txt.*metadata\.csv.*found a\.jpg"):
        load_captions(tmp_path)
    with pytest.raises(DataError, match=r"found a file that ends in '\.jpg'"):
        load_captions(tmp_path / "a.jpg")


def test_a_path_that_does_not_exist(tmp_path):
    with pytest.raises(DataError, match="no such file or folder"):
        load_captions(tmp_path / "missing")


def test_an_unknown_format_gets_the_nearest_name(corpus):
    with pytest.raises(DataError, match="did you mean 'flickr8k'"):
        load_captions(corpus, format="Flicker8K")
    with pytest.raises(DataError, match="choose one of coco, karpathy, llava, flickr8k"):
        load_captions(corpus, format="xyz")


def test_a_given_format_is_taken(corpus):
    assert len(load_captions(corpus, format="flickr8k")) == 2
    with pytest.raises(DataError, match="holds no table"):
        load_captions(corpus, format="table")


def test_a_registered_reader_is_used(corpus, monkeypatch):
    known = FORMATS["flickr8k"]
    backwards = Format("", lambda path: [], lambda source: reversed([*known.read(source)]), known.files)
    monkeypatch.setitem(FORMATS, "backwards", backwards)
    images = load_captions(corpus, format="backwards")["image"]
    assert [image[-5:] for image in images] == ["a.jpg", "b.jpg"]


def test_a_path_out_of_the_folder_is_followed_where_the_folder_is_set(tmp_path):
    add_photos(tmp_path / "photos", "a.jpg")
    add_photos(tmp_path / "more", "b.jpg")
    rows = [("image", "caption"), ("../photos/a.jpg", "A dog"), (str(tmp_path / "more" / "b.jpg"), "A cat")]
    (tmp_path / "tables").mkdir()
    table = write_table(tmp_path / "tables" / "any.csv", *rows)
    dataset = load_captions(table, images=tmp_path / "tables", dev_share=0)
    assert as_pairs(dataset, tmp_path) == [("tables/../photos/a.jpg", ["A dog"]), ("more/b.jpg", ["A cat"])]


def test_pictures_that_could_be_in_two_folders_are_not_chosen_between(tmp_path):
    for folder in ("small", "large"):
        add_photos(tmp_path / folder, "a.jpg")
    table = write_table(tmp_path / "any.csv", ("image", "caption"), ("a.jpg", "A dog"))
    with pytest.raises(DataError, match=r"a\.jpg is in .*large and in .*small: set data\.images"):
        load_captions(table)
    assert as_pairs(load_captions(table, images=tmp_path / "small"), tmp_path) == [("small/a.jpg", ["A dog"])]
    with pytest.raises(DataError, match=r"none: there is no such folder: correct data\.images"):
        load_captions(table, images=tmp_path / "none")


def test_pictures_that_are_nowhere_are_told_with_where_was_looked(tmp_path):
    (tmp_path / "photos").mkdir()
    table = write_table(tmp_path / "any.csv", ("image", "caption"), ("a.jpg", "A dog"))
    with pytest.raises(DataError, match=rf"none .* first: a\.jpg: looked in {tmp_path}, {tmp_path}/photos: set data"):
        load_captions(table)


COCO_IMAGE = {"id": 1, "file_name": "a.jpg"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"images": [COCO_IMAGE], "annotations": []}, "holds no annotations"),
        (
            {"images": [COCO_IMAGE], "annotations": [{"image_id": 1, "bbox": []}]},
            "annotation 1: its caption must be text",
        ),
        ({"images": [COCO_IMAGE], "annotations": [{"image_id": 2, "caption": "A"}]}, "annotation 1: no image .* 2"),
        (
            {"images": [COCO_IMAGE], "annotations": [{"image_id": 1, "caption": " "}]},
            "annotation 1: a caption is empty",
        ),
        ({"images": [COCO_IMAGE], "annotations": [7]}, "its annotations must hold objects, and holds 7"),
        (
            {"images": [{"filename": "a.jpg", "sentences": [{"raw": "A dog"}]}]},
            "image 1: its split must be text, and is None",
        ),
        ({"images": [{"filename": "a.jpg", "sentences": [], "split": "val"}]}, "image 1: its sentences must each"),
        ({"images": [{"filename": 7, "sentences": [{"raw": "A"}], "split": "val"}]}, "image 1: its filename must be"),
        (
            [{"image": ["a.jpg", "b.jpg"], "conversations": [{"from": "human"}]}],
            "conversation 1: its image must be one",
        ),
        ([{"image": "a.jpg", "conversations": "Hello"}], "conversation 1: its conversations must be a list"),
        ([{"image": "a.jpg", "conversations": [{"from": "human", "value": "<image>"}]}], "conversation 1: gpt must"),
    ],
)
def test_a_malformed_json_corpus_is_reported_with_its_place(tmp_path, content, words):
    add_photos(tmp_path, "a.jpg")
    path = tmp_path / "captions_val2017.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=words):
        load_captions(path, "val")


def test_a_json_corpus_may_begin_with_a_byte_order_mark_and_not_be_latin_1(tmp_path):
    add_photos(tmp_path, "a.jpg")
    content = {"images": [COCO_IMAGE], "annotations": [{"image_id": 1, "caption": "Un café"}]}
    text = json.dumps(content, ensure_ascii=False)
    path = tmp_path / "mine.json"
    path.write_text(text, encoding="utf-8-sig")
    assert as_pairs(load_captions(path), tmp_path) == [("a.jpg", ["Un café"])]
    path.write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match=r"mine\.json: this is not JSON in UTF-8"):
        load_captions(path)


def test_coco_of_two_years_is_not_chosen_between(tmp_path):
    add_photos(tmp_path, "a.jpg")
    content = {"images": [COCO_IMAGE], "annotations": [{"image_id": 1, "caption": "A dog"}]}
    for year in (2014, 2017):
        (tmp_path / f"captions_train{year}.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"captions_train2014\.json and captions_train2017\.json: give the path"):
        load_captions(tmp_path)


def test_a_coco_image_without_captions_is_dropped_and_counted(tmp_path, caplog):
    caplog.set_level("INFO", "vlm_caption")
    add_photos(tmp_path, "a.jpg")
    images = [COCO_IMAGE, {"id": 2, "file_name": "b.jpg"}]
    content = {"annotations": [{"image_id": 1, "caption": "A dog"}], "images": images}
    (tmp_path / "mine.json").write_text(json.dumps(content))
    assert len(load_captions(tmp_path / "mine.json")) == 1
    assert caplog.messages == [f"{tmp_path / 'mine.json'}: left out 1 images without captions"]


def test_a_shard_without_captions_is_told_what_it_has(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("0.jpg", "0.cls"):
            (tmp_path / name).write_text("x")
            tar.add(tmp_path / name, name)
            (tmp_path / name).unlink()
    with pytest.raises(
        DataError, match=r"a\.tar, 0\.jpg: it has no caption: looked for NAME\.txt, .* and found only cls, jpg"
    ):
        load_captions(tmp_path)


def test_a_shard_that_is_cut_short_is_named(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("0.txt", "0.jpg"):
            (tmp_path / name).write_bytes(bytes(5000))
            tar.add(tmp_path / name, name)
    (tmp_path / "a.tar").write_bytes((tmp_path / "a.tar").read_bytes()[:8000])
    with pytest.raises(DataError, match=r"a\.tar: the tar is damaged or none \("):
        load_captions(tmp_path / "a.tar")


def test_a_picture_without_its_text_is_named(tmp_path):
    add_photos(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "a.txt").write_text("A dog")
    with pytest.raises(DataError, match=r"b\.jpg: there is no caption beside it, b\.txt"):
        load_captions(tmp_path)
    (tmp_path / "b.txt").write_text(" \n")
    with pytest.raises(DataError, match=r"b\.txt: the caption is empty"):
        load_captions(tmp_path)
    (tmp_path / "b.txt").write_text("A café", encoding="latin-1")
    with pytest.raises(DataError, match=r"b\.txt: the file is not UTF-8 \(line 1\)"):
        load_captions(tmp_path)


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"image": [7], "caption": ["A"]}, "the image column is of the type int64"),
        ({"image": [None], "caption": ["A"]}, "row 1: there is no picture|of the type null"),
        ({"image": ["a.jpg"], "caption": [7]}, "row 1: the column 'caption' must hold a caption .* and holds 7"),
        ({"image": ["a.jpg"], "caption": [[]]}, "row 1: the column 'caption' must hold a caption"),
        ({"image": ["a.jpg"], "words": ["A"]}, "no caption column: .* found image, words"),
    ],
)
def test_a_malformed_dataset_is_reported(tmp_path, columns, words):
    add_photos(tmp_path, "a.jpg")
    Dataset.from_dict(columns).save_to_disk(tmp_path / "saved")
    with pytest.raises(DataError, match=words):
        load_captions(tmp_path / "saved", images=tmp_path)


def test_a_damaged_dataset_is_named(tmp_path):
    Dataset.from_dict({"image": ["a.jpg"], "caption": ["A"]}).save_to_disk(tmp_path / "saved")
    [arrow] = (tmp_path / "saved").glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[:100])
    with pytest.raises(DataError, match="saved: the dataset cannot be read"):
        load_captions(tmp_path / "saved")


def test_a_dataset_that_cannot_be_fetched_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"no/such: there is no such file or folder, and fetching .* failed"):
        load_captions("no/such")
    (tmp_path / "no").mkdir()  # then it is a path
    with pytest.raises(DataError, match=r"no/such: there is no such file or folder$"):
        load_captions("no/such")
    with pytest.raises(DataError, match=r"fetching .* failed"):
        load_captions("no/such", format="dataset")


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.text(st.characters(exclude_categories=["Cs"]), min_size=1)),
        min_size=1,
        max_size=6,
    ),
    st.sampled_from(["csv", "tsv", "jsonl", "parquet"]),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_comes_out_of_a_table_as_it_was_cleaned(tmp_path_factory, rows, suffix):
    """Quotation marks, separators and line ends inside captions, zero bytes, every script."""
    folder = tmp_path_factory.mktemp("table")
    add_photos(folder, *(f"{number}.jpg" for number in range(4)))
    frame = pd.DataFrame([(f"{number}.jpg", text) for number, text in rows], columns=["image", "caption"])
    path = folder / f"any.{suffix}"
    if suffix == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in frame.to_dict("records")))
    elif suffix == "parquet":
        frame.to_parquet(path)
    else:
        with path.open("w", newline="") as file:
            writer = csv.writer(file, delimiter="\t" if suffix == "tsv" else ",")
            writer.writerow(["image", "caption"])
            writer.writerows(frame.itertuples(index=False))
    expected: dict[str, list[str]] = {}  # in the order in which images are first named
    for number, text in rows:
        expected.setdefault(f"{number}.jpg", []).extend(filter(None, [clean_caption(text)]))
    expected = {name: captions for name, captions in expected.items() if captions}
    if not expected:
        return
    corpus = open_corpus(path, dev_share=0, cleaning=Cleaning(min_words=1))
    assert as_pairs(corpus.load(), folder) == list(expected.items())
    assert list(corpus.problems()) == []


# Names


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("captions_train2017", "train"),
        ("train0", "train"),
        ("val00000", "val"),
        ("imagenet-val-0001", "val"),
        ("test01", "test"),
        ("training", "train"),
        ("testing", "test"),
        ("validation", "validation"),
        ("trainval2014", None),
        ("val3d", None),
        ("trains", None),
        ("contest", None),
    ],
)
def test_files_and_folders_are_called_by_their_split(name, split):
    assert find_split(name) == split


def test_names_of_which_some_say_a_split_say_none_and_are_told(caplog):
    assert settle_names(["train", "test", None]) == [None, None, None]
    assert "are called test and train, and others by no split" in caplog.text
    caplog.clear()
    assert settle_names(["train", None]) == [None, None]  # as annotations beside train2017
    assert caplog.text == ""


def test_a_parquet_files_name_is_no_pattern(tmp_path):
    add_photos(tmp_path / "2024 [a]", "a.jpg")
    for name, caption in (("train1", "A cat."), ("train[1]", "A dog.")):
        pd.DataFrame({"image": ["a.jpg"], "caption": [caption]}).to_parquet(tmp_path / "2024 [a]" / f"{name}.parquet")
    found = load_captions(tmp_path / "2024 [a]" / "train[1].parquet")
    assert as_pairs(found, tmp_path / "2024 [a]") == [("a.jpg", ["A dog."])]


def test_columns_of_one_name_are_refused(tmp_path):
    add_photos(tmp_path, "a.jpg")
    table = write_table(tmp_path / "t.csv", ("image", "caption", "Caption"), ("a.jpg", "A dog.", "One dog."))
    with pytest.raises(DataError, match=r"t\.csv: the column 'caption' is there more than once"):
        load_captions(table)


@pytest.mark.parametrize("write", [str, json.dumps])
def test_a_list_that_a_csv_spells_out_is_a_list(tmp_path, write):
    """pandas writes lists so, and Flickr30k's table has them."""
    add_photos(tmp_path, "a.jpg", "b.jpg")
    pd.DataFrame(
        {"image": ["a.jpg", "b.jpg"], "caption": [write(["A dog.", "It's brown."]), "['quoted' is a word]"]}
    ).to_csv(tmp_path / "t.csv", index=False)
    found = [
        pair for split in ("train", "dev") for pair in as_pairs(load_captions(tmp_path / "t.csv", split), tmp_path)
    ]
    assert sorted(found) == [("a.jpg", ["A dog.", "It's brown."]), ("b.jpg", ["['quoted' is a word]"])]


def test_a_folder_whose_name_is_no_text_gets_a_sentence(tmp_path):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    add_photos(folder, "a.jpg")
    table = write_table(folder / "t.csv", ("image", "caption"), ("a.jpg", "A dog."))
    with pytest.raises(DataError, match="a name is not UTF-8: rename the picture, its folder, or its split"):
        load_captions(table)


def test_a_picture_may_begin_with_two_dots(tmp_path):
    add_photos(tmp_path, "..cover.jpg")
    table = write_table(tmp_path / "t.csv", ("image", "caption"), ("..cover.jpg", "A dog."))
    assert as_pairs(load_captions(table), tmp_path) == [("..cover.jpg", ["A dog."])]
