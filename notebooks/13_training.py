# %% [markdown]
# # 13 · Training: what does the loss tell, and what does it hide?
#
# You train a denoiser of digits. Its loss falls steeply and is flat from then on. Is it done? Between step 1,000 and step
# 2,000 the loss hardly moves, and the digit-FID of its digits halves. You train a larger one, much longer. With a
# label its digits are good; without one their digit-FID is fifteen times as large. The loss has said nothing of either.
#
# **After this chapter you can**
# * say why the loss is flat, and how little of it is the network's;
# * count in *nats* what the label does in a network, and catch one that claims too much;
# * find out whether a network errs more with the label or without it;
# * (Deeper) choose what to predict, how often to hide the label, how long to average, and a better target for the half without the label.
#
# **You need** chapters 00 and 11 and a training loop you have written yourself.
#
# *27 minutes to read, 24 more for Deeper, 15 seconds to run, on a laptop, without a GPU or a network connection.*

# %%
import math

import torch

from difflesson import exercises, information, losses, plane, plotting
from difflesson.denoiser import network_pair
from difflesson.digits import runs
from difflesson.schedule import cosine

torch.set_num_threads(1)


def mean_square(weights, error):
    return weights @ error.square().sum(1)


# %% [markdown]
# ## A flat curve, and two that are hardly two
#
# What was measured of two networks stands in logs that ship with the course. The first is
# small, and somebody looked at it four times. The second is the book's own denoiser, with 1.6 million weights and
# 18,000 steps; one label in ten was hidden from it.

# %% tags=["hide-input"]
small, digits = runs.log("run_v"), runs.log("denoiser")
for step, seen in small["stages"].items():
    loss, report = seen["test_loss"]["0.99"]["told"], seen["digits"]
    print(
        f"step {step:>4}: test loss {loss:.3f}, {report['accuracy']:.0%} of the digits right, digit-FID {report['digit_fid']:.2f}"
    )
told, untold = (digits["test_loss"][name] for name in ("told", "untold"))
print(f"the book's denoiser: test loss {told:.3f} told the label, {untold:.3f} not told;")
near, far = digits["gamma_1_digit_fid"], digits["gamma_0_digit_fid"]
print(f"digit-FID with the label {near:.2f}, without {far:.2f}, {far / near:.0f} times as much")

# %% tags=["remove-cell"]
assert round(digits["parameters"] / 1e6, 1) == 1.6 and digits["steps"] == 18_000
assert len(digits["log_snr"]) == 21 and round(math.log(10), 2) == 2.30

# %% tags=["hide-input"]
grey, blue, orange = (plotting.COLOURS[name] for name in ("unconditional", "conditional", "guided"))
with plotting.style():
    figure, (left, right) = plotting.plt.subplots(1, 2, figsize=(7.2, 2.9), width_ratios=(1.1, 1))
    sheet = plotting.plt.imread(str(runs.folder() / "run_v.png"))[:, :178]
    left.imshow(sheet, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    left.set(xticks=[], yticks=[14, 44, 74, 104], title="the small one, on its way")
    left.set_yticklabels(f"step {step}" for step in small["stages"])
    left.spines[:].set_visible(False)
    right.plot(digits["log_snr"], digits["untold"], color=grey)
    right.plot(digits["log_snr"], digits["told"], color=blue)
    right.text(-9.5, 0.262, "not told the label", color=grey, fontsize=9)
    right.text(-9.5, 0.09, "told the label", color=blue, fontsize=9)
    right.set(
        xlabel="much noise     $\\longleftrightarrow$     little noise", ylabel="test loss", ylim=(0, 0.3), xticks=[]
    )
    right.set_title("the book's denoiser")
    assert sheet.shape[0] == 118 and [line.get_color() for line in right.lines] == [grey, blue]
    shown = plotting.show(
        figure,
        "13_flat",
        alt="Left, six digits at steps 100, 300, 1000 and 2000 of a training run: noise, blurred shapes, digits, and nearly the same digits. Right, the test loss of a trained network over the noise level, without and with the label: at much noise the curve without the label lies higher, at little noise the two cannot be told apart.",
    )
shown

# %% [markdown]
# *Left: six digits, from the same noise, at four steps of the small one's run. Right: the test loss, a pixel, of the book's
# denoiser at 21 noise levels; grey without, blue with the label. About a third of what the label changes in
# this network's answers (in nats, as below) lies where the two curves seem to be one; at the far left, where they are far
# apart, next to nothing does: there is only noise.*
#
# **Why it is flat.** A noisy picture may come from many clean ones, each with its noise. The best guess is an average over
# them, and what was really drawn differs from it at random. On new pictures no network can foresee that: this part of the
# loss does not fall.
#
# **What the flat part hides.** Guidance does not use the guess, but the *difference* of two guesses, with the label and
# without. For the best guesses its mean square is the sliver between the two curves. Where they seem to be one, the sliver
# has here more than ten times its right size, and nobody sees it.
#
# **What to look at.** How large the sliver may be is known before training. Weighed in the right units and added up from
# pure noise on, it is the information that a picture has about its label, counted in *nats*: for ten digits at most $\log
# 10 = 2.30$. The denoiser's guidance comes to *about twice as much*. So there is error in it; and we shall see that its
# answers without the label err more than those with it.
#
# ## The loss is mostly not yours
#
# As in [chapter 11](11_classifier_free_guidance.ipynb#hide-the-label-now-and-then), $x_t = \alpha_t x_0 + \sigma_t
# \varepsilon$, and the network guesses $v = \alpha_t \varepsilon - \sigma_t x_0$. Fix a noise level $t$. The best guess for one
# who is told the label is $v_c(x_t, y) = \mathbb E[v \mid x_t, y]$; without it, $v_u(x_t) = \mathbb E[v \mid x_t]$. What a network says
# is $\hat v_c$ and $\hat v_u$. Then
#
# $$ \mathbb E \| \hat v_c - v \|^2 = \mathbb E \| v_c - v \|^2 + \mathbb E \| \hat v_c - v_c \|^2 :
# \label{eq-loss-split} $$
#
# loss is *floor* plus *excess*; and just so without the label, with $v_u$ and $\hat v_u$. (Given $x_t$ and $y$, the difference
# $v_c - v$ is zero in the mean, and $\hat v_c - v_c$ is fixed; so their product vanishes in the mean.) On a mixture of Gaussians
# the floor is known: here the four blobs of chapter 11, and a small network trained on them for a few seconds.
# (`labelled_nodes` gives points, weights and labels; a weighted sum over them is an expectation.)

# %%
mixture, schedule = plane.four_blobs(), cosine()
network = plane.train(mixture, schedule, label_dropout=0.1, steps=300, batch=128)


# %%
# [eq-loss-split]
def split(network, mixture, schedule, t):
    """Floor and excess of the loss with the label, summed over the coordinates, by quadrature."""
    x, weights, label = information.labelled_nodes(mixture, schedule, t)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    best = mixture.denoiser(schedule, label)(x, t)
    v_c = alpha * best.eps - sigma * best.x0
    clean, shares, _ = information.labelled_nodes(mixture, schedule, torch.zeros(()).double())
    all_of_it = alpha**2 * mixture.dim + sigma**2 * mean_square(shares, clean)  # E |v|^2
    told = network(x, schedule.log_snr(t).expand(len(x)), label)
    # floor = E |v|^2 - E |v_c|^2: the equation for a network that answers 0
    return all_of_it - mean_square(weights, v_c), mean_square(weights, told - v_c)


# %% tags=["hide-input"]
def loss_at(network, mixture, schedule, t, told=True, count=50_000):
    """The same loss from samples, and its standard error; with the label or without."""
    generator = torch.Generator().manual_seed(1)
    x0, label = mixture.sample(count, generator)
    eps = torch.randn(x0.shape, generator=generator).double()
    x_t, v = schedule.add_noise(x0, eps, t), schedule.alpha(t) * eps - schedule.sigma(t) * x0
    seen = label if told else torch.full_like(label, network.classes)
    errors = (network(x_t, schedule.log_snr(t).expand(count), seen) - v).square().sum(1)
    return errors.mean(), errors.std() / count**0.5


# %%
half = torch.tensor(0.5).double()
floor, excess = split(network, mixture, schedule, half)
sampled, error = loss_at(network, mixture, schedule, half)
print(f"t = 0.5: floor {floor:.4f} + excess {excess:.4f} = {floor + excess:.4f}")
print(f"from samples {sampled:.4f} +- {error:.4f}")
assert abs(sampled - floor - excess) < 3 * error and excess / 2 < error
assert abs(excess / floor - 0.01) < 0.002

# %% [markdown]
# The excess, the only part that training can change, is here about a hundredth of the floor. Half of it is less than the
# scatter of a loss over 50,000 samples.
#
# ## What lies between the two losses
#
# Those who are not told the label can do no better than to ask everyone who is, and to average
# by how probable each label is:
#
# $$ v_u(x) = \sum_y \big[\, p_t(y \mid x)\; v_c(x, y) \,\big] \label{eq-label-average} $$
#
# ($\mathbb E[v \mid x_t]$ is the mean of $\mathbb E[v \mid x_t, y]$ over the labels that $x_t$ leaves open.) Split the error
# without the label, $v - v_u = (v - v_c) + (v_c - v_u)$. Given $x_t$ and $y$ the first part is zero in the mean, the
# second fixed. So
#
# $$ \mathbb E \| v_u - v \|^2 - \mathbb E \| v_c - v \|^2 = \mathbb E \| v_c - v_u \|^2 . \label{eq-loss-gap} $$
#
# **The difference of the two losses is the mean square of what guidance multiplies.**


# %%
# [eq-label-average] [eq-loss-gap]
def best_answers(mixture, schedule, x, label, t):
    """v_c at each point's label, v_u, and the mean of v_c over the labels, (N, d) each."""
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)

    def v_of(guess):
        return alpha * guess.eps - sigma * guess.x0

    noisy, every = mixture.noised(alpha, sigma), range(mixture.classes)
    shares = torch.stack([noisy.class_log_prob(x, y).exp() for y in every])
    answers = torch.stack([v_of(mixture.denoiser(schedule, y)(x, t)) for y in every])  # (classes, N, d)
    average = (shares[:, :, None] * answers).sum(0)
    return answers[label, torch.arange(len(x))], v_of(mixture.denoiser(schedule)(x, t)), average


