# %% [markdown]
# # 05 · Every reverse process at once: does it matter whether a sampler throws dice?
#
# You have a trained network, and a library with a dozen samplers. DDPM throws dice: it adds noise at every step. DDIM in its usual form and the "ODE solvers" never do.
# All promise samples of the same data. Can that be true? And if it is, why would anyone add noise?
#
# The short answer: **with exact guesses and short steps the cloud of samples is the same at every dose of noise. With wrong
# guesses the dose decides which of them count: the more noise, the more the late ones.**
#
# **After this chapter you can**
# * add or remove the noise of a sampler without changing what it samples, if guesses are exact and steps short;
# * say which errors a dose of noise forgets, which it enlarges, and by how much;
# * derive DDIM as the exact solution for a guess that is held, and say what better solvers do;
# * choose a sampler and a number of evaluations; choose a grid, and compute $\log p(x)$ (both in Deeper).
#
# **You need** [chapter 00](00_start_here.ipynb) and [chapter 01](01_noising.ipynb) (noise levels, the score of a mixture, guesses of the clean point), and what a differential equation is.
#
# *28 minutes to read, 26 more for Deeper, 30 seconds to run, on a laptop, without a GPU or a network connection.*

# %%
import math

import torch

from difflesson import curves, exercises, kernels, likelihood, ode, plane, plotting
from difflesson.denoiser import network_denoiser
from difflesson.mixture import GaussianMixture
from difflesson.samplers import draw, sample, time_grid
from difflesson.schedule import cosine, from_betas, vp_linear
from difflesson.steps import Gaussian

torch.set_num_threads(1)

# %% [markdown]
# ## The same start, different dice
#
# Our data are the four blobs of [chapter 00](00_start_here.ipynb#the-story-against-the-truth), with exact guesses. Let three samplers run from the *same* noisy point, six times each. They differ in one number, $\rho$: how much fresh noise they add on the way.


# %%
def seeded(number):
    return torch.Generator().manual_seed(number)


def grid_of(steps):  # evenly spaced in log-SNR, ends at t = 0.001
    return time_grid(steps, schedule, end=0.001)


mixture, schedule = plane.four_blobs(), vp_linear()
free = mixture.denoiser(schedule)
start = torch.randn(6000, 2, generator=seeded(1), dtype=torch.float64)

# %% tags=["hide-input"]
doses, colours = (0.0, 1.0, 2.0), ("unconditional", "conditional", "guided")
ticks, height = grid_of(72), torch.linspace(-4.2, 4.2, 85).double()
clock = schedule.log_snr(ticks)


def along_x1(mixture):
    """The mixture of the first coordinate."""
    return GaussianMixture(mixture.weights, mixture.means[:, :1], mixture.covs[:, :1, :1])


film = [along_x1(mixture).noised(schedule.alpha(t), schedule.sigma(t)).log_prob(height[:, None]).exp() for t in ticks]
same = torch.tensor([[0.9, -0.4]]).double().expand(6, 2)
kernel_at = {rho: kernels.reverse_sde(free, schedule, rho) for rho in doses}
walks = {rho: torch.stack(list(sample(kernel_at[rho], same, ticks, seeded(3))))[:, :, 0] for rho in doses}
ended = {rho: draw(kernel_at[rho], start[:3000], ticks, seeded(4))[:, 0] for rho in doses}

# %% tags=["hide-input"]
with plotting.style():
    figure, axes = plotting.plt.subplots(1, 4, figsize=(9.2, 3.0), sharey=True, width_ratios=(1, 1, 1, 0.62))
    for panel, rho, colour in zip(axes, doses, colours, strict=False):
        panel.pcolormesh(clock, height, torch.stack(film, 1), cmap="gray_r", vmax=0.75, shading="nearest", rasterized=True)
        panel.plot(clock, walks[rho], color=plotting.COLOURS["guided"], linewidth=0.9)
        panel.plot(clock[0], same[0, 0], "o", color="black", markersize=4, clip_on=False, zorder=4)
        panel.set(title=f"$\\rho = {rho:g}$", xlabel="log signal-to-noise ratio", xlim=(-10, 9.2), ylim=(-4.2, 4.2))
        counts = torch.histogram(ended[rho], 28, range=(-4.2, 4.2), density=True)
        axes[3].stairs(counts.hist, counts.bin_edges, orientation="horizontal", color=plotting.COLOURS[colour], linewidth=1.2)
    axes[3].plot(film[-1], height, color="black", linestyle="dashed", linewidth=1)
    axes[3].set(title="3,000 ends", xlabel="density", xlim=(0, None))
    axes[0].set_ylabel("$x_1$")
    shown = plotting.show(figure, "05_same_film", alt="Three panels with the same grey film, the density of the first coordinate from pure noise on the left to three blobs on the right. Orange paths from one point: for rho 0 all six are one smooth line; for rho 1 six rough lines part on the way and end in different blobs; for rho 2 they jump about and part more. A fourth panel shows three histograms of three thousand ends that agree with each other and with the dashed density.")
shown

# %% [markdown]
# *Grey: the density of the first coordinate at every noise level, the same in all panels. Orange: six runs from one starting point.
# The paths differ altogether. The clouds (right: three thousand ends, at $\rho = 0$, 1 and 2 in grey, blue and orange; dashed: the data) agree.*
#
# **Why the clouds agree.** To shake points at random spreads a cloud. To pull each point uphill, to where the cloud is denser, gathers it. Some pull
# exactly undoes a given shake: the points move, and the cloud stays as it is. A sampler without dice carries the cloud from noise to data. To its walk you may add
# a shake with its pull, in any dose.
#
# **Why add noise, then?** For what the pull does besides. It shrinks what is left of the start, and of what the network believed early on; the dice put new width in its place. But it pulls by the network's
# guesses, so what these say *late* counts more. A dose of both does not make guesses better. It moves trust, from early guesses to late ones.
#
# ## A shake and its pull
#
# Let the steps of [chapter 01](01_noising.ipynb#a-thousand-small-steps-are-one-large-step) get short: noising is $dx = -\frac{\beta}{2} x\, dt + \sqrt{\beta}\, dw$, where the rate $\beta(t)$ is the variance that comes in per unit of time (from chapter 06 on, $\beta$ is that of a whole step), $dw$ noise of variance $dt$, and $\alpha_t^2 + \sigma_t^2 = 1$. It shrinks and it shakes. A density changes by what is carried in, less what is carried out, and by what noise spreads (the Fokker-Planck equation; its last term: [chapter 04](04_scores_and_langevin.ipynb#what-one-slope-cannot-see-all-together-see)):
# $\partial_t p_t = \nabla \cdot \big( \frac{\beta}{2} x\, p_t \big) + \frac{\beta}{2} \Delta p_t$. Now $\nabla p = p\, \nabla \log p$, so
# $\Delta p = \nabla \cdot (p\, \nabla \log p)$: **to be spread by noise of rate $\beta$ is the same, for the density, as to be carried by the velocity $-\frac{\beta}{2} \nabla \log p$**. Write both terms as velocities:
#
# $$ \frac{dx}{dt} = -\frac{\beta(t)}{2} \big( x + \nabla \log p_t(x) \big). \label{eq-probability-flow} $$
#
# This is the *probability flow*. It has no dice. A cloud that it carries, towards the data or away, has the density $p_t$ at every time if it has it at one.

# %%
# [eq-probability-flow]
def change_by(flow, x, log_density):
    """How fast log p changes in time at fixed points, if every point has the velocity `flow`: (N,)."""
    spread = plane.jacobian(flow, x).diagonal(dim1=1, dim2=2).sum(1)  # the divergence
    return -spread - (flow(x) * log_density.score(x)).sum(1)


# %% tags=["hide-input"]
t, h, x = 0.4, 1e-5, start[:5]
levels = {u: mixture.noised(schedule.alpha(u), schedule.sigma(u)) for u in (t - h, t, t + h)}
by_hand = -schedule.beta(t) / 2 * (x + levels[t].score(x))
torch.testing.assert_close(ode.probability_flow(free, schedule)(x, t), by_hand)
change = (levels[t + h].log_prob(x) - levels[t - h].log_prob(x)) / (2 * h)
torch.testing.assert_close(change_by(lambda x: ode.probability_flow(free, schedule)(x, t), x, levels[t]), change, atol=1e-8, rtol=0)

# %% [markdown]
# Run it towards the data, and shake: noise of rate $\rho^2 \beta$. The pull that undoes it is the velocity $\frac{\rho^2 \beta}{2} \nabla \log p_t$, uphill. (Both together leave $p_t$ alone: Langevin dynamics, [chapter 04](04_scores_and_langevin.ipynb#a-slope-needs-no-normaliser).) So for every $\rho \ge 0$, with $dt < 0$ and $d\bar w$ for the noise of a run backwards:
#
# $$ dx = -\frac{\beta}{2} \big( x + (1 + \rho^2)\, \nabla \log p_t(x) \big)\, dt + \rho\, \sqrt{\beta}\; d\bar w. \label{eq-reverse-sde} $$
#
# In words: of $1 + \rho^2$ parts of the score, one carries the cloud and $\rho^2$ make up for the dice. $\rho = 0$ is the probability flow, $\rho = 1$ the reverse process that DDPM takes steps of. (`kernels.reverse_sde` takes *Euler steps*: the right side at $t$, times the length of the step.)

# %%
step = schedule.beta(t) * 0.001
for rho in (0.0, 0.5, 2.0):
    one = kernels.reverse_sde(free, schedule, rho)(x, t, t - 0.001)
    torch.testing.assert_close(one.mean, x + step / 2 * (x + (1 + rho**2) * levels[t].score(x)))
    torch.testing.assert_close(one.var, rho**2 * step)

# %% [markdown]
# **Do the clouds agree?** Project our points on twelve directions. In each, the truth has a distribution function in closed form. The *misfit* is the largest gap to it. Four doses, three noise levels:


