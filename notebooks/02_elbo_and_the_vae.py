# %% [markdown]
# # 02 · The ELBO and the VAE: what does a bound cost, and who pays?
#
# Your model has a hidden cause: it draws a few numbers, a network makes a picture of them, noise is added. How likely is
# *this* picture? You would have to try all causes. So everyone maximises a lower bound instead, the ELBO, with a second network
# that guesses the cause. How much is lost, and how noisy is what is left?
#
# The short answer: **both depend on the guess alone. With the right guess one draw gives the exact log-likelihood; near it, the loss
# is half the square of the noise. But a guess that forgets a possible cause is as quiet, and wrong.**
#
# **After this chapter you can**
# * derive the bound and say exactly what it leaves out, and measure that where the truth is known;
# * choose an estimate of the bound and of its gradient by its noise;
# * tell apart the two reasons why a trained VAE falls short of its own model;
# * say when a latent switches off rightly, and what a diffusion model gives up and gains as a chain of latents.
#
# **You need** chapter 00, Gaussians in several dimensions, Bayes' rule.
#
# *30 minutes to read, 15 more for Deeper, 15 seconds to run, on a laptop, without a GPU or a network connection.*

# %%
import math

import torch

from difflesson import curves, elbo, exercises, kernels, plane, plotting
from difflesson.samplers import time_grid
from difflesson.schedule import cosine
from difflesson.steps import FullGaussian

torch.set_num_threads(1)

# %% [markdown]
# ## You would have to try all causes
#
# A model with one hidden number: $z$ is drawn from $\mathcal N(0, 1)$, a curve says where it puts its point, and noise of deviation $s = 0.1$ is added. With
# *one* number we can try all causes, on a fine grid, and so know the truth.


# %%
def seeded(number):
    return torch.Generator().manual_seed(number)


def place(z):
    """Where the hidden number z, (..., 1), puts its point, (..., 2)."""
    turn = z + 1.4
    return torch.cat([2 * turn.sin(), 0.8 * (2 * turn).sin() + 0.25 * z], -1)


s, x = 0.1, torch.tensor([[-1.60, -1.25]]).double()


def joint(z, x=x):
    return elbo.log_joint(x, z, place(z), s)  # log p(x, z)


grid = torch.linspace(-6, 6, 12001).double()[:, None]  # all causes, 0.001 apart
log_p = joint(grid).logsumexp(0) + math.log(0.001)
log_posterior = joint(grid).log_softmax(0)  # log p(z | x) on the grid
mean = log_posterior.exp() @ grid
std = (log_posterior.exp() @ (grid - mean).square()).sqrt()
print(f"log p(x) = {float(log_p):.3f}; causes that explain x: {float(mean):.2f} +- {float(std):.2f}")

# %% tags=["hide-input"]
def of_prior_draws(count, repeats=400):
    z = torch.randn(repeats, count, 1, generator=seeded(1), dtype=torch.float64)
    noise = joint(z) - elbo.log_guess(z, torch.zeros(1), torch.zeros(1))  # log p(x | z)
    return noise.logsumexp(1) - math.log(count)


draws = mean + std * torch.randn(10_000, 1, generator=seeded(2), dtype=torch.float64)
guessed = joint(draws) - elbo.log_guess(draws, mean, std.log())
tried = {"10 prior draws": of_prior_draws(10), "1,000 prior draws": of_prior_draws(1000), "1 draw of a good guess": guessed}
for name, found in tried.items():
    print(f"{name}: median {float(found.median()):.2f}, mean {float(found.mean()):.2f}, standard deviation {float(found.std()):.2f}")
