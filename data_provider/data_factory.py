"""From a configuration to everything a run needs of its data, and the loaders over it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data_provider import scaling
from data_provider.covariate_tables import columns_of, named_statics
from data_provider.covariates import Coding, CovariateColumns, CovariateValues, RowsBeside, no_values
from data_provider.dataset import TrainingWindows, WindowDataset
from data_provider.dates import DateRules, frequency_alias
from data_provider.download import LocalFile, ensure_data, file_sha256
from data_provider.long_files import (
    check_columns,
    columns_in,
    columns_in_file,
    long_table,
    read_long_files,
    table_paths,
)
from data_provider.long_table import read_long
from data_provider.m4 import build_competition, build_m4
from data_provider.panel_data import build_panel
from data_provider.panel_windows import PanelDataset
from data_provider.sampler import EpochSampler, SeriesSampler
from data_provider.scaling import LARGEST
from data_provider.series import (
    NO_COLUMNS,
    Series,
    check_covariates,
    column_name,
    identity_of,
    named_table,
    read_csv,
    require_file,
    series_in,
)
from data_provider.splits import Split, Splits, split_rows
from data_provider.suspicious import Constant, Sentinel, constants, sentinels
from data_provider.synthetic import make_series
from data_provider.table_files import table_file
from data_provider.texts import TextTable
from data_provider.time_features import season_rows, time_marks
from data_provider.window_texts import SeriesTexts, hash_until, leak_line, table_of, texts_of
from utils.batches import batched
from utils.config import Config, ConfigError, DataConfig
from utils.data_sets import COMPETITIONS, CUSTOM, DATA_SETS, M4, SHORT_TERM, SYNTHETIC
from utils.errors import UserError
from utils.forecast_columns import reserved
from utils.types import Batch, DataBundle, PromptMaker, SeriesIdentity, Standardisation

HIDDEN = 1e-6
"""Share of a column's deviation below which its middle half is lost in float32 (of 7 digits)."""

GIVEN = "the table"
"""What messages call a table given in Python."""
IN_PYTHON = "a table given in Python"
SAID = 8
"""Columns with something suspicious that are told in a line each."""


def data_file(config: DataConfig) -> LocalFile | None:
    """The CSV file that a configuration names; a public one is downloaded if it is not there.

    None where the series is made.

    Raises:
        FileNotFoundError: if a file of one's own is not there.
        DataUnavailableError: if a public file is neither there nor to be had.
    """
    if config.data == SYNTHETIC:
        return None
    if is_published(config):
        return ensure_data(config.data, config.root_path)[0]
    path = Path(config.root_path) / config.file_name
    require_file(path)
    return LocalFile(path, file_sha256(path))


def files_are_there(config: DataConfig) -> bool:
    """Whether the files that a configuration names can be read without a download."""
    if config.data == SYNTHETIC or (config.data in COMPETITIONS and config.data != M4):
        return True
    if config.data == CUSTOM:
        return (Path(config.root_path) / config.file_name).exists()
    names = [config.file_name]
    if config.data == M4:
        names = [file.name for file in DATA_SETS[M4].files]
    return all((Path(config.root_path) / name).is_file() for name in names)


def is_published(config: DataConfig) -> bool:
    """Whether a configuration names a public file under its own name."""
    files = DATA_SETS[config.data].files
    return any(file.name == config.file_name for file in files)


class GivenTables(NamedTuple):
    """Tables that a caller has in Python, in place of those that a configuration names."""

    series: pd.DataFrame
    static: pd.DataFrame | None = None
    """What holds of each variable, whose names are its first column."""


