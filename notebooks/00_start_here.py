# %% [markdown]
# # 00 · Start here: how do you tell a diffusion model what to draw?
#
# A diffusion model turns noise into pictures. Left alone, it draws whatever it likes. *Guidance* is how you tell it what
# you want: a class, a caption, a style. Nearly every image generator exposes it as one number, `guidance_scale`, and
# this course is about that number: what it does, and what the pictures it gives are samples of.
#
# **After this chapter you can**
# * draw a digit of your choice with a trained network, in five lines;
# * say what the guidance scale $\gamma$ does to one picture, and to ten thousand;
# * translate anybody's guidance scale into ours, and see why mixing them up is not a detail;
# * check every claim of this course yourself.
#
# **You need** PyTorch, and what a probability density is. Nothing about diffusion models: this chapter uses them, the
# next ones explain them.
#
# *20 minutes to read, half a minute to run, on a laptop, without a GPU or a network connection.*

# %%
import torch

from difflesson import conventions, exercises, guidance, kernels, plotting
from difflesson.denoiser import network_pair
from difflesson.digits import checkpoints, metrics, sampling
from difflesson.mixture import GaussianMixture
from difflesson.samplers import draw, time_grid
from difflesson.schedule import cosine, vp_linear

# %% [markdown]
# ## Turn the knob and watch
#
# The course ships a small network, trained on the handwritten digits of MNIST. We ask it for sevens. Each row below
# starts from the *same* noise and uses no further randomness; from left to right, only $\gamma$ grows.

# %%
network, card = checkpoints.load("denoiser")
steps = card["recipe"]["steps"]
print(f"{card['parameters']:,} parameters, {steps:,} training steps")

# %%
scales = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)
sevens = torch.full((5,), 7)
still = {"seed": 2, "sampler": "ddim", "steps": 25}
columns = [sampling.generate(network, sevens, g, **still) for g in scales]

# %% tags=["hide-input"]
with plotting.style():
    figure, axes = plotting.plt.subplots(1, len(scales), figsize=(6.4, 4.6))
    for panel, gamma, digits in zip(axes, scales, columns, strict=True):
        plotting.show_digits(panel, digits, columns=1, title=f"$\\gamma = {gamma:g}$")
    shown = plotting.show(figure, "00_turn_the_knob", alt="A grid of digits, five rows by six columns for guidance scales 0 to 8. The first column shows various digits, the third five different sevens, the last five clean and bold sevens that look alike.")
shown

# %% [markdown]
# *Five starting noises (rows), six guidance scales (columns), one request: draw a 7.*
#
# At $\gamma = 0$ the network ignores the request and each noise becomes whatever digit it leads to. At $\gamma = 1$ it
# draws a seven as people write them: varied, sometimes odd. As $\gamma$ grows, the sevens become cleaner and more
# alike. Two questions follow, and they are the whole course: **how does one number do this, and what exactly are the
# pictures on the right a sample of?**
#
# ## One noisy picture, two guesses
#
# A diffusion model is trained on pictures $x_0$ to which noise was added,
#
# $$ x_t = \alpha_t\, x_0 + \sigma_t\, \varepsilon, \qquad \varepsilon \sim \mathcal N(0, I), \qquad
# \alpha_t^2 + \sigma_t^2 = 1. \label{eq-forward-marginal} $$
#
# Time $t$ runs from 0 (the picture) to 1 (noise); a *schedule* says how $\alpha_t$ falls and $\sigma_t$ grows.
# Here is the equation on the five sevens of the third column: first as one writes it, then as the package has it. The two
# agree to rounding. This is what "executed" means in this book: a cell like this one follows every numbered equation.

# %%
schedule, t = cosine(), 0.5
x_0 = columns[2]  # the sevens at gamma = 1, (5, 1, 28, 28)
eps = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(4))
by_hand = schedule.alpha(t) * x_0 + schedule.sigma(t) * eps
x_t = schedule.add_noise(x_0, eps, t)
print(f"alpha {schedule.alpha(t):.3f}, sigma {schedule.sigma(t):.3f}")
torch.testing.assert_close(x_t, by_hand)

