"""What is known beside a series: read, checked, coded, and cut into windows with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from data_provider.covariate_tables import named_statics, read_statics, with_future
from data_provider.covariates import Coding, CovariateColumns, Statics, words_as_bytes
from data_provider.data_factory import build_data
from data_provider.dates import NOTHING_KEPT, DateRules, dates_after
from data_provider.series import Series, read_csv
from utils.config import Config, ConfigError
from utils.errors import UserError

ROWS = 60
COLUMNS = CovariateColumns(("price",), ("rain",))


def frame(**changes: Any) -> pd.DataFrame:
    time = np.arange(float(ROWS))
    columns = {"date": pd.date_range("2020-01-01", periods=ROWS, freq="h").astype(str)}
    return pd.DataFrame(
        {**columns, "a": time % 5, "OT": time % 7, "price": time % 3, "rain": -time, **changes}
    )


def written(folder: Path, table: pd.DataFrame, name: str = "my.csv") -> Path:
    table.to_csv(folder / name, index=False)
    return folder / name


def read(folder: Path, table: pd.DataFrame, **options: Any) -> Series:
    path = written(folder, table)
    return read_csv(path, **{"features": "M", "target": "OT", "covariates": COLUMNS, **options})


def config(folder: Path, **changes: Any) -> Config:
    settings = {
        "data": "custom",
        "root_path": str(folder),
        "data_path": "my.csv",
        "seq_len": 4,
        "pred_len": 2,
    }
    return Config.from_flat(
        {**settings, "patch_len": 4, "known_covariates": ("price",), "past_covariates": ("rain",), **changes}
    )


def test_a_covariate_is_no_variable_and_goes_with_its_windows(tmp_path: Path) -> None:
    """Read as a variable it would be forecast, and scored."""
    written(tmp_path, frame())
    data = build_data(config(tmp_path))
    assert data.columns == ("a", "OT")
    item, first = data.train[3], frame()[["price", "rain"]].to_numpy()[: data.identity.trained_rows]
    scaled = (first - first.mean(axis=0)) / first.std(axis=0)
    np.testing.assert_allclose(item.known[:, 0], scaled[3:9, 0], atol=1e-6)
    np.testing.assert_allclose(item.past[:, 0], scaled[3:7, 1], atol=1e-6)
    assert not item.static.numel() and not item.words.numel()


def test_the_content_of_a_run_speaks_of_its_covariates(tmp_path: Path) -> None:
    """A run would be resumed on other prices as if nothing had changed."""
    first, other = (read(tmp_path, frame(price=np.arange(ROWS) % k)) for k in (3, 4))
    plain = read(tmp_path, frame().drop(columns=["price", "rain"]), covariates=CovariateColumns())
    assert len({first.content_hash, other.content_hash, plain.content_hash}) == 3
    assert first.series_id == other.series_id == plain.series_id


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"known_covariates": ("cost",)}, "column of --known_covariates, 'cost', found a, OT, price, rain"),
        ({"past_covariates": ("price",)}, "--past_covariates: 'price' is among --known_covariates"),
        ({"target": "price", "features": "MS"}, "--known_covariates: 'price' is a --target"),
        ({"static": ("store",)}, "--static: expected --static_path"),
        ({"static_path": "s.csv"}, "--static_path: expected --static or --static_numbers"),
        (
            {"known_covariates": ("a", "OT", "price"), "past_covariates": ("rain",)},
            "and the covariates, found none",
        ),
        ({"eval_data": "ETTh1"}, "--eval_data ETTh1 has no such columns"),
        ({"data": "M4"}, "--known_covariates: expected none with M4"),
    ],
)
def test_columns_that_cannot_be_covariates_are_named(
    tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    """One line: the flag, the column, what to do."""
    written(tmp_path, frame())
    with pytest.raises((UserError, ConfigError), match=expected):
        build_data(config(tmp_path, **changes))


def test_missing_covariates_follow_the_rule_for_missing_numbers(tmp_path: Path) -> None:
    """Filled silently, or not at all, they would differ from the variables beside them."""
    gap = frame(price=np.where(np.arange(ROWS) == 5, np.nan, np.arange(float(ROWS))))
    with pytest.raises(UserError, match="column 'price', data row 6.*--fill_missing interpolate"):
        read(tmp_path, gap)
    filled = read(tmp_path, gap, fill_missing="interpolate").covariates
    assert filled is not None and filled.known[5, 0] == 5.0


class TestTheFuture:
    """Known covariates of the horizon, in a table of their own."""

    def extended(self, folder: Path, future: pd.DataFrame, fill: Any = None) -> np.ndarray:
        series = read(folder, frame())
        ahead = dates_after(series.dates[-1], series.frequency, 4)
        path = written(folder, future, "future.csv")
        found = with_future(series, path, ahead, rules=DateRules(), kept=NOTHING_KEPT, fill_missing=fill)
        assert found.covariates is not None and len(found.covariates.known) == ROWS + 4
        return found.covariates.known[-4:, 0]

    def table(self, prices: list[float], first: str = "2020-01-03 12:00") -> pd.DataFrame:
        dates = pd.date_range(first, periods=len(prices), freq="h").astype(str)
        return pd.DataFrame({"date": dates, "price": prices})

    def test_rows_are_found_by_their_time(self, tmp_path: Path) -> None:
        """A table that begins earlier, or is in another order, would be shifted against the horizon."""
        prices = self.table([float(i) for i in range(8)], "2020-01-03 10:00").sample(frac=1, random_state=0)
        assert self.extended(tmp_path, prices).tolist() == [2.0, 3.0, 4.0, 5.0]

    def test_one_row_is_enough_for_a_horizon_of_one(self, tmp_path: Path) -> None:
        """A frequency cannot be seen in one row, and none needs to be."""
        series = read(tmp_path, frame())
        ahead = dates_after(series.dates[-1], series.frequency, 1)
        found = with_future(
            series, self.table([9.0]), ahead, rules=DateRules(), kept=NOTHING_KEPT, fill_missing=None
        )
        assert found.covariates is not None and found.covariates.known[-1, 0] == 9.0

    @pytest.mark.parametrize("fill", [None, "ffill", "interpolate"])
    def test_the_first_row_that_lacks_one_is_named(self, tmp_path: Path, fill: str | None) -> None:
        """Extended by a rule for gaps, the horizon's end would be made up."""
        for prices in ([1.0, 2.0], [1.0, 2.0, np.nan, np.nan]):
            with pytest.raises(
                UserError, match=r"future.csv: column 'price': .* at 2020-01-03 14:00:00 \(2 such"
            ):
                self.extended(tmp_path, self.table(prices), fill)

    def test_gaps_inside_are_filled_where_that_is_asked_for(self, tmp_path: Path) -> None:
        """The rule of the training holds here too, and the message without it names the way out."""
        gap = self.table([np.nan, 2.0, np.nan, 4.0])
        assert self.extended(tmp_path, gap, "interpolate").tolist() == [2.0, 2.0, 3.0, 4.0]
        with pytest.raises(UserError, match=r"at 2020-01-03 12:00:00 .* --fill_missing interpolate"):
            self.extended(tmp_path, gap)


