"""The same ten pictures with their captions come out of every format, written by its own tool where it has one."""

import base64
import contextlib
import csv
import io
import json
import logging

import datasets
import huggingface_hub.constants
import numpy as np
import pandas as pd
import pytest
import webdataset
from datasets import Dataset, DatasetDict
from PIL import Image
from pycocotools.coco import COCO

from vlm_caption.data import DataError, Place, load_captions, open_corpus, open_place
from vlm_caption.images.opening import open_image

ZWNJ, ZWJ = "\u200c", "\u200d"

CAPTIONS = [
    ["A dog runs across the grass."],
    ["A cat, asleep on a mat."],
    ['A sign that says "stop" and more'],
    ["Two people talk.", "People talk in the street."],
    ["小さな犬が走る。"],
    [f"کتاب{ZWNJ}ها روی میز"],  # noqa: RUF001
    [f"A family \U0001f468{ZWJ}\U0001f469{ZWJ}\U0001f467 at home"],
    ["क्षेत्र में एक पेड़"],
    ["Une fille à la plage, près d'un phare"],
    ["It's one of those days"],
]


def encode(number: int) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


PHOTOS = {f"{number:02}.png": encode(number) for number in range(10)}
PAIRS = [(content, captions) for content, captions in zip(PHOTOS.values(), CAPTIONS, strict=True)]
ROWS = [(name, caption) for name, captions in zip(PHOTOS, CAPTIONS, strict=True) for caption in captions]
BASE64 = {name: base64.b64encode(content).decode() for name, content in PHOTOS.items()}


def add_photos(folder, names=tuple(PHOTOS)):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(PHOTOS[name])


def read_pairs(dataset):
    """The encoded bytes and the captions of each row."""
    return [(Place.parse(row["image"]).read(), row["captions"]) for row in dataset]


def coco_content():
    images = [{"id": 500 + n, "file_name": name, "width": 8, "height": 6} for n, name in enumerate(PHOTOS)]
    ids = {image["file_name"]: image["id"] for image in images}
    annotations = [{"id": n, "image_id": ids[name], "caption": caption} for n, (name, caption) in enumerate(ROWS)]
    return {"info": {"year": 2017}, "licenses": [], "images": images, "annotations": annotations}


def write_coco(folder):
    add_photos(folder / "train2017")
    (folder / "annotations").mkdir()
    (folder / "annotations" / "captions_train2017.json").write_text(json.dumps(coco_content()))
    return folder


def write_coco_file(folder):
    return write_coco(folder) / "annotations" / "captions_train2017.json"


def karpathy_content(split="train", **fields):
    images = [
        {
            "filename": name,
            "split": split,
            "imgid": number,
            "sentences": [{"raw": caption, "tokens": caption.split(), "imgid": number} for caption in captions],
            **fields,
        }
        for number, (name, captions) in enumerate(zip(PHOTOS, CAPTIONS, strict=True))
    ]
    return {"dataset": "some", "images": images}


def write_karpathy(folder):
    add_photos(folder / "Flicker8k_Dataset")
    (folder / "dataset_flickr8k.json").write_text(json.dumps(karpathy_content()))
    return folder


def write_karpathy_coco(folder):
    add_photos(folder / "val2014")
    content = karpathy_content("restval", filepath="val2014", cocoid=1)
    (folder / "dataset_coco.json").write_text(json.dumps(content, ensure_ascii=False))
    return folder / "dataset_coco.json"


def write_tokens(folder):
    add_photos(folder / "Flicker8k_Dataset")
    lines = [
        f"{name}#{n}\t{c}\n" for name, captions in zip(PHOTOS, CAPTIONS, strict=True) for n, c in enumerate(captions)
    ]
    (folder / "Flickr8k.token.txt").write_text("".join(lines))
    (folder / "Flickr_8k.trainImages.txt").write_text("\n".join(PHOTOS))
    return folder


