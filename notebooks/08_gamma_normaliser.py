# %% [markdown]
# # 08 · The gamma normaliser: what does `classifier_scale` really sharpen?
#
# Classifier guidance has a knob: multiply the classifier's gradient by $\gamma > 1$. What does it do? The paper that introduced it,
# [Dhariwal & Nichol (2021)](https://arxiv.org/abs/2105.05233), says: the scaled gradient is that of a *sharper*
# classifier, its probabilities raised to the power $\gamma$ and normalised again. The normaliser is called "an arbitrary
# constant". In general it depends on $x$. What follows from that?
#
# The short answer: **a sharper classifier stops pushing soon after the class has become the more probable one; the scaled gradient goes
# on. What it has beyond a sharper classifier is the slope of the normaliser: a pull out of doubt, to where *some* class is certain.**
#
# **After this chapter you can**
# * derive both gradients, and say where they agree and where they do not;
# * name the density that each has the sampler follow, and say why samples need not come from it;
# * tell from one line of code which of the two somebody runs.
#
# **You need** chapter 00, how a gradient guides (the table of [chapter 07](07_mean_shift.ipynb#in-practice)), Bayes' rule, softmax, and gradients.
#
# *29 minutes to read, 27 more for Deeper, 35 seconds to run, on a laptop, without a GPU or a network connection.*

# %%
import math

import torch

from difflesson import exercises, guidance, kernels, metrics, plane, plotting
from difflesson.denoiser import Prediction
from difflesson.grid import GridDensity
from difflesson.mixture import GaussianMixture
from difflesson.samplers import draw, time_grid
from difflesson.schedule import cosine

torch.set_num_threads(1)

# %% [markdown]
# ## Two ways to sharpen
#
# The data are the four blobs of chapter 00: two of class 0, two of class 1, and we ask for class 1. At the noise level $t = 0.7$ each
# point has a probability of class 1, which can be computed exactly. Here is $\gamma = 3$ in two ways:
# the gradient times three, and the gradient of the sharper classifier.

# %%
mixture, schedule, label, gamma = plane.four_blobs(), cosine(), 1, 3.0
level = torch.tensor(0.7, dtype=torch.float64)
noisy = mixture.noised(schedule.alpha(level), schedule.sigma(level))


# %% tags=["hide-input"]
def logits_of(mixture, schedule):
    """What a perfect network would answer: the log-probability of each class, (N, classes)."""

    def logits(x, t):
        noisy = mixture.noised(schedule.alpha(t), schedule.sigma(t))
        classes = range(mixture.classes)
        return torch.stack([noisy.class_log_prob(x, y) for y in classes], dim=1)

    return logits


# %%
logits = logits_of(mixture, schedule)  # of the noisy point, exactly: log p(y | x), (N, classes)
plain = guidance.gradient(guidance.sharpened(logits, label, 1.0))
normalised = guidance.gradient(guidance.sharpened(logits, label, gamma))

# %% tags=["hide-input"]
ticks = torch.linspace(-2.5, 2.5, 11, dtype=torch.float64)
grid = torch.cartesian_prod(ticks, ticks)
fine_ticks = torch.linspace(-3.2, 3.2, 121, dtype=torch.float64)
fine_grid = torch.cartesian_prod(fine_ticks, fine_ticks)
two_fields = gamma * plain(grid, level), normalised(grid, level)
with plotting.style():
    figure, axes = plotting.plt.subplots(1, 3, figsize=(8, 3), sharey=True)
    pictures = (("gradient × 3", two_fields[0], "guided", 4), ("probabilities to the power 3", two_fields[1], "other", 4),
                ("the difference, twice as long", two_fields[0] - two_fields[1], "truth", 2))
    for panel, (title, arrows, colour, scale) in zip(axes, pictures, strict=True):
        sure = noisy.class_log_prob(fine_grid, label).exp().view(121, 121).T
        panel.contourf(fine_ticks, fine_ticks, sure, (0, 0.5, 1), colors=("#e9e9e9", "#dcebf5"))
        plotting.density(panel, noisy.log_prob, (-4, 4, -4, 4), colors=plotting.COLOURS["unconditional"], linewidths=0.7)
        panel.quiver(*grid.T, *arrows.T, color=plotting.COLOURS[colour], angles="xy", scale_units="xy", scale=scale, width=0.006)
        panel.set(title=title, xlabel="$x_1$", xlim=(-2.9, 2.9), ylim=(-2.9, 2.9), aspect="equal")
    axes[0].set_ylabel("$x_2$")
    assert [part.scale for panel in axes for part in panel.collections if hasattr(part, "scale_units")] == [4, 4, 2]
    side = noisy.class_log_prob(grid, label) > math.log(0.5)
    lengths = [field.norm(dim=1) for field in two_fields]
    assert (lengths[0] > lengths[1])[side].all() and (lengths[0] < lengths[1])[~side].all()
    shown = plotting.show(figure, "08_two_fields", alt="Three fields of arrows for class 1 at noise level t = 0.7; the part of the plane where class 1 is the more probable one is light blue. Left, the scaled gradient: long arrows in the grey part, shorter ones that go on through the blue part. Middle, the sharpened classifier: longer arrows in the grey part, next to none in the blue one. Right, the difference: arrows that leave the border of the two parts on both sides.")
shown

# %% [markdown]
# *Two pushes towards class 1 at $\gamma = 3$, $t = 0.7$, and what the first has beyond the second. Blue: class 1 is the
# more probable one. Contours: 50, 90 and 99 % of the noisy data. The difference leads away from the border between the colours, on both sides.*
#
# **What happens.** Where class 0 is much the more probable one, both push alike. Just before the border the sharpened classifier
# pushes harder, by up to a third.
#
# **Why.** A sharper classifier is sure sooner, and once it is sure its log-probability has
# nothing left to gain: it stops pushing. The scaled gradient takes the slope of the plain classifier,
# which is still not quite sure, three times.
#
# **What the knob does instead.** Imagine three judges who see the same point. Each names a class by the
# classifier's probabilities, without talking to the others. Three times the gradient asks that *all three say class 1*. The sharpened
# classifier asks only: *if* they agree, on what? Between the two lies agreement itself, the third panel. It leads to
# wherever *some* class is certain. A sharper classifier subtracts it, by its normaliser. Who calls the normaliser a constant leaves it in.
#
# ## Both gradients
#
# At noise level $t$ let $p_t(y \mid x)$ be the probability of class $y$ and $g_y = \nabla \log p_t(y \mid x)$ its
# gradient in $x$. Raised to the power $\gamma$ and normalised, it is
#
# $$ \tilde p_t(y \mid x) = \frac{p_t(y \mid x)^\gamma}{Z_t(x)}, \qquad
# Z_t(x) = \sum_{y'} p_t(y' \mid x)^\gamma . \label{eq-sharpened} $$
#
# In general $Z_t$ depends on $x$, unless $\gamma$ is 0 or 1. For a softmax all
# of it is one line: multiply the *logits* by $\gamma$. (Logits are log-probabilities up to a number for each $x$, which drops out.)

# %%
x = noisy.sample(200, torch.Generator().manual_seed(0))[0]
p = logits(x, level).exp()
Z = (p**gamma).sum(1)
sharp = p**gamma / Z[:, None]
print(f"Z between {Z.min():.2f} and {Z.max():.2f}")
torch.testing.assert_close((gamma * logits(x, level)).softmax(1), sharp)
compact = guidance.sharpened(logits, label, gamma)(x, level).exp()
torch.testing.assert_close(compact, sharp[:, label])

# %% [markdown]
# Take the logarithm and differentiate. $\nabla Z_t = \sum_{y'} p_t(y' \mid x)^\gamma\, \gamma\, g_{y'}$, and divided by
# $Z_t$ the powers become $\tilde p_t$:
#
# $$ \nabla \log \tilde p_t(y \mid x) = \gamma\, g_y - \nabla \log Z_t(x)
# = \gamma \Big( g_y - \sum_{y'} \big[ \tilde p_t(y' \mid x)\, g_{y'} \big] \Big). \label{eq-sharpened-gradient} $$

# %%
g = torch.stack([noisy.class_gradient(x, y) for y in range(2)], dim=1)  # (N, 2, 2)
by_hand = gamma * (g[:, label] - (sharp[:, :, None] * g).sum(1))
torch.testing.assert_close(normalised(x, level), by_hand)

# %% [markdown]
# The sum is the mean of all classes' gradients, as the sharper classifier weighs them. In code the two pushes differ by the place of
# one bracket: `gamma * logits.log_softmax(1)[:, y]` or `(gamma * logits).log_softmax(1)[:, y]`.
#
# With two classes they differ by one factor. Let $l(x)$ be the log odds of $y$, the difference of the two logits, positive where $y$ is the more
# probable class. Then $\log p_t(y \mid x) = -\log(1 + e^{-l})$, and its slope in $l$ is $1 / (1 + e^l)$, the probability of the other class.
# Sharpening multiplies $l$ by $\gamma$. So
#
# $$ \gamma\, g_y = \frac{\gamma}{1 + e^{l}}\, \nabla l, \qquad \nabla \log \tilde p_t(y \mid x) = \frac{\gamma}{1 + e^{\gamma
# l}}\, \nabla l, \qquad \gamma\, g_y = \frac{1 + e^{\gamma l}}{1 + e^{l}}\, \nabla \log \tilde p_t(y \mid x) . \label{eq-force-ratio} $$

