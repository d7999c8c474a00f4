"""LaTeX is read as a mathematician reads it; what is false or cannot be read is said so."""

import math

import pytest
import torch

from tools.formula import Reading, Unreadable, disagreements, law, reads
from tools.formula.mutants import fate, mutants
from tools.formula.text import clauses, tokens_of
from tools.formula.values import computed

F64 = torch.float64
A = torch.tensor([[[2.0, 1.0], [0.0, 3.0]]], dtype=F64)
B = torch.tensor([[[1.0, 1.0], [1.0, 0.0]]], dtype=F64)
G = torch.tensor([[1.0, -2.0]], dtype=F64)
LETTERS = {
    r"\alpha_t": 0.6, r"\alpha_{t|s}": 0.5, "x": 3.0, "w": 2.0, "A": A, "B": B, "g": G, "f": lambda x: x**2 + 1,
    r"\hat\varepsilon_c": 5.0, r"\mathrm{KL}": lambda p, q: p - 2 * q, "I": torch.eye(2)[None],
}  # fmt: skip


def value(latex: str):
    found = computed(tokens_of(latex), LETTERS)[0]
    return float(found) if found.numel() == 1 else found[0].tolist()


EXPRESSIONS = {
    r"1 + w x": 7, "2 x^2": 18, "(2 x)^2": 36, "-x^2": -9, "1 - x - w": -4, "1 - (x - w)": 0, "12 x / 4 w": 18,
    r"\frac12 x": 1.5, r"\frac1x": 1 / 3, r"\frac{x}{w + 1}": 1, r"\sqrt{x + 1}": 2, "x^{w + 1}": 27, "x^{-1}": 1 / 3,
    r"\alpha_t\, \alpha_{t|s}": 0.3, r"\alpha_{t \mid s}^2": 0.25, r"\hat\varepsilon_c w": 10,
    r"-2 \log \tan(x / w)": -2 * math.log(math.tan(1.5)), r"\log x^2": math.log(9), "e^{-x / 2}": math.exp(-1.5),
    r"\arctan e^{-w} - 1": math.atan(math.exp(-2)) - 1, r"f(x + 1) w": 34, r"f\big(f(w)\big)": 26,
    r"\mathrm{KL}(x \,\|\, w)": -1, r"\mathrm{KL}\big(x^2 \,\|\, w + 1\big) + 1": 4,
    r"g^\top A g": 12, r"g^\top g": 5, r"g \cdot g": 5, "|g|^2": 5, r"\big\| g - 2 g \big\|^2": 5, r"|x - w| + |w|": 3,
    "A B": [[3, 2], [3, 0]], "B A": [[2, 4], [2, 1]], "A^{-1} A": [[1, 0], [0, 1]], "A + w I": [[4, 1], [0, 5]],
}  # fmt: skip


def test_the_lines_of_an_aligned_formula_are_one_formula():
    lines = r"\begin{aligned} f(x) = {} & x^2 \\ & + 1, \\ & w = 2 \end{aligned} \label{eq-lines}"
    assert clauses(tokens_of(lines)) == clauses(tokens_of("f(x) = x^2 + 1, w = 2"))


@pytest.mark.parametrize("latex", EXPRESSIONS)
def test_an_expression_has_the_value_that_it_has_on_paper(latex: str):
    torch.testing.assert_close(torch.tensor(value(latex)), torch.tensor(EXPRESSIONS[latex]), check_dtype=False)


UNREADABLE = {
    "x + y": "'y': the reading has no such letter", r"\alpha_s x": "no such letter", "x +": "x +", "(x": "(",
    "g + x": "a sum of shapes", "g g": "a product of shapes", "g A": "a product of shapes", "g^2": "a power of shape",
    "x / g": "a division by shape", r"\mathrm{KL}(x)": "KL} of 1 arguments", r"x \text{ of course}": "no such letter",
}  # fmt: skip


@pytest.mark.parametrize("latex", UNREADABLE)
def test_what_has_no_meaning_is_unreadable(latex: str):
    with pytest.raises(Unreadable) as raised:
        value(latex)
    assert UNREADABLE[latex] in str(raised.value)


def test_an_equation_is_its_statements_without_label_and_punctuation():
    latex = r"x = 2, \qquad f(x, y) = 1 \text{ (here)}, \quad w = \mathbb E[x \mid y]: \label{eq-x}"
    assert [" ".join(statement) for statement in clauses(tokens_of(latex))] == [
        "x = 2", r"f ( x , y ) = 1 \text{ (here)}", r"w = \mathbb E [ x | y ]",
    ]  # fmt: skip


