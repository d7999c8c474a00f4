"""What chapter 05 claims about dice, errors and steps, each on other data, seeds or by another way than its cells."""

import math

import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from difflesson import curves, kernels, likelihood, ode, plane
from difflesson.denoiser import network_denoiser
from difflesson.digits import runs
from difflesson.mixture import GaussianMixture
from difflesson.samplers import draw, sample, time_grid
from difflesson.schedule import cosine, from_betas, vp_linear
from difflesson.steps import Gaussian
from tests.oracles.chapter_cells import names_of
from tests.oracles.mixtures import FOUR, THREE

F64 = torch.float64
BLOBS, SCHEDULE, OTHER = plane.four_blobs(), vp_linear(), FOUR.mixture()
FREE = BLOBS.denoiser(SCHEDULE)


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(count: int, seed: int = 0, dim: int = 2) -> Tensor:
    return torch.randn(count, dim, generator=random(seed), dtype=F64)


def grid(steps: int) -> Tensor:
    return time_grid(steps, SCHEDULE, end=0.001)


def at(t: float, data: GaussianMixture = BLOBS) -> GaussianMixture:
    return data.noised(SCHEDULE.alpha(t), SCHEDULE.sigma(t))


def misfit(x: Tensor, truth: GaussianMixture, directions: int = 9) -> float:
    """Largest gap between distribution functions, over directions that are not the page's: looked up point by point."""
    worst = 0.0
    for k in range(directions):
        axis = torch.tensor(
            [math.cos(0.1 + k * math.pi / directions), math.sin(0.1 + k * math.pi / directions)]
        ).double()
        values = (x @ axis).sort().values
        cdf = torch.zeros_like(values)
        for weight, mean, cov in zip(truth.weights, truth.means, truth.covs, strict=True):
            cdf += weight * torch.special.ndtr((values - mean @ axis) / (axis @ cov @ axis).sqrt())
        steps = torch.arange(len(x) + 1).double() / len(x)
        worst = max(worst, float((cdf - steps[:-1]).max()), float((steps[1:] - cdf).max()))
    return worst


def believing(data: GaussianMixture, shift: Tensor, first: float, last: float):
    right = data.denoiser(SCHEDULE)
    wrong = GaussianMixture(data.weights, data.means + shift, data.covs).denoiser(SCHEDULE)
    return lambda x, t: (wrong if first <= float(t) <= last else right)(x, t)


def gaussian(c: float) -> GaussianMixture:
    return GaussianMixture([1.0], torch.zeros(1, 1, dtype=F64), torch.tensor([[[c]]], dtype=F64))


# ---- a shake and its antidote


@pytest.mark.equation("eq-probability-flow")
def test_the_flow_changes_the_density_as_time_does():
    change_by, h = names_of("05", "eq-probability-flow")["change_by"], 1e-5
    for data, t in ((OTHER, 0.3), (THREE.mixture(), 0.7)):
        x, level = normal(20, 1), at(t, data)
        flow = ode.probability_flow(data.denoiser(SCHEDULE), SCHEDULE)
        change = (at(t + h, data).log_prob(x) - at(t - h, data).log_prob(x)) / (2 * h)
        assert float((change_by(lambda x, flow=flow, t=t: flow(x, t), x, level) - change).abs().max()) < 1e-5


@pytest.mark.equation("eq-reverse-sde")
def test_a_shake_and_its_antidote_leave_the_density_alone_on_a_grid():
    """A short Langevin step at one noise level, as a kernel on a fine grid of a line: the density comes out again."""
    level = GaussianMixture([0.7, 0.3], torch.tensor([[-1.0], [1.5]], dtype=F64), [[[0.3]], [[0.6]]])
    axis = torch.linspace(-6, 6, 2401, dtype=F64)[:, None]
    p, errors = level.log_prob(axis).exp(), []
    for step in (0.02, 0.01):
        for wrong in (1.0, 2.0):  # the whole antidote instead of half a shake's: wrong
            mean = axis + step / 2 * wrong * level.score(axis)
            kernel = torch.exp(-((axis.T - mean) ** 2) / (2 * step)) / math.sqrt(2 * math.pi * step)
            errors.append(float((p @ kernel * 0.005 - p).abs().max()) / step)
    right, bad, right_half, bad_half = errors
    assert right_half < 0.6 * right and right_half < 0.02 and bad_half > 0.05 and bad_half > 0.9 * bad


@pytest.mark.equation("eq-reverse-sde")
def test_every_dose_samples_the_mixture_at_every_noise_level():
    """Level 1 % for the nine looks together, by Massart's bound summed over the directions; 4,000 points."""
    limit = math.sqrt(math.log(2 * 9 * 9 / 0.01) / (2 * 4000))
    for rho in (0.0, 0.7, 1.5):
        kernel = kernels.reverse_sde(OTHER.denoiser(SCHEDULE), SCHEDULE, rho)
        run = list(sample(kernel, normal(4000, 2), grid(200), random(3)))
        for k in (60, 130, 200):
            assert misfit(run[k], at(float(grid(200)[k]), OTHER)) < limit


def test_the_misfit_of_true_points_keeps_massarts_bound_and_sees_a_small_shift():
    count, level = 1000, 0.1
    limit = math.sqrt(math.log(2 * 9 / level) / (2 * count))
    exceeded = sum(misfit(BLOBS.sample(count, random(50 + k))[0], BLOBS) > limit for k in range(60))
    assert exceeded <= 60 * level + 3 * math.sqrt(60 * level)
    assert misfit(BLOBS.sample(6000, random(4))[0] + torch.tensor([0.2, 0.0]), BLOBS) > 0.04


