# %% [markdown]
# # 11 · Classifier-free guidance: how can a model guide itself?
#
# At every step, many text-to-image models ask their network twice about the same noisy picture: once with an empty
# prompt, and once with yours. Then they take neither answer: they start at the first, walk to the second, and go on.
# Where does a network get an answer to an empty prompt, why should the line through two answers lead anywhere, and
# what do you get beyond them? Here we train such a network, in ten seconds, on data for which every answer can be
# checked.
#
# **After this chapter you can**
# * train one network to answer with and without a label, and prove why that works;
# * say what its two answers imply about a classifier, and measure how far the network is from being one;
# * translate between $\gamma$ and $w$, and between our time and the paper's log-SNR, to rounding;
# * tell guidance from low temperature, and both from the distribution they are said to sample.
#
# **You need** chapter 00, Bayes' rule, and a training loop you have written yourself. What is used of other chapters
# stands here.
#
# *45 minutes to read, half a minute to run, on a laptop, without a GPU or a network connection.*

# %%
import math

import torch

from difflesson import conventions, exercises, guidance, kernels, losses, plane, plotting
from difflesson.denoiser import network_pair
from difflesson.mixture import GaussianMixture, standard_normal
from difflesson.samplers import draw, sample, time_grid
from difflesson.schedule import cosine

# %% [markdown]
# ## A network that is asked twice
#
# The data are the four blobs of chapter 00 in the plane: the first two are class 0, the last two class 1. All that can
# be asked about them, at any noise level, has a closed form, and `mixture` computes it.

# %%
mixture = plane.four_blobs()
print(f"weights of the blobs {mixture.weights.numpy()}")
print(f"their classes        {mixture.labels}")

# %% [markdown]
# The network sees only samples. It gets a noisy point, the noise level and a label, and guesses the noise. The labels
# are 0, 1, and a third one, 2, that stands for "not told": the *null label*. One call trains it; what `label_dropout`
# does is the matter of this chapter.

# %%
schedule = cosine()
network = plane.train(mixture, schedule, label_dropout=0.2)
count = sum(p.numel() for p in network.parameters())
print(f"{count:,} parameters, {network.classes} classes and null")

# %% [markdown]
# Now we ask. At one noise level, $t = 0.5$ on a scale from 0 (data) to 1 (noise), on a grid of points: what is the
# noise in this point, if nothing is told, and what is it, if the class is 1? Arrows point *against* the guessed noise,
# for that is where a sampler goes.

# %%
t = torch.tensor(0.5, dtype=torch.float64)
axis = torch.linspace(-3, 3, 11).double()
grid = torch.cartesian_prod(axis, axis)
cond, uncond = network_pair(network, schedule, label=1)(grid, t)

# %% tags=["hide-input"]
answers = (
    ("nothing told", "unconditional", -uncond.eps, mixture),
    ("told: class 1", "conditional", -cond.eps, mixture.given(1)),
    ("the difference", "guided", uncond.eps - cond.eps, None),
)
with plotting.style():
    figure, axes = plotting.plt.subplots(1, 3, figsize=(9, 3.1), sharey=True)
    for panel, (title, colour, arrows, known) in zip(axes, answers, strict=True):
        if known:
            level = known.noised(schedule.alpha(t), schedule.sigma(t))
            plotting.density(panel, level.log_prob, (-4.5, 4.5, -4.5, 4.5), alpha=0.6)
        colour = plotting.COLOURS[colour]
        panel.quiver(*grid.T, *arrows.T, color=colour, angles="xy", scale=30, width=0.005)
        panel.set(title=title, xlabel="$x_1$", xlim=(-3.9, 3.9), ylim=(-3.6, 3.6), aspect="equal")
    axes[0].set_ylabel("$x_2$")
    shown = plotting.show(figure, "11_two_answers", alt="Three fields of arrows in the plane. Without a label the arrows lead into the cloud of all data. With label 1 they lead into the cloud of class 1 on the right. Their difference points to the right and away from class 0, and is long on the left side, short inside class 1.")
shown

# %% [markdown]
# *One trained network, one noise level ($t = 0.5$), two questions. Dashed: 50, 90 and 99 % of the noisy data, of both
# classes (left) and of class 1 (middle). Right: what the label changes.*
#
# Without a label the arrows lead to the data, with the label to the data of class 1. The third picture is what guidance
# uses: it points away from class 0, and where the point is in class 1 already, there is little to say. Nobody trained a
# classifier, and yet these arrows know where the classes are.
#
# ## Why train again, when one could add a classifier?
#
# The pictures above are noisy points, made from data by
#
# $$ x_t = \alpha_t\, x_0 + \sigma_t\, \varepsilon, \qquad \varepsilon \sim \mathcal N(0, I), \qquad
# \alpha_t^2 + \sigma_t^2 = 1, \label{eq-forward-marginal} $$
#
# with $t = 0$ for data and $t = 1$ for noise. We write $p_t$ for the density of $x_t$.

# %%
generator = torch.Generator().manual_seed(0)
x_0, label = mixture.sample(20_000, generator)
eps = torch.randn(x_0.shape, generator=generator).double()
x_t = schedule.add_noise(x_0, eps, t)
by_hand = schedule.alpha(t) * x_0 + schedule.sigma(t) * eps
torch.testing.assert_close(x_t, by_hand)
print(f"alpha {schedule.alpha(t):.3f}, sigma {schedule.sigma(t):.3f}")

# %% [markdown]
# A sampler needs the *score* of the noisy data, the gradient of $\log p_t$ in $x$. To sample a class $y$, it needs the
# score of the class. Bayes' rule, $p_t(x \mid y) = p_t(x)\, p_t(y \mid x) / p(y)$, splits it, because $p(y)$ does not
# depend on $x$:
#
# $$ \nabla \log p_t(x \mid y) = \nabla \log p_t(x) + \nabla \log p_t(y \mid x).
# \label{eq-score-decomposition} $$

# %%
noisy = mixture.noised(schedule.alpha(t), schedule.sigma(t))
gradient = noisy.class_gradient(x_t, label=1)
right = noisy.score(x_t) + gradient
torch.testing.assert_close(noisy.given(1).score(x_t), right)
leaf = x_t.clone().requires_grad_()
noisy.class_log_prob(leaf, label=1).sum().backward()
by_autograd = leaf.grad
gap = (by_autograd - gradient).abs().max()
print(f"class_gradient against autograd: {float(gap):.0e}")

# %% [markdown]
# (A guess of the noise is a score in other units: the best guess is $-\sigma_t$ times the score of the noisy data.)
# So there are two ways to the left side of $\eqref{eq-score-decomposition}$. You can add the two terms on the right.
# That is *classifier guidance*: keep a model of all data and add the gradient of a classifier ([Dhariwal & Nichol
# (2021)](https://arxiv.org/abs/2105.05233)). That needs a second network, trained to classify at every noise level;
# ordinary classifiers have only seen clean pictures (chapter 12 tries one). And what enters is the *gradient* of the
# classifier, which its training never looked at.
#
# Or you can learn the left side directly, with the labels. Then the classifier is already there: its gradient is the
# difference of two scores, and one generative model can learn both. This is *classifier-free guidance* ([Ho &
# Salimans (2022)](https://arxiv.org/abs/2207.12598)). Its price: the model must be trained with labels, and be asked
# twice. What it needs is an honest answer without the label. How does one train that?
#
# ## Hide the label now and then
#
# Toss a coin for every example. With probability $p$ (the paper's $p_\text{uncond}$), replace the label by the null
# label $\varnothing$; call what the network sees $y'$:
#
# $$ y' = \begin{cases} \varnothing & \text{with probability } p \\ y & \text{with probability } 1 - p \end{cases}
# \qquad \text{independently of } x_0, y, \varepsilon, t. \label{eq-label-dropout} $$

# %%
null = network.classes
seen = losses.drop_labels(label, 0.2, null, generator)
hidden = seen == null
assert torch.equal(seen[~hidden], label[~hidden])
print(f"hidden: {float(hidden.double().mean()):.3f} of all labels")

# %% [markdown]
# The coin looks at nothing. So the points under the null label are distributed like *all* data, and those under a real
# label like the data of that class. That is the only property we shall need:

# %%
for name, chosen in (("all", hidden >= 0), ("null label", hidden)):
    share = (label[chosen] == 1).double().mean()
    mean = x_0[chosen].mean(0)
    centre = "({:.2f}, {:.2f})".format(*mean)
    print(f"{name:>10}: class 1 {share:.3f}, mean {centre}")

