"""How good are the digits: the judge's accuracy, and a Fréchet distance in the judge's features.

The digit-FID is FID with the Inception network replaced by our judge (128 features), so its values cannot be compared
with published FIDs; its floor, real digits against real digits, is reported beside it.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from difflesson.checks import check_shape
from difflesson.denoiser import check_labels
from difflesson.digits import checkpoints

REFERENCE = "reference"


class Statistics(NamedTuple):
    """Mean (d,) and covariance (d, d) of features, float64, and how many images they come from."""

    mean: Tensor
    cov: Tensor
    count: int


@torch.no_grad()
def judged(judge: nn.Module, images: Tensor, batch: int = 500) -> tuple[Tensor, Tensor]:
    """Features (N, d) and log-probabilities (N, classes) that the judge gives to images (N, 1, H, W) in [-1, 1].

    Images are clamped to [-1, 1] and rounded to 256 grey levels first, as if they had been saved to a file.
    Raises: ValueError if images are not finite floats of this shape, or none of their numbers is below 0, the middle
    grey: then they are on another scale, 0..1 or 0..255.
    """
    if not images.is_floating_point() or images.dim() != 4 or images.shape[1] != 1 or len(images) < 1:
        got = f"{images.dtype} {tuple(images.shape)}"
        raise ValueError(f"images must be floats (N, 1, H, W) in [-1, 1], black is -1; got {got}")
    if not bool(images.isfinite().all()):
        raise ValueError("images must be finite: no grey level stands for NaN or infinity")
    if bool(images.min() >= 0) and bool(images.max() > 0):
        low, high = float(images.min()), float(images.max())
        raise ValueError(f"images must lie in [-1, 1], black is -1; these lie in [{low:.3g}, {high:.3g}]")
    device, features, log_probs = next(judge.parameters()).device, [], []
    for part in images.split(batch):
        pixels = ((part.to(device).clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1
        features.append(judge.features(pixels))
        log_probs.append(judge.leave(features[-1]).log_softmax(dim=1))
    return torch.cat(features).cpu().double(), torch.cat(log_probs).cpu().double()


def statistics(features: Tensor) -> Statistics:
    """Mean and covariance of features (N, d).  Raises: ValueError if N < 2."""
    if features.dim() != 2 or len(features) < 2:
        raise ValueError(f"features must have shape (N, d) with N >= 2, got {tuple(features.shape)}")
    return Statistics(features.double().mean(0), torch.atleast_2d(features.double().T.cov()), len(features))


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """`|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^{1/2})`: squared Wasserstein-2 distance of two Gaussians.

    [eq-frechet]  Source: Heusel et al. 2017 (arXiv 1706.08500), eq. 6. The trace of the root is taken through
    `C_a^{1/2} C_b C_a^{1/2}`, which is symmetric and has the same eigenvalues.
    Raises: ValueError if a and b have different numbers of features.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"a and b must have as many features, got {len(a.mean)} and {len(b.mean)}")
    values, axes = torch.linalg.eigh(a.cov)
    root = (axes * values.clamp_min(0).sqrt()) @ axes.T
    cross = torch.linalg.eigvalsh(root @ b.cov @ root).clamp_min(0).sqrt().sum()
    return float((a.mean - b.mean).square().sum() + a.cov.trace() + b.cov.trace() - 2 * cross)


def digit_report(judge: nn.Module, images: Tensor, labels: Tensor, reference: Statistics) -> dict[str, float]:
    """Accuracy (share of images that the judge gives the wanted label), mean entropy of the judge's answer in nats,
    and digit-FID to the reference.  Args: images: (N, 1, H, W) in [-1, 1];  labels: (N,).
    Raises: ValueError if there is not one integer label for each image, or one is not a class; or as `judged` does.
    """
    check_shape("labels", labels, images.shape[:1])
    features, log_probs = judged(judge, images)
    labels = check_labels(labels, log_probs.shape[1]).cpu()
    return {
        "accuracy": round(float((log_probs.argmax(1) == labels).double().mean()), 5),
        "entropy": round(float(-(log_probs.exp() * log_probs).sum(1).mean()), 5),
        "digit_fid": round(frechet_distance(statistics(features), reference), 5),
    }


def save_reference(path, judge: nn.Module, test: Tensor, train: Tensor, card: dict[str, Any]) -> dict[str, Any]:
    """Ship what the metrics need to know of the real data: features' statistics of the test images, and the floor.

    Args: test, train: images (N, 1, H, W) of two disjoint sets of equal size.  Returns: the card as written.
    """
    stats, other = (statistics(judged(judge, images)[0]) for images in (test, train))
    card = card | {"images": stats.count, "digit_fid_floor": round(frechet_distance(stats, other), 5)}
    checkpoints.save_tensors(path, {"mean": stats.mean, "cov": stats.cov}, card)
    checkpoints.write_card(path, card)
    return card


def load_reference(path=None) -> tuple[Statistics, dict[str, Any]]:
    """The shipped statistics of the 10,000 MNIST test images (or those of a file), and their card."""
    tensors, card = checkpoints.load_tensors(path or checkpoints.shipped(REFERENCE))
    return Statistics(tensors["mean"], tensors["cov"], card["images"]), card
