"""What chapter 11 claims about classifier-free guidance, without its cells: by recursions, Bayes and quadrature."""

import math

import pytest
import torch
from torch import Tensor

from difflesson import exercises, guidance, kernels, plane
from difflesson.denoiser import Pair, network_pair
from difflesson.mixture import GaussianMixture
from difflesson.schedule import cosine, vp_linear
from tests.oracles.chapter_cells import names_of

F64 = torch.float64
MIXTURE = plane.four_blobs()


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 2, generator=random(seed), dtype=F64)


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


def test_for_a_narrower_gaussian_the_true_variance_of_a_step_lies_between_the_two_which_become_the_same():
    """Data N(0, C), by the joint Gaussian of z at both levels: small < truth < large, and large at C = 1."""
    schedule = cosine()
    for t, s in ((0.9, 0.5), (0.5, 0.3), (0.5, 0.499)):
        alpha, sigma, alpha_s, sigma_s = (float(f(time)) for time in (t, s) for f in (schedule.alpha, schedule.sigma))
        ratio = alpha / alpha_s
        large, var = sigma**2 - ratio**2 * sigma_s**2, lambda c: alpha_s**2 * c + sigma_s**2  # noqa: B023
        small = large * sigma_s**2 / sigma**2
        truth = [var(c) - (ratio * var(c)) ** 2 / (alpha**2 * c + sigma**2) for c in (0.0, 0.3, 1.0)]  # noqa: B023
        assert abs(truth[0] - small) < 1e-12 and small < truth[1] < large and abs(truth[2] - large) < 1e-12
    assert small / large > 0.99  # of the last, the shortest step
    small = kernels.posterior_variance(schedule, torch.tensor(t), torch.tensor(s))
    assert abs(float(small) / (large * sigma_s**2 / sigma**2) - 1) < 1e-4


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


def test_proof_the_slope_of_the_noisy_density_is_minus_the_average_noise_times_the_density_over_sigma():
    """In one dimension by quadrature over clean points; the slope of the Gaussian kernel by autograd."""
    data = GaussianMixture([0.7, 0.3], torch.tensor([[-1.0], [1.5]], dtype=F64), [[[0.3]], [[0.6]]])
    alpha, sigma = 0.8, 0.6
    clean = torch.linspace(-9, 9, 4001, dtype=F64)[:, None]
    prior = data.log_prob(clean).exp() * 18 / 4000
    for place in (-0.4, 1.1):
        x = torch.tensor(place, dtype=F64, requires_grad=True)
        noise = (x - alpha * clean[:, 0]) / sigma
        bell = torch.exp(-(noise**2) / 2) / (sigma * math.sqrt(2 * math.pi))
        (slope,) = torch.autograd.grad((prior * bell).sum(), x)
        noise, bell = noise.detach(), bell.detach()
        assert abs(float(slope + (prior * bell * noise).sum() / sigma)) < 1e-10
        one = torch.tensor([[place]], dtype=F64)
        average = (prior * bell * noise).sum() / (prior * bell).sum()
        assert abs(float(average + sigma * data.noised(alpha, sigma).score(one)[0, 0])) < 1e-8


def test_the_average_of_class_1_is_the_same_where_nearly_all_were_class_1_and_farther_from_class_0_elsewhere():
    """Clean points that explain x, by weights: strike those of class 0 off the list, and look at the averages."""
    schedule, t = cosine(), torch.tensor(0.5, dtype=F64)
    clean, label = MIXTURE.sample(20_000, random(60))
    x = schedule.add_noise(*MIXTURE.sample(300, random(61))[:1], normal(300, 62), t)
    noise = (x[:, None] - schedule.alpha(t) * clean) / schedule.sigma(t)
    weights = (-noise.square().sum(2) / 2).softmax(1)
    all_of, ones, zeros = (
        (kept := weights * where) @ clean / kept.sum(1, keepdim=True) for where in (label >= 0, label == 1, label == 0)
    )
    foreign, moved = weights @ (label == 0).double(), (ones - all_of).norm(dim=1)
    assert float(moved[foreign < 0.01].max()) < 0.05 < 0.5 < float(moved[foreign > 0.5].min())
    many = foreign > 0.5
    assert bool(((ones - zeros).norm(dim=1) > 1.5 * (all_of - zeros).norm(dim=1))[many].all())
    difference = MIXTURE.pair(schedule, 1).uncond(x, t).eps - MIXTURE.pair(schedule, 1).cond(x, t).eps
    scale = schedule.alpha(t) / schedule.sigma(t)
    assert float((difference - scale * (ones - all_of)).norm(dim=1).median()) < 0.02