# %% [markdown]
# Now the loss. Our networks predict $v = \alpha_t \varepsilon - \sigma_t x_0$ rather than $\varepsilon$, because $v$
# has about the same size at every noise level. From $v$ and $x_t$ both $\varepsilon = \sigma_t x_t + \alpha_t v$ and
# $x_0 = \alpha_t x_t - \sigma_t v$ follow. With $t$ uniform in $[0, 1]$ and $d$ the number of coordinates,
#
# $$ L(\theta) = \frac1d\; \mathbb E_{x_0, y, \varepsilon, t, y'}
# \big\| v_\theta(x_t, t, y') - v \big\|^2 . \label{eq-v-loss} $$
#
# The naive form takes one batch apart; the package's `v_loss` gets the same random numbers and gives the same number.

# %%
def fresh():
    return torch.Generator().manual_seed(7)


g = fresh()
when, noise = losses.times_and_noise(x_0, g)
seen = losses.drop_labels(label, 0.2, null, g)
a, s = schedule.alpha(when)[:, None], schedule.sigma(when)[:, None]
guess = network(a * x_0 + s * noise, schedule.log_snr(when), seen)
naive = (guess - (a * noise - s * x_0)).square().mean()

# %%
terms = (network, schedule, x_0, label)
compact = losses.v_loss(*terms, 0.2, fresh(), null)
torch.testing.assert_close(compact, naive)
print(f"loss {compact:.4f}")

# %% [markdown]
# A loss of one, after training? $x_t$ does not determine $v$, and nobody can guess the rest. To see what can be
# guessed, hold $x_t$, $t$ and $y'$ fixed and average over the rest. For any random $v$ and any fixed guess $f$,
# $\mathbb E \|f - v\|^2 = \|f - \mathbb E v\|^2 + \mathbb E\|v - \mathbb E v\|^2$: the cross term vanishes. Here the
# average is over $v$ given what the network sees. If it sees a label, that is $\mathbb E[v \mid x_t, y]$. If it sees
# $\varnothing$, the coin has told it nothing, and it is $\mathbb E[v \mid x_t]$. Each case comes with the probability
# of its coin:
#
# $$ d\, L(\theta) = (1 - p)\, \mathbb E \big\| v_\theta(x_t, t, y) - \mathbb E[v \mid x_t, y] \big\|^2
# + p\; \mathbb E \big\| v_\theta(x_t, t, \varnothing) - \mathbb E[v \mid x_t] \big\|^2 + \text{const}_p .
# \label{eq-dropout-optimum} $$
#
# The constant depends on $p$, but not on $\theta$. Two squares, both at least zero, and both can be zero at once,
# since the network gets a different input in each. **So for every $p$ strictly between 0 and 1 the best function is
# the same**: the conditional answer under real labels, the unconditional one under the null label. What $p$ decides
# is how the effort is shared, not what is right. (This is about the best *function*. A network of finite size shares
# its weights between the two tasks, so what it ends with does depend on $p$.)
#
# To execute this, take a network that has learned nothing, so that its distances are large, and a schedule with a
# single noise level, so that $\mathbb E[v \mid \cdot]$ is one function for each label: $\alpha\,\mathbb E[\varepsilon
# \mid \cdot] - \sigma\,\mathbb E[x_0 \mid \cdot]$, which the mixture knows.

# %%
level = cosine(1e-6, -1e-6)  # log-SNR 0 at all times: t = 0.5 above
alpha, sigma = level.alpha(t), level.sigma(t)


def best_v(x, log_snr, seen):
    answer = torch.empty_like(x)
    for y in (0, 1, None):
        mine = seen == (null if y is None else y)
        x0, eps = mixture.denoiser(level, y)(x[mine], t)
        answer[mine] = alpha * eps - sigma * x0
    return answer


# %%
torch.manual_seed(0)
naive_network = plane.PlaneNetwork(classes=2).double()
log_snr = torch.zeros(len(x_t))


def distance(seen):
    with torch.no_grad():
        guess = naive_network(x_t, log_snr, seen)
    return (guess - best_v(x_t, log_snr, seen)).square().mean()


distances = distance(label), distance(torch.full_like(label, null))
print("distance with label {:.3f}, without {:.3f}".format(*distances))

# %%
for p in (0.1, 0.5, 0.9):
    with torch.no_grad():
        loss, floor = (
            losses.v_loss(f, level, x_0, label, p, fresh(), null)
            for f in (naive_network, best_v)
        )
    predicted = (1 - p) * distances[0] + p * distances[1]
    print(f"p {p}: floor {floor:.3f}, above it {loss - floor:.3f}, "
          f"predicted {predicted:.3f}")
    assert abs(loss - floor - predicted) < 0.03

# %% [markdown]
# The floor moves with $p$: it is higher where more labels are hidden, because there is more that nobody can know.
# What lies above it is the sum of two distances, weighted by the coin (the last two columns use different noise and
# agree to sampling error). Training lowers this sum.
#
# ## How well did it learn?
#
# The exact answers are known, so the error is a number and not a curve of losses. We measure it on noisy points of
# class 1, in units of what guidance lives on: the mean square of $\varepsilon_c - \varepsilon_u$, what the label
# changes. The columns below: the error when the label is told, the error when it is not, and that unit.

# %%
x_1, eps_1 = x_0[label == 1], eps[label == 1]


def mean_square(a, b):
    return float((a.eps - b.eps).square().sum(1).mean())


def errors(network, t):
    x = schedule.add_noise(x_1, eps_1, t)
    cond, uncond = mixture.pair(schedule, 1)(x, t)
    told, untold = network_pair(network, schedule, 1)(x, t)
    pairs = (told, cond), (untold, uncond), (cond, uncond)
    return [mean_square(*pair) for pair in pairs]


# %%
print("  t   told  not told   unit  error of v, told")
for time in torch.linspace(0.1, 0.9, 5).double():
    told, untold, unit = errors(network, time)
    shares = f"{told / unit:5.1%}  {untold / unit:8.1%}"
    of_v = told / schedule.alpha(time) ** 2
    print(f"{time:.1f}  {shares}  {unit:.3f}  {of_v:.4f}")
    assert told < 0.1 * unit and untold < 0.3 * unit

# %% [markdown]
# In the middle of the range, where the label changes most, the errors are a few tenths of a percent of that change.
# Near the data ($t = 0.1$) it is much more. The last column says why: the error of $v$, for which the network was
# trained, is about the same at all times; the error of $\varepsilon$ is $\alpha_t^2$ times that, so it is largest
# near the data, where the label changes little. The answer without the label is the worse one at these points, which
# all belong to class 1. It was trained on one example in five.
#
# Those are averages over the data. But a field is defined everywhere, and guidance takes points to places where there
# are no data. So here is the error of the guided answer $\varepsilon_u + 6\,(\varepsilon_c - \varepsilon_u)$ on the
# whole plane, at three noise levels, and in it the points that a sampler guided with $\gamma = 6$ has reached by
# then. First in numbers: the root mean square of the error inside and outside the region that holds 99 % of the noisy
# data, on a window of the plane; then the share of the sampler's points that are outside that region, and the error
# there.

# %%
exact = mixture.pair(schedule, label=1)
learned = network_pair(network, schedule, label=1)
g = torch.Generator().manual_seed(0)
start = torch.randn(1500, 2, generator=g, dtype=torch.float64)
times = time_grid(50)


def path(pair, gamma):
    guided = guidance.classifier_free(pair, gamma)
    return list(sample(kernels.ddim(guided, schedule), start, times))


plain, strong = path(learned, 1.0), path(learned, 6.0)

# %%
learned_6 = guidance.classifier_free(learned, 6.0)
exact_6 = guidance.classifier_free(exact, 6.0)
axis = torch.linspace(-4, 6, 121).double(), torch.linspace(-5, 5, 121).double()
window = torch.cartesian_prod(*axis)


def off_6(x, time):
    return (learned_6(x, time).eps - exact_6(x, time).eps).norm(dim=1)


# %%
for k in (10, 25, 40):
    time = times[k]
    at_t = mixture.noised(schedule.alpha(time), schedule.sigma(time))
    edge = at_t.log_prob(at_t.sample(20_000, fresh())[0]).quantile(0.01)
    inside = at_t.log_prob(window) > edge
    rms = [float(off_6(window[part], time).square().mean().sqrt())
           for part in (inside, ~inside)]
    gone = strong[k][at_t.log_prob(strong[k]) < edge]
    there = float(off_6(gone, time).square().mean().sqrt())
    print("t = {:.1f}: {:.2f} inside, {:.2f} outside;".format(time, *rms),
          f"{len(gone) / 1500:.0%} of the points outside, {there:.2f}")
    assert rms[1] > 2 * rms[0]