def test_without_dice_one_start_has_one_end_and_with_dice_many():
    same = torch.tensor([[0.9, -0.4]], dtype=F64).expand(50, 2)
    spread = [
        float(draw(kernels.reverse_sde(FREE, SCHEDULE, rho), same, grid(80), random(5)).std(0).min())
        for rho in (0.0, 1.0, 2.0)
    ]
    assert spread[0] == 0 and min(spread[1:]) > 0.5


# ---- whom to believe


@pytest.mark.equation("eq-correlation-clock")
def test_the_clock_is_the_correlation_and_its_rate_is_its_derivative():
    correlation, h = names_of("05", "eq-correlation-clock")["correlation"], 1e-5
    clean, noise = 0.6 * normal(200_000, 6, 1), normal(200_000, 7, 1)
    for schedule in (cosine(), vp_linear(0.3, 8.0)):
        r, rate = correlation(0.4, torch.tensor(0.36, dtype=F64), schedule)
        pair = torch.cat([clean, schedule.add_noise(clean, noise, 0.4)], 1).T
        assert abs(float(torch.corrcoef(pair)[0, 1] - r)) < 4.5 * float(1 - r**2) / 200_000**0.5
        later, sooner = (correlation(0.4 + k * h, torch.tensor(0.36, dtype=F64), schedule)[0] for k in (1, -1))
        assert abs(float((later - sooner) / (2 * h) - rate)) < 1e-6 and float(rate) < 0


def end_of_the_difference(b, rho: float, c: float, off: float, first: float) -> tuple[float, float]:
    """SciPy's solution, in time, of the distance of two runs; and the clock at the start."""

    def width(t):
        return float(SCHEDULE.alpha(t) ** 2 * c + SCHEDULE.sigma(t) ** 2)

    def clock(t):
        return float(SCHEDULE.alpha(t)) * math.sqrt(c / width(t))

    def rate(t, distance):
        dose = 1 + rho**2
        pull = (1 - dose / width(t)) * distance + dose * float(SCHEDULE.alpha(t)) / width(t) * b(clock(t))
        return -float(SCHEDULE.beta(t)) / 2 * pull

    start = [off * math.sqrt(width(first))]
    return float(solve_ivp(rate, (first, 0.0), start, rtol=1e-10, atol=1e-12, max_step=0.01).y[0, -1]), clock(first)


@pytest.mark.equation("eq-error-weights")
@pytest.mark.parametrize("rho", [0.0, 0.6, 1.0, 2.0])
def test_the_error_of_a_sample_is_the_weighted_error_of_its_guesses(rho):
    moved_by, c = names_of("05", "eq-error-weights")["moved_by"], 1.7
    for off, first in ((0.0, 1.0), (0.9, 0.6)):
        seen, r_start = end_of_the_difference(lambda r: math.cos(4 * r) + 0.3, rho, c, off, first)
        edges = torch.linspace(r_start, 1, 4001, dtype=F64)
        b = torch.cos(4 * (edges[1:] + edges[:-1]) / 2) + 0.3
        assert abs(float(moved_by(b, edges, off, c, rho)) - seen) < 1e-6


@pytest.mark.equation("eq-error-weights")
def test_guesses_wrong_alike_at_all_levels_are_mended_by_no_dose_and_all_weights_add_up_to_one():
    moved_by, edges = names_of("05", "eq-error-weights")["moved_by"], torch.linspace(0, 1, 11, dtype=F64)
    for rho in (0.0, 0.5, 1.0, 3.0):
        assert abs(float(moved_by(torch.full((10,), 0.7, dtype=F64), edges, 0.0, 1.3, rho)) - 0.7) < 1e-12
    shift = torch.tensor([0.0, 0.4], dtype=F64)
    for rho in (0.0, 1.5):
        told = believing(OTHER, shift, 0.0, 1.0), OTHER.denoiser(SCHEDULE)
        wrong, right = (draw(kernels.reverse_sde(d, SCHEDULE, rho), normal(500, 8), grid(100), random(9)) for d in told)
        assert abs(float((wrong - right)[:, 1].mean()) / 0.4 - 1) < 0.04


def test_beliefs_off_in_the_variance_have_the_squared_weights():
    """The variance of a run by SciPy, in time, for a variance believed a little too large up to a reading."""
    c, small = 1.7, 1e-3

    def levels(t):
        alpha = float(SCHEDULE.alpha(t)) ** 2
        return alpha, alpha * c + 1 - alpha, float(SCHEDULE.beta(t))

    def variance_with(rho, error, until):
        def rate(t, var):
            alpha, width, beta = levels(t)
            said = width + error * alpha * (alpha * c / width <= until**2)
            return -beta * ((1 - (1 + rho**2) / said) * var + rho**2)

        stop = float(SCHEDULE.time(math.log(until**2 / (1 - until**2) / c)))  # r^2 = c SNR / (1 + c SNR)
        middle = solve_ivp(rate, (1.0, stop + 1e-9), [levels(1.0)[1]], rtol=1e-10, atol=1e-12).y[0]
        return float(solve_ivp(rate, (stop - 1e-9, 0.0), [middle[-1]], rtol=1e-10, atol=1e-12).y[0, -1])

    for rho, until in ((0.0, 0.6), (1.0, 0.9), (1.5, 0.8)):
        weight = (variance_with(rho, small, until) - variance_with(rho, 0.0, until)) / small
        assert abs(weight - until ** (2 * (1 + rho**2))) < 0.01


