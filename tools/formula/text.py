r"""LaTeX as tokens, and an equation's tokens as statements, `a = b`, and their sides."""

import re
from collections.abc import Iterator

SPACING = {"\\ ", *r"\, \; \! \: \big \Big \bigg \Bigg \bigl \bigr \Bigl \Bigr \left \right \displaystyle".split()}
RELATIONS = ("=", r"\approx", r"\propto", r"\sim", r"\to")
TOKEN = re.compile(r"\\[A-Za-z]+|\\.|\S")


class Unreadable(ValueError):
    """An equation, or a part of it, that the reading or the grammar does not understand."""


def tokens_of(latex: str) -> list[str]:
    r"""The tokens of LaTeX, without label, spacing and the line breaks of `aligned`; `\mid` is `|`, and `\text{...}` is
    one token with its words."""
    latex = re.sub(r"\\label\{[^}]*\}|\\tag\{[^}]*\}", "", latex)
    if r"\begin{aligned}" in latex:
        latex = re.sub(r"\\(?:begin|end)\{aligned\}|\\\\|\{\}|(?<!\\)&", " ", latex)
    texts = re.findall(r"\\text\{[^{}]*\}", latex)
    tokens = TOKEN.findall(re.sub(r"\\text\{[^{}]*\}", r"\\text ", latex))
    words = iter(texts)
    tokens = [re.sub(r"\s+", " ", next(words)) if token == r"\text" else token for token in tokens]
    found = []
    for token in ("|" if token == r"\mid" else token for token in tokens if token not in SPACING):
        if found and re.fullmatch(r"[\d.]+", found[-1]) and token.isdigit() and found[-2:-1] not in (["^"], [r"\frac"]):
            found[-1] += token
        else:
            found.append(token)
    return as_operator(braced_fractions(unbraced_scripts(found)))


def from_ascii(formula: str) -> str:
    r"""A docstring's formula as LaTeX: words are commands (`eps_u` is `\eps_u`), `->` is `\to`."""
    formula = re.sub(r"(?<![A-Za-z\\])[A-Za-z]{2,}", r"\\\g<0>", formula.replace("->", r"\to ").replace("||", r"\|"))
    return re.sub(r" {3,}|, {2,}", r" \\qquad ", formula)


def as_operator(tokens: list[str]) -> list[str]:
    r"""`\begin{cases} a & \text{with probability } p \\ ... \end{cases}` as the operator `\cases(a, p, ...)`."""
    found = []
    for token in tokens:
        found.append(token)
        if found[-8:] == [r"\begin", *"{cases}"]:
            found[-8:] = [r"\cases", "("]
        elif found[-8:] == [r"\end", *"{cases}"]:
            found[-8:] = [")"]
        elif found[-2:] == ["&", r"\text{with probability }"]:
            found[-2:] = [","]
        elif token == "\\\\":
            found[-1] = ","
    return found


def unbraced_scripts(tokens: list[str]) -> list[str]:
    """`_{p}` and `^{2}` as `_p` and `^2`."""
    found, index = [], 0
    while index < len(tokens):
        if tokens[index] in "_^" and tokens[index + 1 : index + 2] == ["{"] and tokens[index + 3 : index + 4] == ["}"]:
            found += [tokens[index], tokens[index + 2]]
            index += 4
        else:
            found.append(tokens[index])
            index += 1
    return found


def braced_fractions(tokens: list[str]) -> list[str]:
    r"""`\frac12` and `\frac1d` as `\frac{1}{2}` and `\frac{1}{d}`."""
    found, index = [], 0
    while index < len(tokens):
        found.append(tokens[index])
        index += 1
        if found[-1] == r"\frac" and tokens[index] != "{":
            number = tokens[index]
            rest = [number[1:]] if len(number) > 1 and number.isdigit() else [tokens[index + 1]]
            index += 1 if len(number) > 1 and number.isdigit() else 2
            found += ["{", number[0] if number.isdigit() else number, "}", "{", *rest, "}"]
    return found


def joined(tokens: list[str]) -> str:
    return " ".join(tokens)


def depths(tokens: list[str]) -> Iterator[int]:
    """How many brackets are open before each token."""
    depth = 0
    for token in tokens:
        depth -= token in "}])"
        yield depth
        depth += token in "{[("


def split(tokens: list[str], separators: tuple[str, ...]) -> tuple[list[list[str]], list[str]]:
    """The parts of a list of tokens between separators that stand in no bracket, and these."""
    parts, found = [[]], []
    for token, depth in zip(tokens, depths(tokens), strict=True):
        if depth == 0 and token in separators:
            parts.append([])
            found.append(token)
        else:
            parts[-1].append(token)
    return parts, found


def clauses(tokens: list[str]) -> list[list[str]]:
    r"""The statements of an equation, between `\qquad`, `\quad` or commas, without the punctuation at their ends."""
    parts, _ = split(tokens, (r"\qquad", r"\quad", ","))
    for part in parts:
        while part and part[-1] in ".:;,":
            part.pop()
    return [part for part in parts if part]


def without_words(statement: list[str]) -> tuple[str, list[str]]:
    r"""The words of a `\text{...}` at the end of a statement, and the rest of it."""
    if len(statement) > 1 and statement[-1].startswith(r"\text{") and statement[-2] not in "_^":
        return statement[-1], statement[:-1]
    return "", statement
