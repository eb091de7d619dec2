"""The report's plots as inline SVG: colours are the page's own variables, so they follow dark and light."""

import io
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from brain_service.datasets.quality.coverage import Coverage
from brain_service.datasets.quality.ranges import Histogram

__all__ = ["DATA", "LINE", "WARN", "ends_plot", "histogram_plot", "sparkline", "states_plot", "svg"]

# Colours that nothing else in a plot has; in the page each becomes a CSS variable.
_INK, LINE, DATA, WARN = "#010203", "#010204", "#010205", "#010206"
_VARIABLES = {_INK: "var(--ink)", LINE: "var(--line)", DATA: "var(--data)", WARN: "var(--bad)"}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": LINE,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
_SHADES = ListedColormap([(0.16, 0.47, 0.71, 0.15 + 0.85 * i / 15) for i in range(16)])


def histogram_plot(
    name: str, figures: Histogram, x_label: str, y_label: str, mark: float | None = None, *, rare: bool = False
) -> str:
    """Return a histogram as SVG; `mark` is a limit drawn as a dashed line where it lies inside the range.

    Counts stand on a logarithmic scale where one bin towers above the others; with `rare` also where the smallest
    bin would not be seen, since a single entry matters.
    """

    def draw(axes: Axes) -> None:
        if not figures.counts:
            return
        low, high = figures.low, figures.high
        if low == high:
            # One value: a bar around it.
            low, high = low - 0.5, high + 0.5
        edges = np.linspace(low, high, len(figures.counts) + 1)
        axes.stairs(figures.counts, edges, fill=True, color=DATA)
        filled = [count for count in figures.counts if count] or [1]
        if max(filled) > 50 * (min(filled) if rare else np.median(filled)):
            axes.set_yscale("symlog", linthresh=1)
        if mark is not None and figures.low <= mark <= figures.high:
            axes.axvline(mark, color=WARN, linestyle="--", linewidth=1.2)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.set_ylim(bottom=0)

    return svg(name, draw, 4.2, 2.5)


def states_plot(name: str, coverage: Coverage) -> str:
    """Return the cells that sampled states fill, with held-out states as points."""

    def draw(axes: Axes) -> None:
        grid = np.array(coverage.grid, np.float64)
        shown = np.ma.masked_equal(np.log1p(grid), 0)
        left, right, bottom, top = coverage.extent
        axes.imshow(
            shown,
            origin="lower",
            extent=(left, right, bottom, top),
            aspect="auto",
            cmap=_SHADES,
            interpolation="none",
        )
        if coverage.val_points:
            points = np.array(coverage.val_points)
            axes.plot(points[:, 0], points[:, 1], ".", color=WARN, markersize=2.5, label="held out")
            # Above the plot: anywhere inside there may be states.
            axes.legend(
                loc="lower right",
                bbox_to_anchor=(1, 1),
                borderaxespad=0,
                frameon=False,
                fontsize=9,
                handletextpad=0.1,
                markerscale=2,
            )
        axes.set_xlim(left, right)
        axes.set_ylim(bottom, top)
        _label_components(axes, 0, 1)

    return svg(name, draw, 4.6, 3.6)


def ends_plot(name: str, coverage: Coverage, hole_limit: float) -> str:
    """Return where episodes end, with the largest hole where it should hold more than `hole_limit` episodes."""
    hole = coverage.hole
    if hole and hole.expected_episodes <= hole_limit:
        hole = None
    x, y = hole.axes if hole else (0, 1)

    def draw(axes: Axes) -> None:
        points = np.array(coverage.end_points)
        axes.plot(points[:, x], points[:, y], ".", color=DATA, markersize=4)
        if hole:
            axes.add_patch(Circle(hole.center, hole.radius, fill=False, color=WARN, linewidth=1.6))
            axes.annotate("hole", hole.center, color=WARN, ha="center", va="center")
        axes.set_aspect("equal", adjustable="datalim")
        _label_components(axes, x, y)

    return svg(name, draw, 4.6, 3.6)


def _label_components(axes: Axes, x: int, y: int) -> None:
    axes.set_xlabel(f"component {x + 1} (standard deviations)")
    axes.set_ylabel(f"component {y + 1}")


def sparkline(figures: Histogram) -> str:
    """Return a histogram of the height of a line of text; decoration beside the figures of its row."""
    if not figures.counts:
        return ""
    top = max(figures.counts)
    # The root keeps rare values visible beside a peak.
    heights = [0 if not count else max(1, round(18 * (count / top) ** 0.5)) for count in figures.counts]
    path = "".join(f"M{2 * i} 18v-{height}h2v{height}z" for i, height in enumerate(heights) if height)
    return f'<svg class="spark" viewBox="0 0 {2 * len(heights)} 18" aria-hidden="true"><path d="{path}"/></svg>'


def svg(name: str, draw: Callable[[Axes], None], width: float, height: float) -> str:
    """Draw on fresh axes of a size in inches and return the SVG element; `name` keeps its ids apart."""
    with rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure.add_subplot())
        buffer = io.StringIO()
        nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    for color, variable in _VARIABLES.items():
        text = text.replace(color, variable)
    # Ids are unique in a page, and every plot begins to count anew.
    text = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    return re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true">', text, count=1)