# %% tags=["hide-input"]
with plotting.style():
    figure, axes = plotting.plt.subplots(1, 6, figsize=(6.4, 1.3))
    for panel, time in zip(axes, (0, 0.2, 0.4, 0.6, 0.8, 1), strict=True):
        noisy = schedule.add_noise(x_0[2:3], eps[2:3], time)
        plotting.show_digits(panel, noisy, columns=1, title=f"$t = {time:g}$")
    shown = plotting.show(figure, "00_noising", alt="A drawn seven at six times from 0 to 1: clear at time 0, still recognisable at 0.4, lost in noise from 0.8 on.")
shown

# %% [markdown]
# *One seven and one noise, mixed by $\eqref{eq-forward-marginal}$. A diffusion model learns to walk this row from right
# to left.*
#
# The network looks at $x_t$ and guesses the noise in it, $\varepsilon$. Ours guesses twice: knowing the label,
# $\varepsilon_c$ (c for *conditional*), and not knowing it, $\varepsilon_u$ (*unconditional*). Classifier-free guidance
# is the line through the two guesses:
#
# $$ \varepsilon = \varepsilon_u + \gamma\,(\varepsilon_c - \varepsilon_u). \label{eq-cfg} $$
#
# With $\gamma = 0$ you get the guess without the label, with $\gamma = 1$ the guess with it, and with $\gamma > 1$ you
# walk past it: the difference between the two guesses is what the label changes, and you ask for more of it.

# %%
pair = network_pair(network, schedule, label=7)
cond, uncond = pair(x_t, t)
by_hand = uncond.eps + 3.0 * (cond.eps - uncond.eps)
guided = guidance.classifier_free(pair, gamma=3.0)
compact = guided(x_t, t).eps
print(f"largest difference {float((by_hand - compact).abs().max()):.0e}")
torch.testing.assert_close(compact, by_hand)

# %% [markdown]
# ## The five lines
#
# Start from pure noise, guess the noise in it, take a little of it away, guess again: that is all of sampling. Here is
# one guided seven, from the network to the picture, in 25 such steps. The rule for a step is called DDIM.

# %%
pair = network_pair(network, schedule, label=7)
guided = guidance.classifier_free(pair, gamma=3.0)
kernel = kernels.ddim(guided, schedule)
start = torch.randn(1, 1, 28, 28, generator=torch.Generator().manual_seed(11))
seven = draw(kernel, start, sampling.digit_times(25, schedule))

# %% [markdown]
# `pair` is the network asked both ways, `guided` is equation $\eqref{eq-cfg}$, `kernel` is one step from more noise to
# less, and `draw` repeats it. A second network, the *judge*, was trained only to name real digits; it tells us what it
# sees:

# %%
judge = checkpoints.load("judge").network
_, log_probs = metrics.judged(judge, seven)
log_prob, seen = log_probs.max(dim=1)
print(f"the judge sees a {int(seen)}, probability {float(log_prob.exp()):.4f}")
assert seen == 7

# %% [markdown]
# ## What the knob costs
#
# One picture proves nothing, so count. We draw a hundred digits, ten of each, at three scales, and let the judge say
# whether each shows what was asked for.

# %%
wanted = torch.arange(100) % 10
right = {}
for gamma in (0.0, 1.0, 3.0):
    digits = sampling.generate(network, wanted, gamma, seed=5)
    seen = metrics.judged(judge, digits)[1].argmax(dim=1)
    right[gamma] = int((seen == wanted).sum())
    print(f"gamma {gamma:g}: {right[gamma]} of 100 are what was asked for")
assert right[0.0] < 30 and right[1.0] >= 90 and right[3.0] >= right[1.0]

# %% [markdown]
# So more guidance is better? Accuracy is only half of it. The *digit-FID* compares the whole crowd of generated digits
# with 10,000 real ones: it is small when the crowd is as good *and as varied* as reality (how it is made:
# `difflesson.digits.metrics`). Both were measured with 10,000 digits a scale by
# `difflesson evaluate --precision bf16 --card --gamma 0 --gamma 0.5 --gamma 1 ...` and stand on the network's card.

# %%
setting, curve = next(iter(card["metrics"].items()))
real = metrics.load_reference()[1]
print(f"{setting}\n gamma  accuracy  digit-FID")
for gamma, row in curve.items():
    print(f"{gamma:>6}  {row['accuracy']:8.4f}  {row['digit_fid']:9.3f}")
