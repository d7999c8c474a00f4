"""Training the digit networks: one loop for every task.

All randomness of step k is drawn from generators seeded by (seed, k), and the training state is saved atomically:
a run killed at any moment and started again (on the same hardware, with as many processes and in the same precision)
ends in the same weights as one that was never interrupted. A run that diverges stops, and leaves no broken network
behind; a finished one is not overwritten by mistake. `accelerate` spreads the work: the same command runs on one CPU or
on several machines.
"""

import math
import shlex
import sys
import time
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from difflesson import __version__
from difflesson.digits import ancestors, checkpoints, data, lessons, recipes, states
from difflesson.digits.recipes import Recipe


def step_generator(seed: int, step: int, stream: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator whose numbers depend on (seed, step, stream) alone."""
    mixed = (seed * 1_000_003 + step) * 1_009 + stream
    return torch.Generator(device).manual_seed(mixed % 2**63)


def batch_indices(recipe: Recipe, size: int, step: int) -> Tensor:
    """Indices of the examples of one step: every epoch runs through a fresh permutation.  Returns (batch,)."""
    position = torch.arange(step * recipe.batch, (step + 1) * recipe.batch)
    epoch = position // size
    return torch.cat([_order(recipe.seed, int(e), size)[position[epoch == e] % size] for e in epoch.unique()])


@lru_cache(maxsize=2)  # a batch lies in one epoch or straddles two; shuffling 60,000 costs 10 % of a step on a GPU
def _order(seed: int, epoch: int, size: int) -> Tensor:
    return torch.randperm(size, generator=step_generator(seed, epoch, 1))


def learning_rate(recipe: Recipe, step: int) -> float:
    """Linear warm-up, then a cosine that would reach zero one step after the last."""
    if step < recipe.warmup:
        return recipe.learning_rate * (step + 1) / recipe.warmup
    progress = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return recipe.learning_rate * (1 + math.cos(math.pi * progress)) / 2


def build(recipe: Recipe) -> nn.Module:
    """A freshly initialised network for this recipe; its weights depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(recipe.seed)  # torch.manual_seed would seed the GPUs' as well
        return recipe.blueprint.build()


def start_accelerator(recipe: Recipe, device: str | None, precision: str | None):
    """An `accelerate.Accelerator` for a run; arguments and errors are those of `train`."""
    if precision not in (None, "no", "bf16"):
        raise ValueError(f'precision must be "no" or "bf16", got {precision!r}')
    try:
        from accelerate import Accelerator
    except ImportError as error:
        raise ImportError("training needs accelerate: pip install -e '.[train]' in the course's folder") from error

    precision = precision or ("bf16" if device != "cpu" and torch.cuda.is_available() else "no")
    accelerator = Accelerator(cpu=device == "cpu", mixed_precision=precision)
    if device not in (None, accelerator.device.type):
        raise ValueError(f"device must be one that accelerate finds here, {accelerator.device.type!r}, got {device!r}")
    if (every := accelerator.gradient_accumulation_steps) != 1:
        raise ValueError(f"ACCELERATE_GRADIENT_ACCUMULATION_STEPS must be 1, no recipe knows of it, got {every}")
    if recipe.batch % accelerator.num_processes:
        raise ValueError(f"batch must be a multiple of the {accelerator.num_processes} processes, got {recipe.batch}")
    return accelerator


def train(
    recipe: Recipe,
    folder: Path,
    *,
    device: str | None = None,
    precision: str | None = None,
    compiled: bool = False,
    save_every: int = 500,
    data_folder: Path | None = None,
    progress: bool = True,
    force: bool = False,
) -> Path:
    """Train one network, resuming where an interrupted run of the same recipe in the same folder stopped.

    Args: folder: receives `{name}.safetensors`, its card, and `{name}-state.safetensors` while training; several
    machines share it;  device: "cpu", "cuda", ... (None lets accelerate choose);  precision: "no" or "bf16" (None: bf16
    on CUDA);  compiled: run the network through torch.compile;  save_every: steps between saved states;  progress: say
    on stderr how far it is, in a bar on a terminal and in lines elsewhere;  force: overwrite a finished network.
    Returns: path of the checkpoint, which holds the averaged (EMA) weights in half precision.
    Raises: ValueError if the folder holds a finished network of this name, or a state that is damaged or belongs to
    another recipe, or to a run on another device, in another precision, on another number of processes, compiled
    otherwise or with another start or teacher, these are not to be had (see `ancestors.find`), the device is not there,
    the precision is unknown or the batch cannot be shared equally by the processes;
    OSError if the folder cannot be written, or has no room for two states: tried before the work;  FloatingPointError
    if a loss or a weight is not finite: the last saved state stays, and no checkpoint is written;  ImportError without
    accelerate.
    """
    accelerator = start_accelerator(recipe, device, precision)
    state, final = _places(recipe, folder, force)
    before = ancestors.find(recipe, folder)
    origin = {f"{role}_sha256": ancestor.sha256 for role, ancestor in before.items()}
    setting = _setting(accelerator, compiled) | origin
    network, average, optimizer = _beginning(recipe, accelerator.device, before.get("start"))
    start, seconds, losses, versions = states.restore(state, recipe, setting, network, average, optimizer)
    examples = lessons.examples(recipe, data_folder)
    if accelerator.is_main_process:
        states.prepare(state, final, sum(p.numel() for p in network.parameters()))
    examples = [part.to(accelerator.device) for part in examples]
    teacher = _teacher(recipe, before, average)
    wrapped, optimizer = accelerator.prepare(network, optimizer)
    model = torch.compile(wrapped) if compiled else wrapped
    shown = Shown(recipe, start, progress and accelerator.is_main_process)
    clock, recent = time.monotonic() - seconds, []
    for step in shown.steps:
        batch = _batch(recipe, step, accelerator, examples)
        recent.append(_take_step(recipe, step, accelerator, model, network, optimizer, *batch, teacher))
        average.update_parameters(network)
        saving, last = (step + 1) % save_every == 0, step + 1 == recipe.steps
        if (step + 1) % 100 == 0 or saving or last:
            # Only here, as looking at a loss makes the host wait; every process sees the same, so all of them stop.
            check_finite(recipe, step, accelerator.gather(torch.stack(recent)[None]).mean(0), average, state)
            losses.append([step + 1, round(float(torch.stack(recent).mean()), 5)])
            shown.say(*losses[-1])
            recent = []
        if accelerator.is_main_process and saving and not last:
            done = {"step": step + 1, "seconds": time.monotonic() - clock, "losses": losses, "torch": versions}
            states.store(state, {"recipe": asdict(recipe), "setting": setting} | done, network, average, optimizer)
    if accelerator.is_main_process:
        card = make_card(recipe, accelerator, losses, time.monotonic() - clock, versions) | origin
        card["parameters"] = sum(p.numel() for p in network.parameters())
        checkpoints.save(final, recipe.blueprint, average.module.state_dict(), card)
        state.unlink(missing_ok=True)
    accelerator.wait_for_everyone()
    return final


def _setting(accelerator, compiled: bool) -> dict[str, Any]:
    """What a run can be resumed under only."""
    return {
        "device": accelerator.device.type, "precision": accelerator.mixed_precision,
        "processes": accelerator.num_processes, "compiled": compiled,
    }  # fmt: skip


def _teacher(recipe: Recipe, before: dict[str, ancestors.Ancestor], average: AveragedModel) -> nn.Module | None:
    """Whose answers are learned: the running average's, another network's, or nobody's."""
    if "teacher" in before:
        return before["teacher"].network.to(next(average.parameters()).device)
    return average if recipe.teacher == "itself" else None


def _batch(recipe: Recipe, step: int, accelerator, examples: list[Tensor]) -> list[Tensor]:
    """The examples of one step that fall to this process."""
    share = recipe.batch // accelerator.num_processes
    mine = slice(accelerator.process_index * share, (accelerator.process_index + 1) * share)
    chosen = batch_indices(recipe, len(examples[0]), step)[mine].to(accelerator.device)
    return [part[chosen] for part in examples]


def _places(recipe: Recipe, folder: Path, force: bool) -> tuple[Path, Path]:
    """Of the state and of the checkpoint.  Raises: ValueError if there is a finished network, unless by force."""
    state, final = folder / f"{recipe.name}-state.safetensors", folder / f"{recipe.name}.safetensors"
    if final.is_file() and not state.exists() and not force:
        raise ValueError(f"folder holds a finished network ({final}); choose another, or use force (--force)")
    return state, final


def _beginning(recipe: Recipe, device: torch.device, start: ancestors.Ancestor | None):
    """Network, average and optimiser before the first step."""
    network = build(recipe)
    if start:
        network.load_state_dict(ancestors.weights_for(network, start.network))
    network = network.to(device)
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema_decay))
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.99), weight_decay=recipe.weight_decay
    )
    return network, average, optimizer


