"""The parts of a study's report, each from the results alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import mean
from typing import Any, Literal

from scripts.lib.ablation.document import Paragraph, Part, Points, Table
from scripts.lib.ablation.findings import (
    LEVEL,
    Difference,
    Findings,
    Metric,
    Place,
    Result,
    Weights,
    mean_and_deviation,
)
from scripts.lib.ablation.published import PUBLISHED
from utils.reporting.statistics import BLOCK, Interval
from utils.training.time_estimate import clock_text

NOT_RUN = "not run"
LAST_SHARE = 0.25
"""Of the training records, at the end: what the module losses are read from."""
WANTED = (0.1, 0.5)
"""What the original design (its section 6.3) wants the module losses to be; about 0.02 is too small."""


def conclusions(findings: Findings) -> Iterator[Part]:
    """What came out, in sentences made of the numbers."""
    primary = findings.differences("primary")
    points = [sentence(findings, d) for d in primary]
    points += [sentence(findings, d) for d in findings.differences("secondary")]
    if points:
        yield Points(tuple(points))
    else:
        yield Paragraph("No comparison can be made yet: no two cells that form a pair have been run.")
    yield Points(
        tuple(_reference_sentences(findings) + [_aim_sentence(findings, a) for a in findings.plan["aims"]])
    )


def sentence(findings: Findings, d: Difference) -> str:
    """What a comparison shows, with its numbers."""
    way = "lower" if d.over_seeds.mean < 0 else "higher"
    text = (
        f"**{findings.label(d.configuration)}** against {findings.label(d.against)} ({d.place}, "
        f"{_seeds(d)}): test MSE {abs(d.percent):.2f}% {way}, {_interval(d.over_seeds)} over seeds"
    )
    if d.over_windows is not None:
        text += f", {_interval(d.over_windows)} over test windows"
    if d.p_holm is not None:
        text += f", p = {d.p:.3f}, after Holm {d.p_holm:.3f}"
    return f"{text}: **{d.verdict}**."


def _seeds(d: Difference) -> str:
    return f"{len(d.seeds)} of {d.planned} paired seeds"


def _interval(interval: Interval) -> str:
    if interval.low == -float("inf"):
        return f"{interval.mean:+.4f} (one pair: no interval)"
    return f"{interval.mean:+.4f} [{interval.low:+.4f}, {interval.high:+.4f}]"


def _best_mean(findings: Findings, configuration: str, place: Place) -> float | None:
    found = findings.at(configuration, place)
    return mean(r.test("best")["mse"] for r in found.values()) if found else None


def _reference_sentences(findings: Findings) -> list[str]:
    """Whether the best of the compared configurations beats each yardstick, place by place."""
    found = []
    references = [name for name, c in findings.configurations.items() if c["reference"]]
    for place in findings.places:
        scores = {n: _best_mean(findings, n, place) for n in findings.compared()}
        there = {n: s for n, s in scores.items() if s is not None}
        if not there:
            continue
        best = min(there, key=lambda n: there[n])
        parts = []
        for name in references:
            other = _best_mean(findings, name, place)
            if other is not None:
                way = "below" if there[best] < other else "**not below**"
                parts.append(f"{way} {findings.label(name)} ({other:.3f})")
        if parts:
            label = findings.label(best)
            found.append(
                f"{place}: the lowest mean MSE here, {there[best]:.3f} ({label}), is {', '.join(parts)}."
            )
    return found


def _aim_sentence(findings: Findings, aim: dict[str, Any]) -> str:
    """An aim beside what was found."""
    data = findings.places[0].data
    places = [Place(data, horizon) for horizon in aim["horizons"]]
    scores = [_best_mean(findings, aim["configuration"], place) for place in places]
    known = [s for s in scores if s is not None]
    text = f"Aim: {aim['text']} ({findings.label(aim['configuration'])}, at most {aim['at_most']:g}). "
    if len(known) < len(scores):
        return f"{text}Not decided: {len(scores) - len(known)} of {len(scores)} horizons have not been run."
    found, of = mean(known), aim["configuration"]
    seeds = ", ".join(
        _seeds_run(findings, of, place) + (f" at {place.horizon}" if len(places) > 1 else "")
        for place in places
    )
    return (
        f"{text}Found {found:.3f} ({seeds}): {'reached' if found <= aim['at_most'] else '**not reached**'}."
    )


def _seeds_run(findings: Findings, configuration: str, place: Place) -> str:
    run, planned = len(findings.at(configuration, place)), len(findings.planned[configuration, place])
    return f"{run} of {planned} seeds"


def score_tables(findings: Findings) -> Iterator[Part]:
    """Mean and deviation over seeds, best and last weights, beside yardsticks and published numbers."""
    setting = f" ({findings.plan['setting']})" if findings.plan["setting"] else ""
    for place in findings.places:
        rows = [
            score_row(findings, name, place)
            for name in findings.configurations
            if (name, place) in findings.planned
        ]
        if any(not findings.configurations[n]["reference"] for n, p in findings.planned if p == place):
            rows += [
                (label, "", *(f"{value:.3f}" for value in scores[place.data, place.horizon]), "", "", "", "")
                for label, scores in PUBLISHED.items()
                if (place.data, place.horizon) in scores
            ]
        yield Table(
            f"{place}, {_windows(findings, place)}, mean ± deviation over seeds{setting}",
            (
                *("configuration", "seeds", "MSE, best", "MAE, best", "MSE, last", "MAE, last"),
                *("validation MSE", "kept step 0"),
            ),
            tuple(rows),
        )


def _kept_step_0(findings: Findings, name: str, found: Sequence[Result]) -> str:
    """In how many cells training had no effect: no step was better on validation than where it began."""
    begun = all(any(v["step"] == 0 for v in r.record["validations"]) for r in found)
    if findings.configurations[name]["reference"] or not begun:  # step 0 was no candidate in earlier code
        return ""
    return f"{sum(r.record['best']['step'] == 0 for r in found)} of {len(found)}"


def _windows(findings: Findings, place: Place) -> str:
    """Which test windows the scores at a place are over."""
    cells = [r for name in findings.configurations for r in findings.at(name, place).values()]
    if not cells or cells[0].stride == 1:
        return "every test window"
    return f"every {cells[0].stride}th test window (published scores: all of them)"


def score_row(findings: Findings, name: str, place: Place) -> tuple[str, ...]:
    """A configuration's row of a table of scores."""
    found, planned = list(findings.at(name, place).values()), len(findings.planned[name, place])
    if not found:
        return (findings.label(name), f"0 of {planned}", *[NOT_RUN] * 5, "")
    weights: tuple[Weights, ...] = ("best", "last")
    scores = [_spread([r.test(w)[m] for r in found]) for w in weights for m in ("mse", "mae")]
    validation = [r.record["best"].get("validation_mse") for r in found]
    known = [v for v in validation if v is not None]
    return (
        findings.label(name),
        f"{len(found)} of {planned}",
        *scores,
        _spread(known) if known else "",
        _kept_step_0(findings, name, found),
    )


