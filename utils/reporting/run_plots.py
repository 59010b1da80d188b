"""Pictures of a run: forecasts with intervals, training curves, errors by step and variable, calibration.

Shape legend: W windows, H horizon, M variables forecast, T rows shown of a lookback.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.container import BarContainer
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from utils.errors import UserError
from utils.reporting import plots
from utils.reporting.fonts import drawable, drawable_names

Values = NDArray[np.float64]
UNITS = "original units"
STANDARDISED = "standardised units"
UNLOGGED = "no step was logged"
FEW = 8
"""Variables whose names stand upright below their bars, and whose bars have numbers."""
LOSS_TERMS = (
    "direction",
    "magnitude",
    "consistency",
    "ordinal",
    "gate_errors",
    "gate_consistency",
    "gate_entropy",
)


@dataclass(frozen=True)
class Evidence:
    """Forecasts of test windows, in original units."""

    name: str
    """Of the data."""
    targets: Sequence[str]
    frequency: str
    season: int | None
    """Rows of one season; None where it is longer than the lookback."""
    test_windows: int
    """How many the whole test has."""
    start: NDArray[np.int64]
    """[W]."""
    lookback_times: NDArray[np.datetime64]
    """[W, T]."""
    lookback: Values
    """[W, T, M]."""
    times: NDArray[np.datetime64]
    """[W, H]."""
    truth: Values
    """[W, H, M]."""
    prediction: Values
    """[W, H, M]."""
    std: Values
    """[M]: divided by it, errors are in standardised units."""
    half_width: Mapping[float, Values]
    """By level, half the width [W, H, M] of the interval around the prediction."""

    @property
    def drawn_name(self) -> str:
        """The data's name in a picture."""
        return drawable(self.name)

    @cached_property
    def drawn_targets(self) -> list[str]:
        """The variables' names in a picture."""
        return drawable_names(self.targets)

    @property
    def error(self) -> Values:
        """[W, H, M], standardised units."""
        found: Values = (self.prediction - self.truth) / self.std
        return found

    @property
    def naive_error(self) -> Values | None:
        """As `error`, of the last season repeated; None where the lookback has no whole one."""
        if self.season is None:
            return None
        horizon = self.truth.shape[1]
        repeated = self.lookback[:, -self.season :][:, np.arange(horizon) % self.season]
        found: Values = (repeated - self.truth) / self.std
        return found

    @property
    def scope(self) -> str:
        """Which windows these are, for a title."""
        if len(self.start) == self.test_windows:
            return f"all {self.test_windows} test windows"
        return f"{len(self.start)} of {self.test_windows} test windows, evenly spread"


def step_label(frequency: str) -> str:
    """What the horizon's axis counts."""
    names = {"h": "hours", "min": "minutes", "D": "days"}
    return f"{names[frequency]} ahead" if frequency in names else f"steps ahead ({frequency} each)"


def plot_test_windows(
    evidence: Evidence, out: Path, *, levels: Sequence[float], windows: int = 3, variables: int = 2
) -> Path:
    """Some windows (rows) of some variables (columns), the last variable first, against time.

    Drawn are the intervals of those of the ``levels`` that there are.
    """
    shown = np.unique(np.linspace(0, len(evidence.start) - 1, windows).round().astype(int))
    last = len(evidence.targets) - 1
    columns = [last, *range(last)][:variables]
    figure = plots.new_figure(6.2 * len(columns), 2.7 * len(shown) + 0.9)
    axes = figure.subplots(len(shown), len(columns), squeeze=False)
    for row, window in enumerate(shown):
        for column, variable in enumerate(columns):
            axis = axes[row, column]
            draw_window(axis, evidence, int(window), variable, levels=levels)
            origin = np.datetime_as_string(evidence.times[window, 0], unit="m").replace("T", " ")
            title = f"{evidence.drawn_targets[variable]}, forecast from {origin}"
            plots.label(
                axis, title=title, y=UNITS if not column else "", x="time" if row == len(shown) - 1 else ""
            )
    intervals = "" if evidence.half_width else "; this run has no calibration, so no intervals"
    figure.suptitle(f"{evidence.drawn_name}: forecasts of test windows{intervals}", fontsize=plots.TITLE + 1)
    plots.legend_below(figure, axes[0, 0])
    return plots.save(figure, out)


