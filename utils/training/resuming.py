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


def checkpoint_to_resume(
    config: Config, asked: Config, *, name: str, model_name: str, llm_hash: str | None
) -> Path | None:
    """The checkpoint that ``--resume_from_checkpoint`` means, or None for a fresh start.

    Args:
        config: the resolved settings.
        asked: the settings before they were resolved, which name the run.
        name: the run's name.
        model_name: the model's.
        llm_hash: content hash of the LLM.

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
    found = folders.find_resumable(home, name)
    if found is None:
        begins = Path(asked.run_name(model=model_name, llm_name="|").split("|")[0])
        parent = (home / begins).parent
        found = folders.find_moved(parent, config.flat(), name_begins=begins.name, llm_hash=llm_hash)
        if found is not None:
            log.warning("the LLM has moved since this run began: going on with %s", found)
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
