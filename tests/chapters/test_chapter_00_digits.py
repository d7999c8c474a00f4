"""What chapter 00 says of digits: its pictures, the card of the shipped network, the guide, and what it did not run."""

import math
import os
from functools import cache

import pytest
import torch
from torch import Tensor

from difflesson import guidance, kernels
from difflesson.denoiser import Pair, Prediction, network_denoiser, network_pair
from difflesson.digits import checkpoints, data, metrics, sampling
from difflesson.samplers import draw
from tests.oracles.chapter_cells import assigned

CARD = checkpoints.load("denoiser").card
SETTING, CURVE = next(iter(CARD["metrics"].items()))
REAL = metrics.load_reference()[1]
real_pixels = pytest.mark.skipif(
    not os.environ.get("DIFFLESSON_DATA"), reason="DIFFLESSON_DATA is not set: no real MNIST"
)


@cache
def network(name: str = "denoiser"):
    return checkpoints.load(name).network


@cache
def sevens(gamma: float, seed: int = 2) -> Tensor:
    """Five sevens as the page draws them; seed 2 is the page's."""
    return sampling.generate(network(), torch.full((5,), 7), gamma, seed=seed, sampler="ddim", steps=16)


@cache
def judged(gamma: float, seed: int = 2) -> tuple[list[int], Tensor]:
    """What the judge sees in those, and how surely."""
    probabilities = metrics.judged(network("judge"), sevens(gamma, seed))[1].exp()
    return probabilities.argmax(1).tolist(), probabilities.max(1).values


def ink(digits: Tensor) -> Tensor:
    """In pixels, (N,)."""
    return ((digits.clamp(-1, 1) + 1) / 2).sum((1, 2, 3))


def of_the_guide(x_t: Tensor, t: float) -> Tensor:
    """p(y | x_t) of the shipped classifier of noisy digits, (N, 10)."""
    return network("guide")(x_t, torch.full((len(x_t),), float(network().schedule.log_snr(t)))).softmax(1)


# ---- the first pictures


def test_the_first_picture_has_five_noises_six_scales_and_one_request():
    page = assigned("00", "scales", "sevens", "still")
    assert page["scales"] == (0, 0.5, 1, 2, 4, 8) and page["sevens"].tolist() == [7] * 5
    assert page["still"] == {"seed": 2, "sampler": "ddim", "steps": 16}  # those of `sevens` here


def test_each_row_starts_from_one_noise_at_every_scale():
    """With a network that answers alike whatever it is told, the digits show the noises: the same at 1 and at 8."""

    class Silent(torch.nn.Module):
        classes, size, schedule = 10, 28, network().schedule

        def __init__(self):
            super().__init__()
            self.nothing = torch.nn.Parameter(torch.zeros(()))

        def forward(self, x, log_snr, label):
            return torch.zeros_like(x)

    rows = [sampling.generate(Silent(), torch.full((5,), 7), g, seed=2, sampler="ddim", steps=2) for g in (1.0, 8.0)]
    assert float((rows[0] - rows[1]).abs().max()) < 1e-5 and float((rows[0][0] - rows[0][1]).abs().max()) > 0.1


def test_the_shipped_network_is_small_and_was_trained_on_mnist_to_guess_v():
    assert CARD["recipe"]["data"] == "mnist" and CARD["recipe"]["prediction"] == "v"
    assert sum(weights.numel() for weights in network().parameters()) < 2e6


def test_at_0_each_noise_becomes_another_digit_and_at_1_all_are_sevens_that_differ():
    for seed in (2, 7):
        assert len(set(judged(0.0, seed)[0])) >= 3 and judged(1.0, seed)[0] == [7] * 5
    apart = torch.cdist(sevens(1.0).flatten(1), sevens(1.0).flatten(1)) + 99 * torch.eye(5)
    assert float(apart.min()) > 5


