"""One model type through the product: a tiny checkpoint of it is written, forecast with and trained a step.

A case ends in one of four ways: ``right``, ``refused`` in one clear line, silently ``wrong``, ``traceback``.
"""

from __future__ import annotations

import copy
import logging
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import AutoModel, PreTrainedTokenizerFast

from layers.llm import check
from models import TimeLLM
from scripts.lib.llm_sweep import truth
from scripts.lib.llm_sweep.tiny import LAYERS, tiny_config
from utils.config import Config
from utils.errors import UserError

KEPT = 2
"""Layers kept, of `LAYERS`."""
TOLERANCE = 1e-4
"""Largest error of a forecast, in deviations; of a gradient, in its own largest entry, ten times that."""
BF16 = 0.1
ROUNDING = 6e-8
"""Of a float32 number, relative."""
ROUNDING_OF_BF16 = 2e-3
MOVED = 4
"""Times what weights that are off by their rounding move: a few roundings more are no fault."""
MODES = ("fp32", "lora", "bf16")
LINES = [
    "About the data: hourly readings of a transformer, its load and the temperature of its oil.",
    "Range -1.250 to 3.375, median 0.062, rising, strongest lags 1 2 24 48 168.",
]


@dataclass(frozen=True)
class Outcome:
    """How a case ended."""

    kind: str
    mode: str
    status: str
    detail: str = ""
    way: str = ""
    error: float | None = None
    gradient: float | None = None
    neighbours: float | None = None


def write_tokenizer(folder: Path) -> None:
    """Bytes, and a few longer pieces: 300 tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<s>", "</s>", "<pad>", "<mask>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(LINES, trainer)
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)


def write_checkpoint(kind: str, folder: Path) -> None:
    """A tiny model of the type with random weights, and a tokenizer; its config alone where it can't be."""
    config = tiny_config(kind)
    write_tokenizer(folder)
    if config.is_encoder_decoder or type(config) not in transformers.MODEL_MAPPING:
        config.save_pretrained(folder)
        save_file({"none": torch.zeros(1)}, folder / "model.safetensors", metadata={"format": "pt"})
        return
    torch.manual_seed(0)
    try:
        model = AutoModel.from_config(config)
    except ImportError:  # the product is to say so too
        config.save_pretrained(folder)
        save_file({"none": torch.zeros(1)}, folder / "model.safetensors", metadata={"format": "pt"})
        return
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 1 and not bool(weight.any()):  # biases that begin at zero hide what they move
                weight.normal_(0, 0.1)
    model.save_pretrained(folder)


def windows() -> Tensor:
    """Six windows of two variables, [6, 96, 2], whose prompts have unlike lengths."""
    time = torch.arange(96.0)
    generator = torch.Generator().manual_seed(5)
    rows = []
    for i in range(6):
        noise = torch.randn(96, 2, generator=generator)
        waves = torch.stack([torch.sin(time / (2 + i)), (time - 40 * i) / 30], dim=1)
        rows.append(waves * 10**i + noise * (0.3 if i % 2 else 3))
    return torch.stack(rows)


def settings(folder: Path, mode: str) -> dict[str, Any]:
    """Of a model of few sizes on the LLM in ``folder``."""
    common = {
        "llm_model_path": str(folder), "llm_layers": KEPT, "seq_len": 96, "pred_len": 8, "d_model": 16,
        "d_ff": 16,
        "n_heads": 2, "num_tokens": 20, "dropout": 0.0, "cpu": True, "enc_in": 2,
    }  # fmt: skip
    modes: dict[str, dict[str, Any]] = {
        "fp32": {},
        "lora": {"peft": "lora"},
        "bf16": {"mixed_precision": "bf16"},
    }
    return common | modes[mode]


def run(kind: str, mode: str, folder: Path) -> Outcome:
    """The case of a type's checkpoint in ``folder``."""
    outcome = Outcome(kind, mode, "")
    heard = _Heard()
    logging.getLogger("layers").addHandler(heard)
    logging.getLogger("layers").setLevel(logging.INFO)
    try:
        torch.manual_seed(0)
        check.KEPT = folder / "checks"
        model = TimeLLM.Model(Config.from_flat(settings(folder, mode))).eval()
        with torch.no_grad():
            for head in model.output_projection.parameters():  # forecasts of the size of the data
                head.normal_(0, 0.3)
            for name, weight in model.named_parameters():
                if "lora_B" in name:
                    weight.normal_(0, 0.3)
        outcome = replace(outcome, way=heard.way())
        return _judged(outcome, model, folder, mode)
    except (UserError, ValueError) as error:
        clear = isinstance(error, UserError) and "\n" not in str(error)
        text = str(error) if clear else "".join(traceback.format_exception(error)[-6:])
        text = text.replace(str(folder), kind)
        return replace(outcome, status="refused" if clear else "traceback", detail=text)
    except BaseException as error:  # noqa: BLE001  whatever it is, it is the case's ending
        return replace(outcome, status="traceback", detail="".join(traceback.format_exception(error)[-6:]))
    finally:
        logging.getLogger("layers").removeHandler(heard)