def test_forgetting_takes_the_pull_and_the_dice():
    """A Gaussian in the plane and another mixture: both, the pull alone, the dice alone, at rho = 1.3.

    The pull alone shrinks a shift of the start with its whole cloud; the dice alone leave the shift, in a wider cloud.
    """
    shift, bell = (
        torch.tensor([0.2, 0.2], dtype=F64),
        GaussianMixture([1.0], torch.tensor([[1.0, -0.5]]).double(), torch.tensor([[[1.5, 0.4], [0.4, 0.8]]]).double()),
    )
    for data in (bell, OTHER):
        found = {}
        for part in ("both", "pull", "dice"):

            def kernel_of(denoiser, part=part):
                both, flow = (kernels.reverse_sde(denoiser, SCHEDULE, rho) for rho in (1.3, 0.0))

                def kernel(x, t, s):
                    mean = (flow if part == "dice" else both)(x, t, s).mean
                    return Gaussian(mean, torch.tensor(0.0) if part == "pull" else both(x, t, s).var)

                return kernel

            right, early = (kernel_of(believing(data, shift, first, 1.0)) for first in (2.0, 0.5))
            begin = normal(300, 43)
            runs = ((right, begin), (right, begin + 1), (early, begin))
            ends = [draw(k, start, grid(50), random(44)) for k, start in runs]
            found[part] = [float((ends[k] - ends[0]).mean()) for k in (1, 2)] + [float(ends[0].T.cov().trace())]
            again = draw(right, begin, grid(50), random(45))  # the same starts, other dice
            both = torch.stack([ends[0], again]) - torch.stack([ends[0], again]).mean(1, keepdim=True)
            alike = float((both[0] * both[1]).sum() / (both[0].square().sum() * both[1].square().sum()).sqrt())
            push = float(((ends[1] - ends[0]).mean(0) / ends[0].std(0)).square().sum().sqrt()) / 2**0.5
            found[part] += [push, alike]
        assert abs(found["both"][0]) < 0.03 and abs(found["pull"][0]) < 0.05 and found["dice"][0] > 0.6
        assert found["pull"][2] < 0.1 * found["both"][2] and found["dice"][2] > 3 * found["both"][2]
        assert max(found["pull"][1], found["both"][1]) < 0.03 and found["dice"][1] > 0.04
        least = 0.8 if data is bell else 0.25  # in its own width: on a mixture of many blobs the pull may forget a part
        assert found["pull"][3] > least and found["pull"][4] > 0.999
        assert found["both"][3] < 0.05 and abs(found["both"][4]) < 0.15 and 0.15 < found["dice"][3] < 0.6
        assert abs(found["dice"][4]) < 0.3
        if data is bell:
            assert abs(found["both"][1] - found["pull"][1]) < 1e-9 and abs(found["both"][0] - found["pull"][0]) < 1e-9


def shares(first: float, last: float, data: GaussianMixture = OTHER) -> list[float]:
    """Of an error made on a part of the way, in the samples, for four doses."""
    shift, found = torch.tensor([0.3, 0.1], dtype=F64), []
    for rho in (0.0, 0.7, 1.4, 2.0):
        told = believing(data, shift, first, last), data.denoiser(SCHEDULE)
        wrong, right = (
            draw(kernels.reverse_sde(d, SCHEDULE, rho), normal(800, 10), grid(90), random(11)) for d in told
        )
        found.append(float((wrong - right).mean(0) @ shift / (shift @ shift)))
    return found


def test_on_another_mixture_dice_forget_early_errors_and_enlarge_late_ones():
    early, late = shares(0.5, 1.0), shares(0.0, 0.15)
    assert early == sorted(early, reverse=True) and early[-1] < 0.1 * early[0]
    assert late == sorted(late) and late[-1] > 2 * late[0]


def test_on_the_blobs_late_errors_count_more_than_for_a_gaussian_and_those_of_the_middle_less():
    clock = [
        float(SCHEDULE.alpha(t) * (2.5 / (SCHEDULE.alpha(t) ** 2 * 2.5 + SCHEDULE.sigma(t) ** 2)).sqrt())
        for t in (0.2, 0.5)
    ]
    shift = torch.tensor([0.3, 0.0], dtype=F64)
    for rho in (0.5, 1.0):
        runs = {}
        for part, (first, last) in {"none": (2.0, 2.0), "middle": (0.2, 0.5), "late": (0.0, 0.2)}.items():
            kernel = kernels.reverse_sde(believing(BLOBS, shift, first, last), SCHEDULE, rho)
            runs[part] = draw(kernel, normal(1000, 12), grid(100), random(13))
        share = {part: float((x - runs["none"])[:, 0].mean()) / 0.3 for part, x in runs.items()}
        assert share["late"] > 1 - clock[0] ** (1 + rho**2) + 0.03
        assert share["middle"] < clock[0] ** (1 + rho**2) - clock[1] ** (1 + rho**2) - 0.03


def test_guesses_wrong_around_one_half_only_move_the_samples_alike_at_rho_0_and_1():
    moved_by, edges = names_of("05", "eq-error-weights")["moved_by"], torch.tensor([0.3, 0.7], dtype=F64)
    by_formula = [float(moved_by(torch.ones(1, dtype=F64), edges, 0.0, 1.0, rho)) for rho in (0.0, 1.0)]
    assert abs(by_formula[0] - by_formula[1]) < 1e-12 and abs(by_formula[0] - 0.4) < 1e-12
    shift, window, moved = torch.tensor([0.4, 0.0], dtype=F64), [], []
    for r in (0.8, 0.2):  # the clock of data of variance 2.5: r^2 = c SNR / (1 + c SNR)
        window.append(float(SCHEDULE.time(math.log(r**2 / (1 - r**2) / 2.5))))
    for rho in (0.0, 1.0):
        told = believing(BLOBS, shift, *window), FREE
        wrong, right = (
            draw(kernels.reverse_sde(d, SCHEDULE, rho), normal(1500, 46), grid(100), random(47)) for d in told
        )
        moved.append(float((wrong - right)[:, 0].mean()) / 0.4)
    assert abs(moved[0] - moved[1]) < 0.06 and min(moved) > 0.45


