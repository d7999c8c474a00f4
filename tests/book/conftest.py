"""A real browser for the tests of the book; without one they say so and skip."""

import shutil
import tempfile
from pathlib import Path

import pytest

from book import build

FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
NO_BROWSER = "no browser: `python -m playwright install chromium`, or on Debian `apt-get install chromium`"

AXE = "axe-core@4.14.1"
AXE_SHA512 = "FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ=="

# Runs in the page: what keeps readers out, by axe-core's own judgement, with the place where it was found. Equations
# are replaced by a word first: they are MathJax's own affair, thousands of elements, and took half of the time.
AUDIT = """async () => {
    document.querySelectorAll("mjx-container").forEach(maths => maths.replaceChildren("maths"));
    return (await axe.run(document, {resultTypes: ["violations"], preload: false})).violations
        .filter(found => ["serious", "critical"].includes(found.impact))
        .flatMap(found => found.nodes.map(node => `${found.id}: ${node.html.slice(0, 150)} ${node.failureSummary}`));
}"""


@pytest.fixture(scope="session")
def audit():
    """`audit(page)` lists what axe-core calls serious or critical on a page. npm fetches it, once."""
    kept = build.BOOK / "_build" / "axe.min.js"
    if not kept.exists():
        kept.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
            try:
                build.unpack(AXE, AXE_SHA512, ("package/axe.min.js",), Path(folder))
            except build.MathJaxOutOfReach as reason:
                pytest.skip(str(reason))
            (Path(folder) / "package" / "axe.min.js").rename(kept)
    source = kept.read_text(encoding="utf-8")

    def run(page) -> list[str]:
        page.evaluate(source)
        return page.evaluate(AUDIT)

    return run


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
