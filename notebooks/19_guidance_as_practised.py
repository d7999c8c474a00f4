# %% [markdown]
# # 19 · Guidance as practised: which of the other knobs does more than turn the dial?
#
# Your library has `guidance_scale`, and beside it `guidance_rescale`, a start and a stop, APG, CFG-Zero*, CFG++, autoguidance, dynamic thresholding, a negative prompt. Each is often shown beside plain guidance *at the same scale*. You switch one on, and the pictures are less overdone. Is it the trick? Or does it push less, as a smaller $\gamma$ would?
#
# **After this chapter you can**
# * say of each trick what it is: another scale in time, another sum of two guesses, another pair;
# * compare it with the dial fairly, and say why a comparison at one scale is not fair;
# * translate CFG++ into a guidance scale, and see what happens when the number of steps changes;
# * say when a weaker model heals a better one, exactly, and when it, or a negative prompt, does harm.
#
# **You need** chapters 00 and 11, the log-SNR of chapter 01, and from [chapter 15](15_classifier_free_guidance_on_digits.ipynb#is-it-the-network) that guidance can repair a class that is believed too wide.
#
# *30 minutes to read, 24 more for Deeper, 35 seconds to run, on a laptop, without a GPU or a network connection.*

# %%
import math
from dataclasses import dataclass

import torch

from difflesson import exercises, guidance, kernels, metrics, particles, plotting, practice
from difflesson.denoiser import Pair, Prediction, network_pair
from difflesson.digits import checkpoints, sampling
from difflesson.digits import runs as records
from difflesson.grid import GridDensity
from difflesson.mixture import GaussianMixture
from difflesson.parts import Part
from difflesson.samplers import draw, time_grid
from difflesson.schedule import cosine, from_betas

torch.set_num_threads(1)

# %% [markdown]
# ## Eight tricks and one dial
#
# Nine small blobs, three by three, in a plane of an eight-dimensional space. Each of three classes has one in every row and every column. Our model has a *fault that we know*: it takes every blob for wider than it is. We ask for class 1, with plain guidance and with eight tricks, each at eight strengths.

# %%
schedule, label, times = cosine(), 1, time_grid(40)


def seeded(number):
    return torch.Generator().manual_seed(number)


turn = torch.linalg.qr(torch.randn(8, 8, generator=seeded(0), dtype=torch.float64))[0]
sheet = turn[:, :2]  # (8, 2): two orthogonal directions of length 1


# %% tags=["hide-input"]
def in_eight(places, labels, width, blur=0.0, zero=(0.0, 0.0)):
    """Blobs of equal weight: variance `width` in the plane, 0.3 across it, all of it wider by
    `blur`; `zero` is where the plane's origin lies."""
    means = (torch.tensor(places).double() - torch.tensor(zero).double()) @ sheet.T
    variances = torch.tensor([width] * 2 + [0.3] * 6).double() + blur
    count, cov = len(labels), (turn * variances) @ turn.T
    return GaussianMixture([1 / count] * count, means, cov.expand(count, 8, 8), labels)


cells = [[0.8 * i, 0.8 * j] for i in (-1, 0, 1) for j in (-1, 0, 1)]
nine = {"places": cells, "labels": [0, 1, 2, 1, 2, 0, 2, 0, 1], "width": 0.03}


# %% tags=["hide-input"]
@dataclass(frozen=True, eq=False)
class Trial:
    """The truth, the faulty model, one of twice the fault; noises and true points, in runs."""

    truth: GaussianMixture
    model: GaussianMixture
    weaker: GaussianMixture
    noise: torch.Tensor
    real: tuple
    apart: list

    def sample(self, denoiser, times=times, **options):
        return draw(kernels.ddim(denoiser, schedule, **options), self.noise, times)

    def judge(self, x):
        """Energy distance to the truth in the plane, (runs,); share of class 1; variance across."""
        far = []
        runs = (x @ sheet).chunk(len(self.real))
        for here, there, own in zip(runs, self.real, self.apart, strict=True):
            far.append(2 * spread(here, there) - spread(here) - own)
        right = self.truth.class_log_prob(x, label).exp().mean()
        return torch.stack(far), float(right), float((x @ turn[:, 2:]).var(0).mean())


# %% tags=["hide-input"]
def spread(x, y=None):
    """The mean distance of a point of x from one of y, or from another one of x."""
    total = torch.cdist(x, x if y is None else y, compute_mode="donot_use_mm_for_euclid_dist").sum()
    return total / (len(x) * (len(x) - 1) if y is None else len(x) * len(y))


def trial(spec, blur, zero=(0.0, 0.0), count=200, runs=12):
    truth, model, weaker = (in_eight(**spec, blur=b, zero=zero) for b in (0.0, blur, 2 * blur))
    noise = torch.randn(runs * count, 8, generator=seeded(1), dtype=torch.float64)
    real = (truth.given(label).sample(runs * 1000, seeded(2))[0] @ sheet).chunk(runs)
    return Trial(truth, model, weaker, noise, real, [spread(part) for part in real])


main = trial(nine, 0.1)
x = main.truth.given(label).sample(2400, seeded(3))[0]
far = metrics.energy_distance((x @ sheet)[:200], main.real[0])
torch.testing.assert_close(float(main.judge(x)[0][0]), far)

# %% [markdown]
# **What judges.** With exact guesses $\gamma = 1$ samples the truth; so our model's guesses are exact for wider blobs, with $b = 0.1$ added to every variance (in truth 0.03 in the plane, 0.3 *across* it, in the six other directions). The *distance* is the energy distance to true points of class 1, in the plane: zero for equal densities, give or take chance. Twelve runs of 200 points, by DDIM, from the same noises.

# %% tags=["remove-cell"]
assert round(float(main.truth.given(label).covs[0] @ turn[:, 2] @ turn[:, 2]), 2) == 0.3 and nine["width"] == 0.03
assert all(len(set(nine["labels"][3 * i :][:3])) == 3 == len(set(nine["labels"][i::3])) for i in range(3))
assert len(main.noise) // len(main.real) == 200 and len(main.real) == 12 and len(times) == 40 + 1
assert float((main.model.covs - main.truth.covs - 0.1 * torch.eye(8).double()).abs().max()) < 1e-9

# %% [markdown]
# Here are the tricks, a line each. Only $\gamma$ is turned (CFG++ has $\lambda = \gamma / 16$ in its place).

# %% tags=["hide-input"]
def ways(trial, limit):
    pair = trial.model.pair(schedule, label)
    weak = Pair(pair.cond, trial.weaker.denoiser(schedule, label))
    free, mix = guidance.classifier_free, guidance.mix
    return {
        "plain": lambda g: free(pair, g),
        "interval": lambda g: free(pair, practice.interval(g, schedule, -3.0, 3.0)),
        "growing": lambda g: free(pair, practice.growing_scale(g)),
        "CFG++": lambda g: free(pair, practice.plus_plus_scale(g / 16, schedule, times)),
        "rescaled": lambda g: mix(pair, practice.rescaled(g, 0.7, schedule)),
        "APG": lambda g: mix(pair, practice.projected(g, schedule)),
        "CFG-Zero*": lambda g: mix(pair, practice.zero_star(g, schedule)),
        "threshold": lambda g: practice.thresholded(free(pair, g), schedule, limit=limit),
        "autoguidance": lambda g: free(weak, g),
    }


# %% tags=["hide-input"]
def limit_of(trial):
    """The range of true points of the class: 99 % of their coordinates."""
    return float(trial.truth.given(label).sample(4000, seeded(4))[0].abs().quantile(0.99))


def sweep(trial, scales, names=None):
    found = {}
    for name, way in ways(trial, limit_of(trial)).items():
        for g in scales if names is None or name in names else ():
            found[name, g] = trial.judge(trial.sample(way(g)))
    return found


def curve(at, name):
    """Share of class 1 and distance along the scales."""
    rows = [(right, float(far.mean())) for (n, _), (far, right, _) in at.items() if n == name]
    return list(zip(*rows, strict=True))


scales = (1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0)
at = sweep(main, scales)
names = list(dict.fromkeys(name for name, _ in at))

# %% tags=["remove-cell"]
by_truth = main.judge(main.sample(main.truth.denoiser(schedule, label)))
assert abs(float(by_truth[0].mean())) < 0.003
lower = [name for name in names[1:] if at[name, 3.0][0].mean() < at["plain", 3.0][0].mean()]
assert scales[6] == 3 and len(names) == 9 and len(lower) == 7 and "growing" not in lower
nearest = min((at["plain", g] for g in scales), key=lambda row: float(row[0].mean()))
assert round(nearest[1], 1) == 0.8 and ways(main, 1.0)["CFG++"](3.0).gamma.lam == 3 / 16
assert ways(main, 1.0)["rescaled"](3.0).rule.phi == 0.7 and ways(main, 1.0)["APG"](3.0).rule.eta == 0
assert at["autoguidance", 4.0][0].mean() < 0 < 0.007 < min(float(at[name, g][0].mean()) for name, g in at if name != "autoguidance")

