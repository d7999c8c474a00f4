# %% [markdown]
# # 10 · The general case: how do you guide a sampler that adds no noise?
#
# Chapter 07 steers each step by the variance of its noise times the gradient of a classifier. You switch to DDIM, because it is
# faster. DDIM adds no noise. So the variance is zero, and zero times the gradient is zero: you turn $\gamma$ up and up, and get, bit for
# bit, the pictures of the model without guidance. No error message. What should you have written?
# [Chapter 07](07_mean_shift.ipynb#in-practice) has the line in its table; here is why it holds for every sampler, and how far from it a mean shift is.
#
# **After this chapter you can**
# * guide any sampler, noisy or not, with one line, and prove it;
# * say how far the label moves a step of any noise level, exactly;
# * tell how much guidance a mean shift silently loses, from the sampler's noise;
# * (Deeper) choose a sampler and a number of evaluations for your $\gamma$.
#
# **You need** chapter 07 (the mean shift), Bayes' rule, and what a stochastic differential equation looks like.
#
# *24 minutes to read, 23 more for Deeper, 35 seconds to run, on a laptop, without a GPU or a network connection.*

# %%
import itertools
import math

import numpy
import torch

from difflesson import divergence, exercises, guidance, kernels, metrics, ode, plane, plotting
from difflesson.denoiser import Prediction
from difflesson.mixture import GaussianMixture
from difflesson.samplers import draw, sample, time_grid
from difflesson.schedule import vp_linear

torch.set_num_threads(1)  # the arrays are small: more threads would not be faster

# %% [markdown]
# ## The same noise, three times
#
# The laboratory is that of chapter 07: the mixture of four blobs, two of them class 1, where the denoiser and the classifier are exact.
# In the code, `free` is the denoiser that knows no label, and `grad` the classifier's gradient.
# DDIM carries the same sixty starting noises to the data: without a label; with the mean shift for class 1, at $\gamma = 10$; and
# with the line that this chapter derives, at $\gamma = 1$.

# %% tags=["hide-input"]
mixture, label, schedule = plane.four_blobs(), 1, vp_linear()
free = mixture.denoiser(schedule)  # knows no label


def noised(mixture, schedule, t):
    return mixture.noised(schedule.alpha(t), schedule.sigma(t))


def gradient_of(mixture, schedule, label):
    return lambda x, t: noised(mixture, schedule, t).class_gradient(x, label)


def seeded(number):
    return torch.Generator().manual_seed(number)


grad = gradient_of(mixture, schedule, label)

# %%
def grid_of(steps):  # evenly spaced in log-SNR; all runs end at t = 0.001
    return time_grid(steps, schedule, end=0.001)


start = torch.randn(3000, 2, generator=seeded(0), dtype=torch.float64)
quiet = kernels.ddim(free, schedule)
shifted = kernels.shift(quiet, grad, gamma=10.0)
told = kernels.ddim(guidance.tilt(free, grad, 1.0, schedule), schedule)

# %% tags=["hide-input"]
runs = {"no label": (quiet, "unconditional"), r"mean shift, $\gamma = 10$": (shifted, "other"), r"$\varepsilon$ substitution, $\gamma = 1$": (told, "guided")}
with plotting.style():
    figure, axes = plotting.plt.subplots(1, 3, figsize=(8.0, 3.0), sharex=True, sharey=True)
    ways = {}
    for panel, (name, (kernel, colour)) in zip(axes, runs.items(), strict=True):
        way = ways[name] = torch.stack(list(sample(kernel, start[:60], grid_of(100))))
        panel.plot(way[:, :, 0], way[:, :, 1], color=plotting.COLOURS[colour], linewidth=0.5, alpha=0.7)
        panel.plot(*way[-1].T, "o", color=plotting.COLOURS[colour], markersize=3.2, markeredgecolor="white", markeredgewidth=0.3, zorder=3)
        for y in (0, 1):
            plotting.density(panel, mixture.given(y).log_prob, (-5, 5, -4, 4), linewidths=0.7, zorder=4)
        share = float(mixture.class_log_prob(way[-1], label).exp().mean())
        panel.set(title=f"{name}\nclass mass {share:.2f}", xlabel="$x_1$", xlim=(-4.3, 4.3), ylim=(-2.9, 3.5), aspect="equal")
    axes[0].text(-4.2, 3.0, "class 0")
    axes[0].text(2.4, 3.0, "class 1")
    axes[0].set_ylabel("$x_2$")
    shown = plotting.show(figure, "10_question", alt="Three panels with sixty paths each, from the same starting noises to four blobs. Without a label and with the mean shift at gamma 10 the pictures are identical: the points end in all four blobs. With the substitution at gamma 1 all paths bend to the right, into the two blobs of class 1.")
no_label, mean_shift, substituted = ways.values()
assert torch.equal(no_label, mean_shift)
masses = [float(mixture.class_log_prob(way[-1], label).exp().mean()) for way in ways.values()]
assert masses[0] == masses[1] < 0.5 and masses[2] > 0.85
shown

# %% [markdown]
# *Paths of DDIM from sixty noises; dots are where they end, dashed lines hold 50, 90 and 99 % of each class. The class mass is how
# sure the exact classifier is of the dots, on average. The middle panel equals the left one bit for bit. The right one uses the
# same classifier, a tenth of the scale, and the same sampler. (Sixty dots: the class masses are rough.)*
#
# **What happens.** A sampler has one arrow at every point and noise level, the score: it says where the density of noisy data grows. It
# may do two jobs with it. The first is to *carry*: move the cloud of points from one noise level to the next. The second, if it is
# a noisy sampler, is to *make up for its own noise*: what it shakes apart, it must pull together again, along the same arrow.
#
# **Why the shift dies.** The label changes the arrow. So it changes both jobs: the carrying, whether there is noise or not, and the
# pulling together, in proportion to the noise. A mean shift is variance times gradient: without noise it is nothing.
#
# **What to do.** Do not touch the step. Change the arrow, before the sampler sees it: `eps = eps - gamma * sigma * grad`. In short steps half of the push that DDPM gets comes from carrying, half from making up for its noise. Together they are the variance times the gradient: so in short steps the mean shift is right for DDPM, and for no other noise.
#
# ## Only the arrow knows the data
#
# Noise gets into data by $x_t = \alpha_t x_0 + \sigma_t \varepsilon$, with $\alpha_t^2 + \sigma_t^2 = 1$. In continuous time, with the *noise rate* $r = -2\, \partial_t \log \alpha_t$, that is $dx = -\frac r2 x\, dt + \sqrt r\, dw$.
# (In chapter 05 and in the code $r$ is $\beta(t)$; here $\beta$ is the length of a step.)
# A density changes because points are carried (what flows in, less what flows out) and because noise spreads them. The Fokker-Planck equation adds up the two: $\partial_t p_t = -\nabla \cdot \big({-\frac r2} x\, p_t\big) + \frac r2 \Delta p_t$. It is turned round in three steps; the last two are those of [chapter 05](05_every_reverse_process_at_once.ipynb#a-shake-and-its-pull), with $p_t(x \mid y)$ for $p_t(x)$.
#
# 1. Noise does not look at the label. So the density of the noisy data *of one class*, $p_t(x \mid y)$, obeys the same equation.
# 2. $\nabla p = p\, \nabla \log p$, so $\frac r2 \Delta p = \nabla \cdot \big(p\, \frac r2 \nabla \log p\big)$: spreading by noise is the same as being carried
#    by the velocity $-\frac r2 \nabla \log p$. So $p_t(x \mid y)$ moves as if every point had the velocity $-\frac r2 \big(x + \nabla \log p_t(x \mid y)\big)$. Run that backwards: a sampler without noise.
# 3. Now add noise of rate $\rho^2 r$ to the backward run, with any *dose* $\rho \ge 0$. It would spread the density by $\frac{\rho^2 r}2 \Delta p$. By the
#    second step a velocity of $\frac{\rho^2 r}{2} \nabla \log p$, uphill, takes exactly that back.
#
# Together, with $\bar w$ for the noise of the backward run, in which time falls ($dt < 0$):
#
# $$ dx = \Big( -\frac r2\, x - \frac{1 + \rho^2}{2}\, r\, \nabla \log p_t(x \mid y) \Big)\, dt + \rho \sqrt{r}\; d\bar w.
# \label{eq-conditional-reverse-sde} $$
#
# Of the factor of the score, $\frac12$ carries and $\frac{\rho^2}{2}$ makes up for the noise. $\rho = 0$ is the probability-flow ODE, $\rho = 1$ the reverse SDE that DDPM follows. The cell below checks it as it was derived: the backward run must change $\log p_t(x \mid y)$ as time does, at every point, for every $\rho$.

# %% tags=["hide-input"]
# [eq-conditional-reverse-sde]
def change_backwards(at_t, x, rate, rho):
    """d/d(-t) log p of a cloud with density at_t under the reverse SDE, (N,)."""
    score, curve = at_t.score(x), at_t.hessian(x).diagonal(dim1=1, dim2=2).sum(1)
    half = (1 + rho**2) / 2
    drift = rate / 2 * x + half * rate * score  # per unit of -dt
    spread = rate / 2 * x.shape[1] + half * rate * curve  # its divergence
    noise = rho**2 * rate / 2 * (curve + score.square().sum(1))
    return -spread - (drift * score).sum(1) + noise


# %% tags=["hide-input"]
t, h = 0.4, 1e-5
x_t = torch.randn(5, 2, generator=seeded(1), dtype=torch.float64)
later, sooner = (noised(mixture.given(label), schedule, t + k * h).log_prob(x_t) for k in (1, -1))
truth = (sooner - later) / (2 * h)
for rho in (0.0, 0.5, 1.0, 2.0):
    found = change_backwards(noised(mixture.given(label), schedule, t), x_t, schedule.beta(t), rho)
    torch.testing.assert_close(found, truth, atol=1e-7, rtol=0)
    print(f"rho = {rho}: largest difference {float((found - truth).abs().max()):.0e}")

