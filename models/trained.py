"""A trained model as its checkpoint has it, and its forecasts of windows of any series.

Shape legend: W windows, T rows, N variables read, M of them forecast, L lookback, H horizon.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from logging import getLogger
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pandas as pd
import torch
from accelerate.utils import convert_to_fp32
from numpy.typing import NDArray
from torch.utils.data import Dataset

from data_provider import scaling
from data_provider.covariate_tables import named_statics, with_future
from data_provider.covariates import Coding, no_values
from data_provider.data_factory import build_data, data_file, load_series
from data_provider.dataset import WindowDataset
from data_provider.dates import DateRules, DatesKept, RepeatedTimes, dates_after
from data_provider.forecast_windows import forecast_windows, same_series
from data_provider.series import NO_COLUMNS, FillMissing, Series, read_table, series_of
from data_provider.window_texts import SeriesTexts, table_of, texts_of
from models.base import ForecastModel
from models.loading import LoadedRun
from models.TimeLLM import DTYPES
from utils.config import Config
from utils.conformal import Calibration
from utils.errors import UserError
from utils.evaluation_batch import windows_per_pass
from utils.training.checkpoint import CheckpointError
from utils.training.forward import channel_parts, forecast_state, joined, stacked
from utils.training.intervals import std_of
from utils.types import (
    Batch,
    DataBundle,
    ForecastState,
    PanelTable,
    SeriesIdentity,
    Standardisation,
    TextWindows,
)

log = getLogger(__name__)
Array = NDArray[np.float64]
Table: TypeAlias = pd.DataFrame | str | Path


class Forecasts(NamedTuple):
    """Forecasts of some windows, in original units."""

    prediction: Array
    """[W, H, M]."""
    truth: Array
    """[W, H, M]; NaN where it is still to come."""
    start: NDArray[np.int64]
    """[W], the row of the series that each lookback begins at."""
    std: Array
    """[W, M], of each lookback, floored, in standardised units: what scaled intervals are scaled by."""

    def after(self, windows: int) -> Forecasts:
        """Those behind the first ``windows``."""
        rest = slice(windows, None)
        return Forecasts(self.prediction[rest], self.truth[rest], self.start[rest], self.std[rest])


@dataclass(frozen=True)
class ReadOptions:
    """How a table is read; by default as the run read its own."""

    freq: str | None = None
    """Given, it accepts gaps in the dates."""
    date_format: str | None = None
    """How the table's dates are written, where not as those that the model was trained on."""
    time_zone: str | None = None
    """Into which the dates are brought, or which those without have."""
    round_dates: bool = False
    """Whether times that jitter are rounded (where the run did so, they are anyway)."""
    repeated_times: RepeatedTimes | None = None
    """Which row of those of one time is kept, where not the one that the run kept."""
    fill_missing: FillMissing | None = None


