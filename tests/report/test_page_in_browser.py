"""The page in a browser: it draws, says nothing on the console, loads nothing, and no text lies upon another."""

import functools
import shutil

import pytest
from playwright.sync_api import sync_playwright
from plotly.offline import get_plotlyjs

from emu.analysis.run_data import load_run
from emu.report.page.document import report_page
from emu.report.page.series import subjects_of

from .folders import SCHEMES, make_run, write_run
from .test_page import HOSTILE

CHARTS = 12
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
OVERLAPS = """() => {
  const visible = (element) => element.getClientRects().length && element.textContent.trim();
  const texts = [...document.querySelectorAll("h1, h2, h3, .says, .note, .legend button, nav a, summary")];
  const within = [...document.querySelectorAll(".plot")].map((plot) => [...plot.querySelectorAll("svg text")]);
  const found = [];
  for (const group of [texts, ...within]) {
    const boxes = group.filter(visible).map((element) => [element.textContent, element.getBoundingClientRect()]);
    boxes.forEach(([one, a], number) => boxes.slice(number + 1).forEach(([other, b]) => {
      // Boxes of letters are a little higher than what is drawn.
      const width = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      const height = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      if (width > 1 && height > 2) found.push([one, other]);
    }));
  }
  return found;
}"""
FITS = """() => [...document.querySelectorAll(".plot")].every(
  (plot) => plot.querySelector(".main-svg").clientWidth === plot.clientWidth)"""
CUT_OFF = """() => [...document.querySelectorAll(".plot")].flatMap((plot) => {
  const frame = plot.getBoundingClientRect();
  return [...plot.querySelectorAll("svg text")].filter((text) => text.textContent.trim()).filter((text) => {
    const box = text.getBoundingClientRect();
    return box.left < frame.left - 1 || box.right > frame.right + 1 || box.bottom > frame.bottom + 1;
  }).map((text) => plot.id + ": " + text.textContent);
})"""


@pytest.fixture(scope="module")
def browser():
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed: pages are not looked at in a browser")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Files of reports: of one run, of two, and of one with text that wants to be markup."""
    folder = tmp_path_factory.mktemp("runs")
    one = write_run(folder / "one", [make_run(name, rate) for name, rate in SCHEMES.items()], flushes=4000)
    two = write_run(folder / "two", [make_run(name, rate * 3) for name, rate in SCHEMES.items()])
    locks = [make_run("DMA-FQ")["locks"][0] | {"name": HOSTILE}]
    told = {"domain": HOSTILE.replace("/", ""), "locks": locks, "warnings": [HOSTILE], "preset": HOSTILE}
    hostile = write_run(folder / HOSTILE.replace("/", ""), [make_run("DMA-FQ") | told, make_run("DMA")])
    written = {}
    for name, folders in {"one": [one], "two": [one, two], "hostile": [hostile]}.items():
        written[name] = folder / f"{name}.html"
        subjects = subjects_of([load_run(each) for each in folders])
        written[name].write_text(report_page(subjects, get_plotlyjs()), errors="backslashreplace")
    return written


@pytest.fixture(scope="module")
def show(browser, pages):
    """A page: show("one", width=390) → (page, what it said or loaded); tests leave it as it was."""

    @functools.cache
    def opened(name):
        # A page is first opened on a phone, and then widened.
        page = browser.new_page(viewport={"width": 390, "height": 900}, color_scheme="light")
        said = []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: said.append(dialog.message))
        page.on("request", lambda request: said.append(request.url))
        page.goto(pages[name].as_uri())
        page.wait_for_selector("html[data-drawn]")
        return page, said

    def show_page(name, width=1280, scheme="light"):
        page, said = opened(name)
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme, media="screen")
        page.wait_for_function(FITS)
        return page, said

    return show_page


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize(("name", "charts"), [("one", CHARTS), ("two", CHARTS), ("hostile", CHARTS)])
def test_everything_is_drawn_and_can_be_read(show, pages, name, charts, width):
    page, said = show(name, width)
    assert said == [pages[name].as_uri()]
    assert page.locator(".plot .main-svg").count() >= charts
    empty = "plots => plots.filter((plot) => !plot.querySelector('.trace, .bars, .scatter')).map((plot) => plot.id)"
    assert page.locator(".plot").evaluate_all(empty) == []
    assert page.locator(".plot").count() == charts
    assert page.evaluate(OVERLAPS) == []
    assert page.evaluate(CUT_OFF) == []
    assert page.evaluate("document.documentElement.scrollWidth") == width


def test_the_check_for_overlaps_finds_them(show):
    page, _ = show("one")
    page.evaluate("document.querySelector('h3').style.transform = 'translateY(25px)'")
    assert page.evaluate(OVERLAPS)
    page.evaluate("document.querySelector('h3').style.transform = ''")


def background(page):
    return page.evaluate("getComputedStyle(document.body).backgroundColor")


def test_in_the_dark_paper_is_dark_and_ink_is_light(show):
    page, _ = show("one", scheme="dark")
    assert background(page) == "rgb(18, 22, 27)"
    ink = page.locator("#chart-throughput .xtitle").evaluate("text => getComputedStyle(text).fill")
    assert ink == "rgb(231, 234, 238)"


def test_a_change_of_theme_changes_the_charts(show):
    page, _ = show("one")
    line = page.locator("#chart-throughput .js-line").first
    light = line.evaluate("line => line.style.stroke")
    page.emulate_media(color_scheme="dark")
    assert line.evaluate("line => line.style.stroke") != light


def test_on_paper_it_is_light_and_fits(show):
    page, _ = show("one", scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    assert background(page) == "rgb(255, 255, 255)"
    page.emulate_media(media="screen")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    ink = page.locator("#chart-throughput .xtitle").evaluate("text => getComputedStyle(text).fill")
    assert ink == "rgb(27, 32, 38)"
    assert page.locator("#chart-throughput .main-svg").first.evaluate("svg => svg.clientWidth") <= 690
    page.evaluate("dispatchEvent(new Event('afterprint'))")


def test_the_legend_hides_a_scheme_from_the_keyboard(show):
    page, _ = show("one")
    shown = page.locator("#chart-throughput .js-line").count()
    button = page.locator("button[data-chart='chart-throughput']").first
    button.focus()
    page.keyboard.press("Enter")
    assert button.get_attribute("aria-pressed") == "false"
    assert page.locator("#chart-throughput .js-line").count() == shown - 1
    page.keyboard.press("Space")
    assert page.locator("#chart-throughput .js-line").count() == shown


def test_tables_open_from_the_keyboard(show):
    page, _ = show("one")
    page.locator("#chart-throughput ~ details summary").focus()
    page.keyboard.press("Enter")
    assert page.locator("#chart-throughput ~ details table").is_visible()
    page.keyboard.press("Enter")
    assert not page.locator("#chart-throughput ~ details table").is_visible()


def test_the_first_stop_of_the_keyboard_skips_to_the_results(show):
    page, _ = show("one")
    page.evaluate("document.activeElement.blur(), document.body.tabIndex = -1, document.body.focus()")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"


def test_what_others_wrote_runs_nothing_and_is_shown(show):
    page, said = show("hostile")
    assert len(said) == 1
    assert "<script>alert(1)</script>" in page.inner_text("main")
    texts = " ".join(page.locator("#chart-pairs svg text").all_text_contents())
    assert "<script>alert" in texts
