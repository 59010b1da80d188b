"""Files of texts: what is read, and what is refused in one line."""

from __future__ import annotations

import pandas as pd
import pytest

from data_provider.text_files import LONGEST, read_texts, text_table
from utils.errors import FileMissingError, UserError

HEAD = "start_date,end_date,fact,preds\n"


def written(tmp_path, text: str, name: str = "texts.csv"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_time_mmd_s_columns_are_known_and_its_guesses_are_not_read(tmp_path):
    found = read_texts(written(tmp_path, HEAD + "2020-01-01,2020-01-05,Prices rose.,They will rise.\n"))
    assert found.texts == ("Prices rose.",) and str(found.end[0]) == "2020-01-05 00:00:00"


def test_chosen_columns_are_joined(tmp_path):
    path = written(tmp_path, "date,title,body,n\n2020-01-01,Strike,It ends.,1\n2020-01-02,Quiet,NA,2\n")
    assert read_texts(path, columns=["title", "body"]).texts == ("Strike\nIt ends.", "Quiet")


def test_the_only_column_of_text_need_not_be_named(tmp_path):
    assert read_texts(written(tmp_path, "date,n,news\n2020-01-01,4,Strike\n")).texts == ("Strike",)


@pytest.mark.parametrize(
    "absent", ["", "NA", "n/a", "NaN", "None", "-", "NA (nothing found)", "NA \n\nNote: no"]
)
def test_rows_without_a_text_are_left_out_and_counted(absent):
    frame = pd.DataFrame({"end": ["2020-01-01", "unreadable"], "text": ["news", absent]})
    found = text_table(frame, "t")
    assert found.texts == ("news",) and found.notes["absent"].startswith("1 rows")


@pytest.mark.parametrize(
    "text", ["NA (North) sales fell", "(Reuters) A strike.", "None of them came.", "n 5 < 6"]
)
def test_what_only_begins_like_nothing_is_a_text(text):
    assert text_table(pd.DataFrame({"end": ["2020-01-01"], "text": [text]}), "t").texts == (text,)


def test_html_becomes_its_words():
    """An LLM would read tags, and a script, instead of the news."""
    page = (
        "<html><script>if (a<b) go()</script><p class='x'>AT&amp;T strikes,\n<b>demand</b> &lt; 5%</p><br/>"
    )
    found = text_table(pd.DataFrame({"end": ["2020-01-01"], "text": [page]}), "t")
    assert (
        found.texts[0].split() == ["AT&T", "strikes,", "demand", "<", "5%"]
        and "HTML" in found.notes["markup"]
    )


def test_long_texts_are_cut_and_counted():
    found = text_table(pd.DataFrame({"end": ["2020-01-01"], "text": ["word " * LONGEST]}), "t")
    assert len(found.texts[0]) == LONGEST and found.notes["long"].startswith("1 texts")


def test_repeated_rows_count_once_and_disorder_is_noted():
    frame = pd.DataFrame({"end": ["2020-01-02", "2020-01-01", "2020-01-02"], "text": ["b", "a", "b"]})
    found = text_table(frame, "t")
    assert found.texts == ("a", "b") and {"order", "repeated"} <= found.notes.keys()


def test_texts_without_any_time_are_seen_by_none():
    found = text_table(pd.DataFrame({"end": ["2020-01-02", ""], "text": ["b", "a"]}), "t")
    assert found.texts == ("b",) and found.notes["undated"].startswith("1 texts")


def test_every_kind_of_time_is_the_same_table(tmp_path):
    frame = pd.DataFrame({"start": ["2020-01-31"], "end": ["2020-02-01"], "text": ["x"]})
    spoken = pd.DataFrame({"start": ["31/01/2020"], "end": ["1 Feb 2020"], "text": ["x"]})
    typed = frame.assign(start=pd.to_datetime(frame["start"]), end=pd.to_datetime(frame["end"]))
    tables = [text_table(f, "t") for f in (frame, spoken, typed)]
    assert all(t.end[0] == tables[0].end[0] and t.start[0] == tables[0].start[0] for t in tables)


@pytest.mark.parametrize(
    ("text", "columns", "said"),
    [
        (HEAD + "2020-01-01,2020-01-05,x,y\n", ["facts"], "'facts', found .*one of fact, preds"),
        ("date,a,b\n2020-01-01,x,y\n", [], "say which hold the texts with --text_columns"),
        ("day,text\n2020-01-01,x\n", [], "expected a column end .* found day, text; rename"),
        (HEAD + "2020-01-01,2020-01-05,x,y\n2020-01-01,soon,x,y\n", [], "'end_date', data row 2: .*'soon'"),
        (HEAD + "2020-01-01,2020-01-02,x,y\n2020-01-05,2020-01-04,z,y\n", [], "data row 2: .*at or after"),
        ("end,text\n2020-01-01 00:00,x\n2020-01-01 00:00+01:00,x\n", [], "distance from UTC"),
        ("start,end,text\n2020-01-01,2020-01-02 00:00+01:00,x\n", [], "none in 'start'"),
        (HEAD + "2020-01-01,2020-01-02,NA,y\n", [], "found none in 1 rows"),
        (HEAD, [], "expected rows below the header"),
        ("", [], "found an empty file"),
        ("end;text\n2020-01-01;x\n", [], "separated by commas, found ';'"),
        ("end,text\n2020-01-01,x,y,z\n", [], "found more"),
        ("end,text,text\n2020-01-01,x,y\n", [], "'text' more than once"),
    ],
)  # fmt: skip
def test_bad_files_get_one_line_that_names_the_place(tmp_path, text, columns, said):
    path = written(tmp_path, text)
    with pytest.raises(UserError, match=said) as caught:
        read_texts(path, columns=columns)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_not_there_or_no_table_is_refused(tmp_path):
    with pytest.raises(FileMissingError, match="no such file"):
        read_texts(tmp_path / "none.csv")
    with pytest.raises(UserError, match="save the sheet"):
        read_texts(tmp_path / "texts.xlsx")
