"""Pictures: one look for all (colours, sizes, axes with times), and those of forecasts.

No display, and no global state of the plotting library.

Shape legend: n windows, N variables, L lookback, H horizon.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.text import Text
from numpy.typing import NDArray
from PIL import Image

from utils.atomic_files import whole_file
from utils.errors import UserError
from utils.reporting.fonts import drawable, drawable_names, families

LOOKBACK, TRUTH, FORECAST, NAIVE = "black", "tab:blue", "tab:red", "0.6"
NEIGHBOURS = ("tab:green", "tab:olive", "tab:cyan", "tab:purple", "tab:brown")
NO_SEASON = "no last season: it is longer than the lookback"
DPI = 110
COLOURS = 128
"""Of the palette: a third of the bytes of true colour, with no difference to be seen."""
TITLE, LABEL, TICK = 11, 10, 9
"""Font sizes, points."""
TITLE_LETTERS = 200
TAIL_IN_HORIZONS = 2
"""The lookback is shown for this many horizons: far enough to see its seasons."""


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


def plot_forecasts(
    forecasts: Path,
    out: Path,
    title: str,
    *,
    season: int | None = 24,
    step_unit: str = "hours",
    windows: int = 3,
    variables: int = 2,
) -> Path:
    """Draw a few saved forecasts into the PNG file ``out``, which is returned.

    Each row is a window, each column a variable: the end of the lookback, the truth, the forecast
    and, in grey, the last season repeated.

    Args:
        forecasts: npz file with ``x`` [n, L, N], ``y`` [n, H, N], ``prediction`` [n, H, N] in
            standardised units, ``start`` [n] and ``columns`` [N].
        out: PNG file to write.
        title: above the picture.
        season: rows of one season; None where it is longer than the lookback, which the title then says.
        step_unit: what one row is, for the axis.
        windows: most windows shown, spread over those in the file.
        variables: most variables shown: the last (the target of the ETT files) and the first ones.
    """
    with np.load(forecasts) as saved:
        x, y, prediction = saved["x"], saved["y"], saved["prediction"]
        start, columns = saved["start"], drawable_names([str(name) for name in saved["columns"]])
    shown_windows = np.unique(np.linspace(0, len(x) - 1, min(windows, len(x))).round().astype(int))
    shown_variables = [len(columns) - 1, *range(len(columns) - 1)][:variables]

    figure = new_figure(5.5 * len(shown_variables), 2.4 * len(shown_windows) + 0.9)
    axes = figure.subplots(len(shown_windows), len(shown_variables), squeeze=False, sharex=True)
    for row, window in enumerate(shown_windows):
        for column, variable in enumerate(shown_variables):
            _draw(
                axes[row, column],
                lookback=x[window, :, variable],
                truth=y[window, :, variable],
                forecast=prediction[window, :, variable],
                season=season,
            )
            axes[row, column].set_title(f"{columns[variable]}, window at row {start[window]}", fontsize=9)
        axes[row, 0].set_ylabel("standardised units", fontsize=8)
    for axis in axes[-1]:
        axis.set_xlabel(f"{step_unit} after the forecast's origin", fontsize=8)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    title = title if season is not None else f"{title}; {NO_SEASON}"
    figure.suptitle(drawable(title, longest=TITLE_LETTERS), fontsize=11)
    return save(figure, out)


def _draw(
    axis: Axes,
    *,
    lookback: NDArray[np.floating],
    truth: NDArray[np.floating],
    forecast: NDArray[np.floating],
    season: int | None,
) -> None:
    """One variable of one window: lookback [L], truth and forecast [H]."""
    horizon = len(truth)
    tail = lookback[-TAIL_IN_HORIZONS * horizon :]
    # Step 0 is the last row that was seen; joining the lines there shows jumps at the origin.
    past, future = np.arange(1 - len(tail), 1), np.arange(0, horizon + 1)
    last = lookback[-1:]
    axis.plot(past, tail, color=LOOKBACK, linewidth=0.9, label="lookback")
    if season is not None:
        naive = np.concatenate([last, np.resize(lookback[-season:], horizon)])
        axis.plot(future, naive, color=NAIVE, linewidth=0.9, label="last season repeated")
    axis.plot(future, np.concatenate([last, truth]), color=TRUTH, linewidth=1.1, label="truth")
    axis.plot(future, np.concatenate([last, forecast]), color=FORECAST, linewidth=1.3, label="forecast")
    axis.axvline(0, color="0.8", linewidth=0.8, zorder=0)
    axis.tick_params(labelsize=8)
    axis.margins(x=0.01)


def plot_curves(
    panels: Mapping[str, Mapping[str, Sequence[float]]], out: Path, *, x_label: str, y_label: str
) -> Path:
    """Draw named curves, one panel per title, into the PNG file ``out``, which is returned."""
    figure = new_figure(5.5 * len(panels), 3.6)
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axis, (title, curves) in zip(axes, panels.items(), strict=True):
        for name, values in curves.items():
            axis.plot(np.arange(len(values)), values, linewidth=1.2, label=name)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel(x_label, fontsize=9)
        axis.tick_params(labelsize=8)
        axis.ticklabel_format(axis="y", style="sci", scilimits=(-4, -4))
    axes[0].set_ylabel(y_label, fontsize=9)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=8, fontsize=8)
    return save(figure, out)