print(f"  real  {real['judge_accuracy_on_test']:8.4f}  {real['digit_fid_floor']:9.3f}")

# %% tags=["hide-input"]
floor = real["digit_fid_floor"]
gammas = [float(gamma) for gamma in curve]
with plotting.style():
    figure, (left, middle) = plotting.plt.subplots(1, 2, figsize=(7, 2.8))
    wrong = [max(1 - row["accuracy"], 3e-5) for row in curve.values()]  # a logarithm has no place for "none"
    left.plot(gammas, wrong, "o-", color=plotting.COLOURS["guided"])
    left.annotate("none of 10,000", (gammas[-1], 2e-5), ha="right", va="top")
    left.set(ylim=(5e-6, 2), xlabel="guidance scale $\\gamma$", ylabel="share of wrong digits", yscale="log", title="not what was asked")
    middle.plot(gammas, [row["digit_fid"] for row in curve.values()], "o-", color=plotting.COLOURS["guided"])
    middle.axhline(floor, color=plotting.COLOURS["truth"], linestyle="dashed")
    middle.text(gammas[-1], floor * 1.15, "real against real", ha="right")
    middle.set(xlabel="guidance scale $\\gamma$", ylabel="digit-FID", yscale="log", title="distance from real digits")
    shown = plotting.show(figure, "00_two_curves", alt="Two curves over the guidance scale. The share of wrong digits falls steeply from 0 to 2. The digit-FID falls to a minimum near 1 and then rises.")
shown

# %% [markdown]
# *Left: guidance makes wrong digits rare. Right: beyond $\gamma = 1$ the crowd drifts away from the real one.*
#
# The left curve falls, the right one turns round at $\gamma = 1$. From 1.5 on, the judge recognises guided digits more
# reliably than real ones, and yet as a crowd they are less like real ones. Nothing is broken; but it is no longer true
# that you sample "digits, given that they are sevens". Then what do you sample?
#
# ## Where the truth can be computed
#
# For digits nobody knows the true distribution. So this course keeps a second laboratory: mixtures of Gaussians in the
# plane, that is, a few bell-shaped blobs with weights. For them the best possible noise guess, the class probabilities
# and the densities at every noise level have closed forms. Here are four blobs, two of class 0 and two of class 1.

# %%
mixture = GaussianMixture(
    weights=[0.30, 0.30, 0.25, 0.15],
    means=torch.tensor(
        [[-2.0, -0.5], [-0.2, 1.4], [0.4, -0.6], [2.4, 1.0]],
        dtype=torch.float64,
    ),
    covs=[
        [[0.5, 0.2], [0.2, 0.4]],
        [[0.4, -0.2], [-0.2, 0.3]],
        [[0.4, 0.1], [0.1, 0.5]],
        [[0.3, -0.1], [-0.1, 0.3]],
    ],
    labels=[0, 0, 1, 1],
)

# %% [markdown]
# The common story says that $\gamma$ sharpens the class: you sample $p(x)\,p(y \mid x)^\gamma$, up to a constant. Here
# $p(x)$ is the density of all blobs together and $p(y \mid x)$ the probability that a point at $x$ is of class $y$. At
# $\gamma = 1$ the product is proportional to $p(x \mid y)$, by Bayes' rule. With an ideal model, no training error and
# a fine solver (200 small steps), we can look at the other scales too. Below, dashed lines are that story; dots are what equation
# $\eqref{eq-cfg}$ delivers.

# %%
plane, times, drawn = vp_linear(), time_grid(200), {}
generator = torch.Generator().manual_seed(0)
first = torch.randn(3000, 2, generator=generator, dtype=torch.float64)
ideal = mixture.pair(plane, label=1)
for gamma in (0.0, 1.0, 3.0, 8.0):
    steered = guidance.classifier_free(ideal, gamma)
    drawn[gamma] = draw(kernels.ddim(steered, plane), first, times)

# %% tags=["hide-input"]
def story(x, gamma):
    return mixture.log_prob(x) + gamma * mixture.class_log_prob(x, label=1)


