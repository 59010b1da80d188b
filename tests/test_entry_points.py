"""The two commands that a user types."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import run_main
import run_main_enhanced
from tests.processes import python
from utils.errors import FileMissingError, UserError
from utils.paths import PROJECT_ROOT


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """What would be trained: (model, whether TAPR is on)."""
    made: list[tuple[str, bool]] = []

    def train(config: object, *, model: str) -> None:
        made.append((model, config.tapr.use_tapr))  # type: ignore[attr-defined]

    monkeypatch.setattr(run_main, "train", train)
    return made


def test_run_main_trains_the_baseline_and_the_other_the_enhanced_model(calls):
    """Both with no other flag."""
    run_main.main([])
    run_main_enhanced.main(["--use_tapr", "--use_gram"])
    assert calls == [("TimeLLM", False), ("TimeLLM_Enhanced", True)]


@pytest.mark.parametrize("flag", ["--use_tapr", "--use_gram"])
def test_the_baseline_refuses_the_modules_with_status_2(calls, capsys, flag):
    """Taken silently, a user would report the baseline as the enhanced model."""
    with pytest.raises(SystemExit) as caught:
        run_main.main([flag])
    assert caught.value.code == 2 and "run_main_enhanced.py" in capsys.readouterr().err and not calls


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[Exception], int | str | None]:
    """The exit status of run_main.py where training raises this error."""

    def status(error: Exception) -> int | str | None:
        def train(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr(run_main, "train", train)
        with pytest.raises(SystemExit) as caught:
            run_main.main([])
        assert caught.value.__cause__ is error
        return caught.value.code

    return status


@pytest.mark.parametrize("error", [UserError("--d_ff: too wide"), FileMissingError("no such file: x.csv")])
def test_what_a_user_can_mend_is_one_message_and_status_2(failing, capsys, error):
    assert failing(error) == 2
    assert capsys.readouterr().err == f"error: {error}\n"


@pytest.mark.parametrize("kind", [ValueError, OSError, KeyError, RuntimeError, MemoryError])
def test_a_fault_of_our_own_keeps_its_traceback(failing, capsys, kind):
    """Counted as the user's, as every ValueError and OSError was, it could not be mended."""
    assert failing(kind("planted")) == 1
    said = capsys.readouterr().err
    assert "Traceback (most recent call last)" in said and "in train" in said and "planted" in said


def test_a_faults_traceback_lies_in_the_runs_log_and_one_line_on_screen_names_it(
    tiny_settings, as_words, series_file, tmp_path, monkeypatch, capsys
):
    def planted(*_: object) -> None:
        raise KeyError("planted")

    monkeypatch.setattr("utils.training.trainer.Trainer.train_step", planted)
    settings = tiny_settings(series_file, tmp_path / "checkpoints")
    with pytest.raises(SystemExit) as caught:
        run_main.main([*as_words(settings), "--model", "Linear"])
    assert caught.value.code == 1
    (log,) = (tmp_path / "checkpoints").glob("*/run.log")
    kept = log.read_text()
    assert "Traceback (most recent call last)" in kept and "in planted" in kept
    assert kept.rstrip().endswith("KeyError: 'planted'")
    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if "KeyError" in line] == [
        f"error: KeyError: 'planted' (a fault of this program; its traceback: {log})"
    ]
    assert not any("Traceback" in line for line in said)


def test_a_users_error_stands_in_the_runs_log_too(tiny_settings, as_words, series_file, tmp_path, capsys):
    """A run's folder said nothing of why its run had ended."""
    settings = {**tiny_settings(series_file, tmp_path / "checkpoints"), "batch_size": 1000}
    with pytest.raises(SystemExit) as caught:
        run_main.main([*as_words(settings), "--model", "Linear"])
    assert caught.value.code == 2
    (log,) = (tmp_path / "checkpoints").glob("*/run.log")
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error: --batch_size 1000") and said.removeprefix("error: ") in log.read_text()
    assert "Traceback" not in log.read_text()


@pytest.mark.slow
def test_a_mistake_as_typed_in_any_directory_is_one_message(tmp_path: Path):
    wrong = python(PROJECT_ROOT / "run_main.py", "--seed", "x", cwd=tmp_path)
    assert wrong.returncode == 2 and wrong.stderr.startswith("run_main.py: --seed")
    assert "Traceback" not in wrong.stderr and not list(tmp_path.iterdir())
