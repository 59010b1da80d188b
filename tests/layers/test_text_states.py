"""What a frozen LLM makes of a text: state and answers of its pass, kept, whatever other texts there are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from layers.llm import text_states
from layers.llm.text_states import ANSWERS, read_states, read_tokens
from utils.config import Config
from utils.errors import UserError

TEXTS = [
    "Load goes up today.",
    "load goes down",
    "Nichts geschieht; 負荷は変わらない",
    "x" * 400,
    "load goes up",
]
QUESTIONS = ("\nSo load goes", " In short, load is")
CPU = torch.device("cpu")


def config_of(folder: Path, **changes: Any) -> Config:
    flags = {"llm_model_path": str(folder), "llm_layers": 1, "text_file": "x.csv", "text_tokens": 20}
    return Config.from_flat({**flags, "text_question": list(QUESTIONS), "cpu": True, **changes})


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own."""
    monkeypatch.setattr(text_states, "KEPT", tmp_path)
    return tmp_path


def every(texts: list[str], config: Config) -> torch.Tensor:
    return read_states(config, texts, device=CPU).of(torch.arange(len(texts)))


def test_it_is_the_last_state_of_the_whole_llm_and_its_answers(tiny_llama):
    """By transformers' own model with its head, text by text."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    found = every(TEXTS, config_of(tiny_llama, text_question=list(QUESTIONS)))
    llm = AutoModelForCausalLM.from_pretrained(tiny_llama).eval()
    tied = llm.config.tie_word_embeddings
    for text, own in zip(TEXTS, found, strict=True):
        ids = tokenizer(text, add_special_tokens=False).input_ids[:20]
        for question, numbers in zip(QUESTIONS, own.chunk(len(QUESTIONS)), strict=True):
            asked = tokenizer(question, add_special_tokens=False).input_ids
            with torch.no_grad():
                state = llm.model(torch.tensor([[0, *ids, *asked]])).last_hidden_state[0, -1]
            assert torch.allclose(numbers[: len(state)], state, atol=1e-5)
            if tied:
                logits = llm.model.embed_tokens.weight @ state
                first = [tokenizer(f" {w}", add_special_tokens=False).input_ids[0] for w in ANSWERS]
                wanted = logits.log_softmax(-1)[first]
                assert torch.allclose(numbers[len(state) :], wanted, atol=1e-4)


def test_no_other_text_moves_a_digit(tiny_gpt2, kept, tmp_path_factory, monkeypatch):
    """A later text in the same pass must not reach an earlier one."""
    config = config_of(tiny_gpt2)
    whole = every(TEXTS, config)
    for place, text in enumerate(TEXTS):
        monkeypatch.setattr(text_states, "KEPT", tmp_path_factory.mktemp("alone"))
        assert torch.equal(every([text], config)[0], whole[place])


def test_what_is_kept_is_not_read_again(tiny_gpt2, monkeypatch):
    config = config_of(tiny_gpt2)
    found = every(TEXTS[:3], config)
    reads: list[int] = []
    own = text_states._Reader.__call__

    def counted(self: Any, texts: Any, *bar: Any) -> Any:
        reads.append(len(texts))
        return own(self, texts, *bar)

    monkeypatch.setattr(text_states._Reader, "__call__", counted)
    assert torch.equal(every([*TEXTS[2::-1], TEXTS[0]], config), found[[2, 1, 0, 0]]) and not reads
    every(TEXTS, config)
    assert reads == [1, 1, 2], "two that tell the time, then the two that are new"
    every(TEXTS[:1], config_of(tiny_gpt2, text_question=["?"]))
    every(TEXTS[:1], config_of(tiny_gpt2, llm_ablation="random"))
    assert len(reads) == 9, "another question, or other weights, are another state"


def test_a_place_that_is_none_gives_zeros(tiny_gpt2):
    states = read_states(config_of(tiny_gpt2), TEXTS[:2], device=CPU)
    found = states.of(torch.tensor([[1, -1], [-1, 0]]))
    assert found.shape == (2, 2, states.width) and not found[0, 1].any() and found[1, 1].any()


def test_blocks_are_mapped_and_whole_or_not_there(tiny_gpt2, monkeypatch, kept):
    """Killed in between, a run goes on behind the blocks that were whole."""
    monkeypatch.setattr(text_states, "BLOCK", 2)
    whole = every(TEXTS, config_of(tiny_gpt2))
    files = sorted(kept.glob("*/*.npy"))
    assert len(files) == 3
    files[0].unlink()
    assert torch.equal(every(TEXTS, config_of(tiny_gpt2)), whole)
    states = read_states(config_of(tiny_gpt2), TEXTS, device=CPU)
    assert all(isinstance(block, np.memmap) for block in states.blocks)


def test_layers_are_all_unless_said(tiny_gpt2):
    """--llm_layers cuts what forecasts, not what reads: a middle layer reads worse than none."""
    whole, cut, said = (
        every(TEXTS[:2], config_of(tiny_gpt2, **changes))
        for changes in ({"llm_layers": 1}, {"llm_layers": 2}, {"text_llm_layers": 2})
    )
    assert torch.equal(whole, cut) and not torch.equal(whole, said)


def test_a_text_and_question_longer_than_the_llm_end_in_a_clear_error(tiny_gpt2):
    with pytest.raises(
        UserError, match=r"--text_tokens: expected .*1024 positions.*lower --text_tokens to (\d+)"
    ) as e:
        every(TEXTS[:1], config_of(tiny_gpt2, text_tokens=1024))
    lower = int(str(e.value).rsplit(" ", 1)[1])
    every(TEXTS[:1], config_of(tiny_gpt2, text_tokens=lower))


def test_bert_is_read_without_answers(tiny_bert):
    states = read_states(config_of(tiny_bert), TEXTS[:2], device=CPU)
    assert not states.words and states.width == 2 * 32


def test_tokens_are_the_first_ones(tiny_gpt2):
    tokens = read_tokens(config_of(tiny_gpt2, text_fusion="prompt"), TEXTS)
    found = tokens.of(torch.tensor([3, -1]))
    tokenizer = AutoTokenizer.from_pretrained(tiny_gpt2)
    assert found[0].tolist() == tokenizer(TEXTS[3], add_special_tokens=False).input_ids[:20]
    assert (found[1] == -1).all()
