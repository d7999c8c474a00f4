# %% [markdown]
# # 00 · Start here: how do you tell a diffusion model what to draw?
#
# A diffusion model turns noise into pictures. Left alone, it draws whatever it likes. *Guidance* is how you tell it what
# you want: a class, a caption, a style. Many image generators expose it as one number, `guidance_scale`. This course is
# about that number: what it does, and what its pictures are samples of.
#
# **After this chapter you can**
# * draw a digit of your choice with a trained network, in five lines;
# * say what the guidance scale $\gamma$ does, and why guided pictures are not what they are said to be;
# * translate anybody's guidance scale into ours.
#
# **You need** PyTorch and Bayes' rule; nothing about diffusion models.
#
# *22 minutes to read, 9 more for Deeper, 25 seconds to run, on a laptop, without a GPU or a network connection.*

# %%
import torch

from difflesson import conventions, exercises, guidance, kernels, plotting
from difflesson.denoiser import Prediction, network_denoiser, network_pair
from difflesson.digits import checkpoints, metrics, sampling
from difflesson.mixture import GaussianMixture
from difflesson.samplers import draw, sample, time_grid
from difflesson.schedule import cosine, vp_linear

torch.set_num_threads(1)  # small arrays: a second thread gains nothing

# %% [markdown]
# ## Turn the knob and watch
#
# The course ships a small network, trained on the handwritten digits of MNIST. Ask it for sevens. Each row starts
# from *one* noise; from left to right, only $\gamma$ grows.

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
    shown = plotting.show(figure, "00_turn_the_knob", alt="A grid of digits, five rows by six columns for guidance scales 0 to 8. The first column shows various digits and shapes, the third five different sevens, the last five clean and bold sevens.")
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
# two answers differ by what the label changes: told "seven", the network calls noise what does not belong to one, a loop,
# say. $\gamma$ is how much of this difference you apply: 0 none, 1 what the network means, 3 three times that, at every
# step.
#
# **And what are the pictures on the right samples of?** The usual answer: of *sharpened* sevens. If $p(x)$ says how
# likely a picture is and $p(y \mid x)$ how surely it shows label $y$, this is $p(x)\,p(y \mid x)^\gamma$, and doubtful
# sevens get rare. But hardly any real seven is doubtful, and where $p(7 \mid x)$ is 1, its power is 1 as well. So nearly
# all sevens should stay as likely as they were: beyond $\gamma = 1$, a knob that sharpens
# would do next to nothing. This one does a lot. You can guess why: the network is asked about *noisy* pictures, and nobody
# is sure about those. There, three times the difference is a real push.
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
with plotting.style():
    figure, axes = plotting.plt.subplots(1, 6, figsize=(6.4, 1.3))
    for panel, time in zip(axes, (0, 0.2, 0.4, 0.6, 0.8, 1), strict=True):
        noisy = schedule.add_noise(x_0[2:3], eps[2:3], time)
        plotting.show_digits(panel, noisy, columns=1, title=f"$t = {time:g}$")
    shown = plotting.show(figure, "00_noising", alt="A drawn seven at six times from 0 to 1: clear at time 0, still recognisable at 0.4, lost in noise from 0.8 on.")
shown

# %% [markdown]
# *One seven and one noise, mixed by $\eqref{eq-forward-marginal}$. A diffusion model walks this row from right to left.*
#
# Keep three things apart. $\varepsilon$ is the noise that was drawn; who sees only $x_t$ cannot know it. The network
# *guesses* it, and a guess wears a hat: $\hat\varepsilon_c$ if it knows the label (c for *conditional*),
# $\hat\varepsilon_u$ if it does not (*unconditional*). The best guess is the average of all noises that may be in $x_t$.
# One network makes both: in training, one label in ten was replaced by an eleventh, "not told", and so came with digits of
# all kinds (chapter 11 trains one). The third is the *guided* guess, on the line through the two:
#
# $$ \hat\varepsilon_\gamma = \hat\varepsilon_u + \gamma\,(\hat\varepsilon_c - \hat\varepsilon_u). \label{eq-cfg} $$
#
# Start at the guess without the label, walk to the guess with it, and go on: *classifier-free guidance*.

