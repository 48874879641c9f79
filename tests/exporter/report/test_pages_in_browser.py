"""The pages in a browser: no errors, nothing loaded or cut off, tables sorted.

The tests drive headless Chromium of Debian. Without it they are skipped, but in CI they fail.
"""

import base64
import json
import math
import os
import shutil
import tempfile
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
from PIL import Image
from selenium import webdriver

from exporter.report import write_report
from exporter.results import Accuracy, InputParity, Ladder, Rung
from exporter.sweep.page import write_sweep_report

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
HOSTILE = "<script>document.title='owned'</script> $x^2$ \x1b[31m \u4e2d\u6587 @0@.mp4"
LONG = "/data/recordings/" + "very_long_directory_name/" * 6 + "clip.mp4"
SCREENS = {"desktop": 1200, "tablet": 800, "phone": 360}
PAGES = ("one", "failed", "sweep")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def driver():
    found = shutil.which("chromium"), shutil.which("chromedriver")
    if not all(found):
        reason = "Chromium and ChromeDriver (Debian: chromium, chromium-driver) are not installed"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    options = webdriver.ChromeOptions()
    options.binary_location = found[0]
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        service = webdriver.ChromeService(found[1])
        driver = webdriver.Chrome(options=options, service=service)
        yield driver
        driver.quit()


def with_everything(report):
    """A report whose every section has something in it, and foreign text where it can be."""
    row = report.parity[0]
    names = (HOSTILE, LONG, "clip \u202e gpj")
    foreign = tuple(replace(row.per_input[0], name=name) for name in names)
    worst = InputParity("no number", math.nan, 1e-7, math.inf, math.nan, False, 0.0, 0.1)
    rows = (replace(row, per_input=(*row.per_input, *foreign)), *report.parity[1:])
    rungs = tuple(
        Rung(f"blocks.{n // 4}.part_{n % 4}", 3e-7 * 1.4**n, 2e-7 * 1.2**n, 0.9999, 1e-3, True)
        for n in range(48)
    )
    judged = [("onnxruntime", 0.962, 0.94, 0.98), ("eager", 0.97, 0.95, 0.99)]
    return replace(
        report,
        parity=rows,
        ladder=Ladder("onnxruntime", "cpu", "fp32", rungs, "blocks.7.part_1", ""),
        accuracy=tuple(
            Accuracy(name, "cpu", "fp32", HOSTILE, 512, *figures, 1.0) for name, *figures in judged
        ),
    ), replace(rows[0], verdict="fail", reason=HOSTILE, per_input=(*rows[0].per_input, worst))


@pytest.fixture(scope="module")
def pages(exported, real_sweep, tmp_path_factory):
    """Where each page lies."""
    folder = tmp_path_factory.mktemp("pages")
    full, failed = with_everything(exported().report)
    for name, report in (("one", full), ("failed", replace(full, parity=(failed,)))):
        (folder / name).mkdir()
        write_report(report, folder / name)
    (folder / "sweep").mkdir()
    write_sweep_report(real_sweep, folder / "sweep")
    return {name: folder / name / "report.html" for name in PAGES}


@pytest.fixture
def show(driver, pages):
    """Open a page on a screen; gives the driver."""

    def open_page(name, screen="desktop", scheme="light"):
        width = SCREENS[screen]
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": screen == "phone"}
        scheme_of = {"name": "prefers-color-scheme", "value": scheme}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme_of]})
        for kind in ("browser", "performance"):
            driver.get_log(kind)  # forgets what was before
        driver.get(pages[name].as_uri())
        return driver

    return open_page


@pytest.mark.parametrize("name", PAGES)
def test_a_page_logs_no_error_and_loads_nothing(show, name, pages):
    driver = show(name)
    assert driver.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    asked = {e["params"]["request"]["url"] for e in events if e["method"].endswith("WillBeSent")}
    assert {url for url in asked if not url.startswith("data:")} == {pages[name].as_uri()}
    assert "owned" not in driver.title
    assert pages[name].stat().st_size < 3e6