# %%
x, weights, label = information.labelled_nodes(mixture, schedule, half, order=40)
v_c, v_u, average = best_answers(mixture, schedule, x, label, half)
torch.testing.assert_close(average, v_u)
# Of the two floors, each E |v|^2 - E |guess|^2, the first part drops out.
gap = mean_square(weights, v_c) - mean_square(weights, v_u)
distance = mean_square(weights, v_c - v_u)
print(f"t = 0.5: the losses differ by {gap:.4f}, the answers by {distance:.4f}")
torch.testing.assert_close(gap, distance, rtol=1e-4, atol=0)

# %% [markdown]
# For a *network* the two need not agree: put floor plus excess in for each of its two
# losses, and what is left is
#
# $$ \mathbb E \| \hat v_u - v \|^2 - \mathbb E \| \hat v_c - v \|^2 = \mathbb E \| v_c - v_u \|^2 +
# \mathbb E \| \hat v_u - v_u \|^2 - \mathbb E \| \hat v_c - v_c \|^2 , \label{eq-network-gap} $$
#
# the right gap, plus the excess without the label, less the excess with it.


# %%
# [eq-network-gap]
def network_gap(network, schedule, x, weights, label, v_c, v_u, t):
    """Of a network: the right gap, and the excess without and with the label."""
    log_snr, null = schedule.log_snr(t).expand(len(x)), torch.full_like(label, network.classes)
    told, untold = network(x, log_snr, label), network(x, log_snr, null)
    return [mean_square(weights, error) for error in (v_c - v_u, untold - v_u, told - v_c)]


# %%
right_gap, without, with_it = network_gap(network, schedule, x, weights, label, v_c, v_u, half)
sampled_gap = loss_at(network, mixture, schedule, half, told=False)[0] - sampled
summed = right_gap + without - with_it
print(f"right gap {right_gap:.3f} + {without:.3f} - {with_it:.3f} = {summed:.3f}")
print(f"from 50,000 samples, the same ones for both: {sampled_gap:.3f}")
assert abs(summed - sampled_gap) < 0.02

# %% [markdown]
# This is exact for every network: if the gap is too large, the half without the label errs more.
#
# ## Counted in nats
#
# How large should the gap be? Written in $\varepsilon$ and against $\lambda = \log(\alpha_t^2 / \sigma_t^2)$, the log
# signal-to-noise ratio, it has a meaning. (Since $\varepsilon = \sigma_t x_t + \alpha_t v$, for $\alpha_t^2 + \sigma_t^2 =
# 1$, a squared distance of two answers is $\alpha_t^2$ times as large in $\varepsilon$ as in $v$.) Let $I(y; x_\lambda)$ be
# the information that the noisy picture has about the label, the mean of $\log p_t(y \mid x_t) - \log p(y)$. For the best
# guesses $\hat\varepsilon_c, \hat\varepsilon_u$ of the noise
#
# $$ I(y; x_\lambda) = \frac12 \int_{-\infty}^{\lambda} \Big[ \mathbb E \big\| \hat\varepsilon_c - \hat\varepsilon_u \big\|^2
# \Big]\, d\lambda' . \label{eq-label-information} $$
#
# Each unit of $\lambda$ adds half the squared distance there. It is a case of the *I-MMSE* relation of [Guo, Shamai & Verdú
# (2005)](https://arxiv.org/abs/cs/0412108), which [Kong et al. (2023)](https://arxiv.org/abs/2302.03792) brought to diffusion
# models; [Deeper](#deeper-why-the-area-is-the-information) proves it. On the blobs, both sides:

# %%
log_snr = torch.linspace(-10, 10, 41).double()
levels = schedule.time(log_snr)
nodes = [information.labelled_nodes(mixture, schedule, t, order=8) for t in levels]


def best_rate(mixture, schedule, x, weights, label, t):
    return weights @ information.label_rate(mixture.pair(schedule, label), x, t)