def test_a_wrong_start_is_kept_without_dice_and_forgotten_with_them():
    x, moved = normal(500, 14), []
    for rho in (0.0, 0.5, 1.0):
        kernel = kernels.reverse_sde(OTHER.denoiser(SCHEDULE), SCHEDULE, rho)
        ends = [draw(kernel, x + off, grid(100), random(15)) for off in (0.0, torch.tensor([0.0, 1.0]))]
        moved.append(float((ends[1] - ends[0])[:, 1].mean()))
    assert moved[0] > 0.5 and moved[0] > moved[1] > moved[2] and abs(moved[2]) < 0.03
    assert (
        abs(float(SCHEDULE.alpha(1.0)) ** 0.25 - 0.285) < 0.01
    )  # at rho = 1 / 2 a quarter of the start is still there


# ---- few steps


@pytest.mark.equation("eq-ddim")
def test_ddim_is_the_flow_solved_exactly_for_a_guess_that_is_held():
    held, x, t, s = normal(6, 16), normal(6, 17), 0.7, 0.2

    def holding(x, u):
        return FREE(x, u)._replace(x0=held, eps=(x - SCHEDULE.alpha(u) * held) / SCHEDULE.sigma(u))

    exact = ode.solve(ode.probability_flow(holding, SCHEDULE), x, t, s, tolerance=1e-10)
    assert float((kernels.ddim(holding, SCHEDULE)(x, t, s).mean - exact).abs().max()) < 1e-7
    euler = kernels.reverse_sde(holding, SCHEDULE, 0.0)(x, t, s).mean
    assert float((euler - exact).abs().max()) > 0.1


@pytest.mark.equation("eq-ddim")
def test_at_eta_one_ddim_is_the_posterior_of_ddpm_and_in_short_steps_eta_is_rho():
    x, t = normal(6, 18), torch.tensor(0.5, dtype=F64)
    guess = FREE(x, t)
    for s in (0.4, 0.499):
        alpha_ts, sigma_ts = SCHEDULE.transition(t, s)
        precision = 1 / SCHEDULE.sigma(s) ** 2 + (alpha_ts / sigma_ts) ** 2
        mean = (SCHEDULE.alpha(s) * guess.x0 / SCHEDULE.sigma(s) ** 2 + alpha_ts * x / sigma_ts**2) / precision
        step = kernels.ddim(FREE, SCHEDULE, 1.0)(x, t, s)
        assert float((step.mean - mean).abs().max()) < 1e-10 and abs(float(step.var * precision) - 1) < 1e-9
    for dose in (0.5, 1.5):
        ddim, sde = (
            kernel(x, t, 0.4999)
            for kernel in (kernels.ddim(FREE, SCHEDULE, dose), kernels.reverse_sde(FREE, SCHEDULE, dose))
        )
        assert (
            float(((ddim.mean - x) / (sde.mean - x) - 1).abs().max()) < 0.02
            and abs(float(ddim.var / sde.var) - 1) < 0.01
        )


@pytest.mark.equation("eq-dpmpp-2m")
def test_the_pages_multistep_is_the_packages_and_holds_the_middle_of_the_line():
    multistep = names_of("05", "eq-dpmpp-2m")["multistep"]
    ells = torch.tensor([-1.0, -0.6, 0.1], dtype=F64)
    sigma = torch.sigmoid(-2 * ells).sqrt()
    alpha = torch.sigmoid(2 * ells).sqrt()
    x, slope, level = normal(4, 19), normal(4, 20), normal(4, 21)
    guess, last = level + ells[1] * slope, level + ells[0] * slope
    middle = level + (ells[1] + ells[2]) / 2 * slope
    by_hand = sigma[2] * (x / sigma[1] + (ells[2].exp() - ells[1].exp()) * middle)
    assert float((multistep(x, guess, last, ells, alpha[2], sigma[2], sigma[1]) - by_hand).abs().max()) < 1e-12


def budgets_of(guesses, start: Tensor, names: dict, budgets: tuple[int, ...]) -> dict[str, list[float]]:
    return {
        name: [misfit(draw(kernel(guesses), start, grid(n), random(22)), at(0.001)) for n in budgets]
        for name, kernel in names.items()
    }


SAMPLERS = {
    "Euler": lambda d: kernels.reverse_sde(d, SCHEDULE, 0.0), "DDIM": lambda d: kernels.ddim(d, SCHEDULE),
    "2M": lambda d: kernels.dpmpp_2m(d, SCHEDULE), "DDPM": lambda d: kernels.ddpm(d, SCHEDULE),
    "rho 2": lambda d: kernels.reverse_sde(d, SCHEDULE, 2.0),
}  # fmt: skip


def test_with_exact_guesses_2m_needs_the_fewest_evaluations_and_dice_cost_some():
    found = budgets_of(FREE, normal(2000, 23), SAMPLERS, (12, 16))
    for k in (0, 1):
        assert found["2M"][k] < found["Euler"][k] < found["DDIM"][k] < found["DDPM"][k] < found["rho 2"][k]
    chance = sorted(misfit(BLOBS.sample(2000, random(100 + k))[0], BLOBS) for k in range(20))
    assert found["2M"][1] < chance[-1] and found["DDIM"][1] > chance[-1] and found["rho 2"][1] > 0.3


