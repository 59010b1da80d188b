"""The start of a forecast: linear maps solved in closed form, that nothing learned by steps begins behind.

``plain`` maps the lookback; ``joint`` maps it together with what followed the training windows most like it
(`layers.retrieval.futures`), one joint ridge for each kind of neighbours, averaged, which is one map. Rows
are centred and divided by their deviation, and count by it. Each penalty is validation's.

Two things alone are decided for a data set, each where validation and a blocked cross-validation inside the
training part agree beyond a standard error: the calendar comes in, retrieval goes out. Choosing among forms
otherwise is a coin, their average is not (measured on ETTh1 and ETTh2).

Shape legend: B windows, S series or rows, L lookback, H horizon, C calendar columns, F kinds of neighbours,
k neighbours of all kinds, E folds, X columns of covariates (`layers.start_features`), A = L + X + C + F * H
features, M memory rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from layers.retrieval.futures import MOST_ROWS
from layers.retrieval.search import Rows
from layers.start_features import MOST_OWN, StartFeatures
from layers.start_fitting import FOLDS, NO_EVIDENCE, UNKNOWN, Evidence, StartFit
from utils.errors import UserError
from utils.process_memory import mib
from utils.types import Batch, RowCovariates, StartForecast, WindowSource

FLOAT = 4
"""Bytes of a number."""
LEFT_BY_A_FOLD = 0.6
"""Share of the training windows that are fitted on with one block of four held out: those apart from it."""
SECONDS_PER_PRODUCT = 1e-10
"""Of a sum of products in float64, on one core of an Intel Xeon without AMX's instructions."""
SECONDS_PER_COMPARISON = 2.8e-8
"""Of a window with a row of the memory: what ETTh1 at horizon 96 took there (34 s), less its products."""
DECISIONS = ("calendar", "retrieval")
"""What is decided: whether it is in the start."""


