"""The claims of chapter 16, each compared with an independent computation."""

import numpy as np
import pytest
import torch

from difflesson import guidance, kernels
from difflesson.denoiser import Prediction, network_denoiser
from difflesson.digits import captions, checkpoints, data, metrics, runs, sampling, words
from difflesson.samplers import draw
from difflesson.schedule import vp_linear
from tests.oracles.chapter_cells import names_of

F64 = torch.float64


def of_cell(label: str) -> dict:
    return names_of("16", label)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


# ---- sentences that are true


@pytest.mark.equation("eq-stroke-width")
def test_the_cells_width_is_the_packages_and_that_of_a_loop_over_pixels():
    page = torch.rand(2, 7, 6, generator=torch.Generator().manual_seed(2), dtype=F64)
    found = of_cell("eq-stroke-width")["width_of"](page)
    torch.testing.assert_close(found, captions.stroke_width(page))
    for one, width in zip(np.pad(page.numpy(), ((0, 0), (1, 1), (1, 1))), found.tolist(), strict=True):
        slopes = [np.hypot(one[i + 1, j] - one[i, j], one[i, j + 1] - one[i, j]) for i in range(8) for j in range(7)]
        assert abs(width - 2 * one.sum() / sum(slopes)) < 1e-10


def stroke(lean: float, width: float = 3.0, fine: int = 20) -> torch.Tensor:
    """A straight stroke, 16 high and `width` wide across, each pixel the mean of fine x fine points; ink."""
    axis = (torch.arange(28 * fine, dtype=F64) + 0.5) / fine - 14
    v, u = -axis[:, None], axis[None, :]
    inside = ((u - lean * v).abs() < width / 2 * np.sqrt(1 + lean**2)) & (v.abs() < 8)
    return inside.double().view(28, fine, 28, fine).mean((1, 3))[None]


@pytest.mark.parametrize("lean", [0.3, 0.5, 0.7])
def test_the_width_of_a_stroke_that_leans_to_the_right_is_right_and_to_the_left_too_small(lean):
    """Against area and outline of the parallelogram, in closed form."""
    long = 16 * np.sqrt(1 + lean**2)
    area, outline = 3 * long, 2 * long + 2 * 3 * np.sqrt(1 + lean**2)
    right, left = (float(captions.stroke_width(stroke(sign * lean))) for sign in (1, -1))
    assert abs(right / (2 * area / outline) - 1) < 0.03 and left / (2 * area / outline) < 0.97


@pytest.mark.parametrize("width", [1.0, 1.5, 2.0, 4.0])
@pytest.mark.parametrize("lean", [0.3, 1.0])
def test_a_stroke_that_leans_to_the_left_is_read_thinner_than_its_mirror_image(width, lean):
    page = stroke(lean, width)
    torch.testing.assert_close(stroke(-lean, width), page.flip(2))
    assert 0.75 < float(captions.stroke_width(page.flip(2)) / captions.stroke_width(page)) < 0.98


@pytest.mark.equation("eq-slant")
@pytest.mark.parametrize("k", [-0.7, 0.0, 1.3])
def test_a_shear_adds_its_slope_and_leaves_the_breadth_of_the_regression(k):
    """Slant and breadth are the slope and the residual deviation of a weighted regression of u on v, by numpy."""
    u, v = normal(50, seed=3), normal(50, seed=4)
    share = torch.rand(50, generator=torch.Generator().manual_seed(5), dtype=F64)
    share = share / share.sum()
    s, b = of_cell("eq-slant")["slant_and_breadth"](u + k * v, v, share)
    slope, start = np.polyfit(v.numpy(), (u + k * v).numpy(), 1, w=share.sqrt().numpy())
    rest = (u + k * v).numpy() - slope * v.numpy() - start
    assert abs(float(s) - slope) < 1e-10 and abs(float(b) - np.sqrt((share.numpy() * rest**2).sum())) < 1e-10
    plain = of_cell("eq-slant")["slant_and_breadth"](u, v, share)
    assert abs(float(s - plain[0]) - k) < 1e-10 and abs(float(b - plain[1])) < 1e-10


