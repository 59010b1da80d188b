from __future__ import annotations

import hashlib
import os
import random
import resource
import socket
import stat
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from utils.atomic_files import remove_leftovers
from utils.training import checkpoint as checkpoints
from utils.training.checkpoint import CheckpointError, SaveError


def payload(step: int = 1, **changes: Any) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(step)
    content: dict[str, Any] = dict.fromkeys(checkpoints.REQUIRED_KEYS, 0)
    content |= {"global_step": step, "model": {"weight": torch.randn(50, 40, generator=generator)}}
    return content | changes


class Unwritable:
    """Fails in the middle of being written, as a full disk does."""

    def __reduce__(self) -> Any:
        raise OSError(28, "No space left on device")


class Code:
    """What a checkpoint from a stranger may hold."""

    def __reduce__(self) -> Any:
        return os.system, ("touch owned",)


def files(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_checkpoint_can_be_read_by_those_who_can_read_the_run(tmp_path):
    """A temporary file's private mode (0600) stayed on every checkpoint, so colleagues could not test it."""
    umask = os.umask(0o022)
    try:
        checkpoints.save(payload(), tmp_path / "checkpoint")
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "checkpoint").stat().st_mode) == 0o644


def test_an_altered_file_is_named_wherever_it_was_altered(tmp_path):
    """One flipped byte of a weight would go unnoticed into every forecast; one of the structure may
    raise any exception at all."""
    path = tmp_path / "checkpoint"
    checkpoints.save(payload(), path)
    content = path.read_bytes()
    silent = []
    anywhere = np.random.default_rng(0).integers(0, len(content), 150)
    for position in [*anywhere, *range(len(content) - 100, len(content))]:  # and all of the checksum
        altered = bytearray(content)
        altered[position] ^= 0xFF
        path.write_bytes(bytes(altered))
        try:
            checkpoints.load(path)
        except CheckpointError as error:
            assert str(path) in str(error)
        else:
            silent.append(int(position))
    assert not silent


def test_a_file_that_is_no_checkpoint_or_cut_off_is_named(tmp_path):
    """A half-copied checkpoint must not end in a traceback from inside torch."""
    path = tmp_path / "checkpoint"
    checkpoints.save(payload(), path)
    whole = path.read_bytes()
    others = [b"hello\n", b"\x80\x04", b"PK\x03\x04" + b"\0" * 100, bytes(1000)]
    for content in [*others, *(whole[: int(len(whole) * share)] for share in (0.0, 0.01, 0.3, 0.9, 0.999))]:
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=str(path)):
            checkpoints.load(path)


def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path, monkeypatch):
    """A pickle from a stranger runs what it likes, unless it is loaded with weights_only."""
    monkeypatch.chdir(tmp_path)
    torch.save(payload(evil=Code()), tmp_path / "checkpoint")
    with pytest.raises(CheckpointError, match="tensors and plain values"):
        checkpoints.load(tmp_path / "checkpoint")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("content", [{"model": {}}, [1, 2], torch.zeros(3)])
def test_a_file_without_a_runs_keys_is_told_from_a_broken_one(tmp_path, content):
    torch.save(content, tmp_path / "checkpoint")
    with pytest.raises(CheckpointError, match="optimizer, scheduler"):
        checkpoints.load(tmp_path / "checkpoint")


def test_the_checksum_is_that_of_the_archive_which_torch_wrote(tmp_path):
    """An independent count: the file without its comment, the comment's length set back to none."""
    path = tmp_path / "checkpoint"
    checkpoints.save(payload(), path)
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        comment = archive.comment
    archive_alone = content[: -len(comment) - 2] + b"\0\0"
    assert comment.decode() == "sha256:" + hashlib.sha256(archive_alone).hexdigest()
    (tmp_path / "alone").write_bytes(archive_alone)
    assert torch.equal(
        torch.load(tmp_path / "alone", weights_only=True)["model"]["weight"], payload()["model"]["weight"]
    )


def test_a_checkpoint_whose_checksum_is_gone_is_refused(tmp_path):
    """Cut off at the right byte the archive is whole; saved again by another tool it may hold anything."""
    path = tmp_path / "checkpoint"
    torch.save(payload(format_version=checkpoints.FORMAT_VERSION), path)
    with pytest.raises(CheckpointError, match="expected a checksum at the end"):
        checkpoints.load(path)


