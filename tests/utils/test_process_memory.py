"""Memory of this process: when what was freed goes back to the system."""

from __future__ import annotations

import pytest

from utils import process_memory


@pytest.mark.parametrize(("left", "given"), [(process_memory.SCARCE - 1, 1), (2**50, 0)])
def test_freed_memory_is_given_back_where_memory_is_scarce_alone(
    left: int, given: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given back in every step it costs time in new pages; kept on a full machine it ends the run."""
    calls: list[int] = []
    monkeypatch.setattr(process_memory, "available_bytes", lambda: left)
    monkeypatch.setattr(process_memory, "give_back_freed", lambda: calls.append(1))
    process_memory.give_back_where_scarce()
    assert len(calls) == given


def test_without_such_a_c_library_nothing_is_asked_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(process_memory, "_c_library", asked.append)
    process_memory.keep_freed()
    process_memory.give_back_freed()
    assert asked == ["mallopt", "malloc_trim"]