@pytest.mark.nightly
def test_odd_sevens_are_drawn_at_1_and_cleaner_and_bolder_ones_beyond():
    """Seed 7: one of five leaves the judge in doubt at 1, none at 8, where there is more ink."""
    assert float(judged(1.0, 7)[1].min()) < 0.9 and float(judged(8.0, 7)[1].min()) > 0.99
    assert float(ink(sevens(8.0, 7)).mean()) > 1.25 * float(ink(sevens(1.0, 7)).mean())


def test_beyond_1_sevens_grow_cleaner_and_bolder():
    """The page's noises: mean ink grows. On the card: doubt falls."""
    means = [float(ink(sevens(gamma)).mean()) for gamma in (1.0, 2.0, 4.0, 8.0)]
    assert means == sorted(means) and means[-1] > 1.25 * means[0]
    doubt = [CURVE[gamma]["entropy"] for gamma in ("1", "1.5", "2", "3", "5")]
    assert doubt == sorted(doubt, reverse=True) and doubt[-1] < doubt[0] / 10


def test_the_last_row_is_an_open_0_no_digit_a_thin_seven_and_that_seven_in_ever_thicker_strokes():
    row = {gamma: (judged(gamma)[0][4], float(judged(gamma)[1][4])) for gamma in (0.0, 0.5)}
    assert all(digit == 0 and sure < 0.9 for digit, sure in row.values())
    strokes = [float(ink(sevens(gamma))[4]) for gamma in (1.0, 2.0, 4.0, 8.0)]
    assert strokes == sorted(strokes) and strokes[0] == float(ink(sevens(1.0)).min())
    assert all(judged(gamma)[0][4] == 7 for gamma in (1.0, 2.0, 4.0, 8.0))
    shapes = [(sevens(gamma)[4] > 0).flatten() for gamma in (1.0, 2.0)]
    assert float((shapes[0] & shapes[1]).sum() / shapes[0].sum()) > 0.8  # that seven, not another


@torch.no_grad()
def test_told_seven_the_network_takes_a_loop_for_noise():
    """Noisy 0, 6, 8 and 9: told "seven", it sees more noise where they have ink than elsewhere; in sevens, less."""
    labels = torch.tensor([0, 0, 6, 6, 8, 9, 7, 7])
    looped = sampling.generate(network(), labels, 1.0, seed=3, sampler="ddim", steps=8)
    noise = torch.randn(looped.shape, generator=torch.Generator().manual_seed(5))
    cond, uncond = network_pair(network(), network().schedule, 7)(network().schedule.add_noise(looped, noise, 0.8), 0.8)
    change, stroke = cond.eps - uncond.eps, looped > 0
    for k in range(len(labels)):
        more = float(change[k][stroke[k]].mean() - change[k][~stroke[k]].mean())
        assert more < 0 if labels[k] == 7 else more > 0, (k, more)


@real_pixels
def test_hardly_any_real_seven_is_doubtful_and_sharpening_would_leave_nearly_all_as_likely():
    """The judge on 400 real sevens of the test set: p(7 | x), and what p(7 | x)^(3 - 1) would take from each."""
    test = data.load("mnist", "test")
    real = data.to_unit(test.images[test.labels == 7][:400])
    p_7 = metrics.judged(network("judge"), real)[1].exp()[:, 7].double()
    assert float((p_7 < 0.9).double().mean()) < 0.02 and float((p_7**2 > 0.95).double().mean()) > 0.95


def test_what_the_five_lines_draw_is_a_clean_and_bold_seven():
    start = assigned("00", "start")["start"]
    pair = network_pair(network(), network().schedule, label=7)
    kernel = kernels.ddim(guidance.classifier_free(pair, gamma=3.0), network().schedule)
    drawn = draw(kernel, start, sampling.digit_times(25, network().schedule))
    probabilities = metrics.judged(network("judge"), drawn)[1].exp()[0]
    assert float(probabilities[7]) > 0.999 and float(ink(drawn)) > float(ink(sevens(1.0)).mean())


