"""Bad input to the core gets a ValueError that names the argument, from every public function."""

import math

import pytest
import torch
from torch import nn

from difflesson import kernels
from difflesson.denoiser import check_labels, expand_label, network_denoiser, network_pair
from difflesson.guidance import (
    classifier_free,
    classifier_guided,
    classifier_log_prob,
    gradient,
    scale_at,
    sharpened,
    tilt,
)
from difflesson.mixture import GaussianMixture
from difflesson.samplers import draw, sample, time_grid
from difflesson.schedule import as_time, cosine, from_betas, vp_linear

F32, F64 = torch.float32, torch.float64
NAN, INF = math.nan, math.inf
WEIGHTS, MEANS, COVS = [0.25, 0.75], torch.zeros(2, 3, dtype=F64), torch.eye(3, dtype=F64).repeat(2, 1, 1)
MIXTURE = GaussianMixture(WEIGHTS, MEANS, COVS, [0, 2])  # class 1 has no component
SCHEDULE, TABLE_SCHEDULE = vp_linear(), from_betas(torch.tensor([0.1, 0.2]))
DENOISER = MIXTURE.denoiser(SCHEDULE)
DDPM, DDIM = kernels.ddpm(DENOISER, SCHEDULE), kernels.ddim(DENOISER, SCHEDULE)
X = torch.zeros(5, 3, dtype=F64)
T, S = torch.tensor(0.5, dtype=F64), torch.tensor(0.25, dtype=F64)
GENERATOR = torch.Generator()


class Network(nn.Module):
    """Must not be reached: the checks come before it is called."""

    classes = 3

    def forward(self, x, log_snr, label=None):
        raise AssertionError("the network must not be reached")


class Classifier(nn.Module):
    """Finds every label equally likely."""

    classes = 3

    def forward(self, x, log_snr):
        return x.new_zeros(len(x), 3)


class Deaf(nn.Module):
    """Answers what `answer` makes of x, whatever the noise level and the label."""

    classes = 3

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, x, log_snr, label):
        return self.answer(x)


NETWORK, CLASSIFIER = Network(), Classifier()


def mixture(weights=WEIGHTS, means=MEANS, covs=COVS, labels=None):
    return lambda: GaussianMixture(weights, means, covs, labels)


def cov(*rows):
    """One covariance of three dimensions for each of the two components, the second one given."""
    return torch.stack([COVS[0], torch.tensor(rows, dtype=F64)])


def with_entry(x, value):
    """The tensor with one entry replaced."""
    x = x.clone()
    x.view(-1)[-1] = value
    return x


ZERO_GRAD = torch.zeros_like
TINY_ASYMMETRY = torch.stack([1e8 * COVS[0], torch.tensor([[2, 1, 0], [0, 2, 0], [0, 0, 2.0]], dtype=F64)])

