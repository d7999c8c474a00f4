# %% [markdown]
# # 14 · Classifier guidance on digits: who is being convinced?
#
# You have a model that draws digits and was never told their names, and a classifier that knows them. So let the
# classifier push each noisy picture towards the name you want. Turn the push up, and the classifier is all but
# sure: "a seven". Do you believe it? And if it fails: was the push too weak, or was it no push towards a seven at all?
#
# **After this chapter you can**
# * steer a network without labels by a classifier, and say what it costs if that only knows clean pictures;
# * test how *long* a classifier's gradient should be, from its cross-entropy alone;
# * estimate how far it points the right way, though nobody knows the right way;
# * say whose word counts when guided pictures are judged.
#
# **You need** [chapter 11](11_classifier_free_guidance.ipynb#two-guesses-are-two-scores), where a difference of guesses is
# a gradient, [what a label is worth in nats](13_training.ipynb#counted-in-nats), and gradients in PyTorch. ([Chapter 12](12_when_the_classifier_only_knows_clean_data.ipynb) has the theory of clean classifiers.)
#
# *28 minutes to read, 24 more for Deeper, 25 seconds to run, on a laptop, without a GPU or a network connection.*

# %%
import math

import torch
from torch.nn.functional import cross_entropy

from difflesson import exercises, guidance, kernels, plane, plotting
from difflesson.denoiser import network_denoiser
from difflesson.digits import checkpoints, metrics, runs, sampling
from difflesson.digits.witnesses import (
    PIXEL_VARIANCE,
    agreement,
    clean_verdict,
    scaled_slope,
    truthfulness,
)
from difflesson.divergence import mixture_nodes
from difflesson.metrics import wasserstein
from difflesson.samplers import draw, time_grid

torch.set_num_threads(1)

# %% [markdown]
# ## One steers, another looks on
#
# Four networks. The *pocket* network of [chapter 13](13_training.ipynb) guesses noise; we use its half that is not told a label.
# `guide` is a classifier that was trained on digits with all amounts of noise. `clean` is a small one that has only
# seen clean digits, like one that you would download. And `judge`, another classifier of clean digits, only looks on.

# %%
names = ("pocket", "guide", "clean", "judge")
network, guide, clean, judge = (checkpoints.load(name).network for name in names)
schedule = network.schedule
untold = network_denoiser(network, schedule)
wanted = torch.arange(16) % 10


def seeded(number):
    return torch.Generator().manual_seed(number)


def drawn(gradient, gamma):
    """A digit for each label in `wanted`, by 16 steps of DDPM; the noise is the same each time."""
    start, times = torch.randn(16, 1, 28, 28, generator=seeded(1)), sampling.digit_times(16, schedule)
    pushed = guidance.tilt(untold, gradient, gamma, schedule)
    return draw(kernels.ddpm(pushed, schedule), start, times, seeded(2))


# %% [markdown]
# `guidance.tilt` subtracts $\gamma\, \sigma_t\, g$ from the guess of the noise, where $g$ is a gradient in the picture
# ([chapter 10](10_general_case.ipynb#only-the-arrow-knows-the-data)). Let `guide` steer, then `clean`, asked about the noisy picture
# as if it were clean. And then `guide` again, its slope drowned in a random error. What one *says* is the mean probability that it gives to the labels asked for.

# %%
by_guide = guidance.gradient(guidance.classifier_log_prob(guide, schedule, wanted))
by_clean = guidance.gradient(clean_verdict(clean, wanted))
once = torch.randn(16, 1, 28, 28, generator=seeded(5))


def drowned(x, t):
    """The guide's slope under a random error of 14 times its squared length, the same in all steps."""
    slope = by_guide(x, t)
    ratio = slope.flatten(1).norm(dim=1) / once.flatten(1).norm(dim=1)
    return slope + 14**0.5 * ratio[:, None, None, None] * once


# %% tags=["hide-input"]
asked_for = {("guide", 1.0): by_guide, ("guide", 4.0): by_guide, ("drowned", 4.0): drowned} | {("clean", gamma): by_clean for gamma in (1.0, 4.0, 16.0)}
sheets = {(who, gamma): drawn(field, gamma) for (who, gamma), field in asked_for.items()}


def word(classifier, images):
    """The mean probability that a classifier gives to the labels wanted."""
    return float(metrics.judged(classifier, images)[1].gather(1, wanted[:, None]).exp().mean())


words = {key: (word(clean if key[0] == "clean" else guide, sheet), word(judge, sheet)) for key, sheet in sheets.items()}

# %% tags=["remove-cell"]
assert len(wanted) == 16 and wanted.tolist() == [*range(10), *range(6)]
assert all(words["guide", gamma][0] > 0.8 and words["guide", gamma][1] > 0.8 for gamma in (1.0, 4.0)) and round(words["guide", 4.0][0], 2) == 0.99
assert words["guide", 4.0][0] > words["guide", 1.0][0] + 0.05 and words["guide", 4.0][1] > words["guide", 1.0][1] + 0.05
assert min(words["drowned", 4.0]) > 0.95
probe, early_time = torch.randn(16, 1, 28, 28, generator=seeded(6)), schedule.time(torch.tensor(-3.0))
assert abs(agreement(drowned(probe, early_time), by_guide(probe, early_time)) - 0.26) < 0.03
assert round(words["clean", 16.0][0], 2) == 0.63 == max(round(words["clean", gamma][0], 2) for gamma in (1.0, 4.0, 16.0))
assert all(words["clean", gamma][1] < 0.55 for gamma in (1.0, 4.0, 16.0)) and 28 * 28 == 784

# %% tags=["hide-input"]
with plotting.style():
    figure, axes = plotting.plt.subplots(2, 3, figsize=(8, 2.8))
    titles = {"guide": "guide steers", "drowned": "guide, drowned in error", "clean": "clean steers"}
    for panel, ((who, gamma), sheet) in zip(axes.flat, sheets.items(), strict=True):
        plotting.show_digits(panel, sheet, columns=8, title=f"{titles[who]}, $\\gamma = {gamma:g}$:\nit says {words[who, gamma][0]:.2f}, the judge {words[who, gamma][1]:.2f}")
    shown = plotting.show(figure, "14_who_is_convinced", alt="Six sheets of sixteen pictures from the same starts. Above, steered by the classifier of noisy digits: at gamma 1 most are the digits zero to nine in turn, at 4 all are, with bolder strokes, and so they are where its slope is drowned in random error, with one of them very grainy. Below, steered by the classifier of clean digits: whatever gamma, most are not what was asked for, and at 16 most are scribbles.")
shown

# %% [markdown]
# *The same sixteen starts; asked for were the labels zero to nine, then zero to five. Above, a classifier that knows noise: the
# more it is heard, the surer it is, and the judge agrees. On the right its slope is drowned in random error: still the digits asked for, some of them grainy. Below, one that knows clean digits only: it convinces itself slowly, the judge less, and the louder it is, the less do they look like digits.*
#
# Two sheets above are what the papers promise; the third is a surprise. Is the lower row the trick of adversarial
# examples, pictures that the steering classifier is sure of, and nobody else? There is some of that. But at these scales it is far from sure itself: it says 0.63 at most.
#
# **What happens.** A classifier is trained to say the right *value*. Guidance uses its *slope*, which nobody trained. In
# 784 dimensions a function can have nearly the right values and slopes that point anywhere. A classifier that was trained on noisy pictures has seen that noise means nothing.
# One that has not, has no reason to be flat there: its slope may be long, and have little to do with sevens. (So we think; what follows is measured.)
#
# So ask two things of a slope: how *long* it is, which $\gamma$ changes, and *where* it points, which $\gamma$ does not. This
# chapter measures both, **without knowing the true slope**. Its answer, on our digits: most labels come out right where a slope *pulls* enough along the true one (`clean` is an exception). Whether the pictures look like digits is another matter, and not one of direction alone:
# the drowned slope points no better than a bad one.
#
# ## How long should it be?
#
# Call the true slope $g = \nabla \log p_t(y \mid x)$. Its length is tied to a cross-entropy. Let $L$ be the best possible one, the mean of $-\log p_t(y \mid x_t)$ over noisy pictures and their labels. As the log signal-to-noise ratio $\lambda = \log(\alpha_t^2 / \sigma_t^2)$ grows, it falls at the rate
#
# $$ \frac{dL}{d\lambda} = -\frac12\, \mathbb E \big\| \sigma_t\, g \big\|^2 . \label{eq-slope-of-doubt} $$
#
# *Why.* The entropy of the label less $L$ is the information that the picture has about its label. By [chapter
# 13](13_training.ipynb#counted-in-nats) this grows with $\lambda$ at the rate $\frac12 \mathbb E \|\hat\varepsilon_c - \hat\varepsilon_u\|^2$, for the best guesses with and without the label. And by [chapter
# 11](11_classifier_free_guidance.ipynb#two-guesses-are-two-scores) $\hat\varepsilon_u - \hat\varepsilon_c = \sigma_t\, g$. $\square$
#
# In words: **where the classifier learns nothing from less noise, the slope is nothing; where it learns much, the slope is long.** On the blobs of chapter 00, where everything is known, both sides agree:

# %%
# [eq-slope-of-doubt]
def least_cross_entropy(mixture, schedule, t):
    """The mean of -log p_t(y | x_t), by quadrature."""
    noisy = mixture.noised(schedule.alpha(t), schedule.sigma(t))
    x, weights = mixture_nodes(noisy, 30)
    log_p = torch.stack([noisy.class_log_prob(x, y) for y in range(2)], 1)
    return -(weights[:, None] * log_p.exp() * log_p).sum()


def mean_square_slope(mixture, schedule, t):
    """The mean of |sigma_t g|^2 over noisy points and their labels."""
    noisy = mixture.noised(schedule.alpha(t), schedule.sigma(t))
    x, weights = mixture_nodes(noisy, 30)
    each = [noisy.class_log_prob(x, y).exp() * noisy.class_gradient(x, y).square().sum(1)
            for y in range(2)]  # fmt: skip
    return schedule.sigma(t) ** 2 * (weights @ sum(each))


# %%
blobs = plane.four_blobs()
for level in (-2.0, 0.0, 2.0):
    below, here, above = (schedule.time(torch.tensor(level + d).double()) for d in (-0.01, 0.0, 0.01))
    above, below = (least_cross_entropy(blobs, schedule, t) for t in (above, below))
    rate = (above - below) / 0.02
    half = mean_square_slope(blobs, schedule, here) / 2
    print(f"log-SNR {level:2.0f}: dL / d log-SNR = {rate:.5f}, minus half the mean square {-half:.5f}")
    assert abs(rate + half) < 1e-4

# %% [markdown]
# So there is a *budget*. From nothing but noise to a clean digit, $L$ falls from at most $\log 10 = 2.30$, for ten labels, and never below 0. Half the mean square of $\sigma_t\, g$, summed over $\lambda$, cannot be more. Whatever spends more is not the true slope.
#
# Four ways to get a slope out of a classifier:
#
# * **noisy**: ask `guide` at the noisy picture, as above;
# * **clean**: ask `clean` at the noisy picture;
# * **through**: ask `clean` about the denoiser's guess $\hat x_0(x)$ of the clean picture, and differentiate through the denoiser: $(\partial \hat x_0 / \partial x)^\top\, \nabla \log p_o(y \mid \hat x_0)$, with $p_o$ for `clean` (DPS, [Chung et al. (2023)](https://arxiv.org/abs/2209.14687));
# * **scaled**: the same with one number for $\partial \hat x_0 / \partial x$, so without that backward pass ([Deeper](#deeper-the-number-that-stands-for-a-derivative) has the number).
#
# A fifth way needs no classifier: the **difference** $(\hat\varepsilon_u - \hat\varepsilon_c) / \sigma_t$ of a network that knows labels. We ask two: `denoiser` (**large**), and `pocket_p50` (**half**: half of its labels were hidden), which learned from digits and not from another network.
#
# `benchmarks/digits_classifier.py` asked all about test digits of MNIST with noise, each for its own label; its rows ship. Here is what each spends, in nats (chapter 13 summed further towards the data, and found more):

# %% tags=["hide-input"]
rows = runs.rows("classifier")
asked = {row["log_snr"]: row for row in sorted(runs.pick(rows, part="witness"), key=lambda row: row["log_snr"])}
levels = list(asked)
FIELDS = ("noisy", "clean", "through", "scaled", "large", "half")

grid = torch.tensor(levels).double()
lengths = {name: torch.tensor([asked[level][f"length_{name}"] for level in levels]).double() for name in FIELDS}
squares = {name: length.square() / 2 for name, length in lengths.items()}
# between two levels the square is taken to be exponential in the log-SNR
spent = {name: float(((u[1:] - u[:-1]) / (u[1:] / u[:-1]).log() * (grid[1:] - grid[:-1])).sum()) for name, u in squares.items()}
losses = torch.tensor([asked[level]["cross_entropy"] for level in levels]).double()
print(f"the budget: log 10 = {math.log(10):.2f} nats; {asked[0.0]['count']} digits at each of {len(levels)} noise levels, log-SNR {min(levels):g} to {max(levels):g}")
for name in FIELDS:
    print(f"{name:>8} spends {spent[name]:8.2f} nats")
print(f"   guide's cross-entropy falls by {float(losses[0] - losses[-1]):.2f} nats")

# %% tags=["remove-cell"]
assert 1.02 < spent["noisy"] / math.log(10) < 1.2 and abs(float(losses[0] - losses[-1]) - math.log(10)) < 0.05
assert spent["clean"] > 10 * math.log(10) and spent["through"] > 10 * math.log(10) and spent["scaled"] < 0.1 * math.log(10)
assert spent["large"] > 1.5 * math.log(10) and spent["half"] > 1.5 * math.log(10)
for u, all_spent in ((squares[name], spent[name]) for name in ("large", "half")):
    pieces = (u[1:] - u[:-1]) / (u[1:] / u[:-1]).log() * (grid[1:] - grid[:-1])
    late = float(pieces[6:].sum() - losses[6] + losses[-1])
    assert levels[6] == -1.0 and late > 0.55 * (all_spent - float(losses[0] - losses[-1]))

# %% [markdown]
# The noisy classifier overdraws a little: by a tenth, with smooth curves between the levels (in the tests). (Its cross-entropy falls by nearly all there is. We let it stand for $L$ below, though at a single level it may fall faster or slower.) Asked at the noisy picture, or through the guess, `clean` spends more than ten times the budget; scaled, less than a tenth. And the two differences overdraw as well, mostly at little noise.
#
# ## Where does it point? Ask three witnesses
#
# Nobody knows $g$. But suppose three witnesses estimate it independently. Where two agree and the third does not, the third is probably wrong. Under one assumption that becomes exact. Measure how far two estimates $a$ and $b$ agree by their cosine, taken over all pictures at once:
#
# $$ \rho_{ab} = \frac{\mathbb E[a \cdot b]}{\sqrt{\mathbb E \|a\|^2\; \mathbb E \|b\|^2}} . \label{eq-agreement} $$
#
# With the truth for $b$, call it the *truthfulness* $\rho_a$ of $a$ (not the noise of a sampler). It is what no scale can mend: of all multiples of $a$ the best one leaves
#
# $$ \min_\gamma\; \frac{\mathbb E \|\gamma\, a - g\|^2}{\mathbb E \|g\|^2} = 1 - \rho_a^2 . \label{eq-what-no-scale-mends} $$
#
# (A parabola in $\gamma$, lowest at $\gamma = \mathbb E[a \cdot g] / \mathbb E \|a\|^2$.)
#
# Now write each estimate as a multiple of the truth plus an error: $a = h_a\, g + e_a$, with $h_a$ such that $\mathbb E[e_a \cdot g] = 0$. *Suppose that the errors of different witnesses have nothing to do with each other:* $\mathbb E[e_a \cdot e_b] = 0$. Then $\mathbb E[a \cdot g] = h_a\, \mathbb E\|g\|^2$ and $\mathbb E[a \cdot b] = h_a h_b\, \mathbb E\|g\|^2$, so $\rho_a = h_a \sqrt{\mathbb E\|g\|^2 / \mathbb E\|a\|^2}$ and $\rho_{ab} = \rho_a \rho_b$. Of three such products one can solve for the factors (if no witness points away from the truth, for a root has no sign):
#
# $$ \rho_a = \sqrt{\frac{\rho_{ab}\; \rho_{ac}}{\rho_{bc}}} . \label{eq-three-witnesses} $$

