"""Every numbered equation is true as its page has it, and a mistake in its LaTeX would be noticed."""

from functools import cache

import pytest

from tools.formula import Unreadable, disagreements
from tools.pairs import NOTEBOOKS
from tools.readings import displayed, fates, readings

PAGES = {source.name[:2]: displayed(source) for source in sorted(NOTEBOOKS.glob("[0-9][0-9]_*.py"))}
READ = [
    pytest.param(number, label, id=f"{number}-{label}")
    for number, equations in PAGES.items()
    for label in equations
    if label in readings(number)
]


@cache
def ends_of(number: str, label: str) -> dict:
    """What becomes of the mistakes in an equation's LaTeX; two tests ask for it."""
    return fates(PAGES[number][label], readings(number)[label]())


@pytest.mark.parametrize(("number", "label"), READ)
def test_the_equation_is_true_as_the_page_has_it(number: str, label: str):
    assert disagreements(PAGES[number][label], readings(number)[label]()) == []


@pytest.mark.parametrize(("number", "label"), READ)
def test_a_mistake_in_its_latex_is_noticed(number: str, label: str):
    reading = readings(number)[label]()
    ends = ends_of(number, label)
    assert len(ends) >= 5
    assert [mutant.where for mutant, end in ends.items() if end == "alive"] == []
    unknown = reading.equivalent.keys() - {mutant.where for mutant, end in ends.items() if end == "equivalent"}
    assert not unknown, "listed as equivalent, but no mistake or noticed: take them off"


@pytest.mark.parametrize("number", PAGES)
def test_of_all_mistakes_of_a_chapter_95_in_100_are_noticed_and_two_in_five_by_their_value(number: str):
    ends = [end for label in readings(number) for end in ends_of(number, label).values()]
    assert ends.count("value") + ends.count("unreadable") >= 0.95 * len(ends)
    assert ends.count("value") >= 0.4 * len(ends)


@pytest.mark.parametrize("number", PAGES)
def test_two_labels_exchanged_are_noticed(number: str):
    """Each reading refuses every other equation of its chapter, whether it can compute it or not."""
    for label in readings(number):
        for other, latex in PAGES[number].items():
            try:
                assert other == label or disagreements(latex, readings(number)[label]()), (label, other)
            except Unreadable:
                continue


@pytest.mark.parametrize(("number", "label"), READ)
@pytest.mark.parametrize("instead", ["", r"\text{see below}", "0 = 0", "1 = 1."])
def test_an_equation_emptied_or_made_trivial_is_noticed(number: str, label: str, instead: str):
    try:
        assert disagreements(instead + rf"\label{{{label}}}", readings(number)[label]())
    except Unreadable:
        pass
