# %% [markdown]
# # 17 · What does γ sample?
#
# You ask for a class with $\gamma = 4$. The usual line on the slide says what you get: the class with its odds
# sharpened, $p(x)\, p(y \mid x)^\gamma / Z$. [Chapter 11](11_classifier_free_guidance.ipynb#what-does-gamma-1-sample) sampled with exact guesses and got something else.
# This chapter says what: without noise in the sampler there is a formula for it.
#
# **After this chapter you can**
# * say in one equation why a sampler that follows guided guesses does not arrive at the density whose score they are;
# * write down the density that noiseless guidance does sample, and read from it what is lost and where;
# * say what more noise mends, and what it does not;
# * report what your model samples;
# * (Deeper) say where mass would have to be made, and for which data nothing goes wrong.
#
# **You need** chapter 11 up to "What does $\gamma > 1$ sample?", and the chain rule for second derivatives.
#
# *29 minutes to read, 32 more for Deeper, 35 seconds to run, on a laptop, without a GPU or a network connection.*

# %%
import math
from functools import partial

import torch

from difflesson import exercises, guidance, kernels, metrics, path, plane, plotting
from difflesson.denoiser import Pair
from difflesson.digits import checkpoints, sampling
from difflesson.digits import metrics as digit_metrics
from difflesson.grid import GridDensity
from difflesson.mixture import GaussianMixture
from difflesson.noise import standard_normal
from difflesson.samplers import draw, sample, time_grid
from difflesson.schedule import cosine

torch.set_num_threads(1)

# %% [markdown]
# ## What was ordered, and what came
#
# Three classes in the plane. Class 1 has two blobs: a *near* one, with other classes beside it, which holds 60 % of the class,
# and a *far* one, with the rest.

# %% tags=["hide-input"]
mixture = GaussianMixture(
    weights=[0.30, 0.27, 0.18, 0.25],
    means=torch.tensor([[-3.6, 0.3], [0.3, -0.9], [3.6, 1.0], [-1.0, 4.0]]).double(),
    covs=[[[0.3, 0.1], [0.1, 0.3]], [[0.3, 0.1], [0.1, 0.25]],
          [[0.3, -0.1], [-0.1, 0.2]], [[0.3, 0.0], [0.0, 0.25]]],
    labels=[0, 1, 1, 2],
)  # fmt: skip
schedule, class_1 = cosine(), mixture.given(1)


def seeded(number):
    return torch.Generator().manual_seed(number)


def near_share(mixture, cloud):
    """What part of class 1 is in its near blob."""
    return float(metrics.mode_weights(mixture, cloud)[1])


# %% [markdown]
# The blobs hardly overlap, so nearly every point of class 1 is sure of its class, and sharpening has next to nothing to do. The class so sharpened is *the order* (chapter 00's story). What comes is drawn with exact guesses and without noise: the equation that DDIM solves, by 80 steps of the
# second-order method of Heun, so that steps play no role.

# %%
def ordered(mixture, gamma):
    """p(x)^(1 - gamma) p(x | 1)^gamma, in proportion to p(x) p(1 | x)^gamma, normalised on a grid."""
    def log_density(x):
        return path.combined_log_density(mixture, 1, gamma, x, 0.0)

    return GridDensity(log_density, -8, 10, 240)


start, times = torch.randn(3000, 2, generator=seeded(0)).double(), time_grid(80, start=0.99)
walks, orders = {}, {}
for gamma in (1.0, 4.0, 8.0):
    guided = guidance.classifier_free(mixture.pair(schedule, label=1), gamma)
    walks[gamma] = list(sample(kernels.heun(guided, schedule), start, times))
    orders[gamma] = ordered(mixture, gamma)

# %% tags=["hide-input"]
def kl(a, b):
    return float(a.expectation(lambda x: a.log_prob(x) - b.log_prob(x)))


print("gamma  near blob ordered             came  mean of x1 off, class deviations  KL(order, order at 1), nats")
for gamma, states in walks.items():
    came, order, class_1_size = states[-1], orders[gamma], float(orders[1.0].cov[0, 0] ** 0.5)
    share, wanted = near_share(mixture, came), near_share(mixture, order)
    moved = float((came[:, 0].mean() - order.mean[0]) / class_1_size)
    error = (share * (1 - share) / 3000) ** 0.5
    print(f"{gamma:5g} {wanted:18.3f}   {share:.3f} +- {error:.3f} {moved:33.2f} {kl(order, orders[1.0]):28.0e}")
    assert abs(wanted - 0.6) < 1e-3 and kl(order, orders[1.0]) < 1e-4
    assert (abs(share - 0.6) < 0.03) == (gamma == 1) and abs(moved) < 1.6

# %% tags=["hide-input"]
with plotting.style():
    figure, axes = plotting.plt.subplots(1, 3, figsize=(9, 3.1), sharex=True, sharey=True)
    for panel, (gamma, states) in zip(axes, walks.items(), strict=True):
        colour = plotting.COLOURS["conditional" if gamma == 1 else "guided"]
        panel.plot(*states[-1][:450].T, ".", markersize=1.6, color=colour)
        for y in (0, 2):
            plotting.density(panel, mixture.given(y).log_prob, (-6, 6, -4, 6), colors=plotting.COLOURS["unconditional"], linewidths=0.7)
        for blob in (1, 2):
            edge = GaussianMixture([1.0], mixture.means[blob : blob + 1], mixture.covs[blob : blob + 1])
            plotting.density(panel, lambda x, edge=edge, gamma=gamma: edge.log_prob(x) + gamma * mixture.class_log_prob(x, 1), (-6, 6, -4, 6))
            place, share = mixture.means[blob], near_share(mixture, states[-1])
            share = share if blob == 1 else 1 - share
            panel.text(float(place[0]), float(place[1]) - 1.75, f"{share:.0%}", color=colour, ha="center", va="top")
        panel.set(title=f"$\\gamma = {gamma:g}$", xlabel="$x_1$", xlim=(-5.6, 6), ylim=(-4.3, 6), aspect="equal")
    axes[0].set_ylabel("$x_2$")
    written = [[int(text.get_text()[:-1]) for text in panel.texts] for panel in axes]
    assert written == [[62, 38], [31, 69], [10, 90]]
    shown = plotting.show(figure, "17_ordered_and_sampled", alt="Three panels for gamma 1, 4 and 8. Dashed black contours show the two blobs of class 1 that are ordered, the same in all three panels; grey ones the other classes. At gamma 1 the points fill both blobs, 62 percent in the near one. At gamma 4 they sit at the right edges of the blobs, 31 percent in the near and 69 in the far one, and at gamma 8 as small clumps further to the right, 10 percent in the near one.")
shown

# %% [markdown]
# *Class 1, exact guesses, no noise. Dashed: what is ordered, 50, 90 and 99 % of each blob; it is the same at every $\gamma$
# to the eye. Grey: the other classes. Numbers: the share of the points in each blob, where the near one was ordered to have 60 %.*
#
# At $\gamma = 8$ the order differs from the plain class by a divergence of $9 \cdot 10^{-6}$ nats. What
# comes is another thing: a sixth of the near blob is left, and the mean of $x_1$ has moved by one and a half standard deviations of the class.
#
# **The answer.** A point pays for the way it came. At every noise level the classifier, $\log p(y \mid x)$ of the noisy point $x_t / \alpha_t$, has a slope. Square it, sum over the noise variances of the point's path, and multiply by $\frac12 \gamma\,(\gamma - 1)$: this is the point's *bill*. With exact guesses, fine steps and a start that is noisy enough, **noiseless guidance samples the order times $e^{-\text{bill}}$**, up to a constant. At the centre of the near blob, with other classes beside it, the bill is high; on its right side it is low. So you see points at the right edges, and fewer in the near blob than ordered.
#
# ## A film, and a theatre that plays it
#
# Where does the bill come from? At every noise level the guided guess is the score of a density: the noisy class, its odds sharpened *at that
# level*. Think of these densities as a *film* of a crowd, one frame for each noise level, from pure noise to the data. The sampler is a
# *theatre* that plays the film with living people. They take their places in the first frame, nearly: there all is noise. Then the guesses tell
# everybody where to walk, and this walk is made for one purpose: to undo a little noise ([chapter 05](05_every_reverse_process_at_once.ipynb#a-shake-and-its-pull)).
#
# At $\gamma = 1$ it works: all frames show one crowd with less and less noise. At $\gamma = 4$ every
# frame has been changed by itself. From one to the next people disappear here and appear there, besides the noise that is undone. The walk knows nothing of this, so they end in the wrong places.
#
# Below are, at each noise level, the mean of $x_1$ (less the class's) and the share of the near blob, in the film and in the theatre. Where noise hides the blobs the share is a mean probability.