def _spread(values: Sequence[float]) -> str:
    middle, std = mean_and_deviation(values)
    return f"{middle:.4f}" if std is None else f"{middle:.4f} ± {std:.4f}"


def difference_tables(findings: Findings) -> Iterator[Part]:
    """The comparisons that were named beforehand, then the others."""
    header = ("comparison", "seeds", "difference in MSE, over seeds", "over test windows", "percent")
    planned = len(findings.plan["primary"])
    if planned:
        yield Table(
            f"Primary comparisons, named beforehand (best weights; Holm over {planned})",
            (*header, "p, sign flips", "p, Holm", "result"),
            tuple(
                (*_cells(findings, d), _p(d.p, d), _p(d.p_holm, d), d.verdict)
                for d in findings.differences("primary")
            )
            + _unpaired(findings, "primary", columns=8),
        )
        yield Table(
            "The same, otherwise measured (intervals only)",
            ("comparison", "MSE, last weights", "MAE, best weights", "MAE, last weights"),
            tuple(_otherwise(findings, d) for d in findings.differences("primary")),
        )
    rows = tuple((*_cells(findings, d), d.verdict) for d in findings.differences("secondary"))
    rows += _unpaired(findings, "secondary", columns=6)
    if rows:
        yield Table("Other comparisons (intervals, no test)", (*header, "result"), rows)


