"""What one real forward pass looks like from inside: the shapes on the way, and the prompts.

Shape legend: B windows, N variables read, M forecast, L lookback, H horizon, S = B * M series,
P patches, T tokens given to the LLM, D model width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from models.base import ForecastModel
from utils.errors import UserError
from utils.reporting.text_tables import text_table
from utils.training.forward import forecast_state
from utils.types import Batch, ForecastState, TrendRecord


class Stage(NamedTuple):
    """One step of a forward pass."""

    name: str
    shape: tuple[int, ...]
    note: str = ""


class Prompt(NamedTuple):
    """What the LLM is told about one variable of one window."""

    variable: int
    """Index among the variables that are forecast."""
    text: str
    """The tokens it gets, decoded, special ones included."""
    tokens: int
    """How many they are."""
    constant: int
    """How many of them begin every prompt."""


class PassRecord:
    """The stages of the last pass through a watched model, in the order they happened."""

    def __init__(self) -> None:
        """Nothing yet."""
        self.stages: list[Stage] = []
        self.trend: TrendRecord | None = None

    def add(self, name: str, tensor: Tensor, note: str = "") -> None:
        """One more stage."""
        self.stages.append(Stage(name, tuple(tensor.shape), note))

    def shape(self, name: str) -> tuple[int, ...]:
        """Of the stage of this name.

        Raises:
            KeyError: it did not happen.
        """
        for stage in self.stages:
            if stage.name == name:
                return stage.shape
        raise KeyError(name)

    def lines(self) -> list[str]:
        """The table of stages, and below it the checks of the original design's troubleshooting."""
        rows = [(s.name, str(list(s.shape)), s.note) for s in self.stages]
        return [text_table(("stage", "shape", ""), rows), *self._checks()]

    def _checks(self) -> Iterator[str]:
        names = {stage.name for stage in self.stages}
        if "Patch Embedding" not in names:
            return
        yield f"x_enc: {list(self.shape('Input'))}"
        yield f"enc_out after patch: {list(self.shape('Patch Embedding'))}"
        after = list(self.shape("TAPR-DM")) if "TAPR-DM" in names else "TAPR is off"
        yield f"enc_out after TAPR: {after}"
        yield f"trend_info keys: {list(self.trend._fields) if self.trend else None}"
        logits = list(self.trend.magnitude_logits.shape) if self.trend else "N/A"
        yield f"magnitude_logits: {logits}"


Hook = Callable[[nn.Module, Any, Any], None]