def test_with_guesses_wrong_early_ddpm_passes_2m_and_with_guesses_wrong_late_it_does_not():
    shift, start = torch.tensor([0.6, 0.0], dtype=F64), normal(2000, 24)
    some = {name: SAMPLERS[name] for name in ("2M", "DDPM", "rho 2")}
    early = budgets_of(believing(BLOBS, shift, 0.5, 1.0), start, some, (16, 96))
    late = budgets_of(believing(BLOBS, shift, 0.0, 0.1), start, some, (16, 96))
    assert early["2M"][0] < early["DDPM"][0] and early["2M"][1] > early["DDPM"][1] + 0.015 > early["rho 2"][1] + 0.015
    assert late["2M"][0] < late["DDPM"][0] and late["rho 2"][1] > late["2M"][1] + 0.03
    assert abs(early["2M"][0] - early["2M"][1]) < 0.02 and late["rho 2"][1] > 0.06


def two_m_with_dice(guesses):
    """Lu et al. (2022), SDE-DPM-Solver++(2M), as they write it."""
    last = []

    def kernel(x, t, s):
        if t == 1:
            last.clear()
        x_0, ells = guesses(x, t).x0, [SCHEDULE.log_snr(u) / 2 for u in (t, s)]
        h = ells[1] - ells[0]
        held = x_0 + h / (2 * last[0]) * (x_0 - last[1]) if last else x_0
        last[:] = [h, x_0]
        mean = SCHEDULE.sigma(s) / SCHEDULE.sigma(t) * torch.exp(-h) * x
        mean = mean + SCHEDULE.alpha(s) * (1 - torch.exp(-2 * h)) * held
        return Gaussian(mean, SCHEDULE.sigma(s) ** 2 * (1 - torch.exp(-2 * h)))

    return kernel


def test_2m_with_dice_is_ddpms_step_with_the_value_that_2m_holds():
    x, held, t, s = normal(6, 48), normal(6, 49), torch.tensor(0.6, dtype=F64), torch.tensor(0.35, dtype=F64)

    def holding(x, u):
        return FREE(x, u)._replace(x0=held, eps=(x - SCHEDULE.alpha(u) * held) / SCHEDULE.sigma(u))

    ours, theirs = kernels.ddim(holding, SCHEDULE, 1.0)(x, t, s), two_m_with_dice(holding)(x, t, s)
    assert float((ours.mean - theirs.mean).abs().max()) < 1e-12 and abs(float(ours.var - theirs.var)) < 1e-12


def test_the_first_order_costs_more_than_the_dice():
    """2M with dice: behind 2M and ahead of DDIM with exact guesses; ahead of 2M with guesses wrong early, not late."""
    shift, start = torch.tensor([0.6, 0.0], dtype=F64), normal(3000, 50)
    some = {name: SAMPLERS[name] for name in ("2M", "DDIM", "DDPM")} | {"both": two_m_with_dice}
    exact = budgets_of(FREE, start, some, (8, 16, 24))
    early = budgets_of(believing(BLOBS, shift, 0.5, 1.0), start, some, (8, 16, 24))
    late = budgets_of(believing(BLOBS, shift, 0.0, 0.1), start, some, (8, 16, 24))
    for k in (0, 1):
        assert exact["2M"][k] < exact["both"][k] < exact["DDIM"][k] < exact["DDPM"][k]
        assert early["both"][k] < early["2M"][k] - 0.01 and late["both"][k] > late["2M"][k]
    assert early["DDPM"][0] > early["DDIM"][0] and abs(early["DDPM"][1] - early["DDIM"][1]) < 0.02
    assert early["DDPM"][2] < early["DDIM"][2] - 0.01


def test_the_velocity_of_standard_normal_data_is_zero_and_euler_is_exact_there():
    data, x = gaussian(1.0), normal(20, 25, 1)
    flow = ode.probability_flow(data.denoiser(SCHEDULE), SCHEDULE)
    assert float(flow(x, 0.4).abs().max()) < 1e-10
    ends = [draw(kernel(data.denoiser(SCHEDULE)), x, grid(8)) for kernel in (SAMPLERS["Euler"], SAMPLERS["DDIM"])]
    assert float((ends[0] - x).abs().max()) < 1e-9 and float((ends[1] - x).abs().max()) > 0.2
    point = gaussian(1e-12)
    exact = ode.solve(ode.probability_flow(point.denoiser(SCHEDULE), SCHEDULE), x, 0.9, 0.3)
    one = kernels.ddim(point.denoiser(SCHEDULE), SCHEDULE)(x, 0.9, 0.3).mean
    assert float((one - exact).abs().max()) < 1e-6


def test_the_pitfalls_on_another_mixture():
    free, start = OTHER.denoiser(SCHEDULE), normal(1500, 26)
    total = float(OTHER.sample(40_000, random(27))[0].T.cov().trace())

    def whole(x, t, s):
        return Gaussian(kernels.reverse_sde(free, SCHEDULE, 1.0)(x, t, s).mean, torch.tensor(0.0))

    def unsquared(x, t, s, rho=2.0):
        return Gaussian(
            kernels.reverse_sde(free, SCHEDULE, rho**0.5)(x, t, s).mean, rho**2 * SCHEDULE.beta(t) * (t - s)
        )

    def early(x, t, s):
        guess = free(x, s)
        return Gaussian(SCHEDULE.alpha(s) * guess.x0 + SCHEDULE.sigma(s) * guess.eps, torch.tensor(0.0))

    widths = [float(draw(k, start, grid(120), random(28)).T.cov().trace()) / total for k in (whole, unsquared, early)]
    assert widths[0] < 0.05 and widths[1] > 1.25 and widths[2] < 0.7
    t, s = torch.tensor([0.5, 0.49], dtype=F64)
    one = kernels.reverse_sde(free, SCHEDULE, 1.0)(start, t, s).mean
    assert torch.equal(unsquared(start, t, s, 1.0).mean, one)  # at rho = 1 nobody sees it


