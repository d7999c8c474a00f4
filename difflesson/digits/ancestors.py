"""The networks that a training run begins with or learns from: found by name, checked, and known by their bytes."""

import hashlib
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from difflesson.digits import checkpoints
from difflesson.digits.networks import DigitUNet
from difflesson.digits.recipes import Recipe
from difflesson.digits.words import WordsUNet


class Ancestor(NamedTuple):
    """A trained network, and the SHA-256 of its file."""

    network: nn.Module
    sha256: str


def find(recipe: Recipe, folder: Path) -> dict[str, Ancestor]:
    """The networks that a recipe names, under "start" and "teacher": `{folder}/{name}.safetensors`, or the shipped one.

    Raises: ValueError if there is neither, it is damaged, or it is not what this recipe's network can begin with, or
    learn from.
    """
    names = {"start": recipe.start, "teacher": "" if recipe.teacher == "itself" else recipe.teacher}
    return {role: _found(role, name, recipe, folder) for role, name in names.items() if name}


def _found(role: str, name: str, recipe: Recipe, folder: Path) -> Ancestor:
    path = folder / f"{name}.safetensors"
    try:
        path = path if path.exists() else checkpoints.shipped(name)
    except ValueError as error:
        raise ValueError(
            f"{role} must be a checkpoint in {folder}, where `difflesson train {name} --folder {folder}` puts it, or a "
            f"shipped one; got {name!r}: {error}"
        ) from error
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    network = checkpoints.load(path).network
    with torch.random.fork_rng(devices=[]):  # a new network is filled with random numbers
        new = recipe.blueprint.build()
    (_check_start if role == "start" else _check_teacher)(path, network, new)
    return Ancestor(network, sha256)


def weights_for(new: nn.Module, start: nn.Module) -> dict[str, Tensor]:
    """The weights that `new` begins with: those of `start`, and where it has a vector for each label and `new` one for
    each word, the vectors of the digits, and of "unsaid" for no label; the other words begin at 0.
    """
    weights = start.state_dict()
    if isinstance(new, WordsUNet) and (table := weights.pop("label.weight", None)) is not None:
        words = torch.zeros_like(new.label.word.weight)
        words[: len(table)] = table[: len(words)]
        weights["label.word.weight"] = words
    return weights


def _check_start(path: Path, network: nn.Module, new: nn.Module) -> None:
    there, here = (
        {name: tuple(weight.shape) for name, weight in weights.items()}
        for weights in (weights_for(new, network), new.state_dict())
    )
    if (
        not (type(network) is type(new) or isinstance(new, WordsUNet) and type(network) is DigitUNet)
        or there != here
        or network.prediction != new.prediction
    ):
        raise ValueError(f"start must fit the {_kind(new)} to be trained, {path} is a {_kind(network)}")


def _check_teacher(path: Path, network: nn.Module, new: nn.Module) -> None:
    there, here = ((type(one), one.size, one.classes, one.prediction) for one in (network, new))
    if there != here:
        raise ValueError(f"teacher must be like the {_kind(new)} to be trained, {path} is a {_kind(network)}")


def _kind(network: nn.Module) -> str:
    count = sum(weight.numel() for weight in network.parameters())
    images = f"{network.size}x{network.size} images"
    return f"{type(network).__name__} of {count:,} weights that predicts {network.prediction} for {images}"
