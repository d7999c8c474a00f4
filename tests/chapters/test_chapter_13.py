"""The claims of chapter 13, each compared with an independent computation, on another mixture and other seeds."""

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from difflesson import information, losses, plane
from difflesson.denoiser import Pair
from difflesson.digits import checkpoints, runs
from difflesson.digits.networks import DigitUNet
from difflesson.digits.sampling import generate
from difflesson.schedule import cosine
from tests.oracles.chapter_cells import names_of
from tests.oracles.mixtures import FOUR, THREE

F64 = torch.float64
SCHEDULE = cosine()
DIGITS, GUIDE, SMALL = runs.log("denoiser"), runs.log("guide"), runs.log("run_v")
LOG_SNR = torch.tensor(DIGITS["log_snr"], dtype=F64)


def area(name: str, chosen=slice(None)) -> float:
    return float(torch.trapezoid(torch.tensor(DIGITS[name], dtype=F64)[chosen], LOG_SNR[chosen]))


def drawn(mixture, t, count=400_000, seed=3):
    generator = torch.Generator().manual_seed(seed)
    x0, label = mixture.sample(count, generator)
    eps = torch.randn(x0.shape, generator=generator).double()
    return SCHEDULE.add_noise(x0, eps, t), SCHEDULE.alpha(t) * eps - SCHEDULE.sigma(t) * x0, label


def best_v(mixture, x, t, label=None):
    guess = mixture.denoiser(SCHEDULE, label)(x, t)
    return SCHEDULE.alpha(t) * guess.eps - SCHEDULE.sigma(t) * guess.x0


class Crude:
    """A network of two lines that is wrong, and wrong in another way for each label."""

    classes = 2

    def __call__(self, x, log_snr, label):
        return 0.3 * x.flip(1) - 0.2 * label[:, None]


@pytest.mark.equation("eq-loss-split")
def test_the_loss_is_floor_plus_excess_and_the_floor_is_the_best_guess_s_loss():
    mixture, t = FOUR.mixture(), torch.tensor(0.65, dtype=F64)
    floor, excess = names_of("13", "eq-loss-split")["split"](Crude(), mixture, SCHEDULE, t)
    x, v, label = drawn(mixture, t)
    for guess, expected in (
        (best_v(mixture, x, t, label), floor), (Crude()(x, None, label), floor + excess)
    ):  # fmt: skip
        squares = (guess - v).square().sum(1)
        assert abs(float(squares.mean() - expected)) < 4 * float(squares.std()) / 400_000**0.5


def test_near_the_floor_a_difference_of_losses_on_the_same_noise_scatters_less_than_either():
    """And is found: of two guesses near the best one, told the label."""
    mixture, t = FOUR.mixture(), torch.tensor(0.65, dtype=F64)
    x, v, label = drawn(mixture, t, count=20_000)
    best = best_v(mixture, x, t, label)
    first, second = ((guess - v).square().sum(1) for guess in (best + 0.02 * x, 0.9 * best))
    excess = ((0.02 * x).square() - (0.1 * best).square()).sum(1).mean()
    assert (first - second).std() < 0.25 * min(first.std(), second.std())
    scatter = [float(part.std()) / 20_000**0.5 for part in (first - second, first)]
    assert abs((first - second).mean() - excess) < 4 * scatter[0] and abs(excess) < 2 * scatter[1]


@pytest.mark.equation("eq-label-average", "eq-loss-gap")
def test_the_gap_of_the_losses_is_the_squared_distance_of_the_best_answers():
    mixture, t = THREE.mixture(), torch.tensor(0.45, dtype=F64)
    x, v, label = drawn(mixture, t)
    told, untold, average = names_of("13", "eq-label-average")["best_answers"](mixture, SCHEDULE, x, label, t)
    torch.testing.assert_close(average, best_v(mixture, x, t))
    torch.testing.assert_close(told, best_v(mixture, x, t, label))
    torch.testing.assert_close(untold, average)
    paired = (untold - v).square().sum(1) - (told - v).square().sum(1) - (told - untold).square().sum(1)
    assert abs(float(paired.mean())) < 4 * float(paired.std()) / 400_000**0.5
    assert float((told - untold).square().sum(1).mean()) > 50 * float(paired.std()) / 400_000**0.5


