"""The benchmark's results as tables, the floors beside them, and their place in a document."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.lib.benchmark.cases import ALL, DEFAULT, PLAIN, Floor
from scripts.lib.benchmark.kinds import kinds_table, of_earlier
from utils.errors import UserError

BEGIN, END = "<!-- benchmark: begin -->", "<!-- benchmark: end -->"
GIB, MIB = 2**30, 2**20
Results = Mapping[str, Any]


def floor_rows(results: Results, floors: Sequence[Floor]) -> list[dict[str, Any]]:
    """One row for each floor and number of threads that was measured.

    Gives title, threads, what was found and wanted for the default and for all choices, and whether
    either misses its floor by more than 20%.
    """
    rows = []
    for floor in floors:
        for threads, default, chosen in _found(results, floor):
            pairs = ((default, floor.default), (chosen, floor.all))
            missed = any(f is not None and w is not None and not floor.is_met(f, w) for f, w in pairs)
            rows.append(
                {
                    "title": floor.title,
                    "threads": threads,
                    "default": default,
                    "default_floor": floor.default,
                    "all": chosen,
                    "all_floor": floor.all,
                    "missed": missed,
                }
            )
    return rows


def _found(results: Results, floor: Floor) -> Iterator[tuple[str, float | None, float | None]]:
    """(threads, the default's ratio, all choices' ratio) for each number of threads; "" where it is one."""
    if floor.measure == "retrieval":
        found = results.get("retrieval", {}).get("10000")
        for threads, times in (found or {"threads": {}})["threads"].items():
            yield threads, times["search"]["ratio"]["median"], None
        return
    scenario = results["scenarios"].get(floor.scenario)
    if scenario is None or any(floor.measure not in scenario["cases"][n] for n in (PLAIN, DEFAULT, ALL)):
        return  # beside a peer the default's memory alone is measured
    ways = {name: scenario["cases"][name][floor.measure] for name in (PLAIN, DEFAULT, ALL)}
    if floor.measure in ("train", "evaluate"):
        for threads in ways[DEFAULT]:
            default, chosen = (ways[name][threads]["ratio"]["median"] for name in (DEFAULT, ALL))
            yield threads, default, chosen
        return
    if floor.measure == "peak_train" and floor.scenario not in _with_memory(results):
        return
    own = {name: _own_bytes(way, scenario["cases"][name]) for name, way in ways.items()}
    yield "", own[DEFAULT] / own[PLAIN], own[ALL] / own[PLAIN]


def _own_bytes(measured: Mapping[str, float], case: Mapping[str, Any]) -> float:
    """Bytes of a checkpoint's weights, or of a peak beyond the interpreter with its libraries."""
    if "weight_bytes" in measured:
        return measured["weight_bytes"]
    return measured["bytes"] - case["facts"]["interpreter_bytes"]


def _with_memory(results: Results) -> set[str]:
    """Scenarios whose memory is part of the table: those that measure evaluation too."""
    return {n for n, s in results["scenarios"].items() if "peak_evaluate" in s["cases"][PLAIN]}


def markdown(results: Results) -> str:
    """Every table, as markdown."""
    parts = [_machine_text(results), _floors_table(results["floors"])]
    for scenario in results["scenarios"].values():
        parts += [f"### {scenario['title'][0].upper()}{scenario['title'][1:]}", _scenario_table(scenario)]
    for name, write in (
        ("plain_path", _plain_text),
        ("retrieval", _retrieval_table),
        ("start", _start_text),
        ("gpu", _gpu_text),
    ):
        if name in results:
            parts.append(write(results[name]))
    columns = {**of_earlier(results), **results.get("kinds", {})}
    if results.get("kinds"):
        parts.insert(2, kinds_table(columns))
    return "\n\n".join(parts) + "\n"


def _machine_text(results: Results) -> str:
    m = results["machine"]
    return (
        f"Measured {results['when']} on {m['processor']}, {m['cores']} core(s), "
        f"{m['memory_bytes'] / GIB:.0f} GiB free, load {m['load']:.1f} at the start; torch "
        f"{m['packages']['torch']}, transformers {m['packages']['transformers']}, commit {m['git_commit']}. "
        f"LLM: {results['llm']}. Ratios are medians over rounds of the plain path's time in the same round; "
        f"quartiles in brackets.{_again_text(results.get('again', {}))}"
    )