# %% tags=["hide-input"]
def misfit(x, truth, directions=12):
    """Largest gap between the distribution functions of points (N, 2) and of a mixture, over directions."""
    angles = torch.arange(directions).double() * math.pi / directions
    axes = torch.stack([angles.cos(), angles.sin()])  # (2, directions)
    values, means = (x @ axes).sort(0).values, truth.means @ axes  # (N, directions), (K, directions)
    widths = torch.einsum("id,kij,jd->kd", axes, truth.covs, axes).sqrt()
    cdf = torch.einsum("k,knd->nd", truth.weights, torch.special.ndtr((values - means[:, None]) / widths[:, None]))
    rank = torch.arange(len(x) + 1).double()[:, None] / len(x)
    return float(torch.maximum(cdf - rank[:-1], rank[1:] - cdf).max())


def at(t, data=mixture):
    return data.noised(schedule.alpha(t), schedule.sigma(t))


# %% tags=["hide-input"]
times, stops, gaps = grid_of(240), (80, 160, 240), {}
limit = math.sqrt(math.log(24 * 12 / 0.01) / (2 * 6000))  # 12 looks at 12 directions, all together 1 %
print("log-SNR   ", "   ".join(f"{float(schedule.log_snr(times[k])):5.1f}" for k in stops))
for rho in (0.0, 0.5, 1.0, 2.0):
    run = list(sample(kernels.reverse_sde(free, schedule, rho), start, times, seeded(4)))
    gaps[rho] = [misfit(run[k], at(times[k])) for k in stops]
    print(f"rho = {rho:3}  ", "   ".join(f"{gap:.3f}" for gap in gaps[rho]))
print(f"of true points, a gap beyond {limit:.3f} in this table: chance at most 1 %")
assert all(gap < limit for row in gaps.values() for gap in row)

# %% [markdown]
# No gap exceeds what true points exceed at most once in a hundred times ([Massart (1990)](https://doi.org/10.1214/aop/1176990746)). With exact guesses and short steps no dose improves or harms anything that this test can see.
#
# ## What the dose decides: whom to believe
#
# Now let the guesses be wrong. Take data where all can be computed: a Gaussian, in one direction, with mean $m$ and variance $c$. (A full covariance is this along each of its axes, each with a clock of its own.) The noisy variance is $V_t = \alpha_t^2 c + \sigma_t^2$, the score $-(x - \alpha_t m) / V_t$. The right clock is
#
# $$ r_t = \alpha_t \sqrt{c / V_t}, \qquad \frac{d r_t}{dt} = -\frac{\beta}{2 V_t}\, r_t, \label{eq-correlation-clock} $$
#
# the *correlation* of the noisy point with the clean one. On the way to the data it rises from about 0 to 1. (For its rate use $\alpha_t' = -\frac{\beta}{2} \alpha_t$, which also gives $V_t' = \beta (1 - V_t)$.)

# %%
# [eq-correlation-clock]
def correlation(t, c, schedule):
    """Of the noisy point at t with the clean one, for data of variance c; and its rate in t."""
    width = schedule.alpha(t) ** 2 * c + schedule.sigma(t) ** 2
    r = schedule.alpha(t) * (c / width).sqrt()
    return r, -schedule.beta(t) / (2 * width) * r


# %% tags=["hide-input"]
clean, noise = 1.7 * start[:, 0], start[:, 1]
pair = torch.stack([clean, schedule.add_noise(clean, noise, 0.3)])
seen, (expected, rate) = torch.corrcoef(pair)[0, 1], correlation(0.3, 1.7**2, schedule)
print(f"t = 0.3: correlation {float(expected):.3f}, of 6,000 points {float(seen):.3f} +- {(1 - float(expected) ** 2) / 6000**0.5:.3f}")
assert abs(seen - expected) < 3 * (1 - expected**2) / 6000**0.5
later, sooner = (correlation(0.3 + k * h, 1.7**2, schedule)[0] for k in (1, -1))
torch.testing.assert_close((later - sooner) / (2 * h), rate, rtol=1e-9, atol=0)

# %% [markdown]
# Let the network believe, when the clock shows $r$, that the data lie at $m + b(r)$. (So $b$ is the error of a belief about the *data*. The guess $\hat x_0$ is then off by $(1 - r^2)\, b$: near the data, a small error of the guess is a large one of the belief.) Take two runs with the same dice, one with right guesses and one with these, and let $D$ be the distance between them. The wrong run's score is $-(x - \alpha_t (m + b)) / V_t$. In the difference of two equations $\eqref{eq-reverse-sde}$ the dice drop out:
#
# $$ -\frac{dD}{dt} = \frac{\beta}{2} \Big[ \Big( 1 - \frac{1 + \rho^2}{V_t} \Big) D + (1 + \rho^2)\, \frac{\alpha_t}{V_t}\, b \Big]. $$
#
# Measure it in deviations, $u = D / \sqrt{V_t}$, and by the clock $\eqref{eq-correlation-clock}$. With $V_t' = \beta (1 - V_t)$ this is $-\frac{du}{dt} = \frac{\beta}{2 V_t} \big[ {-\rho^2 u} + (1 + \rho^2) \frac{\alpha_t b}{\sqrt{V_t}} \big]$. Divide by $-\frac{dr}{dt} = \frac{\beta}{2 V_t} r$:
#
# $$ \frac{du}{dr} = -\frac{\rho^2}{r}\, u + (1 + \rho^2)\, \frac{b}{\sqrt c}, \qquad \text{or} \qquad \frac{d}{dr} \big( r^{\rho^2} u \big) = (1 + \rho^2)\, r^{\rho^2}\, \frac{b}{\sqrt c}. $$
#
# On the left the first term forgets, the second believes, and a larger dose does more of both. Integrate the right one. Beliefs off by $b(r)$, after a start at $r_T$ that is off by $u_T$ deviations, move the sample by
#
# $$ \delta = \sqrt{c}\; r_T^{\rho^2}\, u_T + \int_{r_T}^1 \Big[ (1 + \rho^2)\, r^{\rho^2}\, b(r) \Big]\, dr. \label{eq-error-weights} $$
#
# **The start** is remembered by the factor $r_T^{\rho^2}$: fully without dice. From pure noise, here $r_T = 0.01$, a hundredth is left at $\rho = 1$, and a third still at $\rho = \frac12$. **Each belief** has a weight: $1$ everywhere without dice, $2r$ for $\rho = 1$, $5 r^4$ for $\rho = 2$. Up to the reading $r$ they have together $r^{1 + \rho^2}$ (less that of $r_T$), and the whole way has 1, *for every $\rho$*. So:
#
# * wrong in the same way at all levels ($b$ constant): the samples are off by $b$, and no dose helps;
# * wrong early: a dose forgets it; wrong late: a dose enlarges it. Late begins where the weight exceeds 1, at $r = \frac12$ for $\rho = 1$, at $0.67$ for $\rho = 2$.

# %%
# [eq-error-weights]
def moved_by(b, edges, off, c, rho):
    """How far a start off by `off`, and beliefs off by b[k] between edges[k] and edges[k + 1], move the sample."""
    weights = (edges ** (1 + rho**2)).diff()
    return c**0.5 * edges[0] ** (rho**2) * off + (weights * b).sum()


# %% tags=["remove-cell"]
r_start = float(correlation(torch.tensor(1.0).double(), 2.5, schedule)[0])
assert round(r_start, 2) == 0.01 and 0.31 < r_start**0.25 < 0.34 and round(5**-0.25, 2) == 0.67

# %% [markdown]
# Try it: on a part of the way the network takes the data for shifted ones. For a Gaussian the formula must hold; and for the blobs?


# %%
def believing(data, shift, first, last):
    """A denoiser that takes the data for shifted ones while first <= t <= last."""
    right = data.denoiser(schedule)
    wrong = GaussianMixture(data.weights, data.means + shift, data.covs).denoiser(schedule)
    return lambda x, t: (wrong if first <= float(t) <= last else right)(x, t)


# %% tags=["hide-input"]
def ends_of(denoiser, rho, x, steps=100):
    """First coordinates of samples from x; the dice are always the same."""
    return draw(kernels.reverse_sde(denoiser, schedule, rho), x, grid_of(steps), seeded(6))[:, 0]


# %% tags=["hide-input"]
windows = {"early": (0.5, 1.0), "middle": (0.2, 0.5), "late": (0.0, 0.2)}
bell = GaussianMixture([1.0], torch.tensor([[0.5, -1.0]]).double(), torch.tensor([[[2.5, 0.0], [0.0, 1.0]]]))
clock_at = {t: float(correlation(max(t, 0.001), 2.5, schedule)[0]) for t in (0.0, 0.2, 0.5, 1.0)}
shift, strengths, foretold, on_bell, on_blobs = torch.tensor([0.3, 0.0]).double(), (0.0, 0.5, 1.0, 1.5, 2.0), {}, {}, {}
truly = {rho: ends_of(free, rho, start[:1000]) for rho in strengths}
truly_bell = {rho: ends_of(bell.denoiser(schedule), rho, start[:2], 240) for rho in strengths[::2]}
print(f"{'rho':28s}" + "".join(f"{rho:6.1f}" for rho in strengths))
for name, (first, last) in windows.items():
    edges = torch.tensor([clock_at[last], clock_at[first]]).double()
    foretold[name] = [float(moved_by(torch.ones(1), edges, 0.0, 2.5, rho)) for rho in strengths]
    wrong = believing(bell, shift, first, last), believing(mixture, shift, first, last)
    on_bell[name] = [float((ends_of(wrong[0], rho, start[:2], 240) - truly_bell[rho]).mean()) / 0.3 for rho in truly_bell]
    gaps_of = [(ends_of(wrong[1], rho, start[:1000]) - truly[rho]) / 0.3 for rho in strengths]
    on_blobs[name] = [(float(gap.mean()), float(gap.std()) / 1000**0.5) for gap in gaps_of]
    title = f"wrong {name}, r {clock_at[last]:.2f} to {clock_at[first]:.2f}"
    print(f"{title:28s}" + "".join(f"{value:6.2f}" for value in foretold[name]))
    print(f"{'runs on a Gaussian':28s}" + (" " * 6).join(f"{value:6.2f}" for value in on_bell[name]))
    print(f"{'runs on the blobs':28s}" + "".join(f"{value:6.2f}" for value, _ in on_blobs[name]))
    assert all(abs(a - b) < 0.025 for a, b in zip(on_bell[name], foretold[name][::2], strict=True))