# %% tags=["hide-input"]
seen, moments = (2, 6, 10, 14, 18, 22, 26, 30, 35, 40, 46, 54, 62, 70, 76), {}
for gamma, name in ((4.0, "film"), (4.0, "theatre"), (1.0, "plain class")):
    rows = []
    for k in seen:
        q = float((schedule.sigma(times[k]) / schedule.alpha(times[k])) ** 2)
        reach, noisy = 9 + 6 * q**0.5, class_1.noised(1.0, q**0.5)
        cloud = walks[gamma][k] / schedule.alpha(times[k])
        if name == "film":
            cloud = GridDensity(lambda x, q=q: path.combined_log_density(mixture, 1, 4.0, x, q), -reach, reach + 6, 140)
        mean = cloud.mean if name == "film" else cloud.mean(0)
        rows.append((q, float(mean[0]) - 1.62, float(metrics.mode_weights(noisy, cloud)[0])))
    moments[name] = torch.tensor(rows)
for q, far, share in moments["film"][[0, 5, 14]].tolist():
    print(f"film, noise variance {q:7.2f}: mean of x1 {far:5.2f} from the class's, near blob {share:.2f}")
assert moments["film"][:, 1].max() > 6 and abs(moments["film"][-1, 1:] - torch.tensor([0.0, 0.6])).max() < 0.01
lowest, final, left = float(moments["film"][:, 2].min()), *moments["theatre"][-1, 1:].tolist()
data_mean = float(mixture.weights @ mixture.means[:, 0])
print(f"three times from the mean of all data to the class's: {3 * (1.62 - data_mean):.2f}")
print(f"film at its lowest {lowest:.2f}; theatre at the end: mean {final:.2f} from the class's, near blob {left:.2f}")
assert 0.48 < lowest < 0.5 and final > 1.4

# %% tags=["hide-input"]
colours = {"film": plotting.COLOURS["truth"], "theatre": plotting.COLOURS["guided"], "plain class": plotting.COLOURS["conditional"]}
with plotting.style():
    figure, axes = plotting.plt.subplots(1, 2, figsize=(8.4, 2.9))
    for name, rows in moments.items():
        for panel, column in zip(axes, (1, 2), strict=True):
            panel.semilogx(rows[:, 0], rows[:, column], color=colours[name], linestyle="--" if name == "film" else "-")
    for panel in axes:
        panel.set(xlabel="noise variance $q = \\sigma_t^2 / \\alpha_t^2$ (sampling runs to the right)", xlim=(340, 0.008))
        panel.axhline(0.6 if panel is axes[1] else 0, color=colours["plain class"], linestyle="--", linewidth=1)
    axes[0].set(ylabel="mean of $x_1$ − the class's")
    axes[1].set(ylabel="share of the near blob", ylim=(0.22, 0.66))
    for text, place in (("film", (1.4, 0.5)), ("theatre", (0.4, 2.0)), ("plain class: theatre, film", (40, -1.0))):
        axes[0].text(*place, text, color=colours[text.split(":")[0]])
    for text, place in (("film", (12, 0.46)), ("theatre", (1.4, 0.33)), ("plain class: theatre, film", (40, 0.63))):
        axes[1].text(*place, text, color=colours[text.split(":")[0]])
    assert [line.get_linestyle() for line in axes[0].lines[:4]] == ["--", "-", "-", "--"]
    shown = plotting.show(figure, "17_film_and_theatre", alt="Two panels over the noise variance, falling to the right. Left: the mean of the film starts more than six units to the right of the class and comes back to it; that of the theatre comes back more slowly and stops at one and a half. Right: the film's share of the near blob dips to 0.49 and returns to 0.60, while the theatre's falls to 0.31 and stays. At gamma 1 the film is a straight dashed line, and the theatre ends near it.")
shown

# %% [markdown]
# *Mean and share of the near blob at $\gamma = 4$: of the guided densities (film, dashed) and of the points that follow
# their scores (theatre). The film returns to what was ordered, and the points stay behind. Both theatres start from plain noise, beside their films; at $\gamma = 1$ (blue) the theatre finds the film all the same, up to the scatter of its points.*
#
# The film's crowd begins far to the right: under much noise its mean is that of all data, moved $\gamma$ times the way to the class's, here three ways too far. It is back in the end, for with little noise the points of class 1 are
# sure of their class, and sharpening does nothing. Walking brings the points only part of the way. And once the blobs are apart, nobody walks from one to the other.
#
# ## What the film makes out of nothing
#
# How many appear, and where, is one line. As in chapter 11, divide by $\alpha_t$: $\bar x = x_t / \alpha_t = x_0 + \sqrt q\, \varepsilon$ with $q = \sigma_t^2 /
# \alpha_t^2$. From here on $x$ means $\bar x$. A little more noise, $dq$, spreads the density $p_q$ as heat spreads. A sampler that walks by its score takes just this away, whatever its own noise $\rho$ (chapter 05's dose; 0: DDIM, 1: the usual, DDPM; [chapter 11](11_classifier_free_guidance.ipynb#deeper-why-half-a-score)). For the density and its logarithm $u = \log p_q$,
#
# $$ \partial_q p_q = \frac12 \Delta p_q, \qquad \partial_q u = \frac12 \big( \Delta u + \|\nabla u\|^2 \big),
# \label{eq-log-heat} $$
#
# the second from the first, since $\nabla p = p\, \nabla u$ and $\Delta p = p\, (\Delta u + \|\nabla u\|^2)$. In words: *noising flattens a logarithm where it is
# curved, and its own slope adds a term that is not linear.*

# %%
# [eq-log-heat]
def diffuses(log_density, x, q, h):
    """Left less right side of the second equation at points x (N, 2), by differences of width h."""
    here, steps = log_density(x, q), h * torch.eye(2).double()
    up, down = ([log_density(x + sign * step, q) for step in steps] for sign in (1, -1))
    laplacian = (sum(up) + sum(down) - 4 * here) / h**2
    squares = sum(((a - b) / (2 * h)) ** 2 for a, b in zip(up, down, strict=True))
    return (log_density(x, q + h) - log_density(x, q - h)) / (2 * h) - (laplacian + squares) / 2


# %%
points, level = class_1.noised(1.0, 1.2).sample(200, seeded(1))[0], 1.44
for gamma in (0.0, 1.0, 4.0):
    combined = partial(path.combined_log_density, mixture, 1, gamma)  # a function of x and q
    defect = diffuses(combined, points, level, 1e-3).abs().max()
    print(f"gamma {gamma:g}: largest defect {float(defect):.1e}")
    assert (defect > 10) == (gamma == 4) and (defect < 1e-5) == (gamma < 4)

# %% [markdown]
# All data ($\gamma = 0$) and the class ($\gamma = 1$) diffuse. The guided density at 4 does not.
#
# Let $u = \log p_q(x)$, $v = \log p_q(x \mid y)$. Guidance follows the gradient of the logarithm $w_q = (1 - \gamma)\, u + \gamma\, v$ (chapter 18's $w$ is a weight). The first terms of
# $\eqref{eq-log-heat}$ are linear: what holds for $u$ and $v$ holds for $w$. The squares are not, and for any two vectors
# $(1 - \gamma) \|a\|^2 + \gamma \|b\|^2 - \|(1 - \gamma)\, a + \gamma\, b\|^2 = \gamma\,(1 - \gamma)\, \|a - b\|^2$ (multiply out).
# Here $b - a = \nabla v - \nabla u = \nabla \log p_q(y \mid x) =: g_q$, the classifier's gradient: so
#
# $$ \partial_q w_q = \frac12 \big( \Delta w_q + \|\nabla w_q\|^2 \big) + \frac12 \gamma\,(1 - \gamma)\, \|g_q(x)\|^2 .
# \label{eq-guided-residual} $$
#
# It is exact, for every $\gamma$, any data and every $q > 0$. The defect by differences should come near the last term, with an error that falls like $h^2$:

# %%
film = partial(path.combined_log_density, mixture, 1, 4.0)
exact = -path.source(mixture, 1, 4.0, points, level)
errors = {h: float((diffuses(film, points, level, h) - exact).abs().max()) for h in (0.04, 0.02, 0.01)}
print("largest error by h:", ", ".join(f"{h}: {error:.1e}" for h, error in errors.items()))
assert all(3.8 < errors[h] / errors[h / 2] < 4.2 for h in (0.04, 0.02))
assert errors[0.01] < 1e-3 * float(exact.abs().max())

