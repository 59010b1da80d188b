"""The records that cross the borders between data, models and training.

Shape legend: B windows, N variables, M variables that are forecast (the last ones; all but with
--features MS), L lookback, H horizon, K neighbours, S = B * M series.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset


class Batch(NamedTuple):
    """Windows of a series, in standardised units (a data set's item is one of these without B)."""

    x: Tensor
    """Lookback window, [B, L, N] float32."""
    y: Tensor
    """Future to forecast, [B, H, M] float32."""
    x_mark: Tensor
    """Time features of the lookback, [B, L, F] float32 in [-0.5, 0.5]; of series without dates the insample
    mask [B, L, 1]: 1 where a row exists, 0 before the series' first (x holds the others' mean there)."""
    y_mark: Tensor
    """Time features of the future, [B, H, F]."""
    start: Tensor
    """Absolute position of the window's first row in its series, [B] int64; below 0 before its first."""
    series_id: Tensor
    """Content hash of the series, [B] int64."""
    variable: Tensor
    """Index of each forecast variable among those that are forecast, [B, M] int64."""
    prompt: Tensor = torch.empty(0, dtype=torch.int64)
    """Token ids of each variable's prompt, [B, M, K] int64, -1 behind the end of shorter ones; empty where
    none were made (models without an LLM; a model that has one makes them itself then)."""
    known: Tensor = torch.empty(0)
    """Covariates known for the future too, [B, L + H, C] float32, standardised; empty where there is none."""
    past: Tensor = torch.empty(0)
    """Covariates of the lookback alone, [B, L, C] float32, standardised; empty likewise."""
    static: Tensor = torch.empty(0)
    """What holds of a whole series: its numbers, standardised, and a column for each category that is 1 for
    one, [B, M, W] float32; empty likewise."""
    words: Tensor = torch.empty(0, dtype=torch.uint8)
    """The same in words, [B, M, U] uint8: UTF-8, zeros behind its end; empty likewise."""
    floor: Tensor = torch.empty(0)
    """What no forecast is below, [B, M] float32, standardised; empty where there is no floor."""
    text: Tensor = torch.empty(0)
    """Of the texts that each window sees, oldest to newest, what `TextReading` holds: [B, V, C, D]; V is 1
    where all variables see the same, otherwise M. Empty where no texts are read."""
    text_age: Tensor = torch.empty(0, dtype=torch.int64)
    """Rows since a window could first see each, [B, V, C] int64; -1 where there is none."""


class Covariates(NamedTuple):
    """What is known beside the windows, as in `Batch`; whatever there is none of has no columns."""

    known: Tensor
    """[B, L + H, C]."""
    past: Tensor
    """[B, L, C]."""
    static: Tensor
    """[B, M, W]."""
    words: Tensor
    """[B, M, U]."""


def covariates_of(batch: Batch) -> Covariates | None:
    """Those of a batch; None where it has none of any kind."""
    parts = (batch.known, batch.past, batch.static, batch.words)
    if not any(part.numel() for part in parts):
        return None
    beside = ((batch.x, 1), (batch.x, 1), (batch.y, 2), (batch.y, 2))
    return Covariates(
        *(
            part if part.numel() else part.new_empty(len(whole), whole.shape[axis], 0)
            for part, (whole, axis) in zip(parts, beside, strict=True)
        )
    )


class PromptMaker(Protocol):
    """What makes the prompts of a batch's windows, one from each window alone."""

    def __call__(
        self,
        x: Tensor,
        x_mark: Tensor | None = None,
        words: Tensor | None = None,
        *,
        text: Tensor | None = None,
        age: Tensor | None = None,
    ) -> Tensor:
        """Lookbacks [B, L, N], their marks, words and texts, as in `Batch`, to token ids [B, M, K]."""
        ...


class TextReading(Protocol):
    """What a model made of each of K texts, each by itself."""

    @property
    def words(self) -> Sequence[str]:
        """Answers whose log-probabilities are the last of each question's numbers; none of some LLMs."""
        ...

    def of(self, places: Tensor) -> Tensor:
        """Of the texts at these places [...], [..., D]; zeros, or tokens that are none, for a place -1."""
        ...


class TextWindows(Protocol):
    """The texts of a series, what a model made of them, and which of them each window sees."""

    @property
    def reading(self) -> TextReading:
        """What a model made of them."""
        ...

    def seen(self, last: Tensor) -> tuple[Tensor, Tensor]:
        """Of windows with these last rows [R]: places of their texts and ages, both [R, V, C] int64."""
        ...

    def wordings(self, places: Tensor) -> Tensor:
        """Of the texts at these places [U], which are so near that they are one wording: [U] int64 from 0 on.

        It depends on these texts alone.
        """
        ...


class RowCovariates(NamedTuple):
    """What is known beside rows of one variable of one window each; no columns where there is none."""

    known: Tensor
    """[R, L + H, C]."""
    past: Tensor
    """[R, L, C]."""
    static: Tensor
    """[R, W]."""


class WindowRows(NamedTuple):
    """Rows of the retrieval memory: one variable of one training window each."""

    lookback: Tensor
    """[R, L] float32, standardised units."""
    future: Tensor
    """[R, H] float32, standardised units."""
    series_id: Tensor
    """[R] int64."""
    variable: Tensor
    """[R] int64."""
    start: Tensor
    """[R] int64, absolute position of the lookback's first row."""
    marks: Tensor | None = None
    """[R, F], time marks of the lookback's last row, as in `Batch`; None of a source without dates."""


@runtime_checkable
class WindowSource(Protocol):
    """Random access to the training windows, one variable at a time.

    Row ``r`` is variable ``r // num_windows`` of window ``r % num_windows``.
    """

    num_windows: int
    num_variables: int
    series_id: int
    """Content hash of the series, as in `WindowRows`; of a collection, one that is none of its series'."""

    @property
    def num_rows(self) -> int:
        """``num_windows * num_variables``."""
        ...

    def rows(self, index: Tensor) -> WindowRows:
        """The rows with these numbers, ``index`` [R] int64 in [0, num_rows)."""
        ...

    def holds(self, series_id: Tensor) -> bool:
        """Whether all of these ids [R] name series that this source reads."""
        ...

    def lookbacks(self, *, series_id: Tensor, variable: Tensor, start: Tensor) -> Tensor:
        """The lookbacks [R, L] that begin at these absolute positions of these series' variables."""
        ...


class CovariateSource(WindowSource, Protocol):
    """A source that something is known beside."""

    def covariates(self, index: Tensor) -> RowCovariates:
        """What is known beside the rows with these numbers, ``index`` [R]."""
        ...


NO_WINDOWS: Any = ()


def _solve_here(module: nn.Module, settings: dict[str, Any] | None, solve: Callable[[], None]) -> None:
    solve()


def unsolved(module: nn.Module, settings: dict[str, Any] | None, solve: Callable[[], None]) -> None:
    """For `FitSource.once` where nobody reads the solution: it stays as it began."""


class FitSource(NamedTuple):
    """What a model learns from that is counted or solved rather than trained."""

    training: WindowSource
    validation: Dataset[Batch] = NO_WINDOWS
    """Settings of what is solved are chosen by these windows alone."""
    weights_given: bool = False
    """Whether the weights are another run's (``--init_from``), which what is solved leaves alone."""
    once: Callable[[nn.Module, dict[str, Any] | None, Callable[[], None]], None] = _solve_here
    """Solves for a module's state, once for all processes and runs in which the data and these settings are
    the same; None of them keeps nothing. See `utils.training.closed_form.solve_once`."""
    words: Sequence[str] = ()
    """What is told of each series in words, where anything is."""
    texts: TextWindows | None = None
    """Of the training series, where texts are read."""
    text_hash: str | None = None
    """As in `DataBundle`."""


class SeriesReference(NamedTuple):
    """What the forecasts of a collection of series are scored against, in standardised units."""

    series_id: Tensor
    """[S] int64, ascending."""
    scale: Tensor
    """[S] float64, MASE's denominator; 0 for a series that does not change."""
    naive2: Tensor
    """[S, H] float64, the benchmark's forecasts."""


class InstanceStatistics(NamedTuple):
    """What instance normalisation took out of a window, to be handed back afterwards."""

    mean: Tensor
    """[B, 1, M]."""
    std: Tensor
    """[B, 1, M], sqrt(variance + epsilon)."""


class TrendRecord(NamedTuple):
    """What TAPR concluded about each series, and all that its losses need beside y."""

    direction_logits: Tensor
    """[S, 3]: down, flat, up."""
    magnitude_logits: Tensor
    """[S, 4]: strong down, weak down, weak up, strong up."""
    path: Tensor
    """[S, H], the regression head's future in instance-normalised units."""
    measure: Tensor
    """[S], the path's trend, measured as the label's is."""
    gate: Tensor
    """[S, 1] in (0, 1)."""
    reference: Tensor
    """[S], mean of the lookback's last season, standardised units."""
    scale: Tensor
    """[S], deviation of the lookback (floored), standardised units."""
    mean: Tensor
    """[S, 1], with ``std`` what takes normalised units back into standardised ones."""
    std: Tensor
    """[S, 1]."""
    label_cuts: Tensor
    """[5], fixed quantiles that define the classes."""
    magnitude_given_direction: Tensor
    """[3, 4], P(magnitude | direction) counted on the training windows."""
    thresholds: Tensor
    """[4], the learnable ordered cut points."""
    scale_weights: Tensor
    """[n_scales], how the scales are mixed."""

    def standardised(self, future: Tensor) -> Tensor:
        """A future [S, H] in instance-normalised units, in standardised ones."""
        return future.float() * self.std + self.mean


class RetrievalRecord(NamedTuple):
    """What GRA-M found, and all that its losses need; one row a series, window by window."""

    gate: Tensor
    """[S, 1] in [0, 1]: 1 trusts the current window alone, 0 history alone."""
    confidence: Tensor
    """[S, 1] in [0, 1), how well the neighbours match; 0 where there are none."""
    weights: Tensor
    """[S, K], softmax over the neighbours, 0 at the missing ones."""
    rows: Tensor
    """[S, K] int64 rows of the memory, -1 at the missing ones."""
    distance: Tensor
    """[S, K], squared distance to each neighbour, inf at the missing ones."""
    matched: Tensor
    """[S] bool, whether any admissible row was found."""
    plain: Tensor
    """[S, H], the forecast without history, which the gate chooses at 1: standardised units, no gradient;
    [S, 0] where the model does not make two forecasts for it to choose from."""
    joint: Tensor
    """[S, H], the one with history, which it chooses at 0; [S, 0] likewise."""
    advantage: Tensor
    """[S, 1], by how much more ``plain`` errs than ``joint`` where neither was fitted on the window, in
    squared deviations of it, NaN where that is not known; [S, 0] where it is known of none."""


class StartForecast(NamedTuple):
    """Where a forecast begins (`layers.solved_start`), in deviations of the window from its mean."""

    plain: Tensor
    """[S, H], without history."""
    joint: Tensor
    """[S, H], with it; the same as ``plain`` where retrieval is not there."""
    rows: Tensor
    """[S, k] int64, the memory's rows that were retrieved, kind after kind; -1 where there are too few."""
    weights: Tensor
    """[S, k], each one's share in what was retrieved: 1 in all, 0 where there are none."""


class ForecastParts(NamedTuple):
    """The forecast as it grows part by part, each [B, H, M] in standardised units; ``prediction`` is last."""

    plain: Tensor
    """The solved map of the lookback alone."""
    joint: Tensor
    """The solved map of lookback and history."""
    llm: Tensor
    """With what the LLM adds."""


class ForecastState(NamedTuple):
    """A forecast with what the parts of the model recorded on the way."""

    prediction: Tensor
    """[B, H, M], standardised units."""
    trend: TrendRecord | None
    retrieval: RetrievalRecord | None
    start: StartForecast | None = None
    parts: ForecastParts | None = None


@dataclass(frozen=True)
class LLMIdentity:
    """Which frozen LLM a run used: what a resumed run compares."""

    name: str
    """SMOLLM2, GPT2, ... or the id or folder that was given."""
    architecture: str
    """The transformers class, e.g. LlamaModel."""
    layers: int
    hidden_size: int
    vocabulary: int
    content_hash: str
    """sha256 of the weight files."""
    note: str = ""
    """What a reader of a result must know, e.g. that 4-bit weights were de-quantised."""


class LLMOutline(NamedTuple):
    """What is known of an LLM before its weights are read."""

    name: str
    """As in `LLMIdentity`."""
    hidden: int
    """Hidden size."""
    inner: int
    """Width of the feed-forward part."""


class Standardisation(NamedTuple):
    """Per-column mean and deviation, fitted on the training part only."""

    mean: Tensor
    """[N] float64, original units."""
    std: Tensor
    """[N] float64, original units."""


class PanelTable(NamedTuple):
    """What a run keeps of each of a panel's S series, in the order of the scaler's columns."""

    ids: Sequence[str]
    """[S]."""
    id_column: Sequence[str]
    """What the columns are called that name a series."""
    date_column: str
    series_id: Tensor
    """[S] int64, as in `Batch`."""
    first: Tensor
    """[S] int64, place in the calendar of its first row."""
    trained: Tensor
    """[S] int64, its first rows, that it was trained on; 0 of a series too short for that."""
    calendar: Tensor
    """[C] int64, the calendar's times by the wall clock, in microseconds."""
    absolute_change: Tensor
    """[S] float64, mean absolute change over a season before the test, original units; 0 of a series that
    does not change, NaN of one with no more rows than a season."""
    squared_change: Tensor
    """[S] float64, its mean square."""


class SeriesIdentity(NamedTuple):
    """What tells a series that a model was trained on from others, also where rows were added since."""

    series_id: int
    """Content hash of all its rows, as in `Batch`."""
    trained_rows: int
    """Its first rows, all that training read."""
    trained_id: int
    """Content hash of those rows alone."""


@dataclass(frozen=True)
class DataBundle:
    """Everything a run needs of its data."""

    name: str
    """What to call it in tables: ETTh1, synthetic, or the file's name."""
    train: Dataset[Batch]
    """Training windows as sampled for training (joint or single)."""
    validation: Dataset[Batch]
    """Every ``eval_stride``-th validation window, all variables at once."""
    test: Dataset[Batch]
    """Every ``test_stride``-th test window, all variables at once; of ``--eval_data`` where named."""
    source: WindowSource
    standardisation: Standardisation
    columns: Sequence[str]
    """The variables read, in order."""
    targets: Sequence[str]
    """The variables forecast: the last M of ``columns``."""
    frequency: str
    """pandas offset alias, e.g. h."""
    season: int
    """Rows of one season (24 for hourly data); it may be longer than the lookback."""
    content_hash: str
    """sha256 of the values and dates used."""
    identity: SeriesIdentity
    tested: str
    """What to call the series of ``test``: ``name``, or that of ``--eval_data``."""
    test_targets: Sequence[str]
    """The variables of ``test`` that are forecast."""
    windows: tuple[int, int, int]
    """Training samples, validation and test windows of the series itself: how it is divided."""
    notes: Mapping[str, str]
    """Facts to record with the run, e.g. that the validation is strided."""
    date_format: str | None = None
    """How the dates were written: strptime's format or ISO8601; None where they did not come as text."""
    time_zone: str | None = None
    """Of the dates; None where they have none."""
    texts: TextWindows | None = None
    """The texts that its windows see; None where none are read."""
    text_hash: str | None = None
    """sha256 of the texts that training and validation windows may see; None without a file of texts."""
    constant: Sequence[str] = ()
    """The variables of ``test``'s series that do not change in its training part."""
    panel: PanelTable | None = None
    """Of many series told apart by an id; None of one series, and of a competition's without dates."""
    covariates: Mapping[str, Any] = field(default_factory=dict)
    """How what is known beside the series is scaled and coded (`data_provider.covariates.Coding.state`);
    empty where there is nothing."""
    words: Sequence[str] = ()
    """What is told of each variable forecast in words, where anything is."""
    static_width: int | None = None
    """Columns of `Batch.static`, where there are any."""
