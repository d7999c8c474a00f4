"""What chapter 01 claims about noise and the average under it, each on other data or by another way than its cells."""

import math

import pytest
import torch
from torch import Tensor

from difflesson import curves, kernels, plane
from difflesson.denoiser import Prediction, network_denoiser
from difflesson.digits import checkpoints, sampling
from difflesson.mixture import GaussianMixture
from difflesson.samplers import draw, time_grid
from difflesson.schedule import cosine, from_betas, vp_linear
from tests.oracles.chapter_cells import names_of

F64 = torch.float64
ARCS, BLOBS, SCHEDULE = curves.two_arcs(), plane.four_blobs(), cosine()
SPACE = GaussianMixture(
    [0.5, 0.2, 0.3],
    torch.tensor([[0.0, 1.0, -1.0], [2.0, 0.5, 0.0], [-1.0, -1.0, 1.5]], dtype=F64),
    torch.diag_embed(torch.tensor([[0.3, 0.5, 0.2], [0.1, 0.4, 0.6], [0.7, 0.2, 0.3]], dtype=F64)),
)


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(count: int, seed: int = 0, dim: int = 2) -> Tensor:
    return torch.randn(count, dim, generator=random(seed), dtype=F64)


def at(data: GaussianMixture, t: float) -> tuple[Tensor, Tensor, GaussianMixture]:
    alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
    return alpha, sigma, data.noised(alpha, sigma)


