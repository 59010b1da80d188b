"""Linear maps kept in fewer bytes: values and gradients against torchao's and float32; what is counted."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from layers.llm import blocks as llm_fused
from layers.llm import check, kept
from layers.llm.check import checked_pass
from layers.llm.kept import GROUP, INT4, INT8, KeptLinear, format_of, keep_maps, restore_maps
from layers.llm.layers import stack_of
from layers.llm.load import load_llm
from tests.layers.test_llm import at
from tests.models.test_fast_paths import assert_alike, gradients
from tests.models.test_timellm_enhanced import forecast, model_of, train
from utils.config import Config, ConfigError
from utils.errors import UserError

FOLDERS = ["tiny_gpt2", "tiny_llama", "tiny_qwen", "tiny_bert"]
KINDS: dict[str, dict[str, Any]] = {
    "bf16": {"llm_weights": "bf16"},
    "int8": {"llm_weights": "int8"},
    "int4": {"load_in_4bit": True},
}
OFF = {"bf16": 0.02, "int8": 0.08, "int4": 0.6}
"""Most that forecasts and all gradients differ from float32's, of their own size: root mean squares."""
needs_torchao = pytest.mark.skipif(kept.find_spec(kept.PACKAGE) is None, reason="needs torchao, an extra")
CASES = [
    pytest.param(name, kind, marks=() if kind == "bf16" else needs_torchao)
    for kind, names in {"bf16": FOLDERS[1:2], "int8": FOLDERS, "int4": FOLDERS[:2]}.items()
    for name in names
]
with_all = pytest.mark.parametrize(
    "kind", ["bf16", pytest.param("int8", marks=needs_torchao), pytest.param("int4", marks=needs_torchao)]
)


def drawn(kind: type[Any] = nn.Linear, *, inputs: int = 64, outputs: int = 24) -> Any:
    torch.manual_seed(0)
    part = kind(outputs, inputs) if kind is Conv1D else kind(inputs, outputs)
    nn.init.normal_(part.bias)
    return part.requires_grad_(False)


def holding(part: nn.Module, wanted: str) -> KeptLinear:
    """A map in the format ``wanted``."""
    model = nn.Sequential(part)
    keep_maps(model, wanted, dtype=torch.float32, flag="--llm_weights", name="it")
    return model[0]  # type: ignore[return-value]


