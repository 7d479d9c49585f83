"""The report's figures: matplotlib drawings as SVG images that follow the reader's light or dark setting.

Every figure is drawn twice, for a page and for a phone. Colours are drawn as stand-ins and then named
as CSS variables, so that one image serves both themes; families also differ in shape and texture, so
that nothing hangs on telling colours apart.
"""

from __future__ import annotations

import base64
import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

LEVELS = 11
"""Steps of the heat scale, 0% to 100%."""
LONGEST_LABEL = 28
"""Characters of an axis label."""
_LIGHT = {"ink": "#1b1f24", "muted": "#5f6b76", "grid": "#d9dee3", "prompt": "#66717c", "rival": "#b85c00", "own": "#0b62a4",
          "bound": "#0b62a4", "wrong": "#c2410c", "c0": "#0b62a4", "c1": "#e08a1e", "c2": "#1c8c6e", "c3": "#a23b72",
          "c4": "#7a6a00", "c5": "#5b6770"}
_DARK = {"ink": "#e6eaee", "muted": "#9aa7b3", "grid": "#333c45", "prompt": "#a2afbb", "rival": "#f0a04b", "own": "#62b5f0",
         "bound": "#62b5f0", "wrong": "#f0794b", "c0": "#4aa3e0", "c1": "#e9a04a", "c2": "#3fb894", "c3": "#d97fb0",
         "c4": "#c9b53c", "c5": "#94a2ae"}
_LIGHT_HEAT = ("#f2f6fa", "#0a3a6b")
_DARK_HEAT = ("#1b2530", "#a9d4fa")
CATEGORIES = 6
_MARKERS = {"prompt": "o", "rival": "s", "own": "D", "bound": "D"}
_HATCHES = ("", "////", "\\\\\\\\", "----", "xxxx", "||||")
_STYLE = {"svg.fonttype": "none", "svg.hashsalt": "culturemanager", "text.parse_math": False, "font.size": 9,
          "font.family": "sans-serif", "axes.linewidth": 0.6, "hatch.linewidth": 0.5, "axes.spines.top": False,
          "axes.spines.right": False, "xtick.major.size": 0, "ytick.major.size": 0}


def _ramp(ends: tuple[str, str]) -> list[str]:
    low, high = (np.array([int(end[i : i + 2], 16) for i in (1, 3, 5)]) for end in ends)
    mixed = [low + (high - low) * level / (LEVELS - 1) for level in range(LEVELS)]
    return ["#" + "".join(f"{round(value):02x}" for value in colour) for colour in mixed]


def _variables(colours: Mapping[str, str], heat: tuple[str, str], on_low: str, on_high: str, high: int) -> str:
    every = dict(colours)
    for level, colour in enumerate(_ramp(heat)):
        every[f"h{level}"] = colour
        every[f"t{level}"] = on_low if level < high else on_high
    return "".join(f"--{name}:{colour};" for name, colour in every.items())


PALETTE_CSS = (f":root{{{_variables(_LIGHT, _LIGHT_HEAT, '#1b1f24', '#ffffff', 7)}}}"
               f"@media (prefers-color-scheme:dark){{:root{{{_variables(_DARK, _DARK_HEAT, '#e6eaee', '#10161c', 5)}}}}}")
"""CSS variables of both themes: `--ink`, `--own`, ..., heat steps `--h0` to `--h10` and the text on them `--t0`..."""
_NAMES = [*_LIGHT, *(f"{kind}{level}" for kind in "ht" for level in range(LEVELS))]
_STAND_IN = {name: f"#0{number:02x}0fe" for number, name in enumerate(_NAMES)}
_VARIABLE = {colour: f"var(--{name})" for name, colour in _STAND_IN.items()}


_FONTS = "system-ui,'Segoe UI','Helvetica Neue',Arial,sans-serif"
_SHORTEN = ((r" ?font-family: [^;\"]*;", ""), (r"(\d\.\d\d)\d+", r"\1"), (r' transform="rotate\(-0 [^"]*"', ""),
            (r"\n\s*", "\n"), (r'<g id="line2d_\d+"/>\n', ""))