rates = torch.stack([best_rate(mixture, schedule, *at, t) for at, t in zip(nodes, levels, strict=True)])
for k in (10, 20, 30, 40):
    summed = torch.trapezoid(rates[: k + 1], log_snr[: k + 1])
    known = information.label_information(mixture, schedule, levels[k], order=40)
    print(f"up to log-SNR {log_snr[k]:3.0f}: sum {summed:.4f}, information {known:.4f} nats")
    assert abs(summed - known) < 2e-3
entropy = -(mixture.class_weights() * mixture.class_weights().log()).sum()
print(f"entropy of the label: {entropy:.3f} nats")

# %% [markdown]
# The sum, an *area* over $\lambda$, is 0.57 nats; the entropy of the label, 0.67, would be reached if no two classes
# overlapped. **More than the entropy it can never be**, for information about a thing is at most what there is to know of
# it. So here is a test for any network, without any truth: add up half the squared distance of its two answers. We do it
# with three small networks on the blobs and, from its log, the denoiser on test digits.


# %%
def network_rates(network, mixture, schedule, nodes, levels):
    """Rows: squared distance of the answers, excess told, excess not told, halved: (3, levels)."""
    rows = []
    for (x, weights, label), t in zip(nodes, levels, strict=True):
        told, untold = (guess.eps for guess in network_pair(network, schedule, label)(x, t))
        best, blind = (guess.eps for guess in mixture.pair(schedule, label)(x, t))
        errors = (told - untold, told - best, untold - blind)
        rows.append(torch.stack([mean_square(weights, error) / 2 for error in errors]))
    return torch.stack(rows, 1)


# %%
coins = (0.02, 0.1, 0.5)
tossed = {p: plane.train(mixture, schedule, p, steps=300, batch=128) for p in coins}
measured = {p: network_rates(tossed[p], mixture, schedule, nodes, levels) for p in coins}


# %% tags=["hide-input"]
def running(rate, at):
    return torch.cat([torch.zeros(1).double(), torch.cumulative_trapezoid(rate, at)])


axis, rate = (torch.tensor(digits[name]).double() for name in ("log_snr", "distance"))
guide = math.log(10) - torch.tensor(runs.log("guide")["guide_cross_entropy"]).double()
before_it, beyond_it = (running(rate, axis)[axis == level] for level in (-2, -1))
assert before_it < math.log(10) < beyond_it
climbs = {p: running(measured[p][0], log_snr) for p in coins}

# %% tags=["hide-input"]
with plotting.style():
    figure, (left, right) = plotting.plt.subplots(1, 2, figsize=(8.6, 3.3))
    left.plot(log_snr, running(rates, log_snr), "--", color=plotting.COLOURS["truth"])
    for p, climb in climbs.items():
        left.plot(log_snr, climb, color=orange)
        left.text(10.3, float(climb[-1]) - 0.015, f"$p = {p:g}$", color=orange, fontsize=9)
    left.text(10.3, 0.53, "truth", fontsize=9)
    right.plot(axis, running(rate, axis), color=orange)
    right.plot(axis, guide, color=plotting.COLOURS["other"])
    right.text(2.6, 4.35, "the denoiser", color=orange, fontsize=9, ha="right")
    right.text(10, 1.55, "a classifier has proved\nthis much", color=plotting.COLOURS["other"], fontsize=9, ha="right")
    for panel, top, name in ((left, float(entropy), "four blobs"), (right, math.log(10), "digits")):
        panel.axhline(top, color=plotting.COLOURS["truth"], linewidth=0.8)
        panel.set(xlabel=r"log signal-to-noise ratio $\lambda$", ylabel="nats up to here", title=name)
    left.text(-10, float(entropy) + 0.02, "all there is", fontsize=9)
    right.text(-10, math.log(10) + 0.1, "all there is", fontsize=9)
    left.set_ylim(0, 1.25)
    assert abs(float(running(rate, axis)[-1]) - digits["areas"]["distance"][0]) < 1e-3 and len(left.lines) == 5
    shown = plotting.show(
        figure,
        "13_nats",
        alt="Two panels with the accumulated half squared distance of the two answers over the log signal-to-noise ratio. Left, four blobs: the dashed truth stays below the line of all there is; the network that hid half of the labels keeps near it and ends a little above, those that hid a tenth and a fiftieth cross the line of all there is and go on rising. Right, digits: the curve of the denoiser crosses the line of 2.3 nats between -2 and -1 and goes on to 4.9, while a classifier's proven information reaches that line at 0 and is flat from there on.",
    )
shown

# %% [markdown]
# *What a network's guidance says about the label, added up from pure noise to the level $\lambda$. Left: three small networks,
# which hid the share $p$ of the labels, and the truth. Right: the denoiser, on test digits. Green: $\log 10$ less the
# cross-entropy of a classifier, a proven part of the information. A curve above the line of all there is contains error.*
#
# The denoiser says 4.9 nats up to $\lambda = 10$, of 2.3. It passes all there is before $\lambda = -1$. By $\lambda = 0$
# the digit can be read, and the label has next to nothing to add: the classifier's cross-entropy is 0.05 nats. About a
# third of the denoiser's guidance comes after. There the label should hardly change the answer, and it does. (An error of
# $v$ that never dies adds its part for every unit of $\lambda$: a sum needs its range beside it.)

# %% tags=["hide-input"]
names = ("distance of the answers", "gap of the losses")
for name, (value, error) in zip(names, (digits["areas"][key] for key in ("distance", "gap")), strict=True):
    print(f"denoiser, {name}: {value:.1f} +- {error:.1f} nats")
late = float(torch.trapezoid(rate[axis >= 0], axis[axis >= 0]))
print(f"beyond log-SNR 0: {late:.1f} nats, while {runs.log('guide')['guide_cross_entropy'][10]:.2f} are left to know")
assert abs(late / digits["areas"]["distance"][0] - 1 / 3) < 0.02 and digits["areas"]["distance"][0] > 2 * math.log(10)

# %% tags=["remove-cell"]
area, other = digits["areas"]["distance"][0], digits["areas"]["gap"][0]
assert round(area, 1) == 4.9 and round(other - math.log(10), 1) == 1.9 and list(axis).index(-2) == 8
assert round(math.log(10), 1) == 2.3 and round(digits["areas"]["gap"][1], 1) == 0.2 and axis[-1] == 10
climbed = running(rate, axis)
at_minus_one = climbed[axis == -1]
assert climbed[8] < math.log(10) < at_minus_one and (climbed > guide)[1:].all()
assert axis[12] == 2 and [round(digits[name][12], 4) for name in ("told", "untold")] == [0.0594, 0.0597]
assert digits["images"] == 250 and round(float(torch.trapezoid(rates, log_snr)), 3) == 0.566
assert min(torch.trapezoid(measured[p][0], log_snr) for p in (0.02, 0.1)) > entropy

# %% [markdown]
# Which half is wrong, the answers with the label or those without? $\eqref{eq-network-gap}$ tells, if it is
# put into $\varepsilon$, halved and added up like the area. The gap of the two test losses comes to 4.2 nats. At most 2.3
# of them are the right gap. So **the excess without the label is larger than the one with it, by at least 1.9 nats** ($\pm
# 0.2$, a standard error over 250 images). In the loss one does not see that: at $\lambda = 2$ the two are 0.0594 and 0.0597
# a pixel.
#
# How much error is in the 4.9? Not simply what is above the line. Let the right difference be $a$ and its error $e$: the
# areas are squared lengths, and the length of $a + e$ is at most that of $a$ plus that of $e$. So the error of the difference comes to at
# least $(\sqrt{4.9} - \sqrt{2.3})^2$, half a nat, and it may well be more. Do networks with larger areas draw worse digits without a label?

