"""The controlled runs of chapter 13, and what is measured of any denoiser; one JSON log a network.

    python benchmarks/training_runs.py train v eps x0                      # some 5 minutes each on one core
    python benchmarks/training_runs.py curves denoiser pocket pocket_p02   # test losses of both halves over log-SNR
    python benchmarks/training_runs.py guide guide                         # the cross-entropy of the shipped classifier
    python benchmarks/training_runs.py digits denoiser pocket pocket_p02   # judged samples at gamma 0, 1 and 3
    python benchmarks/training_runs.py curves runs/draft.safetensors       # a file serves as well as a shipped name

`train` differs from `difflesson train` in what it writes down: it follows several running averages at once, and at some
steps it stores their test losses and a sheet of digits. Its three runs have one size, one seed, and the same batches,
times and noises; only the terms in which the network answers and is compared differ: v, eps or x0.

`curves` takes test images (`--images`), one noise for each, and 21 noise levels. `told` and `untold` are mean
squares of the error of v a pixel. `gap` is half the difference of the squared errors of eps without and with the
label; `distance` is half the squared distance of the two answers; both in nats for each unit of log-SNR, summed over
the pixels. `areas` are their sums over log-SNR by the trapezoidal rule, with standard errors over the images.
`violation` is half the squared distance of the unlabelled answer from the mean of the labelled ones, weighted by the
shipped guide's probabilities, on a tenth of the images.
"""

import argparse
import json
import re
import shlex
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from difflesson import plotting
from difflesson.denoiser import network_denoiser, network_pair
from difflesson.digits import checkpoints, data, metrics, training
from difflesson.digits.recipes import recipe
from difflesson.digits.sampling import generate
from difflesson.losses import drop_labels, times_and_noise

LOGS = Path(__file__).parents[1] / "difflesson" / "digits" / "logs"
LEVELS = [float(k) for k in range(-10, 11)]
STAGES, DECAYS, STEPS = (100, 300, 1000, 2000), (0.0, 0.9, 0.99, 0.997, 0.999), 2000
BF16 = torch.bfloat16


class InV(nn.Module):
    """A network that answers eps or x0, as one that answers v: `eps = sigma x + alpha v`, `x0 = alpha x - sigma v`."""

    def __init__(self, network: nn.Module, objective: str):
        super().__init__()
        self.network, self.objective = network, objective
        self.classes, self.schedule, self.size = network.classes, network.schedule, network.size

    def forward(self, x, log_snr, label):
        answer = self.network(x, log_snr, label)
        alpha, sigma = (torch.sigmoid(s * log_snr).sqrt()[:, None, None, None] for s in (1, -1))
        if self.objective == "eps":
            return (answer.float() - sigma * x) / alpha
        return answer if self.objective == "v" else (alpha * x - answer.float()) / sigma


def write(name: str, part: dict) -> None:
    """Add to a network's log."""
    path = LOGS / f"{name}.json"
    log = json.loads(path.read_text()) if path.exists() else {}
    log |= part
    flat = re.sub(r"\[[^\[\]{}]*\]", lambda found: " ".join(found[0].split()), json.dumps(log, indent=1))
    path.write_text(flat + "\n")
    print(name, json.dumps(part)[:600], flush=True)


def this_command() -> str:
    return "python benchmarks/training_runs.py " + shlex.join(sys.argv[1:])


def found(name: str):
    """The name and the network of a shipped checkpoint or of a file."""
    return Path(name).stem, checkpoints.load(name).network


def test_set(count: int):
    digits = data.load("mnist", "test")
    return data.to_unit(digits.images[:count]), digits.labels[:count]


