# %% [markdown]
# # 03 · The variational diffusion model: what does the loss add up to?
#
# A diffusion model is trained to guess noise: $\|\varepsilon - \hat\varepsilon\|^2$, averaged over noise levels. Papers add that this
# "bounds the likelihood". How does one get a likelihood, a number in nats for every single point, out of squared
# errors? And what else goes into it: the sampler, its steps, the schedule?
#
# The short answer: **draw the best guess's error over the log signal-to-noise ratio. Half the area between this curve and that of a standard
# normal is $-\log p(x)$, up to a known constant. In the limit of many steps, nothing else goes in. With few steps the variance of a step matters: it should be wider by the guess's error.**
#
# **After this chapter you can**
# * read one reverse step as a fresh measurement of the clean point, and say what it costs;
# * write down the variational bound term by term, in nats, and say what its steps cost, and which variance they should have;
# * compute $-\log p(x)$ of one point from the errors of a denoiser, exactly;
# * say which training loss is the bound, and tell two ways to write the bound from a third that is none.
#
# **You need** chapters 01 and 02 (best guesses; the bound and the divergence of two Gaussians).
#
# *33 minutes to read, 18 more for Deeper, 20 seconds to run, on a laptop, without a GPU or a network connection.*

# %%
import math

import numpy as np
import torch
from torch import nn

from difflesson import curves, divergence, exercises, kernels, likelihood, plane, plotting
from difflesson.denoiser import Prediction
from difflesson.mixture import GaussianMixture
from difflesson.samplers import time_grid
from difflesson.schedule import cosine, vp_linear

torch.set_num_threads(1)

# %% [markdown]
# ## Guess it before you see it
#
# The data are [chapter 01's](01_noising.ipynb#where-there-are-no-data-there-is-nothing-to-learn) two thin arcs, a mixture of narrow Gaussians: the best guess $\hat\varepsilon = \mathbb E[\varepsilon \mid x_t]$ and the truth $\log p(x)$ are known. Beside them stands *one* Gaussian with their mean and covariance.
# Left: the mean square error of the best guess, at each log signal-to-noise ratio $\lambda = \log(\alpha^2/\sigma^2)$. Right: at two single points.


# %% tags=["hide-input"]
def seeded(number):
    return torch.Generator().manual_seed(number)


def least(model, schedule, log_snr):
    """The least error of the clean point at each level, (n,)."""
    return torch.stack([likelihood.least_error(model, schedule, schedule.time(level), 8) for level in log_snr])


data, schedule = curves.two_arcs(), cosine()
centre = data.weights @ data.means
away = data.means - centre
spread = (data.weights[:, None, None] * (data.covs + away[:, :, None] * away[:, None])).sum(0)
plain = GaussianMixture([1.0], centre[None], spread[None])
log_snr = torch.linspace(-20, 20, 161).double()
nodes, weights = divergence.mixture_nodes(data, 12)
truth, plain_truth = (-float(weights @ model.log_prob(nodes)) for model in (data, plain))
noise, chance = divergence.hermite(24, 2)
pair = torch.tensor([[-1.57, -0.95], [1.5, -1.0]], dtype=torch.float64)
curve, plain_curve = (log_snr.exp() * least(model, schedule, log_snr) for model in (data, plain))
best = data.denoiser(schedule)
single = [chance @ likelihood.squared_errors(best, schedule, pair, t, noise) for t in schedule.time(log_snr)]
single = log_snr.exp()[:, None] * torch.stack(single)
gain = float(torch.trapezoid(plain_curve - curve, log_snr)) / 2
grey, blue, orange, green = (plotting.COLOURS[name] for name in ("unconditional", "conditional", "guided", "other"))

# %% tags=["hide-input"]
with plotting.style():
    figure, axes = plotting.plt.subplots(1, 2, figsize=(8.4, 3.0), sharex=True)
    axes[0].fill_between(log_snr, curve, plain_curve, color=orange, alpha=0.25, linewidth=0)
    axes[0].plot(log_snr, plain_curve, color=grey, linewidth=2)
    axes[0].plot(log_snr, curve, color=blue, linewidth=2)
    axes[0].text(-9.3, 1.5, "one Gaussian", color=grey)
    axes[0].text(4.6, 0.62, "the arcs", color=blue)
    axes[0].text(1.5, 1.4, "half of it:\n2.95 nats", color=orange)
    for k, (colour, name, x_text, y_text) in enumerate(
        ((blue, "on the arc: {:.1f} nats", 4.0, 0.35), (green, "beside it: {:.1f} nats", 1.4, 7.9))
    ):
        axes[1].plot(log_snr, single[:, k], color=colour, linewidth=2)
        axes[1].text(x_text, y_text, name.format(-float(data.log_prob(pair)[k])), color=colour)
    axes[1].plot(log_snr, 2 * torch.sigmoid(log_snr), color=grey, linewidth=1)
    axes[1].text(-10.5, 1.35, "standard normal", color=grey)
    for panel, title in zip(axes, ("average over the data", "two single points"), strict=True):
        panel.set(xlabel="log signal-to-noise ratio", title=title, xlim=(-11, 14), ylim=(0, None))
    axes[1].set_ylim(0, 8.6)
    axes[0].set_ylabel("error of the noise")
    shown = plotting.show(
        figure,
        "03_error_curves",
        alt="Two panels over the log signal-to-noise ratio. Left: the average error of the best guess of the noise rises from nought to two. For one Gaussian it soon is near two; for the arcs it stays near 1 for a while and reaches two much later; the area between is shaded, and half of it is 2.95 nats. Right: the same for two single points; for one on the arc the curve lies below that of a standard normal, for one beside the arc it rises far above it and comes back.",
    )
shown

# %% [markdown]
# *Left: half of the shaded area is exactly what the arcs' own density saves over the Gaussian's, in nats a point. Right: a
# point beside the arc is harder to guess, at the noise levels that could tell it from the arc. Its $-\log p(x)$ is 2.84 plus half the area between its curve and the grey one (there the standard normal's).*

# %% tags=["remove-cell"]
flat = curve[(log_snr >= 0) & (log_snr <= 5)]
assert bool(((flat > 0.95) & (flat < 1.2)).all()) and round(gain, 2) == 2.95
assert abs(gain - (plain_truth - truth)) < 1e-3 and round(math.log(2 * math.pi * math.e), 2) == 2.84
assert float(data.log_prob(pair)[0]) > 0 and float(single[:, 1].max()) > 2.5 and float(single[:, 0].max()) < 2.05

# %%
print(f"half of the area between the curves: {gain:.2f} nats")
print(f"-log p, averaged over the data: {truth:.2f}; by the one Gaussian: {plain_truth:.2f},")
print(f"{plain_truth - truth:.2f} more")

# %% [markdown]
# **Why.** Walk from noise to data. Each step is a new measurement of the clean point. *Before* you see it, you say what you expect, your best guess. The measurement surprises you, beyond its own scatter, by half the squared error
# of the guess in units of that scatter. All such surprises together are what *this* point cost to describe, beyond what any point costs at that precision. And the surprise of seeing $x$ is $-\log p(x)$.
#
# With many small measurements the story has only guesses in it. So, in that limit, sampler, number of steps and schedule cannot matter. A long step surprises you more, and least if you *expect* to be wrong by as much as you are.
#
# ## One step is a fresh measurement
#
# Take two levels, $s$ less noisy than $t$, with signal-to-noise ratios $\mathrm{SNR}_t = \alpha_t^2 / \sigma_t^2$. Undo the shrinking: $u_t = x_t / \alpha_t$ scatters around $x_0$ with variance $1 / \mathrm{SNR}_t$;
# it is a measurement of precision $\mathrm{SNR}_t$. From $s$ to $t$ the noise adds the variance $1/\mathrm{SNR}_t - 1/\mathrm{SNR}_s$. How is $x_s$ distributed, if $x_t$ and $x_0$ are known? By Bayes' rule the log-density of $u_s$ is
# a sum of two parabolas, $-\frac12 \mathrm{SNR}_s \|u_s - x_0\|^2$ and $-\frac12 \frac{\mathrm{SNR}_t\, \mathrm{SNR}_s}{\mathrm{SNR}_s - \mathrm{SNR}_t} \|u_s - u_t\|^2$. Complete the square: the factors add up to $\mathrm{SNR}_s^2 / (\mathrm{SNR}_s - \mathrm{SNR}_t)$, since $\mathrm{SNR}_s (\mathrm{SNR}_s - \mathrm{SNR}_t) + \mathrm{SNR}_t\, \mathrm{SNR}_s = \mathrm{SNR}_s^2$, and the centre is the mean of $x_0$ and $u_t$ with these weights. So $x_s$ is Gaussian, and
#
# $$ \mathbb E[x_s \mid x_t, x_0] = \alpha_s \frac{\mathrm{SNR}_t\; x_t / \alpha_t + (\mathrm{SNR}_s - \mathrm{SNR}_t)\; x_0}{\mathrm{SNR}_s}, \qquad \mathrm{Var}(x_s \mid x_t, x_0) = \alpha_s^2 \frac{\mathrm{SNR}_s - \mathrm{SNR}_t}{\mathrm{SNR}_s^2}. \label{eq-fresh-look} $$
#
# In words: the new position averages the old measurement $x_t / \alpha_t$ with *one fresh measurement* of $x_0$, whose precision is what was missing, $\mathrm{SNR}_s - \mathrm{SNR}_t$. This is DDPM's posterior, in other letters ([chapter 05](05_every_reverse_process_at_once.ipynb#few-steps-hold-the-guess)).


