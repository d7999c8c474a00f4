"""Checks of other people's schedulers, tried on a scheduler of our own that is right, and on wrong ones."""

import math
from types import SimpleNamespace

import pytest
import torch

from difflesson import pipelines, plane
from difflesson.mixture import GaussianMixture

F64 = torch.float64
TABLE = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=F64), 0)


class OwnDdim:
    """DDIM in a library's five names; `short` stops so many timesteps too early."""

    init_noise_sigma = 1.0

    def __init__(self, short: int = 0, prediction: str = "epsilon", **config):
        self.short, self.alphas_cumprod = short, TABLE
        self.config = SimpleNamespace(prediction_type=prediction, **config)

    def set_timesteps(self, steps: int):
        self.timesteps = torch.arange(steps).flip(0) * (1000 // steps) + 1000 // steps - 1
        self.after = dict(zip(self.timesteps.tolist(), [*self.timesteps.tolist()[1:], -1], strict=True))

    def scale_model_input(self, x, k):
        return x

    def step(self, answer, k, x):
        kept, later = TABLE[k], self.after[int(k)]
        later = TABLE[later + self.short] if later >= 0 else torch.ones((), dtype=F64)
        if self.config.prediction_type == "sample":
            answer = (x - kept.sqrt() * answer) / (1 - kept).sqrt()
        clean = (x - (1 - kept).sqrt() * answer) / kept.sqrt()
        return SimpleNamespace(prev_sample=later.sqrt() * clean + (1 - later).sqrt() * answer)


class Noisy(OwnDdim):
    """Shakes the last steps' points a little: nobody sees it in a cloud."""

    def step(self, answer, k, x):
        x = super().step(answer, k, x).prev_sample
        return SimpleNamespace(prev_sample=x + 1e-3 * torch.randn(x.shape, dtype=F64))


class Astray(OwnDdim):
    """Ends nowhere."""

    def step(self, answer, k, x):
        return SimpleNamespace(prev_sample=x * math.nan)


class WithoutSignal(OwnDdim):
    """Its table ends at alpha = 0."""

    def __init__(self, prediction: str):
        super().__init__(0, prediction)
        self.alphas_cumprod = torch.cat([TABLE[:-1], torch.zeros(1, dtype=F64)])


class OwnFlow:
    """Euler's step of flow matching: no table, nothing is scaled, timesteps are no integers."""

    def __init__(self, shift: float = 1.0, shorter: float = 1.0, **config):
        self.shift, self.shorter = shift, shorter
        self.config = SimpleNamespace(num_train_timesteps=800, **config)

    def scale_noise(self, sample, timestep, noise):
        """What tells these schedulers from the others."""

    def set_timesteps(self, steps: int):
        even = torch.linspace(1, 0, steps + 1, dtype=F64)
        times = self.shift * even / (1 + (self.shift - 1) * even)
        self.timesteps, self.after = 800 * times[:-1], dict(zip((800 * times[:-1]).tolist(), times[1:], strict=True))

    def step(self, answer, k, x):
        return SimpleNamespace(prev_sample=x + self.shorter * (self.after[float(k)] - k / 800) * answer)


@pytest.mark.parametrize("prediction", ["epsilon", "sample"])
def test_a_scheduler_that_is_right_halves_its_walk_and_one_that_stops_short_does_not(prediction):
    right, short = (pipelines.check_scheduler(OwnDdim(n, prediction), (25, 50, 100), count=40) for n in (0, 3))
    assert all(b.walk < 0.55 * a.walk for a, b in zip(right[:-1], right[1:], strict=True))
    assert short[2].walk > 0.8 * short[1].walk and short[2].walk > 3 * right[2].walk
    assert right[0].start == pytest.approx(right[2].start) and abs(right[2].whole - right[2].walk) <= right[2].start


def test_a_mixture_of_ones_own_and_a_network_of_ones_own():
    one = GaussianMixture([1.0], torch.tensor([[2.0]], dtype=F64), [[[0.25]]])
    (row,) = pipelines.check_scheduler(OwnDdim(), (50,), one, count=20)
    (nothing,) = pipelines.check_scheduler(OwnDdim(), (50,), one, count=20, network=lambda x, k: torch.zeros_like(x))
    assert row.walk < 0.1 and nothing.walk > 1
    kept = float(TABLE[999])  # a Gaussian that starts from N(0, 1): both errors in closed form
    z = torch.special.ndtri((torch.arange(20, dtype=F64) + 0.5) / 20)
    own = 2 + 0.5 * (z - math.sqrt(kept) * 2) / math.sqrt(kept * 0.25 + 1 - kept)
    came = pipelines.drive(OwnDdim(), pipelines.exact_network(one, TABLE), z[:, None], 50)[:, 0]
    assert row.start == pytest.approx(float((own - 2 - 0.5 * z).abs().mean()) / 0.5, rel=1e-6)
    assert row.walk == pytest.approx(float((came - own).abs().mean()) / 0.5, rel=1e-6)
    assert row.whole == pytest.approx(float((came - 2 - 0.5 * z).abs().mean()) / 0.5, rel=1e-6)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_scheduler_of_flow_matching_that_is_right_halves_its_walk_and_one_that_steps_short_does_not(shift):
    right, short = (pipelines.check_scheduler(OwnFlow(shift, shorter), (25, 50, 100), count=40)
                    for shorter in (1.0, 0.9))  # fmt: skip
    assert all(0.45 * a.walk < b.walk < 0.55 * a.walk for a, b in zip(right[:-1], right[1:], strict=True))
    assert short[2].walk > 0.8 * short[1].walk and short[2].walk > 3 * right[2].walk
    assert max(row.start for row in right) < 1e-12 and abs(right[2].whole - right[2].walk) < 1e-12  # from pure noise


@pytest.mark.equation("eq-noise-level")
def test_the_velocity_is_that_of_a_flow_on_straight_lines_by_summing_over_clean_points():
    """E[eps - x0 | x] at x = (1 - t) x0 + t eps, given all data, and given the label of each point."""
    line, x = pipelines.line_of_blobs(), torch.tensor([[-0.9], [0.2], [0.7]], dtype=F64)
    network, labels = pipelines.exact_flow(line, 500), torch.tensor([0, 2, 1])
    axis = torch.linspace(-6, 8, 20_001, dtype=F64)[:, None]
    for t in (0.15, 0.6, 0.95):
        noise = -(x - (1 - t) * axis.T).square() / 2 / t**2
        for told in (None, labels):
            prior = torch.stack([(line if y == 2 else line.given(y)).log_prob(axis)
                                 for y in ([2] * 3 if told is None else told.tolist())])  # fmt: skip
            clean = (prior + noise).softmax(1) @ axis
            want = (x - (1 - t) * clean) / t - clean
            assert (network(x, 500 * t, told) - want).abs().max() < 1e-9


def test_the_labels_of_a_batch_and_none():
    mixture, x = plane.four_blobs(), torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    network = pipelines.exact_network(mixture, TABLE)
    labels = torch.tensor([0, 2, 1, 2])
    found, untold = network(x, 700, labels), network(x, 700)
    assert torch.equal(found[[1, 3]], untold[[1, 3]])
    alpha, sigma = TABLE[700].sqrt(), (1 - TABLE[700]).sqrt()
    for i, label in ((0, 0), (2, 1)):
        score = mixture.given(label).noised(alpha, sigma).score(x[i : i + 1])
        assert (found[i] + sigma * score[0]).abs().max() < 1e-12
    guided = pipelines.guided_network(network, 1, 3.0, none=2)(x, 700)
    cond = network(x, 700, torch.ones(4, dtype=torch.long))
    assert (guided - (3 * cond - 2 * untold)).abs().max() < 1e-12


def test_between_two_timesteps_noise_over_signal_is_interpolated():
    network = pipelines.exact_network(plane.four_blobs(), TABLE)
    sizes = [math.sqrt((1 - TABLE[k]) / TABLE[k]) for k in (300, 301)]
    alpha, sigma = network.level(300.25)
    assert float(sigma / alpha) == pytest.approx(0.75 * sizes[0] + 0.25 * sizes[1])
    assert network.level(300)[0] == TABLE[300].sqrt()
    assert pipelines.exact_network(plane.four_blobs(), torch.tensor([0.9, 0.0])).level(1) == (0.0, 1.0)


def test_answers_keep_the_dtype_of_what_was_asked():
    network = pipelines.exact_network(plane.four_blobs(), TABLE, "v_prediction")
    assert network(torch.zeros(2, 2), 3).dtype == torch.float32


def test_quantile_is_the_inverse_of_chance_into_the_tails():
    line = pipelines.line_of_blobs()
    chances = torch.tensor([1e-12, 0.02, 0.5, 0.97, 1 - 1e-9], dtype=F64)
    assert (pipelines.chance(line, pipelines.quantile(line, chances)) - chances).abs().max() < 1e-13
    far = pipelines.flowed(line, torch.tensor([[-1e4], [1e4]], dtype=F64), 0.5, 0.8)
    assert far.isfinite().all() and far[0] < far[1]


def test_the_deviation_is_that_of_the_quantiles():
    line = pipelines.line_of_blobs()
    x = pipelines.quantile(line, (torch.arange(200_000, dtype=F64) + 0.5) / 200_000)
    assert float(pipelines.deviation(line)) == pytest.approx(float(x.std()), rel=1e-4)


def test_pictures_of_one_pixel_and_back():
    mixture, x = plane.four_blobs(), torch.randn(3, 2, generator=torch.Generator().manual_seed(1), dtype=F64)
    network, vae = pipelines.exact_network(mixture, TABLE), pipelines.no_autoencoder(8.0)
    labels = torch.tensor([0, 1000, 1])
    answer = pipelines.exact_transformer(network)(x[:, :, None, None], torch.full((3,), 40), labels).sample
    assert torch.equal(answer[:, :, 0, 0], network(x, 40, torch.tensor([0, 2, 1])))
    picture = vae.decode(x[:, :, None, None]).sample / 2 + 0.5
    assert (vae.points(picture) - x).abs().max() < 1e-12


def test_what_is_refused_at_alpha_zero_is_asked_for_the_clean_point():
    (row,) = pipelines.check_scheduler(WithoutSignal("sample"), (50,), count=9)
    assert row.start < 1e-9


@pytest.mark.parametrize(("call", "message"), [
    (lambda line: pipelines.exact_network(line, TABLE, "eps"), "^prediction must be epsilon, sample or v_pred"),
    (lambda line: pipelines.exact_network(line, TABLE).level(1000), "^timestep must be between 0 and 999, got 1000.0"),
    (lambda line: pipelines.chance(plane.four_blobs(), torch.zeros(1, 2)), "^mixture must be on a line, got dim"),
    (lambda line: pipelines.quantile(line, torch.tensor([0.5, 1.0])), r"^chances must be inside \(0, 1\), got 0.5"),
    (lambda line: pipelines.no_autoencoder(0.0), "^reach must be positive, got 0.0"),
    (lambda line: pipelines.check_scheduler(OwnDdim(), (2,), plane.four_blobs()), "^mixture must be on a line"),
    (lambda line: pipelines.check_scheduler(OwnDdim(), (2,), count=0), "^count must be at least 1, got 0"),
    (lambda line: pipelines.check_scheduler(line, (2,)), r"^scheduler must have set_timesteps, .* lacks \['set_"),
    (lambda line: pipelines.deviation(plane.four_blobs()), "^mixture must be on a line, got dimension 2"),
    (lambda line: pipelines.exact_flow(line, 900).level(901), "^timestep must be between 0 and 900, got 901.0"),
    (lambda line: pipelines.check_scheduler(Noisy(), (5, 10), count=9), r"^scheduler must be without noise \(eta = 0"),
    (lambda line: pipelines.check_scheduler(Noisy(), (10, 5), count=9), r"^scheduler must be without noise \(eta = 0"),
    (lambda line: pipelines.check_scheduler(Astray(), (5,), count=9), "^scheduler must end at finite .* in 5 steps"),
    (lambda line: pipelines.check_scheduler(WithoutSignal("epsilon"), (5,), count=9),
     "^scheduler must not have prediction_type='epsilon' where it starts at alpha = 0: .*'v_prediction'"),
    (lambda line: pipelines.check_scheduler(OwnDdim(thresholding=True), (5,)), "^scheduler must have thresholding=F"),
    (lambda line: pipelines.check_scheduler(OwnFlow(invert_sigmas=True), (5,)), "^scheduler must have invert_sigmas=F"),
])  # fmt: skip
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(pipelines.line_of_blobs())


def test_a_label_beyond_none_is_refused_and_not_taken_for_none():
    network = pipelines.exact_network(pipelines.line_of_blobs(), torch.linspace(0.99, 0.01, 100))
    guided = pipelines.guided_network(network, label=7, gamma=5.0, none=2)
    with pytest.raises(ValueError, match=r"label must lie in 0\.\.2, got \[2, 7\]"):
        guided(torch.zeros(3, 1).double(), 50)