@pytest.mark.equation("eq-network-gap")
def test_the_gap_of_a_network_is_the_right_one_plus_the_excess_without_the_label_less_that_with_it():
    mixture, t = THREE.mixture(), torch.tensor(0.5, dtype=F64)
    x, v, label = drawn(mixture, t)
    x_n, weights, label_n = information.labelled_nodes(mixture, SCHEDULE, t, order=40)
    best = best_v(mixture, x_n, t, label_n), best_v(mixture, x_n, t)
    parts = names_of("13", "eq-network-gap")["network_gap"](Crude(), SCHEDULE, x_n, weights, label_n, *best, t)
    told, untold = (Crude()(x, None, y) for y in (label, torch.full_like(label, 2)))
    paired = (untold - v).square().sum(1) - (told - v).square().sum(1)
    assert abs(float(paired.mean() - (parts[0] + parts[1] - parts[2]))) < 4 * float(paired.std()) / 400_000**0.5


@pytest.mark.equation("eq-averaging-length")
def test_the_page_s_double_sum_is_the_variance_of_a_filtered_chain():
    total = names_of("13", "eq-averaging-length")["double_sum"](0.9, 0.6, count=400)
    chain = np.linalg.inv(np.eye(400) - 0.6 * np.eye(400, k=-1)) * (1 - 0.36) ** 0.5
    chain[:, 0] /= (1 - 0.36) ** 0.5  # begins in its own distribution
    weights = 0.1 * 0.9 ** np.arange(400)[::-1]
    assert abs(float(total) - np.square(weights @ chain).sum()) < 1e-9


@pytest.mark.equation("eq-label-information")
def test_the_information_is_the_sum_of_half_the_squared_distances_in_eps():
    """Three classes; the information by sampling, the sum over other levels than the page's."""
    mixture = FOUR.mixture(labels=False)
    log_snr = torch.linspace(-13, 1, 85, dtype=F64)
    rates = []
    for t in SCHEDULE.time(log_snr):
        x, weights, label = information.labelled_nodes(mixture, SCHEDULE, t, order=14)
        rates.append(weights @ information.label_rate(mixture.pair(SCHEDULE, label), x, t))
    end = SCHEDULE.time(log_snr[-1])
    x, _, label = drawn(mixture, end)
    noisy = mixture.noised(SCHEDULE.alpha(end), SCHEDULE.sigma(end))
    each = torch.stack([noisy.class_log_prob(x, y) - mixture.class_weights()[y].log() for y in range(4)])
    each = each[label, torch.arange(len(label))]
    summed, known = (
        torch.trapezoid(torch.stack(rates), log_snr),
        information.label_information(mixture, SCHEDULE, end, 30),
    )
    assert abs(float(each.mean() - summed)) < 4 * float(each.std()) / 400_000**0.5
    assert abs(float(summed - known)) < 1e-3
    assert float(known) < float(-(mixture.weights * mixture.weights.log()).sum())


@pytest.mark.equation("eq-objective-weights")
def test_an_error_of_v_is_that_of_x0_turned():
    """(x_t, v) is (x_0, eps) turned by an angle: from x0 alone, at a fixed x_t."""
    function, angle = names_of("13", "eq-objective-weights")["in_eps_and_v"], torch.tensor(1.1, dtype=F64)
    alpha, sigma = angle.cos(), angle.sin()
    x0, guess, x = torch.randn(3, 6, 2, generator=torch.Generator().manual_seed(1), dtype=F64)
    eps, noise = ((x - alpha * clean) / sigma for clean in (x0, guess))
    in_eps, in_v = function(guess - x0, alpha, sigma)
    torch.testing.assert_close(in_eps, (noise - eps).square().sum(1))
    torch.testing.assert_close(in_v, ((alpha * noise - sigma * guess) - (alpha * eps - sigma * x0)).square().sum(1))


