"""Debian's Chromium, without network, and the page of a rich run in it."""

import pytest
from chromium import PATIENCE_MS, find_chromium
from rich_run import write_rich_run

from megatron_medx.report.write import write_report


@pytest.fixture(scope="session")
def browser():
    """One Chromium for all tests."""
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def page_file(tmp_path_factory):
    """The page of a run with something of everything, against its parent."""
    root = tmp_path_factory.mktemp("browser")
    parent = write_rich_run(root / "parent", num_steps=80, shift=0.3, seed=7)
    return write_report(write_rich_run(root / "child"), against=parent)


@pytest.fixture(scope="session")
def page(browser, page_file):
    """The page on a large screen, for what leaves it as it is."""
    with browser.new_context(viewport={"width": 1280, "height": 900}, offline=True) as context:
        yield open_page(context, page_file)


@pytest.fixture
def opened(browser, page_file):
    """Opens the page anew, at a width in px."""
    contexts = []

    def open_at(width_px: int = 1280, **settings):
        contexts.append(browser.new_context(viewport={"width": width_px, "height": 900}, offline=True, **settings))
        return open_page(contexts[-1], page_file)

    yield open_at
    for context in contexts:
        context.close()


def open_page(context, page_file):
    """The page once all its figures are drawn, with what it `asked` for and `complained` of."""
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.asked, page.complained = [], []
    page.on("request", lambda request: page.asked.append(request.url))
    page.on("pageerror", lambda error: page.complained.append(str(error)))
    page.on("console", lambda said: page.complained.append(said.text) if said.type != "log" else None)
    page.goto(page_file.as_uri())
    page.wait_for_function("Bokeh.documents.length == 1 && Bokeh.documents[0].is_idle")
    return page
