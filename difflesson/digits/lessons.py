"""What each task learns from: its examples, and its loss of one batch."""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from difflesson.digits import captions, data, recipes, words
from difflesson.digits.recipes import Recipe
from difflesson.losses import denoising_loss, times_and_noise


def denoiser_loss(
    network, x0: Tensor, label: Tensor, recipe: Recipe, generator: torch.Generator, null: int, teacher=None
) -> Tensor:
    """`losses.denoising_loss`, as the recipe has it."""
    return denoising_loss(
        network, recipe.noise, x0, label, recipe.label_dropout, generator, null, prediction=recipe.prediction,
        weighting=recipe.weighting, teacher=teacher, only_hidden=recipe.teacher == "itself",
    )  # fmt: skip


def judge_loss(network, x0: Tensor, label: Tensor, recipe: Recipe, generator: torch.Generator, null: int) -> Tensor:
    """Cross-entropy on clean digits, all shifted alike by up to `recipe.shift` pixels."""
    by = torch.randint(-recipe.shift, recipe.shift + 1, (2,), generator=generator, device=x0.device).tolist()
    return cross_entropy(network(x0.roll(by, dims=(2, 3))).float(), label)


def guide_loss(network, x0: Tensor, label: Tensor, recipe: Recipe, generator: torch.Generator, null: int) -> Tensor:
    """Cross-entropy at stratified noise levels."""
    return cross_entropy(network(*_noised(x0, recipe, generator)).float(), label)


def words_loss(network, x0: Tensor, meaning: Tensor, recipe: Recipe, generator: torch.Generator, null: int) -> Tensor:
    """A denoiser's loss, of one that is told a true sentence drawn from each meaning (batch, 4)."""
    return denoiser_loss(network, x0, captions.say(meaning, generator), recipe, generator, null)


def towers_loss(network, x0: Tensor, meaning: Tensor, recipe: Recipe, generator: torch.Generator, null: int) -> Tensor:
    """The contrastive loss of two encoders, of clean digits and of true sentences drawn from meanings (batch, 4)."""
    return words.contrastive_loss(network, x0, None, captions.say(meaning, generator))


def noisy_towers_loss(
    network, x0: Tensor, meaning: Tensor, recipe: Recipe, generator: torch.Generator, null: int
) -> Tensor:
    """The same at stratified noise levels."""
    sentence = captions.say(meaning, generator)
    return words.contrastive_loss(network, *_noised(x0, recipe, generator), sentence)


def _noised(x0: Tensor, recipe: Recipe, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    t, eps = times_and_noise(x0, generator)
    return recipe.noise.add_noise(x0, eps, t), recipe.noise.log_snr(t)


LOSSES = {  # task: loss(network, x0, label, recipe, generator, null) -> 0-dim; a denoiser's takes a teacher as well
    "denoiser": denoiser_loss, "judge": judge_loss, "guide": guide_loss,
    "words": words_loss, "towers": towers_loss, "noisy_towers": noisy_towers_loss,
}  # fmt: skip


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