# %%
# [eq-fresh-look]
def fresh_look(x_t, x_0, schedule, t, s):
    """Mean and variance of x_s, given x_t and x_0: (N, d) and 0-dim."""
    old, new = schedule.log_snr(t).exp(), schedule.log_snr(s).exp()
    mean = (old * x_t / schedule.alpha(t) + (new - old) * x_0) / new
    return schedule.alpha(s) * mean, schedule.alpha(s) ** 2 * (new - old) / new**2


# %%
t, s = torch.tensor(0.6, dtype=torch.float64), torch.tensor(0.4, dtype=torch.float64)
x_0, eps_0 = data.sample(5, seeded(0))[0], torch.randn(5, 2, generator=seeded(1), dtype=torch.float64)
x_t = schedule.add_noise(x_0, eps_0, t)
mean_s, var_s = fresh_look(x_t, x_0, schedule, t, s)
ddpm = kernels.ddpm(
    lambda x, t: Prediction.from_x0(x, x_0, schedule.alpha(t), schedule.sigma(t)), schedule
)(x_t, t, s)
torch.testing.assert_close(mean_s, ddpm.mean)
torch.testing.assert_close(var_s, ddpm.var)

# %% [markdown]
# A model does not know $x_0$, and takes the same step, of the same variance, with its guess $\hat x_0$: DDPM's step. Two Gaussians with one variance $v$ and means $a$ and $b$ have the divergence $\|a - b\|^2 / (2 v)$ (chapter 02).
# Here $a - b = \alpha_s (\mathrm{SNR}_s - \mathrm{SNR}_t) (x_0 - \hat x_0) / \mathrm{SNR}_s$:
#
# $$ \mathrm{KL}\big( q(x_s \mid x_t, x_0) \,\big\|\, p(x_s \mid x_t) \big) = \frac12\, (\mathrm{SNR}_s - \mathrm{SNR}_t)\; \| x_0 - \hat x_0 \|^2 . \label{eq-price-of-a-look} $$
#
# Half the precision of the measurement, times the squared error of the guess.


# %%
# [eq-price-of-a-look]
def price_of_a_look(x_0, guess, schedule, t, s):
    """Nats that a step from t to s costs at each point, (N,)."""
    gained = schedule.log_snr(s).exp() - schedule.log_snr(t).exp()
    return gained / 2 * (x_0 - guess).square().sum(1)


# %%
guess = data.denoiser(schedule)(x_t, t).x0
model = kernels.ddpm(data.denoiser(schedule), schedule)(x_t, t, s)
by_hand = price_of_a_look(x_0, guess, schedule, t, s)
normal, kl = torch.distributions.Normal, torch.distributions.kl_divergence
both = kl(normal(mean_s, var_s.sqrt()), normal(model.mean, model.var.sqrt()))
torch.testing.assert_close(by_hand, both.sum(1))

# %% [markdown]
# ## Three terms
#
# For one latent, chapter 02 has $-\log p(x) \le \mathbb E_q[\log q(z \mid x) - \log p(x, z)]$. Here all noisy points are latents, from $x_\text{start}$, nearly pure noise, to $x_\text{end}$, the last before the data. The encoder $q$ only adds noise. Its walk, factored backwards, has the density $q(x_\text{start} \mid x)$ times all $q(x_s \mid x_t, x)$. The model's walk has the same form: $\mathcal N(0, I)$, the steps $p(x_s \mid x_t)$, and
# at last $p(x \mid x_\text{end})$, a Gaussian around $\hat x_0(x_\text{end})$ of variance $1 / \mathrm{SNR}_\text{end}$. With $d$ for the dimension, that leaves $\eqref{eq-price-of-a-look}$ and two ends:
#
# $$ \begin{aligned} B(x) = {} & \frac d2 \log \frac{2\pi}{\mathrm{SNR}_\text{end}} + \frac{\mathrm{SNR}_\text{end}}{2}\, \mathbb E \|x - \hat x_0(x_\text{end})\|^2 + \mathrm{KL}\big(q(x_\text{start} \mid x) \,\big\|\, \mathcal N(0, I)\big) \\
# & + \sum_{t \to s} \Big[ \frac{\mathrm{SNR}_s - \mathrm{SNR}_t}{2}\, \mathbb E \|x - \hat x_0(x_t)\|^2 \Big]. \end{aligned} \label{eq-bound-terms} $$
#
# *Reconstruction* (the first two summands), *prior*, *denoising*. Averaged over the data, $B$ is at least the average $-\log p(x)$. At one point, by hand and with the package; then the average, with steps evenly spaced from $\lambda = -20$ to 20, where `cosine` ends:

# %%
x, grid, best = data.sample(1, seeded(2))[0], time_grid(25, schedule), data.denoiser(schedule)
snr = schedule.log_snr(grid).exp()
errors = [chance @ likelihood.squared_errors(best, schedule, x, u, noise) for u in grid]
reconstruction = math.log(2 * math.pi / snr[-1]) + snr[-1] / 2 * errors[-1]  # d / 2 = 1
alpha, sigma = schedule.alpha(1.0), schedule.sigma(1.0)
prior = kl(normal(alpha * x, sigma), normal(torch.zeros_like(x), 1.0)).sum(1)
denoising = sum((snr[k + 1] - snr[k]) / 2 * errors[k] for k in range(25))
bound = likelihood.variational_bound(best, schedule, x, grid, order=24)
by_hand = torch.stack([reconstruction, prior, denoising])
torch.testing.assert_close(torch.stack(list(bound)), by_hand, rtol=1e-7, atol=1e-10)


# %% tags=["hide-input"]
def average_bound(model, schedule, times):
    """The three terms of the best denoiser, averaged over the data: floats."""
    snr = schedule.log_snr(times).exp()
    error = least(model, schedule, snr.log())
    reconstruction = math.log(2 * math.pi / snr[-1]) + snr[-1] / 2 * error[-1]
    x, weights = divergence.mixture_nodes(model, 8)
    noise = schedule.alpha(times[0]) ** 2  # what is left of the signal
    prior = weights @ (noise * (x.square().sum(1) - 2) - 2 * torch.log1p(-noise)) / 2
    return float(reconstruction), float(prior), float(((snr[1:] - snr[:-1]) / 2 * error[:-1]).sum())


print("steps  reconstruction    prior  denoising   total   above -log p")
gaps = {}
for steps in (25, 50, 100, 200):
    terms = average_bound(data, schedule, time_grid(steps, schedule))
    gaps[steps] = sum(terms) - truth
    print("{:5} {:15.2f} {:8.0e} {:10.2f} {:7.2f} {:14.2f}".format(steps, *terms, sum(terms), gaps[steps]))

# %% tags=["remove-cell"]
ratios = [gaps[n] / gaps[2 * n] for n in (25, 50, 100)]
assert ratios == sorted(ratios, reverse=True) and 2 < ratios[-1] < 2.2 and min(gaps.values()) > 0