def pairs(data: GaussianMixture, t: float, count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Clean points, noisy ones, and the average under these."""
    x_0, _ = data.sample(count, random(seed))
    x_t = SCHEDULE.add_noise(x_0, normal(count, seed + 1, data.dim), t)
    return x_0, x_t, data.denoiser(SCHEDULE)(x_t, torch.tensor(t, dtype=F64)).x0


def uphill(data: GaussianMixture, x: Tensor, steps: int = 400) -> Tensor:
    for _ in range(steps):
        x = x + 0.4 * 0.03**2 * data.score(x)
    return x


# ---- why noise


def test_uphill_hardly_knows_the_masses_and_through_noise_they_come_out():
    starts = normal(1000, 5)
    shares = []
    for mass in (0.9, 0.15):
        data = curves.two_arcs(mass, parts=90)
        noised = draw(kernels.ddim(data.denoiser(SCHEDULE), SCHEDULE), starts, time_grid(60))
        direct, through = (float(data.class_log_prob(x, 1).exp().mean()) for x in (uphill(data, starts, 200), noised))
        assert abs(through - (1 - mass)) < 4 * math.sqrt(mass * (1 - mass) / 1000)
        shares.append(direct)
    assert max(shares) - min(shares) < 0.03 and 0.3 < min(shares) < 0.5
    long_pieces = [curves.two_arcs(mass) for mass in (0.9, 0.15)]
    shares = [float(data.class_log_prob(uphill(data, starts, 200), 1).exp().mean()) for data in long_pieces]
    assert max(shares) - min(shares) < 0.03 and 0.55 < min(shares) < max(shares) < 0.65


def test_uphill_the_same_arcs_of_other_gaussians_get_other_shares_and_other_masses_the_same():
    starts, shares = normal(300, 52), {}
    for parts in (24, 120):
        for short in (0.01, 0.99):
            data = curves.two_arcs(1 - short, parts=parts)
            shares[parts, short] = float(data.class_log_prob(uphill(data, starts, 100), 1).exp().mean())
    assert all(abs(shares[parts, 0.01] - shares[parts, 0.99]) < 0.03 for parts in (24, 120))
    assert shares[24, 0.01] > shares[120, 0.99] + 0.15


def test_in_one_step_all_walks_end_on_one_spot_and_in_many_the_masses_come_out():
    starts = normal(1500, 50)
    spread, shares = [], []
    for steps in (1, 60):
        ends = draw(kernels.ddim(ARCS.denoiser(SCHEDULE), SCHEDULE), starts, time_grid(steps))
        spread.append(float(ends.std(0).max()))
        shares.append(float(ARCS.class_log_prob(ends, 1).exp().mean()))
    assert spread[0] < 0.01 and spread[1] > 0.8
    assert abs(shares[0] - 0.2) > 0.15 and abs(shares[1] - 0.2) < 0.04


def test_to_follow_the_slope_all_the_way_at_each_level_brings_all_walks_to_one_spot():
    x = normal(300, 51)
    for t in torch.linspace(0.99, 0.02, 50).tolist():
        alpha, sigma, noisy = at(ARCS, t)
        for _ in range(20):
            x = x + 0.5 * (sigma**2 + 0.03**2 * alpha**2) * noisy.score(x)
    assert float(x.std(0).max()) < 0.01


def test_between_thin_arcs_the_slope_is_the_same_whatever_their_masses():
    starts = normal(500, 6)
    one, two = (curves.two_arcs(mass).score(starts) for mass in (0.9, 0.2))
    same = (one - two).norm(dim=1) < 0.01 * one.norm(dim=1)
    assert float(same.double().mean()) > 0.95
    one, two = (at(curves.two_arcs(mass), 0.6)[2].score(starts) for mass in (0.9, 0.2))
    assert float(((one - two).norm(dim=1) < 0.01 * one.norm(dim=1)).double().mean()) < 0.05


def test_clean_slopes_are_enormous_and_starts_have_no_data_nearby_but_noisy_data_are_everywhere():
    starts, data = normal(2000, 7), ARCS.sample(1000, random(8))[0]
    _, _, noisy = at(ARCS, 0.45)
    assert float(ARCS.score(starts).norm(dim=1).median()) > 100 * float(noisy.score(starts).norm(dim=1).median())
    near = [float((torch.cdist(starts, x).min(1).values < 0.2).double().mean())
            for x in (data, noisy.sample(1000, random(9))[0], at(ARCS, 0.9)[2].sample(1000, random(9))[0])]  # fmt: skip
    assert near[0] < 0.3 and min(near[1:]) > 0.8


def test_the_arcs_are_thirty_six_gaussians_with_a_fifth_on_the_short_one():
    assert len(ARCS.weights) == 36 and abs(float(ARCS.class_weights()[1]) - 0.2) < 1e-12
    for data, count, low, high in ((ARCS, 36, 3.5, 5), (curves.two_arcs(parts=120), 180, 1, 1.4)):
        widths = torch.linalg.eigvalsh(data.covs).sqrt()
        ratio = widths[:, 1] / widths[:, 0]  # of a round one: 1
        assert len(ratio) == count and low < float(ratio.min()) and float(ratio.max()) < high


def test_with_much_noise_the_average_knows_the_masses_with_little_the_curve():
    x = normal(200, 10)
    late = ARCS.denoiser(SCHEDULE)(x, torch.tensor(0.999, dtype=F64)).x0
    assert float((late - ARCS.weights @ ARCS.means).norm(dim=1).max()) < 0.05
    _, x_t, early = pairs(ARCS, 0.03, 500, 11)
    radii = torch.stack([(early + 0.1).norm(dim=1) - 1.7, (early - torch.tensor([0.6, -0.6])).norm(dim=1) - 0.8])
    assert float(radii.abs().min(0).values.max()) < 0.12


# ---- a chain is one step


@pytest.mark.equation("eq-composed-noise")
def test_a_chain_of_steps_is_one_step_by_the_coefficient_of_every_noise():
    """The page's function against a vector that carries the coefficients of the clean point and of each noise."""
    composed = names_of("01", "eq-composed-noise")["composed"]
    a = 0.5 + torch.rand(12, generator=random(1), dtype=F64) / 2
    coefficients = torch.zeros(13, dtype=F64)
    coefficients[0] = 1
    for k, factor in enumerate(a.tolist()):
        coefficients *= factor
        coefficients[k + 1] = math.sqrt(1 - factor**2)
    alpha, variance = composed(a)
    assert abs(float(alpha - coefficients[0])) < 1e-14
    assert abs(float(variance - coefficients[1:].square().sum())) < 1e-14
    assert abs(float(variance) - (1 - float(a.prod()) ** 2)) < 1e-14


def test_ddpms_chain_ends_nearly_at_pure_noise_and_one_draw_has_the_law_of_a_thousand_steps():
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=F64)
    table = from_betas(betas)
    assert round(float(table.alpha(1.0)), 3) == 0.006 and 0 < 1 - float(table.sigma(1.0)) ** 2 < 1e-4
    start, dice = torch.full((4000, 1), 3.0, dtype=F64), random(2)
    x = start
    for beta in betas[:300]:
        x = (1 - beta).sqrt() * x + beta.sqrt() * torch.randn(x.shape, generator=dice, dtype=F64)
    alpha, sigma = float(table.alpha(0.3)), float(table.sigma(0.3))
    assert abs(float(x.mean()) - 3 * alpha) < 4 * sigma / 4000**0.5
    assert abs(float(x.var()) / sigma**2 - 1) < 4 * (2 / 4000) ** 0.5