requests = torch.full((12,), 7)
with plotting.style():
    figure, axes = plotting.plt.subplots(2, 4, figsize=(9, 3.7), height_ratios=(1, 1.25))
    colours = ("unconditional", "conditional", "guided", "guided")
    for above, below, (gamma, points), colour in zip(*axes, drawn.items(), colours, strict=True):
        digits = sampling.generate(network, requests, gamma, seed=8, sampler="ddim", steps=25)
        plotting.show_digits(above, digits, columns=4, title=f"$\\gamma = {gamma:g}$")
        below.plot(*points.T, ".", markersize=1.5, alpha=0.4, color=plotting.COLOURS[colour])
        plotting.density(below, lambda x, gamma=gamma: story(x, gamma), (-4.5, 5, -4, 4))
        below.set(xlabel="$x_1$", xlim=(-4.5, 5), ylim=(-3.6, 3.4), xticks=(-4, -2, 0, 2, 4), aspect="equal")
    axes[1, 0].set_ylabel("$x_2$")
    shown = plotting.show(figure, "00_story_and_truth", alt="Above: twelve requests for a seven at guidance scales 0, 1, 3 and 8; the sevens become cleaner and more alike. Below: guided samples of a mixture in the plane as dots, and the distribution that guidance is said to sample as dashed contours. They agree at scales 0 and 1; at 3 and 8 the dots leave the contours to the right.")
shown

# %% [markdown]
# *Above: twelve requests for a 7, the same twelve noises in each panel. Below: 3,000 guided samples (dots), and 50, 90
# and 99 % of the mass of $p(x)\,p(y \mid x)^\gamma$ (dashed).*
#
# At $\gamma = 0$ and $\gamma = 1$ the dots fill the contours: the story is true there. Beyond, it is
# false. The contours hardly move, the dots run away from the other class and nearly lose one of the two blobs.
#
# With numbers: the mean of $x_1$ that the story predicts is an average over exact samples of $p(x)$, each weighted by
# $p(y \mid x)^\gamma$. `softmax` makes the weights sum to one.

# %%
exact, _ = mixture.sample(200_000, torch.Generator().manual_seed(1))
for gamma, points in drawn.items():
    log_weights = gamma * mixture.class_log_prob(exact, label=1)
    told = float(log_weights.softmax(0) @ exact[:, 0])
    got = float(points[:, 0].mean())
    print(f"gamma {gamma:g}: mean of x1 is {got:5.2f}, the story says {told:5.2f}")
    assert abs(told - got) < 0.08 if gamma <= 1 else got - told > 0.8

# %% [markdown]
# Perhaps the story is wrong and another distribution is right? Then every good solver should find that one. `ddim`, used
# so far, adds no noise on its way; `ddpm` adds some at every step. At $\gamma = 1$ the two are known to sample the same
# distribution. At $\gamma = 3$?

# %%
for gamma in (1.0, 3.0):
    steered = guidance.classifier_free(ideal, gamma)
    solvers = kernels.ddim(steered, plane), kernels.ddpm(steered, plane)
    for steps in (100, 800):
        runs = (draw(kernel, first, time_grid(steps), generator) for kernel in solvers)
        by_ddim, by_ddpm = (float(points[:, 0].mean()) for points in runs)
        print(f"gamma {gamma:g}, {steps} steps: mean of x1 by ddim {by_ddim:.2f}, by ddpm {by_ddpm:.2f}")
        assert abs(by_ddim - by_ddpm) < 0.08 if gamma == 1 else by_ddim - by_ddpm > 0.2

# %% [markdown]
# They part, and eight times as many steps do not bring them together: there is no *single* guided distribution. Chapter 17
# derives both gaps, chapter 18 shows what it takes to close them. And this is not the only thing said about guidance that
# does not survive being computed.
#
# ## The convention card
#
# Guided results often go wrong not in the mathematics but in the names. Libraries and papers agree on equation
# $\eqref{eq-cfg}$ and disagree about what they call zero.
# [Ho & Salimans (2022)](https://arxiv.org/abs/2207.12598) write the same line with $w = \gamma - 1$:
#
# $$ (1 + w)\,\varepsilon_c - w\,\varepsilon_u = \varepsilon_u + \gamma\,(\varepsilon_c - \varepsilon_u),
# \qquad w = \gamma - 1. \label{eq-cfg-weight} $$