# %%
# [eq-agreement] [eq-what-no-scale-mends]
def agree(a, b):
    """The cosine of two fields (N, ...), over all points at once."""
    return (a * b).sum() / (a.square().sum() * b.square().sum()).sqrt()


def what_no_scale_mends(a, g):
    """The share of g that is left by the best multiple of a."""
    best = (a * g).sum() / a.square().sum()
    return (best * a - g).square().sum() / g.square().sum()


# %%
# [eq-three-witnesses]
def one_of_three(a, b, c):
    """The truthfulness of a, from how the three agree."""
    return (agree(a, b) * agree(a, c) / agree(b, c)).sqrt()


# %%
t = schedule.time(torch.tensor(-1.0).double())
noisy_blobs = blobs.noised(schedule.alpha(t), schedule.sigma(t))
points, owner = noisy_blobs.sample(6000, seeded(6))
ones = points[owner == 1]
g = noisy_blobs.class_gradient(ones, 1)
random = [torch.randn(g.shape, generator=seeded(k)).double() for k in (7, 8, 9)]
trio = [1 * g + 0.5 * random[0], 3 * g + 2.0 * random[1], 0.5 * g + 0.9 * random[2]]
for k, a in enumerate(trio):
    b, c = trio[:k] + trio[k + 1 :]
    found, true = one_of_three(a, b, c), agree(a, g)
    print(f"witness {k}: from the three {found:.3f}, against the truth {true:.3f}")
    torch.testing.assert_close(what_no_scale_mends(a, g), 1 - true**2)
    by_package = truthfulness(agreement(a, b), agreement(a, c), agreement(b, c))
    torch.testing.assert_close(float(found), by_package)
    assert abs(found - true) < 0.03

# %% [markdown]
# Errors that we drew ourselves are uncorrelated. Those of networks need not be: three badly trained classifiers of the blobs find their truthfulness to a tenth or so, worse ones may not at all ([Deeper](#deeper-three-networks-judge-each-other)). So ignore differences of a tenth.
#
# ## The four, on real digits
#
# Who may be a witness? `clean`, `through` and `scaled` ask one classifier, so none of them may tell of another. Witnesses for each of the four are the two differences: they are no classifiers. (Each difference is told by the other one and by `noisy`.)
#
# One more number follows: $h_a = \rho_a \sqrt{\mathbb E\|a\|^2 / \mathbb E\|g\|^2}$, how far $a$ pulls along the truth. Call $\gamma\, h_a$ the *pull*.

# %% tags=["hide-input"]
def rho(a, b, level):
    """The agreement of two estimates in the shipped rows."""
    a, b = sorted((a, b), key=FIELDS.index)
    return asked[level][f"{a}~{b}"]


def told_by(a, b, c, level):
    """The truthfulness of a at this noise level, told by b and c."""
    return truthfulness(*(max(rho(*pair, level), 1e-4) for pair in ((a, b), (a, c), (b, c))))


early = [level for level in levels if level <= 0]
told = {name: [told_by(name, "large", "half", level) for level in early] for name in FIELDS[:4]}
told |= {name: [told_by(name, other, "noisy", level) for level in early] for name, other in (("large", "half"), ("half", "large"))}
true_length = (-2 * (losses[1:] - losses[:-1]) / (grid[1:] - grid[:-1])).clamp_min(0).sqrt()
at, here = early.index(-3.0), levels.index(-3.0)
true_here = float(true_length[here - 1 : here + 1].mean())
pull = {name: told[name][at] * float(lengths[name][here]) / true_here for name in FIELDS}
print(f"log-SNR -3, true length about {true_here:.1f}")
print("            length   truthfulness   share that no scale mends   pull at gamma 1")
for name in FIELDS:
    print(f"{name:>10} {float(lengths[name][here]):7.2f} {told[name][at]:14.2f} {1 - told[name][at] ** 2:27.2f} {pull[name]:17.2f}")

# %% tags=["remove-cell"]
three = [levels.index(level) for level in (-4.0, -3.0, -2.0)]
assert all(abs(float(lengths["noisy"][k] / ((true_length[k - 1] + true_length[k]) / 2)) - 1) < 0.3 for k in three)
assert all(lengths["through"][k] > 3 * lengths["noisy"][k] and lengths["scaled"][k] < lengths["noisy"][k] / 3 for k in three)
assert all(lengths["clean"][levels.index(level)] > 2 * lengths["noisy"][levels.index(level)] for level in levels[:9])
right_lengths = (true_length[:5] + true_length[1:6]) / 2
assert levels[1] == -6.0 and all(bool((lengths[n][1:6] / right_lengths - 1).abs().max() < 0.33) for n in ("noisy", "large", "half"))
assert bool((lengths["noisy"][1:6] / right_lengths - 1).abs().max() < 0.13)
assert here == int(((losses[:-1] - losses[1:]) / (grid[1:] - grid[:-1])).argmax())
assert max(abs(rho("clean", other, level)) for other in FIELDS if other != "clean" for level in early) < 0.1
assert all(min(told["large"][k], told["half"][k]) > told["noisy"][k] + 0.1 for k in range(at + 1))
for k, level in enumerate(early):
    if -6 <= level <= -1:
        assert told["noisy"][k] > told["through"][k] + 0.1 > told["scaled"][k] + 0.15 > told["clean"][k] + 0.25
assert 2.5 < pull["through"] < 3
assert max(told["clean"][:5]) < 0.1 and 0.6 < told["noisy"][at] < 0.9 and 0.35 < told["through"][at] < 0.6 and 0.15 < told["scaled"][at] < 0.4
assert 0.3 < 1 - told["noisy"][at] ** 2 < 0.5
assert 0.75 < 1 - told["through"][at] ** 2 < 0.85 and 0.1 < lengths["scaled"][levels.index(-3.0)] / lengths["noisy"][levels.index(-3.0)] < 0.35
assert all(rho("large", "half", low) > rho("large", "half", high) for low, high in zip(levels[2:9], levels[3:10], strict=True))
assert min(told["large"][: at + 1]) > 0.85 and all(lengths[n][levels.index(2.0)] > 4 * lengths["noisy"][levels.index(2.0)] for n in ("large", "half"))

# %% tags=["hide-input"]
look = {"noisy": ("guided", "-"), "clean": ("guided", ":"), "through": ("other", "-"), "scaled": ("other", ":"), "large": ("conditional", "-"), "half": ("conditional", ":")}
names = {"noisy": "noisy", "clean": "clean", "through": "through", "scaled": "scaled", "large": "difference, large", "half": "difference, half"}
with plotting.style():
    figure, axes = plotting.plt.subplots(1, 2, figsize=(8, 3.7))
    middle = (grid[1:] + grid[:-1]) / 2
    axes[0].plot(middle, true_length, "--", color=plotting.COLOURS["truth"], linewidth=1.6, zorder=5)
    for name, (colour, dash) in look.items():
        axes[0].plot(levels, lengths[name], dash, color=plotting.COLOURS[colour], marker="o", markersize=3, zorder=4 if name == "noisy" else 2)
        axes[1].plot(early, told[name], dash, color=plotting.COLOURS[colour], marker="o", markersize=3)
    axes[0].set(yscale="log", ylim=(0.008, 12), xlabel="log-SNR (noise on the left)", title="length of $\\sigma_t\\, g$, root mean square")
    axes[1].set(ylim=(-0.03, 1.03), xlim=(-8.3, 0.4), xlabel="log-SNR (noise on the left)", title="truthfulness, told by two others")
    for name, (x_text, y_text) in {"noisy": (-6.6, 0.16), "clean": (-7.9, 3.2), "through": (-3.9, 8.0), "scaled": (-6.2, 0.06), "large": (1.4, 1.15)}.items():
        label = "differences" if name == "large" else name
        axes[0].text(x_text, y_text, label, color=plotting.COLOURS[look[name][0]])
    axes[0].text(-5.6, 0.014, "dashed: from the fall\nof the cross-entropy", color=plotting.COLOURS["truth"])
    for name, (x_text, y_text) in {"noisy": (-6.6, 0.77), "clean": (-7.9, 0.04), "through": (-7.9, 0.47), "scaled": (-7.9, 0.24), "large": (-2.4, 0.9), "half": (-4.8, 0.62)}.items():
        axes[1].text(x_text, y_text, names[name], color=plotting.COLOURS[look[name][0]])
    assert [name for name, (_, dash) in look.items() if dash == ":"] == ["clean", "scaled", "half"]
    shown = plotting.show(figure, "14_length_and_truth", alt="Left: lengths of six estimates of the slope over log-SNR, on a logarithmic axis, and dashed the length that follows from the fall of the cross-entropy, a hump between minus three and minus two. The noisy classifier follows the hump. Clean asked at noisy pictures is far above it up to one, through the guess far above it on the noisy side, scaled far below; at four these three are near it. The differences follow it on the noisy side and stay high where it has fallen. Right: truthfulness up to log-SNR 0. The differences start near one and fall to a half; the noisy classifier is between two thirds and four fifths until minus two, and falls to a third; through the guess is about a half, at the end a third; scaled a quarter; clean near zero.")
