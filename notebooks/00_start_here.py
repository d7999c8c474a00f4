# %% [markdown]
# # 00 · Start here: how do you tell a diffusion model what to draw?
#
# A diffusion model turns noise into pictures. Left alone, it draws whatever it likes. *Guidance* is how you tell it what
# you want: a class, a caption, a style. Nearly every image generator exposes it as one number, `guidance_scale`, and
# this course is about that number: what it does, and what the pictures it gives are samples of.
#
# **After this chapter you can**
# * draw a digit of your choice with a trained network, in five lines;
# * say what the guidance scale $\gamma$ does to one picture, and to a thousand;
# * translate anybody's guidance scale into ours, and see why mixing them up is not a detail;
# * check every claim of this course yourself.
#
# **You need** PyTorch and Bayes' rule. Nothing about diffusion models: what is used here is explained from chapter 01 on.
#
# *15 minutes to read, half a minute to run, on a laptop, without a GPU or a network connection.*

# %%
import torch

from difflesson import conventions, guidance, kernels, plotting
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
# ## The five lines
#
# A diffusion model is trained on pictures $x_0$ to which noise was added,
#
# $$ x_t = \alpha_t\, x_0 + \sigma_t\, \varepsilon, \qquad \varepsilon \sim \mathcal N(0, I), \qquad
# \alpha_t^2 + \sigma_t^2 = 1. \tag{0.1}\label{eq-forward-marginal} $$
#
# Time $t$ runs from 0 (the picture) to 1 (noise); a *schedule* says how $\alpha_t$ falls and $\sigma_t$ grows.
# The network looks at $x_t$ and guesses the noise in it, $\varepsilon$. Ours guesses twice: knowing the label,
# $\varepsilon_c$, and not knowing it, $\varepsilon_u$. Classifier-free guidance is a line through the two guesses:
#
# $$ \varepsilon = \varepsilon_u + \gamma\,(\varepsilon_c - \varepsilon_u). \tag{0.2}\label{eq-cfg} $$
#
# With $\gamma = 0$ you get the guess without the label, with $\gamma = 1$ the guess with it, and with $\gamma > 1$ you
# walk past it: the difference between the two guesses is what the label changes, and you ask for more of it.

# %%
noise = cosine()
pair = network_pair(network, noise, label=7)
guided = guidance.classifier_free(pair, gamma=3.0)
kernel = kernels.ddim(guided, noise)
generator = torch.Generator().manual_seed(11)
start = torch.randn(1, 1, 28, 28, generator=generator)
seven = draw(kernel, start, sampling.digit_times(25, noise))

# %% [markdown]
# `pair` is the network asked both ways, `guided` is equation $\eqref{eq-cfg}$, `kernel` is one step from more noise to
# less, and `draw` repeats it. A second network, the *judge*, was trained only to name
# real digits; it tells us what it sees:

# %%
judge = checkpoints.load("judge").network
_, log_probs = metrics.judged(judge, seven)
log_prob, seen = log_probs.max(dim=1)
print(f"the judge sees a {int(seen)}, probability {float(log_prob.exp()):.4f}")
assert seen == 7

# %% [markdown]
# Equation $\eqref{eq-cfg}$ as one writes it first, and as the package has it. They agree to rounding: this is what
# "executed" means in this book, and a cell like this follows every numbered equation.

# %%
t = torch.tensor(0.5, dtype=torch.float64)
cond, uncond = pair(start, t)
by_hand = uncond.eps + 3.0 * (cond.eps - uncond.eps)
compact = guided(start, t).eps
print(f"largest difference {float((by_hand - compact).abs().max()):.0e}")
torch.testing.assert_close(compact, by_hand)

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
# The left curve falls, the right one turns round at $\gamma = 1$. From 1.5 on, guided digits are recognised more
# reliably than real ones, and they are less like real ones. Nothing is broken; but it is no longer true that you sample "digits, given that they are sevens".
# Then what do you sample?
#
# ## Where the truth can be computed
#
# For digits nobody knows the true distribution. So this course keeps a second laboratory: mixtures of Gaussians, sums of a few bell-shaped blobs, in the
# plane, where the noise guess, the class probabilities and the densities at every noise level have closed forms. Here
# are four blobs, two of class 0 and two of class 1.

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
# The common story says that $\gamma$ sharpens the class: you sample $p(x)\,p(y \mid x)^\gamma$, up to a constant. With
# an ideal model, no training error and a fine solver, we can look. Dashed lines are that story; dots are what equation
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
# false. The contours hardly move, the dots run away from the other class and nearly lose one of the two blobs. With numbers,
# the story's mean computed by reweighting exact samples:

# %%
exact, _ = mixture.sample(200_000, torch.Generator().manual_seed(1))
for gamma, points in drawn.items():
    log_weights = gamma * mixture.class_log_prob(exact, label=1)
    told = float(log_weights.softmax(0) @ exact[:, 0])
    got = float(points[:, 0].mean())
    print(f"gamma {gamma:g}: mean of x1 is {got:5.2f}, the story says {told:5.2f}")
    assert abs(told - got) < 0.08 if gamma <= 1 else got - told > 0.8

