"""Check what a reader wrote for an exercise, and say where to look again.

    exercises.check("7.1", my_function)

One module a chapter holds a list EXERCISES. An answer is a function. It is called on seeded cases and compared with
a truth that is computed another way (quadrature, finite differences, brute force), then with the known mistakes.
"""

import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module

import torch
from torch import Tensor


@dataclass(frozen=True)
class Mistake:
    """A plausible wrong answer, and what is said to someone who gives it: where to look, not what to write."""

    name: str
    answer: Callable
    message: str


@dataclass(frozen=True)
class Exercise:
    """What an answer is compared with.

    Args: number: "7.1";  cases: () -> {what the case is: arguments}, seeded, made anew for every function that runs on
    them;  truth: the right answer for these arguments, not by the solution's formula;  tolerance: an error up to
    `tolerance (1 + |true value|)` passes.  Answers are numbers, tensors, strings, bools, or tuples of these.
    """

    number: str
    title: str
    cases: Callable[[], dict[str, tuple]]
    truth: Callable
    mistakes: Sequence[Mistake]
    tolerance: float = 1e-6

    def run(self, answer: Callable) -> list:
        """What `answer` returns in each case."""
        return [answer(*arguments) for arguments in self.cases().values()]


@dataclass(frozen=True)
class Verdict:
    """`kind`: done, to do, raised, wrong, or mistake; then `mistake` names which."""

    kind: str
    message: str
    mistake: str = ""


def check(number: str, answer: Callable) -> None:
    """Print the verdict on `answer`. A wrong or unfinished answer never raises.

    Raises: ValueError if there is no exercise of this number.
    """
    print(verdict(number, answer).message)


def verdict(number: str, answer: Callable) -> Verdict:
    """What `check` prints, for programs to read.  Raises: ValueError if there is no exercise of this number."""
    return judge(find(number), answer)


def judge(exercise: Exercise, answer: Callable) -> Verdict:
    """Compare an answer with the truth, and if it differs, with each known mistake."""
    number = exercise.number
    if not callable(answer):
        return Verdict("wrong", f"{number} not yet: pass the function itself, without calling it")
    try:
        got = exercise.run(answer)
    except NotImplementedError:
        return Verdict("to do", f"{number} still to do")
    except Exception as error:  # whatever the reader's function raises is worth one line, not a traceback
        reason = (str(error).splitlines() or [""])[0]
        return Verdict("raised", f"{number} not yet: it raises {type(error).__name__}: {reason}")

    found = faults(exercise, got, exercise.run(exercise.truth))
    if not found:
        return Verdict("done", f"{number} done: {exercise.title}")
    for mistake in exercise.mistakes:
        if not faults(exercise, got, exercise.run(mistake.answer)):
            return Verdict("mistake", f"{number} not yet: {mistake.message}", mistake.name)
    return Verdict("wrong", f"{number} not yet: {found[0]}")


def faults(exercise: Exercise, got: list, want: list) -> list[str]:
    """For each case where the two differ, how. Empty: they agree."""
    found = []
    for case, ours, theirs in zip(exercise.cases(), got, want, strict=True):
        fault = difference(ours, theirs, exercise.tolerance)
        if fault:
            found.append(f"{fault}, in the case: {case}")
    return found


def difference(got, want, tolerance: float) -> str:
    """How `got` differs from `want`, without telling `want`. Empty if it does not."""
    if isinstance(want, tuple):
        if not isinstance(got, tuple | list) or len(got) != len(want):
            return f"expected a tuple of {len(want)}, got {described(got)}"
        parts = ((index, difference(a, b, tolerance)) for index, (a, b) in enumerate(zip(got, want, strict=True), 1))
        return next((f"part {index} of the answer: {fault}" for index, fault in parts if fault), "")
    if isinstance(want, str | bool):
        got = got.item() if isinstance(got, Tensor) and got.numel() == 1 else got  # a comparison of tensors
        if type(got) is not type(want):
            return f"expected {described(want)}, got {described(got)}"
        return "" if got == want else f"the answer {got!r} is not right"

    true = torch.as_tensor(want, dtype=torch.float64)
    try:
        value = torch.as_tensor(got).detach().cpu()
    except (TypeError, ValueError, RuntimeError):  # None, a string, a list that is not rectangular, ...
        return f"expected {described(want)}, got {described(got)}"
    if value.shape != true.shape or value.dtype == torch.bool:
        return f"expected {described(want)}, got {described(got)}"
    if not bool(value.isfinite().all()):
        return "the answer has NaN or infinity in it"
    error = (value.double() - true).abs()
    if bool((error <= tolerance * (1 + true.abs())).all()):
        return ""
    return f"off by up to {float(error.max()):.2g}"


def described(value) -> str:
    """A value's type, and its shape where it has one."""
    if isinstance(value, bool):
        return "True or False"
    if isinstance(value, Tensor) and value.dim():
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, int | float | Tensor):
        return "a number"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return {str: "a string", type(None): "None (is the return missing?)"}.get(type(value), type(value).__name__)


def chapters() -> list[int]:
    """The chapters that have exercises."""
    names = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(int(name.removeprefix("chapter")) for name in names)


def of_chapter(chapter: int) -> list[Exercise]:
    """The exercises of one chapter, in order. Only then is the chapter's module imported."""
    return list(import_module(f"{__name__}.chapter{chapter:02d}").EXERCISES)


def find(number: str) -> Exercise:
    """The exercise with this number, such as "7.1".  Raises: ValueError with the known ones if there is none."""
    chapter = str(number).split(".")[0]
    if not chapter.isdecimal() or int(chapter) not in chapters():
        raise ValueError(f"number must be a string such as '7.1', of a chapter in {chapters()}, got {number!r}")
    known = {exercise.number: exercise for exercise in of_chapter(int(chapter))}
    if number not in known:
        raise ValueError(f"number must be one of {', '.join(map(repr, known))} in chapter {chapter}, got {number!r}")
    return known[number]
