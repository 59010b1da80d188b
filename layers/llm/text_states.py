"""What a frozen LLM makes of texts, each read once with a question behind it, and kept on disk.

Kept of each text and question are the last token's state after all layers and the log-probabilities of a few
answers. Texts pass without padding, always as many at once, so that no text moves a digit of another's; each
is found again by its content, the LLM's and the questions'.

Source: measured on made-up notices (docs/results.md): a question, the last layer, the last token; states
averaged over tokens or of middle layers read little.

Shape legend: K texts, Q questions, W answers, d_llm hidden size, D = Q * (d_llm + W), T tokens.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from logging import getLogger
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from layers.llm.ablation import ablated
from layers.llm.files import Source, fingerprint, read_tokenizer
from layers.llm.load import FrozenLLM, layers_of, load_llm, positions_of
from layers.llm.sources import find_source
from utils.atomic_files import whole_file
from utils.config import Config, LLMConfig
from utils.errors import UserError
from utils.paths import BASE_MODELS
from utils.prompt_bank import describe, read_description

log = getLogger(__name__)
KEPT = BASE_MODELS / ".texts"
"""Where states are kept."""
VERSION = 1
"""Of how they are computed: another finds nothing kept."""
BLOCK = 256
"""Texts of a file: what a run that is killed loses at most."""
TOGETHER = 16
"""Texts of a pass, always as many and of one length: then no text moves a digit of another's."""
ANSWERS = (
    "up", "down", "higher", "lower", "more", "less", "increase", "decrease", "rise", "fall", "slightly",
    "sharply", "much", "little", "a",
)  # fmt: skip
"""The words whose log-probabilities behind the question are kept; of each its first token, after a blank."""


class TextStates:
    """States of K texts in files that are mapped to memory (a `utils.types.TextReading`)."""

    def __init__(
        self, blocks: Sequence[NDArray[np.float32]], rows: NDArray[np.int64], *, words: Sequence[str]
    ) -> None:
        """``rows`` [K, 2]: the block and the row in it of each text."""
        self.blocks, self.rows = list(blocks), rows
        self.words: Sequence[str] = tuple(words)

    @property
    def width(self) -> int:
        """D."""
        return int(self.blocks[0].shape[1])

    def of(self, places: Tensor) -> Tensor:
        """States [..., D] float32 of the texts at these places [...]; zeros for a place -1."""
        wanted = places.reshape(-1).numpy()
        found = np.zeros((len(wanted), self.width), dtype=np.float32)
        there = wanted >= 0
        block, row = self.rows[wanted[there]].T
        for own in np.unique(block):
            found[np.flatnonzero(there)[block == own]] = self.blocks[own][row[block == own]]
        return torch.from_numpy(found).reshape(*places.shape, -1)


class TextTokens:
    """The first tokens of K texts (a `utils.types.TextReading` that has no words)."""

    words: Sequence[str] = ()

    def __init__(self, tokens: Tensor) -> None:
        """``tokens`` [K, T] int64, -1 behind the end of shorter ones."""
        self.tokens = tokens

    def of(self, places: Tensor) -> Tensor:
        """Tokens [..., T] of the texts at these places [...]; all -1 for a place -1."""
        return torch.where(places[..., None] >= 0, self.tokens[places.clamp(min=0)], -1)


def read_tokens(config: Config, texts: Sequence[str]) -> TextTokens:
    """The first ``--text_tokens`` tokens of each text, by the run's LLM's tokenizer."""
    source = find_source(config.llm, BASE_MODELS)
    tokenizer = read_tokenizer(source, trust=config.llm.trust_remote_code)
    rows = _cut(tokenizer, texts, config.text.text_tokens)
    tokens = np.full((len(rows), config.text.text_tokens), -1, dtype=np.int64)
    for place, row in enumerate(rows):
        tokens[place, : len(row)] = row
    return TextTokens(torch.from_numpy(tokens))


