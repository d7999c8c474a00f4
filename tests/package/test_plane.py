"""The small network of the plane: what it is, that it learns the exact fields, and the curl of vector fields."""

import inspect
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from difflesson.denoiser import network_denoiser, network_pair
from difflesson.losses import v_loss
from difflesson.mixture import GaussianMixture
from difflesson.plane import PlaneNetwork, curl, four_blobs, jacobian, train
from difflesson.schedule import cosine
from tests.oracles.mixtures import THREE

F64 = torch.float64
MIXTURE = THREE.mixture()
QUICK = {"steps": 500, "batch": 512, "width": 48}


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def untrained() -> PlaneNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return PlaneNetwork(2, 48).double()


@pytest.fixture(scope="module")
def trained() -> PlaneNetwork:
    return train(MIXTURE, cosine(), label_dropout=0.3, **QUICK)


def excess(network: PlaneNetwork, label: int | None) -> float:
    """Mean square error of eps under one label against the exact one, over the mean of |eps_y - eps_u|^2."""
    schedule, error, scale = cosine(), 0.0, 0.0
    for t in torch.linspace(0.05, 0.95, 10, dtype=F64):
        x0, y = MIXTURE.sample(2000, random(7))
        x = schedule.add_noise(x0, torch.randn(x0.shape, generator=random(8), dtype=F64), t)
        for known in (0, 1):
            pair = MIXTURE.pair(schedule, known)(x[y == known], t)
            scale += float((pair[0].eps - pair[1].eps).square().sum()) / len(x)
        x = x if label is None else x[y == label]
        with torch.no_grad():
            guess = network_denoiser(network, schedule, label)(x, t).eps
        error += float((guess - MIXTURE.denoiser(schedule, label)(x, t).eps).square().sum(1).mean())
    return error / scale


def test_training_approaches_the_exact_denoiser_with_and_without_the_label(trained):
    """Less than a second of training: the errors are small beside the difference that guidance lives on."""
    for label in (0, 1, None):
        assert excess(trained, label) < 0.1 and 10 * excess(trained, label) < excess(untrained(), label)


def test_the_loss_comes_near_its_floor(trained):
    """On the same draws, the loss of the network minus that of the exact v is at least 0 and small."""
    schedule, x0 = cosine(), MIXTURE.sample(20_000, random(3))
    total = {}
    for name, network in (("trained", trained), ("fresh", untrained())):
        with torch.no_grad():
            total[name] = float(v_loss(network, schedule, *x0, 0.3, random(4), 2))
    floor = 0.0  # E|v - E[v | x_t]|^2 / 2 at the same share of hidden labels, by the exact denoisers
    for t in (torch.arange(40, dtype=F64) + 0.5) / 40:
        x, y = MIXTURE.sample(4000, random(5))
        eps = torch.randn(x.shape, generator=random(6), dtype=F64)
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        for label, share in ((0, 0.7), (1, 0.7), (None, 0.3)):
            mine = y == label if label is not None else torch.ones_like(y, dtype=torch.bool)
            x0_hat, eps_hat = MIXTURE.denoiser(schedule, label)(alpha * x[mine] + sigma * eps[mine], t)
            v, v_hat = alpha * eps[mine] - sigma * x[mine], alpha * eps_hat - sigma * x0_hat
            floor += share * float(mine.double().mean() * (v - v_hat).square().mean()) / 40
    assert -0.01 < total["trained"] - floor < 0.03 < 0.15 < total["fresh"] - floor


def test_the_null_label_is_learned_only_if_labels_are_dropped():
    never = train(MIXTURE, cosine(), label_dropout=0.0, **QUICK)
    always = train(MIXTURE, cosine(), label_dropout=1.0, **QUICK)
    assert 10 * excess(never, 1) < excess(always, 1) and excess(never, 1) < 0.1
    assert 10 * excess(always, None) < excess(never, None) and excess(always, None) < 0.1


