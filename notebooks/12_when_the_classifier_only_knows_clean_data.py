# %% [markdown]
# # 12 · When the classifier only knows clean data: is guessing first enough?
#
# You have a diffusion model, and a classifier that somebody trained on clean pictures (or a reward: read
# $e^{\text{reward}}$ for the probability). A sampler walks through noisy ones. So let the denoiser guess the clean
# picture first, ask the classifier about the guess, and differentiate through both. Suppose that both are perfect. Is
# guessing first enough?
#
# The short answer: **no. Here, with a perfect classifier, a perfect denoiser and no scale ($\gamma = 1$), it
# over-guides already, and no smaller $\gamma$ mends it.** A noisy picture stands for a whole cloud of clean ones. The
# guess is the middle of the cloud, and the classifier is never told how wide the cloud is.
#
# **After this chapter you can**
# * say what a noisy classifier should answer, and what asking about the guess puts in its place;
# * say where such guidance is too strong, where it falls silent, and why no factor makes it right;
# * mend most of it with something that your denoiser knows already;
# * say what backpropagation through the denoiser multiplies by, and what happens without it.
#
# **You need** chapter 00, Bayes' rule, gradients.
#
# *30 minutes to read, 26 more for Deeper, 40 seconds to run, on a laptop, without a GPU or a network connection.*

# %%
import math
from dataclasses import replace
from functools import partial

import torch

from difflesson import exercises, guidance, kernels, metrics, plane, plotting
from difflesson.clean_classifier import (
    asked,
    clean_cov,
    clean_guess,
    gaussian_cloud,
    logistic_cloud,
    noisy_answer,
    step_guess,
)
from difflesson.divergence import hermite, mixture_nodes, step_nodes
from difflesson.grid import GridDensity
from difflesson.mixture import GaussianMixture
from difflesson.samplers import draw, time_grid
from difflesson.schedule import cosine

torch.set_num_threads(1)

# %% [markdown]
# ## One verdict about one point
#
# The data are the four blobs of chapter 00, two of class 0 and two of class 1; we ask for class 1. On a mixture the
# classifier $p_o(y \mid x_0)$ of clean points and the denoiser are known exactly, so whatever goes wrong is not a fault
# of training.

# %%
mixture, schedule, label = plane.four_blobs(), cosine(), 1
class_1, denoiser = mixture.given(label), mixture.denoiser(schedule)


def clean_classifier(x0):
    """log p_o(1 | x0), which has never seen noise."""
    return mixture.class_log_prob(x0, label)


# %% [markdown]
# Take one noisy point. Which clean points may it come from (their *cloud*; in chapter 09 their crowd)? And what does
# the classifier say of them, and of their average?

# %% tags=["hide-input"]
t = torch.tensor(0.6, dtype=torch.float64)
noisy = mixture.noised(schedule.alpha(t), schedule.sigma(t))
here = torch.tensor([[0.2, -0.6]], dtype=torch.float64)
cloud, centre = mixture.reverse(here, schedule, t, 0.0), denoiser(here, t).x0
said, true = float(clean_classifier(centre).exp()), float(noisy.class_log_prob(here, label).exp())
print(f"about the middle of the cloud: {said:.2f}; on average over the cloud: {true:.2f}")
assert round(said, 2) == 0.97 and round(true, 2) == 0.61
axis = torch.linspace(-3.6, 3.6, 181, dtype=torch.float64)
line = torch.stack([axis, torch.full_like(axis, float(here[0, 1]))], 1)
at_dip = denoiser(torch.tensor([[1.6, -0.6]], dtype=torch.float64), t).x0
assert clean_classifier(at_dip).exp() > 0.8 and clean_classifier(at_dip + torch.tensor([[-0.4, 0.5]])).exp() < 0.5
answers = {"truth": noisy.class_log_prob(line, label), "guided": clean_classifier(denoiser(line, t).x0)}
verdicts = clean_classifier(torch.cartesian_prod(axis, axis)).exp().view(181, 181).T
colours = plotting.COLOURS

# %% tags=["hide-input"]
def draw_cloud(panel):
    panel.contourf(axis, axis, verdicts, (0.5, 1), colors=[colours["conditional"]], alpha=0.12)
    panel.contour(axis, axis, verdicts, (0.5,), colors=colours["conditional"], linewidths=1)
    window, grey = (-3.6, 3.6, -3.6, 3.6), colours["unconditional"]
    plotting.density(panel, lambda x0: cloud.log_prob(x0[:, None])[:, 0], window, colors=grey, linestyles="solid")
    panel.plot(*centre[0], "o", color=colours["guided"], markersize=7, markeredgecolor="white")
    panel.text(-3.4, 3.1, "class 0", color="0.3")
    panel.text(1.5, -3.3, "class 1", color=colours["conditional"])
    panel.set(xlabel="$x_1$", ylabel="$x_2$", aspect="equal", title="clean points\nbehind one noisy point")


def draw_answers(panel, make):
    panel.plot(axis, make(answers["truth"]), "--", color=colours["truth"])
    panel.plot(axis, make(answers["guided"]), color=colours["guided"])
    for colour, one in (("guided", said), ("truth", true)):
        level = float(make(torch.tensor(one).log()))
        panel.plot(0.2, level, "o", color=colours[colour], markersize=6, markeredgecolor="white")
    panel.set_xlabel("$x_1$ of the noisy point")


# %% tags=["hide-input"]
with plotting.style():
    figure, axes = plotting.plt.subplots(1, 3, figsize=(8, 3.1))
    draw_cloud(axes[0])
    draw_answers(axes[1], torch.exp)
    draw_answers(axes[2], lambda log: log)
    axes[1].text(-3.5, 0.8, "about\nthe guess", color=colours["guided"])
    axes[1].text(0.7, 0.4, "averaged over\nthe cloud", color=colours["truth"])
    axes[1].set_title("probability of class 1")
    axes[2].set(title="its logarithm:\nguidance is the slope", ylim=(-8, 0.5))
    shown = plotting.show(
        figure,
        "12_one_verdict",
        alt="Left: grey contours of a cloud of clean points reach across the border between the classes; its middle, an orange dot, lies inside class 1 near the border. Middle: probability of class 1 along a line of noisy points. The verdict about the guess jumps from nearly 0 to nearly 1 within one unit, then dips once; the average over the cloud, dashed, climbs steadily over six units. Right: the logarithms of both. That of the guess falls much more steeply to the left, and is flat to the right of the border, where the other still climbs.",
    )
shown

# %% [markdown]
# *Left: the clean points that the noisy point $x_t = (0.2, -0.6)$ at $t = 0.6$ may come from (grey: 50, 90 and 99 %),
# and their average, the denoiser's guess (dot). Shaded: where the classifier says class 1. Middle: the verdict about
# the guess (solid) and the average of the verdicts over the cloud (dashed), for noisy points with $x_2 = -0.6$. Right:
# their logarithms. At the dip the guess passes the border's corner.*
#
# **What happens.** The guess lies in class 1, a little beyond the border, and the classifier says 0.97. But many of the
# clean points behind this noisy one lie on the other side. The right answer is the average of their verdicts: 0.61.
#
# **Why it matters.** Guidance follows the slope of the *logarithm*, the right panel. A cloud crosses a border
# gradually; a single point jumps across. So just left of the border the slope is several times too steep. A step to
# the right all is settled for the guess: its curve is flat, or even falls (to the dip), and guidance stops while the
# cloud is still divided. First pushed too hard, then released too early: that is not the right push times a wrong
# factor.
#
# ## What a noisy classifier should say
#
# Noise makes $x_t = \alpha_t x_0 + \sigma_t \varepsilon$ out of a clean point and does not look at the label. So if
# $x_0$ is known, $x_t$ says nothing more about it: $p(y \mid x_0, x_t) = p_o(y \mid x_0)$, the clean classifier.
# Average over what $x_0$ may be:
#
# $$ p_t(y \mid x) = \mathbb E\big[\, p_o(y \mid x_0) \,\big|\, x_t = x \,\big]. \label{eq-noisy-answer} $$
#
# Guidance with this classifier at $\gamma = 1$ is conditional sampling. On a mixture the left side is the class
# probability of the noised mixture, and the right a weighted sum over points of the cloud (Gauss-Hermite quadrature):


# %%
def seeded(number):
    return torch.Generator().manual_seed(number)


few = noisy.sample(4000, seeded(0))[0][:20]
points, shares = step_nodes(mixture.reverse(few, schedule, t, 0.0), order=40)
by_hand = (shares * clean_classifier(points.flatten(0, 1)).exp().view_as(shares)).sum(0)
compact = noisy_answer(mixture, schedule, clean_classifier, few, t, order=40)
torch.testing.assert_close(compact.exp(), by_hand)
truth = noisy.class_log_prob(few, label)
torch.testing.assert_close(truth.exp(), by_hand, atol=2e-5, rtol=0)