def load_series(
    config: DataConfig, file: LocalFile | None, *, flags: bool = True, given: GivenTables | None = None
) -> Series:
    """The whole series that a configuration names, in original units; ``file`` from `data_file`.

    ``flags`` is whether ``--freq`` and the flags of dates are about this file, to be named in advice;
    ``given`` tables are read in place of files.

    Raises:
        ValueError: if the file, or --freq or --target, is at fault.
    """
    beside = columns_of(config.known_covariates, config.past_covariates)
    if given is not None:
        series = series_in(
            named_table(given.series, GIVEN), GIVEN, **_reading(config, beside, published=False, flags=flags)
        )
    elif file is None:
        series = _made(config, beside)
    else:
        published = is_published(config)
        how = _reading(config, beside, published=published, flags=flags)
        series = read_csv(file.path, as_published=published, **how)
    if not config.has_covariates:
        return series
    found = series.covariates or no_values(len(series.values))
    if config.has_statics:
        targets = series.columns[-config.targets_of(len(series.columns)) :]
        table: pd.DataFrame | Path = Path(config.root_path) / str(config.static_path)
        if given is not None and given.static is not None:
            table = given.static
        found = replace(found, statics=named_statics(config, table, targets))
    return series.with_covariates(found)


def _made(config: DataConfig, beside: CovariateColumns) -> Series:
    """The built-in series, some of its variables taken for covariates."""
    series = make_series(frequency=frequency_alias(config.freq or "h"))
    check_covariates(beside, series.columns, series.name)
    known, past = (series.select(names).values if names else series.values[:, :0] for names in beside)
    variables = [c for c in series.columns if c not in (*beside.known, *beside.past)]
    if config.features != "M":
        targets = tuple(map(column_name, config.target))
        variables = [c for c in variables if c not in targets and config.features == "MS"] + [*targets]
    if tuple(variables) != series.columns:
        series = series.select(variables)
    if beside == NO_COLUMNS:
        return series
    return series.with_covariates(CovariateValues(beside, known, past))


def _reading(config: DataConfig, beside: CovariateColumns, *, published: bool, flags: bool) -> dict[str, Any]:
    """How a configuration has a table read."""
    return {
        "features": config.features,
        "target": config.target,
        "fill_missing": config.fill_missing,
        "covariates": beside,
        "rules": _date_rules(config, published=published, flags=flags),
    }


def _date_rules(config: DataConfig, *, published: bool, flags: bool) -> DateRules:
    """How a configuration's dates are read."""
    return DateRules(
        freq=config.freq or (DATA_SETS[config.data].frequency if published else None),
        date_format=config.date_format,
        time_zone=config.time_zone,
        round_dates=config.round_dates,
        repeated_times=config.repeated_times,
        flags=flags,
    )


class Prepared(NamedTuple):
    """A series, divided and standardised by its own training part."""

    series: Series
    file: LocalFile | None
    splits: Splits
    standardisation: Standardisation
    values: Tensor
    """[T, N] float32, standardised."""
    marks: Tensor
    """[T, F]."""
    n_targets: int
    coding: Coding | None = None
    beside: RowsBeside | None = None
    floor: Tensor | None = None
    texts: SeriesTexts | None = None

    @property
    def targets(self) -> tuple[str, ...]:
        """The variables that are forecast, the last ones."""
        return self.series.columns[-self.n_targets :]

    def part(self, part: Split, data: DataConfig, **options: Any) -> WindowDataset:
        """The windows of one part."""
        return WindowDataset(
            self.values,
            self.marks,
            part,
            seq_len=data.seq_len,
            pred_len=data.pred_len,
            series_id=self.series.series_id,
            n_targets=self.n_targets,
            texts=self.texts,
            beside=self.beside,
            floor=self.floor,
            **options,
        )