worst = max(scatter for row in on_blobs.values() for _, scatter in row)
print(f"largest standard error on the blobs {worst:.3f}")
for name, row in on_blobs.items():
    change = row[-1][0] - row[0][0]
    assert change < -0.3 if name == "early" else change > 0.05

# %% tags=["hide-input"]
with plotting.style():
    figure, (weights, found) = plotting.plt.subplots(1, 2, figsize=(8.6, 3.1))
    axis, shades = torch.linspace(0, 1, 101), {"early": "unconditional", "middle": "conditional", "late": "guided"}
    for rho, place in zip((0.0, 1.0, 2.0), ((0.1, 0.3), (0.47, 0.13), (0.70, 0.05)), strict=True):
        weights.plot(axis, axis ** (1 + rho**2), color="black", linewidth=0.8 + 0.5 * rho)
        weights.text(*place, f"$\\rho = {rho:g}$")
    for name, (first, last) in windows.items():
        colour, low, high = plotting.COLOURS[shades[name]], clock_at[last], clock_at[first]
        weights.axvspan(low, high, color=colour, alpha=0.16, linewidth=0)
        weights.text((low + high) / 2, 1.02, name, color=colour, ha="center")
        fine = torch.linspace(0, 2, 81).double()
        found.plot(fine, high ** (1 + fine**2) - low ** (1 + fine**2), color=colour)
        found.errorbar(strengths, [v for v, _ in on_blobs[name]], [2 * s for _, s in on_blobs[name]], fmt="o", markersize=4.5, color=colour)
    weights.set(xlabel="clock $r$: correlation with the clean point", ylabel="weight of all beliefs up to $r$", xlim=(0, 1), ylim=(0, 1.1))
    found.set(xlabel=r"dose of noise, $\rho$", ylabel="share of the shift in the samples", ylim=(0, 0.75))
    for name, place in {"early": (1.27, 0.12), "middle": (1.2, 0.7), "late": (1.6, 0.20)}.items():
        found.text(*place, f"wrong {name}", color=plotting.COLOURS[shades[name]])
    shown = plotting.show(figure, "05_whom_to_believe", alt="Two panels. Left: the weight of all beliefs up to r, over r from 0 to 1: a straight line for rho 0, a parabola for rho 1, and for rho 2 a curve that stays near zero until r is one half; three stretches are shaded, early, middle and late. Right: the share of a shift in the samples, over rho from 0 to 2. For guesses wrong early it falls from two fifths to nearly 0, for guesses wrong late it rises, for the middle it rises a little and falls again. Dots for the blobs follow the lines, above the line for late errors and below it for those of the middle.")
shown

# %% [markdown]
# *Left: the weight that all beliefs up to the reading $r$ have in the sample, for three doses; shaded, three parts of the way. Right: the network believes in shifted data on one part only; how far the samples move, in units of that shift. Lines: $\eqref{eq-error-weights}$, for a Gaussian. Dots: the blobs, with two standard errors. With a larger dose early errors fade and late ones grow.*
#
# For the Gaussian the formula is exact, up to the steps of the run. On the blobs late errors count more than it says, and those of the middle less.
#
# Now beliefs wrong everywhere, or around $r = \frac12$ only, or right ones after a wrong start:

# %% tags=["hide-input"]
push, controls, between = torch.tensor([1.0, 0.0]).double(), {}, tuple(float(schedule.time(math.log(r**2 / (1 - r**2) / 2.5))) for r in (0.8, 0.2))  # t at these r, c = 2.5
for rho in (0.0, 1.0, 2.0):
    told = believing(mixture, shift, 0.0, 1.0), believing(mixture, shift, *between)
    parts = [float((ends_of(d, rho, start[:1000]) - truly[rho]).mean()) / 0.3 for d in told]
    start_off = (ends_of(free, rho, start[:1000] + push) - truly[rho]).mean()
    controls[rho] = *parts, float(start_off)
    print("rho = {:g}: share if wrong everywhere {:.2f}, for r from 0.2 to 0.8 {:.2f}; start off by 1, ends off by {:.2f}".format(rho, *controls[rho]))
assert all(abs(share - 1) < 0.03 for share, _, _ in controls.values())
assert abs(controls[0.0][1] - controls[1.0][1]) < 0.06 and min(controls[0.0][1], controls[1.0][1]) > 0.45
assert controls[0.0][2] > 1 and max(controls[1.0][2], controls[2.0][2]) < 0.05

# %% [markdown]
# An error made at all levels is wholly in the samples, at any dose. One around $r = \frac12$ moves them about alike at $\rho = 0$ and 1, whose weights are $1$ and $2r$. A wrong start is kept without dice, and hardly anything is left of it at $\rho = 1$ and 2. So if two doses agree, the guesses may still be wrong. But if they *disagree*, with short steps and the right start, the guesses are wrong somewhere.
#
# ## Few steps: hold the guess
#
# Each step asks the network, and an Euler step of $\eqref{eq-reverse-sde}$ keeps the whole right side fixed. One can hold less: only the guess. Put $x = \alpha_t \hat x_0 + \sigma_t \hat\varepsilon$ and $\nabla \log p_t = -\hat\varepsilon / \sigma_t$ into $\eqref{eq-probability-flow}$. With $\alpha_t' = -\frac{\beta}{2} \alpha_t$ and $\sigma_t' = \frac{\beta}{2} \frac{\alpha_t^2}{\sigma_t}$ the quotient rule gives (and $x - \sigma_t \hat\varepsilon = \alpha_t \hat x_0$)
#
# $$ \frac{d}{dt} \frac{x}{\sigma_t} = -\frac{\beta \alpha_t}{2 \sigma_t^3}\, \hat x_0, \qquad \frac{d}{dt} \frac{\alpha_t}{\sigma_t} = -\frac{\beta \alpha_t}{2 \sigma_t^3}. $$
#
# So $x / \sigma_t$ grows by $\hat x_0$ times what $\alpha_t / \sigma_t$ grows by. Hold $\hat x_0$ from $t$ to $s$:
#
# $$ \frac{x_s}{\sigma_s} = \frac{x_t}{\sigma_t} + \Big( \frac{\alpha_s}{\sigma_s} - \frac{\alpha_t}{\sigma_t} \Big)\, \hat x_0, \qquad \text{that is,} \qquad x_s = \alpha_s \hat x_0 + \sigma_s \hat\varepsilon. $$
#
# This is DDIM, the *exact* solution for a guess that does not change. For dice, replace a part of $\hat\varepsilon$ by fresh noise $z$, and keep the sum of the variances:
#
# $$ x_s = \alpha_s \hat x_0 + \sqrt{\sigma_s^2 - v}\; \hat\varepsilon + \sqrt{v}\; z, \qquad v = \eta^2\, \frac{\sigma_s^2}{\sigma_t^2} \Big( 1 - \frac{\alpha_t^2}{\alpha_s^2} \Big). \label{eq-ddim} $$
#
# At $\eta = 1$ this is DDPM's step. In short steps $\eta$ is $\rho$ ([chapter 10](10_general_case.ipynb#how-far-does-the-label-move-a-real-step-exactly)).

# %%
s, dice = 0.3, torch.randn(5, 2, generator=seeded(7), dtype=torch.float64)
(alpha_t, sigma_t), (alpha_s, sigma_s) = ((schedule.alpha(u), schedule.sigma(u)) for u in (t, s))
x_0, eps = free(x, torch.tensor(t))
held = sigma_s * (x / sigma_t + (alpha_s / sigma_s - alpha_t / sigma_t) * x_0)
torch.testing.assert_close(kernels.ddim(free, schedule)(x, t, s).mean, held)
v = 0.5**2 * sigma_s**2 / sigma_t**2 * (1 - alpha_t**2 / alpha_s**2)
half = kernels.ddim(free, schedule, eta=0.5)(x, t, s)
by_hand = alpha_s * x_0 + (sigma_s**2 - v).sqrt() * eps + v.sqrt() * dice
torch.testing.assert_close(half.mean + half.var.sqrt() * dice, by_hand)

# %% tags=["hide-input"]
full = kernels.ddim(free, schedule, eta=1.0)(x, t, s)
kept = alpha_t / alpha_s
posterior = (kept * sigma_s**2 * x + alpha_s * (1 - kept**2) * x_0) / sigma_t**2  # DDPM's mean
torch.testing.assert_close((full.mean, full.var), (posterior, (1 - kept**2) * sigma_s**2 / sigma_t**2))

# %% [markdown]
# Better still: hold not the last guess, but what a straight line through the last two guesses has in mid-step. That is DPM-Solver++(2M) of [Lu et al. (2022)](https://arxiv.org/abs/2211.01095), "2M" below; Deeper has the formula. "2M with dice" is DDPM's step ($\eta = 1$) with the value that 2M holds. Now count evaluations, one a step for all of these, with exact guesses, with beliefs wrong early, and wrong late:


# %% tags=["hide-input"]
def with_dice(guesses):
    """DDPM's step, holding what 2M holds."""
    last = {}

    def kernel(x, t, s):
        if t == 1:
            last.clear()
        now, h = guesses(x, t), (schedule.log_snr(s) - schedule.log_snr(t)) / 2
        x_0 = now.x0 + h / (2 * last["h"]) * (now.x0 - last["x0"]) if last else now.x0
        last.update(h=h, x0=now.x0)
        held = now._replace(x0=x_0, eps=(x - schedule.alpha(t) * x_0) / schedule.sigma(t))
        return kernels.ddim(lambda x, t: held, schedule, eta=1.0)(x, t, s)

    return kernel


# %% tags=["hide-input"]
def samplers_of(guesses):
    return {
        "Euler": kernels.reverse_sde(guesses, schedule, 0.0),
        "DDIM": kernels.ddim(guesses, schedule),
        "2M": kernels.dpmpp_2m(guesses, schedule),
        "2M with dice": with_dice(guesses),
        "DDPM": kernels.ddpm(guesses, schedule),
        "Euler, rho = 2": kernels.reverse_sde(guesses, schedule, 2.0),
    }


