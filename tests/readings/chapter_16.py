"""What the letters of chapter 16's equations stand for: other pages of ink, sentences, tables and points."""

from itertools import combinations
from math import comb

import torch
from torch import Tensor

from difflesson import guidance, similarity
from difflesson.denoiser import Prediction
from difflesson.digits import captions, words
from difflesson.schedule import vp_linear
from tests.oracles.mixtures import FOUR
from tests.readings.common import F64, expectation, gradient
from tools.formula import Reading, reads

PAGE = torch.rand(6, 5, generator=torch.Generator().manual_seed(1), dtype=F64)


def summed(values: Tensor) -> Tensor:
    return values.sum(0, keepdim=True)


@reads("eq-stroke-width")
def stroke_width() -> Reading:
    """A random page with paper around it; i runs over all its pixels but the last row and column of paper."""
    wide = torch.zeros(8, 7, dtype=F64)
    wide[1:-1, 1:-1] = PAGE
    return Reading(
        {"w": captions.stroke_width(PAGE[None]), r"\sum_i": summed, "a_i": wide[:-1, :-1].reshape(-1),
         "d_i": wide[1:, :-1].reshape(-1), "r_i": wide[:-1, 1:].reshape(-1)},
    )  # fmt: skip


@reads("eq-slant")
def slant() -> Reading:
    v, u = torch.meshgrid(-torch.arange(6, dtype=F64), torch.arange(5, dtype=F64), indexing="ij")
    share, u, v = (PAGE / PAGE.sum()).reshape(-1), u.reshape(-1), v.reshape(-1)
    return Reading(
        {r"\mathbb E": expectation(share), "u": u - share @ u, "v": v - share @ v, "s": captions.slant(PAGE[None]),
         "b": captions.breadth(PAGE[None])},
        statements=2,
    )  # fmt: skip


def chance_of_words(words_: Tensor) -> float:
    """Of a sentence's words to come up for a picture of which they are true: how many, which, in which wording."""
    said = [k for k in range(4) if int(words_[k]) < int(captions.SIZES[k]) - 1]
    wordings = [2 for k in said if k and int(words_[k]) != 2]
    return 1 / 5 / comb(4, len(said)) / 2 ** len(wordings)


def chances_by_enumeration(meaning: list[int]) -> dict[int, float]:
    """p(c | x) of every sentence: every count, every choice of things, every wording, one after the other."""
    spoken: dict[int, float] = {}
    wordings = [[meaning[0]]] + [{0: [0, 1], 1: [2], 2: [3, 4]}[level] for level in meaning[1:]]
    for count in range(5):
        for chosen in combinations(range(4), count):
            lists = [[10 if k == 0 else 5] if k not in chosen else wordings[k] for k in range(4)]
            every = torch.cartesian_prod(*[torch.tensor(one) for one in lists])
            for number in captions.numbers(every).tolist():
                spoken[number] = spoken.get(number, 0) + 1 / 5 / comb(4, count) / len(every)
    return spoken


@reads("eq-true-sentence")
def true_sentence() -> Reading:
    """Five pictures, seven sentences: a row for each pair."""
    meaning = torch.tensor([[4, 2, 2, 1], [4, 2, 0, 1], [7, 0, 1, 1], [7, 2, 1, 0], [4, 1, 2, 2]])
    texts = ("a digit", "a four", "a bold digit", "a heavy four", "a slanted four", "a thin seven", "an upright digit")
    asked = torch.tensor([captions.number(text) for text in texts])
    spoken = [chances_by_enumeration(m) for m in meaning.tolist()]
    given = torch.tensor([[one.get(int(c), 0.0) for c in asked] for one in spoken], dtype=F64)
    holds = torch.stack([captions.true_words(asked, m.expand(7, 4))[1].all(1) for m in meaning]).double()
    pi = torch.tensor([chance_of_words(w) for w in captions.words_of(asked)], dtype=F64)

    def over_x(values: Tensor) -> Tensor:
        table = values.expand(35, -1, -1).unflatten(0, (5, 7))
        return table.mean(0, keepdim=True).expand(5, 7, 1, 1).flatten(0, 1)

    return Reading(
        {"p(c | x)": given.reshape(-1), r"\pi(c)": pi.repeat(5), "h(c, x)": holds.reshape(-1),
         "p(c)": given.mean(0).repeat(5), r"\mathbb E_x": over_x},
        statements=2, equivalent=dict.fromkeys((
            r"( c ) [h ( c , x ) -> ( h ( c , x ) ) ^ 2] , \qquad \frac",
            r"= \frac { [h ( c , x ) -> ( h ( c , x ) ) ^ 2] } { \mathbb",
            r"_ x [ [h ( c , x ) -> ( h ( c , x ) ) ^ 2] ] } .",
        ), "0 and 1 are their own squares"),
    )  # fmt: skip