def mean_slope(guesses, x: Tensor, t: float, s: float, sigma_s: float, off: float) -> Tensor:
    """Heun's step in the coordinates of Karras et al. (2022): y = x / alpha, over q = sigma / alpha."""
    t, s = torch.tensor([t, s], dtype=F64)
    q_t, q_s = SCHEDULE.sigma(t) / SCHEDULE.alpha(t), sigma_s / SCHEDULE.alpha(s)
    y = x / SCHEDULE.alpha(t)
    first = (y - guesses(x, t).x0) / q_t
    reached = y + (q_s - q_t) * first
    second = (reached - guesses(SCHEDULE.alpha(s) * reached, s).x0 - off) / q_s
    return SCHEDULE.alpha(s) * (y + (q_s - q_t) * (first + second) / 2)


def test_at_no_noise_heuns_second_slope_is_nothing_over_nothing_and_eulers_last_step_is_less_exact():
    """One step to the data from 0.02, on broader arcs: the exact step is the flow's, solved tightly."""
    arcs = curves.two_arcs(mass=0.6, width=0.05)
    free, x = arcs.denoiser(SCHEDULE), at(0.02, arcs).sample(300, random(60))[0]
    exact = ode.solve(ode.probability_flow(free, SCHEDULE), x, 0.02, 1e-7, tolerance=1e-8)

    def error(ends):
        return float((ends - exact).square().sum(1).mean().sqrt())

    euler = kernels.heun(free, SCHEDULE)(x, torch.tensor(0.02).double(), torch.tensor(0.0).double()).mean
    alpha = SCHEDULE.alpha(0.02)
    assert float((euler - free(x, torch.tensor(0.02).double()).x0).abs().max()) < 1e-12  # to the guess itself
    assert not mean_slope(free, x, 0.02, 0.0, 0.0, 0.0).isfinite().any()
    assert error(mean_slope(free, x, 0.02, 0.0, 1e-6, 0.0)) < 0.7 * error(euler)
    thrown = [error(mean_slope(free, x, 0.02, 0.0, least, 0.002)) for least in (1e-6, 1e-5)]
    assert thrown[0] > 50 and abs(thrown[0] / thrown[1] - 10) < 0.1  # the error over sigma
    assert abs(thrown[0] / float(SCHEDULE.sigma(0.02) / alpha * 0.002 * 2**0.5 / 2e-6) - 1) < 0.01
    data = arcs.sample(10_000, random(61))[0]
    assert float(arcs.log_prob(euler).mean()) > float(arcs.log_prob(data).mean()) + 0.1


def test_noise_in_the_last_step_of_the_sde_stays_in_the_samples_with_the_variance_of_that_step():
    """For thin Gaussian data the variance of the samples is known without chance, with and without that noise."""
    times, c = time_grid(80), 0.04**2
    kernel = kernels.reverse_sde(gaussian(c).denoiser(SCHEDULE), SCHEDULE, 1.0)
    factor, var = 1.0, 0.0
    for t, s in zip(times[:-1], times[1:], strict=True):
        one = kernel(torch.ones(1, 1, dtype=F64), t, s)
        factor, var = factor * float(one.mean), float(one.mean) ** 2 * var + float(one.var)
    left = float(SCHEDULE.beta(times[-2]) * times[-2])
    assert one.var == 0 and factor**2 + var < c  # narrower than data without it, ...
    assert factor**2 + var + left > 2.5 * c  # ... and far too wide with it
    arcs = curves.two_arcs(mass=0.6)
    kernel, typical = kernels.reverse_sde(arcs.denoiser(SCHEDULE), SCHEDULE, 1.0), 0.0
    clean = draw(kernel, normal(400, 62), time_grid(90), random(63))
    noised = clean + float((SCHEDULE.beta(1 / 90) / 90).sqrt()) * normal(400, 64)
    typical = float(arcs.log_prob(arcs.sample(10_000, random(65))[0]).mean())
    assert typical - float(arcs.log_prob(clean).mean()) < 0 < 0.8 < typical - float(arcs.log_prob(noised).mean())


def test_ddpms_variance_is_of_weak_order_one_and_lacks_h_where_ddims_lacks_half_of_it():
    """By DDPM's step written out for a Gaussian, on another schedule, and with other steps and data."""
    schedule = vp_linear(0.2, 14.0)
    for c in (0.3, 2.5):
        missing = {}
        for steps in (96, 192, 384):
            times = time_grid(steps, schedule, end=0.002)
            a = schedule.alpha(times)
            widths, noise = a**2 * c + 1 - a**2, 1 - a**2
            ancestral = deterministic = widths[0]
            for k in range(steps):
                kept = a[k] / a[k + 1]
                guess = a[k] * c / widths[k]  # of the clean point, for a noisy one at 1
                mean = (kept * noise[k + 1] + a[k + 1] * (1 - kept**2) * guess) / noise[k]
                ancestral = mean**2 * ancestral + (1 - kept**2) * noise[k + 1] / noise[k]
                ddim = a[k + 1] * guess + (noise[k + 1] / noise[k]).sqrt() * (1 - a[k] * guess)
                deterministic = ddim**2 * deterministic
            missing[steps] = [1 - float(var / widths[-1]) for var in (ancestral, deterministic)]
        h = float(schedule.log_snr(times).diff()[0]) / 2
        for k, part in ((0, 1.0), (1, 0.5)):
            assert all(abs(missing[n][k] / missing[2 * n][k] - 2) < 0.1 for n in (96, 192))
            assert abs(missing[384][k] / h - part) < 0.03


# ---- deeper