"""What one image repeats a thousand times: fonts, digits nobody sees, turns by no angle."""


def _colour(name: str) -> str:
    return _STAND_IN[name]


def heat_level(share: float) -> int:
    """The heat step of a share in [0, 1]."""
    return min(int(share * LEVELS), LEVELS - 1)


def _short(label: str) -> str:
    """A label that leaves room for the drawing; tables have it in full."""
    return label if len(label) <= LONGEST_LABEL else label[: LONGEST_LABEL - 1] + "\u2026"


@dataclass(frozen=True)
class Chart:
    """One figure as two data URIs, and what it shows in words."""

    wide: str
    narrow: str
    alt: str


def _chart(draw: Callable[[bool], Figure], alt: str) -> Chart:
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # text stays text: the reader's fonts have it
        return Chart(_uri(draw(False)), _uri(draw(True)), alt)


def _uri(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = re.sub(r"#[0-9a-f]{6}", lambda match: _VARIABLE.get(match.group(), match.group()), buffer.getvalue())
    for pattern, shorter in _SHORTEN:
        svg = re.sub(pattern, shorter, svg)
    head, tag, rest = svg.partition("<defs>")
    svg = f"{head}<style>{PALETTE_CSS}text{{font-family:{_FONTS}}}</style>{tag}{rest}"
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def _figure(narrow: bool, height: float, rows: int = 1, columns: int = 1, **options) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=(3.9 if narrow else 7.8, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    for axis in axes.flat:
        _quiet(axis)
    return figure, axes


def _quiet(axis: Axes) -> None:
    for spine in axis.spines.values():
        spine.set_color(_colour("grid"))
    axis.tick_params(colors=_colour("muted"), labelcolor=_colour("ink"), labelsize=8.5)
    axis.set_axisbelow(True)


@dataclass(frozen=True)
class Mark:
    """A system's line in a comparison; shares in [0, 1]."""

    label: str
    family: str
    value: float
    low: float
    high: float


def comparison(panels: Mapping[str, Sequence[Mark]], chance: Mapping[str, float], alt: str) -> Chart:
    """Accuracies with intervals; one panel for each key, systems in the order given, chance as a dotted line."""

    def draw(narrow: bool) -> Figure:
        rows = len(panels) if narrow else 1
        lines = max(map(len, panels.values()))
        height = rows * (0.55 + 0.3 * lines + (0.2 if len(panels) > 1 else 0))
        figure, axes = _figure(narrow, height, rows, len(panels) // rows, sharey=not narrow)
        figure.get_layout_engine().set(hspace=0.06)
        for axis, (title, marks) in zip(axes.flat, panels.items(), strict=True):
            _comparison_panel(axis, marks, chance.get(title), title if len(panels) > 1 else "")
        return figure

    return _chart(draw, alt)


def _comparison_panel(axis: Axes, marks: Sequence[Mark], chance: float | None, title: str) -> None:
    for row, mark in enumerate(marks):
        colour = _colour(mark.family)
        axis.plot([100 * mark.low, 100 * mark.high], [row, row], color=colour, linewidth=1.8, alpha=0.55,
                  solid_capstyle="round")
        axis.plot(100 * mark.value, row, marker=_MARKERS[mark.family], color=colour, markersize=6.5,
                  markerfacecolor="none" if mark.family == "bound" else colour, markeredgewidth=1.4)
        axis.annotate(f"{100 * mark.value:.1f}", (100 * mark.high, row), (5, 0), textcoords="offset points", va="center",
                      fontsize=8.5, color=_colour("ink"), fontweight="bold" if mark.family == "own" else "normal")
    if chance:
        axis.axvline(100 * chance, color=_colour("muted"), linewidth=0.9, linestyle=":")
        axis.annotate("chance", (100 * chance, 1), (3, 1), xycoords=("data", "axes fraction"), textcoords="offset points",
                      fontsize=7.5, color=_colour("muted"))
    axis.set_yticks(range(len(marks)), [mark.label for mark in marks])
    axis.set_ylim(len(marks) - 0.4, -0.6)
    axis.set_xlim(0, 112)
    axis.set_xticks(range(0, 101, 25), [f"{tick}%" for tick in range(0, 101, 25)])
    axis.grid(axis="x", color=_colour("grid"), linewidth=0.6)
    axis.spines[["left", "bottom"]].set_visible(False)
    if title:
        axis.set_title(_short(title), loc="left", fontsize=9.5, color=_colour("ink"), pad=12)


def heat_map(values: Sequence[Sequence[float | None]], rows: Sequence[str], columns: Sequence[str], x_label: str,
             y_label: str, alt: str, outlined: Sequence[tuple[int, int]] = ()) -> Chart:
    """Shares in [0, 1] as shaded cells with percentages in them; `None` stays empty.

    Args:
        outlined: (row, column) cells with a frame.
    """

    def draw(narrow: bool) -> Figure:
        cell = (0.27 if narrow else 0.36) if len(columns) <= 14 else 0.2
        slanted = 0.055 * min(max(map(len, columns)), LONGEST_LABEL)
        figure, axes = _figure(narrow, 0.6 + slanted + cell * len(rows))
        _heat_panel(axes[0, 0], values, narrow, outlined)
        axis = axes[0, 0]
        axis.set_xticks(np.arange(len(columns)) + 0.5, list(map(_short, columns)), rotation=55 if narrow else 38, ha="left",
                        rotation_mode="anchor")
        axis.xaxis.tick_top()
        axis.set_yticks(np.arange(len(rows)) + 0.5, list(map(_short, rows)))
        axis.tick_params(labelsize=7.5 if narrow else 8.5)
        axis.set_xlabel(x_label, fontsize=8.5, color=_colour("muted"))
        axis.set_ylabel(y_label, fontsize=8.5, color=_colour("muted"))
        return figure

    return _chart(draw, alt)


def _heat_panel(axis: Axes, values: Sequence[Sequence[float | None]], narrow: bool,
                outlined: Sequence[tuple[int, int]]) -> None:
    columns = len(values[0])
    for y, row in enumerate(values):
        for x, value in enumerate(row):
            if value is None:
                continue
            level = heat_level(value)
            axis.add_patch(Rectangle((x + 0.03, y + 0.03), 0.94, 0.94, facecolor=_colour(f"h{level}"), linewidth=0))
            if columns <= 14:
                axis.text(x + 0.5, y + 0.53, f"{100 * value:.0f}", ha="center", va="center", fontsize=7 if narrow else 8.5,
                          color=_colour(f"t{level}"))
    for y, x in outlined:
        axis.add_patch(Rectangle((x + 0.05, y + 0.05), 0.9, 0.9, fill=False, edgecolor=_colour("rival"), linewidth=1.3))
    axis.set_xlim(0, columns)
    axis.set_ylim(len(values), 0)
    axis.spines[:].set_visible(False)


def stacked(bars: Mapping[str, Mapping[str, float]], colours: Mapping[str, str], x_label: str, alt: str) -> Chart:
    """Horizontal bars made of parts; part name to colour name gives the parts' order."""

    def draw(narrow: bool) -> Figure:
        legend_columns = max(1, (48 if narrow else 110) // (max(map(len, colours)) + 8))
        figure, axes = _figure(narrow, 0.7 + 0.3 * len(bars) + 0.18 * -(-len(colours) // legend_columns))
        axis = axes[0, 0]
        longest = max(sum(parts.values()) for parts in bars.values()) or 1
        for row, parts in enumerate(bars.values()):
            edges = np.cumsum([0, *(parts.get(name, 0) for name in colours)])
            for number, ((start, end), colour) in enumerate(zip(pairwise(edges), colours.values(), strict=True)):
                if end > start:
                    axis.barh(row, end - start, left=start, height=0.66, facecolor=_colour(colour), alpha=0.85,
                              hatch=_HATCHES[number % len(_HATCHES)], edgecolor=_colour("t10"), linewidth=0.4)
            axis.annotate(f"{edges[-1]:,.0f}", (edges[-1], row), (4, 0), textcoords="offset points", va="center", fontsize=8,
                          color=_colour("ink"))
        axis.set_yticks(range(len(bars)), list(map(_short, bars)))
        axis.set_ylim(len(bars) - 0.5, -0.5)
        axis.set_xlim(0, 1.1 * longest)
        axis.set_xlabel(x_label, fontsize=8.5, color=_colour("muted"))
        axis.grid(axis="x", color=_colour("grid"), linewidth=0.6)
        axis.spines[["left", "bottom"]].set_visible(False)
        handles = [Patch(facecolor=_colour(colour), alpha=0.85, hatch=_HATCHES[number % len(_HATCHES)],
                         edgecolor=_colour("t10"), label=_short(name))
                   for number, (name, colour) in enumerate(colours.items())]
        figure.legend(handles=handles, loc="outside upper left", ncols=legend_columns, frameon=False, fontsize=8.5,
                      labelcolor=_colour("ink"))
        return figure

    return _chart(draw, alt)


@dataclass(frozen=True)
class Curve:
    """One adapter's losses: (step, loss) points of training and validation."""

    label: str
    training: Sequence[tuple[float, float]]
    validation: Sequence[tuple[float, float]]


def losses(panels: Mapping[str, Sequence[Curve]], alt: str) -> Chart:
    """Small panels on one scale: training as a line, validation as dots; several adapters of a panel as thin lines."""

    def draw(narrow: bool) -> Figure:
        columns = min(2 if narrow else 5, len(panels))
        rows = -(-len(panels) // columns)
        figure, axes = _figure(narrow, 0.75 + 1.2 * rows, rows, columns, sharex=True, sharey=True)
        for axis, (title, curves) in zip(axes.flat, panels.items(), strict=False):
            _loss_panel(axis, curves)
            axis.set_title(_short(title), loc="left", fontsize=8.5, color=_colour("ink"), pad=3)
        for axis in axes.flat[len(panels):]:
            axis.set_visible(False)
        axes.flat[0].set_ylim(bottom=0)
        figure.supxlabel("step", fontsize=8.5, color=_colour("muted"))
        handles = [Line2D([], [], color=_colour("own"), linewidth=1.5, label="training"),
                   Line2D([], [], color=_colour("rival"), linewidth=0.8, marker="o", markersize=3.5, label="validation")]
        figure.legend(handles=handles, loc="outside upper left", ncols=2, frameon=False, fontsize=8.5,
                      labelcolor=_colour("ink"))
        return figure

    return _chart(draw, alt)


def _loss_panel(axis: Axes, curves: Sequence[Curve]) -> None:
    alone = len(curves) == 1
    for curve in curves:
        if alone:
            axis.plot(*zip(*_thinned(curve.training), strict=True), color=_colour("own"), linewidth=0.6, alpha=0.35)
        axis.plot(*zip(*_thinned(_smooth(curve.training)), strict=True), color=_colour("own"),
                  linewidth=1.5 if alone else 0.7, alpha=1 if alone else 0.7)
        if curve.validation:
            axis.plot(*zip(*curve.validation, strict=True), color=_colour("rival"), linewidth=0.8 if alone else 0.5,
                      marker="o", markersize=3.5 if alone else 1.8, alpha=1 if alone else 0.7)
    axis.grid(axis="y", color=_colour("grid"), linewidth=0.5)
    axis.tick_params(labelsize=7.5)


def _smooth(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """A centred running mean over a tenth of the curve, narrower at its ends."""
    reach = len(points) // 20
    values = np.array([value for _, value in points])
    means = [values[max(0, i - reach) : i + reach + 1].mean() for i in range(len(values))]
    return [(step, mean) for (step, _), mean in zip(points, means, strict=True)]


def _thinned(points: Sequence[tuple[float, float]], most: int = 120) -> list[tuple[float, float]]:
    """Evenly spaced points, the last among them: a panel is not wider than that."""
    if len(points) <= most:
        return list(points)
    return [points[round(i * (len(points) - 1) / (most - 1))] for i in range(most)]
