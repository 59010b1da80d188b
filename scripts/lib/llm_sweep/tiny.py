"""A tiny configuration of any model type of transformers: its default one, sizes shrunk by their names."""

from __future__ import annotations

import copy
import re
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

LAYERS = 4
WINDOW = 100
VOCABULARY = 300
POSITIONS = 1024
IDS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}

SIZES: tuple[tuple[str, int], ...] = (
    (r"(.*_)?vocab_size(_per_layer_input)?|vocab_size_.*", VOCABULARY),
    (r"num_hidden_layers|n_layers?|num_layers|num_blocks|n_encoder_layers|num_hidden_groups", LAYERS),
    (r"hidden_size|d_model|n_embd|dim|emb_dim|model_dim|embedding_size|decoder_hidden_size", 32),
    (r"dim_model|dim_size|lru_width|attention_hidden_size|word_embed_proj_dim|(wkv|rnn)_dim|key_dim", 32),
    (r"(num|n)_(attention_)?heads?|num_attention_heads|n_head|num_heads|linear_num_value_heads", 4),
    (r".*_attention_heads", 4),
    (r"(.*_)?num_(key_value|kv)_heads|.*num_key_heads|.*num_.*_key_value_heads|attention_groups", 2),
    (r".*intermediate_size|.*ffn_dim|.*ffn_hidden_size|d_inner|n_inner|dim_feedforward", 64),
    (r"hidden_dim|dim_ff", 64),
    (r"(global_|swa_|linear_key_|linear_value_|attention_|index_|v_|qk_nope_|kda_)?head_dim", 8),
    (r"d_kv|dim_head", 8),
    (r"qk_rope_head_dim", 8),
    (r"rotary_dim", 4),
    (r"q_lora_rank|kv_lora_rank|.*_lora_rank|.*_rank", 16),
    (r"(n|num)_(routed_|local_)?experts|num_local_experts|moe_num_experts", 4),
    (r"num_experts_per_tok|.*top_?k|num_experts_per_token|moe_topk", 2),
    (r"n_group|num_group|topk_group", 1),
    (r"(n|num)_shared_experts", 1),
    (r".*sliding_window|.*attention_window_size|local_attention|window_size|attention_window", WINDOW),
    (r"attention_chunk_size", WINDOW),
    (r"max_position_embeddings|n_positions|max_seq_len|n_ctx|max_sequence_length|max_seq_length", POSITIONS),
    (r"(mamba_|ssm_)?(d_state|state_size)|mamba_state_dim", 8),
    (r"(mamba_)?chunk_size", 32),
    (r"type_vocab_size", 2),
    (r"base_channels", 32),
    (r"adapter_(in|out)_dim|adapter_(in|out)put_size", 32),
)  # fmt: skip
"""Names of settings, whole, and what they are shrunk to where they are larger."""
NESTED = {"attn_config", "ffn_config"}
"""Parts of a configuration that are no model's of their own."""
OVERRIDES: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {"num_expert_group": 1},
    "bamba": {"mamba_n_heads": 8, "mamba_d_head": 8, "attn_layer_indices": [1, 3]},
    "blt": {"encoder_hash_byte_group_vocab": 300},
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}},
        "layer_types": ["full_attention"] * 4,
    },
    "ctrl": {"n_positions": POSITIONS},
    "deepseek_v2": {"num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e4}, "ffn_config": {
        "hidden_size": 32, "ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2,
    }},
    "dots3_note_text": {"head_dim": 16, "per_layer_config": {}},
    "dots1": {
        "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1,
    },
    "falcon_h1": {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_ssm": 64},
    "emu3": {"vocabulary_map": {"<image>": 3}},
    "esm": {
        "vocab_size": 300, "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 4,
        "token_dropout": True,
        "intermediate_size": 64, "pad_token_id": 1, "mask_token_id": 3, "position_embedding_type": "rotary",
    },
    "ernie4_5_moe": {"moe_k": 2},
    "esmc": {"num_key_value_heads": 4, "vocab_size": 300, "pad_token_id": 2},
    "funnel": {"architectures": ["FunnelModel"], "block_sizes": [2, 2], "block_repeats": [1, 1], "d_head": 8},
    "gemma3n_text": {
        "intermediate_size": [64] * 4, "num_kv_shared_layers": 2, "hidden_size_per_layer_input": 8,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "gemma4_text": {
        "per_layer_config": {"1": {"head_dim": 16}, "3": {"head_dim": 16}}, "hidden_size_per_layer_input": 8,
    },
    "gemma4_unified_text": {"per_layer_config": {"1": {"head_dim": 16}, "3": {"head_dim": 16}}},
    "granitemoehybrid": {"mamba_n_heads": 8, "mamba_d_head": 8, "layer_types": ["mamba", "attention"] * 2},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "kimi_linear": {"linear_head_dim": 8, "linear_num_heads": 4},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "longcat_flash": {"qk_head_dim": 16, "zero_expert_num": 2},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "ministral": {"head_dim": 8},
    "nemotron": {"num_key_value_heads": 2},
    "neomme": {"head_dim": 16},
    "perceiver": {
        "num_self_attends_per_block": 4, "d_latents": 32, "num_latents": 16, "num_self_attention_heads": 4,
    },
    "qwen4_exp_text": {
        "indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 64,
        "indexer_compress_ratio": 4, "hc_lowrank": 16,
        "layer_types": ["linear_attention", "indexed_attention"] * 2,
        "ngram_vocab_size_base": 300, "split_ngram_parts": 1,
    },
    "reformer": {
        "axial_pos_embds_dim": [8, 24], "axial_pos_shape": [32, 32], "num_hidden_layers": 4,
        "attn_layers": ["local", "lsh"] * 2, "lsh_attn_chunk_length": 16, "local_attn_chunk_length": 16,
        "attention_head_size": 8, "num_buckets": 4,
    },
    "xlnet": {"d_head": 8},
    "xlstm": {"embedding_dim": 32, "num_heads": 4},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"attention_hidden_size": 64, "attention_head_dim": 16},
    "zamba2": {
        "attention_hidden_size": 64, "attention_head_dim": 16, "n_mamba_heads": 8, "mamba_headdim": 8,
    },
}  # fmt: skip
"""What the names do not tell, by type."""


