"""The drawings of the report, as elements that stand in the page itself.

No text from files comes here: matplotlib would read its `$` as maths.
"""

import base64
import io
import re

import numpy as np
from PIL import Image

from zoo.processes import out_of_current_folder

with out_of_current_folder():  # whose matplotlibrc it would read
    import matplotlib
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

_LARGEST_PICTURE = 256  # pixels a side: the page must stay light
# Stand-ins that the style sheet's variables replace, so that plots follow light and dark mode.
_COLOURS = {
    "ink": "#010203",
    "line": "#010204",
    "training": "#010205",
    "validation": "#010206",
}


def line_plot(lines: dict[str, dict[float, float]], name: str) -> str:
    """Draws values over steps.

    Args:
      lines: `training` and `validation`, or one of them, to step -> value.
      name: any word that no other plot of the page has.
    """
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axes = figure.add_subplot()
    for label, series in lines.items():
        # A line of few points, or of one, is seen by its dots.
        marker = "o" if len(series) <= 30 else None
        style = {"linewidth": 1.6, "marker": marker, "markersize": 3.5, "color": _COLOURS[label]}
        axes.plot(list(series), list(series.values()), **style)
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(lambda step, _: f"{step:,.0f}")
    axes.grid(color=_COLOURS["line"], linewidth=0.8)
    axes.set_axisbelow(True)
    return _svg(figure, axes, name)


def bars(values: dict[str, float], name: str) -> str:
    """Draws a bar a ratio, with a line at 1."""
    figure = Figure(figsize=(6.4, 0.9 + 0.45 * len(values)), layout="constrained")
    axes = figure.add_subplot()
    labels = list(values)[::-1]
    drawn = axes.barh(labels, [values[label] for label in labels], color=_COLOURS["training"])
    axes.bar_label(drawn, fmt="{:.2f}", padding=4, color=_COLOURS["ink"], fontsize=11)
    axes.axvline(1, color=_COLOURS["validation"], linewidth=1.2)
    axes.set_xlim(0, 1.15 * max(1, *values.values()))
    return _svg(figure, axes, name)


def scatter(points: list[tuple[float, float, str, bool]], x: str, y: str, name: str) -> str:
    """Draws labelled points `(x, y, label, full)` over a logarithmic x axis."""
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.add_subplot()
    for place, value, label, full in points:
        colour = _COLOURS["validation" if full else "training"]
        axes.plot(
            place,
            value,
            "o",
            color=colour,
            markersize=8,
            markerfacecolor=colour if full else "none",
        )
        axes.annotate(
            label, (place, value), (7, 5), textcoords="offset points", color=_COLOURS["ink"]
        )
    axes.set_xscale("log")
    axes.margins(0.12)
    axes.set(xlabel=x, ylabel=y)
    axes.grid(color=_COLOURS["line"], linewidth=0.8)
    axes.set_axisbelow(True)
    return _svg(figure, axes, name)


def matrix(shares: np.ndarray, name: str) -> str:
    """Draws a confusion matrix `(true, predicted)` of shares between 0 and 1."""
    figure = Figure(figsize=(7, 7), dpi=200, layout="constrained")  # a pixel a class up to 1,000
    axes = figure.add_subplot()
    blue = [(0.23, 0.47, 0.94, alpha) for alpha in (0.04, 0.6, 1.0)]
    # The square root lifts confusions of a few percent out of the background.
    axes.imshow(np.sqrt(shares), cmap=LinearSegmentedColormap.from_list("share", blue))
    axes.set(xlabel="predicted class", ylabel="true class")
    return _svg(figure, axes, name)


def picture(pixels: np.ndarray, alternative: str) -> str:
    """Returns `(H, W)` or `(H, W, C)`, uint8 or float in [0, 1], as an image element."""
    if pixels.dtype.kind == "f":
        pixels = np.nan_to_num(np.clip(pixels, 0, 1)) * 255
    if pixels.ndim == 3 and pixels.shape[-1] != 3:
        pixels = pixels.mean(axis=-1)
    image = Image.fromarray(pixels.astype(np.uint8))
    image.thumbnail((_LARGEST_PICTURE, _LARGEST_PICTURE))
    stream = io.BytesIO()
    image.save(stream, format="PNG")
    small = ' class="small"' if max(image.size) <= 64 else ""
    return png(stream.getvalue(), alternative, small)


def warmed(pixels: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Returns a picture and, right of it, the same under its heat map.

    Args:
      pixels: (H, W, 1 or 3) uint8.
      heat: (H, W) uint8.

    Returns:
      (H, 2 W, 3) uint8.
    """
    colour = np.repeat(pixels, 3, axis=-1) if pixels.shape[-1] == 1 else pixels
    grey = np.repeat(colour.mean(axis=-1, keepdims=True), 3, axis=-1)
    warm = 255 * matplotlib.colormaps["inferno"](heat)[..., :3]
    return np.concatenate([colour, (0.4 * grey + 0.6 * warm)], axis=1).astype(np.uint8)


def png(data: bytes, alternative: str, attribute: str = "") -> str:
    """Returns the content of a PNG file as an image element."""
    text = base64.b64encode(data).decode("ascii")
    return f'<img{attribute} alt="{alternative}" src="data:image/png;base64,{text}">'


def _svg(figure: Figure, axes, name: str) -> str:
    """Returns a figure as an SVG element that takes its colours from the page."""
    axes.tick_params(length=0, labelcolor=_COLOURS["ink"], labelsize=11)
    axes.xaxis.label.set(color=_COLOURS["ink"], fontsize=11)
    axes.yaxis.label.set(color=_COLOURS["ink"], fontsize=11)
    for spine in axes.spines.values():
        spine.set_visible(False)
    stream = io.StringIO()
    # The salt keeps the names inside one figure apart from those of its neighbours.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.S)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    for variable, stand_in in _COLOURS.items():
        svg = svg.replace(stand_in, f"var(--{variable})")
    return svg