def adam_by_hand(steps: int, batch: int, width: int, dropout: float) -> dict[str, np.ndarray]:
    """The weights of a run, by Adam's formulas in numpy: beta_1 = 0.9, beta_2 = 0.99, the rate 1e-2 along a cosine."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        network = PlaneNetwork(2, width)
    generator, weights = random(3), {name: p.detach().double().numpy() for name, p in network.named_parameters()}
    first, second = ({name: np.zeros_like(w) for name, w in weights.items()} for _ in range(2))
    for k in range(1, steps + 1):
        network.load_state_dict({name: torch.from_numpy(w) for name, w in weights.items()})
        x0, label = MIXTURE.sample(batch, generator)
        loss = v_loss(network, cosine(), x0.float(), label, dropout, generator, 2)
        gradients = torch.autograd.grad(loss, list(network.parameters()))
        rate = 1e-2 * (1 + math.cos(math.pi * (k - 1) / steps)) / 2
        for name, g in zip(weights, (g.double().numpy() for g in gradients), strict=True):
            first[name] = 0.9 * first[name] + 0.1 * g
            second[name] = 0.99 * second[name] + 0.01 * g**2
            m, v = first[name] / (1 - 0.9**k), second[name] / (1 - 0.99**k)
            weights[name] = weights[name] - rate * m / (np.sqrt(v) + 1e-8)
    return weights


def test_the_first_steps_of_training_are_those_of_adam_by_hand():
    """Six steps in half of which one constant changed moves the weights by a tenth of a step; rounding does not."""
    few = {"steps": 6, "batch": 64, "width": 8}
    trained, expected = train(MIXTURE, cosine(), 0.5, seed=3, **few), adam_by_hand(**few, dropout=0.5)
    apart = [np.abs(p.numpy() - expected[name]).ravel() for name, p in trained.named_parameters()]
    assert np.quantile(np.concatenate(apart), 0.95) < 2e-5  # where a gradient is nearly 0, its rounding decides


def test_by_default_a_fifth_of_the_labels_is_hidden_in_3000_steps_of_1024_points():
    """The chapters name other numbers where they take others; these are what a reader gets who names none."""
    usual = {name: parameter.default for name, parameter in inspect.signature(train).parameters.items()}
    assert (usual["label_dropout"], usual["steps"], usual["batch"], usual["width"]) == (0.2, 3000, 1024, 64)
    assert (usual["learning_rate"], usual["seed"]) == (1e-2, 0)


def test_equal_seeds_train_equal_networks_and_nobody_elses_random_numbers_are_used():
    few = {"steps": 3, "batch": 16, "width": 8}
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one, two, other = (train(MIXTURE, cosine(), seed=seed, **few) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    pairs = list(zip(one.parameters(), two.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in pairs) and not any(torch.equal(a, c) for a, _, c in pairs)


def test_a_trained_network_is_frozen_in_float64_and_a_denoiser_like_any_other(trained):
    assert all(p.dtype == F64 and not p.requires_grad for p in trained.parameters()) and not trained.training
    x, t = torch.randn(5, 2, generator=random(), dtype=F64), torch.tensor(0.4, dtype=F64)
    cond, uncond = network_pair(trained, cosine(), 1)(x, t)
    assert cond.eps.shape == cond.x0.shape == (5, 2) and cond.eps.dtype == F64
    assert float((cond.eps - uncond.eps).abs().max()) > 1e-3


def test_the_network_takes_any_dtype_a_batch_of_one_and_infinite_log_snr():
    network = PlaneNetwork(3, 16, depth=1)
    for dtype in (torch.float32, F64):
        log_snr = torch.tensor([math.inf, 0.0, -math.inf], dtype=dtype)
        v = network(torch.ones(3, 2, dtype=dtype), log_snr, torch.tensor([0, 1, 3]))
        assert v.shape == (3, 2) and bool(v.isfinite().all())
    assert network(torch.ones(1, 2), torch.zeros(1), torch.tensor([2])).shape == (1, 2)
    assert network.label.num_embeddings == 4  # three classes and the null label


def test_points_of_a_batch_do_not_talk_to_each_other(trained):
    x, log_snr, label = torch.randn(6, 2, generator=random(), dtype=F64), torch.zeros(6, dtype=F64), torch.arange(6) % 3
    together = trained(x, log_snr, label)
    apart = torch.cat([trained(x[i : i + 1], log_snr[i : i + 1], label[i : i + 1]) for i in range(6)])
    assert float((together - apart).abs().max()) < 1e-12


@pytest.mark.parametrize("name", ["classes", "width", "depth"])
def test_a_network_without_classes_width_or_depth_is_refused(name):
    sizes = {"classes": 2, "width": 4, "depth": 1} | {name: 0}
    with pytest.raises(ValueError, match=f"^{name} must be at least 1, got 0$"):
        PlaneNetwork(**sizes)


@pytest.mark.parametrize("change", [{"steps": 0}, {"batch": 0}, {"width": 0}, {"label_dropout": 1.5}], ids=str)
def test_training_refuses_what_it_cannot_do(change):
    with pytest.raises(ValueError, match=r"must (be at least 1|lie in \[0, 1\]), got"):
        train(MIXTURE, cosine(), **({"steps": 2, "batch": 4, "width": 4} | change))


def test_training_refuses_a_mixture_outside_the_plane():
    line = GaussianMixture([1.0], torch.zeros(1, 1, dtype=F64), torch.ones(1, 1, 1, dtype=F64))
    with pytest.raises(ValueError, match=r"^mixture must be in the plane \(2 dimensions\), got 1$"):
        train(line, cosine(), steps=1)


# ---- derivatives


def swirl(x):
    """A field with known derivatives: (-x2 x1^2, x1 + x1 x2^3)."""
    a, b = x.unbind(1)
    return torch.stack([-b * a**2, a + a * b**3], dim=1)


@pytest.mark.equation("eq-curl")
def test_curl_of_known_fields():
    x = torch.randn(50, 2, generator=random(), dtype=F64)
    a, b = x.unbind(1)
    for field, true in (
        (swirl, 1 + b**3 + a**2),
        (lambda p: torch.stack([-p[:, 1], p[:, 0]], dim=1), torch.full_like(a, 2.0)),  # a rotation, anticlockwise
        (lambda p: p * (p**2).sum(1, keepdim=True), torch.zeros_like(a)),  # the gradient of |p|^4 / 4
    ):
        assert float((curl(field, x) - true).abs().max()) < 1e-12


@pytest.mark.equation("eq-curl")
def test_the_curl_is_the_circulation_around_a_small_circle_per_area(trained):
    """Stokes: the line integral of a network's field around a circle, over its area, with nothing differentiated."""
    t, radius = torch.tensor(0.4, dtype=F64), 1e-3
    for field in (swirl, lambda p: network_denoiser(trained, cosine(), 1)(p, t).eps):
        for centre in torch.randn(5, 2, generator=random(), dtype=F64):
            angle = 2 * math.pi * torch.arange(32, dtype=F64) / 32
            along = torch.stack([-angle.sin(), angle.cos()], dim=1)
            ring = centre + radius * torch.stack([angle.cos(), angle.sin()], dim=1)
            circulation = (field(ring) * along).sum() * 2 * math.pi * radius / 32
            assert abs(float(circulation / (math.pi * radius**2) - curl(field, centre[None])[0])) < 1e-4


