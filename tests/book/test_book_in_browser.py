"""The web book as its readers get it: built from the committed notebooks, opened from the disk in a real browser.

Needs npm once (it brings MathJax) and a browser; without one of them the tests say so and skip.
"""

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from book import build
from book.gallery import anchor
from difflesson import conventions
from tools.address import repository

ROOT = build.ROOT
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
CHAPTERS = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in NOTEBOOKS}
DESK = ["in_practice", "conventions", "cheat_sheet", "figures", "teaching"]
PAGES = ["index", *DESK, "ledger", "references", *(f"notebooks/{name}" for name in CHAPTERS)]
PHONE, LAPTOP = {"width": 390, "height": 844}, {"width": 1280, "height": 900}

# Runs in the page: what a reader would miss on it.
LOOK = """async () => {
    if (window.MathJax) await MathJax.startup.promise;
    const all = selector => [...document.querySelectorAll(selector)];
    const bare = element => !element.querySelector("mjx-container");
    return {
        equations: all("article .math").length,
        notRendered: all(".math").filter(bare).map(e => e.textContent),
        wrong: all("mjx-merror").map(e => e.dataset.mjxError || e.textContent),
        references: all("mjx-container a[href]").map(a => a.getAttribute("href")),
        targets: all("[id^='mjx-eqn']").map(e => "#" + encodeURIComponent(e.id)),
        noAlt: all("article img").filter(i => !i.alt.trim()).map(i => i.src),
        noCaption: all("article img").filter(i => !i.closest("figure")?.querySelector("figcaption")?.textContent.trim())
            .map(i => i.alt),
        notLinked: all("article figure img").filter(i => !i.closest("a")).map(i => i.alt),
        broken: all("article img").filter(i => i.complete && !i.naturalWidth).map(i => i.src),
        open: all("article details[open]").length,
        folded: all("article details:not([class])").length,
        buttons: all(".bd-header-article a").map(a => a.href),
        plainCode: all("article details pre").filter(e => !e.querySelector("span")).map(e => e.textContent),
    };
}"""

# Runs in the page: Deeper, folded, would not show what is wrong in it.
UNFOLD = "document.querySelectorAll('details.deeper').forEach(details => details.open = true)"

# Runs in the page: equations and printed lines that one would have to scroll.
WIDE = """() => [...document.querySelectorAll("div.math, div.math > mjx-container, .cell_output pre")]
    .filter(box => box.scrollWidth > box.clientWidth + 1)
    .map(box => `${box.scrollWidth - box.clientWidth}: ${box.textContent}`)"""

# Runs in the page: formulas that a line break parts from their punctuation.
PARTED = """() => [...document.querySelectorAll("span.math")].filter(formula => {
    const range = document.createRange(), text = formula.nextSibling;
    if (text?.nodeType !== Node.TEXT_NODE || !/^[.,;:!?)]/.test(text.data)) return false;
    range.setStart(text, 0);
    range.setEnd(text, 1);
    return range.getBoundingClientRect().left < formula.getBoundingClientRect().left;
}).map(formula => formula.parentElement.textContent.slice(0, 80))"""

# Runs in the page: until what a new size of the window changes has changed.
SETTLED = "() => new Promise(done => setTimeout(done, 400))"  # columns fold in a moment, and the theme then looks

# Runs in the page: what is wider than it, and equations whose beginning cannot be scrolled to.
SQUEEZE = """() => ({
    page: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    cut: [...document.querySelectorAll(".math")].filter(box => {
        const equation = box.querySelector("mjx-container")?.getBoundingClientRect();
        return equation && equation.width && equation.left < box.getBoundingClientRect().left - 1;
    }).map(box => box.textContent),
})"""

