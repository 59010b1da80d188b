"""``plan.json``: a study as it was run, so that its report needs nothing but its own folder."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from scripts.lib.ablation.cells import cells_of
from scripts.lib.ablation.store import CELLS
from scripts.lib.ablation.study import Study, StudyError
from utils.errors import FileMissingError
from utils.training import run_folder as folders

PLAN = "plan.json"


def plan_study(study: Study, folder: Path, *, precision: str | None = None) -> None:
    """Write the plan of a study into its results; ``precision`` as for `cells_of`.

    Raises:
        StudyError: there are results already, and the primary comparisons are others now.
    """
    plan = {
        **asdict(study),
        "cells": [
            {
                "key": cell.key,
                "configuration": cell.configuration,
                "data": cell.data,
                "horizon": cell.horizon,
                "seed": cell.seed,
            }
            for _, cell in cells_of(study, precision)
        ],
    }
    path = folder / PLAN
    if path.is_file() and any((folder / CELLS).glob("*.json")):
        named, now = read_plan(folder)["primary"], [asdict(c) for c in study.primary]
        if named != now:
            raise StudyError(
                f"{path}: the primary comparisons were named before the first result and stay; expected "
                f"{named}, found {now}. Begin another study for others"
            )
    folders.write_json(path, plan)


def read_plan(folder: Path) -> dict[str, Any]:
    """What `plan_study` wrote.

    Raises:
        FileNotFoundError: nothing was planned there.
    """
    path = folder / PLAN
    if not path.is_file():
        raise FileMissingError(
            f"{path}: not there; run the study once, if only with --report_only afterwards"
        )
    return folders.read_json(path)
