"""What a forecast reads of dated texts: nothing known later, the same in every path."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import run_main
from data_provider.data_factory import build_data
from models import Forecaster
from models.inspection import prompt_lines
from models.registry import MODELS
from scripts import predict
from scripts.lib.inspect.explanation import explain
from scripts.lib.inspect.options import LoadedRun
from scripts.lib.inspect.texts import text_lines
from tests.conftest import forget_accelerator
from utils.config import Config, ConfigError
from utils.errors import UserError
from utils.reporting.run_header import text_line
from utils.training.experiment import RunResult, resolve
from utils.training.forward import stacked

ROWS, LOOKBACK, HORIZON = 300, 32, 8
TRAINED = 210
"""Rows of the training part."""
Runs = Callable[..., RunResult]


def notices(*, changed_after: int | None = None) -> pd.DataFrame:
    """One every fifth row, of 30 wordings; other words from a row on."""
    rows = np.arange(3, ROWS, 5)
    dates = pd.date_range("2020-01-01", periods=ROWS, freq="h")[rows]
    words = ["load goes up by", "load goes down by", "nothing happens but"]
    kinds = ["much", "a little", "one", "two", "five", "more than ten", "less", "some", "no"]
    texts = [f"{words[i % 3]} {kinds[(i // 3) % 9]} {'today' if i % 2 else 'here'}" for i in range(len(rows))]
    if changed_after is not None:
        texts = [
            t if row <= changed_after else f"{t[::-1]} 12/31/2031" for t, row in zip(texts, rows, strict=True)
        ]
    return pd.DataFrame({"end": dates.astype(str), "text": texts})


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, write_series: Any) -> Path:
    folder: Path = tmp_path_factory.mktemp("texts")
    write_series(folder / "waves.csv", ROWS)
    notices().to_csv(folder / "notices.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def settings(home: Path, tiny_settings: Any) -> Callable[..., dict[str, Any]]:
    def made(**changes: Any) -> dict[str, Any]:
        whole = {**tiny_settings(home / "waves.csv", home / "checkpoints"), "start": "solved"}
        whole |= {"text_file": str(home / "notices.csv"), "text_tokens": 12, "text_count": 2, "max_steps": 2}
        return {**whole, "text_question": ["\nSo load goes"], **changes}

    return made


@pytest.fixture(scope="module")
def runs(settings: Callable[..., dict[str, Any]]) -> Runs:
    """Runs by their changes, each made once."""
    made: dict[str, RunResult] = {}

    def run(model: str = "TimeLLM", **changes: Any) -> RunResult:
        name = repr((model, sorted(changes.items())))
        if name not in made:
            forget_accelerator()
            made[name] = run_main.train(Config.from_flat(settings(**changes)), model=model)
        return made[name]

    return run


def weights(run: RunResult) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(run.run_dir / "checkpoint", weights_only=True)["model"]
    return found


@pytest.mark.parametrize("fusion", ["asked", "prompt"])
def test_no_later_text_moves_a_forecast(fusion, runs, settings, home):
    """Training, validation, test and predict: with all later words changed, equal to the bit."""
    later = home / f"later_{fusion}.csv"
    notices(changed_after=TRAINED + 28).to_csv(later, index=False)
    run = runs(text_fusion=fusion)
    other = runs(text_fusion=fusion, text_file=str(later))
    own, its = weights(run), weights(other)
    assert own.keys() == its.keys() and all(torch.equal(own[name], its[name]) for name in own)
    f = Forecaster.load(run.run_dir, device="cpu")
    series = f.own_series()
    for last in (100, 250):
        first = last - LOOKBACK + 1
        cut = notices(changed_after=last - 1)
        forecasts = [
            f.forecasts(f.windows(series, first=first, texts=texts)).prediction
            for texts in (None, cut, notices(changed_after=last - 12))
        ]
        assert np.array_equal(forecasts[0], forecasts[1])
        assert not np.array_equal(forecasts[0], forecasts[2]), "what is seen does move it"


def test_resumed_and_tested_runs_read_no_later_text(runs, settings, home):
    """A resumed run with other later texts goes on to the same weights; with earlier ones it is refused."""
    step = runs(save_steps=1, max_steps=1).run_dir / "checkpoint_step_1"
    ends = []
    for name, row in (("same", None), ("later", TRAINED + 28)):
        path = home / f"resumed_{name}.csv"
        notices(changed_after=row).to_csv(path, index=False)
        forget_accelerator()
        given = settings(text_file=str(path), max_steps=3, save_steps=3, resume_from_checkpoint=str(step))
        ends.append(weights(run_main.train(Config.from_flat(given), model="TimeLLM")))
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    earlier = home / "earlier.csv"
    notices(changed_after=50).to_csv(earlier, index=False)
    forget_accelerator()
    given = settings(text_file=str(earlier), max_steps=3, resume_from_checkpoint=str(step))
    with pytest.raises(UserError, match="data texts: the checkpoint saw"):
        run_main.train(Config.from_flat(given), model="TimeLLM")


def test_the_same_forecast_in_the_test_and_by_the_forecaster(runs):
    """What explain and predict read must be what the run's own test read."""
    f = Forecaster.load(runs().run_dir, device="cpu")
    data = f.own_data()
    own = f.forecasts(data.test)
    count = len(own.start)
    again = f.forecasts(f.windows(f.own_series(), first=int(own.start[0]), count=count))
    assert np.array_equal(again.prediction, own.prediction)


