"""Trackers get what metrics.jsonl gets, a resumed run goes on in the same log, and nothing else changes."""

from __future__ import annotations

import json
import math
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import run_main
from utils.config import IDENTITY, Config
from utils.log import MetricsFile
from utils.training import checkpoint as checkpoints
from utils.training.run_folder import METRICS_FILE
from utils.training.tracking import TENSORBOARD_FOLDER, TRACKING_FILE, require_tracker

BOTH = {"use_tapr": True, "use_gram": True}


def scalars(folder: Path) -> dict[str, dict[int, list[float]]]:
    """What TensorBoard shows: by tag, by step, every value."""
    events = EventAccumulator(str(folder / TENSORBOARD_FOLDER))
    events.Reload()
    shown: dict[str, dict[int, list[float]]] = {}
    for tag in events.Tags()["scalars"]:
        for event in events.Scalars(tag):
            shown.setdefault(tag, {}).setdefault(event.step, []).append(event.value)
    return shown


def test_tensorboard_shows_what_the_metrics_hold(start_run):
    result = start_run(report_to="tensorboard", start="solved", **BOTH)
    shown = scalars(result.run_dir)
    records = MetricsFile(result.run_dir / METRICS_FILE).read()
    steps = [r for r in records if r["event"] == "train"]
    for name in (
        *("loss", "auxiliary", "learning_rate", "warmup", "memory_bytes"),
        *("direction", "magnitude", "consistency", "ordinal", "path", "gate_errors"),
        *("gate_mean", "gate_std", "confidence_mean", "matched_share"),
    ):
        wanted = {r["step"]: [pytest.approx(r[name], rel=1e-5)] for r in steps}
        assert shown[f"train/{name}"] == wanted and len(wanted) == 11, name
    speeds = [r["samples_per_second"] for r in steps]
    assert speeds[0] is None and all(s > 0 for s in speeds[2:])
    assert steps[-1]["samples_per_second"] * steps[-1]["seconds_per_step"] == pytest.approx(4)
    assert min(shown["train/samples_per_second"]) == next(
        r["step"] for r in steps if r["samples_per_second"] is not None
    )
    validated = {
        r["step"]: [pytest.approx(r["validation"]["mse"], rel=1e-5)]
        for r in records
        if r["event"] == "validation"
    }
    assert shown["validation/mse"] == validated and validated.keys() == {0, 11}
    for weights in ("best", "last"):
        score = result.results[weights]["test"]["mae"]
        assert shown[f"test_{weights}/mae"] == {11: [pytest.approx(score, rel=1e-5)]}


def test_a_resumed_run_goes_on_in_the_same_log(start_run):
    """Every step stands there once, those taken again after the checkpoint included."""
    first = start_run(report_to="tensorboard", save_steps=4, log_steps=1)
    before = scalars(first.run_dir)
    resumed = start_run(
        report_to="tensorboard",
        save_steps=4,
        log_steps=1,
        resume_from_checkpoint=str(checkpoints.step_path(first.run_dir, 4)),
    )
    assert resumed.run_dir == first.run_dir
    after = scalars(first.run_dir)
    assert sorted(after["train/loss"]) == list(range(1, 12))
    assert all(len(values) == 1 for values in after["train/loss"].values())
    assert after["train/loss"] == before["train/loss"]


def test_it_is_no_part_of_what_a_run_is():
    assert "report_to" not in IDENTITY
    tracked = Config.from_flat({"report_to": "tensorboard", "debug_shapes": True, "dump_prompt": True})
    assert tracked.training_hash() == Config().training_hash()


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_tracker_that_is_not_installed_is_one_error_before_anything_is_loaded(
    tiny, monkeypatch, capsys, name
):
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr("importlib.util.find_spec", lambda wanted: None)
    settings = {**tiny, "data_path": "not there.csv"}
    words = [f"--{key}={value}" for key, value in settings.items() if not isinstance(value, bool)]
    with pytest.raises(SystemExit) as caught:
        run_main.main([*words, "--report_to", name])
    assert caught.value.code == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert said == [f"error: --report_to {name}: the package {name} is not installed; pip install {name}"]


def test_none_needs_no_package(monkeypatch):
    looked_for: list[str] = []
    monkeypatch.setattr("importlib.util.find_spec", looked_for.append)
    require_tracker("none")
    assert not looked_for


def test_wandb_writes_offline_under_one_id(start_run, monkeypatch):
    """What a machine without a network keeps for `wandb sync`; two parts of a run have one id."""
    pytest.importorskip("wandb", reason="W&B is not installed: pip install wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    first = start_run(report_to="wandb", save_steps=4)
    run_id = json.loads((first.run_dir / TRACKING_FILE).read_text())["wandb_id"]
    step = str(checkpoints.step_path(first.run_dir, 4))
    start_run(report_to="wandb", save_steps=4, resume_from_checkpoint=step)
    files = sorted((first.run_dir / "wandb").glob(f"offline-run-*/run-{run_id}.wandb"))
    assert len(files) == 2
    losses = [_wandb_losses(file) for file in files]
    assert sorted(losses[0]) == list(range(1, 12)) and sorted(losses[1]) == list(range(5, 12))
    assert all(math.isclose(losses[0][step], losses[1][step]) for step in losses[1])


def _wandb_losses(file: Path) -> dict[int, float]:
    """Training losses by step in an offline file of W&B."""
    from wandb.proto.wandb_internal_pb2 import Record

    found: dict[int, float] = {}
    for data in _log_records(file.read_bytes()):
        record = Record()
        record.ParseFromString(data)
        values = {i.key or "/".join(i.nested_key): i.value_json for i in record.history.item}
        if "train/loss" in values:
            found[record.history.step.num] = float(values["train/loss"])
    return found


def _log_records(content: bytes) -> Iterator[bytes]:
    """The records of a file in LevelDB's log format, behind a header of 7 bytes."""
    block, header = 32768, struct.Struct("<IHB")
    place, parts = 7, b""
    while place + header.size <= len(content):
        if block - place % block < header.size:
            place += block - place % block
        _, length, kind = header.unpack_from(content, place)
        place += header.size
        parts += content[place : place + length]
        place += length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def test_wandb_without_an_account_says_how_to_do_without(start_run, monkeypatch, tmp_path):
    wandb = pytest.importorskip("wandb", reason="W&B is not installed: pip install wandb")
    wandb.teardown()  # it reads its environment once per process
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with pytest.raises(ValueError, match="WANDB_MODE=offline"):
        start_run(report_to="wandb")