def test_a_beta_taken_for_a_deviation_fades_the_data_and_added_deviations_are_fifteen_times_too_wide():
    faded, wide = 0.0, 0.0
    for k in range(1000):
        beta = 1e-4 + k * (0.02 - 1e-4) / 999
        faded, wide = (1 - beta) * faded + beta**2, (1 - beta) ** 0.5 * wide + beta**0.5
    assert round(faded, 3) == 0.019 and round(wide) == 15
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=F64)
    assert float(1 - betas.sum()) < 0 < float((1 - betas).prod())
    few = betas[:30]  # little is lost: the difference is of second order
    assert abs(float((1 - few).prod() - 1 + few.sum())) < float(few.sum()) ** 2


# ---- a mixture stays a mixture


@pytest.mark.equation("eq-mixture", "eq-noised-mixture")
def test_noised_points_have_the_moments_of_the_noised_mixture_and_keep_their_components():
    alpha, sigma, noisy = at(BLOBS, 0.4)
    count = 40_000
    x_0, label = BLOBS.sample(count, random(3))
    x = alpha * x_0 + sigma * normal(count, 4)
    mean = BLOBS.weights @ (alpha * BLOBS.means)
    inner = (BLOBS.weights[:, None, None] * (alpha**2 * BLOBS.covs + sigma**2 * torch.eye(2))).sum(0)
    spread = (BLOBS.weights[:, None, None] * torch.einsum("ki,kj->kij", *[alpha * BLOBS.means - mean] * 2)).sum(0)
    assert float((x.mean(0) - mean).abs().max()) < 5 * 1.5 / count**0.5
    assert float((x.T.cov() - inner - spread).abs().max()) < 0.05
    assert torch.equal(noisy.weights, BLOBS.weights) and noisy.labels == BLOBS.labels
    assert abs(float((label == 1).double().mean()) - 0.4) < 0.02


@pytest.mark.equation("eq-mixture-score")
def test_plain_weights_and_other_noise_levels_give_wrong_scores():
    alpha, sigma, noisy = at(ARCS, 0.45)
    x = noisy.sample(2000, random(12))[0]
    right = noisy.score(x)
    slopes = torch.linalg.solve(noisy.covs, (noisy.means - x[:, None])[..., None])[..., 0]
    shares = torch.stack([GaussianMixture(noisy.weights, noisy.means, noisy.covs).class_log_prob(x, k).exp()
                          for k in range(36)], 1)  # fmt: skip
    assert float(((shares[:, :, None] * slopes).sum(1) - right).abs().max()) < 1e-9

    def off(score: Tensor) -> float:
        return float((score - right).norm() / right.norm())

    assert off((noisy.weights[:, None] * slopes).sum(1)) > 1
    assert 0.4 < off(at(ARCS, 0.35)[2].score(x)) < 0.65 and off(ARCS.score(x)) > 100
    assert 0.2 < off(at(ARCS, 0.55)[2].score(x)) < 0.35  # later costs less


# ---- the best guess


@pytest.mark.equation("eq-guess-error")
@pytest.mark.parametrize("data", [BLOBS, SPACE], ids=["four blobs", "three in space"])
def test_every_guess_costs_its_distance_from_the_average(data):
    """By quadrature in the cloud: the truth and the guess given one noisy point, and the page's function on draws."""
    x_0, x_t, best = pairs(data, 0.5, 60_000, 13)
    guesses = {"shrunk": 0.7 * best, "noisy": x_t, "constant": torch.zeros_like(x_t), "best": best}
    found = names_of("01", "eq-guess-error")["errors_of"](guesses, x_0, best)
    for name, (left, right) in found.items():
        # the sampling error is that of the mixed term alone
        mixed = 2 * ((x_0 - best) * (guesses[name] - best)).sum(1)
        assert abs(float(left - right + mixed.mean())) < 1e-10
        assert abs(float(mixed.mean())) < 4.5 * float(mixed.std()) / 60_000**0.5 + 1e-12
        assert float(left) >= float(found["best"][0])


