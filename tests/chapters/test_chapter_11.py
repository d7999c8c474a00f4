"""What chapter 11 claims about classifier-free guidance, without its cells: by recursions, Bayes and quadrature."""

import math

import pytest
import torch
from torch import Tensor

from difflesson import exercises, guidance, kernels, plane
from difflesson.denoiser import Denoiser, Pair, network_pair
from difflesson.mixture import GaussianMixture
from difflesson.samplers import draw, sample, time_grid
from difflesson.schedule import cosine, vp_linear
from tests.oracles.chapter_cells import names_of

F64 = torch.float64
MIXTURE = GaussianMixture(
    weights=[0.30, 0.30, 0.25, 0.15],
    means=torch.tensor([[-2.0, -0.5], [-0.2, 1.4], [0.4, -0.6], [2.4, 1.0]], dtype=F64),
    covs=[[[0.5, 0.2], [0.2, 0.4]], [[0.4, -0.2], [-0.2, 0.3]], [[0.4, 0.1], [0.1, 0.5]], [[0.3, -0.1], [-0.1, 0.3]]],
    labels=[0, 0, 1, 1],
)


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 2, generator=random(seed), dtype=F64)


def gaussian(variance: float) -> GaussianMixture:
    """`N(0, variance)` on the line."""
    return GaussianMixture([1.0], torch.zeros(1, 1, dtype=F64), torch.full((1, 1, 1), variance, dtype=F64))


def final_variance(make_kernel, denoiser: Denoiser, times: Tensor) -> float:
    """The variance after all steps from N(0, 1), drawing nothing: linear steps of Gaussians are a recursion."""
    kernel, variance, one = make_kernel(denoiser), 1.0, torch.ones(1, 1, dtype=F64)
    for t, s in zip(times[:-1], times[1:], strict=True):
        step = kernel(one, t, s)
        variance = float(step.mean) ** 2 * variance + float(step.var)
    return variance


# ---- the paper's notation


@pytest.mark.equation("eq-forward-transition", "eq-ddpm", "eq-posterior-variance", "eq-variance-interpolation")
@pytest.mark.parametrize("schedule", [cosine(), vp_linear()], ids=["cosine", "vp_linear"])
@pytest.mark.parametrize("v", [0.0, 0.3, 1.0])
def test_a_step_in_log_snr_is_the_package_s_step_and_bayes_rule(schedule, v):
    """The paper's formulas against ours, and both against prior times likelihood with precisions added."""
    z = normal(20)
    for t, s in ((0.9, 0.85), (0.6, 0.1), (0.2, 0.19)):
        lam, lam_next = (float(schedule.log_snr(time)) for time in (t, s))
        alpha, alpha_next = ((1 + math.exp(-x)) ** -0.5 for x in (lam, lam_next))
        var, var_next = (1 / (1 + math.exp(x)) for x in (lam, lam_next))
        r = math.exp(lam - lam_next)
        step = kernels.ddpm(MIXTURE.denoiser(schedule), schedule, variance=v)(z, torch.tensor(t), torch.tensor(s))
        clean = MIXTURE.denoiser(schedule)(z, torch.tensor(t)).x0

        paper = r * alpha_next / alpha * z + (1 - r) * alpha_next * clean
        small, large = (1 - r) * var_next, (1 - r) * var
        ratio = alpha / alpha_next
        added = var - ratio**2 * var_next
        narrow = 1 / (1 / var_next + ratio**2 / added)
        bayes = narrow * (alpha_next * clean / var_next + ratio * z / added)

        assert float((step.mean - paper).abs().max()) < 1e-6 and float((paper - bayes).abs().max()) < 1e-9
        assert abs(large - added) < 1e-12 and abs(small - narrow) < 1e-12
        assert abs(float(step.var) / math.exp((1 - v) * math.log(narrow) + v * math.log(added)) - 1) < 1e-5
        alpha_ts, sigma_ts = schedule.transition(t, s)
        assert abs(float(alpha_ts) - ratio) < 1e-12 and abs(float(sigma_ts) ** 2 - added) < 1e-12


