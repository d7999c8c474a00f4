# %% [markdown]
# # 07 · The mean shift: what does a classifier change in one step?
#
# You have a diffusion model that knows nothing about classes, and a classifier that can name a noisy picture. You want
# pictures of class $y$. Classifier guidance answers with one line: at every reverse step, *move the mean by the
# variance times the gradient of the log-probability of the class*. Where does this line come from, how wrong is it, and
# what does each of its details cost? On a Gaussian mixture all of that can be computed.
#
# **After this chapter you can**
# * derive the shift in two ways, for a full covariance matrix, and say what each Taylor expansion neglects;
# * predict its error: which power of the step length, and with which constant in front;
# * judge a well-known "bug" of the reference implementation, and find the term that matters more;
# * choose the point, the coefficient and the variance of a guided step for a reason.
#
# **You need** chapter 00, Bayes' rule and Taylor expansions. Chapter 06 derives the first equation at leisure; all of
# it that is used stands here.
#
# *40 minutes to read, half a minute to run, on a laptop, without a GPU or a network connection.*

# %%
import math

import torch

from difflesson import divergence, exercises, guidance, kernels, plane, plotting
from difflesson.mixture import GaussianMixture
from difflesson.samplers import draw, time_grid
from difflesson.schedule import from_betas, vp_linear
from difflesson.steps import FullGaussian, Gaussian

# %% [markdown]
# ## One step, seen from above
#
# The laboratory is the mixture of chapter 00: four blobs in the plane with unequal weights and full covariances, two of
# class 0 and two of class 1. We ask for class 1.

# %%
mixture, noise, label = plane.four_blobs(), vp_linear(), 1
print(f"weights of the blobs {mixture.weights.numpy()}")
print(f"their classes        {mixture.labels}")

# %% [markdown]
# Under noise, $x_t = \alpha_t x_0 + \sigma_t \varepsilon$, a mixture stays a mixture. So at every time there is an exact
# density $p_t(x)$, an exact density of one class $p_t(x \mid y)$, an exact classifier $p_t(y \mid x)$, and its gradient
# $g_t(x) = \nabla \log p_t(y \mid x)$. We give two of them names:

# %%
def noised(t):
    return mixture.noised(noise.alpha(t), noise.sigma(t))


def grad(x, t):
    return noised(t).class_gradient(x, label)


# %% [markdown]
# A *reverse step* goes from $x_t$ back to an earlier, less noisy $x_s$, $s < t$. A *kernel* is a function of $x_t$, $t$ and $s$ that
# answers with a distribution of $x_s$. Here are four. Two are exact, without the label and with it. The third is what practice uses
# without the label, DDPM's Gaussian with the larger of its two usual variances. The fourth is the subject of this chapter.

# %%
free = mixture.denoiser(noise)
ignoring = kernels.exact(mixture, noise)
truth = kernels.exact(mixture, noise, label)
plain = kernels.ddpm(free, noise, "large")
guided = kernels.shift(plain, grad, gamma=1.0)

# %% [markdown]
# Look at one point $x_t$ between the classes, and at three steps from it: a short, a middle and a long one. Their length $\beta$ is
# the variance of the noise that the forward process adds between $s$ and $t$. Grey is
# where the model that ignores the label goes, $p(x_s \mid x_t)$. Dashed is where it should go,
# $p(x_s \mid x_t, y)$. Orange is the fourth: a Gaussian with the mean shifted by the variance times
# $g_t(x_t)$, the arrow.

# %% tags=["hide-input"]
here, now = torch.tensor([[-0.35, 0.1]], dtype=torch.float64), torch.tensor(0.25, dtype=torch.float64)
with plotting.style():
    figure, axes = plotting.plt.subplots(1, 3, figsize=(7.4, 2.8), sharex=True, sharey=True)
    for panel, then in zip(axes, (0.246, 0.2283, 0.1658), strict=True):
        width = float(noise.transition(now, then)[1])
        for kernel, colour, line in (
            (ignoring, "unconditional", "solid"), (guided, "guided", "solid"), (truth, "truth", "dashed")
        ):
            step = kernel(here, now, then)
            plotting.density(
                panel, lambda u, step=step, width=width: step.log_prob(here + width * u[:, None])[:, 0], (-3.6, 3.6, -3.6, 3.6),
                colors=plotting.COLOURS[colour], linestyles=line, linewidths=1.3,
            )
        start, end = ((k(here, now, then).mean[0] - here[0]) / width for k in (plain, guided))
        panel.annotate("", end.tolist(), start.tolist(), arrowprops={"arrowstyle": "->", "color": plotting.COLOURS["guided"]})
        panel.set(xlabel=r"$(x_{s,1} - x_{t,1}) / \sqrt{\beta}$", aspect="equal", title=f"$\\beta = {width**2:.2g}$")
    axes[0].set_ylabel(r"$(x_{s,2} - x_{t,2}) / \sqrt{\beta}$")
    shown = plotting.show(figure, "07_one_step", alt="Contours of three densities around one point, for a short, a middle and a long step. Short: all three nearly coincide. Middle: the orange circles lie on the dashed truth, grey is shifted away. Long: the orange circles have the right place, but the dashed truth is egg-shaped and lopsided.")
shown

# %% [markdown]
# *One step from one point, in units of the step's own spread; contours hold 50, 90 and 99 % of the mass. Grey ignores
# the label, dashed is the truth, orange has the mean shifted along the arrow.*
#
# Read it from left to right. In a short step the label changes little, and the shift gets all of that little. In a long
# step the shift goes the right way but not quite far enough, and the *shape* is wrong: the truth is no longer a circle.
# All three are derived below.
#
# ## What has to be approximated
#
# First the length of a step, exactly. The forward process gets from $x_s$ to $x_t$ by shrinking and adding noise:
#
# $$ x_t = \alpha_{t|s}\, x_s + \sigma_{t|s}\, \varepsilon, \qquad \alpha_{t|s} = \alpha_t / \alpha_s, \qquad
# \alpha_{t|s}^2 + \sigma_{t|s}^2 = 1. \label{eq-forward-transition} $$
#
# The length of the step is $\beta = \sigma_{t|s}^2$, the variance of that noise. Often we want the $s$ that belongs to a
# given $t$ and $\beta$. Let $r$ be the schedule's noise rate and $B(t) = \int_0^t r$; then $\alpha_t^2 = e^{-B}$. A step of length $\beta$ lowers
# $B$ by $-\log(1 - \beta)$, and $-\log(e^B - 1)$ is the log signal-to-noise ratio, from which the schedule finds the time. (No
# step is longer than $\sigma_t^2$.)

# %%
def earlier(t, beta):
    left = noise.integrated_beta(t) + math.log1p(-beta)
    return noise.time(-torch.log(torch.expm1(left)))


t = torch.tensor(0.2, dtype=torch.float64)
s = earlier(t, 0.1)
alpha_ts, sigma_ts = noise.transition(t, s)
print(f"t = {float(t)}, s = {float(s):.4f}, beta = {float(sigma_ts**2):.4f}")
torch.testing.assert_close(alpha_ts, noise.alpha(t) / noise.alpha(s))
torch.testing.assert_close(alpha_ts**2 + sigma_ts**2, torch.ones(()).double())

# %% [markdown]
# The forward process adds noise without looking at the label. Hence $p(y \mid x_s, x_t) = p(y \mid x_s)$: once you know the
# cleaner point, the noisier one says nothing more about the class. Bayes' rule for one step then reads
#
# $$ p(x_s \mid x_t, y) = p(x_s \mid x_t)\, \frac{p(y \mid x_s)}{p(y \mid x_t)}. \label{eq-bayes-step} $$
#
# On the mixture both sides have closed forms that share no code: on the left the reverse kernel of class 1 alone, on the
# right the reverse kernel of everything, and two class posteriors.