# %%
pair = network_pair(network, schedule, label=7)
cond, uncond = pair(x_t, t)  # a guess has two parts: the noise, .eps, and the clean picture it leaves, .x0
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
    figure, axes = plotting.plt.subplots(2, 4, figsize=(8.6, 3.2), height_ratios=(1, 1.5))
    colours = ("unconditional", "conditional", "guided", "guided")
    for above, below, gamma, colour in zip(*axes, pictured, colours, strict=True):
        digits = sampling.generate(network, requests, gamma, seed=8, sampler="ddim", steps=16)
        plotting.show_digits(above, digits, columns=4, title=f"$\\gamma = {gamma:g}$")
        below.plot(*drawn[gamma].T, ".", markersize=1.3, alpha=0.4, color=plotting.COLOURS[colour])
        plotting.density(below, mixture.given(0).log_prob, (-4.5, 5, -4, 4), colors="#b0b0b0", linestyles="solid")
        plotting.density(below, lambda x, gamma=gamma: story(x, gamma), (-4.5, 5, -4, 4))
        below.set(xlabel="$x_1$", xlim=(-4.5, 5), ylim=(-3.6, 3.4), xticks=(-4, -2, 0, 2, 4), aspect="equal")
    axes[1, 0].set_ylabel("$x_2$")
    axes[1, 2].text(-4.3, -3.2, "the other class", color="#707070", fontsize=8)
    shown = plotting.show(figure, "00_story_and_truth", alt="Above: eight requests for a seven at guidance scales 0, 1, 3 and 8; the sevens become cleaner and bolder. Below: guided samples of a mixture in the plane as dots, the distribution that guidance is said to sample as dashed contours, the other class as grey contours on the left. Dots and dashed contours agree at scales 0 and 1; at 3 and 8 the dots leave the contours to the right, away from the other class.")
shown

# %% [markdown]
# *Above: eight requests for a 7, the same noises in each panel. Below: 3,000 guided samples (dots); dashed, what the story
# says, $p(x)\,p(y \mid x)^\gamma$; grey, the other class. Contours hold 50, 90 and 99 % of the mass.*
#
# At $\gamma = 0$ and 1 the dots fill the dashed contours: the story is true. Beyond, it is false. The contours hardly
# move, as you saw coming; the dots run away from the other class and crowd together. In numbers: mean and standard
# deviation of the first coordinate, of the dots and of the story (summed over a grid; `story` is its logarithm).

# %%
axis = torch.linspace(-12, 12, 481).double()
grid = torch.cartesian_prod(axis, axis)
for gamma, dots in drawn.items():
    x_1, share = dots[:, 0], story(grid, gamma).softmax(0)
    told = share @ grid[:, 0]
    spread = (share @ (grid[:, 0] - told) ** 2).sqrt()
    print(f"gamma {gamma:4g}: mean {x_1.mean():5.2f} +- {x_1.std() / 3000**0.5:.2f}, "
          f"told {told:5.2f};  spread {x_1.std():.2f}, told {spread:.2f}")

# %% tags=["hide-input"]
for gamma, dots in drawn.items():  # what the next sentence says, as assertions
    gap = dots[:, 0].mean() - story(grid, gamma).softmax(0) @ grid[:, 0]
    errors = abs(gap) / (dots[:, 0].std() / 3000**0.5)
    assert errors < 3 if gamma in (0, 1) else errors > 10
assert drawn[8.0][:, 0].std() < 0.6 * drawn[1.0][:, 0].std()

