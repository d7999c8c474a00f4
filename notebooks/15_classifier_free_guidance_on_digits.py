# %% [markdown]
# # 15 · Classifier-free guidance on digits: what does the scale buy, and what does it cost?
#
# Your network draws digits on demand, and it has a dial, $\gamma$. Turn it up and each picture gets better. So where
# do you stop, and what have you paid by then?
#
# **After this chapter you can**
# * measure what guidance buys and what it costs, with standard errors;
# * say of each usual metric what it cannot see, and prove it;
# * predict the scale at which a Fréchet distance is least, and what it says about your network;
# * guide at fewer evaluations, and only where it matters.
#
# **You need** [chapter 11](11_classifier_free_guidance.ipynb#past-the-answer), where the dial comes from, and means and covariances.
#
# *40 minutes to read, 15 more for Deeper, 30 seconds to run, on a laptop, without a GPU or a network connection.*

# %%
import torch

from difflesson import exercises, guidance, kernels, path, plotting
from difflesson.denoiser import Pair
from difflesson.digits import checkpoints, diversity, metrics, sampling, tradeoff
from difflesson.digits.diversity import RealFeatures
from difflesson.digits.metrics import Statistics
from difflesson.mixture import GaussianMixture
from difflesson.samplers import draw, time_grid
from difflesson.schedule import cosine

torch.set_num_threads(1)

# %% [markdown]
# ## One dial, four times
#
# The *pocket* network of [chapter 13](13_training.ipynb) draws 24 digits, labels 0 to 9 in turn. Then again with a larger
# scale, from the same starting noise, with the same noise on the way.

# %%
network = checkpoints.load("pocket").network


def drawn(labels, gamma):
    """One digit a label, by 16 steps of DDPM. The noise is the same at every gamma."""
    return sampling.generate(network, labels, gamma, seed=3)


in_turn = torch.arange(24) % 10
sheets = {gamma: drawn(in_turn, gamma) for gamma in (0.0, 1.0, 2.0, 4.0)}

# %% tags=["hide-input"]
names = {0.0: "label not heard", 1.0: "heard once", 2.0: "twice", 4.0: "four times"}
with plotting.style():
    figure, axes = plotting.plt.subplots(1, 4, figsize=(9, 1.85))
    for panel, (gamma, sheet) in zip(axes, sheets.items(), strict=True):
        plotting.show_digits(panel, sheet, columns=6, title=f"$\\gamma = {gamma:g}$: {names[gamma]}")
        panel.title.set_fontsize(8)
    shown = plotting.show(figure, "15_one_dial", alt="Four sheets of 24 digits from the same starts. At gamma 0 they are any digits, and some are none. At gamma 1 they are 0 to 9 in turn, but for two blots. At gamma 2 and 4 all are right, and bolder.")
shown

# %% [markdown]
# *The same 24 starts at four scales; row by row the labels are 0 to 9 and again 0 to 9. From left to right the mistakes
# disappear.*
#
# The picture seems to settle it: the more, the better. Now ask for one digit forty times.

# %%
sevens = {gamma: drawn(torch.full((40,), 7), gamma) for gamma in (1.0, 4.0)}
pixels = {gamma: float(sheet.var(dim=0).sum()) for gamma, sheet in sevens.items()}
print("variance of the pixels: {:.0f} at gamma 1, {:.0f} at gamma 4".format(*pixels.values()))

# %% tags=["remove-cell"]
judge = checkpoints.load("judge").network
found = {gamma: metrics.judged(judge, sheet)[1].argmax(1) for gamma, sheet in sheets.items()}
assert all(len(sheets[0.0]) == 24 and (found[gamma] == in_turn).sum() >= 21 + (gamma > 1) for gamma in (1.0, 2.0, 4.0))
assert pixels[4.0] < 0.75 * pixels[1.0] and (metrics.judged(judge, sevens[4.0])[1].argmax(1) == 7).all()

# %% tags=["hide-input"]
with plotting.style():
    figure, axes = plotting.plt.subplots(1, 2, figsize=(9, 1.95))
    for panel, (gamma, sheet) in zip(axes, sevens.items(), strict=True):
        plotting.show_digits(panel, sheet, columns=10, title=f"forty sevens, $\\gamma = {gamma:g}$")
    shown = plotting.show(figure, "15_sevens", alt="Two sheets of forty sevens. At gamma 1 they are thin and thick, plain, hooked and crossed. At gamma 4 nearly all are plain, bold sevens with a slanted stem; none is crossed.")
