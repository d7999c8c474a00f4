# %% [markdown]
# # 04 · Scores and Langevin: can you walk to the data by the slope alone?
#
# You know the slope of $\log p$, everywhere and exactly: no network, no error. Put a thousand walkers anywhere. Let each step uphill and shake a little, so that they do not all end on the
# peaks. Go on for as long as you like. Are the places where they stand a sample of the data?
#
# The short answer: **inside a group of data, after a hundred steps; how much lies in which group, not after ten thousand. The slope at
# little noise hardly knows it. The slopes at all noise levels know it exactly.**
#
# **After this chapter you can**
# * take a Langevin step, and say which density a wrong one samples;
# * show two densities with opposite weights that no slope of clean data tells apart, and at which noise it shows;
# * compute how long a walk needs to cross between two groups, and walk down noise levels instead;
# * learn a slope from data alone, and say where it is wrong.
#
# **You need** chapters 00 and 01, gradients, Gaussians.
#
# *30 minutes to read, 20 more for Deeper, 25 seconds to run, on a laptop, without a GPU or a network connection.*

# %%
import math

import torch

from difflesson import curves, exercises, kernels, langevin, metrics, plotting, score_matching
from difflesson.grid import GridDensity
from difflesson.mixture import GaussianMixture
from difflesson.samplers import draw
from difflesson.schedule import cosine

torch.set_num_threads(1)

# %% [markdown]
# ## The right slope, the wrong shares
#
# Our data lie in two groups far apart, a fifth in the left one and four fifths in the right one. Each group has blobs that overlap.


# %%
def seeded(number):
    return torch.Generator().manual_seed(number)


def groups(left):
    """Five blobs: two in the left group, with this share of the mass, three in the right one."""
    weights = [0.6 * left, 0.4 * left, 0.5 * (1 - left), 0.3 * (1 - left), 0.2 * (1 - left)]
    means = torch.tensor([[-4.6, 0.8], [-3.6, -0.6], [2.6, -0.4], [4.0, 1.0], [4.6, -0.6]], dtype=torch.float64)
    covs = [[[0.5, 0.2], [0.2, 0.4]], [[0.3, -0.1], [-0.1, 0.3]], [[0.4, -0.2], [-0.2, 0.5]],
            [[0.5, 0.1], [0.1, 0.3]], [[0.3, 0.1], [0.1, 0.4]]]  # fmt: skip
    return GaussianMixture(weights, means, covs, [0, 0, 1, 1, 1])


data, swapped = groups(0.2), groups(0.8)
starts = 3 * torch.randn(1000, 2, generator=seeded(0), dtype=torch.float64)

# %% tags=["hide-input"]
def right_share(x):
    return float(data.class_log_prob(x, 1).exp().mean())


def noisy_slope(x, sigma):
    return data.noised(1.0, sigma).score(x)


walkers = {"100 steps": langevin.unadjusted(data.score, starts, 0.05, 100, seeded(1))}
walkers["10,000 steps"] = langevin.unadjusted(data.score, walkers["100 steps"], 0.05, 9_900, seeded(2))
ladder = torch.logspace(1, -1, 20, dtype=torch.float64).tolist()  # noise levels, from 10 to 0.1
high = ladder[0] * torch.randn(1000, 2, generator=seeded(3), dtype=torch.float64)
walkers["400 steps on 20 noise levels"] = langevin.annealed(noisy_slope, high, ladder, 0.3, 20, seeded(4))
blobs = GaussianMixture(data.weights, data.means, data.covs)
for name, x in walkers.items():
    inside = metrics.mode_weights(blobs, x)[2:] / right_share(x)
    print(f"{name}: right group {right_share(x):.2f}, its blobs {inside.numpy().round(2)}")
print(f"data: right group 0.80, its blobs [0.5 0.3 0.2]; standard errors at most 0.02; starts on the right {float((starts[:, 0] > 0).double().mean()):.2f}")

# %% tags=["hide-input"]
grey, blue, orange, green = (plotting.COLOURS[name] for name in ("unconditional", "conditional", "guided", "other"))
with plotting.style():
    figure, axes = plotting.plt.subplots(1, 3, figsize=(8.6, 2.5), sharex=True, sharey=True)
    for panel, (name, x) in zip(axes, walkers.items(), strict=True):
        panel.plot(*x[:500].T, ".", markersize=2, color=blue)
        plotting.density(panel, data.log_prob, (-7.5, 7.5, -3.2, 3.6))
        for where, share in ((-6.9, 1 - right_share(x)), (4.9, right_share(x))):
            panel.text(where, 3.0, f"{share:.2f}", color=orange)
        panel.set(title=name, xlabel="$x_1$", xlim=(-7.5, 7.5), ylim=(-3.2, 3.8))
    axes[0].set_ylabel("$x_2$")
    shares = [round(right_share(x), 2) for x in walkers.values()]
    assert shares[0] == shares[1] and abs(shares[0] - 0.58) < 0.03 and abs(shares[2] - 0.8) < 0.04
    shown = plotting.show(figure, "04_wrong_shares", alt="Three panels with the same dashed contours of two groups of blobs, a small one on the left and a large one on the right, and blue dots inside the contours. After 100 and after 10,000 steps more than four dots in ten are in the left group, after 400 steps on 20 noise levels two in ten.")