def draw_window(
    axis: Axes, evidence: Evidence, window: int, variable: int, *, levels: Sequence[float]
) -> None:
    """One variable of one window: lookback, truth, forecast and its intervals."""
    past, future = evidence.lookback_times[window], evidence.times[window]
    lookback = evidence.lookback[window, :, variable]
    joined = np.concatenate([past[-1:], future])

    def from_origin(values: Values) -> Values:
        return np.concatenate([lookback[-1:], values])

    prediction = evidence.prediction[window, :, variable]
    drawn = sorted((level for level in levels if level in evidence.half_width), reverse=True)
    for place, level in enumerate(drawn):
        width = evidence.half_width[level][window, :, variable]
        axis.fill_between(
            future, prediction - width, prediction + width, color=plots.FORECAST, alpha=0.13 + 0.09 * place,
            linewidth=0, label=f"{level:.0%} interval",
        )  # fmt: skip
    axis.plot(past, lookback, color=plots.LOOKBACK, linewidth=1.0, label="lookback (its end)")
    truth = evidence.truth[window, :, variable]
    axis.plot(joined, from_origin(truth), color=plots.TRUTH, linewidth=1.3, label="truth")
    axis.plot(joined, from_origin(prediction), color=plots.FORECAST, linewidth=1.5, label="forecast")
    axis.axvline(past[-1], color="0.8", linewidth=0.8, zorder=0)
    plots.time_axis(axis)


def plot_training(records: Sequence[Mapping[str, Any]], out: Path, *, name: str) -> Path:
    """Losses, their terms, learning rate and gate, and speed and memory, against the optimizer step.

    Where none of the steps was logged, the validations alone.

    Raises:
        ValueError: the records hold neither a training step nor a validation after one.
    """
    steps = [r for r in records if r["event"] == "train"]
    validations = [r for r in records if r["event"] == "validation"]
    if not (steps or any(r["step"] for r in validations)):
        raise UserError("expected records of training steps, found none")
    figure = plots.new_figure(12.4, 8.0)
    losses, terms, rate, speed = figure.subplots(2, 2).ravel()
    _curves(losses, steps, {"loss": "training (one pass)", "auxiliary": "auxiliary, before its warm-up"})
    at = [r["step"] for r in validations]
    for metric, colour in (("mse", plots.FORECAST), ("mae", "tab:green")):
        values = [r["validation"][metric] for r in validations]
        losses.plot(at, values, "o-", color=colour, label=f"validation {metric.upper()}")
    plots.label(losses, title="losses", y=f"loss ({STANDARDISED})")
    _curves(terms, steps, {term: term.replace("_", " ") for term in LOSS_TERMS})
    plots.label(terms, title="losses of the modules, before their weights", y="loss")
    if not terms.has_data():
        why = "TAPR and GRA-M are off" if steps else UNLOGGED
        terms.text(0.5, 0.5, why, ha="center", transform=terms.transAxes)
    _rate_and_gate(rate, steps)
    _speed_and_memory(speed, steps)
    for axis in (losses, terms):
        if axis.has_data():
            plots.legend_under(axis, columns=2 if axis is losses else 3)
    figure.suptitle(f"{drawable(name)}: training", fontsize=plots.TITLE + 1)
    return plots.save(figure, out)


