"""The two commands that a user types."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import run_main
import run_main_enhanced
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


@pytest.mark.parametrize("error", [ValueError("--d_ff: too wide"), FileNotFoundError("no such file: x.csv")])
def test_what_a_user_can_mend_is_one_message_and_status_2(monkeypatch, capsys, error):
    def train(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(run_main, "train", train)
    with pytest.raises(SystemExit) as caught:
        run_main.main([])
    said = capsys.readouterr().err
    assert caught.value.code == 2 and said == f"error: {error}\n"


def test_a_fault_of_our_own_keeps_its_traceback(monkeypatch):
    """Caught too, it could not be mended."""

    def train(*_: object, **__: object) -> None:
        raise KeyError("ours")

    monkeypatch.setattr(run_main, "train", train)
    with pytest.raises(KeyError):
        run_main.main([])


@pytest.mark.slow
def test_a_mistake_as_typed_in_any_directory_is_one_message(tmp_path: Path):
    wrong = subprocess.run(
        [sys.executable, str(PROJECT_ROOT / "run_main.py"), "--seed", "x"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert wrong.returncode == 2 and wrong.stderr.startswith("run_main.py: --seed")
    assert "Traceback" not in wrong.stderr and not list(tmp_path.iterdir())
