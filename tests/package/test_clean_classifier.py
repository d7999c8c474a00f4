"""A clean classifier's three stand-ins for the noisy one: shapes, limits, neutral cases, and what is refused."""

import pytest
import torch
from torch import Tensor

from difflesson import guidance
from difflesson.clean_classifier import asked, clean_cov, clean_guess, gaussian_cloud, logistic_cloud, noisy_answer
from difflesson.clean_classifier import step_guess as stepped
from difflesson.denoiser import Prediction
from difflesson.plane import PlaneNetwork
from difflesson.schedule import cosine, vp_linear
from tests.oracles.mixtures import FOUR, THREE, random_mixture, single

F64 = torch.float64
MIXTURE, SCHEDULE = FOUR.mixture(), vp_linear(0.3, 8.0)
DENOISER = MIXTURE.denoiser(SCHEDULE)


def clean(x0: Tensor) -> Tensor:
    return MIXTURE.class_log_prob(x0, 1)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


@pytest.mark.parametrize("mixture", [FOUR.mixture(), THREE.mixture(), random_mixture(3, [0, 1, 1, 2])])
@pytest.mark.parametrize("t", [0.01, 0.4, 1.0])
def test_the_averaged_verdict_is_the_class_probability_of_the_noised_mixture(mixture, t):
    x = normal(6, mixture.dim)
    noisy = mixture.noised(SCHEDULE.alpha(t), SCHEDULE.sigma(t))
    for label in range(mixture.classes):
        answer = noisy_answer(mixture, SCHEDULE, lambda x0, y=label: mixture.class_log_prob(x0, y), x, t, order=24)
        assert float((answer.exp() - noisy.class_log_prob(x, label).exp()).abs().max()) < 2e-3


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("schedule", [cosine(), vp_linear()], ids=["cosine", "vp_linear"])
def test_the_denoisers_derivative_gives_the_covariance_of_the_exact_step_to_the_data(dim, schedule):
    mixture = random_mixture(dim, [0, 1, 0])
    for t in (0.02, 0.5, 0.98):
        x = normal(7, dim)
        cov = clean_cov(mixture.denoiser(schedule), schedule, x, t)
        exact = mixture.reverse(x, schedule, t, 0.0)
        spread = torch.einsum(
            "kn,kne,knf->nef", exact.log_weights.exp(), exact.means - exact.mean, exact.means - exact.mean
        )
        within = torch.einsum("kn,ked,kd,kfd->nef", exact.log_weights.exp(), exact.axes, exact.variances, exact.axes)
        assert float((cov - spread - within).abs().max()) < 1e-7 and torch.equal(cov, cov.mT)


def test_a_learned_denoisers_covariance_is_symmetrised():
    turn = torch.tensor([[0.6, 0.5], [-0.3, 0.7]], dtype=F64)
    learned = lambda x, t: Prediction(x @ turn.T, x)  # noqa: E731
    cov = clean_cov(learned, SCHEDULE, normal(3, 2), 0.4)
    factor = float(SCHEDULE.sigma(0.4) ** 2 / SCHEDULE.alpha(0.4))
    assert float((cov - factor * (turn + turn.T) / 2).abs().max()) < 1e-12


def test_the_covariance_can_be_differentiated_where_x_is_and_is_a_constant_elsewhere():
    x = normal(4, 2).requires_grad_()
    assert clean_cov(DENOISER, SCHEDULE, x, 0.5).requires_grad
    with torch.no_grad():
        assert not clean_cov(DENOISER, SCHEDULE, x, 0.5).requires_grad
    assert not clean_cov(DENOISER, SCHEDULE, x.detach(), 0.5).requires_grad


def test_a_step_all_the_way_to_the_data_is_the_guess_and_a_short_one_is_the_point_itself():
    x, t = normal(9, 2), torch.tensor(0.5, dtype=F64)
    guess = clean_guess(DENOISER, clean)(x, t)
    for length in (0.5, 0.8, 3.0):
        assert float((stepped(DENOISER, clean, SCHEDULE, length)(x, t) - guess).abs().max()) < 1e-9
    assert float((stepped(DENOISER, clean, SCHEDULE, 1e-9)(x, t) - clean(x)).abs().max()) < 1e-6