def test_a_foreign_script_does_not_run(driver, pages, tmp_path):
    """Even if one got past the escaping."""
    page = tmp_path / "report.html"
    text = pages["one"].read_text(encoding="utf-8")
    page.write_text(text.replace("</h1>", "</h1><script>document.title='owned'</script>", 1))
    driver.get(page.as_uri())
    assert "owned" not in driver.title
    assert any("Content Security Policy" in entry["message"] for entry in driver.get_log("browser"))


@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.parametrize("name", PAGES)
def test_only_tables_are_scrolled_sideways(show, name, screen):
    driver = show(name, screen)
    driver.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    width = driver.execute_script("return document.documentElement.scrollWidth")
    assert width <= SCREENS[screen]
    boxes = driver.find_elements("css selector", ".scroll")
    wider = [b for b in boxes if b.get_property("scrollWidth") > b.get_property("clientWidth")]
    assert wider or screen != "phone", "no table was wide enough to tell"


# Of each plot that is shown: what is written where, in pixels of the screen, and how large.
TEXTS = """
const shown = [...document.querySelectorAll('.plot svg')].filter(s => s.getClientRects().length);
return shown.map(svg => {
  const box = svg.getBoundingClientRect(), scale = box.width / svg.viewBox.baseVal.width;
  return {name: svg.getAttribute('aria-label').slice(0, 40), box: box.toJSON(),
    texts: [...svg.querySelectorAll('text')].map(text => ({
      said: text.firstChild.data, box: text.getBoundingClientRect().toJSON(),
      size: scale * parseFloat(getComputedStyle(text).fontSize)}))};
});
"""


@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.parametrize("name", PAGES)
def test_the_words_of_plots_can_be_read(show, name, screen):
    plots = show(name, screen).execute_script(TEXTS)
    assert len(plots) >= (2 if name == "sweep" else 4)
    for plot in plots:
        where = f"{plot['name']} on a {screen}"
        for text in plot["texts"]:
            assert text["size"] > 10.5, f"{text['said']} in {where}"
            inside = plot["box"]["left"] - 1 <= text["box"]["left"]
            inside &= text["box"]["right"] <= plot["box"]["right"] + 1
            inside &= text["box"]["bottom"] <= plot["box"]["bottom"] + 3
            assert inside, f"{text['said']} in {where}: {text['box']} of {plot['box']}"
        for one, other in combinations(plot["texts"], 2):
            assert not overlap(one["box"], other["box"]), (
                f"{one['said']} and {other['said']} in {where}"
            )


def overlap(one, other, slack=3):
    """Whether two boxes share more than a hair; lines of text stand close."""
    across = min(one["right"], other["right"]) - max(one["left"], other["left"])
    down = min(one["bottom"], other["bottom"]) - max(one["top"], other["top"])
    return across > 1 and down > slack


CONTRAST = """
const look = (name) => {
  const probe = document.createElement('i');
  probe.style.color = `var(--${name})`;
  document.body.append(probe);
  const parts = getComputedStyle(probe).color.match(/[\\d.]+/g).slice(0, 3).map(Number);
  probe.remove();
  return parts;
};
return Object.fromEntries(arguments[0].map(name => [name, look(name)]));
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_can_be_told_from_the_sheet(show, scheme):
    letters = ("ink", "soft", "bar", "pass", "fail", "ill", "none")
    marks = ("eager", *(f"series-{n}" for n in range(1, 7)))
    tones = show("sweep", scheme=scheme).execute_script(CONTRAST, ["sheet", *letters, *marks])
    assert (luminance(tones["sheet"]) < 0.1) == (scheme == "dark")
    for names, least in ((letters, 4.5), (marks, 3.0)):  # WCAG 2.2, 1.4.3 and 1.4.11
        for name in names:
            assert contrast(tones[name], tones["sheet"]) >= least, name


def luminance(colour):
    parts = [part / 255 for part in colour]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


COLUMN = """
const table = [...document.querySelectorAll('table.sortable')].find(
  t => t.closest('.scroll').ariaLabel === arguments[0]);