# %% tags=["hide-input"]
with plotting.style():
    figure, axes = plotting.plt.subplots(1, 3, figsize=(9, 3.4), sharey=True)
    for panel, k in zip(axes, (10, 25, 40), strict=True):
        time = times[k]
        off = off_6(window, time)
        shades = plotting.plt.matplotlib.colors.LogNorm(0.03, 30)
        bounds = (0.03, 0.1, 0.3, 1, 3, 10, 30)
        maps = panel.contourf(*axis, off.view(121, 121).T, bounds, norm=shades, cmap="GnBu", extend="both")
        level = mixture.noised(schedule.alpha(time), schedule.sigma(time))
        plotting.density(panel, level.log_prob, (-4, 6, -5, 5))
        panel.plot(*strong[k][:700].T, ".", markersize=1.5, color=plotting.COLOURS["guided"])
        panel.set(title=f"$t = {float(time):.1f}$", xlabel="$x_1$", xlim=(-4, 6), ylim=(-5, 5), aspect="equal")
    axes[0].set_ylabel("$x_2$")
    figure.colorbar(maps, ax=axes, label="error of the guided answer", shrink=0.8, format="%g")
    shown = plotting.show(figure, "11_error_map", alt="Three maps of the plane at noise levels t = 0.8, 0.5 and 0.2, shaded by the error of the learned field. The error is small inside the dashed contours of the data and grows by a factor of ten to a hundred towards the corners of the window. The orange points, guided with gamma 6, lie right of the middle of the data at t = 0.8 and move to their right edge and beyond it at t = 0.2.")
shown

# %% [markdown]
# *Error of the learned guided answer against the exact one, on a logarithmic scale. Dashed: 50, 90 and 99 % of all noisy
# data. Dots: samples on their way with $\gamma = 6$.*
#
# On this window the error is more than ten times larger where there are no data. The points do not go where it is
# largest, but strong guidance takes them to the edge of what the network knows, and at the later two times almost a
# third of them over it. Two things make $\gamma = 6$ harder than $\gamma = 1$: the weights in $6\, \varepsilon_c -
# 5\, \varepsilon_u$, with which the errors of the two answers enter, and the points outside the region of the data.
# The loss controls neither. How large the error is out there differs from one trained network to the next; this is
# one of them.
#
# ## Past the answer
#
# Now the line itself. Guidance replaces the guess by
#
# $$ \varepsilon = \varepsilon_u + \gamma\,(\varepsilon_c - \varepsilon_u), \label{eq-cfg} $$
#
# and hands it to any sampler. The paper writes the same line with a weight $w$ that counts from $\varepsilon_c$:
#
# $$ (1 + w)\,\varepsilon_c - w\,\varepsilon_u = \varepsilon_u + \gamma\,(\varepsilon_c - \varepsilon_u),
# \qquad w = \gamma - 1. \label{eq-cfg-weight} $$

# %%
cond, uncond = learned(x_t, t)
naive = uncond.eps + 3.0 * (cond.eps - uncond.eps)
compact = guidance.classifier_free(learned, gamma=3.0)(x_t, t).eps
torch.testing.assert_close(compact, naive)
w = conventions.guidance_scale(3.0, "gamma", "ho-salimans")
paper = (1 + w) * cond.eps - w * uncond.eps
torch.testing.assert_close(paper, naive)
print(f"gamma = 3 is w = {w:g}")

# %% [markdown]
# $\gamma = 0$ is the answer without the label, $\gamma = 1$ the answer with it; in between you interpolate, above 1
# you extrapolate, and below 0 you walk away from the label, like a *negative prompt* without a positive one. We draw
# 1,500 points at each of five scales: from the trained network and from the exact fields, from the same starting
# noise, without further randomness.

# %%
scales = (-1.0, 0.0, 1.0, 3.0, 6.0)
drawn = {
    gamma: (path(learned, gamma)[-1], path(exact, gamma)[-1])
    for gamma in scales
}
for gamma, (mine, true) in drawn.items():
    in_class = mixture.class_log_prob(mine, 1).exp().mean()
    apart = (mine - true).norm(dim=1).median()
    print(f"gamma {gamma:4.1f}: p(class 1) {in_class:.3f}, "
          f"median distance to the exact sample {apart:.3f}")

# %% tags=["hide-input"]
with plotting.style():
    figure, axes = plotting.plt.subplots(2, 5, figsize=(8.8, 2.9), sharex=True, sharey=True)
    for column, (gamma, clouds) in zip(axes.T, drawn.items(), strict=True):
        name = {0.0: "unconditional", 1.0: "conditional"}.get(gamma, "guided")
        for panel, cloud in zip(column, clouds, strict=True):
            panel.plot(*cloud[:280].T, ".", markersize=1.6, color=plotting.COLOURS[name])
            for y in (0, 1):
                shape = mixture.given(y).log_prob
                plotting.density(panel, shape, (-5, 6, -5, 5), linewidths=0.6)
            panel.set(xlim=(-6, 6), ylim=(-3.9, 4.6), aspect="equal")
        column[0].set_title(f"$\\gamma = {gamma:g}$")
        column[1].set_xlabel("$x_1$")
    for row, name in zip(axes, ("trained network", "exact fields"), strict=True):
        row[0].set_ylabel(f"{name}\n$x_2$")
    shown = plotting.show(figure, "11_five_scales", alt="Two rows of five clouds of points for guidance scales -1, 0, 1, 3 and 6; above from the trained network, below from the exact fields, nearly alike. At -1 the points lie to the left of class 0, at 0 on both classes, at 1 on class 1, at 3 and 6 further and further to the right, in two clumps; at 6 the network's points fan out to the right where the exact ones stay together.")
shown

# %% [markdown]
# *Samples for class 1 from the trained network (above) and from the exact fields (below), the same noises in a column
# (280 of 1,500). Dashed: the two classes.*
#
# Rows agree; columns differ. So what happens at $\gamma = 3$ and 6 is no defect of the network: the exact fields do
# it, too. The points leave class 0 behind, gather at the far side of their own class, and clump. At $\gamma = -1$
# they flee from class 1 in the same way. At $\gamma = 6$ you can see that a network was at work: its points fan out
# where it never saw data.
#
# ### Pitfall: $\gamma$ where $w$ is meant
#
# A paper's best result has $w = 1$. You type it into a function that expects $\gamma$, and sample *without* guidance.
# The other way round, $\gamma = 3$ typed for $w$ gives $\gamma = 4$. The error is one $\varepsilon_c - \varepsilon_u$,
# everywhere:

# %%
convert = conventions.guidance_scale
meant = convert(1.0, "ho-salimans"), 3.0
ran = 1.0, convert(3.0, "ho-salimans")
for pair in zip(meant, ran, strict=True):
    means = [path(exact, gamma)[-1][:, 0].mean() for gamma in pair]
    print("meant gamma = {:g}, ran {:g}:".format(*pair), end=" ")
    print("mean of x1 {1:.2f} instead of {0:.2f}".format(*means))

# %% [markdown]
# ### Pitfall: the difference the wrong way round
#
# Two branches come out of one batched call, and it is easy to name them in the wrong order. Then $\varepsilon_c +
# \gamma (\varepsilon_u - \varepsilon_c)$ is a valid line as well: it is guidance with $1 - \gamma$. At $\gamma = 3$ you
# get $-2$, a negative prompt.

# %%
swapped = cond.eps + 3.0 * (uncond.eps - cond.eps)
torch.testing.assert_close(
    swapped, guidance.classifier_free(learned, gamma=-2.0)(x_t, t).eps
)
away = path(learned, -2.0)[-1]
share = mixture.class_log_prob(away, 1).exp().mean()
print(f"asked for class 1 with gamma = 3: {share:.0%} are class 1")
assert share < 0.1

# %% [markdown]
# ## The classifier nobody trained
#
# Bayes' rule, used from the other side, makes a classifier out of two generative models: $p(y \mid x) = p(y)\, p(x \mid
# y) / p(x)$. The paper calls it the *implicit classifier*. Its gradient needs no densities, two guesses are enough,
# since the score is $-\varepsilon / \sigma_t$:
#
# $$ \nabla \log \frac{p_t(x \mid y)}{p_t(x)} = -\frac{\varepsilon_c - \varepsilon_u}{\sigma_t}.
# \label{eq-implicit-classifier} $$
#
# With the exact guesses it must be the gradient of the exact class probability:

# %%
cond, uncond = exact(x_t, t)
naive = -(cond.eps - uncond.eps) / schedule.sigma(t)
compact = guidance.implicit_gradient(exact, schedule)(x_t, t)
torch.testing.assert_close(compact, naive)
torch.testing.assert_close(compact, gradient)
print("implicit gradient = gradient of log p(class 1)")

# %% [markdown]
# And with the trained network? Compare arrows, at the noisy points of class 1.

# %%
x = schedule.add_noise(x_1, eps_1, t)
true, mine = (
    guidance.implicit_gradient(pair, schedule)(x, t)
    for pair in (exact, learned)
)
cosines = torch.cosine_similarity(true, mine)
ratio = (mine - true).square().sum() / true.square().sum()
print(f"median cosine {cosines.median():.4f}, error {ratio:.2%}")
assert cosines.median() > 0.99

# %% [markdown]
# The arrows are nearly the same. But is the network's field the gradient of *any* classifier? In the plane there is a
# sharp test. Let $f$ have continuous derivatives. If $f = \nabla \phi$, then $\partial f_2 / \partial x_1$ and
# $\partial f_1 / \partial x_2$ are both the mixed derivative of $\phi$, so the *curl* vanishes; and in the whole
# plane the converse is true as well:
#
# $$ \operatorname{curl} f = \frac{\partial f_2}{\partial x_1} - \frac{\partial f_1}{\partial x_2},
# \qquad f = \nabla \phi \text{ for some } \phi \iff \operatorname{curl} f = 0 \text{ everywhere}.
# \label{eq-curl} $$
#
# First the naive form, difference quotients, against the package's, automatic differentiation:

# %%
def guess_1(x):
    return learned.cond(x, t).eps


few, h = x[:50], 1e-4
right, up = torch.tensor([[h, 0], [0, h]], dtype=torch.float64)
along_1 = (guess_1(few + right) - guess_1(few - right)) / (2 * h)
along_2 = (guess_1(few + up) - guess_1(few - up)) / (2 * h)
naive = along_1[:, 1] - along_2[:, 0]
compact = plane.curl(guess_1, few)
torch.testing.assert_close(compact, naive, atol=1e-6, rtol=1e-5)
print(f"largest difference {(compact - naive).abs().max():.0e}")

# %% [markdown]
# Then the three fields that matter: the conditional guess, the difference (the "classifier"), and the guided guess.
# The curl is compared with the size of all first derivatives: 1 is a pure rotation, 0 a gradient, and about 0.5 what
# four unrelated derivatives would give. Beside it stands the curl itself, root mean square.

# %%
def fields(pair):
    cond, uncond = pair.cond, pair.uncond
    guided = guidance.classifier_free(pair, 3.0)
    return {
        "conditional": lambda x: cond(x, t).eps,
        "difference": lambda x: cond(x, t).eps - uncond(x, t).eps,
        "guided": lambda x: guided(x, t).eps,
    }


# %%
def turning(field):
    slopes = plane.jacobian(field, x).square().sum((1, 2)).mean()
    turns = plane.curl(field, x).square().mean() / 2
    return float((turns / slopes) ** 0.5)


print("share of turning:   exact  learned   curl of the learned")
for name, field in fields(exact).items():
    mine = fields(learned)[name]
    size = float(plane.curl(mine, x).square().mean().sqrt())
    shares = turning(field), turning(mine)
    print("{:>16}  {:6.0e}  {:7.3f}  {:8.3f}".format(name, *shares, size))
    assert shares[0] < 1e-12 < 1e-3 < shares[1]

# %% tags=["hide-input"]
axis = torch.linspace(-4, 4, 121).double()
points = torch.cartesian_prod(axis, axis)
with plotting.style():
    figure, axes = plotting.plt.subplots(1, 4, figsize=(10.5, 3), sharey=True)
    shown_fields = [("exact: difference", fields(exact)["difference"])]
    shown_fields += [(f"learned: {name}", field) for name, field in fields(learned).items()]
    shown_fields[-1] = ("learned: guided, $\\gamma = 3$", shown_fields[-1][1])
    for panel, (title, field) in zip(axes, shown_fields, strict=True):
        turn = plane.curl(field, points).view(121, 121).T
        bounds = torch.arange(-6.5, 7) / 20
        maps = panel.contourf(axis, axis, turn, bounds, cmap="PuOr", extend="both")
        plotting.density(panel, noisy.log_prob, (-4, 4, -4, 4))
        panel.set(title=title, xlabel="$x_1$", aspect="equal")
    axes[0].set_ylabel("$x_2$")
    figure.colorbar(maps, ax=axes, label="curl", shrink=0.8, ticks=(-0.3, -0.15, 0, 0.15, 0.3))
    shown = plotting.show(figure, "11_curl", alt="Four maps of the curl at t = 0.5. That of the exact difference is blank. Those of the learned conditional guess, difference and guided guess show patches of both signs, faint inside the contours of the data and strong outside, strongest for the guided guess.")
shown

# %% [markdown]
# *Curl at $t = 0.5$. Exact fields have none. The learned ones turn, least where the data are (dashed). The curl of
# the guided answer is that of the conditional one plus twice that of the difference.*
#
# The exact fields are gradients to the last digit, the learned ones are not; $\eqref{eq-v-loss}$ has no term of its
# own for it. Is the curl much of what is wrong with the network? Measure it in the error alone, learned minus exact:

# %%
def error_field(x):
    return learned.cond(x, t).eps - exact.cond(x, t).eps


print(f"share of turning in the error: {turning(error_field):.2f}")

# %% [markdown]
# All of the curl is error, since the exact field has none. But in the error it is less than a field without any
# preference would have, so the error is not mainly a matter of turning. (One network; others give similar shares.)
# What does it matter?
#
# * *For the loss: no more than any other error of its size.* A field without curl may be just as wrong. What it does to
#   samples is not measured here; a sampler only follows arrows, and never asks for their potential.
# * *For the word "classifier": everything.* There is no $\phi$ whose gradient you follow. Walk in a circle, add up what the
#   arrows promise, and you come back with another $\log p(y \mid x)$ than you left with. Methods that need the *value* of a
#   density ratio (rejection, Metropolis steps) cannot get it from such arrows without choosing a path.

# %%
angle = 2 * math.pi * torch.arange(400).double() / 400
around = torch.stack([angle.cos(), angle.sin()], dim=1)
ahead = torch.stack([-angle.sin(), angle.cos()], dim=1)
for name, pair in (("exact", exact), ("learned", learned)):
    arrows = guidance.implicit_gradient(pair, schedule)
    for radius in (1, 4):
        uphill = (arrows(radius * around, t) * ahead).sum(1).mean()
        gain = float(uphill * 2 * math.pi * radius)
        print(f"{name:>7}, radius {radius}: gain {gain:8.1e}")

# %% [markdown]
# The exact arrows promise nothing for a walk in a circle. The learned ones promise something; its size and sign are
# this network's own.
#
# ## How often should the label be hidden?
#
# By $\eqref{eq-dropout-optimum}$, $p$ does not change the best function. It changes how a limited effort is shared.
# So give networks the same small effort, with different $p$, three seeds each. The first two columns of the table are
# errors as above, averaged over five times. The last is the median distance of samples at $\gamma = 3$ from those of
# the exact fields, same noise: the mean over the seeds, in brackets the smallest and the largest.

# %%
coins, seeds = (0.0, 0.1, 0.2, 0.5, 0.9, 1.0), (0, 1, 2)
effort = {"steps": 300, "batch": 512}
swept = {
    (p, seed): plane.train(mixture, schedule, p, seed=seed, **effort)
    for p in coins for seed in seeds
}


# %%
def marks(trained):
    rows = [errors(trained, k / 10) for k in (1, 3, 5, 7, 9)]
    told, untold, unit = torch.tensor(rows).mean(0).tolist()
    drawn_3 = path(network_pair(trained, schedule, 1), 3.0)[-1]
    off = (drawn_3 - drawn[3.0][1]).norm(dim=1).median()
    return told / unit, untold / unit, float(off)


# %%
found = {}
print("  p   told  not told  samples off by")
for p in coins:
    found[p] = torch.tensor([marks(swept[p, seed]) for seed in seeds])
    told, untold, off = found[p].mean(0).tolist()
    span = "{:.2f} to {:.2f}".format(*found[p][:, 2].aminmax())
    print(f"{p:3.1f} {told:6.1%}  {untold:8.1%}  {off:.2f} ({span})")