# %% tags=["hide-input"]
print("             training loss  distance      gap   digit-FID at gamma 0")
for name in ("denoiser", "pocket", "pocket_p50", "pocket_p10", "pocket_p02"):
    log = runs.log(name)
    fid = log["digits"]["0"]["digit_fid"] if "digits" in log else log["gamma_0_digit_fid"]
    loss = f"{log['training_loss_last_1000']:.4f}" if "training_loss_last_1000" in log else "-"
    print(f"{name:12} {loss:>13}  {log['areas']['distance'][0]:8.1f} {log['areas']['gap'][0]:8.1f}{fid:23.2f}")
least = (digits["areas"]["distance"][0] ** 0.5 - math.log(10) ** 0.5) ** 2
print(f"denoiser: error of the difference at least {least:.1f} nats")

# %% [markdown]
# Mostly. The last three networks were trained in the same way, on data, and differ only in the share of labels that they
# hid, 50, 10 and 2 %: larger areas, worse digits. *Pocket*, of the same small size, learned from the denoiser's answers and
# for twice as many steps; it draws better digits than `pocket_p50` with areas no smaller. So the area is a witness, no
# judge.
#
# ### Pitfall: keep the network with the lowest loss
#
# **The training loss ranks the last three in exactly the wrong order for the digits without a
# label.** The loss is a mean over told and untold examples, and being told is easier: hide fewer labels, and the mean
# falls. The areas rank the three rightly. (At $\gamma = 1$, which does not ask that half, the order by loss holds:
# [Deeper](#deeper-how-often-to-hide-the-label).)

# %% [markdown]
# ## In practice
#
# | if you | do | because |
# |---|---|---|
# | watch a training run | log the loss with and without the label on one fixed batch of noises, and both areas in nats | on the blobs nearly all of the loss was floor |
# | see an area of the distance above the label's entropy | distrust guidance, first at little noise | there is error in one half or both |
# | see an area of the gap above the entropy | train the half without the label ([Deeper](#deeper-how-often-to-hide-the-label)) | its excess is larger, by at least the difference |
# | compare networks that hid different shares of labels | never by their training loss | it rises with the share, for being told is easier |
#
# ## Exercises
#
# Type where it says "your turn", run the cell, then the check below it. Tensors come in float64; leave them as they are.

# %% [markdown]
# ### Exercise 13.1 (easy): from $v$ to nats
#
# At the noise level with log signal-to-noise ratio `log_snr`, the test losses in $v$ are `told` and `untold`: mean squares *a pixel*, of
# `pixels` pixels. How many nats for each unit of log-SNR are between them?
#
# <details><summary>Hint</summary>
#
# The gap in nats is half the difference of the squared errors of $\varepsilon$, summed over the pixels. How large is a squared
# error of $\varepsilon$, if that of $v$ is known? And $\alpha_t^2 + \sigma_t^2 = 1$.
#
# </details>


# %% tags=["exercise"]
def nats_between(told, untold, log_snr, pixels):
    ### BEGIN SOLUTION
    alpha_squared = 1 / (1 + math.exp(-log_snr))
    return alpha_squared * (untold - told) * pixels / 2
    ### END SOLUTION


# %%
exercises.check("13.1", nats_between)

# %% [markdown]
# ### Exercise 13.2 (medium): which half is worse?
#
# Two curves of a network are given at the log signal-to-noise ratios `log_snr`, `(n,)` and increasing: `gap` and
# `distance`, both in nats for each unit. The label has the entropy `entropy`; how much of it the picture tells is not
# known. Return two numbers. First: by how many nats, at least, is the excess without the label larger than the excess with
# it (negative if the gap does not show that it is)? Second: how many nats, at least, has the *error of the difference*, as
# far as the distance proves it (0 if it proves none)?
#
# <details><summary>Hint</summary>
#
# Areas first, by the trapezoidal rule. How large can the right area be, at most? The first number is
# $\eqref{eq-network-gap}$. For the second, areas of squares are squared lengths: how short can $e$ be if $a$ and $a + e$
# have given lengths?
#
# </details>


# %% tags=["exercise"]
def verdict(log_snr, gap, distance, entropy):
    ### BEGIN SOLUTION
    areas = [float(torch.trapezoid(curve, log_snr)) for curve in (gap, distance)]
    return areas[0] - entropy, max(0.0, areas[1] ** 0.5 - entropy**0.5) ** 2
    ### END SOLUTION


# %%
exercises.check("13.2", verdict)

# %% [markdown]
# ## Remember
#
# 1. Loss is floor plus excess. On the blobs, at $t = 0.5$, the floor was 99 % of it. Compare networks near the floor by differences of losses on the same noise.
# 2. For the best guesses, the loss without the label less the loss with it is the mean square of what guidance multiplies.
#    For a network, add its excess without the label and take away its excess with it.
# 3. Half the squared distance of the best guesses of the noise, added up over the log signal-to-noise ratio, is the
#    information about the label, so at most its entropy. A network above that is in error; one below it may be, too.
# 4. The book's denoiser says 4.9 nats up to $\lambda = 10$, where 2.3 is all there is. By the gap, its excess without the label is
#    larger than the one with it, by at least 1.9 nats ($\pm 0.2$).
# 5. The training loss ranked three small networks, which hid different shares of labels, in the wrong order for digits without a
#    label; the areas ranked these rightly, but not a fourth, trained in another way.
#
# **Where it comes from.** I-MMSE: [Guo, Shamai & Verdú (2005)](https://arxiv.org/abs/cs/0412108); in diffusion models
# [Kong et al. (2023)](https://arxiv.org/abs/2302.03792). The prediction of $v$: [Salimans & Ho
# (2022)](https://arxiv.org/abs/2202.00512). Label dropout: [Ho & Salimans (2022)](https://arxiv.org/abs/2207.12598). The
# splits, the variance of the average and the target of the teacher are derived here.
#
# ## Deeper: why the area is the information
#
# *For you if you want the proof of $\eqref{eq-label-information}$. It needs the heat equation and one integration by parts.*
#
# Take $\bar x = x_t / \alpha_t = x_0 + \sqrt q\, \varepsilon$ with $q = e^{-\lambda}$. A little more noise changes a
# density of $\bar x$ by $\partial_q p = \frac12 \Delta p$. For one label write $r = \nabla \log p(\bar x \mid y) - \nabla \log p(\bar x)$.
# The information is the mean over $y$ of $\int p(\bar x \mid y) \log \frac{p(\bar x \mid y)}{p(\bar x)}\, d\bar x$. Differentiate it
# in $q$, with $\frac12 \Delta$ for each $\partial_q$. What comes from the numerator of the logarithm is $\frac12 \int \Delta p(\bar x \mid y) = 0$. Integrated by
# parts, the rest comes to $-\frac12 \int p(\bar x \mid y) \|r\|^2$:
#
# $$ \frac12 \int \Delta p(\bar x \mid y) \log \frac{p(\bar x \mid y)}{p(\bar x)} - \frac12 \int \frac{p(\bar x \mid y)}{p(\bar x)} \Delta p(\bar x) $$
#
# $$ = -\frac12 \int \nabla p(\bar x \mid y) \cdot r + \frac12 \int p(\bar x \mid y)\, r \cdot \nabla \log p(\bar x) = -\frac12 \int p(\bar x \mid y) \|r\|^2 . $$
#
# A guess of the
# noise is $-\sqrt q$ times a score of $\bar x$ ([chapter 11](11_classifier_free_guidance.ipynb#two-guesses-are-two-scores)), so $\|r\|^2 = \|\hat\varepsilon_c -
# \hat\varepsilon_u\|^2 / q$, and $dq / q = -d\lambda$. In nothing but noise, at $\lambda = -\infty$, there is no information. $\square$
#
# ## Deeper: the relation tests any checkpoint
#
# *For you if you are given a network and no log. It measures at which noise levels the two halves contradict each other,
# with a classifier in place of the truth.*
#
# By $\eqref{eq-label-average}$ the best answer without the label is the mean of the best answers with it, weighted by the
# probabilities of a classifier for noisy pictures. Half the squared distance from that mean, in $\varepsilon$, is the
# *violation*. The shipped *guide* gives the probabilities; the violation of the denoiser stands in its log.

