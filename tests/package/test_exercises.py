"""Every exercise accepts its solution and refuses its stub and its named mistakes; so does the machinery."""

import math
import sys
import warnings
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import torch

from difflesson import exercises
from difflesson.exercises import Exercise, Mistake, Verdict, judge
from tests.oracles.fair_exercises import confusions, defects
from tools import notebooks
from tools.exercise_cells import SolvedExercise, find_exercises

# --- the exercises of the chapters ----------------------------------------------------------------------------


@cache
def chapter(name: str) -> tuple[str, list[SolvedExercise]]:
    """A chapter's first code cell, which imports, and its exercises."""
    cells = notebooks.cells_of(notebooks.NOTEBOOKS / f"{name}.py")
    return next(cell.source for cell in cells if cell.cell_type == "code"), find_exercises(cells)


CHAPTERS = [source.stem for source in notebooks.chapters([], notebooks.NOTEBOOKS)]
EXERCISES = [pytest.param(name, e, id=e.number) for name in CHAPTERS for e in chapter(name)[1]]


def function(name: str, exercise: SolvedExercise, source: str):
    """The exercise's function, defined after the chapter's imports and nothing else."""
    namespace = {}
    exec(chapter(name)[0], namespace)
    exec(source, namespace)
    return namespace[exercise.name]


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_and_its_checkers_number_the_same_exercises_without_a_gap(name: str):
    number = int(name[:2])
    shown = [exercise.number for exercise in chapter(name)[1]]
    assert shown == [f"{number}.{k}" for k in range(1, len(shown) + 1)]
    assert shown == [exercise.number for exercise in exercises.of_chapter(number)]


def test_every_module_of_checkers_has_its_chapter():
    assert exercises.chapters() == [int(name[:2]) for name in CHAPTERS]


@pytest.mark.parametrize(("name", "exercise"), EXERCISES)
def test_the_solution_passes(name: str, exercise: SolvedExercise):
    verdict = exercises.verdict(exercise.number, function(name, exercise, exercise.solution))
    assert verdict.kind == "done", verdict.message


@pytest.mark.parametrize(("name", "exercise"), EXERCISES)
def test_the_stub_is_still_to_do(name: str, exercise: SolvedExercise):
    verdict = exercises.verdict(exercise.number, function(name, exercise, exercise.stub))
    assert verdict == Verdict("to do", f"{exercise.number} still to do")


@pytest.mark.parametrize(("name", "exercise"), EXERCISES)
def test_the_exercise_is_fair(name: str, exercise: SolvedExercise):
    assert defects(exercises.find(exercise.number)) == []


@pytest.mark.parametrize(("name", "exercise"), EXERCISES)
def test_the_cases_tell_the_truth_and_all_mistakes_apart(name: str, exercise: SolvedExercise):
    """By ten tolerances, in at least one case."""
    close = confusions(exercises.find(exercise.number))
    assert not close, f"exercise {exercise.number}: less than ten tolerances between {', '.join(close)}"


# --- the machinery, on made-up exercises ----------------------------------------------------------------------


def made_up(**changes) -> Exercise:
    """Square a number; `changes` replace parts of the exercise."""
    parts = {
        "number": "9.1",
        "title": "the square",
        "cases": lambda: {"two": (2.0,), "minus three": (-3.0,)},
        "truth": lambda x: x**2,
        "mistakes": [
            Mistake("doubled", lambda x: 2 * x, "which power?"),
            Mistake("sign kept", lambda x: x * abs(x), "what is the sign of a square?"),
        ],
    }
    return Exercise(**(parts | changes))


def test_a_fair_exercise_has_no_defects():
    assert defects(made_up()) == []


DOUBLED = Mistake("doubled", lambda x: 2 * x, "which power?")
ANOTHER = Mistake("another way to write it", lambda x: x * x, "no")
ADDED = Mistake("added", lambda x: x + x, "no")
RAISES = Mistake("raises", lambda x: x[0], "no")
MUTE = Mistake("mute", lambda x: -x, "")
UNFAIR = {
    "accepts the mistake 'another way to write it'": {"mistakes": [DOUBLED, ANOTHER]},
    "accepts the mistake 'sign kept'": {"cases": lambda: {"two": (2.0,), "three": (3.0,)}},
    "takes the mistake 'added' for 'doubled'": {"mistakes": [DOUBLED, ADDED]},
    "does not say the message of the mistake 'mute'": {"mistakes": [DOUBLED, MUTE]},
    "the mistake 'raises' raises TypeError": {"mistakes": [DOUBLED, RAISES]},
    "names fewer than two mistakes": {"mistakes": [DOUBLED]},
    "accepts an answer of zeros": {"cases": lambda: {"nothing": (0.0,)}},
    "refuses its own truth": {"truth": lambda x: math.inf},
    "does not end in a sentence: 9.1 done: What is x?\nA": {"title": "What is x?\nA"},
    "does not end in a sentence: 9.1 done: squared.": {"title": "squared."},
}


