"""The study runner: cells, what is kept of them, and reports that say what the files say."""

from __future__ import annotations

import fcntl
import functools
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import run_main
import run_main_enhanced
from data_provider.download import DataUnavailableError
from scripts import ablation
from scripts.lib.ablation import precision, store
from scripts.lib.ablation.cells import Cell, cells_of, identity, key_of, queue_of
from scripts.lib.ablation.document import Page, Paragraph, Picture, Table
from scripts.lib.ablation.findings import Findings, Place
from scripts.lib.ablation.overview import SCORES_BEGIN, SCORES_END, write_scores
from scripts.lib.ablation.plan import steps_of, still_to_run
from scripts.lib.ablation.plan_file import plan_study
from scripts.lib.ablation.runner import run_queue
from scripts.lib.ablation.sections import score_row, score_tables
from scripts.lib.ablation.store import cell_files, is_kept, keep
from scripts.lib.ablation.study import StudyError, read_study
from tests.conftest import forget_accelerator
from utils.cli import parse_config
from utils.paths import PROJECT_ROOT
from utils.reporting.statistics import BLOCK, block_interval, sign_flip_p
from utils.training.window_errors import read_details, write_details

STUDIES = sorted((PROJECT_ROOT / "scripts" / "studies").glob("*.toml"))
SEEDS = [1, 2, 3, 4, 5, 6]
Write = Callable[..., Path]


@pytest.fixture(scope="module")
def common(tmp_path_factory: pytest.TempPathFactory, tiny_gpt2: Path) -> str:
    """Flags of a run of a second: 900 hourly rows, 3 steps, a tiny LLM."""
    folder = tmp_path_factory.mktemp("series")
    rows = np.arange(900)
    noise = np.random.default_rng(0).normal(0, 0.2, (900, 2))
    frame = pd.DataFrame(np.stack([np.sin(rows * np.pi / 12), np.cos(rows * np.pi / 12)], 1) + noise)
    frame.columns = ["a", "OT"]
    frame.insert(0, "date", pd.date_range("2020-01-01", periods=len(rows), freq="h").astype(str))
    frame.to_csv(folder / "waves.csv", index=False)
    return (
        f"--root_path {folder} --data_path waves.csv --llm_model_path {tiny_gpt2} --seq_len 32 --label_len 0 "
        "--llm_layers 1 --d_model 16 --d_ff 16 --n_heads 2 --num_tokens 20 --d_repr 16 --memory_size 100 "
        "--batch_size 4 --eval_batch_size 64 --max_steps 3 --eval_steps 2 --save_steps 1 --log_steps 1 "
        "--percent 100 --cpu"
    )


def study_text(flags: str, *, module: str, configurations: str = "", blocks: str) -> str:
    """A study of a baseline and of a module, given as its line of TOML, with a yardstick and an aim."""
    name = module.split()[0]
    return f"""
title = "Tiny"
question = "Does it work?"
setting = "tiny"
flags = "{flags}"
data = ["custom"]
[configurations]
baseline = {{ label = "baseline" }}
{module}
naive = {{ label = "naive", flags = "--model Persistence", reference = true }}
{configurations}
{blocks}
[[aims]]
text = "nothing lost"
configuration = "{name}"
horizons = [8]
at_most = 0.0001
"""


def comparison(kind: str, configuration: str, *, horizon: int | None = None) -> str:
    """One of the study's comparisons against the baseline."""
    where = f"horizon = {horizon}\n" if horizon else ""
    return f'[[{kind}]]\nconfiguration = "{configuration}"\nagainst = "baseline"\n{where}'


