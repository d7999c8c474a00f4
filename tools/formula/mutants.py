r"""Wrong formulas made by machine from the LaTeX of a right one: the typing mistakes that nobody sees on a page.

A sign flipped, a factor, an exponent, a division or a function dropped, a fraction inverted, an index exchanged (s for
t, c for u), a prime or a condition lost, gamma and 1 - gamma exchanged, a number one too large, two arguments swapped,
a statement dropped. Each is well-formed LaTeX; what becomes of it is told by `fate`.
"""

from collections.abc import Iterator
from typing import NamedTuple

import lark

from tools.formula import Reading, Unreadable, disagreements
from tools.formula.grammar import parsed
from tools.formula.text import RELATIONS, clauses, depths, joined, tokens_of, without_words
from tools.formula.values import is_number, lifted

INDICES = {"s": "t", "t": "s", "c": "u", "u": "c", "P": "Q", "Q": "P", "p": "q", "q": "p"}
SCALES = {r"\gamma", "w", "p", "v", "r", r"\kappa", r"\beta"}  # those that stand beside 1 minus themselves, or might


class Mutant(NamedTuple):
    what: str  # the kind of mistake
    where: str  # the tokens changed, and those put for them
    tokens: tuple[str, ...]  # the whole equation


def mutants(latex: str, reading: Reading) -> list[Mutant]:
    """The wrong formulas of an equation, in the order of the page, each once; not of its sentences."""
    tokens, found, letters = tokens_of(latex), {}, reading.known
    numbers = {name for name, value in letters.items() if not callable(value) and is_number(lifted(value))}
    right = tuple(tokens)
    sentences = [place for words in reading.words for place in places_of(tokens_of(words), tokens)]
    for start, expression in expressions(tokens):
        if start in sentences:
            continue
        for what, begin, end, new in changes(parsed(expression, letters), numbers):
            begin, end = start + begin, start + end
            changed = (*tokens[:begin], *rewritten(new, tokens, start), *tokens[end:])
            before, after = joined(tokens[max(0, begin - 3) : begin]), joined(tokens[end : end + 3])
            new = joined(rewritten(new, tokens, start)) or "nothing"
            where = f"{before} [{joined(tokens[begin:end])} -> {new}] {after}".strip()
            if changed != right:
                found.setdefault(changed, Mutant(what, where, changed))
    statements = clauses(tokens)
    for dropped in statements if len(statements) > 1 else []:
        rest = [[*statement, ","] for statement in statements if statement is not dropped]
        rest = tuple(token for statement in rest for token in statement)
        found[rest] = Mutant("statement dropped", f"[{joined(dropped)} -> nothing]", rest)
    return list(found.values())


def places_of(part: list[str], tokens: list[str]) -> Iterator[int]:
    """Where in the tokens one of this part of them stands."""
    for start in range(len(tokens) - len(part) + 1):
        if tokens[start : start + len(part)] == part:
            yield from range(start, start + len(part))


def expressions(tokens: list[str]) -> Iterator[tuple[int, list[str]]]:
    """The sides of the relations of an equation, with the place where each begins."""
    start, separators = 0, (*RELATIONS, r"\qquad", r"\quad", ",")
    for end, (token, depth) in enumerate([*zip(tokens, depths(tokens), strict=True), (",", 0)]):
        if depth == 0 and token in separators:
            side = tokens[start:end]
            while side and side[-1] in ".:;,":
                side = side[:-1]
            if side:
                yield start, without_words(side)[1]
            start = end + 1


def rewritten(new: list, tokens: list[str], start: int) -> list[str]:
    """What to put: tokens, and for a pair of places the tokens that stand between them."""
    parts = ([part] if isinstance(part, str) else tokens[start + part[0] : start + part[1]] for part in new)
    return [token for part in parts for token in part]


def span(node) -> tuple[int, int]:
    return (node.meta.start_pos, node.meta.end_pos) if isinstance(node, lark.Tree) else (node.start_pos, node.end_pos)