@pytest.mark.parametrize("defect", UNFAIR)
def test_an_unfair_exercise_is_reported(defect: str):
    found = defects(made_up(**UNFAIR[defect]))
    assert len([message for message in found if message.startswith(defect)]) == 1, found


@pytest.mark.parametrize(("apart", "close"), [(0.99e-2, True), (1.02e-2, False)])
def test_answers_closer_than_ten_tolerances_are_reported(apart: float, close: bool):
    """The tolerance of 1e-3 is relative to 1 + |value|; the case of the zero is the sharper one."""
    pair = [Mistake("up", lambda x: 10 * x, "no"), Mistake("a little higher", lambda x: 10 * x + apart, "no")]
    made = made_up(cases=lambda: {"two": (2.0,), "nothing": (0.0,)}, mistakes=pair, tolerance=1e-3)
    assert confusions(made) == (["'up' and 'a little higher'"] if close else [])
    near = Mistake("nearly", lambda x: x**2 - apart, "no")
    assert confusions(made_up(cases=made.cases, mistakes=[near], tolerance=1e-3)) == (
        ["'truth' and 'nearly'"] if close else []
    )
    assert confusions(made_up()) == []


def test_a_truth_that_changes_from_run_to_run_is_reported():
    generator = torch.Generator().manual_seed(0)
    found = defects(made_up(truth=lambda x: torch.randn((), generator=generator)))
    assert any(message.startswith("refuses its own truth") for message in found)


def unfinished(x):
    raise NotImplementedError("your turn")


def broken(x):
    raise KeyError("no such\nthing")


def leaves(x):
    sys.exit("enough")


def warns(x, wrong=1.0):
    warnings.warn("overflow\nencountered", RuntimeWarning, stacklevel=2)
    return x**2 + wrong


def mute(x):
    raise ValueError


NOT_A_NUMBER = "not yet: expected a number, got "
VERDICTS = {  # an answer: the kind of verdict, and what is printed after "9.1 "
    "right": (lambda x: x**2, "done", "done: the square"),
    "right, another type": (lambda x: torch.tensor(x, requires_grad=True) ** 2, "done", "done: the square"),
    "right, in float32": (lambda x: torch.tensor(x).float() ** 2, "done", "done: the square"),
    "right, an integer": (lambda x: int(x) ** 2, "done", "done: the square"),
    "untouched": (unfinished, "to do", "still to do"),
    "raises": (broken, "raised", "not yet: it raises KeyError: 'no such\\nthing'"),
    "raises without a word": (mute, "raised", "not yet: it raises ValueError: "),
    "leaves Python": (leaves, "raised", "not yet: it raises SystemExit: enough"),
    "right, with a warning": (lambda x: warns(x, 0.0), "done", "done: the square"),
    "wrong, with a warning": (
        warns, "wrong", "not yet: off by up to 1, in the case: two (Python warned: overflow)"),
    "a mistake, with a warning": (lambda x: warns(x, 2 * x - x**2), "mistake", "not yet: which power?"),
    "complex": (lambda x: complex(x**2), "wrong", NOT_A_NUMBER + "a complex number, in the case: two"),
    "a complex tensor": (
        lambda x: torch.tensor(complex(x**2)), "wrong", NOT_A_NUMBER + "a complex number, in the case: two"),
    "an axis too many": (
        lambda x: torch.tensor([x**2]), "wrong",
        "not yet: the numbers are right, but expected a number, got a tensor of shape (1,), in the case: two"),
    "wrong, and an axis too many": (
        lambda x: torch.tensor([[x**2 + 1]]), "wrong",
        "not yet: off by up to 1, and expected a number, got a tensor of shape (1, 1), in the case: two"),
    "wants two arguments": (lambda x, y: x, "raised", "not yet: it raises TypeError: <lambda>() missing 1"),
    "a mistake": (lambda x: 2 * x, "mistake", "not yet: which power?"),
    "no return": (lambda x: None, "wrong", NOT_A_NUMBER + "None (is the return missing?), in the case: two"),
    "a vector": (lambda x: torch.ones(3), "wrong", NOT_A_NUMBER + "a tensor of shape (3,), in the case: two"),
    "words": (lambda x: "four", "wrong", NOT_A_NUMBER + "a string, in the case: two"),
    "a truth value": (lambda x: True, "wrong", NOT_A_NUMBER + "True or False, in the case: two"),
    "NaN": (lambda x: math.nan, "wrong", "not yet: the answer has NaN or infinity in it, in the case: two"),
    "right once": (lambda x: 4.0, "wrong", "not yet: off by up to 5, in the case: minus three"),
    "a result": (4.0, "wrong", "not yet: pass the function itself, without calling it"),
}