# %%
violation = torch.tensor(digits["violation"]).double()
for k in range(0, 21, 4):
    print(f"log-SNR {axis[k]:4.0f}: distance {rate[k]:.3f}, violation {violation[k]:.3f}")
print(f"area of the violation: {torch.trapezoid(violation, axis):.1f} nats")
assert (violation[axis >= 1] / rate[axis >= 1]).min() > 0.75 and violation[axis <= -4].max() < 0.06

# %% tags=["remove-cell"]
assert axis[6] == -4 and round(float(violation[6] / rate[6]), 2) == 0.05
assert digits["images"] == 250 and digits["images"] // 10 == 25  # the violation on a tenth of them
assert list(axis[violation > rate]) == [3, 4, 5]
assert round(digits["areas"]["distance"][0], 1) == 4.9
assert round(digits["areas"]["distance"][0] - digits["violation_area"], 1) == 2.6

# %% [markdown]
# Up to $\lambda = -4$ the violation is at most about a twentieth of the distance. From $\lambda = 1$ on it is
# more than three quarters: there the picture decides the label, the right mean is nearly the answer with the true label,
# and the difference is nearly all error. (It was measured on 25 images, the distance on 250; so it may come out larger
# than the distance, as it does at some levels, and the guide's own errors are in it.)
#
# If the probabilities are right, the two parts are at right angles: with $m$ for the mean of the answers with a label,
# $\mathbb E \|\hat\varepsilon_c - \hat\varepsilon_u\|^2 = \mathbb E \|\hat\varepsilon_c - m\|^2 + \mathbb E \|m -
# \hat\varepsilon_u\|^2$. So of the 4.9 nats about 2.3 are violation, and 2.6 are what the labelled half says by itself:
# about all there is, as far as 25 images tell. [Chapter 00](00_start_here.ipynb) used the same relation for a trial: there
# the mean of the ten answers stood in for the one without a label.

# %% [markdown]
# ## Deeper: how long to average
#
# *For you if you keep a running average of the weights. It adds a formula for what it gains, and what it remembers.*
#
# One does not keep the last weights, but a running average, $\bar\theta \leftarrow a\, \bar\theta + (1 - a)\, \theta$, over about $1 /
# (1 - a)$ steps. How long should it be? Near its optimum, let each step pull a weight $\theta$ back to the share $b$ of its deviation
# and add fresh noise. Then, when the start is forgotten,
#
# $$ \frac{\operatorname{Var} \bar\theta}{\operatorname{Var} \theta} = \frac{(1 - a)(1 + a b)}{(1 + a)(1 - a b)} .
# \label{eq-averaging-length} $$
#
# (From $\theta_{k+1} = b\, \theta_k + \text{noise}$: $\operatorname{Cov}(\theta_{k}, \theta_{k-j}) = b^j \operatorname{Var}
# \theta$, and $\bar\theta = (1 - a) \sum_j a^j \theta_{k-j}$. Sum the double series.) The variance falls to zero with the
# length. Where this equals the memory, $1 / (1 - b)$ steps, about half of it is left, if both are long. And too long an
# average remembers the start: of the initial weights it holds the share $a^K$ after $K$ steps.


# %%
# [eq-averaging-length]
def double_sum(decay, memory, count=2500):
    """The variance of the average, with 1 for the variance of a weight: the sum over pairs of steps."""
    k = torch.arange(count).double()
    weights = (1 - decay) * decay**k
    return weights @ memory ** (k[:, None] - k).abs() @ weights


for memory in (0.5, 0.95):
    formula = information.averaged_variance(torch.tensor([0.9, 0.99], dtype=torch.float64), memory)
    print(f"memory {memory}: variance {formula[0]:.3f} with decay 0.9, {formula[1]:.3f} with 0.99")
    torch.testing.assert_close(double_sum(0.99, memory), formula[1])

# %% [markdown]
# Four averages were kept of the same weights (decay 0 stands for the last weights) in the run of the first picture, whose
# learning rate falls to zero at step 2,000. Their test losses with the label:

# %%
decays = ("0.0", "0.9", "0.99", "0.997", "0.999")
print("decay   ", *(f"{decay:>7}" for decay in decays))
for step in ("300", "1000", "2000"):
    row = [small["stages"][step]["test_loss"][decay]["told"] for decay in decays]
    print(f"step {step:>4}", *(f"{loss:7.4f}" for loss in row))
    best = min(row)
    assert row.index(best) == 1 or step == "2000" and max(row[:3]) - best < 1e-5
print(f"share of the start with 0.999 after 2,000 steps: {0.999**2000:.2f}")

# %% [markdown]
# On the way a short average helps, by two hundredths of the loss, and the longest is ruined by what it remembers. At the
# end the rate has fallen, the weights hardly move, and averaging has nothing left to do; but the longest still holds 14 %
# of the start, and pays for it. (One run.) So compare two or three lengths: short ones on the way, none much longer than a
# tenth of the run.

# %% [markdown]
# ### Exercise 13.3 (medium): what an average remembers
#
# A weight starts at `start`, its optimum is 0, and each step leaves the share $b$ = `memory` of it, without noise. The average
# starts at `start` as well, and has the decay $a$ = `decay`, different from $b$. Return the average after `steps` steps, in closed form (no
# loop: `steps` may be a million).
#
# <details><summary>Hint</summary>
#
# $\bar\theta_K = a^K \theta_0 + (1 - a) \sum_{j=0}^{K-1} a^j\, b^{K - j} \theta_0$. The sum is geometric in $a / b$.
#
# </details>


# %% tags=["exercise"]
def remembered(start, memory, decay, steps):
    ### BEGIN SOLUTION
    sum_of_both = memory * (memory**steps - decay**steps) / (memory - decay)
    return start * (decay**steps + (1 - decay) * sum_of_both)
    ### END SOLUTION


# %%
exercises.check("13.3", remembered)