shown

# %% [markdown]
# *Left: how long each estimate is, and how long the true slope should be by $\eqref{eq-slope-of-doubt}$ (dashed, from the cross-entropy of `guide`). Dotted: `clean`, `scaled` and half. Right: how far each points the right way, by $\eqref{eq-three-witnesses}$, where there is something to point to. To the left of log-SNR $-1$ the noisy classifier and the differences have the right length within a third; of the classifiers the noisy one points best.*
#
# The table, and each pull below, stands at log-SNR $-3$, where the steepest fall begins.
#
# * **clean** is too long, at most levels several times, *and* nearly at right angles to all others (up to log-SNR 0).
# * **through** has a cosine of about a half, and pulls nearly three times too hard.
# * **scaled** has a cosine of a quarter, at a quarter of the length: it hardly pulls.
# * **noisy** has nearly the right length and pulls about right. Still, two fifths of the square of $g$ (a quarter, by other witnesses) are such that no scale mends it. A cross-entropy need not show that ([Deeper](#deeper-the-right-values-and-any-slope-you-like)).
# * The **differences** point best until log-SNR $-3$, at most as well as told here. To the right they stay long where nothing is left to say: there they spent most of what was too much.
#
# The two differences come from two trainings of one kind of network on the same digits. If they share errors, against the assumption, $\rho_{bc}$ is too large: the four look worse than they are, and the differences better. Other witnesses ([Deeper](#deeper-what-shared-errors-do)) find the noisy classifier better, and the same order of `through`, `scaled` and `clean`.
#
# ## What the samples care about
#
# The same benchmark drew digits at several scales. *Right* is the share whose label the judge finds the likeliest; the digit-FID is chapter 00's distance from real digits (small is good). Here are both over the pull ([Deeper](#deeper-every-row-and-a-larger-network) has the rows):

# %% tags=["hide-input"]
steered = {(row["method"], row["gamma"]): row for row in runs.pick(rows, part="steer")}
controls = {(row["method"], row["gamma"]): row for row in runs.pick(rows, part="control")}
with plotting.style():
    figure, axes = plotting.plt.subplots(1, 2, figsize=(8, 3.5))
    for panel, key in zip(axes, ("accuracy", "digit_fid"), strict=True):
        for method in FIELDS[:4]:
            scales = [gamma for name, gamma in steered if name == method]
            values, errors = ([steered[method, gamma][column] for gamma in scales] for column in (key, f"{key}_error"))
            colour, dash = plotting.COLOURS[look[method][0]], look[method][1]
            panel.errorbar([gamma * pull[method] for gamma in scales], values, errors, linestyle=dash, color=colour, marker="o", markersize=3)
        for kind in ("fresh", "fixed"):
            panel.plot(4 * pull["noisy"], controls[kind, 4.0][key], "x", color=plotting.COLOURS["guided"], markersize=9)
        panel.axhline(controls["real", 1.0][key], color=plotting.COLOURS["truth"], linestyle="--", linewidth=1)
        panel.axhline(controls["free", 0.0][key], color=plotting.COLOURS["unconditional"], linewidth=1)
        panel.set(xscale="log", xlim=(0.055, 60), xticks=[0.1, 1, 10], xticklabels=["0.1", "1", "10"], xlabel="pull $\\gamma\\, h_a$ at log-SNR $-3$ (times the truth)")
    axes[0].set(ylim=(0, 1.06), title="right")
    axes[1].set(yscale="log", ylim=(0.09, 12), yticks=[0.1, 0.3, 1, 3, 10], yticklabels=["0.1", "0.3", "1", "3", "10"], title="digit-FID")
    for text, x_text, y_text, colour in [("noisy", 0.34, 0.8, "guided"), ("through", 14.0, 0.78, "other"), ("scaled", 0.08, 0.45, "other"), ("clean", 1.7, 0.37, "guided"), ("nobody steers", 5.0, 0.11, "unconditional")]:
        axes[0].text(x_text, y_text, text, color=plotting.COLOURS[colour])
    for text, x_text, y_text, colour in [("noisy", 0.48, 0.55, "guided"), ("noisy, with\nrandom error", 4.6, 0.3, "guided"), ("through", 14.0, 0.85, "other"), ("scaled", 0.34, 2.4, "other"), ("clean", 0.12, 5.8, "guided"), ("nobody steers", 8.0, 1.75, "unconditional"), ("real digits", 0.065, 0.125, "truth")]:
        axes[1].text(x_text, y_text, text, color=plotting.COLOURS[colour])
    shown = plotting.show(figure, "14_pull_and_distance", alt="Two panels over the pull, on a logarithmic axis. Left, the share of right digits: the curves of noisy, through and scaled rise together, from below a half to above four fifths; through then stays below nine tenths; clean stays below two fifths. Right, the digit-FID: noisy falls nearly to that of real digits, then rises a little, and two crosses, noisy with random error, lie little above it; through falls at best to little more than half of that of nobody steering, scaled stays near it or above, clean rises far above.")
shown

# %% [markdown]
# *Left: the share of right digits rises with the pull, for three ways of four; `through` stops below nine tenths. Right: at one pull the FIDs differ several times. Crosses: the noisy classifier with so much random error that it points no better than `scaled`.*

# %% tags=["remove-cell"]
least_fid = {method: min(row["digit_fid"] for (name, _), row in steered.items() if name == method) for method in FIELDS[:4]}
alone, plain = controls["free", 0.0], steered["noisy", 4.0]
for (method, gamma), row in steered.items():
    assert method == "clean" or (row["accuracy"] < 0.6 if gamma * pull[method] < 0.5 else row["accuracy"] > 0.6)
assert steered["clean", 16.0]["accuracy"] < 0.6 and 16 * pull["clean"] > 0.7
assert least_fid["noisy"] < 0.5 * min(least_fid[name] for name in ("through", "scaled", "clean")) and least_fid["clean"] > alone["digit_fid"] + 0.3
assert steered["clean", 16.0]["digit_fid"] > 3 * alone["digit_fid"] and plain["digit_fid"] < 0.5 * steered["noisy", 1.0]["digit_fid"]
assert steered["noisy", 1.0]["accuracy"] < 0.85 and steered["scaled", 32.0]["accuracy"] > 0.85 and steered["scaled", 32.0]["digit_fid"] > 3 * plain["digit_fid"]
assert steered["through", 0.1]["accuracy"] < 0.5 and steered["through", 0.1]["digit_fid"] > 1.3
assert all(steered["clean", low]["digit_fid"] + 1 < steered["clean", high]["digit_fid"] for low, high in ((1.0, 4.0), (4.0, 16.0)))
for method in ("noisy", "through", "scaled"):
    shares = [row["accuracy"] for (name, _), row in steered.items() if name == method]
    assert all(high > low - 0.01 for low, high in zip(shares, shares[1:], strict=False)) and max(shares) > 0.85
    assert (max(shares) < 0.9) == (method == "through")
