# %% [markdown]
# # 06 · Bayes decomposition: what would an exact guided step cost?
#
# You have a diffusion model that knows nothing of classes, and a classifier that judges noisy pictures. Classifier guidance
# begins with one line of Bayes' rule, and then approximates it. Why? The line is exact, the model can be sampled, the
# classifier can be asked. What would it cost to do the step as the formula says?
#
# The short answer: **on average $1 / p(y)$ questions to the classifier, in any dimension, however long the step: cheap for ten equally
# likely classes, hopeless for a rare event. What people do instead, one gradient, is the limit of something that needs no gradient.**
#
# **After this chapter you can**
# * derive the step given a label in two ways, and say what each factor assumes;
# * sample it exactly, and predict the price in questions;
# * say what dimension, step length and the information in the label do to that price;
# * guide with a classifier that has no gradient, and say at which $\gamma$.
#
# **You need** chapter 00, Bayes' rule, and Gaussian densities.
#
# *42 minutes to read, 26 more for Deeper, 30 seconds to run, on a laptop, without a GPU or a network connection.*

# %%
import math
from functools import partial

import torch

from difflesson import divergence, exercises, guidance, kernels, plane, plotting
from difflesson.mixture import GaussianMixture
from difflesson.particles import effective_sample_size
from difflesson.samplers import draw, time_grid
from difflesson.schedule import cosine

torch.set_num_threads(1)

# %% [markdown]
# ## Throw, ask, keep
#
# The laboratory is the mixture of chapter 00: four blobs in the plane, two of class 0, two of class 1. Under noise,
# $x_t = \alpha_t x_0 + \sigma_t \varepsilon$, it stays a mixture, so its classifier $p_t(y \mid x)$ is known at every noise level. We stand at one
# noisy point and want a step back to less noise, *given class 1*.

# %%
mixture, schedule, label = plane.four_blobs(), cosine(), 1
here, t, s = torch.tensor([[-0.4, 0.5]], dtype=torch.float64), 0.5, 0.2


def noised(time):
    return mixture.noised(schedule.alpha(time), schedule.sigma(time))

# %% [markdown]
# Throw: let the model, which does not know the label, propose many cleaner points. Ask the classifier of that noise level about each. Keep a point with the
# probability that it answers.

# %%
generator = torch.Generator().manual_seed(0)
proposals = mixture.reverse(here.expand(20_000, 2), schedule, t, s).sample(generator)
answers = noised(s).class_log_prob(proposals, label).exp()
kept = proposals[torch.rand(20_000, generator=generator).double() < answers]

# %% tags=["hide-input"]
goal = kernels.exact(mixture, schedule, label)(here, t, s)
limits = (-3.6, 3.2, -2.7, 3.1)
with plotting.style():
    figure, axes = plotting.plt.subplots(1, 3, figsize=(8.6, 2.9), sharex=True, sharey=True)
    axes[0].plot(*proposals[:600].T, ".", markersize=2.2, color=plotting.COLOURS["unconditional"])
    axes[0].set_title("throw: 600 proposals")
    shades = axes[1].scatter(*proposals[:600].T, c=answers[:600], s=4, cmap="cividis", vmin=0, vmax=1)
    figure.colorbar(shades, ax=axes, label="$p_s(y \\mid x_s)$, middle", shrink=0.85, pad=0.01)
    axes[1].set_title("ask: how likely class 1?")
    survivors = kept[: int(600 * len(kept) / 20_000)]
    axes[2].plot(*survivors.T, ".", markersize=2.2, color=plotting.COLOURS["conditional"])
    plotting.density(axes[2], lambda u: goal.log_prob(u[:, None])[:, 0], limits)
    axes[2].set_title(f"keep: {len(survivors)} of them")
    for panel in axes:
        panel.plot(*here.T, "x", color=plotting.COLOURS["truth"], markersize=6)
        panel.set(xlabel="$x_1$", xlim=limits[:2], ylim=limits[2:], aspect="equal")
    axes[0].set_ylabel("$x_2$")
    assert len(proposals) == 20_000 and len(survivors) in range(100, 170)
    shown = plotting.show(figure, "06_throw_ask_keep", alt="Three panels around one noisy point, marked by a cross. Left, a grey cloud of proposed cleaner points, most of them above the cross, with tails to the lower left and the lower right. Middle, the same points coloured by the classifier: near 0 above and on the left, near 1 at the lower right. Right, the points that were kept, most of them at the lower right, under dashed contours of the exact step given class 1.")
shown

# %% [markdown]
# *One long step from the cross, $t = 0.5$, to $s = 0.2$. Left, where the model goes without the label. Middle, what the classifier says of each
# point. Right, the points kept; dashed, 50, 90 and 99 % of the exact step given class 1. Throwing and keeping samples that step, with no
# approximation at all.*
#
# **What happens.** The noisy point may have come from many cleaner ones. The model says how plausible each is, the classifier how much
# it looks like class 1. A kept point has passed both tests, so its density is the product of the two, and that is Bayes' rule.
#
# **What it costs.** One in 1 over the kept share. Guess: does a longer step, whose proposals fly apart, keep fewer? Does a shorter one keep nearly all? Look:

# %%
for near in (0.49, 0.4, 0.2, 0.02):
    cloud = mixture.reverse(here.expand(20_000, 2), schedule, t, near).sample(generator)
    says = noised(near).class_log_prob(cloud, label).exp()
    print(f"step from {t} to {near}: kept {says.mean():.4f} +- {says.std() / math.sqrt(20_000):.4f}")
print(f"classifier at the point itself: {noised(t).class_log_prob(here, label).exp()[0]:.4f}")

# %% tags=["remove-cell"]
share = float(noised(t).class_log_prob(here, label).exp()[0])
for near in (0.49, 0.4, 0.2, 0.02):
    cloud = mixture.reverse(here.expand(20_000, 2), schedule, t, near).sample(generator)
    says = noised(near).class_log_prob(cloud, label).exp()
    assert abs(float(says.mean()) - share) < 4 * float(says.std()) / math.sqrt(20_000)

# %% [markdown]
# Neither. The share is the same for every length, up to its standard error: it is what the classifier says of the point where you *stand*. A short step keeps one point in five, too: its proposals are nearly the
# point you stand at, and nearly as doubtful. So the price of exactness is fixed before the step is chosen. The rest of the page proves this,
# averages the price over paths, and looks for something cheaper.
#
# ## Bayes, with a companion
#
# Bayes' rule for the cleaner point is $p(x_s \mid y) = p(x_s)\, p(y \mid x_s) / p(y)$. It stays true if all of it is *conditioned on something else*. Give every factor the companion $x_t$:
#
# $$ p(x_s \mid x_t, y) = \frac{p(x_s \mid x_t)\; p(y \mid x_s, x_t)}{p(y \mid x_t)}. \label{eq-bayes-given-xt} $$
#
# Nothing was assumed: multiply by the denominator, and both sides are $p(x_s, y \mid x_t)$. To see this, take a joint law with nothing convenient in it. A step forward shrinks $x_s$ by $\alpha_{t|s} = \alpha_t / \alpha_s$ and adds noise.
# Let the variance of that noise depend on the class, $v_y$. Then $\log p(x_s, x_t, y)$ is a sum of three logarithms, and $x_t$ is a mixture again:

# %%
# [eq-bayes-given-xt], [eq-label-blind-noise]
def log_joint(at_s, alpha_ts, v, x_s, x_t):
    """log p(x_s, x_t, y), one row for each class y: (classes, N)."""
    rows = []
    for y, var in enumerate(v):
        squares = (x_t - alpha_ts * x_s).square().sum(1)
        added = -squares / (2 * var) - at_s.dim / 2 * math.log(2 * math.pi * var)
        rows.append(at_s.log_prob(x_s) + at_s.class_log_prob(x_s, y) + added)
    return torch.stack(rows)


def after_noise(at_s, alpha_ts, v):
    """The mixture of x_t, if the noise of class y has the variance v[y]."""
    added = torch.tensor([v[y] for y in at_s.labels], dtype=at_s.means.dtype)
    covs = alpha_ts**2 * at_s.covs + added[:, None, None] * torch.eye(at_s.dim)
    return GaussianMixture(at_s.weights, alpha_ts * at_s.means, covs, at_s.labels)


# %% [markdown]
# All conditionals come out of these two functions. Class 1 gets three times the noise of class 0:

