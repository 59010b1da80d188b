"""The jobs of docs/guide.md: their commands run as printed, on files made here that begin as printed.

Only the language model is another, tiny one. Of what is printed, words, names, dates and forms are compared;
numbers, which differ between machines and models, are not.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import run_main
from scripts import predict
from tests.conftest import forget_accelerator
from utils.paths import PROJECT_ROOT

JOBS = ("My panel", "Covariates", "Several targets, a floor", "From Python")
TINY = ["--llm_layers", "1", "--d_model", "16", "--d_ff", "16", "--num_tokens", "20"]
"""Beside a preset's flags, and the folder of a tiny LLM."""
NUMBER = re.compile(r"(?<![\w-])-?\d+(\.\d+)?(e[+-]\d+)?(?![\w-])")


def blocks(job: str) -> Iterator[tuple[str, str]]:
    """Language and text of each block of a section."""
    guide = (PROJECT_ROOT / "docs/guide.md").read_text(encoding="utf-8")
    section = guide.split(f"\n## {job}\n")[1].split("\n## ")[0]
    yield from re.findall(r"^```(.*?)\n(.*?)^```$", section, flags=re.M | re.S)


def form(line: str) -> str:
    """A line with every number the same, and single blanks."""
    return " ".join(NUMBER.sub("0", line).split())


def shops() -> pd.DataFrame:
    """Days of four shops: a week's rhythm and chance; one sells nothing, one has just opened."""
    rng = np.random.default_rng(0)
    parts = []
    for name, first, rows, level in (
        ("north", "2024-01-01", 300, 20),
        ("south", "2024-03-01", 240, 8),
        ("closed", "2024-01-01", 100, 0),
        ("new", "2024-10-17", 10, 12),
    ):
        days = pd.date_range(first, periods=rows)
        sold = level + level // 4 * (days.day_of_week >= 5) + rng.integers(0, 5, rows) * (level > 0)
        parts.append(pd.DataFrame({"unique_id": name, "ds": days.astype(str), "y": sold}))
    return pd.concat(parts, ignore_index=True)


def sales() -> pd.DataFrame:
    """Days of two goods: what promotion, rain and the time of the year do, and chance; no ice in winter."""
    rng = np.random.default_rng(0)
    days = pd.date_range("2024-01-01", periods=400)
    promo = np.arange(400) % 30 < 3
    rain = rng.integers(0, 10, 400)
    bread = 40 + 8 * (days.day_of_week >= 5) + 15 * promo - rain + rng.integers(0, 5, 400)
    warm = (30 - 35 * np.cos(2 * np.pi * days.day_of_year / 365)).to_numpy().astype(int)
    ice = np.maximum(warm - 2 * rain + 10 * promo + rng.integers(0, 9, 400), 0)
    table = {"date": days.astype(str), "bread": bread, "ice": ice, "price": 3.0 - 0.5 * promo}
    return pd.DataFrame({**table, "promo": promo.astype(int), "rain": rain})


def write_files(folder: Path) -> None:
    """Every file of the jobs, in ``my/``."""
    (folder / "my").mkdir()
    table, long = sales(), shops()
    table.to_csv(folder / "my/sales.csv", index=False)
    long.to_csv(folder / "my/shops.csv", index=False)
    long.set_axis(["shop", "day", "sold"], axis=1).to_csv(folder / "my/other.csv", index=False)
    goods = {"name": ["bread", "ice"], "kind": ["baked", "frozen"], "shelf_life": [3, 300]}
    pd.DataFrame(goods).to_csv(folder / "my/goods.csv", index=False)
    days = pd.date_range("2025-02-04", periods=7).astype(str)
    future = pd.DataFrame({"date": days, "price": 3.0, "promo": 0})
    future.loc[5:, ["price", "promo"]] = 2.5, 1
    future.to_csv(folder / "my/future.csv", index=False)


def run(command: str, llm: Path, folders: list[Path]) -> None:
    """One command as printed, in this process; RUN is the last of ``folders``, to which a run adds."""
    program, *words = shlex.split(command.replace("RUN", folders[-1].name if folders else "RUN"))
    if program == "head":
        with Path(words[-1]).open(encoding="utf-8") as file:
            print(*islice(file, int(words[1])), sep="")
        return
    script, *flags = words
    assert program == "python" and script in ("run_main.py", "scripts/predict.py"), command
    if script == "scripts/predict.py":
        assert predict.main([*flags, "--cpu"]) == 0
        return
    forget_accelerator()
    own = ["--llm_model_path", str(llm), *TINY] if "--preset" in flags else []
    folders.append(run_main.main([*flags, *own]).run_dir)


@pytest.mark.parametrize("job", JOBS)
def test_a_job_of_the_guide_is_done_by_its_commands(
    job: str,
    tiny_gpt2: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Printed once and never run again, they fail for the reader who types them."""
    write_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    folders: list[Path] = []
    said: set[str] = set()
    kinds = []
    for language, text in blocks(job):
        kinds.append(language.split(" ")[0])
        if kinds[-1] == "csv":
            assert Path(language.split(" ")[1]).read_text(encoding="utf-8").startswith(text), language
        elif kinds[-1] == "bash":
            for command in text.replace("\\\n", " ").splitlines():
                run(command, tiny_gpt2, folders)
        elif kinds[-1] == "python":
            forget_accelerator()
            exec(compile(text, job, "exec"), {})
        else:
            printed = capsys.readouterr()
            said = {form(line) for line in (printed.out + printed.err).splitlines()}
            for line in text.splitlines():
                assert line == "..." or form(line) in said, line
    assert "" in kinds and {"bash", "python"} & set(kinds)
