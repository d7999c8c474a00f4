"""Classifier-free guidance on digits: what the scale buys and what it costs, 1,000 digits a row. Chapter 15 reads it.

    python benchmarks/digits_guidance.py                 writes difflesson/digits/logs/guidance.json
    python benchmarks/digits_guidance.py --quick         200 digits a row and one seed, into /tmp: does it run?
    python benchmarks/digits_guidance.py --only scale    a part: real, scale, dropout, when, ...

Each row is written when it is measured, so a run that was stopped goes on where it was. Rows whose network is not there
yet are left out with a word. A row has seven numbers (difflesson.digits.tradeoff.NAMES), each with its standard error
by the jackknife over ten parts; rows of one setting with several seeds are independent. The settings:

    gamma       the guidance scale             low, high   guided only where the log-SNR lies between, else gamma 1
    sampler     ddpm, ddim, heun, dpmpp_2m     radius      the start, times this (its length is 28 times this)
    steps       of the sampler                 kappa       the score, times this (low temperature)
    early       so many before log-SNR 1       noise       the noise of each step, times this
    unlabelled  another network, for the guess without a label

On the CPU and on a GPU the network runs in bfloat16, all else in single precision.
"""

import argparse
import json
import tempfile
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch

from difflesson import guidance, practice
from difflesson.digits import checkpoints, data, diversity, metrics, runs, tradeoff
from difflesson.digits.sampling import SAMPLERS, digit_times, guided_denoiser
from difflesson.samplers import draw
from difflesson.steps import Gaussian

ROWS = Path(__file__).resolve().parents[1] / "difflesson" / "digits" / "logs" / "guidance.json"
SCALES = (0.0, 0.5, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 6.0)


@dataclass(frozen=True)
class Point:
    """One row's settings; "real" in place of a network stands for MNIST's training digits."""

    part: str
    network: str = "pocket"
    gamma: float = 1.0
    sampler: str = "ddpm"
    steps: int = 16
    low: float = -99.0
    high: float = 99.0
    radius: float = 1.0
    kappa: float = 1.0
    noise: float = 1.0
    early: int = 0
    unlabelled: str = ""
    seed: int = 0


