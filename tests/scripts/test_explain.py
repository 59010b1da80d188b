"""An explanation says what the model did with the window, in times and units a reader knows."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.image import imread

from models.prototype_words import chance_cosine, patches_of, word_use
from scripts import explain
from scripts.lib.inspect.explanation import explain as explained
from scripts.lib.inspect.options import LoadedRun, first_row, load, parser_for, spread
from utils.config import Config
from utils.windows import floored_std


@pytest.fixture(scope="module")
def run(looked_at) -> LoadedRun:
    return load(parser_for("x").parse_args([str(looked_at), "--device", "cpu"]))


@pytest.fixture(scope="module")
def found(run):
    return explained(run, first_row(run, None))


@pytest.fixture(scope="module")
def table(run):
    """The CSV file itself, read by pandas."""
    data = run.forecaster.config.data
    return pd.read_csv(f"{data.root_path}/{data.data_path}", parse_dates=["date"])


def test_times_and_values_are_those_of_the_file(found, table, run):
    """Read by row from the file: a window that is off by one shows it here."""
    window = found["window"]
    start = window["row"]
    assert window["part"] == "test" and window["lookback"] == [
        table["date"][start].isoformat(),
        table["date"][start + 31].isoformat(),
    ]
    assert window["forecast"] == [t.isoformat() for t in table["date"][start + 32 : start + 40]]
    assert window["shown"][-1] == window["lookback"][1] and len(window["shown"]) == 16
    for own in found["variables"]:
        column = table[own["name"]]
        assert own["lookback"] == pytest.approx(column[start + 16 : start + 32].tolist(), rel=1e-5)
        assert own["truth"] == pytest.approx(column[start + 32 : start + 40].tolist(), rel=1e-4, abs=1e-5)


def test_the_forecast_is_the_runs_and_its_error_is_right(found, run):
    f = run.forecaster
    forecast = f.forecasts(f.windows(run.series, first=found["window"]["row"]))
    for variable, own in enumerate(found["variables"]):
        assert own["forecast"] == pytest.approx(forecast.prediction[0, :, variable].tolist(), rel=1e-4)
        error = (np.array(own["forecast"]) - own["truth"]) / float(f.standardisation.std[variable])
        assert own["mse"] == pytest.approx(float(np.mean(error**2)), rel=1e-3)
        assert own["mae"] == pytest.approx(float(np.mean(np.abs(error))), rel=1e-3)


def test_neighbours_are_past_training_windows_by_their_own_dates(found, table):
    start = found["window"]["row"]
    for own in found["variables"]:
        retrieval = own["retrieval"]
        neighbours = retrieval["neighbours"]
        assert retrieval["matched"] and 0 <= retrieval["gate"] <= 1 and len(neighbours) == 50
        assert sum(n["weight"] for n in neighbours) == pytest.approx(1, abs=1e-5)
        distances = [n["distance"] for n in neighbours]
        assert distances == sorted(distances)
        for n in neighbours:
            assert n["variable"] == own["name"] and abs(n["row"] - start) >= 40
            column, row = table[n["variable"]], n["row"]
            assert n["lookback"][0] == table["date"][row].isoformat()
            assert n["future"] == [table["date"][row + 32].isoformat(), table["date"][row + 39].isoformat()]
            assert n["lookback_values"] == pytest.approx(column[row + 16 : row + 32].tolist(), rel=1e-5)
            future = column[row + 32 : row + 40].to_numpy()
            assert n["future_values"] == pytest.approx(future.tolist(), rel=1e-5)
            moved = future - column[row + 31] + own["lookback"][-1]
            assert n["as_forecast"] == pytest.approx(moved.tolist(), rel=1e-3, abs=1e-4)


def test_what_history_does_to_a_forecast_is_what_is_gone_without_neighbours(found, run):
    """Overlapped by the window, no row of the memory may be found: the model's own way to have none."""
    f, row = run.forecaster, found["window"]["row"]
    start = f.model.memory.places.start
    kept, windows = start.clone(), f.windows(run.series, first=row)
    start.fill_(row)
    (without,) = f.forecasts(windows).prediction
    start.copy_(kept)
    for variable, own in enumerate(found["variables"]):
        told = own["retrieval"]
        assert told["forecast_without"] == pytest.approx(without[:, variable].tolist(), rel=1e-4, abs=1e-5)
        moved = np.abs(np.array(own["forecast"]) - without[:, variable]).mean()
        way = np.abs(without[:, variable] - own["lookback"][-1]).mean()
        assert moved > 1e-4 and told["moved"] == pytest.approx(moved, rel=1e-2)
        assert told["share"] == pytest.approx(moved / (moved + way), rel=1e-2)


