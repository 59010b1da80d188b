"""The picture of the schedules shows what training uses."""

from __future__ import annotations

from matplotlib.image import imread

from scripts import plot_schedules
from utils.config import TrainingConfig


def test_every_schedule_is_drawn_from_what_training_uses(tmp_path, monkeypatch):
    assert set(plot_schedules.curves(0)) == {"COS", "constant", "type1", "type2", "type3", "PEMS", "TST"}
    drawn = plot_schedules.curves(plot_schedules.WARM_UP)
    assert set(drawn) == set(plot_schedules.curves(0)) - {"TST"}
    peak = TrainingConfig().learning_rate
    assert all(len(curve) == 2510 and max(curve) <= peak * 1.0001 for curve in drawn.values())
    assert drawn["constant"][0] < peak / 100 and drawn["constant"][-1] == peak
    out = tmp_path / "folder" / "schedules.png"
    monkeypatch.setattr("sys.argv", ["plot_schedules.py", str(out)])
    plot_schedules.main()
    assert imread(out).shape[1] > 1000
