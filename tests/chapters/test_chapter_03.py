"""What chapter 03 claims about the bound and the area, each on other data or by another way than its cells."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from difflesson import curves, divergence, kernels, likelihood, plane
from difflesson.mixture import GaussianMixture
from difflesson.samplers import time_grid
from difflesson.schedule import cosine, vp_linear
from tests.oracles.chapter_cells import names_of
from tests.oracles.mixtures import FOUR, random_mixture, single

F64 = torch.float64
BLOBS, ARCS, SCHEDULE, RATE = plane.four_blobs(), curves.two_arcs(), cosine(), vp_linear(0.3, 8.0)
T, S = torch.tensor(0.7, dtype=F64), torch.tensor(0.25, dtype=F64)


def random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=random(seed), dtype=F64)


def one_gaussian(data: GaussianMixture) -> GaussianMixture:
    """The Gaussian of the same mean and covariance, by quadrature."""
    x, weights = divergence.mixture_nodes(data, 6)
    mean = weights @ x
    return single(mean.tolist(), ((weights[:, None] * (x - mean)).T @ (x - mean)).tolist())


def curve(data: GaussianMixture, log_snr: Tensor, order: int = 8) -> Tensor:
    """The least error of the noise at each level."""
    times = SCHEDULE.time(log_snr)
    return log_snr.exp() * torch.stack([likelihood.least_error(data, SCHEDULE, t, order) for t in times])


def entropy(data: GaussianMixture) -> float:
    x, weights = divergence.mixture_nodes(data, 12)
    return -float(weights @ data.log_prob(x))


# ---- the opening: the area is a divergence, and single points have their own


def test_half_of_the_area_between_the_curves_is_the_divergence_from_the_one_gaussian():
    levels = torch.linspace(-18, 18, 121, dtype=F64)
    for data in (BLOBS, FOUR.mixture()):
        plain = one_gaussian(data)
        x, weights = divergence.mixture_nodes(data, 30)
        saved = float(weights @ (data.log_prob(x) - plain.log_prob(x)))
        area = float(torch.trapezoid(curve(plain, levels, 20) - curve(data, levels, 20), levels)) / 2
        assert abs(area - saved) < 2e-3 * saved


def test_a_point_beside_the_arc_is_harder_to_guess_where_the_levels_tell_it_from_the_arc():
    noise, chance = divergence.hermite(24, 2)
    pair = torch.tensor([[-1.57, -0.95], [-1.32, -0.85]], dtype=F64)  # on the long arc, and 0.27 towards its middle
    levels = torch.linspace(-8, 14, 45, dtype=F64)
    errors = torch.stack(
        [level.exp() * (chance @ likelihood.squared_errors(ARCS.denoiser(SCHEDULE), SCHEDULE, pair, t, noise))
         for level, t in zip(levels, SCHEDULE.time(levels), strict=True)]
    )  # fmt: skip
    worst = int((errors[:, 1] - errors[:, 0]).argmax())
    assert 3 < float(levels[worst]) < 9 and float(errors[worst, 1]) > 2.5 > 2.05 > float(errors[:, 0].max())
    assert float(ARCS.log_prob(pair)[1]) < float(ARCS.log_prob(pair)[0]) - 5


def test_between_levels_0_and_5_one_of_two_directions_of_the_noise_is_seen_on_a_thin_curve():
    levels = torch.linspace(0.5, 4.5, 9, dtype=F64)
    thinner = curve(curves.two_arcs(width=0.01), levels)
    assert bool(((thinner > 0.95) & (thinner < 1.1)).all())
    t = SCHEDULE.time(3.0)
    x = ARCS.means[:24]  # the middles of the long arc's pieces, along it and across it
    eps = normal(300, 24, 2, seed=1)
    seen = SCHEDULE.alpha(t) * x + SCHEDULE.sigma(t) * eps
    off = eps - ARCS.denoiser(SCHEDULE)(seen.flatten(0, 1), t).eps.view_as(eps)
    out = (x - torch.tensor([-0.1, -0.1], dtype=F64)) / 1.7
    across = (off * out).sum(2).square().mean()
    assert float(across) < 0.15 and float(off.square().sum(2).mean() - across) > 0.8


# ---- a step is a fresh look


@pytest.mark.equation("eq-fresh-look")
@pytest.mark.equation("eq-joint-look")
def test_the_step_given_both_ends_is_the_conditional_of_a_joint_gaussian():
    alpha_ts, sigma_ts = RATE.transition(T, S)
    x_0, x_t = normal(4, 3, seed=1), normal(4, 3, seed=2)
    cov = torch.zeros(2, 2, dtype=F64)  # of x_s and x_t, given x_0
    cov[0, 0] = RATE.sigma(S) ** 2
    cov[0, 1] = cov[1, 0] = alpha_ts * cov[0, 0]
    cov[1, 1] = alpha_ts**2 * cov[0, 0] + sigma_ts**2
    precision = torch.linalg.inv(cov)
    mean = RATE.alpha(S) * x_0 - precision[0, 1] / precision[0, 0] * (x_t - RATE.alpha(T) * x_0)
    levels = RATE.alpha(T), RATE.sigma(T), RATE.alpha(S), RATE.sigma(S)
    answers = (
        names_of("03", "eq-fresh-look")["fresh_look"](x_t, x_0, RATE, T, S),
        names_of("03", "eq-joint-look")["regressed"](x_t, x_0, *levels),
    )
    for got, variance in answers:
        torch.testing.assert_close(got, mean)
        torch.testing.assert_close(variance, 1 / precision[0, 0])


def test_the_new_position_averages_the_old_measurement_with_a_fresh_one_of_the_missing_precision():
    """Draw the fresh measurement, average, and compare moments; level: four standard errors."""
    old, new = RATE.log_snr(T).exp(), RATE.log_snr(S).exp()
    x_0, x_t, count = torch.tensor([[0.7, -1.1]], dtype=F64), torch.tensor([[0.2, 0.4]], dtype=F64), 40_000
    fresh = x_0 + normal(count, 2, seed=3) / (new - old).sqrt()
    position = RATE.alpha(S) * (old * x_t / RATE.alpha(T) + (new - old) * fresh) / new
    mean, variance = names_of("03", "eq-fresh-look")["fresh_look"](x_t, x_0, RATE, T, S)
    assert float((position.mean(0) - mean[0]).abs().max()) < 4 * float(variance / count) ** 0.5
    assert abs(float(position.var(0).mean() / variance) - 1) < 4 / count**0.5


@pytest.mark.equation("eq-price-of-a-look")
def test_the_price_is_the_divergence_of_ddpms_step_from_the_step_that_knows():
    mixture = random_mixture(3, [0, 1, 1])
    x_0, x_t = normal(5, 3, seed=4), normal(5, 3, seed=5)
    guess = mixture.denoiser(RATE)(x_t, T).x0
    model = kernels.ddpm(mixture.denoiser(RATE), RATE)(x_t, T, S)
    alpha_ts, sigma_ts = RATE.transition(T, S)
    precision = 1 / RATE.sigma(S) ** 2 + (alpha_ts / sigma_ts) ** 2
    mean = (RATE.alpha(S) * x_0 / RATE.sigma(S) ** 2 + alpha_ts * x_t / sigma_ts**2) / precision
    want = kl_divergence(Normal(mean, precision**-0.5), Normal(model.mean, model.var.sqrt())).sum(1)
    torch.testing.assert_close(names_of("03", "eq-price-of-a-look")["price_of_a_look"](x_0, guess, RATE, T, S), want)


# ---- the bound


def gap(data: GaussianMixture, schedule, times: Tensor) -> float:
    """The average bound above the average -log p."""
    snr = schedule.log_snr(times).exp()
    error = torch.stack([likelihood.least_error(data, schedule, t, 8) for t in times])
    ends = data.dim / 2 * math.log(2 * math.pi / snr[-1]) + snr[-1] / 2 * error[-1]
    return float(ends + (snr.diff() / 2 * error[:-1]).sum()) - entropy(data)


def test_the_gap_about_halves_with_twice_the_steps_and_the_prior_costs_nothing():
    gaps = [gap(FOUR.mixture(), SCHEDULE, time_grid(n, SCHEDULE)) for n in (50, 100, 200)]
    ratios = [a / b for a, b in zip(gaps, gaps[1:], strict=False)]
    assert ratios == sorted(ratios, reverse=True) and 2 < ratios[-1] < 2.3
    bound = likelihood.variational_bound(ARCS.denoiser(SCHEDULE), SCHEDULE, ARCS.means, time_grid(2, SCHEDULE), order=4)
    assert float(bound.prior.max()) < 1e-7
    assert float((bound.reconstruction + math.log(math.exp(20) / (2 * math.pi))).mean()) == pytest.approx(1, abs=1e-3)


def test_the_bars_of_an_upper_sum_stand_above_the_curve_and_those_of_a_lower_sum_below():
    levels = torch.linspace(-10, 14, 49, dtype=F64)
    clean_error = curve(BLOBS, levels) * (-levels).exp()
    fine = torch.linspace(-10, 14, 385, dtype=F64)
    areas = (curve(BLOBS, fine)[:-1] + curve(BLOBS, fine)[1:]).view(48, 8).sum(1) * 24 / 384 / 2
    gained = levels.exp().diff()
    assert bool((gained * clean_error[:-1] > 0.999 * areas).all()) and bool(
        (gained * clean_error[1:] < 1.001 * areas).all()
    )
    assert (
        float((gained * clean_error[:-1]).sum()) > float(areas.sum()) + 1 > float((gained * clean_error[1:]).sum()) + 2
    )


def test_each_wrong_sum_of_the_pitfall_is_off_and_the_lower_sum_is_below_the_truth():
    lam = torch.linspace(-20, 20, 161, dtype=F64)
    snr, error = lam.exp(), curve(BLOBS, lam) * (-lam).exp()
    ends = math.log(2 * math.pi / snr[-1]) + snr[-1] / 2 * error[-1]
    gained, truth = snr.diff(), entropy(BLOBS)
    right = float(ends + (gained / 2 * error[:-1]).sum())
    lower = float(ends + (gained / 2 * error[1:]).sum())
    assert lower + 1 < truth < right < truth + 3.5
    assert abs(float(ends + (snr.sqrt().diff() / 2 * error[:-1]).sum()) - truth) > 5


# ---- the area


def test_short_steps_lose_to_second_order_what_the_look_scatters_beyond_a_gaussian_around_the_guess():
    """The true reverse step against DDPM's Gaussian one, averaged over x_t."""
    t = SCHEDULE.time(0.5)
    x, weights = divergence.mixture_nodes(BLOBS.noised(SCHEDULE.alpha(t), SCHEDULE.sigma(t)), 8)
    lost = []
    for length in (0.2, 0.1, 0.05):
        s = SCHEDULE.time(0.5 + length)
        model = kernels.ddpm(BLOBS.denoiser(SCHEDULE), SCHEDULE)(x, t, s)
        lost.append(float(weights @ divergence.kl(BLOBS.reverse(x, SCHEDULE, t, s), model, 10)))
    orders = [math.log2(a / b) for a, b in zip(lost, lost[1:], strict=False)]
    assert all(1.9 < order < 2.1 for order in orders)