def test_near_the_data_all_stand_ins_are_the_clean_classifier():
    x, t = MIXTURE.sample(20, torch.Generator().manual_seed(3))[0], torch.tensor(1e-7, dtype=F64)
    for stand_in in (clean_guess(DENOISER, clean), stepped(DENOISER, clean, SCHEDULE, 0.1),
                     gaussian_cloud(DENOISER, clean, SCHEDULE)):  # fmt: skip
        assert float((stand_in(x, t).exp() - clean(x).exp()).abs().max()) < 1e-4


def test_a_classifier_that_says_the_same_everywhere_guides_nowhere():
    x, t = normal(5, 2), torch.tensor(0.6, dtype=F64)
    constant = lambda x0: 0 * x0.sum(1) - 0.7  # noqa: E731
    for stand_in in (clean_guess(DENOISER, constant), stepped(DENOISER, constant, SCHEDULE, 0.1),
                     gaussian_cloud(DENOISER, constant, SCHEDULE)):  # fmt: skip
        assert float((stand_in(x, t) + 0.7).abs().max()) < 1e-12
        assert float(guidance.gradient(stand_in)(x, t).abs().max()) < 1e-12


def test_with_no_variance_the_logistic_average_is_the_logistic_function_and_it_is_odd_about_one_half():
    logit = torch.tensor([-30.0, -2.0, 0.0, 1.0, 20.0], dtype=F64)
    assert torch.allclose(logistic_cloud(logit, torch.zeros(5, dtype=F64)).exp(), torch.sigmoid(logit))
    wide = torch.full((5,), 7.0, dtype=F64)
    both = logistic_cloud(logit, wide).exp() + logistic_cloud(-logit, wide).exp()
    assert float((both - 1).abs().max()) < 1e-12


def test_a_cloud_of_one_point_and_float32_are_taken():
    narrow = single([0.5, -1.0], [[1e-12, 0.0], [0.0, 1e-12]])
    x, t = normal(1, 2), torch.tensor(0.3, dtype=F64)
    verdict = gaussian_cloud(narrow.denoiser(SCHEDULE), clean, SCHEDULE)(x, t)
    assert abs(float(verdict - clean(narrow.means)[0])) < 1e-4
    small = MIXTURE.to(torch.float32)
    answer = gaussian_cloud(small.denoiser(SCHEDULE), lambda x0: small.class_log_prob(x0, 1), SCHEDULE)(x.float(), t)
    assert answer.dtype == torch.float32
    assert abs(float(answer) - float(gaussian_cloud(DENOISER, clean, SCHEDULE)(x, t))) < 1e-3


@pytest.mark.parametrize("length", [0.0, -0.1, float("nan")])
def test_a_step_without_length_is_refused(length):
    with pytest.raises(ValueError, match="length must be above 0"):
        stepped(DENOISER, clean, SCHEDULE, length)


def test_a_classifier_that_answers_with_another_shape_is_refused():
    with pytest.raises(ValueError, match="log_prob.s answer must have shape"):
        asked(lambda x0: x0, normal(3, 2))
    with pytest.raises(ValueError, match="log_prob.s answer must have shape"):
        clean_guess(DENOISER, lambda x0: x0.sum())(normal(3, 2), torch.tensor(0.5))


def test_a_covariance_that_is_none_is_refused():
    backwards = lambda x, t: Prediction(-x, x)  # noqa: E731
    with pytest.raises(ValueError, match="covariance must be positive definite, at 4 points"):
        gaussian_cloud(backwards, clean, SCHEDULE)(normal(4, 2), torch.tensor(0.5))
    with pytest.raises(ValueError, match="variance must be at least 0"):
        logistic_cloud(torch.zeros(2), torch.tensor([1.0, -1e-3]))


def test_a_network_is_differentiated_as_well():
    torch.manual_seed(0)
    from difflesson.denoiser import network_denoiser

    learned = network_denoiser(PlaneNetwork(2).double().requires_grad_(False), SCHEDULE)
    x, t = normal(4, 2), torch.tensor(0.2, dtype=F64)
    slopes = guidance.gradient(clean_guess(learned, clean))(x, t)
    step = 1e-6
    for axis in torch.eye(2, dtype=F64):
        ahead, behind = (clean(learned(x + sign * step * axis, t).x0) for sign in (1, -1))
        assert float(((ahead - behind) / (2 * step) - slopes @ axis).abs().max()) < 1e-3


def test_the_covariance_of_clean_points_is_one_of_vectors():
    with pytest.raises(ValueError, match="x must have shape"):
        clean_cov(lambda x, t: Prediction(x, x), SCHEDULE, torch.zeros(3, 1, 4, 4, dtype=F64), 0.5)
