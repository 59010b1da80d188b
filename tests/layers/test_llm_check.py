"""The start-up check against transformers alone: what each kind of LLM gets, what is kept and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from layers.llm import check
from layers.llm.check import CheckTokens, checked_pass
from layers.llm.way import BY_LENGTH, LEFT, MIDDLE, Way, by_length, to_the_left
from scripts.lib.llm_sweep import case
from tests.layers.test_llm_forward import loaded

RIGHT = {
    "gemma3": LEFT,  # several kinds of input, sliding windows
    "gpt_neo": LEFT,  # local attention
    "llama4_text": LEFT,  # attention in chunks
    "mamba2": LEFT,  # states
    "lfm2": MIDDLE,  # convolutions
    "roberta": MIDDLE,  # positions begin behind that of padding
    "minicpm3": MIDDLE,  # a constant by the number of layers
    "inkling_text": LEFT,  # embeddings that are normed
    "xlm": MIDDLE,  # parts of the layers in lists of their own
    "fnet": BY_LENGTH,  # no mask at all
    "electra": MIDDLE,  # embeddings narrower than the states
    "git": MIDDLE,  # layers that see beside those that read
}
REFUSED = {
    "gemma3n_text": "no token ids beside them",
    "bart": "encoder-decoder bart",
    "funnel": "--llm_layers: expected 4",
}


@pytest.mark.parametrize("kind", RIGHT)
def test_forecasts_and_gradients_are_those_of_transformers_alone(kind: str, tmp_path: Path) -> None:
    """69 of 212 models trained and were silently wrong: padding, positions, multipliers, constants."""
    case.write_checkpoint(kind, tmp_path)
    found = case.run(kind, "fp32", tmp_path)
    assert (found.status, found.detail) == ("right", "")
    (kept,) = (tmp_path / "checks").iterdir()
    assert Way(**json.loads(kept.read_text())).padding == RIGHT[kind]
    assert "LLM pass of" in found.way


@pytest.mark.parametrize("kind", REFUSED)
def test_what_can_not_be_right_is_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    """Per-layer embeddings need token ids, which patches have none of."""
    case.write_checkpoint(kind, tmp_path)
    found = case.run(kind, "fp32", tmp_path)
    assert found.status == "refused" and REFUSED[kind] in found.detail and "\n" not in found.detail


@pytest.mark.parametrize("mode", ["lora", "bf16"])
def test_so_it_is_with_adapters_and_in_half_precision(mode: str, tmp_path: Path) -> None:
    """PEFT has no default for every architecture; bf16's rounding hid that a way was wrong."""
    case.write_checkpoint("lfm2", tmp_path)
    found = case.run("lfm2", mode, tmp_path)
    assert (found.status, found.detail) == ("right", "")


def test_one_whose_own_code_fails_in_half_precision_is_refused_there(tmp_path: Path) -> None:
    """Found at the first step, by a traceback; the check itself is made in float32."""
    case.write_checkpoint("deberta", tmp_path)
    found = case.run("deberta", "bf16", tmp_path)
    assert found.status == "refused" and "--mixed_precision no" in found.detail
    assert case.run("deberta", "fp32", tmp_path).status == "right"


def test_what_is_found_is_kept_by_the_weights_and_the_lengths(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A check of seconds in every start of a large LLM; one that is kept too broadly would be stale."""
    monkeypatch.setattr(check, "KEPT", tmp_path)
    llm, decided = loaded(tiny_llama), check._decided
    asked: list[object] = []

    def noted(*args: Any, **more: Any) -> Way:
        asked.append(args[1])
        return decided(*args, **more)

    monkeypatch.setattr(check, "_decided", noted)
    first = checked_pass(llm, content_hash="a")
    assert checked_pass(llm, content_hash="a").way == first.way and len(asked) == 1
    checked_pass(llm, content_hash="b")
    checked_pass(llm, content_hash="a", tokens=CheckTokens(4, 6, 3))
    assert len(asked) == 3 and len(list(tmp_path.iterdir())) == 3
    next(tmp_path.iterdir()).write_text("half a fi")
    assert checked_pass(llm, content_hash="a").way == first.way


def test_a_kept_check_that_can_not_be_written_stops_nothing(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(check, "KEPT", tmp_path / "file")
    assert checked_pass(loaded(tiny_llama), content_hash="a").kind == "causal"


def test_layouts_keep_what_counts_and_its_order() -> None:
    front = torch.arange(10.0).view(2, 5, 1)
    tail = torch.tensor([[[20.0]], [[21.0]]])
    mask = torch.tensor([[1, 0, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    moved, moved_mask = to_the_left(front, mask)
    assert moved[0, 2:, 0].tolist() == [0, 3, 4] and moved_mask[0].tolist() == [0, 0, 1, 1, 1, 1]
    assert torch.equal(moved[1], front[1])
    seen = []

    def run(front: torch.Tensor, tail: torch.Tensor) -> torch.Tensor:
        seen.append(front[..., 0].tolist())
        return tail

    assert torch.equal(by_length(front, tail, mask, run), tail)
    assert seen == [[[0, 3, 4]], [[5, 6, 7, 8, 9]]]


def test_only_a_pass_by_length_may_leave_other_processes_waiting() -> None:
    """Layers that are divided are gathered by all processes in every pass: as many passes must be made."""
    assert [Way(padding=p).passes_differ for p in (MIDDLE, LEFT, BY_LENGTH)] == [False, False, True]