# %% [markdown]
# Halving $h$ quarters the error: the term is right.
#
# Read it towards the data, where $q$ falls. Besides what undoing noise does, $e^{w_q}$ should grow at the rate $\frac12 \gamma\,(\gamma - 1)\, \|g_q\|^2$. A frame has mass one, so the mean over the frame is subtracted. So for $\gamma > 1$ mass should be *made* where $\|g_q\|^2$ is above this mean, and *taken* where it is below ([Deeper](#deeper-where-mass-is-made-and-where-taken) has the map). A sampler that takes guided scores for scores does not do it, at any finite $\rho$. (What can do it: weights, [chapter 18](18_remedies_that_are_right.ipynb); or many Langevin steps at each level.)
#
# ## So what does $\gamma$ sample?
#
# Let the sampler have no noise. Seen towards more noise, each of its points moves by $dx / dq = -\frac12 \nabla w_q(x)$. Along such a path two things change.
#
# * The density $r_q$ of the points: where they part it falls. By continuity $\frac{d}{dq} \log r_q = \frac12 \Delta w_q$.
# * The film's $w_q$: by $\partial_q w_q + \nabla w_q \cdot \frac{dx}{dq}$, and $\nabla w_q \cdot \frac{dx}{dq} = -\frac12 \|\nabla w_q\|^2$. With $\eqref{eq-guided-residual}$ the square cancels: $\frac{d}{dq} w_q = \frac12 \Delta w_q - \frac12 \gamma\,(\gamma - 1)\, \|g_q\|^2$.
#
# So $\log r_q - w_q$ grows by $\frac12 \gamma\,(\gamma - 1)\, \|g_q\|^2$ and nothing else. Sum this from the data, $q = 0$, to the start of the sampler at $q = Q$:
#
# $$ \frac{r_0(x)}{p(x)^{1 - \gamma}\, p(x \mid y)^\gamma} = \exp\Big( -\frac12 \gamma\,(\gamma - 1) \int_0^Q \|g_q(x_q)\|^2\, dq \Big)\;
# \frac{r_Q(x_Q)}{p_Q(x_Q)^{1 - \gamma}\, p_Q(x_Q \mid y)^\gamma}, \label{eq-guided-density} $$
#
# where $x_q$ is the path that ends in $x$. In the exponent stands the bill. The last fraction tends to 1 at every $x$ as $Q$ grows, though slowly, in general like $1 / \sqrt Q$: the means of start and film stay apart, while both spread like $\sqrt Q$. For
# $\gamma > 1$ every point pays for each level at which its path stood where $\log p_q(y \mid x)$ is steep, whatever it is at the end. (For $\gamma < 0$ as well, if there is such an order; for $0 < \gamma < 1$ the bill is a refund.)
#
# Here is the formula as a density, summed over a grid: its mass must be one, and its shares those of the samples.

# %% tags=["hide-input"]
def rising(top, fine=32):
    """Levels from 0 to top: even steps of the standard deviation up to 1, then growing ones."""
    far = torch.logspace(0, math.log10(top) / 2, round(fine * math.log10(top) / 2))
    return torch.cat([torch.linspace(0, 1, fine)[:-1], far]).double() ** 2


Q = float((schedule.sigma(times[0]) / schedule.alpha(times[0])) ** 2)
levels = rising(Q)

# %%
def what_comes(mixture, gamma, levels):
    def log_density(x):
        return path.sampled_log_prob(mixture, 1, gamma, x, levels)

    return GridDensity(log_density, -8, 10, 100)


formulas = {gamma: what_comes(mixture, gamma, levels) for gamma in (4.0, 8.0)}

# %% tags=["hide-input"]
for gamma, formula in formulas.items():
    came, noisier = walks[gamma][-1], near_share(mixture, what_comes(mixture, gamma, rising(1e6)))
    print(f"gamma {gamma:g}: mass {math.exp(formula.log_normaliser):.3f}; near blob {near_share(mixture, formula):.3f}, samples {near_share(mixture, came):.3f}, from q = 10^6 {noisier:.2f};",
          f"mean of x1 {formula.mean[0]:.2f}, samples {came[:, 0].mean():.2f}")
    assert abs(formula.log_normaliser) < 0.03 and abs(near_share(mixture, formula) - near_share(mixture, came)) < 0.02

# %% [markdown]
# Mass one up to the steps along the paths; shares and means those of the samples, up to their scatter. From a noisier start a little less of the near blob would come. As maps:

# %% tags=["hide-input"]
def map_of(panel, grid, values):
    """Filled contours of positive and negative values, in tenths of the largest."""
    top = float(values.abs().max())
    panel.contourf(*grid, values.T, [top * k / 10 for k in (-10, -6, -3, -1, -0.3, 0.3, 1, 3, 6, 10)], cmap="PuOr_r")
    panel.set(xlabel="$x_1$", ylabel="$x_2$", xlim=(-2.4, 6.4), ylim=(-4.4, 4.4), aspect="equal")


formula = formulas[4.0]
difference = (formula.log_prob(formula.points).exp() - orders[4.0].log_prob(formula.points).exp()).view(100, 100)
sides = [formula.points.view(100, 100, 2)[:, 0, 0], formula.points.view(100, 100, 2)[0, :, 1]]
with plotting.style():
    figure, (difference_map, enclosed) = plotting.plt.subplots(1, 2, figsize=(6.6, 3.2), sharex=True, sharey=True)
    map_of(difference_map, sides, difference)
    enclosed.plot(*walks[4.0][-1][:450].T, ".", markersize=1.6, color=plotting.COLOURS["guided"])
    plotting.density(enclosed, partial(path.sampled_log_prob, mixture, 1, 4.0, levels=rising(Q, 16)), (-1, 6, -3, 3), linewidths=0.8)
    assert len(enclosed.lines[0].get_xdata()) == 450
    difference_map.set(title="came − ordered")
    enclosed.set(title="the formula, and samples", xlabel="$x_1$", aspect="equal")
    for x, y, sign in ((-0.9, -0.2, "−"), (5.3, 0.2, "+")):
        difference_map.text(x, y, sign, fontsize=15, ha="center")
    shown = plotting.show(figure, "17_formula_and_samples", alt="Two maps of the plane at gamma 4. Left: what came less what was ordered is negative over the left parts of both blobs and positive at the right edge of each. Right: the contours of the formula enclose the sampled points.")
shown

# %% [markdown]
# *$\gamma = 4$. Left: what came less what was ordered. Mass is missing (−) towards the other classes, and too much (+) away from them. Right: the formula $\eqref{eq-guided-density}$ and 450 samples.
# Dashed: 50, 90 and 99 %.*
#
# And at the centre of the near blob the bill is larger than at that of the far one:

# %%
centres = mixture.means[1:3]
places = torch.cat([centres, centres + torch.tensor([0.8, 0.0]).double()])
for gamma in (2.0, 4.0, 8.0):
    bills = gamma * (gamma - 1) / 2 * path.follow(mixture, 1, gamma, places, levels)[1]
    print("gamma {:g}: bill at the centres, near and far, {:.1f} and {:.1f};".format(gamma, *bills[:2]),
          "0.8 to the right of them {:.1f} and {:.1f}".format(*bills[2:]))

# %% [markdown]
# At $\gamma = 4$ the bill is eleven at the centre of the near blob, and one and a half on its right side. So it is sampled at its right edge, as in the first figure, and less of it than of the far one. Here bills grow faster than $\gamma\,(\gamma - 1)$, since a larger $\gamma$ takes other paths.
#
# ## When is it right?
#
# With fine steps and a noisy start every sampler arrives, if nothing need be made or taken: if $\gamma$ is 0 or 1, or if at every level the classifier's gradient has one length everywhere. With one length everywhere $\log p_q(y \mid x)$ is linear in $x$ (as in [chapter 08](08_gamma_normaliser.ipynb#deeper-is-either-a-diffusion-path)). But it is at most 0, and a linear function bounded above is constant.
# So for a class among the data the guided densities diffuse for no $\gamma$ but 0 and 1, unless the label says nothing. (It is right for some classes that are not among the data: [Deeper](#deeper-for-which-data-is-it-right).)
#
# ### Pitfall: finer steps, better solver
#
# If samples are off, use more steps? Here is the mean of $x_1$, again at a scale of 4, by DDIM and by Heun.

# %%
few, table = start[:1000], {}
guided = guidance.classifier_free(mixture.pair(schedule, label=1), 4.0)
limit = draw(kernels.heun(guided, schedule), few, time_grid(320, start=0.99))[:, 0].mean()
for kernel in (kernels.ddim, kernels.heun):
    for steps in (10, 40, 160):
        x = draw(kernel(guided, schedule), few, time_grid(steps, start=0.99))[:, 0].mean()
        table[kernel.__name__, steps] = off = float(x - limit)
        print(f"{kernel.__name__} {steps:3d} steps: mean of x1 {x:.3f}, from the limit {off:+.4f}")
print(f"ordered: {orders[4.0].mean[0]:.2f}")
assert abs(table["heun", 40]) < abs(table["ddim", 40]) < 0.3 and limit > 3