def _take_step(recipe, step, accelerator, model, network, optimizer, images, labels, teacher) -> Tensor:
    """One step of AdamW at this step's learning rate, with gradients of length at most 1.  Returns: the loss, 0-dim.

    Args: model: `network`, as accelerate and torch.compile have wrapped it;  teacher: a denoiser's, or None.
    """
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(recipe, step)
    generator = step_generator(recipe.seed, step, 2 + accelerator.process_index, accelerator.device)
    given = (model, images, labels, recipe, generator, network.classes) + ((teacher,) if teacher else ())
    with accelerator.autocast():
        loss = lessons.LOSSES[recipe.task](*given)
    optimizer.zero_grad()
    accelerator.backward(loss)
    accelerator.clip_grad_norm_(network.parameters(), 1.0)
    optimizer.step()
    return loss.detach()


def check_finite(recipe: Recipe, step: int, recent: Tensor, average: nn.Module, state: Path) -> None:
    """Look at the losses (k,) of the last k steps, the last of which is `step`, and at the weights after it.

    Raises: FloatingPointError that says where it went wrong, what is left and what to change.
    """
    finite = recent.isfinite().tolist()
    if all(finite) and all(bool(weight.half().isfinite().all()) for weight in average.parameters()):
        return
    what = f"loss of step {step + 2 - len(finite) + finite.index(False)}" if False in finite else "weights"
    raise FloatingPointError(
        f"training diverged: after {step + 1} of {recipe.steps} steps the {what} cannot be kept as numbers. "
        f"No checkpoint was written; {f'the last good state is {state}' if state.exists() else 'no state was saved'}. "
        f"Start again in another folder with a learning rate below {recipe.learning_rate:g} or a warmup above "
        f"{recipe.warmup} steps."
    )


