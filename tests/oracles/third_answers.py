"""An exercise's answer computed a third way: neither as its solution does, nor as its checker.

If somebody gets truth and solution wrong together, they agree, and every other test of the exercise stays green.
"""

from collections.abc import Callable

from difflesson import exercises


def disagreements(number: str, answer: Callable) -> list[str]:
    """The cases of the exercise in which `answer` differs from the checker's truth, by more than its tolerance."""
    exercise = exercises.find(number)
    return exercises.faults(exercise, exercise.run(answer), exercise.run(exercise.truth))
