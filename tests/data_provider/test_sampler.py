from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from data_provider.sampler import EpochSampler


def order(seed: int, epoch: int, length: int = 500) -> list[int]:
    sampler = EpochSampler(length, seed)
    sampler.set_epoch(epoch)
    return list(sampler)


def test_an_epoch_is_a_permutation():
    assert sorted(order(1, 0)) == list(range(500))
    assert len(EpochSampler(500, 1)) == 500


def test_the_order_depends_on_seed_and_epoch_alone():
    """A resumed run must not need the random state of the run before it."""
    sampler = EpochSampler(500, 3)
    for epoch in range(4):
        list(sampler)  # iterating, or how often, must not matter
        sampler.set_epoch(epoch)
        torch.rand(7)
        assert list(sampler) == list(sampler) == order(3, epoch)


def test_neighbouring_seeds_and_epochs_share_no_order():
    """seed + epoch as the seed would make epoch 1 of seed 0 equal epoch 0 of seed 1."""
    orders = {tuple(order(seed, epoch)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


def test_iterating_leaves_the_global_random_states_alone():
    """Otherwise weights and dropout depend on the number of epochs already drawn."""
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index]
    order(1, 2)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (np.random.get_state()[1].tolist(), random.getstate())  # type: ignore[index]


def test_the_order_stays_that_of_earlier_versions():
    """A change here makes old checkpoints resume into another order."""
    assert order(2021, 3, length=8) == [3, 6, 5, 1, 4, 0, 2, 7]


def test_an_epoch_may_take_fewer_than_all_and_others_each_time():
    """What does not fill an optimizer step is dropped; always the same windows would never be seen."""
    sampler = EpochSampler(50, 3, taken=40)
    epochs = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        epochs.append(list(sampler))
        assert epochs[-1] == order(3, epoch, length=50)[:40] and len(sampler) == 40
    left_out = [set(range(50)) - set(e) for e in epochs]
    assert len(set(map(frozenset, left_out))) == 3
    with pytest.raises(ValueError, match="expected 0 to 50.*found 51"):
        EpochSampler(50, 3, taken=51)