class Shown:
    """The steps to come, as a bar on a terminal; elsewhere a line every `every` seconds, the first after 100 steps."""

    every = 60.0

    def __init__(self, recipe: Recipe, start: int, shown: bool):
        self.steps = tqdm(
            range(start, recipe.steps), initial=start, total=recipe.steps, desc=recipe.name, mininterval=1,
            disable=None if shown else True, file=sys.stderr,
        )  # fmt: skip
        self.lines = shown and self.steps.disable
        self.recipe, self.start, self.began, self.last = recipe, start, time.monotonic(), -math.inf

    def say(self, step: int, loss: float) -> None:
        """Say the loss, and on a line how far the run is, how fast, and how long it will take."""
        self.steps.set_postfix(loss=loss)
        now, steps = time.monotonic(), self.recipe.steps
        if not self.lines or (now - self.last < self.every and step < steps):
            return
        rate, self.last = (step - self.start) / max(now - self.began, 1e-3), now
        left = f"{(steps - step) / rate / 60:.1f} min left" if step < steps else "done"
        print(
            f"{self.recipe.name}: step {step} of {steps}, loss {loss:.4f}, {rate:.3g} steps/s, {left}",
            file=sys.stderr, flush=True,
        )  # fmt: skip


def make_card(recipe: Recipe, accelerator, losses: list, seconds: float, versions: list[str]) -> dict[str, Any]:
    """What a reader must know to trust a checkpoint, or to train it again.

    Args: versions: of torch, one after the other, where a run was resumed under another.
    """
    device, precision = accelerator.device.type, accelerator.mixed_precision
    return {
        "task": recipe.task, "recipe": asdict(recipe), "data_sha256": data.data_hash(recipe.data),
        "command": command(recipe, device, precision), "difflesson": __version__, "torch": ", then ".join(versions),
        "device": device, "precision": precision, "processes": accelerator.num_processes, "seconds": round(seconds),
        "loss": losses, "metrics": {},
    }  # fmt: skip


def command(recipe: Recipe, device: str, precision: str) -> str:
    """The shell command that trains this recipe; what it leaves out is the default of the recipe of this name."""
    name = recipe.name if recipe.name in recipes.RECIPES else recipe.task
    words, usual = ["difflesson", "train", name, "--device", device, "--precision", precision], recipes.recipe(name)
    for field in recipes.OPTIONS:
        if (value := getattr(recipe, field)) != getattr(usual, field):
            option = {"prediction": "objective", "start": "start-from"}.get(field, field).replace("_", "-")
            words += [f"--{option}", str(value)]
    return shlex.join(words)
