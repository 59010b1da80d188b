"""The estimate of memory against what processes took, and its remedies."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from models.registry import MODELS
from scripts.lib.benchmark.client import workers
from utils.config import Config
from utils.process_memory import available_bytes, mib, peak_bytes, resident_bytes
from utils.reporting import peak_memory as memory
from utils.reporting.out_of_memory import document_measures, out_of_memory_text
from utils.reporting.peak_memory import (
    LLMSizes,
    MemorySizes,
    evaluation_memory,
    sizes_of,
    taken_by_cpu,
    training_memory,
)

SMOLLM2 = LLMSizes(
    layers=6,
    width=576,
    vocabulary=49152,
    heads=9,
    attention=576,
    keys=192,
    layer_weights=3_540_096,
    inner=1536,
    inner_copies=3,
    weights=4 * (49152 * 576 + 6 * 3_540_096 + 576),
    weight=4,
)
LIBRARIES = 500e6
"""The interpreter with torch and transformers, a tokenizer and the data, when the values were measured."""
PROMPT = (74, 46)
EIGHT = {"batch_size": 8, "source_tokens": "prototypes"}
MEASURED = [
    # settings, prompt (constant, rest), MB of trained weights, MB at the peak of training and evaluation
    ({}, PROMPT, 207.1, 1694, 1011),
    ({"source_tokens": "prototypes"}, PROMPT, 12.8, 1121, 814),
    ({"batch_size": 8}, PROMPT, 207.1, 2715, 1223),
    ({"mixed_precision": "bf16"}, PROMPT, 207.1, 1558, 953),
    ({**EIGHT, "mixed_precision": "bf16"}, PROMPT, 12.8, 1442, 754),
    ({**EIGHT, "gradient_checkpointing": True}, PROMPT, 12.8, 1515, 1056),
    ({**EIGHT, "use_tapr": True, "use_gram": True}, PROMPT, 13.2, 3577, 1160),
]  # fmt: skip


def sizes_with(settings: dict[str, Any], prompt: tuple[int, int], trained: float) -> MemorySizes:
    alike = {"batch_size": settings.get("batch_size", 2), "eval_batch_size": settings.get("batch_size", 2)}
    config = Config.from_flat({"llm_layers": 6, "season": 24, **alike, **settings})
    half = config.training.mixed_precision == "bf16"
    return MemorySizes(
        config=config,
        llm=SMOLLM2._replace(weight=2, weights=SMOLLM2.weights // 2) if half else SMOLLM2,
        prompt=prompt,
        kind="causal",
        variables=7,
        forecast=7,
        memory_rows=5000 if config.gram.use_gram else 0,
        trained=trained * 1e6,
    )


@pytest.mark.parametrize(("settings", "prompt", "trained", "training", "evaluation"), MEASURED)
def test_the_estimate_is_near_what_was_measured(settings, prompt, trained, training, evaluation):
    """SmolLM2 with 6 layers, 7 variables, on a CPU: within 15%."""
    sizes = sizes_with(settings, prompt, trained)
    step, batch = training_memory(sizes), evaluation_memory(sizes)
    built = LIBRARIES + step.weights + step.rows
    assert (built + taken_by_cpu(step)) / 1e6 == pytest.approx(training, rel=0.15)
    assert (built + batch.to_come) / 1e6 == pytest.approx(evaluation, rel=0.1)


def test_trained_weights_are_those_of_the_built_model(tiny_llama):
    """The remedies count with a formula, which must be the model's."""
    for source in ("mapping", "prototypes"):
        config = Config.from_flat(
            {"llm_model_path": str(tiny_llama), "llm_layers": 2, "d_ff": 16, "n_heads": 2, "num_tokens": 20}
            | {"source_tokens": source}
        )
        sizes = sizes_of(MODELS["TimeLLM"](config), config=config, forecast=7)
        assert 4 * memory.trained_weights(config, sizes.llm) == sizes.trained
        assert sizes.llm is not None and sizes.llm.layers == 2 and sizes.kind == "causal"


@pytest.mark.parametrize("folder", ["tiny_gpt2", "tiny_bert"])
def test_sizes_of_other_architectures_are_found(folder, request):
    config = Config.from_flat(
        {"llm_model_path": str(request.getfixturevalue(folder)), "llm_layers": 2, "d_ff": 16}
    )
    model: Any = MODELS["TimeLLM"](config)
    sizes = sizes_of(model, config=config, forecast=7)
    assert sizes.llm is not None and sizes.llm.keys == sizes.llm.attention == 32
    assert sizes.llm.weights == 4 * sum(p.numel() for p in model.llm_model.parameters())
    assert training_memory(sizes).to_come > 0


def test_layers_that_are_computed_again_keep_less():
    own = sizes_with({"batch_size": 8}, PROMPT, 207.1)
    again = own.replace(gradient_checkpointing=True)
    assert training_memory(again).llm < 0.7 * training_memory(own).llm
    assert evaluation_memory(again).total == evaluation_memory(own).total


def test_a_gpus_kernels_keep_no_attention_but_copy_shared_keys():
    own = sizes_with({"seq_len": 2048, "batch_size": 8}, PROMPT, 207.1)
    on_gpu = memory.dataclass_replace(own, on_gpu=True)
    assert training_memory(on_gpu).llm < training_memory(own).llm


