"""Every data set by name: where its files come from, how it is divided, and the flags that suit it.

One table, `DATA_SETS`; whatever differs between data sets is read from it. Sources of the values:
ETT and its borders from Informer (Zhou et al. 2021), the other long series and their fractions from
Autoformer (Wu et al. 2021), M4 from Makridakis et al. (2020). Of all checksums only ETTh1's was taken
from the file itself; the others are recorded at the first download, beside the file, and compared from
then on (`data_provider.download`). The addresses were not tried where this table was written, but for
M4's, which other packages use.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol


class M4Pattern(NamedTuple):
    """One group of the M4 competition's series, and what its published code takes from it.

    Source: Makridakis, Spiliotis and Assimakopoulos, "The M4 Competition", International Journal of
    Forecasting 2020, and its repository; the share of recent history from N-BEATS (Oreshkin et al. 2020).
    """

    horizon: int
    """Rows to forecast."""
    season: int
    """Rows of one season in Naive2 and MASE."""
    history: float
    """Training windows begin their forecast within so many horizons of a series' end."""
    frequency: str
    """pandas alias of its step."""


M4_PATTERNS: Mapping[str, M4Pattern] = MappingProxyType(
    {
        "Yearly": M4Pattern(6, 1, 1.5, "YE"),
        "Quarterly": M4Pattern(8, 4, 1.5, "QE"),
        "Monthly": M4Pattern(18, 12, 1.5, "ME"),
        "Weekly": M4Pattern(13, 1, 10, "W"),
        "Daily": M4Pattern(14, 1, 10, "D"),
        "Hourly": M4Pattern(48, 24, 10, "h"),
    }
)


CUSTOM, SYNTHETIC, M4 = "custom", "synthetic", "M4"
SHORT_TERM = "short_term_forecast"
"""The task of M4, in which each series is a short one."""
HOME = "./dataset"
DEFAULT_PATTERN = "Monthly"
M4_ONLY: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "features": ("M", "S"),
        "percent": (100,),
        "eval_data": (None,),
        "data_path": (None,),
        "use_time_marks": (False,),
        "start": ("none", "auto"),
        "known_covariates": ((),),
        "past_covariates": ((),),
        "static_path": (None,),
        "non_negative": (False,),
    }
)
"""Settings that M4 leaves no choice in."""
_ETT_SOURCE = "https://raw.githubusercontent.com/zhouhaoyi/ETDataset/main/ETT-small"
_HUB_SOURCE = "https://huggingface.co/datasets/thuml/Time-Series-Library/resolve/main"
_M4_SOURCE = "https://raw.githubusercontent.com/Mcompetitions/M4-methods/master/Dataset"
_MONTH = 30 * 24
"""Rows of an ETT month at hourly rate: 30 days each."""
_ETT_MONTHS = (12, 4, 4)


class DataFile(NamedTuple):
    """Where a file comes from and what it must be."""

    name: str
    """Its name inside the data set's folder."""
    url: str
    sha256: str | None = None
    """Expected checksum, or None where none is pinned."""


@dataclass(frozen=True)
class DataSet:
    """What a run needs to know of a data set beside its files."""

    files: tuple[DataFile, ...] = ()
    """None for a file of the user's own, and for a series that is made."""
    folder: str = "ETT-small"
    """Where the files lie inside `HOME`."""
    parts: tuple[int, int, int] | None = None
    """Rows of training, validation and test where they are fixed; otherwise fractions 0.7, 0.1, 0.2."""
    rows: int | None = None
    """Length of the published file."""
    variables: int | None = None
    """Number of its variables; a run reads the number from the file."""
    frequency: str | None = None
    """pandas alias of its step."""
    season: int | None = None
    """Rows of one season."""
    prompt: str = CUSTOM
    """Which text of the prompt bank describes it."""
    flags: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """Defaults of settings where they differ from the general ones."""

    @property
    def root_path(self) -> str:
        """The folder that its files are looked for in by default."""
        return f"{HOME}/{self.folder}"


def _ett(name: str, *, per_hour: int, sha256: str | None = None) -> DataSet:
    """An ETT file: 12, 4 and 4 months, the rest of the file unused."""
    train, validation, test = (months * _MONTH * per_hour for months in _ETT_MONTHS)
    return DataSet(
        files=(DataFile(f"{name}.csv", f"{_ETT_SOURCE}/{name}.csv", sha256),),
        parts=(train, validation, test),
        rows=17_420 * per_hour,
        variables=7,
        frequency="h" if per_hour == 1 else "15min",
        season=24 * per_hour,
        prompt="ETT",
    )


def _hub(folder: str, name: str, **facts: Any) -> DataSet:
    """One of the long series that Autoformer collected."""
    return DataSet(
        files=(DataFile(name, f"{_HUB_SOURCE}/{folder}/{name}"),),
        folder=folder,
        flags=MappingProxyType({"root_path": f"{HOME}/{folder}", **facts.pop("flags", {})}),
        **facts,
    )


_ILLNESS_FLAGS = {"seq_len": 104, "label_len": 18, "pred_len": 24, "patch_len": 24, "stride": 2}
"""Two years back, horizons 24 to 60, as PatchTST (Nie et al. 2023) and after."""
_HOURLY_AND_WIDE: dict[str, Any] = {
    "frequency": "h",
    "season": 24,
    "flags": {"max_channels_per_step": 8},  # as many series as ETTh1 has, about; the result is the same
}