@pytest.mark.parametrize("data", [ARCS, BLOBS, SPACE], ids=["arcs", "four blobs", "three in space"])
@pytest.mark.parametrize("t", [0.25, 0.65])
def test_a_draw_has_exactly_twice_the_error_of_the_average(data, t):
    """Given x_t the draw's mean square distance from a truth of the same law is twice the cloud's variance."""
    _, x_t, best = pairs(data, t, 300, 14)
    cloud = data.reverse(x_t, SCHEDULE, t, 0.0)
    variance = cloud.cov.diagonal(dim1=1, dim2=2).sum(1)
    one, two = (cloud.sample(random(seed)) for seed in (15, 16))
    ratios = torch.stack([(one - two).square().sum(1) / variance, 2 * (one - best).square().sum(1) / variance])
    for ratio in ratios:
        assert abs(float(ratio.mean()) - 2) < 4.5 * float(ratio.std()) / 300**0.5


def test_snapping_the_average_to_the_data_costs_too():
    data = ARCS.sample(1000, random(17))[0]
    for t, more, less in ((0.2, 0.98, 1.1), (0.6, 1.1, 1.8), (0.8, 1.2, 1.9)):
        x_0, _, best = pairs(ARCS, t, 10_000, 18)
        snapped = data[torch.cdist(best, data).argmin(1)]
        assert more < float((x_0 - snapped).square().sum(1).mean() / (x_0 - best).square().sum(1).mean()) < less


def test_snapping_to_few_real_points_can_cost_more_than_a_draw():
    x_0, x_t, best = pairs(ARCS, 0.2, 5000, 53)
    drawn = ARCS.reverse(x_t, SCHEDULE, 0.2, 0.0).sample(random(55))
    price = float((x_0 - drawn).square().sum(1).mean())
    costs = []
    for count in (1000, 10):
        data = ARCS.sample(count, random(56))[0]
        costs.append(float((x_0 - data[torch.cdist(best, data).argmin(1)]).square().sum(1).mean()))
    assert costs[0] < price < costs[1]


def test_the_average_lies_where_no_data_are_and_the_cloud_shrinks_as_noise_falls():
    typical = float(ARCS.log_prob(ARCS.sample(2000, random(19))[0]).quantile(0.01))
    empty, widths = [], []
    for t in (0.8, 0.6, 0.4, 0.2, 0.05):
        _, x_t, best = pairs(ARCS, t, 2000, 20)
        empty.append(float((ARCS.log_prob(best) < typical - 5).double().mean()))
        widths.append(float(ARCS.reverse(x_t, SCHEDULE, t, 0.0).cov.diagonal(dim1=1, dim2=2).sum(1).mean()))
    assert min(empty[:2]) > 0.9 and empty[-1] < 0.01 and empty == sorted(empty, reverse=True)
    assert widths == sorted(widths, reverse=True) and widths[-1] < widths[0] / 100


def test_a_networks_guess_blurs_with_the_noise():
    network, _ = checkpoints.load("denoiser")
    digits = sampling.generate(network, torch.tensor([0, 3, 5, 7]), 1.0, seed=6, sampler="ddim", steps=12)
    pixels = torch.randn(digits.shape, generator=random(21))
    edges = []
    for t in (0.2, 0.5, 0.7, 0.85):
        guess = network_denoiser(network, SCHEDULE)(SCHEDULE.add_noise(digits, pixels, t).float(), torch.tensor(t)).x0
        edges.append(float(guess.diff(dim=3).square().mean()))
    assert edges == sorted(edges, reverse=True) and edges[-1] < edges[0] / 2


def test_for_the_mean_distance_the_best_guess_is_not_the_average():
    x_0 = torch.tensor([-1.0, 1.0, 1.0], dtype=F64)  # a cloud of three points
    distance = [float((x_0 - g).abs().mean()) for g in (float(x_0.mean()), 1.0)]
    assert distance[1] < distance[0]


# ---- four names