# %% tags=["hide-input"]
with plotting.style():
    figure, axes = plotting.plt.subplots(2, 4, figsize=(9, 4.5), sharex=True, sharey=True)
    for panel, name in zip(axes.flat, names[1:], strict=True):
        for each, shade in (("plain", "guided"), (name, "other")):
            colour, (right, far) = plotting.COLOURS[shade], curve(at, each)
            panel.plot(right, far, ".-", color=colour, markersize=4, linewidth=1.2)
            inside = "white" if each == "plain" else colour
            panel.plot(right[6], far[6], "o", color=colour, markersize=7, markerfacecolor=inside)
        star = by_truth[1], float(by_truth[0].mean())
        panel.plot(*star, "*", color=plotting.COLOURS["truth"], markersize=8)
        panel.set(title=name, xlim=(0.49, 1.02), ylim=(-0.006, 0.07))
        panel.set_xlabel("share of class 1" if panel in axes[1] else "")
    axes[0, 0].text(0.87, 0.06, "plain", color=plotting.COLOURS["guided"], ha="right")
    for panel in axes[:, 0]:
        panel.set_ylabel("distance to the truth")
    shown = plotting.show(figure, "19_tricks", alt=(
        "Eight small panels, one for each trick: distance to the truth over the share of "
        "class 1, as the scale grows. In each the curve of plain guidance falls a little, "
        "turns at a share of about 0.8 and rises steeply. The curves of the interval, of "
        "rescaling and of CFG++ lie above it or left of it, growing and CFG-Zero* close to "
        "it, APG and thresholding below it. Only autoguidance goes down to the star of the "
        "truth."
    ))
shown

# %% [markdown]
# *Distance to the truth (less is better) over the share of samples that are class 1, along the dial. Orange: plain guidance. Green: a trick. Large dots: both at $\gamma = 3$. Star: the right model. Seven green dots lie lower than the orange one. Only autoguidance's curve comes down to the star's height.*
#
# The interval's dot lies lower and its *curve* higher: it is about where a smaller $\gamma$ would be, and a little worse. Growing is the other way round: its dot lies higher, its curve at most shares lower.
#
# **What happens.** There are three families:
#
# * **Another scale in time.** The interval guides at log-SNR ($\log \alpha_t^2 / \sigma_t^2$) from $-3$ to 3 alone, the growing scale rises evenly from 1 in the noise to $2 \gamma - 1$ at the data, CFG++ is such a scale in disguise. At the same number, the push of a whole run is another one.
# * **Another pair.** Autoguidance and the negative prompt put another model, or another prompt, in the place of the guess without label. Autoguidance can do what no $\gamma$ can.
# * **Another sum of the same two guesses.** Rescaling, APG, CFG-Zero*, thresholding shorten, turn or cut the push or the whole guess. Some use what the dial does not know: where zero is, or how far the data reach (thresholding was told where 99 % of the coordinates of *true* points lie).
#
# A comparison at one scale compares pushes. Turn the dial as well, and most leads shrink, and some turn round.

# %% [markdown]
# ## At one scale, and at each one's own best
#
# Let $D(\gamma)$ be the distance along the dial. There are two ways to ask by how much a trick leads: at one scale, or each at its own best,
#
# $$ L_\gamma = D_{\text{plain}}(\gamma) - D_{\text{trick}}(\gamma), \qquad L^\ast = \min_\gamma D_{\text{plain}}(\gamma) - \min_\gamma D_{\text{trick}}(\gamma). \label{eq-two-leads} $$
#
# A knob that only halves the push leads far at a large scale, and not at all at its best. The best of several noisy numbers is too good, so each run is judged at the scale that the *other* runs choose.

# %%
# [eq-two-leads]
def leads(plain, trick, k):
    """Distances (scales, runs) -> the lead at scale k, and at each one's own best, (runs,) each."""
    def at_best(far):
        others = far.sum(1, keepdim=True) - far
        return far.gather(0, others.argmin(0, keepdim=True))[0]

    return (plain - trick)[k], at_best(plain) - at_best(trick)


# %% tags=["remove-cell"]
dial = torch.linspace(1, 4, 61).double()
valley = lambda gamma: (gamma - 1.5) ** 2  # noqa: E731
halved = valley(1 + (dial - 1) / 2)  # a "trick" that pushes half as much
at_3, at_best = leads(valley(dial)[:, None].expand(-1, 3), halved[:, None].expand(-1, 3), 40)
assert dial[40] == 3 and at_3[0] > 1.9 and at_best.abs().max() < 1e-12

# %% [markdown]
# To the nine blobs come two more problems, six blobs each, $b = 0.15$: in `side`, class 1 lies to one side of the others, in `between` amid them. Leads in percent of plain guidance's distance, at that scale or at its best; errors over runs.

# %% tags=["hide-input"]
def distances(at, name):
    return torch.stack([far for (n, _), (far, _, _) in at.items() if n == name])


def mean_error(runs):
    return float(runs.mean()), float(runs.std()) / len(runs) ** 0.5


six_blobs = {"labels": [0, 0, 1, 1, 2, 2], "width": 0.05}
to_the_side = [[-1.2, -0.6], [-0.6, 1.0], [0.2, -0.8], [1.1, -1.0], [0.9, 0.6], [1.8, 0.1]]
amid = [[-1.6, 0.2], [-1.0, -1.2], [-0.4, 0.1], [0.4, -0.2], [1.2, 1.0], [1.6, -0.3]]
side, between = (six_blobs | {"places": places} for places in (to_the_side, amid))
ladders = {
    (1.15, 1.3, 1.5, 1.75): names[:3] + names[4:8],
    (1.5, 1.75, 2.0, 2.5): ["CFG++"],
    (2.0, 2.5, 3.0, 3.5): ["autoguidance"],
}
boards = {"nine": at}
for problem, spec in (("side", side), ("between", between)):
    six, boards[problem] = trial(spec, 0.15, count=150), {}
    for ladder, among in ladders.items():
        boards[problem] |= sweep(six, ladder, among)

# %% tags=["hide-input"]
one_scale, gained = {}, {}
print(" " * 15 + "at gamma = 3 | at its own best:")
print(" " * 13 + "".join(f"{problem:>15}" for problem in ["nine", *boards]))
for name in names[1:]:
    for problem, board in boards.items():
        plain_far = distances(board, "plain")
        k = 6 if problem == "nine" else 0  # the place of gamma = 3
        at_3, at_best = map(mean_error, leads(plain_far, distances(board, name), k))
        least_far = float(leads(plain_far, 0 * plain_far, 0)[1].mean())
        gained[name, problem] = [100 * value / least_far for value in at_best]
        if problem == "nine":
            one_scale[name] = [100 * value / float(plain_far[6].mean()) for value in at_3]
    row = [one_scale[name]] + [gained[name, problem] for problem in boards]
    print(f"{name:>13}" + "".join("  {:+5.0f} % ± {:2.0f} %".format(*value) for value in row))

# %% tags=["remove-cell"]
assert all((one_scale[name][0] > 0) == (name != "growing") for name in one_scale) and len(one_scale) == 8
signs = {name: [(v > 2 * e) - (v < -2 * e) for v, e in (gained[name, problem] for problem in boards)] for name in names[1:]}
assert all(min(signs[name]) < 1 for name in names[1:-1]) and max(signs["rescaled"]) <= 0 and len(boards) == 3
assert min(signs["CFG-Zero*"]) == 0 and abs(gained["autoguidance", "nine"][0] - 100) < gained["autoguidance", "nine"][1]
assert all(v > 55 for v, _ in (gained["autoguidance", problem] for problem in boards))
assert all(signs[name][:2] == [-1, 1] for name in ("interval", "CFG++"))
assert all(signs[name][:2] == [1, 1] and gained[name, "between"][0] < 0 for name in ("growing", "APG", "threshold"))
assert max(v for (name, _), (v, _) in gained.items() if name != "autoguidance") < 31
assert all(1 in signs[name] for name in names[1:-1] if name != "rescaled")

# %% [markdown]
# **At one scale** seven of eight lead. **At its own best, none of the seven on the same pair is better than the dial on all three problems**, by two errors. Rescaling is better on none; CFG-Zero* ties or leads; the other five lead on one problem or two, by up to 30 %, and not on the rest. (Read a few percent as nothing: the errors leave out the choice between neighbouring scales.) Autoguidance takes away 79 % on the second, 58 % on the third, and on the nine blobs all (what is above the whole is noise). All three problems share one fault; for another the order may differ. And all is judged in the plane; [autoguidance's section](#another-pair) has all eight directions.
#
# **And on digits?** 1,000 digits a row by the pocket network of [chapter 13](13_training.ipynb), DDIM, 12 steps, the same starts; leads in digit-FID. The weaker model hid half of the labels in training, and is worse when told one ([chapter 15](15_classifier_free_guidance_on_digits.ipynb#deeper-how-often-should-the-label-be-hidden)).

# %% tags=["hide-input"]
practised = records.log("practice")
equal = {g: [row for row in practised["at_equal_gamma"] if row["gamma"] == g] for g in (1, 3)}
at_1, at_3, best = (
    {row["way"]: (row["difference"], row["error"]) for row in rows}
    for rows in (equal[1], equal[3], practised["at_best"])
)


def digit_rows(called):
    print(" " * 15 + "     at gamma = 3        each at its own best")
    for way, name in called.items():
        row = [part.get(way) for part in (at_3, best)]
        row = [f"{-lead[0]:7.3f} ± {lead[1]:.3f}" if lead else " " * 15 for lead in row]
        print(f"{name:>15}   {row[0]}      {row[1]}")


digit_rows({"interval": "interval", "growing": "growing", "auto_p50": "autoguidance"})