# %%
# [eq-force-ratio]
def forces(logit, gamma):
    """The scaled and the normalised push along grad l, for two classes."""
    return gamma / (1 + logit.exp()), gamma / (1 + (gamma * logit).exp())


def ratio(logit, gamma):
    return (1 + (gamma * logit).exp()) / (1 + logit.exp())


# %%
odds = logits(x, level)[:, label] - logits(x, level)[:, 1 - label]
rise = g[:, label] - g[:, 1 - label]  # the gradient of the logit
pushes = gamma * plain(x, level), normalised(x, level)
for force, push_there in zip(forces(odds, gamma), pushes, strict=True):
    torch.testing.assert_close(force[:, None] * rise, push_there)
torch.testing.assert_close(ratio(odds, gamma)[:, None] * normalised(x, level), gamma * plain(x, level))

# %% tags=["hide-input"]
print("logit   p(y)   scaled  normalised  ratio    at gamma = 3")
for value in (-6.0, -2.0, -math.log(2), 0.0, 1.0, 2.0, 4.0, 6.0):
    at = torch.tensor(value, dtype=torch.float64)
    both = forces(at, gamma)
    print(f"{value:5.1f}  {at.sigmoid():.3f}  {both[0]:7.4f}  {both[1]:10.2e}  {ratio(at, gamma):.4g}")
wrong_side = torch.linspace(-40, 0, 4001, dtype=torch.float64)
least = {power: float(ratio(wrong_side, power).min()) for power in (3.0, 10.0, 1000.0)}
print("least ratio on the wrong side:", ", ".join(f"{v:.3f} at gamma = {k:g}" for k, v in least.items()))
assert all(0.5 < value for value in least.values()) and ratio(wrong_side, 1000.0).max() == 1

# %% tags=["hide-input"]
line = torch.linspace(-4, 5, 361, dtype=torch.float64)
with plotting.style():
    figure, axes = plotting.plt.subplots(1, 2, figsize=(8.2, 2.9), sharey=True)
    for panel, power in zip(axes, (3.0, 10.0), strict=True):
        for values, colour in zip(forces(line, power), ("guided", "other"), strict=True):
            panel.plot(line, values / power, color=plotting.COLOURS[colour], linewidth=2)
        panel.axvspan(0, 5, color="#dcebf5", zorder=0, linewidth=0)
        panel.set(title=f"$\\gamma = {power:g}$", xlabel="logit $l$ of the class asked for", xlim=(-4, 5), ylim=(0, 1.03))
    axes[0].set_ylabel("push$\\,/\\,\\gamma$, along $\\nabla l$")
    axes[0].text(1.15, 0.28, "scaled gradient", color=plotting.COLOURS["guided"])
    axes[0].text(-3.85, 0.2, "sharpened classifier", color=plotting.COLOURS["other"])
    assert all(panel.patches[0].get_x() == 0 for panel in axes)
    assert all(torch.allclose(torch.as_tensor(panel.lines[k].get_ydata()), forces(line, power)[k] / power)
               for panel, power in zip(axes, (3.0, 10.0), strict=True) for k in (0, 1))
    shown = plotting.show(figure, "08_forces", alt="Two panels, gamma 3 and 10: push divided by gamma against the logit. The orange curve of the scaled gradient is the same in both and falls slowly from 1 through one half at logit 0. The green curve of the sharpened classifier falls through the same point, more steeply at 3 and nearly like a step at 10.")
shown

# %% [markdown]
# *The push at each logit, in units of $\gamma$. Blue: the class asked for is the more probable one. Scaling multiplies the
# plain classifier's push everywhere; sharpening makes it a step at the border, the steeper the larger $\gamma$.*
#
# Read the ratio, for $\gamma > 1$. *At the border* ($l = 0$) it is 1. *On the wrong side* ($l < 0$) it lies between $\frac12$ and 1: there $e^{\gamma l}
# \le e^l \le 1$, so the numerator is at least 1 and at most the denominator, which is at most 2. *On the right side* ($l > 0$) it grows like $e^{(\gamma - 1)\, l}$,
# without bound: at $\gamma = 3$ and a logit of 4 it is 2927. **Where the
# class is not yet the more probable one, the two agree within a factor of two. Where it is, one goes on and the other stops, the sooner the larger $\gamma$.** (With more than two classes neither
# need hold, and the two can point in nearly opposite directions.)
#
# ## What the normaliser is: judges who agree
#
# For a whole number $\gamma$ the opening's picture is exact. Let $\gamma$ judges see $x$ and each name a class with the
# probabilities $p_t(\cdot \mid x)$, independently. All name $y$ with probability $p_t(y \mid x)^\gamma$. All name the
# same class, whichever, with probability $Z_t(x)$. So $\tilde p_t(y \mid x)$ is the probability of $y$ *given that they
# agree*, and $\eqref{eq-sharpened-gradient}$, solved for $\gamma g_y$, says: **the scaled gradient is the sharpened
# classifier's plus a pull, $\nabla \log Z_t$, towards agreement**. (For $\gamma > 1$, $Z_t$ is 1 where
# a class is certain, and least where all are equally probable.)
#
# That gives samples without any diffusion. Draw clean points, ask three judges, keep those of which all say class
# 1: their density is $p(x)\, p(y \mid x)^3$ over a constant, chapter 00's *story*. Or ask about each point again and again until three agree, then keep it if they say class 1:
# $p(x)\, \tilde p(y \mid x)$ over a constant.

# %%
def votes(x, mixture, judges, generator):
    """For each point: do all judges name one class, and which does the first name?"""
    shares = logits_of(mixture, schedule)(x, 0.0).exp()
    named = torch.multinomial(shares, judges, replacement=True, generator=generator)
    return (named == named[:, :1]).all(1), named[:, 0]


# %% tags=["hide-input"]
generator = torch.Generator().manual_seed(1)
asked, _ = mixture.sample(100_000, generator)
agree, named = votes(asked, mixture, 3, generator)
all_say = asked[agree & (named == label)]
open_cases = ~agree
while open_cases.any():
    agree, again = votes(asked[open_cases], mixture, 3, generator)
    places = open_cases.nonzero()[:, 0][agree]
    named[places], open_cases[places] = again[agree], False
if_agreed = asked[named == label]

# %% [markdown]
# The exact densities, summed over a grid, say whether that is right. The middle column is the *class mass*, the share of points of class 1 (each counts by its probability of it). The last is the small blob's share, far from class 0, of
# the mass that looks like class 1. (For class 1 itself it is 0.400; the blob's weight in it is 0.375.)

# %% tags=["hide-input"]
def tilted(mixture, log_weight, cells=170):
    """The density p(x) exp(log_weight(x)) over a constant."""
    return GridDensity(lambda x: mixture.log_prob(x) + log_weight(x), -8, 9, cells)


def log_weights(mixture, label, gamma):
    clean, no_noise = logits_of(mixture, schedule), torch.zeros(())
    one = guidance.sharpened(clean, label, gamma)
    return {"scaled": lambda x: gamma * clean(x, no_noise)[:, label],
            "normalised": lambda x: one(x, no_noise)}  # fmt: skip


everything = tilted(mixture, lambda x: torch.zeros(len(x)).double())
targets = {name: tilted(mixture, log) for name, log in log_weights(mixture, label, gamma).items()}

# %% tags=["hide-input"]
def numbers(x):
    """Mean of x_1, mean probability of class 1, share of the small blob in class 1; of points, or of a density."""
    modes = metrics.mode_weights(mixture, x)
    mean = x.mean[0] if isinstance(x, GridDensity) else x[:, 0].mean()
    return torch.stack([mean, metrics.class_mass(mixture, x)[1], modes[3] / (modes[2] + modes[3])])


print(" " * 21 + "mean x1           p(class 1)        small blob")
for name, cloud in (("scaled", all_say), ("normalised", if_agreed)):
    value, error = metrics.with_error(numbers, cloud)
    print(f"{name:>10} exactly  " + "".join(f"{v:6.3f}{'':12}" for v in numbers(targets[name])).rstrip())
    print("         by judges  " + "   ".join(f"{v:6.3f} ± {e:.4f}" for v, e in zip(value, error, strict=True)))
    assert ((value - numbers(targets[name])).abs() < 3.5 * error).all()
unsharpened = tilted(mixture, log_weights(mixture, label, 1.0)["scaled"])
print("   class 1 exactly  " + "".join(f"{v:6.3f}{'':12}" for v in numbers(unsharpened)).rstrip())
assert all((target.weights - unsharpened.weights).abs().sum() / 2 < 0.1 for target in targets.values())
assert [round(float(v), 3) for v in (numbers(unsharpened)[2], mixture.weights[3] / mixture.class_weights()[1])] == [0.4, 0.375]