# %% [markdown]
# The guess moves the average inside. With $\hat x_0(x) = \mathbb E[x_0 \mid x_t = x]$, the denoiser's answer,
#
# $$ \hat p_t(y \mid x) = p_o\big(y \,\big|\, \hat x_0(x)\big). \label{eq-clean-guess} $$
#
# This is diffusion posterior sampling, DPS ([Chung et al. (2023)](https://arxiv.org/abs/2209.14687)), for a classifier;
# [Bansal et al. (2023)](https://arxiv.org/abs/2302.07121) guide by clean classifiers, detectors and segmenters in this
# way.

# %%
guess = clean_guess(denoiser, clean_classifier)
torch.testing.assert_close(guess(few, t), clean_classifier(denoiser(few, t).x0))

# %% [markdown]
# Swapping a function and an average costs a *Jensen gap*. Over noisy data: the gap's mean absolute size; the root mean
# squares of both gradients of the logarithm; and that of their difference, over the exact one's.


# %% tags=["hide-input"]
def levels_of(mixture, schedule, times, order=16):
    """At each time: t, quadrature points and weights of the noisy data, the exact classifier's mixture."""
    for time in times:
        t = torch.tensor(time, dtype=torch.float64)
        noisy = mixture.noised(schedule.alpha(t), schedule.sigma(t))
        yield t, *mixture_nodes(noisy, order), noisy


def size(vectors, weights):
    return float((weights @ vectors.square().sum(1)).sqrt())


# %% tags=["hide-input"]
print("  t   gap  exact gradient  through the guess  error / exact")
ratios, kept = [], {}
for u, x, weights, noised in levels_of(mixture, schedule, (0.1, 0.3, 0.5, 0.7, 0.9)):
    gap = weights @ (guess(x, u).exp() - noised.class_log_prob(x, label).exp()).abs()
    g, g_hat = noised.class_gradient(x, label), guidance.gradient(guess)(x, u)
    lengths = size(g, weights), size(g_hat, weights), size(g_hat - g, weights) / size(g, weights)
    print("{:.1f}  {:.2f}  {:14.2f}  {:17.2f}  {:13.1f}".format(float(u), gap, *lengths))
    ratios.append(lengths[1] / lengths[0])
    kept[float(u)] = lengths
u = torch.tensor(0.1, dtype=torch.float64)
x, weights = mixture_nodes(class_1.noised(schedule.alpha(u), schedule.sigma(u)))
g = mixture.noised(schedule.alpha(u), schedule.sigma(u)).class_gradient(x, label)
own = size(guidance.gradient(guess)(x, u) - g, weights) / size(g, weights)
print(f"at points of class 1 alone, t = 0.1: error / exact {own:.2f}")
assert round(own, 2) == 0.17
assert kept[0.1][2] < 0.1 and 2.4 < ratios[2] < 2.6 and 3.5 < min(ratios[3:]) and max(ratios[3:]) < 4

# %% [markdown]
# Guidance lives on gradients. Those are right to a tenth at $t = 0.1$ (over class 1's own points, to 17 %), two
# and a half times too long at $t = 0.5$, almost four times at $t = 0.7$ and $0.9$.
#
# ## Sampling at $\gamma = 1$
#
# `guidance.gradient` differentiates the guess through the denoiser, `guidance.tilt` adds the gradient to the score.


# %%
def guided(log_prob, gamma=1.0):
    return guidance.tilt(denoiser, guidance.gradient(log_prob), gamma, schedule)


def exact_answer(x, t):
    return mixture.noised(schedule.alpha(t), schedule.sigma(t)).class_log_prob(x, label)


start = torch.randn(1000, 2, generator=seeded(2), dtype=torch.float64)
solvers = {"DDIM": kernels.ddim, "DDPM": kernels.ddpm}  # without fresh noise in a step, and with


def sampled(denoiser, solver):
    return draw(solvers[solver](denoiser, schedule), start, time_grid(100), seeded(7))


# %% [markdown]
# Smaller scales get a chance: 1/3; guidance only late, at $t < 1/2$; and at each $t$ the *best factor*, the one that
# brings the guess's gradient nearest to the right one at noisy data (least squares).

# %% tags=["hide-input"]
def best_factor(t):
    _, x, weights, noised = next(levels_of(mixture, schedule, [float(t)], order=8))
    right, ours = noised.class_gradient(x, label), guidance.gradient(guess)(x, t)
    return float((weights @ (right * ours).sum(1)) / (weights @ ours.square().sum(1)))


# %%
models = {
    "exact": guided(exact_answer),
    "guess": guided(guess),
    "guess, gamma = 1/3": guided(guess, 1 / 3),
    "guess, best factor": guided(guess, best_factor),
    "guess, t < 1/2": guided(guess, lambda t: float(t < 0.5)),
}
runs = {(name, how): sampled(model, how) for how in solvers for name, model in models.items()}

# %% [markdown]
# Four numbers a run of 1,000 points: the mass of class 1, and of its blob far from class 0 (means of $p(\cdot \mid
# x)$); the spread, the mean square distance from the mean; and the Wasserstein distance $W_2$ to 1,000 true points of
# class 1, the least root mean square distance over all pairings. The first row has it between true samples.

# %% tags=["hide-input"]
points_1, weights_1 = mixture_nodes(class_1, order=30)
target = class_1.sample(1000, seeded(98))[0]


def moments(x, weights=None):
    """Mass of class 1, of its far blob; spread."""
    weights = torch.full((len(x),), 1 / len(x), dtype=x.dtype) if weights is None else weights
    blobs = GaussianMixture(mixture.weights, mixture.means, mixture.covs)
    near, far = (weights @ blobs.class_log_prob(x, k).exp() for k in (2, 3))
    return torch.stack([near + far, far, weights @ (x - weights @ x).square().sum(1)])


def row(x):
    return [*moments(x).tolist(), metrics.wasserstein(x[:1000], target)]


# %% tags=["hide-input"]
table = {key: row(cloud) for key, cloud in runs.items()}
_, errors = metrics.with_error(moments, runs["exact", "DDPM"])
floors = [metrics.wasserstein(class_1.sample(1000, seeded(seed))[0], target) for seed in (99, 100, 101)]
floor = sum(floors) / 3
print(f"{'':25s} class 1    far  spread    W2")
print("{:25s} {:7.3f} {:6.2f} {:7.2f} {:5.2f}".format("truth", *moments(points_1, weights_1), floor))
for (name, how), values in table.items():
    print("{:25s} {:7.3f} {:6.2f} {:7.2f} {:5.2f}".format(f"{how}, {name}", *values))
print("{:25s} {:7.3f} {:6.2f} {:7.2f}".format("standard error", *errors))
print("best factor at t = 0.1, 0.5, 0.9:", ", ".join(f"{best_factor(torch.tensor(u).double()):.2f}" for u in (0.1, 0.5, 0.9)))
assert table["guess", "DDIM"][1] < 0.07 and table["guess", "DDIM"][0] > 0.99
assert table["guess, t < 1/2", "DDIM"][3] == min(table[name, "DDIM"][3] for name in models if "guess" in name)
assert all(table[name, "DDPM"][3] > 0.9 * table["guess", "DDPM"][3] for name in models if "guess" in name)
assert all(values[3] > 2.5 * table["exact", how][3] for (name, how), values in table.items() if "guess" in name)
assert all(-0.05 < table["guess, gamma = 1/3", how][3] - table["guess, best factor", how][3] < 0.15 for how in solvers)
assert all(values[1] < 0.24 for (name, _), values in table.items() if "guess" in name)
assert all(table[name, "DDPM"][3] < table[name, "DDIM"][3] for name in models if "guess" in name)
assert table["guess, gamma = 1/3", "DDIM"][0] < 0.91 and abs(table["guess, t < 1/2", "DDIM"][0] - 0.82) < 0.01
assert all(table["exact", how][3] < 1.7 * floor for how in solvers)
assert 0.25 < table["guess", "DDIM"][2] / moments(points_1, weights_1)[2] < 0.3
assert 2 * errors[1] < moments(points_1, weights_1)[1] - table["exact", "DDPM"][1] < 0.05
assert table["guess, t < 1/2", "DDPM"][3] > 0.93 * table["guess, t < 1/2", "DDIM"][3]

# %% tags=["hide-input"]
shown_runs = {
    "exact, $\\gamma = 1$": ("exact", "conditional"),
    "guess, $\\gamma = 1$": ("guess", "guided"),
    "guess, $\\gamma = 1/3$": ("guess, gamma = 1/3", "guided"),
}
with plotting.style():
    figure, axes = plotting.plt.subplots(2, 3, figsize=(8.2, 4.7), sharex=True, sharey=True)
    for row_of, how in zip(axes, solvers, strict=True):
        for panel, (title, (name, colour)) in zip(row_of, shown_runs.items(), strict=True):
            panel.plot(*runs[name, how][:500].T, ".", markersize=1.6, color=colours[colour])
            plotting.density(panel, class_1.log_prob, (-3, 5, -4, 4))
            panel.set(xlim=(-2.6, 4.6), ylim=(-3.2, 3.1), aspect="equal", title=title if how == "DDIM" else "")
        row_of[0].set_ylabel(f"{how}\n$x_2$")
    for panel in axes[1]:
        panel.set_xlabel("$x_1$")
    assert all(len(panel.lines[0].get_xdata()) == 500 for panel in axes.flat)
    shown = plotting.show(
        figure,
        "12_over_guided",
        alt="Six clouds over the dashed contours of class 1, which has a large blob near class 0 and a small one far from it. The exact classifier fills both. Asking about the guess with gamma 1 fills the near blob almost alone, with DDIM squeezed into a dense wedge, and leaves the far one nearly empty. With gamma one third the points spread out and spill over towards class 0, and the far blob stays nearly empty.",
    )