assert steered["scaled", 32.0]["digit_fid"] > 4 * steered["noisy", 2.0]["digit_fid"] and 0.7 < 16 * pull["scaled"] / pull["noisy"] < 1.4
assert all(abs(told["scaled"][at] - 0.26) < 0.05 and controls[kind, 4.0]["digit_fid"] < plain["digit_fid"] + 0.25 and controls[kind, 4.0]["accuracy"] > 0.9 for kind in ("fixed", "fresh"))
assert abs(0.26**-2 - 1 - 14) < 0.5 and controls["free", 1.0]["accuracy"] > steered["noisy", 1.0]["accuracy"]
assert all(0.26 * good < poor for good, poor in zip(told["noisy"], told["scaled"], strict=True))
assert 0.45 < 32 * lengths["scaled"][here] / (4 * lengths["noisy"][here] * 15**0.5) < 0.55

# %% [markdown]
# **Right** goes with the pull: below a half fewer than three digits in five are right, above it more. So `scaled` is right as often as others once $\gamma$ is 32. And the noisy classifier does better above 1. So it was on ImageNet: a network without labels had, in table 4 of [Dhariwal & Nichol (2021)](https://arxiv.org/abs/2105.05233), an FID of 26.21 unguided, 33.03 at the scale 1, and 12.00 at 10; one that hears the label had 10.94 by itself. The exception is `clean`, whose pull rests on a cosine below the tenth to ignore.
#
# The **FID** goes with something else. `scaled` at its best pull is right, and far from real digits; the noisy classifier is near them. Is it the direction? Try to refute it, with the drowned slope of the opening. Where the square of a random error is 14 times that of the slope, the cosine with what was there falls to about a quarter, and the pull stays what it was. These are the crosses, and here are their numbers, at $\gamma = 4$:

# %% tags=["hide-input"]
gamma = 4.0
for kind, row in {"noisy": steered["noisy", gamma], "error, new in each step": controls["fresh", gamma], "error, the same in all": controls["fixed", gamma], "scaled, gamma 32": steered["scaled", 32.0]}.items():
    print(f"{kind:>24}: right {row['accuracy']:.3f}±{row['accuracy_error']:.3f}, FID {row['digit_fid']:.2f}±{row['digit_fid_error']:.2f}")

# %% [markdown]
# **A slope that is nearly all random error still steers well**, even where the error is the same in all sixteen steps. It costs something. The error of `scaled` at $\gamma = 32$, of the same cosine and at the level of the table half as long, costs far more. So truthfulness says what no scale can mend, and *not* how much harm the rest does. A random error looks like noise, and removing noise is what the denoiser is for. What `scaled` and `clean` add depends on the picture, and goes wherever a classifier that never saw noise is fooled. (These two sentences are our reading. What the control shows is that the cosine alone is not the cause.)
#
# ## Pitfall: ask the one who steers
#
# Does the steering classifier convince itself alone? Measure the *doubt*, here the mean of $1 - p(\text{label})$ (chapter 00's was an entropy). Two classifiers differ on any pictures. So take two bystanders, and pictures that no classifier steered (last rows). If the one who steers differs from both, more than they from each other, and more than without steering, it is the steering.

# %% tags=["hide-input"]
def bystanders(row, who):
    """The doubt of who steers, and those of the two who look on."""
    return [(row[f"doubt_{name}"], row[f"doubt_{name}_error"]) for name in ([who] + [n for n in ("guide", "clean", "judge") if n != who])]


def told_doubts(name, parts):
    return f"{name:>25}" + "".join(f"{value:8.3f}±{error:.3f}" for value, error in parts)


print(f"{'':25}{'who steers':>14}{'the other':>14}{'the judge':>14}")
doubts = {}
for who, keys in (("guide", [("noisy", 1.0), ("noisy", 2.0), ("noisy", 4.0)]), ("clean", [("through", 4.0), ("scaled", 16.0), ("scaled", 32.0), ("clean", 16.0)])):
    for key in keys:
        doubts[key] = bystanders(steered[key], who)
        print(told_doubts(f"{who}, {key[0]}, gamma {key[1]:2g}", doubts[key]))

print(f"{'nobody steers':>25}{'guide':>14}{'clean':>14}{'the judge':>14}")
for gamma in (1.0, 2.0):
    print(told_doubts(f"gamma {gamma:2g}", bystanders(controls["free", gamma], "guide")))

# %% tags=["remove-cell"]
for key, most in {("through", 4.0): 0.75, ("scaled", 16.0): 0.65, ("scaled", 32.0): 0.65, ("clean", 16.0): 0.85}.items():
    (own, _), (first, _), (second, _) = doubts[key]
    assert own < most * min(first, second) and abs(first - second) < 0.8 * (min(first, second) - own)
for key in (("noisy", 1.0), ("noisy", 2.0), ("noisy", 4.0)):
    (own, _), (first, _), (second, _) = doubts[key]
    assert 0.74 * max(first, second) < own < min(first, second)

# %% [markdown]
# Where `clean` steers, it has less doubt than either bystander, and they are nearer to each other than to it. That gap is the adversarial example of the opening. Where the noisy classifier steers the gap is small: at these scales it doubts less than both who look on, by a quarter at most.
#
# ## In practice
#
# Measured here, on digits and with these networks:
#
# | if you | do | because |
# |---|---|---|
# | have labelled data and a network without labels | train a classifier on *noisy* data at all noise levels, and ask it at $x_t$ | nearly the right length, best direction of the four, by far the least FID |
# | have only a classifier of clean pictures | ask it about the denoiser's guess, through the denoiser ([chapter 12's](12_when_the_classifier_only_knows_clean_data.ipynb#in-practice) average over the cloud was not tried on digits) | it pulls without a large scale; its FID stayed far above the noisy one's |
# | cannot afford that backward pass | one number for the derivative, and a large scale | labels came right, the FID stayed high; asked at the noisy picture, `clean` gave scribbles |
# | look for the scale | begin with a pull of one to four where the cross-entropy falls fast | right labels went with the pull, but for `clean` |
# | train the classifier yourself | compare half the mean square of $\sigma_t g$ with the fall of its cross-entropy, level by level | a slope that spends more is not the true one |
# | report results | ask two classifiers that never steered, and a distance | who steers may doubt less than all others, and a large scale convinces the judge, too |
#
# ## Exercises

# %% [markdown]
# ### Exercise 14.1 (easy): the length, from a training log
#
# At log-SNR `low` a perfect classifier has the cross-entropy `loss_low`, at `high` it has `loss_high`. Return the root mean square of $\|\sigma_t\, g\|$ between the two levels, as one number.
#
# <details><summary>Hint</summary>
#
# $\eqref{eq-slope-of-doubt}$, with a difference for the derivative. The length is not its square.
#
# </details>

# %% tags=["exercise"]
def length_between(loss_low, loss_high, low, high):
    ### BEGIN SOLUTION
    return math.sqrt(2 * (loss_low - loss_high) / (high - low))
    ### END SOLUTION


# %%
exercises.check("14.1", length_between)

# %% [markdown]
# ### Exercise 14.2 (medium): the scale that you should have used
#
# Three estimates of a slope, (N, d) each, with errors that have nothing to do with each other; the root mean square length of the truth is known to be `length`. Return the factor by which `a` must be multiplied to come nearest to the truth. (For the samples that need not be the best scale: [Deeper](#deeper-every-row-and-a-larger-network).)
#
# <details><summary>Hint</summary>
#
# The lowest point of the parabola under $\eqref{eq-what-no-scale-mends}$, with $\mathbb E[a \cdot g] = \rho_a \sqrt{\mathbb E \|a\|^2\, \mathbb E \|g\|^2}$. And $\rho_a$ from $\eqref{eq-three-witnesses}$.
#
# </details>

# %% tags=["exercise"]
def right_scale(a, b, c, length):
    ### BEGIN SOLUTION
    def product(u, v):
        return (u * v).sum(1).mean()

    size = product(a, a).sqrt()
    squared = product(a, b) * product(a, c) / (product(b, c) * product(a, a))
    return squared.sqrt() * length / size
    ### END SOLUTION


# %%
exercises.check("14.2", right_scale)

# %% [markdown]
# ### Exercise 14.3 (hard): a calibrated classifier
#
# A classifier's logits are divided by a temperature $T$ so that its probabilities are right on average: $p_T(y \mid x) \propto e^{\ell_y(x) / T}$. You have the logits (N, K), their slopes (N, K, d), the label `y` (an integer) and `T`. Return the slope of $\log p_T(y \mid x)$, (N, d).
#
# <details><summary>Hint</summary>
#
# Differentiate $\ell_y / T - \log \sum_k e^{\ell_k / T}$. Which softmax weighs the slopes?
#
# </details>

