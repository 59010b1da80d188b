"""The picture of one explained window: forecast, neighbours and what came after them, trend, gate, words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from utils.errors import UserError
from utils.reporting import plots
from utils.reporting.fonts import drawable, drawable_names

NEIGHBOURS_SHOWN = 5
PROTOTYPES_SHOWN = 4
WORDS_SHOWN = 5
UNITS = "original units"


def plot_window(explained: Mapping[str, Any], variable: str, out: Path) -> Path:
    """Draw one variable of an explained window (what ``scripts/explain.py`` writes as JSON).

    Raises:
        ValueError: there is no such variable.
    """
    found = {v["name"]: v for v in explained["variables"]}
    if variable not in found:
        raise UserError(f"--variable: expected one of {', '.join(found)}, found {variable}")
    own, shown = found[variable], dict(zip(found, drawable_names(list(found)), strict=True))
    rows = [2.6, *([1.9] if _neighbours(own) else []), 2.4]
    figure = plots.new_figure(13.0, sum(rows) * 1.35)
    parts: Any = figure.subfigures(len(rows), 1, height_ratios=rows)
    _forecast(parts[0].subplots(), explained, own)
    if _neighbours(own):
        _draw_neighbours(parts[1], own, shown)
    _decisions(parts[-1], explained, own)
    origin = explained["window"]["forecast"][0].replace("T", " ")[:16]
    score = "" if own["mse"] is None else f"; MSE {own['mse']:.3f}, MAE {own['mae']:.3f} (standardised)"
    of = f"{drawable(explained['data'])}, {shown[variable]}"
    figure.suptitle(
        f"{of}, forecast from {origin} ({explained['window']['part']}){score}",
        fontsize=plots.TITLE + 2,
    )
    return plots.save(figure, out)


def _neighbours(own: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return (own["retrieval"] or {}).get("neighbours", [])[:NEIGHBOURS_SHOWN]


def _times(texts: Sequence[str]) -> Any:
    return np.array(texts, dtype="datetime64[s]")


def _numbers(values: Sequence[float | None]) -> Any:
    return np.array([np.nan if v is None else v for v in values])


def _forecast(axis: Axes, explained: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """The window itself, with what the retrieval and the trend's path would forecast."""
    past, future = _times(explained["window"]["shown"]), _times(explained["window"]["forecast"])
    axis.plot(past, own["lookback"], color=plots.LOOKBACK, linewidth=1.1, label="lookback (its end)")
    neighbours = (own["retrieval"] or {}).get("neighbours", [])
    if neighbours:
        retrieved = sum(n["weight"] * _numbers(n["as_forecast"]) for n in neighbours)
        axis.plot(
            future, retrieved, color=plots.NEIGHBOURS[0], linewidth=1.2, label="retrieved (weighted mean)"
        )
    if own["trend"]:
        axis.plot(future, own["trend"]["path"], ":", color="tab:purple", linewidth=1.6, label="trend's path")
    axis.plot(future, _numbers(own["truth"]), color=plots.TRUTH, linewidth=1.4, label="truth")
    axis.plot(future, own["forecast"], color=plots.FORECAST, linewidth=1.7, label="forecast")
    axis.axvline(past[-1], color="0.8", linewidth=0.8, zorder=0)
    plots.label(axis, y=UNITS, x="time")
    plots.time_axis(axis, most=10)
    axis.legend(fontsize=plots.TICK, ncols=1, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)


def _draw_neighbours(part: Any, own: Mapping[str, Any], names: Mapping[str, str]) -> None:
    """Each neighbour at its own time, and what came after it; ``names`` are the variables' in the picture."""
    shown = _neighbours(own)
    axes = part.subplots(1, len(shown), squeeze=False, sharey=True)[0]
    for axis, neighbour, colour in zip(axes, shown, plots.NEIGHBOURS, strict=False):
        before, after = neighbour["lookback_values"], neighbour["future_values"]
        axis.plot(np.arange(1 - len(before), 1), before, color=plots.LOOKBACK, linewidth=0.9)
        axis.plot(np.arange(len(after) + 1), [before[-1], *after], color=colour, linewidth=1.4)
        axis.axvline(0, color="0.8", linewidth=0.8, zorder=0)
        ended = neighbour["lookback"][1].replace("T", " ")[:16]
        near = f"distance {neighbour['distance']:.3f}, weight {neighbour['weight']:.2f}"
        plots.label(
            axis, title=f"{names[neighbour['variable']]}, until {ended}\n{near}", x="rows before and after"
        )
        axis.title.set_fontsize(plots.TICK + 0.5)
    axes[0].set_ylabel(UNITS, fontsize=plots.LABEL)
    part.suptitle(
        "what was retrieved (black) and what came after it; distance 1: two random rows of the memory",
        fontsize=plots.TITLE,
    )