def test_with_little_noise_left_the_looks_cost_the_divergence_of_the_narrow_gaussian():
    """KL(q(x_t | x) || p_t) by quadrature: half of the area so far, and d / 2 log(SNR / 2 pi e) - log p(x)."""
    x, t = BLOBS.sample(3, random(1))[0], SCHEDULE.time(12.0)
    alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
    noise, chance = divergence.hermite(20, 2)
    there = alpha * x + sigma * noise[:, None]
    noised = BLOBS.noised(alpha, sigma)
    log_q = Normal(alpha * x, sigma).log_prob(there).sum(2)
    cost = chance @ (log_q - noised.log_prob(there.flatten(0, 1)).view_as(log_q))
    torch.testing.assert_close(
        cost, math.log(math.exp(12) / (2 * math.pi * math.e)) - BLOBS.log_prob(x), atol=1e-3, rtol=0
    )
    levels = torch.linspace(-20, 12, 161, dtype=F64)
    errors = torch.stack(
        [level.exp() * (chance @ likelihood.squared_errors(BLOBS.denoiser(SCHEDULE), SCHEDULE, x, u, noise))
         for level, u in zip(levels, SCHEDULE.time(levels), strict=True)]
    )  # fmt: skip
    torch.testing.assert_close(torch.trapezoid(errors, levels, dim=0) / 2, cost, atol=1e-3, rtol=0)


