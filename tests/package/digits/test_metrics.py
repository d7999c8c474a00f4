"""The metrics against scipy, torchmetrics and closed forms, and the reference statistics that ship."""

import math
import os

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import nn

from difflesson.digits import checkpoints, data, metrics
from difflesson.digits.metrics import Statistics, frechet_distance, statistics

F64 = torch.float64
real_pixels = pytest.mark.skipif(
    not os.environ.get("DIFFLESSON_DATA"), reason="DIFFLESSON_DATA is not set: no real MNIST"
)


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def gaussian(size: int, seed: int, rank: int | None = None) -> Statistics:
    """A mean and a covariance in general position, of full rank unless one is given."""
    factor = random(size, rank or size + 2, seed=seed)
    return Statistics(random(size, seed=seed + 100), factor @ factor.T / size, 1000)


class Ruler(nn.Module):
    """A judge by hand: the features of an image are its first pixels, its logits ten times that."""

    def __init__(self, size: int = 10):
        super().__init__()
        self.size, self.gain = size, nn.Parameter(torch.tensor(10.0, dtype=F64))

    def features(self, x):
        return x.flatten(1)[:, : self.size]

    def leave(self, features):
        return self.gain * features


def grey(levels) -> torch.Tensor:
    """Images in [-1, 1] with these grey levels, 0..255, in the places that `Ruler` reads."""
    levels = torch.as_tensor(levels, dtype=F64)
    return (nn.functional.pad(levels, (0, 16 - levels.shape[1])) / 127.5 - 1).reshape(-1, 1, 4, 4)


# ---- the Frechet distance


@pytest.mark.equation("eq-frechet")
@pytest.mark.parametrize("size, ranks", [(1, (3, 3)), (6, (8, 8)), (40, (42, 50)), (40, (5, 9))])
def test_the_frechet_distance_agrees_with_the_matrix_root_of_scipy(size, ranks):
    """Heusel's formula as it stands, with a root of the non-symmetric product; also for singular ones."""
    a, b = (gaussian(size, seed, rank) for seed, rank in zip((1, 2), ranks, strict=True))
    product, regular = a.cov.numpy() @ b.cov.numpy(), min(ranks) > size
    if regular:
        trace = np.trace(scipy.linalg.sqrtm(product)).real
    else:  # where the product is singular the root is ill-conditioned, its eigenvalues are not
        trace = np.sqrt(np.linalg.eigvals(product).astype(complex)).real.sum()
    expected = np.sum((a.mean - b.mean).numpy() ** 2) + np.trace(a.cov + b.cov) - 2 * trace
    assert abs(frechet_distance(a, b) - expected) < (1e-9 if regular else 1e-5) * max(1, expected)
    assert expected > 0.1


@pytest.mark.equation("eq-frechet")
def test_the_frechet_distance_of_two_known_gaussians():
    """Where the covariances commute it is `|m_a - m_b|^2` plus the squared differences of the deviations."""
    axes = torch.linalg.qr(random(4, 4, seed=0)).Q
    first, second = torch.tensor([[1.0, 2.0, 3.0, 0.0], [2.0, 2.0, 0.5, 1.5]], dtype=F64)
    means = random(2, 4, seed=1)
    a, b = (Statistics(m, axes * s**2 @ axes.T, 9) for m, s in zip(means, (first, second), strict=True))
    expected = float((means[0] - means[1]).square().sum() + (first - second).square().sum())
    assert abs(frechet_distance(a, b) - expected) < 1e-7  # a deviation of exactly zero costs half the digits
    one, two = torch.ones(1, dtype=F64), torch.ones(1, 1, dtype=F64)
    line = Statistics(1 * one, 4 * two, 2), Statistics(4 * one, 25 * two, 2)
    assert abs(frechet_distance(*line) - (3**2 + 3**2)) < 1e-12


