"""Sentences: measures against pictures drawn on purpose, grammar against itself, truth against a plain loop."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from difflesson.digits import captions

F64 = torch.float64
EVERY = torch.arange(captions.SENTENCES + 1)


def drawn(width: float, lean: float = 0.0, long: float = 16.0, fine: int = 20) -> torch.Tensor:
    """A straight stroke on 28x28 pixels, each pixel the mean of fine x fine points; ink, (1, 28, 28)."""
    axis = (torch.arange(28 * fine, dtype=F64) + 0.5) / fine - 14
    v, u = -axis[:, None], axis[None, :]
    inside = ((u - lean * v).abs() < width / 2) & (v.abs() < long / 2)
    return inside.double().view(28, fine, 28, fine).mean((1, 3))[None]


def random_page(seed: int) -> torch.Tensor:
    return torch.rand(3, 9, 7, generator=torch.Generator().manual_seed(seed), dtype=F64)


@pytest.mark.parametrize("width", [2.0, 3.0, 4.0, 5.0])
def test_a_long_stroke_has_the_width_it_was_drawn_with(width):
    """Its two ends are edge as well: a stroke of length l and width w has 2 w l / (2 w + 2 l)."""
    expected = width * 16 / (16 + width)
    assert abs(float(captions.stroke_width(drawn(width))) - expected) < 0.03 * expected


def test_a_mirror_changes_the_width_of_a_leaning_stroke():
    """Slopes are taken down and to the right, so the ruler is a little crooked: by up to a fifth."""
    page = drawn(3.0, lean=0.8)
    ratio = float(captions.stroke_width(page.flip(2)) / captions.stroke_width(page))
    assert 0.01 < abs(ratio - 1) < 0.2


def test_the_edge_is_the_mean_length_of_all_level_lines_of_a_smooth_picture():
    """The coarea formula, on a cone: its level at height h is a circle of radius r (1 - h)."""
    axis = torch.linspace(-14, 14, 401, dtype=F64)
    radius, spacing = 10.0, float(axis[1] - axis[0])
    cone = (1 - (axis[:, None].square() + axis[None, :].square()).sqrt() / radius).clamp_min(0)[None]
    area, edge = np.pi * radius**2 / 3, np.pi * radius  # of the volume; the mean of 2 pi r (1 - h)
    assert abs(float(captions.stroke_width(cone)) * spacing - 2 * area / edge) < 0.01 * 2 * area / edge


@pytest.mark.equation("eq-stroke-width")
def test_the_stroke_width_is_twice_the_ink_over_the_slopes_of_neighbours_paper_included():
    page = random_page(1)
    for one, width in zip(page, captions.stroke_width(page), strict=True):
        padded, edge = np.pad(one.numpy(), 1), 0.0
        for i in range(padded.shape[0] - 1):
            for j in range(padded.shape[1] - 1):
                down, right = padded[i + 1, j] - padded[i, j], padded[i, j + 1] - padded[i, j]
                edge += np.hypot(down, right)
        assert abs(float(width) - 2 * padded.sum() / edge) < 1e-10


@pytest.mark.equation("eq-slant")
def test_slant_and_breadth_are_those_of_numpys_covariance_of_the_grains():
    page = random_page(2)
    v, u = np.meshgrid(-np.arange(9.0), np.arange(7.0), indexing="ij")
    for one, lean, broad in zip(page, captions.slant(page), captions.breadth(page), strict=True):
        cov = np.cov(np.stack([u.ravel(), v.ravel()]), aweights=one.numpy().ravel(), ddof=0)
        assert abs(float(lean) - cov[0, 1] / cov[1, 1]) < 1e-10
        assert abs(float(broad) - np.sqrt(np.linalg.det(cov) / cov[1, 1])) < 1e-10


@pytest.mark.equation("eq-slant")
@pytest.mark.parametrize("k", [-0.4, 0.3])
def test_a_shear_adds_its_slope_to_the_slant_and_leaves_the_breadth(k):
    """By scipy, which interpolates: the row of v is moved by k v."""
    page = ndimage.gaussian_filter(drawn(3.0, lean=0.2)[0].numpy(), 0.8)
    middle = 13.5
    sheared = ndimage.affine_transform(page, [[1, 0], [k, 1]], offset=[0, -k * middle], order=3)
    before, after = (torch.from_numpy(np.clip(p, 0, 1))[None] for p in (page, sheared))
    assert abs(float(captions.slant(after) - captions.slant(before)) - k) < 0.01
    assert abs(float(captions.breadth(after) / captions.breadth(before)) - 1) < 0.03


def test_faint_grain_is_no_ink_and_a_blank_page_has_no_width():
    grain = -1 + 0.15 * torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(3))
    assert float(captions.ink(grain).max()) == 0
    assert captions.measure(grain).abs().max() == 0


def test_a_number_is_a_sentence_and_a_sentence_a_number():
    torch.testing.assert_close(captions.numbers(captions.words_of(EVERY)), EVERY, rtol=0, atol=0)
    texts = [captions.text(int(one)) for one in EVERY[::7]]
    assert [captions.number(text) for text in texts] == EVERY[::7].tolist() and len(set(texts)) == len(texts)
    assert captions.text(captions.SENTENCES) == "a digit" and captions.number("") == captions.SENTENCES
    assert captions.text(captions.number("four slanted a bold")) == "a bold slanted four"


@pytest.mark.parametrize("text, named", [("a purple four", "purple"), ("a thin bold four", "bold"), ("one two", "two")])
def test_a_wrong_sentence_is_an_error_that_names_the_word(text, named):
    with pytest.raises(ValueError, match=named):
        captions.number(text)


def meanings(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.cat(
        [torch.randint(0, 10, (count, 1), generator=generator), torch.randint(0, 3, (count, 3), generator=generator)], 1
    )


def plain_truth(sentence: int, meaning: list[int]) -> bool:
    """Word by word, out of the text."""
    level = {w: k for words in captions.WORDS[1:] for w, k in zip(words, (0, 0, 1, 2, 2), strict=True)}
    for word in captions.text(sentence).split()[1:]:
        if word in captions.WORDS[0]:
            if meaning[0] != captions.WORDS[0].index(word):
                return False
        elif word != "digit":
            slot = next(k for k in (1, 2, 3) if word in captions.WORDS[k])
            if meaning[slot] != level[word]:
                return False
    return True


@pytest.mark.equation("eq-true-sentence")
def test_what_is_said_is_true_and_says_nothing_about_what_is_unsaid():
    """All 270 meanings: a sentence is said of each for which it is true with one and the same chance."""
    meaning = torch.cartesian_prod(torch.arange(10), *[torch.arange(3)] * 3)
    assert len(meaning) == 270
    generator, rounds = torch.Generator().manual_seed(4), 400
    said = torch.stack([captions.say(meaning, generator) for _ in range(rounds)])  # (rounds, 270)
    assert all(plain_truth(int(s), m) for s, m in zip(said[0], meaning.tolist(), strict=True))
    for text in ("a digit", "a four", "a bold digit", "a thin digit", "an upright digit"):
        number = captions.number(text)
        true = torch.tensor([plain_truth(number, m) for m in meaning.tolist()])
        counts = (said == number).sum(0)[true].double()
        assert int((said == number)[:, ~true].sum()) == 0
        chance = float(counts.mean() / rounds)
        words = len(text.split()) - 1 - ("digit" in text)
        expected = 1 / 5 if not words else 1 / 5 / 4 / (2 if ("bold" in text or "thin" in text) else 1)
        error = (expected * (1 - expected) / rounds / len(counts)) ** 0.5
        assert abs(chance - expected) < 4.5 * error
        assert abs(float(counts.var() / rounds) / (expected * (1 - expected)) - 1) < 0.5  # no meaning is preferred


def test_sentences_of_four_words_mention_all_and_of_one_the_digit():
    meaning, generator = meanings(200, 5), torch.Generator().manual_seed(6)
    four, one = (captions.words_of(captions.say(meaning, generator, k)) for k in (4, 1))
    assert (four < captions.SIZES - 1).all() and (one[:, 0] == meaning[:, 0]).all() and (one[:, 1:] == 5).all()


def test_truth_of_words_agrees_with_the_texts():
    meaning = meanings(300, 7)
    sentences = torch.randint(0, captions.SENTENCES + 1, (300,), generator=torch.Generator().manual_seed(8))
    sentences[:100] = captions.say(meaning[:100], torch.Generator().manual_seed(9))
    said, holds = captions.true_words(sentences, meaning)
    assert holds.all(1).tolist() == [plain_truth(int(s), m) for s, m in zip(sentences, meaning.tolist(), strict=True)]
    assert said.sum(1).tolist() == [
        len(captions.text(int(s)).split()) - 1 - ("digit" in captions.text(int(s))) for s in sentences
    ]


def test_a_picture_obeys_by_the_measures_of_the_digit_that_was_asked_for():
    """The same stroke is bold for a five and regular for a zero."""
    width = float(captions.stroke_width(drawn(2.95)))
    assert captions.EDGES[0, 0, 0] < width < captions.EDGES[0, 0, 1] and width > captions.EDGES[5, 0, 1]
    images = (2 * drawn(2.95) - 1)[None].float()  # ink() clips at 10 and 90 %
    for text, seen, expected in (("a bold five", 5, True), ("a bold zero", 0, False), ("a bold five", 3, False)):
        _, holds = captions.obeyed(torch.tensor([captions.number(text)]), images, torch.tensor([seen]))
        assert bool(holds.all()) == expected


def test_what_is_left_out_of_training_is_one_pair_for_each_digit():
    meaning = torch.cartesian_prod(torch.arange(10), *[torch.arange(3)] * 3)
    out = captions.unseen(meaning)
    assert out.sum() == 30
    for digit, ((a, la), (b, lb)) in captions.UNSEEN.items():
        mine = meaning[out & (meaning[:, 0] == digit)]
        assert len(mine) == 3 and (mine[:, a] == la).all() and (mine[:, b] == lb).all() and a != b


def test_an_unseen_pair_is_left_out_and_its_turned_twin_is_not():
    for digit in range(10):
        for turned in (False, True):
            words = captions.words_of(torch.tensor([captions.unseen_pair(digit, turned)]))[0]
            level = [int(captions.LEVELS[w]) if w < 5 else 1 for w in words[1:]]
            assert bool(captions.unseen(torch.tensor([[digit, *level]]))) is not turned and words[0] == digit
    assert captions.text(captions.unseen_pair(6)) == "a thin slanted six"


@pytest.mark.parametrize("bad", [torch.zeros(3, 28, 28), torch.zeros(3, 1, 28, 28, dtype=torch.uint8)])
def test_pictures_of_another_shape_or_type_are_refused(bad):
    with pytest.raises(ValueError, match="images must be floats"):
        captions.measure(bad)


def test_what_is_true_of_pictures_on_a_device_is_computed_there():
    far = "meta"
    with torch.device("cpu"):
        meaning = captions.meanings(torch.zeros(3, 1, 8, 8, device=far), torch.zeros(3, dtype=torch.long, device=far))
        said, holds = captions.true_words(torch.zeros(3, dtype=torch.long, device=far), meaning)
        left_out = captions.unseen(meaning)
    assert [tuple(one.shape) for one in (meaning, said, holds, left_out)] == [(3, 4), (3, 4), (3, 4), (3,)]
    assert {one.device.type for one in (meaning, said, holds, left_out)} == {far}