@pytest.mark.equation("eq-heun")
def test_the_orders_are_one_and_two_and_heun_at_equal_steps_has_been_asked_twice():
    free, x = OTHER.denoiser(SCHEDULE), normal(100, 29)
    exact = ode.solve(ode.probability_flow(free, SCHEDULE), x, 1.0, 0.001, tolerance=1e-9)

    def error(kernel, steps):
        return float((draw(kernel, x, grid(steps)) - exact).square().sum(1).mean().sqrt())

    for make, order in ((SAMPLERS["Euler"], 1), (SAMPLERS["DDIM"], 1), (SAMPLERS["2M"], 2)):
        assert abs(math.log2(error(make(free), 64) / error(make(free), 128)) - order) < 0.2
    heun = kernels.heun(free, SCHEDULE)
    assert abs(math.log2(error(heun, 32) / error(heun, 64)) - 2) < 0.25
    asked = []

    def counting(x, t):
        asked.append(1)
        return free(x, t)

    draw(kernels.heun(counting, SCHEDULE), x, grid(10))
    assert len(asked) == 20
    assert error(SAMPLERS["2M"](free), 32) < 0.4 * error(heun, 16) and error(heun, 4) > error(SAMPLERS["DDIM"](free), 8)
    assert error(heun, 32) < 2.5 * error(SAMPLERS["2M"](free), 32)


def variance(make, c: float, times: Tensor) -> float:
    """Of the samples over the true one: the walk of one point is linear, its noise adds up."""
    kernel, factor, var = make(gaussian(c).denoiser(SCHEDULE)), torch.ones(1, 1, dtype=F64), 0.0
    for t, s in zip(times[:-1], times[1:], strict=True):
        one = kernel(torch.ones(1, 1, dtype=F64), t, s)
        factor, var = factor * one.mean, float(one.mean) ** 2 * var + float(one.var)
    first, last = (float(at(float(t), gaussian(c)).variances) for t in (times[0], times[-1]))
    return (float(factor) ** 2 * first + var) / last


def test_ddims_variance_is_too_small_by_the_same_factor_for_every_gaussian():
    for steps in (24, 48):
        h = float(SCHEDULE.log_snr(grid(steps)).diff()[0]) / 2
        for c in (0.02, 0.3, 1.0, 6.0):
            assert abs(variance(SAMPLERS["DDIM"], c, grid(steps)) - math.exp(-h / 2)) < 0.01
    found = [variance(SAMPLERS["Euler"], c, grid(24)) - 1 for c in (0.001, 0.1, 1.0, 6.0)]
    assert found[0] > found[1] > 0.05 and abs(found[2]) < 1e-9 and found[3] < -0.05
    assert 1 - variance(SAMPLERS["DDIM"], 0.001, grid(24)) < found[0]
    small, large = (
        [variance(lambda d, v=v: kernels.ddpm(d, SCHEDULE, v), c, grid(24)) for c in (0.001, 1.0)]
        for v in ("small", "large")
    )
    assert small[1] < variance(SAMPLERS["DDIM"], 1.0, grid(24)) and abs(large[1] - 1) < 1e-9 and large[0] > 1.3


def grid_even_in(there, back, steps: int) -> Tensor:
    first, last = (there(SCHEDULE.sigma(t) / SCHEDULE.alpha(t)) for t in (1.0, 0.001))
    times = SCHEDULE.time(-2 * back(torch.lerp(first, last, torch.linspace(0, 1, steps + 1).double())).log())
    times[0], times[-1] = 1.0, 0.001
    return times


def test_ddim_does_best_with_the_angle_and_2m_in_log_snr_on_the_blobs():
    x, arcs = normal(150, 30), curves.two_arcs()
    for data, asks in ((BLOBS, (8, 16)), (arcs, (16,))):
        free = data.denoiser(SCHEDULE)
        exact = ode.solve(ode.probability_flow(free, SCHEDULE), x, 1.0, 0.001, tolerance=1e-6)
        for steps in asks:
            grids = {
                "time": time_grid(steps, end=0.001), "log-SNR": grid(steps),
                "EDM": grid_even_in(lambda q: q ** (1 / 7), lambda q: q**7, steps),
                "angle": grid_even_in(torch.atan, torch.tan, steps),
            }  # fmt: skip
            for make, best in ((SAMPLERS["DDIM"], "angle"), (SAMPLERS["2M"], "log-SNR")):
                error = {
                    name: float((draw(make(free), x, g) - exact).square().sum(1).mean()) for name, g in grids.items()
                }
                assert min(error, key=error.get) == best or data is arcs and best == "log-SNR"
                if best == "angle":
                    assert error["EDM"] > error["angle"]


def test_noise_left_on_thin_arcs_costs_nats_and_the_last_step_takes_it_off():
    arcs = curves.two_arcs(mass=0.6)
    free, typical = arcs.denoiser(SCHEDULE), float(arcs.log_prob(arcs.sample(10_000, random(31))[0]).mean())
    lost = []
    for stop in (0.001, 0.01, 0.03):
        x = draw(kernels.dpmpp_2m(free, SCHEDULE), normal(500, 32), time_grid(32, SCHEDULE, end=stop))
        clean = kernels.ddim(free, SCHEDULE)(x, stop, 0.0).mean
        noisy = clean + SCHEDULE.sigma(stop) * normal(500, 33)
        lost.append([typical - float(arcs.log_prob(each).mean()) for each in (x, clean, noisy)])
    left, cleaned, noised = zip(*lost, strict=True)
    assert left[0] < 0.15 < 0.5 < left[1] < left[2] and left[2] > 3 and max(cleaned) < 0.1 and noised[2] > 3
    assert 3 < float(SCHEDULE.sigma(0.03)) / 0.03 < 4