@pytest.fixture
def write(tmp_path: Path, common: str) -> Write:
    """Write a study of a baseline and GRA-M, six seeds at horizon 8 and one at 12; with these changes."""

    def write(name: str = "tiny", *, seeds: list[int] = SEEDS, primary: bool = True, **more: str) -> Path:
        path = tmp_path / f"{name}.toml"
        blocks = f"""
[[blocks]]
configurations = ["baseline", "gram"]
horizons = [8]
seeds = {seeds}
[[blocks]]
configurations = ["naive"]
horizons = [8]
seeds = [1]
priority = 0
{more.pop("blocks", "")}
"""
        text = study_text(
            f"{common} {more.pop('flags', '')}",
            module='gram = { label = "+ GRA-M", flags = "--use_gram" }',
            configurations=more.pop("configurations", ""),
            blocks=blocks + (comparison("primary", "gram", horizon=8) if primary else ""),
        )
        path.write_text(text)
        assert not more
        return path

    return write


def run_cell(cell: Cell, runs: Path) -> None:
    """The cell's run by its own entry point, in this process."""
    forget_accelerator()
    entry: Any = {"run_main.py": run_main, "run_main_enhanced.py": run_main_enhanced}[cell.entry]
    entry.main([*cell.words, "--checkpoints", str(runs / cell.key), "--resume_from_checkpoint", "auto"])


@functools.cache
def known_cells(path: Path, chosen: str | None = None) -> list[Cell]:
    """Those of a study's file, whose flags are parsed once for all tests."""
    return [cell for _, cell in cells_of(read_study(path), chosen)]


def status(*words: Any) -> int:
    return ablation.main([str(word) for word in words])


# Study files and cells.


@pytest.mark.parametrize("path", STUDIES, ids=lambda p: p.stem)
def test_each_study_file_is_whole_and_says_how_it_is_run(path):
    study = read_study(path)
    cells = known_cells(path)
    assert f"python scripts/ablation.py scripts/studies/{path.name}" in path.read_text()
    assert len({cell.key for cell in cells}) == len(cells), "two configurations are the same run"
    assert study.setting and study.question.endswith("?")
    for cell in cells:
        assert cell.config.llm.llm_model == "SMOLLM2" and cell.config.data.percent >= 20


def test_the_default_of_a_sensitivity_study_is_a_cell_of_the_module_study():
    """What is the same run is run once, whichever study asks for it."""
    folder = PROJECT_ROOT / "scripts" / "studies"
    queue = queue_of(
        [read_study(folder / f"{name}.toml") for name in ("modules", "top_k", "llm", "n_scales")]
    )
    together = [{cell.study for cell in item} for item in queue if len(item) > 1]
    assert {"modules", "top_k", "n_scales"} in together and {"modules", "llm"} in together


def test_seeds_turn_slowest_and_blocks_of_low_number_come_first(write):
    """A study that is cut off must have whole pairs."""
    cells = [item[0] for item in queue_of([read_study(write(seeds=SEEDS))])]
    assert cells[0].configuration == "naive"
    assert [c.seed for c in cells[1:]] == [s for s in SEEDS for _ in range(2)]


def test_a_key_names_what_is_trained_and_nothing_else():
    """A setting that is added later, at its default, must not make finished cells strangers."""
    config = parse_config(["--use_tapr", "--seed", "3"])
    key = key_of(config, "TimeLLM_Enhanced")
    same = parse_config(
        ["--use_tapr", "--seed", "3", "--n_scales", "3", "--checkpoints", "x", "--log_steps", "9"]
    )
    assert key_of(same, "TimeLLM_Enhanced") == key
    others = [
        parse_config(["--use_tapr"]),
        parse_config(["--use_tapr", "--seed", "3", "--llm_ablation", "none"]),
        parse_config(["--use_tapr", "--seed", "3", "--test_stride", "4"]),
    ]
    assert len({key, *(key_of(o, "TimeLLM_Enhanced") for o in others), key_of(config, "DLinear")}) == 5


