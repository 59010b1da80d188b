"""The results of a study, read from its folder, and what they say of each comparison.

Shape legend: R paired seeds, W test windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import mean
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from scripts.lib.ablation.plan_file import read_plan
from scripts.lib.ablation.store import CELLS
from utils.errors import UserError
from utils.reporting.statistics import BLOCK, Interval, block_interval, holm, seed_interval, sign_flip_p
from utils.training import run_folder as folders
from utils.training.window_errors import TestDetails, read_details

Weights = Literal["best", "last"]
Metric = Literal["mse", "mae"]
LEVEL = 0.05
"""Family error rate of the primary comparisons."""


@dataclass(frozen=True)
class Place:
    """Where configurations are compared."""

    data: str
    horizon: int

    def __str__(self) -> str:
        """As tables and sentences name it."""
        return f"{self.data}, horizon {self.horizon}"


@dataclass(frozen=True)
class Result:
    """A finished cell."""

    seed: int
    record: dict[str, Any]
    details: dict[str, TestDetails]

    def test(self, weights: Weights) -> dict[str, float]:
        """The scores on all test windows."""
        scores: dict[str, float] = self.record[weights]["test"]
        return scores

    def detail(self, weights: Weights) -> TestDetails:
        """What is kept of one set of weights; where the best are the last, of those."""
        return self.details.get(weights, self.details["last"])

    @property
    def stride(self) -> int:
        """Rows from a test window to the next."""
        stride: int = self.record["settings"].get("test_stride", 1)
        return stride

    def errors(self, weights: Weights, metric: Metric) -> NDArray[np.float32]:
        """[W]."""
        detail = self.detail(weights)
        return detail.squared if metric == "mse" else detail.absolute


@dataclass(frozen=True)
class Difference:
    """One configuration against another at one place: negative means a lower error."""

    configuration: str
    against: str
    place: Place
    seeds: tuple[int, ...]
    planned: int
    over_seeds: Interval
    over_windows: Interval | None
    """None where the test is shorter than two blocks."""
    percent: float
    """The mean difference in percent of the error it is measured against."""
    p: float | None = None
    """Of the sign-flip test; primary comparisons with all their seeds alone."""
    primary: bool = False
    p_holm: float | None = None

    @property
    def verdict(self) -> str:
        """In words: by the test and the windows' interval, or where none is planned by both intervals."""
        way = "lower" if self.over_seeds.mean < 0 else "higher"
        windows = self.over_windows is not None and self.over_windows.excludes_zero
        if self.p_holm is None and self.primary:
            return f"undecided until all {self.planned} seeds are there"
        if self.p_holm is None:
            both = self.over_seeds.excludes_zero and windows
            return f"{way} by both intervals (not tested)" if both else "no difference shown"
        if self.p_holm > LEVEL:
            return "no difference shown"
        if not windows:
            return f"{way} on this test set for any seed; on another stretch of the series it may turn"
        return way