@pytest.mark.equation("eq-variance-interpolation")
@pytest.mark.nightly
def test_with_few_steps_a_larger_v_keeps_more_of_the_spread_and_with_many_it_does_not_matter():
    schedule, data = cosine(), gaussian(0.7)
    found = {}
    for steps in (5, 1000):
        spreads = [
            final_variance(lambda d, v=v: kernels.ddpm(d, schedule, v), data.denoiser(schedule), time_grid(steps)) / 0.7
            for v in (0.0, 0.3, 1.0)
        ]
        assert spreads == sorted(spreads)
        found[steps] = spreads
    assert found[5][0] < 0.75 and found[5][2] - found[5][0] > 0.2
    assert found[1000][2] - found[1000][0] < 0.01 and abs(found[1000][1] - 1) < 0.01


# ---- two guesses are two scores


@pytest.mark.equation("eq-guess-is-score")
@pytest.mark.parametrize("schedule", [cosine(), vp_linear()], ids=["cosine", "vp_linear"])
def test_the_average_noise_is_minus_sigma_times_the_score(schedule):
    """The page's two functions against a double integral over clean points, with the density written out."""
    cell = names_of("11", "eq-guess-is-score")
    axis = torch.linspace(-7, 7, 401, dtype=F64)
    clean, x = torch.cartesian_prod(axis, axis), 1.5 * normal(7, 20)
    prior = torch.zeros(len(clean), dtype=F64)
    for weight, mean, cov in zip(MIXTURE.weights, MIXTURE.means, MIXTURE.covs, strict=True):
        away = clean - mean
        prior += weight * torch.exp(-((away @ cov.inverse()) * away).sum(1) / 2) / cov.det().sqrt()
    for t in (0.3, 0.5, 0.9):
        t = torch.tensor(t, dtype=F64)
        noise = (x[:, None] - schedule.alpha(t) * clean) / schedule.sigma(t)
        weights = prior * torch.exp(-noise.square().sum(2) / 2)
        average = (weights[:, :, None] * noise).sum(1) / weights.sum(1, keepdim=True)
        assert float((cell["guess_from_score"](MIXTURE, schedule, x, t) - average).abs().max()) < 1e-6
    sampled = cell["guess_by_averaging"](MIXTURE.sample(20_000, random(21))[0], schedule, x, t)
    assert float((sampled - average).abs().max()) < 0.05


@pytest.mark.parametrize("rho", [0.0, 1.0, 2.0])
def test_half_of_one_plus_rho_squared_scores_undo_a_little_noise(rho):
    """One step of the rule takes the variance C + q of noised data to C + q - dq, up to dq^2; no other pull does."""
    variance, q, dq = 0.7, 1.3, 1e-4
    for pull, right in (((1 + rho**2) / 2, True), ((1 + rho**2) / 2 + 0.1, False)):
        after = (variance + q) * (1 - pull * dq / (variance + q)) ** 2 + rho**2 * dq
        assert (abs(after - (variance + q - dq)) < 1e-7) == right


# ---- the line through two answers


@pytest.mark.equation("eq-cfg")
def test_swapped_branches_guide_with_one_minus_gamma():
    schedule, x, t = cosine(), normal(30), torch.tensor(0.5, dtype=F64)
    pair = MIXTURE.pair(schedule, 1)
    swapped = guidance.classifier_free(Pair(pair.uncond, pair.cond), 3.0)(x, t)
    meant = guidance.classifier_free(pair, -2.0)(x, t)
    assert float((swapped.eps - meant.eps).abs().max()) < 1e-12


def edge(mixture: GaussianMixture) -> float:
    """The log-density around 99 % of the mass."""
    return float(mixture.log_prob(mixture.sample(20_000, random(40))[0]).quantile(0.01))


def test_swapped_branches_give_samples_of_the_other_class_far_beyond_all_data():
    schedule = cosine()
    away = guidance.classifier_free(MIXTURE.pair(schedule, 1), -2.0)
    x = draw(kernels.ddim(away, schedule), normal(500, 41), time_grid(50))
    assert float(MIXTURE.class_log_prob(x, 1).exp().mean()) < 0.1
    for region in (MIXTURE, MIXTURE.given(0)):
        assert float((region.log_prob(x) < edge(region)).double().mean()) > 0.85
    assert float(x[:, 0].median()) < -4.5


