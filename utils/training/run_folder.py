"""The folder of one run: its name, what lies in it, how the run stands, and which one a run resumes in.

No other run writes into it. ``status.json`` says whether the run is under way, and how it ended: a
process that is killed cannot say so, so a reader looks whether it is still there (`is_alive`).
"""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from logging import getLogger
from pathlib import Path
from typing import Any, Literal

import psutil
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from utils.atomic_files import remove_leftovers, whole_file
from utils.config import Config, free_on_resume, left_to_machine, settings_where, unread_settings
from utils.errors import FileError, UserError, using_file
from utils.file_names import safe_name
from utils.flag_history import left_unsaid, read_settings
from utils.training import checkpoint as checkpoints
from utils.training.checkpoint import CheckpointError, newest_in
from utils.training.stopping import RunStopped
from utils.training.together import agreed

log = getLogger(__name__)
CONFIG_FILE = "config.json"
ENVIRONMENT_FILE = "environment.json"
METRICS_FILE = "metrics.jsonl"
LOG_FILE = "run.log"
RESULTS_FILE = "results.json"
FORECASTS_FILE = "forecasts.npz"
DETAILS_FILE = "test_details.npz"
SERIES_FILE = "series_scores.csv"
STATUS_FILE = "status.json"
TEST_ONLY = "_test_only"
"""What the names of a later test's files carry, with the data set's where that is another."""
SAME_START = 2.0
"""Seconds by which two readings of a process's start may differ."""
FROM_THE_FIRST = frozenset({"data", "seq_len", "pred_len", "seed"})
"""Settings that every version has saved: by them a run's file is told from another program's."""


def numbered_folders(checkpoints: Path, name: str) -> list[Path]:
    """The folders of this run's name that exist, oldest first: ``name``, ``name_2``, ``name_3``, ...

    A user may have removed some between others.
    """
    found = {_number_of(f, name): f for f in checkpoints.glob("*") if f.is_dir()}
    return [folder for number, folder in sorted(found.items()) if number]


def _number_of(folder: Path, name: str) -> int:
    """1 for ``name``, N for ``name_N``, 0 for any other folder."""
    if folder.name == name:
        return 1
    match = re.fullmatch(re.escape(name) + r"_([2-9]|[1-9]\d+)", folder.name)
    return int(match.group(1)) if match else 0


def claim_folder(checkpoints: Path, name: str) -> Path:
    """Make a folder of this name that holds no run; numbered where the name is taken.

    Two runs that start at once get two folders: each is made by one of them.
    """
    with using_file(checkpoints, "a folder for runs (--checkpoints)"):
        checkpoints.mkdir(parents=True, exist_ok=True)
    while True:
        taken = numbered_folders(checkpoints, name)
        last = _number_of(taken[-1], name) if taken else 0
        folder = checkpoints / (f"{name}_{last + 1}" if last else name)
        try:
            with using_file(folder, "a new folder for this run (--checkpoints)"):
                folder.mkdir()
        except FileError as error:
            if isinstance(error.__cause__, FileExistsError):
                continue
            raise
        return folder


def test_only(name: str, tested: str | None) -> str:
    """The name of a later test's file; ``tested`` is the data set that it was of, if another."""
    stem, suffix = name.rsplit(".", 1)
    of = f"_{safe_name(tested)}" if tested else ""
    return f"{stem}{TEST_ONLY}{of}.{suffix}"


def find_finished(checkpoints: Path, begins: str, settings: dict[str, Any], data_hash: str) -> Path | None:
    """The newest folder with results of a run of these settings and these data, or None.

    ``begins`` is what its name begins with, as for `find_same`.
    """
    free = settings_where("decides", "place", "course")
    for folder in _folders_of(checkpoints, begins, settings, free=free):
        finished = (folder / RESULTS_FILE).is_file()
        if finished and read_json(folder / ENVIRONMENT_FILE)["data_hash"] == data_hash:
            return folder
    return None


def find_resumable(checkpoints: Path, name: str) -> Path | None:
    """The newest whole checkpoint of this run's name, in its newest folder that has one, or None."""
    for folder in reversed(numbered_folders(checkpoints, name)):
        newest = newest_in(folder)
        if newest is not None:
            return newest
    return None