def write_kaggle_captions(folder):
    add_photos(folder / "Images")
    pd.DataFrame(ROWS, columns=["image", "caption"]).to_csv(folder / "captions.txt", index=False)
    return folder


def write_results(folder):
    """The first row lacks a bar, as one of the real file does."""
    add_photos(folder / "flickr30k_images")
    [(name, caption), *rest] = ROWS
    lines = ["image_name| comment_number| comment", f"{name}| 4   {caption}"]
    lines += [f"{name}| 0| {caption}" for name, caption in rest]
    (folder / "results.csv").write_text("\n".join(lines) + "\n")
    return folder


def write_metadata_csv(folder):
    add_photos(folder)
    pd.DataFrame(ROWS, columns=["file_name", "text"]).to_csv(folder / "metadata.csv", index=False)
    return folder


def write_metadata_jsonl(folder):
    add_photos(folder)
    rows = pd.DataFrame({"file_name": list(PHOTOS), "text": CAPTIONS})
    rows.to_json(folder / "metadata.jsonl", orient="records", lines=True)
    return folder


def write_metadata_parquet(folder):
    add_photos(folder)
    pd.DataFrame({"file_name": list(PHOTOS), "text": CAPTIONS}).to_parquet(folder / "metadata.parquet")
    return folder


def write_text_files(folder):
    add_photos(folder)
    for name, captions in zip(PHOTOS, CAPTIONS, strict=True):
        (folder / name).with_suffix(".txt").write_text("\n".join(captions) + "\n\n")
    return folder


def write_csv_of_paths(folder):
    add_photos(folder / "photos")
    with (folder / "mine.csv").open("w", newline="") as file:
        writer = csv.writer(file)  # its lines end in \r\n
        writer.writerows([("path", "id", "caption"), *((f"photos/{name}", 7, caption) for name, caption in ROWS)])
    return folder / "mine.csv"


def write_tsv_of_paths(folder):
    add_photos(folder)
    pd.DataFrame(ROWS, columns=["image", "caption"]).to_csv(folder / "mine.tsv", sep="\t", index=False)
    return folder / "mine.tsv"


def write_parquet_of_paths(folder):
    add_photos(folder)
    pd.DataFrame({"image": list(PHOTOS), "captions": CAPTIONS}).to_parquet(folder / "mine.parquet")
    return folder / "mine.parquet"


def write_csv_of_base64(folder):
    """As seemore's inputs.csv, an index in front."""
    rows = pd.DataFrame([(BASE64[name], caption) for name, caption in ROWS], columns=["b64string_images", "caption"])
    rows.to_csv(folder / "inputs.csv")
    return folder / "inputs.csv"


def write_jsonl_of_base64(folder):
    """pandas escapes every slash."""
    rows = pd.DataFrame({"image": list(BASE64.values()), "caption": CAPTIONS})
    rows.to_json(folder / "mine.jsonl", orient="records", lines=True)
    assert "\\/" in (folder / "mine.jsonl").read_text()
    return folder / "mine.jsonl"


def write_jsonl_of_data_urls(folder):
    lines = [
        json.dumps({"caption": captions, "image": f"data:image/png;base64,{text}"})
        for text, captions in zip(BASE64.values(), CAPTIONS, strict=True)
    ]
    (folder / "mine.jsonl").write_text("\n".join(lines))
    return folder / "mine.jsonl"


def write_parquet_of_bytes(folder):
    rows = pd.DataFrame({"image": list(PHOTOS.values()), "caption": CAPTIONS})
    rows.to_parquet(folder / "mine.parquet", row_group_size=3)
    return folder / "mine.parquet"


def write_parquet_of_base64(folder):
    pd.DataFrame({"image": list(BASE64.values()), "caption": CAPTIONS}).to_parquet(folder / "mine.parquet")
    return folder / "mine.parquet"