grey, blue, orange = (plotting.COLOURS[name] for name in ("unconditional", "conditional", "guided"))
with plotting.style():
    figure, axes = plotting.plt.subplots(1, 2, figsize=(8.4, 3.1), width_ratios=(1.1, 1))
    inside = grid[:, 0].abs() < 2.9
    axes[0].plot(*place(grid[inside]).T, color="0.8", linewidth=1)
    axes[0].plot(*place(torch.randn(100, 1, generator=seeded(3)).double()).T, ".", color=grey, markersize=4)
    axes[0].plot(*place(draws[:15]).T, ".", color=blue, markersize=5)
    axes[0].plot(*x[0], "x", color="black", markersize=8)
    axes[0].text(-1.95, -0.85, "how likely?")
    axes[0].text(0.0, -0.95, "100 draws of the prior", color=grey)
    axes[0].text(-1.2, -1.55, "15 draws of a good guess", color=blue)
    axes[0].set(xlabel="$x_1$", ylabel="$x_2$", ylim=(-1.8, 1.7))
    for column, (found, colour) in enumerate(zip(tried.values(), (grey, grey, blue), strict=True)):
        shown_of, floor = found[:60], -12.0
        spread = torch.linspace(-0.3, 0.3, 60)[torch.randperm(60, generator=seeded(4))]
        axes[1].plot(column + spread, shown_of.clamp(min=floor), ".", color=colour, markersize=4)
        below = float((shown_of < floor).double().mean())
        if below:
            axes[1].text(column, floor + 0.7, f"{below:.0%} lower", ha="center", color=colour)
    axes[1].axhline(float(log_p), color="black", linestyle="dashed", linewidth=1)
    axes[1].set(xticks=range(3), xticklabels=["10 prior\ndraws", "1,000 prior\ndraws", "1 draw of\na good guess"], ylabel="estimate of $\\log p(x)$", ylim=(-12.6, 1))
    shown = plotting.show(figure, "02_all_causes", alt="Left, a curve that crosses itself, with grey dots of a hundred prior draws along it, hardly any near a black cross at the lower left end, and blue dots of a good guess gathered beside the cross. Right, sixty estimates of the log-likelihood in three columns: with ten prior draws most lie far below the dashed truth, many off the picture; with a thousand they scatter around it; with one draw of a good guess they lie on it.")
shown

# %% [markdown]
# *Left: few of the causes that the model draws (grey) put their point near the cross; a good guess of the cause (blue) knows which. Right: 60 estimates of $\log p(x)$ each; dashed: the truth. One draw of a good guess beats 1,000 of the prior.*
#
# **What happens.** $p(x)$ is the average of $p(x \mid z)$ over causes. Most causes explain nothing of this point, so an average of few draws misses
# nearly all of it; and the logarithm of an average that is mostly too small is, on average, too low. For one hidden number 1,000 draws do. If $n$ of them must be right at once, it takes the $n$-th power of that.
#
# **What a guess changes.** Draw causes near those that explain the point, from a distribution $q$, and make up for the preference: count a cause by $p(x, z) / q(z)$, and average the logarithm. That is the bound.
#
# **Why one draw can be enough.** Let $q$ draw each cause exactly as often as it is to blame, once the point is seen. A cause that is to blame twice as much is drawn twice as
# often, and divided by twice as much. The quotient is the same for *every* cause, and nothing is left to average. The better the guess, the higher the bound *and* the quieter.
#
# ## What the bound leaves out, exactly
#
# Bayes' rule says $p(x, z) = p(x)\, p(z \mid x)$. Take logarithms and subtract $\log q(z \mid x)$. For every single $z$, the *log-ratio* is
#
# $$ r(z) = \log p(x, z) - \log q(z \mid x) = \log p(x) - \log \frac{q(z \mid x)}{p(z \mid x)}. \label{eq-log-ratio} $$
#
# Average it over draws of $q$. The average of the last term is the divergence $\mathrm{KL}(q \,\|\, p) = \mathbb E_q[\log (q / p)]$:
#
# $$ \log p(x) = \mathbb E_q\big[ \log p(x, z) - \log q(z \mid x) \big] + \mathrm{KL}\big( q(z \mid x) \,\|\, p(z \mid x) \big). \label{eq-elbo-split} $$
#
# The first term is the ELBO (*evidence lower bound*): a divergence is never negative. What is left out, the *gap*, is the divergence of the guess from the
# posterior. $\log p(x)$ knows nothing of $q$. So whatever raises the bound *by changing $q$* lowers that divergence by as much, though nobody can compute it. (Changing the *model* is another matter: the bound then also
# rises if causes become easier to guess.)
#
# In the form that is coded, $p(x, z) = p(z)\, p(x \mid z)$ is taken apart:
#
# $$ \mathrm{ELBO} = \mathbb E_q\big[ \log p(x \mid z) \big] - \mathrm{KL}\big( q(z \mid x) \,\|\, p(z) \big). \label{eq-elbo-terms} $$
#
# Reconstruct well, and stay near the prior. Keep the two divergences apart: the one to the *posterior* is the loss, the one to the *prior* is part of the bound. Between Gaussians in $k$ dimensions, with means $m, m'$ and covariances $C, C'$, a divergence has a closed form:
#
# $$ \mathrm{KL} = \frac12 \Big( \log \frac{\det C'}{\det C} - k + \mathrm{tr}\big( C'^{-1} C \big) + (m' - m)^\top C'^{-1} (m' - m) \Big). \label{eq-gaussian-kl} $$
#
# Where all is linear and Gaussian, $x = W z + b + s\, \varepsilon$, every term is exact: the posterior is Gaussian as well (Deeper). Three coordinates, two hidden numbers, guesses with full covariances:

# %%
W = torch.tensor([[1.2, 0.3], [-0.4, 0.9], [0.5, 0.8]]).double()
model = elbo.LinearGaussian(W, torch.tensor([0.2, -1.0, 0.5]).double(), 0.6)
seen = torch.tensor([[1.0, 0.4, -0.3], [-2.0, -1.5, 1.1]]).double()
right = model.posterior(seen)
wrong = FullGaussian(right.mean + 0.2, right.cov + torch.tensor([[0.2, 0.1], [0.1, 0.3]]).double())
gap = elbo.gaussian_kl(wrong, right)
print(f"log p {model.log_prob(seen).numpy().round(3)} = bound {model.elbo(seen, wrong).numpy().round(3)} + gap {gap.numpy().round(3)}")
torch.testing.assert_close(model.elbo(seen, wrong) + gap, model.log_prob(seen))
torch.testing.assert_close(model.elbo(seen, right), model.log_prob(seen))

# %% [markdown]
# To rounding. With the posterior as guess, the bound *is* $\log p(x)$.
#
# ## The right guess needs one draw
#
# Look at $\eqref{eq-log-ratio}$ before it is averaged. If $q$ is the posterior, the last term is 0 for *every* $z$: $r(z) = \log p(x)$, no matter which cause was drawn. **The gap and the noise vanish together.** How fast? Let $u = \log q - \log p$ be the
# error of the guess, of the size $h$. The gap is $\mathbb E_q[u]$. If $q$ leaves no cause out, $\mathbb E_q[e^{-u}] = \int p(z \mid x)\, dz = 1$. Expand: $1 - \mathbb E_q[u] + \frac12 \mathbb E_q[u^2] = 1$ up to $h^3$. So $\mathbb E_q[u]$ is of order $h^2$, its square does not count, and
#
# $$ \mathrm{KL}(q \,\|\, p) = \frac12\, \mathrm{Var}_q\big[ r(z) \big] + O(h^3). \label{eq-gap-and-spread} $$
#
# In words: **near the posterior the gap is half the squared deviation of one draw.** The bound is second order in the error of the guess, its noise first order. We bend the posterior of our point by a wave, $q \propto p(z \mid x)\, e^{h v(z)}$, and sum over the grid:


# %%
# [eq-gap-and-spread]
def gap_and_spread(log_q, log_p):
    """From log-probabilities on a grid: KL(q || p), and the deviation of one draw of the log-ratio."""
    u = log_q - log_p
    gap = log_q.exp() @ u
    return gap, (log_q.exp() @ (u - gap).square()).sqrt()


# %%
wave = torch.sin(2 * (grid[:, 0] - mean) / std) + 0.5 * torch.cos((grid[:, 0] - mean) / std)
sizes = [0.01, 0.03, 0.1, 0.3, 1.0]
bent = [gap_and_spread((log_posterior + h * wave).log_softmax(0), log_posterior) for h in sizes]
for h, (gap, spread) in zip(sizes, bent, strict=True):
    print(f"h = {h:4}: gap {float(gap):.6f}, deviation of a draw {float(spread):.4f}, gap over half its square {float(2 * gap / spread**2):.3f}")
assert abs(float(2 * bent[0][0] / bent[0][1] ** 2) - 1) < 0.01

# %% [markdown]
# The ratio tends to 1. To see a gap of 0.01, know that one draw scatters by 0.14.
#
# **A surprise for those who code VAEs.** Everyone computes the divergence in $\eqref{eq-elbo-terms}$ in closed form and draws only the reconstruction. One part exact, so less noise? For the point of the picture and its good guess, 10,000 draws:

# %%
prior_kl = -std.log() + (mean.square() + std.square() - 1) / 2  # of one number, from the standard normal
usual = joint(draws) - elbo.log_guess(draws, torch.zeros(1), torch.zeros(1)) - prior_kl  # log p(x | z) - KL
for name, one in {"log-ratio": guessed, "with the closed form": usual}.items():
    print(f"{name}: {float(one.mean()):.3f} +- {float(one.std()) / 100:.3f}, deviation of one draw {float(one.std()):.3f}")

# %% tags=["remove-cell"]
assert 5 < usual.std() / guessed.std() < 9 and abs(guessed.mean() - usual.mean()) < 3 * usual.std() / 100

# %% [markdown]
# The closed form is unbiased as well, but noisier by far. Drawn together, the three logarithms cancel each other's noise; with one of them averaged, the others are left alone. (With a guess far from the posterior, it may help: for $q$ the prior, both are the same.)
#
# ### Pitfall: quiet and wrong
#
# Where the curve crosses itself, a point has two kinds of causes. Guess one of them, well. The wrong conclusion that one would draw: "all draws agree, so the bound is tight".

# %%
torn = torch.tensor([[0.42, 0.05]]).double()
log_p_torn = joint(grid, torn).logsumexp(0) + math.log(0.001)
both = joint(grid, torn).softmax(0)
first = both * (grid[:, 0] < 0.2)  # the causes on one branch
share = first.sum()
centre = first @ grid / share
width = (first @ (grid - centre).square() / share).sqrt()
on_one = centre + width * torch.randn(400, 1, generator=seeded(5), dtype=torch.float64)
r = joint(on_one, torn) - elbo.log_guess(on_one, centre, width.log())
print(f"one draw {float(r.mean()):.3f} +- {float(r.std()):.3f}; truth {float(log_p_torn):.3f}; gap {float(log_p_torn - r.mean()):.3f}")
print(f"minus the log of the share of the guessed branch, {float(share):.2f}: {-float(share.log()):.3f}")

# %% tags=["hide-input"]
middle, broad = both @ grid, (both @ (grid - both @ grid).square()).sqrt()
covering = middle + broad * torch.randn(400, 1, generator=seeded(6), dtype=torch.float64)
r_covering = joint(covering, torn) - elbo.log_guess(covering, middle, broad.log())
print(f"the Gaussian of the posterior's own mean and variance: gap {float(log_p_torn - r_covering.mean()):.1f}, deviation of a draw {float(r_covering.std()):.1f}")
with plotting.style():
    figure, axes = plotting.plt.subplots(1, 3, figsize=(9.2, 2.9))
    near = torch.linspace(-3, 3, 121).double()[:, None] * std + mean
    for factor, colour, text, where in ((2.0, orange, "twice too wide", (-1.3, -1.9)), (1.0, blue, "good guess", (1.1, -2.5))):
        axes[0].plot((near - mean) / std, joint(near) - elbo.log_guess(near, mean, (factor * std).log()), color=colour)
        axes[0].text(*where, text, color=colour)
    axes[0].axhline(float(log_p), color="black", linestyle="dashed", linewidth=1)
    axes[0].text(-0.9, float(log_p) - 0.3, "posterior: $\\log p(x)$")
    axes[0].set(xlabel="cause, in deviations from the mean", title="log-ratio of each cause", ylim=(-5.2, -1.6))
    axes[1].loglog(sizes, [float(gap) for gap, _ in bent], "o-", color=orange, markersize=4)
    axes[1].loglog(sizes, [float(spread) for _, spread in bent], "o-", color=blue, markersize=4)
    axes[1].text(0.012, 0.09, "deviation of a draw", color=blue)
    axes[1].text(0.06, 0.0004, "gap", color=orange)
    axes[1].set(xlabel="error $h$ of the guess", title="first and second order")
    near = (grid[:, 0] > -2.2) & (grid[:, 0] < 2.4)
    axes[2].plot(grid[near, 0], both[near] * 1000, color="black", linestyle="dashed", linewidth=1)
    axes[2].plot(grid[near, 0], elbo.log_guess(grid[near], centre, width.log()).exp(), color=orange)
    axes[2].text(-0.9, 3.0, "guess", color=orange)
    axes[2].text(0.1, 2.6, "posterior")
    axes[2].set(xlabel="cause $z$", title="quiet and wrong", ylabel="density")
    shown = plotting.show(figure, "02_one_draw", alt="Three panels. Left, the log-ratio over the cause: a dashed level line for the posterior, a blue curve close to it in the middle for a good guess, an orange parabola for a guess twice too wide. Middle, on logarithmic axes the deviation of a draw falls with slope one and the gap with slope two. Right, a dashed posterior with two humps and an orange guess that covers only the left one.")
shown

# %% [markdown]
# *Left: the log-ratio that each cause gives. For the posterior as guess it is level (dashed), so one draw is exact. Middle: as the guess gets better, the gap falls as the square of the noise. Right: a guess that covers one of two humps. Its log-ratio is nearly level, and too low.*
#
# All draws agree, and the gap is the logarithm of what was left out. The derivation says where it failed: $\mathbb E_q[e^{-u}]$ is not 1 but the share of causes that $q$ covers. **Quiet draws prove a tight bound only if the guess forgets no cause**, and nothing drawn from $q$ tells you.
# The bound rewards it, too: the one-humped guess beats the one with the posterior's own mean and variance, which minimises the divergence *the other way round*, $\mathrm{KL}(p \,\|\, q)$, by [moment matching](07_mean_shift.ipynb).
#
# ## Two gradients
#
# Training moves the guess along the gradient of the bound, and the guess stands in the draws. Let $q = \mathcal N(m, \tau^2)$, and $\nabla$ the gradient by $m$ and $\log \tau$. There are two ways.
# Write the draw as $z = m + \tau \varepsilon$ with $\varepsilon$ from $\mathcal N(0, I)$ (*reparameterisation*): now the draw moves with $m$ and $\tau$, and each draw can be differentiated. Or differentiate the density, $\nabla q = q\, \nabla \log q$, which averages to zero, so that any constant $c$ may be subtracted:
#
# $$ \nabla\, \mathbb E_q[r] = \mathbb E_\varepsilon\big[ \nabla r(m + \tau \varepsilon) \big] = \mathbb E_q\big[ (r(z) - c)\, \nabla \log q(z) \big]. \label{eq-two-gradients} $$
#
# The first, *pathwise*, asks where $r$ rises; the second, the *score-function* gradient, only which draws did well. (In the first, $\nabla r$ also differentiates the $\log q$ inside $r$; at a fixed $z$ that part averages to zero, and may be left out, or "held".) On the linear model with one hidden number, where the gradient is known:

# %%
line = elbo.LinearGaussian(W[:, :1], model.b, 0.6)
m, log_tau = torch.tensor([[0.5]]).double(), torch.tensor([[-0.7]]).double()
leaves = [part.clone().requires_grad_() for part in (m, log_tau)]
exact_bound = line.elbo(seen[:1], FullGaussian(leaves[0], (2 * leaves[1]).exp()[:, :, None]))
exact = torch.cat(torch.autograd.grad(exact_bound.sum(), leaves), 1)[0]


def whole(z, m, log_tau):
    return elbo.log_ratio(lambda z: line.log_joint(seen[:1], z), z, m, log_tau)


eps = torch.randn(100_000, 1, 1, generator=seeded(8), dtype=torch.float64)
path = elbo.pathwise(whole, m, log_tau, eps)[:, 0]
score = elbo.score_function(whole, m, log_tau, eps, baseline=float(exact_bound.detach()))[:, 0]
print(f"exact {exact.numpy().round(3)}")
for name, found in (("pathwise", path), ("score function", score)):
    error = found.std(0) / 100_000**0.5
    print(f"{name:14s} {found.mean(0).numpy().round(3)} +- {error.numpy().round(3)}")
    assert bool(((found.mean(0) - exact).abs() < 4 * error).all())

# %% [markdown]
# Both are right; the pathwise is quieter. By how much depends on the guess: where it *is* the posterior, $r$ is level, so both are without noise (the held pathwise, and the score function with $c = \log p(x)$). It is the guess that silences, not the trick.
#
# Now a small VAE: a hidden number, a decoder network into the plane with one learned noise $s$, and an *encoder* network that answers $m$ and $\log \tau$ for any $x$ at once. The data are the four blobs of chapter 00. Four moments of its training; at each the deviation of one draw's gradient, over 100 points:

# %%
blobs = plane.four_blobs()
vae, kept = elbo.train_vae(blobs, steps=1500, keep=(0, 100, 400))
fresh = blobs.sample(100, seeded(9))[0]
noise = torch.randn(200, 100, 1, generator=seeded(10), dtype=torch.float64)

# %% tags=["hide-input"]
def noises(vae):
    """Deviation of one draw's gradient by m and log tau, root mean square over points, for four estimates."""

    def joint_of(z):
        return vae.log_joint(fresh, z)

    def ratio(z, m, log_tau):
        return elbo.log_ratio(joint_of, z, m, log_tau)

    def reconstruction(z, m, log_tau):  # the rest is in closed form, without noise
        return joint_of(z) - elbo.log_guess(z, torch.zeros(1), torch.zeros(1))

    m, log_tau = vae.guess(fresh)
    level = ratio(m + log_tau.exp() * noise.flip(0), m, log_tau).mean(0)
    found = {
        "score function": elbo.score_function(ratio, m, log_tau, noise),
        "with baseline": elbo.score_function(ratio, m, log_tau, noise, level),
        "pathwise, usual": elbo.pathwise(reconstruction, m, log_tau, noise),
        "pathwise, held": elbo.pathwise(lambda z, *q: elbo.held(joint_of, z, *q), m, log_tau, noise),
    }
    return {name: float(slopes.var(0).sum(1).mean().sqrt()) for name, slopes in found.items()}


measured = {}
for step, weights in kept.items():
    early = elbo.VAE().double().requires_grad_(False)
    early.load_state_dict(weights)
    measured[step] = noises(early)
measured[1500] = noises(vae)
print("step" + "".join(f"{name:>17s}" for name in measured[0]))
for step, row in measured.items():
    print(f"{step:4d}" + "".join(f"{value:17.2f}" for value in row.values()))

