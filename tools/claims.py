"""The claims of a chapter: which sentences of the page are bound to what proves them, and which are left.

    python -m tools.claims 07        each chapter named: how many of its claims are bound; the sentences that are not
    python -m tools.claims           all chapters

tests/claims/07.toml binds a sentence of the page to what proves it:

    [[claim]]
    says = 'The label moves the mean of a step by exactly ...'     as in the chapter's source, Markdown and all
    by = ["test_chapter_07::test_the_label_moves_the_mean"]

Who changes the sentence is told which test must change with it; a sentence without a test is listed. What may stand
in `by` says CONTRIBUTING.md. Sentences that claim nothing are listed by their first words:

    [no-claim]
    begins = ["Keep three things apart."]

Questions claim nothing. A sentence with a number in its prose does, and so does every caption, every row of the table
under In practice, every line of Remember.
"""

import ast
import difflib
import re
import tomllib
from functools import cache
from pathlib import Path
from typing import NamedTuple

import typer

from tools.citations import address
from tools.equation_labels import definitions
from tools.page_sentences import Sentence, one_line, sentences_of
from tools.pairs import NOTEBOOKS, Names, cells_of, chapters

FOLDER = "tests/claims"
LEAST = 0.8  # share of a chapter's claims that must be bound
ALWAYS = {"caption": "a caption", "practice": "a row of In practice", "remember": "a line of Remember"}
NOT_A_NUMBER = re.compile(
    r"`[^`]*`|\$[^$]*\$|\[[^]]*\]\([^)]*\)|\b([Cc]hapters?|[Pp]art|[Ee]xercises?|section|eq\.) [\dIV.]+( (to|and) \d+)?"
)


class Claims(NamedTuple):
    """What a file of tests/claims says."""

    bound: dict[str, list[str]]  # the sentence on one line: what proves it
    no_claim: list[str]
    faults: list[str]


class Page(NamedTuple):
    """The sentences of a chapter, and the text they make, on which `says` is looked for."""

    sentences: list[Sentence]
    lines: list[int]  # of the source
    code: frozenset[str]  # the lines of its cells that assert

    @property
    def text(self) -> str:
        return " ".join(sentence.text for sentence in self.sentences)


def read_claims(path: Path) -> Claims:
    """The claims of a file; what is wrong with its form is in `faults`."""
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        return Claims({}, [], [f"is not TOML: {error}"])
    bound, faults = {}, []
    for entry in entries.get("claim", []):
        says = one_line(re.sub(r"^# ?", "", entry.get("says", ""), flags=re.MULTILINE))
        by = entry.get("by", [])
        if not says or not by or not isinstance(by, list) or entry.keys() != {"says", "by"}:
            faults.append(f"a claim has `says`, and in `by` a list of what proves it; {shortened(str(entry))} has not")
        elif says in bound:
            faults.append(f"binds twice: {shortened(says)}")
        else:
            bound[says] = by
    nothing = entries.get("no-claim", {})
    if unknown := entries.keys() - {"claim", "no-claim"} or nothing.keys() - {"begins"}:
        faults.append(f"has {', '.join(sorted(unknown))}; known are [[claim]] with says and by, [no-claim] with begins")
    return Claims(bound, [one_line(words) for words in nothing.get("begins", [])], faults)


def read_page(source: Path) -> Page:
    cells, raw = cells_of(source), source.read_text(encoding="utf-8")
    sentences = sentences_of(cells)
    lines, end = [], 0
    for sentence in sentences:
        words = r"\s+(?:# +)?".join(re.escape(word) for word in sentence.text.split()[:8])
        found = re.compile(words).search(raw, end) or re.compile(words).search(raw)
        lines.append(raw[: found.start()].count("\n") + 1 if found else 1)
        end = found.end() if found else end
    code = (line.strip() for cell in cells if cell.cell_type == "code" for line in cell.source.splitlines())
    return Page(sentences, lines, frozenset(line for line in code if re.search(r"\bassert|exercises\.check\(", line)))


def shortened(text: str, length: int = 70) -> str:
    return repr(text if len(text) <= length else text[: length - 4] + " ...")


# ---- what proves a claim


@cache
def functions(root: Path) -> frozenset[str]:
    """The tests, as `by` names them: test_chapter_07::test_the_label, test_parts::TestPart::test_it."""
    found = set()
    for path in (root / "tests").rglob("test_*.py"):
        for name, node in definitions(ast.parse(path.read_text(encoding="utf-8")), path.stem):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                found.add(name.replace(".", "::"))
    return frozenset(found)


@cache
def words_of(path: Path, pattern: str) -> frozenset[str]:
    return frozenset(re.findall(pattern, path.read_text(encoding="utf-8"))) if path.exists() else frozenset()


