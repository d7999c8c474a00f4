# %% [markdown]
# # 15 · Classifier-free guidance on digits: what does the scale buy, and what does it cost?
#
# Your network draws digits on demand, and it has a dial, $\gamma$. Turn it up and mistakes get rare. So where
# do you stop, and what have you paid by then?
#
# **After this chapter you can**
# * measure what guidance buys and what it costs, with standard errors;
# * say of the usual metrics what they cannot see;
# * tell from the scale at which a Fréchet distance is least what it says about your network.
#
# **You need** [chapter 00](00_start_here.ipynb#what-the-knob-costs) (digit-FID), [chapter 11](11_classifier_free_guidance.ipynb#past-the-answer), where the dial comes from, with its exercise 11.3, and means and covariances.
#
# *27 minutes to read, 26 more for Deeper, 25 seconds to run, on a laptop, without a GPU or a network connection.*

# %%
import torch

from difflesson import exercises, guidance, kernels, path, plotting, practice
from difflesson.denoiser import Pair
from difflesson.digits import checkpoints, diversity, metrics, runs, sampling, tradeoff
from difflesson.digits.diversity import RealFeatures
from difflesson.digits.metrics import Statistics
from difflesson.mixture import GaussianMixture
from difflesson.samplers import draw, time_grid
from difflesson.schedule import cosine

torch.set_num_threads(1)

# %% [markdown]
# ## Forty sevens, twice
#
# The *pocket* network of [chapter 13](13_training.ipynb) draws forty sevens at $\gamma = 1$. Then forty again at $\gamma = 4$,
# from the same starting noise, with the same noise on the way.

# %%
network = checkpoints.load("pocket").network
judge = checkpoints.load("judge").network


def drawn(labels, gamma):
    """One digit a label, by 16 steps of DDPM. The noise is the same at every gamma."""
    return sampling.generate(network, labels, gamma, seed=3)


sevens = {gamma: drawn(torch.full((40,), 7), gamma) for gamma in (1.0, 4.0)}
for gamma, sheet in sevens.items():
    features, _ = metrics.judged(judge, sheet)
    print(f"gamma {gamma:g}: variance {sheet.var(dim=0).sum():.0f} of the pixels, "
          f"{features.var(dim=0).sum():.2f} of the judge's features")

# %% tags=["remove-cell"]
pixels, seen = ({gamma: float(part.var(dim=0).sum()) for gamma, part in both.items()} for both in (sevens, {g: metrics.judged(judge, s)[0] for g, s in sevens.items()}))
assert 0.85 < pixels[4.0] / pixels[1.0] < 1 and seen[4.0] < 0.5 * seen[1.0]
assert (metrics.judged(judge, sevens[4.0])[1].argmax(1) == 7).all()
ink = {gamma: sheet.sum((1, 2, 3)) for gamma, sheet in sevens.items()}
thin = ink[1.0].median()  # of the thinner half on the left, fewer than half as many are left
assert (ink[4.0] < thin).sum() < 0.5 * (ink[1.0] <= thin).sum()

# %% tags=["hide-input"]
with plotting.style():
    figure, axes = plotting.plt.subplots(1, 2, figsize=(9, 1.95))
    for panel, (gamma, sheet) in zip(axes, sevens.items(), strict=True):
        plotting.show_digits(panel, sheet, columns=10, title=f"forty sevens, $\\gamma = {gamma:g}$")
    shown = plotting.show(figure, "15_sevens", alt="Two sheets of forty sevens. At gamma 1 they are thin and thick, plain, hooked and crossed. At gamma 4 nearly all are plain, bold sevens with a slanted stem; none is crossed.")
shown

# %% [markdown]
# *Forty sevens at $\gamma = 1$ and forty at $\gamma = 4$, from the same starts. A small classifier, the judge, reads each one on the right as a seven. The
# crossed ones are gone, and most of the thin ones.*
#
# The variance of the pixels hardly notices. In the features of the judge, more than half of the variance is gone. So we measure there.
#
# Guidance pushes each noisy picture away from where other digits would be ([chapter
# 11](11_classifier_free_guidance.ipynb#what-does-gamma-1-sample)), and a sharper and displaced density comes out
# ([chapter 17](17_what_does_gamma_sample.ipynb#what-was-ordered-and-what-came)). On one picture you see what was bought. What was paid shows
# only in the set. The answer in one line: **once the mistakes are gone, the dial buys nothing but sameness,
# and a well-known score goes on rising.**
#
# ## Two questions about a set
#
# A set of pictures can fail in two ways. It may hold pictures that look like nothing real, and there may be real pictures that
# nothing in it looks like. So ask two questions.
#
# "Looks like" needs a place to compare. Ours are the 128 features of the judge, its last layer but one. [Kynkäänniemi et al. (2019)](https://arxiv.org/abs/1904.06991) put a ball around each of $M$ real points $r$, as wide as the
# distance $\rho_r$ to its third nearest other real one. Each of $N$ samples $x$ gets a ball as well, with $\rho_x$ from the
# samples. Write $d_{xr} = \|x - r\|$, and $h(u) = 1$ for $u \ge 0$ and $h(u) = 0$ below:
#
# $$ \text{precision} = \frac{1}{N} \sum_x \max_r h(\rho_r - d_{xr}), \qquad
# \text{recall} = \frac{1}{M} \sum_r \max_x h(\rho_x - d_{xr}). \label{eq-precision-recall} $$
#
# Precision is the share of samples that lie in some real ball. Recall is the share of real points that lie in some
# sample's ball.

# %%
# [eq-precision-recall]
def covered(points, centres, k=3):
    """Which points (N, d) lie in the ball of one of the centres (M, d)."""
    apart = torch.cdist(centres, centres)
    radii = apart.sort(dim=1).values[:, k]  # the first is the point itself
    return (torch.cdist(points, centres) <= radii).any(dim=1)


def precision_recall(samples, real):
    precision = covered(samples, real).double().mean()
    return precision, covered(real, samples).double().mean()


# %% [markdown]
# Try it where the answer is known. Real points: 60 % in a square A, 40 % in a square B. Samples: 80 % in A, 20 % in a
# third square. So four samples of five are real, and three real points of five are covered.

# %%
def seeded(number):
    return torch.Generator().manual_seed(number)


def in_squares(shares, count, seed):
    """Points in squares of side 1 at x1 = 0, 3, 6; the shares say how many in each."""
    points = torch.rand(count, 2, generator=seeded(seed)).double()
    where = torch.tensor(shares).cumsum(0)
    place = torch.bucketize((torch.arange(count) + 0.5) / count, where)
    return points + torch.stack([3.0 * place, 0.0 * place], 1)


real_squares = in_squares((0.6, 0.4, 0.0), 1000, 0)
wrong_squares = in_squares((0.8, 0.0, 0.2), 1000, 1)
precision, recall = precision_recall(wrong_squares, real_squares)
print(f"precision {precision:.3f}, recall {recall:.3f}")
packaged = diversity.precision_recall(wrong_squares, real_squares)
torch.testing.assert_close((float(precision), float(recall)), packaged)
assert abs(precision - 0.8) < 0.02 and abs(recall - 0.6) < 0.02

# %% tags=["remove-cell"]
assert features.shape[1] == 128

# %% [markdown]
# Both come out, up to the edges.
#
# ## Along the dial
#
# A sweep takes longer than a page may. So it was run beforehand, by `benchmarks/digits_guidance.py`, and its rows ship: at
# each scale twice 1,000 digits, 100 of a class, by 16 steps of DDPM. Each number is the mean of the two. Precision and recall are against the shipped features of 1,000
# test digits of MNIST. The row "real" puts training digits of MNIST, as many, through the same machine. (Numbers after $\pm$ are standard errors, by the jackknife: leave a tenth out, ten times.)
#
# Two more numbers stand in the table. The *Inception Score* (IS) is large if the judge is sure of each picture and gives all classes equally often (more of it below). The *Fréchet distance* (FID, chapter 00's digit-FID) compares mean and covariance of the features with those of all 10,000 test digits; small is good.

# %%
rows = runs.rows("guidance")
(real_row,) = runs.pick(rows, part="real")
along = runs.pick(rows, part="scale")
at = {row["gamma"]: row for row in along}

