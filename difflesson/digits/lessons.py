"""What a network of sentences learns from: digits with what is true of them, and sentences drawn from that."""

from pathlib import Path

import torch
from torch import Tensor

from difflesson.digits import captions, data, recipes, words
from difflesson.digits.recipes import Recipe
from difflesson.losses import denoising_loss, times_and_noise


def sentence_loss(
    network, x0: Tensor, meaning: Tensor, recipe: Recipe, generator: torch.Generator, null: int
) -> Tensor:
    """Of a network that is given true sentences: a denoiser's loss, or the contrastive one of two encoders.

    Args: meaning: (batch, 4), of which `captions.say` draws the sentences.
    """
    sentence = captions.say(meaning, generator)
    if recipe.task == "words":
        return denoising_loss(
            network, recipe.noise, x0, sentence, recipe.label_dropout, generator, null,
            prediction=recipe.prediction, weighting=recipe.weighting,
        )  # fmt: skip
    if recipe.task == "towers":
        return words.contrastive_loss(network, x0, None, sentence)
    t, eps = times_and_noise(x0, generator)
    return words.contrastive_loss(network, recipe.noise.add_noise(x0, eps, t), recipe.noise.log_snr(t), sentence)


def examples(recipe: Recipe, folder: Path | None) -> tuple[Tensor, Tensor]:
    """The training pictures (N, 1, H, W), and the label of each, or where the network learns sentences its meaning."""
    digits = data.load(recipe.data, "train", folder)
    images, labels = data.to_unit(digits.images), digits.labels
    if recipe.task not in recipes.OF_SENTENCES:
        return images, labels
    parts = zip(images.split(2_000), labels.split(2_000), strict=True)
    meaning = torch.cat([captions.meanings(*part) for part in parts])
    seen = ~captions.unseen(meaning)
    return images[seen], meaning[seen]