def _curves(axis: Axes, steps: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> None:
    """A line for each name that the records have."""
    for key, text in names.items():
        found = [(r["step"], r[key]) for r in steps if r.get(key) is not None]
        if found:
            axis.plot(*zip(*found, strict=True), linewidth=1.3, label=text)


def _rate_and_gate(axis: Axes, steps: Sequence[Mapping[str, Any]]) -> None:
    axis.plot([r["step"] for r in steps], [r["learning_rate"] for r in steps], color="black", linewidth=1.3)
    axis.ticklabel_format(axis="y", style="sci", scilimits=(-3, -3))
    plots.label(axis, title="learning rate (black)", x="optimizer step", y="learning rate")
    gates = [r for r in steps if "gate_mean" in r]
    if not gates:
        return
    plots.label(axis, title="learning rate (black), gate (colours)", x="optimizer step", y="learning rate")
    own = _second(axis, "gate: 0 history, 1 the window alone")
    at, mean, spread = (np.array([r[k] for r in gates]) for k in ("step", "gate_mean", "gate_std"))
    own.fill_between(at, np.clip(mean - spread, 0, 1), np.clip(mean + spread, 0, 1), alpha=0.2, linewidth=0)
    own.plot(at, mean, label="gate, mean and deviation over series")
    own.plot(at, [r["confidence_mean"] for r in gates], label="confidence, mean")
    own.set_ylim(-0.02, 1.02)
    plots.legend_under(own, columns=2)


def _speed_and_memory(axis: Axes, steps: Sequence[Mapping[str, Any]]) -> None:
    speeds = [(r["step"], r["samples_per_second"]) for r in steps if r.get("samples_per_second")]
    if speeds:
        axis.plot(*zip(*speeds, strict=True), color="tab:blue", linewidth=1.3)
    plots.label(axis, title="speed (blue), memory (orange)", x="optimizer step", y="samples per second")
    axis.set_ylim(bottom=0)
    held = [(r["step"], r["memory_bytes"] / 2**30) for r in steps if r.get("memory_bytes")]
    if held:
        own = _second(axis, "memory, GiB")
        own.plot(*zip(*held, strict=True), color="tab:orange", linewidth=1.3)
        own.set_ylim(bottom=0)


def _second(axis: Axes, text: str) -> Axes:
    """An axis with a scale of its own over another, to its right."""
    own = axis.twinx()
    own.set_ylabel(text, fontsize=plots.LABEL)
    own.tick_params(labelsize=plots.TICK)
    return own


def plot_errors(evidence: Evidence, out: Path) -> Path:
    """Error by horizon step and by variable, beside the last season repeated; and both together."""
    figure = plots.new_figure(12.4, 7.4)
    by_step, by_variable, both, by_time = figure.subplots(2, 2).ravel()
    error, naive = evidence.error, evidence.naive_error
    shown = _compared(error, naive)
    ahead = np.arange(1, error.shape[1] + 1)
    label = step_label(evidence.frequency)
    for metric, line in (("MSE", "-"), ("MAE", "--")):
        for values, colour, who in shown:
            by_step.plot(ahead, _mean(values, metric, (0, 2)), line, color=colour, label=f"{metric}, {who}")
    plots.label(by_step, title="error by horizon step", x=label, y=f"error ({STANDARDISED})")
    by_step.set_ylim(bottom=0)
    plots.legend_under(by_step, columns=4)
    bars = [(_mean(values, "MSE", (0, 1)), colour, who) for values, colour, who in shown]
    for drawn in _bars_by_variable(by_variable, evidence, bars):
        if len(evidence.targets) <= FEW:
            by_variable.bar_label(drawn, fmt="%.2f", fontsize=plots.TICK - 1)
    plots.label(by_variable, title="MSE by variable", y=f"MSE ({STANDARDISED})")
    by_variable.legend(fontsize=plots.TICK)
    image = both.imshow(_mean(error, "MAE", (0,)).T, aspect="auto", cmap="viridis", interpolation="nearest",
                        extent=(0.5, len(ahead) + 0.5, len(evidence.targets) - 0.5, -0.5))  # fmt: skip
    both.set_yticks(range(len(evidence.targets)), evidence.drawn_targets)
    plots.label(both, title="MAE by step and variable", x=label)
    figure.colorbar(image, ax=both, label=f"MAE ({STANDARDISED})")
    for values, colour, who in shown:
        by_time.plot(evidence.times[:, 0], _mean(values, "MAE", (1, 2)), color=colour, label=who)
    plots.label(by_time, title="MAE of each window", x="start of the forecast", y=f"MAE ({STANDARDISED})")
    by_time.set_ylim(bottom=0)
    by_time.legend(fontsize=plots.TICK)
    plots.time_axis(by_time)
    mse, mae = _mean(error, "MSE", None), _mean(error, "MAE", None)
    figure.suptitle(
        f"{evidence.drawn_name}: errors over {evidence.scope}; MSE {mse:.3f}, MAE {mae:.3f}"
        + ("" if naive is not None else f"; {plots.NO_SEASON}"),
        fontsize=plots.TITLE + 1,
    )
    return plots.save(figure, out)


def _mean(error: Values, metric: str, axes: tuple[int, ...] | None) -> Any:
    return np.mean(error**2 if metric == "MSE" else np.abs(error), axis=axes)


def _compared(error: Values, naive: Values | None) -> list[tuple[Values, str, str]]:
    """What is drawn beside each other: errors, colour, name."""
    found = [(error, plots.FORECAST, "model")]
    return found if naive is None else [*found, (naive, plots.NAIVE, "last season")]


def _bars_by_variable(
    axis: Axes, evidence: Evidence, series: Sequence[tuple[Values, str, str]]
) -> list[BarContainer]:
    """For each variable a bar of every series: values [M], colour, name."""
    places, width = np.arange(len(evidence.targets)), 0.8 / len(series)
    axis.set_xticks(places, evidence.drawn_targets, rotation=0 if len(places) <= FEW else 90)
    return [
        axis.bar(places + (i - (len(series) - 1) / 2) * width, values, 0.95 * width, color=colour, label=name)
        for i, (values, colour, name) in enumerate(series)
    ]


def plot_calibration(evidence: Evidence, out: Path) -> Path:
    """How often the truth lies inside the intervals: over all, by step, by variable; and their width.

    Raises:
        ValueError: there are no intervals.
    """
    if not evidence.half_width:
        raise UserError("expected intervals, found none: this run has no calibration")
    levels = sorted(evidence.half_width)
    inside = {level: _inside(evidence, level) for level in levels}
    figure = plots.new_figure(12.4, 7.4)
    overall, by_step, by_variable, width = figure.subplots(2, 2).ravel()
    overall.plot([0, 1], [0, 1], color=plots.NAIVE, linewidth=1, label="exact")
    found = [float(inside[level].mean()) for level in levels]
    overall.plot(levels, found, "o-", color=plots.FORECAST, label="found")
    for level, share in zip(levels, found, strict=True):
        overall.annotate(f"{share:.1%}", (level, share), fontsize=plots.TICK, textcoords="offset points",
                         xytext=(6, -12))  # fmt: skip
    plots.label(overall, title="coverage by level", x="level asked for", y="share of truths inside")
    overall.set_xlim(-0.02, 1.07)
    overall.legend(fontsize=plots.TICK)
    ahead, label = np.arange(1, evidence.truth.shape[1] + 1), step_label(evidence.frequency)
    coloured = list(zip(_marked(levels), plots.NEIGHBOURS, strict=False))
    for level, colour in coloured:
        by_step.plot(ahead, inside[level].mean(axis=(0, 2)), color=colour, label=f"{level:.0%}")
        by_step.axhline(level, color=colour, linewidth=0.8, linestyle=":")
        half = evidence.half_width[level] / evidence.std
        width.plot(ahead, 2 * half.mean(axis=(0, 2)), color=colour, label=f"{level:.0%}")
    plots.label(by_step, title="coverage by horizon step (dotted: asked for)", x=label, y="share inside")
    plots.legend_under(by_step)
    plots.label(width, title="mean width of the intervals", x=label, y=f"width ({STANDARDISED})")
    width.set_ylim(bottom=0)
    width.legend(fontsize=plots.TICK)
    bars = [(inside[level].mean(axis=(0, 1)), colour, f"{level:.0%}") for level, colour in coloured]
    _bars_by_variable(by_variable, evidence, bars)
    for level, colour in coloured:
        by_variable.axhline(level, color=colour, linewidth=0.8, linestyle=":")
    plots.label(by_variable, title="coverage by variable (dotted: asked for)", y="share inside")
    for axis in (overall, by_step, by_variable):
        axis.yaxis.set_major_formatter(PercentFormatter(1.0))
    overall.xaxis.set_major_formatter(PercentFormatter(1.0))
    figure.suptitle(f"{evidence.drawn_name}: calibration over {evidence.scope}", fontsize=plots.TITLE + 1)
    return plots.save(figure, out)


def _inside(evidence: Evidence, level: float) -> NDArray[np.bool_]:
    """[W, H, M]."""
    found: NDArray[np.bool_] = np.abs(evidence.truth - evidence.prediction) <= evidence.half_width[level]
    return found


def _marked(levels: Sequence[float]) -> list[float]:
    """At most three levels to show step by step: those near 50%, 80% and 95%."""
    near = [min(levels, key=lambda level: abs(level - wanted)) for wanted in (0.5, 0.8, 0.95)]
    return list(dict.fromkeys(near))
