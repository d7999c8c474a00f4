r"""The grammar of a formula: which of its tokens are a reading's letters, and the tree that all of them make."""

import re

import lark

from tools.formula.text import Unreadable, joined, tokens_of

FUNCTIONS = (r"\log", r"\exp", r"\tan", r"\arctan", "O")
KINDS = {
    "+": "PLUS", "-": "MINUS", r"\cdot": "CDOT", "/": "SLASH", "^": "CARET", r"\top": "TOP", r"\frac": "FRAC",
    r"\sqrt": "SQRT", "(": "OPEN", "[": "OPEN", ")": "CLOSE", "]": "CLOSE", "{": "LBRACE", "}": "RBRACE",
    ",": "COMMA", ";": "COMMA",
}  # fmt: skip
GRAMMAR = r"""
?sum: product
    | sum PLUS product    -> add
    | sum MINUS product   -> subtract
    | MINUS product       -> negative
?product: factor
    | product factor        -> times
    | product CDOT factor   -> dot
    | product SLASH factor  -> divide
?factor: single
    | single CARET TOP       -> transpose
    | single CARET exponent  -> power
    | OPERATOR factor        -> apply
?exponent: NUMBER -> number
    | ATOM -> atom
    | LBRACE sum RBRACE -> group
?single: NUMBER -> number
    | ATOM -> atom
    | OPEN sum CLOSE -> group
    | OPEN sum (COMMA sum)+ CLOSE -> several
    | LBRACE sum RBRACE -> group
    | BAR sum ENDBAR -> norm
    | FRAC LBRACE sum RBRACE LBRACE sum RBRACE -> fraction
    | SQRT LBRACE sum RBRACE -> root
%declare PLUS MINUS CDOT SLASH CARET TOP OPERATOR NUMBER ATOM OPEN CLOSE COMMA LBRACE RBRACE BAR ENDBAR FRAC SQRT
"""


class Stream(lark.lexer.Lexer):
    """Passes on what `symbols` found."""

    def __init__(self, conf):
        pass

    def lex(self, symbols):
        return iter(symbols)


PARSER = lark.Lark(GRAMMAR, start="sum", parser="lalr", lexer=Stream, propagate_positions=True)


def symbols(tokens: list[str], letters: dict[str, object]) -> list[lark.Token]:
    """The tokens as the grammar names them, longest letters first.  Raises: Unreadable for what is no letter."""
    names = [(tokens_of(name), name) for name in [*letters, *FUNCTIONS, "e"]]
    names.sort(key=lambda item: -len(item[0]))
    found, index, bars = [], 0, []
    while index < len(tokens):
        token = tokens[index]
        fits = next(((name, len(t)) for t, name in names if tokens[index : index + len(t)] == t), None)
        if fits and not (fits[0] == "O" and tokens[index + 1 : index + 2] != ["("]):
            name, length = fits
            is_operator = callable(letters[name]) if name in letters else name in FUNCTIONS
            kind = "OPERATOR" if is_operator else "ATOM"
        elif token in ("|", r"\|"):
            name, length = token, 1
            inside = next((s for s in reversed(list(open_brackets(found)))), None)
            is_separator = inside is not None and inside > 0 and found[inside].type == "OPEN" and found[inside] == "("
            is_separator = is_separator and found[inside - 1].type == "OPERATOR" and not bars
            kind = "COMMA" if is_separator else "ENDBAR" if bars and bars[-1] == token else "BAR"
            bars = bars if kind == "COMMA" else bars[:-1] if kind == "ENDBAR" else [*bars, token]
        elif re.fullmatch(r"\d+(\.\d+)?", token):
            name, length, kind = token, 1, "NUMBER"
        elif token in KINDS:
            name, length, kind = token, 1, KINDS[token]
        else:
            raise Unreadable(f"{joined(tokens[index : index + 6])!r}: the reading has no such letter")
        found.append(lark.Token(kind, name, start_pos=index, end_pos=index + length, line=1, column=index,
                                end_line=1, end_column=index + length))  # fmt: skip
        index += length
    return found


def open_brackets(found: list[lark.Token]) -> list[int]:
    """The places of the brackets that are open after these symbols."""
    stack = []
    for place, symbol in enumerate(found):
        if symbol.type in ("OPEN", "LBRACE"):
            stack.append(place)
        elif symbol.type in ("CLOSE", "RBRACE") and stack:
            stack.pop()
    return stack


def parsed(tokens: list[str], letters: dict[str, object]) -> lark.Tree:
    """The tree of an expression.  Raises: Unreadable."""
    try:
        tree = PARSER.parse(symbols(tokens, letters))
    except lark.exceptions.LarkError as error:
        raise Unreadable(f"{joined(tokens)!r}: {str(error).splitlines()[0]}") from None
    return tree if isinstance(tree, lark.Tree) else lark.Tree("group", [tree])