def test_a_changed_default_or_recipe_takes_no_kept_cell_for_its_own(monkeypatch):
    """A cell of before stood for one of now, silently: its key left out whatever was the default."""
    said, unsaid = parse_config(["--use_gram", "--top_k", "9"]), parse_config(["--use_gram"])
    before = {config: key_of(config, "TimeLLM_Enhanced") for config in (said, unsaid)}
    # the default of --top_k becomes 9: who says nothing now has it, who said 9 had it before
    assert key_of(unsaid.replace(top_k=9), "TimeLLM_Enhanced") == before[said] != before[unsaid]
    assert identity(said, "TimeLLM_Enhanced").items() >= {"use_gram": True, "top_k": 9}.items()
    monkeypatch.setattr("scripts.lib.ablation.cells.RECIPE", 2)
    assert key_of(said, "TimeLLM_Enhanced") not in before.values()


def test_the_kept_cells_of_every_study_are_those_its_file_names():
    """A new way to make keys must not turn the results of this project into strangers."""
    for path in STUDIES:
        kept = {file.stem for file in (PROJECT_ROOT / "results" / path.stem / "cells").glob("*.json")}
        chosen = precision.kept_precision(read_study(path), PROJECT_ROOT / "results") if kept else None
        assert kept <= {cell.key for cell in known_cells(path, chosen)}, path.stem


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("title =", "titel =", "titel: no such field"),
        ('"baseline", "gram"]', '"baseline", "grim"]', "configuration grim"),
        ("seeds = [1, 2, 3, 4, 5, 6]", "seeds = [1, 2, 3]", "found 3"),
        ("horizons = [8]", "horizon = [8]", "horizon"),
        ("[configurations]", "[configurations", "tiny.toml"),
    ],
)
def test_a_wrong_study_is_refused_with_what_is_wrong(write, capsys, tmp_path, old, new, said):
    path = write()
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(StudyError, match=re.escape(said)):
        read_study(path)
    assert status(path, "--dry_run", "--runs", tmp_path, "--results", tmp_path) == 2
    assert said in capsys.readouterr().err


def test_a_study_computes_in_one_precision_which_its_cells_are_known_by(write, tmp_path, monkeypatch):
    """Pairs of bf16 against float32 would compare precisions; so would a study that changed machines."""
    study = read_study(
        write(flags="--mixed_precision auto", configurations="half = { flags = '--mixed_precision bf16' }")
    )
    timed: list[str] = []

    def time(cell: Cell) -> str:
        timed.append(cell.title)
        return "no"

    monkeypatch.setattr(precision, "_timed", time)
    assert precision.precision_of(study, tmp_path) == "no" and len(timed) == 1
    asked, found = (cells_of(study, chosen) for chosen in (None, "bf16"))
    assert {cell.config.training.mixed_precision for _, cell in found} == {"bf16"}
    assert all(key_of(cell.config, cell.model) == cell.key for _, cell in found)
    assert {cell.key for _, cell in asked}.isdisjoint(cell.key for _, cell in found)
    record = store.cell_files(tmp_path, study.name, found[0][1].key)[0]
    record.parent.mkdir(parents=True)
    record.write_text("{}")
    assert precision.precision_of(study, tmp_path) == "bf16" and len(timed) == 1
    assert precision.precision_of(read_study(write()), tmp_path) is None


def test_five_seeds_are_too_few_for_a_primary_comparison(write):
    with pytest.raises(StudyError, match="0.05"):
        read_study(write(seeds=SEEDS[:5]))
    assert read_study(write(seeds=SEEDS[:5], primary=False)).primary == ()


def test_a_flag_that_does_not_exist_stops_before_anything_runs(write, tmp_path):
    with pytest.raises(SystemExit) as caught:
        status(
            write(flags="--no_such_flag 1"), "--runs", tmp_path / "runs", "--results", tmp_path / "results"
        )
    assert caught.value.code == 2 and not (tmp_path / "runs").exists()