def test_a_little_more_noise_adds_half_the_laplacian_and_a_move_along_the_score_takes_the_laplacian_away():
    """d p_q / dq by difference quotients of the density of x / alpha; the flow's divergence by autograd."""
    q, h = 0.8, 1e-4
    x = normal(20, 63).requires_grad_()

    def density(extra):
        return MIXTURE.noised(1.0, math.sqrt(q + extra)).log_prob(x).exp()

    def divergence(flow):
        return sum(torch.autograd.grad(flow[:, k].sum(), x, retain_graph=True)[0][:, k] for k in (0, 1))

    (slope,) = torch.autograd.grad(density(0.0).sum(), x, create_graph=True)
    laplacian = divergence(slope).detach()
    more = ((density(h) - density(-h)) / (2 * h)).detach()
    assert float((more - laplacian / 2).abs().max()) < 1e-6
    flow = density(0.0)[:, None] * MIXTURE.noised(1.0, math.sqrt(q)).score(x)
    assert float((divergence(flow).detach() - laplacian).abs().max()) < 1e-10


@pytest.mark.parametrize("name, rho", [("ddim", 0.0), ("ddpm", 1.0), ("reverse_sde", 2.0)])
def test_no_noise_takes_half_a_score_the_usual_noise_a_whole_one_and_twice_of_it_five_halves(name, rho):
    """A short step of each sampler from q to q - dq, in x / alpha: c dq times the score, and variance rho^2 dq."""
    schedule, t, s = cosine(), torch.tensor(0.5, dtype=F64), torch.tensor(0.5 - 1e-6, dtype=F64)
    denoiser, x = MIXTURE.denoiser(schedule), normal(20, 64)
    make = {"ddim": kernels.ddim, "ddpm": kernels.ddpm, "reverse_sde": lambda d, k: kernels.reverse_sde(d, k, rho=2.0)}
    step = make[name](denoiser, schedule)(x, t, s)
    q, q_s = ((schedule.sigma(time) / schedule.alpha(time)) ** 2 for time in (t, s))
    score = MIXTURE.noised(1.0, q.sqrt()).score(x / schedule.alpha(t))
    move = (step.mean / schedule.alpha(s) - x / schedule.alpha(t)) / (q - q_s)
    pull = {0.0: 0.5, 1.0: 1.0, 2.0: 2.5}[rho]
    assert float((move - pull * score).norm(dim=1).max() / score.norm(dim=1).max()) < 1e-3
    added = torch.as_tensor(step.var) / schedule.alpha(s) ** 2 / (q - q_s)
    assert abs(float(added.mean()) - rho**2) < 1e-3


def test_the_rate_of_the_noisiest_sampler_explodes_at_1_and_not_at_0_99():
    schedule = cosine()
    assert float(schedule.beta(1.0)) > 50_000 > 1000 > float(schedule.beta(0.99))


@pytest.mark.parametrize("gamma, same", [(0.0, True), (1.0, True), (0.5, False), (3.0, False)])
def test_noising_a_sharpened_density_is_sharpening_a_noised_one_only_at_gamma_0_and_1(gamma, same):
    """Two bells on the line, one a class, by a sum over clean points."""
    axis = torch.linspace(-12, 12, 1201, dtype=F64)[:, None]
    data = GaussianMixture([0.7, 0.3], torch.tensor([[-1.0], [1.5]], dtype=F64), [[[0.3]], [[0.6]]], labels=[0, 1])

    def sharp(mixture):
        return (mixture.log_prob(axis) + gamma * mixture.class_log_prob(axis, 1)).softmax(0)

    noise = torch.exp(-((axis - axis.T) ** 2) / (2 * 0.5))
    noised_sharp = (noise / noise.sum(1, keepdim=True)) @ sharp(data)
    apart = (noised_sharp - sharp(data.noised(1.0, math.sqrt(0.5)))).abs().sum() / 2
    assert (float(apart) < 1e-6) == same and (float(apart) > 0.005) != same


def test_langevin_dynamics_leaves_alone_the_density_whose_score_it_follows_and_draws_others_towards_it():
    """Variances under N(0, S): half rho^2 times the score, and noise of variance rho^2 dq; small steps."""
    goal, rho, dq = 0.7, 2.0, 1e-4

    def stepped(variance):
        return variance * (1 - rho**2 * dq / (2 * goal)) ** 2 + rho**2 * dq

    assert abs(stepped(goal) - goal) < 1e-6
    for variance in (0.2, 1.5):
        assert abs(stepped(variance) - goal) < abs(variance - goal) * (1 - dq)
    for weak, strong in ((1.0, 2.0),):  # more noise, more correction
        pulls = [abs(1.5 * (1 - r**2 * dq / (2 * goal)) ** 2 + r**2 * dq - goal) for r in (weak, strong)]
        assert pulls[1] < pulls[0]


# ---- the line through two answers