@pytest.mark.parametrize("gamma, answers", [(0.0, 1), (1.0, 1), (3.0, 2), (-1.0, 2)])
def test_two_answers_at_every_scale_but_nought_and_one(gamma, answers):
    network, given = plane.PlaneNetwork(2).double(), []
    network.register_forward_hook(lambda module, inputs, output: given.append(len(output)))
    with torch.no_grad():
        guidance.classifier_free(network_pair(network, cosine(), 1), gamma)(normal(7), torch.tensor(0.5, dtype=F64))
    assert given == [7 * answers]


def test_hiding_more_labels_leaves_a_higher_floor():
    """Not knowing the label can only add variance, so the loss is lowest where guidance is ruined, at p = 0."""
    schedule, (x0, y), eps = cosine(), MIXTURE.sample(40_000, random(1)), normal(40_000, 2)
    for t in (0.2, 0.5, 0.8):
        t = torch.tensor(t, dtype=F64)
        x = schedule.add_noise(x0, eps, t)
        untold = (MIXTURE.denoiser(schedule)(x, t).eps - eps).square().sum(1)
        told = torch.empty_like(untold)
        for label in (0, 1):
            known = MIXTURE.denoiser(schedule, label)(x[y == label], t).eps
            told[y == label] = (known - eps[y == label]).square().sum(1)
        gap = untold - told
        assert float(gap.mean()) > 10 * float(gap.std()) / math.sqrt(len(gap))


@pytest.mark.equation("eq-implicit-classifier")
def test_the_implicit_gradient_integrates_to_the_class_probability_along_any_path():
    """Line integrals over a straight way and a detour, against log p(y | x) at the ends; the way round is zero."""
    schedule, t = cosine(), torch.tensor(0.3, dtype=F64)
    gradient = guidance.implicit_gradient(MIXTURE.pair(schedule, 1), schedule)
    noisy = MIXTURE.noised(schedule.alpha(t), schedule.sigma(t))
    a, b, c = torch.tensor([[-1.0, 0.5], [1.5, -0.5], [0.3, 2.0]], dtype=F64)

    def gain(start: Tensor, end: Tensor) -> float:
        u = ((torch.arange(2000, dtype=F64) + 0.5) / 2000)[:, None]
        return float((gradient(start + u * (end - start), t) @ (end - start)).mean())

    ends = noisy.class_log_prob(torch.stack([a, b]), 1)
    assert abs(gain(a, b) - float(ends[1] - ends[0])) < 1e-5
    assert abs(gain(a, c) + gain(c, b) - gain(a, b)) < 1e-5


def test_told_a_class_the_loss_weighs_only_points_of_that_class():
    """A guess that is wrong for class 1 where only class 0 has data costs nothing: the first square has pairs."""
    schedule, t = cosine(), torch.tensor(0.1, dtype=F64)
    x0, label = MIXTURE.sample(20_000, random(30))
    x = schedule.add_noise(x0, normal(20_000, 31), t)
    noisy = MIXTURE.noised(schedule.alpha(t), schedule.sigma(t))
    foreign = noisy.class_log_prob(x, 1) < math.log(1e-3)
    assert float(foreign[label == 0].double().mean()) > 0.2 > 1e-3 > float(foreign[label == 1].double().mean())


# ---- what a network learns


@pytest.fixture(scope="module")
def learned() -> Pair:
    network = plane.train(MIXTURE, cosine(), label_dropout=0.3, steps=700, batch=512)
    return network_pair(network, cosine(), 1)


def test_the_network_is_right_where_the_data_are_and_wrong_far_away(learned):
    schedule, exact = cosine(), MIXTURE.pair(cosine(), 1)
    for t in (0.2, 0.5, 0.8):
        t = torch.tensor(t, dtype=F64)
        here = schedule.add_noise(MIXTURE.given(1).sample(2000, random(3))[0], normal(2000, 4), t)
        direction = normal(500, 5)
        there = 6 * direction / direction.norm(dim=1, keepdim=True)
        errors = [
            float((guidance.classifier_free(learned, 3.0)(x, t).eps - guidance.classifier_free(exact, 3.0)(x, t).eps)
                  .norm(dim=1).median())
            for x in (here, there)
        ]  # fmt: skip
        assert errors[0] < 0.35 and errors[1] > 3 * errors[0]


