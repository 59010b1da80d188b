"""Forecasts of any table by a trained run, in original units and at proper times.

``Forecaster.load(RUN).predict(table)``, or ``Forecaster(**settings).fit(table)`` first: see `Forecaster`.

Shape legend: W windows, H horizon, M variables forecast.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from logging import getLogger
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState

from data_provider.data_factory import GivenTables
from data_provider.dates import date_column
from data_provider.forecast_windows import same_series
from data_provider.long_files import columns_in, long_table
from data_provider.series import Series
from models import forecast_tables
from models.fitting import train
from models.forecast_tables import Array, Backtest
from models.loading import load_run
from models.panel_forecasts import backtest_panel, forecast_panel
from models.registry import ENHANCED_DEFAULTS, MODELS, model_name
from models.trained import Forecasts, ReadOptions, Table, TrainedModel
from utils.config import Config, settings_where
from utils.conformal import check_level, check_windows, rolling_half_width
from utils.data_sets import CUSTOM
from utils.errors import UserError
from utils.forecast_columns import DATE, ORIGIN
from utils.training.checkpoint import BEST, CheckpointError
from utils.types import TextWindows

log = getLogger(__name__)
IN_MEMORY = "(a data frame)"
"""In place of a file's name, where a table is given in Python."""


def _check_order(table: pd.DataFrame) -> None:
    """Raise UserError where rows are not in the order of time, by which they are divided."""
    dates = date_column(table, "the table")
    times = pd.to_datetime(dates, errors="coerce", format="mixed", utc=True)
    if times.notna().all() and not times.is_monotonic_increasing:
        raise UserError(
            "cross_validation: expected rows in the order of time, found others; sort them by date"
        )


class NotFittedError(UserError, AttributeError):
    """Nothing was trained or loaded yet."""


OF_ONE_RUN = settings_where("decides", "place") | {
    "enc_in",
    "static_width",
    "resume_from_checkpoint",
    "init_from",
}
"""What a run's settings say that a fit to another table does not take over."""


