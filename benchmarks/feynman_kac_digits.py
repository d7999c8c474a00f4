"""What Feynman-Kac weights change on digits: variety within the class, and the distance to real digits.

    python benchmarks/feynman_kac_digits.py [--populations 2] [--steps 16] [--threads 2]

For each class, populations of 64 digits from the shipped network: plain (gamma 1), guided by two scales, and guided
with the weights of `remedies.feynman_kac`, drawn anew by weight at the end. Per row: the least effective size on the
way and the ancestors left (means over populations), the judge's accuracy, the spread within a class (mean square
distance from its mean, in the judge's features), and the digit-FID, for which all classes are taken together. The
weight of the start is left out: at this noise it is the same for all points, to what a classifier can tell.
"""

import argparse
import time

import torch

from difflesson import guidance, kernels, particles, remedies
from difflesson.denoiser import network_pair
from difflesson.digits import checkpoints, metrics
from difflesson.digits.sampling import digit_times
from difflesson.samplers import draw

SIZE = 64


def population(shipped, label, gamma, weighed, steps, seed):
    """(64 digits, least effective size, ancestors left) of one population."""
    pair = remedies.asked_once(network_pair(shipped.network, shipped.schedule, label))
    kernel = kernels.ddpm(guidance.classifier_free(pair, gamma), shipped.schedule)
    times = digit_times(steps, shipped.schedule)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(SIZE, 1, 28, 28, generator=generator)
    if not weighed:
        return draw(kernel, x, times, generator), SIZE, SIZE
    rule, least = remedies.feynman_kac(pair, gamma, shipped.schedule), SIZE
    for crowd in particles.sample(kernel, rule, x, times, generator):
        least = min(least, float(crowd.ess))
    crowd = crowd.chosen(particles.systematic(crowd.log_weights, generator))
    return crowd.x, least, len(crowd.ancestors.unique())


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("populations", 2), ("steps", 16), ("threads", 2)):
        options.add_argument(f"--{name}", type=int, default=default)
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    shipped, judge = checkpoints.load("denoiser"), checkpoints.load("judge").network
    reference, card = metrics.load_reference()
    floor, count = card["digit_fid_floor"], chosen.populations
    print(f"{10 * SIZE * count} digits a row, {chosen.steps} DDPM steps; floor of the digit-FID {floor}")
    print("                    least ESS  ancestors  accuracy  spread in class  digit-FID  seconds")
    for gamma, weighed in ((1.0, False), (1.5, False), (1.5, True), (3.0, False), (3.0, True)):
        began, digits, labels, notes, spreads = time.perf_counter(), [], [], [], []
        for label in range(10):
            seeds = [100 * label + k for k in range(count)]
            parts = [population(shipped, label, gamma, weighed, chosen.steps, seed) for seed in seeds]
            digits += [x for x, _, _ in parts]
            notes += [(least, left) for _, least, left in parts]
            labels += [label] * SIZE * count
            features, _ = metrics.judged(judge, torch.cat([x for x, _, _ in parts]))
            spreads.append(float((features - features.mean(0)).square().sum(1).mean()))
        report = metrics.digit_report(judge, torch.cat(digits), torch.tensor(labels), reference)
        least, left = torch.tensor(notes).double().mean(0)
        name = f"gamma {gamma:g}{', weighed' if weighed else ''}"
        quality = f"{report['accuracy']:8.4f}  {sum(spreads) / 10:15.2f}  {report['digit_fid']:9.3f}"
        seconds = time.perf_counter() - began
        print(f"{name:>18}  {least:9.1f}  {left:9.1f}  {quality}  {seconds:7.0f}", flush=True)


if __name__ == "__main__":
    main()
