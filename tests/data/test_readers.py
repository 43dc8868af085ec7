import json

import pytest
from datasets import Features, List, Value
from PIL import Image

from vlm_caption.data import FORMATS, DataError, load_captions


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


def test_a_flickr8k_image_without_captions_is_named_and_counted(corpus):
    (corpus / "Flickr_8k.trainImages.txt").write_text("a.jpg\nnone.jpg\nb.jpg\n")
    with pytest.raises(DataError, match=r"1 of the 3 images .* no captions, first: none\.jpg"):
        load_captions(corpus)


def test_missing_photos_are_named_and_counted(corpus):
    (corpus / "Flicker8k_Dataset/a.jpg").unlink()
    with pytest.raises(DataError, match=r"1 of 2 images are missing, first: .*a\.jpg"):
        load_captions(corpus)
    assert len(load_captions(corpus, limit=1)) == 1


def test_a_flickr8k_split_that_is_not_there(corpus):
    with pytest.raises(DataError, match=r"testImages\.txt, is missing; splits that are there: train, dev"):
        load_captions(corpus, "test")
    with pytest.raises(DataError, match="train, dev, test"):
        load_captions(corpus, "validation")


def test_an_empty_flickr8k_list(corpus):
    (corpus / "Flickr_8k.devImages.txt").write_text("\n")
    with pytest.raises(DataError, match="'dev' is empty"):
        load_captions(corpus, "dev")


@pytest.mark.parametrize("line", ["a.jpg#0 A dog .", "a.jpg\tA dog .", "a.jpg#0\t  "])
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
        ("t.csv", b"image,words\na.jpg,A dog\n", r"no caption column: .* found image, words"),
        ("t.csv", b"photo,caption\na.jpg,A dog\n", r"no image column: .* found photo, caption"),
        ("t.csv", b"image,caption\na.jpg,A dog\na.jpg, \n", r"t\.csv, row 3: .*caption"),
        ("t.csv", b"image,caption\n\n ,A dog\n", r"t\.csv, row 3: .*'image'"),
        ("t.csv", b"image,caption\na.jpg,A dog, brown\n", r"row 2: 3 fields, and the header has 2"),
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
        ("t.jsonl", b'{"path": "a", "text": "A"}\n{"path": "b", "text": "B", "split": "dev"}\n', r"line 1: .*'split'"),
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
    with pytest.raises(DataError, match=r"metadata\.csv and captions\.csv"):
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
        load_captions(corpus, format="Flickr30k")
    with pytest.raises(DataError, match="choose one of flickr8k, table"):
        load_captions(corpus, format="xyz")


def test_a_given_format_is_taken(corpus):
    assert len(load_captions(corpus, format="flickr8k")) == 2
    with pytest.raises(DataError, match="holds no table"):
        load_captions(corpus, format="table")


def test_a_registered_reader_is_used(corpus, monkeypatch):
    monkeypatch.setitem(FORMATS, "backwards", lambda source, split: reversed([*FORMATS["flickr8k"](source, split)]))
    images = load_captions(corpus, format="backwards")["image"]
    assert [image[-5:] for image in images] == ["a.jpg", "b.jpg"]


def test_no_cache_is_written_and_so_none_goes_stale(corpus):
    before = load_captions(corpus)
    assert before.cache_files == []
    (corpus / "Flickr_8k.trainImages.txt").write_text("a.jpg\n")
    assert len(load_captions(corpus)) == 1