# %% [markdown]
# The reconstruction is negative, since a scatter of $e^{-10}$ is a *density* of many nats. The prior costs nothing.
# With twice the steps the gap more than halves, and in the end halves: it is of the order $1/T$. Why? A step is charged with the error of the clean point at its noisy start, but on average this error falls during the step.

# %% tags=["hide-input"]
with plotting.style():
    figure, axes = plotting.plt.subplots(1, 2, figsize=(8.4, 2.7), sharey=True)
    for panel, steps in zip(axes, (25, 100), strict=True):
        edges = torch.linspace(-20, 20, steps + 1).double()
        height = least(data, schedule, edges[:-1])
        height = height * (edges[1:].exp() - edges[:-1].exp()) / (edges[1] - edges[0])
        panel.stairs(height, edges, fill=True, color=orange, alpha=0.3)
        panel.plot(log_snr, curve, color=blue, linewidth=2)
        panel.set(
            title=f"{steps} steps: {gaps[steps]:.1f} nats too many", xlabel="log signal-to-noise ratio", xlim=(-10, 20)
        )
    axes[0].set_ylabel("error of the noise")
    shown = plotting.show(
        figure,
        "03_upper_sum",
        alt="Two panels with the arcs' error curve in blue and orange bars behind it, one a step. With twenty-five steps the bars rise far above the curve, to more than twice its height; with a hundred steps they follow it closely, a little above. The titles say 23.5 and 3.7 nats too many.",
    )
shown

# %% [markdown]
# *The error curve of the noise, and the steps as bars: a bar's height is the gain in signal-to-noise ratio, times the error of the clean point at the noisy start, for each unit of $\lambda$. The bound sums half of each bar; for the best guess it is an upper sum of the area.*
#
# ## The area is the log-likelihood
#
# Let the steps get short. The sum becomes $\frac12 \int \mathbb E \|x - \hat x_0\|^2\, d\,\mathrm{SNR}$. An error of the noise is one of the clean point times $\alpha/\sigma$, so $\mathrm{SNR}\, \|x - \hat x_0\|^2 = \|\varepsilon - \hat\varepsilon\|^2$, and $d\,\mathrm{SNR} = \mathrm{SNR}\; d\lambda$: it is
# half the area under the curve of $\mathbb E \|\varepsilon - \hat\varepsilon\|^2$ over $\lambda$. Without end it grows as $\frac d2 \lambda_\text{end}$, while the reconstruction falls as $-\frac d2 \lambda_\text{end}$. A standard normal's best guess errs by $d\,\alpha^2$ on average; half *its* area up to $\lambda_\text{end}$ is $\frac d2 \log(1 + \mathrm{SNR}_\text{end})$, since $\alpha^2$ is the slope of $\log(1 + e^\lambda)$. The reconstruction's second summand tends to $\frac d2$: near the data the clean point's error is $d / \mathrm{SNR}$. Subtract it from the one and add it to the other, and what remains has no ends:
#
# $$ -\log p(x) = \frac d2 \log(2 \pi e) + \frac12 \int_{-\infty}^{\infty} \big[ \mathbb E \|\varepsilon - \hat\varepsilon\|^2 - d\, \alpha^2 \big]\, d\lambda . \label{eq-error-area} $$
#
# *Exactly*, for the best guess and at each single $x$ where the data have a continuous density (pixels stored as integers have none, unless even noise is added); $\mathbb E$ is over the noise at this $x$.
#
# **Why equal, no longer at least?** With the *exact* steps $p(x_s \mid x_t)$, what the start and the steps down to $x_t$ cost is the divergence of the encoder's walk from the data's (the start's vanishes). That is the divergence of its last point, $q(x_t \mid x)$ from $p_t$: given the last point, both walks were made by the same noising. DDPM's steps cost more on average: they expect a Gaussian around $\hat x_0$, while the
# measurement scatters as $p(x_0 \mid x_t)$, with its own noise added. In a short step that noise covers the shape, so the extra is of second order in the step (the table shows its sum halve), and all extras together vanish. Finally, with little noise left, $q(x_t \mid x)$ is a narrow Gaussian at $x$, and the divergence is $\frac d2 \log \frac{\mathrm{SNR}_t}{2 \pi e} - \log p(x)$. $\square$
#
# On evenly spaced $\lambda$:

# %%
points = torch.cat([data.sample(3, seeded(3))[0], pair[1:]])
times = time_grid(80, schedule)
area = likelihood.error_area(data.denoiser(schedule), schedule, points, times, order=24)
axis, excess = schedule.log_snr(times), []
for u in times:
    error = chance @ likelihood.squared_errors(data.denoiser(schedule), schedule, points, u, noise)
    excess.append((schedule.alpha(u) / schedule.sigma(u)) ** 2 * error - 2 * schedule.alpha(u) ** 2)
by_hand = math.log(2 * math.pi * math.e) + torch.trapezoid(torch.stack(excess), axis, dim=0) / 2
torch.testing.assert_close(area, by_hand)
for value, exact in zip(area, -data.log_prob(points), strict=True):
    print(f"area {float(value):8.4f}   -log p(x) {float(exact):8.4f}")
torch.testing.assert_close(area, -data.log_prob(points), rtol=0, atol=2e-4)

# %% [markdown]
# Four digits, from squared errors alone, also for the improbable point. A denoiser that is *not* the best one
# has a larger area, on average over the data: each error grows by the squared distance from the best guess ([chapter 01](01_noising.ipynb#the-best-guess-is-no-point-of-the-data)).
#
# ### Pitfall: the wrong sum
#
# Sums that run without complaint, with two hundred steps, beside the right one and the truth:

# %% tags=["hide-input"]
lam = torch.linspace(-20, 20, 201, dtype=torch.float64)
snr = lam.exp()
error = least(data, schedule, lam)
ends = math.log(2 * math.pi / snr[-1]) + snr[-1] / 2 * error[-1]
gained = snr[1:] - snr[:-1]
wrong = {
    "the bound": ends + (gained / 2 * error[:-1]).sum(),
    "signal-to-noise ratio without its square": ends + ((snr.sqrt()[1:] - snr.sqrt()[:-1]) / 2 * error[:-1]).sum(),
    "error at the end of each step": ends + (gained / 2 * error[1:]).sum(),
}
print(f"{'-log p on average':42} {truth:7.2f}")
for name, value in wrong.items():
    print(f"{name:42} {float(value):7.2f}")
assert round(truth - float(wrong["error at the end of each step"]), 1) == 1.5

# %% [markdown]
# The last is the dangerous one: off by one index, it claims a likelihood 1.5 nats better than the truth.
#
# ## A step should expect its own error
#
# The model's step need not have the posterior's variance $v$. Let it be $v / c$. The divergence of the two Gaussians is then
#
# $$ \mathrm{KL}_c = \frac d2 (c - 1 - \log c) + \frac c2\, (\mathrm{SNR}_s - \mathrm{SNR}_t)\, \|x_0 - \hat x_0\|^2 , \qquad c^\ast = \frac{1}{1 + (\mathrm{SNR}_s - \mathrm{SNR}_t)\, \mathbb E \|x_0 - \hat x_0\|^2 / d} . \label{eq-wider-look} $$
#
# DDPM's *small* variance is $c = 1$, its *large* one, $\sigma_{t|s}^2 = 1 - \alpha_t^2 / \alpha_s^2$, is $c = \sigma_s^2 / \sigma_t^2$. The best single number is $c^\ast$, from the loss at $t$: a measurement scatters by itself *and* by the guess's error. (Set the average's derivative $\frac d2 (1 - 1/c) + \frac12 (\mathrm{SNR}_s - \mathrm{SNR}_t)\, \mathbb E \|x_0 - \hat x_0\|^2$ to nought.) A hundred steps of `cosine` from $\lambda = -10$ up to 14, on the arcs and on four Gaussians so narrow that they are nearly points:


# %%
# [eq-wider-look]
def step_cost(gained, error, dim, c):
    """Nats of a step whose variance is 1 / c times the posterior's."""
    return dim / 2 * (c - 1 - c.log()) + c / 2 * gained * error