class Forecaster(TrainedModel):
    """A run that forecasts tables with the columns it was trained on: trained by `fit`, or loaded.

    In scikit-learn's manners: settings are named as the command line's flags, and a run of the same settings
    on the same table is the same, to the bit. Its folder is a temporary one, which goes with the forecaster,
    unless ``checkpoints`` names another; `save` keeps what `load` needs.
    """

    def __init__(self, **settings: Any) -> None:
        """Not yet fitted; raises ConfigError for settings that no run could have."""
        self._settings = settings
        self._given_config()

    def __getattr__(self, name: str) -> Any:
        """Only for what `fit` and `load` make."""
        if name.startswith("__") or "model" in self.__dict__:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        raise NotFittedError("Forecaster: not fitted; call fit(table) first, or Forecaster.load(RUN)")

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Every setting; ``deep`` is scikit-learn's, and there is nothing deeper."""
        return {**self._given_config().flat(), **self._settings}

    def set_params(self, **settings: Any) -> Forecaster:
        """The same forecaster with other settings, for the next `fit`; raises as making one does."""
        changed = {**self._settings, **settings}
        type(self)(**changed)
        self._settings = changed
        return self

    def _given_config(self, **changes: Any) -> Config:
        """The configuration of the next fit."""
        values = {"data": CUSTOM, **self._settings, **changes}
        if values.get("use_tapr") or values.get("use_gram"):
            values = {**ENHANCED_DEFAULTS, **values}
        if values.get("static_path") is None and (values.get("static") or values.get("static_numbers")):
            values["static_path"] = IN_MEMORY
        return Config.from_flat(values, models=MODELS)

    def fit(self, table: Table | None = None, *, static: pd.DataFrame | None = None) -> Forecaster:
        """Train on a table as a run of these settings does, and keep its best weights.

        Args:
            table: a data frame with a ``date`` column (or dates as its index), or a file; by default the
                data that the settings name.
            static: what holds of each variable, whose names are its first column, in place of
                ``static_path``.

        Raises:
            UserError: settings, data or LLM do not fit; the message says which.
        """
        changes: dict[str, Any] = {}
        if "checkpoints" not in self._settings:
            self._home = TemporaryDirectory(prefix="forecaster-")
            changes["checkpoints"] = self._home.name
        given = None
        if isinstance(table, pd.DataFrame):
            given = GivenTables(table, static)
        elif static is not None:
            raise UserError("static: expected a data frame as table too, or static_path, found a file")
        elif table is not None:
            path = Path(table)
            changes |= {"data": CUSTOM, "root_path": str(path.parent), "data_path": path.name}
        config = self._given_config(**changes)
        if static is not None and not config.data.has_statics:
            raise UserError(
                "static: expected columns of it, named as static or static_numbers, found neither"
            )
        if config.data.static_path == IN_MEMORY and static is None:
            raise UserError("static: expected a data frame of these columns, or static_path, found neither")
        try:
            result = train(config, model=model_name(config), given=given)
        finally:
            if PartialState().num_processes == 1:  # the next run may ask for another precision or device
                AcceleratorState._reset_state(True)
                GradientState._reset_state()
        self.results: dict[str, Any] = result.results
        loaded = self.load(result.run_dir, device="cpu" if config.training.cpu else None)
        self.__dict__.update({k: v for k, v in loaded.__dict__.items() if k not in ("_settings", "_home")})
        return self

    def save(self, where: str | Path) -> Path:
        """Keep what `load` needs in a new folder: the best weights, without the LLM's.

        Raises:
            UserError: there is such a folder, with something in it.
        """
        folder = Path(where)
        source = self.path
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"{folder}: expected a new folder, or an empty one, found something there")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, folder / BEST)
        return folder

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
        found = cls.__new__(cls)
        found._settings = {n: v for n, v in run.config.flat().items() if n not in OF_ONE_RUN}
        TrainedModel.__init__(found, run, device=on, batch_size=batch_size)
        return found

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
            found = self._forecasts(series, first=first, count=count, texts=texts)
            return found, {level: self.half_width(level, found) for level in levels}
        before = recalibrate + self.pred_len - 1
        if first < before:
            needed = before + self.seq_len + count - 1
            raise UserError(
                f"{series.name}: expected {needed} rows or more, for --recalibrate {recalibrate} windows "
                f"before the first forecast, found {first + self.seq_len + count - 1}"
            )
        every = self._forecasts(series, first=first - before, count=before + count, texts=texts)
        error = np.abs(every.prediction - every.truth)
        rolled = {
            level: rolling_half_width(error, level, windows=recalibrate, count=count).astype(np.float64)
            for level in levels
        }
        return every.after(before), rolled

    def _forecasts(
        self, series: Series, *, first: int, count: int, texts: TextWindows | Table | None
    ) -> Forecasts:
        """Forecasts of windows, beside the truth as ``series`` has it: not by way of standardised numbers."""
        found = self.forecasts(self.windows(series, first=first, count=count, texts=texts))
        ahead = found.start[:, None] + self.seq_len + np.arange(self.pred_len)  # [W, H]
        known = ahead < len(series.values)
        truth = np.full_like(found.truth, np.nan)
        truth[known] = series.values[ahead[known], -len(self.targets) :]
        return found._replace(truth=truth)

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

    def _check_panel(self, levels: Sequence[float], recalibrate: int | None, *texts: Table | None) -> None:
        """Before any forecast of a panel: its intervals can be had, and there are no texts."""
        if any(given is not None for given in texts):
            raise UserError("--text_file, --what_if: a panel is forecast without texts; leave them out")
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
        horizon: int | None = None,
        *,
        levels: Sequence[float] = (),
        quantiles: Sequence[float] = (),
        recalibrate: int | None = None,
        reading: ReadOptions | None = None,
        texts: Table | None = None,
        what_if: Table | None = None,
        future: Table | None = None,
        static: Table | None = None,
    ) -> pd.DataFrame:
        """The H rows after the end of ``table``: ``date``, and a column for each variable forecast.

        With ``levels`` each variable has its bounds beside it, such as ``OT_lo_80`` and ``OT_hi_80``; with
        ``what_if`` its forecast under those texts, such as ``OT_what_if``. What is given with dates as its
        index comes back so, and times in the zone in which they were given.

        Of a model that was trained on a panel: the H rows after the end of each series of a long table, whose
        columns, ids and order it keeps (`models.panel_forecasts`).

        Args:
            table: as for `series`.
            horizon: rows of it; by default all that the model was trained to forecast.
            levels: of the prediction intervals, each between 0 and 1.
            quantiles: columns of these, each between 0 and 1, such as ``OT_q10``: bounds of the intervals.
            recalibrate: as for `evaluated`.
            reading: as for `series`.
            texts: dated texts, of a model that reads some; by default those of the file that the run read.
            what_if: others, for a second forecast beside the first.
            future: as for `series`.
            static: as for `series`.

        Raises:
            ValueError, OSError: as `series` and `evaluated` do.
            UserError: ``horizon`` is none that the model forecasts.
        """
        rows = self.pred_len if horizon is None else horizon
        if not 1 <= rows <= self.pred_len:
            raise UserError(
                f"horizon: expected 1 to {self.pred_len} rows, those that the model was trained to forecast, "
                f"found {horizon}; train one with a longer --pred_len for more"
            )
        forecast_tables.check_names(
            (DATE,), self.targets, levels=levels, quantiles=quantiles, what_if=what_if is not None
        )
        if self.panel is not None:
            self._check_panel(levels, recalibrate, texts, what_if)
            self.check_beside(future=future, static=static)
            if quantiles:
                raise UserError(
                    "quantiles: of a panel the bounds of intervals are given; name levels instead"
                )
            whole = forecast_panel(self, table, levels=levels, reading=reading or ReadOptions())
            return whole[np.arange(len(whole)) % self.pred_len < rows].reset_index(drop=True)
        series = self.series(table, reading=reading, future=future, static=static)
        first, known = len(series.values) - self.seq_len, self.texts(series, texts)
        asked = forecast_tables.levels_of(levels, quantiles)
        found, half = self.evaluated(
            series, first=first, count=1, levels=asked, recalibrate=recalibrate, texts=known
        )
        other = None
        if what_if is not None:
            other = self.forecasts(self.windows(series, first=first, texts=what_if)).prediction[0, :rows]
        return forecast_tables.as_given(
            forecast_tables.table(
                {DATE: self.dates(series, found.start)[:rows]},
                self.targets,
                found.prediction[0, :rows],
                half_widths={level: width[0, :rows] for level, width in half.items()},
                what_if=other,
                levels=levels,
                quantiles=quantiles,
                floor=self.floor,
            ),
            table,
        )

    def cross_validation(
        self,
        table: pd.DataFrame,
        n_windows: int = 1,
        *,
        step: int | None = None,
        refit: bool | int = False,
        levels: Sequence[float] = (),
        static: pd.DataFrame | None = None,
    ) -> Backtest:
        """Forecasts of the last ``n_windows`` horizons of ``table``, each by a model that never saw its rows.

        A model of these settings is trained on the rows before the first of them; with ``refit`` again on
        those before each, or before each so many. This forecaster stays as it is.

        Args:
            table: as for `fit`.
            n_windows: horizons that are forecast.
            step: rows from one to the next; by default a horizon.
            refit: whether, or after how many windows, a model is trained again.
            levels: of the prediction intervals.
            static: as for `fit`.

        Raises:
            UserError: there are too few rows, or as `fit` does.
        """
        config = self._given_config()
        if columns_in(config.data, list(long_table(table)), "the table") is not None:
            raise UserError(
                "cross_validation: expected a table of one series, or a column for each, found a long one; "
                "fit on the rows before, and use backtest"
            )
        horizon, length = config.data.pred_len, len(table)
        step = horizon if step is None else step
        ends = [length - horizon - step * place for place in reversed(range(max(n_windows, 0)))]
        needed = config.data.seq_len + horizon
        if n_windows < 1 or step < 1 or ends[0] < needed:
            raise UserError(
                f"cross_validation: expected n_windows and step of 1 or more, and {needed} rows or more "
                f"before the first window, found {n_windows} and {step}, and {ends[0] if ends else length} "
                f"of {length} rows"
            )
        _check_order(table)
        every = int(refit) or n_windows
        parts: list[pd.DataFrame] = []
        found: list[Forecasts] = []
        half: dict[float, list[Array]] = {level: [] for level in levels}
        for place, end in enumerate(ends):
            if place % every == 0:
                model = type(self)(**self._settings).fit(table.iloc[:end], static=static)
            series = model.series(table.iloc[: end + horizon], static=static)
            one, widths = model.evaluated(series, first=end - model.seq_len, count=1, levels=levels)
            parts.append(model._tested(series, one, widths))
            found.append(one)
            for level in levels:
                half[level].append(widths[level])
        joined = (np.concatenate([getattr(one, name) for one in found]) for name in ("prediction", "truth"))
        scored, mean = forecast_tables.scores(
            *joined,
            std=model.standardisation.std[-len(model.targets) :].numpy(),
            targets=model.targets,
            half_widths={level: np.concatenate(widths) for level, widths in half.items()},
        )
        return Backtest(pd.concat(parts, ignore_index=True), scored, mean)

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
            self._check_panel(levels, recalibrate, texts)
            self.check_beside(future=None, static=static)
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
        frame = self._tested(series, found, half)
        std = self.standardisation.std[-len(self.targets) :].numpy()
        scored, mean = forecast_tables.scores(
            found.prediction, found.truth, std=std, targets=self.targets, half_widths=half
        )
        return Backtest(frame, scored, mean)

    def _tested(self, series: Series, found: Forecasts, half: Mapping[float, Array]) -> pd.DataFrame:
        """Forecasts whose truth is known, as a table."""
        rows = (-1, len(self.targets))
        origin = series.dates[found.start + self.seq_len - 1]
        return forecast_tables.table(
            {ORIGIN: origin.repeat(self.pred_len), DATE: self.dates(series, found.start)},
            self.targets,
            found.prediction.reshape(rows),
            half_widths={level: width.reshape(rows) for level, width in half.items()},
            truth=found.truth.reshape(rows),
            floor=self.floor,
        )

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
