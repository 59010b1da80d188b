"""A study file: which configurations are compared on what, and which comparisons were named beforehand."""

from __future__ import annotations

import shlex
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.errors import UserError, using_file

PRIMARY_SEEDS = 6
"""Fewest paired seeds at which a two-sided sign-flip test can reach p < 0.05: 2 / 2**6 = 0.031."""


class StudyError(UserError):
    """A study file is wrong; the message lists every problem."""


@dataclass(frozen=True)
class Configuration:
    """One row of a study's tables."""

    name: str
    label: str
    flags: tuple[str, ...]
    reference: bool
    """A yardstick (a closed form, a naive forecast): tabled, not compared."""


@dataclass(frozen=True)
class Block:
    """Cells that belong together: every configuration at every horizon, on each data set, with each seed."""

    configurations: tuple[str, ...]
    data: tuple[str, ...]
    horizons: tuple[int, ...]
    seeds: tuple[int, ...]
    priority: int
    """Blocks of low number run first, whichever study they are of."""


@dataclass(frozen=True)
class Comparison:
    """``configuration`` against ``against``: lower is better for the first."""

    configuration: str
    against: str
    horizon: int | None = None
    """None: at every horizon that both were run at."""
    data: str | None = None


@dataclass(frozen=True)
class Aim:
    """A number that was to be reached, in mean test MSE of the best weights."""

    text: str
    configuration: str
    horizons: tuple[int, ...]
    at_most: float


@dataclass(frozen=True)
class Study:
    """What a study file says."""

    name: str
    title: str
    question: str
    setting: str
    """The reduced setting, for the titles of the tables; empty for none."""
    notes: tuple[str, ...]
    """What a reader of the results must know."""
    seconds_per_cell: float
    """For the estimate before a cell of this study has run."""
    flags: tuple[str, ...]
    """Of every cell, before the configuration's own."""
    configurations: Mapping[str, Configuration]
    blocks: tuple[Block, ...]
    primary: tuple[Comparison, ...]
    secondary: tuple[Comparison, ...]
    aims: tuple[Aim, ...]


_FIELDS = frozenset(
    "title question setting notes seconds_per_cell flags data configurations blocks primary secondary "
    "aims".split()
)


def read_study(path: Path) -> Study:
    """The study in a TOML file, named after the file.

    Raises:
        FileError: it cannot be read.
        StudyError: it is no TOML, or not a study; all problems at once.
    """
    try:
        with using_file(path, "a study file"):
            raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise StudyError(f"{path}: {error}") from error
    problems = [
        f"{name}: no such field; there are {sorted(_FIELDS)}" for name in sorted(raw.keys() - _FIELDS)
    ]
    problems += [
        f"{name}: missing" for name in ("title", "question", "configurations", "blocks") if name not in raw
    ]
    if not problems:
        try:
            study = _study(path.stem, raw)
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            problems = [f"{type(error).__name__}: {error}"]
        else:
            problems = list(_problems(study))
    if problems:
        raise StudyError("\n".join(f"{path}: {problem}" for problem in problems))
    return study


def _study(name: str, raw: dict[str, Any]) -> Study:
    """The records behind the words of a file."""
    data = tuple(raw.get("data", ["ETTh1"]))
    comparisons = {
        kind: tuple(Comparison(**item) for item in raw.get(kind, [])) for kind in ("primary", "secondary")
    }
    return Study(
        name=name,
        title=raw["title"],
        question=raw["question"],
        setting=raw.get("setting", ""),
        notes=tuple(raw.get("notes", [])),
        seconds_per_cell=float(raw.get("seconds_per_cell", 180)),
        flags=tuple(shlex.split(raw.get("flags", ""))),
        configurations={
            key: Configuration(
                name=key,
                label=item.pop("label", key),
                flags=tuple(shlex.split(item.pop("flags", ""))),
                reference=item.pop("reference", False),
                **item,
            )
            for key, item in raw["configurations"].items()
        },
        blocks=tuple(
            Block(
                configurations=tuple(item.pop("configurations")),
                data=tuple(item.pop("data", data)),
                horizons=tuple(item.pop("horizons")),
                seeds=tuple(item.pop("seeds")),
                priority=item.pop("priority", 1),
                **item,
            )
            for item in raw["blocks"]
        ),
        aims=tuple(Aim(**{**item, "horizons": tuple(item["horizons"])}) for item in raw.get("aims", [])),
        **comparisons,
    )


def _problems(study: Study) -> list[str]:
    """Names that do not exist, and primary comparisons that cannot be decided."""
    found = []
    known = study.configurations.keys()
    named = [n for b in study.blocks for n in b.configurations]
    named += [n for c in (*study.primary, *study.secondary) for n in (c.configuration, c.against)]
    named += [aim.configuration for aim in study.aims]
    for name in dict.fromkeys(n for n in named if n not in known):
        found.append(f"configuration {name}: expected one of {sorted(known)}")
    for comparison in study.primary:
        at = [comparison.horizon] if comparison.horizon is not None else _horizons_of(study, comparison)
        for horizon in at:
            seeds = paired_seeds(study, comparison, horizon)
            if len(seeds) < PRIMARY_SEEDS:
                found.append(
                    f"primary {comparison.configuration} against {comparison.against} at {horizon}: expected "
                    f"{PRIMARY_SEEDS} seeds that both have, or more (fewer cannot reach p < 0.05), found "
                    f"{len(seeds)}"
                )
    return found


def _horizons_of(study: Study, comparison: Comparison) -> list[int]:
    """The horizons at which both sides of a comparison are planned."""
    sides = [
        {h for b in study.blocks if name in b.configurations for h in b.horizons}
        for name in (comparison.configuration, comparison.against)
    ]
    return sorted(sides[0] & sides[1])


def paired_seeds(study: Study, comparison: Comparison, horizon: int) -> set[int]:
    """The seeds with which both sides of a comparison are planned at a horizon."""
    sides = [
        {s for b in study.blocks if name in b.configurations and horizon in b.horizons for s in b.seeds}
        for name in (comparison.configuration, comparison.against)
    ]
    return sides[0] & sides[1]