# %% tags=["hide-input"]
def three_costs(model, level):
    """Nats of each step, with the small variance, the large one and the best, (3, steps)."""
    gained, noises = level.exp().diff(), torch.sigmoid(-level)  # noises: sigma^2
    error = least(model, schedule, level[:-1])
    best = 1 / (1 + gained * error / 2)
    return torch.stack(
        [step_cost(gained, error, 2, c) for c in (torch.ones_like(best), noises[1:] / noises[:-1], best)]
    )


high, low = 14.0, -10.0
corners = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0], [1.0, 1.0]]).double()
four = GaussianMixture([0.25] * 4, corners, 1e-7 * torch.eye(2).double().repeat(4, 1, 1))
curved, straight = cosine(high, low), vp_linear(0.1, 19.9)
inside = torch.linspace(low, high, 97, dtype=torch.float64)
areas = {
    name: float(torch.trapezoid(inside.exp() * least(model, schedule, inside), inside)) / 2
    for name, model in (("two arcs", data), ("four points", four))
}
hundred, costs = curved.log_snr(torch.linspace(1, 0, 101, dtype=torch.float64)), {}
print("nats too many     small    large       c*")
for name, model in (("two arcs", data), ("four points", four)):
    costs[name] = [float(cost) - areas[name] for cost in three_costs(model, hundred).sum(1)]
    print(f"{name:13} {costs[name][0]:9.2f} {costs[name][1]:8.2f} {costs[name][2]:8.2f}")

# %% tags=["remove-cell"]
times = time_grid(100, schedule)
ends = math.log(2 * math.pi / schedule.log_snr(times)[-1].exp()) + 1 - truth
above = [float(ends + cost) for cost in three_costs(data, schedule.log_snr(times)).sum(1)]
assert abs(above[0] - gaps[100]) < 1e-5 and round(above[0] / above[1]) == 8 and above[2] < above[1]
on_arcs, on_points = costs.values()
assert [round(on_arcs[0]), round(on_arcs[1], 1), round(on_arcs[2], 1)] == [287, 0.3, 0.2] and len(hundred) == 101
assert on_points[0] < 0.1 and round(on_points[1]) == 6 and on_points[2] < on_points[0] and on_arcs[2] < on_arcs[1]
shares = 1 / (1 + hundred.exp().diff() * least(data, schedule, hundred[:-1]) / 2)
torch.testing.assert_close(three_costs(data, hundred)[2], -shares.log())

# %% [markdown]
# **Neither of the usual two does for both; $c^\ast$ does.** On the arcs the density is flat within the little noise, so $x_0$ given $x_t$ scatters with precision $\mathrm{SNR}_t$. A step of length $\Delta\lambda$ that leaves this out is too narrow by nearly the factor $e^{\Delta\lambda}$: the small variance fails, the large one is right.
# On the points, with little noise, $x_0$ is as good as known: the small variance is right, and the large one expects an error that never comes. $c^\ast$ expects the error that the guess has.
#
# ## The schedule is a clock
#
# The integral knows no schedule, only its ends. But one estimates it with random times, $t$ uniform in $[0, 1]$, and a schedule says how fast $\lambda_t$ falls:
#
# $$ \frac12 \int \big[ \mathbb E \|\varepsilon - \hat\varepsilon\|^2 \big]\, d\lambda = \mathbb E_{t, \varepsilon} \Big[ -\frac12\, \frac{d\lambda_t}{dt}\; \|\varepsilon - \hat\varepsilon\|^2 \Big]. \label{eq-clock-estimate} $$
#
# The value cannot depend on the clock. Its scatter can, and so can the gap of finitely many steps. Three schedules as clocks for $\lambda$, from 14 down to $-10$, on the arcs, with 20,000 draws; and a hundred steps even in $t$, of each variance:


# %% tags=["hide-input"]
# [eq-clock-estimate]
def priced(data, clock, u, x_0, eps):
    """One nat estimate a draw, at times u (N,) of a clock u -> lambda: (N,)."""
    u = u.requires_grad_()
    level = clock(u)
    (rate,) = torch.autograd.grad(level.sum(), u)
    level = level.detach()
    alpha, sigma = torch.sigmoid(level).sqrt()[:, None], torch.sigmoid(-level).sqrt()[:, None]
    guess = data.denoiser(cosine())(alpha * x_0 + sigma * eps, cosine().time(level))
    return -rate / 2 * (eps - guess.eps).square().sum(1)


# %% tags=["hide-input"]
first, last = straight.time(high), straight.time(low)
clocks = {  # the level at a time, and the time at a level
    "even in lambda": (lambda u: high + (low - high) * u, lambda level: (high - level) / (high - low)),
    "cosine": (curved.log_snr, curved.time),
    "linear rate": (
        lambda u: straight.log_snr(first + (last - first) * u),
        lambda level: (straight.time(level) - first) / (last - first),
    ),
}
clean, eps = data.sample(20_000, seeded(4))[0], torch.randn(20_000, 2, generator=seeded(5), dtype=torch.float64)
u, squares = torch.rand(20_000, generator=seeded(6), dtype=torch.float64), []
for level in inside:  # the mean fourth power of the noise's error
    t = schedule.time(level)
    error = eps[:2000] - data.denoiser(schedule)(schedule.add_noise(clean[:2000], eps[:2000], t), t).eps
    squares.append(error.square().sum(1).square().mean())
finely = torch.linspace(low, high, 4801, dtype=torch.float64)
middle = torch.from_numpy(np.interp((finely[1:] + finely[:-1]) / 2, inside, torch.stack(squares)))

# %% tags=["hide-input"]
exact_area, scatter, jump, over = areas["two arcs"], {}, {}, {}
print(f"exact: {exact_area:.2f}")
print(f"{'':15}{'estimate':>15}{'of one draw':>14}{'too much, small':>18}{'(in the last)':>16}{'large':>8}{'c*':>7}")
for name, (clock, when) in clocks.items():
    estimate = float(priced(data, clock, u.clone(), clean, eps).mean())
    square = (finely.diff().square() / -when(finely).diff() * middle).sum() / 4
    scatter[name] = math.sqrt(float(square) - exact_area**2)
    level = clock(torch.linspace(1, 0, 101, dtype=torch.float64))
    each = three_costs(data, level)
    over[name] = [float(cost) - exact_area for cost in each.sum(1)]
    jump[name] = float(each[0, -1] - level[-1] + level[-2])  # its half of the area: d / 2 a unit, so near the data
    print(
        f"{name:15}{f'{estimate:.2f} +- {scatter[name] / 20_000**0.5:.2f}':>15}{scatter[name]:14.0f}"
        f"{over[name][0]:18.1f}{jump[name]:16.1f}{over[name][1]:8.2f}{over[name][2]:7.2f}"
    )
    assert abs(estimate - exact_area) < 3 * scatter[name] / 20_000**0.5

# %% tags=["remove-cell"]
assert [round(scatter[name] / scatter["even in lambda"]) for name in ("cosine", "linear rate")] == [6, 27]
assert [high, low] == [14, -10] and len(level) - 1 == 100
assert all(over[name][0] > 200 and jump[name] > 0.99 * over[name][0] for name in ("cosine", "linear rate"))
assert max(best for _, _, best in over.values()) < 0.5