def test_distances_are_those_of_the_two_lookbacks(found, run):
    """Computed again from them alone, over the mean of all pairs of the memory's keys."""
    model, f = run.forecaster.model, run.forecaster
    values = (run.series.values - f.standardisation.mean.numpy()) / f.standardisation.std.numpy()
    row, keys = found["window"]["row"], model.memory.keys.double().numpy()
    mean = 2 * ((keys - keys.mean(axis=0)) ** 2).sum(axis=1).mean()
    for variable, own in enumerate(found["variables"]):
        nearest = own["retrieval"]["neighbours"][0]
        ours, theirs = (
            values[at : at + 32, variable] - values[at + 31, variable] for at in (row, nearest["row"])
        )
        assert nearest["distance"] == pytest.approx(((ours - theirs) ** 2).mean() / mean, rel=1e-3)


def test_the_trend_is_that_of_the_labels(found, run):
    """True classes by the measure's own formula, from the file's values."""
    f, row = run.forecaster, found["window"]["row"]
    values = (run.series.values - f.standardisation.mean.numpy()) / f.standardisation.std.numpy()
    season = f.model.tapr.season
    for variable, own in enumerate(found["variables"]):
        trend = own["trend"]
        for level in ("direction", "magnitude"):
            assert sum(trend[level].values()) == pytest.approx(1, abs=1e-5)
        lookback, future = values[row : row + 32, variable], values[row + 32 : row + 40, variable]
        scale = float(floored_std(torch.tensor(lookback)[None])[0])
        measure = (future.mean() - lookback[-season:].mean()) / scale
        assert trend["true_measure"] == pytest.approx(measure, rel=1e-3, abs=1e-4)
        cuts = trend["label_cuts"]
        assert trend["true_direction"] == (
            "down" if measure < cuts[1] else "up" if measure > cuts[3] else "flat"
        )
        assert len(trend["path"]) == 8 and 0 < trend["gate"] < 1
    assert sum(found["scale_weights"]) == pytest.approx(1, abs=1e-5) and len(found["scale_weights"]) == 3


def test_words_are_those_whose_embeddings_are_nearest(found, run):
    """By numpy, over all words; and the attention is that of the layer's forward pass."""
    model = run.forecaster.model
    words = model.llm_model.get_input_embeddings().weight.detach().double().numpy()
    source = model.source_tokens().detach().double().numpy()
    centre = words.mean(axis=0)
    unit = (words - centre) / np.linalg.norm(words - centre, axis=1, keepdims=True)
    for own in found["variables"]:
        use = own["words"]
        assert 1 <= use["effective_prototypes"] <= 20.001
        shares = [p["attention"] for p in use["prototypes"]]
        assert shares == sorted(shares, reverse=True) and sum(shares) <= 1.0001
        for p in use["prototypes"]:
            own_source = source[p["index"]] - centre
            cosine = unit @ own_source / np.linalg.norm(own_source)
            best = np.argsort(-cosine)[:8]
            assert [lean["value"] for lean in p["nearest"]] == pytest.approx(cosine[best].tolist(), abs=1e-4)
            assert p["nearest"][0]["word"] == model.prompt.tokenizer.decode([int(best[0])])
            weight = model.mapping_layer.weight[p["index"]].detach()
            heaviest = p["heaviest"][0]
            assert abs(heaviest["value"]) == pytest.approx(
                float(weight.abs().max() / weight.abs().mean()), rel=1e-4
            )
    assert 0 < found["random_words_cosine"] < 1 and found["random_words_cosine"] == chance_cosine(model)


def test_the_attention_shown_is_the_layers_own(run):
    """Put in place of the kernel's, it gives the layer's output."""
    layer = run.forecaster.model.reprogramming_layer
    torch.manual_seed(0)
    patches, source = torch.randn(1, 1, 16), run.forecaster.model.source_tokens().detach()
    with torch.no_grad():
        query, key = layer._query_and_key(patches, source)
        weights = (query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5).softmax(-1)
        value = layer.value_projection(source).reshape(1, len(source), layer.n_heads, -1).transpose(1, 2)
        joined = (weights @ value).transpose(1, 2).reshape(1, 1, -1)
        assert torch.allclose(layer.out_projection(joined), layer(patches, source), atol=1e-5)
        shown = layer.attention(patches, source)
    assert torch.allclose(shown, weights.mean(dim=(1, 2)), atol=1e-6)
    assert shown.shape == (1, 20) and float(shown.sum()) == pytest.approx(1, abs=1e-5)