def test_another_denoiser_is_too_large_by_half_the_area_of_its_squared_distance_from_the_best():
    data, other, levels = BLOBS, one_gaussian(BLOBS), torch.linspace(-16, 16, 65, dtype=F64)
    noise, chance = divergence.hermite(12, 2)
    x, weights = divergence.mixture_nodes(data, 6)
    distance, excess = [], []
    for t in SCHEDULE.time(levels):
        seen = (SCHEDULE.alpha(t) * x + SCHEDULE.sigma(t) * noise[:, None]).flatten(0, 1)
        best, mine = (model.denoiser(SCHEDULE)(seen, t).eps for model in (data, other))
        drawn = noise[:, None].expand(-1, len(x), -1).flatten(0, 1)
        share = torch.outer(chance, weights).flatten()
        distance.append(share @ (mine - best).square().sum(1))
        excess.append(share @ ((drawn - mine).square() - (drawn - best).square()).sum(1))
    torch.testing.assert_close(torch.stack(excess), torch.stack(distance), atol=1e-2, rtol=1e-2)
    saved = float(weights @ (data.log_prob(x) - other.log_prob(x)))
    assert abs(float(torch.trapezoid(torch.stack(distance), levels)) / 2 - saved) < 0.02 * saved


# ---- the clock


def clocks(high: float, low: float) -> dict:
    straight = vp_linear(0.1, 0.2 - 2 * float(torch.nn.functional.logsigmoid(torch.tensor(low)) + 0.05))
    curved, first, last = cosine(high, low), straight.time(high), straight.time(low)
    return {
        "even": lambda u: high + (low - high) * u,
        "cosine": curved.log_snr,
        "linear": lambda u: straight.log_snr(first + (last - first) * u),
    }