def test_a_dry_run_needs_no_data_and_downloads_none(write, tmp_path, capsys, monkeypatch):
    """It runs nothing, and stopped where the data of a cell were not there yet."""
    monkeypatch.setattr("data_provider.data_factory.ensure_data", None)
    path = write(flags=f"--root_path {tmp_path / 'nowhere'}")
    assert status(path, "--dry_run", "--runs", tmp_path / "runs", "--results", tmp_path / "results") == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(" ? steps" in line for line in lines) == 12  # the naive forecast takes none
    assert "0 optimizer steps and those of 12 whose data are not there yet" in lines[-1]


def test_advice_on_a_runs_flags_says_where_a_study_has_them(write, tmp_path, capsys, monkeypatch):
    """It said "name the folder with --root_path", a flag that the command does not take."""

    def unavailable(*_: object) -> None:
        raise DataUnavailableError("no ETTh2.csv; name the folder that holds it with --root_path")

    monkeypatch.setattr("scripts.ablation.queue_of", unavailable)
    assert status(write(), "--jobs", "1", "--runs", tmp_path, "--results", tmp_path) == 2
    told = "(--root_path: flags of a training run; put them into the study file, as "
    assert capsys.readouterr().err.splitlines()[-1] == told + 'flags = "...")'


def test_a_dry_run_tells_cells_steps_and_time_and_writes_nothing(write, tmp_path, capsys):
    path = write()
    assert status(path, "--dry_run", "--runs", tmp_path / "runs", "--results", tmp_path / "results") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 14 and lines[-1].startswith("13 cells, 0 finished, 13 to run: 36 optimizer steps")
    assert "about 0:39:00 with --jobs 1" in lines[-1]  # 180 seconds each, as no cell has run
    assert not (tmp_path / "runs").exists() and not (tmp_path / "results").exists()
    naive = [cell for _, cell in cells_of(read_study(path)) if cell.configuration == "naive"]
    assert steps_of(naive[0]) == 0


# Results.


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, common: str) -> tuple[Path, Path, Path]:
    """A study of six pairs, one of them really run, without one cell; its file, the runs, and the results."""
    folder = tmp_path_factory.mktemp("finished")
    path = folder / "tiny.toml"
    blocks = f"""
[[blocks]]
configurations = ["baseline", "both"]
horizons = [8]
seeds = {SEEDS}
[[blocks]]
configurations = ["baseline", "both", "naive"]
horizons = [12]
seeds = [1, 2]
"""
    comparisons = comparison("primary", "both", horizon=8) + comparison("secondary", "both")
    module = 'both = { label = "+ both", flags = "--use_tapr --use_gram" }'
    path.write_text(study_text(common, module=module, blocks=blocks + comparisons))
    study, runs, results = read_study(path), folder / "runs", folder / "results"
    plan_study(study, results / "tiny")
    cells = [cell for _, cell in cells_of(study)]
    real = {}
    for cell in cells:
        place = (cell.configuration, cell.horizon)
        if place == ("both", 12) and cell.seed == 2:
            continue
        if place not in real:
            run_cell(cell, runs)
            keep(results, cell, folder=runs / cell.key)
            real[place] = cell
        else:
            imitate(results, cell, of=real[place])
    return path, runs, results


def imitate(results: Path, cell: Cell, *, of: Cell) -> None:
    """The files of a cell that was not run: those of another one, every error scaled by the same factor."""
    factor = (
        1 + 0.01 * np.random.default_rng(cell.seed).normal() + 0.002 * cell.seed * (cell.model != "TimeLLM")
    )
    source, target = cell_files(results, of.study, of.key), cell_files(results, cell.study, cell.key)
    record = json.loads(source[0].read_text())
    for weights in ("best", "last"):
        for metric in ("mse", "mae"):
            record[weights]["test"][metric] *= factor
    record["settings"]["seed"] = cell.seed
    scaled = {
        name: found._replace(
            squared=found.squared * np.float32(factor), absolute=found.absolute * np.float32(factor)
        )
        for name, found in read_details(source[1]).items()
    }
    write_details(target[1], scaled)
    target[0].write_text(json.dumps({**record, "key": cell.key}))


