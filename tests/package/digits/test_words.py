"""Networks of sentences: sums of words, two towers, their loss against a loop, and a start that knows digits."""

import math

import pytest
import torch

from difflesson import similarity
from difflesson.denoiser import Prediction, network_pair
from difflesson.digits import ancestors, captions, checkpoints, data, lessons, training, words
from difflesson.digits.networks import DigitUNet
from difflesson.digits.recipes import recipe
from difflesson.schedule import cosine

SMALL = {"widths": (8, 16), "embedding": 16}
TOWERS = SMALL | {"space": 6}


def filled(network, seed: int = 0):
    """The network with random numbers everywhere, in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    for weight in network.parameters():
        weight.data = 0.3 * torch.randn(weight.shape, generator=generator)
    return network.eval().requires_grad_(False)


def pictures(count: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def numbers_of(*texts: str) -> torch.Tensor:
    return torch.tensor([captions.number(text) for text in texts])


@pytest.mark.equation("eq-sum-of-words")
def test_a_sentence_is_the_sum_of_its_words_and_of_what_it_leaves_unsaid():
    embedding = filled(words.SentenceEmbedding(5))
    rows, firsts = embedding.word.weight, [0, 11, 17, 23]
    for text, places in {
        "a digit": (10, 5, 5, 5),
        "a heavy four": (4, 4, 5, 5),
        "a thin backward wide digit": (10, 0, 0, 3),
    }.items():
        by_hand = sum(rows[first + place] for first, place in zip(firsts, places, strict=True))
        torch.testing.assert_close(embedding(numbers_of(text))[0], by_hand)


def test_the_denoiser_of_sentences_is_that_of_labels_with_the_sum_in_place_of_the_label():
    network, usual = filled(words.WordsUNet(**SMALL)), DigitUNet(**SMALL, classes=2)
    usual.load_state_dict(
        {k: v for k, v in network.state_dict().items() if "label" not in k} | {"label.weight": torch.zeros(3, 16)}
    )
    sentences, x, log_snr = (
        numbers_of("a bold two", "a digit", "a slim one"),
        pictures(3),
        torch.tensor([-2.0, 0.0, 3.0]),
    )
    for k in range(3):
        usual.label.weight.data[1] = network.label(sentences[k : k + 1])[0]
        told = usual(x[k : k + 1], log_snr[k : k + 1], torch.tensor([1]))
        torch.testing.assert_close(network(x, log_snr, sentences)[k], told[0], atol=1e-5, rtol=1e-5)
    assert network.classes == captions.SENTENCES == captions.number("a digit")


def test_the_null_label_of_a_pair_is_the_sentence_that_says_nothing():
    network = filled(words.WordsUNet(**SMALL))
    network.schedule = cosine()
    _, uncond = network_pair(network, cosine(), numbers_of("a bold two", "a four"))(pictures(2), torch.tensor(0.5))
    told = network_pair(network, cosine(), numbers_of("a digit", "a digit") - 1)  # any other sentence than that
    silent = Prediction.from_v(
        pictures(2),
        network(pictures(2), cosine().log_snr(torch.tensor([0.5, 0.5])), numbers_of("a digit", "a digit")),
        cosine().alpha(0.5),
        cosine().sigma(0.5),
    )
    torch.testing.assert_close(uncond.eps, silent.eps, atol=1e-5, rtol=1e-5)
    assert float((told(pictures(2), torch.tensor(0.5))[0].eps - uncond.eps).abs().max()) > 1e-4


@pytest.mark.equation("eq-infonce")
def test_the_contrastive_loss_is_two_cross_entropies_written_out():
    towers, x, log_snr = filled(words.Towers(**TOWERS)), pictures(4), torch.tensor([-1.0, 0.0, 2.0, 5.0])
    sentences = numbers_of("a bold two", "a four", "a thin one", "a four")
    vectors, said = towers.image(x, log_snr), towers.text(sentences)
    f = [[float(towers.scale * similarity.cosine(v, w)) for w in said] for v in vectors]
    total = 0.0
    for i in range(4):
        total -= f[i][i] - math.log(sum(math.exp(f[i][j]) for j in range(4)))
        total -= f[i][i] - math.log(sum(math.exp(f[j][i]) for j in range(4)))
    assert float(words.contrastive_loss(towers, x, log_snr, sentences)) == pytest.approx(total / 8, rel=1e-5)


def test_the_scale_is_at_most_a_hundred():
    towers = words.Towers(**TOWERS).requires_grad_(False)
    for inside, scale in ((2.0, math.exp(2)), (9.0, math.exp(4.6))):
        towers.log_scale.data.fill_(inside)
        assert float(towers.scale) == pytest.approx(scale)


def test_the_cosine_of_a_noisy_picture_hears_the_noise_level_only_if_told():
    towers, sentences, t = filled(words.Towers(**TOWERS)), numbers_of("a bold two", "a four"), torch.tensor(0.6)
    for told, log_snr in ((True, cosine().log_snr(t).float().expand(2)), (False, None)):
        by_hand = similarity.cosine(towers.image(pictures(2), log_snr), towers.text(sentences))
        answer = words.sentence_cosine(towers, cosine(), sentences, told)(pictures(2), t)
        torch.testing.assert_close(answer, by_hand)


def test_the_cosine_of_the_guess_is_that_of_the_denoisers_clean_picture():
    towers, sentences = filled(words.Towers(**TOWERS)), numbers_of("a bold two", "a four")
    halved = words.guess_cosine(lambda x, t: Prediction(x / 2, x), towers, sentences)
    torch.testing.assert_close(halved(pictures(2), torch.tensor(0.5)), towers(pictures(2) / 2, None, sentences))


@pytest.mark.equation("eq-style-at-the-guess")
def test_the_style_at_the_guess_is_minus_a_share_of_the_references_square_and_0_for_itself():
    towers = filled(words.Towers(**TOWERS))
    places = words.places(towers.image, pictures(3))
    assert places.shape == (3, 16, 8)
    grams = torch.einsum("nmk,nml->nkl", places, places) / 16
    style = words.guess_style(lambda x, t: Prediction(x, x), towers.image, grams[0])
    expected = -(grams - grams[0]).square().flatten(1).sum(1) / grams[0].square().sum()
    torch.testing.assert_close(style(pictures(3), torch.tensor(0.5)), expected, atol=1e-6, rtol=1e-4)


# ---- training


def small(name: str, **changes):
    usual = {"data": "embedded", "batch": 16, "warmup": 2, "arguments": tuple(SMALL.items()), "steps": 40, "start": ""}
    return recipe(name, **usual | changes)


def test_the_examples_are_pictures_with_their_meaning_without_the_pairs_left_out():
    images, meaning = lessons.examples(small("words"), None)
    digits = data.load("embedded", "train")
    every = captions.meanings(data.to_unit(digits.images), digits.labels)
    kept = ~captions.unseen(every)
    assert 0 < (~kept).sum() < len(every)
    torch.testing.assert_close(meaning, every[kept])
    torch.testing.assert_close(images, data.to_unit(digits.images)[kept])


@pytest.mark.parametrize("name", ["words", "towers", "noisy_towers"])
def test_each_network_of_sentences_trains_is_saved_and_loaded(name, tmp_path):
    made = small(name, learning_rate=1e-2)
    loaded = checkpoints.load(training.train(made, tmp_path, device="cpu", precision="no", progress=False))
    assert type(loaded.network) is (words.WordsUNet if name == "words" else words.Towers)
    losses = [loss for _, loss in loaded.card["loss"]]
    assert math.isfinite(losses[-1]) and loaded.card["task"] == name
    assert loaded.network.prediction == ("v" if name == "words" else "cosine")


def test_the_contrastive_loss_falls_below_that_of_guessing(tmp_path):
    made = small("towers", learning_rate=1e-2, steps=150)
    loaded = checkpoints.load(training.train(made, tmp_path, device="cpu", precision="no", progress=False))
    assert loaded.card["loss"][-1][1] < 0.9 * math.log(16)


def test_a_denoiser_of_sentences_begins_with_one_of_digits_and_answers_as_it_does(tmp_path):
    """Told one word, the digit, it says what the other says of the label; told nothing, what that says of no label."""
    first = small("pocket", steps=2, teacher="")
    path = training.train(first, tmp_path, device="cpu", precision="no", progress=False)
    made = small("words", start="pocket")
    network = made.blueprint.build()
    start = ancestors.find(made, tmp_path)["start"].network
    network.load_state_dict(ancestors.weights_for(network, start))
    x, log_snr = pictures(11), torch.linspace(-5, 5, 11)
    sentences = torch.tensor([captions.number(f"a {word}") for word in (*captions.WORDS[0], "digit")])
    usual = checkpoints.load(path).network
    torch.testing.assert_close(
        network.eval()(x, log_snr, sentences), usual(x, log_snr, torch.arange(11)), atol=1e-6, rtol=1e-5
    )


def test_two_towers_cannot_begin_with_a_denoiser(tmp_path):
    training.train(small("pocket", steps=2, teacher=""), tmp_path, device="cpu", precision="no", progress=False)
    with pytest.raises(ValueError, match="start must fit the Towers"):
        ancestors.find(small("noisy_towers", start="pocket"), tmp_path)


@pytest.mark.parametrize("told", [True, False])
def test_one_sentence_may_be_a_number(told):
    """`captions.number` gives one."""
    towers, number, t = filled(words.Towers(**TOWERS)), captions.number("a bold two"), torch.tensor(0.6)
    each = torch.tensor([number] * 2)
    for build in (
        lambda sentence: words.sentence_cosine(towers, cosine(), sentence, told),
        lambda sentence: words.guess_cosine(lambda x, t: Prediction(x / 2, x), towers, sentence),
    ):
        assert torch.equal(build(number)(pictures(2), t), build(each)(pictures(2), t))
