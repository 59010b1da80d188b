"""A prompt is its window's: forecasts are the same to the bit whoever made it, and no step makes one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from data_provider.data_factory import build_data, evaluation_loader, training_loader
from models.registry import MODELS
from tests.conftest import TinySettings
from utils.batches import batched
from utils.config import Config
from utils.training.forward import channel_parts, forecast_state, forecasts, stacked
from utils.types import Batch

L, H, N = 96, 24, 3
CPU = torch.device("cpu")


def model_of(folder: Path, name: str = "TimeLLM", **settings: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"seq_len": L, "pred_len": H, "d_model": 8, "d_ff": 16, "n_heads": 2, "num_tokens": 12}
    llm = {"llm_model_path": str(folder), "llm_layers": 2, "enc_in": N, "dropout": 0.0}
    return MODELS[name](Config.from_flat({**sizes, **llm, **settings})).eval()


def items(count: int = 6, variables: int = N, forecast: int = N) -> list[Batch]:
    draw = torch.Generator().manual_seed(0)
    walks = (
        torch.randn(count, L + H, variables, generator=draw).cumsum(1)
        * torch.linspace(0.1, 40, count)[:, None, None]
    )
    seen = torch.ones(count, L, 1)
    return [
        Batch(
            w[:L],
            w[L:, -forecast:],
            s,
            torch.ones(H, 1),
            torch.tensor(i),
            torch.tensor(7),
            torch.arange(forecast),
        )
        for i, (w, s) in enumerate(zip(walks, seen, strict=True))
    ]


def forecast(model: Any, batch: Batch) -> Tensor:
    with torch.no_grad():
        return forecast_state(model, batch).prediction


@pytest.mark.parametrize(
    "settings",
    [
        {"name": "TimeLLM"},
        {"name": "TimeLLM_Enhanced", "use_tapr": True, "token_order": "document"},
        {"name": "TimeLLM_Enhanced", "use_tapr": True, "token_order": "prompt_first"},
        {"name": "TimeLLM", "features": "MS"},
    ],
)
def test_forecasts_are_the_same_whoever_made_the_prompts(settings: dict[str, Any], tiny_llama: Path) -> None:
    """The loader's prompts came from other arithmetic than the model's own."""
    model = model_of(tiny_llama, **settings)
    some = items(forecast=1 if settings.get("features") == "MS" else N)
    given = stacked(some, CPU, model.prompts)
    assert given.prompt.numel() and not stacked(some, CPU).prompt.numel()
    wanted = forecast(model, stacked(some, CPU))
    assert torch.equal(forecast(model, given), wanted)
    assert torch.equal(model(given.x, given.x_mark, None, None), wanted)


def test_of_short_series_the_mask_is_read_by_both(tiny_llama: Path) -> None:
    """M4's windows begin before the series: what is not there counts in no statistic of the prompt."""
    model = model_of(
        tiny_llama, task_name="short_term_forecast", data="m4", enc_in=1, features="M", pred_len=18
    )
    some = [
        item._replace(x_mark=torch.cat([torch.zeros(40, 1), torch.ones(L - 40, 1)]), y=item.y[:18])
        for item in items(4, 1, 1)
    ]
    given = stacked(some, CPU, model.prompts)
    assert torch.equal(forecast(model, given), forecast(model, stacked(some, CPU)))
    unmasked = model.prompts(given.x, torch.ones_like(given.x_mark))
    assert unmasked.shape != given.prompt.shape or not torch.equal(unmasked, given.prompt)


def test_a_forecast_does_not_change_with_its_neighbours(tiny_llama: Path) -> None:
    """The padding was as long as the longest prompt of the batch, so its length moved the last digits."""
    model = model_of(tiny_llama)
    first, *others = items(7)
    calm = stacked([first, *others[:3]], CPU, model.prompts)
    wild = stacked([first, *others[3:]], CPU, model.prompts)
    assert torch.equal(forecast(model, calm)[0], forecast(model, wild)[0])


def test_parts_of_a_batch_take_their_own_prompts(tiny_llama: Path) -> None:
    """With --max_channels_per_step a part must be told of its own variables."""
    model = model_of(tiny_llama)
    given = stacked(items(), CPU, model.prompts)
    for most in (1, 2):
        for part in channel_parts(given, most):
            assert part.batch.prompt.shape[:2] == (6, part.batch.y.shape[-1])
        assert torch.equal(forecasts(model, given, most), forecasts(model, stacked(items(), CPU), most))


def test_workers_make_the_same_prompts(
    write_series: Callable[..., Path],
    tiny_settings: TinySettings,
    tmp_path: Path,
) -> None:
    """A worker that is forked after the tokenizer's threads have run must neither hang nor differ."""
    config = Config.from_flat(tiny_settings(write_series(tmp_path / "series.csv"), tmp_path))
    data = build_data(config)
    model: Any = MODELS["TimeLLM"](config)
    model.prompts(next(iter(training_loader(data, config))).x)  # the library's threads are there
    found = []
    for workers in (0, 1):
        one = config.replace(num_workers=workers)
        loader = training_loader(data, one, prompts=model.prompts)
        found.append(next(iter(loader)).prompt)
        evaluated = evaluation_loader(data.test, 5, workers, prompts=model.prompts)
        found.append(next(iter(evaluated)).prompt)
    assert torch.equal(found[0], found[2]) and torch.equal(found[1], found[3])


def test_models_without_an_llm_have_no_prompts() -> None:
    """A loader that tokenises for a linear model would need a tokenizer that nobody loaded."""
    model = MODELS["DLinear"](Config.from_flat({"seq_len": L, "pred_len": H, "enc_in": N}))
    assert model.prompts is None and not batched(items(), model.prompts).prompt.numel()
