"""What chapter 11 says about samples: beyond gamma 1, cold, from swapped answers.

With exact guesses, on the chapter's own four blobs with other random numbers than the page's, or by recursions of
variances, which draw nothing.
"""

from functools import cache
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from difflesson import guidance, kernels, plane
from difflesson.denoiser import Denoiser, Pair
from difflesson.mixture import GaussianMixture
from difflesson.samplers import draw, sample, time_grid
from difflesson.schedule import cosine

F64 = torch.float64
BLOBS, SCHEDULE = plane.four_blobs(), cosine()
EXACT, CLASS_1 = BLOBS.pair(SCHEDULE, 1), BLOBS.given(1)
PARTS = GaussianMixture(CLASS_1.weights, CLASS_1.means, CLASS_1.covs)  # the large blob and the small one
COUNT = 1500
ERROR = torch.tensor([0.03, 0.012, 0.045, 0.03, 0.03], dtype=F64)  # standard errors of a `Cloud` of so many points
MAKERS = {
    "ddim": lambda denoiser: kernels.ddim(denoiser, SCHEDULE),
    "ddpm": lambda denoiser: kernels.ddpm(denoiser, SCHEDULE),
    "noisier": lambda denoiser: kernels.reverse_sde(denoiser, SCHEDULE, rho=2.0),
}


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 2, generator=random(seed), dtype=F64)


class Cloud(NamedTuple):
    """The five numbers of the page: mean of x_1, share of the small blob, spread, spread in each blob."""

    mean: float
    small: float
    spread: float
    in_large: float
    in_small: float


def described(x: Tensor, weights: Tensor | None = None) -> Cloud:
    """Of points (N, 2) with weights (N,) that add up to 1, or all alike."""
    weights = torch.full((len(x),), 1 / len(x), dtype=F64) if weights is None else weights
    owners = weights[:, None] * torch.stack([PARTS.class_log_prob(x, k).exp() for k in (0, 1)], 1)  # (N, 2)
    small, owners = float(owners[:, 1].sum()), owners / owners.sum(0)
    inside = (owners * torch.cdist(x, owners.T @ x) ** 2).sum(0)
    spread = weights @ (x - weights @ x).square().sum(1)
    return Cloud(float(weights @ x[:, 0]), small, float(spread), *inside.tolist())


@cache
def target(gamma: float) -> Cloud:
    """p(x) p(y | x)^gamma, on a grid twice as fine as the page's."""
    axis = torch.linspace(-6, 8, 281, dtype=F64)
    grid = torch.cartesian_prod(axis, axis)
    return described(grid, (BLOBS.log_prob(grid) + gamma * BLOBS.class_log_prob(grid, 1)).softmax(0))


@cache
def points(maker: str, gamma: float) -> Tensor:
    guided, times = guidance.classifier_free(EXACT, gamma), time_grid(120, start=0.99)
    return draw(MAKERS[maker](guided), normal(COUNT, 10), times, random(11))


def cloud(maker: str, gamma: float) -> Cloud:
    return described(points(maker, gamma))


def sureness(x: Tensor) -> float:
    return float(BLOBS.class_log_prob(x, 1).exp().mean())


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


def edge(mixture: GaussianMixture) -> float:
    """The log-density around 99 % of the mass."""
    return float(mixture.log_prob(mixture.sample(20_000, random(40))[0]).quantile(0.01))


# ---- what gamma above one samples


def test_at_gamma_1_everybody_agrees_to_a_few_standard_errors():
    for maker in MAKERS:
        off = torch.tensor(cloud(maker, 1.0), dtype=F64) - torch.tensor(target(1.0), dtype=F64)
        assert bool((off.abs() < 4.5 * ERROR).all()), (maker, off)


def test_at_gamma_3_the_target_hardly_moves_and_none_of_the_three_finds_it():
    """All go too far to the right, give the small blob too much, and differ by many standard errors."""
    assert abs(target(1.0).mean - 1.15) < 0.01 and abs(target(3.0).mean - 1.27) < 0.01
    assert sureness(CLASS_1.sample(4000, random(48))[0]) > 0.9
    ddim, ddpm, noisier = (cloud(maker, 3.0) for maker in MAKERS)
    apart = 5 * float(ERROR[0])
    assert ddim.mean - apart > ddpm.mean > ddpm.mean - apart > noisier.mean > noisier.mean - apart > target(3.0).mean
    assert min(ddim.small, ddpm.small, noisier.small) > target(3.0).small + 0.05
    assert abs(noisier.mean - 1.54) < 0.06 and abs(ddim.mean - 2.21) < 0.06