def image_dataset(column="image"):
    features = datasets.Features({column: datasets.Image(), "caption": datasets.List(datasets.Value("string"))})
    images = [{"bytes": content, "path": None} for content in PHOTOS.values()]
    return Dataset.from_dict({column: images, "caption": CAPTIONS}, features=features)


def write_folder_of_parquet(folder):
    """As a clone of a dataset of the Hub."""
    (folder / "data").mkdir()
    dataset = image_dataset()
    for number, rows in enumerate((range(4), range(4, 10))):
        dataset.select(rows).to_parquet(folder / "data" / f"train-0000{number}-of-00002.parquet")
    return folder


def write_saved(folder):
    image_dataset("photo").save_to_disk(folder / "saved", num_shards=3)
    return folder / "saved"


def write_saved_dict(folder):
    DatasetDict({"train": image_dataset()}).save_to_disk(folder / "saved")
    return folder / "saved"


def write_saved_selection(folder):
    dataset = datasets.concatenate_datasets([image_dataset().select([1]), image_dataset()])
    dataset.select(range(1, 11)).save_to_disk(folder / "saved")
    return folder / "saved"


def write_saved_paths(folder):
    add_photos(folder / "photos")
    paths = [str(folder / "photos" / name) for name in PHOTOS]
    dataset = Dataset.from_dict({"image": paths, "caption": CAPTIONS}).cast_column("image", datasets.Image())
    dataset.save_to_disk(folder / "saved")
    return folder / "saved"


def write_saved_bytes(folder):
    Dataset.from_dict({"bytes": list(PHOTOS.values()), "caption": CAPTIONS}).save_to_disk(folder / "saved")
    return folder / "saved"


def write_shards(folder):
    with webdataset.ShardWriter(str(folder / "%06d.tar"), maxcount=4, verbose=0) as writer:
        for name, captions in zip(PHOTOS, CAPTIONS, strict=True):
            writer.write({"__key__": name[:2], "png": PHOTOS[name], "json": {"caption": captions, "url": "x"}})
    return folder


def write_shard_with_texts(folder):
    """One caption a text: the image with two is there twice, under one name."""
    with webdataset.TarWriter(str(folder / "all.tar")) as writer:
        for name, caption in ROWS:
            writer.write({"__key__": f"photos/{name[:2]}", "txt": caption, "png": PHOTOS[name]})
    return folder / "all.tar"


def write_llava(folder):
    add_photos(folder / "images")
    samples = [
        {
            "id": str(number),
            "image": name,
            "conversations": [
                {"from": "human", "value": "Render a clear summary of the photo.\n<image>"},
                {"from": "gpt", "value": caption},
                {"from": "human", "value": "And what else?"},
                {"from": "gpt", "value": "Nothing."},
            ],
        }
        for number, (name, caption) in enumerate(ROWS)
    ]
    samples.insert(3, {"id": "text", "conversations": [{"from": "human", "value": "Hello"}]})
    (folder / "blip_laion.json").write_text(json.dumps(samples))
    return folder


WRITERS = {
    "coco": (write_coco, write_coco_file),
    "karpathy": (write_karpathy, write_karpathy_coco),
    "flickr8k": (write_tokens,),
    "flickr30k": (write_results,),
    "imagefolder": (write_metadata_csv, write_metadata_jsonl, write_metadata_parquet),
    "text_files": (write_text_files,),
    "table": (
        write_kaggle_captions,
        write_csv_of_paths,
        write_tsv_of_paths,
        write_parquet_of_paths,
        write_csv_of_base64,
        write_jsonl_of_base64,
        write_jsonl_of_data_urls,
        write_parquet_of_bytes,
        write_parquet_of_base64,
    ),
    "dataset": (
        write_folder_of_parquet,
        write_saved,
        write_saved_dict,
        write_saved_selection,
        write_saved_paths,
        write_saved_bytes,
    ),
    "webdataset": (write_shards, write_shard_with_texts),
    "llava": (write_llava,),
}
CASES = [pytest.param(name, write, id=write.__name__[6:]) for name, writers in WRITERS.items() for write in writers]