# %%
alpha_ts, sigma_ts = schedule.transition(t, s)
beta = float(sigma_ts**2)
x_s, x_t = torch.randn(2, 5, 2, dtype=torch.float64, generator=generator)
at_s, v = noised(s), (beta, 3 * beta)
joint, at_t = log_joint(at_s, alpha_ts, v, x_s, x_t), after_noise(at_s, alpha_ts, v)
free = joint.logsumexp(0) - at_t.log_prob(x_t)  # log p(x_s | x_t)
both = joint.log_softmax(0)[label]  # log p(y | x_s, x_t)
alone = at_t.class_log_prob(x_t, label)  # log p(y | x_t)
step = joint[label] - at_t.given(label).log_prob(x_t) - math.log(0.4)  # log p(x_s | x_t, y)
torch.testing.assert_close(step, free + both - alone)

# %% [markdown]
# ## What the noisier point adds
#
# The factor $p(y \mid x_s, x_t)$ asks for a classifier of *pairs*, the cleaner and the noisier point together. Turn it round by Bayes' rule, now with the companion $x_s$:
#
# $$ p(y \mid x_s, x_t) = \frac{p(x_t \mid x_s, y)\; p(y \mid x_s)}{p(x_t \mid x_s)} = p(y \mid x_s). \label{eq-label-blind-noise} $$
#
# The second equality is the one assumption of this chapter: $p(x_t \mid x_s, y) = p(x_t \mid x_s)$, the noise does not look at the label. If you know the picture, a noisier copy tells you nothing more about its class. With equal
# variances it holds to rounding; with ours it does not:

# %%
plain = at_s.class_log_prob(x_s, label).exp()
for name, variances in {"label-blind": (beta, beta), "three times": (beta, 3 * beta)}.items():
    pairs = log_joint(at_s, alpha_ts, variances, x_s, x_t).softmax(0)[label]
    print(f"{name:12s} pair against single: largest difference {(pairs - plain).abs().max():.0e}")

# %% tags=["remove-cell"]
blind = log_joint(at_s, alpha_ts, (beta, beta), x_s, x_t)
torch.testing.assert_close(blind.softmax(0)[label], plain)
log_noise = torch.stack([joint[y] - at_s.log_prob(x_s) - at_s.class_log_prob(x_s, y) for y in (0, 1)])  # log p(x_t | x_s, y)
log_mixed = joint.logsumexp(0) - at_s.log_prob(x_s)  # log p(x_t | x_s)
torch.testing.assert_close(joint.softmax(0)[label], plain * (log_noise[label] - log_mixed).exp())
assert float((joint.softmax(0)[label] - plain).abs().max()) > 0.1

# %% [markdown]
# With the wrong factor, such noise costs a few hundredths of a nat in every step, however short (Deeper). From here on the noise is blind. Put the second equation into the first, and write the ratio as an exponential:
#
# $$ p(x_s \mid x_t, y) = p(x_s \mid x_t)\; e^{\,\log p(y \mid x_s) - \log p(y \mid x_t)}. \label{eq-bayes-exponential} $$
#
# In words: *the model's step, tilted by what the classifier learns in that step.* Where $x_s$ looks more like class 1 than $x_t$ did, the step gets more likely. The number $p(y \mid x_t)$ does not depend on where you go; it normalises. Both are classifiers *for their own noise level*, $p_s(y \mid x_s)$ and $p_t(y \mid x_t)$.

# %%
# [eq-bayes-exponential]
def tilted_step(mixture, schedule, x_s, x_t, t, s, label):
    """log p(x_s | x_t, y), from the model's step and two classifiers: (N,)."""
    at_s, at_t = (mixture.noised(schedule.alpha(u), schedule.sigma(u)) for u in (s, t))
    learned = at_s.class_log_prob(x_s, label) - at_t.class_log_prob(x_t, label)
    return mixture.reverse(x_t, schedule, t, s).log_prob(x_s) + learned


# %%
ignoring, truth = kernels.exact(mixture, schedule), kernels.exact(mixture, schedule, label)
left_side = truth(x_t, t, s).log_prob(x_s)
torch.testing.assert_close(tilted_step(mixture, schedule, x_s, x_t, t, s, label), left_side)

# %% [markdown]
# The left side knows no classifier: it is the step of a mixture of the two blobs of class 1 alone.
#
# ## All of it in closed form
#
# How does one get the step of a mixture? Take one component $k$: before the step $x_s$ is $\mathcal N(\alpha_s m_k, V_s)$, and
# $x_t = \alpha_{t|s} x_s + \sigma_{t|s} \varepsilon$ with $\sigma_{t|s}^2 = 1 - \alpha_{t|s}^2$. So the pair $(x_s, x_t)$ is Gaussian, with covariance $\alpha_{t|s} V_s$ between the two and $V_t = \alpha_{t|s}^2 V_s + \sigma_{t|s}^2 I$ for $x_t$. Conditioning a Gaussian moves the mean by the covariance, times the inverse variance of what was
# seen, times the surprise; and it takes $\alpha_{t|s}^2 V_s V_t^{-1} V_s$ off the variance, which leaves $V_s V_t^{-1} (V_t - \alpha_{t|s}^2 V_s) = \sigma_{t|s}^2 V_s V_t^{-1}$. Which component it is, $x_t$ says by Bayes' rule:
#
# $$ p(x_s \mid x_t) = \sum_k \Big[ p(k \mid x_t)\; \mathcal N\big(x_s;\; \alpha_s m_k + \alpha_{t|s} V_s V_t^{-1} (x_t - \alpha_t m_k),\;
# \sigma_{t|s}^2 V_s V_t^{-1}\big) \Big], \qquad V_s = \alpha_s^2 C_k + \sigma_s^2 I, \quad V_t = \alpha_t^2 C_k + \sigma_t^2 I. \label{eq-exact-reverse} $$
#
# A mixture again, for each $x_t$. Given the label, sum over the components of that class only.

# %%
# [eq-exact-reverse]
def reverse_log_prob(mixture, schedule, x_s, x_t, t, s):
    """log p(x_s | x_t) of a mixture, written out: (N,)."""
    a, b = schedule.transition(t, s)
    at_s, at_t = (mixture.noised(schedule.alpha(u), schedule.sigma(u)) for u in (s, t))
    rows = []
    for k in range(len(mixture.weights)):
        which = GaussianMixture([1.0], at_t.means[k : k + 1], at_t.covs[k : k + 1])
        gain = at_s.covs[k] @ torch.linalg.inv(at_t.covs[k])
        mean = at_s.means[k] + a * (x_t - at_t.means[k]) @ gain.T
        normal = torch.distributions.MultivariateNormal(mean, b**2 * gain)
        log_share = mixture.weights[k].log() + which.log_prob(x_t) - at_t.log_prob(x_t)
        rows.append(log_share + normal.log_prob(x_s))
    return torch.stack(rows).logsumexp(0)


# %%
for data, step in ((mixture, ignoring), (mixture.given(label), truth)):
    by_hand = reverse_log_prob(data, schedule, x_s, x_t, t, s)
    torch.testing.assert_close(step(x_t, t, s).log_prob(x_s), by_hand)
joint = log_joint(noised(s), alpha_ts, (beta, beta), x_s, x_t).logsumexp(0)
torch.testing.assert_close(ignoring(x_t, t, s).log_prob(x_s), joint - noised(t).log_prob(x_t))

# %% [markdown]
# By hand, by the package, and from the joint density: the same. Here are all four densities of the identity, on a line, with three classes in five hills:

# %% tags=["hide-input"]
hills = GaussianMixture(
    [0.20, 0.15, 0.25, 0.25, 0.15],
    torch.tensor([[-2.2], [-0.7], [0.3], [1.2], [2.6]], dtype=torch.float64),
    [[[0.20]], [[0.06]], [[0.10]], [[0.05]], [[0.20]]],
    labels=[0, 1, 2, 1, 0],
)
grid = torch.linspace(-2.6, 3.4, 400, dtype=torch.float64)[:, None]
spot = torch.tensor([[0.5]], dtype=torch.float64)
before = hills.noised(schedule.alpha(s), schedule.sigma(s))
after = hills.noised(schedule.alpha(t), schedule.sigma(t))
grey = kernels.exact(hills, schedule)(spot, t, s).log_prob(grid[:, None])[:, 0].exp()
black = kernels.exact(hills, schedule, 1)(spot, t, s).log_prob(grid[:, None])[:, 0].exp()
curve, value = before.class_log_prob(grid, 1).exp(), float(after.class_log_prob(spot, 1).exp()[0])
with plotting.style():
    figure, (low, high) = plotting.plt.subplots(2, 1, figsize=(6.4, 4.2), sharex=True)
    high.plot(grid, grey, color=plotting.COLOURS["unconditional"])
    high.plot(grid, black, color=plotting.COLOURS["truth"], linestyle="dashed")
    low.plot(grid, curve, color=plotting.COLOURS["other"])
    low.axhline(value, color=plotting.COLOURS["conditional"], linewidth=1)
    low.text(-2.55, value + 0.04, "$p(y \\mid x_t)$", color=plotting.COLOURS["conditional"])
    low.text(1.75, 0.8, "$p(y \\mid x_s)$", color=plotting.COLOURS["other"])
    high.text(-2.5, 0.12, "$p(x_s \\mid x_t)$", color=plotting.COLOURS["unconditional"])
    high.text(1.75, 0.55, "$p(x_s \\mid x_t, y)$", color=plotting.COLOURS["truth"])
    for panel in (low, high):
        panel.fill_between(grid[:, 0], 0, 1, where=curve > value, color="0.93", transform=panel.get_xaxis_transform(), zorder=0)
        panel.axvline(float(spot), color="0.6", linewidth=0.8, linestyle="dotted")
    low.set(ylabel="classifiers", ylim=(0, 1))
    high.set(ylabel="densities of the step", xlabel="$x_s$ (dotted: $x_t$)", ylim=(0, None))
    assert bool(((black > grey) == (curve > value)).all())
    shown = plotting.show(figure, "06_four_densities", alt="Two panels over x_s. Above, the classifier's curve with two humps, and its level at x_t, a horizontal line. Below, the model's step, a wide grey curve, and the step given the label, dashed, with two peaks. The dashed curve lies above the grey one exactly in the shaded ranges, where the classifier's curve lies above its level.")
shown

# %% [markdown]
# *Above, $p(y \mid x_s)$ and the number $p(y \mid x_t)$; below, the step without and with the label ($y = 1$, two of five hills). Shaded: where the curve is above
# the level. There, and only there, the label makes a point more likely.*
#
# The step given the label has two peaks. No Gaussian has. What it costs to replace it by one: chapter 07.
#
# ## What exactness costs
#
# Throw and keep: a proposal is kept with probability $p(y \mid x_s)$. Averaged over the proposals, this is the integral of the numerator in Bayes' rule. The left side integrates to one, so
#
# $$ \mathbb E_{x_s \sim p(\cdot \mid x_t)}\big[p(y \mid x_s)\big] = p(y \mid x_t). \label{eq-rejection-rate} $$
#
# The share that is kept is the normaliser. That is why no step length appeared. By quadrature, without sampling error:

# %%
# [eq-rejection-rate]
def share_kept(step, classifier, label, order=40):
    """E[p(y | x_s)] over each of the N mixtures of a step: (N,)."""
    nodes, weights = divergence.step_nodes(step, order)  # (M, N, d), (M, N)
    chance = classifier.class_log_prob(nodes.flatten(0, 1), label).exp()
    return (weights * chance.reshape(weights.shape)).sum(0)


# %%
for near in (0.49, 0.4, 0.2, 0.02):
    total = share_kept(ignoring(x_t, t, near), noised(near), label) / noised(t).class_log_prob(x_t, label).exp()
    print(f"step from {t} to {near}: the ratio integrates to 1 up to {(total - 1).abs().max():.0e}")
    assert float((total - 1).abs().max()) < 1e-5

# %% [markdown]
# At $x_t$, then, you ask $1 / p(y \mid x_t)$ times on average. If all earlier steps were exact, $x_t$ is a draw from $p_t(x \mid y) = p_t(x)\, p_t(y \mid x) / p(y)$. Average over it: $p_t(y \mid x)$ cancels, and $p_t(x)$ integrates to one.
#
# $$ \mathbb E_{x_t \sim p_t(\cdot \mid y)}\Big[\frac{1}{p_t(y \mid x_t)}\Big] = \frac{1}{p(y)}. \label{eq-mean-cost} $$
#
# **An exact step costs $1 / p(y)$ questions on average: at every noise level, in every dimension, for steps of any length.** Class 1 has probability 0.4, so it is 2.5. For one of a thousand equally likely classes it is a thousand.
#
# Compare with the crudest method, which draws finished samples and keeps one in $1 / p(y)$. Same factor! (It *is* the same method, in one step from $t = 1$ to 0.) The difference is what a throw costs. Proposals of one step share one call of the
# network: $T$ steps take $T$ network calls and $T / p(y)$ questions. Filtering takes $T / p(y)$ network calls and $1 / p(y)$ questions.
#
# But look how the mean comes about:

# %%
# [eq-mean-cost]
def mean_questions(noisy, label):
    """E[1 / p_t(y | x_t)] over p_t(x | y), by quadrature; noisy: the mixture at time t."""
    nodes, weights = divergence.mixture_nodes(noisy.given(label), order=40)
    return float(weights @ (-noisy.class_log_prob(nodes, label)).exp())


# %%
times = torch.linspace(0.02, 0.98, 25, dtype=torch.float64)
price = {"mean": [], "drawn": [], "median": [], "99 %": []}
for time in times:
    noisy = noised(time)
    price["mean"].append(mean_questions(noisy, label))
    cost = (-noisy.class_log_prob(noisy.given(label).sample(20_000, generator)[0], label)).exp()
    for name, value in {"drawn": cost.mean(), "median": cost.median(), "99 %": cost.quantile(0.99)}.items():
        price[name].append(float(value))
print(f"exact mean between {min(price['mean']):.4f} and {max(price['mean']):.4f} questions at 25 noise levels")

# %% tags=["hide-input"]
assert max(abs(value - 2.5) for value in price["mean"]) < 1e-3 and float(mixture.class_weights()[label]) == 0.4
assert min(price["99 %"][:-7]) > 10 and price["99 %"][7] > 20 and abs(float(times[7]) - 0.3) < 0.01
with plotting.style():
    figure, panel = plotting.plt.subplots(figsize=(6.2, 3.2))
    for name, colour, mark in (("mean", "truth", "-"), ("median", "conditional", "-"), ("99 %", "guided", "-"), ("drawn", "truth", ".")):
        panel.semilogy(times, price[name], mark, color=plotting.COLOURS[colour])
    panel.text(0.99, 2.5, " exact mean: $1/p(y)$", va="center", color=plotting.COLOURS["truth"])
    panel.text(0.1, 0.78, "median", color=plotting.COLOURS["conditional"])
    panel.text(0.5, 21, "one point in a hundred costs more", color=plotting.COLOURS["guided"])
    panel.set(xlabel="noise level $t$ (0 is data)", ylabel="questions per step", xlim=(0, 1), ylim=(0.7, 50), yticks=[1, 2.5, 10, 40], yticklabels=["1", "2.5", "10", "40"])
    panel.minorticks_off()
    shown = plotting.show(figure, "06_price", alt="Questions per step over the noise level, on a logarithmic axis. The exact mean is a flat line at 2.5. The median falls from 2.5 at pure noise to 1 near the data. The 99th percentile rises from 2.5 to about 20 at t = 0.3 to 0.5 and stays above 10 below t = 0.7. Dots, averages of 20,000 draws, lie on the flat line at high noise and scatter around it near the data.")
shown

# %% [markdown]
# *Questions per exact step, for class 1. The mean (line: quadrature, dots: averages of 20,000 draws) is the same at all noise levels; the median falls to 1. The mean is kept up by ever fewer, ever
# more expensive points.*
#
# Early, nothing is known, and every point costs 2.5. Late, the class of most points is settled, and one question does; but a few stand where the classifier says "hardly". A loop that waits for the last
# point of a batch will seem to hang. And near the data an average of draws says little: the points that matter are too rare.
#
# ## Dimension is not the price
#
# *"Rejection dies in high dimension."* Test it: two classes in four blobs with random full covariances, in 1 to 16 dimensions, class 1 with probability 0.4 in each. Beside it, a label that says more: *one bit for each coordinate*,
# all of which must be right. There each coordinate is a mixture of its own, and its bit has probability 1/4. (Turn the axes, and those covariances are full, too; no number changes.)

# %% tags=["hide-input"]
def two_classes(dim):
    random = torch.Generator().manual_seed(dim)
    root = torch.randn(4, dim, dim, generator=random, dtype=torch.float64)
    means = torch.randn(4, dim, generator=random, dtype=torch.float64) * 1.5 / math.sqrt(dim)
    covs = 0.3 / dim * root @ root.mT + 0.2 * torch.eye(dim)
    return GaussianMixture([0.3, 0.3, 0.25, 0.15], means, covs, labels=[0, 0, 1, 1])


