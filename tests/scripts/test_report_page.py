"""The page about a run, as a file and in a real browser without a display."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select
from selenium.webdriver.support.wait import WebDriverWait

from scripts import report
from scripts.lib.inspect.explanation import explain
from scripts.lib.inspect.options import first_row, load, parser_for
from utils.training.run_folder import RESULTS_FILE, read_json

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def page(looked_at, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("page") / "report.html"
    assert report.main([str(looked_at), "--out", str(out), "--windows", "5"]) == 0
    return out


@pytest.fixture(scope="module")
def plain_page(plain_run, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("page") / "report.html"
    assert report.main([str(plain_run), "--out", str(out), "--windows", "3"]) == 0
    return out


def data_of(page: Path) -> dict:
    text = page.read_text(encoding="utf-8")
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    return json.loads(found)


def test_the_page_asks_for_nothing(page):
    """No address but the SVG's namespace-free own elements: it opens on a machine without a network."""
    text = page.read_text(encoding="utf-8")
    assert not re.findall(r"https?:|//[a-z]|@import|url\(|<link[^>]+stylesheet|<script[^>]+src", text)
    assert "default-src 'none'" in text and "{{" not in text


def test_its_numbers_are_the_runs(page, looked_at):
    text, data = page.read_text(encoding="utf-8"), data_of(page)
    results = read_json(looked_at / RESULTS_FILE)
    for weights in ("best", "last"):
        assert f"{results[weights]['test']['mse']:.4f}</td>" in text
    for name in ("persistence", "last season repeated", "ridge"):
        assert f"<td>{name}</td>" in text
    covered = results["best"]["intervals"]["levels"]["0.8"]["coverage"]
    assert f"cover {covered:.1%}" in text and "<td>--use_gram</td><td>True</td>" in text
    assert len(data["windows"]) == 5 and data["targets"] == ["a", "OT"]
    run = load(parser_for("x").parse_args([str(looked_at), "--device", "cpu"]))
    wanted = explain(run, first_row(run, "-1"), words=False)
    last = data["windows"][-1]
    assert last["forecast"] == wanted["window"]["forecast"]
    for own, whole in zip(last["variables"], wanted["variables"], strict=True):
        assert own["forecast"] == pytest.approx(whole["forecast"], rel=1e-3)
        assert own["mse"] == pytest.approx(whole["mse"], rel=1e-4)
        neighbours = own["retrieval"]["neighbours"]
        assert [n["until"] for n in neighbours] == [
            n["lookback"][1] for n in whole["retrieval"]["neighbours"][:5]
        ]
        assert len(own["intervals"]) == 2 and len(own["intervals"]["0.8"]) == 8
    titles = [panel["title"] for panel in data["curves"]]
    assert titles[0] == "validation" and any("gate" in title for title in titles) and "speed" in titles


def test_what_a_run_has_not_is_said(plain_page):
    text, data = plain_page.read_text(encoding="utf-8"), data_of(plain_page)
    assert data["curves"] == [] and "no LLM" in text and "no calibration" in text
    own = data["windows"][0]["variables"][0]
    assert own["retrieval"] is None and own["trend"] is None and own["intervals"] == {}


def test_a_name_cannot_break_out_of_the_data(looked_at, tmp_path, monkeypatch):
    """A column may be called like the end of a script."""
    run = load(parser_for("x").parse_args([str(looked_at), "--device", "cpu"]))
    monkeypatch.setattr(run.forecaster, "targets", ("</script><b>", "OT"))
    from scripts.lib.inspect.page import page_of

    text = page_of(run, windows=1)
    assert text.count("</script>") == 2 and "\\u003c/script\\u003e" in text


def test_a_run_that_was_not_tested_says_so(looked_at, tmp_path, capsys):
    copied = shutil.copytree(looked_at, tmp_path / "run")
    (copied / RESULTS_FILE).unlink()
    assert report.main([str(copied), "--windows", "1"]) == 0
    assert "has not been tested yet" in (copied / "report.html").read_text(encoding="utf-8")
    assert report.main([str(copied), "--windows", "0"]) == 2
    assert "--windows: expected 1 or more" in capsys.readouterr().err