def build_data(config: Config, *, model: Any = None, given: GivenTables | None = None) -> DataBundle:
    """Series, scaler, windows of the three parts and the memory's source.

    The scaler is fitted on the training rows that are used (``--percent``), nothing else. Validation
    takes every ``--eval_stride``-th window, the test every ``--test_stride``-th: of the data set of
    ``--eval_data`` where one is named, which is standardised by its own training part, as the published
    protocol has it.
    Whether ``model`` (a `models.base.ForecastModel`, or its class), where it is given, can forecast that
    data set is checked. ``given`` tables are taken in place of the files that it names.

    Raises:
        OSError: if the data file is not there and can not be had.
        ValueError: if it is at fault or too short for one window per part.
    """
    data = config.data
    if config.run.task_name == SHORT_TERM:
        return build_m4(config) if data.data == M4 else build_competition(config)
    panel = _panel_of(data, given)
    if panel is not None:
        if config.text.text_file is not None:
            raise ConfigError(["--text_file: panels are read without texts; leave it out"])
        return panel
    own = _prepared(data, given=given)
    _check_names(own)
    _check_variables(data, found=len(own.series.columns))
    table = _text_table(config, model, own)
    if table is not None:
        own = own._replace(texts=_texts(config, model, own, table))
    tested = own if data.eval_data is None else _prepared(transfer_config(data), flags=False)
    if tested is not own:
        _check_transfer(config, model, own, tested)
    train = own.part(own.splits.train, data, channel_sampling=data.channel_sampling)
    validation = own.part(own.splits.validation, data, stride=data.eval_stride)
    test = tested.part(tested.splits.test, data, stride=data.test_stride)
    return DataBundle(
        name=own.series.name,
        train=train,
        validation=validation,
        test=test,
        source=TrainingWindows(
            own.values[:, -own.n_targets :],
            own.splits.train,
            seq_len=data.seq_len,
            pred_len=data.pred_len,
            series_id=own.series.series_id,
            marks=own.marks,
            beside=own.beside,
        ),
        standardisation=own.standardisation,
        columns=own.series.columns,
        targets=own.targets,
        frequency=own.series.frequency,
        season=_season(data, own.series),
        content_hash=own.series.content_hash,
        identity=_identity(own.series, own.splits),
        tested=tested.series.name,
        test_targets=tested.series.columns[-tested.n_targets :],
        windows=(len(train), len(validation), own.splits.test.num_windows(data.seq_len, data.pred_len)),
        notes=_notes(data, own, tested)
        | ({} if table is None else _text_notes(config, own, table))
        | ({} if tested is own else _transfer_notes(data, own, tested)),
        date_format=own.series.dates_kept.date_format,
        time_zone=own.series.dates_kept.time_zone,
        constant=tuple(c.column for c in _constants(tested)),
        covariates={} if own.coding is None else own.coding.state(),
        words=() if own.coding is None or own.coding.statics is None else own.coding.statics.words(),
        static_width=None if own.coding is None else own.coding.static_width or None,
        texts=own.texts,
        text_hash=None if table is None else _text_hash(config, own, table),
    )


def _text_table(config: Config, model: Any, own: Prepared) -> TextTable | None:
    """The run's texts; None without a file, or for a model that reads none."""
    path = config.text.text_file
    if path is None or model is None or not model.uses_llm:
        return None
    return table_of(config.text, path, names=own.targets, seed=config.training.seed)


def _texts(config: Config, model: Any, own: Prepared, table: TextTable) -> SeriesTexts | None:
    """The texts for its windows, read by the model's LLM; None where they are not read."""
    if not config.text.reads:
        return None
    read = partial(model.read_texts, config)
    return texts_of(config.text, table, own.series, targets=own.targets, read=read)


def _text_hash(config: Config, own: Prepared, table: TextTable) -> str:
    """Of what training and validation may see."""
    last = own.splits.validation.end - config.data.pred_len - 1
    return hash_until(config.text, table, own.series, last)


def _text_notes(config: Config, own: Prepared, table: TextTable) -> dict[str, str]:
    """How the texts were read, and what they tell before its time."""
    notes = {f"texts {subject}": f"{table.name}: {text}" for subject, text in table.notes.items()}
    return notes | {"text leaks": leak_line(config.text, table, own.series)}


