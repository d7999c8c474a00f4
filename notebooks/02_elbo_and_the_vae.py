# %% [markdown]
# # 02 · The ELBO and the VAE: what does a bound cost, and who pays?
#
# Your model has a hidden cause: it draws a few numbers, a network makes a picture of them, noise is added. How likely is
# *this* picture? You would have to try all causes. So one maximises a lower bound instead, the ELBO, with a second network
# that guesses the cause (together a *variational autoencoder*, VAE). How much is lost, and how noisy is what is left?
#
# The short answer: **for a given model, with the right guess one draw gives the exact log-likelihood; near it, the loss
# is half the square of the noise. But a guess that leaves out a possible cause can be as quiet, and wrong. And training with a guess can cost more than the gap: it can lead to another model.**
#
# **After this chapter you can**
# * derive the bound and say exactly what it leaves out;
# * read the noise of one draw as the size of what is lost, and say when that misleads;
# * tell apart what a trained VAE loses by its decoder, its family of guesses and its encoder;
# * say when a latent (a hidden number) switches off rightly, and what makes a chain of latents a diffusion model.
#
# **You need** [chapter 00](00_start_here.ipynb) and [chapter 01](01_noising.ipynb), Gaussians in several dimensions, Bayes' rule.
#
# *27 minutes to read, 20 more for Deeper, 25 seconds to run, on a laptop, without a GPU or a network connection.*

# %%
import math

import torch

from difflesson import curves, elbo, exercises, kernels, plane, plotting
from difflesson.schedule import cosine
from difflesson.steps import FullGaussian

torch.set_num_threads(1)

# %% [markdown]
# ## You would have to try all causes
#
# A model with one hidden number: $z$ is drawn from $\mathcal N(0, 1)$, a curve says where it puts its point, and noise of deviation $s = 0.1$ is added. All causes
# of *one* number fit on a fine grid, so we know the truth.

# %% tags=["hide-input"]
def seeded(number):
    return torch.Generator().manual_seed(number)


def place(z):
    """Where the hidden number z, (..., 1), puts its point, (..., 2)."""
    turn = z + 1.4
    return torch.cat([2 * turn.sin(), 0.8 * (2 * turn).sin() + 0.25 * z], -1)

# %%
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

# %% tags=["remove-cell"]
prior_chance = (-grid[:, 0].square() / 2).softmax(0)
explains = (joint(grid) - elbo.log_guess(grid, torch.zeros(1), torch.zeros(1))).exp()  # p(x | z)
assert round(float(prior_chance @ explains.square() / (prior_chance @ explains).square()), -1) == 120

# %% tags=["hide-input"]
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
# *Left: few of the causes that the model draws (grey) put their point near the cross; a good guess of the cause (blue) knows which. Right: estimates of $\log p(x)$; dashed: the truth. Here one draw of a good guess (the Gaussian of the posterior's mean and deviation) beats 1,000 of the prior.*
#
# **What happens.** $p(x)$ is the average of $p(x \mid z)$ over causes. Most causes explain nothing of this point, so few draws mostly miss nearly all of
# the average, and its logarithm comes out far too low. For one hidden number 1,000 draws do. If several such numbers must be right at once, each further one multiplies the draws by about 120.
#
# **What a guess changes.** Draw causes that explain the point, from a distribution $q$, and make up for the preference: weigh each by $p(x, z) / q(z)$. The average of this quotient over $q$ is $p(x)$, if $q$ leaves out no cause; the average of its *logarithm* is at most $\log p(x)$: the bound.
# Making the guess is extra work: here a sum over the grid, in a VAE the encoder.
#
# **Why one draw can be enough.** Let $q$ be the *posterior*: how probable each cause is, once the point is seen. For a cause that is twice as probable $p(x, z)$ is twice as large, and so is what
# divides it. So the quotient is the same for *every* cause, and nothing is left to average.
#
# ## What the bound leaves out, exactly
#
# Bayes' rule says $p(x, z) = p(x)\, p(z \mid x)$. So for every single $z$ the *log-ratio* $r(z) = \log p(x, z) - \log q(z \mid x)$ is $\log p(x) - u(z)$, with $u(z) = \log q(z \mid x) - \log p(z \mid x)$ the error of the guess.
# Average over draws of $q$. The average of $u$ is a divergence, $\mathrm{KL}(q \,\|\, p) = \mathbb E_q[\log (q / p)]$:
#
# $$ \log p(x) = \mathbb E_q\big[ \log p(x, z) - \log q(z \mid x) \big] + \mathrm{KL}\big( q(z \mid x) \,\|\, p(z \mid x) \big). \label{eq-elbo-split} $$
#
# The first term is the ELBO (*evidence lower bound*): a divergence is never negative. What it leaves out, the *gap*, is the divergence of the guess from the
# posterior. $\log p(x)$ knows nothing of $q$, so a better $q$ raises the bound by exactly what it takes off the gap. (A change of the *model* moves all three.)
#
# For code, take $p(x, z) = p(z)\, p(x \mid z)$ apart:
#
# $$ \mathrm{ELBO} = \mathbb E_q\big[ \log p(x \mid z) \big] - \mathrm{KL}\big( q(z \mid x) \,\|\, p(z) \big). \label{eq-elbo-terms} $$
#
# This divergence, from the *prior*, is part of the bound; the one from the *posterior* is the gap. In $k$ dimensions, of $\mathcal N(m, C)$ from $\mathcal N(m', C')$,
#
# $$ \mathrm{KL} = \frac12 \Big( \log \frac{\det C'}{\det C} - k + \mathrm{tr}\big( C'^{-1} C \big) + (m' - m)^\top C'^{-1} (m' - m) \Big). \label{eq-gaussian-kl} $$
#
# Where all is linear and Gaussian, $x = W z + b + s\, \varepsilon$, the posterior is Gaussian (Deeper), and all terms have closed forms:

# %%
W = torch.tensor([[1.2, 0.3], [-0.4, 0.9], [0.5, 0.8]]).double()
model = elbo.LinearGaussian(W, torch.tensor([0.2, -1.0, 0.5]).double(), 0.6)
seen = torch.tensor([[1.0, 0.4, -0.3], [-2.0, -1.5, 1.1]]).double()
right = model.posterior(seen)
wrong = FullGaussian(right.mean + 0.2, right.cov + torch.tensor([[0.2, 0.1], [0.1, 0.3]]).double())
gap = elbo.gaussian_kl(wrong, right)
exactly = model.log_prob(seen)
bound = model.elbo(seen, wrong)
print("log p {} = bound {} + gap {}".format(*(part.numpy().round(3) for part in (exactly, bound, gap))))
torch.testing.assert_close(bound + gap, exactly)
torch.testing.assert_close(model.elbo(seen, right), exactly)