def _decisions(part: Any, explained: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Trend classes, gate and scales, words."""
    trend, gates, words = part.subplots(1, 3, width_ratios=(1.0, 0.9, 1.5))
    _draw_trend(trend, own["trend"])
    _draw_gates(gates, explained, own)
    _draw_words(words, explained, own["words"])


def _draw_trend(axis: Axes, trend: Mapping[str, Any] | None) -> None:
    if trend is None:
        _say(axis, "TAPR is off", "trend")
        return
    bars = {**trend["direction"], **trend["magnitude"]}
    true = (trend["true_direction"], trend["true_magnitude"])
    colours = [plots.TRUTH if name in true else plots.NAIVE for name in bars]
    axis.barh(range(len(bars)), list(bars.values()), color=colours)
    axis.set_yticks(range(len(bars)), list(bars))
    axis.axhline(len(trend["direction"]) - 0.5, color="0.8", linewidth=0.8)
    axis.invert_yaxis()
    axis.set_xlim(0, 1)
    known = " (blue: what came true)" if true[0] else ""
    plots.label(axis, title=f"trend that the model saw{known}", x="probability")


def _draw_gates(axis: Axes, explained: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    bars: dict[str, float] = {}
    if own["retrieval"]:
        bars["gate of GRA-M\n(0: history)"] = own["retrieval"]["gate"]
        bars["confidence"] = own["retrieval"]["confidence"]
    if own["trend"]:
        bars["gate of TAPR"] = own["trend"]["gate"]
    for place, weight in enumerate(explained["scale_weights"] or ()):
        bars[f"scale {4**place}x"] = weight
    if not bars:
        _say(axis, "TAPR and GRA-M are off", "gates and scales")
        return
    drawn = axis.barh(range(len(bars)), list(bars.values()), color="tab:orange")
    axis.bar_label(drawn, fmt="%.2f", fontsize=plots.TICK, padding=2)
    axis.set_yticks(range(len(bars)), list(bars))
    axis.invert_yaxis()
    axis.set_xlim(0, 1.15)
    plots.label(axis, title="gates, and weights of the scales")


def _draw_words(axis: Axes, explained: Mapping[str, Any], words: Mapping[str, Any] | None) -> None:
    """A line of words for each of the prototypes that the window attends to most."""
    if words is None:
        _say(axis, "no language model, no words", "words")
        return
    chance = explained["random_words_cosine"]
    lines = []
    for prototype in words["prototypes"][:PROTOTYPES_SHOWN]:
        near = [
            f"{_drawable(lean['word'])} {lean['value']:.2f}" for lean in prototype["nearest"][:WORDS_SHOWN]
        ]
        lines.append(f"prototype {prototype['index']}, {prototype['attention']:.2%} of the attention:")
        lines.append("   " + ", ".join(near))
    lines += [
        "",
        f"cosine to the word; a random mixture of words reaches {chance:.2f}:",
        "words that are no nearer than that mean nothing.",
        f"attention as if spread over {words['effective_prototypes']:.0f} prototypes.",
    ]
    _say(axis, "\n".join(lines), "words that the source prototypes lean on", left=True)


def plain_word(word: str) -> str:
    """A token in quotes, so that its spaces show; what cannot be printed, escaped."""
    return "'" + "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in word) + "'"


def _drawable(word: str) -> str:
    """As `plain_word`, in letters that every font has."""
    return plain_word(word).encode("ascii", "backslashreplace").decode().replace("$", r"\$")


def _say(axis: Axes, text: str, title: str, *, left: bool = False) -> None:
    """Words in place of a drawing."""
    axis.set_axis_off()
    axis.set_title(title, fontsize=plots.TITLE, loc="left" if left else "center")
    place = (0.0, 0.98, "left", "top") if left else (0.5, 0.5, "center", "center")
    axis.text(place[0], place[1], text, ha=place[2], va=place[3], transform=axis.transAxes,
              fontsize=plots.TICK)  # fmt: skip
