"""The state of a training run, in a file: all that its next step depends on, stored and restored."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from difflesson.digits import checkpoints


def prepare(state: Path, final: Path, weights: int) -> None:
    """Clear away what killed saves left, and see before the work that state, checkpoint and card can be written.

    Args: weights: how many numbers the network has.  Raises: OSError if something cannot, or there is no room.
    """
    for path in (state, final, final.with_suffix(".json")):
        for left in path.parent.glob(f"{path.name}.*.tmp"):
            left.unlink()
        checkpoints.try_place(path)
    # A new state is written beside the old one, each 4 numbers of 4 bytes a weight; then a checkpoint, and some words.
    there = state.stat().st_size if state.exists() else 0
    checkpoints.try_place(state, max(1, (2 * 16 + 2) * weights + 2**16 - there))


def store(path: Path, metadata: dict[str, Any], network, average, optimizer) -> None:
    """Everything the next step depends on, as named tensors: no pickle."""
    inner = getattr(optimizer, "optimizer", optimizer)
    tensors = {f"network.{k}": v for k, v in network.state_dict().items()}
    tensors |= {f"average.{k}": v for k, v in average.state_dict().items()}
    for index, values in inner.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{k}": v for k, v in values.items()}
    checkpoints.save_tensors(path, {k: v.clone() for k, v in tensors.items()}, metadata)


def restore(path, recipe, setting, network, average, optimizer) -> tuple[int, float, list, list[str]]:
    """Load a state written by `store`; answers (next step, seconds spent, losses so far, versions of torch).

    Raises: ValueError if it is another recipe's or setting's, damaged, beyond its last step or without its optimiser.
    """
    if not path.exists():
        return 0, 0.0, [], [str(torch.__version__)]
    tensors, metadata = checkpoints.load_tensors(path)
    if metadata.get("recipe") != json.loads(json.dumps(asdict(recipe))):  # JSON knows lists, but no tuples
        raise ValueError(f"folder holds the state of another recipe ({path}); move it away or choose another folder")
    before = metadata.get("setting", {})
    for name, value in setting.items():
        if before.get(name) != value:
            need = f"{name} must be {before.get(name)!r} to go on from {path}, got {value!r}"
            raise ValueError(f"{need}; or choose another folder")

    def part(prefix):
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in part("optimizer.").items():
        index, name = key.split(".", 1)
        moments.setdefault(int(index), {})[name] = value
    shapes = {i: {"step": (), "exp_avg": p.shape, "exp_avg_sq": p.shape} for i, p in enumerate(network.parameters())}
    try:
        if {i: {k: v.shape for k, v in values.items()} for i, values in moments.items()} != shapes:
            raise ValueError("the optimiser's tensors are not those of this network")
        if broken := checkpoints.not_finite(tensors):
            raise ValueError(f"{broken} has NaN or infinity in it")
        network.load_state_dict(part("network."))
        average.load_state_dict(part("average."))
        optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
        step, seconds, losses, versions = (metadata[name] for name in ("step", "seconds", "losses", "torch"))
        if not 0 < step < recipe.steps:
            raise ValueError(f"step must be in 1..{recipe.steps - 1}, got {step}")
        return step, float(seconds), list(losses), list(dict.fromkeys([*versions, str(torch.__version__)]))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"state {path} is not whole: {error}; move it away or choose another folder") from error
