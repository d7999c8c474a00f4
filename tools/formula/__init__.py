r"""A displayed equation, read from its LaTeX and computed: both sides of every relation, with numbers for its letters.

    reading = Reading({r"\mu": mean, r"\Sigma": cov, "g": g, r"\mathcal N": law, "q(x_s | x_t)": law(new, cov)})
    disagreements(r"q(x_s \mid x_t) = \mathcal N(\mu + \Sigma\, g, \Sigma)", reading)      [] if it is true

A *reading* says what each letter stands for, `x_s`, `\sigma_{t|s}` or `\mathbb E[x_s \mid x_t, y]`, in numbers from the
package, from quadrature or from finite differences, and nothing else: signs, factors, exponents, fractions and indices
come from the page. Operators, `\mathbb E_p`, `\mathrm{KL}`, `\nabla`, are functions of a reading.

A value is a batch: of points, or of step lengths. `+ O(\beta^2)` is true if the sides differ in proportion to it.

(SymPy also reads LaTeX. Its grammar took 0.1 s an expression, stopped at half of ours and left `a (b + c)` open, as a
product or a call; so the grammar is ours, forty lines for the parser generator that SymPy uses as well.)
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tools.formula.grammar import symbols
from tools.formula.text import RELATIONS, Unreadable, clauses, joined, split, tokens_of, without_words
from tools.formula.values import computed, law, lifted

__all__ = ["Reading", "Unreadable", "disagreements", "law", "reads"]


@dataclass(frozen=True)
class Reading:
    r"""What the letters of one equation stand for.

    Args: letters: LaTeX to a number, a tensor (N,), (N, d) or (N, d, e), or to a function of such if it is an operator;
    each must stand in the equation;
    decoys: letters that may stand there as well, or be put there by mistake;
    statements: how many there are, besides the sentences;
    defines: letters that a clause of the equation itself defines (`w` in `w = \gamma - 1`);
    words: clauses that are sentences, as the page has them: they are not computed, but must stand there;
    cases: where clauses end in words, `c = 1 \text{ (large variance)}`: those words, to the letters that hold then;
    must: for a letter that the equation defines, a function of its value and what that must give: of a formula for
    draws `x_t`, their mean and covariance;
    constant: a letter of which only is said that it is a constant: the two sides may differ by one number;
    tolerance: the relative difference allowed;
    equivalent: mistakes made by machine (tools/formula/mutants.py) that are none, to the reason why.
    The letter `\approx` is what the two sides of that relation differ in proportion to; `\to` and `\sim` are functions
    that make from the left side what the right side must be: what it becomes, how it is distributed.
    """

    letters: dict[str, object]
    decoys: dict[str, object] = field(default_factory=dict)
    statements: int = 1
    defines: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    cases: dict[str, dict[str, object]] = field(default_factory=dict)
    must: dict[str, tuple[Callable, object]] = field(default_factory=dict)
    constant: str = ""
    tolerance: float = 1e-9
    equivalent: dict[str, str] = field(default_factory=dict)

    @property
    def known(self) -> dict[str, object]:
        """All letters, those that the equation defines or the cases hold as well."""
        cases = {name: value for case in self.cases.values() for name, value in case.items()}
        constant = {self.constant: 0.0} if self.constant else {}
        return self.decoys | self.letters | cases | dict.fromkeys(self.defines, 1.0) | constant


def reads(*labels: str) -> Callable:
    """Mark a function without arguments as the one that returns the reading of these equations."""

    def mark(function: Callable[[], Reading]) -> Callable[[], Reading]:
        function.reads = labels
        return function

    return mark


def disagreements(latex: str | list[str], reading: Reading) -> list[str]:
    """What the two sides of the equation's relations do not agree on, in words. Empty: the equation is true.

    Raises: Unreadable where the page has what the reading does not know, or lacks what it expects.
    """
    statements = clauses(tokens_of(latex) if isinstance(latex, str) else latex)
    for sentence in reading.words:
        words = clauses(tokens_of(sentence))
        places = [k for k in range(len(statements)) if statements[k : k + len(words)] == words]
        if not places:
            raise Unreadable(f"the sentence {sentence!r} does not stand in it")
        del statements[places[0] : places[0] + len(words)]
    check_use(statements, reading)
    found, known = [], reading.decoys | reading.letters
    for case, letters in (reading.cases or {"": {}}).items():
        chosen = [statement for words, statement in map(without_words, statements) if not words or case in words]
        found += [f"{case}: {one}" if case else one for one in wrong(chosen, reading, known | letters)]
    for words, statement in map(without_words, statements):
        if words and not any(case in words for case in reading.cases):
            raise Unreadable(f"the words {words!r} of {joined(statement)!r}")
    return found


def check_use(statements: list[list[str]], reading: Reading) -> None:
    """Raises: Unreadable if a statement or a letter is missing: the equation says less than the reading expects."""
    if len(statements) != reading.statements:
        raise Unreadable(f"it has {len(statements)} statements, {reading.statements} are expected")
    sides = [side for _, statement in map(without_words, statements) for side in split(statement, RELATIONS)[0]]
    used = {str(symbol) for side in sides for symbol in symbols(side, reading.known)}
    missing = [name for name in reading.letters if name not in used and name not in RELATIONS]
    if missing:
        raise Unreadable(f"{', '.join(missing)} should stand in it")


def wrong(statements: list[list[str]], reading: Reading, letters: dict[str, object]) -> list[str]:
    """The disagreements of these statements, after those that define letters are computed."""
    letters, claims = dict(letters), []
    if reading.constant:
        letters[reading.constant] = 0.0
    names = {joined(tokens_of(name)): name for name in reading.defines}
    waiting = []
    for statement in statements:
        (left, *rest), relations = split(statement, RELATIONS)
        is_definition = relations == ["="] and joined(left) in names
        (waiting if is_definition else claims).append((left, *rest) if is_definition else statement)
    for _ in range(len(waiting)):  # one may need another, in any order
        for left, right in list(waiting):
            try:
                letters[names[joined(left)]] = computed(right, letters)[0]
                waiting.remove((left, right))
            except Unreadable:
                continue
    if waiting:
        computed(waiting[0][1], letters)  # says why it cannot
    for name in reading.defines:
        if name not in letters:
            raise Unreadable(f"it must define {name}")
    if not claims and not reading.must:
        raise Unreadable("nothing in it can be compared")
    found = [sentence for claim in claims for sentence in compare(claim, reading, letters)]
    for name, (function, expected) in reading.must.items():
        message = agree(lifted(function(letters[name])), lifted(expected), "=", [], False, reading.tolerance)
        found += [f"{name} is not what it must be: {message}"] if message else []
    return found


def compare(statement: list[str], reading: Reading, letters: dict[str, object]) -> list[str]:
    """The disagreements of one statement, `a = b = c`."""
    sides, relations = split(statement, RELATIONS)
    if not relations:
        raise Unreadable(f"{joined(statement)!r} is no relation, and not among the reading's words")
    values = [computed(side, letters) for side in sides]
    found = []
    for k, relation in enumerate(relations):
        (a, orders_a), (b, orders_b) = values[k], values[k + 1]
        if relation in (r"\to", r"\sim"):
            a = lifted(letters[relation](a))
        if a.shape[1:] != b.shape[1:]:
            shapes = f"{tuple(a.shape[1:])}, the other side {tuple(b.shape[1:])}"
            raise Unreadable(f"{joined(sides[k])!r} has the shape {shapes}")
        orders = orders_a + orders_b + ([lifted(letters[relation])] if relation == r"\approx" else [])
        message = agree(a, b, relation, orders, bool(reading.constant), reading.tolerance)
        found += [f"{joined(sides[k])}  {relation}  {joined(sides[k + 1])}: {message}"] if message else []
    return found


def agree(a: Tensor, b: Tensor, relation: str, orders: list[Tensor], up_to_a_constant: bool, tolerance: float) -> str:
    """Why two values do not agree; empty if they do."""
    a, b = torch.broadcast_tensors(a.detach(), b.detach())
    if not (a.isfinite().all() and b.isfinite().all()):
        return "not finite"
    if relation == r"\propto":
        a, b = a / a.abs().mean(0), b / b.abs().mean(0)
    gap = a - b
    if up_to_a_constant:
        gap = gap - gap.mean(0)
    size = gap.abs().amax((1, 2))
    if orders:  # the difference must fall like what stands in O(...)
        steps = max(orders, key=lambda step: float(step.abs().sum())).detach().flatten()
        if len(steps) != len(size) or len(size) < 2:
            return "an order needs a batch of step lengths"
        slope = (size[-1].log() - size[0].log()) / (steps[-1].log() - steps[0].log())
        return "" if abs(float(slope) - 1) < 0.05 else f"differ like O(...) to the power {float(slope):.2f}"
    scale = max(float(a.abs().max()), float(b.abs().max()), 1e-300)
    worst = float(size.max()) / scale
    return "" if worst < tolerance else f"differ by {worst:.1e} of {scale:.3g}"
