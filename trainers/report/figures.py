"""Draws the plots and images of a report, to be embedded in the page.

matplotlib must not parse text from files, because it reads `$` as math. The drawing functions
import matplotlib and Pillow, because most of a training run needs neither.
"""

import base64
import functools
import io
import re

import numpy as np

from zoo.formatting import short_number
from zoo.processes import out_of_current_folder

_LARGEST_IMAGE = 256  # pixels per side, which bounds the size of the page
# Placeholders for the variables of the style sheet, so that plots follow light and dark mode.
_COLORS = {
    "ink": "#010203",
    "line": "#010204",
    "training": "#010205",
    "validation": "#010206",
}
NUM_COLORS = 8  # of runs in one plot; further runs repeat the colors with other line styles
_LINE_STYLES = ("-", "--", ":")
_COLORS |= {f"run-{i}": f"#0103{i:02x}" for i in range(NUM_COLORS)}


def line_plot(lines: dict[str, dict[float, float]], name: str) -> str:
    """Draws values over steps.

    Args:
      lines: `training`, `validation` or both -> step -> value.
      name: name of the plot, unique in the page.

    Returns:
      SVG element, which all plot functions of this file return.
    """
    return _over_steps([(series, _COLORS[label], 1.6) for label, series in lines.items()], name)


def group_plot(lines: list[dict[float, float]], name: str) -> str:
    """Draws the members of a group over steps, thin lines of one color.

    Args:
      lines: step -> value of each member.
      name: name of the plot, unique in the page.
    """
    return _over_steps([(series, _COLORS["training"], 0.8) for series in lines], name)


def _over_steps(lines: list[tuple[dict[float, float], str, float]], name: str) -> str:
    """Draws lines, each given as (step -> value, color, width)."""
    figure, axes = _axes(6.4, 3.4)
    for series, color, width in lines:
        # A line of few points is hard to see, and a line of one point is invisible.
        marker = "o" if len(series) <= 30 else None
        style = {"linewidth": width, "marker": marker, "markersize": 2.2 * width, "color": color}
        axes.plot(list(series), list(series.values()), **style)
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(_matplotlib().ticker.MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(lambda step, _: f"{step:,.0f}")
    _grid(axes)
    return _svg(figure, axes, name)


def range_test(rates: list[float], losses: list[float], averages: list[float], name: str) -> str:
    """Draws losses, and their averages, over learning rates on a logarithmic axis."""
    figure, axes = _axes(6.4, 3.4)
    axes.plot(rates, losses, linewidth=1.2, alpha=0.6, color=_COLORS["training"])
    axes.plot(rates, averages, linewidth=2.0, color=_COLORS["validation"])
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda rate, _: f"{rate:.0e}")
    axes.set_xlabel("learning rate")
    _grid(axes)
    return _svg(figure, axes, name)


