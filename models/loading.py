"""From a checkpoint to the model that wrote it: settings, frozen LLM, weights, memory. No code is run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from logging import getLogger
from pathlib import Path
from typing import Any, NamedTuple

import torch

from layers.llm.ablation import ablated
from layers.llm.load import FrozenLLM, load_llm, outlined
from layers.llm.sources import LLMUnavailableError
from models.base import ForecastModel
from models.registry import MODELS, model_name
from models.TimeLLM import dtype_of
from utils.config import AUTO, Config, ConfigError, LLMConfig
from utils.data_sets import SHORT_TERM
from utils.training import checkpoint as checkpoints
from utils.training import checkpoint_state
from utils.training.checkpoint import CheckpointError
from utils.training.precision_choice import settle
from utils.types import LLMIdentity

log = getLogger(__name__)
NEEDED = ("config", "llm", "data")
"""What a checkpoint must tell beside its weights."""
WIDTH_OF_LLM = ("architecture", "hidden_size")
"""What a model is built by; ``--llm_ablation`` leaves both as they are."""
SAME_LLM = ("architecture", "layers", "hidden_size", "content_hash")
"""What makes an LLM the one that a run was trained with."""


class LoadedRun(NamedTuple):
    """What a checkpoint holds, ready to forecast."""

    path: Path
    """The checkpoint file."""
    config: Config
    model: ForecastModel
    """In eval mode, on the device asked for."""
    facts: Mapping[str, Any]
    """The payload without weights, optimizer and random states."""
    llm: LLMConfig
    """How its LLM is found here."""


def checkpoint_file(where: str | Path) -> Path:
    """The file that a path means: a file, a step folder, or a run's folder (its best weights).

    Raises:
        CheckpointError: there is none.
    """
    best = Path(where) / checkpoints.BEST
    return best if best.is_file() else checkpoints.locate(str(where), flag="--checkpoint")


def load_run(where: str | Path, *, device: torch.device, llm_model_path: str | None = None) -> LoadedRun:
    """The model of a checkpoint on ``device``, with the LLM it was trained with.

    The caller's random state stays as it is.

    Args:
        where: as for `checkpoint_file`.
        device: to forecast on.
        llm_model_path: where the LLM lies now, if not where the run found it; its content is compared
            all the same.

    Raises:
        CheckpointError: the checkpoint is missing, broken, of weights alone, or does not fit its LLM.
        LLMUnavailableError: its LLM is not to be found.
    """
    path = checkpoint_file(where)
    payload = checkpoints.load_weights(path)
    missing = [key for key in NEEDED if key not in payload]
    if missing:
        raise CheckpointError(
            f"{path}: expected a run's checkpoint, found weights without {', '.join(missing)}: a forecast "
            "needs the settings and the scaler that they were trained with"
        )
    config = _config(payload, path, device)
    if config.run.task_name == SHORT_TERM:
        raise CheckpointError(
            f"{path}: expected a run on one series, found the short-term task on {config.data.data}, a "
            "collection; its forecasts are scored by scripts/m4_summary.py"
        )
    name = payload.get("model_name") or model_name(config)
    with torch.random.fork_rng():
        llm = frozen_llm(config, payload["llm"], path, llm_model_path) if payload["llm"] else None
        config = _in_its_precision(config, payload, llm, device)
        model = MODELS[name](config, **({"llm": llm} if llm else {}))
    if model.llm_identity is not None:
        _refuse_another(model.llm_identity, payload["llm"], path, by=SAME_LLM)
    try:
        model.load_state_dict(payload["model"])
    except RuntimeError as error:  # torch's, for missing keys and other shapes
        raise CheckpointError(f"{path}: its weights do not fit its settings ({name}): {error}") from error
    if path.name == checkpoints.STEP_FILE and config.gram.use_gram and config.gram.retrieval_key != "raw":
        log.warning("%s: its memory's keys are those of the last validation up to its step", path)
    facts = {k: v for k, v in payload.items() if k not in ("model", "optimizer", "rng_state")}
    found = wanted_llm(config, payload["llm"], llm_model_path)
    return LoadedRun(path, config, model.to(device).eval(), facts, found)


def _config(payload: Mapping[str, Any], path: Path, device: torch.device) -> Config:
    """The run's settings, but for those of its engine that this device has not."""
    values = {**payload["config"], "cpu": False}
    if device.type == "cpu":
        values["llm_device_map"] = None
    if values.get("mixed_precision") == "fp16" and device.type == "cpu":
        log.warning("%s: trained in fp16, which a CPU does not offer; forecasting in float32", path)
        values["mixed_precision"] = "no"
    try:
        return Config.from_flat(values, models=MODELS)
    except ConfigError as error:
        raise CheckpointError(f"{path}: expected settings of this version, found:\n{error}") from error


