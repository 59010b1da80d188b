"""Reading a language model's files: weights, tokenizer, and what tells them from others."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from accelerate import dispatch_model
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from layers.llm.attention import usual_attention
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


def sha256(files: list[Path]) -> str:
    """sha256 over the files' bytes, in the order of their names."""
    digest = hashlib.sha256()
    for file in sorted(files):
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def four_bit_options(source: Source) -> dict[str, Any]:
    """What ``from_pretrained`` is given for weights in 4 bits (NF4, computed in bf16).

    Raises:
        ValueError: there is no GPU or no bitsandbytes, or the source is a GGUF file.
    """
    lacking = [
        text
        for text, there in (
            ("a GPU", torch.cuda.is_available()),
            ("the package bitsandbytes", find_spec("bitsandbytes") is not None),
            ("weights that are not GGUF", source.gguf is None),
        )
        if not there
    ]
    if lacking:
        raise UserError(
            f"--load_in_4bit: expected {' and '.join(lacking)}, found none; leave the flag out, or save "
            "memory by --mixed_precision bf16 or fewer --llm_layers"
        )
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
    in_4bit: bool = False,
    device_map: str | None = None,
) -> PreTrainedModel:
    """The base model with the config's layers only: frozen, in eval mode, with fused attention where it can.

    Of a safetensors file no other tensor than the model's own is read (transformers makes the model
    without memory first, then maps the files and takes what it has a place for). ``device_map`` spreads
    it over devices by accelerate's dispatch; it then stays where it is.

    Raises:
        ValueError: weights are missing, or it has no word embeddings of its hidden size.
    """
    options = dict(source.options)
    if in_4bit:
        options |= four_bit_options(source)
    if device_map is not None:
        options["device_map"] = {"": "cpu"} if device_map == "cpu" else device_map
    if source.gguf is not None and hasattr(transformers, "GgufConfig"):
        # Plain weights: the packed ones would ask the hub for kernels.
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    try:
        model, report = AutoModel.from_pretrained(
            source.folder,
            config=settings,
            dtype=dtype,
            attn_implementation=usual_attention(settings),
            trust_remote_code=trust,
            output_loading_info=True,
            **options,
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(
            f"--llm_model {source.name}: expected weights that transformers reads in "
            f"{source.gguf or source.folder}, found: {error}"
        ) from error
    missing = sorted(k for k in report["missing_keys"] if "pooler" not in k)  # no pooler's output is read
    if missing:
        raise UserError(
            f"--llm_model {source.name}: expected all weights of {type(model).__name__} in "
            f"{source.gguf or source.folder}, found none for {missing[:3]} ({len(missing)} in all)"
        )
    try:
        words = model.get_input_embeddings()
    except NotImplementedError:
        words = None
    if not isinstance(words, nn.Embedding) or words.embedding_dim != settings.hidden_size:
        raise UserError(
            f"--llm_model {source.name}: expected a text model with word embeddings as wide as its hidden "
            f"states ({settings.hidden_size}), found {type(model).__name__} with {words}"
        )
    if device_map is not None:
        _stay(model, words, on_cpu=device_map == "cpu")
    return model.requires_grad_(False).eval()


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
        with _only_errors("accelerate.big_modeling"):  # it says that the weights are elsewhere; they are not
            dispatch_model(model, {"": "cpu"}, force_hooks=True, skip_keys=model._skip_keys_device_placement)
    setattr(model, "_apply", lambda fn, recurse=True: model)  # noqa: B010


@contextmanager
def _only_errors(name: str) -> Iterator[None]:
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
