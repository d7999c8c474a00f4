"""A real browser for the tests of the book; without one they say so and skip."""

import shutil
from pathlib import Path

import pytest

FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
NO_BROWSER = "no browser: `python -m playwright install chromium`, or on Debian `apt-get install chromium`"


@pytest.fixture(scope="session")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="no Playwright: pip install -e '.[all]'")
    with playwright.sync_playwright() as tool:
        path = tool.chromium.executable_path
        if not Path(path).exists():
            names = ("chromium", "chromium-browser", "google-chrome", "chrome")
            path = next(filter(None, map(shutil.which, names)), None)
        if path is None:
            pytest.skip(NO_BROWSER)
        chromium = tool.chromium.launch(executable_path=path, headless=True, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def page(browser):
    """A page of a laptop's size, on which a test may wait 20 seconds for anything."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme="light")
    context.set_default_timeout(20_000)
    yield context.new_page()
    context.close()