@pytest.mark.parametrize("answer", VERDICTS)
def test_each_kind_of_answer_gets_its_verdict(answer: str):
    function, kind, text = VERDICTS[answer]
    verdict = judge(made_up(), function)
    assert verdict.kind == kind
    assert verdict.message.startswith(f"9.1 {text}")
    assert "\n" not in verdict.message


def test_the_tolerance_is_relative_to_large_values_and_absolute_for_small_ones():
    for true, error in ((0.0, 0.9e-3), (1000.0, 0.9), (-1000.0, 0.9)):
        exercise = made_up(truth=lambda x, true=true: true, tolerance=1e-3)
        assert judge(exercise, lambda x, value=true + error: value).kind == "done"
        assert judge(exercise, lambda x, value=true + 1.2 * error: value).kind == "wrong"


def test_tuples_strings_and_truth_values_are_compared_part_by_part():
    exercise = made_up(truth=lambda x: (torch.full((2,), x), "up", x > 0))
    assert judge(exercise, lambda x: (torch.full((2,), x), "up", torch.tensor(x) > 0)).kind == "done"
    for wrong, text in {
        (1.0, "up", True): "part 1 of the answer: expected a tensor of shape (2,), got a number",
        (torch.full((2,), 2.0), "down", True): "part 2 of the answer: the answer 'down' is not right",
        (torch.full((2,), 2.0), "up", 1.0): "part 3 of the answer: expected True or False, got a number",
        (torch.full((2,), 2.0), "up"): "expected a tuple of 3, got a tuple of 2",
    }.items():
        assert judge(exercise, lambda x, wrong=wrong: wrong).message == f"9.1 not yet: {text}, in the case: two"


@pytest.mark.parametrize("shape", [(2, 1), (1, 2)], ids=str)
def test_right_numbers_with_another_axis_get_both_shapes(shape: tuple):
    exercise = made_up(truth=lambda x: torch.tensor([x, x**2]), mistakes=[])
    verdict = judge(exercise, lambda x: torch.tensor([x, x**2]).reshape(shape))
    assert verdict.message == (
        f"9.1 not yet: the numbers are right, but expected a tensor of shape (2,), got a tensor of shape {shape}, "
        "in the case: two"
    )
    column = made_up(truth=lambda x: torch.tensor([[x], [x**2]]))
    assert "but expected a tensor of shape (2, 1), got a list of 2" in judge(column, lambda x: [x, x**2]).message
    turned = made_up(truth=lambda x: x * torch.arange(6.0).reshape(2, 3))  # more than an axis is wrong
    assert judge(turned, lambda x: x * torch.arange(6.0).reshape(3, 2)).message == (
        "9.1 not yet: expected a tensor of shape (2, 3), got a tensor of shape (3, 2), in the case: two"
    )


def test_python_numbers_are_compared_in_double_precision():
    exercise = made_up(truth=lambda x: 1 / 3, tolerance=1e-12, mistakes=[])
    assert judge(exercise, lambda x: 1 / 3).kind == "done"
    assert judge(exercise, lambda x: 1 / 3 + 1e-11).kind == "wrong"


def test_a_complex_mistake_is_known_too():
    exercise = made_up(mistakes=[Mistake("root of a negative number", lambda x: (-abs(x)) ** 0.5, "which sign?")])
    assert judge(exercise, lambda x: (-abs(x)) ** 0.5).mistake == "root of a negative number"


@dataclass(frozen=True)
class Box:
    """Something with a tensor inside."""

    inside: torch.Tensor


ONES = torch.ones(2)
OVERWRITING = {  # arguments of two cases, each the same object; a truth; and an answer that is right but for a trace
    "a tensor": ((ONES,), lambda x: 3 * x, lambda x: x.mul_(3)),
    "a part of a tensor": ((2.0, ONES), lambda a, x: a * x, lambda a, x: (a * x, x[1:].zero_())[0]),
    "a list": (([ONES, 2.0],), lambda pair: pair[0] * 2, lambda pair: pair[0] * pair.pop()),
    "an entry of a list": (([1.0, 2.0],), lambda pair: 3.0, lambda pair: (sum(pair), pair.reverse())[0]),
    "a tensor in a dict": (({"x": ONES},), lambda d: 3 * ONES, lambda d: d["x"].mul_(3)),
    "a tensor in an object": ((Box(ONES),), lambda box: box.inside + 1, lambda box: box.inside.add_(1)),
}