shown

# %% [markdown]
# *Samples for class 1 with a perfect denoiser and a perfect classifier, without noise (above) and with
# (below). Dashed: 50, 90 and 99 % of class 1, what all six should fill.*
#
# With the exact noisy classifier both samplers find class 1 (DDPM with too little in the far blob).
# **Through the guess, $\gamma = 1$ over-guides.** DDIM's samples are surer of their class than the data, 0.996 where
# 0.922 is right, on little over a quarter of the spread. The far blob, over a third of the mass, gets a twentieth.
#
# Then turn it down? At $\gamma = 1/3$ the samples are less sure of the class than the data, and the far blob stays
# starved. The best factor at each level, from nearly 1 near the data to a sixth near noise, is little better. Guiding
# late helps DDIM most, though a tenth of the class mass is then missing. DDPM comes nearer than DDIM in every row
# through the guess (guided late, only just). But each such row is at least two and a half times as far from class 1 as
# the exact classifier's: what is wrong is not a factor. (For class 0, in the tests, DDPM comes within twice the exact
# distance, no nearer with a smaller factor or a late start.)
#
# ## Why: a slope at one point, or the slopes of a cloud
#
# Nudge $x$. How do averages over its cloud change? The cloud has the density $p(x_0 \mid x) \propto p(x_0)\,
# e^{-\|x - \alpha_t x_0\|^2 / 2 \sigma_t^2}$. The gradient of its logarithm in $x$ is $\alpha_t x_0 / \sigma_t^2$ plus
# terms without $x_0$. Densities stay normalised, so this gradient averages to zero over the cloud:
# it is $\alpha_t (x_0 - \hat x_0) / \sigma_t^2$. And $\nabla\, \mathbb E[f] = \mathbb E[f\, \nabla \log p(x_0
# \mid x)]$; so, as for the similarity of [chapter 09](09_similarity_control.ipynb#what-an-encoder-learns-from-noise),
# for every function $f$ of $x_0$
#
# $$ \nabla\, \mathbb E[f(x_0) \mid x_t = x] = \frac{\alpha_t}{\sigma_t^2}\, \mathrm{Cov}\big(x_0, f(x_0) \mid x_t = x\big). \label{eq-nudge} $$
#
# With $f = p_o(y \mid \cdot)$ this is what a noisy classifier's slope consists of: the *covariance of position and
# verdict across the cloud*.


# %%
# [eq-nudge]
def nudged(f, mixture, schedule, x, t, order=40):
    """The gradient in x of E[f(x_0) | x_t = x], from the cloud alone: (N, 2)."""
    points, shares = step_nodes(mixture.reverse(x, schedule, t, 0.0), order)
    values = f(points.flatten(0, 1)).view_as(shares)
    mean, value = torch.einsum("mn,mnd->nd", shares, points), (shares * values).sum(0)
    cov = torch.einsum("mn,mnd->nd", shares * (values - value), points - mean)
    return schedule.alpha(t) / schedule.sigma(t) ** 2 * cov


# %%
slope = nudged(lambda x0: clean_classifier(x0).exp(), mixture, schedule, few, t)
of_the_log = slope / truth.exp()[:, None]
torch.testing.assert_close(of_the_log, noisy.class_gradient(few, label), atol=1e-3, rtol=0)

# %% [markdown]
# With $f(x_0) = x_0$ the same rule gives the derivative of the guess, a matrix:
#
# $$ \frac{\partial \hat x_0}{\partial x} = \frac{\alpha_t}{\sigma_t^2}\, \mathrm{Cov}(x_0 \mid x_t = x). \label{eq-clean-jacobian} $$
#
# So the denoiser knows how wide the cloud is: its derivative says so.

# %%
jacobian = plane.jacobian(lambda x: denoiser(x, t).x0, few)
by_hand = schedule.sigma(t) ** 2 / schedule.alpha(t) * jacobian
torch.testing.assert_close(clean_cov(denoiser, schedule, few, t), by_hand)
torch.testing.assert_close(mixture.reverse(few, schedule, t, 0.0).cov, by_hand)

# %% [markdown]
# By the chain rule, backpropagation through the denoiser multiplies the classifier's gradient at the guess by this
# matrix:
#
# $$ \nabla \log \hat p_t(y \mid x) = \frac{\alpha_t}{\sigma_t^2}\, \mathrm{Cov}(x_0 \mid x_t = x)\;
# \nabla \log p_o\big(y \mid \hat x_0(x)\big). \label{eq-guess-gradient} $$

# %%
cov, factor = clean_cov(denoiser, schedule, few, t), schedule.alpha(t) / schedule.sigma(t) ** 2
steepness = mixture.class_gradient(denoiser(few, t).x0, label)
by_hand = factor * (cov @ steepness[:, :, None])[:, :, 0]
torch.testing.assert_close(guidance.gradient(guess)(few, t), by_hand)

# %% [markdown]
# The right gradient is $\eqref{eq-nudge}$ with $f = p_o$, divided by the average verdict. If the cloud were Gaussian,
# integration by parts (Stein's lemma) would turn its covariance of position and verdict into $\mathrm{Cov}(x_0 \mid x)$
# times the *average* slope $\mathbb E[\nabla p_o]$. Both gradients then have the same matrix in front. After it the
# right one has the average slope over the average verdict, the guess's the slope over the verdict at the middle. That
# is wrong in two ways:

# %% tags=["hide-input"]
many = noisy.sample(20_000, seeded(1))[0]
verdict, right = guess(many, t).exp(), exact_answer(many, t).exp()
g, g_hat = noisy.class_gradient(many, label).norm(dim=1), guidance.gradient(guess)(many, t).norm(dim=1)
print("t = 0.6; the guess says  it is   gradient: exact  through the guess")
by_verdict = []
for low, high in ((0, 0.02), (0.02, 0.2), (0.2, 0.8), (0.8, 0.98), (0.98, 1)):
    chosen = (verdict >= low) & (verdict <= high)
    by_verdict.append([float(v[chosen].mean()) for v in (right, g, g_hat)])
    print(f"{f'{low:.2f} to {high:.2f}':>23s}" + "{:7.2f}{:18.2f}{:19.2f}".format(*by_verdict[-1]))
assert by_verdict[2][2] / by_verdict[2][1] > 3.4 and by_verdict[0][2] / by_verdict[0][1] > 2.5
assert 7 < by_verdict[4][1] / by_verdict[4][2] < 8

# %% [markdown]
# Where the guess is undecided or on the wrong side, its gradient is three to four times too long. Where it is sure of
# class 1, it has less than a seventh of the right length: guidance has stopped, though one point in seven there is of
# class 0. So points gather behind the border.
#
# ## Ask about the cloud
#
# The cloud's width is missing, so hand it over. Take the Gaussian with the cloud's mean and covariance, which the
# denoiser knows by $\eqref{eq-clean-jacobian}$, and average the classifier over it:
#
# $$ \tilde p_t(y \mid x) = \mathbb E_{z \sim \mathcal N(0, I)}\, p_o\big(y \,\big|\, \hat x_0(x) + L z\big),
# \qquad L L^\top = \mathrm{Cov}(x_0 \mid x_t = x). \label{eq-gaussian-cloud} $$

# %%
averaged = gaussian_cloud(denoiser, clean_classifier, schedule)
z, shares = hermite(12, 2)  # 144 points z with weights
L = torch.linalg.cholesky(clean_cov(denoiser, schedule, few, t))
around = denoiser(few, t).x0 + torch.einsum("nij,mj->mni", L, z)  # (144, N, 2)
by_hand = shares @ clean_classifier(around.flatten(0, 1)).exp().view(len(z), -1)
torch.testing.assert_close(averaged(few, t).exp(), by_hand)

# %% [markdown]
# Average *probabilities*, not their logarithms. With one variance for all directions, and random $z$, this is
# loss-guided diffusion ([Song et al. (2023)](https://proceedings.mlr.press/v202/song23k.html)).