assert max(found[p][:, 2].max() for p in (0.1, 0.2, 0.5, 0.9)) < 1
assert min(found[0.0][:, 2].min(), found[1.0][:, 2].min()) > 1

# %% tags=["hide-input"]
with plotting.style():
    figure, (left, middle) = plotting.plt.subplots(1, 2, figsize=(8, 2.9))
    place, inner = range(len(coins)), slice(1, -1)
    table = torch.stack([found[p] for p in coins])  # (coins, seeds, marks)
    for panel, mark, colour in ((left, 0, "conditional"), (left, 1, "unconditional"), (middle, 2, "guided")):
        colour = plotting.COLOURS[colour]
        panel.plot(place[inner], table[inner, :, mark].mean(1), "-", color=colour)
        for k in place:
            panel.plot([k] * len(seeds), table[k, :, mark], "o", color=colour, markersize=4)
    left.text(1.0, 0.014, "with the label", color=plotting.COLOURS["conditional"])
    left.text(1.0, 0.36, "without", color=plotting.COLOURS["unconditional"])
    left.set(ylabel="error of the answer", title="one is paid for by the other", yscale="log", ylim=(0.01, 14))
    middle.set(ylabel="distance to the exact sample", title="samples at $\\gamma = 3$", yscale="log")
    middle.set_yticks((0.2, 0.5, 1, 2), ("0.2", "0.5", "1", "2"))
    middle.minorticks_off()
    for panel in (left, middle):
        panel.set(xlabel="probability $p$ of hiding the label", xticks=place)
        panel.set_xticklabels(f"{p:g}" for p in coins)
    shown = plotting.show(figure, "11_how_often", alt="Left: the error of the answer with the label grows with p and jumps at p = 1; that of the answer without the label falls with p, from a jump at p = 0. Right: the distance of guided samples to the exact ones is several times larger at p = 0 and p = 1 than in between, where it is smallest at 0.5; three dots at each p scatter by a factor of up to two.")
shown

# %% [markdown]
# *Equal effort, different $p$; three networks each (dots) and their mean (line). Left: mean square error relative to what
# the label changes. Right: distance of guided samples from the exact ones.*
#
# As $p$ grows, the answer with the label gets worse and the one without gets better. At both ends one of the two is missing
# altogether, and so is guidance. In between the differences are of the size of the scatter between seeds, with the best samples near
# $p = 0.5$. On ImageNet with $64 \times 64$ pixels, Ho & Salimans tried 0.1, 0.2 and 0.5, and found 0.5 the worst throughout.
# There is no universal $p$; there is a balance between two tasks, and you must measure it in your case, with more than one seed.
#
# ### Pitfall: no label was ever hidden
#
# At $p = 0$ training runs well and the loss is the *lowest* of all, because labels help. But the row of the null label in
# the table of embeddings was never touched. It holds random numbers, and the network answers to them anyway:

# %%
for p in coins:
    terms = (swept[p, 0], schedule, x_0, label, p)
    print(f"p = {p}: loss {losses.v_loss(*terms, fresh(), null):.3f}")
far = {}
for p in (0.0, 0.2):
    cloud = path(network_pair(swept[p, 0], schedule, 1), 3.0)[-1]
    far[p] = float((cloud.norm(dim=1) > 5).double().mean())
    print(f"p = {p}, gamma = 3: {far[p]:.0%} of samples farther out than 5")
assert far[0.0] > 0.1 > far[0.2]

# %% [markdown]
# The loss does not show the mistake: it is the smallest where guidance is ruined. At $\gamma = 1$ nothing shows it
# either, because the null label is not used there. Look at the samples without label before you trust the difference.
#
# ## The paper's own words: everything in log-SNR
#
# Ho & Salimans have no time. Their clock is the log signal-to-noise ratio $\lambda = \log(\alpha^2 / \sigma^2)$, large
# at the data, and they write $z_\lambda$ for our $x_t$. Since $\alpha^2 + \sigma^2 = 1$, $\lambda$ alone gives
# $\alpha_\lambda^2 = 1 / (1 + e^{-\lambda})$ and $\sigma_\lambda^2 = 1 / (1 + e^{\lambda})$. In training $\lambda$ is
# drawn with a uniform $u \in [0, 1]$ through
#
# $$ \lambda = -2 \log \tan(a u + b), \qquad b = \arctan e^{-\lambda_\text{max} / 2}, \quad
# a = \arctan e^{-\lambda_\text{min} / 2} - b. \label{eq-cosine} $$
#
# That is our cosine schedule with $t = u$: $\alpha = \cos(a u + b)$. The paper's limits are $\pm 20$, and so are ours.

# %%
u = torch.linspace(0, 1, 101).double()
b = math.atan(math.exp(-20 / 2))
a = math.atan(math.exp(20 / 2)) - b
naive = -2 * torch.log(torch.tan(a * u + b))
compact = cosine(20, -20).log_snr(u)
torch.testing.assert_close(compact, naive, atol=1e-9, rtol=0)
print(f"from {compact[0]:.1f} at u = 0 to {compact[-1]:.1f} at u = 1")

# %% [markdown]
# **Algorithm 1** trains. One pass, line by line: an example with its label; hide the label with probability $p$; draw
# $\lambda$; draw $\varepsilon$; add the noise; a gradient step (left out here) on
# $\|\varepsilon_\theta(z_\lambda, c) - \varepsilon\|^2$. The function returns the paper's squares, and beside them $\alpha^2$ times those of our loss
# $\eqref{eq-v-loss}$.

# %%
def algorithm_1(x, c, p, generator):
    c = losses.drop_labels(c, p, null, generator)
    u = torch.rand(len(x), generator=generator).double()
    lam = -2 * torch.log(torch.tan(a * u + b))
    eps = torch.randn(x.shape, generator=generator).double()
    alpha = torch.sigmoid(lam).sqrt()[:, None]
    sigma = torch.sigmoid(-lam).sqrt()[:, None]
    z = alpha * x + sigma * eps
    v_theta = network(z, lam, c)
    eps_theta = sigma * z + alpha * v_theta
    ours = alpha**2 * (v_theta - (alpha * eps - sigma * x)) ** 2
    return (eps_theta - eps) ** 2, ours


# %%
paper, ours = algorithm_1(x_0, label, 0.2, fresh())
torch.testing.assert_close(paper, ours, atol=1e-12, rtol=1e-9)
print(f"loss in eps {paper.sum(1).mean():.4f}")

# %% [markdown]
# The paper trains $\varepsilon_\theta$, we train $v_\theta$; for one example the losses differ by the factor
# $\alpha^2$, which is a weight of noise levels. By the argument above, the best function does not depend on such
# weights either.
#
# **Algorithm 2** samples. A step goes from $\lambda$ to a larger $\lambda'$, in our words from $t$ to an earlier $s$.
# Three facts about Gaussians are needed, and all are shortest in log-SNR. With $r = e^{\lambda - \lambda'} < 1$, noise
# is *added* on the way from $\lambda'$ to $\lambda$ by
#
# $$ q(z_\lambda \mid z_{\lambda'}) = \mathcal N\Big(\frac{\alpha_\lambda}{\alpha_{\lambda'}} z_{\lambda'},\;
# \sigma^2_{\lambda \mid \lambda'} I\Big), \qquad \sigma^2_{\lambda \mid \lambda'} = (1 - r)\, \sigma_\lambda^2 .
# \label{eq-forward-transition} $$
#
# (The variances must add up: $\sigma_\lambda^2 = (\alpha_\lambda / \alpha_{\lambda'})^2 \sigma_{\lambda'}^2 +
# \sigma^2_{\lambda|\lambda'}$, and $(\alpha_\lambda / \alpha_{\lambda'})^2 \sigma_{\lambda'}^2 = r\, \sigma_\lambda^2$
# by the definition of $\lambda$.)

# %%
t, s = torch.tensor([0.5, 0.3]).double()
lam, lam_next = schedule.log_snr(t), schedule.log_snr(s)
alpha = torch.sigmoid(lam).sqrt()
alpha_next = torch.sigmoid(lam_next).sqrt()
sigma_2, sigma_2_next = torch.sigmoid(-lam), torch.sigmoid(-lam_next)
r = torch.exp(lam - lam_next)
alpha_ts, sigma_ts = schedule.transition(t, s)
torch.testing.assert_close(alpha_ts, alpha / alpha_next)
torch.testing.assert_close(sigma_ts**2, (1 - r) * sigma_2)
print(f"r = {r:.3f}, added variance {sigma_ts**2:.3f}")