# In a real browser.


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    binary = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("the page was not opened: needs chromium and chromedriver (Debian: chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for word in ("--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1280,1600"):
        options.add_argument(word)
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield started
    started.quit()


def opened(browser: webdriver.Chrome, page: Path) -> None:
    """Open the page, after forgetting what was logged before."""
    browser.get("about:blank")
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    browser.get(page.as_uri())


def paths(browser: webdriver.Chrome) -> dict[str, str]:
    """By label, the lines of the large plot."""
    found = browser.find_elements(By.CSS_SELECTOR, "#forecast path.line")
    return {str(line.get_attribute("data-label")): str(line.get_attribute("d")) for line in found}


@pytest.mark.slow
def test_the_page_renders_and_says_nothing_on_the_console(browser, page):
    opened(browser, page)
    shown = paths(browser)
    assert {"lookback (its end)", "truth", "forecast", "after a neighbour, from here"} == shown.keys()
    assert shown["truth"].count("L") == 8 and "NaN" not in "".join(shown.values())
    assert len(browser.find_elements(By.CSS_SELECTOR, "#forecast path.band")) == 2
    assert len(browser.find_elements(By.CSS_SELECTOR, "#neighbours svg")) == 5
    assert len(browser.find_elements(By.CSS_SELECTOR, "#charts svg")) == len(data_of(page)["curves"])
    assert (
        "NaN" not in browser.page_source and "undefined" not in browser.find_element(By.TAG_NAME, "main").text
    )
    assert browser.get_log("browser") == []


@pytest.mark.slow
def test_the_browser_fetches_the_file_and_nothing_else(browser, page):
    opened(browser, page)
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert page.as_uri() in asked
    assert all(url == page.as_uri() or url.startswith(("data:", "about:")) for url in asked)


@pytest.mark.slow
def test_the_slider_moves_the_plot_to_the_next_window(browser, page):
    opened(browser, page)
    data = data_of(page)
    slider = browser.find_element(By.ID, "window")
    seen = [paths(browser)]
    for place in range(1, 5):
        slider.send_keys(Keys.ARROW_RIGHT)
        seen.append(paths(browser))
        assert slider.get_attribute("value") == str(place)
        began = data["windows"][place]["forecast"][0].replace("T", " ")
        assert began in browser.find_element(By.ID, "said").text
        assert began[:16] in browser.find_element(By.ID, "which").text
        own = data["windows"][place]["variables"][1]
        assert f"MSE {own['mse']:.4f}" in browser.find_element(By.ID, "said").text
        until = own["retrieval"]["neighbours"][0]["until"].replace("T", " ")[:16]
        assert until in browser.find_element(By.ID, "neighbours").text
    for label in ("truth", "forecast", "lookback (its end)"):
        assert len({lines[label] for lines in seen}) == 5
    slider.send_keys(Keys.HOME)
    assert paths(browser) == seen[0] and browser.get_log("browser") == []


@pytest.mark.slow
def test_the_lines_lie_where_the_numbers_say(browser, page):
    """Heights on the screen and values in the data are one straight line."""
    opened(browser, page)
    own = data_of(page)["windows"][0]["variables"][1]
    path = paths(browser)["forecast"]
    heights = [float(point.split(",")[1]) for point in re.split("[ML]", path)[2:]]
    slopes = [
        (heights[i] - heights[0]) / (own["forecast"][i] - own["forecast"][0])
        for i in range(1, 8)
        if abs(own["forecast"][i] - own["forecast"][0]) > 0.05
    ]
    assert slopes and slopes[0] < 0 and slopes == pytest.approx([slopes[0]] * len(slopes), rel=0.03)


@pytest.mark.slow
def test_variable_and_neighbours_can_be_chosen(browser, page):
    opened(browser, page)
    before = paths(browser)
    Select(browser.find_element(By.ID, "variable")).select_by_visible_text("a")
    said = browser.find_element(By.ID, "said")
    WebDriverWait(browser, 10).until(lambda _: said.text.startswith("a, forecast from"))
    assert paths(browser)["truth"] != before["truth"]
    browser.find_element(By.ID, "retrieved").click()
    assert "after a neighbour, from here" not in paths(browser)
    assert browser.get_log("browser") == []


@pytest.mark.slow
def test_a_page_without_modules_renders_too(browser, plain_page):
    opened(browser, plain_page)
    assert {"lookback (its end)", "truth", "forecast"} == paths(browser).keys()
    text = browser.find_element(By.TAG_NAME, "main").text
    assert "GRA-M is off" in text and "TAPR is off" in text and "takes no training steps" in text
    assert browser.get_log("browser") == []


def test_a_page_is_called_html(looked_at, tmp_path, capsys):
    """--out x.pdf held a page."""
    assert report.main([str(looked_at), "--out", str(tmp_path / "x.pdf")]) == 2
    assert "--out: expected a name that ends in .html" in capsys.readouterr().err