@reads("eq-infonce")
def infonce() -> Reading:
    """Three pictures and their sentences, in the package's towers; a row for each pair (i, j)."""
    torch.manual_seed(3)
    towers = words.Towers((8, 16), 16, 6).double().eval().requires_grad_(False)
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(4), dtype=F64)
    sentences = torch.tensor([captions.number(text) for text in ("a bold two", "a four", "a slim digit")])
    loss = words.contrastive_loss(towers, x, None, sentences).double()
    f = towers.scale * similarity.cosine(towers.image(x).float()[:, None], towers.text(sentences).float()).double()
    f = 4 * f  # larger differences, so that every mistake shows

    def over(dim: int):
        def operator(values: Tensor) -> Tensor:
            table = values.expand(9, -1, -1).unflatten(0, (3, 3))
            return table.sum(dim, keepdim=True).expand(3, 3, 1, 1).flatten(0, 1)

        return operator

    assert abs(float(written_out(f / 4) - loss)) < 1e-5
    return Reading(
        {r"\ell": written_out(f), "N": 3, r"\sum_i": over(0), r"\sum_j": over(1),
         "f_{ii}": f.diagonal().repeat_interleave(3), "f_{ij}": f.reshape(-1), "f_{ji}": f.T.reshape(-1)},
    )  # fmt: skip


def written_out(f: Tensor) -> Tensor:
    """Two cross-entropies, from torch."""
    right = torch.arange(len(f))
    return (torch.nn.functional.cross_entropy(f, right) + torch.nn.functional.cross_entropy(f.T, right)) / 2


@reads("eq-best-similarity")
def best_similarity() -> Reading:
    """Noisy points of a mixture with two labels: f* from densities, p(c | x) from the posterior, by other code."""
    schedule, mixture = vp_linear(0.3, 8.0), FOUR.mixture()
    noisy = mixture.noised(schedule.alpha(0.4), schedule.sigma(0.4))
    x = torch.tensor([[-0.9, 0.2], [1.3, -0.7], [0.4, 1.1]], dtype=F64).requires_grad_()
    ratio = noisy.given(1).log_prob(x) - noisy.log_prob(x)
    letters = {
        r"f^\ast(x, c)": ratio + 0.7, r"\kappa": 0.7, "p(c | x)": noisy.class_log_prob(x, 1).exp(),
        "p(c)": mixture.weights[torch.tensor(mixture.labels) == 1].sum(),
        r"\nabla_x": gradient(x),
    }  # fmt: skip
    return Reading(letters, statements=2)


@reads("eq-sum-of-words")
def sum_of_words() -> Reading:
    """The package's vector of one sentence; the row for each thing that may be said, from the table, by hand."""
    torch.manual_seed(5)
    embedding = words.SentenceEmbedding(4).double().requires_grad_(False)
    sentence = torch.tensor([captions.number("a receding broad four")])
    rows = embedding.word.weight[torch.tensor([0 + 4, 11 + 5, 17 + 1, 23 + 4])]
    return Reading({"e(c)": embedding(sentence)} | {f"W_{{{k + 1}, c_{k + 1}}}": rows[[k]] for k in range(4)})


@reads("eq-style-at-the-guess")
def style_at_the_guess() -> Reading:
    """Two noisy points of 2 x 3 numbers, three places with two features each: the guidance of the package, and G."""
    schedule, t = vp_linear(0.3, 8.0), torch.tensor(0.4, dtype=F64)
    x = torch.randn(2, 6, generator=torch.Generator().manual_seed(6), dtype=F64).requires_grad_()
    G = torch.tensor([[1.3, 0.4], [0.4, 0.6]], dtype=F64)
    sigma, alpha = schedule.sigma(t), schedule.alpha(t)

    def denoiser(x: Tensor, t: Tensor) -> Prediction:
        return Prediction.from_x0(x, torch.tanh(x) + 0.1 * x.flip(1), alpha, sigma)

    def style(x: Tensor, t: Tensor) -> Tensor:
        return -similarity.gram_distance(denoiser(x, t).x0.unflatten(1, (3, 2)), G) / G.square().sum()

    guided = guidance.tilt(denoiser, guidance.gradient(style), 2.5, schedule)(x.detach(), t).eps
    places = denoiser(x, t).x0.unflatten(1, (3, 2)).unbind(1)
    grams = sum(f[:, :, None] * f[:, None, :] for f in places) / 3
    return Reading(
        {r"\hat\varepsilon_\gamma": denoiser(x, t).eps.detach(), r"\hat\varepsilon": guided, r"\lambda": 2.5,
         r"\sigma_t": sigma, r"\nabla_{x_t}": gradient(x), r"G(\hat x_0)": grams, "G": G[None]},
        {r"\sigma_s": schedule.sigma(0.2), r"\alpha_t": alpha},
    )  # fmt: skip