places = torch.tensor([[-1.6], [0.2], [1.3]], dtype=torch.float64)
bit = GaussianMixture([0.30, 0.25, 0.45], places, [[[0.3]], [[0.15]], [[0.4]]], labels=[0, 1, 0])

# %%
def reject(kernel, classifier, x, t, s, generator, most=10_000):
    """Throw until every point of x (N, d) has kept one: the points, and how often each was thrown."""
    kept, count, waiting = x.clone(), torch.zeros(len(x)), torch.arange(len(x))
    while len(waiting) and count.max() < most:
        thrown = kernel(x[waiting], t, s).sample(generator)
        count[waiting] += 1
        passed = torch.rand(len(waiting), generator=generator).double() < classifier(thrown).exp()
        kept[waiting[passed]] = thrown[passed]
        waiting = waiting[~passed]
    assert len(waiting) == 0, f"{len(waiting)} points still wait"
    return kept, count


# %%
asked = {}
for dim in (1, 2, 4, 8, 16):
    data = two_classes(dim)
    early, late = (data.noised(schedule.alpha(u), schedule.sigma(u)) for u in (0.7, 0.5))
    begin = early.given(1).sample(4000, generator)[0]
    classifier = partial(late.class_log_prob, label=1)
    count = reject(kernels.exact(data, schedule), classifier, begin, 0.7, 0.5, generator)[1]
    asked[dim] = float(count.mean()), float(count.std()) / math.sqrt(4000)
    print("d = {:2d}: two classes {:.2f} +- {:.2f} questions,".format(dim, *asked[dim]), end=" ")
    print(f"a bit a coordinate {1 / float(bit.class_weights()[1]) ** dim:,.0f}")
assert all(abs(mean - 2.5) < 4 * error for mean, error in asked.values()) and float(data.class_weights()[1]) == 0.4

# %% [markdown]
# Left, measured: sixteen dimensions cost what one does, two and a half questions. Right, by $\eqref{eq-mean-cost}$: each coordinate multiplies the price by four. At high noise, where nothing is known yet, *every* point costs that much. **What kills
# rejection is not the dimension of $x$ but how improbable the label is**: at $p(y) = 2^{-b}$ it costs $2^b$.
#
# ## Weigh instead of throwing away
#
# In short steps all proposals are nearly equally good. So keep all $N$, with *weights* $w = p(y \mid x_s)$, divided by their sum (*self-normalised importance sampling*). Unequal weights waste points, too: $N$ weighted points are worth
# about $(\sum w)^2 / \sum w^2$ equal ones, the *effective sample size*, for many points $N\, (\mathbb E[w])^2 / \mathbb E[w^2]$. In a short step the proposals are a bell of variance $\beta = \sigma_{t|s}^2$, and $\log w$ is a slope, $g_t(x_t) = \nabla \log p_t(y \mid x_t)$. The mean of $e^{g \cdot x}$ over a bell of variance $\beta$ around 0
# is $e^{\beta |g|^2 / 2}$, the mean of its square $e^{2 \beta |g|^2}$. So
#
# $$ \frac{(\mathbb E[w])^2}{\mathbb E[w^2]} = e^{-\beta\, |g_t(x_t)|^2} + O(\beta^2). \label{eq-ess-slope} $$
#
# This is a price that short steps lower. And $|g|^2$ is a sum over coordinates: for a bit a coordinate it grows like $d$. Measured with 500 proposals from each of 40 points, and predicted:

# %% tags=["hide-input"]
def coordinatewise(x, level, label):
    """log p(y | x) for a bit a coordinate: (..., d) -> (...)."""
    return level.class_log_prob(x.reshape(-1, 1), label).reshape(x.shape).sum(-1)


def earlier(length, t=0.5):
    """The time s to which a step from t has the length beta."""
    left = schedule.integrated_beta(t) + math.log1p(-length)
    return schedule.time(-torch.log(torch.expm1(left)))


lengths, worth = (0.001, 0.01, 0.1, 0.3), {}
early = bit.noised(schedule.alpha(0.5), schedule.sigma(0.5))
for dim in (1, 2, 4, 8, 16):
    begin = early.given(1).sample(40 * dim, generator)[0]  # (40 d, 1): the coordinates one below the other
    squares = early.class_gradient(begin, 1).reshape(40, dim).square().sum(1)
    for length in lengths:
        late = bit.noised(schedule.alpha(earlier(length)), schedule.sigma(earlier(length)))
        step = kernels.exact(bit, schedule)(begin, 0.5, earlier(length))
        thrown = torch.stack([step.sample(generator) for _ in range(500)]).reshape(500, 40, dim)
        share = effective_sample_size(coordinatewise(thrown, late, 1)) / 500
        worth[dim, length] = float(share.mean()), float((-length * squares).exp().mean())
print("effective share, measured (predicted)   " + "   ".join(f"beta = {length}" for length in lengths))
for dim in (1, 2, 4, 8, 16):
    row = "   ".join("{:.3f} ({:.3f})".format(*worth[dim, length]) for length in lengths)
    print(f"d = {dim:2d}   {row}")

# %% tags=["remove-cell"]
assert all(abs(worth[d, b][0] - worth[d, b][1]) < 0.02 for d in (1, 2, 4, 8, 16) for b in (0.001, 0.01))
assert all(worth[d, 0.3][0] < worth[d, 0.3][1] for d in (1, 2, 4, 8, 16)) and worth[1, 0.3][0] > 0.6 and worth[16, 0.3][0] < 0.05

# %% [markdown]
# Read a column downwards: at a fixed step length the share falls exponentially with the number of bits, in long steps faster than predicted. Read a row to the left: a step ten times
# shorter has a tenth of the exponent. So information kills the *long* weighted step, but sixteen times as many steps bring back what sixteen bits have cost. (How many steps a label needs: Deeper.)
#
# ## One of $N$ is guidance
#
# Then how many proposals does a short step need? Take the cheapest use of weights: throw $N$ points, and walk on with *one of them*, drawn with probability proportional to its weight. One of one is no guidance, one of infinitely many the exact step. In between? In a short step the weights are
# $1 + g \cdot (x_i - \bar x)$, up to a common factor. The mean of the chosen point is then $\bar x + \frac1N \sum_i (x_i - \bar x)\,(x_i - \bar x)^\top g$: the sample covariance times $g$. And a sample covariance with $\frac1N$ in front is too small, on average, by the
# famous factor $1 - \frac1N$. The true one is $\beta I$. So
#
# $$ \mathbb E\big[x_s^{(N)} \mid x_t\big] - \mathbb E[x_s \mid x_t] = \Big(1 - \frac1N\Big)\, \beta\, g_t(x_t) + O(\beta^2). \label{eq-one-of-n} $$
#
# **Choosing one of $N$ proposals by weight is guidance with $\gamma = 1 - 1/N$**, in short steps. Two proposals are half of the guidance, four are three quarters. No gradient was computed. Chapter 07 starts at the other end: the whole $\beta g$ from one gradient, $N = \infty$.

# %%
# [eq-one-of-n]
def one_of(count, kernel, log_weight, x, t, s, generator):
    """One of `count` proposals for each point of x (N, d), drawn by weight; log_weight: (M, d) -> (M,)."""
    step = kernel(x, t, s)
    thrown = torch.stack([step.sample(generator) for _ in range(count)])  # (count, N, d)
    log_w = log_weight(thrown.flatten(0, 1)).reshape(count, len(x))
    choice = torch.multinomial(log_w.softmax(0).T, 1, generator=generator)[:, 0]
    return thrown[choice, torch.arange(len(x))]


def walk(count, kernel, classifiers, x, times, generator):
    for t, s in zip(times[:-1], times[1:], strict=True):
        x = one_of(count, kernel, classifiers(s), x, t, s, generator)
    return x


# %% [markdown]
# Walk all the way, from noise to data, in 50 steps of $N$ proposals. Beside it, ordinary guidance at $\gamma = 0$ to 1, with gradients, in 200 steps of DDPM.

# %%
def classifiers(time):
    return partial(noised(time).class_log_prob, label=label)


def seen(x):
    """Mean of x_1, class mass E[p(y | x)], and their standard errors."""
    mass = mixture.class_log_prob(x, label).exp()
    return [float(v) for v in (x[:, 0].mean(), mass.mean(), x[:, 0].std() / len(x) ** 0.5, mass.std() / len(x) ** 0.5)]


start = torch.randn(4000, 2, dtype=torch.float64, generator=generator)
chosen = {n: seen(walk(n, ignoring, classifiers, start, time_grid(50), generator)) for n in (1, 2, 4, 8)}
pair, guided = mixture.pair(schedule, label), {}
for gamma in (0.0, 0.25, 0.5, 0.75, 0.875, 1.0):
    kernel = kernels.ddpm(guidance.classifier_free(pair, gamma), schedule)
    guided[gamma] = seen(draw(kernel, start, time_grid(200), generator))

