"""What chapter 19 claims about the knobs beside the scale, with other noises, turned otherwise, and by closed forms."""

import math

import pytest
import torch

from difflesson import guidance, kernels, metrics, practice
from difflesson.denoiser import Pair, network_pair
from difflesson.digits import checkpoints, runs, sampling
from difflesson.digits.recipes import RECIPES
from difflesson.mixture import GaussianMixture
from difflesson.samplers import draw, time_grid
from difflesson.schedule import cosine, vp_linear
from tests.oracles.chapter_cells import names_of
from tests.oracles.mixtures import FOUR

F64 = torch.float64
SCHEDULE, LABEL, TIMES = cosine(), 1, time_grid(40)
FREE = guidance.classifier_free


def seeded(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


TURN = torch.linalg.qr(torch.randn(8, 8, generator=seeded(100), dtype=F64))[0]
NINE = [[0.8 * i, 0.8 * j] for i in (-1, 0, 1) for j in (-1, 0, 1)], [0, 1, 2, 1, 2, 0, 2, 0, 1], 0.03
SIDE = [[-1.2, -0.6], [-0.6, 1.0], [0.2, -0.8], [1.1, -1.0], [0.9, 0.6], [1.8, 0.1]], [0, 0, 1, 1, 2, 2], 0.05


def in_eight(spec, blur: float = 0.0, zero=(0.0, 0.0), shift=(0.0, 0.0)) -> GaussianMixture:
    places, labels, width = spec
    where = torch.tensor(places, dtype=F64) - torch.tensor(zero, dtype=F64) + torch.tensor(shift, dtype=F64)
    cov = TURN @ torch.diag(torch.tensor([width] * 2 + [0.3] * 6, dtype=F64) + blur) @ TURN.T
    count = len(labels)
    return GaussianMixture([1 / count] * count, where @ TURN[:, :2].T, cov.expand(count, 8, 8), labels)


NOISE = torch.randn(1600, 8, generator=seeded(101), dtype=F64)


def sampled(denoiser, times=TIMES):
    return draw(kernels.ddim(denoiser, SCHEDULE), NOISE, times)


def judged(truth: GaussianMixture, x, parts: int = 8):
    """Energy distance in the plane for each part of the points, and the share of class 1."""
    real = truth.given(LABEL).sample(6400, seeded(102))[0] @ TURN[:, :2]
    pairs = zip((x @ TURN[:, :2]).chunk(parts), real.chunk(parts), strict=True)
    far = [metrics.energy_distance(a, b) for a, b in pairs]
    return torch.tensor(far, dtype=F64), float(truth.class_log_prob(x, LABEL).exp().mean())


@pytest.fixture(scope="module")
def nine():
    truth, pair = in_eight(NINE), in_eight(NINE, 0.1).pair(SCHEDULE, LABEL)
    weak = Pair(pair.cond, in_eight(NINE, 0.2).denoiser(SCHEDULE, LABEL))
    ways = {
        "plain": lambda g: FREE(pair, g),
        "interval": lambda g: FREE(pair, practice.interval(g, SCHEDULE, -3.0, 3.0)),
        "rescaled": lambda g: guidance.mix(pair, practice.rescaled(g, 0.7, SCHEDULE)),
        "autoguidance": lambda g: FREE(weak, g),
    }
    ladders = {"plain": (1.0, 1.25, 1.5, 2.0, 2.5, 3.0), "interval": (1.25, 1.5, 3.0), "rescaled": (1.25, 1.5, 3.0)}
    ladders["autoguidance"] = (2.0, 3.0)
    return {(name, g): judged(truth, sampled(ways[name](g))) for name, ladder in ladders.items() for g in ladder}


def mean_of(row) -> float:
    return float(row[0].mean())


# ---- the comparison


@pytest.mark.equation("eq-two-leads")
def test_a_knob_that_only_halves_the_push_leads_at_one_scale_and_not_at_its_best():
    leads = names_of("19", "eq-two-leads")["leads"]
    scales = torch.linspace(1, 5, 81, dtype=F64)
    noise = 0.01 * torch.randn(1, 6, generator=seeded(0), dtype=F64)
    plain, halved = ((1 + (scales - 1) * part - 1.4).square()[:, None] + noise for part in (1.0, 0.5))
    at_3, at_best = leads(plain, halved, 40)
    torch.testing.assert_close(at_3, torch.full((6,), 1.6**2 - 0.6**2, dtype=F64))
    assert at_best.abs().max() < 1e-12


@pytest.mark.equation("eq-two-leads")
def test_each_run_is_judged_at_the_scale_that_the_other_runs_choose():
    leads = names_of("19", "eq-two-leads")["leads"]
    plain, trick = torch.rand(2, 5, 7, generator=seeded(1), dtype=F64)
    want = []
    for run in range(7):
        best = []
        for far in (plain, trick):
            others = [sum(float(far[k, r]) for r in range(7) if r != run) for k in range(5)]
            best.append(float(far[others.index(min(others)), run]))
        want.append(best[0] - best[1])
    at_2, at_best = leads(plain, trick, 2)
    torch.testing.assert_close(at_best, torch.tensor(want, dtype=F64))
    torch.testing.assert_close(at_2, plain[2] - trick[2])


def test_at_gamma_3_the_interval_and_rescaling_lead_and_at_the_same_share_of_class_1_they_are_behind(nine):
    plain = [nine["plain", g] for g in (1.0, 1.25, 1.5, 2.0, 2.5, 3.0)]
    for name in ("interval", "rescaled"):
        row = nine[name, 3.0]
        lead = nine["plain", 3.0][0] - row[0]
        assert float(lead.mean()) > 2 * float(lead.std()) / 8**0.5
        k = next(k for k, (_, right) in enumerate(plain) if right >= row[1])
        part = (row[1] - plain[k - 1][1]) / (plain[k][1] - plain[k - 1][1])
        as_plain = mean_of(plain[k - 1]) + part * (mean_of(plain[k]) - mean_of(plain[k - 1]))
        assert 2.2 < 2.0 + 0.5 * part < 2.6 and mean_of(row) > as_plain + 0.005 and k == 4
        assert min(mean_of(nine[name, g]) for g in (1.25, 1.5)) > min(map(mean_of, plain))


def test_autoguidance_takes_the_distance_away_that_the_dial_leaves(nine):
    least = min(mean_of(nine["plain", g]) for g in (1.0, 1.25, 1.5, 2.0, 2.5, 3.0))
    assert mean_of(nine["autoguidance", 3.0]) < 0.4 * least and mean_of(nine["autoguidance", 2.0]) < 0.6 * least


def test_across_the_plane_plain_guidance_leaves_the_variance_as_it_is():
    pair = in_eight(NINE, 0.1).pair(SCHEDULE, LABEL)
    across = [sampled(FREE(pair, g))[:400] @ TURN[:, 2:] for g in (1.0, 6.0)]
    torch.testing.assert_close(*across, atol=1e-8, rtol=0)


def test_on_digits_nearly_all_lead_at_gamma_3_and_at_its_own_best_autoguidance_alone():
    log = runs.log("practice")
    at_3 = {row["way"]: row["difference"] / row["error"] for row in log["at_equal_gamma"] if row["gamma"] == 3}
    best = {row["way"]: row["difference"] / row["error"] for row in log["at_best"]}
    assert all((ratio < -2) == (way != "zero_star") for way, ratio in at_3.items())
    assert [way for way, ratio in best.items() if ratio < -2] == ["auto_p50"] and best["thresholded"] > 2


def test_on_digits_thresholding_harms_already_at_gamma_1():
    rows = runs.log("practice")["at_equal_gamma"]
    (row,) = (row for row in rows if (row["way"], row["gamma"]) == ("thresholded", 1))
    cut, alone = (runs.pick(runs.rows("practice"), way=way, gamma=1.0)[0] for way in ("thresholded", "plain"))
    assert row["difference"] > 5 * row["error"] and cut["digit_fid"] > alone["digit_fid"] + 0.03


def test_on_digits_the_noise_has_its_spread_guided_or_not_and_guesses_leave_the_range_unguided():
    network = checkpoints.load("pocket").network
    pair = network_pair(network, network.schedule, torch.arange(10).repeat(2))
    x = torch.randn(20, 1, 28, 28, generator=seeded(3))
    grid, outside = sampling.digit_times(8, network.schedule), []
    for t, s in zip(grid[:-1], grid[1:], strict=True):
        with torch.no_grad():
            cond, uncond = pair(x, t)
            guided = uncond.eps + 3.0 * (cond.eps - uncond.eps)
            ratio = cond.eps.flatten(1).std(1) / guided.flatten(1).std(1)
            outside.append(float((cond.x0.abs().flatten(1).quantile(0.995, dim=1) > 1).double().mean()))
            x = kernels.ddim(pair.cond, network.schedule)(x, t, s).mean
        assert (ratio - 1).abs().mean() < 0.03
    assert max(outside) > 0.5


def test_on_digits_pixels_leave_the_range_as_the_scale_grows_and_at_one_scale_two_rules_keep_more_of_them_in():
    network = checkpoints.load("pocket").network
    schedule, pair = network.schedule, network_pair(network, network.schedule, torch.arange(10).repeat(2))
    starts, grid = torch.randn(20, 1, 28, 28, generator=seeded(31)), sampling.digit_times(12, schedule)

    def outside(denoiser):
        with torch.no_grad():
            x = draw(kernels.ddim(denoiser, schedule), starts, grid)
        return float(((x > 1.05) | (x < -1.05)).sum()) / x.numel()

    plain = [outside(FREE(pair, g)) for g in (1.0, 3.0, 6.0)]
    of_v, apg = practice.rescaled(3.0, 0.7, schedule, of="v"), practice.projected(3.0, schedule)
    assert plain == sorted(plain) and plain[0] < 0.6 * plain[1]
    assert max(outside(guidance.mix(pair, rule)) for rule in (of_v, apg)) < 0.8 * plain[1]


def test_the_weaker_model_hid_half_of_the_labels_and_is_worse_when_told_one_than_the_one_that_hid_few():
    rows = runs.rows("guidance")
    (few,), (half,) = (runs.pick(rows, part="dropout", network=f"pocket_{p}", gamma=1.0) for p in ("p02", "p50"))
    (ours,) = runs.pick(rows, part="scale", gamma=1.0)
    assert half["digit_fid"] > few["digit_fid"] + 3 * half["digit_fid_error"]
    assert few["digit_fid"] > ours["digit_fid"] + 3 * few["digit_fid_error"]
    assert half["accuracy"] < few["accuracy"] < ours["accuracy"]
    assert (RECIPES["pocket_p50"]["label_dropout"], RECIPES["pocket_p02"]["label_dropout"]) == (0.5, 0.02)


# ---- another scale in time


@pytest.mark.equation("eq-growing-scale")
def test_the_growing_scale_is_1_in_the_noise_and_has_the_mean_gamma():
    t = (torch.arange(1000, dtype=F64) + 0.5) / 1000
    for gamma in (-1.0, 0.0, 1.0, 4.5):
        growing = practice.growing_scale(gamma)
        assert abs(float(growing(t).mean()) - gamma) < 1e-12 and growing(1.0) == 1
        assert growing(0.0) == 2 * gamma - 1


@pytest.mark.parametrize("schedule", [cosine(), vp_linear()])
def test_cfg_plus_plus_is_plain_guidance_in_ddims_step(schedule):
    """Step by step as published, on the four blobs."""
    mixture = FOUR.mixture()
    pair, grid, lam = mixture.pair(schedule, LABEL), time_grid(12, start=0.98), 0.35
    scale, x = practice.plus_plus_scale(lam, schedule, grid), torch.randn(30, 2, generator=seeded(4), dtype=F64)
    ours = draw(kernels.ddim(FREE(pair, scale), schedule), x, grid)
    for t, s in zip(grid[:-1], grid[1:], strict=True):
        cond, uncond = pair(x, t)
        x = schedule.alpha(s) * (uncond.x0 + lam * (cond.x0 - uncond.x0)) + schedule.sigma(s) * uncond.eps
    torch.testing.assert_close(ours, x, atol=1e-11, rtol=0)


def test_on_even_steps_of_the_cosine_schedule_the_scale_is_an_arch_as_high_as_the_steps_are_many():
    """lambda cos(b) sin(a) / sin(a - b), with the angles a, b of the step; at both ends lambda."""
    heights = {}
    for n in (20, 40, 80):
        grid = time_grid(n)
        scale = practice.plus_plus_scale(0.2, SCHEDULE, grid)
        values = torch.stack([scale(t) for t in grid[:-1]])
        a, b = grid[:-1] * math.pi / 2, grid[1:] * math.pi / 2
        torch.testing.assert_close(values, 0.2 * b.cos() * a.sin() / (a - b).sin(), rtol=5e-3, atol=0)
        heights[n] = float(values.max())
        assert abs(float(values[0]) / 0.2 - 1) < 0.005 and abs(float(values[-1]) / 0.2 - 1) < 0.005
        assert abs(heights[n] / (0.2 * (n / math.pi + 0.5)) - 1) < 0.01
        assert abs(float(grid[values.argmax()]) - 0.5) < 0.06
    assert abs(heights[40] / heights[20] - 2) < 0.1 and abs(heights[80] / heights[40] - 2) < 0.06


def test_for_times_even_in_log_snr_the_scale_is_flat_but_for_the_last_step():
    grid = torch.cat([time_grid(15, SCHEDULE, 0.99, 0.01), torch.zeros(1, dtype=F64)])
    scale = practice.plus_plus_scale(0.2, SCHEDULE, grid)
    values = torch.stack([scale(t) for t in grid[:-1]])
    torch.testing.assert_close(values[:-1], values[:1].expand(15))
    assert values[0] > 1.5 * values[-1]


def test_on_stable_diffusions_table_lambda_0_6_is_nearly_7_5_at_50_steps_and_the_interval_is_0_24_to_0_96():
    """By hand, from the products of 1 - beta; the last step leads to clean data."""
    kept = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=F64) ** 2).cumprod(0)
    ratio, mean = ((1 - kept) / kept).sqrt(), {}  # sigma / alpha
    for steps in (25, 50, 100):
        here = ratio[torch.arange(steps).flip(0) * (1000 // steps) + 1]
        there = torch.cat([here[1:], torch.zeros(1, dtype=F64)])
        mean[steps] = float((0.6 / (1 - there / here)).mean())
    assert abs(mean[50] - 7.5) < 0.4 and mean[25] < 4 and mean[100] > 14
    inside = [k for k in range(50) if abs(2 * math.log(ratio[1000 - 20 * k - 1])) <= 3]
    assert (inside[0] / 50, (inside[-1] + 1) / 50) == (0.24, 0.96)


def test_at_one_lambda_more_steps_push_harder_and_plain_guidance_does_not_notice():
    truth, pair = in_eight(NINE), in_eight(NINE, 0.1).pair(SCHEDULE, LABEL)
    shares = {}
    for n in (10, 80):
        grid = time_grid(n)
        for name, scale in (("plus", practice.plus_plus_scale(0.15, SCHEDULE, grid)), ("plain", 2.0)):
            shares[name, n] = judged(truth, sampled(FREE(pair, scale), grid))[1]
    assert shares["plus", 10] < 0.5 < 0.9 < shares["plus", 80]
    assert abs(shares["plain", 10] - shares["plain", 80]) < 0.015


def test_half_the_lambda_at_twice_the_steps_keeps_the_share_of_class_1():
    truth, pair = in_eight(NINE), in_eight(NINE, 0.1).pair(SCHEDULE, LABEL)
    shares = {}
    for n, lam in ((20, 0.3), (40, 0.15), (40, 0.3)):
        grid = time_grid(n)
        scale = practice.plus_plus_scale(lam, SCHEDULE, grid)
        shares[n, lam] = judged(truth, sampled(FREE(pair, scale), grid))[1]
    assert abs(shares[20, 0.3] - shares[40, 0.15]) < 0.02 and shares[40, 0.3] > shares[20, 0.3] + 0.1


# ---- another sum


def test_each_sum_has_its_neutral_setting_and_three_of_them_answer_the_label_at_gamma_1():
    pair, t = FOUR.mixture().pair(SCHEDULE, LABEL), torch.tensor(0.4, dtype=F64)
    x = torch.randn(40, 2, generator=seeded(5), dtype=F64)
    plain, label = FREE(pair, 2.5)(x, t).x0, pair.cond(x, t).x0
    for rule in (practice.rescaled(2.5, 0.0, SCHEDULE), practice.projected(2.5, SCHEDULE, eta=1.0)):
        torch.testing.assert_close(guidance.mix(pair, rule)(x, t).x0, plain)
    torch.testing.assert_close(practice.thresholded(FREE(pair, 2.5), SCHEDULE, limit=50.0)(x, t).x0, plain)
    three = practice.rescaled(1.0, 0.7, SCHEDULE), practice.projected(1.0, SCHEDULE), practice.zero_star(1.0, SCHEDULE)
    for rule in three:
        torch.testing.assert_close(guidance.mix(pair, rule)(x, t).x0, label)
    assert (practice.thresholded(pair.cond, SCHEDULE, limit=0.8)(x, t).x0 - label).abs().max() > 0.1


def test_plain_guidance_and_rescaling_do_not_know_where_zero_is_and_the_other_sums_do():
    """Guesses at moved points, less the move; at one noise level, without a sampler."""
    t, x = torch.tensor(0.5, dtype=F64), 0.8 * NOISE[:60]
    zero = torch.tensor([1.5, 0.5], dtype=F64)
    answers = []
    for where in ((0.0, 0.0), tuple(zero.tolist())):
        pair = in_eight(SIDE, 0.15, zero=where).pair(SCHEDULE, LABEL)
        move = -torch.tensor(where, dtype=F64) @ TURN[:, :2].T
        ways = {
            "plain": FREE(pair, 3.0), "rescaled": guidance.mix(pair, practice.rescaled(3.0, 0.7, SCHEDULE)),
            "APG": guidance.mix(pair, practice.projected(3.0, SCHEDULE)),
            "zero": guidance.mix(pair, practice.zero_star(3.0, SCHEDULE)),
            "threshold": practice.thresholded(FREE(pair, 3.0), SCHEDULE, limit=1.0),
        }  # fmt: skip
        answers.append({name: way(x + SCHEDULE.alpha(t) * move, t).x0 - move for name, way in ways.items()})
    apart = {name: float((answers[0][name] - answers[1][name]).abs().max()) for name in answers[0]}
    assert max(apart["plain"], apart["rescaled"]) < 1e-10
    assert min(apart["APG"], apart["zero"], apart["threshold"]) > 0.05


def test_apgs_lead_turns_into_a_loss_where_zero_lies_elsewhere():
    leads = {}
    for where in ((0.0, 0.0), (1.5, 0.0)):
        truth, pair = in_eight(SIDE, zero=where), in_eight(SIDE, 0.15, zero=where).pair(SCHEDULE, LABEL)
        plain = min(mean_of(judged(truth, sampled(FREE(pair, g)))) for g in (1.15, 1.3))
        rules = (practice.projected(g, SCHEDULE) for g in (1.15, 1.3, 1.5))
        apg = min(mean_of(judged(truth, sampled(guidance.mix(pair, rule)))) for rule in rules)
        leads[where] = plain - apg
    assert leads[0.0, 0.0] > 0.002 > 0 > leads[1.5, 0.0]


@pytest.mark.equation("eq-rescale-split")
def test_a_rescaled_guess_is_plain_guidance_at_r_gamma_and_noise_that_is_not_taken_away():
    split = names_of("19", "eq-rescale-split")["split_rescaled"]
    eps_c, eps_u = torch.randn(2, 6, 5, generator=seeded(6), dtype=F64)
    r = torch.tensor([[0.3], [0.9], [1.0], [1.4], [0.0], [0.7]], dtype=F64)
    for gamma in (-1.0, 1.0, 3.0):
        guided = gamma * eps_c + (1 - gamma) * eps_u
        torch.testing.assert_close(split(eps_c, eps_u, gamma, r), r * guided)


@pytest.mark.equation("eq-projection-in-a-library")
def test_the_library_begins_at_the_guess_without_label_and_lacks_what_lies_along_at_gamma_1():
    ours = names_of("19", "eq-projection-in-a-library")["in_a_library"]
    told, untold = torch.randn(2, 5, 4, generator=seeded(7), dtype=F64)
    along = torch.stack([c * torch.dot(c - u, c) / torch.dot(c, c) for c, u in zip(told, untold, strict=True)])
    torch.testing.assert_close(ours(told, untold, 1.0, 0.0), told - along)
    torch.testing.assert_close(ours(told, untold, 4.0, 1.0), untold + 4.0 * (told - untold))
    theirs = pytest.importorskip("diffusers.guiders.adaptive_projected_guidance").normalized_guidance
    for gamma, eta in ((1.0, 0.0), (3.0, 0.0), (2.5, 0.4)):
        torch.testing.assert_close(ours(told, untold, gamma, eta), theirs(told, untold, gamma, eta=eta))


# ---- another pair


def test_with_the_healing_scale_noiseless_samples_have_the_true_variance_at_any_blur():
    z = torch.linspace(-2, 2, 9, dtype=F64)[:, None]
    grid = time_grid(100, SCHEDULE, 0.999, 0.001)

    def bell(variance):
        return GaussianMixture([1.0], torch.zeros(1, 1, dtype=F64), [[[variance]]]).denoiser(SCHEDULE)

    for v, b_1, b_2 in ((0.4, 0.1, 0.3), (1.5, 0.5, 0.6)):
        ends = {}
        for name, scale in (("healed", practice.healing_scale(v, b_1, b_2, SCHEDULE)), ("alone", 1.0)):
            kernel = kernels.heun(FREE(Pair(bell(v + b_1), bell(v + b_2)), scale), SCHEDULE)
            ends[name] = float((draw(kernel, z, grid)[-1] / z[-1]) ** 2)
        assert abs(ends["healed"] / v - 1) < 0.01 and abs(ends["alone"] / (v + b_1) - 1) < 0.01


def test_the_constant_scale_that_gives_the_true_variance_is_a_quotient_of_logarithms_another_for_every_variance():
    z, grid, scales = torch.linspace(-2, 2, 5, dtype=F64)[:, None], time_grid(100, SCHEDULE, 0.999, 0.001), []
    for v in (0.1, 0.6):
        bells = [GaussianMixture([1.0], torch.zeros(1, 1, dtype=F64), [[[v + b]]]) for b in (0.1, 0.3)]
        models = [bell.denoiser(SCHEDULE) for bell in bells]
        scales.append(math.log((v + 0.3) / v) / math.log((v + 0.3) / (v + 0.1)))
        ends = draw(kernels.heun(FREE(Pair(*models), scales[-1]), SCHEDULE), z, grid)
        assert abs(float((ends[-1] / z[-1]) ** 2) / v - 1) < 0.01
    assert scales[0] > scales[1] + 0.3


def test_in_all_eight_directions_the_dial_finds_no_valley_and_autoguidance_does():
    truth, pair = in_eight(NINE), in_eight(NINE, 0.1).pair(SCHEDULE, LABEL)
    weak = Pair(pair.cond, in_eight(NINE, 0.2).denoiser(SCHEDULE, LABEL))
    real = truth.given(LABEL).sample(1600, seeded(103))[0]

    def far(denoiser):
        return metrics.energy_distance(sampled(denoiser), real)

    plain, healed = [far(FREE(pair, g)) for g in (1.0, 1.5, 2.0)], [far(FREE(weak, g)) for g in (2.29, 4.0)]
    assert plain == sorted(plain) and healed[0] < plain[0] / 2 < plain[0] < healed[1]


def test_the_healing_scale_begins_at_b2_over_the_difference_and_grows_towards_the_data():
    scale = practice.healing_scale(0.5, 0.2, 0.6, SCHEDULE)
    values = [float(scale(torch.tensor(t, dtype=F64))) for t in (0.999, 0.7, 0.3, 0.01)]
    assert abs(values[0] - 0.6 / 0.4) < 1e-4 and values == sorted(values) and abs(values[-1] - 1.5 * 0.7 / 0.5) < 1e-2


def test_guiding_away_from_a_model_with_another_fault_puts_its_opposite_into_the_samples():
    truth, pair = in_eight(NINE), in_eight(NINE, 0.1).pair(SCHEDULE, LABEL)
    shifted = in_eight(NINE, 0.1, shift=(0.0, 0.25)).denoiser(SCHEDULE, LABEL)
    alone, away, further = (sampled(FREE(Pair(pair.cond, shifted), g)) for g in (1.0, 2.0, 3.0))
    moved = ((away - alone) @ TURN[:, :2]).mean(0)
    assert moved[1] < -0.1 and abs(moved[0]) < 0.1
    far = [mean_of(judged(truth, x)) for x in (alone, away, further)]
    assert far[1] > 2 * far[0] and far[2] > 2 * far[1]


def test_a_weaker_model_with_more_of_the_same_fault_narrows_in_every_direction_and_in_the_end_too_far():
    pair = in_eight(NINE, 0.1).pair(SCHEDULE, LABEL)
    weak = Pair(pair.cond, in_eight(NINE, 0.2).denoiser(SCHEDULE, LABEL))
    across = [float((sampled(FREE(weak, g)) @ TURN[:, 2:]).var(0).mean()) for g in (1.0, 2.0, 3.0)]
    assert across[0] > 0.34 > across[1] > 0.27 > across[2]


def test_at_gamma_1_a_negative_prompt_is_not_heard():
    mixture, t = FOUR.mixture(), torch.tensor(0.5, dtype=F64)
    x = torch.randn(10, 2, generator=seeded(8), dtype=F64)
    wanted, unwanted = mixture.denoiser(SCHEDULE, 1), mixture.denoiser(SCHEDULE, 0)
    torch.testing.assert_close(FREE(Pair(wanted, unwanted), 1.0)(x, t).x0, wanted(x, t).x0, rtol=0, atol=0)


# ---- two conditions


def two_labels():
    places = torch.tensor([[-1.0, -1.2], [-0.8, 1.0], [1.1, -1.0], [1.0, 1.0]], dtype=F64)
    covs = (0.4 * torch.eye(2, dtype=F64)).expand(4, 2, 2)
    return [GaussianMixture([0.3, 0.2, 0.35, 0.15], places, covs, labels) for labels in ([0, 0, 1, 1], [0, 1, 0, 1])]


@pytest.mark.equation("eq-two-conditions-weight")
def test_the_growth_is_what_the_heat_equation_lacks_for_the_product_of_two_conditions():
    growth, (a, b), q, h = names_of("19", "eq-two-conditions-weight")["growth"], two_labels(), 0.8, 1e-5
    z = a.noised(1.0, q**0.5).sample(20, seeded(9))[0]

    def product(z, q):
        noisy = [m.noised(1.0, q**0.5) for m in (a, b)]
        told = [m.class_weights()[1] * m.given(1).log_prob(z).exp() for m in noisy]
        return told[0] * told[1] / noisy[0].log_prob(z).exp()

    leaf = z.clone().requires_grad_()
    (first,) = torch.autograd.grad(product(leaf, q).sum(), leaf, create_graph=True)
    laplacian = sum(torch.autograd.grad(first[:, k].sum(), leaf, retain_graph=True)[0][:, k] for k in (0, 1))
    in_q = (product(z, q + h) - product(z, q - h)) / (2 * h)
    lacks = (laplacian / 2 - in_q) / product(z, q)
    noisy = [m.noised(1, q**0.5) for m in (a, b)]
    eps = [-(q**0.5) * m.score(z) for m in (noisy[0].given(1), noisy[1].given(1), noisy[0])]
    torch.testing.assert_close(growth(*eps), lacks * q, atol=1e-6, rtol=1e-5)
    assert (growth(*eps) > 0).any() and (growth(*eps) < 0).any()


@pytest.mark.equation("eq-two-conditions-weight")
def test_for_one_condition_twice_the_growth_is_chapter_18s_at_gamma_2():
    growth = names_of("19", "eq-two-conditions-weight")["growth"]
    eps_c, eps_u = torch.randn(2, 7, 3, generator=seeded(10), dtype=F64)
    torch.testing.assert_close(growth(eps_c, eps_c, eps_u), 2 * (2 - 1) / 2 * (eps_c - eps_u).square().sum(1))
