"""The command line: `difflesson tour | sample | train | evaluate | reference`."""

import inspect
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import torch
import typer

from difflesson import __version__
from difflesson.denoiser import PREDICTIONS
from difflesson.digits import checkpoints, data, diversity, metrics, recipes, sampling, sheets, streaming, training
from difflesson.digits.blueprint import SCHEDULES
from difflesson.digits.loading import check_size, load_networks
from difflesson.digits.networks import DigitClassifier
from difflesson.losses import WEIGHTINGS

app = typer.Typer(help=__doc__, add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
ROOT = Path(__file__).resolve().parent.parent

Device = Annotated[str | None, typer.Option(help='"cpu", "cuda", "mps", ...; by default CUDA where there is one.')]
Seed = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Decides every random number.")]
DigitSet = Annotated[str, typer.Option("--data", help=f"One of {', '.join(data.DATASETS)} (8x8, no download).")]
Steps = Annotated[int, typer.Option(min=2, help="Sampling steps.")]
Sampler = Annotated[str, typer.Option(help=f"One of {', '.join(sampling.SAMPLERS)}.")]
Network = Annotated[str, typer.Option("--network", help="The name of a shipped one, or a .safetensors file of yours.")]
Unlabelled = Annotated[
    str | None, typer.Option("--unlabelled", help="Another network, to answer without a label in its place.")
]
Precision = Annotated[str | None, typer.Option(help='"no" or "bf16"; by default bf16 on CUDA.')]


def pick_device(device: str | None) -> torch.device:
    """The device asked for, else CUDA where there is one, else the CPU.  Raises: ValueError if it cannot be used."""
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device is None else device
    if device == "cuda" and "LOCAL_RANK" in os.environ:  # one of several processes: each has its own GPU
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        float(torch.zeros((), device=device))  # the device "meta" has shapes and no numbers
        return torch.device(device)
    except (RuntimeError, AssertionError, ImportError) as error:
        raise ValueError(f"device {device!r} cannot be used here: {str(error).splitlines()[0]}") from error


def arithmetic(device: torch.device, precision: str | None = None) -> torch.dtype | None:
    """The network's number format, None for float32; by default bfloat16 on CUDA.  Raises: ValueError if unknown."""
    if precision not in (None, "no", "bf16"):
        raise ValueError(f'precision must be "no" or "bf16", got {precision!r}')
    return torch.bfloat16 if (precision or {"cuda": "bf16"}.get(device.type)) == "bf16" else None


def fingerprint(network: str) -> str:
    """The checksum of a network's weights and blueprint."""
    return checkpoints.checksum(*checkpoints.load_tensors(checkpoints.located(network)))


def show_version(asked: bool) -> None:
    """Print the version and stop, if asked."""
    if asked:
        typer.echo(f"difflesson {__version__}")
        raise typer.Exit()


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show the version and stop.")
    ] = False,
) -> None:
    """Options that belong to no command."""