def test_predict_gives_both_forecasts(runs, home):
    """What if the strike ends: the forecast of the edited file beside the first."""
    f = Forecaster.load(runs().run_dir, device="cpu")
    plain = f.predict(home / "waves.csv")
    both = f.predict(home / "waves.csv", what_if=notices(changed_after=ROWS - 20))
    assert list(both) == ["date", "a", "a_what_if", "OT", "OT_what_if"]
    assert both[["date", "a", "OT"]].equals(plain) and not np.array_equal(both.OT, both.OT_what_if)
    same = f.predict(home / "waves.csv", texts=home / "notices.csv", what_if=home / "notices.csv")
    assert np.array_equal(same.OT, same.OT_what_if)


def test_explain_tells_the_texts_their_weights_and_the_forecast_without(runs):
    f = Forecaster.load(runs().run_dir, device="cpu")
    run = LoadedRun(f, None)
    found = explain(run, 120, words=False)["variables"][1]["texts"]
    last = 120 + LOOKBACK - 1
    own = notices()
    visible = [own.text[i] for i, row in enumerate(np.arange(3, ROWS, 5)) if row <= last - 1][-2:]
    assert [t["text"] for t in found["seen"]] == visible
    assert sum(t["weight"] for t in found["seen"]) == pytest.approx(1) and found["moved"] > 0
    lines = list(text_lines(found))
    assert len([line for line in lines if "weight" in line and "known for" in line]) == 2


def test_a_run_says_the_leaks_in_one_line(settings):
    data = build_data(Config.from_flat(settings()), model=MODELS["TimeLLM"])
    assert "texts that name a day" in data.notes["text leaks"] and "\n" not in data.notes["text leaks"]


def test_the_calendar_stands_beside_texts_always(runs):
    """A text says what day it is: without the calendar in every arm its gain would be the calendar's."""
    for fusion in ("none", "asked", "prompt"):
        assert bool(weights(runs(text_fusion=fusion))["start.decided"][0])


@pytest.mark.parametrize("control", ["shuffled", "constant", "undated"])
def test_a_control_has_the_same_times_and_other_texts(control, settings):
    found: list[Any] = [
        build_data(Config.from_flat(settings(text_control=c)), model=MODELS["TimeLLM"]).texts
        for c in ("none", control)
    ]
    plain, other = found
    last = torch.arange(40, 200)
    assert all(torch.equal(a, b) for a, b in zip(plain.seen(last), other.seen(last), strict=True))
    assert plain.table.texts != other.table.texts or control == "undated"


def test_prompts_hold_the_texts_before_the_statistics(runs):
    f = Forecaster.load(runs(text_fusion="prompt").run_dir, device="cpu")
    batch = stacked([f.windows(f.own_series(), first=100)[0]], f.device)
    text = prompt_lines(f.model, batch, list(f.targets))[0]
    assert "Known for 2 rows: load goes" in text.split("Range")[0]
    assert text.index("Known for 7 rows") < text.index("Known for 2 rows") < text.index("Range")


PARTS: list[dict[str, Any]] = [
    {"channel_sampling": "single"},
    {"features": "MS"},
    {"max_channels_per_step": 1, "text_fusion": "prompt"},
    {"start": "none", "llm_ablation": "random"},
]


@pytest.mark.parametrize("changes", PARTS, ids=str)
def test_texts_go_with_the_other_settings(changes, runs):
    f = Forecaster.load(runs(**changes).run_dir, device="cpu")
    assert np.isfinite(f.forecasts(f.windows(f.own_series(), first=10, count=3)).prediction).all()