def test_a_report_is_rebuilt_from_the_studys_folder_alone(finished, tmp_path):
    path, _, results = finished
    assert status(path, "--report_only", "--results", results) == 0
    shutil.copytree(results / "tiny", tmp_path / "tiny")
    before = {f.name: f.read_bytes() for f in (tmp_path / "tiny").iterdir() if f.is_file()}
    for name in before.keys() - {"plan.json"}:
        (tmp_path / "tiny" / name).unlink()
    assert status(tmp_path / "gone" / "tiny.toml", "--report_only", "--results", tmp_path) == 0
    after = {f.name: f.read_bytes() for f in (tmp_path / "tiny").iterdir() if f.is_file()}
    assert after == before and {"report.md", "report.html", "error_by_step.png"} <= before.keys()
    for name in ("report.md", "report.html"):
        text = before[name].decode()
        assert str(results) not in text and "not run: + both, custom, horizon 12, seeds 2" in text


def test_the_page_of_html_needs_no_other_file(finished):
    path, _, results = finished
    status(path, "--report_only", "--results", results)
    text = (results / "tiny" / "report.html").read_text()
    assert text.count("data:image/png;base64,") == text.count("<img") >= 4
    assert not re.search(r'(src|href)="(?!data:)', text)


def test_what_is_kept_names_no_folder_of_this_machine(finished):
    """The files are committed."""
    _, _, results = finished
    for file in (results / "tiny").rglob("*.json"):
        content = json.loads(file.read_text())
        ours = {k: v for k, v in content.items() if k not in ("settings", "identity", "flags")}
        assert str(results.parent) not in json.dumps(ours)  # the flags of a test name its own folders


def test_the_numbers_of_a_report_are_those_of_the_files(finished):
    """Mean and deviation, difference, p and verdict, computed here once more."""
    path, _, results = finished
    status(path, "--report_only", "--results", results)
    text = (results / "tiny" / "report.md").read_text()
    cells = json.loads((results / "tiny" / "plan.json").read_text())["cells"]
    scores: dict[str, list[float]] = {"baseline": [], "both": []}
    for cell in cells:
        if cell["horizon"] == 8:
            details = read_details(results / "tiny" / "cells" / f"{cell['key']}.npz")
            errors = details.get("best", details["last"]).squared
            scores[cell["configuration"]].append(errors.mean(dtype=np.float64))
    for label, values in (("baseline", scores["baseline"]), ("+ both", scores["both"])):
        assert f"| {label} | 6 of 6 | {np.mean(values):.4f} ± {np.std(values, ddof=1):.4f} |" in text
    gaps = np.array(scores["both"]) - np.array(scores["baseline"])
    (row,) = [line for line in text.splitlines() if line.startswith("| + both - baseline, custom 8 | 6 of 6")]
    assert f"{gaps.mean():+.4f} [" in row and f"| {sign_flip_p(gaps):.4f} | {sign_flip_p(gaps):.4f} |" in row
    assert f"{100 * gaps.mean() / np.mean(scores['baseline']):+.2f}%" in row
    assert "not reached" in text and "ETTh1" not in text


def test_a_comparison_without_a_test_shows_no_p(finished):
    found = Findings(finished[2] / "tiny")
    (secondary,) = found.differences("secondary")
    assert secondary.place == Place("custom", 12) and secondary.p is None and secondary.p_holm is None
    assert (
        secondary.seeds == (1,) and "not tested" in secondary.verdict or "no difference" in secondary.verdict
    )
    (primary,) = found.differences("primary")
    assert primary.p_holm == primary.p is not None