@pytest.mark.equation("eq-curl")
def test_exact_fields_are_gradients_and_a_trained_one_is_not(trained):
    x, t, schedule = torch.randn(200, 2, generator=random(), dtype=F64) * 2, torch.tensor(0.4, dtype=F64), cosine()
    exact, learned = MIXTURE.pair(schedule, 1), network_pair(trained, schedule, 1)
    for pair, low, high in ((exact, 0, 1e-12), (learned, 1e-3, 10)):
        for field in (
            lambda p, pair=pair: pair.cond(p, t).eps,
            lambda p, pair=pair: pair.cond(p, t).eps - pair.uncond(p, t).eps,
        ):
            assert low <= float(curl(field, x).abs().max()) < high


def test_the_jacobian_agrees_with_finite_differences():
    x, step = torch.randn(20, 2, generator=random(), dtype=F64), 1e-5
    sides = [step * direction for direction in torch.eye(2, dtype=F64)]
    expected = torch.stack([(swirl(x + side) - swirl(x - side)) / (2 * step) for side in sides], dim=2)
    assert float((jacobian(swirl, x) - expected).abs().max()) < 1e-8
    with torch.no_grad():  # also inside a sampler
        assert jacobian(swirl, x).shape == (20, 2, 2) and not jacobian(swirl, x).requires_grad


@pytest.mark.parametrize("shape", [(4, 3), (4, 1), (2,)], ids=str)
def test_the_curl_of_points_outside_the_plane_is_refused(shape):
    with pytest.raises(ValueError, match=r"^x must have shape \(N, 2\), got"):
        curl(swirl, torch.zeros(shape, dtype=F64))


def test_the_mixture_of_the_chapters_is_the_one_that_chapter_00_writes_out():
    source = Path(__file__).parents[2] / "notebooks" / "00_start_here.py"
    cells = source.read_text(encoding="utf-8").split("# %%\n")
    (cell,) = (c for c in cells if c.startswith("mixture = GaussianMixture("))
    names = {"torch": torch, "GaussianMixture": GaussianMixture}
    exec(cell.split("\n\n")[0], names)
    for part in ("weights", "means", "variances", "axes"):
        assert torch.equal(getattr(names["mixture"], part), getattr(four_blobs(), part))
    assert names["mixture"].labels == four_blobs().labels


def test_one_label_in_five_is_hidden_unless_told_otherwise():
    quick = {"steps": 3, "batch": 32}
    default, fifth, tenth = (
        train(four_blobs(), cosine(), **quick, **more)
        for more in ({}, {"label_dropout": 0.2}, {"label_dropout": 0.1})
    )
    weights = [torch.cat([p.flatten() for p in network.parameters()]) for network in (default, fifth, tenth)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_a_field_that_is_the_same_everywhere_has_no_slopes():
    x = torch.randn(4, 2).double()
    assert torch.equal(jacobian(lambda x: torch.ones(4, 2).double(), x), torch.zeros(4, 2, 2).double())
    assert torch.equal(curl(lambda x: torch.ones(4, 2).double(), x), torch.zeros(4).double())
    with pytest.raises(ValueError, match="x must have shape"):
        jacobian(lambda x: x, torch.zeros(3))
    with pytest.raises(ValueError, match="field's answer"):
        jacobian(lambda x: x[:, :1], x)