# %% [markdown]
# More steps and a better solver bring you to the limit: the *wrong* one, sooner. With 40 steps of Heun the error of the steps is four thousandths, that of the equation one and a half.
#
# ## What more noise mends
#
# Why should noise help? Call $s_\gamma = \nabla w_q$ the guided score. With noise $\rho$ a step walks by $\frac{1 + \rho^2}{2}\, s_\gamma\, dq$ ([why](11_classifier_free_guidance.ipynb#deeper-why-half-a-score)). The score is linear in $\gamma$, so this may be split:
#
# $$ \frac{1 + \rho^2}{2}\, s_\gamma = \frac12\, s_1 + \frac{\rho^2}{2}\, s_{\gamma'}, \qquad \gamma' = \gamma + \frac{\gamma - 1}{\rho^2} .
# \label{eq-predictor-corrector} $$
#
# The first part is a noiseless *conditional* step, a predictor that is right. The second, with the noise $\rho^2\, dq$, is Langevin dynamics ([chapter 04](04_scores_and_langevin.ipynb)). It leaves the guided density of another scale $\gamma'$ alone (for $\gamma > 1$ a *larger* one), and draws
# all others towards it. For DDPM, $\rho = 1$, that scale is $2 \gamma - 1$ ([Bradley & Nakkiran (2024)](https://arxiv.org/abs/2408.09000)). So guided DDPM at 4 is
# conditional DDIM, corrected towards 7 for a short time at every level. With more and more noise $\gamma' \to \gamma$, and there is more time.

# %%
def field(mixture, gamma):
    """The guided score of class 1, a function of x and q."""
    def score(x, q):
        noisy = mixture.noised(1.0, q**0.5)
        return noisy.score(x) + gamma * noisy.class_gradient(x, 1)

    return score


corrector = path.corrector_scale(4.0, rho=1.0)
parts = field(mixture, 1.0)(points, level) / 2 + field(mixture, corrector)(points, level) / 2
torch.testing.assert_close(field(mixture, 4.0)(points, level), parts, atol=1e-12, rtol=1e-12)
print(f"DDPM at 4 is corrected towards {corrector:g}")

# %% [markdown]
# So with more noise the samples should come nearer to the order, as long as Langevin dynamics carries points from one blob to the other before the level is over. We move the far blob out, from 3.6 to 12, and add noise. (Here samples start at $q = 10^4$, hence 0.29 without noise, a little less than before.)

# %% tags=["hide-input"]
def walk(score, x, qs, rho, generator):
    """A sampler with noise rho through falling levels qs: a step of DDIM, rho^2 / 2 scores more, and noise."""
    for q, lower in zip(qs[:-1], qs[1:], strict=True):
        x = x + (q - (q * lower).sqrt() + rho**2 / 2 * (q - lower)) * score(x, q)
        x = x + rho * (q - lower).sqrt() * standard_normal(x.shape, x, generator) if rho else x
    return x


def falling(steps, top=1e4, bottom=3e-3):
    """Levels, evenly spaced in log q, then 0."""
    ends = math.log10(top), math.log10(bottom)
    return torch.cat([torch.logspace(*ends, steps), torch.zeros(1)]).double()


def moved_out(place):
    means = mixture.means.clone()
    means[2, 0] = place
    return GaussianMixture(mixture.weights, means, mixture.covs, mixture.labels)


# %% tags=["hide-input"]
high = 100 * torch.randn(1500, 2, generator=seeded(5)).double()
noises, found = ((0.0, 120), (1.0, 240), (2.0, 240), (4.0, 480)), {}
print("far blob at   near share at rho =" + "".join(f"{rho:7g}" for rho, _ in noises))
for place in (3.6, 6.0, 12.0):
    there = moved_out(place)
    ends = [walk(field(there, 4.0), high, falling(steps), rho, seeded(7)) for rho, steps in noises]
    found[place] = [near_share(there, end) for end in ends]
    print(f"{place:11g}" + " " * 22 + "".join(f"{share:7.2f}" for share in found[place]))
print("standard error at most 0.013; ordered 0.60")
assert all(a < b for shares in (found[3.6], found[6.0]) for a, b in zip(shares[:-1], shares[1:], strict=True))
assert found[3.6][-1] > 0.54 and found[12.0][-1] < 0.35

# %% tags=["hide-input"]
apart = moved_out(12.0)
for q in (20.0, 8.0, 1.0):
    frame_q = GridDensity(lambda x, q=q: path.combined_log_density(apart, 1, 4.0, x, q), -38, 46, 200)
    along_x1 = frame_q.weights.view(200, 200).sum(1)
    valley = float(along_x1[92:119].min() / min(along_x1[:104].max(), along_x1[104:].max()))
    share = float(metrics.mode_weights(apart.given(1).noised(1.0, q**0.5), frame_q)[0])
    depth = f", and a valley of depth {1 - valley:.2f} between the blobs" if q < 20 else ", its least"
    print(f"far blob at 12, q = {q:g}: the film has {share:.2f} in the near blob{depth}")
    assert q < 20 or found[12.0][2] < share < 0.245

# %% tags=["hide-input"]
with plotting.style():
    figure, axes = plotting.plt.subplots(figsize=(4.8, 2.7))
    levels_of_noise = [rho for rho, _ in noises]
    for place, colour in zip(found, ("guided", "other", "conditional"), strict=True):
        scatter = [2 * (share * (1 - share) / 1500) ** 0.5 for share in found[place]]
        axes.errorbar(levels_of_noise, found[place], scatter, marker="o", markersize=4, color=plotting.COLOURS[colour])
        axes.text(4.15, found[place][-1], f"far blob at {place:g}", va="center", color=plotting.COLOURS[colour])
    axes.axhline(0.6, color=plotting.COLOURS["truth"], linestyle="--", linewidth=1)
    axes.text(0.1, 0.615, "ordered")
    axes.set(xlabel="noise $\\rho$", ylabel="share of the near blob", xlim=(-0.15, 5.6), ylim=(0.05, 0.68), xticks=levels_of_noise)
    assert all(found[3.6][k] > found[6.0][k] > found[12.0][k] for k in range(4)) and len(axes.containers) == 3 and abs(found[12.0][1] - found[12.0][0]) < 0.026
    shown = plotting.show(figure, "17_more_noise", alt="Share of the near blob over the noise, from rho = 0 to 4, for three places of the far blob. All three curves rise. With the far blob at 3.6 the curve comes close to the dashed line of what was ordered, with the far blob at 12 it stays below half of it.")
shown

# %% [markdown]
# *Share of the near blob at $\gamma = 4$ over the noise of the sampler, for a far blob that lies farther and farther out. Bars: two standard errors. Here more noise brings the share nearer to what was ordered. It closes a smaller part of the gap the farther the blobs lie apart; at 12 the usual noise does nothing that shows.*
#
# With the far blob at 3.6, $\rho = 4$ brings back nearly all of the near blob. At 12 it does not. There the blobs are half parted at $q = 8$, while the film has only 30 % in the near one. At $q = 1$ nothing is left between
# them, and the film has 57 %. Noise draws points to the film as long as they cross; what has parted keeps the share it has. With the far blob at 12 it brings the share to 0.25, about the least that the film ever has; less noise does not get even there. Where the noiseless share happens to be right, more noise can lead away from the order.
#
# In your own code more noise is one argument, and a corrector one function:

# %%
guided = guidance.classifier_free(mixture.pair(schedule, label=1), 4.0)
noisy_kernel = kernels.reverse_sde(guided, schedule, rho=2.0)
shorter, source = time_grid(150, schedule, start=0.99, end=0.01), seeded(8)


def langevin(x, t, s, steps=3):
    """Steps at the guided score of the new level, each of variance delta."""
    sigma, delta = schedule.sigma(s), 0.1 * schedule.sigma(s) ** 2
    for _ in range(steps):
        noise = standard_normal(x.shape, x, source)
        x = x + delta / 2 * guided(x, s).score(sigma) + delta.sqrt() * noise
    return x


more_noise = draw(noisy_kernel, few, shorter, source)
corrected = draw(kernels.ddim(guided, schedule), few, shorter, source, after=langevin)
print(f"near share: noise x 2 {near_share(mixture, more_noise):.2f},",
      f"DDIM with a corrector {near_share(mixture, corrected):.2f}")

# %% [markdown]
# And to guide only part of the way? Here $\gamma = 4$ above, or below, a time, and 1 elsewhere, without noise.

# %% tags=["hide-input"]
for name, scale in (("t > 0.5", lambda t: 4.0 if t > 0.5 else 1.0), ("t < 0.5", lambda t: 4.0 if t < 0.5 else 1.0)):
    part = guidance.classifier_free(mixture.pair(schedule, label=1), scale)
    ends = draw(kernels.heun(part, schedule), start, times)
    share, away = near_share(mixture, ends), float((ends[:, 0].mean() - 1.62) / class_1_size)
    print(f"gamma = 4 only at {name}: near share {share:.2f}, mean off by {away:.2f} class deviations")