# %% tags=["hide-input"]
def line(name, row, digits=(3, 3, 3, 3, 2, 2)):
    cells = ("accuracy", "precision", "recall", "digit_is", "digit_fid", "spread")
    parts = (f"{row[cell]:.{n}f}±{row[cell + '_error']:.{n}f}" for cell, n in zip(cells, digits, strict=True))
    return f"{name:>10}  " + "  ".join(f"{part:>11}" for part in parts)


print(" " * 15 + "accuracy    precision       recall           IS          FID       spread")
for row in along:
    print(line(f"gamma {row['gamma']:g}", row))
print(line("real", real_row))

# %% tags=["remove-cell"]
scales = list(at)
assert at[2.0]["accuracy"] > 0.998 and at[6.0]["accuracy"] < at[2.0]["accuracy"] + 0.002
assert at[1.5]["precision"] > real_row["precision"] + 0.05 and at[6.0]["precision"] < at[2.0]["precision"] - 0.01
up = scales[scales.index(1.0) :]
assert all(at[b][name] < at[a][name] for name in ("recall", "spread") for a, b in zip(up[:-1], up[1:], strict=True))
assert min(along, key=lambda row: row["digit_fid"])["gamma"] == 1 and at[1.0]["digit_fid"] < real_row["digit_fid"]
assert at[1.25]["digit_is"] < real_row["digit_is"] < at[1.5]["digit_is"] < at[6.0]["digit_is"]
assert at[1.0]["spread"] > real_row["spread"] and abs(1 - real_row["precision"] - 1 / 7) < 0.02
assert at[0.0]["recall"] > real_row["recall"] + 0.04
assert real_row["count"] == at[2.0]["count"] and max(row[n + "_error"] for row in along[2:] for n in ("recall", "precision")) < 0.04
assert at[1.0]["count"] / 2 == 1000 and set(scales) == {0.0, 0.5, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 6.0}

# %% tags=["hide-input"]
with plotting.style():
    figure, axes = plotting.plt.subplots(1, 2, figsize=(8, 3.3))
    sides = (("recall", "precision"), ("digit_is", "digit_fid"))
    for panel, (across, up) in zip(axes, sides, strict=True):
        kept = [row for row in along if row["gamma"] >= 0.5 or up == "precision"]
        panel.plot([row[across] for row in kept], [row[up] for row in kept], color=plotting.COLOURS["guided"], linewidth=1)
        for row in (*kept, real_row):
            told = plotting.COLOURS["truth" if row is real_row else "conditional" if row["gamma"] == 1 else "guided"]
            panel.errorbar(row[across], row[up], row[up + "_error"], row[across + "_error"], fmt="*" if row is real_row else "o", markersize=9 if row is real_row else 4, color=told, linewidth=1)
            if row is real_row or row["gamma"] in (0, 0.5, 1, 1.5, 2, 6):
                panel.annotate("real digits" if row is real_row else f"$\\gamma = {row['gamma']:g}$", (row[across], row[up]), textcoords="offset points", xytext=((-62, -10) if up == "precision" else (8, -4)) if row is real_row else (-4, -15) if row["gamma"] == 6 and up == "precision" else (4, -13) if row["gamma"] == 1 and up != "precision" else (7, 4), fontsize=10, color=told)
    axes[0].set(xlabel="recall: variety", ylabel="precision: fidelity")
    axes[1].set(xlabel="Inception Score of the judge", ylabel="digit-FID", yscale="log", yticks=[0.1, 0.2, 0.4, 0.8])
    axes[1].yaxis.set_major_formatter("{x:g}")
    axes[1].yaxis.set_minor_formatter("")
    shown = plotting.show(figure, "15_tradeoff", alt="Two curves along the guidance scale. Left, precision over recall: at first precision rises and recall falls; from about the middle on only recall falls. Right, digit-FID over Inception Score: the distance is least near gamma 1 and grows from there, while the score rises beyond that of real digits, marked by a star.")
shown

# %% [markdown]
# *Left: precision over recall along the dial, with standard errors; the star is real digits. From $\gamma = 1$ to 2 one is paid with the other; beyond, recall is paid for nothing. Right, without $\gamma = 0$: the digit-FID (less is better) over the Inception Score (more is better). The curve
# turns at $\gamma = 1$: from there on one score gets better and the other worse.*
#
# Read the table downwards.
#
# * **Bought:** accuracy, the share of digits that the judge gives the label that was asked for. At $\gamma = 2$ it has reached its limit. Precision rises with it, far past that of real digits, and at the largest scales it falls.
# * **Paid:** recall, and the spread (the mean square distance from the mean of the class, in the judge's features). Both fall from $\gamma = 1$ on, at once and to the end. (At 1 the spread is larger than that of real digits, mostly because wrong digits lie far from their class.)
# * **The sum:** the FID, which sees both, is least at $\gamma = 1$ among these scales. The Inception Score has passed that of real digits at 1.5 and goes on.
#
# Precision above that of real digits is no praise. One real digit in seven lies outside the balls of a thousand others: the rare ones, of which such a set has too few. Recall has its own blind spot: at $\gamma = 0$, where no label is heard, it exceeds that of real digits. It does not see junk, and balls are wide where samples lie sparsely. And real digits have a larger FID than $\gamma = 1$: the least FID is not the most real. Compare scales with each other.
#
# The page measures one point again, by 500 new digits: numbers that hardly depend on how many you draw.

# %%
labels = torch.arange(10).repeat(50)
fresh = drawn(labels, 2.0)
features, log_probs = metrics.judged(judge, fresh)
(real, _), (reference, _) = diversity.load_features(), metrics.load_reference()
values, errors = tradeoff.measures(features, log_probs, labels, real, reference)
again = dict(zip(tradeoff.NAMES, zip(values.tolist(), errors.tolist(), strict=True), strict=True))
(shipped,) = runs.pick(rows, part="scale", gamma=2.0)
for name in ("accuracy", "precision", "spread"):
    value, error = again[name]
    print(f"{name}: {value:.2f} ± {error:.2f}, in the table {shipped[name]:.2f}")
    scatter = (error**2 + shipped[name + "_error"] ** 2) ** 0.5
    assert abs(value - shipped[name]) < 3 * scatter + 0.005

# %% tags=["remove-cell"]
assert real.labels.bincount().tolist() == [100] * 10 and real.features.shape == (1000, 128)
assert reference.count == 10000 and len(fresh) == 500

# %% [markdown]
# They agree within their errors. (A FID depends on the count: Deeper says how much.)
#
# ## Is it the network?
#
# Does guidance *repair* a network, or only squeeze? Ask where there is nothing to repair: exact guesses on a mixture of six
# blobs, three classes of two, with unequal weights and full covariances. The points themselves serve as features, and the exact $p(y \mid x)$ as judge; with three classes the Inception Score is at most 3 (see below).

# %%
blobs = GaussianMixture(
    weights=[0.22, 0.12, 0.20, 0.16, 0.14, 0.16],
    means=torch.tensor([[-2.2, -0.6], [-0.4, 1.8], [0.2, -1.2],
                        [1.9, -1.8], [1.7, 1.0], [3.4, 0.2]]).double(),
    covs=[[[0.5, 0.2], [0.2, 0.4]], [[0.4, -0.2], [-0.2, 0.3]], [[0.4, 0.1], [0.1, 0.5]],
          [[0.3, -0.1], [-0.1, 0.4]], [[0.4, 0.1], [0.1, 0.3]], [[0.3, 0.0], [0.0, 0.5]]],
    labels=[0, 0, 1, 1, 2, 2],
)  # fmt: skip
schedule = cosine()
real_points, real_labels = blobs.sample(1000, seeded(1))
other_points, asked = blobs.sample(1000, seeded(2))
starts = torch.randn(1000, 2, generator=seeded(3)).double()


# %%
def guided_points(gamma):
    """A point for each label in `asked`, by Heun's method with exact guesses."""
    cloud, times = torch.empty_like(starts), time_grid(40, start=0.99)
    for y in range(blobs.classes):
        exact = guidance.classifier_free(blobs.pair(schedule, y), gamma)
        cloud[asked == y] = draw(kernels.heun(exact, schedule), starts[asked == y], times)
    return cloud


clouds = {gamma: guided_points(gamma) for gamma in (1.0, 1.5, 2.0, 3.0)}