# %% tags=["hide-input"]
budgets, few = (8, 16, 24, 32, 64, 128), start[:3000]
cases = {"exact guesses": free, "wrong early": believing(mixture, 2 * shift, 0.5, 1.0), "wrong late": believing(mixture, 2 * shift, 0.0, 0.1)}
curve = {}
for case, model in cases.items():
    for name, kernel in samplers_of(model).items():
        ends = [draw(kernel, few, grid_of(n), seeded(8)) for n in budgets]
        curve[case, name] = [misfit(x, at(0.001)) for x in ends]
chance = sorted(misfit(mixture.sample(3000, seeded(20 + k))[0], mixture) for k in range(100))[5:95]
print(f"{'evaluations':29s}", " ".join(f"{n:5d}" for n in budgets))
for (case, name), row in curve.items():
    print(f"{case:13s} {name:15s}", " ".join(f"{value:5.3f}" for value in row))
print(f"90 of 100 clouds of 3,000 true points: {chance[0]:.3f} to {chance[-1]:.3f}")

# %% tags=["remove-cell"]
looks = {"Euler": "black", "DDIM": "unconditional", "2M": "guided", "2M with dice": "black", "DDPM": "conditional", "Euler, rho = 2": "other"}
exact_row, early_row, late_row = ({name: dict(zip(budgets, curve[case, name], strict=True)) for name in looks} for case in cases)
within = {case: {name: [n for n in budgets if curve[case, name][budgets.index(n)] < chance[-1]] for name in looks} for case in cases}
assert within["exact guesses"] == {"Euler": [32, 64, 128], "DDIM": [64, 128], "2M": [16, 24, 32, 64, 128], "2M with dice": [24, 32, 64, 128], "DDPM": [128], "Euler, rho = 2": [64, 128]}
assert within["wrong early"] == {name: [64, 128] if "rho" in name else [] for name in looks} and not any(within["wrong late"].values())
assert all(early_row["2M"][n] < early_row["DDPM"][n] - 0.04 for n in (8, 16)) and all(early_row["2M"][n] > early_row["DDPM"][n] + 0.025 for n in (64, 128))
assert all(early_row[name][128] > 2 * chance[-1] for name in ("Euler", "DDIM", "2M"))
assert all(late_row["Euler, rho = 2"][n] > 1.9 * late_row["2M"][n] for n in budgets) and all(late_row["DDPM"][n] > late_row["2M"][n] for n in budgets)
assert all(row["Euler, rho = 2"][16] > 0.3 for row in (exact_row, early_row, late_row))
assert all(exact_row["2M with dice"][n] < exact_row["DDIM"][n] < exact_row["DDPM"][n] for n in (8, 16, 24, 32, 64)) and all(early_row["2M with dice"][n] < early_row["2M"][n] - 0.02 for n in budgets)
assert all(early_row["DDPM"][n] < early_row["DDIM"][n] - 0.02 for n in budgets[2:]) and abs(early_row["DDPM"][16] - early_row["DDIM"][16]) < 0.015 and early_row["DDPM"][8] > early_row["DDIM"][8] and all(late_row["2M with dice"][n] > late_row["2M"][n] for n in budgets)
assert all(early_row["Euler, rho = 2"][n] < early_row["DDPM"][n] for n in budgets[2:]) and early_row["Euler, rho = 2"][24] < early_row["DDPM"][64]
assert all(exact_row["Euler"][n] < exact_row["DDIM"][n] for n in budgets) and round(float(2 * shift[0]), 1) == 0.6

# %% tags=["hide-input"]
with plotting.style():
    figure, axes = plotting.plt.subplots(1, 3, figsize=(9.2, 3.2), sharex=True, sharey=True)
    for panel, case in zip(axes, cases, strict=True):
        panel.axhspan(min(chance), max(chance), color="0.9", linewidth=0)
        for name, colour in list(looks.items())[1:]:  # Euler, rho = 0: in the table
            line, marker = ("dashed", "o") if name == "2M with dice" else ("solid", "o")
            panel.loglog(budgets, curve[case, name], linestyle=line, marker=marker, markersize=3, linewidth=1.2, color=plotting.COLOURS.get(colour, colour), label=name.replace("rho", r"$\rho$"))
        panel.set(title=case, xlabel="evaluations", xticks=budgets, xticklabels=budgets, yticks=(0.02, 0.05, 0.1, 0.2, 0.5), yticklabels=(0.02, 0.05, 0.1, 0.2, 0.5))
        panel.minorticks_off()
    axes[0].set_ylabel("misfit")
    axes[1].legend(fontsize=8)
    shown = plotting.show(figure, "05_cost", alt="Three log-log panels: misfit over eight to 128 evaluations, with a grey band for chance. Exact guesses: 2M enters the band first, at sixteen, then 2M with dice, DDIM and DDPM; Euler with rho 2 is far above until sixteen and then falls. Wrong early: 2M and DDIM level off far above the band, 2M with dice is below 2M throughout, DDPM crosses 2M near thirty-two and goes on falling, and rho 2 falls into the band. Wrong late: the two without dice level off just above the band, 2M with dice stays above them, DDPM comes down slowly, and rho 2 stays far above.")
shown

# %% [markdown]
# *Misfit of 3,000 samples over evaluations. Wrong early: data believed shifted by 0.6 at $t \ge 0.5$; wrong late: the same at $t \le 0.1$. Grey: 90 of 100 clouds of 3,000 true points. With exact guesses the fastest has no dice. Wrong early, those without dice stop at their error, and more evaluations do not help. Wrong late, the largest dose is worst.*
#
# *Left:* 2M is within chance from about sixteen evaluations on, with dice from about twenty-four, DDIM from about sixty-four, DDPM at about a hundred and twenty-eight. So dice cost evaluations, and a lower order costs more: 2M *with* dice is ahead of DDIM without, up to sixty-four. At $\rho = 2$ Euler steps overshoot at sixteen and fewer. *Middle:* at sixteen evaluations 2M is ahead of DDPM, at thirty-two they are equal, at sixty-four DDPM is ahead. DDPM begins with the larger error of its steps, part of it since they are of first order: 2M with dice is ahead of 2M at every budget.
#
# ### Pitfall: two lines that still make pictures
#
# The whole score in a sampler without dice, and $\rho$ for $\rho^2$ at the score:


# %%
def whole_score(x, t, s):  # the drift of rho = 1, and no dice
    return Gaussian(kernels.reverse_sde(free, schedule, 1.0)(x, t, s).mean, torch.tensor(0.0))


# %% tags=["hide-input"]
def not_squared(x, t, s):  # at rho = 2: (1 + rho) where (1 + rho^2) belongs
    drift = kernels.reverse_sde(free, schedule, 2**0.5)(x, t, s).mean
    return Gaussian(drift, kernels.reverse_sde(free, schedule, 2.0)(x, t, s).var)


slips = {"right, rho = 0": kernels.reverse_sde(free, schedule, 0.0), "right, rho = 2": kernels.reverse_sde(free, schedule, 2.0),
         "whole score, no dice": whole_score, "rho for its square": not_squared}
slipped, total = {}, float((mixture.weights @ (mixture.means**2).sum(1)) - (mixture.weights @ mixture.means).square().sum() + mixture.weights @ mixture.covs.diagonal(dim1=1, dim2=2).sum(1))
for name, kernel in slips.items():
    ends = draw(kernel, few, grid_of(128), seeded(8))
    slipped[name] = misfit(ends, at(0.001)), float(ends.T.cov().trace() / total)
    print("{:24s} misfit {:.3f}, variance {:.2f} of the data's".format(name, *slipped[name]))
assert slipped["right, rho = 0"][0] < chance[-1] and slipped["right, rho = 2"][0] < chance[-1]
assert slipped["whole score, no dice"][1] < 0.01 and slipped["rho for its square"][1] > 1.3

# %% [markdown]
# With the whole score and no dice all of the pull is there, and no shake: the cloud collapses. With $\rho$ for $\rho^2$ the pull is too weak, and the variance half as large again. (At $\rho = 1$ that slip is invisible.)
#
# ### Pitfall: the last step, down to no noise
#
# Heun's method takes the mean of the slopes $(x - \alpha \hat x_0) / \sigma$ at both ends of a step. And the reverse SDE adds noise in every step; also in the last? Two thin arcs, whose width is 0.03, in a hundred steps even in $t$:


# %% tags=["hide-input"]
def slopes_at_both_ends(guesses, least=0.0, off=0.0):
    """Heun's step for x / alpha, over sigma / alpha. In the last: sigma at least `least`, the second guess off by `off`."""

    def kernel(x, t, s):
        alpha, sigma, (x_0, eps) = schedule.alpha(s), schedule.sigma(s).clamp_min(least), guesses(x, t)
        reached = alpha * x_0 + sigma * eps
        again = guesses(reached, s).x0 + off * (s == 0)
        slope = (eps + (reached - alpha * again) / sigma) / 2
        path = sigma / alpha - schedule.sigma(t) / schedule.alpha(t)
        return Gaussian(alpha * (x / schedule.alpha(t) + path * slope), torch.tensor(0.0))

    return kernel


def noise_to_the_end(guesses):
    def kernel(x, t, s):
        return Gaussian(kernels.reverse_sde(guesses, schedule)(x, t, s).mean, schedule.beta(t) * (t - s))

    return kernel


# %% tags=["hide-input"]
thin, to_zero = curves.two_arcs(width=0.03), time_grid(100)
sharp, usual = thin.denoiser(schedule), float(thin.log_prob(thin.sample(20_000, seeded(11))[0]).mean())
flow_end = ode.solve(ode.probability_flow(sharp, schedule), start[:400], 1.0, 1e-6, tolerance=1e-6)
last_steps = {"Heun, Euler at the end": kernels.heun(sharp, schedule), "Heun, both slopes": slopes_at_both_ends(sharp),
              "sigma 1e-6 for 0": slopes_at_both_ends(sharp, 1e-6), "  a guess off by 0.001": slopes_at_both_ends(sharp, 1e-6, 0.001),
              "SDE, no noise at the end": kernels.reverse_sde(sharp, schedule), "SDE, noise at the end": noise_to_the_end(sharp)}