# %% [markdown]
# The value is the same within three standard errors. But under the two usual schedules one draw scatters several times as much. And a hundred steps of the *small* variance cost hundreds of nats and more, nearly all in the last step, which jumps over many units of $\lambda$.
# With $c^\ast$ the same grids cost less than half a nat. So the fault is less the schedule's than that of a variance that does not expect its error.
#
# So **the plain loss in $\varepsilon$ is the bound, up to constants and the ends, if the training times are evenly spread in $\lambda$**. Under `cosine` the level $\lambda = 6$ has a tenth of the weight of $\lambda = 0$, and what it nearly ignores is the finest detail.
# All positive weights have the same best guess; they say where an imperfect network errs. [Ho et al. (2020)](https://arxiv.org/abs/2006.11239) report better pictures with the plain loss, and better likelihoods with the bound's weights.
#
# ## Two ways to write the bound, and one that is none
#
# Tutorials derive the bound twice. First in *consistency* form, from three neighbours $r, s, t$ of rising noise: where the encoder comes from, $q(x_s \mid x_r)$, against where the model comes from, $p(x_s \mid x_t)$. Then in denoising form, whose variance is said to be lower, since each term has one random variable fewer (Deeper). Is it the same
# bound? Insert $q(x_s \mid x_t, x_0)$ above and below: against $p$, it averages to the price. The average logarithm of a Gaussian is minus its entropy, so the two forms differ by entropies alone:
#
# $$ \mathbb E \log \frac{q(x_s \mid x_r)}{p(x_s \mid x_t)} = \frac{\mathrm{SNR}_s - \mathrm{SNR}_t}{2}\, \mathbb E \|x_0 - \hat x_0(x_t)\|^2 + \frac d2 \log \frac{1 - \mathrm{SNR}_t / \mathrm{SNR}_s}{1 - \mathrm{SNR}_s / \mathrm{SNR}_r} . \label{eq-two-forms} $$
#
# The constants know neither data nor network. If the first $r$ is the clean point, they telescope to $\frac d2 \log(1 - \mathrm{SNR}_t/\mathrm{SNR}_s)$ of the last pair, which the other prior term takes up. So it is the same bound, with the same gradient. But some texts ([Luo (2022)](https://arxiv.org/abs/2208.11970) is one) write the left side as a *divergence* of $q(x_s \mid x_r)$ from $p(x_s \mid x_t)$, averaged over $x_r$ and $x_t$. That draws a second $x_s$ from $x_r$, through which the walk to $x_t$ did not go: another number, by about $d$ nats a step where the steps are short and even in $\lambda$.


# %% tags=["hide-input"]
# [eq-two-forms]
def forms(mixture, x_0, noise, snr):
    """One walk r -> s -> t: terms of the bound (N,), from x_0 (N, d), noise (3, N, d), snr (3, N)."""
    r, s, t = snr[:, :, None]
    u_r = x_0 + noise[0] / r.sqrt()
    to_s, to_t = 1 / s - 1 / r, 1 / t - 1 / s  # variances
    u_s = u_r + to_s.sqrt() * noise[1]
    u_t = u_s + to_t.sqrt() * noise[2]
    level, back = t[:, 0].log(), (s - t) / s**2
    guess = mixture.denoiser(cosine())(torch.sigmoid(level).sqrt()[:, None] * u_t, cosine().time(level)).x0
    model, right = (t * u_t + (s - t) * guess) / s, (t * u_t + (s - t) * x_0) / s
    between, left = (u_r / to_s + u_t / to_t) / (1 / to_s + 1 / to_t), 1 / (1 / to_s + 1 / to_t)

    def surprise(point, mean, variance, extra=0.0):  # -log of a Gaussian, averaged over extra variance of the point
        return (((point - mean) ** 2 + extra) / variance + (2 * math.pi * variance).log().expand_as(point)).sum(1) / 2

    return {
        "consistency, as drawn": surprise(u_s, model, back) - surprise(u_s, u_r, to_s),
        "  x_s averaged, given both": surprise(between, model, back, left) - surprise(between, u_r, to_s, left),
        "denoising, x_s drawn": surprise(u_s, model, back) - surprise(u_s, right, back),
        "  x_s averaged": (s - t)[:, 0] / 2 * (x_0 - guess).square().sum(1),
        "printed divergence": surprise(u_r, model, back, to_s) - surprise(u_r, u_r, to_s, to_s),
    }


# %% tags=["remove-cell"]
line = GaussianMixture([0.5, 0.2, 0.3], torch.tensor([[-1.5], [0.2], [1.4]]).double(), [[[0.3]], [[0.1]], [[0.5]]])
clean, share = divergence.mixture_nodes(line, 12)
three, chances = divergence.hermite(16, 3)
clean, draws = clean.repeat_interleave(len(three), 0), three.T[:, :, None].repeat(1, len(clean), 1)
ratios = torch.tensor([3.0, 1.7, 0.4]).double()[:, None].expand(3, len(clean))
exact = {
    name: float(torch.outer(share, chances).flatten() @ term)
    for name, term in forms(line, clean, draws, ratios).items()
}
constant = 0.5 * math.log((1 - 0.4 / 1.7) / (1 - 1.7 / 3.0))
assert abs(exact["consistency, as drawn"] - exact["  x_s averaged"] - constant) < 1e-6

# %% [markdown]
# **What is exact, and what is not.** Exact: the measurement, its price, the terms, the two forms; the area, for the best guess and a continuous density. The gap of the bound is measured; which of the usual variances is better depends on the data. Quadratures, and the tails beyond $\lambda = \pm 20$, are approximate to the digits shown. Scatter and gaps are those of the arcs, and of these ends.
#
# ## In practice
#
# | if you | do | because |
# |---|---|---|
# | want $-\log p(x)$ from a trained denoiser | add up $\frac12 (\lVert\varepsilon - \hat\varepsilon\rVert^2 - d\alpha^2)\, \Delta\lambda$ over even $\lambda$, several noises each; add $\frac d2 \log(2\pi e)$ | no sampler goes in; over the data, an imperfect denoiser's average is too large |
# | report a bound | take $c^\ast$ (fitted on other points); say ends, steps and variance | on the arcs, a hundred `cosine` steps cost 287 nats with the small one, 0.3 with the large, 0.2 with $c^\ast$; on near-points the large one loses 6 nats |
# | have few draws | draw $\lambda$ evenly, subtract a Gaussian's error with the same noise | one draw's scatter fell from eighteen to ten on the arcs (Deeper) |
# | find a "consistency term" | use the denoising terms in closed form, $\eqref{eq-price-of-a-look}$ | as a divergence it is off by about $d$ nats a step, for short steps even in $\lambda$; as one random term, drawn, it scatters like $T$ |
#
# ## Exercises
#
# Write your answer where the function says `raise NotImplementedError("your turn")`, run the cell, then run the check
# below it.

# %% [markdown]
# ### Exercise 3.1 (easy): what one step costs
#
# A denoiser errs by `error` $= \|x_0 - \hat x_0\|^2$ at time $t$. Return the nats that the step from $t$ to $s$ costs, for numbers `alpha_t`, `sigma_t`, `alpha_s`, `sigma_s`.
#
# <details><summary>Hint</summary>
#
# $\eqref{eq-price-of-a-look}$. The signal-to-noise ratio is a ratio of variances. Which of the two levels has the larger one?
#
# </details>


# %% tags=["exercise"]
def bill(error, alpha_t, sigma_t, alpha_s, sigma_s):
    ### BEGIN SOLUTION
    return ((alpha_s / sigma_s) ** 2 - (alpha_t / sigma_t) ** 2) / 2 * error
    ### END SOLUTION


# %%
exercises.check("3.1", bill)

# %% [markdown]
# ### Exercise 3.2 (medium): without shrinking
#
# A process that does not shrink: $x_t = x_0 + \tau_t\, \varepsilon$, with independent noise added from $s$ to $t$ and $\tau_s < \tau_t$. Return mean and *variance* of $x_s$ given $x_t$ and $x_0$, for tensors `x_t`, `x_0` and numbers `tau_t`, `tau_s`.
#
# <details><summary>Hint</summary>
#
# What are $\alpha$ and the signal-to-noise ratio here? Put them into $\eqref{eq-fresh-look}$. As $\tau_s$ goes to 0 you must come to $x_0$, and as it goes to $\tau_t$, to $x_t$.
#
# </details>


# %% tags=["exercise"]
def unshrunk_look(x_t, x_0, tau_t, tau_s):
    ### BEGIN SOLUTION
    kept = (tau_s / tau_t) ** 2
    return kept * x_t + (1 - kept) * x_0, tau_s**2 * (1 - kept)
    ### END SOLUTION


# %%
exercises.check("3.2", unshrunk_look)

# %% [markdown]
# ### Exercise 3.3 (medium): bits
#
# Pictures with `dim` numbers $y$ from 0 to `levels - 1` were given to a model as $x = 2 y / (\text{levels} - 1) - 1$. The model needs `nats` $= -\log p(x)$ for a picture, a density in $x$. Return one number: the bits a dimension, for the density in $y$.
#
# <details><summary>Hint</summary>
#
# If $x = c\, y + b$, a density in $y$ is $c^{\text{dim}}$ times that in $x$. A bit has $\log 2$ nats.
#
# </details>


