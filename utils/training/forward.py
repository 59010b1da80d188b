"""Passes of a model over a batch, whole or some variables at a time, and the batch made of single items.

Shape legend: B windows, L lookback, H horizon, N variables.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.batches import batched
from utils.errors import UserError
from utils.micro_step import MicroStep
from utils.types import (
    Batch,
    ForecastParts,
    ForecastState,
    PromptMaker,
    RetrievalRecord,
    covariates_of,
)

BY_VARIABLE = ("prompt", "static", "words", "floor", "text", "text_age")
"""Columns of a batch by its variables; texts may be of all of them, in one place."""
LINK_SHARPNESS = 10.0
"""Of the softplus, per standardised unit: a third of one above the floor it adds 0.004, and less beyond."""


class ShapeError(UserError):
    """A model's forecast is not of its target's shape."""


class Part(NamedTuple):
    """Some variables of a batch."""

    batch: Batch
    share: float
    """Of the batch's forecast variables: a mean over the batch is the parts' means, so weighted."""
    first: bool
    last: bool


def forecast_state(model: Any, batch: Batch, micro_step: MicroStep | None = None) -> ForecastState:
    """The model's forecast of a batch, with what its parts recorded on the way; training has micro-steps.

    Raises:
        ShapeError: it is no tensor of the target's shape, which losses and scores would stretch it to.
    """
    given: dict[str, Any] = {"prompt": batch.prompt} if batch.prompt.numel() else {}
    covariates = covariates_of(batch)
    if covariates is not None:
        given["covariates"] = covariates
    if batch.text_age.numel():
        given |= {"text": batch.text, "text_age": batch.text_age}
    found = model(
        batch.x,
        x_mark_enc=batch.x_mark,
        x_mark_dec=batch.y_mark,
        start=batch.start,
        series_id=batch.series_id,
        variable=batch.variable,
        target=batch.y,
        micro_step=micro_step,
        return_state=True,
        **given,
    )
    state = found if isinstance(found, ForecastState) else ForecastState(found, None, None)
    shape = list(state.prediction.shape) if isinstance(state.prediction, Tensor) else type(found).__name__
    if shape != list(batch.y.shape):
        plain = getattr(model, "module", model)
        raise ShapeError(
            f"{getattr(plain, 'name', type(plain).__name__)}: expected a forecast of {list(batch.y.shape)} "
            f"(windows, rows, forecast variables), found {shape}; mend the model's "
            "forecast. With --features MS (offers_ms = True), the last variables alone are forecast"
        )
    return linked(state, batch.floor) if batch.floor.numel() else state


def linked(state: ForecastState, floor: Tensor) -> ForecastState:
    """The forecast above ``floor`` [B, M]: softplus of what it is above it, which it nears from above.

    With a gradient everywhere, so that training goes through it; the forecast's parts alike.
    """
    low = floor[:, None]

    def above(forecast: Tensor) -> Tensor:
        return low + F.softplus(forecast.float() - low, beta=LINK_SHARPNESS)

    parts = None if state.parts is None else ForecastParts(*map(above, state.parts))
    return state._replace(prediction=above(state.prediction), parts=parts)


def stacked(items: Sequence[Batch], device: torch.device, prompts: PromptMaker | None = None) -> Batch:
    """Items of a data set as one batch on ``device``, with its prompts where something makes them."""
    return Batch(*(column.to(device) for column in batched(items, prompts)))


def channel_parts(batch: Batch, most: int | None) -> Iterator[Part]:
    """A batch in parts of at most ``most`` variables (``--max_channels_per_step``), or whole.

    For models that forecast each variable from itself: every loss and statistic is a mean over series,
    so the parts' values and gradients, weighted by their shares, add up to the whole batch's.
    """
    variables = batch.y.shape[-1]
    size = variables if most is None else most
    for begin in range(0, variables, size):
        chosen = slice(begin, min(begin + size, variables))
        part = batch
        if size < variables:
            part = batch._replace(
                x=batch.x[..., chosen],
                y=batch.y[..., chosen],
                variable=batch.variable[..., chosen],
                **{
                    name: column[:, chosen]
                    for name in BY_VARIABLE
                    if (column := getattr(batch, name)).numel() and column.shape[1] == variables
                },
            )
        share = (chosen.stop - begin) / variables
        yield Part(part, share, first=begin == 0, last=chosen.stop == variables)


def joined(states: Sequence[ForecastState]) -> ForecastState:
    """The forecast of a batch from those of its parts, with what was retrieved; series by part."""
    if len(states) == 1:
        return states[0]
    records = [state.retrieval for state in states if state.retrieval is not None]
    columns = [torch.cat(column) for column in zip(*records, strict=True)]
    retrieval = RetrievalRecord(*columns) if columns else None
    grown = [state.parts for state in states if state.parts is not None]
    parts = ForecastParts(*(torch.cat(part, dim=-1) for part in zip(*grown, strict=True))) if grown else None
    prediction = torch.cat([state.prediction for state in states], dim=-1)
    return ForecastState(prediction, None, retrieval, parts=parts)


@torch.no_grad()
def forecasts(model: Any, batch: Batch, most: int | None) -> Tensor:
    """The forecast [B, H, N] of a batch, made in `channel_parts`."""
    parts = [forecast_state(model, part.batch).prediction for part in channel_parts(batch, most)]
    return torch.cat(parts, dim=-1)