# %% tags=["hide-input"]
m = blobs.weights @ blobs.means
away = blobs.means - m
C = torch.einsum("k,kij->ij", blobs.weights, blobs.covs + away[:, :, None] * away[:, None, :])
exact_rows = {}
for name, cloud in {"real": other_points, **clouds}.items():
    answers = torch.stack([blobs.class_log_prob(cloud, y) for y in range(blobs.classes)], 1)
    told, error = tradeoff.measures(cloud, answers, asked, RealFeatures(real_points, real_labels), Statistics(m, C, 10**9))
    exact_rows[name] = dict(zip(tradeoff.NAMES, told.tolist(), strict=True)) | {n + "_error": e for n, e in zip(tradeoff.NAMES, error.tolist(), strict=True)}
print(" " * 15 + "accuracy    precision       recall           IS          FID       spread")
for name, row in exact_rows.items():
    print(line(name if name == "real" else f"gamma {name:g}", row, (3, 3, 3, 3, 3, 2)))
assert exact_rows[3.0]["precision"] < exact_rows[1.0]["precision"] + 0.01 and exact_rows[3.0]["recall"] < 0.6
assert all(abs(exact_rows[1.0][n] - exact_rows["real"][n]) < 3 * (exact_rows[1.0][n + "_error"] ** 2 + exact_rows["real"][n + "_error"] ** 2) ** 0.5 + 0.002 for name in tradeoff.NAMES for n in [name])
assert exact_rows[3.0]["digit_is"] > exact_rows["real"]["digit_is"] + 0.1 and min(exact_rows[g]["digit_fid"] for g in clouds) == exact_rows[1.0]["digit_fid"]

# %% [markdown]
# At $\gamma = 1$ every number agrees with that of real points within three errors. Beyond, recall falls and the FID grows. But accuracy and score rise above those of real points (classes overlap, so real accuracy is not 1). There was *nothing to repair*. Precision had no room to rise here; give it some, in ten dimensions, with a class $\mathcal N(0, I)$ among data $\mathcal N(0, 4 I)$. Without noise, guidance takes a geometric mean of the two variances and samples $\mathcal N(0, 4^{1 - \gamma} I)$ ([exercise 11.3](11_classifier_free_guidance.ipynb#exercises)):

# %%
real_ten, sampled_ten = (torch.randn(1000, 10, generator=seeded(n)).double() for n in (6, 7))
squeezed = {gamma: diversity.precision_recall(2 ** (1 - gamma) * sampled_ten, real_ten)
            for gamma in (1.0, 1.5, 2.0)}  # fmt: skip
for gamma, (precision, recall) in squeezed.items():
    print(f"ten dimensions, gamma {gamma:g}: precision {precision:.3f}, recall {recall:.3f}")

# %% tags=["remove-cell"]
assert squeezed[1.0][0] < 0.9 < 0.98 < squeezed[1.5][0] and squeezed[2.0][1] < 0.1 < 0.8 < squeezed[1.0][1]

# %% [markdown]
# So a *rise* of accuracy, precision or score does not show that guidance repairs something: they rise with perfect guesses as well. A smaller *distance* to the data would.
#
# With perfect guesses and fine steps, $\gamma = 1$ samples the data, and no other scale is nearer (but for the count of samples: see Deeper). So if a FID is clearly least elsewhere, the network, the sampler or the reference is off, and guidance makes up for some of it. (The reverse does not follow.) How far from 1? Take one class, $\mathcal N(0, C)$ on the line, among data $\mathcal N(0, U)$. Let the network believe in $\mathcal N(0, \hat C)$, with $C < \hat C < U$: its class is too wide. The noiseless sampler gives the variance $\hat C^{\gamma} U^{1 - \gamma}$. It is the true one, $C$, at
#
# $$ \gamma^\ast = \frac{\log U - \log C}{\log U - \log \hat C}. \label{eq-best-scale} $$

# %%
# [eq-best-scale]
def best_scale(C, C_hat, U):
    """The scale at which noiseless guidance of a class believed too wide gives its true variance."""
    C, C_hat, U = (torch.as_tensor(value, dtype=torch.float64) for value in (C, C_hat, U))
    return (U.log() - C.log()) / (U.log() - C_hat.log())


# %%
def one(variance):
    return GaussianMixture([1.0], torch.zeros(1, 1).double(), [[[variance]]])


believed = Pair(one(0.6).denoiser(schedule), one(3.0).denoiser(schedule))
line_starts = torch.linspace(-2, 2, 9).double()[:, None]
for gamma in (1.0, float(best_scale(0.5, 0.6, 3.0)), 2.0):
    kernel = kernels.heun(guidance.classifier_free(believed, gamma), schedule)
    ends = draw(kernel, line_starts, time_grid(100))  # every end is its start times one number
    variance = float((ends[-1] / line_starts[-1]) ** 2)
    print(f"gamma {gamma:.3f}: variance {variance:.3f}, distance {(variance**0.5 - 0.5**0.5) ** 2:.4f}")
    expected = path.guided_variance(0.6, 3.0, gamma, 0.0)
    torch.testing.assert_close(variance, expected, rtol=0.01, atol=0.0)
assert abs(best_scale(0.5, 0.6, 3.0) - 1.113) < 1e-3

# %% [markdown]
# (On the line the Fréchet distance of centred sets is the squared difference of their deviations.) With $U = 3$ and $C = 0.5$, a class whose variance is believed a fifth too large is best guided at $\gamma = 1.113$; the right one at 1; one believed too *narrow*, below 1. Have we such a network? The noiseless sampler nearly shows what ours believes: DDIM, 15 steps, 1,000 digits a row.

# %%
noiseless = {gamma: runs.pick(rows, part="noiseless", gamma=gamma)[0]
             for gamma in (1.0, 1.25, 1.5, 2.0)}  # fmt: skip
print(" " * 15 + "accuracy    precision       recall           IS          FID       spread")
for gamma, row in noiseless.items():
    print(line(f"gamma {gamma:g}", row))
print(line("real", real_row))

# %% tags=["remove-cell"]
assert min(noiseless.values(), key=lambda row: row["digit_fid"])["gamma"] == 1.25
assert all(row["sampler"] == "ddim" and row["steps"] == 15 and row["count"] == 1000 for row in noiseless.values())
fell = noiseless[1.0]["digit_fid"] - noiseless[1.25]["digit_fid"]
assert fell > 2 * (noiseless[1.0]["digit_fid_error"] ** 2 + noiseless[1.25]["digit_fid_error"] ** 2) ** 0.5
assert noiseless[1.0]["spread"] > 2 * real_row["spread"] and noiseless[1.0]["recall"] > real_row["recall"] > noiseless[1.0]["precision"]
assert all(abs(noiseless[1.25][n] - real_row[n]) < 0.04 for n in ("accuracy", "precision", "recall"))

# %% [markdown]
# Its classes, wrong digits included, have more than twice the spread of real ones, and recall exceeds theirs. The FID is least at $\gamma = 1.25$, lower than at 1 by more than two errors, and there accuracy, precision and recall come near those of real digits. Here guidance repairs. (DDPM's noise does much of this by itself; its FID is least at 1.) On ImageNet [Ho & Salimans (2022)](https://arxiv.org/abs/2207.12598) found their best FID at 1.1 or 1.3. Read such a number as a statement about network, sampler and reference, not about guidance.
#
# ## What the score cannot see
#
# The Inception Score ([Salimans et al. (2016)](https://arxiv.org/abs/1606.03498)) asks a judge. Let $p(y \mid x)$ be its answer to a sample $x$ and $\bar p(y)$ the mean answer over all samples. The score $S$ is:
#
# $$ \log S = \mathbb E_x \Big[ \sum_y \Big( p(y \mid x) \log \frac{p(y \mid x)}{\bar p(y)} \Big) \Big]
# = H(\bar p) - \mathbb E_x \big[ H(p(\cdot \mid x)) \big], \label{eq-inception-score} $$
#
# with the entropy $H(p) = -\sum_y p(y) \log p(y)$. (Split the logarithm of the quotient; averaged over $x$, the part with $\bar p$ gives $H(\bar p)$.) The middle is the *mutual information* of picture and answer. It is at most $H(\bar p)$, and that is at most the logarithm of the number of classes. So $S \le 10$ for digits, with equality if every answer is certain and all classes come equally often. Nothing else enters.

# %%
# [eq-inception-score]
def log_inception_score(log_probs):
    """Answers (N, classes) -> the mean divergence of an answer from the mean answer, in nats."""
    mean = log_probs.exp().mean(dim=0)
    return (log_probs.exp() * (log_probs - mean.log())).sum(dim=1).mean()