def test_an_error_of_eps_is_alpha_times_that_of_v():
    """Two guesses of x0 at one x_t, read as noise and as v: the first differ by alpha times what the second do."""
    alpha, sigma = SCHEDULE.alpha(torch.tensor(0.3, dtype=F64)), SCHEDULE.sigma(torch.tensor(0.3, dtype=F64))
    first, second, x = torch.randn(3, 6, 2, generator=torch.Generator().manual_seed(4), dtype=F64)
    noises = [(x - alpha * clean) / sigma for clean in (first, second)]
    answers = [alpha * noise - sigma * clean for noise, clean in zip(noises, (first, second), strict=True)]
    torch.testing.assert_close(noises[0], sigma * x + alpha * answers[0])
    in_eps, in_v = ((a - b).square().sum(1) for a, b in (noises, answers))
    torch.testing.assert_close(in_eps, alpha**2 * in_v)


def test_with_no_label_hidden_the_loss_does_not_depend_on_the_answer_without_one():
    x0, label = plane.four_blobs().sample(64, torch.Generator().manual_seed(2))
    network = plane.PlaneNetwork(2)
    for share, moved in ((0.0, False), (0.5, True)):
        network.zero_grad()
        losses.v_loss(network, SCHEDULE, x0.float(), label, share, torch.Generator().manual_seed(3), 2).backward()
        assert bool(network.label.weight.grad[2].any()) is moved


@pytest.mark.equation("eq-averaging-length")
@pytest.mark.parametrize(("decay", "memory"), [(0.9, 0.5), (0.99, 0.95), (0.6, -0.3), (0.0, 0.4), (0.95, 0.0)])
def test_the_variance_of_an_average_is_the_double_sum_of_covariances(decay, memory):
    k = np.arange(3000)
    weights = (1 - decay) * (decay**k if decay else (k == 0).astype(float))
    covariance = np.array([weights[: 3000 - lag] @ weights[lag:] for lag in range(400)])
    expected = covariance[0] + 2 * (covariance[1:] * memory ** np.arange(1, 400)).sum()
    assert abs(float(information.averaged_variance(decay, memory)) / expected - 1) < 1e-6


@pytest.mark.equation("eq-null-teacher")
def test_the_teacher_s_target_has_the_same_optimum_and_the_gap_for_noise():
    mixture, t = THREE.mixture(), torch.tensor(0.55, dtype=F64)
    x, v, label = drawn(mixture, t)
    nodes = information.labelled_nodes(mixture, SCHEDULE, t, order=40)
    usual, taught = names_of("13", "eq-null-teacher")["target_noise"](mixture, SCHEDULE, *nodes, t)
    untold, told = best_v(mixture, x, t), best_v(mixture, x, t, label)
    for target, noise in ((v, usual), (told, taught)):
        away = (target - untold).square().sum(1)
        assert abs(float(away.mean() - noise)) < 4 * float(away.std()) / 400_000**0.5
        for other in (untold + 0.2, 0.7 * untold):  # the excess adds to the noise, whatever the target
            paired = (target - other).square().sum(1) - away - (untold - other).square().sum(1)
            assert abs(float(paired.mean())) < 4 * float(paired.std()) / 400_000**0.5
    assert taught < 0.5 * usual


def test_between_step_1000_and_2000_the_loss_hardly_moves_and_the_distance_of_the_digits_halves():
    before, after = (SMALL["stages"][step] for step in ("1000", "2000"))
    losses_ = [stage["test_loss"]["0.99"]["told"] for stage in (before, after)]
    assert 0.9 < losses_[1] / losses_[0] < 0.95
    assert 0.45 < after["digits"]["digit_fid"] / before["digits"]["digit_fid"] < 0.55


def test_without_a_label_the_digits_are_fifteen_times_as_far_from_real_ones():
    assert round(DIGITS["gamma_0_digit_fid"] / DIGITS["gamma_1_digit_fid"]) == 15


def test_what_the_networks_took_to_train():
    assert DIGITS["steps"] == 18_000 and DIGITS["label_dropout"] == 0.1 and round(DIGITS["seconds"] / 60) == 93
    assert SMALL["steps"] == 2000 and round(SMALL["seconds"] / 60) == 16
    assert DIGITS["train_command"] == "difflesson train denoiser --device cpu --precision bf16"
    assert SMALL["train_command"] == "python benchmarks/training_runs.py train v"