def test_each_blob_shrinks_the_large_one_from_0_90_to_0_74_in_the_target_and_to_0_47_under_ddim():
    assert [round(target(gamma).in_large, 2) for gamma in (1.0, 3.0)] == [0.90, 0.74]
    assert [round(target(gamma).in_small, 2) for gamma in (1.0, 3.0)] == [0.60, 0.57]
    assert abs(cloud("ddim", 3.0).in_large - 0.47) < 0.04 and abs(cloud("ddim", 3.0).in_small - 0.42) < 0.04
    for maker in MAKERS:
        before, after = cloud(maker, 1.0), cloud(maker, 3.0)
        assert after.in_large < 0.9 * before.in_large and after.in_small < before.in_small


def test_the_shift_comes_from_early_guidance_and_not_from_coarse_steps():
    """DDIM with exact fields: gamma = 3 before the middle, after it, all the way; and in half as many steps."""

    def mean(gamma, steps=60):
        guided = guidance.classifier_free(EXACT, gamma)
        times = time_grid(steps, start=0.99)
        return float(draw(kernels.ddim(guided, SCHEDULE), normal(500, 45), times)[:, 0].mean())

    plain, whole = mean(1.0), mean(3.0)
    early, late = mean(lambda t: 3.0 if t > 0.5 else 1.0), mean(lambda t: 1.0 if t > 0.5 else 3.0)
    assert early - plain > 0.9 * (whole - plain) and late - plain < 0.25 * (whole - plain)
    assert abs(mean(3.0, 30) - whole) < 0.05


def test_at_3_and_6_exact_samples_gather_at_the_far_side_of_their_own_class_and_clump():
    """Beyond the class's mean as seen from the other class; the columns of the picture differ, and stay in class 1."""
    away = CLASS_1.weights @ CLASS_1.means - BLOBS.given(0).weights @ BLOBS.given(0).means
    beyond, widths = [], []
    for gamma in (1.0, 3.0, 6.0):
        guided = guidance.classifier_free(EXACT, gamma)
        x = points("ddim", gamma)[:800] if gamma < 6 else draw(
            kernels.ddim(guided, SCHEDULE), normal(COUNT, 10)[:800], time_grid(100, start=0.99)
        )  # fmt: skip
        beyond.append(float(((x - CLASS_1.weights @ CLASS_1.means) @ away > 0).double().mean()))
        widths.append(described(x).in_large)
        assert gamma == 1 or sureness(x) > 0.99
    assert beyond[0] < 0.6 and beyond[1] > 0.75 and beyond[2] > 0.85
    assert widths[1] < 0.6 * widths[0] and widths[2] < 0.9 * widths[1]


def test_guidance_leaves_class_zero_and_part_of_it_leaves_the_data_of_class_one_too():
    """There the guided answer itself is larger, so an error may be larger without being worse."""
    guided, times = guidance.classifier_free(EXACT, 6.0), time_grid(50)
    path, foreign = list(sample(kernels.ddim(guided, SCHEDULE), normal(1500, 44), times)), []
    for k in (10, 25, 40):
        noisy = BLOBS.noised(SCHEDULE.alpha(times[k]), SCHEDULE.sigma(times[k]))
        foreign.append(float(noisy.class_log_prob(path[k], 0).exp().mean()))
        outside = noisy.given(1).log_prob(path[k]) < edge(noisy.given(1))
        assert 0.05 < float(outside.double().mean()) < 0.25
        size = guided(path[k], times[k]).eps.norm(dim=1)
        assert float(size[outside].mean()) > 1.3 * float(size[~outside].mean())
    assert foreign[0] > 0.1 > 10 * foreign[1] > 10 * foreign[2]


def test_the_geometric_mean_is_below_the_harmonic_one_and_both_below_the_class_s_variance():
    """Of C < U, weights gamma and 1 - gamma, for gamma above 1; in between 0 and 1 they change places."""
    for share in (0.05, 0.4, 0.9):
        for gamma in (1.2, 2.0, 3.0, 7.5):
            c, u = 1.7 * share, 1.7
            assert c**gamma * u ** (1 - gamma) < 1 / (gamma / c + (1 - gamma) / u) < c
        assert c**0.5 * u**0.5 > 1 / (0.5 / c + 0.5 / u) > c


