"""Kill runs at drawn moments, go on, and compare with the run that was never killed.

``python scripts/crash_test.py --trials 100 --seed 0`` draws for each trial a setting, a phase (start,
memory, step, save, validate, test) and a moment within it, kills every process of the run with
SIGKILL, starts the same command again with ``--resume_from_checkpoint auto``, and compares weights,
optimizer, schedule, random states, metrics and results with the reference to the bit (times
excluded). It prints a table per phase. Exit status 1 where anything differs.

With ``--fault`` it shows that it would notice: the random state is not restored, or the sampler goes
on one window off; a difference is then what is expected of it, and the exit status says the same.

The runs are forked from one process that has everything imported, so that a trial takes seconds.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if not __package__:  # started as a file: its own folder is on the path, the project's is not
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from scripts.lib.crash.comparing import unequal
from scripts.lib.crash.runs import FAULTS, PHASES, Outcome, apart, start_run
from scripts.lib.crash.settings import SETTINGS, common_settings
from utils.cli import PathFlag
from utils.ending import command
from utils.reporting.text_tables import markdown_table
from utils.training import checkpoint as checkpoints
from utils.training.run_folder import METRICS_FILE, RESULTS_FILE, read_json

TIMES = frozenset("seconds seconds_per_step samples_per_second memory_bytes phases saving run_dir".split())
"""What a clock measured, or where a run lies: never compared."""
SHARES = {"start": 0.12, "memory": 0.17, "step": 0.17, "save": 0.28, "validate": 0.14, "test": 0.12}
"""Of the trials, by the phase in which they are killed."""


@dataclass(frozen=True)
class Trial:
    """One run that was killed and gone on with."""

    setting: str
    phase: str
    """In which it was killed, as it happened; a moment drawn late in a phase may fall behind it."""
    processes: int
    differences: list[str]


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Run the trials and print the table; the exit status."""
    args = _parser().parse_args(argv)
    folder = Path(args.folder or tempfile.mkdtemp(prefix="crash_test_"))
    began = time.monotonic()
    settings = {name: s for name, s in SETTINGS.items() if not args.settings or name in args.settings}
    bench = _Bench(folder, args.llm, settings, fault=args.fault, drawn=random.Random(args.seed))
    trials: list[Trial] = []
    for phase in _phases(args.trials, bench.drawn):
        trial = bench.trial(phase, number=len(trials))
        trials.append(trial)
        print(f"{len(trials)}/{args.trials} {trial.setting}: killed in {trial.phase}, ", end="")
        print("; ".join(trial.differences[:4]) or "no difference", flush=True)
    print("\n" + table(trials))
    print(f"\n{len(trials)} trials, seed {args.seed}, LLM {args.llm}, {time.monotonic() - began:.0f} s")
    if not args.keep:
        shutil.rmtree(folder)
    return int(any(trial.differences for trial in trials))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--trials", type=int, default=20, help="runs to kill")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn")
    parser.add_argument("--llm", default="tiny", help="tiny (made on the spot), or a name for --llm_model")
    parser.add_argument("--settings", nargs="*", choices=SETTINGS, help="only these settings")
    parser.add_argument("--fault", choices=FAULTS, help="resume with this fault, which must show")
    parser.add_argument("--folder", action=PathFlag, help="where to run (default: a new temporary folder)")
    parser.add_argument("--keep", action="store_true", help="keep the folder")
    return parser


def _phases(trials: int, drawn: random.Random) -> list[str]:
    """The phase of each trial, by `SHARES`, in random order."""
    wanted = [phase for phase, share in SHARES.items() for _ in range(round(share * trials))]
    wanted = (wanted + drawn.choices(PHASES, k=trials))[: max(trials, 0)]
    drawn.shuffle(wanted)
    return wanted


class _Bench:
    """Runs the references, and the trials against them."""

    def __init__(
        self,
        folder: Path,
        llm: str,
        settings: dict[str, dict[str, Any]],
        *,
        fault: str | None,
        drawn: random.Random,
    ) -> None:
        self.folder, self.settings, self.fault, self.drawn = folder, settings, fault, drawn
        self.common = apart(common_settings, folder, llm)
        self.references: dict[str, Outcome] = {}

    def trial(self, phase: str, *, number: int) -> Trial:
        """Kill one run in ``phase``, go on, compare."""
        with_memory = [name for name, s in self.settings.items() if s.get("use_gram")]
        name = self.drawn.choice(with_memory if phase == "memory" and with_memory else list(self.settings))
        reference = self._reference(name)
        place = self.folder / f"trial_{number}"
        settings = {**self.common, **self.settings[name], "checkpoints": str(place)}
        processes = settings.pop("processes")
        kill = reference.draw(phase, self.drawn)
        killed = start_run(settings, processes=processes, log=place.with_suffix(".killed.log"), kill=kill)
        again = start_run(
            {**settings, "resume_from_checkpoint": "auto"},
            processes=processes,
            log=place.with_suffix(".resumed.log"),
            fault=self.fault,
        )
        assert reference.run_dir is not None
        if again.run_dir is None:
            found = [f"the resumed run failed, see {place.with_suffix('.resumed.log')}"]
        else:
            found = apart(differences, reference.run_dir, again.run_dir)
        if not found:
            shutil.rmtree(place)
        return Trial(name, killed.died_in or "after the end", processes, found)

    def _reference(self, name: str) -> Outcome:
        """The run of this setting that is never killed."""
        if name not in self.references:
            settings = {
                **self.common,
                **self.settings[name],
                "checkpoints": str(self.folder / f"whole_{name}"),
            }
            processes = settings.pop("processes")
            log = self.folder / f"whole_{name}.log"
            found = start_run(settings, processes=processes, log=log)
            if found.run_dir is None:
                sys.exit(f"the reference of {name} failed, see {log}")
            self.references[name] = found
        return self.references[name]


def differences(whole: Path, resumed: Path) -> list[str]:
    """Where two run folders differ in what they learned, chose, recorded and found."""
    found = []
    steps = [checkpoints.step_checkpoints(folder)[-1] for folder in (whole, resumed)]
    for pair in (steps, [whole / checkpoints.BEST, resumed / checkpoints.BEST]):
        a, b = (checkpoints.load(path) for path in pair)
        for payload in (a, b):
            payload["config"] = {
                k: v
                for k, v in payload["config"].items()
                if k not in ("checkpoints", "resume_from_checkpoint")
            }
        found += unequal(a, b, pair[0].name, but=TIMES)
    for name, read in ((METRICS_FILE, _records), (RESULTS_FILE, read_json)):
        found += unequal(read(whole / name), read(resumed / name), name, but=TIMES)
    return found


def _records(path: Path) -> list[Any]:
    """The lines of a metrics file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def table(trials: Sequence[Trial]) -> str:
    """Trials and differences by the phase in which the run was killed, a Markdown table."""
    others = sorted({trial.phase for trial in trials} - set(PHASES))
    groups = {phase: [trial for trial in trials if trial.phase == phase] for phase in (*PHASES, *others)}
    rows = [
        (phase, len(own), sum(t.processes > 1 for t in own), sum(bool(t.differences) for t in own))
        for phase, own in {**groups, "all": trials}.items()
    ]
    by_setting = Counter(trial.setting for trial in trials)
    settings = ", ".join(f"{name} {n}" for name, n in sorted(by_setting.items()))
    header = ("killed in", "trials", "on two processes", "with a difference")
    return f"{markdown_table(header, rows)}\n\nSettings: {settings}"


if __name__ == "__main__":
    sys.exit(main())