# Runs in the page: text whose contrast with what it stands on is under 4.5 to 1, as WCAG computes it.
PALE = """() => {
    const canvas = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
    const read = new Map();  // a page has few colours, and each reading waits for the canvas
    const rgba = colour => {
        if (!read.has(colour)) {
            canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
            read.set(colour, [...canvas.getImageData(0, 0, 1, 1).data]);
        }
        return read.get(colour);
    };
    const light = ([r, g, b]) => [r, g, b].map(c => c / 255)
        .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
        .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
    const under = element => {
        for (let e = element; e; e = e.parentElement) {
            const colour = rgba(getComputedStyle(e).backgroundColor);
            if (colour[3] === 255) return colour;
        }
        return [255, 255, 255];
    };
    const speaks = e => [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    const found = new Set();
    for (const e of document.querySelectorAll("article *, nav *")) {
        if (!e.checkVisibility() || e.closest(".headerlink, mjx-assistive-mml")) continue;
        if (!speaks(e) && !e.matches("mjx-c")) continue;
        const [a, b] = [light(rgba(getComputedStyle(e).color)), light(under(e))].sort((x, y) => y - x);
        const contrast = (a + 0.05) / (b + 0.05);
        const what = `${e.tagName}.${e.className} ${contrast.toFixed(1)}: ${e.textContent.slice(0, 20)}`;
        if (contrast < 4.5) found.add(what);
    }
    return [...found];
}"""


class Book(NamedTuple):
    html: Path
    status: int
    messages: str
    seconds: float

    def page(self, name: str) -> str:
        return (self.html / f"{name}.html").as_uri()


class Visit(NamedTuple):
    """What the browser saw of the whole book, by page."""

    laptop: dict[str, dict]
    wide: dict[str, list[str]]
    parted: dict[str, list[str]]
    dark: dict[str, list[str]]
    phone: dict[str, dict]
    complaints: list[str]
    outside: list[str]
    found: list[str]
    locked: dict[str, list[str]]


@pytest.fixture(scope="module")
def book(tmp_path_factory) -> Book:
    try:
        build.vendor_mathjax()
    except build.MathJaxOutOfReach as reason:
        pytest.skip(str(reason))
    folder = tmp_path_factory.mktemp("book")
    command = [sys.executable, "-m", "book.build", str(folder)]
    start = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    return Book(folder / "html", done.returncode, done.stdout + done.stderr, time.perf_counter() - start)


@pytest.fixture(scope="module")
def visit(book: Book, page, audit) -> Visit:
    if book.status != 0:
        pytest.skip("the book did not build")
    seen = Visit({}, {}, {}, {}, {}, [], [], [], {})
    page.on("console", lambda said: seen.complaints.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: seen.complaints.append(str(error)))
    page.on("requestfailed", lambda request: seen.complaints.append(f"not found: {request.url}"))
    here = ("file:", "data:", "blob:")
    page.on("request", lambda request: request.url.startswith(here) or seen.outside.append(request.url))
    for name in PAGES:
        page.goto(book.page(name))
        seen.laptop[name] = page.evaluate(LOOK)
        page.evaluate(UNFOLD)
        page.evaluate("document.documentElement.dataset.theme = 'dark'")  # as the button does, without a second load
        page.wait_for_timeout(300)  # colours fade over
        seen.dark[name] = page.evaluate(PALE)
        seen.wide[name] = page.evaluate(WIDE)
        seen.parted[name] = page.evaluate(PARTED)
        page.evaluate("document.documentElement.dataset.theme = 'light'")
        page.set_viewport_size(PHONE)
        page.evaluate(SETTLED)
        seen.phone[name] = page.evaluate(SQUEEZE)
        page.set_viewport_size(LAPTOP)
        page.evaluate(SETTLED)
        seen.locked[name] = audit(page)  # last, since it takes the equations out
    page.goto(book.page("search") + "?q=guidance")
    page.wait_for_function("document.querySelector('#search-results .search-summary')?.innerText.includes('found')")
    seen.found.extend(page.evaluate("[...document.querySelectorAll('#search-results li a')].map(a => a.href)"))
    return seen


