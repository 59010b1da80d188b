"""The cells of a study: one ordinary run each, known by what is trained in it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from models.registry import MODELS, model_name
from scripts.lib.ablation.study import Study
from utils.cli import parse_config
from utils.config import AUTO, Config

KEY_DIGITS = 12
RECIPE = 1
"""Raised where the same settings train something else than before: the cells kept until then are no longer
taken for those of now."""
ENTRIES = {"TimeLLM_Enhanced": "run_main_enhanced.py"}
"""Entry point of a model; every other is ``run_main.py``'s."""


@dataclass(frozen=True)
class Cell:
    """One configuration at one horizon on one data set with one seed."""

    study: str
    configuration: str
    data: str
    horizon: int
    seed: int
    words: tuple[str, ...]
    """Flags of the entry point."""
    config: Config
    model: str
    key: str
    """The same in every study in which the same thing is trained."""

    @property
    def entry(self) -> str:
        """The entry point's file."""
        return ENTRIES.get(self.model, "run_main.py")

    @property
    def title(self) -> str:
        """For a line of a log."""
        return f"{self.study}: {self.configuration}, {self.data} {self.horizon}, seed {self.seed}"


def identity(config: Config, model: str) -> dict[str, Any]:
    """What names a cell: the settings that change what is trained, by their values, and the model.

    A value that runs have had from the first is left out (`Config.identity`), whatever is the default now: a
    setting that is added later leaves the cells that do not use it what they were, and a default that
    changes makes other cells.
    """
    recipe = {} if RECIPE == 1 else {"recipe": RECIPE}
    stride = config.data.test_stride
    windows = {} if stride == 1 else {"test_stride": stride}
    return {**config.identity(), "model": model, **windows, **recipe}


def key_of(config: Config, model: str) -> str:
    """Hex digits that name what is trained."""
    text = json.dumps(identity(config, model), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_DIGITS]


def cells_of(study: Study, precision: str | None = None) -> list[tuple[tuple[int, int], Cell]]:
    """Every cell of a study with its place in the queue (priority, turn of its seed), in the file's order.

    ``precision`` is that of cells whose flags leave it to the machine (`scripts.lib.ablation.precision`): a
    cell is known by what is computed in it.

    Seeds turn slowest, so that a study that is cut off has whole pairs.
    """
    found: dict[tuple[str, str, int, int], tuple[tuple[int, int], Cell]] = {}
    for block in study.blocks:
        every = product(enumerate(block.seeds), block.data, block.horizons, block.configurations)
        for (turn, seed), data, horizon, name in every:
            place = (block.priority, turn)
            known = found.get((name, data, horizon, seed))
            if known is None or place < known[0]:
                cell = _cell(study, name, data=data, horizon=horizon, seed=seed, precision=precision)
                found[name, data, horizon, seed] = (place, cell)
    return list(found.values())


def _cell(study: Study, name: str, *, data: str, horizon: int, seed: int, precision: str | None) -> Cell:
    words: tuple[str, ...] = (
        *study.flags,
        *("--data", data, "--pred_len", str(horizon), "--seed", str(seed)),
        *study.configurations[name].flags,
    )
    config = parse_config(words, prog=f"{study.name}: {name}", models=MODELS)
    if precision is not None and config.training.mixed_precision == AUTO:
        words = (*words, "--mixed_precision", precision)
        config = config.replace(mixed_precision=precision)
    model = model_name(config)
    return Cell(study.name, name, data, horizon, seed, words, config, model, key_of(config, model))


def queue_of(
    studies: Iterable[Study], precisions: Mapping[str, str | None] | None = None
) -> list[list[Cell]]:
    """The cells of several studies in the order in which they are to run; ``precisions`` are by study.

    An item lists the cells, of one study or several, that are the same run.
    """
    of_study = precisions or {}
    placed = [item for study in studies for item in cells_of(study, of_study.get(study.name))]
    same: dict[str, list[Cell]] = {}
    for _, cell in sorted(placed, key=lambda item: item[0]):  # stable: the files' order within a place
        same.setdefault(cell.key, []).append(cell)
    return list(same.values())
