"""The same machine as other kinds of processor: what each way to compute gains there, and what auto takes.

oneDNN and torch are told by their variables to leave instructions alone that the processor has. Kinds that
a machine can not stand for keep the numbers of the machine that measured them.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from logging import getLogger
from pathlib import Path
from typing import Any

from scripts.lib.benchmark import measure
from scripts.lib.benchmark.cases import ALL, AUTO_CASE, DEFAULT, PLAIN, PRESET, Case, Scenario
from scripts.lib.benchmark.client import workers
from utils.cli import parse_config
from utils.config import Config
from utils.training.precision import FP32_GRADE
from utils.training.precision_choice import HOPELESS

log = getLogger(__name__)
CPU_PRESETS = ("cpu", "study", "ETTh1_tuned")
CANDIDATES = {"matmul highest": "float32 highest", "matmul medium": "float32 medium", "bf16": "bf16"}
"""Case to what `utils.training.precision_choice` calls it."""
NOT_RUN = "not run"


@dataclass(frozen=True)
class Kind:
    """A kind of processor, and how one that can more stands for it."""

    name: str
    vendor: str
    has: frozenset[str]
    """Instructions by /proc/cpuinfo."""
    lacks: frozenset[str]
    environment: Mapping[str, str]


BF16_CODE, AMX, AVX512, AVX2 = "avx512_bf16", "amx_bf16", "avx512f", "avx2"
KINDS = (
    Kind("AMD EPYC, avx512_bf16", "AMD", frozenset({BF16_CODE}), frozenset({AMX}), {}),
    Kind("Intel Xeon, AMX", "Intel", frozenset({AMX}), frozenset(), {}),
    Kind(
        "Intel Xeon, avx512_bf16", "Intel", frozenset({BF16_CODE}), frozenset({AMX}),
        {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"},
    ),
    Kind(
        "AVX-512 without bf16", "", frozenset({AVX512}), frozenset({BF16_CODE}),
        {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
    ),
    Kind(
        "AVX2", "", frozenset({AVX2}), frozenset({AVX512}),
        {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"},
    ),
)  # fmt: skip
"""The columns of the table, in this order."""


def stood_for(processor: str, flags: frozenset[str]) -> dict[str, dict[str, str]]:
    """The kinds that a processor is, or can stand for, by name, with the variables that make it so."""
    found: dict[str, dict[str, str]] = {}
    for kind in KINDS:
        if kind.vendor in processor and kind.has <= flags:
            is_it = kind.lacks.isdisjoint(flags)
            if is_it or kind.environment:
                found[kind.name] = {} if is_it else dict(kind.environment)
    return found


def processor_flags(info: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Instructions that this machine's processor has; none where the system does not say."""
    lines = info.read_text().splitlines() if info.is_file() else []
    return frozenset(next((line.split(":", 1)[1] for line in lines if line.startswith("flags")), "").split())


def preset_scenarios() -> list[Scenario]:
    """The presets for a CPU on the built-in series, each beside its own plain path."""
    plain = Case(PLAIN, {"source_tokens": "mapping", "start": "none"}, plain=True)
    found = []
    for name in CPU_PRESETS:
        words = ["--preset", name, "--data", "synthetic", "--use_tapr", "--use_gram"]
        settings, usual = parse_config(words).flat(), Config().flat()
        own = {k: v for k, v in settings.items() if v != usual[k]}
        found.append(
            Scenario(f"preset-{name}", f"preset {name}", "TimeLLM_Enhanced", own, (plain, Case(PRESET)))
        )
    return found


def measure_kinds(
    scenarios: Sequence[Scenario], effort: measure.Effort, machine: Mapping[str, Any]
) -> dict[str, Any]:
    """Each kind that this machine can stand for: training steps of every scenario, one thread."""
    found: dict[str, Any] = {}
    kinds = stood_for(machine["processor"], processor_flags())
    for name, environment in kinds.items():
        log.info("as %s: %s", name, _made_by(environment) or "this machine itself")
        own = replace(
            effort, environment=environment, threads=(1,), costs=False, neuralforecast=None, peers={}
        )
        found[name] = {
            "processor": machine["processor"],
            "environment": environment,
            "when": datetime.date.today().isoformat(),
            "git_commit": machine["git_commit"],
            "scenarios": {s.name: _of_kind(s, own) for s in scenarios},
        }
    return found


def _of_kind(scenario: Scenario, effort: measure.Effort) -> dict[str, Any]:
    """A scenario's training steps, without candidates that are hopeless there."""
    alone = _timed(scenario, effort) if any(c.name == AUTO_CASE for c in scenario.cases) else {}
    gflops: dict[str, dict[str, float]] = alone.get("gflops", {})
    plain = (min(speeds.values()) for way, speeds in gflops.items() if way.startswith("float32"))
    best = max(plain, default=0.0)
    hopeless = {
        case
        for case, way in CANDIDATES.items()
        if way in gflops and min(gflops[way].values()) * HOPELESS < best
    }
    chosen = [case.name for case in scenario.cases if case.name not in hopeless]
    cases = measure.measure_scenario(replace(scenario.only(*chosen), evaluates=False), effort)["cases"]
    steps = _steps(cases)
    if AUTO_CASE in cases:  # the figures are those of a quiet start, the choice that of the case measured
        alone["took"] = cases[AUTO_CASE]["facts"]["precision_choice"].get("took")
    return {"title": scenario.title, "train": steps, "auto": alone, "hopeless": sorted(hopeless)}