def in_markdown(name: str, pattern: str) -> list[str]:
    """What `pattern` finds in the Markdown cells of a chapter."""
    cells = CHAPTERS[name]["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return re.findall(pattern, text)


def test_the_book_builds_without_a_warning_in_under_a_minute(book: Book):
    assert book.status == 0, book.messages
    assert "WARNING" not in book.messages
    assert book.seconds < 60


def test_every_equation_is_rendered(visit: Visit):
    for name, seen in visit.laptop.items():
        assert seen["notRendered"] == [], name
        assert seen["wrong"] == [], name
    for name in CHAPTERS:
        written = in_markdown(name, r"\$\$[^$]+\$\$|\$[^$]+\$")
        headings = " ".join(in_markdown(name, r"(?m)^## Deeper: (.*)$"))  # once more in the links at the top
        linked = re.findall(r"\$[^$]+\$", headings)
        assert visit.laptop[f"notebooks/{name}"]["equations"] == len(written) + len(linked) > 0, name


def test_every_numbered_equation_is_a_target_and_every_reference_leads_to_one(visit: Visit):
    for name in CHAPTERS:
        seen = visit.laptop[f"notebooks/{name}"]
        labels = in_markdown(name, r"\\label\{([^}]+)\}")
        assert sorted(seen["targets"]) == sorted(f"#mjx-eqn%3A{label}" for label in labels), name
        assert len(seen["references"]) == len(in_markdown(name, r"\\eqref\{")), name
        assert set(seen["references"]) <= set(seen["targets"]), name


def test_a_reference_jumps_to_its_equation(book: Book, page, visit: Visit):
    name = next(iter(CHAPTERS))
    page.goto(book.page(f"notebooks/{name}"))
    page.evaluate("() => MathJax.startup.promise")
    link = page.locator("mjx-container a[href]:visible").last
    target = link.get_attribute("href")
    link.click()
    page.wait_for_timeout(300)  # Deeper, where it leads there, opens first
    box = page.locator(f"[id='{target[1:].replace('%3A', ':')}']").bounding_box()
    header = page.locator(".bd-header-article").bounding_box()
    assert page.url.endswith(target)
    assert header["y"] + header["height"] <= box["y"] + box["height"] <= LAPTOP["height"]


def test_nothing_is_wrong_in_the_console_and_no_request_leaves_the_machine(visit: Visit):
    assert visit.complaints == []
    assert visit.outside == []


def test_nothing_on_any_page_keeps_readers_out(visit: Visit):
    assert visit.locked == {name: [] for name in PAGES}


@pytest.mark.parametrize(
    ("name", "part"),
    [("index", "turn-the-knob"), ("notebooks/00_start_here", "turn-the-knob"), ("notebooks/07_mean_shift", "one-step")],
)
def test_a_part_to_play_with_stands_where_its_figure_sends_to_it_and_is_drawn(book: Book, page, visit, name, part):
    page.goto(book.page(name))
    link = page.locator(f"figcaption a[href='#{part}']")
    if name != "index":  # there it comes first
        assert link.inner_text() == "Play with it, just below."
        link.click()
    page.wait_for_function(f"document.querySelector('#{part} table tbody td:nth-child(2)')?.textContent")
    assert page.locator(f"#{part} canvas").first.bounding_box()["width"] > 400
    assert page.locator("[data-interactive]").count() == page.locator(f"#{part}").count() == 1


def test_the_parts_to_play_with_add_less_than_100_kilobytes(book: Book, visit):
    files = list((book.html / "_static").glob("interactive.*"))
    assert len(files) == 2 and sum(path.stat().st_size for path in files) < 100_000


def test_search_finds_the_pages_that_have_a_word(book: Book, visit: Visit):
    having = [name for name, notebook in CHAPTERS.items() if re.search(r"\bguidance\b", json.dumps(notebook["cells"]))]
    assert len(having) > len(CHAPTERS) / 2
    found = {url.split("#")[0].split("?")[0] for url in visit.found}
    assert {book.page(f"notebooks/{name}") for name in having} <= found


def test_every_figure_has_alt_text_and_a_caption(visit: Visit):
    for name, seen in visit.laptop.items():
        assert (seen["noAlt"], seen["noCaption"], seen["broken"]) == ([], [], []), name


def test_every_figure_leads_to_its_file_or_its_place(visit: Visit):
    assert {name: seen["notLinked"] for name, seen in visit.laptop.items() if seen["notLinked"]} == {}


def test_solutions_are_folded_and_their_code_is_highlighted(visit: Visit):
    for name in CHAPTERS:
        seen = visit.laptop[f"notebooks/{name}"]
        assert seen["open"] == 0, name
        assert seen["folded"] == len(in_markdown(name, "<details>")) > 0, name
        assert seen["plainCode"] == [], name


def test_no_line_begins_with_the_full_stop_of_a_formula(visit: Visit):
    assert {name: parted for name, parted in visit.parted.items() if parted} == {}


def test_on_a_laptop_every_equation_and_every_printed_line_is_seen_whole(visit: Visit):
    assert {name: cut for name, cut in visit.wide.items() if cut} == {}


def test_on_a_phone_no_page_is_wider_than_the_screen_and_no_equation_is_cut(visit: Visit):
    assert visit.phone == {name: {"page": 0, "cut": []} for name in PAGES}


def test_dark_mode_is_two_clicks_away_and_readable(book: Book, page, visit: Visit):
    page.goto(book.page("index"))
    page.locator(".theme-switch-button:visible").click()
    page.locator(".theme-change-button[data-mode=dark]:visible").click()
    page.goto(book.page("ledger"))
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert visit.dark == {name: [] for name in PAGES}


def test_a_chapter_can_be_opened_elsewhere_and_downloaded_as_it_is_committed(book: Book, visit: Visit):
    address = repository(ROOT)
    slug = address.removeprefix("https://github.com/")
    for name in CHAPTERS:
        links = visit.laptop[f"notebooks/{name}"]["buttons"]
        elsewhere = [
            f"https://colab.research.google.com/github/{slug}/blob/main/notebooks/{name}.ipynb",
            f"https://mybinder.org/v2/gh/{slug}/main?urlpath=lab/tree/notebooks/{name}.ipynb",
            f"{address}/blob/main/notebooks/{name}.py",
        ]
        if address:
            assert set(elsewhere) <= set(links)
        else:  # no address is ours yet, so no button leads anywhere
            assert not [link for link in links if link.startswith("http")]
        assert (book.html / "_sources" / "notebooks" / f"{name}.ipynb").as_uri() in links
        downloaded = (book.html / "_sources" / "notebooks" / f"{name}.ipynb").read_bytes()
        assert downloaded == (ROOT / "notebooks" / f"{name}.ipynb").read_bytes()


# --- the pages for the desk ---------------------------------------------------------------------------------


def numbers(page, question: str) -> dict[str, list[float]]:
    """What the converter shows for each convention, with all its digits; what it refuses is not there."""
    rows = page.evaluate(
        "id => [...document.querySelectorAll(`#${id} tr[data-convention]`)]"
        ".map(row => [row.dataset.convention, row.querySelector('data')?.value])",
        question,
    )
    return {name: [float(part) for part in value.split(",")] for name, value in rows if value is not None}


def agree(got: dict[str, list[float]], want: dict) -> None:
    assert got.keys() == want.keys()
    for name, value in want.items():
        value = value if isinstance(value, tuple) else (value,)
        assert got[name] == pytest.approx([float(part) for part in value], rel=1e-12, abs=1e-12), name


def test_the_converter_shows_everybodys_number_as_one_types_and_chooses_by_keyboard(book: Book, page, visit: Visit):
    page.goto(book.page("conventions"))
    agree(numbers(page, "guidance"), {n: conventions.guidance_scale(7.5, "diffusers", n) for n in conventions.GUIDANCE})
    page.locator("#scale").focus()
    page.keyboard.press("ControlOrMeta+A")
    page.keyboard.type("-0.25")
    assert "'diffusers' has no guidance below 1" in page.locator("#guidance output").inner_text()
    page.keyboard.press("Tab")
    page.keyboard.type("ho-s")
    assert page.locator("#guidance output").inner_text() == "gamma = 0.75"
    acting = conventions.GUIDANCE.keys() - conventions.LOWEST.keys()
    agree(numbers(page, "guidance"), {n: conventions.guidance_scale(-0.25, "ho-salimans", n) for n in acting})
    page.locator("#scale-of").select_option("w")
    assert conventions.NO_SINGLE_GAMMA["w"][0] in page.locator("#guidance output").inner_text()


def test_the_converters_network_output_stands_at_its_noise_level(book: Book, page, visit: Visit):
    page.goto(book.page("conventions"))
    page.locator("#level").fill("3")
    page.locator("#level-of").select_option("edm")
    agree(numbers(page, "noise"), {name: conventions.noise_level(3.0, "edm", name) for name in conventions.NOISE})
    level = conventions.noise_level(3.0, "edm")
    value, x = (torch.tensor(v, dtype=torch.float64) for v in (-0.5, 0.2))
    agree(numbers(page, "output"), {n: conventions.convert(value, "eps", n, x, *level) for n in conventions.OUTPUTS})
    page.locator("#level").fill("-1")
    said = page.locator("#noise output").inner_text()
    assert "need alpha, sigma >= 0" in said and "edm runs from 0 to infinity" in said
    assert numbers(page, "noise") == numbers(page, "output") == {}


def test_without_a_script_the_page_of_conventions_has_its_tables_and_says_what_is_missing(book: Book, browser):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(book.page("conventions"))
    assert page.locator("form#guidance").count() == 0 and page.locator("table.table").count() == 4
    assert page.locator("article noscript").is_visible()
    context.close()


def test_the_gallery_has_every_figure_and_each_leads_to_its_place(book: Book, page, visit: Visit):
    page.goto(book.page("figures"))
    page.evaluate("document.querySelectorAll('.gallery img').forEach(image => image.loading = 'eager')")
    page.wait_for_function("[...document.querySelectorAll('.gallery img')].every(image => image.naturalWidth > 0)")
    links = page.evaluate("[...document.querySelectorAll('.gallery figure > a')].map(a => a.getAttribute('href'))")
    outputs = {
        name: [output for cell in chapter["cells"] for output in cell.get("outputs", [])]
        for name, chapter in CHAPTERS.items()
    }
    names = {
        name: [found["figure"] for o in outputs if "figure" in (found := o.get("metadata", {}).get("image/png", {}))]
        for name, outputs in outputs.items()
    }
    assert links == [f"notebooks/{name}.html#{anchor(figure)}" for name, found in names.items() for figure in found]
    for link in links:
        file, _, target = link.partition("#")
        assert f'id="{target}"' in (book.html / file).read_text(encoding="utf-8"), link


def test_the_cheat_sheet_leads_to_every_equation_of_part_two(book: Book, page, visit: Visit):
    page.goto(book.page("cheat_sheet"))
    first = "[...document.querySelectorAll('.words p > a:first-child')]"
    links = page.evaluate(f"{first}.map(link => link.getAttribute('href'))")
    part = [name for name in CHAPTERS if "06" <= name[:2] <= "12"]
    targets = {f"notebooks/{name}.html{t}" for name in part for t in visit.laptop[f"notebooks/{name}"]["targets"]}
    assert set(links) == targets and len(links) == len(targets)


def test_the_cheat_sheet_prints_on_a4_alone_black_on_white_and_nothing_is_cut(book: Book, page, visit: Visit):
    page.goto(book.page("cheat_sheet"))
    page.evaluate("document.documentElement.dataset.theme = 'dark'")
    page.evaluate("() => MathJax.startup.promise")
    sheet = page.pdf(prefer_css_page_size=True)
    assert set(re.findall(rb"/MediaBox \[0 0 (\d+)\.?\d* (\d+)", sheet)) == {(b"594", b"841")}
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 703, "height": 1000})  # A4 less its margins
    seen = page.evaluate("""() => {
        const sheet = document.getElementById("cheat-sheet"), edge = sheet.getBoundingClientRect().right + 1;
        const all = selector => [...document.querySelectorAll(selector)];
        return {
            title: sheet.querySelector("h1").checkVisibility(),
            beside: all("nav, header, footer, .sidebar, .headerlink").filter(e => e.checkVisibility()).length,
            cut: all(".entry mjx-math").filter(e => e.getBoundingClientRect().right > edge).map(e => e.textContent),
            colours: [...new Set(all("#cheat-sheet :is(p, a, mjx-c, code)").map(e => getComputedStyle(e).color))],
        };
    }""")
    page.emulate_media(media="screen")
    page.set_viewport_size(LAPTOP)
    assert seen == {"title": True, "beside": 0, "cut": [], "colours": ["rgb(0, 0, 0)"]}
