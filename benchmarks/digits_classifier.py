"""Classifier guidance on digits: four gradients along the scale, and how far they tell the truth. Chapter 14 reads it.

    python benchmarks/digits_classifier.py                    writes difflesson/digits/logs/classifier.json
    python benchmarks/digits_classifier.py --quick            few digits and one seed, into /tmp: does it run?
    python benchmarks/digits_classifier.py --only witness     a part: witness, steer, control, large

Each row is written when it is measured, so a run that was stopped goes on where it was; rows of one setting with other
seeds are independent: two, and five along the scale of the noisy classifier. `steer`, `control` and `large` have the
seven numbers of tradeoff.NAMES, each with its standard error by the jackknife, and the *doubt* of three classifiers,
the mean of 1 - p(label that was asked for). The settings:

    method    noisy     the classifier of noisy images `guide`, at x_t
              clean     the classifier of clean images `clean`, at x_t as if it were clean
              through   `clean` at the denoiser's guess, differentiated through the denoiser
              scaled    `clean` at the denoiser's guess, times one number for the denoiser's derivative
              fixed     as noisy, with a random error added to each gradient, one direction for a digit and all steps,
                        so long that the cosine with what was there is 0.26;  fresh: another direction each step
              free      classifier-free guidance, in which no classifier has a part;  real: MNIST's training digits
    network   whose half without a label is steered          gamma    the guidance scale
    log_snr   of the noise, in `witness`

`witness`: test digits with noise at one log-SNR; the agreement of each two estimates of the gradient for the digit's
own label, their lengths (root mean squares, times sigma), the guide's cross-entropy and accuracy, and the temperature
at which its cross-entropy is least. `large` and `half`: the two guesses of `denoiser`, of `pocket_p50`, subtracted.
"""

import argparse
import json
import tempfile
import time
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path

import torch
from digits_guidance import real_digits, rows_of
from torch.nn.functional import cross_entropy

from difflesson import guidance
from difflesson.denoiser import network_denoiser, network_pair
from difflesson.digits import checkpoints, data, diversity, metrics, tradeoff
from difflesson.digits.sampling import digit_times
from difflesson.digits.witnesses import agreement, clean_verdict, scaled_slope, verdict_on_guess
from difflesson.kernels import ddpm
from difflesson.samplers import draw

ROWS = Path(__file__).resolve().parents[1] / "difflesson" / "digits" / "logs" / "classifier.json"
LOW = torch.bfloat16
LEVELS = (-8.0, -6.0, -5.0, -4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0)


@dataclass(frozen=True)
class Point:
    """One row's settings."""

    part: str
    method: str
    gamma: float
    network: str = "pocket"
    log_snr: float = 99.0
    seed: int = 0


def points(seeds: int) -> list[Point]:
    """All rows, the most useful first."""
    methods = {
        "noisy": (1.0, 2.0, 4.0, 16.0),
        "through": (0.1, 0.5, 1.0, 4.0, 16.0),
        "scaled": (1.0, 4.0, 16.0, 32.0),
        "clean": (1.0, 4.0, 16.0),
    }
    rows = []
    for seed in range(seeds):
        rows += [Point("witness", "all", 1.0, "", lam, seed) for lam in LEVELS]
        rows += [Point("control", "real", 1.0, "", seed=seed), Point("control", "free", 0.0, seed=seed)]
        rows += [Point("steer", method, gamma, seed=seed) for method, scales in methods.items() for gamma in scales]
        rows += [Point("control", method, 4.0, seed=seed) for method in ("fixed", "fresh")]
        rows += [Point("control", "free", gamma, seed=seed) for gamma in (1.0, 2.0)]
        rows += [Point("large", "noisy", gamma, "denoiser", seed=seed) for gamma in (1.0, 4.0)]
    more = range(seeds, 5 if seeds > 1 else 1)  # along the noisy classifier's scale: five thousand digits a point
    return rows + [Point("steer", "noisy", gamma, seed=seed) for seed in more for gamma in methods["noisy"]]


def gradient(method: str, network, label: torch.Tensor):
    """The gradient that steers the half of the network without a label."""
    schedule, cheap = network.schedule, network_denoiser(network, network.schedule, None, LOW)
    if method in ("noisy", "fixed", "fresh"):
        log_prob = guidance.classifier_log_prob(checkpoints.load("guide").network, schedule, label)
        plain = guidance.gradient(log_prob)
        return plain if method == "noisy" else with_random_error(plain, len(label), fixed=method == "fixed")
    verdict = clean_verdict(checkpoints.load("clean").network, label)
    if method == "clean":
        return guidance.gradient(verdict)
    if method == "through":
        return guidance.gradient(verdict_on_guess(network_denoiser(network, schedule, None), verdict))
    return scaled_slope(cheap, verdict, schedule)


def with_random_error(gradient, count: int, fixed: bool, cosine: float = 0.26):
    """The gradient plus a random vector for each digit, so long that their sum has this cosine with the gradient."""
    generator = torch.Generator().manual_seed(5)
    once = torch.randn(count, 1, 28, 28, generator=generator)

    def disturbed(x, t):
        right, error = gradient(x, t), once if fixed else torch.randn(x.shape, generator=generator)
        size = right.flatten(1).norm(dim=1) / error.flatten(1).norm(dim=1) * (cosine**-2 - 1) ** 0.5
        return right + size[:, None, None, None] * error

    return disturbed