# %%
w = conventions.guidance_scale(3.0, "gamma", "ho-salimans")
torch.testing.assert_close((1 + w) * cond.eps - w * uncond.eps, compact)
cfg_scale = conventions.guidance_scale(3.0, "gamma", "smalldiffusion")
print(f"gamma 3 is w = {w:g}, and cfg_scale = {cfg_scale:g} in smalldiffusion")

# %% [markdown]
# This is the card for guidance scales. `difflesson.conventions` converts each to each, and refuses names that do not
# determine a scale; the column "checked in" says whether a row was read in the code or in the paper.

# %%
from IPython.display import Markdown


def table(*questions):
    rows = [r for r in conventions.card() if r.pop("question") in questions]
    return Markdown(conventions.markdown(rows))


table("guidance", "no single gamma")

# %% [markdown]
# The same for noise levels and for what a network's output means. In this course `alpha` and `sigma` are always those
# of $\eqref{eq-forward-marginal}$, and $\gamma$ is always that of $\eqref{eq-cfg}$.

# %%
table("noise", "one step", "output")

# %% [markdown]
# A network may be trained to output the noise, the clean picture, their combination $v$, or the *score*, the gradient of
# the log-density of noisy pictures $p_t$. For one noisy point all of them say the same thing in different words,
#
# $$ x_t = \alpha_t x_0 + \sigma_t \varepsilon, \qquad v = \alpha_t \varepsilon - \sigma_t x_0, \qquad
# \nabla \log p_t(x_t) = -\varepsilon / \sigma_t, \label{eq-parameterisations} $$
#
# so a prediction of one is a prediction of all. That is why a guess has two parts here: the noise `eps`, and the clean
# picture `x0` that is left when this noise is taken away. The first two equations can be computed with the network's
# guess; the third needs a density to compare with, so we ask the mixture.

# %%
alpha, sigma = schedule.alpha(t), schedule.sigma(t)
v = alpha * cond.eps - sigma * cond.x0
torch.testing.assert_close(x_t, alpha * cond.x0 + sigma * cond.eps)
converted = conventions.convert(cond.eps, "eps", "v", x_t, alpha, sigma)
torch.testing.assert_close(converted, v, atol=1e-5, rtol=1e-5)

ideal_eps = mixture.denoiser(schedule)(first, t).eps  # at the 3,000 points in the plane
score = conventions.convert(ideal_eps, "eps", "score", first, alpha, sigma)
torch.testing.assert_close(score, mixture.noised(alpha, sigma).score(first))
print(f"v by both ways: {float((converted - v).abs().max()):.0e} apart")

# %% [markdown]
# ### Pitfall: one letter, one unit
#
# A paper reports its best result at $w = 1$. You type `gamma=1`. The program runs, the pictures look fine, and nothing
# you changed in the guidance has any effect: you are sampling without it. The mistake is exactly one unit of
# $\varepsilon_c - \varepsilon_u$, everywhere, always:

# %%
intended = conventions.guidance_scale(1.0, "ho-salimans")
meant = guidance.classifier_free(pair, gamma=intended)
typed = guidance.classifier_free(pair, gamma=1.0)
missing = meant(x_t, t).eps - typed(x_t, t).eps
torch.testing.assert_close(missing, cond.eps - uncond.eps)
off = float(missing.norm() / cond.eps.norm())
print(f"gamma should be {intended:g}; at t = {t} the guess is off by {off:.1%}")

# %% [markdown]
# In the table of accuracies above, it is the difference between the rows 2 and 1: compare their share of wrong digits.
#
# ## What stands behind a claim
#
# * **A numbered equation** is followed by a cell that computes it. The function that implements it names the equation's
#   label in its docstring, and a test under `tests/` carries the same label and compares it with an independent
#   computation (quadrature, finite differences, another library). To show that such a test can fail, wrong formulas are
#   planted one by one, and each must turn a test red: `make mutants`.

# %%
print(guidance.classifier_free.__doc__.splitlines()[0])