# %%
generator = torch.Generator().manual_seed(0)
x_t, x_s = torch.randn(2, 5, 2, dtype=torch.float64, generator=generator)
left_side = truth(x_t, t, s).log_prob(x_s)
right_side = ignoring(x_t, t, s).log_prob(x_s)
right_side += noised(s).class_log_prob(x_s, label)
right_side -= noised(t).class_log_prob(x_t, label)
error = float((left_side - right_side).abs().max())
print(f"largest difference of the logarithms {error:.0e}")
torch.testing.assert_close(left_side, right_side)

# %% [markdown]
# The model gives you $p(x_s \mid x_t)$, nearly a Gaussian when the step is short. The factor
# $p(y \mid x_s) / p(y \mid x_t)$ is the problem: a classifier is a network, and Gaussian times network is nothing you can
# draw from. Two roads lead out, and they end at the same formula.
#
# ## Road one: expand in point and time
#
# Short steps mean that $(x_s, s)$ is near $(x_t, t)$. The logarithm of the classifier is a smooth function of both, so
# expand it in both:
#
# $$ \log p_s(y \mid x_s) \approx \log p_t(y \mid x_t) + (x_s - x_t) \cdot \nabla \log p_t(y \mid x_t)
# + (s - t)\, \partial_t \log p_t(y \mid x_t). \label{eq-taylor} $$
#
# `guidance.linearise` is this line, with the derivatives by automatic differentiation. Against finite differences:

# %%
def log_class(x, time):
    return noised(time).class_log_prob(x, label)


h = 1e-5
rate = (log_class(x_t, t + h) - log_class(x_t, t - h)) / (2 * h)
by_hand = log_class(x_t, t) + ((x_s - x_t) * grad(x_t, t)).sum(1) + (s - t) * rate
compact = guidance.linearise(log_class, x_t, t)(x_s, s)
print(f"largest difference {float((compact - by_hand).abs().max()):.0e}")
torch.testing.assert_close(compact, by_hand, atol=1e-8, rtol=0)

# %% [markdown]
# What is neglected? Walk away from $(x_t, t)$ along a straight line and shorten the walk by tens. With the time term the
# error falls as the *square* of the distance, as a first-order polynomial should; without it, only as the distance:

# %%
line = guidance.linearise(log_class, x_t, t)
errors = []
for h in (1e-1, 1e-2, 1e-3):
    point, time = x_t + h * (x_s - x_t), t - 0.2 * h
    value = log_class(point, time)
    with_time, without = line(point, time) - value, line(point, t) - value
    errors.append([float(e.abs().max()) for e in (with_time, without)])
    print("{:.0e}: error {:.1e}, without the time term {:.1e}".format(h, *errors[-1]))
falls = [errors[1][i] / errors[2][i] for i in (0, 1)]
assert 95 < falls[0] < 105 and 9.5 < falls[1] < 10.5

# %% [markdown]
# Yet nobody computes the time term. Look at what it multiplies: nothing that depends on $x_s$. As a factor of a density in
# $x_s$ it is a constant, and normalisation removes it. It matters for the *value* of $p(y \mid x_s)$, not for where the
# step goes.
#
# How large is what we neglect? In a step of length $\beta$ the distance $|x_s - x_t|$ is about $\sqrt\beta$. So the linear term
# is of size $\sqrt\beta$, and the second-order term in $x$ is of size $\beta$, like the time term. But the time term drops
# out, and the second-order term depends on $x_s$: it changes the shape of the step. It comes back as one of two parts of
# the leading error. The other is the shape of the model's own Gaussian, which is not right either.
#
# ## Complete the square
#
# Put the expansion into $\eqref{eq-bayes-step}$, keep what depends on $x_s$, and write $g = \nabla \log p_t(y \mid x_t)$.
# Let the model's step be a Gaussian with any covariance $\Sigma$:
#
# $$ p(x_s \mid x_t, y) \;\approx\; \mathrm{const} \cdot \exp\!\Big(-\tfrac12 (x_s - \mu)^\top \Sigma^{-1} (x_s - \mu) + g^\top x_s\Big). $$
#
# Try $m = \mu + \Sigma g$ as the new centre and expand:
# $(x_s - m)^\top \Sigma^{-1} (x_s - m) = (x_s - \mu)^\top \Sigma^{-1} (x_s - \mu) - 2\, g^\top (x_s - \mu) + g^\top \Sigma g$,
# where $\Sigma^{-1} \Sigma g = g$ and the symmetry of $\Sigma$ did the work. Half of it, with a minus sign, is the exponent
# above up to terms without $x_s$. So multiplying a Gaussian by the exponential of a linear function *moves* it and does nothing else:
#
# $$ \mathcal N(x;\, \mu, \Sigma)\; e^{\,g^\top x} \;=\; \mathcal N(x;\, \mu + \Sigma g,\, \Sigma)\;
# e^{\,g^\top \mu + \frac12 g^\top \Sigma g}. \label{eq-complete-square} $$
#
# Check it with a tilted ellipse, where $\Sigma g$ points elsewhere than $g$. The naive form multiplies densities; the package's
# Gaussians have the method `tilted`:

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
# The gradient points to the upper right, but the Gaussian moves straight up: $\Sigma$ multiplies the part of $g$ along the
# ellipse's long axis (upper left to lower right) by more than the part across it. This is classifier guidance: where the model steps by $\mathcal N(\mu, \Sigma)$, step by
#
# $$ q(x_s \mid x_t) = \mathcal N\big(\mu + \gamma\, \Sigma\, g,\; \Sigma\big),
# \qquad g = \nabla \log p_t(y \mid x_t), \label{eq-mean-shift} $$
#
# where $\gamma = 1$ is the approximation of $p(x_s \mid x_t, y)$ just derived. In this chapter $\gamma = 1$ throughout; chapters 08
# and 17 ask what other values mean. In the package, `kernels.shift` turns any kernel into its shifted version:

# %%
step = plain(x_t, t, s)
by_hand = Gaussian(step.mean + step.var * grad(x_t, t), step.var)
compact = kernels.shift(plain, grad, gamma=1.0)(x_t, t, s)
torch.testing.assert_close(compact.mean, by_hand.mean)
print(f"the means agree, the variance is {float(step.var):.4f} in both")

# %% [markdown]
# ## Algorithm 1
#
# Repeat the step from noise to data and you have Algorithm 1 of [Dhariwal & Nichol (2021)](https://arxiv.org/abs/2105.05233):
#
# > draw $x$ from $\mathcal N(0, I)$; for each step from $t$ to $s$: compute $\mu$ and $\Sigma$ of the model's step, and draw the next $x$
# > from $\mathcal N(\mu + \gamma \Sigma g, \Sigma)$.
#
# Written out, and in one line; the same random numbers give the same points:

# %%
times = time_grid(25)
generator = torch.Generator().manual_seed(1)
start = torch.randn(5000, 2, dtype=torch.float64, generator=generator)
generator, x = torch.Generator().manual_seed(2), start
for a, b in zip(times[:-1], times[1:], strict=True):
    step = plain(x, a, b)
    mean = step.mean + step.var * grad(x, a)
    x = mean
    if b > 0:  # DDPM's last step, to the data, adds no noise
        eps = torch.randn(x.shape, dtype=x.dtype, generator=generator)
        x = mean + step.var.sqrt() * eps

