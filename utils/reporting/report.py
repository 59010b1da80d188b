"""Results as aligned text tables, for a terminal and for a document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any


def score_table(rows: Sequence[tuple[str, float, float]]) -> str:
    """A table of (forecast, MSE, MAE) rows, three decimals, in the order given."""
    return _table(("forecast", "MSE", "MAE"), [(name, f"{mse:.3f}", f"{mae:.3f}") for name, mse, mae in rows])


def phase_table(phases: Mapping[str, float]) -> str:
    """A table of seconds for each phase, with their sum below."""
    rows = [(name, f"{seconds:.1f}") for name, seconds in phases.items()]
    return _table(("phase", "seconds"), [*rows, ("total", f"{sum(phases.values()):.1f}")])


def interval_table(intervals: Mapping[str, Any]) -> str:
    """A table of the test windows covered by prediction intervals, by level; widths in standardised units."""
    rows = [
        (f"{float(level):.1%}", f"{found['coverage']:.1%}", f"{found['width']:.3f}")
        for level, found in intervals["levels"].items()
    ]
    return (
        f"prediction intervals, {intervals['score']} errors of {intervals['calibration_windows']} validation "
        f"windows, on {intervals['windows']} test windows\n" + _table(("level", "covered", "width"), rows)
    )


def spread_text(tests: Sequence[Mapping[str, float]]) -> str:
    """Mean and sample deviation of MSE and MAE over several runs' test scores (two at least), a line."""
    parts = []
    for name in ("mse", "mae"):
        values = [test[name] for test in tests]
        parts.append(f"{name} {mean(values):.4f} +- {stdev(values):.4f}")
    return f"test over {len(tests)} seeds, best weights: {', '.join(parts)}"


def text_table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Columns of text, all to the left."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [header, tuple("-" * width for width in widths), *rows]
    )


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Columns as wide as their widest cell: the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    rule = tuple("-" * width for width in widths)
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
        )
        for row in [header, rule, *rows]
    )
