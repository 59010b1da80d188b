from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import run_main
from data_provider.data_factory import build_data, evaluation_loader, training_loader
from models.inspection import inspection_lines
from models.registry import MODELS, llm_outline
from tests.utils.training.comparing import load, records, unequal
from utils.config import Config
from utils.training import experiment
from utils.training.agreement import NonFiniteLossError
from utils.training.checkpoint import CheckpointError
from utils.training.experiment import Builders, RunResult
from utils.training.tracking import TENSORBOARD_FOLDER


def step_file(run_dir: Path, step: int) -> Path:
    return run_dir / f"checkpoint_step_{step}" / "checkpoint.pt"


def spied(config: Config, seen: list[Any], *, name: str = "TimeLLM_Enhanced") -> RunResult:
    """A run whose model is appended to ``seen`` when it is built."""

    def build(of: Config) -> Any:
        seen.append(MODELS[name](of))
        return seen[-1]

    builders = Builders(
        name, build, build_data, training_loader, evaluation_loader, inspection_lines, llm_outline(name)
    )
    return experiment.run(config, builders)


# What a run leaves


def test_a_run_writes_its_folder(start_run, tmp_path):
    """One folder says all: settings, environment, log, metrics, weights, results, forecasts."""
    result = start_run(train_epochs=2, save_steps=11, use_tapr=True, use_gram=True)
    folder = result.run_dir
    assert folder.parent == tmp_path / "checkpoints"
    names = "checkpoint checkpoint_step_11 checkpoint_step_22 config.json environment.json forecasts.npz"
    names += " metrics.jsonl results.json run.log status.json test_details.npz"
    assert sorted(p.name for p in folder.iterdir()) == names.split()
    resolved = json.loads((folder / "config.json").read_text())
    assert resolved["season"] == 24 and Config.from_flat(resolved).tapr.use_tapr
    environment = json.loads((folder / "environment.json").read_text())
    assert (
        environment["packages"]["torch"] and environment["llm"]["content_hash"] and environment["data_hash"]
    )
    assert re.search(r"_s2021_tiny-gpt2_tapr\+gram_[0-9a-f]{8}-run$", folder.name)
    results = json.loads((folder / "results.json").read_text())
    assert results == json.loads(json.dumps(result.results))
    named = "run_dir data tested_on notes llm precision start last best phases saving forecasts"
    assert set(results) == set(named.split())
    assert set(results["phases"]) == set("data model memory training calibration test".split())
    for entry in (results["last"], results["best"]):
        assert entry["test"]["windows"] == 17 and entry["test"]["mae"] > 0 and entry["test"]["mse"] > 0
    lines = (folder / "run.log").read_text()
    epochs = re.findall(
        r"Epoch: (\d) \| Train Loss: \d\.\d{4} \| Aux Loss: \d\.\d{4} \| Vali Loss: \d\.\d{4}"
        r" \| Dir Acc: [\d.]+% \(majority [\d.]+%, forecast [\d.]+%\) \| Mag Acc: ",
        lines,
    )
    assert epochs == ["1", "2"]
    assert "steps: 11 an epoch, 22 at most in all" in lines and "estimated time" in lines
    assert [r["step"] for r in records(folder) if r["event"] == "train"] == list(range(1, 23))
    assert "NaN" not in (folder / "metrics.jsonl").read_text()


def test_the_losses_of_the_epoch_line_are_means_over_its_steps(start_run):
    result = start_run(max_steps=6, eval_steps=3, use_tapr=True)
    rows = records(result.run_dir)
    for last in (3, 6):
        (line,) = (r for r in rows if r["event"] == "validation" and r["step"] == last)
        steps = [r for r in rows if r["event"] == "train" and last - 3 < r["step"] <= last]
        assert line["train_loss"] == pytest.approx(np.mean([r["loss"] for r in steps]), rel=1e-6)
        assert line["aux_loss"] == pytest.approx(np.mean([r["auxiliary"] for r in steps]), rel=1e-6)
        assert line["aux_loss"] > 0
    factors = [r["warmup"] for r in rows if r["event"] == "train"]
    assert factors == [0, 0.25, 0.5, 0.75, 1, 1]