@pytest.mark.equation("eq-clock-estimate")
def test_clocks_with_the_same_ends_have_the_same_mean_and_another_scatter():
    """Level: three means, four standard errors each."""
    priced, data = names_of("03", "eq-clock-estimate")["priced"], FOUR.mixture()
    levels = torch.linspace(-8, 8, 65, dtype=F64)
    area = float(torch.trapezoid(curve(data, levels), levels)) / 2
    x_0, eps = data.sample(30_000, random(21))[0], normal(30_000, 2, seed=22)
    u, scatter = torch.rand(30_000, generator=random(23), dtype=F64), {}
    for name, clock in clocks(8.0, -8.0).items():
        nats = priced(data, clock, u.clone(), x_0, eps)
        scatter[name] = float(nats.std())
        assert abs(float(nats.mean()) - area) < 4 * scatter[name] / 30_000**0.5
    assert 1.5 * scatter["even"] < min(scatter["cosine"], scatter["linear"])


def test_with_small_variance_the_usual_grids_lose_hundreds_in_the_last_step_and_with_large_less_than_a_nat():
    step_cost = names_of("03", "eq-wider-look")["step_cost"]
    levels = torch.linspace(-10, 14, 193, dtype=F64)
    area = float(torch.trapezoid(curve(BLOBS, levels), levels)) / 2
    for name, clock in clocks(14.0, -10.0).items():
        at = clock(torch.linspace(1, 0, 101, dtype=F64))
        gained, error = at.exp().diff(), curve(BLOBS, at[:-1]) * (-at[:-1]).exp()
        variance = torch.sigmoid(-at)
        small, large = (step_cost(gained, error, 2, c) for c in (torch.ones_like(gained), variance[1:] / variance[:-1]))
        assert 0 < float(large.sum()) - area < 1
        too_much = float(small.sum()) - area
        if name == "even":
            assert 0.5 < too_much < 3
        else:
            last = float(small[-1] - (at[-1] - at[-2]))  # less its half of the area
            assert too_much > 200 and last > 0.98 * too_much and float(at[-1] - at[-2]) > 5