# %% [markdown]
# What in $\eqref{eq-conditional-reverse-sde}$ knows anything about data? The score, and nothing else. **So replace the score by that of the class,
# whatever the noise.** By Bayes' rule ($p(y)$ has no gradient) the score of the class is $\nabla \log p_t(x) + g_t(x)$, with the classifier's gradient $g_t(x) = \nabla \log p_t(y \mid x)$. The
# model's guess of the noise, without a label, is the score in other units ([chapter 01](01_noising.ipynb#one-thing-under-four-names)): $\hat\varepsilon_u = -\sigma_t \nabla \log p_t$. Multiply by $-\sigma_t$:
#
# $$ \hat\varepsilon_\gamma = \hat\varepsilon_u - \gamma\, \sigma_t\; \nabla \log p_t(y \mid x_t). \label{eq-eps-substitution} $$
#
# At $\gamma = 1$ this *is* the guess of a model that knows class 1 alone, identically; another $\gamma$ goes between the two or beyond.

# %%
eps = free(x_t, t).eps - 1.0 * schedule.sigma(t) * grad(x_t, t)
guided = guidance.tilt(free, grad, 1.0, schedule)
compact = guided(x_t, t)
trained_on_class_1 = mixture.denoiser(schedule, label)(x_t, t)
torch.testing.assert_close(compact.eps, eps)
off = max(float((a - b).abs().max()) for a, b in zip(compact, trained_on_class_1, strict=True))
print(f"largest difference to the conditional model {off:.0e}")
assert off < 1e-12

# %% [markdown]
# (`tilt` changes the guess of the clean point along with it, $\hat x_0 = (x_t - \sigma_t \hat\varepsilon) / \alpha_t$.) This is Algorithm 2 of [Dhariwal & Nichol (2021)](https://arxiv.org/abs/2105.05233), their equation 14. As libraries write it, with `alpha_bar` for $\alpha_t^2$ and their DDIM loop:

# %%
def algorithm_2(eps_model, cond_fn, x, alpha_bars, scale):
    for bar, bar_prev in zip(alpha_bars[:-1], alpha_bars[1:], strict=True):
        eps = eps_model(x, bar) - (1 - bar).sqrt() * scale * cond_fn(x, bar)
        pred_xstart = (x - (1 - bar).sqrt() * eps) / bar.sqrt()
        x = bar_prev.sqrt() * pred_xstart + (1 - bar_prev).sqrt() * eps
    return x


# %% tags=["hide-input"]
bars = schedule.alpha(grid_of(50)) ** 2
theirs = algorithm_2(
    lambda x, bar: -(1 - bar).sqrt() * mixture.noised(bar.sqrt(), (1 - bar).sqrt()).score(x),
    lambda x, bar: mixture.noised(bar.sqrt(), (1 - bar).sqrt()).class_gradient(x, label),
    start, bars, scale=3.0,
)  # fmt: skip
tripled = guidance.tilt(free, grad, 3.0, schedule)
ours = draw(kernels.ddim(tripled, schedule), start, grid_of(50))
torch.testing.assert_close(theirs, ours, atol=1e-9, rtol=0)

# %% [markdown]
# ## Half carries, half makes up for the noise
#
# Put the guided score, $\nabla \log p_t + \gamma\, g_t$, into $\eqref{eq-conditional-reverse-sde}$. Let $\beta = r\, |dt|$ be the length of a short step: the sampler adds noise of variance $\rho^2 \beta$. The score has changed by $\gamma\, g_t$, so the step moves by $\gamma\, \frac{1 + \rho^2}{2}\, \beta\, g_t$. **The push belongs to the score: $\frac12 \beta$ of it carries, whatever the noise, and $\frac12 \rho^2 \beta$ makes up for the noise.**
#
# A mean shift moves the step by $\gamma\, \rho^2 \beta\, g_t$. That is the share $\frac{2 \rho^2}{1 + \rho^2}$ of the push that you asked for. Take such a step, both ways:

# %%
near = 0.399
beta = schedule.beta(t) * (t - near)
for rho in (0.0, 0.2, 0.5, 1.0, 2.0):
    base = kernels.reverse_sde(free, schedule, rho)
    both = kernels.reverse_sde(guided, schedule, rho), kernels.shift(base, grad, 1.0)
    there, unit = base(x_t, t, near).mean, beta * grad(x_t, t)
    push, shift = ((way(x_t, t, near).mean - there) / unit for way in both)
    torch.testing.assert_close(push, torch.full_like(push, (1 + rho**2) / 2), atol=1e-9, rtol=0)
    torch.testing.assert_close(shift, 2 * rho**2 / (1 + rho**2) * push, atol=1e-9, rtol=0)
    print(f"rho = {rho}: the substitution moves by {float(push.mean()):.3f} beta g, "
          f"the mean shift by {float(shift.mean()):.3f}: {float((shift / push).mean()):.0%}")

# %% [markdown]
# In short steps the mean shift pays nothing without noise, 8 % of the guidance you asked for at $\rho = 0.2$, and 40 % at $\rho = 0.5$. It pays all of it at $\rho = 1$, and only there; then *too much*, up to twice.
#
# ## Pitfall: a little noise, a little guidance
#
# A DDPM with a mean shift is well tested. Somebody turns the noise down, for speed. Nothing breaks. Here are samples over the noise, at $\gamma = 1$, where the right answer is known. The
# sampler takes 100 Euler steps of $\eqref{eq-conditional-reverse-sde}$.

# %%
levels = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.4, 2.0)
target = mixture.given(label).weights @ mixture.given(label).means
found = {"mean shift": [], "substitution": []}
for rho in levels:
    walk = kernels.shift(kernels.reverse_sde(free, schedule, rho), grad, 1.0)
    changed = kernels.reverse_sde(guidance.tilt(free, grad, 1.0, schedule), schedule, rho)
    for name, kernel in zip(found, (walk, changed), strict=True):
        x = draw(kernel, start, grid_of(100), seeded(2))
        in_class = mixture.class_log_prob(x, label).exp().mean()
        found[name].append((float(in_class), float(x[:, 0].mean())))

# %% tags=["hide-input"]
nodes, chances = divergence.mixture_nodes(mixture.given(label), order=40)
truth_mass = float(chances @ mixture.class_log_prob(nodes, label).exp())  # the class mass of class 1
all_mass = float(mixture.class_weights()[label])  # and of all data

# %% tags=["hide-input"]
with plotting.style():
    figure, (left, right) = plotting.plt.subplots(1, 2, figsize=(8.6, 3.2))
    rhos = torch.linspace(0, 2, 101)
    orange, other, grey = (plotting.COLOURS[name] for name in ("guided", "other", "unconditional"))
    left.fill_between(rhos, 0, 0.5, color=grey, alpha=0.25, linewidth=0)
    left.plot(rhos, (1 + rhos**2) / 2, color=orange)
    left.plot(rhos, rhos**2, color=other)
    left.plot(1, 1, "o", color=plotting.COLOURS["truth"], markersize=5, zorder=3)
    left.text(0.9, 0.2, "carrying: always one half", color="0.35")
    left.text(1.3, 0.85, "substitution\n$(1 + \\rho^2)\\, /\\, 2$", color=orange)
    left.text(0.95, 2.6, "mean shift\n$\\rho^2$", color=other)
    left.annotate("DDPM", (1, 1), (0.62, 1.45), arrowprops={"arrowstyle": "-", "linewidth": 0.6})
    left.set(xlabel=r"noise of the sampler, $\rho$", ylabel=r"the label moves a step by ... $\beta\, g_t$", xlim=(0, 2), ylim=(0, 4))
    for name, colour in (("substitution", orange), ("mean shift", other)):
        right.plot(levels, [mass for mass, _ in found[name]], "o-", markersize=4.5, color=colour)
    for value, text in ((truth_mass, "class 1"), (all_mass, "no label")):
        right.axhline(value, color=plotting.COLOURS["truth"], linewidth=0.8, linestyle="dotted")
        right.text(2.02, value, text, va="center")
    right.text(0.05, 0.955, "substitution", color=orange)
    right.text(0.72, 0.68, "mean shift", color=other)
    right.set(xlabel=r"noise of the sampler, $\rho$", ylabel="class mass of the samples", xlim=(-0.03, 2.03), ylim=(0.35, 1.0))
    shown = plotting.show(figure, "10_noise", alt="Two panels over the noise of the sampler, rho from 0 to 2. Left: the label moves a step by (1 + rho squared) / 2, an orange curve that starts at one half, and the mean shift by rho squared, a green curve that starts at zero; they meet at rho = 1 only, marked DDPM. Right: the class mass of samples stays on the dotted line of class 1 with the substitution; with the mean shift it starts at the line without a label, rises, meets the other curve at rho = 1 and lies above it beyond.")
shown

# %% [markdown]
# *Left: how far the label moves a short step, in units of $\beta\, g_t$; grey is what carries. Right: 3,000 samples for each
# $\rho$ at $\gamma = 1$, with the exact classifier; dotted lines are the true class mass of class 1 and that of all data. At $\gamma = 1$, guidance by substitution does not depend on the noise. Guidance by mean shift goes from none to too much, and is right at $\rho = 1$ only.*

# %% tags=["hide-input"]
scatter = 0.5 / math.sqrt(len(x))  # numbers between 0 and 1 have a standard deviation of at most 1/2
for rho, (low, off), (high, near) in zip(levels, *found.values(), strict=True):
    print(f"rho = {rho}: class mass {low:.2f} by mean shift, {high:.2f} by substitution;  mean of x1 {off:+.2f} and {near:+.2f}")
print(f"standard error of a class mass at most {scatter:.3f}; true: mass {truth_mass:.2f}, mean of x1 {float(target[0]):.2f}; of all data: mass {all_mass:.2f}")
by_shift, by_score = ([row[0] for row in found[name]] for name in found)
assert all(abs(mass - truth_mass) < 0.01 for mass in by_score)
assert len(x) == 3000 and by_shift == sorted(by_shift) and by_shift[0] < 0.43 and by_shift[1] < 0.46 and by_shift[-1] > 0.95
assert abs(by_shift[5] - by_score[5]) < 1e-12