shown

# %% [markdown]
# *Forty sevens at $\gamma = 1$ and forty at $\gamma = 4$, from the same starts. Each one on the right is a good seven. The
# crossed ones are gone, and most of the thin ones: nearly half of the variance of the pixels.*
#
# Why? Guidance pushes each noisy picture away from where other digits would be, at every noise level ([chapter
# 11](11_classifier_free_guidance.ipynb#what-does-gamma-1-sample)). A blot that could become a seven or a one is pushed
# until it can only become a seven. That removes mistakes. It also removes sevens: those that lie towards the ones and the nines are pushed towards the middle of the sevens, or past it. What comes out is a sharper and displaced density
# ([chapter 17](17_what_does_gamma_sample.ipynb#what-was-ordered-and-what-came)). On one picture you see what was bought. What was paid shows
# only in the set, and you will not see it at all unless you measure the set.
#
# So this chapter measures sets. Its result in one line: **beyond the first mistakes removed, the dial buys nothing but
# sameness, and the most popular score goes on rising while it does.**
#
# ## Two questions about a set
#
# A set of pictures can fail in two ways. It may hold pictures that look like nothing real, and there may be real pictures that
# nothing in it looks like. So ask two questions.
#
# "Looks like" needs a place to compare. Ours are the 128 *features* of a small classifier, the *judge*, in its last layer but
# one. [Kynkäänniemi et al. (2019)](https://arxiv.org/abs/1904.06991) put a ball around each of $M$ real points $r$, as wide as the
# distance $\rho_r$ to its third nearest other real one; and a ball around each of $N$ samples $x$, with $\rho_x$ from the
# samples. Write $h(u) = 1$ for $u \ge 0$ and $h(u) = 0$ below. Then
#
# $$ \text{precision} = \frac{1}{N} \sum_x \max_r h(\rho_r - d_{xr}), \qquad
# \text{recall} = \frac{1}{M} \sum_r \max_x h(\rho_x - d_{xr}), \qquad d_{xr} = \|x - r\|. \label{eq-precision-recall} $$
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
torch.testing.assert_close((float(precision), float(recall)), diversity.precision_recall(wrong_squares, real_squares))
assert abs(precision - 0.8) < 0.02 and abs(recall - 0.6) < 0.02

# %% [markdown]
# Both come out, up to the edges, where balls stick out or do not reach.
#
# ## Along the dial
#
# A sweep takes longer than a page may. So it was run beforehand, by `benchmarks/digits_guidance.py`, and its rows ship: at
# each scale 2,000 digits, 200 of a class, by 16 steps of DDPM, in two independent halves. Precision and recall are against the shipped features of 1,000
# test digits of MNIST. The row "real" puts digits of MNIST's training half, as many, through the same machine. (Numbers after $\pm$ are standard errors, by the jackknife: leave a tenth out, ten times.)

# %%
rows = tradeoff.load_rows()
(real_row,) = tradeoff.pick(rows, part="real")
along = tradeoff.pick(rows, part="scale")

# %% tags=["hide-input"]
def line(name, row, digits=(3, 3, 3, 3, 2, 2)):
    cells = ("accuracy", "precision", "recall", "digit_is", "digit_fid", "spread")
    parts = (f"{row[cell]:.{n}f}±{row[cell + '_error']:.{n}f}" for cell, n in zip(cells, digits, strict=True))
    return f"{name:>9}  " + "  ".join(f"{part:>11}" for part in parts)


print(" " * 14 + "accuracy    precision       recall           IS          FID       spread")
for row in along:
    print(line(f"gamma {row['gamma']:g}", row))
print(line("real", real_row))

# %% tags=["remove-cell"]
at, scales = {row["gamma"]: row for row in along}, [row["gamma"] for row in along]
assert at[2.0]["accuracy"] > 0.998 and at[6.0]["accuracy"] < at[2.0]["accuracy"] + 0.002
assert at[1.5]["precision"] > real_row["precision"] + 0.05 and at[6.0]["precision"] < at[2.0]["precision"] - 0.01
up = scales[scales.index(1.0) :]
assert all(at[b][name] < at[a][name] for name in ("recall", "spread") for a, b in zip(up[:-1], up[1:], strict=True))
assert min(along, key=lambda row: row["digit_fid"])["gamma"] == 1 and at[1.0]["digit_fid"] < real_row["digit_fid"]
assert at[1.25]["digit_is"] < real_row["digit_is"] < at[1.5]["digit_is"] < at[6.0]["digit_is"]
assert at[1.0]["spread"] > real_row["spread"] and abs(1 - real_row["precision"] - 1 / 7) < 0.02
assert real_row["count"] == at[2.0]["count"] and max(row[n + "_error"] for row in along[2:] for n in ("recall", "precision")) < 0.02
assert at[1.0]["count"] == 2000 and set(scales) == {0.0, 0.5, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 6.0}