def off(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


# One map.


@needs_torchao
@pytest.mark.parametrize("wanted", [INT8, INT4])
@pytest.mark.parametrize("kind", [nn.Linear, Conv1D])
def test_a_map_in_integers_is_torchaos_own(wanted: str, kind: type[nn.Module]) -> None:
    """Values, states and gradients; GPT-2's maps are kept too, which torchao passes over."""
    from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, PerGroup, quantize_

    part = drawn(kind)
    reference = drawn()
    reference.weight.copy_(part.weight.t() if kind is Conv1D else part.weight)
    reference.bias.copy_(part.bias)
    bits: Any = torch.int4  # type: ignore[attr-defined]
    four = IntxWeightOnlyConfig(weight_dtype=bits, granularity=PerGroup(GROUP))
    quantize_(reference, Int8WeightOnlyConfig() if wanted == INT8 else four)
    own = holding(part, wanted)
    assert own.format == wanted
    assert torch.equal(own.weight, reference.weight.dequantize())
    x = torch.randn(3, 5, 64)
    states, gradient = [], []
    for map_ in (own, reference):
        given = x.clone().requires_grad_()
        states.append(map_(given))
        gradient.append(torch.autograd.grad(states[-1].square().sum(), given)[0])
    torch.testing.assert_close(*states)
    torch.testing.assert_close(*gradient)


@with_all
def test_a_map_keeps_no_copy_for_its_gradient(kind: str) -> None:
    """Autograd keeps every layer's weight in float32 through torchao's own maps: more than without them."""
    part = holding(drawn(), kind)
    held: list[Tensor] = []

    def hold(tensor: Tensor) -> Tensor:
        held.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
        part(torch.randn(2, 64, requires_grad=True))
    assert not held


@needs_torchao
def test_inputs_that_make_no_groups_are_kept_in_eight_bits() -> None:
    """torchao raises on them."""
    part = holding(drawn(inputs=40), INT4)
    assert part.format == INT8 and part.kept.shape == (24, 40)


@needs_torchao
@pytest.mark.parametrize("wanted", [INT8, INT4])
@pytest.mark.parametrize("kind", [nn.Linear, Conv1D])
def test_a_map_is_given_back_as_the_kind_it_was(wanted: str, kind: type[nn.Module]) -> None:
    """Adapters are merged into it; GPT-2's weights lie the other way round on disk."""
    model = nn.Sequential(drawn(kind))
    before = model[0].weight.shape
    keep_maps(model, wanted, dtype=torch.float32, flag="", name="")
    x = torch.randn(2, 64)
    states = model(x)
    restore_maps(model)
    assert type(model[0]) is kind and model[0].weight.shape == before
    torch.testing.assert_close(model(x), states)


# A whole model.


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_forecast_and_every_gradient_are_those_of_the_rounded_weights(
    name: str, kind: str, request: pytest.FixtureRequest
) -> None:
    """Kinds of int8 that round the tokens too give earlier tokens a gradient of exactly zero.

    The gradients together are near float32's.
    """
    whole, model, rounded = (
        model_of(request.getfixturevalue(name), fit=False, dropout=0.0, **more)
        for more in ({}, KINDS[kind], KINDS[kind])
    )
    assert format_of(model.llm_model) == kind
    restore_maps(rounded.llm_model)
    assert off(forecast(model.eval()), forecast(whole.eval())) < OFF[kind]
    torch.testing.assert_close(forecast(model), forecast(rounded.eval()), rtol=1e-4, atol=1e-5)
    found, wanted = gradients(model), gradients(whole)
    assert found.keys() == {n for n, p in whole.named_parameters() if p.requires_grad}
    assert_alike(found, gradients(rounded))
    assert off(*(torch.cat([g.flatten() for g in each.values()]) for each in (found, wanted))) < OFF[kind]


@pytest.mark.parametrize("kind", ["bf16", pytest.param("int8", marks=needs_torchao)])
def test_fused_layers_read_kept_maps(tiny_llama: Path, kind: str) -> None:
    """Left to transformers' own code, a training step held more than in float32."""
    model = load_llm(at(tiny_llama, **KINDS[kind])).model
    taken = checked_pass(model)
    assert taken.way.is_fused and llm_fused.is_fused(stack_of(model, 2))
    front, tail = torch.randn(2, 3, 32), torch.randn(2, 4, 32)
    mask = torch.ones(2, 7, dtype=torch.int64)
    results = []
    for way in (taken, taken.plain()):
        given = tail.clone().requires_grad_()
        states = way(front, given, mask=mask)
        results.append((states.detach(), torch.autograd.grad(states.square().sum(), given)[0]))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


def test_weights_that_lie_in_bf16_lose_nothing_and_are_never_whole(tiny_llama: Path, tmp_path: Path) -> None:
    """Read in float32 first, a model would need twice the memory that it keeps."""
    saved: Any = load_llm(at(tiny_llama)).model
    saved.to(torch.bfloat16)
    saved.save_pretrained(tmp_path)
    for file in tiny_llama.glob("tokenizer*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    whole, model = model_of(tmp_path), model_of(tmp_path, llm_weights="bf16")
    torch.testing.assert_close(forecast(model.eval()), forecast(whole.eval()), rtol=1e-5, atol=1e-6)
    assert {w.dtype for n, w in model.llm_model.named_parameters() if n.endswith("kept")} == {torch.bfloat16}


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_what_is_kept_is_counted_and_said(
    name: str, kind: str, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    """GPT-2 "in int8" was float32 in every weight, and said that it was quantised."""
    caplog.set_level(logging.INFO)
    folder = request.getfixturevalue(name)
    every = sum(weight.numel() for weight in load_llm(at(folder)).model.parameters())
    maps = sum(part.weight.numel() for part in kept.linear_maps(load_llm(at(folder)).model).values())
    caplog.clear()
    model = load_llm(at(folder, **KINDS[kind])).model
    (line,) = [text for text in caplog.messages if text.startswith("--l")]
    said = re.search(rf"([\d.]+) M in {kind} of ([\d.]+) M weights", line)
    assert said is not None and [float(n) for n in said.groups()] == [
        round(n / 1e6, 1) for n in (maps, every)
    ]
    stored = {w.untyped_storage().data_ptr(): w.untyped_storage().nbytes() for w in model.parameters()}
    scales = {"bf16": 0, "int8": 4, "int4": 4}[kind] * sum(
        part.scale.numel()
        for part in model.modules()
        if isinstance(part, KeptLinear) and part.scale is not None
    )
    assert (
        sum(stored.values()) == 4 * (every - maps) + maps * {"bf16": 2, "int8": 1, "int4": 0.5}[kind] + scales
    )


@pytest.mark.parametrize("wanted", ["auto", "fp32"])
def test_what_a_run_computes_in_is_kept_as_it_is(wanted: str, tiny_llama: Path) -> None:
    assert not format_of(load_llm(at(tiny_llama, llm_weights=wanted)).model)


def test_weights_may_be_wider_than_what_a_run_computes_in(tiny_llama: Path) -> None:
    """--llm_weights fp32 --mixed_precision bf16: the same forecasts as by auto."""
    half, wide = (
        model_of(tiny_llama, mixed_precision="bf16", llm_weights=wanted) for wanted in ("auto", "fp32")
    )
    assert format_of(wide.llm_model) == "fp32"
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(forecast(wide.eval()), forecast(half.eval()))


@pytest.mark.parametrize("kind", ["bf16", pytest.param("int8", marks=needs_torchao)])
@pytest.mark.parametrize("name", ["tiny_gpt2", "tiny_llama"])
def test_adapters_learn_on_kept_maps(name: str, kind: str, request: pytest.FixtureRequest) -> None:
    model = model_of(request.getfixturevalue(name), peft="lora", **KINDS[kind])
    weights = {n: w.clone() for n, w in model.llm_model.named_parameters()}
    train(model, 3)
    moved = {n for n, w in model.llm_model.named_parameters() if not torch.equal(w, weights[n])}
    assert moved == {n for n in weights if "lora_" in n}


@needs_torchao
def test_a_way_that_was_found_is_kept_for_each_format(tiny_llama: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(check, "KEPT", tmp_path)
    for more in ({}, KINDS["int8"]):
        llm = load_llm(at(tiny_llama, **more))
        checked_pass(llm.model, content_hash=llm.identity.content_hash)
    assert len(list(tmp_path.iterdir())) == 2


# What is refused.


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_without_the_package_a_line_says_how_to_get_it(kind: str, tiny_llama: Path, monkeypatch) -> None:
    monkeypatch.setattr(kept, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"--l.*expected the package torchao.*`pip install torchao=="
    ) as caught:
        load_llm(at(tiny_llama, **KINDS[kind]))
    assert "\n" not in str(caught.value)


def test_a_model_without_linear_maps_is_refused() -> None:
    with pytest.raises(
        UserError, match="--llm_weights int8: expected linear maps .* found none in Sequential"
    ):
        keep_maps(nn.Sequential(), "int8", dtype=torch.float32, flag="--llm_weights int8", name="it")


def test_weights_that_are_not_finite_are_not_rounded(tiny_llama: Path, tmp_path: Path) -> None:
    """Integers hide a NaN, and the start's check finds none any more."""
    for file in tiny_llama.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    weights["layers.0.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"found 1 of layers.0.mlp.up_proj.weight"):
        load_llm(at(tmp_path, llm_weights="int8"))


@pytest.mark.parametrize(
    "beside",
    [{"llm_ablation": "random"}, {"load_in_4bit": True}, {"llm_device_map": "cpu"}, {"shard_llm": True}],
)
def test_settings_that_do_not_go_together_are_named(beside: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="--llm_weights bf16: .*drop "):
        Config.from_flat({"llm_weights": "bf16", **beside})


def test_four_bits_do_not_go_with_a_map_of_devices_without_bitsandbytes(tiny_llama: Path) -> None:
    with pytest.raises(UserError, match="--llm_device_map: expected a GPU with bitsandbytes"):
        load_llm(at(tiny_llama, load_in_4bit=True, llm_device_map="cpu"))


def test_products_under_autocast_are_those_of_a_plain_map() -> None:
    """The gradient comes in bf16, the weight is made in float32."""
    part, own = drawn(), holding(drawn(), "bf16")
    part.weight.copy_(own.weight)
    states, found = [], []
    for map_ in (part, own):
        x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            states.append(map_(x))
        found.append(torch.autograd.grad(states[-1].float().sum(), x)[0])
    torch.testing.assert_close(states[0].float(), states[1].float(), rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(found[0], F.linear(torch.ones(3, 24), own.weight.t()), rtol=2e-2, atol=2e-2)
    assert found[0].dtype == found[1].dtype == torch.float32
    torch.testing.assert_close(*found, rtol=2e-2, atol=2e-2)
