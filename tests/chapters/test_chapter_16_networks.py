"""Sentences of chapter 16 about its networks and its data, on other digits, sentences and noise than the page's."""

import pytest
import torch

from difflesson import guidance, kernels, similarity
from difflesson.denoiser import network_denoiser
from difflesson.digits import captions, checkpoints, data, metrics, runs, sampling, words
from difflesson.samplers import draw


def test_where_there_is_much_noise_the_gradient_of_clean_encoders_leads_elsewhere():
    """Elsewhere than the step to the network that is told, which those trained on noise and at the guess share more."""
    network, towers, noisy = (checkpoints.load(name).network for name in ("words", "towers", "noisy_towers"))
    schedule, generator = network.schedule, torch.Generator().manual_seed(3)
    sentences, drawn_as = (
        captions.say(torch.randint(0, 3, (20, 4), generator=generator), generator, mentioned=4) for _ in range(2)
    )
    sheet = sampling.generate(network, drawn_as, 1.5, seed=4, dtype=torch.bfloat16)
    noise = torch.randn(sheet.shape, generator=generator)
    silent = network_denoiser(network, schedule, None, torch.bfloat16)
    told = sampling.guided_denoiser(network, sentences, 1.0, dtype=torch.bfloat16)
    ways = {
        "clean": words.sentence_cosine(towers, schedule, sentences, told=False),
        "noisy": words.sentence_cosine(noisy, schedule, sentences),
        "guess": words.guess_cosine(silent, towers, sentences),
    }
    for log_snr in (-8.0, -5.0, -3.0):
        t = schedule.time(torch.tensor(log_snr))
        x = schedule.alpha(t) * sheet + schedule.sigma(t) * noise
        step = (silent(x, t).eps - told(x, t).eps).flatten(1)
        along = {
            name: float(torch.cosine_similarity(guidance.gradient(f)(x, t).flatten(1), step).mean())
            for name, f in ways.items()
        }
        assert along["clean"] < 0.12 and min(along["noisy"], along["guess"]) > 2 * along["clean"], along


def test_the_word_for_the_slant_is_heard_in_a_pair_never_seen_together():
    """For the seven digits whose pair has a slant: told both words, and told the other word alone."""
    network, shares = checkpoints.load("words").network, {}
    slanted = [(digit, dict(pair)[2]) for digit, pair in captions.UNSEEN.items() if 2 in dict(pair)]
    assert len(slanted) == 7
    both = torch.tensor([captions.unseen_pair(digit) for digit, _ in slanted]).repeat(8)
    parts = captions.words_of(both)
    parts[:, 2] = 5  # the slant, unsaid
    level = torch.tensor([level for _, level in slanted]).repeat(8)
    for name, sentences in (("both", both), ("other alone", captions.numbers(parts))):
        sheet = sampling.generate(network, sentences, 3.0, seed=11, dtype=torch.bfloat16).clamp(-1, 1)
        shares[name] = float((captions.meanings(sheet, parts[:, 0])[:, 2] == level).double().mean())
    assert shares["other alone"] < 0.1 and shares["both"] > shares["other alone"] + 0.15, shares


@pytest.mark.nightly
def test_with_other_references_the_width_follows_and_no_large_slant_comes():
    """Eight sevens for each of six; widths from 1.2 to 5.3, two references lean by more than a half."""
    network, towers = (checkpoints.load(name).network for name in ("words", "towers"))
    seven = sampling.guided_denoiser(network, torch.full((8,), captions.number("a seven")), 2.0, dtype=torch.bfloat16)
    pairs = []
    for text, measure in (("a bold nine", 0), ("a thin nine", 0), ("a bold zero", 0), ("a regular two", 0),
                          ("a slanted one", 1), ("a bold slanted five", 1)):  # fmt: skip
        sheet = sampling.generate(
            network, torch.full((16,), captions.number(text)), 3.0, seed=21, dtype=torch.bfloat16
        ).clamp(-1, 1)
        most = captions.measure(sheet)[:, measure]
        reference = sheet[[int(most.argmin() if "thin" in text else most.argmax())]]
        style = words.guess_style(seven, towers.image, similarity.gram(words.places(towers.image, reference))[0])
        pushed = guidance.tilt(seven, guidance.gradient(style), 500.0, network.schedule)
        generator = torch.Generator().manual_seed(11)
        start = torch.randn(8, 1, 28, 28, generator=generator)
        got = draw(
            kernels.ddpm(pushed, network.schedule), start, sampling.digit_times(16, network.schedule), generator
        )
        pairs.append((captions.measure(got).mean(0), captions.measure(reference)[0]))
    got, asked = (torch.stack(each) for each in zip(*pairs, strict=True))
    assert float(torch.corrcoef(torch.stack([got[:, 0], asked[:, 0]]))[0, 1]) > 0.9
    assert (got[[0, 2], 0] > 3.5).all() and got[1, 0] < 2, got  # 2.6 without a reference
    assert (asked[-2:, 1] > 0.5).all() and (got[-2:, 1] < 0.6 * asked[-2:, 1]).all(), (got, asked)


