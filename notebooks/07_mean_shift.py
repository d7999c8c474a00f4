# %% [markdown]
# # 07 · The mean shift: what does a classifier change in one step?
#
# You have a diffusion model that knows nothing about classes, and a classifier that can name a noisy picture. You want
# pictures of class $y$. Classifier guidance is one line of code: in every denoising step, *move the mean by the variance
# times the gradient of the log-probability of the class*. Which part of that is exact, which is not, and does it matter?
#
# The short answer: **the gradient of an exact classifier, at the current point, has exactly the right direction, however
# long the step. With one variance for all coordinates, only the number in front is wrong.**
#
# **After this chapter you can**
# * derive the shift, and say which part of it is exact;
# * judge a well-known "bug" of the reference implementation, and mend what is wrong in one line;
# * say when none of this matters.
#
# **You need** chapter 00, Bayes' rule, gradients and second derivatives.
#
# *27 minutes to read, 43 more for Deeper, 35 seconds to run, on a laptop, without a GPU or a network connection.*

# %%
import math
from dataclasses import replace

import numpy
import torch

from difflesson import divergence, exercises, guidance, kernels, plane, plotting
from difflesson.samplers import draw, time_grid
from difflesson.schedule import from_betas, vp_linear
from difflesson.steps import FullGaussian, Gaussian

torch.set_num_threads(1)  # the arrays are small: more threads would not be faster

# %% [markdown]
# ## One step, seen from above
#
# The laboratory is the mixture of chapter 00: four blobs in the plane, two of class 0 and two of class 1, under the noise of
# the original DDPM. A step can be computed exactly here, with the label and without it. We ask for class 1.

# %%
mixture, label = plane.four_blobs(), 1
noise = from_betas(torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))
ignoring = kernels.exact(mixture, noise)  # one step, without the label
truth = kernels.exact(mixture, noise, label)  # one step, given the label

# %% tags=["hide-input"]
here, now = torch.tensor([[-0.9, 0.2]], dtype=torch.float64), 0.3
slope = mixture.noised(noise.alpha(now), noise.sigma(now)).class_gradient(here, label)[0]
usual, three, way = kernels.ddpm(mixture.denoiser(noise), noise), {}, []
for then in (0.24, 0.21, 0.12):
    grey, black = ignoring(here, now, then), truth(here, now, then)
    orange = grey.mean[0] + usual(here, now, then).var * slope
    three[then] = grey, black, orange
    way.append(round(float((orange - grey.mean[0]).norm() / (black.mean[0] - grey.mean[0]).norm()), 2))
assert way == [0.63, 0.48, 0.16]

# %% tags=["hide-input"]
with plotting.style():
    figure, axes = plotting.plt.subplots(1, 3, figsize=(7.4, 2.9), sharex=True, sharey=True)
    for panel, (then, (grey, black, orange)) in zip(axes, three.items(), strict=True):
        for step, colour, line in ((grey, "unconditional", "solid"), (black, "truth", "dashed")):
            plotting.density(
                panel, lambda u, step=step: step.log_prob(u[:, None])[:, 0], (-3.7, 2.9, -2.7, 2.9),
                colors=plotting.COLOURS[colour], linestyles=line, linewidths=0.9,
            )
        ray = torch.stack([grey.mean[0], grey.mean[0] + 2 * slope])
        panel.plot(*ray.T, color=plotting.COLOURS["guided"], linewidth=0.9)
        for dot, colour, size in ((grey.mean[0], "unconditional", 5.5), (black.mean[0], "truth", 9), (orange, "guided", 5)):
            panel.plot(*dot, "o", color=plotting.COLOURS[colour], markersize=size, markeredgecolor="white", markeredgewidth=0.6)
        panel.set(xlabel="$x_1$", aspect="equal", title=f"from $t = 0.3$ to $s = {then}$")
    axes[0].set_ylabel("$x_2$")
    for text, where, colour in (("without the label", (-3.5, 2.4), "unconditional"), ("given class 1", (-3.5, 1.9), "truth"),
                                ("gradient", (0.55, -1.5), "guided"), ("small variance", (0.0, 1.9), "guided")):
        axes[0].text(*where, text, color=plotting.COLOURS[colour], fontsize=8)
    axes[0].plot(-0.25, 2.05, "o", color=plotting.COLOURS["guided"], markersize=5)
    shown = plotting.show(figure, "07_one_step", alt="Three panels: a short, a middle and a long step from one point. Grey contours show where the model goes without the label, dashed ones where it should go for class 1. A straight line along the classifier's gradient runs from the grey centre of mass through the large black one in every panel. An orange dot, the usual mean shift with the small variance, lies on that line but stops short: 63, 48 and 16 percent of the way.")
shown

# %% [markdown]
# *Three steps from $x_t = (-0.9, 0.2)$. Contours hold 50, 90 and 99 % of where a step may end, dots are centres of mass. The line
# is the classifier's gradient at $x_t$. In every panel it runs through the black dot, where the centre should be. The
# orange dot is classifier guidance with the smaller of DDPM's two variances: right direction, wrong distance.*
#
# (To drag the point and the length of the step: on the web page just above; in a notebook, `from difflesson import
# interactive`, then `interactive.show("one-step")`.)
#
# **What happens.** One step proposes a *cloud*: all the slightly cleaner points from which the noisy
# $x_t$ may have come (grey). Weigh each by how much it looks like class 1 to the classifier, and you have the cloud you
# want (dashed). It has moved, and changed its shape.
#
# **Why it moves like this.** Across a *small* cloud, the logarithm of the classifier is nearly a straight slope. Weighing a
# bell by a slope makes one flank heavier and the other lighter. So the bell slides uphill, a wide bell further than a
# narrow one: distance is slope times variance. That is classifier guidance. It looks like an approximation
# twice over: across a large cloud the classifier is no straight slope, and the slope was measured at $x_t$, not where the cloud is.
#
# **Why the direction is exact all the same.** A classifier *for noisy points* has done the averaging already: its verdict on $x_t$ is the average of its
# verdicts on the whole cloud. Nudge $x_t$, and the cloud leans the same way: the noise is Gaussian,
# so a nudge weighs the cloud by a slope. The average verdict then rises in proportion to the *covariance of position and class across the cloud*. That is the slope at
# $x_t$. But the same covariance decides how far weighing by the verdicts moves the centre. Only the rate of exchange must be
# right, and the variance of your sampler is not that rate.
#
# ## The step you want
#
# Under noise, $x_t = \alpha_t x_0 + \sigma_t \varepsilon$ with $\alpha_t^2 + \sigma_t^2 = 1$, a mixture stays a mixture. So at each time
# $t$ we know the exact classifier $p_t(y \mid x)$ and its gradient $g_t(x) = \nabla \log p_t(y \mid x)$:

# %%
def noised(mixture, schedule, t):
    return mixture.noised(schedule.alpha(t), schedule.sigma(t))


def grad(x, t):
    return noised(mixture, noise, t).class_gradient(x, label)

# %% [markdown]
# A step goes back from $x_t$ to an earlier $x_s$, $s < t$. Forward, the noise gets from $x_s$ to $x_t$ by shrinking and adding:
#
# $$ x_t = \alpha_{t|s}\, x_s + \sigma_{t|s}\, \varepsilon, \qquad \alpha_{t|s} = \alpha_t / \alpha_s, \qquad
# \alpha_{t|s}^2 + \sigma_{t|s}^2 = 1. \label{eq-forward-transition} $$
#
# The variance of the added noise is the *length* of the step, $\beta = \sigma_{t|s}^2$; so $\alpha_{t|s} = \sqrt{1 - \beta}$.

# %%
t, s = 0.4, 0.3
alpha_ts, sigma_ts = noise.transition(t, s)
torch.testing.assert_close(alpha_ts, noise.alpha(t) / noise.alpha(s))
torch.testing.assert_close(alpha_ts**2 + sigma_ts**2, torch.ones(()).double())

# %% [markdown]
# ## The exact answer: Tweedie for one step
#
# So $x_t$ is a noisy version of $x_s$, as it is of $x_0$. Tweedie's formula, the mean of what lies
# under the noise, then holds for a single step. Adding noise does not look at the label, so given the class $x_t$ has the density
#
# $$ p_t(x \mid y) = \int \mathcal N(x;\, \alpha_{t|s} x_s, \sigma_{t|s}^2 I)\, p_s(x_s \mid y)\, dx_s. $$
#
# Its gradient multiplies the integrand by $(\alpha_{t|s} x_s - x) / \sigma_{t|s}^2$. Divide by $p_t(x \mid y)$, and the integral becomes a mean:
#
# $$ \nabla \log p_t(x \mid y) = (\alpha_{t|s}\, \mathbb E[x_s \mid x, y] - x) / \sigma_{t|s}^2. $$
#
# Solved for the mean,
#
# $$ \mathbb E[x_s \mid x_t, y] = \frac{x_t + \sigma_{t|s}^2\, \nabla \log p_t(x_t \mid y)}{\alpha_{t|s}}
# = \frac{x_t + \beta\, \nabla \log p_t(x_t \mid y)}{\sqrt{1 - \beta}}. \label{eq-one-step-tweedie} $$