# (what is wrong, the argument that the message names, the call)
TABLE = [
    # schedules
    *(
        (f"time {t}", "t", lambda t=t: as_time(t))
        for t in (-1e-9, 1 + 1e-9, NAN, INF, torch.tensor([0.5, 2.0]))
    ),
    ("truth value for a time", "t", lambda: as_time(True)),
    ("complex time", "t", lambda: as_time(1j)),
    ("label None in a pair", "label", lambda: MIXTURE.pair(SCHEDULE, None)),
    ("time under another name", "s", lambda: as_time(2.0, "s")),
    *(
        (f"{name} of {method} at t={t}", "t", lambda method=method, s=s, t=t: getattr(s, method)(t))
        for name, s in (("linear", SCHEDULE), ("cosine", cosine()), ("table", TABLE_SCHEDULE))
        for method in ("alpha", "sigma", "log_snr", "beta", "integrated_beta")
        for t in (-0.1, 1.1, NAN)
    ),
    ("negative rate", "beta_min", lambda: vp_linear(-0.1, 20)),
    ("rate of zero", "beta_min", lambda: vp_linear(0.0, 20)),
    ("falling rate", "beta_max", lambda: vp_linear(5, 2)),
    ("infinite rate", "beta_max", lambda: vp_linear(0.1, INF)),
    ("rate NaN", "beta_max", lambda: vp_linear(0.1, NAN)),
    ("cut-offs in the wrong order", "log_snr_max", lambda: cosine(-3, 3)),
    ("equal cut-offs", "log_snr_max", lambda: cosine(3, 3)),
    ("infinite cut-off", "log_snr_max", lambda: cosine(INF, -3)),
    ("cut-off NaN", "log_snr_max", lambda: cosine(3, NAN)),
    ("beta of 0", "betas", lambda: from_betas(torch.tensor([0.1, 0.0]))),
    ("beta of 1", "betas", lambda: from_betas(torch.tensor([0.1, 1.0]))),
    ("beta NaN", "betas", lambda: from_betas(torch.tensor([0.1, NAN]))),
    ("empty table", "betas", lambda: from_betas(torch.tensor([]))),
    ("two tables", "betas", lambda: from_betas(torch.full((2, 2), 0.1))),
    ("transition forwards", "s", lambda: SCHEDULE.transition(0.3, 0.4)),
    ("one transition of several forwards", "s", lambda: SCHEDULE.transition(torch.tensor([0.5, 0.1]), 0.2)),
    ("transition from beyond 1", "t", lambda: SCHEDULE.transition(1.2, 0.4)),
    ("transition to below 0", "s", lambda: SCHEDULE.transition(0.3, -0.4)),
    ("transition to NaN", "s", lambda: SCHEDULE.transition(0.3, NAN)),
    ("noise of another shape", "eps", lambda: SCHEDULE.add_noise(X, X[:, :2], 0.3)),
    ("noise that would broadcast", "eps", lambda: SCHEDULE.add_noise(X, X[:1], 0.3)),
    ("times of another batch", "t", lambda: SCHEDULE.add_noise(X, X, torch.full((3,), 0.3))),
    ("times in two dimensions", "t", lambda: SCHEDULE.add_noise(X, X, torch.full((5, 3), 0.3))),
    ("noise at a time beyond 1", "t", lambda: SCHEDULE.add_noise(X, X, 1.3)),
    # the mixture itself
    ("weights that sum to less", "weights", mixture(weights=[0.25, 0.7])),
    ("weights that sum to more", "weights", mixture(weights=[0.25, 0.76])),
    ("negative weight", "weights", mixture(weights=[-0.25, 1.25])),
    ("weight NaN", "weights", mixture(weights=[0.25, NAN])),
    ("too many weights", "weights", mixture(weights=[0.25, 0.25, 0.5])),
    ("weights in two dimensions", "weights", mixture(weights=[[0.25, 0.75]])),
    ("mean NaN", "means", mixture(means=with_entry(MEANS, NAN))),
    ("mean infinite", "means", mixture(means=with_entry(MEANS, INF))),
    ("means in one dimension", "means", mixture(means=MEANS[0])),
    ("means of integers", "means", mixture(means=MEANS.long())),
    ("no means", "means", mixture(means=MEANS[:0])),
    ("covariance not positive definite", "covs", mixture(covs=cov([1, 2, 0], [2, 1, 0], [0, 0, 1]))),
    ("covariance singular", "covs", mixture(covs=cov([1, 0, 0], [0, 0, 0], [0, 0, 1]))),
    ("covariance negative", "covs", mixture(covs=-COVS)),
    ("covariance asymmetric", "covs", mixture(covs=cov([2, 1, 0], [0, 2, 0], [0, 0, 2]))),
    ("covariance asymmetric beside a large one", "covs", mixture(covs=TINY_ASYMMETRY)),
    ("covariance NaN", "covs", mixture(covs=with_entry(COVS, NAN))),
    ("covariance infinite", "covs", mixture(covs=with_entry(COVS, INF))),
    ("variances only", "covs", mixture(covs=torch.ones(2, 3))),
    ("one covariance for all", "covs", mixture(covs=COVS[0])),
    ("covariances of another dimension", "covs", mixture(covs=COVS[:, :2, :2])),
    ("too few labels", "labels", mixture(labels=[0])),
    ("negative label", "labels", mixture(labels=[0, -1])),
    ("labels that are not integers", "labels", mixture(labels=[0.0, 1.0])),
    ("labels of components in two dimensions", "labels", mixture(labels=[[0, 1]])),
    ("labels of components that are words", "labels", mixture(labels=["a", "b"])),
    ("means that are words", "means", mixture(means=["a", "b"])),
    ("weights that are words", "weights", mixture(weights=["a", "b"])),
    ("a network in the place of covs", "covs", mixture(covs=NETWORK)),
    # its points
    *(
        (f"{what} to {name}", "x", lambda call=call, x=x: call(x))
        for what, x in (
            ("NaN", with_entry(X, NAN)), ("infinity", with_entry(X, -INF)), ("images", X[:, None]),
            ("float32 points", X.float()), ("points of two dimensions", X[:, :2]), ("one bare point", X[0]),
        )
        for name, call in (
            ("log_prob", MIXTURE.log_prob), ("score", MIXTURE.score), ("hessian", MIXTURE.hessian),
            ("class_log_prob", lambda x: MIXTURE.class_log_prob(x, 0)),
            ("class_gradient", lambda x: MIXTURE.class_gradient(x, 0)),
            ("reverse", lambda x: MIXTURE.reverse(x, SCHEDULE, 0.5, 0.2)),
            ("exact", lambda x: kernels.exact(MIXTURE, SCHEDULE)(x, T, S)),
        )
    ),
    ("NaN to hessian kernel", "x", lambda: kernels.moment_matched(MIXTURE, SCHEDULE)(with_entry(X, NAN), T, S)),
    ("float32 points to denoiser", "x", lambda: DENOISER(X.float(), T)),
    ("points of two dimensions to denoiser", "x", lambda: DENOISER(X[:, :2], T)),
    # its labels
    *(
        (f"{what} to {name}", "label", lambda call=call, label=label: call(label))
        for what, label in (
            ("label too large", 3), ("negative label", -1), ("label 1.0", 1.0), ("label True", True),
            ("labels for some points", torch.tensor([0, 2])),
        )
        for name, call in (
            ("given", MIXTURE.given), ("class_log_prob", lambda label: MIXTURE.class_log_prob(X, label)),
            ("class_gradient", lambda label: MIXTURE.class_gradient(X, label)),
            ("denoiser", lambda label: MIXTURE.denoiser(SCHEDULE, label)(X, T)),
            ("pair", lambda label: MIXTURE.pair(SCHEDULE, label)(X, T)),
            ("exact", lambda label: kernels.exact(MIXTURE, SCHEDULE, label)),
            ("hessian kernel", lambda label: kernels.moment_matched(MIXTURE, SCHEDULE, label)),
        )
    ),
    ("class without components to given", "label", lambda: MIXTURE.given(1)),
    ("class without components to class_gradient", "label", lambda: MIXTURE.class_gradient(X, 1)),
    ("class without components to denoiser", "label", lambda: MIXTURE.denoiser(SCHEDULE, 1)),
    ("class without weight", "label", lambda: mixture(weights=[0.0, 1.0])().given(0)),
    # its times and levels
    ("alpha for each component", "alpha", lambda: MIXTURE.noised(torch.ones(2), 0.5)),
    ("sigma for each dimension", "sigma", lambda: MIXTURE.noised(0.5, torch.ones(3))),
    ("a class without components among labels to denoiser", "label",
     lambda: MIXTURE.denoiser(SCHEDULE, torch.tensor([0, 1, 2, 0, 2]))),
    ("as many times as components to denoiser", "t", lambda: DENOISER(X, torch.full((2, 1), 0.3))),
    ("as many times as dimensions to denoiser", "t", lambda: DENOISER(X, torch.full((3,), 0.3))),
    ("times for each dimension to reverse", "t",
     lambda: MIXTURE.reverse(X, SCHEDULE, torch.full((3,), 0.3), 0.2)),
    ("time beyond 1 to denoiser", "t", lambda: DENOISER(X, 1.2)),
    ("time NaN to denoiser", "t", lambda: DENOISER(X, NAN)),
    ("times out of order to reverse", "s", lambda: MIXTURE.reverse(X, SCHEDULE, 0.2, 0.5)),
    # drawing
    ("no generator to sample", "generator", lambda: MIXTURE.sample(3, None)),
    ("a sample of nothing", "count", lambda: MIXTURE.sample(0, GENERATOR)),
    ("no generator to ReverseStep", "generator", lambda: MIXTURE.reverse(X, SCHEDULE, T, S).sample(None)),
    # labels and networks
    ("label too large", "label", lambda: check_labels(3, 3)),
    ("label negative", "label", lambda: check_labels(-1, 3)),
    ("one of several too large", "label", lambda: check_labels(torch.tensor([0, 3]), 3)),
    ("label of a float", "label", lambda: check_labels(torch.tensor([0.0, 1.0]), 3)),
    *((f"label {label!r}", "label", lambda label=label: check_labels(label, 3)) for label in ("1", None, ["a"])),
    ("label and schedule exchanged in pair", "label", lambda: MIXTURE.pair(0, SCHEDULE)),
    ("labels in two dimensions", "label", lambda: check_labels(torch.zeros(2, 2, dtype=torch.int64), 3)),
    ("labels of another batch", "label", lambda: expand_label(torch.tensor([0, 1]), X)),
    ("one label in a list for a batch", "label", lambda: expand_label(torch.tensor([0]), X)),
    *(
        (f"{what} to {make.__name__}", "label", lambda make=make, label=label: make(NETWORK, SCHEDULE, label))
        for what, label in (("null label", 3), ("-1", -1), ("0 and 3", torch.tensor([0, 3])), ("1.0", 1.0))
        for make in (network_denoiser, network_pair, classifier_log_prob)
    ),
    *(
        (f"labels of another batch to {name}", "label", lambda call=call: call(torch.tensor([0, 1])))
        for name, call in (
            ("network_denoiser", lambda label: network_denoiser(NETWORK, SCHEDULE, label)(X, T)),
            ("network_pair", lambda label: network_pair(NETWORK, SCHEDULE, label)(X, T)),
            ("a classifier", lambda label: classifier_log_prob(CLASSIFIER, SCHEDULE, label)(X, T)),
        )
    ),
    ("times for some points to a network", "t",
     lambda: network_denoiser(NETWORK, SCHEDULE)(X, torch.full((4,), 0.3))),
    ("a network that answers one number a point", "network",
     lambda: network_denoiser(Deaf(lambda x: x[:, :1]), SCHEDULE)(X, T)),
    ("a network that answers one point for all", "network",
     lambda: network_pair(Deaf(lambda x: x[:1]), SCHEDULE, 0)(X, T)),
    ("time beyond 1 to a network", "t", lambda: network_denoiser(NETWORK, SCHEDULE)(X, 1.2)),
    # guidance
    *(
        (f"gamma {gamma!r} to {name}", "gamma", lambda call=call, gamma=gamma: call(gamma))
        for gamma in (NAN, INF, -INF, torch.tensor([1.0, 2.0]), torch.tensor(INF), "7.5", None)
        for name, call in (
            ("scale_at", lambda gamma: scale_at(gamma, T, X)),
            ("scale_at as a function", lambda gamma: scale_at(lambda t: gamma, T, X)),
            ("tilt", lambda gamma: tilt(DENOISER, ZERO_GRAD, gamma, SCHEDULE)(X, T)),
            ("tilt as a function", lambda gamma: tilt(DENOISER, ZERO_GRAD, lambda t: gamma, SCHEDULE)(X, T)),
            ("classifier_free", lambda gamma: classifier_free(MIXTURE.pair(SCHEDULE, 0), gamma)(X, T)),
            ("classifier_free as a function",
             lambda gamma: classifier_free(MIXTURE.pair(SCHEDULE, 0), lambda t: gamma)(X, T)),
            ("sharpened", lambda gamma: sharpened(lambda x, t: x, 0, gamma)(X, T)),
            ("sharpened as a function", lambda gamma: sharpened(lambda x, t: x, 0, lambda t: gamma)(X, T)),
            ("classifier_guided", lambda gamma: classifier_guided(DENOISER, CLASSIFIER, SCHEDULE, 0, gamma)(X, T)),
        )
    ),
    ("label to classifier_guided", "label", lambda: classifier_guided(DENOISER, NETWORK, SCHEDULE, 3, 1.0)),
    ("gradient of another shape", "grad", lambda: tilt(DENOISER, lambda x, t: x[:, :2], 1.0, SCHEDULE)(X, T)),
    ("gradient to be broadcast", "grad", lambda: tilt(DENOISER, lambda x, t: x[:1], 1.0, SCHEDULE)(X, T)),
    ("one log probability for all", "log_prob", lambda: gradient(lambda x, t: x.sum())(X, T)),
    ("log probabilities of each coordinate", "log_prob", lambda: gradient(lambda x, t: x)(X, T)),
    ("label beyond the logits", "label", lambda: sharpened(lambda x, t: x, 3, 1.0)(X, T)),
    ("labels of another batch to sharpened", "label",
     lambda: sharpened(lambda x, t: x, torch.tensor([0, 1]), 1.0)(X, T)),
    ("logits of one class", "logits", lambda: sharpened(lambda x, t: x[:, 0], 0, 1.0)(X, T)),
    ("logits of one point for all", "logits", lambda: sharpened(lambda x, t: x[:1], 0, 1.0)(X, T)),
    # kernels
    ("unknown variance", "variance", lambda: kernels.ddpm(DENOISER, SCHEDULE, "medium")),
    *((f"eta {v}", "eta", lambda v=v: kernels.ddim(DENOISER, SCHEDULE, v)) for v in (-0.1, NAN, INF)),
    ("eta too large for the step", "eta", lambda: kernels.ddim(DENOISER, SCHEDULE, 30.0)(X, T, S)),
    *((f"rho {v}", "rho", lambda v=v: kernels.reverse_sde(DENOISER, SCHEDULE, v)) for v in (-0.1, NAN, INF)),
    *(
        (f"gamma {v} to shift", "gamma", lambda v=v: kernels.shift(DDPM, ZERO_GRAD, v))
        for v in (NAN, INF)
    ),
    ("place of a shift", "at", lambda: kernels.shift(DDPM, ZERO_GRAD, 1.0, at="y")),
    ("time of a shift", "time", lambda: kernels.shift(DDPM, ZERO_GRAD, 1.0, time="u")),
    *(
        (f"{name} forwards", "s", lambda kernel=kernel: kernel(X, S, T))
        for name, kernel in (
            ("ddpm", DDPM), ("ddim", kernels.ddim(DENOISER, SCHEDULE, 0.5)),
            ("reverse_sde", kernels.reverse_sde(DENOISER, SCHEDULE)),
            ("exact", kernels.exact(MIXTURE, SCHEDULE)), ("hessian", kernels.moment_matched(MIXTURE, SCHEDULE)),
        )
    ),
    *(
        (f"no generator to {name}", "generator", lambda kernel=kernel: kernel(X, T, S).sample(None))
        for name, kernel in (
            ("ddpm", DDPM), ("ddim", kernels.ddim(DENOISER, SCHEDULE, 0.5)),
            ("reverse_sde", kernels.reverse_sde(DENOISER, SCHEDULE)),
            ("exact", kernels.exact(MIXTURE, SCHEDULE)), ("hessian", kernels.moment_matched(MIXTURE, SCHEDULE)),
        )
    ),
    # the sampling loop, which checks before its first step
    *(
        (f"times {times} to {walk.__name__}", "times",
         lambda walk=walk, times=times: walk(DDIM, X, torch.tensor(times)))
        for times in ([0.5, 1.0, 0.0], [1.0, 0.5, 0.5], [1.0], [], [1.5, 0.5], [0.5, -0.5], [1.0, NAN], [[1.0, 0]])
        for walk in (sample, draw)
    ),
    *(
        (f"{what} to the loop of {walk.__name__}", "x",
         lambda walk=walk, x=x: walk(DDIM, x, torch.tensor([1.0, 0.5])))
        for what, x in (("NaN", with_entry(X, NAN)), ("infinity", with_entry(X, INF)), ("integers", X.long()),
                        ("one point without a batch", X[0]))
        for walk in (sample, draw)
    ),
    ("no generator to draw", "generator", lambda: draw(DDPM, X, torch.tensor([1.0, 0.5]))),
    ("no generator to draw exactly", "generator",
     lambda: draw(kernels.exact(MIXTURE, SCHEDULE), X, torch.tensor([1.0, 0.5]))),
    ("no steps", "steps", lambda: time_grid(0)),
    *((f"steps {steps!r}", "steps", lambda steps=steps: time_grid(steps)) for steps in (20.0, "20", None)),
    ("times that rise", "start", lambda: time_grid(3, start=0.2, end=0.4)),
    ("times beyond 1", "start", lambda: time_grid(3, start=1.2)),
    ("times below 0", "end", lambda: time_grid(3, end=-0.2)),
    ("infinite log-SNR at the end", "end", lambda: time_grid(3, SCHEDULE)),
]