def test_on_near_points_the_large_variance_fails_on_blobs_the_small_and_the_best_on_neither():
    """Three near-points elsewhere than the page's, of another width; nats above the area."""
    step_cost = names_of("03", "eq-wider-look")["step_cost"]
    centres = torch.tensor([[0.3, -1.4], [1.2, 0.5], [-1.1, 0.8]], dtype=F64)
    near_points = GaussianMixture([0.5, 0.2, 0.3], centres, 5e-8 * torch.eye(2, dtype=F64).repeat(3, 1, 1))
    levels = torch.linspace(-10, 14, 193, dtype=F64)
    for data, fails, does in ((near_points, 1, 0), (BLOBS, 0, 1)):
        area = float(torch.trapezoid(curve(data, levels), levels)) / 2
        for name in ("cosine", "linear"):
            at = clocks(14.0, -10.0)[name](torch.linspace(1, 0, 101, dtype=F64))
            gained, error = at.exp().diff(), curve(data, at[:-1]) * (-at[:-1]).exp()
            variance = torch.sigmoid(-at)
            factors = torch.ones_like(gained), variance[1:] / variance[:-1], 1 / (1 + gained * error / 2)
            above = [float(step_cost(gained, error, 2, c).sum()) - area for c in factors]
            assert above[fails] > 4 and above[does] < 1 and 0 < above[2] < min(0.6, 1.001 * above[does])


def test_a_step_of_small_variance_is_too_narrow_by_the_ratio_of_the_precisions_where_the_density_is_flat():
    """A standard normal at little noise: the exact step's variance over the posterior's."""
    wide = single([0.0, 0.0], [[1.0, 0.0], [0.0, 1.0]])
    for length in (0.4, 3.0):
        t, s = SCHEDULE.time(9.0), SCHEDULE.time(9.0 + length)
        exact = 1 - SCHEDULE.transition(t, s)[0] ** 2  # both points have variance one, and this correlation, squared
        small = kernels.ddpm(wide.denoiser(SCHEDULE), SCHEDULE)(torch.zeros(1, 2, dtype=F64), t, s).var
        assert float(exact / small) == pytest.approx(math.exp(length), rel=2e-3)


def test_the_scatter_of_one_draw_under_a_usual_schedule_grows_with_the_upper_end():
    x_0, eps, scatter = BLOBS.sample(2000, random(61))[0], normal(2000, 2, seed=62), {}
    for end in (6.0, 9.0, 12.0):
        levels = torch.linspace(-10, end, 89, dtype=F64)
        fourth = []
        for t in SCHEDULE.time(levels):
            error = eps - BLOBS.denoiser(SCHEDULE)(SCHEDULE.add_noise(x_0, eps, t), t).eps
            fourth.append(error.square().sum(1).square().mean())
        fourth, mean = torch.stack(fourth), float(torch.trapezoid(curve(BLOBS, levels), levels)) / 2
        spent = 1 / torch.cosh(levels / 2)
        square = torch.trapezoid(fourth / (spent / torch.trapezoid(spent, levels)), levels) / 4
        even = torch.trapezoid(fourth, levels) * (end + 10) / 4
        scatter[end] = float((square - mean**2) / (even - mean**2)) ** 0.5
    assert 1.3 * scatter[6.0] < scatter[9.0] < scatter[12.0] / 1.3


@pytest.mark.equation("eq-loss-weights")
def test_the_factors_turn_an_error_of_the_noise_into_the_others_for_a_wrong_guess_too():
    factors = names_of("03", "eq-loss-weights")["factors"](RATE.log_snr(T))
    alpha, sigma = RATE.alpha(T), RATE.sigma(T)
    x_0, eps, wrong = normal(6, 3, seed=7), normal(6, 3, seed=8), normal(6, 3, seed=9)
    guess = (alpha * x_0 + sigma * eps - sigma * wrong) / alpha
    base = (eps - wrong).square().sum(1)
    torch.testing.assert_close((x_0 - guess).square().sum(1), factors["x0"] * base)
    v = alpha * (eps - wrong) - sigma * (x_0 - guess)
    torch.testing.assert_close(v.square().sum(1), factors["v"] * base)
    torch.testing.assert_close(((wrong - eps) / sigma).square().sum(1), factors["score"] * base)