# %% [markdown]
# Here the early half does nearly all the damage ([chapter 11](11_classifier_free_guidance.ipynb#what-does-gamma-1-sample) saw it in the mean). The late half alone leaves shares and mean as they are at $\gamma = 1$ throughout, *which is as near to the order*. (On chapter 11's four blobs, in the tests, the late half moves the mean and is surer than the order, and no nearer to it than $\gamma = 1$.)
#
# ## In practice
#
# | if you | do | because |
# |---|---|---|
# | report what your model samples | name sampler, noise, schedule of $\gamma$ and steps, not only $\gamma$ | near share at $\gamma = 4$: 0.306 without noise, 0.600 ordered |
# | see modes vanish at large $\gamma$ | look at $\gamma = 1$ first: if they are there, guidance dropped them | here the near share falls from 0.615 to 0.105 at $\gamma = 8$ |
# | want the order, and its modes lie close | more reverse noise, or corrector steps at $\gamma$ | far blob at 3.6: near share 0.39 at the usual noise, 0.56 at four times its deviation |
# | want the order, and its modes lie far apart | do not count on noise; keep $\gamma$ near 1, or weigh samples ([chapter 18](18_remedies_that_are_right.ipynb)) | far blob at 12: near share 0.12 at the usual noise, 0.25 at four times its deviation |
# | have classes that are sure anyway | take $\gamma = 1$; if you guide for looks, say so | the order at 8 is that at 1 to $9 \cdot 10^{-6}$ nats; the samples are not |
# | must guide, and want to keep the shares | try guiding only below the noise level at which the modes have parted, and see whether it does what you guide for; $\gamma = 1$ is as near to the order | here, at $t < 0.5$ alone the near blob kept 0.62, as at $\gamma = 1$; at $t > 0.5$ alone 0.31 |
#
# ## Exercises
#
# Type where it says "your turn", run the cell, then the check below it. Tensors come in float64; leave them as they are.

# %% [markdown]
# ### Exercise 17.1 (easy): another predictor
#
# The page splits a guided step into a noiseless step at scale 1 and a Langevin step. Split it with a noiseless step at any scale $a$, and return the
# scale of the Langevin step. (With $a = \gamma$ it must be $\gamma$; then nothing is left to explain.)
#
# <details><summary>Hint</summary>
#
# $s_\gamma$ is a sum of two scores with weights $1 - \gamma$ and $\gamma$. Compare the weights of the second on both sides of $\eqref{eq-predictor-corrector}$, with $s_a$ for $s_1$.
#
# </details>

# %% tags=["exercise"]
def langevin_scale(gamma, rho, a):
    ### BEGIN SOLUTION
    return (gamma * (1 + rho**2) - a) / rho**2
    ### END SOLUTION


# %%
exercises.check("17.1", langevin_scale)

# %% [markdown]
# ### Exercise 17.2 (medium): the bill of a Gaussian
#
# The class is $\mathcal N(0, C)$ among data $\mathcal N(0, U)$, on the line, and $\gamma / C + (1 - \gamma) / U$ is above 0, so that there is an order. Without noise, what comes has the variance $C^\gamma\, U^{1 - \gamma}$ ([Deeper](#one-class-in-closed-form-for-any-noise)). Return the bill of a point $x$, that is $\frac12 \gamma\,(\gamma - 1) \int_0^\infty
# \|g_q(x_q)\|^2\, dq$, without an integral.
#
# <details><summary>Hint</summary>
#
# You know what comes, and what was ordered, from its exponent: both are Gaussians. By $\eqref{eq-guided-density}$ the logarithm of their ratio is minus the
# bill, up to a constant. What is the bill at $x = 0$?
#
# </details>

# %% tags=["exercise"]
def bill(x, C, U, gamma):
    ### BEGIN SOLUTION
    came, order = C**gamma * U ** (1 - gamma), 1 / (gamma / C + (1 - gamma) / U)
    return x**2 / 2 * (1 / came - 1 / order)
    ### END SOLUTION


# %%
exercises.check("17.2", bill)

# %% [markdown]
# ### Exercise 17.3 (hard): two labels at once
#
# To ask for two things, people add two differences: $s = s_0 + \gamma_1 (s_1 - s_0) + \gamma_2 (s_2 - s_0)$, with the scores $s_0$ of all data and $s_1$,
# $s_2$ of the data under either label, all at one noise level. Return the rate at which mass should be made, for each unit of mass at the point and each unit of $q$ towards the data, before its mean is subtracted, at each of $N$ points.
#
# <details><summary>Hint</summary>
#
# Write $s = \sum_i c_i s_i$ with $\sum_i c_i = 1$, and go through the derivation of $\eqref{eq-guided-residual}$: all linear terms agree; what is left of the squares? Mind the
# direction: the page's last term belongs to growing $q$.
#
# </details>

# %% tags=["exercise"]
def made_by_two(s0, s1, s2, gamma1, gamma2):
    """s0, s1, s2: (N, d). Returns (N,)."""
    ### BEGIN SOLUTION
    c = (1 - gamma1 - gamma2, gamma1, gamma2)
    mixed = sum(weight * s for weight, s in zip(c, (s0, s1, s2), strict=True))
    squares = sum(weight * s.square().sum(1) for weight, s in zip(c, (s0, s1, s2), strict=True))
    return (mixed.square().sum(1) - squares) / 2
    ### END SOLUTION


# %%
exercises.check("17.3", made_by_two)

# %% [markdown]
# ## Remember
#
# 1. Exact guided guesses are the scores of $p_q^{1 - \gamma}\, p_q(\cdot \mid y)^\gamma$ at every level, but these densities are no diffusion. From one level to the next mass
#    would have to be made at the rate $\frac12 \gamma\,(\gamma - 1)\, \big(\|\nabla \log p_q(y \mid x)\|^2 - \text{mean}\big)$. A sampler with guided scores and noise $\rho$ only undoes noise.
# 2. Noiseless guidance samples the order times $e^{-\text{bill}}$, the bill being $\frac12 \gamma\,(\gamma - 1)$ times the squared classifier gradient gathered along a point's path: exactly, for exact guesses, fine steps and a noisy enough start.
# 3. The guided densities diffuse if $\gamma$ is 0 or 1, or if that gradient has one length everywhere, at every level, and only then. For a class among the data it has not, unless the label says nothing.
# 4. Finer steps of the same sampler lead to its limit, which is not the order. More reverse noise draws the shares towards those of the film as long as points cross between the modes, and then no more. At four times the usual deviation: nearly the order with the far blob at 3.6, far from it with the far blob at 12.
# 5. So the order can say little about the samples: here it is the same at $\gamma = 1$ and 8 to $9 \cdot 10^{-6}$ nats, and where 60 % were ordered in the near blob, 10 % came.
#
# **Where it comes from.** That guidance is not sampling from $p(x)\, p(y \mid x)^\gamma$, the two Gaussian variances without noise and with the usual noise, and the reading as predictor and corrector: [Bradley & Nakkiran
# (2024)](https://arxiv.org/abs/2408.09000). The last term of $\eqref{eq-guided-residual}$, as a weight for particles: [Skreta et al. (2025)](https://arxiv.org/abs/2503.02819). Two Gaussians and
# mixtures under strong guidance: [Wu et al. (2024)](https://arxiv.org/abs/2403.01639), [Chidambaram et al. (2024)](https://arxiv.org/abs/2409.13074). $\eqref{eq-guided-density}$ and the formula for any noise are derived here.

# %% [markdown]
# ## Deeper: where mass is made, and where taken
#
# *For you if you want the missing term of the density itself. It maps, at one level, where people appear and disappear.*
#
# For the normalised density, $\pi_q = e^{w_q} / Z_q$, read $\eqref{eq-guided-residual}$ towards the data, where $q$ falls. The derivative of $\log Z_q$ must
# make the total mass one, so it is the mean of the last term:
#
# $$ -\partial_q \pi_q = -\frac12 \Delta \pi_q + \frac12 \gamma\,(\gamma - 1)\, \big( \|g_q\|^2 - \mathbb E_{\pi_q} \|g_q\|^2 \big)\, \pi_q .
# \label{eq-guided-mass} $$
#
# The first term is what a sampler does that takes guided scores for scores, at any $\rho$. The second term it does not do.

# %%
# [eq-guided-mass]
def mass_made(mixture, label, gamma, density, q):
    """The last term on the points of a grid density of pi_q, for each unit of q."""
    rate = path.source(mixture, label, gamma, density.points, q)
    return (rate - density.weights @ rate) * density.log_prob(density.points).exp()

# %%
frame = GridDensity(partial(film, q=level), -10, 14, 300)
made = mass_made(mixture, 1, 4.0, frame, level)
appear = float(made.clamp_min(0).sum() * frame.cell.prod())
print(f"for each unit of q, {appear:.0%} of the crowd appear and as many vanish")
assert round(appear * 8) == 1 and abs(made.sum() * frame.cell.prod()) < 1e-12

# %% tags=["remove-cell"]
later, earlier = (GridDensity(partial(film, q=level + sign * 1e-3), -10, 14, 300) for sign in (-1, 1))
square = frame.log_prob(frame.points).exp().view(300, 300)
spreads = (sum(square.roll(s, d) for s in (1, -1) for d in (0, 1)) - 4 * square).flatten() / frame.cell[0] ** 2
grown = (later.log_prob(frame.points) - earlier.log_prob(frame.points)).expm1() / 2e-3 * earlier.log_prob(frame.points).exp()
torch.testing.assert_close(grown + spreads / 2, made, atol=2e-3 * float(made.abs().max()) * 10, rtol=0)

