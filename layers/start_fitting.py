"""How a solved start is fitted: features in blocks, their sums, maps, held-out errors, and two decisions.

Shape legend: R rows (one variable of one window each), L lookback, H horizon, X columns of covariates,
K known covariates, G groups of rows, C calendar columns, F kinds of neighbours, k neighbours of all kinds, E
folds, A features of a form.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset

from layers.calendar_columns import calendar_columns
from layers.retrieval.futures import MOST_ROWS, Fold, thinned_rows
from layers.retrieval.search import Rows, query_rows
from layers.ridge import Moments, solve, solve_at
from layers.start_features import StartFeatures
from layers.start_refining import refined
from utils.batches import window_batches
from utils.types import (
    Batch,
    CovariateSource,
    RowCovariates,
    WindowSource,
    covariates_of,
)
from utils.windows import per_series, rows_of

PENALTIES = (1.0, 10.0, 100.0, 1e3, 3e3, 1e4, 3e4, 1e5)
"""Tried for a sum of squares over all training rows (56,231 on ETTh1, horizon 96), of mean weight 1."""
FOLDS = 4
"""Blocks of the training part that are held out in turn."""
FITTED_AT_ONCE = 2048
FEWEST_BLOCKS = 4
"""Fewer blocks of windows tell no standard error."""


class Form(NamedTuple):
    """What a map reads beside the lookback."""

    retrieval: bool
    calendar: bool


class Evidence(NamedTuple):
    """Mean squared error with a change less that without, and its standard error over blocks of windows."""

    difference: float
    error: float

    @property
    def is_better(self) -> bool:
        """Whether the change lowers the error by more than a standard error."""
        return self.difference < -self.error

    @property
    def text(self) -> str:
        """As it stands in a line."""
        if self == NO_EVIDENCE:
            return "unknown (too few windows)"
        return f"{self.difference:+.4f} (se {self.error:.4f})"


NO_EVIDENCE = Evidence(0.0, 0.0)
UNKNOWN = torch.finfo(torch.float32).max
"""An out-of-fold error that there is none of: a state holds finite numbers alone."""


class Block(NamedTuple):
    """Rows with all that their features need."""

    lookback: Tensor
    """[R, L]."""
    future: Tensor
    """[R, H]."""
    query: Rows
    marks: Tensor | None
    """[R, F]."""
    covariates: RowCovariates | None = None


class Features(NamedTuple):
    """Rows as a map reads them, float64, normalised."""

    base: Tensor
    """[R, L + X + C]."""
    history: Tensor
    """[R, F, H]; no kinds without retrieval."""
    future: Tensor
    """[R, H]."""
    std: Tensor
    """[R, 1]."""


class FormSums:
    """The `Moments` of every form over the same rows, what they share counted once."""

    def __init__(self, *, base: int, kinds: int, horizon: int, device: torch.device) -> None:
        """Nothing is counted yet; ``base`` = L + X + C."""
        self.base = Moments(base, horizon, device=device)
        self.across = self.base.cross.new_zeros(kinds, horizon, base)
        self.within = self.base.cross.new_zeros(kinds, horizon, horizon)
        self.cross = self.base.cross.new_zeros(kinds, horizon, horizon)

    def add(self, rows: Features, weight: Tensor) -> None:
        """Count rows, each with its weight [R, 1]."""
        self.base.add(rows.base, rows.future, weight)
        for kind, history in enumerate(rows.history.unbind(dim=1)):
            weighed = (history * weight).T
            self.across[kind].addmm_(weighed, rows.base)
            self.within[kind].addmm_(weighed, history)
            self.cross[kind].addmm_(weighed, rows.future)

    def of(self, kind: int | None, *, width: int) -> Moments:
        """Of the first ``width`` columns of the base, with the retrieved futures of a kind or without."""
        base = self.base
        gram, cross = base.gram[:width, :width], base.cross[:width]
        if kind is not None:
            across = self.across[kind][:, :width]
            gram = torch.cat(
                [torch.cat([gram, across.T], dim=1), torch.cat([across, self.within[kind]], dim=1)]
            )
            cross = torch.cat([cross, self.cross[kind]])
        found = Moments(0, 0)
        found.gram, found.cross = gram, cross
        found.energy, found.weight = base.energy, base.weight
        found.rows, found.values = base.rows, base.values
        return found


class Held(NamedTuple):
    """Errors of each form on rows that it was not fitted on: mean squares over the horizon, standardised."""

    errors: dict[Form, Tensor]
    """[R] float64 each; NaN where there was nothing to fit on."""
    start: Tensor
    """[R] int64, where each row's window begins."""
    std: Tensor
    """[R] float64."""