came, missed, nats = {}, {}, {}
print("                          finite   from the flow's end   nats below the data")
for name, kernel in last_steps.items():
    x_last = came[name] = draw(kernel, start[:400], to_zero, seeded(15))
    finite = float(x_last.isfinite().double().mean())
    nats[name] = usual - float(thin.log_prob(x_last).mean()) if finite else math.nan
    missed[name] = float((x_last - flow_end).square().sum(1).mean().sqrt())
    print(f"{name:25s} {finite:6.0%} {'-' if 'SDE' in name else format(missed[name], '.4f'):>15s} {nats[name]:22.2g}")
blur = float((came["SDE, noise at the end"] - came["SDE, no noise at the end"]).square().mean().sqrt())
print(f"blur that the last noise leaves: {blur:.3f}, by its variance {float((schedule.beta(0.01) * 0.01).sqrt()):.3f}")

# %% tags=["remove-cell"]
assert not came["Heun, both slopes"].isfinite().any() and missed["sigma 1e-6 for 0"] < missed["Heun, Euler at the end"] / 2
assert missed["  a guess off by 0.001"] > 20 and nats["  a guess off by 0.001"] > 1000 and nats["Heun, Euler at the end"] < -0.2
assert abs(blur / float((schedule.beta(0.01) * 0.01).sqrt()) - 1) < 0.06 and 1.6 < blur / 0.03 < 2
assert nats["SDE, noise at the end"] > 0.8 and nats["SDE, no noise at the end"] < -0.2

# %% [markdown]
# At $\sigma = 0$ the slope is $0 / 0$, and no sample is left. A tiny $\sigma$ instead is the better step with exact guesses; but one that is off by a thousandth, divided by $\sigma$, throws the samples far away. So libraries take an Euler step there, to the guess itself ([Karras et al. (2022)](https://arxiv.org/abs/2206.00364)). That costs accuracy: the samples end more than twice as far from the flow's ends. Noise in the last step stays: a blur nearly twice as wide as the arcs, and samples a nat less probable than data.
#
# **What is exact, and what is not.** Exact are the two processes, the clock, and $\eqref{eq-error-weights}$ for Gaussian data and beliefs off in the mean. DDIM is exact for a held guess only, and that $\eta$ is $\rho$ holds in short steps. The samplers are compared on four blobs, one grid and two planted errors. Where *your* network is wrong, you have to find out.

# %% [markdown]
# ## In practice
#
# | if you have | do | because |
# |---|---|---|
# | good guesses, few evaluations | 2M, no dice, times even in log-SNR (in a library, `timestep_spacing`: [chapter 20](20_from_here_to_a_real_pipeline.ipynb#a-network-that-cannot-be-wrong)) | on the blobs it was within chance at about sixteen evaluations, DDIM at about sixty-four. On digits ([chapter 15](15_classifier_free_guidance_on_digits.ipynb#deeper-what-it-costs)) it had the largest FID of four samplers at every budget, DDPM the least at all but the smallest |
# | beliefs about the data that are wrong early (at much noise), or a start that is not quite right | a dose: on the blobs 2M with dice from eight evaluations on, or $\rho = 2$ from twenty-four (fewer overshoot) | the start is forgotten like $r_T^{\rho^2}$, and early beliefs weigh less; wrong late, it is the other way round |
# | no idea which | compare the clouds of many steps at $\rho = 0$ and at $\rho = 1$ | if the clouds differ, the guesses are wrong somewhere; if not, they may still be wrong: everywhere alike, or only around $r = \frac12$ |
# | to invert, to interpolate, or $\log p(x)$ | the flow, by 2M, Heun (in Deeper) or an ODE solver | only without dice has each start one end |
# | a last step down to $\sigma = 0$ | take the guess: no second slope, no noise | the slope divides by $\sigma$, and the noise would stay |
# | guidance, $\gamma \ne 1$ | name the dose with the result | a guided guess belongs to no noising, so the dose changes the cloud even with a perfect network ([chapter 17](17_what_does_gamma_sample.ipynb#what-more-noise-mends)) |
#
# ## Exercises
#
# Write your answer where the function says `raise NotImplementedError("your turn")`, run the cell, then run the check
# below it.

# %% [markdown]
# ### Exercise 5.1 (easy): what is left of a mistake
#
# Gaussian data. A network takes the data for data shifted by $b$ while the clock of $\eqref{eq-correlation-clock}$ runs from `first` to `last`, and is right before and after; so is the start. Return which part of $b$ is in the samples of a sampler with noise `rho`.
#
# <details><summary>Hint</summary>
#
# Integrate the weight in $\eqref{eq-error-weights}$ over the stretch. As a check: the whole way, from 0 to 1, gives 1.
#
# </details>

# %% tags=["exercise"]
def part_kept(first, last, rho):
    ### BEGIN SOLUTION
    power = 1 + rho**2
    return last**power - first**power
    ### END SOLUTION


# %%
exercises.check("5.1", part_kept)

# %% [markdown]
# ### Exercise 5.2 (medium): too narrow, by how much?
#
# Data are Gaussian with mean 0 and variance `c`, so that $\hat x_0 = \frac{\alpha c}{V} x$ and $\hat\varepsilon = \frac{\sigma}{V} x$ with $V = \alpha^2 c + \sigma^2$. Without dice ($\eta = 0$), DDIM walks through noise levels given by the tensor `alphas`, the first with the most noise, $\sigma = \sqrt{1 - \alpha^2}$. It begins with points of the right variance $V$ there. Return the variance of its samples at the last level.
#
# <details><summary>Hint</summary>
#
# Each step $\eqref{eq-ddim}$ multiplies $x$ by a number. What does it do to the variance?
#
# </details>

# %% tags=["exercise"]
def ddim_variance(alphas, c):
    ### BEGIN SOLUTION
    sigmas = (1 - alphas**2).sqrt()
    widths = alphas**2 * c + sigmas**2
    factors = (alphas[1:] * alphas[:-1] * c + sigmas[1:] * sigmas[:-1]) / widths[:-1]
    return widths[0] * (factors**2).prod()
    ### END SOLUTION


# %%
exercises.check("5.2", ddim_variance)

# %% [markdown]
# ### Exercise 5.3 (hard): mistakes that do not know of each other
#
# Gaussian data. The clock is cut at `edges` (increasing, from 0 to 1). In each cell the network takes the data for shifted ones, by a shift that is the same in all of the cell. It is drawn anew from one cell to the next, with mean 0 and the deviations `spread` (one a cell). Return the standard deviation of how far the samples are moved, and the dose $\rho$ among those in the list `doses` for which it is smallest.
#
# <details><summary>Hint</summary>
#
# Each cell has one weight. Variances of independent errors add up, with which power of the weights?
#
# </details>

# %% tags=["exercise"]
def independent_mistakes(edges, spread, doses):
    ### BEGIN SOLUTION
    def deviation(rho):
        parts = (edges ** (1 + rho**2)).diff() * spread
        return float(parts.square().sum().sqrt())

    best = min(doses, key=deviation)
    return deviation(best), best
    ### END SOLUTION


# %%
exercises.check("5.3", independent_mistakes)

# %% [markdown]
# ### Exercise 5.4 (research): the dose that you need
#
# The noise may change on the way: $\rho$ may be any function of the clock. You know how well your network guesses at each level. You wish that all beliefs up to $r$ together have the weight $F(r)$ in the sample, with $F(0) = 0$, $F(1) = 1$, $F > 0$ between, and the derivative $F'(r) = f(r)$. Which $\rho(r) \ge 0$ gives it? Return it for numbers $r$ in $(0, 1)$, $F$ and $f$, and the string `"none"` at an $r$ where no dose can.
#
# <details><summary>Hint</summary>
#
# Begin at the equation for $u$ above $\eqref{eq-error-weights}$. A shift believed at $q$ is afterwards multiplied by $M(q) = \exp\big({-\int_q^1 \rho^2\, dr / r}\big)$, so $f(r) = (1 + \rho^2) M(r)$. Show that this is the derivative of $r M(r)$. ($M'(q) = \rho^2 M / q$, $M(1) = 1$.)
#
# </details>

# %% tags=["exercise"]
def dose_for(r, F, f):
    ### BEGIN SOLUTION
    square = r * f / F - 1  # M = F / r, and f = (1 + rho^2) M
    return math.sqrt(square) if square >= 0 else "none"
    ### END SOLUTION


# %%
exercises.check("5.4", dose_for)

# %% [markdown]
# ## Remember
#
# 1. To shake at the rate $\rho^2 \beta$ and to pull by $\frac{\rho^2 \beta}{2} \nabla \log p_t$ undo each other. So with exact guesses and short steps every $\rho \ge 0$ has the same cloud at every noise level; $\rho = 0$ is the probability flow.
# 2. For Gaussian data, and beliefs off in the mean, those up to the correlation $r$ have the weight $r^{1 + \rho^2}$ in the sample. It is 1 for the whole way, from $r_T$ near 0: a dose moves trust to late beliefs, and mends nothing that is wrong everywhere alike.
# 3. An error of the start is multiplied by $r_T^{\rho^2}$, in deviations. The pull shrinks it; the dice give the cloud its width back.
# 4. DDIM is exact for a guess that is held over the step; 2M holds what a line through the last two guesses has in mid-step. On the blobs, with exact guesses, 2M needed the fewest evaluations.
# 5. On the blobs, with beliefs wrong early, DDPM was behind 2M at sixteen evaluations and ahead at sixty-four; with beliefs wrong late it stayed behind. 2M with dice was ahead of 2M from eight on.
#
# **Where it comes from.** Reverse SDE and flow: [Song et al. (2021)](https://arxiv.org/abs/2011.13456). Any $\rho$: [Zhang & Chen (2022)](https://arxiv.org/abs/2204.13902). DDIM: [Song et al. (2021)](https://arxiv.org/abs/2010.02502). 2M: [Lu et al. (2022)](https://arxiv.org/abs/2211.01095). That dice mend early errors, at the price of their own, and help less the better the network, is a finding of [Karras et al. (2022)](https://arxiv.org/abs/2206.00364). The weights $\eqref{eq-error-weights}$ are derived here.

# %% [markdown]
# ## Deeper: what the pull does, and what the dice do
#
# *For those who ask which of the two forgets. It adds runs with one of them alone, beliefs off in the variance, and Song's letters.*
#
# In the equation for $D$ the dice have dropped out. So leave one of the two away, at $\rho = 1$:


# %%
def one_half(denoiser, rho, part):
    """The step with only the pull of this dose, only its dice, or both."""
    both, neither = kernels.reverse_sde(denoiser, schedule, rho), kernels.reverse_sde(denoiser, schedule, 0.0)

    def kernel(x, t, s):
        mean = (neither if part == "dice" else both)(x, t, s).mean
        return Gaussian(mean, torch.tensor(0.0) if part == "pull" else both(x, t, s).var)

    return kernel


# %% tags=["hide-input"]
halves = {}
print(" " * 15 + "start off" + " " * 15 + "    variance  push, in own   correlation,")
print(" " * 15 + "     by 1   early   late    / data's    deviations       new dice")
for what, data in {"Gaussian": bell, "blobs": mixture}.items():
    for part in ("both", "pull", "dice"):
        told = {"right": data.denoiser(schedule), "early": believing(data, shift, *windows["early"]), "late": believing(data, shift, *windows["late"])}
        ends = {name: draw(one_half(d, 1.0, part), start[:1000], grid_of(64), seeded(6)) for name, d in told.items()}
        pushed = draw(one_half(told["right"], 1.0, part), start[:1000] + push, grid_of(64), seeded(6))
        again, right = draw(one_half(told["right"], 1.0, part), start[:1000], grid_of(64), seeded(7)), ends["right"]
        spread = data.sample(1000, seeded(14))[0][:, 0].var()
        moved = [float((x - right)[:, 0].mean()) for x in (pushed, ends["early"], ends["late"])]
        halves[what, part] = [moved[0], moved[1] / 0.3, moved[2] / 0.3, float(right[:, 0].var() / spread)]
        own = moved[0] / float(right[:, 0].std()), float(torch.corrcoef(torch.stack([right[:, 0], again[:, 0]]))[0, 1])
        halves[what, part] += own
        print("{:9s} {:5s}{:9.2f}{:8.2f}{:7.2f}{:12.2f}{:14.2f}{:15.2f}".format(what, part, *halves[what, part]))

# %% tags=["remove-cell"]
assert all(abs(a - b) < 1e-9 for a, b in zip(halves["Gaussian", "both"][:3], halves["Gaussian", "pull"][:3], strict=True))
assert all(abs(halves["Gaussian", "dice"][k + 1] - foretold[name][0]) < 0.03 for k, name in enumerate(("early", "late"))) and halves["Gaussian", "dice"][0] > 1.4
assert all(halves[what, "pull"][3] < 0.001 and halves[what, "dice"][3] > 3 and abs(halves[what, "both"][3] - 1) < 0.15 for what in ("Gaussian", "blobs"))
assert halves["blobs", "pull"][0] < 0.05 < 0.8 < halves["blobs", "dice"][0] and halves["blobs", "pull"][1] < 0.15 < halves["blobs", "dice"][1]
assert all(abs(halves[what, "pull"][4] - 1) < 0.05 and halves[what, "pull"][5] > 0.999 for what in ("Gaussian", "blobs"))
assert all(abs(halves[what, "both"][4]) < 0.03 and abs(halves[what, "both"][5]) < 0.1 and halves[what, "dice"][4] > 0.25 and abs(halves[what, "dice"][5]) < 0.2 for what in ("Gaussian", "blobs"))

# %% [markdown]
# The pull alone shrinks what is left of a shift of the start, and trusts early and late beliefs on the Gaussian exactly as both do. But it shrinks the whole cloud with it. In units of that cloud the push is not forgotten: it is still about one deviation (on other blobs it may be less), and each start has its one end. The dice alone leave the shift, and put new width over it: where a point began hardly shows in its end, but the cloud is far too wide. **Forgetting takes both: the pull shrinks the old, the dice refill the width.**
#
# The weights $\eqref{eq-error-weights}$ are those of a shifted mean. Let the belief be off in the *variance* by a little, and the same lines give $r^{2 (1 + \rho^2)}$: late beliefs count more already without dice.
#
# In the letters of [Song et al. (2021)](https://arxiv.org/abs/2011.13456), with a drift $f$ and noise $g\, dw$, here $f = -\frac{\beta}{2} x$ and $g^2 = \beta$, a free deviation $\rho\, g$ needs the drift $f - \frac12 (g^2 + \rho^2 g^2)\, \nabla \log p_t$.

# %% [markdown]
# ## Deeper: orders, and Euler against DDIM
#
# *For those who compare solvers. It adds 2M's formula and Heun's method, the orders, and for which data DDIM is the better first-order step.*
#
# 2M lets the guess run along a straight line, through the last two answers, in $\ell = \log(\alpha / \sigma)$, half the log-SNR. Let $h$ be this step, $h'$ the one before, and $\hat x_0'$ the guess before. Up to the middle of the step the line rises by $\frac{h}{2 h'} (\hat x_0 - \hat x_0')$. Hold its value *there*. With $\frac{\alpha_t}{\sigma_t} = e^{-h} \frac{\alpha_s}{\sigma_s}$,
#
# $$ x_s = \frac{\sigma_s}{\sigma_t}\, x_t + \alpha_s \big( 1 - e^{-h} \big) \Big[ \hat x_0 + \frac{h}{2 h'} \big( \hat x_0 - \hat x_0' \big) \Big]. \label{eq-dpmpp-2m} $$
#
# (The exact solution for a line is another one; they differ in third order of $h$.)

# %%
# [eq-dpmpp-2m]
def multistep(x, guess, last_guess, ells, alpha_s, sigma_s, sigma_t):
    """One step; ells are log(alpha / sigma) at the last time, at t and at s."""
    h_last, h = ells.diff()
    middle = guess + h / (2 * h_last) * (guess - last_guess)
    return sigma_s / sigma_t * x + alpha_s * (1 - torch.exp(-h)) * middle


# %%
before = 0.55
two_m = kernels.dpmpp_2m(free, schedule).start()
there = free(x, torch.tensor(before))
between = alpha_t * there.x0 + sigma_t * there.eps  # the first step has no guess to look back to: DDIM
two_m(x, before, t)
ells = torch.stack([schedule.log_snr(u) / 2 for u in (before, t, s)])
by_hand = multistep(between, free(between, torch.tensor(t)).x0, there.x0, ells, alpha_s, sigma_s, sigma_t)
torch.testing.assert_close(two_m(between, t, s).mean, by_hand)


# %% [markdown]
# For the flow there is an exact end to each start. Solve for it tightly, and measure distances. Heun's method steps as DDIM does, evaluates again at the end, and holds the *mean* of the two guesses instead of the first:
#
# $$ x_s = x_s' + \frac12 \Big( \alpha_s - \frac{\alpha_t\, \sigma_s}{\sigma_t} \Big) \big( \hat x_0' - \hat x_0 \big), \qquad x_s' = \alpha_s \hat x_0 + \sigma_s \hat\varepsilon, \label{eq-heun} $$
#
# where $\hat x_0'$ is the guess at $x_s'$ and $s$. Two evaluations a step. (In the step to $\sigma_s = 0$ the correction is multiplied by $\alpha_s$ and not by a small number: there [Karras et al. (2022)](https://arxiv.org/abs/2206.00364) leave it out, and so does `kernels.heun` in a step to $s = 0$.)

# %%
first = alpha_s * x_0 + sigma_s * eps
again = free(first, torch.tensor(s)).x0
by_hand = first + (alpha_s - alpha_t * sigma_s / sigma_t) / 2 * (again - x_0)
torch.testing.assert_close(kernels.heun(free, schedule)(x, t, s).mean, by_hand)

# %%
pairs = start[:400]
exactly = ode.solve(ode.probability_flow(free, schedule), pairs, 1.0, 0.001, tolerance=1e-8)
noiseless = {name: (samplers_of(free)[name], 1) for name in ("Euler", "DDIM", "2M")} | {"Heun": (kernels.heun(free, schedule), 2)}

