"""Which precision a run computes in where its flags say ``auto``: by timing slices of its own products.

float32 through MKL (``highest``), float32 through oneDNN (``medium``, only where its error is float32's)
or bf16: which is fast differs between processors by a factor of twenty, either way.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

from utils.config import AUTO, Config
from utils.evaluation_batch import PROMPT, windows_per_pass
from utils.training.precision import FP32_GRADE, medium_error
from utils.types import LLMOutline

HALF_GAIN = 1.3
"""bf16 changes the forecasts: it is taken from so many times float32's speed on."""
TIE = 1.1
"""oneDNN is taken from so many times MKL's speed on: closer ones would be told apart by noise."""
HOPELESS = 2.0
"""A candidate is timed no further once another is so many times faster."""
LIMIT = 0.75
"""Seconds that all products may take; drawing what they multiply comes on top, within a second in all."""
MOST_CALLS, FIRST_CALLS, CALLS = 4, 0.06, 0.01
"""Most calls of a candidate in a round, and seconds after which it has no further one, in the first round
and in others."""
MOST_WIDTH = 2048
"""Wider products are cut to it."""
ROWS = {"cpu": (64, 256, *(1024,) * 6), "cuda": (1024, 4096, 16384, 16384)}
"""Tokens of the slices, round after round; on a CPU, where others compute too, the last several times."""
FIRST_OPERATIONS = 1.2e8
"""Most of a product in the first round on a CPU, where nothing is known of its speed."""
WORTH_TIMING = 100_000
"""Weights of a product below which either way takes no time, and noise would choose."""
AT_ONCE = 10
"""Products between two looks at the clock on a GPU, which runs behind."""


class Way(NamedTuple):
    """A candidate: how the LLM and its products, and how other float32 products are computed."""

    mixed: str
    """``no`` or ``bf16``."""
    matmul: str
    """``highest`` or ``medium``, of float32 products."""

    def __str__(self) -> str:
        """In words."""
        return self.mixed if self.mixed != "no" else f"float32 {self.matmul}"


class Slice(NamedTuple):
    """Rows of one product of a layer, ``[rows, width] x [width, inner]``."""

    kind: str
    """``training`` (forward, and the gradient of its input) or ``evaluation`` (forward)."""
    rows: int
    width: int
    inner: int

    @property
    def operations(self) -> float:
        """Multiplications and additions."""
        return 2.0 * self.rows * self.width * self.inner * (2 if self.kind == "training" else 1)


Timer = Callable[[Way, Slice], float]
"""Seconds of a way on a slice."""


@dataclass
class Timings:
    """What was timed."""

    speeds: dict[Way, dict[str, float]] = field(default_factory=dict)
    """Operations a second by kind, of those that were timed."""
    seconds: float = 0.0

    def speed(self, way: Way) -> float:
        """Operations a second over all kinds, each counted alike."""
        found = self.speeds[way]
        return len(found) / sum(1 / value for value in found.values())


@dataclass(frozen=True)
class Settled:
    """The precision of a run."""

    mixed_precision: str
    matmul_precision: str
    lines: tuple[str, ...] = ()
    """What there is to say."""
    facts: dict[str, Any] = field(default_factory=dict)
    """For the run's records."""

    def apply(self, config: Config) -> Config:
        """The configuration with it."""
        return config.replace(mixed_precision=self.mixed_precision, matmul_precision=self.matmul_precision)


def settle(
    config: Config,
    device: torch.device,
    llm: LLMOutline | None,
    *,
    variables: int,
    recorded: Mapping[str, Any] | None = None,
    timer: Timer | None = None,
) -> Settled:
    """What ``--mixed_precision auto`` and ``--matmul_precision auto`` come to here; other values stay.

    Args:
        config: the run's.
        device: where it computes.
        llm: the sizes of its LLM; None for a model without, whose ``auto`` is float32.
        variables: of a window.
        recorded: the settings of the checkpoint that the run goes on from, tests or forecasts with:
            its precision is kept.
        timer: by default this machine's clock.
    """
    t = config.training
    asked = Way(t.mixed_precision, t.matmul_precision)
    if AUTO not in asked and recorded is None:
        return Settled(*asked, facts={"asked": _named(asked)})
    slices = list(_slices(config, llm, variables=variables, on_gpu=device.type != "cpu"))
    worth = device.type in ROWS and slices[0].width * slices[0].inner >= WORTH_TIMING
    error = medium_error(device, slices[0][2:]) if worth else math.nan
    exact = error <= FP32_GRADE
    kept = None if recorded is None else _kept(recorded, asked, exact=exact)
    half = llm is not None and has_bf16(device)
    ways = _ways(kept or asked, bf16=half, exact=exact, compare=kept is not None)
    timings = Timings()
    if worth and len(ways) > 1:
        timings = timed(ways, slices, timer or machine_timer(device), rows=ROWS[device.type])
    best = decide(timings, ways)
    taken = kept or Way(best.mixed if asked.mixed == AUTO else asked.mixed, best.matmul)
    facts = {
        "asked": _named(asked),
        "took": _named(taken),
        "error_of_medium": None if math.isnan(error) else error,
        "gflops": {str(w): {k: v / 1e9 for k, v in s.items()} for w, s in timings.speeds.items()},
        "timed_seconds": timings.seconds,
    }
    lines = _lines(timings, ways, taken=taken, best=best, kept=kept is not None, slices=slices, error=error)
    return Settled(*taken, lines=tuple(lines), facts=facts)