@pytest.mark.equation("eq-tweedie")
def test_tweedie_holds_for_three_points_and_for_a_triangle():
    """Neither is a mixture with a width: points with weights, and a density on a grid; the slope by differences."""
    alpha, sigma, h = 0.7, 0.5, 1e-5
    axis = torch.linspace(0, 1, 401, dtype=F64)
    grid = torch.cartesian_prod(axis, axis)
    triangle = grid[grid.sum(1) < 1]
    for clean, weights in (
        (torch.tensor([[0.0, 1.0], [-1.0, 0.3], [2.0, -0.5]], dtype=F64), torch.tensor([0.5, 0.3, 0.2], dtype=F64)),
        (triangle, torch.full((len(triangle),), 1 / len(triangle), dtype=F64)),
    ):

        def log_density(x, clean=clean, weights=weights):
            return (weights.log() - (x[:, None] - alpha * clean).square().sum(2) / 2 / sigma**2).logsumexp(1)

        x = normal(6, 22)
        steps = h * torch.eye(2, dtype=F64)
        slope = torch.stack([(log_density(x + s) - log_density(x - s)) / (2 * h) for s in steps], 1)
        shares = (weights.log() - (x[:, None] - alpha * clean).square().sum(2) / 2 / sigma**2).softmax(1)
        assert float(((x + sigma**2 * slope) / alpha - shares @ clean).abs().max()) < 1e-8
        made = Prediction.from_score(x, slope, torch.tensor(alpha), torch.tensor(sigma))
        assert float((made.x0 - shares @ clean).abs().max()) < 1e-6


def test_with_noise_that_is_not_gaussian_tweedie_fails():
    """Even noise on [-1, 1] of the same variance: the average under x is far from the formula."""
    clean = torch.tensor([-0.6, 0.9], dtype=F64)
    weights, width = torch.tensor([0.4, 0.6], dtype=F64), 3**0.5 * 0.6
    x = torch.tensor(0.2, dtype=F64)
    inside = weights * ((x - clean).abs() < width)
    assert abs(float((inside / inside.sum()) @ clean) - 0.2) > 0.05  # its density is flat there: no slope, no shift
    bell = weights * torch.exp(-(x - clean).square() / 2 / 0.6**2)
    assert abs(float(bell[0] / bell.sum() - inside[0] / inside.sum())) > 0.03  # the cloud by the clock's formula
    density = inside.sum() / (2 * width), bell.sum() / 0.6 / math.sqrt(2 * math.pi)  # and the noised mixture's
    assert abs(float(density[0] / density[1]) - 1) > 0.05


def test_score_and_noise_follow_from_the_clean_guess_and_v_needs_squares_that_sum_to_one():
    """Points with a closed form, noised without shrinking and with: the slope of their density by autograd."""
    for alpha, sigma, works in ((0.8, 0.6, True), (1.0, 0.7, False)):
        leaf = normal(20, 40).requires_grad_()
        BLOBS.noised(alpha, sigma).log_prob(leaf).sum().backward()
        x, score = leaf.detach(), leaf.grad
        cloud = torch.cartesian_prod(*[torch.linspace(-6, 6, 401, dtype=F64)] * 2)
        log_shares = BLOBS.log_prob(cloud) - torch.cdist(x, alpha * cloud).square() / 2 / sigma**2
        x_0 = log_shares.softmax(1) @ cloud
        eps = (x - alpha * x_0) / sigma
        for made in ((alpha * x_0 - x) / sigma**2, -eps / sigma):
            assert float((made - score).abs().max()) < 1e-6
        v = alpha * eps - sigma * x_0
        off = max(float((alpha * x - sigma * v - x_0).abs().max()), float((sigma * x + alpha * v - eps).abs().max()))
        assert (off < 1e-12) == works


@pytest.mark.parametrize("half", ["x0", "eps"])
def test_each_division_costs_digits_and_v_never_divides(half):
    for log_snr, loser in ((-18.0, "eps"), (18.0, "x0")):
        t = SCHEDULE.time(log_snr)
        alpha, sigma, noisy = SCHEDULE.alpha(t), SCHEDULE.sigma(t), None
        noisy = ARCS.noised(alpha, sigma)
        x = noisy.sample(500, random(23))[0]
        best = ARCS.denoiser(SCHEDULE)(x, t)
        names = {"x0": best.x0, "eps": best.eps, "v": alpha * best.eps - sigma * best.x0}
        worst = {}
        for name, value in names.items():
            got = getattr(Prediction, f"from_{name}")(x.float(), value.float(), alpha.float(), sigma.float())
            worst[name] = float((getattr(got, half).double() - getattr(best, half)).abs().max())
        assert worst["v"] < 1e-6
        assert (worst[loser] > 1e-4) == (loser != half)


