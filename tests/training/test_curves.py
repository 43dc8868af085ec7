"""The curves' picture."""

import io

import numpy as np
import pytest
from PIL import Image

from vlm_caption.training.curves import draw_curves

LOG = [
    {"step": 10, "loss": 6.0, "learning_rate": 1e-3},
    {"step": 20, "loss": 4.0, "learning_rate": 5e-4},
    {"step": 20, "eval_loss": 4.5},
    {"step": 30, "loss": float("nan"), "learning_rate": 2e-4},
    {"step": 40, "loss": 3.0, "learning_rate": 0.0},
    {"step": 40, "eval_loss": 3.25},
    {"step": 40, "samples": []},
]
WITH_CIDER = [entry | {"eval_cider": 0.5} if "eval_loss" in entry else entry for entry in LOG]
DEV, CIDER = (194, 65, 12), (15, 118, 110)


def draw(log, best_step=None) -> np.ndarray:
    """The picture's pixels."""
    picture = Image.open(io.BytesIO(draw_curves(log, best_step)))
    assert picture.format == "PNG"
    return np.asarray(picture.convert("RGB"))


def count(pixels: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((pixels == colour).all(axis=-1).sum())


def test_dev_losses_are_drawn_where_there_are_any():
    assert count(draw(LOG), DEV) > 500
    assert count(draw([entry for entry in LOG if "eval_loss" not in entry]), DEV) == 0


def test_cider_has_a_panel_of_its_own_once_it_is_taken():
    without, with_cider = draw(LOG), draw(WITH_CIDER)
    assert count(without, CIDER) == 0
    assert count(with_cider, CIDER) > 500
    assert with_cider.shape[0] > without.shape[0]


def test_a_reward_is_drawn_beside_the_cider_and_its_loss_is_not():
    grey = (139, 152, 165)
    dev = [entry for entry in WITH_CIDER if "eval_loss" in entry]
    rewards = [{"step": step, "loss": 0.01, "reward": 0.3 + step / 200} for step in (10, 20, 30, 40)]
    losses = [{"step": entry["step"], "loss": entry["loss"]} for entry in rewards]
    plain, rewarded, without_cider = (draw(log) for log in (dev, dev + rewards, losses[:0] + rewards))
    assert count(plain, grey) == count(without_cider, grey) == 0
    assert count(rewarded, grey) > 200


def test_the_kept_step_is_marked():
    unmarked, marked = draw(LOG), draw(LOG, best_step=40)
    assert count(marked, DEV) > count(unmarked, DEV) + 100


def test_loss_falls_from_left_to_right():
    rows, columns = np.nonzero((draw(LOG) == DEV).all(axis=-1))
    line = columns < columns.max() * 0.7  # without the legend
    left, right = columns[line].min(), columns[line].max()
    assert rows[line & (columns == left)].mean() < rows[line & (columns == right)].mean()  # a picture's y points down


@pytest.mark.parametrize("log", [[], [{"step": 1, "loss": 5.0}], [{"step": 3, "eval_loss": 0.0}]])
def test_a_short_log_is_no_trouble(log):
    assert draw(log).shape[2] == 3