def _again_text(again: Mapping[str, str]) -> str:
    """Parts that were measured later than the others, on the same machine."""
    if not again:
        return ""
    parts = [f"{name} (commit {str(commit)[:7]})" for name, commit in again.items()]
    return f" Measured again afterwards: {', '.join(parts)}."


def _floors_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """What was reached beside what is expected."""
    lines = ["| | threads | default | at least | all choices | at least |", "|---|---|---|---|---|---|"]
    for row in rows:
        cells = [_ratio(row[k]) for k in ("default", "default_floor", "all", "all_floor")]
        mark = " (missed)" if row["missed"] else ""
        lines.append(f"| {row['title']}{mark} | {row['threads']} | {' | '.join(cells)} |")
    lines.append(
        "\nMemory and checkpoints are shares of the plain path's: there the floors are upper bounds."
    )
    return "\n".join(lines)


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _scenario_table(scenario: Mapping[str, Any]) -> str:
    """Every case: ratios and seconds of each measure and number of threads, memory, checkpoint."""
    cases = scenario["cases"]
    timed = [(measure, t) for measure in ("train", "evaluate") for t in cases[PLAIN].get(measure, {})]
    header = ["case", *(f"{measure}, {t} thread(s)" for measure, t in timed)]
    memory = [kind for kind in ("peak_train", "peak_evaluate") if kind in cases[PLAIN]]
    header += [f"{kind.replace('_', ', ')}, MiB" for kind in memory]
    header += ["checkpoint, MB (s)"] * ("checkpoint" in cases[PLAIN]) + ["forecast differs by"]
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    for name, case in cases.items():
        cells = [name, *(_spread_text(case[measure][t]) for measure, t in timed)]
        cells += [f"{case[kind]['bytes'] / MIB:.0f}" for kind in memory]
        if "checkpoint" in cases[PLAIN]:
            saved = case.get("checkpoint")
            cells.append(f"{saved['bytes'] / 1e6:.0f} ({saved['seconds']:.2f})" if saved else "")
        cells.append(f"{case['difference']:.1e}" if "difference" in case else "")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n\n" + _sizes_text(cases)


def _sizes_text(cases: Mapping[str, Any]) -> str:
    facts = cases[PLAIN]["facts"]
    starts = {name: case["facts"] for name, case in cases.items() if "ready_seconds" in case["facts"]}
    ready = ", ".join(f"{n} {f['ready_seconds']:.1f} s" for n, f in starts.items())
    peers = {n: f["precision"] for n, f in starts.items() if "precision" in f}
    said = "".join(f" {name} computed in {precision}." for name, precision in peers.items())
    said += "".join(_peer_text(name, case) for name, case in cases.items() if "layers" in case["facts"])
    return (
        f"{facts['series']} series, {facts['prompt_tokens']} prompt tokens ({facts['constant_tokens']} the "
        f"same in all), {facts['patches']} patches; the interpreter with its libraries takes "
        f"{facts['interpreter_bytes'] / MIB:.0f} MiB of each peak; matmul: "
        f"{cases[DEFAULT]['facts']['matmul']} by default. From the start of the process to a built model: "
        f"{ready}.{said}"
    )


def _peer_text(name: str, case: Mapping[str, Any]) -> str:
    """What the default gains against a packaged peer, and that its layers were counted."""
    facts = case["facts"]
    faster = {t: own["of_default"] for t, own in case["train"].items() if "of_default" in own}
    gains = [f"{x['median']:.2f} [{x['q1']:.2f}, {x['q3']:.2f}] at {t} thread(s)" for t, x in faster.items()]
    memory = f", {case['peak_train']['bytes'] / MIB:.0f} MiB at the peak" if "peak_train" in case else ""
    return (
        f" {name} ({facts['version']}): {facts['layers']} layers ran, as counted, with {facts['series']} "
        f"series; the default's training step is faster by {'; '.join(gains)}{memory}."
    )