# %% [markdown]
# The judges' points have the exact moments, up to sampling error (± one standard error). And see how little was asked for: both targets
# are class 1 with less than a tenth of its mass moved.
#
# ## Two densities, one of them made with a sharper classifier
#
# A sampler at noise level $t$ does not see these clean densities. It follows the *score* of the noisy data, $\nabla \log p_t(x)$
# ([chapter 04](04_scores_and_langevin.ipynb)), plus the push. The sum is the score of
#
# $$ S_t(x) = \frac{1}{C_t}\, p_t(x)\, p_t(y \mid x)^\gamma, \qquad N_t(x) = \frac{1}{D_t}\, p_t(x)\, \tilde p_t(y \mid x)
# \label{eq-two-tilts} $$
#
# for the scaled and for the normalised push: take logarithms and gradients, and the constants $C_t$ and $D_t$ drop out. Both are densities in $x$
# at each $t$, since for $\gamma \ge 0$ the factors lie between 0 and 1. ($S_0$ and $N_0$ are the judges' two.) So the scaled gradient
# needs no constant $Z$ to belong to a density; only the *name* "sharper classifier" goes with the other one.

# %%
# [eq-two-tilts]
def log_tilts(noisy, label, gamma, x):
    """log S_t and log N_t at points x (N, 2), without their constants."""
    classes = range(noisy.classes)
    logits = torch.stack([noisy.class_log_prob(x, y) for y in classes], dim=1)
    outside, inside = gamma * logits.log_softmax(1), (gamma * logits).log_softmax(1)
    return noisy.log_prob(x) + outside[:, label], noisy.log_prob(x) + inside[:, label]


# %%
def guided_by(mixture, label, gamma):
    """The two guided denoisers: guidance.tilt adds a push, times a scale, to the score."""
    free, logits = mixture.denoiser(schedule), logits_of(mixture, schedule)
    inside = guidance.gradient(guidance.sharpened(logits, label, gamma))
    outside = guidance.gradient(guidance.sharpened(logits, label, 1.0))
    return {"scaled": guidance.tilt(free, outside, gamma, schedule),
            "normalised": guidance.tilt(free, inside, 1.0, schedule)}  # fmt: skip


# %% tags=["hide-input"]
def score_of(denoiser, x, t):
    return denoiser(x, t).score(schedule.sigma(t))


denoisers = guided_by(mixture, label, gamma)
for k, denoiser in enumerate(denoisers.values()):
    slope = guidance.gradient(lambda x, t, k=k: log_tilts(noisy, label, gamma, x)[k])
    torch.testing.assert_close(score_of(denoiser, x, level), slope(x, level))

# %% [markdown]
# ## Do samplers draw from these densities?
#
# Now guide, by adding the push to the score, with the exact denoiser (chapter 00's best guess) and the exact classifier: 200 steps, 2,000 points, by DDIM and by DDPM
# ([chapter 05](05_every_reverse_process_at_once.ipynb)). Each cloud is compared with *its own* target, $S_0$ or $N_0$, by the numbers above and by the
# Wasserstein distance $W_2$ of 250 points, the least root mean square distance over all pairings: its mean over all parts of the cloud. Two draws of the target are apart as well: the floor.

# %%
start = torch.randn(2000, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def samples(denoiser, kernel, start, steps=200):
    """Guided points, by kernels.ddim or kernels.ddpm."""
    walk = time_grid(steps, start=0.99)
    return draw(kernel(denoiser, schedule), start, walk, torch.Generator().manual_seed(8))


# %% tags=["hide-input"]
clouds = {}
for power in (3.0, 10.0):
    for name, denoiser in guided_by(mixture, label, power).items():
        for kernel in (kernels.ddim, kernels.ddpm):
            clouds[power, name, kernel.__name__] = samples(denoiser, kernel, start)


def distance(cloud, density, size=250):
    """W2 of parts of a cloud from draws of the density: the mean over the parts, and its standard error."""
    draws = density.sample(len(cloud), torch.Generator().manual_seed(1)).split(size)
    each = torch.tensor([metrics.wasserstein(*pair) for pair in zip(cloud.split(size), draws, strict=True)])
    return each.mean(), each.std() / len(each) ** 0.5


def farther(one, other, errors=3.0):
    """Is the first distance larger, by so many standard errors of the difference?"""
    return bool(one[0] - other[0] > errors * math.hypot(one[1], other[1]))


goals, floors = {}, {}
for power in (3.0, 10.0):
    for name, log in log_weights(mixture, label, power).items():
        goals[power, name] = tilted(mixture, log)
        second = goals[power, name].sample(2000, torch.Generator().manual_seed(2))
        floors[power, name] = distance(second, goals[power, name])

# %% tags=["hide-input"]
def compared(power, name, clouds):
    """Prints the rows of a table; for each cloud its distance from the target, and its numbers' in standard errors."""
    density, found = goals[power, name], {}
    print(f"{name:>10}: target " + "".join(f"{v:6.3f}{'':10}" for v in numbers(density)),
          "{:.2f} ± {:.2f} floor".format(*floors[power, name]))
    for sampler, cloud in clouds.items():
        value, error = metrics.with_error(numbers, cloud)
        far = distance(cloud, density)
        shown = "  ".join(f"{v:6.3f} ± {e:.3f}" for v, e in zip(value, error, strict=True))
        print(f"{sampler.upper():>18}", shown, "  {:.2f} ± {:.2f}".format(*far))
        found[power, name, sampler] = far, (value - numbers(density)) / error
    return found


usual = {}
for power in (3.0, 10.0):
    print(f"gamma = {power:<12g}mean x1         p(class 1)      small blob      W2")
    for name in ("scaled", "normalised"):
        usual |= compared(power, name, {k: clouds[power, name, k] for k in ("ddim", "ddpm")})
distances = {key: far for key, (far, _) in usual.items()}
assert round(min(float(numbers(clouds[3.0, name, "ddim"])[1]) for name in targets), 2) == 0.99
assert all(farther(distances[at, "scaled", k], distances[at, "normalised", k]) for at in (3.0, 10.0) for k in ("ddim", "ddpm"))
assert all(farther(distances[at, name, "ddim"], distances[at, name, "ddpm"]) for at, name in goals)
assert all(farther(far, floors[key[:2]]) for key, far in distances.items())
assert min(floor for floor, _ in floors.values()) > 0.2

# %% [markdown]
# **They do not.** In each pair the normalised one ends nearer to its own target, and DDPM nearer than DDIM, by more than three standard errors (noise draws points towards the density that is followed, at the end the target: [chapter 11](11_classifier_free_guidance.ipynb#what-does-gamma-1-sample)). All are surer than their targets, too: under DDIM at
# $\gamma = 3$ class 1 has 0.99 or more.
#
# And look at DDIM, normalised. From $\gamma = 3$ to 10 its target does not move, 1.175 and 1.177; its samples move from 1.909 to 2.810. What moves them, if not a sharper target?
#
# ## Sharpen first, then add noise
#
# With many steps, DDIM and DDPM end at a density if they follow at each $t$ that density *with noise added*. Let $h(x_0)$ be the weight of the clean points, $p(y \mid x_0)^\gamma$ or $\tilde p(y \mid x_0)$.
# Noise carries
# $p(x_0)\, h(x_0) / C$, with $C = \mathbb E[h(x_0)]$, to $\int p(x_0)\, h(x_0)\, p(x_t \mid x_0)\, dx_0 / C$, and $p(x_0)\, p(x_t \mid x_0) = p_t(x_t)\, p(x_0 \mid
# x_t)$. So at every level
#
# $$ Q_t(x) = \frac{1}{C}\, p_t(x)\; \mathbb E[h(x_0) \mid x_t = x] : \label{eq-noised-tilt} $$
#
# sharpen the verdict on each *clean* point, then average. $S_t$ and $N_t$ average first, since $p_t(y \mid x) = \mathbb E[p(y \mid x_0) \mid x_t = x]$, and then sharpen,
# and a power of a mean is not the mean of a power ("used" and "needed" of [chapter 00](00_start_here.ipynb#why-the-story-fails), now at every level). In the judges' words: the right judges
# all look at the same clean picture; the sampler's look at the noisy one, and each imagines his own.
#
# The purest case: let the clean classifier be certain, $p(y \mid x_0)$ always 0 or 1. Then $h = p(y \mid x_0)$ for *every* $\gamma > 0$, both targets are $p(x \mid y)$, and the right push is
# the plain $g_y$. Our blobs overlap a little, so they are near that case. We know $Q_t$ by summing over a grid:

# %%
# [eq-noised-tilt]
def grid_denoiser(density, schedule):
    """The ideal denoiser if the clean point is a cell of a grid, drawn by its weight."""
    kept = density.weights > 1e-9
    cells, log = density.points[kept], density.weights[kept].log()

    def denoise(x, t):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        away = torch.cdist(x, alpha * cells).square() / (2 * sigma**2)
        return Prediction.from_x0(x, (log - away).softmax(1) @ cells, alpha, sigma)

    return denoise


# %%
# everything: all data, on the grid; targets: S_0 and N_0
torch.testing.assert_close(
    score_of(grid_denoiser(everything, schedule), x, level), noisy.score(x), atol=1e-3, rtol=0)
right = {name: grid_denoiser(target, schedule) for name, target in targets.items()}

# %% [markdown]
# Here is what each push should be: the score of $Q_t$ less that of $p_t$. At 200 noisy points of class 1 it is fitted, by least squares,
# by a multiple of the plain $g_y$:

# %% tags=["hide-input"]
def multiples(mixture, label, t, used, right):
    """Used and right pushes of both kinds at noisy points of the class, as multiples of the plain gradient; what the right ones leave over."""
    time, row, left = torch.tensor(t, dtype=torch.float64), [], []
    clean = mixture.given(label).sample(200, torch.Generator().manual_seed(3))[0]
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    x_t = schedule.add_noise(clean, noise, time)
    base = mixture.noised(schedule.alpha(time), schedule.sigma(time)).class_gradient(x_t, label)
    for name in ("scaled", "normalised"):
        for denoiser in (used[name], right[name]):
            extra = score_of(denoiser, x_t, time) - score_of(mixture.denoiser(schedule), x_t, time)
            row.append(float((extra * base).sum() / base.square().sum()))
        left.append(float((extra - row[-1] * base).norm() / extra.norm()))
    return row + left


print("gamma = 3     scaled: used  right    normalised: used  right    left over of the right ones")
sizes = {t: multiples(mixture, label, t, denoisers, right) for t in (0.9, 0.7, 0.5, 0.3, 0.1)}
for t, row in sizes.items():
    print("t = {}            {:6.2f} {:6.2f}              {:6.2f} {:6.2f}              {:4.0%}, {:.0%}".format(t, *row))
away = [density.mean - everything.mean for density in (targets["scaled"], targets["normalised"], tilted(mixture, log_weights(mixture, 1, 1.0)["scaled"]))]
print("ratio of the shifts of the mean: scaled {:.2f}, normalised {:.2f}".format(*(float(shift @ away[2] / away[2].square().sum()) for shift in away[:2])))
assert all(abs(row[0] - 3) < 1e-9 and (t < 0.5 or max(row[4:]) < 0.075) for t, row in sizes.items())

# %% [markdown]
# In much noise the right pushes are nearly the plain one: 1.09 and 1.02 times, where the samplers use 3.00 and 3.66 times. In pure noise all that counts
# is how far the target's mean is from that of all data, compared with the class's mean; and both targets are nearly the class. (For classes that
# overlap a lot the right multiple is larger, and the usual pushes less wrong.) Only near the data do they grow, to 2.50 and 2.30
# (in the tests, at points of all data, beyond $\gamma$).
# (What no multiple of $g_y$ explains is at most 7 % of the right push while $t \ge 0.5$, and up to 33 % at 0.1.)
#
# So **at $\gamma = 3$, for class 1, both samplers push about three times too hard while there is much noise**. The normalised one pushes even harder, since class 1
# is the rarer one: in much noise most points are on its wrong side.
# (For class 0, in the tests, it pushes less hard than the scaled one: by DDPM its clouds nearly meet their targets, by DDIM at $\gamma = 10$ they are even
# *less* sure than at 1.)
#
# ### Two remedies
#
# If that is the reason, the right push must help, and $\gamma$ must do its harm early.

# %% tags=["hide-input"]
for power in (3.0, 10.0):
    for name, log in log_weights(mixture, label, power).items():
        density = tilted(mixture, log, cells=64)
        for kernel in (kernels.ddim, kernels.ddpm):
            cells = samples(grid_denoiser(density, schedule), kernel, start[:1000], steps=60)
            inside = torch.rand(cells.shape, generator=torch.Generator().manual_seed(9)).double() - 0.5
            clouds[power, name, f"{kernel.__name__}, right push"] = cells + inside * density.cell

cured = {}
for power in (3.0, 10.0):
    print(f"gamma = {power:<12g}mean x1         p(class 1)      small blob      W2")
    for name in ("scaled", "normalised"):
        cured |= compared(power, name, {k: clouds[power, name, k] for k in ("ddim, right push", "ddpm, right push")})
assert all(abs(z) < 3 for _, off in cured.values() for z in off)
assert not any(farther(far, floors[key[:2]], 2.0) for key, (far, _) in cured.items())

# %% tags=["hide-input"]
small = {"early": [], "late": [], "never": []}
halves = {"early": lambda t: 10.0 if t > 0.5 else 1.0, "late": lambda t: 1.0 if t > 0.5 else 10.0, "never": lambda t: 1.0}
split, sure_of = {}, {}
print("gamma = 10 at t > 0.5 only (early), at t < 0.5 only (late), or never; else 1")
for when, power in halves.items():
    for name, denoiser in guided_by(mixture, label, power).items():
        for kernel in (kernels.ddim, kernels.ddpm):
            cloud = samples(denoiser, kernel, start[:1000], 60)
            split[when, name, kernel.__name__] = distance(cloud, goals[10.0, name])
            sure_of[when, name, kernel.__name__] = float(numbers(cloud)[1])
            small[when].append(float(numbers(cloud)[2]))
            print(f"{when:>5}, {name:>10}, {kernel.__name__.upper()}: p(class 1) {numbers(cloud)[1]:.3f}, small blob {small[when][-1]:.2f}, "
                  "W2 {:.2f} ± {:.2f}".format(*split[when, name, kernel.__name__]))
assert min(small["early"]) > 0.575 and 0.375 < min(small["late"]) < max(small["late"][2:]) < 0.415 and max(small["late"]) < 0.465

# %% tags=["remove-cell"]
each = [(name, k) for name in ("scaled", "normalised") for k in ("ddim", "ddpm")]
assert all(abs(split["early", *key][0] - distances[10.0, *key][0]) < 0.15 for key in each)
assert all(farther(split["early", *key], split["late", *key]) for key in each)
assert not any(farther(split["late", "normalised", k], floors[10.0, "normalised"], 2.0) for k in ("ddim", "ddpm"))
assert not any(farther(split["never", "normalised", k], split["late", "normalised", k], 0.0) for k in ("ddim", "ddpm"))
assert all(sure_of["late", *key] > numbers(goals[10.0, key[0]])[1] + 0.005 for key in each)
assert all(sure_of["never", *key] < numbers(goals[10.0, key[0]])[1] - 0.01 for key in each)

# %% tags=["hide-input"]
with plotting.style():
    figure, axes = plotting.plt.subplots(2, 3, figsize=(8, 4.4), sharex=True, sharey=True)
    for row, (name, colour) in zip(axes, (("scaled", "guided"), ("normalised", "other")), strict=True):
        for panel, sampler in zip(row, ("ddim", "ddpm", "ddpm, right push"), strict=True):
            panel.plot(*clouds[10.0, name, sampler][:500].T, ".", markersize=1.6, color=plotting.COLOURS[colour])
            plotting.density(panel, goals[10.0, name].log_prob, (-3, 5, -4, 4))
            panel.set(xlim=(-2.4, 5), ylim=(-2.8, 3.2), aspect="equal")
        row[0].set_ylabel(f"{name}\n$x_2$")
    for panel, title in zip(axes[0], ("DDIM", "DDPM", "DDPM, right push"), strict=True):
        panel.set_title(title)
    for panel in axes[1]:
        panel.set_xlabel("$x_1$")
    shown = plotting.show(figure, "08_samples", alt="Six clouds of points at gamma 10 over the dashed contours of their exact targets. Scaled: under DDIM a tight knot across the right edge of the contours, under DDPM a wider cloud, most of it over the small blob on the right. Normalised: under DDIM a knot on the right with a thin tail to the lower left, under DDPM a cloud that nearly fills the contours. With the right push both clouds fill theirs.")
shown

# %% [markdown]
# *Samples at $\gamma = 10$ over the target each was meant for (dashed: 50, 90 and 99 % of it). Only the right push meets its target; of the others, the normalised one
# with DDPM comes nearest.*
#
# With the right push all eight clouds are at the floor. With the usual pushes and $\gamma = 10$ only early (60 steps), every cloud is about as far off
# as with $\gamma = 10$ throughout; only late, the normalised clouds are near their floor. *With $\gamma = 1$ throughout they
# are no farther* (in the tests, by energy distances of more points, nearer). Late guidance makes all four surer than their targets.
#
# ### Pitfall: "the normaliser is a constant", as code
#
# Write the sharpened classifier by hand and `.detach()` the sum: what remains is $\gamma$ times the gradient of the
# logit. If the logits are log-probabilities, that is the scaled gradient. But a network's logits are log-probabilities only up to a number for each $x$,
# and now its gradient counts. Here are logits whose softmax is the exact classifier, $\log p_t(x, y)$:

# %% tags=["hide-input"]
def joint_logits(x, t):
    noisy = mixture.noised(schedule.alpha(t), schedule.sigma(t))
    parts = [noisy.given(y).log_prob(x) + noisy.class_weights()[y].log() for y in (0, 1)]
    return torch.stack(parts, dim=1)


torch.testing.assert_close(joint_logits(x, level).softmax(1), p)

# %%
ways = {
    "outside": lambda z: gamma * z.log_softmax(1),
    "inside": lambda z: (gamma * z).log_softmax(1),
    "Z detached": lambda z: gamma * z - (gamma * z).logsumexp(1, keepdim=True).detach(),
}

# %% tags=["hide-input"]
print("DDPM, gamma = 3                         mean x1    spread")
ruined = {}
for way, power in ways.items():
    for what, z in (("log p(y | x)", logits), ("log p(x, y)", joint_logits)):
        grad = guidance.gradient(lambda x, t, power=power, z=z: power(z(x, t))[:, label])
        cloud = samples(guidance.tilt(mixture.denoiser(schedule), grad, 1.0, schedule), kernels.ddpm, start[:1000], 100)
        ruined[way, what] = float(cloud[:, 0].mean()), float(cloud.var(0).sum())
        print(f"{way:>12}, logits {what:<14}    {ruined[way, what][0]:6.2f}    {ruined[way, what][1]:6.2f}")
assert all(abs(ruined[way, "log p(y | x)"][k] - ruined[way, "log p(x, y)"][k]) < 1e-12 for way in ("outside", "inside") for k in (0, 1))
assert ruined["Z detached", "log p(x, y)"][1] < 0.4 * ruined["outside", "log p(x, y)"][1]

# %% [markdown]
# Outside and inside do not care which logits they get. Detached, the same classifier shrinks the spread (the mean square distance from the mean) from
# 2.16 to 0.82: with the model's own score, $\gamma \nabla \log p_t(x, y)$ counts the data $1 + \gamma$ times.
#
# ## In practice
#
# | if you | do | because |
# |---|---|---|
# | read somebody's scale | look where the bracket is: scale outside `log_softmax`, or inside (a temperature of $1 / \gamma$) | at $\gamma = 10$ the two gave samples with other means, by DDPM as by DDIM |
# | want what a sharper classifier stands for, of classes that overlap little | $\gamma = 1$; to be surer, scale inside, only late | both came near that target (which was nearer depended on mixture and distance, in the tests); late guidance was surer |
# | want samples that the classifier is sure of | scale outside, by DDIM | at $\gamma = 3$ and 10 that cloud was the surest of the four, and the farthest from its target |
# | want the class's modes in proportion | $\gamma = 1$, or scale inside, only late | of 0.40 for the small blob, $\gamma = 10$ made 0.58 or more only early, 0.38 to 0.41 only late and inside |
# | report what was sampled | measure it; do not write $p\, p(y \mid x)^\gamma / C_0$ | for class 1, with the usual pushes, no sampler met its target |
# | write a softmax by hand | never detach its sum | what raw logits lack, a number for each $x$, has a gradient |
#
# (With a network of your own, scale inside is `guidance.sharpened` of `guidance.classifier_logits(network, schedule)`, differentiated by `guidance.gradient` and given to `guidance.tilt` with scale 1.)

# %% tags=["remove-cell"]
facts = {key: numbers(cloud) for key, cloud in clouds.items()}
assert all(facts[10.0, "scaled", k][0] > facts[10.0, "normalised", k][0] + 0.3 for k in ("ddim", "ddpm"))
assert all(facts[power, "scaled", k][1] > facts[power, "normalised", k][1] for power in (3.0, 10.0) for k in ("ddim", "ddpm"))
assert all(facts[power, name, "ddim"][1] > facts[power, name, "ddpm"][1] for power in (3.0, 10.0) for name in targets)
assert all(distances[power, "scaled", "ddim"] == max((v for k, v in distances.items() if k[0] == power), key=lambda far: far[0]) for power in (3.0, 10.0))
assert round(float(numbers(unsharpened)[2]), 2) == 0.40
assert all(facts[power, name, "ddim"][1] > numbers(goals[power, name])[1] + 0.005 for power in (3.0, 10.0) for name in targets)
assert all(facts[power, name, "ddpm"][2] > numbers(goals[power, name])[2] + 0.05 for power in (3.0, 10.0) for name in targets)
assert sizes[0.9][1] < 1.1 and sizes[0.9][3] < 1.1 and sizes[0.9][0] > 2.9 and sizes[0.9][2] > 2.9

# %% [markdown]
# ## Exercises
#
# Type where it says "your turn", run the cell, then the check below it.

# %% [markdown]
# ### Exercise 8.1 (easy): how many times as long
#
# Two classes. At some point the class asked for has the probability `p`, a float strictly between 0 and 1. Return how many times as
# long the scaled push is as the sharpened classifier's.
#
# <details><summary>Hint</summary>
#
# The odds are $e^l = p / (1 - p)$. What does sharpening make of the odds? ($\gamma$ is small enough for plain powers, here and below.)
#
# </details>

# %% tags=["exercise"]
def times_as_long(p, gamma):
    ### BEGIN SOLUTION
    odds = p / (1 - p)
    return (1 + odds**gamma) / (1 + odds)
    ### END SOLUTION


# %%
exercises.check("8.1", times_as_long)

# %% [markdown]
# ### Exercise 8.2 (medium): from raw logits
#
# A network gave you logits (before any softmax) `z` of shape `(N, classes)`, not normalised, and their gradients in the point, `slopes` of shape `(N, classes, d)`. Return
# the normalised push $\nabla \log \tilde p(y \mid x)$, of shape `(N, d)`, for the class with the number `label`.
#
# <details><summary>Hint</summary>
#
# $\eqref{eq-sharpened-gradient}$ needs only $g_y$ less a mean of all $g_{y'}$. Logits are log-probabilities up to a number for each point.
# What becomes of that number in a softmax, and of its gradient in the difference?
#
# </details>

# %% tags=["exercise"]
def normalised_push(z, slopes, label, gamma):
    ### BEGIN SOLUTION
    shares = (gamma * z).softmax(1)
    mean = (shares[:, :, None] * slopes).sum(1)
    return gamma * (slopes[:, label] - mean)
    ### END SOLUTION


# %%
exercises.check("8.2", normalised_push)

# %% [markdown]
# ### Exercise 8.3 (medium): two targets without a sampler
#
# You have class probabilities `p`, of shape `(N, classes)`, at points drawn from $p(x)$. Estimate the mean of $p(y \mid x)$ under the
# scaled target, and under the normalised one. Return both, in this order.
#
# <details><summary>Hint</summary>
#
# Each target is $p(x)$ times a weight. A mean under it is a weighted mean over your points; the constants $C_0$ and $D_0$ are
# the means of the weights.
#
# </details>

# %% tags=["exercise"]
def mean_confidence(p, label, gamma):
    ### BEGIN SOLUTION
    power = p**gamma
    scaled = power[:, label]
    normalised = scaled / power.sum(1)
    return tuple((w * p[:, label]).sum() / w.sum() for w in (scaled, normalised))
    ### END SOLUTION


# %%
exercises.check("8.3", mean_confidence)

# %% [markdown]
# ## Remember
#
# 1. The gradient of a sharpened classifier is $\gamma (g_y - \sum_{y'} \tilde p_t(y' \mid x)\, g_{y'})$, and in general not $\gamma g_y$. What the scaled gradient has beyond it, $\nabla \log Z_t$, is
#    for $\gamma > 1$ a pull towards points on which $\gamma$ judges would agree.
# 2. With two classes and $\gamma > 1$ both push alike on the wrong side of the border, up to a factor of two. On the right side the scaled
#    push is longer by $(1 + e^{\gamma l}) / (1 + e^l)$, with $l$ the log odds of the class.
# 3. At each $t$ either push, with the score of the data, is the score of a density. For $\gamma > 1$ and an exact classifier with a border between two classes, neither density is the noised version of its clean one ([Deeper](#deeper-is-either-a-diffusion-path)).
# 4. What takes both samplers to a target is the score of $Q_t$, the target with noise added: sharpen the verdict on each clean point, then average. On our blobs at
#    $\gamma = 3$, for class 1 and in much noise, the push this asks for is nearly the plain one, and both samplers push about three times too hard.
# 5. On our blobs, for class 1 at $\gamma = 3$ and 10, DDIM and DDPM met neither target, and the normalised clouds came nearer to theirs. With the push of $Q_t$
#    both samplers met both.
#
# **Where it comes from.** The knob and its explanation: [Dhariwal & Nichol (2021)](https://arxiv.org/abs/2105.05233), section 4.3. That $Z$ depends on
# $x$: [Su (2022)](https://spaces.ac.cn/archives/9257). $Q_t$: [Lu et al. (2023)](https://arxiv.org/abs/2304.12824) derive it for any energy and train for it;
# [Gao et al. (2025)](https://arxiv.org/abs/2501.18865) prove that scaling each $p_t$ is not a valid target. The judges and the bounds of the ratio are worked out here.
#
# ## Deeper: turn it up, to a wall
#
# *For you if you turn the knob up: what a large $\gamma$ makes of the two clean targets, and of a class with two modes. It adds two limits and the share of each mode.*
#
# What becomes of the two clean targets as $\gamma$ grows? The scaled one first. Let $c < c'$ be two values of $p(y \mid x)$, the larger one
# still exceeded with some probability. Where $p(y \mid x) \le c$, the weight $p(y \mid x)^\gamma$ is at most $c^\gamma$; where it
# is at least $c'$, at least $c'^\gamma$. So under $S_0$
#
# $$ \Pr\nolimits_S\big(p(y \mid x) \le c\big) \;\le\; \Big(\frac{c}{c'}\Big)^{\gamma} \frac{1}{\Pr\big(p(y \mid x) \ge c'\big)} \;\longrightarrow\; 0 . $$
#
# All mass runs to where the classifier is surest, wherever that is. On our blobs certainty is only approached, far
# out, where data are few: it takes a huge $\gamma$, but nothing stops it.
#
# The normalised one stops. $\tilde p(y \mid x) \to 1$ where $y$ is the most probable class, and to 0 where another one is. With
# $\mathbf 1_y(x)$ for "$y$ is the most probable class at $x$", and if there are such points,
#
# $$ \lim_{\gamma \to \infty} N_0(x) = \frac{p(x)\, \mathbf 1_y(x)}{\mathbb E[\mathbf 1_y(x)]} : \label{eq-hard-wall} $$
#
# the data, cut off at the border as by a wall. It is not $p(x \mid y)$: points of other classes
# that lie inside stay, so *the sharpest classifier does not make its target certain*. (If $y$ wins nowhere, as may happen to one class in a thousand, $N_0$ runs to where it
# comes nearest to winning.)

# %%
# [eq-hard-wall]
def wall(mixture, label, x):
    """Is the class the most probable one? (N,), 0 or 1."""
    chances = torch.stack([mixture.class_log_prob(x, y) for y in range(mixture.classes)], dim=1)
    return (chances.argmax(1) == label).double()


# %%
cut = tilted(mixture, lambda x: wall(mixture, label, x).log())
steep = tilted(mixture, log_weights(mixture, label, 1e5)["normalised"])
off_border = mixture.sample(500, torch.Generator().manual_seed(5))[0]
by_hand = mixture.log_prob(off_border).exp() * wall(mixture, label, off_border)
by_hand /= everything.expectation(lambda x: wall(mixture, label, x))
torch.testing.assert_close(steep.log_prob(off_border).exp(), by_hand, atol=1e-10, rtol=0)

# %% [markdown]
# Now a class with two modes. Component $k$ of the mixture, with weight $w_k$ and density $\mathcal N_k$, owns the share $p(k \mid x) =
# w_k \mathcal N_k(x) / p(x)$ of a point. Integrate it over the target, and $p(x)$ cancels. With $\mathbb E_k$ for the mean over
# $\mathcal N_k$,
#
# $$ S(k) \propto w_k\; \mathbb E_k\big[ p(y \mid x)^\gamma \big], \qquad N(k) \propto w_k\; \mathbb E_k\big[ \tilde p(y \mid x) \big] . \label{eq-mode-weights} $$

# %%
# [eq-mode-weights]
def mode_shares(mixture, log_weight):
    """The share of each component in p(x) exp(log_weight(x)) over a constant."""
    factors = []
    for mean, cov in zip(mixture.means, mixture.covs, strict=True):
        blob = GaussianMixture([1.0], mean[None], cov[None])
        density = GridDensity(blob.log_prob, -8, 9, 170)
        factors.append(density.expectation(lambda x: log_weight(x).exp()))
    shares = mixture.weights * torch.stack(factors)
    return shares / shares.sum()


# %%
for name, log in log_weights(mixture, label, gamma).items():
    torch.testing.assert_close(
        mode_shares(mixture, log), metrics.mode_weights(mixture, targets[name]), atol=1e-8, rtol=0)

# %% [markdown]
# Class 1 has a large blob close to class 0, where the classifier often hesitates, and a small one far from it. Scaled, each is
# multiplied by a mean of $p(y \mid x)^\gamma$, and the surer one gains. Normalised, each is multiplied, on these blobs, by about the share of it that lies inside the wall, whatever the $\gamma \ge 1$. (So counted, the small blob has 0.400 of class 1 itself, not its share of the weight, 0.375: some points of
# the large blob are owned by those of class 0.) In numbers:

# %% tags=["hide-input"]
powers = (1.0, 3.0, 10.0, 100.0, 1e4)
curves = {name: torch.stack([numbers(tilted(mixture, log_weights(mixture, label, power)[name])) for power in powers])
          for name in ("scaled", "normalised")}
print("            scaled: mean x1  p(class 1)  small blob   normalised: mean x1  p(class 1)  small blob")
for k, power in enumerate(powers):
    row = [*curves["scaled"][k].tolist(), *curves["normalised"][k].tolist()]
    print("gamma {:6g}         {:6.3f}     {:.5f}       {:.3f}                {:6.3f}      {:.4f}       {:.3f}".format(power, *row))
print("the wall                                                            {:6.3f}      {:.4f}       {:.3f}".format(*numbers(cut)))
assert round(float(mixture.weights[3] / mixture.class_weights()[label]), 3) == 0.375

# %% tags=["hide-input"]
many = torch.logspace(0, 4, 25, dtype=torch.float64)
swept = {name: torch.stack([numbers(tilted(mixture, log_weights(mixture, label, float(power))[name], 120)) for power in many])
         for name in ("scaled", "normalised")}

# %% tags=["hide-input"]
with plotting.style():
    figure, axes = plotting.plt.subplots(1, 2, figsize=(8.2, 2.9))
    for name, colour in (("scaled", "guided"), ("normalised", "other")):
        axes[0].semilogx(many, swept[name][:, 2], color=plotting.COLOURS[colour], linewidth=2)
        axes[1].loglog(many, 1 - swept[name][:, 1], color=plotting.COLOURS[colour], linewidth=2)
    axes[0].axhline(float(numbers(cut)[2]), color=plotting.COLOURS["truth"], linestyle="dashed", linewidth=1)
    axes[1].axhline(1 - float(numbers(cut)[1]), color=plotting.COLOURS["truth"], linestyle="dashed", linewidth=1)
    axes[0].text(12, 0.56, "scaled", color=plotting.COLOURS["guided"])
    axes[0].text(40, 0.415, "normalised", color=plotting.COLOURS["other"])
    axes[0].text(1.3, 0.345, "the wall", color=plotting.COLOURS["truth"])
    axes[0].set(xlabel="$\\gamma$", ylabel="share of the small blob", ylim=(0.3, 0.8))
    axes[1].set(xlabel="$\\gamma$", ylabel="mean of $1 - p(y\\,|\\,x)$")
    assert (swept["normalised"][12:, 2] - numbers(cut)[2]).abs().max() < 0.002 and float(many[12]) == 100
    shown = plotting.show(figure, "08_large_gamma", alt="Left: the share of the small blob over gamma from 1 to 10,000; scaled, it rises from 0.40 to 0.73, normalised it falls slightly, to the dashed line of the wall. Right: the mean probability of the other class on logarithmic axes; scaled, it falls along a nearly straight line, normalised it soon stays at the dashed line.")
shown

# %% [markdown]
# *The exact clean targets. Left, how much of class 1 is in its small, sure blob; right, how unsure the classifier is on average. Dashed: the
# wall, the limit of the normalised target, which is nearly reached at $\gamma = 10$.*
#
# The normalised target stops: the share of the small blob goes from 0.400 to 0.394, and the mean
# probability of class 1 no further than 0.950. The scaled one moves on, slowly: at
# $\gamma = 10{,}000$ the small blob has 0.728, and the mean probability that a point is not of class 1 still falls, roughly like $1 / \gamma$. (Who gets everything in the end is
# another matter: see the last section.)

# %% [markdown]
# ### Exercise 8.4 (hard): a peak and a wall
#
# On the line let $p(x) = \mathcal N(x; 0, 1)$, with a classifier of two classes whose logit is $l(x) = a\, x + b$, $a > 0$, and $\gamma \ge 0$. Return two
# numbers: the place where the scaled target $p(x)\, p(y \mid x)^\gamma$ is highest, and the mean of the normalised target in the limit $\gamma \to
# \infty$. Both right to six digits. In all cases the first lies between $-20$ and 20.
#
# You need: the part of $\mathcal N(0, 1)$ to the right of $c$ has the mean $\phi(c) / (1 - \Phi(c))$, where $\phi$ is the density and
# $\Phi(c) = \frac12 (1 + \operatorname{erf}(c / \sqrt 2))$.
#
# <details><summary>Hint</summary>
#
# At the highest place, pull and push balance: $-x + \gamma\, g_y = 0$, with $g_y$ from $\eqref{eq-force-ratio}$. The left side falls
# in $x$: halve an interval. For the second, where is the wall?
#
# </details>

# %% tags=["exercise"]
def peak_and_limit(a, b, gamma):
    ### BEGIN SOLUTION
    low, high = -20.0, 20.0
    for _ in range(100):
        middle = (low + high) / 2
        push = gamma * a * torch.sigmoid(torch.tensor(-a * middle - b, dtype=torch.float64))
        low, high = (middle, high) if push > middle else (low, middle)
    c = -b / a
    density = math.exp(-(c**2) / 2) / math.sqrt(2 * math.pi)
    return middle, density / (0.5 * math.erfc(c / math.sqrt(2)))
    ### END SOLUTION


# %%
exercises.check("8.4", peak_and_limit)

# %% [markdown]
# ## Deeper: four classes, and the nearest rival
#
# *For you if your classifier has more than two classes. It writes both pushes in one form, says what that means for four classes, and repeats the comparison on another mixture.*
#
# The gradient of the sharpened classifier is $g_y$ less a mean of all classes' gradients, times $\gamma$. The scaled gradient subtracts a mean as well, though it does not show. Probabilities add up to one at every point, so their gradients, $p_t(y' \mid x)\, g_{y'}$, add up to zero:
# subtract their sum from $g_y$, and nothing changes. So both pushes have one form:
#
# $$ \gamma\, g_y = \gamma \sum_{y'} \big[ p_t(y' \mid x)\, (g_y - g_{y'}) \big], \qquad
# \nabla \log \tilde p_t(y \mid x) = \gamma \sum_{y'} \big[ \tilde p_t(y' \mid x)\, (g_y - g_{y'}) \big] . \label{eq-rivals} $$
#
# **Each rival $y'$ pushes you away, along $g_y - g_{y'}$, the slope of the log odds of $y$ against it. The factor
# $\gamma$ is the same. The two differ only in how much each rival counts: by its probability, or by its sharpened
# probability.** On the two classes of the main line:

# %%
# [eq-rivals]
def push(shares, g, label, gamma):
    """From the rivals' shares (N, classes) and all class gradients g (N, classes, d)."""
    gaps = g[:, label, None] - g
    return gamma * (shares[:, :, None] * gaps).sum(1)


# %%
torch.testing.assert_close(push(p, g, label, gamma), gamma * plain(x, level))
torch.testing.assert_close(push(sharp, g, label, gamma), normalised(x, level))
print("same gaps, other shares")

# %% [markdown]
# Now four classes, six blobs; classes 0 and 3 have two each, far apart and of unequal weight.

# %%
four = GaussianMixture(
    weights=[0.20, 0.10, 0.25, 0.25, 0.12, 0.08],
    means=torch.tensor([[-1.6, 1.2], [2.2, -0.4], [0.2, 2.2], [-2.4, -1.2], [0.6, -1.8], [3.4, 1.6]]).double(),
    covs=[[[0.4, 0.15], [0.15, 0.3]], [[0.3, -0.1], [-0.1, 0.3]], [[0.5, -0.2], [-0.2, 0.3]],
          [[0.3, 0.1], [0.1, 0.5]], [[0.5, 0.2], [0.2, 0.4]], [[0.3, 0.1], [0.1, 0.3]]],
    labels=[0, 0, 1, 2, 3, 3],
)  # fmt: skip
many_noisy = four.noised(schedule.alpha(level), schedule.sigma(level))

# %% [markdown]
# Both pushes are means over the rivals $y' \ne y$ of the gaps $g_y - g_{y'}$, times $\gamma$ and the probability of *not* $y$ (sharpened, for the second). The scaled one
# weighs each rival by its probability. The normalised one, by a power of it: at large $\gamma$ only the most probable
# rival counts. Here is how far that is, at a point between three classes:

# %%
place = torch.tensor([[-0.6, 0.2]], dtype=torch.float64)
slopes = torch.stack([many_noisy.class_gradient(place, y) for y in range(4)], dim=1)
shares = logits_of(four, schedule)(place, level).exp()
strongest = 1 + int(shares[0, 1:].argmax())
gap = (slopes[:, 0] - slopes[:, strongest])[0]
print("probabilities", shares[0].numpy().round(3), f"strongest rival of class 0: class {strongest}")
for power in (1.0, 3.0, 10.0):
    sharp_shares = (power * shares.log()).softmax(1)
    arrow = push(sharp_shares, slopes, 0, power)[0] / power
    angle = math.degrees(math.acos(float(torch.cosine_similarity(arrow, gap, dim=0))))
    print(f"gamma {power:4g}: rivals {sharp_shares[0, 1:].numpy().round(3)}, push / gamma {float(arrow.norm()):.2f}, "
          f"{angle:.0f} degrees off the gap to the strongest")

# %% tags=["hide-input"]
with plotting.style():
    figure, axes = plotting.plt.subplots(1, 3, figsize=(8, 3), sharey=True)
    level_ticks = torch.linspace(-2.2, 2.2, 10, dtype=torch.float64)
    level_grid = torch.cartesian_prod(level_ticks, level_ticks)
    there = torch.stack([many_noisy.class_gradient(level_grid, y) for y in range(4)], dim=1)
    chances = logits_of(four, schedule)(level_grid, level)
    window = torch.linspace(-2.7, 2.7, 121, dtype=torch.float64)
    winners = logits_of(four, schedule)(torch.cartesian_prod(window, window), level).argmax(1).view(121, 121).T
    for panel, power, colour, title in zip(axes, (1.0, 10.0, 10.0), ("guided", "other", "truth"),
                                           ("scaled, divided by $\\gamma$", "normalised, $\\gamma = 10$, divided by $\\gamma$", "the difference"), strict=True):
        arrows = push((power * chances).softmax(1), there, 0, 1.0)
        arrows = push(chances.exp(), there, 0, 1.0) - arrows if title == "the difference" else arrows
        panel.contourf(window, window, winners, (-0.5, 0.5, 1.5, 2.5, 3.5), colors=("#dcebf5", "#efefef", "#dddddd", "#f7f7f7"))
        panel.quiver(*level_grid.T, *arrows.T, color=plotting.COLOURS[colour], angles="xy", scale_units="xy", scale=2, width=0.006)
        plotting.density(panel, many_noisy.given(0).log_prob, (-4, 4, -4, 4), linewidths=0.7)
        panel.set(title=title, xlabel="$x_1$", xlim=(-2.6, 2.6), ylim=(-2.6, 2.6), aspect="equal")
    axes[0].set_ylabel("$x_2$")
    assert winners.unique().tolist() == [0, 1, 2, 3]
    shown = plotting.show(figure, "08_four_classes", alt="Three fields of arrows over the plane, divided into the regions of four classes at t = 0.7; the region of class 0 is blue. Left: the scaled push leads everywhere towards class 0 and turns slowly. Middle: the normalised push at gamma 10 vanishes in the blue region and has kinks where the strongest rival changes. Right: their difference.")
shown

# %% [markdown]
# *Class 0 (dashed: 50, 90 and 99 % of its noisy data) against three rivals at $t = 0.7$. Shades: the most probable class, class 0 in blue. The
# scaled push is a mean over all rivals; the sharpened one, at $\gamma = 10$, nearly stops where class 0 is the most probable, and elsewhere leads
# away from the strongest rival.*
#
# Now guide to class 0, which has three tenths of the data, to class 3, which has a fifth, and to class 1, which has a quarter, in one blob. All at $\gamma = 10$, 1,000 points, 100
# steps; "modes" is the share of the class's first blob.

# %% tags=["hide-input"]
rows, surer, outer, bottoms = {}, {}, {}, {}
print("                        p(class)       modes           W2")
for y in (0, 1, 3):
    own = [k for k, owner in enumerate(four.labels) if owner == y]

    def view(x, y=y, own=own):
        modes = metrics.mode_weights(four, x)
        return torch.stack([metrics.class_mass(four, x)[y], modes[own[0]] / modes[own].sum()])

    for name, denoiser in guided_by(four, y, 10.0).items():
        goal = tilted(four, log_weights(four, y, 10.0)[name])
        bottoms[y, name] = distance(goal.sample(1000, torch.Generator().manual_seed(2)), goal)
        print(f"class {y}, {name:>10}:    {view(goal)[0]:.3f}          {view(goal)[1]:.3f}          ",
              "{:.2f} ± {:.2f} floor".format(*bottoms[y, name]))
        for kernel in (kernels.ddim, kernels.ddpm):
            cloud = samples(denoiser, kernel, start[:1000], 100)
            value, error = metrics.with_error(view, cloud)
            rows[y, name, kernel.__name__] = distance(cloud, goal)
            surer[y, name, kernel.__name__] = bool(value[0] > view(goal)[0])
            outer[y, name, kernel.__name__] = float(view(goal)[1] - value[1])
            print(f"                  {kernel.__name__.upper()}  " + "  ".join(f"{v:.3f} ± {e:.3f}" for v, e in zip(value, error, strict=True)),
                  "  {:.2f} ± {:.2f}".format(*rows[y, name, kernel.__name__]))

# %% tags=["remove-cell"]
assert all(farther(rows[y, "scaled", k], rows[y, "normalised", k], 2.0) for y in (0, 1, 3) for k in ("ddim", "ddpm"))
assert rows[1, "normalised", "ddpm"][0] < bottoms[1, "normalised"][0] + 0.1
assert not farther(rows[0, "normalised", "ddpm"], bottoms[0, "normalised"]) and farther(rows[3, "normalised", "ddpm"], bottoms[3, "normalised"])
assert all(bottoms[y, name][k] > 1.8 * bottoms[1, name][k] for y in (0, 3) for name in ("scaled", "normalised") for k in (0, 1))
assert all(surer.values()) and len(surer) == 12
assert min(more for (y, _, _), more in outer.items() if y == 3) > 0.1
torch.testing.assert_close(four.class_weights(), torch.tensor([0.3, 0.25, 0.25, 0.2], dtype=torch.float64))

# %% [markdown]
# All twelve clouds are surer than their targets. The scaled ones are farther from theirs than the normalised ones, class by class and sampler by sampler. By DDPM with the normalised push class 1, in one blob,
# comes nearly to its floor, and class 0 within the scatter of its. Class 3 does not: its second, outer blob gets more than its share by every
# sampler. (So it can go either way; this does not say why. Where a class has two distant blobs the floor is high and rough: it is mostly chance how many points of a draw lie in which.)
#
# ## Deeper: is either a diffusion path?
#
# *For you if you want the proof that neither density is a noised one, and what exactly is left over. It adds one line of
# calculus.*
#
# Divide by $\alpha_t$: $\bar x = x_t / \alpha_t = x_0 + \sqrt q\, \varepsilon$ with $q = \sigma_t^2 / \alpha_t^2$. Adding noise is then the heat
# equation: whatever is noised, $F_q$, satisfies $\partial_q F = \frac12 \Delta F$, with $\Delta$ the sum of the second derivatives. So does
# $p_q$, and so does $p_q\, u_q$ with $u_q(\bar x) = p(y \mid \bar x)$: it is the noised $p(x)\, p(y \mid x)$. Expand $\Delta(p_q u_q) = u_q\, \Delta p_q + 2\, \nabla p_q \cdot \nabla u_q + p_q\, \Delta u_q$,
# subtract $u_q$ times the equation of $p_q$, and divide by $p_q$: $\partial_q u
# = \frac12 \Delta u + \nabla \log p_q \cdot \nabla u$. Now let $f$ be any smooth function and $F_q = p_q f(u_q)$. The chain rule gives
# $f'(u)$ times the same, but for one term, since $\Delta f(u) = f'(u)\, \Delta u + f''(u)\, \|\nabla u\|^2$:
#
# $$ \partial_q F - \frac12 \Delta F = -\frac12\, p_q\, f''(u_q)\, \|\nabla u_q\|^2 . \label{eq-path-residual} $$
#
# For a power, $f(u) = u^\gamma$; for the sharpened one of two classes, $f(u) = u^\gamma / (u^\gamma + (1 - u)^\gamma)$. Both sides, by differences and by automatic
# differentiation:

# %%
# [eq-path-residual]
def residual(mixture, f, label, x, q):
    """The right side of the equation at points x (N, d)."""
    noisy = mixture.noised(1.0, q**0.5)
    u = noisy.class_log_prob(x, label).exp()
    slope = u[:, None] * noisy.class_gradient(x, label)
    with torch.enable_grad():
        leaf = u.clone().requires_grad_()
        (first,) = torch.autograd.grad(f(leaf).sum(), leaf, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), leaf)
    return -noisy.log_prob(x).exp() * second * slope.square().sum(1) / 2


# %%
def heat(mixture, f, label, x, q, h=1e-3):
    """The left side, by differences."""

    def F(x, q):
        noisy = mixture.noised(1.0, q**0.5)
        return noisy.log_prob(x).exp() * f(noisy.class_log_prob(x, label).exp())

    around = [F(x + sign * h * axis, q) for axis in torch.eye(2).double() for sign in (1, -1)]
    laplacian = (sum(around) - 4 * F(x, q)) / h**2
    return (F(x, q + h) - F(x, q - h)) / (2 * h) - laplacian / 2


shapes = {"scaled": lambda u: u**gamma, "normalised": lambda u: u**gamma / (u**gamma + (1 - u) ** gamma)}
spots = noisy.sample(50, torch.Generator().manual_seed(6))[0]
for shape in shapes.values():
    torch.testing.assert_close(
        heat(mixture, shape, label, spots, 0.8), residual(mixture, shape, label, spots, 0.8), atol=1e-5, rtol=0)

# %% [markdown]
# $F_q$ may also be a noised density times a number $c_q$; then the right side is a multiple of $F$, the same at all $x$. So $S_t$ or $N_t$ is a
# diffusion path if and only if $f''(u)\, \|\nabla u\|^2 / f(u)$ *does not depend on $x$*, at every level.
#
# * *Scaled.* It is $\gamma (\gamma - 1) \|\nabla \log u\|^2$. For $\gamma \ne 0, 1$ the length of the classifier's gradient would have to be the same in the whole
#   space. A smooth function with a gradient of one constant length everywhere is linear. But $\log u \le 0$, and a linear function that is
#   bounded above is constant. So never, unless the label does not depend on $x$ at all.
# * *Normalised, two classes.* Where $u = \frac12$, $f''$ is zero, since $f(1 - u) = 1 - f(u)$. If there are such points, the constant would be 0, and
#   $\nabla u = 0$ wherever $u \ne \frac12$ ($f''$ has no other zero for $\gamma > 0$, $\gamma \ne 1$). Again never, if some level has a border, unless nothing depends on $x$.
#
# (For two Gaussians of equal covariance as "class" and "all data", $\log$ of their ratio *is* linear, and classifier-free guidance is a path. But
# then the ratio is unbounded: it is not $p(y \mid x) / p(y)$ of any classifier.)

