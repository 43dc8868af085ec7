"""The page of dev captions over time."""

import re

import pytest
from PIL import Image

from vlm_caption.core.errors import ImageError
from vlm_caption.data import PictureOpener
from vlm_caption.training.samples_page import write_samples_page


@pytest.fixture
def page(tmp_path):
    """Writes the page of two pictures, and returns its text."""
    rows = []
    for name in ("red", "blue"):
        Image.new("RGB", (40, 30), name).save(tmp_path / f"{name}.png")
        rows.append({"image": str(tmp_path / f"{name}.png"), "captions": [f"all {name}", f"{name} <b>"]})

    def page(log, kept_step):
        write_samples_page(tmp_path / "samples.html", rows, log, kept_step, PictureOpener())
        return (tmp_path / "samples.html").read_text()

    return page


def entry(step: int, *captions: str) -> dict:
    names = ("red.png", "blue.png")
    return {
        "step": step,
        "samples": [{"image": name, "caption": text} for name, text in zip(names, captions, strict=False)],
    }


LOG = [
    entry(10, "x", "a < b"),
    {"step": 15, "loss": 1.0},
    entry(20, "x", "c"),
    entry(30, "y", "d"),
    entry(40, "z", "d"),
]


def lines(text: str) -> list[list[tuple[str, str]]]:
    """Of each picture the steps and captions, marks included, in words."""
    return [
        [
            tuple(" ".join(re.sub("<[^>]+>", " ", cell).split()) for cell in re.findall("<td.*?</td>", row))
            for row in re.findall("<tr.*?</tr>", figure)
        ]
        for figure in re.findall("<figure>.*?</figure>", text, re.DOTALL)
    ]


def test_captions_stand_in_the_order_of_steps_and_equal_ones_share_a_line(page):
    assert lines(page(LOG, 30)) == [
        [("10 to 20", "x"), ("step 30", "y kept"), ("step 40", "z last")],
        [("step 10", "a &lt; b"), ("step 20", "c"), ("30 to 40", "d kept last")],
    ]


def test_the_kept_caption_stands_above_the_references_beside_a_small_copy(page):
    first, second = re.findall("<figure>.*?</figure>", page(LOG, 20), re.DOTALL)
    assert '<p class="caption">x</p>\n<ul class="references"><li>all red</li><li>red &lt;b&gt;</li></ul>' in first
    assert second.count('src="data:image/jpeg;base64,') == 1
    assert 'alt="c"' in second
    assert "http" not in first + second


def test_images_that_were_not_shown_at_first_begin_later(page):
    log = [entry(10, "x"), entry(20, "x", "c")]
    assert lines(page(log, 20)) == [[("10 to 20", "x kept last")], [("step 20", "c kept last")]]


def test_images_that_were_never_shown_are_left_out(page):
    assert lines(page([entry(10, "x")], 10)) == [[("step 10", "x kept last")]]


def test_a_question_stands_above_its_own_answers(tmp_path):
    row = {"image": "a", "questions": ["Who & why?", "Where?", "Who & why?"], "captions": ["Ann", "here", "Bo"]}
    log = [{"step": 5, "samples": [{"image": "a", "caption": "Cy"}]}]
    write_samples_page(tmp_path / "samples.html", [row], log, 5, None)
    text = (tmp_path / "samples.html").read_text()
    assert '<p class="question">Who &amp; why?</p>\n<p class="caption">Cy</p>' in text
    assert '<ul class="references"><li>Ann</li><li>Bo</li></ul>' in text


def test_captions_of_vectors_stand_without_pictures(tmp_path):
    rows = [{"image": "row 7", "captions": ["a seven"]}]
    log = [{"step": 5, "samples": [{"image": "row 7", "caption": "a one"}]}]
    write_samples_page(tmp_path / "samples.html", rows, log, 5, None)
    text = (tmp_path / "samples.html").read_text()
    assert "<img" not in text
    assert '<p class="caption">a one</p>' in text
    assert '<p class="file">row 7</p>' in text


def test_a_picture_that_is_gone_is_named(page, tmp_path):
    (tmp_path / "blue.png").unlink()
    with pytest.raises(ImageError, match=r"blue\.png"):
        page(LOG, 20)
