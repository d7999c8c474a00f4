"""The page of the convention card: what `difflesson.conventions` says of each convention, and its usual values.

The card goes into the page as data, from which static/converter.js builds its forms; the tables stand without a script.
"""

import json
from pathlib import Path

import torch
from torch import Tensor

from difflesson.conventions import (
    GUIDANCE,
    LOWEST,
    NO_SINGLE_GAMMA,
    NOISE,
    OUTPUTS,
    card,
    convert,
    guidance_scale,
    markdown,
    noise_level,
)

TEMPLATE = Path(__file__).resolve().parent / "conventions.md"
GAMMAS = (0.0, 1.0, 1.5, 3.0, 7.5)
ALPHABARS = (1.0, 0.99, 0.9, 0.5, 0.1, 0.01, 0.0)  # from clean to pure noise


def page() -> str:
    """The page in MyST Markdown."""
    parts = {
        "guidance": usual(GUIDANCE, [f"gamma = {gamma:g}" for gamma in GAMMAS], GAMMAS, "gamma", guidance_scale),
        "noise": usual(NOISE, [f"alphabar = {value:g}" for value in ALPHABARS], ALPHABARS, "ho", noise_level),
        "outputs": usual(OUTPUTS, ["eps = -0.5 at x = 0.2"], [-0.5], "eps", output),
        "lowest": "; ".join(f"`{name}` has no guidance below {lowest:g}" for name, lowest in LOWEST.items()),
        "card": markdown(card()),
        "data": json.dumps(data()).replace("</", "<\\/"),
    }
    text = TEMPLATE.read_text(encoding="utf-8")
    for name, part in parts.items():
        text = text.replace(f"%{name}%", part)
    return text


def output(value: float, source: str, target: str) -> Tensor:
    """One number of a network at x = 0.2 where alpha = 0.6 and sigma = 0.8, as another network would have it."""
    x = torch.tensor(0.2, dtype=torch.float64)
    return convert(torch.tensor(value, dtype=torch.float64), source, target, x, 0.6, 0.8)


def usual(names, heads: list[str], values, source: str, function) -> str:
    """A Markdown table: each value of the convention `source` in all others; what the package refuses is a dash."""
    rows = [["convention", *heads], ["---", *["---:"] * len(heads)]]
    for name in names:
        rows.append([name, *(number(function, value, source, name) for value in values)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def number(function, value: float, source: str, target: str) -> str:
    try:
        result = function(value, source, target)
    except ValueError:
        return "–"
    return ", ".join(f"{float(part):.4g}" for part in (result if isinstance(result, tuple) else [result]))


def data() -> dict:
    """What the script needs to know of each convention."""
    one, zero = torch.tensor([1.0, 0.0], dtype=torch.float64)
    return {
        "guidance": {
            name: {"offset": offset, "symbol": symbol} | ({"lowest": LOWEST[name]} if name in LOWEST else {})
            for name, (offset, symbol, *_) in GUIDANCE.items()
        },
        "ambiguous": {name: why for name, (why, *_) in NO_SINGLE_GAMMA.items()},
        "noise": {
            name: {"clean": words(of(one, zero)), "noise": words(of(zero, one))} for name, (of, *_) in NOISE.items()
        },
        "outputs": list(OUTPUTS),
        "words": {f"{row['question']} {row['convention']}": row["in our notation"] for row in card()},
    }


def words(end: Tensor | tuple[Tensor, Tensor]) -> str:
    """One end of a range: "0", "-infinity", or "(1, 0)" for a pair."""
    if isinstance(end, tuple):
        return f"({', '.join(map(words, end))})"
    return f"{float(end) + 0.0:g}".replace("inf", "infinity")
