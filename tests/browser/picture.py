"""A picture of a report as a browser shows it: python tests/browser/picture.py PAGE.html OUT.png

docs/pictures/report.png was made so, of the run that benchmarks/long_run.py writes.
"""

import sys
from pathlib import Path

from chromium import PATIENCE_MS, find_chromium
from playwright.sync_api import sync_playwright

SIZE_PX = {"width": 1280, "height": 1560}
"""Of the top of the page: head, health and the first curves."""


def main(page_file: str, out: str) -> None:
    """Open the page without network, let all figures be drawn, take the picture."""
    with sync_playwright() as running:
        browser = running.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox"])
        page = browser.new_context(viewport=SIZE_PX, offline=True).new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.goto(Path(page_file).absolute().as_uri())
        page.wait_for_function("Bokeh.documents.length == 1 && Bokeh.documents[0].is_idle")
        page.screenshot(path=out)
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
