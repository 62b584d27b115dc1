"""How large the page of a prompt is, and how long a browser takes to open it and to answer a click.

    python -m benchmarks.pages [--tokens 7,64,512] [--samples N]

Numbers of Qwen3-0.6B's shape (28 layers, 16 heads, two distances), drawn from a log-normal distribution: what a page
costs does not depend on what they are. Opening is measured by the browser itself, from the navigation to the end of
the load event, when everything is drawn; a headless Chromium without a GPU, a fresh tab each time, median and range.
"""

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LAYERS, HEADS = 28, 16
FLAGS = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync")
LOADED = "() => performance.getEntriesByType('navigation')[0].loadEventEnd"
CLICK = """() => {
  const started = performance.now();
  document.querySelector('#strip button:last-of-type').click();
  return performance.now() - started;
}"""
HEADING = "| tokens | cells | page (MB) | written in (s) | opens in (ms) | a click (ms) |\n|---|---|---|---|---|---|"


def write_page(tokens: int, path: Path) -> float:
    """The page of a prompt of so many tokens; the seconds that writing took."""
    import numpy as np

    from engine import write_report
    from engine.tables.table import build_table, variant_names

    random = np.random.default_rng(0)
    distances = np.exp(random.normal(-4, 1.5, (LAYERS, tokens, 2 + HEADS, 2))).astype(np.float32)
    pieces = [f" token{number}" for number in range(tokens)]
    axes: dict[str, Any] = {"layers": range(LAYERS), "positions": range(tokens), "variants": variant_names(HEADS)}
    table = build_table(distances, pieces=pieces, **axes)
    started = time.perf_counter()
    write_report(table, path)
    return time.perf_counter() - started


def opened(browser: Any, path: Path) -> tuple[float, float]:
    """Milliseconds until the page is drawn, and that a click on its last token takes."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(path.as_uri())
    page.wait_for_function("performance.getEntriesByType('navigation')[0].loadEventEnd > 0")
    times = page.evaluate(LOADED), page.evaluate(CLICK)
    page.close()
    return times


def line(browser: Any, tokens: int, folder: Path, samples: int) -> str:
    """A line of the table."""
    path = folder / f"{tokens}.html"
    seconds = write_page(tokens, path)
    loads, clicks = zip(*(opened(browser, path) for _ in range(samples)), strict=True)
    cells = LAYERS * tokens * (2 + HEADS)
    opens = f"{statistics.median(loads):.0f} ({min(loads):.0f} to {max(loads):.0f})"
    size = path.stat().st_size / 1e6
    return f"| {tokens:,} | {cells:,} | {size:.2f} | {seconds:.2f} | {opens} | {statistics.median(clicks):.0f} |"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table; 2 where there is no browser."""
    parsed = _parser().parse_args(arguments)
    browser_path = shutil.which("chromium") or shutil.which("google-chrome")
    if browser_path is None:
        print("there is no Chromium here; install it (apt-get install chromium)", file=sys.stderr)
        return 2
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play, tempfile.TemporaryDirectory() as folder:
        browser = play.chromium.launch(executable_path=browser_path, args=list(FLAGS))
        print(f"Chromium {browser.version}, {parsed.samples} samples\n\n{HEADING}")
        for tokens in parsed.tokens:
            print(line(browser, tokens, Path(folder), parsed.samples), flush=True)
        browser.close()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pages", description="What a page costs.")
    parser.add_argument("--tokens", type=_numbers, default=[7, 64, 512], help="lengths of prompts (default: 7,64,512)")
    parser.add_argument("--samples", type=int, default=5, help="how often each is opened (default: %(default)s)")
    return parser


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


if __name__ == "__main__":
    sys.exit(main())
