"""Low-rank adapters on the layers of a frozen LLM: trained, while the LLM's own weights stay.

Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, by the package PEFT
through transformers' own switch, ``add_adapter``. Adapters begin with no effect: one of the two
matrices of each is zero. PEFT is imported where adapters are made: a run without pays nothing for it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from logging import getLogger
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from layers.llm.layers import stack_of
from utils.config import LLMConfig
from utils.errors import UserError

log = getLogger(__name__)

FAILURES = (RuntimeError, ValueError, TypeError, AttributeError, IndexError, KeyError)
TRIED = 16
"""Tokens of the pass that tells which maps are called."""
NAME = "default"
"""Of the adapters, in PEFT's and transformers' sense."""
PART = "lora_"
"""How the names of PEFT's own parts begin."""
DROPOUT = "lora_dropout"
MAMBA_REFUSED = "out_proj"
"""The map of Mamba's mixers that PEFT refuses: their kernels read its weight themselves."""
ALL = "all-linear"
"""PEFT's word for every linear map."""


def add_adapters(llm: PreTrainedModel, config: LLMConfig, *, seed: int) -> None:
    """Put the adapters of ``--peft lora`` on the layers of ``llm``, in place; they alone are trained.

    Drawn from ``seed`` alone, in float32; the global random state stays.

    Raises:
        ValueError: the LLM has no such maps, or is not wholly on its devices, or has adapters already.
    """
    from peft import LoraConfig
    from peft.functional import cast_adapter_dtype

    if adapted_maps(llm):
        raise ValueError(f"--peft lora: expected {type(llm).__name__} as it was loaded, found adapters on it")
    if any(weight.device.type == "meta" for weight in llm.parameters()):
        raise UserError(
            "--peft lora: expected all weights of the LLM on devices, found some that --llm_device_map left "
            "in main memory until they are needed; keep fewer --llm_layers, or use --llm_device_map cpu"
        )
    settings = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=_targets(llm, config.lora_targets),
        fan_in_fan_out=any(isinstance(part, Conv1D) for part in llm.modules()),
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            llm.add_adapter(settings, NAME)
        except ValueError as error:
            said = " ".join(str(error).split())
            raise UserError(
                f"--peft lora: expected maps of {type(llm).__name__} that PEFT puts adapters on, found: "
                f"{said}; name others by --lora_targets"
            ) from error
    cast_adapter_dtype(llm, NAME)
    llm.eval()


def is_adapter(name: str) -> bool:
    """Whether a parameter of this dotted name belongs to an adapter."""
    return any(word.startswith(PART) for word in name.split("."))


def adapted_maps(llm: nn.Module) -> list[str]:
    """The names of the linear maps of ``llm`` that have adapters, in its order."""
    return [name.removesuffix(f".{DROPOUT}") for name, _ in llm.named_modules() if name.endswith(DROPOUT)]


def set_dropout(llm: nn.Module, *, training: bool) -> None:
    """Switch the adapters' own dropout; that of the frozen LLM stays as it is."""
    for name, part in llm.named_modules():
        if name.endswith(DROPOUT):
            part.train(training)


def _targets(llm: PreTrainedModel, asked: tuple[str, ...]) -> list[str]:
    """The full names of the linear maps inside the kept layers that are asked for.

    Raises:
        ValueError: a name that no map has, or no names for an architecture that PEFT does not know.
    """
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    stack = stack_of(llm, int(llm.config.num_hidden_layers))
    path = next(name for name, part in llm.named_modules() if part is stack)
    maps = [f"{path}.{name}" for name, part in stack.named_modules() if isinstance(part, nn.Linear | Conv1D)]
    if any("mamba" in type(part).__name__.lower() for part in stack.modules()):
        maps = [name for name in maps if not _ends(name, MAMBA_REFUSED)]
    maps = _called(llm, maps)
    known = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in maps}))
    if not maps:
        raise UserError(
            f"--peft lora: expected linear maps in the layers of {type(llm).__name__}, found none"
        )
    wanted = asked or TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(llm.config.model_type) or ()
    if isinstance(wanted, str):  # PEFT's own may be a pattern
        wanted = [name for name in maps if re.fullmatch(wanted, name)]
    if asked == (ALL,) or (not asked and not any(_ends(name, word) for name in maps for word in wanted)):
        if not asked:
            log.info(
                "--lora_targets: PEFT has no default for %s; all linear maps: %s", type(llm).__name__, known
            )
        return maps
    if not asked:
        wanted = [word for word in wanted if any(_ends(name, word) for name in maps)]
    missing = [word for word in wanted if not any(_ends(name, word) for name in maps)]
    if missing:
        raise UserError(
            f"--lora_targets: expected linear maps in the layers of {type(llm).__name__} ({known}) or {ALL}, "
            f"found {', '.join(missing)}"
        )
    return [name for name in maps if any(_ends(name, word) for word in wanted)]


@torch.no_grad()
def _called(llm: PreTrainedModel, maps: list[str]) -> list[str]:
    """Those of the ``maps`` that a pass calls: adapters on one whose weight is read by itself do nothing.

    A map of the same last name in any layer is enough, since an expert may not be called for few tokens.
    """
    seen: set[str] = set()

    def note(word: str) -> Callable[..., None]:
        return lambda *_: seen.add(word)

    words = {name: name.rsplit(".", 1)[-1] for name in maps}
    hooks = [llm.get_submodule(name).register_forward_hook(note(word)) for name, word in words.items()]
    table: Any = llm.get_input_embeddings()
    try:
        ids = torch.arange(min(TRIED, table.num_embeddings), device=table.weight.device)
        llm(inputs_embeds=table(ids)[None])
    except FAILURES:  # said by `layers.llm.check`, which comes next
        return maps
    finally:
        for hook in hooks:
            hook.remove()
    return [name for name in maps if words[name] in seen]


def _ends(name: str, word: str) -> bool:
    """Whether a dotted name ends in a word, or in several with dots between."""
    return name == word or name.endswith(f".{word}")