# %% tags=["exercise"]
def calibrated_slope(logits, slopes, y, T):
    ### BEGIN SOLUTION
    weights = (logits / T).softmax(1)
    return (slopes[:, y] - (weights[:, :, None] * slopes).sum(1)) / T
    ### END SOLUTION


# %%
exercises.check("14.3", calibrated_slope)

# %% [markdown]
# ### Exercise 14.4 (research): two witnesses are better than one
#
# You have two estimates of a slope. Their truthfulness is `rho_a` and `rho_b`, they agree by `rho_ab`, and their root mean square lengths are `len_a`, `len_b`; that of the truth is `len_g`. Which weights make $w_a\, a + w_b\, b$ come nearest to the truth, and what share of the truth's mean square is left? Return the three numbers. (Errors may be shared: `rho_ab` need not be the product of the two.)
#
# <details><summary>Hint</summary>
#
# Least squares: two equations in $w_a$ and $w_b$ with $\mathbb E \|a\|^2$, $\mathbb E[a \cdot b]$, $\mathbb E \|b\|^2$ and on the right $\mathbb E[a \cdot g]$, $\mathbb E[b \cdot g]$. Divide each vector by its length first.
#
# </details>

# %% tags=["exercise"]
def best_of_two(rho_a, rho_b, rho_ab, len_a, len_b, len_g):
    ### BEGIN SOLUTION
    unique = 1 - rho_ab**2
    w_a, w_b = (rho_a - rho_ab * rho_b) / unique, (rho_b - rho_ab * rho_a) / unique
    return w_a * len_g / len_a, w_b * len_g / len_b, 1 - w_a * rho_a - w_b * rho_b
    ### END SOLUTION


# %%
exercises.check("14.4", best_of_two)

# %% [markdown]
# ## Remember
#
# 1. The best possible cross-entropy falls by half the mean square of $\sigma_t g$ for each unit of log-SNR (exact). So the cross-entropy of a good classifier at each noise level says how long its slope should be. Ten equally frequent labels have $\log 10 = 2.30$ nats to give.
# 2. The cosine of an estimate with the true slope, squared, is the share that some scale can reach (exact). Three estimates with unrelated errors tell each other's cosine with the truth (exact if so; off by about a tenth for badly trained classifiers of our blobs).
# 3. On our digits, at log-SNR $-3$, the noisy classifier has nearly the right length and, by three witnesses, a cosine of seven to nine tenths. The clean one has a half through the guess, a quarter without backpropagation, next to none at the noisy picture.
# 4. At first, right labels go with the pull $\gamma h_a$, on our digits, but for `clean`. The cosine alone does not make the FID: a random error that lowered it to about a quarter did far less harm than the error of a clean classifier.
# 5. Do not ask the one who steers. Ask two who do not: where the clean classifier steered, it had less doubt than both; where the noisy one did, a little less.
#
# **Where it comes from.** Classifier guidance: [Dhariwal & Nichol (2021)](https://arxiv.org/abs/2105.05233). The clean classifier at the guess: [Chung et al. (2023)](https://arxiv.org/abs/2209.14687), [Bansal et al. (2023)](https://arxiv.org/abs/2302.07121). That information grows with the mean square: [Guo, Shamai & Verdú (2005)](https://arxiv.org/abs/cs/0412108). Judging three by each other, as oceanographers judge satellites: [Stoffelen (1998)](https://doi.org/10.1029/97JC03180).
#
# ## Deeper: the number that stands for a derivative
#
# *For you if you cannot afford the backward pass through the denoiser. It adds the number that `scaled` takes for it.*
#
# If pixels were independent Gaussians of variance $v$, the derivative of the guess would be
#
# $$ \frac{\partial \hat x_0}{\partial x} = \frac{\alpha_t\, v}{\alpha_t^2\, v + \sigma_t^2}\; I. \label{eq-scaled-slope} $$
#
# A clean pixel has variance $v$, the noisy one $\alpha_t^2 v + \sigma_t^2$, and the two the covariance $\alpha_t v$: that is a regression. On MNIST $v = 0.27$.

# %%
# [eq-scaled-slope]
def regression_slope(clean, noisy):
    """The number that predicts a clean pixel best from a noisy one, from pairs (N,)."""
    return ((clean - clean.mean()) * noisy).mean() / noisy.var()


# %%
t = schedule.time(torch.tensor(-1.0).double())
pixel = PIXEL_VARIANCE**0.5 * torch.randn(400_000, generator=seeded(3)).double()
noised = schedule.add_noise(pixel, torch.randn(400_000, generator=seeded(4)).double(), t)
alpha, sigma = schedule.alpha(t), schedule.sigma(t)
compact = alpha * PIXEL_VARIANCE / (alpha**2 * PIXEL_VARIANCE + sigma**2)
print(f"by regression {regression_slope(pixel, noised):.3f}, by the formula {compact:.3f}")
assert abs(regression_slope(pixel, noised) - compact) < 0.003 and round(PIXEL_VARIANCE, 2) == 0.27
x = torch.randn(3, 1, 28, 28, generator=seeded(5))
at_guess = guidance.gradient(clean_verdict(clean, 7))(untold(x, t).x0, t)
by_package = scaled_slope(untold, clean_verdict(clean, 7), schedule)(x, t)
torch.testing.assert_close(by_package, (compact * at_guess).float())

# %% [markdown]
# The regression finds the number; the package multiplies the slope of the verdict at the guess by it. Why even the slope *through* the denoiser is not the true one, [chapter 12](12_when_the_classifier_only_knows_clean_data.ipynb#why-a-slope-at-one-point-or-the-slopes-of-a-cloud) says: its verdict is about one picture where it should be about a cloud.
#
# ## Deeper: three networks judge each other
#
# *For you if you do not trust the assumption. It adds a test where the truth is known.*
#
# Three small classifiers of the noisy blobs, each trained on its own data:

# %%
def trained(seed, count):
    """A classifier of the noisy blobs, from so many examples."""
    x, y = noisy_blobs.sample(count, seeded(seed))
    torch.manual_seed(seed)
    first, second, last = torch.nn.Linear(2, 64), torch.nn.Linear(64, 64), torch.nn.Linear(64, 2)
    net = torch.nn.Sequential(first, torch.nn.SiLU(), second, torch.nn.SiLU(), last)
    draws = seeded(seed)
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(300):
        chosen = torch.randint(count, (256,), generator=draws)
        optimizer.zero_grad()
        cross_entropy(net(x[chosen].float()), y[chosen]).backward()
        optimizer.step()
    return net


# %%
def slope_and_loss(net):
    """Its slope at the noisy points of class 1, and its cross-entropy at all points."""
    slope = guidance.gradient(lambda x, _: net(x).log_softmax(1)[:, 1])(ones.float(), t)
    with torch.no_grad():
        return slope.double(), float(cross_entropy(net(points.float()), owner))


least = float(least_cross_entropy(blobs, schedule, t))
control = {}
print("          cross-entropy   truthfulness")
print("examples    above least   from the three   true")
for count in (300, 1000):
    slopes, loss = zip(*(slope_and_loss(trained(seed, count)) for seed in (1, 2, 3)), strict=True)
    for k, a in enumerate(slopes):
        b, c = slopes[:k] + slopes[k + 1 :]
        control[count, k] = loss[k] - least, float(one_of_three(a, b, c)), float(agree(a, g))
        above, found, true = control[count, k]
        print(f"{count:8d}{above:15.3f}{found:17.2f}{true:7.2f}")

# %% tags=["remove-cell"]
off = {count: max(abs(control[count, k][1] - control[count, k][2]) for k in range(3)) for count in (300, 1000)}
assert off[1000] < 0.06 and 0.04 < off[300] < 0.2 and min(control[1000, k][2] for k in range(3)) > 0.9
assert max(control[300, k][0] for k in range(3)) < 0.08 and min(control[300, k][2] for k in range(3)) < 0.9