# %%
shifted = kernels.shift(plain, grad, gamma=1.0)
again = draw(shifted, start, times, torch.Generator().manual_seed(2))
torch.testing.assert_close(again, x)
print(f"mean of the points {x.mean(0).numpy().round(3)}")
mean = mixture.given(label).weights @ mixture.given(label).means
print(f"mean of class 1    {mean.numpy().round(3)}")

# %% [markdown]
# Close, and not equal. With 5,000 points the mean of $x_1$ has a standard error below 0.02; this difference is no accident, it is
# the approximation.
#
# ## Road two: expand at the mean
#
# The original paper expands elsewhere. A step lands near its mean $\mu$, so $\log p_s(y \mid x_s)$ is expanded *there*, at the
# noise level $s$ to which $x_s$ belongs:
#
# $$ \log p_s(y \mid x_s) \approx \log p_s(y \mid \mu) + (x_s - \mu) \cdot \nabla \log p_s(y \mid \mu). $$
#
# Now no time term appears at all, and completing the square gives the same formula with another gradient. (Their letters: what
# is $s$ here is their $t$, and what is $t$ here is their $t + 1$.) There are four ways to evaluate a classifier now, two points and two noise
# levels:
#
# | point | noise level | who |
# |---|---|---|
# | $x_t$ | $t$ | road one; the original paper's Algorithm 1, and its code |
# | $\mu$ | $s$ | road two; the original paper's derivation |
# | $\mu$ | $t$ | a repaired implementation, see below |
# | $x_t$ | $s$ | nobody we know of |
#
# That the derivation says one thing and the code another was noticed early. A reader reported it as a bug
# ([guided-diffusion, number 51](https://github.com/openai/guided-diffusion/issues/51)); an author agreed that it is a slight one
# and added that the repair had made no noticeable difference. Another library then repaired it by replacing $x_t$ with $\mu$
# and leaving $t$ as it was, the third row
# ([denoising-diffusion-pytorch, number 277](https://github.com/lucidrains/denoising-diffusion-pytorch/pull/277)).
# Who is right? `shift` takes the place as arguments, so ask.

# %%
places = {"x_t, t": ("x", "t"), "mu, s": ("mu", "s"), "mu, t": ("mu", "t"), "x_t, s": ("x", "s")}


def shift_at(kernel, place):
    at, time = places[place]
    return kernels.shift(kernel, grad, gamma=1.0, at=at, time=time)


# %% [markdown]
# ## How to measure a step
#
# A kernel is as good as its divergence from the truth is small. For one point $x_t$,
#
# $$ \mathrm{KL}(p \,\|\, q) = \mathbb E_{p}\big[\log p - \log q\big] = \mathbb E_p\big[r - 1 - \log r\big], \qquad
# r = q / p, \label{eq-kl} $$
#
# with $p = p(x_s \mid x_t, y)$ and $q$ the kernel's answer. The second form adds $\mathbb E_p[r] - 1 = 0$. Its terms are about
# $(r - 1)^2 / 2$, so nothing large cancels (computed with `expm1`), and divergences of $10^{-15}$ keep their digits. The expectation is Gauss-Hermite
# quadrature over the components of the exact step. Next to it, the naive form with a million random draws:

# %%
one, many = x_t[:1], torch.Generator().manual_seed(3)
p, q = truth(one, t, s), kernels.shift(plain, grad, gamma=1.0)(one, t, s)
draws = truth(one.expand(1_000_000, 2), t, s).sample(many)[:, None]
values = (p.log_prob(draws) - q.log_prob(draws))[:, 0]
print(f"naive    {float(values.mean()):.6f} +- {float(values.std()) / 1000:.6f}")
print(f"compact  {float(divergence.kl(p, q)[0]):.6f} nats")
assert abs(float(values.mean() - divergence.kl(p, q)[0])) < 5 * float(values.std()) / 1000

# %% [markdown]
# One point proves nothing, so average over $x_t$ drawn from $p_t(x \mid y)$, again by quadrature: `points` and their weights.

# %%
t = torch.tensor(0.4, dtype=torch.float64)
points, weights = divergence.mixture_nodes(noised(t).given(label), order=8)


def measure(kernel, beta):
    """Root mean square error of the mean, and mean divergence, of one step of length beta from t."""
    s = earlier(t, beta)
    p, q = truth(points, t, s), kernel(points, t, s)
    off = (q.mean - p.mean).square().sum(1)
    return float((weights @ off).sqrt()), float(weights @ divergence.kl(p, q))


# %% [markdown]
# ## Three orders of error
#
# DDPM knows two variances. The large one is $\beta = \sigma_{t|s}^2$. The small one is that of $x_s$ when the clean point is known,
#
# $$ \mathrm{Var}(x_s \mid x_t, x_0) = \frac{\sigma_s^2}{\sigma_t^2}\, \sigma_{t|s}^2 \label{eq-posterior-variance} $$
#
# (two Gaussian pieces of information about $x_s$, from either side, add their precisions):

# %%
t_late, s_late = 0.4, 0.3
alpha_ts, sigma_ts = noise.transition(t_late, s_late)
precision = 1 / noise.sigma(s_late) ** 2 + alpha_ts**2 / sigma_ts**2
compact = kernels.posterior_variance(noise, t_late, s_late)
torch.testing.assert_close(compact, 1 / precision)
print(f"large {float(sigma_ts**2):.3f}, small {float(compact):.3f}")

# %% [markdown]
# Before measuring, predict, for a fixed $t$ and $\beta$ much smaller than $\sigma_t^2$. If you ignore the label, the mean is off by
# $\Sigma g \approx \beta g$, and two Gaussians of variance $\beta$ whose means differ by $\delta$ are $|\delta|^2 / 2 \beta$ apart:
#
# $$ \mathrm{KL}_{\text{no shift}} = \frac{\beta}{2}\, |g|^2 + O(\beta^2). \label{eq-kl-no-shift} $$
#
# With the shift, the error of the mean is of order $\beta^2$ (you will see), which contributes only $(\beta^2)^2 / \beta = \beta^3$. What
# remains is the shape. Write $H$ for the second derivatives of $\log p_t(x \mid y)$ at $x_t$. The true covariance is
# $\beta\,(I + \beta\,(I + H))$ up to higher orders, as $\eqref{eq-second-order}$ will say; the kernel's is $\beta I$ with the large variance. Two Gaussians with
# covariances $\beta I$ and $\beta (I + E)$ are $\frac14 |E|^2$ apart to leading order, where $|\cdot|^2$ sums the squares of all entries. Hence
#
# $$ \mathrm{KL}_{\text{shift}} = \frac{\beta^2}{4}\, \big| H + c\, I \big|^2 + O(\beta^3), \qquad
# c = 1 \text{ (large variance)}, \quad c = 1 / \sigma_t^2 \text{ (small variance)}. \label{eq-kl-shift} $$
#
# The small variance is exact for a data set of one point, where $H = -I / \sigma_t^2$; the large one for standard normal data,
# where $H = -I$. The formula says so: it vanishes there.
#
# Note what is *not* in these formulas: the place where the gradient was taken.

# %%
g, beta = grad(points, t), torch.tensor(1e-4, dtype=torch.float64)
curvature = noised(t).given(label).hessian(points)
predicted = {
    "no shift": weights @ (beta * g.square().sum(1) / 2),
    "shift": weights @ (beta**2 * (curvature + torch.eye(2)).square().sum((1, 2)) / 4),
}

