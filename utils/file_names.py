"""Any text as the name of a file: one part of a path, legible, on every system, never another folder."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

LONGEST = 96
"""Bytes of a name, where nothing else is said: systems take 255, and others stand before and behind it."""
_DIGITS = 8
"""Of the hash that tells names apart."""
_NEVER = set('/\\:*?"<>|')
"""Part a path, or mean something to Windows."""
_DEVICES = re.compile(r"(?i)(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])(\..*)?")
"""What Windows takes for a device, whatever stands behind the first dot."""


def safe_name(text: str, *, longest: int = LONGEST) -> str:
    """``text`` as one part of a path of at most ``longest`` bytes; a text that is one already stays.

    Letters of all scripts, spaces and brackets stay; what parts paths, controls or cannot be seen becomes
    ``_``; a text that is too long is cut and ends in a hash of the whole. Different texts may give the
    same name: see `safe_names`.
    """
    name = "".join(c if _may_stay(c) else "_" for c in unicodedata.normalize("NFC", text))
    trimmed = name.lstrip(" ").rstrip(" .")
    name = f"_{trimmed[1:]}" if trimmed.startswith(".") else trimmed
    name = f"_{name}" if _DEVICES.fullmatch(name) else name or "_"
    return _cut(name, text, longest) if len(name.encode()) > longest else name


def safe_names(texts: Sequence[str], *, longest: int = LONGEST) -> dict[str, str]:
    """A `safe_name` for each text, no two alike, also where case or composed letters make no difference.

    Texts whose names would be alike get a hash behind them; the same texts always get the same names.
    """
    names = {text: safe_name(text, longest=longest) for text in texts}
    for digits in (_DIGITS, 64):  # the first is enough but for names made to look like another's
        counts = Counter(_folded(name) for name in names.values())
        alike = [text for text, name in names.items() if counts[_folded(name)] > 1]
        names |= {text: _cut(safe_name(text, longest=longest), text, longest, digits) for text in alike}
    return names


def _may_stay(character: str) -> bool:
    kind = unicodedata.category(character)
    return character == " " or not (character in _NEVER or kind[0] == "C" or kind[0] == "Z")


def _folded(name: str) -> str:
    """What two names have in common that some systems take for one."""
    return unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", name).casefold())


def _cut(name: str, text: str, longest: int, digits: int = _DIGITS) -> str:
    """The beginning of ``name`` and a hash of ``text``, in ``longest`` bytes."""
    ending = "-" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:digits]
    kept = name.encode()[: longest - len(ending)].decode(errors="ignore")
    return kept.rstrip(" .") + ending