def test_digits_are_drawn_at_times_even_in_log_snr_but_for_the_last_step():
    times = sampling.digit_times(25, network().schedule)
    steps = torch.stack([network().schedule.log_snr(t) for t in times[:-1]]).diff()
    assert len(times) == 26 and float(times[-1]) == 0 and float((steps - steps[0]).abs().max()) < 1e-6


# ---- the card


def wrong(gamma: str) -> int:
    """Digits of 10,000 that are not what was asked for."""
    return round(10_000 * (1 - CURVE[gamma]["accuracy"]))


def test_the_card_says_what_the_page_says():
    fid = {gamma: row["digit_fid"] for gamma, row in CURVE.items()}
    right = {gamma: row["accuracy"] for gamma, row in CURVE.items()}
    assert list(CURVE) == ["0", "0.5", "1", "1.5", "2", "3", "5"]
    assert SETTING.startswith("classifier-free, ddpm, 16 steps, 10000 digits")
    assert min(fid, key=fid.get) == "1" and max(fid, key=fid.get) == "0"
    assert [round(fid[gamma], 3) for gamma in ("0", "1", "2", "5")] == [0.919, 0.062, 0.204, 0.336]
    assert [wrong(gamma) for gamma in ("1", "1.5", "2", "3", "5")] == [86, 1, 0, 0, 0]
    assert all(right[gamma] > REAL["judge_accuracy_on_test"] for gamma in ("1.5", "2", "3", "5"))
    assert REAL["digit_fid_floor"] < 0.0285 and REAL["digit_fid_floor"] > 0.0275 and REAL["images"] == 10_000
    assert 0.95 < 1 - (1 - 3e-4) ** 10_000 < 0.951  # none of 10,000 wrong: the share is below 0.0003
    assert fid["1.5"] > fid["1"] and right["1.5"] > right["1"]
    assert not any("error" in key for row in CURVE.values() for key in row)  # none for digit-FID


def test_guidance_makes_wrong_digits_rare_and_from_1_on_the_crowd_less_like_the_real_one():
    assert [wrong(gamma) for gamma in CURVE] == sorted((wrong(gamma) for gamma in CURVE), reverse=True)
    assert wrong("0") > 9000 and wrong("1.5") < 10
    fids = [CURVE[gamma]["digit_fid"] for gamma in ("1", "1.5", "2", "3", "5")]
    assert all(b - a > REAL["digit_fid_floor"] for a, b in zip(fids, fids[1:], strict=False))  # more than the floor


def test_from_2_to_5_no_more_digits_became_right_and_the_distance_rose():
    assert wrong("2") == wrong("3") == wrong("5") == 0
    assert (round(CURVE["2"]["digit_fid"], 3), round(CURVE["5"]["digit_fid"], 3)) == (0.204, 0.336)


def test_without_the_label_the_network_is_poor_and_draws_what_leaves_doubt():
    """Not told, the crowd should be as near as told; it is fifteen times as far, with fourteen times the doubt."""
    assert CURVE["0"]["digit_fid"] > 10 * CURVE["1"]["digit_fid"] < CURVE["0.5"]["digit_fid"] * 2
    assert CURVE["0"]["entropy"] > 10 * CURVE["1"]["entropy"]


def test_at_0_a_tenth_is_right_as_it_is_by_chance():
    """The page's row at 0 is within three standard errors of one in ten."""
    assert abs(CURVE["0"]["accuracy"] - 0.1) < 3 * (0.1 * 0.9 / 10_000) ** 0.5


def test_one_label_in_ten_was_hidden_in_training_by_an_eleventh():
    assert CARD["recipe"]["label_dropout"] == 0.1
    assert network().classes == 10 and network().label.num_embeddings == 11