def test_a_mixture_given_as_lists_is_float32_and_refuses_float64_by_name():
    lists = GaussianMixture([0.25, 0.75], [[0.0, 1.0], [2.0, 0.0]], [[[1.0, 0.0], [0.0, 1.0]]] * 2)
    tensors = GaussianMixture([0.25, 0.75], torch.tensor(lists.means.tolist()).double(), lists.covs.tolist())
    assert lists.means.dtype == lists.weights.dtype == F32 and tensors.covs.dtype == tensors.weights.dtype == F64
    x = torch.tensor([[0.3, -0.4]], dtype=F64)
    assert abs(float(lists.log_prob(x.float()) - tensors.log_prob(x))) < 1e-6
    with pytest.raises(ValueError, match="x must be .* of .*float32.*got .* of .*float64"):
        lists.log_prob(x)


@pytest.mark.parametrize(("argument", "call"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_bad_input_is_refused_by_name(argument, call):
    """The message says what the argument must be: "t must ...", "start and end must ..."."""
    with pytest.raises(ValueError, match=rf"\b{argument}\b[^.]* must "):
        call()


def test_the_table_has_no_row_twice():
    assert len({row[0] for row in TABLE}) == len(TABLE)


def test_the_same_calls_with_good_input_are_accepted():
    """So that no row above fails for another reason than the one it names."""
    mixture()(), mixture(labels=[2, 0])(), mixture(weights=[0.0, 1.0])()
    mixture(covs=cov([1, 0.5, 0], [0.5, 1, 0], [0, 0, 1]))()
    for label in (0, 2, torch.tensor(2)):
        MIXTURE.given(label), MIXTURE.denoiser(SCHEDULE, label), MIXTURE.class_gradient(X, label)
    MIXTURE.noised(torch.tensor(0.5), 0.5), DENOISER(X, T), DENOISER(X, 0.5)
    SCHEDULE.add_noise(X, X, torch.full((5,), 0.3)), SCHEDULE.transition(torch.tensor([0.5, 0.3]), 0.2)
    MIXTURE.sample(1, GENERATOR), kernels.exact(MIXTURE, SCHEDULE)(X, T, S).sample(GENERATOR)
    draw(DDIM, X, torch.tensor([1.0, 0.5, 0.0])), draw(DDIM, X, torch.tensor([0.1, 0.5, 1.0]))
    DENOISER(X, torch.full((5,), 0.3)), network_denoiser(Deaf(lambda x: x), SCHEDULE)(X, torch.full((5,), 0.3))
    MIXTURE.denoiser(SCHEDULE, torch.tensor([0, 2, 0, 2, 0]))(X, T)
    kernels.ddim(DENOISER, SCHEDULE, 1.0)(X, T, S), time_grid(1), time_grid(3, SCHEDULE, end=1e-3)
    for gamma in (-3, 0, 1.0, torch.tensor(2.0), torch.tensor([2.0])):
        tilt(DENOISER, lambda x, t: torch.zeros_like(x), gamma, SCHEDULE)(X, T)
    for label in (0, 2, torch.tensor([0, 1, 2, 0, 1])):
        network_denoiser(NETWORK, SCHEDULE, label), network_pair(NETWORK, SCHEDULE, label)
        classifier_guided(DENOISER, CLASSIFIER, SCHEDULE, label, 0.0)(X, T)


def test_nan_passes_through_a_denoiser_to_where_it_can_be_seen():
    """Inside a sampling loop nothing looks at values (the host would wait), but nothing hides them either."""
    assert bool(DENOISER(with_entry(X, NAN), T).x0[-1].isnan().any())
    assert bool(torch.isfinite(DENOISER(with_entry(X, NAN), T).x0[:-1]).all())


def test_a_message_about_many_numbers_is_short():
    for call in (lambda: cosine().alpha(with_entry(torch.zeros(200_000), 2.0)),
                 lambda: draw(DDIM, X, torch.zeros(5_000)),
                 lambda: GaussianMixture([1.0] * 5_000, torch.zeros(5_000, 1), torch.ones(5_000, 1, 1))):  # fmt: skip
        with pytest.raises(ValueError) as caught:
            call()
        assert len(str(caught.value)) < 200