def test_another_digit_costs_the_similarity_about_five_and_one_wrong_word_for_a_measure_less():
    """Of drawn digits, sentences of four words, by both pairs of encoders; the wrong word is the other end's."""
    network, judge = (checkpoints.load(name).network for name in ("words", "judge"))
    asked = captions.numbers(torch.cat([torch.arange(60)[:, None] % 10, torch.full((60, 3), 5)], 1))
    sheet = sampling.generate(network, asked, 1.5, seed=14, dtype=torch.bfloat16).clamp(-1, 1)
    facts = captions.meanings(sheet, metrics.judged(judge, sheet)[1].argmax(1))
    for name in ("towers", "other_towers"):
        pair, gaps = checkpoints.load(name).network, []
        for slot in range(4):
            lies = facts.clone()
            lies[:, slot] = (facts[:, 0] + 4) % 10 if slot == 0 else torch.where(facts[:, slot] == 0, 2, 0)
            true, false = (captions.say(m, torch.Generator().manual_seed(15), mentioned=4) for m in (facts, lies))
            ends = facts[:, slot] != 1 if slot else torch.ones(60, dtype=torch.bool)
            gaps.append(float(pair.scale * (pair(sheet, None, true) - pair(sheet, None, false))[ends].mean()))
        assert 4 < gaps[0] < 6.5 and all(1.5 < gap < gaps[0] - 1 for gap in gaps[1:]), gaps


@pytest.mark.nightly
@pytest.mark.parametrize("way, gamma", [("cfg", 3.0), ("guess", 4.0), ("clean", 16.0), ("both", 4.0)])
def test_other_sentences_and_other_noise_give_the_shares_of_the_table(way, gamma):
    """A hundred sentences that the sweep did not ask; the ways written here once more."""
    network, towers = (checkpoints.load(name).network for name in ("words", "towers"))
    generator = torch.Generator().manual_seed(78)
    level = torch.bucketize(torch.rand(400, 3, generator=generator), torch.tensor([0.3, 0.7]))
    meaning = torch.cat([torch.arange(400)[:, None] % 10, level], 1)
    sentences = captions.say(meaning[~captions.unseen(meaning)][:100], generator, mentioned=4)
    denoiser = {
        "cfg": lambda: sampling.guided_denoiser(network, sentences, gamma, dtype=torch.bfloat16),
        "both": lambda: sampling.guided_denoiser(network, sentences, 2.0, dtype=torch.bfloat16),
    }.get(way, lambda: network_denoiser(network, network.schedule, None, torch.bfloat16))()
    if way != "cfg":
        cosine = (
            words.sentence_cosine(towers, network.schedule, sentences, told=False)
            if way == "clean"
            else words.guess_cosine(denoiser, towers, sentences)
        )
        denoiser = guidance.tilt(denoiser, guidance.gradient(cosine), gamma * float(towers.scale), network.schedule)
    start = torch.randn(100, 1, 28, 28, generator=generator)
    sheet = draw(kernels.ddpm(denoiser, network.schedule), start, sampling.digit_times(16, network.schedule), generator)
    seen = metrics.judged(checkpoints.load("judge").network, sheet)[1].argmax(1)
    share = float(captions.obeyed(sentences, sheet, seen)[1].all(1).double().mean())
    (row,) = runs.pick(runs.rows("words"), part="scale", way=way, gamma=gamma)
    assert abs(share - row["all"]) < 3 * (share * (1 - share) / 100 + row["all_error"] ** 2) ** 0.5


@pytest.mark.nightly
def test_in_the_training_digits_the_measures_are_nearly_independent():
    """The joint entropy of three levels is near the sum of three; no two meet 1.5 times as often as by chance."""
    try:
        digits = data.load("mnist", "train")
    except data.DataUnavailable as error:
        pytest.skip(str(error))
    parts = zip(data.to_unit(digits.images).split(2_000), digits.labels.split(2_000), strict=True)
    levels = torch.cat([captions.meanings(*part) for part in parts])[:, 1:]
    joint = torch.bincount(levels @ torch.tensor([9, 3, 1]), minlength=27).double().view(3, 3, 3) / len(levels)

    def entropy(p):
        return float(-(p * p.log()).sum())

    alone = sum(entropy(joint.sum(pair)) for pair in ((1, 2), (0, 2), (0, 1)))
    assert 0 < alone - entropy(joint) < 0.05
    for one in range(3):
        pair = joint.sum(one)
        meet = pair / (pair.sum(1, keepdim=True) * pair.sum(0, keepdim=True))
        assert 0.6 < float(meet.min()) and float(meet.max()) < 1.5
