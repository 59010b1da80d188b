"""Which way through a frozen LLM gives what transformers alone gives: found once at the start, and kept.

The truth is the LLM's own forward pass over one sequence at a time: nothing padded, masked, kept or cut
short. It is compared through a few of the LLM's layers in float32 (`layers.llm.probe`), at the lengths of
the run's sequences, and at lengths beyond the windows that its config names. What is found is kept in a
file, by the hash of the weights and of all that decides.

Shape legend: T tokens of a sequence, T_t of its tail, d width of a token.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache
from logging import getLogger
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

from layers.llm import attention as llm_attention
from layers.llm import blocks as llm_fused
from layers.llm.forward import LLMPass
from layers.llm.kept import format_of
from layers.llm.layers import HasKeys, stack_of
from layers.llm.probe import WORDS, twin_of
from layers.llm.way import BY_LENGTH, LEFT, MIDDLE, Way
from layers.llm.whole import require_finite
from utils.atomic_files import whole_file
from utils.errors import UserError
from utils.paths import BASE_MODELS
from utils.training.precision import matmul_precision

log = getLogger(__name__)

KEPT = BASE_MODELS / ".checks"
"""Where what was found is kept."""
TOLERANCE = 5e-5
"""Largest difference of two right ways, in deviations of the states: float32 rounds to 7e-6 (SmolLM2)."""
GRADIENT_TOLERANCE = 2e-3
"""The same of a gradient, in its own largest entry."""
UNPADDED_TOLERANCE = 1e-2
"""The same where there is no other way: of series alone and together, where a router's choice may turn."""
DIRECTIONS, STEP, SLOPE_TOLERANCE = 16, 0.1, 0.4
"""Directions at a token of a quantised LLM, their size in deviations of its words, and how far autograd's
changes along them may be from those of the states, which in half precision are rounded."""
LONGEST = 2304
"""Tokens of the longest sequence that is tried for a window's sake alone."""
FAILURES = (
    RuntimeError, ValueError, TypeError, AttributeError, IndexError, KeyError, AssertionError,
    NotImplementedError,
)  # fmt: skip
"""By which a model's code may say that it knows no such way."""
WAYS = (
    ("causal", MIDDLE), ("causal", LEFT), ("bidirectional", MIDDLE), ("bidirectional", LEFT),
    ("plain", MIDDLE), ("plain", LEFT), ("plain", BY_LENGTH),
)  # fmt: skip
"""The cheapest first."""


class CheckTokens(NamedTuple):
    """How many tokens a sequence has: those that all begin with, those before its tail, its tail."""

    prefix: int = 3
    front: int = 5
    tail: int = 4

    @property
    def total(self) -> int:
        """T."""
        return sum(self)


FEW = CheckTokens()


def checked_pass(
    llm: PreTrainedModel,
    *,
    tokens: CheckTokens | None = None,
    content_hash: str = "",
    name: str = "",
    files: Sequence[Path] = (),
) -> LLMPass:
    """A pass through ``llm`` that gives what transformers alone gives, and one line of the log that says how.

    Args:
        llm: frozen, whatever its precision; adapters on it have no effect yet.
        tokens: of the run's sequences.
        content_hash: of its weights; without one nothing is kept.
        name: what it was asked for by; the class by default.
        files: its weights', to name the one at fault.

    Raises:
        ValueError: no way gives it, or a weight is not finite.
    """
    wanted = lengths(llm.config, tokens)
    file = KEPT / f"{_key(llm, wanted, content_hash)}.json" if content_hash else None
    way = _kept(file)
    if way is None:
        require_finite(llm, list(files), name=name or type(llm).__name__)
        way = _decided(llm, wanted, name=name)
        if file is not None:
            # where the folder can not be written it is found again next time
            with suppress(OSError), whole_file(file) as stream:
                stream.write(json.dumps(way._asdict(), indent=1).encode())
    _require_own_precision(llm, name=name)
    if getattr(llm, "is_quantized", False):
        _require_gradient(llm, name=name)
    log.info("LLM pass of %s: %s", type(llm).__name__, way.text())
    return LLMPass(llm, way)


