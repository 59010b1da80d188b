"""Why a window is forecast as it is: what was retrieved, the trend that was seen, the words leaned on.

Shape legend: M variables forecast, L lookback, H horizon, K neighbours, T rows shown of a lookback.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.inspection import without_neighbours
from models.prototype_words import WordUse, chance_cosine, patches_of, word_use
from scripts.lib.inspect.options import LoadedRun
from scripts.lib.inspect.texts import texts_of_window
from utils.trend import DIRECTIONS, MAGNITUDES, direction_of, magnitude_of, trend_measure
from utils.types import Batch, ForecastState, RetrievalRecord, TrendRecord
from utils.windows import per_series

SHOWN_HORIZONS = 2
"""Horizons of a lookback that are shown; the window reaches further back."""
Values = NDArray[np.float64]


def explain(run: LoadedRun, start: int, *, words: bool = True) -> dict[str, Any]:
    """All there is to say about the window that begins at row ``start``, as plain values.

    Times are ISO text, values in original units; a variable's ``trend`` or ``retrieval`` is None
    where the run has no such module, ``words`` where it has no LLM (or they are not asked for).
    """
    f = run.forecaster
    windows = f.windows(run.series, first=start, texts=run.texts)
    model: Any = f.model
    use: list[WordUse] = []
    states: list[tuple[Batch, ForecastState]] = []
    if words and model.uses_llm:
        use = word_use(model, patches_of(model, lambda: states.extend(f.states(windows))))
    else:
        states.extend(f.states(windows))
    batch, state = states[0]
    alone = None
    if state.retrieval is not None:
        with without_neighbours(model):
            ((_, alone),) = f.states(windows)
    told = texts_of_window(run, start, windows, state.prediction[0])
    scale_weights = None if state.trend is None else _floats(state.trend.scale_weights)
    found = {
        "run": str(run.folder),
        "checkpoint": f.path.name,
        "step": f.facts.get("global_step"),
        "data": run.series.name,
        "frequency": run.series.frequency,
        "window": _window(run, start),
        "scale_weights": scale_weights,
        "random_words_cosine": chance_cosine(model) if use else None,
        "variables": [
            {
                "name": name,
                **_forecast(run, start, batch, state, variable),
                "trend": _trend(run, batch, state, variable),
                "retrieval": None if alone is None else _retrieval(run, batch, state, alone, variable),
                "texts": None if told is None else told[variable],
                "words": _words(use[variable]) if use else None,
            }
            for variable, name in enumerate(f.targets)
        ],
    }
    return found


def _window(run: LoadedRun, start: int) -> dict[str, Any]:
    f = run.forecaster
    dates, middle = run.series.dates.tz_localize(None), start + f.seq_len
    ahead = f.times(run.series, np.array([start]))[0]
    return {
        "row": start,
        "part": run.part_of(start),
        "lookback": [_time(dates[start]), _time(dates[middle - 1])],
        "shown": [_time(t) for t in dates[middle - _shown(run) : middle]],
        "forecast": [_time(t) for t in ahead],
    }


def _shown(run: LoadedRun) -> int:
    """Rows of a lookback that are shown, T."""
    return min(run.forecaster.seq_len, SHOWN_HORIZONS * run.forecaster.pred_len)


def _forecast(
    run: LoadedRun, start: int, batch: Batch, state: ForecastState, variable: int
) -> dict[str, Any]:
    """The end of the lookback, the truth where it is known, and the forecast."""
    f = run.forecaster
    middle = start + f.seq_len
    values = _column(run, variable)
    prediction, truth = state.prediction[0, :, variable], batch.y[0, :, variable]
    error = (prediction - truth).double()
    known = bool(error.isfinite().all())
    return {
        "lookback": _round(values[middle - _shown(run) : middle]),
        "truth": _round(_original(run, truth, variable)),
        "forecast": _round(_original(run, prediction, variable)),
        "mse": float(error.square().mean()) if known else None,
        "mae": float(error.abs().mean()) if known else None,
    }


def _trend(run: LoadedRun, batch: Batch, state: ForecastState, variable: int) -> dict[str, Any] | None:
    """What TAPR concluded, and what was true."""
    record = state.trend
    if record is None:
        return None
    truth = per_series(batch.y)
    kind = run.forecaster.config.tapr.trend_label
    measure = trend_measure(truth, reference=record.reference, scale=record.scale, kind=kind)
    known = bool(truth[variable].isfinite().all())
    return {
        "direction": _classes(DIRECTIONS, record.direction_logits[variable]),
        "magnitude": _classes(MAGNITUDES, record.magnitude_logits[variable]),
        "true_direction": DIRECTIONS[int(direction_of(measure, record.label_cuts)[variable])]
        if known
        else None,
        "true_magnitude": MAGNITUDES[int(magnitude_of(measure, record.label_cuts)[variable])]
        if known
        else None,
        "measure": float(record.measure[variable]),
        "true_measure": float(measure[variable]) if known else None,
        "path": _round(_path(run, batch, record, variable)),
        "gate": float(record.gate[variable, 0]),
        "label_cuts": _floats(record.label_cuts),
        "thresholds": _floats(record.thresholds),
    }


def _path(run: LoadedRun, batch: Batch, record: TrendRecord, variable: int) -> Values:
    """The regression head's future [H] in original units."""
    model: Any = run.forecaster.model
    with torch.no_grad():
        mean, std = (value[0, 0, variable] for value in model.normalise(batch.x).statistics)
    return _original(run, record.path[variable].float() * std + mean, variable)