def test_a_primary_comparison_is_tested_when_all_its_seeds_are_there_and_not_before(finished, tmp_path):
    """Looking after each seed and stopping at the first p below 0.05 finds effects that are not there."""
    shutil.copytree(finished[2] / "tiny", tmp_path / "tiny")
    plan = json.loads((tmp_path / "tiny" / "plan.json").read_text())
    key = next(c["key"] for c in plan["cells"] if c["configuration"] == "both" and c["seed"] == 6)
    (tmp_path / "tiny" / "cells" / f"{key}.json").unlink()
    (primary,) = Findings(tmp_path / "tiny").differences("primary")
    assert primary.p is None and primary.seeds == (1, 2, 3, 4, 5) and "undecided" in primary.verdict


def test_the_overview_stands_between_its_marks_and_names_what_was_not_run(finished, tmp_path, monkeypatch):
    path, _, results = finished
    monkeypatch.setattr(ablation, "STUDIES", tmp_path / "studies")
    (tmp_path / "studies").mkdir()
    shutil.copy(PROJECT_ROOT / "scripts/studies/top_k.toml", tmp_path / "studies")
    page = tmp_path / "docs" / "page.md"
    page.parent.mkdir()
    page.write_text("before\n<!-- studies: begin -->\nold\n<!-- studies: end -->\nafter\n")
    for _ in range(2):
        assert status(path, "--report_only", "--results", results, "--docs", page) == 0
    text = page.read_text()
    assert (
        text.startswith("before\n") and text.endswith("<!-- studies: end -->\nafter\n") and "old" not in text
    )
    link = re.search(r"\[Tiny\]\((.*?)\)", text)
    assert link and (page.parent / link.group(1)).resolve() == (results / "tiny" / "report.md").resolve()
    assert "17 of 18 planned cells run" in text and "| baseline | 6 of 6 |" in text
    left = next(line for line in text.splitlines() if "studies/top_k.toml" in line)
    assert left.split(" | ")[1:3] == ["12 of 12", "0:36:00"]  # four choices, three seeds, as its file reckons
    page.write_text("no marks")
    assert status(path, "--report_only", "--results", results, "--docs", page) == 2
    assert status(path, "--docs", page, "--results", results) == 2


def test_the_scores_of_all_studies_are_one_table_between_its_marks(finished, tmp_path):
    _, _, results = finished
    page = tmp_path / "page.md"
    page.write_text(f"before\n{SCORES_BEGIN}\nold\n{SCORES_END}\nafter\n")
    for _ in range(2):
        assert write_scores(results, page) == page
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith(f"{SCORES_END}\nafter\n") and "old" not in text
    rows = [line for line in text.splitlines() if "report.md" in line]
    assert [row.split(" | ")[1:3] for row in rows] == [["baseline", "6 of 6"], ["+ both", "6 of 6"]]
    found = Findings(results / "tiny")
    place = Place("custom", 8)
    errors = [result.test("best")["mse"] for result in found.at("both", place).values()]
    assert f"| {np.mean(errors):.4f} ± {np.std(errors, ddof=1):.4f} |" in rows[1]
    page.write_text("no marks")
    with pytest.raises(ValueError, match="scores: begin"):
        write_scores(results, page)


def test_cells_of_other_data_are_not_compared(finished, tmp_path):
    """A data file that was replaced between two cells would pass for a difference between configurations."""
    shutil.copytree(finished[2] / "tiny", tmp_path / "tiny")
    record = next(iter((tmp_path / "tiny" / "cells").glob("*.json")))
    record.write_text(json.dumps({**json.loads(record.read_text()), "data_hash": "another"}))
    with pytest.raises(ValueError, match="same data and test windows"):
        Findings(tmp_path / "tiny")