# %% tags=["hide-input"]
for count, (mean, mass, mean_error, mass_error) in chosen.items():
    other = guided[1 - 1 / count]
    print(f"one of {count}: mean of x_1 {mean:.2f} +- {mean_error:.2f}, class mass {mass:.3f} +- {mass_error:.3f};"
          f"  gamma = {1 - 1 / count:.3f}: {other[0]:.2f}, {other[1]:.3f}")
    assert abs(mean - other[0]) < 4 * math.hypot(mean_error, other[2]) + 0.02
    assert abs(mass - other[1]) < 4 * math.hypot(mass_error, other[3]) + 0.015
with plotting.style():
    figure, axes = plotting.plt.subplots(1, 2, figsize=(7.6, 3.0))
    for panel, part, name in zip(axes, (0, 1), ("mean of $x_1$", "class mass"), strict=True):
        panel.plot(guided.keys(), [row[part] for row in guided.values()], color=plotting.COLOURS["guided"])
        for count, row in chosen.items():
            panel.errorbar(1 - 1 / count, row[part], 2 * row[part + 2], fmt="o", color=plotting.COLOURS["conditional"], markersize=5)
            panel.annotate(f"$N = {count}$", (1 - 1 / count, row[part]), (7, -12), textcoords="offset points", color=plotting.COLOURS["conditional"], fontsize=9)
        panel.set(xlabel=r"$\gamma$, or $1 - 1/N$", ylabel=name, xlim=(-0.05, 1.1))
    axes[0].text(0.08, 0.55, "guidance by\ngradients", color=plotting.COLOURS["guided"])
    shown = plotting.show(figure, "06_one_of_n", alt="Two panels, mean of the first coordinate and class mass over the guidance scale from 0 to 1. Orange curves for guidance by gradients rise from left to right. Four blue dots, one of N proposals for N = 1, 2, 4 and 8, drawn at 1 - 1/N, lie on the curves.")
shown

# %% [markdown]
# *Orange: guidance with gradients at six scales. Blue: no gradient, one of $N$ proposals in each of 50 steps, at $1 - 1/N$, with two standard errors. Two proposals do half of the guidance.*
#
# Methods without gradients, as [Li et al. (2024)](https://arxiv.org/abs/2408.08252)'s, walk like this. Now you know what their $N$ is worth, and where the returns diminish. You also see why everybody linearises: eight proposals are eight evaluations for seven eighths of what one backward pass gets whole. Nor would exact weights help a
# network much. Its step is only a Gaussian, and that error stays: in Deeper, for one long step, exact filtering of a Gaussian step leaves 0.070 nats, one gradient 0.077, and neither of them 0.295.
#
# ## Pitfall: the clean classifier
#
# Most people have a classifier of *clean* pictures, $p_0(y \mid x)$. In $\eqref{eq-bayes-exponential}$ stands that of noise level $s$. Put the clean one in its place, and throw and keep in 10 steps:

# %% tags=["hide-input"]
within = GaussianMixture(mixture.given(label).weights, mixture.given(label).means, mixture.given(label).covs)
walks = {}
for name, level in {"noise-aware": noised, "clean": lambda time: mixture}.items():
    x, asked_in_all, random = start[:2000], 0.0, torch.Generator().manual_seed(3)
    for a, b in zip(time_grid(10)[:-1], time_grid(10)[1:], strict=True):
        x, count = reject(ignoring, partial(level(b).class_log_prob, label=label), x, a, b, random)
        asked_in_all += float(count.sum()) / 20_000
    large = within.class_log_prob(x, 0).exp()  # the larger blob's share, 0.625 in truth
    walks[name] = asked_in_all, seen(x)[1], seen(x)[0], float(large.mean())
    texts = "questions a step {:.2f}, class mass {:.3f}, mean of x_1 {:.2f}, larger blob {:.3f}".format(*walks[name])
    print(f"{name:11s} {texts}; standard errors {seen(x)[3]:.3f}, {seen(x)[2]:.2f}, {float(large.std()) / 2000**0.5:.3f}")
nodes, weights = divergence.mixture_nodes(mixture.given(label), order=40)
mass = float(weights @ mixture.class_log_prob(nodes, label).exp())
print(f"exact: class mass {mass:.3f}, mean of x_1 {float(weights @ nodes[:, 0]):.2f}, larger blob {float(within.weights[0])}")

# %% tags=["remove-cell"]
good, bad = walks["noise-aware"], walks["clean"]
assert abs(good[1] - 0.922) < 0.02 and abs(good[2] - 1.15) < 0.1 and abs(good[3] - 0.625) < 0.04
assert bad[0] < 1.6 and bad[1] > 0.935 and bad[3] > 0.7 and 1.15 - bad[2] > 6 * seen(x)[2]

# %% [markdown]
# The mistake asks less, and its points are *surer* of class 1. Both measures praise it. But the larger blob has taken from the smaller one, and the mean is off by more than six standard errors. Why: weights by $p_s(y \mid x_s)$ fit together from step to step, since each is the average of the next, $\eqref{eq-rejection-rate}$. Those of the clean classifier do not. That also finds the mistake in your
# code: the share kept must not depend on how long the step is.

# %%
for name, level in {"noise-aware": noised, "clean": lambda time: mixture}.items():
    shares = [float(share_kept(ignoring(here, t, near), level(near), label)) for near in (0.49, 0.3, 0.1)]
    print(f"{name:11s} kept in steps from {t} to 0.49, 0.3, 0.1: " + ", ".join(f"{share:.3f}" for share in shares))
    assert (max(shares) - min(shares) < 1e-4) == (name == "noise-aware")

# %% [markdown]
# What a clean classifier can still be good for is the subject of chapter 12.
#
# ## In practice
#
# | if you have | do | because |
# |---|---|---|
# | a noise-aware classifier with a gradient | guide with the gradient (chapter 07) | it is the limit $N = \infty$ of choosing one of $N$, and exact weights on a Gaussian step are hardly better |
# | a noise-aware verifier without a gradient | throw $N$ in each short step, keep one by weight | guidance with $\gamma = 1 - 1/N$: two proposals are half |
# | only a verifier of finished samples, and $p(y)$ not small | filter finished samples | exact; $1/p(y)$ samples, each with all its network calls |
# | the need to be exact, and a label of few bits | throw and keep in every step, and cap the loop | $1/p(y)$ questions a step on average, but most of it for rare points |
# | noise that goes with the class | give the classifier both points, or make the noise blind | shorter steps do not mend it |
# | a doubt about your classifier | compare the shares kept in a short and a long step | they must be equal |
#
# *Limits:* the model is exact here and the classifier is, too. A network's step is a Gaussian; filtering it keeps the network's error (Deeper).
#
# ## Exercises
#
# Type where it says "your turn", run the cell, then the check below it. The last one stands in Deeper.

# %% [markdown]
# ### Exercise 6.1 (easy): a better coin
#
# You know a bound: $p(y \mid x_s) \le M$ for all $x_s$, with $M < 1$. Then you may keep a proposal with the larger probability $p(y \mid x_s) / M$, and the kept points have the same density. Given $p(y \mid x_t)$ at one point, $p(y)$ and $M$, return two numbers: how many
# proposals you need on average at that point, and on average over exact paths.
#
# <details><summary>Hint</summary>
#
# What is the probability to keep one, averaged over the proposals? For the second, go through the derivation of $\eqref{eq-mean-cost}$ again.
#
# </details>

# %% tags=["exercise"]
def proposals_needed(chance_at_x_t, chance_of_label, bound):
    ### BEGIN SOLUTION
    return bound / chance_at_x_t, bound / chance_of_label
    ### END SOLUTION


# %%
exercises.check("6.1", proposals_needed)

# %% [markdown]
# ### Exercise 6.2 (medium): the step, from one table
#
# The states are finitely many now. `start` is $p(x_s, y)$, shape `(n, classes)`; `move` is $p(x_t \mid x_s)$, shape `(n, m)`: the noise, blind to the label. Return $p(x_s \mid x_t, y)$ as a tensor `(n, m, classes)`.
#
# <details><summary>Hint</summary>
#
# You can follow $\eqref{eq-bayes-exponential}$, or write the joint probability and divide by a sum. Over which index?
#
# </details>

