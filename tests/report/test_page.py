"""The page in a browser: charts, filter, tables, cells, dark mode, print, phones, and without scripts."""

import csv
import io
import math
import re
import shutil
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from pipeline.metrics.names import label
from pipeline.report.page import to_html
from tests.report.studies import HOSTILE, LONG

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="neither chromium nor google-chrome is installed"),
]
SCORE = label("fd_corrected", "classifier", False)
METHOD = HOSTILE[:40].strip()
METHODS = "#figure-methods"

Opened = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser: Browser, folder: Path) -> Iterator[Opened]:
    """Opens the page in a new context. Its console must stay empty, and it must make no request."""
    said: list[str] = []
    asked: list[str] = []
    contexts = []

    def open_page(width: int = 1000, address: str = "", **settings: object) -> Page:
        context = browser.new_context(viewport={"width": width, "height": 800}, **settings)
        contexts.append(context)
        context.route("**/*", lambda route: route.continue_() if route.request.url.startswith(file) else route.abort())
        page = context.new_page()
        page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(file + address)
        return page

    file = (folder / "report.html").as_uri()
    yield open_page
    for context in contexts:
        context.close()
    assert said == []
    assert [url for url in asked if not url.startswith((file, "data:image/png;base64,"))] == []


def drawn(page: Page, figure: str = METHODS) -> Page:
    """Scroll to a chart and wait until it is drawn."""
    page.locator(figure).scroll_into_view_if_needed()
    expect(page.locator(f"{figure}[data-ready]")).to_be_attached(timeout=30_000)
    return page


def names(page: Page, figure: str = METHODS) -> set[str]:
    """The series with visible points in a chart."""
    marks = page.locator(f"{figure} .mark-symbol path").evaluate_all("found => found.map(m => m.ariaLabel)")
    return {mark.split("; series: ")[1].split("; 95% interval, from")[0].strip() for mark in marks}


