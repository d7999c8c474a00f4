"""The words of the convention card are formulas: each is read as it stands and compared with what the code computes."""

import re

import pytest
import torch

from difflesson import conventions
from difflesson.conventions import (
    GUIDANCE,
    NO_SINGLE_GAMMA,
    NOISE,
    OUTPUTS,
    STEPS,
    convert,
    guidance_scale,
    noise_level,
)

WORDS = {(row["question"], row["convention"]): row["in our notation"] for row in conventions.card()}


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


ALPHA, SIGMA = tensor(0.96, 0.6, 0.28), tensor(0.28, 0.8, 0.96)  # three levels, and a pair of numbers at each
X0, EPS = tensor(0.7, -1.1, 0.2), tensor(-0.4, 0.9, 1.3)
X = ALPHA * X0 + SIGMA * EPS
LEVELS = {"alpha": ALPHA, "sigma": SIGMA}


def value(words: str, **known: torch.Tensor) -> torch.Tensor:
    """What a formula in words comes to: `2 log(sigma / alpha)`, `-2 log alpha`, `alpha eps - sigma x0`."""
    code = words.strip().replace("_{t|s}", "_ts").replace("^", "**")
    code = re.sub(r"log (\w+)", r"log(\1)", code)
    code = re.sub(r"(?<=[\w)]) (?=[\w(])", " * ", code)
    return eval(code, {"__builtins__": {}, "log": torch.log}, known)


def equations(words: str) -> dict[str, list[str]]:
    """`t = sigma / (alpha + sigma), x_flow = x / 2; data at t = 0` as {"t": ["sigma / (alpha + sigma)"], ...}."""
    clauses = [clause.split("=") for clause in re.split(r"[,;](?![^(]*\))", words) if "=" in clause]
    return {left.strip(): [side.strip() for side in sides] for left, *sides in clauses}


def same(words: str, number, **known: torch.Tensor) -> None:
    gap = (value(words, **known) - torch.as_tensor(number)).abs().max()
    assert gap < 1e-12, f"{words} is not what the code computes, by {float(gap):.3g}"


@pytest.mark.parametrize("name", GUIDANCE)
def test_a_scale_in_words_is_the_scale_in_code(name):
    left, right = WORDS["guidance", name].replace("--", "").split(" = ")
    symbol = GUIDANCE[name][1].replace("--", "")
    assert left == "gamma"
    same(right, guidance_scale(2.5, name), **{symbol: tensor(2.5)})


AMBIGUOUS = {  # what a row of the card calls a convention: its name in GUIDANCE
    "for Ho & Salimans": "ho-salimans",
    "for Imagen": "imagen",
    "in smalldiffusion": "smalldiffusion",
    "in DiT": "dit",
}


@pytest.mark.parametrize("name", ["w", "cfg_scale"])
def test_an_ambiguous_scale_says_rightly_where_each_reading_is_plain_conditional(name):
    words = NO_SINGLE_GAMMA[name][0]
    first, one, second, other = re.fullmatch(r"ambiguous: (\d) is plain conditional (.+), (\d) (.+)", words).groups()
    other = other if " " in other else f"{one.split()[0]} {other}"
    for number, convention in ((first, one), (second, other)):
        assert guidance_scale(float(number), AMBIGUOUS[convention]) == 1
    assert AMBIGUOUS.keys() >= {one, other} and first != second


def test_the_classifiers_scale_adds_to_1_where_the_network_has_the_label_and_to_0_where_not():
    has, lacks = re.fullmatch(r".* adds to (\d) if the network has the label, or to (\d)", WORDS[
        "no single gamma", "classifier_scale"]).groups()
    assert guidance_scale(0.0, "guided-diffusion-conditional") == int(has)
    assert guidance_scale(0.0, "guided-diffusion-unconditional") == int(lacks)


