"""What texts add to a forecast: nothing at first, what was planted once fitted, nothing by heart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from data_provider.dataset import TrainingWindows, WindowDataset
from data_provider.splits import Split
from layers.start_fitting import Evidence
from layers.text_fitting import FOLDS, _folds, fit_reader
from layers.text_reader import TextReader, age_edges

L, H, D = 6, 4, 5
TRAIN, TOTAL, EVERY = 300, 400, 6


class Texts:
    """One text every few rows, seen from its row on, with states that are given."""

    words: Sequence[str] = ()

    def __init__(self, states: Tensor, wording: Tensor, *, count: int = 2) -> None:
        self.states, self.wording, self.count = states, wording, count
        self.rows = torch.arange(3, TOTAL, EVERY)
        self.reading: Any = self

    def of(self, places: Tensor) -> Tensor:
        return torch.where(places[..., None] >= 0, self.states[places.clamp(min=0)], 0.0)

    def seen(self, last: Tensor) -> tuple[Tensor, Tensor]:
        known = torch.searchsorted(self.rows, last, side="right")
        places = known[:, None] + torch.arange(-self.count, 0)
        ages = torch.where(places >= 0, last[:, None] - self.rows[places.clamp(min=0)], -1)
        return places.clamp(min=-1)[:, None], ages[:, None]

    def wordings(self, places: Tensor) -> Tensor:
        return self.wording[places].unique(return_inverse=True)[1]


def fitted(effect: Tensor, texts: Texts, *, noise: float = 0.1) -> TextReader:
    """A reader of a series of noise, to which text k adds ``effect`` [K] in the two rows that follow it."""
    generator = torch.Generator().manual_seed(1)
    values = noise * torch.randn(TOTAL, 1, generator=generator)
    for row, own in zip(texts.rows.tolist(), effect.tolist(), strict=True):
        values[row + 1 : row + 3] += own
    size: dict[str, Any] = {"seq_len": L, "pred_len": H, "series_id": 7}
    training = TrainingWindows(values, Split(0, TRAIN), marks=torch.zeros(TOTAL, 0), **size)
    validation = WindowDataset(values, torch.zeros(TOTAL, 0), Split(TRAIN - L, TOTAL), texts=texts, **size)
    reader = TextReader(width=texts.states.shape[1], variables=1, horizon=H)
    fit_reader(
        reader, texts, training, validation, seq_len=L, block=H,
        forecast=lambda lookback, query, marks: torch.zeros(len(lookback), H),
    )  # fmt: skip
    return reader


COUNT = len(range(3, TOTAL, EVERY))
STATES = torch.randn(COUNT, D, generator=torch.Generator().manual_seed(0))


def test_it_begins_without_any_effect():
    """Step 0 must be the start to the bit, whatever the texts say."""
    reader = TextReader(width=D, variables=3, horizon=H)
    correction = reader(STATES[:8].reshape(2, 1, 4, D), torch.tensor([[[40, 3, 1, 0]], [[-1, -1, 5, 2]]]))
    assert correction.shape == (2, H, 3) and not correction.any()


def test_what_a_state_says_linearly_is_read_at_every_age():
    direction = torch.tensor([1.0, -2.0, 0.0, 0.5, 0.0])
    reader = fitted(STATES @ direction, Texts(STATES, torch.arange(COUNT)))
    assert bool(reader.decided) and all(one.is_better for one in evidence(reader))
    new = torch.randn(20, D, generator=torch.Generator().manual_seed(5))
    for age, expected in ((0, [1, 1, 0, 0]), (1, [1, 0, 0, 0]), (2, [0, 0, 0, 0])):
        ages = torch.full((20, 1, 2), -1)
        ages[..., 1] = age
        seen = reader(torch.stack([new, new], dim=1)[:, None], ages)[..., 0]
        wanted = (new @ direction)[:, None] * torch.tensor(expected)
        assert (seen - wanted).square().mean() < 0.02 * (new @ direction).square().mean()


def test_texts_that_say_nothing_stay_out():
    effect = torch.randn(COUNT, generator=torch.Generator().manual_seed(9))
    reader = fitted(effect, Texts(STATES, torch.arange(COUNT)))
    assert not reader.decided.any() and not reader.maps.any() and not reader.directions.any()


def test_what_is_learnt_by_heart_stays_out():
    """Near-copies in both halves of a fold: 22 wordings, each with an effect of its own, are no reading.

    Their states are one number of their own each, so rows of other copies tell everything.
    """
    wording = torch.arange(COUNT) % 22
    states = torch.nn.functional.one_hot(wording, 22).float()
    own = torch.tensor([1.0, -1.0]).repeat(11)  # the mean says nothing
    assert not fitted(own[wording], Texts(states, wording)).decided.any()
    assert fitted(own[wording], Texts(states, torch.arange(COUNT))).decided.all(), "by rows it would be in"


def test_too_few_wordings_tell_nothing():
    reader = fitted(STATES[:, 0], Texts(STATES, torch.arange(COUNT) % 4))
    assert not reader.decided.any() and evidence(reader) == [Evidence(0.0, 0.0)] * 2


def test_folds_hold_whole_wordings():
    wording = torch.tensor([0, 1, 0, 2, 3, 4, 4, 5, 6, 7, 8, 9, 10, 0])
    folds = _folds(wording)
    assert all(len(folds[wording == w].unique()) == 1 for w in wording.unique())
    assert folds.unique().tolist() == list(range(FOLDS))


def test_the_correction_is_the_sum_over_texts_by_hand():
    """Variables that see texts of their own, gaps, and the trained part, against loops."""
    generator = torch.Generator().manual_seed(4)
    reader = TextReader(width=D, variables=3, horizon=H)
    with torch.no_grad():
        reader.compare_with(torch.randn(7, D, generator=generator), 0.3)
        for name in ("directions", "maps", "state_mean"):
            getattr(reader, name).normal_(generator=generator)
        for weight in reader.parameters():
            weight.normal_(generator=generator)
    text = torch.randn(2, 3, 2, D, generator=generator)
    age = torch.tensor([[[9, 0], [-1, 3], [-1, -1]], [[200, 17], [16, 1], [5, 5]]])
    edges = age_edges(H)
    for chosen in ([0, 1, 2], [2, 0]):
        own = reader(text[:, chosen], age[:, chosen], torch.tensor([chosen, chosen]))
        for b in range(2):
            for m, v in enumerate(chosen):
                solved, pooled = torch.zeros(H), torch.zeros(16)
                for c in range(2):
                    a = int(age[b, v, c])
                    if a < 0:
                        continue
                    kind = max(k for k, edge in enumerate(edges) if edge <= a)
                    state = (text[b, v, c] - reader.state_mean) / reader.state_scale
                    alike = torch.exp(-0.3 * (state - reader.landmarks).square().mean(dim=1))
                    read = torch.cat([torch.ones(1), alike @ reader.directions[v]])
                    solved = solved + read @ reader.maps[v, kind]
                    pooled = pooled + torch.tanh(reader.narrow(state)) * (1 + reader.by_age.weight[kind])
                pooled = pooled * reader.by_variable[v]
                wanted = solved + torch.sigmoid(reader.gate(pooled)) * reader.widen(pooled)
                assert torch.allclose(own[b, :, m], wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("horizon", [1, 24, 96, 720])
def test_ages_are_exact_at_first_and_then_coarser(horizon):
    edges = age_edges(horizon)
    assert edges[:16] == list(range(16)) and edges == sorted(set(edges)) and edges[-1] >= min(15, 2 * horizon)
    reader = TextReader(width=D, variables=1, horizon=horizon)
    kinds = reader.kind_of(torch.tensor([-1, 0, 15, edges[-1], 10**6]))
    assert kinds.tolist() == [0, 0, 15, len(edges) - 1, len(edges) - 1]


def test_a_state_of_any_rank_is_loaded():
    reader = fitted(STATES[:, 0], Texts(STATES, torch.arange(COUNT)))
    other = TextReader(width=D, variables=1, horizon=H)
    other.load_state_dict(reader.state_dict())
    assert torch.equal(other.maps, reader.maps) and other.lines() == reader.lines()
    assert other.facts()[0]["in"] is True


def evidence(reader: TextReader) -> list[Evidence]:
    return [Evidence(*one) for one in reader.evidence[0].tolist()]
