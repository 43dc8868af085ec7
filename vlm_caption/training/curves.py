"""`curves.png`: the losses, the CIDEr and the learning rate of a training run."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..pages.plots import TEXT, as_png, style_panel

_TRAIN, _DEV, _RATE, _CIDER = "#8b98a5", "#c2410c", "#64748b", "#0f766e"


def draw_curves(log: Sequence[Mapping[str, Any]], best_step: int | None = None) -> bytes:
    """Draws train and dev loss, dev CIDEr and learning rate against the step, one below the other.

    Args:
        log: The entries of the training log. Finite values of `loss`, `eval_loss`, `eval_cider`, `reward` and
            `learning_rate` are drawn at their `step`. Without any `eval_cider` there is no CIDEr panel. A `loss` with
            a `reward` beside it is not in nats, and is left out.
        best_step: The step whose weights are kept, which is marked; None marks nothing.

    Returns:
        The content of a PNG file.
    """
    # Takes half a second to import, and is only needed at the end of a run.
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    train = _points([entry for entry in log if "reward" not in entry], "loss")
    dev, rate = _points(log, "eval_loss"), _points(log, "learning_rate")
    cider, reward = ([(step, 100 * value) for step, value in _points(log, name)] for name in ("eval_cider", "reward"))
    heights = [3.0, *([1.6] if cider else []), 1.0]
    figure = Figure(figsize=(8, 1.35 * sum(heights)), dpi=160, layout="constrained")
    axes = figure.subplots(len(heights), sharex=True, height_ratios=heights)

    losses, rates = axes[0], axes[-1]
    if train:
        losses.plot(*_columns(train), color=_TRAIN, linewidth=1.2, label="train")
    _plot_dev(losses, dev, best_step, _DEV, "dev")
    losses.set_ylabel("loss, nats per token")
    if cider:
        if reward:
            axes[1].plot(*_columns(reward), color=_TRAIN, linewidth=1.2, label="reward of sampled captions")
        _plot_dev(axes[1], cider, best_step, _CIDER, "dev CIDEr")
        axes[1].set_ylabel("CIDEr × 100")  # noqa: RUF001
    rates.plot(*_columns(rate), color=_RATE, linewidth=1.2)
    rates.set_ylabel("learning rate")
    rates.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    rates.set_xlabel("step")
    rates.xaxis.set_major_locator(MaxNLocator(integer=True))

    for panel in axes:
        style_panel(panel)
        if best_step is not None:
            panel.axvline(best_step, color=TEXT, linewidth=0.8, linestyle=(0, (2, 3)))
        if panel.get_legend_handles_labels()[1]:
            panel.legend(frameon=False, labelcolor=TEXT, loc="best")
    figure.align_ylabels(axes)
    return as_png(figure)


def _points(log: Sequence[Mapping[str, Any]], name: str) -> list[tuple[int, float]]:
    return [(entry["step"], entry[name]) for entry in log if name in entry and math.isfinite(entry[name])]


def _columns(points: list[tuple[int, float]]) -> tuple[list[int], list[float]]:
    return [step for step, _ in points], [value for _, value in points]


def _plot_dev(axes: Any, points: list[tuple[int, float]], best_step: int | None, colour: str, name: str) -> None:
    """Plots a curve of few points, with a larger marker at the kept step."""
    if not points:
        return
    axes.plot(*_columns(points), color=colour, linewidth=2, marker="o", markersize=4, label=name)
    if best_step in (at := dict(points)):
        label = f"kept: {at[best_step]:.4g} after step {best_step}"
        axes.plot([best_step], [at[best_step]], color=colour, marker="o", markersize=9, linestyle="none", label=label)
