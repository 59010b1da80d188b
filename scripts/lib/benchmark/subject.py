"""A case of this project's own: a model with its optimizer and batches, as a run would have them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from data_provider.data_factory import build_data, training_loader
from layers.prompt import PromptBuilder
from models.registry import MODELS, llm_outline
from models.TimeLLM import DTYPES
from scripts.lib.benchmark.flops import published_step
from scripts.lib.benchmark.plain import make_plain, plain_optimizer
from utils.config import Config
from utils.process_memory import keep_freed
from utils.reporting.peak_memory import expected_peaks
from utils.training import checkpoint
from utils.training.experiment import resolve
from utils.training.objective import Objective
from utils.training.optim import build_optimizer, trained_parameters
from utils.training.precision import matmul_precision, subnormals_flushed
from utils.training.precision_choice import settle
from utils.types import Batch, FitSource, ForecastState, unsolved

BATCHES = 4
"""Different batches, taken in turn."""


def build(request: dict[str, Any]) -> Subject:
    """The subject that a request describes: settings, plain or not, the prompt's description."""
    return Subject(
        request["settings"],
        model=request["model"],
        plain=request.get("plain", False),
        description=request.get("description"),
        device=request.get("device", "cpu"),
    )


class Subject:
    """What a worker is asked about one case."""

    def __init__(
        self, settings: dict[str, Any], *, model: str, plain: bool, description: str | None, device: str
    ) -> None:
        """Build data, model, optimizer and the batches of every step.

        Args:
            settings: as flags.
            model: its name among ``models.MODELS``.
            plain: whether to compute the plain way.
            description: what the prompt says of the data, in place of the data set's own text.
            device: where to compute.
        """
        config = Config.from_flat(settings)
        self._open = ExitStack()  # for as long as the process lives
        if not plain:
            self._open.enter_context(subnormals_flushed())  # as a run does, before the threads begin
        data = build_data(config)
        config = resolve(config, data)
        self.device = torch.device(device)
        if plain:
            config = config.replace(mixed_precision="no", matmul_precision="highest")
        settled = settle(config, self.device, llm_outline(model)(config), variables=len(data.targets))
        self.config = config = settled.apply(config)
        self.precision = settled.facts
        wanted = config.training.matmul_precision
        self.matmul = self._open.enter_context(matmul_precision(wanted, self.device))
        self.plain = plain
        self.model: Any = MODELS[model](self.config)
        if description is not None:
            self._describe(description)
        self.model.to(self.device)
        self.model.fit_statistics(FitSource(data.source, once=unsolved))
        if plain:
            make_plain(self.model)
        else:
            keep_freed()  # as a run does
        rate = config.training.learning_rate
        trained = trained_parameters(self.model)
        self.optimizer = (
            plain_optimizer(trained, rate) if plain else build_optimizer(self.model, config.training)
        )
        self.objective = Objective(self.config)
        self.data = data
        self.batches = self._batches(data)
        self.turn = 0

    def _describe(self, text: str) -> None:
        d = self.config.data
        self.model.prompts.builder = self.model.prompt = PromptBuilder(
            self.model.prompt.tokenizer,
            text,
            seq_len=d.seq_len,
            pred_len=d.pred_len,
            digits=self.config.backbone.prompt_digits,
        )

    def _batches(self, data: Any) -> list[Batch]:
        loader = iter(training_loader(data, self.config))
        return [next(loader) for _ in range(BATCHES)]

    # What is timed.

    def train_step(self) -> None:
        """Forward, loss, backward, Adam."""
        self.model.train()
        batch = self._next()
        state = self._forward(batch)
        self.objective(state, batch, step=self.config.training.aux_warmup_steps).total.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def evaluate(self) -> None:
        """One batch of an evaluation; what is computed once per evaluation is there after the first."""
        if self.model.training:
            self.model.eval()
        self._forward(self._next())

    def _forward(self, batch: Batch) -> ForecastState:
        precision = self.config.training.mixed_precision
        with torch.autocast(self.device.type, DTYPES[precision], enabled=precision != "no"):
            state = self.model(
                batch.x, start=batch.start, series_id=batch.series_id, variable=batch.variable,
                target=batch.y, prompt=batch.prompt, return_state=True,
            )  # fmt: skip
        return state._replace(prediction=state.prediction.float())

    def _next(self) -> Batch:
        self.turn += 1
        return self._handed_over(self.batches[self.turn % BATCHES])

    def _handed_over(self, batch: Batch) -> Batch:
        """A batch as a run's loader hands it over, its prompts made: a part of every step's time."""
        prompts = self.model.prompts(batch.x, batch.x_mark)
        return Batch(*(column.to(self.device) for column in batch._replace(prompt=prompts)))

    # The LLM alone, for its share of the machine's peak.

    def llm_step(self) -> None:
        """Forward and backward of the LLM's own pass over random tokens of this case's length."""
        ids, mask = self._prompt(self.batches[0])
        words = self.model.llm_model.get_input_embeddings()(ids)
        tail = torch.zeros(len(ids), self.config.patch_count, words.shape[-1]).to(words).requires_grad_()
        mask = torch.nn.functional.pad(mask, (0, tail.shape[1]), value=1)
        self.model._pass(words, tail, mask=mask).sum().backward()

    def _prompt(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return self.model.prompt.padded(self._handed_over(batch).prompt.flatten(0, 1))

    # What is asked once.

    def facts(self) -> dict[str, Any]:
        """Sizes, and what was chosen."""
        ids, _ = self._prompt(self.batches[0])
        trained = trained_parameters(self.model)
        return {
            "windows": self.config.training.batch_size,
            "series": len(ids),
            "prompt_tokens": ids.shape[1],
            "constant_tokens": self.model.prompt.n_constant,
            "patches": self.config.patch_count,
            "matmul": self.matmul,
            "precision_choice": self.precision,
            "trained_parameters": sum(p.numel() for p in trained),
            "trained_bytes": sum(p.numel() * p.element_size() for p in trained),
            "llm": self.model.llm_identity.name,
            "llm_note": self.model.llm_identity.note,
        }

    def expected_memory(self) -> dict[str, Any]:
        """Peaks by the estimate, bytes."""
        on_gpu = self.device.type == "cuda"
        training, evaluation = expected_peaks(self.config, self.data, self.model, on_gpu=on_gpu)
        return {"training": training, "evaluation": evaluation}

    def widths(self) -> dict[str, Any]:
        """Hidden size of the LLM and the width of its feed-forward part."""
        settings = self.model.llm_model.config
        inner = getattr(settings, "intermediate_size", None) or 4 * settings.hidden_size
        return {"widths": [settings.hidden_size, inner]}

    def forecast(self) -> dict[str, Any]:
        """The first batch's forecast in evaluation, as a flat list."""
        self.model.eval()
        with torch.no_grad():
            found = self._forward(self._handed_over(self.batches[0])).prediction
        return {"values": found.flatten().tolist()}

    def flops(self) -> dict[str, Any]:
        """Operations of a training step: counted, and where the path is plain by the formula as well."""
        with FlopCounterMode(display=False) as counter:
            self.train_step()
        found: dict[str, Any] = {"counted": counter.get_total_flops()}
        if self.plain:
            ids, _ = self._prompt(self.batches[self.turn % BATCHES])  # the step's own
            by_formula = published_step(self.model, series=len(ids), prompt=ids.shape[1])
            found |= {"formula": by_formula.total, "formula_llm": by_formula.llm}
        return found

    def checkpoint(self, folder: str) -> dict[str, Any]:
        """Size and time of a resumable checkpoint, and the size of its weights alone, bytes and seconds.

        The plain path's holds the LLM, as the published code's does.
        """
        self.train_step()  # so that the optimizer has a state
        path = Path(folder) / f"checkpoint-{os.getpid()}"
        weights = self.model.state_dict()
        if self.plain:
            weights = weights | {f"llm_model.{k}": v for k, v in self.model.llm_model.state_dict().items()}
        payload = {"model": weights, "optimizer": self.optimizer.state_dict()}
        write: Callable[[Any, Path], Any] = torch.save if self.plain else checkpoint.save
        began = time.perf_counter()
        write(payload, path)
        seconds = time.perf_counter() - began
        size = path.stat().st_size
        path.unlink()
        return {
            "bytes": size,
            "seconds": seconds,
            "weight_bytes": sum(t.numel() * t.element_size() for t in weights.values()),
        }