def _unpaired(
    findings: Findings, kind: Literal["primary", "secondary"], *, columns: int
) -> tuple[tuple[str, ...], ...]:
    """A row for each comparison that no pair of cells has been run for."""
    return tuple(
        (
            f"{findings.label(configuration)} - {findings.label(against)}, {place.data} {place.horizon}",
            *[NOT_RUN] * (columns - 1),
        )
        for configuration, against, place in findings.unpaired(kind)
    )


def _cells(findings: Findings, d: Difference) -> tuple[str, ...]:
    return (
        f"{findings.label(d.configuration)} - {findings.label(d.against)}, {d.place.data} {d.place.horizon}",
        f"{len(d.seeds)} of {d.planned}",
        _interval(d.over_seeds),
        _interval(d.over_windows) if d.over_windows is not None else "test too short",
        f"{d.percent:+.2f}%",
    )


def _p(value: float | None, d: Difference) -> str:
    return f"after {d.planned} seeds" if value is None else f"{value:.4f}"


def _otherwise(findings: Findings, d: Difference) -> tuple[str, ...]:
    ways: tuple[tuple[Metric, Weights], ...] = (("mse", "last"), ("mae", "best"), ("mae", "last"))
    found = [
        findings.difference(d.configuration, d.against, d.place, metric=metric, weights=weights)
        for metric, weights in ways
    ]
    return (
        f"{findings.label(d.configuration)} - {findings.label(d.against)}, {d.place.horizon}",
        *(_interval(other.over_seeds) for other in found if other is not None),
    )


def class_table(findings: Findings, place: Place) -> Iterator[Part]:
    """TAPR's classes beside the majority class and the class read off the forecast itself."""
    rows = []
    for name in findings.compared():
        scores = [r.test("best") for r in findings.at(name, place).values()]
        if scores and all("direction_accuracy" in s for s in scores):
            cells = [
                f"{mean(s[f'{level}_{kind}'] for s in scores):.1%}"
                for level in ("direction", "magnitude")
                for kind in ("accuracy", "majority", "of_forecast")
            ]
            rows.append((findings.label(name), *cells))
    if rows:
        yield Table(
            f"Trend classes on the test windows ({place}, best weights, mean over seeds)",
            (
                "configuration",
                *("direction", "majority class", "read off the forecast"),
                *("magnitude", "majority class", "read off the forecast"),
            ),
            tuple(rows),
        )
        yield Paragraph(
            "A classifier earns its place where its share lies above both others: above the majority class, "
            "and above what anyone can read off the forecast."
        )


def gate_table(findings: Findings, place: Place) -> Iterator[Part]:
    """How far retrieval is trusted."""
    rows = []
    for name in findings.compared():
        scores = [r.test("best") for r in findings.at(name, place).values()]
        if scores and all("gate_mean" in s for s in scores):
            kinds = ("gate_mean", "gate_std", "confidence_mean", "matched_share")
            rows.append((findings.label(name), *(_spread([s[k] for s in scores]) for k in kinds)))
    if rows:
        header = ("configuration", "gate, mean", "its deviation over series", "match confidence", "matched")
        yield Table(f"GRA-M's gate on the test windows ({place}; 1: the window alone)", header, tuple(rows))


def auxiliary_table(findings: Findings, place: Place) -> Iterator[Part]:
    """The module losses at the end of training, as section 6.3 of the original design asks."""
    rows = []
    for name in findings.compared():
        found = [_late(r) for r in findings.at(name, place).values()]
        records = [record for late in found for record in late]
        if not records or not any(record["auxiliary"] for record in records):
            continue
        value, main = mean(r["auxiliary"] for r in records), mean(r["loss"] for r in records)
        known = {"event", "step", "loss", "auxiliary", "warmup", "learning_rate", "seconds_per_step"}
        terms = ", ".join(
            f"{term} {mean(r[term] for r in records):.3f}" for term in records[0] if term not in known
        )
        rows.append((findings.label(name), f"{value:.3f}", _wanted(value), f"{value / main:.0%}", terms))
    if rows:
        yield Table(
            f"Module losses at the end of training ({place}, last quarter, before the warm-up factor)",
            (
                "configuration",
                "weighted sum",
                "wanted: 0.1 to 0.5",
                "share of the main loss",
                "terms, unweighted",
            ),
            tuple(rows),
        )