# %% [markdown]
# With the posterior as guess, the bound *is* $\log p(x)$. (The gaps are equal: both posteriors got the same error.)
#
# ## The right guess needs one draw
#
# Look at the log-ratio before it is averaged, $r(z) = \log p(x) - u(z)$. If $q$ is the posterior, $u = 0$ and $r(z) = \log p(x)$ for *every* $z$: **there the gap and the noise both vanish.**
#
# How fast, if $u$ is at most of the size $h$, *wherever the posterior or the guess has mass*? The posterior integrates to one, so $\mathbb E_q[e^{-u}] = \mathbb E_q[p / q] = 1$. Expand the exponential: $1 - \mathbb E_q[u] + \frac12 \mathbb E_q[u^2] = 1$, up to terms of the size $h^3$.
# So to this order the gap, $\mathbb E_q[u]$, is $\frac12 \mathbb E_q[u^2]$, and of the size $h^2$. The square of this mean does not count, so $\mathbb E_q[u^2]$ is the variance of $u$, and of $r$:
#
# $$ \mathrm{KL}(q \,\|\, p) = \frac12\, \mathrm{Var}_q\big[ r(z) \big] + O(h^3). \label{eq-gap-and-spread} $$
#
# **Near the posterior the gap is half the squared deviation of one draw.** We bend the posterior of our point by a wave, $q \propto p(z \mid x)\, e^{h g(z)}$, and sum over the grid:

# %%
# [eq-gap-and-spread]
def gap_and_spread(log_q, log_p):
    """From log-probabilities on a grid: KL(q || p), and the deviation of one draw of the log-ratio."""
    u = log_q - log_p
    gap = log_q.exp() @ u
    return gap, (log_q.exp() @ (u - gap).square()).sqrt()

# %% tags=["hide-input"]
wave = torch.sin(2 * (grid[:, 0] - mean) / std) + 0.5 * torch.cos((grid[:, 0] - mean) / std)
sizes = [0.01, 0.1, 1.0]
bent = [gap_and_spread((log_posterior + h * wave).log_softmax(0), log_posterior) for h in sizes]
for h, (gap, spread) in zip(sizes, bent, strict=True):
    print(f"h = {h:4}: gap {float(gap):.6f}, deviation of a draw {float(spread):.4f}, gap over half its square {float(2 * gap / spread**2):.3f}")
assert abs(float(2 * bent[0][0] / bent[0][1] ** 2) - 1) < 0.01

# %% [markdown]
# The ratio tends to 1.
# (VAE code takes the divergence in $\eqref{eq-elbo-terms}$ in closed form. That is right on average, but near the posterior it makes one draw *noisier*: [Deeper](#deeper-one-part-exact-and-more-noise).)
#
# ### Pitfall: quiet and wrong
#
# "All draws agree, so the bound is tight." Where the curve crosses itself, a point has two kinds of causes. Guess one of them, well:

# %% tags=["hide-input"]
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
starved = (elbo.log_guess(grid, centre, width.log()).log_softmax(0) - joint(grid, torn).log_softmax(0))[grid[:, 0] > 0.2]
assert float(starved[both[grid[:, 0] > 0.2].argmax()]) < -2000
with plotting.style():
    figure, axes = plotting.plt.subplots(1, 3, figsize=(9.2, 2.9))
    near = torch.linspace(-3, 3, 121).double()[:, None] * std + mean
    for factor, colour, text, where in ((2.0, orange, "twice too wide", (-1.3, -1.9)), (1.0, blue, "good guess", (1.1, -2.5))):
        axes[0].plot((near - mean) / std, joint(near) - elbo.log_guess(near, mean, (factor * std).log()), color=colour)
        axes[0].text(*where, text, color=colour)
    axes[0].axhline(float(log_p), color="black", linestyle="dashed", linewidth=1)
    axes[0].text(-1.25, float(log_p) - 0.27, "posterior: $\\log p(x)$", fontsize=8.5)
    axes[0].set(xlabel="cause, in deviations from the mean", title="log-ratio of each cause", ylim=(-5.2, -1.6))
    axes[1].loglog(sizes, [float(gap) for gap, _ in bent], "o-", color=orange, markersize=4)
    axes[1].loglog(sizes, [float(spread) for _, spread in bent], "o-", color=blue, markersize=4)
    axes[1].text(0.009, 1.0, "deviation of a draw", color=blue)
    axes[1].text(0.06, 0.0004, "gap", color=orange)
    axes[1].set(xlabel="error $h$ of the guess", title="first and second order", ylim=(2e-5, 4))
    near = (grid[:, 0] > -2.2) & (grid[:, 0] < 2.4)
    axes[2].plot(grid[near, 0], both[near] * 1000, color="black", linestyle="dashed", linewidth=1)
    axes[2].plot(grid[near, 0], elbo.log_guess(grid[near], centre, width.log()).exp(), color=orange)
    axes[2].text(-0.9, 3.0, "guess", color=orange)
    axes[2].text(0.1, 2.6, "posterior")
    axes[2].set(xlabel="cause $z$", title="quiet and wrong", ylabel="density")
    shown = plotting.show(figure, "02_one_draw", alt="Three panels. Left, the log-ratio over the cause: a dashed level line for the posterior, a blue curve close to it in the middle for a good guess, an orange parabola for a guess twice too wide. Middle, on logarithmic axes the deviation of a draw falls with slope one and the gap with slope two. Right, a dashed posterior with two humps and an orange guess that covers only the left one.")
shown

# %% [markdown]
# *Left: the log-ratio of each cause is level for the posterior as guess (dashed); for a good guess it is far off only where few draws go. Middle: as the guess gets better, the gap falls as the square of the noise. Right: a guess that covers one of two humps.*
#
# All draws agree, and the gap is minus the logarithm of the share that $q$ covers. On the other hump $u$ is not small but below $-2{,}000$, and no draw goes there. **Quiet draws mean a tight bound only if the guess starves no cause**, and whether it does, its draws cannot tell.
#
# ## A small VAE, and what it loses, exactly
#
# A *decoder* network puts one hidden number in the plane, with one learned noise $s$; an *encoder* network answers the mean $m$ and the deviation $\tau$ of a Gaussian guess for any $x$. The data are the four blobs of [chapter 00](00_start_here.ipynb#the-story-against-the-truth). Both networks climb the bound: written $z = m + \tau \varepsilon$ with $\varepsilon$ from $\mathcal N(0, 1)$, a draw moves with $m$ and $\tau$ and can be differentiated (*reparameterisation*; other ways, and which is quieter, are in [Deeper](#deeper-two-gradients)).
#
# We sum over all causes again, so we know the true $\log p(x)$ *of the trained model*, and the gap of every point. Two things make the gap. The guess is a Gaussian, the posterior is none: even the best Gaussian for this point leaves the *approximation gap*. And one encoder answers for all points: the rest is the *amortisation gap*. The best Gaussian of each point is found with the exact divergence as loss:

# %% tags=["hide-input"]
blobs = plane.four_blobs()
vae, kept = elbo.train_vae(blobs, steps=1500, keep=(0, 100, 400))
points = blobs.sample(1000, seeded(11))[0]
causes, apart = torch.linspace(-4.5, 4.5, 451).double(), 0.02