# %% [markdown]
# The three find out how good they are without having seen the truth: to a few hundredths where they have learned well, and to a tenth or so, in no reliable order, where they have not. In the tests, three that have seen a hundred examples each may find nothing, but one such beside two good ones is told to a tenth. Note the other half of the lesson: a cross-entropy a few hundredths of a nat above the least, and a slope that is off. The next section shows how far that can go.
#
# ## Deeper: the right values, and any slope you like
#
# *For you if you choose classifiers by their cross-entropy. It adds how little that says, exactly.*
#
# Take the exact classifier of the blobs, with the log-odds $\ell(x)$ of class 1, and put a ripple on it: $\tilde p(x) = 1 / (1 + e^{-\ell(x) - a \sin(k \cdot x)})$. Let $p$ be the exact probability. At each point the divergence (the cross-entropy that it costs) is
#
# $$ \mathrm{KL}(p \,\|\, \tilde p) \approx \frac12\, p\, (1 - p)\; \big(a \sin(k \cdot x)\big)^2, \label{eq-ripple-divergence} $$
#
# whatever the frequency $k$ (the next term is of order $a^3$; and since $p(1-p) \le \frac14$, the log-odds off by $a$ cost at most $a^2 / 8$ nats at any $a$). The slope is
#
# $$ \nabla \log \tilde p = (1 - \tilde p)\, \big( \nabla \ell + a\, k \cos(k \cdot x) \big). \label{eq-ripple-slope} $$
#
# The error of the slope grows with $a |k|$. So at one cross-entropy it may be as large as you like.

# %%
# [eq-ripple-divergence] [eq-ripple-slope]
def ripple_cost(p, x, a, k):
    """The divergence of a rippled classifier from the exact one, to second order in a."""
    return p * (1 - p) / 2 * (a * torch.sin(x @ k)) ** 2


def rippled_slope(log_odds, slope_of_odds, x, a, k):
    """The gradient of the logarithm of the rippled probability of class 1."""
    rippled = torch.sigmoid(log_odds + a * torch.sin(x @ k))
    return (1 - rippled)[:, None] * (slope_of_odds + a * torch.cos(x @ k)[:, None] * k)


# %%
def log_odds_at(x, t):
    noisy = blobs.noised(schedule.alpha(t), schedule.sigma(t))
    return noisy.class_log_prob(x, 1) - noisy.class_log_prob(x, 0)


odds = log_odds_at(points, t)
p, odds_slope = odds.sigmoid(), guidance.gradient(log_odds_at)(points, t)
right_slope = noisy_blobs.class_gradient(points, 1)
direction = torch.tensor([0.6, 0.8]).double()
print("   a   |k|    divergence   predicted   error of the slope / its size   truthfulness")
ripples = {}
for a, size in ((0.1, 2), (0.1, 8), (0.1, 32), (0.2, 8)):
    q = torch.sigmoid(odds + a * torch.sin(points @ (size * direction)))
    cost = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean()
    predicted = ripple_cost(p, points, a, size * direction).mean()
    slope = rippled_slope(odds, odds_slope, points, a, size * direction)
    error = ((slope - right_slope).square().sum() / right_slope.square().sum()).sqrt()
    ripples[a, size] = float(cost), float(error), float(agree(slope, right_slope))
    found = ripples[a, size][2]
    print(f"{a:4.1f}{size:6d}{cost:14.2e}{predicted:12.2e}{error:32.2f}{found:15.2f}")
    assert abs(cost / predicted - 1) < 0.1

# %% tags=["remove-cell"]
costs, off_by = zip(*((c, e) for (a, _), (c, e, _) in ripples.items() if a == 0.1), strict=True)
assert max(costs) < 1.1 * min(costs) and off_by[2] > 12 * off_by[0] and ripples[0.2, 8][0] / ripples[0.1, 8][0] > 3.6
assert ripples[0.1, 32][2] < 0.75 < 0.85 < ripples[0.1, 8][2] and 1.8 < ripples[0.2, 8][1] / ripples[0.1, 8][1] < 2.2
one_rippled = noisy_blobs.class_log_prob(points[:9], 1)
check = rippled_slope(odds[:9], odds_slope[:9], points[:9], 0.0, direction)
torch.testing.assert_close(check, right_slope[:9])

# %% [markdown]
# The first three have one divergence, and errors from a tenth of the slope's length to more than all of it. What rules it out is smoothness: the second derivative of the ripple is $a |k|^2$. If that is at most $M$, the squared error is about $(a|k|)^2 = a \cdot a |k|^2 \le a M$, of the order of the *root* of the divergence. That is the rate of the bound that [Sahu, Banerjee & Wu (2026)](https://arxiv.org/abs/2601.21200) prove for smooth classifiers: a divergence $\epsilon^2$ gives squared errors of order $d\, \epsilon$, up to logarithms. Ripples of one curvature have this order in $\epsilon$.
#
# Does a sampler feel it? With the ripple at each noise level (times $\alpha_t$, since at pure noise no classifier knows anything):

# %%
def with_ripple(a, size):
    def log_prob(x, t):
        ripple = a * schedule.alpha(t) * torch.sin(x @ (size * direction))
        return torch.nn.functional.logsigmoid(log_odds_at(x, t) + ripple)

    return guidance.tilt(blobs.denoiser(schedule), guidance.gradient(log_prob), 1.0, schedule)


class_1, start = blobs.given(1), torch.randn(300, 2, generator=seeded(12), dtype=torch.float64)
target = class_1.sample(300, seeded(13))[0]
fallen = {}
for name, solver in (("DDIM", kernels.ddim), ("DDPM", kernels.ddpm)):
    for size in (0, 8):
        kernel = solver(with_ripple(0.5 if size else 0.0, size), schedule)
        fallen[name, size] = wasserstein(draw(kernel, start, time_grid(40), seeded(14)), target)
        told_of = "a ripple of |k| = 8" if size else "no ripple"
        print(f"{name}, {told_of:>19}: distance W2 to class 1 {fallen[name, size]:.2f}")
print(f"two true samples: {wasserstein(class_1.sample(300, seeded(15))[0], target):.2f}")
assert round(0.5**2 / 8, 2) == 0.03
assert fallen["DDIM", 8] > 1.8 * fallen["DDIM", 0] and fallen["DDPM", 8] < 1.35 * fallen["DDPM", 0]

# %% [markdown]
# The noiseless sampler is thrown far off by a ripple that costs at most $0.5^2 / 8$ nats; the noisy one hardly notices. (Our reading: a noisy sampler is drawn to the density whose slope it follows, at each level, and that is off by the ripple's height only.) In the tests it is so on another mixture; at four times the frequency the noisy one, too, needs more steps. No law; but if your classifier is rough, draw with noise.
#
# ## Deeper: what shared errors do
#
# *For you if your witnesses may share errors. It adds in which direction the answer is then wrong, and a second opinion on the digits.*
#
# Let the errors of two witnesses $b$ and $c$ agree, so that their agreement is $\rho_b \rho_c + s$ instead of $\rho_b \rho_c$. Then $\eqref{eq-three-witnesses}$ answers
#
# $$ \hat\rho_a = \rho_a \sqrt{\frac{\rho_b\, \rho_c}{\rho_b\, \rho_c + s}}, \qquad \hat\rho_b = \rho_b \sqrt{\frac{\rho_b\, \rho_c + s}{\rho_b\, \rho_c}} . \label{eq-shared-errors} $$
#
# For $s > 0$, a witness that shares errors with another looks better than it is, and makes the third look worse. In the main line the differences may share errors: then the four are better than they look there, all by one factor, and the differences are worse. And `through` goes through the pocket network, which had `denoiser` for its teacher: what they share makes it look better than it is.

# %%
# [eq-shared-errors]
def with_shared_errors(rho_a, rho_b, rho_c, s):
    """What three witnesses find for a and for b where the errors of b and c agree by s."""
    apart = rho_b * rho_c
    return rho_a * (apart / (apart + s)) ** 0.5, rho_b * ((apart + s) / apart) ** 0.5


