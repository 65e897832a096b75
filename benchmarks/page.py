"""Times and size of the report's page with 60 curves and 5,000 rows of results, as a Markdown table with goals.

python -m benchmarks.page [--study NAME]: of made-up results, or of the report of a study. Needs Chromium.
"""

import argparse
import os
import shutil
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from playwright.sync_api import Page, sync_playwright

from pipeline.report.build import build
from tests.report.studies import made_up_study

CURVES = 60
SEEDS = [0, 1, 2, 3]
REPETITIONS = 5
SLOW = 60_000  # milliseconds: timeout for a chart

Row = tuple[str, str, str]  # quantity, value, goal


def made_up(folder: Path) -> tuple[Path, list[Row]]:
    """The page of made-up results, and the time to build it."""
    curves: dict[str, dict] = {"edm": {"model": "edm", "method": "EDM"}, "flow": {"model": "edm", "method": "flow"}}
    curves["flow"]["discretization"] = "flow"
    curves |= {f"rho_{i}": {"model": "edm", "rho": 1 + i / 4} for i in range(CURVES - len(curves))}
    os.chdir(folder)
    paths = made_up_study(folder, curves, SEEDS)
    start = time.perf_counter()
    build(paths)
    seconds = time.perf_counter() - start
    rows = len((paths.reports / "results.csv").read_text(encoding="utf-8").splitlines()) - 1
    return folder / paths.reports / "report.html", [
        ("curves and rows of results", f"{CURVES} and {rows}", ""),
        ("building the report", f"{seconds:.1f} s", "< 15 s"),
    ]


def opened(page: Page, address: str) -> dict[str, float]:
    """Milliseconds until the page is interactive, and for the first actions on it."""
    page.goto(address)
    page.wait_for_selector("html.interactive")
    marks = "performance.getEntriesByName('interactive')[0].startTime"
    found = {"interactive after": page.evaluate(marks)}
    click = """element => new Promise(done => {
        const start = performance.now();
        element.click();
        requestAnimationFrame(() => setTimeout(() => done(performance.now() - start)));
    })"""
    found["sorting the longest table"] = page.locator("main .wide th").evaluate_all(
        f"""found => ({click})(found.reduce((a, b) =>
            b.closest("table").rows.length > a.closest("table").rows.length ? b : a))"""
    )
    for name in page.locator("figure:has(script.chart)").evaluate_all("found => found.map(f => f.id)"):
        start = time.perf_counter()
        page.locator(f"#{name}").scroll_into_view_if_needed()
        page.locator(f"#{name}[data-ready]").wait_for(state="attached", timeout=SLOW)
        own = (time.perf_counter() - start) * 1000
        found["the slowest chart, scrolled to"] = max(own, found.get("the slowest chart, scrolled to", 0))
    found["filtering with all charts drawn"] = page.locator("#filter input[type=checkbox]").first.evaluate(click)
    return found


def measured(path: Path) -> list[Row]:
    goals = {"interactive after": "< 1000 ms"}
    with sync_playwright() as playwright:
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        runs = []
        for _ in range(REPETITIONS):
            page = browser.new_page(viewport={"width": 1200, "height": 900})
            runs.append(opened(page, path.resolve().as_uri()))
            page.close()
        browser.close()
    times = [
        (what, f"{median(run[what] for run in runs):.0f} ms (of {REPETITIONS})", goals.get(what, "stated"))
        for what in runs[0]
    ]
    return [("size of the page", f"{path.stat().st_size / 1e6:.2f} MB", "< 5 MB"), *times]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study")
    study = parser.parse_args().study
    with TemporaryDirectory() as folder:
        path, rows = (Path("reports", study, "report.html"), []) if study else made_up(Path(folder))
        rows = [*rows, *measured(path)]
    print("| quantity | value | goal |\n| --- | --- | --- |")
    for row in rows:
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