def over_causes(vae):
    """log p(x) of the trained model, and log p(z | x), (1000, 451)."""
    table = elbo.log_joint(points[:, None], causes[:, None], vae.decoder(causes[:, None]), vae.log_s.exp())
    exact = table.logsumexp(1) + math.log(apart)
    return exact, table - exact[:, None]


def gaps(m, log_tau, behind):
    """Of a Gaussian for each point: its divergence from that point's posterior, summed over all causes."""
    q = elbo.log_guess(causes[:, None], m[:, None, None], log_tau[:, None, None])
    return (q.exp() * (q - behind)).sum(1) * apart


exact, behind = over_causes(vae)
answered = [part[:, 0] for part in vae.guess(points)]
lost = blobs.log_prob(points) - exact  # by the decoder
log_q = elbo.log_guess(causes[:, None], answered[0][:, None, None], answered[1][:, None, None])

# %% tags=["hide-input"]
def best_gaussian(behind, steps=40):
    """Of each point: the best of a lattice of Gaussians, then moved downhill in the exact divergence."""
    lattice = torch.cartesian_prod(torch.linspace(-3, 3, 61).double(), torch.linspace(-2.7, 0.3, 16).double())
    q = elbo.log_guess(causes[:, None], lattice[:, :1, None], lattice[:, 1:, None])  # (976, 451)
    losses = (q.exp() * q).sum(1)[:, None] - q.exp() @ behind.T
    leaves = [part.clone().requires_grad_() for part in lattice[losses.argmin(0)].T]
    descent = torch.optim.Adam(leaves, lr=0.03)
    for step in range(steps):
        descent.param_groups[0]["lr"] = 0.03 * (1 - step / steps)
        descent.zero_grad()
        gaps(*leaves, behind).sum().backward()
        descent.step()
    return [leaf.detach() for leaf in leaves]


moved = best_gaussian(behind)
total, approximation = gaps(*answered, behind), gaps(*moved, behind)
amortisation = total - approximation
print(f"log p of the data: truth {float(blobs.log_prob(points).mean()):.3f}, VAE {float(exact.mean()):.3f} (less by {float(lost.mean()):.3f} +- {float(lost.std()) / 1000**0.5:.3f}), its bound {float((exact - total).mean()):.3f}")
for name, part in {"gap": total, "approximation": approximation, "amortisation": amortisation}.items():
    top = float(part.topk(100).values.sum() / part.sum())
    print(f"{name:14s} mean {float(part.mean()):.3f} +- {float(part.std()) / 1000**0.5:.3f}, median {float(part.median()):.3f}; a tenth of the points has {top:.0%}")
half = (log_q.exp() * (log_q - behind - total[:, None]).square()).sum(1) * apart / 2
nine_in_ten = [float((total / half).quantile(one)) for one in (0.05, 0.95)]
print("gap over half the variance of one draw, at nine points in ten: {:.1f} to {:.1f}".format(*nine_in_ten))

# %% tags=["remove-cell"]
assert round(float((lost + total).mean()), 2) == 0.26 and round(float(lost.mean()), 2) == 0.15
assert round(float(approximation.mean()), 2) == 0.07 and round(float(amortisation.mean()), 2) == 0.05

# %% tags=["hide-input"]
worst = int(approximation.argmax())
with plotting.style():
    figure, axes = plotting.plt.subplots(1, 3, figsize=(9.2, 2.9))
    axes[0].plot(*blobs.sample(500, seeded(12))[0].T, ".", color=grey, markersize=2)
    axes[0].plot(*vae.sample(500, seeded(13)).T, ".", color=orange, markersize=2)
    axes[0].plot(*vae.decoder(causes[:, None]).T, color="black", linewidth=1)
    axes[0].text(-4.0, 3.8, "data", color=grey)
    axes[0].text(-1.4, 3.8, "drawn by the VAE", color=orange)
    axes[0].set(title="a curve, and noise", xlabel="$x_1$", ylabel="$x_2$", xlim=(-4.2, 4.2), ylim=(-2.9, 4.6))
    axes[1].loglog(approximation[:300].clamp(min=1e-4), amortisation[:300].clamp(min=1e-4), ".", color=blue, markersize=3)
    axes[1].plot((1e-4, 4), (1e-4, 4), color="0.7", linewidth=0.8)
    axes[1].set(title="why each point falls short", xlabel="approximation gap", ylabel="amortisation gap", xlim=(1e-3, 4), ylim=(8e-5, 4))
    axes[2].plot(causes, behind[worst].exp(), color="black", linestyle="dashed", linewidth=1)
    best = [part[worst] for part in moved]
    for (m, log_tau), colour in (([part[worst] for part in answered], orange), (best, blue)):
        axes[2].plot(causes, elbo.log_guess(causes[:, None], m[None], log_tau[None]).exp(), color=colour)
    axes[2].set(title="a posterior with two humps", xlabel="cause $z$", ylabel="density", xlim=(-3, 2))
    shown = plotting.show(figure, "02_gaps", alt="Three panels. Left, grey data in four blobs, a black curve that bends through them, and orange dots scattered evenly about the curve. Middle, on logarithmic axes the amortisation gap of each point over its approximation gap; most dots lie below the diagonal. Right, a dashed posterior with two humps; a blue and an orange bell lie across them, each with one hump of its own.")
shown

# %% [markdown]
# *Left: the decoder's curve, data (grey), draws of the VAE (orange). Middle: the two gaps of some points; below the line the family of guesses loses more than the encoder. Right: the posterior of the point with the largest approximation gap (dashed), the encoder's answer (orange), the best Gaussian (blue). This posterior has two humps, so near that the best Gaussian covers both.*
#
# **Who pays?** From the data's own density to the bound 0.26 nats are lost: 0.15 by the decoder, 0.07 by the family of guesses, 0.05 by the encoder (rounded). The encoder's part sits in few points: a tenth of them has 80 % of it, and at the typical point the family loses more, with medians of 0.051 and 0.007. On average, too, the family loses more, over four thousand other points (in the tests).
# The rule of the half square holds here roughly: at nine points in ten the gap is 0.7 to 1.8 times half the variance of one draw.
#
# But the decoder was trained *with* those guesses. Go on training the VAE, on the bound or on the exact log-likelihood:

# %% tags=["hide-input"]
assert 0.2 < float(torch.distributions.Normal(best[0], best[1].exp()).cdf(torch.tensor(-0.5))) < 0.8  # on both humps
assert [round(one, 1) for one in nine_in_ten] == [0.7, 1.8]


def exact_loss(model, x, generator):
    z = torch.linspace(-4, 4, 201)[:, None]
    return -elbo.log_joint(x[:, None], z, model.decoder(z), model.log_s.exp()).logsumexp(1).mean()


def bound_loss(model, x, generator):
    m, log_tau = model.guess(x)
    z = m + log_tau.exp() * torch.randn(m.shape, generator=generator)
    return -elbo.log_ratio(lambda z: model.log_joint(x, z), z, m, log_tau).mean()