def test_cosine_spends_at_each_level_what_one_over_two_pi_cosh_says_and_a_tenth_at_six():
    times = torch.linspace(0.05, 0.95, 7, dtype=F64)
    h = 1e-5
    rate = (SCHEDULE.log_snr(times - h) - SCHEDULE.log_snr(times + h)) / (2 * h)
    level = SCHEDULE.log_snr(times)
    torch.testing.assert_close(1 / rate, 1 / (2 * math.pi * torch.cosh(level / 2)), rtol=1e-3, atol=0)
    assert 0.09 < 1 / math.cosh(3.0) < 0.105


def test_a_fifth_of_what_sets_the_arcs_apart_lies_above_level_six():
    levels = torch.linspace(-14, 18, 129, dtype=F64)
    apart = curve(one_gaussian(ARCS), levels, 6) - curve(ARCS, levels, 6)
    share = torch.trapezoid(apart[levels >= 6], levels[levels >= 6]) / torch.trapezoid(apart, levels)
    assert 0.17 < float(share) < 0.24


# ---- the two forms


def walk_terms(data: GaussianMixture, steps: int, count: int, seed: int) -> dict[str, tuple[float, float]]:
    """Mean of the sum, and scatter of one draw, of each form."""
    forms = names_of("03", "eq-two-forms")["forms"]
    snr, k = (
        torch.linspace(8, -8, steps + 1, dtype=F64).exp(),
        torch.randint(1, steps, (count,), generator=random(seed)),
    )
    levels = torch.stack([snr[k - 1], snr[k], snr[k + 1]])
    terms = forms(data, data.sample(count, random(seed + 1))[0], normal(3, count, data.dim, seed=seed + 2), levels)
    return {name: ((steps - 1) * float(term.mean()), (steps - 1) * float(term.std())) for name, term in terms.items()}


@pytest.mark.equation("eq-two-forms")
@pytest.mark.parametrize("levels", [(5.0, 1.3, 0.6), (40.0, 30.0, 2.0)])
def test_the_forms_agree_up_to_entropies_for_every_clean_point_and_the_printed_one_does_not(levels):
    """With a Gaussian's denoiser all terms are quadratic in the noises, so few nodes are exact."""
    data, forms = single([0.3, -0.5], [[0.8, 0.2], [0.2, 0.4]]), names_of("03", "eq-two-forms")["forms"]
    nodes, chance = divergence.hermite(3, 6)
    for x_0 in torch.tensor([[0.9, 0.1], [-2.0, 1.5]], dtype=F64):
        snr = torch.tensor(levels, dtype=F64)[:, None].expand(3, len(nodes))
        noise = nodes.view(-1, 3, 2).transpose(0, 1)
        mean = {name: float(chance @ term) for name, term in forms(data, x_0.expand(len(nodes), 2), noise, snr).items()}
        r, s, t = levels
        constant = math.log((1 - t / s) / (1 - s / r))
        drawn, both, one, averaged, printed = mean.values()
        assert abs(drawn - averaged - constant) < 1e-9 and abs(both - drawn) < 1e-9 and abs(one - averaged) < 1e-9
        assert printed > drawn + 0.2


def test_as_drawn_the_scatter_grows_like_t_with_one_average_like_its_root_and_in_the_denoising_form_not():
    near, far = (walk_terms(BLOBS, steps, 12_000, 31) for steps in (160, 640))
    growth = {name: far[name][1] / near[name][1] for name in near}
    drawn, both, one, averaged, _ = growth.values()
    assert 3.6 < drawn < 4.4 and 1.7 < both < 2.3 and 1.7 < one < 2.3 and 0.8 < averaged < 1.25
    assert 50 < far["consistency, as drawn"][1] / far["  x_s averaged"][1] < 110
    assert 0.5 < far["  x_s averaged, given both"][1] / far["denoising, x_s drawn"][1] < 1.2
    assert abs(far["printed divergence"][0] / (2 * 640) - 1) < 0.1
    assert abs(far["consistency, as drawn"][1] / 640 - 2**0.5) < 0.05  # sqrt(d / 2) from each of two densities


