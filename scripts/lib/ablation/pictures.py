"""The pictures of a study's report, PNG files beside it.

Shape legend: H horizon.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from scripts.lib.ablation.findings import Findings, Place, Result
from utils.reporting import plots
from utils.training.window_errors import BINS


def _lines(findings: Findings, place: Place, axis: Axes, values: Callable[[Result], np.ndarray]) -> None:
    """A line for each configuration: the mean over its seeds, and the seeds themselves, thin."""
    for i, name in enumerate(findings.compared()):
        found = [values(result) for result in findings.at(name, place).values()]
        if not found:
            continue
        length = min(len(one) for one in found)
        stacked = np.stack([one[:length] for one in found])  # [R, points, 2]
        x, y = stacked[0, :, 0], stacked[..., 1]
        colour = f"C{i}"
        axis.plot(x, y.T, color=colour, linewidth=0.4, alpha=0.5)
        axis.plot(x, y.mean(axis=0), color=colour, linewidth=1.6, label=findings.label(name))


def training_curves(findings: Findings, place: Place, out: Path) -> Path:
    """Training loss between validations, and error on the validation windows, by optimizer step."""

    def training(result: Result) -> np.ndarray:
        return np.array([(r["step"], r["loss"]) for r in result.record["training"]]).reshape(-1, 2)

    def validation(result: Result) -> np.ndarray:
        found = [(r["step"], r["validation"]["mse"]) for r in result.record["validations"]]
        return np.array(found).reshape(-1, 2)

    both = (training, validation)
    titles = (f"training loss ({place})", f"validation MSE ({place})")
    return plots.panels(
        out, titles, lambda i, axis: _lines(findings, place, axis, both[i]), x="optimizer step", y="error"
    )


def error_by_step(findings: Findings, places: Sequence[Place], out: Path) -> Path:
    """Test MSE of the best weights by step of the horizon."""

    def values(result: Result) -> np.ndarray:
        error = result.detail("best").horizon_squared  # [H]
        return np.stack([np.arange(1, len(error) + 1), error], axis=1)

    return plots.panels(
        out,
        [str(place) for place in places],
        lambda i, axis: _lines(findings, places[i], axis, values),
        x="step of the horizon",
        y="test MSE",
    )


def histograms(findings: Findings, place: Place, out: Path) -> Path | None:
    """Shares of the test series by gate, and of their neighbours by weight; None without retrieval."""
    found = {name: list(findings.at(name, place).values()) for name in findings.compared()}
    found = {
        name: results
        for name, results in found.items()
        if results and all(r.detail("best").gate_counts.any() for r in results)
    }
    if not found:
        return None
    centres = (np.arange(BINS) + 0.5) / BINS

    def draw(panel: int, axis: Axes) -> None:
        for i, (name, results) in enumerate(found.items()):
            details = [r.detail("best") for r in results]
            counts = [d.weight_counts if panel else d.gate_counts for d in details]
            shares = np.mean([c / max(c.sum(), 1) for c in counts], axis=0)
            axis.step(centres, shares, where="mid", color=f"C{i}", label=findings.label(name))
        axis.set_xlim(0, 1)

    titles = (f"gate: 1 trusts the window alone ({place})", f"weight of a neighbour ({place})")
    return plots.panels(out, titles, draw, x="value", y="share")


def forest(findings: Findings, out: Path) -> Path | None:
    """Every comparison's mean difference with its two intervals; None without one."""
    found = [*findings.differences("primary"), *findings.differences("secondary")]
    if not found:
        return None
    figure = plots.new_figure(8.5, 0.42 * len(found) + 1.4)
    axis = figure.subplots()
    for row, difference in enumerate(found):
        for shift, interval, colour, name in (
            (-0.12, difference.over_seeds, "C0", "over seeds"),
            (0.12, difference.over_windows, "C1", "over test windows"),
        ):
            if interval is not None and np.isfinite(interval.low):
                axis.plot(interval[::2], [row + shift] * 2, color=colour, label=name if row == 0 else None)
        axis.plot(difference.over_seeds.mean, row, "k.", markersize=5)
    axis.axvline(0, color="0.6", linewidth=0.8)
    axis.set_yticks(
        range(len(found)),
        [
            f"{findings.label(d.configuration)} - {findings.label(d.against)}, {d.place.horizon}"
            for d in found
        ],
        fontsize=8,
    )
    axis.invert_yaxis()
    axis.set_xlabel("difference in test MSE, best weights, 95% intervals (left of 0: better)", fontsize=9)
    axis.tick_params(axis="x", labelsize=8)
    axis.legend(fontsize=8)
    return plots.save(figure, out)
