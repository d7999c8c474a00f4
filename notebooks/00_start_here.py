# %% [markdown]
# # 00 · Start here: how do you tell a diffusion model what to draw?
#
# A diffusion model turns noise into pictures. Left alone, it draws whatever it likes. *Guidance* is how you tell it what
# you want: a class, a caption, a style. Many image generators expose it as one number, `guidance_scale`. This course is
# about that number: what it does, and what its pictures are samples of. (In a hurry? This chapter, [chapter 11](11_classifier_free_guidance.ipynb) and [chapter 17](17_what_does_gamma_sample.ipynb): an hour and a quarter.)
#
# **After this chapter you can**
# * draw a digit of your choice in five lines, given a trained network and its schedule;
# * say what the guidance scale $\gamma$ does, and why guided pictures need not be samples of what they are said to be;
# * translate anybody's guidance scale into ours.
#
# **You need** PyTorch and Bayes' rule; nothing about diffusion models.
#
# *24 minutes to read, 10 more for Deeper, 30 seconds to run, on a laptop, without a GPU or a network connection.*

# %%
import torch

from difflesson import conventions, exercises, guidance, kernels, plotting
from difflesson.denoiser import Prediction, network_denoiser, network_pair
from difflesson.digits import checkpoints, metrics, sampling
from difflesson.mixture import GaussianMixture
from difflesson.samplers import draw, time_grid
from difflesson.schedule import cosine, vp_linear

torch.set_num_threads(1)  # small arrays: a second thread gains nothing

# %% [markdown]
# ## Turn the knob and watch
#
# The course ships a small network, trained on the handwritten digits of MNIST. Ask it for sevens. Each row starts
# from *one* noise; from left to right, only $\gamma$ grows. Change any number of the page: an `assert` that then turns
# red guards a sentence which yours no longer bears out; nothing is broken.

# %%
network, card = checkpoints.load("denoiser")
scales = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)
sevens = torch.full((5,), 7)
still = {"seed": 2, "sampler": "ddim", "steps": 16}
columns = [sampling.generate(network, sevens, g, **still) for g in scales]

# %% tags=["hide-input"]
with plotting.style():
    figure, axes = plotting.plt.subplots(1, len(scales), figsize=(6.4, 4.6))
    for panel, gamma, digits in zip(axes, scales, columns, strict=True):
        plotting.show_digits(panel, digits, columns=1, title=f"$\\gamma = {gamma:g}$")
    shown = plotting.show(figure, "00_turn_the_knob", alt="A grid of digits, five rows by six columns for guidance scales 0 to 8. The first column shows various digits and shapes, the third column five different sevens, the last column five clean and bold sevens.")
shown

# %% [markdown]
# *Five starting noises (rows), six guidance scales (columns), one request: draw a 7.*
#
# At $\gamma = 0$ the network is not told the label: each noise becomes whatever digit it leads to. At $\gamma = 1$ it is
# told, and draws sevens as people write them, odd ones too. Beyond 1 they grow cleaner and bolder. The last row: an open
# 0; a shape that is no digit; a thin seven; then that seven in ever thicker strokes.
#
# **Why does this work?** A picture comes out of noise in small steps. At each, the network is asked "what in this is
# noise?", and some of its answer is taken away. Ask it twice: once saying "it is a seven", once saying nothing. The
# two answers differ by what the label changes: told "seven", the network takes a loop for noise, say. $\gamma$ is how
# much of this difference you apply at every step: 0 none; 1 all of it, which is the guess with the label; 4 four times.
#
# **And what are the pictures on the right samples of?** The usual answer (first in
# [Dhariwal & Nichol (2021)](https://arxiv.org/abs/2105.05233), section 4.3): of *sharpened* sevens. If $p(x)$ says how
# likely a picture is and $p(y \mid x)$ how surely it shows label $y$, this is $p(x)\,p(y \mid x)^\gamma$, and doubtful
# sevens get rare. But hardly any real seven is doubtful, and where $p(7 \mid x)$ is 1, its power is 1 as well. So nearly
# all sevens should stay as likely as they were: beyond $\gamma = 1$, a knob that sharpens
# would do next to nothing. This one does a lot. You can guess why: the network is asked about noisy pictures too, and
# nobody is sure about *very* noisy ones. There, three times the difference is a real push. So
# doubt the usual answer: where the truth is known it fails, as you will see.
#
# ## One noisy picture, two guesses
#
# A diffusion model is trained on pictures $x_0$ to which noise was added,
#
# $$ x_t = \alpha_t\, x_0 + \sigma_t\, \varepsilon, \qquad \varepsilon \sim \mathcal N(0, I), \qquad
# \alpha_t^2 + \sigma_t^2 = 1. \label{eq-forward-marginal} $$
#
# Time $t$ runs from 0 (the picture) to 1 (noise); a *schedule* says how $\alpha_t$ falls and $\sigma_t$ grows. For the
# third column, as one writes it and as the package has it:

# %%
schedule, t = cosine(), 0.5
x_0 = columns[2]  # the sevens at gamma = 1, (5, 1, 28, 28)
eps = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(4))
x_t = schedule.alpha(t) * x_0 + schedule.sigma(t) * eps
torch.testing.assert_close(schedule.add_noise(x_0, eps, t), x_t)

