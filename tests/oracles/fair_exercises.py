"""What makes an exercise fair: it accepts the truth, tells its mistakes apart, and accepts nothing that is empty."""

import math
import time
from dataclasses import replace
from itertools import combinations

import torch

from difflesson.exercises import Exercise, faults, judge

MARGIN = 10  # how many tolerances the truth and the mistakes must be apart, each from each
CHECK_LIMIT = 2  # seconds of a processor, for a right answer; CONTRIBUTING.md promises it


def like(value, fill: float):
    """An answer of the shape of `value` that holds nothing but `fill`."""
    if isinstance(value, tuple):
        return tuple(like(part, fill) for part in value)
    if isinstance(value, str | bool):
        return type(value)()
    return torch.full_like(torch.as_tensor(value, dtype=torch.float64), fill)


def defects(exercise: Exercise) -> list[str]:
    """What makes an exercise unfair, or lets a wrong answer pass. Empty: nothing."""
    found, start = [], time.process_time()
    if judge(exercise, exercise.truth).kind != "done":
        found.append("refuses its own truth: it is not finite, or differs from run to run")
    if exercise.title != exercise.title.strip(" .") or not exercise.title or "\n" in exercise.title:
        found.append(f"does not end in a sentence: {exercise.number} done: {exercise.title}")
    if (took := time.process_time() - start) > CHECK_LIMIT:
        found.append(f"checks an answer in {took:.1f} s of a processor; {CHECK_LIMIT} s is the most")
    if len(exercise.mistakes) < 2:
        found.append("names fewer than two mistakes")
    for mistake in exercise.mistakes:
        try:
            exercise.run(mistake.answer)
        except Exception as error:  # then no answer could be compared with it
            return [*found, f"the mistake {mistake.name!r} raises {error!r}"]
    for mistake in exercise.mistakes:
        verdict = judge(exercise, mistake.answer)
        if verdict.kind == "done":
            found.append(f"accepts the mistake {mistake.name!r}")
        elif verdict.mistake != mistake.name:
            found.append(f"takes the mistake {mistake.name!r} for {verdict.mistake or verdict.message!r}")
        elif verdict.message != f"{exercise.number} not yet: {mistake.message}" or not mistake.message:
            found.append(f"does not say the message of the mistake {mistake.name!r}")
    truth = exercise.run(exercise.truth)
    for what, answers in {
        "zeros": [like(value, 0.0) for value in truth],
        "NaN": [like(value, math.nan) for value in truth],
        "one thing too many": [(value, value, value) for value in truth],
        "nothing": [None for _ in truth],
    }.items():
        replay = iter(answers)
        if judge(exercise, lambda *arguments, replay=replay: next(replay)).kind == "done":
            found.append(f"accepts an answer of {what}")
    return found


def confusions(exercise: Exercise) -> list[str]:
    """The pairs of truth and mistakes that no case tells apart by MARGIN tolerances. Empty: none.

    Closer than that, a right answer by another method, or in single precision, is taken for a mistake.
    """
    answers = {"truth": exercise.truth} | {mistake.name: mistake.answer for mistake in exercise.mistakes}
    results = {name: exercise.run(answer) for name, answer in answers.items()}
    wide = replace(exercise, tolerance=MARGIN * exercise.tolerance)
    return [
        f"{a!r} and {b!r}"
        for a, b in combinations(results, 2)
        if not (faults(wide, results[a], results[b]) and faults(wide, results[b], results[a]))
    ]