def by_entropies(log_probs):
    entropy = torch.special.entr  # -p log p
    unsure = entropy(log_probs.exp()).sum(1).mean()
    return entropy(log_probs.exp().mean(0)).sum() - unsure


# %%
answers = torch.tensor([[0.90, 0.05, 0.05], [0.50, 0.40, 0.10], [0.10, 0.20, 0.70]]).double().log()
information = log_inception_score(answers)
torch.testing.assert_close(information, by_entropies(answers))
torch.testing.assert_close(float(information.exp()), diversity.inception_score(answers))
certain = torch.eye(3).double().repeat(4, 1).log().clamp_min(-50)
print(f"three answers: IS {information.exp():.2f}")
print(f"certain ones: IS {log_inception_score(certain).exp():.2f}")
assert abs(log_inception_score(certain).exp() - 3) < 1e-9

# %% [markdown]
# ### Pitfall: to choose the scale by a score
#
# Accuracy and the Inception Score are the easiest to compute. What do they recommend? And what would they make of a
# generator that knows ten pictures? Take of each class the one of our new digits of which the judge is surest, and copy it a hundred times.

# %%
names = {"accuracy": "accuracy", "precision": "precision", "recall": "recall", "digit_is": "IS"}
chosen = {name: max(along, key=lambda row: row[name])["gamma"] for name in names}
for name, gamma in chosen.items():
    print(f"{names[name]:>9} is highest at gamma {gamma:g}")
nearest = min(along, key=lambda row: row["digit_fid"])["gamma"]
print(f"      FID is least   at gamma {nearest:g}")

# %%
surest = log_probs.gather(1, labels[:, None])[:, 0].view(50, 10).argmax(0)  # of each class
copies = (torch.arange(10) + 10 * surest).repeat(100)
apart = features[copies] + 1e-9 * torch.randn(1000, 128, generator=seeded(4)).double()
told, _ = tradeoff.measures(apart, log_probs[copies], labels[copies], real, reference)
ten_copies = dict(zip(tradeoff.NAMES, told.tolist(), strict=True))

# %% tags=["hide-input"]
columns = names | {"digit_fid": "FID"}
print(" " * 12 + "".join(f"{name:>11}" for name in columns.values()))
for name, row in {"ten pictures": ten_copies, "real": real_row}.items():
    print(f"{name:>12}" + "".join(f"{row[column]:11.3f}" for column in columns))

# %% tags=["remove-cell"]
assert ten_copies["digit_is"] > real_row["digit_is"] and ten_copies["accuracy"] == 1
assert ten_copies["accuracy"] > real_row["accuracy"] and ten_copies["precision"] > real_row["precision"]
assert ten_copies["digit_fid"] > at[6.0]["digit_fid"] and ten_copies["recall"] == 0
assert chosen["digit_is"] == 6 and chosen["accuracy"] >= 2
assert at[6.0]["digit_is"] - at[4.0]["digit_is"] < 2 * (at[4.0]["digit_is_error"] ** 2 + at[6.0]["digit_is_error"] ** 2) ** 0.5

# %% [markdown]
# Ten pictures, a hundred times each, are *better than real digits* by accuracy, by precision and by the Inception Score. They have no recall, and a larger FID than any scale from 1 on. The Inception Score recommends the largest scales tried, accuracy one of two or more.

# %% [markdown]
# ## In practice
#
# | if you want | do | because |
# |---|---|---|
# | a set like the data | take $\gamma = 1$, or where your FID is least | beyond 1 recall fell at every scale we tried |
# | single pictures that must be right | raise $\gamma$ until accuracy stops rising, here at two at the latest | beyond, recall is paid for nothing |
# | to report a scale | give precision *and* recall, or FID *and* Inception Score, along the dial, with errors | the Inception Score alone recommends the largest scales |
# | to know what guidance does for your network | look where its FID is least | clearly away from 1, something is repaired; at 1 nothing follows |
#
# ## Exercises
#
# Type where it says "your turn", run the cell, then the check below it. Tensors come in float64; leave them as they are.

# %% [markdown]
# ### Exercise 15.1 (easy): the bill
#
# A sampler asks its network at some times. At each, guidance needs the answer with the label and the one without, unless one of the two has no weight. `gammas` is the list of scales at these times, in order. How many evaluations does one picture cost? Mind what a negative scale needs.
#
# <details><summary>Hint</summary>
#
# At which scales has one of the two answers no weight in $\hat\varepsilon_u + \gamma\, (\hat\varepsilon_c - \hat\varepsilon_u)$?
#
# </details>

# %% tags=["exercise"]
def network_calls(gammas):
    ### BEGIN SOLUTION
    return sum(1 if gamma in (0, 1) else 2 for gamma in gammas)
    ### END SOLUTION


# %%
exercises.check("15.1", network_calls)

# %% [markdown]
# ### Exercise 15.2 (medium): a score that sees within classes
#
# The Inception Score compares each answer with the mean answer over *all* samples. Compare it with the mean answer over the samples that were asked for *the same label*: return the exponential of the mean divergence, for answers `log_probs` (N, classes) and `labels` (N,). Where all pictures of a class get one answer, it is 1.
#
# <details><summary>Hint</summary>
#
# $\eqref{eq-inception-score}$ with another $\bar p$ for each label. The mean over all samples comes last, and the exponential after it.
#
# </details>

# %% tags=["exercise"]
def score_within_classes(log_probs, labels):
    ### BEGIN SOLUTION
    divergences = torch.zeros(len(labels), dtype=log_probs.dtype)
    for y in labels.unique():
        answers = log_probs[labels == y]
        mean = answers.exp().mean(0)
        divergences[labels == y] = (answers.exp() * (answers - mean.log())).sum(1)
    return divergences.mean().exp()
    ### END SOLUTION


# %%
exercises.check("15.2", score_within_classes)

# %% [markdown]
# ### Exercise 15.3 (hard): both halves are wrong
#
# In $\eqref{eq-best-scale}$ the network knew all data, $\mathcal N(0, U)$, and believed the class too wide. Now let it believe $\mathcal N(0, \hat C)$ of the class and $\mathcal N(0, \hat U)$ of all data, where the truth is $C$ and $U$. At which scale is the Fréchet distance of noiseless samples to the class least, for any $\hat C \ne \hat U$? Return the scale. Numbers are Python floats.
#
# <details><summary>Hint</summary>
#
# Which of the four numbers does the variance of the samples depend on? On the line the distance is the square of a difference of standard deviations, so it can be made 0.
#
# </details>

# %% tags=["exercise"]
def scale_of_least_distance(C, U, C_hat, U_hat):
    ### BEGIN SOLUTION
    C, C_hat, U_hat = torch.tensor([C, C_hat, U_hat], dtype=torch.float64)
    return float((U_hat / C).log() / (U_hat / C_hat).log())
    ### END SOLUTION


# %%
exercises.check("15.3", scale_of_least_distance)

# %% [markdown]
# ### Exercise 15.4 (research): one dial for many directions
#
# A picture has many directions, and one scale for all. Let the class be $\mathcal N(0, \operatorname{diag} C)$, believed $\operatorname{diag} \hat C$, among data $\operatorname{diag} U$, believed rightly; all three are tensors (d,). No scale need be right in every direction. Find the one of least Fréchet distance, to four digits, between 0 and 10; in the cases here there is one minimum.
#
# <details><summary>Hint</summary>
#
# For diagonal covariances and one mean the squared Fréchet distance is $\sum_j (s_j - \sqrt{C_j})^2$, where $s_j$ is the deviation that guidance leaves in direction $j$. As a function of one number it can be searched; thirds or bisection of the slope will do.
#
# </details>

# %% tags=["exercise"]
def one_scale(C, C_hat, U):
    ### BEGIN SOLUTION
    def distance(gamma):
        deviation = (C_hat.log() * gamma + U.log() * (1 - gamma)).div(2).exp()
        return (deviation - C.sqrt()).square().sum()

    low, high = 0.0, 10.0
    for _ in range(100):
        left, right = low + (high - low) / 3, high - (high - low) / 3
        low, high = (low, right) if distance(left) < distance(right) else (left, high)
    return low
    ### END SOLUTION


# %%
exercises.check("15.4", one_scale)