def overlay(lines: list[tuple[list[float], list[float]]], x_label: str, name: str) -> str:
    """Draws one line per run, in the order of the runs.

    Args:
      lines: (places, values) of each run; both may be empty.
      x_label: label of the x axis.
      name: name of the plot, unique in the page.
    """
    figure, axes = _axes(6.4, 3.4)
    for i, (x, y) in enumerate(lines):
        axes.plot(
            x, y, linewidth=1.6, marker="o" if len(x) <= 30 else None, markersize=3.5,
            color=_COLORS[f"run-{i % NUM_COLORS}"],
            linestyle=_LINE_STYLES[i // NUM_COLORS % len(_LINE_STYLES)],
        )  # fmt: skip
    axes.set_xlabel(x_label)
    axes.xaxis.set_major_locator(_matplotlib().ticker.MaxNLocator(6))
    axes.xaxis.set_major_formatter(lambda place, _: short_number(place))
    _grid(axes)
    return _svg(figure, axes, name)


def bars(values: dict[str, float], name: str, line: float | None = 1.0) -> str:
    """Draws one bar per value, with a vertical line, such as one at the ratio 1."""
    figure, axes = _axes(6.4, 0.9 + 0.45 * len(values))
    labels = list(values)[::-1]
    rectangles = axes.barh(labels, [values[label] for label in labels], color=_COLORS["training"])
    axes.bar_label(rectangles, fmt="{:.2f}", padding=4, color=_COLORS["ink"], fontsize=11)
    if line is not None:
        axes.axvline(line, color=_COLORS["validation"], linewidth=1.2)
    axes.set_xlim(0, 1.15 * max(line or 0.0, *values.values()))
    return _svg(figure, axes, name)


def parallel(
    names: list[str], rows: list[list[float]], ticks: list[list[str]], logarithmic: list[bool],
    name: str,
) -> str:  # fmt: skip
    """Draws parallel coordinates: one axis per name, one line per row, the last row on top.

    Args:
      names: names of the axes; the last axis is the result, by which lines are colored.
      rows: values of each line; the last row is the best.
      ticks: labels of the values 0, 1 ... of an axis of choices; [] for an axis of numbers.
      logarithmic: whether each axis is logarithmic.
      name: name of the plot, unique in the page.
    """
    figure, axes = _axes(7.2, 3.8)
    values = np.array(rows, float)
    lows, highs = [], []
    for i, is_logarithmic in enumerate(logarithmic):
        values[:, i] = np.log10(values[:, i]) if is_logarithmic else values[:, i]
        lows.append(0.0 if ticks[i] else values[:, i].min())
        highs.append(len(ticks[i]) - 1.0 if ticks[i] else values[:, i].max())
    spans = [high - low or 1.0 for low, high in zip(lows, highs, strict=True)]
    heights = (values - lows) / spans
    for i, row in enumerate(heights):
        is_best = i == len(heights) - 1
        color = _COLORS["validation" if is_best else "training"]
        alpha = 1.0 if is_best else 0.25 + 0.5 * i / len(heights)
        axes.plot(
            range(len(names)), row, color=color, alpha=alpha, linewidth=2.4 if is_best else 1.2
        )
    for i in range(len(names)):
        axes.axvline(i, color=_COLORS["ink"], linewidth=0.8)
        if ticks[i]:
            marks = [(n / max(1, len(ticks[i]) - 1), text) for n, text in enumerate(ticks[i])]
        else:
            ends = [10**x if logarithmic[i] else x for x in (lows[i], lows[i] + spans[i])]
            marks = [(height, f"{end:.3g}") for height, end in zip((0, 1), ends, strict=True)]
        for height, text in marks:
            axes.annotate(
                text, (i, height), (5, 3), textcoords="offset points", color=_COLORS["ink"],
                fontsize=10, parse_math=False,
            )  # fmt: skip
    axes.set_xticks(range(len(names)), names, parse_math=False)
    axes.set_yticks([])
    axes.set_xlim(-0.1, len(names) - 0.55)
    return _svg(figure, axes, name)


def scatter(points: list[tuple[float, float, str, bool]], x: str, y: str, name: str) -> str:
    """Draws labeled points `(x, y, label, filled)` over a logarithmic x axis."""
    figure, axes = _axes(6.4, 3.8)
    ink = _COLORS["ink"]
    for place, value, label, full in points:
        color = _COLORS["validation" if full else "training"]
        fill = color if full else "none"
        axes.plot(place, value, "o", color=color, markersize=8, markerfacecolor=fill)
        axes.annotate(label, (place, value), (7, 5), textcoords="offset points", color=ink)
    axes.set_xscale("log")
    axes.margins(0.12)
    axes.set_xlabel(x)
    axes.set_ylabel(y, parse_math=False)
    _grid(axes)
    return _svg(figure, axes, name)


def matrix(shares: np.ndarray, name: str) -> str:
    """Draws a confusion matrix `(true, predicted)` of shares between 0 and 1."""
    figure, axes = _axes(7, 7, dpi=200)  # at least one pixel per class up to 1,000 classes
    blue = [(0.23, 0.47, 0.94, alpha) for alpha in (0.04, 0.6, 1.0)]
    # The square root makes confusions of a few percent visible.
    axes.imshow(
        np.sqrt(shares), cmap=_matplotlib().colors.LinearSegmentedColormap.from_list("share", blue)
    )
    axes.set(xlabel="predicted class", ylabel="true class")
    return _svg(figure, axes, name)


def calibration(bins: list[tuple[float, float, int]], name: str) -> str:
    """Draws the accuracy of bins of predictions over their confidence, with the diagonal.

    Args:
      bins: (mean confidence, accuracy, number of predictions) of each bin.
      name: name of the plot, unique in the page.
    """
    figure, axes = _axes(4.2, 4.2)
    axes.plot([0, 1], [0, 1], color=_COLORS["validation"], linewidth=1.2)
    confidence, accuracy, counts = np.array(bins).T
    sizes = 12 + 180 * counts / counts.max()
    axes.plot(confidence, accuracy, color=_COLORS["training"], linewidth=1.2)
    axes.scatter(confidence, accuracy, sizes, color=_COLORS["training"])
    axes.set(xlim=(0, 1.03), ylim=(0, 1.03), xlabel="confidence", ylabel="accuracy")
    _grid(axes)
    return _svg(figure, axes, name)


def image(pixels: np.ndarray) -> str:
    """Returns pixels (H, W) or (H, W, C), uint8 or float in [0, 1], as data URI of a PNG."""
    from PIL import Image

    if pixels.dtype.kind == "f":
        pixels = np.nan_to_num(np.clip(pixels, 0, 1)) * 255
    if pixels.ndim == 3 and pixels.shape[-1] != 3:
        pixels = pixels.mean(axis=-1)
    small = Image.fromarray(pixels.astype(np.uint8))
    small.thumbnail((_LARGEST_IMAGE, _LARGEST_IMAGE))
    stream = io.BytesIO()
    small.save(stream, format="PNG")
    return png(stream.getvalue())


def png(content: bytes) -> str:
    """Returns the content of a PNG file as a data URI."""
    return f"data:image/png;base64,{base64.b64encode(content).decode('ascii')}"


def with_heat_map(pixels: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Returns an image and, to the right, the same image with its heat map on top.

    Args:
      pixels: (H, W, 1 or 3) uint8.
      heat: (H, W) uint8.

    Returns:
      (H, 2 W, 3) uint8.
    """
    color = np.repeat(pixels, 3, axis=-1) if pixels.shape[-1] == 1 else pixels
    gray = np.repeat(color.mean(axis=-1, keepdims=True), 3, axis=-1)
    warm = 255 * _matplotlib().colormaps["inferno"](heat)[..., :3]
    return np.concatenate([color, (0.4 * gray + 0.6 * warm)], axis=1).astype(np.uint8)


@functools.cache
def _matplotlib():
    """Imports matplotlib without the settings of a matplotlibrc in the current folder."""
    with out_of_current_folder():
        import matplotlib
        import matplotlib.colors
        import matplotlib.figure
        import matplotlib.ticker
    return matplotlib


def _axes(width: float, height: float, **options):
    """Returns a figure of that size, in inches, and its axes."""
    figure = _matplotlib().figure.Figure(figsize=(width, height), layout="constrained", **options)
    return figure, figure.add_subplot()


def _grid(axes) -> None:
    axes.grid(color=_COLORS["line"], linewidth=0.8)
    axes.set_axisbelow(True)


def _svg(figure, axes, name: str) -> str:
    """Returns a figure as an SVG element that takes its colors from the style sheet."""
    axes.tick_params(length=0, labelcolor=_COLORS["ink"], labelsize=11)
    axes.xaxis.label.set(color=_COLORS["ink"], fontsize=11)
    axes.yaxis.label.set(color=_COLORS["ink"], fontsize=11)
    for spine in axes.spines.values():
        spine.set_visible(False)
    stream = io.StringIO()
    # The salt makes the ids of a figure differ from the ids of the other figures of the page.
    with _matplotlib().rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.S)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    for variable, placeholder in _COLORS.items():
        svg = svg.replace(placeholder, f"var(--{variable})")
    return svg