# %% tags=["remove-cell"]
assert [way for way, (difference, error) in best.items() if difference < -2 * error] == ["auto_p50"]
assert practised["steps"] == 12 and min(row["count"] for row in practised["rows"]) == 1000

# %% [markdown]
# Again nearly all lead at one scale ([all ten ways](#deeper-the-same-on-digits)). At its own best, **only autoguidance is nearer to real digits than plain guidance at its best**, by more than two errors.
#
# **And elsewhere?** On ImageNet, each at the best scale that its authors found: the networks S and XXL of [EDM2](https://github.com/NVlabs/edm2/blob/main/generate_images.py) have an FID of 2.23 and 1.81 by plain guidance, 1.34 and 1.25 by autoguidance. But [Kynkäänniemi et al. (2024)](https://arxiv.org/abs/2404.07724) report 1.40 for the interval with XXL: a larger lead than it has on any of our problems.
#
# ### Pitfall: "it wins at $\gamma = 4$"
#
# At the largest scale plain guidance is worst, and easily beaten. If you need single samples that are right, ask instead: which is nearer at the same share of class 1? On the nine blobs:

# %% tags=["hide-input"]
def plain_at(right, curve_of):
    """Distance and scale of plain guidance at a share of class 1, between its scales."""
    curve_of = dict(sorted(curve_of.items()))
    shares = [row[1] for row in curve_of.values()]
    k = next(k for k, share in enumerate(shares) if share >= right)
    part = (right - shares[k - 1]) / (shares[k] - shares[k - 1])
    rows = [[float(row[0].mean()), g] for (_, g), row in curve_of.items()]
    table = torch.tensor(rows).double()
    return (table[k - 1] + part * (table[k] - table[k - 1])).tolist()


fine = sweep(main, (2.25, 2.75, 3.5, 5.0, 6.0), ["plain"])
fine |= {key: row for key, row in at.items() if key[0] == "plain"}
for name in ("interval", "rescaled", "APG"):
    won = float(at["plain", 4.0][0].mean() / at[name, 4.0][0].mean()) - 1
    far, right, _ = at[name, 4.0]
    at_share = plain_at(right, fine)[0] / float(far.mean()) - 1
    print(f"{name}, gamma = 4: plain is {won:+.0%} farther off;", end=" ")
    print(f"at the same share of class 1, {at_share:+.0%}")

# %% tags=["remove-cell"]
far_at_4 = {name: float(at[name, 4.0][0].mean()) for name in ("plain", "interval", "rescaled", "APG")}
four = {
    name: (far_at_4["plain"] / far - 1, plain_at(at[name, 4.0][1], fine)[0] / far - 1)
    for name, far in far_at_4.items()
    if name != "plain"
}
assert max(scales, key=lambda g: float(at["plain", g][0].mean())) == 4
assert all(won > 0.05 for won, _ in four.values()) and four["interval"][1] < -0.3 and four["rescaled"][1] < -0.3 and four["APG"][1] > 0.5

# %% [markdown]
# Two wins turn into defeats. APG's stays: where you push these blobs hard, its curve is the better one.
#
# ## Another scale in time: CFG++ is the dial
#
# The interval ([Kynkäänniemi et al. (2024)](https://arxiv.org/abs/2404.07724); [chapter 15](15_classifier_free_guidance_on_digits.ipynb#deeper-where-on-the-way) has its formula and its costs) and the growing scale ([Deeper](#deeper-the-shape-of-the-scale)) are plainly scales in time. The third trick of this kind does not look like one.
#
# [Chung et al. (2025)](https://arxiv.org/abs/2406.08070) take DDIM's step with the clean guess at a small scale $\lambda \le 1$ (their letter; here $\lambda$ is not the log-SNR), and *with the noise of the guess without label*: $x_s = \alpha_s \hat x_0^\lambda + \sigma_s \hat\varepsilon_u$. Put in $\hat x_0^\lambda = \hat x_{0,u} + \lambda\, (\hat x_{0,c} - \hat x_{0,u})$: the label moves the step by $\alpha_s \lambda$ times the difference. In plain guidance it moves the step by $\gamma\, (\alpha_s - \sigma_s \alpha_t / \sigma_t)$ times the same difference, since $\hat\varepsilon_c - \hat\varepsilon_u = -\frac{\alpha_t}{\sigma_t} (\hat x_{0,c} - \hat x_{0,u})$. So the two steps are one, at the scale
#
# $$ \gamma(t) = \lambda \Big/ \Big( 1 - \frac{\alpha_t\, \sigma_s}{\alpha_s\, \sigma_t} \Big). \label{eq-plus-plus-scale} $$

# %%
pair = main.model.pair(schedule, label)
t, s = times[12], times[13]
naive = 0.15 / (1 - schedule.alpha(t) * schedule.sigma(s) / (schedule.alpha(s) * schedule.sigma(t)))
compact = practice.plus_plus_scale(0.15, schedule, times)
torch.testing.assert_close(compact(t), naive)
theirs = main.sample(guidance.classifier_free(pair, 0.15), noise_from=pair.uncond)
ours = main.sample(guidance.classifier_free(pair, compact))
apart = float((theirs - ours).abs().max())
print(f"at t = {float(t):g} gamma is {float(naive):.2f};", end=" ")
print(f"after 40 steps the two differ by {apart:.0e}")
assert apart < 1e-12

# %% [markdown]
# Shorter steps bring $s$ nearer to $t$, and $\gamma$ grows. One $\lambda$, four numbers of steps:

# %% tags=["hide-input"]
profiles, by_steps = {}, {}
print("steps  gamma up to   CFG++: class 1  distance   plain at 2: class 1  distance")
for steps in (10, 20, 40, 80):
    grid = time_grid(steps)
    scale = practice.plus_plus_scale(0.15, schedule, grid)
    profiles[steps] = torch.stack([scale(t) for t in grid[:-1]])
    both = (guidance.classifier_free(pair, g) for g in (scale, 2.0))
    by_steps[steps] = both = [main.judge(main.sample(each, grid)) for each in both]
    print(f"{steps:5d} {float(profiles[steps].max()):12.2f}", end="")
    for width, (far, right, _) in zip((17, 22), both, strict=True):
        print(f"{right:{width}.2f} {float(far.mean()):9.3f}", end="")
    print()

# %% tags=["remove-cell"]
assert all(0.93 < float(profiles[2 * n].max() / profiles[n].max()) / 2 < 1.01 for n in (10, 20, 40)) and max(float(p[0]) for p in profiles.values()) < 0.16
assert all(abs(float(p.max()) / (0.15 * (n / math.pi + 0.5)) - 1) < 0.01 for n, p in profiles.items()) and profiles[20].max() < 1.03
assert by_steps[10][0][1] < 0.5 < 0.9 < by_steps[80][0][1] and max(abs(r[1][1] - by_steps[40][1][1]) for r in by_steps.values()) < 0.01
assert by_steps[80][0][0].mean() > 2.9 * by_steps[40][0][0].mean()
assert round(float(profiles[10].max()), 1) == 0.5 and round(float(profiles[80].max()), 1) == 3.9

# %% tags=["hide-input"]
with plotting.style():
    figure, axes = plotting.plt.subplots(figsize=(6, 3))
    for steps, profile in profiles.items():
        colour, width = plotting.COLOURS["guided"], 0.6 + steps / 50
        axes.plot(time_grid(steps)[:-1], profile, ".-", color=colour, markersize=3, linewidth=width)
        axes.text(0.5, float(profile.max()) + 0.08, f"{steps} steps", color=colour, ha="center")
    axes.axhline(1, color=plotting.COLOURS["conditional"], linewidth=1)
    once = "$\\gamma = 1$: the label, once"
    axes.text(0.005, 1.06, once, color=plotting.COLOURS["conditional"], fontsize=8)
    axes.set(xlabel="$t$", ylabel="$\\gamma(t)$ of CFG++, $\\lambda = 0.15$")
    axes.set(xlim=(1.02, -0.02), ylim=(0, 4.4))
    assert 0.95 < profiles[40].max() / (2 * profiles[20].max()) < 1.05
    shown = plotting.show(figure, "19_plus_plus", alt=(
        "The guidance scale of CFG++ over time for four numbers of steps: four arches, "
        "nearly zero at both ends, highest in the middle. Each is twice as high as the one "
        "before, from 0.5 to 3.9. A line marks gamma 1."
    ))
shown

# %% [markdown]
# *The guidance scale that CFG++ is, over time from noise (left) to data, at $\lambda = 0.15$ for even steps of the cosine schedule. Twice the steps, about twice the push.*
#
# The arch is an interval whose outside is $\lambda$ and not 1: at both ends the label hardly counts. The height is about $\lambda\, (n / \pi + \frac12)$ for $n$ steps. The share of class 1 follows it, while plain guidance at 2 keeps its own. If you double the steps, halve $\lambda$.
#
# The authors' [repository](https://github.com/CFGpp-diffusion/CFGpp) sets $\lambda = 0.6$ beside plain guidance at 7.5, in 50 steps by default. On Stable Diffusion's table of betas $\eqref{eq-plus-plus-scale}$ gives, on average over the steps:

# %% tags=["hide-input"]
sd = from_betas(torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2)
average = {}
for steps in (25, 50, 100):
    begins = (torch.arange(steps).double().flip(0) * (1000 // steps) + 2) / 1000  # "leading", offset 1
    grid = torch.cat([begins, torch.zeros(1).double()])
    scale = practice.plus_plus_scale(0.6, sd, grid)
    average[steps] = float(torch.stack([scale(t) for t in begins]).mean())
    print(f"lambda = 0.6, {steps:3d} steps: gamma is {average[steps]:.1f} on average")
inside = (sd.log_snr(torch.arange(50, 0, -1).double() / 50).abs() <= 3).nonzero().flatten()  # "trailing"
window = float(inside[0]) / 50, float(inside[-1] + 1) / 50
print("log-SNR -3 to 3, of 50 steps: start={:.2f}, stop={:.2f}".format(*window))

# %% tags=["remove-cell"]
assert abs(average[50] / 7.5 - 1) < 0.05 and all(1.8 < average[2 * n] / average[n] < 2.1 for n in (25, 50))

# %% [markdown]
# So at 50 steps their pairing is nearly that of the formula; at half or twice the steps the same $\lambda$ is another push.
#
# ## Another pair
#
# What both guesses have wrong alike no $\gamma$ mends: across the plane they have the same fault, so their difference does not show it. *Autoguidance* ([Karras et al. (2024)](https://arxiv.org/abs/2406.02507)) asks for the label twice, and puts a *weaker model* in the place of the guess without label: a smaller network, or an earlier state of the same one. If it has the same fault, only more of it, the difference points away from the fault.
#
# How far must one go? Let the data be one centred normal distribution of variance $v$; one model believes $v + b_1$, a weaker one $v + b_2$, with $b_2 > b_1$. With $z = x_t / \alpha_t$ and $q = \sigma_t^2 / \alpha_t^2$ their scores are $-z / (v + b_1 + q)$ and $-z / (v + b_2 + q)$; wanted is $-z / (v + q)$. All are multiples of $z$: set $\gamma$ times the first plus $1 - \gamma$ times the second equal to the third, and solve,
#
# $$ \gamma(t) = \frac{b_2\, (v + b_1 + q)}{(b_2 - b_1)\, (v + q)} . \label{eq-autoguidance-cure} $$
#
# **With this scale the fault is gone, at every noise level, exactly.** At large $q$ it is $b_2 / (b_2 - b_1)$, an extrapolation to no blur; near the data it is more.

# %% tags=["hide-input"]
def bell(variance):
    cov = variance * torch.eye(2, dtype=torch.float64)[None]
    return GaussianMixture([1.0], torch.zeros(1, 2).double(), cov).denoiser(schedule)


v, b_1, b_2 = 0.5, 0.2, 0.6
z = torch.randn(20, 2, generator=seeded(6), dtype=torch.float64)
heal = practice.healing_scale(v, b_1, b_2, schedule)
for t in (0.1, 0.5, 0.9):
    q = (schedule.sigma(t) / schedule.alpha(t)) ** 2
    naive = b_2 * (v + b_1 + q) / ((b_2 - b_1) * (v + q))
    torch.testing.assert_close(heal(torch.tensor(t).double()), naive, rtol=1e-6, atol=0)
    healed = guidance.classifier_free(Pair(bell(v + b_1), bell(v + b_2)), naive)
    right = bell(v)(z, t).eps
    off = (healed(z, t).eps - right).abs().max()
    alone = (bell(v + b_1)(z, t).eps - right).abs().max()
    assert off < 1e-12 < 0.005 < alone
ends = [float(heal(torch.tensor(t))) for t in (0.999, 0.1)]
print(f"in the noise gamma is {ends[0]:.2f}, at t = 0.1 {ends[1]:.2f};", end=" ")
print(f"healed, the guess is off by {float(off):.0e}")

# %% [markdown]
# In a mixture each direction has its own $v$, and a constant scale is handier. For one normal distribution it ends, without noise, with the variance $v_1^\gamma\, v_2^{1 - \gamma}$ ([exercise 11.3](11_classifier_free_guidance.ipynb)), where $v_1$ and $v_2$ are what the two models believe; so it is right at $\gamma = \ln (v_2 / v) / \ln (v_2 / v_1)$. For our blobs that is one number in the plane, and another across it. And in all eight directions?

# %% tags=["hide-input"]
true_v = {"plane": 0.03, "across": 0.3}
right_scale = {
    name: math.log((v + 0.2) / v) / math.log((v + 0.2) / (v + 0.1)) for name, v in true_v.items()
}
print("right scale: " + ", ".join(f"{g:.2f} {name}" for name, g in right_scale.items()))
real_8, eight = main.truth.given(label).sample(12_000, seeded(2))[0], {}
tried = {"plain": (1.0, 1.5, 2.0), "autoguidance": (2.0, right_scale["across"], 3.0, 4.0)}
for name, gammas in tried.items():
    for g in gammas:
        x = main.sample(ways(main, 1.0)[name](g))
        sides = zip(x.chunk(12), real_8.chunk(12), strict=True)
        far = torch.stack([2 * spread(a, b) - spread(a) - spread(b) for a, b in sides])
        (mean, error), (flat, _, across) = mean_error(far), main.judge(x)
        eight[name, g] = mean
        print(f"{name:>12} {g:.2f}: in all eight {mean:.4f} ± {error:.4f},", end=" ")
        print(f"in the plane {float(flat.mean()):.4f}, across {across:.2f}")

# %% tags=["remove-cell"]
plain_across = [at["plain", g][2] for g in scales]
assert max(plain_across) - min(plain_across) < 1e-9 and round(plain_across[0], 2) == 0.37
assert round(float(main.model.covs[0] @ turn[:, 2] @ turn[:, 2]), 2) == 0.4
assert eight["plain", 1.0] < eight["plain", 1.5] < eight["plain", 2.0] and eight["autoguidance", 4.0] > eight["plain", 1.0] > 4 * eight["autoguidance", right_scale["across"]]
assert eight["autoguidance", right_scale["across"]] < eight["autoguidance", 3.0] < eight["autoguidance", 4.0]

# %% [markdown]
# In all eight directions plain guidance is best, of the three scales, at $\gamma = 1$: it changes nothing across, where the variance stays 0.37. Autoguidance at the scale that is right across is far nearer, in all eight and in the plane; at 4 it is worse in all eight than the model alone, since it narrows too far what lies across. No one number is right for both.
#
# What if the weaker model has *another* fault? Two have our blur, and besides all blobs shifted in the plane, or other shares of the blobs. A third is what you may really have: twice our blur, and a small shift of its own.

# %% tags=["hide-input"]
def changed(weights=main.model.weights, shift=0.0, covs=main.model.covs):
    """Our model with other weights, moved to the right, or with other covariances."""
    means = main.model.means + torch.tensor([shift, 0.0]).double() @ sheet.T
    return GaussianMixture(weights, means, covs, main.model.labels)


other = torch.tensor([0.1, 0.25, 0.1, 0.05, 0.1, 0.1, 0.1, 0.05, 0.15])
weaker = {"wider": main.weaker, "shifted": changed(shift=0.3), "other shares": changed(other)}
weaker["wider and shifted"] = changed(shift=0.1, covs=main.weaker.covs)
healed, clouds = {}, {}
print(f"{'distance, across:':>17}", *(f"   at gamma = {g}" for g in (1, 2, 3)))
for name, weak in weaker.items():
    both = Pair(pair.cond, weak.denoiser(schedule, label))
    for g in (1.0, 2.0, 3.0):
        clouds[name, g] = main.sample(guidance.classifier_free(both, g))
        far, _, across = healed[name, g] = main.judge(clouds[name, g])
        begin = f"{name:>17} " if g == 1 else ""
        print(f"{begin}{float(far.mean()):10.4f} {across:.2f}", end="")
    print()

# %% tags=["remove-cell"]
assert all(healed[name, 2.0][0].mean() > 5 * healed[name, 1.0][0].mean() for name in ("shifted", "other shares"))
mixed = [float(healed["wider and shifted", g][0].mean()) for g in (1.0, 2.0, 3.0)]
assert mixed[1] < mixed[0] < mixed[2]
assert healed["wider", 3.0][0].mean() < 0.001 and healed["wider", 3.0][2] < 0.28 < healed["wider", 2.0][2] < 0.31
assert all(abs(healed[name, 3.0][2] - plain_across[0]) < 1e-6 for name in ("shifted", "other shares"))

# %% tags=["hide-input"]
with plotting.style():
    figure, axes = plotting.plt.subplots(1, 3, figsize=(9, 3.2), sharex=True, sharey=True)
    panels = {
        ("wider", 1.0, "conditional"): "the model alone",
        ("wider", 3.0, "other"): "guided by a wider one, $\\gamma = 3$",
        ("shifted", 3.0, "other"): "guided by a shifted one, $\\gamma = 3$",
    }
    flat = main.truth.given(label)
    flat = GaussianMixture(flat.weights, flat.means @ sheet, sheet.T @ flat.covs @ sheet)
    for panel, ((name, g, shade), title) in zip(axes, panels.items(), strict=True):
        x, colour = clouds[name, g][:700] @ sheet, plotting.COLOURS[shade]
        panel.plot(*x.T, ".", markersize=1.8, color=colour)
        plotting.density(panel, flat.log_prob, (-2.2, 2.2, -2.2, 2.2), linewidths=0.8)
        panel.set(title=title, xlabel="$u_1$", xlim=(-2.2, 2.2), ylim=(-2.2, 2.2), aspect="equal")
    axes[0].set_ylabel("$u_2$")
    shown = plotting.show(figure, "19_pairs", alt=(
        "Three clouds in the plane over the dashed contours of three small round blobs. "
        "Left, the model alone: points spread far beyond the contours and run together. "
        "Middle, guided by a model with twice the blur: nearly all points lie within the "
        "contours. Right, guided by a shifted model: all clumps lie to the left of the "
        "contours."
    ))
shown

# %% [markdown]
# *Samples in the plane, with the truth (dashed: 50, 90 and 99 %). A wider model takes the blur away (middle); one that is shifted to the right moves the samples to the left, into bent clumps (right).*
#
# Guiding *away from* a model puts the opposite of its faults into the samples. If they are yours as well, only larger, they cancel at some scale, beyond which they return with the opposite sign. If not, you import them; and with a bit of both it helped at 2 and harmed at 3.
#
# (The guider `AutoGuidance` of `diffusers` weakens your own network: it skips or drops layers. Whether that gives more of your fault was not tried here.)
#
# A *negative prompt* is the same line with another prompt in the place of no prompt: $\hat\varepsilon_- + \gamma\, (\hat\varepsilon_+ - \hat\varepsilon_-)$, at every level the score of $p_t(x \mid +)^\gamma\, p_t(x \mid -)^{1 - \gamma}$. At $\gamma = 1$ it is not heard at all (exercise 19.1). At a large $\gamma$ that density may lie where no data are. Here your prompt is a blob at $(1, 1)$, the negative one a blob of the same width at $(-2, 0)$:

# %% tags=["hide-input"]
places = torch.tensor([[1.0, 1.0], [-2.0, 0.0], [0.0, -2.0]]).double()
three = GaussianMixture([1 / 3] * 3, places, (0.3 * torch.eye(2).double()).expand(3, 2, 2), [0, 1, 2])
away = Pair(three.denoiser(schedule, 0), three.denoiser(schedule, 1))
noise = torch.randn(1000, 2, generator=seeded(9), dtype=torch.float64)
x = draw(kernels.ddim(guidance.classifier_free(away, 3.0), schedule), noise, times)
beyond = float((x - places[0]).norm(dim=1).min()) / 0.3**0.5
print("gamma = 3: samples around ({:.1f}, {:.1f});".format(*x.mean(0)))
print(f"the nearest to your prompt is {beyond:.1f} deviations from its blob's centre")

# %% tags=["remove-cell"]
assert float((x.mean(0) - torch.tensor([7.0, 3.0]).double()).norm()) < 0.1 and beyond > 5

# %% [markdown]
# ## Another sum
#
# Guidance moves the clean guess beyond the one with label, at last out of the range of the data; pictures then look *saturated* ([Ho & Salimans (2022)](https://arxiv.org/abs/2207.12598)). The share of pixels out of $[-1, 1]$ by more than 0.05, in 20 digits of the pocket network, plainly and by rules against it:

# %% tags=["hide-input"]
network = checkpoints.load("pocket").network
starts, its_own = torch.randn(20, 1, 28, 28, generator=seeded(3)), network.schedule
on_digits = network_pair(network, its_own, torch.arange(10).repeat(2))
tried = {
    "plain at gamma 1": guidance.classifier_free(on_digits, 1.0),
    "plain at 3": guidance.classifier_free(on_digits, 3.0),
    "rescaled at 3": guidance.mix(on_digits, practice.rescaled(3.0, 0.7, its_own)),
    "rescaled v at 3": guidance.mix(on_digits, practice.rescaled(3.0, 0.7, its_own, of="v")),
    "APG at 3": guidance.mix(on_digits, practice.projected(3.0, its_own)),
}
outside = {}
with torch.no_grad():
    for name, way in tried.items():
        drawn = draw(kernels.ddim(way, its_own), starts, sampling.digit_times(12, its_own))
        outside[name] = float((drawn.abs() - 1 > 0.05).double().mean())
print("; ".join(f"{name}: {share:.1%}" for name, share in outside.items()))

# %% tags=["remove-cell"]
assert max(outside["rescaled v at 3"], outside["APG at 3"]) < 0.7 * outside["plain at 3"] and outside["plain at gamma 1"] < 0.5 * outside["plain at 3"]
assert abs(outside["rescaled at 3"] / outside["plain at 3"] - 1) < 0.1

# %% [markdown]
# At one scale APG and rescaling $v$ take much of it away, and so does a smaller $\gamma$. (In colour it was not measured.)
#
# *Rescaling* ([Lin et al. (2024)](https://arxiv.org/abs/2305.08891), `guidance_rescale`) gives the guided guess, in part, the spread of the one with label, over all coordinates of a picture:
#
# $$ \hat\varepsilon = \Big( \phi\, \frac{\operatorname{std} \hat\varepsilon_c}{\operatorname{std} \hat\varepsilon_\gamma} + 1 - \phi \Big)\, \hat\varepsilon_\gamma . \label{eq-rescaled-guidance} $$

# %%
half = torch.tensor(0.5, dtype=torch.float64)
noisy = main.model.given(label).noised(schedule.alpha(half), schedule.sigma(half))
x_t = noisy.sample(50, seeded(5))[0]
told, untold = pair(x_t, half)
guided = untold.eps + 3.0 * (told.eps - untold.eps)
factor = told.eps.std(1, keepdim=True) / guided.std(1, keepdim=True)
naive = (0.7 * factor + 0.3) * guided
compact = guidance.mix(pair, practice.rescaled(3.0, 0.7, schedule))(x_t, half).eps
torch.testing.assert_close(compact, naive)

# %% [markdown]
# All four in words, tried above at $\phi = 0.7$ and $\eta = 0$ (the formulas of the others in [Deeper](#deeper-the-four-sums-one-by-one)):
#
# | rule | what it multiplies or cuts | what it depends on | plain guidance at |
# |---|---|---|---|
# | rescaling | the whole guess of the noise | two spreads | $\phi = 0$ |
# | APG ([Sadat et al. (2025)](https://arxiv.org/abs/2410.02416)) | the part of the push along the clean guess, by $\eta$ | where zero is | $\eta = 1$ |
# | CFG-Zero\* ([Fan et al. (2025)](https://arxiv.org/abs/2503.18886)) | the velocity $\alpha_t \hat\varepsilon - \sigma_t \hat x_0$ without label, to come nearest to the one with label | where zero is | no setting |
# | dynamic thresholding ([Saharia et al. (2022)](https://arxiv.org/abs/2205.11487)) | the clean guess, where it leaves the range of the data | the range, and where zero is | a wide range |
#
# At $\gamma = 1$ the first three give the guess with label. So test your library's version first a millionth above 1 (at 1 itself many are off: [chapter 20](20_from_here_to_a_real_pipeline.ipynb)), and at the setting of the last column. And the fourth?

# %% tags=["hide-input"]
plain_3 = guidance.classifier_free(pair, 3.0)(x_t, half).x0
for rule in (practice.rescaled(3.0, 0.0, schedule), practice.projected(3.0, schedule, eta=1.0)):
    torch.testing.assert_close(guidance.mix(pair, rule)(x_t, half).x0, plain_3)
wide = practice.thresholded(guidance.classifier_free(pair, 3.0), schedule, limit=9.0)
torch.testing.assert_close(wide(x_t, half).x0, plain_3)
rules = practice.projected(1.0, schedule), practice.zero_star(1.0, schedule)
for rule in (practice.rescaled(1.0, 0.7, schedule), *rules):
    torch.testing.assert_close(guidance.mix(pair, rule)(x_t, half).x0, told.x0)
near_data = main.model.given(label).sample(2000, seeded(7))[0]
cut = practice.thresholded(pair.cond, schedule, limit=limit_of(main))(near_data, 0.05).x0
touched = ((cut - pair.cond(near_data, 0.05).x0).abs().amax(1) > 1e-9).double().mean()
print(f"thresholded at gamma = 1, near the data: {float(touched):.0%} of the guesses are changed")

# %% tags=["remove-cell"]
repaired = mean_error(at["plain", 1.0][0] - at["threshold", 1.0][0])
assert repaired[0] > 2 * repaired[1] > 0

# %% [markdown]
# Thresholding acts at $\gamma = 1$ too: it knows how far true data reach, which a blurred model does not. Here it repairs the *model*; on digits it harmed there ([Deeper](#deeper-the-same-on-digits)).
#
# **What APG, CFG-Zero\* and thresholding do depends on where zero is; what plain guidance does, with exact guesses, does not.** In pictures zero is mid-grey; ask what it is in the latents of an autoencoder ([chapter 02](02_elbo_and_the_vae.ipynb)).
#
# ## In practice
#
# | if you | do | because |
# |---|---|---|
# | have a weaker model of the same kind, with your fault and little else | try autoguidance first, from small scales upwards; stop where the distance in your own features is least | at its own best it was ahead on three problems with a blurred model, and on digits; where the weaker one had a fault of its own too, a larger scale harmed |
# | have none | turn $\gamma$ down before you switch anything on | at their own best no trick on the same pair was ahead by two errors on all three problems, nor on digits |
# | compare a trick with plain guidance | give each its own best scale, or compare at the same share of right samples | at one scale seven of eight led |
# | use CFG++ | change $\lambda$ with the number of steps; better, print $\gamma(t)$ | at one $\lambda$ the largest $\gamma$ went from 0.55 to 3.89 between 10 and 80 steps |
# | guide in an interval, by a guider of `diffusers` | `start` and `stop` are shares of the steps: print the log-SNR there ($-2 \log \sigma$ for a paper whose data keep their size) | on Stable Diffusion's table, 50 trailing steps, our interval is `start=0.24`, `stop=0.96` |
# | use APG, CFG-Zero\* or thresholding | ask what zero and the range mean in your space | with zero at another place APG's lead became a loss ([Deeper](#deeper-where-is-zero)) |
#
# ## Exercises
#
# Type where it says "your turn", run the cell, then the check below it. Tensors come in float64; leave them as they are.

# %% tags=["remove-cell"]
summary = [float(profiles[10].max()), float(profiles[80].max()), scales[6], scales[4]]
assert [round(value, 2) for value in summary] == [0.55, 3.89, 3, 2] and mixed[1] < mixed[0] < mixed[2]

# %% [markdown]
# ### Exercise 19.1 (easy): the negative prompt
#
# A library has three guesses: $\hat\varepsilon_u$ (no prompt), $\hat\varepsilon_+$ (your prompt) and $\hat\varepsilon_-$ (the negative prompt). It computes $\hat\varepsilon_- + \gamma\, (\hat\varepsilon_+ - \hat\varepsilon_-)$. Another writes the same as $\hat\varepsilon_u + a\, (\hat\varepsilon_+ - \hat\varepsilon_u) - b\, (\hat\varepsilon_- - \hat\varepsilon_u)$. Return $a$ and $b$, for a scale $\gamma$.
#
# <details><summary>Hint</summary>
#
# Compare the factors of $\hat\varepsilon_+$ and of $\hat\varepsilon_-$; then see that those of $\hat\varepsilon_u$ agree. What happens at $\gamma = 1$?
#
# </details>

# %% tags=["exercise"]
def pull_and_push(gamma):
    """(a, b)"""
    ### BEGIN SOLUTION
    return gamma, gamma - 1
    ### END SOLUTION


# %%
exercises.check("19.1", pull_and_push)

# %% [markdown]
# ### Exercise 19.2 (medium): the $\lambda$ for a push that you know
#
# You know the scale that you want. `log_snr` holds the log-SNR at the times of a DDIM run, `(steps + 1,)`, growing, and the last one is infinite (clean data). Return the $\lambda$ at which CFG++ has the mean scale $\gamma$ over the steps.
#
# <details><summary>Hint</summary>
#
# $\alpha_t / \sigma_t$ is $e$ to half the log-SNR. What is $\eqref{eq-plus-plus-scale}$ in log-SNR, and in the step to clean data?
#
# </details>

# %% tags=["exercise"]
def lam_for(gamma, log_snr):
    ### BEGIN SOLUTION
    factors = 1 / (1 - torch.exp((log_snr[:-1] - log_snr[1:]) / 2))
    return gamma / factors.mean()
    ### END SOLUTION


# %%
exercises.check("19.2", lam_for)

# %% [markdown]
# ### Exercise 19.3 (hard): heal from what you can measure
#
# You do not know $b_1$ and $b_2$. You have data, and samples of both models, in many directions; `v`, `v_1` and `v_2`, all `(d,)`, are the three variances in each direction, with $v < v_1 < v_2$. Return two tensors `(d,)`: the scale that heals each direction at the log-SNR `log_snr`, and the *constant* scale with which a noiseless sampler of fine steps ends with the right variance in that direction. (That sampler ends, with a constant scale, with the variance $v_1^\gamma\, v_2^{1 - \gamma}$: [exercise 11.3](11_classifier_free_guidance.ipynb).)
#
# <details><summary>Hint</summary>
#
# What is $q$ in log-SNR? And take logarithms.
#
# </details>

# %% tags=["exercise"]
def healing_scales(v, v_1, v_2, log_snr):
    ### BEGIN SOLUTION
    q = math.exp(-log_snr)
    now = (v_2 - v) * (v_1 + q) / ((v_2 - v_1) * (v + q))
    return now, torch.log(v_2 / v) / torch.log(v_2 / v_1)
    ### END SOLUTION


# %%
exercises.check("19.3", healing_scales)

# %% [markdown]
# ### Exercise 19.4 (research): at what scale is a rescaled step plain guidance's?
#
# Rescaling multiplies $\hat\varepsilon_\gamma$ by a factor, and that is not on the line through the two guesses. For each picture, take the nearest point of that line: return the scale at which plain guidance is nearest to the rescaled guess, and how far it is, as a share of the length of $\hat\varepsilon_c - \hat\varepsilon_u$. Both `(N,)`, from `eps_c` and `eps_u` of shape `(N, C, H, W)`, `gamma` and `phi`. (Then ask your own network: which of the two numbers is larger, the loss of scale or the way off the line?)
#
# <details><summary>Hint</summary>
#
# $\eqref{eq-rescaled-guidance}$ first, with the spread over all coordinates of each picture. Then the foot of a perpendicular.
#
# </details>

# %% tags=["exercise"]
def as_plain(eps_c, eps_u, gamma, phi):
    ### BEGIN SOLUTION
    told, untold = eps_c.flatten(1), eps_u.flatten(1)
    push = told - untold
    guided = untold + gamma * push
    rescaled = guided * (phi * told.std(1) / guided.std(1) + 1 - phi)[:, None]
    square = push.square().sum(1)
    scale = ((rescaled - untold) * push).sum(1) / square
    off = (rescaled - untold - scale[:, None] * push).norm(dim=1)
    return scale, off / square.sqrt()
    ### END SOLUTION


# %%
exercises.check("19.4", as_plain)

# %% [markdown]
# ## Remember
#
# 1. A trick that is better at the same scale may only push less. Compare at each one's own best scale, or at the same share of right samples: on our three problems with blurred models no trick on the same pair of guesses was better than the dial every time, by two errors.
# 2. CFG++ is plain guidance in DDIM's step, exactly, with a scale that depends on the step; with twice the steps, evenly in time, the same $\lambda$ pushes about twice as hard.
# 3. What APG, CFG-Zero\* and thresholding do depends on where zero is, or on a range that they are told; what plain guidance does with exact guesses does not.
# 4. Autoguidance can do what no $\gamma$ can: for one normal distribution and a weaker model with the same blur, only larger, a scale in closed form heals every noise level.
# 5. Guiding away from a model puts the opposite of its faults into the samples. If they are not yours, it did harm at both scales that we tried.
#
# **Where it comes from.** Interval: [Kynkäänniemi et al. (2024)](https://arxiv.org/abs/2404.07724). Schedules: [Wang et al. (2024)](https://arxiv.org/abs/2404.13040). CFG++: [Chung et al. (2025)](https://arxiv.org/abs/2406.08070). Rescaling: [Lin et al. (2024)](https://arxiv.org/abs/2305.08891). APG: [Sadat et al. (2025)](https://arxiv.org/abs/2410.02416). CFG-Zero\*: [Fan et al. (2025)](https://arxiv.org/abs/2503.18886). Thresholding: [Saharia et al. (2022)](https://arxiv.org/abs/2205.11487).
# Autoguidance: [Karras et al. (2024)](https://arxiv.org/abs/2406.02507). The healing scale, the ways to compare and the numbers: derived and measured here.

# %% [markdown]
# ## Deeper: the four sums, one by one
#
# *For you if you write one of these rules yourself. It adds the formulas of the other three, each beside the package.*
#
# *Adaptive projected guidance*, APG ([Sadat et al. (2025)](https://arxiv.org/abs/2410.02416)), splits the push $d = \hat x_{0,c} - \hat x_{0,u}$ into a part along the clean guess and the rest, and keeps a share $\eta$ of the former, often none, since it makes pictures glare:
#
# $$ \hat x_0 = \hat x_{0,c} + (\gamma - 1)\, \big( d_\perp + \eta\, d_\parallel \big), \qquad d_\parallel = \frac{d^\top \hat x_{0,c}}{\|\hat x_{0,c}\|^2}\, \hat x_{0,c}, \qquad d_\perp = d - d_\parallel . \label{eq-projected-guidance} $$

# %%
d = told.x0 - untold.x0
along = (d * told.x0).sum(1, keepdim=True) / told.x0.square().sum(1, keepdim=True) * told.x0
naive = told.x0 + (3.0 - 1) * (d - along + 0.2 * along)
compact = guidance.mix(pair, practice.projected(3.0, schedule, eta=0.2))(x_t, half).x0
torch.testing.assert_close(compact, naive)

# %% [markdown]
# *CFG-Zero\** ([Fan et al. (2025)](https://arxiv.org/abs/2503.18886)) first multiplies the velocity without label (here $v = \alpha_t \varepsilon - \sigma_t x_0$) so that it comes nearest to the one with label (its paper also silences the first steps, which is left out here; `diffusers` answers zeros in the first one by default, at a scale of 1 too: set `zero_init_steps=0` to compare, and always if your network answers the noise):
#
# $$ \hat v = s\, \hat v_u + \gamma\, (\hat v_c - s\, \hat v_u), \qquad s = \frac{\hat v_c^\top \hat v_u}{\|\hat v_u\|^2} . \label{eq-zero-star} $$

# %%
alpha, sigma = schedule.alpha(half), schedule.sigma(half)
v_c, v_u = (alpha * guess.eps - sigma * guess.x0 for guess in (told, untold))
near = (v_c * v_u).sum(1, keepdim=True) / v_u.square().sum(1, keepdim=True) * v_u
naive = near + 3.0 * (v_c - near)
compact = guidance.mix(pair, practice.zero_star(3.0, schedule))(x_t, half)
torch.testing.assert_close(alpha * compact.eps - sigma * compact.x0, naive)

# %% [markdown]
# *Dynamic thresholding* ([Saharia et al. (2022)](https://arxiv.org/abs/2205.11487)) cuts the guided clean guess where it leaves the range $[-L, L]$ of the data, at its own quantile, and shrinks it back into the range. With $Q_p$ for the quantile over the coordinates of one picture,
#
# $$ s = \max\big( L,\, Q_p(|\hat x_0|) \big), \qquad \hat x_0 \to \frac{L}{s}\, \operatorname{clip}(\hat x_0, -s, s) . \label{eq-dynamic-threshold} $$

# %%
strong = guidance.classifier_free(pair, 6.0)
loud = strong(x_t, half).x0
s_cut = loud.abs().quantile(0.995, dim=1, keepdim=True).clamp_min(1.0)
naive = 1.0 / s_cut * loud.clamp(-s_cut, s_cut)
compact = practice.thresholded(strong, schedule, limit=1.0)(x_t, half).x0
torch.testing.assert_close(compact, naive)
assert 0.1 < (s_cut > 1).double().mean() < 0.9

# %% [markdown]
# ## Deeper: where is zero?
#
# *For you if your model works in another space than pictures. It adds what becomes of the four sums when another place is called zero.*
#
# Move all data by one vector, and the noisy points with them: plain guidance draws the same points, moved. Nothing in it knows where the origin is. Nor does rescaling, which looks at $\hat\varepsilon$. But "along the clean guess" means *away from zero*, and $v$ and a large $|x_0|$ know it too. So call another place zero, on the problem with class 1 to the side:

# %% tags=["hide-input"]
def lead(table, name):
    return mean_error(leads(distances(table, "plain"), distances(table, name), 0)[1])


scales_here, sums = (1.15, 1.3, 1.5), names[4:8]
moved = sweep(trial(side, 0.15, (1.5, 0.0), count=150), scales_here, ["plain", *sums])
at_home = {key: row for key, row in boards["side"].items() if key in moved}
here, away = ({name: lead(table, name) for name in sums} for table in (at_home, moved))
for name in sums:
    print("{:>10}: leads by {:7.4f} ± {:.4f};".format(name, *here[name]), end=" ")
    print("with zero elsewhere {:7.4f} ± {:.4f}".format(*away[name]))
same = (distances(moved, "plain") - distances(at_home, "plain")).abs().max()
print(f"plain guidance: largest change of a distance {float(same):.0e}")
third = sweep(trial(side, 0.15, (0.0, 1.5), count=150), scales_here, ["plain", "APG"])
again = lead(third, "APG")
print(f"APG with zero at a third place: leads by {again[0]:.4f} ± {again[1]:.4f}")

# %% tags=["remove-cell"]
assert same < 1e-4 and abs(away["rescaled"][0] - here["rescaled"][0]) < 1e-4 and here["APG"][0] > 3 * here["APG"][1]
assert again[0] > 2 * again[1] and all(away[name][0] < -2 * away[name][1] for name in ("APG", "CFG-Zero*")) and away["threshold"][0] > 2 * away["threshold"][1]

# %% [markdown]
# With zero there, APG's lead has become a loss. At the third place it is back: the result turns with the direction in which zero lies. (The small change of plain guidance is the trace of signal that is left at $t = 1$.)

# %% [markdown]
# ## Deeper: rescaling, taken apart
#
# *For you if you use `guidance_rescale`. It adds what is left of it in a picture, and which prediction it should be given.*
#
# Let $r$ be the factor of $\eqref{eq-rescaled-guidance}$. Then
#
# $$ r\, \hat\varepsilon_\gamma = \hat\varepsilon_u + r \gamma\, (\hat\varepsilon_c - \hat\varepsilon_u) - (1 - r)\, \hat\varepsilon_u : \label{eq-rescale-split} $$
#
# plain guidance at the scale $r \gamma$, smaller where $r < 1$, and a share $1 - r$ of the noise that is not taken away. So it pushes less, *and* the points stay noisier: across the plane their variance was larger than with plain guidance.

# %%
# [eq-rescale-split]
def split_rescaled(eps_c, eps_u, gamma, r):
    """The guess, from plain guidance at another scale and what is not taken away."""
    return eps_u + r * gamma * (eps_c - eps_u) - (1 - r) * eps_u


# %%
whole_guess = guidance.mix(pair, practice.rescaled(3.0, 0.7, schedule))(x_t, half).eps
in_two = split_rescaled(told.eps, untold.eps, 3.0, 0.7 * factor + 0.3)
torch.testing.assert_close(in_two, whole_guess)
of_v = guidance.mix(pair, practice.rescaled(3.0, 0.7, schedule, of="v"))
of_v = main.judge(main.sample(of_v))
rows = {"plain": at["plain", 3.0], "rescaled eps": at["rescaled", 3.0], "rescaled v": of_v}
for name, (far, right, across) in rows.items():
    print(f"{name:>12}, gamma = 3: variance across the plane {across:.2f},", end=" ")
    print(f"share of class 1 {right:.3f}, distance {float(far.mean()):.4f}")

# %% tags=["remove-cell"]
assert at["rescaled", 3.0][2] > at["plain", 3.0][2] + 0.01 and of_v[2] > at["rescaled", 3.0][2] and of_v[1] < at["rescaled", 3.0][1]

# %% [markdown]
# The more coordinates, the less is left: the noise in a picture has a spread near 1, guided or not, and $r$ is near 1. The paper rescales $v$, which in the noise is nearly (minus) the clean guess, and so it does more. Libraries rescale what the network happens to answer: know what yours predicts.
#
# ## Deeper: APG in a library, and with momentum
#
# *For you if you switch APG on. It adds what else it has, and a setting that is not neutral.*
#
# The guider of `diffusers` has, with `use_original_formulation=False`, its default, another beginning (and projects what the network predicts; here the clean guess):
#
# $$ \hat x_0 = \hat x_{0,u} + \gamma\, \big( d_\perp + \eta\, d_\parallel \big) = \hat x_{0,c} + (\gamma - 1)\, \big( d_\perp + \eta\, d_\parallel \big) - (1 - \eta)\, d_\parallel . \label{eq-projection-in-a-library} $$
#
# At $\eta = 1$, its default, nobody notices. As it comes it has no projection and no momentum, and only cuts a long push; for $\eqref{eq-projected-guidance}$ give it `guidance_scale` $\gamma - 1$, `eta=0.0`, `use_original_formulation=True`, and the clean guess. At $\eta = 0$ the formula at $\gamma = 1$ is not the guess with label: it lacks $d_\parallel$. (Asked for exactly 1, the guider answers the guess with label, so it jumps.)

# %%
# [eq-projection-in-a-library]
def in_a_library(x0_c, x0_u, gamma, eta):
    d = x0_c - x0_u
    along = (d * x0_c).sum(1, keepdim=True) / x0_c.square().sum(1, keepdim=True) * x0_c
    return x0_u + gamma * (d - along + eta * along)


# %%
library = in_a_library(told.x0, untold.x0, 3.0, 0.2)
ours = guidance.mix(pair, practice.projected(3.0, schedule, eta=0.2))(x_t, half).x0
torch.testing.assert_close(library, ours - (1 - 0.2) * along)
gap = (in_a_library(told.x0, untold.x0, 1.0, 0.0) - told.x0).norm(dim=1) / d.norm(dim=1)
print(f"at gamma = 1, eta = 0 its guess is off by {float(gap.mean()):.0%} of the whole difference")
full = {}
for g in (1.5, 2.0, 3.0):
    rule = practice.projected(g, schedule, reach=0.5, momentum=-0.5)
    full[g] = far, right, _ = main.judge(main.sample(guidance.mix(pair, rule)))
    print(f"with momentum and reach, gamma {g:g}: {float(far.mean()):.4f}, class 1 {right:.3f}")
plainly = at["APG", 1.75]
print(f"APG at its best, gamma 1.75: {float(plainly[0].mean()):.4f}, class 1 {plainly[1]:.3f}")

# %% tags=["remove-cell"]
least_apg = min(float(at["APG", g][0].mean()) for g in scales)
assert least_apg == float(plainly[0].mean()) and abs(float(full[2.0][0].mean()) / least_apg - 1) < 0.03 and full[2.0][1] < plainly[1] - 0.01

# %% [markdown]
# Momentum ($-0.5$: it takes back half of the push before) and a reach (the push is never longer than 0.5) push less again: at $\gamma = 2$ the distance is that of APG at its best, at a lower share of class 1. Two more dials, and the same valley.
#
# ## Deeper: the same on digits
#
# *For you if you doubt mixtures. It adds all ten ways, on digits.*
#
# The benchmark `digits_practice.py` made the rows. CFG++ is not among them: on these times, even in log-SNR, it is plain guidance at one scale in all steps but the last. In the last row the weaker model is less weak; it hid few of the labels.

# %% tags=["hide-input"]
called = {
    "interval": "interval", "growing": "growing", "rescaled": "rescaled",
    "rescaled_v": "rescaled, of v", "projected": "APG", "kept_short": "APG, all dials",
    "zero_star": "CFG-Zero*", "thresholded": "threshold", "auto_p50": "autoguidance",
    "auto_p02": "by a nearer one",
}  # fmt: skip
digit_rows(called)
digits, growth_rows = (
    {row["gamma"]: row["digit_fid"] for row in records.pick(records.rows("practice"), way=way)}
    for way in ("plain", "growing")
)
print("gamma:  " + "".join(f"{g:<8g}" for g in sorted(digits)).rstrip())
print("plain:  " + "   ".join(f"{digits[g]:.3f}" for g in sorted(digits)))
ahead = {g: digits[g] - min(growth_rows.values()) for g in (1.15, 1.25)}
for g, lead_of in ahead.items():
    print(f"growing at its best is ahead of plain at gamma {g} by {lead_of:.3f}")
difference, error = at_1["thresholded"]
print(f"thresholded at gamma = 1: {-difference:.3f} ± {error:.3f}")

# %% tags=["remove-cell"]
clear = {way for way, (difference, error) in at_3.items() if difference < -2 * error}
assert {way for way in called if way in at_3} - clear == {"zero_star"} and min(digits, key=digits.get) == 1.15
assert ahead[1.15] < best["growing"][1] < ahead[1.25] and abs(best["auto_p02"][0]) < 2 * best["auto_p02"][1]
assert len(called) == 10 and at_1["thresholded"][0] > 5 * at_1["thresholded"][1]

# %% [markdown]
# At one scale growing and the interval lead by much. Rescaling $\hat\varepsilon$ and CFG-Zero* change hardly anything: in hundreds of coordinates the noise has nearly the same spread, guided or not. Thresholding harms already at $\gamma = 1$: its range $[-1, 1]$ cuts guesses that nobody guided. Guided by a model that is less far behind (last row, one seed), nothing is shown to be gained. Without the scale 1.15 on the dial, growing would have led: it is ahead of plain guidance at 1.25 by more than the error, and at 1.15 by less.
#
# ## Deeper: two conditions at once
#
# *For you if you add the pushes of two prompts. It adds why the sum is not the product, and what mends it.*
#
# [Liu et al. (2022)](https://arxiv.org/abs/2206.01714) compose: $\hat\varepsilon_u + (\hat\varepsilon_a - \hat\varepsilon_u) + (\hat\varepsilon_b - \hat\varepsilon_u)$, meant is $p(x)\, p(a \mid x)\, p(b \mid x) / Z$. At each noise level that is the score of $F_t = p_t(x)\, p_t(a \mid x)\, p_t(b \mid x)$; but noised, the target is not $F_t$ ([Du et al. (2023)](https://arxiv.org/abs/2302.11552)). As in [chapter 18](18_remedies_that_are_right.ipynb#the-weight-for-every-noise), mass must appear. Per unit of $q$, with $z = x_t / \alpha_t$, both $p_q(z)\, p_q(a \mid z)$ and $p_q(z)\, p_q(b \mid z)$ obey the heat equation; their product over $p_q(z)$ lacks only the term in which the gradients of $\log p_q(a \mid z)$ and $\log p_q(b \mid z)$ meet. In guesses, with $\ell$ for the log-SNR, a point's weight grows by
#
# $$ d \log w = (\hat\varepsilon_u - \hat\varepsilon_a)^\top (\hat\varepsilon_u - \hat\varepsilon_b)\, d\ell . \label{eq-two-conditions-weight} $$
#
# **Where the two pushes point the same way, mass must appear; where they are opposed, it must vanish.** The first points need the weight $p_t(a \mid x)\, p_t(b \mid x)$. (For $a = b$ it is chapter 18's weight at $\gamma = 2$.)

# %%
# [eq-two-conditions-weight]
def growth(eps_a, eps_b, eps_u):
    """What the log-weight gains per unit of log-SNR, (N,)."""
    return ((eps_u - eps_a) * (eps_u - eps_b)).sum(1)


# %% tags=["hide-input"]
@dataclass(frozen=True, eq=False)
class composed(Part):
    """The sum of two pushes, as a denoiser."""

    uncond: Part
    first: Part
    second: Part

    def __call__(self, x, t):
        u, a, b = self.uncond(x, t), self.first(x, t), self.second(x, t)
        return Prediction(*(p + q - r for p, q, r in zip(a, b, u, strict=True)))


@dataclass(frozen=True, eq=False)
class missing(composed):
    """The rule: the mean of the growth at both ends of a step, times its length in log-SNR."""

    def __call__(self, step, x, new, t, s):
        def rate(y, u):
            return growth(self.first(y, u).eps, self.second(y, u).eps, self.uncond(y, u).eps)

        return (rate(x, t) + rate(new, s)) / 2 * (schedule.log_snr(s) - schedule.log_snr(t))


# %% tags=["hide-input"]
corners = torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]]).double()
covs, walk = (0.3 * torch.eye(2).double()).expand(4, 2, 2), time_grid(400, schedule, 0.99, 0.01)


