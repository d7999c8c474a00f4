# %% [markdown]
# # 01 · Noising: why add noise, and what is there to learn from it?
#
# You have pictures and want a machine that makes more of them. A diffusion model begins by burying every picture in
# noise, and then learns to guess what was buried. Why not learn the pictures themselves? And what should a guess look
# like, when many pictures may lie under the same noise?
#
# The short answer: **noise makes data where there were none. And the best guess of what lies under much of it need not look
# like a picture.**
#
# **After this chapter you can**
# * say what noise buys, and show it on data that lie on a thin curve;
# * replace a chain of small steps by one, and write down the exact density and score of a mixture at every noise level;
# * prove that a blurred guess beats one drawn at random, and by how much;
# * turn a guess of the clean point into one of the noise or of the score, and say on what it depends.
#
# **You need** chapter 00, Gaussians in several dimensions, Bayes' rule.
#
# *32 minutes to read, 21 more for Deeper, 15 seconds to run, on a laptop, without a GPU or a network connection.*

# %%
import math

import torch

from difflesson import curves, exercises, kernels, plane, plotting
from difflesson.denoiser import Prediction, network_denoiser
from difflesson.digits import checkpoints, sampling
from difflesson.mixture import GaussianMixture, MixtureDenoiser
from difflesson.samplers import draw, sample, time_grid
from difflesson.schedule import cosine, from_betas, vp_linear

torch.set_num_threads(1)

# %% [markdown]
# ## Where there are no data, there is nothing to learn
#
# Pictures fill hardly any of the space of all pixel values. What is most like it in a plane is a thin curve. Ours has two arcs;
# four points in five belong to the long one. (They are a mixture of 36 narrow Gaussians, so that densities and averages have closed forms.)


# %%
def seeded(number):
    return torch.Generator().manual_seed(number)


data, schedule = curves.two_arcs(), cosine()
points, arc = data.sample(1000, seeded(0))
starts = torch.randn(2000, 2, generator=seeded(1), dtype=torch.float64)
print(f"{len(data.weights)} Gaussians, {data.class_weights()[1]:.0%} of the mass on the short arc")

# %% tags=["hide-input"]
level = data.noised(schedule.alpha(0.45), schedule.sigma(0.45))
ticks = torch.linspace(-2.4, 2.4, 9).double()
lattice = torch.cartesian_prod(ticks, ticks)
walks = torch.stack(list(sample(kernels.ddim(data.denoiser(schedule), schedule), starts[:30], time_grid(100))))  # (101, 30, 2)
grey, blue, orange = (plotting.COLOURS[name] for name in ("unconditional", "conditional", "guided"))
with plotting.style():
    figure, axes = plotting.plt.subplots(1, 3, figsize=(8.6, 3.1), sharex=True, sharey=True)
    axes[0].plot(*points.T, ".", markersize=1.5, color=blue)
    axes[0].plot(0.1, 0.3, "o", color=orange, markersize=5)
    axes[0].text(0.25, 0.22, "which way?", color=orange)
    axes[1].plot(*level.sample(700, seeded(2))[0].T, ".", markersize=1.5, color=grey)
    axes[1].quiver(*lattice.T, *level.score(lattice).T, color=blue, angles="xy", scale_units="xy", scale=4.5, width=0.006)
    for k in range(30):
        axes[2].plot(*walks[:, k].T, color=grey, linewidth=0.8)
    axes[2].plot(*walks[0].T, ".", color=grey, markersize=4)
    axes[2].plot(*walks[-1].T, ".", color=blue, markersize=5)
    for panel, title in zip(axes, ("data", "data with noise, and its slope", "from noise to data"), strict=True):
        panel.set(title=title, xlabel="$x_1$", xlim=(-2.8, 2.8), ylim=(-2.8, 2.8), aspect="equal")
    axes[0].set_ylabel("$x_2$")
    assert float(data.log_prob(walks[-1]).min()) > -9
    shown = plotting.show(figure, "01_why_noise", alt="Three panels. Left: a thousand dots on two thin arcs, a long one that opens to the lower right and a short one inside the opening; an orange dot in the empty middle asks which way. Middle: the same with noise; grey dots fill the plane, and blue arrows on a lattice lead inwards, the longer the farther out. Right: thirty grey lines from scattered starts end in blue dots on the two arcs.")
shown

# %% [markdown]
# *Left: where there are no data, nothing says which way to go. Middle: with noise there are data wherever a walk passes, and
# the slope of the logarithm of their density can be learned there (the arrows are exact). Right: thirty points of pure noise, led by such slopes while
# the noise is lowered, end on the arcs.*
#
# **The direct way** would be: learn where data are denser, and walk uphill. It fails twice. Of the places where a walk may begin, few
# have data nearby, and where nothing was seen, nothing is learned. And even the exact slope, which we have, misleads:
# it is enormous, and where it leads is decided by the place and the shape of the Gaussians, hardly by how much lies on each arc:


# %% tags=["hide-input"]
def uphill(data, x, steps=300):
    for _ in range(steps):  # a step of half the width squared, times the slope of log p
        x = x + 0.5 * 0.03**2 * data.score(x)
    return x


near = torch.cdist(starts, points).min(1).values < 0.1
print(f"starts with one of 1,000 data within 0.1: {float(near.double().mean()):.0%}")
print(f"median slope of log p at a start: {float(data.score(starts).norm(dim=1).median()):.0f}, "
      f"with the noise of the middle panel: {float(level.score(starts).norm(dim=1).median()):.1f}")
shares, ours, walkers = {}, {}, starts[:1000]
for mass in (0.2, 0.8):
    arcs = curves.two_arcs(mass=1 - mass, parts=120)  # the same curve, of nearly round pieces
    noised = draw(kernels.ddim(arcs.denoiser(schedule), schedule), walkers, time_grid(100))
    ends = uphill(arcs, walkers), noised
    shares[mass] = [float(arcs.class_log_prob(end, 1).exp().mean()) for end in ends]
    pieces = curves.two_arcs(mass=1 - mass)
    ours[mass] = float(pieces.class_log_prob(uphill(pieces, walkers), 1).exp().mean())
    print("{:.0%} on the short arc: uphill {:.2f}, through noise {:.2f} +- 0.01".format(mass, *shares[mass]), end="; ")
    print(f"uphill on {len(pieces.weights)} pieces instead of {len(arcs.weights)}: {ours[mass]:.2f}")

# %% tags=["remove-cell"]
assert float(near.double().mean()) < 0.15
assert all(abs(through - mass) < 0.04 for mass, (_, through) in shares.items())
assert all(0.36 < direct < 0.43 for direct, _ in shares.values())
assert all(0.58 < direct < 0.66 for direct in ours.values())

# %% [markdown]
# Here the arcs are made of 180 nearly round pieces. Uphill, the short one gets four walks in ten, whether it holds a fifth of the data or four.
# (With our 36 long pieces it gets six in ten, again for both masses.) Through noise its share is right in both cases, within the scatter.
#
# **What noise changes.** Add noise, and there are data wherever a walk passes. We made each noisy point, so we know which clean one it came from.
# At any place, average the clean points of those that ended there. In this average each arc counts by its mass and by how well it explains the place. With much
# noise all places look alike and the average knows the masses; with little noise it knows the shape of the curve. So begin at much noise, go *a part* of the way towards the average (with the shrinking undone), lower the
# noise a little, and repeat (right panel). How large a part, the sampler says: here DDIM of chapter 00, in 100 steps; [chapter 05](05_every_reverse_process_at_once.ipynb) has others. In one step all walks would end on one spot.
#
# So one thing is to be learned: at each noise level, *the average of what may lie under a noisy point*. That is
# plain least squares. But an average of pictures need be no picture. It looks like a flaw of the
# method, and is the right answer.
#
# ## A thousand small steps are one large step
#
# DDPM adds noise in $T$ small steps. Step $k$ keeps a factor $a_k$, a little below 1, of what it finds, and adds
# independent noise of variance $\beta_k = 1 - a_k^2$ (the number in DDPM's tables): $x_k = a_k\, x_{k-1} + \sqrt{1 - a_k^2}\; \varepsilon_k$. Unfold it. The clean point is multiplied by all factors. The noise of step $k$ is multiplied by all *later* factors, and
# variances of independent noises add up:
#
# $$ \alpha = \prod_k a_k, \qquad \sigma^2 = \sum_k \Big[ (1 - a_k^2) \prod_{j > k} a_j^2 \Big] = 1 - \alpha^2. \label{eq-composed-noise} $$
#
# The sum telescopes: its term is $\prod_{j > k} a_j^2 - \prod_{j \ge k} a_j^2$. And a sum of independent
# Gaussians is a Gaussian. So $x_T$ is distributed as $\alpha x_0 + \sigma \varepsilon$ with *one* noise: a training example at any level costs one draw.

# %%
# [eq-composed-noise]
def composed(a):
    """alpha and sigma^2 of all steps, from their factors (T,), step by step."""
    alpha, variance = 1.0, 0.0
    for a_k in a:
        alpha, variance = a_k * alpha, a_k**2 * variance + (1 - a_k**2)
    return alpha, variance


# %%
betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)  # DDPM's variances, 1 - a^2
kept, variance = composed((1 - betas).sqrt())
chain, dice = points[:1].expand(5000, 2), seeded(3)
for beta in betas:
    noise = torch.randn(5000, 2, generator=dice, dtype=torch.float64)
    chain = (1 - beta).sqrt() * chain + beta.sqrt() * noise
print(f"alpha {float(kept):.4f}, sigma^2 {float(variance):.5f}")
print(f"5,000 walks: variance {float(chain.var(0).mean()):.3f} +- {1 / 5000**0.5:.3f}")
torch.testing.assert_close(variance, 1 - kept**2)
torch.testing.assert_close(from_betas(betas).alpha(1.0), kept)
assert abs(float(chain.var(0).mean()) - 1) < 4 / 5000**0.5

# %% [markdown]
# The end is $\mathcal N(0, I)$ nearly, not exactly: 0.6 % of the picture's amplitude is left. From here on only $\alpha_t$ and $\sigma_t$ matter, with the times $t$ of [chapter 00](00_start_here.ipynb#one-noisy-picture-two-guesses). Which ones, the *schedule* says: this page uses `cosine`; Deeper has DDPM's, and what happens if $\beta_k$ is taken for a deviation.
#
# ## The best guess is no point of the data
#
# What lies under a given $x_t$? Not one point: a cloud, $p(x_0 \mid x_t)$. Take the average of the cloud, $\hat x_0 = \mathbb E[x_0 \mid x_t]$. On the curve, and below it for a digit, by a network that was trained to answer such averages, is not told the label, and drew the digit itself:

# %% tags=["hide-input"]
times = (0.2, 0.4, 0.6, 0.8, 0.9)
network, _ = checkpoints.load("denoiser")
digit = sampling.generate(network, torch.tensor([3, 5, 8]), 1.0, seed=3, sampler="ddim", steps=16)[2:]
pixels = torch.randn(digit.shape, generator=seeded(3))
one, push = torch.tensor([[1.24, -0.12]]).double(), torch.tensor([[-1.02, 0.99]]).double()
spine = [data.means[torch.tensor(data.labels) == y] for y in (0, 1)]

# %% tags=["hide-input"]
edges, plausible = [], []
with plotting.style():
    figure, axes = plotting.plt.subplots(2, 5, figsize=(9.2, 3.5), height_ratios=(1.9, 1))
    for above, below, time in zip(*axes, times, strict=True):
        u = torch.tensor(time, dtype=torch.float64)
        seen = schedule.add_noise(one, push, u)
        under = data.reverse(seen.expand(200, 2), schedule, u, 0.0).sample(seeded(5))
        guess = data.denoiser(schedule)(seen, u).x0
        assert under.shape == (200, 2)
        plausible.append(float(data.log_prob(guess)))
        for line in spine:
            above.plot(*line.T, color="0.75", linewidth=1)
        above.plot(*under.T, ".", color=blue, markersize=2)
        above.plot(*seen[0], "x", color="black", markersize=6)
        above.plot(*guess[0], "o", color=orange, markersize=7, markeredgecolor="white")
        above.set(title=f"$t = {time:g}$", xlim=(-2.1, 2.1), ylim=(-2.1, 2.0), xticks=(), yticks=(), aspect="equal")
        noisy_digit = schedule.add_noise(digit, pixels, u).float()
        answer = network_denoiser(network, schedule)(noisy_digit, u).x0
        edges.append(float(answer.diff(dim=3).square().mean()))
        plotting.show_digits(below, torch.cat([noisy_digit, answer]), columns=2)
    assert max(plausible[1:]) < -50 and edges[-1] < edges[0] / 2 and edges == sorted(edges, reverse=True)
    shown = plotting.show(figure, "01_best_guess", alt="Two rows over five noise levels. Above, the two arcs in grey, a black cross for the noisy point, blue dots for clean points it may come from, and an orange dot for their average. At t = 0.2 the blue dots lie at two neighbouring ends and the average on one of them; from 0.4 on they spread over both arcs, and the average lies in the empty space between. Below, a noisy eight and a network's guess of it: sharp up to 0.6, softer at 0.8, a grey blur at 0.9.")
shown

# %% [markdown]
# *Above: a noisy point (cross), 200 clean points that it may come from (blue), their average (orange). From the second panel on the average
# lies where no data are. Below: a noisy digit and the network's guess. The more may be under the noise, the more it blurs.*
#
# From the second panel on the orange dot is no likely clean point. Is it a bad guess? Let $g$ be *any* guess made from $x_t$, a random one if you like. Given $x_t$, the truth $x_0$ and the
# guess $g$ are independent. So in the square of $(x_0 - \hat x_0) - (g - \hat x_0)$ the mixed term is zero on average, because $x_0 - \hat x_0$ averages to zero given $x_t$:
#
# $$ \mathbb E \|x_0 - g\|^2 = \mathbb E \|x_0 - \hat x_0\|^2 + \mathbb E \|g - \hat x_0\|^2. \label{eq-guess-error} $$
#
# The first term nobody can avoid. The second is what a guess pays for not being the average. And a guess that *looks real*? Draw it
# from the cloud, $g \sim p(x_0 \mid x_t)$. Given $x_t$, it is distributed as $x_0$ is, so the second term equals the first. **A draw from the cloud has exactly twice the error of the average.**


# %%
# [eq-guess-error]
def errors_of(guesses, x0, best):
    """For each guess (N, d): its mean square error, and the sum on the right."""
    floor = (x0 - best).square().sum(1)
    return {
        name: ((x0 - g).square().sum(1).mean(), (floor + (g - best).square().sum(1)).mean())
        for name, g in guesses.items()
    }


# %% tags=["hide-input"]
print("   t  average  drawn  ratio           snapped")
for time in (0.2, 0.4, 0.6, 0.8):
    u = torch.tensor(time, dtype=torch.float64)
    x0, eps = data.sample(20_000, seeded(6))[0], torch.randn(20_000, 2, generator=seeded(7), dtype=torch.float64)
    x_t = schedule.add_noise(x0, eps, u)
    best = data.denoiser(schedule)(x_t, u).x0
    drawn = data.reverse(x_t, schedule, u, 0.0).sample(seeded(8))
    snapped = points[torch.cdist(best, points).argmin(1)]  # the nearest of 1,000 data
    found = errors_of({"average": best, "drawn": drawn, "snapped": snapped}, x0, best)
    error = {name: float(left) for name, (left, _) in found.items()}
    ratio = error["drawn"] / error["average"]
    spread = (x0 - drawn).square().sum(1) - ratio * (x0 - best).square().sum(1)
    scatter = float(spread.std()) / 20_000**0.5 / error["average"]
    print("{:4} {average:8.3f} {drawn:6.3f} {:6.2f} +- {:.2f} {snapped:9.3f}".format(time, ratio, scatter, **error))
    assert all(abs(float(left / right) - 1) < 0.04 for left, right in found.values())
    assert abs(ratio - 2) < 3 * scatter and error["snapped"] > error["average"]

# %% [markdown]
# The ratio is 2 at each of these noise levels, within three standard errors. Snapping the average to the nearest real
# point costs as well: less than a draw if there are many points, perhaps more if there are few. So a *guess* is not better for looking real. Pictures come sharp out of a sampler because it asks again and again while the cloud shrinks.
#
# ## A mixture stays a mixture
#
# Our data are a *mixture of Gaussians*: pick component $k$ with probability $w_k$, then draw from its Gaussian,
#
# $$ p(x) = \sum_k \big[\, w_k\, \mathcal N(x;\, m_k, C_k) \,\big]. \label{eq-mixture} $$


# %%
def bells(x, means, covs):
    """The Gaussian densities of all components, for points (N, 2): (N, K)."""
    away = x[:, None] - means
    square = (away * torch.linalg.solve(covs, away[..., None])[..., 0]).sum(2)
    return torch.exp(-square / 2) / torch.det(2 * math.pi * covs).sqrt()


by_hand = (data.weights * bells(points, data.means, data.covs)).sum(1)
torch.testing.assert_close(data.log_prob(points).exp(), by_hand)

# %% [markdown]
# Now noise it, $x_t = \alpha_t x_0 + \sigma_t \varepsilon$. If $x_0$ comes from component $k$, then $\alpha_t x_0$ is Gaussian with mean $\alpha_t m_k$
# and covariance $\alpha_t^2 C_k$, and independent noise adds $\sigma_t^2 I$. The noise is the same whatever the component, so the weights stay. The noisy points have the density
#
# $$ p_t(x) = \sum_k \Big[ w_k\, \mathcal N\big(x;\, \alpha_t m_k,\; \alpha_t^2 C_k + \sigma_t^2 I\big) \Big]. \label{eq-noised-mixture} $$
#
# So whatever you know about mixtures you know at every noise level. The check does not use this: it averages the noise's bell over 601 times 601 clean points.

# %%
t, x = torch.tensor(0.45, dtype=torch.float64), level.sample(200, seeded(4))[0]
alpha, sigma = schedule.alpha(t), schedule.sigma(t)
axis = torch.linspace(-2.3, 2.3, 601).double()
clean = torch.cartesian_prod(axis, axis)
chance = data.log_prob(clean).softmax(0)  # p(x_0) on the grid, (361201,)
bell = torch.exp(-torch.cdist(x[:20], alpha * clean).square() / (2 * sigma**2))
bell = bell / (2 * math.pi * sigma**2)
noisy = data.noised(alpha, sigma)
torch.testing.assert_close(noisy.log_prob(x[:20]).exp(), bell @ chance, rtol=1e-5, atol=0)

# %% [markdown]
# The gradient of $\log p$, the *score*, says where data get denser. The logarithm of one Gaussian has the slope $C_k^{-1} (m_k - x)$.
# For the sum, $\nabla \log p = \nabla p / p$ weighs these slopes by how probable each component is *at x*:
#
# $$ \nabla \log p(x) = \sum_k \big[\, p(k \mid x)\; C_k^{-1} (m_k - x) \,\big], \qquad p(k \mid x) = \frac{w_k\, \mathcal N(x;\, m_k, C_k)}{\sum_j \big[ w_j\, \mathcal N(x;\, m_j, C_j) \big]}. \label{eq-mixture-score} $$

# %%
leaf = x.clone().requires_grad_()
noisy.log_prob(leaf).sum().backward()
torch.testing.assert_close(noisy.score(x), leaf.grad)

# %% [markdown]
# ### Pitfall: the wrong weights, the wrong level
#
# Two wrong scores: the plain weights $w_k$ for $p(k \mid x)$, and the right formula at the wrong noise level.

# %% tags=["hide-input"]
slopes = torch.linalg.solve(noisy.covs, (noisy.means - x[:, None])[..., None])[..., 0]  # (200, 36, 2)
wrong = {"plain weights": (data.weights[:, None] * slopes).sum(1)}
for other in (0.35, 0.0):
    wrong[f"score of t = {other}"] = data.noised(schedule.alpha(other), schedule.sigma(other)).score(x)
for name, score in wrong.items():
    off = (score - noisy.score(x)).square().sum().sqrt() / noisy.score(x).square().sum().sqrt()
    print(f"{name}: relative error {float(off):.2f}")

# %% [markdown]
# Here the score of $t = 0.35$ is off by half the size of the right one, the clean data's by 200 times.
#
# ## One thing under four names
#
# Least squares finds the average of the cloud. What does this average have to do with the density of noisy points? That density is an average of Gaussians over clean points,
# $p_t(x) = \int p(x_0)\, \mathcal N(x;\, \alpha_t x_0, \sigma_t^2 I)\, dx_0$. Differentiate under the integral. The gradient of this Gaussian in $x$ is the Gaussian times $(\alpha_t x_0 - x) / \sigma_t^2$:
#
# $$ \nabla p_t(x) = \int p(x_0)\, \mathcal N(x;\, \alpha_t x_0, \sigma_t^2 I)\; \frac{\alpha_t x_0 - x}{\sigma_t^2}\, dx_0. $$
#
# Divide by $p_t(x)$. Left stands $\nabla \log p_t(x)$. Right, $p(x_0)$ times the Gaussian, divided by $p_t(x)$, is $p(x_0 \mid x_t = x)$, so $x_0$ becomes its average. Solve for it:
#
# $$ \mathbb E[x_0 \mid x_t = x] = \frac{x + \sigma_t^2\, \nabla \log p_t(x)}{\alpha_t}. \label{eq-tweedie} $$
#
# *Tweedie's formula*. It holds for **every** distribution of clean points; only the noise must be Gaussian. In words: to guess the clean point, add to the noisy one the noise's variance times the score,
# and undo the shrinking.
#
# We try it on what is no mixture, points spread evenly over a square: the average over a fine grid of clean points, and on the other side the density of noisy points by the error function, its slope by autograd:

# %%
def square_density(x, alpha, sigma):
    """Log-density of alpha u + sigma eps, u even over [-1, 1] x [-1, 1]."""
    high, low = (torch.special.ndtr((x + sign * alpha) / sigma) for sign in (1, -1))
    return ((high - low) / (2 * alpha)).log().sum(1)


side = torch.linspace(-1, 1, 4002).double()[:-1] + 1 / 4001  # middles of equal parts
nearness = -(x[:, :, None] - alpha * side).square() / (2 * sigma**2)  # each coordinate by itself
nearness = nearness.softmax(2)
average = (nearness * side).sum(2)
leaf = x.clone().requires_grad_()
square_density(leaf, alpha, sigma).sum().backward()
torch.testing.assert_close((x + sigma**2 * leaf.grad) / alpha, average, rtol=1e-5, atol=1e-6)
both = Prediction.from_score(x, noisy.score(x), alpha, sigma)
torch.testing.assert_close(both.x0, data.denoiser(schedule)(x, t).x0)

# %% [markdown]
# So a network that guesses clean points has learned the score, though it never saw a density. Averages respect $x_t = \alpha_t x_0 + \sigma_t \varepsilon$, so the average noise $\hat\varepsilon$ follows
# from the same number, and so does $\hat v = \alpha_t \hat\varepsilon - \sigma_t \hat x_0$, which many networks answer. By $\eqref{eq-tweedie}$ the score is $(\alpha_t \hat x_0 - x_t) / \sigma_t^2 = -\hat\varepsilon / \sigma_t$.
# If $\alpha_t^2 + \sigma_t^2 = 1$, then $\hat x_0 = \alpha_t x_t - \sigma_t \hat v$, and $\hat\varepsilon$ comes from $\hat v$ in the same way, as exercise 1.2 asks
# ([chapter 00](00_start_here.ipynb#deeper-why-a-guess-of-the-noise-is-a-slope) has the four in one line, [chapter 11](11_classifier_free_guidance.ipynb#two-guesses-are-two-scores) the noise as a score).
#
# On paper, any one gives the others. On a computer, $\hat x_0 = (x_t - \sigma_t \hat\varepsilon) / \alpha_t$ divides by an $\alpha_t$ near 0 at much noise. At little noise $\hat\varepsilon = (x_t - \alpha_t \hat x_0) / \sigma_t$ divides by a $\sigma_t$ near 0. These two from $\hat v$ need no division; Deeper measures it.
#
# ## The only clock
#
# Write the cloud with Bayes' rule and take $\alpha_t^2$ out of the square in the exponent. With $\lambda_t = \log (\alpha_t^2 / \sigma_t^2)$, the log signal-to-noise ratio (so $\alpha_t^2 = 1 / (1 + e^{-\lambda_t})$ if $\alpha_t^2 + \sigma_t^2 = 1$),
#
# $$ p(x_0 \mid x_t) \;\propto\; p(x_0)\, \exp\Big[ -\frac12\, e^{\lambda_t}\, \big\| x_0 - x_t / \alpha_t \big\|^2 \Big]. \label{eq-snr-clock} $$
#
# Of the whole process only two things are left: where the point is once the shrinking is undone, $x_t / \alpha_t$, and $\lambda_t$. Two schedules, or a process that does not shrink at all ($\alpha = 1$, as in EDM), have the same
# cloud, so the same $\hat x_0$ and $\hat\varepsilon$, at the same $\lambda$ and the same $x_t / \alpha_t$:

# %%
# [eq-snr-clock]
def cloud(log_prior, x_0, centre, log_snr):
    """p(x_0 | x_t) on clean points (M, 2), summing to one, for x_t / alpha (N, 2): (N, M)."""
    return (log_prior - math.exp(log_snr) / 2 * torch.cdist(centre, x_0).square()).softmax(1)


# %% tags=["hide-input"]
rival, centre = vp_linear(), x / alpha
by_hand = cloud(data.log_prob(clean), clean, centre[:20], schedule.log_snr(t)) @ clean
torch.testing.assert_close(data.denoiser(schedule)(x[:20], t).x0, by_hand, rtol=1e-6, atol=1e-6)
log_snr = schedule.log_snr(t)
same = rival.time(log_snr)
there = data.denoiser(rival)(rival.alpha(same) * centre, same)
unshrunk = data.noised(1.0, sigma / alpha)
torch.testing.assert_close(there.x0, both.x0)
torch.testing.assert_close(there.eps, both.eps)
torch.testing.assert_close(centre + (sigma / alpha) ** 2 * unshrunk.score(centre), both.x0)
torch.testing.assert_close(-sigma / alpha * unshrunk.score(centre), both.eps)
apart = (data.denoiser(rival)(rival.alpha(t) * centre, t).x0 - both.x0).norm(dim=1).mean()
print(f"log-SNR {float(log_snr):.2f}: t = {float(t):.2f} under cosine, {float(same):.2f} under vp_linear")
print(f"at t = {float(t):.2f} under both, guesses differ by {float(apart):.2f} on average")

# %% [markdown]
# So a time has no meaning without its schedule; $\lambda$ has, for given data. If $\alpha_t^2 + \sigma_t^2 = 1$, a schedule chooses only where DDIM's steps, and a training's examples, lie along $\lambda$: between which ends, and how densely.
#
# **What is exact, and what is not.** The numbered equations are exact, and so is the factor two. The least error is meant in the *square* (another error may have another best guess). Noised mixtures, Tweedie's formula and the clock need *Gaussian* noise. Not exact are: $\mathcal N(0, I)$ as the end of the noising, a sampler with finitely many steps, and a network's guess, which is only near the average.
#
# ## In practice
#
# | if you | do | because |
# |---|---|---|
# | see a blurred $\hat x_0$ where many pictures fit | leave it | if it is the average, any other guess has a larger mean square error |
# | need *one* plausible picture | sample, do not denoise in one step | where many pictures fit, their average is in general none; a draw is one, and twice the error is its price |
# | compute $\hat x_0$ or $\hat\varepsilon$ near the ends of time | let the network answer $\hat v$ | $\hat\varepsilon$ loses digits of $\hat x_0$ at much noise, $\hat x_0$ those of $\hat\varepsilon$ at little; a $\hat v$ made from them has lost them too |
# | compare noise levels of two models of the same data, in the same units | compare $\lambda$, after dividing $x_t$ by $\alpha_t$ | the same $t$ means different noise under another schedule |
# | have a classifier of clean data | do not trust it on noisy points | on our arcs, at $t = 0.45$, it was nearly certain, and no better than naming the larger class ([Deeper](#deeper-with-a-label)) |
#
# ## Exercises
#
# Write your answer where the function says `raise NotImplementedError("your turn")`, run the cell, then run the check
# below it.

# %% [markdown]
# ### Exercise 1.1 (easy): two steps in one
#
# Two steps that need not preserve any variance: $x_1 = a_1 x_0 + s_1 \varepsilon_1$, $x_2 = a_2 x_1 + s_2 \varepsilon_2$, with independent noises. Return $(a, s)$, $s > 0$, such that $x_2$ is
# distributed as $a\, x_0 + s\, \varepsilon$.
#
# <details><summary>Hint</summary>
#
# Put the first into the second. What multiplies $\varepsilon_1$ then? Which quantity adds up for independent noises?
#
# </details>

# %% tags=["exercise"]
def two_in_one(a_1, s_1, a_2, s_2):
    ### BEGIN SOLUTION
    return a_1 * a_2, math.sqrt((a_2 * s_1) ** 2 + s_2**2)
    ### END SOLUTION


# %%
exercises.check("1.1", two_in_one)

# %% [markdown]
# ### Exercise 1.2 (medium): the score from v
#
# A network answers $\hat v$ at $x_t$, and you know $\lambda = \log(\alpha_t^2 / \sigma_t^2)$ as a number, with $\alpha_t^2 + \sigma_t^2 = 1$. Return the score $\nabla \log p_t(x_t)$, shaped like `x`. (The best $\hat x_0$ and $\hat\varepsilon$ satisfy
# $x_t = \alpha_t \hat x_0 + \sigma_t \hat\varepsilon$ and $\hat v = \alpha_t \hat\varepsilon - \sigma_t \hat x_0$.)
#
# <details><summary>Hint</summary>
#
# $\alpha_t^2$ is the logistic function of $\lambda$, $\sigma_t^2$ that of $-\lambda$. Solve the two equations for $\hat\varepsilon$. Then $\eqref{eq-tweedie}$ and the first of them say what $\hat\varepsilon$ has to do with the score.
#
# </details>

# %% tags=["exercise"]
def score_from_v(x, v, log_snr):
    ### BEGIN SOLUTION
    alpha, sigma = (1 + math.exp(-log_snr)) ** -0.5, (1 + math.exp(log_snr)) ** -0.5
    return -x - alpha / sigma * v  # -(sigma x + alpha v) / sigma
    ### END SOLUTION


# %%
exercises.check("1.2", score_from_v)

# %% [markdown]
# ### Exercise 1.3 (medium): the guess between two points
#
# Clean data on the line are $+1$ with probability `chance` and $-1$ otherwise. Return the best guess $\mathbb E[x_0 \mid x_t = x]$, for a tensor `x` and numbers `alpha`, `sigma`. (When is it a data point?)
#
# <details><summary>Hint</summary>
#
# Bayes' rule gives the probability of $+1$ given $x$, from two Gaussians with the means $\pm\alpha$. In the ratio of the two, $x^2$ and $\alpha^2$ drop out.
#
# </details>

# %% tags=["exercise"]
def guess_between(x, alpha, sigma, chance):
    ### BEGIN SOLUTION
    odds = 2 * alpha * x / sigma**2 + math.log(chance / (1 - chance))
    return torch.tanh(odds / 2)
    ### END SOLUTION


# %%
exercises.check("1.3", guess_between)

# %% [markdown]
# ### Exercise 1.4 (hard): the error nobody can avoid
#
# You know nothing of the data but this: at one noise level, with $\alpha$ and $\sigma$, the score has the mean square length $S = \mathbb E \|\nabla \log p_t(x_t)\|^2$, in $d$ dimensions. Return the error of the best guess, $\mathbb E \|x_0 - \hat x_0\|^2$.
#
# <details><summary>Hint</summary>
#
# What is $\mathbb E\|\varepsilon\|^2$, and how does $\eqref{eq-guess-error}$, for the noise and the guess $g = 0$, split it?
#
# </details>

# %% tags=["exercise"]
def unavoidable_error(mean_square_score, alpha, sigma, dim):
    ### BEGIN SOLUTION
    # d = E |eps - eps_hat|^2 + E |eps_hat|^2, and eps_hat = -sigma score
    return (sigma / alpha) ** 2 * (dim - sigma**2 * mean_square_score)
    ### END SOLUTION


# %%
exercises.check("1.4", unavoidable_error)

# %% [markdown]
# ### Exercise 1.5 (research): a noise that is not Gaussian
#
# A camera counts photons. A pixel of brightness $b \ge 0$ gives the count $n$ with the Poisson probability $e^{-m} m^n / n!$ of mean $m = \alpha b + r$, where the gain $\alpha > 0$ and the dark rate $r \ge 0$ are known. The brightness has an
# unknown distribution, but after many pixels you know how often each count comes: `often[n]` for $n = 0, 1, 2, \dots$, a tensor of positive numbers. Return two tensors: the best guess $\mathbb E[b \mid n]$ and how sure it is, $\mathrm{Var}(b \mid n)$, both for every $n$ but the last two.
#
# <details><summary>Hint</summary>
#
# Do what was done for Tweedie's formula, with neighbours $n + 1$ and $n + 2$ in the place of derivatives: the probability of which count, times what, is $m$ times that of $n$?
#
# </details>

# %% tags=["exercise"]
def brightness(often, alpha, r):
    ### BEGIN SOLUTION
    # m P(n | m) = (n + 1) P(n + 1 | m): averaged over m and divided by P(n), that is E[m | n]. Twice: E[m^2 | n].
    count = torch.arange(1, len(often) - 1, dtype=often.dtype)
    mean = count * often[1:-1] / often[:-2]
    square = count * (count + 1) * often[2:] / often[:-2]
    return (mean - r) / alpha, (square - mean**2) / alpha**2
    ### END SOLUTION


# %%
exercises.check("1.5", brightness)

# %% [markdown]
# ## Remember
#
# 1. With noise there are data wherever a walk passes. On arcs of nearly round pieces the exact clean slope sent four walks in ten to the short one, whether it held 20 or 80 % of the mass; through noise, in 100 small steps, the shares came out right.
# 2. Steps that preserve variance compose: the factors multiply, and $\sigma^2 = 1 - \alpha^2$. Noised, a mixture is a mixture.
# 3. $\mathbb E[x_0 \mid x_t]$ has the least mean square error of all guesses, and at much noise it is in general no data point. A draw from $p(x_0 \mid x_t)$ has exactly twice its error.
# 4. For Gaussian noise and any data, $\mathbb E[x_0 \mid x_t] = (x_t + \sigma_t^2 \nabla \log p_t(x_t)) / \alpha_t$.
# 5. Given the data, what may lie under $x_t$ depends on $x_t / \alpha_t$ and $\lambda_t$ alone.
#
# **Where it comes from.** The formula of Tweedie: [Robbins (1956)](https://projecteuclid.org/euclid.bsmsp/1200501653), [Efron (2011)](https://doi.org/10.1198/jasa.2011.tm11181). Small steps in one: [Ho et al. (2020)](https://arxiv.org/abs/2006.11239), eq. 4. Noise for data on a thin set: [Song & Ermon (2019)](https://arxiv.org/abs/1907.05600).
# The signal-to-noise ratio as clock: [Kingma et al. (2021)](https://arxiv.org/abs/2107.00630). That realism need cost no more than a factor of two: [Blau & Michaeli (2018)](https://arxiv.org/abs/1711.06077).

# %% [markdown]
# ## Deeper: what a schedule chooses
#
# *For those who choose one, or read DDPM's table. It adds the continuous form of that table, and where each schedule spends its time.*
#
# Let the steps get short: $1 - a_k^2 = \beta\, dt$, and $\log \alpha^2 = \sum_k \log (1 - \beta\, dt)$ becomes $-\int \beta\, dt$. With a rate that grows along a straight line,
#
# $$ \beta(t) = \beta_\text{min} + t\,(\beta_\text{max} - \beta_\text{min}), \qquad \alpha_t = \exp\Big( -\frac12 \big( t\, \beta_\text{min} + \frac12 t^2 (\beta_\text{max} - \beta_\text{min}) \big) \Big). \label{eq-vp-linear} $$
#
# DDPM's table of 1,000 variances from 0.0001 to 0.02 is nearly this one, with the rates 0.1 and 20: a thousand times as much, per unit of time.

# %%
table = from_betas(torch.linspace(0.0001, 0.02, 1000, dtype=torch.float64))
linear = vp_linear(0.1, 20.0)
moments = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
by_hand = torch.exp(-(moments * 0.1 + moments**2 * (20.0 - 0.1) / 2) / 2)
torch.testing.assert_close(linear.alpha(moments), by_hand)
print("alpha, continuous:", linear.alpha(moments).numpy().round(4), " table:", table.alpha(moments).numpy().round(4))
fine = torch.linspace(0, 1, 2001, dtype=torch.float64)[1:]
for name, one_of in {"vp_linear": linear, "cosine": schedule}.items():
    busy = ((one_of.log_snr(fine) < 4) & (one_of.log_snr(fine) > -4)).double().mean()
    print(f"{name}: {float(busy):.0%} of the time between log-SNR 4 and -4, ends at {float(one_of.log_snr(1.0)):.0f}")

# %% [markdown]
# In the middle, where on our arcs the error falls from nearly all to nearly nothing (below), `cosine` spends 83 % of its time and `vp_linear` 59 %. By $\eqref{eq-snr-clock}$ only how the time is spread along $\lambda$, and between which ends, tells them apart.
#
# ### Pitfall: deviations and variances
# Three slips that run without complaint: add noise of *deviation* $\beta_k$ (it is a variance), add up deviations as if they were variances, or add up the $\beta_k$ where the factors multiply.

# %%
as_deviation, added = 0.0, 0.0
for beta in betas.tolist():
    as_deviation = (1 - beta) * as_deviation + beta**2
    added = math.sqrt(1 - beta) * added + math.sqrt(beta)
print(f"sigma^2 should be 1: {as_deviation:.3f} with beta as deviation, {added**2:.0f} with deviations added")
print(f"alpha^2 should be {float(kept) ** 2:.5f}: 1 less the sum of beta is {1 - float(betas.sum()):.2f}")

# %% [markdown]
# With the first, the data fade and hardly any noise comes; the second gives a cloud fifteen times too wide. The third gives a negative square: $1 - \sum_k \beta_k$ is right to first order, while little is lost.
#
# ## Deeper: which of the four loses its digits, and where
#
# *For those who pick what a network answers or in which precision. It adds the measurement behind a row of "In practice".*
#
# Take the exact guesses in float64, round $x_t$ and one of the four to float32, and compute the clean point and the noise from them:

# %%
def rounded(mixture, schedule, log_snr, count=2000):
    """Largest errors of x0 and of eps, by what they were computed from in float32."""
    t = schedule.time(log_snr)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    x = mixture.noised(alpha, sigma).sample(count, seeded(10))[0]
    best = mixture.denoiser(schedule)(x, t)
    names = {"x0": best.x0, "eps": best.eps, "v": alpha * best.eps - sigma * best.x0, "score": best.score(sigma)}
    found = {}
    for name, value in names.items():
        make = getattr(Prediction, f"from_{name}")
        got = make(x.float(), value.float(), alpha.float(), sigma.float())
        found[name] = [float((half.double() - right).abs().max()) for half, right in zip(got, best, strict=True)]
    return found


ratios = torch.arange(-18.0, 19.0, 3.0, dtype=torch.float64)
lost = [rounded(plane.four_blobs(), schedule, value) for value in ratios]

# %% tags=["hide-input"]
with plotting.style():
    figure, axes = plotting.plt.subplots(1, 2, figsize=(7.6, 2.9), sharey=True)
    colours = {"score": "other", "eps": "unconditional", "x0": "guided", "v": "conditional"}
    for half, (panel, title) in enumerate(zip(axes, ("error of the clean point", "error of the noise"), strict=True)):
        for name, colour in colours.items():
            style = {"linestyle": "dashed", "zorder": 3} if name == "score" else {}
            panel.semilogy(ratios, [row[name][half] for row in lost], color=plotting.COLOURS[colour], linewidth=2, **style)
        panel.set(xlabel="log signal-to-noise ratio", title=title)
    axes[0].set_ylabel("largest error")
    small, large = ratios[0], ratios[-1]
    assert float(small) == -18 and float(large) == 18
    assert all(row["v"][half] < 1e-6 for row in lost for half in (0, 1))
    assert min(lost[0]["eps"][0], lost[0]["score"][0], lost[-1]["x0"][1]) > 1e-3
    assert max(row["x0"][0] for row in lost) < 1e-6 and max(row[k][1] for row in lost for k in ("eps", "score")) < 1e-6
    for panel, x_text, y_text, text, name in (
        (axes[0], -12, 1e-3, "from $\\varepsilon$ or the score", "eps"), (axes[0], -17, 4e-9, "from $x_0$", "x0"),
        (axes[0], 5, 1e-6, "from $v$", "v"), (axes[1], 2, 1e-3, "from $x_0$", "x0"), (axes[1], -17, 1e-9, "from all others", None),
    ):
        panel.text(x_text, y_text, text, color=plotting.COLOURS[colours[name]] if name else "black")
    shown = plotting.show(figure, "01_digits_lost", alt="Two panels over the log signal-to-noise ratio from -18 to 18. Left, the error of the clean point: from the noise or the score it rises over four powers of ten towards -18, from the clean point and v it stays at rounding. Right, the error of the noise: from the clean point it rises as much towards 18, from all others it stays at rounding or falls.")
shown

# %% [markdown]
# *Four blobs of chapter 00, the clean point and the noise computed in float32 from one of the four guesses; dashed: from the score. Each division costs digits: $\hat x_0$ from $\hat\varepsilon$ or the score at much noise (left), $\hat\varepsilon$ from $\hat x_0$ at little (right). $\hat v$ loses none.*
#
# A network's errors are larger than rounding, and are multiplied in the same way: [chapter 13](13_training.ipynb#deeper-what-should-the-network-predict) trains three.
#
# ## Deeper: the best guess of a mixture, without a division
#
# *For those who compute truths. It adds the closed form that the course uses at every noise level, the ends included.*
#
# With $V_k = \alpha_t^2 C_k + \sigma_t^2 I$: given the component, $x_0$ and $x_t$ are jointly Gaussian with the covariance $\alpha_t C_k$, so the mean of $x_0$ moves from $m_k$ by $\alpha_t C_k V_k^{-1}$ times what $x_t$ is off its own mean. The same for the noise, whose covariance with $x_t$ is $\sigma_t I$. Average over the components:
#
# $$ \hat x_0 = \sum_k \Big[ p_t(k \mid x)\, \big( m_k + \alpha_t C_k V_k^{-1} (x - \alpha_t m_k) \big) \Big], \qquad \hat\varepsilon = \sigma_t \sum_k \Big[ p_t(k \mid x)\, V_k^{-1} (x - \alpha_t m_k) \Big]. \label{eq-mixture-denoiser} $$

# %%
parts = data.weights * bells(x, noisy.means, noisy.covs)
share = parts / parts.sum(1, keepdim=True)  # of each component, (200, 36)
pulled = torch.linalg.solve(noisy.covs, (x[:, None] - noisy.means)[..., None])  # (200, 36, 2, 1)
by_hand = data.means + alpha * (data.covs @ pulled)[..., 0]
guess = MixtureDenoiser(data, schedule)(x, t)
torch.testing.assert_close(guess.x0, (share[:, :, None] * by_hand).sum(1))
torch.testing.assert_close(guess.eps, sigma * (share[:, :, None] * pulled[..., 0]).sum(1))
late = torch.tensor(1.0)
single = data.to(torch.float32).denoiser(schedule)(starts.float(), late).x0
tweedie = (starts.float() + schedule.sigma(late) ** 2 * data.noised(schedule.alpha(late), schedule.sigma(late)).score(starts).float()) / schedule.alpha(late)
exact = data.denoiser(schedule)(starts, late.double()).x0
print(f"float32 at t = 1: {float((single - exact).abs().max()):.0e} by this form, {float((tweedie - exact).abs().max()):.0e} by Tweedie")

# %% [markdown]
# ## Deeper: how sure the guess is
#
# *For those who need more than the mean. It adds the cloud's covariance from second derivatives, and what noise leaves unknown.*
#
# Differentiate $\eqref{eq-mixture-score}$. With $g_k = C_k^{-1} (m_k - x)$ and $g = \nabla \log p$: each slope changes by $-C_k^{-1}$, and the shares change in favour of the components whose slope leads that way, $\nabla p(k \mid x) = p(k \mid x)\, (g_k - g)$. Together:
#
# $$ \nabla \nabla^\top \log p(x) = \sum_k \Big[ p(k \mid x) \big( g_k g_k^\top - C_k^{-1} \big) \Big] - g\, g^\top. \label{eq-mixture-hessian} $$
#
# In the cloud's average, the shares of $\eqref{eq-snr-clock}$ change in the same way, and its derivative is $\frac{\alpha_t}{\sigma_t^2}\, \mathrm{Cov}(x_0 \mid x_t)$. The derivative of Tweedie's formula says the same, so
# $\mathrm{Cov}(x_0 \mid x_t) = \frac{\sigma_t^2}{\alpha_t^2} \big(I + \sigma_t^2 \nabla \nabla^\top \log p_t\big)$: chapter 07's [width of a step](07_mean_shift.ipynb#how-wide-the-step-is), from $t$ to 0.

# %%
bend = torch.autograd.functional.jacobian(lambda x: noisy.score(x).sum(0), x).permute(1, 0, 2)  # each at its own point
torch.testing.assert_close(noisy.hessian(x), bend)
cov = (sigma / alpha) ** 2 * (torch.eye(2) + sigma**2 * noisy.hessian(x))
torch.testing.assert_close(cov, data.reverse(x, schedule, t, 0.0).cov)
for value in (6.0, 3.0, 0.0, -3.0, -6.0):
    u = schedule.time(value)
    at = data.noised(schedule.alpha(u), schedule.sigma(u))
    left = (schedule.sigma(u) / schedule.alpha(u)) ** 2 * (2 + schedule.sigma(u) ** 2 * at.hessian(at.sample(4000, seeded(11))[0]).diagonal(dim1=1, dim2=2).sum(1))
    print(f"log-SNR {value:4.0f}: mean square error of the best guess {float(left.mean()):.3f}")

# %% [markdown]
# Averaged over $x_t$, the trace of the covariance is the first term of $\eqref{eq-guess-error}$, the error that nobody can avoid. It needs no clean points, only second derivatives of the noisy density. With much noise it ends at the variance of the data.
#
# ## Deeper: with a label
#
# *For those who go on to guidance. It adds what a classifier of noisy points should say, the mixture of one class, and that it does not matter when you select it.*
#
# The noise is the same for all labels, too: components keep theirs. So the class of a noisy point is a matter of adding up,
#
# $$ p_t(y \mid x) = \sum_{k \text{ of class } y} p_t(k \mid x), \label{eq-class-posterior} $$
#
# with the $p(k \mid x)$ of $\eqref{eq-mixture-score}$ for the noised mixture. Here the classes are the arcs. How sure may one be, and how sure is the classifier of clean points, asked about $x_t / \alpha_t$?

# %%
short = torch.tensor(data.labels) == 1
by_hand = parts[:, short].sum(1) / parts.sum(1)
torch.testing.assert_close(noisy.class_log_prob(x, label=1).exp(), by_hand)
many, truth = noisy.sample(20_000, seeded(9))
guessers = {"for noisy points": noisy.class_log_prob(many, 1), "for clean points": data.class_log_prob(many / alpha, 1)}
said, right = {}, {}
for name, log_p in guessers.items():
    p = log_p.exp()
    said[name] = float(torch.maximum(p, 1 - p).mean())
    right[name] = float(((p > 0.5) == (truth == 1)).double().mean())
    print(f"classifier {name}: mean confidence {said[name]:.3f}, right in {right[name]:.3f}")
print(f"always the long arc: right in {float((truth == 0).double().mean()):.3f}")

# %% tags=["remove-cell"]
assert abs(said["for noisy points"] - right["for noisy points"]) < 0.01
assert said["for clean points"] > 0.99 and right["for clean points"] < float((truth == 0).double().mean())

# %% [markdown]
# The exact one is on average as often right as it claims. At this noise level ($t = 0.45$) the clean one is nearly always certain, and right less often than one who always says "the long arc" (were the arcs of equal mass, it would beat that, and be as certain):
# [chapter 06](06_bayes_decomposition.ipynb#pitfall-the-clean-classifier) and [chapter 12](12_when_the_classifier_only_knows_clean_data.ipynb#what-a-noisy-classifier-should-say) show what comes of it.
#
# Keep the components of class $y$ and let their weights sum to one again:
#
# $$ p(x \mid y) = \sum_{k \text{ of class } y} \Big[ \frac{w_k}{p(y)}\, \mathcal N(x;\, m_k, C_k) \Big], \qquad p(y) = \sum_{k \text{ of class } y} w_k. \label{eq-conditional-mixture} $$

# %%
inside = (data.weights * bells(points, data.means, data.covs))[:, short].sum(1) / data.weights[short].sum()
torch.testing.assert_close(data.given(1).log_prob(points).exp(), inside)
select_first = data.given(1).noised(alpha, sigma)
noise_first = parts[:, short].sum(1) / data.weights[short].sum()
torch.testing.assert_close(select_first.log_prob(x).exp(), noise_first)
bayes = noisy.log_prob(x) + noisy.class_log_prob(x, 1) - data.class_weights()[1].log()
torch.testing.assert_close(select_first.log_prob(x), bayes)

# %% [markdown]
# Select, then noise, or noise, then select: the same. The last line is Bayes' rule with $\eqref{eq-class-posterior}$. Guidance will *sharpen* instead of select, and then the order matters ([chapter 08](08_gamma_normaliser.ipynb)).
#
# Guidance adds $\nabla \log p_t(y \mid x)$, the slope of the logarithm of $\eqref{eq-class-posterior}$, to the score; by $\eqref{eq-tweedie}$ that is the same as moving the average. [Chapter 07](07_mean_shift.ipynb#the-exact-answer-tweedie-for-one-step) applies Tweedie to one step.
#
# ## Deeper: in small steps, the perfect guess for a training set makes nothing new
#
# *For those who wonder why one trains a network, if the best guess has a closed form. It adds what that guess is for a finite training set.*
#
# A training set of $N$ points is a mixture of $N$ Gaussians without width. The loss averages over those points, so its minimum is the best guess for *them*, not for the arcs. We give 60 points to the exact denoiser of the 60, and sample:

# %%
shown_60 = points[:60]
tiny = 1e-12 * torch.eye(2).double().expand(60, 2, 2)
memory = GaussianMixture(torch.full((60,), 1 / 60), shown_60, tiny).denoiser(schedule)
clouds = {f"{n} steps": draw(kernels.ddim(memory, schedule), starts, time_grid(n)) for n in (100, 400)}
clouds["new data"] = data.sample(2000, seeded(12))[0]
copied = {name: (torch.cdist(x, shown_60).min(1).values < 0.005).double().mean() for name, x in clouds.items()}
for name, share in copied.items():
    print(f"{name}: {float(share):.1%} within 0.005 of a training point")

# %% tags=["remove-cell"]
assert 0.5 < copied["100 steps"] < 0.9 and copied["400 steps"] > 0.98 and copied["new data"] < 0.02

# %% [markdown]
# In 100 steps most samples are copies, in 400 nearly all. So what a network draws beyond its training set, in many small steps, it owes to *not* reaching the minimum of the loss on that set.