def _late(result: Result) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = result.record["training"]
    return records[int(len(records) * (1 - LAST_SHARE)) :]


def _wanted(value: float) -> str:
    low, high = WANTED
    return "below it" if value < low else "above it" if value > high else "within"


def cost_table(findings: Findings) -> Iterator[Part]:
    """Seconds of a run, phase by phase."""
    rows = []
    for (name, place), by_seed in findings.results.items():
        found = list(by_seed.values())
        phases = [
            f"{mean(r.record['phases'].get(p, 0.0) for r in found):.0f}"
            for p in ("training", "test", "memory")
        ]
        total = mean(r.record["seconds"] for r in found)
        again = sum(r.record["attempts"] > 1 for r in found)
        rows.append((f"{findings.label(name)}, {place}", *phases, clock_text(total), str(again)))
    if rows:
        yield Table(
            "Cost of a run (mean, seconds of wall clock; phases are those of the last process)",
            ("configuration", "training with validation", "test", "memory", "whole run", "were cut off"),
            tuple(rows),
        )


def missing_part(findings: Findings, command: str) -> Iterator[Part]:
    """What was planned and has no result, and what it would take."""
    if not findings.missing:
        yield Paragraph("Every planned cell has been run.")
        return
    seconds = [r.record["seconds"] for by_seed in findings.results.values() for r in by_seed.values()
               if r.record["last"]["step"]]  # fmt: skip
    each = mean(seconds) if seconds else findings.plan["seconds_per_cell"]
    total = clock_text(each * len(findings.missing))
    by_row: dict[tuple[str, str], list[int]] = {}
    for cell in findings.missing:
        place = Place(cell["data"], cell["horizon"])
        by_row.setdefault((cell["configuration"], str(place)), []).append(cell["seed"])
    yield Paragraph(
        f"{len(findings.missing)} of {len(findings.plan['cells'])} planned cells have **not been run**; at "
        f"{clock_text(each)} a cell they take about {total}. `{command}` goes on."
    )
    yield Points(
        tuple(
            f"not run: {findings.label(name)}, {place}, seeds {', '.join(map(str, seeds))}"
            for (name, place), seeds in by_row.items()
        )
    )


def method_part(findings: Findings) -> Iterator[Part]:
    """How the numbers were made, for a reader who wants to repeat or doubt them."""
    yield Paragraph(
        "Weights are chosen by validation alone; no number of the test chose anything. `best` are the "
        "weights of the best validation, `last` those of the last step. Where a cell keeps step 0, the "
        "solved start that it began at, training had no effect."
    )
    yield Paragraph(
        "Differences are paired: the same seed on both sides (the weights that both have, the order of the "
        "data). Intervals hold 95%: over seeds by Student's t, over test windows by a circular block "
        f"bootstrap (blocks of {BLOCK} rows, mean over seeds). p counts every assignment of signs to the "
        "paired differences (two-sided); a primary comparison is tested once all its seeds are there, and "
        f"called a difference at {LEVEL:g} after Holm's correction."
    )
    records = [r.record for by_seed in findings.results.values() for r in by_seed.values()]
    yield Points(tuple(_facts(records)))


def _facts(records: Sequence[dict[str, Any]]) -> Iterator[str]:
    """What the cells were made with."""
    llms = set()
    for llm in (r["llm"] for r in records if r["llm"]):
        note = f" ({llm['note']})" if llm["note"] else ""
        llms.add(f"{llm['name']}, {llm['layers']} layers{note}")
    facts = {
        "language model": llms,
        "commit": {str(r["environment"].get("git_commit"))[:12] for r in records},
        "torch": {r["environment"]["packages"]["torch"] for r in records},
        "threads": {str(r["environment"]["threads"]) for r in records},
        "GPU": {", ".join(r["environment"]["gpus"]) or "none" for r in records},
        "test windows": {f"{r['best']['test']['windows']:.0f}" for r in records},
        "data, sha256": {r["data_hash"][:12] for r in records},
    }
    for name, values in facts.items():
        if values:
            yield f"{name}: {'; '.join(sorted(values))}"
