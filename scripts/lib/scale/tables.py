"""The tables of docs/scale.md: measurements beside the fitted model, and larger runs reckoned from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from scripts.lib.scale.cost import Measurement, TimeModel, step_flops
from utils.config import Config
from utils.data_sets import DATA_SETS
from utils.process_memory import mib
from utils.reporting.peak_memory import LLMSizes, MemorySizes, trained_weights, training_memory
from utils.reporting.text_tables import markdown_table

SMOLLM2 = LLMSizes(
    layers=6, width=576, vocabulary=49152, heads=9, attention=576, keys=192, layer_weights=3_540_096,
    inner=1536, inner_copies=3, weights=4 * (49152 * 576 + 6 * 3_540_096), weight=4,
)  # fmt: skip
LLAMA_7B = LLMSizes(
    layers=32, width=4096, vocabulary=32000, heads=32, attention=4096, keys=4096, layer_weights=202_375_168,
    inner=11008, inner_copies=3, weights=2 * (32000 * 4096 + 32 * 202_375_168), weight=2,
)  # fmt: skip
PROMPT = (74, 46)
"""Tokens of a prompt, the same in all and its own, with SmolLM2's tokenizer on ETTh1."""
DEFAULTS = Config()


@dataclass(frozen=True)
class Gpu:
    """An accelerator, by its maker's data sheet and assumptions that nothing here has checked."""

    name: str
    flops: float
    """Dense bf16 operations a second."""
    share: float
    """Assumed to be reached."""
    link: float
    """Bytes a second between processes, assumed."""


H100 = Gpu("H100", flops=989e12, share=0.4, link=50e9)


def markdown(
    model: TimeModel, fitted: Sequence[Measurement], held_out: Sequence[Measurement], *, threads: int
) -> str:
    """All tables."""
    parts = [
        _measured(model, fitted, held_out, threads=threads),
        _coefficients(model),
        _reduced(),
        _epochs(model),
        _seven_billion(),
    ]
    return "\n\n".join(parts) + "\n"


def _measured(
    model: TimeModel, fitted: Sequence[Measurement], held_out: Sequence[Measurement], *, threads: int
) -> str:
    header = (
        "hidden", "layers", "windows", "lookback", "source tokens", "GFLOP a step", "seconds (quartiles)",
        "model", "off by",
    )  # fmt: skip
    rows = []
    for name, group in (("", fitted), (" (held out)", held_out)):
        for m in group:
            said = model.seconds(m.patches, m.flops)
            s = m.setting
            rows.append(
                (
                    *(f"{s['hidden']}{name}", s["layers"], s["batch_size"], s.get("seq_len", 512)),
                    *(s["source_tokens"], f"{m.flops.total / 1e9:.0f}"),
                    f"{m.seconds:.3f} ({m.spread[0]:.3f} to {m.spread[1]:.3f})",
                    *(f"{said:.3f}", f"{said / m.seconds - 1:+.0%}"),
                )
            )
    worst = max(abs(model.seconds(m.patches, m.flops) / m.seconds - 1) for m in held_out)
    return (
        f"### Measured on {threads} thread(s), and what the model says\n\n{markdown_table(header, rows)}\n\n"
        f"The largest error on sizes that were not fitted is {worst:.0%}."
    )


def _coefficients(model: TimeModel) -> str:
    rates = [
        f"{name} {1e-9 / cost:.0f} GFLOP/s" if cost else f"{name} nothing"
        for name, cost in (("the LLM", model.llm), ("source tokens", model.source))
    ]
    return (
        f"Fitted: {1000 * model.step:.1f} ms a step, {1000 * model.patch:.3f} ms a patch of a series, "
        f"and operations at these rates: {', '.join(rates)}."
    )


def _sizes(llm: LLMSizes, windows: int, variables: int, **settings: object) -> MemorySizes:
    config = Config.from_flat(
        {"batch_size": windows, "llm_layers": llm.layers, "season": 24, "cpu": False, **settings}
    )
    trained = 4 * trained_weights(config, llm)
    return MemorySizes(
        config=config, llm=llm, prompt=PROMPT, kind="causal", variables=variables, forecast=variables,
        memory_rows=0, trained=trained, on_gpu=llm.weight == 2,
    )  # fmt: skip