@pytest.mark.parametrize(("name", "write"), CASES)
def test_the_same_ten_pairs_come_out(tmp_path, name, write):
    path = write(tmp_path)
    corpus = open_corpus(path, dev_share=0)
    assert corpus.format == name
    dataset = corpus.load("train")
    assert read_pairs(dataset) == PAIRS
    expected = open_image(PHOTOS["03.png"])
    assert open_image(open_place(dataset[3]["image"])).tobytes() == expected.tobytes()

    # And again from the cache.
    assert read_pairs(load_captions(path, "train", name, dev_share=0)) == PAIRS


@pytest.mark.parametrize(
    "write", [write for name, writers in WRITERS.items() if name not in ("karpathy", "flickr8k") for write in writers]
)
def test_without_splits_dev_is_cut_off_and_no_image_is_in_both(tmp_path, write):
    corpus = open_corpus(write(tmp_path), dev_share=0.3)
    train, dev = read_pairs(corpus.load("train")), read_pairs(corpus.load("dev"))
    assert dev
    assert sorted(train + dev) == sorted(PAIRS)


@pytest.mark.parametrize("write", [write_csv_of_base64, write_saved, write_shard_with_texts, write_parquet_of_bytes])
def test_a_picture_in_a_larger_file_is_named_in_errors(tmp_path, write):
    path = write(tmp_path)
    dataset = load_captions(path, dev_share=0)
    place = Place.parse(dataset[2]["image"])
    assert not place.is_whole_file
    assert open_place(dataset[2]["image"]).name == f"{place.path}, {place.name}"
    assert place.name in ("row 4", "row 3", "photos/02.png")


def test_coco_loads_with_its_own_tool(tmp_path):
    with contextlib.redirect_stdout(io.StringIO()):
        loaded = COCO(write_coco_file(tmp_path))
    captions = {
        loaded.imgs[image]["file_name"]: [entry["caption"] for entry in loaded.imgToAnns[image]]
        for image in loaded.getImgIds()
    }
    dataset = load_captions(tmp_path, dev_share=0)
    assert {Place.parse(row["image"]).short_name: row["captions"] for row in dataset} == captions


def test_an_imagefolder_is_read_as_datasets_does(tmp_path, cache):
    write_metadata_csv(tmp_path)
    loaded = datasets.load_dataset("imagefolder", data_dir=str(tmp_path), split="train", cache_dir=str(cache / "hf"))
    expected = [(np.asarray(row["image"].convert("RGB")).tobytes(), row["text"]) for row in loaded]
    found = [
        (open_image(open_place(row["image"])).tobytes(), caption)
        for row in load_captions(tmp_path, dev_share=0)
        for caption in row["captions"]
    ]
    assert sorted(found) == sorted(expected)


def test_given_splits_are_taken(tmp_path):
    for split in ("train", "val"):
        add_photos(tmp_path / f"{split}2017")
        content = coco_content()
        half = [image for n, image in enumerate(content["images"]) if (n < 6) == (split == "train")]
        ids = {image["id"] for image in half}
        content |= {"images": half, "annotations": [a for a in content["annotations"] if a["image_id"] in ids]}
        (tmp_path / "annotations").mkdir(exist_ok=True)
        (tmp_path / "annotations" / f"captions_{split}2017.json").write_text(json.dumps(content))
    assert read_pairs(load_captions(tmp_path, "train")) == PAIRS[:6]
    assert read_pairs(load_captions(tmp_path, "val")) == PAIRS[6:]
    assert read_pairs(load_captions(tmp_path, "dev")) == PAIRS[6:]  # another word for it