# %% tags=["hide-input"]
times, closed = (0.1, 0.3, 0.5, 0.7, 0.9), {}
questions = {
    "guess": guess,
    "averaged over 6 x 6 points": gaussian_cloud(denoiser, clean_classifier, schedule, order=6),
    "averaged over 12 x 12 points": averaged,
    "averaged over 36 x 36 points": gaussian_cloud(denoiser, clean_classifier, schedule, order=36),
}
print("error of the gradient / its size    " + "  ".join(f"t = {u}" for u in times))
for name, log_prob in questions.items():
    closed[name] = []
    for u, x, weights, noised in levels_of(mixture, schedule, times, order=6 if "36" in name else 12):
        g = noised.class_gradient(x, label)
        closed[name].append(size(guidance.gradient(log_prob)(x, u) - g, weights) / size(g, weights))
    print(f"{name:35s}", "  ".join(f"{value:7.2f}" for value in closed[name]))
few_z, some_z, many_z = list(closed.values())[1:]
assert len(hermite(averaged.order, 2)[0]) == 144
assert all(b < a / 6 for a, b in zip(closed["guess"], some_z, strict=True))
assert max(some_z) < 0.3 and many_z.index(max(many_z)) == 2 and many_z[2] < 0.25
assert few_z[4] / many_z[4] > 3

# %% tags=["hide-input"]
print(f"{'':25s} class 1    far  spread    W2")
for how in solvers:
    runs["averaged", how] = sampled(guided(averaged), how)
    table["averaged", how] = row(runs["averaged", how])
    print("{:25s} {:7.3f} {:6.2f} {:7.2f} {:5.2f}".format(f"{how}, averaged", *table["averaged", how]))
assert all(table["averaged", how][3] < 1.4 * table["exact", how][3] for how in solvers)

# %% [markdown]
# (The gradients are those at fewer noisy points than above.) With $12 \times 12$ points five sixths of the gradient's
# error or more are gone at every level. The samples of both samplers are nearly as near to class 1 as those of the exact
# classifier, in this run.
#
# **What is left.** With enough $z$ the Gaussian's own error is largest in the middle, nearly a quarter of the gradient
# at $t = 0.5$: a cloud of several blobs is no Gaussian. And enough is many: with $6 \times 6$ points the error near
# noise is over three times that with $36 \times 36$. On thin strips ([Deeper](#deeper-three-classes-on-thin-strips))
# more error than gradient is left. The cost is $d$ backward passes for the matrix, their derivative, and 144 questions
# to the classifier. On images you would draw a few $z$ and approximate the covariance; this page did not try.
#
# ## Pitfall: the Jacobian left out
#
# Backpropagation through a large denoiser costs memory. So people compute $\hat x_0 = (x - \sigma_t \hat\varepsilon) /
# \alpha_t$ with $\hat\varepsilon$ detached from the graph. Then $\partial \hat x_0 / \partial x$ becomes $I /
# \alpha_t$. By $\eqref{eq-clean-jacobian}$ this claims the covariance $(\sigma_t^2 / \alpha_t^2) I$: the noise in the
# units of $x_0$, as if there were no data. Others take the gradient at the guess as it is ($I$).
#
# In the first three rows only the matrix differs. It stands before the slope of the averaged classifier, the cloud's
# shape held fixed. The last row takes the slope at the guess, and for the covariance one number a level times $I$: the
# denoiser's mean square error there over $d$, which needs no Jacobian.

# %% tags=["hide-input"]
def averaged_slope(x0, cov):
    """Gradient in x0 of the averaged classifier's logarithm, the cloud's shape held: (N, 2)."""
    z, shares = hermite(12, 2)
    around = torch.einsum("nij,mj->mni", torch.linalg.cholesky(cov), z)
    with torch.enable_grad():
        leaf = x0.detach().requires_grad_()
        log = (asked(clean_classifier, leaf + around) + shares.log()[:, None]).logsumexp(0)
        return torch.autograd.grad(log.sum(), leaf)[0]


def with_matrix(kind, x, t):
    """The averaged slope at the guess times the denoiser's derivative, or times what people put there."""
    cov, alpha = clean_cov(denoiser, schedule, x, t), schedule.alpha(t)
    slope, factor = averaged_slope(denoiser(x, t).x0, cov), alpha / schedule.sigma(t) ** 2
    if kind == "cov":
        return factor * (cov @ slope[:, :, None])[:, :, 0]
    return {"one": 1.0, "detached": 1 / alpha}[kind] * slope


def one_number(x, t):
    """The clean classifier's gradient at the guess, times one number for the level."""
    _, points, weights, _ = next(levels_of(mixture, schedule, [float(t)], order=6))
    trace = weights @ clean_cov(denoiser, schedule, points, t).diagonal(dim1=1, dim2=2).mean(1)
    return schedule.alpha(t) / schedule.sigma(t) ** 2 * trace * mixture.class_gradient(denoiser(x, t).x0, label)

# %% tags=["hide-input"]
names = {
    "cov": "the covariance",
    "one": "I",
    "detached": "I / alpha (eps detached)",
    "level": "at the guess, a number a level",
}
fields = {kind: partial(with_matrix, kind) for kind in names} | {"level": one_number}
print(f"{'':76s}{'300 points by DDPM':>18s}")
print(f"{'error / size of the gradient':31s}" + "".join(f"{f't = {u}':>9s}" for u in times) + f"{'far':>9s}{'W2':>9s}")
dropped = {}
for kind, field in fields.items():
    dropped[kind] = []
    for u, x, weights, noised in levels_of(mixture, schedule, times, order=8):
        g = noised.class_gradient(x, label)
        dropped[kind].append(size(field(x, u) - g, weights) / size(g, weights))
    kernel = kernels.ddpm(guidance.tilt(denoiser, field, 1.0, schedule), schedule)
    x = draw(kernel, start[:300], time_grid(100), seeded(7))
    dropped[kind] += [moments(x)[1].item(), metrics.wasserstein(x, target[:300])]
    print(f"{names[kind]:31s}" + "".join(f"{v:9.2f}" for v in dropped[kind][:6]) + f"{dropped[kind][6]:9.2g}")
through = metrics.wasserstein(runs["guess", "DDPM"][:300], target[:300])
print(f"through the guess, these 300 points: {through:.2f}")
assert dropped["detached"][4] > 15 and dropped["detached"][6] > 1000 > 3 > dropped["level"][6] > dropped["cov"][6]
assert dropped["one"][6] > 5 * dropped["cov"][6] and 1 < dropped["level"][6] / through < 1.15

# %% [markdown]
# Detached costs little near the data, and is off by about nineteen times the right gradient near noise: the samples
# explode. With $I$ nearly all end in the far blob. One number a level keeps them together: without backpropagation
# while sampling it did nearly as well as the guess with it; for class 0, in the tests, worse.
#
# ## In practice
#
# Measured here, on two classes of two blobs in the plane.


# %% tags=["hide-input"]
far_blob = {key: values[1] for key, values in table.items() if key[0].startswith("guess")}
print(f"far blob, true {float(moments(points_1, weights_1)[1]):.2f}:", f"at most {max(far_blob.values()):.2f} through the guess")
print(f"error / size at t = 0.1: guess {closed['guess'][0]:.2f}")
assert round(max(far_blob.values()), 2) == 0.23

# %% [markdown]
# | if you have | do | because |
# |---|---|---|
# | labelled data | train the classifier on noisy points, or a model with labels ([chapter 11](11_classifier_free_guidance.ipynb)) | with the exact noisy answer, $\gamma = 1$ sampled the class with either sampler |
# | a clean classifier, and a denoiser you may differentiate ([chapter 10](10_general_case.ipynb#only-the-arrow-knows-the-data) has the loop) | average its *probabilities* over $\mathcal N(\hat x_0, \mathrm{Cov})$, $\gamma = 1$, with enough $z$ | five sixths or more of the gradient's error went, and $W_2$ came near the exact classifier's; six points an axis were too few near noise |
# | the last steps, $t$ near 0 | the guess will do, once the cloud is narrower than the border | at $t = 0.1$ its gradient is right to within a tenth of its size (in the tests, at sharper borders, off by nearly all of it) |
# | nothing but the guess | noise in the sampler; judge by the mix *inside* the class, not by how sure it is | the far blob got a seventh of its share from DDIM, and half of it from DDPM; neither smaller factors nor the late start brought it to two thirds |
# | no memory for backpropagation | one number a level for the covariance; never $I / \alpha_t$, nor $I$ | detached, the samples exploded; for class 1 one number a level did nearly as well as the guess with backpropagation |
#
# ## Exercises

# %% [markdown]
# ### Exercise 12.1 (easy): two denoisers and no classifier
#
# You have two denoisers at $x_t = x$: `x0_told` is $\mathbb E[x_0 \mid x_t = x, y]$, `x0_untold` is $\mathbb E[x_0 \mid
# x_t = x]$, both (N, d). Return $\nabla \log p_t(y \mid x)$, (N, d). `alpha` and `sigma` are numbers.
#
# <details><summary>Hint</summary>
#
# $\eqref{eq-nudge}$ with $f(x_0) = p_o(y \mid x_0)$, divided by $p_t(y \mid x)$. What is $\mathbb E[x_0\, p_o(y \mid
# x_0) \mid x] / p_t(y \mid x)$, by Bayes' rule?
#
# </details>