# %% tags=["hide-input"]
wide = [frame.points.view(300, 300, 2)[::3, 0, 0], frame.points.view(300, 300, 2)[0, ::3, 1]]
with plotting.style():
    figure, panel = plotting.plt.subplots(figsize=(3.4, 3.2))
    map_of(panel, wide, made.view(300, 300)[::3, ::3])
    plotting.density(panel, partial(film, q=level), (-4, 8, -6, 6), linewidths=0.8)
    panel.set_title(f"made (+) and taken (−), $q = {level}$")
    for x, y, sign in ((-0.6, 2.2, "+"), (3.4, 0.8, "−")):
        panel.text(x, y, sign, fontsize=15, ha="center")
    assert level == 1.44
    shown = plotting.show(figure, "17_made_and_taken", alt="A map of the plane at gamma 4. At noise variance 1.44 mass is made along the upper left edge of the guided density and taken inside, most of all at the near blob.")
shown

# %% [markdown]
# *$\gamma = 4$: where the guided density of one noise level needs mass to be made (+) and where to be taken (−). Dashed, that density: 50, 90 and 99 %.*
#
# At this level an eighth of the crowd would have to be replaced per unit of $q$, and nobody is. Compare the map of what came less what was ordered. Towards the other classes mass should have been made, and is missing; away from them it should have been taken, and is too much. (Not place by place: at the centre of the near blob mass should be taken at this level, and yet is missing. People
# walk on, and each level has its own map. The bill adds them up along the paths.)
#
# ## Deeper: for which data is it right?
#
# *For you if you ask when guidance does sample the order. It adds the condition, and data that fulfil it.*
#
# By $\eqref{eq-guided-mass}$ nothing is made or taken if and only if, at every level $q$,
#
# $$ \gamma\,(\gamma - 1)\, \big( \|g_q(x)\|^2 - \mathbb E_{\pi_q} \|g_q\|^2 \big) = 0 \quad \text{for all } x. \label{eq-constant-norm} $$
#
# So $\gamma$ is 0 or 1, or the classifier's gradient has one length everywhere. (For the noiseless sampler alone it would be enough if all bills were equal.) A smooth function whose gradient has one length everywhere is
# linear ([chapter 08](08_gamma_normaliser.ipynb#deeper-is-either-a-diffusion-path) uses this as well). Then $p_q(x \mid y) = p_q(x)\, e^{a_q \cdot x + b_q}$ at every level. The familiar case is
# two Gaussians of one covariance. It is not the only one: the data may be Gaussian along one direction and, independently of it, anything at all across it, and the class moved along it.
# Here is how much $\|g_q\|^2$ varies (its standard deviation over its mean, under $\pi_q$ at $\gamma = 2$) for several pairs of data and class.

# %%
# [eq-constant-norm]
def unevenness(data, of_class, gamma, q):
    """Deviation of |g_q|^2 over its mean under pi_q."""
    data, of_class = data.noised(1.0, q**0.5), of_class.noised(1.0, q**0.5)
    def log(x):
        return (1 - gamma) * data.log_prob(x) + gamma * of_class.log_prob(x)

    density = GridDensity(log, -14, 14, 200)
    squares = (of_class.score(density.points) - data.score(density.points)).square().sum(1)
    mean = density.weights @ squares
    return float((density.weights @ (squares - mean) ** 2).sqrt() / mean)


# %% tags=["hide-input"]
def blobs(means, covs, weights=(0.6, 0.4)):
    return GaussianMixture(torch.tensor(weights[: len(means)]) / sum(weights[: len(means)]), torch.tensor(means).double(), covs)


round_one, thin = [[1.0, 0.3], [0.3, 0.8]], [[0.5, 0.0], [0.0, 0.2]]
across = [[[1.0, 0.0], [0.0, 0.2]], [[1.0, 0.0], [0.0, 0.6]]]
zoo = {
    "two Gaussians, one covariance": (blobs([[0.0, 0.0]], [round_one]), blobs([[1.0, 0.5]], [round_one])),
    "two blobs, moved along a Gaussian side": (blobs([[0.0, -1.5], [0.0, 1.5]], across), blobs([[0.8, -1.5], [0.8, 1.5]], across)),
    "two blobs, moved across it": (blobs([[0.0, -1.5], [0.0, 1.5]], across), blobs([[0.0, -1.0], [0.0, 2.0]], across)),
    "two Gaussians, two covariances": (blobs([[0.0, 0.0]], [round_one]), blobs([[0.5, 0.3]], [thin])),
    "three classes, this page": (mixture, class_1),
    "four blobs, chapter 11": (plane.four_blobs(), plane.four_blobs().given(1)),
}
print(f"{'':40} {'q = 0.3':>7} {'q = 1':>7} {'q = 3':>7}")
for name, (data, of_class) in zoo.items():
    spread = [unevenness(data, of_class, 2.0, q) for q in (0.3, 1.0, 3.0)]
    print(f"{name:40}", "{:7.0e} {:7.0e} {:7.0e}".format(*spread))
    assert (max(spread) < 1e-10) == (name in list(zoo)[:2]) and (min(spread) > 0.1) == (name not in list(zoo)[:2])

# %% [markdown]
# The first two are exact, to rounding: there guidance moves the class on, by $\gamma - 1$ times the way from data to class. All others are not, by far. And a class *among* the data is never like the first two ([why](#when-is-it-right)).
#
# It is *not* that the guided guess would be no gradient. It is one, $\nabla w_q$, at every level. (Exact guesses have no curl, and
# [chapter 11](11_classifier_free_guidance.ipynb#deeper-is-it-the-gradient-of-a-classifier) measured a network's.) Each frame may be a perfectly good density, and the next one not what the walk makes of it.
#
# ## Deeper: how far apart the samplers are
#
# *For you if you need numbers for every noise. It adds a formula, for one Gaussian in another, and says how much too narrow DDIM is.*
#
# ### One class in closed form, for any noise
#
# Let the class be $\mathcal N(0, C)$ among data $\mathcal N(0, U)$, on the line, with $C < U$ and $\gamma \ge 0$; here everything can be solved (exercise 10.5 asks for it).
# On its way from $q$ to 0 a difference shrinks by the factor $\big[ (\frac{C}{C + q})^{\gamma} (\frac{U}{U + q})^{1 - \gamma} \big]^{(1 + \rho^2)/2}$, and a
# variance by its square. At each level $\rho^2\, dq$ of new variance comes in. Of the variance $Q$ of the start nearly nothing is left if there is noise; without noise it is all there is, and $S_0$ is what is left of it. So samples have the variance
#
# $$ S_\rho = \rho^2 \int_0^\infty \Big[ \Big(\frac{C}{C + q}\Big)^{\gamma} \Big(\frac{U}{U + q}\Big)^{1 - \gamma} \Big]^{1 + \rho^2} dq,
# \qquad S_0 = C^\gamma\, U^{1 - \gamma}, \quad S_\infty = \Big( \frac{\gamma}{C} + \frac{1 - \gamma}{U} \Big)^{-1} .
# \label{eq-any-noise-variance} $$
#
# From the *geometric* mean without noise to the *harmonic* one, the order, with very much of it: DDIM extrapolates the logarithms of variances, the order extrapolates their inverses. Here for $C = 0.5$, $U = 3$ and $\gamma = 4$:

# %%
def wide_score(x, q, C=0.5, U=3.0, gamma=4.0):
    return -x * (gamma / (C + q) + (1 - gamma) / (U + q))


line = 100 * torch.randn(20_000, 1, generator=seeded(3)).double()
for rho, steps in ((0.0, 400), (1.0, 400), (2.0, 400), (4.0, 800)):
    formula_variance = path.guided_variance(0.5, 3.0, 4.0, rho)
    drawn = walk(wide_score, line, falling(steps), rho, seeded(4)).var()
    error = float(drawn) / 100
    print(f"rho {rho:g}: formula {formula_variance:.4f}, {steps} steps {drawn:.4f} +- {error:.4f}")
    assert abs(drawn / formula_variance - 1) < 0.1
order_variance = 1 / (4 / 0.5 - 3 / 3.0)
ddim, ddpm = (path.guided_variance(0.5, 3.0, 4.0, rho) / order_variance for rho in (0.0, 1.0))
print(f"order: {order_variance:.4f}; DDIM has {ddim:.1%} of it, DDPM {ddpm:.0%}")

# %% [markdown]
# DDIM has less than a fiftieth of the ordered variance, DDPM 60 % of it. (The steps leave up to a tenth; the next section shows that this vanishes, and how fast.) And when $\gamma$ grows by one, the order's precision grows by $1/C - 1/U$, while DDIM's variance is multiplied by $C / U$, here a sixth: a power law against an exponential.