# %% [markdown]
# If the clean point $x$ is known, the step back is Gaussian: what $z_\lambda$ and $x$ say about $z_{\lambda'}$ is
# weighted by precision. Precisions add: $1 / \sigma_{\lambda'}^2 + (\alpha_\lambda / \alpha_{\lambda'})^2 /
# \sigma^2_{\lambda \mid \lambda'} = 1 / \big((1 - r)\, \sigma_{\lambda'}^2\big)$. So the mean is
#
# $$ \tilde\mu_{\lambda' \mid \lambda}(z_\lambda, x) = r\, \frac{\alpha_{\lambda'}}{\alpha_\lambda}\, z_\lambda
# + (1 - r)\, \alpha_{\lambda'}\, x \label{eq-ddpm} $$
#
# and the variance is
#
# $$ \tilde\sigma^2_{\lambda' \mid \lambda} = (1 - r)\, \sigma_{\lambda'}^2 . \label{eq-posterior-variance} $$
#
# The sampler does not know $x$. It puts in the guess $\tilde x = (z_\lambda - \sigma_\lambda \tilde\varepsilon) /
# \alpha_\lambda$, made from the guided $\tilde\varepsilon$. That is DDPM's step.

# %%
guided = guidance.classifier_free(learned, 3.0)
z = x_t[:1000]
clean = (z - sigma_2.sqrt() * guided(z, t).eps) / alpha
naive = r * alpha_next / alpha * z + (1 - r) * alpha_next * clean
step = kernels.ddpm(guided, schedule, variance="small")(z, t, s)
torch.testing.assert_close(step.mean, naive, atol=1e-12, rtol=0)
small = kernels.posterior_variance(schedule, t, s)
torch.testing.assert_close(small, (1 - r) * sigma_2_next)
print(f"means agree; variance {small:.4f}")

# %% [markdown]
# But $x$ is not known, so some variance is missing: $\eqref{eq-posterior-variance}$ is too small. For data that are a
# standard Gaussian, the right one would be $\sigma^2_{\lambda \mid \lambda'}$. For a narrower Gaussian the truth lies
# in between, and the paper interpolates logarithms with a number $v \in [0, 1]$ (not the $v$ that the network
# predicts):
#
# $$ \text{variance} = \big(\tilde\sigma^2_{\lambda' \mid \lambda}\big)^{1 - v}
# \big(\sigma^2_{\lambda \mid \lambda'}\big)^{v}. \label{eq-variance-interpolation} $$

# %%
for v in (0.0, 0.3, 1.0):
    naive = small ** (1 - v) * ((1 - r) * sigma_2) ** v
    step = kernels.ddpm(guided, schedule, variance=v)(z, t, s)
    torch.testing.assert_close(step.var, naive, atol=1e-12, rtol=0)
    print(f"v = {v}: variance {step.var:.4f}")

# %% [markdown]
# Now the whole of Algorithm 2 in the paper's symbols, with $w$ and $\lambda$ and no word of ours but the network; and
# the package's loop, with the same random numbers.

# %%
def guess_clean(z, w, lam):
    alpha = torch.sigmoid(lam).sqrt()
    sigma = torch.sigmoid(-lam).sqrt()
    clock, both = torch.full((len(z),), float(lam)), []
    for c in (1, null):
        v_theta = network(z, clock, torch.full((len(z),), c))
        both.append(sigma * z + alpha * v_theta)
    eps = (1 + w) * both[0] - w * both[1]
    return (z - sigma * eps) / alpha


# %%
def algorithm_2(z, w, v, lams, generator):
    for lam, lam_next in zip(lams[:-1], lams[1:], strict=True):
        clean, r = guess_clean(z, w, lam), torch.exp(lam - lam_next)
        alpha = torch.sigmoid(lam).sqrt()
        alpha_next = torch.sigmoid(lam_next).sqrt()
        mean = r * alpha_next / alpha * z
        mean = mean + (1 - r) * alpha_next * clean
        small = (1 - r) * torch.sigmoid(-lam_next)
        large = (1 - r) * torch.sigmoid(-lam)
        noise = standard_normal(z.shape, z, generator)
        z = mean + (small ** (1 - v) * large**v).sqrt() * noise
    return guess_clean(z, w, lams[-1])


# %%
w, v = 2.0, 0.3
theirs = algorithm_2(start, w, v, schedule.log_snr(times), fresh())
guided = guidance.classifier_free(learned, 1 + w)
kernel = kernels.ddpm(guided, schedule, variance=v)
last = draw(kernel, start, times, fresh())
ours = guided(last, times[-1]).x0
torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=0)
print(f"after 50 steps, apart by {(ours - theirs).abs().max():.0e}")

# %% [markdown]
# After fifty noisy steps the two are equal to twelve digits: our $t$ is the paper's $u$, our $\gamma$ its $1 + w$, our
# `variance` its $v$. Uniform steps in $u$ are what both walk, and the paper's last line, $z_{T+1} = \tilde x_T$, is one
# more guess at the end.
#
# What is $v$ worth? As the steps get short, $r \to 1$ and both variances become the same. So it can matter only for few
# steps. We draw class 1 without guidance and with exact fields, and compare the spread (the trace of the covariance)
# with the true one.

# %%
def spread(x):
    return float(torch.trace(x.T.cov()))


truth = spread(mixture.given(1).sample(200_000, fresh())[0])
for count in (5, 20, 100):
    found = []
    for v in (0.0, 0.3, 1.0):
        kernel = kernels.ddpm(exact.cond, schedule, variance=v)
        x = draw(kernel, start, time_grid(count), fresh())
        found.append(spread(x) / truth)
    print(f"{count:3d} steps: v = 0, 0.3, 1 give", end=" ")
    print("{:.2f}, {:.2f}, {:.2f} of the spread".format(*found))

# %% [markdown]
# With five steps the small variance, $v = 0$, loses more than a third of the spread, and $v = 1$ is nearly right,
# since this class is about as wide as a standard Gaussian. With a hundred, $v$ hardly matters (1,500 samples know
# their spread to about 3 %). The paper used 0.3 for one of its models and 0.2 for the other. It is a repair for few
# steps, and nothing else in this chapter depends on it.
#
# ## Colder is not sharper
#
# Before there was guidance, one wish was old: fewer varied samples, and better ones. Other generative models get them
# by lowering the *temperature*: sample $p(x \mid y)^\kappa$ with $\kappa > 1$. Why not here? The score of $p^\kappa$ is
# $\kappa \nabla \log p$, so multiply the guess:
#
# $$ \varepsilon \to \kappa\, \varepsilon . \label{eq-low-temperature} $$

# %%
t = torch.tensor(0.5).double()
naive = 3.0 * exact.cond(x_t, t).eps
cold = guidance.tempered(exact.cond, 3.0, schedule)
torch.testing.assert_close(cold(x_t, t).eps, naive)
clean = (x_t - schedule.sigma(t) * naive) / schedule.alpha(t)
torch.testing.assert_close(cold(x_t, t).x0, clean)
print("eps is multiplied, x0 goes with it")

# %% [markdown]
# The trap: this is right at $t = 0$ only. At $t > 0$ the sampler needs the score of $p^\kappa$ *with noise added*,
# and that is not $\kappa$ times the score of $p$ with noise added. For a single Gaussian of variance $C$ the outcome
# can be computed. Put $\bar x = x_t / \alpha_t$ and $q = \sigma_t^2 / \alpha_t^2$: then $\bar x = x_0 + \sqrt q\,
# \varepsilon$ has the score $-\bar x / (C + q)$. One short step of DDPM, a sampler that adds fresh noise at each
# step, pulls from $q$ to $q - dq$ by $dq$ times the score and adds noise of variance $dq$, so the variance $V$ of
# $\bar x$ becomes $V (1 - 2 \kappa\, dq / (C + q)) + dq$:
#
# $$ \frac{dV}{dq} = \frac{2 \kappa V}{C + q} - 1 \quad\Longrightarrow\quad V = \frac{C + q}{2 \kappa - 1} . $$
#
# (Other solutions differ by a multiple of $(C + q)^{2 \kappa}$, which has died out at small $q$ if the start was far
# away.) At $q = 0$ there is $C / (2 \kappa - 1)$ left, and not the $C / \kappa$ of $p^\kappa$. DDIM adds no noise; it
# follows the ordinary differential equation with the same marginals, which pulls half as much. Then $V \propto (C +
# q)^\kappa$. From $V = q = Q$ at the start it ends at about $C^\kappa Q^{1 - \kappa}$, which for $\kappa > 1$
# vanishes when the start is far away. Without noise, *everything ends in one point*.