# %% [markdown]
# Away from 0 and 1, gaps are more than ten standard errors (+-). At 0.5 guidance falls short of the story, beyond 1 it
# overshoots, and at 8 the dots have half the spread. (At $-1$ the story itself is odd: its mass lies far outside the data.)
#
# ## Why the story fails
#
# It has a good reason. The best guess of the noise is a slope:
# $\mathbb E[\varepsilon \mid x_t] = -\sigma_t \nabla \log p_t(x_t)$, with $p_t$ the density of noisy pictures. ($p_t$ is
# an average of Gaussians, and each has the log-slope $-\varepsilon / \sigma_t$.) By Bayes' rule the
# slope of $\log p_t(x_t \mid y)$ is that of $\log p_t(x_t)$ plus that of $\log p_t(y \mid x_t)$. So at every noise level
# the guided guess fits the density $p_t(x_t)\, p_t(y \mid x_t)^\gamma$, and at $t = 0$ this is the story.
#
# But at $t > 0$ a sampler needs the slope of *the story's pictures with noise added*: sharpen first, then add
# noise. Their density is $p_t(x_t)\;\mathbb E[\,p(y \mid x_0)^\gamma \mid x_t]$, with an average over the clean
# pictures that may be behind $x_t$. Guidance adds noise first and sharpens afterwards, and what it sharpens,
# $p_t(y \mid x_t) = \mathbb E[\,p(y \mid x_0) \mid x_t]$, is an average already:
#
# $$ \underbrace{\mathbb E[\,p(y \mid x_0)^\gamma \mid x_t]}_{\text{needed: the average of the powers}} \qquad
# \text{against} \qquad \underbrace{\big(\mathbb E[\,p(y \mid x_0) \mid x_t]\big)^\gamma}_{\text{used: the power of the average}} $$
#
# At $\gamma = 0$ and 1 they are equal. Otherwise they differ, unless all clean pictures behind $x_t$ are equally surely a
# $y$ (Jensen's inequality). How much? From a point on the left to one on the right:

# %%
two = torch.tensor([[-1.0, 0.0], [1.0, 0.0]]).double().repeat_interleave(20_000, 0)
behind = mixture.reverse(two, plane, t=0.3, s=0.0)  # p(x_0 | x_t)
clean = behind.sample(torch.Generator().manual_seed(0))
sure = mixture.class_log_prob(clean, label=1).exp().view(2, -1)  # p(y | x_0)
for gamma in (1.0, 3.0):
    needed, used = (sure**gamma).mean(1), sure.mean(1) ** gamma
    rise, steeper = needed[1] / needed[0], used[1] / used[0]
    print(f"gamma {gamma:g}: needed x {rise:.1f}, used x {steeper:.1f}")

# %% [markdown]
# Guidance at 3 pushes to the right as if that point were 60 times better; 5 times would be right. (Wrong slopes on
# the way need not mean a wrong end. Here they do, says the figure.)
#
# Do guided pictures sample some *other* distribution? Then every good sampler should find it. `ddim`, used so far, adds
# no noise on its way; `ddpm` adds some at every step. At $\gamma = 1$ both sample $p(x \mid y)$ as steps shrink. At 3?

# %%
for gamma, steps in ((1.0, 400), (3.0, 100), (3.0, 400)):
    steered, clouds = guidance.classifier_free(ideal, gamma), {}
    for solver in (kernels.ddim, kernels.ddpm):
        generator = torch.Generator().manual_seed(1)
        clouds[solver.__name__] = draw(solver(steered, plane), first, time_grid(steps), generator)
    means = ", ".join(f"{name} {dots[:, 0].mean():.2f}" for name, dots in clouds.items())
    print(f"gamma {gamma:g}, {steps} steps: mean of x1 by {means}")

