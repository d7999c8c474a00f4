"""Where the numbers of a page may come from: what its cells print, the constants in their code, and their assertions.

A constant has names: `gamma` in `classifier_free(pair, gamma=3.0)` or `for gamma in (1.0, 3.0)`, the parameter of a
function of the package that is called with it, the variable it is assigned to. What only draws, and the seeds of random
numbers, are left out.
"""

import ast
import operator
import re
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

from nbformat import NotebookNode

from tools.python_cells import parsed

PRINTED = re.compile(
    r"(?<![\w.^])(?P<sign>-)?(?P<digits>(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?(?:e[-+]?\d+)?)(?P<percent>\s?%)?(?![A-Za-z_\d])"
)
NAMED = re.compile(r"([A-Za-z]\w*)(?:\s*=\s*|\s+|\()$")
HEADER = re.compile(r"\s*([A-Za-z]+)\s\s")  # the first word of a line that stands above columns
DRAWING = re.compile(r"\b(plotting|panel|axes|figure|left|right|middle|below|above|row)\b")
SUMS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
SEEDS = {"manual_seed", "seeded", "seed", "split", "Generator"}
PACKAGE = Path(__file__).resolve().parent.parent / "difflesson"


class Evidence(NamedTuple):
    """A number that a cell prints, holds or asserts."""

    value: float
    decimals: int | None  # that were printed; None where the value is exact
    kind: str  # "output", "literal", "assertion"
    names: frozenset[str] = frozenset()


def of_chapter(cells: list[tuple[str, list[NotebookNode]]]) -> list[list[Evidence]]:
    """The evidence of each code cell of a chapter.  Args: cells: its code and what it prints."""
    trees = [parsed(code) for code, _ in cells]
    known = with_parameters(trees, package_parameters())
    found = [[*printed(outputs), *constants(code, known), *asserted(code)] for code, outputs in cells]
    others = looped_over(trees)

    def with_others(each: Evidence) -> Evidence:
        return each._replace(names=each.names.union(*(others.get(name, ()) for name in each.names)))

    return [[with_others(each) for each in cell] for cell in found]


def is_zip(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and getattr(node.func, "id", "") == "zip"


def looped_over(trees: list[ast.AST]) -> dict[str, set[str]]:
    """By the name of a tuple, what its values are called in a loop: gamma for scales."""
    found: dict[str, set[str]] = {}
    loops = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.For | ast.comprehension)]
    for loop in loops:
        pairs = [(loop.target, loop.iter)]
        if is_zip(loop.iter) and isinstance(loop.target, ast.Tuple):
            pairs = zip(loop.target.elts, loop.iter.args, strict=False)
        for target, values in pairs:
            several = values.elts if isinstance(values, ast.Tuple | ast.List) else [values]
            for value in several:
                if isinstance(target, ast.Name) and isinstance(value, ast.Name):
                    found.setdefault(value.id, set()).add(target.id)
    return found


def printed(outputs: list[NotebookNode]) -> list[Evidence]:
    texts = []
    for output in outputs:
        data = output.get("data", {})
        texts.append(output.get("text", "") or data.get("text/markdown", ""))
        if "text/plain" in data and "image/png" not in data and "text/markdown" not in data:
            texts.append(data["text/plain"])
    found = []
    for text in texts:
        column = ""  # what the first number of a line is, by the header above
        for line in text.splitlines():
            header = HEADER.match(line)
            column = header[1] if header else column
            found += of_line(line, column)
    return found


def of_line(line: str, column: str) -> list[Evidence]:
    found = []
    for match in PRINTED.finditer(line):
        digits = match["digits"].replace(",", "")
        mantissa, _, exponent = digits.partition("e")
        value, decimals = float(digits), len(mantissa.partition(".")[2]) - int(exponent or 0)
        if match["percent"]:
            value, decimals = value / 100, decimals + 2
        name = NAMED.search(line[: match.start()])
        called = name[1] if name else column if not line[: match.start()].strip() else ""
        names = frozenset([called]) if called else frozenset()
        found.append(Evidence(-value if match["sign"] else value, max(decimals, 0), "output", names))
    return found