# %% tags=["exercise"]
def bits(nats, dim, levels):
    ### BEGIN SOLUTION
    return (nats / dim - math.log(2 / (levels - 1))) / math.log(2)
    ### END SOLUTION


# %%
exercises.check("3.3", bits)

# %% [markdown]
# ### Exercise 3.4 (hard): the best clock
#
# At the increasing `log_snr`, `(n,)`, you know the mean `first` and the mean *square* `second` of $\|\varepsilon - \hat\varepsilon\|^2$. Draw $\lambda$ from a density $p$, and estimate $\frac12 \int \mathbb E \|\varepsilon - \hat\varepsilon\|^2 d\lambda$ from one draw by $\|\varepsilon - \hat\varepsilon\|^2 / (2\, p(\lambda))$.
# Return the density with the least scatter, at `log_snr`, and that scatter (a standard deviation, as a 0-dim tensor), with the trapezoidal rule for integrals.
#
# <details><summary>Hint</summary>
#
# The second moment is $\frac14 \int \mathbb E \|\varepsilon - \hat\varepsilon\|^4 / p \; d\lambda$. By Cauchy and Schwarz $\int f^2 / p \cdot \int p \ge (\int f)^2$, with equality for which $p$?
#
# </details>


# %% tags=["exercise"]
def best_clock(log_snr, first, second):
    ### BEGIN SOLUTION
    root = second.sqrt()
    total = torch.trapezoid(root, log_snr)
    return root / total, ((total / 2) ** 2 - (torch.trapezoid(first, log_snr) / 2) ** 2).sqrt()
    ### END SOLUTION


# %%
exercises.check("3.4", best_clock)

# %% [markdown]
# ### Exercise 3.5 (research): how wrong is the printed form?
#
# The data are standard normal in `dim` dimensions, $\alpha^2 + \sigma^2 = 1$, the denoiser is the best one. Return by how many nats the printed divergence, averaged over $x_r$ and $x_t$, exceeds the left side of $\eqref{eq-two-forms}$, for the three ratios `snr_r > snr_s > snr_t`.
#
# <details><summary>Hint</summary>
#
# Only $-\log p(x_s \mid x_t)$ averages differently: by $\mathbb E \|x_s - m\|^2 / (2v)$, where $m$ is the model's mean and $v$ its variance, that of $\eqref{eq-fresh-look}$. Here $m = \alpha_t / \alpha_s\; x_t$, and $\alpha^2 = \mathrm{SNR} / (1 + \mathrm{SNR})$. What is the mean of $x_s \cdot x_t$, and what is it if $x_s$ is a second draw from the same $x_r$?
#
# </details>


# %% tags=["exercise"]
def printed_excess(snr_r, snr_s, snr_t, dim):
    ### BEGIN SOLUTION
    # The second draw lacks the noise that x_s and x_t share: alpha_{t|s} sigma_{s|r}^2 in each dimension.
    step = snr_t / (1 + snr_t) * (1 + snr_s) / snr_s  # alpha_{t|s}^2
    return dim * step * (1 - snr_s / snr_r) / (1 - snr_t / snr_s)  # of sigma_s^2 both: shared noise, variance
    ### END SOLUTION


# %%
exercises.check("3.5", printed_excess)

# %% [markdown]
# ## Remember
#
# 1. Given $x_0$, a step from $t$ to $s$ is a fresh measurement of it with the precision $\mathrm{SNR}_s - \mathrm{SNR}_t$. If the model's step has the same variance, it costs half of that times $\|x_0 - \hat x_0\|^2$.
# 2. For the best guess, $-\log p(x) = \frac d2 \log(2\pi e) + \frac12 \int (\mathbb E \|\varepsilon - \hat\varepsilon\|^2 - d \alpha^2)\, d\lambda$, exactly, at each $x$ where the density is continuous. For another guess it is too large, on average over the data.
# 3. For the best guess and the small variance, the bound of $T$ steps is an upper sum of the average area; its gap falls like $1/T$. With $c^\ast$, which expects the step's error, a hundred steps cost less than half a nat on the arcs and all three grids; of the usual variances, under the usual schedules, the small one fails on the arcs, the large one on near-points.
# 4. For short steps, schedules with the same ends have the same value. On the arcs, up to $\lambda = 14$, one draw scattered 6 and 27 times as much under two usual schedules as with even $\lambda$.
# 5. The consistency form is the same bound, if $x_s$ is a point of the walk; as a divergence it is not. One random term, as drawn, scatters like $T$, the denoising term in closed form like a constant. Over whole walks neither grows (Deeper).
#
# **Where it comes from.** The bound, its two ends and the continuous limit: [Sohl-Dickstein et al. (2015)](https://arxiv.org/abs/1503.03585), [Ho et al. (2020)](https://arxiv.org/abs/2006.11239), [Kingma et al. (2021)](https://arxiv.org/abs/2107.00630), who also learn the schedule. Both forms side by side: [Luo (2022)](https://arxiv.org/abs/2208.11970). A network that chooses between the two variances: [Nichol & Dhariwal (2021)](https://arxiv.org/abs/2102.09672).
# The area, the relation of information and minimum mean square error (*I-MMSE*): [Guo, Shamai & Verdú (2005)](https://arxiv.org/abs/cs/0412108); single points: [Kong et al. (2023)](https://arxiv.org/abs/2302.03792).

# %% [markdown]
# ## Deeper: which loss is the bound?
#
# *For those who choose a loss. It adds the weights of the losses in $x_0$, $v$ and the score, and what each of them counts.*
#
# Errors of chapter 01's four guesses differ by factors. From $x_t = \alpha \hat x_0 + \sigma \hat\varepsilon$, the definition of $v$, and $s = -\varepsilon / \sigma$ for the score,
#
# $$ \|x_0 - \hat x_0\|^2 = e^{-\lambda}\, \|\varepsilon - \hat\varepsilon\|^2, \qquad \|v - \hat v\|^2 = (1 + e^{-\lambda})\, \|\varepsilon - \hat\varepsilon\|^2, \qquad \|s - \hat s\|^2 = (1 + e^{\lambda})\, \|\varepsilon - \hat\varepsilon\|^2 . \label{eq-loss-weights} $$
#
# So each loss is the opening's curve, summed with a weight: this factor, times the time $|dt / d\lambda|$ that the schedule spends at $\lambda$. Under `cosine` that is $1 / (2\pi \cosh(\lambda/2))$, but for its cut-offs.


# %%
# [eq-loss-weights]
def factors(log_snr):
    """What turns a squared error of eps into one of x0, of v, of the score."""
    return {"x0": torch.exp(-log_snr), "v": 1 + torch.exp(-log_snr), "score": 1 + torch.exp(log_snr)}


# %% tags=["hide-input"]
seen = data.sample(1, seeded(7))[0]
for level in (-3.0, 2.0):
    u = schedule.time(level)
    alpha, sigma = schedule.alpha(u), schedule.sigma(u)
    x_u = alpha * seen + sigma * eps[:1]
    said = data.denoiser(schedule)(x_u, u)
    off = (eps[:1] - said.eps).square().sum()
    found = {
        "x0": (seen - said.x0),
        "v": alpha * (eps[:1] - said.eps) - sigma * (seen - said.x0),
        "score": -eps[:1] / sigma - said.score(sigma),
    }
    for name, factor in factors(torch.tensor(level).double()).items():
        torch.testing.assert_close(found[name].square().sum(), factor * off)
time_spent = 1 / (2 * math.pi * torch.cosh(inside / 2))
slope = -torch.autograd.functional.jacobian(schedule.time, inside[::12]).diagonal()
torch.testing.assert_close(slope, time_spent[::12], rtol=1e-3, atol=0)
print("lambda            -6     -3      0      3      6      9")
for name, factor in {"eps": torch.ones_like(inside), **factors(inside)}.items():
    weight = factor * time_spent
    row = [float(weight[int((level - low) * 4)] / weight[40]) for level in (-6, -3, 0, 3, 6, 9)]
    print(f"{name:12}", " ".join(f"{value:6.2f}" for value in row))
fine = log_snr >= 6
lost = float(torch.trapezoid((plain_curve - curve)[fine], log_snr[fine])) / 2
print(f"of the {gain:.2f} nats that the arcs save, above lambda = 6: {lost:.2f}")

