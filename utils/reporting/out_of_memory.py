"""What a run that is out of memory can do about it, and what each measure would save."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from utils.config import AUTO, ConfigError
from utils.process_memory import mib
from utils.reporting.peak_memory import MemorySizes, training_memory

LADDERS: dict[str, tuple[int, ...]] = {
    "batch_size": (32, 16, 8, 4, 2, 1),
    "seq_len": (512, 384, 256, 128),
    "llm_layers": (12, 6, 4, 2),
    "d_ff": (128, 64, 32),
    "d_model": (64, 32, 16),
    "n_scales": (3, 2),
    "top_k": (5, 3),
}
"""The document's measures (section 8.2), the first to take first, with the values to go down by."""
MODULE_OF = {"n_scales": "use_tapr", "top_k": "use_gram"}
"""Settings that only a run with this module reads."""
FOUR_BITS, EIGHT_BITS = 0.625, 1.0
"""Bytes of a weight in so many bits, with the scales of groups of 32 where there are such."""


def out_of_memory_text(sizes: MemorySizes, cause: str, *, passes: int) -> str:
    """The message of a run that is out of memory: what it needs, and the measures in their order.

    Args:
        sizes: the run's.
        cause: what the allocator said.
        passes: forward passes of an optimizer step.
    """
    needed = training_memory(sizes).total
    steps = [*document_measures(sizes, passes=passes), *further_measures(sizes)]
    listed = "\n".join(f"  {number}. {text}" for number, text in enumerate(steps, start=1))
    return (
        f"out of memory: {cause}\nby the estimate a training step of this run takes {mib(needed)} beside the "
        f"libraries. What takes less, to try in this order (or --auto_batch_size, which does the first by "
        f"itself):\n{listed}"
    )


def document_measures(sizes: MemorySizes, *, passes: int) -> Iterator[str]:
    """The document's nine measures, as far as they are open to this run."""
    values = sizes.config.flat() | {"top_k": sizes.config.gram.neighbours}
    for name, ladder in LADDERS.items():
        lower = next((value for value in ladder if value < values[name]), None)
        if lower is None or not values.get(MODULE_OF.get(name, ""), True):
            continue
        beside = ""
        if name == "batch_size":
            more = values[name] * passes // lower
            same = "the same" if lower * more == values[name] * passes else "nearly the same"
            beside = f" --gradient_accumulation_steps {more}, {same} effective batch"
        saving = _saving(sizes, **_with_limits(values, name, lower))
        yield f"--{name} {lower}{beside} (now {values[name]}): {saving}"
    if values["use_gram"]:
        without = replace(sizes, memory_rows=0)
        yield f"without --use_gram: {_saving(sizes, without, use_gram=False, build_memory=False)}"
    if sizes.llm is not None and not values["load_in_4bit"]:
        fewer = sizes.llm.layers * (sizes.llm.layer_bytes - FOUR_BITS * sizes.llm.layer_weights)
        yield f"--load_in_4bit (by bitsandbytes on a GPU, else by torchao): saves about {mib(fewer)}"


def further_measures(sizes: MemorySizes) -> Iterator[str]:
    """What the document does not have."""
    if sizes.llm is None:
        return
    if sizes.config.llm.llm_weights == AUTO and not sizes.config.llm.load_in_4bit:
        fewer = sizes.llm.layers * (sizes.llm.layer_bytes - EIGHT_BITS * sizes.llm.layer_weights)
        yield f"--llm_weights int8 (needs torchao): saves about {mib(fewer)}"
    if sizes.config.training.mixed_precision == "no":
        yield f"--mixed_precision bf16 (now no): {_saving(sizes, mixed_precision='bf16')}"
    if sizes.config.backbone.source_tokens == "mapping":
        yield f"--source_tokens prototypes (now mapping): {_saving(sizes, source_tokens='prototypes')}"


def _with_limits(values: dict[str, Any], name: str, lower: int) -> dict[str, Any]:
    """A change, and those that it makes necessary."""
    changes = {name: lower}
    if name == "seq_len":
        changes |= {other: min(values[other] or lower, lower) for other in ("label_len", "season")}
    return changes


def _saving(sizes: MemorySizes, base: MemorySizes | None = None, **changes: Any) -> str:
    """What these settings would save; ``base`` has other sizes that go with them."""
    if sizes.llm is None and "batch_size" not in changes:
        return "saves some"
    try:
        saved = training_memory(sizes).total - training_memory((base or sizes).replace(**changes)).total
    except ConfigError as error:
        return f"not possible with the other flags: {error.problems[0]}"
    return f"saves about {mib(saved)}" if saved >= 2**20 else "saves less than 1 MiB"