def test_names_may_repeat_in_the_folders_of_cocos_splits_and_not_in_one_of_both(tmp_path):
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        content = {"images": [{"id": 1, "file_name": "1.png"}], "annotations": [{"image_id": 1, "caption": split}]}
        (tmp_path / f"captions_{split}.json").write_text(json.dumps(content))
        (tmp_path / split / "1.png").write_bytes(PHOTOS["00.png"])
    assert read_pairs(load_captions(tmp_path, "train")) == [(PHOTOS["00.png"], ["train"])]
    assert read_pairs(load_captions(tmp_path, "val")) == [(PHOTOS["00.png"], ["val"])]
    (tmp_path / "val" / "1.png").unlink()
    (tmp_path / "train" / "1.png").rename(tmp_path / "1.png")
    with pytest.raises(DataError, match=r"the image 1\.png is in the split 'val' here and in 'train' above"):
        load_captions(tmp_path)


@pytest.mark.parametrize(("write", "folder"), [(write_coco, "train2017"), (write_karpathy, "Flicker8k_Dataset")])
def test_a_folder_of_pictures_that_is_missing_is_named(tmp_path, write, folder):
    write(tmp_path)
    (tmp_path / folder).rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=rf"first: 00\.png: looked in .*{tmp_path}/{folder}.*: set data\.images"):
        load_captions(tmp_path)