class Solution(NamedTuple):
    """What a fit found."""

    form: Form
    plain_map: Tensor
    """[L + X + C, H]."""
    joint_map: Tensor
    """[L + X + C + F * H, H]; the plain map where retrieval is out."""
    penalties: Tensor
    """[1 + F], of the plain map and of each kind's."""
    evidence: Tensor
    """[2, 2, 2]: calendar in and retrieval out; by validation and by cross-validation; `Evidence`."""
    advantages: Tensor
    """[M], see `layers.solved_start.SolvedStart.advantage`, in the memory's order; none without retrieval."""


class StartFit:
    """One fit of a start, on the device where its buffers lie."""

    def __init__(
        self,
        start: StartFeatures,
        training: WindowSource,
        validation: Dataset[Batch],
        *,
        calendar: bool | None,
        keeps_calendar: bool = False,
        refine: bool = False,
    ) -> None:
        """Nothing is read yet; said whether the calendar is in, nothing is decided or held out.

        Where it is kept, retrieval alone is decided.

        To ``refine`` the chosen maps (`layers.start_refining`), the features of all rows are kept meanwhile.
        """
        self.start, self.training, self.validation = start, training, validation
        self.numbers = thinned_rows(training)
        self.kinds, self.given = start.kinds, calendar
        self.kept: list[tuple[Tensor, Tensor]] | None = [] if refine else None
        """Features and futures of the training rows, block by block."""
        self.evidence = torch.zeros(2, 2, 2)
        dated = start.calendar_width > 0 and len(self.numbers) > 0
        self.calendar = calendar is not False and dated and training.rows(self.numbers[:1]).marks is not None
        self.keeps_calendar = keeps_calendar and self.calendar
        calendars = [True] if self.keeps_calendar else [False, True] if self.calendar else [False]
        self.forms = [
            Form(retrieval, calendar)
            for retrieval in ([False, True] if self.kinds else [False])
            for calendar in calendars
        ]

    def run(self) -> Solution:
        """Solve for the maps of every form, and choose.

        Raises:
            UserError: there are no training or no validation windows, or a value is not finite.
        """
        self._scale_calendar()
        self._solve_effects()
        folds = self._folds() if self.given is None and len(self.forms) > 1 else []
        sums, found = self._sum_up(folds)
        sums[0].base.require("training")
        validation_sums = self._sums()
        for block in self._validation_blocks():
            rows = self._features(block, self._search(block, ())[:, 0])
            validation_sums.add(rows, rows.std**2)
        validation_sums.base.require("validation")
        penalties: dict[tuple[int | None, int], float] = {}

        def best(kind: int | None, width: int) -> Tensor:
            """The map whose penalty errs least on validation."""
            coefficients, penalties[kind, width] = solve(
                sums[0].of(kind, width=width), validation_sums.of(kind, width=width), PENALTIES
            )
            return coefficients

        maps = {form: self._map(form, best) for form in self.forms}
        fold_maps = [
            {
                form: self._map(form, lambda k, w, own=own: solve_at(own.of(k, width=w), penalties[k, w]))  # type: ignore[misc]
                for form in self.forms
            }
            if own.base.rows
            else None
            for own in sums[1:]
        ]
        held = self._held_out(folds, fold_maps, found)
        valid = self._validated(maps) if folds else None
        chosen = self._decide(valid, held)
        return self._solution(maps, penalties, chosen, held)

    # Rows, block by block.

    def _training_blocks(self) -> Iterator[Block]:
        for index in self.numbers.split(FITTED_AT_ONCE):
            rows = self.training.rows(index)
            query = Rows(rows.series_id, rows.variable, rows.start)
            covariates = None
            if self.start.dated_from > self.start.seq_len:
                covariates = cast(CovariateSource, self.training).covariates(index)
            yield self._here(Block(rows.lookback, rows.future, query, rows.marks, covariates))

    def _validation_blocks(self) -> Iterator[Block]:
        """Every validation window, or evenly thinned ones, as for training."""
        count = len(self.validation)  # type: ignore[arg-type]  # torch's Dataset does not declare __len__
        if not count:
            return
        variables = self.validation[0].y.shape[-1]
        taken = min(count, max(1, MOST_ROWS // variables))
        places = torch.arange(taken) * count // taken
        at_once = max(1, FITTED_AT_ONCE // variables)
        for batch in window_batches(self.validation, chosen=places, size=at_once):
            query = query_rows(
                batch.y[:, 0], start=batch.start, series_id=batch.series_id, variable=batch.variable
            )
            lookback = per_series(batch.x[..., -variables:])
            marks = None
            if self.calendar:
                marks = batch.x_mark[:, -1].repeat_interleave(variables, dim=0)
            covariates = rows_of(covariates_of(batch))
            yield self._here(Block(lookback, per_series(batch.y), query, marks, covariates))

    def _here(self, block: Block) -> Block:
        device = self.start.calendar_mean.device
        query = Rows(*(column.to(device) for column in block.query))
        marks = block.marks if block.marks is None else block.marks.to(device)
        beside = block.covariates
        if beside is not None:
            beside = RowCovariates(*(column.to(device) for column in beside))
        return Block(block.lookback.to(device), block.future.to(device), query, marks, beside)

    def _search(self, block: Block, folds: Sequence[Fold]) -> Tensor:
        """The memory's rows, [R, 1 + E, k]; none without retrieval."""
        if not self.kinds:
            return block.query.start.new_empty(len(block.lookback), 1 + len(folds), 0)
        target = block.future if self.start.retrieved.control == "oracle" else None
        return self.start.retrieved.search(block.lookback, block.query, folds=folds, target=target)

    def _features(self, block: Block, rows: Tensor) -> Features:
        """What every form reads of a block, with these ``rows`` [R, k] of the memory."""
        variable = block.query.variable
        base, mean, std = self.start.base(block.lookback, block.marks, block.covariates, variable)
        history = base.new_empty(len(base), 0, self.start.horizon)
        if self.kinds:
            history = self.start.history(block.lookback, mean, std, rows)
        future = (block.future.to(mean) - mean) / std
        if self.start.beside.groups:
            effect = self.start.effect(block.covariates, variable, std)
            future = future - effect[:, self.start.seq_len :]
        return Features(base, history, future, std)

    # Sums, maps and errors.

    def _scale_calendar(self) -> None:
        """Columns less their mean over the training rows, in their deviations: none is a constant."""
        start = self.start
        if not self.calendar:
            return
        total = square = torch.zeros(start.calendar_width, dtype=torch.float64)
        for index in self.numbers.split(FITTED_AT_ONCE):
            marks = self.training.rows(index).marks
            assert marks is not None
            columns = calendar_columns(marks, start.marks).double()
            total, square = total + columns.sum(dim=0), square + columns.square().sum(dim=0)
        mean = total / len(self.numbers)
        scale = (square / len(self.numbers) - mean.square()).clamp(min=0).sqrt()
        start.calendar_mean.copy_(mean)
        start.calendar_scale.copy_(torch.where(scale > 1e-6, scale, 1.0))

    def _solve_effects(self) -> None:
        """What known covariates do in each group; the penalty, or that they do nothing, is validation's."""
        if not self.start.beside.groups:
            return
        training, validation = EffectSums(self.start), EffectSums(self.start)
        for block in self._training_blocks():
            training.add(block)
        for block in self._validation_blocks():
            validation.add(block, squared=True)
        tried = [training.solve(penalty) for penalty in PENALTIES]
        self.start.effects.copy_(min([*tried, torch.zeros_like(tried[0])], key=validation.change))

    def _folds(self) -> list[Fold]:
        """Contiguous blocks of all the training windows."""
        starts = self.training.rows(self.numbers).start if len(self.numbers) else torch.zeros(1)
        first, last = int(starts.min()), int(starts.max())
        edges = [first + (last + 1 - first) * i // FOLDS for i in range(FOLDS + 1)]
        return [Fold(*edge) for edge in zip(edges, edges[1:], strict=False)]

    def _sums(self) -> FormSums:
        start = self.start
        return FormSums(
            base=start.base_width, kinds=self.kinds, horizon=start.horizon, device=start.calendar_mean.device
        )

    def _sum_up(self, folds: Sequence[Fold]) -> tuple[list[FormSums], list[Tensor]]:
        """The sums over all rows and over those that each fold leaves, rows weighed by their deviation.

        With them the memory's rows that were found for each held-out row, [R, k] int32 a block.
        """
        sums, found = [self._sums() for _ in range(1 + len(folds))], []
        for block in self._training_blocks():
            rows = self._search(block, folds)  # [R, 1 + E, k]
            whole = self._features(block, rows[:, 0])
            sums[0].add(whole, whole.std)
            if self.kept is not None:
                self.kept.append((_joint(whole).float(), whole.future.float()))
            held = rows[:, 0].int()
            for fold, own, its in zip(folds, sums[1:], rows[:, 1:].unbind(dim=1), strict=True):
                out, left = fold.holds(block.query.start), fold.leaves(block.query.start, span=self._span)
                held[out] = its[out].int()
                if not bool(left.any()):
                    continue
                part = _part(whole, left)
                if self.kinds:
                    mean, std = self.start.mean_and_std(block.lookback[left])
                    part = part._replace(
                        history=self.start.history(block.lookback[left], mean, std, its[left])
                    )
                own.add(part, part.std)
            found.append(held)
        return sums, found

    @property
    def _span(self) -> int:
        return self.start.retrieved.span

    def _map(self, form: Form, solver: Callable[[int | None, int], Tensor]) -> Tensor:
        """The map of a form, [L + X + C, H] or [L + X + C + F * H, H]: its kinds' maps averaged."""
        start, base, horizon = self.start, self.start.base_width, self.start.horizon
        width = base if form.calendar else start.dated_from
        kinds: list[int | None] = list(range(self.kinds)) if form.retrieval else [None]
        behind = self.kinds * horizon if form.retrieval else 0
        whole = start.calendar_mean.new_zeros(base + behind, horizon, dtype=torch.float64)
        for place, kind in enumerate(kinds):
            coefficients = solver(kind, width) / len(kinds)
            whole[:width] += coefficients[:width]
            if kind is not None:
                whole[base + place * horizon :][:horizon] = coefficients[width:]
        return whole

    def _held_out(
        self, folds: Sequence[Fold], maps: Sequence[dict[Form, Tensor] | None], found: Sequence[Tensor]
    ) -> Held:
        """The errors of each fold's maps on the rows that it holds out, in the order of the rows."""
        errors: dict[Form, list[Tensor]] = {form: [] for form in self.forms}
        starts, stds = [], []
        for block, rows in zip(self._training_blocks(), found if folds else (), strict=False):
            whole = self._features(block, rows.long())
            own = {form: torch.full_like(whole.std[:, 0], torch.nan) for form in self.forms}
            for fold, its in zip(folds, maps, strict=True):
                out = fold.holds(block.query.start)
                if its is not None and bool(out.any()):
                    for form, error in _errors(_part(whole, out), its).items():
                        own[form][out] = error
            for form in self.forms:
                errors[form].append(own[form])
            starts.append(block.query.start)
            stds.append(whole.std[:, 0])
        return _joined(errors, starts, stds)

    def _validated(self, maps: dict[Form, Tensor]) -> Held:
        """The errors of the maps on the validation rows."""
        errors: dict[Form, list[Tensor]] = {form: [] for form in self.forms}
        starts, stds = [], []
        for block in self._validation_blocks():
            rows = self._features(block, self._search(block, ())[:, 0])
            for form, error in _errors(rows, maps).items():
                errors[form].append(error)
            starts.append(block.query.start)
            stds.append(rows.std[:, 0])
        return _joined(errors, starts, stds)

    # Decisions.

    def _decide(self, valid: Held | None, held: Held) -> Form:
        """The form that is taken; what it rests on goes into ``evidence``."""
        is_in = self.keeps_calendar or (bool(self.given) and self.calendar)
        chosen = Form(retrieval=bool(self.kinds), calendar=is_in)
        if valid is None:
            return chosen
        for place, change in enumerate((Form(chosen.retrieval, True), None)):
            changed = change or Form(False, chosen.calendar)
            if changed not in self.forms or changed == chosen:
                continue
            pair = [compare(part, changed, chosen, block=self.start.block) for part in (valid, held)]
            self.evidence[place] = torch.tensor(pair)
            if all(one.is_better for one in pair):
                chosen = changed
        return chosen

    def _solution(
        self,
        maps: dict[Form, Tensor],
        penalties: dict[tuple[int | None, int], float],
        chosen: Form,
        held: Held,
    ) -> Solution:
        """The maps of the chosen form, and the out-of-fold errors where it retrieves."""
        width = self.start.base_width if chosen.calendar else self.start.dated_from
        plain = Form(False, chosen.calendar)
        kinds: list[int | None] = [None, *range(self.kinds)]
        advantages = torch.empty(0)
        if chosen.retrieval and len(held.start):
            better = (held.errors[plain] - held.errors[chosen]) / held.std.square()
            variables = torch.cat([block.query.variable for block in self._training_blocks()])
            advantages = better[variables.argsort(stable=True)].float().nan_to_num(nan=UNKNOWN)
        maps = self._refined(maps, {plain, chosen})
        return Solution(
            form=chosen,
            plain_map=maps[plain],
            joint_map=maps[chosen],
            penalties=torch.tensor([penalties[kind, width] for kind in kinds]),
            evidence=self.evidence,
            advantages=advantages,
        )

    def _refined(self, maps: dict[Form, Tensor], forms: set[Form]) -> dict[Form, Tensor]:
        """The maps of ``forms``, alike in their calendar; gone on from by steps where that is asked for.

        A column that a form does not read is zero here too, and its weight stays zero.
        """
        if self.kept is None:
            return maps
        features, future = (torch.cat(parts) for parts in zip(*self.kept, strict=True))
        length = self.start.seq_len
        if not any(form.calendar for form in forms):
            features[:, self.start.dated_from : self.start.base_width] = 0
        return {
            form: refined(features[:, : len(maps[form])], future, maps[form], lookback=length)
            for form in forms
        }


class EffectSums:
    """Sums that determine what known covariates do at their own time in each group, float64."""

    def __init__(self, start: StartFeatures) -> None:
        """Nothing is counted yet."""
        self.start = start
        shape, like = start.effects.shape, start.effects
        self.gram = like.new_zeros(*shape, *shape, dtype=torch.float64)
        self.cross = like.new_zeros(*shape, dtype=torch.float64)
        self.weight = self.rows = 0.0

    def add(self, block: Block, *, squared: bool = False) -> None:
        """Count the rows of windows, each by its deviation, or the square of that."""
        mean, std = self.start.mean_and_std(block.lookback)
        values = (torch.cat([block.lookback, block.future], dim=1).to(mean) - mean) / std  # [R, L + H]
        known = self.start.moved(block.covariates).to(mean) / std[..., None]  # [R, L + H, K]
        group = self.start.group(block.covariates, block.query.variable).to(mean)  # [R, G]
        weight = std[:, 0] ** (2 if squared else 1)
        pairs = torch.einsum("rtk,rtl->rkl", known, known) * weight[:, None, None]
        self.gram += torch.einsum("rg,rh,rkl->gkhl", group, group, pairs)
        self.cross += torch.einsum("rg,rtk,rt->gk", group * weight[:, None], known, values)
        self.weight += float(weight.sum())
        self.rows += len(values)

    def solve(self, penalty: float) -> Tensor:
        """The effects [G, K] of one penalty, as `layers.ridge.solve_at` counts it."""
        size, scale = self.cross.numel(), self.rows / self.weight
        gram = self.gram.reshape(size, size) * scale + penalty * torch.eye(size).to(self.gram)
        return torch.linalg.solve(gram, self.cross.flatten() * scale).view_as(self.cross)

    def change(self, effects: Tensor) -> float:
        """By how much the sum of weighed squares changes where ``effects`` [G, K] are taken out."""
        explained = torch.einsum("gk,gkhl,hl->", effects, self.gram, effects)
        return float(explained - 2 * (effects * self.cross).sum())


def compare(part: Held, changed: Form, default: Form, *, block: int) -> Evidence:
    """How a form does against another, and how sure that is: windows in blocks of ``block`` starts."""
    return blocked_evidence(part.errors[changed] - part.errors[default], part.start, block=block)


def blocked_evidence(difference: Tensor, start: Tensor, *, block: int) -> Evidence:
    """The mean of differences [R] of windows that begin at ``start`` [R], those that are finite.

    The standard error is that of a mean over blocks of unequal size; too few blocks are no evidence.
    """
    there = torch.isfinite(difference)
    difference, place = difference[there].cpu(), (start[there].cpu() // block)
    blocks = place.unique(return_inverse=True)[1]
    count = int(blocks.max()) + 1 if len(blocks) else 0
    if count < FEWEST_BLOCKS:
        return NO_EVIDENCE
    sums = torch.zeros(count, dtype=torch.float64).index_add_(0, blocks, difference)
    sizes = torch.zeros(count, dtype=torch.float64).index_add_(
        0, blocks, torch.ones(len(blocks), dtype=torch.float64)
    )
    mean = float(sums.sum() / sizes.sum())
    spread = float((sums - mean * sizes).square().sum().sqrt() / sizes.sum())
    return Evidence(mean, spread * math.sqrt(count / (count - 1)))


def _errors(rows: Features, maps: dict[Form, Tensor]) -> dict[Form, Tensor]:
    """Mean squared error over the horizon of each form on rows, standardised units: [R] float64 each."""
    features = _joint(rows)
    return {
        form: (features[:, : len(own)] @ own - rows.future).square().mean(dim=1) * rows.std[:, 0].square()
        for form, own in maps.items()
    }


def _joint(rows: Features) -> Tensor:
    """What a joint map reads, [R, A]."""
    return torch.cat([rows.base, rows.history.flatten(1)], dim=1)


def _part(rows: Features, chosen: Tensor) -> Features:
    return Features(*(column[chosen] for column in rows))


def _joined(errors: dict[Form, list[Tensor]], starts: Sequence[Tensor], stds: Sequence[Tensor]) -> Held:
    """Of all blocks together; empty where there is none."""

    def one(parts: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(parts)) if parts else torch.empty(0, dtype=torch.float64)

    return Held({form: one(parts) for form, parts in errors.items()}, one(starts), one(stds))