# %% tags=["hide-input"]
with plotting.style():
    figure, axes = plotting.plt.subplots(1, 2, figsize=(8.6, 3.2))
    sides = (("recall", "precision"), ("digit_is", "digit_fid"))
    for panel, (across, up) in zip(axes, sides, strict=True):
        kept = [row for row in along if row["gamma"] >= 0.5 or up == "precision"]
        panel.plot([row[across] for row in kept], [row[up] for row in kept], color=plotting.COLOURS["guided"], linewidth=1)
        for row in (*kept, real_row):
            told = plotting.COLOURS["truth" if row is real_row else "conditional" if row["gamma"] == 1 else "guided"]
            panel.errorbar(row[across], row[up], row[up + "_error"], row[across + "_error"], fmt="*" if row is real_row else "o", markersize=9 if row is real_row else 4, color=told, linewidth=1)
            if row is real_row or row["gamma"] in (0, 0.5, 1, 1.5, 2, 6):
                panel.annotate("real digits" if row is real_row else f"$\\gamma = {row['gamma']:g}$", (row[across], row[up]), textcoords="offset points", xytext=(-50, -12) if row is real_row else (7, 4), fontsize=8, color=told)
    axes[0].set(xlabel="recall: variety", ylabel="precision: fidelity")
    axes[1].set(xlabel="Inception Score of the judge", ylabel="digit-FID", yscale="log", yticks=[0.1, 0.2, 0.4, 0.8])
    axes[1].yaxis.set_major_formatter("{x:g}")
    axes[1].yaxis.set_minor_formatter("")
    shown = plotting.show(figure, "15_tradeoff", alt="Two curves along the guidance scale. Left, precision over recall: from gamma 0 to about 2 precision rises and recall falls; from there on only recall falls. Right, digit-FID over Inception Score: the distance is least near gamma 1 and grows from there, while the score rises beyond that of real digits, marked by a star.")
shown

# %% [markdown]
# *Left: precision over recall along the dial, with standard errors; the star is real digits. From $\gamma = 1$ to 2 one is paid with the other; beyond, recall is paid for nothing. Right: the digit-FID (less is better) over the Inception Score (more is better). The curve
# turns at $\gamma = 1$: from there on one score gets better and the other worse.*
#
# Read the table downwards.
#
# * **Bought:** accuracy, the share of digits that the judge gives the label that was asked for. At $\gamma = 2$ it is at its end. Precision rises with it, past that of real digits, and beyond $\gamma = 3$ it even falls.
# * **Paid:** recall, and the spread (the mean square distance from the mean of the class, in the judge's features). Both fall from $\gamma = 1$ on, at once and to the end. (At 1 the spread is larger than that of real digits: wrong digits lie far from their class.)
# * **The sum:** the FID, which sees both, is least at $\gamma = 1$ among these scales. The Inception Score passes that of real digits at 1.5 and goes on.
#
# Precision above that of real digits is no praise. One real digit in seven lies outside the balls of a thousand others. Some people write strangely, and a set where nobody does is not like people. Nor is the FID of the last row a goal: at $\gamma = 1$ it is smaller. The last row is from the training half, the reference is the test half, and two Gaussians are all that a FID compares. Compare scales with each other.
#
# The page measures one point again, by 500 new digits: the numbers that do not depend on how many you draw.

# %%
labels = torch.arange(10).repeat(50)
fresh = drawn(labels, 2.0)
features, log_probs = metrics.judged(judge, fresh)
(real, _), (reference, _) = diversity.load_features(), metrics.load_reference()
values, errors = tradeoff.measures(features, log_probs, labels, real, reference)
again = dict(zip(tradeoff.NAMES, zip(values.tolist(), errors.tolist(), strict=True), strict=True))
(shipped,) = tradeoff.pick(rows, part="scale", gamma=2.0)
for name in ("accuracy", "precision", "spread"):
    value, error = again[name]
    print(f"{name}: {value:.2f} ± {error:.2f}, in the table {shipped[name]:.2f}")
    scatter = (error**2 + shipped[name + "_error"] ** 2) ** 0.5
    assert abs(value - shipped[name]) < 3 * scatter + 0.005

