"""Digits steered by sentences: what the encoder that steers says of them, another encoder, and a ruler. Chapter 16.

    python benchmarks/digits_words.py                 writes difflesson/digits/logs/words.json
    python benchmarks/digits_words.py --quick         20 digits a row, where temporary files go: does it run?

Each row is written when it is measured, so a run that was stopped goes on where it was. All rows have the same
sentences, four words each, drawn as the training digits have them, and the same noise. The ways:

    cfg        classifier-free guidance by gamma on the network of sentences; the next three steer it told nothing
    clean      by the cosine of encoders of clean digits, asked about the noisy picture
    guess      by the same, asked about the guessed clean picture
    noisy      by encoders that were trained on noise as well
    both       told the sentence, at the scale 2, and steered as in "guess"
    digit      as "cfg", but told the digit alone; what holds is still asked of all four words
    best       as "cfg", drawn four times; kept is the one of the largest cosine, by the encoders of clean digits
    real       digits of MNIST's test half, each with a sentence that is true of it

The scale of a cosine is counted in units of 1 / tau, of the encoders that steer. A row has shares: of words that hold
(digit by the judge, width, slant and breadth measured), of pictures of which all four hold, and of pictures whose own
sentence is nearer than nine wrong ones, of any digit and ("finds_words") of the same digit, to three pairs of encoders;
and mean cosines. Real digits need MNIST, all others do not.
"""

import argparse
import json
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from difflesson import guidance
from difflesson.denoiser import network_denoiser
from difflesson.digits import captions, checkpoints, data, metrics, words
from difflesson.digits.sampling import SAMPLERS, digit_times, guided_denoiser
from difflesson.samplers import draw

ROWS = Path(__file__).resolve().parents[1] / "difflesson" / "digits" / "logs" / "words.json"


@dataclass(frozen=True)
class Point:
    """One row's settings."""

    part: str
    way: str
    gamma: float
    seed: int = 0


def points() -> list[Point]:
    """All rows, the most useful first."""
    rows = [Point("real", "real", 0.0)]
    for seed in (0, 1):
        rows += [Point("scale", way, gamma, seed) for way, gamma in (("cfg", 3.0), ("guess", 4.0), ("both", 4.0))]
        rows += [Point("scale", way, 3.0, seed) for way in ("digit", "best")]
        rows += [Point("scale", "cfg", gamma, seed) for gamma in (2.0, 1.0, 4.0, 6.0)]
        rows += [Point("scale", way, gamma, seed) for gamma in (4.0, 16.0, 1.0) for way in ("noisy", "clean", "guess")]
        rows += [Point("scale", "both", 1.0, seed)]
        rows += [Point(part, "cfg", gamma, seed) for gamma in (3.0, 1.0) for part in ("unseen", "seen")]
    return list(dict.fromkeys(rows))


def sentences_asked(point: Point, count: int) -> torch.Tensor:
    """Sentences of four words about digits 0..9 in turn, as often as they are true; or of pairs of words."""
    generator = torch.Generator().manual_seed(7)
    digit = torch.arange(count) % 10
    if point.part != "scale":
        return torch.tensor([captions.unseen_pair(int(d), turned=point.part == "seen") for d in digit])
    level = torch.bucketize(torch.rand(count, 3, generator=generator), torch.tensor([0.3, 0.7]))
    meaning = torch.cat([digit[:, None], level], 1)
    while (out := captions.unseen(meaning)).any():  # what was left out of training has rows of its own
        level = torch.bucketize(torch.rand(count, 3, generator=generator), torch.tensor([0.3, 0.7]))
        meaning[out, 1:] = level[out]
    return captions.say(meaning, generator, mentioned=4)


def steered(network, point: Point, sentences: torch.Tensor, start: torch.Tensor, generator) -> torch.Tensor:
    """One digit for each sentence, 16 steps of DDPM."""
    schedule, free = network.schedule, network_denoiser(network, network.schedule, None, torch.bfloat16)
    if point.way in ("cfg", "digit"):
        if point.way == "digit":
            silent = captions.SIZES.expand(len(sentences), 4) - 1
            digit = captions.words_of(sentences)[:, :1]
            sentences = captions.numbers(torch.cat([digit, silent[:, 1:]], 1))
        denoiser = guided_denoiser(network, sentences, point.gamma, dtype=torch.bfloat16)
    else:
        towers = checkpoints.load("noisy_towers" if point.way == "noisy" else "towers").network
        if point.way == "both":
            free = guided_denoiser(network, sentences, 2.0, dtype=torch.bfloat16)
        if point.way in ("guess", "both"):
            cosine = words.guess_cosine(free, towers, sentences)
        else:
            cosine = words.sentence_cosine(towers, schedule, sentences, told=point.way == "noisy")
        denoiser = guidance.tilt(free, guidance.gradient(cosine), point.gamma * float(towers.scale), schedule)
    return draw(SAMPLERS["ddpm"](denoiser, schedule), start, digit_times(16, schedule), generator)