def read_states(config: Config, texts: Sequence[str], *, device: torch.device) -> TextStates:
    """States of texts after the questions of ``config``; those that are kept are not computed again.

    Raises:
        LLMUnavailableError, UserError: as `layers.llm.load.load_llm` does, or a question and text are longer
            than the LLM has positions for.
    """
    llm = _reading_llm(config)
    source = find_source(llm, BASE_MODELS)
    folder = KEPT / _key(config, llm, source)
    hashes = [_text_hash(text) for text in texts]
    kept = _known(folder)
    missing = {own: text for own, text in zip(hashes, texts, strict=True) if own not in kept}
    if missing:
        _read_missing(config, llm, missing, folder, device=device)
        kept = _known(folder)
    files = list(dict.fromkeys(kept[own][0] for own in hashes))
    blocks = [np.load(file, mmap_mode="c") for file in files]
    number = {file: place for place, file in enumerate(files)}
    rows = np.array([(number[kept[own][0]], kept[own][1]) for own in hashes], dtype=np.int64)
    width = blocks[0].shape[1]
    hidden = json.loads((folder / "what.json").read_text("utf-8"))["hidden"]
    questions = len(questions_of(config))
    return TextStates(blocks, rows, words=ANSWERS if width > questions * hidden else ())


def state_width(hidden: int, *, questions: int, has_words: bool) -> int:
    """D of an LLM of this hidden size."""
    return questions * (hidden + has_words * len(ANSWERS))


def has_words(llm: Any) -> bool:
    """Whether answers can be read: its head is its table of words, which a model without a head has too."""
    return bool(getattr(llm.config, "tie_word_embeddings", False)) and not hasattr(llm, "pooler")


def questions_of(config: Config) -> list[str]:
    """What stands behind each text, one question after the other; by default of the data's description."""
    if config.text.text_question:
        return list(config.text.text_question)
    b = config.backbone
    about = read_description(b.prompt_file) if b.prompt_file else describe(config.data.data)
    return [f"\n{about} In short, {' and '.join(config.data.target)} will be"]


def _reading_llm(config: Config) -> LLMConfig:
    """The settings of the LLM that reads: all of its layers, on one device, without adapters."""
    plain = replace(config.llm, llm_device_map=None, peft="none", llm_dim=None)
    return replace(plain, llm_layers=config.text.text_llm_layers or layers_of(plain))


