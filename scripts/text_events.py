"""How much of made-up events an LLM reads from their notices: ``python scripts/text_events.py --cpu``.

For each split of the wordings a series with events that notices alone announce
(`data_provider.event_series`), those of the test worded in verbs, sizes and templates that are never trained
on. The solved start, then what each reader of the texts adds to it: the pretrained LLM, the notices of other
events, its architecture with random weights, TF-IDF, and no text. Written are ``events.json`` and
``events.txt`` in ``--out``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

if not __package__:  # started as a file: its own folder is on the path, the project's is not
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import pandas as pd
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from torch import Tensor

from data_provider.data_factory import build_data
from data_provider.event_series import EventSeries, with_events
from data_provider.event_wordings import HELD_OUT
from data_provider.synthetic import QUIET, make_series
from layers.retrieval.search import query_rows
from layers.text_fitting import fit_reader
from layers.text_reader import TextReader
from models import TimeLLM
from models.TimeLLM import fit_start, solved_start
from utils.atomic_files import whole_file
from utils.batches import window_batches
from utils.cli import PathFlag
from utils.config import Config
from utils.ending import command
from utils.log import setup_logging
from utils.threads import fit_threads
from utils.training.experiment import resolve
from utils.training.run_folder import write_json
from utils.types import DataBundle, FitSource, TextReading
from utils.windows import per_series

LOOKBACK, HORIZON = 96, 24
"""Rows; an event lasts as long as the horizon."""
QUESTION = "\nThis is a regularly sampled numeric series. In short, demand will be"
ARMS: dict[str, dict[str, Any]] = {
    "pretrained": {},
    "shuffled": {"text_control": "shuffled"},
    "random weights": {"llm_ablation": "random"},
    "TF-IDF": {},
    "no text": {"text_fusion": "none"},
}


class Outcome(NamedTuple):
    """Of one reader on one split."""

    split: int
    arm: str
    notices: int
    """Of the test."""
    explained: float
    """Share of the events' squares that the correction takes away, in each notice's first window."""
    fell: float
    """By how much the squared errors of the forecasts fall there, in the mean square of what events add."""
    folds: float
    """The change of squared errors on folds over wordings, standardised units; 0 without a fit."""
    is_in: bool
    mse: float
    """Of all test windows, standardised units: most have seen a part of their event in numbers."""


class TfidfReading:
    """Words and pairs of them as a `utils.types.TextReading`; weights by the notices before the test."""

    words: Sequence[str] = ()

    def __init__(self, texts: Sequence[str], *, known: Sequence[str]) -> None:
        """Of K ``texts``."""
        counted = TfidfVectorizer(ngram_range=(1, 2)).fit(known).transform(texts)
        self.values = torch.from_numpy(counted.toarray()).float()

    def of(self, places: Tensor) -> Tensor:
        """[..., D]; zeros for a place -1."""
        return torch.where(places[..., None] >= 0, self.values[places.clamp(min=0)], 0.0)


@command(parser=lambda: _parser())
def main(argv: Sequence[str] | None = None) -> int:
    """Run every reader on every split; the exit status."""
    own = _parser().parse_args(argv)
    setup_logging(main_process=True)
    fit_threads()
    found = []
    for split in own.splits:
        for one in outcomes(split, own):
            found.append(one)
            print(f"split {split}, {one.arm}: explained {one.explained:.1%}, MSE {one.mse:.4f}", flush=True)
    frame = pd.DataFrame(found)
    facts = {"rows": own.rows, "seed": own.seed, "llm": own.llm_model, "questions": list(own.text_question)}
    write_json(own.out / "events.json", facts | {"outcomes": [one._asdict() for one in found]})
    text = f"{facts}\n\n{table(frame).to_string()}\n"
    with whole_file(own.out / "events.txt") as file:
        file.write(text.encode())
    print(f"\n{text}{own.out}")
    return 0


def table(frame: pd.DataFrame) -> pd.DataFrame:
    """What each reader explains, split by split and in the mean, percent, and what became of the errors."""
    frame = frame.assign(explained=100 * frame.explained)
    wide = frame.pivot(index="arm", columns="split", values="explained")
    wide = wide.loc[[arm for arm in ARMS if arm in wide.index]]
    by_arm = frame.groupby("arm")
    wide["mean"] = wide.mean(axis=1)
    wide["errors fell"] = 100 * by_arm.fell.mean()
    wide["MSE of all"], wide["in"] = by_arm.mse.mean(), by_arm.is_in.sum()
    return wide.round({**{c: 1 for c in wide if c not in ("MSE of all", "in")}, "MSE of all": 4})


def outcomes(split: int, own: argparse.Namespace) -> Iterator[Outcome]:
    """Of all readers on a split."""
    base = make_series(rows=own.rows, variables=1, seed=own.seed + split, parts=QUIET)
    events = with_events(base, split=split, seed=own.seed + split)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        frame = pd.DataFrame({"date": events.series.dates, "OT": events.series.values[:, -1]})
        frame.to_csv(folder / "series.csv", index=False)
        events.texts.to_csv(folder / "notices.csv", index=False)
        for arm in own.arms:
            yield _outcome(split, arm, events, _config(folder, own, ARMS[arm]))


def _config(folder: Path, own: argparse.Namespace, changes: dict[str, Any]) -> Config:
    flags = {
        "data": "custom", "root_path": str(folder), "data_path": "series.csv", "seq_len": LOOKBACK,
        "pred_len": HORIZON, "label_len": 0, "start": "solved", "llm_model": own.llm_model, "cpu": own.cpu,
        "text_file": str(folder / "notices.csv"), "text_question": own.text_question, "text_count": 1,
        "seed": own.seed, **changes,
    }  # fmt: skip
    return Config.from_flat(flags)


class _Reads:
    """What `build_data` asks of a model, with texts read by TF-IDF."""

    uses_llm, channel_independent, reads_time_marks = True, True, False

    def __init__(self, known: Sequence[str]) -> None:
        self.known = known

    def read_texts(self, config: Config, texts: Sequence[str]) -> TextReading:
        """Of the texts."""
        return TfidfReading(texts, known=self.known)


def _outcome(split: int, arm: str, events: EventSeries, config: Config) -> Outcome:
    """Of one reader."""
    known = events.texts.text[~events.held_out].tolist()
    data = build_data(config, model=_Reads(known) if arm == "TF-IDF" else TimeLLM.Model)
    config = resolve(config, data)
    start = solved_start(config, retrieves=False)
    dated = config.text.text_file is not None
    fit_start(start, config, FitSource(data.source, data.validation), keeps_calendar=dated)

    def begun(lookback: Tensor, query: Any, marks: Tensor | None) -> Tensor:
        mean, std = start.mean_and_std(lookback)
        return start(lookback, query, marks=marks).joint * std + mean

    reader = None
    if data.texts is not None:
        width = data.texts.reading.of(torch.tensor([0])).shape[-1]
        reader = TextReader(width=width, variables=1, horizon=HORIZON)
        fit_reader(
            reader,
            data.texts,
            data.source,
            data.validation,
            forecast=begun,
            seq_len=LOOKBACK,
            block=start.block,
        )
    return _scored(split, arm, events, data, begun, reader)


@torch.no_grad()
def _scored(
    split: int, arm: str, events: EventSeries, data: DataBundle, begun: Any, reader: TextReader | None
) -> Outcome:
    """Over the test windows."""
    std = float(data.standardisation.std[-1])
    first = set((events.rows[events.held_out] + 1).tolist())  # at a lag of a row
    errors, taken, whole, fell, notices = [], 0.0, 0.0, 0.0, 0
    for batch in window_batches(data.test):
        last = (batch.start + LOOKBACK - 1).numpy()
        query = query_rows(
            batch.y[:, 0], start=batch.start, series_id=batch.series_id, variable=batch.variable
        )
        forecast = begun(per_series(batch.x), query, batch.x_mark[:, -1]).double()
        own = torch.zeros_like(forecast)
        if reader is not None:
            own = reader(batch.text, batch.text_age, batch.variable)[..., 0].double()
        behind = torch.from_numpy(events.hidden(last, HORIZON)) / std
        off = batch.y[..., 0] - forecast
        errors.append((off - own).square().mean(dim=1))
        seen = torch.tensor([row in first for row in last.tolist()])
        taken += float((behind[seen] - own[seen]).square().sum())
        whole += float(behind[seen].square().sum())
        fell += float((off.square() - (off - own).square())[seen].sum())
        notices += int(seen.sum())
    return Outcome(
        split=split,
        arm=arm,
        notices=notices,
        explained=1 - taken / whole,
        fell=fell / whole,
        folds=0.0 if reader is None else float(reader.evidence[0, 1, 0]),
        is_in=reader is not None and bool(reader.decided[0]),
        mse=float(torch.cat(errors).mean()),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split(":")[0])
    add = parser.add_argument
    add("--llm_model", default="SMOLLM2", help="as of a run [%(default)s]")
    add("--splits", type=int, nargs="+", default=range(len(HELD_OUT)), help="of the wordings [all]")
    add("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM", help="readers [all]")
    add("--rows", type=int, default=20_000, help="of each series [%(default)s]")
    add("--seed", type=int, default=2021, help="of series, notices and random weights [%(default)s]")
    add("--text_question", nargs="+", default=[QUESTION], help="behind each notice")
    add("--cpu", action="store_true", help="do not use a GPU")
    add("--out", action=PathFlag, kind=Path, default=Path("results/text"), help="folder [%(default)s]")
    return parser


if __name__ == "__main__":
    sys.exit(main())