def test_on_digits_the_share_of_hidden_labels_decides_who_pays_and_the_training_loss_ranks_the_wrong_way_round():
    logs = [runs.log(f"pocket_p{share}") for share in ("02", "10", "50")]
    assert [log["label_dropout"] for log in logs] == [0.02, 0.1, 0.5] and len(
        {(log["steps"], log["batch"]) for log in logs}
    ) == 1
    falling = [
        [log["test_loss"]["untold"] for log in logs], [log["areas"]["distance"][0] for log in logs],
        [log["areas"]["gap"][0] for log in logs], [log["digits"]["0"]["digit_fid"] for log in logs],
    ]  # fmt: skip
    rising = [
        [log["test_loss"]["told"] for log in logs], [log["digits"]["1"]["digit_fid"] for log in logs],
        [log["training_loss_last_1000"] for log in logs],
    ]  # fmt: skip
    assert all(row == sorted(row, reverse=True) for row in falling) and all(row == sorted(row) for row in rising)


def test_with_guidance_the_small_network_with_the_highest_training_loss_draws_best():
    """By more than two sets of real digits differ (0.03), at gamma 3; with a label the first two differ by less."""
    logs = [runs.log(f"pocket_p{share}") for share in ("02", "10", "50")]
    few, tenth, half = (log["digits"]["3"]["digit_fid"] for log in logs)
    assert half + 0.1 < min(few, tenth) and logs[2]["training_loss_last_1000"] > logs[1]["training_loss_last_1000"]
    first, second = (log["digits"]["1"]["digit_fid"] for log in logs[:2])
    assert abs(first - second) < 0.03 and abs(logs[0]["test_loss"]["told"] - logs[1]["test_loss"]["told"]) < 1e-4


def test_the_area_is_a_witness_and_no_judge():
    pocket, half = runs.log("pocket"), runs.log("pocket_p50")
    for name in ("distance", "gap"):  # by less than two standard errors in the distance
        assert pocket["areas"][name][0] > half["areas"][name][0]
    assert pocket["digits"]["0"]["digit_fid"] < half["digits"]["0"]["digit_fid"]
    assert DIGITS["gamma_0_digit_fid"] < pocket["digits"]["0"]["digit_fid"]


def test_half_way_a_short_average_helps_and_the_longest_is_ruined_and_at_the_end_it_still_pays():
    for step, other in (("300", 0.05), ("1000", 0.2)):
        told = {float(decay): loss["told"] for decay, loss in SMALL["stages"][step]["test_loss"].items()}
        assert min(told, key=told.get) == 0.9 and told[0.999] > told[0.0] + other
        assert 0.01 < 1 - told[0.9] / told[0.0] < 0.03
    told = {float(decay): loss["told"] for decay, loss in SMALL["stages"]["2000"]["test_loss"].items()}
    assert max(told[0.9], told[0.99]) - told[0.0] < 1e-5 and told[0.999] > 1.5 * told[0.0]


def test_the_error_of_a_difference_is_at_least_the_square_of_the_difference_of_the_lengths():
    """For rows of random vectors; and for the denoiser half a nat."""
    right, error = torch.randn(2, 50, 3, 7, generator=torch.Generator().manual_seed(5), dtype=F64)
    lengths = [part.flatten(1).norm(dim=1) for part in (right, right + error, error)]
    assert ((lengths[1] - lengths[0]).clamp_min(0) <= lengths[2]).all()
    assert round((DIGITS["areas"]["distance"][0] ** 0.5 - math.log(10) ** 0.5) ** 2, 1) == 0.5


def test_the_denoiser_claims_about_twice_what_there_is_and_about_a_third_of_it_after_the_digit_can_be_read():
    whole, late = area("distance"), area("distance", LOG_SNR >= 0)
    error = DIGITS["areas"]["distance"][1]
    assert abs(whole - DIGITS["areas"]["distance"][0]) < 1e-3 and whole - 4 * error > 4.2
    assert 1.9 < whole / math.log(10) < 2.3 and abs(late / whole - 1 / 3) < 0.03
    assert GUIDE["guide_cross_entropy"][DIGITS["log_snr"].index(0.0)] < 0.05


