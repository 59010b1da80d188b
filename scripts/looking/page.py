"""The page about a run: its scores, forecasts, neighbours, curves and settings in one HTML file.

The file asks for nothing: its style, its script and its data are inside, and its content security policy
forbids the rest. Shape legend: W windows, H horizon, M variables forecast, K neighbours.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from models.closed_form import evaluate_baselines
from scripts.looking.evidence import gather
from scripts.looking.explanation import explain
from scripts.looking.options import LoadedRun, shown_levels
from utils.config import GROUPS, Config, iter_settings
from utils.log import MetricsFile
from utils.reporting.run_plots import LOSS_TERMS, Evidence
from utils.training import run_folder as folders

TEMPLATE = Path(__file__).with_name("template")
DIGITS = 4
"""Significant digits of the numbers in the page."""
BASELINES = {"persistence": "persistence", "seasonal_naive": "last season repeated", "ridge": "ridge"}
PANELS: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("losses of training, one pass each", "loss", {"loss": "main", "auxiliary": "auxiliary, before warm-up"}),
    ("losses of the modules, before their weights", "loss", {n: n.replace("_", " ") for n in LOSS_TERMS}),
    ("learning rate", "rate", {"learning_rate": "learning rate"}),
    (
        "gate of GRA-M (0: history, 1: the window alone)",
        "share",
        {"gate_mean": "gate, mean", "gate_std": "gate, deviation", "confidence_mean": "confidence, mean"},
    ),
    ("speed", "samples per second", {"samples_per_second": "samples per second"}),
)
"""Title, unit, and the records' fields with what to call them."""


def page_of(run: LoadedRun, *, windows: int) -> str:
    """The page, with ``windows`` test windows evenly spread."""
    evidence = gather(run, windows=windows, levels=shown_levels(run))
    data = {
        "targets": list(evidence.targets),
        "windows": [_window(run, evidence, place) for place in range(len(evidence.start))],
        "curves": list(_curves(MetricsFile(run.folder / folders.METRICS_FILE).read(skip_broken=True))),
    }
    parts = {
        "title": escape(f"{evidence.name}: {run.forecaster.model.name}"),
        "facts": _facts(run, evidence),
        "scores": _scores(run),
        "configuration": _configuration(run.forecaster.config),
        "style": _template("page.css"),
        "script": _template("page.js"),
        # "<" inside a string could end the script element that holds the data
        "data": json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
    }
    page = _template("page.html")
    pieces = page.split("{{")
    filled = [pieces[0]]
    for piece in pieces[1:]:
        name, rest = piece.split("}}", 1)
        filled.append(parts[name] + rest)
    return "".join(filled)


def _template(name: str) -> str:
    return (TEMPLATE / name).read_text(encoding="utf-8")


def _window(run: LoadedRun, evidence: Evidence, place: int) -> dict[str, Any]:
    """One window with all its variables."""
    found = explain(run, int(evidence.start[place]), words=False)
    return {
        "shown": found["window"]["shown"],
        "forecast": found["window"]["forecast"],
        "variables": [
            {
                **{name: own[name] for name in ("name", "mse", "mae")},
                **{name: _short(own[name]) for name in ("lookback", "truth", "forecast")},
                "trend": _trend(own["trend"]),
                "retrieval": _retrieval(own["retrieval"], len(own["forecast"])),
                "intervals": {
                    str(level): _short(half[place, :, variable].tolist())
                    for level, half in evidence.half_width.items()
                },
            }
            for variable, own in enumerate(found["variables"])
        ],
    }


def _trend(trend: Mapping[str, Any] | None) -> dict[str, Any] | None:
    kept = ("direction", "magnitude", "true_direction", "true_magnitude", "gate")
    return None if trend is None else {name: trend[name] for name in kept}


def _retrieval(retrieval: Mapping[str, Any] | None, rows: int) -> dict[str, Any] | None:
    """The gate and the neighbours, with the last ``rows`` of their lookbacks."""
    if retrieval is None:
        return None
    return {
        **{name: retrieval[name] for name in ("gate", "confidence", "matched")},
        "neighbours": [
            {
                **{name: n[name] for name in ("variable", "distance", "weight")},
                "until": n["lookback"][1],
                "before": _short(n["lookback_values"][-rows:]),
                "after": _short(n["future_values"]),
            }
            for n in retrieval["neighbours"]
        ],
    }


def _short(values: Iterable[float | None]) -> list[float | None]:
    return [None if value is None else float(f"{value:.{DIGITS}g}") for value in values]