# %% [markdown]
# ## Remember
#
# 1. Precision asks whether the samples look real, recall whether the real is among the samples. On our digits the scale trades recall for precision from $\gamma = 1$ to 2; beyond, recall falls for nothing, and both Inception Score and FID grow.
# 2. With exact guesses and fine steps $\gamma = 1$ samples the data, and still accuracy, score and (where it had room) precision rose beyond it. A Fréchet distance that is clearly least at another scale says that the network, the sampler or the reference is off; one that is least at 1 says nothing.
# 3. The Inception Score is the exponential of the information between picture and answer, at most the number of classes. It does not see variety within a class: ten pictures, copied, beat real digits.
# 4. Recall does not see junk: at $\gamma = 0$ it exceeds that of real digits. Precision is hard on the rare: one real digit in seven lies outside the balls of a thousand others.
# 5. A picture costs one evaluation at each time the sampler asks, two where the scale is neither 0 nor 1.
#
# **Where it comes from.** The trade of fidelity for variety along the scale, and label dropout at several shares: [Ho & Salimans (2022)](https://arxiv.org/abs/2207.12598), after [Dhariwal & Nichol (2021)](https://arxiv.org/abs/2105.05233). The metrics: [Salimans et al. (2016)](https://arxiv.org/abs/1606.03498), [Heusel et al. (2017)](https://arxiv.org/abs/1706.08500), [Kynkäänniemi et al. (2019)](https://arxiv.org/abs/1904.06991). Guidance in an interval: [Kynkäänniemi et al. (2024)](https://arxiv.org/abs/2404.07724). The best scale $\eqref{eq-best-scale}$ follows from the variance of chapter 17.

# %% [markdown]
# ## Deeper: where on the way?
#
# *For you if you want to guide for a part of the way only. It adds where the dial acts, and what a window buys.*
#
# Guidance need not be on all the time. With $\lambda_t = \log(\alpha_t^2 / \sigma_t^2)$, from $-9$ (all noise) to 8 (hardly any), guide only from $a$ to $b$:
#
# $$ \gamma(t) = 1 + (\gamma - 1)\, h(\lambda_t - a)\, h(b - \lambda_t). \label{eq-interval-guidance} $$
#
# This $h$ is that of $\eqref{eq-precision-recall}$. Outside, the label counts once. [Kynkäänniemi et al. (2024)](https://arxiv.org/abs/2404.07724) found on ImageNet that guidance harms at high noise, helps in the middle and is not needed at the end. On digits, with $\gamma = 4$ in one window at a time:

# %%
window = practice.interval(4.0, network.schedule, low=-5.0, high=-3.0)
for log_snr in (-6.0, -4.5, -3.5, 0.0):
    time = network.schedule.time(torch.tensor(log_snr).double())
    after, before = log_snr + 5 >= 0, -3 - log_snr >= 0  # h of the formula
    print(f"log-SNR {log_snr:g}: gamma {window(time):g}")
    assert window(time) == 1 + (4 - 1) * after * before

# %% tags=["hide-input"]
plain, full = at[1.0], at[4.0]
ends = (-99.0, -5.0, -3.0, -1.0, 1.0, 3.0, 99.0)
spans = list(zip(ends[:-1], ends[1:], strict=True))
windows = {(max(a, -9.0), min(b, 8.0)): runs.pick(rows, part="when", low=a, high=b)[0] for a, b in (*spans, (-99.0, -1.0), (-1.0, 99.0))}
print(" " * 15 + "accuracy    precision       recall           IS          FID       spread")
print(line("never", plain))
for (low, high), row in windows.items():
    print(line(f"{low:g} to {high:g}", row))
print(line("always", full))

# %% tags=["remove-cell"]
recalls, precisions = (torch.tensor([row[n] for row in reversed(along) if row["gamma"] >= 1]).double() for n in ("recall", "precision"))
for row in windows.values():
    right = torch.searchsorted(recalls, torch.tensor(row["recall"]).double()).clamp(1, len(recalls) - 1)
    share = (row["recall"] - recalls[right - 1]) / (recalls[right] - recalls[right - 1])
    on_the_dial = precisions[right - 1] + share * (precisions[right] - precisions[right - 1])
    assert abs(row["precision"] - on_the_dial) < 0.025
twice, slightly = (runs.pick(rows, part="scale", gamma=gamma)[0] for gamma in (2.0, 1.25))
lost = {span: plain["recall"] - row["recall"] for span, row in windows.items()}
assert min(lost[-5.0, -3.0], lost[-3.0, -1.0]) > 0.2 and max(lost[-9.0, -5.0], lost[-1.0, 1.0], lost[1.0, 3.0]) < 0.06 > 4 * abs(lost[3.0, 8.0]) - 0.06
assert all(abs(windows[span][n] - twice[n]) < 0.05 for span in ((-5.0, -3.0), (-3.0, -1.0)) for n in ("recall", "precision", "accuracy"))
assert all(abs(windows[-1.0, 8.0][n] - slightly[n]) < 0.02 for n in ("accuracy", "precision", "recall", "digit_fid"))
assert min(row["digit_fid"] for row in windows.values()) > plain["digit_fid"] - 2 * plain["digit_fid_error"]
held = [sum(low <= network.schedule.log_snr(t) <= high for t in sampling.digit_times(16, network.schedule)[:-1]) for low, high in spans]
assert held == [4, 2, 2, 1, 2, 5]

# %% tags=["hide-input"]
with plotting.style():
    figure, axes = plotting.plt.subplots(1, 2, figsize=(8, 3.3), width_ratios=(1, 1.5))
    six = list(windows.items())[:6]
    for (low, high), row in six:
        error = (row["recall_error"] ** 2 + plain["recall_error"] ** 2) ** 0.5
        axes[0].bar((low + high) / 2, row["recall"] - plain["recall"], width=high - low - 0.15, yerr=error, color=plotting.COLOURS["guided"], ecolor=plotting.COLOURS["truth"])
    axes[0].axhline(full["recall"] - plain["recall"], color=plotting.COLOURS["truth"], linestyle="dashed", linewidth=1)
    axes[0].set(xlabel="log-SNR where $\\gamma = 4$", ylabel="change of recall")
    dial = [row for row in along if 1 <= row["gamma"] <= 4]
    axes[1].plot([row["recall"] for row in dial], [row["precision"] for row in dial], "o-", color=plotting.COLOURS["unconditional"], markersize=3, linewidth=1)
    for row in dial:
        axes[1].annotate(f"{row['gamma']:g}", (row["recall"], row["precision"]), textcoords="offset points", xytext=(0, 6), fontsize=10, color=plotting.COLOURS["unconditional"])
    places = {(-9, -5): (16, -3), (-3, -1): (-2, -14), (-9, -1): (-4, 8), (-1, 8): (-16, -3)}
    for (low, high), row in windows.items():
        offset = places.get((low, high), (-6, -11))
        axes[1].errorbar(row["recall"], row["precision"], row["precision_error"], row["recall_error"], fmt="s", markersize=4, color=plotting.COLOURS["guided"], linewidth=1)
        axes[1].annotate(f"{low:g} to {high:g}", (row["recall"], row["precision"]), textcoords="offset points", xytext=offset, ha="left" if offset[0] > 0 else "right", fontsize=10, color=plotting.COLOURS["guided"])
    axes[1].set(xlabel="recall", ylabel="precision", xlim=(0.26, 0.92), ylim=(0.84, 1.0))
    shown = plotting.show(figure, "15_when", alt="Left, bars of the change of recall over the window of log-SNR in which gamma is 4: large in the second and the third window, small in all others. Right, precision over recall: the points of all windows lie on or near the curve of the dial without windows.")
shown

# %% [markdown]
# *Left: what $\gamma = 4$ takes from recall if it is on in one window only (with standard errors), and always (dashed). Right: precision and recall of these windows (orange), and of constant scales (grey). No window tried lies clearly above the dial.*
#
# (The windows hold unequal numbers of our sixteen times: the one around 0 has one, its neighbours have two.)
#
# Nearly all is paid from $-5$ to $-1$, in chapter 17's early half: there each of two narrow windows does what $\gamma = 2$ does all the way. It is where the class of a picture is decided. Ask the shipped classifier of noisy digits:

# %%
guide = checkpoints.load("guide")
logits = guidance.classifier_logits(guide.network, guide.schedule)
noise, readable = torch.randn(fresh.shape, generator=seeded(5)), {}
for log_snr in (-7.0, -5.0, -3.0, -1.0, 1.0):
    time = guide.schedule.time(torch.tensor(log_snr).double())
    noisy = guide.schedule.add_noise(fresh, noise, time)
    readable[log_snr] = float((logits(noisy, time).argmax(1) == labels).double().mean())