# %% [markdown]
# The mean shift at $\rho = 0.4$ has got a third of the way from "no label" to the class. Beyond $\rho = 1$ the class mass is larger than that of the class itself. Between $\rho = 0$ and 1,
# a larger $\gamma$ mends the shift, but fits no other noise.

# %% tags=["hide-input"]
by_gamma = {}
for gamma in (1.0, 3.0):
    model = guidance.tilt(free, grad, gamma, schedule)
    walked = {rho: draw(kernels.reverse_sde(model, schedule, rho), start[:2000], grid_of(150), seeded(2)) for rho in (0.0, 1.0, 2.0)}
    by_gamma[gamma] = {rho: float(cloud[:, 0].mean()) for rho, cloud in walked.items()}
    print(f"substitution, gamma = {gamma:g}: mean of x1 " + ", ".join(f"{mean:.2f} at rho = {rho:g}" for rho, mean in by_gamma[gamma].items()))
by_2m = float(draw(kernels.dpmpp_2m(model, schedule), start[:2000], grid_of(20))[:, 0].mean())
print(f"DPM-Solver++(2M), 20 steps, gamma = 3: {by_2m:.2f}")
assert max(by_gamma[1.0].values()) - min(by_gamma[1.0].values()) < 0.08 and by_gamma[3.0][0.0] - by_gamma[3.0][2.0] > 0.4
assert abs(by_2m - by_gamma[3.0][0.0]) < 0.1 < 0.3 < by_2m - by_gamma[3.0][1.0]

# %% [markdown]
# **At $\gamma = 3$ the noise does matter, also with the right line.** Then there is no density that all the walks share; here more noise moves the points less far. [Chapter 11](11_classifier_free_guidance.ipynb) shows why. The substitution says how to guide, not what $\gamma = 3$ samples.
#
# ## How far does the label move a real step, exactly?
#
# A real step, from $t$ to an earlier $s$, is not infinitesimal. DDIM, and DDPM with its small variance, are one formula. Remove the noise that the model guesses. Put noise back at the level of $s$: a part of it fresh,
# of any variance $0 \le v \le \sigma_s^2$, and the rest the guess again. So $x_s \sim \mathcal N(m, v I)$ with
#
# $$ m = \alpha_s\, \frac{x_t - \sigma_t\, \hat\varepsilon_\gamma}{\alpha_t} + \sqrt{\sigma_s^2 - v}\; \hat\varepsilon_\gamma
# = \frac{x_t}{\alpha_{t|s}} - \Big( \frac{\sigma_t}{\alpha_{t|s}} - \sqrt{\sigma_s^2 - v} \Big)\, \hat\varepsilon_\gamma,
# \label{eq-general-step} $$
#
# where $\alpha_{t|s} = \alpha_t / \alpha_s$. $v = 0$ is DDIM. DDPM is $v = \frac{\sigma_s^2}{\sigma_t^2} \beta$, the posterior variance, where $\beta = 1 - \alpha_{t|s}^2$ is the length of the step; in short ones it is $r\, |dt|$. DDIM's $\eta$ takes $\eta^2$ times that, so in short steps $\eta = \rho$.

# %%
# [eq-general-step]
def general_step(x, eps, alpha_t, alpha_s, v):
    """Mean of the step from t to s with fresh noise of variance v, from the guessed noise."""
    sigma_t, sigma_s = (1 - alpha_t**2).sqrt(), (1 - alpha_s**2).sqrt()
    alpha_ts = alpha_t / alpha_s
    return x / alpha_ts - (sigma_t / alpha_ts - (sigma_s**2 - v).sqrt()) * eps


# %% tags=["hide-input"]
s = 0.36
eps, ends = guided(x_t, t).eps, (schedule.alpha(t), schedule.alpha(s))
posterior = kernels.posterior_variance(schedule, t, s)
ddpm, ddim = (kernel(x_t, t, s) for kernel in (kernels.ddpm(guided, schedule), kernels.ddim(guided, schedule)))
torch.testing.assert_close(general_step(x_t, eps, *ends, posterior), ddpm.mean)
torch.testing.assert_close(general_step(x_t, eps, *ends, torch.tensor(0.0)), ddim.mean)
half_noise = kernels.ddim(guided, schedule, eta=0.5)(x_t, t, s)
torch.testing.assert_close(general_step(x_t, eps, *ends, 0.25 * posterior), half_noise.mean)

# %% [markdown]
# The label enters $\eqref{eq-general-step}$ only through $\hat\varepsilon_\gamma$. Put $\eqref{eq-eps-substitution}$ in: compared with the step without a label, the mean moves by
#
# $$ m_\gamma - m_0 = \gamma\, c\; g_t(x_t), \qquad c = \sigma_t \Big( \frac{\sigma_t}{\alpha_{t|s}} - \sqrt{\sigma_s^2 - v} \Big).
# \label{eq-shift-of-a-step} $$
#
# The mean shift moves it by $\gamma\, v\, g_t$. More noise makes both larger; no noise makes only one of them zero.

# %%
# [eq-shift-of-a-step]
def moved_by(alpha_t, alpha_s, v):
    """How far the substitution moves the mean of a step, in units of gamma times the gradient."""
    sigma_t, sigma_s = (1 - alpha_t**2).sqrt(), (1 - alpha_s**2).sqrt()
    return sigma_t * (sigma_t * alpha_s / alpha_t - (sigma_s**2 - v).sqrt())


# %% tags=["hide-input"]
slope, beta = grad(x_t, t), schedule.transition(t, s)[1] ** 2
for eta in (0.0, 0.5, 1.0):
    v = eta**2 * posterior
    with_label, without = (kernels.ddim(model, schedule, eta)(x_t, t, s).mean for model in (guided, free))
    c = moved_by(*ends, v)
    torch.testing.assert_close(with_label - without, c * slope)
    print(f"eta = {eta}: substitution {float(c / beta):.3f} beta, mean shift {float(v / beta):.3f} beta")
torch.testing.assert_close(c, beta / schedule.transition(t, s)[0])  # eta = 1
assert 0.5 < moved_by(*ends, 0 * posterior) / c < 0.56

# %% [markdown]
# Here, at $\eta = 0$, a little more than half of the push at $\eta = 1$ is left: what carries. At $\eta = 1$ it is $\beta / \alpha_{t|s}$, the *exact* coefficient of [chapter 07](07_mean_shift.ipynb#the-exact-answer-tweedie-for-one-step). This step is long, and the mean shift pays less than in short ones, for DDPM too: its variance is smaller than $c$. (At $\gamma = 1$ the mean is exact, at each $\eta$: that of $x_s = \alpha_s x_0 + \sqrt{\sigma_s^2 - v}\; \varepsilon + \sqrt v\; z$, with fresh noise $z$, given $x_t$ and $y$.)
#
# ## Why is the mean shift right for DDPM, in short steps?
#
# Chapter 07 *derived* it, from Bayes' rule for one step: weigh each place that the step may reach by how likely the label is *from there*. For that,
# the step and the classifier must speak of one random walk. The classifier speaks of data that were noised; backwards, that is the walk with $\rho = 1$. The others have the same
# density at every $t$, but are other walks.
#
# DDIM has no choice: from a given $x_t$ it always ends at the same point. So for DDIM, Bayes' rule leaves the step
# alone with good reason. You do not want to condition this walk. You want *another* one, that of the data of class 1, and the score gives it.
#
# ### Pitfall: twice, and the square
#
# Two mistakes more: a mean shift *and* the substitution, because the sampler has one and the model's wrapper the other; and $\sigma^2$, which belongs to $\hat x_0$, for $\sigma$.

# %% tags=["hide-input"]
def guided_with(power):
    def model(x, t):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        eps = free(x, t).eps - sigma**power * grad(x, t)
        return Prediction.from_eps(x, eps, alpha, sigma)

    return model


doubled = kernels.shift(kernels.ddpm(guided_with(1), schedule, "large"), grad, 1.0)
cases = {"right, DDIM": kernels.ddim(guided_with(1), schedule), "sigma squared, DDIM": kernels.ddim(guided_with(2), schedule)}
cases |= {"no sigma at all, DDIM": kernels.ddim(guided_with(0), schedule), "right, DDPM": kernels.ddpm(guided_with(1), schedule, "large"),
          "shift and substitution, DDPM": doubled, "gamma = 2, DDPM": kernels.ddpm(guidance.tilt(free, grad, 2.0, schedule), schedule, "large")}
mixed_up = {}
for name, kernel in cases.items():
    x = draw(kernel, start, grid_of(100), seeded(2))
    mixed_up[name] = float(mixture.class_log_prob(x, label).exp().mean()), float(x[:, 0].mean())
    print("{:30s} class mass {:.2f}, mean of x1 {:.2f}".format(name, *mixed_up[name]))
assert mixed_up["sigma squared, DDIM"][0] < 0.85 < 0.9 < mixed_up["right, DDIM"][0] < 0.95 < mixed_up["no sigma at all, DDIM"][0]
assert abs(mixed_up["shift and substitution, DDPM"][1] - mixed_up["gamma = 2, DDPM"][1]) < 0.06
assert mixed_up["shift and substitution, DDPM"][1] > mixed_up["right, DDPM"][1] + 0.3

# %% [markdown]
# For DDPM, both at once are $\gamma \approx 2$. With $\sigma^2$ the guidance is too weak near the data, where $\sigma$ is small; with no $\sigma$ it is too strong.
#
# ## In practice
#
# | if you have | do | because |
# |---|---|---|
# | any sampler, any noise, a gradient | `eps = eps - gamma * sigma * grad` before the step, and no mean shift beside it | the score is all that knows the data; with DDPM, both together are $\gamma \approx 2$ |
# | a mean shift that must stay, $0 < \eta < 1$ | multiply it by $c / v$ (exercise 10.2) | the same step as with the substitution; at $\eta = 0$ nothing helps |
# | code you did not write | switch the noise off and set $\gamma = 10$ | if the pictures are those without guidance, it shifts by the variance, or by its root |
# | results with $\gamma > 1$ to compare | keep the noise of the sampler | with the right line, too, a large $\gamma$ gives other samples for another $\rho$ |
# | a solver to change, both without noise | keep $\gamma$; tune it again only from or to one with noise | at $\gamma = 3$ the mean of $x_1$ was 2.21 at $\rho = 0$, 2.16 by 2M in 20 steps, 1.84 at $\rho = 1$ |
#
# *Fails when* the classifier is not that of noisy points: then it is the right line with a wrong gradient. *Limits:* two dimensions, exact fields.