# %% [markdown]
# ### Exercise 17.4 (research): where the mean goes
#
# The class is $\mathcal N(m, C)$ among data $\mathcal N(0, U)$, on the line. Return the mean of what a sampler with noise $\rho$ samples, as a formula with one
# integral: `integrate(f)` gives $\int_0^\infty f(q)\, dq$ and calls `f` with a tensor of many $q$. Then take $m = 1$, $C = 0.5$, $U = 3$ and no noise, and compare
# with the mean of the order at $\gamma$ = 2, 8 and 32. At which of them is the gap largest? (The solution has the numbers.)
#
# <details><summary>Hint</summary>
#
# The guided score at $x$ is $-\gamma\, \frac{x - m}{C + q} - (1 - \gamma)\, \frac{x}{U + q}$: linear in $x$, and a part that does not depend on $x$. A step from $q$ to $q - dq$ moves
# every point by $\frac{1 + \rho^2}{2}$ times that part. By which factor does this displacement shrink on its way to $q = 0$? It stands above
# $\eqref{eq-any-noise-variance}$. Test: at $\gamma = 1$ the mean is $m$.
#
# </details>

# %% tags=["exercise"]
def guided_mean(m, C, U, gamma, rho, integrate):
    ### BEGIN SOLUTION
    half = (1 + rho**2) / 2

    def arrives(q):
        kept = (C / (C + q)) ** gamma * (U / (U + q)) ** (1 - gamma)
        return half * gamma * m / (C + q) * kept**half

    # m = 1, C = 0.5, U = 3, rho = 0: 0.19 beyond the order's mean at gamma = 2, 0.08 at 8, 0.02 at 32. One Gaussian
    # within a wider one does not run away: both means go to m U / (U - C). Of all scales the gap is largest near 2.7.
    return integrate(arrives)
    ### END SOLUTION


# %%
exercises.check("17.4", guided_mean)

# %% [markdown]
# ## Deeper: to the order of the solver
#
# *For you if you want to see the package's own steps meet $\eqref{eq-any-noise-variance}$, in variance-preserving variables and without sampling.*
#
# For these Gaussians every step multiplies $x_t$ by a number and adds noise, so variances can be carried along exactly, and all that is left is the error of the steps. (What is carried is divided by $\alpha^2$ of the last time, since the formula is for $\bar x$.)

# %%
def one_gaussian(variance):
    return GaussianMixture([1.0], torch.zeros(1, 1).double(), [[[variance]]])


def carried(kernel, times, schedule):
    """The variance that a linear kernel gives to a standard normal start."""
    var, one = torch.ones(()).double(), torch.ones(1, 1).double()
    for t, s in zip(times[:-1], times[1:], strict=True):
        step = kernel(one, t, s)
        var = var * step.mean[0, 0] ** 2 + step.var
    return float(var / schedule.alpha(times[-1]) ** 2)


# %%
narrow, broad = (one_gaussian(v).denoiser(schedule) for v in (0.5, 3.0))
guided_line = guidance.classifier_free(Pair(narrow, broad), 4.0)
ladder = {
    "heun": (kernels.heun(guided_line, schedule), 0.0),
    "ddim": (kernels.ddim(guided_line, schedule), 0.0),
    "ddpm": (kernels.ddpm(guided_line, schedule), 1.0),
    "rho 2": (kernels.reverse_sde(guided_line, schedule, rho=2.0), 2.0),
}
print("       formula   off by, 100 steps  200 steps  400 steps")
for name, (kernel, rho) in ladder.items():
    truth = path.guided_variance(0.5, 3.0, 4.0, rho)
    grids = (time_grid(n, schedule, start=0.9999, end=1e-3) for n in (100, 200, 400))
    off = [carried(kernel, grid, schedule) - truth for grid in grids]
    print(f"{name:>6} {truth:.5f}" + "{:+20.1e}{:+11.1e}{:+11.1e}".format(*off))

# %% [markdown]
# Halved steps halve the errors, and Heun's quarter.
#
# ## Deeper: the sampler's own clock, and what its ODE knows
#
# *For you if you compute likelihoods, or need the rate in $t$. It adds the rate for $x_t$ itself, and an identity for $\log Z$.*
#
# With $\bar x = x_t / \alpha_t$ gradients get a factor $\alpha_t$, and for a variance-preserving schedule $q = 1 / \alpha_t^2 - 1$ grows by $\beta_t / \alpha_t^2\, dt$, where $\beta_t$ is the noise rate of the schedule. The factors cancel:
#
# $$ \frac12 \gamma\,(\gamma - 1)\, \big\| \nabla_{\bar x} \log p(y \mid \bar x) \big\|^2\, dq = \frac12 \gamma\,(\gamma - 1)\, \beta_t\, \big\| \nabla_{x_t} \log p_t(y \mid x_t) \big\|^2\, dt .
# \label{eq-source-clock} $$

# %%
# [eq-source-clock]
def made_in_t(mixture, label, gamma, schedule, x_t, t):
    """The right side, for each unit of t."""
    noisy = mixture.noised(schedule.alpha(t), schedule.sigma(t))
    squares = noisy.class_gradient(x_t, label).square().sum(1)
    return gamma * (gamma - 1) / 2 * schedule.beta(t) * squares


# %%
half = torch.tensor(0.5, dtype=torch.float64)
alpha, sigma = schedule.alpha(half), schedule.sigma(half)
rate = path.source(mixture, 1, 4.0, points, (sigma / alpha) ** 2)
after, before = ((schedule.sigma(t) / schedule.alpha(t)) ** 2 for t in (half + 1e-5, half - 1e-5))
made_here = made_in_t(mixture, 1, 4.0, schedule, alpha * points, half)
torch.testing.assert_close(made_here, rate * (after - before) / 2e-5, rtol=1e-8, atol=1e-10)

# %% [markdown]
# Sum $\eqref{eq-guided-residual}$ over the plane: the total mass of $e^{w_q}$ changes by the mean of its last term alone, and at high noise it tends to 1. So for $Z = \int p(x)^{1 - \gamma}\, p(x \mid y)^\gamma\, dx$ (that of $p(x)\, p(y \mid x)^\gamma$ is $p(y)^\gamma$ times this),
#
# $$ \log Z = \frac12 \gamma\,(\gamma - 1) \int_0^\infty \mathbb E_{\pi_q} \|g_q\|^2\, dq .
# \label{eq-normaliser-rate} $$

# %%
# [eq-normaliser-rate]
def log_normaliser(mean_square, gamma, qs):
    """The right side by the trapezium rule, from the means of |g|^2 at increasing levels qs."""
    return gamma * (gamma - 1) / 2 * torch.trapezoid(torch.stack(mean_square), qs)


# %%
qs, averages = torch.linspace(0.0, 16.0, 49).double() ** 2, {"film": [], "theatre": []}
people = GridDensity(lambda x: path.combined_log_density(mixture, 1, 4.0, x, qs[-1]), -110, 110, 100).sample(400, seeded(9))
for k in range(48, -1, -1):
    reach, noisy = 9 + 6 * float(qs[k]) ** 0.5, mixture.noised(1.0, qs[k] ** 0.5)
    frame_k = GridDensity(lambda x, k=k: path.combined_log_density(mixture, 1, 4.0, x, qs[k]), -reach, reach + 6, 80)
    squares = noisy.class_gradient(frame_k.points, 1).square().sum(1)
    averages["film"].insert(0, frame_k.weights @ squares)
    averages["theatre"].insert(0, noisy.class_gradient(people, 1).square().sum(1).mean())
    if k:
        people = walk(field(mixture, 4.0), people, torch.linspace(float(qs[k]), float(qs[k - 1]), 4).double(), 0.0, None)
found_z = {name: float(log_normaliser(values, 4.0, qs)) for name, values in averages.items()}
print(f"log Z: by a grid {orders[4.0].log_normaliser:.3f},",
      ", ".join(f"by the {name} {value:.3f}" for name, value in found_z.items()))
between = class_1.weights @ class_1.means - mixture.weights @ mixture.means
above = 6 * float(between.square().sum() / qs[-1])
print(f"above the last level: about {above:.2f}")
assert abs(found_z["film"] + above - orders[4.0].log_normaliser) < 0.03 and found_z["theatre"] < found_z["film"] - 1

# %% [markdown]
# By the film it is right, but for what lies above the highest level, where $g_q$ is nearly the difference of the means of class and data over $q$. By the theatre it is wrong: *guided samples are the wrong crowd to average over.*
#
# ### Pitfall: the likelihood under guidance
#
# The probability-flow ODE gives likelihoods: follow it up, add up the divergences. With guided guesses the same lines of code run, and give a number. It is $\log r_0$: the log density of *what comes*, not of the order. (The divergences
# are what thins the points out in the derivation of $\eqref{eq-guided-density}$.) At the two centres, in nats:

# %%
came_there = path.sampled_log_prob(mixture, 1, 4.0, centres, levels)
ordered_there = orders[4.0].log_prob(centres)
print("log density at the centres, near and far: ordered {:.1f} and {:.1f},".format(*ordered_there),
      "by the guided ODE {:.1f} and {:.1f}".format(*came_there))

