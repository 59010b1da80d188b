"""Texts of nearly the same words are one group, others are not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import GroupKFold

from data_provider.event_wordings import wordings
from data_provider.wordings import LETTERS, wording_groups
from utils.errors import UserError


def cosine(one: str, other: str) -> float:
    """The similarity, said again."""
    a, b = (
        {t[i : i + LETTERS] for i in range(max(1, len(t) - LETTERS + 1))}
        for t in (" ".join(x.lower().split()) for x in (one, other))
    )
    return len(a & b) / np.sqrt(len(a) * len(b))


@st.composite
def near_texts(draw: st.DrawFn) -> list[str]:
    """A few texts, and some of them with letters left out, or more of them."""
    texts = draw(st.lists(st.text("abcdefgh ", max_size=40), min_size=1, max_size=5))
    for text in list(texts):
        for _ in range(draw(st.integers(0, 2))):
            place = draw(st.integers(0, len(text)))
            texts.append(text[:place] + draw(st.sampled_from(["", "x", "yz "])) + text[place + 1 :])
    return texts


@given(near_texts(), st.sampled_from([0.3, 0.5, 0.8, 1.0]))
@settings(max_examples=60, deadline=None)
def test_groups_are_the_chains_of_near_texts(texts, similarity):
    """The bound that spares most comparisons must spare none that counts."""
    groups = list(range(len(texts)))
    for i, one in enumerate(texts):
        for j, other in enumerate(texts[:i]):
            if cosine(one, other) >= similarity - 1e-9:
                groups = [groups[j] if g == groups[i] else g for g in groups]
    found = wording_groups(texts, similarity=similarity)
    order = list(dict.fromkeys(groups))
    assert found.tolist() == [order.index(g) for g in groups]


def test_planted_near_copies_are_one_wording():
    """A report copied with other blanks, letters or one more word was in both halves of a fold."""
    own = [text for text, _ in wordings(0, held_out=False).notices()[::97]]
    copies = [f"  {text.upper()} " for text in own] + [text.replace(".", " (again).") for text in own]
    found = wording_groups([*own, *copies])
    assert (found[: len(own)] == found[len(own) : 2 * len(own)]).all()
    assert (found[: len(own)] == found[2 * len(own) :]).all()
    assert len(set(found[: len(own)].tolist())) > 0.8 * len(own), "other notices are other wordings"


def test_the_groups_make_folds_without_a_common_wording():
    own = [text for text, _ in wordings(0, held_out=False).notices()[::500]]
    texts = [text + mark for text in own for mark in ("", " ", "!")]
    groups = wording_groups(texts)
    for train, test in GroupKFold(3).split(texts, groups=groups):
        assert not set(groups[train].tolist()) & set(groups[test].tolist())


def test_languages_without_blanks_have_wordings_too():
    texts = [
        "需求预计明天将大幅上升操作员说",
        "需求预计明天将大幅上升操作员说了",
        "天气很好今天没有新闻可以报告给大家",
    ]
    assert wording_groups(texts).tolist() == [0, 0, 1]


@pytest.mark.parametrize("similarity", [0, -1, 1.1])
def test_a_similarity_that_can_not_be_is_refused(similarity):
    with pytest.raises(UserError, match="above 0, at most 1"):
        wording_groups(["a"], similarity=similarity)
