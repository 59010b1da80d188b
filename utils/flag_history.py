"""Flags that are no longer there, and how settings that an earlier version saved are read.

A checkpoint from before a flag counts as having what the program did then: the flag's ``then`` in
`utils.config`, which is its default unless the field says otherwise. A flag that was taken out is named here,
with what it was and what took its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from utils.config import ONCE_ONE_WORD, iter_settings, settings_then
from utils.config_checks import spaced


class Removed(NamedTuple):
    """A flag that was taken out."""

    default: Any
    """Its value that asks for nothing: there it is passed over."""
    instead: str | None
    """What took its place, as the end of a sentence; None where no value of it asked for anything."""


REMOVED: dict[str, Removed] = {
    "shard_memory": Removed(
        False, "leave it out: every process holds the whole memory, which --memory_dtype fp16 halves"
    ),
    "compile": Removed(False, "it gained no more than the noise of a measurement; leave it out"),
    "linear_path": Removed("none", "--start solved took its place, whose map without history is ridge's"),
    "embed": Removed("timeF", "time features are always numbers, as timeF has them; leave it out"),
    "dec_in": Removed(None, None),
    "c_out": Removed(None, None),
}
"""By name; scripts of the Time-LLM family pass the last three."""


AUTO_WAS = {"retrieval_key": "hybrid"}
"""What ``auto`` came to, and was saved as, where it is no value any more."""


def removed_line(name: str, value: Any) -> str | None:
    """What to say of a flag that was taken out; None where it asks for nothing.

    ``value`` as a checkpoint, a file of JSON or the words of a command line have it.
    """
    gone = REMOVED[name]
    is_harmless = gone.instead is None or _text(value) == _text(gone.default)
    return None if is_harmless else f"--{name}: taken out; {gone.instead}"


def read_settings(saved: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Settings that some version of this program saved as this one knows them, and a line for each it lost.

    What is missing counts as it did then. A name that no version knew stays: whoever reads it refuses it.
    """
    lost = [removed_line(name, saved[name]) for name in sorted(REMOVED.keys() & saved.keys())]
    kept = {name: value for name, value in saved.items() if name not in REMOVED}
    kept |= {n: (kept[n],) for n in ONCE_ONE_WORD & kept.keys() if isinstance(kept[n], str)}
    return {**settings_then(), **AUTO_WAS, **kept}, [line for line in lost if line is not None]


def left_unsaid(settings: Mapping[str, Any], saved: Mapping[str, Any]) -> dict[str, Any]:
    """Of two runs by the same words, what the earlier one's had where those words mean another value now.

    That is each setting with today's default in ``settings`` and in ``saved`` what it counts as unsaid; the
    one is as a `utils.config.Config` has it, the other may come from JSON.
    """
    then, now = settings_then() | AUTO_WAS, {name: item.default for _, name, item in iter_settings()}
    return {
        name: then[name]
        for name in settings
        if settings[name] == now[name] != then[name] and _text(saved.get(name)) == _text(then[name])
    }


def _text(value: Any) -> str:
    """The same for 0.5 and "0.5", (1, 2), [1, 2] and ["1", "2"], None and "none"."""
    return (spaced(value) if isinstance(value, list | tuple) else str(value)).lower()
