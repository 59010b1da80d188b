from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from utils.config import TrainingConfig
from utils.training.optim import build_optimizer, build_schedule, rate_factor, trained_parameters

TOTAL = 20


def rates_used(config: TrainingConfig, total: int = TOTAL, per_epoch: int = TOTAL) -> list[float]:
    """The rate of each optimizer step, as the optimizer sees it."""
    optimizer = build_optimizer(nn.Linear(2, 1), config)
    schedule = build_schedule(optimizer, config, total_steps=total, steps_per_epoch=per_epoch)
    used = []
    for _ in range(total):
        used.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return used


@pytest.mark.parametrize("warm", [0, 1, 5])
@pytest.mark.parametrize("lradj", ["COS", "constant"])
def test_the_rate_follows_its_formula_at_every_step(lradj, warm):
    """The original's cosine stepped once per process, so two processes halved its length."""
    used = rates_used(TrainingConfig(lradj=lradj, lr_warmup_steps=warm, learning_rate=0.1))
    expected = [
        0.1 * (step + 1) / warm
        if step < warm
        else 0.1
        if lradj == "constant"
        else 0.1 * (1 + math.cos(math.pi * (step - warm) / (TOTAL - warm))) / 2
        for step in range(TOTAL)
    ]
    assert used == pytest.approx(expected, rel=1e-12)


def epoch_rate(lradj: str, epoch: int) -> float:
    """The family's published rules, for a rate of 0.001 and epochs from 1 on."""
    if lradj == "type1":
        return 0.001 * 0.5 ** (epoch - 1)
    if lradj == "type3":
        return 0.001 if epoch < 3 else 0.001 * 0.9 ** (epoch - 3)
    if lradj == "PEMS":
        return 0.001 * 0.95 ** (epoch - 1)
    table = {2: 5e-5, 4: 1e-5, 6: 5e-6, 8: 1e-6, 10: 5e-7, 15: 1e-7, 20: 5e-8}
    return next((table[e] for e in range(epoch, 1, -1) if e in table), 0.001)


@pytest.mark.parametrize("warm", [0, 3])
@pytest.mark.parametrize("lradj", ["type1", "type2", "type3", "PEMS"])
def test_epoch_schedules_follow_the_published_rules_in_optimizer_steps(lradj, warm):
    """The originals stepped them by epochs of one process, whatever the accumulation."""
    config = TrainingConfig(lradj=lradj, lr_warmup_steps=warm, learning_rate=0.001)
    used = rates_used(config, total=100 + warm, per_epoch=4)
    assert used[warm:] == pytest.approx([epoch_rate(lradj, step // 4 + 1) for step in range(100)], rel=1e-12)
    assert used[:warm] == pytest.approx([0.001 * (step + 1) / 3 for step in range(warm)])


@pytest.mark.parametrize("total", [10, 50, 333])
def test_one_cycle_equals_the_library_schedule(total):
    used = rates_used(TrainingConfig(lradj="TST", learning_rate=0.002), total=total)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    library = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.002, total_steps=total, pct_start=0.2, cycle_momentum=False
    )
    expected = []
    for _ in range(total):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        library.step() if len(expected) < total else None
    assert used == pytest.approx(expected, rel=1e-9)


def test_the_cosine_ends_at_zero_and_stays_there():
    factor = rate_factor(TrainingConfig(), total_steps=TOTAL, steps_per_epoch=TOTAL)
    assert factor(TOTAL - 1) > 0
    assert factor(TOTAL) == pytest.approx(0, abs=1e-15) and factor(TOTAL + 5) == pytest.approx(0, abs=1e-15)


def test_a_warm_up_longer_than_the_run_is_a_warm_up_alone():
    """Division by zero or a negative cosine otherwise."""
    used = rates_used(TrainingConfig(lr_warmup_steps=100, learning_rate=1.0))
    assert used == pytest.approx([(step + 1) / 100 for step in range(TOTAL)])
    assert rate_factor(TrainingConfig(), total_steps=0, steps_per_epoch=0)(0) == 1.0


def test_the_optimizer_holds_the_trained_parameters_alone():
    """Moments of a frozen LLM would take twice its memory."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    model[0].requires_grad_(False)
    held = [p for group in build_optimizer(model, TrainingConfig()).param_groups for p in group["params"]]
    assert held == trained_parameters(model) == list(model[1].parameters())


def train(optimizer_of: Any, steps: int = 10) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    x = torch.randn(16, 4)
    optimizer = optimizer_of(model)
    for _ in range(steps):
        optimizer.zero_grad()
        (model(x) - x.sum(dim=1, keepdim=True)).square().mean().backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_fused_adam_equals_torchs_plain_reference(decay):
    """Without weight decay it is Adam, as published; with it the decay is decoupled."""
    config = TrainingConfig(learning_rate=0.01, weight_decay=decay)

    def reference(model: nn.Module) -> torch.optim.Optimizer:
        plain: dict[str, Any] = {"lr": 0.01, "fused": False, "foreach": False}
        if decay:
            return torch.optim.AdamW(model.parameters(), weight_decay=decay, **plain)
        return torch.optim.Adam(model.parameters(), **plain)

    ours, theirs = train(lambda model: build_optimizer(model, config)), train(reference)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_a_step_is_seen_by_what_is_kept_of_the_weights():
    """torch's fused step leaves version counters as they were: what was kept of the weights stayed in use."""
    layer = nn.Linear(2, 1)
    optimizer = build_optimizer(layer, TrainingConfig())
    layer(torch.ones(1, 2)).sum().backward()
    before = [weight._version for weight in layer.parameters()]
    optimizer.step()
    assert all(weight._version > was for weight, was in zip(layer.parameters(), before, strict=True))