# %% tags=["remove-cell"]
assert float(inside[40]) == 0 and float(inside[64]) == 6
assert 0.18 < lost / gain < 0.25 and round(float(time_spent[64] / time_spent[40]), 1) == 0.1

# %% [markdown]
# Weights relative to $\lambda = 0$; the bound's is 1 throughout. In the plain loss under `cosine`, everything above $\lambda = 6$ counts a tenth or less, and there lies a fifth of what sets the arcs apart from one Gaussian. The loss in $x_0$ counts the most noise, the score's the least.
# [Chapter 13](13_training.ipynb#deeper-what-should-the-network-predict) trains networks with three of them.

# %% [markdown]
# ## Deeper: does the denoising form scatter less?
#
# *For those who read that it has the lower variance. It adds the scatter of one random term, and of all terms of a walk.*
#
# On the arcs, between $\lambda = 8$ and $-8$ (so the constants vanish), with the *same* draws for all forms. First one of the $T$ steps at random, times their number, as in training.

# %% tags=["hide-input"]
print("mean (scatter of one draw)", *(f"{f'T = {steps}':>16}" for steps in (10, 40, 160, 640)))
table = {}
for steps in (10, 40, 160, 640):
    snr = torch.linspace(8, -8, steps + 1).double().exp()
    k = torch.randint(1, steps, (20_000,), generator=seeded(8))
    draws = torch.randn(3, 20_000, 2, generator=seeded(9), dtype=torch.float64)
    terms = forms(data, data.sample(20_000, seeded(10))[0], draws, torch.stack([snr[k - 1], snr[k], snr[k + 1]]))
    for name, term in terms.items():
        table.setdefault(name, []).append(((steps - 1) * float(term.mean()), (steps - 1) * float(term.std())))
for name, row in table.items():
    print(f"{name:26}", *(f"{f'{mean:.1f} ({std:.0f})':>16}" for mean, std in row))

# %% tags=["remove-cell"]
std = {name: [pair[1] for pair in row] for name, row in table.items()}
drawn, both_known, one_drawn, averaged, printed = std.values()
assert round(drawn[3] / averaged[3], -1) == 90
assert (
    3.5 < drawn[3] / drawn[2] < 4.5
    and 1.8 < one_drawn[3] / one_drawn[2] < 2.2
    and 1.8 < both_known[3] / both_known[2] < 2.3
)
assert 0.8 < averaged[3] / averaged[2] < 1.2 and drawn[3] > 80 * averaged[3] and 6 < one_drawn[3] / averaged[3] < 10
for steps, (mean, _) in zip((10, 40, 160, 640), table["printed divergence"], strict=True):
    assert steps == 10 or abs(mean / (2 * steps) - 1) < 0.25
for name in list(table)[:4]:
    for (mean, spread_), (other, other_spread) in zip(table[name], table["  x_s averaged"], strict=True):
        assert abs(mean - other) < 4 * math.hypot(spread_, other_spread) / 20_000**0.5

# %% [markdown]
# **For one random term, yes, with $x_s$ averaged out by hand.** Then its scatter stays; drawn, it grows like $\sqrt T$. That of the consistency form, averaged, grows like $\sqrt T$, and as drawn like $T$, to 90 times as much at 640 steps. The printed divergence grows by nearly $d = 2$ nats a step.
# **Is the number of variables the cause?** No. The first row and the third hold three points each, and grow like $T$ and $\sqrt T$; the second and fourth hold two each, and grow like $\sqrt T$ and not at all. As drawn, a term holds the squares of two moves, of order one however short the steps are, to tell a difference of order $1/T$.
#
# Now whole walks, all terms of each added up, from three upper ends down to the same lower one:


# %% tags=["hide-input"]
def whole_walks(upper, steps):
    """Scatter of each form's sum over a walk: a dict of floats."""
    snr = torch.linspace(upper, -8, steps + 1, dtype=torch.float64).exp()[:, None].expand(-1, 200)
    clean = data.sample(200, seeded(14))[0]
    moves = torch.randn(steps + 1, 200, 2, generator=seeded(15), dtype=torch.float64)
    variances = torch.cat([1 / snr[:1], (1 / snr).diff(dim=0)])
    u, sums = clean + (variances.sqrt()[:, :, None] * moves).cumsum(0), {}
    for k in range(1, steps):
        noises = torch.stack([(u[k - 1] - clean) * snr[k - 1].sqrt()[:, None], moves[k], moves[k + 1]])
        for name, term in forms(data, clean, noises, snr[k - 1 : k + 2]).items():
            sums[name] = sums.get(name, 0.0) + term
    return {name: float(total.std()) for name, total in sums.items()}


kinds = [(8, 10), (8, 40), (8, 160), (8, 640), (3, 160), (0, 160)]
print(f"{'whole walks, upper end':26}", *(f"{upper:10}" for upper, _ in kinds))
print(f"{'scatter at T =':26}", *(f"{steps:10}" for _, steps in kinds))
walks = [whole_walks(*kind) for kind in kinds]
for name in list(walks[0])[:4]:
    print(f"{name:26}", *(f"{walk[name]:10.1f}" for walk in walks))

# %% tags=["remove-cell"]
whole = [list(walk.values()) for walk in walks]
assert whole[3][0] < whole[0][0] / 2 and whole[3][0] < whole[3][3] < 4 and whole[5][3] < whole[5][0] / 2
assert abs(whole[4][0] / whole[4][3] - 1) < 0.2 and walks[0].keys() == table.keys()

# %% [markdown]
# In a whole walk each of those squares comes twice, with opposite signs, so nothing grows with $T$. From an upper end at 8 the consistency form is the quieter, at 3 they are alike, and at 0 the closed denoising form is: its scatter comes from the noise's error at little noise.

# %% [markdown]
# ## Deeper: the step from a joint Gaussian
#
# *For those who do not like to complete squares. It adds a second way to the step, which needs one covariance.*
#
# Given $x_0$, the pair $(x_s, x_t)$ is jointly Gaussian. Since $x_t = \alpha_{t|s} x_s + \text{noise}$, with $\alpha_{t|s} = \alpha_t / \alpha_s$, their covariance is $\alpha_{t|s} \sigma_s^2$. Regress $x_s$ on $x_t$:
#
# $$ \mathbb E[x_s \mid x_t, x_0] = \alpha_s x_0 + \frac{\alpha_{t|s} \sigma_s^2}{\sigma_t^2}\, (x_t - \alpha_t x_0), \qquad \mathrm{Var}(x_s \mid x_t, x_0) = \sigma_s^2 - \frac{\alpha_{t|s}^2 \sigma_s^4}{\sigma_t^2} . \label{eq-joint-look} $$


# %%
# [eq-joint-look]
def regressed(x_t, x_0, alpha_t, sigma_t, alpha_s, sigma_s):
    """Mean and variance of x_s, given x_t and x_0."""
    cov = alpha_t / alpha_s * sigma_s**2
    return alpha_s * x_0 + cov / sigma_t**2 * (x_t - alpha_t * x_0), sigma_s**2 - cov**2 / sigma_t**2


# %%
t, s = torch.tensor(0.6, dtype=torch.float64), torch.tensor(0.4, dtype=torch.float64)
levels = schedule.alpha(t), schedule.sigma(t), schedule.alpha(s), schedule.sigma(s)
again, var_again = regressed(x_t, x_0, *levels)
torch.testing.assert_close(again, mean_s)
torch.testing.assert_close(var_again, var_s)

# %% [markdown]
# ## Deeper: how the curve was computed
#
# *For those who want the truth without drawing. It adds the least error from second derivatives of the noisy density.*
#
# Under $x_t$ lies a cloud of clean points with the covariance $\frac{\sigma_t^2}{\alpha_t^2} (I + \sigma_t^2 \nabla \nabla^\top \log p_t)$ ([chapter 01](01_noising.ipynb#deeper-how-sure-the-guess-is)). Its trace, averaged:
#
# $$ \mathbb E \|x_0 - \hat x_0\|^2 = \frac{\sigma_t^2}{\alpha_t^2} \Big( d + \sigma_t^2\, \mathbb E\big[ \mathrm{tr}\, \nabla \nabla^\top \log p_t(x_t) \big] \Big) . \label{eq-least-error} $$