def _key(config: Config, llm: LLMConfig, source: Source) -> str:
    """The hash of all that a text's state depends on beside the text."""
    drawn = config.training.seed if llm.llm_ablation == "random" else None
    facts = {
        "version": VERSION,
        "llm": fingerprint(source)[0],
        "layers": llm.llm_layers,
        "drawn": drawn,
        "in_4bit": llm.load_in_4bit,
        **({} if llm.llm_weights == "auto" else {"weights": llm.llm_weights}),
        "tokens": config.text.text_tokens,
        "questions": questions_of(config),
        "answers": ANSWERS,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def _text_hash(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def _known(folder: Path) -> dict[str, tuple[Path, int]]:
    """File and row of each text that is kept, by its hash."""
    found = {}
    for names in sorted(folder.glob("*.txt")):
        file = names.with_suffix(".npy")
        if file.is_file():
            for row, own in enumerate(names.read_text("utf-8").split()):
                found[own] = (file, row)
    return found


def _read_missing(
    config: Config, llm_config: LLMConfig, missing: dict[str, str], folder: Path, *, device: torch.device
) -> None:
    """Read texts by hash, in blocks, each kept as soon as it is whole."""
    read = load_llm(llm_config, cpu=device.type == "cpu")
    llm = ablated(read, llm_config, seed=config.training.seed)
    reader = _Reader(llm, config, device)
    width = state_width(llm.identity.hidden_size, questions=len(reader.questions), has_words=reader.has_words)
    lengths = [len(ids) for ids in _cut(llm.tokenizer, list(missing.values()), config.text.text_tokens)]
    order = np.argsort(lengths, kind="stable")  # those that are read together are as long
    items = [list(missing.items())[place] for place in order]
    one = items[len(items) // 2][1]
    reader([one])
    began = time.perf_counter()
    reader([one])
    seconds = (time.perf_counter() - began) / TOGETHER * len(items)
    log.info(
        "texts: %d to be read by %s, %d layers, with %d question(s) each: about %.0f s, %.1f MB in %s%s",
        len(items), llm.identity.name, llm_config.llm_layers, len(reader.questions), seconds,
        4e-6 * width * len(items), folder,
        "" if reader.has_words else "; it has no head of its words here: no answers are read",
    )  # fmt: skip
    with whole_file(folder / "what.json") as file:
        file.write(json.dumps({"hidden": llm.identity.hidden_size}).encode())
    with tqdm(total=len(items), desc="texts read", unit="text", disable=None) as bar:
        for begin in range(0, len(items), BLOCK):
            block = items[begin : begin + BLOCK]
            states = reader([text for _, text in block], bar)
            assert states.shape == (len(block), width)
            _keep(folder, [own for own, _ in block], states)


def _keep(folder: Path, hashes: Sequence[str], states: NDArray[np.float32]) -> None:
    """A block as two files, the names last."""
    name = hashlib.sha256("".join(hashes).encode()).hexdigest()[:32]
    content = io.BytesIO()
    np.save(content, states)
    with whole_file(folder / f"{name}.npy") as file:
        file.write(content.getvalue())
    with whole_file(folder / f"{name}.txt") as file:
        file.write("\n".join(hashes).encode())


class _Reader:
    """Texts to their numbers."""

    def __init__(self, llm: FrozenLLM, config: Config, device: torch.device) -> None:
        """Of the settings' questions and length."""
        self.model: Any = llm.model
        cast(nn.Module, llm.model).to(device)
        self.tokenizer, self.device, self.most = llm.tokenizer, device, config.text.text_tokens
        self.before, self.behind = _frame(llm.tokenizer)
        self.questions = [_ids(llm.tokenizer, q) for q in questions_of(config)]
        self.has_words = has_words(self.model)
        self.answers = [_ids(llm.tokenizer, f" {word}")[0] for word in ANSWERS]
        positions, longest = positions_of(llm.model), self.most + max(map(len, self.questions))
        longest += len(self.before) + len(self.behind)
        if positions is not None and longest > positions:
            raise UserError(
                f"--text_tokens: expected a text and its question within the {positions} positions of "
                f"{llm.identity.name}, found {longest}; lower --text_tokens to "
                f"{positions - longest + self.most}"
            )

    def __call__(self, texts: Sequence[str], bar: tqdm[Any] | None = None) -> NDArray[np.float32]:
        """Their states and answers, question by question, [K, D]."""
        cut = _cut(self.tokenizer, texts, self.most)
        lengths: dict[int, list[int]] = {}
        for place, ids in enumerate(cut):
            lengths.setdefault(len(ids), []).append(place)
        found: dict[int, NDArray[np.float32]] = {}
        for places in lengths.values():
            for begin in range(0, len(places), TOGETHER):
                own = places[begin : begin + TOGETHER]
                found |= dict(zip(own, self._together([cut[place] for place in own]), strict=True))
                if bar is not None:
                    bar.update(len(own))
        values = np.stack([found[place] for place in range(len(texts))])
        wrong = np.flatnonzero(~np.isfinite(values).all(axis=1))
        if wrong.size:
            raise UserError(
                "--text_file: expected finite states of its texts, found none of the text "
                f"{texts[wrong[0]][:60]!r}; leave it out, or read it by another LLM"
            )
        return values

    @torch.inference_mode()
    def _together(self, rows: Sequence[list[int]]) -> NDArray[np.float32]:
        """Of texts of equally many tokens; filled up to `TOGETHER` with the first one."""
        found: list[Tensor] = []
        filled = [*rows, *[rows[0]] * (TOGETHER - len(rows))]
        for question in self.questions:
            tokens = [[*self.before, *ids, *question, *self.behind] for ids in filled]
            seen = self.model(input_ids=torch.tensor(tokens, device=self.device))
            states = seen.last_hidden_state[:, -1].float()  # [B, d_llm]
            found.append(states)
            if self.has_words:
                words: nn.Embedding = self.model.get_input_embeddings()
                found.append((states @ words.weight.float().T).log_softmax(dim=-1)[:, self.answers])
        values: NDArray[np.float32] = torch.cat(found, dim=1)[: len(rows)].cpu().numpy()
        return values


def _cut(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], most: int) -> list[list[int]]:
    """The first tokens of each text, without special ones."""
    found = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)
    return [ids[:most] for ids in found["input_ids"]]


def _frame(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """What the tokenizer puts before and behind a text by itself, but for a closing end-of-text."""
    whole, own = tokenizer("a", add_special_tokens=True)["input_ids"], _ids(tokenizer, "a")
    places = [i for i in range(len(whole)) if whole[i : i + len(own)] == own]
    if not places:
        return [], []
    behind = whole[places[0] + len(own) :] if tokenizer.cls_token_id is not None else []
    return whole[: places[0]], behind


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids
