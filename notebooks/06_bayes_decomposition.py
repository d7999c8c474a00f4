# %% [markdown]
# # 06 · Bayes decomposition: what would an exact guided step cost?
#
# You have a diffusion model that knows nothing of classes, and a classifier that judges noisy pictures. Classifier guidance
# begins with one line of Bayes' rule, and then approximates it. Why? The line is exact, the model can be sampled, the
# classifier can be asked. What would it cost to do the step as the formula says?
#
# The short answer: **propose with the model's exact step and filter, and you pay $1 / p(y)$ questions to the classifier a step, on average: in any dimension, however
# long the step. If short steps will do (shorter ones for a larger scale), two questions a step are enough for guidance, without a gradient.**
#
# **After this chapter you can**
# * derive the step given a label, and say where an assumption enters;
# * sample it exactly, and predict the price in questions;
# * say what dimension, step length and a rare label do to that price;
# * guide without gradients, in short steps.
#
# **You need** chapters 00 and 01 (noise levels, mixtures of blobs), Bayes' rule, and Gaussian densities.
#
# *28 minutes to read, 29 more for Deeper, 30 seconds to run, on a laptop, without a GPU or a network connection.*

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
# probability that the classifier answers.

# %%
generator = torch.Generator().manual_seed(0)
proposals = mixture.reverse(here.expand(20_000, 2), schedule, t, s).sample(generator)
answers = noised(s).class_log_prob(proposals, label).exp()
kept = torch.rand(20_000, generator=generator).double() < answers

# %% [markdown]
# The same with steps of six lengths:

# %% tags=["hide-input"]
shares = {}
for near in (0.49, 0.4, 0.3, 0.2, 0.1, 0.02):
    cloud = mixture.reverse(here.expand(20_000, 2), schedule, t, near).sample(generator)
    says = noised(near).class_log_prob(cloud, label).exp()
    shares[near] = float(says.mean()), float(says.std()) / math.sqrt(20_000)
print(f"kept in steps from {t} to " + ", ".join("{}: {:.3f} +- {:.3f}".format(near, *shares[near]) for near in (0.49, 0.2, 0.02)))
print(f"the classifier at the point itself: {noised(t).class_log_prob(here, label).exp()[0]:.4f}")

# %% tags=["hide-input"]
goal, standing = kernels.exact(mixture, schedule, label)(here, t, s), float(noised(t).class_log_prob(here, label).exp()[0])
limits, shown_few = (-3.6, 3.2, -2.7, 3.1), proposals[:600]
with plotting.style():
    figure, axes = plotting.plt.subplots(1, 4, figsize=(8, 2.5), width_ratios=(1, 1, 1, 1.05))
    axes[0].plot(*shown_few.T, ".", markersize=2.2, color=plotting.COLOURS["unconditional"])
    axes[0].set_title("throw:\n600 proposals")
    axes[1].scatter(*shown_few.T, c=answers[:600], s=4, cmap="cividis", vmin=0, vmax=1)
    axes[1].set_title("ask: class 1?\n(yellow: yes)")
    survivors = shown_few[kept[:600]]
    axes[2].plot(*survivors.T, ".", markersize=2.2, color=plotting.COLOURS["conditional"])
    plotting.density(axes[2], lambda u: goal.log_prob(u[:, None])[:, 0], limits)
    axes[2].set_title(f"keep:\n{len(survivors)} of them")
    for panel in axes[:3]:
        panel.plot(*here.T, "x", color=plotting.COLOURS["truth"], markersize=6)
        panel.set(xlabel="$x_1$", xlim=limits[:2], ylim=limits[2:], aspect="equal")
    axes[0].set_ylabel("$x_2$")
    means, errors = zip(*shares.values(), strict=True)
    axes[3].errorbar([t - near for near in shares], means, [2 * e for e in errors], fmt="o", markersize=4, color=plotting.COLOURS["conditional"])
    axes[3].axhline(standing, color=plotting.COLOURS["truth"], linewidth=0.9, linestyle="dashed")
    axes[3].text(0.04, standing - 0.09, "classifier\nat the cross")
    axes[3].set(title="share kept", xlabel="length, $t - s$", ylim=(0, 0.32), xlim=(0, 0.5), box_aspect=0.85)
    assert 100 < len(survivors) < 170 and all(abs(m - standing) < 2 * e for m, e in shares.values())
    shown = plotting.show(figure, "06_throw_ask_keep", alt="Three panels around one noisy point, marked by a cross, and a graph. First, a grey cloud of proposed cleaner points, most of them above the cross, with tails to the lower left and the lower right. Second, the same points coloured by the classifier: near 0 above and on the left, near 1 at the lower right. Third, the points that were kept, most of them at the lower right, under dashed contours of the exact step given class 1. Fourth, the share kept over the length of the step: six dots on a horizontal line.")
shown

# %% [markdown]
# *One long step from the cross, $t = 0.5$, to $s = 0.2$: the model's proposals; what the classifier says of each; the points kept, with 50, 90 and 99 % of the exact step given class 1 (dashed). Right, the share kept in steps of six lengths, with two standard errors: always what the classifier says of the cross.*
#
# **What happens.** The noisy point may have come from many cleaner ones. The model says how plausible each is, the classifier how much
# it looks like class 1. A kept point has passed both tests, so its density is proportional to the product of the two: Bayes' rule, with one assumption about the noise (below).
#
# **What it costs.** On average you throw 1 / (share kept) times for each point that you keep. You might guess that a long step keeps few of its proposals, and a short one nearly all. The right panel says otherwise:
# the share is the same for every length, within two standard errors, and it is what the classifier says of the point where you *stand*. In a short step the proposals are nearly that point, and nearly as doubtful.
#
# ## Bayes, with a companion
#
# Bayes' rule for the cleaner point is $p(x_s \mid y) = p(x_s)\, p(y \mid x_s) / p(y)$. It stays true if all of it is *conditioned on something else*. Give every factor the companion $x_t$:
#
# $$ p(x_s \mid x_t, y) = \frac{p(x_s \mid x_t)\; p(y \mid x_s, x_t)}{p(y \mid x_t)}. \label{eq-bayes-given-xt} $$
#
# Nothing was assumed: multiply by the denominator, and both sides are $p(x_s, y \mid x_t)$. (A step forward shrinks $x_s$ by $\alpha_{t|s} = \alpha_t / \alpha_s$ and adds noise of variance $\sigma_{t|s}^2 = 1 - \alpha_{t|s}^2$ ([chapter 01](01_noising.ipynb)). The folded cells test the equation with noise that depends on the class: class 1 gets three times as much as class 0.)

# %% tags=["hide-input"]
# [eq-bayes-given-xt]
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


# %% tags=["hide-input"]
alpha_ts, sigma_ts = schedule.transition(t, s)
beta, at_s = float(sigma_ts**2), noised(s)
v = beta, 3 * beta
axis = torch.linspace(-7, 7, 281, dtype=torch.float64)
mesh, area = torch.cartesian_prod(axis, axis), (axis[1] - axis[0]) ** 2
joint, at_t = log_joint(at_s, alpha_ts, v, mesh, here), after_noise(at_s, alpha_ts, v)
left_side = joint[label].softmax(0) / area  # p(x_s | x_t, y)
free = (joint.logsumexp(0) - at_t.log_prob(here)).exp()  # p(x_s | x_t)
both = joint.softmax(0)[label]  # p(y | x_s, x_t)
alone = at_t.class_log_prob(here, label).exp()  # p(y | x_t)
torch.testing.assert_close(free * both / alone, left_side, atol=1e-9, rtol=0)

# %% [markdown]
# ## What the noisier point adds
#
# The factor $p(y \mid x_s, x_t)$ asks for a classifier of *pairs*, the cleaner and the noisier point together. Turn it round by Bayes' rule, now with the companion $x_s$:
#
# $$ p(y \mid x_s, x_t) = \frac{p(x_t \mid x_s, y)\; p(y \mid x_s)}{p(x_t \mid x_s)} = p(y \mid x_s). \label{eq-label-blind-noise} $$
#
# The second equality is the one assumption of this chapter: $p(x_t \mid x_s, y) = p(x_t \mid x_s)$, the noise does not look at the label. If you know the picture, a noisier copy tells you nothing more about its class. With equal
# variances it holds to rounding; with three times the noise for class 1 it does not:

# %% tags=["hide-input"]
# [eq-label-blind-noise]
def pair_classifier(joint):
    """p(y | x_s, x_t) from log p(x_s, x_t, y), one row for each class: (classes, N)."""
    return joint.softmax(0)


# %% tags=["hide-input"]
x_s, x_t = torch.randn(2, 5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
plain = at_s.class_log_prob(x_s, label).exp()
for name, variances in {"label-blind": (beta, beta), "three times": (beta, 3 * beta)}.items():
    pairs = pair_classifier(log_joint(at_s, alpha_ts, variances, x_s, x_t))[label]
    print(f"{name:12s} pair against single: largest difference {(pairs - plain).abs().max():.0e}")

# %% tags=["remove-cell"]
blind, joint = (log_joint(at_s, alpha_ts, (beta, ratio * beta), x_s, x_t) for ratio in (1, 3))
torch.testing.assert_close(pair_classifier(blind)[label], plain)
log_noise = torch.stack([joint[y] - at_s.log_prob(x_s) - at_s.class_log_prob(x_s, y) for y in (0, 1)])  # log p(x_t | x_s, y)
log_mixed = joint.logsumexp(0) - at_s.log_prob(x_s)  # log p(x_t | x_s)
torch.testing.assert_close(pair_classifier(joint)[label], plain * (log_noise[label] - log_mixed).exp())
assert float((pair_classifier(joint)[label] - plain).abs().max()) > 0.1

# %% [markdown]
# (How wrong a step gets then: [Deeper](#deeper-noise-that-looks-at-the-label).) From here on the noise is blind to the label. Put the second equation into the first: the step given the label is the model's step, times $p(y \mid x_s) / p(y \mid x_t)$. Both are classifiers *for their own noise level*, $p_s(y \mid x_s)$ and $p_t(y \mid x_t)$.
#
# ## What exactness costs
#
# Throw and keep: a proposal is kept with probability $p(y \mid x_s)$. Averaged over the proposals, this is the integral of $p(x_s \mid x_t)\, p(y \mid x_s)$. Divided by $p(y \mid x_t)$, that product is the step given the label, which integrates to one, so
#
# $$ \mathbb E_{x_s \sim p(\cdot \mid x_t)}\big[p(y \mid x_s)\big] = p(y \mid x_t). \label{eq-rejection-rate} $$
#
# The share that is kept is the normaliser. So at $x_t$ you ask $1 / p(y \mid x_t)$ times on average. If all earlier steps were exact, $x_t$ is a draw from $p_t(x \mid y) = p_t(x)\, p_t(y \mid x) / p(y)$. Average over it: $p_t(y \mid x)$, which noise keeps above zero, cancels, and $p_t(x)$ integrates to one.
#
# $$ \mathbb E_{x_t \sim p_t(\cdot \mid y)}\Big[\frac{1}{p_t(y \mid x_t)}\Big] = \frac{1}{p(y)}. \label{eq-mean-cost} $$
#
# **A step by throwing and keeping costs $1 / p(y)$ questions on average: at every noise level, in every dimension, for steps of any length.** Class 1 has probability 0.4, so it is 2.5. For one of a thousand equally likely classes it is a thousand.
#
# First the share, by quadrature:

# %%
# [eq-rejection-rate]
def share_kept(step, classifier, label, order=40):
    """E[p(y | x_s)] over each of the N mixtures of a step: (N,)."""
    nodes, weights = divergence.step_nodes(step, order)  # (M, N, d), (M, N)
    chance = classifier.class_log_prob(nodes.flatten(0, 1), label).exp()
    return (weights * chance.reshape(weights.shape)).sum(0)


# %% tags=["hide-input"]
ignoring, truth = kernels.exact(mixture, schedule), kernels.exact(mixture, schedule, label)
for near in (0.49, 0.4, 0.2, 0.02):
    total = share_kept(ignoring(x_t, t, near), noised(near), label) / noised(t).class_log_prob(x_t, label).exp()
    print(f"step from {t} to {near}: the ratio integrates to 1 up to {(total - 1).abs().max():.0e}")
    assert float((total - 1).abs().max()) < 1e-4

# %% [markdown]
# And the mean number of questions? It is not what most points pay:

# %%
# [eq-mean-cost]
def mean_questions(noisy, label):
    """E[1 / p_t(y | x_t)] over p_t(x | y), by quadrature; noisy: the mixture at time t."""
    nodes, weights = divergence.mixture_nodes(noisy.given(label), order=40)
    return float(weights @ (-noisy.class_log_prob(nodes, label)).exp())


# %% tags=["hide-input"]
random = torch.Generator().manual_seed(5)
for time in (0.98, 0.5, 0.02):
    exact_mean = mean_questions(noised(time), label)
    cost = (-noised(time).class_log_prob(noised(time).given(label).sample(20_000, random)[0], label)).exp()
    dearest = 1 - cost.sort().values[:19_800].sum() / 20_000 / exact_mean  # what one point in a hundred pays
    print(f"t = {time}: mean {exact_mean:.4f}, median {cost.median():.2f} questions, the dearest 1 % pay {dearest:.2f} of all")
    assert abs(exact_mean - 2.5) < 1e-5 and float(mixture.class_weights()[label]) == 0.4
assert dearest > 0.4 and cost.median() < 1.1

# %% [markdown]
# Early, nothing is known, and every point costs 2.5. Late, the class of most points is settled, and one question does. But for a few points the classifier nearly excludes class 1: a hundredth of the points pays about half of all. A loop that waits for the last
# point of a batch will seem to hang.
#
# ## Dimension is not the price
#
# *"Rejection dies in high dimension."* Test it: two classes in four blobs with random full covariances, in 1 to 16 dimensions, class 1 with probability 0.4 in each. Beside it, a label that is harder to meet: *one bit for each coordinate*,
# each with probability 1/2, all of which must be right.

# %% tags=["hide-input"]
def two_classes(dim):
    random = torch.Generator().manual_seed(dim)
    root = torch.randn(4, dim, dim, generator=random, dtype=torch.float64)
    means = torch.randn(4, dim, generator=random, dtype=torch.float64) * 1.5 / math.sqrt(dim)
    covs = 0.3 / dim * root @ root.mT + 0.2 * torch.eye(dim)
    return GaussianMixture([0.3, 0.3, 0.25, 0.15], means, covs, labels=[0, 0, 1, 1])


places = torch.tensor([[-1.6], [0.2], [1.3]], dtype=torch.float64)
bit = GaussianMixture([0.2, 0.5, 0.3], places, [[[0.3]], [[0.15]], [[0.4]]], labels=[0, 1, 0])

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


# %% tags=["hide-input"]
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
# Left, measured: sixteen dimensions cost what one does, two and a half questions. Right, by $\eqref{eq-mean-cost}$: each coordinate multiplies the price by two. **What makes
# throwing and keeping dear is not the dimension of $x$ but a label that is improbable.**
#
# ## The step, tilted
#
# What does such a step look like? Write the ratio of the two classifiers as an exponential:
#
# $$ p(x_s \mid x_t, y) = p(x_s \mid x_t)\; e^{\,\log p(y \mid x_s) - \log p(y \mid x_t)}. \label{eq-bayes-exponential} $$
#
# In words: *the model's step, tilted by what the classifier learns in that step.* The number $p(y \mid x_t)$ does not depend on where you go; it normalises.

# %%
# [eq-bayes-exponential]
def tilted_step(mixture, schedule, x_s, x_t, t, s, label):
    """log p(x_s | x_t, y), from the model's step and two classifiers: (N,)."""
    at_s, at_t = (mixture.noised(schedule.alpha(u), schedule.sigma(u)) for u in (s, t))
    learned = at_s.class_log_prob(x_s, label) - at_t.class_log_prob(x_t, label)
    return mixture.reverse(x_t, schedule, t, s).log_prob(x_s) + learned


# %%
left_side = truth(x_t, t, s).log_prob(x_s)
torch.testing.assert_close(tilted_step(mixture, schedule, x_s, x_t, t, s, label), left_side)

# %% [markdown]
# The left side knows no classifier: it is the step of a mixture of the two blobs of class 1 alone. Here are all four terms on a line, for the same $t$ and $s$, with three classes in five hills:

# %% tags=["hide-input"]
hills = GaussianMixture(
    [0.20, 0.15, 0.25, 0.25, 0.15],
    torch.tensor([[-2.2], [-0.7], [0.3], [1.2], [2.6]], dtype=torch.float64),
    [[[0.20]], [[0.06]], [[0.10]], [[0.05]], [[0.20]]],
    labels=[0, 1, 2, 1, 0],
)
line = torch.linspace(-2.6, 3.4, 400, dtype=torch.float64)[:, None]
spot = torch.tensor([[0.5]], dtype=torch.float64)
before = hills.noised(schedule.alpha(s), schedule.sigma(s))
after = hills.noised(schedule.alpha(t), schedule.sigma(t))
grey = kernels.exact(hills, schedule)(spot, t, s).log_prob(line[:, None])[:, 0].exp()
black = kernels.exact(hills, schedule, 1)(spot, t, s).log_prob(line[:, None])[:, 0].exp()
curve, value = before.class_log_prob(line, 1).exp(), float(after.class_log_prob(spot, 1).exp()[0])

# %% tags=["hide-input"]
with plotting.style():
    figure, (low, high) = plotting.plt.subplots(2, 1, figsize=(6.4, 4.2), sharex=True)
    high.plot(line, grey, color=plotting.COLOURS["unconditional"])
    high.plot(line, black, color=plotting.COLOURS["truth"], linestyle="dashed")
    low.plot(line, curve, color=plotting.COLOURS["other"])
    low.axhline(value, color=plotting.COLOURS["conditional"], linewidth=1)
    low.text(-2.55, value + 0.04, "$p(y \\mid x_t)$", color=plotting.COLOURS["conditional"])
    low.text(1.75, 0.8, "$p(y \\mid x_s)$", color=plotting.COLOURS["other"])
    high.text(-2.5, 0.12, "$p(x_s \\mid x_t)$", color=plotting.COLOURS["unconditional"])
    high.text(1.75, 0.55, "$p(x_s \\mid x_t, y)$", color=plotting.COLOURS["truth"])
    for panel in (low, high):
        panel.fill_between(line[:, 0], 0, 1, where=curve > value, color="0.93", transform=panel.get_xaxis_transform(), zorder=0)
        panel.axvline(float(spot), color="0.6", linewidth=0.8, linestyle="dotted")
    low.set(ylabel="classifiers", ylim=(0, 1))
    high.set(ylabel="densities of the step", xlabel="$x_s$ (dotted: $x_t$)", ylim=(0, None))
    assert bool(((black > grey) == (curve > value)).all()) and int((black.diff().sign().diff() < 0).sum()) == 2  # peaks
    shown = plotting.show(figure, "06_four_densities", alt="Two panels over x_s. Above, the classifier's curve with two humps, and its level at x_t, a horizontal line. Below, the model's step, a wide grey curve, and the step given the label, dashed, with two peaks. The dashed curve lies above the grey one exactly in the shaded ranges, where the classifier's curve lies above its level.")
shown

# %% [markdown]
# *Above, $p(y \mid x_s)$ and the number $p(y \mid x_t)$; below, the step without and with the label ($y = 1$, two of five hills). Shaded: where the curve is above
# the level. There, and only there, the label makes a point more likely.*
#
# The step given the label has two peaks. No Gaussian has. What it costs to replace it by one: chapter 07.
#
# ## Guidance by choosing one of $N$
#
# Cheaper, in short steps: throw $N$ points, and walk on with *one of them*, called $x_s^{(N)}$: drawn with probability proportional to $w^a$, a power of its *weight* $w = p(y \mid x_s)$.
#
# Measure the *length* of a step by $\beta = \sigma_{t|s}^2$ from here on. In a short one, the proposals are a bell of covariance $\beta I$, up to $\beta^2$, and $\log w$ is a slope, $g_t(x_t) = \nabla \log p_t(y \mid x_t)$. Let $\bar x$ be the mean of the $N$ proposals $x_i$. To first order $w^a$ is $1 + a\, g \cdot (x_i - \bar x)$, up to a factor that all share, and these
# weights sum to $N$. So the mean of the chosen point, once the $N$ are there, is $\bar x + a\, \frac1N \sum_i (x_i - \bar x)\,(x_i - \bar x)^\top g$: the covariance of the sample, times $a g$. Divided by $N$, not $N - 1$, a sample covariance is on average $1 - \frac1N$ times the true one, here $\beta I$. (The next terms have odd powers of the deviations and vanish on average.)
#
# $$ \mathbb E\big[x_s^{(N)} \mid x_t\big] - \mathbb E[x_s \mid x_t] = a\, \Big(1 - \frac1N\Big)\, \beta\, g_t(x_t) + O(\beta^2). \label{eq-one-of-n} $$
#
# Guidance at scale $\gamma$ moves the mean by $\gamma \beta g$, up to $\beta^2$ ([chapter 07](07_mean_shift.ipynb)). So **choosing one of $N$ proposals with weights to the power $a$ is guidance with $\gamma = a\,(1 - 1/N)$, in steps so short that $\log w$ is a slope among the proposals, and the variance of $\log w^a$ there, $a^2 \beta |g|^2$, well below 1**. Of two proposals, the weights as they are make half of the guidance, their squares all of it, the sixth powers $\gamma = 3$.

# %%
# [eq-one-of-n]
def one_of(count, power, kernel, log_weight, x, t, s, generator):
    """One of `count` proposals for each point of x (N, d), drawn by a power of its weight."""
    step = kernel(x, t, s)
    thrown = torch.stack([step.sample(generator) for _ in range(count)])  # (count, N, d)
    log_w = power * log_weight(thrown.flatten(0, 1)).reshape(count, len(x))
    choice = torch.multinomial(log_w.softmax(0).T, 1, generator=generator)[:, 0]
    return thrown[choice, torch.arange(len(x))]


def walk(count, gamma, kernel, classifiers, x, times, generator):
    power = gamma * count / (count - 1)
    for t, s in zip(times[:-1], times[1:], strict=True):
        x = one_of(count, power, kernel, classifiers(s), x, t, s, generator)
    return x


# %% [markdown]
# Walk from noise to data with 400 questions: 200 steps of two proposals, or 50 steps of eight. Beside it, guidance by gradients, in 200 of DDPM's Gaussian steps. *Class mass* is the mean of $p_0(y \mid x)$ at the end.

# %% tags=["hide-input"]
def classifiers(time):
    return partial(noised(time).class_log_prob, label=label)


def seen(x):
    """Mean of x_1, class mass E[p(y | x)], and their standard errors."""
    mass = mixture.class_log_prob(x, label).exp()
    return [float(v) for v in (x[:, 0].mean(), mass.mean(), x[:, 0].std() / len(x) ** 0.5, mass.std() / len(x) ** 0.5)]


start = torch.randn(3000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
found = {}
for gamma in (0.5, 1.0, 2.0, 3.0):
    for count in (2, 8):
        way = time_grid(400 // count)  # 400 questions for each point
        found[gamma, f"{count} x {400 // count}"] = seen(walk(count, gamma, ignoring, classifiers, start, way, generator))
for gamma in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0):
    kernel = kernels.ddpm(guidance.classifier_free(mixture.pair(schedule, label), gamma), schedule)
    found[gamma, "gradient"] = seen(draw(kernel, start, time_grid(200), generator))

# %% tags=["hide-input"]
names = ("gradient", "2 x 200", "8 x 50")
for gamma in (0.5, 1.0, 2.0, 3.0):
    for name in names[1:]:
        off = [abs(found[gamma, name][i] - found[gamma, "gradient"][i]) for i in (0, 1)]
        assert off[0] < 4 * math.hypot(found[gamma, name][2], found[gamma, "gradient"][2]) and off[1] < 0.025
nodes, weights = divergence.mixture_nodes(mixture.given(label), order=40)
mass = float(weights @ mixture.class_log_prob(nodes, label).exp())
assert 0 < mass - found[1.0, "2 x 200"][1] < 0.02
print("class mass at gamma = 1: " + ", ".join("{} {:.3f} +- {:.3f}".format(name, *found[1.0, name][1::2]) for name in names))
print(f"exact: {mass:.3f}")

# %% tags=["hide-input"]
with plotting.style():
    figure, axes = plotting.plt.subplots(1, 2, figsize=(7.6, 3.0))
    for panel, part, name in zip(axes, (0, 1), ("mean of $x_1$", "class mass"), strict=True):
        smooth = {gamma: row[part] for (gamma, other), row in found.items() if other == "gradient"}
        panel.plot(smooth.keys(), smooth.values(), color=plotting.COLOURS["guided"])
        for way, colour, mark in (("2 x 200", "conditional", "o"), ("8 x 50", "other", "s")):
            dots = {gamma: row for (gamma, other), row in found.items() if other == way}
            spread = [2 * row[part + 2] for row in dots.values()]
            places = [gamma + (0.04 if mark == "s" else -0.04) for gamma in dots]  # side by side
            panel.errorbar(places, [row[part] for row in dots.values()], spread, fmt=mark, color=plotting.COLOURS[colour], markersize=4)
        panel.set(xlabel=r"guidance scale $\gamma$", ylabel=name)
    axes[0].text(0.1, 1.35, "gradients", color=plotting.COLOURS["guided"])
    axes[0].text(1.15, 0.55, "one of 2, in 200 steps", color=plotting.COLOURS["conditional"])
    axes[0].text(1.15, 0.25, "one of 8, in 50 steps", color=plotting.COLOURS["other"])
    shown = plotting.show(figure, "06_one_of_n", alt="Two panels, mean of the first coordinate and class mass over the guidance scale from 0 to 3. An orange curve for guidance by gradients rises and flattens. Blue dots for one of two proposals in 200 steps and green squares for one of eight in 50 steps lie on it or a little below.")
shown

# %% [markdown]
# *Orange: guidance with gradients. Blue and green: no gradient, but 400 questions to the classifier, with two standard errors. Two proposals a step come within about two percentage points of the gradients' class mass at every scale shown.*
#
# With $a$ chosen to suit, $N$ sets how long the steps may be: with two proposals the class mass at $\gamma = 1$ is still about one percentage point below the exact one in 200 steps. An informative label makes $|g|^2$ large: it takes shorter steps or more proposals ([Deeper](#deeper-weigh-instead-of-throwing-away)).
#
# What, then, does a gradient buy? One call a step and its gradient instead of two calls, and *longer* steps: by [chapter 07](07_mean_shift.ipynb) a right classifier's gradient at $x_t$ has exactly the right direction for the mean, however long the step.
#
# ## Pitfall: the clean classifier
#
# You may only have a classifier of *clean* pictures, $p_0(y \mid x)$. In $\eqref{eq-bayes-exponential}$ stands that of noise level $s$. Ask the clean one in its place, about the noisy $x_s$ as it is, and throw and keep in 10 steps:

# %% tags=["hide-input"]
within = GaussianMixture(mixture.given(label).weights, mixture.given(label).means, mixture.given(label).covs)
walks = {}
print(f"{'classifier':12s} {'questions a step':>17s} {'class mass':>17s} {'mean of x_1':>15s} {'larger blob':>17s}")
for name, level in {"noise-aware": noised, "clean": lambda time: mixture}.items():
    x, asked_in_all, random = start[:2000], 0.0, torch.Generator().manual_seed(3)
    for a, b in zip(time_grid(10)[:-1], time_grid(10)[1:], strict=True):
        x, count = reject(ignoring, partial(level(b).class_log_prob, label=label), x, a, b, random)
        asked_in_all += float(count.sum()) / 20_000
    large = within.class_log_prob(x, 0).exp()  # the larger blob's share, 0.625 in truth
    walks[name] = asked_in_all, seen(x)[1], seen(x)[0], float(large.mean())
    row = walks[name][0], walks[name][1], seen(x)[3], walks[name][2], seen(x)[2], walks[name][3], float(large.std()) / 2000**0.5
    print(name.ljust(12) + " {:17.2f}   {:.3f} +- {:.3f}   {:.2f} +- {:.2f}   {:.3f} +- {:.3f}".format(*row))
exact_row = 1 / float(mixture.class_weights()[label]), mass, float(weights @ nodes[:, 0]), float(within.weights[0])
print("in truth".ljust(12) + " {:17.2f}   {:.3f}            {:.2f}           {:.3f}".format(*exact_row))

# %% tags=["remove-cell"]
good, bad = walks["noise-aware"], walks["clean"]
assert abs(good[1] - 0.922) < 0.02 and abs(good[2] - 1.15) < 0.1 and abs(good[3] - 0.625) < 0.04
assert bad[0] < 1.6 and bad[1] > 0.935 and bad[3] > 0.7 and 1.15 - bad[2] > 6 * seen(x)[2]

# %% [markdown]
# (Where the noise-aware classifier is not at 2.50 questions, it is by chance: a few dear points decide.) The mistake asks less here, and its points are *surer* of class 1. But the larger blob of class 1 has taken from the smaller one (last column: its share), and the mean is off by more than six standard errors. The weights $p_s(y \mid x_s)$ fit together from step to step, since each is the average of the next, $\eqref{eq-rejection-rate}$; those of the clean classifier do not ([Deeper](#deeper-is-it-the-classifier-of-its-noise-level)). (What a clean classifier is good for: [chapter 12](12_when_the_classifier_only_knows_clean_data.ipynb).)
#
# ## In practice
#
# All that is exact here needs the model's exact step. A network's is a Gaussian, and throwing and keeping samples that Gaussian times the classifier ([Deeper](#deeper-when-the-step-is-a-networks)).
#
# | if you have | do | because |
# |---|---|---|
# | a noise-aware classifier with a gradient | guide with the gradient ([chapter 07](07_mean_shift.ipynb); on digits: [chapter 14](14_classifier_guidance_on_digits.ipynb)) | one call and one gradient a step, and steps may be longer |
# | a noise-aware classifier without a gradient | throw $N$ in each step, keep one by $w^{\gamma N / (N - 1)}$; in short steps two, by $w^{2 \gamma}$ | guidance at scale $\gamma = a\,(1 - 1/N)$; $N$ sets how long a step may be |
# | only a classifier of finished samples, and $p(y)$ not small | filter finished samples | one step from noise to data: $1/p(y)$ samples on average |
# | a step that you know exactly, and $p(y)$ not small | throw and keep in every step, and cap the loop | $1/p(y)$ questions a step on average; near the data, much of it for rare points |
#
# ## Exercises
#
# Type where it says "your turn", run the cell, then the check below it. The last one stands in Deeper.

# %% [markdown]
# ### Exercise 6.1 (easy): a better coin
#
# You know a bound: $p(y \mid x_s) \le M$ for all $x_s$, with $M < 1$. Then you may keep a proposal with the larger probability $p(y \mid x_s) / M$, and the kept points have the same density. You are given $p(y \mid x_t)$ at one point, $p(y)$ and $M$. Return two numbers: how many
# proposals you need on average at that point, and how many on average over exact paths.
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
# ### Exercise 6.4 (hard): how short is short?
#
# On the line, the model proposes from $\mathcal N(0, \beta)$, and $\log w = g\, x$. You throw two and choose one with weights to the power $a$. Return the mean of the chosen point for any $\beta$, not only short steps. (To first order it is $a \beta g / 2$. Compare them for $a^2 \beta g^2 = 1$ when you are done.)
#
# The difference of the two proposals is Gaussian, too. `divergence.hermite(60, 1)` gives nodes $(60, 1)$ and weights $(60,)$ for the expectation over $\mathcal N(0, 1)$.
#
# <details><summary>Hint</summary>
#
# Write the two as centre and difference, $x = c \pm \frac12 u$. Which has mean zero, whoever is chosen? With which probability is the larger one chosen, given $u$? What is the variance of $u$?
#
# </details>

# %% tags=["exercise"]
def mean_of_the_chosen(beta, g, power):
    ### BEGIN SOLUTION
    nodes, weights = divergence.hermite(60, 1)
    u = math.sqrt(2 * beta) * nodes[:, 0]
    return weights @ (u * torch.sigmoid(power * g * u))
    ### END SOLUTION


# %%
exercises.check("6.4", mean_of_the_chosen)

# %% [markdown]
# ## Remember
#
# 1. The step given a label is the model's step times $p(y \mid x_s) / p(y \mid x_t)$: exact for steps of any length, if the noise does not look at the label and the classifiers are those of their noise levels.
# 2. Propose, and keep with probability $p(y \mid x_s)$: with an exact step that samples it exactly. The share kept is $p(y \mid x_t)$ for every step length; over exact paths the mean number of questions a step is $1/p(y)$.
# 3. Throwing and keeping pays for an improbable label, whatever the dimension.
# 4. One of $N$ proposals, chosen by weights to the power $a$, is guidance with $\gamma = a\,(1 - 1/N)$, in short steps with $a^2 \beta |g|^2$ well below 1.
# 5. A clean classifier in place of the noisy one asked less here, looked surer, and was wrong.
#
# **Where it comes from.** Conditioning on $x_t$: [Su (2022)](https://spaces.ac.cn/archives/9257). The step as a product, and its linearisation: [Sohl-Dickstein et al. (2015)](https://arxiv.org/abs/1503.03585), [Dhariwal & Nichol (2021)](https://arxiv.org/abs/2105.05233).
#
# ## Deeper: weigh instead of throwing away
#
# *What it costs to keep all proposals, and what sixteen bits do to the choice of one: for those who work with weighted points.*
#
# Keep all $N$ proposals, with *weights* $w = p(y \mid x_s)$, divided by their sum (*self-normalised importance sampling*). Unequal weights waste points: $N$ of them are worth
# about $(\sum w)^2 / \sum w^2$ equal ones, the *effective sample size* ([Kong et al. (1994)](https://doi.org/10.1080/01621459.1994.10476469)). For many points that is $N$ times $(\mathbb E[w])^2 / \mathbb E[w^2]$. In a short step, the proposals are a bell of covariance $\beta I$, up to $\beta^2$, and $\log w$ is a slope, $g_t(x_t)$. Over such a bell around 0, the mean of $e^{g \cdot x}$
# is $e^{\beta |g|^2 / 2}$, and that of its square is $e^{2 \beta |g|^2}$. So
#
# $$ \frac{(\mathbb E[w])^2}{\mathbb E[w^2]} = e^{-\beta\, |g_t(x_t)|^2} + O(\beta^2). \label{eq-ess-slope} $$
#
# Short steps lower this price, and a label that says nothing about $x$ has $g = 0$: weighing pays for *information*, not for improbability. The bits of the main line are independent, each with a coordinate of its own. So $|g|^2$ is a sum over coordinates, and grows like $d$. Measured with 500 proposals from each of 40 points, and predicted:

# %% tags=["hide-input"]
def coordinatewise(x, level, label):
    """log p(y | x) for a bit a coordinate: (..., d) -> (...)."""
    return level.class_log_prob(x.reshape(-1, 1), label).reshape(x.shape).sum(-1)


def earlier(length, t=0.5):
    """The time s to which a step from t has the length beta."""
    left = schedule.integrated_beta(t) + math.log1p(-length)
    return schedule.time(-torch.log(torch.expm1(left)))


# %% tags=["hide-input"]
lengths, worth = (0.01, 0.1, 0.3), {}
early = bit.noised(schedule.alpha(0.5), schedule.sigma(0.5))
for dim in (1, 4, 16):
    begin = early.given(1).sample(40 * dim, generator)[0]  # (40 d, 1): the coordinates one below the other
    squares = early.class_gradient(begin, 1).reshape(40, dim).square().sum(1)
    for length in lengths:
        late = bit.noised(schedule.alpha(earlier(length)), schedule.sigma(earlier(length)))
        step = kernels.exact(bit, schedule)(begin, 0.5, earlier(length))
        thrown = torch.stack([step.sample(generator) for _ in range(500)]).reshape(500, 40, dim)
        share = effective_sample_size(coordinatewise(thrown, late, 1)) / 500
        worth[dim, length] = float(share.mean()), float((-length * squares).exp().mean())
print("effective share, measured (predicted)")
print(f"{'':6}", *(f"{f'beta = {length}':>15}" for length in lengths))
for dim in (1, 4, 16):
    print(f"d = {dim:2d}", *("{:7.3f} ({:.3f})".format(*worth[dim, length]) for length in lengths))

# %% tags=["remove-cell"]
assert all(abs(worth[d, 0.01][0] - worth[d, 0.01][1]) < 0.02 for d in (1, 4, 16))
assert all(worth[d, 0.3][0] < worth[d, 0.3][1] for d in (1, 4, 16)) and worth[1, 0.3][0] > 0.8 and worth[16, 0.3][0] < 0.15

# %% [markdown]
# Read a column downwards: at a fixed step length the share falls exponentially with the number of bits, in long steps faster than predicted. Read a row to the left: a step ten times
# shorter has a tenth of the exponent. So with sixteen bits, steps a sixteenth as long have about the share that the long ones had with one bit. (How many steps a label needs: the next section.)
#
# And if you walk on with one of $N$? Choose among whole points, by the product of the sixteen probabilities:

# %% tags=["hide-input"]
nodes, weights = divergence.mixture_nodes(bit.given(1), order=60)
right_bits = {"exact": (float(weights @ bit.class_log_prob(nodes, 1).exp()), 0.0)}
begin = torch.randn(400, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(4))


class Sixteen:
    """The step of sixteen independent coordinates."""

    def __init__(self, x, t, s):
        self.step, self.shape = bit.reverse(x.reshape(-1, 1), schedule, t, s), x.shape

    def sample(self, generator):
        return self.step.sample(generator).reshape(self.shape)


def all_bits(time):
    return lambda x: coordinatewise(x, bit.noised(schedule.alpha(time), schedule.sigma(time)), 1)


# %% tags=["hide-input"]
for count, steps in ((2, 100), (2, 400), (8, 100)):
    end = walk(count, 1.0, Sixteen, all_bits, begin, time_grid(steps), generator)
    each = bit.class_log_prob(end.reshape(-1, 1), 1).exp().reshape(400, 16).mean(1)
    right_bits[f"one of {count} in {steps} steps"] = float(each.mean()), float(each.std()) / 20
for name, (mean, error) in right_bits.items():
    print(f"{name:22s} mean probability of a right bit {mean:.3f} +- {error:.3f}")
print(f"throwing and keeping   {2**16:,} questions a step")
assert right_bits["one of 2 in 100 steps"][0] < right_bits["one of 2 in 400 steps"][0] - 0.02 and right_bits["exact"][0] - right_bits["one of 8 in 100 steps"][0] < 0.0125

# %% [markdown]
# Two proposals in 100 steps are not enough any more: sixteen bits make $\beta |g|^2$ sixteen times as large. Shorter steps help, and so do more proposals. Eight a step come within one percentage point of the exact answer on average over the bits, where throwing and keeping would take 65,536.
#
# Methods without gradients, as [Li et al. (2024)](https://arxiv.org/abs/2408.08252)'s, choose like this, by other weights. That importance sampling needs a number of points exponential in an information: [Chatterjee & Diaconis (2018)](https://arxiv.org/abs/1511.01437).
#
# ## Deeper: the price in nats
#
# *How many steps a label needs, and why the typical price falls while the mean stays: for those who plan a budget.*
#
# The price of throwing and keeping again, at 25 noise levels:

# %% tags=["hide-input"]
times = torch.linspace(0.02, 0.98, 25, dtype=torch.float64)
price, random = {"mean": [], "drawn": [], "median": [], "dearest": []}, torch.Generator().manual_seed(5)
for time in times:
    noisy = noised(time)
    price["mean"].append(mean_questions(noisy, label))
    cost = (-noisy.class_log_prob(noisy.given(label).sample(20_000, random)[0], label)).exp()
    dearest = 1 - cost.sort().values[:19_800].sum() / 20_000 / price["mean"][-1]  # paid by one point in a hundred
    for name, value in {"drawn": cost.mean(), "median": cost.median(), "dearest": dearest}.items():
        price[name].append(float(value))

assert max(abs(value - 2.5) for value in price["mean"]) < 1e-5 and float(mixture.class_weights()[label]) == 0.4
assert price["dearest"][0] > 0.4 and price["dearest"][-1] < 0.02
with plotting.style():
    figure, (left, right) = plotting.plt.subplots(1, 2, figsize=(8.0, 2.9))
    for name, colour, mark in (("mean", "truth", "-"), ("median", "conditional", "-"), ("drawn", "truth", ".")):
        left.plot(times, price[name], mark, color=plotting.COLOURS[colour])
    left.text(0.97, 2.62, "exact mean, $1/p(y)$", ha="right", color=plotting.COLOURS["truth"])
    left.text(0.42, 1.0, "median", color=plotting.COLOURS["conditional"])
    left.set(xlabel="noise level $t$ (0 is data)", ylabel="questions per step", xlim=(0, 1), ylim=(0, 4.5))
    right.plot(times, price["dearest"], color=plotting.COLOURS["guided"])
    right.set(xlabel="noise level $t$", ylabel="share paid by the dearest 1 %", xlim=(0, 1), ylim=(0, 0.7))
    shown = plotting.show(figure, "06_price", alt="Left, questions per step over the noise level: the exact mean is a flat line at 2.5, the median falls from 2.5 at pure noise to 1 near the data; dots, averages of draws, lie on the flat line at high noise and scatter around it near the data. Right, the share of all questions that the dearest hundredth of the points asks: it rises from one percent at pure noise to about one half near the data.")
shown

# %% [markdown]
# *Left, questions per exact step for class 1. The mean (line: quadrature, dots: averages of 20,000 draws) is the same at all noise levels; the median falls to 1. Right, near the data a hundredth of the points pays about half of it.*
#
# What falls is the *typical* price. Let $I_t = \mathrm{KL}\big(p_t(x \mid y) \,\|\, p_t(x)\big)$ be what the label says about $x_t$, in nats: over $p_t(x \mid y)$, the mean natural logarithm of the ratio of the two. By Bayes' rule that ratio is $p_t(y \mid x) / p(y)$, so
#
# $$ \mathbb E_{x_t \sim p_t(\cdot \mid y)}\Big[\log \frac{1}{p_t(y \mid x_t)}\Big] = \log \frac{1}{p(y)} - I_t. \label{eq-typical-cost} $$
#
# The exponential of the mean logarithm, $e^{-I_t} / p(y)$, is the typical price: $1/p(y)$ at pure noise, less as the path reveals the class and $I_t$ grows, and 1 at the end if the clean point settles its class. Here it does not quite:

# %%
# [eq-typical-cost]
def information(noisy, label):
    """KL(p_t(x | y) || p_t(x)) in nats; noisy: the mixture at time t."""
    nodes, weights = divergence.mixture_nodes(noisy.given(label), order=40)
    return float(weights @ (noisy.given(label).log_prob(nodes) - noisy.log_prob(nodes)))


def log_price(noisy, label):
    """E[log 1 / p_t(y | x_t)] over p_t(x | y)."""
    nodes, weights = divergence.mixture_nodes(noisy.given(label), order=40)
    return -float(weights @ noisy.class_log_prob(nodes, label))


# %% tags=["hide-input"]
for time in (0.99, 0.5, 0.02):
    known = information(noised(time), label)
    typical = math.exp(log_price(noised(time), label))
    print(f"t = {time}: I = {known:.3f} nats, typical price {typical:.2f}")
    assert abs(typical - math.exp(-known) / 0.4) < 1e-9

# %% [markdown]
# What does a step add? By $\eqref{eq-bayes-exponential}$ the divergence of the step given the label from the model's is $\mathbb E[\log p(y \mid x_s) - \log p(y \mid x_t)]$ over exact paths, and by the last equation that is $I_s - I_t$, exactly. And in a short step it is $\beta |g|^2 / 2$
# ([chapter 07](07_mean_shift.ipynb#how-large-is-what-is-left)): two bells of variance $\beta$, $\beta g$ apart. So
#
# $$ \beta\; \mathbb E_{x_t \sim p_t(\cdot \mid y)}\big[|g_t(x_t)|^2\big] = 2\,(I_s - I_t) + O(\beta^2). \label{eq-path-information} $$

# %%
# [eq-path-information]
def mean_exponent(noisy, label, length):
    """beta E|g_t(x_t)|^2 over p_t(x | y), for a step of this length beta."""
    nodes, weights = divergence.mixture_nodes(noisy.given(label), order=40)
    return length * float(weights @ noisy.class_gradient(nodes, label).square().sum(1))


# %% tags=["hide-input"]
for near in (0.49, 0.499, 0.4999):
    length = float(schedule.transition(t, near)[1] ** 2)
    slope = mean_exponent(noised(t), label, length)
    gained = 2 * (information(noised(near), label) - information(noised(t), label))
    print(f"beta = {length:.5f}: left side over 2 (I_s - I_t): {slope / gained:.4f}")
assert abs(slope / gained - 1) < 0.001

# %% [markdown]
# The exponents of $\eqref{eq-ess-slope}$ add up on average over the path to $2 I$ with $I = I_0$, twice what the label says about the clean point, *however many short steps you make, and whatever the dimension*. With $T$ equally informative steps each exponent is $2 I / T$, so half of the points stay effective if $T \ge 2 I / \log 2$: about three steps a nat. One of a thousand equally likely classes is at most 6.9 nats, so
# 20 well-placed steps would do. (On average over exact paths: in the tests some points of such a step keep less than a tenth.)

# %% tags=["remove-cell"]
assert round(math.log(1000), 1) == 6.9 and round(2 * math.log(1000) / math.log(2)) == 20 and round(2 / math.log(2)) == 3

# %% [markdown]
# ## Deeper: a floor under the effective share
#
# *Why the effective share is never lower than the share kept: for those who choose between the two.*
#
# With $\mathbb E[w] = p(y \mid x_t)$ from $\eqref{eq-rejection-rate}$, the effective share is
#
# $$ \frac{(\mathbb E[w])^2}{\mathbb E[w^2]} = p(y \mid x_t)\, \frac{\mathbb E[w]}{\mathbb E[w^2]}. \label{eq-ess-floor} $$
#
# Weights are probabilities, $w \le 1$, so $w^2 \le w$, and the last factor is at least 1: the effective share is never below $p(y \mid x_t)$, the share kept. For a verifier that says yes or no it is equal: then weighing *is* throwing away. At the cross of the first figure:

# %%
# [eq-ess-floor]
def effective_share(weights, w):
    """(E[w])^2 / E[w^2], with the weights of a quadrature (M, N), for w (M, N): (N,)."""
    return (weights * w).sum(0) ** 2 / (weights * w**2).sum(0)


# %% tags=["hide-input"]
for near in (0.49, 0.3, 0.02):
    nodes, weights = divergence.step_nodes(ignoring(here, t, near), order=40)
    w = noised(near).class_log_prob(nodes[:, 0], label).exp()[:, None]
    mean, second = (float((weights * w**power).sum()) for power in (1, 2))
    floor = float(noised(t).class_log_prob(here, label).exp())
    share = float(effective_share(weights, w))
    print(f"from {t} to {near}: effective share {share:.4f} = {floor:.4f} * {mean / second:.3f}")
    assert abs(share - floor * mean / second) < 1e-5 and share > floor

# %% [markdown]
# Even a step almost to the data keeps more than the floor.
#
# ## Deeper: the chain from the joint probability
#
# *The same identity without "Bayes with a companion", one factor at a time: for those who want to see where each assumption enters.*
#
# Write the step as a quotient of joint probabilities, and split both by the product rule, with the label last. $p(x_t)$ cancels:
#
# $$ p(x_s \mid x_t, y) = \frac{p(x_s, x_t, y)}{p(x_t, y)} = \frac{p(y \mid x_s, x_t)\; p(x_s \mid x_t)\; p(x_t)}{p(y \mid x_t)\; p(x_t)}. \label{eq-joint-chain} $$
#
# The first factor on top is a quotient again, with the *noise* last: $p(x_t \mid x_s, y)\, p(y \mid x_s)\, p(x_s)$ over $p(x_t \mid x_s)\, p(x_s)$. Here $p(x_s)$ cancels, and blindness makes the rest $p(y \mid x_s)$. The folded cells go through the five forms of the step, with blind noise and with three times the noise for class 1:

# %% tags=["hide-input"]
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


# %% tags=["hide-input"]
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
# Up to the fourth form nothing was assumed, and nothing changes. The fifth is right with blind noise only.
#
# **As scores.** Take the gradient of $\log$ of $\eqref{eq-bayes-exponential}$ in $x_s$; the normaliser goes:
#
# $$ \nabla \log p(x_s \mid x_t, y) = \nabla \log p(x_s \mid x_t) + \nabla \log p(y \mid x_s). \label{eq-score-of-a-step} $$
#
# This is exact. But the last gradient is that of noise level $s$, at a point that is not known beforehand. For $t \to 1$ the companion $x_t$ says nothing, and the formula becomes that of the marginals, $\nabla \log p_s(x \mid y) = \nabla \log p_s(x) + \nabla \log p_s(y \mid x)$,
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


# %% tags=["hide-input"]
by_sum = guided_step_score(ignoring(x_t, t, s), noised(s), x_s, label)
torch.testing.assert_close(by_sum, step_score(truth(x_t, t, s), x_s))

# %% [markdown]
# ## Deeper: the step in closed form
#
# *Where the truth on this page comes from: for those who want to compute it themselves.*
#
# Component $k$ of the clean mixture has the mean $m_k$ and the covariance $C_k$. Noise makes of the latter $V_s$ and $V_t$, written out below (the index $k$ is left out). Given the component, $x_s$ and $x_t = \alpha_{t|s} x_s + \sigma_{t|s} \varepsilon$ are jointly Gaussian, with $\alpha_{t|s} V_s$ for the covariance of the two.
#
# Conditioning on $x_t$ moves the mean $\alpha_s m_k$ by that covariance, times $V_t^{-1}$, times how far $x_t$ is from its own mean $\alpha_t m_k$. And it lowers the covariance $V_s$ by $\alpha_{t|s}^2 V_s V_t^{-1} V_s$.
# Since $V_t = \alpha_{t|s}^2 V_s + \sigma_{t|s}^2 I$, what is left is $V_s V_t^{-1} (V_t - \alpha_{t|s}^2 V_s) = \sigma_{t|s}^2 V_s V_t^{-1}$. Which component it is, $x_t$ says by Bayes' rule:
#
# $$ \begin{aligned} p(x_s \mid x_t) = \sum_k \Big[ & p(k \mid x_t)\; \mathcal N\big(x_s;\; \alpha_s m_k + \alpha_{t|s} V_s V_t^{-1} (x_t - \alpha_t m_k),\;
# \sigma_{t|s}^2 V_s V_t^{-1}\big) \Big], \\
# & V_s = \alpha_s^2 C_k + \sigma_s^2 I, \qquad V_t = \alpha_t^2 C_k + \sigma_t^2 I. \end{aligned} \label{eq-exact-reverse} $$
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


# %% tags=["hide-input"]
for data, step in ((mixture, ignoring), (mixture.given(label), truth)):
    by_hand = reverse_log_prob(data, schedule, x_s, x_t, t, s)
    torch.testing.assert_close(step(x_t, t, s).log_prob(x_s), by_hand)
pair = log_joint(noised(s), alpha_ts, (beta, beta), x_s, x_t).logsumexp(0)  # log p(x_s, x_t)
torch.testing.assert_close(ignoring(x_t, t, s).log_prob(x_s), pair - noised(t).log_prob(x_t))

# %% [markdown]
# By hand, by the package, and from the joint density: the same.
#
# ## Deeper: noise that looks at the label
#
# *How wrong a step gets, in nats: for those whose noise level, mask or schedule goes with the class.*
#
# If the noise goes with the class, say by way of the size of the picture, $p(y \mid x_s)$ is the wrong factor, and $\eqref{eq-bayes-given-xt}$ needs the classifier of pairs. How wrong? Class 1 gets $r$ times the noise of class 0. The model's true step $p(x_s \mid x_t)$ times the wrong factor, normalised, is so far from the true $p(x_s \mid x_t, y)$:

# %% tags=["hide-input"]
def price_of_peeking(at_s, alpha_ts, v, x_t, label):
    """KL of the true step from the one by p(y | x_s), in nats: mean over x_t (N, 2)."""
    axis, rows = torch.linspace(-5, 5, 81, dtype=torch.float64), []
    for point in x_t:
        x_s = (point + torch.cartesian_prod(axis, axis) * max(v) ** 0.5) / alpha_ts
        joint = log_joint(at_s, alpha_ts, v, x_s, point[None])
        right = joint[label].log_softmax(0)
        wrong = (joint.logsumexp(0) + at_s.class_log_prob(x_s, label)).log_softmax(0)
        rows.append((right.exp() * (right - wrong)).sum())
    return abs(float(torch.stack(rows).mean()))


peeking, random = {}, torch.Generator().manual_seed(7)
for near in (0.49, 0.4, 0.2):
    a, b = schedule.transition(t, near)
    for ratio in (1.0, 1.1, 1.5, 3.0):
        v = float(b**2), ratio * float(b**2)
        begin = after_noise(noised(near), a, v).given(label).sample(40, random)[0]
        peeking[near, ratio] = price_of_peeking(noised(near), a, v, begin, label)
    row = ",   ".join(f"r = {r}: {peeking[near, r]:.4f}" for r in (1.1, 1.5, 3.0))
    print(f"beta = {float(b**2):.2f}   nats for {row}")

# %% tags=["remove-cell"]
assert all(peeking[near, 1.0] < 1e-12 for near in (0.49, 0.4, 0.2))
assert all(peeking[0.49, r] > peeking[0.4, r] > peeking[0.2, r] for r in (1.1, 1.5, 3.0))
assert round(peeking[0.49, 3.0], 2) == 0.08 and peeking[0.49, 1.1] < 0.001

# %% [markdown]
# For class 1, over 40 points, ten percent more noise costs less than a thousandth of a nat a step, three times the noise up to 0.08. And *shorter steps do not help*: the size of $x_t - \alpha_{t|s} x_s$, compared with $\sqrt\beta$, speaks of the class, however small $\beta$ is. The error of a Gaussian
# step goes away with short steps; this one adds up over them. So give the classifier both points, or make the noise blind.
#
# ## Deeper: is it the classifier of its noise level?
#
# *A test without labelled data: for those who were handed a classifier.*
#
# The weights of the right classifier fit together from step to step, $\eqref{eq-rejection-rate}$. So test whether, with exact steps, the share kept depends on their length. With the right classifier it does not:

# %% tags=["hide-input"]
network = kernels.ddpm(mixture.denoiser(schedule), schedule, "small")
tests = {"noise-aware": (noised, ignoring), "clean": (lambda time: mixture, ignoring), "noise-aware, network": (noised, network)}
for name, (level, kernel) in tests.items():
    row = []
    for near in (0.49, 0.3, 0.1):
        cloud = kernel(here.expand(50_000, 2), t, near).sample(generator)
        row.append(float(level(near).class_log_prob(cloud, label).exp().mean()))
    print(f"{name:20s} kept in steps from {t} to 0.49, 0.3, 0.1: {row[0]:.3f}, {row[1]:.3f}, {row[2]:.3f} +- 0.001")
    assert (max(row) - min(row) < 0.01) == (name == "noise-aware")

# %% tags=["remove-cell"]
assert round(float(share_kept(ignoring(here, t, 0.49), mixture, label) - mixture.class_log_prob(here, label).exp()), 3) == 0.002

# %% [markdown]
# The last row warns you: with a network's Gaussian step (DDPM's, small variance) the share moves in long steps although the classifier is right. Then compare the share of one short step with what the same classifier says of $x_t$ itself, at several points and with many draws: at this one, in the step to 0.49, these two differ by 0.002 only for the clean classifier.
#
# ## Deeper: when the step is a network's
#
# *What exact weights are worth if the proposal is only a Gaussian: for those who have a network.*
#
# A network proposes from $q(x_s) = \mathcal N(\mu, \beta I)$, not from $p(x_s \mid x_t)$. Throw and keep gives $q_y(x_s) = q(x_s)\, p(y \mid x_s) / q(y)$, where $q(y)$ is the share kept. Compare the joint laws of $(x_s, y)$, once $p(x_s \mid x_t)\, p(y \mid x_s)$, once $q(x_s)\, p(y \mid x_s)$. In their ratio the classifier cancels: so their
# divergence is that of the steps. Splitting the same divergence with the label first (its chain rule) gives
#
# $$ \sum_y \Big[ p(y \mid x_t)\; \mathrm{KL}\big(p(x_s \mid x_t, y) \,\|\, q_y\big) \Big] = \mathrm{KL}\big(p(x_s \mid x_t) \,\|\, q\big) - \mathrm{KL}\big(p(y \mid x_t) \,\|\, q(y)\big). \label{eq-inherited-error} $$
#
# Averaged over the labels, filtering inherits the error of the model's step, less a little. Beside it, no weights at all but one gradient, added to the model's score (chapter 07: the exact mean). For class 1, mean over exact points, in nats:

# %% tags=["hide-input"]
# [eq-inherited-error]
def filtered_kl(p, q, classifier, order=30):
    """KL(p || q_y) for each point: p an exact step given y, q a Gaussian step, classifier: (M, d) -> log p(y | x_s)."""
    z, weights = divergence.hermite(order, q.mean.shape[1])
    root = torch.linalg.cholesky(q.cov) if hasattr(q, "cov") else q.var.sqrt() * torch.eye(q.mean.shape[1]).to(z)
    spots = q.mean + (root @ z[:, None, :, None])[..., 0]  # (M, N, d)
    log_kept = (weights.log()[:, None] + classifier(spots.flatten(0, 1)).reshape(spots.shape[:2])).logsumexp(0)
    spots, weights = divergence.step_nodes(p)
    log_q = q.log_prob(spots) + classifier(spots.flatten(0, 1)).reshape(spots.shape[:2]) - log_kept
    return (weights * (p.log_prob(spots) - log_q)).sum(0), log_kept


# %% tags=["hide-input"]
def gradient(x, time):
    return noised(time).class_gradient(x, label)


large = kernels.ddpm(mixture.denoiser(schedule), schedule, "large")
by_gradient = kernels.ddpm(guidance.tilt(mixture.denoiser(schedule), gradient, 1.0, schedule), schedule, "large")
inherited = {}
print("step         model's own    given class 1: filtered   gradient   neither")
for far, near in ((0.2, 0.18), (0.2, 0.12), (0.5, 0.45), (0.5, 0.3), (0.8, 0.72), (0.8, 0.48)):
    nodes, weights = divergence.mixture_nodes(noised(far).given(label), order=6)
    p, q = truth(nodes, far, near), large(nodes, far, near)
    filtered = filtered_kl(p, q, partial(noised(near).class_log_prob, label=label))[0]
    steps = divergence.kl(ignoring(nodes, far, near), q), filtered, divergence.kl(p, by_gradient(nodes, far, near)), divergence.kl(p, q)
    inherited[far, near] = [float(weights @ each) for each in steps]
    print(f"{far} to {near:<4} " + "{:13.4f} {:26.4f} {:10.4f} {:9.3f}".format(*inherited[far, near]))

# %% tags=["remove-cell"]
p_of, q = [kernels.exact(mixture, schedule, y)(x_t, t, 0.3) for y in (0, 1)], large(x_t, t, 0.3)
parts = [filtered_kl(p_of[y], q, partial(noised(0.3).class_log_prob, label=y)) for y in (0, 1)]
chances = torch.stack([noised(t).class_log_prob(x_t, y) for y in (0, 1)]).exp()
left_side = sum(chances[y] * parts[y][0] for y in (0, 1))
label_error = sum(chances[y] * (chances[y].log() - parts[y][1]) for y in (0, 1))
torch.testing.assert_close(left_side, divergence.kl(ignoring(x_t, t, 0.3), q) - label_error, atol=1e-10, rtol=0)
assert all(model < 1.01 * filtered and filtered < 1.1 * model for model, filtered, _, _ in inherited.values())
assert all(slope < 1.001 * filtered and filtered < neither / 3 for _, filtered, slope, neither in inherited.values())

# %% [markdown]
# One gradient with the right coefficient leaves *no more* for class 1 than the exact filter, in all six steps (in the tests, for other classes and mixtures, up to 1.6 times as much): what is left is the wrong width of the step. Weights pay where the model's step has the right width. With the Gaussian of the true mean *and* covariance:

# %% tags=["hide-input"]
matched = kernels.moment_matched(mixture, schedule)
for near in (0.49, 0.45, 0.3):
    nodes, weights = divergence.mixture_nodes(noised(t).given(label), order=6)
    p, q = truth(nodes, t, near), matched(nodes, t, near)
    filtered = float(weights @ filtered_kl(p, q, partial(noised(near).class_log_prob, label=label))[0])
    shifted = float(weights @ divergence.kl(p, kernels.shift(matched, gradient, 1.0)(nodes, t, near)))
    print(f"{t} to {near}: filtered {filtered:.1e}, shifted by the gradient {shifted:.1e} nats, ratio {shifted / filtered:.1f}")
    assert shifted > (2 if near == 0.3 else 10) * filtered

# %% [markdown]
# There the filter is better by a factor of 2.9 in the long step, and of ten and more in the shorter ones.
#
# ## Deeper: one of $N$, in nats
#
# *What two proposals miss, without random numbers: for those who doubt the samples above.*
#
# On the line, with the five hills. Write $p(x)$ for the model's step $p(x_s \mid x_t)$ at $x_s = x$, and $w(x) = p(y \mid x_s)$. Sum over who is chosen: with weights to the power $a$, the chosen point has the density $q_2(x) = 2\, p(x) \int p(x')\, \frac{w(x)^a}{w(x)^a + w(x')^a}\, dx'$. How far does it move, and how far is it from the exact step?

# %% tags=["hide-input"]
spot = torch.tensor([[0.5]], dtype=torch.float64)
told, untold = kernels.exact(hills, schedule, 1), kernels.exact(hills, schedule)
missing, short = {}, {}
for near in (0.49, 0.499):
    step, level = untold(spot, t, near), hills.noised(schedule.alpha(near), schedule.sigma(near))
    z, shares = divergence.step_nodes(step, order=40)  # (M, 1, 1), (M, 1)
    w = level.class_log_prob(z.reshape(-1, 1), 1).exp()
    exact = w / (shares[:, 0] @ w)  # p(x_s | x_t, y) / p(x_s | x_t) at the nodes
    for power in (1, 2):
        chosen = 2 * (shares[:, 0] * w[:, None] ** power / (w[:, None] ** power + w**power)).sum(1)  # q_2 / p
        moved = (shares[:, 0] * chosen) @ z[:, 0, 0] - step.mean[0, 0]
        part = float(moved / (told(spot, t, near).mean - step.mean)[0, 0])
        short[near, power] = abs(part - power / 2)
        missing[near, power] = float((shares[:, 0] * exact) @ (exact / chosen).log())
        beta_now = float(schedule.transition(t, near)[1] ** 2)
        print(f"beta = {beta_now:.4f}, weights to the power {power}: {part:.4f} of the exact shift, {missing[near, power]:.1e} nats")

# %% tags=["remove-cell"]
assert 8 < missing[0.49, 1] / missing[0.499, 1] < 12 and missing[0.499, 2] < missing[0.499, 1] / 20
assert abs(part - 1) < 1e-4 and all(short[0.499, power] < short[0.49, power] / 4 for power in (1, 2))

# %% [markdown]
# In a step a tenth as long, half of the shift with $a = 1$, and all of it with $a = 2$, come out several times more accurately. The nats with $a = 1$ fall like $\beta$, and so do not go away over a path; with $a = 2$ they fall faster.

# %% [markdown]
# ### Exercise 6.5 (research): the nats of one of $N$
#
# In a short step the model proposes from a bell of covariance $\beta I$, and the classifier's logarithm is the slope $g$, shape `(d,)`. The law of one of $N$ proposals, with weights to the power $a$, differs from the exact step by $c\, \beta + O(\beta^2)$ nats, $\mathrm{KL}(\text{exact} \,\|\, \text{one of } N)$. Return $c$. (Then use
# $\eqref{eq-path-information}$: what does a whole path cost with $a = 1$, and what does doubling $N$ save?)
#
# <details><summary>Hint</summary>
#
# To leading order only the mean is wrong: by $\eqref{eq-one-of-n}$ a part of $\beta g$ is missing. Two bells of variance $\beta$ whose means differ by $\delta$ are $|\delta|^2 / 2 \beta$ apart.
#
# </details>

# %% tags=["exercise"]
def nats_per_length(g, count, power):
    ### BEGIN SOLUTION
    # With a = 1 each step costs beta |g|^2 / (2 N^2): over exact paths I / N^2. Doubling N leaves a quarter.
    missing = 1 - power * (1 - 1 / count)
    return missing**2 * g.square().sum() / 2
    ### END SOLUTION


# %%
exercises.check("6.5", nats_per_length)