XY = {"y": 7.0, "x": 3.0}
LINE = Reading(XY | {"w": 2.0}, {r"\sigma_s": 1.0, r"\sigma_t": 4.0})
DEFINING = Reading(XY, statements=2, defines=("w",))
SENTENCE = Reading(XY, words=(r"x \text{ is odd}",))
TWO = {"y": [7.0, 9.0], "x": [3.0, 4.0]}
EVEN = Reading({"y": [6.0, 8.0], "x": [3.0, 4.0]})
DOUBLED = Reading({"x": 3.0, r"\to": lambda x: 2 * x})
DRAWN = Reading({"z": 0.0, r"\sim": lambda z: law(0.0, 4.0), r"\mathcal N": law})
CASES = Reading(XY, statements=3, defines=("w",), cases={"(odd)": {}, "(even)": {"y": 10.0}})
EQUATIONS = {  # a reading, an equation, and what is said of it
    "true": (LINE, "y = 1 + w x = 2 x + 1.", ""),
    "false": (LINE, "y = 1 - w x", "differ by"),
    "false on the right": (LINE, "y = 1 + w x = 2 x - 1", "2 x - 1: differ by"),
    "a letter short": (LINE, "y = 1 + 2 x", "w should stand in it"),
    "a statement more": (LINE, r"y = 1 + w x, \qquad x = 3", "2 statements, 1 are expected"),
    "no relation": (LINE, r"y w x", "is no relation"),
    "empty": (Reading({}, statements=0), "", "nothing in it can be compared"),
    "a definition": (DEFINING, r"y = 1 + w x, \quad w = 2", ""),
    "a wrong definition": (DEFINING, r"y = 1 + w x, \quad w = 3", "differ by"),
    "another letter defined": (DEFINING, r"y = 1 + 2 x, \quad v = 2", "no such letter"),
    "a letter not defined": (DEFINING, r"y = 1 + 2 x, \quad x = 3", "must define w"),
    "words": (SENTENCE, r"y = 2 x + 1, \quad x \text{ is odd}", ""),
    "other words": (SENTENCE, r"y = 2 x + 1, \quad x \text{ is even}", "is odd"),
    "a constant": (Reading(TWO, constant="C"), "y = 2 x + C", ""),
    "no constant": (Reading(TWO, constant="C"), "y = 3 x + C", "differ by"),
    "in proportion": (EVEN, r"y \propto x", ""),
    "not in proportion": (EVEN, r"y \propto x^2", "differ by"),
    "what it becomes": (DOUBLED, r"x \to 2 x", ""),
    "what it does not": (DOUBLED, r"x \to 3 x", "differ by"),
    "a law": (DRAWN, r"z \sim \mathcal N(0, 2^2)", ""),
    "another law": (DRAWN, r"z \sim \mathcal N(0, 2)", "differ by"),
    "a case": (CASES, r"y = 1 + w x, \quad w = 2 \text{ (odd)}, \quad w = 3 \text{ (even)}", ""),
    "a wrong case": (CASES, r"y = 1 + w x, \quad w = 2 \text{ (odd)}, \quad w = 2 \text{ (even)}", "(even): "),
    "an unknown case": (CASES, r"y = 1 + w x, \quad w = 2 \text{ (odd)}, \quad w = 2 \text{ (always)}", "w"),
}  # fmt: skip


@pytest.mark.parametrize("name", EQUATIONS)
def test_an_equation_is_true_or_it_is_said_what_is_wrong(name: str):
    reading, latex, expected = EQUATIONS[name]
    try:
        said = "; ".join(disagreements(latex, reading))
    except Unreadable as error:
        said = str(error)
    assert expected in said and bool(said) == bool(expected)


STEPS = torch.tensor([4e-3, 2e-3, 1e-3], dtype=F64)


ORDERS = {
    "y = 1 + h + O(h^2)": True, "y = 1 + O(h)": True, "y = 1 + h + O(h^3)": False, "y = 1 + 2 h + O(h^2)": False,
    "y = 1 + h + O(h)": False, r"y \approx 1 + h": True, r"y \approx 1 - h": False,
}  # fmt: skip


@pytest.mark.parametrize("latex", ORDERS)
def test_an_order_is_exact(latex: str):
    size = {r"\approx": STEPS**2} if "approx" in latex else {}
    assert (disagreements(latex, Reading({"y": STEPS.exp(), "h": STEPS} | size)) == []) == ORDERS[latex]


def test_mistakes_are_made_in_every_place_and_all_of_them_are_noticed():
    reading = Reading(
        {"y": 9.5, r"\gamma": 2.0, r"\mathrm{KL}": lambda p, q: p / q},
        {"x_s": 0.25, "x_t": 0.5, r"\Sigma": 5.0, r"\Sigma'": 4.0}, statements=2,
    )  # fmt: skip
    latex = r"y = -\gamma^2 + \frac{\mathrm{KL}(x_t \|\, x_s)}{1 - x_s} \Sigma'^2 / 4 + \frac{17}{6}, \; x_s = 1 / 4"
    assert disagreements(latex, reading) == []
    found = {mutant: fate(mutant, reading) for mutant in mutants(latex, reading)}
    assert {mutant.what for mutant in found} == {
        "sign", "factor dropped", "fraction inverted", "denominator dropped", "arguments swapped", "index", "number",
        "prime dropped", "exponent dropped", "division dropped", "multiplied for divided", "1 - x for x", "x for 1 - x",
        "squared", "statement dropped",
    }  # fmt: skip
    assert len({mutant.tokens for mutant in found}) == len(found) > 40
    assert [mutant for mutant, end in found.items() if end == "alive"] == []


def test_a_reading_names_its_equations():
    @reads("eq-a", "eq-b")
    def reading() -> Reading:
        return LINE

    assert reading.reads == ("eq-a", "eq-b") and reading() is LINE