# %%
compact = {
    "no shift": weights @ divergence.leading_kl_without_shift(g, beta),
    "shift": weights @ divergence.leading_kl_with_shift(curvature, beta, prior=1.0),
}
for name, kernel in {"no shift": plain, "shift": shift_at(plain, "x_t, t")}.items():
    torch.testing.assert_close(compact[name], predicted[name])
    ratio = measure(kernel, 1e-4)[1] / float(predicted[name])
    print(f"{name:8s}  measured over predicted: {ratio:.4f}")
    assert abs(ratio - 1) < 2e-3

# %% [markdown]
# No constant was fitted. Now over four decades of step length, together with the best Gaussian there is, to which we come below
# as "second order":

# %%
betas = [10 ** (-k / 2) for k in range(2, 11)]
methods = {
    "no shift": plain,
    "shift": shift_at(plain, "x_t, t"),
    "second order": kernels.hessian(mixture, noise, label),
}
losses = {name: [measure(k, b)[1] for b in betas] for name, k in methods.items()}
orders = {name: math.log10(v[-5] / v[-1]) / 2 for name, v in losses.items()}
for name, order in orders.items():
    print(f"{name:12s}  KL falls like beta^{order:.2f}")
assert [round(order, 1) for order in orders.values()] == [1, 2, 3]

# %% tags=["hide-input"]
with plotting.style():
    figure, panel = plotting.plt.subplots(figsize=(5.6, 3.7))
    colours = {"no shift": "unconditional", "shift": "guided", "second order": "other"}
    for name, values in losses.items():
        panel.loglog(betas, values, "o", color=plotting.COLOURS[colours[name]], markersize=5)
        panel.text(betas[0] * 1.25, values[0], name, color=plotting.COLOURS[colours[name]], va="center")
    for name, value in predicted.items():
        order = {"no shift": 1, "shift": 2}[name]
        line = [float(value) * (b / 1e-4) ** order for b in betas]
        panel.loglog(betas, line, "--", color=plotting.COLOURS["truth"], linewidth=1, zorder=0)
    panel.set(xlabel=r"length of the step, $\beta = \sigma_{t|s}^2$", ylabel="KL from the exact step [nats]", xlim=(6e-6, 1.3))
    shown = plotting.show(figure, "07_orders", alt="Log-log plot of the divergence over step length from 1e-5 to 0.1. Three straight rows of dots with slopes one, two and three. Dashed lines predicted from theory run through the first two rows.")
shown

# %% [markdown]
# *Divergence of one step from the truth. Dots are measured; dashed lines are the two predictions above, without a fitted constant.*
#
# Ten times shorter steps: the label ignored gives 10 times less error, a shifted mean 100 times, second order 1,000 times. But
# the number of steps grows by ten, too. So for the *whole path* one power is lost, and the first method gains nothing from
# short steps. We return to that.
#
# Two things are still wrong in a shifted step: its mean by a little, its shape by more. First the mean.
#
# ## The surprise: the direction was never approximate
#
# Look at $\eqref{eq-forward-transition}$ again: $x_t$ is a noisy version of $x_s$, just as it is one of $x_0$. So Tweedie's formula, which gives the
# mean of what is under the noise, holds for a single step. In three lines: $x_t$ has the density
# $p_t(x \mid y) = \int \mathcal N(x;\, \alpha_{t|s} x_s, \sigma_{t|s}^2 I)\, p_s(x_s \mid y)\, dx_s$. Its gradient multiplies the integrand by
# $(\alpha_{t|s} x_s - x) / \sigma_{t|s}^2$. Divide by $p_t(x \mid y)$: $\nabla \log p_t(x \mid y) = (\alpha_{t|s}\, \mathbb E[x_s \mid x, y] - x) / \sigma_{t|s}^2$. Solved for the mean,
#
# $$ \mathbb E[x_s \mid x_t, y] = \frac{x_t + \sigma_{t|s}^2\, \nabla \log p_t(x_t \mid y)}{\alpha_{t|s}}
# = \frac{x_t + \beta\, \nabla \log p_t(x_t \mid y)}{\sqrt{1 - \beta}}. \label{eq-one-step-tweedie} $$

# %%
worst = 0.0
for t_long, s_long in [(0.4, 0.39), (0.4, 0.1), (0.9, 0.2), (1.0, 0.0)]:
    exact_mean = truth(points, t_long, s_long).mean
    alpha_ts, sigma_ts = noise.transition(t_long, s_long)
    score = noised(t_long).given(label).score(points)
    by_hand = (points + sigma_ts**2 * score) / alpha_ts
    compact = kernels.one_step_mean(points, score, noise, t_long, s_long)
    torch.testing.assert_close(compact, by_hand)
    worst = max(worst, float((compact - exact_mean).abs().max()))
print(f"largest error, over steps of every length: {worst:.0e}")
assert worst < 1e-12

# %% [markdown]
# No small step was assumed; the last of these goes from noise to data at once. Write the same formula without the label
# and subtract. Since $\nabla \log p_t(x \mid y) = \nabla \log p_t(x) + g_t(x)$,
#
# $$ \mathbb E[x_s \mid x_t, y] - \mathbb E[x_s \mid x_t] = \frac{\sigma_{t|s}^2}{\alpha_{t|s}}\; g_t(x_t). $$
#
# So the exact shift of the mean *is* a multiple of the gradient at $x_t$ and at the noise level $t$. Taking it there was no approximation,
# as long as the variance is one number. (With a full $\Sigma$ the shift $\Sigma g$ of $\eqref{eq-mean-shift}$ has another direction, and then that is approximate, too.)
# What was approximate is the *coefficient*: it should be $\sigma_{t|s}^2 / \alpha_{t|s}$, and classifier guidance multiplies by the
# variance that it happens to use. The large variance is too small a coefficient by the factor $\alpha_{t|s}$, the small one by
# $\alpha_{t|s}\, \sigma_s^2 / \sigma_t^2$. Here are these fractions on the table of noise rates of the original DDPM, from the kernels themselves:

# %%
ddpm_table = from_betas(torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))
free_table = mixture.denoiser(ddpm_table)


def fractions(steps, variance):
    """Time, and fraction of the exact shift that the step from it gets."""
    kernel = kernels.ddpm(free_table, ddpm_table, variance)
    grid, found = time_grid(steps), []
    for a, b in zip(grid[:-1], grid[1:], strict=True):
        alpha_ts, sigma_ts = ddpm_table.transition(a, b)
        used = kernel(points[:1], a, b).var
        found.append((float(a), float(used * alpha_ts / sigma_ts**2)))
    return found


# %%
for steps in (1000, 250, 25):
    for variance in ("large", "small"):
        got = [f"{fraction:.3f}" for _, fraction in fractions(steps, variance)]
        print(f"{steps:4d} steps, {variance}: first {got[0]}, middle {got[steps // 2]}, last three {' '.join(got[-3:])}")

# %% tags=["hide-input"]
with plotting.style():
    figure, panel = plotting.plt.subplots(figsize=(5.6, 3.1))
    for variance, colour in (("large", "conditional"), ("small", "guided")):
        for steps, line in ((25, "solid"), (250, "dashed")):
            panel.plot(*zip(*fractions(steps, variance)[:-1], strict=True), color=plotting.COLOURS[colour], linestyle=line)
    panel.axhline(1, color=plotting.COLOURS["truth"], linewidth=0.8, linestyle="dotted")
    panel.text(0.06, 1.03, "exact coefficient")
    panel.text(0.47, 0.885, "large variance", color=plotting.COLOURS["conditional"])
    panel.text(0.24, 0.5, "small variance", color=plotting.COLOURS["guided"])
    panel.set(xlabel="time $t$ (0 is data)", ylabel="fraction of the exact shift", ylim=(0, 1.12))
    shown = plotting.show(figure, "07_coefficient", alt="Two pairs of curves over time: the fraction of the exact shift with the large and with the small variance. With 25 steps both start at two thirds at t = 1; the large one rises to one at t = 0, the small one to 0.8 and then falls below one third. With 250 steps both are near one, but the small one still falls steeply at the end.")
