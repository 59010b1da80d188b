"""One pass of a model over a batch."""

from __future__ import annotations

from typing import Any

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