def test_a_second_run_of_the_same_command_gets_its_own_folder(start_run):
    """The family writes over the first: then a checkpoint and a log of two runs lie together."""
    first = start_run(max_steps=1)
    before = {p.name: p.read_bytes() for p in first.run_dir.iterdir() if p.is_file()}
    second = start_run(max_steps=1)
    assert second.run_dir.name == first.run_dir.name + "_2"
    assert {p.name: p.read_bytes() for p in first.run_dir.iterdir() if p.is_file()} == before
    assert not unequal(
        load(first.run_dir / "checkpoint")["model"], load(second.run_dir / "checkpoint")["model"]
    )


def test_another_seed_is_another_run(start_run):
    """The original ignores --seed."""
    first, second = start_run(max_steps=1), start_run(max_steps=1, seed=1)
    assert first.run_dir.name != second.run_dir.name
    assert unequal(load(first.run_dir / "checkpoint")["model"], load(second.run_dir / "checkpoint")["model"])


# Shorter runs


def test_max_steps_ends_the_run_with_its_schedule(start_run):
    """The cosine reaches its end at the last step, wherever that is."""
    result = start_run(max_steps=5)
    rates = [r["learning_rate"] for r in records(result.run_dir) if r["event"] == "train"]
    assert rates == pytest.approx([0.0005 * (1 + math.cos(math.pi * k / 5)) / 2 for k in range(5)])
    assert result.results["last"]["step"] == 5


def test_a_stride_thins_the_validation_alone_and_is_noted(start_run):
    result = start_run(max_steps=2, eval_steps=1, eval_stride=4)
    validations = [r["validation"]["windows"] for r in records(result.run_dir) if r["event"] == "validation"]
    assert validations == [2, 2]  # of 5
    assert result.results["best"]["test"]["windows"] == 17
    assert "every 4th of 5" in result.results["notes"]["validation"]
    assert "every 4th of 5" in (result.run_dir / "run.log").read_text()


# Judging


OVERSHOT = {
    "learning_rate": 0.05,
    "lradj": "constant",
    "max_steps": 7,
    "eval_steps": 1,
    "save_steps": 1,
    "save_total_limit": 0,
}


@pytest.fixture(scope="module")
def overshot_once(series_file, tiny_settings, tmp_path_factory) -> RunResult:
    settings = {**tiny_settings(series_file, tmp_path_factory.mktemp("overshot")), **OVERSHOT}
    return run_main.train(Config.from_flat(settings), model="TimeLLM_Enhanced")


@pytest.fixture
def overshot(overshot_once, tiny) -> RunResult:
    """A run whose best weights are not its last, one's own copy of it where runs of the test go."""
    best, last = (overshot_once.results[kind]["step"] for kind in ("best", "last"))
    assert 1 < best < last == 7
    copy = Path(tiny["checkpoints"]) / overshot_once.run_dir.name
    return replace(overshot_once, run_dir=shutil.copytree(overshot_once.run_dir, copy))


def test_best_and_last_weights_are_both_tested_and_the_best_is_by_validation(overshot):
    """The original reads its result at the best *test* epoch."""
    rows = records(overshot.run_dir)
    found = {r["step"]: r["validation"]["mse"] for r in rows if r["event"] == "validation"}
    best = overshot.results["best"]
    assert best["validation_mse"] == min(found.values()) == found[best["step"]]
    kept = load(overshot.run_dir / "checkpoint")
    assert kept["global_step"] == best["step"] and kept["val_loss_min"] == best["validation_mse"]
    assert not unequal(kept["model"], load(step_file(overshot.run_dir, best["step"]))["model"])
    assert best["test"]["mse"] != overshot.results["last"]["test"]["mse"]
    assert [(r["weights"], r["step"]) for r in rows if r["event"] == "test"] == [
        ("last", 7),
        ("best", best["step"]),
    ]


