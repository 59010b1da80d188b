"""The table of shapes is what one pass has, not what a formula says; the prompt is what the LLM gets."""

from __future__ import annotations

import random
import re

import numpy as np
import pytest
import torch

from models.inspection import inspection_lines, prompts_of, watched
from models.registry import MODELS
from utils.config import Config
from utils.training.forward import forecast_state
from utils.types import Batch

BOTH = {"use_tapr": True, "use_gram": True}


@pytest.fixture
def build(tiny_settings, series_file, tmp_path):
    """A model with its memory, and a batch of training windows."""
    from data_provider.data_factory import build_data
    from utils.training.experiment import resolve
    from utils.training.forward import stacked

    def make(name="TimeLLM_Enhanced", **changes):
        config = Config.from_flat({**tiny_settings(series_file, tmp_path), **changes})
        data = build_data(config)
        torch.manual_seed(0)
        model = MODELS[name](resolve(config, data)).eval()
        model.fit_statistics(data.source)
        items = [data.train[i] for i in range(3)]
        return model, stacked(items, torch.device("cpu"))

    return make


def shapes(model, batch: Batch) -> dict[str, tuple[int, ...]]:
    with watched(model) as record, torch.no_grad():
        forecast_state(model, batch)
    return {stage.name: stage.shape for stage in record.stages}


@pytest.mark.parametrize("order", ["document", "prompt_first"])
def test_every_stage_of_the_documents_table_is_there(build, order):
    model, batch = build(**BOTH, token_order=order, top_k=5)
    found = shapes(model, batch)
    length = found["LLM Input"][1]
    prompt = model.prompt.tokens(model.normalise(batch.x).lookback)[0].shape[1]
    assert list(found.items()) == [
        ("Input", (3, 32, 2)),
        ("Instance Norm", (3, 32, 2)),
        ("Channel Independence", (6, 1, 32)),
        ("Patch Embedding", (6, 4, 16)),
        ("TAPR-DM", (6, 4, 16)),
        ("TAPR-C2F direction", (6, 3)),
        ("TAPR-C2F magnitude", (6, 4)),
        ("TAPR-C2F path", (6, 8)),
        ("GRA-M retrieval", (6, 5, 8)),
        ("GRA-M lift", (6, 5, 16)),
        ("GRA-M gating", (6, 4, 16)),
        ("Reprogramming", (6, 4, 32)),
        ("LLM Input", (6, 1 + 2 + prompt + 4, 32)),
        ("LLM Output", found["LLM Output"]),
        ("FlattenHead", (6, 8)),
        ("C2F Fusion", (6, 8)),
        ("Denorm", (3, 8, 2)),
    ]
    assert found["LLM Output"][0] == 6 and 4 <= found["LLM Output"][1] <= length


def test_the_shapes_follow_the_run_at_hand(build):
    """Without padding, with other sizes, without the modules: nothing is taken from a default."""
    model, batch = build(padding_patch="none", patch_len=8, stride=4, d_model=20)
    found = shapes(model, batch)
    assert found["Patch Embedding"] == (6, 7, 20) and found["Reprogramming"] == (6, 7, 32)
    assert not any("TAPR" in name or "GRA-M" in name or "Fusion" in name for name in found)
    model, batch = build(features="MS")
    assert shapes(model, batch)["Channel Independence"] == (3, 2, 32)
    baseline, batch = build("DLinear")
    assert shapes(baseline, batch) == {"Input": (3, 32, 2), "Denorm": (3, 8, 2)}


@pytest.mark.parametrize("order", ["document", "prompt_first"])
def test_the_parts_of_the_llms_input_add_up_in_their_order(build, order):
    model, batch = build(**BOTH, token_order=order, top_k=5)
    with watched(model) as record, torch.no_grad():
        forecast_state(model, batch)
    note = next(stage.note for stage in record.stages if stage.name == "LLM Input")
    parts = dict(re.findall(r"(\w+)\((\d+)\)", note))
    names = ["trend", "retrieval", "prompt"] if order == "document" else ["prompt", "trend", "retrieval"]
    assert list(parts) == [*names, "patch"]
    assert sum(map(int, parts.values())) == record.shape("LLM Input")[1]
    assert (parts["trend"], parts["retrieval"], parts["patch"]) == ("1", "2", "4")


def test_looking_changes_nothing(build):
    """Not the forecast, not the mode, not the random state, and no hook stays."""
    model, batch = build(**BOTH, dropout=0.5)
    with torch.no_grad():
        before = model(batch.x, start=batch.start, series_id=batch.series_id)
    own_pass = model._pass
    model.train()
    states = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
    lines = inspection_lines(model, batch, ["a", "OT"], shapes=True, prompt=True)
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (random.getstate(), str(np.random.get_state()))
    assert model.training and model._pass is own_pass and not model.llm_model.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    with torch.no_grad():
        after = model.eval()(batch.x, start=batch.start, series_id=batch.series_id)
    assert torch.equal(before, after)
    assert any(line == "magnitude_logits: [6, 4]" for line in lines)
    assert any(line.startswith("trend_info keys: ['direction_logits', 'magnitude_logits'") for line in lines)
    assert "enc_out after TAPR: [6, 4, 16]" in lines and "x_enc: [3, 32, 2]" in lines


def test_the_prompt_is_what_the_llm_gets(build):
    """Decoded from its tokens, which are counted: padding is neither shown nor counted."""
    model, batch = build(**BOTH)
    x = batch.x[:1]
    found = prompts_of(model, x)
    texts = model.prompt.texts(model_statistics(model, x))
    assert [prompt.text for prompt in found] == texts
    for prompt, text in zip(found, texts, strict=True):
        assert prompt.tokens == len(model.prompt.tokenizer(text)["input_ids"])
        assert 0 < prompt.constant < prompt.tokens


def model_statistics(model, x):
    from layers.prompt import window_statistics

    return window_statistics(model.normalise(x).normalised)


def test_a_special_token_is_part_of_the_prompt(build, tiny_llama):
    model, batch = build(llm_model_path=str(tiny_llama))
    assert all(prompt.text.startswith("<s>") for prompt in prompts_of(model, batch.x[:1]))


def test_a_model_without_a_language_model_has_no_prompt(build):
    model, batch = build("DLinear")
    with pytest.raises(ValueError, match="without a language model"):
        prompts_of(model, batch.x[:1])
    (line,) = inspection_lines(model, batch, ["a", "OT"], shapes=False, prompt=True)
    assert line == "--dump_prompt: DLinear has no language model, so no prompt"
