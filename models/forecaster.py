"""Forecasts of any table by a trained run, in original units and at proper times.

``Forecaster.load(RUN).predict(table)``: see `Forecaster`.

Shape legend: W windows, H horizon, M variables forecast.
"""

from __future__ import annotations

from collections.abc import Sequence
from logging import getLogger
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from data_provider.forecast_windows import same_series
from data_provider.series import Series
from models import forecast_tables
from models.forecast_tables import Array, Backtest
from models.loading import load_run
from models.panel_forecasts import backtest_panel, forecast_panel
from models.trained import Forecasts, ReadOptions, Table, TrainedModel
from utils.conformal import check_level, check_windows, rolling_half_width
from utils.errors import UserError
from utils.forecast_columns import DATE, ORIGIN
from utils.training.checkpoint import CheckpointError
from utils.types import TextWindows

log = getLogger(__name__)


class Forecaster(TrainedModel):
    """A trained run that forecasts tables with the columns it was trained on."""

    @classmethod
    def load(
        cls,
        where: str | Path,
        *,
        device: str | torch.device | None = None,
        batch_size: int | None = None,
        llm_model_path: str | None = None,
    ) -> Forecaster:
        """The forecaster of a checkpoint.

        Args:
            where: a run's folder (its best weights), a step folder or a checkpoint file.
            device: to forecast on; by default the GPU where there is one.
            batch_size: windows per pass; by default the run's own in evaluation.
            llm_model_path: where the run's LLM lies now, if it moved; its content is compared.

        Raises:
            CheckpointError: the checkpoint, or its LLM, is not what it should be.
            LLMUnavailableError: its LLM is not to be found.
            ValueError: ``batch_size`` is below 1.
        """
        if batch_size is not None and batch_size < 1:
            raise UserError(f"--batch_size: expected 1 or more, found {batch_size}")
        on = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        run = load_run(where, device=on, llm_model_path=llm_model_path)
        return cls(run, device=on, batch_size=batch_size)

    def evaluated(
        self,
        series: Series,
        *,
        first: int,
        count: int,
        levels: Sequence[float] = (),
        recalibrate: int | None = None,
        texts: TextWindows | Table | None = None,
    ) -> tuple[Forecasts, dict[float, Array]]:
        """Forecasts of ``count`` windows from row ``first`` on, and by level half their intervals' width.

        The half widths [W, H, M] are in original units, around the forecast.

        Args:
            series: of `series`.
            first: row at which the first window's lookback begins.
            count: number of windows.
            levels: of the intervals, each between 0 and 1.
            recalibrate: take the errors of so many windows right before each forecast, as far as they are
                known by then, in place of those of the run's validation.
            texts: as for `windows`.

        Raises:
            CheckpointError: there is no calibration in the checkpoint, and none is made here.
            LevelError: a level takes more windows of calibration.
            ValueError: there are too few rows.
        """
        self._check_levels(levels, recalibrate)
        if not levels or recalibrate is None:
            found = self.forecasts(self.windows(series, first=first, count=count, texts=texts))
            return found, {level: self.half_width(level, found) for level in levels}
        before = recalibrate + self.pred_len - 1
        if first < before:
            needed = before + self.seq_len + count - 1
            raise UserError(
                f"{series.name}: expected {needed} rows or more, for --recalibrate {recalibrate} windows "
                f"before the first forecast, found {first + self.seq_len + count - 1}"
            )
        windows = self.windows(series, first=first - before, count=before + count, texts=texts)
        every = self.forecasts(windows)
        error = np.abs(every.prediction - every.truth)
        rolled = {
            level: rolling_half_width(error, level, windows=recalibrate, count=count).astype(np.float64)
            for level in levels
        }
        return every.after(before), rolled

    def half_width(self, level: float, found: Forecasts) -> Array:
        """Half the width [W, H, M] of these forecasts' intervals, in original units.

        Raises:
            CheckpointError: the checkpoint has no calibration.
            LevelError: the level takes more windows of calibration.
        """
        self._check_levels([level], None)
        assert self.calibration is not None
        half = self.calibration.half_width(level, torch.from_numpy(found.std)).double()
        return (half * self.standardisation.std[-len(self.targets) :]).numpy()

    @property
    def floor(self) -> float:
        """What no forecast, and no lower bound, is below."""
        return 0.0 if self.config.data.non_negative else -np.inf

    def _check_levels(self, levels: Sequence[float], recalibrate: int | None) -> None:
        """Before any forecast: the intervals that are asked for can be had."""
        for level in levels:
            check_level(level)
            if recalibrate is not None:
                check_windows(level, recalibrate)
            elif self.calibration is not None:
                self.calibration.quantile(level)
            else:
                raise CheckpointError(
                    f"{self.path}: expected a calibration for intervals, found none: the checkpoint is of an "
                    "older version, or of --levels without a number, or not the run's best. --recalibrate N "
                    "calibrates on the last N windows of the table itself"
                )

    def _check_panel(self, levels: Sequence[float], recalibrate: int | None) -> None:
        """Before any forecast of a panel: the intervals that are asked for can be had."""
        if recalibrate is not None:
            raise UserError(
                "--recalibrate: it calibrates on the windows before one forecast; a panel's intervals "
                "are those "
                "of the run's validation: leave it out"
            )
        self._check_levels(levels, None)

    def predict(
        self,
        table: Table,
        *,
        levels: Sequence[float] = (),
        recalibrate: int | None = None,
        reading: ReadOptions | None = None,
        texts: Table | None = None,
        what_if: Table | None = None,
        future: Table | None = None,
        static: Table | None = None,
    ) -> pd.DataFrame:
        """The H rows after the end of ``table``: ``date``, and a column for each variable forecast.

        With ``levels`` each variable has its bounds beside it, such as ``OT_lo_80`` and ``OT_hi_80``; with
        ``what_if`` its forecast under those texts, such as ``OT_what_if``.

        Of a model that was trained on a panel: the H rows after the end of each series of a long table, whose
        columns, ids and order it keeps (`models.panel_forecasts`).

        Args:
            table: as for `series`.
            levels: of the prediction intervals, each between 0 and 1.
            recalibrate: as for `evaluated`.
            reading: as for `series`.
            texts: dated texts, of a model that reads some; by default those of the file that the run read.
            what_if: others, for a second forecast beside the first.
            future: as for `series`.
            static: as for `series`.

        Raises:
            ValueError, OSError: as `series` and `evaluated` do.
        """
        asked = what_if is not None
        forecast_tables.check_names((DATE,), self.targets, levels=levels, what_if=asked)
        if self.panel is not None:
            self._check_panel(levels, recalibrate)
            return forecast_panel(self, table, levels=levels, reading=reading or ReadOptions())
        series = self.series(table, reading=reading, future=future, static=static)
        first, known = len(series.values) - self.seq_len, self.texts(series, texts)
        found, half = self.evaluated(
            series, first=first, count=1, levels=levels, recalibrate=recalibrate, texts=known
        )
        other = self.forecasts(self.windows(series, first=first, texts=what_if)) if asked else None
        return forecast_tables.table(
            {DATE: self.dates(series, found.start)},
            self.targets,
            found.prediction[0],
            half_widths={level: width[0] for level, width in half.items()},
            what_if=None if other is None else other.prediction[0],
            floor=self.floor,
        )

    def backtest(
        self,
        table: Table,
        windows: int,
        *,
        levels: Sequence[float] = (),
        recalibrate: int | None = None,
        reading: ReadOptions | None = None,
        texts: Table | None = None,
        static: Table | None = None,
    ) -> Backtest:
        """Forecasts of the last ``windows`` windows of ``table`` whose future it holds, and their scores.

        Args as for `predict`.

        Raises:
            ValueError, OSError: as `predict` does.
            ValueError: more windows than the table has, or fewer than 1.
        """
        forecast_tables.check_names((ORIGIN, DATE), self.targets, levels=levels, truth=True)
        if self.panel is not None:
            self._check_panel(levels, recalibrate)
            return backtest_panel(self, table, windows, levels=levels, reading=reading or ReadOptions())
        series = self.series(table, reading=reading, static=static)
        first = len(series.values) - self.seq_len - self.pred_len - windows + 1
        if windows < 1 or first < 0:
            most = first + windows
            raise UserError(
                f"--backtest: expected 1 to {max(most, 0)} windows, of {self.seq_len} rows and the "
                f"{self.pred_len} after them ({series.name} has {len(series.values)} rows), found {windows}"
            )
        self._say_trained(series, first=first, count=windows)
        found, half = self.evaluated(
            series,
            first=first,
            count=windows,
            levels=levels,
            recalibrate=recalibrate,
            texts=self.texts(series, texts),
        )
        rows = (windows * self.pred_len, len(self.targets))
        origin = series.dates[found.start + self.seq_len - 1]
        frame = forecast_tables.table(
            {
                ORIGIN: origin.repeat(self.pred_len),
                DATE: self.dates(series, found.start),
            },
            self.targets,
            found.prediction.reshape(rows),
            half_widths={level: width.reshape(rows) for level, width in half.items()},
            truth=found.truth.reshape(rows),
            floor=self.floor,
        )
        std = self.standardisation.std[-len(self.targets) :].numpy()
        scored, mean = forecast_tables.scores(
            found.prediction, found.truth, std=std, targets=self.targets, half_widths=half
        )
        return Backtest(frame, scored, mean)

    def _say_trained(self, series: Series, *, first: int, count: int) -> None:
        """Say how many windows forecast rows that the model was trained on."""
        if self.identity is None or not same_series(series, self.identity):
            return
        trained = min(count, max(0, self.identity.trained_rows - self.seq_len - first))
        if trained:
            log.warning(
                "%d of these %d windows forecast rows that the model was trained on: no test of it",
                trained,
                count,
            )