def test_prototypes_without_a_map_have_no_weights_of_words(tiny_settings, series_file, tmp_path):
    from models.TimeLLM import Model

    config = Config.from_flat({**tiny_settings(series_file, tmp_path), "source_tokens": "prototypes"})
    (use,) = word_use(Model(config).eval(), torch.randn(1, 4, 16), prototypes=2)
    assert len(use.prototypes) == 2 and all(p.heaviest is None for p in use.prototypes)


def test_a_look_at_the_patches_leaves_no_hook(run):
    f = run.forecaster
    windows = f.windows(run.series, first=0)
    patches = patches_of(f.model, lambda: list(f.states(windows)))
    assert patches.shape == (2, 4, 16) and not f.model.reprogramming_layer._forward_pre_hooks


def test_a_window_is_named_by_time_or_number(run):
    test = run.data.test
    dates = run.series.dates
    assert first_row(run, None) == first_row(run, "0") == int(test[0].start)
    assert first_row(run, "-1") == int(test[len(test) - 1].start)
    assert first_row(run, dates[100].isoformat()) == 68 and run.part_of(68) == "train"
    for wrong in ("2019-01-01", "2020-01-01", "2020-01-05T00:30", "soon", "73", "-74", "2020-01-05T00:00Z"):
        with pytest.raises(ValueError, match="--window: expected a t"):
            first_row(run, wrong)


def test_the_last_window_has_no_truth_yet_and_says_so(run):
    """Only part of its future is in the file."""
    found = explained(run, first_row(run, run.series.dates[-3].isoformat()), words=False)
    own = found["variables"][0]
    assert own["truth"][:3] != [None] * 3 and own["truth"][3:] == [None] * 5
    assert own["mse"] is None and own["trend"]["true_direction"] is None and own["words"] is None
    json.dumps(found, allow_nan=False)


def test_spread_takes_first_and_last():
    assert list(spread(10, None)) == list(range(10)) == list(spread(10, 99))
    assert spread(10, 3) == [0, 4, 9] and spread(10, 1) == [0]


def test_the_command_writes_json_and_picture(looked_at, tmp_path, capsys):
    assert explain.main([str(looked_at), "--out", str(tmp_path), "--window", "3", "--variable", "a"]) == 0
    said = capsys.readouterr().out
    (json_file,) = tmp_path.glob("*.json")
    (picture,) = tmp_path.glob("*.png")
    written = json.loads(json_file.read_text())
    assert [v["name"] for v in written["variables"]] == ["a", "OT"]
    first = written["variables"][0]["retrieval"]["neighbours"][0]
    assert f"a until {first['lookback'][1]}: distance {first['distance']:.4f}" in said
    assert "scales 1x" in said and "prototype" in said and str(picture) in said and str(json_file) in said
    height, width, _ = imread(picture).shape
    assert width > 1200 and height > 800


def test_prompt_and_shapes_of_the_window(looked_at, tmp_path, capsys):
    assert explain.main([str(looked_at), "--dump_prompt", "--debug_shapes", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "x_enc: [1, 32, 2]" in said and "magnitude_logits: [2, 4]" in said
    assert said.count("prompt of ") == 2 and "tokens, the first" in said
    assert not list(tmp_path.iterdir())


def test_a_run_without_modules_says_that_they_are_off(plain_run, tmp_path, capsys):
    assert explain.main([str(plain_run), "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "TAPR is off" in said and "GRA-M is off" in said and "prototype" not in said
    assert len(list(tmp_path.iterdir())) == 2
    assert explain.main([str(plain_run), "--dump_prompt"]) == 2
    assert "without a language model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--window", "soon"], "--window: expected a time"),
        (["--variable", "b"], "--variable: expected one of a, OT, found b"),
        (["--root_path", "/nowhere"], "no such file"),
    ],
)
def test_a_mistake_is_one_error(looked_at, capsys, words, message):
    assert explain.main([str(looked_at), *words]) == 2
    said = capsys.readouterr().err
    assert message in said and said.startswith("error: ") and "Traceback" not in said