def test_about_a_third_of_the_denoiser_s_guidance_lies_where_the_two_losses_look_like_one():
    told, untold = (torch.tensor(DIGITS[name]) for name in ("told", "untold"))
    assert ((untold - told) / told)[LOG_SNR >= 0].max() < 0.025
    assert abs(area("distance", LOG_SNR >= 0) / area("distance") - 1 / 3) < 0.03


def test_counted_in_v_only_a_hundredth_of_the_denoiser_s_guidance_lies_where_the_losses_look_like_one():
    """So the caption must say in which unit it counts."""
    in_v = torch.tensor(DIGITS["distance"], dtype=F64) / torch.sigmoid(LOG_SNR)
    late = LOG_SNR >= 0
    assert torch.trapezoid(in_v[late], LOG_SNR[late]) < 0.02 * torch.trapezoid(in_v, LOG_SNR)


def test_the_half_without_the_label_is_worse_by_at_least_1_9_nats():
    gap, error = DIGITS["areas"]["gap"]
    assert round(gap - math.log(10), 1) == 1.9 and round(error, 1) == 0.2
    k = DIGITS["log_snr"].index(2.0)
    assert [round(DIGITS[name][k], 4) for name in ("told", "untold")] == [0.0594, 0.0597]


def test_the_denoiser_passes_all_there_is_between_minus_two_and_minus_one_and_lies_above_the_classifier_everywhere():
    proved = math.log(10) - torch.tensor(GUIDE["guide_cross_entropy"])
    running = torch.cumulative_trapezoid(torch.tensor(DIGITS["distance"]), LOG_SNR)
    k = DIGITS["log_snr"].index(-2.0)
    assert float(running[k - 1]) < math.log(10) < float(running[k])
    assert (running > proved[1:]).all() and float(running[-1] - proved[-1]) > 2.5


def test_the_violation_is_small_at_much_noise_and_most_of_the_distance_at_little():
    violation, distance = (torch.tensor(DIGITS[name]) for name in ("violation", "distance"))
    assert (violation / distance)[LOG_SNR >= 1].min() > 0.75 and violation[LOG_SNR <= -4].max() < 0.06
    assert round(area("violation"), 1) == 2.3


@pytest.fixture(scope="module")
def areas():
    """(distance, told, untold, of the difference, loss) of networks that hid shares p; another seed than the page's."""
    mixture, log_snr = plane.four_blobs(), torch.linspace(-10, 10, 21, dtype=F64)
    found = {}
    for p in (0.0, 0.02, 0.1, 0.5):
        network, rows = plane.train(mixture, SCHEDULE, p, steps=400, batch=256, seed=11), []
        for t in SCHEDULE.time(log_snr):
            x, weights, label = information.labelled_nodes(mixture, SCHEDULE, t, order=8)
            alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
            told, untold = (
                sigma * x + alpha * network(x, SCHEDULE.log_snr(t).expand(len(x)), y)
                for y in (label, torch.full_like(label, 2))
            )
            best, blind = (g.eps for g in mixture.pair(SCHEDULE, label)(x, t))
            errors = (told - untold, told - best, untold - blind, told - untold - (best - blind))
            rows.append(torch.stack([weights @ e.square().sum(1) / 2 for e in errors]))
        loss = losses.v_loss(network, SCHEDULE, *mixture.sample(20_000, torch.Generator().manual_seed(1)), p,
                             torch.Generator().manual_seed(2), 2)  # fmt: skip
        found[p] = (*torch.trapezoid(torch.stack(rows), log_snr, dim=0).tolist(), float(loss))
    return found


def test_the_loss_ranks_networks_that_hid_different_shares_the_wrong_way_round_and_the_area_rightly(areas):
    coins = list(areas)
    assert sorted(coins, key=lambda p: areas[p][4]) == coins
    for key in (lambda p: abs(areas[p][0] - 0.566), lambda p: areas[p][0], lambda p: areas[p][3]):
        assert sorted(coins, key=key) == coins[::-1]


def test_seldom_hidden_the_half_without_the_label_starves(areas):
    assert areas[0.0][2] > 3 * areas[0.02][2] > 6 * areas[0.5][2]
    assert areas[0.02][1] > 0.6 * areas[0.5][1]
    told, untold = ([areas[p][k] for p in areas] for k in (1, 2))
    assert told == sorted(told) and untold == sorted(untold, reverse=True)