def go_on(loss_of, steps=500):
    model, generator = elbo.VAE(), seeded(0)
    model.load_state_dict(vae.state_dict())
    descent = torch.optim.Adam(model.parameters(), lr=5e-3, betas=(0.9, 0.99))
    for step in range(steps):
        descent.param_groups[0]["lr"] = 5e-3 * (1 + math.cos(math.pi * step / steps)) / 2
        descent.zero_grad()
        loss_of(model, blobs.sample(256, generator)[0].float(), generator).backward()
        descent.step()
    return model.double().requires_grad_(False)

# %% tags=["hide-input"]
unlikely = float(blobs.log_prob(blobs.sample(5000, seeded(15))[0]).quantile(0.05))
ends = {}
print("                       lost by: decoder  best Gaussians     s   unlikelier than 95 % of the data")
for name, ending in {"the VAE": vae, "500 more on the bound": go_on(bound_loss), "500 more, exact": go_on(exact_loss)}.items():
    its_exact, its_behind = over_causes(ending)
    ends[name] = [blobs.log_prob(points) - its_exact, gaps(*best_gaussian(its_behind), its_behind), blobs.log_prob(ending.sample(5000, seeded(14))) < unlikely]
    decoder, family, odd = (float(part.double().mean()) for part in ends[name])
    print(f"{name:21s} {decoder:18.2f} {family:15.2f} {float(ending.log_s.exp()):5.2f}   {odd:.0%} of the draws")

# %% tags=["remove-cell"]
table_of_ends = [[round(float(part.double().mean()), 2) for part in row] for row in ends.values()]
assert table_of_ends == [[0.15, 0.07, 0.12], [0.14, 0.07, 0.12], [0.03, 0.16, 0.07]]

# %% [markdown]
# More steps on the bound change little. On the exact log-likelihood the decoder loses only 0.03, but now the best Gaussians leave 0.16. **So here training with a guess cost more than the gap: it led to another decoder**, with more noise and posteriors nearer to Gaussians.
# After training on the bound 12 % of the model's draws are less likely than 95 % of the data, after the exact steps 7 %; 5 % would be right.
#
# ## When a latent switches off, and is right to
#
# In many VAEs the encoder answers the prior for some latents, whatever $x$: *posterior collapse*. Is the bound to blame? Look at the exact likelihood of the linear model, for given noise $s$. Let $b$ be the data's mean, and let each column of $W$, of length $w_j$, lie along an axis of the data's covariance. Along it the data have the variance $\lambda_j$ (no log-SNR) and the model $v = w_j^2 + s^2$.
# The axis adds the average log-likelihood $-\frac12 (\log v + \lambda_j / v)$, up to a constant: highest at $v = \lambda_j$, and falling beyond. But $v \ge s^2$, so
#
# $$ w_j^2 = \max(\lambda_j - s^2, 0), \qquad \mathbb E[\mathrm{KL}_j] = \frac12 \log \frac{\max(\lambda_j, s^2)}{s^2}, \label{eq-collapse} $$
#
# with $\mathrm{KL}_j$ the divergence of the posterior of latent $j$ from the prior, averaged over the data (derived in Deeper). **A latent is off exactly where the data vary no more than the decoder's noise**, by the likelihood, without any bound.

# %% tags=["hide-input"]
share_of = blobs.weights
off = blobs.means - share_of @ blobs.means
data_cov = (share_of[:, None, None] * (blobs.covs + off[:, :, None] * off[:, None])).sum(0)
squares_tried = torch.linspace(0, 4, 40_001).double()[:, None]
for level in (0.5, 1.2):
    v = squares_tried + level**2
    highest = squares_tried[(v.log() + torch.linalg.eigvalsh(data_cov).flip(0) / v).argmin(0), 0]
    torch.testing.assert_close(elbo.likeliest_linear(data_cov, level, latent=2).square().sum(0), highest, rtol=0, atol=1e-4)
assert highest[0] > 0 and highest[1] == 0

# %% [markdown]
# Not every collapse is right, though: a VAE that starts with much noise may stay in it (Deeper).
#
# ## From here to diffusion
#
# Take a *chain* of causes, $z = (x_1, \dots, x_T)$, and call the picture $x_0$. The model walks from $x_T$ down, the guess from $x_0$ up. $\eqref{eq-elbo-split}$ holds as it stands:
#
# $$ \log p(x_0) = \mathbb E_q\Big[ \log p(x_T) + \sum_t \log \frac{p(x_{t-1} \mid x_t)}{q(x_t \mid x_{t-1})} \Big] + \mathrm{KL}\big( q(x_{1:T} \mid x_0) \,\|\, p(x_{1:T} \mid x_0) \big). \label{eq-chain-bound} $$
#
# Three restrictions make it a diffusion model:
#
# | restriction | gives up | buys |
# |---|---|---|
# | each latent is as large as the picture | a short description | one network for all levels |
# | the encoder is fixed: shrink, add Gaussian noise | a description made for the data | no encoder to train, none that collapses; any level in one draw |
# | the last latent is nearly pure noise | a last latent that tells of the picture | the prior is right, so sampling can begin there |
#
# (Image generators often use both: a VAE makes the picture small, and diffusion, with its guidance, acts on its latents; [Rombach et al. (2022)](https://arxiv.org/abs/2112.10752).)
#
# So the roles are exchanged: the guess is fixed, and the *model* must learn the steps down that make this guess its posterior. For blobs these steps have [a closed form](06_bayes_decomposition.ipynb#deeper-the-step-in-closed-form). Noise each point in 10 steps, once, and add up the log-ratio of that walk. Then replace each step down by the Gaussian of the same mean and covariance:

# %% tags=["hide-input"]
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

# %% tags=["hide-input"]
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

# %% tags=["remove-cell"]
assert abs(float(error.mean() - error.var() / 2)) < 0.004 and 0.04 < float(error.std()) < 0.09

# %% [markdown]
# With exact steps and the exact density at the end every walk gives $\log p(x_0)$: the noisy walk costs nothing by itself. What this bound loses is what the model's steps lack; with Gaussian ones, again about half the square of the deviation. How to take this sum apart, and train with it, is [chapter 03](03_variational_diffusion_model.ipynb#three-terms).
#
# **What is exact, and what is not.** The numbered equations are exact, but for $\eqref{eq-gap-and-spread}$: to second order, where the error of the guess is small on all of the posterior and of the guess. Who pays was measured on one network, one data set and one length of training.
#
# ## In practice
#
# | if you | do | because |
# |---|---|---|
# | report a bound | print the deviation of one draw, for each point | near the posterior the gap is half its square; starved causes it cannot see |
# | train an encoder that is already good | draw the whole log-ratio, and `detach` $m$ and $\tau$ inside $\log q$ | the closed form, or a $\log q$ that is not detached, leaves noise (Deeper) |
# | want a better bound | find out which gap you have | for a given decoder, a better encoder closes only the amortisation gap |
# | find all latents switched off | start again with little noise in the decoder, compare the bounds | in a linear model they are off rightly below the noise; from much noise perhaps by accident |
#
# ## Exercises
#
# Write your answer where the function says `raise NotImplementedError("your turn")`, run the cell, then run the check
# below it.