@pytest.mark.equation("eq-true-sentence")
def test_posterior_over_prior_is_truth_over_the_share_of_pictures_by_counting():
    generator = torch.Generator().manual_seed(6)
    meaning = torch.tensor([[1, 0, 1, 2], [1, 2, 1, 2], [8, 0, 0, 0], [8, 0, 1, 1], [8, 2, 2, 0]])
    said = captions.say(meaning.repeat(20_000, 1), generator).view(-1, 5)
    texts = ("a digit", "a one", "a thin digit", "an upright eight")
    numbers = [captions.number(text) for text in texts]
    counts = torch.stack([(said == number).double().mean(0) for number in numbers], 1)
    truth = torch.stack([captions.true_words(torch.full((5,), n), meaning)[1].all(1) for n in numbers], 1)
    expected = of_cell("eq-true-sentence")["posterior_over_prior"](truth)
    assert float((counts / counts.mean(0) - expected).abs().max()) < 0.25
    assert (counts[~truth] == 0).all()


# ---- what two encoders learn


@pytest.mark.equation("eq-infonce")
def test_the_contrast_is_two_softmaxes_written_out():
    f = 3 * normal(2, 4, 4, seed=7)
    for one, loss in zip(f.numpy(), of_cell("eq-infonce")["contrast"](f).tolist(), strict=True):
        e = np.exp(one)
        total = sum(np.log(e[i, i] / e[i].sum()) + np.log(e[i, i] / e[:, i].sum()) for i in range(4))
        assert loss == pytest.approx(-total / 8, rel=1e-12)


@pytest.mark.equation("eq-best-similarity")
def test_the_best_similarity_has_no_slope_in_batches_of_three_and_others_have_more_loss():
    """Another table, batches of three, every batch summed, the loss written out."""
    joint = torch.rand(2, 3, generator=torch.Generator().manual_seed(8), dtype=F64) + 0.2
    joint = joint / joint.sum()
    pairs = torch.cartesian_prod(torch.arange(2), torch.arange(3))
    which = torch.cartesian_prod(*[torch.arange(6)] * 3)
    x, c = pairs[which][:, :, 0], pairs[which][:, :, 1]
    chance = joint[x, c].prod(1)

    def loss(f):
        batch = f[x[:, :, None], c[:, None, :]]
        mine = batch.diagonal(dim1=1, dim2=2)
        return (chance[:, None] * (batch.logsumexp(1) + batch.logsumexp(2) - 2 * mine)).sum() / 6

    best = of_cell("eq-best-similarity")["best_similarity"](joint).requires_grad_()
    (slope,) = torch.autograd.grad(loss(best), best)
    assert float(slope.abs().max()) < 1e-12
    for seed in range(20):
        assert float(loss(best.detach() + 0.3 * normal(2, 3, seed=seed))) > float(loss(best.detach())) - 1e-12


def test_the_loss_of_clean_pictures_asks_nothing_about_the_slopes_between_them():
    """Pictures 0, 1 and 2, and similarities of every point of the line: two that are both best, with other slopes."""
    joint = torch.rand(3, 4, generator=torch.Generator().manual_seed(13), dtype=F64) + 0.1
    joint = joint / joint.sum()
    best = of_cell("eq-best-similarity")["best_similarity"](joint)
    curves = [np.polyfit([0, 1, 2], column, 2) for column in best.T.numpy()]

    def similarity(x, bump):
        return torch.tensor(np.array([np.polyval(c, x) + bump * np.sin(np.pi * x) for c in curves])).T

    pictures, between, step = np.arange(3.0), np.array([0.25, 1.25]), 1e-5
    slopes = []
    for bump in (0.0, 4.0):
        f = similarity(pictures, bump).requires_grad_()
        mine, its = f[:, None, :, None], f[None, :, None, :]  # pictures x, x' and sentences c, c'
        cross, back = f[:, None, None, :], f[None, :, :, None]
        rows = torch.logaddexp(mine, cross) - mine + torch.logaddexp(its, back) - its
        columns = torch.logaddexp(mine, back) - mine + torch.logaddexp(its, cross) - its
        chance = joint[:, None, :, None] * joint[None, :, None, :]
        (slope,) = torch.autograd.grad((chance * (rows + columns)).sum() / 4, f)
        assert float(slope.abs().max()) < 1e-12
        slopes.append((similarity(between + step, bump) - similarity(between - step, bump)) / (2 * step))
    assert float((slopes[1] - slopes[0]).abs().min()) > 1


# ---- words never seen together, and style


@pytest.mark.equation("eq-sum-of-words")
def test_a_sentences_vector_is_a_product_of_the_table_with_four_ones():
    table, words = normal(29, 3, seed=9), torch.tensor([10, 5, 0, 3])
    ones = np.zeros(29)
    ones[[10, 11 + 5, 17 + 0, 23 + 3]] = 1
    found = of_cell("eq-sum-of-words")["vector"](table, words, captions.SIZES)
    assert np.abs(found.numpy() - ones @ table.numpy()).max() < 1e-12