class TestStatics:
    """What holds of a whole variable."""

    def test_are_found_by_the_variables_name(self, tmp_path: Path) -> None:
        """Taken by place, one variable would have another's; text that looks like a number stays text."""
        path = written(
            tmp_path,
            pd.DataFrame({"name": ["OT", "b", "a"], "store": ["01", "x", "NA"], "size": [1, 2, 3.5]}),
        )
        found = read_statics(path, ["a", "OT"], categories=["store"], numbers=["size"])
        assert found.categories == {"store": ("NA", "01")} and found.numbers == {"size": (3.5, 1.0)}
        assert found.words() == [
            "About the series: store NA, size 3.5.",
            "About the series: store 01, size 1.",
        ]

    @pytest.mark.parametrize(
        ("rows", "expected"),
        [
            ({"name": ["a"], "store": ["x"], "size": [1]}, "found none for 'OT'"),
            ({"name": ["a", "OT", "a"], "store": ["x"] * 3, "size": [1] * 3}, "found 'a' more than once"),
            (
                {"name": ["a", "OT"], "store": ["x", ""], "size": [1, 2]},
                "column 'store', 'OT': .* found nothing",
            ),
            ({"name": ["a", "OT"], "store": ["x", "y"], "size": [1, "big"]}, "a number, found 'big'"),
            ({"name": ["a", "OT"], "store": ["x", "y"], "size": [1, "inf"]}, "finite number, found inf"),
            ({"name": ["a", "OT"], "size": [1, 2]}, "the column of --static, 'store'"),
        ],
    )
    def test_a_table_at_fault_is_refused(self, tmp_path: Path, rows: dict[str, Any], expected: str) -> None:
        """One line names file, column and variable."""
        path = written(tmp_path, pd.DataFrame(rows))
        with pytest.raises(UserError, match=expected):
            read_statics(path, ["a", "OT"], categories=["store"], numbers=["size"])

    def test_an_empty_cell_of_a_frame_is_none_as_in_a_file(self) -> None:
        """It became the category nan."""
        frame = pd.DataFrame({"name": ["a", "OT"], "store": ["x", None]})
        data = Config.from_flat({"static": ["store"], "static_path": "x.csv"}).data
        with pytest.raises(UserError, match="the static table: column 'store', 'OT': .* found nothing"):
            named_statics(data, frame, ["a", "OT"])

    def test_a_category_not_seen_in_training_has_no_code_and_is_named(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """It would be taken for another, or stop a forecast that can be made without."""
        series = read(tmp_path, frame()).covariates
        assert series is not None
        trained = Statics({"store": ("x", "y")}, {"size": (1.0, 3.0)})
        coding = Coding.fit(_with(series, trained), begin=0, end=40)
        assert coding.rows(_with(series, trained), name="s").static.tolist() == [[-1, 1, 0], [1, 0, 1]]
        again = Coding.from_state(coding.state())
        later = _with(series, Statics({"store": ("z", "y")}, {"size": (2.0, 3.0)}))
        assert again.rows(later, name="s").static.tolist() == [[0, 0, 0], [1, 0, 1]]
        assert "--static store: 'z' not seen in training ('x', 'y')" in caplog.text

    def test_words_of_any_script_come_back_from_their_bytes(self) -> None:
        """Cut by letters, longer UTF-8 would break in the middle."""
        words = ["Straße, 店铺 7", "x"]
        rows = words_as_bytes(words)
        assert [
            bytes(row.tolist()).rstrip(b"\0").decode() for row in rows
        ] == words and rows.dtype == torch.uint8


def _with(covariates: Any, statics: Statics) -> Any:
    return replace(covariates, statics=statics)