# %%
clean, share = divergence.mixture_nodes(data, 6)
by_average = chance @ likelihood.squared_errors(data.denoiser(schedule), schedule, clean, s, noise) @ share
by_curvature = likelihood.least_error(data, schedule, s, 24)
print(
    f"error of the best guess at t = 0.4: {float(by_average):.5f} by averaging, {float(by_curvature):.5f} by curvature"
)
torch.testing.assert_close(by_average, by_curvature, rtol=1e-5, atol=0)

# %% [markdown]
# ## Deeper: a clock that learns
#
# *For those who estimate or train with few draws. It adds a schedule that is learned together with a network, the best it could do, and a cheaper trick.*
#
# [Kingma et al. (2021)](https://arxiv.org/abs/2107.00630) let a network with an increasing output $\omega(t)$ say
#
# $$ \mathrm{SNR}(t) = e^{-\omega(t)}, \qquad \alpha_t^2 = \frac{1}{1 + e^{\omega(t)}}, \qquad \sigma_t^2 = \frac{1}{1 + e^{-\omega(t)}} . \label{eq-learned-clock} $$
#
# The mean of $\eqref{eq-clock-estimate}$ depends on $\omega$ only through its ends, which we hold fixed. So the denoiser descends the mean, and the clock the mean *square* (here its logarithm), on the same draws.


# %%
class Clock(nn.Module):
    """An increasing omega(t) from -14 to 10: a mixture of eight S-curves."""

    def __init__(self):
        super().__init__()
        self.weight, self.centre = nn.Parameter(torch.zeros(8)), nn.Parameter(torch.linspace(0, 1, 8))
        self.steep = nn.Parameter(torch.full((8,), 1.5))

    def forward(self, t):
        bottom, top, here = (self.curves(u) for u in (t.new_zeros(1), t.new_ones(1), t))
        return -14 + 24 * ((here - bottom) / (top - bottom)) @ self.weight.softmax(0)

    def curves(self, t):
        return torch.sigmoid(self.steep.exp() * (t[:, None] - self.centre))


# %%
# [eq-learned-clock]
def levels_of(omega):
    """Signal-to-noise ratio, alpha and sigma."""
    return torch.exp(-omega), torch.sigmoid(-omega).sqrt(), torch.sigmoid(omega).sqrt()


# %% tags=["remove-cell"]
ratio, *kept_and_added = levels_of(torch.tensor([-3.0, 0.5], dtype=torch.float64))
squares = [level.square() for level in kept_and_added]
torch.testing.assert_close(squares[0] + squares[1], torch.ones_like(ratio))
torch.testing.assert_close(squares[0] / squares[1], ratio)


# %%
def nats_of(network, clock, x_0, t, eps):
    """One estimate a draw of what the bound's integral is, (N,)."""
    t.requires_grad_()
    omega = clock(t)
    (rate,) = torch.autograd.grad(omega.sum(), t, create_graph=True)
    _, alpha, sigma = (level[:, None] for level in levels_of(omega))
    x = alpha * x_0 + sigma * eps
    v = network(x, -omega, torch.zeros(len(x), dtype=torch.long))
    return rate / 2 * (eps - sigma * x - alpha * v).square().sum(1)


def draws_of(count, dice):
    """Clean points, stratified times and noises, in float32."""
    t = (torch.rand((), generator=dice) + torch.arange(count) / count) % 1
    return data.sample(count, dice)[0].float(), t, torch.randn(count, 2, generator=dice)


# %%
def trained(steps):
    """A network and a clock: each descends its own goal, on the same draws."""
    torch.manual_seed(0)
    network, clock, dice = plane.PlaneNetwork(1), Clock(), seeded(0)
    optimisers = [torch.optim.Adam(part.parameters(), lr=1e-2, betas=(0.9, 0.99)) for part in (network, clock)]
    for k in range(steps):
        optimisers[0].param_groups[0]["lr"] = 1e-2 * (1 + math.cos(math.pi * k / steps)) / 2
        nats = nats_of(network, clock, *draws_of(256, dice))
        for part, goal in ((network, nats.mean()), (clock, nats.square().mean().log())):
            for weight, slope in zip(
                part.parameters(), torch.autograd.grad(goal, list(part.parameters()), retain_graph=True), strict=True
            ):
                weight.grad = slope
        for optimiser in optimisers:
            optimiser.step()
    return network, clock


network, clock = trained(700)

# %% tags=["hide-input"]
results, errors_at = {}, {}
for name, one in {"even in lambda": lambda t: -14 + 24 * t, "learned": clock}.items():
    drawn_x, drawn_t, drawn_eps = draws_of(40_000, seeded(1))
    nats = nats_of(network, one, drawn_x, drawn_t, drawn_eps).detach().double()
    results[name] = float(nats.mean()), float(nats.std())
    errors_at[name] = nats
    print(
        f"{name:15} {results[name][0]:.2f} +- {results[name][1] / 200:.2f} nats, scatter of one draw {results[name][1]:.1f}"
    )
order = drawn_t.detach().argsort()
second = (errors_at["even in lambda"] / 12)[order].square().view(50, 800).mean(1)  # by level, from 14 down
root = second.sqrt() / (second.sqrt().mean() * 24)
least_scatter = math.sqrt((second.sqrt().mean() * 12) ** 2 - results["even in lambda"][0] ** 2)
print(f"the least scatter that any clock can have with this network: {least_scatter:.1f}")
moments = torch.linspace(0, 1, 2001)[:-1] + 1 / 4000
omega = clock(moments.requires_grad_())
(rate,) = torch.autograd.grad(omega.sum(), moments)

# %% tags=["hide-input"]
with plotting.style():
    figure, axes = plotting.plt.subplots(figsize=(5.0, 2.8))
    axes.plot(-omega.detach(), 1 / rate, color=blue, linewidth=2)
    axes.plot(14 - 24 * (torch.arange(50) + 0.5) / 50, root, color="black", linestyle="dashed")
    axes.plot(inside, time_spent, color=grey)
    axes.text(9.5, 0.062, "learned", color=blue)
    axes.text(5.6, 0.024, "dashed: best\nfor this network", color="black")
    axes.text(-6.2, 0.10, "cosine", color=grey)
    axes.set(xlabel="log signal-to-noise ratio", ylabel="time spent", ylim=(0, None))
    shown = plotting.show(
        figure,
        "03_learned_clock",
        alt="Time spent over the log signal-to-noise ratio from -10 to 14. Cosine: a narrow peak at 0. Dashed, the best for this network: rises from near 0 on the left to a broad plateau on the right. The learned curve follows the dashed one.",
    )
shown

# %% [markdown]
# *Time spent at each level by the learned clock, by `cosine`, and by the best clock for this network (dashed). The learned one spends it where the error is large.*
#
# The value is the same within the scatter, which fell. The best clock spends its time in proportion to the root mean square of the loss (exercise 3.4); the learned one comes near it. The network's value lies above the exact area: that is its own error, in nats.
#
# The cheaper trick leaves the clock alone. Subtract, draw by draw, what the one Gaussian's best guess errs at the *same* noise; its mean is known.

# %% tags=["remove-cell"]
(even_mean, even_scatter), (learned_mean, learned_scatter) = results.values()
assert abs(even_mean - learned_mean) < 3 * math.hypot(even_scatter, learned_scatter) / 200
assert learned_scatter < 0.8 * even_scatter and least_scatter < learned_scatter < 1.15 * least_scatter

# %%
u = torch.rand(20_000, generator=seeded(11), dtype=torch.float64)
x_0, eps = data.sample(20_000, seeded(12))[0], torch.randn(20_000, 2, generator=seeded(13), dtype=torch.float64)
alone, beside = (priced(model, clocks["even in lambda"][0], u.clone(), x_0, eps) for model in (data, plain))
print(f"scatter of one draw: {float(alone.std()):.1f}, as a difference {float((beside - alone).std()):.1f}")
print(
    f"the arcs save {float((beside - alone).mean()):.2f} +- {float((beside - alone).std()) / 20_000**0.5:.2f} nats (exactly {gain:.2f})"
)
assert round(float(alone.std())) == 18 and round(float((beside - alone).std())) == 10
assert abs(float((beside - alone).mean()) - gain) < 3 * float((beside - alone).std()) / 20_000**0.5