@pytest.mark.nightly
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_teacher_wins_with_each_of_three_seeds(seed):
    mixture, log_snr = plane.four_blobs(), torch.linspace(-10, 10, 21, dtype=F64)
    start = plane.train(mixture, SCHEDULE, 0.1, steps=600, batch=256, seed=seed).float()
    excess = {}
    for taught in (False, True):
        network = plane.PlaneNetwork(2)
        network.load_state_dict(start.state_dict())
        optimizer = torch.optim.Adam(network.parameters(), 3e-3, betas=(0.9, 0.99))
        generator = torch.Generator().manual_seed(50 + seed)
        for step in range(300):
            optimizer.param_groups[0]["lr"] = 1.5e-3 * (1 + math.cos(math.pi * step / 300))
            x0, label = mixture.sample(256, generator)
            t, eps = losses.times_and_noise(x0.float(), generator)
            seen = losses.drop_labels(label, 0.5, 2, generator)
            alpha, sigma = SCHEDULE.alpha(t)[:, None], SCHEDULE.sigma(t)[:, None]
            x, target = alpha * x0.float() + sigma * eps, alpha * eps - sigma * x0.float()
            if taught:
                told = start(x, SCHEDULE.log_snr(t), label).detach()
                target = torch.where((seen == 2)[:, None], told, target)
            optimizer.zero_grad()
            (network(x, SCHEDULE.log_snr(t), seen) - target).square().mean().backward()
            optimizer.step()
        rows = []
        for t in SCHEDULE.time(log_snr):
            x, weights, label = information.labelled_nodes(mixture, SCHEDULE, t, order=8)
            answer = network(x, SCHEDULE.log_snr(t).expand(len(x)), torch.full_like(label, 2)).detach()
            off = SCHEDULE.alpha(t) * (answer - best_v(mixture, x, t))
            rows.append(weights @ off.square().sum(1) / 2)
        excess[taught] = float(torch.trapezoid(torch.stack(rows), log_snr))
    assert excess[True] < 0.95 * excess[False]


def test_beyond_log_snr_0_the_denoiser_s_guidance_is_more_than_ten_times_what_can_be_left_to_know():
    left = GUIDE["guide_cross_entropy"][GUIDE["log_snr"].index(0.0)]  # at least the entropy that is left
    assert area("distance", LOG_SNR >= 0) > 10 * left and area("gap", LOG_SNR >= 0) > 10 * left
    told, untold = (torch.tensor(DIGITS[name])[LOG_SNR >= 0] for name in ("told", "untold"))
    assert ((untold - told) / told).max() < 0.025


def test_the_digits_at_the_four_steps_come_from_the_same_noise():
    source = (Path(runs.__file__).parents[2] / "benchmarks" / "training_runs.py").read_text()
    assert (
        "judged(ours[0.99], 1.0, 1000)" in source
        and "def judged(network, gamma: float, count: int, seed: int = 7)" in source
    )


def test_the_pockets_are_a_sixth_of_the_size():
    small = DigitUNet(widths=(16, 48))
    weights = sum(p.numel() for p in small.parameters())
    assert 5.5 < DIGITS["parameters"] / weights < 6.5


def test_each_objective_has_its_own_weight_and_v_counts_both_ends():
    """Of one error of x0: the weights of the losses in x0, eps and v at little and at much noise."""
    weights = {ratio: names_of("13", "eq-objective-weights")["in_eps_and_v"](
        torch.ones(1, 1, dtype=F64), torch.tensor((ratio / (1 + ratio)) ** 0.5), torch.tensor((1 + ratio) ** -0.5)
    ) for ratio in (1e-3, 1e3)}  # fmt: skip
    (eps_low, v_low), (eps_high, v_high) = weights[1e-3], weights[1e3]
    assert eps_low < 0.01 and abs(v_low - 1) < 0.01 and abs(v_high / eps_high - 1) < 0.01 and eps_high > 100


def test_in_nothing_but_noise_the_losses_are_far_apart_and_it_means_next_to_nothing():
    apart = torch.tensor(DIGITS["untold"]) - torch.tensor(DIGITS["told"])
    assert apart[0] > 0.95 * apart.max() and DIGITS["distance"][0] < 0.001
    assert float(information.label_information(FOUR.mixture(), SCHEDULE, torch.tensor(1.0, dtype=F64), 20)) < 1e-6