shown

# %% [markdown]
# *The fraction of the exact shift that a guided step gets on DDPM's table, for 25 steps (solid) and 250 (dashed), without
# the very last step.*
#
# With a thousand steps only the last few steps with the small variance are affected, and their shifts are tiny. With 25
# steps a third of the first shift is missing, and the last steps with the small variance get less than half. The very last step adds no
# noise with either variance, so it has no shift at all.
#
# There is a guidance that has the right coefficient without being told. Add the gradient to the *score*, as
# `guidance.tilt` does (chapter 10): then the predicted clean point moves by $\sigma_t^2\, g / \alpha_t$, and the mean of DDPM's step, which weighs that point by
# $\alpha_s \sigma_{t|s}^2 / \sigma_t^2$, moves by $\sigma_{t|s}^2\, g / \alpha_{t|s}$, as it should. (With $\gamma = 1$ and an exact classifier this is no wonder:
# score plus gradient *is* the score of the class, and the sampler is plain DDPM on the class alone. That is the point: the shift falls short of it.)

# %%
tilted = guidance.tilt(free, grad, gamma=1.0, schedule=noise)
exact_coefficient = kernels.ddpm(tilted, noise)
for t_long, s_long in [(0.4, 0.39), (0.4, 0.1), (0.9, 0.2)]:
    got = exact_coefficient(points, t_long, s_long).mean
    error = float((got - truth(points, t_long, s_long).mean).abs().max())
    print(f"from {t_long} to {s_long}: the mean is off by {error:.0e}")
    assert error < 1e-12

# %% [markdown]
# ## Second order: correct the shape
#
# Road two goes one order further: expand the classifier at $\mu$ with its second derivatives, $g = \nabla \log p_s(y \mid \mu)$ and
# $G = \nabla \nabla \log p_s(y \mid \mu)$. Exponents of second order still complete to a square; the precision
# $\Sigma^{-1}$ becomes $\Sigma^{-1} - G$ (which must be positive definite, or there is no such Gaussian):
#
# $$ \mathcal N(x;\, \mu, \Sigma)\; e^{\,g^\top (x - \mu) + \frac12 (x - \mu)^\top G (x - \mu)} \;\propto\;
# \mathcal N\big(x;\, \mu + \Sigma' g,\; \Sigma'\big), \qquad \Sigma' = (\Sigma^{-1} - G)^{-1}. \label{eq-taylor-second} $$

# %%
G = torch.tensor([[[-0.3, 0.2], [0.2, 0.4]]], dtype=torch.float64)
g_here = torch.tensor([[0.7, 1.1]], dtype=torch.float64)
away = x_s[:, None] - mu
bent = ellipse.log_prob(x_s[:, None]) + (away * g_here).sum(-1)
bent = bent + (away * (away @ G[0])).sum(-1) / 2
compact = ellipse.tilted(g_here, hessian=G)
constants = (bent - compact.log_prob(x_s[:, None]))[:, 0]
print("the logarithms differ by one constant:", constants.numpy().round(6))
torch.testing.assert_close(constants, constants[:1].expand(5))

# %% [markdown]
# Another way asks for no expansion: take the Gaussian with the *true* mean and covariance of $p(x_s \mid x_t, y)$. The mean is
# $\eqref{eq-one-step-tweedie}$. For the covariance, differentiate $\nabla \log p_t = (\alpha_{t|s}\, \mathbb E[x_s \mid x, y] - x) / \sigma_{t|s}^2$ once more. Under the integral,
# the derivative of $\mathbb E[x_s \mid x, y]$ in $x$ is $\alpha_{t|s}\, \mathrm{Cov}(x_s \mid x, y) / \sigma_{t|s}^2$. Solved for the covariance,
#
# $$ \mathrm{Cov}(x_s \mid x_t, y) = \frac{\sigma_{t|s}^2}{\alpha_{t|s}^2} \Big( I + \sigma_{t|s}^2\, \nabla \nabla \log p_t(x_t \mid y) \Big).
# \label{eq-second-order} $$
#
# It is exact for steps of any length, and it gives the $\beta (I + \beta (I + H))$ used above, since
# $\sigma_{t|s}^2 / \alpha_{t|s}^2 = \beta / (1 - \beta) = \beta + \beta^2 + \dots$ The exact step is a mixture; its covariance can be summed up by hand:

# %%
s = earlier(t, 0.1)
exact_step = truth(points, t, s)
alpha_ts, sigma_ts = noise.transition(t, s)
H = noised(t).given(label).hessian(points)
by_hand = (sigma_ts / alpha_ts) ** 2 * (torch.eye(2) + sigma_ts**2 * H)
compact = kernels.hessian(mixture, noise, label)(points, t, s).cov
torch.testing.assert_close(compact, by_hand)
error = float((compact - exact_step.cov).abs().max())
print(f"against the covariance of the exact mixture: {error:.0e}")
assert error < 1e-12

# %% [markdown]
# A third way is variational: among *all* Gaussians $q$, take the one that minimises the divergence. Since $\log q$ is quadratic,
# $\mathbb E_p[\log q]$ stays the same when $p$ is replaced by the Gaussian with the mean and covariance of $p$. So up to a constant
# we minimise the divergence from that Gaussian, and it is zero when $q$ *is* that Gaussian:
#
# $$ \arg\min_{q \text{ Gaussian}} \mathrm{KL}(p \,\|\, q) = \mathcal N\big(\mathbb E_p[x],\, \mathrm{Cov}_p[x]\big).
# \label{eq-moment-matching} $$
#
# Do it blindly: start from the shifted kernel, minimise the divergence by a quasi-Newton method, and see where it ends.

# %%
p = truth(x_t, t, s)
begin = shift_at(plain, "x_t, t")(x_t, t, s)
mean = begin.mean.clone().requires_grad_()
root = (begin.var.sqrt() * torch.eye(2).double()).repeat(5, 1, 1).requires_grad_()

