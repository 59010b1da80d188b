"""Each part does its work in a trained model: measured on series in which there is work to do."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

import run_main_enhanced
from data_provider.data_factory import build_data
from data_provider.series import Series
from layers.prompt import PromptBuilder
from models.TimeLLM_Enhanced import Model
from tests.conftest import forget_accelerator
from tests.planted import planted_recurrences, planted_trends
from tests.utils.training.comparing import last_payload
from utils.config import Config
from utils.training.experiment import RunResult
from utils.training.run_folder import CONFIG_FILE, read_json

pytestmark = pytest.mark.slow

LOOKBACK, HORIZON = 48, 12
SMALL = f"""--data custom --llm_layers 1 --seq_len {LOOKBACK} --label_len 0 --pred_len {HORIZON} --d_model 32
--d_ff 16 --n_heads 4 --num_tokens 50 --dropout 0 --eval_stride 4 --eval_batch_size 256 --max_grad_norm 1
--aux_warmup_steps 50 --levels --cpu""".split()


def _train(series: Series, folder: Path, llm: Path, *, steps: int, words: str) -> tuple[Config, RunResult]:
    """Train on ``series`` by the ordinary command."""
    table = pd.DataFrame(series.values, columns=list(series.columns))
    table.insert(0, "date", series.dates)
    table.to_csv(folder / "series.csv", index=False)
    places = ["--root_path", folder, "--data_path", "series.csv", "--llm_model_path", llm]
    places += ["--checkpoints", folder / "runs", "--max_steps", steps, "--eval_steps", steps]
    forget_accelerator()
    run = run_main_enhanced.main([*map(str, places), *SMALL, *words.split()])
    return Config.from_flat(read_json(run.run_dir / CONFIG_FILE)), run


@pytest.fixture(scope="module")
def recurrences(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Any:
    """Runs with retrieval and with its random control on planted recurrences."""
    series = planted_recurrences(seed=1, seq_len=LOOKBACK, pred_len=HORIZON, motifs=6)
    words = "--use_gram --save_steps 300 --learning_rate 0.003 --retrieval_control"
    folders = {control: tmp_path_factory.mktemp(control) for control in ("none", "random")}
    return {
        control: _train(series, folder, tiny_llama, steps=300, words=f"{words} {control}")
        for control, folder in folders.items()
    }


def test_retrieval_finds_planted_recurrences(recurrences: Any) -> None:
    """A memory that does not matter: neighbours found must beat neighbours drawn, by 30% or more."""
    error = {control: run.results["best"]["test"]["mse"] for control, (_, run) in recurrences.items()}
    print(f"\ntest mse: retrieved {error['none']:.3f}, random control {error['random']:.3f}")
    assert error["none"] <= 0.7 * error["random"]


def test_the_gate_of_a_trained_model_tells_where_the_past_recurs(tmp_path: Path, tiny_llama: Path) -> None:
    """A gate that says the same of every window decides nothing: one variable recurs, the other is noise."""
    series = planted_recurrences(seed=1, seq_len=LOOKBACK, pred_len=HORIZON, motifs=6)
    noise = np.random.default_rng(0).standard_normal(series.values.shape)
    both = replace(series, values=np.hstack([series.values, noise]), columns=("recurs", "noise"))
    words = "--use_gram --top_k 3 --save_steps 0 --learning_rate 0.003"
    _, run = _train(both, tmp_path, tiny_llama, steps=150, words=words)
    scores = run.results["last"]["test"]
    print(f"\ngate: mean {scores['gate_mean']:.3f}, deviation {scores['gate_std']:.3f}")
    assert scores["gate_std"] > 0.05


def test_direction_accuracy_on_planted_trends(tmp_path: Path, tiny_llama: Path) -> None:
    """A trend head that does not learn: directions that the lookback shows must be named."""
    series = planted_trends(seed=1, seq_len=LOOKBACK, pred_len=HORIZON, rows=4000)
    _, run = _train(
        series, tmp_path, tiny_llama, steps=100, words="--use_tapr --save_steps 0 --learning_rate 0.002"
    )
    scores = run.results["last"]["test"]
    print(f"\ndirection {scores['direction_accuracy']:.1%}, majority {scores['direction_majority']:.1%}")
    assert scores["direction_accuracy"] >= 0.8
    assert scores["direction_majority"] < 0.6, "the planted directions should be about equally frequent"


def test_llm_prompt_and_memory_matter_to_a_trained_forecast(recurrences: Any) -> None:
    """Parts carried along without effect: swap each, and the trained forecast must change."""
    config, run = recurrences["none"]
    saved = last_payload(run.run_dir)["model"]
    test = build_data(config).test
    windows = [test[i] for i in range(0, len(test), len(test) // 64)]  # type: ignore[arg-type]
    x, start, series_id = (torch.stack([w[i] for w in windows]) for i in (0, 4, 5))

    def forecast(change: Any = None) -> Tensor:
        model = Model(config)
        model.load_state_dict(saved)
        model.eval()
        if change is not None:
            change(model)
        with torch.no_grad():
            return model(x, start=start, series_id=series_id)

    def other_llm(model: Any) -> None:
        generator = torch.Generator().manual_seed(7)
        for weight in model.llm_model.layers.parameters():
            weight.copy_(
                weight.flatten()[torch.randperm(weight.numel(), generator=generator)].view_as(weight)
            )

    def other_prompt(model: Any) -> None:
        model.prompt = PromptBuilder(
            model.prompt.tokenizer,
            "Prices of wheat and rye in three towns.",
            seq_len=LOOKBACK,
            pred_len=HORIZON,
            digits=1,
        )

    def other_futures(model: Any) -> None:
        model.start.retrieved.futures = model.start.retrieved.futures.roll(1000, dims=0)

    plain = forecast()
    assert torch.equal(plain, forecast()), "the same model must give the same forecast"
    spread = plain.std()
    for name, change in {"LLM": other_llm, "prompt": other_prompt, "futures": other_futures}.items():
        moved = float((forecast(torch.no_grad()(change)) - plain).square().mean().sqrt() / spread)
        print(f"\nother {name}: the forecast moves by {moved:.1%} of its deviation")
        assert moved > 0.01, name