@pytest.mark.equation("eq-table")
def test_the_rate_of_a_table_is_minus_the_logarithm_and_a_row_off_takes_variance():
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=F64)
    table = from_betas(betas)
    for k in (1, 77, 1000):
        assert abs(float(table.alpha(k / 1000) ** 2 / (1 - betas[:k]).prod()) - 1) < 1e-9
        assert abs(float(table.beta(k / 1000)) + 1000 * math.log(1 - float(betas[k - 1]))) < 1e-9
    free, widths = OTHER.denoiser(table), []
    total = float(OTHER.sample(40_000, random(34))[0].T.cov().trace())
    for rows in (0, 1, 20):
        kernel = kernels.ddim(lambda x, t, rows=rows: free(x, (t - rows / 1000).clamp_min(1e-6)), table)
        x = draw(kernel, normal(1500, 35), time_grid(200, table, end=0.001))
        widths.append(float(x.T.cov().trace()) / total)
    assert widths[0] > 0.9 and 0.02 < widths[0] - widths[1] < 0.15 and widths[2] < 0.75


@pytest.mark.equation("eq-flow-likelihood")
def test_along_the_flow_log_p_falls_by_the_divergence():
    schedule, x, h = cosine(), normal(5, 36), 1e-4
    flow = ode.probability_flow(OTHER.denoiser(schedule), schedule)
    ends = [ode.solve(flow, x, 0.4, 0.4 + k * h, tolerance=1e-12) for k in (1, -1)]
    values = [
        OTHER.noised(schedule.alpha(t), schedule.sigma(t)).log_prob(e)
        for t, e in zip((0.4 + h, 0.4 - h), ends, strict=True)
    ]
    divergence = likelihood.divergence(flow, x, 0.4)[0]
    assert float(((values[0] - values[1]) / (2 * h) + divergence).abs().max()) < 1e-5


@pytest.mark.equation("eq-hutchinson")
def test_a_probe_and_its_opposite_say_the_same():
    flow, z = ode.probability_flow(FREE, SCHEDULE), normal(6, 37)[None]
    one, other = (likelihood.divergence(flow, normal(6, 38), 0.5, sign * z) for sign in (1, -1))
    assert torch.equal(one, other)


def test_four_ways_to_one_number_on_another_mixture():
    schedule, x = cosine(), OTHER.sample(4, random(39))[0]
    free, truth = OTHER.denoiser(schedule), -OTHER.log_prob(x)
    gaps = []
    for steps in (50, 500):
        times = time_grid(steps, schedule, start=float(schedule.time(-10.0)), end=float(schedule.time(10.0)))
        gaps.append(likelihood.variational_bound(free, schedule, x, times, order=10).total - truth)
    assert bool((gaps[1] > 0).all()) and bool((gaps[0] / gaps[1] - 10).abs().max() < 2.5)
    area = likelihood.error_area(free, schedule, x, time_grid(300, schedule), order=10)
    flow, _ = likelihood.flow_log_prob(ode.probability_flow(free, schedule), x)
    assert float((area - truth).abs().max()) < 3e-3 and float((flow + truth).abs().max()) < 1e-4
    linear = vp_linear()
    short, _ = likelihood.flow_log_prob(ode.probability_flow(OTHER.denoiser(linear), linear), x, 0.001)
    missed = float((short - at(0.001, OTHER).log_prob(x)).abs().max())
    assert 1e-4 < missed < 0.03 and round(float(linear.alpha(1.0)), 3) == 0.007


@pytest.mark.nightly
def test_a_small_network_is_wrong_late_and_strong_dice_do_not_help_it():
    for seed in (1, 2):
        net = network_denoiser(plane.train(BLOBS, SCHEDULE, 1.0, steps=300, batch=256, seed=seed), SCHEDULE)
        believed = []
        for t in (0.7, 0.3, 0.1):
            x = at(t).sample(2000, random(40))[0]
            width = SCHEDULE.alpha(t) ** 2 * 1.85 + SCHEDULE.sigma(t) ** 2
            off = (net(x, torch.tensor(t)).x0 - FREE(x, torch.tensor(t)).x0) * width / SCHEDULE.sigma(t) ** 2
            believed.append(float(off.square().mean().sqrt()))
        assert believed == sorted(believed) and believed[2] > 6 * believed[0]
        gaps = [
            misfit(draw(kernels.reverse_sde(net, SCHEDULE, rho), normal(3000, 41), grid(128), random(42)), at(0.001))
            for rho in (0.0, 1.0, 3.0)
        ]
        assert gaps[2] > max(gaps[:2])


def test_the_exact_solution_for_a_guess_on_a_line_differs_from_2m_in_third_order():
    ratios = []
    for h in (0.1, 0.05):
        ell = torch.linspace(0, h, 20_001, dtype=F64)
        values = ell.exp() * ell  # d(x / sigma) = guess d(alpha / sigma), for the guess ell, in units of sigma_s e^h
        exact = float(torch.trapezoid(values, ell)) * math.exp(-h)
        ratios.append((exact - (1 - math.exp(-h)) * h / 2) / h**3)
    assert all(abs(ratio - 1 / 12) < 0.01 for ratio in ratios)


def test_on_digits_2m_has_the_largest_fid_of_four_samplers_and_ddpm_the_least_but_at_the_fewest_evaluations():
    table = {}
    for row in runs.pick(runs.rows("guidance"), part="samplers"):
        budget = 2 * row["steps"] - 1 if row["sampler"] == "heun" else row["steps"]
        table.setdefault(budget, {})[row["sampler"]] = row["digit_fid"]
    assert sorted(table) == [5, 9, 15, 31] and all(len(fid) == 4 for fid in table.values())
    assert all(max(fid, key=fid.get) == "dpmpp_2m" for fid in table.values())
    least = [min(table[budget], key=table[budget].get) for budget in sorted(table)]
    assert [name == "ddpm" for name in least] == [False, True, True, True]
