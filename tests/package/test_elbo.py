"""The bound, the linear model, two gradients, the small VAE: against quadrature, PyTorch's distributions, autograd."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from difflesson import elbo, plane
from difflesson.schedule import cosine
from difflesson.steps import FullGaussian
from tests.oracles.mixtures import random_mixture

F64 = torch.float64


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def gaussian(count: int, dim: int, seed: int) -> FullGaussian:
    root = draw(count, dim, dim, seed=seed) / 2
    return FullGaussian(draw(count, dim, seed=seed + 1), root @ root.mT + 0.2 * torch.eye(dim, dtype=F64))


def model(d: int, k: int, s: float, seed: int = 4) -> elbo.LinearGaussian:
    return elbo.LinearGaussian(draw(d, k, seed=seed), draw(d, seed=seed + 1), s)


@pytest.mark.equation("eq-gaussian-kl")
@pytest.mark.parametrize(("count", "dim"), [(1, 1), (4, 2), (3, 5)])
def test_the_divergence_of_gaussians_is_pytorchs_and_zero_from_itself(count, dim):
    q, p = gaussian(count, dim, 1), gaussian(count, dim, 7)
    law = torch.distributions.MultivariateNormal
    expected = torch.distributions.kl_divergence(law(q.mean, q.cov), law(p.mean, p.cov))
    assert float((elbo.gaussian_kl(q, p) - expected).abs().max()) < 1e-10
    assert float(elbo.gaussian_kl(q, q).abs().max()) < 1e-12
    to_prior = torch.distributions.kl_divergence(law(q.mean, q.cov), law(0 * q.mean, torch.eye(dim, dtype=F64)))
    assert float((elbo.gaussian_kl(q, elbo.standard(q)) - to_prior).abs().max()) < 1e-10


def test_gaussians_of_two_dimensions_or_without_width_are_refused():
    with pytest.raises(ValueError, match="one dimension, got 2 and 3"):
        elbo.gaussian_kl(gaussian(1, 2, 0), gaussian(1, 3, 0))
    with pytest.raises(torch.linalg.LinAlgError):
        elbo.gaussian_kl(FullGaussian(draw(1, 2), torch.zeros(1, 2, 2, dtype=F64)), gaussian(1, 2, 0))


def grid(dim: int, ends: float = 8.0, count: int = 321) -> tuple[Tensor, float]:
    axis = torch.linspace(-ends, ends, count, dtype=F64)
    return torch.cartesian_prod(*[axis] * dim).view(-1, dim), float(axis[1] - axis[0]) ** dim


@pytest.mark.equation("eq-elbo-split", "eq-elbo-terms", "eq-linear-posterior")
@pytest.mark.parametrize(("d", "k", "s"), [(1, 1, 0.5), (3, 2, 0.8), (2, 1, 1.5)])
def test_likelihood_posterior_and_bound_of_the_linear_model_are_sums_over_all_causes(d, k, s):
    one, x = model(d, k, s), 1.5 * draw(3, d, seed=9)
    z, cell = grid(k)
    prior = torch.distributions.MultivariateNormal(torch.zeros(k, dtype=F64), torch.eye(k, dtype=F64))
    noise = torch.distributions.Normal(z @ one.W.T + one.b, s).log_prob(x[:, None]).sum(2)  # (3, M)
    joint = prior.log_prob(z) + noise
    log_p = joint.logsumexp(1) + math.log(cell)
    assert float((one.log_prob(x) - log_p).abs().max()) < 1e-9
    assert float((one.log_joint(x, z[:, None].expand(-1, 3, -1)).T - joint).abs().max()) < 1e-9
    right = one.posterior(x)
    assert float((right.log_prob(z[:, None]).T - (joint - log_p[:, None])).abs().max()) < 1e-7
    guess = gaussian(3, k, 11)
    log_q = torch.distributions.MultivariateNormal(guess.mean, guess.cov).log_prob(z[:, None]).T
    bound = (log_q.exp() * (joint - log_q)).sum(1) * cell
    assert float((one.elbo(x, guess) - bound).abs().max()) < 1e-5
    assert float((one.reconstruction(x, guess) - (log_q.exp() * noise).sum(1) * cell).abs().max()) < 1e-5
    assert float((one.elbo(x, right) - one.log_prob(x)).abs().max()) < 1e-10
    gap = one.log_prob(x) - one.elbo(x, guess)
    assert float((gap - elbo.gaussian_kl(guess, right)).abs().max()) < 1e-9


@pytest.mark.parametrize(
    "bad", [{"s": 0.0}, {"s": -1.0}, {"s": math.inf}, {"W": torch.zeros(3, 2)}, {"b": torch.zeros(2, 1)}]
)
def test_what_is_no_linear_model_is_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))[0]):
        elbo.LinearGaussian(**{"W": torch.zeros(2, 2), "b": torch.zeros(2), "s": 1.0} | bad)


@pytest.mark.equation("eq-collapse")
def test_no_other_matrix_is_likelier_and_a_direction_below_the_noise_gets_no_latent():
    root = draw(4, 4, seed=3)
    cov, s = root @ root.T / 2 + 0.1 * torch.eye(4), 0.9
    values = torch.linalg.eigvalsh(cov).flip(0)

    def log_likelihood(W):
        total = W @ W.T + s**2 * torch.eye(4, dtype=F64)
        return -(torch.logdet(total) + torch.linalg.inv(total).mul(cov).sum()) / 2

    for latent in (1, 2, 4):
        W = elbo.likeliest_linear(cov, s, latent)
        assert W.shape == (4, latent)
        assert float((W.square().sum(0) - (values[:latent] - s**2).clamp_min(0)).abs().max()) < 1e-10
        for seed in range(40):
            assert float(log_likelihood(W + 0.05 * draw(4, latent, seed=seed))) <= float(log_likelihood(W)) + 1e-12
    few, all_of_them = (log_likelihood(elbo.likeliest_linear(cov, s, latent)) for latent in (2, 4))
    assert few <= all_of_them + 1e-12
    assert bool((elbo.likeliest_linear(cov, 100.0, 4) == 0).all())
    with pytest.raises(ValueError, match="latent must be at most the dimension 4 and at least 0, got 5"):
        elbo.likeliest_linear(cov, s, 5)


@pytest.mark.equation("eq-elbo-split")
def test_the_densities_of_cause_and_guess_are_pytorchs():
    z, mean, log_std, x = draw(5, 3, 2), draw(3, 2, seed=1), draw(3, 2, seed=2), draw(3, 4, seed=3)
    place = draw(5, 3, 4, seed=5)
    normal = torch.distributions.Normal
    assert (
        float((elbo.log_guess(z, mean, log_std) - normal(mean, log_std.exp()).log_prob(z).sum(2)).abs().max()) < 1e-12
    )
    ratio = elbo.log_ratio(joint, z, mean, log_std) - joint(z)
    assert float((ratio + normal(mean, log_std.exp()).log_prob(z).sum(2)).abs().max()) < 1e-12
    expected = normal(0.0, 1.0).log_prob(z).sum(2) + normal(place, 0.4).log_prob(x).sum(2)
    assert float((elbo.log_joint(x, z, place, 0.4) - expected).abs().max()) < 1e-10


def joint(z: Tensor) -> Tensor:
    """No Gaussian, and the two coordinates are tied."""
    return -(z**4).sum(-1) / 8 + 0.7 * z[..., 0] * z[..., 1] - z[..., 0]


def whole(z: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    return elbo.log_ratio(joint, z, mean, log_std)


def nodes(order: int) -> tuple[Tensor, Tensor]:
    points, weights = (torch.from_numpy(part) for part in np.polynomial.hermite_e.hermegauss(order))
    return torch.cartesian_prod(points, points), torch.cartesian_prod(*[weights / weights.sum()] * 2).prod(1)


@pytest.mark.equation("eq-two-gradients")
def test_both_gradients_average_to_the_slope_of_the_bound_whatever_the_baseline():
    """By quadrature: every monomial has a closed moment, so the nodes are exact; the slope by central differences."""
    mean, log_std = torch.tensor([[0.3, -0.5]], dtype=F64), torch.tensor([[-0.4, 0.2]], dtype=F64)
    points, weights = nodes(12)
    eps = points[:, None]  # (M, 1, 2)

    def bound(parameters):
        m, log = parameters[None, :2], parameters[None, 2:]
        return float(weights @ whole(m + log.exp() * eps, m, log)[:, 0])

    start, h = torch.cat([mean, log_std], 1)[0], 1e-5
    slope = torch.tensor(
        [(bound(start + h * e) - bound(start - h * e)) / (2 * h) for e in torch.eye(4, dtype=F64)], dtype=F64
    )
    found = {
        "pathwise": elbo.pathwise(whole, mean, log_std, eps),
        "held": elbo.pathwise(lambda z, *q: elbo.held(joint, z, *q), mean, log_std, eps),
        "score": elbo.score_function(whole, mean, log_std, eps),
        "baseline": elbo.score_function(whole, mean, log_std, eps, 3.0),
        "of each point": elbo.score_function(whole, mean, log_std, eps, torch.tensor([-2.0], dtype=F64)),
    }
    for name, each in found.items():
        assert each.shape == (144, 1, 4), name
        assert float(((weights[:, None] * each[:, 0]).sum(0) - slope).abs().max()) < 1e-8, name


def test_at_the_posterior_the_held_path_and_the_score_function_with_the_right_baseline_are_silent():
    one, x = model(3, 1, 0.6), draw(2, 3, seed=8)
    right = one.posterior(x)
    mean, log_std = right.mean, right.cov[:, 0].sqrt().log()
    eps = draw(50, 2, 1, seed=9)

    def of(z):
        return one.log_joint(x, z)

    held = elbo.pathwise(lambda z, *q: elbo.held(of, z, *q), mean, log_std, eps)
    assert float(held.abs().max()) < 1e-9
    score = elbo.score_function(lambda z, *q: elbo.log_ratio(of, z, *q), mean, log_std, eps, one.log_prob(x))
    assert float(score.abs().max()) < 1e-9
    moving = elbo.pathwise(lambda z, *q: elbo.log_ratio(of, z, *q), mean, log_std, eps)
    assert float(moving.std(0).min()) > 0.5


@pytest.mark.parametrize("estimate", [elbo.pathwise, elbo.score_function])
def test_shapes_that_torch_would_stretch_are_refused(estimate):
    mean, eps = draw(3, 2), draw(7, 3, 2)
    with pytest.raises(ValueError, match="log_std"):
        estimate(whole, mean, draw(1, 2), eps)
    for wrong in (eps[:, :1], eps[:, :, :1], eps[0]):
        with pytest.raises(ValueError, match="eps"):
            estimate(whole, mean, draw(3, 2, seed=1), wrong)


def test_training_is_seeded_keeps_what_it_is_asked_to_and_leaves_the_global_generator():
    mixture, before = plane.four_blobs(), torch.get_rng_state()
    one, kept = elbo.train_vae(mixture, steps=12, batch=32, seed=3, keep=(0, 5), latent=2, width=8, noise=0.5)
    again, _ = elbo.train_vae(mixture, steps=12, batch=32, seed=3, latent=2, width=8, noise=0.5)
    assert torch.equal(torch.get_rng_state(), before)
    assert sorted(kept) == [0, 5] and abs(float(kept[0]["log_s"]) - math.log(0.5)) < 1e-6
    for (name, ours), theirs in zip(one.state_dict().items(), again.state_dict().values(), strict=True):
        assert ours.dtype == F64 and torch.equal(ours, theirs), name
    assert not any(part.requires_grad for part in one.parameters())
    assert float((kept[0]["encoder.0.weight"] - one.encoder[0].weight).abs().max()) > 1e-3
    other, _ = elbo.train_vae(mixture, steps=12, batch=32, seed=4, latent=2, width=8)
    assert not torch.equal(other.log_s, one.log_s)
    x = one.sample(40, torch.Generator().manual_seed(0))
    assert x.shape == (40, 2) and torch.equal(x, one.sample(40, torch.Generator().manual_seed(0)))


def test_the_bound_of_a_vae_lies_below_its_likelihood_which_is_a_density():
    vae, _ = elbo.train_vae(plane.four_blobs(), steps=150, seed=2, width=16)
    z = torch.linspace(-8, 8, 321, dtype=F64)[:, None]
    places, cell = grid(2, 9.0, 37)
    table = elbo.log_joint(places[:, None], z[None], vae.decoder(z)[None], vae.log_s.exp())
    log_p = table.logsumexp(1) + math.log(0.05)
    assert abs(float(log_p.exp().sum()) * cell - 1) < 3e-3
    mean, log_std = vae.guess(places)
    q = elbo.log_guess(z[None], mean[:, None], log_std[:, None])
    bound = (q.exp() * (table - q)).sum(1) * 0.05
    inside = (mean[:, 0].abs() < 4) & (log_std[:, 0] > math.log(0.2))
    assert bool(inside.any()) and bool((bound <= log_p + 1e-6)[inside].all())
    assert float((vae.log_joint(places, z[:, None].expand(-1, len(places), -1)).T - table).abs().max()) < 1e-9


@pytest.mark.parametrize(
    "bad", [{"steps": 0}, {"batch": 0}, {"latent": 0}, {"width": 0}, {"noise": 0.0}, {"noise": math.inf}]
)
def test_what_cannot_be_trained_is_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        elbo.train_vae(plane.four_blobs(), **{"steps": 1} | bad)
    with pytest.raises(ValueError, match="plane"):
        elbo.train_vae(random_mixture(3, [0, 1]), steps=1)


def test_training_a_vae_does_not_depend_on_the_default_dtype():
    def end():
        return elbo.train_vae(plane.four_blobs(), steps=2, batch=8)[0].log_s

    want = end()
    torch.set_default_dtype(F64)
    try:
        assert end().isfinite() and end().dtype == want.dtype == F64
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    "train", [lambda m: elbo.train_vae(m, 1, 8), lambda m: plane.train(m, cosine(), 0.2, 1, 8)]
)
def test_training_seeds_no_accelerator(train, monkeypatch):
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("an accelerator was seeded"))
    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: False)
    state = torch.get_rng_state()
    train(plane.four_blobs())
    assert torch.equal(state, torch.get_rng_state())


def test_a_negative_number_of_latents_and_a_missing_generator_are_refused():
    with pytest.raises(ValueError, match="latent must be at most the dimension 3 and at least 0, got -1"):
        elbo.likeliest_linear(torch.eye(3, dtype=F64), 0.1, -1)
    with pytest.raises(ValueError, match="generator must be"):
        elbo.VAE().sample(2, None)


def test_distributions_are_compared_by_identity():
    mean = torch.zeros(2, 2, dtype=F64)
    one, two = (FullGaussian(mean, torch.eye(2, dtype=F64).expand(2, 2, 2)) for _ in range(2))
    assert one != two and [two, one].index(one) == 1  # by identity
