"""--shard_llm on three real processes, which never have equally many windows to judge.

A layer is gathered from all processes: one that makes a pass less than the others leaves them waiting.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.utils.training.comparing import unequal

pytestmark = pytest.mark.slow

WORLD = 3
ROWS = {"remainder 2": 91, "remainder 1": 86}
"""Of the series; validation and test are judged window by window."""
WINDOWS = {"remainder 2": (3, 11), "remainder 1": (2, 10)}
"""For the validation and for the test: of two, the third process has none."""


@pytest.fixture(scope="module")
def found(tmp_path_factory, write_series, tiny_settings, several_processes) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("three")
    runs = {}
    for name, rows in ROWS.items():
        settings = tiny_settings(write_series(folder / f"{rows}.csv", rows), folder / "checkpoints")
        for kind in ("whole", "divided"):
            runs[f"{name}, {kind}"] = {
                **settings,
                "use_tapr": True,
                "use_gram": True,
                "llm_layers": 2,
                "eval_batch_size": 1,
                "max_channels_per_step": 1,
                "shard_llm": kind == "divided",
                "model_comment": kind,
            }
    runs["tested"] = {
        **runs["remainder 1, divided"],
        "is_training": 0,
        "resume_from_checkpoint": "{remainder 1, divided}/checkpoint",
    }
    found = several_processes(folder, runs, count=WORLD)
    assert not [(name, p["error"]) for name in found for p in found[name] if p["error"]]
    return found


@pytest.mark.parametrize("name", ROWS)
def test_processes_with_fewer_windows_keep_up_and_count_none_twice(found, name):
    for one, other in zip(found[f"{name}, whole"], found[f"{name}, divided"], strict=True):
        assert one["processes"] == other["processes"] == WORLD
        assert not unequal(one["model"], other["model"])
        results = [json.loads(process["results"]) for process in (one, other)]
        for kind in ("last", "best"):
            assert results[0][kind] == results[1][kind]
        assert results[1]["last"]["test"]["windows"] == WINDOWS[name][1]


@pytest.mark.parametrize("name", ROWS)
def test_each_process_holds_its_share(found, name):
    """Weights of 32 rows on three processes: 11, 11 and 10; those of one row go to the first."""
    shares = [process["shares"] for process in found[f"{name}, divided"]]
    assert shares[0] and shares[0].keys() == shares[1].keys() == shares[2].keys()
    for key, (_, every) in shares[0].items():
        assert sum(share[key][0] for share in shares) == every
    held = [sum(own for own, _ in share.values()) for share in shares]
    assert max(held) < 1.1 * sum(held) / WORLD


def test_a_checkpoint_is_tested_as_it_was(found):
    tested = [json.loads(process["results"]) for process in found["tested"]]
    trained = json.loads(found["remainder 1, divided"][0]["results"])
    assert all(process["shares"] for process in found["tested"])
    assert [result["checkpoint"]["test"] for result in tested] == [trained["best"]["test"]] * WORLD
