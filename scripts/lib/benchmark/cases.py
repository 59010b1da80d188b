"""What is compared with what, and the least that is expected of it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from utils.config import iter_settings
from utils.prompt_bank import describe

PLAIN, DEFAULT, ALL = "plain", "default", "all choices"
AUTO_CASE, PRESET = "auto", "preset"
MISS = 0.8
"""A floor is missed by more than 20% below this share of it."""
LONG_DESCRIPTION = (
    f"{describe('ETTh1')} The columns are HUFL, high useful load, HULL, high useless load, MUFL, middle "
    "useful load, MULL, middle useless load, LUFL, low useful load, LULL, low useless load, and OT, oil "
    "temperature, all measured at one transformer of one county; loads are in relative units, the oil "
    "temperature in degrees Celsius. Useful load follows the demand of homes and workshops, with a morning "
    "and an evening peak, lower at weekends and on public holidays; useless load follows the state of the "
    "grid. Oil warms with load and with the weather, lags both by some hours, and is limited by its cooling. "
    "A transformer may be switched off, or its sensors may fail and repeat their last value for hours."
)
"""A description such as users write for data of their own, in place of two sentences."""


@dataclass(frozen=True)
class Case:
    """One way to compute a scenario's model."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    plain: bool = False
    exact: bool = False
    """Whether its forecasts are the plain path's, but for rounding."""

    @property
    def is_offered(self) -> bool:
        """Whether this version has all settings of the case."""
        return set(self.settings) <= {name for _, name, _ in iter_settings()}


@dataclass(frozen=True)
class Scenario:
    """One model and batch, computed in several ways."""

    name: str
    title: str
    model: str
    settings: dict[str, Any]
    cases: tuple[Case, ...]
    description: str | None = None
    """What the prompt says of the data, in place of the data set's own text."""
    evaluates: bool = False
    """Whether evaluation and its memory are measured as well."""

    def only(self, *names: str) -> Scenario:
        """The same with these cases alone."""
        return replace(self, cases=tuple(case for case in self.cases if case.name in names))


@dataclass(frozen=True)
class Floor:
    """The least ratio to the plain path that is expected, of the default and of all choices."""

    title: str
    scenario: str
    measure: Literal["train", "evaluate", "peak_train", "checkpoint", "retrieval"]
    default: float | None
    all: float | None
    at_most: bool = False
    """A share that must not be larger, in place of a speed-up that must not be smaller."""

    def is_met(self, found: float, wanted: float) -> bool:
        """Whether ``found`` is no more than 20% away from ``wanted`` on the wrong side."""
        return found * MISS <= wanted if self.at_most else found >= wanted * MISS


BF16 = {"mixed_precision": "bf16"}
PROTOTYPES = {"source_tokens": "prototypes"}
DIGITS = {"prompt_digits": 1}
BY_MACHINE = {"mixed_precision": "auto"}
CHOICES = {**BY_MACHINE, **PROTOTYPES, **DIGITS}


def cases(*, quick: bool, all_choices: dict[str, Any]) -> tuple[Case, ...]:
    """The plain path, the default, all choices together, and each alone unless ``quick``."""
    first = (
        Case(PLAIN, plain=True),
        Case(DEFAULT, exact=True),
        Case(ALL, all_choices),
    )
    alone = (
        Case("matmul highest", {"matmul_precision": "highest"}, exact=True),
        Case("matmul medium", {"matmul_precision": "medium"}),
        Case("bf16", BF16),
        Case(AUTO_CASE, BY_MACHINE),
        Case("prototypes", PROTOTYPES),
        Case("1 digit", DIGITS),
        Case("gradient checkpointing", {"gradient_checkpointing": True}, exact=True),
    )
    return first if quick else first + tuple(case for case in alone if case.is_offered)


def scenarios(*, base: dict[str, Any], layers: tuple[int, int], quick: bool) -> list[Scenario]:
    """The four models of the table.

    Args:
        base: settings that all share: data, LLM, sizes.
        layers: of the short and of the long LLM.
        quick: the first and third scenario alone, each in three ways.
    """
    short, long = layers
    both = {**base, "llm_layers": short, "use_tapr": True, "use_gram": True}
    first = {**both, "token_order": "prompt_first"}
    own_text = describe("ETTh1")
    ways = cases(quick=quick, all_choices=CHOICES)
    small = Scenario(
        f"baseline-{short}", f"baseline, {short} layers", "TimeLLM", {**base, "llm_layers": short}, ways,
        description=own_text, evaluates=not quick,
    )  # fmt: skip
    large = Scenario(
        f"baseline-{long}-long", f"baseline, {long} layers, long prompt", "TimeLLM",
        {**base, "llm_layers": long}, ways, description=LONG_DESCRIPTION,
    )  # fmt: skip
    document = Scenario(
        "enhanced-document", f"enhanced, {short} layers, document order", "TimeLLM_Enhanced", both, ways,
        description=own_text,
    )  # fmt: skip
    prompt_first = Scenario(
        "enhanced-prompt-first", f"enhanced, {short} layers, prompt first", "TimeLLM_Enhanced", first, ways,
        description=own_text,
    )  # fmt: skip
    return [small, document] if quick else [small, large, document, prompt_first]


def floors(*, layers: tuple[int, int], processor: str = "AMD") -> list[Floor]:
    """What is expected on SmolLM2, lookback 512, horizon 96.

    Times beside the plain path's depend on the processor: all are known of AMD's with bf16 instructions; of
    others two steps are, and theirs alone. Shares of memory, checkpoint and search are expected anywhere.
    """
    short, long = layers
    small = f"baseline-{short}"
    found = [
        Floor(f"baseline training step, {short} layers", small, "train", 2.5, 6),
        Floor(
            f"baseline training step, {long} layers, long prompt", f"baseline-{long}-long", "train", 4.5, 10
        ),
        Floor("baseline evaluation", small, "evaluate", 3, 5),
        Floor("enhanced training step, document order", "enhanced-document", "train", 2.2, 3.5),
        Floor("enhanced training step, prompt first", "enhanced-prompt-first", "train", 2.4, 5.5),
        Floor("peak memory, training, beyond the libraries", small, "peak_train", 0.55, 0.22, at_most=True),
        Floor("checkpoint, weights", small, "checkpoint", None, 0.03, at_most=True),
        Floor("retrieval, 10,000 keys, with backward", "retrieval", "retrieval", 100, None),
    ]
    if "AMD" in processor:
        return found
    known = {small: 1.9, "enhanced-document": 1.3}
    return [
        replace(floor, default=known.get(floor.scenario) if floor.measure == "train" else None, all=None)
        if floor.measure in ("train", "evaluate")
        else floor
        for floor in found
    ]