# %% tags=["hide-input"]
guide, seen = checkpoints.load("guide").network, []  # a classifier of noisy digits
with plotting.style():
    figure, axes = plotting.plt.subplots(1, 6, figsize=(6.4, 1.5))
    for panel, time in zip(axes, (0.2, 0.5, 0.6, 0.7, 0.8, 0.9), strict=True):
        noisy = schedule.add_noise(x_0[2:3], eps[2:3], time)
        p_7 = guide(noisy, torch.full((1,), float(schedule.log_snr(time)))).softmax(1)[0, 7]
        seen.append(p_7)
        plotting.show_digits(panel, noisy, columns=1, title=f"$t = {time:g}$\n$p(7) = {p_7:.2f}$")
    torch.testing.assert_close(torch.stack(seen), torch.tensor([1.00, 1.00, 0.99, 0.71, 0.27, 0.14]), atol=0.006, rtol=0)
    shown = plotting.show(figure, "00_noising", alt="A drawn seven at six times from 0.2 to 0.9: clear at 0.2, still legible at 0.6, lost in noise from 0.8 on. Above each, how surely a classifier sees a seven: 1.00 up to time 0.5, then 0.99, 0.71, 0.27 and 0.14.")
shown

# %% [markdown]
# *One seven and one noise, mixed by $\eqref{eq-forward-marginal}$. A diffusion model walks this row from right to left.
# $p(7)$ is what a classifier trained on noisy digits (the shipped `guide`) says: sure up to 0.6; at 0.9, near
# guessing, one in ten.*
#
# Keep three things apart. $\varepsilon$ is the noise that was drawn; who sees only $x_t$ cannot know it. The network
# *guesses* it, and a guess wears a hat: $\hat\varepsilon_c$ if it knows the label (c for *conditional*),
# $\hat\varepsilon_u$ if it does not (*unconditional*). The guess with the least expected
# squared error is the average of all noises that may be in $x_t$, each weighted by its probability given $x_t$; we call it
# the *best* guess. One network makes both: in training, one label in ten (`card["recipe"]`) was replaced by an eleventh, "not told",
# and so came with digits of all kinds (chapter 11 trains one). The third is the *guided* guess, on the line through the two:
#
# $$ \hat\varepsilon_\gamma = \hat\varepsilon_u + \gamma\,(\hat\varepsilon_c - \hat\varepsilon_u). \label{eq-cfg} $$
#
# This is *classifier-free guidance*.

# %%
pair = network_pair(network, schedule, label=7)
cond, uncond = pair(x_t, t)  # a guess has two parts: .eps, the noise, and .x0, the clean picture left
eps_c, eps_u = cond.eps, uncond.eps
eps_3 = eps_u + 3.0 * (eps_c - eps_u)
guided = guidance.classifier_free(pair, gamma=3.0)
torch.testing.assert_close(guided(x_t, t).eps, eps_3)

# %% [markdown]
# ## The story against the truth
#
# For digits nobody knows the truth. So this course has a second laboratory, mixtures of Gaussians in the plane: there the
# best guesses, the class probabilities and the densities at every noise level have closed forms. Four blobs, two of class
# 0 and two of class 1:

# %%
mixture = GaussianMixture(
    weights=[0.30, 0.30, 0.25, 0.15],
    means=torch.tensor([[-2, -0.5], [-0.2, 1.4], [0.4, -0.6], [2.4, 1]], dtype=torch.float64),
    covs=[
        [[0.5, 0.2], [0.2, 0.4]], [[0.4, -0.2], [-0.2, 0.3]],
        [[0.4, 0.1], [0.1, 0.5]], [[0.3, -0.1], [-0.1, 0.3]],
    ],
    labels=[0, 0, 1, 1],
)  # fmt: skip

# %% [markdown]
# We ask for class 1, with the best guesses (no network, no training error) and 200 small steps. "The story" is the usual
# answer, $p(x)\,p(y \mid x)^\gamma$, normalised; at $\gamma = 1$ it is $p(x \mid y)$, by Bayes' rule.