def _named(way: Way) -> dict[str, str]:
    """By the names of the settings."""
    return {"mixed_precision": way.mixed, "matmul_precision": way.matmul}


def _slices(config: Config, llm: LLMOutline | None, *, variables: int, on_gpu: bool) -> Iterator[Slice]:
    """The run's own products, in training and in evaluation: of the feed-forward part of its layers."""
    d, t = config.data, config.training
    width, inner = (llm.hidden, llm.inner) if llm else (config.backbone.d_model, config.backbone.d_ff)
    tokens = config.patch_count + (PROMPT if llm else 0)
    series = t.batch_size * (1 if d.channel_sampling == "single" else variables)
    evaluated = windows_per_pass(config, forecast=variables, on_gpu=on_gpu) * variables
    sizes = min(width, MOST_WIDTH), min(inner, MOST_WIDTH)
    if config.run.is_training:
        yield Slice("training", series * tokens, *sizes)
    yield Slice("evaluation", evaluated * tokens, *sizes)


def _kept(recorded: Mapping[str, Any], asked: Way, *, exact: bool) -> Way:
    """The precision of a checkpoint, where the flags leave it open; one that is not exact here is not."""
    mixed = asked.mixed if asked.mixed != AUTO else str(recorded.get("mixed_precision", "no"))
    matmul = asked.matmul if asked.matmul != AUTO else str(recorded.get("matmul_precision", AUTO))
    if asked.matmul == AUTO and matmul != "highest":
        matmul = "medium" if exact and matmul == "medium" else "highest"
    return Way(mixed, matmul)


def _ways(asked: Way, *, bf16: bool, exact: bool, compare: bool) -> list[Way]:
    """The candidates, the first one for where nothing is timed; with ``compare`` bf16 in any case.

    Where half precision was asked for, what is left open is how the other products are computed.
    """
    products = [asked.matmul] if asked.matmul != AUTO else ["highest", *(["medium"] if exact else [])]
    halves = [Way("bf16", products[0])] if bf16 and (asked.mixed == AUTO or compare) else []
    return [*(Way("no", product) for product in products), *halves]


def timed(ways: Sequence[Way], slices: Sequence[Slice], timer: Timer, *, rows: Sequence[int]) -> Timings:
    """Speeds of the candidates, in rounds of growing slices; each round of all that are still in it.

    A candidate that is `HOPELESS` drops out; the rest ends where one is left or the time is up.
    """
    found = Timings()
    left = list(ways)
    before: dict[Way, float] = {}  # seconds an operation, at worst
    kept_rows = 0
    for turn, most in enumerate(rows):
        cut = [_cut(s, most, first=turn == 0) for s in slices]
        fresh = {way: _one_round(way, cut, timer, found, before, first=turn == 0) for way in left}
        whole = {way: speeds for way, speeds in fresh.items() if len(speeds) == len(slices)}
        if len(whole) < len(left):
            if turn == 0:  # not even once: those that were are known
                found.speeds |= whole
            break
        for way, speeds in whole.items():
            old = found.speeds.get(way, {}) if most == kept_rows else {}
            found.speeds[way] = {k: max(v, old.get(k, 0.0)) for k, v in speeds.items()}
        kept_rows = most
        best = max(found.speed(way) for way in left)
        left = [way for way in left if found.speed(way) * HOPELESS > best]
        if len(left) == 1:
            break
    return found