def test_texts_go_with_both_modules_and_by_series(runs, home):
    """Texts about one variable reach it alone."""
    frame = notices()
    frame["series"] = np.where(np.arange(len(frame)) % 2, "a", "OT")
    frame.loc[:1, "series"] = "unknown"
    frame.to_csv(home / "by_series.csv", index=False)
    run = runs("TimeLLM_Enhanced", use_tapr=True, use_gram=True, text_file=str(home / "by_series.csv"))
    f = Forecaster.load(run.run_dir, device="cpu")
    series = f.own_series()
    changed = frame.assign(
        text=[t if s != "OT" else t[::-1] for t, s in zip(frame.text, frame.series, strict=True)]
    )
    own, other = (f.forecasts(f.windows(series, first=120, texts=t)).prediction for t in (None, changed))
    assert np.array_equal(own[..., 0], other[..., 0]) and not np.array_equal(own[..., 1], other[..., 1])


def test_weights_of_a_run_without_texts_begin_one_with_them(runs):
    plain = runs(text_file=None)
    assert not any(name.startswith("text_reader") for name in weights(plain))
    assert any(
        name.startswith("text_reader") for name in weights(runs(init_from=str(plain.run_dir / "checkpoint")))
    )


# Bad input: one clear error, or a note.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_lag": "soon"}, "--text_lag: expected a number of rows"),
        ({"text_columns": ["headline"]}, "--text_columns, 'headline', found end, text"),
        ({"text_control": "other_series"}, "text_control other_series: expected texts of two series"),
    ],
)
def test_a_setting_that_can_not_be_is_told(changes, message, settings):
    with pytest.raises(UserError, match=message):
        build_data(Config.from_flat(settings(**changes)), model=MODELS["TimeLLM"])


def test_settings_that_do_not_fit_are_told():
    for changes, message in (
        ({"llm_ablation": "none"}, "--text_fusion asked: expected an LLM that reads"),
        ({"eval_data": "ETTh2"}, "--text_file: it is about --data alone"),
        ({"data": "M4", "task_name": "short_term_forecast"}, "--text_file: expected series with dates"),
    ):
        with pytest.raises(ConfigError, match=message):
            Config.from_flat({"text_file": "x.csv", **changes})


BAD_TABLES = {
    "times that cannot be read": (lambda t: t.assign(end=["soon", *t.end[1:]]), "'end'"),
    "end before start": (lambda t: t.assign(start="2031-01-01"), "expected an end at or after the start"),
    "no texts at all": (lambda t: t.assign(text="NA"), "expected texts in column text"),
}


@pytest.mark.parametrize("kind", BAD_TABLES)
def test_a_table_that_can_not_be_is_told(kind, settings, tmp_path):
    change, message = BAD_TABLES[kind]
    change(notices()).to_csv(tmp_path / "bad.csv", index=False)
    with pytest.raises(UserError, match=message) as caught:
        build_data(Config.from_flat(settings(text_file=str(tmp_path / "bad.csv"))), model=MODELS["TimeLLM"])
    assert "bad.csv" in str(caught.value)


def test_odd_texts_are_read_with_a_note(settings, tmp_path):
    """Very long ones, HTML, NA, languages of bytes, and rows backwards."""
    table = notices()
    table.loc[:4, "text"] = ["word " * 9000, "<p>load &amp; more</p>", "NA", "負荷は上がる 🙂", "ok"]
    table[::-1].to_csv(tmp_path / "odd.csv", index=False)
    data = build_data(
        Config.from_flat(settings(text_file=str(tmp_path / "odd.csv"))), model=MODELS["TimeLLM"]
    )
    said = " ".join(data.notes.values())
    assert all(word in said for word in ("longer than", "HTML", "have no text", "not in the order of time"))
    texts: Any = data.texts
    assert torch.isfinite(texts.reading.of(torch.arange(len(texts.table)))).all()
    assert texts.table.texts[1] == "load & more"


def test_the_command_writes_both_forecasts_and_refuses_what_can_not_be(runs, home, tmp_path):
    words = ["--checkpoint", str(runs().run_dir), "--input", str(home / "waves.csv"), "--cpu"]
    words += ["--output", str(tmp_path / "out.csv"), "--what_if", str(home / "edited.csv")]
    notices(changed_after=ROWS - 20).to_csv(home / "edited.csv", index=False)
    assert predict.main(words) == 0
    assert "OT_what_if" in pd.read_csv(tmp_path / "out.csv")
    assert predict.main([*words, "--overwrite", "--backtest", "2"]) == 2
    plain = Forecaster.load(runs(text_file=None).run_dir, device="cpu")
    with pytest.raises(UserError, match="expected no texts, as the run was trained without"):
        plain.predict(home / "waves.csv", texts=notices())


def test_what_texts_in_prompts_cost_is_said_before(settings):
    config = Config.from_flat(settings(text_fusion="prompt"))
    config = resolve(config, build_data(config, model=MODELS["TimeLLM"]))
    line = text_line(config, MODELS["TimeLLM"](config))
    assert "2 of up to 12 tokens" in line and "times the work" in line
