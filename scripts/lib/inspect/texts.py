"""Which texts a forecast saw, how far each moves it, and what it would be without them.

Shape legend: V variables that see texts of their own (1 where all see the same), C texts of a window,
H horizon.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from scripts.lib.inspect.options import LoadedRun
from utils.types import Batch

SHOWN = 300
"""Characters of a text that are shown."""
ANSWERS_SHOWN = 5


class WithoutTexts(Dataset[Batch]):
    """One window as if it did not see its text in this slot, or any of them."""

    def __init__(self, windows: Dataset[Batch], slot: int | None) -> None:
        """``slot`` 0 to C - 1, or None for all."""
        self.windows, self.slot = windows, slot

    def __len__(self) -> int:
        """One."""
        return 1

    def __getitem__(self, index: int) -> Batch:
        """The window."""
        item, age = self.windows[index], self.windows[index].text_age.clone()
        age[..., slice(None) if self.slot is None else self.slot] = -1
        return item._replace(text_age=age)


def texts_of_window(
    run: LoadedRun, start: int, windows: Dataset[Batch], prediction: Tensor
) -> list[dict[str, Any]] | None:
    """By variable what there is to say about the texts of the window at row ``start``; None without any.

    ``prediction`` [H, M], standardised, is its forecast. A text's weight is how far the forecast moves once
    it is taken away, in the sum of that over the window's texts; ``moved`` is that in the variable's units.
    """
    f, texts = run.forecaster, run.texts
    if texts is None:
        return None
    places, ages = texts.seen(torch.tensor([start + f.seq_len - 1]))  # [1, V, C]
    scale = f.standardisation.std[-len(f.targets) :].numpy()
    mean = f.standardisation.mean[-len(f.targets) :].numpy()

    def without(slot: int | None) -> Any:
        """The forecast [H, M] in original units."""
        ((_, state),) = f.states(WithoutTexts(windows, slot))
        return state.prediction[0].cpu().double().numpy() * scale + mean

    own, bare = prediction.cpu().double().numpy() * scale + mean, without(None)
    moves = [np.abs(own - without(slot)).mean(axis=0) for slot in range(places.shape[-1])]  # C of [M]
    total = np.sum(moves, axis=0)
    found = []
    for variable in range(len(f.targets)):
        group = min(variable, places.shape[1] - 1)
        slots = [c for c in range(places.shape[-1]) if int(places[0, group, c]) >= 0]
        found.append(
            {
                "forecast_without": [float(f"{v:.6g}") for v in bare[:, variable]],
                "moved": float(np.abs(own - bare)[:, variable].mean()),
                "seen": [
                    _text(run, int(places[0, group, c]), int(ages[0, group, c]))
                    | {
                        "moved": float(moves[c][variable]),
                        "weight": float(moves[c][variable] / total[variable]) if total[variable] else 0.0,
                    }
                    for c in slots
                ],
            }
        )
    return found


def _text(run: LoadedRun, place: int, age: int) -> dict[str, Any]:
    """A text, when it was, and what the LLM answers behind it, the likeliest first."""
    assert run.texts is not None
    table, reading = run.texts.table, run.texts.reading
    text, end = table.texts[place], table.known[place]
    words: Sequence[str] = reading.words
    answers: dict[str, float] = {}
    if words:
        state = reading.of(torch.tensor([place]))[0]
        questions = len(run.forecaster.config.text.text_question) or 1
        by_question = state.unflatten(0, (questions, -1))[:, -len(words) :].exp().mean(dim=0).tolist()
        answers = dict(sorted(zip(words, by_question, strict=True), key=lambda pair: -pair[1]))
    return {
        "time": str(end),
        "age": age,
        "text": text if len(text) <= SHOWN else f"{text[:SHOWN]} ...",
        "answers": {word: float(f"{p:.4g}") for word, p in answers.items()},
    }


def text_lines(texts: Mapping[str, Any] | None) -> Iterator[str]:
    """In short."""
    if texts is None:
        yield "texts: none are read"
        return
    yield (
        f"texts: {len(texts['seen'])} seen; they move the forecast by {texts['moved']:.4g} on average "
        "(weight: a text's part in that, by taking it away)"
    )
    for own in texts["seen"]:
        answers = ", ".join(f"{w} {p:.1%}" for w, p in list(own["answers"].items())[:ANSWERS_SHOWN])
        yield f"  {own['time']}, known for {own['age']} rows, weight {own['weight']:.2f}: {own['text']}"
        if answers:
            yield f"    answers: {answers}"