class TrainedModel:
    """The model of a checkpoint, with all that its forecasts need: columns, scaler, frequency, intervals.

    One may be used from several threads at once: their passes through the model take turns.
    """

    def __init__(self, run: LoadedRun, *, device: torch.device, batch_size: int | None = None) -> None:
        """On ``device``, ``batch_size`` windows per pass (by default the run's own in evaluation)."""
        self.path: Path = run.path
        """The checkpoint file."""
        self.config: Config = run.config
        self.model: ForecastModel = run.model
        self._llm = run.llm
        self.facts: Mapping[str, Any] = run.facts
        """The checkpoint's content without weights: step, LLM, data, ..."""
        self.device = device
        data = run.facts["data"]
        self.columns: tuple[str, ...] = tuple(data["columns"])
        """The variables read, in order."""
        n_targets = self.config.data.targets_of(len(self.columns))
        self.targets: tuple[str, ...] = self.columns[-n_targets:]
        """The variables forecast, the last M of `columns`."""
        self.batch_size = batch_size or windows_per_pass(
            self.config, forecast=n_targets, on_gpu=device.type != "cpu"
        )
        """Windows per pass."""
        self.frequency: str = data["frequency"]
        self.dates_kept = DatesKept(data.get("date_format"), data.get("time_zone"))
        """How the dates were written that it was trained on; nothing in checkpoints of old."""
        self.standardisation = Standardisation(data["mean"], data["std"])
        """Of each of `columns`."""
        names = SeriesIdentity._fields
        self.identity = SeriesIdentity(**{n: data[n] for n in names}) if names[0] in data else None
        """Of the series that it was trained on; None in checkpoints of old."""
        beside = data.get("covariates")
        self.coding = None if beside is None else Coding.from_state(beside)
        """Of what is known beside the series; None where nothing is."""
        table = data.get("panel")
        self.panel = None if table is None else PanelTable(**table)
        """Of the panel that it was trained on; None of one series."""
        stored = run.facts.get("calibration")
        self.calibration = None if stored is None else Calibration.from_state(stored)
        """Behind the prediction intervals; None where the checkpoint has none."""
        self._lock = threading.Lock()

    @property
    def seq_len(self) -> int:
        """Lookback L, rows."""
        return self.config.data.seq_len

    @property
    def pred_len(self) -> int:
        """Horizon H, rows."""
        return self.config.data.pred_len

    # What it reads.

    def series(
        self,
        table: Table,
        *,
        reading: ReadOptions | None = None,
        future: Table | None = None,
        static: Table | None = None,
    ) -> Series:
        """A table as a checked series of the columns that the model reads.

        Args:
            table: a CSV file, or a data frame with a ``date`` column (or dates as its index).
            reading: by default missing numbers are filled where the run filled them, and gaps in the
                dates are an error.
            future: the known covariates of the horizon, as ``table``; rows of other times are passed over.
            static: what holds of each variable, where that is not as in training: a table whose first column
                has the variables' names.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it lacks columns, has another frequency, dates out of order or twice, or numbers
                that are missing; the message names the first row.
        """
        how = reading or ReadOptions()
        rules = DateRules(
            freq=how.freq,
            date_format=how.date_format,
            time_zone=how.time_zone,
            round_dates=how.round_dates or self.config.data.round_dates,
            repeated_times=how.repeated_times or self.config.data.repeated_times,
        )
        fill_missing = how.fill_missing or self.config.data.fill_missing
        columns = NO_COLUMNS if self.coding is None else self.coding.columns
        self.check_beside(future=future, static=static)
        series = series_of(
            table if isinstance(table, pd.DataFrame) else read_table(Path(table)),
            where="the table" if isinstance(table, pd.DataFrame) else Path(table),
            columns=self.columns,
            frequency=self.frequency,
            rules=rules,
            kept=self.dates_kept,
            fill_missing=fill_missing,
            covariates=columns,
        )
        if self.coding is None:
            return series
        beside = series.covariates or no_values(len(series.values))
        if static is not None:
            table_of_statics = static if isinstance(static, pd.DataFrame) else Path(static)
            statics = named_statics(self.config.data, table_of_statics, self.targets)
            beside = replace(beside, statics=statics)
        series = series.with_covariates(beside)
        if future is None:
            return series
        return with_future(
            series,
            future if isinstance(future, pd.DataFrame) else Path(future),
            dates_after(series.dates[-1], series.frequency, self.pred_len),
            rules=rules,
            kept=self.dates_kept,
            fill_missing=fill_missing,
        )

    def check_beside(self, *, future: Table | None, static: Table | None) -> None:
        """Raise UserError where tables of covariates are given to a model that was trained without."""
        known = self.coding is not None and bool(self.coding.columns.known)
        for flag, given, asked in (
            ("--future", future is not None, known),
            ("--static_path", static is not None, self.config.data.has_statics),
        ):
            if given and not asked:
                raise UserError(f"{flag}: {self.path} was trained without such covariates; leave it out")

    def own_series(self, *, root_path: str | None = None) -> Series:
        """The whole series that the run was trained on, read again from where it lay (none of a panel).

        Args:
            root_path: its folder, if it moved.

        Raises:
            OSError: it is not there.
            CheckpointError: it is not what the run saw.
        """
        if self.panel is not None:
            raise UserError(
                f"{self.path}: expected a run on one series, found one on a panel of {len(self.panel.ids)}; "
                "see its series_scores.csv, and scripts/predict.py for its forecasts"
            )
        data = self._own_config(root_path).data
        series = load_series(data, data_file(data))
        self._check_own(series.content_hash)
        return series

    def own_data(self, *, root_path: str | None = None, text_file: str | None = None) -> DataBundle:
        """The three parts of that series as data sets of windows; raises as `own_series` does.

        Args:
            root_path: its folder, if it moved.
            text_file: the file of its texts, if that moved.
        """
        config = self._own_config(root_path)
        data = build_data(
            config if text_file is None else config.replace(text_file=text_file), model=self.model
        )
        self._check_own(data.content_hash)
        recorded = self.facts["data"].get("texts")
        if data.text_hash != recorded:
            raise CheckpointError(
                f"{self.path}: expected the texts that it was trained on (content {str(recorded)[:12]}), "
                f"found others ({str(data.text_hash)[:12]}) in {text_file or config.text.text_file}"
            )
        return data

    def _own_config(self, root_path: str | None) -> Config:
        config = self._reading_config
        return config if root_path is None else config.replace(root_path=root_path)

    def _check_own(self, content_hash: str) -> None:
        expected = self.facts["data"]["content_hash"]
        if content_hash != expected:
            raise CheckpointError(
                f"{self.path}: expected the data that it was trained on (content {expected[:12]}), found "
                f"others ({content_hash[:12]}) in {self.config.data.file_name}"
            )

    # What it forecasts.

    def texts(self, series: Series, texts: Table | None = None) -> SeriesTexts | None:
        """What the windows of ``series`` see of a table of texts, by default of the file that the run read.

        None of a model that reads no texts.

        Raises:
            OSError: there is no such file.
            UserError: it is at fault, or the model reads no texts and is given some.
        """
        config = self.config.text
        if not config.reads:
            if texts is not None:
                raise UserError(f"{self.path}: expected no texts, as the run was trained without, found some")
            return None
        path = config.text_file if texts is None else texts
        assert path is not None
        seed, read = self.config.training.seed, partial(self.model.read_texts, self._reading_config)
        table = table_of(config, path, names=self.targets, seed=seed)
        return texts_of(config, table, series, targets=self.targets, read=read)

    @property
    def _reading_config(self) -> Config:
        """The settings with the LLM as it is found here."""
        config = self.config.replace(**asdict(self._llm))
        return config.replace(cpu=self.device.type == "cpu")

    def windows(
        self, series: Series, *, first: int, count: int = 1, texts: TextWindows | Table | None = None
    ) -> WindowDataset:
        """The windows of ``series`` that begin at row ``first`` and after; their future may be to come.

        Each knows its place, so that retrieval does not find the window itself where the series is the
        one that was trained on (also with rows added since).

        Args:
            series: of `series`.
            first: row at which the first window begins.
            count: number of windows.
            texts: what they see, of `texts`, or a table of them; by default of the file that the run read.

        Raises:
            ValueError: a lookback is not wholly inside the series.
        """
        if texts is None or isinstance(texts, pd.DataFrame | str | Path):
            texts = self.texts(series, texts)
        own = self.identity is not None and same_series(series, self.identity)
        return forecast_windows(
            series,
            self.standardisation,
            seq_len=self.seq_len,
            pred_len=self.pred_len,
            n_targets=len(self.targets),
            known_as=self.identity.series_id if own and self.identity else series.series_id,
            first=first,
            count=count,
            texts=texts,
            coding=self.coding,
            non_negative=self.config.data.non_negative,
        )

    def states(self, windows: Dataset[Batch]) -> Iterator[tuple[Batch, ForecastState]]:
        """Batches of windows in order, on `device`, with what the model made of them (standardised units).

        Raises:
            ValueError: the model reads the true future (a study's oracle), and it is still to come.
        """
        count = len(windows)  # type: ignore[arg-type]  # torch's Dataset does not declare __len__
        for begin in range(0, count, self.batch_size):
            items = [windows[i] for i in range(begin, min(begin + self.batch_size, count))]
            batch = stacked(items, self.device, self.model.prompts)
            if self.config.gram.retrieval_control == "oracle" and bool(batch.y.isnan().any()):
                raise UserError("--retrieval_control oracle reads the true future, which is still to come")
            yield batch, self._pass(batch)

    @torch.no_grad()
    def _pass(self, batch: Batch) -> ForecastState:
        """One pass, in the precision that the run was trained in."""
        precision = self.config.training.mixed_precision
        # as in the run: a model without weights to train is not wrapped
        half = precision != "no" and any(p.requires_grad for p in self.model.parameters())
        with self._lock, torch.autocast(self.device.type, DTYPES[precision], enabled=half):
            parts = channel_parts(batch, self.config.training.max_channels_per_step)
            state = joined([forecast_state(self.model, part.batch) for part in parts])
        return convert_to_fp32(state) if half else state

    def forecasts(self, windows: Dataset[Batch]) -> Forecasts:
        """Forecasts of windows, in original units.

        Raises:
            ValueError: a forecast is not a finite number.
        """
        scale = Standardisation(*(part[-len(self.targets) :] for part in self.standardisation))
        parts: list[Forecasts] = []
        for batch, state in self.states(windows):
            prediction, truth = (
                scaling.inverse(values.cpu(), scale).numpy() for values in (state.prediction, batch.y)
            )
            if not np.isfinite(prediction).all():
                raise UserError(f"{self.path}: expected finite forecasts, found NaN or infinity")
            own = (batch.start, std_of(batch).double())
            parts.append(Forecasts(prediction, truth, *(part.cpu().numpy() for part in own)))
        return Forecasts(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    def times(self, series: Series, start: NDArray[np.int64]) -> NDArray[np.datetime64]:
        """Times [W, H] of the forecasts of windows from the rows ``start`` [W] on, by the wall clock."""
        return self.dates(series, start).tz_localize(None).to_numpy().reshape(len(start), self.pred_len)

    def dates(self, series: Series, start: NDArray[np.int64]) -> pd.DatetimeIndex:
        """The same times [W * H], in the series' zone."""
        dates = series.dates.append(dates_after(series.dates[-1], series.frequency, self.pred_len))
        rows = start[:, None] + self.seq_len + np.arange(self.pred_len)  # [W, H]
        return dates[rows.reshape(-1)]
