"""Checkpoints: weights in safetensors, the recipe inside, a readable card beside.

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

from difflesson.digits.networks import DigitClassifier, DigitUNet

NETWORKS = {"DigitUNet": DigitUNet, "DigitClassifier": DigitClassifier}


class Checkpoint(NamedTuple):
    """A loaded network, in `eval()` mode without gradients for its weights, and its card."""

    network: nn.Module
    card: dict[str, Any]


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Write tensors and JSON-able metadata to a safetensors file, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + f".{os.getpid()}.tmp")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(tensors, temporary, metadata={"difflesson": json.dumps(metadata)})
    os.replace(temporary, path)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_tensors` wrote.  Raises: ValueError if the file is damaged or is not one of ours.

    The tensors are copies: a file that is still mapped into memory can be neither replaced nor deleted on Windows.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {})["difflesson"])
            return {name: file.get_tensor(name).clone() for name in file.keys()}, metadata
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ValueError(f"path {path} is not a readable difflesson checkpoint: {error}") from error


def write_card(path: Path, card: dict[str, Any]) -> None:
    """Write a card as JSON beside the checkpoint `path` (same name, suffix .json), atomically."""
    temporary = path.with_suffix(f".json.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8", newline="\n")
    os.replace(temporary, path.with_suffix(".json"))


def save(path: Path, network: nn.Module, weights: dict[str, Tensor], arguments: dict[str, Any], card: dict[str, Any]):
    """Save weights for shipping: half precision, with what is needed to build the network again, and the card.

    Args: network: gives the class name;  weights: its state dict (the averaged one);  arguments: of its constructor.
    """
    weights = {name: w.half() if w.is_floating_point() else w for name, w in weights.items()}
    save_tensors(path, weights, {"network": type(network).__name__, "arguments": arguments})
    write_card(path, card)


def load(path: Path | str, device: torch.device | str = "cpu") -> Checkpoint:
    """Load a checkpoint written by `save`.

    Args: path: a file, or the name of a shipped one ("denoiser", "judge", "guide").
    Raises: ValueError if there is no such file, or it is damaged, or names an unknown network, or does not fit it.
    """
    path = Path(path)
    if not path.suffix:
        path = shipped(str(path))
    if not path.exists():
        raise ValueError(f"path {path} does not exist; `difflesson train` makes checkpoints")
    weights, metadata = load_tensors(path)
    if metadata.get("network") not in NETWORKS:
        raise ValueError(f"path {path} holds {metadata.get('network')!r}; allowed are {sorted(NETWORKS)}")
    try:
        network = NETWORKS[metadata["network"]](**metadata["arguments"])
        network.load_state_dict(weights)  # half to single precision on copy
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"path {path} does not fit this version's {metadata['network']}: {error}") from error
    card = path.with_suffix(".json")
    return Checkpoint(
        network.to(device).eval().requires_grad_(False),
        json.loads(card.read_text(encoding="utf-8")) if card.exists() else {},
    )


def shipped(name: str) -> Path:
    """Path of a checkpoint that ships with the package.  Raises: ValueError naming the ones there are."""
    folder = Path(str(resources.files("difflesson.digits"))) / "weights"
    path = folder / f"{name}.safetensors"
    if not path.exists():
        raise ValueError(f"name must be one of {sorted(p.stem for p in folder.glob('*.safetensors'))}, got {name!r}")
    return path