def test_on_two_other_mixtures_too_the_samplers_differ_and_more_noise_is_nearer():
    """Total variation from p(x) p(y | x)^3 on squares of side 0.6: three blobs, and classes that face each other."""
    three = GaussianMixture(
        [0.3, 0.2, 0.5], torch.tensor([[1, 0], [-1.5, 1], [0, -1]], dtype=F64),
        [[[0.3, 0], [0, 0.2]], [[0.2, 0.05], [0.05, 0.4]], [[0.3, 0], [0, 0.3]]], labels=[1, 1, 0],
    )  # fmt: skip
    corners = torch.tensor([[1, 1], [-1, -1], [1, -1], [-1, 1]], dtype=F64)
    facing = GaussianMixture([0.25] * 4, corners, [[[0.3, 0], [0, 0.3]]] * 4, labels=[1, 1, 0, 0])
    axis = torch.arange(-6, 6, 0.1, dtype=F64) + 0.05
    grid = torch.cartesian_prod(axis, axis)

    def shares(x, weights):
        place = ((x + 6) / 0.6).floor().long().clamp(0, 19)
        return torch.zeros(400, dtype=F64).index_add(0, 20 * place[:, 0] + place[:, 1], weights)

    for data in (three, facing):
        wanted = shares(grid, (data.log_prob(grid) + 3 * data.class_log_prob(grid, 1)).softmax(0))
        guided, off = guidance.classifier_free(data.pair(SCHEDULE, 1), 3.0), []
        for make in MAKERS.values():
            x = draw(make(guided), normal(1000, 80), time_grid(80, start=0.99), random(81))
            off.append(float((shares(x, torch.full((1000,), 1e-3, dtype=F64)) - wanted).abs().sum() / 2))
        assert off[0] > 0.33 and off[0] > 1.4 * off[1] and off[1] > 1.15 * off[2], off


@pytest.mark.nightly
def test_samplers_agree_at_gamma_one_and_at_no_other_and_none_samples_the_target():
    """Centred Gaussians, C = 0.5 and U = 2, by recursion: noiseless is the geometric mean, the target the harmonic."""
    pair, times = Pair(gaussian(0.5).denoiser(SCHEDULE), gaussian(2.0).denoiser(SCHEDULE)), time_grid(1000, start=0.99)
    for gamma in (1.0, 3.0):
        guided = guidance.classifier_free(pair, gamma)
        ode, ddpm, noisier = (final_variance(make, guided, times) for make in MAKERS.values())
        harmonic = 1 / (gamma / 0.5 + (1 - gamma) / 2.0)
        geometric = 0.5**gamma * 2.0 ** (1 - gamma)
        assert abs(ode / geometric - 1) < 0.03
        if gamma == 1:
            assert all(abs(value / harmonic - 1) < 0.02 for value in (ode, ddpm, noisier))
        else:
            assert ode < 0.4 * ddpm < 0.4 * noisier < 0.4 * harmonic


@pytest.mark.nightly
def test_the_more_noise_the_nearer_to_the_target():
    """The same recursion for rho from 1 to 8; steps short enough for the largest pull."""
    times = time_grid(6000, start=0.99)
    guided = guidance.classifier_free(Pair(gaussian(0.5).denoiser(SCHEDULE), gaussian(2.0).denoiser(SCHEDULE)), 3.0)
    harmonic = 1 / (3 / 0.5 - 2 / 2.0)
    off = [abs(final_variance(lambda d, r=r: kernels.reverse_sde(d, SCHEDULE, r), guided, times) / harmonic - 1)
           for r in (1.0, 2.0, 4.0, 8.0)]  # fmt: skip
    assert off == sorted(off, reverse=True) and off[-1] < 0.05


def test_swapped_branches_give_samples_of_the_other_class_far_beyond_all_data():
    away = guidance.classifier_free(EXACT, -2.0)
    x = draw(kernels.ddim(away, SCHEDULE), normal(500, 41), time_grid(50))
    assert sureness(x) < 0.1
    for region in (BLOBS, BLOBS.given(0)):
        assert float((region.log_prob(x) < edge(region)).double().mean()) > 0.85
    assert float(x[:, 0].median()) < -4.5


# ---- few steps


@pytest.mark.equation("eq-variance-interpolation")
def test_with_few_steps_a_larger_v_keeps_more_of_the_spread_and_with_many_it_does_not_matter():
    data, found = gaussian(0.7), {}
    for steps in (5, 100):
        spreads = [
            final_variance(lambda d, v=v: kernels.ddpm(d, SCHEDULE, v), data.denoiser(SCHEDULE), time_grid(steps)) / 0.7
            for v in (0.0, 0.3, 1.0)
        ]
        assert spreads == sorted(spreads)
        found[steps] = spreads
    assert found[5][0] < 0.75 and found[5][2] - found[5][0] > 0.2
    assert found[100][2] - found[100][0] < 0.06 and abs(found[100][1] - 1) < 0.05