Parameters = dict[str, list[frozenset[str]]]  # by the name of a function: the names of its arguments, by their place


@cache
def package_parameters() -> Parameters:
    return with_parameters([ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))], {})


def with_parameters(trees: list[ast.AST], known: Parameters) -> Parameters:
    """`known`, and the functions that are defined in `trees`."""
    found = {name: list(names) for name, names in known.items()}
    for node in (node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        names = [argument.arg for argument in node.args.args if argument.arg not in ("self", "cls")]
        both = zip_longest([{name} for name in names], found.get(node.name, []), fillvalue=())
        found[node.name] = [frozenset(new).union(old) for new, old in both]
    return found


def number(node: ast.AST) -> float | None:
    """The value of a constant, with its sign, or of an operation on two; None for anything else."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        inner = number(node.operand)
        return None if inner is None else -inner
    if isinstance(node, ast.BinOp) and type(node.op) in SUMS:
        left, right = number(node.left), number(node.right)
        if left is not None and right is not None and (right or not isinstance(node.op, ast.Div)):
            return SUMS[type(node.op)](left, right)
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        return float(node.value)
    return None


def constants(code: str, known: Parameters) -> list[Evidence]:
    """The constants in a cell, each with its names."""
    found: list[Evidence] = []
    Constants(found, known).visit(parsed(code))
    return found


class Constants(ast.NodeVisitor):
    """Collects constants; `names` are those that what is being visited has."""

    def __init__(self, found: list[Evidence], known: Parameters):
        self.found, self.known, self.names = found, known, frozenset()

    def under(self, node: ast.AST | None, names: frozenset[str]) -> None:
        if node is not None:
            before, self.names = self.names, names
            self.visit(node)
            self.names = before

    def visit(self, node: ast.AST) -> None:
        value = number(node)
        if value is not None:
            self.found.append(Evidence(value, None, "literal", self.names))
        if value is None or isinstance(node, ast.BinOp):
            super().visit(node)

    def paired(self, target: ast.AST, value: ast.AST) -> None:
        """Constants of `value` under the names in `target`, place by place where both are tuples."""
        together = (ast.Tuple, ast.List)
        if isinstance(target, together) and isinstance(value, together) and len(target.elts) == len(value.elts):
            for name, part in zip(target.elts, value.elts, strict=True):
                self.paired(name, part)
        else:
            self.under(value, frozenset(targets(target)))

    def looped(self, target: ast.AST, values: ast.AST) -> None:
        together = (ast.Tuple, ast.List, ast.Set)
        if isinstance(target, ast.Tuple) and is_zip(values):
            for name, part in zip(target.elts, values.args, strict=False):
                self.looped(name, part)
        elif isinstance(values, together):
            for part in values.elts:
                self.paired(target, part)
        else:
            self.paired(target, values)

    def visit_Assign(self, node: ast.Assign) -> None:
        for target in node.targets:
            self.paired(target, node.value)

    def visit_For(self, node: ast.For | ast.comprehension) -> None:
        self.looped(node.target, node.iter)
        for part in [*getattr(node, "body", []), *getattr(node, "ifs", [])]:
            self.under(part, frozenset())

    visit_comprehension = visit_For

    def visit_With(self, node: ast.With) -> None:
        if "plotting.style" not in ast.unparse(node.items[0]):
            self.generic_visit(node)
        else:  # what only draws is left out, what is computed for it is not
            for part in node.body:
                if not DRAWING.search(ast.unparse(part).split("\n")[0]) or isinstance(part, ast.For):
                    self.visit(part)

    def visit_Expr(self, node: ast.Expr) -> None:
        if not DRAWING.match(ast.unparse(node)):
            self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        self.visit(node.func)
        if name in SEEDS or DRAWING.match(ast.unparse(node.func)):
            return
        known = self.known.get(name, [])
        for place, argument in enumerate(node.args):
            self.under(argument, self.names | (known[place] if place < len(known) else frozenset()))
        for keyword in node.keywords:
            if keyword.arg not in SEEDS | {"dim", "generator", "dtype", "atol", "rtol", "alt"}:
                self.under(keyword.value, frozenset([keyword.arg or ""]))

    def visit_Dict(self, node: ast.Dict) -> None:
        for key, value in zip(node.keys, node.values, strict=True):
            named = isinstance(key, ast.Constant) and isinstance(key.value, str)
            self.under(value, self.names | ({key.value} if named else set()))
            if not named:
                self.under(key, self.names)

    def visit_Compare(self, node: ast.Compare) -> None:
        names = {part.id for part in (node.left, *node.comparators) if isinstance(part, ast.Name)}
        for part in (node.left, *node.comparators):
            self.under(part, self.names | names)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        self.visit(node.left)
        if not isinstance(node.op, ast.Pow):
            self.visit(node.right)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        self.visit(node.value)
        if isinstance(node.slice, ast.Slice) and (number(node.slice.upper) or 0) > 9:  # the first 1,500
            self.under(node.slice.upper, frozenset())

    def visit_Assert(self, node: ast.Assert) -> None:
        pass  # a bound in an assertion is no number that a page may quote; what it equals is, see `asserted`


def targets(node: ast.AST) -> list[str]:
    """The names that an assignment gives; of `found[gamma]` only found."""
    if isinstance(node, ast.Tuple | ast.List):
        return [name for part in node.elts for name in targets(part)]
    while isinstance(node, ast.Subscript | ast.Attribute | ast.Starred):
        node = node.value
    return [node.id] if isinstance(node, ast.Name) else []


def asserted(code: str) -> list[Evidence]:
    """What a cell asserts some value to be: `assert round(x, 2) == 0.38`, `assert abs(x - 0.38) < 0.005`,
    `assert_close(x, torch.tensor([0.38, 1.00]), ...)`. What equals 0 or 1 in an `assert` is a condition, not a value.
    """
    found = []
    for node in ast.walk(parsed(code)):
        if isinstance(node, ast.Assert):
            comparisons = [part for part in ast.walk(node.test) if isinstance(part, ast.Compare)]
            found += [value for part in comparisons for value in compared(part) if value not in (-1, 0, 1)]
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "assert_close":
            found += [value for argument in node.args for value in values_in(argument)]
    return [Evidence(value, None, "assertion") for value in found]


def compared(node: ast.Compare) -> list[float]:
    """0.38 of `x == 0.38` and of `abs(x - 0.38) < 0.005`."""
    if isinstance(node.ops[0], ast.Eq):
        return [value for side in (node.left, *node.comparators) for value in values_in(side)]
    if isinstance(node.ops[0], ast.Lt | ast.LtE) and getattr(getattr(node.left, "func", None), "id", "") == "abs":
        difference = node.left.args[0]
        if isinstance(difference, ast.BinOp) and isinstance(difference.op, ast.Sub):
            return values_in(difference.right)
    return []


def of_tests(text: str) -> list[Evidence]:
    """What a chapter's test file asserts, and the fractions in it, which it compares with something further down. These
    may have more digits than the page has.
    """
    fractions = [each for each in constants(text, {}) if each.value % 1]
    return [*asserted(text), *(each._replace(kind="assertion", decimals=9) for each in fractions)]


def values_in(node: ast.AST) -> list[float]:
    """The numbers in a constant, a list, a dictionary, or a tensor of them; none where something is computed."""
    if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("tensor", "double", "approx"):
        parts = node.args or [node.func.value]
    elif isinstance(node, ast.List | ast.Tuple):
        parts = node.elts
    elif isinstance(node, ast.Dict):
        parts = node.values
    else:
        value = number(node)
        return [] if value is None else [value]
    return [value for part in parts for value in values_in(part)]
