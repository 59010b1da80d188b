"""Text of any script in pictures: by the fonts that are installed, or in letters that every font has.

matplotlib draws a box, and warns each time, for a letter that its font lacks. Here a picture's text gets all
the fonts that it needs, and what no font has is written otherwise, which is said once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from logging import getLogger
from pathlib import Path

from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

log = getLogger(__name__)

FIRST = "DejaVu Sans"
"""matplotlib's own: always there, and what all ordinary text is drawn in."""
PREFERRED = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Source Han Sans SC", "Source Han Sans CN",
    "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Microsoft YaHei", "PingFang SC", "Hiragino Sans GB",
    "SimHei", "SimSun", "Heiti SC", "STHeiti", "Droid Sans Fallback", "Noto Sans JP", "Hiragino Sans",
    "Yu Gothic", "Meiryo", "MS Gothic", "IPAexGothic", "IPAGothic", "Noto Sans KR", "Noto Sans CJK KR",
    "Malgun Gothic",
    "Apple SD Gothic Neo", "NanumGothic", "AR PL UMing CN", "Arial Unicode MS",
)  # fmt: skip
"""Looked in before all others, for evenness: whole sets of Chinese, Japanese and Korean letters."""
ADVICE = "install a font that has them, such as Noto Sans CJK (Debian and Ubuntu: apt install fonts-noto-cjk)"
_SAID: set[str] = set()
"""What this process has said is lacking."""
LONGEST = 48
"""Letters of a name in a picture."""


def families(text: str) -> list[str]:
    """The fonts, in order, that together have all letters of ``text`` which any installed font has."""
    found = [FIRST]
    for letter in sorted(set(text)):
        family = _family_of(letter)
        if family is not None and family not in found:
            found.append(family)
    return found


def drawable(text: str, *, longest: int = LONGEST) -> str:
    """``text`` as it is drawn: on one line, no formula, letters that no font has by their numbers."""
    _say_lacking(lacking([text]))
    return _escaped("".join(_by_number(c) if _is_lacking(c) else c for c in _plain(text, longest)))


def drawable_names(names: Sequence[str]) -> list[str]:
    """Names of variables as they are drawn: one that no font has the letters of by its place among them.

    A line of the log says which is which, and what to install.
    """
    without = {place: name for place, name in enumerate(names, start=1) if lacking([name])}
    if without:
        listed = ", ".join(f"variable {place} is {name!r}" for place, name in list(without.items())[:12])
        _say_lacking(lacking(without.values()), f"; in the pictures {listed}")
    return [
        f"variable {place}" if place in without else drawable(name)
        for place, name in enumerate(names, start=1)
    ]


def lacking(texts: Iterable[str]) -> str:
    """The letters of these texts that no installed font has, in order."""
    return "".join(sorted({c for text in texts for c in _plain(text) if _is_lacking(c)}))


def _plain(text: str, longest: int = LONGEST) -> str:
    """On one line, of a length that a picture has room for."""
    line = "".join(c if c.isprintable() else " " for c in text)
    return line if len(line) <= longest else f"{line[: longest - 1]}\u2026"


def _escaped(text: str) -> str:
    return text.replace("$", r"\$")  # two of them would make a formula of what is between


def _by_number(letter: str) -> str:
    return f"(U+{ord(letter):04X})"


def _is_lacking(letter: str) -> bool:
    return letter != " " and _family_of(letter) is None


def _say_lacking(letters: str, beside: str = "") -> None:
    """Once for each letter, and for what stands ``beside`` them."""
    if beside not in _SAID if beside else not _SAID.issuperset(letters):
        _SAID.update((*letters, beside))
        shown = "".join(letters[:12]) + ("..." if len(letters) > 12 else "")
        log.warning("no font here has the letters %s%s; %s", shown, beside, ADVICE)


@cache
def _family_of(letter: str) -> str | None:
    """The first installed font with this letter, or None."""
    known = _installed()
    order = [FIRST, *(name for name in PREFERRED if name in known), *sorted(known)]
    return next((name for name in dict.fromkeys(order) if ord(letter) in _letters(known[name])), None)


@cache
def _installed() -> dict[str, Path]:
    """A regular font file of each family; those that were installed since matplotlib last looked, too."""
    manager = font_manager.fontManager
    known = {entry.fname for entry in manager.ttflist}
    for path in font_manager.findSystemFonts():
        if path not in known:
            try:
                manager.addfont(path)
            except (RuntimeError, OSError, ValueError):  # broken, or of a kind that matplotlib cannot draw
                continue
    regular = (e for e in manager.ttflist if e.style == "normal" and "Last Resort" not in e.name)
    found: dict[str, Path] = {}
    for entry in sorted(regular, key=lambda e: (e.name, abs(_weight(e.weight) - 400), e.fname)):
        found.setdefault(entry.name, Path(entry.fname))
    return found


def _weight(weight: int | str) -> int:
    return weight if isinstance(weight, int) else font_manager.weight_dict.get(weight, 400)


@cache
def _letters(path: Path) -> frozenset[int]:
    """What a font file can draw."""
    try:
        return frozenset(FT2Font(str(path)).get_charmap())
    except (RuntimeError, OSError):
        return frozenset()