# %% [markdown]
# ## Deeper: how often to hide the label
#
# *For you if you choose the share of labels to hide. It adds who pays, on the blobs, where both excesses are known, and on digits.*
#
# [Chapter 11](11_classifier_free_guidance.ipynb#hide-the-label-now-and-then) showed that no share $p$ between
# 0 and 1 changes the best function. It changes who pays. A fourth network on the blobs hides none, so nothing trains its answer
# without a label:

# %%
tossed[0.0] = plane.train(mixture, schedule, 0.0, steps=300, batch=128)
measured[0.0] = network_rates(tossed[0.0], mixture, schedule, nodes, levels)

# %% tags=["hide-input"]
drawn, columns = mixture.sample(20_000, torch.Generator().manual_seed(0)), "{:5}  {:6.3f}  {:11.3f}  {:15.3f}  {:8.3f}"
print("    p    loss  excess told  excess not told  distance  (nats, but for the loss)")
table = {}
for p in (0.0, *coins):
    loss = losses.v_loss(tossed[p], schedule, *drawn, p, torch.Generator().manual_seed(7), 2)
    distance_area, told_area, untold_area = torch.trapezoid(measured[p], log_snr)
    table[p] = [float(value) for value in (loss, told_area, untold_area, distance_area)]
    print(columns.format(p, *table[p]))
print(f"truth{'':38}{float(running(rates, log_snr)[-1]):10.3f}")
by_loss, by_area = (sorted(table, key=key) for key in (lambda p: table[p][0], lambda p: abs(table[p][3] - 0.566)))
assert by_loss == [0.0, 0.02, 0.1, 0.5] and by_area == by_loss[::-1]

# %% tags=["remove-cell"]
assert abs(table[0.5][1] / table[0.5][2] - 1) < 0.1
assert [table[p][1] for p in table] == sorted(table[p][1] for p in table) and list(table) == by_loss
assert round(table[0.0][3], 1) == 2.8 and round(float(entropy), 2) == 0.67
assert min(table[p][3] for p in (0.0, 0.02, 0.1)) > entropy > table[0.5][3]

# %% [markdown]
# Seldom hidden, the half without the label starves; the half with it gains little. At $p = 0.5$ the two excesses are about
# equal here. (One seed a row; in the tests, with another, the order is the same.)
#
# **The loss ranks the four networks in exactly the wrong order for guidance**, by the error of the difference (in the
# tests). It ranks rightly only the half that is told. At $p = 0$ it is lowest, and the network claims 2.8 nats about a
# label that has 0.67. The area ranks them as the excess without the label does, and needs no truth to see that three of the
# four are wrong. The three small networks on digits:

# %% tags=["hide-input"]
print("digits, p   test loss told  not told   digit-FID at gamma 0   at gamma 1   at gamma 3")
for share in ("02", "10", "50"):
    log = runs.log(f"pocket_p{share}")
    test, fids = log["test_loss"], [log["digits"][gamma]["digit_fid"] for gamma in "013"]
    print(f"     0.{share} {test['told']:16.4f} {test['untold']:9.4f} {fids[0]:22.2f}{fids[1]:13.2f}{fids[2]:13.2f}")

# %% [markdown]
# They say the same: from $p = 0.02$ to 0.5 the test loss without the label falls and the one with it rises, the digits
# without a label get better and those with one worse. With guidance, at $\gamma = 3$, the last row is best; that compares them at
# one scale ([chapter 15](15_classifier_free_guidance_on_digits.ipynb#deeper-beside-the-published-tables) has the same from ImageNet). (One run each; with a label the first two rows hardly differ.)

# %% [markdown]
# ## Deeper: a better teacher for the starved half
#
# *For you if you train with hidden labels. It adds a better target for the half without the label, and what came of it.*
#
# The half without the label is the one that suffers. What does it learn from? From $v$, which it is to guess without the label.
# But the network already has an answer for one who *is* told the label, and in training the label is known. Let it learn from
# that: hide the label, and take as target not $v$ but $v_c(x_t, y)$, at the true label. By
# $\eqref{eq-label-average}$ and the argument of $\eqref{eq-loss-split}$,
#
# $$ \mathbb E \| \hat v_u - v_c \|^2 = \mathbb E \| \hat v_u - v_u \|^2 + \mathbb E \| v_c - v_u \|^2 .
# \label{eq-null-teacher} $$
#
# With the best teacher the optimum is the same, since the first term on the right is the same excess. But the rest, the noise in the target, is
# now only the *gap*: the floor with the label, $\mathbb E \|v_c - v\|^2$, has gone. At $t = 0.5$ on the blobs:


# %%
# [eq-null-teacher]
def target_noise(mixture, schedule, x, weights, label, t):
    """Mean square of v - v_u and of v_c - v_u: the noise in the usual target, and in the teacher's."""
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    told, untold = (alpha * g.eps - sigma * g.x0 for g in mixture.pair(schedule, label)(x, t))
    clean, shares, _ = information.labelled_nodes(mixture, schedule, torch.zeros(()).double())
    whole = alpha**2 * mixture.dim + sigma**2 * mean_square(shares, clean)
    return whole - mean_square(weights, untold), mean_square(weights, told - untold)


# %%
usual, taught = target_noise(mixture, schedule, x, weights, label, half)
print(f"noise in the target: {usual:.2f} usually, {taught:.2f} with the teacher")
digits_share = 1 - digits["test_loss"]["told"] / digits["test_loss"]["untold"]
print(f"on digits, from the denoiser's losses: {digits_share:.0%} of the usual noise")
assert abs(taught - gap) < 1e-5 and abs(usual - floor - gap) < 3e-3


# %% tags=["hide-input"]
def example(mixture, schedule, dropout, null, generator, count=128):
    """Noisy points, their log-SNR, labels as seen and as they are, and the three things one may predict."""
    x0, label = mixture.sample(count, generator)
    t, eps = losses.times_and_noise(x0.float(), generator)
    seen = losses.drop_labels(label, dropout, null, generator)
    alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
    goals = {"x0": x0.float(), "eps": eps, "v": alpha * eps - sigma * x0.float()}
    return alpha * goals["x0"] + sigma * eps, schedule.log_snr(t), seen, label, goals


# %% tags=["hide-input"]
def fit(network, loss_of, steps, rate=1e-2):
    """Adam with a rate that falls along a cosine."""
    optimizer = torch.optim.Adam(network.parameters(), rate, betas=(0.9, 0.99), fused=True)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 + math.cos(math.pi * step / steps)) / 2
        optimizer.zero_grad()
        loss_of(network).backward()
        optimizer.step()
    return network