shown

# %% [markdown]
# *Walkers (500 of 1,000) that follow the exact slope of the data, left and middle, and of data with less and less noise, right. Dashed: the data, 50, 90 and 99 % of them. Orange: the share in each group, which should be
# 0.2 and 0.8. Every dot is in a good place; only the noise levels give the right shares.*
#
# After 100 steps each group looks right inside, blob by blob. But the right group has the share of walkers that *began* on its side, and ten thousand steps do not change that.
#
# **Why.** A slope says how $\log p$ changes from here to next door. Make the right group four times as heavy: inside it, $\log p$ rises by $\log 4$ *everywhere*, and no slope changes. The weights are not lost,
# they are *hidden*: only in the valley between the groups, where both add to $p$, does the slope depend on how much lies on either side. And there is nobody in the valley.
#
# **What noise changes.** Add noise, and both groups widen until they overlap. Now the valley is crowded, its slope knows the shares, and walkers cross it all the time. Lower the noise a little: the
# groups part, each keeps its share, and finer detail appears. Shares are settled at much noise, shapes at little.
#
# ## A slope needs no normaliser
#
# Why slopes at all? A density must sum to one. Write it with any function $f$, an *energy*, $p(x) = e^{-f(x)} / Z$: the normaliser $Z = \int e^{-f}$ is an integral over all pictures. In the slope of the logarithm, the *score*, it is a constant that drops out:
#
# $$ p(x) = \frac{e^{-f(x)}}{Z} \quad\Longrightarrow\quad \nabla \log p(x) = -\nabla f(x). \label{eq-energy-score} $$


# %%
# [eq-energy-score]
def slope_of(energy, x):
    """-grad f, by automatic differentiation; nobody knows Z."""
    leaf = x.detach().requires_grad_()
    return -torch.autograd.grad(energy(leaf).sum(), leaf)[0]


def energy(x):
    return 7.0 - data.log_prob(x)  # log Z = -7 or anything else


torch.testing.assert_close(slope_of(energy, starts), data.score(starts))

# %% [markdown]
# So any network with as many outputs as inputs may stand for a score. (Not every such field is a slope: [chapter 11](11_classifier_free_guidance.ipynb) has the test.) To draw samples, step uphill by $c$ times the slope, and shake with a variance of *twice* $c$:
#
# $$ x' = x + c\, \nabla \log p(x) + \sqrt{2 c}\; \varepsilon, \qquad \varepsilon \sim \mathcal N(0, I). \label{eq-langevin-step} $$
#
# For $c \to 0$ this is a diffusion that leaves $p$ alone: of a cloud with density $p$, as many points are carried uphill by the slope as the noise spreads downhill (the flow is $p\, \nabla \log p - \nabla p = 0$). With finite steps it is nearly so; Deeper has the error and a cure.

# %%
one = langevin.unadjusted(data.score, starts, 0.05, 1, seeded(5))
noise = torch.randn(starts.shape, generator=seeded(5), dtype=torch.float64)
torch.testing.assert_close(one, starts + 0.05 * data.score(starts) + math.sqrt(2 * 0.05) * noise)

# %% [markdown]
# ### Pitfall: the two in the root
#
# Two slips: no noise, and $\sqrt{c}$ for $\sqrt{2c}$. The second is a proper step of length $c / 2$ along *twice* the slope, and twice the slope of $\log p$ is the slope of $\log p^2$. We look at the spread inside the right group:


# %%
def shaken(x, c, noise, steps, generator):
    for _ in range(steps):
        x = x + c * data.score(x) + noise * torch.randn(x.shape, generator=generator, dtype=x.dtype)
    return x


def spread(x):
    return float(x[x[:, 0] > 0].var(0).sum())


# %% tags=["hide-input"]
c, right, spreads = 0.02, data.given(1), {}
for power in (1, 2):
    exact = GridDensity(lambda x, power=power: power * right.log_prob(x), (-1, -4), (9, 5))
    spreads[f"p^{power}"] = float(exact.cov.trace())
for name, noise in (("sqrt(2c)", math.sqrt(2 * c)), ("sqrt(c)", math.sqrt(c)), ("none", 0.0)):
    spreads[name] = spread(ends := shaken(starts, c, noise, 1000, seeded(6)))
peaks = len(torch.unique((100 * ends).round(), dim=0))
print("variance in the right group, exact: " + ", ".join(f"{name} {spreads[name]:.2f}" for name in ("p^1", "p^2")))
print("walkers with noise " + ", ".join(f"{name}: {spreads[name]:.2f}" for name in ("sqrt(2c)", "sqrt(c)", "none")) + " (+- 0.08 at most)")
print(f"without noise, {len(starts)} walkers stand on {peaks} points, {float((ends[:, 0] > 0).double().mean()):.2f} of them on the right")