def _classes(names: tuple[str, ...], logits: Tensor) -> dict[str, float]:
    return dict(zip(names, _floats(logits.float().softmax(dim=-1)), strict=True))


def _retrieval(
    run: LoadedRun, batch: Batch, state: ForecastState, alone: ForecastState, variable: int
) -> dict[str, Any]:
    """What GRA-M found, what its gate decided, and what became of the forecast by it.

    ``alone`` is the state with the neighbours taken away. ``moved`` is the mean distance between the two
    forecasts, ``share`` that in the way from the last value to the one without and from there to the other.
    """
    record = state.retrieval
    assert record is not None
    prediction, without = (_original(run, s.prediction[0, :, variable], variable) for s in (state, alone))
    moved, own = np.abs(prediction - without).mean(), np.abs(without - _last(run, batch, variable)).mean()
    rows = [int(row) for row in record.rows[variable] if row >= 0]
    return {
        "gate": float(record.gate[variable, 0]),
        "confidence": float(record.confidence[variable, 0]),
        "matched": bool(record.matched[variable]),
        "forecast_without": _round(without),
        "moved": float(moved),
        "share": float(moved / (moved + own)) if moved else 0.0,
        "neighbours": [_neighbour(run, batch, record, variable, rank) for rank in range(len(rows))],
    }


def _last(run: LoadedRun, batch: Batch, variable: int) -> float:
    """The lookback's last value, original units."""
    column = batch.x.shape[-1] - len(run.forecaster.targets) + variable
    return float(_original(run, batch.x[0, -1, column], variable))


def _neighbour(
    run: LoadedRun, batch: Batch, record: RetrievalRecord, variable: int, rank: int
) -> dict[str, Any]:
    """One past window: when it was, how near, what it looked like, and what came after it.

    ``as_forecast`` is what came after, placed at the end of the window that is forecast: the value
    that the retrieval itself would forecast is the weighted mean of these.
    """
    f = run.forecaster
    model: Any = f.model
    memory = model.memory
    row = int(record.rows[variable, rank])
    start, own = int(memory.places.start[row]), int(memory.places.variable[row])
    middle, end = start + f.seq_len, start + f.seq_len + f.pred_len
    values, dates = _column(run, own), run.series.dates.tz_localize(None)
    last = batch.x[0, -1, batch.x.shape[-1] - len(f.targets) + variable]
    return {
        "row": start,
        "variable": f.targets[own],
        "lookback": [_time(dates[start]), _time(dates[middle - 1])],
        "future": [_time(dates[middle]), _time(dates[end - 1])],
        "distance": float(record.distance[variable, rank]),
        "weight": float(record.weights[variable, rank]),
        "lookback_values": _round(values[middle - _shown(run) : middle]),
        "future_values": _round(values[middle:end]),
        "as_forecast": _round(_original(run, last + memory.futures[row], variable)),
    }


def _words(use: WordUse) -> dict[str, Any]:
    return {
        "effective_prototypes": use.effective,
        "prototypes": [
            {
                "index": p.number,
                "attention": p.attention,
                "nearest": [lean._asdict() for lean in p.nearest],
                "heaviest": None if p.heaviest is None else [lean._asdict() for lean in p.heaviest],
            }
            for p in use.prototypes
        ],
    }


def _column(run: LoadedRun, variable: int) -> Values:
    """The whole series of a variable that is forecast, original units."""
    values: Values = run.series.values[:, len(run.series.columns) - len(run.forecaster.targets) + variable]
    return values


def _original(run: LoadedRun, standardised: Tensor, variable: int) -> Values:
    """Values of a variable that is forecast, in original units."""
    mean, std = (part[-len(run.forecaster.targets) :][variable] for part in run.forecaster.standardisation)
    values: Values = standardised.detach().cpu().double().numpy() * float(std) + float(mean)
    return values


def _floats(tensor: Tensor) -> list[float]:
    return [float(value) for value in tensor.detach().float().cpu()]


def _round(values: Values) -> list[float | None]:
    """Six digits, which is what float32 has; None for what is still to come."""
    return [None if np.isnan(value) else float(f"{value:.6g}") for value in values]


def _time(time: Any) -> str:
    return str(np.datetime_as_string(np.datetime64(time), unit="s"))