def test_imagefolder_subfolders_are_splits_whose_names_may_repeat(tmp_path):
    names = list(PHOTOS)
    for split, shown in (("train", names[:6]), ("validation", names[6:])):
        (tmp_path / split).mkdir()
        rows = [{"file_name": f"{n}.png", "text": CAPTIONS[names.index(name)]} for n, name in enumerate(shown)]
        for row, name in zip(rows, shown, strict=True):
            (tmp_path / split / row["file_name"]).write_bytes(PHOTOS[name])
        (tmp_path / split / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert read_pairs(load_captions(tmp_path, "train")) == PAIRS[:6]
    assert read_pairs(load_captions(tmp_path, "dev")) == PAIRS[6:]


@pytest.mark.parametrize("write", ["shards", "parquet", "saved", "text_files"])
def test_splits_of_names_are_taken(tmp_path, write):
    names = list(PHOTOS)
    for split, rows in (("train", range(6)), ("test", range(6, 10))):
        if write == "shards":
            with webdataset.TarWriter(str(tmp_path / f"corpus-{split}-0000.tar")) as writer:
                for row in rows:
                    writer.write({"__key__": str(row), "png": PHOTOS[names[row]], "json": {"caption": CAPTIONS[row]}})
        elif write == "parquet":
            image_dataset().select(rows).to_parquet(tmp_path / f"{split}-00000-of-00001.parquet")
        elif write == "text_files":
            add_photos(tmp_path / split, names[rows.start : rows.stop])
            for row in rows:
                (tmp_path / split / f"{row:02}.txt").write_text("\n".join(CAPTIONS[row]))
    path = tmp_path
    if write == "saved":
        path = tmp_path / "saved"
        dataset = image_dataset()
        DatasetDict({"train": dataset.select(range(6)), "test": dataset.select(range(6, 10))}).save_to_disk(path)
    assert read_pairs(load_captions(path, "train")) == PAIRS[:6]
    assert read_pairs(load_captions(path, "test")) == PAIRS[6:]


def test_karpathys_splits(tmp_path):
    add_photos(tmp_path)
    content = karpathy_content()
    for image, split in zip(content["images"], ["train", "restval", "val", "test", *["train"] * 6], strict=True):
        image["split"] = split
    (tmp_path / "dataset_flickr30k.json").write_text(json.dumps(content))
    assert read_pairs(load_captions(tmp_path, "train")) == [*PAIRS[:2], *PAIRS[4:]]
    assert read_pairs(load_captions(tmp_path, "dev")) == PAIRS[2:3]
    assert read_pairs(load_captions(tmp_path, "test")) == PAIRS[3:4]


def test_a_hub_dataset_is_fetched_by_its_id(monkeypatch, tmp_path):
    image_dataset().save_to_disk(tmp_path / "hub")
    asked = []

    def load_dataset(name, subset):
        asked.append((name, subset))
        return DatasetDict({"train": datasets.load_from_disk(tmp_path / "hub")})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert read_pairs(load_captions("org/photos", subset="small", dev_share=0)) == PAIRS
    assert set(asked) == {("org/photos", "small")}


def test_pictures_that_a_hub_dataset_keeps_as_files_are_read_where_they_are(monkeypatch, tmp_path, cache):
    write_metadata_jsonl(tmp_path)
    fetched = datasets.load_dataset("imagefolder", data_dir=str(tmp_path), cache_dir=str(cache / "hf"))
    monkeypatch.setattr(datasets, "load_dataset", lambda name, subset: fetched)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    dataset = load_captions("org/photos", dev_share=0)
    assert read_pairs(dataset) == PAIRS
    assert dataset[0]["image"] == str(tmp_path / "00.png")


def test_conversations_without_pictures_are_counted(tmp_path, caplog):
    caplog.set_level(logging.INFO, "vlm_caption")
    load_captions(write_llava(tmp_path), dev_share=0)
    assert any("passed over 1 conversations without a picture" in message for message in caplog.messages)


def test_only_the_answer_to_the_question_with_the_image_is_a_caption(tmp_path):
    add_photos(tmp_path, ["00.png"])
    turns = [
        {"from": "human", "value": "Hello"},
        {"from": "gpt", "value": "Hello to you"},
        {"from": "human", "value": "<image>\nWhat is it?"},
        {"from": "gpt", "value": "A dog ."},
        {"from": "human", "value": "Is it large?"},
        {"from": "gpt", "value": "Yes"},
    ]
    (tmp_path / "mine.json").write_text(json.dumps([{"image": "00.png", "conversations": turns}]))
    assert load_captions(tmp_path, dev_share=0)["captions"][:] == [["A dog."]]


def test_columns_that_are_set_win(tmp_path):
    add_photos(tmp_path)
    rows = pd.DataFrame([(name, "no", name, caption) for name, caption in ROWS])
    rows.to_csv(tmp_path / "mine.csv", index=False, header=["image", "caption", "Picture", "Describes"])
    settings = {"image_column": "picture", "caption_column": "Describes", "dev_share": 0}
    assert read_pairs(load_captions(tmp_path / "mine.csv", **settings)) == PAIRS
    path = write_saved(tmp_path)
    assert read_pairs(load_captions(path, image_column="photo", caption_column="caption", dev_share=0)) == PAIRS


def test_an_empty_field_of_a_shards_json_is_passed_over(tmp_path):
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        writer.write({"__key__": "0", "png": PHOTOS["00.png"], "json": {"caption": None, "text": "A dog."}})
    assert load_captions(tmp_path, dev_share=0)[0]["captions"] == ["A dog."]


def test_a_caption_field_of_a_shards_json_is_chosen(tmp_path):
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        texts = {"caption": "alt text", "blip": "A dog."}
        writer.write({"__key__": "0", "png": PHOTOS["00.png"], "json": texts, "txt": "alt text"})
    assert load_captions(tmp_path, dev_share=0)[0]["captions"] == ["alt text"]
    assert load_captions(tmp_path, caption_column="blip", dev_share=0)[0]["captions"] == ["A dog."]


def test_pictures_elsewhere_are_found_by_the_setting(tmp_path):
    (tmp_path / "coco").mkdir()
    write_coco(tmp_path / "coco")
    (tmp_path / "coco" / "train2017").rename(tmp_path / "elsewhere")
    path = tmp_path / "coco"
    assert read_pairs(load_captions(path, images=tmp_path / "elsewhere", dev_share=0)) == PAIRS
    (tmp_path / "all").mkdir()
    (tmp_path / "elsewhere").rename(tmp_path / "all" / "train2017")
    assert read_pairs(load_captions(path, images=tmp_path / "all", dev_share=0)) == PAIRS