def test_over_whole_walks_no_form_grows_and_which_is_the_quieter_depends_on_the_upper_end():
    forms, scatter = names_of("03", "eq-two-forms")["forms"], {}
    for upper, steps in ((8, 20), (8, 80), (8, 320), (0, 81)):
        snr = torch.linspace(upper, -8, steps + 1, dtype=F64).exp()[:, None].expand(-1, 300)
        x_0, moves = BLOBS.sample(300, random(71))[0], normal(steps + 1, 300, 2, seed=72)
        u = [x_0 + moves[0] / snr[0].sqrt()[:, None]]
        for k in range(1, steps + 1):
            u.append(u[-1] + (1 / snr[k] - 1 / snr[k - 1]).sqrt()[:, None] * moves[k])
        total = {}
        for k in range(1, steps):
            noises = torch.stack([(u[k - 1] - x_0) * snr[k - 1].sqrt()[:, None], moves[k], moves[k + 1]])
            for name, term in forms(BLOBS, x_0, noises, snr[k - 1 : k + 2]).items():
                total[name] = total.get(name, 0.0) + term
        scatter[steps] = {name: float(value.std()) for name, value in total.items()}
    for name in ("consistency, as drawn", "denoising, x_s drawn", "  x_s averaged"):
        assert scatter[320][name] < 1.1 * scatter[80][name] < 1.2 * scatter[20][name]
    assert scatter[320]["consistency, as drawn"] < 0.9 * scatter[320]["  x_s averaged"]
    assert scatter[81]["consistency, as drawn"] > 1.5 * scatter[81]["  x_s averaged"]


def test_the_constants_add_up_to_the_difference_of_the_two_prior_terms():
    """KL of one forward step at the end of time, averaged, against that of the whole noising; uneven levels."""
    levels = torch.tensor([6.0, 3.0, 1.0, -2.0, -5.0], dtype=F64)
    snr, d = levels.exp(), 2
    share = [1.0] + [float(1 - snr[k + 1] / snr[k]) for k in range(4)]  # of fresh noise in each step; all, in the first
    constants = sum(d / 2 * math.log(share[k + 1] / share[k]) for k in range(4))
    x_0, t = torch.tensor([[0.8, -1.4]], dtype=F64), SCHEDULE.time(levels[-1])
    s = SCHEDULE.time(levels[-2])
    alpha_ts, sigma_ts = SCHEDULE.transition(t, s)
    noise, chance = divergence.hermite(4, 2)
    x_s = SCHEDULE.alpha(s) * x_0 + SCHEDULE.sigma(s) * noise
    step = chance @ kl_divergence(Normal(alpha_ts * x_s, sigma_ts), Normal(0.0 * x_s, 1.0)).sum(1)
    whole = kl_divergence(Normal(SCHEDULE.alpha(t) * x_0, SCHEDULE.sigma(t)), Normal(0.0 * x_0, 1.0)).sum()
    assert abs(float(step - whole) + constants) < 1e-6
    assert abs(constants - d / 2 * math.log(1 - snr[4] / snr[3])) < 1e-9  # of the last pair; the first r is clean


# ---- deeper


@pytest.mark.equation("eq-wider-look")
def test_a_wider_step_costs_the_divergence_of_two_gaussians_and_the_best_factor_the_least():
    step_cost = names_of("03", "eq-wider-look")["step_cost"]
    x_0, x_t = normal(4, 2, seed=11), normal(4, 2, seed=12)
    large = kernels.ddpm(BLOBS.denoiser(RATE), RATE, "large")(x_t, T, S)
    small = kernels.ddpm(BLOBS.denoiser(RATE), RATE, "small")(x_t, T, S)
    mean, variance = names_of("03", "eq-fresh-look")["fresh_look"](x_t, x_0, RATE, T, S)
    gained = RATE.log_snr(S).exp() - RATE.log_snr(T).exp()
    error = (x_0 - BLOBS.denoiser(RATE)(x_t, T).x0).square().sum(1)
    c = (RATE.sigma(S) / RATE.sigma(T)) ** 2
    for factor, model in ((c, large), (torch.ones_like(c), small)):
        want = kl_divergence(Normal(mean, variance.sqrt()), Normal(model.mean, model.var.sqrt())).sum(1)
        torch.testing.assert_close(step_cost(gained, error, 2, factor), want)
    best = 1 / (1 + gained * error / 2)
    for other in (0.9, 1.1):
        assert bool((step_cost(gained, error, 2, best) < step_cost(gained, error, 2, other * best)).all())