const column = [...table.tHead.rows[0].cells].findIndex(h => h.textContent === arguments[1]);
return [...table.tBodies[0].rows].map(row => row.cells[column]?.textContent.trim() ?? '');
"""
HEAD = """
const table = [...document.querySelectorAll('table.sortable')].find(
  t => t.closest('.scroll').ariaLabel === arguments[0]);
return [...table.tHead.rows[0].cells].find(h => h.textContent === arguments[1]);
"""


def number(text):
    try:
        return float(text.replace(",", "").split()[0])
    except (ValueError, IndexError):
        return math.nan


def assert_sorted(texts, *, down=False):
    numbers = [number(text) for text in texts]
    known = [n for n in numbers if not math.isnan(n)]
    assert known == sorted(known, reverse=down)
    assert not any(map(math.isnan, numbers[: len(known)])), "what has no number stays last"


def test_a_click_sorts_up_down_and_back(show):
    driver = show("failed")
    table, column = "Inputs of onnxruntime (cpu, fp32)", "Relative error"
    driver.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    given = driver.execute_script(COLUMN, table, column)
    assert "not a number" in given
    assert len({text for text in given if "e-" in text}) > 2, "errors written as 1.0e-07"
    head = driver.execute_script(HEAD, table, column)
    (button,) = head.find_elements("tag name", "button")
    for order in ("ascending", "descending"):
        button.click()
        assert head.get_attribute("aria-sort") == order
        texts = driver.execute_script(COLUMN, table, column)
        assert sorted(texts) == sorted(given)
        assert_sorted(texts, down=order == "descending")
    button.click()
    assert head.get_attribute("aria-sort") is None
    assert driver.execute_script(COLUMN, table, column) == given


@pytest.mark.parametrize("key", ["\ue007", " "])  # Enter
def test_keys_sort_too_and_only_one_head_is_marked(show, key):
    driver = show("sweep")
    heads = [driver.execute_script(HEAD, "Cells", name) for name in ("p50 ms", "attn")]
    for head, name in zip(heads, ("p50 ms", "attn"), strict=True):
        driver.execute_script("arguments[0].querySelector('button').focus()", head)
        driver.switch_to.active_element.send_keys(key)
        assert head.get_attribute("aria-sort") == "ascending"
        assert len(driver.find_elements("css selector", "th[aria-sort]")) == 1
        texts = driver.execute_script(COLUMN, "Cells", name)
        if name == "p50 ms":
            assert "-" in texts
            assert_sorted(texts)
        else:
            assert texts == sorted(texts)


def test_the_links_of_a_sweep_lead_to_its_cells(show, pages, real_sweep):
    links = show("sweep").find_elements("css selector", "#cells ~ .scroll tbody a")
    folder = pages["sweep"].parent
    there = [row["directory"] for row in real_sweep["rows"] if row["directory"]]
    assert [link.get_attribute("href") for link in links] == [
        (folder / directory / "report.html").as_uri() for directory in there
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("screen", ["desktop", "phone"])
@pytest.mark.parametrize("name", PAGES)
def test_screenshots(show, name, screen, scheme, tmp_path):
    driver = show(name, screen, scheme)
    tall = driver.execute_script("return document.documentElement.scrollHeight")
    clip = {"x": 0, "y": 0, "width": SCREENS[screen], "height": tall, "scale": 1}
    asked = {"captureBeyondViewport": True, "clip": clip}
    taken = driver.execute_cdp_cmd("Page.captureScreenshot", asked)
    path = Path(os.environ.get("SCREENSHOTS") or tmp_path) / f"{name}-{screen}-{scheme}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(base64.b64decode(taken["data"]))
    with Image.open(path) as image:
        assert image.size == (SCREENS[screen], tall)
        background = image.convert("L").getpixel((2, 2))
    assert (background < 64) == (scheme == "dark")
