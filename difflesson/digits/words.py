"""Networks that know sentences: a denoiser that is told one, and two encoders that compare one with a picture.

Sentences are numbers (`captions`), so the denoiser goes wherever one with labels does, its null label `a digit`.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from difflesson import similarity
from difflesson.digits import captions
from difflesson.digits.networks import DigitClassifier, DigitUNet
from difflesson.parts import Part
from difflesson.schedule import Schedule


class SentenceEmbedding(nn.Module):
    """The sum of the vectors of a sentence's words; "unsaid" has a vector for each thing that may be said."""

    def __init__(self, width: int):
        super().__init__()
        self.word = nn.Embedding(int(captions.SIZES.sum()), width)
        self.register_buffer("first", captions.SIZES.cumsum(0) - captions.SIZES, persistent=False)

    def forward(self, sentence: Tensor) -> Tensor:
        """Sentences' numbers (batch,) -> (batch, width)."""
        return self.word(captions.words_of(sentence) + self.first).sum(1)


class WordsUNet(DigitUNet):
    """A `DigitUNet` that is told a sentence: where the label's vector stood, stands the sum of the words' vectors.

    Args: as there; `classes` is the number of sentences, and the null label the one that says nothing.
    """

    def __init__(self, widths: tuple[int, int] = (64, 128), embedding: int = 128):
        super().__init__(widths, 1, embedding)
        self.classes, self.label = captions.SENTENCES, SentenceEmbedding(embedding)


class Towers(nn.Module):
    """Two encoders into one space: of pictures, told how noisy they are, and of sentences.

    `towers(x, log_snr, sentence)` is the cosine of the angle between the two; `scale`, learned with them, is what
    the loss multiplies it by, 1 over the temperature.

    Args: widths, embedding: of the image encoder, a `DigitClassifier` without classes;  space: length of a vector.
    """

    def __init__(self, widths: tuple[int, ...] = (16, 40), embedding: int = 32, space: int = 32):
        super().__init__()
        self.classes = captions.SENTENCES
        self.image, self.text = DigitClassifier(widths, space, embedding), SentenceEmbedding(space)
        self.log_scale = nn.Parameter(torch.tensor(2.0))

    @property
    def scale(self) -> Tensor:
        """1 / tau, at most 100."""
        return self.log_scale.clamp_max(4.6).exp()

    def forward(self, x: Tensor, log_snr: Tensor | None, sentence: Tensor) -> Tensor:
        """x: (batch, 1, H, W), log_snr: (batch,), or None for clean ones, sentence: (batch,)  ->  cosines (batch,)."""
        return similarity.cosine(self.image(x, log_snr).float(), self.text(sentence).float())


def contrastive_loss(towers: Towers, x: Tensor, log_snr: Tensor | None, sentence: Tensor) -> Tensor:
    """Which of the batch's sentences belongs to a picture, and which of its pictures to a sentence.  [eq-infonce]

        - mean_i ( log softmax_j(f_ij)_i + log softmax_j(f_ji)_i ) / 2,     f_ij = cos(image_i, text_j) / tau

    Args: x: (batch, 1, H, W);  log_snr: (batch,), or None for clean pictures;  sentence: (batch,).
    Source: van den Oord et al. 2018 (arXiv 1807.03748), eq. 4; both ways, Radford et al. 2021 (arXiv 2103.00020).
    """
    pictures = functional.normalize(towers.image(x, log_snr).float(), dim=1)
    fits = towers.scale * pictures @ functional.normalize(towers.text(sentence).float(), dim=1).T
    right = torch.arange(len(x), device=x.device)
    return (functional.cross_entropy(fits, right) + functional.cross_entropy(fits.T, right)) / 2


def _for_each(sentence: int | Tensor, x: Tensor) -> Tensor:
    return torch.as_tensor(sentence, device=x.device).expand(len(x))


@dataclass(frozen=True, eq=False)
class sentence_cosine(Part):
    """The cosine of noisy pictures with a sentence, (batch,), for `guidance.gradient`.

    Args: sentence: a number, or one for each picture, (batch,);  told: whether the encoder hears the noise level; one
    that was trained on clean pictures alone does not.
    """

    towers: nn.Module = field(repr=False)
    schedule: Schedule
    sentence: int | Tensor
    told: bool = True

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        log_snr = self.schedule.log_snr(t).to(x.device, torch.float32).expand(len(x)) if self.told else None
        return self.towers(x, log_snr, _for_each(self.sentence, x)).to(x.dtype)


@dataclass(frozen=True, eq=False)
class guess_cosine(Part):
    """The cosine of the guessed clean picture with a sentence, (batch,); its gradient goes through the denoiser.

    Args: denoiser: differentiable, of no sentence;  towers: of clean pictures;  sentence: as in `sentence_cosine`.
    """

    denoiser: Part
    towers: nn.Module = field(repr=False)
    sentence: int | Tensor

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self.towers(self.denoiser(x, t).x0, None, _for_each(self.sentence, x)).to(x.dtype)


def places(encoder: DigitClassifier, x: Tensor) -> Tensor:
    """What the first block of an encoder sees in each place of clean pictures: (batch, places, channels)."""
    condition = functional.silu(encoder.noise(x.new_full(x.shape[:1], math.inf)))
    return encoder.blocks[0](encoder.enter(functional.pixel_unshuffle(x, 2)), condition).flatten(2).mT


@dataclass(frozen=True, eq=False)
class guess_style(Part):
    """Minus the Gram distance of the guessed clean picture from a reference, as a share of the reference's square.

        - |G(x0) - G_ref|^2 / |G_ref|^2      [eq-style-at-the-guess]

    Args: denoiser: differentiable;  encoder: whose `places` are the features;  reference: a Gram matrix (k, k).
    Source: Gatys et al. 2016, eq. 4, for the distance.
    """

    denoiser: Part
    encoder: nn.Module = field(repr=False)
    reference: Tensor

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        seen = places(self.encoder, self.denoiser(x, t).x0)
        return -similarity.gram_distance(seen, self.reference) / self.reference.square().sum()