@pytest.mark.parametrize(("log_snr", "made_from", "half"), [(-18.0, "eps", "x0"), (18.0, "x0", "eps")])
def test_a_v_made_from_another_guess_has_lost_the_same_digits(log_snr, made_from, half):
    t = SCHEDULE.time(log_snr)
    alpha, sigma, noisy = at(BLOBS, float(t))
    x, levels = noisy.sample(500, random(57))[0], (alpha.float(), sigma.float())
    best = BLOBS.denoiser(SCHEDULE)(x, t)
    a, s = levels
    other = getattr(best, made_from).float()
    made = (other - s * x.float()) / a if made_from == "eps" else (a * x.float() - other) / s
    answered = (alpha * best.eps - sigma * best.x0).float()
    for v, lost in ((made, True), (answered, False)):
        got = getattr(Prediction.from_v(x.float(), v, *levels), half)
        assert (float((got.double() - getattr(best, half)).abs().max()) > 1e-4) == lost


# ---- the clock


@pytest.mark.equation("eq-snr-clock")
def test_the_page_s_cloud_is_the_exact_one_under_any_schedule():
    """Its averages against the reverse mixture of two schedules, at equal x_t / alpha and log-SNR."""
    axis = torch.linspace(-6, 6, 401, dtype=F64)
    clean, centre, log_snr = torch.cartesian_prod(axis, axis), normal(5, 24), -0.4
    shares = names_of("01", "eq-snr-clock")["cloud"](BLOBS.log_prob(clean), clean, centre, log_snr)
    mean = shares @ clean
    for schedule in (cosine(), vp_linear(0.3, 12.0)):
        t = schedule.time(log_snr)
        cloud = BLOBS.reverse(schedule.alpha(t) * centre, schedule, t, 0.0)
        assert float((cloud.mean - mean).abs().max()) < 1e-6
        second = torch.einsum("nm,mi,mj->nij", shares, clean, clean) - torch.einsum("ni,nj->nij", mean, mean)
        assert float((cloud.cov - second).abs().max()) < 1e-5


def test_the_same_time_means_other_noise_under_another_schedule():
    linear = vp_linear()
    t = linear.time(SCHEDULE.log_snr(0.45))
    assert round(float(t), 2) == 0.23 and round(float(SCHEDULE.log_snr(0.45)), 2) == 0.32
    x = normal(200, 25)
    one, two = (ARCS.denoiser(s)(s.alpha(0.45) * x, torch.tensor(0.45, dtype=F64)).x0 for s in (SCHEDULE, linear))
    assert float((one - two).norm(dim=1).mean()) > 0.5


def test_the_same_data_in_other_units_have_another_log_snr():
    """Twice as wide, the data are as hard to guess at a log-SNR that is lower by log 4."""
    wide = GaussianMixture(BLOBS.weights, 2 * BLOBS.means, 4 * BLOBS.covs)
    centre = normal(100, 58)

    def guess(data: GaussianMixture, log_snr: float, place: Tensor) -> Tensor:
        t = SCHEDULE.time(log_snr)
        return data.denoiser(SCHEDULE)(SCHEDULE.alpha(t) * place, t).x0

    right = guess(BLOBS, 0.3, centre)
    assert float((guess(wide, 0.3 - math.log(4), 2 * centre) / 2 - right).abs().max()) < 1e-10
    assert float((guess(wide, 0.3, 2 * centre) / 2 - right).norm(dim=1).mean()) > 0.1


