"""The shipped networks answer as they did when they were measured: a few numbers of each are stored beside this file.

Another activation, another way to pool or to enlarge, another constant in a norm or one tensor changed by 1 % leaves
shapes and losses as they are, and makes worse digits. Renew the file only with new weights:

    python -m tests.package.digits.test_shipped_answers
"""

import json
from pathlib import Path

import pytest
import torch

from difflesson.digits import captions, checkpoints, sampling

STORED = Path(__file__).with_name("shipped_answers.json")
DENOISERS = ("denoiser", "unlabelled", "pocket", "pocket_p02", "pocket_p10", "pocket_p50")
TOWERS = ("towers", "noisy_towers", "other_towers")
NAMES = (*DENOISERS, "guide", "judge", "clean", "words", *TOWERS)
SENTENCES = [
    captions.number(f"a {text}") for text in ("zero", "bold two", "slim digit", "leaning four", "digit", "digit")
]
TOLERANCE = 2e-4  # of the largest number; single precision on other processors differs by less than 1e-5


def answers(name: str) -> dict[str, list[float]]:
    """What a network says of six images between noise and a drawn square."""
    network = checkpoints.load(name).network
    images = 0.5 * torch.randn(6, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    images[:, :, 8:20, 10:18] += torch.linspace(-1, 1, 6).view(6, 1, 1, 1)
    log_snr, labels = torch.linspace(-6, 6, 6), torch.tensor([0, 7, 3, 9, 10, 10])
    with torch.no_grad():
        if name in TOWERS:
            sentences = torch.tensor(SENTENCES)
            return {
                "noisy": network(images, log_snr, sentences).tolist(),
                "clean": network(images, None, sentences).tolist(),
            }
        if name == "words":
            labels = torch.tensor(SENTENCES)
        if name == "words" or name in DENOISERS:
            v = network(images, log_snr, labels)
            return {"pixels": v[:, 0, 3::8, 5::9].flatten().tolist(), "norms": v.flatten(1).norm(dim=1).tolist()}
        return {
            "noisy": network(images, log_snr).flatten().tolist(),
            "clean": network(images).flatten().tolist(),
            "features": network.features(images)[:, ::16].flatten().tolist(),
        }


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_network_answers_as_when_it_was_measured(name: str):
    stored, now = json.loads(STORED.read_text(encoding="utf-8"))[name], answers(name)
    assert stored.keys() == now.keys()
    for part, values in stored.items():
        values, found = torch.tensor(values), torch.tensor(now[part])
        assert float((values - found).abs().max()) < TOLERANCE * float(values.abs().max()), part


def test_every_batch_has_noise_of_its_own():
    """Six requests for one digit in batches of two: no two pictures are alike, and the first are those of one batch."""
    network, sevens = checkpoints.load("denoiser").network, torch.full((6,), 7)
    images = sampling.generate(network, sevens, 1.0, seed=3, steps=2, batch=2).flatten(1)
    apart = torch.cdist(images, images) + 1e3 * torch.eye(6)
    assert float(apart.min()) > 0.1
    assert torch.equal(images[:2], sampling.generate(network, sevens[:2], 1.0, seed=3, steps=2).flatten(1))


@pytest.mark.parametrize("guided_by", ["two answers", "a classifier"])
def test_the_arithmetic_asked_for_is_the_one_used(guided_by: str):
    network = checkpoints.load("denoiser").network
    guide = None if guided_by == "two answers" else checkpoints.load("guide").network
    draw = {"seed": 3, "steps": 2, "guide": guide, "sampler": "ddim"}
    single, half = (
        sampling.generate(network, torch.tensor([7, 2]), 2.0, dtype=dtype, **draw) for dtype in (None, torch.bfloat16)
    )
    gap = float((single - half).abs().max())
    assert 1e-4 < gap < 0.5


if __name__ == "__main__":
    STORED.write_text(json.dumps({name: answers(name) for name in NAMES}) + "\n", encoding="utf-8")