def test_the_variance_falls_to_zero_with_the_length_and_half_is_left_where_this_equals_the_memory():
    decays = torch.tensor([0.0, 0.5, 0.9, 0.95, 0.99, 0.999, 0.99999], dtype=F64)
    found = information.averaged_variance(decays, 0.95)  # a memory of 20 steps
    assert (found.diff() < 0).all() and found[-1] < 1e-3
    for both in (0.9, 0.95, 0.99):
        assert abs(float(information.averaged_variance(both, both)) - 0.5) < 0.002


def test_of_the_start_an_average_holds_the_share_a_to_the_number_of_steps():
    average = 1.0
    for _ in range(2000):
        average = 0.999 * average + 0.001 * 0.0  # what comes in is no longer the start
    assert abs(average - 0.999**2000) < 1e-9 and round(average, 2) == 0.14


def test_by_the_networks_own_losses_nine_tenths_of_the_noise_in_the_target_are_gone():
    loss = DIGITS["test_loss"]
    assert 0.88 < loss["told"] / loss["untold"] < 0.92


def test_the_one_trial_on_digits():
    trial = DIGITS["trial"]
    assert trial["teacher"] == "itself" and trial["digits"] == 1000 and trial["label_dropout"] == 0.8
    before, after = trial["gamma_0_digit_fid"]
    assert 0.45 < after / before < 0.55
    wrong = [round(1000 * (1 - share)) for share in trial["gamma_1_accuracy"]]
    assert wrong == [10, 27]
    assert wrong[1] - wrong[0] > 2 * sum(wrong) ** 0.5  # of 1,000 each: more than chance


def test_a_network_of_its_own_halves_what_is_wrong_without_a_label_and_changes_nothing_at_gamma_1():
    own, (network, card), (other, about) = DIGITS["own"], checkpoints.load("denoiser"), checkpoints.load("unlabelled")
    recipe = about["recipe"]
    assert (recipe["start"], recipe["teacher"], recipe["label_dropout"]) == ("denoiser", "denoiser", 1.0)
    assert about["parameters"] == card["parameters"] and about["start_sha256"] == about["teacher_sha256"]
    assert own["steps"] == recipe["steps"]
    (there,) = (curve["0"] for setting, curve in about["metrics"].items() if "ddpm, 16 steps, 10000 digits" in setting)
    here = next(iter(card["metrics"].values()))["0"]
    assert own["gamma_0_digit_fid"] == [here["digit_fid"], there["digit_fid"]] and own["sampling_steps"] == 16
    assert 0.45 < there["digit_fid"] / here["digit_fid"] < 0.6
    assert own["finer"]["gamma_0_digit_fid"] < 0.6 * there["digit_fid"] and own["finer"]["sampling_steps"] == 50
    assert own["finest"]["gamma_0_digit_fid"] < 0.75 * own["finer"]["gamma_0_digit_fid"]
    assert own["finest"]["gamma_0_digit_fid"] < 6 * 0.0275 and own["finest"]["sampling_steps"] == 100
    labels = torch.tensor([7, 2, 0])
    for gamma, same in ((1.0, True), (0.0, False), (2.0, False)):
        alone, beside = (generate(network, labels, gamma, seed=5, steps=2, unlabelled=u) for u in (None, other))
        assert torch.equal(alone, beside) == same


def test_with_the_mended_half_the_scales_lie_on_the_curve_of_the_dial_without_it():
    """At equal recall, between the own half's scales, precision and digit-FID differ by less than two errors."""
    picked = {half: runs.pick(runs.rows("guidance"), part="halves", unlabelled=half) for half in ("", "unlabelled")}
    own, mended = ({row["gamma"]: row for row in rows} for rows in picked.values())
    for gamma in (1.5, 2.0, 3.0):
        at = mended[gamma]
        between = (own[a]["recall"] >= at["recall"] > own[b]["recall"] for a, b in pairwise(own))
        low, high = next((own[a], own[b]) for (a, b), inside in zip(pairwise(own), between, strict=True) if inside)
        for name in ("precision", "digit_fid"):
            slope = (high[name] - low[name]) / (high["recall"] - low["recall"])
            on_the_dial = low[name] + slope * (at["recall"] - low["recall"])
            error = math.hypot(at[name + "_error"], low[name + "_error"], slope * at["recall_error"])
            assert abs(at[name] - on_the_dial) < 2 * error, (gamma, name)
    assert own[3.0]["digit_fid"] > mended[3.0]["digit_fid"] + 0.05


