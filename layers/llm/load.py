"""A frozen language model with its tokenizer, by name, hub id, folder or GGUF file.

Local folders and caches are looked at first. The hub is asked only for a model that was named
explicitly and is not found locally; `auto` never asks it.
"""

from __future__ import annotations

import logging
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from layers.llm.files import (
    Source,
    fingerprint,
    has_bitsandbytes,
    one_line,
    precision_of,
    quiet_transformers,
    read_model,
    read_tokenizer,
    text_settings,
    weight_files,
)
from layers.llm.kept import FLOATS, GROUP, INT4, keep_maps
from layers.llm.sources import download_weights, find_source
from layers.llm.whole import require_finite
from utils.config import AUTO, LLMConfig
from utils.errors import UserError
from utils.paths import BASE_MODELS
from utils.process_memory import give_back_freed
from utils.types import LLMIdentity, LLMOutline

logger = logging.getLogger(__name__)


class FrozenLLM(NamedTuple):
    """A language model that is read, never trained."""

    model: PreTrainedModel
    """Without LM head, in eval mode, its first ``llm_layers`` layers only."""
    tokenizer: PreTrainedTokenizerBase
    identity: LLMIdentity
    files: tuple[Path, ...] = ()
    """Its weights'."""


def load_llm(
    config: LLMConfig,
    *,
    dtype: torch.dtype = torch.float32,
    cpu: bool = False,
    base_models: Path = BASE_MODELS,
) -> FrozenLLM:
    """The frozen language model that ``config`` names, cut to its first ``llm_layers`` layers.

    Args:
        config: name, path, layers and expected width.
        dtype: in which it computes, and keeps its weights where ``config`` says nothing else.
        cpu: whether a run stays on the CPU where there is a GPU.
        base_models: folder of local models; the converted SmolLM2 is written there.

    Raises:
        LLMUnavailableError: neither on this machine nor to be had from the hub.
        ValueError: found, but of no use here (layers, width, encoder-decoder, own code, no tokenizer),
            or 4-bit weights where they can not be had.
    """
    source = find_source(config, base_models)
    with quiet_transformers(), ThreadPoolExecutor(max_workers=1) as beside:
        settings = _read_config(source, config)
        if source.repo is not None:
            source = source._replace(folder=download_weights(source.repo, weights=True), repo=None)
        hashing = beside.submit(fingerprint, source)  # which lets other threads run
        files = [source.gguf] if source.gguf else weight_files(source.folder)
        nf4 = config.load_in_4bit and has_bitsandbytes(source, cpu=cpu)
        wanted = INT4 if config.load_in_4bit and not nf4 else config.llm_weights
        otherwise = wanted != AUTO and FLOATS.get(wanted) != dtype
        model = read_model(
            source,
            settings,
            dtype=dtype,
            layers=config.llm_layers,
            trust=config.trust_remote_code,
            in_4bit=nf4,
            device_map=config.llm_device_map,
            maps_in=FLOATS.get(wanted, precision_of(files)) if otherwise else None,
        )
        tokenizer = read_tokenizer(source, trust=config.trust_remote_code)
        if otherwise:
            model = _kept_otherwise(model, config, wanted, files, dtype=dtype, name=source.name)
        content_hash, note = hashing.result()
    words = cast(nn.Embedding, model.get_input_embeddings())
    identity = LLMIdentity(
        name=source.name,
        architecture=type(model).__name__,
        layers=config.llm_layers,
        hidden_size=words.embedding_dim,
        vocabulary=words.num_embeddings,
        content_hash=content_hash,
        note=note,
    )
    logger.info("LLM: %s, %d layers, from %s %s", source.name, identity.layers, source.folder, note)
    if config.llm_device_map is not None:
        logger.info("--llm_device_map %s: %s", config.llm_device_map, placement(model))
    if nf4:
        logger.info("--load_in_4bit: by bitsandbytes, NF4, computed in bf16")
    return FrozenLLM(model, tokenizer, identity, tuple(files))


def _kept_otherwise(
    model: PreTrainedModel,
    config: LLMConfig,
    wanted: str,
    files: list[Path],
    *,
    dtype: torch.dtype,
    name: str,
) -> PreTrainedModel:
    """The model with its linear maps kept in the format ``wanted``, which a line of the log counts.

    Raises:
        ValueError: a weight is not finite, which integers would hide; or as `keep_maps` does.
    """
    flag = f"--llm_weights {wanted}"
    if config.load_in_4bit:
        flag = "--load_in_4bit"
        if config.llm_device_map is not None:
            raise UserError(
                "--llm_device_map: expected a GPU with bitsandbytes beside --load_in_4bit, found none; drop "
                "either"
            )
    require_finite(model, files, name=name)
    how = (
        f" by torchao's {INT4} in groups of {GROUP} (bitsandbytes needs a GPU, and no GGUF file)"
        if wanted == INT4
        else ""
    )
    logger.info("%s%s: %s", flag, how, keep_maps(model, wanted, dtype=dtype, flag=flag, name=name))
    give_back_freed()
    return model


