"""The solved start alone, beside ridge and random windows: ``python scripts/start_table.py <a run's flags>``.

For each of ``--horizons``: test errors of ridge, of the start's map without history, of the start, of starts
whose neighbours are the nearest of the same phase alone, or chosen by their futures (an oracle, no forecast),
and of ``--draws`` starts whose neighbours are random windows of the same number and phase; the differences
with intervals over blocks of test windows, at each horizon and over all. Nothing is trained or written.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

if not __package__:  # started as a file: its own folder is on the path, the project's is not
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_provider.data_factory import build_data
from models import RetrievalRidge
from models.closed_form import fit_ridge
from models.registry import MODELS
from utils.batches import window_batches
from utils.cli import parse_config
from utils.config import Config
from utils.ending import command
from utils.log import setup_logging
from utils.reporting.statistics import block_interval
from utils.training.experiment import resolve
from utils.training.forward import forecast_state
from utils.types import Batch, DataBundle

MODEL = "RetrievalRidge"
CONTROLS = {"same_phase": "same phase's nearest", "oracle": "oracle, knows the future"}
"""Values of ``--retrieval_control`` that are no draw, with what the table calls them."""


class Errors(NamedTuple):
    """Of a forecast, window by window: [W] each."""

    squared: NDArray[np.float64]
    absolute: NDArray[np.float64]

    @property
    def text(self) -> str:
        """The means over all windows."""
        return f"MSE {self.squared.mean():.4f}  MAE {self.absolute.mean():.4f}"


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; the exit status."""
    own, flags = parser().parse_known_args(sys.argv[1:] if argv is None else argv)
    setup_logging(main_process=True)
    ahead: dict[str, list[NDArray[np.float64]]] = {}
    for horizon in own.horizons:
        words = [*flags, "--model", MODEL, "--pred_len", str(horizon), "--label_len", "0"]
        config = parse_config(words, models=MODELS)
        for name, difference in judged(config, draws=own.draws):
            ahead.setdefault(name, []).append(difference)
    if len(own.horizons) > 1:
        for name, differences in ahead.items():
            common = min(map(len, differences))
            rows = np.stack([difference[:common] for difference in differences])
            print(f"all horizons, first {common} windows: {_difference_text(name, rows)}", flush=True)
    return 0


def parser() -> argparse.ArgumentParser:
    """Of the command's own flags; all others are a run's."""
    found = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0], allow_abbrev=False)
    found.add_argument("--horizons", nargs="+", type=int, default=[96, 192, 336, 720], metavar="H")
    found.add_argument("--draws", type=int, default=10, metavar="N", help="draws of random windows")
    return found


def judged(config: Config, *, draws: int) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """Print the lines of one horizon; give each difference of the start's squared error, [W]."""
    data = build_data(config, model=MODELS[MODEL])
    config = resolve(config, data)
    title = f"{data.name}, horizon {config.data.pred_len}"
    ridge = fit_ridge(data.source, data.validation)
    targets = len(data.targets)
    of_ridge = errors_of(
        data, lambda batch: torch.from_numpy(ridge.predict(batch.x[..., -targets:].double().numpy()))
    )
    print(f"{title}: ridge                        {of_ridge.text}", flush=True)
    model = fitted(config, data)
    plain, joint = (errors_of(data, _of(model, name)) for name in ("plain", "joint"))
    print(f"{title}: start without history        {plain.text}", flush=True)
    print(f"{title}: start                        {joint.text}", flush=True)
    calendar = model.start.has_calendar
    for line in model.start.lines():
        print(f"{title}: {line}", flush=True)
    others = {}
    for control, text in CONTROLS.items():
        others[text] = errors_of(
            data, _of(fitted(config.replace(retrieval_control=control), data, calendar=calendar), "joint")
        )
        print(f"{title}: {text:29s}{others[text].text}", flush=True)
    random = []
    for draw in range(draws):
        drawn = fitted(config.replace(retrieval_control="random", seed=draw), data, calendar=calendar)
        random.append(errors_of(data, _of(drawn, "joint")))
        print(f"{title}: random windows, draw {draw:2d}      {random[-1].text}", flush=True)
    differences = {"ridge": of_ridge.squared, "start without history": plain.squared}
    differences |= {text: errors.squared for text, errors in others.items()}
    if random:
        scores = [errors.squared.mean() for errors in random]
        print(
            f"{title}: random windows, {draws} draws     MSE {np.mean(scores):.4f} +- {np.std(scores):.4f}  "
            f"MAE {np.mean([errors.absolute.mean() for errors in random]):.4f}",
            flush=True,
        )
        differences["random windows"] = np.mean([errors.squared for errors in random], axis=0)
    for name, other in differences.items():
        print(f"{title}: {_difference_text(name, joint.squared - other)}", flush=True)
        yield name, joint.squared - other


def fitted(config: Config, data: DataBundle, *, calendar: bool | None = None) -> RetrievalRidge.Model:
    """The start of a configuration; it decides whether the calendar is in where that is not said."""
    model = RetrievalRidge.Model(config).eval()
    model.start.fill(data.source)
    model.start.fit(data.source, data.validation, calendar=calendar, refine=config.backbone.start_refine)
    return model


@torch.no_grad()
def errors_of(data: DataBundle, forecast: Callable[[Batch], Tensor]) -> Errors:
    """Of a forecast [B, H, M] of every test window."""
    squared, absolute = [], []
    for batch in window_batches(data.test):
        error = forecast(batch).double() - batch.y
        squared.append(error.square().mean(dim=(1, 2)).numpy())
        absolute.append(error.abs().mean(dim=(1, 2)).numpy())
    return Errors(np.concatenate(squared), np.concatenate(absolute))


def _of(model: RetrievalRidge.Model, name: str) -> Callable[[Batch], Tensor]:
    """The forecast of one of a start's maps."""
    return lambda batch: getattr(forecast_state(model, batch).parts, name)


def _difference_text(name: str, difference: NDArray[np.float64]) -> str:
    """The start's squared error less another's, [W] or [horizons, W]."""
    found = block_interval(difference)
    return f"start less {name}: {found.mean:+.4f} ({found.low:+.4f} to {found.high:+.4f})"


if __name__ == "__main__":
    sys.exit(main())