@pytest.mark.equation("eq-cfg")
def test_swapped_branches_guide_with_one_minus_gamma():
    schedule, x, t = cosine(), normal(30), torch.tensor(0.5, dtype=F64)
    pair = MIXTURE.pair(schedule, 1)
    swapped = guidance.classifier_free(Pair(pair.uncond, pair.cond), 3.0)(x, t)
    meant = guidance.classifier_free(pair, -2.0)(x, t)
    assert float((swapped.eps - meant.eps).abs().max()) < 1e-12


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


@pytest.mark.equation("eq-cfg")
def test_gamma_0_is_without_the_label_1_with_it_between_interpolates_above_extrapolates_below_walks_away():
    schedule, x, t = cosine(), normal(30, 65), torch.tensor(0.4, dtype=F64)
    pair = MIXTURE.pair(schedule, 1)
    cond, uncond = pair.cond(x, t).eps, pair.uncond(x, t).eps
    line, length = cond - uncond, (cond - uncond).norm(dim=1)
    for gamma in (-1.0, 0.0, 0.4, 1.0, 3.0):
        walked = guidance.classifier_free(pair, gamma)(x, t).eps - uncond
        along = (walked * line).sum(1) / length**2  # 0 at the first answer, 1 at the second
        assert float((along - gamma).abs().max()) < 1e-9
        assert float((walked - along[:, None] * line).abs().max()) < 1e-12


def test_a_sampler_goes_against_the_guessed_noise():
    """In x / alpha a step without noise is a step along -eps."""
    schedule, x, t, s = cosine(), normal(30, 66), torch.tensor(0.5), torch.tensor(0.4)
    denoiser = MIXTURE.denoiser(schedule)
    move = kernels.ddim(denoiser, schedule)(x, t, s).mean / schedule.alpha(s) - x / schedule.alpha(t)
    assert float(torch.cosine_similarity(move, -denoiser(x, t).eps).min()) > 1 - 1e-6


def test_at_gamma_3_the_classifier_is_heard_three_times_at_every_noise_level_also_where_class_0_is_possible():
    """At t = 0.9 every noisy point of class 1 could be of class 0, and is pushed to where that is less probable."""
    schedule, pair = cosine(), MIXTURE.pair(cosine(), 1)
    for t in (0.9, 0.5, 0.1):
        t = torch.tensor(t, dtype=F64)
        x = schedule.add_noise(MIXTURE.given(1).sample(1000, random(67))[0], normal(1000, 68), t)
        noisy = MIXTURE.noised(schedule.alpha(t), schedule.sigma(t))
        added = pair.uncond(x, t).eps - guidance.classifier_free(pair, 3.0)(x, t).eps
        heard = 3 * schedule.sigma(t) * noisy.class_gradient(x, 1)
        assert float((added - heard).abs().max()) < 1e-9
        foreign = noisy.class_log_prob(x, 0).exp()
        assert (float(foreign.min()) > 0.2) == (float(t) == 0.9)
        assert bool(((added * noisy.class_gradient(x, 0)).sum(1) <= 0).all())


def test_a_field_without_curl_need_not_be_a_classifier_s():
    """f(x) = x is a gradient, but what it promises has no bound, and log p(y | x) is at most 0."""
    assert float(plane.curl(lambda x: x, normal(9, 69)).abs().max()) == 0
    u = (torch.arange(1000, dtype=F64)[:, None] + 0.5) / 1000
    ends = torch.tensor([[10.0, 0.0], [100.0, 0.0]], dtype=F64)
    gains = [float((u * end @ end).mean()) for end in ends]
    assert gains[1] > 99 * gains[0] > 99 * 49


def test_the_arrows_of_one_class_leave_a_constant_open_and_those_of_both_give_the_value():
    """Half of class 1 renamed at random is less probable with the same arrows; p_1 a_1 + p_0 a_0 = 0 says how much."""
    x, noisy = 1.5 * normal(9, 70), MIXTURE.noised(0.7, math.sqrt(0.51))
    weights, labels = [*MIXTURE.weights[:2], *MIXTURE.weights[2:] / 2, *MIXTURE.weights[2:] / 2], [0, 0, 1, 1, 2, 2]
    places = [0, 1, 2, 3, 2, 3]
    renamed = GaussianMixture(weights, MIXTURE.means[places], MIXTURE.covs[places], labels).noised(0.7, math.sqrt(0.51))
    assert float((renamed.class_gradient(x, 1) - noisy.class_gradient(x, 1)).abs().max()) < 1e-10
    fallen = noisy.class_log_prob(x, 1) - renamed.class_log_prob(x, 1)
    assert float((fallen - math.log(2)).abs().max()) < 1e-10
    ones, zeros = (noisy.class_gradient(x, y).norm(dim=1) for y in (1, 0))
    assert float((zeros / (zeros + ones) - noisy.class_log_prob(x, 1).exp()).abs().max()) < 1e-10


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