# %%
for name, shape in shapes.items():
    one = mixture.noised(1.0, 0.8**0.5)
    u = one.class_log_prob(spots, label).exp()
    constant = residual(mixture, shape, label, spots, 0.8) / (one.log_prob(spots).exp() * shape(u))
    print(f"{name:>10}: should be one number, lies between {constant.min():.2f} and {constant.max():.2f}")

# %% [markdown]
# For a convex weight the residual is negative: as noise is added, $p_q u_q^\gamma$ with $\gamma > 1$ falls behind a noised density where the classifier changes fast.
#
# So these are the five things of this chapter, and what each is:
#
# | for $\gamma > 0$ other than 1 | is it a distribution? | what it is for |
# |---|---|---|
# | $\tilde p_t(y \mid x)$ | over classes, at each $x$ and $t$ | a sharper classifier of noisy points |
# | $p_t(y \mid x)^\gamma$ over a constant | in general not: its sum over classes depends on $x$ | the paper's reading of the scaled gradient |
# | $S_t$ | over points, at each $t$; the target at $t = 0$ only, later not the noised target | what the scaled gradient gives |
# | $N_t$ | over points, at each $t$; the target at $t = 0$ only, later not the noised target | what the sharper classifier gives |
# | $Q_t$ | over points, at each $t$: the noised target $S_0$ or $N_0$ | its score less that of $p_t$ is the right push, which $p_t(y \mid x)$ at a point does not tell |
#
# ## Deeper: how far does the scaled target run, and who gets it?
#
# *For you if you ask why a scale of a hundred does so little to the exact target. It adds an identity, and a warning about the words "in the end".*
#
# For any smooth density that vanishes far out, the mean of its own score is zero: $\int \nabla S\, dx = 0$. For $S_0$ the score is
# $\nabla \log p + \gamma\, g_y$, so
#
# $$ \mathbb E_S[g_y] = -\frac{1}{\gamma}\, \mathbb E_S[\nabla \log p] . \label{eq-balance} $$
#
# The push is held by the data's own score, which far out grows only as fast as the distance. With two classes $g_y$ is the probability of the other class times $\nabla
# l$: its mean falls like $1 / \gamma$, times a pull that on our blobs grows slowly.