@pytest.mark.equation("eq-curl")
def test_the_learned_classifier_is_close_to_a_gradient_but_is_none(learned):
    """A small share of its derivatives turn; around a large circle it gains log-odds from nothing."""
    schedule, t, x = cosine(), torch.tensor(0.5, dtype=F64), normal(1000, 6)
    for pair, low, high, most in ((MIXTURE.pair(schedule, 1), 0, 1e-12, 1e-10), (learned, 3e-3, 0.3, 10)):
        gradient = guidance.implicit_gradient(pair, schedule)

        def field(p, gradient=gradient):
            return gradient(p, t)

        turning = plane.curl(field, x).square().sum() / 2 / plane.jacobian(field, x).square().sum()
        assert low <= float(turning) ** 0.5 < high
        angle = 2 * math.pi * torch.arange(400, dtype=F64) / 400
        ring = 4 * torch.stack([angle.cos(), angle.sin()], dim=1)
        circulation = (field(ring) * torch.stack([-angle.sin(), angle.cos()], dim=1)).sum() * 8 * math.pi / 400
        assert (abs(float(circulation)) > 1e-2) == (low > 0) and abs(float(circulation)) < most


def test_on_data_the_two_errors_bound_the_guided_one_and_the_class_s_share_bounds_the_unconditional(learned):
    """|gamma e_c - (gamma - 1) e_u| <= gamma |e_c| + (gamma - 1) |e_u|, in root mean square at points of class 1."""
    schedule, exact = cosine(), MIXTURE.pair(cosine(), 1)
    x0, label = MIXTURE.sample(20_000, random(33))
    for t in (0.2, 0.5, 0.8):
        t = torch.tensor(t, dtype=F64)
        x = schedule.add_noise(x0, normal(20_000, 34), t)

        def rms(a, b, where):
            return float((a.eps - b.eps)[where].square().sum(1).mean().sqrt())

        told, untold = learned(x, t)
        cond, uncond = exact(x, t)
        guided = [guidance.classifier_free(pair, 6.0)(x, t) for pair in (learned, exact)]
        ones, every = label == 1, label >= 0
        assert rms(*guided, ones) <= 6 * rms(told, cond, ones) + 5 * rms(untold, uncond, ones) + 1e-9
        assert rms(untold, uncond, ones) <= rms(untold, uncond, every) / math.sqrt(float(ones.double().mean())) + 1e-9


def test_nearly_all_of_the_loss_is_its_floor(learned):
    """The network's distance from the best v, told and not told, against the variance of v that nobody can avoid."""
    schedule, (x0, label), eps = cosine(), MIXTURE.sample(5000, random(42)), normal(5000, 43)
    for t in (0.2, 0.5, 0.8):
        t = torch.tensor(t, dtype=F64)
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        x, v = alpha * x0 + sigma * eps, alpha * eps - sigma * x0
        for mine, best in zip(learned(x, t), MIXTURE.pair(schedule, 1)(x, t), strict=True):
            ones = label == 1
            distance = ((mine.eps - best.eps) / alpha)[ones].square().mean()
            floor = (alpha * best.eps - sigma * best.x0 - v)[ones].square().mean()
            assert float(distance) < 0.05 * float(floor)


def test_guidance_leaves_class_zero_and_part_of_it_leaves_the_data_of_class_one_too():
    """With exact fields; there the guided answer itself is larger, so an error may be larger without being worse."""
    schedule = cosine()
    guided, times = guidance.classifier_free(MIXTURE.pair(schedule, 1), 6.0), time_grid(50)
    path, foreign = list(sample(kernels.ddim(guided, schedule), normal(1500, 44), times)), []
    for k in (10, 25, 40):
        noisy = MIXTURE.noised(schedule.alpha(times[k]), schedule.sigma(times[k]))
        foreign.append(float(noisy.class_log_prob(path[k], 0).exp().mean()))
        outside = noisy.given(1).log_prob(path[k]) < edge(noisy.given(1))
        assert 0.05 < float(outside.double().mean()) < 0.4
        size = guided(path[k], times[k]).eps.norm(dim=1)
        assert float(size[outside].mean()) > 1.3 * float(size[~outside].mean())
    assert foreign[0] > 0.1 > 10 * foreign[1] > 10 * foreign[2]