# %% tags=["hide-input"]
with plotting.style():
    figure, axes = plotting.plt.subplots(1, 2, figsize=(6.4, 2.6), sharey=True)
    for panel, (name, dots) in zip(axes, clouds.items(), strict=True):
        panel.plot(*dots.T, ".", markersize=1.3, alpha=0.4, color=plotting.COLOURS["guided"])
        plotting.density(panel, mixture.given(0).log_prob, (-4.5, 5, -4, 4), colors="#b0b0b0", linestyles="solid")
        plotting.density(panel, lambda x: story(x, 3.0), (-4.5, 5, -4, 4))
        panel.axvline(dots[:, 0].mean(), color=plotting.COLOURS["guided"], linewidth=1)
        panel.set(title=f"{name}, $\\gamma = 3$", xlabel="$x_1$", xlim=(-4.5, 5), ylim=(-3.6, 3.4), aspect="equal")
    axes[0].set_ylabel("$x_2$")
    assert clouds["ddim"][:, 0].mean() - clouds["ddpm"][:, 0].mean() > 0.2
    shown = plotting.show(figure, "00_two_samplers", alt="Two panels with the same dashed contours. Dots drawn by ddim lie further to the right than those drawn by ddpm, which also spread more widely.")
shown

# %% [markdown]
# *The same ideal guesses at $\gamma = 3$, 400 steps, two samplers; the line is the mean of the dots. Contours as above.*
#
# They part by a third (standard error 0.03), and more steps do not bring them together: there is no *single* guided
# distribution. Chapter 17 derives both gaps.
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
walk = list(sample(kernel, start, sampling.digit_times(25, schedule)))  # what draw goes through, 26 states
torch.testing.assert_close(walk[-1], seven)
with plotting.style():
    figure, axes = plotting.plt.subplots(1, 6, figsize=(6.4, 1.3))
    for panel, done in zip(axes, (0, 10, 13, 16, 19, 25), strict=True):
        plotting.show_digits(panel, walk[done], columns=1, title=f"{done} steps")
    shown = plotting.show(figure, "00_walk", alt="Six stages of one walk: noise after 0 steps, a shape in noise after 10 to 16 steps, a clean seven after 25.")
shown

# %% [markdown]
# *A walk from noise to a seven.*
#
# `pair` is the network asked both ways, `guided` is $\eqref{eq-cfg}$, `kernel` is one step, and `draw` repeats it at times
# that are even in $\log(\alpha_t^2 / \sigma_t^2)$.
#
# ## What the knob costs
#
# A second network, the *judge*, was trained only to name real digits. It looked at 10,000 digits a scale (`ddpm`, 16
# steps, `difflesson evaluate --card`). How many are right, that is, what was asked for? How much *doubt* is in its answers
# (mean entropy)? And the *digit-FID* compares the crowd with 10,000 real digits, in the judge's features: small when the
# crowd is as good *and as varied* as reality.

# %% tags=["hide-input"]
setting, curve = next(iter(card["metrics"].items()))
real = metrics.load_reference()[1]
print(f"{setting}\n gamma   right   doubt, nats  digit-FID")
for gamma, row in curve.items():
    print(f"{gamma:>6}  {row['accuracy']:7.4f}  {row['entropy']:10.4f}  {row['digit_fid']:9.3f}")
print(f"  real  {real['judge_accuracy_on_test']:7.4f}              {real['digit_fid_floor']:9.3f}")

# %% tags=["hide-input"]
floor = real["digit_fid_floor"]
gammas = [float(gamma) for gamma in curve]
with plotting.style():
    figure, (left, middle) = plotting.plt.subplots(1, 2, figsize=(7, 2.8))
    wrong = [1 - row["accuracy"] for row in curve.values()]
    some = [(gamma, share) for gamma, share in zip(gammas, wrong, strict=True) if share > 0]
    none = [gamma for gamma, share in zip(gammas, wrong, strict=True) if share == 0]  # a logarithm has no place for 0
    left.plot(*zip(*some, strict=True), "o-", color=plotting.COLOURS["guided"])
    left.plot(none, [3e-5] * len(none), "v", markerfacecolor="white", color=plotting.COLOURS["guided"])
    left.text(gammas[-1], 5e-5, "none of 10,000", ha="right", va="bottom")
    left.set(ylim=(5e-6, 2), xlabel="guidance scale $\\gamma$", ylabel="share of wrong digits", yscale="log", title="not what was asked")
    middle.plot(gammas, [row["digit_fid"] for row in curve.values()], "o-", color=plotting.COLOURS["guided"])
    middle.axhline(floor, color=plotting.COLOURS["truth"], linestyle="dashed")
    middle.text(gammas[-1], floor * 1.15, "real against real", ha="right")
    middle.set(xlabel="guidance scale $\\gamma$", ylabel="digit-FID", yscale="log", title="distance from real digits")
    assert min(curve, key=lambda gamma: curve[gamma]["digit_fid"]) == "1" and wrong[4] == 0
    shown = plotting.show(figure, "00_two_curves", alt="Two curves over the guidance scale. The share of wrong digits falls steeply from 0 to 2. The digit-FID falls to its smallest value at 1 and then rises.")
shown

# %% [markdown]
# *Left: guidance makes wrong digits rare. Right: of the scales measured, 1 gives the crowd most like the real one; where
# between 0.5 and 1.5 the curve turns was not measured.*
#
# From 1.5 on, the judge names guided digits more surely than real ones, yet as a crowd they are less like them.
# (Standard error of 0.9914: 0.0009. For digit-FID the card has none; take differences below the floor, 0.03, as none.)
#
# **Why is $\gamma = 0$ the worst row?** Drawing a label and then a digit of it, $\sum_y p(y)\,p(x \mid y)$, *is* drawing
# from $p(x)$. So for an ideal network the crowds at 0 and 1 would be alike. Here one has 0.919, the other 0.062: this
# network, not told the label, is poor (and 0.5 suffers with it). It draws shapes that are no digit, see "doubt". One
# training example in ten asked it this way; part III trains better ones.
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
# All these rows are the line $\eqref{eq-cfg}$; only their zeros differ. `difflesson.conventions` converts them. (CFG++ and
# CLIP guidance are not on this line and have no single $\gamma$; the whole card is under Deeper.)
#
# ### Pitfall: one letter, one unit
#
# A paper reports its best result at $w = 1$. You type `gamma=1`. The pictures look fine, and you are sampling without
# guidance. The mistake is one unit of $\hat\varepsilon_c - \hat\varepsilon_u$, always:

# %%
intended = conventions.guidance_scale(1.0, "ho-salimans")
meant = guidance.classifier_free(pair, gamma=intended)
typed = guidance.classifier_free(pair, gamma=1.0)
missing = meant(x_t, t).eps - typed(x_t, t).eps
torch.testing.assert_close(missing, eps_c - eps_u)
print(f"gamma should be {intended:g}; off by {missing.norm() / eps_c.norm():.1%}")

# %% [markdown]
# Small in one guess, but compare the rows 2 and 1 of the table: you miss 0 wrong digits in 10,000 and get 86, you miss a
# digit-FID of 0.204 and get 0.062. Worse in one column, better in the other, and not what the paper did.
#
# ## In practice
#
# | if you | do | because |
# |---|---|---|
# | read a `guidance_scale`, `w`, `cfg_scale` | find where the prompt has no effect: $\gamma = 0$ | names differ by one unit (and some pipelines switch off below 1) |
# | need samples of what the model learned | $\gamma = 1$ | there the story holds; and one network call a step, not two |
# | need pictures that show what was asked | raise $\gamma$ from 1 until errors stop, no further | from 2 to 5 only digit-FID changed, 0.204 to 0.336 |
# | want to keep something out | a *negative prompt* and $\gamma > 1$ | it takes the place of "not told" in $\hat\varepsilon_u$; a negative $\gamma$ is another thing |
# | report a result | name sampler and steps | at one $\gamma > 1$ samplers sample different things |
#
# ## Exercises
#
# Write your answer where the function says `raise NotImplementedError("your turn")`, and run both cells.

# %% [markdown]
# ### Exercise 0.1 (easy): what does the pipeline do?
#
# The pipelines of the `diffusers` library take a `guidance_scale` which is our $\gamma$. At 1 and below they switch
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
    gamma = max(guidance_scale, 1.0)
    return gamma - 1
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

# %% tags=["exercise"]
def guided_centre(uncond_mean, cond_mean, gamma):
    """The middle of the guided samples, a number."""
    ### BEGIN SOLUTION
    # The guess is sigma (x - alpha m) for a bell around m, so guidance replaces m by the point below.
    return uncond_mean + gamma * (cond_mean - uncond_mean)
    ### END SOLUTION


# %%
exercises.check("0.2", guided_centre)

# %% [markdown]
# ### Exercise 0.3 (hard): the story from samples of the class
#
# Above, the story's mean was a sum over a grid. Pictures allow no grid; what you often have is a handful of samples of the class, of
# $p(x \mid y)$. Estimate the mean of $p(x)\,p(y \mid x)^\gamma$, all coordinates, from those alone: give each sample a
# weight, and let the weights sum to one. (`mixture.class_log_prob(points, label)` is $\log p(y \mid x)$ at each point.)
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
# 3. At $\gamma = 0$ and 1 you sample $p(x)\,p(y \mid x)^\gamma$. With best guesses on our mixture you do not at $-1$, 0.5,
#    3 and 8.
# 4. Guidance uses the power of an average where the average of powers is needed. At $\gamma = 3$, DDIM and DDPM even
#    sample different things there, and more steps do not mend it.
# 5. Before you compare scales, find their zeros.
#
# **Where it comes from.** $\eqref{eq-cfg-weight}$: [Ho & Salimans (2022)](https://arxiv.org/abs/2207.12598), eq. 6. That
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
# A network may guess the noise, the clean picture, their combination $v$ (as ours does), or the score. Between the
# best guesses $\hat\varepsilon$, $\hat x_0$, $\hat v$, and between guesses of one network by definition, there hold
#
# $$ x_t = \alpha_t \hat x_0 + \sigma_t \hat\varepsilon, \qquad \hat v = \alpha_t \hat\varepsilon - \sigma_t \hat x_0, \qquad
# \nabla \log p_t(x_t) = -\hat\varepsilon / \sigma_t, \label{eq-parameterisations} $$
#
# the third for best guesses alone. So one guess gives all the others, as long as nothing is divided by zero: at
# $\sigma_t = 0$ a clean picture says nothing about the noise, at $\alpha_t = 0$ the noise says nothing about the picture. Only
# $\hat v$ gives both everywhere. The first two we compute with the network's guess; the third needs a density, so we ask
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
# *For those who want counts of their own, and variety measured, not looked at.* Fifty digits, five of each, at three scales. How
# many are right, and how many leave the judge in doubt, below 90 %?

# %%
judge = checkpoints.load("judge").network
wanted, counted = torch.arange(50) % 10, {}
for gamma in (0.0, 1.0, 3.0):
    counted[gamma] = sampling.generate(network, wanted, gamma, seed=5)
    log_prob, seen = metrics.judged(judge, counted[gamma])[1].max(dim=1)
    right, doubt = int((seen == wanted).sum()), int((log_prob.exp() < 0.9).sum())
    print(f"gamma {gamma:g}: {right} of 50 are right, {doubt} in doubt")

# %% [markdown]
# Fifty digits, or a hundred, cannot tell $\gamma = 1$ from 3: at 1, one in a hundred is wrong, so you expect half a wrong
# digit in fifty, with a standard error of 0.7. They do tell 0 from 1.
#
# How far apart are digits of one class? Take the variance within a class, summed over pixels, or over the 128 features by
# which the judge decides; then mean and standard error over the ten classes.

# %%
for gamma in (1.0, 3.0):
    features = metrics.judged(judge, counted[gamma])[0]
    for name, values in (("pixels", counted[gamma].clamp(-1, 1).flatten(1)), ("features", features)):
        within = values.view(5, 10, -1).double().var(dim=0).sum(1)  # (10,), digit k is of class k % 10
        print(f"gamma {gamma:g}, {name}: {within.mean():.2f} +- {within.std() / 10**0.5:.2f}")

