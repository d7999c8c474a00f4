"""The checkers of exercises: no kind of answer breaks one, and nothing passes from one answer to the next."""

import inspect

import pytest
import torch

from difflesson.exercises import Exercise, chapters, judge, of_chapter

SQUARES = Exercise("9.1", "the square", lambda: {"two": (torch.full((2,), 2.0),)}, lambda x: x**2, [])


@pytest.mark.parametrize("kind", [
    lambda x: (x**2).to_sparse(), lambda x: torch.nested.nested_tensor([x**2]), lambda x: (x**2).to("meta"),
], ids=["sparse", "nested", "meta"])  # fmt: skip
@pytest.mark.filterwarnings("ignore")  # nested tensors announce that they are a prototype
def test_a_tensor_that_has_no_plain_numbers_is_a_wrong_answer_and_no_crash(kind):
    assert judge(SQUARES, lambda x: x**2).kind == "done"
    verdict = judge(SQUARES, kind)
    assert verdict.kind == "wrong" and "got a nested, sparse or meta tensor" in verdict.message


def closed_over(values) -> set[int]:
    """The identities of the tensors that functions among the values have closed over: no deep copy reaches them."""
    insides = [cell.cell_contents for value in values for cell in getattr(value, "__closure__", None) or ()]
    found = {id(inside) for inside in insides if isinstance(inside, torch.Tensor)}
    return found | closed_over(inside for inside in insides if inspect.isfunction(inside)) if insides else found


@pytest.mark.parametrize("chapter", chapters())
def test_functions_in_cases_are_made_anew_for_each_run(chapter):
    for exercise in of_chapter(chapter):
        one, other = exercise.cases(), exercise.cases()  # both kept, or the second might get the places of the first
        assert not closed_over(sum(one.values(), ())) & closed_over(sum(other.values(), ())), exercise.number