def by_hand(run_dir: Path, payload: dict[str, Any]) -> tuple[float, float]:
    """MSE and MAE of these weights, one test window after the other, in float64."""
    config = Config.from_flat(payload["config"])
    model: Any = MODELS["TimeLLM_Enhanced"](config)
    model.load_state_dict(payload["model"])
    model.eval()
    test: Any = build_data(config).test
    errors = []
    with torch.no_grad():
        for i in range(len(test)):
            w = test[i]
            forecast = model(
                w.x[None], start=w.start[None], series_id=w.series_id[None], variable=w.variable[None]
            )
            errors.append((forecast[0] - w.y).double())
    every = torch.stack(errors)
    return every.square().mean().item(), every.abs().mean().item()


def test_the_test_scores_equal_a_plain_loop_over_all_test_windows(start_run):
    """The original drops the last batch and averages batch means; 17 windows in batches of 16 tell."""
    result = start_run(max_steps=3, use_tapr=True, use_gram=True)
    mse, mae = by_hand(result.run_dir, load(result.run_dir / "checkpoint"))
    assert result.results["best"]["test"]["mse"] == pytest.approx(mse, rel=1e-6)
    assert result.results["best"]["test"]["mae"] == pytest.approx(mae, rel=1e-6)


@pytest.mark.parametrize(
    "modules",
    [
        {"report_to": "tensorboard"},
        {"use_tapr": True, "use_gram": True, "peft": "lora"},
        {"use_tapr": True, "use_gram": True, "mixed_precision": "bf16"},
    ],
)
def test_testing_a_checkpoint_gives_the_runs_own_score(start_run, modules):
    """--is_training 0 finds the best weights of the run that its flags name, and leaves what it wrote."""
    settings = dict(max_steps=3, seed=5, **modules)
    trained = start_run(**settings)
    before = {p: p.read_bytes() for p in trained.run_dir.rglob("*") if p.is_file()}
    tested = start_run(**settings, is_training=0)
    assert tested.run_dir == trained.run_dir
    assert tested.results["checkpoint"]["test"]["mse"] == pytest.approx(
        trained.results["best"]["test"]["mse"], abs=1e-6
    )
    assert tested.results["checkpoint"]["step"] == trained.results["best"]["step"]
    goes_on = {"run.log", "metrics.jsonl", "status.json"}
    changed = {path.name for path, content in before.items() if path.read_bytes() != content}
    assert changed <= goes_on, "a test must not rewrite it"
    if "report_to" in modules:
        written = {p for p in (trained.run_dir / TENSORBOARD_FOLDER).rglob("*") if p.is_file()}
        assert written and written <= before.keys(), "a test is not tracked"


def test_testing_takes_the_best_weights_not_the_last(start_run, overshot):
    tested = start_run(**OVERSHOT, is_training=0)
    assert tested.results["checkpoint"]["step"] == overshot.results["best"]["step"]


def test_testing_without_a_checkpoint_says_what_to_do(start_run):
    with pytest.raises(CheckpointError, match="--is_training 0.*--resume_from_checkpoint"):
        start_run(is_training=0)


@pytest.mark.parametrize(
    "modules",
    [{"use_tapr": True}, {"use_gram": True, "retrieval_key": "raw", "retrieval_control": "random"}],
)
def test_validation_leaves_no_trace_in_training(start_run, modules):
    """Were a random number drawn in a validation, dropout after it would depend on how often one looks.

    (Learned retrieval keys are renewed at each validation, so with those it does matter.)
    """
    ends = []
    for eval_steps in (1, 1000):
        result = start_run(max_steps=6, eval_steps=eval_steps, save_steps=6, **modules)
        ends.append(load(step_file(result.run_dir, 6)))
    for part in ("model", "optimizer", "rng_state"):
        assert not unequal(ends[0][part], ends[1][part], part)


def test_testing_at_each_validation_is_shown_and_selects_nothing(start_run):
    ends = []
    for tested in (False, True):
        result = start_run(max_steps=4, eval_steps=2, eval_test_each_epoch=tested)
        rows = [r for r in records(result.run_dir) if r["event"] == "validation"]
        assert [("test" in r) for r in rows] == [tested, tested]
        assert ("| Test Loss: " in (result.run_dir / "run.log").read_text()) == tested
        ends.append(load(result.run_dir / "checkpoint"))
    assert not unequal(ends[0]["model"], ends[1]["model"]) and not unequal(
        ends[0]["rng_state"], ends[1]["rng_state"]
    )