# %% tags=["remove-cell"]
assert real.labels.bincount().tolist() == [100] * 10 and real.features.shape == (1000, 128)

# %% [markdown]
# They agree within their errors. (A FID depends on the count: Deeper says how much. Recall may, for the samples' own balls grow as these get fewer.)
#
# ## Is it the network?
#
# Does guidance *repair*, or only squeeze? Ask where there is nothing to repair: exact guesses on a mixture of six
# blobs, three classes of two, with unequal weights and full covariances. The points themselves serve as features, and the exact $p(y \mid x)$ as judge.

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
    cloud = torch.empty_like(starts)
    for y in range(blobs.classes):
        exact = guidance.classifier_free(blobs.pair(schedule, y), gamma)
        cloud[asked == y] = draw(kernels.heun(exact, schedule), starts[asked == y], time_grid(40, start=0.99))
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
print(" " * 14 + "accuracy    precision       recall           IS          FID       spread")
for name, row in exact_rows.items():
    print(line(name if name == "real" else f"gamma {name:g}", row, (3, 3, 3, 3, 3, 2)))
assert exact_rows[3.0]["precision"] < exact_rows[1.0]["precision"] + 0.01 and exact_rows[3.0]["recall"] < 0.6
assert all(abs(exact_rows[1.0][n] - exact_rows["real"][n]) < 3 * (exact_rows[1.0][n + "_error"] ** 2 + exact_rows["real"][n + "_error"] ** 2) ** 0.5 + 0.002 for name in tradeoff.NAMES for n in [name])
assert exact_rows[3.0]["digit_is"] > exact_rows["real"]["digit_is"] + 0.1 and min(exact_rows[g]["digit_fid"] for g in clouds) == exact_rows[1.0]["digit_fid"]

# %% [markdown]
# At $\gamma = 1$ every number is that of real points, up to its error. Beyond, recall falls, the FID grows, the score rises,
# as on digits. One thing does *not* happen: **precision does not rise**. There are no bad points to remove. So on digits the gain in precision is the network's own mistakes going away, and the loss of recall would be there with a perfect network.
#
# This says what a best scale means. With perfect guesses and fine steps, $\gamma = 1$ samples the data, and no scale is better by any measure of the distance to the data. If your FID is least at another scale, the network or the sampler is wrong, and guidance makes up for it. How far? Take one class, $\mathcal N(0, C)$ on the line, among data $\mathcal N(0, U)$. Let the network believe in $\mathcal N(0, \hat C)$ with $C < \hat C < U$: its sevens vary too much, as those of a small network do. Without noise, guidance samples a Gaussian of variance $\hat C^{\gamma} U^{1 - \gamma}$ ([chapter 17](17_what_does_gamma_sample.ipynb#one-class-in-closed-form-for-any-noise)). It is the true one, $C$, at
#
# $$ \gamma^\ast = \frac{\log U - \log C}{\log U - \log \hat C}. \label{eq-best-scale} $$

# %%
# [eq-best-scale]
def best_scale(C, C_hat, U):
    """The scale at which noiseless guidance of a class that is believed too wide gives its true variance."""
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
    torch.testing.assert_close(variance, path.guided_variance(0.6, 3.0, gamma, 0.0), rtol=0.01, atol=0.0)
assert abs(best_scale(0.5, 0.6, 3.0) - 1.113) < 1e-3

# %% [markdown]
# A class believed a fifth too wide is best guided at $\gamma = 1.113$; the right one at 1; one believed too *narrow*, below 1. On ImageNet [Ho & Salimans (2022)](https://arxiv.org/abs/2207.12598) found their best FID at 1.1 or 1.3. Read such a number as a statement about the network, not about guidance.
#
# ## What the score cannot see
#
# The Inception Score ([Salimans et al. (2016)](https://arxiv.org/abs/1606.03498)) asks a judge. Let $p(y \mid x)$ be its answer to a sample $x$ and $\bar p(y)$ the mean answer over all samples. Then
#
# $$ \log \text{IS} = \mathbb E_x \Big[ \sum_y \Big( p(y \mid x) \log \frac{p(y \mid x)}{\bar p(y)} \Big) \Big]
# = H(\bar p) - \mathbb E_x \big[ H(p(\cdot \mid x)) \big], \label{eq-inception-score} $$
#
# with the entropy $H(p) = -\sum_y p(y) \log p(y)$. (Split the logarithm of the quotient; averaged over $x$, the part with $\bar p$ gives $H(\bar p)$.) The middle is the *mutual information* of picture and answer. It is at most $H(\bar p)$, and that is at most the logarithm of the number of classes. So $\text{IS} \le 10$ for digits, with equality if every answer is certain and all classes come equally often. Nothing else enters.

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
print(f"three answers: IS {information.exp():.2f}; certain ones: {log_inception_score(certain).exp():.2f}")
assert abs(log_inception_score(certain).exp() - 3) < 1e-6