def outline_of(config: LLMConfig, *, base_models: Path = BASE_MODELS) -> LLMOutline:
    """Name and widths of the language model that ``config`` names, without its weights.

    Raises:
        LLMUnavailableError, ValueError: as `load_llm` does.
    """
    source = find_source(config, base_models)
    with quiet_transformers():
        return outlined(source.name, _read_config(source, config))


def layers_of(config: LLMConfig, *, base_models: Path = BASE_MODELS) -> int:
    """How many layers the language model that ``config`` names has, whatever ``llm_layers`` says.

    Raises:
        LLMUnavailableError, ValueError: as `load_llm` does.
    """
    with quiet_transformers():
        settings = _read_config(find_source(config, base_models), replace(config, llm_layers=1))
    return int(text_settings(settings).num_hidden_layers)


def outlined(name: str, settings: Any) -> LLMOutline:
    """Name and widths by a transformers config."""
    text = text_settings(settings)
    hidden = hidden_width(text)
    given = (getattr(text, key, None) for key in ("intermediate_size", "n_inner", "ffn_dim"))
    inner = next((int(size) for size in given if isinstance(size, int)), 4 * hidden)
    return LLMOutline(name, hidden, inner)


def placement(llm: PreTrainedModel) -> str:
    """How many parts of ``llm`` accelerate's dispatch has put on which device, or that it is on one."""
    parts = Counter(str(device) for device in getattr(llm, "hf_device_map", {}).values())
    if len(parts) < 2:
        return f"the whole LLM on {llm.get_input_embeddings().weight.device}"
    return ", ".join(f"{count} parts on {device}" for device, count in parts.items())


@torch.no_grad()
def word_scale(llm: PreTrainedModel) -> float | None:
    """What a word's embedding is multiplied by before the layers; Gemma's by the root of its width.

    None where the layers see no multiple of it: Inkling's are normed. `seen_words` has them.
    """
    module = cast(nn.Embedding, llm.get_input_embeddings())
    scale = float(getattr(module, "embed_scale", 1.0))
    few = torch.arange(min(8, module.num_embeddings), device=module.weight.device)
    wanted = scale * module.weight[few]
    return scale if torch.allclose(module(few).to(wanted.device), wanted, rtol=1e-2, atol=1e-6) else None


@torch.no_grad()
def seen_words(llm: PreTrainedModel) -> Tensor:
    """All words [V, d_llm] as the layers see them."""
    module = cast(nn.Embedding, llm.get_input_embeddings())
    every = torch.arange(module.num_embeddings, device=module.weight.device)
    return torch.cat([module(part).to(module.weight.dtype) for part in every.split(4096)])


def positions_of(llm: PreTrainedModel) -> int | None:
    """How many tokens ``llm`` has a position for; None where nothing says.

    The RoBERTa family begins behind the position of its padding.
    """
    most = getattr(llm.config, "max_position_embeddings", None)
    if not isinstance(most, int) or most <= 0:
        return None
    for name, part in llm.named_modules():
        if isinstance(part, nn.Embedding) and "position" in name and part.padding_idx is not None:
            return min(most, part.num_embeddings - part.padding_idx - 1)
    return most


# Reading it.


def _read_config(source: Source, wanted: LLMConfig) -> Any:
    """The transformers config, checked before any weight is read."""
    trust = wanted.trust_remote_code
    try:
        settings = AutoConfig.from_pretrained(source.folder, trust_remote_code=trust, **source.options)
    except (OSError, ValueError, ImportError) as error:
        if trust or "custom code" not in str(error):
            raise UserError(
                f"--llm_model {source.name}: expected a model that transformers reads in "
                f"{source.gguf or source.folder}, found: {one_line(error)}"
            ) from error
        raise UserError(
            f"--llm_model {source.name}: expected an architecture that transformers knows, found a model "
            f"that runs its own code; read that code, then allow it with --trust_remote_code"
        ) from error
    if settings.is_encoder_decoder:
        raise UserError(
            f"--llm_model {source.name}: expected a decoder (GPT-2, Llama, Qwen) or an encoder (BERT), "
            f"found the encoder-decoder {settings.model_type}"
        )
    text = text_settings(settings)
    found = getattr(text, "num_hidden_layers", None)
    if not isinstance(found, int):
        raise UserError(
            f"--llm_model {source.name}: expected a model of text with layers to keep, found "
            f"{settings.model_type}, whose config.json counts none"
        )
    if wanted.llm_layers > found:
        raise UserError(
            f"--llm_layers: expected at most {found} (what {source.name} has), found {wanted.llm_layers}"
        )
    width = hidden_width(text)
    if wanted.llm_dim is not None and wanted.llm_dim != width:
        raise UserError(f"--llm_dim: expected {width} ({source.name}) or no flag, found {wanted.llm_dim}")
    pad, vocabulary = (getattr(text, name, None) for name in ("pad_token_id", "vocab_size"))
    if isinstance(pad, int) and isinstance(vocabulary, int) and not 0 <= pad < vocabulary:
        text.pad_token_id = None  # no row of the table: an embedding can not be made with it
    for part in (settings, text):
        part.use_cache = False
        part.output_attentions = part.output_hidden_states = False
    return settings


def hidden_width(settings: Any) -> int:
    """The width that a transformers config calls hidden."""
    return int(next(v for n in ("hidden_size", "d_model", "dim") if (v := getattr(settings, n, None))))