# %%
x_t, x_s = torch.randn(2, 5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
score = noised(mixture.given(label), noise, t).score(x_t)
by_hand = (x_t + sigma_ts**2 * score) / alpha_ts
torch.testing.assert_close(kernels.one_step_mean(x_t, score, noise, t, s), by_hand)
torch.testing.assert_close(truth(x_t, t, s).mean, by_hand)

# %% [markdown]
# No small step was assumed. Write it without the label as well, and subtract; $\nabla \log p_t(x \mid y) = \nabla \log p_t(x) + g_t(x)$, so
#
# $$ \mathbb E[x_s \mid x_t, y] - \mathbb E[x_s \mid x_t] = \frac{\beta}{\alpha_{t|s}}\; g_t(x_t). $$
#
# **The label moves the mean of a step by exactly $\beta / \alpha_{t|s}$ times the gradient at $x_t$, at the noise level $t$**. No expansion, no Gaussian step, any length:

# %%
for far, near in [(0.4, 0.39), (0.4, 0.1), (0.9, 0.2), (1.0, 0.0)]:
    shift = truth(x_t, far, near).mean - ignoring(x_t, far, near).mean
    alpha, sigma = noise.transition(far, near)
    torch.testing.assert_close(sigma**2 / alpha * grad(x_t, far), shift)
    length = float(shift.norm(dim=1).mean())
    print(f"from {far} to {near}: moved by {length:.2f}, as the formula says, to rounding")

# %% [markdown]
# ## A slope moves a bell
#
# Where, then, does the usual formula come from? Noise does not look at the label, so Bayes' rule
# for one step is ([chapter 06](06_bayes_decomposition.ipynb#what-the-noisier-point-adds))
#
# $$ p(x_s \mid x_t, y) = p(x_s \mid x_t)\, \frac{p(y \mid x_s)}{p(y \mid x_t)}: \label{eq-bayes-step} $$
#
# the model's cloud, weighed by the classifier. On the mixture, both sides have closed forms:

# %%
left_side = truth(x_t, t, s).log_prob(x_s)
right_side = ignoring(x_t, t, s).log_prob(x_s)
right_side += noised(mixture, noise, s).class_log_prob(x_s, label)
right_side -= noised(mixture, noise, t).class_log_prob(x_t, label)
torch.testing.assert_close(left_side, right_side)

# %% [markdown]
# A Gaussian times a classifier is, in general, no Gaussian. So replace the classifier's logarithm by a
# straight slope, $\log p(y \mid x_s) \approx \mathrm{const} + g^\top x_s$. (Normalisation removes the constant.)
# Let the model's step be a Gaussian with any covariance $\Sigma$, and try $m = \mu + \Sigma g$ as its new centre. Since $\Sigma^{-1} \Sigma g = g$,
#
# $$ (x - m)^\top \Sigma^{-1} (x - m) = (x - \mu)^\top \Sigma^{-1} (x - \mu) - 2\, g^\top (x - \mu) + g^\top \Sigma g. $$
#
# Multiply by $-\frac12$ and exponentiate:
#
# $$ \mathcal N(x;\, \mu, \Sigma)\; e^{\,g^\top x} \;=\; \mathcal N(x;\, \mu + \Sigma g,\, \Sigma)\;
# e^{\,g^\top \mu + \frac12 g^\top \Sigma g}. \label{eq-complete-square} $$
#
# A slope in the exponent *moves* a Gaussian and does nothing else. On a tilted ellipse:

# %%
mu = torch.tensor([[0.5, -1.0]], dtype=torch.float64)
cov = torch.tensor([[[0.6, -0.4], [-0.4, 0.5]]], dtype=torch.float64)
g = torch.tensor([[0.7, 1.1]], dtype=torch.float64)
ellipse = FullGaussian(mu, cov)
product = ellipse.log_prob(x_s[:, None]) + (g * x_s[:, None]).sum(-1)
constant = (g * mu).sum() + (g @ cov[0] @ g.T)[0, 0] / 2
moved = ellipse.tilted(g)
print(f"g = {g[0].numpy()}, moved by {(moved.mean - mu)[0].numpy().round(2)}")
torch.testing.assert_close(product - constant, moved.log_prob(x_s[:, None]))

# %% [markdown]
# The slope points to the upper right, but the bell moves almost straight up: along its long axis, the same slope moves it further.
#
# Classifier guidance is this: where the model steps by $\mathcal N(\mu, \Sigma)$, step by
#
# $$ q(x_s \mid x_t) = \mathcal N\big(\mu + \gamma\, \Sigma\, g,\; \Sigma\big),
# \qquad g = g_t(x_t), \label{eq-mean-shift} $$
#
# where $\gamma = 1$ is the approximation just derived, with the slope taken at $x_t$ and its noise level. DDPM's step has the mean $\mu = \mathbb E[x_s \mid x_t]$ of the
# model, here exact, and one variance for all coordinates. Two are in use: the *large* one, $\beta$, and the *small* one, $\beta\, \sigma_s^2 / \sigma_t^2$.

# %%
free = mixture.denoiser(noise)
small, large = (kernels.ddpm(free, noise, variance) for variance in ("small", "large"))
by_hand = large(x_t, t, s).mean + sigma_ts**2 * grad(x_t, t)
compact = kernels.shift(large, grad, gamma=1.0)(x_t, t, s)
torch.testing.assert_close(compact.mean, by_hand)

# %% [markdown]
# Repeated from noise to data, here in 25 steps, it is Algorithm 1 of [Dhariwal & Nichol (2021)](https://arxiv.org/abs/2105.05233):

# %%
generator = torch.Generator().manual_seed(1)
start = torch.randn(20_000, 2, dtype=torch.float64, generator=generator)
points = draw(kernels.shift(large, grad, gamma=1.0), start, time_grid(25), generator)
errors, class_1 = points.std(0) / math.sqrt(20_000), mixture.given(label)
print(f"mean {points.mean(0).numpy().round(3)}, standard errors {errors.numpy().round(3)}")
print(f"mean of class 1: {(class_1.weights @ class_1.means).numpy().round(3) + 0.0}")

# %% [markdown]
# Close, but off by many standard errors. With one variance for all coordinates, classifier guidance has the right direction and the wrong coefficient: the
# variance of its step is not $\beta / \alpha_{t|s}$. (Our last step, to $s = 0$, adds no noise, so it has no shift. Algorithm 1 shifts there, too: here a small difference.)
#
# ## The right number
#
# The mend is one line. It works whatever the variance, and does not change it:

# %%
def patched(kernel, grad, schedule, gamma):
    def step_of(x, t, s):
        step, (alpha_ts, sigma_ts) = kernel(x, t, s), schedule.transition(t, s)
        coefficient = sigma_ts**2 / alpha_ts  # was: step.var
        return replace(step, mean=step.mean + gamma * coefficient * grad(x, t))

    return step_of


mended, mended_3 = (patched(small, grad, noise, gamma) for gamma in (1.0, 3.0))
torch.testing.assert_close(mended(x_t, 0.9, 0.2).mean, truth(x_t, 0.9, 0.2).mean)
tilted = kernels.ddpm(guidance.tilt(free, grad, 3.0, noise), noise)
torch.testing.assert_close(mended_3(x_t, t, s).mean, tilted(x_t, t, s).mean)

# %% [markdown]
# For every $\gamma$, the patch is DDPM with $\gamma g$ added to the model's *score* (`guidance.tilt`, chapter 10); the last line tries one.
#
# How far off was the number? As a coefficient, the large variance is too small by the factor $\alpha_{t|s}$, the small one by $\alpha_{t|s}\, \sigma_s^2 / \sigma_t^2$:

# %% tags=["hide-input"]
def fractions(schedule, steps, variance):
    """Time, and fraction of the exact shift that the step from it gets; without the last step, which has no shift."""
    grid, found = time_grid(steps), []
    for a, b in zip(grid[:-2], grid[1:-1], strict=True):
        ratio = {"large": 1.0, "small": float(schedule.sigma(b) / schedule.sigma(a)) ** 2}[variance]
        found.append((float(a), float(schedule.transition(a, b)[0]) * ratio))
    return found


for steps, variance in [(250, "large"), (250, "small"), (25, "large"), (25, "small")]:
    first, middle, last = (fractions(noise, steps, variance)[i][1] for i in (0, steps // 2, -1))
    print(f"{steps:3d} steps, {variance}: {first:.2f} of the exact shift at first, {middle:.2f} in the middle, {last:.2f} at last")
assert round(max(share for _, share in fractions(noise, 25, "small")), 1) == 0.8

# %% tags=["hide-input"]
with plotting.style():
    figure, panel = plotting.plt.subplots(figsize=(5.8, 3.1))
    for variance, colour in (("large", "conditional"), ("small", "guided")):
        for steps, width in ((25, 2.2), (250, 1.0)):
            panel.plot(*zip(*fractions(noise, steps, variance), strict=True), color=plotting.COLOURS[colour], linewidth=width)
    panel.axhline(1, color=plotting.COLOURS["truth"], linewidth=0.8, linestyle="dotted")
    panel.text(0.04, 1.03, "the exact coefficient")
    panel.text(1.01, 0.67, "25 steps", va="center")
    panel.text(1.01, 0.96, "250 steps", va="center")
    panel.text(0.44, 0.9, "large variance", color=plotting.COLOURS["conditional"])
    panel.text(0.22, 0.5, "small variance", color=plotting.COLOURS["guided"])
    panel.set(xlabel="time $t$ (0 is data)", ylabel="fraction of the exact shift", ylim=(0, 1.12), xlim=(0, 1.0))
    shown = plotting.show(figure, "07_coefficient", alt="Fraction of the exact shift over time for the large and the small variance. With 25 steps both start at two thirds at t = 1; the large one rises to one at t = 0, the small one to 0.8 and then falls below one third. With 250 steps both are near one, but the small one falls steeply at the very end.")
shown

# %% [markdown]
# *The fraction of the exact shift that a guided step gets. With 25 steps, a
# third of the first shift is missing; with the small variance, half or more of the last ones, too.*
#
# ## The samplers, compared with the truth
#
# Dhariwal & Nichol's *derivation* takes the gradient at the mean $\mu$ of the step and at its noise level $s$; their Algorithm 1
# and their code take it at $x_t$ and $t$. This was reported as a bug
# ([guided-diffusion, number 51](https://github.com/openai/guided-diffusion/issues/51)). An author agreed, and added that with the derivation's $(\mu, s)$
# nothing changed noticeably. Another library was then repaired to $(\mu, t)$
# ([denoising-diffusion-pytorch, number 277](https://github.com/lucidrains/denoising-diffusion-pytorch/pull/277)). Compare means,
# covariances, and the *class mass* $\mathbb E[p(y \mid x)]$, how sure the exact classifier is of the points (0.92 for the true class).

# %% tags=["hide-input"]
def moments(x, weights):
    mean = weights @ x
    cov = (weights[:, None] * (x - mean)).T @ (x - mean)
    return mean, cov, weights @ mixture.class_log_prob(x, label).exp()


true = moments(*divergence.mixture_nodes(mixture.given(label), order=40))


def errors_of(kernel, steps, count=10_000, seed=0):
    """Of a sampler: mean and covariance (norms of the errors), class mass (signed)."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 2, dtype=torch.float64, generator=generator)
    x = draw(kernel, x, time_grid(steps), generator)
    got = moments(x, torch.full((count,), 1 / count, dtype=torch.float64))
    return [float(v) for v in ((got[0] - true[0]).norm(), (got[1] - true[1]).norm(), got[2] - true[2])]

# %% tags=["hide-input"]
places = {"x_t, t": ("x", "t"), "mu, t": ("mu", "t"), "mu, s": ("mu", "s")}
samplers = {f"{p}, small": kernels.shift(small, grad, 1.0, at=a, time=b) for p, (a, b) in places.items()}
samplers["exact coefficient, small"] = patched(small, grad, noise, 1.0)
samplers["x_t, t, large"] = kernels.shift(large, grad, 1.0)
samplers["exact coefficient, large"] = patched(large, grad, noise, 1.0)
samplers["the exact step"] = truth
run = {name: errors_of(kernel, 25) for name, kernel in samplers.items()}
print(f"25 steps, errors of {'':9s}mean  covariance  class mass  (chance: {math.sqrt(float(true[1].trace()) / 10_000):.3f})")
for name, row in run.items():
    print("{:26s} {:6.3f}      {:6.3f}      {:+.3f}".format(name, *row))

# %% tags=["remove-cell"]
assert round(float(true[2]), 2) == 0.92 and round(run["exact coefficient, small"][2], 2) == 0.02
assert run["the exact step"][0] < 0.03 and all(run[f"exact coefficient, {v}"][0] < 0.03 for v in ("small", "large"))
cut = {place: 1 - run[f"{place}, small"][0] / run["x_t, t, small"][0] for place in places}
assert 0.25 < cut["mu, s"] < 0.45 and cut["mu, t"] < 0.1
assert run["x_t, t, large"][0] < run["x_t, t, small"][0] / 2
assert run["exact coefficient, large"][1] < run["exact coefficient, small"][1] / 2
assert all(run[f"{place}, small"][2] < -0.04 for place in places) and run["exact coefficient, small"][2] > 0.01
assert run["x_t, t, large"][0] > 0.08
assert 0.85 < run["exact coefficient, small"][1] / run["x_t, t, small"][1] < 1 and round(run["exact coefficient, small"][2], 2) == 0.02
assert round(float(true[2]), 2) == 0.92 and round(run["x_t, t, small"][0], 2) == 0.26

# %% tags=["hide-input"]
counts = (10, 25, 75, 250)
curves = {
    "x_t, t, small": (r"$x_t, t$: Algorithm 1 and code", "guided", "o", 1.0),
    "mu, t, small": (r"$\mu, t$: the library's repair", "other", "s", 1.0),
    "mu, s, small": (r"$\mu, s$: the derivation", "conditional", "D", 1.0),
    "exact coefficient, small": ("$x_t, t$, exact coefficient", "truth", "o", 1.0),
}
found = {name: [errors_of(samplers[name], n, count=4000)[0] for n in counts] for name in curves}
resolution = math.sqrt(float(true[1].trace()) / 4000)
for name, values in found.items():
    print(f"{name:26s}", "  ".join(f"{n}: {v:.3f}" for n, v in zip(counts, values, strict=True)))
print(f"by chance alone: about {resolution:.3f}")
with plotting.style():
    figure, panel = plotting.plt.subplots(figsize=(6.4, 3.3))
    panel.axhspan(0, 2 * resolution, color="0.9", zorder=0)
    panel.text(10, 1.75 * resolution, "chance", va="top", fontsize=8, color="0.4")
    for name, (text, colour, mark, width) in curves.items():
        panel.loglog(counts, found[name], mark + "-", color=plotting.COLOURS[colour], markersize=4.5, linewidth=width, label=text)
    panel.set(xlabel="steps", ylabel="error of the mean", xticks=counts, xticklabels=counts, ylim=(0.001, 1))
    panel.minorticks_off()
    panel.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    shown = plotting.show(figure, "07_samplers", alt="Error of the mean of a guided sampler over the number of steps, 10 to 250, small variance. Algorithm 1 and the library's repair are nearly one line, falling like one over the number of steps. The derivation's line lies lower by two fifths at 10 steps and by a third at 25 and 75, until all meet at the level of chance at 250 steps. The exact coefficient lies within the shaded band of chance.")
shown

# %% [markdown]
# *Error of the mean of 4,000 points, small variance. Grey: up to twice what chance gives; an error within it may be chance.*

# %% tags=["remove-cell"]
assert found["x_t, t, small"][-1] < 0.06 and abs(found["x_t, t, small"][-1] - found["mu, s, small"][-1]) < resolution
assert all(value < 2 * resolution for value in found["exact coefficient, small"][1:])
assert 0.9 < math.log(found["x_t, t, small"][0] / found["x_t, t, small"][2]) / math.log(counts[2] / counts[0]) < 1.3
assert all(0.5 < a / b < 0.7 for a, b in zip(found["mu, s, small"][:3], found["x_t, t, small"][:3], strict=True))
assert found["x_t, t, small"][2] > 2.5 * resolution

# %% [markdown]
# **The verdict.** With 25 steps, Algorithm 1 with the small variance leaves a large error of the mean. The derivation's $(\mu, s)$ removes over a third of
# it, the library's repair $(\mu, t)$ less than a tenth. The exact coefficient at $x_t, t$ removes all that the points resolve, with either
# variance. On this mixture, **the gradient was taken at the right place, and multiplied by the wrong number.** For class 0 the derivation removes
# a quarter, and the repair makes it worse (in the tests). With the original 250 steps,
# the places differ by less than the chance of 4,000 points: *nothing changed noticeably* fits.
#
# Dhariwal & Nichol's networks learn a variance *for each pixel*; then the shift is not parallel to $g$ (think of the ellipse). Here it is turned by less than
# half a degree on average, and the patch mends that, too (Deeper). Exact is the mean of each *step*; that of the samples is an observation. And their shape does
# not come out right: with the small variance, the points are now *too* sure of their class ($+0.02$), and their covariance is hardly better.
# By the divergence of their paths the samplers rank otherwise (Deeper).
#
# ## Pitfall: the standard deviation
#
# A step is written `mean + std * noise`. It is tempting to put the gradient into the bracket, `mean + std * (noise + grad)`. But $T$ shifts of size $1 / \sqrt T$ add up like $\sqrt T$.

# %%
def mistaken(x, t, s):
    step = large(x, t, s)
    return Gaussian(step.mean + step.var.sqrt() * grad(x, t), step.var)


trial = {"standard deviation": mistaken, "variance": kernels.shift(large, grad, 1.0)}
pitfall = {}
for name, kernel in trial.items():
    pitfall[name] = [errors_of(kernel, n, count=4000) for n in (10, 25, 100)]
print("mean off by, class mass      10 steps    25 steps   100 steps")
for name, rows in pitfall.items():
    print(f"{name:25s}", *(f"{off:6.2f} {mass + float(true[2]):4.2f}" for off, _, mass in rows))

# %% tags=["remove-cell"]
wrong, good = pitfall["standard deviation"], pitfall["variance"]
assert wrong[0][0] < good[0][0] / 2 and wrong[0][0] < wrong[1][0] < wrong[2][0] and good[0][0] > good[1][0] > good[2][0]
assert all(mass + float(true[2]) > 0.915 for _, _, mass in wrong) and wrong[2][2] > wrong[1][2] > wrong[0][2]

# %% [markdown]
# At ten steps the mistake looks *better* than the usual formula, and the classifier praises it throughout. More steps detect it: a right method gets better, this
# one worse. So does halving a very short step: the shift must halve. Switching the noise off does *not*: both shifts vanish.

# %% tags=["hide-input"]
quiet, off = kernels.ddim(free, noise), kernels.shift(kernels.ddim(free, noise), grad, gamma=1.0)
print("noise off: shift gone,", bool(torch.equal(off(x_t, 0.4, 0.3).mean, quiet(x_t, 0.4, 0.3).mean)))
for name, kernel in trial.items():
    sizes = [(kernel(x_t, 0.4, 0.4 - h).mean - large(x_t, 0.4, 0.4 - h).mean).norm() for h in (2e-3, 1e-3)]
    print(f"{name:18s}: shift of a step over that of half the step {float(sizes[0] / sizes[1]):.2f}")

# %% [markdown]
# ## Does it matter?
#
# A real classifier's gradient may be too short, too long or turned. Multiply ours by $k$, at $\gamma = 1$:

# %% tags=["hide-input"]
def with_gradient(factor, degrees=0.0):
    """The classifier's gradient, multiplied and turned: an imperfect classifier."""
    c, d = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turn = factor * torch.tensor([[c, -d], [d, c]], dtype=torch.float64)
    return lambda x, t: grad(x, t) @ turn.T


def versions(gradient, gamma=1.0):
    return {
        "variance, small": kernels.shift(small, gradient, gamma),
        "variance, large": kernels.shift(large, gradient, gamma),
        "exact coefficient": patched(small, gradient, noise, gamma),
    }


factors = (0.7, 0.85, 1.0, 1.15, 1.3, 1.45, 1.6)
bent = [{n: errors_of(k, 25, 4000)[0] for n, k in versions(with_gradient(f)).items()} for f in factors]
turned = {d: {n: errors_of(k, 25, 4000)[0] for n, k in versions(with_gradient(1.0, d)).items()} for d in (10, 20, -20)}
looked_at = {f"multiplied by {f}": row for f, row in zip(factors, bent, strict=True) if f in (0.7, 1.0, 1.3)}
for what, row in (looked_at | {f"turned by {d} degrees": row for d, row in turned.items()}).items():
    print(f"gradient {what}:", ", ".join(f"{name} {value:.2f}" for name, value in row.items()))

# %% tags=["hide-input"]
with plotting.style():
    figure, panel = plotting.plt.subplots(figsize=(5.8, 3.2))
    for name, colour in {"variance, small": "guided", "variance, large": "conditional", "exact coefficient": "truth"}.items():
        panel.plot(factors, [row[name] for row in bent], "o-", markersize=4, color=plotting.COLOURS[colour], label=name)
    panel.set(xlabel="the classifier's gradient is multiplied by $k$", ylabel="error of the mean, 25 steps", ylim=(0, 0.6))
    panel.legend(fontsize=8)
    shown = plotting.show(figure, "07_scale", alt="Error of the mean over the factor k of the classifier's gradient, 25 steps. Three V-shaped curves, lowest at k = 1 for the exact coefficient, 1.15 for the large variance, 1.45 for the small one. At k = 0.7 the small variance is twice as far off as the exact coefficient, at k = 1.3 half as far.")
shown

# %% [markdown]
# *Error of the mean of 4,000 points. The two variances are at their best with a gradient that is too long.*
#
# With 25 steps, a wrong coefficient acts like a wrong scale. The small variance errs at $k = 1$ as the exact coefficient does at 0.7, and is best at $1.45 \approx 1 / 0.7$. By the mean, it makes about $0.7\, \gamma$ of $\gamma$ here.
# That matters when $\gamma$ must mean the same for another number of steps, variance or sampler. Tuning by eye, for one sampler, absorbs it.
#
# A gradient that is 30 % too short costs as much as the small variance does, one that is turned by 20 degrees costs more. If it is too short, the two errors add, and the patch still halves their sum. If it is turned, they may hide each other: one way all three err much alike, the other way the patch is a little ahead.

# %% tags=["remove-cell"]
best = {name: factors[min(range(len(factors)), key=lambda i, name=name: bent[i][name])] for name in bent[0]}
assert best == {"exact coefficient": 1.0, "variance, large": 1.15, "variance, small": 1.45}
assert abs(bent[0]["exact coefficient"] - bent[2]["variance, small"]) < 0.05
assert turned[20]["exact coefficient"] > bent[2]["variance, small"] > turned[10]["exact coefficient"]
weak, strong = bent[0], bent[4]
assert weak["exact coefficient"] < 0.6 * weak["variance, small"] and strong["variance, small"] < 0.6 * strong["exact coefficient"]
assert 0.2 < weak["variance, small"] - weak["exact coefficient"] and max(turned[20].values()) < 1.3 * min(turned[20].values())
assert turned[-20]["exact coefficient"] < min(0.9 * turned[-20]["variance, small"], turned[-20]["variance, large"])

# %% [markdown]
# ## In practice
#
# | if you have | do | because |
# |---|---|---|
# | DDPM, 75 steps or fewer | `mean + gamma * beta / alpha_ts * grad` | each step's mean is exact at $\gamma = 1$; at 25 steps, small variance, the error falls from 0.26 to chance |
# | a learned variance for each pixel | the same line; the variance serves the noise alone | mends the direction, too |
# | DDIM, or another sampler without noise | add $\gamma g$ to the score, `eps - gamma * sigma * grad` | a shift by the variance is zero, and the line above would push up to twice as far |
# | 250 steps, or $\gamma$ tuned by eye for one sampler | leave it | lost in the chance of 4,000 points here, or absorbed |
# | a doubt about your code | double the steps; halve a very short step | the error must fall, the shift must halve |
#
# In the reference implementation (its `betas` are those of the shortened schedule) the patch to `condition_mean` reads
#
# ```python
# beta = _extract_into_tensor(self.betas, t, x.shape)
# new_mean = p_mean_var["mean"].float() + beta / (1 - beta).sqrt() * gradient.float()
# ```
#
# *Limits:* two dimensions, an exact model and classifier, one mixture, no pictures (those: [chapter 14](14_classifier_guidance_on_digits.ipynb)).

# %% tags=["remove-cell"]
in_score = kernels.ddim(guidance.tilt(free, grad, 1.0, noise), noise)(x_t, 0.4, 0.36).mean - quiet(x_t, 0.4, 0.36).mean
twice = patched(quiet, grad, noise, 1.0)(x_t, 0.4, 0.36).mean - quiet(x_t, 0.4, 0.36).mean
alpha, _ = noise.transition(0.4, 0.36)
torch.testing.assert_close(twice, (1 + alpha * noise.sigma(0.36) / noise.sigma(0.4)) * in_score)  # at most 2

# %% [markdown]
# ## Exercises
#
# Type where it says "your turn", run the cell, then the check below it. 7.4 and 7.5 stand in Deeper.

# %% [markdown]
# ### Exercise 7.1 (easy): the shift
#
# A Gaussian with mean `mean`, shape `(d,)`, and covariance `cov`, `(d, d)`, is multiplied by $e^{\gamma\, g^\top x}$ and normalised.
# Return the mean of the result.
#
# <details><summary>Hint</summary>
#
# Equation $\eqref{eq-complete-square}$ with $\gamma g$ in place of $g$. The covariance is a matrix.
#
# </details>

# %% tags=["exercise"]
def shifted_mean(mean, cov, g, gamma):
    ### BEGIN SOLUTION
    return mean + gamma * cov @ g
    ### END SOLUTION


# %%
exercises.check("7.1", shifted_mean)

# %% [markdown]
# ### Exercise 7.2 (easy): the exact coefficient
#
# $\mathbb E[x_s \mid x_t, y] - \mathbb E[x_s \mid x_t] = c\, g_t(x_t)$. Return $c$, given the numbers $\alpha_t < \alpha_s$ of a
# variance-preserving schedule.
#
# <details><summary>Hint</summary>
#
# Write $\eqref{eq-one-step-tweedie}$ with and without the label. What is $\alpha_{t|s}$ in terms of the two numbers, and what
# follows for $\beta$? (Some codes call the *square* of our $\alpha_t$ `alpha`, or `alphas_cumprod`.)
#
# </details>

# %% tags=["exercise"]
def exact_shift_coefficient(alpha_t, alpha_s):
    ### BEGIN SOLUTION
    alpha_ts = alpha_t / alpha_s
    return (1 - alpha_ts**2) / alpha_ts
    ### END SOLUTION


# %%
exercises.check("7.2", exact_shift_coefficient)

# %% [markdown]
# ### Exercise 7.3 (medium): the covariance given the label
#
# `at_s` is a `GaussianMixture`, the distribution at time $s$, in $d$ dimensions; `x` are points at time $t$, shape `(N, d)`, with
# $x_t = \alpha_{t|s}\, x_s + \sigma_{t|s}\, \varepsilon$ and the number `alpha_ts`. Return the covariance of $p(x_s \mid x_t, y)$ at each point,
# shape `(N, d, d)`. The mixture's methods `noised(alpha, sigma)`, `given(label)` and `hessian(x)` (second derivatives of the log-density) help; `sigma` is a standard deviation.
#
# <details><summary>Hint</summary>
#
# Solve $\eqref{eq-one-step-tweedie}$ for the gradient and differentiate it once more. The derivative of $\mathbb E[x_s \mid x_t, y]$ in $x_t$ is
# $\alpha_{t|s}\, \mathrm{Cov}(x_s \mid x_t, y) / \sigma_{t|s}^2$. All densities are those at time $t$, given the label; `noised` gets you from $s$ to $t$.
#
# </details>

# %% tags=["exercise"]
def covariance_given_label(at_s, x, label, alpha_ts):
    ### BEGIN SOLUTION
    var = 1 - alpha_ts**2
    at_t = at_s.noised(alpha_ts, math.sqrt(var)).given(label)
    identity = torch.eye(x.shape[1], dtype=x.dtype)
    return var / alpha_ts**2 * (identity + var * at_t.hessian(x))
    ### END SOLUTION


# %%
exercises.check("7.3", covariance_given_label)

# %% [markdown]
# ## Remember
#
# 1. With an exact classifier, the label moves the mean of a step by *exactly* $\beta / \alpha_{t|s}$ times the gradient at $x_t$, however long the step, $\eqref{eq-one-step-tweedie}$.
#    Where one variance serves all coordinates, the place of the gradient was never wrong; the coefficient was. With a variance for each coordinate, the direction is off as well.
# 2. A step given the label is the model's step, weighed by the classifier, $\eqref{eq-bayes-step}$: exact. A slope in the exponent moves a Gaussian by $\Sigma g$,
#    $\eqref{eq-complete-square}$: classifier guidance, right for short steps.
# 3. `mean + gamma * beta / alpha_ts * grad` makes the mean of a DDPM step exact at $\gamma = 1$, whatever its variance. Without noise, add the gradient to the score.
# 4. On our mixture the coefficient matters with few steps (at 25, by the mean, the small variance acts like $0.7\, \gamma$); at 250, chance hides it in 4,000 points.
# 5. The shift must halve when a very short step is halved. By the standard deviation it does not: on our mixture that mistake looks better than the usual formula at ten steps, and gets worse with more.
#
# **Where it comes from.** The shift, Algorithm 1: [Dhariwal & Nichol (2021)](https://arxiv.org/abs/2105.05233), section 4.1, after
# [Sohl-Dickstein et al. (2015)](https://arxiv.org/abs/1503.03585). The variances: [Ho et al. (2020)](https://arxiv.org/abs/2006.11239), section 3.2; learned ones:
# [Nichol & Dhariwal (2021)](https://arxiv.org/abs/2102.09672). Tweedie's formula: [Efron (2011)](https://doi.org/10.1198/jasa.2011.tm11181). The code:
# [gaussian_diffusion.py](https://github.com/openai/guided-diffusion/blob/main/guided_diffusion/gaussian_diffusion.py).
#
# ## Deeper: the opening's argument in symbols
#
# *A second proof of the exact shift, without scores: for those who want the covariance of the opening as a formula.*
#
# Let $C$ be the covariance of $x_s$ and $p(y \mid x_s)$ over the model's cloud $p(x_s \mid x_t)$. Weighing the cloud by $p(y \mid x_s) / p(y \mid x_t)$, as in $\eqref{eq-bayes-step}$, moves its mean by $C / p(y \mid x_t)$. And the
# noise is Gaussian, so differentiating the average $p(y \mid x_t) = \mathbb E[p(y \mid x_s) \mid x_t]$ in $x_t$ brings down $\alpha_{t|s}\, x_s / \beta$ less its mean: the gradient is $\alpha_{t|s}\, C / \beta$, and $g_t = \alpha_{t|s}\, C / \big(\beta\, p(y \mid x_t)\big)$.
# The first is $\beta / \alpha_{t|s}$ times the second. (For any function of the clean point: [chapter 12](12_when_the_classifier_only_knows_clean_data.ipynb#why-a-slope-at-one-point-or-the-slopes-of-a-cloud).)
#
# ## Deeper: the shape of a step, and its price
#
# *For those who want more than the mean: how wide the exact step is, and what is left of the divergence after a shift, with its constant.*
#
# ### How wide the step is
#
# What is the true variance? Differentiate $\nabla \log p_t = (\alpha_{t|s}\, \mathbb E[x_s \mid x, y] - x) / \sigma_{t|s}^2$ once more.
# Under the integral, the derivative of $\mathbb E[x_s \mid x, y]$ in $x$ is $\alpha_{t|s}\, \mathrm{Cov}(x_s \mid x, y) / \sigma_{t|s}^2$. Solve for the covariance, with
# $H_t$ for the matrix of second derivatives of $\log p_t(x \mid y)$:
#
# $$ \mathrm{Cov}(x_s \mid x_t, y) = \frac{\beta}{\alpha_{t|s}^2} \big( I + \beta\, H_t(x_t) \big).
# \label{eq-second-order} $$

# %%
H = noised(mixture.given(label), noise, t).hessian(x_t)
by_hand = (sigma_ts / alpha_ts) ** 2 * (torch.eye(2) + sigma_ts**2 * H)
torch.testing.assert_close(kernels.moment_matched(mixture, noise, label)(x_t, t, s).cov, by_hand)
torch.testing.assert_close(truth(x_t, t, s).cov, by_hand)

# %% [markdown]
# DDPM's two variances are this for two data sets. For standard normal data $H_t = -I$, and the
# covariance is $\beta I$: the large variance. For a data set of one point, $H_t = -I / \sigma_t^2$. By $\eqref{eq-forward-transition}$, noise
# adds up as $\sigma_t^2 = \alpha_{t|s}^2 \sigma_s^2 + \beta$, so $1 - \beta / \sigma_t^2 = \alpha_{t|s}^2 \sigma_s^2 / \sigma_t^2$, and the covariance is the small variance times $I$:
#
# $$ \mathrm{Var}(x_s \mid x_t, x_0) = \frac{\sigma_s^2}{\sigma_t^2}\, \beta. \label{eq-posterior-variance} $$

# %%
compact = kernels.posterior_variance(noise, t, s)
torch.testing.assert_close((noise.sigma(s) / noise.sigma(t)) ** 2 * sigma_ts**2, compact)
torch.testing.assert_close(compact, (sigma_ts / alpha_ts) ** 2 * (1 - sigma_ts**2 / noise.sigma(t) ** 2))
print(f"large {sigma_ts**2:.3f}, small {compact:.3f}, exact coefficient {sigma_ts**2 / alpha_ts:.3f}")

# %% [markdown]
# ### How large is what is left
#
# Measure a step by its divergence from the truth, $\mathrm{KL}(p \,\|\, q) = \mathbb E_p[\log p - \log q]$ with $p = p(x_s \mid x_t, y)$ and $q$ the
# kernel's answer, in nats (natural logarithms), averaged over $x_t$. But first predict it, for one $x_t$, a fixed $t$ and $\beta \ll \sigma_t^2$. Two Gaussians of variance $\beta$ whose means differ by $\delta$ are $|\delta|^2 / 2 \beta$ apart. If you ignore the label, $\delta \approx \beta g$:
#
# $$ \mathrm{KL}_{\text{no shift}} = \frac{\beta}{2}\, |g|^2 + O(\beta^2). \label{eq-kl-no-shift} $$
#
# With a shift by either variance, $\delta$ is of order $\beta^2$: both are $\beta / \alpha_{t|s}$ up to $\beta^2$. That costs only $(\beta^2)^2 / \beta = \beta^3$. What remains is the shape: by
# $\eqref{eq-second-order}$ the true covariance is $\beta\,(I + \beta\,(I + H_t))$ up to $\beta^3$; the large variance is $\beta$, and the small one,
# $\frac{\beta}{1 - \beta} (1 - \beta / \sigma_t^2)$, is $\beta\,(1 + \beta\,(1 - 1 / \sigma_t^2))$. They miss by $\beta^2 (H_t + I)$ and $\beta^2 (H_t + I / \sigma_t^2)$. Covariances $\beta I$ and
# $\beta (I + E)$ are $\frac14 |E|^2$ apart to leading order, with the squares of all entries summed. Hence
#
# $$ \mathrm{KL}_{\text{shift}} = \frac{\beta^2}{4}\, \big| H_t + c\, I \big|^2 + O(\beta^3), \qquad
# c = 1 \text{ (large variance)}, \quad c = 1 / \sigma_t^2 \text{ (small variance)}. \label{eq-kl-shift} $$

# %%
nodes, weights = divergence.mixture_nodes(noised(mixture.given(label), noise, t), order=8)
gaps = [10 ** (-k / 2) for k in range(3, 12)]  # t - s
betas = [noise.transition(t, t - gap)[1] ** 2 for gap in gaps]
slopes, curvature = grad(nodes, t), noised(mixture.given(label), noise, t).hessian(nodes)
predicted = {
    "no shift, large": divergence.leading_kl_without_shift(slopes, betas[-1]),
    "x_t, t, large": divergence.leading_kl_with_shift(curvature, betas[-1], 1.0),
    "x_t, t, small": divergence.leading_kl_with_shift(curvature, betas[-1], 1 / noise.sigma(t) ** 2),
}

# %%
def losses_of(kernel):
    return [float(weights @ divergence.kl(truth(nodes, t, t - gap), kernel(nodes, t, t - gap))) for gap in gaps]


samplers |= {"no shift, large": large, "no shift, small": small}
losses = {name: losses_of(samplers[name]) for name in predicted}
for name, values in losses.items():
    order = math.log(values[-5] / values[-1]) / math.log(betas[-5] / betas[-1])
    ratio = values[-1] / float(weights @ predicted[name])
    print(f"{name:15s}  measured / predicted {ratio:.4f}, falls like beta^{order:.2f}")

# %% tags=["remove-cell"]
beta = betas[-1]
torch.testing.assert_close(predicted["no shift, large"], beta / 2 * slopes.square().sum(1))
excess = {"x_t, t, large": curvature + torch.eye(2), "x_t, t, small": curvature + torch.eye(2) / noise.sigma(t) ** 2}
for name, matrix in excess.items():
    torch.testing.assert_close(predicted[name], beta**2 / 4 * matrix.square().sum((1, 2)))
assert all(abs(losses[name][-1] / float(weights @ predicted[name]) - 1) < 1e-3 for name in predicted)
assert [round(losses[name][-3] / losses[name][-1]) for name in predicted] == [10, 100, 100]  # steps ten times as long

# %% [markdown]
# No constant was fitted. Ten times shorter steps cost 10 times less without the shift, 100 times less with it; a Gaussian with the exact mean *and*
# covariance gets to $\beta^3$. The place of the gradient does not appear: it moves only the mean, by order $\beta^2$.

# %% tags=["hide-input"]
losses["exact mean and covariance"] = losses_of(kernels.moment_matched(mixture, noise, label))
with plotting.style():
    figure, panel = plotting.plt.subplots(figsize=(6.2, 3.6))
    looks = {"no shift, large": ("no shift", "unconditional"), "x_t, t, small": ("shift, small variance", "guided"),
             "x_t, t, large": ("shift, large variance", "conditional"), "exact mean and covariance": ("exact mean and covariance", "other")}
    for name, (text, colour) in looks.items():
        values = losses[name]
        panel.loglog(betas, values, "o", color=plotting.COLOURS[colour], markersize=4.5)
        lift = {"no shift": 12, "shift, small variance": 40, "shift, large variance": 0.07}.get(text, 0.1)
        panel.text(5e-3, values[4] * lift, text, color=plotting.COLOURS[colour], va="center", ha="left" if lift < 1 else "right")
        if name in predicted:
            line = [float(weights @ predicted[name]) * float(b / betas[-1]) ** (1 if text == "no shift" else 2) for b in betas]
            panel.loglog(betas, line, "--", color=plotting.COLOURS["truth"], linewidth=0.9, zorder=0)
    panel.set(xlabel=r"length of the step, $\beta$", ylabel="KL from the exact step [nats]", xlim=(1.5e-5, 0.4))
    panel.set_xticks([1e-4, 1e-3, 1e-2, 1e-1])
    panel.minorticks_off()
    shown = plotting.show(figure, "07_orders", alt="Log-log plot of the divergence of one step over its length. Four straight rows of dots: slope one without a shift, slope two with a shift, where the small variance lies above the large one, slope three with exact mean and covariance. Dashed predictions run through the first three rows.")
shown

# %% [markdown]
# *Divergence of one step from the truth, from $t = 0.4$. Dots are measured, dashed lines predicted: for short steps, so the longest lies above them.*

# %% tags=["remove-cell"]
for name in predicted:
    grown = [losses[name][i] / losses[name][-1] / float(betas[i] / betas[-1]) ** (1 if name == "no shift, large" else 2) for i in (0, 3)]
    assert grown[0] > 1.08 and abs(grown[1] - 1) < 0.05
assert losses["x_t, t, small"][-1] > 2 * losses["x_t, t, large"][-1]
assert abs(math.log(losses["exact mean and covariance"][-5] / losses["exact mean and covariance"][-1]) / math.log(betas[-5] / betas[-1]) - 3) < 0.05

# %% [markdown]
# ## Deeper: which of the two variances
#
# *For those who choose the variance: why pictures may want the small one, where this mixture wants the large.*
#
# Along a principal axis $u$ of Gaussian data, with variance $v$, the covariance $\eqref{eq-second-order}$ has $u^\top H_t u = -1 / (\alpha_t^2 v + \sigma_t^2)$. For $v = 1$ that is $-1$, and the large variance is right; for
# $\alpha_t^2 v \ll \sigma_t^2$ it is $-1 / \sigma_t^2$, and the small one is. In between, and near the data, the two are far apart:

# %%
far, near = 0.08, 0.04
sizes = kernels.posterior_variance(noise, far, near), noise.transition(far, near)[1] ** 2
for v in (1.0, 0.3, 0.03, 0.003, 0.0003):
    curve = -1 / (noise.alpha(far) ** 2 * v + noise.sigma(far) ** 2)
    exact_variance = sizes[1] / (1 - sizes[1]) * (1 + sizes[1] * curve)
    over = [float(exact_variance / size) for size in sizes]
    print(f"v = {v:g}: true variance over the small one {over[0]:.2f}, over the large one {over[1]:.2f}")

# %% tags=["remove-cell"]
assert [round(float(v), 2) for v in (mixture.variances.min(), mixture.variances.max())] == [0.14, 0.66]

# %% [markdown]
# The blobs have $v$ between 0.14 and 0.66. How many directions of a picture have so little left to vary, this page does not answer.
#
# ## Deeper: the time term
#
# *For readers who met the shift as an expansion in the point and in time ([Su (2022)](https://spaces.ac.cn/archives/9257)), and wonder where the time went.*
#
# Short steps mean that $(x_s, s)$ is near $(x_t, t)$, so expand the logarithm of the classifier in both:
#
# $$ \log p_s(y \mid x_s) \approx \log p_t(y \mid x_t) + (x_s - x_t) \cdot \nabla \log p_t(y \mid x_t)
# + (s - t)\, \partial_t \log p_t(y \mid x_t). \label{eq-taylor} $$
#
# `guidance.linearise` is this line, with automatic derivatives. Against finite differences, on a schedule that is smooth in time (DDPM's table has a kink
# at every step of the table):

# %%
smooth = vp_linear()


def log_class(x, time):
    return noised(mixture, smooth, time).class_log_prob(x, label)


h = 1e-5
rate_of_change = (log_class(x_t, t + h) - log_class(x_t, t - h)) / (2 * h)
slope_at_x = noised(mixture, smooth, t).class_gradient(x_t, label)
by_hand = log_class(x_t, t) + ((x_s - x_t) * slope_at_x).sum(1) + (s - t) * rate_of_change
expansion = guidance.linearise(log_class, x_t, t)
torch.testing.assert_close(expansion(x_s, s), by_hand, atol=1e-8, rtol=0)

# %% [markdown]
# Walk away from $(x_t, t)$ along a straight line. With the time term the error falls as the *square* of the distance, without it only as the distance:

# %%
for distance in (1e-1, 1e-2, 1e-3):
    point, time = x_t + distance * (x_s - x_t), t - 0.2 * distance
    value = log_class(point, time)
    with_time, without = (float((expansion(point, u) - value).abs().max()) for u in (time, t))
    print(f"{distance:.0e}: error {with_time:.1e}, without the time term {without:.1e}")

# %% [markdown]
# A sampler need not compute it. It does not depend on $x_s$: as a factor of a density in $x_s$ it is a constant, and normalisation removes it. It matters for the *value* of $p(y \mid x_s)$, not for
# where the step goes. In a step of length $\beta$ the distance $|x_s - x_t|$ is about $\sqrt \beta$. So the time term, of size $\beta$, is as large as the second-order term in $x$. That one does depend on $x_s$, and stays
# as an error of the shape, next to the shape of the model's own Gaussian.

# %% [markdown]
# ### Exercise 7.4 (hard): the time term
#
# The time term of $\eqref{eq-taylor}$ has a closed form. Let $r = -2\, \partial_t \log \alpha_t$ be the *noise rate* of the schedule at time $t$: in a short time $h$, the forward process shrinks $x$ by $e^{-r h / 2}$ and
# adds noise of variance $1 - e^{-r h}$. Both $p_t(x)$ and $p_t(x \mid y)$ then obey the Fokker-Planck equation
# $\partial_t p = \frac{r}{2} \big(\nabla \cdot (x\, p) + \Delta p\big)$, with the divergence $\nabla \cdot$ and the Laplacian $\Delta$.
# Derive $\partial_t \log p_t(y \mid x)$ and return it, shape `(N,)`. `at_t` is the mixture at time $t$ in $d$ dimensions with its methods `score(x)`, `hessian(x)`,
# `class_gradient(x, label)` and `given(label)`; `rate` is $r$.
#
# <details><summary>Hint</summary>
#
# Divide by $p$ to get an equation for $\ell = \log p$: it contains $\Delta \ell$ and $|\nabla \ell|^2$. Subtract the equation of
# $\log p_t(x)$ from that of $\log p_t(x \mid y)$. The difference of the squares is not the square of the difference.
#
# </details>

# %% tags=["exercise"]
def time_derivative(at_t, x, label, rate):
    ### BEGIN SOLUTION
    g = at_t.class_gradient(x, label)
    curvature = at_t.given(label).hessian(x) - at_t.hessian(x)
    laplacian = curvature.diagonal(dim1=1, dim2=2).sum(1)
    squares = (g * (g + 2 * at_t.score(x))).sum(1)
    return rate / 2 * ((x * g).sum(1) + laplacian + squares)
    ### END SOLUTION


# %%
exercises.check("7.4", time_derivative)

# %% [markdown]
# ## Deeper: where the gradient is taken
#
# *The price of each choice, one by one, and why the derivation's place does better than the code's: for those who were in that debate.*
#
# The derivation of Dhariwal & Nichol expands at the mean $\mu$ of the step and its noise level $s$: $\log p_s(y \mid x_s) \approx \mathrm{const} + (x_s - \mu) \cdot \nabla \log p_s(y \mid \mu)$.
# No time term appears, and completing the square gives the same formula with another gradient. (Their $t$ is our $s$, their $t + 1$ our $t$.) So two points times two noise levels are four places.
# One step from $t = 0.4$ over 0.001, averaged as above; the orders are measured between this step and one ten times shorter:

# %%
def price_of(kernel, gap):
    p, q = truth(nodes, t, t - gap), kernel(nodes, t, t - gap)
    off = (weights @ (q.mean - p.mean).square().sum(1)).sqrt()
    return float(off), float(weights @ divergence.kl(p, q)), float(noise.transition(t, t - gap)[1] ** 2)


choices = {name: samplers[name] for name in ("no shift, large", "x_t, t, small", "mu, t, small", "mu, s, small")}
choices["x_t, s, small"] = kernels.shift(small, grad, 1.0, at="x", time="s")
choices |= {name: samplers[name] for name in ("x_t, t, large", "exact coefficient, small", "exact coefficient, large")}
choices["x_t, t, full covariance"] = kernels.shift(kernels.moment_matched(mixture, noise), grad, 1.0)

# %%
price = {}
for name, kernel in choices.items():
    (off, loss, beta), (off_less, loss_less, beta_less) = (price_of(kernel, gap) for gap in (1e-3, 1e-4))
    orders = [math.log(a / b) / math.log(beta / beta_less) for a, b in ((off, off_less), (loss, loss_less))]
    price[name] = off, loss, orders[1]
    of_mean = f"{off:.1e}, order {orders[0]:.2f}" if off > 1e-12 else "0 (exact)          "
    print(f"{name:25s} mean off by {of_mean}   KL {loss:.1e}, order {orders[1]:.2f}")

# %% tags=["remove-cell"]
four = ["x_t, t, small", "mu, t, small", "mu, s, small", "x_t, s, small"]
assert all(abs(price[name][2] - 2) < 0.1 for name in [*four, "x_t, t, large", "x_t, t, full covariance"])
assert price["mu, s, small"][0] == min(price[name][0] for name in four)
assert max(price[n][1] for n in four) / min(price[n][1] for n in four) < 1.05
assert 3 < price["x_t, t, small"][1] / price["x_t, t, large"][1] < 4
assert price["x_t, t, full covariance"][1] > price["x_t, t, large"][1]

# %% [markdown]
# All four places have the same orders and nearly the same divergence: the place moves only the mean, by order $\beta^2$, which costs $\beta^3$. The variance decides the divergence. What hides here: mean errors
# point the same way step after step. $T \sim 1 / \beta$ of them, each of order $\beta^2$, add up to an error of order $\beta$ in the samples. Their divergences, $\beta^3$ each, add up to only $\beta^2$, and disappear behind what the shape costs, $T$ times $\beta^2$.
#
# At this $t$ and for class 1, the full covariance of the model's own step is, by divergence, no better than the large variance: it is not the covariance *given the label*. In the samples it is better:

# %%
full = errors_of(choices["x_t, t, full covariance"], 25)
for name, row in {"x_t, t, full covariance": full, "x_t, t, large": run["x_t, t, large"]}.items():
    print("{:24s} mean {:.3f}, covariance {:.3f}, class mass {:+.3f}".format(name, *row))
assert all(abs(a) < abs(b) for a, b in zip(full, run["x_t, t, large"], strict=True))

# %% [markdown]
# Why does $(\mu, s)$ beat $(x_t, t)$, if $(x_t, t)$ is the right place? Because two errors partly cancel. At this $t$, the gradient there is *longer* than the right one, the variance as a coefficient too *small*:

# %%
s_near = t - 1e-3
at_mu, at_x = grad(small(nodes, t, s_near).mean, s_near), grad(nodes, t)
longer = float(weights @ (at_mu * at_x).sum(1) / (weights @ at_x.square().sum(1)))
alpha, sigma = noise.transition(t, s_near)
shorter = float(kernels.posterior_variance(noise, t, s_near) * alpha / sigma**2)
print(f"gradient {longer:.4f} of the right one, coefficient {shorter:.4f}, product {longer * shorter:.4f}")
assert shorter < longer * shorter < 1 < longer

# %% [markdown]
# (Something *called* a standard deviation is out there, too: the value-guided pipeline of
# [diffusers](https://github.com/huggingface/diffusers/blob/main/src/diffusers/experimental/rl/value_guided_sampling.py) multiplies the gradient by a `model_std`, the exponential of half the *variance*: about 1, however short the step.)
#
# Dhariwal & Nichol's networks learn a variance *for each pixel*, between the small and the large one. `learned` is the ideal: the model's true variances, kept
# between the two. With it, too, the exact coefficient removes all that the points resolve:

# %%
def learned(x, t, s):
    ideal = kernels.moment_matched(mixture, noise)(x, t, s)
    low, high = kernels.posterior_variance(noise, t, s), noise.transition(t, s)[1] ** 2 * (s > 0)
    return FullGaussian(ideal.mean, ideal.cov.diagonal(dim1=1, dim2=2).clamp(low, high).diag_embed())


pixelwise = {"x_t, t": kernels.shift(learned, grad, 1.0), "exact coefficient": patched(learned, grad, noise, 1.0)}
pixelwise = {name: errors_of(kernel, 25) for name, kernel in pixelwise.items()}
for name, row in pixelwise.items():
    print("{}, learned: mean {:.3f}, covariance {:.3f}, class mass {:+.3f}".format(name, *row))

# %% tags=["remove-cell"]
assert pixelwise["exact coefficient"][0] < 0.03
assert abs(pixelwise["x_t, t"][0] - run["x_t, t, large"][0]) < 0.02

# %% [markdown]
# And this is the angle by which a variance for each coordinate turns the shift, in steps of 0.04: the model's true variances, and the same kept between the two.

# %%
def angles_of(variances, slope):
    """Degrees between a slope and the slope times a variance for each coordinate; (N, 2) and (N, 2) to (N,)."""
    shifted = variances * slope
    cosine = (shifted * slope).sum(1) / (shifted.norm(dim=1) * slope.norm(dim=1))
    return torch.rad2deg(cosine.clamp(-1, 1).acos())


print("degrees: on average, at most          true        kept  cut off")
for far in (0.6, 0.4, 0.2, 0.08):
    x, w = divergence.mixture_nodes(noised(mixture.given(label), noise, far), order=8)
    slope_there = grad(x, far)
    steep = slope_there.norm(dim=1) > 0.01  # a gradient of zero has no direction
    ideal = kernels.moment_matched(mixture, noise)(x, far, far - 0.04).cov.diagonal(dim1=1, dim2=2)
    kept, texts = learned(x, far, far - 0.04).cov.diagonal(dim1=1, dim2=2), []
    for variances in (ideal, kept):
        turned_by = angles_of(variances, slope_there)[steep]
        average = float(w[steep] @ turned_by / w[steep].sum())
        texts.append(f"{average:.2f}, {float(turned_by.max()):.1f}")
    cut_off = float(w @ (kept != ideal).double().mean(1))
    print(f"{f't = {far}':30s}" + "".join(f"{text:>12s}" for text in texts) + f"{cut_off:9.0%}")

# %% [markdown]
# The true variances turn it by a degree and a half on average, or less. But many of them lie outside the two bounds, and where both coordinates stand at the same bound, nothing turns.
#
# ## Deeper: what a variance makes of $\gamma$
#
# *For those who set $\gamma$ by eye: with the exact coefficient, which scale gives what the variance gives at $\gamma$?*
#
# Two answers, since two numbers are compared: the mean of the first coordinate, and the class mass.

# %% tags=["hide-input"]
def centre(kernel):
    """After 25 steps: mean of the first coordinate, and class mass on a scale on which it does not saturate."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3000, 2, dtype=torch.float64, generator=generator)
    x = draw(kernel, x, time_grid(25), generator)
    return float(x[:, 0].mean()), -math.log(1 - float(mixture.class_log_prob(x, label).exp().mean()))


shares, acts_like = (0.4, 0.6, 0.8, 1.0), {}
for gamma in (1.0, 5.0):
    for name, base in {"small": small, "large": large}.items():
        exact = [centre(patched(base, grad, noise, gamma * share)) for share in shares]
        shifted = centre(kernels.shift(base, grad, gamma))
        acts_like[gamma, name] = [float(numpy.interp(shifted[i], [e[i] for e in exact], shares)) for i in (0, 1)]
        texts = "acts like {:.2f} gamma by the mean, {:.2f} gamma by the class mass".format(*acts_like[gamma, name])
        print(f"gamma = {gamma:g}, variance {name}: {texts}")

# %% tags=["remove-cell"]
assert all(0.65 < acts_like[g, "small"][0] < 0.8 and 0.83 < acts_like[g, "large"][0] < 0.93 for g in (1.0, 5.0))
assert all(0.5 < acts_like[g, "small"][1] < 0.7 and 0.78 < acts_like[g, "large"][1] < 0.92 for g in (1.0, 5.0))
assert all(abs(acts_like[1.0, v][i] - acts_like[5.0, v][i]) < 0.1 for v in ("small", "large") for i in (0, 1))
assert all(acts_like[g, "small"][1] < acts_like[g, "small"][0] - 0.03 for g in (1.0, 5.0))

# %% [markdown]
# The fraction is much the same at both $\gamma$; by class mass the small variance makes less of it than by the mean. (What $\gamma \ne 1$ samples: chapter 17.)
#
# ## Deeper: how a divergence is computed
#
# *For those who want to trust numbers of $10^{-15}$ nats.*
#
# $$ \mathrm{KL}(p \,\|\, q) = \mathbb E_{p}\big[\log p - \log q\big] = \mathbb E_p\big[\rho - 1 - \log \rho\big], \qquad
# \rho = q / p. \label{eq-kl} $$
#
# The second form adds $\mathbb E_p[\rho] - 1 = 0$. Its terms are about $(\rho - 1)^2 / 2$, all positive, so nothing large cancels. The expectation is a Gauss-Hermite sum: for each component of the exact
# step, a fixed set of nodes and weights that is exact for polynomials up to a degree. `divergence.kl` sums the second form for divergences below a millionth of a nat, and only if the nodes see all of $q$ ($\mathbb E_p[\rho] = 1$);
# else the first, for $q$ may be so narrow that they miss its peak, or have mass where $p$ has none. Next to both sums, the first form with 250,000 random draws:

# %%
one, many = x_t[:1], torch.Generator().manual_seed(3)
p, q = truth(one, t, s), samplers["x_t, t, large"](one, t, s)
draws = truth(one.expand(250_000, 2), t, s).sample(many)[:, None]
values = (p.log_prob(draws) - q.log_prob(draws))[:, 0]
spots, shares = divergence.step_nodes(p)
log_rho = q.log_prob(spots) - p.log_prob(spots)
first, second = float(-(shares * log_rho).sum()), float((shares * (log_rho.exp() - 1 - log_rho)).sum())
print(f"drawn  {float(values.mean()):.4f} +- {float(values.std()) / 500:.4f} nats")
print(f"summed {first:.4f} (first form), {second:.4f} (second form)")
assert abs(float(values.mean()) - first) < 5 * float(values.std()) / 500
assert abs(second - first) < 1e-7 and first == float(divergence.kl(p, q)[0])

# %% [markdown]
# ## Deeper: second order
#
# *Better Gaussians: for those who can afford second derivatives.*
#
# Expand the classifier at $\mu$ to second order, with $g = \nabla \log p_s(y \mid \mu)$ and $G = \nabla \nabla \log p_s(y \mid \mu)$. Exponents of second order still complete to a square; the precision
# $\Sigma^{-1}$ becomes $\Sigma^{-1} - G$ (which must be positive definite, or there is no such Gaussian):
#
# $$ \mathcal N(x;\, \mu, \Sigma)\; e^{\,g^\top (x - \mu) + \frac12 (x - \mu)^\top G (x - \mu)} \;\propto\;
# \mathcal N\big(x;\, \mu + \Sigma' g,\; \Sigma'\big), \qquad \Sigma' = (\Sigma^{-1} - G)^{-1}. \label{eq-taylor-second} $$

# %%
G = torch.tensor([[[-0.3, 0.2], [0.2, 0.4]]], dtype=torch.float64)
g_here = torch.tensor([[0.7, 1.1]], dtype=torch.float64)
away = x_s[:, None] - mu
bent_by = (away * g_here).sum(-1) + (away * (away @ G[0])).sum(-1) / 2
constants = (ellipse.log_prob(x_s[:, None]) + bent_by - ellipse.tilted(g_here, G).log_prob(x_s[:, None]))[:, 0]
print("the logarithms differ by one constant:", constants.numpy().round(6))
torch.testing.assert_close(constants, constants[:1].expand(5))

# %% [markdown]
# Another way asks for no expansion: the Gaussian with the exact mean $\eqref{eq-one-step-tweedie}$ and covariance $\eqref{eq-second-order}$. A third is variational: among *all* Gaussians $q$, take the one closest to the
# truth. Since $\log q$ is quadratic, $\mathbb E_p[\log q]$ stays the same when $p$ is replaced by the Gaussian with the mean and covariance of $p$; and the divergence from that Gaussian is zero when $q$ *is* that Gaussian:
#
# $$ \arg\min_{q \text{ Gaussian}} \mathrm{KL}(p \,\|\, q) = \mathcal N\big(\mathbb E_p[x],\, \mathrm{Cov}_p[x]\big).
# \label{eq-moment-matching} $$
#
# So the second and the third way are one. Check it blindly: start from the shifted step, minimise the divergence by a quasi-Newton method, and see where it ends.

# %%
p, begin = truth(x_t, t, s), samplers["x_t, t, large"](x_t, t, s)
mean = begin.mean.clone().requires_grad_()
root = (begin.var.sqrt() * torch.eye(2).double()).repeat(5, 1, 1).requires_grad_()
search = torch.optim.LBFGS([mean, root], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")


def loss():
    search.zero_grad()
    value = divergence.kl(p, FullGaussian(mean, root @ root.mT)).sum()
    value.backward()
    return value


search.step(loss)
best = divergence.closest_gaussian(p)
torch.testing.assert_close(best.cov, kernels.moment_matched(mixture, noise, label)(x_t, t, s).cov)
torch.testing.assert_close(mean.detach(), best.mean, atol=1e-5, rtol=0)
torch.testing.assert_close((root @ root.mT).detach(), best.cov, atol=1e-5, rtol=0)

# %% [markdown]
# The Taylor way gives another Gaussian. Its divergence is of order $\beta^3$ as well, if it starts from the right covariance of the model's own step:

# %%
def taylor(x, t, s):
    step = kernels.moment_matched(mixture, noise)(x, t, s)
    at_s = noised(mixture, noise, s)
    bend = at_s.given(label).hessian(step.mean) - at_s.hessian(step.mean)
    return step.tilted(grad(step.mean, s), bend)


values, optimum = losses_of(taylor), losses["exact mean and covariance"]
for name, row in {"Taylor to second order": values, "exact mean and covariance": optimum}.items():
    print(f"{name:25s} falls like beta^{math.log(row[-5] / row[-1]) / math.log(betas[-5] / betas[-1]):.2f}")
print(f"at beta = {float(betas[1]):.2f} Taylor's is {values[1] / optimum[1]:.1f} times the optimum")
assert values[1] > optimum[1]

# %% [markdown]
# Both need second derivatives: for an image of $d$ numbers, $d \times d$ of them. The shift needs $d$.

# %% [markdown]
# ### Exercise 7.5 (research): what is left after second order
#
# With the exact mean and covariance, the divergence of one step is $c\, \beta^3 + O(\beta^4)$. Formally, around its maximum, the step is $e^{-|u|^2 / 2 \beta + a(u, u, u) / 6}$, where $a(u, u, u) = \sum_{ijk} a_{ijk} u_i u_j u_k$ and the tensor
# $a$ holds the third derivatives of $\log p_t(x \mid y)$. Return $c$ for the tensor `third`, of shape `(d, d, d)`, $d = 1$ or $2$.
#
# What you need to know: for $z \sim \mathcal N(0, 1)$ the Hermite polynomials $\mathrm{He}_1 = z$, $\mathrm{He}_2 = z^2 - 1$, $\mathrm{He}_3 = z^3 - 3 z$ have mean 0, are orthogonal, and $\mathbb E[\mathrm{He}_n^2] = n!$. In the plane, $a(z, z, z)$ is the part of third order,
# $a : \mathrm{He}_3(z)$, plus 3 times a linear function; and $\mathbb E[(a : \mathrm{He}_3(z))^2] = 3!\, |a|^2$, with all entries squared and summed.
#
# <details><summary>Hint</summary>
#
# Begin in one dimension. Measure $u$ in units of $\sqrt \beta$. Write the cubic exponent in Hermite polynomials: which part of it can the closest Gaussian follow, by moving its mean? What is left is $\log (p / q)$;
# use $\rho - 1 - \log \rho \approx (\rho - 1)^2 / 2$ from $\eqref{eq-kl}$.
#
# </details>

# %% tags=["exercise"]
def third_order_constant(third):
    ### BEGIN SOLUTION
    # One dimension: a u^3 / 6 = a beta^1.5 (He_3 + 3 z) / 6. The Gaussian moves its mean and so follows 3 z; what is left
    # is r - 1 = a beta^1.5 He_3 / 6, and E[(r - 1)^2] / 2 = a^2 beta^3 3! / 72. In the plane E[(a : He_3)^2] = 3! |a|^2.
    return third.square().sum() / 12
    ### END SOLUTION


# %%
exercises.check("7.5", third_order_constant)

# %% [markdown]
# ## Deeper: the whole path
#
# *What many steps cost together, and what not knowing the label costs: for those who count in nats.*
#
# Let $P$ be the law of the exact path $x_1, \dots, x_s$ given the label, and $Q$ that of a kernel's path. Both are chains, so the logarithm of their ratio is a sum:
# $\log \frac{P}{Q} = \log \frac{p_1(x_1 \mid y)}{q_1(x_1)} + \sum_{\text{steps}} \log \frac{p(x_s \mid x_t, y)}{q(x_s \mid x_t)}$.
# Take the expectation under $P$, and in each term first over $x_s$ given $x_t$: that is the divergence of a step. Let $Q$ start where $P$ starts, $q_1 = p_1(\cdot \mid y)$; then the first term is zero and
#
# $$ \mathrm{KL}(P \,\|\, Q) = \sum_{\text{steps}} \mathbb E_{x_t \sim p_t(\cdot \mid y)}\,
# \mathrm{KL}\big(p(x_s \mid x_t, y) \,\|\, q(x_s \mid x_t)\big). \label{eq-path-kl} $$
#
# What comes out at the end differs by at most that: the end point is a function of the path. (A sampler starts from $\mathcal N(0, I)$ instead; the next cell prints what that adds. And the paths end at $t = 0.01$: DDPM's step to $t = 0$ has no density.)

# %%
at_1 = noised(mixture.given(label), noise, 1.0)
x, w = divergence.mixture_nodes(at_1, order=40)
normal = Gaussian(torch.zeros_like(x), torch.ones(()).double())
print(f"starting from N(0, I) adds {float(w @ (at_1.log_prob(x) - normal.log_prob(x))):.0e} nats")
by_hand, grid, large_shift = 0.0, time_grid(8, end=0.01), samplers["x_t, t, large"]
for a, b in zip(grid[:-1], grid[1:], strict=True):
    x, w = divergence.mixture_nodes(noised(mixture.given(label), noise, a), order=6)
    by_hand += float(w @ divergence.kl(truth(x, a, b), large_shift(x, a, b), order=6))
compact = float(divergence.path_kl(mixture, noise, label, large_shift, grid, order=6))
print(f"eight steps, large variance: {compact:.4f} nats")
assert abs(by_hand - compact) < 1e-12

# %%
numbers = (8, 32, 128)
walkers = {"no shift": large, "shift, small": samplers["x_t, t, small"], "shift, large": large_shift}
walkers["exact mean and covariance"] = kernels.moment_matched(mixture, noise, label)
path = {}
for name, kernel in walkers.items():
    grids = [time_grid(n, end=0.01) for n in numbers]
    path[name] = [float(divergence.path_kl(mixture, noise, label, kernel, grid, order=6)) for grid in grids]
print(f"{'steps T':25s} " + " ".join(f"{n:8}" for n in numbers))
for name, values in path.items():
    row = " ".join(f"{v:8.2e}" for v in values)
    print(f"{name:25s} {row}   T^{math.log2(values[-1] / values[-2]) / 2:+.2f}")

# %% tags=["hide-input"]
with plotting.style():
    figure, panel = plotting.plt.subplots(figsize=(6.2, 3.6))
    colours = {"no shift": "unconditional", "shift, small": "guided", "shift, large": "conditional", "exact mean and covariance": "other"}
    for name, colour in colours.items():
        panel.loglog(numbers, path[name], "o-", color=plotting.COLOURS[colour], markersize=4)
        lift = {"no shift": 0.8, "shift, small": 1.4}.get(name, 1.0)
        panel.text(numbers[-1] * 1.2, path[name][-1] * lift, name, color=plotting.COLOURS[colour], va="center")
    panel.set(xlabel="steps $T$", ylabel="KL of the path [nats]", xticks=numbers, xticklabels=numbers, xlim=(7, 1800))
    panel.minorticks_off()
    shown = plotting.show(figure, "07_path", alt="Divergence of the whole path over the number of steps, 8 to 128, log-log. Without a shift the curve levels off near 0.8 nats. With a shift and the large variance it falls like one over the number of steps, with exact mean and covariance like one over its square. With a shift and the small variance it starts far above the curve without a shift, and still lies above it at 128 steps.")
shown

# %% [markdown]
# *Divergence of the whole path from the exact one, from $t = 1$ to $t = 0.01$ (no shift: with the large variance). One power of the step length is lost on the way from a step to a path: $T$ steps of length $\beta \sim 1 / T$ turn
# $\beta^2$ into $1 / T$ and $\beta^3$ into $1 / T^2$. The small variance is not there yet: its last steps are not short, $\beta \ll \sigma_t^2$ fails near the data.*

# %% tags=["remove-cell"]
falls = {name: math.log2(values[-2] / values[-1]) / 2 for name, values in path.items()}
assert abs(falls["shift, large"] - 1) < 0.15 and abs(falls["exact mean and covariance"] - 2) < 0.15
assert falls["no shift"] < 0.1 and 0.75 < path["no shift"][-1] < 0.85 and falls["shift, small"] > 1.2
assert all(a > b for a, b in zip(path["shift, small"], path["no shift"], strict=True)) and path["shift, small"][0] > 50 * path["no shift"][0]

# %% [markdown]
# The grey curve does not fall to zero. Forward in time, a path from $p(x \mid y)$ and a path from $p(x)$ are noised alike, so they differ exactly as much as their clean ends, here at $t = 0.01$, do. With $I(t)$ for the divergence of $p_t(x \mid y)$ from $p_t(x)$, that is $I(0.01)$. The exact kernel *without* the label walks
# the second backwards, but starts from $p_1(x \mid y)$, where the first starts, too: so it costs $I(0.01) - I(1)$.

# %%
def information(t):
    """KL(p_t(x | y) || p_t(x)) in nats: what the label says about x_t."""
    at_t = noised(mixture, noise, t)
    x, w = divergence.mixture_nodes(at_t.given(label), order=40)
    return float(w @ (at_t.given(label).log_prob(x) - at_t.log_prob(x)))


known = information(0.01) - information(1.0)
blind = float(divergence.path_kl(mixture, noise, label, ignoring, time_grid(16, end=0.01), order=12))
print(f"the label's information: {known:.4f} nats ({information(1.0):.0e} of it at the start)")
print(f"16 steps without the label: {blind:.4f} nats")
assert abs(blind - known) < 1e-3

# %% [markdown]
# That is the information that this label carries. No number of steps brings it in. A shift does, and what remains, mostly shape, falls like $1 / T$.
#
# ### Two measures disagree
#
# By $\eqref{eq-path-kl}$ the divergences of all steps add up to that of the path. Compare with the samples:

# %% tags=["hide-input"]
def nats_of(kernel, times):
    """The divergence of each step; they add up to that of the path."""
    pairs = zip(times[:-1], times[1:], strict=True)
    return [float(divergence.path_kl(mixture, noise, label, kernel, torch.stack(pair), order=6)) for pair in pairs]


times = time_grid(25, end=0.01)
run |= {name: errors_of(samplers[name], 25) for name in ("no shift, large", "no shift, small")}
nats = {name: nats_of(samplers[name], times) for name in ("no shift, large", "no shift, small", "x_t, t, small", "exact coefficient, small")}
print("nats of                   the path  the last two steps  the others  mean of the samples off by")
for name, each in nats.items():
    print(f"{name:24s}{sum(each):10.2f}{sum(each[-2:]):20.2f}{sum(each[:-2]):12.2f}{run[name][0]:28.3f}")
x, w = divergence.mixture_nodes(noised(mixture.given(label), noise, times[-2]))
wide = float(w @ truth(x, *times[-2:]).cov.diagonal(dim1=1, dim2=2).mean(1))
used = float(kernels.posterior_variance(noise, *times[-2:]))
ratio = wide / used
assert round(wide - used, 2) == 0.02
print(f"last step: true variance {wide:.3f}, small variance {used:.4f}, ratio {ratio:.0f}")
print(f"variance of the blobs along their axes: {float(mixture.variances.min()):.2f} to {float(mixture.variances.max()):.2f}")
narrow, broad = ratio - 1 - math.log(ratio), 1 / ratio - 1 + math.log(ratio)
print(f"two round bells in the plane with this ratio: too narrow {narrow:.1f} nats, too wide {broad:.1f}")

# %% tags=["remove-cell"]
total = {name: sum(each) for name, each in nats.items()}
assert total["no shift, large"] < total["x_t, t, small"] / 10 and 0.9 < total["exact coefficient, small"] / total["x_t, t, small"] < 1
assert total["no shift, small"] > total["x_t, t, small"] and sum(nats["x_t, t, small"][-2:]) > 0.9 * total["x_t, t, small"]
assert sum(nats["x_t, t, small"][:-2]) < sum(nats["no shift, large"][:-2]) and narrow > 5 * broad and round(wide - used, 2) == 0.02
assert run["no shift, large"][0] > 5 * run["x_t, t, small"][0]

# %% [markdown]
# By divergence, guidance with the small variance is *worse than no guidance with the large one*, and the exact coefficient hardly helps. By the samples both are far better. First, with
# the *small* variance, no guidance costs more still. Second, $\mathrm{KL}(p \,\|\, q)$ charges
# heavily for a $q$ that is too narrow, little for one too wide. Nearly all is charged in the last two steps, where the small variance is far too narrow; in the others, guidance wins.
# But the variance missing in the last step, 0.02, is small beside the blobs' own. The path's divergence only *bounds* that of its end points (at $t = 0.01$; the samples go on to 0). A wrong mean is
# the opposite: cheap in each step, but pushed the same way in all. So find orders with divergences, and compare samplers by samples.