# %% tags=["remove-cell"]
gamma = 3.0
assert [round(v, 2) for v in (by_gamma[gamma][0.0], by_2m, by_gamma[gamma][1.0])] == [2.21, 2.16, 1.84]
assert len(grid_of(20)) == 20 + 1
gamma = 2.0
assert abs(mixed_up["shift and substitution, DDPM"][1] - mixed_up[f"gamma = {gamma:g}, DDPM"][1]) < 0.06

# %% [markdown]
# ## Exercises
#
# Type where it says "your turn", run the cell, then the check below it. 10.4 and 10.5 stand in Deeper.

# %% [markdown]
# ### Exercise 10.1 (easy): a network that predicts $v$
#
# Your network does not guess the noise, but $v = \alpha_t\, \varepsilon - \sigma_t\, x_0$, the guess of which is a tensor `v`. Return the guided guess of $v$,
# given the gradient `g` of the classifier, of the same shape, and the numbers `gamma` and `alpha` ($\alpha_t$, with $\alpha_t^2 + \sigma_t^2 = 1$).
#
# <details><summary>Hint</summary>
#
# $\eqref{eq-eps-substitution}$ changes $\hat\varepsilon$, and with it $\hat x_0 = (x_t - \sigma_t \hat\varepsilon) / \alpha_t$. By how much does each change? The point $x_t$ does not.
#
# </details>

# %% tags=["exercise"]
def guided_v(v, g, gamma, alpha):
    ### BEGIN SOLUTION
    sigma = math.sqrt(1 - alpha**2)
    return v - gamma * sigma / alpha * g
    ### END SOLUTION


# %%
exercises.check("10.1", guided_v)

# %% [markdown]
# ### Exercise 10.2 (medium): repair a mean shift
#
# A code with DDIM's $\eta > 0$ adds `factor * v * g` to the mean of its step, where `v` is the variance that the step adds (and $v \le \sigma_s^2$). Return the `factor` with which
# its steps move exactly as far as those with $\gamma\, g$ in the score, for steps of any length: from the numbers $\alpha_t < \alpha_s < 1$, `eta` and `gamma`.
#
# <details><summary>Hint</summary>
#
# $\eqref{eq-shift-of-a-step}$ over $v$. What is $v$ in terms of $\eta$? (Codes call the square of our $\alpha_t$ `alpha`, or `alphas_cumprod`.)
#
# </details>

# %% tags=["exercise"]
def repair_factor(alpha_t, alpha_s, eta, gamma):
    ### BEGIN SOLUTION
    alpha_ts, var_t, var_s = alpha_t / alpha_s, 1 - alpha_t**2, 1 - alpha_s**2
    v = eta**2 * var_s / var_t * (1 - alpha_ts**2)
    c = math.sqrt(var_t) * (math.sqrt(var_t) / alpha_ts - math.sqrt(var_s - v))
    return gamma * c / v
    ### END SOLUTION


# %%
exercises.check("10.2", repair_factor)

# %% [markdown]
# ### Exercise 10.3 (medium): guidance in somebody else's coordinates
#
# [Karras et al. (2022)](https://arxiv.org/abs/2206.00364) do not shrink: $z = x_0 + \tilde\sigma\, \varepsilon$ with any $\tilde\sigma > 0$. Their network guesses the clean point, `denoised`, of the shape of `z`. Your classifier was trained on *our* noisy points
# $x_t = \alpha_t x_0 + \sigma_t \varepsilon$ at the same signal-to-noise ratio, $\tilde\sigma = \sigma_t / \alpha_t$; `grad_of(x)` is its gradient in $x$ at that level. Return the guided guess of the clean point, for the number `sigma_tilde` and `gamma`.
#
# <details><summary>Hint</summary>
#
# The same point in the other coordinates is $x = \alpha_t z$; what is $\alpha_t$ in terms of $\tilde\sigma$? Then use the chain rule for the gradient in $z$, and Tweedie's formula in their coordinates. Or find the guided $\hat x_0$ in ours: it is the same clean point.
#
# </details>

# %% tags=["exercise"]
def guided_denoised(denoised, z, sigma_tilde, grad_of, gamma):
    ### BEGIN SOLUTION
    alpha = 1 / math.sqrt(1 + sigma_tilde**2)
    # x0 moves by gamma sigma^2 / alpha g, and sigma = alpha sigma_tilde
    return denoised + gamma * alpha * sigma_tilde**2 * grad_of(alpha * z)
    ### END SOLUTION


# %%
exercises.check("10.3", guided_denoised)

# %% [markdown]
# ## Remember
#
# 1. Of a sampler's equation only the score knows the data, $\eqref{eq-conditional-reverse-sde}$. So guide the score, $\eqref{eq-eps-substitution}$: at $\gamma = 1$, with an exact classifier, it is the conditional model, identically, whatever the sampler's noise.
# 2. The label moves a short step by $\frac{1 + \rho^2}{2} \beta\, g_t$: $\frac12 \beta$ carries, $\frac12 \rho^2 \beta$ makes up for the noise. For DDIM's steps of any length and $\eta$ the coefficient is the $c$ of $\eqref{eq-shift-of-a-step}$, which at $\eta = 1$ is exactly $\beta / \alpha_{t|s}$.
# 3. A mean shift is $\frac{2 \rho^2}{1 + \rho^2}$ of that in short steps: nothing without noise, the whole for DDPM's noise only, too much beyond. In DDIM's long steps it is less.
# 4. That is no failure of Bayes' rule: the classifier knows the random walk with $\rho = 1$, and the others are other walks through the same densities.
# 5. At $\gamma = 3$ the samples depend on the sampler's noise, also with the right line.
#
# **Where it comes from.** The free noise: [Song et al. (2021)](https://arxiv.org/abs/2011.13456) for $\rho = 0$ and 1, and [Su (2022)](https://spaces.ac.cn/archives/9257) for guidance with any. The substitution: [Dhariwal & Nichol (2021)](https://arxiv.org/abs/2105.05233), Algorithm 2.
# The general step: [Song et al. (2021)](https://arxiv.org/abs/2010.02502), equation 12. The halves and the share of a mean shift are derived here.
#
# ## Deeper: variance and exact coefficient, with orders
#
# *For those who want the coefficient of a step in closed form, with its orders: what chapter 07 calls the wrong number is a special case.*
#
# Let $b = \beta / \sigma_t^2$ be the share of the noise at $t$ that came in since $s$. The rest of it was there at $s$ and has shrunk: $\alpha_{t|s}^2 \sigma_s^2 = \sigma_t^2\,(1 - b)$. The fresh noise is $v = \eta^2 b\, \sigma_s^2$. So in $\eqref{eq-shift-of-a-step}$ the root, times $\sigma_t$, is $\sigma_t \sigma_s \sqrt{1 - \eta^2 b} = \frac{\sigma_t^2}{\alpha_{t|s}} \sqrt{(1 - b)(1 - \eta^2 b)}$, and
#
# $$ c = \frac{\sigma_t^2}{\alpha_{t|s}} \Big( 1 - \sqrt{(1 - b)(1 - \eta^2 b)} \Big)
# = \frac{\beta}{\alpha_{t|s}} \Big( \frac{1 + \eta^2}{2} + \frac{(1 - \eta^2)^2}{8}\, b \Big) + O(\beta^3). \label{eq-half-and-half} $$
#
# The second form holds for fixed $t$, as $\beta \to 0$. The root is the geometric mean of $1 - b$ and $1 - \eta^2 b$. To first order it is their arithmetic mean, $1 - \frac{1 + \eta^2}{2} b$: the two jobs of $\eqref{eq-conditional-reverse-sde}$ again, with $\eta$ for $\rho$. At $\eta = 1$ the two are equal, and that is exact.

# %%
# [eq-half-and-half]
def moved_in_closed_form(beta, sigma_t, eta):
    """c from the length of the step, by the geometric mean; and its first two orders."""
    b, alpha_ts = beta / sigma_t**2, (1 - beta).sqrt()
    exactly = sigma_t**2 / alpha_ts * (1 - ((1 - b) * (1 - eta**2 * b)).sqrt())
    return exactly, beta / alpha_ts * ((1 + eta**2) / 2 + (1 - eta**2) ** 2 / 8 * b)


# %% tags=["hide-input"]
for near in (0.3, 0.39, 0.399):
    length, level = schedule.transition(t, near)[1] ** 2, schedule.sigma(t)
    exactly, to_second_order = moved_in_closed_form(length, level, 0.5)
    v = 0.25 * kernels.posterior_variance(schedule, t, near)
    torch.testing.assert_close(exactly, moved_by(schedule.alpha(t), schedule.alpha(near), v))
    assert abs(exactly - to_second_order) < length * (length / level**2) ** 2

# %% [markdown]
# The mean shift has $v = \eta^2 b\, (1 - b)\, \sigma_t^2 / \alpha_{t|s}^2$ in place of $c$. Divide by $\eqref{eq-half-and-half}$:
#
# $$ \frac{v}{c} = \frac{2 \eta^2}{1 + \eta^2} + O(b). \label{eq-shift-share} $$
#
# In short steps that is the share of before, with $\eta$ for $\rho$. In long steps it is less:

# %% tags=["hide-input"]
# [eq-shift-share]
def share_of_the_shift(beta, sigma_t, eta):
    """What a mean shift pays of what the substitution pays, for a step of any length."""
    b, alpha_ts = beta / sigma_t**2, (1 - beta).sqrt()
    v = eta**2 * b * (1 - b) * (sigma_t / alpha_ts) ** 2
    return v / (sigma_t**2 / alpha_ts * (1 - ((1 - b) * (1 - eta**2 * b)).sqrt()))


