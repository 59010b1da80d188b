"""RetrievalRidge: the start that Time-LLM begins from (`layers.solved_start`), alone.

A linear map of the lookback and of what followed the training windows most like it, solved in closed form:
nothing is learned by steps.

Shape legend: B windows, N variables, L lookback, H horizon, F time marks.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from layers.retrieval.search import query_rows
from models.base import ForecastModel
from models.TimeLLM import fit_start, solved_start
from utils.config import Config
from utils.types import FitSource, ForecastParts, ForecastState
from utils.windows import per_series


class Model(ForecastModel):
    """Windows [B, L, N] to [B, H, N]; the lookback's mean until it is fitted."""

    name = "RetrievalRidge"
    channel_independent = True
    is_trainable = False
    own_settings = frozenset({"top_k", "retrieval_control", "start_refine"})

    def __init__(self, args: Config | Any) -> None:
        """The maps and the memory are part of the checkpoint."""
        super().__init__(args)
        self.start = solved_start(self.config, retrieves=True)

    def forward(
        self,
        x_enc: Tensor,
        x_mark_enc: Tensor | None = None,
        *_: Any,
        start: Tensor | None = None,
        series_id: Tensor | None = None,
        variable: Tensor | None = None,
        target: Tensor | None = None,
        return_state: bool = False,
        **__: Any,
    ) -> Tensor | ForecastState:
        """Forecast [B, H, N] of windows [B, L, N]; the others as in `TimeLLM_Enhanced`."""
        query = query_rows(x_enc[:, 0], start=start, series_id=series_id, variable=variable)
        lookback = per_series(x_enc)
        begun = self.start(
            lookback,
            query,
            marks=None if x_mark_enc is None else x_mark_enc[:, -1].repeat_interleave(x_enc.shape[2], dim=0),
            target=None if target is None else per_series(target),
        )
        mean, std = self.start.mean_and_std(lookback)
        plain, joint = (
            (part * std + mean).unflatten(0, (len(x_enc), -1)).transpose(1, 2)
            for part in (begun.plain, begun.joint)
        )
        parts = ForecastParts(plain, joint, joint)
        return ForecastState(joint, None, None, begun, parts) if return_state else joint

    def fit_statistics(self, source: FitSource) -> None:
        """Fill the memory with the training windows, and solve for the maps."""
        if not source.weights_given:
            fit_start(self.start, self.config, source)

    @property
    def closed_form_facts(self) -> dict[str, Any]:
        """What was decided for the maps, as plain values."""
        return self.start.facts()