def test_the_judge_learned_clean_digits_and_nothing_else():
    recipe = checkpoints.load("judge").card["recipe"]
    assert recipe["task"] == "judge" and recipe["data"] == "mnist"
    assert network("judge")(sevens(1.0)[:1], None).shape == (1, 10)  # asked without a noise level


def test_twenty_digits_cannot_tell_1_from_3():
    """At 1 one digit in a hundred is wrong: four sheets of twenty in five show none, as all do at 3."""
    assert 0.005 < 1 - CURVE["1"]["accuracy"] < 0.015
    assert CURVE["1"]["accuracy"] ** 20 > 0.8 and CURVE["3"]["accuracy"] == 1


def test_a_variance_of_two_digits_is_hardly_one():
    """Two numbers give a variance with a standard error of 1.4 times itself."""
    estimates = torch.randn(20_000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64).var(1)
    assert abs(float(estimates.std() / estimates.mean()) - math.sqrt(2)) < 0.05


# ---- is it the steps, or the network?


@cache
def in_doubt(gamma: float, steps: int, count: int) -> float:
    """Share of `count` digits, seed 5, that leave the judge below 90 %."""
    digits = sampling.generate(network(), torch.arange(count) % 10, gamma, seed=5, steps=steps)
    return float((metrics.judged(network("judge"), digits)[1].max(1).values.exp() < 0.9).double().mean())


@pytest.mark.nightly
def test_without_the_label_the_judge_is_in_doubt_about_many_shapes():
    """24 digits a scale: about one in five at 0, one in sixty at 1."""
    assert in_doubt(0.0, 16, 24) >= 3 / 24 and in_doubt(1.0, 16, 24) <= 1 / 24


@pytest.mark.nightly
def test_four_times_the_steps_leave_the_judge_no_less_in_doubt_without_the_label():
    """The page's 200 digits at each number of steps, and the standard error of their shares."""
    for steps, told in ((16, 0.170), (64, 0.205)):
        doubt = in_doubt(0.0, steps, 200)
        assert abs(doubt - told) < 0.006  # one digit more or less
        assert round((doubt * (1 - doubt) / 200) ** 0.5, 2) == 0.03


def by_bayes(x: Tensor, t: Tensor) -> Prediction:
    """The guess without a label from ten with one, weighted by the guide."""
    share = of_the_guide(x, t).view(-1, 10, 1, 1, 1)
    guesses = [network_denoiser(network(), network().schedule, y)(x, t) for y in range(10)]
    return Prediction(*((share * torch.stack(part, 1)).sum(1) for part in zip(*guesses, strict=True)))


@cache
@torch.no_grad()
def along_time() -> dict[float, dict]:
    """The page's five sevens and noises at five times: p(7), and what a label changes, in units of the guess."""
    eps = torch.randn(5, 1, 28, 28, generator=torch.Generator().manual_seed(4))
    pair, found = network_pair(network(), network().schedule, 7), {}
    for t in (0.5, 0.6, 0.7, 0.8, 0.9):
        x_t = network().schedule.add_noise(sevens(1.0), eps, t)
        (cond, uncond), average = pair(x_t, t), by_bayes(x_t, t).eps
        unit = uncond.eps.norm()
        found[t] = {
            "p_7": of_the_guide(x_t, t)[:, 7],
            "c - u": float((cond.eps - uncond.eps).norm() / unit),
            "c - average": float((cond.eps - average).norm() / unit),
        }
    return found


def test_a_classifier_is_sure_of_noisy_sevens_up_to_time_06_and_of_very_noisy_ones_not():
    p_7 = {t: row["p_7"] for t, row in along_time().items()}
    assert float(p_7[0.5].min()) > 0.998 and float(p_7[0.6].min()) > 0.98
    assert float(p_7[0.8].min()) < 0.3 and float(p_7[0.8].max()) > 0.95 and float(p_7[0.9].max()) < 0.3
    pictured = {t: round(float(values[2]), 2) for t, values in p_7.items()}  # the third seven is drawn
    assert pictured == {0.5: 1.0, 0.6: 0.99, 0.7: 0.71, 0.8: 0.27, 0.9: 0.14}