def test_with_five_steps_the_small_variance_loses_more_than_a_third_and_the_large_one_an_eighth():
    """1,500 samples of class 1, which know their spread to about 2 %; the other seeds than the page's."""
    spread = {}
    for v in (0.0, 0.3, 1.0):
        x = draw(kernels.ddpm(EXACT.cond, SCHEDULE, variance=v), normal(1500, 60), time_grid(5), random(61))
        spread[v] = described(x).spread / target(1.0).spread
    assert spread[0.0] < 0.66 and abs(spread[1.0] - 7 / 8) < 0.05
    assert spread[0.0] < spread[0.3] < spread[1.0]
    assert abs(target(1.0).spread / 2 - 1) < 0.2  # of a standard Gaussian in the plane it is 2


# ---- low temperature


@pytest.mark.equation("eq-low-temperature")
@pytest.mark.parametrize("kappa", [1.0, 1.5, 3.0])
def test_a_tempered_score_gives_ddpm_a_variance_of_c_over_two_kappa_minus_one(kappa):
    """And not the C / kappa of p^kappa. No random numbers: the recursion of the variance, with 150 steps."""
    variance = 0.6
    cold = guidance.tempered(gaussian(variance).denoiser(SCHEDULE), kappa, SCHEDULE)
    got = final_variance(MAKERS["ddpm"], cold, time_grid(150))
    assert abs(got * (2 * kappa - 1) / variance - 1) < 0.1


@pytest.mark.equation("eq-low-temperature")
def test_without_noise_a_tempered_score_ends_in_one_point():
    times = time_grid(200, SCHEDULE)
    for kappa in (1.0, 2.0):
        cold = guidance.tempered(gaussian(0.6).denoiser(SCHEDULE), kappa, SCHEDULE)
        got = final_variance(MAKERS["ddim"], cold, times)
        assert abs(got / 0.6 - 1) < 0.1 if kappa == 1 else got < 1e-6


def test_the_cold_variance_solves_its_equation_and_other_solutions_die_out_at_small_q():
    """V = (C + q) / (2 kappa - 1) + a (C + q)^(2 kappa), from V = Q at q = Q; and without noise V ~ (C + q)^kappa."""
    c, big, kappa, h = 0.6, 1e5, 3.0, 1e-4
    a = (big - (c + big) / (2 * kappa - 1)) / (c + big) ** (2 * kappa)

    def noisy(q):
        return (c + q) / (2 * kappa - 1) + a * (c + q) ** (2 * kappa)

    def still(q):
        return big * ((c + q) / (c + big)) ** kappa

    for q in (0.5, 2.0):
        slope = (noisy(q + h) - noisy(q - h)) / (2 * h)
        assert abs(slope - (2 * kappa * noisy(q) / (c + q) - 1)) < 1e-6
        pulled = still(q) * (1 - kappa * h / (c + q) / 2) ** 2  # half as much in a step of h, squared for a variance
        assert abs(pulled / still(q - h) - 1) < 1e-6
    assert abs(noisy(big) / big - 1) < 1e-9 and abs(noisy(0) / (c / (2 * kappa - 1)) - 1) < 1e-9
    assert abs(still(0) / (c**kappa * big ** (1 - kappa)) - 1) < 1e-4


@cache
def cold_points() -> Tensor:
    cold = guidance.tempered(EXACT.cond, 3.0, SCHEDULE)
    return draw(kernels.ddpm(cold, SCHEDULE), normal(COUNT, 10), time_grid(120), random(11))


def test_at_the_same_sharpness_guidance_moves_the_class_and_low_temperature_shrinks_each_blob():
    """Same mean probability of class 1; ordered is p(x | y)^3 on a grid."""
    plain, guided, cold = cloud("ddpm", 1.0), cloud("ddpm", 2.0), described(cold_points())
    axis = torch.linspace(-6, 8, 281, dtype=F64)
    grid = torch.cartesian_prod(axis, axis)
    ordered = described(grid, (3 * CLASS_1.log_prob(grid)).softmax(0))
    sure = [sureness(x) for x in (points("ddpm", 1.0), points("ddpm", 2.0), cold_points())]
    assert abs(sure[1] - sure[2]) < 0.01 < sure[2] - sure[0] - 0.03
    assert guided.mean > plain.mean + 0.3 > cold.mean + 0.3 and guided.small > plain.small + 0.08
    assert abs(cold.in_large / plain.in_large - 0.2) < 0.05 and abs(cold.in_small / plain.in_small - 0.2) < 0.05
    assert cold.in_large < 0.75 * ordered.in_large and cold.in_small < 0.75 * ordered.in_small
    assert abs(cold.small - 0.26) < 0.03 and abs(ordered.small - 0.34) < 0.01