def both_asked(a, b):
    """The density that is meant, on a grid; the crowd, drawn by the sum, with its weights."""
    told = lambda x: sum(m.class_log_prob(x, 1) for m in (a, b))  # noqa: E731
    asked = GridDensity(lambda x: a.log_prob(x) + told(x), -8, 9)
    parts = a.denoiser(schedule), a.denoiser(schedule, 1), b.denoiser(schedule, 1)
    noisy = [m.noised(schedule.alpha(walk[0]), schedule.sigma(walk[0])) for m in (a, b)]
    x = noisy[0].sample(3000, seeded(8))[0]
    begun = sum(m.class_log_prob(x, 1) for m in noisy)
    kernel, options = kernels.ddpm(composed(*parts), schedule), {"log_weights": begun, "below": 0}
    return asked, particles.draw(kernel, missing(*parts), x, walk, seeded(9), **options)


# %% tags=["hide-input"]
found = {}
for name, weights in (("agree", [0.4, 0.1, 0.1, 0.4]), ("opposed", [0.1, 0.4, 0.4, 0.1])):
    a, b = (  # a: right, b: top
        GaussianMixture(weights, corners, covs, labels) for labels in ([0, 0, 1, 1], [0, 1, 0, 1])
    )
    asked, crowd = both_asked(a, b)
    each = GaussianMixture(weights, corners, covs)  # every corner a class of its own
    in_corner = lambda x, each=each: each.class_log_prob(x, 3).exp()  # noqa: E731
    value, error = metrics.with_error(torch.mean, in_corner(crowd.x))
    found[name] = [float(asked.expectation(in_corner)), float(value), float(error)]
    found[name] += [float(crowd.expectation(in_corner)), float(crowd.ess) / len(crowd.x)]
    print(f"{name:>8}: corner with both, target {found[name][0]:.3f},", end=" ")
    print("sum {:.3f} ± {:.3f}, weighed {:.3f}; effective share {:.2f}".format(*found[name][1:]))