def _steps(cases: Mapping[str, Any]) -> dict[str, Any]:
    """Ratio and seconds of a training step on one thread, by case."""
    return {n: {k: c["train"]["1"][k] for k in ("ratio", "seconds")} for n, c in cases.items()}


def _made_by(environment: Mapping[str, str]) -> str:
    return " ".join(f"{name}={value}" for name, value in environment.items())


def _timed(scenario: Scenario, effort: measure.Effort) -> dict[str, Any]:
    """What auto finds at the start of a process that has the machine to itself."""
    auto = next(case for case in scenario.cases if case.name == AUTO_CASE)
    request = measure.request_of(scenario, auto) | {"environment": effort.environment}
    with workers({auto.name: request}) as started:
        choice: dict[str, Any] = started[auto.name].ask("facts")["precision_choice"]
    return choice


def of_earlier(results: Mapping[str, Any]) -> dict[str, Any]:
    """The column of a benchmark from before there were kinds: the kind that its machine was."""
    machine = results["machine"]
    name = next((kind.name for kind in KINDS if kind.vendor and kind.vendor in machine["processor"]), None)
    if name is None or name in results.get("kinds", {}):
        return {}
    scenarios = {
        key: {
            "title": s["title"],
            "train": _steps(s["cases"]),
            "auto": {},
            "hopeless": [],
        }
        for key, s in results["scenarios"].items()
        if "1" in s["cases"][PLAIN].get("train", {})
    }
    column = {"processor": machine["processor"], "environment": {}, "when": results["when"],
              "git_commit": machine["git_commit"], "scenarios": scenarios}  # fmt: skip
    return {name: column}


def slower_than_plain(kinds: Mapping[str, Any]) -> list[str]:
    """Defaults and presets that are slower than the plain path on a kind, beyond the noise of its rounds."""
    return [
        f"{kind}: {scenario['title']}, {name}: {found['ratio']['median']:.2f} of the plain path's speed"
        for kind, column in kinds.items()
        for scenario in column["scenarios"].values()
        for name, found in scenario["train"].items()
        if name in (DEFAULT, ALL, AUTO_CASE, PRESET) and found["ratio"]["q3"] < 1
    ]


def kinds_table(kinds: Mapping[str, Any]) -> str:
    """A column for each kind of processor, with its name; a row for each training step and way."""
    shown = (PLAIN, DEFAULT, ALL, PRESET, *CANDIDATES, AUTO_CASE)
    rows: dict[tuple[str, str], None] = {}
    for column in kinds.values():
        for scenario in column["scenarios"].values():
            there = {*scenario["train"], *scenario["hopeless"]}
            rows |= {(scenario["title"], name): None for name in shown if name in there}
    titles = list(dict.fromkeys(title for title, _ in rows))
    names = [kind.name for kind in KINDS]
    lines = [
        "### A training step on other kinds of processor, one thread",
        "",
        "| | " + " | ".join(names) + " |",
        "|---" * (1 + len(names)) + "|",
    ]
    for title, case in sorted(rows, key=lambda row: (titles.index(row[0]), shown.index(row[1]))):
        cells = [_cell(kinds.get(name), title, case) for name in names]
        lines.append(f"| {title}: {case} | " + " | ".join(cells) + " |")
    lines += ["", "Ratios to the plain path of the same kind, whose seconds stand in its row; `*` marks what "
              "`--mixed_precision auto` took. A candidate with less than half of float32's speed is not "
              f"run; {NOT_RUN}: no such machine was at hand."]  # fmt: skip
    for name in (name for name in names if name in kinds):
        column = kinds[name]
        made = _made_by(column["environment"])
        lines.append(
            f"\n{name}: {column['when']} on {column['processor']}"
            + (f", by {made}" if made else "")
            + f", commit {str(column['git_commit'])[:7]}."
        )
    return "\n".join(lines)


def _cell(column: Mapping[str, Any] | None, title: str, case: str) -> str:
    """What a kind has in a row."""
    scenario = next((s for s in (column or {}).get("scenarios", {}).values() if s["title"] == title), None)
    if scenario is None:
        return NOT_RUN
    if case in scenario["hopeless"]:
        return f"hopeless: {_speeds(scenario['auto'], case)}"
    found = scenario["train"].get(case)
    if found is None:
        return NOT_RUN
    if case == PLAIN:
        return f"{found['seconds']['median']:.3g} s"
    mark = " *" if _is_taken(scenario["auto"], case) else ""
    if case == "matmul medium" and (scenario["auto"].get("error_of_medium") or 0.0) > FP32_GRADE:
        mark = " (less exact than float32: refused)"
    return f"{found['ratio']['median']:.2f} [{found['ratio']['q1']:.2f}, {found['ratio']['q3']:.2f}]{mark}"


def _speeds(choice: Mapping[str, Any], case: str) -> str:
    speeds = choice.get("gflops", {}).get(CANDIDATES[case], {})
    return " / ".join(f"{value:.0f}" for value in speeds.values()) + " GFLOP/s"


def _is_taken(choice: Mapping[str, Any], case: str) -> bool:
    """Whether a case is the candidate that auto took."""
    took = choice.get("took")
    if not took or case not in CANDIDATES:
        return False
    half = took["mixed_precision"] == "bf16"
    return CANDIDATES[case] == ("bf16" if half else f"float32 {took['matmul_precision']}")
