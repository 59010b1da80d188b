from __future__ import annotations

from pathlib import Path

import pytest

from utils.config import Config
from utils.training import checkpoint as checkpoints
from utils.training import run_folder as folders


def fill(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / folders.CONFIG_FILE).write_text("{}")
    return folder


def save_whole(path: Path, step: int) -> None:
    checkpoints.save({**dict.fromkeys(checkpoints.REQUIRED_KEYS, 0), "global_step": step}, path)


def test_a_new_folder_is_never_one_that_holds_a_run(tmp_path):
    """The family writes a second run over the first; two that start at once get a folder each."""
    assert folders.claim_folder(tmp_path / "none", "run") == tmp_path / "none" / "run"
    claimed = [folders.claim_folder(tmp_path, "run") for _ in range(3)]
    assert claimed == [tmp_path / "run", tmp_path / "run_2", tmp_path / "run_3"]


@pytest.mark.parametrize("kept", [[2], [3], [1, 3], [2, 3]])
def test_a_removed_folder_does_not_send_a_new_run_into_an_old_one(tmp_path, kept):
    """Counting the folders that are left gives a number that is taken."""
    for number in kept:
        fill(tmp_path / ("run" if number == 1 else f"run_{number}"))
    assert folders.claim_folder(tmp_path, "run") == tmp_path / f"run_{max(kept) + 1}"


def test_folders_are_listed_by_number_and_others_passed_over(tmp_path):
    """As text, run_10 comes before run_9; run_best and run_2x are a user's own."""
    for name in ("run", "run_9", "run_10", "run_best", "run_2x", "run_0", "run_1", "other", "run_01"):
        (tmp_path / name).mkdir()
    (tmp_path / "run_11").write_text("a file")
    assert [f.name for f in folders.numbered_folders(tmp_path, "run")] == ["run", "run_9", "run_10"]


@pytest.mark.parametrize(
    "text", ["../../up", "/tmp/x", "a/b", "..", "c:\\x", "x" * 400, "温" * 90, " ", "n\nul"]
)
def test_free_text_in_a_run_s_name_never_leads_out_of_the_folder_of_runs(tmp_path, text):
    """--model_comment ../../x wrote a run beside the folder of runs; a long one was an OSError."""
    settings = {"model_id": text, "des": text, "model_comment": text}
    name = Config.from_flat(settings).run_name(model="TimeLLM_Enhanced", llm_name=f"/models/{text}")
    folder = folders.claim_folder(tmp_path, name)
    again = folders.claim_folder(tmp_path, name)
    assert folder.parent == again.parent == tmp_path and folder != again
    assert (
        sorted(tmp_path.iterdir())
        == sorted([folder, again])
        == sorted(folders.numbered_folders(tmp_path, name))
    )
    assert len(again.name.encode()) <= 255


def test_the_name_of_another_data_set_is_one_file_s(tmp_path):
    """The file of a later test is called after the data that it was of."""
    name = folders.test_only("results.json", "wv (m/s) ../x")
    assert "/" not in name and name.startswith("results_test_only_wv (m_s)") and name.endswith(".json")


def test_the_newest_folder_with_a_whole_checkpoint_is_resumed(tmp_path):
    """A run that died before its first checkpoint must not hide the one before."""
    assert folders.find_resumable(tmp_path, "run") is None
    save_whole(tmp_path / "run" / "checkpoint", 50)
    save_whole(tmp_path / "run_2" / "checkpoint_step_10" / "checkpoint.pt", 10)
    fill(tmp_path / "run_3")
    assert (
        folders.find_resumable(tmp_path, "run") == tmp_path / "run_2" / "checkpoint_step_10" / "checkpoint.pt"
    )


def test_a_finished_run_is_one_with_results_settings_and_data(tmp_path):
    """Another file under the same name gave the old results."""
    settings, facts = {**Config().flat(), "seed": 1}, {"data_hash": "abc"}
    assert folders.find_finished(tmp_path, "run", settings, "abc") is None
    for name in ("run", "run_2", "run_3"):
        fill(tmp_path / name)
        folders.write_json(tmp_path / name / folders.CONFIG_FILE, {**settings, "log_steps": 7})
        folders.write_json(tmp_path / name / folders.ENVIRONMENT_FILE, facts)
    assert folders.find_finished(tmp_path, "run", settings, "abc") is None
    for name in ("run", "run_2"):
        (tmp_path / name / folders.RESULTS_FILE).write_text("{}")
    assert folders.find_finished(tmp_path, "run", settings, "abc") == tmp_path / "run_2"
    assert folders.find_finished(tmp_path, "run", {**settings, "log_steps": 50}, "abc") == tmp_path / "run_2"
    assert folders.find_finished(tmp_path, "run", {**settings, "seed": 2}, "abc") is None
    assert folders.find_finished(tmp_path, "run", settings, "other") is None


def test_a_lone_checkpoint_does_not_make_its_folder_a_run(tmp_path):
    """Resuming a file among others wrote config.json, a log and checkpoints beside them."""
    settings = Config().flat()
    lone = tmp_path / "models" / "x.pt"
    lone.parent.mkdir()
    assert not folders.is_run_of(lone, settings)
    folders.write_json(lone.parent / folders.CONFIG_FILE, {"model_type": "llama"})
    assert not folders.is_run_of(lone, settings)
    folders.write_json(tmp_path / folders.CONFIG_FILE, {**settings, "train_epochs": 7})
    assert folders.is_run_of(tmp_path / "checkpoint_step_4" / "checkpoint.pt", settings)


def test_a_checkpoint_knows_its_run_folder(tmp_path, monkeypatch):
    """A relative path too: its parent is the working directory."""
    assert folders.run_folder_of(tmp_path / "checkpoint") == tmp_path
    assert folders.run_folder_of(tmp_path / "checkpoint_step_3" / "checkpoint.pt") == tmp_path
    monkeypatch.chdir(tmp_path)
    assert folders.run_folder_of(Path("checkpoint")) == tmp_path


def test_json_is_written_whole_or_not_at_all(tmp_path):
    """Half a results.json would be read as a result."""
    path = tmp_path / "results.json"
    folders.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        folders.write_json(path, {"a": object()})
    assert folders.read_json(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_a_run_is_described_by_its_resolved_settings(tmp_path):
    config = Config.from_flat({"d_model": 32})
    (tmp_path / "run").mkdir()
    folders.describe_run(tmp_path / "run", config, {"python": "3"}, resumed=False)
    folders.describe_run(tmp_path / "run", Config(), {"python": "4"}, resumed=True)
    assert Config.from_flat(folders.read_json(tmp_path / "run" / "config.json")) == config
    assert folders.read_json(tmp_path / "run" / "environment.json") == {"python": "3"}
