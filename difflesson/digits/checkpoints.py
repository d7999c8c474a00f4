"""Checkpoints: weights in safetensors, the blueprint inside, a readable card beside.

Files are written under a temporary name and renamed, so that an interrupted save leaves the previous file intact.
"""

import json
import os
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from difflesson.digits.blueprint import Blueprint
from difflesson.schedule import Schedule


class Checkpoint(NamedTuple):
    """A loaded network, in `eval()` mode without gradients for its weights, and its card.

    What it takes to use the network stands in the checkpoint and is carried by the network itself: `network.schedule`
    and `network.size`. The card is for people.
    """

    network: nn.Module
    card: dict[str, Any]

    @property
    def schedule(self) -> Schedule:
        """The noise schedule that the network was trained under."""
        return self.network.schedule


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Write tensors and JSON-able metadata to a safetensors file, atomically.

    Raises: ValueError if there is a NaN or an infinity in the metadata: JSON has none.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + f".{os.getpid()}.tmp")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(tensors, temporary, metadata={"difflesson": json.dumps(metadata, allow_nan=False)})
    os.replace(temporary, path)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_tensors` wrote.  Raises: ValueError if the file is damaged or is not one of ours.

    The tensors are copies: a file that is still mapped into memory can be neither replaced nor deleted on Windows.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(json.loads((file.metadata() or {})["difflesson"]))
            return {name: file.get_tensor(name).clone() for name in file.keys()}, metadata
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ValueError(f"path {path} is not a readable difflesson checkpoint: {error}") from error


def write_card(path: Path, card: dict[str, Any]) -> None:
    """Write a card as JSON beside the checkpoint `path` (same name, suffix .json), atomically.

    Raises: ValueError if there is a NaN or an infinity in it: JSON has none.
    """
    content = json.dumps(card, indent=2, allow_nan=False) + "\n"
    temporary = path.with_suffix(f".json.{os.getpid()}.tmp")
    temporary.write_text(content, encoding="utf-8", newline="\n")
    os.replace(temporary, path.with_suffix(".json"))


def save(path: Path, blueprint: Blueprint, weights: dict[str, Tensor], card: dict[str, Any]) -> None:
    """Save weights for shipping: half precision, the blueprint of their network with them, and the card beside.

    Args: weights: the state dict of a network that `blueprint` builds (the averaged one).
    Raises: ValueError if a weight is not finite in half precision (above 65,504 none is), or the card has a NaN.
    """
    weights = {name: w.half() if w.is_floating_point() else w for name, w in weights.items()}
    if broken := not_finite(weights):
        raise ValueError(f"weights must be finite in half precision, {broken} is not")
    save_tensors(path, weights, blueprint.write())
    write_card(path, card)


def load(path: Path | str, device: torch.device | str = "cpu") -> Checkpoint:
    """Load a checkpoint written by `save`.

    Args: path: a file, or the name of a shipped one ("denoiser", "judge", "guide").
    Raises: ValueError if there is no such file, or it is damaged, or the weights do not fit its network or are not
    finite, or it does not say, or says something unknown, of network, prediction, schedule, data set or image size.
    """
    path = Path(path)
    if not path.suffix:
        path = shipped(str(path))
    if not path.exists():
        raise ValueError(f"path {path} does not exist; `difflesson train` makes checkpoints")
    weights, metadata = load_tensors(path)
    if broken := not_finite(weights):
        raise ValueError(f"path {path} is damaged, or its training diverged: {broken} has NaN or infinity in it")
    try:
        network = Blueprint.read(metadata).build()
    except (TypeError, ValueError) as error:
        raise ValueError(f"path {path} is not a network that this version can use: {error}") from error
    try:
        network.load_state_dict(weights)  # half to single precision on copy
    except RuntimeError as error:
        raise ValueError(f"path {path} does not fit this version's {metadata['network']}: {error}") from error
    card = path.with_suffix(".json")
    return Checkpoint(
        network.to(device).eval().requires_grad_(False),
        json.loads(card.read_text(encoding="utf-8")) if card.exists() else {},
    )


def not_finite(weights: dict[str, Tensor]) -> str:
    """The name of the first tensor with NaN or infinity in it, empty if there is none."""
    return next((name for name, weight in weights.items() if not bool(weight.isfinite().all())), "")


def shipped(name: str) -> Path:
    """Path of a checkpoint that ships with the package.  Raises: ValueError naming the ones there are."""
    folder = Path(str(resources.files("difflesson.digits"))) / "weights"
    path = folder / f"{name}.safetensors"
    if not path.exists():
        raise ValueError(f"name must be one of {sorted(p.stem for p in folder.glob('*.safetensors'))}, got {name!r}")
    return path
