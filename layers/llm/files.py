"""Reading a language model's files: weights, tokenizer, and what tells them from others."""

from __future__ import annotations

import hashlib
import json
import logging
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from accelerate import dispatch_model
from safetensors import safe_open
from torch import nn
from transformers import (
    MODEL_MAPPING,
    AutoModel,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from layers.llm.attention import usual_attention
from layers.llm.layers import cut_settings, keep_first, linear_maps, stack_names
from layers.llm.whole import is_out_of_memory, require_whole
from utils.errors import UserError

GGUF_STEM = "SmolLM2-135M-Instruct.Q4_1"
CONVERSION_RECORD = "conversion.json"
DEQUANTISED_NOTE = "4-bit (Q4_1) weights of SmolLM2-135M-Instruct, de-quantised"
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")


class Source(NamedTuple):
    """Where a model's files lie."""

    name: str
    folder: Path
    gguf: Path | None = None
    repo: str | None = None
    """The hub id whose weights are still to be fetched into ``folder``."""

    @property
    def options(self) -> dict[str, Any]:
        """What every ``from_pretrained`` of this source is given beside the folder."""
        return {"local_files_only": True} | ({"gguf_file": self.gguf.name} if self.gguf else {})


def weight_files(folder: Path) -> list[Path]:
    """The weight files that transformers would read from a folder; empty unless the model is whole."""
    if not (folder / "config.json").is_file():
        return []
    for name in WEIGHT_FILES:
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return [folder / name]
        if index.is_file():
            shards = {folder / s for s in json.loads(index.read_text("utf-8"))["weight_map"].values()}
            return sorted(shards) if all(s.is_file() for s in shards) else []
    return []


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and no report on the layers and heads left out on purpose, for this block only."""
    verbosity = transformers_logging.get_verbosity()
    had_bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if had_bars:
            transformers_logging.enable_progress_bar()


def fingerprint(source: Source) -> tuple[str, str]:
    """Content hash and note. A conversion that is as we wrote it has the hash of the GGUF it came from."""
    if source.gguf is not None:
        note = DEQUANTISED_NOTE if source.gguf.stem == GGUF_STEM else f"{source.gguf.name}, de-quantised"
        return sha256([source.gguf]), note
    content_hash = sha256(weight_files(source.folder))
    record_file = source.folder / CONVERSION_RECORD
    if not record_file.is_file():
        return content_hash, ""
    record = json.loads(record_file.read_text("utf-8"))
    if record["weights_sha256"] == content_hash:
        return record["source_sha256"], record["note"]
    return content_hash, f"{record['note']}, changed since"


def precision_of(files: list[Path]) -> torch.dtype:
    """The precision that all tensors of safetensors files have; float32 where they differ, or of others."""
    found = set()
    for file in files:
        if file.suffix != ".safetensors":
            return torch.float32
        with safe_open(file, framework="pt") as tensors:
            found |= {tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118
    halves = {"BF16": torch.bfloat16, "F16": torch.float16}
    return halves.get(found.pop(), torch.float32) if len(found) == 1 else torch.float32


def sha256(files: list[Path]) -> str:
    """sha256 over the files' bytes, in the order of their names."""
    digest = hashlib.sha256()
    for file in sorted(files):
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def has_bitsandbytes(source: Source, *, cpu: bool) -> bool:
    """Whether bitsandbytes can give a run weights in 4 bits: on a GPU, of files that are not GGUF."""
    there = torch.cuda.is_available() and find_spec("bitsandbytes") is not None
    return there and not cpu and source.gguf is None


def four_bit_options() -> dict[str, Any]:
    """What ``from_pretrained`` is given for weights in 4 bits by bitsandbytes (NF4, computed in bf16)."""
    settings = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
    )
    return {"quantization_config": settings, "device_map": {"": torch.cuda.current_device()}}


