"""The report in a real browser: headless Chromium, driven by Selenium."""

import re
import shutil

import pytest

from pipeline.report.page import told_settings
from tests.finished import COLUMN, RENAMED

COMMON = {"throughput", "prompt-length", "completion-length", "logprob", "errors"}

RUNS = {
    "finished": ("Completions in", COMMON | {"occupancy", "finish-reason"}),
    "scored": ("Scores in", COMMON | {"perplexity", "byte-perplexity", "greedy"}),
}
"""What the page of a run is called, and its charts."""

MARKS = ".mark-area, .mark-rect"


@pytest.fixture(params=RUNS)
def run(request):
    return request.getfixturevalue(request.param)


def test_the_page_forbids_itself_the_network(run):
    assert "default-src 'none'" in run.page


def test_nothing_of_the_data_is_markup(run):
    scripts = re.findall(r"<script[^>]*>", run.page.split("<body>")[1].split("vegaEmbed")[0])
    assert all("type=" in script for script in scripts)
    assert "<b>1</b>" not in run.page
    assert COLUMN not in run.page
    assert RENAMED not in run.page
    assert "document.title='owned'</script>" not in run.page


def test_settings_are_told_in_words():
    settings = {"limit": None, "columns": {}, "dedupe": True, "stop": ["a"], "checkpoint": "ab"}
    assert told_settings(settings) == {
        "dedupe": "yes",
        "stop": '["a"]',
        "checkpoint identity": "ab",
    }


def test_a_column_may_be_called_as_it_likes(finished):
    assert "&lt;i&gt;renamed&lt;/i&gt;" in finished.page


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("needs chromium and chromedriver (Debian: chromium chromium-driver)")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in (
        "headless=new",
        "no-sandbox",
        "disable-gpu",
        "disable-quic",
        "no-first-run",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
        f"user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    made = webdriver.Chrome(options, webdriver.ChromeService(driver))
    made.implicitly_wait(10)
    yield made
    made.quit()


def opened(browser, run, width):
    browser.set_window_size(width, 900)
    browser.get((run.output / "_report.html").as_uri())
    wait = "return document.querySelectorAll('.sample').length"
    for _ in range(100):
        if browser.execute_script(wait):
            break
    return browser


@pytest.mark.parametrize("width", [390, 1280])
def test_it_opens_draws_searches_and_stays_inert(browser, run, width, request):
    opened(browser, run, width)
    title, charts = RUNS[request.node.callspec.params["run"]]
    answers = run.each * (len(run.prompts) - 1)
    find = browser.find_element
    for name in charts:
        assert browser.find_elements("css selector", f"#chart-{name} svg :is({MARKS}) path"), name
    assert browser.title.startswith(title)
    wide = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert browser.execute_script(wide) == 0
    requests = "return performance.getEntriesByType('resource').map(entry => entry.name)"
    assert browser.execute_script(requests) == []
    assert all(e.text for e in browser.find_elements("css selector", ".sample .text"))
    search = find("css selector", "#search")
    search.clear()
    search.send_keys("needle")
    shown = browser.find_elements("css selector", ".sample .prompt")
    assert [element.text for element in shown] == ["needle in a haystack"] * run.each
    assert find("css selector", "#count").text == f"{run.each} of {answers}"
    search.clear()
    search.send_keys("onerror")
    for hostile in browser.find_elements("css selector", ".sample .prompt"):
        assert hostile.text == run.prompts[0]
    assert find("css selector", "#count").text == f"{run.each} of {answers}"
    assert browser.execute_script("return document.querySelectorAll('main img').length") == 0
    assert browser.title.startswith(title)
    assert browser.get_log("browser") == []
