"""One pass of a model over a batch, and the batch made of single items."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from utils.types import Batch, ForecastState


def forecast_state(model: Any, batch: Batch) -> ForecastState:
    """The model's forecast of a batch, with what its parts recorded on the way."""
    return model(
        batch.x,
        x_mark_enc=batch.x_mark,
        x_mark_dec=batch.y_mark,
        start=batch.start,
        series_id=batch.series_id,
        variable=batch.variable,
        target=batch.y,
        return_state=True,
    )


def stacked(items: Sequence[Batch], device: torch.device) -> Batch:
    """Items of a data set as one batch on ``device``."""
    return Batch(*(torch.stack(column).to(device) for column in zip(*items, strict=True)))
