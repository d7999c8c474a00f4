"""What chapter 17 claims about guided samples, by finite differences, Jacobians, recursions and quadrature."""

import math

import pytest
import torch
from torch import Tensor

from difflesson import guidance, kernels, metrics, path, plane
from difflesson.denoiser import Pair
from difflesson.grid import GridDensity
from difflesson.mixture import GaussianMixture
from difflesson.ode import probability_flow, solve
from difflesson.samplers import draw, time_grid
from difflesson.schedule import cosine, vp_linear
from tests.oracles.chapter_cells import assigned, names_of
from tests.oracles.mixtures import FOUR

F64, SCHEDULE = torch.float64, cosine()
PAGE = assigned("17", "mixture")["mixture"]
MIXTURES = {"the page's": PAGE, "four blobs": plane.four_blobs(), "another": FOUR.mixture()}
each_mixture = pytest.mark.parametrize("mixture", MIXTURES.values(), ids=MIXTURES)
RISING = torch.cat([torch.linspace(0, 1, 25, dtype=F64)[:-1], torch.logspace(0, 1.8, 40, dtype=F64)]) ** 2


def random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def points_of(mixture: GaussianMixture, q: float, count: int = 60, seed: int = 0) -> Tensor:
    return mixture.noised(1.0, q**0.5).sample(count, random(seed))[0]


