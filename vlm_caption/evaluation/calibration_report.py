"""How good confidences are: numbers, sentences and a plot."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ..metrics.bootstrap import Interval
from ..metrics.reliability import (
    auroc,
    calibration_error,
    chance_error,
    reliability_bins,
    reliability_intervals,
    risk_coverage,
)
from ..pages.plots import GRID, TEXT, as_png, style_panel

_LINE, _AREA = "#c2410c", "#0f766e"

# The shares of captions, the most confident ones first, that the report gives the risk of.
_COVERAGES = (0.1, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class CalibrationReport:
    """Confidences of captions that they were not fitted on.

    Attributes:
        confidences: The confidence of each photo's caption, float [N].
        is_right: Whether it is right, bool [N].
        cider: Its CIDEr-D, a fraction, float [N].
        unseen: The confidence of each drawn picture's caption, with that kind of picture not fitted on, float [M].
        kinds: The kind of each drawn picture [M].
        scores: The mean log-probability of each photo's caption, float [N], to compare confidences with.
    """

    confidences: np.ndarray
    is_right: np.ndarray
    cider: np.ndarray
    unseen: np.ndarray
    kinds: np.ndarray
    scores: np.ndarray

    @property
    def ece(self) -> float:
        """The expected calibration error, in ten bins of equal counts."""
        return calibration_error(self.confidences, self.is_right)

    @cached_property
    def chance_ece(self) -> float:
        """The calibration error that perfect confidences of so many captions would have by chance."""
        return chance_error(self.confidences)

    @cached_property
    def intervals(self) -> dict[str, Interval]:
        """95 % bootstrap intervals of `right`, `ece` and `auroc`."""
        return reliability_intervals(self.confidences, self.is_right)

    @property
    def half_gain(self) -> float:
        """The CIDEr of the more confident half of the captions, divided by that of all; NaN if that is 0."""
        half = risk_coverage(self.confidences, self.cider)[len(self.cider) // 2 - 1]
        return float(half / self.cider.mean()) if self.cider.any() else float("nan")

    @property
    def low_photos(self) -> float:
        """The confidence that 95 % of the photos are above."""
        return float(np.quantile(self.confidences, 0.05))

    @property
    def shares_low(self) -> dict[str, float]:
        """By kind, the share of drawn pictures that land below 95 % of the photos."""
        kinds = list(dict.fromkeys(self.kinds.tolist()))
        return {kind: float((self.unseen[self.kinds == kind] < self.low_photos).mean()) for kind in kinds}

    def to_dict(self) -> dict[str, Any]:
        """Returns all numbers, for JSON."""
        risks = 1 - risk_coverage(self.confidences, self.is_right)
        ciders = risk_coverage(self.confidences, self.cider)
        rows = [max(1, round(share * len(risks))) - 1 for share in _COVERAGES]
        numbers = {
            "images": len(self.confidences),
            "right": float(self.is_right.mean()),
            "ece": self.ece,
            "chance_ece": self.chance_ece,
            "auroc": auroc(self.confidences, self.is_right),
            "auroc_of_score": auroc(self.scores, self.is_right),
            "cider": float(self.cider.mean()),
            "half_gain": self.half_gain,
            "low_photos": self.low_photos,
        }
        return {
            **{name: value if isinstance(value, int) else _rounded(value) for name, value in numbers.items()},
            "intervals": {name: [_rounded(end) for end in ends] for name, ends in self.intervals.items()},
            "bins": [
                [_rounded(part.confidence), _rounded(part.right), part.count]
                for part in reliability_bins(self.confidences, self.is_right)
            ],
            "risk_coverage": [
                [share, _rounded(risks[row]), _rounded(ciders[row])]
                for share, row in zip(_COVERAGES, rows, strict=True)
            ],
            "drawn_below_photos": {kind: _rounded(share) for kind, share in self.shares_low.items()},
        }

    def __str__(self) -> str:
        found = self.to_dict()
        ends = {name: f"{low:.3f} to {high:.3f}" for name, (low, high) in self.intervals.items()}
        drawn = ", ".join(f"{kind} {100 * share:.0f} %" for kind, share in self.shares_low.items())
        lines = [
            f"{found['images']:,} captions, {100 * found['right']:.1f} % of them right; each half measured with "
            "confidences fitted on the other half",
            f"calibration error (ECE)      {found['ece']:.3f}   95 % interval {ends['ece']}; by chance alone "
            f"{found['chance_ece']:.3f}",
            f"AUROC of right and wrong     {found['auroc']:.3f}   95 % interval {ends['auroc']}; of the mean "
            f"log-probability {found['auroc_of_score']:.3f}",
            "most confident share         "
            + "  ".join(f"{100 * share:5.0f} %" for share, _, _ in found["risk_coverage"]),
            "  wrong                      "
            + "  ".join(f"{100 * risk:5.1f} %" for _, risk, _ in found["risk_coverage"]),
            "  CIDEr                      "
            + "  ".join(f"{100 * cider:7.1f}" for _, _, cider in found["risk_coverage"]),
            f"CIDEr of the sure half       {found['half_gain']:.2f} of the CIDEr of all",
            f"drawn pictures below 95 % of the photos, of kinds not fitted on: {drawn}",
        ]
        return "\n".join(lines)


def _rounded(value: float) -> float | None:
    """Returns a number with four decimals; None for NaN, which JSON does not have."""
    return None if np.isnan(value) else round(float(value), 4)


def draw_reliability(report: CalibrationReport) -> bytes:
    """Draws the reliability diagram and the risk–coverage curve, side by side.

    Returns:
        The content of a PNG file.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.4), dpi=160, layout="constrained")
    reliability, risk = figure.subplots(1, 2)
    parts = reliability_bins(report.confidences, report.is_right)
    reliability.plot([0, 1], [0, 1], color=TEXT, linewidth=0.8, linestyle=(0, (2, 3)))
    reliability.plot(
        [part.confidence for part in parts], [part.right for part in parts], color=_LINE, linewidth=2, marker="o"
    )
    reliability.hist(
        report.confidences,
        bins=20,
        range=(0, 1),
        weights=np.full(len(report.confidences), 0.5 / len(report.confidences)),
        color=GRID,
    )
    reliability.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="share of right captions")
    reliability.set_title(f"ECE {report.ece:.3f}", color=TEXT, fontsize=10)
    coverage = np.arange(1, len(report.confidences) + 1) / len(report.confidences)
    for values, colour, label in (
        (report.confidences, _LINE, "by confidence"),
        (report.scores, _AREA, "by mean log-probability"),
    ):
        risk.plot(coverage, 1 - risk_coverage(values, report.is_right), color=colour, linewidth=1.6, label=label)
    risk.set(xlim=(0, 1), ylim=(0, None), xlabel="share of captions kept", ylabel="share of wrong captions among them")
    risk.legend(frameon=False, labelcolor=TEXT)
    for panel in (reliability, risk):
        style_panel(panel)
    return as_png(figure)