def _in_its_precision(
    config: Config, payload: Mapping[str, Any], llm: FrozenLLM | None, device: torch.device
) -> Config:
    """The run's settings with its precision, which is kept; said where this machine is slow at it.

    Float32 products that were as exact as any where the run was trained, and are not here, are made
    exactly.
    """
    outline = None if llm is None else outlined(llm.identity.name, llm.model.config)
    recorded = checkpoint_state.recorded_precision(payload) or {}
    training = config.training
    if training.matmul_precision == "medium" or AUTO in recorded.values():
        config = config.replace(matmul_precision=AUTO)
    settled = settle(
        config.replace(is_training=0), device, outline, variables=len(payload["data"]["columns"]),
        recorded=recorded,
    )  # fmt: skip
    for line in settled.lines:
        log.warning("%s", line)
    return settled.apply(config)


def frozen_llm(config: Config, recorded: Mapping[str, Any], path: Path, elsewhere: str | None) -> FrozenLLM:
    """The LLM that a run recorded, found by its name (or ``elsewhere``) and known by its content.

    Raises:
        CheckpointError: what is found is another one.
        LLMUnavailableError: nothing is.
    """
    try:
        wanted = wanted_llm(config, recorded, elsewhere)
        llm = load_llm(wanted, dtype=dtype_of(config), cpu=config.training.cpu)
    except LLMUnavailableError as error:
        raise LLMUnavailableError(
            f"{path}: expected its LLM, {recorded['name']} (content {recorded['content_hash'][:12]}), found "
            f"none: {error} If it lies elsewhere now, say where with --llm_model_path."
        ) from error
    if config.llm.llm_ablation == "random":  # its weights are drawn by the model, and known then
        _refuse_another(llm.identity, recorded, path, by=WIDTH_OF_LLM)
    else:
        known = ablated(llm, config.llm, seed=config.training.seed)
        _refuse_another(known.identity, recorded, path, by=SAME_LLM)
    return llm


def wanted_llm(config: Config, recorded: Mapping[str, Any], elsewhere: str | None) -> LLMConfig:
    """The run's LLM as it is named here: by where it lies now, or by what ``auto`` came to."""
    if elsewhere is not None:
        return replace(config.llm, llm_model_path=elsewhere)
    if recorded and config.llm.llm_model_path is None and config.llm.llm_model == "auto":
        return replace(config.llm, llm_model=recorded["name"])
    return config.llm


def _refuse_another(
    identity: LLMIdentity, recorded: Mapping[str, Any], path: Path, *, by: Sequence[str]
) -> None:
    """Raise where the facts ``by`` tell an LLM from the one that a run recorded, naming all that differ.

    Raises:
        CheckpointError: they do.
    """
    found = asdict(identity)
    other = [name for name in SAME_LLM if recorded.get(name) != found[name]]
    if not set(other).intersection(by):
        return
    listed = "; its ".join(f"{name}: expected {recorded.get(name)}, found {found[name]}" for name in other)
    raise CheckpointError(
        f"{path}: trained with another LLM than {found['name']}; its {listed}. Give the one it was trained "
        "with by --llm_model_path"
    )