# %% tags=["hide-input"]
for eta in (0.2, 0.5, 1.0, 2.0):
    limit, tiny = 2 * eta**2 / (1 + eta**2), torch.tensor(1e-6).double()
    share = float(share_of_the_shift(tiny, schedule.sigma(t), eta))
    long = [float(share_of_the_shift(b * schedule.sigma(t) ** 2, schedule.sigma(t), eta)) for b in (0.1, 0.2)]
    print(f"eta = {eta}: the mean shift is {share:.2f} of what it should be;  {long[0]:.2f} at b = 0.1, {long[1]:.2f} at b = 0.2")
    assert abs(share - limit) < 1e-5

# %% [markdown]
# For DDPM, $\eta = 1$, the mean shift has $v = \beta\, (1 - b) / \alpha_{t|s}^2$ where $c = \beta / \alpha_{t|s}$ is right. The quotient is
#
# $$ \frac{v\, \alpha_{t|s}}{\beta} = \frac{1 - \beta / \sigma_t^2}{\sqrt{1 - \beta}} = 1 - \Big( \frac{1}{\sigma_t^2} - \frac12 \Big)\, \beta + O(\beta^2).
# \label{eq-posterior-share} $$
#
# So DDPM's mean shift is right to first order in $\beta$, with a constant that explodes near the data; for any other $\eta$ it is wrong at order zero, by $\eqref{eq-shift-share}$, and shorter steps do not help.

# %% tags=["hide-input"]
# [eq-posterior-share]
def posterior_share(beta, sigma_t):
    """What DDPM's posterior variance pays of the exact coefficient, and its expansion to first order."""
    return (1 - beta / sigma_t**2) / (1 - beta).sqrt(), 1 - (1 / sigma_t**2 - 0.5) * beta


# %% tags=["hide-input"]
for far in (0.9, 0.4, 0.05):
    near = far - 0.002
    alpha_ts, sigma_ts = schedule.transition(far, near)
    share, expanded = posterior_share(sigma_ts**2, schedule.sigma(far))
    torch.testing.assert_close(kernels.posterior_variance(schedule, far, near) * alpha_ts / sigma_ts**2, share)
    print(f"t = {far}: share {float(share):.4f}, to first order {float(expanded):.4f}")
    assert abs(share - expanded) < 2 * sigma_ts**4 / schedule.sigma(far) ** 2

# %% [markdown]
# ## Deeper: the classifier that belongs to a sampler
#
# *A mean shift can be right for every noise, with another classifier: for those who want to condition a sampler, or to read about Doob transforms later.*
#
# All samplers share the density at every $t$. But from one point they go to different places. Bayes' rule for a step is true for each of them, if the classifier belongs to the same walk. So ask for the classifier of the *sampler*: how likely is $y$, if the sampler with noise $\rho$ goes on from here, without guidance?
#
# For data $x_0 \sim \mathcal N(0, U)$ on the line it has a closed form. Divide by $\alpha_t$, so that nothing shrinks: $z = x_t / \alpha_t$ is $x_0$ plus noise of variance $q = \sigma_t^2 / \alpha_t^2$, and its score is $-z / (U + q)$. Take $q$ for the clock. Then noise comes in at rate 1, and $\eqref{eq-conditional-reverse-sde}$ without a label is
# $dz = \frac{1 + \rho^2}{2} \frac{z}{U + q}\, dq + \rho\, d\bar w$. So the mean of $z$ shrinks by the factor $\big(U / (U + q)\big)^{(1 + \rho^2) / 2}$ on the way to the data. The variance is what is missing: before, $z$ has the variance $U + q$, and at the data $U = \text{factor}^2\, (U + q) + \text{variance}$. That gives
#
# $$ \mathbb E_\rho[x_0 \mid x_t] = R^{(1 + \rho^2) / 2}\, \frac{x_t}{\alpha_t}, \qquad \mathrm{Var}_\rho(x_0 \mid x_t) = U\, \big( 1 - R^{\rho^2} \big), \qquad R = \frac{\alpha_t^2 U}{\alpha_t^2 U + \sigma_t^2}.
# \label{eq-own-forecast} $$
#
# $\rho = 1$ is the posterior of the data, Tweedie's formula. $\rho = 0$ is a function: no variance. As $\rho$ grows, the sampler forgets where it was.

# %%
# [eq-own-forecast]
def forecast(alpha_t, U, rho):
    """Mean (times x_t) and variance of where the sampler with noise rho ends, for data N(0, U)."""
    R = alpha_t**2 * U / (alpha_t**2 * U + 1 - alpha_t**2)
    return R ** ((1 + rho**2) / 2) / alpha_t, U * (1 - R ** (rho**2))


# %% tags=["hide-input"]
U = 0.8
line = GaussianMixture([1.0], torch.zeros(1, 1).double(), [[[U]]])
away, half_way = torch.full((4000, 1), 1.2).double(), 0.4
for rho in (0.0, 0.5, 1.0, 2.0):
    homes = draw(kernels.reverse_sde(line.denoiser(schedule), schedule, rho), away, time_grid(200, schedule, start=half_way, end=0.001), seeded(3))
    gain, var = forecast(schedule.alpha(half_way), U, rho)
    print(f"rho = {rho}: mean {float(homes.mean()):.3f}, foretold {1.2 * float(gain):.3f};  variance {float(homes.var()):.3f}, foretold {float(var):.3f}")
    assert abs(float(homes.mean()) - 1.2 * float(gain)) < 0.03 and abs(float(homes.var()) - float(var)) < 0.03

# %% [markdown]
# From one point, 1.2, the samplers end in different places, as foretold.
#
# Now a label: $y = x_0$ plus Gaussian noise of variance 0.3, and $y = 1.5$ is seen. Guide in three ways: by the substitution; by a mean shift with the gradient of the data's own classifier, as ever; by a mean shift with the classifier of the sampler, $y \sim \mathcal N(\mathbb E_\rho, \mathrm{Var}_\rho + 0.3)$. The last one must also weigh where it starts, because what the start decides no later step can mend.

# %% tags=["hide-input"]
seen, blur = 1.5, 0.3


def own_gradient(rho, y=seen, blur=blur):
    def grad(x, t):
        gain, var = forecast(schedule.alpha(t), U, rho)
        return gain * (y - gain * x) / (var + blur)

    return grad


def weighed_start(noise, rho, y=seen, blur=blur):
    gain, var = forecast(schedule.alpha(1.0), U, rho)
    precision = 1 + gain**2 / (var + blur)
    return gain * y / (var + blur) / precision + noise / precision.sqrt()


# %% tags=["hide-input"]
of_line, noise_1 = line.denoiser(schedule), torch.randn(4000, 1, generator=seeded(0), dtype=torch.float64)
by_rho = {}
for rho in (0.0, 0.5, 1.0, 2.0):
    base = kernels.reverse_sde(of_line, schedule, rho)
    ways_home = {
        "substitution": (kernels.reverse_sde(guidance.tilt(of_line, own_gradient(1.0), 1.0, schedule), schedule, rho), noise_1),
        "shift (data's classifier)": (kernels.shift(base, own_gradient(1.0), 1.0), noise_1),
        "shift (its own classifier)": (kernels.shift(base, own_gradient(rho), 1.0), weighed_start(noise_1, rho)),
    }
    clouds = {name: draw(kernel, begin, grid_of(120), seeded(2)) for name, (kernel, begin) in ways_home.items()}
    by_rho[rho] = {name: (float(x.mean()), float(x.var())) for name, x in clouds.items()}

print(f"mean and variance: truly {1.5 * U / (U + 0.3):.2f}, {U * 0.3 / (U + 0.3):.2f}")
print("rho" + "".join(f"{name:>28}" for name in ways_home))
for rho, row in by_rho.items():
    print(f"{rho}" + "".join(f"{'{:.2f}, {:.2f}'.format(*pair):>28}" for pair in row.values()))
for row in by_rho.values():
    for name in ("substitution", "shift (its own classifier)"):
        assert abs(row[name][0] - 1.5 * U / (U + 0.3)) < 0.03 and abs(row[name][1] - U * 0.3 / (U + 0.3)) < 0.02
assert by_rho[0.5]["shift (data's classifier)"][0] < 0.7 and by_rho[2.0]["shift (data's classifier)"][0] > 1.2

# %% [markdown]
# With the right classifier and start, the mean shift samples the truth at every $\rho$, at $\rho = 0$ by the start alone. With the data's classifier it is right at $\rho = 1$ only. So two things are called conditioning: choose among the walks of *this* sampler, or walk as the data of the class would. The second needs one classifier for all noises, and that is why one line serves every sampler.

# %% [markdown]
# ### Exercise 10.4 (hard): how much does the start decide?
#
# For data $\mathcal N(0, U)$ on the line, let $\phi$ be the share of the variance of $x_0$ that is decided when a sampler with noise $\rho$ stands at time $t$, its point drawn from $p_t$: the variance of $\mathbb E_\rho[x_0 \mid x_t]$ over that of $x_0$. For which $\rho$ is a given share `phi` decided at a given noise level? Return $\rho$, from
# the numbers `phi` in $(0, 1)$, `U`, and `alpha` ($\alpha_t$).
#
# <details><summary>Hint</summary>
#
# $\eqref{eq-own-forecast}$. The two variances add up to the whole, so one of them is enough. $R$ is a number between 0 and 1.
#
# </details>

# %% tags=["exercise"]
def noise_for_share(phi, U, alpha):
    ### BEGIN SOLUTION
    # The undecided share is 1 - R^(rho^2), so phi = R^(rho^2).
    R = alpha**2 * U / (alpha**2 * U + 1 - alpha**2)
    return math.sqrt(math.log(phi) / math.log(R))
    ### END SOLUTION


# %%
exercises.check("10.4", noise_for_share)

