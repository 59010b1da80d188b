"""The quick start: reuse, resume, fallback and verdict."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from data_provider.data_factory import build_data
from utils.cli import parse_config
from utils.paths import PROJECT_ROOT
from utils.training import checkpoint
from utils.training.experiment import resolve

QUICK = ["--data", "synthetic", "--seq_len", "96", "--pred_len", "24"]


@pytest.fixture
def quickstart():
    """The quick start as a module."""
    from scripts import quickstart

    return quickstart


def asked(flags):
    """What a command line asks for, and its data."""
    config = parse_config(flags)
    return config, build_data(config)


def finished_run(quickstart, folder, *, mse, mae):
    """The folder of a finished quick-start run with these test scores."""
    flags = [*quickstart.FLAGS, *QUICK, "--checkpoints", str(folder)]
    run_dir = folder / parse_config(flags).run_name(model="TimeLLM_Enhanced", llm_name="SMOLLM2")
    run_dir.mkdir(parents=True)
    results = {
        "data": "synthetic",
        "notes": {},
        "llm": {"name": "SMOLLM2", "note": "weights are 4-bit, de-quantised"},
        "best": {"test": {"mse": mse, "mae": mae}, "step": 2},
        "phases": {"training": 1.0},
    }
    config, bundle = asked(flags)
    settings = resolve(config, bundle).flat()
    (run_dir / "results.json").write_text(json.dumps(results))
    (run_dir / "config.json").write_text(json.dumps(settings))
    (run_dir / "environment.json").write_text(json.dumps({"data_hash": bundle.content_hash}))
    return run_dir


@pytest.mark.parametrize("mse, status", [(1e-6, 0), (1e6, 1), (float("nan"), 1)])
def test_a_finished_run_is_reused_reported_and_judged(quickstart, mse, status, tmp_path, capsys, monkeypatch):
    """A forecast no better than a naive one, or NaN, must not end as a success."""
    monkeypatch.setattr(quickstart.run_main_enhanced, "main", lambda flags: pytest.fail("trained again"))
    monkeypatch.setattr(quickstart, "pictures_of", lambda run_dir, root_path: [f"of {run_dir}"])
    run_dir = finished_run(quickstart, tmp_path, mse=mse, mae=1e-6)
    assert quickstart.main([*QUICK, "--checkpoints", str(tmp_path)]) == status
    said = capsys.readouterr()
    for word in ("Reusing", "seasonal naive (24 h)", "ridge", "4-bit", f"of {run_dir}", "total"):
        assert word in said.out
    assert ("persistence is not beaten on MSE" in said.err) == bool(status)


@pytest.mark.parametrize("changed", ["config.json", "environment.json"])
def test_a_run_of_other_settings_or_data_is_not_reused(quickstart, changed, tmp_path, monkeypatch):
    """Results of another file of the same name were shown as this one's."""
    run_dir = finished_run(quickstart, tmp_path, mse=1e-6, mae=1e-6)
    content = json.loads((run_dir / changed).read_text())
    content |= {"learning_rate": 0.5, "data_hash": "another"}
    (run_dir / changed).write_text(json.dumps(content))
    flags = [*quickstart.FLAGS, *QUICK, "--checkpoints", str(tmp_path)]
    fresh = SimpleNamespace(run_dir=tmp_path / "fresh", results={"data": "synthetic"})
    monkeypatch.setattr(quickstart.run_main_enhanced, "main", lambda words: fresh)
    assert quickstart.trained_run(*asked(flags), flags)[0] == tmp_path / "fresh"


def test_an_unfinished_run_is_resumed(quickstart, tmp_path, monkeypatch):
    run_dir = finished_run(quickstart, tmp_path, mse=1.0, mae=1.0)
    (run_dir / "results.json").unlink()
    checkpoint.save(dict.fromkeys(checkpoint.REQUIRED_KEYS), run_dir / "checkpoint_step_104/checkpoint.pt")
    flags = [*quickstart.FLAGS, *QUICK, "--checkpoints", str(tmp_path)]
    trained = []

    def train(words):
        trained.append(words)
        return SimpleNamespace(run_dir=run_dir, results={"data": "synthetic"})

    monkeypatch.setattr(quickstart.run_main_enhanced, "main", train)
    assert quickstart.trained_run(*asked(flags), flags) == (run_dir, {"data": "synthetic"})
    assert trained == [[*flags, "--resume_from_checkpoint", "auto"]]


def test_without_etth1_the_synthetic_series_is_announced(quickstart, monkeypatch, capsys):
    def unavailable(name, root_path):
        raise quickstart.DataUnavailableError(f"no {name} in {root_path}")

    monkeypatch.setattr(quickstart, "ensure_data", unavailable)
    flags = quickstart.with_data(list(quickstart.FLAGS))
    assert parse_config(flags).data.data == "synthetic"
    assert "SYNTHETIC SERIES IS USED INSTEAD" in capsys.readouterr().out


def test_a_season_longer_than_the_lookback_is_said_in_the_table_and_judged_without(quickstart, capsys):
    """The naive forecast of a cut season was compared with as if it were one."""
    model, baselines = quickstart.Scores(0.1, 0.1), {
        "persistence": quickstart.Scores(1.0, 1.0), "ridge": quickstart.Scores(0.5, 0.5)
    }  # fmt: skip
    quickstart.report(
        results={"data": "mine", "notes": {}, "llm": {}},
        model=model,
        baselines=baselines,
        season="1440 rows",
        seq_len=96,
    )
    assert quickstart.verdict(model, baselines, ridge=False) == 0
    said = capsys.readouterr().out
    assert "no seasonal naive (1440 rows): a season is longer than the lookback of 96 rows" in said
    assert "Persistence is beaten" in said
    assert quickstart.verdict(quickstart.Scores(2.0, 2.0), baselines, ridge=False) == 1


def test_a_run_that_is_behind_ridge_has_failed_where_it_is_to_be_ahead(quickstart, capsys):
    """On ETTh1; elsewhere it is shown, and judged by whoever reads it."""
    model, ridge = quickstart.Scores(0.2, 0.3), quickstart.Scores(0.3, 0.2)
    baselines = {"persistence": quickstart.Scores(1.0, 1.0), "seasonal_naive": quickstart.Scores(1.0, 1.0)}
    for other, status in ((ridge, 1), (quickstart.Scores(0.3, 0.4), 0)):
        assert quickstart.verdict(model, {**baselines, "ridge": other}, ridge=True) == status
        assert quickstart.verdict(model, {**baselines, "ridge": other}, ridge=False) == 0
    said = capsys.readouterr()
    assert "ridge is not beaten on MAE: 0.3000 against 0.2000" in said.err
    assert "Persistence, seasonal naive and ridge are beaten on both metrics." in said.out


def test_the_cpu_preset_is_the_documented_short_run():
    config = parse_config(["--preset", "cpu"]).flat()
    assert (config["max_steps"], config["llm_layers"], config["channel_sampling"]) == (208, 2, "single")
    assert config["cpu"] and config["llm_model"] == "SMOLLM2"
    assert (PROJECT_ROOT / "scripts/presets/cpu.args").read_text().startswith("#")