def test_with_the_large_variance_the_gap_is_several_times_smaller_and_with_the_best_still_smaller():
    step_cost = names_of("03", "eq-wider-look")["step_cost"]
    for data in (BLOBS, ARCS):
        for steps in (25, 100):
            grid = time_grid(steps, SCHEDULE)
            snr, sigma = SCHEDULE.log_snr(grid).exp(), SCHEDULE.sigma(grid)
            error = torch.stack([likelihood.least_error(data, SCHEDULE, t, 6) for t in grid])
            gained, end = snr.diff(), math.log(2 * math.pi / snr[-1]) + snr[-1] / 2 * error[-1] - entropy(data)
            best = 1 / (1 + gained * error[:-1] / 2)
            choices = torch.ones_like(best), (sigma[1:] / sigma[:-1]) ** 2, best
            small, large, least = (float(end + step_cost(gained, error[:-1], 2, c).sum()) for c in choices)
            assert small > 7 * large > 7 * least > 0


@pytest.mark.equation("eq-learned-clock")
def test_levels_of_an_omega_are_those_of_a_schedule_at_this_level():
    omega = torch.tensor([-9.0, -1.0, 0.0, 3.0], dtype=F64)
    times = SCHEDULE.time(-omega)
    snr, alpha, sigma = names_of("03", "eq-learned-clock")["levels_of"](omega)
    torch.testing.assert_close(alpha, SCHEDULE.alpha(times))
    torch.testing.assert_close(sigma, SCHEDULE.sigma(times))
    torch.testing.assert_close(snr, (SCHEDULE.alpha(times) / SCHEDULE.sigma(times)) ** 2)


def test_the_best_clock_spends_time_like_the_root_mean_square_and_scatters_least():
    levels = torch.linspace(-8, 8, 65, dtype=F64)
    x_0, eps = BLOBS.sample(3000, random(41))[0], normal(3000, 2, seed=42)
    fourth = []
    for t in SCHEDULE.time(levels):
        error = eps - BLOBS.denoiser(SCHEDULE)(SCHEDULE.add_noise(x_0, eps, t), t).eps
        fourth.append(error.square().sum(1).square().mean())
    fourth = torch.stack(fourth)

    def moment(density):
        return float(torch.trapezoid(fourth / density, levels))

    best = fourth.sqrt() / torch.trapezoid(fourth.sqrt(), levels)
    even = torch.full_like(best, 1 / 16)
    spent = 1 / torch.cosh(levels / 2)
    assert moment(best) < moment(even) < moment(spent / torch.trapezoid(spent, levels))


def test_the_difference_to_one_gaussian_at_the_same_noise_scatters_half_as_much():
    priced, plain = names_of("03", "eq-clock-estimate")["priced"], one_gaussian(ARCS)
    u = torch.rand(10_000, generator=random(51), dtype=F64)
    x_0, eps = ARCS.sample(10_000, random(52))[0], normal(10_000, 2, seed=53)
    alone, beside = (priced(model, clocks(14.0, -10.0)["even"], u.clone(), x_0, eps) for model in (ARCS, plain))
    assert float((beside - alone).std()) < 0.65 * float(alone.std())
    saved = float((beside - alone).mean())
    x, weights = divergence.mixture_nodes(ARCS, 12)
    exact = float(weights @ (ARCS.log_prob(x) - plain.log_prob(x)))
    assert abs(saved - exact) < 4 * float((beside - alone).std()) / 100