# %% tags=["exercise"]
def guided_step(start, move):
    ### BEGIN SOLUTION
    joint = start[:, None, :] * move[:, :, None]  # p(x_s, x_t, y)
    return joint / joint.sum(0)
    ### END SOLUTION


# %%
exercises.check("6.2", guided_step)

# %% [markdown]
# ### Exercise 6.3 (medium): the classifier of pairs
#
# The noise looks at the label: given $x_s$ and $y$, the noisier point is $\mathcal N(\alpha_{t|s}\, x_s, v_y I)$. Return $p(y \mid x_s, x_t)$ for every class. `chances` is $p(y \mid x_s)$, shape `(N, classes)`; `x_s`, `x_t` have shape `(N, d)`, `v` holds the variances, shape `(classes,)`.
#
# <details><summary>Hint</summary>
#
# The first equality of $\eqref{eq-label-blind-noise}$. The denominator is the same for all classes. The normaliser of a Gaussian in $d$ dimensions depends on its variance.
#
# </details>

# %% tags=["exercise"]
def pair_classifier(chances, x_s, x_t, alpha_ts, v):
    ### BEGIN SOLUTION
    squares = (x_t - alpha_ts * x_s).square().sum(1, keepdim=True)  # (N, 1)
    log = chances.log() - squares / (2 * v) - x_s.shape[1] / 2 * v.log()
    return log.softmax(1)
    ### END SOLUTION


# %%
exercises.check("6.3", pair_classifier)

# %% [markdown]
# ### Exercise 6.4 (hard): how many proposals, how many steps
#
# A path of $T$ equally informative short steps: in each, $\beta\, |g|^2 = E / T$ with the same number $E$ for the path. You can afford `budget` evaluations of the classifier in all, $N$ in each of $T = \text{budget} / N$ steps. You choose one of $N$, and want
# the guidance scale $1 - 1/N$ as large as possible, but the effective share $e^{-E/T}$ of the proposals not below `share`. Return the largest whole $N$ (0 if even one does not do).
#
# <details><summary>Hint</summary>
#
# Write the condition on $T$, then put in $T = \text{budget} / N$. Round in the safe direction.
#
# </details>

# %% tags=["exercise"]
def most_proposals(path_price, budget, share):
    ### BEGIN SOLUTION
    return float(math.floor(-math.log(share) * budget / path_price))
    ### END SOLUTION


# %%
exercises.check("6.4", most_proposals)

# %% [markdown]
# ## Remember
#
# 1. The step given a label is the model's step times $p(y \mid x_s) / p(y \mid x_t)$: exact for steps of any length, if the noise does not look at the label and the classifier is that of noise level $s$.
# 2. Propose, and keep with probability $p(y \mid x_s)$: with exact ingredients that samples it exactly. The share kept is $p(y \mid x_t)$ for every step length; over exact paths the mean number of questions a step is $1/p(y)$, most of it for rare points.
# 3. Dimension alone does not raise that price, the information in the label does. Weights instead are a matter of step length: in short steps the effective share is $e^{-\beta |g|^2}$.
# 4. One of $N$ proposals, chosen by weight, is guidance with $\gamma = 1 - 1/N$ in short steps. One gradient is $N = \infty$.
# 5. A clean classifier in place of the noisy one asks less, looks surer, and is wrong. Noise that looks at the label is an error that shorter steps do not remove.
#
# **Where it comes from.** Conditioning on $x_t$: [Su (2022)](https://spaces.ac.cn/archives/9257). The step as a product, and its linearisation: [Sohl-Dickstein et al. (2015)](https://arxiv.org/abs/1503.03585), [Dhariwal & Nichol (2021)](https://arxiv.org/abs/2105.05233).
# The effective sample size: [Kong et al. (1994)](https://doi.org/10.1080/01621459.1994.10476469). That importance sampling needs a number of points exponential in an information: [Chatterjee & Diaconis (2018)](https://arxiv.org/abs/1511.01437).
#
# ## Deeper: the chain from the joint probability
#
# *The same identity without "Bayes with a companion", one factor at a time: for those who want to see where each assumption enters.*
#
# Write the step as a quotient of joint probabilities, and split both by the product rule: on top the label last, below the label last as well. $p(x_t)$ cancels:
#
# $$ p(x_s \mid x_t, y) = \frac{p(x_s, x_t, y)}{p(x_t, y)} = \frac{p(y \mid x_s, x_t)\; p(x_s \mid x_t)\; p(x_t)}{p(y \mid x_t)\; p(x_t)}. \label{eq-joint-chain} $$
#
# The first factor on top is a quotient again, with the *noise* last: $p(x_t \mid x_s, y)\, p(y \mid x_s)\, p(x_s)$ over $p(x_t \mid x_s)\, p(x_s)$. Here $p(x_s)$ cancels, and blindness makes the rest $p(y \mid x_s)$. The cell goes through the five forms of the step, first with blind noise, then not:

# %%
# [eq-joint-chain]
def chain(joint, log_x_t, label, aware):
    """log p(x_s | x_t, y) in five steps. joint: log p(x_s, x_t, y), (classes, N); log_x_t: log p(x_t, y), likewise;
    aware: log p(y | x_s), (classes, N)."""
    x_s_x_t, x_t = joint.logsumexp(0), log_x_t.logsumexp(0)
    one = joint[label] - log_x_t[label]  # 1. quotient of joint probabilities
    pair, step = joint[label] - x_s_x_t, x_s_x_t - x_t
    two = pair + step + x_t - (log_x_t[label] - x_t) - x_t  # 2. product rule, the label last
    three = pair + step - (log_x_t[label] - x_t)  # 3. p(x_t) cancels: Bayes with a companion
    noise = (joint - aware)[label]  # log p(x_t | x_s, y) p(x_s)
    four = noise + aware[label] - x_s_x_t + step - (log_x_t[label] - x_t)  # 4. the noise last
    five = aware[label] + step - (log_x_t[label] - x_t)  # 5. blind noise
    return one, two, three, four, five


for name, variances in {"blind": (beta, beta), "three times": (beta, 3 * beta)}.items():
    there = after_noise(at_s, alpha_ts, variances)
    log_x_t = torch.stack([there.log_prob(x_t) + there.class_log_prob(x_t, y) for y in (0, 1)])
    aware = torch.stack([at_s.class_log_prob(x_s, y) for y in (0, 1)])
    forms = chain(log_joint(at_s, alpha_ts, variances, x_s, x_t), log_x_t, label, aware)
    print(f"{name:12s} from form to form:", ", ".join(f"{(b - a).abs().max():.0e}" for a, b in zip(forms[:-1], forms[1:], strict=True)))

# %% tags=["remove-cell"]
sizes = [float((b - a).abs().max()) for a, b in zip(forms[:-1], forms[1:], strict=True)]
assert max(sizes[:3]) < 1e-12 and sizes[3] > 0.1
forms = chain(log_joint(at_s, alpha_ts, (beta, beta), x_s, x_t), torch.stack([noised(t).log_prob(x_t) + noised(t).class_log_prob(x_t, y) for y in (0, 1)]), label, aware)
for form in forms:
    torch.testing.assert_close(form, truth(x_t, t, s).log_prob(x_s))

# %% [markdown]
# Up to the fourth form nothing was assumed, and nothing changes. The fifth is right with blind noise only. (The chain has a shorter way: the class is a data set of its own, and blind noise makes it a diffusion of its own, with the step $p(x_t \mid x_s)\, p(x_s \mid y) / p(x_t \mid y)$. That is how `mixture.given(label).reverse` computes the truth.)
#
# **As scores.** Take the gradient of $\log$ of $\eqref{eq-bayes-exponential}$ in $x_s$; the normaliser goes:
#
# $$ \nabla \log p(x_s \mid x_t, y) = \nabla \log p(x_s \mid x_t) + \nabla \log p(y \mid x_s). \label{eq-score-of-a-step} $$
#
# No approximation: whoever can evaluate the right side can *run* an exact step, by Langevin dynamics in $x_s$. The gradient is that of noise level $s$, at a point that is not known beforehand. For $t \to 1$ the companion $x_t$ says nothing, and the formula becomes that of the marginals, $\nabla \log p_s(x \mid y) = \nabla \log p_s(x) + \nabla \log p_s(y \mid x)$,
# with which [chapter 11](11_classifier_free_guidance.ipynb#two-guesses-are-two-scores) begins.

# %%
# [eq-score-of-a-step]
def step_score(step, x_s):
    """The gradient of log p(x_s | x_t) in x_s, by automatic differentiation: (N, d)."""
    leaf = x_s.clone().requires_grad_()
    return torch.autograd.grad(step.log_prob(leaf).sum(), leaf)[0]


