"""Tables and pictures."""

from tests.processes import python


def test_drawing_and_tables_leave_no_global_state():
    """A plotting back end chosen on import would change the figures of whoever imports us."""
    modules = "sys, utils.reporting.plots, utils.reporting.text_tables"
    code = f"import {modules}; print('matplotlib.pyplot' in sys.modules)"
    assert python("-c", code).stdout == "False\n"


def test_tables_are_aligned():
    from utils.reporting.text_tables import phase_table, score_table

    assert score_table([("this model", 0.3974, 0.41), ("ridge", 12.0, 0.391)]).splitlines() == [
        "forecast       MSE    MAE",
        "this model   0.397  0.410",
        "ridge       12.000  0.391",
    ]
    assert phase_table({"data": 1.25, "training": 10.0}).splitlines()[-1] == "total       11.2"