def lengths(settings: Any, tokens: CheckTokens | None) -> list[CheckTokens]:
    """What is tried: the run's sequences, or a few tokens; and some that reach beyond each window."""
    most = tokens.total if tokens is not None else LONGEST
    reach = sorted({window for window in _windows(settings) if FEW.total < window + FEW.total <= most})
    beyond = [_beyond(window) for window in reach]
    return list(dict.fromkeys([tokens or FEW, *beyond]))


def _beyond(window: int) -> CheckTokens:
    total = window + FEW.total
    prefix = max(FEW.prefix, total // 3)
    return CheckTokens(prefix, total - prefix - FEW.tail, FEW.tail)


def _windows(settings: Any) -> Iterator[int]:
    """Numbers of a config that may be lengths at which a model begins to do otherwise."""
    for name, value in vars(settings).items():
        if not any(word in name for word in ("window", "chunk", "local", "block_size", "original_max")):
            continue
        for number in value if isinstance(value, list | tuple) else [value]:
            if type(number) is int and number > 1:
                yield number
    rope = getattr(settings, "rope_parameters", None)
    for part in [rope, *rope.values()] if isinstance(rope, dict) else []:
        number = part.get("original_max_position_embeddings") if isinstance(part, dict) else None
        if isinstance(number, int):
            yield number


# What was found before.


def _key(llm: PreTrainedModel, wanted: list[CheckTokens], content_hash: str) -> str:
    """A hash of all that decides: weights, layers, lengths, versions, and our own code."""
    config = llm.config
    facts = [
        content_hash, type(llm).__name__, int(config.num_hidden_layers), [tuple(w) for w in wanted],
        any(weight.requires_grad for weight in llm.parameters()), bool(getattr(llm, "is_quantized", False)),
        format_of(llm), getattr(llm, "hf_device_map", None) is not None, torch.__version__,
        transformers.__version__, _code(),
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


@cache
def _code() -> str:
    """A hash of this package's source."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _kept(file: Path | None) -> Way | None:
    """What a file keeps; None where there is none, or none that can be read."""
    if file is None:
        return None
    try:
        return Way(**json.loads(file.read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return None


# Finding it.


class _Sample(NamedTuple):
    """Two sequences, one of them padded behind the prefix, and their true states."""

    tokens: CheckTokens
    words: Tensor
    """[2, T, d]"""
    mask: Tensor
    states: Tensor
    """[2, T_t, d]"""
    gradient: Tensor
    """By the tail's tokens, [2, T_t, d]."""


def _decided(llm: PreTrainedModel, wanted: list[CheckTokens], *, name: str) -> Way:
    """The cheapest way that is right, by a few of the LLM's layers in float32.

    So it is the same in every precision, on every processor and at every number of layers.
    """
    with matmul_precision("highest", torch.device("cpu")):
        return _Check(llm, wanted, name=name).way()


def _require_own_precision(llm: PreTrainedModel, *, name: str) -> None:
    """Refuse an LLM in bfloat16 whose own code fails on it: what was found is true of float32."""
    words = llm.get_input_embeddings().weight
    if words.dtype != torch.bfloat16 or words.device.type != "cpu":
        return
    tokens = words[: FEW.total].detach()[None]
    try:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            llm(inputs_embeds=tokens)
    except FAILURES as error:
        raise UserError(
            f"--mixed_precision bf16: {name or type(llm).__name__}: its own code fails in bfloat16 "
            f"({_said(error)}); compute in float32 (--mixed_precision no)"
        ) from error


def _require_gradient(llm: PreTrainedModel, *, name: str) -> None:
    """Refuse a quantised LLM whose gradient at its tokens is not that of its states.

    No twin has its kernels. Those of bitsandbytes on a CPU give a gradient that is far too small, and of
    integers that tokens are rounded to none at all. Differences of states along random directions at one
    token are compared with what autograd says of them.
    """
    words = llm.get_input_embeddings().weight
    tokens = words[: FEW.total].detach()[None].clone()
    generator = torch.Generator().manual_seed(0)
    ways = torch.randn(DIRECTIONS, words.shape[1], generator=generator).to(tokens)
    ways *= STEP * tokens.float().std().to(tokens)

    def score(given: Tensor) -> Tensor:
        return _score(llm(inputs_embeds=given).last_hidden_state[0].float())

    given = tokens.clone().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(score(given), given)
    told = ways.float() @ gradient[0, 1].float()
    found = []
    with torch.no_grad():
        for way in ways:
            moved = torch.zeros_like(tokens)
            moved[0, 1] = way
            found.append((score(tokens + moved) - score(tokens - moved)) / 2)
    differences = torch.stack(found)
    slope = float(told @ differences / (differences @ differences))
    if not 1 - SLOPE_TOLERANCE < slope < 1 + SLOPE_TOLERANCE:
        raise UserError(
            f"--llm_model {name or type(llm).__name__}: expected quantised weights that let gradients "
            f"through, found one {slope:.2g} times what its states say ({tokens.device.type}); take the model "
            "in its original precision, with --llm_weights int8 for less memory"
        )


class _Check:
    """The LLM's twin, and its true states."""

    def __init__(self, llm: PreTrainedModel, wanted: list[CheckTokens], *, name: str) -> None:
        self.name, self.asked = type(llm).__name__, name
        words = llm.get_input_embeddings()
        beside = [n for n, m in llm.named_modules() if isinstance(m, nn.Embedding) and m is not words]
        if any("per_layer" in name for name in beside):
            raise self._refused(
                "one whose layers read word embeddings alone, and no token ids beside them (per-layer "
                "embeddings)"
            )
        self.twin: Any = twin_of(llm)
        try:
            self._look(wanted)
        except UserError:
            raise
        except FAILURES:  # layers that hang together: all of them
            self.twin = twin_of(llm, whole=True)
            try:
                self._look(wanted)
            except UserError:
                raise
            except FAILURES as error:
                raise self._refused(
                    "one that takes embeddings in the place of token ids, which its own code fails on "
                    f"({_said(error)})"
                ) from error

    def _look(self, wanted: list[CheckTokens]) -> None:
        self.multiplier = self._multiplier(self._ids(wanted[0].total))
        self.samples = [self._sample(tokens, seed=i) for i, tokens in enumerate(wanted)]

    def way(self) -> Way:
        """The first of `WAYS` that is right.

        Raises:
            ValueError: there is none.
        """
        width = self.samples[0].states.shape[-1]
        base = Way(multiplier=self.multiplier, width=width, first_position=self._first_position())
        found: dict[tuple[str, str], float] = {}
        for kind, padding in WAYS:
            for first in dict.fromkeys([base.first_position, None]):
                way = base._replace(kind=kind, padding=padding, first_position=first)
                limit = UNPADDED_TOLERANCE if padding == BY_LENGTH else TOLERANCE
                off = self._off(way, limit=limit)
                if off is None:
                    continue
                if off <= limit:
                    return self._with_attention(way._replace(why=_why(way, found)))
                found.setdefault((kind, padding), off)
        raise self._refused("one whose states are the same alone and in a batch")

    def _refused(self, expected: str) -> UserError:
        asked = f" {self.asked}" if self.asked else ""
        return UserError(
            f"--llm_model{asked}: expected {expected}, found {self.name}; choose another language model"
        )

    # The truth.

    def _ids(self, count: int, *, seed: int = 0) -> Tensor:
        """Token ids [2, count], none of them special."""
        words = self.twin.get_input_embeddings()
        names = [n for n in vars(self.twin.config) if n.endswith("token_id")]
        special = {
            getattr(self.twin.config, n) for n in names if isinstance(getattr(self.twin.config, n), int)
        }
        usual = torch.tensor(
            [i for i in range(min(WORDS, words.num_embeddings)) if i not in special | {0, 1, 2}]
        )
        drawn = torch.randint(len(usual), (2, count), generator=torch.Generator().manual_seed(seed))
        return usual[drawn].to(words.weight.device)

    def _multiplier(self, ids: Tensor) -> float:
        """What the twin's own words are multiplied by, and not those it is given.

        Raises:
            ValueError: its states for ids are those of no multiple of the words.
        """
        with torch.no_grad():
            words = self.twin.get_input_embeddings()(ids[:1])
            by_ids = self.twin(input_ids=ids[:1]).last_hidden_state
            again = self.twin(input_ids=ids[:1]).last_hidden_state
            if by_ids.shape[:2] != words.shape[:2]:
                raise self._refused(
                    f"a state for each token ({words.shape[1]} of them, {by_ids.shape[1]} states)"
                )
            if not torch.equal(by_ids, again) and _apart(again, by_ids) > TOLERANCE:
                raise self._refused("one whose states are the same each time, and not drawn at random")
            off = []
            for factor in (1.0, self._ratio(ids[:1], words)):
                off.append(_apart(self.twin(inputs_embeds=factor * words).last_hidden_state, by_ids))
                if off[-1] <= TOLERANCE:
                    return factor
        raise self._refused(
            "one whose layers read word embeddings alone, and no token ids beside them (the states of both "
            f"are {min(off):.2g} deviations apart)"
        )

    def _ratio(self, ids: Tensor, words: Tensor) -> float:
        """What the first layer is given for ids over what it is given for the words; 1 where unknown."""
        try:
            layer = stack_of(self.twin, int(self.twin.config.num_hidden_layers))[0]
        except ValueError:
            return 1.0
        seen: list[Tensor] = []

        def stop(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen.append((args[0] if args else kwargs["hidden_states"]).clone())
            raise HasKeys

        hook = layer.register_forward_pre_hook(stop, with_kwargs=True)
        try:
            for given in ({"input_ids": ids}, {"inputs_embeds": words.clone()}, {"inputs_embeds": 2 * words}):
                with suppress(HasKeys):
                    self.twin(**given)
        finally:
            hook.remove()
        if len(seen) != 3:  # not the layers that text goes through
            return 1.0
        wanted, once, twice = seen
        step = (twice - once).flatten()
        return float(1 + (wanted - once).flatten() @ step / (step @ step))

    def _sample(self, tokens: CheckTokens, *, seed: int) -> _Sample:
        ids = self._ids(tokens.total, seed=seed)
        ids[1, : tokens.prefix] = ids[0, : tokens.prefix]
        mask = torch.ones_like(ids)
        mask[0, tokens.prefix : tokens.prefix + min(4, tokens.front - 1)] = 0
        words = self.multiplier * self.twin.get_input_embeddings()(ids).detach()
        states, gradients = [], []
        for row, counts in zip(words, mask.bool(), strict=True):
            found, gradient = self._alone(row[counts], tokens.tail)
            states.append(found)
            gradients.append(gradient)
        return _Sample(tokens, words, mask, torch.stack(states), torch.stack(gradients))

    def _alone(self, words: Tensor, tail: int) -> tuple[Tensor, Tensor]:
        """States of one sequence [T, d] at its tail, and the gradient of `_score` by the tail."""
        last = words[-tail:].clone().requires_grad_()
        with torch.enable_grad():
            given = torch.cat([words[:-tail], last])[None]
            states = self.twin(inputs_embeds=given).last_hidden_state[0, -tail:]
            (gradient,) = torch.autograd.grad(_score(states), last)
        return states.detach(), gradient

    def _first_position(self) -> int | None:
        """Of a sequence, as the model counts: 0, or behind that of padding; None where it takes none."""
        sample = self.samples[0]
        words, tail = sample.words[1:], sample.tokens.tail
        pad = getattr(self.twin.config, "pad_token_id", None)
        for first in dict.fromkeys([0, pad + 1 if isinstance(pad, int) else 0]):
            with suppress(*FAILURES), torch.no_grad():
                place = torch.arange(first, first + words.shape[1], device=words.device)[None]
                found = self.twin(inputs_embeds=words.clone(), position_ids=place).last_hidden_state
                if _apart(found[:, -tail:], sample.states[1:]) <= TOLERANCE:
                    return first
        return None

    # The ways.

    def _off(self, way: Way, *, limit: float) -> float | None:
        """The largest difference of a way's states, in deviations; None where it fails, or its gradient."""
        worst = 0.0
        try:
            taken = LLMPass(self.twin, way)
            for sample in self.samples:
                worst = max(worst, self._states_off(taken, sample))
                if worst <= limit and not self._gradient_is_right(taken, sample):
                    return None
        except FAILURES as error:
            log.debug("%s, padding %s, of %s: %s", way.kind, way.padding, self.name, _said(error))
            return None
        return worst

    @torch.no_grad()
    def _states_off(self, taken: LLMPass, sample: _Sample) -> float:
        before, front, tail = sample.words.clone().split(list(sample.tokens), dim=1)
        off = _apart(taken(torch.cat([before, front], 1), tail, mask=sample.mask), sample.states)
        if taken.reuses_prefix and before.shape[1]:
            found = taken(front, tail, mask=sample.mask, prefix=taken.prefix(before[:1]))
            off = max(off, _apart(found, sample.states))
        return off

    def _gradient_is_right(self, taken: LLMPass, sample: _Sample) -> bool:
        before, front, tail = sample.words.clone().split(list(sample.tokens), dim=1)
        tail = tail.clone().requires_grad_()
        with torch.enable_grad():
            prefix = taken.prefix(before[:1]) if taken.reuses_prefix and before.shape[1] else None
            front = front if prefix is not None else torch.cat([before, front], 1)
            states = taken(front, tail, mask=sample.mask, prefix=prefix)
            (found,) = torch.autograd.grad(_score(states), tail)
        return (
            float((found - sample.gradient).abs().max() / sample.gradient.abs().max()) <= GRADIENT_TOLERANCE
        )

    def _with_attention(self, way: Way) -> Way:
        """With attention by matrix products, and fused layers, where the way takes them and stays right."""
        if way.kind == "plain":
            return way
        products = way._replace(attention=llm_attention.NAME)
        with suppress(UserError):
            layers = stack_of(self.twin, int(self.twin.config.num_hidden_layers))
            if llm_fused.fuse(layers) or llm_fused.is_fused(layers):
                if self._takes(products):
                    return products._replace(is_fused=True)
                llm_fused.restore(layers)
                log.info("%s: its layers stay transformers' own", self.name)
        if self._takes(products):
            return products
        LLMPass(self.twin, way)._set_attention(torch.device("cpu"))
        log.info("%s: its attention stays transformers' own", self.name)
        return way

    def _takes(self, way: Way) -> bool:
        """Whether the attention is the one by matrix products now, and right."""
        off = self._off(way, limit=TOLERANCE)
        return off is not None and off <= TOLERANCE and self.twin.config._attn_implementation == way.attention


def _why(way: Way, off: dict[tuple[str, str], float]) -> str:
    """Why no cheaper way was taken, by how far others were off."""
    if way.padding == MIDDLE:
        return "" if way.kind != "plain" else "no shortened pass gives its states"
    middle = off.get((way.kind, MIDDLE))
    if middle is None:
        return "it takes no padding in the middle"
    return f"padding in the middle is off by {middle:.2g} deviations of its states"


def _apart(found: Tensor, wanted: Tensor) -> float:
    """The largest difference, in deviations of what is wanted."""
    off = float((found - wanted).abs().max() / wanted.std())
    return off if off == off else float("inf")


def _score(states: Tensor) -> Tensor:
    """A number [] that each state moves otherwise."""
    weights = torch.linspace(-1, 1, states.shape[-1] * states.shape[-2]).view(states.shape[-2:])
    return (states * weights.to(states)).sum()


def _said(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
