"""Checkpoints: written whole or not at all, found, verified, restored, pruned.

A run folder holds ``checkpoint`` (the best by validation) and ``checkpoint_step_N/checkpoint.pt``.
Both are full payloads: a run can go on from either. Nothing but tensors and plain values is
inside, so everything loads with ``weights_only=True``.

A file is what ``torch.save`` writes, a zip archive, with the archive's comment set to
``sha256:<64 hex digits>``: the checksum of the archive as it was before the comment. It becomes
visible with the payload in one rename, and ``torch.load`` reads the file as it would any other.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import zipfile
from collections.abc import Mapping
from functools import cache
from logging import getLogger
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO

import numpy as np
import torch

from utils.atomic_files import whole_file
from utils.errors import FileError, UserError
from utils.flag_history import read_settings

log = getLogger(__name__)
FORMAT_VERSION = 2
"""1 had no checksum, and the state of one process alone."""
BEST = "checkpoint"
STEP_FOLDER = "checkpoint_step_{step}"
STEP_FILE = "checkpoint.pt"
REQUIRED_KEYS = ("model", "optimizer", "scheduler", "epoch", "global_step", "config", "llm")
_STEP_PATTERN = re.compile(r"checkpoint_step_(\d+)$")
_MARK = b"sha256:"
_COMMENT = len(_MARK) + 64
_END_RECORD = b"PK\x05\x06"
"""How the last record of a zip archive begins; it is 22 bytes, the last two the comment's length."""
_BLOCK = 1 << 20


class CheckpointError(UserError):
    """A checkpoint is missing, broken, or belongs to another run; the message says which and why."""


class SaveError(FileError):
    """A checkpoint could not be written; those saved before are as they were."""


class _HashedWriter:
    """Hands bytes on to a file and counts them into a sha256.

    torch replaces an exception of its file by one of its own: the file's is kept here.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.sha256 = hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write all of ``data``."""
        try:
            self.file.write(data)
        except OSError as error:
            self.error = error
            raise
        self.sha256.update(data)
        return len(data)

    def flush(self) -> None:
        """Torch asks for it; the file is flushed when it is complete."""


def save(payload: Mapping[str, Any], path: Path, *, written: int | None = None) -> None:
    """Write ``payload`` with its checksum to ``path``, whole or not at all.

    Args:
        payload: tensors and plain values.
        path: of the file.
        written: time in nanoseconds that the file shall say it was written at; by default now.

    Raises:
        SaveError: the disk is full or fails; what lay at ``path`` is as it was.
    """
    content = {"format_version": FORMAT_VERSION, **payload}
    writer: _HashedWriter | None = None
    try:
        with whole_file(path) as file:
            writer = _HashedWriter(file)
            torch.save(content, writer)  # type: ignore[arg-type]
            _add_checksum(file, writer.sha256.hexdigest())
            if written is not None:
                file.flush()  # a later write would set the time again
                os.utime(file.fileno(), ns=(written, written))
    except (OSError, RuntimeError) as error:
        cause = (writer and writer.error) or (error.__cause__ if isinstance(error, FileError) else error)
        if not isinstance(cause, OSError):
            raise
        raise SaveError(
            f"{path}: expected to save a checkpoint, found: {cause.strerror or cause}; training stops here, "
            "the checkpoints saved before are whole. Free some space, then go on from the newest with "
            "--resume_from_checkpoint"
        ) from error


def save_again(payload: Mapping[str, Any], path: Path) -> None:
    """Write ``payload`` over the checkpoint at ``path``, which keeps its time.

    So a run that goes on from what was written last (`newest_in`) does not take it for newer.

    Raises:
        SaveError: as `save` does.
    """
    save(payload, path, written=path.stat().st_mtime_ns)


def _add_checksum(file: BinaryIO, digest: str) -> None:
    """Make the digest of a zip archive its comment."""
    file.seek(-22, os.SEEK_END)
    assert file.read(4) == _END_RECORD, "torch.save wrote a comment of its own"
    file.seek(-2, os.SEEK_END)
    file.write(_COMMENT.to_bytes(2, "little") + _MARK + digest.encode())