def test_where_the_guide_is_sure_the_average_of_ten_is_the_guess_with_the_label_and_the_rest_is_error():
    rows = along_time()
    assert all(rows[t]["c - average"] < 0.1 * rows[t]["c - u"] for t in (0.5, 0.6))
    assert abs(rows[0.5]["c - u"] - 0.027) < 0.001


def test_where_the_guide_is_not_sure_the_label_moves_the_guess():
    rows = along_time()
    assert abs(rows[0.8]["c - average"] - 0.039) < 0.001 and abs(rows[0.9]["c - average"] - 0.045) < 0.001


def test_less_seven_is_no_seven_and_asks_for_nothing_else():
    for gamma, seen in ((0.0, [6, 6, 4, 9, 0]), (-1.0, [6, 6, 9, 4, 6])):
        assert judged(gamma)[0] == seen


@pytest.mark.nightly
@torch.no_grad()
def test_sevens_thicken_also_when_the_half_without_a_label_is_the_average_of_ten():
    """The page's ten sevens: mean ink in pixels, and its rise from gamma 1, paired by the noise."""
    schedule, told = network().schedule, network_denoiser(network(), network().schedule, 7)
    start = torch.randn(10, 1, 28, 28, generator=torch.Generator().manual_seed(3))

    def inked(denoiser) -> Tensor:
        return ink(draw(kernels.ddim(denoiser, schedule), start, sampling.digit_times(16, schedule)))

    plain = inked(told)
    assert abs(float(plain.mean()) - 95.7) < 0.5
    halves = {"own": network_denoiser(network(), schedule, None), "average": by_bayes}
    for half, gamma, mean in (("own", 3, 105.9), ("own", 8, 121.2), ("average", 3, 108.03), ("average", 8, 119.3)):
        drawn = inked(guidance.classifier_free(Pair(told, halves[half]), float(gamma)))
        rise, error = drawn - plain, float((drawn - plain).std()) / 10**0.5
        assert abs(float(drawn.mean()) - mean) < 0.5
        assert float(rise.mean()) > 2.5 * error
        told_rise, told_error = {108.03: (12.32, 3.96), 119.3: (23.63, 4.35)}.get(mean, (float(rise.mean()), error))
        assert abs(float(rise.mean()) - told_rise) < 0.5 and abs(error - told_error) < 0.1


@pytest.mark.nightly
@torch.no_grad()
def test_digits_of_a_class_spread_less_at_3_than_at_1_in_features_more_than_in_pixels():
    """The page's 300 digits a scale; differences paired by class, ten of them, and their standard errors."""
    drawn = {gamma: sampling.generate(network(), torch.arange(300) % 10, gamma, seed=5) for gamma in (1.0, 3.0)}
    judge = network("judge")
    views = {"pixels": lambda x: x.clamp(-1, 1).flatten(1), "features": lambda x: metrics.judged(judge, x)[0]}
    told_rows = (("pixels", 137.21, 127.53, 9.68, 3.353, 1.08), ("features", 2.278, 0.691, 1.587, 0.334, 3.30))
    for name, plain, guided, difference, error, ratio in told_rows:
        within = [views[name](drawn[gamma]).view(30, 10, -1).double().var(dim=0).sum(1) for gamma in (1.0, 3.0)]
        apart = within[0] - within[1]
        assert abs(float(within[0].mean()) / plain - 1) < 0.005 and abs(float(within[1].mean()) / guided - 1) < 0.005
        assert abs(float(apart.mean()) / difference - 1) < 0.02
        assert abs(float(apart.std()) / 10**0.5 / error - 1) < 0.02
        assert abs(float(within[0].mean() / within[1].mean()) - ratio) < 0.01