def _curves(records: Sequence[Mapping[str, Any]]) -> Iterable[dict[str, Any]]:
    """What is drawn against the optimizer step, panel by panel; those without a record are left out."""
    trained = [r for r in records if r["event"] == "train"]
    validated = [{"step": r["step"], **r["validation"]} for r in records if r["event"] == "validation"]
    if not (trained or any(r["step"] for r in validated)):
        return
    first = ("validation", "error, standardised units", {"mse": "MSE", "mae": "MAE"})
    panels: list[tuple[tuple[str, str, dict[str, str]], Sequence[Mapping[str, Any]]]] = [
        (first, validated),
        *((panel, trained) for panel in PANELS),
    ]
    for (title, unit, names), source in panels:
        lines = []
        for field, name in names.items():
            found = [(r["step"], r[field]) for r in source if r.get(field) is not None]
            if found:
                lines.append({"name": name, "x": [s for s, _ in found], "y": _short(v for _, v in found)})
        if lines:
            yield {"title": title, "unit": unit, "lines": lines}


def _facts(run: LoadedRun, evidence: Evidence) -> str:
    """One line under the title."""
    f = run.forecaster
    llm = f.facts.get("llm") or {}
    known = [
        run.folder.name,
        f"step {f.facts.get('global_step', 0)}",
        f"lookback {f.seq_len}, horizon {f.pred_len} rows ({run.series.frequency})",
        f"LLM {llm['name']}, {llm['layers']} layers" if llm else "no LLM",
        llm.get("note", ""),
        f"shown: {evidence.scope}",
        "" if evidence.half_width else "this run has no calibration, so there are no intervals",
    ]
    return escape("; ".join(fact for fact in known if fact))


def _scores(run: LoadedRun) -> str:
    """The run's own scores beside forecasts that need no training, over every test window."""
    path = run.folder / folders.RESULTS_FILE
    rows: list[tuple[str, float, float]] = []
    extra = '<p class="note">This run has not been tested yet.</p>'
    if path.is_file():
        results = folders.read_json(path)
        for name in ("best", "last"):
            test = results[name]["test"]
            rows.append(
                (f"this run, {name} weights (step {results[name]['step']})", test["mse"], test["mae"])
            )
        extra = _table(("", "best weights"), list(_module_scores(results["best"])))
    baselines = evaluate_baselines(run.data)
    rows += [(text, *baselines[name]) for name, text in BASELINES.items() if name in baselines]
    if "seasonal_naive" not in baselines:
        extra += f'<p class="note">{escape(run.data.notes["season"])}</p>'
    body = "".join(
        f"<tr{' class=own' if place < len(rows) - len(baselines) else ''}><td>{escape(name)}</td>"
        f'<td class="number">{mse:.4f}</td><td class="number">{mae:.4f}</td></tr>'
        for place, (name, mse, mae) in enumerate(rows)
    )
    head = "<tr><th>every test window, standardised units</th><th>MSE</th><th>MAE</th></tr>"
    return f"<table>{head}{body}</table>{extra}"


def _module_scores(best: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """Validation, what the modules did, and how often the intervals held."""
    if best["validation_mse"] is not None:
        yield "validation MSE", f"{best['validation_mse']:.4f}"
    for level in ("direction", "magnitude"):
        if f"{level}_accuracy" in best["test"]:
            own, majority, read = (
                best["test"][f"{level}_{kind}"] for kind in ("accuracy", "majority", "of_forecast")
            )
            yield f"{level} named right", f"{own:.1%} (majority {majority:.1%}, by the forecast {read:.1%})"
    if "gate_mean" in best["test"]:
        gate, spread = best["test"]["gate_mean"], best["test"]["gate_std"]
        yield "gate of GRA-M", f"{gate:.2f} +- {spread:.2f} over windows"
    for level, found in ((best.get("intervals") or {}).get("levels") or {}).items():
        covered, width = found["coverage"], found["width"]
        yield f"{float(level):.0%} intervals", f"cover {covered:.1%}, width {width:.2f} (standardised units)"


def _configuration(config: Config) -> str:
    """The settings that are not at their defaults, and behind a click all of them."""
    values = config.flat()
    changed = [
        (f"--{name}", str(values[name])) for _, name, item in iter_settings() if values[name] != item.default
    ]
    everything = "".join(
        f"<h3>{escape(group)}</h3>"
        + _table(("setting", "value", ""), [
            (f"--{name}", str(values[name]), str(item.metadata["help"]))
            for own, name, item in iter_settings() if own == group
        ])
        for group in GROUPS
    )  # fmt: skip
    shown = _table(("not at its default", "value"), changed)
    return f"{shown}<details><summary>all settings</summary>{everything}</details>"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"
