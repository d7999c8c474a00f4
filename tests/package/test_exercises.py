"""Every exercise accepts its solution and refuses its stub and its named mistakes; so does the machinery."""

import math
from functools import cache

import pytest
import torch

from difflesson import exercises
from difflesson.exercises import Exercise, Mistake, Verdict, judge
from tests.oracles.fair_exercises import defects
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
}


@pytest.mark.parametrize("defect", UNFAIR)
def test_an_unfair_exercise_is_reported(defect: str):
    found = defects(made_up(**UNFAIR[defect]))
    assert len([message for message in found if message.startswith(defect)]) == 1, found


def test_a_truth_that_changes_from_run_to_run_is_reported():
    generator = torch.Generator().manual_seed(0)
    found = defects(made_up(truth=lambda x: torch.randn((), generator=generator)))
    assert any(message.startswith("refuses its own truth") for message in found)


def unfinished(x):
    raise NotImplementedError("your turn")


def broken(x):
    raise KeyError("no such\nthing")


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


def test_an_answer_that_changes_its_arguments_does_not_spoil_the_truth():
    exercise = made_up(cases=lambda: {"ones": (torch.ones(2),)}, truth=lambda x: 3 * x)

    def in_place(x):
        return x.mul_(3)

    assert judge(exercise, in_place).kind == "done"
    assert judge(exercise, lambda x: in_place(x) * 3).kind == "wrong"


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