# %%
# [eq-balance]
def balance(mixture, label, gamma):
    """The mean plain push, and minus the mean score of the data over gamma, under the scaled target, on a grid."""
    def log(x):
        return mixture.log_prob(x) + gamma * mixture.class_log_prob(x, label)

    target = GridDensity(log, -9, 9, 180)
    pushed = target.expectation(lambda x: mixture.class_gradient(x, label))
    return pushed, -target.expectation(mixture.score) / gamma


# %%
for power in (3.0, 30.0, 300.0, 3000.0):
    pushed, pulled = balance(mixture, label, power)
    torch.testing.assert_close(pushed, pulled, atol=1e-8, rtol=0)
    print(f"gamma {power:5g}: mean push {float(pushed.norm()):.5f}, times gamma {float(pushed.norm()) * power:.2f}")

# %% [markdown]
# While $\gamma$ grows by a factor of a thousand, the data's pull, the last column, grows from 0.37 to 1.12.
#
# Does the surer blob get everything in the end? Let $\gamma$ grow beyond all use, with $\log p(y \mid x) = -\log(1 + e^{-l})$ written so that no digit is lost:

# %% tags=["hide-input"]
def exact_log_weight(x, power):
    shares = mixture.class_weights().log()
    odds = mixture.given(1).log_prob(x) + shares[1] - mixture.given(0).log_prob(x) - shares[0]
    return -power * torch.nn.functional.softplus(-odds)