# %% [markdown]
# ### Pitfall: to choose the scale by a score
#
# Accuracy and the Inception Score are the easiest to compute. What do they recommend? And what would they make of a
# generator that knows ten pictures? Take of each class the digit above of which the judge is surest, and copy it a hundred times.

# %%
chosen = {name: max(along, key=lambda row: row[name])["gamma"] for name in ("accuracy", "digit_is", "recall")}
nearest = min(along, key=lambda row: row["digit_fid"])["gamma"]
print(", ".join(f"{name} is highest at gamma {gamma:g}" for name, gamma in chosen.items()), f"; FID least at {nearest:g}")
surest = log_probs.gather(1, labels[:, None])[:, 0].view(50, 10).argmax(0)  # of each class
ten = torch.arange(10) + 10 * surest
copies = ten.repeat(100)
told, _ = tradeoff.measures(features[copies] + 1e-9 * torch.randn(1000, 128, generator=seeded(4)).double(), log_probs[copies], labels[copies], real, reference)
ten_copies = dict(zip(tradeoff.NAMES, told.tolist(), strict=True))
print("ten pictures:", ", ".join(f"{name} {value:.3f}" for name, value in ten_copies.items()))
assert ten_copies["digit_is"] > real_row["digit_is"] and ten_copies["accuracy"] == 1 and ten_copies["precision"] > real_row["precision"]
assert ten_copies["digit_fid"] > at[6.0]["digit_fid"] and ten_copies["recall"] < 0.05
assert chosen["digit_is"] == 6 and chosen["accuracy"] >= 2

# %% [markdown]
# Ten pictures, a hundred times each, are *better than real digits* by accuracy, by precision and by the Inception Score. They have next to no recall, and a larger FID than any scale from 1 on. Whoever chooses the scale by a score of that kind gets the largest scale tried.
#
# ## What the distance sees
#
# The Fréchet distance takes two sets as two Gaussians with their means and covariances, $m_a, C_a$ and $m_b, C_b$ ([Heusel et al. (2017)](https://arxiv.org/abs/1706.08500)):
#
# $$ \text{FID} = \|m_a - m_b\|^2 + \operatorname{tr}\big( C_a + C_b - 2\, (C_a C_b)^{1/2} \big). \label{eq-frechet} $$
#
# The first term sees that a set has moved, the second that it has another shape. Which of the two does guidance change? And a shape has two parts. With $m_y$ and $C_y$ of class $y$,
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

# %%
moved = (here.mean - reference.mean).square().sum()
roots = torch.linalg.eigvals(here.cov @ reference.cov).real.clamp_min(0).sqrt()
shape = here.cov.trace() + reference.cov.trace() - 2 * roots.sum()  # a trace is a sum of eigenvalues
torch.testing.assert_close(float(moved + shape), metrics.frechet_distance(here, reference), rtol=1e-4, atol=0.0)
print(f"{n} real digits, FID {moved + shape:.3f}: {moved:.3f} of the mean, {shape:.3f} of the shape")

# %% tags=["hide-input"]
for row in along:
    if row["gamma"] >= 1:
        part = row["digit_fid"] - row["mean_part"]
        print(f"gamma {row['gamma']:4.2f}: {row['mean_part']:.3f} of the mean, {part:.3f} of the shape, spread {row['spread']:.2f}")
grown = {name: at[6.0][name] - at[1.0][name] for name in ("mean_part", "digit_fid")}
assert at[6.0]["mean_part"] < 0.06 and grown["mean_part"] < 0.1 * grown["digit_fid"]

# %% [markdown]
# Nearly all that grows with the scale is shape. The means of the classes stay; the clouds around them shrink. And it is a small share of the whole: the features of different digits lie far apart, and only the spread within the classes shrinks. That is the part you saw in the sevens.
#
# ## How often should the label be hidden in training?
#
# Three more networks of the same size were trained from nothing, and differ only in the share $p$ of hidden labels ([chapter 13](13_training.ipynb) says how, and what the share changes in training; [chapter 11](11_classifier_free_guidance.ipynb#hide-the-label-now-and-then) why any share will do in theory).