def _panel_of(data: DataConfig, given: GivenTables | None) -> DataBundle | None:
    """The data of a run on a long table, on a file or on a folder of them; None of any other table.

    Raises:
        ConfigError: settings that do not go with a panel.
        UserError: the files are at fault.
    """
    if data.data != CUSTOM:
        return None
    path = Path(data.root_path) / data.file_name
    frame = None if given is None else long_table(given.series)
    columns = columns_in_file(data, path) if frame is None else columns_in(data, list(frame), GIVEN)
    if columns is None:
        return None
    _check_panel(data)
    where: object = path
    if frame is None:
        frame, name = read_long_files(path, columns), path.name if path.is_dir() else table_file(path).stem
        hashes = [file_sha256(one) for one in table_paths(path)]
        whole = hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
        notes = {"file_sha256": whole}
    else:
        check_columns(list(frame), [*columns.ids, columns.date, columns.target], GIVEN)
        where, name, notes = GIVEN, GIVEN, {"data": IN_PYTHON}
    rules = _date_rules(data, published=False, flags=True)
    panel = read_long(frame, where, columns, name=name, rules=rules, fill_missing=data.fill_missing)
    if reserved((columns.target,)):
        raise UserError(
            f"{where}: --target {columns.target}: expected a name that leaves a forecast's own columns "
            "theirs; rename that column in the file"
        )
    return build_panel(panel, data, notes=notes)


def _check_panel(data: DataConfig) -> None:
    """Raise ConfigError for settings that do not go with a panel."""
    wrong = []
    if data.features == "MS":
        wrong.append("--features MS: a panel's series are one variable; use M or S")
    if len(data.target) > 1:
        wrong.append(f"--target: a panel's values are one column, found {' '.join(data.target)}")
    if data.has_covariates:
        wrong.append(
            "--known_covariates, --past_covariates, --static, --static_numbers: they go with a table of one "
            "series; leave them out for a panel"
        )
    if data.eval_data is not None:
        wrong.append("--eval_data: a panel is tested on its own series alone; leave it out")
    if data.non_negative:
        wrong.append("--non_negative: it goes with a table of one series; leave it out for a panel")
    if data.round_dates:
        wrong.append("--round_dates: the times of a panel are not rounded; round them in the file")
    if data.enc_in not in (None, 1):
        wrong.append(f"--enc_in: expected 1 (the variable of a panel) or no flag, found {data.enc_in}")
    if wrong:
        raise ConfigError(wrong)


def transfer_config(data: DataConfig) -> DataConfig:
    """The settings of the data set that ``--eval_data`` names, with the same windows.

    Its folder is ``--root_path`` where both data sets are at home in one, otherwise its own.
    """
    assert data.eval_data is not None
    known = DATA_SETS[data.eval_data]
    together = known.folder == DATA_SETS[data.data].folder
    return replace(
        data,
        data=data.eval_data,
        root_path=data.eval_root_path or (data.root_path if together else known.root_path),
        data_path=data.eval_data_path,
        percent=100,
        freq=None,
        date_format=None,
        time_zone=None,
        round_dates=False,
        repeated_times=None,
        season=None,
        eval_data=None,
        eval_root_path=None,
        eval_data_path=None,
    )


