"""Series below each other are named as what they are; the flags that are given read them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from data_provider.long_files import columns_in_file, read_long_files
from data_provider.long_table import read_long
from data_provider.series import Series, read_csv
from utils.cli import parse_config


def read(path: Path, **changes: object) -> Series:
    return read_csv(path, **{"features": "M", "target": "y", **changes})  # type: ignore[arg-type]


def long_frame(ids, *, rows: int = 40, date_format: str = "%Y-%m-%d", **more: object) -> pd.DataFrame:
    dates = pd.date_range("2020-01-20", periods=rows, freq="D").strftime(date_format)
    parts = [
        pd.DataFrame(
            {**dict(zip(*one, strict=True)), "date": dates, "y": np.arange(rows) + 100.0 * place, **more}
        )
        for place, one in enumerate(ids)
    ]
    return pd.concat(parts, ignore_index=True)


ONE = [(("unique_id",), (name,)) for name in "ABC"]
NUMBERS = [(("store",), (number,)) for number in (3, 7, 12)]
TWO = [(("store", "item"), (s, i)) for s in ("north", "south") for i in (1, 2)]
KINDS = {
    "blocks": long_frame([(("code",), one[1]) for one in ONE]),
    "by time": long_frame(ONE).sort_values(["date", "unique_id"]),
    "numbers": long_frame(NUMBERS),
    "two ids": long_frame(TWO),
    "more values": long_frame(ONE, price=1.5),
    "days first": long_frame(ONE, date_format="%d/%m/%Y"),
    "months first": long_frame(ONE, date_format="%m/%d/%Y"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_one_line_names_the_format_and_its_flags_read_it(tmp_path, kind):
    """First "sort the rows", then "keep one row per time": the advice threw series away."""
    KINDS[kind].to_csv(tmp_path / "panel.csv", index=False)
    with pytest.raises(ValueError, match="the long format: [34] series below each other") as refused:
        read(tmp_path / "panel.csv")
    said = str(refused.value)
    assert "\n" not in said and "one row per time" in said and "sort" not in said
    words = ["--data", "custom", *said[said.index("--id_column") :].split()]
    config = parse_config(words)
    columns = columns_in_file(config.data, tmp_path / "panel.csv")
    assert columns is not None
    panel = read_long(read_long_files(tmp_path / "panel.csv", columns), "panel", columns, name="panel")
    series = 4 if kind == "two ids" else 3
    assert np.array_equal(
        panel.values.reshape(series, 40), np.arange(40) + 100.0 * np.arange(series)[:, None]
    )
    assert panel.calendar is not None and panel.calendar[0] == pd.Timestamp("2020-01-20")


def test_series_of_other_times_below_each_other_are_named_too(tmp_path):
    """No time repeats, but they go back: sorted, two series became one."""
    frame = long_frame(ONE[:2])
    frame.loc[frame["unique_id"] == "B", "date"] = pd.date_range("2018-01-01", periods=40).astype(str)
    frame.to_csv(tmp_path / "x.csv", index=False)
    with pytest.raises(ValueError, match="told apart by 'unique_id'"):
        read(tmp_path / "x.csv")


@pytest.mark.parametrize(("change", "said"), [
    (lambda f: pd.concat([f, f.iloc[[5]]]), "data row 41: .*a duplicate"),
    (lambda f: f.iloc[[0, 1, 2, 2, *range(3, 40)]], "a duplicate"),
    (lambda f: f.assign(weather=["sun", "rain"] * 20), "'weather', data row 1: expected a number"),
    (lambda f: f.assign(weather=["sun", "rain"] * 20).iloc[[0, 1, 2, 2, *range(3, 40)]], "a duplicate"),
])  # fmt: skip
def test_other_faults_are_not_taken_for_it(tmp_path, change, said):
    change(long_frame(ONE[:1]).drop(columns="unique_id")).to_csv(tmp_path / "x.csv", index=False)
    with pytest.raises(ValueError, match=said):
        read(tmp_path / "x.csv")
    assert not re.search("long format", said)