# %% [markdown]
# ## Deeper: to the edge of the class
#
# *For you if you use large scales. It shows where $\gamma$ leads in a class of many parts with another class at one end.*
#
# [Chidambaram et al. (2024)](https://arxiv.org/abs/2409.13074) prove for simple mixtures that strong guidance ends at the edge of the class's support. Here class 1 is five narrow blobs in a row, with another class at the left end. Every blob is ordered to have a fifth.

# %%
row = GaussianMixture([0.5] + [0.1] * 5, torch.tensor([[-2.5], [0.0], [1.0], [2.0], [3.0], [4.0]]).double(),
                      [[[0.25]]] + [[[0.02]]] * 5, [0, 1, 1, 1, 1, 1])  # fmt: skip
begin = torch.randn(2000, 1, generator=seeded(10)).double()
for gamma in (1.0, 2.0, 4.0, 8.0):
    guided = guidance.classifier_free(row.pair(schedule, 1), gamma)
    ends = draw(kernels.heun(guided, schedule), begin, time_grid(150, schedule, start=0.999, end=0.01))
    shares = metrics.mode_weights(row, ends)[1:]
    log = [row.class_log_prob(place[None], 1) * gamma for place in row.means[1:]]
    first = float(torch.stack(log).flatten().softmax(0)[0])
    came = ", ".join(f"{share:.2f}" for share in shares)
    print(f"gamma {gamma:g}: came {came}; first blob ordered {first:.3f}")

# %% [markdown]
# At $\gamma = 4$ more than three quarters are in the outermost blob, at 8 all of them. The order still has a fifth in each. The "edge" is what lies farthest from other classes: with one at either end, in the tests, at 8 all come to the middle blob.
#
# ## Deeper: does high dimension help?
#
# *For you if you heard that guidance becomes harmless in high dimension. It says which error shrinks, with which power.*
#
# Let two classes in $\mathbb R^d$ be $\mathcal N(\pm \mu, I)$, each coordinate telling a little, so that they are $D = 2\, \|\mu\| \propto \sqrt d$ apart. Across $\mu$ both scores are equal: guidance acts along the line through the means
# alone, and the problem is one-dimensional with separation $D$. When $D$ is large, classes are decided at noise variances $q$ of the order $D^2$; there the picture is that of two points, scaled by $D$, so an overshoot
# of the order $D$ comes out of it. On the rest of the way it shrinks like any difference inside a class, by $(1 + q)^{-(1 + \rho^2) / 2}$. So, for $\gamma > 1$, where every point ends in the class, in standard deviations of the class,
#
# $$ \text{overshoot} \approx c_{\gamma, \rho}\; D \cdot \big(D^2\big)^{-(1 + \rho^2)/2} = c_{\gamma, \rho}\, D^{-\rho^2} . \label{eq-overshoot-power} $$
#
# where $c$ depends on the shares of the classes as well. This is an argument about orders of size; so measure it.

# %%
def two_classes(D):
    return GaussianMixture([0.6, 0.4], torch.tensor([[-D / 2], [D / 2]]).double(), [[[1.0]], [[1.0]]])


def overshoot(D, gamma, rho, steps=160):
    """How far 1,000 samples lie beyond those at gamma = 1, and their deviation; the class has 1."""
    begin, levels = 300 * torch.randn(1000, 1, generator=seeded(11)).double(), falling(steps, 9e4, 1e-2)
    guided, plain = (walk(field(two_classes(D), g), begin, levels, rho, seeded(12)) for g in (gamma, 1.0))
    return float((guided - plain).mean()), float(guided.std())


# %%
# [eq-overshoot-power]
def power_law(D, rho, constant=1.0):
    """The overshoot in deviations of the class."""
    return constant * D * (D**2) ** (-(1 + rho**2) / 2)


# %%
for gamma, noises_here in ((3.0, (0.0, 0.7, 1.0)), (8.0, (0.0, 1.0))):
    for rho in noises_here:
        rows = [overshoot(D, gamma, rho) for D in (4.0, 8.0, 16.0, 32.0)]
        print(f"gamma {gamma:g}, rho {rho:g}: overshoot", ", ".join(f"{mean:.2f}" for mean, _ in rows),
              "; deviation", ", ".join(f"{size:.2f}" for _, size in rows))
        for D, (near, _), (far, _) in zip((8.0, 16.0), rows[1:-1], rows[2:], strict=True):
            assert abs(math.log2(near / far) - math.log2(power_law(D, rho) / power_law(2 * D, rho))) < 0.2

# %% [markdown]
# The separation doubles from number to number, from four on. Without noise the overshoot stays, 1.2 deviations of the class at a scale of 3 and 2.5 to 2.6 at 8, and so does the loss of spread; with the usual noise it halves
# with every doubling, as $D^{-1}$ says, and with $\rho = 0.7$ it falls by $2^{0.49}$ each time. [Pavasovic et al. (2025)](https://arxiv.org/abs/2502.07849) say that the error vanishes in high dimension. Here: in units of
# the *separation* yes, for all three; in units of the class only for those with noise, and so for the lost spread. And separable classes are no comfort: at $D = 8$ and $\gamma = 8$
# the order is the class itself to $9 \cdot 10^{-5}$ nats, and DDIM moves its mean by more than two and a half of its deviations:

# %%
far_apart = two_classes(8.0)
axis = torch.linspace(-6, 14, 4001)[:, None].double()
weights_8, weights_1 = ((far_apart.log_prob(axis) + g * far_apart.class_log_prob(axis, 1)).softmax(0) for g in (8.0, 1.0))
moved_mean = overshoot(8.0, 8.0, 0.0)[0]
divergence = float((weights_8 * (weights_8.log() - weights_1.log())).nan_to_num().sum())
print(f"order at gamma 8 from order at 1: {divergence:.1e} nats; DDIM's mean off by {moved_mean:.2f} deviations")
assert divergence < 1e-4 and moved_mean > 2.5

# %% [markdown]
# For pictures this says little: they do not come in two classes, each a Gaussian, told apart along one line. With very many classes, exponentially many in the dimension, the distortion remains ([Ventura et al. (2026)](https://arxiv.org/abs/2602.00716)). The measurement does say that "high dimension" alone is no reason to trust $\gamma$ without noise.
#
# ## Deeper: a trained network
#
# *For you if you ask whether any of this is seen on pictures. It measures the shipped digits, and says what that leaves open.*
#
# Sixty digits, six of each, at $\gamma$ = 1, 2 and 4 from the same starting noises, in 8 steps without noise. In the features of the judge, a network that classifies digits: how far does a digit move from where it was at $\gamma = 1$,
# along the way from the mean of all real digits to the mean of the digits of its class drawn at $\gamma = 1$, in units of this way? And how large is the spread within a class? (The mean of a digit's class is taken over the five others of its class, or its own noise would count.)

# %%
network, judge = (checkpoints.load(name).network for name in ("denoiser", "judge"))
wanted = torch.arange(60) % 10


def features(gamma):
    """The judge's features of 60 digits, and which of them it takes for what was asked."""
    digits = sampling.generate(network, wanted, gamma, seed=0, steps=8, sampler="ddim")
    found, log_probs = digit_metrics.judged(judge, digits)
    return found, log_probs.argmax(1) == wanted


def others(x):
    """For each digit, the mean over the other five of its class."""
    sums = torch.stack([x[wanted == y].sum(0) for y in range(10)])
    return (sums[wanted] - x) / 5


# %%
(real, _), looked = digit_metrics.load_reference(), {gamma: features(gamma) for gamma in (1.0, 2.0, 4.0)}
plain, sure = looked[1.0][0], torch.stack([right for _, right in looked.values()]).all(0)
ways = others(plain) - real.mean
length = ((plain - real.mean) * ways).sum(1).mean()
print(f"{int(sure.sum())} of 60 are taken for what was asked at every scale; of these")

# %% tags=["hide-input"]
def with_scatter(values):
    return float(values.mean()), float(values.std() / len(values) ** 0.5)


on_digits = {}
for gamma, (found_features, _) in looked.items():
    shift = with_scatter((((found_features - plain) * ways).sum(1) / length)[sure])
    spread = with_scatter(5 / 6 * (found_features - others(found_features)).square().sum(1)[sure])
    on_digits[gamma] = (*shift, *spread)
    print("gamma {:g}: shift {:+.3f} +- {:.3f} of the way, spread in the class {:.2f} +- {:.2f}".format(gamma, *shift, *spread))
assert all(shift > 3 * error and 0.06 < shift < 0.1 for shift, error, *_ in (on_digits[2.0], on_digits[4.0]))
assert on_digits[1.0][2] > 3 * on_digits[2.0][2] and on_digits[1.0][2] > 4 * on_digits[4.0][2]

# %% [markdown]
# Both are seen, the shift and the narrowing. The digits move on, away from the mean of all, by a twelfth of the way or so. The spread within a class, a mean square, falls to less than a third at $\gamma = 2$ already, and to less than a quarter at 4. What this does *not* say: how much of it the order
# would have done, for nobody knows the order here; that the eye sees as much, for a judge's features are made to draw a class together; or that it would be so with another sampler, more steps, another network. One seed, sixty digits.