# %% tags=["remove-cell"]
assert all(row["score function"] > 4 * row["with baseline"] for row in measured.values())
assert all(measured[step]["pathwise, held"] < measured[step]["pathwise, usual"] / 1.5 for step in (100, 400, 1500))
assert measured[0]["pathwise, usual"] < measured[0]["pathwise, held"] * 1.1
assert measured[1500]["with baseline"] < measured[1500]["pathwise, usual"] / 1.5

# %% [markdown]
# The bare score function deserves its bad name, at first by a factor of 40. But subtract a baseline (here the mean of other draws), and it is as quiet as the best pathwise one. The usual VAE gradient, with its
# closed form, is quietest at the start, where the guess is bad, and noisier than both from then on. Two conditions: we have *one* hidden number, and the score function's noise grows with their number, the pathwise one's does not. And a decoder that oscillates turns the comparison round (both in Deeper).
#
# ## A small VAE, and its exact bill
#
# With one hidden number we can sum over all causes, and know the true $\log p(x)$ *of the trained model*, so the gap of every point. Two things make it. The encoder may answer a Gaussian only, and the posterior is none: even the best Gaussian for this point leaves the *approximation gap*. And one network answers for all points, none of them perfectly: the rest is the *amortisation gap*. We find the best Gaussian point by point, with the exact divergence as loss:

# %% tags=["hide-input"]
points = blobs.sample(150, seeded(11))[0]
causes, apart = torch.linspace(-4.5, 4.5, 451).double(), 0.02
table = elbo.log_joint(points[:, None], causes[None, :, None].expand(150, -1, -1), vae.decoder(causes[:, None]), vae.log_s.exp())
exact = table.logsumexp(1) + math.log(apart)  # log p(x) of the trained model
behind = table - exact[:, None]  # log p(z | x), (150, 451)


def gaps(m, log_tau):
    """Of Gaussians (..., 150): their divergence from each point's posterior, summed over all causes."""
    q = elbo.log_guess(causes[:, None], m[..., None, None], log_tau[..., None, None])
    return (q.exp() * (q - behind)).sum(-1) * apart


def best_gaussian(m, log_tau, steps=100):
    """Gaussians (S, 150) moved downhill in the exact divergence, S starts for each point."""
    leaves = [part.clone().requires_grad_() for part in (m, log_tau)]
    descent = torch.optim.Adam(leaves, lr=0.1)
    for step in range(steps):
        descent.param_groups[0]["lr"] = 0.1 * (1 - step / steps)
        descent.zero_grad()
        gaps(*leaves).sum().backward()
        descent.step()
    return [leaf.detach() for leaf in leaves]


# %% tags=["hide-input"]
answered = [part[:, 0] for part in vae.guess(points)]
starts = [torch.stack([part, *(torch.full_like(part, value) for value in values)])
          for part, values in zip(answered, ((-1.5, 0.0, 1.5), (-0.7, -1.2, -0.7)), strict=True)]
found = best_gaussian(*starts)
approximation, chosen = gaps(*found).min(0)
total = gaps(*answered)
amortisation = total - approximation
print(f"log p of the data: truth {float(blobs.log_prob(points).mean()):.3f}, VAE {float(exact.mean()):.3f}, its bound {float((exact - total).mean()):.3f}")
for name, part in {"gap": total, "approximation": approximation, "amortisation": amortisation}.items():
    largest = float(part.topk(15).values.sum() / part.sum())
    print(f"{name:14s} mean {float(part.mean()):.3f} +- {float(part.std()) / 150**0.5:.3f}, median {float(part.median()):.3f}; a tenth of the points has {largest:.0%}")

# %% tags=["hide-input"]
worst = int(total.argmax())
with plotting.style():
    figure, axes = plotting.plt.subplots(1, 3, figsize=(9.2, 2.9))
    axes[0].plot(*blobs.sample(500, seeded(12))[0].T, ".", color=grey, markersize=2)
    axes[0].plot(*vae.sample(500, seeded(13)).T, ".", color=orange, markersize=2)
    axes[0].plot(*vae.decoder(causes[:, None]).T, color="black", linewidth=1)
    axes[0].text(-4.0, 3.9, "data", color=grey)
    axes[0].text(-2.6, 3.9, "drawn by the VAE", color=orange)
    axes[0].set(title="a curve, and noise", xlabel="$x_1$", ylabel="$x_2$", xlim=(-4.2, 4.2), ylim=(-2.9, 4.6))
    axes[1].loglog(approximation.clamp(min=1e-4), amortisation.clamp(min=1e-4), ".", color=blue, markersize=4)
    axes[1].plot((1e-4, 4), (1e-4, 4), color="0.7", linewidth=0.8)
    axes[1].set(title="why each point falls short", xlabel="approximation gap", ylabel="amortisation gap", xlim=(1e-3, 4), ylim=(8e-5, 4))
    axes[2].plot(causes, behind[worst].exp(), color="black", linestyle="dashed", linewidth=1)
    best = [part[chosen[worst], worst] for part in found]
    for (m, log_tau), colour in (([part[worst] for part in answered], orange), (best, blue)):
        axes[2].plot(causes, elbo.log_guess(causes[:, None], m[None], log_tau[None]).exp(), color=colour)
    axes[2].set(title="posterior of the worst point", xlabel="cause $z$", ylabel="density", xlim=(-3, 2))
    shown = plotting.show(figure, "02_gaps", alt="x")