# %% tags=["hide-input"]
hidden = {"pocket_p02": 0.02, "pocket_p10": 0.1, "pocket_p50": 0.5}
print(" " * 22 + "accuracy    precision       recall           IS          FID       spread")
by_share = {}
for gamma in (0.0, 1.0, 1.5, 2.0, 4.0):
    for name, share in hidden.items():
        (row,) = tradeoff.pick(rows, part="dropout", network=name, gamma=gamma)
        by_share[gamma, share] = row
        print(line(f"gamma {gamma:g}, p {share:4.2f}", row))
assert by_share[1.0, 0.02]["network"] == "pocket_p02" and len(by_share) == 15

# %% [markdown]
# TODO dropout reading
#
# ## Where on the way?
#
# Guidance need not be on all the time. With $\lambda_t = \log(\alpha_t^2 / \sigma_t^2)$, from $-9$ (all noise) to 8 (hardly any), guide only from $a$ to $b$:
#
# $$ \gamma(t) = 1 + (\gamma - 1)\, h(\lambda_t - a)\, h(b - \lambda_t). \label{eq-interval-guidance} $$
#
# Outside, the label counts once. [Kynkäänniemi et al. (2024)](https://arxiv.org/abs/2404.07724) found on ImageNet that guidance harms at high noise, helps in the middle and is not needed at the end. On digits, with $\gamma = 4$ in one window at a time:

# %%
window = tradeoff.interval(4.0, network.schedule, low=-3.0, high=-1.0)
for log_snr in (-4.0, -3.0, -2.0, -1.0, 0.0):
    time = network.schedule.time(torch.tensor(log_snr).double())
    h = [float(torch.heaviside(u, torch.ones(()).double())) for u in (network.schedule.log_snr(time) + 3 + 1e-9, -1 + 1e-9 - network.schedule.log_snr(time))]
    print(f"log-SNR {log_snr:g}: gamma {window(time):g}")
    assert abs(log_snr + 2) == 1 or window(time) == 1 + (4 - 1) * h[0] * h[1]

# %% tags=["hide-input"]
(plain,) = tradeoff.pick(rows, part="scale", gamma=1.0)
(full,) = tradeoff.pick(rows, part="scale", gamma=4.0)
ends = (-99.0, -5.0, -3.0, -1.0, 1.0, 3.0, 99.0)
windows = [tradeoff.pick(rows, part="when", low=a, high=b)[0] for a, b in zip(ends[:-1], ends[1:], strict=True)]
with plotting.style():
    figure, axes = plotting.plt.subplots(1, 3, figsize=(9, 2.7), sharex=True)
    for panel, name in zip(axes, ("precision", "recall", "spread"), strict=True):
        for row in windows:
            low, high = max(row["low"], -9), min(row["high"], 8)
            panel.bar((low + high) / 2, row[name] - plain[name], width=high - low - 0.15, yerr=(row[name + "_error"] ** 2 + plain[name + "_error"] ** 2) ** 0.5, color=plotting.COLOURS["guided"], ecolor=plotting.COLOURS["truth"])
        panel.axhline(0, color=plotting.COLOURS["conditional"], linewidth=1)
        panel.axhline(full[name] - plain[name], color=plotting.COLOURS["truth"], linestyle="dashed", linewidth=1)
        panel.set(title=f"change of {name}", xlabel="log-SNR where $\\gamma = 4$")
    shown = plotting.show(figure, "15_when", alt="Three bar charts over the window of log-SNR in which gamma is 4. Recall and spread fall most in the windows around -3 to 1, hardly in the first and the last; precision rises most there as well. Dashed lines show what guiding all the way changes.")
shown
for row in windows:
    print(line(f"{max(row['low'], -9):g} to {min(row['high'], 8):g}", row))

# %% [markdown]
# *What $\gamma = 4$ changes, if it is on in one window of log-SNR only (bars, with standard errors of the difference), against $\gamma = 1$ (blue). Dashed: on all the way.*
#
# TODO when reading
#
# ## What it costs
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
asked_of = []
counter = network.register_forward_hook(lambda module, inputs, output: asked_of.append(len(output)))
for sampler, m, gamma in (("ddpm", 1, 1.0), ("ddpm", 1, 2.0), ("heun", 2, 2.0), ("dpmpp_2m", 1, window)):
    asked_of.clear()
    sampling.generate(network, torch.tensor([3]), gamma, sampler=sampler, steps=8)
    times = sampling.digit_times(8, network.schedule)[:-1]
    g = {1.0: 0, 2.0: m * 8 - (m - 1)}.get(gamma) if not callable(gamma) else sum(window(t) != 1 for t in times)
    print(f"{sampler}: {sum(asked_of)} evaluations")
    assert sum(asked_of) == evaluations(8, m, g)
