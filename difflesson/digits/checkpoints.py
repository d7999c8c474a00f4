"""Checkpoints: weights in safetensors; blueprint, recipe and a checksum of it all inside; a readable card beside.

Files are written under a temporary name and renamed, so that an interrupted save leaves the previous file intact. One
changed bit in a weight moves pixels and no shape: so a file whose content is not that of its checksum is refused.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from difflesson.digits.blueprint import Blueprint
from difflesson.schedule import Schedule

NO_NETWORKS = ("features", "reference")  # ship as well: what digits are compared with
STALE = 10.0  # seconds after which a lock that is held for milliseconds belongs to a process that was killed


class Checkpoint(NamedTuple):
    """A loaded network, in `eval()` mode without gradients for its weights, and its card.

    What it takes to use the network stands in the checkpoint and is carried by the network itself: `network.schedule`,
    `network.size` and `network.prediction`. The card is for people.
    """

    network: nn.Module
    card: dict[str, Any]

    @property
    def schedule(self) -> Schedule:
        """The noise schedule that the network was trained under."""
        return self.network.schedule


@contextmanager
def writing(path: Path, keep: bool = True) -> Iterator[Path]:
    """A temporary name to write under, beside `path`; on leaving, that file takes the place of `path` as a whole.

    Args: keep: False only tries whether that would work, and leaves nothing.
    If anything goes wrong, `path` is as it was.  Raises: OSError that names `path` and the reason, in one line.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        for folder in path.parents:
            if os.path.exists(folder) and not os.path.isdir(folder):
                raise OSError(f"{folder} is not a folder")
        if os.path.isdir(path):
            raise OSError("it is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())  # or a loss of power could leave an empty file under the final name
        if keep:
            os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise OSError(f"{path} cannot be written: {getattr(error, 'strerror', None) or error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def try_place(path: Path, size: int = 1) -> None:
    """See before the work whether its result can be written: `size` bytes as `path`.  Raises: OSError as `writing`."""
    new = [folder for folder in path.parents if not os.path.exists(folder)]
    try:
        with writing(path, keep=False) as temporary:
            temporary.write_bytes(bytes(size))
    finally:
        for folder in new:
            with suppress(OSError):
                folder.rmdir()


def checksum(tensors: dict[str, Tensor], metadata: dict[str, Any]) -> str:
    """SHA-256 of the metadata and of each tensor's name, dtype, shape and bytes.

    Raises: ValueError if there is a NaN or an infinity in the metadata: JSON has none.
    """
    digest = hashlib.sha256(json.dumps(metadata, allow_nan=False).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Write tensors, JSON-able metadata and the checksum of both to a safetensors file, atomically.

    Raises: ValueError if there is a NaN or an infinity in the metadata: JSON has none;  OSError as `writing`.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    about = json.dumps({"sha256": checksum(tensors, metadata), "metadata": metadata})
    with writing(path) as temporary:
        save_file(tensors, temporary, metadata={"difflesson": about})  # one entry: several come in any order


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_tensors` wrote.  Raises: ValueError if the file is damaged or is not one of ours.

    The tensors are copies: a file that is still mapped into memory can be neither replaced nor deleted on Windows.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("difflesson", "null"))
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}
        if not isinstance(about, dict) or about.keys() != {"sha256", "metadata"}:
            raise ValueError("it has no metadata of ours with a sha256")
        if about["sha256"] != checksum(tensors, about["metadata"]):
            raise ValueError("it was damaged or changed, its content is not that of its checksum")
        return tensors, dict(about["metadata"])
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ValueError(f"path {path} is not a readable difflesson checkpoint: {error}") from error


def write_card(path: Path, card: dict[str, Any]) -> None:
    """Write a card as JSON beside the checkpoint `path` (same name, suffix .json), atomically.

    Raises: ValueError if there is a NaN or an infinity in it: JSON has none;  OSError if it cannot be written.
    """
    content = json.dumps(card, indent=2, allow_nan=False) + "\n"
    with writing(path.with_suffix(".json")) as temporary:
        temporary.write_text(content, encoding="utf-8", newline="\n")


def read_card(path: Path) -> dict[str, Any]:
    """The card beside the checkpoint `path`, empty if there is none.

    Raises: ValueError if it is no JSON object, or its metrics are not `{setting: {gamma: row}}`.
    """
    card = path.with_suffix(".json")
    if not card.exists():
        return {}

    def refuse(constant):
        raise ValueError(f"JSON has no {constant}")

    try:
        content = json.loads(card.read_text(encoding="utf-8"), parse_constant=refuse)
        for curve in content.get("metrics", {}).values():
            _ = [float(gamma) for gamma in curve.keys()]
    except (ValueError, TypeError, AttributeError, RecursionError, OSError) as error:
        wanted = "a JSON object with metrics {setting: {gamma: row}}"
        raise ValueError(f"card {card} must be {wanted}: {error}") from error
    return content


def add_to_card(path: Path, setting: str, gamma: str, row: dict[str, Any]) -> None:
    """Write one row of metrics into the card beside `path`, sorted by gamma; rows of other processes stay.

    Raises: ValueError as `read_card`;  OSError if the card cannot be written.
    """
    lock = path.with_suffix(".json.lock")
    while True:
        try:
            lock.open("x").close()
            break
        except FileExistsError:
            with suppress(OSError):
                if time.time() - lock.stat().st_mtime > STALE:
                    lock.unlink()
            time.sleep(0.01)
    try:
        card = read_card(path)
        metrics = card.setdefault("metrics", {})
        rows = metrics.get(setting, {}) | {gamma: row}
        metrics[setting] = dict(sorted(rows.items(), key=lambda item: float(item[0])))
        write_card(path, card)
    finally:
        lock.unlink(missing_ok=True)


def save(path: Path, blueprint: Blueprint, weights: dict[str, Tensor], card: dict[str, Any]) -> None:
    """Save weights for shipping: half precision, with the blueprint of their network and the card's recipe, if it has
    one; the card beside, and written last.

    Args: weights: the state dict of a network that `blueprint` builds (the averaged one).
    Raises: ValueError if a weight is not finite in half precision (above 65,504 none is), or the card has a NaN.
    """
    weights = {name: w.half() if w.is_floating_point() else w for name, w in weights.items()}
    if broken := not_finite(weights):
        raise ValueError(f"weights must be finite in half precision, {broken} is not")
    save_tensors(path, weights, blueprint.write() | ({"recipe": card["recipe"]} if "recipe" in card else {}))
    write_card(path, card)


def load(path: Path | str, device: torch.device | str = "cpu") -> Checkpoint:
    """Load a checkpoint written by `save`.

    Args: path: a file, or the name of a shipped one ("denoiser", "pocket", "judge", "guide", ...).
    Raises: ValueError if there is no such file, or it is damaged, or the weights do not fit its network or are not
    finite, or it does not say, or says something unknown, of network, prediction, schedule, data set or image size, or
    its card is damaged.
    """
    path = located(path)
    if not path.exists():
        raise ValueError(f"path {path} does not exist; `difflesson train` makes checkpoints")
    weights, metadata = load_tensors(path)
    if broken := not_finite(weights):
        raise ValueError(f"path {path} is damaged, or its training diverged: {broken} has NaN or infinity in it")
    try:
        with torch.random.fork_rng(devices=[]):  # it is filled with random numbers before it gets its weights
            network = Blueprint.read(metadata).build()
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"path {path} is not a network that this version can use: {error}") from error
    try:
        network.load_state_dict(weights)  # half to single precision on copy
    except RuntimeError as error:
        raise ValueError(f"path {path} does not fit this version's {metadata['network']}: {error}") from error
    return Checkpoint(network.to(device).eval().requires_grad_(False), read_card(path))


def not_finite(weights: dict[str, Tensor]) -> str:
    """The name of the first tensor with NaN or infinity in it, empty if there is none."""
    return next((name for name, weight in weights.items() if not bool(weight.isfinite().all())), "")


def located(path: Path | str) -> Path:
    """The file of a checkpoint that is given as one, or as the name of a shipped one.  Raises: ValueError as there."""
    return Path(path) if Path(path).suffix else shipped(str(path))


def shipped(name: str) -> Path:
    """Path of a checkpoint that ships with the package.  Raises: ValueError naming the networks there are."""
    folder = Path(str(resources.files("difflesson.digits"))) / "weights"
    path = folder / f"{name}.safetensors"
    if not path.exists():
        names = sorted({p.stem for p in folder.glob("*.safetensors")} - {*NO_NETWORKS})
        raise ValueError(f"name must be one of {names}, got {name!r}")
    return path
