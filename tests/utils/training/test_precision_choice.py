"""``--mixed_precision auto``: every table of timings gives the stated rule, in at most a second."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from models.TimeLLM import dtype_of
from utils.config import Config, left_to_machine
from utils.training import checkpoint_state, experiment, precision_choice
from utils.training.precision_choice import HALF_GAIN, HOPELESS, ROWS, TIE, Settled, Slice, Way, settle
from utils.types import LLMOutline

CPU, GPU = torch.device("cpu"), torch.device("cuda")
SMOLLM2 = LLMOutline("SMOLLM2", 576, 1536)
HIGHEST, MEDIUM = Way("no", "highest"), Way("no", "medium")
KINDS = ("training", "evaluation")
SPEEDS = st.floats(2e10, 3e12)
Table = dict[str, dict[str, float]]
"""Operations a second of each way (float32 highest, float32 medium, bf16) and kind."""


def config(**changes: Any) -> Config:
    auto = {"mixed_precision": "auto", "matmul_precision": "auto"}
    return Config.from_flat({**auto, "batch_size": 32, "llm_layers": 2, **changes})


class Clock:
    """A fake timer by a table, which notes what it was asked."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.calls: list[tuple[Way, Slice]] = []
        self.seconds = 0.0

    def __call__(self, way: Way, part: Slice) -> float:
        self.calls.append((way, part))
        seconds = part.operations / self.table[str(way)][part.kind]
        self.seconds += seconds
        return seconds


def settled(
    table: Table, *, exact: bool = True, device: torch.device = CPU, **more: Any
) -> tuple[Settled, Clock]:
    clock = Clock(table)
    asked = more.pop("config", config())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precision_choice, "medium_error", lambda *_: 1e-7 if exact else 4e-3)
        return settle(asked, device, SMOLLM2, variables=7, timer=clock, **more), clock


def flat(highest: float, medium: float, half: float) -> Table:
    named = {"float32 highest": highest, "float32 medium": medium, "bf16": half}
    return {name: dict.fromkeys(KINDS, speed) for name, speed in named.items()}


def over_all(speeds: dict[str, float]) -> float:
    return 2 / sum(1 / speeds[kind] for kind in KINDS)


tables = st.fixed_dictionaries(
    {name: st.fixed_dictionaries({kind: SPEEDS for kind in KINDS}) for name in flat(1, 1, 1)}
)


@given(table=tables, exact=st.booleans())
@settings(deadline=None, max_examples=150)
def test_every_table_of_timings_gives_the_stated_rule(table, exact):
    """float32 by its faster exact kernel; bf16 from 1.3 times its speed on; never more than a second."""
    highest, medium, half = (over_all(table[name]) for name in flat(1, 1, 1))
    faster = exact and medium / highest >= TIE
    best = medium if faster else highest
    ratios = (medium / highest / TIE, half / best / HALF_GAIN)
    assume(all(abs(ratio - 1) > 1e-9 for ratio in ratios))
    found, clock = settled(table, exact=exact)
    assert found.matmul_precision == ("medium" if faster else "highest")
    assert found.mixed_precision == ("bf16" if half / best >= HALF_GAIN else "no")
    assert clock.seconds <= 1 and found.facts["timed_seconds"] == pytest.approx(clock.seconds)
    assert exact or MEDIUM not in {way for way, _ in clock.calls}


@given(speeds=st.tuples(*3 * [st.floats(1e9, 2e10)]))
@settings(deadline=None, max_examples=60)
def test_a_machine_too_slow_to_be_timed_computes_in_float32(speeds):
    """A second is the limit; what could not be timed in it is not taken."""
    found, clock = settled(flat(*speeds))
    assert clock.seconds <= 1
    timed = found.facts["gflops"]
    assert (found.mixed_precision == "no" or "bf16" in timed) and found.mixed_precision != "fp16"
    assert found.matmul_precision == "highest" or "float32 medium" in timed