def test_told_class_one_the_network_is_several_times_worse_where_class_one_has_no_data(learned):
    schedule, exact, t = cosine(), MIXTURE.pair(cosine(), 1), torch.tensor(0.2, dtype=F64)
    errors = []
    for label in (1, 0):
        x = schedule.add_noise(MIXTURE.given(label).sample(4000, random(35))[0], normal(4000, 36), t)
        errors.append(float((learned.cond(x, t).eps - exact.cond(x, t).eps).square().sum(1).mean()))
    assert errors[1] > 2 * errors[0]


def test_guided_samples_of_network_and_exact_fields_agree_better_at_one_than_at_six(learned):
    schedule, start = cosine(), normal(500, 7)
    apart = []
    for gamma in (1.0, 6.0):
        ends = [
            draw(kernels.ddim(guidance.classifier_free(pair, gamma), schedule), start, time_grid(40))
            for pair in (learned, MIXTURE.pair(schedule, 1))
        ]
        apart.append(float((ends[0] - ends[1]).norm(dim=1).median()))
    assert apart[0] < 0.08 and apart[1] > 3 * apart[0]


# ---- low temperature


@pytest.mark.equation("eq-low-temperature")
@pytest.mark.parametrize("kappa", [1.0, 1.5, 3.0])
def test_a_tempered_score_gives_ddpm_a_variance_of_c_over_two_kappa_minus_one(kappa):
    """And not the C / kappa of p^kappa. No random numbers: the recursion of the variance, with 1,000 steps."""
    schedule, variance = cosine(), 0.6
    cold = guidance.tempered(gaussian(variance).denoiser(schedule), kappa, schedule)
    got = final_variance(lambda d: kernels.ddpm(d, schedule), cold, time_grid(1000))
    assert abs(got * (2 * kappa - 1) / variance - 1) < 0.02


@pytest.mark.equation("eq-low-temperature")
def test_without_noise_a_tempered_score_ends_in_one_point():
    schedule = cosine()
    times = time_grid(1000, schedule)
    for kappa in (1.0, 2.0):
        cold = guidance.tempered(gaussian(0.6).denoiser(schedule), kappa, schedule)
        got = final_variance(lambda d: kernels.ddim(d, schedule), cold, times)
        assert abs(got / 0.6 - 1) < 0.02 if kappa == 1 else got < 1e-6


def within(x: Tensor, blobs: GaussianMixture) -> float:
    """The mean square distance to the mean of the blob that each point belongs to most."""
    owner = torch.stack([blobs.class_log_prob(x, k) for k in range(blobs.classes)], 1).argmax(1)
    return sum(float((x[owner == k] - x[owner == k].mean(0)).square().sum()) for k in range(blobs.classes)) / len(x)


def test_at_equal_sharpness_guidance_shrinks_the_blobs_a_little_and_low_temperature_to_a_quarter():
    """4,000 samples: a share has a standard error below 0.008, the spread one of about 2 %."""
    schedule, start, times = cosine(), normal(4000, 8), time_grid(150)
    pair, parts = MIXTURE.pair(schedule, 1), MIXTURE.given(1)
    blobs = GaussianMixture(parts.weights, parts.means, parts.covs)
    found = {}
    for name, denoiser in {
        "plain": pair.cond,
        "guided": guidance.classifier_free(pair, 2.0),
        "cold": guidance.tempered(pair.cond, 3.0, schedule),
    }.items():
        x = draw(kernels.ddpm(denoiser, schedule), start, times, random(9))
        sure = float(MIXTURE.class_log_prob(x, 1).exp().mean())
        small = float(blobs.class_log_prob(x, 1).exp().mean())
        found[name] = sure, small, float(torch.trace(x.T.cov())), within(x, blobs)
    assert abs(found["guided"][0] - found["cold"][0]) < 0.01 < found["cold"][0] - found["plain"][0]
    assert found["guided"][2] > 0.9 * found["plain"][2] and found["cold"][2] < 0.65 * found["plain"][2]
    assert found["cold"][1] < found["plain"][1] - 0.08 and found["guided"][1] > found["plain"][1] + 0.05
    assert 0.7 < found["guided"][3] / found["plain"][3] < 0.9 and 0.18 < found["cold"][3] / found["plain"][3] < 0.3


