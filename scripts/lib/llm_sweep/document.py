"""The table of docs/models.md from the sweep's results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from scripts.lib.llm_sweep.case import MODES

HEAD = """# Which language models can be the frozen LLM

Written by `python scripts/llm_sweep.py RESULTS.jsonl --modes fp32 lora bf16 --document docs/models.md`: every
type of transformers {version}'s mappings of causal and masked language models, as a tiny checkpoint with random
weights (4 layers, of which 2 are kept, windows of 100 tokens where the type has some, 300 to 320 tokens a window),
through the product. Forecasts and, in float32, the gradients of all trained parts are compared with what
transformers alone gives for each window's own tokens in a batch of one, without padding; and with the forecast of
each window by itself.

- **right**: forecasts within 1e-4 deviations, gradients within 1e-3 of their largest entry. bf16: within 0.1 deviations,
  or twice what transformers alone is off by in bf16, at most of four roundings of its weights. lora: as float32, or four
  times what weights that are off by their rounding move.
- **refused**: one clear line, before anything is trained.
- **excluded**, by rule: encoder-decoders, and types without a base model of their own in transformers (they read
  another model's states). They are refused in one line too.

Real checkpoints are checked in the same way when they are loaded, a few layers in float32, once; what is found is
kept in `base_models/.checks`, and the log says which way was taken, what it costs, and why.
"""  # noqa: E501  a document's lines


def markdown(rows: Mapping[tuple[str, str], Mapping[str, Any]], *, version: str) -> str:
    """All of the document."""
    kinds = sorted({kind for kind, _ in rows})
    modes = [mode for mode in MODES if any(m == mode for _, m in rows)]
    parts = [HEAD.format(version=version), _counts(rows, kinds, modes), _table(rows, kinds, modes)]
    return "\n".join(parts)


def is_excluded(kind: str) -> bool:
    """Whether a type is no model of text by itself."""
    if kind not in MODEL_MAPPING_NAMES:
        return True
    return bool(getattr(CONFIG_MAPPING[kind], "is_encoder_decoder", False) or _encodes(kind))


def _encodes(kind: str) -> bool:
    try:
        return bool(CONFIG_MAPPING[kind]().is_encoder_decoder)
    except ValueError:  # its default settings do not fit each other
        return False


def _counts(rows: Mapping[tuple[str, str], Mapping[str, Any]], kinds: list[str], modes: list[str]) -> str:
    """How many ended which way."""
    names = ("right", "refused", "wrong", "traceback", "not built")
    lines = ["| | " + " | ".join(names) + " | excluded |", "|---|" + "---|" * (len(names) + 1)]
    left = {kind for kind in kinds if not is_excluded(kind)}
    for mode in modes:
        found = Counter(rows[kind, mode]["status"] for kind in left if (kind, mode) in rows)
        counts = " | ".join(str(found[name]) for name in names)
        lines.append(f"| {mode} | {counts} | {len(kinds) - len(left)} |")
    return "\n".join(lines) + "\n"


def _first_sentence(text: str) -> str:
    """Of an error, as a cell of a table; what follows is mostly advice of another library."""
    return text.replace("|", "/").partition(". ")[0]


def _table(rows: Mapping[tuple[str, str], Mapping[str, Any]], kinds: list[str], modes: list[str]) -> str:
    lines = [
        "| type | " + " | ".join(modes) + " | how it is run, or why not |",
        "|---|" + "---|" * (len(modes) + 1),
    ]
    for kind in kinds:
        row = rows.get((kind, modes[0]), {})
        said = row.get("way", "").partition(": ")[2] or _first_sentence(row.get("detail", ""))
        ended = [rows.get((kind, mode), {}).get("status", "") for mode in modes]
        if is_excluded(kind):
            ended = ["excluded" for _ in ended]
        lines.append(f"| {kind} | {' | '.join(ended)} | {said} |")
    return "\n".join(lines) + "\n"