def autograd(f, x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(f(leaf).sum(), leaf)[0]


def combined(mixture: GaussianMixture, gamma: float, x: Tensor, q: float) -> Tensor:
    """w_q by Bayes' rule, up to a number: log p_q + gamma log p_q(y | x)."""
    noisy = mixture.noised(1.0, q**0.5)
    return noisy.log_prob(x) + gamma * (noisy.class_log_prob(x, 1) - mixture.class_weights()[1].log())


def defect(f, x: Tensor, q: float, h: float = 1e-3) -> Tensor:
    """d f / dq - (Laplacian + |gradient|^2) / 2; the derivatives in x by autograd, that in q by differences."""
    hessians = torch.stack([torch.autograd.functional.hessian(lambda p: f(p[None], q)[0], point) for point in x])
    rate = (8 * (f(x, q + h) - f(x, q - h)) - (f(x, q + 2 * h) - f(x, q - 2 * h))) / (12 * h)
    slope = autograd(lambda p: f(p, q), x)
    return rate - (hessians.diagonal(dim1=1, dim2=2).sum(1) + slope.square().sum(1)) / 2


# ---- what diffuses, and what does not


@pytest.mark.equation("eq-log-heat")
@each_mixture
def test_data_and_class_diffuse_and_the_page_s_differences_say_so(mixture):
    diffuses = names_of("17", "eq-log-heat")["diffuses"]
    x = points_of(mixture, 0.9)
    for density in (mixture, mixture.given(1)):

        def log(x, q, density=density):
            return density.noised(1.0, q**0.5).log_prob(x)

        assert float(defect(log, x, 0.9).abs().max()) < 1e-7
        assert float(diffuses(log, x, 0.9, 1e-3).abs().max()) < 1e-4

    def heat(x, q):  # a function that does not diffuse: its defect is known
        return 0.3 * x[:, 0] ** 2 + q * x[:, 1] + 0 * q

    slope = torch.stack([0.6 * x[:, 0], torch.full_like(x[:, 0], 0.9)], 1)
    known = x[:, 1] - (0.6 + slope.square().sum(1)) / 2
    assert float((diffuses(heat, x, 0.9, 1e-2) - known).abs().max()) < 1e-9


@pytest.mark.equation("eq-guided-residual")
@each_mixture
@pytest.mark.parametrize("gamma", [-1.5, 0.4, 3.0, 8.0])
def test_guided_densities_miss_diffusion_by_half_gamma_times_one_minus_gamma_times_the_squared_classifier_gradient(
    mixture, gamma
):
    for q in (0.2, 1.7):
        x = points_of(mixture, q, 25)
        squares = autograd(lambda p, q=q: mixture.noised(1.0, q**0.5).class_log_prob(p, 1), x).square().sum(1)
        found = defect(lambda p, q: combined(mixture, gamma, p, q), x, q, h=1e-3 * q)
        assert float((found - gamma * (1 - gamma) / 2 * squares).abs().max()) < 1e-5 * float(
            1 + squares.max() * gamma**2
        )
        assert float((path.source(mixture, 1, gamma, x, q) + found).abs().max()) < 1e-5 * float(
            1 + squares.max() * gamma**2
        )


def test_the_identity_of_squares_holds_for_any_two_vectors_and_any_gamma():
    a, b = torch.randn(2, 50, 3, generator=random(1), dtype=F64)
    for gamma in (-0.7, 0.3, 4.0):
        left = (
            (1 - gamma) * a.square().sum(1) + gamma * b.square().sum(1) - ((1 - gamma) * a + gamma * b).square().sum(1)
        )
        assert float((left - gamma * (1 - gamma) * (a - b).square().sum(1)).abs().max()) < 1e-10


@pytest.mark.equation("eq-guided-mass")
def test_mass_is_made_where_the_classifier_s_gradient_is_longer_than_in_the_mean_and_in_all_none_is():
    """The rate of the normalised density, by differences in q, less what heat does; by the page's cell."""
    mass_made = names_of("17", "eq-guided-mass")["mass_made"]
    mixture, gamma, q, h = MIXTURES["another"], 2.5, 0.9, 1e-3

    def frame(q):
        return GridDensity(lambda x: combined(mixture, gamma, x, q), -9, 10, 240)

    frames = {k: frame(q + k * h) for k in (-1, 0, 1)}
    here, x = frames[0], points_of(mixture, q, 30)
    rate = -(frames[1].log_prob(x).exp() - frames[-1].log_prob(x).exp()) / (2 * h)
    step = 1e-3 * torch.eye(2, dtype=F64)
    heat = sum(here.log_prob(x + s * e).exp() - here.log_prob(x).exp() for e in step for s in (1, -1)) / 1e-6
    slopes = autograd(lambda p: mixture.noised(1.0, q**0.5).class_log_prob(p, 1), here.points).square().sum(1)
    made = mass_made(mixture, 1, gamma, here, q)
    longer = slopes > here.weights @ slopes
    assert bool((made[longer] >= 0).all()) and bool((made[~longer] <= 0).all()) and abs(float(made.sum())) < 1e-9
    mean = here.weights @ slopes
    known = (
        gamma
        * (gamma - 1)
        / 2
        * (autograd(lambda p: mixture.noised(1.0, q**0.5).class_log_prob(p, 1), x).square().sum(1) - mean)
    )
    assert float((rate + heat / 2 - known * here.log_prob(x).exp()).abs().max()) < 1e-5
    direct = gamma * (gamma - 1) / 2 * (slopes - mean) * here.log_prob(here.points).exp()
    assert float((made - direct).abs().max()) < 1e-9


# ---- what comes


@pytest.mark.equation("eq-guided-density")
@pytest.mark.parametrize(
    ("mixture", "gamma"), [(PAGE, 4.0), (FOUR.mixture(), 2.5), (FOUR.mixture(), -0.5), (FOUR.mixture(), 0.5)]
)
def test_what_comes_is_the_order_times_the_bill_as_the_jacobian_of_the_flow_says(mixture, gamma):
    """The package's flow from noise to the data by SciPy, and its Jacobian by differences: the density of the ends."""
    start = torch.tensor(0.95, dtype=F64)
    alpha, sigma = SCHEDULE.alpha(start), SCHEDULE.sigma(start)
    top = float((sigma / alpha) ** 2)
    flow = probability_flow(guidance.classifier_free(mixture.pair(SCHEDULE, 1), gamma), SCHEDULE)
    x, h, last = torch.randn(12, 2, generator=random(3), dtype=F64), 1e-4, 1e-3
    moved = torch.cat([x, *(x + s * h * axis for axis in torch.eye(2, dtype=F64) for s in (1, -1))])
    ends = solve(flow, sigma * moved, 0.95, last) / SCHEDULE.alpha(last)  # from N(0, sigma^2): q-coordinates N(0, Q)
    end, *sides = ends.split(12)
    columns = [(sides[2 * k] - sides[2 * k + 1]) / (2 * h) for k in (0, 1)]
    jacobian = torch.stack(columns, 2)
    log = -x.square().sum(1) / 2 - math.log(2 * math.pi) - torch.linalg.det(jacobian).abs().log()
    roots = torch.cat(
        [torch.linspace(0, 1, 160, dtype=F64)[:-1], torch.logspace(0, math.log10(top) / 2, 200, dtype=F64)]
    )
    levels = roots**2
    levels[-1] = top
    found = path.sampled_log_prob(mixture, 1, gamma, end, levels)
    assert float((found - log).abs().max()) < 0.02


def test_half_the_steps_of_the_paths_make_four_times_the_error():
    x = points_of(PAGE.given(1), 0.01, 20)
    values = [path.sampled_log_prob(PAGE, 1, 4.0, x, torch.cat([torch.linspace(0, 1, 60 * n + 1, dtype=F64)[:-1],
              torch.logspace(0, 1.5, 90 * n + 1, dtype=F64)]) ** 2) for n in (1, 2, 6)]  # fmt: skip
    first, second = (float((value - values[2]).abs().max()) for value in values[:2])
    assert 3 < first / second < 5.5


def sampled(mixture: GaussianMixture, gamma: float, count: int = 2000, seed: int = 21, steps: int = 60) -> Tensor:
    guided = guidance.classifier_free(mixture.pair(SCHEDULE, 1), gamma)
    start = torch.randn(count, 2, generator=random(seed), dtype=F64)
    return draw(kernels.heun(guided, SCHEDULE), start, time_grid(steps, start=0.99))


def ordered(mixture: GaussianMixture, gamma: float, cells: int = 200) -> GridDensity:
    return GridDensity(lambda x: combined(mixture, gamma, x, 0.0), -8, 10, cells)


def test_the_order_is_the_same_at_every_gamma_and_of_the_near_blob_half_and_then_a_sixth_are_left():
    plain = ordered(PAGE, 1.0)
    for gamma, left, off in ((4.0, 0.306, 0.87), (8.0, 0.105, 1.50)):
        order, came = ordered(PAGE, gamma), sampled(PAGE, gamma)
        divergence = float(order.expectation(lambda x, order=order: order.log_prob(x) - plain.log_prob(x)))
        assert 0 < divergence < 1e-5 and abs(float(metrics.mode_weights(PAGE, order)[1]) - 0.6) < 1e-3
        assert abs(float(metrics.mode_weights(PAGE, came)[1]) - left) < 0.03
        moved = float((came[:, 0].mean() - order.mean[0]) / plain.cov[0, 0] ** 0.5)
        assert abs(moved - off) < 0.06
    assert abs(divergence - 9e-6) < 6e-7 and abs(0.105 / 0.6 - 1 / 6) < 0.02


def test_with_a_start_at_a_million_the_near_blob_would_get_028():
    """Also on the page: 0.31 from where its samples start."""
    for top, share in ((6.0, 0.28), (math.log10(float((SCHEDULE.sigma(0.99) / SCHEDULE.alpha(0.99)) ** 2)), 0.31)):
        levels = (
            torch.cat(
                [torch.linspace(0, 1, 25, dtype=F64)[:-1], torch.logspace(0, top / 2, round(12 * top), dtype=F64)]
            )
            ** 2
        )
        came = GridDensity(lambda x, levels=levels: path.sampled_log_prob(PAGE, 1, 4.0, x, levels), -8, 10, 90)
        assert abs(came.log_normaliser) < 0.02 and abs(float(metrics.mode_weights(PAGE, came)[1]) - share) < 0.006


def test_the_film_returns_to_the_order_and_the_points_do_not():
    """Means and near shares of the guided densities by grid, and of points carried by SciPy's solver."""

    def film(q):
        reach = 9 + 6 * q**0.5
        density = GridDensity(lambda x: combined(PAGE, 4.0, x, q), -reach, reach + 6, 140)
        return float(density.mean[0]) - 1.62, float(metrics.mode_weights(PAGE.given(1).noised(1.0, q**0.5), density)[0])

    means, shares = zip(*(film(q) for q in (300.0, 30.0, 7.0, 1.0, 0.01)), strict=True)
    assert means[0] > 6 and all(a > b for a, b in zip(means[:-1], means[1:], strict=True)) and abs(means[-1]) < 0.01
    assert min(shares) == shares[2] and abs(shares[2] - 0.49) < 0.01 and abs(shares[-1] - 0.6) < 1e-3
    flow = probability_flow(guidance.classifier_free(PAGE.pair(SCHEDULE, 1), 4.0), SCHEDULE)
    ends = solve(flow, torch.randn(600, 2, generator=random(5), dtype=F64), 0.99, 1e-3, tolerance=1e-6)
    assert abs(float(metrics.mode_weights(PAGE, ends)[1]) - 0.31) < 0.06 and float(ends[:, 0].mean()) - 1.62 > 1.3


def test_bills_are_larger_at_the_near_blob_s_centre_than_at_the_far_one_s_and_small_on_the_right():
    centres = PAGE.means[1:3]
    near, far = (6 * path.follow(PAGE, 1, 4.0, centres, RISING)[1]).tolist()
    right = (6 * path.follow(PAGE, 1, 4.0, centres + torch.tensor([0.8, 0.0], dtype=F64), RISING)[1]).tolist()
    assert abs(near - 11.2) < 0.3 and abs(far - 3.7) < 0.2 and abs(right[0] - 1.5) < 0.15 and abs(right[1] - 0.9) < 0.15


def test_bills_grow_faster_than_gamma_times_gamma_minus_one_since_the_paths_change():
    centres = PAGE.means[1:3]
    bills = torch.stack([path.follow(PAGE, 1, gamma, centres, RISING)[1] for gamma in (2.0, 4.0, 8.0)])
    assert bool((bills.diff(dim=0) > 0).all())  # each over gamma (gamma - 1) / 2


def test_bills_of_a_class_broader_than_the_data_grow_slower():
    broad = GaussianMixture([0.5, 0.5], torch.zeros(2, 1, dtype=F64), [[[1.0]], [[4.0]]], [0, 1])
    places = torch.tensor([[0.5], [1.0], [2.0], [4.0]], dtype=F64)
    bills = torch.stack([path.follow(broad, 1, gamma, places, RISING)[1] for gamma in (2.0, 4.0, 8.0)])
    assert bool((bills.diff(dim=0) < 0).all())  # each over gamma (gamma - 1) / 2


def test_the_start_s_trace_fades_like_one_over_the_root_of_its_variance():
    shares = []
    for top in (1e3, 1e4, 1e7):
        far = torch.logspace(0, math.log10(top) / 2, round(14 * math.log10(top)), dtype=F64)
        levels = torch.cat([torch.linspace(0, 1, 25, dtype=F64)[:-1], far]) ** 2
        came = GridDensity(lambda x, levels=levels: path.sampled_log_prob(PAGE, 1, 4.0, x, levels), -8, 10, 60)
        shares.append(float(metrics.mode_weights(PAGE, came)[1]))
    assert abs((shares[0] - shares[2]) / (shares[1] - shares[2]) - 10**0.5) < 0.6


def test_the_last_fraction_tends_to_one_at_every_point_like_one_over_the_root_of_its_variance():
    """Of log r_Q - w_Q where the paths of six points end: ten times the root, a tenth is left, on another mixture."""
    mixture, gamma, left = FOUR.mixture(), 2.5, []
    x = points_of(mixture.given(1), 0.01, 6)
    for top in (1e4, 1e6):
        far = torch.logspace(0, math.log10(top) / 2, round(40 * math.log10(top)), dtype=F64)
        levels = torch.cat([torch.linspace(0, 1, 60, dtype=F64)[:-1], far]) ** 2
        begun, _ = path.follow(mixture, 1, gamma, x, levels)
        start = -(begun.square().sum(1) / top + 2 * math.log(2 * math.pi * top)) / 2
        left.append(start - combined(mixture, gamma, begun, top))
    assert float(left[1].abs().max()) < 0.012
    large = left[0].abs() > 0.04
    assert int(large.sum()) >= 3 and float((left[0] / left[1] - 10)[large].abs().max()) < 0.5


def test_for_gamma_between_0_and_1_the_bill_is_a_refund_and_outside_it_is_not():
    x = points_of(PAGE, 0.5, 20)
    for gamma, sign in ((-1.0, 1), (0.5, -1), (3.0, 1)):
        assert bool((sign * path.source(PAGE, 1, gamma, x, 0.5) > 0).all())


def test_with_noise_the_order_over_what_comes_is_a_mean_of_the_exponential_of_the_bill():
    """A class N(0, C) among data N(0, U), DDPM's noise: samples weighted by e^bill have the order's variance."""
    C, U, gamma, count = 0.8, 1.4, 2.0, 40_000
    qs = torch.cat([torch.logspace(3, -2.5, 500, dtype=F64), torch.zeros(1, dtype=F64)])
    x, bill, generator = qs[0].sqrt() * torch.randn(count, generator=random(6), dtype=F64), 0.0, random(7)
    for q, lower in zip(qs[:-1], qs[1:], strict=True):
        bill = bill + gamma * (gamma - 1) / 2 * (q - lower) * (x * (1 / (C + q) - 1 / (U + q))) ** 2
        score = -x * (gamma / (C + q) + (1 - gamma) / (U + q))
        x = x + (q - lower) * score + (q - lower).sqrt() * torch.randn(count, generator=generator, dtype=F64)
    order, came = 1 / (gamma / C + (1 - gamma) / U), path.guided_variance(C, U, gamma, 1.0)
    weights = torch.as_tensor(bill).softmax(0)
    assert abs(float(x.var()) - came) < 0.02 and abs(float(weights @ x**2) - order) < 0.02 and order - came > 0.05


def test_the_page_s_class_is_60_and_40_percent_and_sure_of_itself():
    of_class = PAGE.given(1)
    assert float((of_class.weights - torch.tensor([0.6, 0.4], dtype=F64)).abs().max()) < 1e-12 and PAGE.classes == 3
    assert float(PAGE.class_log_prob(of_class.sample(5000, random(30))[0], 1).exp().mean()) > 0.9999
    near, far = (torch.cdist(PAGE.means[k : k + 1], PAGE.means[[0, 3]]).min() for k in (1, 2))
    assert near < far


def test_the_guided_guess_is_the_gradient_of_w_at_every_level():
    """In x_t, by autograd of the noisy log densities; w is linear in gamma, and so is the guess."""
    x = torch.randn(20, 2, generator=random(31), dtype=F64)
    for t, gamma in ((0.2, 4.0), (0.6, -1.0), (0.9, 8.0)):
        t = torch.tensor(t, dtype=F64)
        noisy = PAGE.noised(SCHEDULE.alpha(t), SCHEDULE.sigma(t))
        slope = autograd(lambda p, n=noisy, g=gamma: (1 - g) * n.log_prob(p) + g * n.given(1).log_prob(p), x)
        guess = guidance.classifier_free(PAGE.pair(SCHEDULE, 1), gamma)(x, t).score(SCHEDULE.sigma(t))
        assert float((slope - guess).abs().max()) < 1e-8 * float(1 + guess.abs().max())


def test_under_much_noise_the_film_s_mean_is_gamma_times_the_way_from_data_to_class():
    q, means = 1e5, [mixture.weights @ mixture.means for mixture in (PAGE, PAGE.given(1))]
    frame = GridDensity(lambda x: combined(PAGE, 4.0, x, q), -2200, 2200, 200)
    assert float((frame.mean - (means[0] + 4 * (means[1] - means[0]))).abs().max()) < 0.05


def test_mass_is_missing_towards_the_other_classes_and_too_much_away_from_them():
    """Of what comes less the order, in strips of each blob; and of what is made at one level, on the outer side."""
    came = GridDensity(lambda x: path.sampled_log_prob(PAGE, 1, 4.0, x, RISING), -8, 10, 110)
    order = ordered(PAGE, 4.0, 110)
    off, x = came.weights - order.weights, came.points
    others = PAGE.weights[[0, 3]] @ PAGE.means[[0, 3]] / PAGE.weights[[0, 3]].sum()
    owner = torch.cdist(x, PAGE.means[1:3]).argmin(1)
    for blob in (0, 1):
        centre = PAGE.means[1 + blob]
        outward = (x - centre) @ (centre - others) / (centre - others).norm()
        assert float(off[(owner == blob) & (outward < 0)].sum()) < -0.1
        assert float(off[(owner == blob) & (outward > 0.7)].sum()) > 0.01
    frame = GridDensity(lambda x: combined(PAGE, 4.0, x, 1.44), -10, 14, 150)
    rate = path.source(PAGE, 1, 4.0, frame.points, 1.44)
    made = (rate - frame.weights @ rate) * frame.weights
    outward = (frame.points - frame.mean) @ (frame.mean - others)
    assert float((made * outward).sum()) < 0


def test_at_the_near_blob_s_centre_mass_should_be_taken_at_one_level_and_is_missing_in_the_end():
    centre = PAGE.means[1:2]
    frame = GridDensity(lambda x: combined(PAGE, 4.0, x, 1.44), -10, 14, 150)
    rate = [path.source(PAGE, 1, 4.0, x, 1.44) for x in (centre, frame.points)]
    assert float(rate[0] - frame.weights @ rate[1]) < -0.1
    came = path.sampled_log_prob(PAGE, 1, 4.0, centre, RISING).exp()
    assert float(came) < 0.1 * float(ordered(PAGE, 4.0).log_prob(centre).exp())


def test_a_gradient_of_one_length_does_not_turn_along_its_own_lines_and_in_the_mixtures_it_has_many_lengths():
    """|grad f| = c means H grad f = 0. The distance from a point has it, but is not smooth at that point."""
    x = torch.randn(10, 2, generator=random(32), dtype=F64) + 3
    hessian = torch.stack([torch.autograd.functional.hessian(lambda p: p.norm(), point) for point in x])
    slope = autograd(lambda p: p.norm(dim=1), x)
    assert float((hessian @ slope[:, :, None]).abs().max()) < 1e-12
    near = torch.tensor([[1e-9, 0.0], [-1e-9, 0.0]], dtype=F64)
    assert float((autograd(lambda p: p.norm(dim=1), near).diff(dim=0)).abs().max()) > 1.9  # not smooth
    for mixture in MIXTURES.values():
        lengths = mixture.noised(1.0, 1.0).class_gradient(points_of(mixture, 1.0, 200), 1).norm(dim=1)
        assert float(lengths.max() / lengths.min()) > 3


# ---- when it is right


@pytest.mark.equation("eq-constant-norm")
def test_a_move_along_a_gaussian_direction_is_exact_and_takes_the_class_further_on():
    """Two blobs across, Gaussian along: the order is the class moved on, and DDIM samples it."""
    covs = [[[1.0, 0.0], [0.0, 0.2]], [[1.0, 0.0], [0.0, 0.6]]]
    data = GaussianMixture([0.6, 0.4], torch.tensor([[0.0, -1.5], [0.0, 1.5]], dtype=F64), covs)
    of_class = GaussianMixture([0.6, 0.4], torch.tensor([[0.8, -1.5], [0.8, 1.5]], dtype=F64), covs)
    on = GaussianMixture([0.6, 0.4], torch.tensor([[2.4, -1.5], [2.4, 1.5]], dtype=F64), covs)  # gamma = 3
    x = points_of(on, 0.0, 50)
    order = 3 * of_class.log_prob(x) - 2 * data.log_prob(x)
    assert float((order - on.log_prob(x)).std()) < 1e-12
    pair = Pair(of_class.denoiser(SCHEDULE), data.denoiser(SCHEDULE))
    for t in (0.2, 0.6, 0.9):
        t = torch.tensor(t, dtype=F64)
        guided = guidance.classifier_free(pair, 3.0)(x, t).eps
        assert float((guided - on.denoiser(SCHEDULE)(x, t).eps).abs().max()) < 1e-10
    unevenness = names_of("17", "eq-constant-norm")["unevenness"]
    assert unevenness(data, of_class, 3.0, 0.7) < 1e-10
    wide, narrow, away = (
        GaussianMixture([1.0], torch.tensor([[place, 0.0]], dtype=F64), [[[var, 0.0], [0.0, 0.5]]])
        for place, var in ((0.0, 1.0), (0.0, 0.6), (0.9, 0.6))
    )
    q, gamma = 0.7, 2.0
    assert abs(unevenness(wide, narrow, gamma, q) - 2**0.5) < 1e-6  # |g|^2 is that of a centred normal
    precision = gamma / (0.6 + q) + (1 - gamma) / (1.0 + q)
    slope, start = 1 / (1.0 + q) - 1 / (0.6 + q), 0.9 / (0.6 + q)  # g is slope x + start along the first axis
    centre, var = slope * gamma * 0.9 / (0.6 + q) / precision + start, slope**2 / precision
    known = (2 * var**2 + 4 * centre**2 * var) ** 0.5 / (centre**2 + var)
    assert abs(unevenness(wide, away, gamma, q) - known) < 1e-6


@each_mixture
def test_for_a_class_among_the_data_the_squared_gradient_is_never_even(mixture):
    unevenness = names_of("17", "eq-constant-norm")["unevenness"]
    assert min(unevenness(mixture, mixture.given(1), 2.0, q) for q in (0.3, 1.0, 3.0)) > 0.5
    assert float(mixture.class_log_prob(points_of(mixture, 5.0, 500), 1).max()) <= 0


def test_the_exact_guided_field_has_no_curl_and_does_not_diffuse():
    x = points_of(PAGE, 1.0, 40)
    noisy = PAGE.noised(1.0, 1.0)
    turning = plane.curl(lambda x: noisy.score(x) + 4.0 * noisy.class_gradient(x, 1), x)
    assert float(turning.abs().max()) < 1e-9
    assert float(defect(lambda p, q: combined(PAGE, 4.0, p, q), x, 1.0).abs().max()) > 1


def test_finer_steps_and_a_better_solver_go_to_the_limit_and_not_to_the_order():
    guided = guidance.classifier_free(PAGE.pair(SCHEDULE, 1), 4.0)
    start = torch.randn(300, 2, generator=random(8), dtype=F64)
    limit = float(solve(probability_flow(guided, SCHEDULE), start, 0.99, 1e-3, tolerance=1e-6)[:, 0].mean())
    off = {(kernel, n): abs(float(draw(kernel(guided, SCHEDULE), start, time_grid(n, start=0.99))[:, 0].mean()) - limit)
           for kernel in (kernels.ddim, kernels.heun) for n in (10, 40)}  # fmt: skip
    assert off[kernels.heun, 40] < 0.01 < off[kernels.ddim, 40] < 0.15 and off[kernels.heun, 10] < off[kernels.ddim, 10]
    assert abs(limit - 1.62 - 1.5) < 0.15


# ---- Gaussians


@pytest.mark.equation("eq-any-noise-variance")
@pytest.mark.parametrize(("C", "U", "gamma"), [(0.5, 3.0, 4.0), (0.8, 1.2, 2.0), (2.0, 0.9, -0.5), (1.0, 1.0, 7.0)])
def test_the_variance_for_any_noise_is_that_of_its_own_equation_and_has_the_two_limits(C, U, gamma):
    geometric, harmonic = C**gamma * U ** (1 - gamma), 1 / (gamma / C + (1 - gamma) / U)
    assert abs(path.guided_variance(C, U, gamma, 0.0) / geometric - 1) < 1e-12
    assert abs(path.guided_variance(C, U, gamma, 0.05) - geometric) < 0.02 * geometric + 0.01 * harmonic
    assert abs(path.guided_variance(C, U, gamma, 60.0) / harmonic - 1) < 2e-3
    qs = torch.cat([torch.logspace(7, -5, 40_000, dtype=F64), torch.zeros(1, dtype=F64)]).tolist()
    for rho in (0.5, 1.0, 2.0):
        var = qs[0]
        for q, lower in zip(qs[:-1], qs[1:], strict=True):  # implicit midpoint: second order
            pull = (
                (1 + rho**2) * (gamma / (C + (q + lower) / 2) + (1 - gamma) / (U + (q + lower) / 2)) * (q - lower) / 2
            )
            var = (var * (1 - pull) + rho**2 * (q - lower)) / (1 + pull)
        assert abs(path.guided_variance(C, U, gamma, rho) / var - 1) < 1e-3


def test_of_the_start_s_variance_nothing_is_left_with_noise_and_without_it_is_all_there_is():
    C, U, gamma, Q = 0.5, 3.0, 4.0, 1e6
    for rho, left in ((0.0, C**gamma * U ** (1 - gamma)), (1.0, 0.0)):
        kept = ((C / (C + Q)) ** gamma * (U / (U + Q)) ** (1 - gamma)) ** (1 + rho**2)
        assert abs(Q * kept - left) < 1e-6


def test_ddim_s_variance_falls_by_c_over_u_for_each_gamma_and_the_order_s_precision_grows_by_a_constant():
    C, U = 0.5, 3.0
    for gamma in (2.0, 5.0):
        assert abs(path.guided_variance(C, U, gamma + 1, 0.0) / path.guided_variance(C, U, gamma, 0.0) - C / U) < 1e-12
        precisions = [g / C + (1 - g) / U for g in (gamma, gamma + 1)]
        assert abs(precisions[1] - precisions[0] - (1 / C - 1 / U)) < 1e-12
    share = [path.guided_variance(C, U, 4.0, rho) * (4 / C - 3 / U) for rho in (0.0, 1.0)]
    assert share[0] < 1 / 50 and abs(share[1] - 0.6) < 0.005


@pytest.mark.parametrize("schedule", [cosine(), vp_linear()], ids=["cosine", "vp_linear"])
def test_the_package_s_samplers_meet_the_formula_in_variance_preserving_variables_to_their_order(schedule):
    C, U, gamma = 0.5, 3.0, 4.0
    narrow, broad = (GaussianMixture([1.0], torch.zeros(1, 1, dtype=F64), [[[v]]]).denoiser(schedule) for v in (C, U))
    guided = guidance.classifier_free(Pair(narrow, broad), gamma)

    def carried(kernel, steps):
        var, one = torch.ones((), dtype=F64), torch.ones(1, 1, dtype=F64)
        times = time_grid(steps, cosine_like(schedule), start=0.9999, end=1e-3)
        for t, s in zip(times[:-1], times[1:], strict=True):
            step = kernel(one, t, s)
            var = var * step.mean[0, 0] ** 2 + step.var
        return float(var / schedule.alpha(times[-1]) ** 2)

    for kernel, rho, order in ((kernels.ddim(guided, schedule), 0.0, 1), (kernels.heun(guided, schedule), 0.0, 2),
                               (kernels.ddpm(guided, schedule), 1.0, 1)):  # fmt: skip
        truth = path.guided_variance(C, U, gamma, rho)
        off = [abs(carried(kernel, n) - truth) for n in (100, 200)]
        assert abs(math.log2(off[0] / off[1]) - order) < 0.45 or off[1] < 1e-5


def cosine_like(schedule):
    """Even steps in time for the cosine, in log-SNR for another."""
    return None if isinstance(schedule, type(cosine())) else schedule


# ---- noise


@pytest.mark.equation("eq-predictor-corrector")
@pytest.mark.parametrize("rho", [0.4, 1.0, 3.0])
def test_a_guided_step_is_a_conditional_one_and_langevin_at_another_scale(rho):
    """With the package's denoisers, at three levels; for DDPM's noise the other scale is 2 gamma - 1."""
    pair, gamma = PAGE.pair(SCHEDULE, 1), 4.0
    x = torch.randn(30, 2, generator=random(9), dtype=F64)
    other = path.corrector_scale(gamma, rho)
    assert rho != 1 or other == 2 * gamma - 1
    for t in (0.2, 0.5, 0.9):
        t = torch.tensor(t, dtype=F64)
        scores = {g: guidance.classifier_free(pair, g)(x, t).score(SCHEDULE.sigma(t)) for g in (1.0, gamma, other)}
        left, right = (1 + rho**2) / 2 * scores[gamma], scores[1.0] / 2 + rho**2 / 2 * scores[other]
        assert float((left - right).abs().max()) < 1e-9 * float(1 + left.abs().max())
    half = path.corrector_scale(gamma, rho, predictor=2.5)
    parts = (1 + rho**2) / 2 * gamma - 2.5 / 2 - rho**2 / 2 * half
    assert abs(parts) < 1e-12


def walked(mixture, gamma, rho, qs, x, generator, split=False):
    """DDIM's step in q, rho^2 / 2 scores more, and noise; split: a conditional DDIM step, then Langevin."""

    def score(x, q, gamma):
        noisy = mixture.noised(1.0, q**0.5)
        return noisy.score(x) + gamma * noisy.class_gradient(x, 1)

    for q, lower in zip(qs[:-1], qs[1:], strict=True):
        h = q - lower
        noise = rho * h.sqrt() * torch.randn(x.shape, generator=generator, dtype=F64)
        if split:
            x = x + (q - (q * lower).sqrt()) * score(x, q, 1.0)
            x = x + rho**2 / 2 * h * score(x, q, gamma + (gamma - 1) / rho**2) + noise
        else:
            x = x + (q - (q * lower).sqrt() + rho**2 / 2 * h) * score(x, q, gamma) + noise
    return x


def falling(steps, top=1e4, bottom=3e-3):
    return torch.cat([torch.logspace(math.log10(top), math.log10(bottom), steps, dtype=F64), torch.zeros(1, dtype=F64)])


def test_the_langevin_half_leaves_the_density_of_its_own_scale_alone():
    """Its flow's divergence takes away what its noise spreads, by differences of the density."""
    scale, q, h = path.corrector_scale(4.0, 1.0), 0.8, 1e-3
    x = points_of(PAGE.given(1), q, 30, seed=33)

    def density(p):
        return combined(PAGE, scale, p, q).exp()

    def flux(p):
        noisy = PAGE.noised(1.0, q**0.5)
        return density(p)[:, None] * (noisy.score(p) + scale * noisy.class_gradient(p, 1))

    steps = h * torch.eye(2, dtype=F64)
    spread = sum(density(x + s) + density(x - s) - 2 * density(x) for s in steps) / h**2
    carried = sum((flux(x + s) - flux(x - s))[:, k] for k, s in enumerate(steps)) / (2 * h)
    assert float(((spread - carried) / density(x)).abs().max()) < 1e-2


def test_the_two_samplers_agree_as_steps_get_finer():
    x = 100 * torch.randn(100, 2, generator=random(10), dtype=F64)
    gaps = []
    for steps in (100, 200, 400):
        one, two = (walked(PAGE, 4.0, 1.0, falling(steps), x, random(11), split) for split in (False, True))
        gaps.append(float((one - two).norm(dim=1).median()))
    assert all(1.6 < a / b < 2.6 for a, b in zip(gaps[:-1], gaps[1:], strict=True))


def moved_out(place: float) -> GaussianMixture:
    means = PAGE.means.clone()
    means[2, 0] = place
    return GaussianMixture(PAGE.weights, means, PAGE.covs, PAGE.labels)


def test_the_film_of_far_blobs_parts_while_its_near_share_is_030():
    for place, q, share, depth in (
        (12.0, 8.0, 0.30, (0.5, 0.65)),
        (12.0, 1.0, 0.57, (0.99, 1.01)),
        (3.6, 8.0, 0.49, (-0.01, 0.01)),
    ):
        density = GridDensity(lambda x, place=place, q=q: combined(moved_out(place), 4.0, x, q), -32, 44, 190)
        found = float(metrics.mode_weights(moved_out(place).given(1).noised(1.0, q**0.5), density)[0])
        line = density.weights.view(190, 190).sum(1)
        middles = density.points.view(190, 190, 2)[:, 0, 0]
        first, last = ((middles - x).abs().argmin() for x in (0.3, place))
        half = (first + last) // 2
        near, far = int(line[:half].argmax()), half + int(line[half:].argmax())
        valley = 1 - float(line[near : far + 1].min() / min(line[near], line[far]))
        assert abs(found - share) < 0.006 and depth[0] < valley < depth[1]


def test_the_far_blob_at_12_keeps_what_the_film_has_early_at_four_times_the_noise_and_at_less_not_even_its_least():
    mixture = moved_out(12.0)
    of_class = mixture.given(1)

    def near(cloud, noisy):
        return float(metrics.mode_weights(noisy, cloud)[0])

    film = {}
    for q in (60.0, 40.0, 30.0, 24.0, 20.0, 17.0, 14.0, 10.0, 8.0, 1.0):
        reach = 9 + 5 * q**0.5
        density = GridDensity(lambda x, q=q: combined(mixture, 4.0, x, q), -reach - 6, reach + 14, 110)
        film[q] = near(density, of_class.noised(1.0, q**0.5))
    assert abs(min(film.values()) - 0.24) < 0.005 and 14 < min(film, key=film.get) < 30
    x = 100 * torch.randn(800, 2, generator=random(44), dtype=F64)
    for rho, steps in ((0.0, 100), (1.0, 160), (2.0, 240)):
        share = near(walked(mixture, 4.0, rho, falling(steps), x, random(45)), of_class)
        assert share < min(film.values()) - 0.02
    share = near(walked(mixture, 4.0, 4.0, falling(480), x, random(45)), of_class)
    assert abs(share - film[14.0]) < 0.045


def test_in_the_package_more_noise_is_an_argument_and_a_corrector_a_function_after_each_step():
    start, times = torch.randn(700, 2, generator=random(24), dtype=F64), time_grid(150, SCHEDULE, start=0.99, end=0.01)
    guided, source = guidance.classifier_free(PAGE.pair(SCHEDULE, 1), 4.0), random(25)

    def langevin(x, t, s):
        for _ in range(3):
            delta = 0.1 * SCHEDULE.sigma(s) ** 2
            x = x + delta / 2 * guided(x, s).score(SCHEDULE.sigma(s))
            x = x + delta.sqrt() * torch.randn(x.shape, generator=source, dtype=F64)
        return x

    noisier = draw(kernels.reverse_sde(guided, SCHEDULE, rho=2.0), start, times, source)
    corrected = draw(kernels.ddim(guided, SCHEDULE), start, times, source, after=langevin)
    for came in (noisier, corrected):
        assert 0.41 < float(metrics.mode_weights(PAGE, came)[1]) < 0.58


@pytest.mark.nightly
def test_langevin_steps_alone_find_the_order_if_they_are_many():
    """Sixty levels, sixty steps at each, with the guided score and nothing else."""
    x, generator = 100 * torch.randn(1500, 2, generator=random(26), dtype=F64), random(27)
    for q in torch.logspace(4, -2.5, 60, dtype=F64):
        noisy = PAGE.noised(1.0, q**0.5)
        delta = 0.3 * float(0.2 + q)
        for _ in range(60):
            score = noisy.score(x) + 4.0 * noisy.class_gradient(x, 1)
            x = x + delta / 2 * score + delta**0.5 * torch.randn(x.shape, generator=generator, dtype=F64)
    assert 0.52 < float(metrics.mode_weights(PAGE, x)[1]) < 0.65 and abs(float(x[:, 0].mean()) - 1.62) < 0.25


@pytest.mark.nightly
def test_four_times_the_noise_brings_near_blobs_back_and_not_far_ones():
    x = 100 * torch.randn(3000, 2, generator=random(12), dtype=F64)
    for place, low, high in ((3.6, 0.54, 0.61), (12.0, 0.2, 0.33)):
        end = walked(moved_out(place), 4.0, 4.0, falling(480), x, random(13))
        assert low < float(metrics.mode_weights(moved_out(place), end)[1]) < high


def test_more_noise_brings_back_more_of_a_blob_that_is_near():
    x = 100 * torch.randn(500, 2, generator=random(14), dtype=F64)
    shares = []
    for rho, steps in ((0.0, 100), (1.0, 100), (2.0, 200)):
        end = walked(PAGE, 4.0, rho, falling(steps), x, random(15))
        shares.append(float(metrics.mode_weights(PAGE, end)[1]))
    assert shares[0] + 0.04 < shares[1] < shares[2] - 0.04 < 0.6


def test_a_start_at_ten_thousand_brings_029_without_noise():
    x = 100 * torch.randn(3000, 2, generator=random(42), dtype=F64)
    share = float(metrics.mode_weights(PAGE, walked(PAGE, 4.0, 0.0, falling(240), x, random(43)))[1])
    assert abs(share - 0.29) < 0.025


def test_where_the_noiseless_share_is_right_by_luck_more_noise_leads_away():
    """Towards the film's share near q = 1. A point left of the middle counts for the left blob."""
    means = torch.tensor([[0.0], [3.6], [3.8], [4.0]], dtype=F64)
    mixture = GaussianMixture([0.15, 0.4, 0.25, 0.2], means, [[[0.5]], [[0.5]], [[0.13]], [[0.6]]], [1, 1, 0, 0])

    def left_in_the_film(q):
        line = torch.linspace(-30, 30, 8001, dtype=F64)[:, None]
        return float(combined(mixture, 4.0, line, q).softmax(0)[line[:, 0] < 1.8].sum())

    x = 100 * torch.randn(4000, 1, generator=random(40), dtype=F64)
    noiseless, noisy = (
        float((walked(mixture, 4.0, rho, falling(240), x, random(41))[:, 0] < 1.8).double().mean())
        for rho in (0.0, 2.0)
    )
    order = left_in_the_film(0.0)
    assert abs(noiseless - order) < 0.025 and noisy - order > 0.05
    assert abs(noisy - left_in_the_film(1.0)) < 0.03


def test_guided_early_alone_loses_the_near_blob_and_late_alone_keeps_it():
    start = torch.randn(800, 2, generator=random(16), dtype=F64)
    found = []
    for scale in (lambda t: 4.0 if t > 0.5 else 1.0, lambda t: 4.0 if t < 0.5 else 1.0):
        guided = guidance.classifier_free(PAGE.pair(SCHEDULE, 1), scale)
        end = draw(kernels.heun(guided, SCHEDULE), start, time_grid(60, start=0.99))
        found.append((float(metrics.mode_weights(PAGE, end)[1]), float(end[:, 0].mean()) - 1.62))
    assert abs(found[0][0] - 0.31) < 0.06 and abs(found[1][0] - 0.6) < 0.06
    assert found[0][1] > 1.2 and abs(found[1][1]) < 0.25


def test_on_chapter_11_s_four_blobs_the_late_half_moves_the_mean():
    four, start = plane.four_blobs(), torch.randn(800, 2, generator=random(16), dtype=F64)
    plain, late = (
        draw(kernels.heun(guidance.classifier_free(four.pair(SCHEDULE, 1), scale), SCHEDULE), start,
             time_grid(60, start=0.99))
        for scale in (1.0, lambda t: 4.0 if t < 0.5 else 1.0)
    )  # fmt: skip
    moved = late - plain  # from the same noises
    assert float(moved[:, 0].mean()) > max(0.15, 5 * float(moved[:, 0].std() / 800**0.5))


@pytest.mark.parametrize("name", ["the page's", "four blobs"])
def test_gamma_1_throughout_is_as_near_to_the_order_as_the_late_half_alone(name):
    """Four draws of 400: the differences of the distances, from the same noises to the same points of the order. On the
    page's classes the two clouds are one; on the four blobs the plain one is less sure than the order, the late one
    surer."""
    mixture, far, sure = MIXTURES[name], [], []
    order = GridDensity(lambda x: combined(mixture, 4.0, x, 1e-12), -8, 10, 240)
    pair, asked = mixture.pair(SCHEDULE, 1), order.expectation(lambda x: mixture.class_log_prob(x, 1).exp())
    for seed in range(4):
        start, target = torch.randn(400, 2, generator=random(30 + seed), dtype=F64), order.sample(400, random(seed))
        for scale in (1.0, lambda t: 4.0 if t < 0.5 else 1.0, lambda t: 4.0 if t > 0.5 else 1.0):
            kernel = kernels.heun(guidance.classifier_free(pair, scale), SCHEDULE)
            end = draw(kernel, start, time_grid(40, start=0.99))
            far.append(metrics.wasserstein(end, target))
            sure.append(mixture.class_log_prob(end, 1).exp().mean() - asked)
    plain, late, early = torch.tensor(far).view(4, 3).T
    assert float((late - plain).mean()) > -0.05 and float((plain - late).mean()) > -0.05
    assert float((early - torch.maximum(plain, late)).min()) > 0.7
    if name == "four blobs":
        plain_sure, late_sure, _ = torch.stack(sure).view(4, 3).T
        assert float(plain_sure.max()) < -0.03 and float(late_sure.min()) > 0.01


# ---- Deeper


@pytest.mark.equation("eq-source-clock")
@pytest.mark.parametrize("schedule", [cosine(), vp_linear()], ids=["cosine", "vp_linear"])
def test_the_rate_in_t_is_the_rate_in_q_times_the_speed_of_q(schedule):
    made = names_of("17", "eq-source-clock")["made_in_t"]
    x = points_of(PAGE, 0.5, 40)
    for t in (0.2, 0.5, 0.8):
        q = [float((schedule.sigma(t + k * 1e-5) / schedule.alpha(t + k * 1e-5)) ** 2) for k in (-1, 0, 1)]
        found = made(PAGE, 1, 3.0, schedule, schedule.alpha(t) * x, torch.tensor(t, dtype=F64))
        slope = autograd(lambda p, q=q: PAGE.noised(1.0, q[1] ** 0.5).class_log_prob(p, 1), x)
        wanted = 3.0 * slope.square().sum(1) * (q[2] - q[0]) / 2e-5
        assert float((found - wanted).abs().max()) < 1e-5 * float(1 + wanted.max())


@pytest.mark.equation("eq-normaliser-rate")
def test_the_normaliser_is_the_film_s_mean_squared_gradient_summed_over_levels_and_not_the_theatre_s():
    """Two unequal Gaussians on the line, where the film's means are closed forms, and so are the theatre's."""
    log_normaliser = names_of("17", "eq-normaliser-rate")["log_normaliser"]
    C, U, m, gamma = 0.7, 1.9, 0.6, 2.5
    qs = torch.cat([torch.zeros(1, dtype=F64), torch.logspace(-4, 6, 6000, dtype=F64)])
    precision = gamma / (C + qs) + (1 - gamma) / (U + qs)
    mean = gamma * m / (C + qs) / precision
    a, b = -1 / (C + qs) + 1 / (U + qs), m / (C + qs)
    film = list((a * mean + b) ** 2 + a**2 / precision)
    axis = torch.linspace(-30, 30, 60_001, dtype=F64)
    log = gamma * (-((axis - m) ** 2) / (2 * C) - math.log(C) / 2) + (1 - gamma) * (
        -(axis**2) / (2 * U) - math.log(U) / 2
    )
    truth = float(torch.trapezoid((log - math.log(2 * math.pi) / 2).exp(), axis).log())
    assert abs(float(log_normaliser(film, gamma, qs)) - truth) < 1e-4
    var = C**gamma * U ** (1 - gamma)  # of what comes, for a class around 0; at q, by the same exponents
    theatre = list(a**2 * var * ((C + qs) / C) ** gamma * ((U + qs) / U) ** (1 - gamma))
    centred = [log_normaliser(crowd, gamma, qs) for crowd in (list(a**2 / precision), theatre)]
    truth = -((1 - gamma) * math.log(U) + gamma * math.log(C) + math.log(gamma / C + (1 - gamma) / U)) / 2
    assert abs(float(centred[0]) - truth) < 1e-4 and float(centred[1]) < 0.8 * truth


def test_the_likelihood_by_the_guided_ode_is_that_of_what_comes():
    """Divergence summed along the package's flow at two centres, against the formula; far from the order's."""
    centres, steps = PAGE.means[1:3], torch.linspace(0, 9, 301, dtype=F64) ** 2
    x, log = centres, torch.zeros(2, dtype=F64)
    for q, higher in zip(steps[:-1], steps[1:], strict=True):
        middle, h = (q + higher) / 2, higher - q
        noisy = PAGE.noised(1.0, middle**0.5)
        push = lambda x, n=noisy: -(n.score(x) + 4.0 * n.class_gradient(x, 1)) / 2  # noqa: E731
        half = x + h / 2 * push(x)
        log = log - h * plane.jacobian(push, half).diagonal(dim1=1, dim2=2).sum(1)
        x = x + h * push(half)
    top = steps[-1]
    log = -log - x.square().sum(1) / (2 * top) - torch.log(2 * torch.pi * top)
    levels = (
        torch.cat([torch.linspace(0, 1, 200, dtype=F64)[:-1], torch.logspace(0, math.log10(9), 200, dtype=F64)]) ** 2
    )
    levels[-1] = top
    found = path.sampled_log_prob(PAGE, 1, 4.0, centres, levels)
    assert float((found - log).abs().max()) < 0.05
    assert float((ordered(PAGE, 4.0).log_prob(centres) - found)[0]) > 3


def test_in_a_row_of_blobs_the_outermost_gets_three_quarters_at_4_and_all_at_8_and_is_ordered_a_fifth():
    row = GaussianMixture([0.5] + [0.1] * 5, torch.tensor([[-2.5], [0.0], [1.0], [2.0], [3.0], [4.0]], dtype=F64),
                          [[[0.25]]] + [[[0.02]]] * 5, [0, 1, 1, 1, 1, 1])  # fmt: skip
    axis = torch.linspace(-5, 8, 26_001, dtype=F64)[:, None]
    start = torch.randn(800, 1, generator=random(17), dtype=F64)
    for gamma, share in ((4.0, 0.78), (8.0, 1.0)):
        guided = guidance.classifier_free(row.pair(SCHEDULE, 1), gamma)
        ends = draw(kernels.heun(guided, SCHEDULE), start, time_grid(100, SCHEDULE, start=0.999, end=0.01))
        assert abs(float(metrics.mode_weights(row, ends)[5]) - share) < 0.045
        weights = (row.log_prob(axis) + gamma * row.class_log_prob(axis, 1)).softmax(0)
        order = torch.stack([row_part(row, k).class_log_prob(axis, k).exp() @ weights for k in range(6)])
        assert float((order[1:] - 0.2).abs().max()) < 2e-3


def test_with_another_class_at_either_end_of_the_row_all_come_to_the_middle_blob():
    places = torch.tensor([[-2.5], [0.0], [1.0], [2.0], [3.0], [4.0], [6.5]], dtype=F64)
    row = GaussianMixture([0.25] + [0.1] * 5 + [0.25], places, [[[0.25]]] + [[[0.02]]] * 5 + [[[0.25]]],
                          [0, 1, 1, 1, 1, 1, 0])  # fmt: skip
    start = torch.randn(500, 1, generator=random(17), dtype=F64)
    for gamma, low in ((4.0, 0.88), (8.0, 0.999)):
        guided = guidance.classifier_free(row.pair(SCHEDULE, 1), gamma)
        ends = draw(kernels.heun(guided, SCHEDULE), start, time_grid(100, SCHEDULE, start=0.999, end=0.01))
        assert float(metrics.mode_weights(row, ends)[3]) > low


def row_part(mixture, k):
    """The mixture with one class a component."""
    return GaussianMixture(mixture.weights, mixture.means, mixture.covs)


@pytest.mark.equation("eq-overshoot-power")
def test_the_overshoot_falls_with_the_separation_to_the_power_of_minus_rho_squared():
    """By paired runs at gamma and at 1, with another gamma and other weights than the page."""
    power_law = names_of("17", "eq-overshoot-power")["power_law"]
    for rho in (0.0, 0.8, 1.0):
        off = []
        for D in (10.0, 20.0):
            two = GaussianMixture([0.7, 0.3], torch.tensor([[-D / 2], [D / 2]], dtype=F64), [[[1.0]], [[1.0]]])
            x = 300 * torch.randn(300, 1, generator=random(18), dtype=F64)
            guided, plain = (walked(two, g, rho, falling(110, 9e4, 1e-2), x, random(19)) for g in (5.0, 1.0))
            off.append(float((guided - plain).mean()))
        assert abs(off[0] / off[1] - power_law(10.0, rho) / power_law(20.0, rho)) < 0.25
        assert abs(power_law(7.0, rho, 2.0) - 2.0 * 7.0 ** -(rho**2)) < 1e-12


def test_for_a_rare_class_the_overshoot_is_larger_and_its_power_the_same():
    for rho, common in ((0.0, 1.23), (1.0, 0.28)):  # common: the page's, where the class has four in ten, at D = 8
        off = []
        for D in (8.0, 16.0):
            two = GaussianMixture([0.95, 0.05], torch.tensor([[-D / 2], [D / 2]], dtype=F64), [[[1.0]], [[1.0]]])
            x = 300 * torch.randn(300, 1, generator=random(18), dtype=F64)
            guided, plain = (walked(two, g, rho, falling(160, 9e4, 1e-2), x, random(19)) for g in (3.0, 1.0))
            off.append(float((guided - plain).mean()))
        assert off[0] > 1.5 * common and abs(off[0] / off[1] - 2**rho) < 0.1


def test_across_the_means_both_scores_are_equal_so_the_problem_is_one_dimensional():
    mu = torch.tensor([0.6, -0.3, 0.8, 0.2], dtype=F64)
    two = GaussianMixture([0.6, 0.4], torch.stack([-mu, mu]), torch.eye(4, dtype=F64).expand(2, 4, 4))
    x = torch.randn(50, 4, generator=random(20), dtype=F64)
    gradient = two.noised(1.0, 0.9).class_gradient(x, 1)
    along = (gradient @ mu)[:, None] * mu / (mu @ mu)
    assert float((gradient - along).abs().max()) < 1e-12


def test_two_classes_eight_apart_are_ordered_as_they_are_and_ddim_moves_them_by_two_and_a_half_deviations():
    two = GaussianMixture([0.6, 0.4], torch.tensor([[-4.0], [4.0]], dtype=F64), [[[1.0]], [[1.0]]])
    axis = torch.linspace(-6, 14, 8001, dtype=F64)[:, None]
    logs = [(two.log_prob(axis) + g * two.class_log_prob(axis, 1)).log_softmax(0) for g in (8.0, 1.0)]
    assert abs(float(logs[0].exp() @ (logs[0] - logs[1]).nan_to_num()) - 8.8e-5) < 2e-6
    x = 300 * torch.randn(800, 1, generator=random(22), dtype=F64)
    moved = float(walked(two, 8.0, 0.0, falling(200, 9e4, 1e-2), x, random(23)).mean()) - 4.0
    assert 2.5 < moved < 3.0


@pytest.mark.nightly
def test_guided_digits_move_on_from_the_middle_of_all_and_lose_spread_within_their_class():
    """Four hundred digits of another seed and another sampler's steps."""
    from difflesson.digits import checkpoints, sampling
    from difflesson.digits import metrics as digit_metrics

    network, judge = (checkpoints.load(name).network for name in ("denoiser", "judge"))
    wanted = torch.arange(400) % 10
    real, _ = digit_metrics.load_reference()
    found, right = {}, torch.ones(400, dtype=torch.bool)
    for gamma in (1.0, 2.0, 4.0):
        digits = sampling.generate(network, wanted, gamma, seed=31, steps=12, sampler="ddim")
        found[gamma], log_probs = digit_metrics.judged(judge, digits)
        right &= log_probs.argmax(1) == wanted
    means = torch.stack([found[1.0][wanted == y].mean(0) for y in range(10)])[wanted]
    ways = means - real.mean
    spreads = {}
    for gamma, x in found.items():
        shift = (((x - found[1.0]) * ways).sum(1) / ways.square().sum(1))[right]
        own = torch.stack([x[wanted == y].mean(0) for y in range(10)])[wanted]
        spreads[gamma] = float((x - own).square().sum(1)[right].mean())
        assert gamma == 1 or float(shift.mean()) > 3 * float(shift.std() / len(shift) ** 0.5)
    assert spreads[4.0] < spreads[2.0] < 0.6 * spreads[1.0]
