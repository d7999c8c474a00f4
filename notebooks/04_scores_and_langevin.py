# %% [markdown]
# # 04 · Scores and Langevin: can you walk to the data by the slope alone?
#
# You know the slope of $\log p$, everywhere and exactly: no network, no error. Put a thousand walkers anywhere. Let each step uphill and shake a little, so that they do not all end on the
# peaks. Go on for as long as you like. Are the places where they stand a sample of the data?
#
# The short answer, on our data: **inside a group, after a hundred steps; how much lies in which group, not after ten thousand. The slope at
# little noise hardly knows it. The slopes at all noise levels know it exactly.**
#
# **After this chapter you can**
# * take a Langevin step, and say which density a wrong one samples;
# * show two densities with opposite weights that averages over slopes of clean data hardly tell apart, and the noise at which they show;
# * compute how long a walk needs to cross between two groups, and walk down noise levels instead;
# * learn a slope from data alone, and say where it is wrong.
#
# **You need** chapters 00 and 01, gradients, Gaussians, the KL divergence.
#
# *30 minutes to read, 22 more for Deeper, 30 seconds to run, on a laptop, without a GPU or a network connection.*

# %%
import math

import numpy
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
    means = [[-4.6, 0.8], [-3.6, -0.6], [2.6, -0.4], [4.0, 1.0], [4.6, -0.6]]
    means = torch.tensor(means, dtype=torch.float64)
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
walkers["wide start"] = langevin.unadjusted(data.score, high, 0.05, 400, seeded(2))
for name, x in walkers.items():
    inside = metrics.mode_weights(blobs, x)[2:] / right_share(x)
    print(f"{name}: right group {right_share(x):.2f}, its blobs {inside.numpy().round(2)}")
print(f"data: right group 0.80, its blobs [0.5 0.3 0.2]; standard errors at most 0.02; starts on the right {float((starts[:, 0] > 0).double().mean()):.2f}")

# %% tags=["hide-input"]
grey, blue, orange, green = (plotting.COLOURS[name] for name in ("unconditional", "conditional", "guided", "other"))
drawn, of = 500, 1000
assert of == len(starts) == len(high)
with plotting.style():
    figure, axes = plotting.plt.subplots(1, 3, figsize=(8.6, 2.5), sharex=True, sharey=True)
    for panel, (name, x) in zip(axes, walkers.items(), strict=False):
        panel.plot(*x[:drawn].T, ".", markersize=2, color=blue)
        plotting.density(panel, data.log_prob, (-7.5, 7.5, -3.2, 3.6))
        for where, share in ((-6.9, 1 - right_share(x)), (4.9, right_share(x))):
            panel.text(where, 3.0, f"{share:.2f}", color=orange)
        panel.set(title=name, xlabel="$x_1$", xlim=(-7.5, 7.5), ylim=(-3.2, 3.8))
    axes[0].set_ylabel("$x_2$")
    shares = [round(right_share(x), 2) for x in walkers.values()]
    assert abs(right_share(walkers["wide start"]) - 0.51) < 0.005
    assert shares[0] == shares[1] == 0.58 and abs(shares[2] - 0.8) < 0.04
    shown = plotting.show(figure, "04_wrong_shares", alt="Three panels with the same dashed contours of two groups of blobs, a small one on the left and a large one on the right, and blue dots inside the contours. After a hundred and after ten thousand steps more than four dots in ten are in the left group, after 400 steps on twenty noise levels two in ten.")
shown

# %% [markdown]
# *Walkers (half of the thousand) on the exact slope of the data, left and middle, and of data with less and less noise, right. Dashed: 50, 90 and 99 % of the data. Orange: the share in each group, which should be
# 0.2 and 0.8. The places are good in all panels, the shares only on noise levels. (The right panel starts from a wider cloud. From there, without noise levels, 0.51 end on the right.)*
#
# After 100 steps each group looks right inside, blob by blob. But 0.58 of the walkers are on the right: with few exceptions those that *began* on its side of the watershed, the line where the slopes part (left of 0). Ten thousand steps do not change that.
#
# **Why.** A slope says how $\log p$ changes from a point to its neighbours. Change how much lies in which group: inside each, $\log p$ moves by nearly one number *everywhere*, and slopes hardly change. One often reads that
# the gradient removes the weights. That holds where one group is alone. In the valley, where both add to $p$, the slope does depend on how much lies on either side. But hardly anybody is there.
#
# **What noise changes.** Add noise, and both groups widen until they overlap. Now the valley is crowded, its slope knows the shares, and walkers cross it all the time. Lower the noise a little: the
# groups part, each keeps its share, and finer detail appears. Shares are settled where the groups part, shapes below.
#
# ## A slope needs no normaliser
#
# Why slopes at all? A density must sum to one. Write it with any function $f$, an *energy*: the normaliser $Z = \int e^{-f}$ is an integral over the whole space. In the slope of the logarithm, the *score*, it drops out:
#
# $$ p(x) = \frac{e^{-f(x)}}{Z}, \qquad \nabla \log p(x) = -\nabla f(x). \label{eq-energy-score} $$


# %%
# [eq-energy-score]
def slope_of(energy, x):
    """-grad f, by automatic differentiation; Z is not needed."""
    leaf = x.detach().requires_grad_()
    return -torch.autograd.grad(energy(leaf).sum(), leaf)[0]


# %%
def energy(x):
    return 7.0 - data.log_prob(x)  # log Z = -7 or anything else


torch.testing.assert_close(slope_of(energy, starts), data.score(starts))

# %% [markdown]
# So a network may answer the score directly. To draw samples, step uphill by $c$ times the slope, and shake with a variance of *twice* $c$, from fresh $\varepsilon \sim \mathcal N(0, I)$:
#
# $$ x' = x + c\, \nabla \log p(x) + \sqrt{2 c}\; \varepsilon. \label{eq-langevin-step} $$
#
# For $c \to 0$ this is a diffusion that leaves $p$ alone: the slope carries as much uphill as the noise spreads downhill, $p\, \nabla \log p - \nabla p = 0$. With short steps it is nearly so ([Deeper](#deeper-what-a-finite-step-costs-and-how-to-correct-it)).

# %%
one = langevin.unadjusted(data.score, starts, 0.05, 1, seeded(5))
noise = torch.randn(starts.shape, generator=seeded(5), dtype=torch.float64)
torch.testing.assert_close(one, starts + 0.05 * data.score(starts) + math.sqrt(2 * 0.05) * noise)

# %% [markdown]
# ### Pitfall: the two in the root
#
# A slip: $\sqrt{c}$ for $\sqrt{2c}$. That is a proper step of length $c / 2$ along *twice* the slope, which is the slope of $\log p^2$:


# %%
def shaken(x, c, noise, steps, generator):
    for _ in range(steps):
        x = x + c * data.score(x) + noise * torch.randn(x.shape, generator=generator, dtype=x.dtype)
    return x


def spread(x):
    return x.var(0).sum()


# %% tags=["hide-input"]
c, right, spreads, errors = 0.02, data.given(1), {}, {}
for power in (1, 2):
    exact = GridDensity(lambda x, power=power: power * right.log_prob(x), (-1, -4), (9, 5))
    spreads[f"p^{power}"] = float(exact.cov.trace())
for name, noise in (("sqrt(2c)", math.sqrt(2 * c)), ("sqrt(c)", math.sqrt(c))):
    ends = shaken(starts, c, noise, 1000, seeded(6))
    spreads[name], errors[name] = (float(value) for value in metrics.with_error(spread, ends[ends[:, 0] > 0]))
print("variance in the right group, exact: " + ", ".join(f"{name} {spreads[name]:.2f}" for name in ("p^1", "p^2")))
print("walkers with noise " + ", ".join(f"{name}: {spreads[name]:.2f} +- {error:.2f}" for name, error in errors.items()))
# %% [markdown]
# With $\sqrt c$ the walk has the spread of $p^2 / Z$, a sharper density.
#
# ## Wrong, or slow?
#
# With short steps, only slow. The Langevin diffusion forgets any start: wait, and the shares come right. How long? On a fine grid a diffusion is a matrix, its *generator*, and its smallest rates above 0 say how fast the last errors fade; nothing is simulated ([Deeper](#deeper-how-long-a-crossing-takes)). For the opening's walk:

# %% tags=["hide-input"]
def steps_to_forget(sigma, c, cells=90):
    """Steps in which what is wrong between the groups, and inside them, falls by e: of the diffusion, on a grid."""
    noisy, reach = data.noised(1.0, sigma), 8 + 4.5 * sigma
    rates = langevin.relaxation_rates(noisy.log_prob, (-reach, -reach), (reach, reach), (cells, cells), 3)
    return 1 / (rates[1:] * c)


clean_steps = steps_to_forget(0.0, 0.05, 150)
print(f"clean data, steps of 0.05: {float(clean_steps[1]):.0f} steps inside the groups, {float(clean_steps[0]) / 1e6:.0f} million between them")
print(f"after 100 steps {float(torch.exp(-100 / clean_steps[1])):.0%} are left inside")

# %% [markdown]
# Inside the groups what is wrong falls by $e$ in thirty-one steps (so a hundred leave 4 % of it), between them in 11 *million*. The wait grows like $e$ to the power of the *barrier*, the drop of $\log p$ from the top of the less dense group to the pass, which for Gaussians grows with the square of their distance.
#
# ## What one slope cannot see, all together see
#
# How far apart are two densities, for one who looks at slopes? The **Fisher divergence** compares them where the data are:
#
# $$ F(p \,\|\, r) = \mathbb E_{x \sim p} \big\| \nabla \log p(x) - \nabla \log r(x) \big\|^2. \label{eq-fisher-divergence} $$
#
# If $p > 0$ everywhere, it is zero only for equal densities. Take for $r$ our data with the shares *exchanged*:


# %%
def on_grid(p, reach, cells=240):
    """Points and weights for averages over a mixture around the origin."""
    grid = GridDensity(p.log_prob, -reach, reach, cells)
    return grid.points, grid.weights


points, weights = on_grid(data, 8.0)
fisher = score_matching.explicit_loss(swapped.score, data.score, points, weights)
kl = weights @ (data.log_prob(points) - swapped.log_prob(points))
by_hand = weights @ (data.score(points) - swapped.score(points)).square().sum(1)
torch.testing.assert_close(fisher, by_hand)
exchanged = torch.tensor([0.12, 0.08, 0.1, 0.54, 0.16]).double()
neighbours = GaussianMixture(exchanged, data.means, data.covs, data.labels)
among = (data, swapped, neighbours)
ends = [langevin.unadjusted(p.score, starts, 0.05, 2000, seeded(7)) for p in among]
met = [((ends[0] - other).norm(dim=1) < 0.01).double().mean() for other in ends[1:]]
mean_square = float(weights @ data.score(points).square().sum(1))
print(f"Fisher divergence {float(fisher):.1e}, mean square slope {mean_square:.1f}")
print(f"KL divergence {float(kl):.3f} nats")
print(f"2,000 steps with the same noises: {float(met[0]):.0%} of the walkers end in the same place",
      "on both slopes")
print(f"if two blobs of one group exchange shares instead: {float(met[1]):.0%}")

# %% [markdown]
# The slopes differ by three millionths in the mean square; the slope itself has 4.0. With the same noises, 97 % of the walkers end in the same place on either slope. Yet the Kullback-Leibler divergence is large, 0.83 nats a point.
#
# Now add noise of variance $q$ to both, $p_q = p * \mathcal N(0, q I)$ (without shrinking the data; by [chapter 01](01_noising.ipynb#the-only-clock) it is the same process). How fast do they become alike? A little more noise averages over shifts, $p_{q + dq}(x) = \mathbb E\big[p_q(x - \sqrt{dq}\, \varepsilon)\big]$, and to first order in $dq$ only the second derivatives are left: $\partial_q\, p_q = \frac12 \Delta p_q$, *diffusion*. The same for $r_q$. Put this into the derivative of $\int p_q \log (p_q / r_q)$. Where the derivative falls on $\log p_q$ it gives nothing, $\int p_q\, \partial_q \log p_q = \partial_q \int p_q = 0$. The other term of the logarithm gives $-\int (p_q / r_q)\, \partial_q r_q$. What is left, with $\frac12 \Delta$ for $\partial_q$ and integrated by parts, is
#
# $$ \frac12 \int \Big[ \Delta p_q\, \log \frac{p_q}{r_q} - \frac{p_q}{r_q}\, \Delta r_q \Big] = -\frac12 \int \nabla \log \frac{p_q}{r_q} \cdot \Big[ \nabla p_q - \frac{p_q}{r_q}\, \nabla r_q \Big], $$
#
# and the last bracket is $p_q\, \nabla \log (p_q / r_q)$. So $\partial_q\, \mathrm{KL} = -\frac12 F$: each unit of variance takes away half of what slopes see at that level. With infinite noise nothing is left. Add up what was taken:
#
# $$ \mathrm{KL}(p \,\|\, r) = \frac12 \int_0^\infty F(p_q \,\|\, r_q)\; dq. \label{eq-kl-over-levels} $$
#
# **Slopes at one noise level may see next to nothing of a difference. Slopes at all levels together see all of it, in nats, exactly.** We integrate for three differences: in the shares of the groups, the shares of two neighbouring blobs, and the width of one blob.


# %%
# [eq-kl-over-levels]
def divergence_over(q, fisher):
    """Half the integral of F over q, on growing levels (n,), by the trapezium rule in log q."""
    return torch.trapezoid(q * fisher / 2, q.log())


# %% tags=["hide-input"]
narrower = GaussianMixture(data.weights, data.means, data.covs * torch.tensor([1, 1, 0.1, 1, 1])[:, None, None], data.labels)
rivals = {"shares of the groups": swapped, "shares of two blobs": neighbours, "width of a blob": narrower}
levels = torch.logspace(-2.2, 2.4, 40, dtype=torch.float64)  # sigma
q, seen, halfway, clean_fisher = levels**2, {}, {}, {}
print("difference             F of clean data   KL exact   from F at 40 levels   half of it above sigma")
for name, r in rivals.items():
    nodes = [(sigma, *on_grid(data.noised(1.0, sigma), float(8 + 5 * sigma), 160)) for sigma in levels]
    F = torch.stack([
        score_matching.explicit_loss(r.noised(1.0, s).score, data.noised(1.0, s).score, x, w) for s, x, w in nodes
    ])
    x, w = on_grid(data, 8.0)
    exact, clean = w @ (data.log_prob(x) - r.log_prob(x)), score_matching.explicit_loss(r.score, data.score, x, w)
    total, seen[name] = divergence_over(q, F), q * F / 2
    below = [float(divergence_over(q[: k + 1], F[: k + 1])) for k in range(40)]
    halfway[name] = [float(s) for s in numpy.interp([0.01 * total, total / 2, 0.98 * total], below, levels)]
    print(f"{name:21}  {float(clean):15.1e}   {float(exact):8.3f}   {float(total):19.3f}   {halfway[name][1]:22.1f}")
    clean_fisher[name] = float(clean)
    assert abs(total - exact) < 0.002
first, _, last = halfway["shares of the groups"]
middles = [data.given(y).weights @ data.given(y).means for y in (0, 1)]
print(f"shares of the groups: 1 % below sigma = {first:.1f}, 2 % above {last:.0f}; groups {float((middles[0] - middles[1]).norm()):.1f} apart")
print(f"F of clean data, width over shares: {clean_fisher['width of a blob'] / clean_fisher['shares of the groups'] / 1e6:.0f} million")

# %% tags=["hide-input"]
some = torch.logspace(-1, 1, 13, dtype=torch.float64).tolist()
forget = torch.stack([steps_to_forget(sigma, 0.1 * (sigma**2 + 0.5)) for sigma in some])
print(f"{'sigma':24}" + "".join(f"{sigma:8.1f}" for sigma in some[4::2]))
print(f"{'steps between the groups':24}" + "".join(f"{float(steps):8,.0f}" for steps in forget[4::2, 0]))
with plotting.style():
    figure, axes = plotting.plt.subplots(1, 2, figsize=(8.4, 2.9))
    for name, colour, place in zip(rivals, (orange, blue, green), ((7, 0.48), (7, 0.42), (7, 0.36)), strict=True):
        axes[0].semilogx(levels, 2 * seen[name], color=colour, linewidth=2)
        axes[0].text(*place, name, color=colour)
    axes[0].set(xlabel="noise level $\\sigma$", ylabel="nats per e-fold of $\\sigma$", title="what slopes see of a difference", xlim=(0.02, 100))
    axes[1].loglog(some, forget[:, 0], color=orange, linewidth=2)
    axes[1].loglog(some, forget[:, 1], color=blue, linewidth=2)
    axes[1].text(0.6, 3e4, "between the groups", color=orange)
    axes[1].text(0.03, 60, "inside the groups", color=blue)
    axes[1].set(xlabel="noise level $\\sigma$", title="Langevin steps to forget the start", ylabel="steps", xlim=(0.02, 100))
    assert round(float(forget[-1, 0])) == 11
    assert float(forget[0, 0]) > 1e6 and float(forget[:, 1].max()) < 100
    assert all(a > b for a, b in zip(forget[:-1, 0], forget[1:, 0], strict=True))
    shown = plotting.show(figure, "04_what_slopes_see", alt="Two panels over the noise level, logarithmic. Left, three humps: the width of a blob is seen at little noise, the shares of two neighbouring blobs at more, the shares of the groups at most. Right, the steps to forget the start: inside the groups some tens at every level, between the groups millions at 0.1, falling to about ten at 10.")
shown
# %% [markdown]
# *Left: $q F$ for three pairs of densities; on this axis the areas are their KL divergences. Here each difference is seen at noise about as wide as what differs. Right: after
# how many Langevin steps the memory of the start has fallen by $e$, from the two smallest rates of the diffusion; steps of $0.1\, (\sigma^2 + 0.5)$. At much noise the groups are one, and the blue line is its second rate.*
#
# The integral gives the KL divergence to the last digit printed, for all three. Half of the 0.83 nats lie above $\sigma = 3.9$, about half the distance between the groups. The narrower blob is nearly as wrong, by 0.80 nats; its Fisher divergence, on clean data, is nine million times as large.
#
# ## Down the stairs
#
# At $\sigma = 10$ what a walk remembers of its start falls by $e$ in eleven steps; and a mixture keeps its weights at *every* noise level ([chapter 01](01_noising.ipynb#a-mixture-stays-a-mixture)). So begin up there, and go down in small ratios, $\sigma = \sigma_1 > \sigma_2 > \dots > \sigma_L$ (we call a level a *stair*), with some steps on each:
#
# $$ x' = x + a \sigma^2\, \nabla \log p_{\sigma^2}(x) + \sqrt{2 a}\; \sigma\, \varepsilon, \label{eq-annealed-step} $$
#
# *annealed Langevin dynamics* ([Song & Ermon (2019)](https://arxiv.org/abs/1907.05600)). At much noise the slope is about $1 / \sigma$ in each direction; a length $a \sigma^2$ keeps step and stair in proportion.

# %% tags=["hide-input"]
a, sigma = 0.3, ladder[1]
shake = torch.randn(high.shape, generator=seeded(8), dtype=torch.float64)
x = high + a * sigma**2 * data.noised(1.0, sigma).score(high) + math.sqrt(2 * a) * sigma * shake
torch.testing.assert_close(langevin.annealed(noisy_slope, high, [sigma], a, 1, seeded(8)), x)

# %% [markdown]
# Is it the crossing at much noise that does it? Let *all* walkers come from the left group, plus the noise of the stair on which they begin, lower and lower ($a = 0.1$). If so, the smallest rate $\lambda$ above 0 of each stair (here no log-SNR) predicts how much of the error is left: $K$ steps of length $c$ leave $e^{-K c \lambda}$ of it.

# %% tags=["hide-input"]
def rate_of(sigma):
    return 1 / float(steps_to_forget(sigma, 1.0, 80)[0])


left_group, found = data.given(0).sample(2000, seeded(11))[0], []
rates = torch.tensor([rate_of(sigma) for sigma in ladder])
print("begins at   share of the right group   predicted")
for k in (0, 3, 5, 7, 9, 11, 13):
    begin = left_group + ladder[k] * torch.randn(2000, 2, generator=seeded(12), dtype=torch.float64)
    share = right_share(langevin.annealed(noisy_slope, begin, ladder[k:], 0.1, 20, seeded(13)))
    passed = sum(20 * 0.1 * sigma**2 * rate for sigma, rate in zip(ladder[k:], rates[k:], strict=True))
    found.append((ladder[k], share, 0.8 * (1 - math.exp(-float(passed)))))
    print("{:9.1f}   {:24.2f}   {:9.2f}".format(*found[-1]))
print(f"largest difference {max(abs(share - predicted) for _, share, predicted in found):.2f}")
assert round(found[0][0]) == 10 and abs(found[0][1] - 0.79) < 0.005