def stated_checksum(path: Path) -> str | None:
    """The sha256 that a file says its content has, or None where it says none."""
    with path.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - _COMMENT - 22))
        tail = file.read()
    if tail[:4] != _END_RECORD or tail[22:].find(_MARK) != 0:
        return None
    return tail[22 + len(_MARK) :].decode("ascii", "replace")


def actual_checksum(path: Path) -> str:
    """The sha256 of a file with a comment, as `save` counts it: the archive before the comment came."""
    digest = hashlib.sha256()
    left = path.stat().st_size - _COMMENT - 2
    with path.open("rb") as file:
        while left:
            block = file.read(min(_BLOCK, left))
            digest.update(block)
            left -= len(block)
        length = file.read(2)
    digest.update(b"\0\0" if length == _COMMENT.to_bytes(2, "little") else length)
    return digest.hexdigest()


def load(path: Path) -> dict[str, Any]:
    """The payload at ``path``, on the CPU, for a run to go on from.

    Raises:
        CheckpointError: the file is missing, cut off, altered, holds code, lacks what a run needs, or
            was written by another version.
    """
    payload = _read(path)
    missing = [k for k in REQUIRED_KEYS if not isinstance(payload, dict) or k not in payload]
    if missing:
        raise CheckpointError(
            f"{path}: expected a run's checkpoint, found one without {', '.join(missing)}; "
            "where it holds weights, --init_from starts a new run with them"
        )
    version = payload.get("format_version")
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: expected a checkpoint of format {FORMAT_VERSION} to go on from, found format "
            f"{version}; --init_from starts a new run with its weights"
        )
    return payload


def load_weights(path: Path) -> dict[str, Any]:
    """A payload with at least ``model``, from a checkpoint of any version or a bare state dict.

    Raises:
        CheckpointError: the file is missing, cut off, altered, holds code, or holds no weights.
    """
    payload = _read(path)
    if isinstance(payload, dict):
        if _is_state_dict(payload.get("model")):
            return payload
        if payload and _is_state_dict(payload):
            return {"model": payload}
    found = ", ".join(map(str, payload)) if isinstance(payload, dict) else type(payload).__name__
    raise CheckpointError(
        f"{path}: expected a run's checkpoint, or the state dict of a model, found {found[:200] or 'nothing'}"
    )


def _is_state_dict(content: Any) -> bool:
    return isinstance(content, dict) and all(
        isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in content.items()
    )


def _read(path: Path) -> Any:
    """What lies in a whole file of tensors and plain values.

    Raises:
        CheckpointError: for any other file.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: expected a checkpoint file, found none")
    try:
        stated = stated_checksum(path)
        if stated is None:
            _check_records(path)
        elif actual_checksum(path) != stated:
            raise CheckpointError(f"{path}: expected the sha256 {stated}, found another: it was altered")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # a damaged file makes its readers fail in any way
        raise CheckpointError(
            f"{path}: expected a whole checkpoint of tensors and plain values, "
            f"found one that does not load ({_reason(path, error)})"
        ) from error
    if isinstance(content, dict) and isinstance(content.get("config"), dict):
        content["config"], lost = read_settings(content["config"])
        for line in lost:
            _say_once(f"{path}: {line}")
    version = content.get("format_version") if isinstance(content, dict) else None
    if stated is None and isinstance(version, int) and version >= FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: expected a checksum at the end, found none: it was cut off, or written by another tool"
        )
    return content


@cache
def _say_once(line: str) -> None:
    """A checkpoint is read several times on the way into a run."""
    log.warning("%s", line)


def _check_records(path: Path) -> None:
    """Compare the checksums of a zip archive's records, which torch.load does not look at."""
    with zipfile.ZipFile(path) as records:
        altered = records.testzip()
    if altered is not None:
        raise zipfile.BadZipFile(f"{altered} fails its checksum")