# %% [markdown]
# ### Exercise 2.1 (easy): what an encoder answers
#
# Most encoders answer the logarithm of the *variance*. For `mean` and `log_var`, both $(N, k)$, return the divergence $\mathrm{KL}(q(z \mid x) \,\|\, p(z))$ of each point, $(N,)$. The coordinates of $q$ are independent, $p(z) = \mathcal N(0, I)$.
#
# <details><summary>Hint</summary>
#
# Put $m' = 0$ and $C' = I$ into $\eqref{eq-gaussian-kl}$. What are the determinant and the trace of a diagonal matrix?
#
# </details>

# %% tags=["exercise"]
def kl_to_prior(mean, log_var):
    ### BEGIN SOLUTION
    return (mean.square() + log_var.exp() - 1 - log_var).sum(1) / 2
    ### END SOLUTION

# %%
exercises.check("2.1", kl_to_prior)

# %% [markdown]
# ### Exercise 2.2 (medium): from draws to an estimate
#
# `r` holds log-ratios of $M$ draws of each of $N$ points, $(M, N)$. The average of $e^{r}$ over draws of $q$ is $p(x)$, if the guess leaves out no cause. Return two estimates for each point, both $(N,)$: the bound, and $\log$ of that average. Log-ratios of pictures are about $-1000$.
#
# <details><summary>Hint</summary>
#
# $e^{-1000}$ is 0 on a computer. `logsumexp` takes the largest one out first. A sum is no average yet.
#
# </details>

# %% tags=["exercise"]
def two_estimates(r):
    ### BEGIN SOLUTION
    return r.mean(0), r.logsumexp(0) - math.log(len(r))
    ### END SOLUTION

# %%
exercises.check("2.2", two_estimates)

# %% [markdown]
# ### Exercise 2.3 (medium): causes far apart
#
# The posterior consists of $K$ clumps of causes, far from each other, with the probabilities `chances`. The guess has exactly their shapes, but the probabilities `shares` (0 for a clump that it forgets, nearly 0 for one that it starves). Both are $(K,)$ and sum to one. Return the gap and the standard deviation of one draw of the log-ratio.
#
# <details><summary>Hint</summary>
#
# Within a clump the log-ratio is level. So it takes one value for each clump, $\log p(x)$ less the log of $q / p$ there. A clump that is never drawn counts nothing.
#
# </details>

# %% tags=["exercise"]
def of_clumps(shares, chances):
    ### BEGIN SOLUTION
    drawn = shares > 0
    u, weight = torch.log(shares[drawn] / chances[drawn]), shares[drawn]
    gap = weight @ u
    return gap, (weight @ (u - gap).square()).sqrt()
    ### END SOLUTION

# %%
exercises.check("2.3", of_clumps)

# %% [markdown]
# ### Exercise 2.4 (hard): a weight on the divergence
#
# Many codes maximise $\mathbb E_q[\log p(x \mid z)] - \beta\, \mathrm{KL}(q(z \mid x) \,\|\, p(z))$ with some weight $\beta > 0$, on purpose ($\beta$-VAE) or not: if you *sum* the divergence over a batch and *average* the reconstruction, then $\beta$ is the size of the batch.
#
# In the linear model, with the noise's deviation `s` given, `variances` $(k,)$ of the data along their axes, and the best $q$: return the best $w_j^2$ and the average divergence of each latent from the prior, both $(k,)$.
#
# <details><summary>Hint</summary>
#
# Divide by $\beta$. What does $\frac1\beta \log \mathcal N(x;\, Wz + b, s^2 I)$ look like, up to a constant that $W$ and $q$ do not move? Then $\eqref{eq-collapse}$.
#
# </details>

# %% tags=["exercise"]
def weighted_collapse(variances, s, beta):
    ### BEGIN SOLUTION
    noise = beta * s**2
    return (variances - noise).clamp_min(0), torch.log(variances.clamp_min(noise) / noise) / 2
    ### END SOLUTION

# %%
exercises.check("2.4", weighted_collapse)

# %% [markdown]
# ### Exercise 2.5 (hard): what the closed form leaves
#
# With the posterior as guess the whole log-ratio has no noise. What noise has the usual estimate, closed divergence and drawn reconstruction? For the linear model with `W` $(d, k)$, `b` $(d,)$, a number `s`, and points `x` $(N, d)$, return the *variance* of one draw of $\log p(x \mid z)$, $z$ from the posterior, $(N,)$. The posterior's mean and covariance are $C\, W^\top (x - b) / s^2$ and $C = (I + W^\top W / s^2)^{-1}$.
#
# <details><summary>Hint</summary>
#
# With $e = x - b - W m$ for the posterior's mean $m$, and $y = W (z - m)$, the exponent is $-\|e - y\|^2 / (2 s^2)$, and $y$ has the covariance $S = W C W^\top$. For a centred Gaussian $\mathrm{Var}(e^\top y) = e^\top S e$, $\mathrm{Var}(\|y\|^2) = 2\, \mathrm{tr}(S^2)$, and the two are uncorrelated. What stands before each?
#
# </details>

# %% tags=["exercise"]
def usual_noise(W, b, s, x):
    ### BEGIN SOLUTION
    cov = torch.linalg.inv(torch.eye(W.shape[1], dtype=W.dtype) + W.T @ W / s**2)
    S = W @ cov @ W.T
    e = (x - b) - (x - b) @ S / s**2  # W m = S (x - b) / s^2
    return ((e @ S) * e).sum(1) / s**4 + S.square().sum() / (2 * s**4)
    ### END SOLUTION

# %%
exercises.check("2.5", usual_noise)

# %% [markdown]
# ## Remember
#
# 1. For every $z$ and $q$, $\log p(x, z) - \log q(z \mid x) = \log p(x) - \log (q(z \mid x) / p(z \mid x))$. Its average over $q$ is the bound; the gap is the divergence of the guess from the posterior.
# 2. With the posterior as guess one draw gives $\log p(x)$. If its error is small wherever the posterior or the guess has mass, the gap is half the squared deviation of one draw. A guess that starves a cause can be as quiet, and too low.
# 3. Near the posterior, the closed form of the divergence from the prior makes one draw noisier. For the gradient it helps to `detach` the parameters of $q$ inside $\log q$ (Deeper).
# 4. A VAE falls short of its own $\log p(x)$ by what its guesses cannot be, and by what its encoder does not find. On our four blobs, after 1,500 steps, the first is larger at most points; the second sits in a few. Training with those guesses also led to another decoder: exact steps make it lose less, and the best Gaussians more.
# 5. In a linear model of given noise $s$, latents along the axes of the data are off exactly where the data's variance is at most $s^2$, by the likelihood itself.
#
# **Where it comes from.** The bound for learned guesses, reparameterised: [Kingma & Welling (2014)](https://arxiv.org/abs/1312.6114), [Rezende et al. (2014)](https://arxiv.org/abs/1401.4082). Holding $q$'s parameters, and no noise at the posterior: [Roeder et al. (2017)](https://arxiv.org/abs/1703.09194). The two gaps: [Cremer et al. (2018)](https://arxiv.org/abs/1801.03558).
# Collapse in the linear model: [Lucas et al. (2019)](https://arxiv.org/abs/1911.02469). A diffusion model as a chain of causes: [Sohl-Dickstein et al. (2015)](https://arxiv.org/abs/1503.03585), [Kingma et al. (2021)](https://arxiv.org/abs/2107.00630).