# %%
search = torch.optim.LBFGS([mean, root], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")


def loss():
    search.zero_grad()
    value = divergence.kl(p, FullGaussian(mean, root @ root.mT)).sum()
    value.backward()
    return value


search.step(loss)
best = divergence.closest_gaussian(p)
print(f"means differ by {float((mean - best.mean).abs().max().detach()):.0e}")
print(f"covariances by  {float((root @ root.mT - best.cov).abs().max().detach()):.0e}")
torch.testing.assert_close(mean.detach(), best.mean, atol=1e-5, rtol=0)
torch.testing.assert_close((root @ root.mT).detach(), best.cov, atol=1e-5, rtol=0)

# %% [markdown]
# Moment matching by Tweedie and the variational optimum are one Gaussian, exactly. The Taylor way $\eqref{eq-taylor-second}$ gives another one, whose
# divergence is of order $\beta^3$ as well, if it starts from the right covariance of the model's own step (here
# `kernels.hessian` without the label):

# %%
def taylor(x, t, s):
    step = kernels.hessian(mixture, noise)(x, t, s)
    at_s = noised(s)
    bend = at_s.given(label).hessian(step.mean) - at_s.hessian(step.mean)
    return step.tilted(grad(step.mean, s), bend)


values = [measure(taylor, b)[1] for b in betas]
order = math.log10(values[-5] / values[-1]) / 2
print(f"Taylor to second order: KL falls like beta^{order:.2f}")
print(f"at beta = 0.1 it is {values[0] / losses['second order'][0]:.1f} times the optimum")
assert abs(order - 3) < 0.1 and values[0] > losses["second order"][0]

# %% [markdown]
# Both Gaussians need second derivatives. For images these are expensive, which is why practice stays with the shift.

# %% [markdown]
# ## What each choice costs
#
# Point, coefficient, variance: now each of them has a price. One step from $t = 0.4$ with $\beta = 0.01$; the orders are
# measured between $\beta = 10^{-2}$ and $10^{-3}$.

# %%
small, large = kernels.ddpm(free, noise), plain
choices = {"no shift, large": large}
choices |= {f"{place}, small": shift_at(small, place) for place in places}
choices |= {f"{place}, large": shift_at(large, place) for place in places}
choices |= {
    "exact coefficient, small": exact_coefficient,
    "exact coefficient, large": kernels.ddpm(tilted, noise, "large"),
    "x_t, t, full covariance": shift_at(kernels.hessian(mixture, noise), "x_t, t"),
    "second order": kernels.hessian(mixture, noise, label),
}

# %%
print(f"{'':26s} error of mean  order     KL      order")
price = {}
for name, kernel in choices.items():
    (off, loss), (off_less, loss_less) = (measure(kernel, b) for b in (1e-2, 1e-3))
    order = math.log10(loss / loss_less)
    mean_order = f"{math.log10(off / off_less):5.2f}" if off > 1e-12 else "exact"
    price[name] = off, loss, order
    shown_off = f"{off:8.1e}" if off > 1e-12 else "       0"
    print(f"{name:26s} {shown_off}       {mean_order}  {loss:8.1e}  {order:5.2f}")

# %% tags=["remove-cell"]
assert all(abs(price[f"{place}, {v}"][2] - 2) < 0.1 for place in places for v in ("small", "large"))
assert price["exact coefficient, small"][0] < 1e-12 and price["second order"][2] > 2.9
assert price["mu, s, small"][0] < price["x_t, t, small"][0]
kls = [price[f"{place}, small"][1] for place in places]
assert max(kls) / min(kls) < 1.05 and 3 < min(kls) / price["x_t, t, large"][1] < 4

# %% [markdown]
# Read the columns one by one.
#
# * **The point.** All four places have the same orders and nearly the same divergence. The place moves only the mean, and
#   an error of the mean costs $\beta^3$. Still, $\mu, s$ has the smallest error of the mean. That does not make it the right
#   place: two errors cancel, as the next cell shows.
# * **The coefficient.** The exact one makes the mean exact. The divergence hardly notices.
# * **The variance.** It decides the divergence: the small one costs more than three times as much as the large one here. Even the full
#   covariance of the model's own step (last row but one) stays at order two and is no better than the large variance, since
#   it is not the covariance *given the label*. Order three needs both, the model's second derivatives and the classifier's.
#
# Why $\mu, s$ does well: the gradient there is *longer* than the right one at $x_t, t$, the coefficient is too *small*, and
# the two errors cancel in part.

# %%
s = earlier(t, 1e-2)
alpha_ts, sigma_ts = noise.transition(t, s)
g, at_mu = grad(points, t), grad(small(points, t, s).mean, s)
longer = float(weights @ (at_mu * g).sum(1) / (weights @ g.square().sum(1)))
shorter = float(kernels.posterior_variance(noise, t, s) * alpha_ts / sigma_ts**2)
print(f"gradient {longer:.4f} of the right one, coefficient {shorter:.4f}, product {longer * shorter:.4f}")
assert shorter < 1 < longer

# %% [markdown]
# So is the place irrelevant? In one short step, yes. But the errors of the mean point the same way step after step:
# $T \sim 1 / \beta$ of them add up to an error of order $\beta$ in the end, which their divergences, $T$ times $\beta^3$, hide. So run the samplers.
#
# ## The samplers, compared with the truth
#
# The truth for class 1: its mean, its covariance, the *class mass* $\mathbb E[p(y \mid x)]$ (how sure the exact classifier is of
# the points, on average; the blobs overlap, so it is not 1), and the *share* of the points in the right one of its two blobs.

# %%
alone = mixture.given(label)
two_blobs = GaussianMixture(alone.weights, alone.means, alone.covs)


def moments(x, w):
    mean = w @ x
    cov = (w[:, None] * (x - mean)).T @ (x - mean)
    mass = w @ mixture.class_log_prob(x, label).exp()
    return mean, cov, mass, w @ two_blobs.class_log_prob(x, 1).exp()


true = moments(*divergence.mixture_nodes(alone, order=40))
print(f"mean {true[0].numpy().round(3)}, class mass {true[2]:.4f}, share {true[3]:.4f}")
resolution = math.sqrt(float(true[1].trace()) / 20_000)
print(f"20,000 points resolve the mean to {resolution:.3f}")

# %%
def errors_of(kernel, times, count=20_000, seed=0):
    """Errors of a sampler: mean and covariance (norms), class mass and share (signed)."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 2, dtype=torch.float64, generator=generator)
    x = draw(kernel, x, times, generator)
    got = moments(x, torch.full((count,), 1 / count, dtype=torch.float64))
    mean, cov = ((g - e).norm() for g, e in zip(got[:2], true[:2], strict=True))
    return [float(v) for v in (mean, cov, got[2] - true[2], got[3] - true[3])]


choices["the exact step"] = truth
run = {name: errors_of(kernel, time_grid(25)) for name, kernel in choices.items()}
print(f"25 steps{'':19s}mean  covariance  class mass   share")
for name, row in run.items():
    print("{:24s} {:6.3f}      {:6.3f}      {:+.3f}  {:+.3f}".format(name, *row))

# %% tags=["remove-cell"]
assert run["the exact step"][0] < 0.03 and run["exact coefficient, small"][0] < 0.03
cut = {place: 1 - run[f"{place}, small"][0] / run["x_t, t, small"][0] for place in places}
assert 0.25 < cut["mu, s"] < 0.45 and cut["mu, t"] < 0.1
assert run["x_t, t, large"][0] < run["x_t, t, small"][0] / 2
assert run["second order"][1] < 0.05 < run["exact coefficient, large"][1] < run["exact coefficient, small"][1]
assert all(run[f"{place}, small"][2] < -0.04 for place in places) and run["exact coefficient, small"][2] > 0.01
assert run["x_t, s, small"][0] < 1.15 * run["mu, s, small"][0]

# %% [markdown]
# The last line is the exact step: its errors are chance (this seed is two standard errors off). Nothing smaller than that can be told apart here.
#
# Now the debate can be settled. With 25 steps and the small variance, the place of Algorithm 1 and its code, $x_t, t$,
# leaves a large error of the mean. The derivation's place, $\mu, s$, removes about a third of it. The repair, $\mu, t$, removes less
# than a tenth: moving the point does little, moving the noise level does the work ($x_t, s$ is nearly as good as $\mu, s$). The exact
# coefficient at $x_t, t$ removes all that can be resolved. On this mixture at least, **the gradient was taken at the right place, and multiplied by the wrong
# number.**
#
# What is exact is the mean of each step, given $x_t$. That the mean of the *samples* comes out right as well is an observation. Their covariance does
# not: it is the variance that is wrong now, and with the small one the points are too sure of their class (class mass $+0.02$), while at all four places they were
# not sure enough.

# %% tags=["hide-input"]
curves = {
    "$x_t, t$: Algorithm 1, its code": (shift_at(small, "x_t, t"), "guided", "o-"),
    r"$\mu, t$: the repair": (shift_at(small, "mu, t"), "other", "s-"),
    r"$\mu, s$: the derivation": (shift_at(small, "mu, s"), "conditional", "D-"),
    "$x_t, t$, exact coefficient": (exact_coefficient, "guided", "o--"),
    "the exact step": (truth, "truth", "--"),
}
counts = (10, 20, 40, 80, 160)
found = {name: [errors_of(k, time_grid(n))[0] for n in counts] for name, (k, _, _) in curves.items()}
with plotting.style():
    figure, panel = plotting.plt.subplots(figsize=(6, 3.4))
    for name, (_, colour, marks) in curves.items():
        panel.loglog(counts, found[name], marks, color=plotting.COLOURS[colour], markersize=4, label=name)
    panel.set(xlabel="steps", ylabel="error of the mean", xticks=counts, xticklabels=counts)
    panel.minorticks_off()
    panel.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    shown = plotting.show(figure, "07_samplers", alt="Error of the mean of a guided sampler over the number of steps, from 10 to 160, with the small variance. Algorithm 1 and the repair are nearly one line, falling like one over the number of steps. The derivation's line lies somewhat lower. The exact coefficient lies at the level of the exact step, about 0.01, for all numbers of steps.")
shown

# %% [markdown]
# *Error of the mean of 20,000 guided points, small variance. From 20 steps on, the exact coefficient is at the resolution of the
# experiment, where the exact step is.*
#
# ### What it means for the original setting
#
# The reference implementation samples with 250 steps of the linear table, and its networks learn, for each pixel, a variance between the
# small and the large one. So each pixel's shift is somewhere between these rows:

# %%
def grad_table(x, t):
    level = ddpm_table.alpha(t), ddpm_table.sigma(t)
    return mixture.noised(*level).class_gradient(x, label)


original = {}
for variance in ("small", "large"):
    base = kernels.ddpm(free_table, ddpm_table, variance)
    for at, time in (("x", "t"), ("mu", "s")):
        shifted = kernels.shift(base, grad_table, gamma=1.0, at=at, time=time)
        original[variance, at] = row = errors_of(shifted, time_grid(250))
        print(f"{variance}, {at}, {time}: mean {row[0]:.3f}, class mass {row[2]:+.4f}")
tilted_table = guidance.tilt(free_table, grad_table, 1.0, ddpm_table)
exact_250 = errors_of(kernels.ddpm(tilted_table, ddpm_table), time_grid(250))
print(f"exact coefficient: mean {exact_250[0]:.3f}, class mass {exact_250[2]:+.4f}")

# %% tags=["remove-cell"]
assert original["small", "x"][0] < 0.06 and abs(original["small", "x"][2]) < 0.03
assert abs(original["small", "x"][0] - original["small", "mu"][0]) < 0.01
assert exact_250[0] < 0.02

# %% [markdown]
# With 250 steps the whole error is at most a few hundredths of a unit, where the blobs are two to three units apart, and the
# two places differ by less than one hundredth. The author's answer, that the repair made no noticeable difference, is what
# this computation predicts. With the 25 steps above it would have been noticed.
#
# *Limits of this comparison:* a two-dimensional mixture, an exact model, an exact classifier, $\gamma = 1$. Pictures have many
# directions in which, given the rest, almost nothing is left to choose; along such a direction $u$, $u^\top H u \approx -1 / \sigma_t^2$, and the small variance
# is the better one.
#
# ## The whole path
#
# The divergences of the steps add up to that of the path. Let $P$ be the law of the exact path from noise to data, given the
# label, and $Q$ the law of what a kernel walks when it starts where $P$ starts. By the chain rule
#
# $$ \mathrm{KL}(P \,\|\, Q) = \sum_{\text{steps}} \mathbb E_{x_t \sim p_t(\cdot \mid y)}\,
# \mathrm{KL}\big(p(x_s \mid x_t, y) \,\|\, q(x_s \mid x_t)\big), \label{eq-path-kl} $$
#
# and what comes out at the end differs by at most that, since the end point is a function of the path. `divergence.path_kl`
# computes it; by hand, for eight steps:

# %%
grid = time_grid(8, end=0.01)
kernel = shift_at(large, "x_t, t")
by_hand = 0.0
for a, b in zip(grid[:-1], grid[1:], strict=True):
    x, w = divergence.mixture_nodes(noised(a).given(label))
    by_hand += float(w @ divergence.kl(truth(x, a, b), kernel(x, a, b)))
compact = float(divergence.path_kl(mixture, noise, label, kernel, grid))
print(f"{by_hand:.6f} and {compact:.6f} nats")
assert abs(by_hand - compact) < 1e-12

# %% [markdown]
# (The paths end at $t = 0.01$: DDPM's step to $t = 0$ adds no noise and has no density.) Now over the number of steps:

# %%
def path_kl(kernel, steps, order=8):
    grid = time_grid(steps, end=0.01)
    return float(divergence.path_kl(mixture, noise, label, kernel, grid, order))


# %%
numbers = (8, 16, 32, 64, 128, 256)
walkers = {
    "no shift": large,
    "shift, small variance": shift_at(small, "x_t, t"),
    "shift, large variance": shift_at(large, "x_t, t"),
    "second order": choices["second order"],
}
path = {name: [path_kl(k, n) for n in numbers] for name, k in walkers.items()}
slopes = {name: math.log2(v[-1] / v[-2]) for name, v in path.items()}
for name, values in path.items():
    row = " ".join(f"{v:8.2e}" for v in values)
    print(f"{name:22s} {row}   T^{slopes[name]:+.2f}")
assert abs(slopes["shift, large variance"] + 1) < 0.1
assert abs(slopes["second order"] + 2) < 0.15

# %% tags=["hide-input"]
with plotting.style():
    figure, panel = plotting.plt.subplots(figsize=(5.8, 3.6))
    look = {"no shift": ("unconditional", "o-"), "shift, small variance": ("guided", "s--"), "shift, large variance": ("guided", "o-"),
            "second order": ("other", "o-")}
    for name, (colour, marks) in look.items():
        panel.loglog(numbers, path[name], marks, color=plotting.COLOURS[colour], markersize=4)
        drop = 1.15 if name == "no shift" else 0.85 if "small" in name else 1
        panel.text(numbers[-1] * 1.15, path[name][-1] * drop, name, color=plotting.COLOURS[colour], va="center")
    panel.set(xlabel="steps $T$", ylabel="KL of the path [nats]", xticks=numbers, xticklabels=numbers, xlim=(7, 1500))
    panel.minorticks_off()
    shown = plotting.show(figure, "07_path", alt="Divergence of the whole path over the number of steps, 8 to 256, log-log. Without a shift the curve levels off near 0.8 nats. With a shift and the large variance it falls like one over the number of steps, with second order like one over its square. With a shift and the small variance it starts far above and crosses the curve without a shift between 128 and 256 steps.")
shown

# %% [markdown]
# *Divergence of the whole path from the exact one, for paths from $t = 1$ to $t = 0.01$. One power of the step length is
# lost on the way from a step to a path.*
#
# $T$ steps of length $\beta \sim 1 / T$ turn $\beta^2$ into $1 / T$ and $\beta^3$ into $1 / T^2$. The small variance shows what a wrong shape
# costs: at 128 steps it is still worse than no shift with the large variance. Nearly all of that comes from the last steps, where
# $\sigma_s^2 / \sigma_t^2$ falls towards zero and the blobs are still wide:

# %%
grid = time_grid(128, end=0.01)
kernel = walkers["shift, small variance"]
parts = [divergence.path_kl(mixture, noise, label, kernel, g, 8) for g in (grid, grid[grid < 0.1])]
print(f"{float(parts[1] / parts[0]):.0%} of it from t < 0.1")
assert parts[1] > 0.8 * parts[0]

# %% [markdown]
# And the grey curve does not fall to zero at all. It levels off, and its limit has a name. Take the *exact* kernel without
# the label. Forward in time, a path from $p(x \mid y)$ and a path from $p(x)$ are noised alike, so they differ exactly as much as their clean ends do. Walked backwards, $Q$ starts
# from $p_1(x \mid y)$ instead of $p_1(x)$, which takes off what these two differ by.

# %%
def information(t):
    """KL(p_t(x | y) || p_t(x)), what the label says about x_t."""
    at_t = noised(t)
    x, w = divergence.mixture_nodes(at_t.given(label), order=40)
    return float(w @ (at_t.given(label).log_prob(x) - at_t.log_prob(x)))


known = information(0.01) - information(1.0)
print(f"information at the end {known:.4f}, at the start {information(1.0):.0e} nats")
for steps in (8, 64):
    blind = path_kl(ignoring, steps, order=16)
    print(f"path without the label, {steps:2d} steps: {blind:.4f} nats")
    assert abs(blind - known) < 1e-3

# %% [markdown]
# That is the information that this label carries. No number of steps brings it in. A shift does, and what remains, mostly
# shape, falls like $1 / T$.
#
# ## Pitfall: the standard deviation
#
# A reverse step is written `mean + std * noise`. It is tempting to put the gradient into the same bracket,
# `mean + std * (noise + grad)`: a shift by the *standard deviation* times the gradient. In one step it looks like stronger
# guidance. But $T$ shifts of size $1 / \sqrt T$ add up like $\sqrt T$, until the gradient gives out. So this mistake has a signature: it
# gets *worse* with more steps.

# %%
def mistaken(x, t, s):
    step = large(x, t, s)
    return Gaussian(step.mean + step.var.sqrt() * grad(x, t), step.var)


kinds, table = (mistaken, shift_at(large, "x_t, t")), {}
for steps in (25, 100, 400):
    table[steps] = [errors_of(k, time_grid(steps), count=4000)[0] for k in kinds]
    print("{:3d} steps: mean off by {:.2f}; with the variance {:.2f}".format(steps, *table[steps]))
assert table[25][0] < table[100][0] < table[400][0] and table[400][1] < table[25][1]

# %% [markdown]
# When you suspect your own guidance, double the number of steps: a right method gets better until you cannot see its
# error any more, this one gets worse.
#
# The second quick test is to switch the noise off. A shift by the variance dies with the variance, while the distribution you want does not care
# how you sample it. At zero variance the formula of this chapter has nothing to say; chapter 10 takes over there.

# %%
quiet = kernels.ddim(free, noise)
same = shift_at(quiet, "x_t, t")(points, 0.4, 0.3).mean
assert torch.equal(same, quiet(points, 0.4, 0.3).mean)
print("DDIM with a shift is DDIM without it")

# %% [markdown]
# ## Exercises
#
# Type where it says "your turn", run the cell, then run the check below it. The check knows the common mistakes and says where
# to look again.
#
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
# follows for $\sigma_{t|s}$?
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
# `at_s` is a `GaussianMixture`, the distribution at time $s$; `x` are points at time $t$, shape `(N, 2)`, with
# $x_t = \alpha_{t|s}\, x_s + \sigma_{t|s}\, \varepsilon$ and the number `alpha_ts`. Return the covariance of $p(x_s \mid x_t, y)$ at each point,
# shape `(N, 2, 2)`. The mixture's methods `noised(alpha, sigma)`, `given(label)` and `hessian(x)` help; `sigma` is a standard deviation.
#
# <details><summary>Hint</summary>
#
# Equation $\eqref{eq-second-order}$ speaks of the density at time $t$, given the label. `noised` gets you from $s$ to $t$.
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
# ### Exercise 7.4 (hard): the time term
#
# The time term of $\eqref{eq-taylor}$ has a closed form. Both $p_t(x)$ and $p_t(x \mid y)$ obey the Fokker-Planck equation of the
# forward process, $\partial_t p = \frac{r}{2} \big(\nabla \cdot (x\, p) + \Delta p\big)$, where $r$ is the noise rate at time $t$.
# Derive $\partial_t \log p_t(y \mid x)$ and return it, shape `(N,)`. `at_t` is the mixture at time $t$ with its methods `score(x)`, `hessian(x)`,
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
# ### Exercise 7.5 (research): what is left after second order
#
# With the exact mean and covariance, the divergence of one step is $c\, \beta^3 + O(\beta^4)$. The constant depends on the third
# derivatives of $\log p_t(x \mid y)$ at $x_t$ (or of $\log p_s(x \mid y)$, they differ by $O(\beta)$). Return $c$ for the tensor `third`, of
# shape `(d, d, d)`, $d = 1$ or $2$.
#
# <details><summary>Hint</summary>
#
# Begin in one dimension. Formally, the step is $e^{-u^2 / 2 \beta + a u^3 / 6}$, where $a$ is `third`. Which cumulant is the first that a Gaussian
# cannot have, and how large is it in units of the standard deviation? Expand the ratio to the closest Gaussian in Hermite polynomials, and use
# $r - 1 - \log r \approx (r - 1)^2 / 2$ from $\eqref{eq-kl}$. In the plane, products of Hermite polynomials of different coordinates are orthogonal.
#
# </details>

# %% tags=["exercise"]
def third_order_constant(third):
    ### BEGIN SOLUTION
    # One dimension: the third cumulant is a beta^3, over sd^3 it is k = a beta^1.5. The step is its closest Gaussian times
    # r = 1 + k He_3 / 6, and E[(r - 1)^2] / 2 = k^2 3! / 72. In the plane the tensor of He_3 has E[(T : He_3)^2] = 3! |T|^2.
    return third.square().sum() / 12
    ### END SOLUTION


# %%
exercises.check("7.5", third_order_constant)

# %% [markdown]
# ## Remember
#
# 1. Bayes' rule for a step is exact, $\eqref{eq-bayes-step}$. A linear function in the exponent moves a Gaussian by $\Sigma g$,
#    $\eqref{eq-complete-square}$, and that is the mean shift.
# 2. The time term of the expansion is as large as the second-order term in $x$, but it does not depend on $x_s$ and drops out.
# 3. Divergence of one step: order $\beta$ without the shift, $\beta^2$ with it, $\beta^3$ with second order. Over a whole path, one
#    power less.
# 4. The label moves the mean of a step by *exactly* $\sigma_{t|s}^2 / \alpha_{t|s}$ times the gradient at $x_t$, however long the
#    step. The place was never wrong; the coefficient was.
# 5. With few steps, the variance as a coefficient guides too little. Add the gradient to the score instead: at $\gamma = 1$, the
#    mean of each step is then exact.
#
# **Where it comes from.** The shift, the expansion at $\mu$ and Algorithm 1: [Dhariwal & Nichol (2021)](https://arxiv.org/abs/2105.05233),
# section 4.1 (the box writes the gradient at $x_t$, the derivation above it at $\mu$), after [Sohl-Dickstein et al. (2015)](https://arxiv.org/abs/1503.03585). The expansion in $(x, t)$ at $x_t$:
# [Su (2022)](https://spaces.ac.cn/archives/9257). The two variances: [Ho et al. (2020)](https://arxiv.org/abs/2006.11239), section 3.2. Tweedie's formula:
# [Efron (2011)](https://doi.org/10.1198/jasa.2011.tm11181). The code in question: `condition_mean` in
# [gaussian_diffusion.py](https://github.com/openai/guided-diffusion/blob/main/guided_diffusion/gaussian_diffusion.py). The orders and their constants,
# the table and the judgement are computed here.
