from __future__ import annotations

import pytest

from scripts import bench_data


def test_the_table_has_a_row_for_each_size(capsys):
    assert bench_data.main(["ETTm1", "--rows", "3000"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and lines[2].startswith("| ETTm1 | 3,000 x 7 | 0 MB |")
    assert " s | 0 MiB | " in lines[2] and lines[2].endswith(" ms |")


def test_an_unknown_size_is_refused(capsys):
    with pytest.raises(SystemExit) as caught:
        bench_data.main(["M4"])
    assert caught.value.code == 2 and "found M4" in capsys.readouterr().err