# %% [markdown]
# * **A number in the text** is printed by a cell of the same chapter, or stands with its source. Chapters are executed in
#   continuous integration; the `assert`s in them are the tests.
# * **A trained network** comes with a card: data hash, command, seed, steps, metrics. You can train it again.
# * **A claim about everybody else** ("libraries do X") names the file it was read in.
#
# To run every test: `make test`. To run this chapter as a test: `python -m pytest --nbval-lax notebooks/00_start_here.ipynb`.
#
# ## How to read the course
#
# | part | question | chapters |
# |---|---|---|
# | I | What is the process nobody steers? | noising, ELBO, variational diffusion, scores, reverse processes |
# | **II** | **How do you steer it?** | Bayes decomposition, mean shift, the $\gamma$ normaliser, similarity, SDE and $\varepsilon$ substitution, classifier-free guidance, clean classifiers |
# | III | Does it work on pictures? | training on MNIST, both guidances on digits, words and style |
# | IV | What does $\gamma$ really sample? | the path that is none, remedies that are right, practice, real pipelines |
#
# In a hurry: part II, then chapter 17. For a lecture: every chapter stands on its own and every figure has its cell.
# The table of chapters that are finished is in the README; the others are being written in this order.
#
# ## Exercises
#
# Write your answer where the function says `raise NotImplementedError("your turn")`, run the cell, then run the check
# below it. The check compares your function with an independent computation and says what to look at again.
#
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
    """The w with which a pipeline runs, for any guidance_scale of at least 0."""
    ### BEGIN SOLUTION
    gamma = max(guidance_scale, 1.0)
    return gamma - 1
    ### END SOLUTION


# %%
exercises.check("0.1", pipeline_weight)

# %% [markdown]
# ### Exercise 0.2 (medium): what does a negative scale do?
#
# Two bells of width one on a line: without the label the data are $\mathcal N(m_u, 1)$, with it $\mathcal N(m_c, 1)$.
# Guide with any $\gamma$, also a negative one. In this case the samples are again a bell of width one. Around which
# point? Predict it, and write it as a function. Then look at digits:
# `sampling.generate(network, sevens, -1.0, **still)` asks for *less* seven than no request at all. This is how a
# *negative prompt* works.
#
# <details><summary>Hint</summary>
#
# Noise leaves the width at one and moves the middle to $\alpha_t m$. Take the log-density of that bell, and the third
# part of $\eqref{eq-parameterisations}$ gives its noise guess $\varepsilon$: a straight line in $x_t$. Put two such
# lines into $\eqref{eq-cfg}$. Of which bell is the result the noise guess?
#
# </details>

# %% tags=["exercise"]
def guided_centre(uncond_mean, cond_mean, gamma):
    """The middle of the guided samples, a number."""
    ### BEGIN SOLUTION
    # eps = sigma (x - alpha m) for a bell around m, so guidance replaces m by the point below.
    return uncond_mean + gamma * (cond_mean - uncond_mean)
    ### END SOLUTION


# %%
exercises.check("0.2", guided_centre)

# %% [markdown]
# ### Exercise 0.3 (hard): the story from samples of the class
#
# Above, the story's mean came from samples of $p(x)$. Often you only have samples of the class, of $p(x \mid y)$.
# Compute the mean of $p(x)\,p(y \mid x)^\gamma$, both coordinates, from those.
#
# <details><summary>Hint</summary>
#
# A weight is the density you want divided by the density you have. Write $p(x \mid y)$ by Bayes' rule, divide, and
# drop what does not depend on $x$. Check yourself at $\gamma = 1$.
#
# </details>

# %% tags=["exercise"]
def story_mean(mixture, points, label, gamma):
    """The mean of p(x) p(y | x)^gamma, (d,), from points (N, d) drawn from p(x | label)."""
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
# 1. Guidance moves the network's noise guess along the line from "without the label" to "with the label": $\eqref{eq-cfg}$.
# 2. $\gamma = 0$ ignores the label, $\gamma = 1$ is plain conditional sampling, $w = \gamma - 1$.
# 3. More guidance: fewer wrong digits, less variety.
# 4. For other $\gamma$, guided samples are in general *not* samples of $p(x)\,p(y \mid x)^\gamma$, even with a perfect
#    network, and different solvers sample different things.
# 5. Before comparing scales, look at the convention card.
#
# **Where it comes from.** Equation $\eqref{eq-cfg-weight}$: [Ho & Salimans (2022)](https://arxiv.org/abs/2207.12598),
# eq. 6. The question what $\gamma$ samples: [Bradley & Nakkiran (2024)](https://arxiv.org/abs/2408.09000). The
# conventions: see the card. MNIST: LeCun, Cortes, Burges.