# %% [markdown]
# ### Exercise 10.5 (research): what a guided sampler samples, for every noise
#
# On the line, a class $\mathcal N(0, C)$ among data $\mathcal N(0, U)$. In the coordinates $z = x_t / \alpha_t$ and $q$ of this section, a sampler with noise $\rho > 0$ follows the guided score, $-z\, \big( \frac{\gamma}{C + q} + \frac{1 - \gamma}{U + q} \big)$, from very large $q$ down to 0.
# Return the variance of what it samples, as a formula with one integral over $q$: `integrate(f)` gives $\int_0^\infty f(q)\, dq$, and calls `f` with a tensor of many $q$. (Then let $\rho$ go to 0 and to infinity. Which of the two is the variance of $p(x)\, p(y \mid x)^\gamma$?)
#
# <details><summary>Hint</summary>
#
# Between $q$ and $q - dq$ the sampler shrinks $z$, and adds noise of variance $\rho^2 dq$. Each such noise is then shrunk on the rest of the way, and all are independent. By which factor, from $q$ to 0? For $\gamma = 0$ it stands above $\eqref{eq-own-forecast}$, as a factor of $z$: a variance gets its square. What was there at the start is forgotten.
#
# </details>

# %% tags=["exercise"]
def guided_variance(C, U, gamma, rho, integrate):
    ### BEGIN SOLUTION
    def kept(q):  # of a variance that is added at q
        return ((C / (C + q)) ** gamma * (U / (U + q)) ** (1 - gamma)) ** (1 + rho**2)

    # rho to 0: the geometric mean C^gamma U^(1 - gamma); rho to infinity: the variance of p(x) p(y | x)^gamma
    return rho**2 * integrate(kept)
    ### END SOLUTION


# %%
exercises.check("10.5", guided_variance)

# %% [markdown]
# ## Deeper: the same line in seven samplers
#
# *For those who run another sampler than DDIM or DDPM.*
#
# The same `tilt` in seven samplers, on two mixtures (the second has five blobs in three classes), at $\gamma = 1$, with 100 steps:

# %% tags=["hide-input"]
five = GaussianMixture(
    weights=[0.15, 0.2, 0.25, 0.1, 0.3],
    means=torch.tensor([[-2.2, 1.0], [0.3, 1.8], [1.8, -0.4], [-1.2, -1.6], [0.2, -0.6]], dtype=torch.float64),
    covs=[[[0.3, 0.1], [0.1, 0.2]], [[0.5, -0.2], [-0.2, 0.2]], [[0.2, -0.1], [-0.1, 0.5]], [[0.4, 0.15], [0.15, 0.3]], [[0.25, 0.05], [0.05, 0.15]]],
    labels=[0, 1, 0, 2, 2],
)  # fmt: skip


def moments_of(blobs):
    mean = blobs.weights @ blobs.means
    away = blobs.means - mean
    return mean, torch.einsum("k,kij->ij", blobs.weights, blobs.covs + away[:, :, None] * away[:, None, :])


def errors_of(x, blobs):
    """Distance of mean and covariance of points from those of a mixture."""
    mean, cov = moments_of(blobs)
    return float((x.mean(0) - mean).norm()), float((x.T.cov() - cov).norm())


# %% tags=["hide-input"]
def samplers_of(model):
    return {
        "DDPM": kernels.ddpm(model, schedule),
        "DDIM, eta 0.5": kernels.ddim(model, schedule, eta=0.5),
        "DDIM": kernels.ddim(model, schedule),
        "SDE, rho 2": kernels.reverse_sde(model, schedule, rho=2.0),
        "Heun": kernels.heun(model, schedule),
        "DPM-Solver++(2M)": kernels.dpmpp_2m(model, schedule),
    }


everywhere = {}
for data, y in ((mixture, 1), (five, 0)):
    model = guidance.tilt(data.denoiser(schedule), gradient_of(data, schedule, y), 1.0, schedule)
    ends_of = {name: draw(kernel, start, grid_of(100), seeded(2)) for name, kernel in samplers_of(model).items()}
    ends_of["ODE solver"] = ode.solve(ode.probability_flow(model, schedule), start, 1.0, 0.001, tolerance=1e-6)
    ends_of["the class itself"] = data.given(y).sample(3000, seeded(4))[0]
    everywhere[data] = {name: errors_of(x, data.given(y)) for name, x in ends_of.items()}

print(f"{'errors of':18s}{'four blobs: mean, cov':>25s}{'five blobs: mean, cov':>25s}")
for name in everywhere[mixture]:
    pairs = ("{:.3f}, {:.3f}".format(*everywhere[data][name]) for data in (mixture, five))
    print(f"{name:18s}" + "".join(f"{pair:>25s}" for pair in pairs))
chances = [math.sqrt(float(moments_of(data.given(y))[1].trace()) / 3000) for data, y in ((mixture, 1), (five, 0))]
print("chance in the mean, 3,000 points: {:.3f} and {:.3f}".format(*chances))

# %% tags=["remove-cell"]
assert all(row[0] < 2.5 * chance for data, chance in zip((mixture, five), chances, strict=True) for row in everywhere[data].values())
assert all(everywhere[data]["Heun"][1] < 0.5 * everywhere[data]["DDIM"][1] for data in (mixture, five))
assert all(row[1] < 0.25 for data in (mixture, five) for row in everywhere[data].values())

# %% [markdown]
# All means are within two and a half times chance. (The samplers without noise share their starting points, and so most of their errors.) DDIM's larger covariance error is that of first-order steps: from the same starts, Heun's is less than half.
#
# ## Deeper: what guidance costs
#
# *For those who choose a sampler and a number of evaluations for their $\gamma$.*
#
# Without noise there is an exact answer to each starting noise: where the guided ODE takes it. Solve that to $10^{-8}$, and measure the root mean square distance of 500 samples from their own exact ends. An evaluation is one call of the guided model: with classifier-free guidance two answers of the network, which [chapter 20](20_from_here_to_a_real_pipeline.ipynb) counts.