shown

# %% [markdown]
# *Left: the decoder's curve, 500 data (grey), 500 draws of the VAE (orange). Middle: the two gaps of each of 150 points; below the line the family of guesses is to blame, not the encoder. Right: the posterior of the point with the largest gap (dashed), the encoder's answer (orange), the best Gaussian (blue): the posterior has two humps, where two stretches of the curve explain the point.*
#
# Seven tenths of the gap no better encoder would close: at the typical point nearly all of it. The encoder's own part is large at few points. (For a linear model the approximation gap is 0.)
#
# And the gap is not what makes the draws look washed out:

# %%
many = vae.sample(5000, seeded(14))
odd = float(blobs.log_prob(blobs.sample(5000, seeded(15))[0]).quantile(0.05))
print(f"learned noise s = {float(vae.log_s.exp()):.2f}; less likely than 95 % of the data: {float((blobs.log_prob(many) < odd).double().mean()):.0%} of its draws")

# %% [markdown]
# The reconstruction term is a square: for given $q$, the best decoder answers the *average* of all points that come to one $z$, and $s^2$ is the mean square of what is left. One number cannot tell where a point lies in the plane. The average of points of two blobs is no point of the data ([chapter 01](01_noising.ipynb#the-best-guess-is-no-point-of-the-data)), and the noise smears it alike everywhere.
#
# ## When a latent switches off, and is right to
#
# In many trained VAEs the encoder answers the prior for some latents, whatever $x$: *posterior collapse*. The bound is often blamed. So look at the exact likelihood of the linear model, without bound or encoder, for given noise $s$. Along an axis of the data's covariance, with variance $\lambda_j$, the model has the variance $v = w_j^2 + s^2$,
# and the log-likelihood is $-\frac12 (\log v + \lambda_j / v)$ up to a constant. It is highest at $v = \lambda_j$. But $v \ge s^2$, and beyond $\lambda_j$ it only falls. So
#
# $$ w_j^2 = \max(\lambda_j - s^2, 0), \qquad \mathbb E[\mathrm{KL}_j] = \frac12 \log \frac{\max(\lambda_j, s^2)}{s^2}, \label{eq-collapse} $$
#
# with $\mathrm{KL}_j$ the divergence of the posterior of latent $j$ from the prior. **A latent is off exactly where the data vary less than the decoder's noise.** Training from random weights finds it:

# %%
share_of = blobs.weights
off = blobs.means - share_of @ blobs.means
data_cov = (share_of[:, None, None] * (blobs.covs + off[:, :, None] * off[:, None])).sum(0)


def trained_linear(s, steps=400):
    """The W that plain gradient steps on the exact log-likelihood of Gaussian data lead to, from a small random one."""
    W = (0.3 * torch.randn(2, 2, generator=seeded(16), dtype=torch.float64)).requires_grad_()
    descent = torch.optim.Adam([W], lr=0.03)
    for _ in range(steps):
        cov = W @ W.T + s**2 * torch.eye(2)
        loss = (torch.logdet(cov) + torch.linalg.solve(cov, data_cov).trace()) / 2
        descent.zero_grad()
        loss.backward()
        descent.step()
    return W.detach()


variances = torch.linalg.eigvalsh(data_cov).flip(0)
print(f"variances of the data: {variances.numpy().round(2)}")
for s in (0.5, 1.2, 1.8):
    found_by_steps = torch.linalg.svdvals(trained_linear(s)).square()
    W_best = elbo.likeliest_linear(data_cov, s, latent=2)
    nats = torch.log(variances.clamp_min(s**2) / s**2) / 2
    print(f"s^2 = {s * s:.2f}: w^2 {found_by_steps.numpy().round(2)}, KL of each latent {nats.numpy().round(2)}")
    torch.testing.assert_close(found_by_steps, (variances - s**2).clamp_min(0), rtol=0, atol=0.01)
    torch.testing.assert_close(W_best.square().sum(0), (variances - s**2).clamp_min(0))

