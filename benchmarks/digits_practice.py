"""Guidance as practised, on digits: each trick over its own ladder of scales, beside the plain scale. Chapter 19.

    python benchmarks/digits_practice.py              writes difflesson/digits/logs/practice.json
    python benchmarks/digits_practice.py --quick      100 digits a row, one seed, where temporary files go: does it run?
    python benchmarks/digits_practice.py --compare    draws nothing: the comparisons anew, from the rows that are there

Each row is written when it is measured, so a run that was stopped goes on where it was. The pocket network, 12 steps
of DDIM, which draws no noise on its way: rows of one seed share their starts, digit for digit, and are compared in
pairs. A thousand digits a row, two seeds.
The ways, each at a guidance scale gamma; all but `thresholded` and `plus_plus` are the same row at gamma = 1:

    plain           classifier-free guidance               rescaled      phi = 0.7, of the noise; rescaled_v, of v
    interval        guided at log-SNR -3 to 1 alone        projected     eta = 0
    growing         from 1 to 2 gamma - 1                  kept_short    the same, reach 3 and momentum -0.5
    auto_p50, ...   the pair (pocket, pocket_p50), both    zero_star, thresholded, plus_plus: as in
                    told the label; likewise p02           difflesson.practice; of plus_plus, gamma is the mean

A row has measures (difflesson.digits.tradeoff.NAMES) with standard errors by the jackknife over ten parts; `moved`, how
far a pixel is from that of plain guidance at the same gamma (root mean square; the range is 2); and `worked`, the share
of the guesses of a run in which the rule moved a pixel by 0.05 or more. `without` has the digit-FID in 1/10,000 and the
recall in 1/1,000 when one of the ten parts is left out, so that a difference of two rows has an error too.
"""

import argparse
import json
import platform
import tempfile
import time
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import torch

from difflesson import __version__, guidance, kernels, practice
from difflesson.denoiser import Denoiser, Pair, Prediction, network_denoiser, network_pair, predict
from difflesson.digits import checkpoints, diversity, metrics, tradeoff
from difflesson.digits.sampling import digit_times
from difflesson.parts import Part
from difflesson.samplers import draw

ROWS = Path(__file__).resolve().parents[1] / "difflesson" / "digits" / "logs" / "practice.json"
STEPS, BATCH, PARTS = 12, 250, 10
LADDERS = {
    "plain": (1.0, 1.15, 1.25, 1.35, 1.5, 2.0, 3.0, 4.0, 6.0),
    "auto_p50": (1.5, 2.0, 3.0, 4.0),
    "rescaled_v": (1.15, 1.25, 1.5, 2.0, 3.0, 4.0),
    "interval": (1.25, 1.5, 2.0, 3.0),
    "growing": (1.25, 1.5, 2.0, 3.0),
    "kept_short": (1.25, 1.5, 2.0, 3.0),
    "projected": (1.15, 1.25, 1.5, 3.0),
    "zero_star": (1.15, 1.25, 1.5, 3.0),
    "rescaled": (1.15, 1.25, 1.5, 3.0),
    "thresholded": (1.0, 1.5),
    "auto_p02": (3.0,),
}
AGAIN = {  # in the second seed, where the first had its best and what libraries take; not what moves hardly a pixel
    "plain": (1.15, 1.25, 1.35, 1.5, 3.0),
    "auto_p50": (3.0,),
    "growing": (1.25, 1.5, 3.0),
    "interval": (1.25, 1.5, 3.0),
    "kept_short": (1.25, 1.5, 3.0),
    "rescaled_v": (1.15, 1.25, 3.0),
}
LAMBDAS = (0.7, 1.0)


@dataclass(frozen=True)
class Point:
    """One row's settings."""

    way: str
    gamma: float
    seed: int = 0
    lam: float = 0.0  # of plus_plus


@dataclass(frozen=True, eq=False)
class counted(Part):
    """A denoiser or a rule, and how often it answers something else than plain guidance."""

    part: Part
    plain: Part
    seen: list

    def __call__(self, *asked) -> Prediction:
        answer, usual = self.part(*asked), self.plain(*asked)
        self.seen.extend(((answer.x0 - usual.x0).abs().flatten(1).amax(1) > 0.05).tolist())
        return answer


def points(seed: int) -> list[Point]:
    """The rows of a seed, the plain ones first."""
    rows = [Point(way, gamma, seed) for way, ladder in (AGAIN if seed else LADDERS).items() for gamma in ladder]
    network = checkpoints.load("pocket").network
    times = digit_times(STEPS, network.schedule)
    for lam in () if seed else LAMBDAS:
        scale = practice.plus_plus_scale(lam, network.schedule, times)
        rows.append(Point("plus_plus", round(float(torch.stack([scale(t) for t in times[:-1]]).mean()), 3), seed, lam))
    return rows


