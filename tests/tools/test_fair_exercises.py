"""The oracle of fair exercises notices a check that takes too long."""

import pytest

from difflesson.exercises import Exercise, Mistake
from tests.oracles import fair_exercises

MISTAKES = [Mistake("half", lambda x: x / 2, "twice that"), Mistake("sign", lambda x: -x, "the other way")]
EXERCISE = Exercise("0.1", "the same", lambda: {"one": (1.0,), "two": (2.0,)}, lambda x: x, MISTAKES)


def test_a_quick_check_is_fair():
    assert fair_exercises.defects(EXERCISE) == []


def test_a_slow_check_is_not(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fair_exercises, "CHECK_LIMIT", -1)
    (defect,) = fair_exercises.defects(EXERCISE)
    assert defect == "checks an answer in 0.0 s of a processor; -1 s is the most"