def digits(point: Point, labels: torch.Tensor, batch: int = 250) -> torch.Tensor:
    """One digit for each label, drawn as the point says."""
    network, images = checkpoints.load(point.network).network, []
    schedule, generator = network.schedule, torch.Generator().manual_seed(1000 + point.seed)
    for part in labels.split(batch):
        if point.method == "free":
            denoiser = guidance.classifier_free(network_pair(network, schedule, part, LOW), point.gamma)
        else:
            plain = network_denoiser(network, schedule, None, LOW)
            denoiser = guidance.tilt(plain, gradient(point.method, network, part), point.gamma, schedule)
        start = torch.randn(len(part), 1, 28, 28, generator=generator)
        images.append(draw(ddpm(denoiser, schedule), start, digit_times(16, schedule), generator))
    return torch.cat(images)


def sampled(point: Point, count: int) -> dict:
    """The numbers of a row of digits."""
    labels = torch.arange(10).repeat(count // 10)
    if point.method == "real":
        images, labels = real_digits(point, count // 10)
    else:
        images = digits(point, labels)
    real, (reference, _), row = diversity.load_features()[0], metrics.load_reference(), {"count": len(labels)}
    for name in ("judge", "guide", "clean"):
        features, log_probs = metrics.judged(checkpoints.load(name).network, images)
        doubt = 1 - log_probs.gather(1, labels[:, None]).exp()
        row |= {f"doubt_{name}": float(doubt.mean()), f"doubt_{name}_error": float(doubt.std() / len(doubt) ** 0.5)}
        if name == "judge":
            values, errors = tradeoff.measures(features, log_probs, labels, real, reference)
    for name, value, error in zip(tradeoff.NAMES, values.tolist(), errors.tolist(), strict=True):
        row |= {name: value, f"{name}_error": error}
    return {name: round(value, 8 if "doubt" in name else 5) for name, value in row.items()}


def witnesses(point: Point, count: int) -> dict:
    """What the estimates of one gradient say of each other, at noisy test digits of their own labels."""
    images, labels = data.load("mnist", "test")
    mine = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)).split(count)[point.seed]
    networks = {name: checkpoints.load(name).network for name in ("guide", "denoiser", "pocket_p50", "pocket")}
    schedule, fields, logits = networks["pocket"].schedule, {}, []
    t = schedule.time(torch.tensor(point.log_snr).double())
    eps = torch.randn(count, 1, 28, 28, generator=torch.Generator().manual_seed(point.seed))
    noisy_images = schedule.add_noise(data.to_unit(images[mine]), eps, t)
    for x, y in zip(noisy_images.split(250), labels[mine].split(250), strict=True):
        pairs = {
            name: network_pair(networks[n], schedule, y, LOW)
            for name, n in (("large", "denoiser"), ("half", "pocket_p50"))
        }
        estimates = {name: gradient(name, networks["pocket"], y) for name in ("noisy", "clean", "through", "scaled")}
        estimates |= {name: guidance.implicit_gradient(pair, schedule) for name, pair in pairs.items()}
        for name, estimate in estimates.items():
            with torch.set_grad_enabled(name not in pairs):
                fields.setdefault(name, []).append(estimate(x, t).detach() * schedule.sigma(t))
        with torch.no_grad():
            logits.append(guidance.classifier_logits(networks["guide"], schedule)(x, t))
    fields, logits = {name: torch.cat(parts) for name, parts in fields.items()}, torch.cat(logits).double()
    row = {f"{a}~{b}": agreement(fields[a], fields[b]) for a, b in combinations(fields, 2)}
    row |= {f"length_{name}": float(g.double().square().flatten(1).sum(1).mean().sqrt()) for name, g in fields.items()}
    scales = torch.linspace(0.2, 1.8, 161).double()
    losses = torch.stack([cross_entropy(scale * logits, labels[mine]) for scale in scales])
    row |= {
        "cross_entropy": float(losses[80]),
        "least": float(losses.min()),
        "temperature": float(1 / scales[losses.argmin()]),
    }
    right = (logits.argmax(1) == labels[mine]).double().mean()
    return {"count": count} | {name: round(value, 5) for name, value in (row | {"right": float(right)}).items()}


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--quick", action="store_true", help="100 digits a row, one seed, into /tmp")
    options.add_argument("--only", default="", help="one part of the table")
    options.add_argument("--out", type=Path, default=None)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--seeds", type=int, default=2)
    options.add_argument("--count", type=int, default=1000, help="digits a row")
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    out = chosen.out or (Path(tempfile.gettempdir(), "classifier.json") if chosen.quick else ROWS)
    count = 100 if chosen.quick else chosen.count
    for point in points(1 if chosen.quick else chosen.seeds):
        known = any(row.items() >= asdict(point).items() for row in rows_of(out))
        if known or (chosen.only and point.part != chosen.only):
            continue
        began = time.perf_counter()
        row = asdict(point) | (witnesses(point, count) if point.part == "witness" else sampled(point, count))
        print(f"{time.perf_counter() - began:6.1f} s  {row}", flush=True)
        text = ",\n".join(json.dumps(one) for one in [*rows_of(out), row])
        text = f'{{"command": "python benchmarks/digits_classifier.py", "rows": [\n{text}\n]}}\n'
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