def best_of_four(network, point: Point, sentences: torch.Tensor, generator) -> torch.Tensor:
    """Told the sentence, four digits each; the one that the encoders of clean digits find nearest to it."""
    told, towers = replace(point, way="cfg"), checkpoints.load("towers").network
    drawn = [steered(network, told, sentences, torch.randn(len(sentences), 1, 28, 28, generator=generator), generator)
             for _ in range(4)]  # fmt: skip
    nearest = torch.stack([towers(images.clamp(-1, 1), None, sentences) for images in drawn]).argmax(0)
    return torch.stack(drawn)[nearest, torch.arange(len(sentences))]


def measured(images: torch.Tensor, sentences: torch.Tensor) -> dict[str, float]:
    """What the sentences are worth: truth, and what encoders say."""
    seen = metrics.judged(checkpoints.load("judge").network, images)[1].argmax(1)
    said, holds = captions.obeyed(sentences, images, seen)
    row = {"all": holds.all(1), "digit": holds[:, 0]}
    for slot, name in ((1, "width"), (2, "slant"), (3, "breadth")):
        if said[:, slot].any():
            row[name] = holds[said[:, slot], slot]
    for name in ("towers", "noisy_towers", "other_towers"):
        towers, clamped = checkpoints.load(name).network, images.clamp(-1, 1)
        row[name] = towers(clamped, None, sentences)
        for suffix, wrong in (("finds", others(sentences, False)), ("finds_words", others(sentences, True))):
            nine = torch.stack([towers(clamped, None, one) for one in wrong], 1)
            row[f"{name}_{suffix}"] = row[name] > nine.amax(1)
    row = {name: value.double() for name, value in row.items()}
    tail = {"towers_95": round(float(row["towers"].quantile(0.95)), 4), "count": len(images)}
    shown = {name: round(float(value.mean()), 4) for name, value in row.items()}
    errors = {f"{name}_error": round(float(value.std() / len(value) ** 0.5), 4) for name, value in row.items()}
    return shown | errors | tail


def others(sentences: torch.Tensor, same_digit: bool) -> torch.Tensor:
    """Nine wrong sentences of four words for each, (9, N), as often as they are true; also of the same digit alone."""
    generator = torch.Generator().manual_seed(9)
    digit = captions.words_of(sentences)[:, 0]
    drawn = []
    while len(drawn) < 9:
        level = torch.bucketize(torch.rand(len(digit), 3, generator=generator), torch.tensor([0.3, 0.7]))
        any_digit = torch.randint(0, 10, digit.shape, generator=generator)
        meaning = torch.cat([(digit if same_digit else any_digit)[:, None], level], 1)
        right = captions.true_words(sentences, meaning)[1].all(1)  # another way to say the same is not wrong
        meaning[right, 3] = (meaning[right, 3] + 1) % 3
        drawn.append(captions.say(meaning, generator, mentioned=4))
    return torch.stack(drawn)


def row_of(point: Point, count: int) -> dict:
    """The row of one point."""
    began, generator = time.process_time(), torch.Generator().manual_seed(16 + point.seed)
    if point.part == "real":
        digits = data.load("mnist", "test")
        images, labels = data.to_unit(digits.images[:count]), digits.labels[:count]
        sentences = captions.say(captions.meanings(images, labels), generator, mentioned=4)
    else:
        network, sentences = checkpoints.load("words").network, sentences_asked(point, count)
        start = torch.randn(count, 1, 28, 28, generator=generator)
        if point.way == "best":
            images = best_of_four(network, point, sentences, generator)
        else:
            images = steered(network, point, sentences, start, generator)
    row = asdict(point) | measured(images, sentences)
    print(
        f"{time.process_time() - began:5.1f} s  {point}  all {row['all']:.3f}  cosine {row['towers']:.3f}", flush=True
    )
    return row


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--quick", action="store_true", help="20 digits a row, where temporary files go")
    options.add_argument("--out", type=Path, default=None)
    options.add_argument("--threads", type=int, default=1)
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    out = chosen.out or (Path(tempfile.gettempdir(), "words.json") if chosen.quick else ROWS)
    rows = json.loads(out.read_text(encoding="utf-8"))["rows"] if out.exists() else []
    for point in points():
        if any(row.items() >= asdict(point).items() for row in rows):
            continue
        rows.append(row_of(point, 20 if chosen.quick else 1000 if point.part == "real" else 200))
        text = ",\n".join(json.dumps(row) for row in rows)
        text = f'{{"command": "python benchmarks/digits_words.py", "rows": [\n{text}\n]}}\n'
        out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