@pytest.mark.parametrize("name", NOISE)
def test_a_noise_level_in_words_is_the_level_in_code(name):
    """The number, the scale of x, and at which end of time the data are."""
    words, number = WORDS["noise", name], NOISE[name][0](ALPHA, SIGMA)
    if name in ("difflesson", "su"):
        assert words.split(" = ")[-1] == "(alpha, sigma)" and number == (ALPHA, SIGMA)
        return
    read = equations(words) or {"": [words]}
    if name == "song":
        same(words.split(" = ")[1], number, **LEVELS)
        read = {}
    for left, sides in read.items():
        if left == "data at t":
            data, noise = (noise_level(pair, "difflesson", name) for pair in ((1.0, 0.0), (0.0, 1.0)))
            assert float(data) == float(sides[0]) and float(noise) == 1 - float(sides[0])
        elif left == "x":
            assert sides == ["z_lambda"] and torch.equal(conventions.rescale(X, number, name, "difflesson"), X)
        elif left.startswith("x_"):
            same(sides[0], conventions.rescale(X, (ALPHA, SIGMA), "difflesson", name), x=X, **LEVELS)
        else:
            same(sides[0], number, **LEVELS)


def step() -> tuple[dict[str, torch.Tensor], tuple]:
    """A step from the first level to the second: what its letters mean, by `alpha_{t|s} = alpha_t / alpha_s`."""
    pairs = ALPHA[0], SIGMA[0], ALPHA[1], SIGMA[1]
    ratio = ALPHA[1] / ALPHA[0]
    names = {"alpha_ts": ratio, "sigma_ts": (1 - ratio**2).sqrt(), "sigma_s": SIGMA[0], "sigma_t": SIGMA[1]}
    return names, pairs


def test_the_letters_of_one_step_in_words_are_those_in_code():
    names, pairs = step()
    su, ho = (STEPS[name][0].split(", ") for name in ("Su's alpha_t, beta_t", "Ho's alpha_t, beta_t"))
    taken = conventions.between(*pairs)
    for words, number in zip(su, taken, strict=True):
        same(words, number, **names)
    for words, convention in zip(ho, ("ho", "ho-variance"), strict=True):
        same(words, noise_level(taken, "su", convention), **names)
    small, large = STEPS["sigma_t of Su, Ho, DDIM"][0].removeprefix("reverse std: ").split(" or ")
    same(small, conventions.reverse_std(*pairs), **names)
    same(large, taken[1], **names)


def test_songs_drift_and_diffusion_in_words_are_those_in_code():
    """`d log alpha / dt` by its meaning: alpha = exp(-beta t / 2) where the rate beta is constant."""
    read, beta = equations(STEPS["Song's f, g"][0].removeprefix("dx = f x dt + g dW: ")), tensor(3.0)
    drift, diffusion = conventions.vp_sde(beta)
    assert read.keys() == {"f", "g^2"} and read["f"][1] == "d log alpha / dt"
    same(read["f"][0], drift, beta=beta)
    same(read["g^2"][0], diffusion**2, beta=beta)
    alpha, _ = noise_level(beta * 0.1, "song")
    assert abs(float(alpha.log() / 0.1 - drift)) < 1e-12


@pytest.mark.parametrize("name", OUTPUTS)
def test_an_output_in_words_is_the_output_in_code(name):
    words = WORDS["output", name].removesuffix(", EDM's D").split(";")
    number = convert(EPS, "eps", name, X, ALPHA, SIGMA)
    same(words[0].split(" = ")[1], number, x=X, x0=X0, eps=EPS, **LEVELS)
    if name == "score":  # by the chain rule, x = alpha x_edm
        factor = re.fullmatch(r" (\w+) times it for x_edm", words[1])[1]
        edm = (X0 - X / ALPHA) / noise_level((ALPHA, SIGMA), "difflesson", "edm") ** 2
        assert float((LEVELS[factor] * number - edm).abs().max()) < 1e-12
