"""The page about a run: its scores, forecasts, neighbours, curves and settings in one HTML file.

The file asks for nothing: its style, its script and its data are inside, and its content security policy
forbids the rest. Shape legend: W windows, H horizon, M variables forecast, K neighbours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from models.closed_form import evaluate_baselines
from scripts.lib.inspect.explanation import explain
from scripts.lib.inspect.options import LoadedRun, shown_levels
from scripts.lib.inspect.plot_data import gather
from utils.config import GROUPS, Config, iter_settings
from utils.log import MetricsFile
from utils.reporting.run_plots import LOSS_TERMS, Evidence
from utils.reporting.window_plot import NEIGHBOURS_SHOWN
from utils.training import run_folder as folders

TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).with_name("template")),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
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
    return TEMPLATES.get_template("page.html").render(
        title=f"{evidence.name}: {run.forecaster.model.name}",
        facts=_facts(run, evidence),
        **_scores(run),
        **_configuration(run.forecaster.config),
        data=data,
    )


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
                "texts": own["texts"],
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
    """The gate, what history does to the forecast, and the nearest neighbours.

    Of their lookbacks the last ``rows``.
    """
    if retrieval is None:
        return None
    return {
        **{name: retrieval[name] for name in ("gate", "confidence", "matched", "moved", "share")},
        "found": len(retrieval["neighbours"]),
        "neighbours": [
            {
                **{name: n[name] for name in ("variable", "distance", "weight")},
                "until": n["lookback"][1],
                "before": _short(n["lookback_values"][-rows:]),
                "after": _short(n["future_values"]),
            }
            for n in retrieval["neighbours"][:NEIGHBOURS_SHOWN]
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
    return "; ".join(fact for fact in known if fact)


def _scores(run: LoadedRun) -> dict[str, Any]:
    """The run's own results beside forecasts that need no training, over every test window.

    ``results`` is empty and ``modules`` None before the test, ``baselines`` are rows of a name, MSE and MAE,
    and ``note`` says why one is missing.
    """
    path = run.folder / folders.RESULTS_FILE
    results = folders.read_json(path) if path.is_file() else {}
    baselines = evaluate_baselines(run.data)
    return {
        "results": results,
        "baselines": [(text, *baselines[name]) for name, text in BASELINES.items() if name in baselines],
        "modules": list(_module_scores(results["best"])) if results else None,
        "note": "" if "seasonal_naive" in baselines else run.data.notes["season"],
    }


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


def _configuration(config: Config) -> dict[str, Any]:
    """Rows of the settings that are not at their defaults, and of all by group."""
    values = config.flat()
    return {
        "changed": [
            (f"--{name}", values[name]) for _, name, item in iter_settings() if values[name] != item.default
        ],
        "settings": {
            group: [(f"--{item.name}", values[item.name], item.metadata["help"]) for item in fields(part)]
            for group, part in GROUPS.items()
        },
    }