# %% tags=["exercise"]
def gradient_of_answer(x0_told, x0_untold, alpha, sigma):
    ### BEGIN SOLUTION
    return alpha / sigma**2 * (x0_told - x0_untold)
    ### END SOLUTION


# %%
exercises.check("12.1", gradient_of_answer)

# %% [markdown]
# ### Exercise 12.2 (medium): a measurement instead of a class
#
# Instead of a class you are given a measurement: $y = a^\top x_0 + $ Gaussian noise of variance `s2`. The cloud of
# clean points behind $x$ is Gaussian with mean `mean` (d,) and covariance `cov` (d, d), which does not change with $x$.
# Return both gradients in $x$, (d,) each: first that of the guess, $\nabla \log \hat p_t(y \mid x)$, then the right
# one, $\nabla \log p_t(y \mid x)$.
#
# <details><summary>Hint</summary>
#
# $\eqref{eq-guess-gradient}$ for the first. For the second: across the cloud, $a^\top x_0$ is Gaussian, and $y$ is that
# plus independent noise. What is its variance? The mean moves with $x$ by $\eqref{eq-clean-jacobian}$.
#
# </details>


# %% tags=["exercise"]
def two_gradients(a, y, s2, mean, cov, alpha, sigma):
    ### BEGIN SOLUTION
    push = alpha / sigma**2 * (cov @ a) * (y - a @ mean)
    return push / s2, push / (s2 + a @ cov @ a)
    ### END SOLUTION


# %%
exercises.check("12.2", two_gradients)

# %% [markdown]
# ### Exercise 12.3 (hard): from data alone
#
# The right gradient without a denoiser and without a noisy classifier: `x0` (M, d) are clean data, `p` (M,) what the
# clean classifier says of each, `x` (d,) is a noisy point. Return $\nabla \log p_t(y \mid x)$, (d,), for data that are
# these M points, each with the same weight.
#
# <details><summary>Hint</summary>
#
# The cloud behind $x$ consists of the M points, with weights by Bayes' rule: how well does each explain $x$? Then
# $\eqref{eq-nudge}$, over the average verdict.
#
# </details>


# %% tags=["exercise"]
def gradient_from_data(x0, p, x, alpha, sigma):
    ### BEGIN SOLUTION
    shares = (-(x - alpha * x0).square().sum(1) / (2 * sigma**2)).softmax(0)
    told = shares * p / (shares @ p)
    return alpha / sigma**2 * (told - shares) @ x0
    ### END SOLUTION


# %%
exercises.check("12.3", gradient_from_data)

# %% [markdown]
# ## Remember
#
# 1. A noisy classifier says the average of the clean one over the cloud of clean points behind $x_t$. Asking about the denoiser's guess asks about the middle alone.
# 2. The guess's gradient is $\frac{\alpha_t}{\sigma_t^2} \mathrm{Cov}(x_0 \mid x_t)\, \nabla \log p_o$ at one point. Near the border it is
#    too long, where the guess is sure of the class asked for it is too short. So no $\gamma$ makes it right, and here none mended
#    the samples. (On other blobs, by DDPM, $\gamma = 1/2$ did.)
# 3. With perfect parts and $\gamma = 1$, DDIM here gave a class probability of 0.996 for 0.922, and a twentieth to a blob of more than a third.
# 4. Averaging over the Gaussian with the denoiser's own covariance removed five sixths of the gradient's error or more here, given enough points (144 in the plane).
# 5. Without the Jacobian of the denoiser the gradient claims another cloud: of width $\sigma_t / \alpha_t$ if the noise is detached.
#
# **Where it comes from.** Guidance through the guess: [Chung et al. (2023)](https://arxiv.org/abs/2209.14687) and
# [Bansal et al. (2023)](https://arxiv.org/abs/2302.07121). A step's mean for the guess (Deeper): [Su
# (2022)](https://spaces.ac.cn/archives/9257). Classifier guidance, by a classifier trained on noisy images: [Dhariwal &
# Nichol (2021)](https://arxiv.org/abs/2105.05233).
#
# ## Deeper: how many times too long?
#
# *For you if you want to foresee the mistake, from the classifier's slope and the cloud's width.*
#
# As many times too long as the cloud blurs the border. Let the classifier be logistic, $p_o = \varsigma(\ell)$ with
# $\varsigma(\ell) = 1 / (1 + e^{-\ell})$ and a logit $\ell$ that is linear with slope $k$; let the cloud be Gaussian.
# Then $\ell$ is Gaussian across the cloud, around its value $\ell(\hat x_0)$ at the guess, with the variance $v =
# k^\top \mathrm{Cov}(x_0 \mid x)\, k$. A logistic curve is nearly a Gaussian's distribution function, of variance $8 /
# \pi$ if the slopes at zero shall agree; and blurring a distribution function by a Gaussian adds the variances. So
# ([MacKay (1992)](https://doi.org/10.1162/neco.1992.4.5.720))
#
# $$ \mathbb E\big[\varsigma(\ell)\big] \approx \varsigma\Big( \frac{\ell(\hat x_0)}{\sqrt{1 + \pi v / 8}} \Big).
# \label{eq-logistic-cloud} $$

# %%
z, shares = hermite(200, 1)
logit, v = torch.linspace(-60, 60, 241).double(), torch.logspace(-2, 3, 60).double()[:, None]
average = torch.sigmoid(logit + v.sqrt() * z[:, :, None]).mul(shares[:, None, None]).sum(0)
nearly = torch.sigmoid(logit / (1 + math.pi * v / 8).sqrt())
torch.testing.assert_close(logistic_cloud(logit, v).exp(), nearly)
worst = float((average - nearly).abs().max())
print(f"off by {worst:.3f} at worst")
assert worst < 0.02

# %% [markdown]
# The probability is right to 0.02 at worst. Near the border the right logit is that of the guess divided by $\sqrt{1 +
# \pi v / 8}$, and (if the cloud keeps its shape) this is how many times the gradient is too long. Far on the wrong
# side, $\ell(\hat x_0)$ well below $-v$, it is not: there the guess's is right (exercise 12.4).
#
# Our classifier is not logistic and our clouds are not Gaussian. Predict all the same, from $k$ and $v$ at the guess
# alone, how many times too long the gradient of the logit is where the guess is undecided (0.2 to 0.8); and measure.
# The last column is the cosine between the two gradients.

# %% tags=["hide-input"]
cosines, agreement = [], []
print("  t   predicted  measured  cosine    (medians)")
for u in (0.2, 0.4, 0.6, 0.8):
    u = torch.tensor(u, dtype=torch.float64)
    noised = mixture.noised(schedule.alpha(u), schedule.sigma(u))
    x = noised.sample(20_000, seeded(1))[0]
    p = guess(x, u).exp()
    x, p = x[(p > 0.2) & (p < 0.8)], p[(p > 0.2) & (p < 0.8)]
    k = mixture.class_gradient(denoiser(x, u).x0, label) / (1 - p)[:, None]  # slope of the logit
    v = torch.einsum("ni,nij,nj->n", k, clean_cov(denoiser, schedule, x, u), k)
    through, g = guidance.gradient(guess)(x, u), noised.class_gradient(x, label)
    right = noised.class_log_prob(x, label).exp()
    predicted = (1 + math.pi * v / 8).sqrt().median()
    measured = (through.norm(dim=1) / (1 - p) / (g.norm(dim=1) / (1 - right))).median()
    cosines.append(float(torch.cosine_similarity(through, g).median()))
    print(f"{float(u):.1f}  {float(predicted):9.1f}  {float(measured):8.1f}  {cosines[-1]:6.2f}")
    agreement.append(abs(float(predicted / measured) - 1))
print(f"off by {max(agreement[:3]):.0%} at most up to t = 0.6")
assert cosines[0] > 0.99 and cosines[3] < 0.7
assert max(agreement[:3]) < 0.05 and agreement[3] < 0.25

# %% [markdown]
# In the median the formula is right to 4 % up to $t = 0.6$, with nothing fitted (on three other blobs, in the tests,
# less well). So over-guiding needs no defect of the classifier or the denoiser: the sharpness of the one times the
# width of the other's cloud is enough. And here, as the noise grows, the guess's gradient also turns away from the right
# *direction*. No factor mends that.

# %% [markdown]
# ### Exercise 12.4 (research): an average without quadrature
#
# An averaged classifier for high dimension, without quadrature. The classifier is $\varsigma(k^\top x_0 + b)$, the
# cloud Gaussian with mean `mean` (d,) and a covariance `cov` (d, d) that does not change with $x$. Return the logarithm
# of the verdict by $\eqref{eq-logistic-cloud}$, a number, and its gradient in $x$, (d,), in closed form.
#
# Then, without a checker: compare the gradient with that of the average by quadrature, at a logit of $-12$ with $v =
# 8$. Which of guess and formula is nearer to it, why, and what would you use there?
#
# <details><summary>Hint</summary>
#
# $\frac{d}{d\ell} \log \varsigma(\ell) = 1 - \varsigma(\ell)$. The factor in front of the logit does not change with
# $x$; the mean does, by $\eqref{eq-clean-jacobian}$.
#
# </details>


