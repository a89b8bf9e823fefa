"""Opens pages of reports in headless Chromium as a reader would, and says what is wrong with them.

    pip install playwright==1.55.0      # no `playwright install`: Debian's chromium is used
    apt-get install chromium
    python scripts/report/check_page.py reports/*/report.html
    python scripts/report/check_page.py --screenshots shots --large LARGE.html reports/*/report.html

Checked: no script error and no request, headings sort and filters work by mouse and by keyboard, the full network stays
on top, columns can be hidden, answers can be searched, every link of the contents leads somewhere, nothing is wider than
the window at 390 and 1,280 pixels, and every table is whole on paper. `--large`: a page that must also open in under 2 s
and be under 5 MB (`crates/report/tests/it/page.rs` writes one of 400 rows).

Without chromium or playwright it says so and checks nothing.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path

MOST_SECONDS = 2.0
MOST_BYTES = 5_000_000

# Names of elements whose right edge is beyond the window, those within something that scrolls left out.
TOO_WIDE = """() => {
  const width = document.documentElement.clientWidth;
  const scrolls = (element) => {
    for (let at = element.parentElement; at; at = at.parentElement) {
      if (["auto", "scroll", "hidden"].includes(getComputedStyle(at).overflowX)) return true;
    }
    return false;
  };
  return Array.from(document.querySelectorAll("body *"))
    .filter((element) => element.getBoundingClientRect().right > width + 1 && !scrolls(element))
    .map((element) => `${element.tagName}.${element.getAttribute("class")} ${element.textContent.slice(0, 40)}`)
    .slice(0, 5);
}"""
# What scrolls on a screen is cut on paper.
CUT = """() => Array.from(document.querySelectorAll("body *"))
  .filter((element) => getComputedStyle(element).overflowX !== "visible" && !element.classList.contains("unseen"))
  .filter((element) => element.scrollWidth > element.clientWidth + 1 || element.scrollHeight > element.clientHeight + 1)
  .filter((element) => element.clientWidth > 0 && !(element instanceof SVGElement) && element.tagName !== "INPUT")
  .map((element) => `${element.tagName}.${element.className} ${element.textContent.trim().slice(0, 40)}`)
  .slice(0, 5)"""
FIRST_ROWS = """(table) => Array.from(table.tBodies[0].rows).filter((row) => !row.hidden)
  .map((row) => [row.className, ...Array.from(row.cells).map((cell) => cell.textContent)])"""


class Page:
    """A page with what was found wrong."""

    def __init__(self, page, path: Path) -> None:
        self.page, self.path, self.faults = page, path, []
        page.on("pageerror", lambda error: self.fault(f"script error: {error}"))
        page.on("console", lambda message: message.type == "error" and self.fault(f"console: {message.text}"))
        page.on("request", lambda request: request.url.startswith("file:") or self.fault(f"asks for {request.url}"))

    def fault(self, text: str) -> None:
        self.faults.append(text)

    def expect(self, holds: bool, text: str) -> None:
        if not holds:
            self.fault(text)

    def open(self, width: int, height: int, **media) -> float:
        self.page.set_viewport_size({"width": width, "height": height})
        self.page.emulate_media(**{"media": "screen", "color_scheme": "light", **media})
        start = time.monotonic()
        self.page.goto(self.path.resolve().as_uri(), wait_until="load")
        # Laid out and drawn, not only read.
        self.page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        return time.monotonic() - start


def rows(table) -> list[list[str]]:
    return table.evaluate(FIRST_ROWS)


def numbers(table, column: int) -> list[float]:
    texts = [row[column + 1] for row in rows(table) if row[0] != "full"]
    found = []
    for text in texts:
        try:
            found.append(float(text.split()[0].rstrip("x%*°")))
        except (ValueError, IndexError):
            continue
    return found


def check_table(page: Page) -> None:
    table = page.page.locator("table.data").first
    if table.count() == 0:
        return page.fault("there is no table")
    pinned = [row for row in rows(table) if row[0] == "full"]
    headings = table.locator("thead button").all_inner_texts()
    sortable = next((at for at, name in enumerate(headings) if name.startswith("achieved")), None)
    if sortable is None:
        return None
    before = rows(table)
    button = table.locator("thead button").nth(sortable)
    heading = table.locator("thead th").nth(sortable)
    for way, press in (("mouse", button.click), ("keyboard", lambda: (button.focus(), page.page.keyboard.press("Enter")))):
        press()
        page.expect(heading.get_attribute("aria-sort") == "descending", f"{way}: a heading does not say how it is sorted")
        down = numbers(table, sortable)
        page.expect(down == sorted(down, reverse=True), f"{way}: not sorted downwards: {down}")
        press()
        up = numbers(table, sortable)
        page.expect(up == sorted(up), f"{way}: not sorted upwards: {up}")
        page.expect([row for row in rows(table)[: len(pinned)]] == pinned, f"{way}: the full network is not on top")
        press()
        page.expect(rows(table) == before, f"{way}: the third press does not bring the order back")

    filter_box = page.page.locator("[data-filter]").first
    filter_box.focus()
    # The last row's strategy, which not every row has.
    word = before[-1][1].split()[0].lower()
    page.page.keyboard.type(word)
    left = rows(table)
    page.expect(len(left) < len(before) or len(before) < 3, "filtering by a word leaves every row")
    page.expect(all(row[0] == "full" or word in " ".join(row).lower() for row in left), "the filter leaves other rows")
    page.expect([row for row in left if row[0] == "full"] == pinned, "the filter removes the full network")
    filter_box.fill("achieved>1.5")
    page.expect(all(number > 1.5 for number in numbers(table, sortable)), "filtering by a number leaves others")
    filter_box.fill("")
    page.expect(rows(table) == before, "an empty filter does not show every row")

    page.page.locator("details.columns summary").first.click()
    boxes = page.page.locator("[data-columns]").first.locator("input")
    number = int(boxes.first.get_attribute("value"))
    cell = table.locator("tbody tr").first.locator("th, td").nth(number - 1)
    was = cell.is_visible()
    boxes.first.click()
    page.expect(cell.is_visible() != was, "a column is not hidden or shown by its box")
    boxes.first.press("Space")
    page.expect(cell.is_visible() == was, "a box does not work by keyboard")
    page.page.locator("details.columns summary").first.click()


def check_contents(page: Page) -> None:
    dead = page.page.evaluate(
        "() => Array.from(document.querySelectorAll('a[href^=\"#\"]')).map((a) => a.getAttribute('href'))"
        ".filter((href) => !document.getElementById(href.slice(1)))"
    )
    page.expect(not dead, f"links lead nowhere: {dead[:5]}")
    page.expect(page.page.locator("nav a").count() > 3, "there is no contents list")
    unnamed = page.page.evaluate(
        "() => Array.from(document.querySelectorAll('input, select, button, svg[role], table'))"
        ".filter((e) => !(e.labels?.length || e.ariaLabel || e.textContent.trim() || e.caption)).map((e) => e.outerHTML.slice(0, 80))"
    )
    page.expect(not unnamed, f"a screen reader has no name for {unnamed[:3]}")


def check_answers(page: Page) -> None:
    search = page.page.locator("#search")
    if search.count() == 0:
        return
    page.expect(page.page.locator(".pair").count() > 0, "no answers are shown")
    # From full network against full network to a strategy whose answers differ.
    options = page.page.locator("#right option").count()
    page.page.locator("#right").select_option(index=options - 1)
    differing = page.page.locator("#differing")
    differing.focus()
    page.page.keyboard.press("Space")
    if page.page.locator(".pair").count() > 0:
        page.expect(page.page.locator(".pair mark").count() > 0, "words that differ are not marked")
    differing.press("Space")
    search.fill("surely no answer says this")
    page.expect(page.page.locator(".pair").count() == 0, "searching finds what is not there")
    search.fill("")


def check_paper(page: Page, shots: Path | None) -> None:
    # A4 across, less its margins.
    page.open(1032, 700, media="print")
    page.page.evaluate("() => dispatchEvent(new Event('beforeprint'))")
    wide = page.page.evaluate(TOO_WIDE)
    page.expect(not wide, f"wider than paper: {wide}")
    cut = page.page.evaluate(CUT)
    page.expect(not cut, f"cut on paper: {cut}")
    folded = page.page.evaluate("() => document.querySelectorAll('details:not([open]):not(.columns)').length")
    page.expect(folded == 0, f"{folded} parts are folded away on paper")
    if shots:
        page.page.pdf(path=shots / f"{page.path.parent.name}.pdf", prefer_css_page_size=True)


def check(browser, path: Path, shots: Path | None, is_large: bool) -> list[str]:
    page = Page(browser.new_page(), path)
    if is_large:
        seconds = min(page.open(1280, 800) for _ in range(3))
        size = path.stat().st_size
        print(f"{path}: {size / 1e6:.2f} MB, opens in {seconds:.2f} s")
        page.expect(seconds < MOST_SECONDS, f"opens in {seconds:.2f} s, not under {MOST_SECONDS}")
        page.expect(size < MOST_BYTES, f"has {size} bytes, not under {MOST_BYTES}")
    name = path.parent.name
    for width, height, scheme in ((1280, 800, "light"), (1280, 800, "dark"), (390, 844, "light")):
        page.open(width, height, color_scheme=scheme)
        wide = page.page.evaluate(TOO_WIDE)
        page.expect(not wide, f"wider than {width} pixels: {wide}")
        overflow = page.page.evaluate("() => document.documentElement.scrollWidth - innerWidth")
        page.expect(overflow <= 0, f"scrolls sideways by {overflow} at {width} pixels")
        if shots:
            page.page.screenshot(path=shots / f"{name}-{width}-{scheme}.png", full_page=True)
            page.page.screenshot(path=shots / f"{name}-{width}-{scheme}-first.png")
    page.open(1280, 800)
    check_table(page)
    check_contents(page)
    check_answers(page)
    check_paper(page, shots)
    page.page.close()
    return page.faults


def main() -> int:
    arguments = argparse.ArgumentParser(description="Checks pages of reports in headless Chromium.")
    arguments.add_argument("pages", nargs="*", type=Path)
    arguments.add_argument("--large", action="append", default=[], type=Path)
    arguments.add_argument("--screenshots", type=Path)
    given = arguments.parse_args()
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        sync_playwright = None
    if chromium is None or sync_playwright is None:
        print("not checked: " + ("chromium is not installed" if chromium is None else "playwright is not installed"))
        return 0
    if given.screenshots:
        given.screenshots.mkdir(parents=True, exist_ok=True)
    failed = 0
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for path in [*given.large, *given.pages]:
            faults = check(browser, path, given.screenshots, path in given.large)
            failed += bool(faults)
            print(f"{path}: " + ("good" if not faults else "\n  " + "\n  ".join(faults)))
        browser.close()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