DATA_SETS: Mapping[str, DataSet] = MappingProxyType(
    {
        "ETTh1": _ett(
            "ETTh1",
            per_hour=1,
            sha256="f18de3ad269cef59bb07b5438d79bb3042d3be49bdeecf01c1cd6d29695ee066",
        ),
        "ETTh2": _ett("ETTh2", per_hour=1),
        "ETTm1": _ett("ETTm1", per_hour=4),
        "ETTm2": _ett("ETTm2", per_hour=4),
        "ECL": _hub(
            "electricity", "electricity.csv", rows=26_304, variables=321, prompt="ECL", **_HOURLY_AND_WIDE
        ),
        "Traffic": _hub(
            "traffic", "traffic.csv", rows=17_544, variables=862, prompt="Traffic", **_HOURLY_AND_WIDE
        ),
        "Weather": _hub(
            "weather",
            "weather.csv",
            rows=52_696,
            variables=21,
            frequency="10min",
            season=144,
            prompt="Weather",
        ),
        "Exchange": _hub(
            "exchange_rate",
            "exchange_rate.csv",
            rows=7_588,
            variables=8,
            frequency="D",
            season=7,
            prompt="Exchange",
        ),
        "ILI": _hub(
            "illness",
            "national_illness.csv",
            rows=966,
            variables=7,
            frequency="W",
            season=52,
            prompt="ILI",
            flags=_ILLNESS_FLAGS,
        ),
        M4: DataSet(
            files=tuple(
                DataFile(f"{name}-{part.lower()}.csv", f"{_M4_SOURCE}/{part}/{name}-{part.lower()}.csv")
                for name in M4_PATTERNS
                for part in ("Train", "Test")
            ),
            folder="m4",
            variables=1,
            prompt=M4,
            flags=MappingProxyType({"root_path": f"{HOME}/m4"}),
        ),
        CUSTOM: DataSet(),
        SYNTHETIC: DataSet(prompt=SYNTHETIC),
    }
)


def known_as(name: Any) -> Any:
    """The table's spelling of a name in another case, such as the family's ``m4``; any other as it is."""
    spellings = {known.lower(): known for known in DATA_SETS}
    return spellings.get(name.lower(), name) if isinstance(name, str) else name


def default_flags(values: Mapping[str, Any], *, default_data: str) -> dict[str, Any]:
    """The defaults of the settings that the data set in ``values`` (or the default one) decides."""
    data_set = DATA_SETS.get(known_as(values.get("data", default_data)))
    flags = {} if data_set is None else dict(data_set.flags)
    if data_set is DATA_SETS[M4]:
        pattern = M4_PATTERNS.get(values.get("seasonal_patterns", DEFAULT_PATTERN))
        flags |= {} if pattern is None else _m4_flags(pattern)
    return flags


def _m4_flags(pattern: M4Pattern) -> dict[str, Any]:
    """The competition's horizon, twice that to look back on, as the family; patches of a quarter of it."""
    patch = min(16, max(2, pattern.horizon // 2))
    return {
        "task_name": SHORT_TERM,
        "loss": "SMAPE",
        "pred_len": pattern.horizon,
        "seq_len": 2 * pattern.horizon,
        "label_len": pattern.horizon,
        "patch_len": patch,
        "stride": max(1, patch // 2),
    }


def m4_problems(flags: Mapping[str, Any]) -> Iterator[str]:
    """What does not fit together between M4, its task and the other flags."""
    short = flags["task_name"] == SHORT_TERM
    if short != (flags["data"] == M4):
        yield (
            f"--task_name {flags['task_name']}: expected {SHORT_TERM} with --data M4 and no other, "
            f"found --data {flags['data']} (your own series in M4's form: --data M4 --root_path FOLDER)"
        )
    elif short:
        name = flags["seasonal_patterns"]
        pattern = M4_PATTERNS[name]
        if flags["pred_len"] != pattern.horizon:
            found = flags["pred_len"]
            yield f"--pred_len: expected {pattern.horizon}, the horizon of M4 {name}, found {found}"
        only_these = {**M4_ONLY, "freq": (None, pattern.frequency)}
        for name, only in only_these.items():
            if flags[name] not in only:
                expected = "none" if only[0] == () else only[0]
                yield f"--{name}: expected {expected} with M4's series without dates, found {flags[name]}"
    if flags["loss"] == "SMAPE" and (not short or flags["loss_scale"] != "none"):
        yield (
            f"--loss SMAPE: expected --task_name {SHORT_TERM} and --loss_scale none: a relative error "
            "needs values whose zero means nothing"
        )


def name_problem(name: str, *, flag: str = "data") -> str | None:
    """What is wrong with ``--data NAME``, or None."""
    if name in DATA_SETS:
        return None
    prefix = flag.removesuffix("data")
    return (
        f"--{flag}: expected one of {', '.join(DATA_SETS)}, found {name}; "
        f"a file of your own is --{flag} custom with --{prefix}root_path and --{prefix}data_path"
    )


class TransferSettings(Protocol):
    """What `transfer_problems` reads of `utils.config.DataConfig`."""

    @property
    def eval_data(self) -> str | None: ...  # noqa: D102
    @property
    def eval_root_path(self) -> str | None: ...  # noqa: D102
    @property
    def eval_data_path(self) -> str | None: ...  # noqa: D102


def transfer_problems(data: TransferSettings) -> Iterator[str]:
    """What does not fit together among the flags of a test on another data set."""
    if data.eval_data is None:
        for name in ("eval_root_path", "eval_data_path"):
            if getattr(data, name) is not None:
                yield f"--{name}: there is nothing to look for without --eval_data; add it, or drop this"
    elif data.eval_data == CUSTOM and data.eval_data_path is None:
        yield "--eval_data custom: expected its file's name as --eval_data_path, found none"
    elif data.eval_data == M4:
        yield "--eval_data: expected one long series, found M4, a collection of short ones"
