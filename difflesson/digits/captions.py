"""Sentences about digits that are true by measurement: stroke width, slant and breadth of a picture, no network asked.

A sentence says of up to four things how they are: `a bold slanted wide four`. Which digit it is stands in the label;
the rest is measured. What is low, middling or high is meant for the digit that it is: of the training digits of each
class, 30 % are thin, 30 % are bold, the others regular. MNIST scales every digit to one size, so that size says
nothing; how broad it is, does.

A sentence is known by its number, 0..SENTENCES, so that it can stand wherever a label stands: in a denoiser, in label
dropout, in classifier-free guidance. The last number, SENTENCES, is `a digit`, which says nothing: the null label.
"""

import torch
from torch import Tensor

from difflesson.checks import check_shape

WORDS = (
    ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    ("thin", "fine", "regular", "bold", "heavy"),
    ("backward", "receding", "upright", "slanted", "leaning"),
    ("narrow", "slim", "normal", "wide", "broad"),
)
"""The words for the digit, its stroke width, its slant and its breadth; of the last three, two words for low, one for
the middle, two for high. In a sentence the digit comes last."""

LEVELS = torch.tensor([0, 0, 1, 2, 2])
"""What each of five words means: 0 for low, 1 for the middle, 2 for high."""

SIZES = torch.tensor([len(words) + 1 for words in WORDS])  # and "unsaid", the last of each
SENTENCES = int(SIZES.prod()) - 1

EDGES = torch.tensor([
    [[2.262, 2.975], [0.100, 0.336], [4.260, 5.247]],
    [[2.092, 2.677], [0.061, 0.384], [0.842, 1.130]],
    [[2.141, 2.779], [-0.048, 0.239], [3.673, 4.395]],
    [[2.011, 2.561], [-0.070, 0.185], [3.131, 3.860]],
    [[1.994, 2.566], [-0.111, 0.224], [3.376, 4.269]],
    [[1.870, 2.379], [0.038, 0.382], [3.327, 3.998]],
    [[2.067, 2.729], [-0.089, 0.142], [3.036, 3.978]],
    [[2.076, 2.635], [-0.105, 0.169], [3.029, 3.856]],
    [[2.001, 2.613], [0.044, 0.315], [2.813, 3.516]],
    [[1.960, 2.510], [-0.132, 0.135], [2.808, 3.538]],
])  # fmt: skip
"""(digit, measure, edge): where low and where high begin, the 30 % and 70 % quantiles of the 60,000 training digits."""