def _reduced() -> str:
    rows = []
    for name, llm in (("SmolLM2-135M", SMOLLM2), ("Llama-7B", LLAMA_7B)):
        for source in ("mapping", "prototypes"):
            sizes = _sizes(llm, 1, 7, source_tokens=source)
            tokens = sizes.config.backbone.num_tokens
            of_map = 4.0 * tokens * (llm.vocabulary + 1 if source == "mapping" else llm.width)
            rows.append((name, source, mib(sizes.trained), mib(of_map), f"{of_map / sizes.trained:.0%}"))
    table = markdown_table(("LLM", "source tokens", "all", "of which the map", "map's share"), rows)
    return f"### Bytes that data parallel processes add up in a step\n\n{table}"


def _epochs(model: TimeModel) -> str:
    header = (
        "data set", "windows", "variables", "source tokens", "windows a step", "seconds a step", "an epoch",
    )  # fmt: skip
    rows = []
    for name, windows in (("ETTh1", 32), ("ETTm1", 32), ("Traffic", 1)):
        variables = DATA_SETS[name].variables or 0
        count = training_windows(name)
        for source in ("mapping", "prototypes"):
            sizes = _sizes(SMOLLM2, windows, variables, source_tokens=source)
            patches = windows * variables * sizes.config.patch_count
            seconds = model.seconds(patches, step_flops(sizes))
            epoch = _duration(count // windows * seconds)
            rows.append((name, f"{count:,}", variables, source, windows, f"{seconds:.1f}", epoch))
    return f"### An epoch with six layers of SmolLM2 on this machine\n\n{markdown_table(header, rows)}"


def training_windows(name: str) -> int:
    """Of a data set at the default lookback and horizon."""
    known = DATA_SETS[name]
    rows = known.parts[0] if known.parts else int(0.7 * (known.rows or 0))
    return rows - DEFAULTS.data.seq_len - DEFAULTS.data.pred_len + 1


def _seven_billion() -> str:
    header = (
        "data set", "GPUs", "layers", "source tokens", "token order", "windows a GPU", "memory a GPU",
        "with --shard_llm", "compute a step", "reducing", "an epoch",
    )  # fmt: skip
    rows = []
    cases = [
        (name, gpus, layers, source, order)
        for name, gpus in (("ETTm1", 8), ("Traffic", 8), ("Traffic", 64))
        for layers, source, order in (
            (32, "mapping", "document"),
            (32, "prototypes", "prompt_first"),
            (12, "prototypes", "prompt_first"),
        )
    ]
    for name, gpus, layers, source, order in cases:
        llm = LLAMA_7B._replace(layers=layers)._replace(
            weights=LLAMA_7B.weights - (32 - layers) * LLAMA_7B.layer_weights * 2
        )
        variables = DATA_SETS[name].variables or 0
        windows = max(1, 56 // variables)
        channels = min(variables, 56)
        sizes = _sizes(
            llm, windows, channels, source_tokens=source, token_order=order, mixed_precision="bf16",
            use_tapr=True, use_gram=True, gradient_checkpointing=True,
        )  # fmt: skip
        divided = replace(sizes, llm=llm._replace(processes=gpus))
        passes = -(-variables // channels)
        compute = passes * step_flops(sizes).total / (H100.flops * H100.share)
        reducing = 2 * sizes.trained * (gpus - 1) / gpus / H100.link
        steps = training_windows(name) // (windows * gpus)
        rows.append(
            (
                *(name, gpus, layers, source, order, windows),
                *(mib(training_memory(sizes).total), mib(training_memory(divided).total)),
                *(f"{compute:.2f} s", f"{1000 * reducing:.0f} ms", _duration(steps * (compute + reducing))),
            )
        )
    return (
        f"### Llama-7B in bf16 on {H100.name}s: reckoned, not run\n\n"
        f"At {H100.share:.0%} of {H100.flops / 1e12:.0f} TFLOP/s and {H100.link / 1e9:.0f} GB/s between "
        "processes: assumptions. Steps and reductions are not overlapped here; DistributedDataParallel "
        f"overlaps a part.\n\n{markdown_table(header, rows)}"
    )


def _duration(seconds: float) -> str:
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 2 * 86400 else f"{seconds / 86400:.1f} days"
