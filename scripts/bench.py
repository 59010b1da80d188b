"""How fast this is, beside the published order of operations on this machine.

    python scripts/bench.py                      everything: about an hour on two cores
    python scripts/bench.py --quick              two rows of the table, about two minutes
    python scripts/bench.py --kinds              as processors without bf16, and with AVX2 alone
    python scripts/bench.py --peer ../Time-LLM   another project's model beside it
    python scripts/bench.py --quick --threads 1 --peer neuralforecast --peer_python ENV/bin/python
    python scripts/bench.py --out bench.json --again retrieval    one part of an earlier benchmark again

Exit status 1 where a floor is missed by more than 20%. Quiet machines give quiet numbers: every case
is measured in each round, and ratios are taken within a round.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from logging import getLogger
from pathlib import Path
from typing import Any

if not __package__:  # started as a file: its own folder is on the path, the project's is not
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from scripts.lib.benchmark import measure, tiny
from scripts.lib.benchmark.cases import ALL, AUTO_CASE, DEFAULT, PLAIN, floors, scenarios
from scripts.lib.benchmark.kinds import CANDIDATES, measure_kinds, preset_scenarios, slower_than_plain
from scripts.lib.benchmark.table import floor_rows, markdown, place
from utils.cli import PathFlag
from utils.ending import command
from utils.errors import UserError
from utils.log import setup_logging
from utils.paths import PROJECT_ROOT

log = getLogger(__name__)
LAYERS = (6, 12)
BASE = {
    "data": "synthetic",
    "llm_model": "SMOLLM2",
    "batch_size": 2,
    "eval_batch_size": 2,
    "seq_len": 512,
    "pred_len": 96,
}
"""The built-in series has 7 variables: 14 series a batch."""
KEYS = (10_000, 100_000, 1_000_000)
QUICK_SECONDS = 30.0
"""For the rounds of one row of ``--quick``."""
GPU_SETTINGS = {"batch_size": 32, "mixed_precision": "bf16"}
DOCUMENT = PROJECT_ROOT / "docs" / "performance.md"


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="two rows of the table, in about two minutes")
    parser.add_argument(
        "--smoke", action="store_true", help="everything on a tiny LLM: it must only complete"
    )
    parser.add_argument("--rounds", type=int, help="rounds of each measurement [7; quick 5, smoke 1]")
    parser.add_argument("--threads", type=int, nargs="+", help="numbers of threads [1 2; quick the larger]")
    parser.add_argument(
        "--peer",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="a folder with the family's models.TimeLLM.Model(configs), measured beside ours; or "
        f"{measure.NEURALFORECAST}, with --peer_python",
    )
    parser.add_argument(
        "--peer_python",
        type=Path,
        metavar="PYTHON",
        help=f"the interpreter of an environment that has {measure.NEURALFORECAST}",
    )
    parser.add_argument("--out", action=PathFlag, kind=Path, metavar="FILE", help="write all numbers as JSON")
    parser.add_argument(
        "--kinds",
        action="store_true",
        help="only the training steps on the kinds of processor that this machine is and can stand for; "
        "those of an earlier --out stay",
    )
    parser.add_argument(
        "--again",
        nargs="+",
        metavar="PART",
        help="measure these parts of --out again, keep the others",
    )
    parser.add_argument(
        "--docs",
        action=PathFlag,
        kind=Path,
        nargs="?",
        const=DOCUMENT,
        metavar="FILE",
        help=f"put the tables between the markers of this document [{DOCUMENT.name}]",
    )
    return parser  # fmt: skip


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the tables, judge; the exit status."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.again and not (args.out and args.out.is_file()):
        parser.error(f"--again: expected --out with the file of an earlier benchmark, found {args.out}")
    packaged = Path(measure.NEURALFORECAST) in args.peer
    if packaged and not (args.peer_python and args.peer_python.is_file()):
        parser.error(
            f"--peer {measure.NEURALFORECAST}: expected --peer_python with the interpreter of an environment "
            f"that has it, found {args.peer_python}"
        )
    setup_logging(main_process=True)
    with tempfile.TemporaryDirectory() as folder:
        results = run(args, Path(folder))
    print("\n" + markdown(results))
    if args.out:
        args.out.write_text(json.dumps(results, indent=1), "utf-8")
    if args.docs:
        place(markdown(results), args.docs)
    slower = slower_than_plain(results.get("kinds", {}))
    for line in slower:
        print(f"SLOWER than the plain path: {line}", file=sys.stderr)
    missed = [row for row in results["floors"] if row["missed"]]
    for row in missed:
        print(f"MISSED by more than 20%: {row['title']}, {row['threads']} thread(s)", file=sys.stderr)
    return 1 if (missed or slower) and not args.smoke else 0


def run(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All measurements that the command line asks for.

    Raises:
        WorkerError: a case fails.
        OSError: the LLM is not on this machine; the message says how to get it.
        ValueError: ``--again`` names no part.
    """
    base, layers = dict(BASE), LAYERS
    keys: tuple[int, ...] = KEYS
    if args.smoke:
        base |= tiny.SETTINGS | {"llm_model_path": str(tiny.write_llm(folder / "tiny"))}
        layers, keys = tiny.LAYERS, KEYS[:1]
    effort = effort_of(args)
    wanted = scenarios(base=base, layers=layers, quick=args.quick)
    parts: dict[str, Callable[[], Any]] = {
        s.name: functools.partial(measure.measure_scenario, s, effort) for s in wanted
    }
    machine = measure.machine()
    kind_steps = (wanted[0].name, "enhanced-document")
    ways = (PLAIN, DEFAULT, ALL, AUTO_CASE, *CANDIDATES)
    steps = [s.only(*ways) for s in scenarios(base=base, layers=layers, quick=False) if s.name in kind_steps]
    steps += [] if args.smoke else preset_scenarios()
    parts["kinds"] = functools.partial(measure_kinds, steps, effort, machine)
    if not args.quick:
        parts |= {
            "plain_path": lambda: measure.measure_plain_path(wanted[0], effort),
            "retrieval": lambda: measure.measure_retrieval(keys, effort, compared_at=keys[0]),
            "start": lambda: measure.measure_start(effort.rounds),
            "gpu": lambda: measure.measure_gpu(gpu_scenarios(base, layers), effort),
        }
    if unknown := set(args.again or ()) - parts.keys():
        raise UserError(f"--again: expected some of {', '.join(parts)}, found {', '.join(sorted(unknown))}")
    results: dict[str, Any] = {"when": datetime.date.today().isoformat(), "machine": machine, "scenarios": {}}
    if args.again:
        results = json.loads(args.out.read_text("utf-8"))
        commits = dict.fromkeys(args.again, machine["git_commit"])
        results["again"] = results.get("again", {}) | commits
    if args.kinds:
        return _with_kinds(results, parts["kinds"](), args.out)
    for name in args.again or [part for part in parts if not (args.quick and part == "kinds")]:
        home = results["scenarios"] if name in {s.name for s in wanted} else results
        home[name] = parts[name]()
    facts = results["scenarios"][wanted[0].name]["cases"][PLAIN]["facts"]
    results["llm"] = " ".join(filter(None, (facts["llm"], facts["llm_note"] and f"({facts['llm_note']})")))
    results["floors"] = floor_rows(results, floors(layers=layers, processor=results["machine"]["processor"]))
    return results