def test_deterministic_kernels_do_for_the_whole_model(start_run):
    """An operation without one raises in the middle of a run."""
    try:
        a, b = (start_run(max_steps=2, deterministic=True, use_tapr=True, use_gram=True) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert a.results["best"] == b.results["best"]


def test_a_loss_that_is_not_finite_stops_with_the_weights_of_the_step_before(tiny):
    """A rate of 1e30 makes the second forward pass overflow; its windows are named."""
    config = Config.from_flat({**tiny, "learning_rate": 1e30, "save_steps": 1})
    seen: list[Any] = []
    with pytest.raises(
        NonFiniteLossError, match=r"step 2.*windows that start at rows \[\d+, \d+, \d+, \d+\]"
    ):
        spied(config, seen)
    (saved,) = Path(tiny["checkpoints"]).glob("*/checkpoint_step_1/checkpoint.pt")
    assert not unequal(load(saved)["model"], dict(seen[0].state_dict()))


# Resuming


@pytest.mark.parametrize(
    "settings",
    [
        {"dropout": 0.3, "gradient_accumulation_steps": 2},  # 11 passes an epoch: 5 steps of 2, one of 1
        pytest.param(
            {"num_workers": 2, "lr_warmup_steps": 3, "input_dropout": 0.1, "use_gram": True}
            | {"channel_sampling": "single", "max_steps": 28},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_resumed_run_ends_as_one_never_interrupted(start_run, settings, tmp_path):
    """In mid-epoch, and at the epoch's border: weights, moments, random state, metrics, to the bit."""
    common = {"train_epochs": 2, "save_steps": 1, "save_total_limit": 0, **settings}
    whole = start_run(**common)
    last = whole.results["last"]["step"]
    border = next(
        load(step_file(whole.run_dir, step))["global_step"]
        for step in range(1, last)
        if load(step_file(whole.run_dir, step))["progress"]["epoch_steps"] == 0
    )
    expected, scores = load(step_file(whole.run_dir, last)), records(whole.run_dir)
    for step in (border - 2, border, border + 3):
        copy = tmp_path / f"copy {step}"
        shutil.copytree(whole.run_dir, copy)
        resumed = start_run(**common, resume_from_checkpoint=str(step_file(copy, step)))
        assert resumed.run_dir == copy
        found = load(step_file(copy, last))
        assert not [u for u in unequal(expected, found) if not u.startswith("/config/resume_from")]
        assert records(copy) == scores
        for name in ("last", "best"):
            assert resumed.results[name] == whole.results[name]


def test_a_run_can_go_on_from_its_best_checkpoint(overshot, start_run, tmp_path):
    """The document's second way to resume; the file of the best weights is a full payload."""
    copy = tmp_path / "copy"
    shutil.copytree(overshot.run_dir, copy)
    resumed = start_run(**OVERSHOT, resume_from_checkpoint=str(copy / "checkpoint"))
    found = unequal(load(step_file(overshot.run_dir, 7)), load(step_file(copy, 7)), but=("checkpoints",))
    assert found == [f"/config/resume_from_checkpoint: None and {str(copy / 'checkpoint')!r}"]
    assert records(copy) == records(overshot.run_dir)
    assert resumed.results["best"] == overshot.results["best"]


def test_a_run_that_ended_by_patience_stays_ended(start_run):
    """Resumed at its last step it must not take one more."""
    common = dict(learning_rate=1e-12, eval_steps=1, patience=2, save_steps=1)
    whole = start_run(**common)
    last = whole.results["last"]["step"]
    resumed = start_run(**common, resume_from_checkpoint="auto")
    assert resumed.results["last"] == whole.results["last"] and resumed.results["last"]["step"] == last
    more = start_run(**common, resume_from_checkpoint=str(step_file(whole.run_dir, last)), resume_counter=0)
    assert more.results["last"]["step"] > last


def test_the_counter_is_restored_and_can_be_given(start_run, tmp_path):
    """RESUME_COUNTER=0 of the document's script."""
    common = dict(learning_rate=1e-12, max_steps=4, eval_steps=1, save_steps=1)
    whole = start_run(**common)
    for given, counter in ((None, 3), (0, 1), (7, 8)):
        copy = tmp_path / f"copy{given}"
        shutil.copytree(whole.run_dir, copy)
        start_run(**common, resume_from_checkpoint=str(step_file(copy, 3)), resume_counter=given)
        assert [r["counter"] for r in records(copy) if r["event"] == "validation"][-1] == counter


def test_auto_resumes_the_newest_whole_checkpoint_of_this_very_run(start_run):
    first = start_run(max_steps=4, save_steps=2)
    cut = step_file(first.run_dir, 4)
    cut.write_bytes(cut.read_bytes()[:1000])
    (first.run_dir / "checkpoint").unlink()
    resumed = start_run(max_steps=4, save_steps=2, resume_from_checkpoint="auto")
    assert resumed.run_dir == first.run_dir
    assert "resumed at optimizer step 2" in (first.run_dir / "run.log").read_text()
    assert load(cut)["global_step"] == 4
    other = start_run(max_steps=4, save_steps=2, seed=9, resume_from_checkpoint="auto")
    assert other.run_dir != first.run_dir


def test_auto_with_nothing_there_says_so_and_starts(start_run):
    """A fallback announces itself."""
    result = start_run(max_steps=1, resume_from_checkpoint="auto")
    assert "nothing to resume" in (result.run_dir / "run.log").read_text()
    assert result.results["last"]["step"] == 1


def test_a_path_with_no_checkpoint_is_an_error(start_run, tmp_path):
    """The original begins afresh, with an empty memory, after a mistyped path."""
    with pytest.raises(CheckpointError, match="--resume_from_checkpoint"):
        start_run(max_steps=1, resume_from_checkpoint=str(tmp_path / "none"))
    assert not (tmp_path / "checkpoints").exists()


def test_a_lone_checkpoint_file_can_be_resumed(start_run, tmp_path):
    """Moved to another machine without the best weights: it must not fail at the very end."""
    whole = start_run(max_steps=6, eval_steps=1, save_steps=2, learning_rate=0.05, lradj="constant")
    lone = tmp_path / "moved" / "checkpoint.pt"
    lone.parent.mkdir()
    shutil.copy(step_file(whole.run_dir, 4), lone)
    resumed = start_run(
        max_steps=6,
        eval_steps=1,
        save_steps=2,
        learning_rate=0.05,
        lradj="constant",
        resume_from_checkpoint=str(lone),
    )
    assert resumed.run_dir.parent == whole.run_dir.parent and resumed.run_dir != whole.run_dir
    assert resumed.results["best"]["step"] in (5, 6)
    assert "best weights so far" in (resumed.run_dir / "run.log").read_text()
    assert [p.name for p in lone.parent.iterdir()] == [lone.name], "a run wrote beside somebody's file"


def test_a_resume_from_before_the_best_reports_the_weights_it_tests(start_run, overshot):
    """The best file is then of a later step than the checkpoint knows: its own step is what counts."""
    rows = [r for r in records(overshot.run_dir) if r["event"] == "validation"]
    before = next(r["step"] for r in rows if r["counter"]) - 1  # the step after this one is no better
    assert before < overshot.results["best"]["step"]
    resumed = start_run(
        **{**OVERSHOT, "max_steps": before + 1},
        resume_from_checkpoint=str(step_file(overshot.run_dir, before)),
    )
    assert resumed.results["last"]["step"] == before + 1
    tested = resumed.results["best"]
    source = step_file(overshot.run_dir, tested["step"])
    assert tested["test"]["mse"] == pytest.approx(by_hand(overshot.run_dir, load(source))[0], rel=1e-5)


def test_resuming_another_run_is_refused_with_every_difference(start_run, write_series, tiny_llama, tmp_path):
    """One error that lists all: architecture, schedule, LLM and data, old and new."""
    first = start_run(max_steps=2)
    write_series(tmp_path / "waves.csv", seed=1)
    with pytest.raises(CheckpointError) as caught:
        start_run(
            max_steps=2,
            d_model=32,
            batch_size=5,
            learning_rate=0.1,
            use_tapr=True,
            llm_model_path=str(tiny_llama),
            root_path=str(tmp_path),
            resume_from_checkpoint=str(first.run_dir / "checkpoint"),
        )
    said = str(caught.value)
    assert str(first.run_dir / "checkpoint") in said.splitlines()[0]
    assert "--d_model: the checkpoint has 16, this run 32" in said
    assert "expected the checkpoint's 4 windows a step (4 x 1 pass(es) x 1 process(es)), found 5" in said
    assert "--learning_rate: the checkpoint has 0.0005, this run 0.1" in said
    assert "--use_tapr: the checkpoint has False, this run True" in said
    assert "LLM architecture: the checkpoint has 'GPT2Model', this run 'LlamaModel'" in said
    assert "LLM content_hash" in said and "data content_hash: the checkpoint saw" in said


def test_what_may_differ_on_resume_may(start_run):
    """More epochs, another patience, workers, save interval: the reasons to resume."""
    first = start_run(max_steps=2, save_steps=2)
    resumed = start_run(
        max_steps=3,
        train_epochs=2,
        patience=3,
        num_workers=1,
        save_steps=1,
        eval_batch_size=5,
        log_steps=2,
        resume_from_checkpoint=str(first.run_dir),
    )
    assert resumed.run_dir == first.run_dir and resumed.results["last"]["step"] == 3


# Starting weights and memory


def memory_of(path: Path) -> dict[str, torch.Tensor]:
    return {name: t for name, t in load(path)["model"].items() if "memory" in name}


def test_init_from_starts_with_the_weights_and_nothing_else(tiny, start_run):
    """A fine-tuning run begins at step 0 with fresh moments, in a folder of its own."""
    first = start_run(max_steps=3, use_tapr=True)
    kept = load(first.run_dir / "checkpoint")
    config = Config.from_flat(
        {
            **tiny,
            "max_steps": 1,
            "use_tapr": True,
            "learning_rate": 1e-12,
            "init_from": str(first.run_dir / "checkpoint"),
        }
    )
    seen: list[Any] = []
    result = spied(config, seen)
    assert result.run_dir != first.run_dir and result.results["last"]["step"] == 1
    found = seen[0].state_dict()
    assert found.keys() == kept["model"].keys()
    for name, tensor in kept["model"].items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-9, msg=name)


def test_a_missing_start_names_its_own_flag(start_run, tmp_path):
    with pytest.raises(CheckpointError, match="--init_from"):
        start_run(init_from=str(tmp_path / "none"))


def test_a_start_that_does_not_fit_says_so(start_run):
    """A baseline's weights lack the modules' parts."""
    first = start_run(max_steps=1)
    with pytest.raises(CheckpointError, match=r"--init_from .*do not fit this model[\s\S]*tapr"):
        start_run(max_steps=1, use_tapr=True, init_from=str(first.run_dir))


def test_an_empty_memory_is_built_and_one_that_came_along_is_rebuilt_on_request(
    start_run, write_series, tmp_path
):
    """The document: build first, never when resuming; a transfer to other data may want either."""
    first = start_run(max_steps=1, use_gram=True)
    old = memory_of(first.run_dir / "checkpoint")
    assert old and any(t.numel() > 100 for t in old.values())
    write_series(tmp_path / "waves.csv", seed=1)
    common = dict(
        max_steps=1, use_gram=True, root_path=str(tmp_path), init_from=str(first.run_dir / "checkpoint")
    )
    futures = next(name for name in old if "value" in name or "future" in name)
    with pytest.raises(ValueError, match="another series; --build_memory"):
        start_run(**common)  # new keys beside old futures would be no memory at all
    rebuilt = memory_of(start_run(**common, build_memory=True).run_dir / "checkpoint")
    assert not torch.equal(rebuilt[futures], old[futures])
    same = {name: value for name, value in common.items() if name != "root_path"}
    kept = memory_of(start_run(**same).run_dir / "checkpoint")
    assert torch.equal(kept[futures], old[futures])


def test_a_users_mistake_exits_with_2_and_no_traceback(tiny, as_words, capsys):
    flags = as_words(tiny)
    for words in ([*flags, "--data_path", "none.csv"], [*flags, "--d_ff", "5000"], [*flags, "--use_tapr"]):
        with pytest.raises(SystemExit) as caught:
            run_main.main(words)
        assert caught.value.code == 2
        assert capsys.readouterr().err.strip()
