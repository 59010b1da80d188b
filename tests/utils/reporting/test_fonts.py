"""Text of any script in pictures: drawn where a font has it, written otherwise where none has."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matplotlib import font_manager
from matplotlib.image import imread

from utils.reporting import fonts, plots

LETTER = "\u6e29"


@pytest.fixture(autouse=True)
def _plain_machine(monkeypatch):
    """One that has matplotlib's own font alone, and of which nothing was said."""
    own = [entry for entry in font_manager.fontManager.ttflist if entry.name == fonts.FIRST]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", own)
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [])
    monkeypatch.setattr(fonts, "_SAID", set())
    known = (fonts._installed, fonts._family_of, fonts._letters)
    for one in known:
        one.cache_clear()
    yield
    for one in known:
        one.cache_clear()


def font_with(letter: str, path: Path) -> Path:
    """A font whose only letter is a filled square."""
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "square"])
    builder.setupCharacterMap({ord(letter): "square"})
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for point in ((0, 800), (900, 800), (900, 0)):
        pen.lineTo(point)
    pen.closePath()
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "square": pen.glyph()})
    builder.setupHorizontalMetrics({".notdef": (500, 0), "square": (1000, 0)})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Just Installed", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    return path


def drawn(folder: Path, columns: list[str]) -> np.ndarray:
    """The picture, made without a single warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = plots.new_figure(4, 3)
        axis = figure.subplots()
        for name in fonts.drawable_names(columns):
            axis.plot([0, 1], label=name)
        plots.label(axis, title=fonts.drawable(f"of {columns[-1]}"))
        axis.legend()
        plots.save(figure, folder / "f.png")
    return imread(folder / "f.png")


def test_letters_that_no_font_has_are_written_otherwise_and_said_once(tmp_path, caplog):
    """Chinese names were boxes, with a warning for each letter of each picture."""
    for _ in range(2):
        drawn(tmp_path, ["a", LETTER * 2])
    (said,) = caplog.records
    assert "in the pictures variable 2 is" in said.getMessage()
    assert "apt install fonts-noto-cjk" in said.getMessage()
    assert fonts.drawable_names(["a", LETTER]) == ["a", "variable 2"]
    assert fonts.drawable(f"x{LETTER}") == "x(U+6E29)"


def test_a_font_installed_since_is_used(tmp_path, caplog, monkeypatch):
    """matplotlib keeps a list of fonts: installing one, as advised, changed nothing."""
    path = str(font_with(LETTER, tmp_path / "new.ttf"))
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [path])
    assert fonts.drawable_names([LETTER]) == [LETTER]
    assert fonts.families(f"a{LETTER}") == [fonts.FIRST, "Just Installed"]
    dark = [
        int((drawn(tmp_path, [name])[..., :3] < 0.2).all(axis=-1).sum()) for name in (LETTER * 9, " " * 9)
    ]
    assert dark[0] > dark[1] + 500, "no squares were drawn"
    assert not caplog.records


@given(
    st.lists(
        st.one_of(st.text(max_size=20), st.just("cost ($) in $x_"), st.text("$\\\\_^{}")),
        min_size=1,
        max_size=3,
    )
)
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_names_are_drawn_without_a_warning(tmp_path, names):
    """Two dollars made a formula of what is between them, or an error."""
    figure = plots.new_figure(2, 1)
    axis = figure.subplots()
    axis.set_xticks(range(len(names)), fonts.drawable_names(names))
    axis.set_title(fonts.drawable("".join(names)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="constrained_layout not applied")  # no room, on two inches
        assert plots.save(figure, tmp_path / "x.png").is_file()


def test_ordinary_pictures_look_as_ever(tmp_path):
    """One font for them, and no search through all others."""
    assert fonts.families("T (degC), wv (m/s), \u00e9\u00df\u03b1\u0416 50%") == [fonts.FIRST]
    assert fonts.drawable("wv (m/s)") == "wv (m/s)" and len(fonts.drawable("x" * 500)) == fonts.LONGEST


def test_a_picture_is_called_png(tmp_path):
    with pytest.raises(ValueError, match="x.svg: expected a name that ends in .png"):
        plots.save(plots.new_figure(1, 1), tmp_path / "x.svg")
