"""The folder of one run: its name, what lies in it, and that no other run writes into it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from utils.config import (
    KNOWN_BY_CONTENT,
    MAY_CHANGE_ON_RESUME,
    NOT_IDENTITY,
    TESTED_ON,
    Config,
    left_to_machine,
    unread_settings,
)
from utils.errors import FileError, UserError, using_file
from utils.file_names import safe_name
from utils.flag_history import read_settings
from utils.training.checkpoint import newest_in
from utils.training.whole_files import whole_file

CONFIG_FILE = "config.json"
ENVIRONMENT_FILE = "environment.json"
METRICS_FILE = "metrics.jsonl"
LOG_FILE = "run.log"
RESULTS_FILE = "results.json"
FORECASTS_FILE = "forecasts.npz"
DETAILS_FILE = "test_details.npz"
TEST_ONLY = "_test_only"
"""What the names of a later test's files carry, with the data set's where that is another."""
FROM_THE_FIRST = frozenset({"data", "seq_len", "pred_len", "seed"})
"""Settings that every version has saved: by them a run's file is told from another program's."""
NAMING = frozenset({"model_id", "model_comment", "des"})
"""Settings that name a run and change nothing else of it."""


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
    free = NOT_IDENTITY - TESTED_ON - NAMING
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
    free = (NOT_IDENTITY - NAMING) | KNOWN_BY_CONTENT
    for folder in _folders_of(checkpoints, begins, settings, free=free):
        if read_json(folder / ENVIRONMENT_FILE)["llm"].get("content_hash") == llm_hash:
            newest = newest_in(folder)
            if newest is not None:
                return newest
    return None


def _folders_of(
    checkpoints: Path, begins: str, settings: dict[str, Any], *, free: frozenset[str]
) -> Iterator[Path]:
    """The run folders of these settings, ``free`` ones aside, whose names begin so, newest first."""
    home = checkpoints / begins  # a name may lead into folders
    folders = [f for f in home.parent.glob("*") if f.name.startswith(home.name) and f.is_dir()]
    for folder in sorted(folders, key=lambda f: f.stat().st_mtime_ns, reverse=True):
        if (folder / CONFIG_FILE).is_file() and (folder / ENVIRONMENT_FILE).is_file():
            saved = settings_in(folder)
            either = free | left_to_machine(settings) | left_to_machine(saved)
            either |= unread_settings(settings) & unread_settings(saved)
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
        if name not in MAY_CHANGE_ON_RESUME | left_to_machine(saved) | left_to_machine(settings)
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
