"""The page of conventions: its JavaScript computes what `difflesson.conventions` does, and refuses what it refuses."""

import json
import math
import random
import re
import shutil
import subprocess
from functools import partial
from itertools import product
from pathlib import Path

import pytest
import torch

from book import conventions as page
from difflesson import conventions
from difflesson.conventions import GUIDANCE, LOWEST, NO_SINGLE_GAMMA, NOISE, OUTPUTS

SCRIPT = Path(page.__file__).parent / "static" / "converter.js"
PAIRS = ("difflesson", "su")
RUN = """
require(process.argv[1]);
const {card, cases} = JSON.parse(require("fs").readFileSync(0));
const answers = cases.map(([name, ...given]) => {
    if (name === "guidanceScale") given.unshift(card);
    try { return {value: conventions[name](...given)}; } catch (error) { return {refused: error.message}; }
});
console.log(JSON.stringify(answers));
"""


def scalar(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def guidance_cases() -> list[tuple]:
    draw = random.Random(0)
    names = [*GUIDANCE, *NO_SINGLE_GAMMA]
    return [(draw.choice((7.5, 1.0, 0.0, -2.0, draw.uniform(-3, 20))), *two) for two in product(names, repeat=2)] + [
        (value, "gamma", "diffusers") for value in (0.999, 1.0, 1.001)
    ]


def noise_cases() -> list[tuple]:
    """Levels from nearly clean to nearly pure noise, both ends, and numbers that are no level."""
    draw, found = random.Random(1), []
    levels = [draw.uniform(-3, 3) for _ in range(4)] + [-800.0, -30.0, 0.0, 30.0]
    for source, target in product(NOISE, repeat=2):
        for log_snr in levels:
            value = conventions.noise_level(log_snr, "log-snr", source)
            found.append((list(map(float, value)) if source in PAIRS else float(value), source, target))
        odd = [[0.7, 0.7], [-0.6, 0.8], [1.0, 0.0], [0.0, 1.0]] if source in PAIRS else [-0.1, 0.0, 1.0, 1.2, 1e200]
        found += [(value, source, target) for value in odd]
    return found


def output_cases() -> list[tuple]:
    draw, found = random.Random(2), []
    angles = [draw.uniform(0.01, 1.56) for _ in range(3)]
    levels = [(math.cos(angle), math.sin(angle)) for angle in angles] + [(1.0, 0.0), (0.0, 1.0), (0.6, 0.7)]
    for source, target in product(OUTPUTS, repeat=2):
        found += [(draw.gauss(0, 2), source, target, draw.gauss(0, 2), *level) for level in levels]
    return found


def output(value: float, source: str, target: str, x: float, alpha: float, sigma: float) -> torch.Tensor:
    return conventions.convert(scalar(value), source, target, scalar(x), alpha, sigma)


CASES = {  # in JavaScript: in Python, and with what
    "guidanceScale": (conventions.guidance_scale, guidance_cases()),
    "noiseLevel": (conventions.noise_level, noise_cases()),
    "convert": (output, output_cases()),
}


@pytest.fixture(scope="module")
def answers() -> dict[str, list[dict]]:
    """What the script answers to each case; all of them in one process."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not on the path")
    cases = [(name, *given) for name, (_, group) in CASES.items() for given in group]
    question = json.dumps({"card": page.data(), "cases": cases})
    command = [node, "-e", RUN, str(SCRIPT)]
    done = subprocess.run(command, input=question, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    found = iter(json.loads(done.stdout))
    return {name: [next(found) for _ in group] for name, (_, group) in CASES.items()}


def answer(function) -> dict:
    """In Python, as the script answers: the numbers, or the words of the refusal."""
    try:
        value = function()
    except ValueError as error:
        return {"refused": str(error)}
    return {"value": [float(part) for part in value] if isinstance(value, tuple) else float(value)}


@pytest.mark.parametrize("name", CASES)
def test_the_script_computes_every_convention_to_twelve_digits_and_refuses_what_the_package_refuses(answers, name):
    function, cases = CASES[name]
    for given, got in zip(cases, answers[name], strict=True):
        want = answer(partial(function, *given))
        assert got.keys() == want.keys(), (given, got, want)
        if "refused" in want:
            why = re.sub(r"^.*?: | at alpha.*", "", got["refused"])
            assert why and why in want["refused"], (given, got, want)
            continue
        numbers = [[v] if isinstance(v, float | int) else v for v in (got["value"], want["value"])]
        # What crosses zero is compared with one, or with the numbers that it was computed from.
        crosses = name != "noiseLevel" or given[-1] in ("log-snr", "vdm", "dpm-solver")
        size = max([1.0, *(abs(v) for v in given if isinstance(v, float))]) if crosses else 0.0
        for ours, theirs in zip(*numbers, strict=True):
            assert abs(ours - theirs) <= 1e-12 * max(abs(theirs), size), (given, got, want)


@pytest.mark.parametrize("name", CASES)
def test_the_cases_hold_every_pair_of_conventions_answered_and_some_refused(answers, name):
    named = [tuple(part for part in given if isinstance(part, str)) for given in CASES[name][1]]
    answered = {two for two, got in zip(named, answers[name], strict=True) if "value" in got}
    names = {"guidanceScale": GUIDANCE, "noiseLevel": NOISE, "convert": OUTPUTS}[name]
    if name == "guidanceScale":  # one value for each pair: below the lowest it is refused
        lowest = {two for two in product(names, repeat=2) if LOWEST.keys() & set(two)}
        assert answered >= set(product(names, repeat=2)) - lowest and answered & lowest
    else:
        assert answered == set(product(names, repeat=2))
    assert any("refused" in got for got in answers[name])


def table(text: str, heading: str) -> list[list[str]]:
    """The rows of the first table under a heading, without its head."""
    lines = text[text.index(heading) :].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    end = next((index for index, row in enumerate(rows[2:], 2) if len(row) != len(rows[0])), len(rows))
    return rows[2:end]


def test_the_usual_values_are_the_packages_and_a_dash_is_a_refusal():
    text = page.page()
    tables = [
        ("## How strong", GUIDANCE, page.GAMMAS, partial(conventions.guidance_scale, source="gamma")),
        ("## How noisy", NOISE, page.ALPHABARS, partial(conventions.noise_level, source="ho")),
        ("## What does", OUTPUTS, [-0.5], lambda v, target: output(v, "eps", target, 0.2, 0.6, 0.8)),
    ]
    for heading, names, values, function in tables:
        rows = table(text, heading)[: len(names)]
        assert [row[0] for row in rows] == list(names)
        for name, *cells in rows:
            for cell, value in zip(cells, values, strict=True):
                want = answer(partial(function, value, target=name))
                assert (cell == "–") == ("refused" in want), (name, value)
                if cell != "–":
                    wanted = want["value"] if isinstance(want["value"], list) else [want["value"]]
                    assert [float(part) for part in cell.split(", ")] == pytest.approx(wanted, rel=1e-3)


def test_the_page_has_the_whole_card_and_nothing_is_left_to_fill_in():
    text = page.page()
    assert conventions.markdown(conventions.card()) in text
    assert not re.search(r"%[a-z]+%", text)
    assert all(f"`{name}` has no guidance below {lowest:g}" in text for name, lowest in LOWEST.items())


def test_the_range_of_each_noise_level_is_where_the_package_finds_it():
    for name, ends in page.data()["noise"].items():
        for end, pair in (("clean", (1.0, 0.0)), ("noise", (0.0, 1.0))):
            want = answer(partial(conventions.noise_level, pair, "difflesson", name))
            if "refused" in want:
                assert ends[end].lstrip("-") == "infinity"
            else:
                assert json.loads(ends[end].replace("(", "[").replace(")", "]")) == want["value"]