# %%
identity = torch.eye(2)[None].double()
blob = GaussianMixture([1.0], torch.zeros(1, 2).double(), identity)
first = torch.randn(4000, 2, generator=g, dtype=torch.float64)
for kappa in (1.0, 2.0, 3.0):
    cold = guidance.tempered(blob.denoiser(schedule), kappa, schedule)
    kernel = kernels.ddpm(cold, schedule)
    got = draw(kernel, first, time_grid(400), fresh()).var()
    formula, wanted = 1 / (2 * kappa - 1), 1 / kappa
    print(f"kappa {kappa:g}: variance {got:.3f}, "
          f"formula {formula:.3f}, wanted {wanted:.3f}")
    assert abs(got / formula - 1) < 0.08

# %% [markdown]
# Colder than ordered, by a known amount. Now class 1, two blobs of weights 0.625 and 0.375. To be fair to both methods,
# compare $\kappa$ and $\gamma$ at the *same sharpness*: the same mean probability of class 1. Same sampler too, DDPM
# with 200 steps. And beside the samples the moments of what was ordered, $p(x \mid y)^3$, summed over a fine grid.

# %%
def ancestral(denoiser):
    kernel = kernels.ddpm(denoiser, schedule)
    return draw(kernel, first, time_grid(200), fresh())


sharp = {"gamma = 1": ancestral(exact.cond)}
for gamma, kappa in ((2.0, 3.0), (3.0, 5.0)):
    guided = guidance.classifier_free(exact, gamma)
    sharp[f"gamma = {gamma:g}"] = ancestral(guided)
    cold = guidance.tempered(exact.cond, kappa, schedule)
    sharp[f"kappa = {kappa:g}"] = ancestral(cold)

# %%
class_1 = mixture.given(1)
blobs = GaussianMixture(class_1.weights, class_1.means, class_1.covs)
axis = torch.linspace(-6, 8, 281).double()
points = torch.cartesian_prod(axis, axis)


def moments(x, weights):
    sure = weights @ mixture.class_log_prob(x, 1).exp()
    small = weights @ blobs.class_log_prob(x, 1).exp()
    mean = weights @ x
    square = weights @ (x - mean).square().sum(1)
    return [float(m) for m in (mean[0], sure, small, square)]


def summary(x):
    return moments(x, torch.full((len(x),), 1 / len(x)).double())


# %%
ordered = moments(points, (3 * class_1.log_prob(points)).softmax(0))
rows = {name: summary(x) for name, x in sharp.items()}
print("           mean x1  p(class 1)  small blob  spread")
for name, row in {**rows, "p(x|y)^3": ordered}.items():
    print("{:>9}  {:7.2f}  {:10.3f}  {:10.2f}  {:6.2f}".format(name, *row))

# %% tags=["hide-input"]
with plotting.style():
    figure, axes = plotting.plt.subplots(1, 3, figsize=(8, 2.9), sharey=True)
    titles = {"gamma = 1": "plain, $\\gamma = 1$", "gamma = 2": "guided, $\\gamma = 2$", "kappa = 3": "cold, $\\kappa = 3$"}
    for panel, name, colour in zip(axes, titles, ("conditional", "guided", "other"), strict=True):
        panel.plot(*sharp[name][:1200].T, ".", markersize=1.5, color=plotting.COLOURS[colour])
        plotting.density(panel, class_1.log_prob, (-3, 5, -4, 4))
        panel.set(title=titles[name], xlabel="$x_1$", xlim=(-2.4, 4.4), ylim=(-3, 3), aspect="equal")
    axes[0].set_ylabel("$x_2$")
    shown = plotting.show(figure, "11_cold", alt="Three clouds over the dashed contours of class 1. Plain samples fill both blobs. Guided ones with gamma 2 fill them, moved to the right, with more in the small blob. Cold ones with kappa 3 are two tight knots at the centres, the one in the small blob much thinner.")
shown

# %% [markdown]
# *Class 1 (dashed) by DDPM with the exact fields. The middle and the right cloud have the same mean probability of
# class 1, and got it in opposite ways.*
#
# Guidance becomes sure of its class by moving away from the other one (the mean of $x_1$ grows), and with this
# sampler the total spread stays. Low temperature knows nothing about the other class. It becomes sure only because it
# shrinks each blob towards its centre: almost half of the spread is lost, more than ordered, and the small blob is
# starved, from 0.37 to 0.24, where 0.34 was ordered. (Guidance moves it the other way, to 0.49. What $\gamma$ is said
# to order is the next section.) On images, scaled scores gave blurred samples of low quality, as Ho & Salimans report
# from [Dhariwal & Nichol (2021)](https://arxiv.org/abs/2105.05233); centres of blobs, averages of many pictures,
# would look like that. Without noise, finally, one Gaussian would end with a variance of about $C^\kappa Q^{1 -
# \kappa}$, here $e^{-40}$, a few $10^{-18}$. Two blobs do the same:

# %%
cold = guidance.tempered(exact.cond, 3.0, schedule)
kernel, even = kernels.ddim(cold, schedule), time_grid(400, schedule)
x = draw(kernel, first, even)
centre = "({:.2f}, {:.2f})".format(*x.mean(0))
print(f"4,000 samples, spread {spread(x):.0e} around {centre}")
assert spread(x) < 1e-6

# %% [markdown]
# ## What does $\gamma > 1$ sample?
#
# By $\eqref{eq-implicit-classifier}$ the guided score is that of $p_t(x)\, p_t(y \mid x)^\gamma$, up to its
# normaliser. So do we sample $p(x)\, p(y \mid x)^\gamma$, class 1 with sharpened odds? You know the trap by now:
# noising a sharpened density is not sharpening a noised one. The guided score is right at $t = 0$; at other $t$ it is
# the score of a sharpened noisy density. At $\gamma = 1$ the two are the same. To see what becomes of it at $\gamma =
# 3$, take the network out of the game. The exact fields, fine steps, three samplers that agree at $\gamma = 1$:
# without noise (DDIM), with the usual noise (DDPM), and with noise of twice that standard deviation (a reverse SDE:
# with the score multiplied by $(1 + \rho^2) / 2$, noise of $\rho$ times the usual size leaves the distribution at
# each $t$ unchanged, if the field is a diffusion's); and the target itself, summed over the grid. All start at $t =
# 0.99$, because the rate of the SDE explodes at 1.

# %%
def run(name, gamma):
    guided = guidance.classifier_free(exact, gamma)
    kernel = {
        "DDIM": kernels.ddim(guided, schedule),
        "DDPM": kernels.ddpm(guided, schedule),
        "DDPM x 2": kernels.reverse_sde(guided, schedule, rho=2.0),
    }[name]
    return draw(kernel, first, time_grid(300, start=0.99), fresh())


solvers = "DDIM", "DDPM", "DDPM x 2"
looks = {(n, y): run(n, y) for y in (1.0, 3.0) for n in solvers}

# %%
def target(gamma):
    log = gamma * mixture.class_log_prob(points, 1)
    log = log + mixture.log_prob(points)
    return moments(points, log.softmax(0))


line = "{:>9}  {:7.2f}  {:8.3f}  {:10.2f}  {:6.2f}"
for gamma in (1.0, 3.0):
    print(f"gamma = {gamma:g}  mean x1  p(class)  small blob  spread")
    rows = {name: summary(looks[name, gamma]) for name in solvers}
    for name, row in {"target": target(gamma), **rows}.items():
        print(line.format(name, *row))
        off = row[0] - target(gamma)[0]
        assert abs(off) < 0.08 or (gamma == 3 and off > 0.2)