def _one_round(
    way: Way, slices: Sequence[Slice], timer: Timer, found: Timings, before: dict[Way, float], *, first: bool
) -> dict[str, float]:
    """Speeds by kind, of the fastest call each; none where the time is up.

    What is soon done is called several times: a call that the system interrupted is no candidate's fault.
    In the first round the first call warms up.
    """
    speeds: dict[str, float] = {}
    for part in slices:
        fewest, taken = 2 if first else 1, 0.0
        for call in range(MOST_CALLS):
            if call >= fewest and taken > (FIRST_CALLS if first else CALLS):
                break
            expected = before.get(way, max(before.values(), default=0.0)) * part.operations
            if found.seconds + expected > LIMIT:
                return {}
            seconds = timer(way, part)
            found.seconds += seconds
            taken += seconds
            before[way] = seconds / part.operations
            speeds[part.kind] = max(speeds.get(part.kind, 0.0), part.operations / seconds)
    return speeds


def _cut(own: Slice, most: int, *, first: bool) -> Slice:
    """At most so many rows, and in the first round on a CPU few operations."""
    rows = min(own.rows, most)
    if first and most == ROWS["cpu"][0]:
        rows = max(1, min(rows, int(FIRST_OPERATIONS / (2 * own.width * own.inner))))
    return own._replace(rows=rows)


def decide(timings: Timings, ways: Sequence[Way]) -> Way:
    """float32 by its faster kernel; bf16 where it is `HALF_GAIN` times faster. The first one untimed."""
    known = [way for way in ways if way in timings.speeds]
    plain = [way for way in known if way.mixed != "bf16"]
    if not plain:
        return ways[0]
    best = plain[0]
    for way in plain[1:]:
        if timings.speed(way) >= TIE * timings.speed(best):
            best = way
    halves = [w for w in known if w.mixed == "bf16" and timings.speed(w) >= HALF_GAIN * timings.speed(best)]
    return Way(halves[0].mixed, best.matmul) if halves else best


def has_bf16(device: torch.device) -> bool:
    """Whether a device computes in bf16 at all; how fast, the clock says."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu"


def machine_timer(device: torch.device) -> Timer:
    """The clock of this machine, on random numbers of its own generator."""
    generator = torch.Generator().manual_seed(0)
    made: dict[tuple[str, int, int], Tensor] = {}

    def drawn(name: str, rows: int, columns: int) -> Tensor:
        key = (name, rows, columns)
        if key not in made:
            made[key] = torch.randn(rows, columns, generator=generator).to(device)
        return made[key]

    def seconds(way: Way, part: Slice) -> float:
        dtype = torch.bfloat16 if way.mixed == "bf16" else torch.float32
        x = drawn("x", part.rows, part.width).to(dtype)
        weight = drawn("weight", part.inner, part.width).to(dtype)
        gradient = drawn("gradient", part.rows, part.inner).to(dtype)
        before = torch.get_float32_matmul_precision()
        times = AT_ONCE if device.type == "cuda" else 1
        try:
            torch.set_float32_matmul_precision(way.matmul)
            _wait(device)
            began = time.perf_counter()
            for _ in range(times):
                linear(x, weight)
                if part.kind == "training":
                    gradient @ weight
            _wait(device)
            return (time.perf_counter() - began) / times
        finally:
            torch.set_float32_matmul_precision(before)

    with_no_gradient: Timer = torch.no_grad()(seconds)
    return with_no_gradient


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _lines(
    timings: Timings,
    ways: Sequence[Way],
    *,
    taken: Way,
    best: Way,
    kept: bool,
    slices: Sequence[Slice],
    error: float,
) -> Iterator[str]:
    """The choice with its figures; of a checkpoint's precision only that it is slow here."""
    figures = "; ".join(f"{way} {_speed_text(timings.speeds[way])}" for way in ways if way in timings.speeds)
    if kept:
        own, other = (next((w for w in timings.speeds if w.mixed == x.mixed), None) for x in (taken, best))
        if own and other and own != other:
            times = timings.speed(other) / timings.speed(own)
            yield (
                f"precision: {taken} as the checkpoint has it; this machine computes in {other} {times:.1f} "
                f"times as fast ({figures} GFLOP/s)"
            )
        return
    if not figures:
        yield f"precision: {taken}; products this small or without a choice are not timed"
        return
    refused = f"; float32 medium refused, its error is {error:.0e}" if error > FP32_GRADE else ""
    untimed = [str(way) for way in ways if way not in timings.speeds]
    late = f"; no time left for {', '.join(untimed)}" if untimed else ""
    kinds = " / ".join(part.kind for part in slices)
    yield (
        f"precision: {taken}, by slices of {slices[0].width} x {slices[0].inner} products timed in "
        f"{timings.seconds:.2f} s ({kinds}, GFLOP/s): {figures}{refused}{late}"
    )


def _speed_text(speeds: Mapping[str, float]) -> str:
    return " / ".join(f"{value / 1e9:.0f}" for value in speeds.values())