def points() -> list[Point]:
    """All rows, the most useful first."""
    seeds = (0, 1)
    rows = [Point("real", "real", seed=seed) for seed in seeds]
    rows += [Point("scale", gamma=gamma, seed=seed) for seed in seeds for gamma in SCALES]
    for network in ("pocket_p02", "pocket_p10", "pocket_p50"):
        rows += [Point("dropout", network, gamma, seed=seed) for seed in seeds for gamma in (0.0, 1.0, 1.5, 2.0, 4.0)]
    edges = (-9.0, -5.0, -3.0, -1.0, 1.0, 3.0, 8.0)
    rows += [Point("when", gamma=4.0, low=a, high=b, seed=seed)
             for seed in seeds for a, b in zip((-99.0, *edges[1:-1]), (*edges[1:-1], 99.0), strict=True)]  # fmt: skip
    rows += [Point("when", gamma=4.0, low=a, high=b) for a, b in ((-99.0, -1.0), (-1.0, 99.0))]
    rows += [Point("samplers", sampler=sampler, steps=(steps + 1) // 2 if sampler == "heun" else steps)
             for steps in (5, 9, 15) for sampler in SAMPLERS]  # fmt: skip
    rows += [Point("noiseless", gamma=gamma, sampler="ddim", steps=15) for gamma in (1.0, 1.25, 1.5, 2.0)]
    rows += [Point("colder", radius=0.6, sampler=name) for name in ("ddpm", "ddim")]
    rows += [Point("colder", kappa=kappa) for kappa in (1.05, 1.1)]
    rows += [Point("colder", noise=noise) for noise in (0.9, 0.8)]
    rows += [Point("spacing", steps=50, early=early, seed=seed) for seed in seeds for early in (0, 9, 40)]
    rows += [Point("spacing", "denoiser", steps=50, early=early, seed=seed) for seed in range(5) for early in (0, 9)]
    rows += [Point("halves", "denoiser", gamma, unlabelled=other, seed=seed)
             for seed in seeds for gamma in (1.25, 1.5, 2.0, 3.0) for other in ("", "unlabelled")]  # fmt: skip
    rows += [Point("big", "denoiser", gamma) for gamma in (0.0, 1.0, 1.5, 2.0, 4.0)]
    return rows


def digits(network, point: Point, labels: torch.Tensor, batch: int = 250) -> torch.Tensor:
    """One digit for each label, drawn as the point says."""
    schedule, device, images = network.schedule, next(network.parameters()).device, []
    generator = torch.Generator(device).manual_seed(1000 + point.seed)
    scale = practice.interval(point.gamma, schedule, point.low, point.high)
    other = checkpoints.load(point.unlabelled, device).network if point.unlabelled else None
    for part in labels.split(batch):
        denoiser = guided_denoiser(network, part, scale, dtype=torch.bfloat16, unlabelled=other)
        if point.kappa != 1:
            denoiser = guidance.tempered(denoiser, point.kappa, schedule)
        kernel = SAMPLERS[point.sampler](denoiser, schedule)
        if point.noise != 1:
            kernel = quieter(kernel, point.noise)
        start = point.radius * torch.randn(len(part), 1, 28, 28, generator=generator, device=device)
        images.append(draw(kernel, start, times(point, schedule), generator).cpu())
    return torch.cat(images)


def times(point: Point, schedule) -> torch.Tensor:
    """`digit_times`, or even in log-SNR on either side of 1, with so many steps before."""
    usual = digit_times(point.steps, schedule)
    if not point.early:
        return usual
    ends = schedule.log_snr(usual[[0, -2]])
    before = torch.linspace(ends[0], 1.0, point.early + 1, dtype=torch.float64)
    after = torch.linspace(1.0, ends[1], point.steps - point.early, dtype=torch.float64)
    return torch.cat([schedule.time(torch.cat([before, after[1:]])), usual[-1:]])


def quieter(kernel, factor: float):
    def step(x, t, s):
        told = kernel(x, t, s)
        return Gaussian(told.mean, told.var * factor**2)

    return step


def real_digits(point: Point, each: int) -> tuple[torch.Tensor, torch.Tensor]:
    """So many training digits of each class, others for each seed, in the order of the file."""
    images, labels = data.load("mnist", "train")
    places = [(labels == label).nonzero()[point.seed * each :, 0][:each] for label in range(10)]
    chosen = torch.cat(places)
    return data.to_unit(images[chosen]), labels[chosen]


def measured(point: Point, count: int, device: str) -> dict:
    """The row of one point."""
    began, labels = time.perf_counter(), torch.arange(10).repeat(count // 10)
    if point.network == "real":
        images, labels = real_digits(point, count // 10)
    else:
        images = digits(checkpoints.load(point.network, device).network, point, labels)
    real, (reference, _) = diversity.load_features()[0], metrics.load_reference()
    columns = (*metrics.judged(checkpoints.load("judge").network, images), labels)
    values, errors = tradeoff.measures(*columns, real, reference)
    row = asdict(point) | {"count": len(labels)}
    for name, value, error in zip(tradeoff.NAMES, values.tolist(), errors.tolist(), strict=True):
        row |= {name: round(value, 5), f"{name}_error": round(error, 5)}
    print(f"{time.perf_counter() - began:6.1f} s  {point}", flush=True)
    print("          " + "  ".join(f"{name} {row[name]:.4f}" for name in tradeoff.NAMES), flush=True)
    return row


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--quick", action="store_true", help="200 digits a row, one seed, into /tmp")
    options.add_argument("--only", default="", help="one part of the table")
    options.add_argument("--out", type=Path, default=None)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--device", default="cpu")
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    out = chosen.out or (Path(tempfile.gettempdir(), "guidance.json") if chosen.quick else ROWS)
    out.parent.mkdir(parents=True, exist_ok=True)
    for point in points():
        known = point in map(point_of, rows_of(out))
        if known or (chosen.only and point.part != chosen.only) or (chosen.quick and point.seed):
            continue
        if point.network != "real":
            try:
                checkpoints.shipped(point.network)
            except ValueError as error:
                print(f"left out: {error}")
                continue
        row = measured(point, 200 if chosen.quick else 1000, chosen.device)
        rows = [*rows_of(out), row]  # read again: another part may have been measured meanwhile
        text = ",\n".join(json.dumps(one) for one in rows)
        text = f'{{"command": "python benchmarks/digits_guidance.py", "rows": [\n{text}\n]}}\n'
        out.write_text(text, encoding="utf-8")


def point_of(row: dict) -> Point:
    """The settings of a row; one that was measured before a setting was thought of has its default."""
    return Point(**{field.name: row[field.name] for field in fields(Point) if field.name in row})


def rows_of(out: Path) -> list[dict]:
    """What has been measured."""
    return runs.rows(out) if out.exists() else []


if __name__ == "__main__":
    main()
