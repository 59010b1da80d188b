"""How many windows an evaluation pass takes where no flag says: by the tokens that pass the LLM at once.

Few tokens leave a processor waiting for its own calls; many push what a layer hands to the next out of
its caches, whatever their size, and take memory. Between the two nothing is gained: docs/performance.md
has what was measured. Scores do not depend on it, but for rounding.
"""

from __future__ import annotations

from utils.config import Config

CPU_TOKENS, GPU_TOKENS = 4096, 65536
"""Tokens of one pass."""
PROMPT = 120
"""Tokens that a prompt is counted as, before any is made."""


def windows_per_pass(config: Config, *, forecast: int, on_gpu: bool) -> int:
    """Windows of an evaluation pass: ``--eval_batch_size``, or by tokens; of ``forecast`` variables each."""
    asked = config.training.eval_batch_size
    if asked is not None:
        return asked
    if config.run.model not in (None, "TimeLLM"):  # no LLM: nothing to count
        return config.training.batch_size
    text = config.text
    told = text.text_count * text.text_tokens if text.in_prompt else 0
    tokens = forecast * (PROMPT + told + config.patch_count)
    return max(1, (GPU_TOKENS if on_gpu else CPU_TOKENS) // tokens)