# %% tags=["hide-input"]
few, budgets = start[:500], (4, 6, 8, 12, 16, 24, 32, 64, 128)
solvers = {"DDIM": (kernels.ddim, 1), "Heun": (kernels.heun, 2), "2M": (kernels.dpmpp_2m, 1)}
squares, goal = {}, {}
for gamma in (1.0, 3.0, 10.0):
    model = guidance.tilt(free, grad, gamma, schedule)
    goal[gamma] = ode.solve(ode.probability_flow(model, schedule), few, 1.0, 0.001, tolerance=1e-8)
    for name, (solver, calls) in solvers.items():
        runs = [draw(solver(model, schedule), few, grid_of(budget // calls)) for budget in budgets]
        squares[name, gamma] = torch.stack([(x - goal[gamma]).square().sum(1) for x in runs])  # (budgets, 500)


def evaluations_for(error, errors):
    """Where the line through the measured errors, in logarithms, last comes down to `error`."""
    last = max(k for k, value in enumerate(errors) if value > error)
    (x0, x1), (y0, y1) = ([math.log(v) for v in values[last : last + 2]] for values in (budgets, errors))
    return math.exp(x0 + (math.log(error) - y0) / (y1 - y0) * (x1 - x0))


cost = {key: each.mean(1).sqrt().tolist() for key, each in squares.items()}
needed = {key: evaluations_for(0.1, errors) for key, errors in cost.items()}
for gamma in (1.0, 3.0, 10.0):
    texts = [f"{name} {needed[name, gamma]:.0f}" for name in solvers]
    print(f"evaluations for an error of 0.1 at gamma = {gamma:g}: {', '.join(texts)}")

# %% tags=["hide-input"]
looks = {"DDIM": "unconditional", "Heun": "other", "2M": "guided"}
with plotting.style():
    figure, axes = plotting.plt.subplots(1, 3, figsize=(9, 3.1), sharex=True, sharey=True)
    for panel, gamma in zip(axes, (1.0, 3.0, 10.0), strict=True):
        for name, colour in looks.items():
            panel.loglog(budgets, cost[name, gamma], "o-", markersize=3.5, linewidth=1.2, color=plotting.COLOURS[colour])
        for order in (1, 2):
            panel.loglog((4, 16), [6e-3 * (4 / n) ** order for n in (4, 16)], color=plotting.COLOURS["truth"], linestyle="dotted", linewidth=0.9)
            panel.text(17, 6e-3 / 4**order, f"slope {order}", fontsize=8, va="center")
        panel.set(title=f"$\\gamma = {gamma:g}$", xlabel="evaluations of the model", xticks=(4, 8, 16, 32, 64, 128), xticklabels=(4, 8, 16, 32, 64, 128), ylim=(5e-5, 9))
        panel.minorticks_off()
    axes[0].set_ylabel("distance to the exact end")
    for name, place in {"DDIM": (60, 0.08), "Heun": (40, 0.0062), "2M": (22, 0.0035)}.items():
        axes[0].text(*place, name, color=plotting.COLOURS[looks[name]])
    shown = plotting.show(figure, "10_cost", alt="Three log-log panels for gamma 1, 3 and 10: distance to the exact end over 4 to 128 evaluations. At gamma 1 and 3, with many evaluations, DDIM falls with slope one, Heun and 2M with slope two. At gamma 1 the 2M curve is lowest throughout. At gamma 3 it starts above DDIM and crosses it between 6 and 8 evaluations; at gamma 10 it starts far above and crosses between 16 and 24.")
shown

# %% [markdown]
# *Root mean square distance of 500 samples from where the exact guided ODE takes the same noise (four blobs, even steps in log-SNR). Dotted: slopes one and two. With 16 evaluations
# or more, guidance moves all curves up. At $\gamma = 10$ and with fewer, 2M lies above DDIM, and Heun is erratic.*

# %% tags=["remove-cell"]
assert all(cost["2M", 1.0][k] < cost["DDIM", 1.0][k] for k in range(len(budgets)))
hardest = squares["DDIM", 10.0][-1].sort().values
assert hardest[-25:].sum() > 0.5 * hardest.sum()
crossing = {g: next(n for n, a, b in zip(budgets, cost["2M", g], cost["DDIM", g], strict=True) if a < b) for g in (1.0, 3.0, 10.0)}
assert crossing == {1.0: 4, 3.0: 8, 10.0: 24} and cost["2M", 10.0][1] > 1.8 * cost["DDIM", 10.0][1]
assert all(needed[n, 1.0] < needed[n, 3.0] < needed[n, 10.0] for n in solvers)
for gamma in (1.0, 3.0, 10.0):
    for name, order in (("DDIM", 1), ("Heun", 2), ("2M", 2)):
        assert abs(math.log2(cost[name, gamma][-2] / cost[name, gamma][-1]) - order) < 0.25

# %% [markdown]
# For an error of a tenth at $\gamma = 1$ the multistep solver DPM-Solver++(2M) needs less than a third of DDIM's evaluations; at $\gamma = 3$ all three need more, 2M twice as many. (With 128 evaluations one noise in twenty makes most of DDIM's mean square at $\gamma = 10$.)
#
# Why does guidance cost? The usual answer: the equation gets *stiff*, neighbouring paths converge so fast
# that a long step overshoots. Take for the clock $\ell = \log(\alpha_t / \sigma_t)$, in which our steps are even. Since $\partial_t \ell = -r / (2 \sigma_t^2)$, the guided ODE is $\frac{dx}{d\ell} = \sigma_t^2 \big(x + \nabla \log p_t + \gamma\, g_t\big)$. Its right side has the derivative in $x$
#
# $$ J_\gamma = \sigma_t^2\, \big( I + H_t + \gamma\, G_t \big), \qquad H_t = \nabla \nabla \log p_t(x), \quad G_t = \nabla \nabla \log p_t(y \mid x).
# \label{eq-stiffness} $$
#
# At a given $x$ it changes along a straight line in $\gamma$. Where an eigenvalue is $-k$, paths converge at the rate $k$, and an Euler step $h$ is unstable for $h k > 2$.

# %%
# [eq-stiffness]
def stiffness(mixture, schedule, label, gamma, x, t):
    """The guided velocity's derivative in x, per unit of log(alpha / sigma), (N, 2, 2)."""
    noisy = mixture.noised(schedule.alpha(t), schedule.sigma(t))
    curve, told = noisy.hessian(x), noisy.given(label).hessian(x)
    return schedule.sigma(t) ** 2 * (torch.eye(2) + curve + gamma * (told - curve))


# %% tags=["hide-input"]
flow = ode.probability_flow(tripled, schedule)
per_ell = -schedule.beta(t) / (2 * schedule.sigma(t) ** 2)  # d ell / d t
by_autograd = plane.jacobian(lambda x: flow(x, t) / per_ell, x_t)
torch.testing.assert_close(stiffness(mixture, schedule, label, 3.0, x_t, t), by_autograd)


def fastest(gamma, x, t):
    return float(-torch.linalg.eigvalsh(stiffness(mixture, schedule, label, gamma, x, t)).min())


path_of, stiff, guess_speed, times = {}, {}, {}, grid_of(100)
ells = schedule.log_snr(times) / 2
for gamma in (1.0, 3.0, 10.0):
    model = guidance.tilt(free, grad, gamma, schedule)
    path_of[gamma] = torch.stack(list(sample(kernels.heun(model, schedule), few, times)))
    on_path = max(fastest(gamma, x, u) for x, u in zip(path_of[gamma], times, strict=True))
    at_data = max(fastest(gamma, x, u) for x, u in zip(path_of[1.0], times, strict=True))
    guesses = torch.stack([model(x, u).x0 for x, u in zip(path_of[gamma], times, strict=True)])
    speeds = guesses.diff(dim=0) / ells.diff()[:, None, None]
    stiff[gamma], guess_speed[gamma] = (at_data, on_path), speeds.square().sum(2).mean(1).sqrt()

# %% tags=["hide-input"]
with plotting.style():
    figure, (left, right) = plotting.plt.subplots(1, 2, figsize=(8.4, 3.0))
    scales, grey = list(stiff), plotting.COLOURS["unconditional"]
    for which, colour in ((0, grey), (1, plotting.COLOURS["guided"])):
        left.plot(scales, [stiff[g][which] for g in scales], "o-", markersize=4.5, color=colour)
    left.text(6.2, stiff[10.0][0] * 0.75, "on the paths\nof $\\gamma = 1$", color="0.4", ha="right")
    left.text(9.9, stiff[10.0][1] + 0.4, "on its own paths", color=plotting.COLOURS["guided"], ha="right")
    left.set(xlabel=r"$\gamma$", ylabel="largest rate of convergence", xticks=(1, 3, 10), ylim=(0, None))
    for gamma, colour in ((1.0, "conditional"), (3.0, "guided"), (10.0, "other")):
        right.semilogy(ells[1:], guess_speed[gamma], color=plotting.COLOURS[colour])
        top = int(guess_speed[gamma].argmax())
        right.text(ells[top] + (0.5 if gamma > 1 else -0.5), guess_speed[gamma][top] * (1.05 if gamma > 1 else 0.5), f"$\\gamma = {gamma:g}$", color=plotting.COLOURS[colour])
    right.set(xlabel=r"$\ell = \log(\alpha_t / \sigma_t)$  (noise left, data right)", ylabel=r"speed of $\hat x_0$ along the path", ylim=(1e-2, 20))
    shown = plotting.show(figure, "10_stiffness", alt="Two panels. Left: the largest rate at which paths converge over gamma, 1, 3 and 10; on the paths of gamma 1 it rises along a line, on its own paths it stays near one. Right: how fast the guess of the clean point changes along the path, over the log of signal to noise; the peaks grow about in proportion to gamma and move towards the noise.")
shown

# %% [markdown]
# *Left: the largest rate on 500 paths: those that $\gamma = 1$ walks, and those that $\gamma$ itself walks. Right: root mean square speed of the guess $\hat x_0$ along its own path. On the paths that each
# $\gamma$ takes, the largest speed grows with it; the rate is 1.4 at most.*

# %% tags=["remove-cell"]
assert stiff[10.0][0] > 20 * stiff[1.0][0] and round(stiff[10.0][0], 1) == 12.5 and round(max(on for _, on in stiff.values()), 1) == 1.4
tops = [float(guess_speed[g].max()) for g in (1.0, 3.0, 10.0)]
assert 2.2 < tops[1] / tops[0] < 3.2 and 10 < tops[2] / tops[0] < 16
places = [float(ells[int(guess_speed[g].argmax())]) for g in (1.0, 3.0, 10.0)]
assert places[0] > places[1] > places[2]

# %% [markdown]
# At given points stiffness grows as $\eqref{eq-stiffness}$ says, to 12.5. But guided points do not stay there. And at the points that DDIM visits its steps do not overshoot, even with four evaluations: none takes neighbours past each other and further apart. So DDIM does not pay for stiffness here. (With class 0 of the five blobs some steps overshoot even with two dozen; both in the tests.)
#
# What grows is the plain error of a step. DDIM takes the guess $\hat x_0$ as constant for a step, 2M as a straight line in $\ell$; and at $\gamma = 10$ the guess runs more than ten times as fast as at 1, early, while the noise is large. (The error at the end grows less: what goes wrong early counts less there.)
#
# | if you have | do | because |
# |---|---|---|
# | $\gamma = 1$ or 3, no noise | a second-order multistep solver, at 3 with twice the evaluations | for an error of a tenth 2M needs the fewest here |
# | $\gamma = 10$ | 2M with 24 evaluations or more, DDIM with 16 or fewer | 2M passes DDIM between 16 and 24 here |
#
# One class of one mixture, in two dimensions. With class 0 of the five blobs DDIM's error at 128 evaluations is *smaller* at $\gamma = 10$ than at 1; there, and with two other classes, 2M passes DDIM before 16 (in the tests). The solver 2M: [Lu et al. (2022)](https://arxiv.org/abs/2211.01095).

# %% tags=["remove-cell"]
rows = {name: [round(needed[name, gamma]) for gamma in (1.0, 3.0, 10.0)] for name in solvers}
assert rows["2M"][:2] == [8, 16] and rows["Heun"][:2] == [21, 26] and rows["DDIM"][:2] == [29, 42]
assert cost["2M", 10.0][budgets.index(16)] > cost["DDIM", 10.0][budgets.index(16)]
assert cost["2M", 10.0][budgets.index(24)] < cost["DDIM", 10.0][budgets.index(24)]

# %% [markdown]
# ## Deeper: where the error is made
#
# *DDIM's error under guidance, computed without a fit: for those who place steps.*
#
# With the guess of the noise, the guided ODE of the last section is $\frac{dx}{d\ell} = \sigma_t^2 x - \sigma_t \hat\varepsilon$. Divide by $\sigma_t$. Since $\frac{d\sigma_t}{d\ell} = -\alpha_t^2 \sigma_t$ and $x = \alpha_t \hat x_0 + \sigma_t \hat\varepsilon$, that is $\frac{d}{d\ell} \frac{x}{\sigma_t} = \frac{x}{\sigma_t} - \hat\varepsilon = e^\ell\, \hat x_0$.
# DDIM takes $\hat x_0$ as constant over a step $h$ in $\ell$. It misses $e^\ell\, \frac{h^2}{2} \frac{d \hat x_0}{d\ell}$ in
# $x / \sigma_t$, so $\alpha_t \frac{h^2}{2} \frac{d\hat x_0}{d\ell}$ in $x$. The flow carries each miss to the end: it multiplies it by $\Phi_\ell$, the matrix of the derivatives of the end in the point at $\ell$. Even steps are $1 / h$ to a unit of $\ell$, so the sum of the misses is
#
# $$ x_{\text{DDIM}} - x_{\text{ODE}} = -\frac{h}{2} \int \Big( \alpha\, \Phi_\ell\, \frac{d \hat x_0}{d\ell} \Big)\, d\ell + O(h^2). \label{eq-global-error} $$

# %% tags=["hide-input"]
# [eq-global-error]
def contributions(model, schedule, x, times):
    """The integrand of the global error at the middles of fine steps, (steps, N, 2); and the middles in log(alpha / sigma)."""
    kernel, steps = kernels.heun(model, schedule), len(times) - 1
    ells, maps, guesses = schedule.log_snr(times) / 2, [], [model(x, times[0]).x0]
    for u, w in zip(times[:-1], times[1:], strict=True):
        maps.append(plane.jacobian(lambda p, u=u, w=w: kernel(p, u, w).mean, x))
        x = kernel(x, u, w).mean
        guesses.append(model(x, w).x0)
    speed = torch.stack(guesses).diff(dim=0) / ells.diff()[:, None, None]
    weights, onward, parts = (schedule.alpha(times[1:]) * schedule.alpha(times[:-1])).sqrt(), torch.eye(2).double(), []
    for k in reversed(range(steps)):
        parts.append(weights[k] * (onward @ speed[k][:, :, None])[:, :, 0])
        onward = onward @ maps[k]
    return torch.stack(parts[::-1]), (ells[1:] + ells[:-1]) / 2


# %% tags=["hide-input"]
made, whole = {}, float(ells[-1] - ells[0])
for gamma in (1.0, 3.0, 10.0):
    model = guidance.tilt(free, grad, gamma, schedule)
    made[gamma], middles = contributions(model, schedule, few, grid_of(60))
    h = whole / 256
    foretold = -h / 2 * made[gamma].sum(0) * whole / 60
    seen = draw(kernels.ddim(model, schedule), few, grid_of(256)) - goal[gamma]
    sizes = [float(v.square().sum(1).mean().sqrt()) for v in (seen, foretold, seen - foretold)]
    print("gamma = {:2g}: error of DDIM in 256 steps {:.4f}, foretold {:.4f}; what is left {:.4f}".format(gamma, *sizes))
    assert abs(sizes[0] / sizes[1] - 1) < 0.08 and sizes[2] < 0.2 * sizes[0]

# %% [markdown]
# Nothing was fitted; at $\gamma = 10$ the next order in $h$ is a tenth of the error.
#
# So the integrand says where to put steps. With steps $h(\ell)$ the error is at most $\frac12 \int h(\ell)\, |\dots|\, d\ell$, to first order; their number is $\int d\ell / h(\ell)$. For a given number the bound is smallest if $h$ is in proportion to $|\dots|^{-1/2}$ (Cauchy-Schwarz). Take the root mean square of $|\dots|$ over the paths of $\gamma = 10$, and spread the steps of 32 evaluations accordingly (about a tenth of them evenly, so that none is too long):

# %% tags=["hide-input"]
def placed(steps, size, middles):
    """Times whose density in log(alpha / sigma) goes with the square root of the error made there."""
    density = size.sqrt() / size.sqrt().sum() + 0.1 / len(size)
    levels = torch.cat([torch.zeros(1).double(), (density / density.sum()).cumsum(0)])
    edges = torch.linspace(float(ells[0]), float(ells[-1]), len(levels)).double()
    at = torch.from_numpy(numpy.interp(torch.linspace(0, 1, steps + 1).numpy(), levels.numpy(), edges.numpy()))
    times = schedule.time(2 * at)
    times[0], times[-1] = 1.0, 0.001
    return times


strong = guidance.tilt(free, grad, 10.0, schedule)
size, fresh = made[10.0].square().sum(2).mean(1).sqrt(), start[500:1000]  # other noises than those that placed the steps
ends_exactly = ode.solve(ode.probability_flow(strong, schedule), fresh, 1.0, 0.001, tolerance=1e-8)
gained = {}
for name, (solver, calls) in solvers.items():
    both = [draw(solver(strong, schedule), fresh, g) for g in (grid_of(32 // calls), placed(32 // calls, size, middles))]
    gained[name] = [float((x - ends_exactly).square().sum(1).mean().sqrt()) for x in both]
    print("{:5s} 32 evaluations at gamma = 10: error {:.3f} with even steps, {:.3f} with placed ones".format(name, *gained[name]))
print(f"half of the error is made between {float(middles[(size.cumsum(0) / size.sum()) < 0.25][-1]):.1f} and {float(middles[(size.cumsum(0) / size.sum()) < 0.75][-1]):.1f} in log(alpha / sigma)")
assert all(0.35 < after / before < 0.62 for before, after in gained.values())

# %% tags=["hide-input"]
with plotting.style():
    figure, panel = plotting.plt.subplots(figsize=(5.8, 2.9))
    assert len(few) == 500
    for gamma, colour in ((1.0, "conditional"), (3.0, "guided"), (10.0, "other")):
        parts = made[gamma].square().sum(2).mean(1).sqrt()
        panel.plot(middles, parts, color=plotting.COLOURS[colour])
        top = int(parts.argmax())
        panel.text(middles[top] + (0.25 if gamma > 1 else -0.2), parts[top] * (1.0 if gamma > 1 else 0.25), f"$\\gamma = {gamma:g}$", color=plotting.COLOURS[colour])
    panel.set(xlabel=r"$\log(\alpha_t / \sigma_t)$  (noise left, data right)", ylabel="error made here", ylim=(0, None))
    shown = plotting.show(figure, "10_where", alt="Three curves over the log of signal to noise: the root mean square of what each place on the way adds to the final error of DDIM. The peak grows with gamma, from gamma 1 to 10 by a factor of nearly six, and moves towards the noise.")
shown

# %% [markdown]
# *The root mean square of the integrand of $\eqref{eq-global-error}$ over 500 paths. Strong guidance makes its error early, while the noise is still larger than the signal.*
#
# Judged on noises that did not take part, placed steps have half the error or so, with all three solvers. The curve costs more than the run that it improves. Its message is cheap: at strong guidance, take the steps away from the end and spend them where the noise is one to four times the signal.
#
# ## Deeper: from how many steps on an order is an order
#
# *For those who compare solvers at ten steps.*
#
# Halve the step length, and an error of order $k$ falls by $2^k$. The logarithm of the quotient, from the same runs:

# %% tags=["hide-input"]
doubled_budgets = [n for n in budgets if 2 * n in budgets and n in (4, 8, 16, 32, 64)]
print("evaluations      " + "".join(f"{n:>4d} to {2 * n:<4d}" for n in doubled_budgets))
orders = {}
for (name, gamma), errors in cost.items():
    at = dict(zip(budgets, errors, strict=True))
    orders[name, gamma] = [math.log2(at[n] / at[2 * n]) for n in doubled_budgets]
    print(f"{name:5s} gamma = {gamma:<4g}" + "".join(f"{value:>8.2f}    " for value in orders[name, gamma]))

# %% tags=["remove-cell"]
assert all(abs(orders["DDIM", g][k] - 1) < 0.08 for g in (1.0, 3.0) for k in (1, 2, 3, 4)) and 0.85 < orders["DDIM", 10.0][-1] < 0.95
assert all(abs(orders["2M", g][-1] - 2) < 0.1 and abs(orders["Heun", g][-1] - 2) < 0.25 for g in (1.0, 3.0, 10.0))
assert orders["Heun", 1.0][0] < 1 and orders["2M", 1.0][0] < 1

# %% [markdown]
# DDIM shows its order from 8 evaluations on at $\gamma = 1$ and 3; at $\gamma = 10$ it is not quite there at 128. The second-order solvers need some 32 to be within a tenth or two of 2. So a comparison at ten evaluations says little about their order.
#
# ## Deeper: noisy samplers, counted
#
# *For those who keep the noise: how many evaluations until the distribution is right?*
#
# A noisy sampler has no exact end for each noise, so compare distributions: 1,200 samples with 1,200 of the limit, a run of 150 steps of the SDE, by the energy distance (a squared distance of two clouds, without bias, so that it may come out a little below zero). Four runs of the limit, compared with one another, show what chance alone gives.

# %% tags=["hide-input"]
def noisy_run(kernel, steps, seed):
    noise = torch.randn(1200, 2, generator=seeded(seed), dtype=torch.float64)
    return draw(kernel, noise, grid_of(steps), seeded(seed + 1))


limits, chance = {}, {}
for gamma in (1.0, 3.0):
    walk = kernels.reverse_sde(guidance.tilt(free, grad, gamma, schedule), schedule)
    limits[gamma] = [noisy_run(walk, 150, seed) for seed in (20, 30, 50, 70)]
    chance[gamma] = max(abs(metrics.energy_distance(a, b)) for a, b in itertools.combinations(limits[gamma], 2))

apart = {}
print(f"{'evaluations':31s}", *(f"{n:8}" for n in (8, 16, 32, 64, 128)), "  chance, up to")
for gamma in (1.0, 3.0):
    model = guidance.tilt(free, grad, gamma, schedule)
    for name, walk in {"DDPM, small variance": kernels.ddpm, "SDE, rho 1": kernels.reverse_sde}.items():
        clouds = {n: noisy_run(walk(model, schedule), n, 40) for n in (8, 16, 32, 64, 128)}
        apart[name, gamma] = {n: metrics.energy_distance(cloud, limits[gamma][0]) for n, cloud in clouds.items()}
        print(f"gamma = {gamma:g}, {name:20s}", *(f"{value:8.3f}" for value in apart[name, gamma].values()), f"{chance[gamma]:15.3f}")

# %% tags=["remove-cell"]
for (name, _), row in apart.items():
    assert row[8] > row[16] > 0.004 or name == "SDE, rho 1"
    assert row[8] > 0.008 and abs(row[64]) < 0.006 and abs(row[128]) < 0.004
assert round(apart["SDE, rho 1", 3.0][8] / apart["SDE, rho 1", 1.0][8]) == 6 and round(apart["DDPM, small variance", 3.0][8] / apart["DDPM, small variance", 1.0][8]) == 3

# %% [markdown]
# Again guidance costs: at 8 evaluations the distance at $\gamma = 3$ is two or three times (DDPM) and five times or more (SDE) that at 1, by the seed. By 64 nothing is left that 1,200 points show with certainty. (A right distribution is a weaker demand than a small error for each noise: do not compare these counts with those above.)
