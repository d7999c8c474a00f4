"""The truth: Gaussian mixtures, for which every quantity of a diffusion model has a closed form.

A mixture stays a mixture under noise, under conditioning on a label, and under one exact reverse step. So there is one
class, and `noised`, `given` and `reverse` return mixtures again:

    mixture.noised(alpha, sigma).given(label).score(x)  =  grad log p_t(x | label)

Each covariance is kept as axes (its eigenvectors) and variances along them: noise changes the variances alone.
Inside, components come first and points last, `(components, dim, points)`: the softmax then runs over the slowest
axis and the arithmetic over contiguous memory, several times faster than the layout one writes first.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from difflesson.checks import as_tensor, check_shape, holds, shown
from difflesson.chunks import chunked
from difflesson.denoiser import Pair, Prediction, check_labels, expand_label
from difflesson.noise import standard_normal
from difflesson.parts import Part
from difflesson.schedule import Schedule, as_time
from difflesson.steps import ReverseStep

LOG_TWO_PI = math.log(2 * math.pi)


class GaussianMixture:
    """`p(x) = sum_k weights[k] N(x; means[k], covs[k])` with a class label on each component.  [eq-mixture]

    Args: weights: (K,), at least 0, summing to 1;  means: (K, d);  covs: (K, d, d), symmetric positive definite;
    labels: (K,) integers from 0 on, or None for one class a component. `d` is any dimension from 1 on.
    Lists will do. Dtype and device are those of `means`, and of the points that the mixture then takes: a list is
    float32, torch's default, and `torch.tensor(means).double()` what the chapters have.
    Raises: ValueError naming the argument that is not so.
    """

    def __init__(self, weights: Tensor, means: Tensor, covs: Tensor, labels: Tensor | None = None):
        means = as_tensor("means", means, "finite floats of shape (K, d)")
        if means.dim() != 2 or means.numel() == 0 or not means.is_floating_point() or not _finite(means):
            raise ValueError(f"means must be finite floats of shape (K, d), got {means.dtype} {tuple(means.shape)}")
        means = means.clone()  # the caller may go on to change what was given
        count, dim = means.shape
        given = (("weights", weights), ("covs", covs))
        weights, covs = (as_tensor(name, a, "numbers", means.dtype).to(means.device) for name, a in given)
        if weights.shape != (count,) or not bool((weights >= 0).all()) or abs(float(weights.sum()) - 1) > 1e-5:
            raise ValueError(f"weights must have shape ({count},), be at least 0 and sum to 1, got {shown(weights)}")
        if covs.shape != (count, dim, dim) or not _finite(covs):
            raise ValueError(f"covs must be finite, of shape ({count}, {dim}, {dim}), got {tuple(covs.shape)}")
        if not bool(((covs - covs.mT).abs() <= 1e-5 * covs.abs().amax((1, 2), keepdim=True)).all()):
            raise ValueError(f"covs must be symmetric, {float((covs - covs.mT).abs().max()):.3g} apart at most")
        labels = as_tensor("labels", range(count) if labels is None else labels, f"{count} integers from 0 on").cpu()
        if labels.shape != (count,) or labels.is_floating_point() or int(labels.min()) < 0:
            raise ValueError(f"labels must be {count} integers from 0 on, got {shown(labels)}")
        variances, axes = torch.linalg.eigh(covs)  # (K, d) ascending, (K, d, d) with an eigenvector a column
        if not bool((variances > 0).all()):
            raise ValueError(f"covs must be positive definite, the smallest eigenvalue is {float(variances.min())}")
        self._set(weights / weights.sum(), means, variances, axes, tuple(labels.tolist()))

    def _set(self, weights, means, variances, axes, labels):
        self.weights, self.means, self.variances, self.axes, self.labels = weights, means, variances, axes, labels
        with torch.inference_mode(False):  # what is computed here serves any later use
            # (K d, d): projects on every axis of every component and divides by its standard deviation.
            self._whiten = (axes.mT * variances.rsqrt()[:, :, None]).reshape(-1, self.dim)
            # (K d, 1): the means, whitened.
            self._centre = (self._whiten.view(*axes.shape) @ means[:, :, None]).reshape(-1, 1)
            # (K, 1): log weight and log normaliser of each component.
            self._log_constant = (weights.log() - (variances.log() + LOG_TWO_PI).sum(1) / 2)[:, None]
        return self

    def _like(self, weights, means, variances, axes, labels) -> "GaussianMixture":
        """A mixture from parts that are known to be valid, without checks or an eigendecomposition."""
        return GaussianMixture.__new__(type(self))._set(weights, means, variances, axes, labels)

    def __repr__(self) -> str:
        return f"GaussianMixture({len(self.weights)} components in {self.dim} dimensions, labels {self.labels})"

    @property
    def dim(self) -> int:
        """Dimension of the points."""
        return self.means.shape[1]

    @property
    def classes(self) -> int:
        """Number of classes: the largest label plus one."""
        return max(self.labels) + 1

    @property
    def covs(self) -> Tensor:
        """Covariances, (K, d, d)."""
        return (self.axes * self.variances[:, None]) @ self.axes.mT

    def to(self, *args, **kwargs) -> "GaussianMixture":
        """The mixture on another device or in another dtype; arguments as of `Tensor.to`."""
        tensors = (self.weights, self.means, self.variances, self.axes)
        return self._like(*(a.to(*args, **kwargs) for a in tensors), self.labels)

    def noised(self, alpha: float | Tensor, sigma: float | Tensor) -> "GaussianMixture":
        """The mixture of `x_t = alpha x_0 + sigma eps`: means `alpha m`, covariances `alpha^2 C + sigma^2 I`.

        Args: alpha, sigma: numbers or 0-dim tensors (ValueError otherwise), at least 0.  [eq-noised-mixture]
        """
        if any(isinstance(level, Tensor) and level.dim() for level in (alpha, sigma)):
            raise ValueError(f"alpha and sigma (and so the time t) must be single numbers, got {alpha} and {sigma}")
        for level in (alpha, sigma):
            if isinstance(level, Tensor):
                level = level.item() if level.device.type == "cpu" else 0  # elsewhere a look makes the host wait
            if not level >= 0:
                raise ValueError(f"alpha and sigma must be at least 0, got alpha={alpha}, sigma={sigma}")
        variances = alpha**2 * self.variances + sigma**2
        return self._like(self.weights, alpha * self.means, variances, self.axes, self.labels)

    def class_weights(self) -> Tensor:
        """`p(y)` for each class, (classes,)."""
        return torch.stack([self.weights[self._of(y)].sum() for y in range(self.classes)])

    def given(self, label: int) -> "GaussianMixture":
        """The mixture of one class, `p(x | label)`, which keeps its label.  [eq-conditional-mixture]

        Raises: ValueError if no component of positive weight has this label.
        """
        index = self._of(label)
        total = self.weights[index].sum()
        if not holds(total > 0):
            raise ValueError(f"label must have positive weight, {label} has none; labels: {sorted(set(self.labels))}")
        parts = (a[index] for a in (self.means, self.variances, self.axes))
        return self._like(self.weights[index] / total, *parts, tuple(self.labels[i] for i in index))

    def _of(self, label: int) -> list[int]:
        """Indices of the components of a class."""
        label = check_labels(label, self.classes)
        if label.dim():
            raise ValueError(f"label must be one integer, got shape {tuple(label.shape)}")
        return [i for i, y in enumerate(self.labels) if y == label]

    # What follows is evaluated at points x: (N, d).

    def _whitened(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Whitened residuals (K, d, N), and log of weight times density (K, N)."""
        z = torch.addmm(-self._centre, self._whiten, x.T).view(len(self.weights), self.dim, -1)
        return z, self._log_constant - z.square().sum(1) / 2

    def _pull_back(self, z: Tensor) -> Tensor:
        """Sum over components of `C^{-1/2} z`: (K, d, N) -> (N, d)."""
        return (self._whiten.T @ z.reshape(len(self._whiten), -1)).T

    def _checked(self, x: Tensor, finite: bool = True) -> Tensor:
        want, got = (self.means.dtype, self.means.device), (x.dtype, x.device)
        if x.dim() != 2 or x.shape[1] != self.dim or got != want:
            raise ValueError(f"x must be (N, {self.dim}) of {want}, got {tuple(x.shape)} of {got}")
        if finite and not _finite(x):
            raise ValueError("x must be finite, it contains NaN or infinity")
        return x

    def log_prob(self, x: Tensor) -> Tensor:
        """`log p(x)`, (N,).  [eq-mixture]  Raises: ValueError on a wrong shape, dtype or (on the CPU) NaN; so below."""
        return chunked(lambda part: self._whitened(part)[1].logsumexp(0), self._checked(x))

    def score(self, x: Tensor) -> Tensor:
        """`grad log p(x) = sum_k p(k | x) C_k^{-1} (m_k - x)`, (N, d).  [eq-mixture-score]"""

        def part_score(part):
            z, log = self._whitened(part)
            return -self._pull_back(log.softmax(0)[:, None] * z)

        return chunked(part_score, self._checked(x))

    def hessian(self, x: Tensor) -> Tensor:
        """Second derivatives of log p(x), (N, d, d): with `g_k` the component's score and `g` the mixture's,
        `sum_k p(k | x) (g_k g_k^T - C_k^{-1}) - g g^T`.  [eq-mixture-hessian]
        """
        z, log = self._whitened(self._checked(x))
        shares = log.softmax(0)  # (K, N)
        g = -torch.einsum("kde,kdn->kne", self._whiten.view(*self.axes.shape), z)  # (K, N, d)
        precision = (self.axes / self.variances[:, None]) @ self.axes.mT  # (K, d, d)
        # Deviations from the mean score: the same matrix, without subtracting two large ones.
        g = g - torch.einsum("kn,kne->ne", shares, g)
        return torch.einsum("kn,kne,knf->nef", shares, g, g) - torch.einsum("kn,kef->nef", shares, precision)

    def class_log_prob(self, x: Tensor, label: int) -> Tensor:
        """`log p(label | x)`, (N,).  [eq-class-posterior]"""
        index = self._of(label)
        return chunked(lambda part: self._whitened(part)[1].log_softmax(0)[index].logsumexp(0), self._checked(x))

    def class_gradient(self, x: Tensor, label: int) -> Tensor:
        """`grad log p(label | x) = grad log p(x | label) - grad log p(x)`, (N, d).  [eq-score-decomposition]"""
        return self.given(label).score(x) - self.score(x)

    def sample(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw `count` points: x (count, d) and labels (count,).  Raises: ValueError if count < 1, no generator."""
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}")
        noise = standard_normal((count, self.dim), self.means, generator)
        which = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        spread = (self.axes * self.variances.sqrt()[:, None])[which]  # (count, d, d)
        x = self.means[which] + (spread @ noise[:, :, None])[:, :, 0]
        return x, torch.tensor(self.labels, device=x.device)[which]

    def denoiser(self, schedule: Schedule, label: int | Tensor | None = None) -> "MixtureDenoiser":
        """The ideal denoiser, given the label if there is one; see `MixtureDenoiser`."""
        return MixtureDenoiser(self, schedule, label)

    def pair(self, schedule: Schedule, label: int | Tensor) -> Pair:
        """The ideal conditional and unconditional denoisers.

        Args: label: an integer, or (batch,) with one a point.  Raises: ValueError if it is no class, None included.
        """
        check_labels(label, self.classes)
        return Pair(self.denoiser(schedule, label), self.denoiser(schedule))

    def reverse(self, x: Tensor, schedule: Schedule, t: float | Tensor, s: float | Tensor) -> ReverseStep:
        """The exact reverse kernel `p(x_s | x_t = x)`, a mixture for each point.  [eq-exact-reverse]

        With `V = alpha^2 C + sigma^2 I` at s and t, component k has weight `p(k | x_t)`, mean
        `alpha_s m + alpha_{t|s} V_s V_t^{-1} (x - alpha_t m)` and covariance `sigma_{t|s}^2 V_s V_t^{-1}`.
        Use `given(label).reverse` for `p(x_s | x_t, label)`.  Raises: ValueError unless `0 <= s <= t <= 1`.
        """
        alpha_ts, sigma_ts = schedule.transition(t, s)
        at_s = self.noised(schedule.alpha(s), schedule.sigma(s))
        at_t = self.noised(schedule.alpha(t), schedule.sigma(t))
        z, log = at_t._whitened(self._checked(x))
        ratio = at_s.variances / at_t.variances
        gain = alpha_ts * at_s.variances / at_t.variances.sqrt()  # (K, d)
        means = at_s.means[:, None] + torch.einsum("ked,kd,kdn->kne", self.axes, gain, z)  # (K, N, d)
        return ReverseStep(log.log_softmax(0), means, sigma_ts**2 * ratio, self.axes)


@dataclass(frozen=True, eq=False)
class MixtureDenoiser(Part):
    """The ideal denoiser of a mixture, `x0 = E[x_0 | x_t]` and `eps = E[eps | x_t]`, given labels if there are any.

    [eq-mixture-denoiser] Both come from their own formula, so neither loses digits at either end of time. With `z` the
    residual of x from component k, whitened, and `V = alpha^2 C + sigma^2 I`,

        x0 = sum_k p(k | x) (m_k + alpha C V^{-1/2} z),     eps = sigma sum_k p(k | x) V^{-1/2} z

    Args: label: an integer, a tensor (batch,) with one a point, or None.  Of a call: x: (batch, d), shapes are checked
    but a NaN goes through;  t: one time, or (batch,).
    Raises: ValueError if a label is not a class of positive weight, or there is not one for each point.
    """

    mixture: GaussianMixture
    schedule: Schedule
    label: int | Tensor | None = None

    def __post_init__(self):
        if self.label is not None:
            for label in check_labels(self.label, self.mixture.classes).unique():
                self.mixture.given(label)

    def __call__(self, x: Tensor, t: Tensor) -> Prediction:
        self.mixture._checked(x, finite=False)
        t = as_time(t)
        check_shape("t", t, (), x.shape[:1])
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        clean, columns = self.mixture, []
        if self.label is not None:
            label = torch.as_tensor(self.label)
            clean, columns = (clean, [expand_label(label, x)]) if label.dim() else (clean.given(label), [])
        if t.dim():
            return self._at_many_times(clean, x, alpha.to(x), sigma.to(x), *columns)
        noisy = clean.noised(alpha, sigma)
        gain = (alpha * clean.variances / noisy.variances.sqrt())[:, :, None]  # (K, d, 1)
        lift = (clean.axes.mT * gain).reshape(-1, clean.dim)  # (K d, d): whitened residual -> shift of x0

        def both(part, *label):
            z, log = noisy._whitened(part)
            shares = _among(clean, log, *label).softmax(0)  # (K, N)
            shared = (shares[:, None] * z).reshape(len(lift), -1)  # (K d, N)
            x0 = lift.T @ shared + clean.means.T @ shares
            return torch.cat([x0, sigma * (noisy._whiten.T @ shared)]).T  # (N, 2 d)

        return Prediction(*chunked(both, x, *columns).chunk(2, dim=1))

    @staticmethod
    def _at_many_times(clean: GaussianMixture, x: Tensor, alpha: Tensor, sigma: Tensor, *columns) -> Prediction:
        """The same with a noise level a point, alpha and sigma (N,): nothing is shared between points."""
        centre = clean.axes.mT @ clean.means[:, :, None]  # (K, d, 1)
        back = clean.axes.mT.reshape(-1, clean.dim).T  # (d, K d)

        def both(part, alpha, sigma, *label):
            variances = alpha**2 * clean.variances[:, :, None] + sigma**2  # (K, d, N)
            z = (clean.axes.mT @ part.T - alpha * centre) / variances.sqrt()
            log = clean.weights.log()[:, None] - (variances.log() + z.square()).sum(1) / 2  # (K, N), up to a constant
            shares = _among(clean, log, *label).softmax(0)
            pulled = shares[:, None] * z / variances.sqrt()  # (K, d, N)
            x0 = clean.means.T @ shares + back @ (alpha * clean.variances[:, :, None] * pulled).flatten(0, 1)
            return torch.cat([x0, sigma * (back @ pulled.flatten(0, 1))]).T  # (N, 2 d)

        return Prediction(*chunked(both, x, alpha, sigma, *columns).chunk(2, dim=1))


def _among(mixture: GaussianMixture, log: Tensor, label: Tensor | None = None) -> Tensor:
    """Log weights (K, N), without the components of other classes where there are labels, (N,)."""
    if label is None:
        return log
    return log.masked_fill(torch.tensor(mixture.labels, device=log.device)[:, None] != label, -math.inf)


def _finite(x: Tensor) -> bool:
    return holds(torch.isfinite(x))
