"""The page in a real browser: no errors, no overflow on a phone or a desk, dark and light, and every cell's number its record's."""

import shutil
import statistics

import pytest
import report_cases as cases

from repro.records.store import BEFORE_CRF, read_record
from repro.report import __main__ as report
from repro.report.__main__ import MEASURED

pytestmark = pytest.mark.browser

SWITCHES = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Debian's Chromium, driven by selenium, without a network."""
    paths = [shutil.which("chromium"), shutil.which("chromedriver")]
    if not all(paths):
        pytest.skip("needs chromium and chromedriver: apt-get install chromium chromium-driver")
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium: pip install .[browser]")
    options = webdriver.ChromeOptions()
    options.binary_location = paths[0]
    for switch in (*SWITCHES, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(paths[1]))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """The report of the records that the package ships."""
    out = tmp_path_factory.mktemp("kept")
    assert report.main(["--runs", str(MEASURED), "--out", str(out)]) == 0
    return out / "report.html"


@pytest.fixture(scope="module")
def every_state(tmp_path_factory):
    """The report of hand-made records in every state, with pictures and a benchmark."""
    runs = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        cases.write_protocols(tmp_path_factory.mktemp("protocols"), patch)
        cases.write_every_state(runs)
        cases.write_figures(runs)
        cases.write_benchmark(runs)
        assert report.main(["--runs", str(runs), "--out", str(runs / "report")]) == 0
    return runs / "report" / "report.html"


def visit(browser, page, width, scheme="light", folded=False):
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    )
    scheme = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", scheme)
    browser.get(page.as_uri())
    if folded:
        return
    # What is folded must fit too.
    browser.execute_script("document.querySelectorAll('details').forEach(one => one.open = true)")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("which", ["kept", "every_state"])
def test_no_errors_and_no_overflow(request, browser, which, width, scheme):
    visit(browser, request.getfixturevalue(which), width, scheme)
    assert browser.get_log("browser") == []
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    wide = browser.execute_script(
        "return [...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll') && !e.closest('.sr')"
        " && e.getBoundingClientRect().right > innerWidth + 0.5).map(e => e.outerHTML.slice(0, 80))"
    )
    assert wide == []
    broken = browser.execute_script(
        "return [...document.images].filter(i => !i.complete || i.naturalWidth == 0).map(i => i.alt)"
    )
    assert broken == []
    assert browser.execute_script("return document.scripts.length") == 0


def test_the_first_screen_has_the_claims_and_three_pictures_and_the_rest_is_folded(browser, every_state, kept):
    visit(browser, every_state, 1280, folded=True)
    places = browser.execute_script(
        "return [...document.querySelectorAll('.claims li, .three img')].map(e => e.getBoundingClientRect().bottom)"
    )
    assert len(places) >= 3 + 3
    assert max(places) < 900
    for page in (every_state, kept):
        visit(browser, page, 1280, folded=True)
        assert browser.execute_script("return document.documentElement.scrollHeight") < 8000


CONTRAST = """
const parse = c => c.match(/[\\d.]+/g).map(Number);
const light = ([r, g, b]) => { const f = v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; return 0.2126 * f(r) + 0.7152 * f(g) + 0.0722 * f(b); };
const ground = e => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor); if (c.length < 4 || c[3] > 0) return c; } return [255, 255, 255]; };
return [...document.querySelectorAll('main *, header *')].filter(e => [...e.childNodes].some(n => n.nodeType == 3 && n.data.trim())).map(e => {
  const [a, b] = [light(parse(getComputedStyle(e).color)), light(ground(e))]; return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), e.outerHTML.slice(0, 80)];
}).filter(([ratio]) => ratio < 4.5);
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(browser, every_state, scheme):
    visit(browser, every_state, 1280, scheme)
    assert browser.execute_script(CONTRAST) == []  # the Web Content Accessibility Guidelines' 4.5 to 1


def test_every_cell_is_its_records_number(browser, kept):
    visit(browser, kept, 1280)
    values: dict[str, list[float]] = {}
    beside: dict[str, str] = {}
    for path in MEASURED.glob("*/*/record.json"):
        record = read_record(path)
        cell = f"{record['table']}/{record['row']}"
        values.setdefault(cell, []).append(record["value"])
        before = f" before the CRF {record[BEFORE_CRF]['value']:.2f}" if BEFORE_CRF in record else ""
        beside[cell] = before + (" overridden" if record["deviates"] else "")
    assert len(values) >= 13
    shown = browser.execute_script(
        "return Object.fromEntries([...document.querySelectorAll('[data-cell]')].map(c => [c.dataset.cell, c.innerText]))"
    )
    for cell, found in values.items():
        expected = f"{statistics.fmean(found):.2f}" + (f" ± {statistics.stdev(found):.2f}" if len(found) > 1 else "")
        assert shown[cell].splitlines()[0].strip() == expected + beside[cell], cell


def test_print_unfolds_what_is_folded(browser, kept):
    visit(browser, kept, 1280)
    browser.execute_script("document.querySelectorAll('details').forEach(one => one.open = false)")
    visible = "return document.querySelector('#table3 table').checkVisibility()"
    height = "return document.querySelector('#table3').getBoundingClientRect().height"
    assert not browser.execute_script(visible)
    folded = browser.execute_script(height)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert browser.execute_script(visible)
    assert browser.execute_script(height) > folded + 150
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
