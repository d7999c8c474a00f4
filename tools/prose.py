"""The numbers that a page states in words: in its prose, tables and captions, and in the alt texts of its figures.

Not counted, since something else looks after them: displayed formulas, and of inline ones all but decimals and plain
values (`$\\gamma = 3$`, `$-1$`, `$(0.4, -0.6)$`); code, headings, links to papers, hints, the times of the chapter, and
references to a chapter, an exercise, a section, an equation, an algorithm or an issue.
"""

import ast
import re
from collections.abc import Iterator
from typing import NamedTuple

from nbformat import NotebookNode

from tools.python_cells import parsed
from tools.reading_time import EXERCISE, STATED

DIGITS = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:e[-+]?\d+)?"
IN_WORDS = re.compile(rf"(?<![\w.^{{])(?P<sign>[-+−])?(?P<digits>{DIGITS})(?![A-Za-z_\d])")
DECIMAL = re.compile(r"(?<![\w.^_])(?<![\^_]\{)(?P<sign>[-+])?\s*(?P<digits>\d+\.\d+)")
VALUES = rf"(?P<values>[-+]?{DIGITS}(?:\s*,\s*[-+]?{DIGITS})*)"
VALUE = re.compile(rf"(?P<name>\\?[A-Za-z]+)\s*(?:=|\\approx)\s*{VALUES}\s*(?:,.*)?")
PLAIN = re.compile(rf"[(\\pm+\-\s]*{DIGITS}(?:(?:,\s*|\s*\\times\s*)[-+]?{DIGITS})*\)?", re.DOTALL)
PERCENT = re.compile(rf"(?:(?:,|\s+and|\s+or|\s+to)\s+{DIGITS})*\s*(?:\\?%|percent\b)")
TOLD_ELSEWHERE = re.compile(
    r"^(?P<fence>```|~~~).*?^(?P=fence)|`[^`\n]*`|\$\$.*?\$\$|<details>.*?</details>|<[^>]*>|^#+ [^\n]*$|\[[^][]*\]\(https?://[^)\s]*\)|(?<=\])\([^)\s]*\)"
    r"|^[ >]*\d+\.(?=\s)|" + STATED.pattern,
    re.MULTILINE | re.DOTALL,
)
REFERENCE = re.compile(
    r"\b(?:[Cc]hapters?|[Ee]xercises?|[Ss]ections?|eqs?\.|[Aa]lgorithms?|seed|[Pp]art [IV]+|[IV]+)"
    r"\s+\(?\d+(?:\.\d+)?(?:(?:,|\s+to|\s+and)\s+\d+(?:\.\d+)?)*",
)
SENTENCE_END = re.compile(r"(?<=[.?!:])[)*\"]*\s+|\n\s*\n|\n(?=[|*]|\d+\. )|\|")
IN_FRONT = re.compile(r"\b(?:(gamma|kappa|class|label|scales?)(?: is)?|([tpkvw]) =)\s+[-+]?$")
IN_A_LIST = re.compile(rf"{DIGITS}(?:\$?,?\s+(?:and|or|to)|,)\s+\$?[-+]?")
COUNTED = re.compile(r"\$?\s+(steps|samples|points|digits|seeds|degrees)\b")
CALLED = {"class": "label", "scale": "gamma", "scales": "gamma"}
MATHS = re.compile(r"\$[^$]+\$")


class Number(NamedTuple):
    """A number as a page states it."""

    digits: str  # as written: "3,000", "0.38"
    negative: bool
    percent: bool
    name: str  # of what it is the value, in an inline formula: gamma; else ""
    text: str  # the cell's text, or the alt text, and where in it the digits stand
    start: int

    @property
    def value(self) -> float:
        return float(self.digits.replace(",", "")) * (-1 if self.negative else 1)

    @property
    def decimals(self) -> int:
        return len(self.digits.partition(".")[2].partition("e")[0])

    @property
    def case(self) -> bool:
        """Whether it names a case (the scale 3, the time 0.5, class 1) and measures nothing: it has a single digit."""
        return not self.percent and bool(re.fullmatch(r"\d|0\.\d", self.digits))

    @property
    def digit_count(self) -> int:
        """How many of its digits say something: three in 0.219 and in 200."""
        return len(self.digits.replace(",", "").lstrip("0.").replace(".", ""))

    @property
    def sentence_start(self) -> int:
        return max((match.end() for match in SENTENCE_END.finditer(self.text, 0, self.start)), default=0)

    @property
    def sentence(self) -> str:
        """The sentence around it, or the cell of a table."""
        end = SENTENCE_END.search(self.text, self.start)
        return self.text[self.sentence_start : end.end() if end else None]

    @property
    def paragraph(self) -> str:
        end = self.text.find("\n\n", self.start)
        return " ".join(self.text[self.text.rfind("\n\n", 0, self.start) + 1 : end if end >= 0 else None].split())


def blank(match: re.Match) -> str:
    return re.sub(r"\S", " ", match[0])


def numbers_of(text: str) -> list[Number]:
    """The numbers that the Markdown `text` states, in its order."""
    plain = REFERENCE.sub(blank, TOLD_ELSEWHERE.sub(blank, text))
    words = MATHS.sub(blank, plain)
    found = [number for span in MATHS.finditer(plain) for number in in_maths(span, text)]
    found += [number_at(match, 0, text) for match in IN_WORDS.finditer(words)]
    named: list[Number] = []
    for number in sorted(found, key=lambda number: number.start):
        named.append(number if number.name else number._replace(name=name_of(number, named)))
    return [number for number in named if number.percent or number.negative or number.digits not in ("0", "1")]


def name_of(number: Number, before: list[Number]) -> str:
    """What the words before a number call it: gamma in "gamma 3", "scales 0, 1", "$\\gamma = 0$ and 1"."""
    counted = COUNTED.match(number.text, number.start + len(number.digits))
    if counted:
        return "steps" if counted[1] == "steps" else ""
    word = IN_FRONT.search(number.text[: number.start].replace("$", ""))
    if word:
        return CALLED.get(word[1], word[1] or word[2])
    listed = before and IN_A_LIST.fullmatch(number.text[before[-1].start : number.start])
    return before[-1].name if listed else ""


def in_maths(span: re.Match, text: str) -> Iterator[Number]:
    """The plain values and the decimals of an inline formula."""
    inner, start = span[0][1:-1], span.start() + 1
    value = VALUE.fullmatch(inner)
    if value:
        for match in IN_WORDS.finditer(value["values"]):
            yield number_at(match, start + value.start("values"), text, value["name"].lstrip("\\"))
        return
    pattern = IN_WORDS if PLAIN.fullmatch(inner) else DECIMAL
    for match in pattern.finditer(inner):
        yield number_at(match, start, text)


def number_at(match: re.Match, offset: int, text: str, name: str = "") -> Number:
    start, end = offset + match.start("digits"), offset + match.end("digits")
    percent = bool(PERCENT.match(text, end))
    return Number(match["digits"], match["sign"] in ("-", "−"), percent, name, text, start)


def alt_texts(code: str) -> list[str]:
    """What the figures of a code cell show, in words."""
    return [
        keyword.value.value
        for node in ast.walk(parsed(code))
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg == "alt" and isinstance(keyword.value, ast.Constant)
    ]


def stated(cell: NotebookNode) -> list[Number]:
    """The numbers that a cell of a chapter states in words."""
    if cell.cell_type == "markdown":
        texts = [] if EXERCISE.match(cell.source) else [cell.source]
    else:
        texts = alt_texts(cell.source)
    return [number for text in texts for number in numbers_of(text)]
