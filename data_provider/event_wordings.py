"""The words of made-up notices, and five splits of them into those to learn from and those held out.

A notice is a template with a verb, which says the direction, and a word of size. The lists and the first
split's verbs and sizes are those of the measurement with which they were made; the splits were drawn once
and stand here, so that no result can choose its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

UP = tuple(
    "rise,increase,climb,grow,gain,advance,expand,pick up,go up,strengthen,improve,rebound,"
    "surge,soar,jump,rally,mount,swell,escalate".split(",")
)
DOWN = tuple(
    "fall,drop,decline,decrease,shrink,sink,contract,ease off,go down,weaken,worsen,retreat,"
    "plunge,slump,tumble,dwindle,slide,dip,lessen".split(",")
)
SIZES: Mapping[float, tuple[str, ...]] = {
    0.5: tuple(
        "slightly,a little,marginally,by a few percent,gently,modestly,somewhat,by a small amount".split(",")
    ),
    1.0: tuple("noticeably,moderately,clearly,visibly,appreciably,to a fair degree".split(",")),
    2.0: tuple(
        "sharply,strongly,dramatically,hugely,a great deal,steeply,massively,by a huge margin".split(",")
    ),
}
TEMPLATES = (
    "Analysts expect demand to {verb} {size} from tomorrow.",
    "From tomorrow demand will {verb} {size}, the operator said.",
    "Notice: demand is going to {verb} {size} as of tomorrow.",
    "The company told customers that demand would {verb} {size}.",
    "Weather and holidays mean demand is likely to {verb} {size} next.",
    "Our forecast: demand to {verb} {size}.",
    "In its note the agency wrote that demand may {verb} {size} shortly.",
    "Traders are preparing for demand to {verb} {size}.",
    "A bulletin this morning warned that consumption should {verb} {size} over the coming days.",
    "Experts agree: usage is set to {verb} {size} soon.",
    "Because of the announcement, demand could {verb} {size} in the days ahead.",
    "The grid operator wants everyone to know that demand will {verb} {size}.",
    "Staff were informed that orders are about to {verb} {size}.",
    "Planning meeting, summary: sales will {verb} {size} from here on.",
    "According to the ministry, use of the service is bound to {verb} {size}.",
    "Breaking: demand seen to {verb} {size} after the decision.",
    "It is now certain that the load will {verb} {size}.",
    "Local press: demand in the region should {verb} {size} within a day.",
    "We have been told to be ready for demand to {verb} {size}.",
    "A spokeswoman confirmed that demand is about to {verb} {size}.",
    "After the council's vote, consumption is expected to {verb} {size}.",
    "Internal memo: please plan for sales to {verb} {size} starting tomorrow.",
    "Everything points to a market in which demand will {verb} {size}.",
    "Subscribers were advised that traffic would {verb} {size} before long.",
)


class HeldOut(NamedTuple):
    """What one split keeps for the test, separated by commas; templates by their places."""

    up: str
    down: str
    small: str
    middle: str
    large: str
    templates: tuple[int, ...]


HELD_OUT = (
    HeldOut(
        up="surge,soar,jump,rally,mount,swell,escalate",
        down="plunge,slump,tumble,dwindle,slide,dip,lessen",
        small="modestly,somewhat,by a small amount",
        middle="appreciably,to a fair degree",
        large="steeply,massively,by a huge margin",
        templates=(5, 8, 9, 10, 21),
    ),
    HeldOut(
        up="rise,grow,advance,expand,pick up,go up,rebound",
        down="fall,drop,decline,sink,contract,go down,worsen",
        small="slightly,marginally,by a few percent",
        middle="clearly,visibly",
        large="strongly,dramatically,hugely",
        templates=(7, 11, 15, 19, 20),
    ),
    HeldOut(
        up="increase,climb,gain,expand,strengthen,improve,rally",
        down="decrease,shrink,sink,contract,ease off,weaken,retreat",
        small="slightly,a little,gently",
        middle="noticeably,moderately",
        large="sharply,strongly,a great deal",
        templates=(0, 6, 12, 14, 22),
    ),
    HeldOut(
        up="increase,pick up,go up,improve,soar,jump,swell",
        down="fall,decrease,shrink,ease off,go down,weaken,tumble",
        small="marginally,by a few percent,modestly",
        middle="noticeably,clearly",
        large="dramatically,hugely,massively",
        templates=(1, 2, 3, 16, 17),
    ),
    HeldOut(
        up="rise,grow,gain,strengthen,rebound,surge,mount",
        down="decline,worsen,retreat,dwindle,slide,dip,lessen",
        small="gently,somewhat,by a small amount",
        middle="visibly,to a fair degree",
        large="sharply,a great deal,steeply",
        templates=(4, 13, 18, 23),
    ),
)
"""Verbs 12 of 19 in each direction, sizes and templates to learn from, the rest here; by split."""


@dataclass(frozen=True)
class Wordings:
    """Words from which notices are made."""

    verbs: Mapping[int, tuple[str, ...]]
    """Of what goes up (1) and down (-1)."""
    sizes: Mapping[float, tuple[str, ...]]
    templates: tuple[str, ...]

    def notices(self) -> list[tuple[str, float]]:
        """Every notice, with its effect."""
        return [
            (template.format(verb=verb, size=word), sign * size)
            for template, (sign, verbs), (size, words) in product(
                self.templates, self.verbs.items(), self.sizes.items()
            )
            for verb, word in product(verbs, words)
        ]


def wordings(split: int, *, held_out: bool) -> Wordings:
    """The words of a split (0 to 4) to learn from, or those held out; no word or template is in both."""
    kept = HELD_OUT[split]
    places = [i for i in range(len(TEMPLATES)) if (i in kept.templates) == held_out]
    return Wordings(
        verbs={
            1: _part(UP, kept.up, held_out=held_out),
            -1: _part(DOWN, kept.down, held_out=held_out),
        },
        sizes={
            size: _part(words, own, held_out=held_out)
            for (size, words), own in zip(SIZES.items(), (kept.small, kept.middle, kept.large), strict=True)
        },
        templates=tuple(TEMPLATES[i] for i in places),
    )


def _part(words: Sequence[str], kept: str, *, held_out: bool) -> tuple[str, ...]:
    own = kept.split(",")
    return tuple(word for word in words if (word in own) == held_out)