# %% [markdown]
# ## Deeper: the posterior of the linear model
#
# *For those who want the closed form behind the checks. It adds one square to complete.*
#
# As a function of $z$, $\log p(x, z)$ is $-\frac12 z^\top z - \frac1{2 s^2} \|x - b - W z\|^2$ up to a constant: quadratic, so the posterior is Gaussian. Its precision is minus the second derivative; its mean is where the first one vanishes:
#
# $$ C = \big( I + W^\top W / s^2 \big)^{-1}, \qquad m = C\, W^\top (x - b) / s^2. \label{eq-linear-posterior} $$
#
# The noisier the decoder, the nearer to the prior: $C \to I$, $m \to 0$ as $s$ grows. Bayes' rule must hold at any $z$:

# %%
C = torch.linalg.inv(torch.eye(2) + W.T @ W / 0.6**2)
by_hand = FullGaussian((seen - model.b) @ W @ C / 0.6**2, C.expand(2, 2, 2))
anywhere = torch.randn(50, 2, 2, generator=seeded(22), dtype=torch.float64)
bayes = model.log_joint(seen, anywhere) - model.log_prob(seen)
torch.testing.assert_close(by_hand.log_prob(anywhere), bayes)
torch.testing.assert_close(model.posterior(seen).log_prob(anywhere), bayes)

# %% [markdown]
# The divergence in $\eqref{eq-collapse}$: given $x$, latent $j$ has the variance $s^2 / v$; its mean has the variance $w_j^2 \lambda_j / v^2$ over the data. Put both into $\eqref{eq-gaussian-kl}$: at $v = \lambda_j$ all but the logarithm cancels. Training on the likelihood from random weights leads there. The likelihood knows the latents only up to a rotation. (A guess with independent coordinates, as encoders answer it, is exact only along the axes.) So the trained latents are turned to the axes at the end:

# %% tags=["hide-input"]
def trained_linear(s, steps=400):
    """The W that steps of Adam on the exact log-likelihood of Gaussian data lead to, from a small random one."""
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
for level in (0.5, 1.2):
    squares = torch.linalg.svdvals(trained_linear(level)).square()  # of the columns, once the latents are turned to the axes
    formula = (variances - level**2).clamp_min(0)
    nats = torch.log(variances.clamp_min(level**2) / level**2) / 2
    print(f"s^2 = {level**2:.2f}: w^2 {squares.numpy().round(2)}, KL of each latent {nats.numpy().round(2)}")
    torch.testing.assert_close(squares, formula, rtol=0, atol=0.001)
    best_W = elbo.likeliest_linear(data_cov, level, latent=2)
    torch.testing.assert_close(best_W.square().sum(0), formula)

# %% [markdown]
# ## Deeper: one part exact, and more noise
#
# *For those who code VAEs. It adds the noise of the usual estimate of the bound, which Exercise 2.5 computes in the linear model.*
#
# VAE code computes the divergence in $\eqref{eq-elbo-terms}$ in closed form and draws only the reconstruction, as [Kingma & Welling (2014)](https://arxiv.org/abs/1312.6114) did. For our point and its good guess:

# %%
prior_kl = -std.log() + (mean.square() + std.square() - 1) / 2  # of one number, from the standard normal
usual = joint(draws) - elbo.log_guess(draws, torch.zeros(1), torch.zeros(1)) - prior_kl  # log p(x | z) - KL
for name, one in {"log-ratio": guessed, "with the closed form": usual}.items():
    print(f"{name}: {float(one.mean()):.3f} +- {float(one.std()) / 100:.3f}, deviation of one draw {float(one.std()):.3f}")

# %% tags=["remove-cell"]
assert 5 < usual.std() / guessed.std() < 9 and abs(guessed.mean() - usual.mean()) < 3 * usual.std() / 100

# %% [markdown]
# Both are right on average, and here the closed form is noisier by far. Drawn together, the logarithms of $p(x \mid z)$, $p(z)$ and $q$ cancel each other's noise; with the last two averaged, the first is left alone. (Far from the posterior it may help. For $q$ the prior, both are the same.)
#
# ## Deeper: two gradients
#
# *For those who choose an estimator. It adds two ways to differentiate the bound, and what can be left out of each.*
#
# Training moves the guess, and the guess stands in the draws. Let $q = \mathcal N(m, \tau^2)$, and $\nabla$ the gradient with respect to $m$ and $\log \tau$. Either write the draw as $z = m + \tau \varepsilon$ with $\varepsilon$ from $\mathcal N(0, I)$ (*reparameterisation*): then it moves with $m$ and $\tau$, and can be differentiated.
# Or differentiate the density, $\nabla q = q\, \nabla \log q$. The slope $\nabla \log q$ at a fixed $z$ averages to zero. So any constant $c$ may be subtracted, and the slope of the $\log q$ inside $r$ adds nothing:
#
# $$ \nabla\, \mathbb E_q[r] = \mathbb E_\varepsilon\big[ \nabla r(m + \tau \varepsilon) \big] = \mathbb E_q\big[ (r(z) - c)\, \nabla \log q(z) \big]. \label{eq-two-gradients} $$
#
# The first, *pathwise*, knows where $r$ rises; the second, the *score function*, only which draws did well. In the first, too, the slope of $\log q$ at a fixed $z$ is noise of average zero: leave it out, and $\log q$ is *held*.
# If the guess *is* the posterior, $r$ is level, and both can be without noise: the pathwise one with $\log q$ held, and the score function with $c = \log p(x)$.
#
# On the VAE of the main line both agree, by quadrature, for guesses that are not the best:

# %% tags=["hide-input"]
fresh = blobs.sample(100, seeded(9))[0]
even_eps = torch.linspace(-7, 7, 1401).double()[:, None, None].expand(-1, 5, 1)  # for five points, in place of draws
heights = torch.exp(-even_eps.square() / 2) / torch.exp(-even_eps.square() / 2).sum(0)
shifted = [part.detach()[:5] + 0.3 for part in vae.guess(fresh)]  # no best guess, so that there is a gradient


def ratio_of_five(z, m, log_tau):
    return elbo.log_ratio(lambda z: vae.log_joint(fresh[:5], z), z, m, log_tau)


both_ways = [(heights * slope(ratio_of_five, *shifted, even_eps)).sum(0) for slope in (elbo.pathwise, elbo.score_function)]
torch.testing.assert_close(*both_ways, rtol=0, atol=1e-4)
assert float(both_ways[0].abs().min(1).values.max()) > 0.1

# %% [markdown]
# ## Deeper: which gradient is quieter, in closed form
#
# *For those who choose an estimator. It adds the noise of each on the small VAE, and two cases that this cannot show.*
#
# The deviation of one draw's gradient, root mean square over 100 points, while the VAE of the main line trains:

# %% tags=["hide-input"]
noise, others = torch.randn(2, 200, 100, 1, generator=seeded(10), dtype=torch.float64)


def noises(vae):
    """Deviation of one draw's gradient with respect to m and log tau, root mean square over points, for four estimates."""

    def joint_of(z):
        return vae.log_joint(fresh, z)

    def ratio(z, m, log_tau):
        return elbo.log_ratio(joint_of, z, m, log_tau)

    def reconstruction(z, m, log_tau):  # the rest is in closed form, without noise
        return joint_of(z) - elbo.log_guess(z, torch.zeros(1), torch.zeros(1))

    m, log_tau = vae.guess(fresh)
    level = ratio(m + log_tau.exp() * others, m, log_tau).mean(0)  # of each point
    found = {
        "score function": elbo.score_function(ratio, m, log_tau, noise),
        "with baseline": elbo.score_function(ratio, m, log_tau, noise, level),
        "closed form": elbo.pathwise(reconstruction, m, log_tau, noise),
        "whole": elbo.pathwise(ratio, m, log_tau, noise),
        "whole, held": elbo.pathwise(lambda z, *q: elbo.held(joint_of, z, *q), m, log_tau, noise),
    }
    return {name: float(slopes.var(0).sum(1).mean().sqrt()) for name, slopes in found.items()}

# %% tags=["hide-input"]
measured = {}
for step, weights in kept.items():
    early = elbo.VAE().double().requires_grad_(False)
    early.load_state_dict(weights)
    measured[step] = noises(early)
measured[1500] = noises(vae)
print("     |score function, with baseline|  |pathwise: closed form,    whole,   whole and held|")
for step, row in measured.items():
    print(f"{step:4d} " + "".join(f"{value:15.2f}" for value in row.values()))

# %% tags=["remove-cell"]
times_larger = [row["score function"] / row["with baseline"] for row in measured.values()]
assert round(min(times_larger)) == 5 and round(max(times_larger)) == 25
assert all(measured[step]["whole, held"] < measured[step]["closed form"] / 1.5 for step in (100, 400, 1500))
assert measured[0]["whole, held"] > measured[0]["closed form"]
assert all(row["closed form"] < row["whole"] < 1.15 * row["closed form"] for row in measured.values())
assert measured[1500]["with baseline"] < 1.1 * measured[1500]["whole, held"] < 0.65 * measured[1500]["closed form"]

# %% [markdown]
# A baseline for each point (the mean of 200 other draws) makes the score function 5 to 25 times quieter; at the end it is about as quiet as the best. Drawing the whole log-ratio alone gains nothing over the closed form. Holding $\log q$ gains nothing at the start, and later much: at the end it nearly halves the noise. With many hidden numbers the score function is noisier, where the log-ratio oscillates the pathwise gradient. (The table is of one network and one data set.) So if you cannot differentiate through the draw, take the score function with a baseline for each point.
#
# On the linear model with one hidden number both are right:

# %% tags=["hide-input"]
line = elbo.LinearGaussian(W[:, :1], model.b, 0.6)
m, log_tau = torch.tensor([[0.5]]).double(), torch.tensor([[-0.7]]).double()
leaves = [part.clone().requires_grad_() for part in (m, log_tau)]
exact_bound = line.elbo(seen[:1], FullGaussian(leaves[0], (2 * leaves[1]).exp()[:, :, None]))
exact_slope = torch.cat(torch.autograd.grad(exact_bound.sum(), leaves), 1)[0]


def whole(z, m, log_tau):
    return elbo.log_ratio(lambda z: line.log_joint(seen[:1], z), z, m, log_tau)


eps = torch.randn(100_000, 1, 1, generator=seeded(8), dtype=torch.float64)
path = elbo.pathwise(whole, m, log_tau, eps)[:, 0]
score = elbo.score_function(whole, m, log_tau, eps, baseline=float(exact_bound.detach()))[:, 0]
print(f"exact {exact_slope.numpy().round(3)}")
for name, slopes in (("pathwise", path), ("score function", score)):
    error = slopes.std(0) / 100_000**0.5
    print(f"{name:14s} {slopes.mean(0).numpy().round(3)} +- {error.numpy().round(3)}")
    assert bool(((slopes.mean(0) - exact_slope).abs() < 4 * error).all())

# %% [markdown]
# **A function that oscillates.** Let $f(z) = \cos(k z)$ and $q = \mathcal N(m, \tau^2)$. The pathwise gradient with respect to $m$ is $-k \sin(k z)$. With $\mathbb E[\cos(2kz)] = e^{-2 k^2 \tau^2} \cos(2 k m)$ and $\mathbb E[\sin(kz)] = e^{-k^2 \tau^2 / 2} \sin(k m)$ its variance is
#
# $$ \mathrm{Var}\big[ -k \sin(k z) \big] = \frac{k^2}{2} \big( 1 - e^{-k^2 \tau^2} \big) \big( 1 + e^{-k^2 \tau^2} \cos(2 k m) \big), \label{eq-oscillating} $$
#
# about $k^2 / 2$ once the wave is shorter than the guess is wide. The score-function gradient, $\cos(kz)\, \varepsilon / \tau$, has at most the variance $1 / \tau^2$, however large $k$ is:

# %%
# [eq-oscillating]
def pathwise_variance(k, m, tau):
    """Of the pathwise gradient of the mean of cos(k z) with respect to m, z from N(m, tau^2)."""
    decay = math.exp(-((k * tau) ** 2))
    return k**2 / 2 * (1 - decay) * (1 + decay * math.cos(2 * k * m))

# %%
e = torch.randn(100_000, generator=seeded(23), dtype=torch.float64)
for k in (0.5, 2.0, 8.0):
    z = 0.4 + 0.7 * e
    along, by_density = -k * torch.sin(k * z), torch.cos(k * z) * e / 0.7
    print(f"k = {k}: pathwise variance {float(along.var()):.2f} (formula {pathwise_variance(k, 0.4, 0.7):.2f}), score function {float(by_density.var()):.2f}")
    assert abs(float(along.var()) / pathwise_variance(k, 0.4, 0.7) - 1) < 0.03

# %% [markdown]
# **Many hidden numbers.** Take $n$ copies of a linear model with one hidden number, each guess a little off and a little too wide. The gradient with respect to the first mean, with the mean of other draws as baseline:

# %%
for n in (1, 10, 100):
    copies = elbo.LinearGaussian(1.2 * torch.eye(n).double(), torch.zeros(n).double(), 0.6)
    seen_n = torch.full((1, n), 0.8).double()
    near_m = copies.posterior(seen_n).mean + 0.2
    near_log = copies.posterior(seen_n).cov[:, 0, 0].sqrt().log() + torch.full((1, n), 0.2).double()
    e_n, other_n = torch.randn(2, 4000, 1, n, generator=seeded(24), dtype=torch.float64)

    def ratio_n(z, *q, copies=copies, seen_n=seen_n):
        return elbo.log_ratio(lambda z: copies.log_joint(seen_n, z), z, *q)

    level = ratio_n(near_m + near_log.exp() * other_n, near_m, near_log).mean()
    each = (elbo.pathwise(ratio_n, near_m, near_log, e_n), elbo.score_function(ratio_n, near_m, near_log, e_n, level),
            elbo.pathwise(lambda z, *q, copies=copies, seen_n=seen_n: elbo.held(lambda z: copies.log_joint(seen_n, z), z, *q), near_m, near_log, e_n))
    a, b, c = (float(slopes[:, 0, 0].std()) for slopes in each)
    print(f"{n:3d} hidden numbers: pathwise {a:.2f}, held {c:.2f}; score function {b:.2f}")

