"""What the package's plots have in common: the colours of text and grid, panels, and the file that comes of them."""

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TEXT, GRID = "#3c4650", "#e3e7eb"


def style_panel(panel: "Axes") -> None:
    """Gives a panel a light grid behind its lines, no frame and no ticks."""
    panel.grid(color=GRID, linewidth=0.8)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    panel.spines[["left", "bottom"]].set_color(GRID)
    panel.tick_params(colors=TEXT, length=0)
    panel.xaxis.label.set_color(TEXT)
    panel.yaxis.label.set_color(TEXT)


def as_png(figure: "Figure") -> bytes:
    """Returns the content of a PNG file that shows a figure."""
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()