@pytest.mark.parametrize("version", [1, checkpoints.FORMAT_VERSION + 1])
def test_another_format_is_refused_for_going_on_and_good_for_its_weights(tmp_path, version):
    """A payload of another version may lack what exactness needs, and nobody would see it."""
    path = tmp_path / "checkpoint"
    checkpoints.save(payload(format_version=version), path)
    with pytest.raises(CheckpointError, match=f"found format {version}.*--init_from"):
        checkpoints.load(path)
    assert torch.equal(checkpoints.load_weights(path)["model"]["weight"], payload()["model"]["weight"])


@pytest.mark.parametrize("content", [{}, {"a": 1}, [torch.zeros(1)], {"model": {"w": 3}}, torch.zeros(3)])
def test_a_file_without_weights_says_what_it_holds(tmp_path, content):
    torch.save(content, tmp_path / "file")
    with pytest.raises(CheckpointError, match="state dict of a model, found"):
        checkpoints.load_weights(tmp_path / "file")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="found none"):
        checkpoints.load(tmp_path / "checkpoint")


def test_pruning_keeps_the_newest_by_step_not_by_name(tmp_path):
    """As text, step 1000 comes before step 900."""
    for step in (900, 1000, 1100):
        checkpoints.save_step(payload(step), tmp_path, step=step, keep=2)
    assert files(tmp_path) == ["checkpoint_step_1000", "checkpoint_step_1100"]
    assert [p.parent.name for p in checkpoints.step_checkpoints(tmp_path)] == files(tmp_path)[:2]


def test_pruning_removes_nothing_that_it_did_not_write(tmp_path):
    """The original deletes whole folders: notes, the best weights and all."""
    checkpoints.save(payload(1), tmp_path / checkpoints.BEST)
    for name in ("checkpoint_step_best", "checkpoint_step_5_mine", "my_checkpoint_step_3", "notes"):
        (tmp_path / name).mkdir()
        (tmp_path / name / checkpoints.STEP_FILE).write_text("mine")
    checkpoints.save_step(payload(10), tmp_path, step=10, keep=1)
    (tmp_path / "checkpoint_step_10" / "notes.txt").write_text("mine")
    checkpoints.save_step(payload(20), tmp_path, step=20, keep=1)
    checkpoints.save_step(payload(30), tmp_path, step=30, keep=1)
    left = "checkpoint checkpoint_step_10 checkpoint_step_30 checkpoint_step_5_mine checkpoint_step_best"
    assert files(tmp_path) == [*left.split(), "my_checkpoint_step_3", "notes"]
    assert files(tmp_path / "checkpoint_step_10") == ["notes.txt"]


def test_pruning_counts_and_removes_files_with_a_checksum_alone(tmp_path):
    """A file put there by hand, or cut off by a disk fault, is not ours to remove, and no checkpoint to
    count as one of those that are kept."""
    for step in (1, 2):
        checkpoints.save_step(payload(step), tmp_path, step=step, keep=2)
    torch.save(payload(3), checkpoints.step_path(tmp_path, 3).parent.parent / "x")
    foreign = checkpoints.step_path(tmp_path, 3)
    foreign.parent.mkdir()
    (tmp_path / "x").rename(foreign)
    cut = checkpoints.step_path(tmp_path, 2)
    cut.write_bytes(cut.read_bytes()[:-1])
    for step in (4, 5):
        checkpoints.save_step(payload(step), tmp_path, step=step, keep=2)
    assert [int(p.parent.name.split("_")[-1]) for p in checkpoints.step_checkpoints(tmp_path)] == [2, 3, 4, 5]


def test_nothing_is_pruned_when_the_new_one_could_not_be_written(tmp_path):
    """Made room for first, the disk would hold no checkpoint at all."""
    old = checkpoints.save_step(payload(1), tmp_path, step=1, keep=1)
    with pytest.raises(SaveError):
        checkpoints.save_step(payload(2, rest=Unwritable()), tmp_path, step=2, keep=1)
    assert checkpoints.load(old)["global_step"] == 1
    assert checkpoints.newest_in(tmp_path) == old