def test_a_candidate_that_is_hopeless_is_timed_once_with_little():
    """bf16 on a laptop takes 21 s a step: it must not be timed at full size."""
    found, clock = settled(flat(150e9, 140e9, 5e9))
    halves = [part for way, part in clock.calls if way.mixed == "bf16"]
    assert {part.rows for part in halves} == {ROWS["cpu"][0]} and len(halves) <= 6
    assert found.mixed_precision == "no" and "bf16 5 / 5" in found.lines[0]
    assert "float32 highest 150 / 150" in found.lines[0]
    assert HOPELESS == 2


def test_interrupted_calls_are_no_candidate_s_fault():
    """On a busy machine the core was taken away in a call of 0.3 ms: bf16 with AMX passed for hopeless."""
    clock = Clock(flat(1.5e11, 1.4e11, 1.2e12))

    def interrupted(way: Way, part: Slice) -> float:
        seconds = clock(way, part)
        mine = sum(w == way and p.kind == part.kind for w, p in clock.calls)
        return seconds + (0.025 if way.mixed == "bf16" and mine <= 2 else 0.0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precision_choice, "medium_error", lambda *_: 4e-3)
        assert settle(config(), CPU, SMOLLM2, variables=7, timer=interrupted).mixed_precision == "bf16"


def test_the_slices_are_the_run_s_own_products_cut_to_what_can_be_timed():
    _, clock = settled(flat(9e10, 9e10, 9e10))
    assert {(part.width, part.inner) for _, part in clock.calls} == {(576, 1536)}
    assert {part.kind for _, part in clock.calls} == set(KINDS)
    _, clock = settled(flat(9e10, 9e10, 9e10), config=config(is_training=0))
    assert {part.kind for _, part in clock.calls} == {"evaluation"}


@pytest.mark.parametrize(
    ("asked", "table", "expected"),
    [
        ({"mixed_precision": "no"}, flat(1e11, 2e11, 9e11), ("no", "medium")),
        ({"mixed_precision": "bf16"}, flat(2e11, 1e11, 1e10), ("bf16", "highest")),
        ({"matmul_precision": "medium"}, flat(1e11, 1e11, 2e11), ("bf16", "medium")),
        ({"matmul_precision": "highest"}, flat(1e11, 9e11, 1e11), ("no", "highest")),
        ({"mixed_precision": "fp16"}, flat(1e11, 2e11, 9e11), ("fp16", "medium")),
    ],
)
def test_explicit_values_stay(asked, table, expected):
    found, _ = settled(table, config=config(**asked))
    assert (found.mixed_precision, found.matmul_precision) == expected


def test_nothing_is_timed_where_nothing_is_asked_or_it_takes_no_time():
    """Tests and tiny models must not choose by noise."""
    for asked in (config(mixed_precision="no", matmul_precision="highest"), config(mixed_precision="no")):
        _, clock = settled(flat(1e11, 1e11, 1e11), exact=False, config=asked)
        assert not clock.calls
    clock = Clock({})
    found = settle(config(), CPU, LLMOutline("tiny", 32, 64), variables=2, timer=clock)
    assert (found.mixed_precision, found.matmul_precision) == ("no", "highest") and not clock.calls
    found = settle(config(mixed_precision="auto"), CPU, None, variables=2, timer=clock)
    assert found.mixed_precision == "no"