def fresh(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return plane.PlaneNetwork(2)


# %% [markdown]
# On digits, by the network's own losses, about nine tenths of the noise in the target are gone. Now two networks on the blobs go
# on from the same start with half of the labels hidden, one with the usual target, one with the teacher's; the teacher is the
# start itself.


# %%
def second_half(teacher, teaching, mixture, schedule, generator):
    def loss_of(network):
        x, log_snr, seen, label, goals = example(mixture, schedule, 0.5, 2, generator)
        goal, hidden = goals["v"], seen == 2
        if teaching:
            goal[hidden] = teacher(x, log_snr, label).detach()[hidden]
        return (network(x, log_snr, seen) - goal).square().mean()

    return loss_of


def copied(network):
    other = fresh()
    other.load_state_dict(network.state_dict())
    return other


# %%
rows = {"before": network}
print("nats          distance  excess told  excess not told")
for name, teaching in (("usual target", False), ("taught", True)):
    generator = torch.Generator().manual_seed(6)
    loss_of = second_half(copied(network), teaching, mixture, schedule, generator)
    rows[name] = fit(copied(network), loss_of, steps=200, rate=3e-3).double()
after = {}
for name, network_of in rows.items():
    found_rates = network_rates(network_of, mixture, schedule, nodes, levels).detach()
    after[name] = [float(area) for area in torch.trapezoid(found_rates, log_snr)]
    print(f"{name:12} {after[name][0]:9.3f} {after[name][1]:12.3f} {after[name][2]:16.3f}")
assert 0.5 < after["usual target"][2] / after["before"][2] < 0.6

# %% tags=["remove-cell"]
assert 1.15 < after["taught"][1] / after["before"][1] < after["usual target"][1] / after["before"][1] < 1.25
assert abs(table[0.5][2] / after["taught"][2] - 1) < 0.15
assert abs(after["taught"][2] / after["usual target"][2] - 0.9) < 0.05

# %% [markdown]
# Going on, with half of the labels hidden, mends nearly half of the excess without the label; the teacher, which costs one
# more forward pass, takes a tenth off the rest. (In the tests it wins with each of three seeds.) The half with the label,
# asked less often, got worse by about a fifth. And a network that hides half of the labels from the start does as well. A
# teacher that errs passes its errors on: then the optimum is the mean of what it says. On digits there is one trial:

# %%
trial = digits["trial"]
print(f"{trial['steps']:,} more steps with the teacher, "
      f"{trial['label_dropout']:.0%} of the labels hidden:")
for name in ("gamma_0_digit_fid", "gamma_1_digit_fid", "gamma_1_accuracy"):
    print(f"{name:18} from {trial[name][0]:.3f} to {trial[name][1]:.3f}")
assert trial["digits"] == 1000 and trial["steps"] == 5000
assert [round(1000 * (1 - share)) for share in trial["gamma_1_accuracy"]] == [10, 27]

# %% [markdown]
# It is a bargain, not a cure. Without a label the digit-FID falls to half. But one network serves both halves: asked
# for one label in five only, it forgets some of what it knew, and at $\gamma = 1$ the wrong digits go from ten in a thousand to 27. So the course
# still ships the denoiser from before. (One run, 1,000 digits a number. What the teacher did in it, what the hidden labels, nobody knows.)
#
# Then give the starved half a network of its own. `unlabelled` begins as a copy of the denoiser, never sees a label again, and
# learns what the denoiser answers to the true label. `generate(..., unlabelled=...)` asks it where the label is hidden; the
# denoiser stays as it is, and with it all that is drawn at $\gamma = 1$.

# %%
own = digits["own"]
before, after = own["gamma_0_digit_fid"]
print(f"{own['steps']:,} steps without labels; digit-FID at gamma 0:")
print(f"in {own['sampling_steps']} steps, {own['digits']:,} digits: from {before:.2f} to {after:.2f}")
for finer in (own["finer"], own["finest"]):
    steps, count = finer["sampling_steps"], finer["digits"]
    print(f"in {steps} steps, {count:,} digits: to {finer['gamma_0_digit_fid']:.2f}")

# %% [markdown]
# Nothing is forgotten, and the digit-FID without a label falls again to about half; with finer steps it falls further.
# The price is a second network, as large as the first. (One run.)
#
# And above 1, where guidance lives? Twice 1,000 digits a row, DDPM, 16 steps:

# %%
halves, columns = {}, ("precision", "recall", "digit_fid")
print(f"{'':24}{'precision':>13}{'recall':>13}{'digit-FID':>13}")
for other, called in (("", "its own half"), ("unlabelled", "mended half")):
    for row in runs.pick(runs.rows("guidance"), part="halves", unlabelled=other):
        halves[called, row["gamma"]] = row
        told = "  ".join(f"{row[name]:.3f}±{row[name + '_error']:.3f}" for name in columns)
        print(f"{called:>12}, gamma {row['gamma']:<4g}  {told}")

# %% tags=["remove-cell"]
def differ(one, other, name):
    return (one[name] - other[name]) / (one[name + "_error"] ** 2 + other[name + "_error"] ** 2) ** 0.5


kinds = ("its own half", "mended half")
for gamma in (2.0, 3.0):
    own_half, mended = (halves[kind, gamma] for kind in kinds)
    assert differ(mended, own_half, "recall") > 1.9 and differ(mended, own_half, "digit_fid") < -4
    assert abs(differ(mended, own_half, "precision")) < 1
turned_up, as_it_was = halves["mended half", 3.0], halves["its own half", 2.0]
assert all(abs(differ(turned_up, as_it_was, name)) < 1 for name in ("precision", "recall", "digit_fid"))

# %% [markdown]
# At one scale the mended half looks better: more recall, less digit-FID. But along the dial it only moves: with it $\gamma = 3$ has the precision, recall and digit-FID that $\gamma = 2$ has without, within an error. So what was wrong in the starved half had *turned the dial up*, and a scale means another thing for another checkpoint. ([Chapter 19](19_guidance_as_practised.ipynb) holds many such gains against the dial.)
#
# Was the label's share what was missing, or training at all? The control: another copy of the denoiser, trained on with *no* label hidden.

# %%
labelled = own["labelled"]
count, steps = labelled["digits"], labelled["sampling_steps"]
print(f"{labelled['steps']:,} steps with every label; at gamma 1, {count:,} digits, {steps} steps:")
wrong = [round(1000 * (1 - share)) for share in labelled["gamma_1_accuracy"]]
fids = labelled["gamma_1_digit_fid"]
print(f"wrong digits in a thousand from {wrong[0]} to {wrong[1]}; "
      f"digit-FID from {fids[0]:.3f} to {fids[1]:.3f}")

# %% [markdown]
# As much training as mended the starved half does nothing for the other one that 5,000 digits could show. Only one half was starved. (One run.)

# %% [markdown]
# ### Exercise 13.4 (hard): what a mixed target does
#
# Somebody takes as target for the half without the label neither $v$ nor $v_c$ but $m\, v_c + (1 - m)\, v$, at one noise level. The
# floor without the label is `floor_untold` = $\mathbb E \|v_u - v\|^2$, with it `floor_told` = $\mathbb E \|v_c - v\|^2$.
# Return the noise in this target, $\mathbb E \|m\, v_c + (1 - m)\, v - v_u\|^2$.
#
# (Open, and worth a paper: the network's own $v_c$ has an error that does not average out, while the noise of $v$ does. Which $m$ is
# best after a given number of steps? Nobody has measured it here.)
#
# <details><summary>Hint</summary>
#
# Write the target less $v_u$ as $(v_c - v_u) + (1 - m)(v - v_c)$. The mean of the product?
#
# </details>


# %% tags=["exercise"]
def mixed_noise(floor_untold, floor_told, m):
    ### BEGIN SOLUTION
    return floor_untold - floor_told + (1 - m) ** 2 * floor_told
    ### END SOLUTION


# %%
exercises.check("13.4", mixed_noise)

# %% [markdown]
# ## Deeper: what should the network predict?
#
# *For you if you choose between $v$, the noise and the clean picture. It adds the weights that go with each, and a small trial.*
#
# One error, three units. A guess of one is a guess of all: $x_t = \alpha_t \hat x_0 + \sigma_t \hat\varepsilon$ and $\hat v =
# \alpha_t \hat\varepsilon - \sigma_t \hat x_0$. With $\alpha_t^2 + \sigma_t^2 = 1$ follow
#
# $$ \| \hat\varepsilon - \varepsilon \|^2 = \frac{\alpha_t^2}{\sigma_t^2}\, \| \hat x_0 - x_0 \|^2, \qquad
# \| \hat v - v \|^2 = \Big( 1 + \frac{\alpha_t^2}{\sigma_t^2} \Big) \| \hat x_0 - x_0 \|^2 . \label{eq-objective-weights} $$


# %%
# [eq-objective-weights]
def in_eps_and_v(error_x0, alpha, sigma):
    """Squared errors of eps and of v from the error of x0, (N, d)."""
    square, ratio = error_x0.square().sum(1), alpha**2 / sigma**2
    return ratio * square, (1 + ratio) * square


# %%
best = mixture.denoiser(schedule)(x, half)
alpha, sigma = schedule.alpha(half), schedule.sigma(half)
mine = network_pair(network, schedule, label)(x, half)[1]
in_eps, in_v = in_eps_and_v(mine.x0 - best.x0, alpha, sigma)
torch.testing.assert_close(in_eps, (mine.eps - best.eps).square().sum(1))
errors = alpha * (mine.eps - best.eps) - sigma * (mine.x0 - best.x0)
torch.testing.assert_close(in_v, errors.square().sum(1))
times = float((in_v / in_eps).mean())
print(f"signal-to-noise ratio: 1, so an error of v counts {times:.0f} times one of eps")

# %% [markdown]
# So the three losses are one loss with three *weights* on the noise levels. Against $v$, which counts both ends,
# $\varepsilon$ counts errors at little noise and $x_0$ those at much noise. Which weight is best is a matter of taste and
# of experiments:
# [Hang et al. (2023)](https://arxiv.org/abs/2303.09556) take that of $\varepsilon$, cut off where the ratio is 5 (*min-SNR*). But it is also
# a matter of what a network must *say*. We train three small ones, each with its own answer and its own loss, so that the two effects
# are not told apart; and compare all in $v$.


# %%
def objective_loss(objective, mixture, schedule, generator):
    def loss_of(network):
        x, log_snr, seen, _, goals = example(mixture, schedule, 0.2, 2, generator)
        return (network(x, log_snr, seen) - goals[objective]).square().mean()

    return loss_of


objectives = {}
for name in ("eps", "x0", "v"):
    loss_of = objective_loss(name, mixture, schedule, torch.Generator().manual_seed(3))
    objectives[name] = fit(fresh(), loss_of, steps=300).double()


# %% tags=["hide-input"]
def excess_in_v(network, objective, mixture, schedule, at, t):
    """Of the answers with the label, at one noise level."""
    x, weights, label = at
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    best, answer = mixture.denoiser(schedule, label)(x, t), network(x, schedule.log_snr(t).expand(len(x)), label)
    right = {"eps": best.eps, "x0": best.x0, "v": alpha * best.eps - sigma * best.x0}[objective]
    factor = {"eps": 1 / alpha**2, "x0": 1 / sigma**2, "v": 1.0}[objective]
    return float(factor * mean_square(weights, answer - right))


print("log-SNR ", *(f"{log_snr[k]:8.0f}" for k in (4, 12, 20, 28, 36)))
found = {}
with torch.no_grad():
    for name, network_of in objectives.items():
        found[name] = [
            excess_in_v(network_of, name, mixture, schedule, nodes[k], levels[k]) for k in (4, 12, 20, 28, 36)
        ]
        print(f"{name:8}", *(f"{value:8.4f}" for value in found[name]))
assert found["eps"][0] > 100 * found["v"][0] and found["x0"][-1] > 100 * found["v"][-1]
assert max(v / min(*other) for v, *other in zip(*(found[k] for k in ("v", "eps", "x0")), strict=True)) < 1.5

# %% [markdown]
# At much noise (left) a guess of $\varepsilon$ is useless for $x_0$: its error is divided by the little signal there is. At
# little noise (right) the same happens to a guess of $x_0$, read as noise. At these five levels $v$ is never far from the best (one
# seed, answers with the label). The book's networks answer $v$ ([Salimans & Ho (2022)](https://arxiv.org/abs/2202.00512)). A
# *schedule* is one more weight: it says how densely the training times lie along $\lambda$.
#
# On digits, the small network of the first picture was trained three times, alike in all but the answer. Test losses in $v$ at three
# noise levels, with the label; and a thousand digits of each:

# %%
tried = {name: runs.log(f"run_{name}") for name in ("eps", "x0", "v")}
at = [digits["log_snr"].index(level) for level in (-6.0, 0.0, 10.0)]
print("           loss at log-SNR")
print("answer        -6         0        10       right  digit-FID")
for name, log in tried.items():
    seen = log["stages"]["2000"]["digits"]
    test = "".join(f"{log['told'][k]:10.3f}" for k in at)
    print(f"{name:6}{test}{seen['accuracy']:12.1%}{seen['digit_fid']:11.2f}")
in_x0 = tried["x0"]["told"][at[2]] / (1 + math.exp(10.0))
print(f"the last loss of x0, as an error of x0: {in_x0:.4f} a pixel")

# %% tags=["remove-cell"]
assert (
    tried["eps"]["told"][at[0]] > 5 * tried["v"]["told"][at[0]]
    and tried["x0"]["told"][at[2]] > 100 * tried["v"]["told"][at[2]]
)
assert all(log["log_snr"] == digits["log_snr"] for log in tried.values()) and 0.003 < in_x0 < 0.005
means = {name: log["stages"]["2000"]["test_loss"]["0.99"]["told"] for name, log in tried.items()}
assert round(means["x0"]) == 25 and round(means["v"], 2) == 0.12

# %% [markdown]
# The answer $\varepsilon$ fails at much noise, and there the drawing begins: three digits in ten are wrong. The answer
# $x_0$ fails at little noise, by far more, and *here it does not matter*: a sampler ends with $\hat x_0$, and in $x_0$ the
# same error is small. At $\gamma = 1$ its digits are as good as those of $v$. The test loss in $v$, mean over all times, is
# 25 for it and 0.12 for $v$: a loss ranks networks only at the noise levels, and in the terms, in which they are used. (One
# run each.)

# %% [markdown]
# ## Deeper: what it takes to train again
#
# *For you if you want to repeat it. It adds the commands, and how long they took.*
#
# | network | command | steps | time on two CPU cores |
# |---|---|---|---|
# | denoiser | `difflesson train denoiser --device cpu --precision bf16` | 18,000 | 93 minutes |
# | the small one, with its stages and averages | `python benchmarks/training_runs.py train v` | 2,000 | 16 minutes beside other work |
# | curves of any checkpoint | `python benchmarks/training_runs.py curves denoiser --images 250` | none | not measured |
#
# Nobody has measured it on a GPU.

# %%
print(f"denoiser {digits['seconds'] / 60:.0f} minutes, small one {small['seconds'] / 60:.0f} minutes")
assert digits["steps"] == 18_000 and small["steps"] == 2000