ends = {}
for power in (1e4, 1e8, 1e12, 1e16, 1e20):
    density = GridDensity(lambda x, power=power: mixture.log_prob(x) + exact_log_weight(x, power), -15, 16, 200)
    ends[power] = numbers(density)[2]
    print(f"gamma {power:5.0e}: small blob {ends[power]:.3f}, mean at ({density.mean[0]:.1f}, {density.mean[1]:.1f})")
assert ends[1e12] > 0.97 and ends[1e20] < 0.01

# %% [markdown]
# It does not. Up to $\gamma = 10^{12}$ the small blob, surer on the whole, gains up to 0.978; at $10^{20}$ it has 0.001. What counts then is no longer how sure a blob is on the whole, but whose tail reaches the surest places, and that
# is the large one's. So "which mode wins as $\gamma \to \infty$" has no answer that a $\gamma$ in use would tell you.
#
# ### An open question
#
# [Lu et al. (2023)](https://arxiv.org/abs/2304.12824) learn $\log \mathbb E[h(x_0) \mid x_t]$ by a contrastive loss; regressing $h(x_0)$ on $x_t$ would do as well, but for a rare class and a large $\gamma$ nearly all values are
# tiny. A regression of $\log h(x_0)$ is easy and wrong, since $\mathbb E[\log h]$ is at most $\log \mathbb E[h]$. How much of the error of the usual pushes would it remove, and at which noise levels? On these blobs $Q_t$ is known: compare
# pushes first, samples second.
