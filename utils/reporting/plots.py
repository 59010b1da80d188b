"""Pictures: one look for all (colours, sizes, axes with times).

No display, and no global state of the plotting library.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from utils.atomic_files import whole_file
from utils.errors import UserError
from utils.reporting.fonts import families

LOOKBACK, TRUTH, FORECAST, NAIVE = "black", "tab:blue", "tab:red", "0.6"
NEIGHBOURS = ("tab:green", "tab:olive", "tab:cyan", "tab:purple", "tab:brown")
NO_SEASON = "no last season: it is longer than the lookback"
DPI = 110
COLOURS = 128
"""Of the palette: a third of the bytes of true colour, with no difference to be seen."""
TITLE, LABEL, TICK = 11, 10, 9
"""Font sizes, points."""


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches."""
    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Figure, out: Path) -> Path:
    """Write the figure as PNG, whole or not at all; returns ``out``.

    Raises:
        UserError: ``out`` is called otherwise.
    """
    if out.suffix.lower() != ".png":
        raise UserError(f"{out}: expected a name that ends in .png, which the picture is, found {out.suffix}")
    figure.set_dpi(DPI)
    _choose_fonts(figure)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    with whole_file(out) as file:
        image.quantize(COLOURS).save(file, format="PNG", optimize=True)
    return out


def _choose_fonts(figure: Figure) -> None:
    """All texts in fonts that together have their letters; ordinary letters look as ever."""
    texts: list[Any] = figure.findobj(Text)
    wanted = families("".join(text.get_text() for text in texts))
    if len(wanted) == 1:
        return
    for text in texts:
        text.set_fontfamily(wanted)
    axes: list[Any] = figure.findobj(Axes)
    for axis in axes:
        axis.tick_params(labelfontfamily=wanted)  # ticks may be made anew before they are drawn


def label(axis: Axes, *, title: str = "", x: str = "", y: str = "") -> None:
    """Title and axis labels, in the common sizes."""
    axis.set_title(title, fontsize=TITLE)
    axis.set_xlabel(x, fontsize=LABEL)
    axis.set_ylabel(y, fontsize=LABEL)
    axis.tick_params(labelsize=TICK)
    axis.margins(x=0.01)


def time_axis(axis: Axes, *, most: int = 7) -> None:
    """Dates along x, as few words as tell them apart."""
    locator = AutoDateLocator(minticks=3, maxticks=most)
    axis.xaxis.set_major_locator(locator)
    axis.xaxis.set_major_formatter(ConciseDateFormatter(locator))


def legend_below(figure: Figure, axis: Axes, *, columns: int = 6) -> None:
    """The legend of one axis, for all of them."""
    handles = axis.get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=columns, fontsize=TICK)


def legend_under(axis: Axes, *, columns: int = 3) -> None:
    """An axis's own legend, below it, where it hides nothing."""
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=columns, fontsize=TICK, frameon=False)


def panels(
    out: Path, titles: Sequence[str], draw: Callable[[int, Axes], None], *, x: str, y: str, columns: int = 4
) -> Path:
    """A row of panels with one legend in the PNG file ``out``, which is returned.

    Args:
        out: the file.
        titles: of the panels.
        draw: fills the panel of this number, from 0.
        x: below each of them.
        y: beside the first.
        columns: of the legend.
    """
    figure = new_figure(5.0 * len(titles), 4.0)
    axes = figure.subplots(1, len(titles), squeeze=False)[0]
    for number, (axis, title) in enumerate(zip(axes, titles, strict=True)):
        draw(number, axis)
        label(axis, title=title, x=x, y="" if number else y)
    handles = {name: h for a in axes for h, name in zip(*a.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns, fontsize=TICK)
    return save(figure, out)