class Findings:
    """Everything in ``results/<study>``."""

    def __init__(self, folder: Path) -> None:
        """Read plan, records and errors.

        Raises:
            FileNotFoundError: there is no plan.
            ValueError: cells that are to be compared were tested on different windows.
        """
        self.plan = read_plan(folder)
        self.configurations: dict[str, dict[str, Any]] = self.plan["configurations"]
        self.results: dict[tuple[str, Place], dict[int, Result]] = {}
        self.planned: dict[tuple[str, Place], list[int]] = {}
        self.missing: list[dict[str, Any]] = []
        for cell in self.plan["cells"]:
            where = (cell["configuration"], Place(cell["data"], cell["horizon"]))
            self.planned.setdefault(where, []).append(cell["seed"])
            record = folder / CELLS / f"{cell['key']}.json"
            errors = record.with_suffix(".npz")
            if record.is_file() and errors.is_file():
                found = Result(cell["seed"], folders.read_json(record), read_details(errors))
                self.results.setdefault(where, {})[cell["seed"]] = found
            else:
                self.missing.append(cell)
        self._refuse_other_windows(folder)

    def _refuse_other_windows(self, folder: Path) -> None:
        """Cells of one place are compared window by window: they must have been tested on the same ones."""
        for place in self.places:
            found = [r for name in self.configurations for r in self.at(name, place).values()]
            kinds = {(r.record["data_hash"], r.detail("last").start.tobytes()) for r in found}
            if len(kinds) > 1:
                raise UserError(
                    f"{folder}: expected the same data and test windows in every cell at {place}, found "
                    f"{len(kinds)} kinds; move the cells of other data away"
                )

    @cached_property
    def places(self) -> list[Place]:
        """All that are planned, in order."""
        return sorted({place for _, place in self.planned}, key=lambda p: (p.data, p.horizon))

    def at(self, configuration: str, place: Place) -> dict[int, Result]:
        """The finished cells of a configuration at a place, by seed."""
        return dict(sorted(self.results.get((configuration, place), {}).items()))

    def compared(self) -> list[str]:
        """The configurations that are no mere references."""
        return [name for name, c in self.configurations.items() if not c["reference"]]

    def label(self, configuration: str) -> str:
        """For tables."""
        return str(self.configurations[configuration]["label"])

    def difference(
        self, configuration: str, against: str, place: Place, *, metric: Metric, weights: Weights
    ) -> Difference | None:
        """One configuration against another over the seeds that both have; None without any."""
        ours, theirs = self.at(configuration, place), self.at(against, place)
        seeds = tuple(sorted(ours.keys() & theirs.keys()))
        if not seeds:
            return None
        gaps = [ours[s].test(weights)[metric] - theirs[s].test(weights)[metric] for s in seeds]
        windows = np.stack([ours[s].errors(weights, metric) for s in seeds]).astype(np.float64)
        windows -= np.stack([theirs[s].errors(weights, metric) for s in seeds])
        block = max(1, BLOCK // ours[seeds[0]].stride)
        planned = set(self.planned[configuration, place]) & set(self.planned[against, place])
        return Difference(
            configuration,
            against,
            place,
            seeds,
            len(planned),
            seed_interval(gaps),
            block_interval(windows, block=block) if windows.shape[1] >= 2 * block else None,
            100 * mean(gaps) / mean(theirs[s].test(weights)[metric] for s in seeds),
            p=sign_flip_p(gaps) if len(seeds) == len(planned) > 1 else None,
        )

    def differences(
        self, kind: Literal["primary", "secondary"], *, metric: Metric = "mse", weights: Weights = "best"
    ) -> list[Difference]:
        """Those of the plan that have a pair of cells at least; primary ones with Holm's p.

        Holm's correction counts every primary comparison that was planned, finished or not.
        """
        found = [
            self.difference(configuration, against, place, metric=metric, weights=weights)
            for configuration, against, place in self._named(kind)
        ]
        if kind == "secondary":
            return [replace(d, p=None) for d in found if d is not None]
        corrected = holm([d.p if d is not None and d.p is not None else 1.0 for d in found])
        return [
            replace(d, primary=True, p_holm=None if d.p is None else p)
            for d, p in zip(found, corrected, strict=True)
            if d is not None
        ]

    def unpaired(self, kind: Literal["primary", "secondary"]) -> list[tuple[str, str, Place]]:
        """The comparisons of the plan without a single pair of cells."""
        return [
            (configuration, against, place)
            for configuration, against, place in self._named(kind)
            if not self.at(configuration, place).keys() & self.at(against, place).keys()
        ]

    def _named(self, kind: str) -> list[tuple[str, str, Place]]:
        """(configuration, against, place) of each comparison of a kind; secondary ones repeat no primary."""
        found = [
            (c["configuration"], c["against"], place)
            for c in self.plan[kind]
            for place in self.places
            if c["horizon"] in (None, place.horizon)
            and c["data"] in (None, place.data)
            and all((side, place) in self.planned for side in (c["configuration"], c["against"]))
        ]
        primary = self._named("primary") if kind == "secondary" else []
        return [named for named in dict.fromkeys(found) if named not in primary]


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and the deviation over seeds where there are two at least."""
    return mean(values), (float(np.std(values, ddof=1)) if len(values) > 1 else None)