counter.remove()

# %% [markdown]
# What do you get for them? At $\gamma = 1$, where one answer a time will do:

# %% tags=["hide-input"]
print("evaluations" + "".join(f"{name:>22}" for name in sampling.SAMPLERS))
costs = {}
for count in (5, 9, 15, 31):
    cells = []
    for name in sampling.SAMPLERS:
        (row,) = tradeoff.pick(rows, part="samplers", sampler=name, steps=(count + 1) // 2 if name == "heun" else count)
        costs[name, count] = row
        cells.append(f"FID {row['digit_fid']:.2f}±{row['digit_fid_error']:.2f}, {row['accuracy']:.1%}")
    print(f"{count:11d}" + "".join(f"{cell:>22}" for cell in cells))

# %% [markdown]
# TODO cost reading
#
# ## In practice
#
# | if you want | do | because |
# |---|---|---|
# | a set like the data, to train on or to test with | $\gamma$ at 1, or where the FID is least | recall and spread fall from there on |
# | single pictures that must be right | $\gamma$ where accuracy and precision stop rising, here 2 | beyond, recall is paid for nothing |
# | to report a scale | precision *and* recall, or FID *and* IS, along the dial, with errors | a single score recommends an end of the dial |
# | to know whether your network needs guidance | the scale of the least FID | with exact guesses and fine steps it is 1 |
# | to pay less | guide only in the middle of the noise levels; ask once where the scale is 0 or 1 | TODO |
#
# ## Exercises
#
# Type where it says "your turn", run the cell, then the check below it. Tensors come in float64; leave them as they are.

# %% [markdown]
# ### Exercise 15.1 (easy): the bill
#
# A sampler asks its network at some times; `gammas` is the list of guidance scales at these times, in order. How many evaluations does one picture cost? Mind what a negative scale needs.
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
# For diagonal covariances $\eqref{eq-frechet}$ is a sum over directions of squared differences of standard deviations. As a function of one number it can be searched; thirds or bisection of the slope will do.
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
# 1. Precision asks whether the samples look real, recall whether the real is among the samples. On our digits the scale trades recall for precision from $\gamma = 1$ to 2; beyond, precision has stopped and recall goes on falling.
# 2. With exact guesses and fine steps $\gamma = 1$ samples the data: no scale is nearer, and precision does not rise beyond it. A Fréchet distance that is least at another scale says that the network or the sampler is wrong.
# 3. The Inception Score is the exponential of the information between picture and answer, at most the number of classes. It does not see variety within a class: ten pictures, copied, beat real digits.
# 4. A Fréchet distance is a shift of the mean plus a change of shape. On our digits nearly all that grows beyond $\gamma = 1$ is shape: the classes shrink.
# 5. A picture costs one evaluation for each time the network is asked, and one more where the scale is neither 0 nor 1.
#
# **Where it comes from.** The trade of fidelity for variety along the scale, and label dropout at several shares: [Ho & Salimans (2022)](https://arxiv.org/abs/2207.12598), after [Dhariwal & Nichol (2021)](https://arxiv.org/abs/2105.05233). The metrics: [Salimans et al. (2016)](https://arxiv.org/abs/1606.03498), [Heusel et al. (2017)](https://arxiv.org/abs/1706.08500), [Kynkäänniemi et al. (2019)](https://arxiv.org/abs/1904.06991). Guidance in an interval: [Kynkäänniemi et al. (2024)](https://arxiv.org/abs/2404.07724). The best scale $\eqref{eq-best-scale}$ follows from the variance of chapter 17.
#
# ## Deeper: beside the published tables
#
# *For you if you know the tables of ImageNet. It adds what agrees on digits and what does not.*
#
# The values themselves cannot be compared: other pictures, another judge. The shapes can. [Ho & Salimans (2022)](https://arxiv.org/abs/2207.12598), 64 × 64 pixels and a thousand classes, swept $w = \gamma - 1$: their FID is least at $w = 0.1$ or 0.3, their Inception Score highest at the largest scales they tried, $w = 4$ among them, and hiding the label in 10 or 20 % of the examples was better than in 50 % along the whole curve. [Dhariwal & Nichol (2021)](https://arxiv.org/abs/2105.05233) report for classifier guidance that precision rises and recall falls with the scale, and that the FID is best in between.
#
# | | ImageNet, as published | our digits |
# |---|---|---|
# | Inception Score | rises with $\gamma$ to the end | the same, but it is bounded by 10 and nearly there |
# | FID | least a little above $\gamma = 1$ | TODO |
# | precision, recall | one up, the other down | the same, until precision stops |
# | hidden labels | 10 or 20 % better than 50 % | TODO |
#
# Why would ImageNet's best scale lie above 1 and ours not? By $\eqref{eq-best-scale}$ a network that believes its classes too wide would do it, and ImageNet is harder to learn than digits. That is a guess: nobody measured it here.
#
# ## Deeper: smaller starts and colder steps
#
# *For you if you come from GANs, where truncation trades variety for fidelity. It adds why that does nothing for DDPM.*
#
# Three ways to draw nearer to the middle, without a second answer: start with a shorter noise (truncation); multiply the score by $\kappa > 1$ (low temperature, [chapter 11](11_classifier_free_guidance.ipynb#deeper-colder-is-not-sharper)); put less noise back in each step. All at $\gamma = 1$, one seed of 1,000 digits each.

# %% tags=["hide-input"]
print(" " * 20 + "accuracy    precision       recall           IS          FID       spread")
print(" " * 9 + line("gamma 1", plain))
colder = {}
for row in tradeoff.pick(rows, part="colder"):
    what = f"start × {row['radius']:g}, {row['sampler']}" if row["radius"] != 1 else f"score × {row['kappa']:g}" if row["kappa"] != 1 else f"noise × {row['noise']:g}"
    colder[what] = row
    print(f"{what:>18}" + line("", row)[9:])
assert len(colder) == 10

# %% [markdown]
# TODO colder reading
#
# ## Deeper: small losses are free
#
# *For you if you report a FID. It adds why it hardly moves where recall already falls.*
#
# Let a set keep its mean and shrink: $C_a = s^2 C_b$. Then $(C_a C_b)^{1/2} = s\, C_b$, and by $\eqref{eq-frechet}$
#
# $$ \text{FID} = (1 - s)^2 \operatorname{tr} C_b . \label{eq-shrink} $$
#
# A set a tenth narrower costs a hundredth of the spread. The loss of spread itself is $1 - s^2$, a fifth: the distance is of *second* order in what the spread loses in first.

# %%
# [eq-shrink]
def cost_of_shrinking(s, cov):
    """The Fréchet distance of a set s times as wide as another of covariance cov."""
    return (1 - s) ** 2 * cov.trace()


# %%
for s in (0.95, 0.9, 0.7, 0.5):
    narrow = Statistics(reference.mean, s**2 * reference.cov, reference.count)
    cost = metrics.frechet_distance(narrow, reference)
    torch.testing.assert_close(cost, float(cost_of_shrinking(s, reference.cov)), rtol=1e-5, atol=0.0)
    print(f"s = {s:g}: spread lost {1 - s**2:.1%}, FID {cost / reference.cov.trace():.2%} of the spread")

# %% [markdown]
# ## Deeper: how many digits?
#
# *For you if you compare your FID with a row of ours. It adds what is due to the count alone.*
#
# The mean of $N$ independent samples is not their expectation. Its distance from a given $m_b$ is too large by what the mean scatters:
#
# $$ \mathbb E\big[ \|\hat m_a - m_b\|^2 \big] = \|m_a - m_b\|^2 + \frac{1}{N} \operatorname{tr} C_a, \label{eq-count-bias} $$
#
# and the second term of the FID grows likewise, without so short a formula. Both are seen with Gaussian "features" that have exactly the mean and the covariance of the real ones, so that the true distance is 0.

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
# A distance of nothing from nothing is not 0, and four times the count divides it by about four. So compare rows of one count only, as ours are (that of the card, with 10,000 digits, is of another kind). Precision has no such bias, since its balls belong to the real set.
#
# ## Deeper: the large network
#
# *For you if you suspect the small one. It adds the same scales with the shipped network of chapter 00, six times as many parameters.*

# %% tags=["hide-input"]
print(" " * 14 + "accuracy    precision       recall           IS          FID       spread")
big = tradeoff.pick(rows, part="big")
for row in big:
    print(line(f"gamma {row['gamma']:g}", row))

# %% [markdown]
# TODO big reading