def guided_step_score(step, at_s, x_s, label):
    """The same given the label, from the step without it and the classifier of noise level s."""
    return step_score(step, x_s) + at_s.class_gradient(x_s, label)


# %%
by_sum = guided_step_score(ignoring(x_t, t, s), noised(s), x_s, label)
torch.testing.assert_close(by_sum, step_score(truth(x_t, t, s), x_s))

# %% [markdown]
# ## Deeper: noise that looks at the label
#
# *How wrong a step gets, in nats: for those whose noise level, mask or schedule goes with the class.*
#
# If the noise is chosen by something that goes with the class, say the size of the picture, $p(y \mid x_s)$ is the wrong factor, and $\eqref{eq-bayes-given-xt}$ needs the classifier of pairs. How wrong? Class 1 gets $r$ times the noise of class 0; compare the step by $p(y \mid x_s)$, normalised, with the
# true one: in nats, and in total variation (the largest difference that any event's probability can have).

# %%
def price_of_peeking(at_s, alpha_ts, v, x_t, label):
    """Between the true step and the one by p(y | x_s): KL in nats and total variation, means over x_t (N, 2)."""
    axis, rows = torch.linspace(-5, 5, 81, dtype=torch.float64), []
    for point in x_t:
        x_s = (point + torch.cartesian_prod(axis, axis) * max(v) ** 0.5) / alpha_ts
        joint = log_joint(at_s, alpha_ts, v, x_s, point[None])
        right = joint[label].log_softmax(0)
        wrong = (joint.logsumexp(0) + at_s.class_log_prob(x_s, label)).log_softmax(0)
        kl = (right.exp() * (right - wrong)).sum()
        rows.append(torch.stack([kl, (right.exp() - wrong.exp()).abs().sum() / 2]))
    return torch.stack(rows).mean(0).tolist()


# %% tags=["hide-input"]
peeking = {}
for near in (0.49, 0.4, 0.2):
    a, b = schedule.transition(t, near)
    for ratio in (1.0, 1.1, 1.5, 3.0):
        v = float(b**2), ratio * float(b**2)
        begin = after_noise(noised(near), a, v).given(label).sample(40, generator)[0]
        peeking[near, ratio] = price_of_peeking(noised(near), a, v, begin, label)
    row = ", ".join("r = {}: {:.4f} nats, TV {:.3f}".format(r, *peeking[near, r]) for r in (1.0, 1.1, 1.5, 3.0))
    print(f"beta = {float(b**2):.2f}  {row}")

# %% tags=["remove-cell"]
assert all(abs(v) < 1e-12 for near in (0.49, 0.4, 0.2) for v in peeking[near, 1.0])
assert all(peeking[0.49, r][0] > peeking[0.4, r][0] > peeking[0.2, r][0] for r in (1.1, 1.5, 3.0))
assert peeking[0.49, 1.1][0] < 0.002 and peeking[0.49, 1.1][1] < 0.02 and 0.05 < peeking[0.49, 3.0][0] < 0.1 and 0.08 < peeking[0.49, 3.0][1] < 0.14

# %% [markdown]
# Ten percent more noise costs a thousandth of a nat a step, three times the noise 0.03 to 0.07 nats. And *shorter steps do not help*: the error of a step does not shrink with it, so over many short steps it adds up. The size of $x_t - \alpha_{t|s} x_s$, compared with $\sqrt\beta$, speaks of the class, however small $\beta$ is. The errors of a Gaussian
# step go away with short steps; this one does not.
#
# ## Deeper: the price in nats
#
# *How many steps a label needs, and why the median falls while the mean stays: for those who plan a budget.*
#
# Let $I_t = \mathrm{KL}\big(p_t(x \mid y) \,\|\, p_t(x)\big)$ be what the label says about $x_t$, in nats. Since $p_t(x \mid y) / p_t(x) = p_t(y \mid x) / p(y)$,
#
# $$ \mathbb E_{x_t \sim p_t(\cdot \mid y)}\Big[\log \frac{1}{p_t(y \mid x_t)}\Big] = \log \frac{1}{p(y)} - I_t. \label{eq-typical-cost} $$
#
# So the *typical* price, the exponential of the mean logarithm, is $e^{-I_t} / p(y)$. At pure noise it is $1/p(y)$; as the path reveals the class, $I_t$ grows, and the price falls. It ends at 1 if the clean point settles its class. Here it does not quite:

# %%
# [eq-typical-cost], [eq-path-information]
def information(noisy, label):
    """KL(p_t(x | y) || p_t(x)) in nats; noisy: the mixture at time t."""
    nodes, weights = divergence.mixture_nodes(noisy.given(label), order=40)
    return float(weights @ (noisy.given(label).log_prob(nodes) - noisy.log_prob(nodes)))


def average(function, noisy, label):
    """E[function(x_t)] over p_t(x | y)."""
    nodes, weights = divergence.mixture_nodes(noisy.given(label), order=40)
    return float(weights @ function(nodes))


# %%
for time in (0.99, 0.5, 0.02):
    known = information(noised(time), label)
    typical = math.exp(average(lambda x, time=time: -noised(time).class_log_prob(x, label), noised(time), label))
    print(f"t = {time}: I = {known:.3f} nats, typical price {typical:.2f}")
    assert abs(typical - math.exp(-known) / 0.4) < 1e-9

# %% [markdown]
# What does a step add? By $\eqref{eq-bayes-exponential}$ its divergence from the model's step is $\mathbb E[\log p(y \mid x_s) - \log p(y \mid x_t)]$ over exact paths, and by the last equation that is $I_s - I_t$, exactly. And in a short step it is $\beta |g|^2 / 2$
# ([chapter 07](07_mean_shift.ipynb#how-large-is-what-is-left)): two bells of variance $\beta$, $\beta g$ apart. So
#
# $$ \beta\; \mathbb E_{x_t \sim p_t(\cdot \mid y)}\big[|g_t(x_t)|^2\big] = 2\,(I_s - I_t) + O(\beta^2). \label{eq-path-information} $$

# %%
for near in (0.49, 0.499, 0.4999):
    length = float(schedule.transition(t, near)[1] ** 2)
    slope = length * average(lambda x: noised(t).class_gradient(x, label).square().sum(1), noised(t), label)
    gained = 2 * (information(noised(near), label) - information(noised(t), label))
    print(f"beta = {length:.5f}: beta E|g|^2 = {slope:.6f}, 2 (I_s - I_t) = {gained:.6f}, ratio {slope / gained:.4f}")
assert abs(slope / gained - 1) < 0.001

# %% [markdown]
# The exponents of $\eqref{eq-ess-slope}$ add up over the path to $2 I$, twice the information in the label, *however many steps you make and whatever the dimension*. With $T$ equally informative steps each exponent is $2 I / T$, so half of the points stay effective if $T \ge 2 I / \log 2$: about three steps a nat. One of a thousand classes is at most 6.9 nats, so
# 20 well-placed steps would do. (On average: where the class is decided, more of $I$ falls into a step.)

# %% tags=["remove-cell"]
assert round(math.log(1000), 1) == 6.9 and round(2 * math.log(1000) / math.log(2)) == 20 and round(2 / math.log(2)) == 3

# %% [markdown]
# ## Deeper: a floor under the effective share
#
# *Why weighing never needs more points than throwing away: for those who choose between the two.*
#
# With $\mathbb E[w] = p(y \mid x_t)$ from $\eqref{eq-rejection-rate}$, the effective share is
#
# $$ \frac{(\mathbb E[w])^2}{\mathbb E[w^2]} = p(y \mid x_t)\, \frac{\mathbb E[w]}{\mathbb E[w^2]}. \label{eq-ess-floor} $$
#
# Weights are probabilities, $w \le 1$, so $w^2 \le w$, and the last factor is at least 1. It is 1 for a verifier that says yes or no: then weighing *is* throwing away. So the share is at least $p(y \mid x_t)$. (The left side is also $e^{-D}$, with $D$ the logarithm of the mean of $p(x_s \mid x_t, y) / p(x_s \mid x_t)$ under the step given the label: a divergence of Rényi's. That of chapter 07 has the logarithm inside the mean.) 

# %%
# [eq-ess-floor]
def effective_share(weights, w):
    """(E[w])^2 / E[w^2], with the weights of a quadrature (M, N), for w (M, N): (N,)."""
    return (weights * w).sum(0) ** 2 / (weights * w**2).sum(0)


