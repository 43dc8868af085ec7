"""The loss curves' picture."""

import xml.etree.ElementTree as ET

import pytest

from vlm_caption.curves import loss_curves

LOG = [
    {"step": 10, "loss": 6.0},
    {"step": 20, "loss": 4.0},
    {"step": 20, "eval_loss": 4.5},
    {"step": 30, "loss": float("nan")},
    {"step": 40, "loss": 3.0},
    {"step": 40, "eval_loss": 3.25},
    {"step": 40, "train_runtime": 3.0},
]
SVG = "{http://www.w3.org/2000/svg}"


def parse(text: str) -> tuple[list[list[tuple[float, float]]], list[str], ET.Element]:
    """The curves' points, the texts, and the picture."""
    picture = ET.fromstring(text)
    curves = [
        [tuple(map(float, pair.split(","))) for pair in line.get("points").split()]
        for line in picture.iter(f"{SVG}polyline")
    ]
    return curves, [" ".join("".join(text.itertext()).split()) for text in picture.iter(f"{SVG}text")], picture


def test_both_curves_are_drawn_to_one_scale():
    (train, dev), _, _ = parse(loss_curves(LOG, best_step=40))
    assert len(train) == 3  # a loss that is none is left out
    assert len(dev) == 2
    (x10, y6), (x20, y4), (x40, y3) = train
    assert (x20 - x10) * 2 == pytest.approx(x40 - x20, abs=0.3)
    assert (y4 - y6) == pytest.approx(2 * (y3 - y4), abs=0.3)
    assert y6 < y4 < y3  # a picture's y points down
    assert dev[0][0] == x20
    assert y4 > dev[0][1] > y6


def test_axes_are_named_and_have_round_numbers():
    _, texts, _ = parse(loss_curves(LOG, best_step=40))
    assert {"step", "loss, nats a token", "0", "10", "40", "3", "4", "6"} <= set(texts)
    assert "train dev, lowest 3.250 after step 40" in texts


def test_everything_is_inside_the_picture():
    curves, _, picture = parse(loss_curves(LOG))
    width, height = map(float, picture.get("viewBox").split()[2:])
    assert all(0 < x < width and 0 < y < height for curve in curves for x, y in curve)


@pytest.mark.parametrize("log", [[], [{"step": 1, "loss": 5.0}], [{"step": 3, "eval_loss": 0.0}]])
def test_a_short_log_is_no_trouble(log):
    parse(loss_curves(log))