# %%
common = torch.randn(g.shape, generator=seeded(20)).double()
own = [torch.randn(g.shape, generator=seeded(k)).double() for k in (21, 22, 23)]
a, b, c = g + 0.4 * own[0], g + 0.4 * own[1] + 0.3 * common, g + 0.4 * own[2] + 0.3 * common
true_rho = [float(agree(part, g)) for part in (a, b, c)]
s = float(agree(b, c)) - true_rho[1] * true_rho[2]
expected = with_shared_errors(*true_rho, s)
print(f"a: found {one_of_three(a, b, c):.3f}, foretold {expected[0]:.3f}, true {true_rho[0]:.3f}")
print(f"b: found {one_of_three(b, a, c):.3f}, foretold {expected[1]:.3f}, true {true_rho[1]:.3f}")
assert abs(one_of_three(a, b, c) - expected[0]) < 0.03 and abs(one_of_three(b, a, c) - expected[1]) < 0.03

# %% [markdown]
# So ask other witnesses about the digits. As a second opinion, `noisy` takes the place of `large`, and for `noisy` itself `through` does.

# %% tags=["hide-input"]
other_way = {name: [told_by(name, "noisy", "half", level) for level in early] for name in ("clean", "through", "scaled")}
other_way["noisy"] = [told_by("noisy", "through", "half", level) for level in early]
print(f"log-SNR -3{'by the differences':>24}{'second opinion':>20}")
for name in FIELDS[:4]:
    print(f"{name:>10}{told[name][at]:24.2f}{other_way[name][at]:20.2f}")

# %% tags=["remove-cell"]
assert all(other_way["through"][k] > other_way["scaled"][k] > other_way["clean"][k] + 0.1 for k, level in enumerate(early) if -6 <= level <= -1)
assert other_way["noisy"][at] > told["noisy"][at] + 0.03 and 0.15 < 1 - other_way["noisy"][at] ** 2 < 0.4 and all(abs(other_way[name][at] - told[name][at]) < 0.05 for name in FIELDS[1:4])

# %% [markdown]
# The noisy classifier looks better by a tenth, the others the same: how far to trust the last digits of the main line, and a reason to trust its order.
#
# ## Deeper: is the classifier too sure?
#
# *For you if you calibrate. It adds where our noisy classifier is over- or underconfident.*
#
# Dividing the logits by a temperature $T$ makes a classifier's probabilities softer ($T > 1$) or harder. In the rows stands, for each noise level, the temperature at which the cross-entropy of `guide` would be least, and what it would gain. (Exercise 14.3 asks what $T$ does to the slope: it is not only divided by $T$.)

# %%
print("log-SNR   temperature   cross-entropy     gain")
gains = {}
for level in levels:
    gains[level] = asked[level]["cross_entropy"] - asked[level]["least"]
    row = asked[level]
    print(f"{level:7.0f}{row['temperature']:14.2f}{row['cross_entropy']:16.3f}{gains[level]:9.4f}")
assert max(gains.values()) < 0.002
assert all(0.95 < asked[level]["temperature"] < 1.05 for level in (-4.0, -3.0, -2.0))
assert all(asked[level]["temperature"] < 0.9 for level in (1.0, 2.0, 3.0, 4.0))

# %% [markdown]
# Where most is decided it is close to 1, and nowhere would as much as two thousandths of a nat be gained. So what is missing in the direction of this classifier's slope is not a matter of one temperature a level. (At little noise the best temperature is well below 1: there the classifier is right more often than it says.)

# %% [markdown]
# ## Deeper: shift the mean, or change the guess?
#
# *For you if your code adds variance times gradient to the mean, as the first paper on classifier guidance does. It adds what that pays in few steps.*
#
# The mean shift of [chapter 07](07_mean_shift.ipynb) takes DDPM's own variance where another number is exact. [Chapter 10](10_general_case.ipynb#deeper-variance-and-exact-coefficient-with-orders) has the quotient of the two: the share of the push that is paid. Here both ways draw from the same noise, with `guide` and $\gamma = 4$.

# %%
share, apart = {}, {}
for steps in (16, 32, 64):
    times, ways = sampling.digit_times(steps, schedule), []
    k = int((schedule.log_snr(times[:-1]) + 3).abs().argmin())
    alpha_ts, sigma_ts = schedule.transition(times[k], times[k + 1])
    variance = kernels.posterior_variance(schedule, times[k], times[k + 1])
    share[steps] = float(variance * alpha_ts / sigma_ts**2)
    shifted = kernels.shift(kernels.ddpm(untold, schedule), by_guide, 4.0)
    for kernel in (shifted, kernels.ddpm(guidance.tilt(untold, by_guide, 4.0, schedule), schedule)):
        ways.append(draw(kernel, torch.randn(16, 1, 28, 28, generator=seeded(1)), times, seeded(2)))
    apart[steps] = float((ways[0] - ways[1]).square().mean().sqrt())
    level = float(schedule.log_snr(times[k]))
    print(f"{steps:3d} steps: at log-SNR {level:.1f} the shift pays {share[steps]:.2f} of the push; "
          f"the digits differ by {apart[steps]:.2f}")
assert all(1.7 < (1 - share[n]) / (1 - share[2 * n]) < 2.1 for n in (16, 32))
assert apart[16] > 1.4 * apart[32] > 2 * apart[64]

# %% [markdown]
# (The difference is a root mean square; from black to white it is two.) With 16 steps, where most is decided, the shift pays little more than half of the push. What it does not pay falls by about half as the steps double, and the digits of the two ways come together. So a scale that was found with a mean shift in few steps is too large for the other way, and for more steps.
#
# ## Deeper: every row, and a larger network
#
# *For you if you want the numbers behind the figure, or think that the pocket network is to blame. It adds all rows, the scale of least squares, and the same classifier on the large network.*
#
# *Doubt* is the mean of $1 - p(\text{label})$, as the steering classifier says it and as the judge does. Standard errors stand after $\pm$.

# %% tags=["hide-input"]
def line(name, row, pulled=""):
    own = "doubt_clean" if row["method"] in ("clean", "through", "scaled") else "doubt_guide"
    cells = f"{row[own]:.3f}±{row[own + '_error']:.3f}  {row['doubt_judge']:.3f}±{row['doubt_judge_error']:.3f}"
    return f"{name:>22} {pulled:>5}   {cells}   {row['accuracy']:.2f}±{row['accuracy_error']:.2f}   {row['digit_fid']:.2f}±{row['digit_fid_error']:.2f}"


print(f"digits a row: noisy {steered['noisy', 4.0]['count']:,}, others {steered['scaled', 32.0]['count']:,}")
print(f"{'pull':>28}{'doubt: steers':>14}{'judge':>13}{'right':>12}{'FID':>12}")
for (method, gamma), row in steered.items():
    print(line(f"{method}, gamma {gamma:g}", row, f"{gamma * pull[method]:.2f}"))
for (method, gamma), row in controls.items():
    if method in ("real", "free"):
        print(line("real digits" if method == "real" else f"no classifier, gamma {gamma:g}", row))

# %% tags=["remove-cell"]
assert all(row["doubt_guide" if method == "noisy" else "doubt_clean"] < row["doubt_judge"] + 2 * row["doubt_judge_error"] for (method, _), row in steered.items())

# %% [markdown]
# In every row the doubt of the one who steers is smaller than the judge's, or equal within the error.
#
# Nor is the best scale that of least squares. By $\eqref{eq-what-no-scale-mends}$, `through` comes nearest to $g$ at $\gamma = \rho_a^2 / h_a$, below a tenth; at a tenth it is right less than half the time.

# %%
nearest = told["through"][at] ** 2 / pull["through"]
right = steered["through", 0.1]["accuracy"]
print(f"through: nearest to g at gamma = {nearest:.2f}; at gamma = 0.1, right {right:.2f}")
assert nearest < 0.1

# %% [markdown]
# And the larger network?

# %% tags=["hide-input"]
bigger = {row["gamma"]: row for row in runs.pick(rows, part="large")}
print(f"{'':28}{'doubt: steers':>14}{'judge':>13}{'right':>12}{'FID':>12}")
for gamma, row in bigger.items():
    print(line(f"large, gamma {gamma:g}", row))
    print(line(f"pocket, gamma {gamma:g}", steered["noisy", gamma]))
    assert row["digit_fid"] < steered["noisy", gamma]["digit_fid"] + 0.03
assert bigger[4.0]["digit_fid"] < bigger[1.0]["digit_fid"] / 2

# %% [markdown]
# The same classifier, the same two scales: the digits come out as near to real ones, or nearer. Here, too, $\gamma = 4$ is better than 1.
