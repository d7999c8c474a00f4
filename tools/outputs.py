"""Whether running a cell gave the outputs that are committed: words exactly, numbers to their last printed digit,
pictures by their content.

* A number may differ by one unit of its last printed digit: 0.0126 and 0.0125, 9.99e-04 and 1.00e-03. Where the two are
  printed to different digits (0.3 and 0.29, as numpy does), the finer one counts.
* A whole number is a count or a label, and is exact; before a % sign it is a rounded number like any other.
* What is glued to a word is part of it: x1, arXiv:2207.12598, 1.2.3. So are nan and inf.
* How many blanks stand between words does not count, which line they stand on does.
* A cell whose numbers move with processor or threads says by how much, in a tag: `loose-5%`.
"""

import base64
import re
from decimal import Decimal
from itertools import zip_longest

from nbformat import NotebookNode

from tools.picture_difference import picture_difference

NUMBER = re.compile(
    r"(?<![\w.:/])([-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:(?<=\d)\.\d*|\.\d+|(?<=\d))(?:[eE][-+]?\d+)?)(?!\.?\d)"
)
LOOSE = re.compile(r"loose-(\d+(?:\.\d+)?)%")
LOOSEST = 20  # percent: a number that moves more says nothing, and is better not printed
PICTURES = ("image/png",)


def looseness(tags: list[str]) -> Decimal:
    """The relative tolerance that a cell's tags state, 0 without one.  Raises: ValueError if it cannot be read."""
    stated = [tag for tag in tags if tag.startswith("loose")]
    if not stated:
        return Decimal(0)
    match = LOOSE.fullmatch(stated[0])
    if len(stated) > 1 or not match or not 0 < Decimal(match[1]) <= LOOSEST:
        raise ValueError(f"the tags {stated} must be one, from loose-1% to loose-{LOOSEST}%")
    return Decimal(match[1]) / 100


def differences(
    committed: list[NotebookNode], computed: list[NotebookNode], relative: Decimal = Decimal(0)
) -> list[str]:
    """What keeps a cell's computed outputs from being the committed ones, a sentence each. Empty: nothing.

    Args: both lists with the pieces of each stream in one (nbval and nbclient do that);  relative: what a number may
    differ by, as a share of it, if that is more than its last digit.
    """
    want, have = [kind(output) for output in committed], [kind(output) for output in computed]
    if want != have:
        named = [", ".join(kinds) or "nothing" for kinds in (want, have)]
        return [f"committed is {named[0]}; computed was {named[1]}"]
    found = []
    for old, new in zip(committed, computed, strict=True):
        for part, text in texts(old).items():
            found += [f"{part}, {message}" for message in text_differences(text, texts(new).get(part, ""), relative)]
        for part in PICTURES:
            if part in old.get("data", {}):
                message = picture_difference(*(picture(output["data"][part]) for output in (old, new)))
                found += [f"{part}, {message}"] if message else []
    return found


def kind(output: NotebookNode) -> str:
    """What sort of output it is: `stdout`, `error`, `execute_result of image/png + text/plain`."""
    if output.output_type in ("display_data", "execute_result"):
        return f"{output.output_type} of {' + '.join(sorted(output.data))}"
    return output.get("name", output.output_type)


def texts(output: NotebookNode) -> dict[str, str]:
    """All that can be read in an output, by the name of its part; a picture's name and what it is said to show too."""
    if output.output_type == "stream":
        return {output.name: output.text}
    if output.output_type == "error":
        return {"the error": f"{output.ename}: {output.evalue}"}
    data = {part: str(content) for part, content in output.data.items() if part not in PICTURES}
    described = output.get("metadata", {}).get("image/png", {})
    return data | {f"the {key} of the picture": str(described[key]) for key in ("figure", "alt") if key in described}


def picture(text: str) -> bytes:
    """The file that stands in a notebook as `text`; empty if no file can be made of it."""
    try:
        return base64.b64decode(text)
    except ValueError:
        return b""


def text_differences(committed: str, computed: str, relative: Decimal = Decimal(0)) -> list[str]:
    """Where two texts differ, line by line."""
    found = []
    lines = zip_longest(committed.rstrip().splitlines(), computed.rstrip().splitlines())
    for number, (old, new) in enumerate(lines, start=1):
        if old is None or new is None:
            what = f"computed was one more: {new!r}" if old is None else f"committed is one more: {old!r}"
            found.append(f"line {number}: {what}")
        elif words(old) != words(new):
            found.append(f"line {number}: committed is {old!r}; computed was {new!r}")
        else:
            messages = number_differences(old, new, relative)
            found += [f"line {number}, {old.strip()!r}: {message}" for message in messages]
    return found


def words(line: str) -> list[str]:
    """What stands before, between and after the numbers of a line, with single blanks."""
    return [" ".join(piece.split()) for piece in NUMBER.split(line)[::2]]


def number_differences(committed: str, computed: str, relative: Decimal) -> list[str]:
    """Where the numbers of two lines that have the same words differ by more than they may."""
    found, after = [], words(committed)[1:]
    for old, new, unit in zip(NUMBER.findall(committed), NUMBER.findall(computed), after, strict=True):
        a, b = (Decimal(text.replace(",", "")) for text in (old, new))
        counts = all(re.fullmatch(r"[-+]?[\d,]+\.?", text) for text in (old, new)) and not unit.startswith("%")
        last_digit = 0 if counts else Decimal(1).scaleb(min(a.as_tuple().exponent, b.as_tuple().exponent))
        allowed = max(last_digit, abs(a) * relative)
        if abs(a - b) > allowed:
            found.append(f"committed {old}, computed {new}, off by {abs(a - b)}, and {allowed} is allowed")
    return found