# %% tags=["exercise"]
def blurred(k, b, mean, cov, alpha, sigma):
    ### BEGIN SOLUTION
    # At -12 the average's slope in the logit is 0.93, the guess's 1, this one 0.49: the average comes from the cloud's
    # near end, which no flatter logistic curve knows. There: the guess, or quadrature over the logit, one dimension.
    blur = (1 + math.pi / 8 * (k @ cov @ k)).sqrt()
    logit = (k @ mean + b) / blur
    slope = torch.sigmoid(-logit) / blur * (cov @ k)
    return torch.nn.functional.logsigmoid(logit), alpha / sigma**2 * slope
    ### END SOLUTION


# %%
exercises.check("12.4", blurred)

# %% [markdown]
# ## Deeper: a test without the truth
#
# *For you if you want to know how over-sure your own guess is: two tests, one of them on any labelled data.*
#
# Walk from $x_t$ to a cleaner $x_s$ without guidance. The cloud of $x_t$ is the average of the clouds of these $x_s$, so
# by $\eqref{eq-noisy-answer}$
#
# $$ \mathbb E\big[\, p_s(y \mid x_s) \,\big|\, x_t = x \,\big] = p_t(y \mid x) \qquad \text{for all } s < t: \label{eq-answer-martingale} $$
#
# on average the right verdict does not change as you learn more (it is a *martingale*). From four points at $t = 0.7$,
# here by quadrature (you would run DDPM in small steps, many times):


# %%
# [eq-answer-martingale]
def later_verdict(log_prob, mixture, schedule, x, t, s, order=20):
    """E[exp log_prob(x_s, s) | x_t = x], by quadrature over the exact step: (N,)."""
    points, shares = step_nodes(mixture.reverse(x, schedule, t, s), order)
    return (shares * log_prob(points.flatten(0, 1), s).exp().view_as(shares)).sum(0)


# %% tags=["hide-input"]
four = torch.tensor([[-1.0, -0.5], [-0.6, 0.2], [0.3, 0.3], [0.9, -0.3]], dtype=torch.float64)
then = torch.tensor(0.7, dtype=torch.float64)
print("  s  exact                 about the guess")
for s in (0.7, 0.5, 0.3, 0.1):
    s = torch.tensor(s, dtype=torch.float64)
    both = [later_verdict(f, mixture, schedule, four, then, s).numpy().round(2) for f in (exact_answer, guess)]
    print(f"{float(s):.1f} ", *both)
    torch.testing.assert_close(
        later_verdict(exact_answer, mixture, schedule, four, then, s), exact_answer(four, then).exp(), atol=2e-3, rtol=0
    )
assert float((guess(four, then).exp() - exact_answer(four, then).exp()).abs().max()) > 0.1

# %% [markdown]
# The exact verdict stays. That about the guess drifts to where it should have been, for at $s = 0$ the two are one. The
# same shows on labelled data: add noise, ask, and compare the verdicts with the labels.

# %% tags=["hide-input"]
x_0, labels = mixture.sample(10_000, seeded(5))
eps = torch.randn(x_0.shape, generator=seeded(6), dtype=torch.float64)
bins = torch.linspace(0, 1, 11, dtype=torch.float64)
fine, off, reliable = [k / 20 for k in range(1, 20)], {}, {}
at_06 = torch.tensor(0.6, dtype=torch.float64)
for name, log_prob in (("about the guess", guess), ("averaged", averaged)):
    off[name] = []
    for u, x, weights, noised in levels_of(mixture, schedule, fine, order=8):
        g = noised.class_gradient(x, label)
        off[name].append(size(guidance.gradient(log_prob)(x, u) - g, weights) / size(g, weights))
    p = log_prob(schedule.add_noise(x_0, eps, at_06), at_06).exp()
    boxes = [torch.bucketize(p, bins[1:-1]) == k for k in range(10)]
    reliable[name] = [(float(p[box].mean()), float((labels[box] == label).double().mean())) for box in boxes]
    for what, values in zip(("says", "it is"), zip(*reliable[name], strict=True), strict=True):
        print(f"{name:16s} {what:6s}", " ".join(f"{value:.2f}" for value in values))
assert round(max(off["averaged"]), 1) == 0.3 > max(off["averaged"])
assert 0.14 < reliable["about the guess"][0][1] < 0.16 and round(reliable["about the guess"][9][1], 2) == 0.8

# %% tags=["hide-input"]
with plotting.style():
    figure, axes = plotting.plt.subplots(1, 2, figsize=(8.2, 3.5))
    for name, colour in (("about the guess", "guided"), ("averaged", "other")):
        axes[0].semilogy(fine, off[name], color=colours[colour])
        axes[1].plot(*zip(*reliable[name], strict=True), "o-", markersize=4, color=colours[colour])
    axes[0].text(0.5, 1.15, "about the guess", color=colours["guided"])
    axes[0].text(0.5, 0.07, "averaged over\na Gaussian cloud", color=colours["other"])
    axes[0].axhline(1, color="0.7", linewidth=0.8, linestyle="dotted")
    axes[0].set(xlabel="time $t$ (0 is data)", ylabel="error / size of the gradient", ylim=(0.002, 6))
    axes[1].plot([0, 1], [0, 1], "--", color=colours["truth"], linewidth=1)
    axes[1].text(0.55, 0.3, "about the guess", color=colours["guided"])
    axes[1].text(0.2, 0.72, "averaged", color=colours["other"])
    axes[1].set(xlabel="it says class 1 with probability", ylabel="share that is class 1", aspect="equal")
    axes[1].set_title("$t = 0.6$, 10,000 noisy data")
    shown = plotting.show(
        figure,
        "12_gap",
        alt="Left: error of the gradient relative to its size, over time, on a logarithmic axis. About the guess it rises to over three; averaged over a Gaussian cloud it stays below 0.3. Right: reliability. Verdicts averaged over the cloud lie near the diagonal; those about the guess lie on a flat curve: where it says nearly 1 the share is four fifths, where it says nearly 0 it is over a tenth.",
    )
shown

# %% [markdown]
# *Left: error of the guiding gradient at noisy data, relative to its size (root mean squares). Right: a reliability
# diagram from labels alone: what was said, and how often it was true. On the dashed line a classifier is calibrated.*
#
# The right picture can be made for any model. If its curve is flatter than the diagonal, the verdicts are over-sure.
# A curve on the diagonal proves less: verdicts may be calibrated on average, and their gradients wrong.
#
# ## Deeper: one step instead of a guess
#
# *For you if you read the article that proposed the other shortcut: a point that is only one step cleaner.*
#
# The article that this course follows ([Su (2022)](https://spaces.ac.cn/archives/9257)) asks about the mean of the
# *next step*, instead: with $s < t$ and $\mu$ as in DDPM,
#
# $$ \check p_t(y \mid x) = p_o\big(y \mid \mu(x)\big), \qquad \mu(x) = \mathbb E[x_s \mid x_t = x]
# = \frac{\alpha_t \sigma_s^2}{\alpha_s \sigma_t^2}\, x + \alpha_s \Big( 1 - \frac{\alpha_t^2 \sigma_s^2}{\alpha_s^2 \sigma_t^2} \Big)\, \hat x_0(x). \label{eq-step-guess} $$
#
# At $s = 0$ it is the guess. But a usual step is short, and $\mu(x)$ nearly $x$.

# %%
s = t - 0.01
ratio = schedule.alpha(t) / schedule.alpha(s)
keep = ratio * (schedule.sigma(s) / schedule.sigma(t)) ** 2
mu = keep * few + schedule.alpha(s) * (1 - ratio * keep) * denoiser(few, t).x0
torch.testing.assert_close(mu, mixture.reverse(few, schedule, t, s).mean)
short = step_guess(denoiser, clean_classifier, schedule, length=0.01)
torch.testing.assert_close(short(few, t), clean_classifier(mu))

# %% tags=["hide-input"]
print("error of the gradient / its size  " + "  ".join(f"t = {u}" for u in times))
along = {}
for name, log_prob in (("one step of 0.01", short), ("the guess", guess)):
    along[name] = []
    for u, x, weights, noised in levels_of(mixture, schedule, times):
        g = noised.class_gradient(x, label)
        along[name].append(size(guidance.gradient(log_prob)(x, u) - g, weights) / size(g, weights))
    print(f"{name:32s}", "  ".join(f"{v:7.2f}" for v in along[name]))
for how in solvers:
    table["step", how] = row(sampled(guided(short), how))
    shown_w2 = [table[name, how][3] for name in ("step", "guess")]
    print("{}: W2 {:.2f} by steps of 0.01, {:.2f} by the guess".format(how, *shown_w2))
off_short, off_guess = along.values()
assert off_short[1] < off_guess[1] and off_short[4] > 4 * off_guess[4] and round(off_short[4]) == 15
assert all(0.8 < table["step", how][3] / table["guess", how][3] < 1.1 for how in solvers)