def find_same(checkpoints: Path, begins: str, settings: dict[str, Any], llm_hash: str | None) -> Path | None:
    """The newest whole checkpoint of this very run under another name, or None.

    A run's name tells where its LLM lay, and how the version that began it counted its settings; by both
    `find_resumable` would pass it over.

    Args:
        checkpoints: the folder of the run folders.
        begins: what its name begins with, `utils.config.Config.run_name_begins`.
        settings: resolved ones.
        llm_hash: content hash of the LLM.
    """
    for folder in _folders_of(checkpoints, begins, settings, free=_free_in_another_name()):
        if read_json(folder / ENVIRONMENT_FILE)["llm"].get("content_hash") == llm_hash:
            newest = newest_in(folder)
            if newest is not None:
                return newest
    return None


def was_begun(checkpoints: Path, begins: str, settings: dict[str, Any]) -> bool:
    """Whether a run of these resolved settings was begun, by these words under any name."""
    free = _free_in_another_name() | settings_where("on_resume", "machine")
    return any(True for _ in _folders_of(checkpoints, begins, settings, free=free, same_words=True))


def _free_in_another_name() -> frozenset[str]:
    """Settings in which a run may differ from itself under another name."""
    return settings_where("decides", "place", "course", "test") | settings_where("on_resume", "llm")


def _folders_of(
    checkpoints: Path,
    begins: str,
    settings: dict[str, Any],
    *,
    free: frozenset[str],
    same_words: bool = False,
) -> Iterator[Path]:
    """The run folders of these settings, ``free`` ones aside, whose names begin so, newest first.

    With ``same_words`` also those that the same command began when its words meant others (`left_unsaid`).
    """
    home = checkpoints / begins  # a name may lead into folders
    folders = [f for f in home.parent.glob("*") if f.name.startswith(home.name) and f.is_dir()]
    for folder in sorted(folders, key=lambda f: f.stat().st_mtime_ns, reverse=True):
        if (folder / CONFIG_FILE).is_file() and (folder / ENVIRONMENT_FILE).is_file():
            saved = settings_in(folder)
            either = free | left_to_machine(settings, saved) | unread_settings(settings, saved)
            if same_words:
                either |= left_unsaid(settings, saved).keys()
            if all(saved.get(n) == as_read(v) for n, v in settings.items() if n not in either):
                yield folder


def settings_in(folder: Path) -> dict[str, Any]:
    """The settings that a run's folder names, as this version knows them.

    Raises:
        UserError: what lies there are no settings.
    """
    saved = read_json(folder / CONFIG_FILE)
    if not isinstance(saved, dict) or not saved.keys() >= FROM_THE_FIRST:
        found = f"{len(saved)} others" if isinstance(saved, dict) else type(saved).__name__
        raise UserError(f"{folder / CONFIG_FILE}: expected the settings of a run, found {found}")
    return {name: as_read(value) for name, value in read_settings(saved)[0].items()}


def run_folder_of(checkpoint: Path) -> Path:
    """The run folder that a checkpoint file lies in."""
    parent = checkpoint.resolve().parent
    return parent.parent if parent.name.startswith("checkpoint_step_") else parent