# ---- what gamma above one samples


@pytest.mark.nightly
def test_samplers_agree_at_gamma_one_and_at_no_other_and_none_samples_the_target():
    """Centred Gaussians, C = 0.5 and U = 2, by recursion: noiseless is the geometric mean, the target the harmonic."""
    schedule, times = cosine(), time_grid(1000, start=0.99)
    pair = Pair(gaussian(0.5).denoiser(schedule), gaussian(2.0).denoiser(schedule))
    for gamma in (1.0, 3.0):
        guided = guidance.classifier_free(pair, gamma)
        makers = (
            lambda d: kernels.ddim(d, schedule),
            lambda d: kernels.ddpm(d, schedule),
            lambda d: kernels.reverse_sde(d, schedule, 2.0),
        )
        ode, ddpm, noisier = (final_variance(make, guided, times) for make in makers)
        target = 1 / (gamma / 0.5 + (1 - gamma) / 2.0)
        geometric = 0.5**gamma * 2.0 ** (1 - gamma)
        assert abs(ode / geometric - 1) < 0.03
        if gamma == 1:
            assert all(abs(value / target - 1) < 0.02 for value in (ode, ddpm, noisier))
        else:
            assert ode < 0.4 * ddpm < 0.4 * noisier < 0.4 * target


@pytest.mark.nightly
def test_the_more_noise_the_nearer_to_the_target():
    """The same recursion for rho from 1 to 8; steps short enough for the largest pull."""
    schedule, times = cosine(), time_grid(6000, start=0.99)
    guided = guidance.classifier_free(Pair(gaussian(0.5).denoiser(schedule), gaussian(2.0).denoiser(schedule)), 3.0)
    target = 1 / (3 / 0.5 - 2 / 2.0)
    off = [abs(final_variance(lambda d, r=r: kernels.reverse_sde(d, schedule, r), guided, times) / target - 1)
           for r in (1.0, 2.0, 4.0, 8.0)]  # fmt: skip
    assert off == sorted(off, reverse=True) and off[-1] < 0.05


def test_on_the_mixture_three_samplers_give_three_means_at_gamma_three_and_none_is_the_target_s():
    """4,000 samples: the standard error of a mean is 0.02."""
    schedule, start, times = cosine(), normal(4000, 10), time_grid(300, start=0.99)
    parts = MIXTURE.given(1)
    blobs = GaussianMixture(parts.weights, parts.means, parts.covs)
    axis = torch.linspace(-6, 8, 281, dtype=F64)
    points = torch.cartesian_prod(axis, axis)
    for gamma in (1.0, 3.0):
        log = MIXTURE.log_prob(points) + gamma * MIXTURE.class_log_prob(points, 1)
        target = float(log.softmax(0) @ points[:, 0])
        guided = guidance.classifier_free(MIXTURE.pair(schedule, 1), gamma)
        makers = kernels.ddim, kernels.ddpm, lambda d, s: kernels.reverse_sde(d, s, rho=2.0)
        clouds = [draw(make(guided, schedule), start, times, random(11)) for make in makers]
        means = [float(cloud[:, 0].mean()) for cloud in clouds]
        small = [float(blobs.class_log_prob(cloud, 1).exp().mean()) for cloud in clouds]
        if gamma == 1:
            assert max(abs(mean - target) for mean in means) < 0.09
            before = [within(cloud, blobs) for cloud in clouds]
        else:
            assert means[0] > means[1] + 0.2 > means[2] + 0.4 > target + 0.5
            assert min(small) > float(log.softmax(0) @ blobs.class_log_prob(points, 1).exp()) + 0.05
            assert all(within(cloud, blobs) < 0.9 * wide for cloud, wide in zip(clouds, before, strict=True))


def test_the_shift_comes_from_early_guidance_and_not_from_coarse_steps():
    """DDIM with exact fields: gamma = 3 before the middle, after it, all the way; and in half as many steps."""
    schedule, start = cosine(), normal(2000, 45)

    def mean(gamma, steps=200):
        guided = guidance.classifier_free(MIXTURE.pair(schedule, 1), gamma)
        return float(draw(kernels.ddim(guided, schedule), start, time_grid(steps, start=0.99))[:, 0].mean())

    plain, whole = mean(1.0), mean(3.0)
    early, late = mean(lambda t: 3.0 if t > 0.5 else 1.0), mean(lambda t: 1.0 if t > 0.5 else 3.0)
    assert early - plain > 0.9 * (whole - plain) and late - plain < 0.25 * (whole - plain)
    assert abs(mean(3.0, 100) - whole) < 0.03


