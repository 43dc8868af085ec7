"""The loss curves of a run as one self-contained SVG file."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

# In units of the picture, which is scaled to where it is shown: on a phone, letters of 18 in 560 are read well.
_WIDTH, _HEIGHT = 560, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 76, 28, 52, 68
_TRAIN, _DEV = "#9aa5b1", "#c2410c"


def loss_curves(log: Sequence[Mapping[str, Any]], best_step: int | None = None) -> str:
    """Train and dev loss against steps.

    Args:
        log: Trainer's `log_history`; entries with `step` and `loss` or `eval_loss` count, where these are finite.
        best_step: the step to mark on the dev curve.

    Returns:
        the file's text.
    """
    train, dev = (
        [(entry["step"], entry[name]) for entry in log if name in entry and math.isfinite(entry[name])]
        for name in ("loss", "eval_loss")
    )
    losses = [loss for _, loss in train + dev] or [0.0, 1.0]
    y_ticks = _ticks(min(losses), max(losses))
    x_ticks = [tick for tick in _ticks(0, max([step for step, _ in train + dev], default=1)) if tick == int(tick)]
    (low, high), last = (y_ticks[0], y_ticks[-1]), x_ticks[-1]

    def x(step: float) -> float:
        return round(_LEFT + step / last * (_WIDTH - _LEFT - _RIGHT), 1)

    def y(loss: float) -> float:
        return round(_HEIGHT - _BOTTOM - (loss - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM), 1)

    def curve(points: list[tuple[int, float]], colour: str, width: int) -> str:
        path = " ".join(f"{x(step)},{y(loss)}" for step, loss in points)
        return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}"/>'

    shapes = []
    for tick in y_ticks:
        shapes.append(f'<path d="M{_LEFT} {y(tick)}H{_WIDTH - _RIGHT}" stroke="#e3e7eb"/>')
        shapes.append(f'<text x="{_LEFT - 10}" y="{y(tick) + 6}" text-anchor="end">{tick:g}</text>')
    for tick in x_ticks:
        shapes.append(f'<text x="{x(tick)}" y="{_HEIGHT - _BOTTOM + 26}" text-anchor="middle">{tick:g}</text>')
    shapes.append(curve(train, _TRAIN, 2))
    shapes.append(curve(dev, _DEV, 3))
    for step, loss in dev:
        radius = 7 if step == best_step else 4
        shapes.append(f'<circle cx="{x(step)}" cy="{y(loss)}" r="{radius}" fill="{_DEV}"/>')
    best = dict(dev).get(best_step)
    dev_name = "dev" if best is None else f"dev, lowest {best:.3f} after step {best_step}"
    shapes.append(f'<text x="{_LEFT}" y="34" font-weight="bold"><tspan fill="#6b7682">train</tspan>')
    shapes.append(f'<tspan dx="20" fill="{_DEV}">{dev_name}</tspan></text>')
    middle = _TOP + (_HEIGHT - _TOP - _BOTTOM) / 2
    shapes.append(f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 16}" text-anchor="middle">step</text>')
    shapes.append(
        f'<text transform="translate(22 {middle}) rotate(-90)" text-anchor="middle">loss, nats a token</text>'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        'font-family="sans-serif" font-size="18" fill="#3c4650">\n<title>Train and dev loss against steps</title>\n'
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>\n' + "\n".join(shapes) + "\n</svg>\n"
    )


def _ticks(low: float, high: float) -> list[float]:
    """Three to seven round numbers, evenly spaced, the first at most `low` and the last at least `high`."""
    span = high - low or abs(high) or 1.0
    unit = 10.0 ** math.floor(math.log10(span / 5))
    step = next(factor * unit for factor in (1, 2, 5, 10) if span / (factor * unit) <= 5)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(number * step, 12) for number in range(first, max(last, first + 1) + 1)]
