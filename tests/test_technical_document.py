"""claude3.md says what the program does: its tables beside the parser, a model, a run and a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pandas as pd
import pytest
import torch

from models import TimeLLM_Enhanced
from models.inspection import watched
from scripts.lib.ablation.overview import BEGIN, SCORES_BEGIN
from tests.commands import parser_of
from tests.test_documents import text_of
from utils.config import GROUPS, Config, iter_settings, setting_type
from utils.config_checks import spaced
from utils.paths import PRESETS, PROJECT_ROOT
from utils.reporting.out_of_memory import LADDERS
from utils.training import checkpoint as checkpoints

DOCUMENT = PROJECT_ROOT / "claude3.md"
TYPES = {int: "整数", float: "小数", str: "文字", bool: "开关"}


def section(title: str) -> str:
    """The text below the heading that begins like this, down to the next of its level."""
    level, rest = title.count("#"), text_of(DOCUMENT).split(f"\n{title}", 1)[1]
    return re.split(rf"^#{{1,{level}}} ", rest, maxsplit=1, flags=re.M)[0]


def rows(text: str) -> Iterator[list[str]]:
    """The cells of each row of the tables in a text, headers and rules left out."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    for line in lines:
        yield [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def expected_row(group: str, name: str, default: Any) -> list[str]:
    """Flag, values and default of a setting, as the document writes them."""
    types, choices = setting_type(group, name)
    if types == (tuple,):
        values = [f"若干{TYPES[get_args(get_type_hints(GROUPS[group])[name])[0]]}"]
    else:
        values = [*(TYPES[t] for t in types if t is not type(None)), *(f"`{c}`" for c in choices)]
    if default in (None, "", ()):
        shown = "无"
    elif isinstance(default, bool):
        shown = "开" if default else "关"
    else:
        shown = f"`{spaced(default) if isinstance(default, tuple) else default}`"
    return [f"`--{name}`", " / ".join(values), shown]


def test_every_flag_stands_in_a_table_with_its_values_and_its_default():
    """A new setting needs a row in section 5: | flag | values | default | unit | effect |."""
    shown = {row[0]: row for row in rows(section("## 5 ")) if row[0].startswith("`--") and len(row) == 5}
    wanted = {f"`--{name}`": expected_row(group, name, item.default) for group, name, item in iter_settings()}
    for flag, row in wanted.items():
        assert flag in shown, f"claude3.md, section 5, lacks the row: | {' | '.join(row)} | unit | effect |"
        assert shown[flag][:3] == row
        assert all(shown[flag][3:]), f"{flag}: unit and effect"
    assert shown.keys() == wanted.keys()


def test_each_flag_stands_once():
    flags = [row[0] for row in rows(section("## 5 ")) if row[0].startswith("`--") and len(row) == 5]
    assert len(flags) == len(set(flags))


def test_the_flags_of_the_other_commands_are_theirs():
    checked = 0
    for command, _, flags in (row for row in rows(section("### 5.10 ")) if row[0].startswith("`python")):
        words = command.strip("`").split()
        module = words[2] if words[1] == "-m" else words[1].removesuffix(".py").replace("/", ".")
        if "`--" not in flags:
            continue
        known = {option for action in parser_of(module)._actions for option in action.option_strings}
        named = set(re.findall(r"`(--\w+)", flags))
        assert named <= known, f"{module}: {named - known}"
        checked += 1
    assert checked >= 10


def test_every_script_is_named():
    shown = text_of(DOCUMENT)
    for path in (PROJECT_ROOT / "scripts").iterdir():
        started_by_hand = path.suffix == ".py" or path.name.startswith("TimeLLM_")
        if started_by_hand and path.name != "quickstart.py":  # which quickstart.sh starts
            assert f"scripts/{path.name}" in shown, path.name


@pytest.fixture(scope="module")
def whole_model(tiny_gpt2: Path) -> TimeLLM_Enhanced.Model:
    """A tiny model with every part that there is."""
    settings = {"llm_model_path": str(tiny_gpt2), "llm_layers": 1, "d_ff": 16, "num_tokens": 20}
    return TimeLLM_Enhanced.Model(
        Config.from_flat(
            {
                **settings,
                "use_tapr": True,
                "use_gram": True,
                "retrieval_fusion": "both",
                "retrieval_key": "hybrid",
                "start": "solved",
            }
        )
    )


def test_the_tree_of_modules_is_the_models(whole_model):
    tree = section("### 1.2 ").split("```")[1]
    there = {name for name, _ in whole_model.named_modules()}
    there |= {name for name, _ in whole_model.named_parameters()} | {
        n for n, _ in whole_model.named_buffers()
    }
    named = re.findall(r"^ +([a-z][\w.]*)  ", tree, re.M)
    assert len(named) > 40
    assert set(named) <= there, set(named) - there
    own = {name for name, part in whole_model.named_children() if not name.startswith("llm_")}
    assert own <= set(named), own - set(named)


def test_the_table_of_shapes_is_that_of_a_pass_with_the_defaults(smollm2):
    """One window here, 32 there: the first dimension is all that differs."""
    model = TimeLLM_Enhanced.Model(
        Config.from_flat({"llm_model": smollm2, "use_tapr": True, "use_gram": True})
    )
    retriever = model.gram.retriever
    generator = torch.Generator().manual_seed(0)
    retriever.memory_keys = torch.randn(100, retriever.memory_keys.shape[1], generator=generator)
    retriever.memory_values = torch.randn(100, 96, generator=generator)
    retriever.memory_series = torch.zeros(100, dtype=torch.int64)
    retriever.memory_variable = torch.arange(100) % 7
    retriever.memory_start = torch.arange(100)
    with watched(model.eval()) as record, torch.no_grad():
        model(torch.randn(1, 512, 7, generator=generator).cumsum(1), return_state=True)
    table = {row[0]: row[1:] for row in rows(section("### 3.1 ")) if row[1].startswith("`[")}
    assert list(table) == [stage.name for stage in record.stages]
    for stage in record.stages:
        first = {1: 32, 7: 224}[stage.shape[0]]
        shown = re.findall(r"\d+", table[stage.name][0])
        found = [str(first), *map(str, stage.shape[1:])]
        if stage.name == "LLM Input":  # the prompt's length differs from window to window
            numbers = [int(n) for n in re.findall(r"\d+", table[stage.name][1])]
            assert sum(numbers) == int(shown[1]) and [shown[0], shown[2]] == [found[0], found[2]]
        else:
            assert shown == found, stage


def test_the_measures_against_memory_are_the_programs_in_their_order():
    measures = [row for row in rows(section("### 8.2 ")) if row[0].isdecimal()]
    for (name, ladder), (_, flag, values) in zip(LADDERS.items(), measures, strict=False):
        assert flag == f"`--{name}`"
        assert [int(n) for n in re.findall(r"\d+", values)] == list(ladder)
    assert [flag for _, flag, _ in measures[len(LADDERS) :]] == ["`--no-use_gram`", "`--load_in_4bit`"]


def test_every_preset_and_every_study_is_named():
    presets = {row[0].strip("`") for row in rows(section("### 8.3 ")) if re.fullmatch(r"`\w+`", row[0])}
    assert presets == {path.stem for path in PRESETS.glob("*.args")}
    studies = {row[0].strip("`"): row[1] for row in rows(section("### 6.2 ")) if row[0].startswith("`")}
    files = {
        path.name: path.read_text(encoding="utf-8")
        for path in (PROJECT_ROOT / "scripts/studies").glob("*.toml")
    }
    assert studies.keys() == files.keys()
    for name, varied in studies.items():
        for flag in re.findall(r"--\w+", varied):
            assert flag in files[name], f"{name} does not vary {flag}"


def test_the_scores_are_those_of_the_page_of_results():
    """Both are written by one command; a number that stands in one place alone is out of date.

    What is left to run has no score.
    """
    page = text_of(PROJECT_ROOT / "docs/results.md").split(BEGIN)[1]
    tables = [row for row in rows(page) if len(row) == 5 and "studies/" not in row[3]]
    known = [row for row in tables if row[0] not in ("configuration", "study", "---")]
    shown = [row for row in rows(section("### 6.3 ").split(SCORES_BEGIN)[1]) if "](results/" in row[0]]
    assert shown and all(row[1:] in known for row in shown)
    assert len(shown) == len(known)


# --- a run, its folder, its checkpoint, and the code that reads it


def test_the_folder_and_the_keys_are_those_of_a_run(looked_at):
    tree = section("### 7.1 ").split("```")[1]
    for name in re.findall(r"[├└]── ([\w.]+)", tree):
        pattern = re.sub(r"\d+", "*", name)
        assert list(looked_at.rglob(pattern)), name
    named = {key for row in rows(section("### 7.2 ")) for key in re.findall(r"`(\w+)`", row[0])}
    payload = checkpoints.load(looked_at / checkpoints.BEST)
    assert named == payload.keys()


def python_blocks() -> list[tuple[str, str]]:
    """(document, code) of every block of Python that a document shows; those on my/: test_guide_jobs."""
    documents = [DOCUMENT, PROJECT_ROOT / "README.md", *sorted((PROJECT_ROOT / "docs").glob("*.md"))]
    return [
        (path.name, code)
        for path in documents
        for code in re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.S)
        if "my/" not in code
    ]


@pytest.mark.parametrize("number", range(len(python_blocks())))
def test_every_block_of_python_runs_as_it_stands(number, looked_at, tmp_path, monkeypatch):
    name, code = python_blocks()[number]
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/RUN").symlink_to(looked_at)
    monkeypatch.chdir(tmp_path)
    here: dict[str, Any] = {"frame": pd.read_csv(looked_at.parents[1] / "waves.csv")}
    exec(compile(code, name, "exec"), here)
    if "outputs" in here:
        assert here["outputs"].shape == (2, 8, 2) and torch.isfinite(here["outputs"]).all()
    else:
        assert len(here["forecast"]) == 8 and np.isfinite(here["forecast"].select_dtypes("number")).all(
            axis=None
        )