def _prepared(data: DataConfig, *, flags: bool = True, given: GivenTables | None = None) -> Prepared:
    """The series that a configuration names, or a table is given of, divided and standardised."""
    file = None if given is not None else data_file(data)
    series = load_series(data, file, flags=flags, given=given)
    splits = split_rows(
        data.data, len(series.values), seq_len=data.seq_len, pred_len=data.pred_len, percent=data.percent
    )
    n_targets = data.targets_of(len(series.columns))
    if data.non_negative:
        _check_not_negative(series, n_targets)
    original = torch.from_numpy(series.values)  # [T, N]
    standardisation = scaling.fit(original[splits.train.begin : splits.train.end])
    values = scaling.transform_to_float32(original, standardisation)
    _check_scaled(series, values, splits)
    coding = beside = None
    if series.covariates is not None:
        coding = Coding.fit(series.covariates, begin=splits.train.begin, end=splits.train.end)
        _check_static_width(data, coding)
        beside = coding.rows(series.covariates, name=series.name)
    return Prepared(
        series=series,
        file=file,
        splits=splits,
        standardisation=standardisation,
        values=values,
        marks=torch.from_numpy(time_marks(series.dates, series.frequency)),
        n_targets=n_targets,
        coding=coding,
        beside=beside,
        floor=scaling.floor(standardisation)[-n_targets:] if data.non_negative else None,
    )


