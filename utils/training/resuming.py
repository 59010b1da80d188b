"""Which checkpoint a run goes on from, and which folder it writes into."""

from __future__ import annotations

from collections.abc import Mapping
from logging import getLogger
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from utils.config import Config
from utils.training import checkpoint as checkpoints
from utils.training import run_folder as folders
from utils.training.checkpoint import CheckpointError
from utils.training.together import agreed
from utils.training.whole_files import remove_leftovers

log = getLogger(__name__)


def checkpoint_to_resume(config: Config, *, name: str) -> Path | None:
    """The checkpoint that ``--resume_from_checkpoint`` means; None for a fresh start, or a run that moved.

    Args:
        config: the resolved settings.
        name: the run's name, by the settings before they were resolved.

    Raises:
        CheckpointError: a path that holds none, or a test of a run that there is not.
    """
    where = config.run.resume_from_checkpoint
    training = bool(config.run.is_training)
    if where is None and training:
        return None
    if where not in (None, "auto"):
        best = Path(where) / checkpoints.BEST
        if not training and best.is_file():
            return best  # a run's folder: what it is judged by
        return checkpoints.locate(where)
    home = Path(config.run.checkpoints)
    if not training:
        return _best_of(home, name)
    return folders.find_resumable(home, name)


def renamed_checkpoint(
    config: Config, asked: Config, *, model_name: str, llm_hash: str | None
) -> Path | None:
    """The checkpoint of this run that was begun under another name, for ``auto``; None without.

    Args:
        config: the resolved settings.
        asked: those before, which name the run.
        model_name: the model's.
        llm_hash: content hash of the LLM.
    """
    # float32 products may be computed otherwise by now; what the LLM is computed in may not
    settings = config.flat() | {"matmul_precision": asked.training.matmul_precision}
    home = Path(config.run.checkpoints)
    found = folders.find_same(home, asked.run_name_begins(model_name), settings, llm_hash)
    if found is not None:
        log.warning(
            "this run was begun under another name (its LLM lay elsewhere, or an earlier version began it): "
            "going on with %s",
            found,
        )
    return found


def _best_of(home: Path, name: str) -> Path:
    """The best weights of the newest run of this name."""
    for folder in reversed(folders.numbered_folders(home, name)):
        if (folder / checkpoints.BEST).is_file():
            return folder / checkpoints.BEST
    raise CheckpointError(
        f"--is_training 0: expected a trained run in {home}/{name}, found none; "
        "name a checkpoint with --resume_from_checkpoint"
    )


def choose_folder(
    config: Config,
    accelerator: Accelerator,
    *,
    name: str,
    resume: Path | None,
    payload: Mapping[str, Any] | None,
) -> Path:
    """The run's folder: the checkpoint's own where that is its run's, otherwise one that holds no run.

    What a writer that was killed left unfinished there is removed.
    """
    chosen: list[str | None] = [None]
    with agreed(accelerator):
        if accelerator.is_main_process:
            settings = (payload or {}).get("config")
            if resume is not None and settings is not None and folders.is_run_of(resume, settings):
                folder = folders.run_folder_of(resume)
            else:
                folder = folders.claim_folder(Path(config.run.checkpoints), name)
            for path in remove_leftovers(folder):
                log.info("removed %s, which a process that is gone had not finished", path)
            chosen = [str(folder)]
    found = broadcast_object_list(chosen)[0]
    assert found is not None
    return Path(found)
