"""What each of several processes does: every run of FOLDER/runs.json, in turn, and what it found to FOLDER.

The fixture `several_processes` starts it, once for many runs: a start costs more than a run.
"""

from __future__ import annotations

import gc
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from accelerate.state import PartialState
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader

from data_provider.data_factory import build_data, evaluation_loader, training_loader
from models.base import ForecastModel
from models.inspection import inspection_lines
from models.registry import MODELS, llm_outline
from tests.conftest import forget_accelerator
from tests.utils.training.comparing import note_items
from utils.config import Config
from utils.training.experiment import Builders, run
from utils.types import Batch, DataBundle, FitSource


def at(weight: Tensor) -> tuple[int, int]:
    """Where a weight lies, and how often it was written: other numbers once it is copied or sent."""
    return weight.data_ptr(), weight._version


class Watched:
    """One run, its model and its training windows watched."""

    def __init__(self, settings: dict[str, Any], *, nudged: str | None) -> None:
        """``nudged`` names a tensor that the second process shall have otherwise, or the LLM's files."""
        self.settings = settings
        self.nudged = nudged
        self.kind = settings.get("model", "TimeLLM_Enhanced")
        self.order: list[int] = []
        self.start: dict[str, Tensor] = {}

    def find(self) -> dict[str, Any]:
        """What came out of the run, or how it failed."""
        builders = Builders(
            self.kind,
            self.model,
            build_data,
            self.loader,
            evaluation_loader,
            inspection_lines,
            llm_outline(self.kind),
        )
        try:
            result = run(Config.from_flat(self.settings), builders)
        except Exception as error:  # any: the test that asked for this run says what it expected
            left = dict(self.built.state_dict()) if hasattr(self, "built") else {}
            return self.facts() | {"error": f"{type(error).__name__}: {error}", "model": left}
        return self.facts() | {
            "error": None,
            "model": dict(self.built.state_dict()),
            "shares": {
                name: (p.to_local().numel(), p.numel())
                for name, p in self.built.named_parameters()
                if isinstance(p, DTensor)
            },
            "copied": [
                name
                for name, p in self.built.named_parameters()
                if self.frozen.get(name) not in (None, at(p))
            ],
            "trainable": [name for name, p in self.built.named_parameters() if p.requires_grad],
            "results": json.dumps(result.results),
            "folder": str(result.run_dir),
        }

    def facts(self) -> dict[str, Any]:
        return {
            "processes": PartialState().num_processes,
            "backend": torch.distributed.get_backend(),
            "start": self.start,
            "order": self.order,
        }

    def model(self, config: Config) -> ForecastModel:
        self.built = MODELS[self.kind](config)
        self.frozen = {n: at(p) for n, p in self.built.named_parameters() if not p.requires_grad}
        nudged = self.nudged
        if nudged == "LLM" and PartialState().process_index == 1:
            assert self.built.llm_identity is not None
            self.built.llm_identity = replace(self.built.llm_identity, content_hash="of other files")
        elif nudged is not None and PartialState().process_index == 1:
            fit = self.built.fit_statistics

            def fit_and_nudge(source: FitSource) -> None:
                fit(source)
                self.built.state_dict()[nudged].view(-1)[-1:].add_(1)

            self.built.fit_statistics = fit_and_nudge  # type: ignore[method-assign]
        return self.built

    def loader(self, bundle: DataBundle, config: Config, **options: Any) -> DataLoader[Batch]:
        """The training loader, on a data set that notes what is taken; the weights are noted first."""
        self.start.update({name: tensor.clone() for name, tensor in self.built.state_dict().items()})
        note_items(bundle, self.order)
        return training_loader(bundle, config, **options)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    asked = json.loads((folder / "runs.json").read_text())
    folders: dict[str, str] = {}
    for name, settings in asked["runs"].items():
        print(f"run: {name}", file=sys.stderr)  # the last one, where the processes wait for each other
        gc.freeze()  # a run collects garbage at its end: among all imported modules, half of its time
        for flag in {"resume_from_checkpoint", "init_from"} & settings.keys():
            settings[flag] = settings[flag].format(**folders)
        found = Watched(settings, nudged=asked["nudged"].get(name)).find()
        folders[name] = found.get("folder", "")
        torch.save(found, folder / f"{name}.{PartialState().process_index}")
        torch.distributed.barrier()
        forget_accelerator()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