# %% [markdown]
# For the score function the log-ratios of all other copies are noise, which grows as $\sqrt n$ in the end. The path of one copy does not see the others.
#
# ## Deeper: a collapse by accident
#
# *For those whose VAE ignores its latent. It adds one that has every reason to use it.*
#
# The two arcs of [chapter 01](01_noising.ipynb#where-there-are-no-data-there-is-nothing-to-learn) are a curve, made for one hidden number. The same network, seed and number of steps, and only another *first* value of the decoder's noise:

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
# The first one ignores its latent, and more than a nat is lost. What could a linear model gain by switching one latent on, with the best noise for each?

# %%
middle_of_arcs = arcs.weights @ arcs.means
spread_of_arcs = (arcs.weights[:, None, None] * (arcs.covs + torch.einsum("ki,kj->kij", *[arcs.means - middle_of_arcs] * 2))).sum(0)
along = torch.linalg.eigvalsh(spread_of_arcs)
gain = (2 * along.mean().log() - along.log().sum()) / 2
print(f"variances of the arcs {along.numpy().round(2)}")
print(f"the best linear model with one latent over that with none: {float(gain):.4f} nats")

# %% [markdown]
# Next to nothing, so little leads away from there. Training had not left it after five times as many steps (in the tests). Two other seeds ended near it, with nearly as low a bound and little more divergence (in the tests). It is an accident of optimisation; $\eqref{eq-collapse}$ is none. (On the blobs a VAE with two latents has a higher bound than with one, and of three one switches off, in the tests.)
#
# ## Deeper: more draws, a tighter bound, and the same blindness
#
# *For those who evaluate models. It adds the importance-weighted bound, and what it does not mend.*
#
# The average of $e^{r}$ over $K$ draws has the mean $p(x)$. So the mean of its logarithm is a bound as well; $K = 1$ is the ELBO, and it does not fall as $K$ grows ([Burda et al. (2016)](https://arxiv.org/abs/1509.00519)). On the point where the curve crosses itself we compare the guess that forgets one branch with one that covers both. The Gaussian that minimises the divergence *the other way round* has the posterior's mean and variance ([chapter 07](07_mean_shift.ipynb#deeper-second-order)):

# %%
middle, broad = both @ grid, (both @ (grid - both @ grid).square()).sqrt()
wide_gap, wide_spread = gap_and_spread(elbo.log_guess(grid, middle, broad.log()).log_softmax(0), joint(grid, torn).log_softmax(0))
print(f"the Gaussian with the posterior's own mean and variance: gap {float(wide_gap):.0f}, deviation of a draw {float(wide_spread):.0f}")


def gap_with(count, m, width, repeats=2000):
    z = m + width * torch.randn(repeats, count, 1, generator=seeded(25), dtype=torch.float64)
    r_all = joint(z, torn) - elbo.log_guess(z, m, width.log())
    return float(log_p_torn - (r_all.logsumexp(1) - math.log(count)).mean())


for count in (1, 10, 100):
    print(f"{count:3d} draws: gap {gap_with(count, middle, broad):.3f} covering both, {gap_with(count, centre, width):.3f} forgetting one")

# %% [markdown]
# For one draw the wide guess has a gap of 94 (the 95.6 is drawn) and is anything but quiet: the bound prefers the one that forgets. The wide guess is better than the narrow one for a hundred. The narrow one stays where it was: no draw ever meets the other branch.
#
# And in training? The noise of the draws is hardly why the bound led the small VAE to another decoder: trained on with the mean log-ratio of fifty draws a point, the decoder still loses 0.12 (in the tests).
#
# ## Deeper: slips in code, and what they cost
#
# *For those who debug. It adds the likely ones, each measured, and one test that finds most.*
#
# For one hidden number with $q = \mathcal N(0.5, 0.3^2)$, the divergence to the prior, and what comes out if ... :

# %%
half, width_q = torch.tensor([[0.5]]).double(), torch.tensor([[0.3]]).double()
q, prior = (FullGaussian(m, v[:, :, None]) for m, v in ((half, width_q**2), (0 * half, torch.ones(1, 1).double())))
slips = {
    "right": elbo.gaussian_kl(q, prior),
    "the deviation taken for the variance": elbo.gaussian_kl(FullGaussian(half, width_q[:, :, None]), prior),
    "the log-variance taken for the log-deviation": elbo.gaussian_kl(FullGaussian(half, (width_q**4)[:, :, None]), prior),
    "the wrong way round": elbo.gaussian_kl(prior, q),
}
for name, value in slips.items():
    print(f"{name}: {float(value):.3f}")
z = half + width_q * torch.randn(100_000, 1, 1, generator=seeded(26), dtype=torch.float64)
drawn = elbo.log_guess(z, half, width_q.log()) - elbo.log_guess(z, torch.zeros(1), torch.zeros(1))
print(f"100,000 draws of log q - log p: {float(drawn.mean()):.3f} +- {float(drawn.std()) / 100_000**0.5:.3f}")
print(f"float32, an unclamped log-variance of 90: variance {float(torch.tensor(90.0).exp())}")

# %% [markdown]
# Draws of $\log q - \log p$ are the test: they need no formula. (The other way round is a divergence as well, of another question: a guess that minimises it covers all causes, as the wide one above.) And two slips in the gradient, on the linear model with one hidden number, with the *right* guess for the first and the guess of the first check above for the second:

# %%
peak = line.posterior(seen[:1])
narrow = peak.cov[:, 0].sqrt().log()
alone = elbo.pathwise(lambda z, *q: line.log_joint(seen[:1], z), peak.mean, narrow, eps)[:, 0]
print(f"log q forgotten, slope by m and log tau: {alone.mean(0).numpy().round(2)}, right: [0, 0]")
fixed = -torch.cat([eps / math.exp(-0.7), eps**2 - 1], -1)[:, 0]  # of -log q at a draw that is held
print(f"draw not differentiated: {fixed.mean(0).numpy().round(3)} +- {(fixed.std(0) / 100_000**0.5).numpy().round(3)}, right: {exact_slope.numpy().round(3)}")
assert abs(float(alone.mean(0)[1]) + 1) < 0.02

# %% [markdown]
# Without $\log q$ the right guess is told to shrink, until it is a point. And if the draw is not differentiated (PyTorch's `sample()` where `rsample()` was meant), autograd still answers something: the slope of $-\log q$ at a fixed $z$. It runs, it is noise, and it averages to zero. With the divergence in closed form it is worse: only the slope of the divergence is left, and that pulls the encoder to the prior.