def is_run_of(checkpoint: Path, settings: dict[str, Any]) -> bool:
    """Whether a checkpoint lies in the folder of the run that wrote it, by that run's settings."""
    folder = run_folder_of(checkpoint)
    if not (folder / CONFIG_FILE).is_file():
        return False
    try:
        saved = settings_in(folder)
    except ValueError:
        return False
    return all(
        saved.get(name) == as_read(value)
        for name, value in settings.items()
        if name not in free_on_resume(saved, settings)
    )


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` whole or not at all."""
    text = json.dumps(content, indent=2) + "\n"
    with whole_file(path) as file:
        file.write(text.encode())


def read_json(path: Path) -> Any:
    """What `write_json` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


def as_read(value: Any) -> Any:
    """A setting as `read_json` gives it back: JSON has lists for tuples."""
    return list(value) if isinstance(value, tuple) else value


def describe_run(folder: Path, config: Config, environment: dict[str, Any], *, resumed: bool) -> None:
    """Write the resolved configuration and the environment of a run that begins.

    A run that goes on in its folder keeps what stands there.
    """
    for name, content in ((CONFIG_FILE, config.flat()), (ENVIRONMENT_FILE, environment)):
        if not (resumed and (folder / name).is_file()):
            write_json(folder / name, content)


@dataclass(frozen=True)
class RunStatus:
    """What the process of a run said last."""

    state: Literal["running", "finished", "stopped", "failed"]
    message: str
    """Why it stopped or failed, one line."""
    host: str
    pid: int
    process_began: float
    """Seconds since 1970: with ``pid`` it tells a process from a later one of the same number."""
    updated: str
    """ISO time in UTC."""


@contextmanager
def status_kept(folder: Path, *, writes: bool) -> Iterator[None]:
    """Keep ``status.json`` true while the block runs and after it; processes that do not write do nothing."""
    if not writes:
        yield
        return
    _write(folder, "running")
    try:
        yield
    except RunStopped as stopped:
        _write(folder, "stopped", stopped.message)
        raise
    except BaseException as error:
        first_line = str(error).split("\n")[0]
        _write(folder, "failed", f"{type(error).__name__}: {first_line}".removesuffix(": "))
        raise
    _write(folder, "finished")


def read_status(folder: Path) -> RunStatus | None:
    """What the run in ``folder`` said last; None where it was made before there was such a file.

    Raises:
        ValueError: the file is not what `status_kept` writes.
    """
    path = folder / STATUS_FILE
    if not path.is_file():
        return None
    try:
        return RunStatus(**read_json(path))
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: expected the status of a run, found: {error}") from error


def is_alive(status: RunStatus) -> bool | None:
    """Whether the process that wrote ``status`` still runs; None where another machine would know."""
    if status.host != socket.gethostname():
        return None
    try:
        began = psutil.Process(status.pid).create_time()
    except psutil.NoSuchProcess:
        return False
    return abs(began - status.process_began) < SAME_START


def _write(
    folder: Path, state: Literal["running", "finished", "stopped", "failed"], message: str = ""
) -> None:
    status = RunStatus(
        state=state,
        message=message,
        host=socket.gethostname(),
        pid=os.getpid(),
        process_began=psutil.Process().create_time(),
        updated=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    write_json(folder / STATUS_FILE, asdict(status))


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
    return find_resumable(home, name)


def as_begun(config: Config, asked: Config, *, name: str, model_name: str) -> dict[str, Any]:
    """What settings that the command leaves unsaid were when the run that it resumes was begun.

    A default that has changed since would make the same command another run's.

    Args:
        config: the resolved settings.
        asked: those before.
        name: the run's name by those.
        model_name: the model's.
    """
    where, home = config.run.resume_from_checkpoint, Path(config.run.checkpoints)
    settings = config.flat() | {"matmul_precision": asked.training.matmul_precision}
    folder = None
    if where not in (None, "auto"):
        named = Path(where)
        folder = named if (named / CONFIG_FILE).is_file() else run_folder_of(checkpoints.locate(where))
    elif where == "auto" and config.run.is_training and find_resumable(home, name) is None:
        begins, free = asked.run_name_begins(model_name), _free_in_another_name()
        same = _folders_of(home, begins, settings, free=free, same_words=True)
        folder = next((one for one in same if newest_in(one) is not None), None)
    if folder is None or not (folder / CONFIG_FILE).is_file():
        return {}
    found = left_unsaid(settings, settings_in(folder))
    found = {name: value for name, value in found.items() if name not in unread_settings(settings)}
    if found:
        log.warning(
            "%s was begun when other values were the defaults, and goes on with those: %s",
            folder,
            " ".join(f"--{setting} {value}" for setting, value in found.items()),
        )
    return found


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
    found = find_same(home, asked.run_name_begins(model_name), settings, llm_hash)
    if found is not None:
        log.warning(
            "this run was begun under another name (its LLM lay elsewhere, or an earlier version began it): "
            "going on with %s",
            found,
        )
    return found


def _best_of(home: Path, name: str) -> Path:
    """The best weights of the newest run of this name."""
    for folder in reversed(numbered_folders(home, name)):
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
            if resume is not None and settings is not None and is_run_of(resume, settings):
                folder = run_folder_of(resume)
            else:
                folder = claim_folder(Path(config.run.checkpoints), name)
            for path in remove_leftovers(folder):
                log.info("removed %s, which a process that is gone had not finished", path)
            chosen = [str(folder)]
    found = broadcast_object_list(chosen)[0]
    assert found is not None
    return Path(found)