def in_package(dotted: str, root: Path) -> bool:
    """Whether a module of the package, or a name at the top of one, or in a class, has this dotted name."""
    parts = dotted.split(".")
    for count in range(len(parts), 0, -1):
        base = root.joinpath(*parts[:count])
        path = base.with_suffix(".py") if base.with_suffix(".py").exists() else base / "__init__.py"
        if path.exists():
            tree = ast.parse(path.read_text(encoding="utf-8"))
            module, names = ".".join(parts[:count]), [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
            assigned = {f"{module}.{node.id}" for node in names if isinstance(node.ctx, ast.Store)}
            return dotted in assigned | {module} | {name for name, _ in definitions(tree, module)}
    return False


def missing_proof(by: str, source: Path, page: Page) -> str | None:
    """What is wrong with one entry of `by`; None: it exists."""
    root = source.parent.parent
    kind, _, rest = by.partition(": ")
    rest = rest.strip()
    if kind == "cell":
        return None if rest in page.code else f"no line of {source.name} that asserts is {rest!r}"
    if kind == "equation":
        labels = (label for path in source.parent.glob("*.py") for label in words_of(path, r"\\label\{(eq-[^}]*)\}"))
        return None if rest in labels else f"no chapter shows the equation {rest!r}"
    if kind == "paper":
        urls = {address(url) for url in words_of(root / "book" / "references.bib", r"url\s*=\s*[{\"]([^}\"]+)")}
        return None if address(rest) in urls else f"book/references.bib has no url {rest!r}"
    if kind == "package":
        return None if in_package(rest, root) else f"the package has no {rest!r}"
    return None if by in functions(root) else f"tests/ has no test {by!r}; the form is 'test_chapter_07::test_name'"


# ---- what is wrong, and what is left


def covered(page: Page, says: list[str]) -> tuple[set[int], list[str]]:
    """The places of the page's text that bound sentences cover, and what is wrong with those."""
    places, faults = {}, []
    for sentence in says:
        starts = [found.start() for found in re.finditer(re.escape(sentence), page.text)]
        if not starts:
            close = difflib.get_close_matches(sentence, [one.text for one in page.sentences], 1, 0.1) or ["nothing"]
            faults.append(
                f"the page does not say {shortened(sentence)}; nearest is {shortened(close[0])}. Where a sentence "
                "changed, see that what proves it still does, then change `says`"
            )
        for start in starts:
            for place in range(start, start + len(sentence)):
                if places.setdefault(place, sentence) != sentence and page.text[place].isalnum():
                    faults.append(f"binds twice: {shortened(sentence)}, in part by {shortened(places[place])}")
                    break
    return set(places), faults


def is_covered(sentence: Sentence, start: int, places: set[int]) -> bool:
    """Whether its words are, up to punctuation; of a row of a table those behind the first cell, which names a case."""
    first = sentence.text.index("|", 1) if sentence.kind in ("table", "practice") else 0
    return all(start + k in places for k, letter in enumerate(sentence.text) if k >= first and letter.isalnum())


def examine(source: Path) -> tuple[dict[str, list[tuple[int, Sentence]]], list[str]]:
    """The sentences with their lines, as `bound`, `left` and `no claim`; and what is wrong with the chapter's file."""
    path = source.parent.parent / FOLDER / f"{source.name[:2]}.toml"
    claims, page = read_claims(path) if path.exists() else Claims({}, [], []), read_page(source)
    places, faults = covered(page, list(claims.bound))
    faults = claims.faults + faults
    for says, proofs in claims.bound.items():
        missing = [said for by in proofs if (said := missing_proof(by, source, page))]
        faults += [f"{said}, which is to prove {shortened(says)}" for said in missing]
        if all(by.startswith("package: ") for by in proofs):
            faults.append(f"the package alone proves nothing, add the test that says so: {shortened(says)}")
    found, start, used = {"bound": [], "left": [], "no claim": []}, 0, set()
    for line, sentence in zip(page.lines, page.sentences, strict=True):
        listed = [words for words in claims.no_claim if sentence.text.startswith(words)]
        number = re.search(r"\d", NOT_A_NUMBER.sub("", sentence.text))
        question = sentence.text.rstrip(")*").endswith("?") and sentence.kind == "prose"
        if is_covered(sentence, start, places):
            found["bound"].append((line, sentence))
            why = "is bound"
        elif question or listed and sentence.kind not in ALWAYS and not number:
            found["no claim"].append((line, sentence))
            why = "stands for two sentences, write more of it" if used & {*listed} - {sentence.text} else ""
        else:
            found["left"].append((line, sentence))
            why = "has a number" if number else f"is {ALWAYS.get(sentence.kind)}"
        faults += [f"[no-claim] begins {shortened(words)}: it {why}" for words in listed if why]
        used.update(listed)
        start += len(sentence.text) + 1
    faults += [f"[no-claim] no sentence begins {shortened(words)}" for words in claims.no_claim if words not in used]
    return found, [f"{FOLDER}/{path.name}: {fault}" for fault in faults]


def problems(source: Path) -> list[str]:
    """What keeps a chapter's claims from being bound. Empty: nothing."""
    found, faults = examine(source)
    for line, sentence in found["left"]:
        if sentence.kind in ALWAYS:
            what = f"{ALWAYS[sentence.kind]} that nothing proves: {shortened(sentence.text)}"
            faults.append(f"notebooks/{source.name}:{line}: {what}; bind it in {FOLDER}/{source.name[:2]}.toml")
    claims = len(found["bound"]) + len(found["left"])
    if len(found["bound"]) < LEAST * claims:
        share = f"binds {len(found['bound'])} of {claims} claims, {LEAST:.0%} is the least"
        rest = f"python -m tools.claims {source.name[:2]} lists the rest"
        faults.append(f"{FOLDER}/{source.name[:2]}.toml {share}; {rest}")
    return faults


def report(source: Path) -> str:
    """The sentences left, with their lines, and the share that is bound."""
    found, faults = examine(source)
    left = [f"notebooks/{source.name}:{line}: {sentence.kind}: {sentence.text}" for line, sentence in found["left"]]
    bound, claims = len(found["bound"]), len(found["bound"]) + len(left)
    share = f"{bound} of {claims} claims bound ({bound / max(claims, 1):.0%}), {len(found['no claim'])} claim nothing"
    return "\n".join([*left, *faults, f"{source.stem}: {share}"])


def main(names: Names = None) -> None:
    """Print the sentences of chapters that nothing proves, and the share of the claims that is bound."""
    print("\n".join(report(source) for source in chapters(names or [], NOTEBOOKS)))


if __name__ == "__main__":
    typer.run(main)