def training_loader(
    bundle: DataBundle, config: Config, *, num_processes: int = 1, prompts: PromptMaker | None = None
) -> DataLoader[Batch]:
    """Batches of ``--batch_size`` training items in `EpochSampler` order.

    An epoch takes as many items as fill whole optimizer steps (batch size x passes x processes), so
    that it has the same steps however a step is split; the rest is dropped, others in each epoch.
    Call ``loader.sampler.set_epoch`` before each epoch. Iterating leaves the global random state
    as it was. ``prompts`` makes those of each batch, where the model has any.

    Raises:
        ValueError: if there are fewer items than one optimizer step takes.
    """
    training = config.training
    items = len(bundle.train)  # type: ignore[arg-type]
    passes = training.gradient_accumulation_steps
    needed = training.batch_size * num_processes * passes
    if items < needed:
        per = f" on each of {num_processes} processes" if num_processes > 1 else ""
        per += f" for each of {passes} passes (--gradient_accumulation_steps)" if passes > 1 else ""
        raise UserError(
            f"--batch_size {training.batch_size}: expected at least one full batch{per}, found {items} "
            f"training items in {bundle.name}; lower --batch_size or raise --percent"
        )
    return DataLoader(
        bundle.train,
        batch_size=training.batch_size,
        sampler=_sampler(bundle, config, taken=items // needed * needed),
        drop_last=True,
        generator=torch.Generator().manual_seed(training.seed),
        **_workers(config.data.num_workers, prompts),
    )


def _sampler(bundle: DataBundle, config: Config, *, taken: int) -> EpochSampler:
    """The order of the training items."""
    seed = config.training.seed
    if config.data.sampling == "series" and isinstance(bundle.train, PanelDataset):
        return SeriesSampler(bundle.train.places.counts, seed, taken=taken)
    return EpochSampler(len(bundle.train), seed, taken=taken)  # type: ignore[arg-type]


def evaluation_loader(
    dataset: Dataset[Batch], batch_size: int, num_workers: int = 0, prompts: PromptMaker | None = None
) -> DataLoader[Batch]:
    """Batches of all items in order, the last partial one included; the global random state stays."""
    return DataLoader(
        dataset,
        batch_size=batch_size,
        shuffle=False,
        drop_last=False,
        generator=torch.Generator(),
        **_workers(num_workers, prompts),
    )


def _workers(count: int, prompts: PromptMaker | None) -> dict[str, Any]:
    """What makes batches, and in how many processes beside this one."""
    return {
        "collate_fn": partial(batched, prompts=prompts),
        "num_workers": count,
        "persistent_workers": count > 0,
    }


def _check_variables(data: DataConfig, *, found: int) -> None:
    """The family's number of variables, where it is given, is that of the file."""
    if data.enc_in not in (None, found):
        raise ConfigError(
            [
                f"--enc_in: expected {found} (the variables of {data.file_name} with --features "
                f"{data.features}) or no flag, found {data.enc_in}"
            ]
        )


def _check_static_width(data: DataConfig, coding: Coding) -> None:
    """The number of coded statics, where it is given, is that of the table."""
    if data.static_width not in (None, coding.static_width):
        raise ConfigError(
            [
                f"--static_width: expected {coding.static_width} (the numbers and categories of "
                f"{data.static_path}) or no flag, found {data.static_width}"
            ]
        )


def _check_not_negative(series: Series, n_targets: int) -> None:
    """Raise UserError where a target goes below the floor that its forecasts are to have."""
    values = series.values[:, -n_targets:]
    row, column = np.unravel_index(int((values < 0).argmax()), values.shape)
    if values[row, column] < 0:
        raise UserError(
            f"--non_negative: expected targets of 0 or more, found {values[row, column]:g} in {series.name}, "
            f"column {series.columns[-n_targets:][column]!r}, data row {row + 1}; correct it, or leave the "
            "flag out"
        )


def _check_names(own: Prepared) -> None:
    """The variables that are forecast leave the forecast's own columns their names.

    Raises:
        UserError: they do not: the run could write no table of its forecasts.
    """
    taken = reserved(own.series.columns[-own.n_targets :])
    if taken:
        listed = ", ".join(f"{name!r} ({whose})" for name, whose in taken.items())
        raise UserError(
            f"{own.series.name}: expected names that leave a forecast's own columns theirs, found the "
            f"{'variable' if len(taken) == 1 else 'variables'} {listed}; rename in the file, or leave out, "
            f"{'that column' if len(taken) == 1 else 'those columns'}"
        )


def _check_transfer(config: Config, model: Any, own: Prepared, tested: Prepared) -> None:
    """Raise ConfigError where a model of ``own`` can not forecast ``tested``."""
    same = own.series.columns == tested.series.columns
    counts = f"{len(own.series.columns)} of {own.series.name}, found {len(tested.series.columns)}"
    wrong = []
    if config.gram.use_gram and config.gram.retrieval_scope == "variable" and not same:
        wrong.append(
            f"--retrieval_scope: expected all, since {tested.series.name} has other variables than "
            f"{own.series.name}, found variable"
        )
    reads_all = config.data.features == "MS" or not (model is None or model.channel_independent)
    if reads_all and len(own.series.columns) != len(tested.series.columns):
        wrong.append(f"--eval_data {tested.series.name}: expected as many variables as the {counts}")
    reads_marks = config.backbone.use_time_marks or (model is not None and model.reads_time_marks)
    if reads_marks and own.marks.shape[1] != tested.marks.shape[1]:
        wrong.append(
            f"--eval_data {tested.series.name}: expected rows of {own.series.frequency}, whose time marks "
            f"the model reads, found {tested.series.frequency}"
        )
    if wrong:
        raise ConfigError(wrong)


def _transfer_notes(data: DataConfig, own: Prepared, tested: Prepared) -> dict[str, str]:
    """Facts about a test on another data set."""
    name = tested.series.name
    notes = {
        "eval_data": f"tested on {name} alone, of which nothing was trained on; in its own standardised units"
    }
    notes |= {f"eval_{key}": f"{name}: {text}" for key, text in _suspicious(tested).items()}
    if tested.file is not None:
        notes["eval_file_sha256"] = tested.file.sha256
    if tested.series.frequency != own.series.frequency:
        notes["eval_frequency"] = (
            f"{name} has rows of {tested.series.frequency}, the training {own.series.frequency}"
        )
    if DATA_SETS[data.data].prompt != DATA_SETS[data.eval_data or data.data].prompt:
        notes["eval_prompt"] = f"the prompts go on describing {own.series.name} (--prompt_domain 0: none)"
    return notes


def _check_scaled(series: Series, values: Tensor, splits: Splits) -> None:
    """Raise ValueError where extreme values leave nothing of a column, or cannot be computed with.

    In the training part: a deviation that one value makes, beside which the middle half of all rows
    is nothing in float32. Anywhere: numbers whose squares float32 cannot add up.
    """
    part = series.values[splits.train.begin : splits.train.end]
    with np.errstate(over="ignore", invalid="ignore"):
        low, high = np.quantile(part, [0.25, 0.75], axis=0)
        hidden = (high > low) & ((high - low) < HIDDEN * part.std(axis=0))
    for column, name in enumerate(series.columns):
        wrong = values[:, column].abs().nan_to_num(nan=math.inf) > LARGEST
        if not (hidden[column] or bool(wrong.any())):
            continue
        centre = np.median(part[:, column])
        row = int(np.abs(series.values[:, column] - centre).argmax())
        raise UserError(
            f"{series.name}: column {name!r}, data row {row + 1}: expected a number like the column's "
            f"others (half of the training rows lie from {low[column]:g} to {high[column]:g}), found "
            f"{series.values[row, column]:g}; correct it, or remove the column"
        )


def _identity(series: Series, splits: Splits) -> SeriesIdentity:
    """What tells this series from others."""
    end = splits.train.end
    return SeriesIdentity(series.series_id, end, identity_of(series.values[:end], series.columns))


def _season(data: DataConfig, series: Series) -> int:
    """Rows of one season: as asked for, or the data set's, or what the frequency says."""
    known = DATA_SETS[data.data]
    if data.season is None and known.season is not None and known.frequency == series.frequency:
        return known.season
    return data.season or season_rows(series.frequency)


def long_season(season: int, seq_len: int, frequency: str) -> str:
    """What a lookback that is shorter than a season leaves out."""
    return (
        f"a season of {season} rows ({frequency}) is longer than the lookback of {seq_len}: no seasonal "
        f"naive forecast; TAPR's level and GRA-M's keys take the lookback's {seq_len} rows for it"
    )


def _notes(data: DataConfig, own: Prepared, tested: Prepared) -> dict[str, str]:
    """Facts about the data that belong beside every result."""
    notes: dict[str, str] = {}
    file, series, splits = own.file, own.series, own.splits
    if data.data == SYNTHETIC:
        notes["data"] = "built-in synthetic series, no real data"
    elif file is None:
        notes["data"] = IN_PYTHON
    else:
        notes["file_sha256"] = file.sha256
    if data.fill_missing:
        notes["fill_missing"] = f"missing numbers are filled (--fill_missing {data.fill_missing})"
    notes |= series.notes
    season = _season(data, series)
    if season > data.seq_len:
        notes["season"] = long_season(season, data.seq_len, series.frequency)
    if data.percent < 100:
        notes["percent"] = (
            f"scaler and training use rows 0 to {splits.train.end - 1} (--percent {data.percent})"
        )
    strides = (
        ("validation", splits.validation, data.eval_stride, "--eval_stride"),
        ("test", tested.splits.test, data.test_stride, "--test_stride"),
    )
    for name, part, stride, flag in strides:
        if stride > 1:
            windows = part.num_windows(data.seq_len, data.pred_len)
            notes[name] = f"every {stride}th of {windows} {name} windows ({flag} {stride})"
    return notes | _suspicious(own)


def _constants(one: Prepared) -> list[Constant]:
    """The variables that do not change in the training part."""
    return constants(one.series.values, one.series.columns, trained=one.splits.train.end)


def _suspicious(one: Prepared) -> dict[str, str]:
    """What may ruin the scores, a note each, by the column that it is in; of very many a few."""
    notes: dict[str, str] = {}
    kinds: dict[str, Sequence[Sentinel | Constant]] = {
        "sentinel": sentinels(one.series.values, one.series.columns),
        "constant": _constants(one),
    }
    for kind, found in kinds.items():
        for item in found[:SAID]:
            notes[f"{kind} {item.column}"] = f"warning: {item.text}"
        if len(found) > SAID:
            rest = ", ".join(repr(item.column) for item in found[SAID:])
            notes[f"{kind}s"] = f"warning: {len(found) - SAID} columns more like these ({kind}): {rest}"
    return notes