@torch.no_grad()
def test_losses(network, count: int) -> dict[str, float]:
    """Mean square errors of v at uniform times, told and untold, on the same noise for every network."""
    x0, label = test_set(count)
    t, eps = times_and_noise(x0, torch.Generator().manual_seed(5))
    t = t[torch.randperm(count, generator=torch.Generator().manual_seed(6))]
    told, untold = [], []
    for part in torch.arange(count).split(250):
        alpha, sigma = (c(t[part])[:, None, None, None] for c in (network.schedule.alpha, network.schedule.sigma))
        x_t, v = alpha * x0[part] + sigma * eps[part], alpha * eps[part] - sigma * x0[part]
        for y, kept in ((label[part], told), (torch.full_like(part, network.classes), untold)):
            answer = network(x_t, network.schedule.log_snr(t[part]).float(), y).float()
            kept.append((answer - v).square().mean((1, 2, 3)))
    told, untold = torch.cat(told), torch.cat(untold)
    spread = float((untold - told).std() / count**0.5)
    found = {"told": told.mean(), "untold": untold.mean(), "difference_error": spread}
    return {name: round(float(value), 6) for name, value in found.items()}


@torch.no_grad()
def curves(network, count: int) -> dict:
    few = count // 10
    x0, label = test_set(count)
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(5))
    guide, schedule = checkpoints.load("guide").network, network.schedule
    rows, violation, log_snr = [], [], torch.tensor(LEVELS, dtype=torch.float64)
    for t in schedule.time(log_snr):
        level = []
        for part in torch.arange(count).split(250):
            x_t = schedule.add_noise(x0[part], eps[part], t.float())
            told, untold = (guess.eps for guess in network_pair(network, schedule, label[part])(x_t, t))
            squares = [(told - eps[part]), (untold - eps[part]), (told - untold)]
            level.append(torch.stack([square.square().sum((1, 2, 3)).double() for square in squares]))
        rows.append(torch.cat(level, 1))  # (3, count)
        x_t = schedule.add_noise(x0[:few], eps[:few], t.float())
        share = guide(x_t, schedule.log_snr(t).float().expand(few)).softmax(1)
        mean = sum(
            share[:, y, None, None, None] * network_denoiser(network, schedule, y)(x_t, t).eps for y in range(10)
        )
        away = (mean - network_denoiser(network, schedule)(x_t, t).eps).square().sum((1, 2, 3))
        violation.append(float(away.mean()) / 2)
    told, untold, distance = torch.stack(rows, 1)  # (levels, count) each
    gap, distance = (untold - told) / 2, distance / 2
    areas = {name: torch.trapezoid(part, log_snr, dim=0) for name, part in (("gap", gap), ("distance", distance))}
    alpha, pixels = schedule.alpha(schedule.time(log_snr)), x0[0].numel()
    return {
        "log_snr": LEVELS,
        "told": [round(float(x), 6) for x in told.mean(1) / alpha**2 / pixels],
        "untold": [round(float(x), 6) for x in untold.mean(1) / alpha**2 / pixels],
        "gap": [round(float(x), 5) for x in gap.mean(1)],
        "gap_error": [round(float(x), 5) for x in gap.std(1) / count**0.5],
        "distance": [round(float(x), 5) for x in distance.mean(1)],
        "violation": [round(x, 5) for x in violation],
        "areas": {n: [round(float(a.mean()), 4), round(float(a.std() / count**0.5), 4)] for n, a in areas.items()},
        "violation_area": round(float(torch.trapezoid(torch.tensor(violation).double(), log_snr)), 4),
        "images": count,
        "test_loss": test_losses(network, 2 * count),
        "curves_command": this_command(),
    }


@torch.no_grad()
def guide_cross_entropy(count: int) -> dict:
    """Of the shipped noise-aware classifier, on the same images and noises."""
    guide, (x0, label) = checkpoints.load("guide"), test_set(count)
    schedule, found = guide.schedule, []
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(5))
    for level in LEVELS:
        x_t = schedule.add_noise(x0, eps, schedule.time(level).float())
        logits = torch.cat([guide.network(part, torch.full((len(part),), level)) for part in x_t.split(250)])
        found.append(round(float(functional.cross_entropy(logits, label)), 4))
    return {"log_snr": LEVELS, "guide_cross_entropy": found, "images": count, "curves_command": this_command()}


def judged(network, gamma: float, count: int, seed: int = 7):
    judge, (reference, _) = checkpoints.load("judge").network, metrics.load_reference()
    labels = torch.arange(count) % 10
    images = generate(network, labels, gamma, seed=seed, steps=16, dtype=BF16)
    return images, metrics.digit_report(judge, images, labels, reference)