# %% [markdown]
# A clean classifier at a noisy point looks for the border where clean data have it, but noise has shrunk the data by
# $\alpha_t$; and it takes the noise for a feature. So with much noise the short step is by far the worse, off by
# fifteen times the right gradient at $t = 0.9$. With little noise, up to $t = 0.3$, it is about as good as the
# guess. The samples are about as wrong as the guess's: near noise the right gradient is short, so that a large error
# relative to it need not show in them.
#
# ## Deeper: a measurement instead of a label
#
# *For you if you come from inverse problems: exercise 12.2 for many measurements, and samples.*
#
# DPS was made for measurements: $y = A x_0$ plus Gaussian noise of variance $s^2$. Through the guess the gradient is,
# by $\eqref{eq-clean-jacobian}$ with $C = \mathrm{Cov}(x_0 \mid x_t)$,
#
# $$ \nabla \log \hat p_t(y \mid x) = \frac{\alpha_t}{\sigma_t^2}\, C A^\top\, \frac{y - A \hat x_0(x)}{s^2}. \label{eq-measured-guess} $$
#
# If the cloud is Gaussian, $y$ given $x$ is Gaussian around $A \hat x_0$ with the covariance $A C A^\top + s^2 I$.
# Holding $C$ fixed while differentiating (for Gaussian data it is constant in $x$),
#
# $$ \nabla \log \tilde p_t(y \mid x) = \frac{\alpha_t}{\sigma_t^2}\, C A^\top \big( A C A^\top + s^2 I \big)^{-1} \big( y - A \hat x_0(x) \big). \label{eq-measured-cloud} $$
#
# So where one direction of unit length is measured, and the cloud has the variance $c$ along it, the guess's gradient is
# $1 + c / s^2$ times the cloud's, however far $y$ is. An exact measurement, $s \to 0$: infinitely.


# %%
# [eq-measured-guess] [eq-measured-cloud]
def measured_gradients(A, y, s2, x0, cov, alpha, sigma):
    """Through the guess and over the cloud, (N, d) each; A (m, d), y (m,), x0 (N, d), cov (N, d, d)."""
    back, residual = alpha / sigma**2 * cov @ A.T, (y - x0 @ A.T)[:, :, None]
    whole = A @ cov @ A.T + s2 * torch.eye(len(A), dtype=A.dtype)
    return (back @ residual / s2)[:, :, 0], (back @ torch.linalg.solve(whole, residual))[:, :, 0]


# %%
A, y_seen, s2 = torch.tensor([[0.6, 0.8]]).double(), torch.tensor([0.5]).double(), 0.25


def likelihood(x0):
    return -(y_seen - x0 @ A.T).square().sum(1) / (2 * s2)


bell = GaussianMixture([1.0], class_1.means[:1], class_1.covs[:1])  # one Gaussian: here the cloud is one
cov, x0 = clean_cov(bell.denoiser(schedule), schedule, few, t), bell.denoiser(schedule)(few, t).x0
through, over = measured_gradients(A, y_seen, s2, x0, cov, schedule.alpha(t), schedule.sigma(t))
torch.testing.assert_close(through, guidance.gradient(clean_guess(bell.denoiser(schedule), likelihood))(few, t))
right = guidance.gradient(partial(noisy_answer, bell, schedule, likelihood, order=40))(few, t)
torch.testing.assert_close(over, right, atol=2e-8, rtol=0)

# %% [markdown]
# [Boys et al. (2023)](https://arxiv.org/abs/2310.06721) use this covariance in this way; with $r^2 I$ for $C$ inside the
# inverse it is [ΠGDM (Song et al. (2023))](https://openreview.net/forum?id=9_gsMA8MRKQ). Samples of the four blobs by
# DDIM, given this measurement; the target is summed over a grid, and the last column is the standard deviation along
# the measured direction:


# %% tags=["hide-input"]
def measured_model(kind):
    def gradient(x, t):
        cov, x0 = clean_cov(denoiser, schedule, x, t), denoiser(x, t).x0
        return measured_gradients(A, y_seen, s2, x0, cov, schedule.alpha(t), schedule.sigma(t))[kind == "cloud"]

    def exact(x, t):  # each blob of the cloud by itself
        step = mixture.reverse(x, schedule, t, 0.0)
        covs = (step.axes * step.variances[:, None]) @ step.axes.mT
        variances = (A @ covs @ A.T)[:, 0] + s2  # (K, 1)
        return (
            step.log_weights - (y_seen - (step.means @ A.T)[:, :, 0]) ** 2 / (2 * variances) - variances.log() / 2
        ).logsumexp(0)

    return guidance.tilt(denoiser, guidance.gradient(exact) if kind == "exact" else gradient, 1.0, schedule)


# %% tags=["hide-input"]
print("       near blob of class 0    W2  along")
measured_runs = {}
posterior = GridDensity(lambda x: mixture.log_prob(x) + likelihood(x), -6, 6)
goal = posterior.sample(500, seeded(1))
drawn = {"truth": posterior.sample(500, seeded(3))}
for kind in ("exact", "guess", "cloud"):
    drawn[kind] = draw(kernels.ddim(measured_model(kind), schedule), start[:500], time_grid(100))
for kind, x in drawn.items():
    measured_runs[kind] = (float(metrics.mode_weights(mixture, x)[1]), metrics.wasserstein(x, goal), float((x @ A.T).std()))
    print("{:8s} {:18.2f}  {:.2f}   {:.2f}".format(kind, *measured_runs[kind]))
blob, apart, along_A = ({kind: values[k] for kind, values in measured_runs.items()} for k in range(3))
assert abs(blob["cloud"] - blob["truth"]) > abs(blob["guess"] - blob["truth"]) > 0.03
assert along_A["guess"] < along_A["truth"] / 3 and abs(along_A["cloud"] / along_A["truth"] - 1) < 0.12
assert apart["cloud"] - apart["exact"] < 0.5 * (apart["guess"] - apart["exact"])

# %% [markdown]
# Through the guess the samples scatter far too little along the measured direction: less than a third of the right
# standard deviation. The cloud's gradient gives that back, and here removes over half of what $W_2$ is above the exact
# run's. The blobs' shares it need not mend: here they are even farther off. In the tests it mends them for another
# measurement; for yet another its samples are farther from the target than the guess's.
#
# ## Deeper: the normalised step
#
# *For you if you use DPS or a descendant: its step is divided by a norm. What does this change?*
#
# DPS scales its gradient neither by $\sigma_t^2$ nor by the length of the step. After each step it moves against the
# gradient of the squared residual, over the residual's length $\|y - A \hat x_0\|$ and times a constant. That is twice
# the gradient of the length, which does not shrink as the residual does. Others divide the gradient by its own length:
#
# $$ x_s' = x_s + \zeta\, \frac{g}{\|g\|}, \qquad g = \nabla \log \hat p_t(y \mid x_t). \label{eq-normalised-step} $$
#
# Neither push depends on how long the step is, so neither is a `tilt` of the score, and twice the steps are twice the
# push.


# %%
# [eq-normalised-step]
def pushed(kernel, grad, zeta):
    def step_of(x, t, s):
        step, g = kernel(x, t, s), grad(x, t)
        return replace(step, mean=step.mean + zeta * g / g.norm(dim=1, keepdim=True).clamp_min(1e-30))

    return step_of


# %%
ddpm = kernels.ddpm(denoiser, schedule)
for earlier in (0.59, 0.3):
    step = pushed(ddpm, guidance.gradient(guess), 0.05)(few, t, earlier).mean - ddpm(few, t, earlier).mean
    torch.testing.assert_close(step.norm(dim=1), torch.full((20,), 0.05).double())

# %% tags=["hide-input"]
far_off, pushes = {}, ((50, 0.05), (100, 0.05), (200, 0.0125))
print("W2 after  " + "".join(f"{f'{steps} steps of {zeta:g}':>22s}" for steps, zeta in pushes))
for name, log_prob in (("guess", guess), ("exact", exact_answer)):
    for steps, zeta in pushes:
        x = draw(pushed(ddpm, guidance.gradient(log_prob), zeta), start[:500], time_grid(steps), seeded(7))
        far_off[name, steps] = metrics.wasserstein(x, target[:500])
    print(f"{name:10s}" + "".join(f"{far_off[name, steps]:22.2f}" for steps, _ in pushes))
assert 2.1 > far_off["guess", 100] / far_off["guess", 50] > 1.8 and far_off["exact", 100] > 2.3 * far_off["exact", 50]
assert all(abs(far_off[name, 200] - far_off[name, 50]) < 0.15 for name in ("guess", "exact"))

# %% [markdown]
# At 0.05 a step, twice the steps left the samples about twice as far from class 1, with the exact gradient more than
# twice. With the push per unit of time kept, 200 steps of 0.0125 for 50 of 0.05, the distance stays what it was.
#
# ## Deeper: two numbers a noise level
#
# *For you if you thought of temperature scaling: calibrate the guess on labelled data, and guide with the calibrated
# one.*
#
# The [reliability diagram](#deeper-a-test-without-the-truth) says how sure the guess may be. So take the guess's logit
# $\ell$, fit $\varsigma(a_t \ell + b_t)$ at each noise level to noisy labelled data, by logistic regression, and guide
# with that.