def test_ddims_step_knows_a_schedule_by_its_log_snr_and_eulers_by_more():
    place, ends = 2 * normal(50, 59), {}
    for name, kernel in {"ddim": kernels.ddim, "euler": lambda d, s: kernels.reverse_sde(d, s, 0.0)}.items():
        for schedule in (SCHEDULE, vp_linear(0.3, 12.0)):
            t, s = schedule.time(-2.0), schedule.time(-1.6)
            step = kernel(BLOBS.denoiser(schedule), schedule)(schedule.alpha(t) * place, t, s)
            ends.setdefault(name, []).append(step.mean / schedule.alpha(s))
    apart = {name: float((one - two).abs().max()) for name, (one, two) in ends.items()}
    assert apart["ddim"] < 1e-12 and apart["euler"] > 1e-3


@pytest.mark.equation("eq-vp-linear")
def test_the_continuous_rates_are_nearly_ddpms_table_and_the_middle_takes_more_of_cosines_time():
    linear, table = vp_linear(0.1, 20.0), from_betas(torch.linspace(1e-4, 0.02, 1000, dtype=F64))
    for t in (0.1, 0.5, 0.9):
        by_steps = math.exp(-sum(0.1 + (k + 0.5) / 1e4 * 19.9 for k in range(round(t * 1e4))) / 1e4 / 2)
        assert abs(float(linear.alpha(t)) - by_steps) < 1e-9
        assert abs(float(linear.alpha(t) / table.alpha(t)) - 1) < 0.03
    shares = []
    for schedule in (linear, SCHEDULE):
        shares.append(float(schedule.time(-4.0) - schedule.time(4.0)))
    assert round(shares[0], 2) == 0.59 and round(shares[1], 2) == 0.83
    assert float(SCHEDULE.time(6.0)) < 0.05 and float(linear.log_snr(1.0)) > -10.1


# ---- labels


@pytest.mark.equation("eq-class-posterior")
def test_the_classifier_of_noisy_points_is_right_as_often_as_it_says_the_clean_one_is_not():
    alpha, _, noisy = at(ARCS, 0.5)
    x, label = noisy.sample(20_000, random(26))
    said, right = {}, {}
    for name, log_p in {"noisy": noisy.class_log_prob(x, 1), "clean": ARCS.class_log_prob(x / alpha, 1)}.items():
        p = log_p.exp()
        said[name] = float(torch.maximum(p, 1 - p).mean())
        right[name] = float(((p > 0.5) == (label == 1)).double().mean())
    assert abs(said["noisy"] - right["noisy"]) < 0.012
    assert said["clean"] > 0.99 and right["clean"] < float((label == 0).double().mean()) < right["noisy"]


def test_with_arcs_of_equal_mass_the_clean_classifier_is_as_sure_and_beats_naming_one_arc():
    data = curves.two_arcs(0.5)
    alpha, _, noisy = at(data, 0.45)
    x, label = noisy.sample(5000, random(60))
    p = data.class_log_prob(x / alpha, 1).exp()
    assert float(torch.maximum(p, 1 - p).mean()) > 0.99
    assert float(((p > 0.5) == (label == 1)).double().mean()) > 0.7


def test_adding_the_classifiers_slope_to_the_score_moves_the_average():
    alpha, sigma, noisy = at(BLOBS, 0.5)
    x = normal(50, 27)
    told, untold = (BLOBS.denoiser(SCHEDULE, label)(x, torch.tensor(0.5, dtype=F64)).x0 for label in (1, None))
    assert float((told - untold - sigma**2 / alpha * noisy.class_gradient(x, 1)).abs().max()) < 1e-10


@pytest.mark.equation("eq-conditional-mixture")
def test_to_select_and_then_to_noise_is_to_noise_and_then_to_select():
    alpha, sigma, noisy = at(BLOBS, 0.35)
    x_0, label = BLOBS.sample(40_000, random(28))
    x = (alpha * x_0 + sigma * normal(40_000, 29))[label == 1]
    inside = BLOBS.given(1).noised(alpha, sigma)
    assert float((x.mean(0) - inside.weights @ inside.means).abs().max()) < 5 * 1.2 / len(x) ** 0.5
    places = normal(30, 30)
    assert float((inside.log_prob(places) - noisy.given(1).log_prob(places)).abs().max()) < 1e-12


# ---- deeper


