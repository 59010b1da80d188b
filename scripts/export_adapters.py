"""Write the adapters of a ``--peft lora`` run for other tools: ``python scripts/export_adapters.py RUN OUT``.

OUT becomes a folder in PEFT's own format, which ``peft.PeftModel.from_pretrained`` loads on the LLM's
kept layers. With ``--merge`` it becomes an LLM: the kept layers with the adapters added to their
weights, for ``--llm_model_path``, and beside it the run's other weights as ``checkpoint``, with which
``scripts/predict.py --checkpoint OUT`` forecasts as the run does. Exit status 2 where a user can mend
what is wrong.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

if not __package__:  # started as a file: its own folder is on the path, the project's is not
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from layers.llm.files import Source, fingerprint, quiet_transformers
from layers.llm.kept import restore_maps
from layers.llm.load import FrozenLLM
from layers.llm.lora import NAME, adapted_maps, is_adapter
from models.loading import LoadedRun, frozen_llm, load_run
from utils.cli import PathFlag
from utils.config import LLMConfig
from utils.ending import command
from utils.errors import UserError
from utils.log import setup_logging
from utils.training import checkpoint as checkpoints
from utils.training.checkpoint import CheckpointError
from utils.training.run_folder import run_folder_of

ADAPTERS = "adapters"
OWN = ("peft", "llm_weights")
"""Settings that the merged LLM does without."""
KEPT_FACTS = ("model_name", "epoch", "global_step", "data", "calibration")
"""What the checkpoint beside a merged LLM tells of the run, beside its settings and its LLM."""


@command(parser=lambda: _parser())
def main(argv: Sequence[str] | None = None) -> int:
    """Write the folder; the exit status."""
    args = _parser().parse_args(argv)
    setup_logging(main_process=True)
    if args.out.exists():
        raise UserError(f"OUT: expected a folder that is not there yet, found {args.out}")
    run = load_run(args.run, device=torch.device("cpu"), llm_model_path=args.llm_model_path)
    count = export(run, args.out, merge=args.merge, llm_model_path=args.llm_model_path)
    what = "an LLM with the adapters merged, and a checkpoint to forecast with" if args.merge else "adapters"
    print(f"{what} ({count} linear maps): {args.out}")
    return 0


def export(run: LoadedRun, out: Path, *, merge: bool, llm_model_path: str | None = None) -> int:
    """Write the adapters of ``run``, or the LLM with them merged, as the folder ``out``, whole or not at all.

    Args:
        run: whose model has adapters.
        out: a folder that is not there yet.
        merge: into the LLM's weights, in float32, rounded as ``--llm_weights`` had them.
        llm_model_path: where the LLM lies now, if not where the run found it.

    Returns:
        How many linear maps have adapters.

    Raises:
        CheckpointError: the run has none, or they were trained on random weights.
    """
    llm: Any = getattr(run.model, "llm_model", None)
    maps = adapted_maps(llm) if llm is not None else []
    if not maps:
        raise CheckpointError(f"{run.path}: expected a run of --peft lora, found one without adapters")
    if run.config.llm.llm_ablation != "pretrained":
        raise CheckpointError(
            f"{run.path}: expected adapters on an LLM's own weights, found some on those of --llm_ablation "
            f"{run.config.llm.llm_ablation}, which no folder holds"
        )
    with _whole_folder(out) as folder, quiet_transformers(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # what transformers says of itself when it saves
        adapters = folder / ADAPTERS if merge else folder
        llm.peft_config[NAME].target_modules = set(maps)
        llm.save_pretrained(adapters)
        if merge:
            plain = run.config.replace(mixed_precision="no", llm_device_map=None)
            frozen = frozen_llm(plain, run.facts["llm"], run.path, llm_model_path)
            restore_maps(frozen.model)
            _write_merged(frozen, adapters, folder)
            shutil.rmtree(adapters)
            checkpoints.save(_payload(run, folder, out), folder / checkpoints.BEST)
    return len(maps)


def _write_merged(frozen: FrozenLLM, adapters: Path, folder: Path) -> None:
    """The LLM with these adapters added to its weights, and its tokenizer, in ``folder``."""
    from peft import PeftModel

    merged: Any = PeftModel.from_pretrained(frozen.model, str(adapters)).merge_and_unload(safe_merge=True)
    merged.save_pretrained(folder)
    frozen.tokenizer.save_pretrained(folder)


def _payload(run: LoadedRun, folder: Path, out: Path) -> Mapping[str, Any]:
    """The run's checkpoint without adapters, around the LLM that lies in ``folder`` and will in ``out``."""
    where = str(out.resolve())
    content_hash, _ = fingerprint(Source(where, folder))
    settings = asdict(LLMConfig())
    own = {flag: settings[flag] for flag in settings if flag in OWN or flag.startswith("lora_")}
    recorded, name = dict(run.facts["llm"]), run_folder_of(run.path).name
    note = "; ".join(part for part in (recorded["note"], f"adapters of {name} merged") if part)
    return {
        "model": {key: weight for key, weight in run.model.state_dict().items() if not is_adapter(key)},
        "config": {**run.facts["config"], **own, "llm_model_path": where},
        "llm": {**recorded, "name": where, "content_hash": content_hash, "note": note},
        **{key: run.facts[key] for key in KEPT_FACTS if key in run.facts},
    }


@contextmanager
def _whole_folder(out: Path) -> Iterator[Path]:
    """A new folder that takes the name ``out`` when the block ends, and never before."""
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = out.with_name(f".{out.name}.{uuid.uuid4().hex}")
    unfinished.mkdir()
    try:
        yield unfinished
        unfinished.rename(out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0], allow_abbrev=False)
    parser.add_argument(
        "run", action=PathFlag, metavar="RUN", help="run folder (its best weights), step folder or checkpoint"
    )
    parser.add_argument(
        "out", metavar="OUT", action=PathFlag, kind=Path, help="folder to write, which is not there yet"
    )
    parser.add_argument("--merge", action="store_true", help="an LLM with the adapters in its weights")
    parser.add_argument("--llm_model_path", action=PathFlag, help="where the run's LLM lies now, if it moved")
    return parser


if __name__ == "__main__":
    sys.exit(main())