class SolvedStart(StartFeatures):
    """Lookbacks [S, L], standardised, to `StartForecast`; the mean of the lookback until it is fitted."""

    plain_map: Tensor
    joint_map: Tensor
    penalties: Tensor
    decided: Tensor
    evidence: Tensor
    advantages: Tensor
    _decided: list[bool]
    _index: tuple[Tensor, ...] | None

    def __init__(self, **options: Any) -> None:
        """All zeros; ``options`` as for `StartFeatures`."""
        super().__init__(**options)
        features = self.base_width + self.kinds * self.horizon
        self.register_buffer("plain_map", torch.zeros(self.base_width, self.horizon))
        self.register_buffer("joint_map", torch.zeros(features if self.retrieves else 0, self.horizon))
        self.register_buffer("penalties", torch.zeros(1 + self.kinds))
        self.register_buffer("decided", torch.tensor([False, self.retrieves]))
        self.register_buffer("evidence", torch.zeros(len(DECISIONS), 2, 2))
        self.register_buffer("advantages", torch.empty(0))
        self._derive()

    @property
    def has_calendar(self) -> bool:
        """Whether a forecast reads time marks."""
        return self._decided[0]

    @property
    def has_retrieval(self) -> bool:
        """Whether ``joint`` is another forecast than ``plain``."""
        return self._decided[1]

    @torch.no_grad()
    def forward(
        self,
        lookback: Tensor,
        query: Rows,
        *,
        marks: Tensor | None = None,
        target: Tensor | None = None,
        covariates: RowCovariates | None = None,
    ) -> StartForecast:
        """The start of the forecasts of lookbacks [S, L], in float32 whatever the precision around it.

        Args:
            lookback: standardised units.
            query: where the rows come from, each [S].
            marks: time marks of their last known row [S, F], read where the calendar is in.
            target: the true future [S, H], read by the retrieval oracle alone.
            covariates: what is known beside them, where the start reads any.

        Raises:
            UserError: no marks or covariates where they are needed, or marks of another frequency.
        """
        with torch.autocast(lookback.device.type, enabled=False):
            lookback = lookback.float()
            if self.has_calendar and marks is None:
                raise UserError("the start's calendar is in: expected time marks of each window, found none")
            dated = marks if self.has_calendar else None
            base, mean, std = self.base(lookback, dated, covariates, query.variable)
            added = None
            if self.beside.groups:
                added = self.effect(covariates, query.variable, std)[:, self.seq_len :]
            plain = _with(base @ self.plain_map.to(base), added)
            if not self.has_retrieval:
                return StartForecast(plain, plain, query.start.new_empty(len(plain), 0), plain[:, :0])
            rows = self.retrieved.search(lookback, query, target=target)[:, 0]
            features = torch.cat([base, self.history(lookback, mean, std, rows).flatten(1)], dim=1)
            joint = _with(features @ self.joint_map.to(features), added)
        return StartForecast(plain, joint, rows, self._shares(rows))

    def advantage(self, series_id: Tensor, variable: Tensor, start: Tensor) -> Tensor:
        """Squared error of ``plain`` less that of ``joint``, both out of fold, of training rows: [S].

        The mean over the horizon, in squared deviations of the window; above 0 where history helped. NaN
        where a row is none that the maps were fitted on, its fold had nothing to fit on, or retrieval is out.
        """
        memory = self.retrieved
        wanted = _fingerprints(series_id, variable, start)
        if not len(self.advantages):
            return torch.full_like(wanted, torch.nan, dtype=torch.float32)
        if self._index is None:
            self._index = tuple(_fingerprints(memory.series, memory.variable, memory.start).sort())
        known, order = self._index
        row = order[torch.searchsorted(known, wanted).clamp(max=len(known) - 1)]
        same = (memory.series[row] == series_id) & (memory.variable[row] == variable)
        same &= memory.start[row] == start
        found = self.advantages[row]
        return found.masked_fill(~same | (found == UNKNOWN), torch.nan)

    @torch.no_grad()
    def fit(
        self,
        training: WindowSource,
        validation: Dataset[Batch],
        *,
        calendar: bool | None = None,
        keeps_calendar: bool = False,
        refine: bool = False,
    ) -> None:
        """Solve for the maps, and decide what is in them, unless it is said whether the ``calendar`` is.

        Then retrieval is in, nothing is held out, and there is no `advantage`. To ``refine`` is to go on from
        the chosen maps by `layers.start_refining`. A calendar that is kept is in whatever is found, and
        retrieval alone is decided.

        The memory holds the training rows (`fill`). One process does it; the others are handed its state.

        Raises:
            UserError: there are no training or no validation windows, or a value is not finite.
        """
        solved = StartFit(
            self, training, validation, calendar=calendar, keeps_calendar=keeps_calendar, refine=refine
        ).run()
        for name in ("plain_map", "penalties", "evidence"):
            getattr(self, name).copy_(getattr(solved, name))
        self.decided.copy_(torch.tensor([solved.form.calendar, solved.form.retrieval]))
        if solved.form.retrieval:
            self.joint_map.copy_(solved.joint_map)
        else:
            self.retrieved.clear()
        self.advantages = solved.advantages.to(self.advantages)
        self._derive()

    def cost_line(self, *, rows: int, variables: int) -> str:
        """What a fit to so many training rows takes: seconds, where none is kept yet, and memory."""
        rows = min(rows, MOST_ROWS)
        products = self.base_width**2 + self.horizon * self.base_width
        products += self.kinds * self.horizon * (self.base_width + 2 * self.horizon)
        passes = 1 + FOLDS * LEFT_BY_A_FOLD
        seconds = SECONDS_PER_PRODUCT * rows * products * passes
        seconds += SECONDS_PER_COMPARISON * self.kinds * rows * rows / variables
        held = FLOAT * rows * (self.retrieved.width + self.horizon) * bool(self.kinds)
        meanwhile = 2 * FLOAT * (1 + FOLDS) * products
        return (
            f"start: solved from {rows} training rows in about {seconds:.0f} s of one core, unless the same "
            f"is kept already; {mib(meanwhile)} meanwhile, {mib(held)} for its neighbours"
        )

    def lines(self) -> list[str]:
        """What was decided, and by which evidence, a line for each decision that there was.

        Before them, what known covariates do alike as there is too much to tell apart.
        """
        asked = (self.calendar_width > 0, self.retrieves)
        together = [
            f"start: known covariates have the same effect for all {kind}: theirs would be more than "
            f"{MOST_OWN} numbers; name fewer of them"
            for kind in self.beside.taken_together
        ]
        return together + [
            f"start: {name} {'in' if decided else 'out'}; with it {change}, squared errors change by "
            + ", ".join(
                f"{where} {one.text}"
                for where, one in zip(("validation", "cross-validation"), self._evidence(place), strict=True)
            )
            for place, (name, change, decided) in enumerate(
                zip(DECISIONS, ("in", "out"), self._decided, strict=True)
            )
            if asked[place]
        ]

    def _evidence(self, place: int) -> list[Evidence]:
        """Of a decision, by validation and by cross-validation."""
        return [Evidence(*pair) for pair in self.evidence[place].tolist()]

    def facts(self) -> dict[str, Any]:
        """What was decided, by which evidence, and the penalties, as plain values."""
        named: dict[str, Any] = {}
        for place, name in enumerate(DECISIONS):
            by = [None if one == NO_EVIDENCE else one._asdict() for one in self._evidence(place)]
            named[name] = {"in": self._decided[place], "validation": by[0], "cross_validation": by[1]}
        return named | {"penalties": self.penalties.tolist(), "memory_rows": len(self.retrieved.start)}

    def _shares(self, rows: Tensor) -> Tensor:
        """Each row's share in what was retrieved: [S, k]."""
        kinds = rows.split([kind.neighbours for kind in self.retrieved.kinds], dim=1)
        present = [(kind >= 0).float() for kind in kinds]
        return torch.cat([p / p.sum(dim=1, keepdim=True).clamp(min=1) for p in present], dim=1) / len(kinds)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Take the errors of any number of rows."""
        stored = state_dict.get(prefix + "advantages")
        if stored is not None:
            self.advantages = self.advantages.new_empty(len(stored))
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._derive()

    def _derive(self) -> None:
        self._decided = self.decided.tolist()
        self._index = None


def _with(forecast: Tensor, added: Tensor | None) -> Tensor:
    """Forecasts [S, H] in float32, with what was taken out of their windows."""
    return (forecast if added is None else forecast + added).float()


def _fingerprints(series_id: Tensor, variable: Tensor, start: Tensor) -> Tensor:
    """One number for each place, [S] int64; two places that share one are told apart by the places."""
    return (series_id * 1_000_003 + variable) * 1_000_000_007 + start