def test_as_much_training_with_every_label_does_nothing_for_the_labelled_half_that_5000_digits_show():
    control, own = DIGITS["own"]["labelled"], DIGITS["own"]
    assert "--label-dropout 0.0" in control["command"] and "--start-from denoiser" in control["command"]
    assert abs(control["steps"] - own["steps"]) < 1000 and control["digits"] == 5000
    before, after = control["gamma_1_accuracy"]
    chance = (before * (1 - before) / 5000 + after * (1 - after) / 5000) ** 0.5
    assert 0 < after - before < 2 * chance
    assert abs(control["gamma_1_digit_fid"][1] - control["gamma_1_digit_fid"][0]) < 0.001


def test_on_digits_eps_draws_worse_and_x0_draws_as_well_as_v_with_a_loss_in_v_two_hundred_times_as_large():
    tried = {name: runs.log(f"run_{name}") for name in ("eps", "x0", "v")}
    same = ("steps", "batch", "label_dropout", "images")
    assert all([log[key] for key in same] == [tried["v"][key] for key in same] for log in tried.values())
    seen = {name: log["stages"]["2000"]["digits"] for name, log in tried.items()}
    right = {name: report["accuracy"] for name, report in seen.items()}
    scatter = (0.93 * 0.07 / 1000) ** 0.5
    assert abs(right["x0"] - right["v"]) < 2 * scatter and 0.3 < 1 - right["eps"] < 0.34
    assert seen["x0"]["digit_fid"] < seen["v"]["digit_fid"] < 0.2 * seen["eps"]["digit_fid"]
    means = {name: log["stages"]["2000"]["test_loss"]["0.99"]["told"] for name, log in tried.items()}
    assert round(means["x0"]) == 25 and round(means["v"], 2) == 0.12
    harm = {name: [log["told"][LOG_SNR.tolist().index(level)] for level in (-6.0, 10.0)] for name, log in tried.items()}
    assert harm["eps"][0] / harm["v"][0] > 5 and harm["x0"][1] / harm["v"][1] > 100
    assert harm["eps"][1] < harm["v"][1] and abs(harm["x0"][0] / harm["v"][0] - 1) < 0.01  # each fails at one end only
    assert harm["x0"][1] / (1 + math.exp(10)) < 0.005 < 0.02 * harm["x0"][1]


def test_a_network_may_err_and_stay_below_the_entropy():
    mixture, t = FOUR.mixture(), torch.tensor(0.5, dtype=F64)
    x, weights, label = information.labelled_nodes(mixture, SCHEDULE, t)
    deaf = Pair(mixture.denoiser(SCHEDULE), mixture.denoiser(SCHEDULE))  # does not listen to the label
    assert float(weights @ information.label_rate(deaf, x, t)) == 0
    assert float(weights @ information.label_rate(mixture.pair(SCHEDULE, label), x, t)) > 0.05


def test_the_violation_and_what_the_labelled_half_says_are_at_right_angles():
    """For answers that are wrong, and the right probabilities."""
    mixture, t = FOUR.mixture(), torch.tensor(0.5, dtype=F64)
    x, weights, label = information.labelled_nodes(mixture, SCHEDULE, t, order=40)
    noisy = mixture.noised(SCHEDULE.alpha(t), SCHEDULE.sigma(t))
    answers = torch.stack([Crude()(x, None, torch.full_like(label, y)) for y in (0, 1)])
    mean = sum(noisy.class_log_prob(x, y).exp()[:, None] * answers[y] for y in (0, 1))
    told, untold = answers[label, torch.arange(len(x))], 0.5 * x
    whole, said, violation = (weights @ e.square().sum(1) for e in (told - untold, told - mean, mean - untold))
    torch.testing.assert_close(whole, said + violation, rtol=1e-4, atol=0)
