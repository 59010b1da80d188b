"""The one precision of a study that leaves it to the machine: its cells are compared with each other."""

from __future__ import annotations

from logging import getLogger
from pathlib import Path

import torch

from models.registry import llm_outline
from scripts.lib.ablation.cells import Cell, cells_of
from scripts.lib.ablation.store import cell_files
from scripts.lib.ablation.study import Study
from utils.config import AUTO
from utils.training.precision_choice import settle

log = getLogger(__name__)
OFFERED = ("bf16", "no")


def precision_of(study: Study, results: Path) -> str | None:
    """What ``--mixed_precision auto`` is in every cell of a study; None where no cell leaves it open.

    That of the cells whose results are there, so that a study goes on as it was begun also on another
    machine; of a study without results what is fast here, by timing.

    Raises:
        ValueError, OSError: its LLM is not to be had.
    """
    cells = _open_cells(study)
    return (kept_precision(study, results) or _timed(cells[0])) if cells else None


def kept_precision(study: Study, results: Path) -> str | None:
    """The precision of most cells with results, of those that leave it open; None without any."""
    left_open = [cell.config.training.mixed_precision == AUTO for _, cell in cells_of(study)]
    kept = {
        precision: sum(
            is_open and cell_files(results, study.name, cell.key)[0].is_file()
            for is_open, (_, cell) in zip(left_open, cells_of(study, precision), strict=True)
        )
        for precision in OFFERED
    }
    most = max(kept, key=lambda precision: kept[precision])
    return most if kept[most] else None


def _open_cells(study: Study) -> list[Cell]:
    return [cell for _, cell in cells_of(study) if cell.config.training.mixed_precision == AUTO]


def _timed(cell: Cell) -> str:
    """By timing the products of one cell."""
    t = cell.config.training
    device = torch.device("cuda" if torch.cuda.is_available() and not t.cpu else "cpu")
    config = cell.config
    settled = settle(config, device, llm_outline(cell.model)(config), variables=config.data.enc_in or 1)
    for line in settled.lines:
        log.info("%s: %s", cell.study, line)
    return settled.mixed_precision
