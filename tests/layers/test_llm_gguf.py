"""GGUF files of several kinds: values against gguf's own reader, tokens against the file's vocabulary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind

from layers.llm.ablation import pass_through
from layers.llm.check import CheckTokens
from layers.llm.load import load_llm
from tests.layers.test_llm import at
from utils.config import Config
from utils.errors import UserError

WIDTH, HEADS, LAYERS = 256, 4, 2
HEAD = {"qwen3": 128}
"""Width of a head, 64 in the others: transformers 5.23 reads none for Qwen3, whose models all have this."""
BLOCK_BYTES = {Kind.Q4_K: (0, 2), Kind.Q6_K: (208,)}
"""Where a block of each kind has its half-precision factors."""
ARCHITECTURES = ["llama", "qwen2", "qwen3", "gemma3"]
MIXED = {"ffn_down": Kind.Q6_K, "attn_v": Kind.Q6_K, "token_embd": Kind.Q6_K}
"""What Q4_K_M keeps in more bits."""
FORMATS: dict[str, tuple[Kind, dict[str, Kind]]] = {
    "Q4_K_M": (Kind.Q4_K, MIXED),
    **{name: (Kind[name], {}) for name in ("Q6_K", "Q8_0", "Q5_1", "Q4_0", "BF16")},
}
CASES = [(name, "Q4_K_M") for name in ARCHITECTURES] + [("llama", name) for name in list(FORMATS)[1:]]
PARTS = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
}  # fmt: skip
NORMS = {
    "gemma3": {"post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm",
               "post_feedforward_layernorm": "post_ffw_norm"},
}  # fmt: skip


def name_in_file(name: str, architecture: str) -> str:
    """Of a weight of transformers' model."""
    if not name.startswith("layers."):
        return {"embed_tokens.weight": "token_embd.weight", "norm.weight": "output_norm.weight"}[name]
    _, layer, rest = name.split(".", 2)
    part, kind = rest.rsplit(".", 1)
    norms = NORMS.get(architecture, {"post_attention_layernorm": "ffn_norm"})
    return f"blk.{layer}.{(PARTS | norms)[part]}.{kind}"


def blocks(kind: Kind, rows: int, columns: int, generator: np.random.Generator) -> np.ndarray:
    """Bytes of a quantised matrix; gguf writes no K-quants, whose blocks are any bytes with small factors."""
    if kind not in BLOCK_BYTES:
        return gguf.quantize(generator.normal(0, 0.1, (rows, columns)).astype(np.float32), kind)
    _, size = gguf.GGML_QUANT_SIZES[kind]
    packed = generator.integers(0, 256, (rows * columns // 256, size), dtype=np.uint8)
    for place in BLOCK_BYTES[kind]:
        factor = np.full(len(packed), 2e-4, np.float16)
        packed[:, place : place + 2] = factor.view(np.uint8).reshape(-1, 2)
    return packed.reshape(rows, -1)


def write(file: Path, architecture: str, form: str, tokenizer: dict[str, Any]) -> None:
    generator = np.random.default_rng(0)
    usual, special = FORMATS[form]
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_block_count(LAYERS)
    writer.add_context_length(512)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(2)
    head = HEAD.get(architecture, WIDTH // HEADS)
    writer.add_key_length(head)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(head)
    if architecture == "gemma3":
        writer.add_sliding_window(128)
    tokens = sorted(tokenizer["vocab"], key=tokenizer["vocab"].__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in ("<s>", "</s>", "<pad>") else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)

    def add(name: str, rows: int, columns: int = 0) -> None:
        if not columns:
            writer.add_tensor(name, generator.normal(1, 0.1, rows).astype(np.float32))
            return
        kind = next((k for part, k in special.items() if part in name), usual)
        data = blocks(kind, rows, columns, generator)
        writer.add_tensor(name, data, raw_dtype=kind)

    add("token_embd.weight", len(tokens), WIDTH)
    add("output_norm.weight", WIDTH)
    for layer in range(LAYERS):
        start = f"blk.{layer}."
        for part in ("ffn_gate", "ffn_up", "ffn_down"):
            add(f"{start}{part}.weight", WIDTH, WIDTH)
        for part, heads in {"attn_q": HEADS, "attn_k": HEADS // 2, "attn_v": HEADS // 2}.items():
            add(f"{start}{part}.weight", heads * head, WIDTH)
        add(f"{start}attn_output.weight", WIDTH, HEADS * head)
        for part in ["attn_norm", "ffn_norm", *list(NORMS.get(architecture, {}).values())[::2]]:
            add(f"{start}{part}.weight", WIDTH)
        if architecture in ("qwen3", "gemma3"):
            for part in ("attn_q_norm", "attn_k_norm"):
                add(f"{start}{part}.weight", head)
        if architecture == "qwen2":
            for part, rows in {"attn_q": WIDTH, "attn_k": WIDTH // 2, "attn_v": WIDTH // 2}.items():
                add(f"{start}{part}.bias", rows)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def as_transformers(values: np.ndarray, name: str, architecture: str) -> np.ndarray:
    """A tensor of the file as the model has it: Llama's rotation lies otherwise, Gemma's norms add 1."""
    if architecture == "gemma3" and "norm" in name:
        return values - 1
    heads = {"attn_q": HEADS, "attn_k": HEADS // 2}.get(name.split(".")[-2])
    if architecture != "llama" or heads is None:
        return values
    return values.reshape(heads, -1, 2, values.shape[1]).swapaxes(1, 2).reshape(values.shape)


@pytest.fixture
def vocabulary(tiny_llama: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((tiny_llama / "tokenizer.json").read_text())["model"]
    return found


@pytest.mark.parametrize(("architecture", "form"), CASES)
def test_every_weight_and_token_is_the_files(
    architecture: str, form: str, tmp_path: Path, vocabulary: dict[str, Any]
) -> None:
    """Only Q4_1 of a Llama had been read."""
    file = tmp_path / "tiny.gguf"
    write(file, architecture, form, vocabulary)
    llm = load_llm(at(file, layers=LAYERS))
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    weights = dict(llm.model.named_parameters())
    assert len(weights) == len(tensors)
    for name, weight in weights.items():
        tensor = tensors[name_in_file(name, architecture)]
        values = gguf.dequantize(tensor.data, tensor.tensor_type).reshape(weight.shape)
        wanted = torch.from_numpy(as_transformers(values, tensor.name, architecture).copy())
        assert torch.equal(weight, wanted.to(weight.dtype)), name
        assert float(weight.std()) > 0, name
    text = "Range -1.250 to 3.375, strongest lags 1 24."
    ids = llm.tokenizer(text, add_special_tokens=False)["input_ids"]
    tokens = {index: token for token, index in vocabulary["vocab"].items()}
    assert "".join(tokens[i] for i in ids).replace("Ġ", " ") == text and len(ids) < len(text)
    assert f"{file.name}, de-quantised" in llm.identity.note


def test_a_pass_through_it_is_checked_like_any_other(tmp_path: Path, vocabulary: dict[str, Any]) -> None:
    file = tmp_path / "tiny.gguf"
    write(file, "qwen3", "Q8_0", vocabulary)
    assert pass_through(load_llm(at(file)), None, Config(), tokens=CheckTokens()).kind == "causal"


def test_a_file_that_is_cut_short_is_named(tmp_path: Path, vocabulary: dict[str, Any]) -> None:
    file = tmp_path / "tiny.gguf"
    write(file, "llama", "Q8_0", vocabulary)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(UserError, match=r"tiny\.gguf") as caught:
        load_llm(at(file))
    assert "\n" not in str(caught.value)
