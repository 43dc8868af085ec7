"""Captions that are not sure enough go to a file of their own, also if the job is resumed."""

import json

import pytest
import torch
from commands import load_script
from test_captioner import LANGUAGE, VISION
from tiny_models import made_up_confidence, picture

from vlm_caption import compose
from vlm_caption.captioning.confidence import CONFIDENCE_NAME

PICTURES = 6


@pytest.fixture
def folder(tmp_path):
    """A checkpoint with confidences, and pictures."""
    checkpoint = tmp_path / "checkpoint"
    torch.manual_seed(0)
    model, processor = compose(VISION, LANGUAGE, image_tokens="patches", pooled_in_front=True)
    model.generation_config.update(max_new_tokens=8, num_beams=2)
    model.save_pretrained(checkpoint)
    processor.save_pretrained(checkpoint)
    made_up_confidence(model).save(checkpoint)
    (tmp_path / "photos").mkdir()
    for number in range(PICTURES):
        picture(number).save(tmp_path / "photos" / f"{number}.png")
    return tmp_path


def caption(folder, *options) -> int:
    arguments = ["--checkpoint", folder / "checkpoint", "--output", folder / "captions.jsonl", *options]
    return load_script("caption").main([*map(str, arguments), str(folder / "photos")])


def read(path) -> dict[str, float]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return {line["image"]: line["confidence"] for line in lines}


def test_the_unsure_captions_go_to_the_review_file(folder, capsys):
    assert caption(folder) == 0
    everything = read(folder / "captions.jsonl")
    assert len(everything) == PICTURES
    minimum = sum(sorted(everything.values())[PICTURES // 2 - 1 : PICTURES // 2 + 1]) / 2
    (folder / "captions.jsonl").unlink()
    capsys.readouterr()
    review = folder / "review.jsonl"
    for _ in range(2):  # the second time, nothing is left to do
        assert caption(folder, "--min-confidence", str(minimum), "--review", review) == 0
        assert f"has {len(read(review))} of {PICTURES} pictures to review" in capsys.readouterr().err
        assert read(folder / "captions.jsonl") | read(review) == pytest.approx(everything, abs=1e-3)
        assert not read(folder / "captions.jsonl").keys() & read(review).keys()
        assert all(value < minimum for value in read(review).values())
    assert len(read(review)) == PICTURES // 2


def test_a_checkpoint_without_confidences_has_null_and_no_review(folder, capsys):
    (folder / "checkpoint" / CONFIDENCE_NAME).unlink()
    options = ("--min-confidence", "0.5", "--review", folder / "review.jsonl")
    assert caption(folder, *options) == 2
    assert "has no confidence.json: make it with scripts/calibrate.py" in capsys.readouterr().err
    assert caption(folder) == 0
    assert set(read(folder / "captions.jsonl").values()) == {None}


def test_confidences_can_be_left_out(folder):
    assert caption(folder, "--no-confidence") == 0
    assert set(read(folder / "captions.jsonl").values()) == {None}


def test_tables_have_an_empty_cell_or_null(folder, tmp_path):
    for name, options in (("a.csv", ()), ("b.csv", ("--no-confidence",)), ("c.parquet", ("--no-confidence",))):
        assert caption(folder, "--output", tmp_path / name, *options) == 0
        assert caption(folder, "--output", tmp_path / name, *options) == 0  # reads the table again
    head, first, *_ = (tmp_path / "b.csv").read_text().splitlines()
    assert head == "image,caption,score,confidence,finished,checkpoint"
    assert ",," in first
    assert ",," not in (tmp_path / "a.csv").read_text()
    import pyarrow.parquet as pq

    assert pq.read_table(tmp_path / "c.parquet")["confidence"].null_count == PICTURES


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--min-confidence", "0.5"), "go together"),
        (("--review", "r.jsonl"), "go together"),
        (("--min-confidence", "1.5", "--review", "r.jsonl"), "at most 1"),
        (("--min-confidence", "0.5", "--review", "r.jsonl", "--no-confidence"), "leave one out"),
    ],
)
def test_options_that_do_not_go_together_are_refused(folder, capsys, options, message):
    with pytest.raises(SystemExit) as caught:
        caption(folder, *options)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_a_picture_goes_to_review_if_one_of_its_captions_is_unsure(folder):
    review = folder / "review.jsonl"
    options = ("--num-captions", "2", "--num-beams", "2", "--min-confidence", "0.6", "--review", review)
    assert caption(folder, *options) == 0
    for path in (review, folder / "captions.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        images = [line["image"] for line in lines]
        assert all(images.count(image) == 2 for image in images)
        for image in set(images):
            lowest = min(line["confidence"] for line in lines if line["image"] == image)
            assert (lowest < 0.6) == (path == review)