def guided(point: Point, labels: torch.Tensor, seen: list) -> Denoiser:
    """What the digits with these labels are drawn from."""
    network, gamma = checkpoints.load("pocket").network, point.gamma
    schedule = network.schedule
    pair = network_pair(network, schedule, labels, torch.bfloat16)
    scales = {
        "interval": practice.interval(gamma, schedule, -3.0, 1.0),
        "growing": practice.growing_scale(gamma),
        "plus_plus": practice.plus_plus_scale(point.lam, schedule, digit_times(STEPS, schedule)),
    }
    rules = {
        "rescaled": lambda: practice.rescaled(gamma, 0.7, schedule),
        "rescaled_v": lambda: practice.rescaled(gamma, 0.7, schedule, "v"),
        "projected": lambda: practice.projected(gamma, schedule),
        "kept_short": lambda: practice.projected(gamma, schedule, reach=3.0, momentum=-0.5),
        "zero_star": lambda: practice.zero_star(gamma, schedule),
    }
    if point.way.startswith("auto_"):
        weak = checkpoints.load(point.way.replace("auto", "pocket")).network
        pair = Pair(pair.cond, network_denoiser(weak, schedule, labels, torch.bfloat16))
    usual = guidance.classifier_free(pair, scales.get(point.way, gamma))
    if point.way in rules:
        plain = practice.rescaled(gamma, 0.0, schedule)
        return guidance.mix(pair, counted(rules[point.way](), plain, seen))
    if point.way == "thresholded":
        return once(usual, schedule, seen)
    return usual


@dataclass(frozen=True, eq=False)
class once(Part):
    """`thresholded`, counted, with the network asked once."""

    denoiser: Denoiser
    schedule: object
    seen: list

    def __call__(self, x, t) -> Prediction:
        guess = predict(self.denoiser, x, t)
        return counted(practice.thresholded(lambda x, t: guess, self.schedule), lambda x, t: guess, self.seen)(x, t)