@pytest.mark.parametrize("what", OVERWRITING)
def test_an_answer_that_overwrites_its_arguments_is_refused_and_spoils_nothing(what: str):
    """Both cases share their arguments: without copies the second would start where the first has stopped."""
    arguments, truth, answer = OVERWRITING[what]
    exercise = made_up(cases=lambda: {"first": arguments, "second": arguments}, truth=truth, mistakes=[])
    position = len(arguments)
    assert judge(exercise, answer) == Verdict(
        "wrong",
        f"9.1 not yet: the answer is right, but your function overwrites its argument {position}: work on a copy, "
        "in the case: first",
    )
    assert torch.equal(ONES, torch.ones(2))
    assert judge(exercise, truth).kind == "done"


def test_a_wrong_answer_is_not_done_after_one_that_overwrote_the_shared_case():
    mistake = Mistake("overwrites", lambda x: x.mul_(5), "no")
    exercise = made_up(cases=lambda: {"ones": (ONES,)}, truth=lambda x: 3 * x, mistakes=[mistake])
    assert judge(exercise, lambda x: x.mul_(3)).kind == "wrong"
    assert judge(exercise, lambda x: 5 * x).kind == "mistake"
    assert torch.equal(ONES, torch.ones(2))
    assert judge(exercise, lambda x: 9 * x).kind == "wrong"  # right, had the case become 3
    assert judge(exercise, lambda x: 3 * x).kind == "done"


def test_what_an_argument_does_to_itself_is_not_held_against_the_answer():
    class Lazy:
        def __init__(self):
            self.x = torch.tensor([1.0, math.nan])

        def total(self):
            self.known = float(self.x[0])
            return self.known

    def cases():
        return {"lazy": (Lazy(), torch.Generator().manual_seed(0), math.nan, max)}

    exercise = made_up(cases=cases, truth=lambda lazy, *_: 1.0, mistakes=[])

    def answer(lazy, generator, number, function):
        return lazy.total() + 0 * float(torch.rand((), generator=generator))

    assert judge(exercise, answer).kind == "done"


def test_no_warning_gets_out_of_a_check(recwarn: pytest.WarningsRecorder):
    loud = Mistake("loud", lambda x: warns(x, 5.0), "no")
    for answer in (warns, lambda x: warns(x, 0.0), lambda x: complex(x), lambda x: x + 100):
        judge(made_up(mistakes=[loud], truth=lambda x: warns(x, 0.0)), answer)
    assert not recwarn.list


def test_a_reader_can_still_interrupt():
    def interrupted(x):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        judge(made_up(), interrupted)


def test_check_prints_one_line_and_returns_nothing(capsys: pytest.CaptureFixture):
    assert exercises.check("0.1", unfinished) is None
    assert capsys.readouterr().out == "0.1 still to do\n"


@pytest.mark.parametrize(
    ("number", "text"),
    [
        ("0.99", r"number must be one of '0.1', .* in chapter 0, got '0.99'"),
        ("99.1", r"such as '7.1', of a chapter in \[0.*got '99.1'"),
        (0.1, r"number must be .* got 0.1"),
        ("easy", r"number must be .* got 'easy'"),
    ],
)
def test_an_unknown_number_is_refused_with_the_known_ones(number, text: str):
    with pytest.raises(ValueError, match=text):
        exercises.check(number, unfinished)


def test_several_numbers_may_come_as_one_array_or_tensor_and_no_other_number_of_them():
    pair = made_up(truth=lambda x: (x**2, x + 1.0), mistakes=[])
    for answer in (lambda x: torch.tensor([x**2, x + 1]), lambda x: np.array([x**2, x + 1]), lambda x: [x**2, x + 1]):
        assert judge(pair, answer).kind == "done"
    assert judge(pair, lambda x: np.array([x**2, x + 2])).message.startswith("9.1 not yet: part 2 of the answer")
    assert "expected a tuple of 2" in judge(pair, lambda x: torch.zeros(3)).message


def test_an_exercise_of_ones_own_is_checked_like_the_courses(capsys):
    exercises.check(made_up(number="variant A"), lambda x: x * x)
    assert capsys.readouterr().out == "variant A done: the square\n"