def test_each_blob_shrinks_under_guidance_and_by_more_than_in_the_target():
    schedule, start, parts = cosine(), normal(3000, 46), MIXTURE.given(1)
    blobs = GaussianMixture(parts.weights, parts.means, parts.covs)

    def spreads(x: Tensor, weights: Tensor) -> Tensor:
        owners = weights[:, None] * torch.stack([blobs.class_log_prob(x, k).exp() for k in (0, 1)], 1)
        owners = owners / owners.sum(0)
        return (owners * torch.cdist(x, owners.T @ x) ** 2).sum(0)

    axis = torch.linspace(-6, 8, 281, dtype=F64)
    grid, even = torch.cartesian_prod(axis, axis), torch.full((3000,), 1 / 3000, dtype=F64)
    target = spreads(grid, (MIXTURE.log_prob(grid) + 3 * MIXTURE.class_log_prob(grid, 1)).softmax(0))
    guided = guidance.classifier_free(MIXTURE.pair(schedule, 1), 3.0)
    got = spreads(draw(kernels.ddim(guided, schedule), start, time_grid(200, start=0.99)), even)
    assert torch.allclose(target, torch.tensor([0.738, 0.574], dtype=F64), atol=2e-3)
    assert torch.allclose(got, torch.tensor([0.47, 0.42], dtype=F64), atol=0.05)


def test_two_cold_blobs_end_in_one_point_between_the_class_s_mean_and_the_larger_blob():
    schedule = cosine()
    cold = guidance.tempered(MIXTURE.given(1).denoiser(schedule), 3.0, schedule)
    times = time_grid(400, schedule)
    points = list(sample(kernels.ddim(cold, schedule), normal(50, 47), times))
    noisy = next(k for k, t in enumerate(times) if t < 0.96)
    middle, end = points[noisy] / schedule.alpha(times[noisy]), points[-1]
    mean, large = MIXTURE.given(1).weights @ MIXTURE.given(1).means, MIXTURE.given(1).means[0]
    assert float((middle - mean).norm(dim=1).max()) < 0.02
    assert float((end - end.mean(0)).norm(dim=1).max()) < 1e-6
    along = (end.mean(0) - mean) @ (large - mean) / (large - mean).square().sum()
    assert 0.7 < float(along) < 0.85 and float((end.mean(0) - mean - along * (large - mean)).norm()) < 0.05


# ---- the exercises' checkers


def test_an_answer_that_overwrites_its_arguments_does_not_pass():
    verdict = exercises.verdict("11.1", lambda cond, uncond, w: cond.mul_(1 + w).sub_(w * uncond))
    assert verdict.kind == "wrong" and "overwrites its argument 1" in verdict.message
    assert exercises.verdict("11.1", lambda cond, uncond, w: cond.clone().mul_(1 + w).sub_(w * uncond)).kind == "done"


def test_a_formula_that_is_right_where_one_variance_is_the_inverse_of_the_other_does_not_pass():
    def answer(c, u, gamma):
        return 1 / (gamma / c + (1 - gamma) / u), c ** (2 * gamma - 1)

    assert exercises.verdict("11.3", answer).kind == "wrong"


@pytest.mark.filterwarnings("error")
def test_a_negative_variance_to_a_broken_power_is_named_without_a_warning():
    def answer(z, clean, lam, lam_next, v):
        r = math.exp(lam_next - lam)  # inverted
        alpha, alpha_next = ((1 + math.exp(-x)) ** -0.5 for x in (lam, lam_next))
        small, large = (1 - r) / (1 + math.exp(lam_next)), (1 - r) / (1 + math.exp(lam))
        mean = r * alpha_next / alpha * z + (1 - r) * alpha_next * clean
        return mean, small ** (1 - v) * large**v

    assert exercises.verdict("11.4", answer).mistake == "r inverted"