@app.command()
def sample(
    label: Annotated[int | None, typer.Option(help="Digit to draw, 0-9; by default all ten in turn.")] = None,
    gamma: Annotated[float, typer.Option(help="Guidance scale: 0 ignores the label, 1 is plain conditional.")] = 2.0,
    count: Annotated[int, typer.Option(min=1, help="How many digits.")] = 64,
    steps: Steps = 16,
    sampler: Sampler = "ddpm",
    guidance: Annotated[str, typer.Option(help='"classifier-free" or "classifier".')] = "classifier-free",
    network: Network = "denoiser",
    unlabelled: Unlabelled = None,
    seed: Seed = 0,
    device: Device = None,
    precision: Precision = None,
    batch: Annotated[int, typer.Option(min=1, help="Digits at a time; it changes no more than rounding.")] = 64,
    out: Annotated[Path, typer.Option(help="The .png or .safetensors to write.")] = Path("figures/sample.png"),
) -> None:
    """Draw guided digits and write them as a picture, or as several of 640 digits: sample-01-of-32.png.

    The noise of each digit comes from the seed and its place: `--count 8` draws the first 8 of `--count 64`.

    With `--out digits.safetensors` they go into a file of grey levels and labels. Started again after an interruption,
    it goes on where it stopped. `torchrun --nproc_per_node 2 -m difflesson sample ...`, or `accelerate launch`, shares
    the digits out: digits-1-of-2.safetensors holds the first half.
    """
    if out.suffix not in (".png", ".safetensors"):
        raise ValueError(f"out must end in .png or .safetensors, got {out}")
    rank, world = streaming.processes()
    if world > 1 and out.suffix == ".png":
        raise ValueError(f"out must end in .safetensors, which {world} processes can share, got {out}")
    start, place = time.perf_counter(), pick_device(device)
    dtype = arithmetic(place, precision)
    denoiser, helpers = load_networks(network, guidance, unlabelled, place)

    def labels_of(index: torch.Tensor) -> torch.Tensor:
        return index % 10 if label is None else torch.full_like(index, label)

    def draw(index: torch.Tensor, progress: bool = False) -> torch.Tensor:
        return sampling.generate(
            denoiser, labels_of(index), gamma, seed=seed, steps=steps, sampler=sampler, dtype=dtype, batch=batch,
            progress=progress, index=index, **helpers,
        )  # fmt: skip

    if out.suffix == ".png":
        where = sheets.write(out, draw, count, label, gamma)
        typer.echo(f"{where}: {count} digits, {time.perf_counter() - start:.1f} s")
        return
    path, indices = streaming.share(out, count, rank, world)
    about = {
        "network": fingerprint(network), "guide": helpers["guide"] and fingerprint("guide"), "gamma": gamma,
        "unlabelled": unlabelled and fingerprint(unlabelled), "label": label, "seed": seed, "steps": steps,
        "sampler": sampler, "device": place.type, "batch": batch, "precision": "no" if dtype is None else "bf16",
    }  # fmt: skip
    labels, chunk = labels_of(torch.arange(indices.start, indices.stop)), -(-sheets.PAGE // batch) * batch
    drawn = streaming.store(path, draw, labels, indices.start, denoiser.size, chunk, about)
    typer.echo(f"{path}: {len(indices)} digits, {drawn} of them drawn now, {time.perf_counter() - start:.1f} s")


@app.command()
def train(
    name: Annotated[str, typer.Argument(help=f"The recipe: one of {', '.join(recipes.RECIPES)}.")],
    dataset: DigitSet = "mnist",
    folder: Annotated[Path, typer.Option(help="For checkpoint, card, and the state to resume from.")] = Path("runs"),
    steps: Annotated[int | None, typer.Option(min=1, help="This and what follows: by default the recipe's.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Examples a step, all processes together.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="At its peak.")] = None,
    label_dropout: Annotated[float | None, typer.Option(help="Share of hidden labels.")] = None,
    ema_decay: Annotated[float | None, typer.Option(help="Of the average of the weights, which is kept.")] = None,
    schedule: Annotated[str | None, typer.Option(help=f"One of {', '.join(SCHEDULES)}.")] = None,
    objective: Annotated[str | None, typer.Option(help=f"What the network predicts: {', '.join(PREDICTIONS)}.")] = None,
    weighting: Annotated[str | None, typer.Option(help=f"Of the loss: {', '.join(WEIGHTINGS)}.")] = None,
    start: Annotated[
        str | None, typer.Option("--start-from", help="A checkpoint in the folder, or shipped; '' for none.")
    ] = None,
    teacher: Annotated[str | None, typer.Option(help="Likewise; or 'itself', to learn what has no label.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, max=2**63 - 1, help="Decides every random number.")] = None,
    device: Device = None,
    precision: Precision = None,
    compiled: Annotated[bool, typer.Option("--compile", help="Compile the network with torch.compile.")] = False,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between two saved states.")] = 250,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a finished network in the folder.")] = False,
) -> None:
    """Train a network by its recipe; started again after an interruption, it goes on where it stopped.

    Several GPUs or machines: `accelerate launch -m difflesson train ...`; several processes on CPUs, which accelerate
    does not launch by itself: `torchrun --nproc_per_node 2 -m difflesson train ... --device cpu`.
    """
    changes = {
        "data": dataset, "steps": steps, "batch": batch, "learning_rate": learning_rate, "seed": seed,
        "label_dropout": label_dropout, "ema_decay": ema_decay, "schedule": schedule, "prediction": objective,
        "weighting": weighting, "start": start, "teacher": teacher,
    }  # fmt: skip
    recipe = recipes.recipe(name, **{field: value for field, value in changes.items() if value is not None})
    path = training.train(
        recipe, folder, device=device, precision=precision, compiled=compiled, save_every=save_every, force=force
    )
    typer.echo(f"{path}: trained for {recipe.steps} steps, card in {path.with_suffix('.json')}")


@app.command()
def evaluate(
    network: Network = "denoiser",
    gamma: Annotated[list[float], typer.Option(help="Repeat for a curve.")] = (1.0,),
    count: Annotated[int, typer.Option(min=100, help="Digits a scale, the same number of each.")] = 10_000,
    steps: Steps = 16,
    sampler: Sampler = "ddpm",
    guidance: Annotated[str, typer.Option(help='"classifier-free" or "classifier".')] = "classifier-free",
    unlabelled: Unlabelled = None,
    seed: Seed = 0,
    device: Device = None,
    precision: Precision = None,
    card: Annotated[bool, typer.Option("--card", help="Also write the numbers into the network's card.")] = False,
) -> None:
    """Measure digits: the judge's accuracy and entropy, digit-FID to the MNIST test images, seconds."""
    place = pick_device(device)
    dtype = arithmetic(place, precision)
    path = checkpoints.located(network)
    denoiser, helpers = load_networks(network, guidance, unlabelled, place)
    judge, (reference, about) = checkpoints.load("judge", place).network, metrics.load_reference()
    check_size(network, denoiser, "judge", judge)
    sampling.check_sampler(sampler)
    for scale in gamma:  # all of them before the first is measured
        sampling.guided_denoiser(denoiser, 0, scale, **helpers)
    if card:
        checkpoints.try_place(path.with_suffix(".json"))
    typer.echo(f"floor of digit-FID: {about['digit_fid_floor']:.4f}")
    typer.echo(f"{'gamma':>6} {'accuracy':>9} {'entropy':>8} {'digit-FID':>10} {'seconds':>8}")
    for scale in gamma:
        start, labels = time.perf_counter(), torch.arange(count) % 10
        images = sampling.generate(
            denoiser, labels, scale, seed=seed, steps=steps, sampler=sampler, dtype=dtype, progress=True, **helpers,
        )  # fmt: skip
        row = metrics.digit_report(judge, images, labels, reference)
        seconds = round(time.perf_counter() - start, 1)
        typer.echo(f"{scale:6.2f} {row['accuracy']:9.4f} {row['entropy']:8.4f} {row['digit_fid']:10.4f} {seconds:8.1f}")
        number = "no" if dtype is None else "bf16"
        how = guidance if unlabelled is None else f"{guidance}, unlabelled by {Path(unlabelled).stem}"
        setting = f"{how}, {sampler}, {steps} steps, {count} digits, seed {seed}, {place.type}, precision {number}"
        row["command"] = evaluation(
            network=Path(network).name, gamma=f"{scale:g}", count=count, steps=steps, sampler=sampler,
            guidance=guidance, unlabelled=unlabelled and Path(unlabelled).name, seed=seed, device=place.type,
            precision=number,
        )  # fmt: skip
        if card:
            checkpoints.add_to_card(path, setting, f"{scale:g}", row)


def evaluation(**made: str | int | None) -> str:
    """The shell command that measures a row of a card again; what it leaves out is the default.

    Args: made: the options of `evaluate`; of a network's file the name alone, not where it lies on this machine.
    """
    usual = {name: option.default for name, option in inspect.signature(evaluate).parameters.items()}
    options = {name: value for name, value in made.items() if value != usual[name]}
    return " ".join(["difflesson evaluate", *(f"--{name} {value}" for name, value in options.items())])


@app.command()
def reference(
    judge: Annotated[Path, typer.Option(help="The judge whose features are meant.")],
    out: Annotated[Path, typer.Option(help="The file to write.")] = Path("runs/reference.safetensors"),
) -> None:
    """Make what samples are compared with: statistics of the real digits, and features.safetensors (needs MNIST)."""
    if out.suffix != ".safetensors":
        raise ValueError(f"out must end in .safetensors, got {out}")
    network = checkpoints.load(judge).network
    if not isinstance(network, DigitClassifier) or network.size != 28:
        raise ValueError(
            f"judge must be a classifier of 28x28 digits, {judge} holds a {type(network).__name__} of "
            f"{network.size}x{network.size}"
        )
    features = out.with_name(f"{diversity.FEATURES}.safetensors")
    for path in (out, out.with_suffix(".json"), features, features.with_suffix(".json")):
        checkpoints.try_place(path)
    test, real = data.load("mnist", "test"), data.load("mnist", "train")
    _, log_probs = metrics.judged(network, data.to_unit(test.images))
    accuracy = float((log_probs.argmax(1) == test.labels).double().mean())
    card = {"data_sha256": data.data_hash("mnist"), "command": " ".join(["difflesson", *sys.argv[1:]])}
    diversity.save_features(features, network, test, card)
    card["judge_accuracy_on_test"] = round(accuracy, 5)
    picked = real.images[: len(test.images)]
    card = metrics.save_reference(out, network, data.to_unit(test.images), data.to_unit(picked), card)
    typer.echo(json.dumps(card, indent=2))


@app.command()
def tour() -> None:
    """Draw a guided sheet into figures/, run the opening chapter, and say where to look next."""
    if not (ROOT / "tools" / "notebooks.py").exists():
        raise ValueError(f"{ROOT} is not a checkout of the course: the chapters are in the repository")
    typer.echo("1/2  drawing guided digits with the shipped network ...")
    sample(gamma=2.0, count=60, out=ROOT / "figures" / "tour.png")
    typer.echo("2/2  running chapter 00 ...")
    if subprocess.run([sys.executable, "-m", "tools.notebooks", "run", "00"], cwd=ROOT).returncode:
        raise typer.Exit(1)
    typer.echo("\nDone. Now look at figures/tour.png, then read the first chapter:")
    typer.echo("    jupyter lab notebooks/00_start_here.ipynb")


def main() -> None:
    """Run the command line; a wrong argument or place, a GPU too small, or what diverges, ends in one clear line."""
    try:
        app()
    except (ValueError, ImportError, FloatingPointError, OSError, torch.OutOfMemoryError) as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