def test_scores_of_every_nth_window_say_so_and_draw_blocks_of_as_many_rows(finished, tmp_path):
    """Blocks of 168 windows four rows apart would be four weeks, and a table of a quarter read as whole."""
    folder = shutil.copytree(finished[2] / "tiny", tmp_path / "tiny")
    stride = 42
    for file in (folder / "cells").glob("*.json"):
        record = json.loads(file.read_text())
        record["settings"]["test_stride"] = stride
        file.write_text(json.dumps(record))
    found = Findings(folder)
    (primary,) = found.differences("primary")
    sides = [found.at(name, Place("custom", 8)) for name in ("both", "baseline")]
    ours, theirs = (np.stack([r.errors("best", "mse") for r in side.values()]) for side in sides)
    gaps = ours.astype(np.float64) - theirs
    assert primary.over_windows == block_interval(gaps, block=BLOCK // stride)
    (title, *_) = (part.title for part in score_tables(found) if isinstance(part, Table))
    assert f"every {stride}th test window" in title


def test_cells_that_keep_step_0_are_counted(finished):
    """Where training had no effect a difference of nothing reads as a tie."""
    found = Findings(finished[2] / "tiny")
    place = Place("custom", 8)
    cells = found.at("baseline", place).values()
    next(iter(cells)).record["best"]["step"] = 0
    assert score_row(found, "baseline", place)[-1] == "", "begun without a start, step 0 was no candidate"
    for cell in cells:
        cell.record["validations"].insert(0, {"step": 0})
    assert score_row(found, "baseline", place)[-1] == "1 of 6"


def test_primary_comparisons_stay_what_they_were_named(finished, tmp_path):
    path, _, results = finished
    shutil.copytree(results, tmp_path / "results")
    changed = tmp_path / "tiny.toml"
    changed.write_text(path.read_text().replace("[[primary]]", "[[secondary]]", 1))
    with pytest.raises(StudyError, match="named before the first result"):
        plan_study(read_study(changed), tmp_path / "results" / "tiny")
    plan_study(read_study(path), tmp_path / "results" / "tiny")


def test_a_cell_of_another_study_is_taken_over(finished, tmp_path):
    path, _, results = finished
    shutil.copytree(results, tmp_path / "results")
    twin = tmp_path / "twin.toml"
    twin.write_text(path.read_text())
    queue = queue_of([read_study(twin)])
    folders = ("--results", tmp_path / "results", "--runs", tmp_path / "no_runs")
    assert status(twin, "--dry_run", *folders) == 0 and not (tmp_path / "results" / "twin").exists()
    waiting = still_to_run(queue, results=tmp_path / "results", runs=tmp_path / "no_runs")
    assert [(c.configuration, c.horizon, c.seed) for item in waiting for c in item] == [("both", 12, 2)]
    kept = tmp_path / "results" / "twin" / "cells"
    assert len(list(kept.glob("*.npz"))) == len(queue) - 1
    found = [
        f for f in kept.iterdir() if f.read_bytes() != (results / "tiny" / "cells" / f.name).read_bytes()
    ]
    assert not found


def test_runs_without_results_are_kept_without_running_again(finished, tmp_path):
    """A runner that was killed between the end of a run and its results."""
    path, runs, results = finished
    queue = queue_of([read_study(path)])
    ended = {folder.name for folder in runs.iterdir()}
    waiting = still_to_run(queue, results=tmp_path, runs=runs)
    assert len(ended) == 5 and len(waiting) == len(queue) - len(ended)
    for file in (tmp_path / "tiny" / "cells").iterdir():
        assert file.stem in ended
        assert file.read_bytes() == (results / "tiny" / "cells" / file.name).read_bytes()


def test_a_report_without_a_plan_is_an_error(tmp_path, capsys):
    assert status(tmp_path / "none.toml", "--report_only", "--results", tmp_path) == 2
    assert "plan.json" in capsys.readouterr().err


def test_markup_of_a_page_is_escaped_and_its_cells_hold_together(tmp_path):
    (tmp_path / "a.png").write_bytes(b"png")
    page = Page(
        [Paragraph("1 < 2 & `a<b`"), Table("t", ("a", "b"), (("x|y", "**z**"),)), Picture("a.png", '"q"')]
    )
    assert "| x/y | **z** |" in page.markdown() and "![" in page.markdown()
    text = page.html(tmp_path)
    assert "1 &lt; 2 &amp; <code>a&lt;b</code>" in text and "<strong>z</strong>" in text
    assert 'alt="&#34;q&#34;"' in text


# Running: processes of their own.


@pytest.mark.slow
def test_failures_are_told_and_the_others_run(write, tmp_path, capsys):
    """One configuration cannot run at all; the exit status says so, and the next call tries it alone."""
    path = write(
        primary=False,
        seeds=[1],
        configurations='broken = { flags = "--batch_size 100000" }',
        blocks='[[blocks]]\nconfigurations = ["broken"]\nhorizons = [8]\nseeds = [1]\npriority = 0',
    )
    folders = ("--runs", tmp_path / "runs", "--results", tmp_path / "results")
    assert status(path, "--jobs", 2, *folders) == 1
    said = capsys.readouterr()
    assert "--batch_size 100000: expected" in said.out and "failed, status 2: tiny: broken" in said.err
    assert "3 of 4 cells have results" in said.out
    results = tmp_path / "results" / "tiny"
    assert len(list((results / "cells").glob("*.json"))) == 3
    assert "not run: broken" in (results / "report.md").read_text()
    times = {f: f.stat().st_mtime_ns for f in (results / "cells").iterdir()}
    path.write_text(path.read_text().replace("--batch_size 100000", "--batch_size 3"))
    assert status(path, *folders) == 0
    assert all(f.stat().st_mtime_ns == t for f, t in times.items())
    assert len(list((results / "cells").glob("*.json"))) == 4


@pytest.mark.slow
def test_a_runner_that_is_stopped_ends_its_cells_and_goes_on_to_the_same_result(write, tmp_path, monkeypatch):
    """SIGTERM in mid-training: the run saves and ends with it; the next call resumes, bit for bit."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # sums are divided among threads: the same number in each part
    path = write(
        primary=False, seeds=[1], flags="--max_steps 60 --eval_steps 60 --save_steps 20 --dropout 0.2"
    )
    text = path.read_text()
    path.write_text(
        text.replace('["baseline", "gram"]', '["gram"]').replace(
            'configurations = ["naive"]', 'configurations = ["gram"]'
        )
    )
    (cell,) = [c for _, c in cells_of(read_study(path))]
    whole = tmp_path / "whole"
    run_cell(cell, whole)
    keep(whole / "results", cell, folder=whole / cell.key)
    runs, results = tmp_path / "runs", tmp_path / "results"
    command = [sys.executable, "scripts/ablation.py", path, "--runs", runs, "--results", results]
    first = subprocess.Popen(
        [str(word) for word in command], cwd=PROJECT_ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not list(runs.glob("*/*/checkpoint_step_*/checkpoint.pt")):
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    first.send_signal(signal.SIGTERM)
    _, said = first.communicate(timeout=120)
    assert first.returncode == 75, said
    log = (runs / cell.key / "cell.log").read_text()
    assert "stopped by SIGTERM" in log and not is_kept(results, cell)
    assert status(path, "--runs", runs, "--results", results) == 0
    assert "resumed at optimizer step" in (runs / cell.key / "cell.log").read_text()
    record, errors = cell_files(results, cell.study, cell.key)
    assert json.loads(record.read_text())["attempts"] == 2
    wanted = read_details(cell_files(whole / "results", cell.study, cell.key)[1])
    for name, found in read_details(errors).items():
        for field in found._fields:
            np.testing.assert_array_equal(getattr(found, field), getattr(wanted[name], field))


def test_a_cell_that_another_runner_works_on_is_left_to_it(write, tmp_path):
    queue = queue_of([read_study(write())])[:1]
    folder = tmp_path / "runs" / queue[0][0].key
    folder.mkdir(parents=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        outcome = run_queue(
            queue,
            runs=tmp_path / "runs",
            jobs=1,
            before=0,
            finished=lambda e: None,
            seconds_left=lambda q: 0.0,
        )
    assert outcome.busy == queue and not outcome.done and not (folder / "cell.log").exists()