def changes(tree: lark.Tree, numbers: set[str]) -> Iterator[tuple[str, int, int, list]]:
    """What can be changed in an expression: the kind, the places from and to, and what to put there.

    Args: numbers: the letters whose values are numbers, and no vectors or matrices.
    """
    for node in tree.iter_subtrees_topdown():
        children = node.children
        begin, end = span(node)
        if node.data in ("add", "subtract"):
            sign = children[1]
            yield "sign", *span(sign), ["-" if sign == "+" else "+"]
            if node.data == "subtract" and joined_number(children[0]) == "1" and end - begin > 2:
                yield "1 - x for x", begin, end, [span(children[2])]
        elif node.data == "negative":
            yield "sign", *span(children[0]), []
        elif node.data in ("times", "dot"):
            yield "factor dropped", begin, end, [span(children[0])]
            if getattr(children[0], "data", "") not in ("times", "dot"):
                yield "factor dropped", begin, end, [span(children[-1])]
            if children[0].data == "atom" and str(children[0].children[0]) in numbers:
                yield "divided for multiplied", begin, end, [span(children[-1]), "/", span(children[0])]
        elif node.data == "divide":
            yield "division dropped", begin, end, [span(children[0])]
            yield "multiplied for divided", begin, end, [span(children[0]), "(", span(children[2]), ")"]
        elif node.data == "power":
            yield "exponent dropped", begin, end, [span(children[0])]
        elif node.data == "fraction":
            above, below = span(children[2]), span(children[5])
            yield "fraction inverted", begin, end, [r"\frac", "{", below, "}", "{", above, "}"]
            yield "denominator dropped", begin, end, ["(", above, ")"]
        elif node.data == "root":
            yield "root dropped", begin, end, ["(", span(children[2]), ")"]
        elif node.data == "apply":
            yield from changes_of_call(node)
        elif node.data == "number":
            yield "number", begin, end, [str(int(float(children[0])) + 1)]
        elif node.data == "atom":
            yield from changes_of_letter(node, numbers)


def joined_number(node) -> str:
    return str(node.children[0]) if isinstance(node, lark.Tree) and node.data == "number" else ""


def changes_of_call(node: lark.Tree) -> Iterator[tuple[str, int, int, list]]:
    operator, argument = node.children
    begin, end = span(node)
    if argument.data == "several":
        parts = [span(part) for part in argument.children if isinstance(part, lark.Tree)]
        if len(parts) == 2:
            (a, b), (c, d) = parts
            yield "arguments swapped", a, d, [(c, d), (b, c), (a, b)]
    elif operator != "O":
        yield "function dropped", begin, end, [span(argument)]


def changes_of_letter(node: lark.Tree, numbers: set[str]) -> Iterator[tuple[str, int, int, list]]:
    begin, end = span(node)
    name = str(node.children[0])
    letters = tokens_of(name)
    for place, token in enumerate(letters):
        if len(letters) > 1 and token in INDICES and letters[max(0, place - 2)] != r"\mathrm":
            new = [*letters[:place], INDICES[token], *letters[place + 1 :]]
            yield "index", begin, end, new
        if token == "'":
            yield "prime dropped", begin, end, letters[:place] + letters[place + 1 :]
        if token == "y" and letters[place - 1] in (",", "|"):
            yield "condition dropped", begin, end, letters[: place - 1] + letters[place + 1 :]
    if name in SCALES:
        yield "x for 1 - x", begin, end, ["(", "1", "-", name, ")"]
    if name in numbers:
        yield "squared", begin, end, ["(", *letters, ")", "^", "2"]


def fate(mutant: Mutant, reading: Reading) -> str:
    """'value' if its sides are computed and differ, 'unreadable' if the reading makes no sense of it, else 'alive'."""
    try:
        return "value" if disagreements(list(mutant.tokens), reading) else "alive"
    except Unreadable:
        return "unreadable"
