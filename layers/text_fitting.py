"""How the solved part of a `TextReader` is fitted to what a start leaves, variable by variable.

First a kernel ridge from a text's state to what the first window that sees it is off by: its main directions,
found out of fold, are the few numbers that are read from a state. Then a ridge from these numbers, by kind of
age, to what every window is off by. All choices (kernel, both penalties, how many numbers) are made by folds
over wordings, groups of near-equal texts that lie together in time: rows of one wording in both halves of a
fold flatter. The solution is kept where folds and validation agree beyond a standard error.

Shape legend: W windows, V variables that see texts of their own, C texts of a window, U texts that training
windows see, E folds, D numbers of a text, r numbers read from it, A kinds of age, H horizon.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from layers.retrieval.search import Rows, query_rows
from layers.ridge import maps_at
from layers.start_fitting import FITTED_AT_ONCE, NO_EVIDENCE, Evidence, blocked_evidence
from layers.text_reader import TextReader, TextSolution, likeness
from utils.batches import window_batches
from utils.types import Batch, TextWindows, WindowSource
from utils.windows import per_series

SHARPNESS = (0.0, 0.1, 0.3, 1.0)
"""Tried for the kernel (`layers.text_reader.likeness`); 0 is linear."""
LANDMARKS = 1000
"""Texts that states are compared with, at most: evenly chosen ones."""
READ_PENALTIES = tuple(10.0 ** (power / 2) for power in range(-8, 7))
"""Tried for the kernel ridge, whose features are of length 1."""
PENALTIES = tuple(10.0 ** (power / 2) for power in range(13))
"""Tried for the ridge on what was read."""
FAINT = 1e-9
"""Of the largest eigenvalue: what is below is noise of rounding."""
RANKS = (1, 2, 4)
"""How many numbers are read from a state."""
FOLDS = 6
FEWEST_WORDINGS = 3 * FOLDS
"""Fewer can not be told apart from learning by heart: texts stay out."""
MOST_WINDOWS = 30_000
"""Windows that are fitted to; of more, evenly thinned ones."""
Forecast = Callable[[Tensor, Rows, Tensor | None], Tensor]
"""Lookbacks [R, L], where they come from, and marks, to forecasts [R, H] in standardised units."""


class TextRows(NamedTuple):
    """The training windows of one variable, with what their forecasts are off by."""

    start: Tensor
    """[W]."""
    residual: Tensor
    """[W, H] float64, standardised units."""
    place: Tensor
    """[W, C], of each text among the U; -1 where there is none."""
    kind: Tensor
    """[W, C]."""


@torch.no_grad()
def fit_reader(
    reader: TextReader,
    texts: TextWindows,
    training: WindowSource,
    validation: Dataset[Batch],
    *,
    forecast: Forecast | None,
    seq_len: int,
    block: int,
) -> None:
    """Standardise states by the training's texts; solve for every variable, where there is a ``forecast``.

    Args:
        reader: changed in place.
        texts: of the series.
        training: its training windows.
        validation: its validation windows, which bring their texts.
        forecast: what texts are to add to; None: there is no closed form to add to, nothing is solved.
        seq_len: lookback L.
        block: windows of a block for standard errors.
    """
    windows = _thinned(training.num_windows, MOST_WINDOWS)
    last = training.rows(windows).start + seq_len - 1
    places, ages = texts.seen(last)  # [W, V, C]
    own = places[places >= 0].unique()
    if not len(own):
        return
    states = texts.reading.of(own).double()  # [U, D]
    mean, std = states.mean(dim=0), states.std(dim=0, unbiased=False)
    reader.state_mean.copy_(mean)
    reader.state_scale.copy_(torch.where(std > 1e-6, std, 1.0))
    if forecast is None:
        return
    states = (
        ((states - reader.state_mean.double().cpu()) / reader.state_scale.double().cpu()).float().double()
    )
    wording = texts.wordings(own)
    if int(wording.max()) + 1 < FEWEST_WORDINGS:
        return
    folds = _folds(wording)
    compact = torch.where(places >= 0, torch.searchsorted(own, places.clamp(min=0)), -1)
    kinds = reader.kind_of(ages.to(reader.edges.device)).cpu()
    fits = []
    for variable in range(training.num_variables):
        group = min(variable, places.shape[1] - 1)
        start, residual = _residuals(training, windows, variable, forecast)
        rows = TextRows(start, residual, compact[:, group], kinds[:, group])
        fits.append(_TextFit(rows, folds, reader.kinds, block))
    landmarks = states[_thinned(len(states), LANDMARKS)]
    best = min((_Kernel(states, landmarks, folds, s) for s in SHARPNESS), key=lambda one: one.error(fits))
    reader.compare_with(landmarks, best.sharpness)
    held: list[Evidence] = []
    for variable, fit in enumerate(fits):
        solution, evidence = fit.run(best)
        held.append(evidence)
        if solution is not None:
            reader.take(variable, solution)
    valid = _validated(reader, validation, forecast, block)
    for variable, pair in enumerate(zip(valid, held, strict=True)):
        reader.evidence[variable] = torch.tensor(pair)
        reader.decided[variable] = all(one.is_better for one in pair)
        if not reader.decided[variable]:
            reader.leave_out(variable)


def _thinned(every: int, most: int) -> Tensor:
    count = min(every, most)
    return torch.arange(count) * every // max(1, count)


def _folds(wording: Tensor) -> Tensor:
    """[U] the fold of each text: whole wordings, those that first come near each other in time together.

    ``wording`` [U] counts from 0 on in the order of time.
    """
    sizes = wording.bincount()
    before = sizes.cumsum(0) - sizes
    return (FOLDS * before // len(wording))[wording]


def _residuals(
    training: WindowSource, windows: Tensor, variable: int, forecast: Forecast
) -> tuple[Tensor, Tensor]:
    """Where the windows begin [W], and what their forecasts are off by [W, H] float64."""
    starts, found = [], []
    for index in windows.split(FITTED_AT_ONCE):
        rows = training.rows(index + variable * training.num_windows)
        own = forecast(rows.lookback, Rows(rows.series_id, rows.variable, rows.start), rows.marks)
        found.append(rows.future.double() - own.cpu().double())
        starts.append(rows.start)
    return torch.cat(starts), torch.cat(found)


class _Read(NamedTuple):
    """What a kernel ridge reads from states."""

    full: Tensor
    """[U landmarks, H], from likenesses."""
    held: Tensor
    """[U, H], of each text by the texts of other folds."""
    error: float
    """Sum of squares over the folds."""


class _Kernel:
    """A kernel ridge from the states of all texts, of one sharpness."""

    def __init__(self, states: Tensor, landmarks: Tensor, folds: Tensor, sharpness: float) -> None:
        """``states`` [U, D] and ``landmarks`` [U', D] float64, standardised; ``folds`` [U]."""
        self.folds, self.sharpness = folds, sharpness
        values, vectors = torch.linalg.eigh(likeness(landmarks, landmarks, sharpness))
        kept = values > FAINT * values[-1]
        self.basis = vectors[:, kept] / values[kept].sqrt()  # [U', F]
        self.features = likeness(states, landmarks, sharpness) @ self.basis  # [U, F]
        self._decomposed: dict[tuple[int, bytes], tuple[Tensor, Tensor]] = {}

    def error(self, fits: Sequence[_TextFit]) -> float:
        """How much of what first windows are off by is left over the folds, in the mean over variables."""
        left = [
            self.read(*fit.target()).error / float(fit.target()[1].square().sum())
            for fit in fits
            if fit.is_told
        ]
        return sum(left)

    def read(self, text: Tensor, target: Tensor) -> _Read:
        """Of what the windows of these texts [K] are off by, [K, H]."""
        own, folds = self.features[text], self.folds[text]
        out = self.features.new_zeros(len(READ_PENALTIES), len(self.features), target.shape[1])
        for f in range(FOLDS):
            for k, fitted in enumerate(self._solved(f, text, own[folds != f], target[folds != f])):
                out[k, self.folds == f] = self.features[self.folds == f] @ fitted
        errors = (out[:, text] - target).square().sum(dim=(1, 2))
        best = int(errors.argmin())
        full = list(self._solved(FOLDS, text, own, target))[best]
        return _Read(self.basis @ full, out[best], float(errors[best]))

    def _solved(self, fold: int, text: Tensor, x: Tensor, y: Tensor) -> Iterator[Tensor]:
        """The ridge [F, H] of each penalty; variables with the same texts share its decomposition."""
        key = (fold, text.numpy().tobytes())
        if key not in self._decomposed:
            self._decomposed[key] = torch.linalg.eigh(x.T @ x)
        return maps_at(self._decomposed[key], x.T @ y, READ_PENALTIES)


class _TextFit:
    """Of one variable."""

    def __init__(self, rows: TextRows, folds: Tensor, kinds: int, block: int) -> None:
        """``folds`` [U] of the texts; ``kinds`` is A."""
        seen = (rows.place >= 0).any(dim=1)
        self.rows = TextRows(*(column[seen] for column in rows))
        self.folds, self.kinds, self.block = folds, kinds, block
        self.window, self.text = self._first_windows()
        self.is_told = len(self.text) >= FEWEST_WORDINGS
        """Whether there are texts enough."""

    def target(self) -> tuple[Tensor, Tensor]:
        """The texts that are some window's latest [K], and what the first such windows are off by [K, H]."""
        return self.text, self.rows.residual[self.window]

    def run(self, kernel: _Kernel) -> tuple[TextSolution | None, Evidence]:
        """What was solved, and how it does on texts of other wordings; None where too few are seen."""
        if not self.is_told:
            return None, NO_EVIDENCE
        full, held, _ = kernel.read(*self.target())
        text = self.text
        main = torch.linalg.svd(held[text], full_matrices=False).Vh.T  # [H, min(U, H)]
        tried = []
        for rank in RANKS:
            if rank > main.shape[1]:
                continue
            features = self._features(held @ main[:, :rank])
            error, penalty, out = self._over_folds(features)
            tried.append((error, rank, penalty, features, out))
        _, rank, penalty, features, out = min(tried, key=lambda one: one[0])
        decomposed = torch.linalg.eigh(features.T @ features)
        (maps,) = maps_at(decomposed, features.T @ self.rows.residual, [penalty])
        solution = TextSolution(full @ main[:, :rank], maps.unflatten(0, (self.kinds, 1 + rank)))
        change = (self.rows.residual - out).square() - self.rows.residual.square()
        return solution, blocked_evidence(change.mean(dim=1), self.rows.start, block=self.block)

    def _first_windows(self) -> tuple[Tensor, Tensor]:
        """Of each text that is the latest of some window, the first such window and the text."""
        latest = self.rows.place[:, -1]
        there = (latest >= 0).nonzero()[:, 0]
        order = torch.full((len(self.folds),), len(latest), dtype=torch.int64)
        order.scatter_reduce_(0, latest[there], there, reduce="amin")
        text = (order < len(latest)).nonzero()[:, 0]
        return order[text], text

    def _features(self, read: Tensor) -> Tensor:
        """Of the windows [W, A * (1 + r)]: 1 and what is ``read`` [U, r] of each text, at its kind of age."""
        place, kind = self.rows.place, self.rows.kind
        own = torch.cat([torch.ones_like(read[:, :1]), read], dim=1)[place.clamp(min=0)]  # [W, C, 1 + r]
        own = own * (place >= 0)[..., None]
        found = own.new_zeros(len(place), self.kinds, own.shape[2])
        index = kind[..., None].expand_as(own)
        return found.scatter_add_(1, index, own).flatten(1)

    def _over_folds(self, features: Tensor) -> tuple[float, float, Tensor]:
        """The least error over the folds, its penalty, and the corrections [W, H] that it gives out of fold.

        A window is held out with its latest text's fold; none that sees any text of it is fitted on.
        """
        residual, place = self.rows.residual, self.rows.place
        fold = torch.where(place >= 0, self.folds[place.clamp(min=0)], -1)  # [W, C]
        newest = fold.gather(1, _last_there(place))[:, 0]
        out = residual.new_zeros(len(PENALTIES), *residual.shape)
        for f in range(FOLDS):
            fitted, held = (fold != f).all(dim=1), newest == f
            x = features[fitted]
            decomposed = torch.linalg.eigh(x.T @ x)
            for k, own in enumerate(maps_at(decomposed, x.T @ residual[fitted], PENALTIES)):
                out[k, held] = features[held] @ own
        errors = (out - residual).square().mean(dim=(1, 2))
        best = int(errors.argmin())
        return float(errors[best]), PENALTIES[best], out[best]


def _last_there(place: Tensor) -> Tensor:
    """[W, 1] the slot of each window's latest text."""
    slots = torch.arange(place.shape[1]).expand_as(place)
    return torch.where(place >= 0, slots, -1).amax(dim=1, keepdim=True)


def _validated(
    reader: TextReader, validation: Dataset[Batch], forecast: Forecast, block: int
) -> Iterator[Evidence]:
    """How what was solved does on the validation windows, variable by variable."""
    changes, starts = [], []
    for batch in window_batches(validation):
        variables = batch.y.shape[-1]
        query = query_rows(
            batch.y[:, 0], start=batch.start, series_id=batch.series_id, variable=batch.variable
        )
        marks = batch.x_mark[:, -1].repeat_interleave(variables, dim=0)
        begun = forecast(per_series(batch.x[..., -variables:]), query, marks)
        off = batch.y - begun.cpu().unflatten(0, (len(batch.y), variables)).transpose(1, 2)  # [B, H, M]
        device = reader.maps.device
        own = reader(batch.text.to(device), batch.text_age.to(device), batch.variable.to(device)).cpu()
        changes.append(((off - own).double().square() - off.double().square()).mean(dim=1))
        starts.append(batch.start)
    if not changes:
        return iter([NO_EVIDENCE] * reader.variables)
    change, start = torch.cat(changes), torch.cat(starts)
    return (blocked_evidence(own, start, block=block) for own in change.unbind(dim=1))
