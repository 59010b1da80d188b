"""Results as tables: aligned text for a terminal, Markdown for a document."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import mean, stdev
from typing import Any

import pandas as pd


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


def text_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns of text, all to the left."""
    frame = pd.DataFrame(rows, columns=list(header))
    padded = frame.apply(lambda column: column.str.ljust(column.str.len().max()))
    return str(padded.to_string(index=False, justify="left"))


def markdown_table(
    header: Sequence[object], rows: Iterable[Sequence[object]], *, numbers: bool = False
) -> str:
    """A Markdown table; with ``numbers`` all columns but the first are to the right."""
    rule = ("---", *("---:" if numbers else "---" for _ in header[1:]))
    return "\n".join(markdown_row(cells) for cells in (header, rule, *rows))


def markdown_row(cells: Iterable[object]) -> str:
    """A row of a Markdown table; a bar within a cell becomes a stroke."""
    return f"| {' | '.join(str(cell).replace('|', '/') for cell in cells)} |"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The first column to the left, the others to the right."""
    frame = pd.DataFrame(rows, columns=list(header)).set_index(header[0])
    return str(frame.rename_axis(index=None, columns=header[0]).to_string())
