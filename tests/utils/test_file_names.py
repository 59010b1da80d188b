"""Names of variables, runs and data sets are anything at all; names of files are not."""

from __future__ import annotations

import unicodedata
from pathlib import Path, PurePosixPath, PureWindowsPath

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from utils.file_names import LONGEST, safe_name, safe_names

ODD = [
    "", ".", "..", "../../x", "/etc/passwd", "C:\\x", "a/b", "a_b", "a\\b", "a:b", "wv (m/s)", "NUL",
    "nul.txt", "COM1", "con", "温度", "é", "e\u0301", "A", "a", "ﬁ", "fi", "x\0y", "x\ny", " x", "x ", "x.",
    ".x", "\u202ex", "\ud800", "x" * 300, "x" * 299 + "y", "温" * 200, "-rf", "~", "%2e%2e", "ß", "ss", "İ",
    "\u200b", "a|b", "all", "date",
]  # fmt: skip
texts = st.one_of(
    st.sampled_from(ODD), st.text(max_size=12), st.text("a/\\:._ A", max_size=5), st.text(min_size=90)
)


@given(st.lists(texts, unique=True, max_size=12))
@example(ODD)
@settings(max_examples=100, deadline=None)
def test_names_are_unique_stable_and_single_parts_of_a_path(names):
    """wv (m/s) made a folder, ../x left the run's, and two variables could share one picture."""
    found = safe_names(names)
    assert list(found) == names and found == safe_names(names)
    alike = {unicodedata.normalize("NFC", name).casefold() for name in found.values()}
    assert len(alike) == len(names)
    for name in found.values():
        assert name and len(name.encode()) <= LONGEST and name == name.strip(" ") and name[-1] != "."
        assert PurePosixPath(name).name == name == PureWindowsPath(name).name
        assert not PureWindowsPath(name).drive and "\0" not in name and name not in (".", "..")


@given(texts)
def test_a_safe_name_is_its_own_safe_name(text):
    """Otherwise a name would change each time that it is written."""
    name = safe_name(text)
    assert safe_name(name) == name and len(safe_name(text, longest=20).encode()) <= 20


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("OT", "OT"), ("wv (m/s)", "wv (m_s)"), ("温度", "温度"), ("..", "_"), ("../up", "_._up"),
        ("aux.csv", "_aux.csv"), ("a b", "a b"), ("e\u0301", "é"), ("x" * 200, None),
    ],
)  # fmt: skip
def test_a_name_stays_legible(text, name):
    assert safe_name(text) == name if name else safe_name(text).startswith("x" * 80)


def test_names_made_to_look_like_anothers_are_told_apart_too():
    """A hash behind a name helps only where nobody is called so already."""
    clash = safe_names(["a/b", "a:b"])["a/b"]
    assert len(set(safe_names(["a/b", "a:b", clash]).values())) == 3


def test_every_name_can_be_made_in_a_folder(tmp_path: Path):
    for name in safe_names(ODD).values():
        (tmp_path / f"2020-01-01T000000_{name}.png").touch()
    assert len(list(tmp_path.iterdir())) == len(ODD)