# %% tags=["hide-input"]
few = {}
for count in (2, 5, 10, 20):
    fewer = torch.logspace(1, -1, count, dtype=torch.float64).tolist()
    few[count] = right_share(langevin.annealed(noisy_slope, high, fewer, 0.3, 400 // count, seeded(4)))
print("400 steps from 10 to 0.1, on so many stairs:", ", ".join(f"{count}: {share:.2f}" for count, share in few.items()), "+- 0.01")
assert few[2] < 0.65 < few[5] < 0.785 and abs(few[10] - 0.8) < 0.03 and few[20] == right_share(walkers["400 steps on 20 noise levels"])
# %% [markdown]
# One rate a stair predicts the shares to 0.04 (with few and shorter steps it misses more). Walks that begin below $\sigma = 1$ stay where they began. So begin where walks cross: from 10, wider than the groups are apart, 0.79 end on the right. Nor does the top alone do it: at $\sigma = 10$ there are no groups to hold a share. On two stairs, 10 and 0.1, 400 steps give 0.59; on ten 0.79.
# %% [markdown]
# ## The slope must be learned
#
# One has points, and no slope. Noise $x_0$ yourself, and let a network $s$ guess, from $x = x_0 + \sigma \varepsilon$, the slope of the *one* bell around $x_0$, which is $-\varepsilon / \sigma$. At best it answers the average over all $x_0$ that may lie under $x$, and that is the score of the noisy data ([chapter 01](01_noising.ipynb#one-thing-under-four-names)). In $d$ dimensions the square splits as there:
#
# $$ \mathbb E \Big\| s(x_0 + \sigma \varepsilon) + \frac{\varepsilon}{\sigma} \Big\|^2 = \mathbb E \big\| s - \nabla \log p_{\sigma^2} \big\|^2 + \frac{d}{\sigma^2} - \mathbb E \big\| \nabla \log p_{\sigma^2} \big\|^2. \label{eq-denoising-score} $$
#
# Left, *denoising score matching* ([Vincent (2011)](https://doi.org/10.1162/NECO_a_00142)), a loss that you can compute. Right, averages over noisy points: the Fisher divergence that you want, and a floor that no network changes. With the score of our exchanged shares in the place of the network:

# %% tags=["hide-input"]
sigma, noisy = 2.0, data.noised(1.0, 2.0)
x_0, eps = data.sample(40_000, seeded(18))[0], torch.randn(40_000, 2, generator=seeded(19), dtype=torch.float64)
rival, x = swapped.noised(1.0, sigma).score, x_0 + sigma * eps
points, weights = on_grid(noisy, 20.0)
floor = 2 / sigma**2 - weights @ noisy.score(points).square().sum(1)
wanted = score_matching.explicit_loss(rival, noisy.score, points, weights)
each = (rival(x) + eps / sigma).square().sum(1)
torch.testing.assert_close(score_matching.denoising_loss(rival, x_0, eps, sigma), each.mean())
error = float(each.std()) / 200
print(f"denoising loss {float(each.mean()):.3f} +- {error:.3f}; Fisher divergence {float(wanted):.3f} + constant {float(floor):.3f}")
assert abs(float(each.mean() - wanted - floor)) < 3 * error

# %% [markdown]
# One network for all levels gets $\sigma$ as an input, and each level's loss the weight $\sigma^2$: then all ask for the noise, as in [chapter 00](00_start_here.ipynb). We train it, and the same network at the one level $\sigma = 0.3$. (The *energy distance* of two samples, printed below, is near 0 if they come from one density.)

# %% tags=["hide-input"]
class Slope(torch.nn.Module):
    """A score of noisy points, (N, 2) and sigma -> (N, 2)."""

    def __init__(self, width=64):
        super().__init__()
        sizes = (3, width, width, 2)
        layers = [torch.nn.Linear(*pair) for pair in zip(sizes[:-1], sizes[1:], strict=True)]
        self.layers = torch.nn.Sequential(layers[0], torch.nn.SiLU(), layers[1], torch.nn.SiLU(), layers[2])

    def forward(self, x, sigma):
        sigma = torch.as_tensor(sigma).to(x).expand(len(x), 1)
        return self.layers(torch.cat([x / (9 + sigma**2).sqrt(), sigma.log()], 1)) / sigma


# %% tags=["hide-input"]
def trained(low, high, steps=1200, batch=384):
    """Denoising score matching at levels from low to high, even in log sigma."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Slope()
    generator = seeded(0)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.01 * (1 - step / steps)
        clean = data.sample(batch, generator)[0].float()
        noise, u = torch.randn(batch, 2, generator=generator), torch.rand(batch, 1, generator=generator)
        level = low ** (1 - u) * high**u
        loss = score_matching.denoising_loss(lambda x, level=level: network(x, level), clean, noise, level, level[:, 0] ** 2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.double().requires_grad_(False)


one_level, all_levels = trained(0.3, 0.3), trained(0.1, 10.0)

# %% tags=["hide-input"]
def report(x, name):
    apart = metrics.energy_distance(x, fresh)
    print(f"{name:44} right group {right_share(x):.2f}, energy distance {apart:.3f}")
    return right_share(x), apart


def relative_error(network, sigma, x):
    """Root mean square error of a slope, over its root mean square size."""
    exact = data.noised(1.0, sigma).score(x)
    return float(((network(x, sigma) - exact).square().sum() / exact.square().sum()).sqrt())


off, fresh = {}, data.sample(1000, seeded(14))[0]
print("relative error of the slope       where the noisy data are   where walks start")
for name, network, sigma, spread_out in (("one level, sigma = 0.3", one_level, 0.3, 3.0), ("all levels, at sigma = 10", all_levels, 10.0, 10.0),
                                        ("all levels, at sigma = 0.3", all_levels, 0.3, 3.0)):
    seen = data.noised(1.0, sigma).sample(4000, seeded(20))[0]
    begin = spread_out * torch.randn(4000, 2, generator=seeded(21), dtype=torch.float64)
    off[name] = relative_error(network, sigma, seen), relative_error(network, sigma, begin)
    print("{:33} {:25.2f}   {:17.2f}".format(name, *off[name]))

# %% tags=["hide-input"]
learned = {
    "exact slope, walked at 0.3": langevin.unadjusted(lambda x: noisy_slope(x, 0.3), starts, 0.03, 400, seeded(22)),
    "learned at 0.3, walked at 0.3": langevin.unadjusted(lambda x: one_level(x, 0.3), starts, 0.03, 400, seeded(22)),
    "learned at all levels, walked at 0.3": langevin.unadjusted(lambda x: all_levels(x, 0.3), starts, 0.03, 400, seeded(22)),
    "learned at all levels, walked down": langevin.annealed(all_levels, high, ladder, 0.3, 20, seeded(22)),
}
for name, x in learned.items():
    report(x, name)

# %% tags=["hide-input"]
still, crossed = {}, {}
for name, slope in (("exact slope", noisy_slope), ("one level", one_level), ("all levels", all_levels)):
    downhill, from_left = starts, data.noised(1.0, 0.3).given(0).sample(1000, seeded(31))[0]
    for _ in range(1000):
        downhill = downhill + 0.03 * slope(downhill, 0.3)
    still[name] = right_share(downhill)
    crossed[name] = right_share(langevin.unadjusted(lambda x, s=slope: s(x, 0.3), from_left, 0.03, 400, seeded(33)))
    print(f"{name:11} at 0.3: without noise {still[name]:.2f} go right; of those that start on the left {crossed[name]:.2f} cross")
assert still["one level"] - still["exact slope"] > 0.08 > 0.05 > right_share(learned["learned at 0.3, walked at 0.3"]) - still["one level"] > 0
assert crossed["exact slope"] < 0.01 and crossed["all levels"] < 0.05 < crossed["one level"] < 0.2

# %% tags=["hide-input"]
across = torch.stack([torch.linspace(-8, 8, 200), torch.zeros(200)], 1).double()
with plotting.style():
    figure, axes = plotting.plt.subplots(1, 2, figsize=(8.4, 2.7), sharex=True)
    for panel, network, sigma in zip(axes, (one_level, all_levels), (0.3, 3.0), strict=True):
        exact = data.noised(1.0, sigma)
        panel.plot(across[:, 0], exact.score(across)[:, 0], color="black", linestyle="dashed", linewidth=1)
        panel.plot(across[:, 0], network(across, sigma)[:, 0], color=orange, linewidth=2)
        density = exact.log_prob(across).exp()
        bottom, top = panel.get_ylim()
        panel.fill_between(across[:, 0], bottom, bottom + 0.35 * (top - bottom) * density / density.max(), color=grey, alpha=0.4, linewidth=0)
        panel.set(xlabel="$x_1$", title=f"noise level {sigma:g}", ylim=(bottom, top))
    axes[0].set_ylabel("slope along $x_1$, at $x_2 = 0$")
    valley = (across[:, 0] > -2) & (across[:, 0] < 1)
    assert one_level(across[valley], 0.3)[:, 0].abs().max() < 0.5 * noisy_slope(across[valley], 0.3)[:, 0].abs().max()
    shown = plotting.show(figure, "04_learned_slope", alt="Two panels of the slope along a line through both groups. Left, noise level 0.3: in the empty valley the exact slope, dashed, runs down, jumps up and runs down again; the learned one, orange, passes smoothly through with a third of the height. At the right end they part, too. Right, noise level 3: the two curves have the same course and are close in the right half, and the density, grey, covers the valley.")
shown
# %% [markdown]
# *The slope along a line through both groups: exact (dashed) and learned (orange); grey: where the data are. At little noise (left) the learned one follows roughly where data are, and not in the valley. At much noise (right) there are data everywhere.*
#
# A loss averages over the data, so nobody corrects a network where none come. At one level it is off by 0.43 of the slope's size on the data, and by 0.80 where walks begin (with two other seeds less, still in this order). So 0.74 end on the right, by an error that happens to help (with two other seeds less): the network parts the walkers elsewhere, and in the valley, where it has less than half of the exact slope, some cross. The network of
# all levels gets 0.68 if it is walked at 0.3 only, and 0.81 if it is walked *down*. So the walk mends the shares; the training on all levels lets each slope be learned where its walk passes (at $\sigma = 10$ it is off by 0.06 where the walk begins).
#
# ## Three failures, one cure
#
# Three things go wrong at one level of little noise. On a thin curve the slope is one over the width, and steps are as short as its square ([Deeper](#deeper-along-a-thin-curve)). The other two, with the same slopes in both columns:

# %% tags=["hide-input"]
print("                                                  at 0.3 only   down the levels")
for name, pair in (("network of all levels: error where walks begin", [off[f"all levels, at sigma = {sigma}"][1] for sigma in (0.3, 10)]),
                   ("network of all levels: share, of 0.80", [right_share(learned[f"learned at all levels, walked {how}"]) for how in ("at 0.3", "down")]),
                   ("exact slope: share, of 0.80", [right_share(learned["exact slope, walked at 0.3"]), right_share(walkers["400 steps on 20 noise levels"])])):  # fmt: skip
    print("{:47}   {:11.2f}   {:15.2f}".format(name, *pair))

# %% [markdown]
# Noise fills the space, so steps may be long. Noise brings data to where walks pass, so the slope is learned there. And noise joins what is apart, so the weights are in the slope.
#
# **What is exact, and what is not.** $\eqref{eq-energy-score}$, $\eqref{eq-fisher-divergence}$, $\eqref{eq-kl-over-levels}$ and $\eqref{eq-denoising-score}$ are exact (for densities whose integrals exist). The times to forget are those of the diffusion (short steps), on a grid, to a tenth. The walk down is approximate: with twenty thousand walkers the opening's share is still short of 0.80, by one or two hundredths, and by less on finer stairs (in the tests). That noise restores the weights assumes a start where walks cross, small ratios, and slopes that are right on the way. All numbers above are of this mixture, in the plane: in sixteen dimensions, on a wide group and a narrow one, the opening's walk fell shorter.
#
# ## In practice
#
# | if you | do | because |
# |---|---|---|
# | sample by Langevin at one level | judge by the shares of far groups, from two starts | each group looked right after a hundred steps; the shares were those of the start after ten thousand |
# | write the step | $c$ times the slope, noise of variance $2c$; or $c / 2$ and $c$ | noise of variance $c$ with $c$ times the slope samples $p^2 / Z$ |
# | choose the highest noise level | wider than the groups are apart; for DDIM, much wider | DDIM from $\sigma = 10$ stayed at 0.76 of 0.80 on finer stairs, from 100 it came to 0.80 (Deeper) |
# | walk down levels | small ratios; shake *and* fall (an SDE); if you only shake, keep $a$ on finer stairs | at forty slopes, shaking alone had 0.71 of 0.80, shaking and falling 0.78 (Deeper) |
# | look at a loss at one noise level | compare two networks on the same noise (the floor drops out), and look at the other levels | on clean data, exchanged shares cost three millionths |
#
# ## Exercises
#
# Write your answer where the function says `raise NotImplementedError("your turn")`, run the cell, then run the check
# below it.

# %% [markdown]
# ### Exercise 4.1 (easy): which density is it?
#
# Somebody's code steps by $x' = x + u\, \nabla \log p(x) + \sqrt{v}\; \varepsilon$. For short steps it samples $p^k / Z$. Return the exponent $k$, for numbers $u, v > 0$.
#
# <details><summary>Hint</summary>
#
# Which length $c$ has a Langevin step with this noise? By which factor is the slope too large for it?
#
# </details>

# %% tags=["exercise"]
def exponent(u, v):
    ### BEGIN SOLUTION
    return 2 * u / v
    ### END SOLUTION


# %%
exercises.check("4.1", exponent)

# %% [markdown]
# ### Exercise 4.2 (medium): how long may a step be?
#
# On data $\mathcal N(0, v)$ a Langevin step of length $c$ is $x' = (1 - c / v)\, x + \sqrt{2c}\, \varepsilon$. In the long run the walkers have a variance larger than $v$. Return the $c$ for which it is $(1 + b)\, v$ exactly, for $b > 0$; `v` is a tensor (one variance for each coordinate), and so is the answer.
#
# <details><summary>Hint</summary>
#
# In the long run the variance of $x'$ is that of $x$. That is one equation for it.
#
# </details>

# %% tags=["exercise"]
def step_for_bias(v, b):
    ### BEGIN SOLUTION
    return 2 * v * b / (1 + b)  # the variance is v / (1 - c / (2 v))
    ### END SOLUTION


# %%
exercises.check("4.2", step_for_bias)

# %% [markdown]
# ### Exercise 4.3 (hard): what your noise levels see
#
# Training sees noise levels from $\sigma_1$ to $\sigma_2$ only, $\sigma_1 < \sigma_2$. The data are $p = \mathcal N(m, v)$ on the line and the model is $r = \mathcal N(n, w)$; all six arguments are numbers. Return how many nats of $\mathrm{KL}(p \,\|\, r)$ are seen there, $\frac12 \int F\, dq$ over those levels.
#
# <details><summary>Hint</summary>
#
# What is $\frac12 \int F\, dq$ from a level up to infinity? Both densities are noised, $\mathcal N(m, v + q)$ and $\mathcal N(n, w + q)$ with $q = \sigma^2$, and $\mathrm{KL}(\mathcal N(m, v) \,\|\, \mathcal N(n, w)) = \frac12 \big( \log \frac wv + \frac{v + (m - n)^2}{w} - 1 \big)$.
#
# </details>

# %% tags=["exercise"]
def nats_seen(m, v, n, w, sigma_1, sigma_2):
    ### BEGIN SOLUTION
    def kl(q):  # up to a constant
        return (math.log((w + q) / (v + q)) + (v + q + (m - n) ** 2) / (w + q)) / 2

    return kl(sigma_1**2) - kl(sigma_2**2)
    ### END SOLUTION


# %%
exercises.check("4.3", nats_seen)

# %% [markdown]
# ### Exercise 4.4 (research): nats from losses
#
# Two networks are true scores of two models, $r$ and $u$, at every noise level. You do not know the score of the data, but you have both networks' losses $\eqref{eq-denoising-score}$ at falling levels $\sigma_1 > \dots > \sigma_n$, high and low enough that nothing is missed: tensors `loss_r`, `loss_u`, `sigmas`. By how many nats a point is $r$ the better model, $\mathbb E_p[\log r(x) - \log u(x)]$? Integrate by the trapezium rule in $q = \sigma^2$.
#
# <details><summary>Hint</summary>
#
# Write $\mathrm{KL}(p \,\|\, u) - \mathrm{KL}(p \,\|\, r)$ with $\eqref{eq-kl-over-levels}$. What does the constant of $\eqref{eq-denoising-score}$ do in a difference? Mind the sign: the levels fall.
#
# </details>

# %% tags=["exercise"]
def better_by(loss_r, loss_u, sigmas):
    ### BEGIN SOLUTION
    return torch.trapezoid(loss_r - loss_u, sigmas**2) / 2  # q falls: the sign turns round
    ### END SOLUTION


# %%
exercises.check("4.4", better_by)

# %% [markdown]
# ## Remember
#
# 1. The score needs no normaliser: $-\nabla f$. A Langevin step is $c$ times it plus noise of variance $2c$; with variance $c$ it samples $p^2 / Z$, in the limit of short steps.
# 2. Slopes at one noise level may be nearly blind: exchanging shares of 0.2 and 0.8 changed them by three millionths in the mean square (of 4.0), at a KL divergence of 0.83 nats. Half the Fisher divergence, integrated over all noise variances, *is* the KL divergence.
# 3. Plain Langevin with short steps is nearly right in the end, and the end may be out of reach: on our groups, errors fell by $e$ in thirty-one steps inside, and in eleven million between.
# 4. Walk down from noise wider than the groups are apart, in small ratios. Every level has the weights, and where noise joins the groups, walkers find them.
# 5. A score is learned without being known, by guessing the noise; the loss has a floor, and where data never come, nothing corrects it.
#
# **Where it comes from.** Noise levels and the three failures: [Song & Ermon (2019)](https://arxiv.org/abs/1907.05600). Denoising score matching: [Vincent (2011)](https://doi.org/10.1162/NECO_a_00142). KL and Fisher divergence along noise: [Lyu (2009)](https://arxiv.org/abs/1205.2629); along an SDE: [Song et al. (2021)](https://arxiv.org/abs/2101.09258). Walks that are blind to weights: [Wenliang & Kanagawa (2020)](https://arxiv.org/abs/2008.10087).

# %% [markdown]
# ## Deeper: every stair twice, and the SDE
#
# *For those who go on to samplers. It adds what a DDIM step has and a Langevin step lacks, the cost of each, and the limit of many levels.*
#
# The opening's walk took many steps. Too many? DDIM of chapter 00 walks down the same levels. In these coordinates $\hat\varepsilon = -\sigma \nabla \log p_{\sigma^2}$ ([chapter 01](01_noising.ipynb#one-thing-under-four-names)), and DDIM's step from $\sigma$ to $\sigma'$ is $-(\sigma - \sigma')\, \hat\varepsilon$. It has no shaking. Annealed Langevin has nothing else. Take both, first the *fall*, then the *shaking*:
#
# $$ x' = x + \sigma (\sigma - \sigma')\, s(x) + \Big[ c\, s(x) + \sqrt{2c}\; \varepsilon \Big], \qquad s = \nabla \log p_{\sigma^2}. \label{eq-fall-and-shake} $$
#
# In short steps, shaking leaves the density of a stair alone, and the fall carries it to the next. With $c = \frac12 (\sigma^2 - \sigma'^2)$ and finer and finer stairs this is the reverse *stochastic differential equation* of [Song et al. (2021)](https://arxiv.org/abs/2011.13456).


# %%
# [eq-fall-and-shake]
def descend(score, x, sigmas, fall, shake, generator):
    """Down the levels; fall: 1 or 0; shake: c, over half the variance that goes; 0 for no shaking."""
    for high, low in zip(sigmas[:-1], sigmas[1:], strict=True):
        c, s = shake * (high**2 - low**2) / 2, score(x, high)
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        x = x + fall * high * (high - low) * s + c * s + math.sqrt(2 * c) * noise
    return x


# %%
schedule = cosine()
alphas = [1 / math.sqrt(1 + sigma**2) for sigma in ladder]
times = torch.stack([schedule.time(-2 * math.log(sigma)) for sigma in ladder])
ddim = draw(kernels.ddim(data.denoiser(schedule), schedule), alphas[0] * high, times) / alphas[-1]
torch.testing.assert_close(descend(noisy_slope, high, ladder, 1, 0, seeded(0)), ddim)

# %% tags=["hide-input"]
def finely(count, top=10.0):
    return torch.logspace(math.log10(top), -1, count + 1, dtype=torch.float64).tolist()


many = torch.randn(10_000, 2, generator=seeded(16), dtype=torch.float64)
noisy_data = data.noised(1.0, 10.0).sample(10_000, seeded(37))[0]
ways = {
    "falls (DDIM)": lambda n: descend(noisy_slope, 10 * many, finely(n), 1, 0, seeded(17)),
    "falls, from sigma = 100": lambda n: descend(noisy_slope, 100 * many, finely(n, 100.0), 1, 0, seeded(17)),
    "falls and shakes (SDE)": lambda n: descend(noisy_slope, 10 * many, finely(n), 1, 1, seeded(17)),
    "falls and shakes, from noisy data": lambda n: descend(noisy_slope, noisy_data, finely(n), 1, 1, seeded(17)),
    "shakes as much, never falls": lambda n: descend(noisy_slope, 10 * many, finely(n), 0, 1, seeded(17)),
    "shakes 5 times a stair (annealed)": lambda n: langevin.annealed(noisy_slope, 10 * many, finely(n // 5 - 1), 0.3, 5, seeded(17)),
}
print("share of the right group, 0.800 +- 0.004, after so many slopes: 40, 160")
cost = {name: [right_share(way(n)) for n in (40, 160)] for name, way in ways.items()}
for name, row in cost.items():
    print(f"{name:34}", "  ".join(f"{share:.3f}" for share in row))
sde, only_falls = cost["falls and shakes (SDE)"], cost["falls (DDIM)"]
assert abs(only_falls[1] - 0.76) < 0.005 and abs(cost["falls, from sigma = 100"][1] - 0.8) < 0.01
assert abs(cost["shakes 5 times a stair (annealed)"][0] - 0.71) < 0.01 and abs(sde[0] - 0.78) < 0.01
assert max(only_falls) < min(sde) and max(sde) < 0.79 < cost["falls and shakes, from noisy data"][1] < 0.808

# %% [markdown]
# At forty slopes the walk that falls and shakes has 0.78, little more than DDIM, and finer stairs do not bring it to 0.80. What it lacks comes from the start, where we took $\mathcal N(0, \sigma^2 I)$ for the noisy data: begun from noisy data it ends at 0.80. The walk that shakes five times a stair lags behind, 0.71. To shake as much *without* falling never gets there: on finer stairs this shaking gets weaker, and the walkers lag behind. So annealed Langevin needs shaking that does not shrink with the stairs.
# Falling alone keeps what was wrong at the start, and ends at 0.76. Shaking forgets some of it; a start at $\sigma = 100$, where it is nearly true, mends it as well. (Under guidance the stairs do *not* keep the shares: [chapter 17](17_what_does_gamma_sample.ipynb#what-more-noise-mends).)
#
# ## Deeper: one length, another stair
#
# *For those who write the stairs themselves. It adds two slips, one of which hides well.*
#
# The first: one length of step for all stairs. The second: the noise level $\sigma$ taken for a variance. (For the second, $a$ must be shorter than the opening's: the stairs that are really walked have variances little above $\sigma$, and $a$ below one fifth keeps $a \sigma^2 < 2 \sigma$ at $\sigma = 10$.)

# %% tags=["hide-input"]
def mistaken(x, sigma):
    return noisy_slope(x, math.sqrt(sigma))


one_length = high
for sigma in ladder:
    one_length = langevin.unadjusted(lambda z, sigma=sigma: noisy_slope(z, sigma), one_length, 0.05, 20, seeded(4))
slips = {
    "other data": data.sample(1000, seeded(15))[0],
    "annealed Langevin, as in the opening": walkers["400 steps on 20 noise levels"],
    "one length, 0.05, on all stairs": one_length,
    "variance for deviation, annealed Langevin": langevin.annealed(mistaken, high, ladder, 0.1, 20, seeded(4)),
    "variance for deviation, DDIM": descend(mistaken, high, ladder, 1, 0, seeded(4)),
}
reports = {name: report(x, name) for name, x in slips.items()}
wide = [x[x[:, 0] > 0].var(0) for name, x in slips.items() if "annealed" in name]
print("variances in the right group: opening {:.2f}, {:.2f}; with the slip {:.2f}, {:.2f}".format(*torch.cat(wide)))
lowest, shortest = math.sqrt(ladder[-1]), 0.1 * ladder[-1] ** 2
assert (wide[1] > 1.15 * wide[0]).all() and round(lowest, 2) == 0.32 and round(shortest, 3) == 0.001

# %% [markdown]
# With one length the walkers hardly move on the high stairs. The other slip ruins DDIM, whose step is right only for points with the noise that it supposes. In annealed Langevin the shares do not show it: each stair draws walkers to *its* density, whatever noise they have, and the slip only takes other stairs (the square roots). But the lowest of these is 0.32, with steps of 0.001, so the right group is too wide: variances of 1.39 and 1.16, in the opening 1.15 and 0.86. So right shares do not prove that your noise levels are right.
#
# ## Deeper: how long a crossing takes
#
# *For those who ask where the eleven million come from. It adds the generator, its matrix, and the formula for high barriers.*
#
# How does the average of a function $f$ change in a Langevin step? Expand $f$ to second order; the noise has variance $2c$ in each direction, so the second derivatives count once:
#
# $$ \lim_{c \to 0} \frac{\mathbb E[f(x')] - f(x)}{c} = \nabla \log p(x) \cdot \nabla f(x) + \Delta f(x). \label{eq-langevin-generator} $$
#
# The right side is linear in $f$: on a grid it is a matrix. Its eigenvalues are $0$ (for constants) and then $-\lambda_1, -\lambda_2, \dots$: errors along the eigenvectors fade like $e^{-\lambda n c}$ after $n$ short steps. `langevin.relaxation_rates` makes the matrix as a walk from cell to cell that leaves $p$ alone exactly, so the grid cannot invent a drift.

# %%
def f(x):
    return torch.sin(x[:, 0]) + x[:, 0] * x[:, 1]


x = torch.tensor([[0.4, -0.3]], dtype=torch.float64)
slope = torch.tensor([[math.cos(0.4) - 0.3, 0.4]], dtype=torch.float64)  # grad f; its Laplacian is -sin(x_1)
right_side = (data.score(x) * slope).sum() - math.sin(0.4)
nodes = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0]).double() * 3**0.5] * 2)
nodes = torch.cat([nodes, math.sqrt(3) * torch.tensor([[1, 0], [-1, 0], [0, 1], [0, -1], [0, 0]]).double()])
chances = torch.tensor([1 / 36] * 4 + [1 / 9] * 4 + [4 / 9], dtype=torch.float64)  # Gauss-Hermite, 3 by 3
for c in (1e-2, 1e-3, 1e-4):
    left_side = (chances @ f(x + c * data.score(x) + math.sqrt(2 * c) * nodes) - f(x)[0]) / c
    print(f"c = {c:g}: {float(left_side):.4f}, generator {float(right_side):.4f}")
assert abs(left_side - right_side) < 1e-3
bell = GaussianMixture([1.0], torch.zeros(1, 1).double(), [[[0.7]]])
rates = langevin.relaxation_rates(bell.log_prob, [-5.0], [5.0], [400], 4)
print("N(0, 0.7):", rates.numpy().round(3), "exact: multiples of", round(1 / 0.7, 3))
torch.testing.assert_close(rates, torch.arange(4).double() / 0.7, rtol=2e-3, atol=1e-9)

# %% [markdown]
# On the line, with a small well and a large one farther and farther apart, the walk still crosses often enough to be measured, at first:


# %% tags=["hide-input"]
def two_wells(apart):
    return GaussianMixture([0.2, 0.8], torch.tensor([[-apart / 2], [apart / 2]]).double(), [[[0.5]], [[1.0]]])


def missing(wells, x):
    """How much the share of the right well lacks."""
    return 0.8 - float(wells.class_log_prob(x, 1).exp().mean())


waits, fallen = {}, {}
print("apart   barrier (nats)   steps to fall by e   measured: falls to")
for apart in (3.0, 4.0, 5.0, 6.0, 7.0, 8.0):
    wells = two_wells(apart)
    line = torch.linspace(-apart / 2, apart / 2, 999)[:, None].double()
    barrier = float(wells.log_prob(line).max() - wells.log_prob(line).min())
    rate = float(langevin.relaxation_rates(wells.log_prob, [-apart / 2 - 6], [apart / 2 + 7], [800])[1])
    wait, text = 1 / (0.02 * rate), ""
    if wait < 1000:
        early = langevin.unadjusted(wells.score, wells.given(0).sample(4000, seeded(9))[0], 0.02, round(wait / 2), seeded(10))
        late = langevin.unadjusted(wells.score, early, 0.02, round(wait), seeded(11))
        fallen[apart] = missing(wells, late) / missing(wells, early)
        text = f"{fallen[apart]:.2f} +- 0.02 (1 / e = {1 / math.e:.2f})"
    waits[apart] = wait
    print(f"{apart:5g}   {barrier:14.1f}   {wait:18.0f}   {text}")

# %% [markdown]
# In the two rows that can be walked here, theory and walk agree. Each further unit of distance multiplies the wait by more than the one before.
#
# For high barriers there is a formula, due to [Kramers (1940)](https://doi.org/10.1016/S0031-8914%2840%2990098-2). With $V = -\log p$, the two wells at $a$ and $b$ and the top between them,
#
# $$ \lambda_1 \approx \sum_{w = a, b} \frac{1}{2\pi} \sqrt{V''(w)\; |V''(\text{top})|}\;\; e^{-(V(\text{top}) - V(w))}. $$

# %% tags=["hide-input"]
def curvature(wells, x):
    return float(-wells.hessian(x)[0, 0, 0])


print("apart   wait by the grid / Kramers'")
for apart in (6.0, 8.0, 10.0):
    wells = two_wells(apart)
    line = torch.linspace(-apart / 2 - 1, apart / 2 + 1, 40_001)[:, None].double()
    V = -wells.log_prob(line)
    inner = slice(int(V[:20_000].argmin()), 20_000 + int(V[20_000:].argmin()) + 1)
    ends, top = (inner.start, inner.stop - 1), inner.start + int(V[inner].argmax())
    kramers = sum(
        math.sqrt(curvature(wells, line[[w]]) * abs(curvature(wells, line[[top]]))) / (2 * math.pi) * math.exp(V[w] - V[top])
        for w in ends
    )
    exact = float(langevin.relaxation_rates(wells.log_prob, [-apart / 2 - 6], [apart / 2 + 7], [1200])[1])
    print(f"{apart:5g}   {kramers / exact:.2f}")

# %% [markdown]
# The exponent is right; on these wells the wait is longer than the formula's by a factor of 1.3, and stays so: two Gaussians meet in a kink that sharpens as they part, and the formula takes the top for a parabola. (The more the widths differ, the larger the factor.)
#
# ## Deeper: what a finite step costs, and how to correct it
#
# *For those who use Langevin steps as they are, or as correctors. It adds the bias of a step, exactly on a Gaussian, and Metropolis' correction.*
#
# On $\mathcal N(0, v)$ a step is $x' = (1 - c / v)\, x + \sqrt{2 c}\, \varepsilon$. Ask that the variance $V$ stays: $V = (1 - c / v)^2\, V + 2c$, so
#
# $$ V = \frac{v}{1 - c / (2v)}. \label{eq-langevin-bias} $$
#
# The bias is of first order, $c / (2v)$ of the variance. From $c = 2v$ on the walk grows without limit: the *narrowest* direction limits the step.


# %%
# [eq-langevin-bias]
def walked_variance(v, c):
    """Where the variance of Langevin steps of length c on N(0, v) ends."""
    return v / (1 - c / (2 * v))


variance = torch.tensor(0.0, dtype=torch.float64)
for _ in range(500):
    variance = (1 - 0.3 / 0.7) ** 2 * variance + 2 * 0.3
torch.testing.assert_close(variance, torch.tensor(walked_variance(0.7, 0.3)).double())

# %% [markdown]
# The cure for one level: take the step as a *proposal*, from the Gaussian $k(x' \mid x)$ of a step, and accept it with the probability
#
# $$ A(x' \mid x) = \min\Big( 1,\; \frac{p(x')\, k(x \mid x')}{p(x)\, k(x' \mid x)} \Big), \qquad k(x' \mid x) = \mathcal N\big(x';\; x + c\, \nabla \log p(x),\; 2c\, I\big), \label{eq-metropolis} $$
#
# else stay. Then as many walkers go from $x$ to $x'$ as come back, if they have the density $p$: $p(x)\, k(x' \mid x)\, A(x' \mid x)$ is the smaller of two numbers that exchange their roles. So $p$ is left alone exactly, for any $c$. ($Z$ drops out again. But it needs $\log p$ itself, which a network of slopes does not have.)

# %% tags=["hide-input"]
start_right, exact = right.sample(1000, seeded(26))[0], float(right.covs.diagonal(dim1=1, dim2=2).sum(1) @ right.weights)
middle = right.weights @ right.means
exact += float(right.weights @ (right.means - middle).square().sum(1))
plain, adjusted = {}, {}
print(f"variance of the right group {exact:.2f}\n   c   unadjusted       adjusted         accepted")
for c in (0.02, 0.1, 0.3, 0.45):
    steps = round(12 / c)
    plain[c] = metrics.with_error(spread, langevin.unadjusted(right.score, start_right, c, steps, seeded(27)))
    ends, taken = langevin.metropolis_adjusted(right.log_prob, right.score, start_right, c, steps, seeded(27))
    adjusted[c] = metrics.with_error(spread, ends)
    print("{:5} {:7.2f} +- {:.2f}  {:7.2f} +- {:.2f}  {:12.2f}".format(c, *map(float, (*plain[c], *adjusted[c], taken))))
    assert abs(adjusted[c][0] - exact) < 3 * adjusted[c][1]

# %% [markdown]
# Unadjusted, the spread grows with the step; adjusted, it stays within three standard errors, and more and more steps are refused.
#
# ## Deeper: two losses without noise
#
# *For those who want the score of clean data, or read older papers. It adds implicit and sliced score matching, and the price of little noise.*
#
# In the Fisher divergence of a network $s$ to $p$, the mixed term is $\int p\; s \cdot \nabla \log p = \int s \cdot \nabla p = -\int p\; \nabla \cdot s$, by parts, if $p\, s$ vanishes far out:
#
# $$ \mathbb E \big\| s - \nabla \log p \big\|^2 = \mathbb E \Big[ \|s(x)\|^2 + 2\, \nabla \cdot s(x) \Big] + \mathbb E \big\| \nabla \log p \big\|^2 . \label{eq-implicit-score} $$
#
# *Implicit* score matching ([Hyvärinen (2005)](https://jmlr.org/papers/v6/hyvarinen05a.html)): a loss from points alone, without noise. The divergence costs $d$ derivatives, though. A random direction $v$ with mean 0 and covariance $I$ needs one, *sliced* ([Song et al. (2019)](https://arxiv.org/abs/1905.07088)):
#
# $$ \nabla \cdot s(x) = \mathbb E_v \big[ v^\top\, \nabla s(x)\, v \big]. \label{eq-sliced-score} $$

# %%
points, weights = on_grid(data, 9.0, 200)
size = weights @ data.score(points).square().sum(1)
for s in (swapped.score, right.score, lambda x: -x / 4):
    explicit = score_matching.explicit_loss(s, data.score, points, weights)
    implicit = score_matching.implicit_loss(s, points, weights).detach()
    torch.testing.assert_close(explicit, implicit + size, rtol=1e-4, atol=1e-6)
at, signs = points[:300], torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
both = [score_matching.sliced_loss(right.score, at, sign.expand_as(at)) for sign in signs]
torch.testing.assert_close((both[0] + both[1]) / 2, score_matching.implicit_loss(right.score, at))

# %% [markdown]
# (Over the four signs in the plane the average over $v$ is exact.) Why then learn from noisy points? And what does little noise cost? The floor of $\eqref{eq-denoising-score}$ grows like $d / \sigma^2$. It drops out when two slopes are compared on the same noise, as a gradient compares them. But in the difference of their losses the noise stays, as $2\, \varepsilon / \sigma$ times the difference of the slopes. A slope that is a tenth too long, against the exact one:

# %% tags=["hide-input"]
print("sigma   Fisher divergence   floor   scatter of the difference: denoising   implicit")
scatter = []
for sigma in (1.0, 0.3, 0.1, 0.03):
    noisy = right.noised(1.0, sigma)
    x_0 = right.sample(5000, seeded(28))[0]
    eps = torch.randn(5000, 2, generator=seeded(29), dtype=torch.float64)
    x = x_0 + sigma * eps
    points, weights = on_grid(noisy, 9 + 5 * sigma)
    floor = 2 / sigma**2 - float(weights @ noisy.score(points).square().sum(1))
    guess, trace = 1.1 * noisy.score(x), 1.1 * noisy.hessian(x).diagonal(dim1=1, dim2=2).sum(1)
    terms = (guess + eps / sigma).square().sum(1)
    others = guess.square().sum(1) + 2 * trace
    wanted = float((guess - noisy.score(x)).square().sum(1).mean())
    exact = noisy.score(x)
    terms = terms - (exact + eps / sigma).square().sum(1)
    others = others - exact.square().sum(1) - 2 * trace / 1.1
    scatter.append((float(terms.std()), float(others.std())))
    print("{:5} {:19.3f} {:7.0f} {:37.1f} {:10.1f}".format(sigma, wanted, floor, *scatter[-1]))
assert round((scatter[-1][0] / scatter[-1][1]) ** 2, -1) == 140

# %% [markdown]
# The walk needs the slopes of noisy data anyway, and their loss needs no derivatives. But at $\sigma = 0.03$ the difference scatters by 13.0, the implicit one by 1.1: that is some 140 times as many points for the same certainty, and the factor grows like $1 / \sigma^2$. The weight $\sigma^2$ does not change it, since it multiplies
# difference and scatter alike.
#
# ## Deeper: along a thin curve
#
# *For those who think of pictures as a thin set. It adds how the number of steps grows as the set gets thinner.*
#
# Across a curve of width $w$ the walk must not step farther than $w$, so $c$ is a fraction of $w^2$ (by $\eqref{eq-langevin-bias}$, on a straight line the walk grows without limit from $c = 2 w^2$ on). *Along* the curve it diffuses as on a line, and its length does not shrink with $w$. The rates on the long arc of chapter 01, by the grid:

# %% tags=["hide-input"]
thin = {}
for width in (0.4, 0.2, 0.1):
    arc = curves.two_arcs(width=width, parts=60).given(0)
    cells = round(10 / width)
    rate = langevin.relaxation_rates(arc.log_prob, (-2.2 - 3 * width,) * 2, (2.1 + 3 * width,) * 2, (cells, cells))[1]
    thin[width] = 1 / float(rate * width**2 / 2)
    print(f"width {width}: rate {float(rate):.2f}, steps of width^2 / 2 to forget: {thin[width]:.0f}")

# %% [markdown]
# The rate hardly changes; the steps grow like $1 / w^2$.
#
# On both arcs, 0.03 wide, 400 steps on the clean slope leave the walkers far from the data, and as many on noise levels bring them there:

# %% tags=["hide-input"]
arcs, normal = curves.two_arcs(), torch.randn(1000, 2, generator=seeded(23), dtype=torch.float64)
width, on_arcs = 0.03, arcs.sample(1000, seeded(24))[0]
size = float(arcs.score(on_arcs).square().sum(1).mean().sqrt())
short = langevin.unadjusted(arcs.score, normal, width**2 / 2, 400, seeded(25))
down = torch.logspace(0.5, math.log10(width), 20, dtype=torch.float64).tolist()
stairs = langevin.annealed(lambda x, s: arcs.noised(1.0, s).score(x), down[0] * normal, down, 0.3, 20, seeded(25))
curve = [metrics.energy_distance(x, on_arcs) for x in (short, stairs)]
print(f"root mean square slope {size:.0f}; 1 / width {1 / width:.0f}")
print("arcs, energy distance after 400 steps: on the clean slope {:.3f}, on noise levels {:.3f}".format(*curve))
assert curve[0] > 0.3 and abs(curve[1]) < 0.02