@pytest.mark.parametrize(("capability", "expected"), [((9, 0), "bf16"), ((7, 5), "no")])
def test_a_gpu_is_asked_whether_it_has_bf16_then_timed(capability, expected, monkeypatch):
    """A T4 emulates it; a GPU whose medium is TF32 is refused it."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    found, clock = settled(flat(2e13, 9e13, 4e14), exact=False, device=GPU)
    assert (found.mixed_precision, found.matmul_precision) == (expected, "highest")
    rows = {part.rows for _, part in clock.calls}
    assert rows <= set(ROWS["cuda"]) | {32 * 7 * (120 + 64)}


# A checkpoint's precision.


@pytest.mark.parametrize(
    ("recorded", "table", "slow"),
    [
        ("bf16", flat(1.6e11, 1.5e11, 8e9), "bf16 as the checkpoint has it; this machine"),
        ("no", flat(1.6e11, 1.5e11, 1.2e12), "float32 highest as the checkpoint has it"),
        ("bf16", flat(1.6e11, 1.5e11, 1.2e12), None),
        ("no", flat(1.6e11, 1.5e11, 1.7e11), None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("asked", ["auto", None])
def test_a_checkpoint_keeps_its_precision_and_a_slow_machine_says_so(recorded, table, slow, asked):
    """Half a run in another precision is another run; twelve times the time is not waited for unwarned."""
    was = {"mixed_precision": recorded, "matmul_precision": "highest"}
    found, _ = settled(table, recorded=was, config=config(mixed_precision=asked or recorded))
    assert found.mixed_precision == recorded
    assert (slow is None and not found.lines) or slow in found.lines[0]
    assert slow is None or "GFLOP/s" in found.lines[0]


def test_a_kernel_that_is_not_exact_here_is_not_taken_from_a_checkpoint():
    """On AMX medium is bf16: a run of an AMD machine would go on, or forecast, in it without a word."""
    was = {"mixed_precision": "no", "matmul_precision": "medium"}
    for exact, expected in ((True, "medium"), (False, "highest")):
        found, _ = settled(flat(1e11, 1e11, 1e11), exact=exact, recorded=was)
        assert found.matmul_precision == expected


def test_what_auto_came_to_is_read_from_checkpoints_of_before():
    """They hold auto among their settings, and what it came to beside them."""
    old = {"config": {"mixed_precision": "bf16", "matmul_precision": "auto"},
           "numerics": {"matmul_precision": "medium"}}  # fmt: skip
    assert checkpoint_state.recorded_precision(old) == {
        "mixed_precision": "bf16",
        "matmul_precision": "medium",
    }
    assert (
        checkpoint_state.recorded_precision({"model": {}}) is None
        and checkpoint_state.recorded_precision(None) is None
    )


def test_a_model_of_an_undecided_precision_is_not_built():
    """No silent float32 for whoever builds a model by hand."""
    with pytest.raises(ValueError, match="--mixed_precision auto: expected no, bf16 or fp16"):
        dtype_of(config())
    assert left_to_machine(config().flat()) == {"mixed_precision", "matmul_precision"}


# In a run.


def test_one_process_times_and_the_others_are_told(monkeypatch):
    """Two that choose apart would load the LLM in two precisions, and wait for each other for ever."""
    told = Settled("bf16", "highest")

    def broadcast(found: list[Any]) -> list[Any]:
        return [told] if found == [None] else found

    monkeypatch.setattr(experiment, "broadcast_object_list", broadcast)
    monkeypatch.setattr(precision_choice, "machine_timer", lambda device: Clock(flat(2e11, 1e11, 1e10)))
    taken = []
    for is_main in (True, False):
        state: Any = SimpleNamespace(is_main_process=is_main, device=CPU)
        taken.append(experiment._settled(config(), state, SMOLLM2, None, variables=7).mixed_precision)
    assert taken == ["no", "bf16"]


def test_a_run_is_named_by_what_was_asked_and_records_what_it_came_to(start_run, monkeypatch, caplog):
    """Found again on a machine that would choose otherwise, and gone on with in the precision it has."""
    caplog.set_level("INFO")
    monkeypatch.setattr(precision_choice, "WORTH_TIMING", 0)
    for choice in ("bf16", "no"):
        speeds = flat(1e11, 1e11, 9e11 if choice == "bf16" else 1e10)
        monkeypatch.setattr(precision_choice, "machine_timer", lambda device, speeds=speeds: Clock(speeds))
        goes_on = None if choice == "bf16" else "auto"
        found = start_run(mixed_precision="auto", max_steps=2, save_steps=1, resume_from_checkpoint=goes_on)
        assert found.results["precision"]["asked"]["mixed_precision"] == "auto"
        assert found.results["precision"]["took"]["mixed_precision"] == "bf16"
        saved = torch.load(found.run_dir / "checkpoint", weights_only=True)
        assert saved["config"]["mixed_precision"] == "bf16"
    assert "resumed at optimizer step 2" in caplog.text
    assert "bf16 as the checkpoint has it; this machine computes in float32" in caplog.text
    assert '"mixed_precision": "bf16"' in (found.run_dir / "config.json").read_text()