def train(objective: str) -> None:
    """One run of the pocket size, from nothing, with label dropout 0.1; only the terms of the answer differ."""
    chosen = recipe(
        "denoiser", steps=STEPS, label_dropout=0.1, warmup=100, arguments=(("widths", (16, 48)),)
    )  # fmt: skip
    network, schedule = training.build(chosen), chosen.noise
    averages = {decay: training.build(chosen) for decay in DECAYS}
    optimizer = torch.optim.AdamW(network.parameters(), lr=chosen.learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
    digits = data.load("mnist", "train")
    images, labels = data.to_unit(digits.images), digits.labels
    losses, recent, stages, sheets, began, aside = [], [], {}, [], time.monotonic(), 0.0
    for step in range(STEPS):
        index = training.batch_indices(chosen, len(images), step)
        generator = training.step_generator(chosen.seed, step, 2)
        t, eps = times_and_noise(images[index], generator)
        seen = drop_labels(labels[index], chosen.label_dropout, network.classes, generator)
        alpha, sigma = (c(t)[:, None, None, None] for c in (schedule.alpha, schedule.sigma))
        target = {"v": alpha * eps - sigma * images[index], "eps": eps, "x0": images[index]}[objective]
        for group in optimizer.param_groups:
            group["lr"] = training.learning_rate(chosen, step)
        with torch.autocast("cpu", BF16):
            answer = network(alpha * images[index] + sigma * eps, schedule.log_snr(t), seen)
        loss = functional.mse_loss(answer.float(), target)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        for decay, average in averages.items():
            with torch.no_grad():
                for mean, weight in zip(average.parameters(), network.parameters(), strict=True):
                    mean.lerp_(weight, 1.0 if step == 0 else 1 - decay)
        recent.append(loss.detach())
        if (step + 1) % 20 == 0:
            losses.append([step + 1, round(float(torch.stack(recent).mean()), 5)])
            recent = []
        if step + 1 in STAGES and (objective == "v" or step + 1 == STEPS):
            pause = time.monotonic()
            ours = {decay: InV(average, objective).eval() for decay, average in averages.items()}
            sheet, report = judged(ours[0.99], 1.0, 1000)
            sheets.append(sheet[:20])
            kept = {str(decay): test_losses(average, 1000) for decay, average in ours.items()}
            stages[str(step + 1)] = {"test_loss": kept, "digits": report}
            print(objective, step + 1, losses[-1], kept, report, flush=True)
            aside += time.monotonic() - pause
    last = ours[0.99]
    write(
        f"run_{objective}",
        {"train_command": this_command(), "objective": objective, "steps": STEPS, "batch": chosen.batch,
         "label_dropout": chosen.label_dropout, "seconds": round(time.monotonic() - began - aside),
         "torch": str(torch.__version__), "loss": losses, "stages": stages} | curves(last, 1000),
    )  # fmt: skip
    if objective == "v":
        from PIL import Image

        page = (255 - 255 * plotting.tile(torch.cat(sheets), 20)).round().to(torch.uint8).numpy()
        Image.fromarray(page).save(LOGS / "run_v.png", optimize=True)


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("what", choices=("train", "curves", "digits", "guide"))
    options.add_argument("names", nargs="+", help="v, eps, x0 to train; else shipped names or files")
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--count", type=int, default=2000, help="digits for each gamma")
    options.add_argument("--images", type=int, default=1000, help="test images for the curves")
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    for name in chosen.names:
        if chosen.what == "train":
            train(name)
            continue
        if chosen.what == "guide":
            write(name, guide_cross_entropy(chosen.images))
            continue
        stem, network = found(name)
        if chosen.what == "curves":
            write(stem, curves(network, chosen.images))
        else:
            rows = {f"{gamma:g}": judged(network, gamma, chosen.count)[1] for gamma in (0.0, 1.0, 3.0)}
            write(stem, {"digits": rows, "digits_count": chosen.count, "digits_command": this_command()})


if __name__ == "__main__":
    main()