def _reason(path: Path, error: Exception) -> str:
    """Why a file did not load, in a few words."""
    if isinstance(error, UnpicklingError):
        return "it holds code or objects, which are not loaded: " + str(error).splitlines()[0][:200]
    with path.open("rb") as file:
        begins_well = file.read(2) == b"PK"
    if begins_well and isinstance(error, zipfile.BadZipFile) and "checksum" not in str(error):
        return "it is cut off: the end of the archive is missing"
    return (str(error).splitlines() or [type(error).__name__])[0]


def save_step(payload: Mapping[str, Any], run_dir: Path, *, step: int, keep: int) -> Path:
    """Save a step checkpoint, then remove all but the newest ``keep`` up to this step (0 keeps all).

    Only files with a checksum count and are removed: others are not `save`'s. Those of later steps,
    which an earlier attempt left behind where a run resumed from before them, are not touched.

    Raises:
        SaveError: the disk is full or fails; nothing was removed.
    """
    path = step_path(run_dir, step)
    save(payload, path)
    if keep:
        own = [p for p in step_checkpoints(run_dir) if stated_checksum(p) is not None]
        for old in own[: own.index(path) + 1][:-keep]:
            old.unlink()
            if not any(old.parent.iterdir()):
                old.parent.rmdir()
    return path


def step_path(run_dir: Path, step: int) -> Path:
    """Where the checkpoint of an optimizer step lies."""
    return run_dir / STEP_FOLDER.format(step=step) / STEP_FILE


def is_whole(path: Path) -> bool:
    """Whether a run could go on from the checkpoint at ``path``."""
    try:
        load(path)
    except CheckpointError:
        return False
    return True


def step_checkpoints(run_dir: Path) -> list[Path]:
    """Step checkpoint files of a run, oldest first."""
    found = [
        (int(match.group(1)), folder / STEP_FILE)
        for folder in run_dir.glob("checkpoint_step_*")
        if (match := _STEP_PATTERN.search(folder.name)) and (folder / STEP_FILE).is_file()
    ]
    return [path for _, path in sorted(found)]


def locate(where: str, *, flag: str = "--resume_from_checkpoint") -> Path:
    """The checkpoint file that a path means: a file, a step folder, or a run folder (its newest).

    Raises:
        CheckpointError: there is none; the message names ``flag``.
    """
    path = Path(where)
    if path.is_file():
        return path
    if (path / STEP_FILE).is_file():
        return path / STEP_FILE
    newest = newest_in(path)
    if newest is None:
        raise CheckpointError(
            f"{flag}: expected a checkpoint file, or a folder that holds one, found {where}"
        )
    return newest


def newest_in(run_dir: Path) -> Path | None:
    """The whole checkpoint of a run folder that was written last, or None.

    Last by time, not by step: a run that resumed from before an older attempt's last step goes on
    from its own.
    """
    best = run_dir / BEST
    candidates = [*([best] if best.is_file() else []), *step_checkpoints(run_dir)]
    in_order = sorted(enumerate(candidates), key=lambda item: (item[1].stat().st_mtime_ns, item[0]))
    for _, path in reversed(in_order):
        try:
            load(path)
        except CheckpointError as error:
            log.warning("passed over: %s", error)
            continue
        return path
    return None


def random_state() -> dict[str, Any]:
    """The state of every random generator of this process, as tensors and plain values."""
    numpy_state: Any = np.random.get_state(legacy=True)
    version, words, gauss = random.getstate()
    return {
        "python": [version, list(words), gauss],
        "numpy": [
            numpy_state[0],
            torch.from_numpy(np.asarray(numpy_state[1]).astype(np.int64)),
            *numpy_state[2:],
        ],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Set every random generator of this process to a `random_state`."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


def differences(saved: Mapping[str, Any], current: Mapping[str, Any], *, free: frozenset[str]) -> list[str]:
    """One line for each setting that a checkpoint and this run do not share, ``free`` ones aside."""
    return [
        f"--{name}: the checkpoint has {saved.get(name)!r}, this run {current.get(name)!r}"
        for name in sorted(set(saved) | set(current))
        if name not in free and saved.get(name) != current.get(name)
    ]