def read_model(
    source: Source,
    settings: Any,
    *,
    dtype: torch.dtype,
    trust: bool,
    layers: int | None = None,
    in_4bit: bool = False,
    device_map: str | None = None,
    maps_in: torch.dtype | None = None,
) -> PreTrainedModel:
    """The base model's first ``layers`` layers: frozen, in eval mode, with fused attention where it can.

    Its constants are those of the whole model, whose layers it has. Of a safetensors file no other tensor
    than its own is read (transformers makes the model without memory first, then maps the files and takes
    what it has a place for). Of a model of several kinds of input it is the text part. ``device_map`` spreads
    it over devices by accelerate's dispatch; it then stays where it is. ``maps_in`` is the precision that the
    weights of its linear maps are read in, where that is not ``dtype``.

    Raises:
        ValueError: weights are missing, or its layers can not be told apart, or it has no word embeddings.
    """
    options = dict(source.options)
    if in_4bit:
        options |= four_bit_options()
    if device_map is not None:
        options["device_map"] = {"": "cpu"} if device_map == "cpu" else device_map
    if source.gguf is not None and hasattr(transformers, "GgufConfig"):
        # Plain weights: the packed ones would ask the hub for kernels.
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    require_whole([source.gguf] if source.gguf else weight_files(source.folder), name=source.name)
    text = text_settings(settings)
    had = int(text.num_hidden_layers)
    attention = usual_attention(text)
    try:
        options |= {
            "config": settings,
            "dtype": dtype,
            "attn_implementation": attention if text is settings else None,
            "trust_remote_code": trust,
            "output_loading_info": True,
            "ignore_mismatched_sizes": True,
        }
        try:
            with _cut_short(text, had=had, layers=layers or had, maps_in=maps_in) as names:
                model, report = AutoModel.from_pretrained(source.folder, **options)
        except AttributeError:  # later layers hold what earlier ones share (Zamba): cut once all are read
            names = []
            model, report = AutoModel.from_pretrained(source.folder, **options)
    except UserError:
        raise
    except (OSError, ValueError, ImportError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        if is_out_of_memory(error):
            raise
        raise UserError(_unreadable(source, settings, error)) from error
    path, model = _text_part(model, text)
    if text is not settings:
        model.set_attn_implementation(attention)
    _require_all(report, model, source, path=path)
    if layers is not None and layers < had:
        _count(model, source, had=had, layers=layers, cut=bool(names))
    try:
        words = model.get_input_embeddings()
    except NotImplementedError:
        words = None
    if not isinstance(words, nn.Embedding):
        raise UserError(
            f"--llm_model {source.name}: expected a text model with word embeddings, found "
            f"{type(model).__name__} with {words}"
        )
    if device_map is not None:
        _stay(model, words, on_cpu=device_map == "cpu")
    return model.requires_grad_(False).eval()


def _unreadable(source: Source, settings: Any, error: Exception) -> str:
    """What to say where transformers does not read a model's weights."""
    place = source.gguf or source.folder
    quantised = getattr(settings, "quantization_config", None)
    if quantised is None or source.gguf is not None:
        return (
            f"--llm_model {source.name}: expected weights that transformers reads in {place}, found: "
            f"{one_line(error)}"
        )
    method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised.quant_method
    return (
        f"--llm_model {source.name}: expected weights that this machine reads, found quantised ones "
        f"({getattr(method, 'value', method)}, {place / 'config.json'}): {one_line(error)}; install what "
        "they need, or take the model in its original precision"
    )


def text_settings(settings: Any) -> Any:
    """The part of a transformers config that tells of the model of text."""
    try:
        return settings.get_text_config()
    except ValueError:  # several
        return settings


def one_line(error: BaseException) -> str:
    """What an error of a library says, in one line."""
    return " ".join(str(error).split())


@contextmanager
def _cut_short(settings: Any, *, had: int, layers: int, maps_in: torch.dtype | None) -> Iterator[list[str]]:
    """Models of these settings that are built inside lose all but their first layers at once.

    The weights of their linear maps are made in ``maps_in``, which they are then read in.

    They are built with the settings of the whole: a constant by the number of layers (MiniCPM's residual
    scale), and which layers share what, stay as they are. Gives the names of what was cut.
    """
    names: list[str] = []
    architecture: Any = MODEL_MAPPING.get(type(settings), None)
    if (layers == had and maps_in is None) or architecture is None:  # its own code: cut after it is loaded
        yield names
        return
    if isinstance(architecture, tuple):
        named = {made.__name__: made for made in architecture}
        architecture = next((named[n] for n in settings.architectures or () if n in named), architecture[0])
    built = architecture.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        built(self, *args, **kwargs)
        architecture.__init__ = built  # a second one may be built to be looked at
        try:
            if layers < had:
                names[:] = stack_names(self, had=had)
                keep_first(self, layers=layers, stacks=names)
            for part in linear_maps(self).values() if maps_in is not None else ():
                part.weight = nn.Parameter(part.weight.detach().to(maps_in), requires_grad=False)
        finally:
            architecture.__init__ = init

    architecture.__init__ = init
    try:
        yield names
    finally:
        architecture.__init__ = built


def _text_part(model: Any, text: Any) -> tuple[str, Any]:
    """The model of text inside a model of several kinds of input, and its dotted name; or the whole."""
    parts = [
        (name, part)
        for name, part in model.named_modules()
        if isinstance(part, PreTrainedModel) and type(part.config) is type(text)
    ]
    base: Any = MODEL_MAPPING.get(type(text), None)
    of_base = [(name, part) for name, part in parts if base is not None and isinstance(part, base)]
    return next(iter(of_base or parts), ("", model))


def _require_all(report: Any, model: Any, source: Source, *, path: str) -> None:
    """Raise where weights are missing or have another shape; no pooler's output is read."""
    place = source.gguf or source.folder
    start = f"{path}." if path else ""
    missing = sorted(k for k in report["missing_keys"] if k.startswith(start) and "pooler" not in k)
    if missing:
        raise UserError(
            f"--llm_model {source.name}: expected all weights of {type(model).__name__} in {place}, found "
            f"none for {missing[:3]} ({len(missing)} in all)"
        )
    unlike = sorted(k for k in report["mismatched_keys"] if str(k[0]).startswith(start))
    if unlike:
        name, found, wanted = unlike[0][:3]
        raise UserError(
            f"--llm_model {source.name}: expected {name} of shape {list(wanted)} as config.json says, found "
            f"{list(found)} in {place} ({len(unlike)} such weights); they are not of one model"
        )


def _count(model: Any, source: Source, *, had: int, layers: int, cut: bool) -> None:
    """Let the model tell of the layers that it has, to which its own code has not been ``cut`` yet.

    Raises:
        ValueError: they can not be told apart.
    """
    if not cut:
        names = stack_names(model, had=had)
        keep_first(model, layers=layers, stacks=names)
        shared = getattr(model.config, "num_hidden_groups", None) == 1  # ALBERT: one layer, again and again
        if not names and not shared:
            raise UserError(
                f"--llm_layers: expected {had}, since the layers of {type(model).__name__} ({source.name}) "
                f"can not be told apart, found {layers}"
            )
    told = {id(part.config): part.config for part in model.modules() if hasattr(part, "config")}
    for settings in told.values():
        if getattr(settings, "num_hidden_layers", None) == had:
            cut_settings(settings, had=had, layers=layers)


def _stay(model: PreTrainedModel, words: nn.Embedding, *, on_cpu: bool) -> None:
    """Keep a model where its map has put it, also where a module that holds it moves.

    Raises:
        ValueError: its word embeddings, which are read in every step, found no room on a device.
    """
    if words.weight.device.type == "meta":
        raise UserError(
            "--llm_device_map: expected room for the word embeddings on a device, found none; keep fewer "
            "--llm_layers, or use --llm_device_map cpu"
        )
    if on_cpu:  # what comes from elsewhere is brought there, and the states back
        with only_errors("accelerate.big_modeling"):  # it says that the weights are elsewhere; they are not
            dispatch_model(model, {"": "cpu"}, force_hooks=True, skip_keys=model._skip_keys_device_placement)
    setattr(model, "_apply", lambda fn, recurse=True: model)  # noqa: B010


@contextmanager
def only_errors(name: str) -> Iterator[None]:
    """Nothing below an error from this logger, for this block only."""
    told = logging.getLogger(name)
    before = told.level
    told.setLevel(logging.ERROR)
    try:
        yield
    finally:
        told.setLevel(before)


def read_tokenizer(source: Source, *, trust: bool) -> PreTrainedTokenizerBase:
    """The model's tokenizer, with a padding token.

    Raises:
        ValueError: there is none that loads.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.folder, trust_remote_code=trust, **source.options)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"--llm_model {source.name}: expected a tokenizer beside the weights in {source.folder}, "
            f"found none that loads ({error})"
        ) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