@pytest.mark.parametrize("processes", [2, 8])
def test_of_divided_layers_a_process_counts_its_share_and_those_gathered(processes):
    """The word embeddings and what is trained are whole in each."""
    whole = sizes_with({}, PROMPT, 207.1)
    divided = replace(whole, llm=SMOLLM2._replace(processes=processes))
    layers = SMOLLM2.layers * SMOLLM2.layer_weights * SMOLLM2.weight
    kept, gathered = layers / processes, memory.GATHERED * layers / SMOLLM2.layers
    for estimate in (training_memory, evaluation_memory):
        one, share = estimate(whole), estimate(divided)
        assert one.weights - share.weights == pytest.approx(layers - kept)
        assert share.llm - one.llm == pytest.approx(gathered)
        assert one.total - share.total == pytest.approx(layers - kept - gathered)
    fewer = divided.replace(llm_layers=3)
    assert training_memory(divided).weights - training_memory(fewer).weights == pytest.approx(kept / 2)


def test_the_documents_remedies_come_in_its_order_with_this_runs_values():
    sizes = sizes_with({"batch_size": 32, "use_tapr": True, "use_gram": True}, PROMPT, 210)
    text = out_of_memory_text(sizes, "CUDA out of memory.", passes=1)
    flags = [line.split("--")[1].split()[0].rstrip(":") for line in text.splitlines()[2:]]
    assert flags == [
        "batch_size", "seq_len", "llm_layers", "d_ff", "d_model", "n_scales", "top_k", "use_gram",
        "load_in_4bit", "llm_weights", "mixed_precision", "source_tokens",
    ]  # fmt: skip
    assert "--batch_size 16 --gradient_accumulation_steps 2, the same effective batch (now 32)" in text
    assert "--seq_len 384 (now 512): saves about" in text and "--llm_layers 4 (now 6)" in text


def test_measures_that_are_not_open_to_a_run_are_left_out():
    sizes = sizes_with({"batch_size": 1, "d_ff": 16, "d_model": 16}, PROMPT, 207.1)
    flags = [text.split("--")[1].split()[0] for text in document_measures(sizes, passes=1)]
    assert flags == ["seq_len", "llm_layers", "load_in_4bit"]


def test_what_a_remedy_saves_is_what_the_estimate_says():
    sizes = sizes_with({"batch_size": 8}, PROMPT, 207.1)
    first = next(iter(document_measures(sizes, passes=1)))
    saved = training_memory(sizes).total - training_memory(sizes.replace(batch_size=4)).total
    assert first.endswith(f"saves about {mib(saved)}")
    fewer = sizes.replace(llm_layers=2).llm
    assert fewer is not None and fewer.weights == SMOLLM2.weights - 4 * 4 * SMOLLM2.layer_weights


def test_the_process_knows_its_memory():
    assert 0 < resident_bytes() <= peak_bytes()
    assert available_bytes() > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"batch_size": 8, "use_tapr": True, "use_gram": True, "token_order": "prompt_first"},
        {"batch_size": 8, "peft": "lora", "lora_targets": ["all-linear"]},
    ],
    ids=["modules", "adapters"],
)
def test_the_estimate_is_within_a_fifth_of_a_measured_process(settings, tiny_llama):
    """A process of its own: what it said before its first step, and what it then took."""
    flags = {
        "data": "synthetic", "llm_model_path": str(tiny_llama), "llm_layers": 3, "d_ff": 16, "cpu": True,
        "num_tokens": 1000, **settings,
    }  # fmt: skip
    request = {"role": "subject", "model": "TimeLLM_Enhanced", "settings": flags}
    with workers({"run": request}) as started:
        expected = started["run"].ask("expected_memory")
        evaluation = started["run"].ask("peak", method="evaluate")["bytes"]
        training = started["run"].ask("peak", method="train_step")["bytes"]
    print(f"\nMB: {expected['training'] / 1e6:.0f} expected, {training / 1e6:.0f} taken")
    assert expected["training"] == pytest.approx(training, rel=0.2)
    assert expected["evaluation"] == pytest.approx(evaluation, rel=0.2)


@pytest.mark.gpu
@pytest.mark.parametrize("changes", [{}, {"use_tapr": True, "use_gram": True}, {"mixed_precision": "bf16"}])
def test_the_estimate_is_within_a_fifth_of_a_gpus_peak(changes, smollm2):
    flags = {
        "data": "synthetic",
        "llm_model": smollm2,
        "llm_layers": 6,
        "batch_size": 8,
        "eval_batch_size": 8,
        **changes,
    }
    request = {"role": "subject", "model": "TimeLLM_Enhanced", "settings": flags, "device": "cuda"}
    with workers({"run": request}) as started:
        expected = started["run"].ask("expected_memory")["training"]
        taken = started["run"].ask("peak", method="train_step")["gpu_bytes"]
    print(f"\nMB: {expected / 1e6:.0f} expected, {taken / 1e6:.0f} taken")
    assert expected == pytest.approx(taken, rel=0.2)