# %% tags=["hide-input"]
def fit(logit, hit, rounds=20):
    """a and b of sigmoid(a logit + b), by Newton's method: logit (N,), hit (N,) 0 or 1."""
    design = torch.stack([logit, torch.ones_like(logit)], 1)
    ab, prior = torch.zeros(2, dtype=logit.dtype), torch.eye(2, dtype=logit.dtype)  # weak: the logit may hardly vary
    for _ in range(rounds):
        p = torch.sigmoid(design @ ab)
        curvature = (design * (p * (1 - p))[:, None]).T @ design + prior
        ab = ab + torch.linalg.solve(curvature, design.T @ (hit - p) - ab)
    return ab


def logit_of(log_p):
    return log_p - torch.log(-torch.expm1(log_p.clamp_max(-1e-12)))


nodes = torch.linspace(0.02, 1, 50, dtype=torch.float64)
fitted = torch.stack([
    fit(logit_of(guess(schedule.add_noise(x_0[:4000], eps[:4000], u), u)), (labels[:4000] == label).double()) for u in nodes
])  # fmt: skip


def calibrated(x, t):
    a, b = fitted[(nodes - t).abs().argmin()]
    return torch.nn.functional.logsigmoid(a * logit_of(guess(x, t)) + b)

# %% tags=["hide-input"]
temper = []
for u, x, weights, noised in levels_of(mixture, schedule, times):
    g = noised.class_gradient(x, label)
    temper.append(size(guidance.gradient(calibrated)(x, u) - g, weights) / size(g, weights))
print("calibrated: error / size at t =", ", ".join(f"{u}: {v:.2f}" for u, v in zip(times, temper, strict=True)))
for how in solvers:
    table["calibrated", how] = row(sampled(guided(calibrated), how))
    both = [(table[name, how][1], table[name, how][3]) for name in ("calibrated", "guess")]
    print("{}: far blob {:.2f}, W2 {:.2f}; the guess {:.2f}, {:.2f}".format(how, *both[0], *both[1]))
assert max(temper) < 0.9 and all(table["calibrated", how][1] < 0.25 for how in solvers)
assert table["calibrated", "DDIM"][3] < 0.85 * table["guess", "DDIM"][3]

# %% [markdown]
# The gradient's error falls below its size at all levels, and the samples come nearer, but not near: the far blob is
# still starved. A temperature corrects how sure the verdicts are, on average over all points with one verdict. It knows
# neither at which of them the cloud is wide, nor in which directions.
#
# ## Deeper: the Jensen gap to second order
#
# *For you if you would rather expand than integrate: the next term, and where the series stops being one.*
#
# Expand $p_o$ at the guess to second order, and average over the cloud. The first-order term vanishes, for $\hat x_0$
# is the mean:
#
# $$ p_t(y \mid x) \approx p_o(y \mid \hat x_0) + \frac12\, \mathrm{tr}\big( \mathrm{Cov}(x_0 \mid x_t = x)\, \nabla^2 p_o(y \mid \hat x_0) \big). \label{eq-jensen-gap} $$


# %%
# [eq-jensen-gap]
def to_second_order(mixture, label, schedule, x, t):
    """The clean verdict at the guess, plus half the trace: (N,)."""
    denoiser = mixture.denoiser(schedule)
    x0, cov = denoiser(x, t).x0, clean_cov(denoiser, schedule, x, t)
    p, g = mixture.class_log_prob(x0, label).exp(), mixture.class_gradient(x0, label)
    curvature = mixture.given(label).hessian(x0) - mixture.hessian(x0) + g[:, :, None] * g[:, None, :]  # of p, over p
    return p + p * torch.einsum("nij,nij->n", cov, curvature) / 2


# %% tags=["hide-input"]
small_gaps = []
print("  t   gap of the guess  to second order  outside [0, 1]")
for u, x, weights, noised in levels_of(mixture, schedule, (0.05, 0.1, 0.2, 0.3, 0.5)):
    right, second = noised.class_log_prob(x, label).exp(), to_second_order(mixture, label, schedule, x, u)
    gaps = [float(weights @ (v - right).abs()) for v in (guess(x, u).exp(), second)]
    outside = float(weights @ ((second < 0) | (second > 1)).double())
    print("{:.2f}  {:16.4f}  {:15.4f}  {:14.0%}".format(float(u), *gaps, outside))
    small_gaps.append(gaps[1] / gaps[0])
assert small_gaps[0] < 0.1 and small_gaps[1] < 0.25 and 0.65 < small_gaps[2] < 0.8 and small_gaps[3] > 1 and small_gaps[4] > 2

# %% [markdown]
# At $t = 0.05$ the second term removes nine tenths of the gap. From $t = 0.3$ on it widens the gap, and gives
# probabilities outside of 0 and 1: across a cloud wider than the border, a classifier is no parabola. So the page
# averages over the cloud instead.
#
# ## Deeper: three classes on thin strips
#
# *For you if you doubt four round blobs: six thin ones, three classes, and sharper borders.*


# %% tags=["hide-input"]
def strip(angle, length, width):
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return turn @ torch.diag(torch.tensor([length, width]) ** 2) @ turn.T


shapes = [(1.2, 0.8, 0.15), (-0.5, 0.7, 0.15), (0.4, 0.9, 0.15), (-0.3, 0.5, 0.12), (1.0, 0.8, 0.15), (-0.8, 0.5, 0.12)]
strips = GaussianMixture(
    [0.18, 0.12, 0.25, 0.15, 0.2, 0.1],
    torch.tensor([[-2.0, 0.3], [-0.9, -1.5], [0.1, 0.6], [1.2, 1.9], [1.6, -0.6], [2.6, 0.6]], dtype=torch.float64),
    torch.stack([strip(*shape) for shape in shapes]).double(),
    labels=[0, 0, 1, 1, 2, 2],
)

strip_denoiser = strips.denoiser(schedule)


def strip_questions(asked_for):
    """What is asked for one class: the exact answer, the guess, the average with 12 x 12 and with 24 x 24 points."""
    verdict_of = partial(strips.class_log_prob, label=asked_for)
    return {
        "exact": lambda x, t: strips.noised(schedule.alpha(t), schedule.sigma(t)).class_log_prob(x, asked_for),
        "guess": clean_guess(strip_denoiser, verdict_of),
        "12 x 12": gaussian_cloud(strip_denoiser, verdict_of, schedule),
        "24 x 24": gaussian_cloud(strip_denoiser, verdict_of, schedule, order=24),
    }

# %% tags=["hide-input"]
sharp, close = [], {}
print("class   error / size of the gradient, t = 0.5   W2: truth  DDIM: exact  guess  DDPM: exact  guess")
for asked_for in (1, 2):
    questions = strip_questions(asked_for)
    for u, x, weights, noised in levels_of(strips, schedule, (0.5,), order=8):
        g = noised.class_gradient(x, asked_for)
        wrong = [guidance.gradient(questions[name])(x, u) - g for name in ("guess", "12 x 12", "24 x 24")]
        sharp.append([size(h, weights) / size(g, weights) for h in wrong])
    fresh, other = (strips.given(asked_for).sample(400, seeded(seed))[0] for seed in (98, 99))
    close[asked_for] = [metrics.wasserstein(fresh, other)]
    for kind in solvers.values():
        for name in ("exact", "guess"):
            model = guidance.tilt(strip_denoiser, guidance.gradient(questions[name]), 1.0, schedule)
            x = draw(kind(model, schedule), start[:400], time_grid(100, start=0.99), seeded(7))
            close[asked_for].append(metrics.wasserstein(x, fresh))
    parts = "guess {:2.0f}, 12 x 12 {:.1f}, 24 x 24 {:.1f}".format(*sharp[-1])
    print(f"{asked_for:5d}   {parts:41s}", "{:7.2f} {:12.2f} {:6.2f} {:12.2f} {:6.2f}".format(*close[asked_for]))
assert all(guess_off > 5 * averaged_off > 5 and averaged_off > 1.3 * finer > 1.29 for guess_off, averaged_off, finer in sharp)
assert close[2][2] > 3 and close[2][4] < 1.2 * close[2][3] and all(close[1][k] > 2.4 * close[1][k - 1] for k in (2, 4))

# %% [markdown]
# The guess's gradient is wrong by more than five times the averaged one's error, which itself exceeds the right
# gradient; even twice as many points an axis leave the error as large as the right gradient, or larger. (At $t = 0.1$,
# in the tests, averaging for class 2 is worse than the guess over the noisy points of all classes, and far better over
# its own.) All the same, in the tests DDIM's samples come nearer with the average than with the guess, for both classes.
#
# Through the guess the sampler decides. For class 2, DDIM's points end far outside of the data; DDPM's are about as
# near to it as with the exact classifier. For class 1 neither is.
