"""What chapter 08 says of distances from targets, over eight independent starts: other seeds, and other mixtures."""

import pytest
import torch
from torch import Tensor

from difflesson import kernels, metrics
from difflesson.schedule import cosine
from tests.chapters.test_chapter_08 import BLOBS, TWO, cloud, guided, random, tilt_of

STARTS = 8


def starts(mixture, kind: str, label: int, gamma, kernel, count: int, seed: int = 60, steps: int = 40) -> tuple:
    """Guided points of so many independent starts, `count` points each."""
    denoiser = guided(mixture, cosine(), kind, label, gamma)
    return cloud(denoiser, cosine(), kernel, STARTS * count, steps, seed).split(count)


def surely_more(one: Tensor, other: Tensor) -> bool:
    """By three standard errors of the mean difference; both share the noise and the draw of the target."""
    apart = one - other
    return bool(apart.mean() > 3 * apart.std() / len(apart) ** 0.5)


def late(t) -> float:
    return 1.0 if t > 0.5 else 10.0


def late6(t) -> float:
    return 1.0 if t > 0.5 else 6.0


@pytest.mark.parametrize("mixture", [BLOBS, TWO])
def test_over_eight_starts_the_normalised_clouds_are_nearer_than_the_scaled_and_ddpm_nearer_than_ddim_by_three_errors(
    mixture,
):
    """Class 1 of the page's mixture, the rarer class of another; 150 points each, and as many of the target."""
    label, off = 1 if mixture is BLOBS else 0, {}
    for kind in ("scaled", "normalised"):
        truth = tilt_of(mixture, kind, label, 6.0).sample(STARTS * 150, random(61)).split(150)
        for kernel in (kernels.ddim, kernels.ddpm):
            clouds = starts(mixture, kind, label, 6.0, kernel, 150)
            off[kind, kernel] = torch.tensor([metrics.wasserstein(*pair) for pair in zip(clouds, truth, strict=True)])
    for kernel in (kernels.ddim, kernels.ddpm):
        assert surely_more(off["scaled", kernel], off["normalised", kernel])
    for kind in ("scaled", "normalised"):
        assert surely_more(off[kind, kernels.ddim], off[kind, kernels.ddpm])


@pytest.mark.parametrize("kernel", [kernels.ddim, kernels.ddpm])
def test_over_eight_starts_gamma_one_is_nearer_to_the_normalised_target_than_late_guidance(kernel):
    """By energy distances of 1,000 points from 1,000, which have no floor."""
    truth = tilt_of(BLOBS, "normalised", 1, 10.0).sample(STARTS * 1000, random(62)).split(1000)
    off = [
        torch.tensor([metrics.energy_distance(*pair) for pair in zip(clouds, truth, strict=True)])
        for clouds in (starts(BLOBS, "normalised", 1, gamma, kernel, 1000) for gamma in (late, 1.0))
    ]
    assert surely_more(*off)
    assert abs(float(off[1].mean())) < 0.002 + 3 * float(off[1].std()) / STARTS**0.5  # no farther than a draw


def test_for_the_frequent_class_of_another_mixture_by_ddpm_late_guidance_is_nearer_in_w2_than_gamma_one():
    """Where the advice to take gamma 1 has its limit; by energy distances the two are as near."""
    truth = tilt_of(TWO, "normalised", 1, 6.0).sample(STARTS * 500, random(63)).split(500)
    off = [
        torch.tensor([metrics.wasserstein(*pair) for pair in zip(clouds, truth, strict=True)])
        for clouds in (starts(TWO, "normalised", 1, gamma, kernels.ddpm, 500) for gamma in (1.0, late6))
    ]
    assert surely_more(*off)


def test_late_guidance_keeps_the_proportion_of_the_modes_inside_and_not_outside():
    """The rarer class of another mixture, by DDPM; the share of its first blob, over eight starts."""
    own = metrics.mode_weights(TWO, tilt_of(TWO, "scaled", 0, 1.0))
    share = {}
    for kind in ("scaled", "normalised"):
        clouds = starts(TWO, kind, 0, late, kernels.ddpm, 250)
        modes = torch.stack([metrics.mode_weights(TWO, x) for x in clouds])
        share[kind] = modes[:, 0] / (modes[:, 0] + modes[:, 2])
    wanted = float(own[0] / (own[0] + own[2]))
    assert abs(float(share["normalised"].mean()) - wanted) < 0.04 and float(share["scaled"].mean()) > wanted + 0.08
    assert surely_more(share["scaled"], share["normalised"])


def test_outside_and_by_ddim_the_cloud_is_the_surest_of_the_four_for_both_classes_of_another_mixture():
    for label in (0, 1):
        sure = {}
        for kind in ("scaled", "normalised"):
            for kernel in (kernels.ddim, kernels.ddpm):
                clouds = starts(TWO, kind, label, 6.0, kernel, 100)
                sure[kind, kernel] = torch.stack([metrics.class_mass(TWO, x)[label] for x in clouds])
        best = sure.pop(("scaled", kernels.ddim))
        assert all(surely_more(best, other) for (kind, _), other in sure.items() if kind == "normalised")
        assert best.mean() > sure["scaled", kernels.ddpm].mean()  # for label 0 within the scatter
