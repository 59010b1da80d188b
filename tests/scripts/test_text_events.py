"""The proof on made-up events: every reader on the same series, and errors that fall by what is explained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts import text_events


def test_every_reader_is_scored_on_the_same_notices(tiny_gpt2: Path, tmp_path: Path) -> None:
    """A reader that is left out adds exactly nothing, and no text is no reader."""
    words = [
        "--llm_model",
        str(tiny_gpt2),
        "--splits",
        "1",
        "--rows",
        "2200",
        "--cpu",
        "--out",
        str(tmp_path),
    ]
    assert text_events.main(words) == 0
    found = {one["arm"]: one for one in json.loads((tmp_path / "events.json").read_text())["outcomes"]}
    assert list(found) == list(text_events.ARMS)
    assert len({one["notices"] for one in found.values()}) == 1 and found["no text"]["notices"] > 3
    for one in found.values():
        if not one["is_in"]:
            assert one["explained"] == one["fell"] == 0 and one["mse"] == found["no text"]["mse"]
        else:
            assert one["fell"] == pytest.approx(one["explained"], abs=0.5)
    table = (tmp_path / "events.txt").read_text()
    assert all(arm in table for arm in text_events.ARMS)