# %% [markdown]
# In the features, digits of one class are about three times less spread at 3 than at 1. In
# pixels the difference of fifty digits is below two standard errors. What you call "less variety" depends on what you look
# at; guidance levels what the judge decides by more than it levels pixels.
#
# ## Deeper: is it the steps, or the network?
#
# *For those who doubt the explanation of the row $\gamma = 0$.* The crowds at 0 and 1 would be alike for an ideal network and
# small steps. 16 steps may be too few, the more so without the label. So take four times as many. `sampling.generate(network,
# torch.arange(200) % 10, 0.0, seed=5, steps=64)` (a minute, so not run here) gives 200 digits of which 20.5 % leave
# the judge in doubt. With `steps=16` it is 17.0 %; each has a standard error of 3 %. So it is not the steps.
#
# There is another way to a guess without the label, exact for best guesses: $\hat\varepsilon_u = \sum_y p_t(y \mid x_t)\,
# \hat\varepsilon_c^{(y)}$, the average of the ten conditional guesses, with the weights of a classifier of noisy digits. One
# ships as `guide`:

# %%
guide = checkpoints.load("guide").network

def by_bayes(x, t):
    """The guess without a label, from the ten with one and the guide's probabilities."""
    log_snr = torch.full((len(x),), float(schedule.log_snr(t)))
    share = guide(x, log_snr).softmax(1).view(-1, 10, 1, 1, 1)
    guesses = [network_denoiser(network, schedule, y)(x, t) for y in range(10)]
    return Prediction(*((share * torch.stack(part, 1)).sum(1) for part in zip(*guesses, strict=True)))

seven_share = guide(x_t, torch.full((5,), float(schedule.log_snr(t)))).softmax(1)[:, 7]
for name, other in (("by Bayes", by_bayes(x_t, t).eps), ("with the label", eps_c)):
    print(f"{name}: {(other - eps_u).norm() / eps_u.norm():.1%} from the guess without the label")
print(f"the guide is sure of a 7 with {seven_share.min():.3f} or more")

# %% [markdown]
# On these noisy sevens the guide is nearly sure of the 7, so the average is nearly the guess with the label: by the exact
# relation, being told should change nothing here. To the network it changes 2.7 % of its guess, which is error in one of
# its two halves or in both. Still, `by_bayes` in the place of $\hat\varepsilon_u$ is no repair: 500 digits by
# `kernels.ddpm(by_bayes, schedule)` in 16 steps (some minutes) are *further* from real ones, digit-FID 2.0, than 500 of
# this network's own, 0.9. The unconditional half has to be trained better.

# %% [markdown]
# ## Deeper: how to read the course, and why to believe it
#
# *For those who read on.* Part I (chapters 01 to 05): the process nobody steers. II (06 to 12): how you steer it. III (13
# to 16): pictures. IV (17 to 20): what $\gamma$ really samples, and remedies. In a hurry: part II, then 17. Every numbered
# equation is computed in the next cell, and a test compares it with an independent computation; wrong formulas are
# planted to see that the tests notice. A number in the text is printed by a cell, or its source stands there. `make test`
# runs it all.
#
# ## Deeper: every convention on one card
#
# *For those who read other people's code.* The column "checked in" says whether a row was read in the code, in a copy of
# it, or in the paper. First all guidance scales, and what has no single $\gamma$:

# %% tags=["hide-input"]
table(questions=("guidance", "no single gamma"))

# %% [markdown]
# Then noise levels, single steps, and network outputs. In this course `alpha` and `sigma` are always those of
# $\eqref{eq-forward-marginal}$, and $\gamma$ is always that of $\eqref{eq-cfg}$.

# %% tags=["hide-input"]
table(questions=("noise", "one step", "output"))