# %% [markdown]
# That gap is no numerical accident: chapter 17 derives it, chapter 18 shows what it takes to close it. And it is not the
# only thing said about guidance that does not survive being computed.
#
# ## The convention card
#
# The first source of wrong results with guidance is not mathematics, it is names. Libraries and papers agree on
# equation $\eqref{eq-cfg}$ and disagree about what they call zero. Ho and Salimans (2022) write the same line with
# $w = \gamma - 1$:
#
# $$ (1 + w)\,\varepsilon_c - w\,\varepsilon_u = \varepsilon_u + \gamma\,(\varepsilon_c - \varepsilon_u),
# \qquad w = \gamma - 1. \tag{0.3}\label{eq-cfg-weight} $$

# %%
w = conventions.guidance_scale(3.0, "gamma", "ho-salimans")
torch.testing.assert_close((1 + w) * cond.eps - w * uncond.eps, by_hand)
cfg_scale = conventions.guidance_scale(3.0, "gamma", "smalldiffusion")
print(f"gamma 3 is w = {w:g}, and cfg_scale = {cfg_scale:g} in smalldiffusion")

# %% [markdown]
# This is the card for guidance scales. `difflesson.conventions` converts each to each, and refuses names that do not
# determine a scale; the last column but one says whether a row was read in the code or in the paper.

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
# For one noisy point all outputs say the same thing in different words,
#
# $$ x_t = \alpha_t x_0 + \sigma_t \varepsilon, \qquad v = \alpha_t \varepsilon - \sigma_t x_0, \qquad
# \nabla \log p_t(x_t) = -\varepsilon / \sigma_t, \tag{0.4}\label{eq-parameterisations} $$
#
# so a prediction of one is a prediction of all:

# %%
alpha, sigma = noise.alpha(t), noise.sigma(t)
v = conventions.convert(cond.eps, "eps", "v", start, alpha, sigma)
back = conventions.convert(v, "v", "x0", start, alpha, sigma)
torch.testing.assert_close(back, cond.x0, atol=1e-5, rtol=1e-5)
print(f"eps -> v -> x0 closes to {float((back - cond.x0).abs().max()):.0e}")

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
missing = meant(start, t).eps - typed(start, t).eps
torch.testing.assert_close(missing, cond.eps - uncond.eps)
off = float(missing.norm() / cond.eps.norm())
print(f"gamma should be {intended:g}; at t = {float(t)} the guess is off by {off:.1%}")

# %% [markdown]
# On the digits' card above, it is the difference between the rows $\gamma = 2$ and $\gamma = 1$: compare their share of
# wrong digits.
#
# ## What stands behind a claim
#
# * **A numbered equation** is followed by a cell that computes it. The function that implements it names the equation's
#   label in its docstring, and a test under `tests/` carries the same label and compares it with an independent
#   computation (quadrature, finite differences, another library).

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
# ## Try it
#
# 1. *(easy)* A pipeline of the `diffusers` library runs with `guidance_scale=7.5`. What is $w$? What happens there at
#    `guidance_scale=0.5`?
# 2. *(medium)* Draw digits with `gamma=-1` and label 7. Before you run it: what will the judge say?
# 3. *(hard)* Replace `kernels.ddim` by `kernels.ddpm` in the laboratory above, with the same $\gamma = 3$. Both solvers
#    sample the same distribution at $\gamma = 1$. Do they still agree on the mean of $x_1$?
#
# <details><summary>Answers</summary>
#
# 1. $w = 6.5$. Its pipelines switch guidance off at 1 and below, so 0.5 gives plain conditional samples, not the
#    half-way mixture of $\eqref{eq-cfg}$; `conventions.guidance_scale(0.5, "diffusers")` refuses for that reason.
# 2. Anything but a seven: the step goes away from what the label adds. This is how a *negative prompt* works.
# 3. They do not. With $\gamma \ne 1$ the answer depends on the solver's noise level, however small the steps: there is
#    no single guided distribution. Chapter 17 explains both numbers.
#
# </details>

# %%
means = {}
for gamma in (1.0, 3.0):
    steered = guidance.classifier_free(ideal, gamma)
    noisy = draw(kernels.ddpm(steered, plane), first, times, generator)
    means[gamma] = float(drawn[gamma][:, 0].mean()), float(noisy[:, 0].mean())
    print("gamma {:g}: mean of x1 by ddim {:.2f}, by ddpm {:.2f}".format(gamma, *means[gamma]))
assert abs(means[1.0][0] - means[1.0][1]) < 0.08 < 0.1 < abs(means[3.0][0] - means[3.0][1])

# %% [markdown]
# ## Remember
#
# 1. Guidance moves the network's noise guess along the line from "without the label" to "with the label": $\eqref{eq-cfg}$.
# 2. $\gamma = 0$ ignores the label, $\gamma = 1$ is plain conditional sampling, $w = \gamma - 1$.
# 3. More guidance: fewer wrong digits, less variety.
# 4. For $\gamma \ne 0, 1$ guided samples are in general *not* samples of $p(x)\,p(y \mid x)^\gamma$, even with a perfect network.
# 5. Before comparing scales, look at the convention card.
#
# **Where it comes from.** Equation $\eqref{eq-cfg-weight}$: Ho & Salimans, *Classifier-Free Diffusion Guidance*,
# [arXiv:2207.12598](https://arxiv.org/abs/2207.12598), eq. 6. The question what $\gamma$ samples: Bradley & Nakkiran,
# [arXiv:2408.09000](https://arxiv.org/abs/2408.09000). The conventions: see the card. MNIST: LeCun, Cortes, Burges.