# %% tags=["hide-input"]
with plotting.style():
    figure, axes = plotting.plt.subplots(1, 2, figsize=(8, 2.9), sharey=True)
    for panel, gamma in zip(axes, (1.0, 3.0), strict=True):
        log = (mixture.log_prob(points) + gamma * mixture.class_log_prob(points, 1)).view(281, 281)
        curve = log.logsumexp(1).softmax(0) / (axis[1] - axis[0])
        panel.plot(axis, curve, "--", color=plotting.COLOURS["truth"], label="$p(x)\\,p(y\\mid x)^\\gamma$")
        for name, look in (("DDIM", "solid"), ("DDPM", "dashdot"), ("DDPM x 2", "dotted")):
            edges = torch.linspace(-3, 5, 41)
            height = torch.histogram(looks[name, gamma][:, 0].float(), edges, density=True).hist
            label = name.replace(" x 2", ", noise x 2")
            colour = plotting.COLOURS["conditional" if gamma == 1 else "guided"]
            panel.stairs(height, edges, color=colour, linestyle=look, linewidth=1.4, label=label)
        panel.set(title=f"$\\gamma = {gamma:g}$", xlabel="$x_1$", xlim=(-2.5, 4.7))
    axes[0].set_ylabel("density of $x_1$")
    axes[0].legend(loc="upper left", fontsize=8)
    shown = plotting.show(figure, "11_three_samplers", alt="Densities of the first coordinate. At gamma 1 the histograms of three samplers lie on the dashed target, two humps near 0.5 and 2.4. At gamma 3 the target has hardly moved, while the histograms differ from it and from one another: DDIM is farthest to the right with its higher hump near 2.8, DDPM is next, and DDPM with twice the noise is nearest to the target.")
shown

# %% [markdown]
# *First coordinate of 4,000 samples with the exact fields, and the density that guidance is said to sample (dashed).
# One guided field, three answers.*
#
# At $\gamma = 1$ everybody agrees. At $\gamma = 3$ the target hardly moves, since class 1 was fairly sure already,
# and none of these three finds it: all go too far to the right, give the small blob too much, and differ from one
# another. More noise on the way brings the mean closer. There is no network here, and the steps are fine (DDPM above
# had a mean of 1.83 with 200 of them, DDIM 2.25 with 50), so neither is to blame. "The distribution that guidance
# samples" is not one distribution: it depends on the sampler. Why, and which of the answers can be computed in
# advance, is the matter of chapter 17 ([Bradley & Nakkiran (2024)](https://arxiv.org/abs/2408.09000)); how to hit the
# target after all, of chapter 18.
#
# ## Exercises
#
# Type where it says "your turn", run the cell, then the check below it. Tensors come in float64.
#
# ### Exercise 11.1 (easy)
#
# A library has two predictions of $v$ and the paper's weight $w$. Return the guided prediction of $v$. (Why is it the
# same line as for $\varepsilon$?)
#
# <details><summary>Hint</summary>
#
# At one $x_t$, $\varepsilon = \sigma_t x_t + \alpha_t v$. Write down the guided $\varepsilon$, put this in for all
# three, and see what becomes of $\sigma_t x_t$.
#
# </details>

# %% tags=["exercise"]
def guided_v(v_cond, v_uncond, w):
    ### BEGIN SOLUTION
    return (1 + w) * v_cond - w * v_uncond
    ### END SOLUTION


# %%
exercises.check("11.1", guided_v)

# %% [markdown]
# ### Exercise 11.2 (medium)
#
# You have the gradient of the implicit classifier as a function, `gradient(x)` with `x` of shape `(N, 2)`. How much
# does $\log p(y \mid x)$ grow from point `a` to point `b`, both of shape `(2,)`? Return one number, right to three
# digits. For which fields does your answer depend on the path you chose?
#
# <details><summary>Hint</summary>
#
# Along $x(u) = a + u\,(b - a)$ the derivative of $\log p(y \mid x(u))$ in $u$ is $(b - a) \cdot \nabla \log p$. Average
# it over many $u$ in $[0, 1]$; middles of equal intervals do well.
#
# </details>

# %% tags=["exercise"]
def log_prob_gain(gradient, a, b):
    ### BEGIN SOLUTION
    # Any path will do, as long as the field is a gradient; a straight one.
    u = (torch.arange(1000, dtype=a.dtype) + 0.5) / 1000
    x = a + u[:, None] * (b - a)
    return (gradient(x) @ (b - a)).mean()
    ### END SOLUTION


# %%
exercises.check("11.2", log_prob_gain)

# %% [markdown]
# ### Exercise 11.3 (medium)
#
# One step of Algorithm 2 from $\lambda$ to $\lambda' > \lambda$, given `z` and the guess `clean` of the data. Return
# the mean and the variance, and use no clock but log-SNR. `lam`, `lam_next` and `v` are numbers.
#
# <details><summary>Hint</summary>
#
# $\eqref{eq-ddpm}$, $\eqref{eq-posterior-variance}$, $\eqref{eq-forward-transition}$ and
# $\eqref{eq-variance-interpolation}$, in this order. $\alpha^2$ is $1 / (1 + e^{-\lambda})$. Which of $\lambda$,
# $\lambda'$ belongs to the noisier point?
#
# </details>

# %% tags=["exercise"]
def log_snr_step(z, clean, lam, lam_next, v):
    ### BEGIN SOLUTION
    def alpha(lam):
        return (1 + math.exp(-lam)) ** -0.5

    r = math.exp(lam - lam_next)
    mean = r * alpha(lam_next) / alpha(lam) * z
    mean = mean + (1 - r) * alpha(lam_next) * clean
    small = (1 - r) / (1 + math.exp(lam_next))
    large = (1 - r) / (1 + math.exp(lam))
    return mean, small ** (1 - v) * large**v
    ### END SOLUTION


# %%
exercises.check("11.3", log_snr_step)

# %% [markdown]
# ### Exercise 11.4 (hard)
#
# In one dimension let all data be $\mathcal N(0, U)$ and the class $\mathcal N(0, C)$ with $C < U$. Return two
# variances for a scale $\gamma \ge 0$: that of $p(x)\, p(y \mid x)^\gamma \propto p(x)^{1 - \gamma}\, p(x \mid
# y)^\gamma$, and that of what guidance samples without noise (DDIM, infinitely many steps, started at a large $q =
# \sigma_t^2 / \alpha_t^2$). For $0 \le \gamma \le 1$ they are two kinds of mean of $C$ and $U$.
#
# <details><summary>Hint</summary>
#
# For the first, add up exponents. For the second, with $\bar x = x_t / \alpha_t$ and $q = \sigma_t^2 / \alpha_t^2$ the
# noiseless sampler solves $d\bar x / dq = \varepsilon / (2 \sqrt q)$, and for $\mathcal N(0, C)$ the best guess is
# $\varepsilon = \sqrt q\, \bar x / (C + q)$. The guided equation is $d \log \bar x / dq = \dots$; at the start $\bar x$
# has variance $q$.
#
# </details>

# %% tags=["exercise"]
def guided_variances(class_variance, all_variance, gamma):
    ### BEGIN SOLUTION
    precision = gamma / class_variance + (1 - gamma) / all_variance
    geometric = class_variance**gamma * all_variance ** (1 - gamma)
    return 1 / precision, geometric
    ### END SOLUTION


# %%
exercises.check("11.4", guided_variances)

# %% [markdown]
# ### An open question
#
# Here the curl was small. Does it stay so, and does it matter, when $\gamma$ grows and the samples leave the data?
# One way to find out: project the learned difference on gradients (fit a scalar network $\phi$ to it, by least
# squares on noisy data), guide with $\nabla \phi$ instead, and compare both with the exact samples of this chapter at
# $\gamma = 1, 3, 6$. What you compare must be matched in error as well as in curl; how?
#
# ## Remember
#
# 1. Hide the label at random, and one network learns both answers. How often changes how the effort is shared, not the
#    best function.
# 2. $\varepsilon_u - \varepsilon_c$ is $\sigma_t$ times the gradient of an implicit classifier. For exact fields it is
#    a gradient, for a network only nearly.
# 3. $w = \gamma - 1$, and the paper's log-SNR is our clock: Algorithm 2 is `classifier_free` and `ddpm`, to rounding.
# 4. Strong guidance leaves the region where the network was trained. Low temperature shrinks every blob, and knows no
#    other class.
# 5. For $\gamma > 1$ the samples depend on the sampler, even with exact fields, and the usual samplers do not give
#    $p(x)\, p(y \mid x)^\gamma$.
#
# **Where it comes from.** Label dropout, the implicit classifier, both algorithms, and that low temperature fails:
# [Ho & Salimans (2022)](https://arxiv.org/abs/2207.12598), sections 2 to 4. The prediction of $v$: [Salimans & Ho
# (2022)](https://arxiv.org/abs/2202.00512). The idea of a cosine schedule and of interpolating the variance: [Nichol
# & Dhariwal (2021)](https://arxiv.org/abs/2102.09672). What guidance samples: [Bradley & Nakkiran
# (2024)](https://arxiv.org/abs/2408.09000). The formula $C / (2\kappa - 1)$ and the numbers are computed here.