def _spread_text(numbers: Mapping[str, Any]) -> str:
    ratio, seconds = numbers["ratio"], numbers["seconds"]
    return f"{ratio['median']:.2f} [{ratio['q1']:.2f}, {ratio['q3']:.2f}], {seconds['median']:.3g} s"


def _plain_text(plain: Mapping[str, Any]) -> str:
    flops = plain["flops"]
    lines = [
        "### The plain path is no straw man",
        f"{plain['scenario']}: {flops['counted'] / 1e9:.1f} GFLOP a training step counted, "
        f"{plain['counted_by_formula']:.4f} of the formula for the published forward and backward pass.",
    ]
    for threads, s in plain["shares"].items():
        lines.append(
            f"{threads} thread(s): the machine's fastest float32 product "
            f"{s['peak_flops']['median'] / 1e9:.1f} GFLOP/s; the LLM reaches "
            f"{s['llm_share']['median']:.0%} of it, the whole step {s['step_share']['median']:.0%}."
        )
    return "\n\n".join(lines)


def _retrieval_table(retrieval: Mapping[str, Any]) -> str:
    lines = [
        "### Retrieval, 224 queries, width 128, 5 neighbours, with backward",
        "",
        "| keys | threads | matmul top-k, s | all differences, s | ratio | peak, MiB |",
        "|---|---|---|---|---|---|",
    ]
    for keys, found in retrieval.items():
        peak = {n: (found["peak"][n] - found["resident"][n]) / MIB for n in found["peak"]}
        for threads, times in found["threads"].items():
            shown = ("", "")
            if "broadcast" in times:
                seconds = times["broadcast"]["seconds"]["median"]
                shown = (f"{seconds:.3g}", f"{times['search']['ratio']['median']:.0f}")
            memory = ", ".join(f"{n} {size:.0f}" for n, size in peak.items())
            lines.append(
                f"| {int(keys):,} | {threads} | {times['search']['seconds']['median']:.3g} | {shown[0]} "
                f"| {shown[1]} | {memory} |"
            )
    lines.append("\nThe peak counts from the interpreter with its libraries on, the memory itself included.")
    for found in (f["agreement"] for f in retrieval.values() if "agreement" in f):
        lines.append(
            f"The two ways differ by {found['futures']:.1e} in the futures and by {found['gradient']:.1e} of "
            "its largest entry in the gradient."
        )
    return "\n".join(lines)


def _start_text(start: Mapping[str, Any]) -> str:
    return f"`python run_main.py --help` takes {start['help']['median']:.1f} s."


def _gpu_text(gpu: Mapping[str, Any]) -> str:
    if "skipped" in gpu:
        return f"GPU: not measured, {gpu['skipped']}."
    lines = [
        "### GPU, batch 32, bf16",
        "",
        "| model | case | samples/s | peak, MiB | share of the roofline |",
        "|---|---|---|---|---|",
    ]
    for scenario, cases in gpu.items():
        for name, case in cases.items():
            if "failed" in case:
                lines.append(f"| {scenario} | {name} | {case['failed'].splitlines()[0]} | | |")
                continue
            lines.append(
                f"| {scenario} | {name} | {case['samples_per_second']:.0f} | {case['peak_bytes'] / MIB:.0f} "
                f"| {case['roofline_share']:.0%} of {case['roofline_flops'] / 1e12:.0f} TFLOP/s |"
            )
    return "\n".join(lines)


def place(text: str, path: Path, *, markers: tuple[str, str] = (BEGIN, END)) -> None:
    """Put ``text`` between the markers of a document.

    Raises:
        ValueError: the document has no such markers.
    """
    document = path.read_text("utf-8")
    begin, end = markers
    if begin not in document or end not in document:
        raise UserError(f"{path}: expected the lines {begin} and {end}, found no such place for the tables")
    before, rest = document.split(begin, 1)
    path.write_text(f"{before}{begin}\n{text}{end}{rest.split(end, 1)[1]}", "utf-8")