def cells(folder: Path, curve: str, nfe: int, metric: str = "fd_corrected") -> list[dict]:
    with (folder / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [r for r in rows if (r["curve"], r["nfe"], r["metric"]) == (curve, str(nfe), metric)]


def test_every_chart_is_drawn_without_any_request(opened: Opened) -> None:
    page = opened()
    figures = page.locator("figure:has(script.chart)")
    assert figures.count() >= 9
    for name in figures.evaluate_all("found => found.map(f => f.id)"):
        drawn(page, f"#{name}")
        assert page.locator(f"#{name} .plot svg").count() >= 1
        expect(page.locator(f"#{name} > img")).to_be_hidden()


def test_charts_are_drawn_when_they_come_near(opened: Opened) -> None:
    page = opened()
    page.wait_for_selector("html.interactive")
    assert page.locator("#figure-oracle_distances[data-ready]").count() == 0
    drawn(page, "#figure-oracle_distances")


def test_a_tooltip_shows_the_exact_value(opened: Opened, folder: Path) -> None:
    page = drawn(opened())
    page.locator(f"{METHODS} .legend button", has_text="flow").click()
    expect(page.locator(f"{METHODS} .mark-symbol path")).to_have_count(2)
    values = [float(row["value"]) for row in cells(folder, "edm", 7)]
    mark = page.locator(f"{METHODS} .mark-symbol path").last
    mark.hover()
    tip = page.locator("#tip")
    expect(tip).to_be_visible()
    said = dict(zip(tip.locator("dt").all_inner_texts(), tip.locator("dd").all_inner_texts(), strict=True))
    score = f"{SCORE}, training images"
    assert said[score] == f"{sum(values) / 3:.6g}" and said["repetitions"] == "3"
    assert said["number of function evaluations (NFE)"] == "7"
    assert float(said["95% interval, from"]) < float(said[score]) < float(said["95% interval, to"])
    assert tip.locator("strong").inner_text() == METHOD
    page.mouse.move(1, 1)
    expect(tip).to_be_hidden()


def test_a_point_opens_its_cells(opened: Opened) -> None:
    page = drawn(opened())
    page.locator(f"{METHODS} .mark-symbol path").first.click(force=True)
    expect(page.locator("dialog h2")).to_have_text(f"{SCORE} of edm at NFE 3")


def test_the_filter_hides_curves_in_charts_and_tables(opened: Opened) -> None:
    page = drawn(opened(), "#figure-ablation_rho")
    rho_5 = f"rho_5: rho {LONG}"
    assert names(page, "#figure-ablation_rho") == {"edm (base)", "rho_3: rho 3", rho_5, "failing: rho 9"}
    page.locator("#filter summary").click()
    page.locator("#filter label[data-name=rho_3] input").uncheck()
    rows = page.locator("tr[data-curves=rho_3]")
    assert rows.count() >= 2 and rows.evaluate_all("found => found.every(r => getComputedStyle(r).display === 'none')")
    expect(page.locator("#filter summary")).to_have_text("Curves shown: 7 of 8")
    expect(page.locator("#figure-ablation_rho .mark-symbol path")).to_have_count(5)
    assert names(page, "#figure-ablation_rho") == {"edm (base)", rho_5, "failing: rho 9"}
    page.locator("#filter input[type=search]").fill("rho")
    page.get_by_role("button", name="only these").click()
    expect(page.locator("#filter summary")).to_have_text("Curves shown: 2 of 8")
    page.get_by_role("button", name="all", exact=True).click()
    expect(page.locator("#filter summary")).to_have_text("Curves shown: all 8")
    assert rows.evaluate_all("found => found.every(r => getComputedStyle(r).display !== 'none')")
    # A chart that is drawn later goes by the filter too.
    page.get_by_role("button", name="none", exact=True).click()
    drawn(page, METHODS)
    expect(page.locator(f"{METHODS} .plot.empty")).to_have_count(1)
    assert page.locator(f"{METHODS} .mark-symbol path").count() == 0
    page.get_by_role("button", name="all", exact=True).click()
    expect(page.locator(f"{METHODS} .plot.empty")).to_have_count(0)
    expect(page.locator(f"{METHODS} .mark-symbol path")).to_have_count(4)
    assert names(page) == {METHOD, "flow"}


def test_the_legend_hides_a_series_in_one_chart(opened: Opened) -> None:
    page = drawn(opened())
    assert names(page) == {METHOD, "flow"}
    page.locator(f"{METHODS} .legend button", has_text="flow").click()
    expect(page.locator(f"{METHODS} .mark-symbol path")).to_have_count(2)
    assert names(page) == {METHOD}


def table_of(page: Page, heading: str, place: int = 0) -> str:
    """The selector of a table below a heading."""
    page.wait_for_selector("html.interactive")
    return f".wide[aria-label='Table: {heading}'] >> nth={place}"


def test_a_header_sorts_numbers_by_value_and_back(opened: Opened) -> None:
    page = opened()
    table = page.locator(table_of(page, "Evaluations needed to approach the best score"))
    column = table.locator("td:nth-child(2)")
    before = column.all_inner_texts()
    header = table.locator("th:nth-child(2)")
    header.click()
    assert column.all_inner_texts() == sorted(before, key=float) != before
    assert header.get_attribute("aria-sort") == "ascending"
    header.press("Enter")
    assert column.all_inner_texts() == sorted(before, key=float, reverse=True)
    header.click()
    assert column.all_inner_texts() == before
    table.locator("th:nth-child(1)").click()
    assert table.locator("td:nth-child(1)").all_inner_texts() == sorted(
        table.locator("td:nth-child(1)").all_inner_texts()
    )


def test_means_with_intervals_sort_by_the_mean(opened: Opened) -> None:
    page = opened()
    table = page.locator(table_of(page, "Methods"))
    table.locator("th:nth-child(4)").click()
    means = [text.split(" ±")[0] for text in table.locator("td:nth-child(4)").all_inner_texts()]
    assert len(means) == 3 and means == sorted(means, key=float) and "±" in table.inner_text()


def test_effects_sort_by_their_value(opened: Opened) -> None:
    page = opened()
    table = page.locator(table_of(page, "Design choices"))
    column = table.locator("td:nth-child(5)")
    before = column.all_inner_texts()
    table.locator("th:nth-child(5)").click()

    def effect(text: str) -> float:
        found = text.removeprefix("8: ").split(" ")[0].removeprefix("×")
        return 1.0 if found == "equal" else math.inf if found == "failed" else float(found)

    assert column.all_inner_texts() == sorted(before, key=effect) != before


def test_tables_are_copied_in_three_formats(opened: Opened) -> None:
    page = opened(permissions=["clipboard-read", "clipboard-write"])
    table = page.locator(table_of(page, "Methods"))
    shown = [line.locator("th, td").all_inner_texts() for line in table.locator("tr").all()]
    copied = {}
    for name in ("CSV", "Markdown", "LaTeX"):
        page.locator(".tools").first.get_by_role("button", name=name).click()
        expect(page.locator(".tools").first.get_by_text("copied")).to_be_visible()
        copied[name] = page.evaluate("navigator.clipboard.readText()")
        expect(page.locator(".tools").first.get_by_text("copied")).to_be_hidden()
    assert list(csv.reader(io.StringIO(copied["CSV"]))) == shown and METHOD in shown[1]
    lines = copied["Markdown"].splitlines()
    assert len(lines) == len(shown) + 1 and lines[1] == "| " + " | ".join(["---"] * len(shown[0])) + " |"
    again = to_html(copied["Markdown"], "t", Path())
    assert "&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt; |" in again and "<strong>" in again
    assert copied["LaTeX"].startswith("% \\usepackage{booktabs}\n\\begin{tabular}{" + "l" + "r" * (len(shown[0]) - 1))
    assert r"\textless{}script\textgreater{}alert" in copied["LaTeX"] and r"$\pm$" in copied["LaTeX"]
    assert copied["LaTeX"].count(r" \\" + "\n") == len(shown)


def test_a_number_opens_its_cells(opened: Opened, folder: Path) -> None:
    page = opened()
    link = page.locator("a.cell[data-cell='flow/4/fd_corrected'], a.cell[data-cell='flow/7/fd_corrected']").first
    nfe = int((link.get_attribute("data-cell") or "").split("/")[1])
    link.click()
    dialog = page.locator("dialog")
    expect(dialog.locator("h2")).to_have_text(f"{SCORE} of flow at NFE {nfe}")
    rows = [line.locator("td").all_inner_texts() for line in dialog.locator(".rows tbody tr").all()]
    expected = [
        [r["train_seed"], r["sample_seed"], r["steps"], r["nfe"], f"{float(r['value']):.6g}", "0.1", "c" * 12]
        for r in cells(folder, "flow", nfe)
    ]
    assert rows == expected and len(rows) == 3
    said = dialog.inner_text()
    assert f"classifier {'e' * 64}" in said and "f" * 64 in said
    yaml = dialog.locator("pre").first.inner_text()
    assert "curves:\n  flow:\n" in yaml and "    discretization: flow\n" in yaml and "models:\n  edm:" in yaml
    assert page.url.endswith(f"#cell/flow/{nfe}/fd_corrected")
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(page).to_have_url(re.compile("^[^#]*$"))


def test_a_difference_opens_both_curves_and_the_pairs(opened: Opened, folder: Path) -> None:
    page = opened(address="#cell/rho_3/7/fd_corrected/edm/7")
    dialog = page.locator("dialog")
    expect(dialog.locator("h2")).to_have_text(f"{SCORE}: rho_3 at NFE 7 minus edm at NFE 7")
    own, base = (cells(folder, name, 7) for name in ("rho_3", "edm"))
    found = [float(text) for text in dialog.locator(".rows").last.locator("td:nth-child(3)").all_inner_texts()]
    wanted = [float(a["value"]) - float(b["value"]) for a, b in zip(own, base, strict=True)]
    assert found == pytest.approx(wanted, abs=1e-5)
    assert page.locator("a.cell[data-cell='rho_3/7/fd_corrected/edm/7']").count() >= 1


def test_the_reason_of_a_failure_is_literal_text(opened: Opened) -> None:
    page = opened(address="#cell/failing/7/fd_corrected")
    assert " ".join(HOSTILE.split()) in page.locator("dialog .facts").inner_text()


@pytest.mark.parametrize(
    "address", ["#cell/nobody/7/fd_corrected", "#cell/", "#cell/edm/7/<script>", "#cell/edm/x/fd", "#cell/%"]
)
def test_an_invalid_cell_address_is_ignored(opened: Opened, address: str) -> None:
    drawn(opened(address=address))


def test_charts_follow_the_colour_scheme(opened: Opened) -> None:
    page = drawn(opened(color_scheme="dark"))
    label = f"{METHODS} .role-axis-label text >> nth=0"
    assert page.locator(label).get_attribute("fill") == "#e4e6e9"
    page.emulate_media(color_scheme="light")
    expect(page.locator(label)).to_have_attribute("fill", "#1c1e21")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_printing_shows_the_pictures(opened: Opened) -> None:
    page = drawn(opened())
    page.emulate_media(media="print")
    expect(page.locator(f"{METHODS} > img")).to_be_visible()
    for hidden in (f"{METHODS} .drawn", "#filter", ".tools >> nth=0", "nav"):
        expect(page.locator(hidden)).to_be_hidden()


def test_without_scripts_the_page_has_pictures_and_links_to_rows(opened: Opened) -> None:
    page = opened(java_script_enabled=False)
    images = page.locator("figure > img")
    assert images.count() >= 10
    for image in images.all():
        expect(image).to_be_visible()
    assert page.locator(".tools, #filter, dialog").count() == 0
    link = page.locator("a.cell[data-cell^='rho_3/']").first
    link.click()
    assert page.url.endswith("#curve-rho_3")
    assert "rho_3" in page.locator("#curve-rho_3").inner_text()


@pytest.mark.parametrize("width", [390, 820, 1400])
def test_the_page_is_no_wider_than_the_screen(opened: Opened, width: int) -> None:
    page = drawn(opened(width))
    drawn(page, "#figure-oracle_errors")
    drawn(page, "#figure-ablation_rho")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.locator("a.cell").first.click()
    box = page.locator("dialog").bounding_box()
    assert box and box["x"] >= 0 and box["x"] + box["width"] <= width


def test_the_first_column_stays_visible(opened: Opened) -> None:
    page = opened(390)
    table = page.locator(table_of(page, "Methods"))
    assert table.evaluate("box => box.scrollWidth > box.clientWidth")
    before = table.locator("td").first.bounding_box()
    table.evaluate("box => { box.scrollLeft = 150; }")
    after, second = (table.locator("td").nth(i).bounding_box() for i in (0, 1))
    assert before and after and second and after["x"] == pytest.approx(before["x"]) and second["x"] < after["x"] + 60


def test_the_page_is_well_structured(opened: Opened) -> None:
    """One title, headings without gaps, unique ids, working links, and a text for every picture."""
    page = opened()
    levels = page.locator("main :is(h1, h2, h3, h4)").evaluate_all("found => found.map(h => Number(h.tagName[1]))")
    assert levels.count(1) == 1 and all(b - a <= 1 for a, b in pairwise(levels))
    ids = page.locator("[id]").evaluate_all("found => found.map(e => e.id)")
    assert len(ids) == len(set(ids))
    targets = page.locator("nav a, .skip").evaluate_all("found => found.map(a => decodeURI(a.hash.slice(1)))")
    assert len(targets) > 10 and set(targets) <= set(ids)
    assert page.locator("img:not([alt]), img[alt='']").count() == 0
    assert page.title() == HOSTILE
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"


def test_the_policy_blocks_other_scripts_and_requests(browser: Browser, folder: Path) -> None:
    page = browser.new_page()
    page.goto((folder / "report.html").as_uri())
    page.evaluate("document.body.append(Object.assign(document.createElement('script'), {text: 'window.ran = 1'}))")
    page.evaluate("document.body.setAttribute('onclick', 'window.ran = 2'); document.body.click()")
    assert page.evaluate("window.ran") is None
    assert page.evaluate("fetch('https://example.org').then(() => 'answered', () => 'refused')") == "refused"
    page.close()
