"""Check what a reader wrote for an exercise, and say where to look again.

    exercises.check("7.1", my_function)

One module a chapter holds a list EXERCISES. An answer is a function. It is called on seeded cases and compared with
a truth that is computed another way (quadrature, finite differences, brute force), then with the known mistakes.
Each call gets its own copy of a case: what one answer does to its arguments, no other ever sees.
"""

import pkgutil
import warnings
from collections.abc import Callable, Sequence
from copy import deepcopy
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

    Args: number: "7.1";  title: what the reader has shown, such that "7.1 done: {title}" reads as English;  cases:
    () -> {what the case is: arguments}, seeded; every function that runs on them gets deep copies (of tensors,
    containers and objects, not of what a function has closed over);  truth: the right answer for these arguments, not
    by the solution's formula;  tolerance: an error up to `tolerance (1 + |true value|)` passes.
    Answers are real numbers, tensors, strings, bools, or tuples of these.
    """

    number: str
    title: str
    cases: Callable[[], dict[str, tuple]]
    truth: Callable
    mistakes: Sequence[Mistake]
    tolerance: float = 1e-6

    def run(self, answer: Callable) -> list:
        """What `answer` returns in each case."""
        return [answer(*deepcopy(arguments)) for arguments in self.cases().values()]


@dataclass(frozen=True)
class Verdict:
    """`kind`: done, to do, raised, wrong, or mistake; then `mistake` names which."""

    kind: str
    message: str
    mistake: str = ""


def check(number: str | Exercise, answer: Callable) -> None:
    """Print the verdict on `answer`. A wrong or unfinished answer never raises.

    Args: number: "7.1", or an exercise of your own.  Raises: ValueError if there is no exercise of this number.
    """
    print(verdict(number, answer).message)


def verdict(number: str | Exercise, answer: Callable) -> Verdict:
    """What `check` prints, for programs to read.  Raises: ValueError if there is no exercise of this number."""
    return judge(number if isinstance(number, Exercise) else find(number), answer)


def judge(exercise: Exercise, answer: Callable) -> Verdict:
    """Compare an answer with the truth, and if it differs, with each known mistake.

    No warning gets out, whoever raises it. A reader's own is quoted where nothing better can be said of the answer.
    """
    number = exercise.number
    if not callable(answer):
        return Verdict("wrong", f"{number} not yet: pass the function itself, without calling it")
    cases = exercise.cases()
    given = {case: deepcopy(arguments) for case, arguments in cases.items()}  # one by one: cases may share a global
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            got = [answer(*arguments) for arguments in given.values()]
        except NotImplementedError:
            return Verdict("to do", f"{number} still to do")
        except (Exception, SystemExit) as error:  # whatever a reader's function raises is worth one line
            return Verdict("raised", f"{number} not yet: it raises {type(error).__name__}: {first_line(error)}")
        hint = f" (Python warned: {first_line(warned[0].message)})" if warned else ""

        found = faults(exercise, got, exercise.run(exercise.truth))
        if not found:
            return overwritten(exercise, cases, given) or Verdict("done", f"{number} done: {exercise.title}")
        for mistake in exercise.mistakes:
            if not faults(exercise, got, exercise.run(mistake.answer)):
                return Verdict("mistake", f"{number} not yet: {mistake.message}", mistake.name)
        return Verdict("wrong", f"{number} not yet: {found[0]}{hint}")


def first_line(message) -> str:
    """The first line of an error's or a warning's text, which may be empty."""
    return (str(message).splitlines() or [""])[0]


def overwritten(exercise: Exercise, before: dict, after: dict) -> Verdict | None:
    """The verdict on a right answer that has changed one of its arguments, None if it has changed none."""
    for case, arguments in before.items():
        for position, (old, new) in enumerate(zip(arguments, after[case], strict=True), 1):
            if not unchanged(old, new):
                what = f"the answer is right, but your function overwrites its argument {position}: work on a copy"
                return Verdict("wrong", f"{exercise.number} not yet: {what}, in the case: {case}")
    return None


def unchanged(old, new) -> bool:
    """Whether an argument is what it was. What an object adds to itself, such as a cached value, does not count."""
    if isinstance(old, Tensor):
        return isinstance(new, Tensor) and old.shape == new.shape and bool(((old == new) | (old != old)).all())
    if isinstance(old, list | tuple):
        return len(old) == len(new) and all(map(unchanged, old, new))
    if isinstance(old, dict):
        return all(key in new and unchanged(value, new[key]) for key, value in old.items())
    if hasattr(old, "__dict__") and old is not new:
        return unchanged(vars(old), vars(new))
    return not isinstance(old, int | float | complex | str) or old is new or old == new  # `is`: NaN is not NaN


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
        if not isinstance(got, tuple | list) and getattr(got, "shape", ())[:1] == (len(want),):
            got = list(got)  # several numbers in one tensor or array
        if not isinstance(got, tuple | list) or len(got) != len(want):
            return f"expected a tuple of {len(want)}, got {described(got)}"
        parts = ((index, difference(a, b, tolerance)) for index, (a, b) in enumerate(zip(got, want, strict=True), 1))
        return next((f"part {index} of the answer: {fault}" for index, fault in parts if fault), "")
    if isinstance(want, str | bool):
        got = got.item() if isinstance(got, Tensor) and got.numel() == 1 else got  # a comparison of tensors
        if type(got) is not type(want):
            return f"expected {described(want)}, got {described(got)}"
        return "" if got == want else f"the answer {got!r} is not right"

    if isinstance(got, Tensor) and (got.is_nested or got.layout != torch.strided or got.device.type == "meta"):
        return f"expected {described(want)}, got a nested, sparse or meta tensor"
    true = numbers(want)
    try:
        value = numbers(got)
    except (TypeError, ValueError, RuntimeError):  # None, a string, a list that is not rectangular, ...
        return f"expected {described(want)}, got {described(got)}"
    lossy = value.dtype == torch.bool or value.is_complex() and not true.is_complex()
    if lossy or squeezed(value) != squeezed(true):
        return f"expected {described(want)}, got {described(got)}"
    if not bool(value.isfinite().all()):
        return "the answer has NaN or infinity in it"
    error = (value.reshape(true.shape) - true).abs()
    if not bool((error <= tolerance * (1 + true.abs())).all()):
        off = "" if value.shape == true.shape else f", and expected {described(want)}, got {described(got)}"
        return f"off by up to {float(error.max()):.2g}{off}"
    if value.shape != true.shape:
        return f"the numbers are right, but expected {described(want)}, got {described(got)}"
    return ""


def numbers(value) -> Tensor:
    """A number, a tensor or a list of numbers as a tensor in double precision, on the CPU; of truth values, as it is.

    Raises: TypeError, ValueError or RuntimeError if it is none of these.
    """
    tensor = torch.as_tensor(value)
    if tensor.dtype == torch.bool:
        return tensor
    return torch.as_tensor(value, dtype=torch.complex128 if tensor.is_complex() else torch.float64).detach().cpu()


def squeezed(value: Tensor) -> list[int]:
    """The shape without axes of length one: where it agrees, an axis is missing or superfluous, and no more."""
    return [length for length in value.shape if length != 1]


def described(value) -> str:
    """A value's type, and its shape where it has one."""
    if isinstance(value, bool):
        return "True or False"
    if isinstance(value, Tensor):
        kind = "complex " if value.is_complex() else ""
        return f"a {kind}tensor of shape {tuple(value.shape)}" if value.dim() else f"a {kind}number"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, complex):
        return "a complex number"
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