def drawn(point: Point, count: int) -> tuple[torch.Tensor, float | None]:
    """One digit for each label, and the share of the guesses that the rule changed."""
    labels = torch.arange(10).repeat(count // 10)
    start = torch.randn(count, 1, 28, 28, generator=torch.Generator().manual_seed(1900 + point.seed))
    images, seen = [], []
    for some, noise in zip(labels.split(BATCH), start.split(BATCH), strict=True):
        denoiser = guided(point, some, seen)
        schedule = checkpoints.load("pocket").network.schedule
        images.append(draw(kernels.ddim(denoiser, schedule), noise, digit_times(STEPS, schedule)))
    return torch.cat(images), sum(seen) / len(seen) if seen else None


@cache
def plain(gamma: float, seed: int, count: int) -> torch.Tensor:
    return drawn(Point("plain", gamma, seed), count)[0]


def measured(point: Point, count: int) -> tuple[dict, list]:
    """The row of one point, and what two of its measures become without each part."""
    labels = torch.arange(10).repeat(count // 10)
    images, worked = (plain(point.gamma, point.seed, count), None) if point.way == "plain" else drawn(point, count)
    real, reference = diversity.load_features()[0], metrics.load_reference()[0]
    features, log_probs = metrics.judged(checkpoints.load("judge").network, images)
    values, errors = tradeoff.measures(features, log_probs, labels, real, reference)
    row = {name: value for name, value in asdict(point).items() if name != "lam" or value} | {"count": count}
    for name, value, error in zip(tradeoff.NAMES, values.tolist(), errors.tolist(), strict=True):
        if name in ("accuracy", "recall", "digit_fid"):
            row |= {name: round(value, 4), f"{name}_error": round(error, 4)}
    if point.way not in ("plain", "plus_plus"):
        row["moved"] = round(float((images - plain(point.gamma, point.seed, count)).square().mean().sqrt()), 4)
    if worked is not None:
        row["worked"] = round(worked, 3)
    return row, without_each_part(features, labels, real, reference)


def without_each_part(features, labels, real, reference) -> list:
    """Digit-FID and recall without each of the parts that `diversity.jackknife` makes."""

    def two(features):
        fid = metrics.frechet_distance(metrics.statistics(features), reference)
        return fid, float(diversity.within(real.features, features, 3).double().mean())

    order = torch.empty_like(labels)
    order[labels.argsort(stable=True)] = torch.arange(len(labels)) % PARTS
    kept = [two(features[order != part]) for part in range(PARTS)]
    return [[round(fid * 10_000) for fid, _ in kept], [round(recall * 1_000) for _, recall in kept]]


# ---- comparing


def named(row: dict) -> str:
    return f"{row['way']} {row['gamma']:g} {row['seed']}"


def difference(out: dict, one: dict, other: dict, name: str = "digit_fid") -> tuple[float, float]:
    """One row's measure less another's of the same seed, and the standard error of that, by the parts they share."""
    place, unit = {"digit_fid": (0, 10_000), "recall": (1, 1_000)}[name]
    parts = torch.tensor([out["without"][named(row)][place] for row in (one, other)], dtype=torch.float64) / unit
    apart = parts[0] - parts[1]
    error = ((apart - apart.mean()).square().sum() * (PARTS - 1) / PARTS).sqrt()
    return one[name] - other[name], float(error)


def together(pairs: list[tuple[float, float]]) -> dict:
    """The mean of independent differences, and its error."""
    error = sum(error**2 for _, error in pairs) ** 0.5 / len(pairs)
    return {"difference": round(sum(d for d, _ in pairs) / len(pairs), 4), "error": round(error, 4)}


def compared(out: dict) -> dict:
    """Each way against plain guidance, by the digit-FID (less than 0: the trick is nearer to real digits).

    at_best: each at the scale that is best for it in the other seed, so that none gains by having been chosen; of what
    was drawn with one seed, in that one.
    at_equal_gamma: at the same scale, with the difference of the recalls beside it.
    """
    rows = {(row["way"], row["gamma"], row["seed"]): row for row in out["rows"]}
    seeds = sorted({seed for _, _, seed in rows})
    ways = sorted({way for way, _, _ in rows} - {"plain"})

    def drawn_with(way: str) -> list[int]:
        return [s for s in seeds if any((way, s) == (w, z) for w, _, z in rows)]

    def best(way: str, seed: int) -> float:
        """The scale of the smallest digit-FID, of those that all seeds of this way have."""
        own = drawn_with(way)
        ladder = {g for w, g, _ in rows if w == way and all((way, g, s) in rows for s in own)}
        return min(ladder, key=lambda g: rows[way, g, seed if seed in own else own[0]]["digit_fid"])

    if ("plain", 1.5, seeds[-1]) not in rows:
        return {"at_best": [], "at_equal_gamma": []}
    at_best, at_equal = [], []
    for way in ways:
        known = drawn_with(way)
        chosen = [(best(way, 1 - s), best("plain", 1 - s if len(known) > 1 else s), s) for s in known]
        found = together([difference(out, rows[way, g, s], rows["plain", p, s]) for g, p, s in chosen])
        scales = {"gammas": [g for g, _, _ in chosen], "plain": [p for _, p, _ in chosen]}
        at_best.append({"way": way} | scales | found)
        for gamma in LADDERS.get(way, ()):
            both = [s for s in seeds if {(way, gamma, s), ("plain", gamma, s)} <= rows.keys()]
            pairs = [(rows[way, gamma, s], rows["plain", gamma, s]) for s in both]
            if pairs:
                recall = together([difference(out, *pair, "recall") for pair in pairs])
                found = together([difference(out, *pair) for pair in pairs])
                found |= {"recall": recall["difference"], "recall_error": recall["error"]}
                at_equal.append({"way": way, "gamma": gamma} | found)
    return {"at_best": at_best, "at_equal_gamma": at_equal}


def write(path: Path, out: dict) -> None:
    """The file, a line a row."""

    def short(value):
        return json.dumps(value, separators=(",", ":"))

    order = [*LADDERS, "plus_plus"]
    out["rows"].sort(key=lambda row: (order.index(row["way"]), row["gamma"], row["seed"]))
    out |= compared(out)
    plain_parts = {name: value for name, value in out.items() if not isinstance(value, list | dict)}
    lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in plain_parts.items()]
    for name in ("rows", "at_best", "at_equal_gamma"):
        lines.append(f'"{name}": [\n' + ",\n".join(map(short, out[name])) + "\n]")
    parts = (f"{json.dumps(name)}:{short(value)}" for name, value in out["without"].items())
    lines.append('"without": {\n' + ",\n".join(parts) + "\n}")
    path.write_text("{" + ",\n".join(lines) + "}\n", encoding="utf-8")


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--quick", action="store_true", help="100 digits a row, one seed, where temporary files go")
    options.add_argument("--compare", action="store_true", help="draw nothing")
    options.add_argument("--out", type=Path, default=None)
    options.add_argument("--seed", type=int, default=None, help="one of the two alone")
    options.add_argument("--threads", type=int, default=1)
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    path = chosen.out or (Path(tempfile.gettempdir(), "practice.json") if chosen.quick else ROWS)
    out = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"rows": [], "without": {}}
    out |= {"command": "python benchmarks/digits_practice.py", "network": "pocket", "sampler": "ddim", "steps": STEPS,
            "difflesson": __version__, "torch": torch.__version__, "python": platform.python_version(),
            "threads": chosen.threads}  # fmt: skip
    seeds = (0,) if chosen.quick else (0, 1) if chosen.seed is None else (chosen.seed,)
    for point in [] if chosen.compare else [point for seed in seeds for point in points(seed)]:
        if any((row["way"], row["gamma"], row["seed"]) == (point.way, point.gamma, point.seed) for row in out["rows"]):
            continue
        began = time.process_time()
        row, parts = measured(point, 100 if chosen.quick else 1000)
        out["rows"].append(row)
        out["without"][named(row)] = parts
        out["seconds"] = round(out.get("seconds", 0.0) + time.process_time() - began, 1)
        write(path, out)
        shown = (f"{name} {row[name]:.3f}" for name in ("accuracy", "digit_fid", "recall", "moved") if name in row)
        print(f"{time.process_time() - began:5.1f} s  {point}", *shown, flush=True)
    write(path, out)


if __name__ == "__main__":
    main()