# %%
plane, times, drawn = vp_linear(), time_grid(200), {}
first = torch.randn(3000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
ideal = mixture.pair(plane, label=1)
for gamma in (-1.0, 0.0, 0.5, 1.0, 3.0, 8.0):
    steered = guidance.classifier_free(ideal, gamma)
    drawn[gamma] = draw(kernels.ddim(steered, plane), first, times)

# %% tags=["hide-input"]
def story(x, gamma):
    """Log of p(x) p(y | x)^gamma, up to a constant, for class 1."""
    return mixture.log_prob(x) + gamma * mixture.class_log_prob(x, label=1)


requests, pictured = torch.full((8,), 7), (0.0, 1.0, 3.0, 8.0)
with plotting.style():
    figure, axes = plotting.plt.subplots(2, 4, figsize=(8.2, 3.1), height_ratios=(1, 1.5))
    colours = ("unconditional", "conditional", "guided", "guided")
    for above, below, gamma, colour in zip(*axes, pictured, colours, strict=True):
        digits = sampling.generate(network, requests, gamma, seed=8, sampler="ddim", steps=16)
        plotting.show_digits(above, digits, columns=4, title=f"$\\gamma = {gamma:g}$")
        below.plot(*drawn[gamma].T, ".", markersize=1.3, alpha=0.4, color=plotting.COLOURS[colour])
        plotting.density(below, mixture.given(0).log_prob, (-4.5, 5, -4, 4), colors=plotting.COLOURS["other"], linestyles="solid")
        plotting.density(below, lambda x, gamma=gamma: story(x, gamma), (-4.5, 5, -4, 4), linewidths=1.5)
        below.text(-4.3, -3.3, "the other class", color=plotting.COLOURS["other"], fontsize=8)
        below.set(xlabel="$x_1$", xlim=(-4.5, 5), ylim=(-3.6, 3.4), xticks=(-4, -2, 0, 2, 4), yticks=(-2, 0, 2), aspect="equal")
    axes[1, 0].set_ylabel("$x_2$")
    shown = plotting.show(figure, "00_story_and_truth", alt="Above: eight requests for a seven at guidance scales 0, 1, 3 and 8; the sevens become cleaner and bolder. Below: guided samples of a mixture in the plane as dots, the distribution that guidance is said to sample as dashed contours, the other class as green contours on the left. Dots and dashed contours agree at scales 0 and 1; at 3 and 8 the dots leave the contours to the right, away from the other class.")
shown

# %% [markdown]
# *Above: eight requests for a 7, the same noises in each panel. Below: 3,000 guided samples (dots); dashed, what the story
# says, $p(x)\,p(y \mid x)^\gamma$; green, the other class. Contours hold 50, 90 and 99 % of the mass.*
#
# (To turn the knob of the lower row yourself: on the web page just above; in a notebook, `from
# difflesson import interactive`, then `interactive.show("turn-the-knob")`.)
#
# At $\gamma = 0$ and 1 the dots fill the dashed contours: the story is true. Beyond, it is false. The contours hardly
# move; the dots run away from the other class and crowd together. In numbers: mean and standard
# deviation of the first coordinate, of the dots and, as "told", of the story (summed over a grid; `story` is its logarithm).

# %%
axis = torch.linspace(-12, 12, 481).double()
grid = torch.cartesian_prod(axis, axis)
for gamma, dots in drawn.items():
    x_1, share = dots[:, 0], story(grid, gamma).softmax(0)
    told = share @ grid[:, 0]
    spread = (share @ (grid[:, 0] - told) ** 2).sqrt()
    print(f"gamma {gamma:4g}: mean {x_1.mean():5.2f} +- {x_1.std() / 3000**0.5:.2f}, "
          f"told {told:5.2f};  deviation {x_1.std():.2f}, told {spread:.2f}")

# %% tags=["hide-input"]
for gamma, dots in drawn.items():  # what the next sentence says, as assertions
    gap = dots[:, 0].mean() - story(grid, gamma).softmax(0) @ grid[:, 0]
    errors = abs(gap) / (dots[:, 0].std() / 3000**0.5)
    assert errors < 3 if gamma in (0, 1) else errors > 10
assert drawn[8.0][:, 0].std() < 0.6 * drawn[1.0][:, 0].std()

# %% [markdown]
# Away from 0 and 1, gaps are more than ten standard errors (+-). At 0.5 guidance falls short of the story, beyond 1 it
# overshoots, and at 8 the dots have half the story's deviation. (At $-1$ the story itself is odd: its mass lies far outside the data.)
#
# ## Why the story fails
#
# People believe the story for a good reason. The best guess of the noise is a slope:
# $\mathbb E[\varepsilon \mid x_t] = -\sigma_t \nabla \log p_t(x_t)$, with $p_t$ the density of noisy pictures. ($p_t$ is
# an average of Gaussians, and each has the log-slope $-\varepsilon / \sigma_t$.) By Bayes' rule the slope of
# $\log p_t(x_t \mid y)$ is that of $\log p_t(x_t)$ plus that of $\log p_t(y \mid x_t)$, so
#
# $$ \begin{aligned} &(1 - \gamma) \nabla \log p_t(x_t) + \gamma \nabla \log p_t(x_t \mid y) \\
# &\qquad = \nabla \log p_t(x_t) + \gamma \nabla \log p_t(y \mid x_t): \end{aligned} $$
#
# the guided guess is $-\sigma_t$ times the log-slope of $p_t(x_t)\, p_t(y \mid x_t)^\gamma$, and at $t = 0$ this is the story.
#
# But to draw the story's pictures, a sampler needs the best guess for *them*: at $t > 0$ the slope of *the story's pictures
# with noise added*. Sharpen first, then add noise. Their density is, up to a constant, the integral of $p(y \mid x_0)^\gamma\, p(x_0)\,
# \mathcal N(x_t; \alpha_t x_0, \sigma_t^2 I)$ over clean pictures $x_0$. Since
# $p(x_0)\, \mathcal N(x_t; \alpha_t x_0, \sigma_t^2 I) = p_t(x_t)\, p(x_0 \mid x_t)$, it is
# $p_t(x_t)\;\mathbb E[\,p(y \mid x_0)^\gamma \mid x_t]$. Guidance adds noise first and sharpens afterwards, and what it sharpens,
# $p_t(y \mid x_t) = \mathbb E[\,p(y \mid x_0) \mid x_t]$, is an average already:
#
# $$ \underbrace{\mathbb E[\,p(y \mid x_0)^\gamma \mid x_t]}_{\text{needed: the average of the powers}} \qquad
# \text{against} \qquad \underbrace{\big(\mathbb E[\,p(y \mid x_0) \mid x_t]\big)^\gamma}_{\text{used: the power of the average}} $$
#
# At $\gamma = 0$ and 1 they are equal. Otherwise they differ, unless all clean pictures behind $x_t$ are equally surely a
# $y$ (Jensen's inequality). But a sampler uses slopes: a factor that is the same at every $x_t$ does no harm. If all data
# were one bell, and the class another of equal width, needed and used would differ by such a factor (exercise 0.2; no class is like that).
# For our blobs it varies. From a point on the left to one on the right, at $t = 0.3$:

# %%
two = torch.tensor([[-1.0, 0.0], [1.0, 0.0]]).double()
behind = mixture.reverse(two, plane, t=0.3, s=0.0)  # p(x_0 | x_t)
chance = behind.log_prob(grid[:, None]).softmax(0)  # on the grid, (N, 2)
sure = mixture.class_log_prob(grid, label=1).exp()  # p(y | x_0), (N,)
for gamma in (1.0, 3.0):
    needed, used = sure**gamma @ chance, (sure @ chance) ** gamma
    rise, steeper = needed[1] / needed[0], used[1] / used[0]
    print(f"gamma {gamma:g}: needed x {rise:.2f}, used x {steeper:.1f}")

# %% [markdown]
# Guidance at 3 pushes to the right as if that point were 65 times better; 4.7 times would be right. (Wrong slopes on
# the way need not mean a wrong end. Here they do, says the figure.)
#
# Do guided pictures sample some *other* distribution? Then every good sampler should find it. `ddim`, used so far, adds
# no noise on its way; `ddpm` adds some at every step. At $\gamma = 1$ both sample $p(x \mid y)$ as steps shrink
# (chapter 05). At 3?

# %%
for gamma, steps in ((1.0, 100), (3.0, 100), (3.0, 300)):
    steered, clouds = guidance.classifier_free(ideal, gamma), {}
    for solver in (kernels.ddim, kernels.ddpm):
        generator = torch.Generator().manual_seed(1)
        clouds[solver.__name__] = draw(solver(steered, plane), first, time_grid(steps), generator)
    means = ", ".join(f"{name} {dots[:, 0].mean():.2f}" for name, dots in clouds.items())
    apart = clouds["ddim"][:, 0] - clouds["ddpm"][:, 0]
    print(f"gamma {gamma:g}, {steps} steps: mean of x1 by {means}; "
          f"apart {apart.mean():.2f} +- {apart.std() / 3000**0.5:.2f}")

# %% tags=["hide-input"]
with plotting.style():
    figure, axes = plotting.plt.subplots(1, 2, figsize=(6.4, 2.6), sharey=True)
    for panel, (name, dots) in zip(axes, clouds.items(), strict=True):
        panel.plot(*dots.T, ".", markersize=1.3, alpha=0.4, color=plotting.COLOURS["guided"])
        plotting.density(panel, mixture.given(0).log_prob, (-4.5, 5, -4, 4), colors=plotting.COLOURS["other"], linestyles="solid")
        plotting.density(panel, lambda x: story(x, 3.0), (-4.5, 5, -4, 4), linewidths=1.5)
        panel.axvline(dots[:, 0].mean(), color=plotting.COLOURS["guided"], linewidth=1)
        panel.text(float(dots[:, 0].mean()) + 0.1, -3.3, f"mean {dots[:, 0].mean():.2f}", color=plotting.COLOURS["guided"], fontsize=9)
        panel.set(title=f"{name}, $\\gamma = 3$", xlabel="$x_1$", xlim=(-4.5, 5), ylim=(-3.6, 3.4), aspect="equal")
    axes[0].set_ylabel("$x_2$")
    assert clouds["ddim"][:, 0].mean() - clouds["ddpm"][:, 0].mean() > 0.2
    shown = plotting.show(figure, "00_two_samplers", alt="Two panels with the same dashed contours. Dots drawn by ddim lie further to the right, mean 2.21, than those drawn by ddpm, mean 1.83, which also spread more widely.")
shown

# %% [markdown]
# *The same ideal guesses at $\gamma = 3$, 300 steps, two samplers; the line is the mean of the dots. Contours as above.*
#
# At 3 their means are 0.38 apart (+- 0.03), and more steps do not bring them together: there is no *single* guided
# distribution. Chapter 17 explains both gaps.
#
# ## The five lines
#
# A step of `ddim` from time $t$ to an earlier time $s$ takes the guessed noise away and puts back as
# much of it as belongs to time $s$:
#
# $$ \hat x_0 = (x_t - \sigma_t\, \hat\varepsilon_\gamma) / \alpha_t, \qquad
# x_s = \alpha_s\, \hat x_0 + \sigma_s\, \hat\varepsilon_\gamma . $$
#
# One guided seven:

# %%
pair = network_pair(network, schedule, label=7)
guided = guidance.classifier_free(pair, gamma=3.0)
kernel = kernels.ddim(guided, schedule)
start = torch.randn(1, 1, 28, 28, generator=torch.Generator().manual_seed(11))
seven = draw(kernel, start, sampling.digit_times(25, schedule))

# %% tags=["hide-input"]
with plotting.style():
    figure, panel = plotting.plt.subplots(figsize=(1, 1))
    plotting.show_digits(panel, seven, columns=1)
    shown = plotting.show(figure, "00_seven", alt="A drawn seven, clean and bold.")
shown

# %% [markdown]
# *What the five lines draw.*
#
# `pair` is the network asked both ways, `guided` is $\eqref{eq-cfg}$, `kernel` is one step, and `draw` repeats it.
#
# ## What the knob costs
#
# A second network, the *judge*, was trained only to name real digits. It looked at 10,000 digits a scale (`ddpm`, 16
# steps, `difflesson evaluate --card`). How many are right, that is, what was asked for? How much *doubt* is in its answers
# (mean entropy)? And the *digit-FID* compares mean and covariance of the judge's features with those of 10,000 real digits: small when
# the crowd is as good *and as varied* as reality.

# %% tags=["hide-input"]
setting, curve = next(iter(card["metrics"].items()))
real = metrics.load_reference()[1]
print(f"{setting}\n gamma    right (+-)       doubt, nats  digit-FID")
for gamma, row in curve.items():
    right = row["accuracy"]
    error = (right * (1 - right) / 10_000) ** 0.5
    print(f"{gamma:>6}  {right:7.4f} {f'({error:.4f})' if error else ' ' * 8}  {row['entropy']:10.4f}  {row['digit_fid']:9.3f}")
print(f"  real  {real['judge_accuracy_on_test']:7.4f}                       {real['digit_fid_floor']:9.3f}")

# %% tags=["hide-input"]
floor = real["digit_fid_floor"]
gammas = [float(gamma) for gamma in curve]
with plotting.style():
    figure, (left, middle) = plotting.plt.subplots(1, 2, figsize=(7, 2.8))
    wrong = [1 - row["accuracy"] for row in curve.values()]
    some = [(gamma, share) for gamma, share in zip(gammas, wrong, strict=True) if share > 0]
    none = [gamma for gamma, share in zip(gammas, wrong, strict=True) if share == 0]  # a logarithm has no place for 0
    left.plot(*zip(*some, strict=True), "o-", color=plotting.COLOURS["guided"])
    left.errorbar(none, [3e-4] * len(none), yerr=[[2.4e-4] * len(none), [0] * len(none)], uplims=True, fmt="_", color=plotting.COLOURS["guided"])
    left.text(gammas[-1], 4e-4, "none of 10,000:\nbelow 0.0003", ha="right", va="bottom")
    left.set(ylim=(2e-5, 2), xlabel="guidance scale $\\gamma$", ylabel="share of wrong digits", yscale="log", title="not what was asked")
    middle.plot(gammas, [row["digit_fid"] for row in curve.values()], "o-", color=plotting.COLOURS["guided"])
    middle.axhline(floor, color=plotting.COLOURS["truth"], linestyle="dashed")
    middle.text(gammas[-1], floor * 1.15, "real against real", ha="right")
    middle.set(xlabel="guidance scale $\\gamma$", ylabel="digit-FID", yscale="log", title="distance from real digits")
    assert min(curve, key=lambda gamma: curve[gamma]["digit_fid"]) == "1" and wrong[4] == 0
    assert abs((1 - (1 - 3e-4) ** 10_000) - 0.95) < 0.001 and round(1 - 0.05 ** (1 / 10_000), 4) == 0.0003
    shown = plotting.show(figure, "00_two_curves", alt="Two curves over the guidance scale. The share of wrong digits falls steeply from 0 to 1.5; from 2 on, arrows point down from 0.0003, since none of 10,000 was wrong. The digit-FID falls to its smallest value at 1 and then rises.")
shown

# %% [markdown]
# *Left: guidance makes wrong digits rare. Arrows: none of 10,000 was wrong, so the share is below 0.0003 with 95 %
# confidence. Right: of the scales measured, 1 gives the crowd most like the real one; where
# between 0.5 and 1.5 the curve turns was not measured.*
#
# From 1.5 on, the judge names guided digits as asked more often than it names real ones right, yet as a crowd they are
# less like real ones than at 1. (For digit-FID the card has no standard error; take differences below the floor, 0.028, as none.)
#
# **Why is $\gamma = 0$ the worst row?** A tenth is right by chance. But drawing a label and then a digit of it, $\sum_y p(y)\,p(x \mid y)$, *is* drawing
# from $p(x)$. So for an ideal network the crowds at 0 and 1 would be alike. Here one has 0.919, the other 0.062: this
# network, not told the label, is poor (and 0.5 suffers with it). It draws shapes that are no digit, see "doubt".
# Perhaps because only one training example in ten asked it this way (chapter 13 varies the share, and [mends that half](13_training.ipynb#deeper-a-better-teacher-for-the-starved-half)).
#
# ## Whose zero?
#
# [Ho & Salimans (2022)](https://arxiv.org/abs/2207.12598) write $\eqref{eq-cfg}$ with a weight that counts from
# $\hat\varepsilon_c$:
#
# $$ (1 + w)\,\hat\varepsilon_c - w\,\hat\varepsilon_u = \hat\varepsilon_\gamma, \qquad w = \gamma - 1.
# \label{eq-cfg-weight} $$

# %%
w = conventions.guidance_scale(3.0, "gamma", "ho-salimans")
torch.testing.assert_close((1 + w) * eps_c - w * eps_u, eps_3)

# %% tags=["hide-input"]
from IPython.display import Markdown


def table(names=(), questions=()):
    """Rows of the convention card, by their names or by the questions they answer."""
    rows = []
    for row in conventions.card():
        question = row.pop("question")
        if row["convention"] in names or question in questions:
            rows.append(row)
    return Markdown(conventions.markdown(rows))


often_met = ("ho-salimans", "imagen", "stable-diffusion", "diffusers", "dit", "smalldiffusion", "guided-diffusion-conditional")
table(names=often_met)

# %% [markdown]
# These rows are the line $\eqref{eq-cfg}$; their zeros differ. Two reservations: most pipelines of `diffusers` stay at $\gamma = 1$ for every smaller value (exercise
# 0.1; a few count from the guess with the label, see the card), and `guided-diffusion` adds a classifier's gradient, which is on the line if the classifier is exact.
# `difflesson.conventions` converts them. (The whole card is under Deeper.)
#
# ### Pitfall: one letter, one unit
#
# A paper reports its best result at $w = 1$. You type `gamma=1`. The pictures look fine, and you are sampling without
# guidance. The mistake is one unit of $\hat\varepsilon_c - \hat\varepsilon_u$, always:

# %%
intended = conventions.guidance_scale(1.0, "ho-salimans")
meant = guidance.classifier_free(pair, gamma=intended)
late, x_late = 0.8, schedule.add_noise(x_0, eps, 0.8)
late_c, late_u = pair(x_late, late)
missing = meant(x_late, late).eps - late_c.eps  # late_c: what gamma=1 gives
torch.testing.assert_close(missing, late_c.eps - late_u.eps)
print(f"gamma should be {intended:g}; off by {missing.norm() / late_c.eps.norm():.1%}")

# %% tags=["remove-cell"]
missed = [round(10_000 * (1 - curve[gamma]["accuracy"])) for gamma in ("1", "2")]
assert missed == [86, 0] and [round(curve[gamma]["digit_fid"], 3) for gamma in ("1", "2")] == [0.062, 0.204]

# %% [markdown]
# Small in one guess, but compare the rows 2 and 1 of the table: 86 wrong digits in 10,000, not 0; a digit-FID of 0.062,
# not 0.204.
#
# ## In practice
#
# | if you | do | because |
# |---|---|---|
# | read a `guidance_scale`, `w`, `cfg_scale` | find the largest value that gives plain conditional sampling: $\gamma = 1$ | names differ by one unit (and some pipelines switch off at 1 and below: [chapter 20](20_from_here_to_a_real_pipeline.ipynb) tests yours) |
# | need samples of what the model learned | $\gamma = 1$ | there the story holds; and one question to the network a step, not two |
# | need pictures that show what was asked | raise $\gamma$ from 1 until errors stop, no further | here, from 2 to 5, no more digits became right, and digit-FID rose from 0.204 to 0.336 |
# | want to keep something out | a *negative prompt* and $\gamma > 1$ | it takes the place of "not told" in $\hat\varepsilon_u$ ([chapter 19](19_guidance_as_practised.ipynb#another-pair)); a negative $\gamma$ walks the same two guesses the other way, away from the request, and asks for nothing else |
# | report a result | give sampler, steps, the scale and its convention, network, number of pictures, standard errors | at $\gamma = 3$ two samplers, one with noise and one without, sampled different things |
#
# ## Exercises
#
# Write your answer where the function says `raise NotImplementedError("your turn")`, and run both cells.

# %% [markdown]
# ### Exercise 0.1 (easy): what does the pipeline do?
#
# The Stable Diffusion pipelines of the `diffusers` library take a `guidance_scale` which is our $\gamma$ (unless the network has it as an input, as distilled ones do). At 1 and below they switch
# guidance off and use the guess with the label alone. Write the function that gives the $w$ of $\eqref{eq-cfg-weight}$
# with which such a pipeline really runs. What is it at 7.5? At 0.5?
#
# <details><summary>Hint</summary>
#
# Which $\gamma$ is "the guess with the label alone" in $\eqref{eq-cfg}$? Find the $\gamma$ that acts first, then go
# from $\gamma$ to $w$.
#
# </details>

# %% tags=["exercise"]
def pipeline_weight(guidance_scale):
    """The w with which a pipeline runs, for any guidance_scale."""
    ### BEGIN SOLUTION
    gamma = max(guidance_scale, 1.0)  # the guess with the label alone is gamma = 1
    return gamma - 1  # 6.5 at 7.5; 0 at 0.5, where the pipeline is plain conditional sampling
    ### END SOLUTION


# %%
exercises.check("0.1", pipeline_weight)

# %% [markdown]
# ### Exercise 0.2 (medium): where does a negative scale lead?
#
# Suppose the two guesses are those of two bells of width one on a line: $\hat\varepsilon_u$ is the best guess for data
# $\mathcal N(m_u, 1)$, $\hat\varepsilon_c$ that for $\mathcal N(m_c, 1)$. Guide with any $\gamma$, also a negative
# one. The samples are again a bell of width one. Around which point? Predict it, and write it as a function. (Only
# suppose: no classes of one data set have these two bells, since $p(y \mid x)$ would exceed 1 somewhere.) Then look at digits:
# `sampling.generate(network, sevens, -1.0, **still)` asks for *less* seven than no request at all.
#
# <details><summary>Hint</summary>
#
# Noise leaves the width at one and moves the middle to $\alpha_t m$. Take the slope of the log-density of that bell;
# times $-\sigma_t$ it is the best guess of the noise, a straight line in $x_t$. Put two such lines into
# $\eqref{eq-cfg}$. Of which bell is the result the best guess?
#
# </details>
#
# <details><summary>When you have solved it: why nothing goes wrong here</summary>
#
# Let $p_u$ and $p_c$ be the two bells, $a = m_c - m_u$, and read $p_c / p_u$ for $p(y \mid x)$: a constant times $e^{a x}$.
# Behind $x_t$ stands a bell whose variance, $\sigma_t^2$, is the same for all $x_t$. So "needed" is "used" times
# $e^{\gamma (\gamma - 1) a^2 \sigma_t^2 / 2}$: a factor, but one without $x_t$, and the slopes agree. Guided samples *are* the story,
# $p_u\, (p_c / p_u)^\gamma$, at every $\gamma$. Two *classes* that are
# such bells are another case: all data are then no bell, and the story fails (in the tests).
#
# </details>

# %% tags=["exercise"]
def guided_centre(uncond_mean, cond_mean, gamma):
    """The middle of the guided samples, a number."""
    ### BEGIN SOLUTION
    # The guess is sigma (x - alpha m) for a bell around m, so guidance replaces m by the point below.
    return uncond_mean + gamma * (cond_mean - uncond_mean)
    ### END SOLUTION


# %%
exercises.check("0.2", guided_centre)

# %% tags=["hide-input"]
judge = checkpoints.load("judge").network  # trained to name real digits
less = sampling.generate(network, sevens, -1.0, **still)
for gamma, digits in ((0, columns[0]), (-1, less)):
    print(f"gamma {gamma:2d}: the judge sees {metrics.judged(judge, digits)[1].argmax(dim=1).tolist()}")

# %% [markdown]
# ### Exercise 0.3 (hard): the story from samples of the class
#
# Above, the story's mean was a sum over a grid. Pictures allow no grid; what you often have is a handful of samples of the class, of
# $p(x \mid y)$. Estimate the mean of $p(x)\,p(y \mid x)^\gamma$, all coordinates, from those alone: give each sample a
# weight, and let the weights sum to one. (`mixture.class_log_prob(points, label)` is $\log p(y \mid x)$ at each point.) One warning: for
# $\gamma < 0$ a few points, those least surely of the class, carry nearly all the weight. The formula stays right, the
# estimate is poor.
#
# <details><summary>Hint</summary>
#
# A weight is the density you want divided by the density you have. Write $p(x \mid y)$ by Bayes' rule, divide, and
# drop what does not depend on $x$. Check yourself at $\gamma = 1$.
#
# </details>

# %% tags=["exercise"]
def story_mean(mixture, points, label, gamma):
    """The mean of p(x) p(y | x)^gamma, (d,), estimated from points (N, d) drawn from p(x | label)."""
    ### BEGIN SOLUTION
    # wanted / had = p(x) p(y | x)^gamma / (p(x) p(y | x) / p(y)), so gamma - 1 is what is left of gamma.
    log_weights = (gamma - 1) * mixture.class_log_prob(points, label)
    return log_weights.softmax(0) @ points
    ### END SOLUTION


# %%
exercises.check("0.3", story_mean)

# %% [markdown]
# ## Remember
#
# 1. Guidance moves the noise guess along the line from "not told" to "told": $\eqref{eq-cfg}$. $\gamma = 0$ ignores the
#    label, $\gamma = 1$ is plain conditional sampling, $w = \gamma - 1$.
# 2. From $\gamma = 1$ to 5 this network (DDPM, 16 steps) draws fewer wrong digits, in a crowd less like the real one.
# 3. With best guesses and small steps you sample $p(x)\,p(y \mid x)^\gamma$ at $\gamma = 0$ and 1. On our mixture you do
#    not at $-1$, 0.5, 3 and 8.
# 4. Guidance uses the slope of a power of an average where the story needs that of the average of powers. On our mixture at
#    $\gamma = 3$, DDIM and DDPM even sample different things, and 300 steps instead of 100 do not mend it.
# 5. Before you compare scales, find where each is plain conditional sampling.
#
# **Where it comes from.** The story: [Dhariwal & Nichol (2021)](https://arxiv.org/abs/2105.05233). $\eqref{eq-cfg-weight}$: [Ho & Salimans (2022)](https://arxiv.org/abs/2207.12598), eq. 6. That
# neither DDIM nor DDPM samples the story: [Bradley & Nakkiran (2024)](https://arxiv.org/abs/2408.09000). MNIST: LeCun,
# Cortes, Burges.

# %% [markdown]
# ## Deeper: why a guess of the noise is a slope
#
# *For those who want the one fact on which everything rests, and what else a network may be trained to guess.*
#
# The density of noisy pictures is an average over clean ones, $p_t(x) = \mathbb E_{x_0}\big[\,\mathcal N(x;\, \alpha_t x_0,\,
# \sigma_t^2 I)\,\big]$. The gradient of one Gaussian is itself times $-(x - \alpha_t x_0) / \sigma_t^2$, and
# $x - \alpha_t x_0 = \sigma_t \varepsilon$ by $\eqref{eq-forward-marginal}$. So $\nabla p_t(x)$ is the same average with
# $-\varepsilon / \sigma_t$ in it. Divide by $p_t(x)$ and it is an average over what may be behind $x$:
# $\nabla \log p_t(x) = -\mathbb E[\varepsilon \mid x_t = x] / \sigma_t$. This gradient is called the *score*. It is the
# average noise that appears, not the noise that was drawn.
#
# A network may guess the noise, the clean picture, their combination $v$ (as ours does), or the score. The best
# guesses $\hat\varepsilon$, $\hat x_0$, $\hat v$ satisfy
#
# $$ x_t = \alpha_t \hat x_0 + \sigma_t \hat\varepsilon, \qquad \hat v = \alpha_t \hat\varepsilon - \sigma_t \hat x_0, \qquad
# \nabla \log p_t(x_t) = -\hat\varepsilon / \sigma_t, \label{eq-parameterisations} $$
#
# and what a network guesses is converted so that the first two hold for it as well. So one guess gives all the others, as long as nothing is divided by zero: at
# $\sigma_t = 0$ a clean picture says nothing about the noise, at $\alpha_t = 0$ the noise says nothing about the picture. Only
# $\hat v$, of these four, gives both everywhere. The first two we compute with the network's guess; the third needs a density, so we ask
# the mixture.

# %%
alpha, sigma = schedule.alpha(t), schedule.sigma(t)
torch.testing.assert_close(x_t, alpha * cond.x0 + sigma * cond.eps)
v = alpha * cond.eps - sigma * cond.x0
converted = conventions.convert(cond.eps, "eps", "v", x_t, alpha, sigma)
torch.testing.assert_close(converted, v, atol=1e-5, rtol=1e-5)

# %%
best_eps = mixture.denoiser(schedule)(first, t).eps  # at the 3,000 points in the plane
score = conventions.convert(best_eps, "eps", "score", first, alpha, sigma)
torch.testing.assert_close(score, mixture.noised(alpha, sigma).score(first))

# %% [markdown]
# ## Deeper: count for yourself, and how much less varied are guided digits?
#
# *For those who want counts of their own, and variety measured, not looked at.* Twenty digits, two of each, at two scales. How
# many are right, and how many leave the judge in doubt, below 90 %?

# %%
wanted, counted = torch.arange(20) % 10, {}
for gamma in (1.0, 3.0):
    counted[gamma] = sampling.generate(network, wanted, gamma, seed=5)
    log_prob, seen = metrics.judged(judge, counted[gamma])[1].max(dim=1)
    right, doubt = int((seen == wanted).sum()), int((log_prob.exp() < 0.9).sum())
    print(f"gamma {gamma:g}: {right} of 20 are right, {doubt} in doubt")

# %% [markdown]
# Twenty digits cannot tell $\gamma = 1$ from 3: at 1 the table has one wrong digit in a hundred.
#
# How far apart are digits of one class? Take the variance within a class, summed over pixels, or over the features by
# which the judge decides. Classes differ a lot, but both scales draw the same ten from the same noises: so compare class by
# class, and take the standard error of the ten differences.

# %%
for name in ("pixels", "features"):
    within = {}
    for gamma, digits in counted.items():
        values = digits.clamp(-1, 1).flatten(1) if name == "pixels" else metrics.judged(judge, digits)[0]
        within[gamma] = values.view(2, 10, -1).double().var(dim=0).sum(1)  # (10,), digit k is of class k % 10
    less_spread = within[1.0] - within[3.0]
    print(f"{name}: {within[1.0].mean():.2f} at 1, {within[3.0].mean():.2f} at 3, "
          f"difference {less_spread.mean():.2f} +- {less_spread.std() / 10**0.5:.2f}")

# %% [markdown]
# Do not trust these: a variance of two digits is hardly one, and standard errors from ten such differences are rough. With
# `torch.arange(300) % 10`, thirty of each (a minute, not run here, but in the tests), the features give 2.28 at 1 and 0.69 at
# 3, difference 1.59 +- 0.33; the pixels 137.2 and 127.5, difference 9.7 +- 3.4. So digits of one class are less spread in
# both, by a factor of 3.3 and of 1.08: guidance levels what the judge decides by more than it levels pixels. (One seed.)
#
# ## Deeper: is it the steps, or the network?
#
# *For those who doubt the explanations of the row $\gamma = 0$, and of the push.* Are 16 steps too few without the label?
# `sampling.generate(network, torch.arange(200) % 10, 0.0, seed=5, steps=64)` (a minute, not run here, but in the tests) gives
# digits of which 20.5 % leave the judge in doubt; with `steps=16` it is 17.0 %; each has a standard error of 3 %. More steps do not make them less doubtful.
#
# There is another way to a guess without the label, exact for best guesses: $\hat\varepsilon_u = \sum_y p_t(y \mid x_t)\,
# \hat\varepsilon_c^{(y)}$, the average of the ten conditional guesses, weighted by a classifier of noisy digits. Take `guide`:

# %%
def by_bayes(x, t):
    """The guess without a label, from the ten with one and the guide's probabilities."""
    log_snr = torch.full((len(x),), float(schedule.log_snr(t)))
    share = guide(x, log_snr).softmax(1).view(-1, 10, 1, 1, 1)
    guesses = [network_denoiser(network, schedule, y)(x, t) for y in range(10)]
    return Prediction(*((share * torch.stack(part, 1)).sum(1) for part in zip(*guesses, strict=True)))

for time in (0.5, 0.8, 0.9):
    noisy = schedule.add_noise(x_0, eps, time)
    p_7 = guide(noisy, torch.full((5,), float(schedule.log_snr(time)))).softmax(1)[:, 7]
    with_label, without = pair(noisy, time)
    average, unit = by_bayes(noisy, time).eps, without.eps.norm()
    print(f"t {time:g}: p(7) {p_7.min():.3f} to {p_7.max():.3f};  c - u {(with_label.eps - without.eps).norm() / unit:.1%},"
          f"  c - average {(with_label.eps - average).norm() / unit:.1%},  average - u {(average - without.eps).norm() / unit:.1%}")

# %% [markdown]
# At 0.5 the guide is sure of the 7, so the average is the guess with the label: by the exact relation, being told should
# change nothing. To the network it changes 2.7 % of its guess at 0.5, which is error, of one of its halves or of the guide,
# a network too. At 0.8 it is sure of some and not of others, at 0.9 of none, and the label moves the guess by 3.9 and
# 4.5 % (the middle number): there is the push.
#
# Does the ink of bold sevens come from that error? Put `by_bayes` in the place of $\hat\varepsilon_u$ (ten sevens, `ddim`, 16
# steps, noise of seed 3; a minute, not run here, but in the tests). Mean ink, in pixels, is 95.7 at $\gamma = 1$; at $\gamma = 3$ and 8 it is 108.0 and
# 119.3, paired rises of 12.3 +- 4.0 and 23.6 +- 4.3; with the network's own half, 105.9 and 121.2. So the sevens thicken all the same.

# %% [markdown]
# ## Deeper: how to read the course, and why to believe it
#
# *For those who read on.* Part I (chapters 01 to 05): the process nobody steers. II (06 to 12): how you steer it. III (13
# to 16): pictures. IV (17 to 20): what $\gamma$ really samples, and remedies. Every numbered
# equation is computed in the next cell, and a test compares it with an independent computation; wrong formulas are
# planted to see that the tests notice. A number in the text is printed or checked by a cell, or the text says where it comes from.
#
# ## Deeper: every convention on one card
#
# *For those who read other people's code.* The column "checked in" says whether a row was read in the code, in a copy of
# it, in the author's blog, or in the paper. First all guidance scales, and what has no single $\gamma$:

# %% tags=["hide-input"]
table(questions=("guidance", "no single gamma"))

# %% [markdown]
# Then noise levels, single steps, and network outputs. In this course `alpha` and `sigma` are always those of
# $\eqref{eq-forward-marginal}$, and $\gamma$ is always that of $\eqref{eq-cfg}$.

# %% tags=["hide-input"]
table(questions=("noise", "one step", "output"))