@pytest.mark.parametrize("limit", [0, 100, 4000])
def test_a_disk_that_fills_up_is_named_at_whatever_byte(tmp_path, limit):
    """torch hides the system's error behind one of its own ("PytorchStreamWriter failed writing file"). A
    limit on file sizes stands for the full disk: the system refuses the write in the same place."""
    checkpoints.save(payload(1), tmp_path / "checkpoint")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(
            SaveError, match=r"checkpoint: expected to save a checkpoint, found: File too large"
        ):
            checkpoints.save(payload(2), tmp_path / "checkpoint")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert files(tmp_path) == ["checkpoint"]
    assert checkpoints.load(tmp_path / "checkpoint")["global_step"] == 1


def test_only_unfinished_files_of_writers_that_are_gone_are_removed(tmp_path):
    """A killed writer leaves hundreds of megabytes; another run's writer, or a user's file, must stay."""
    host, own = socket.gethostname(), os.getpid()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (tmp_path / "checkpoint_step_3").mkdir()
    stale = [
        tmp_path / f".writing-checkpoint-{host}-{gone.pid}",
        tmp_path / "checkpoint_step_3" / f".writing-checkpoint.pt-{host}-{gone.pid}",
        tmp_path / f".writing-results.json-{host}-{own}",
    ]
    kept = [
        tmp_path / f".writing-checkpoint-{host}-1",
        tmp_path / f".writing-checkpoint-another-{gone.pid}",
        tmp_path / ".writing-notes",
        tmp_path / f"checkpoint-{host}-{gone.pid}",
    ]
    for path in (*stale, *kept):
        path.write_text("half")
    assert sorted(remove_leftovers(tmp_path)) == sorted(stale)
    assert all(p.exists() for p in kept) and not any(p.exists() for p in stale)


def test_a_path_may_be_a_file_a_step_folder_or_a_run_folder(tmp_path):
    first = checkpoints.save_step(payload(10), tmp_path, step=10, keep=0)
    second = checkpoints.save_step(payload(20), tmp_path, step=20, keep=0)
    assert checkpoints.locate(str(first)) == first
    assert checkpoints.locate(str(first.parent)) == first
    assert checkpoints.locate(str(tmp_path)) == second
    with pytest.raises(CheckpointError, match="--resume_from_checkpoint"):
        checkpoints.locate(str(tmp_path / "elsewhere"))


def test_the_newest_is_the_last_written_that_is_whole(tmp_path):
    """A cut-off newest file must not hide the whole one before it."""
    assert checkpoints.newest_in(tmp_path) is None
    checkpoints.save_step(payload(10), tmp_path, step=10, keep=0)
    best = tmp_path / checkpoints.BEST
    checkpoints.save(payload(15), best)
    last = checkpoints.save_step(payload(20), tmp_path, step=20, keep=0)
    assert checkpoints.newest_in(tmp_path) == last
    last.write_bytes(last.read_bytes()[:100])
    assert checkpoints.newest_in(tmp_path) == best


def test_a_run_resumed_from_before_an_older_attempts_end_goes_on_from_its_own(tmp_path):
    """The older attempt's later steps counted as newest, and the file just saved was pruned."""
    old = [checkpoints.save_step(payload(n), tmp_path, step=n, keep=0) for n in (10, 20, 30)]
    own = checkpoints.save_step(payload(15), tmp_path, step=15, keep=1)
    assert checkpoints.newest_in(tmp_path) == own
    assert checkpoints.step_checkpoints(tmp_path) == [own, old[1], old[2]]


def draws() -> list[Any]:
    return [random.random(), random.gauss(0, 1), np.random.normal(size=3).tolist(), torch.randn(3).tolist()]


def test_the_random_state_survives_a_file(tmp_path):
    """Dropout after a resume must draw what it would have drawn. An odd number of gaussian draws
    leaves one in store, which is part of the state."""
    before = checkpoints.random_state()
    try:
        random.gauss(0, 1)
        np.random.normal(size=1)
        checkpoints.save(payload(rng_state=checkpoints.random_state()), tmp_path / "checkpoint")
        expected = draws()
        draws()
        checkpoints.restore_random_state(checkpoints.load(tmp_path / "checkpoint")["rng_state"])
        assert draws() == expected
    finally:
        checkpoints.restore_random_state(before)