@pytest.mark.equation("eq-style-at-the-guess")
def test_the_push_of_the_style_is_the_slope_of_the_distance_by_finite_differences():
    """A linear denoiser, features that are three places of two numbers each."""
    schedule, x = vp_linear(), normal(2, 6, seed=10)
    A, reference = normal(6, 6, seed=11), torch.tensor([[1.0, 0.2], [0.2, 0.7]], dtype=F64)
    t = torch.tensor(0.3, dtype=F64)

    def denoiser(x, t):
        return Prediction.from_x0(x, x @ A, schedule.alpha(t), schedule.sigma(t))

    def away(x):
        f = (x @ A).reshape(3, 2).numpy()
        return float(((f.T @ f / 3 - reference.numpy()) ** 2).sum() / (reference.numpy() ** 2).sum())

    found = of_cell("eq-style-at-the-guess")["styled"](
        denoiser, x, t, schedule, lambda x: x.unflatten(1, (3, 2)), reference, 1.7
    )
    step = 1e-5 * torch.eye(6, dtype=F64)
    for row in range(2):
        slope = [(away(x[row] + one) - away(x[row] - one)) / 2e-5 for one in step]
        expected = denoiser(x, t).eps[row].numpy() + 1.7 * float(schedule.sigma(t)) * np.array(slope)
        assert np.abs(found[row].numpy() - expected).max() < 1e-5 * (1 + np.abs(expected).max())


# ---- what the page says of its networks, its data and its rows


def by_setting() -> dict:
    return {(row["part"], row["way"], row["gamma"]): row for row in runs.pick(runs.rows("words"))}


def test_told_at_the_guess_and_noise_trained_are_alike_by_the_score_and_not_by_the_ruler():
    rows = by_setting()
    told, pushed, trained, fooled = (
        rows["scale", *key] for key in (("cfg", 3.0), ("guess", 4.0), ("noisy", 4.0), ("clean", 16.0))
    )
    finds = [row["towers_finds"] for row in (told, pushed, trained)]
    assert max(finds) - min(finds) < 3 * told["towers_finds_error"]
    assert pushed["all"] - told["all"] > 2 * (pushed["all_error"] ** 2 + told["all_error"] ** 2) ** 0.5
    assert fooled["all"] < 0.1 and fooled["towers_finds"] > fooled["other_towers_finds"] + 0.15
    assert abs(fooled["towers_finds_words"] - told["towers_finds_words"]) < 2 * told["towers_finds_words_error"]


def test_told_the_digit_alone_the_score_is_far_below_that_of_all_words_and_by_the_ruler_next_to_nothing_holds():
    rows = by_setting()
    told, alone = rows["scale", "cfg", 3.0], rows["scale", "digit", 3.0]
    assert alone["digit"] > 0.98 and alone["towers_finds"] < told["towers_finds"] - 0.2 and alone["all"] < 0.1


def test_at_the_guess_more_than_half_of_the_wrong_digits_are_found():
    """Even if every right digit were found."""
    row = by_setting()["scale", "guess", 4.0]
    assert (row["towers_finds"] - row["digit"]) / (1 - row["digit"]) > 0.5


def test_clean_encoders_at_the_noisy_picture_reach_a_lower_cosine_than_every_other_way():
    rows = by_setting()
    reached = rows["scale", "clean", 16.0]["towers"]
    assert all(
        reached < rows["scale", *key]["towers"] - 0.05 for key in (("cfg", 3.0), ("guess", 16.0), ("noisy", 16.0))
    )


def test_the_guess_is_blurred_at_first_and_at_the_end_a_digit():
    """Its slopes, summed, beside those of the digits that were noised."""
    network = checkpoints.load("words").network
    silent = network_denoiser(network, network.schedule, None, torch.bfloat16)
    digits = captions.SIZES.expand(20, 4) - 1  # nothing said but the digit
    digits = captions.numbers(torch.cat([torch.arange(20)[:, None] % 10, digits[:, 1:]], 1))
    sheet = sampling.generate(network, digits, 1.5, seed=3, dtype=torch.bfloat16).clamp(-1, 1)
    noise = torch.randn(sheet.shape, generator=torch.Generator().manual_seed(4))
    times = sampling.digit_times(16, network.schedule)

    def edge(images):
        return float(sum(images.diff(dim=d).abs().sum() for d in (2, 3)))

    def guess(t):
        return silent(network.schedule.alpha(t) * sheet + network.schedule.sigma(t) * noise, t).x0

    first, last = guess(times[0]), guess(times[-2])
    assert edge(first) < 0.6 * edge(sheet) and abs(edge(last) / edge(sheet) - 1) < 0.1
    judge = checkpoints.load("judge").network
    seen = [metrics.judged(judge, images)[1].argmax(1) for images in (last, sheet)]
    assert (seen[0] == seen[1]).double().mean() > 0.9


