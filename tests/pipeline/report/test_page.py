"""The report in a real browser: headless Chromium, driven by Selenium."""

import dataclasses
import importlib.metadata
import re
import shutil

import pytest

from pipeline.commands.report import write_report
from pipeline.commit import commit
from pipeline.report.collect import collect
from pipeline.report.error_rows import EXAMPLES
from pipeline.report.page import render, told_settings
from tests.finished import COLUMN, RENAMED
from tests.jobs import answer, prompts_of

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
def bare(finished, tmp_path_factory):
    """A folder with but the parts of a run, and their report."""
    folder = tmp_path_factory.mktemp("bare")
    for path in sorted(finished.output.glob("part-*"))[1:]:
        shutil.copy(path, folder)
    write_report(str(folder), samples=5)
    return dataclasses.replace(finished, output=folder)


@pytest.fixture(scope="module")
def unfinished(finished, tmp_path_factory):
    """A run without its last part, and its report."""
    folder = tmp_path_factory.mktemp("unfinished") / "out"
    shutil.copytree(finished.output, folder)
    *_, last = sorted(folder.glob("part-*"))
    for path in (last, folder / "_SUCCESS", folder / "_manifest.json"):
        path.unlink()
    write_report(str(folder))
    return dataclasses.replace(finished, output=folder)


def test_what_parts_alone_do_not_tell_is_said(finished, bare):
    for told in ("What is not known", "of an unknown number", "no plan (_plan/) and no _job.json"):
        assert told in bare.page
        assert told not in finished.page


def test_provenance_names_input_and_versions(finished, bare):
    provenance = finished.page.split('<section id="provenance">')[1]
    assert str(finished.output.parent / "in.parquet") in provenance
    for package in ("apache-beam", "pyarrow", "sentencepiece"):
        version = importlib.metadata.version(package)
        assert f"<dt>{package}</dt><dd>{version}</dd>" in provenance
    assert "<dt>grok1</dt>" in bare.page.split('<section id="provenance">')[1]


def test_of_many_errors_the_first_are_told(prepare):
    job = prepare({"prompt": ["a"] + [None] * 23}, chunk_rows=9)
    for chunk in prompts_of(job):
        commit(job, answer(chunk))
    page = render(collect(job.folder.url))
    assert f"first {EXAMPLES} of 23 rows" in page


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
    counted = f"{run.each} of {answers}, all rows with an answer"
    assert find("css selector", "#count").text == counted
    search.clear()
    search.send_keys("onerror")
    for hostile in browser.find_elements("css selector", ".sample .prompt"):
        assert hostile.text == run.prompts[0]
    assert find("css selector", "#count").text == counted
    assert browser.execute_script("return document.querySelectorAll('main img').length") == 0
    assert browser.title.startswith(title)
    assert browser.get_log("browser") == []


def test_all_of_a_ledger_can_be_seen_on_a_phone(browser, unfinished):
    opened(browser, unfinished, 390)
    ledger = browser.find_element("css selector", ".ledger")
    assert "to come" in ledger.text
    right = "return arguments[0].getBoundingClientRect().right"
    terms = ledger.find_elements("css selector", "td")
    ends = [browser.execute_script(right, term) for term in terms]
    assert max(ends) <= browser.execute_script("return document.documentElement.clientWidth")


@pytest.mark.parametrize("selector", ["nav", ".scroll", ".text"])
def test_what_scrolls_is_shaded_at_its_edges(browser, finished, selector):
    opened(browser, finished, 390)
    style = f"return getComputedStyle(document.querySelector('{selector}')).backgroundAttachment"
    assert browser.execute_script(style).startswith("local, local, scroll, scroll")


def test_a_sample_says_of_how_many_rows_it_was_drawn(browser, bare):
    opened(browser, bare, 1280)
    count = browser.find_element("css selector", "#count").text
    assert re.fullmatch(r"5 of 5, drawn from 1\d rows with an answer", count)