# %% tags=["hide-input"]
asked, distance = (8, 16, 32, 64, 128), {}
print("evaluations", "".join(f"{n:9d}" for n in asked), "   order")
for name, (kernel, asks) in noiseless.items():
    distance[name] = [float((draw(kernel, pairs, grid_of(n // asks)) - exactly).square().sum(1).mean().sqrt()) for n in asked]
    print(f"{name:11s}", "".join(f"{e:9.4f}" for e in distance[name]), f"{math.log2(distance[name][-2] / distance[name][-1]):8.2f}")
same_steps = [float((draw(noiseless[name][0], pairs, grid_of(32)) - exactly).square().sum(1).mean().sqrt()) for name in ("2M", "Heun")]
print("in 32 steps, whatever they cost: 2M {:.4f}, Heun {:.4f}".format(*same_steps))

# %% tags=["remove-cell"]
for name, order in {"Euler": 1, "DDIM": 1, "2M": 2, "Heun": 2}.items():
    assert abs(math.log2(distance[name][-2] / distance[name][-1]) - order) < 0.15
assert same_steps[1] < 2 * same_steps[0] and distance["Heun"][2] > 6 * distance["2M"][2]
assert all(distance["2M"][k] < 0.26 * distance["Heun"][k] for k in range(5)) and distance["Heun"][0] > distance["DDIM"][0]
assert all(0.4 < distance["Euler"][k] / distance["DDIM"][k] < 0.6 for k in range(5))

# %% [markdown]
# Double the evaluations, and the error is halved for Euler and DDIM, and quartered for 2M and Heun, at sixty-four and more ([chapter 10](10_general_case.ipynb#deeper-from-how-many-steps-on-an-order-is-an-order) asks from where on). The order does not say who is first: at eight evaluations Heun, of second order, is behind DDIM. Nor do steps: in thirty-two steps Heun's error is less than twice 2M's, at thirty-two evaluations more than six times.
#
# **Euler or DDIM?** On the blobs, with exact guesses, Euler steps of the flow are ahead of DDIM at every budget of the main line's table. For Gaussian data all is linear, and the variance of samples follows step by step, without chance. Without dice a DDIM step multiplies $x / \sqrt{V}$ by the cosine of the angle between $(\alpha_t \sqrt c, \sigma_t)$ and $(\alpha_s \sqrt c, \sigma_s)$. Even steps $h$ in $\ell$ add up the squares of these angles to about $h / 2$, *whatever* $c$ is. So DDIM's variance comes out too small by the factor $e^{-h / 2}$, for every Gaussian whose clock runs from 0 to 1 on the grid:


# %%
def variance_of(make, c, steps):
    """Of the samples at t = 0.001, over the true one, for data of variance c: a step multiplies, then adds."""
    data = GaussianMixture([1.0], torch.zeros(1, 1).double(), torch.tensor([[[c]]]).double())
    times, one = grid_of(steps), torch.ones(1, 1).double()
    kernel, var = make(data.denoiser(schedule)), at(1.0, data).variances[0, 0]
    for u, w in zip(times[:-1], times[1:], strict=True):
        step = kernel(one, u, w)
        var = step.mean[0, 0] ** 2 * var + step.var
    return float(var / at(0.001, data).variances[0, 0])


# %% tags=["hide-input"]
makers = {f"Euler, rho {rho:g}": (lambda d, rho=rho: kernels.reverse_sde(d, schedule, rho)) for rho in (0.0, 1.0)}
makers |= {"DDIM": lambda d: kernels.ddim(d, schedule)}
makers |= {"DDPM, small": lambda d: kernels.ddpm(d, schedule), "DDPM, large": lambda d: kernels.ddpm(d, schedule, "large")}
too_wide, h_ell = {}, float(schedule.log_snr(grid_of(32)).diff()[0]) / 2
print("variance of the samples over the true one, 32 steps\ndata of variance", "".join(f"{c:8}" for c in (0.001, 0.1, 1.0, 4.0)))
for name, make in makers.items():
    too_wide[name] = [variance_of(make, c, 32) for c in (0.001, 0.1, 1.0, 4.0)]
    print(f"{name:16s}", "".join(f"{value:8.3f}" for value in too_wide[name]))
print(f"exp(-h / 2) = {math.exp(-h_ell / 2):.3f}")
assert all(abs(value - math.exp(-h_ell / 2)) < 0.002 for value in too_wide["DDIM"][1:])
assert abs(too_wide["Euler, rho 0"][2] - 1) < 1e-9 and too_wide["Euler, rho 0"][0] - 1 > 1 - too_wide["DDIM"][0]
assert too_wide["Euler, rho 0"][1] - 1 < 1 - too_wide["DDIM"][1] and too_wide["Euler, rho 0"][3] < 1
assert all(small < ddim for small, ddim in zip(too_wide["DDPM, small"], too_wide["DDIM"], strict=True)) and too_wide["DDPM, large"][0] > 1.3 and too_wide["DDPM, large"][3] < 0.95

# %% [markdown]
# So DDIM with few steps is too narrow, in the same way for all these Gaussians (of the narrowest, the run leaves out the end). Euler steps of the flow are too wide for narrow data, exact at variance 1, too narrow for wide ones: better than DDIM in the middle, worse where data are very thin. DDPM with the small variance is narrower than DDIM; with the large one it is far too wide for thin data, right at variance 1, and too narrow for wide data.
#
# **The order of a sampler with dice.** It has no exact end for each start. But its cloud has a variance, which the data's can be compared with (the *weak* order). For DDPM with the small variance, in finer and finer steps:

# %% tags=["hide-input"]
weak, finer = {}, (64, 128, 256, 512)
print("DDPM, variance missing\nsteps               ", "".join(f"{n:9d}" for n in finer))
for c in (0.1, 1.0, 4.0):
    weak[c] = [1 - variance_of(makers["DDPM, small"], c, n) for n in finer]
    print(f"data of variance {c:<3g}", "".join(f"{value:9.4f}" for value in weak[c]))
fine_h = float(schedule.log_snr(grid_of(512)).diff()[0]) / 2
print(f"h in {finer[-1]} steps: {fine_h:.4f}")
assert all(abs(coarse / fine - 2) < 0.11 for row in weak.values() for coarse, fine in zip(row, row[1:], strict=False))
assert all(abs(row[-1] / fine_h - 1) < 0.02 for row in weak.values())

# %% [markdown]
# Half the step, half the error: weak order 1, as DDIM's. In fine steps DDPM lacks the part $h$ of the variance, twice what DDIM lacks.
#
# ## Deeper: which grid, and where to stop
#
# *For those who set the times of a sampler. It adds four grids on two kinds of data, and the price of the last step.*
#
# Times may be even in $t$, in log-SNR, in $(\sigma / \alpha)^{1/7}$ as in [Karras et al. (2022)](https://arxiv.org/abs/2206.00364), or in the angle whose tangent is $\sigma / \alpha$, the `cosine` schedule's own time. Each is even in some function of the ratio $\sigma / \alpha$:


# %%
def even_in(there, back):
    """A grid of `steps` that is even in a function of sigma / alpha; `back` is its inverse."""

    def grid(steps):
        ends = [there(schedule.sigma(u) / schedule.alpha(u)) for u in (1.0, 0.001)]
        ratios = back(torch.lerp(*ends, torch.linspace(0, 1, steps + 1).double()))
        times = schedule.time(-2 * ratios.log())
        times[0], times[-1] = 1.0, 0.001
        return times

    return grid


grids = {"time": lambda steps: time_grid(steps, end=0.001), "log-SNR": grid_of}
grids |= {"Karras": even_in(lambda q: q ** (1 / 7), lambda q: q**7), "angle": even_in(torch.atan, torch.tan)}

# %% tags=["hide-input"]
arcs, by_grid = curves.two_arcs(), {}
print("evaluations                8     16     32")
for label, data in (("blobs", mixture), ("arcs", arcs)):
    model, some = data.denoiser(schedule), start[:200]
    goal = ode.solve(ode.probability_flow(model, schedule), some, 1.0, 0.001, tolerance=1e-6)
    for solver in (kernels.ddim, kernels.dpmpp_2m):
        for name, make in grids.items():
            ends = [draw(solver(model, schedule), some, make(n)) for n in (8, 16, 32)]
            row = by_grid[label, solver.__name__, name] = [float((e - goal).square().sum(1).mean().sqrt()) for e in ends]
            print(f"{label:6s} {solver.__name__:9s} {name:8s}", " ".join(f"{value:6.3f}" for value in row))
squares = (draw(kernels.dpmpp_2m(model, schedule), some, grid_of(32)) - goal).square().sum(1).sort().values  # arcs
assert float(squares[-20:].sum() / squares.sum()) > 0.9
best = {(label, solver): [min(grids, key=lambda g: by_grid[label, solver, g][k]) for k in range(3)] for label in ("blobs", "arcs") for solver in ("ddim", "dpmpp_2m")}
assert best["blobs", "ddim"] == best["arcs", "ddim"] == ["angle"] * 3 and best["blobs", "dpmpp_2m"] == ["log-SNR"] * 3
assert best["arcs", "dpmpp_2m"] == ["log-SNR", "log-SNR", "angle"] and by_grid["arcs", "dpmpp_2m", "angle"][2] < 0.3 * by_grid["arcs", "dpmpp_2m", "log-SNR"][2]

# %% [markdown]
# DDIM does best with the angle, on both kinds of data and at every budget. 2M does best in log-SNR on the blobs, at every budget, and on the arcs at eight and sixteen; at thirty-two the angle is far ahead there. So here no grid wins everywhere. (On the arcs few paths make most of the error: of 2M in thirty-two steps, the worst tenth makes more than nine tenths of the mean square.)
#
# **Where to stop.** A sampler ends at some small noise. Left there, its points have that noise on them; or a last step to $s = 0$ answers $\hat x_0$ and takes it off. On the arcs, which are thin, how much less probable are samples than true points, on average?

# %% tags=["hide-input"]
model, typical = arcs.denoiser(schedule), float(arcs.log_prob(arcs.sample(20_000, seeded(11))[0]).mean())
lost = {}
print("stop at   sigma    left there   last step to 0   noise in the last step")
for stop in (0.001, 0.003, 0.01, 0.03):
    x_end = draw(kernels.dpmpp_2m(model, schedule), start[:1000], time_grid(32, schedule, end=stop))
    cleaned = kernels.ddim(model, schedule)(x_end, stop, 0.0).mean
    noisy_end = cleaned + schedule.sigma(stop) * torch.randn(1000, 2, generator=seeded(12), dtype=torch.float64)
    lost[stop] = [typical - float(arcs.log_prob(each).mean()) for each in (x_end, cleaned, noisy_end)]
    print("{:7}   {:.3f} {:12.2f} {:14.2f} {:18.2f}".format(stop, float(schedule.sigma(stop)), *lost[stop]))

assert [row[0] for row in lost.values()] == sorted(row[0] for row in lost.values()) and lost[0.03][0] > 4 and lost[0.001][0] < 0.1
assert all(row[1] < 0 for row in lost.values()) and round(lost[0.03][0]) == 5 and lost[0.03][2] > 4

# %% [markdown]
# Left with noise more than three times as wide as the arcs, samples are five nats less probable than data (standard errors are 0.03 and more). The last step takes that off, and then they are *more* probable than data: a guess is an average, and lies in the middle of the width. Noise in the last step undoes it. Stop where $\sigma$ is well below the finest detail; if you must stop earlier, take the last step, without dice.

# %% [markdown]
# ## Deeper: DDPM's table
#
# *For those who load other people's checkpoints. It adds the schedule of a table of variances, and the price of reading it one row off.*
#
# DDPM comes with a table $\beta_1, \dots, \beta_T$ of the variance that each of $T$ steps adds. Step $k$ ends at $t = k / T$. Let the rate be constant during a step; then a step must multiply $\alpha^2$ by $1 - \beta_k$, so
#
# $$ \alpha_{k / T}^2 = \prod_{j \le k} \big[ 1 - \beta_j \big], \qquad \beta(k / T) = -T \log (1 - \beta_k). \label{eq-table} $$
#
# Not $T \beta_k$: that is right to first order only. With this rate every sampler of this page runs on the table, with any times in between.

# %%
variances = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
table = from_betas(variances)
torch.testing.assert_close(table.alpha(0.4) ** 2, (1 - variances[:400]).prod())
torch.testing.assert_close(table.beta(0.4), -1000 * torch.log1p(-variances[399]))
print(f"the last rate: {float(table.beta(1.0)):.2f}, by the first order {1000 * float(variances[-1]):.2f}")

# %% [markdown]
# Libraries number the steps from 0, so their `timestep` $k$ is the level *after* step $k + 1$, at $t = (k + 1) / T$. Ask the network for the level $k / T$ instead, one row off in a thousand:

# %%
def a_row_off(rows):
    guesses = mixture.denoiser(table)
    return lambda x, t: guesses(x, (t - rows / 1000).clamp_min(1e-6))


rows_off, seen = {}, mixture.noised(table.alpha(0.001), table.sigma(0.001))
for rows in (0, 1, 20):
    walked = draw(kernels.ddim(a_row_off(rows), table), few, time_grid(200, table, end=0.001))
    rows_off[rows] = misfit(walked, seen), float(walked.T.cov().trace() / total)
    print("{:2d} rows off: misfit {:.3f}, variance {:.2f} of the data's".format(rows, *rows_off[rows]))
assert rows_off[0][0] < chance[-1] < rows_off[1][0] and rows_off[20][1] < 0.5

# %% [markdown]
# One row in a thousand raises the misfit from chance to 0.049 here, and takes a twelfth of the variance. Twenty rows leave less than half.
#
# ## Deeper: $\log p(x)$ through the flow
#
# *For those who need a likelihood. It adds how the flow gives one, Hutchinson's estimate for many dimensions, and four ways to one number.*
#
# Follow a point along the flow. Its $\log p_t$ changes because time passes and because it moves: $\frac{d}{dt} \log p_t(x_t) = \partial_t \log p_t + v \cdot \nabla \log p_t$, with $v$ for the velocity of $\eqref{eq-probability-flow}$. The cell below that equation has the first term: $-\nabla \cdot v - v \cdot \nabla \log p_t$. Two terms cancel, and no score is left: **along the path, $\log p_t$ falls at the rate of the velocity's divergence** ([Chen et al. (2018)](https://arxiv.org/abs/1806.07366), for any flow). Add it up, from the data to the noise, where $p_1$ is $\mathcal N(0, I)$ (nearly):
#
# $$ \log p_s(x_s) = \log \mathcal N(x_1;\, 0, I) + \int_s^1 \nabla \cdot v(x_t, t)\; dt. \label{eq-flow-likelihood} $$
#
# The divergence is $d$ derivatives. In many dimensions, guess it with one ([Hutchinson (1990)](https://doi.org/10.1080/03610919008812866)): for a random $z$ with $\mathbb E[z z^\top] = I$, such as signs,
#
# $$ \nabla \cdot v = \mathbb E\big[ z^\top J\, z \big], \qquad J = \frac{\partial v}{\partial x}, \label{eq-hutchinson} $$
#
# since $\mathbb E[z_i z_j]$ picks the diagonal. $J^\top z$ is one backward pass. The same $z$ serves a whole path, so that the solver sees a smooth function.

# %%
smooth = cosine()
flow = ode.probability_flow(mixture.denoiser(smooth), smooth)
data_points = mixture.sample(40, seeded(9))[0]
matrix = plane.jacobian(lambda x: flow(x, 0.4), data_points)
torch.testing.assert_close(likelihood.divergence(flow, data_points, 0.4)[0], matrix.diagonal(dim1=1, dim2=2).sum(1))
signs = torch.tensor([[1.0, 1.0], [1.0, -1.0]]).double()[:, None].expand(2, 40, 2)  # z and -z give the same
guessed = likelihood.divergence(flow, data_points, 0.4, signs)
torch.testing.assert_close(guessed, torch.einsum("pni,nij,pnj->pn", signs, matrix, signs))
torch.testing.assert_close(guessed.mean(0), matrix.diagonal(dim1=1, dim2=2).sum(1))

# %%
exact_value = mixture.log_prob(data_points)
through, _ = likelihood.flow_log_prob(flow, data_points)
probes = torch.randint(0, 2, (16, 40, 2), generator=seeded(10)).double() * 2 - 1
linear_flow = ode.probability_flow(free, schedule)
from_start, _ = likelihood.flow_log_prob(linear_flow, data_points, 0.001)
start_left = float((from_start - at(0.001).log_prob(data_points)).abs().max())
estimate, scatter = likelihood.flow_log_prob(flow, data_points, probes=probes)
print(f"exact divergence: largest error {float((through - exact_value).abs().max()):.1e}")
probe_error, stated = estimate - exact_value, float(scatter.square().mean().sqrt())
print(f"16 probes: error of one point {float(probe_error.square().mean().sqrt()):.3f}, stated {stated:.3f}")
print(f"mean of 40 points: off by {float(probe_error.mean()):+.3f} +- {stated / 40**0.5:.3f}")
print(f"with vp_linear: {start_left:.3f}, its alpha at t = 1: {float(schedule.alpha(1.0)):.3f}")
assert float((through - exact_value).abs().max()) < 1e-3
assert abs(float((estimate - exact_value).mean())) < 3 * float(scatter.square().mean().sqrt()) / 40**0.5

# %% [markdown]
# Now four ways to one number, $-\log p$ of five points: the closed form; the bound of [chapter 03](03_variational_diffusion_model.ipynb#three-terms) for ten, a hundred and a thousand steps; its [area of the error curve](03_variational_diffusion_model.ipynb#the-area-is-the-log-likelihood) (I-MMSE); and the flow.

# %%
def even(steps):  # in log-SNR, from -10 to 10
    return time_grid(steps, smooth, start=float(smooth.time(-10.0)), end=float(smooth.time(10.0)))


five = data_points[:5]
ways = {"closed form": -mixture.log_prob(five)}
for steps in (10, 100, 1000):
    bound = likelihood.variational_bound(mixture.denoiser(smooth), smooth, five, even(steps), order=10)
    ways[f"bound, {steps:,} steps"] = bound.total
ways["error area"] = likelihood.error_area(mixture.denoiser(smooth), smooth, five, time_grid(400, smooth), order=10)
ways["flow, exact divergence"] = -through[:5]
ways["flow, 16 probes"] = -estimate[:5]

# %% tags=["hide-input"]
for name, values in ways.items():
    print(f"{name:24s}", " ".join(f"{value:7.4f}" for value in values), f"  largest error {float((values - ways['closed form']).abs().max()):.4f}")
print(f"{'standard errors of these':24s}", " ".join(f"{value:7.4f}" for value in scatter[:5]))
off_by = {name: float((values - ways["closed form"]).abs().max()) for name, values in ways.items()}
assert 8 < off_by["bound, 100 steps"] / off_by["bound, 1,000 steps"] < 12 and off_by["bound, 10 steps"] > 5 * off_by["bound, 100 steps"]
assert all((ways[f"bound, {n} steps"] > ways["closed form"]).all() for n in ("10", "100", "1,000"))
assert off_by["error area"] < 1e-3 and off_by["flow, exact divergence"] < 1e-4
assert float(((estimate[:5] - exact_value[:5]).abs() / scatter[:5]).max()) < 3

# %% [markdown]
# The bound lies above the truth, and from 100 to 1,000 steps its gap falls tenfold. The error area and the flow agree with the closed form to the accuracy of their rules. Probes give each point within its stated error, which is large: it does not fall with the solver's tolerance, only with more probes. (The flow's number is that of *its own* samples. For a network it is not the bound's, and a start that is not exactly $\mathcal N(0, I)$ is in it: with `vp_linear`, whose $\alpha_1$ is 0.007, up to 0.007 nats here.)
#
# ## Deeper: whom to believe, for a trained network
#
# *For those with a network instead of a formula. It adds where a small one is wrong, in the units of the main line, and whether dice help it.*
#
# A guess $\hat x_0$ that is off by $e$ is, for Gaussian data, that of data off by $b = e\, V_t / \sigma_t^2$. A small network, trained on the blobs for a moment:

# %% tags=["hide-input"]
net = network_denoiser(plane.train(mixture, schedule, 1.0, steps=300, batch=256, seed=0), schedule)
believed, guessed_off, levels_at = [], [], (0.7, 0.5, 0.3, 0.2, 0.1)
for u in levels_at:
    u = torch.tensor(u).double()
    x_u, wide = at(u).sample(2000, seeded(13))[0], schedule.alpha(u) ** 2 * total / 2 + schedule.sigma(u) ** 2
    guessed_off.append(float((net(x_u, u).x0 - free(x_u, u).x0).square().mean().sqrt()))
    believed.append(guessed_off[-1] * float(wide / schedule.sigma(u) ** 2))
print("r         ", " ".join(f"{float(correlation(torch.tensor(u).double(), total / 2, schedule)[0]):5.2f}" for u in levels_at))
print("guess off ", " ".join(f"{value:5.2f}" for value in guessed_off))
print("belief off", " ".join(f"{value:5.2f}" for value in believed))
learned = {}
print(f"{len(few):,} samples:")
for rho in (0.0, 1.0, 3.0):
    runs = [draw(kernels.reverse_sde(d, schedule, rho), few, grid_of(128), seeded(8)) for d in (net, free)]
    learned[rho] = [misfit(x, at(0.001)) for x in runs]
    print("rho = {:g}: misfit {:.3f}, with exact guesses {:.3f}".format(rho, *learned[rho]))
assert believed == sorted(believed) and believed[-1] > 10 * believed[0] and max(guessed_off) < 3 * min(guessed_off)
assert learned[3.0][0] > max(learned[0.0][0], learned[1.0][0]) + 0.03 and all(exactly < chance[-1] for _, exactly in learned.values())

# %% [markdown]
# Its guesses are off by about the same at all these levels, within a factor of three. Its beliefs are off more and more: that is the factor $V_t / \sigma_t^2$. So in the unit that counts it is wrong late, and $\eqref{eq-error-weights}$ lets one expect that a strong dose hurts. (Not more: its errors differ from point to point, and are no common shift.) At $\rho = 3$ it does, and the steps are not to blame, as exact guesses show. Between $\rho = 0$ and 1 the difference is within the scatter of 3,000 points. Another network may be wrong elsewhere: try both ends.
