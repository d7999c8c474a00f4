"""The rules of weights, each against something independent: densities by hand, quadrature, a sampler's algebra."""

import math

import pytest
import torch

from difflesson import guidance, kernels, particles, remedies
from difflesson.denoiser import Pair, Prediction
from difflesson.plane import four_blobs
from difflesson.samplers import time_grid
from difflesson.schedule import cosine, vp_linear
from difflesson.steps import Gaussian
from tests.oracles.mixtures import FOUR, THREE, random_mixture

F64 = torch.float64
T, S = torch.tensor(0.5, dtype=F64), torch.tensor(0.4, dtype=F64)


def seeded(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def slope(mixture, schedule, x, t, label):
    """The classifier's gradient in z = x / alpha, by automatic differentiation of the two densities."""
    leaf = (x / schedule.alpha(t)).clone().requires_grad_()
    noisy = mixture.noised(1.0, schedule.sigma(t) / schedule.alpha(t))
    (noisy.given(label).log_prob(leaf) - noisy.log_prob(leaf)).sum().backward()
    return leaf.grad


@pytest.mark.equation("eq-feynman-kac", "eq-weight-in-guesses")
@pytest.mark.parametrize("schedule", [cosine(), vp_linear()], ids=["cosine", "vp_linear"])
@pytest.mark.parametrize("gamma", [-1.0, 0.0, 0.4, 1.0, 3.0])
def test_the_rate_in_guesses_is_half_gamma_times_gamma_minus_one_times_the_squared_slope_per_q(schedule, gamma):
    mixture, label = random_mixture(3, [0, 1, 1, 2]), 1
    rule = remedies.feynman_kac(mixture.pair(schedule, label), gamma, schedule)
    x = torch.randn(7, 3, generator=seeded(0), dtype=F64)
    new = x + 0.1 * torch.randn(7, 3, generator=seeded(1), dtype=F64)
    got = rule(Gaussian(new, torch.zeros(())), x, new, T, S)
    q = {t: float((schedule.sigma(t) / schedule.alpha(t)) ** 2) for t in (T, S)}
    per_log_q = [gamma * (gamma - 1) / 2 * slope(mixture, schedule, y, t, label).square().sum(1) * q[t]
                 for y, t in ((x, T), (new, S))]  # fmt: skip
    want = (per_log_q[0] + per_log_q[1]) / 2 * math.log(q[T] / q[S])
    torch.testing.assert_close(got, want, atol=1e-9, rtol=1e-9)


def test_feynman_kac_takes_images_and_a_scale_for_each_point():
    schedule = cosine()

    def guess(factor):
        def denoise(x, t):
            return Prediction.from_eps(x, factor * x, schedule.alpha(t), schedule.sigma(t))

        return denoise

    pair, x = Pair(guess(0.5), guess(0.2)), torch.randn(4, 2, 3, 3, generator=seeded(2), dtype=F64)
    scales = torch.tensor([0.0, 1.0, 2.0, 3.5], dtype=F64)
    step = Gaussian(x, torch.zeros(()))
    got = remedies.feynman_kac(pair, scales, schedule)(step, x, x, T, S)
    between = float(schedule.log_snr(S) - schedule.log_snr(T))
    want = scales * (scales - 1) / 2 * 0.09 * x.square().sum((1, 2, 3)) * between
    torch.testing.assert_close(got, want)


@pytest.mark.equation("eq-ramped-weight")
def test_ramped_pays_for_the_change_of_gamma_by_the_log_probability_where_the_step_ends():
    schedule, mixture = cosine(), THREE.mixture()
    pair, gamma = mixture.pair(schedule, 0), lambda t: 4.0 - 3.0 * float(t)

    def log_prob(x, t):
        noisy = mixture.noised(schedule.alpha(t), schedule.sigma(t))
        return math.log(0.7) + noisy.given(0).log_prob(x) - noisy.log_prob(x)

    x = torch.randn(5, 2, generator=seeded(0), dtype=F64)
    new = 0.9 * x + 0.1
    step = Gaussian(new, torch.zeros(()))
    got = remedies.ramped(pair, gamma, schedule, log_prob)(step, x, new, T, S)
    constant = remedies.feynman_kac(pair, gamma(T), schedule)(step, x, new, T, S)
    torch.testing.assert_close(got, constant + 0.3 * log_prob(new, S))


def test_ramped_does_not_ask_the_classifier_where_gamma_stays():
    schedule, mixture = cosine(), THREE.mixture()

    def never(x, t):
        raise AssertionError("asked")

    pair, x = mixture.pair(schedule, 0), torch.randn(5, 2, generator=seeded(0), dtype=F64)
    step = Gaussian(x, torch.zeros(()))
    got = remedies.ramped(pair, lambda t: 2.0, schedule, never)(step, x, x, T, S)
    torch.testing.assert_close(got, remedies.feynman_kac(pair, 2.0, schedule)(step, x, x, T, S))


@pytest.mark.equation("eq-twisted-weight")
def test_twisted_weights_make_the_next_population_exact_for_any_kernel_and_any_twist():
    """Means under p_s psi_s / Z by quadrature, after one long step of a poor kernel; the twist is no classifier."""
    schedule, mixture = cosine(), FOUR.mixture()
    t, s = torch.tensor(0.7, dtype=F64), torch.tensor(0.3, dtype=F64)

    def poor(x, t, s):
        return Gaussian(0.8 * x + 0.2, torch.tensor(1.2, dtype=F64))

    def twist(x, t):
        return -((x - 0.5 * float(t)).square().sum(1)) / 3

    rule = remedies.twisted(kernels.exact(mixture, schedule), twist)
    x = mixture.noised(schedule.alpha(t), schedule.sigma(t)).sample(40_000, seeded(0))[0]
    crowd = particles.draw(poor, rule, x, torch.stack([t, s]), seeded(1), log_weights=twist(x, t))
    axis = torch.linspace(-7, 7, 281, dtype=F64)
    grid = torch.cartesian_prod(axis, axis)
    log = mixture.noised(schedule.alpha(s), schedule.sigma(s)).log_prob(grid) + twist(grid, s)
    want, log_z = log.softmax(0) @ grid, float(log.logsumexp(0)) + 2 * math.log(14 / 280)
    error = float((crowd.x.square().sum(1).mean() / crowd.ess) ** 0.5)
    assert float((crowd.expectation(lambda x: x) - want).abs().max()) < 4 * error < 0.1
    assert abs(float(crowd.log_normaliser) - log_z) < 4 * float((1 / crowd.ess - 1 / len(x)).clamp_min(0) ** 0.5) < 0.2


def test_asked_once_answers_like_its_pair_and_asks_it_once_about_the_same_points():
    schedule, mixture, count = cosine(), THREE.mixture(), []
    exact = mixture.pair(schedule, 0)

    def counted(x, t):
        count.append(len(x))
        return exact.cond(x, t)

    once = remedies.asked_once(Pair(counted, exact.uncond)).start()
    x = torch.randn(5, 2, generator=seeded(0), dtype=F64)
    for points, time in ((x, T), (x.clone(), T), (x, S), (x[:3], S)):
        for got, want in zip(once(points, time), exact(points, time), strict=True):
            torch.testing.assert_close(got.x0, want.x0)
            torch.testing.assert_close(got.eps, want.eps)
    assert count == [5, 5, 3]
    once.reorder(torch.tensor([2, 2, 0]))
    once(x[:3][[2, 2, 0]], S)
    assert count == [5, 5, 3] and once.cond is counted and once.uncond is exact.uncond


def test_kernel_and_rule_share_one_answer_a_step():
    schedule, mixture, calls = cosine(), FOUR.mixture(), []
    exact = mixture.pair(schedule, 1)

    def counted(x, t):
        calls.append(float(t))
        return exact.cond(x, t)

    pair = Pair(counted, exact.uncond)
    x, walk = torch.randn(300, 2, generator=seeded(0), dtype=F64), time_grid(20, schedule, 0.9, 0.05)
    runs = []
    for shared in (remedies.asked_once(pair), pair):
        calls.clear()
        kernel = kernels.ddpm(guidance.classifier_free(shared, 2.0), schedule)
        runs.append(particles.draw(kernel, remedies.feynman_kac(shared, 2.0, schedule), x, walk, seeded(3)))
        runs.append(len(calls))
    torch.testing.assert_close(runs[0].log_weights, runs[2].log_weights)
    assert runs[1] == 21 and runs[3] == 60


def test_asked_once_has_no_memory_outside_a_run():
    with pytest.raises(ValueError, match="memory"):
        remedies.asked_once(FOUR.mixture().pair(cosine(), 1))(torch.zeros(2, 2, dtype=F64), T)


@pytest.mark.parametrize("gamma", [0.0, 1.0])
def test_without_guidance_there_is_no_weight_and_nobody_is_asked(gamma):
    def never(x, t):
        raise AssertionError("asked")

    x = torch.randn(5, 2, generator=seeded(0), dtype=F64)
    got = remedies.feynman_kac(never, gamma, cosine())(Gaussian(x, torch.zeros(())), x, x, T, S)
    torch.testing.assert_close(got, torch.zeros(5, dtype=F64))


@pytest.mark.equation("eq-weight-in-guesses")
@pytest.mark.parametrize("schedule", [cosine(), vp_linear()], ids=["cosine", "vp_linear"])
def test_the_step_to_the_data_adds_the_square_at_its_start_times_what_is_left_of_q(schedule):
    mixture, label, t = random_mixture(3, [0, 1, 1, 2]), 1, torch.tensor(0.02, dtype=F64)
    x = torch.randn(7, 3, generator=seeded(0), dtype=F64)
    step, zero = Gaussian(x, torch.zeros(())), torch.zeros((), dtype=F64)
    got = remedies.feynman_kac(mixture.pair(schedule, label), 3.0, schedule)(step, x, x, t, zero)
    q = float((schedule.sigma(t) / schedule.alpha(t)) ** 2)
    torch.testing.assert_close(got, 3 * slope(mixture, schedule, x, t, label).square().sum(1) * q)


@pytest.mark.parametrize("schedule", [cosine(), vp_linear()], ids=["cosine", "vp_linear"])
def test_a_run_to_the_data_themselves_has_the_weights_of_one_that_stops_just_before(schedule):
    pair, x = THREE.mixture().pair(schedule, 0), torch.randn(200, 2, generator=seeded(3), dtype=F64)
    kernel = kernels.ddim(guidance.classifier_free(pair, 1.5), schedule)
    rule = remedies.feynman_kac(pair, 1.5, schedule)
    ends = [particles.draw(kernel, rule, x, time_grid(100, end=end), seeded(0), below=0) for end in (0.0, 0.01)]
    assert float((ends[0].log_weights - ends[1].log_weights).abs().max()) < 1e-2


@pytest.mark.parametrize("reordered", [False, True])
def test_asked_once_asks_again_about_points_that_were_changed_in_place(reordered):
    exact = THREE.mixture().pair(cosine(), 0)
    once, x = remedies.asked_once(exact).start(), torch.randn(5, 2, generator=seeded(0), dtype=F64)
    once(x, T)
    x.add_(0.3)
    if reordered:
        which = torch.tensor([4, 1, 1, 0, 2])
        once.reorder(which)
        x = x[which]
    torch.testing.assert_close(once(x, T)[0].x0, exact(x, T)[0].x0)


def test_a_ramp_takes_a_number_and_a_scale_for_each_point():
    schedule, x = vp_linear(), torch.zeros(4, 2).double()
    pair, t, s = four_blobs().pair(schedule, 1), torch.tensor(0.5).double(), torch.tensor(0.4).double()

    def weighed(gamma):
        rule = remedies.ramped(pair, gamma, schedule, lambda x, t: x.new_full((len(x),), -2.0))
        return rule(Gaussian(x, torch.tensor(0.1)), x, x, t, s)

    each = torch.tensor([1.0, 2.0, 3.0, 4.0]).double()
    alone = [weighed(lambda t, g=g: g * (1 - t))[0] for g in each]
    assert torch.allclose(weighed(lambda t: each * (1 - t)), torch.stack(alone))
    assert torch.allclose(weighed(2.0), remedies.feynman_kac(pair, 2.0, schedule)(None, x, x, t, s))