# %% tags=["remove-cell"]
assert all(abs(wrong - right) > 3 * error and share > 0.5 for right, wrong, error, mended, share in found.values())
assert all(abs(mended - right) < 2 * error for right, wrong, error, mended, share in found.values()) and len(walk) == 400 + 1
assert found["agree"][1] > found["agree"][0] and found["opposed"][1] < found["opposed"][0] - 0.08

# %% [markdown]
# Four blobs in the corners of a square; $a$ is right, $b$ is top; in the first row most data lie on the diagonal where the two agree, in the second on the other one. The sum gives the corner with both too often in the first row, and clearly too seldom in the second. The weights take it to the target in both, within two errors, with more than half of the points effective (400 steps of DDPM; one seed).
#
# ## Deeper: the shape of the scale
#
# *For you if you guide by a schedule. It adds the comparison of shapes at one mean scale.*
#
# [Wang et al. (2024)](https://arxiv.org/abs/2404.13040) find that scales which grow on the way do better on images than constant ones. The evenly growing one is
#
# $$ \gamma(t) = 1 + 2\, (\gamma - 1)\, (1 - t) \label{eq-growing-scale} $$
#
# with the mean $\gamma$ over times from 1 to 0. Its mirror image falls. Both at the same mean scales, on the nine blobs:

# %%
middles = (times[:-1] + times[1:]) / 2
naive = 1 + 2 * (3.0 - 1) * (1 - middles)
compact = practice.growing_scale(3.0)(middles)
torch.testing.assert_close(compact, naive)
torch.testing.assert_close(compact.mean(), torch.tensor(3.0).double())

# %% tags=["hide-input"]
def falling(gamma):
    return lambda t: practice.growing_scale(gamma)(1 - t)


shapes, least = dict(at), {}
for g in scales:
    x = main.sample(guidance.classifier_free(pair, falling(g)))
    shapes["falling", g] = main.judge(x)
print("gamma:    " + "".join(f"{g:<15g}" for g in scales[1:7]).rstrip())
for name in ("growing", "plain", "falling"):
    far, right = distances(shapes, name).mean(1), [shapes[name, g][1] for g in scales]
    least[name] = float(far.min())
    row = (f"{d:.4f}, {r:.2f}" for d, r in zip(far, right, strict=True))
    print(f"{name:>8}  " + "   ".join(list(row)[1:7]))

# %% tags=["remove-cell"]
assert least["growing"] < least["plain"] < least["falling"] and shapes["falling", 3.0][1] < at["plain", 3.0][1] < at["growing", 3.0][1]

# %% [markdown]
# (Distance, share of class 1.) At one mean scale, growing brings the largest share of class 1 and falling the least. At each one's own best growing is a little ahead, and falling behind. On the third problem of the main line no such lead was left.