UNSEEN = {digit: ((1 + digit % 3, 2 * (digit % 2)), (1 + (digit + 1) % 3, 2 * (digit // 2 % 2))) for digit in range(10)}
"""For each digit two (slot, level) that no network of words has seen together: such digits are left out of training."""


def ink(images: Tensor) -> Tensor:
    """Images (N, 1, H, W) in [-1, 1] as ink in [0, 1], (N, H, W) in float64: what is fainter than 10 % is paper.

    Without that, the faint grain of a drawn digit would count as so many strokes.  Raises: ValueError on another shape.
    """
    if images.dim() != 4 or images.shape[1] != 1 or not images.is_floating_point():
        raise ValueError(f"images must be floats (N, 1, H, W), got {images.dtype} {tuple(images.shape)}")
    return ((images[:, 0].double() + 0.8) / 1.6).clamp(0, 1)


def stroke_width(page: Tensor) -> Tensor:
    """Twice the ink over the length of its edge, in pixels.  [eq-stroke-width]

        width = 2 sum ink / sum |grad ink|

    The sum of the slopes is the length of the edge, averaged over all grey levels at which one may cut (the coarea
    formula). A long stroke of width w and length l has the area l w and two edges of length l, so twice the area over
    the edge is w.  Args: page: ink, (N, H, W).  Returns: (N,); 0 where there is no ink.
    """
    padded = torch.nn.functional.pad(page, (1, 1, 1, 1))
    down, right = padded.diff(dim=1)[:, :, :-1], padded.diff(dim=2)[:, :-1]
    edge = (down.square() + right.square()).sqrt().sum((1, 2))
    return 2 * page.sum((1, 2)) / edge.clamp_min(1e-9)


def second_moments(page: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Var(u), Cov(u, v), Var(v) of the place (u to the right, v upwards, in pixels) of a grain of ink, each (N,)."""
    _, height, width = page.shape
    u = torch.arange(width, dtype=page.dtype, device=page.device)
    v = -torch.arange(height, dtype=page.dtype, device=page.device)
    share = page / page.sum((1, 2), keepdim=True).clamp_min(1e-9)
    u = u - (share.sum(1) @ u)[:, None]  # (N, W)
    v = v - (share.sum(2) @ v)[:, None]  # (N, H)
    along = (share @ u[:, :, None])[:, :, 0]  # each row's ink times u
    return (share.sum(1) * u.square()).sum(1), (along * v).sum(1), (share.sum(2) * v.square()).sum(1)


def slant(page: Tensor) -> Tensor:
    """How far a picture leans to the right for each pixel of height: Cov(u, v) / Var(v).  [eq-slant]

    A shear u -> u + k v adds k to it, exactly; and nothing else that keeps the rows, a stretch apart, does.
    Args: page: ink, (N, H, W).  Returns: (N,).
    """
    _, cov, var_v = second_moments(page)
    return cov / var_v.clamp_min(1e-9)


def breadth(page: Tensor) -> Tensor:
    """The deviation in u of the ink when its slant is taken out, in pixels.  [eq-slant]

        sqrt(Var(u) - Cov(u, v)^2 / Var(v))

    A shear does not change it.  Args: page: ink, (N, H, W).  Returns: (N,).
    """
    var_u, cov, var_v = second_moments(page)
    return (var_u - cov.square() / var_v.clamp_min(1e-9)).clamp_min(0).sqrt()


def measure(images: Tensor) -> Tensor:
    """Stroke width, slant and breadth of images (N, 1, H, W) in [-1, 1]; (N, 3), float64."""
    page = ink(images)
    return torch.stack([stroke_width(page), slant(page), breadth(page)], 1)


def meanings(images: Tensor, digits: Tensor) -> Tensor:
    """What is true of each picture, if it is this digit: the digit and three levels, (N, 4) integers.

    Args: images: (N, 1, H, W);  digits: (N,), what each is, or is asked to be.
    """
    check_shape("digits", digits, images.shape[:1])
    edges = EDGES.to(digits.device)[digits]  # (N, 3, 2)
    return torch.cat([digits[:, None], (measure(images)[:, :, None] > edges).sum(2)], 1)


def numbers(words: Tensor) -> Tensor:
    """The number of each sentence, from its four words, places in WORDS, the last place for unsaid: (N, 4) -> (N,)."""
    return ((words[:, 0] * 6 + words[:, 1]) * 6 + words[:, 2]) * 6 + words[:, 3]


def words_of(sentences: Tensor) -> Tensor:
    """The four words of each sentence, the inverse of `numbers`: (N,) -> (N, 4)."""
    steps = sentences.new_tensor([216, 36, 6, 1])
    return sentences[:, None] // steps % SIZES.to(sentences.device)


def say(meaning: Tensor, generator: torch.Generator, mentioned: int | None = None) -> Tensor:
    """True sentences about pictures of this meaning; which things they mention, and in which words, is drawn.

    How many things are mentioned is 0 to 4, all equally likely, and looks at nothing: so what is unsaid is open, and
    in one of five draws nothing is said, the null label.  [eq-true-sentence]

    Args: meaning: (N, 4);  mentioned: how many things each mentions, with the digit among them, instead of a draw.
    Returns: numbers, (N,).
    """
    on = {"generator": generator, "device": meaning.device}
    level = meaning[:, 1:]
    second = torch.rand(level.shape, **on) < 0.5
    word = torch.where(level == 1, 2, 3 * (level // 2) + second.long())
    words = torch.cat([meaning[:, :1], word], 1)
    order = torch.rand(words.shape, **on)
    if mentioned is None:
        count = torch.randint(0, 5, (len(words), 1), **on)
    else:
        count, order[:, 0] = torch.full_like(words[:, :1], mentioned), -1.0
    said = order.argsort(1).argsort(1) < count
    return numbers(torch.where(said, words, SIZES.to(words.device) - 1))


def true_words(sentences: Tensor, meaning: Tensor) -> tuple[Tensor, Tensor]:
    """Which words of a sentence are said, and which of those hold of a picture with this meaning; (N, 4) truth values.

    A word that is unsaid counts as holding.  Args: sentences: (N,);  meaning: (N, 4).
    """
    words = words_of(sentences)
    said = words < SIZES.to(words.device) - 1
    claimed = torch.cat([words[:, :1], LEVELS.to(words.device)[words[:, 1:].clamp_max(4)]], 1)
    return said, ~said | (claimed == meaning)


def obeyed(sentences: Tensor, images: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Which words are said of each picture, and which of them hold; (N, 4) truth values, as `true_words`.

    The measures are held against those of the digit that was asked for.  Args: sentences: (N,);  images: (N, 1, H, W);
    seen: the digit that a judge sees in each, (N,).
    """
    asked = words_of(sentences)[:, 0]
    meaning = meanings(images, torch.where(asked < 10, asked, seen))
    return true_words(sentences, torch.cat([seen[:, None], meaning[:, 1:]], 1))


def unseen(meaning: Tensor) -> Tensor:
    """Whether a picture is one of those left out of training, as UNSEEN says; (N,) truth values."""
    pairs = torch.tensor([UNSEEN[digit] for digit in range(10)], device=meaning.device)[meaning[:, 0]]  # (N, 2, 2)
    return (meaning.gather(1, pairs[:, :, 0]) == pairs[:, :, 1]).all(1)


def unseen_pair(digit: int, turned: bool = False) -> int:
    """The sentence of the two words that no network has seen together with this digit.

    Args: turned: with the first of the two words turned to its other end, a sentence that they have seen.
    """
    words = (SIZES - 1).tolist()
    words[0] = digit
    for k, (slot, level) in enumerate(UNSEEN[digit]):
        words[slot] = (0, 2, 3)[2 - level if turned and k == 0 else level]
    return int(numbers(torch.tensor([words])))


def text(sentence: int) -> str:
    """A sentence as words: `a bold slanted wide four`; `a digit` for the one that says nothing."""
    digit, *others = words_of(torch.tensor([sentence]))[0].tolist()
    adjectives = [words[i] for words, i in zip(WORDS[1:], others, strict=True) if i < 5]
    return " ".join(["a", *adjectives, WORDS[0][digit] if digit < 10 else "digit"])


def number(text: str) -> int:
    """The number of a sentence, in any order of its words.

    Raises: ValueError if a word is unknown, or two say the same thing of the digit.
    """
    words = (SIZES - 1).tolist()
    for word in text.lower().split():
        if word in ("a", "an", "digit"):
            continue
        places = [(slot, known.index(word)) for slot, known in enumerate(WORDS) if word in known]
        if not places:
            raise ValueError(f"text must use the words {[w for known in WORDS for w in known]}, got {word!r}")
        ((slot, place),) = places
        if words[slot] != SIZES[slot] - 1:
            raise ValueError(f"text must say each thing once, got a second word, {word!r}, in {text!r}")
        words[slot] = place
    return int(numbers(torch.tensor([words])))