# %% [markdown]
# So more latents than needed do no harm to the likelihood: they switch off. But not every collapse is right. On the two arcs of chapter 01, from the same network, seed and number of steps, and only another *first* value of the decoder's noise:

# %%
arcs = curves.two_arcs()
test = arcs.sample(1000, seeded(17))[0]
push = torch.randn(20, 1000, 1, generator=seeded(18), dtype=torch.float64)
reached = {}
for start in (1.0, 0.2):
    one, _ = elbo.train_vae(arcs, steps=800, noise=start)
    m, log_tau = one.guess(test)
    bound = elbo.log_ratio(lambda z, one=one: one.log_joint(test, z), m + log_tau.exp() * push, m, log_tau).mean()
    prior_kl = ((m.square() + (2 * log_tau).exp() - 1) / 2 - log_tau).mean()
    reached[start] = float(bound), float(prior_kl)
    print(f"noise {start} at first, {float(one.log_s.exp()):.2f} at last: bound {float(bound):.2f}, KL to the prior {float(prior_kl):.3f}")

# %% tags=["remove-cell"]
assert reached[1.0][1] < 0.005 and reached[0.2][1] > 2 and reached[0.2][0] - reached[1.0][0] > 1.2

# %% [markdown]
# The first one ignores its latent, and more than a nat is lost. With much noise there is next to nothing to gain from bending the curve, so training stays where it began. That is an accident of optimisation; $\eqref{eq-collapse}$ is none.
#
# ## From here to diffusion
#
# Take a *chain* of causes: $x_0$ is the picture, $z = (x_1, \dots, x_T)$, the model walks from $x_T$ down to $x_0$, the guess from $x_0$ up. $\eqref{eq-elbo-split}$ holds as it stands:
#
# $$ \log p(x_0) = \mathbb E_q\Big[ \log p(x_T) + \sum_t \log \frac{p(x_{t-1} \mid x_t)}{q(x_t \mid x_{t-1})} \Big] + \mathrm{KL}\big( q(x_{1:T} \mid x_0) \,\|\, p(x_{1:T} \mid x_0) \big). \label{eq-chain-bound} $$
#
# Three restrictions make it a diffusion model:
#
# | restriction | gives up | buys |
# |---|---|---|
# | each latent is as large as the picture | a short code | one network for all levels |
# | the encoder is fixed: shrink, add Gaussian noise | a code made for the data | nothing to amortise, no encoder that could collapse; any level in one draw |
# | the last latent is nearly pure noise | long jumps: many small steps are needed | the prior is right, sampling can begin there |
#
# So the roles are exchanged: the guess is fixed, and the *model* learns to have the posterior that is guessed. Where can one see the climax of this page again? Blobs have exact reverse steps. Noise a point in 10 steps, once, and add up the log-ratio of that walk; then replace each step by the Gaussian of the same mean and covariance:


# %%
# [eq-chain-bound]
def log_ratio_of_walks(kernel, log_end, schedule, x, times, generator):
    """For each x_0 (N, d), one walk up the times (from 0), and its log-ratio (N,)."""
    total = torch.zeros(len(x), dtype=x.dtype)
    for before, after in zip(times[:-1], times[1:], strict=True):
        alpha, sigma = schedule.transition(after, before)
        push = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        x_next = alpha * x + sigma * push
        log_q = -(push.square().sum(1) + x.shape[1] * torch.log(2 * math.pi * sigma**2)) / 2
        total = total + kernel(x_next, after, before).log_prob(x) - log_q
        x = x_next
    return total + log_end(x)


# %%
schedule, ten = cosine(), torch.linspace(0, 1, 11, dtype=torch.float64)
noised_end = blobs.noised(schedule.alpha(1.0), schedule.sigma(1.0)).log_prob
x_0 = blobs.sample(2000, seeded(19))[0]
walks = log_ratio_of_walks(kernels.exact(blobs, schedule), noised_end, schedule, x_0, ten, seeded(20))
print(f"exact steps: off by at most {float((walks - blobs.log_prob(x_0)).abs().max()):.0e}")
for count in (10, 40):
    times = torch.linspace(0, 1, count + 1, dtype=torch.float64)
    error = blobs.log_prob(x_0) - log_ratio_of_walks(kernels.moment_matched(blobs, schedule), noised_end, schedule, x_0, times, seeded(21))
    print(f"Gaussian steps, {count}: gap {float(error.mean()):.3f} +- {float(error.std()) / 2000**0.5:.3f}, deviation of a walk {float(error.std()):.2f}")
torch.testing.assert_close(walks, blobs.log_prob(x_0))