def _with_kinds(results: dict[str, Any], kinds: dict[str, Any], out: Path | None) -> dict[str, Any]:
    """The results with these kinds: those that another machine measured before, in ``out``, stay."""
    if out is not None and out.is_file():
        results = json.loads(out.read_text("utf-8"))
    results["kinds"] = {**results.get("kinds", {}), **kinds}
    return {"llm": "", "floors": [], **results}


def gpu_scenarios(base: dict[str, Any], layers: tuple[int, int]) -> list[Any]:
    """The baseline with the short and with the long LLM, as trained on a GPU."""
    both = scenarios(base={**base, **GPU_SETTINGS}, layers=layers, quick=False)[:2]
    return [s.only(DEFAULT, "prototypes", "gradient checkpointing") for s in both]


def effort_of(args: argparse.Namespace) -> measure.Effort:
    """Rounds, threads and peers that the command line asks for."""
    cores = os.cpu_count() or 1
    threads = args.threads or ([min(2, cores)] if args.quick else [1, 2] if cores > 1 else [1])
    rounds = args.rounds or (1 if args.smoke else 5 if args.quick else 7)
    return measure.Effort(
        threads=tuple(threads),
        rounds=rounds,
        budget=QUICK_SECONDS if args.quick else None,
        costs=not args.quick,
        at_once=args.quick or args.smoke,
        peers={p.resolve().name: p.resolve() for p in args.peer if p != Path(measure.NEURALFORECAST)},
        neuralforecast=args.peer_python if Path(measure.NEURALFORECAST) in args.peer else None,
    )


if __name__ == "__main__":
    sys.exit(main())