# %%
for near in (0.49, 0.3, 0.02):
    nodes, weights = divergence.step_nodes(ignoring(here, t, near), order=40)
    w = noised(near).class_log_prob(nodes[:, 0], label).exp()[:, None]
    mean, second = (float((weights * w**power).sum()) for power in (1, 2))
    floor = float(noised(t).class_log_prob(here, label).exp())
    share = float(effective_share(weights, w))
    print(f"from {t} to {near}: effective share {share:.4f} = {floor:.4f} * {mean / second:.3f}")
    assert abs(share - floor * mean / second) < 1e-5 and share > floor

# %% [markdown]
# Even a step to the data keeps more than the floor. In sixteen dimensions, for a long step from 40 points each, with 2,000 draws:

# %% tags=["hide-input"]
wide, floors = two_classes(16), {}
for name, data, shape in (("two classes", wide, (40, 16)), ("a bit a coordinate", bit, (640, 1))):
    early, late = (data.noised(schedule.alpha(u), schedule.sigma(u)) for u in (0.5, 0.1))
    begin = early.given(1).sample(shape[0], generator)[0]
    step = data.reverse(begin, schedule, 0.5, 0.1)
    thrown = torch.stack([step.sample(generator) for _ in range(2000)])
    chance = late.class_log_prob(thrown.flatten(0, 1), 1).reshape(2000, 40, -1).sum(2)
    floor = early.class_log_prob(begin, 1).reshape(40, -1).sum(1).exp().mean()
    floors[name] = float(effective_sample_size(chance).mean()) / 2000, float(floor)
    print("{:18s} effective share {:.4f}, at least {:.1e}".format(name, *floors[name]))
assert floors["two classes"][0] > floors["two classes"][1] > 0.2 and floors["a bit a coordinate"][0] < 0.005

# %% [markdown]
# Two classes keep a good share of the points even in a long step; sixteen bits keep one or two of 2,000, whatever you do.
#
# ## Deeper: when the step is a network's
#
# *What exact weights are worth if the proposal is only a Gaussian: for those who have a network.*
#
# A network proposes from $q(x_s) = \mathcal N(\mu, \beta I)$, not from $p(x_s \mid x_t)$. Throw and keep gives $q_y(x_s) = q(x_s)\, p(y \mid x_s) / q(y)$, where $q(y)$ is the share kept. Compare the joint laws of $(x_s, y)$, once $p(x_s \mid x_t)\, p(y \mid x_s)$, once $q(x_s)\, p(y \mid x_s)$. The ratio is that of the steps, for the classifier cancels: so their
# divergence is that of the steps. Splitting it the other way, the label first (the chain rule of the divergence), gives
#
# $$ \sum_y \Big[ p(y \mid x_t)\; \mathrm{KL}\big(p(x_s \mid x_t, y) \,\|\, q_y\big) \Big] = \mathrm{KL}\big(p(x_s \mid x_t) \,\|\, q\big) - \mathrm{KL}\big(p(y \mid x_t) \,\|\, q(y)\big). \label{eq-inherited-error} $$
#
# Averaged over the labels, filtering inherits the error of the model's step, less a little. How does that compare with no weights at all, but a shift by the gradient? For class 1, from $t = 0.5$, mean over exact points:

# %%
# [eq-inherited-error]
def filtered_kl(p, q, classifier, order=30):
    """KL(p || q_y) for each point: p an exact step given y, q a Gaussian step, classifier: (M, d) -> log p(y | x_s)."""
    z, weights = divergence.hermite(order, q.mean.shape[1])
    spots = q.mean + q.var.sqrt() * z[:, None]  # (M, N, d)
    log_kept = (weights.log()[:, None] + classifier(spots.flatten(0, 1)).reshape(spots.shape[:2])).logsumexp(0)
    spots, weights = divergence.step_nodes(p)
    log_q = q.log_prob(spots) + classifier(spots.flatten(0, 1)).reshape(spots.shape[:2]) - log_kept
    return (weights * (p.log_prob(spots) - log_q)).sum(0), log_kept


# %%
def gradient(x, time):
    return noised(time).class_gradient(x, label)


nodes, weights = divergence.mixture_nodes(noised(t).given(label), order=6)
network, inherited = kernels.ddpm(mixture.denoiser(schedule), schedule, "large"), {}
for near in (0.49, 0.45, 0.3):
    p, q = truth(nodes, t, near), network(nodes, t, near)
    filtered = filtered_kl(p, q, partial(noised(near).class_log_prob, label=label))[0]
    shifted = divergence.kl(p, kernels.shift(network, gradient, 1.0)(nodes, t, near))
    model = divergence.kl(ignoring(nodes, t, near), q)
    inherited[near] = [float(weights @ each) for each in (model, filtered, shifted, divergence.kl(p, q))]
    texts = "the model's own step {:.5f}; given class 1: filtered {:.5f}, shifted {:.5f}, neither {:.4f}".format(*inherited[near])
    print(f"beta = {float(schedule.transition(t, near)[1] ** 2):.2f}, nats: {texts}")

# %% tags=["remove-cell"]
p_of = [kernels.exact(mixture, schedule, y)(x_t, t, 0.3) for y in (0, 1)]
q = network(x_t, t, 0.3)
parts = [filtered_kl(p_of[y], q, partial(noised(0.3).class_log_prob, label=y)) for y in (0, 1)]
chances = torch.stack([noised(t).class_log_prob(x_t, y) for y in (0, 1)]).exp()
left_side = sum(chances[y] * parts[y][0] for y in (0, 1))
right_side = divergence.kl(ignoring(x_t, t, 0.3), q) - sum(chances[y] * (chances[y].log() - parts[y][1]) for y in (0, 1))
torch.testing.assert_close(left_side, right_side, atol=1e-3, rtol=0)
assert all(0.9 < filtered / shifted < 1 and model < filtered < 1.05 * model for model, filtered, shifted, _ in inherited.values())
assert all(neither > 3 * shifted for _, _, shifted, neither in inherited.values())

# %% [markdown]
# Nearly the whole error is the model's, at every length. One gradient leaves at most a tenth more than the most careful filter. **Exact weights are worth their price only on top of an exact step.**
#
# ## Deeper: one of $N$, in nats
#
# *What is missing at $N$ proposals: for those who would rather have a divergence than a scale.*
#
# One of two proposals, on the line. The density of the chosen point is the sum over who is chosen, $q_2(x) = 2\, p(x) \int p(x')\, \frac{w(x)}{w(x) + w(x')}\, dx'$. With the mixture of five hills:

# %%
spots = torch.tensor([[-0.4], [0.5], [1.6]], dtype=torch.float64)
told, untold = kernels.exact(hills, schedule, 1), kernels.exact(hills, schedule)
for near in (0.49, 0.499):
    step, level = untold(spots, t, near), hills.noised(schedule.alpha(near), schedule.sigma(near))
    z, shares = divergence.step_nodes(step, order=40)  # (M, 3, 1), (M, 3)
    w = level.class_log_prob(z.reshape(-1, 1), 1).exp().reshape(shares.shape)
    q_2 = 2 * (shares * w[:, None] / (w[:, None] + w)).sum(1)  # q_2 / p at the nodes, (M, 3)
    moved = (shares * q_2 * z[..., 0]).sum(0) - step.mean[:, 0]
    full = told(spots, t, near).mean[:, 0] - step.mean[:, 0]
    print(f"beta = {float(schedule.transition(t, near)[1] ** 2):.4f}: of the exact shift, one of two makes", (moved / full).numpy().round(4))

# %% tags=["remove-cell"]
assert float((moved / full - 0.5).abs().max()) < 0.01

# %% [markdown]
# One half, at all three points, without random numbers.

# %% [markdown]
# ### Exercise 6.5 (research): the nats of one of $N$
#
# In a short step the model proposes from a bell of covariance $\beta I$, and the classifier's logarithm is the slope $g$, shape `(d,)`. The law of one of $N$ proposals differs from the exact step by $c\, \beta + O(\beta^2)$ nats, $\mathrm{KL}(\text{exact} \,\|\, \text{one of } N)$. Return $c$. (Then multiply by the number of steps, with
# $\eqref{eq-path-information}$: what does a whole path cost, and what does doubling $N$ save?)
#
# <details><summary>Hint</summary>
#
# To leading order only the mean is wrong: by $\eqref{eq-one-of-n}$ a part of $\beta g$ is missing. Two bells of variance $\beta$ whose means differ by $\delta$ are $|\delta|^2 / 2 \beta$ apart.
#
# </details>

# %% tags=["exercise"]
def nats_per_length(g, count):
    ### BEGIN SOLUTION
    return g.square().sum() / (2 * count**2)
    ### END SOLUTION


# %%
exercises.check("6.5", nats_per_length)