@contextmanager
def watched(model: ForecastModel) -> Iterator[PassRecord]:
    """While the block runs, each pass through ``model`` is recorded anew."""
    record = PassRecord()
    with ExitStack() as closing:

        def begin(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            record.stages.clear()
            record.add("Input", args[0] if args else kwargs["x_enc"], "windows, rows, variables")

        def end(module: nn.Module, args: Any, output: Any) -> None:
            state = isinstance(output, ForecastState)
            record.add("Denorm", output.prediction if state else output, "windows, horizon, variables")
            record.trend = output.trend if state else None

        handles = [model.register_forward_pre_hook(begin, with_kwargs=True)]
        for name, hook in _hooks(record).items():
            module = _part(model, name)
            if module is not None:
                handles.append(module.register_forward_hook(hook))
        handles.append(model.register_forward_hook(end))
        for handle in handles:
            closing.callback(handle.remove)
        if model.uses_llm:
            _watch_llm(model, record, closing)
        yield record


def _hooks(record: PassRecord) -> dict[str, Hook]:
    """By the part of the model whose output it looks at."""
    add = record.add

    def embedded(module: nn.Module, args: Any, output: Tensor) -> None:
        add("Channel Independence", args[0], "series, channels embedded together, rows")
        add("Patch Embedding", output, "series, patches, d_model")

    def head(module: nn.Module, args: Any, output: Any) -> None:
        add("TAPR-C2F direction", output.direction_logits, "logits: down, flat, up")
        add("TAPR-C2F magnitude", output.magnitude_logits, "logits: strong and weak, down and up")
        add("TAPR-C2F path", output.path, "series, horizon")

    def lifted(module: nn.Module, args: Any, output: Any) -> None:
        add("GRA-M retrieval", args[0], "series, neighbours, horizon")
        add("GRA-M lift", output, "each future lifted to d_model")

    return {
        "normalize_layers": lambda m, a, out: add("Instance Norm", out[0]),
        "patch_embedding": embedded,
        "tapr.decomposition": lambda m, a, out: add(
            "TAPR-DM", out.multi_scale_out, f"{len(out.trend_features)} scales"
        ),
        "tapr.coarse_to_fine": head,
        "gram.value_lift": lifted,
        "gram.gating": lambda m, a, out: add("GRA-M gating", out.patches, "patches after the gate"),
        "reprogramming_layer": lambda m, a, out: add("Reprogramming", out, "series, patches, d_llm"),
        "output_projection": lambda m, a, out: add("FlattenHead", out, "series, horizon"),
        "trend_fusion": lambda m, a, out: add("C2F Fusion", out, "direction of the correction"),
    }


def _part(model: nn.Module, name: str) -> nn.Module | None:
    """The part of this dotted name, or None where the model has none."""
    part: Any = model
    for word in name.split("."):
        part = getattr(part, word, None)
    return part if isinstance(part, nn.Module) else None


def _watch_llm(model: Any, record: PassRecord, closing: ExitStack) -> None:
    """Record what goes into the frozen LLM, and the states that are read."""
    taken = model._pass
    closing.callback(setattr, model, "leaves_out_idle_llm", model.leaves_out_idle_llm)
    model.leaves_out_idle_llm = False

    class Watched:
        """The model's own pass, looked at."""

        def __getattr__(self, name: str) -> Any:
            return getattr(taken, name)

        def __call__(self, front: Tensor, tail: Tensor, *, mask: Tensor, prefix: Any = None) -> Tensor:
            kept = 0 if prefix is None else prefix.length
            length = kept + front.shape[1] + tail.shape[1]
            states = taken(front, tail, mask=mask, prefix=prefix)
            tokens = {"trend": 1 * hasattr(model, "tapr"), "retrieval": 2 * hasattr(model, "gram")}
            patches = record.shape("Reprogramming")[1]
            prompt = {"prompt": length - patches - sum(tokens.values())}
            behind = model.config.backbone.token_order == "prompt_first"
            tokens = {**prompt, **tokens} if behind else {**tokens, **prompt}
            parts = " + ".join(f"{name}({count})" for name, count in tokens.items() if count)
            note = f"{parts} + patch({patches})" + (f"; the first {kept} computed once" if kept else "")
            record.stages.append(Stage("LLM Input", (len(tail), length, tail.shape[-1]), note))
            record.add("LLM Output", states, "the states that are computed; those at the patches are read")
            return states

    model._pass = Watched()
    closing.callback(setattr, model, "_pass", taken)


@contextmanager
def without_neighbours(model: ForecastModel) -> Iterator[None]:
    """While the block runs, GRA-M finds nothing for any window: its gate is 1, as where there is no match.

    Raises:
        ValueError: the model has no GRA-M.
    """
    gating = _part(model, "gram.gating")
    if gating is None:
        raise ValueError(f"{model.name}: expected a model with GRA-M, found one without")

    def find_nothing(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, kwargs | {name: torch.zeros_like(kwargs[name]) for name in ("weights", "found")}

    handle = gating.register_forward_pre_hook(find_nothing, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def prompts_of(
    model: ForecastModel,
    x: Tensor,
    x_mark: Tensor | None = None,
    words: Tensor | None = None,
    **texts: Tensor,
) -> list[Prompt]:
    """The exact prompts of one window [1, L, N], one for each variable that is forecast.

    ``x_mark`` [1, L, 1] is the insample mask of a series without dates; ``texts`` are ``text`` and ``age``
    of a `utils.types.PromptMaker`.

    Raises:
        ValueError: the model has no LLM.
    """
    if model.prompts is None:
        raise UserError(f"{model.name}: expected a model with a prompt, found one without a language model")
    builder: Any = model.prompt
    found = []
    for variable, ids in enumerate(model.prompts(x, x_mark, words, **texts)[0]):
        own = ids[ids >= 0]
        text = builder.tokenizer.decode(own, clean_up_tokenization_spaces=False)
        found.append(Prompt(variable, text, len(own), builder.n_constant))
    return found


def prompt_lines(model: ForecastModel, batch: Batch, names: list[str]) -> list[str]:
    """`prompts_of` the first window as text; ``names`` are those of the variables that are forecast."""
    texts = {"text": batch.text[:1], "age": batch.text_age[:1]} if batch.text_age.numel() else {}
    return [
        f"prompt of {names[p.variable]}: {p.tokens} tokens, the first {p.constant} the same in all\n{p.text}"
        for p in prompts_of(model, batch.x[:1], batch.x_mark[:1], batch.words[:1], **texts)
    ]


@torch.no_grad()
def inspection_lines(
    model: ForecastModel, batch: Batch, names: list[str], *, shapes: bool, prompt: bool
) -> list[str]:
    """What ``--debug_shapes`` and ``--dump_prompt`` print, from one pass over ``batch`` in eval mode.

    The model's mode is as it was afterwards, and nothing random is drawn.
    """
    was_training = model.training
    model.eval()
    lines = []
    if shapes:
        with watched(model) as record:
            forecast_state(model, batch)
        lines += record.lines()
    if prompt:
        if model.uses_llm:
            own = [names[i] for i in batch.variable[0].tolist()]
            lines += prompt_lines(model, batch, own)
        else:
            lines.append(f"--dump_prompt: {model.name} has no language model, so no prompt")
    model.train(was_training)
    return lines