@pytest.mark.equation("eq-frechet")
def test_the_frechet_distance_is_symmetric_and_zero_only_on_itself():
    for size, rank in ((1, None), (6, None), (40, 9)):
        a, b = gaussian(size, 1, rank), gaussian(size, 2, rank)
        assert abs(frechet_distance(a, b) - frechet_distance(b, a)) < 1e-5
        assert abs(frechet_distance(a, a)) < 1e-5
        moved = Statistics(a.mean + 0.1, a.cov, a.count)
        assert abs(frechet_distance(a, moved) - 0.01 * size) < 1e-5
        turn = torch.linalg.qr(random(size, size, seed=3)).Q
        turned = (Statistics(turn @ s.mean, turn @ s.cov @ turn.T, s.count) for s in (a, b))
        assert abs(frechet_distance(*turned) - frechet_distance(a, b)) < 1e-5


@pytest.mark.equation("eq-frechet")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_frechet_distance_agrees_with_torchmetrics():
    """Theirs, from images to the distance, with our features in place of Inception's."""
    image = pytest.importorskip("torchmetrics.image.fid", reason="torchmetrics is not installed")

    class Features(nn.Module):
        num_features = 16

        def forward(self, x):
            return x.double().flatten(1)

    theirs = image.FrechetInceptionDistance(feature=Features(), normalize=True, input_img_size=(1, 4, 4))
    theirs.set_dtype(F64)
    real, fake = random(200, 1, 4, 4, seed=1), 0.5 + random(300, 1, 4, 4, seed=2) * torch.linspace(0.5, 2, 4)
    theirs.update(real, real=True)
    theirs.update(fake, real=False)
    ours = frechet_distance(statistics(real.flatten(1)), statistics(fake.flatten(1)))
    assert abs(float(theirs.compute()) - ours) < 1e-5 and ours > 1


def test_the_statistics_are_those_of_numpy():
    for shape in ((50, 7), (2, 3), (5, 1)):
        features = random(*shape, seed=1).float()
        mean, cov, count = statistics(features)
        assert mean.dtype == cov.dtype == F64 and cov.shape == (shape[1], shape[1]) and count == shape[0]
        expected = np.atleast_2d(np.cov(features.numpy().astype(np.float64), rowvar=False, ddof=1))
        assert np.abs(cov.numpy() - expected).max() < 1e-12
        assert np.abs(mean.numpy() - features.numpy().astype(np.float64).mean(0)).max() < 1e-12


# ---- what the judge sees and says


def test_a_report_counts_what_the_judge_names_as_wanted():
    """Four images whose answers are known: sure, sure, a draw of two, and no idea at all."""
    levels = torch.zeros(4, 10)
    levels[0, 3] = levels[1, 7] = 255
    levels[2, :2] = torch.tensor([255.0, 254.0])
    levels[3] = 128
    reference = Statistics(torch.zeros(10, dtype=F64), torch.eye(10, dtype=F64), 100)
    report = metrics.digit_report(Ruler(), grey(levels), torch.tensor([3, 1, 0, 9]), reference)
    assert report["accuracy"] == 0.5  # the first and the third
    logits = 10 * (levels.double() / 127.5 - 1)
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    assert abs(report["entropy"] - float(entropy.mean())) < 1e-5
    assert abs(float(entropy[3]) - math.log(10)) < 1e-12
    features = (levels.double() / 127.5 - 1).numpy()
    distance = np.sum(features.mean(0) ** 2) + 10 + np.trace(np.cov(features.T))
    distance -= 2 * np.sqrt(np.linalg.eigvalsh(np.cov(features.T)).clip(0)).sum()
    assert abs(report["digit_fid"] - distance) < 1e-5


def test_perfect_digits_have_accuracy_one_and_no_distance_to_themselves():
    labels = torch.arange(200) % 10
    images = grey(250.0 * nn.functional.one_hot(labels, 10) + random(200, 10, seed=1).abs().round())
    reference = statistics(metrics.judged(Ruler(), images)[0])
    report = metrics.digit_report(Ruler(), images, labels, reference)
    assert report["accuracy"] == 1.0 and abs(report["digit_fid"]) < 1e-5 and 0 <= report["entropy"] < 1e-5
    assert metrics.digit_report(Ruler(), images, (labels + 1) % 10, reference)["accuracy"] == 0.0


