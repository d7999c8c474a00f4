"""Tolerances of a chapter's assertions that are far wider than what they allow for.

    python -m tools.loose_tolerances        every chapter
    python -m tools.loose_tolerances 07     only this one

Each chapter's assertions run, with what they need and without pictures, and each says how much of its tolerance it
used. Whoever loosens one a thousandfold is told. An assertion made in a loop counts with its tightest pass. Torch's own
tolerances of `assert_close`, and any that are stricter, are never too wide; nor is a bound up to `ROUNDING`.
"""

import ast
import operator
import os
import sys
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated

import typer

from tools.cell_mutants import PRELOADED, CellJob, execute, preload
from tools.cell_slices import all_assertions, code_cells
from tools.mutants import ROOT, Outcome, clean_copy, enter, run_all
from tools.pairs import Names, chapters

WIDEST = 300  # times what was needed
ROUNDING = 1e-8
ORDER = {"Lt": operator.lt, "LtE": operator.le, "Gt": operator.gt, "GtE": operator.ge}
OWN = {"float64": (1e-7, 1e-7), "float32": (1e-5, 1.3e-6)}  # of torch.testing.assert_close: absolute, relative


class Slack(dict):
    """By place in the source, which begins with the line: how much of its tolerance was used at most, and by what."""

    def note(self, place: tuple, used: float, what: str) -> None:
        if place not in self or used > self[place][0]:
            self[place] = (used, what)

    def compared(self, place: tuple, operators: tuple[str, ...], fixed: tuple[bool, ...], *sides) -> object:
        """What `a < b < c` says; notes how near each side is to its bound.  Args: fixed: which are written numbers."""
        for index, (name, left, right) in enumerate(zip(operators, sides[:-1], sides[1:], strict=True)):
            low, high = (left, right) if name.startswith("L") else (right, left)
            try:
                low, high = float(low), float(high)
            except (TypeError, ValueError, RuntimeError):
                low = high = 0.0  # no numbers
            is_sign = low == 0 and fixed[index if name.startswith("L") else index + 1]  # 0 < x says no size
            if 0 <= low < high and high > ROUNDING and not is_sign and not all(fixed[index : index + 2]):
                self.note((*place, index), low / high, f"{low:.2g} against {high:.2g}")
        pairs = zip(operators, sides[:-1], sides[1:], strict=True)
        answers = [ORDER[name](left, right) for name, left, right in pairs]
        return answers[0] if len(answers) == 1 else all(map(bool, answers))  # `(a < b).all()` needs all of `a < b`

    def watched(self, assert_close, chapter: str):
        """`assert_close`, which notes how much of its tolerance was needed."""
        import torch

        def watching(actual, expected, *, atol=None, rtol=None, **options):
            assert_close(actual, expected, atol=atol, rtol=rtol, **options)
            frame = sys._getframe(1)
            own = OWN.get(str(getattr(actual, "dtype", "")).removeprefix("torch."), OWN["float64"])
            is_wider = atol is not None and (atol > own[0] or rtol > own[1])
            if is_wider and frame.f_code.co_filename.endswith(chapter):
                allowed = atol + rtol * abs(expected)
                share = torch.as_tensor(abs(actual - expected) / allowed)  # of two numbers, or of two tensors
                used = float(share.nan_to_num(0.0).max())  # 0 of 0, or of infinity
                self.note((frame.f_lineno,), used, f"atol={atol:g}, rtol={rtol:g}, {used:.1g} of it needed")

        return watching


class Watched(ast.NodeTransformer):
    """The comparisons of sizes inside assertions, made through `__slack__`."""

    def __init__(self):
        self.inside = False

    def visit_Assert(self, node):
        self.inside = True
        node.test = self.visit(node.test)
        self.inside = False
        return node

    def visit_Compare(self, node):
        self.generic_visit(node)
        names = [type(one).__name__ for one in node.ops]
        has_number = any(isinstance(part, ast.Constant) and not isinstance(part.value, str) for part in ast.walk(node))
        if not (self.inside and has_number and set(names) <= ORDER.keys()):
            return node
        fixed = tuple(isinstance(side, ast.Constant) for side in (node.left, *node.comparators))
        parts = [ast.Constant(part) for part in ((node.lineno, node.col_offset), tuple(names), fixed)]
        call = ast.Call(ast.Name("__slack__", ast.Load()), [*parts, node.left, *node.comparators], [])
        return ast.fix_missing_locations(ast.copy_location(call, node))


def run_watched(job: CellJob, clean: Path, sender: Connection) -> None:
    """In a process of its own: run all assertions of a chapter and send how much of its tolerance each used."""
    import torch

    enter(job, clean)
    slack, outcome = Slack(), Outcome(status=0)
    torch.testing.assert_close = slack.watched(torch.testing.assert_close, job.chapter)
    page = all_assertions(code_cells(Path(job.chapter).read_text(encoding="utf-8")))
    for each in page:
        if each.own:
            Watched().visit(each.node)
    execute(page, job, outcome, {"__slack__": slack.compared})
    for (line, *_), (used, what) in slack.items():
        if used < 1 / WIDEST:
            outcome.failures.append((f"{job.chapter}:{line}", "loose", what))
    sender.send(outcome)


def problems(chapters: list[str], root: Path, workers: int) -> list[str]:
    """One sentence for each tolerance that is too wide, and for each chapter whose assertions fail."""
    found = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        clean = clean_copy(root, Path(scratch).resolve() / "clean")
        jobs = [CellJob(clean, chapter, "") for chapter in chapters]
        for job, outcome in run_all(jobs, clean, workers, run_watched):
            if outcome.status != 0:
                found.append(f"{job.chapter}: its assertions fail without its pictures: {outcome.output}")
            for where, phase, what in outcome.failures:
                if phase == "loose":
                    found.append(f"{where}: the tolerance is over {WIDEST} times what is needed ({what}); tighten it")
    return sorted(found)


def main(
    names: Names = None,
    workers: Annotated[int, typer.Option(help="How many at a time.")] = 2,
    root: Annotated[Path, typer.Option(help="The repository.")] = ROOT,
) -> None:
    """Report tolerances that are far wider than what they allow for; exit status 1 if there are any."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sources = [f"notebooks/{source.name}" for source in chapters(names or [], root / "notebooks")]
    preload(PRELOADED)
    found = problems(sources, root.resolve(), workers)
    for sentence in found:
        print(sentence, file=sys.stderr)
    print(f"tolerances looked at in {len(sources)} chapters: {len(found)} too wide")
    if found:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
