"""The pictures, vectors and questions to caption that a config describes."""

import base64
import io
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from tiny_models import picture
from tiny_runs import write_colours

from vlm_caption.captioning.corpus_inputs import open_corpus_inputs
from vlm_caption.config.sections import DataSection
from vlm_caption.core.errors import DataError
from vlm_caption.images.opening import describe, open_image


def test_the_pictures_of_all_splits_or_of_one(tmp_path):
    data = DataSection(path=str(write_colours(tmp_path, ["red", "blue"], ["green"])))
    found = open_corpus_inputs(data, None, pytest.fail)
    assert [Path(describe(source)).stem for source in found.inputs] == ["train_red", "train_blue", "dev_green"]
    assert found.questions == []
    found = open_corpus_inputs(data, "dev", pytest.fail)
    assert [open_image(source).getpixel((0, 0)) for source in found.inputs] == [(0, 128, 0)]
    with pytest.raises(DataError, match="no image is in the split 'none'"):
        open_corpus_inputs(data, "none", pytest.fail)


def test_missing_pictures_are_reported_and_the_others_found(tmp_path):
    data = DataSection(path=str(write_colours(tmp_path, ["red", "blue"], ["green"])))
    (tmp_path / "train_red.png").unlink()
    errors = []
    found = open_corpus_inputs(data, "train", errors.append)
    assert [Path(describe(source)).stem for source in found.inputs] == ["train_blue"]
    assert [Path(error.source).name for error in errors] == ["train_red.png"]


def test_pictures_of_one_place_in_two_files_have_two_names(tmp_path):
    for split, seed in (("train", 0), ("validation", 1)):
        (tmp_path / split).mkdir()
        buffer = io.BytesIO()
        picture(seed).save(buffer, "PNG")
        row = {"image": base64.b64encode(buffer.getvalue()).decode(), "caption": "a dog"}
        (tmp_path / split / "metadata.jsonl").write_text(json.dumps(row))
    found = open_corpus_inputs(DataSection(path=str(tmp_path)), None, pytest.fail)
    names = [describe(source) for source in found.inputs]
    assert [name.partition(", ")[2] for name in names] == [
        "train/metadata.jsonl, line 1",
        "validation/metadata.jsonl, line 1",
    ]


def test_two_members_of_one_name_in_a_tar_have_two_names(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for seed in (0, 1):
            picture(seed).save(tmp_path / "1.png")
            (tmp_path / "1.txt").write_text(f"a dog {seed}")
            archive.add(tmp_path / "1.png", "1.png")
            archive.add(tmp_path / "1.txt", "1.txt")
    found = open_corpus_inputs(DataSection(path=str(tmp_path / "a.tar")), None, pytest.fail)
    first, second = map(describe, found.inputs)
    assert first.endswith("a.tar, 1.png")
    assert second.startswith(f"{first}@")
    assert [open_image(source) for source in found.inputs] == [picture(0), picture(1)]


def test_pictures_inside_larger_files_are_named_by_both(tmp_path):
    picture(1, width=21).save(tmp_path / "1.png")
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.write(tmp_path / "1.png", "1.png")
    (tmp_path / "1.png").unlink()
    (tmp_path / "captions.csv").write_text("image,caption\n1.png,A dog.\n")
    found = open_corpus_inputs(DataSection(path=str(tmp_path / "captions.csv"), dev_share=0), None, pytest.fail)
    [source] = found.inputs
    assert describe(source) == f"{tmp_path / 'photos.zip'}, 1.png"
    assert open_image(source).width == 21


def test_the_questions_about_each_picture(tmp_path):
    for number in range(2):
        picture(number).save(tmp_path / f"{number}.png")
    rows = ["image,question,answer,split", "0.png,What?,a dog,train", "1.png,Who?,a man,train", "0.png,Why?,yes,train"]
    (tmp_path / "qa.csv").write_text("\n".join(rows) + "\n")
    data = DataSection(path=str(tmp_path / "qa.csv"), prompt="Q: {question} A:")
    assert open_corpus_inputs(data, None, pytest.fail).questions == [["What?", "Why?"], ["Who?"]]


def test_vectors_with_captions(tmp_path):
    np.save(tmp_path / "vectors.npy", np.eye(3, dtype=np.float32))
    (tmp_path / "captions.csv").write_text("row,caption,split\n2,two,train\n0,zero,train\n")
    data = DataSection(path=str(tmp_path / "captions.csv"), features=str(tmp_path / "vectors.npy"))
    found = open_corpus_inputs(data, "train", pytest.fail).inputs
    assert [found.name(row) for row in range(len(found))] == ["2", "0"]
    assert found[0:1].flatten().tolist() == [0, 0, 1]