@pytest.mark.equation("eq-mixture-denoiser")
def test_the_closed_form_keeps_its_digits_at_much_noise_where_tweedie_loses_them():
    x, t = normal(500, 31), torch.tensor(1.0)
    exact = BLOBS.denoiser(SCHEDULE)(x, t.double()).x0
    alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
    single = BLOBS.to(torch.float32).denoiser(SCHEDULE)(x.float(), t).x0
    tweedie = (x.float() + sigma**2 * BLOBS.noised(alpha, sigma).score(x).float()) / alpha
    assert float((single - exact).abs().max()) < 1e-5 < 1e-4 < float((tweedie - exact).abs().max())


@pytest.mark.equation("eq-mixture-hessian")
def test_the_mean_trace_of_the_covariance_is_the_error_nobody_can_avoid():
    for t in (0.3, 0.7):
        x_0, x_t, best = pairs(BLOBS, t, 20_000, 32)
        alpha, sigma, noisy = at(BLOBS, t)
        trace = (sigma / alpha) ** 2 * (2 + sigma**2 * noisy.hessian(x_t).diagonal(dim1=1, dim2=2).sum(1))
        gap = (x_0 - best).square().sum(1) - trace
        assert abs(float(gap.mean())) < 4.5 * float(gap.std()) / 20_000**0.5
    alpha, sigma, noisy = at(BLOBS, 0.97)
    trace = (sigma / alpha) ** 2 * (2 + sigma**2 * noisy.hessian(x_t).diagonal(dim1=1, dim2=2).sum(1))
    total = float(BLOBS.sample(50_000, random(33))[0].var(0).sum())
    assert abs(float(trace.mean()) / total - 1) < 0.03


def test_the_derivative_of_the_average_is_the_covariance_times_alpha_over_the_variance_of_the_noise():
    """In space, for points with weights: the covariance by its sum, the derivative by differences."""
    clean, weights = normal(5, 61, 3), torch.tensor([0.1, 0.3, 0.2, 0.15, 0.25], dtype=F64)
    alpha, sigma, h = 0.7, 0.9, 1e-5

    def shares(x: Tensor) -> Tensor:
        return (weights.log() - (x - alpha * clean).square().sum(1) / 2 / sigma**2).softmax(0)

    x = normal(1, 62, 3)[0]
    steps = h * torch.eye(3, dtype=F64)
    slope = torch.stack([(shares(x + step) - shares(x - step)) @ clean / (2 * h) for step in steps])
    away = clean - shares(x) @ clean
    assert float((slope - alpha / sigma**2 * (shares(x)[:, None] * away).T @ away).abs().max()) < 1e-8


def test_the_shares_change_in_favour_of_the_components_whose_slope_leads_that_way():
    apart = GaussianMixture(BLOBS.weights, BLOBS.means, BLOBS.covs)
    x = normal(5, 34)
    for k in range(4):
        change = apart.class_gradient(x, k) * apart.class_log_prob(x, k).exp()[:, None]
        own = torch.linalg.solve(BLOBS.covs[k], (BLOBS.means[k] - x).T).T
        assert float((change - apart.class_log_prob(x, k).exp()[:, None] * (own - BLOBS.score(x))).abs().max()) < 1e-10


def test_the_exact_guess_for_a_training_set_gives_back_its_points():
    train = BLOBS.sample(40, random(35))[0]
    tiny = 1e-12 * torch.eye(2, dtype=F64).expand(40, 2, 2)
    memory = GaussianMixture(torch.full((40,), 1 / 40), train, tiny).denoiser(SCHEDULE)
    copied = []
    for steps in (50, 400):
        samples = draw(kernels.ddim(memory, SCHEDULE), normal(500, 36), time_grid(steps))
        copied.append(float((torch.cdist(samples, train).min(1).values < 0.005).double().mean()))
    assert copied[0] < copied[1] and copied[1] > 0.97
    noisy_steps = draw(kernels.ddpm(memory, SCHEDULE), normal(300, 36), time_grid(400), generator=random(38))
    assert float((torch.cdist(noisy_steps, train).min(1).values < 0.005).double().mean()) > 0.95
    x_t = normal(20, 37)
    t = torch.tensor(0.5, dtype=F64)
    shares = (-(x_t[:, None] - SCHEDULE.alpha(t) * train).square().sum(2) / 2 / SCHEDULE.sigma(t) ** 2).softmax(1)
    assert float((memory(x_t, t).x0 - shares @ train).abs().max()) < 1e-6