def test_the_best_of_four_costs_as_many_passes_as_told_and_pushed():
    """Pictures that go through the denoiser; the way back of a gradient counts twice."""
    network, towers = (checkpoints.load(name).network for name in ("words", "towers"))
    sentence, passes = torch.tensor([captions.number("a bold slanted four")]), []
    hook = network.register_forward_hook(
        lambda module, args, out: passes.append(len(out) * (3 if torch.is_grad_enabled() and out.requires_grad else 1))
    )
    try:
        told = sampling.guided_denoiser(network, sentence, 2.0)
        pushed = guidance.tilt(
            told, guidance.gradient(words.guess_cosine(told, towers, sentence)), 4.0, network.schedule
        )
        costs = []
        for denoiser in (told, pushed):
            passes.clear()
            draw(
                kernels.ddpm(denoiser, network.schedule), torch.randn(1, 1, 28, 28),
                sampling.digit_times(16, network.schedule), torch.Generator().manual_seed(1),
            )  # fmt: skip
            costs.append(sum(passes))
    finally:
        hook.remove()
    assert 0.9 < costs[1] / (4 * costs[0]) < 1.1, costs


def test_of_wrong_sentences_nine_of_ten_are_wrong_in_several_words():
    """Of a true sentence, words drawn as often as they are true, all independent."""
    generator = np.random.default_rng(5)
    mine, other = (
        np.column_stack([generator.integers(10, size=100_000), generator.choice(3, (100_000, 3), p=[0.3, 0.4, 0.3])])
        for _ in range(2)
    )
    wrong = (mine != other).sum(1)
    assert (wrong[wrong > 0] > 1).mean() > 0.9


def test_told_and_pushed_obeys_more_than_either_at_every_scale():
    rows = by_setting()
    either = max(row["all"] for (part, way, _), row in rows.items() if part == "scale" and way not in ("both", "best"))
    for gamma in (1.0, 4.0):
        both = rows["scale", "both", gamma]
        assert both["all"] - 3 * both["all_error"] > either and both["digit"] > 0.98


def test_the_denoiser_begins_with_the_pocket_and_the_noisy_encoders_with_the_clean_ones():
    starts = {
        name: checkpoints.load(name).card["recipe"]["start"]
        for name in ("words", "towers", "noisy_towers", "other_towers")
    }
    assert starts == {"words": "pocket", "towers": "", "noisy_towers": "towers", "other_towers": ""}
    assert checkpoints.load("other_towers").card["recipe"]["seed"] != checkpoints.load("towers").card["recipe"]["seed"]


def test_of_random_pictures_with_the_right_digit_one_in_25_obeys_in_three_measures():
    generator = np.random.default_rng(3)
    asked, seen = (generator.choice(3, (400_000, 3), p=[0.3, 0.4, 0.3]) for _ in range(2))
    share = (asked == seen).all(1).mean()
    assert abs(1 / share - 25) < 1


def test_a_speaker_who_leaves_out_the_average_says_the_bare_digit_ten_times_as_often_of_an_average_one():
    """Drawn, with the package's speaker, whose words for the middle are then left out."""
    generator = torch.Generator().manual_seed(12)
    heard = []
    for level in (1, 2):
        said = captions.words_of(captions.say(torch.tensor([[4, level, level, level]]).repeat(60_000, 1), generator))
        said[:, 1:] = said[:, 1:].masked_fill(said[:, 1:] == 2, 5)
        heard.append(float(((said[:, 0] == 4) & (said[:, 1:] == 5).all(1)).double().mean()))
    assert abs(heard[0] / heard[1] - 10) < 1


@pytest.mark.nightly
def test_the_edges_are_the_quantiles_of_the_training_digits_of_each_class():
    try:
        digits = data.load("mnist", "train")
    except data.DataUnavailable as error:
        pytest.skip(str(error))
    images = data.to_unit(digits.images)
    measured = torch.cat([captions.measure(part) for part in images.split(2_000)])
    for digit in range(10):
        for slot in range(3):
            shares = [
                float((measured[digits.labels == digit, slot] <= edge).double().mean())
                for edge in captions.EDGES[digit, slot]
            ]
            assert abs(shares[0] - 0.3) < 0.01 and abs(shares[1] - 0.7) < 0.01
