"""A row of the denoiser's card is measured again on fewer digits: may they come from the accuracy that it says?"""

import math
import re
from pathlib import Path

import pytest
import torch

from difflesson.digits import checkpoints, metrics, sampling


def at_most(wrong: int, count: int, share: float) -> float:
    """The probability of at most `wrong` wrong digits of `count`, each wrong with probability `share`."""
    return math.fsum(math.comb(count, k) * share**k * (1 - share) ** (count - k) for k in range(wrong + 1))


@pytest.mark.parametrize(("count", "level"), [(256, 0.01), pytest.param(1536, 0.001, marks=pytest.mark.nightly)])
@torch.no_grad()
def test_the_cards_accuracy_at_gamma_1_is_that_of_its_first_digits(count: int, level: float):
    """Sampler, steps and seed of the card, so these are the first of its 10,000 digits (in single precision): so few
    wrong ones, or so many, have each a probability above the level. At 97 % one wrong digit in 256 has 0.4 %.
    """
    network, card = checkpoints.load("denoiser")
    (setting, curve), *_ = card["metrics"].items()
    words = re.fullmatch(r"classifier-free, (\w+), (\d+) steps, 10000 digits, seed (\d+)", setting)
    sampler, steps, seed = words.groups()
    labels = torch.arange(count) % 10
    digits = sampling.generate(network, labels, 1.0, seed=int(seed), steps=int(steps), sampler=sampler)
    wrong = int((metrics.judged(checkpoints.load("judge").network, digits)[1].argmax(1) != labels).sum())
    share = 1 - curve["1"]["accuracy"]
    assert at_most(wrong, count, share) > level and 1 - at_most(wrong - 1, count, share) > level, (wrong, share)


def test_each_row_of_metrics_carries_the_command_that_measures_it_again():
    """The setting's words and the command's options are the same; what the command leaves out is the default."""
    for path in sorted(Path(checkpoints.shipped("denoiser")).parent.glob("*.json")):
        for setting, curve in checkpoints.read_card(path).get("metrics", {}).items():
            words = re.match(r"classifier-free, ddpm, (\d+) steps, 10000 digits, seed 0", setting)  # mostly defaults
            network = "" if path.stem == "denoiser" else f"--network {path.stem} "
            steps = "" if words[1] == "16" else f"--steps {words[1]} "
            for gamma, row in curve.items():
                said = f"difflesson evaluate {network}--gamma {gamma} {steps}--device cpu --precision bf16"
                assert row["command"] == said