print(f"{'log-SNR':>7}" + "".join(f"{log_snr:6g}" for log_snr in readable))
print(f"{'read':>7}" + "".join(f"{share:6.0%}" for share in readable.values()))
assert readable[-5.0] < 0.7 and readable[-1.0] > 0.9

# %% [markdown]
# Before $-5$ the class is open, and pushing costs little recall; after $-1$ nearly all is decided. At the end nothing happens. ([Chapter 13](13_training.ipynb) counts it in nats.)
#
# Is a late window better, where little recall is lost? The picture on the right says no: every window tried lies on the curve of the dial, up to two errors. $\gamma = 4$ from $-1$ on is $\gamma = 1.25$ by another name. The paper's interval lowered the FID on ImageNet; ours saves evaluations and nothing else. The window from $-5$ to $-3$ is two of our sixteen times.

# %% [markdown]
# ## Deeper: what it costs
#
# *For you if you pay by the evaluation. It adds the bill of a picture, and the samplers at equal bills.*
#
# The price of a picture is the number of times the network is asked. DDPM, DDIM and DPM-Solver++ ask at one time a step, Heun at two, except in its last step. At each of these times guidance asks twice, once with and once without the label, unless the scale there is 0 or 1, when one answer has no weight. So with $n$ steps of $m$ times each, $g$ of all these times guided,
#
# $$ E = m\, n - (m - 1) + g. \label{eq-evaluations} $$

# %%
# [eq-evaluations]
def evaluations(steps, times_a_step, guided):
    """Answers of the network for one picture."""
    return times_a_step * steps - (times_a_step - 1) + guided


# %%
answered = []
inside = sum(window(t) != 1 for t in sampling.digit_times(16, network.schedule)[:-1])
for sampler, m, gamma, g in (("ddpm", 1, 1.0, 0), ("ddpm", 1, 2.0, 16), ("heun", 2, 2.0, 31), ("ddpm", 1, window, inside)):
    answered.clear()
    counter = network.register_forward_hook(lambda module, inputs, output: answered.append(len(output)))
    sampling.generate(network, torch.tensor([3]), gamma, sampler=sampler, steps=16)
    counter.remove()
    print(f"16 steps of {sampler}, {g} times guided: {sum(answered)} evaluations")
    assert sum(answered) == evaluations(16, m, g)

# %% [markdown]
# So the window of the last section costs 18 evaluations, and $\gamma = 2$ throughout, which does about the same, 32. And what does the sampler matter? At $\gamma = 1$, where one answer a time will do:

# %% tags=["hide-input"]
costs = {}
print("evaluations   sampler     accuracy       recall          FID")
for count in (5, 9, 15):
    for name in sampling.SAMPLERS:
        (row,) = runs.pick(rows, part="samplers", sampler=name, steps=(count + 1) // 2 if name == "heun" else count)
        costs[name, count] = row
        told = "  ".join(f"{row[cell]:.3f}±{row[cell + '_error']:.3f}" for cell in ("accuracy", "recall", "digit_fid"))
        print(f"{count:11d}  {name:>8}  {told}")

# %% [markdown]
# More steps do not make digits more accurate here. DDIM, Heun and DPM-Solver++ come nearer to the noiseless equation with each step, and accuracy falls, while recall passes that of real digits (it is 0.87): what comes out is the network's own density, with its junk. The noise of DDPM corrects some of this, and with 15 its FID is the least of the table. Few steps of DDPM squeeze, as the dial does: with 5, accuracy is higher and recall lower than with 15. So a scale belongs to its sampler and its steps.

# %% tags=["remove-cell"]
for name in ("ddim", "heun", "dpmpp_2m"):
    assert costs[name, 5]["accuracy"] > costs[name, 15]["accuracy"] + 0.01 and costs[name, 15]["recall"] > real_row["recall"] + 0.03
assert min(costs, key=lambda key: costs[key]["digit_fid"]) == ("ddpm", 15) and round(real_row["recall"], 2) == 0.87
assert costs["ddpm", 5]["accuracy"] > costs["ddpm", 15]["accuracy"] + 0.01 and costs["ddpm", 5]["recall"] < costs["ddpm", 15]["recall"] - 0.1

# %% [markdown]
# Which of DDPM's steps squeeze? Take fifty. Evenly spread in log-SNR, 29 of them lie before 1, where a digit is decided; of sixteen steps, nine do. Move them:

# %% tags=["hide-input"]
spaced = {}
print(" network  steps  before log-SNR 1     accuracy    precision       recall")
for network_name in ("pocket", "denoiser"):
    (sixteen,) = runs.pick(rows, part="scale" if network_name == "pocket" else "big", network=network_name, gamma=1.0)
    fifty = {(50, row["early"] or 29): row for row in runs.pick(rows, part="spacing", network=network_name)}
    for (steps, before), row in [((16, 9), sixteen), *fifty.items()]:
        spaced[network_name, steps, before] = row
        told = "  ".join(f"{row[cell]:.3f}±{row[cell + '_error']:.3f}" for cell in ("accuracy", "precision", "recall"))
        print(f"{network_name:>8}{steps:7d}{before:18d}  {told}")

# %% tags=["remove-cell"]
def differ(one, other, cell):
    return (one[cell] - other[cell]) / (one[cell + "_error"] ** 2 + other[cell + "_error"] ** 2) ** 0.5


assert all(abs(differ(spaced["pocket", 16, 9], spaced["pocket", 50, 9], cell)) < 1 for cell in ("accuracy", "precision", "recall"))
assert all(abs(differ(spaced["pocket", 50, 29], spaced["pocket", 50, 40], cell)) < 1.5 for cell in ("accuracy", "precision", "recall"))
for name in ("pocket", "denoiser"):
    assert differ(spaced[name, 50, 9], spaced[name, 50, 29], "accuracy") > 1.5 and differ(spaced[name, 50, 9], spaced[name, 50, 29], "recall") < -2

# %% [markdown]
# For the pocket network, fifty steps of which nine come early are like sixteen, within an error; forty early ones are like 29. So the *early* steps do it: few of them squeeze, and many follow the network into its junk. Forty late ones change nothing.

# %% [markdown]
# ## Deeper: what the distance sees
#
# *For you if you report an FID. It splits the distance, and says which part guidance moves.*
#
# The Fréchet distance takes two sets as two Gaussians with their means and covariances, $m_a, C_a$ and $m_b, C_b$ ([Heusel et al. (2017)](https://arxiv.org/abs/1706.08500)):
#
# $$ \text{FID} = \|m_a - m_b\|^2 + \operatorname{tr}\big( C_a + C_b - 2\, (C_a C_b)^{1/2} \big). \label{eq-frechet} $$
#
# The first term sees that a set has moved, the second that it has another shape. Which of the two does guidance change? And the trace of a covariance has two parts. With $m_y$ and $C_y$ of class $y$,
#
# $$ \operatorname{tr} C = \mathbb E_y\big[ \operatorname{tr} C_y \big] + \mathbb E_y\big[ \|m_y - m\|^2 \big], \label{eq-spread-split} $$
#
# the spread within the classes, and that of their means: the law of total variance.

# %%
# [eq-spread-split]
def spread_parts(features, labels):
    """The two terms on the right, for features (N, d) and labels (N,)."""
    within, between = 0.0, 0.0
    for y in labels.unique():
        part = features[labels == y]
        share = len(part) / len(features)
        within += share * (part - part.mean(0)).square().sum(1).mean()
        between += share * (part.mean(0) - features.mean(0)).square().sum()
    return within, between


# %%
within, between = spread_parts(real.features, real.labels)
n = len(real.features)
here = metrics.statistics(real.features)
torch.testing.assert_close(within + between, here.cov.trace() * (n - 1) / n)
torch.testing.assert_close(float(within), diversity.class_spread(real.features, real.labels))
print(f"{n} real digits: {within:.2f} within the classes, {between:.1f} between their means")
assert round(float(1 + between / within)) == 18

# %%
moved = (here.mean - reference.mean).square().sum()
roots = torch.linalg.eigvals(here.cov @ reference.cov).real.clamp_min(0).sqrt()
shape = here.cov.trace() + reference.cov.trace() - 2 * roots.sum()  # a trace is a sum of eigenvalues
torch.testing.assert_close(float(moved + shape), metrics.frechet_distance(here, reference), rtol=1e-7, atol=0.0)
print(f"{n} real digits, FID {moved + shape:.3f}: {moved:.3f} of the mean, {shape:.3f} of the shape")

# %% tags=["hide-input"]
for row in along:
    if row["gamma"] >= 1:
        part = row["digit_fid"] - row["mean_part"]
        print(f"gamma {row['gamma']:4.2f}: {row['mean_part']:.3f} of the mean, {part:.3f} of the shape, spread {row['spread']:.2f}")
means = [torch.stack([f[y == k].mean(0) for k in range(10)]) for f, y in ((features, labels), (real.features, real.labels))]
shift = float((means[0] - means[1]).square().sum(1).mean())
by_chance = float(spread_parts(features, labels)[0]) / 49 + float(within) / 99
print(f"gamma 2: the means of the classes are off by {shift:.2f} (squared; by chance {by_chance:.2f})")
assert shift > 2 * by_chance
grown = {name: at[6.0][name] - at[1.0][name] for name in ("mean_part", "digit_fid")}
assert at[6.0]["mean_part"] < 0.06 and grown["mean_part"] < 0.1 * grown["digit_fid"]

# %% [markdown]
# Nearly all of the FID that grows beyond $\gamma = 1$ is shape. The spread within the classes falls; it is a small part of the whole spread, since the features of different digits lie far apart. The means of the classes move as well, as the last line shows; the first term, which knows only the mean of all digits, hardly sees it.

# %% [markdown]
# ## Deeper: beside the published tables
#
# *For you if you know the tables of ImageNet, or want to see $\eqref{eq-best-scale}$ at work on other networks. It adds their numbers, what agrees on digits and what does not.*
#
# Four tables, in our $\gamma$: [Ho & Salimans (2022)](https://arxiv.org/abs/2207.12598) count $w = \gamma - 1$; [Peebles & Xie (2023)](https://arxiv.org/abs/2212.09748) as we do; [Dhariwal & Nichol (2021)](https://arxiv.org/abs/2105.05233) add the gradient of a classifier, times a scale $s$, to a network that hears the label already: with the exact gradient, $\gamma = 1 + s$. The [EDM2](https://github.com/NVlabs/edm2/blob/main/generate_images.py) release ([Karras et al. (2024)](https://arxiv.org/abs/2312.02696)) names for six sizes of network the scale that was best, once by the usual FID, once by the same distance in the features of another network, DINOv2.

# %% tags=["hide-input"]
published = {  # gamma: FID, IS, precision, recall
    "Ho & Salimans, 128": {1: (7.27, 82.45), 1.3: (2.43, 158.47), 2: (7.86, 297.98), 5: (21.53, 421.03)},
    "Peebles & Xie, 256": {
        1: (9.62, 121.50, 0.67, 0.67), 1.25: (3.22, 201.77, 0.76, 0.62), 1.5: (2.27, 278.24, 0.83, 0.57)
    },
    "Dhariwal & Nichol, 256": {
        1: (10.94, 100.98, 0.69, 0.63), 2: (4.59, 186.70, 0.82, 0.52), 11: (9.11, 283.92, 0.88, 0.32)
    },
}  # fmt: skip
print(f"{'FID':>43}{'IS':>8}{'precision':>11}{'recall':>8}")
for name, by_gamma in published.items():
    for g, row in by_gamma.items():
        numbers = [f"{value:{width}}" for value, width in zip(row, ("7.2f", "7.1f", "10.2f", "7.2f"), strict=False)]
        print(f"{name:>23}, gamma {g:<4g}", *numbers)
    fids, *others = zip(*by_gamma.values(), strict=False)
    for column, rising in zip(others, (True, True, False), strict=False):  # IS, precision, recall
        assert sorted(column, reverse=not rising) == list(column)
    assert 1.1 <= min(by_gamma, key=lambda g: by_gamma[g][0]) <= 2 and min(fids) < 0.45 * by_gamma[1][0]

# %% tags=["hide-input"]
shares = {
    1: (1.80, 1.80, 2.21), 1.1: (1.55, 1.62, 1.91), 1.3: (3.03, 2.93, 2.65), 2: (12.6, 11.21, 9.13), 5: (26.22, 23.84, 21.48)
}  # fmt: skip
print("Ho & Salimans, 64: FID with 10, 20 and 50 % of the labels hidden\n" + " " * 12 + "    10 %    20 %    50 %")
for g, row in shares.items():
    print(f"gamma {g:<5g}", "".join(f"{fid:8.2f}" for fid in row))
    assert (row[2] == max(row)) == (g < 1.2) and (row[2] == min(row)) == (g > 1.2)
assert abs(1 - shares[1.1][0] / shares[1][0] - 1 / 7) < 0.005 and min(shares, key=lambda g: shares[g][0]) == 1.1

# %% tags=["hide-input"]
edm2 = {  # size: without guidance, the best scale, with it; first by the FID, then in the features of DINOv2
    "XS": ((3.53, 1.4, 2.91), (103.39, 1.7, 79.94)),
    "S": ((2.56, 1.4, 2.23), (68.64, 1.9, 52.32)),
    "M": ((2.25, 1.2, 2.01), (58.44, 2.0, 41.98)),
    "L": ((2.06, 1.2, 1.88), (52.25, 1.7, 38.20)),
    "XL": ((1.96, 1.2, 1.85), (45.96, 1.7, 35.67)),
    "XXL": ((1.91, 1.2, 1.81), (42.84, 1.7, 33.09)),
}
print(" " * 12 + f"{' by the FID ':-^29}     {' by DINOv2 ':-^29}")
print("EDM2, 512" + f"{'gamma 1':>13}{'best':>8}{'at gamma':>11}" + f"{'gamma 1':>15}{'best':>8}{'at gamma':>11}")
for size, ((before, best, after), (far, nearest, near)) in edm2.items():
    print(f"{size:>9}{before:13.2f}{after:8.2f}{best:11.1f}{far:15.2f}{near:8.2f}{nearest:11.1f}")
by_fid, by_dino = ([row[kind][1] for row in edm2.values()] for kind in (0, 1))
assert by_fid == sorted(by_fid, reverse=True) == [1.4] * 2 + [1.2] * 4 and min(by_dino) > 1.6 and by_dino[-1] == by_dino[0]
closer = [[1 - row[kind][2] / row[kind][0] for row in edm2.values()] for kind in (0, 1)]
assert all(0.05 < gain < 0.18 for gain in closer[0]) and all(0.22 < gain < 0.29 for gain in closer[1])

# %% [markdown]
# The values cannot be set beside ours: other pictures, another judge. The shapes can.
#
# | | ImageNet, as published | our digits |
# |---|---|---|
# | Inception Score | rises with $\gamma$ to the end | the same, but it is bounded by the number of classes and nearly there |
# | FID | least above $\gamma = 1$, at two at the latest | by DDPM least near one, by DDIM at $\gamma = 1.25$, of the scales tried |
# | precision, recall | one up, the other down | the same, until precision stops |
# | hidden labels | a half worse at $\gamma = 1$, better at two and five | a half worse at $\gamma = 1$, better at two and four (next section) |
#
# The last row sets one scale beside the same scale. Ho & Salimans compare at the same Inception Score, and find a half worse throughout: which share is best depends on what is held fixed.
#
# The first three networks have less than half of the FID at their best scale that they have at $\gamma = 1$: by $\eqref{eq-best-scale}$, networks whose classes are believed too wide. (On the smallest pictures it is a seventh less.) EDM2 shows what the equation says of a better network: the larger it is, the lower the FID without guidance, and the smaller the best scale. But in the other features the best scale is larger, does not fall with the size, and guidance takes a quarter of the distance away, not a tenth: **the best scale belongs to whoever looks, as much as to the network.** (Two cautions. The answers without a label come from the smallest network at all sizes, so that for the others this is partly *autoguidance*, [chapter 19](19_guidance_as_practised.ipynb#another-pair); and the time of averaging was chosen anew in each row.)
#
# ## Deeper: how often should the label be hidden?
#
# *For you if you train. It adds the scale beside the share of hidden labels, which [chapter 13](13_training.ipynb) varies.*
#
# Networks of the pocket's size, trained from nothing on data, that differ only in the share $p$ of hidden labels ([chapter 11](11_classifier_free_guidance.ipynb#hide-the-label-now-and-then) says why any share will do in theory; chapter 13's table is of other digits).

# %% tags=["hide-input"]
hidden = {"pocket_p02": 0.02, "pocket_p10": 0.1, "pocket_p50": 0.5}
print(" " * 22 + "accuracy    precision       recall           IS          FID       spread")
by_share = {}
for gamma in (0.0, 1.0, 1.5, 2.0, 4.0):
    for name, share in hidden.items():
        (row,) = runs.pick(rows, part="dropout", network=name, gamma=gamma)
        by_share[gamma, share] = row
        print(line(f"gamma {gamma:3g}, p {share:4.2f}", row))
rare, often, half = ({gamma: by_share[gamma, share] for gamma in (0.0, 1.0, 1.5, 2.0, 4.0)} for share in (0.02, 0.1, 0.5))
assert rare[0.0]["digit_fid"] > often[0.0]["digit_fid"] + 0.3 > half[0.0]["digit_fid"] + 0.6
assert rare[1.0]["digit_fid"] < often[1.0]["digit_fid"] < half[1.0]["digit_fid"] - 0.03 and half[1.0]["spread"] > often[1.0]["spread"] + 1
assert all(rare[g][n] < often[g][n] < half[g][n] for g in (2.0, 4.0) for n in ("recall",)) and half[4.0]["digit_fid"] < often[4.0]["digit_fid"] - 0.05 and half[2.0]["digit_fid"] < often[2.0]["digit_fid"] - 0.03
fell_half = half[1.0]["digit_fid"] - half[1.5]["digit_fid"]
assert fell_half > 3 * (half[1.0]["digit_fid_error"] ** 2 + half[1.5]["digit_fid_error"] ** 2) ** 0.5
best_of = [min(row["digit_fid"] for row in table.values()) for table in (rare, often, half)]
assert best_of[2] < min(best_of) + 0.001 and max(best_of) - min(best_of) < 0.03

# %% [markdown]
# The share moves the effort from one half to the other. With more labels hidden, the half that is told gets worse (the FID at $\gamma = 1$ grows, and its classes widen), the half that is not told gets better (at $\gamma = 0$ it falls). Guidance needs both, and at $\gamma = 2$ and 4 the network that hid half of the labels keeps the most recall. It is also the one that guidance repairs most: from $\gamma = 1$ to 1.5 its FID falls by more than three errors, as $\eqref{eq-best-scale}$ says of a class believed too wide. The least FIDs of the three rows are nearly equal. So the share that is best depends on the scale you mean to use. (One network a share: another seed of the training was not tried.)
#
# ## Deeper: smaller starts and colder steps
#
# *For you if you come from GANs, where truncation trades variety for fidelity. It adds what that does here.*
#
# Two ways to draw nearer to the middle without a second answer: start with a shorter noise (truncation), or multiply the score by $\kappa > 1$ (low temperature, [chapter 11](11_classifier_free_guidance.ipynb#deeper-colder-is-not-sharper)). At $\gamma = 1$, 1,000 digits each:

# %% tags=["hide-input"]
colder = {}
for sampler, radius, kappa in (("ddpm", 0.6, 1.0), ("ddim", 0.6, 1.0), ("ddpm", 1.0, 1.05), ("ddpm", 1.0, 1.1)):
    (row,) = runs.pick(rows, part="colder", sampler=sampler, radius=radius, kappa=kappa, noise=1.0)
    colder[sampler, radius, kappa] = row
print(" " * 23 + "accuracy    precision       recall           IS          FID       spread")
for (sampler, radius, kappa), row in colder.items():
    name = f"{sampler}, start x {radius:g}" if kappa == 1 else f"{sampler}, score x {kappa:g}"
    print(line(f"{name:>18}", row))
print(" " * 8 + line("gamma 1", plain) + "\n" + " " * 8 + line("gamma 1.25", at[1.25]))

# %% tags=["remove-cell"]
truncated, remembered, cool, cold = colder.values()
assert all(row["count"] == 1000 for row in colder.values())
assert all(abs(truncated[n] - plain[n]) < 2 * (truncated[n + "_error"] ** 2 + plain[n + "_error"] ** 2) ** 0.5 for n in tradeoff.NAMES)
assert remembered["recall"] < plain["recall"] - 0.2 and remembered["spread"] < 0.6 * plain["spread"]
assert all(abs(cold[n] - at[1.25][n]) < 0.02 for n in ("accuracy", "precision", "recall", "digit_fid"))
assert plain["recall"] > cool["recall"] > cold["recall"] and plain["spread"] > cool["spread"] > cold["spread"]

# %% [markdown]
# For DDPM the start is soon forgotten, since its noise comes in later: this truncation changes nothing beyond two errors. DDIM, which adds none, remembers it, and narrows. A colder score narrows as well, and in these small doses it is no worse than the dial: $\kappa = 1.1$ does about what $\gamma = 1.25$ does, for half of the evaluations. ([Chapter 11](11_classifier_free_guidance.ipynb#deeper-colder-is-not-sharper) shows where larger doses lead.)
#
# ## Deeper: small losses are cheap
#
# *For you if you report a FID. It adds why it hardly moves where recall already falls.*
#
# Let a set keep its mean and shrink: $C_a = s^2 C_b$. Then $(C_a C_b)^{1/2} = s\, C_b$, and by $\eqref{eq-frechet}$
#
# $$ \text{FID} = (1 - s)^2 \operatorname{tr} C_b . \label{eq-shrink} $$
#
# A set a tenth narrower costs a hundredth of the trace. The loss of the trace itself is $1 - s^2$, a fifth: the distance is of *second* order in what the spread loses in first. (Guidance shrinks only the part within classes, so this is a picture, not a prediction.)

# %%
# [eq-shrink]
def cost_of_shrinking(s, cov):
    """The Fréchet distance of a set s times as wide as another of covariance cov."""
    return (1 - s) ** 2 * cov.trace()


# %%
for s in (0.95, 0.9, 0.7, 0.5):
    narrow = Statistics(reference.mean, s**2 * reference.cov, reference.count)
    cost = metrics.frechet_distance(narrow, reference)
    torch.testing.assert_close(cost, float(cost_of_shrinking(s, reference.cov)), rtol=1e-7, atol=0.0)
    print(f"s = {s:g}: trace lost {1 - s**2:.1%}, FID {cost / reference.cov.trace():.2%} of it")

# %% [markdown]
# ## Deeper: how many digits?
#
# *For you if you compare two FIDs. It adds what is due to the count alone.*
#
# The mean of $N$ independent samples is not their expectation. Its distance from a given $m_b$ is too large by what the mean scatters:
#
# $$ \mathbb E\big[ \|\hat m_a - m_b\|^2 \big] = \|m_a - m_b\|^2 + \frac{1}{N} \operatorname{tr} C_a, \label{eq-count-bias} $$
#
# and the second term of the FID grows likewise, without so short a formula. Both are seen with Gaussian "features" that have exactly the mean and the covariance of the real ones, so that the true distance is 0. (Our own rows hold equally many of each class. Then only the spread within the classes, an eighteenth of the whole, scatters their mean.)

# %%
# [eq-count-bias]
def expected_mean_part(mean_a, cov_a, mean_b, count):
    """What the first term of the Fréchet distance is in the mean over samples of this size."""
    return (mean_a - mean_b).square().sum() + cov_a.trace() / count


# %%
values_of_cov, axes_of_cov = torch.linalg.eigh(reference.cov)
factor = axes_of_cov * values_of_cov.clamp_min(0).sqrt()
for count in (250, 1000, 4000):
    told = []
    for seed in range(10):
        made = metrics.statistics(reference.mean + torch.randn(count, 128, generator=seeded(seed)).double() @ factor.T)
        told.append([float((made.mean - reference.mean).square().sum()), metrics.frechet_distance(made, reference)])
    told = torch.tensor(told).double()
    expected = expected_mean_part(reference.mean, reference.cov, reference.mean, count)
    error = told[:, 0].std() / 10**0.5
    print(f"{count:4d}: first term {told[:, 0].mean():.4f} ± {error:.4f}, expected {expected:.4f}; FID {told[:, 1].mean():.3f}")
    assert abs(told[:, 0].mean() - expected) < 4 * error

# %% [markdown]
# A true distance of 0 is not measured as 0, and four times the count divides it by about four. So compare rows of one count only. (It even moves the best scale a little: samples that are narrower scatter less, so at a finite count the least FID lies slightly beyond 1.) Precision has no such bias, since its balls belong to the real set.