def _judged(outcome: Outcome, model: Any, folder: Path, mode: str) -> Outcome:
    x = windows()
    alone = truth.cut(truth.whole_model(folder), had=LAYERS, layers=KEPT)
    if mode == "lora":
        _merge_adapters(alone, model.llm_model)
    ids = model.prompt.ids(model.normalise(x).lookback)[0]
    apart = truth.knows_words(alone, ids[ids >= 0])
    if apart > 1e-4:
        return replace(
            outcome, status="wrong", detail=f"its states for ids and for embeddings differ by {apart:.2g}"
        )
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=mode == "bf16"):
        found = model(x)
        single = torch.cat([model(window[None]) for window in x])
    if mode == "bf16":
        model.float()  # the truth, in full precision, by the same trained parts
    with torch.no_grad():
        wanted = truth.forecasts(model, alone, x)
    scale = wanted.std(dim=1, keepdim=True)
    error = float(((found - wanted).abs() / scale).max())
    neighbours = float(((found - single).abs() / scale).max())
    outcome = replace(outcome, error=error, neighbours=neighbours)
    limit = TOLERANCE
    if mode == "bf16":
        limit = max(BF16, 2 * _own_error(model, folder, x, wanted))
    nudged = _nudged(alone) if mode == "lora" else None  # merged weights are rounded, adapters beside are not
    if nudged is not None:
        with torch.no_grad():
            moved = (truth.forecasts(model, nudged, x) - wanted).abs() / scale
        limit = max(limit, MOVED * float(moved.max()))
    if not error < limit or not neighbours < limit:
        return replace(
            outcome, status="wrong", detail=f"forecasts off by {error:.2g}, by neighbours {neighbours:.2g}"
        )
    if mode == "bf16":
        return replace(outcome, status="right")
    wanted_gradients = _gradients(model, lambda: truth.forecasts(model, alone, x[:3]))
    model.train()
    error = _apart(_gradients(model, lambda: model(x[:3])), wanted_gradients)
    model.eval()
    limit = 10 * TOLERANCE
    if nudged is not None:
        moved_gradients = _gradients(model, lambda: truth.forecasts(model, nudged, x[:3]))
        limit = max(limit, MOVED * _apart(moved_gradients, wanted_gradients))
    outcome = replace(outcome, gradient=error)
    if not error < limit:
        return replace(outcome, status="wrong", detail=f"gradients off by {error:.2g}")
    return replace(outcome, status="right")


@torch.no_grad()
def _own_error(model: Any, folder: Path, x: Tensor, wanted: Tensor) -> float:
    """How far transformers alone is off in bf16 as the forecasts are, at most of four roundings.

    A router's choice that turns moves much at once, and another rounding turns another.
    """
    rounded = truth.cut(truth.whole_model(folder, torch.bfloat16), had=LAYERS, layers=KEPT)
    worst = 0.0
    for model_of in (rounded, *(_nudged(rounded, ROUNDING_OF_BF16, seed=seed) for seed in (1, 2, 3))):
        with torch.autocast("cpu", torch.bfloat16):
            found = truth.forecasts(model, model_of, x)
        worst = max(worst, float(((found - wanted).abs() / wanted.std(dim=1, keepdim=True)).max()))
    return worst


def _nudged(alone: Any, rounding: float = ROUNDING, *, seed: int = 0) -> Any:
    """The truth with weights that are off by about their ``rounding``: what that moves is no fault."""
    other = copy.deepcopy(alone)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in other.parameters():
            weight.copy_(weight.float() * (1 + rounding * torch.randn(weight.shape, generator=generator)))
    return other


def _gradients(model: Any, forecast: Callable[[], Tensor]) -> list[Tensor | None]:
    """Of the squared forecasts by the trained parts beside the adapters."""
    parts = [p for name, p in model.named_parameters() if p.requires_grad and "lora_" not in name]
    return list(torch.autograd.grad(forecast().square().sum(), parts, allow_unused=True))


def _apart(found: list[Tensor | None], wanted: list[Tensor | None]) -> float:
    """Largest difference of gradients, each in its own largest entry."""
    if any((a is None) != (b is None) for a, b in zip(found, wanted, strict=True)):
        return float("inf")
    pairs = [(a, b) for a, b in zip(found, wanted, strict=True) if a is not None and b is not None]
    floor = 1e-3 * max(float(b.abs().max()) for _, b in pairs)  # what is zero but for rounding has no size
    return max(float((a - b).abs().max()) / max(floor, float(b.abs().max())) for a, b in pairs)


@torch.no_grad()
def _merge_adapters(alone: Any, adapted: Any) -> None:
    """Write the adapters' products into the truth's own weights."""
    for name, part in adapted.named_modules():
        if not hasattr(part, "lora_A") or not len(part.lora_A):
            continue
        own = alone.get_submodule(name.replace(".base_layer", ""))
        if hasattr(part, "parameter_name"):  # of experts, whose weights are one parameter: PEFT's own product
            getattr(own, part.parameter_name).add_(part.get_delta_weight("default"))
            continue
        a, b, scale = part.lora_A["default"].weight, part.lora_B["default"].weight, part.scaling["default"]
        weight = own.weight
        change = scale * (b @ a)
        weight += change.T if type(own).__name__ == "Conv1D" else change


class _Heard(logging.Handler):
    """What the product's layers have said."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    def way(self) -> str:
        """The line that tells how the LLM is run."""
        return next((line for line in reversed(self.lines) if "LLM pass" in line or "full cost" in line), "")


def as_row(outcome: Outcome) -> dict[str, Any]:
    """For a file of lines."""
    return asdict(outcome)