def test_the_judge_sees_256_grey_levels():
    """What a picture file would hold: values between two levels, and beyond black and white, are gone."""
    levels = torch.tensor([[-40.0, 0.2, 1.4, 100.49, 100.51, 254.6, 300.0, 0, 0, 0]])
    features, log_probs = metrics.judged(Ruler(), grey(levels))
    expected = torch.tensor([0, 0, 1, 100, 101, 255, 255, 0, 0, 0], dtype=F64) / 127.5 - 1
    assert float((features[0] - expected).abs().max()) < 1e-12
    assert float((log_probs[0] - (10 * expected).log_softmax(0)).abs().max()) < 1e-12


def test_the_size_of_a_batch_changes_nothing():
    images = random(7, 1, 4, 4, seed=1)
    whole, parts = metrics.judged(Ruler(), images), metrics.judged(Ruler(), images, batch=3)
    for a, b in zip(whole, parts, strict=True):
        assert a.dtype == F64 and len(a) == 7 and torch.equal(a, b)


def test_saved_reference_statistics_come_back_with_their_floor(tmp_path):
    path, (test, train) = tmp_path / "reference.safetensors", random(2, 50, 1, 4, 4, seed=1)
    card = metrics.save_reference(path, Ruler(), test, train, {"data_sha256": "abc"})
    loaded, written = metrics.load_reference(path)
    a, b = (statistics(metrics.judged(Ruler(), images)[0]) for images in (test, train))
    assert written == card and card["images"] == loaded.count == 50 and card["data_sha256"] == "abc"
    assert torch.equal(loaded.mean, a.mean) and torch.equal(loaded.cov, a.cov)
    assert abs(card["digit_fid_floor"] - frechet_distance(a, b)) < 1e-5 and card["digit_fid_floor"] > 0.01


# ---- bad input


def report(labels: torch.Tensor, size: int) -> dict:
    """A report on three images, against a reference of this many features; right are three labels and ten."""
    return metrics.digit_report(Ruler(), grey([[0.0]] * 3), labels, gaussian(size, 0))


@pytest.mark.parametrize(
    "call, argument",
    [
        (lambda: statistics(random(1, 3, seed=0)), "features"),
        (lambda: statistics(random(3, seed=0)), "features"),
        (lambda: frechet_distance(gaussian(3, 0), gaussian(4, 1)), "a and b"),
        (lambda: metrics.judged(Ruler(), torch.full((2, 1, 4, 4), math.nan)), "images"),
        (lambda: report(torch.tensor([1]), 10), "labels"),
        (lambda: report(torch.tensor(1), 10), "labels"),
        (lambda: report(torch.arange(3), 9), "a and b"),
    ],
)
def test_bad_input_is_a_value_error_that_names_the_argument(call, argument):
    with pytest.raises(ValueError, match=f"^{argument} must"):
        call()


# ---- the shipped judge and reference, on the real digits


@pytest.fixture(scope="module")
def judged_test_images():
    test = data.load("mnist", "test")
    judge = checkpoints.load("judge").network
    return test.labels, *metrics.judged(judge, data.to_unit(test.images))


@real_pixels
def test_the_judge_knows_99_5_percent_of_the_real_test_digits_and_the_card_says_so(judged_test_images):
    labels, _, log_probs = judged_test_images
    accuracy = float((log_probs.argmax(1) == labels).double().mean())
    assert accuracy >= 0.995
    written = metrics.load_reference()[1]["judge_accuracy_on_test"]
    assert abs(accuracy - written) < 1.5e-4  # another CPU may change one answer


@real_pixels
def test_the_shipped_reference_is_that_of_the_real_test_digits(judged_test_images):
    shipped, _ = metrics.load_reference()
    computed = statistics(judged_test_images[1])
    assert computed.count == shipped.count
    scale = float(shipped.cov.diagonal().max())
    assert float((computed.mean - shipped.mean).abs().max()) < 1e-4 * math.sqrt(scale)
    assert float((computed.cov - shipped.cov).abs().max()) < 1e-4 * scale
    assert abs(frechet_distance(computed, shipped)) < 1e-4 * float(shipped.cov.trace())


@real_pixels
def test_the_shipped_floor_is_the_distance_of_as_many_training_digits():
    shipped, card = metrics.load_reference()
    train = data.load("mnist", "train").images[: shipped.count]
    features, _ = metrics.judged(checkpoints.load("judge").network, data.to_unit(train))
    assert abs(frechet_distance(statistics(features), shipped) / card["digit_fid_floor"] - 1) < 0.01
