"""Adapters of a run in PEFT's own format, and merged into an LLM that forecasts the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModel

import run_main
from layers.llm.lora import adapted_maps
from models import Forecaster
from models.loading import load_run
from models.registry import MODELS
from scripts import export_adapters
from tests.conftest import forget_accelerator
from utils.config import Config
from utils.training.experiment import RunResult

LAYERS = 2
CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=["tiny_gpt2", "tiny_llama", "tiny_bert"])
def trained(request, series_file, tiny_settings, tmp_path_factory) -> RunResult:
    """A run whose adapters have learned enough to be seen."""
    folder = request.getfixturevalue(request.param)
    settings = tiny_settings(series_file, tmp_path_factory.mktemp("runs"))
    settings |= {"llm_model_path": str(folder), "llm_layers": LAYERS, "peft": "lora", "max_steps": 6}
    settings |= {"lora_alpha": 64, "learning_rate": 0.01, "use_tapr": True, "use_gram": True}
    forget_accelerator()
    return run_main.train(Config.from_flat(settings), model="TimeLLM_Enhanced")


def export(run: RunResult, out: Path, *flags: str) -> int:
    return export_adapters.main([str(run.run_dir), str(out), *flags])


def states(llm: Any) -> torch.Tensor:
    with torch.no_grad():
        return llm(input_ids=torch.arange(20)[None]).last_hidden_state


def test_peft_loads_the_adapters_on_the_kept_layers(trained, tmp_path, capsys):
    assert export(trained, tmp_path / "out") == 0
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {
        p.name for p in (tmp_path / "out").iterdir()
    }
    own: Any = load_run(trained.run_dir, device=CPU).model
    base = AutoModel.from_pretrained(trained.results["llm"]["name"], num_hidden_layers=LAYERS)
    before = states(base.eval())
    loaded: Any = PeftModel.from_pretrained(base, str(tmp_path / "out")).eval()
    torch.testing.assert_close(states(loaded), states(own.llm_model), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(states(loaded), before, atol=1e-2)
    assert adapted_maps(loaded.base_model.model) == adapted_maps(own.llm_model)
    assert f"({len(adapted_maps(own.llm_model))} linear maps)" in capsys.readouterr().out


def test_on_the_whole_llm_the_layers_that_were_left_out_get_none(trained, tmp_path):
    export(trained, tmp_path / "out")
    named = json.loads((tmp_path / "out" / "adapter_config.json").read_text())["target_modules"]
    whole = AutoModel.from_pretrained(trained.results["llm"]["name"])
    loaded: Any = PeftModel.from_pretrained(whole, str(tmp_path / "out"))
    assert sorted(adapted_maps(loaded.base_model.model)) == sorted(named)


def test_a_merged_llm_forecasts_the_same(trained, tmp_path, series_file):
    """As --llm_model_path of a model without adapters, and from the command line's own folder."""
    out = tmp_path / "merged"
    assert export(trained, out, "--merge") == 0
    own: Any = load_run(trained.run_dir, device=CPU)
    plain = own.config.replace(peft="none", lora_alpha=16, llm_model_path=str(out))
    model: Any = MODELS["TimeLLM_Enhanced"](plain)
    assert model.llm_model.config.num_hidden_layers == LAYERS and not adapted_maps(model.llm_model)
    model.load_state_dict({n: w for n, w in own.model.state_dict().items() if ".lora_" not in n})
    x = torch.randn(3, 32, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(x), own.model(x), rtol=1e-5, atol=1e-5)
    frames = [Forecaster.load(where, device="cpu").predict(series_file) for where in (trained.run_dir, out)]
    for name in ("a", "OT"):
        np.testing.assert_allclose(frames[0][name], frames[1][name], rtol=1e-5, atol=1e-5)
    assert not list(tmp_path.glob(".*")) and not (out / "adapters").exists()


def test_adapters_on_kept_weights_are_merged_into_these(series_file, tiny_settings, tmp_path):
    """Merged into the file's weights, the LLM would be none that they were trained on."""
    settings = tiny_settings(series_file, tmp_path / "runs") | {"peft": "lora", "max_steps": 2}
    forget_accelerator()
    run = run_main.train(Config.from_flat(settings | {"llm_weights": "bf16"}), model="TimeLLM")
    assert export(run, tmp_path / "out", "--merge") == 0
    frames = [
        Forecaster.load(at, device="cpu").predict(series_file) for at in (run.run_dir, tmp_path / "out")
    ]
    np.testing.assert_allclose(frames[0]["OT"], frames[1]["OT"], rtol=1e-5, atol=1e-5)


def test_what_can_not_be_exported_is_said(trained, tmp_path, capsys, tiny_settings, series_file):
    (tmp_path / "there").mkdir()
    assert export(trained, tmp_path / "there") == 2
    assert "expected a folder that is not there yet" in capsys.readouterr().err
    forget_accelerator()
    settings = {**tiny_settings(series_file, tmp_path / "runs"), "max_steps": 1}
    for changes, said in (
        ({}, "found one without adapters"),
        ({"peft": "lora", "llm_ablation": "random"}, "which no folder holds"),
    ):
        forget_accelerator()
        run = run_main.train(Config.from_flat({**settings, **changes}), model="TimeLLM")
        assert export(run, tmp_path / "out") == 2
        assert said in capsys.readouterr().err and not (tmp_path / "out").exists()