def model_types() -> list[str]:
    """All types of transformers' mappings of causal and masked language models, in order."""
    return sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MODEL_FOR_MASKED_LM_MAPPING_NAMES})


def tiny_config(kind: str, *, layers: int = LAYERS) -> PreTrainedConfig:
    """The type's default configuration with ``layers`` layers and all sizes shrunk."""
    return _shrunk(CONFIG_MAPPING[kind], kind, layers)


def _shrunk(architecture: Any, kind: str, layers: int) -> PreTrainedConfig:
    settings: dict[str, Any] = architecture().to_dict()
    for name in ("transformers_version", "architectures", "model_type", "dtype", "_name_or_path"):
        settings.pop(name, None)
    had = next(
        (settings[n] for n in ("num_hidden_layers", "n_layer", "n_layers", "num_layers") if n in settings),
        None,
    )
    settings = _small(settings, had=had, layers=layers)
    for name, sub in architecture.sub_configs.items():
        if isinstance(settings.get(name), dict) and name not in NESTED:
            own = settings[name].get("model_type")
            known = CONFIG_MAPPING[own] if own in CONFIG_MAPPING else sub  # noqa: SIM401  its get knows none
            settings[name] = _shrunk(known, own or kind, layers).to_dict()
    settings |= copy.deepcopy(OVERRIDES.get(kind, {}))
    return architecture(**settings)


def _small(settings: dict[str, Any], *, had: int | None, layers: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, bool) or value is None:
            found[name] = value
        elif isinstance(value, int):
            found[name] = _number(name, value, layers)
        elif isinstance(value, list) and had and len(value) == had:
            found[name] = _cut(name, value, layers)
        elif name == "per_layer_config":
            found[name] = {
                str(int(i)): _small_numbers(own, layers) for i, own in value.items() if int(i) < layers
            }
        elif name in NESTED and isinstance(value, dict):
            found[name] = _small_numbers(value, layers)
        else:
            found[name] = value
    if isinstance(settings.get("kv_lora_rank"), int):  # latent attention has as many heads of keys
        found["num_key_value_heads"] = found["num_attention_heads"]
    return found | {"initializer_range": 0.2} | ({k: v for k, v in IDS.items()})


def _small_numbers(settings: dict[str, Any], layers: int) -> dict[str, Any]:
    return {
        name: _number(name, value, layers)
        if isinstance(value, int) and not isinstance(value, bool)
        else value
        for name, value in settings.items()
        if name not in ("transformers_version", "model_type")
    }


def _number(name: str, value: int, layers: int) -> int:
    if name.endswith("token_id") or name.endswith("_token_index"):
        return IDS.get(name, min(value, VOCABULARY - 1))
    for pattern, size in SIZES:
        if re.fullmatch(pattern, name):
            return min(value, layers if size == LAYERS and "layer" in name else size)
    return value


def _cut(name: str, value: list[Any], layers: int) -> list[Any]:
    """As many entries as layers, with each kind among them."""
    kinds = list(dict.fromkeys(map(str, value)))
    if len(kinds) == 1 or isinstance(value[0], (int, float)) and not isinstance(value[0], bool):
        return value[:layers]
    firsts = [next(v for v in value if str(v) == kind) for kind in kinds]
    return [firsts[i % len(firsts)] for i in range(layers)]
