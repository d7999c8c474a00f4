# %% [markdown]
# # 20 · From here to a real pipeline: does your library do what these chapters say?
#
# Your pipeline has a `guidance_scale`, a scheduler with a dozen options, and a number of steps. The pictures look good. Is it right? With a trained network nobody knows what *should* come out.
#
# So take the network out, and put one in that cannot be wrong: for a mixture of Gaussians the right answer to every question of a sampler is a formula. What comes out wrong then is not the network's fault. This chapter does it with `diffusers`, and finds a setting that spoils samples.
#
# **After this chapter you can**
# * read a scheduler's options in the words of this book;
# * run a noiseless scheduler that has a table of noise levels, a loop or a pipeline on answers that are exact, and say how far off it is and whose fault that is;
# * find a setting of a widely used library that spoils samples unseen;
# * test guidance where a pipeline really runs it.
#
# **You need** chapters 05 and 11; `pip install diffusers` (an extra of this course, `peers`). What is printed comes from version 0.42.1; without the library the page can be read, and not run.
#
# *32 minutes to read, 11 more for Deeper, 25 seconds to run, on a laptop, without a GPU or a network connection.*

# %%
import inspect
import warnings
from importlib.metadata import version
from pathlib import Path

import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from diffusers import (  # noqa: I001
        AutoencoderKL, DDIMScheduler, DDPMScheduler, DiTPipeline, DPMSolverMultistepScheduler,
        EulerDiscreteScheduler, HeunDiscreteScheduler,
    )  # fmt: skip

from difflesson import conventions, exercises, guidance, kernels, pipelines, plane, plotting
from difflesson.denoiser import network_pair
from difflesson.digits import checkpoints, sampling, streaming
from difflesson.samplers import draw
from difflesson.schedule import from_betas

torch.set_num_threads(1)
warnings.filterwarnings("ignore", category=DeprecationWarning)

# %% tags=["remove-cell"]
major, minor, *_ = version("diffusers").split(".")
assert round(float(f"{major}.{minor}"), 2) == 0.42

# %% [markdown]
# ## Three pictures, one of them right
#
# The four blobs of chapter 00, drawn by the `DDIMScheduler` of `diffusers` from the same 600 starting noises with exact answers, in three settings.

# %%
four = plane.four_blobs()
noise = torch.randn(600, 2, generator=torch.Generator().manual_seed(0)).double()
settings = {
    "as it comes": (DDIMScheduler(), 50),
    "one option changed": (DDIMScheduler(clip_sample=False), 50),
    "two changed": (DDIMScheduler(clip_sample=False, timestep_spacing="trailing"), 300),
}
clouds = {}
for name, (scheduler, steps) in settings.items():
    network = pipelines.exact_network(four, scheduler.alphas_cumprod)
    clouds[name] = pipelines.drive(scheduler, network, noise, steps)

# %% tags=["hide-input"]
with plotting.style():
    figure, axes = plotting.plt.subplots(1, 3, figsize=(8.6, 2.9), sharex=True, sharey=True)
    for panel, (name, cloud) in zip(axes, clouds.items(), strict=True):
        panel.plot(*cloud.T, ".", markersize=1.8, color=plotting.COLOURS["unconditional"])
        plotting.density(panel, four.log_prob, (-5, 5, -4, 5), linewidths=0.8)
        panel.set(title=f"{name}, {settings[name][1]} steps", xlabel="$x_1$", xlim=(-4.4, 4.6), ylim=(-3.1, 3.5), aspect="equal")
    axes[0].set_ylabel("$x_2$")
    assert [steps for _, steps in settings.values()] == [50, 50, 300]
    shown = plotting.show(figure, "20_three_settings", alt="Three clouds of points over the dashed contours of the four blobs. Left, all points are squeezed into a small square in the middle. In the middle and on the right, points fill the contours, and the two clouds look alike.")
shown

# %% [markdown]
# *600 points, exact answers, the same noises. Dashed: the truth (50, 90 and 99 %). Left: the scheduler's default cuts every guess of the clean point to $[-1, 1]$, which is meant for pixels. The other two look alike; with six times as many steps, the right one is almost twice as far from the [exact ends](#deeper-the-same-in-the-plane) as the middle one.*
#
# The left one anybody sees. What about the other two?
#
# **How to see it.** Three ideas. With exact answers, nothing is left to blame but the sampler and its table. On a *line*, noiseless sampling has an answer known point by point: points cannot pass each other, so the noise at the lower quartile ends at the lower quartile of the data. And a right sampler of order one or two about halves or quarters the error of its steps when they double. So: **double the steps; what does not go away is a mistake.**
#
# ## A network that cannot be wrong
#
# A scheduler asks the network at a timestep $k$ of $T$, mostly an integer, and has a table `alphas_cumprod`. In this book's terms: $t = (k + 1) / T$, and with $\bar\alpha_k$ for the table's entry
#
# $$ \bar\alpha_k = \alpha_t^2 = \frac{1}{1 + \sigma_{\mathrm{edm}}^2}, \qquad \sigma_{\mathrm{edm}} = \frac{\sigma_t}{\alpha_t}, \qquad x_{\mathrm{edm}} = \frac{x_t}{\alpha_t}. \label{eq-noise-level} $$
#
# Some schedulers (Euler, Heun) carry $x_{\mathrm{edm}}$ and a list `sigmas` of $\sigma_{\mathrm{edm}}$, as [Karras et al. (2022)](https://arxiv.org/abs/2206.00364) do. The network was trained on $x_t$: so before each question `scale_model_input` multiplies by $\alpha_t$. In words: *the table holds squared amplitudes, the list noise over signal* (whose square is the $q$ of [chapter 17](17_what_does_gamma_sample.ipynb)).

# %%
euler = EulerDiscreteScheduler(beta_start=1e-4, beta_end=0.02, timestep_spacing="trailing")
euler.set_timesteps(50)
k, sigma_edm = int(euler.timesteps[20]), euler.sigmas[20].double()
alpha, sigma = conventions.noise_level(sigma_edm, "edm")
torch.testing.assert_close(alpha**2, euler.alphas_cumprod[k].double(), atol=1e-7, rtol=0)
x_edm = sigma_edm * noise[:5]
scaled = euler.scale_model_input(x_edm, euler.timesteps[20])
torch.testing.assert_close(scaled, alpha * x_edm, atol=1e-6, rtol=0)
torch.testing.assert_close(conventions.rescale(x_edm, sigma_edm, "edm", "difflesson"), alpha * x_edm)
print(f"timestep {k}: alphas_cumprod {alpha**2:.4f}, sigma_edm {sigma_edm:.4f}, "
      f"the image is multiplied by {alpha:.4f}")

# %% [markdown]
# The other words, in the same way:
#
# | theirs | here |
# |---|---|
# | `prediction_type` | what is answered: $\hat\varepsilon$ ("epsilon"), $\hat x_0$ ("sample"), $\alpha_t \hat\varepsilon - \sigma_t \hat x_0$ ("v_prediction") |
# | `num_inference_steps`, `timestep_spacing` | how many times, and which: `leading` $0, \lfloor T/n \rfloor, 2 \lfloor T/n \rfloor, \ldots$, `trailing` down from $T - 1$ in steps of $T/n$, `linspace` both ends; `steps_offset` is added to `leading` (DPM-Solver++ has lists of its own) |
# | `init_noise_sigma` | the standard deviation of the starting noise, in the scheduler's own unit |
# | `eta` | noise of the step: 0 is DDIM, 1 has the noise of DDPM ([chapter 05](05_every_reverse_process_at_once.ipynb)) |
# | `guidance_scale` | in `DiTPipeline` and `StableDiffusionPipeline` $\gamma$, for $\gamma > 1$; below, see [your own loop](#your-own-loop). In `FluxPipeline`, where $\gamma$ is `true_cfg_scale`, and for networks with a `time_cond_proj_dim` it is an *input* of a network that learned guided answers: one answer a step, no branches to swap |
# | flow matching, `FlowMatchEulerDiscreteScheduler` | carries $x_t / (\alpha_t + \sigma_t)$, lists $\sigma_t / (\alpha_t + \sigma_t)$ as `sigmas`, asks for $\hat\varepsilon - \hat x_0$; `conventions` converts, `check_scheduler` takes it |
# | `final_sigmas_type`, DDIM's `set_alpha_to_one` | where the last step ends: at no noise ("zero", `True`), or at that of the table's first entry ("sigma_min", `False`) |
# | `guidance_rescale` | brings $\hat\varepsilon_\gamma$ of each picture towards the standard deviation of its $\hat\varepsilon_c$ |
#
# `pipelines.exact_network` takes a mixture and a scheduler's table and is asked like their networks. The loop around it is the one of every pipeline:

# %%
def loop(scheduler, network, noise, steps):
    scheduler.set_timesteps(steps)
    x = noise * float(scheduler.init_noise_sigma)
    for k in scheduler.timesteps:
        answer = network(scheduler.scale_model_input(x, k), k)
        x = scheduler.step(answer, k, x).prev_sample
    return x


scheduler = settings["one option changed"][0]
network = pipelines.exact_network(four, scheduler.alphas_cumprod)
looped = loop(scheduler, network, noise, 50)
torch.testing.assert_close(looped, clouds["one option changed"], atol=0, rtol=0)

# %% [markdown]
# ## What must come out, point by point
#
# Now a line. Let $F_t$ be the distribution function of $x_t$. Without noise and in endless steps, exact guesses move points along a flow that turns the density of $x_t$ into that of $x_s$ ([chapter 05](05_every_reverse_process_at_once.ipynb#a-shake-and-its-pull)). On a line, points of a flow never pass each other. So the share of points to the left of a given one stays what it is:
#
# $$ F_s(x_s) = F_t(x_t), \qquad x_0 = F_0^{-1}\big( F_t(x_t) \big). \label{eq-quantile-flow} $$
#
# In words: *who starts at the lower quartile ends at the lower quartile*, and so for every share. For a mixture $F$ is a sum of normal distribution functions: no differential equation, no random numbers. (In the plane this is not so, which is why the check is made on a line.)

# %%
line = pipelines.line_of_blobs()  # four blobs, weights 0.30, 0.20, 0.35, 0.15; every second is class 1
unit = float(pipelines.deviation(line))  # errors are counted in standard deviations of the data
heun = HeunDiscreteScheduler(beta_start=1e-4, beta_end=0.02)
answers = pipelines.exact_network(line, heun.alphas_cumprod)
z = torch.tensor([[-2.0], [-0.5], [0.3], [1.5]]).double()
came = pipelines.drive(heun, answers, z, 200)

level = answers.level(999)  # alpha and sigma of the last timestep
must = pipelines.quantile(line, pipelines.chance(line.noised(*level), z))
torch.testing.assert_close(pipelines.flowed(line, z, *level), must)
print("came", [round(v, 3) for v in came.flatten().tolist()])
print("must", [round(v, 3) for v in must.flatten().tolist()])
torch.testing.assert_close(came, must, atol=1e-3, rtol=0)

# %% [markdown]
# The scheduler starts from $z \sim \mathcal N(0, 1)$, whose distribution function is $\Phi$, and calls it $x_T$ ($T$: the level of its first timestep). The truth belongs to pure noise; but the last entry of the table is not quite zero, so the network believes that a little signal is in $z$. This gives two kinds of error. With $\hat x_0$ for what comes,
#
# $$ \hat x_0 - F_0^{-1}\big( \Phi(z) \big) = \Big[ \hat x_0 - F_0^{-1}\big( F_T(x_T) \big) \Big] + \Big[ F_0^{-1}\big( F_T(x_T) \big) - F_0^{-1}\big( \Phi(z) \big) \Big]. \label{eq-two-errors} $$
#
# The second bracket is the *start*: what perfect steps would leave. The first is the *walk*, which more steps should make small. `check_scheduler` averages the size of each over 200 starts, the midpoints of as many equal chances, in units of the standard deviation of the data. So there are no random numbers, and no scatter.

# %%
# [eq-two-errors]
def two_errors(came, x_T, z, mixture, level):
    """The walk's and the start's part of what is wrong with `came`, point by point."""
    own = pipelines.flowed(mixture, x_T, *level)
    truth = pipelines.quantile(mixture, torch.special.ndtr(z[:, 0]))
    return came - own, own - truth


# %%
walk, start = two_errors(came, z, z, line, level)
torch.testing.assert_close(walk + start, came - pipelines.quantile(line, torch.special.ndtr(z[:, 0])))
print("walk ", [round(v, 4) for v in walk.flatten().tolist()])
print("start", [round(v, 4) for v in start.flatten().tolist()])

# %% [markdown]
# ## Double the steps
#
# Five noiseless schedulers, from 20 to 320 steps, and the size of the walk's error.

# %%
table = {"beta_start": 1e-4, "beta_end": 0.02}  # the linear betas of DDPM
trailing = {"timestep_spacing": "trailing"}
schedulers = {
    "DDIM, leading": DDIMScheduler(clip_sample=False, **table),
    "DDIM, trailing": DDIMScheduler(clip_sample=False, **trailing, **table),
    "Euler, trailing": EulerDiscreteScheduler(**trailing, **table),
    "DPM-Solver++": DPMSolverMultistepScheduler(**trailing, **table),
    "DDIM as it comes": DDIMScheduler(),
}
counts = (20, 25, 40, 50, 60, 80, 100, 125, 160, 200, 300, 320)
found = {name: pipelines.check_scheduler(scheduler, counts, count=200)
         for name, scheduler in schedulers.items()}  # fmt: skip

# %% tags=["hide-input"]
walks = {name: {row.steps: row.walk for row in rows} for name, rows in found.items()}
print(f"{'steps:':>16}", *(f"{n:7d}" for n in (20, 40, 80, 160, 320, 300)))
for name, by in walks.items():
    print(f"{name:>16}", *(f"{by[n]:7.4f}" for n in (20, 40, 80, 160, 320, 300)))
    halved = all(by[2 * n] < 0.55 * by[n] for n in (20, 40, 80, 160))
    assert halved == (name in ("DDIM, leading", "Euler, trailing", "DPM-Solver++"))
assert walks["DDIM, trailing"][300] > walks["DDIM, trailing"][25] > 0.04 and walks["DDIM as it comes"][320] > 0.34
assert max(abs(walks["DDIM, trailing"][n] - walks["Euler, trailing"][n]) for n in (20, 25, 40, 50, 100, 125, 200)) < 1e-5

# %% tags=["hide-input"]
colours = dict(zip(schedulers, ("conditional", "guided", "unconditional", "other", "truth"), strict=True))
with plotting.style():
    figure, axes = plotting.plt.subplots(figsize=(6.2, 3.4))
    for name, by in walks.items():
        axes.loglog(by.keys(), by.values(), marker=".", color=plotting.COLOURS[colours[name]], linestyle=":" if name == "Euler, trailing" else "-")
    for name, n, up in (("DDIM as it comes", 22, 0.6), ("DDIM, trailing", 165, 2.3), ("DDIM, leading", 22, 1.35), ("DPM-Solver++", 24, 0.27)):
        axes.text(n, walks[name].get(n, walks[name][25 if n < 30 else 160]) * up, name, color=plotting.COLOURS[colours[name]])
    axes.text(135, 0.0026, "Euler, trailing", color=plotting.COLOURS["unconditional"])
    axes.set(xlabel="number of steps", ylabel="error of the walk", xticks=[20, 40, 80, 160, 320], xticklabels=[20, 40, 80, 160, 320])
    axes.minorticks_off()
    assert walks["DDIM, trailing"][160] > 3 * walks["Euler, trailing"][160]
    shown = plotting.show(figure, "20_double_the_steps", alt="Error of the walk over the number of steps, both axes logarithmic. DDIM with leading timesteps and Euler with trailing ones fall along a straight line of slope minus one; DPM-Solver++ falls faster. DDIM with trailing timesteps follows the line at 20, 25, 40, 50, 100, 125 and 200 steps and jumps above it at 60, 80, 160, 300 and 320, up to where it was at 25. DDIM as it comes is a flat line at 0.35.")
shown

# %% [markdown]
# *Exact answers on a line, error of the walk in standard deviations of the data. A first-order sampler halves its error with every doubling, one of second order comes to quarter it. Clipped guesses never arrive. And DDIM with `trailing` timesteps is right at some numbers of steps, and at 300 steps worse than at 25.*
#
# The flat line we knew. The zigzag is the surprise: `trailing` is an option that [Lin et al. (2024)](https://arxiv.org/abs/2305.08891) recommend. In the picture above it cannot be seen.
#
# **What happens there.** `DDIMScheduler.step` does not look up which timestep comes next. It subtracts $\lfloor T / n \rfloor$. With $n = 300$ that is 3; but `trailing` timesteps are $1000 / 300 \approx 3.33$ apart. So every third step or so stops a timestep short, and the network is then told a lower noise level than the point has. Of the whole way, the share
#
# $$ r_n = 1 - \frac{n}{T} \Big\lfloor \frac{T}{n} \Big\rfloor \label{eq-stride-share} $$
#
# is not walked: nothing if $n$ divides $T$, a tenth at 300 steps. Is this the cause? Then our own DDIM must do the same if it stops short in the same way, and be right if it goes to the next timestep:

# %%
ddim = schedulers["DDIM, trailing"]
clock = from_betas(ddim.betas.double())  # timestep k is time (k + 1) / 1000
kernel = kernels.ddim(line.denoiser(clock), clock)
z = torch.special.ndtri((torch.arange(200).double() + 0.5) / 200)[:, None]


def ours(kernel, timesteps, targets, x):
    for k, target in zip(timesteps, targets, strict=True):
        x = kernel(x, (k + 1) / 1000, max(target + 1, 0) / 1000).mean
    return x


# %% tags=["hide-input"]
theirs = {n: pipelines.drive(ddim, answers, z, n) for n in (50, 300)}
print(f"{'ours:':>9}{'stopping short':>25}{'going on':>25}")
print("    steps   from theirs    error   from theirs    error")
for n, came in theirs.items():
    ddim.set_timesteps(n)
    ks = ddim.timesteps.tolist()
    short, on = ours(kernel, ks, [k - 1000 // n for k in ks], z), ours(kernel, ks, [*ks[1:], -1], z)
    own = pipelines.flowed(line, z, *answers.level(999))
    size = [float((x - own).abs().mean() / unit) for x in (short, on)]
    apart = [float((x - came).abs().max()) for x in (short, on)]
    print(f"{n:9d}" + "".join(f"{there:14.0e}{off:9.4f}" for there, off in zip(apart, size, strict=True)))
    assert apart[0] < 1e-4 and (apart[1] < 1e-4) == (n == 50)
assert size[1] < 0.0045 and size[0] > 9 * size[1]


# %%
# [eq-stride-share]
def share_left_out(n, T=1000):
    return 1 - n / T * (T // n)


# %%
ratios = []
for n in (60, 80, 160, 300, 320):
    extra = walks["DDIM, trailing"][n] - walks["Euler, trailing"][n]
    ratios.append(extra / share_left_out(n))
    print(f"{n} steps: share left out {share_left_out(n):.3f}, "
          f"additional error {extra:.4f}, ratio {ratios[-1]:.2f}")
print(f"mean ratio {sum(ratios) / 5:.2f}")
assert 0.3 < min(ratios) and max(ratios) < 0.45

# %% tags=["remove-cell"]
for wrong in (61, 103):
    euler.set_timesteps(wrong)
    assert euler.timesteps[-1] == -1 and len(euler.timesteps) == wrong + 1
assert 1000 // 300 == 3 and round(1000 / 300, 2) == 3.33 and round(sum(ratios) / 5, 2) == 0.37

# %% [markdown]
# Yes. Ours agrees with theirs to what their tables, in float32, allow; and the additional error is about 0.37 of the share left out, on this mixture, from 60 steps on. (On one Gaussian, in the tests: nothing at 60, 0.95 at 300.) With `leading` timesteps the stride *is* $\lfloor T / n \rfloor$, and the walk is right; but then they start lower than they should (next section). Users have reported it ([9261](https://github.com/huggingface/diffusers/issues/9261), [11347](https://github.com/huggingface/diffusers/issues/11347)); `DDIMScheduler` of the version used here still has it. Until it is mended: let $n$ divide $T$, or use Euler, which takes the steps of DDIM and looks up the next level. (At some $n$, 61 and 103 among them, the list of `trailing` itself is wrong, in Euler too: it has a timestep too many, $-1$. With `linspace` DDIM steps elsewhere at every $n$ but 1 and 1,000; the error halves only where $n$ divides $T$.)
#
# ## One option at a time
#
# Now nine settings, with both brackets of $\eqref{eq-two-errors}$. `SD` is the table of Stable Diffusion, `scaled_linear` from 0.00085 to 0.012.

# %% tags=["hide-input"]
sd = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
options = {
    "DDIM, leading": DDIMScheduler(clip_sample=False, **table),
    "the same, SD": DDIMScheduler(clip_sample=False, **sd),
    "SD, set_alpha_to_one=False, offset 1": DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1, **sd),
    "SD, trailing": DDIMScheduler(clip_sample=False, **trailing, **sd),
    "SD, trailing, zero-SNR, v": DDIMScheduler(clip_sample=False, rescale_betas_zero_snr=True, prediction_type="v_prediction", **trailing, **sd),
    "DPM-Solver++, SD": DPMSolverMultistepScheduler(**sd),
    "DPM-Solver++, SD, Karras": DPMSolverMultistepScheduler(use_karras_sigmas=True, **sd),
    "Heun()": HeunDiscreteScheduler(),
    "clip_sample=True": DDIMScheduler(**table),
}  # fmt: skip
print(f"{'start: 10':>48}{50:8d}{200:8d}{'walk: 10':>11}{50:8d}{200:8d} steps")
each = {}
for name, scheduler in options.items():
    rows = pipelines.check_scheduler(scheduler, (10, 50, 200), count=200)
    each[name] = rows
    print(f"{name:>37}   " + "".join(f"{row.start:8.4f}" for row in rows) + "   " + "".join(f"{row.walk:8.4f}" for row in rows))

# %% tags=["hide-input"]
chances, last = torch.special.ndtr(z[:, 0]), []
for name in ("DDIM, leading", "DPM-Solver++, SD, Karras", "Heun()"):
    guess = pipelines.exact_network(line, options[name].alphas_cumprod, "sample")
    alpha_0, sigma_0 = guess.level(0)
    there = pipelines.quantile(line.noised(alpha_0, sigma_0), chances)
    last.append(float((guess(there, 0) - pipelines.quantile(line, chances)).abs().mean() / unit))
    print(f"{name:>24}, a last step from exact points at sigma_edm {float(sigma_0 / alpha_0):.3f}: {last[-1]:.4f}")

# %% tags=["remove-cell"]
options["the same, SD"].set_timesteps(10)
(odd,) = pipelines.check_scheduler(schedulers["DDIM, leading"], (501,), count=100)
assert int(schedulers["DDIM, leading"].timesteps[0]) == 500 and round(odd.start, 2) == 0.08
lowest = [round(each[name][2].walk, 4) for name in ("DPM-Solver++, SD, Karras", "Heun()")]
assert sorted(lowest) == [0.0006, 0.0007]
assert all(round(left, 4) == 0.0007 for left in last[1:]) and round(float(sigma_0 / alpha_0), 3) == 0.029
assert int(options["the same, SD"].timesteps[0]) == 900 and round(100 * each["SD, trailing"][2].start) == 2

# %% [markdown]
# Read it by columns. **The start** depends on the table and on the first timestep, hardly on the solver. DDPM's table ends almost at pure noise. SD's does not: there about a fiftieth of a standard deviation stays wrong however many steps you pay. `leading` adds to it, since it starts at $(n - 1) \lfloor T / n \rfloor$: with 10 steps at 900; with 501 steps, since their stride is 1, at 500, and there the start on DDPM's table is 0.08 off. So here too let $n$ divide $T$. With `trailing`, `rescale_betas_zero_snr` takes it away, and needs a network trained so, and for $v$: at $\alpha_T = 0$ an $\hat\varepsilon$ tells nothing of the data (`check_scheduler` refuses "epsilon" there). `HeunDiscreteScheduler()` has defaults of its own, a third table: *always make a scheduler `from_config` of the one the network came with.*
#
# **The walk** falls with the steps in all rows but the last, in two of them to 0.0007 and no further. That is their last step, from the table's first entry, $\sigma_{\mathrm{edm}} = 0.029$, to no noise at once: it leaves as much even from exact points. Down there do not apply the rule of doubling. `set_alpha_to_one=False` and an offset of 1 move the walk of this mixture by less than a tenth.
#
# ## Your own loop
#
# The check takes a network of yours: whatever stands between the scheduler and the exact answers. Swapped branches, and a scale applied twice, are guidance with another scale ([chapter 11](11_classifier_free_guidance.ipynb#pitfall-the-two-answers-in-the-wrong-order) has the first):
#
# $$ \hat\varepsilon_c + \gamma\, (\hat\varepsilon_u - \hat\varepsilon_c) = \hat\varepsilon_u + (1 - \gamma)\, (\hat\varepsilon_c - \hat\varepsilon_u), \qquad \hat\varepsilon_u + \gamma\, \big[ \hat\varepsilon_u + \gamma\, (\hat\varepsilon_c - \hat\varepsilon_u) - \hat\varepsilon_u \big] = \hat\varepsilon_u + \gamma^2\, (\hat\varepsilon_c - \hat\varepsilon_u). \label{eq-wrong-gamma} $$
#
# So test where the truth is known and the wrong scale is another one. At $\gamma = 1$ the class must come, point by point; a swapped loop draws all data. But $1^2 = 1$: for the second mistake take another scale, and a loop known to be right.

# %%
# [eq-wrong-gamma]
def loops(uncond, cond, gamma):
    """The line of guidance: as meant, with the branches swapped, with the scale applied twice."""
    right = uncond + gamma * (cond - uncond)
    return {"right": right, "swapped": cond + gamma * (uncond - cond),
            "twice": uncond + gamma * (right - uncond)}


# %%
def guided(kind, gamma):
    """A network for label 1 out of the exact one, as a loop has it: both branches in one batch."""
    def ask(x, k):
        labels = torch.tensor([2, 1]).repeat_interleave(len(x))  # 2: no label
        return loops(*answers(torch.cat([x] * 2), k, labels).chunk(2), gamma)[kind]

    return ask


right_one = schedulers["DDIM, leading"]
x, k = torch.linspace(-2, 2, 5).double()[:, None], 500
torch.testing.assert_close(guided("swapped", 3.0)(x, k), guided("right", -2.0)(x, k))
torch.testing.assert_close(guided("twice", 3.0)(x, k), guided("right", 9.0)(x, k))

# %% tags=["hide-input"]
class_1, caught = line.given(1), {}
print("error of the walk, 50 steps:   gamma 1, from class 1    gamma 3, from the right loop")
at_3 = {kind: pipelines.drive(right_one, guided(kind, 3.0), z, 50) for kind in ("right", "swapped", "twice")}
for kind in at_3:
    (row,) = pipelines.check_scheduler(right_one, (50,), class_1, count=200, network=guided(kind, 1.0))
    caught[kind] = row.walk, float((at_3[kind] - at_3["right"]).abs().mean() / unit)
    print(f"{kind:>27}:{caught[kind][0]:24.3f}{caught[kind][1]:32.3f}")
assert caught["right"][0] < 0.03 and caught["swapped"][0] > 0.3 and caught["twice"][0] < 0.03 and caught["twice"][1] > 0.1

# %% [markdown]
# Other mistakes, between a scheduler that is right and the network:

# %% tags=["hide-input"]
as_v = pipelines.exact_network(line, right_one.alphas_cumprod, "v_prediction")
of_sd = pipelines.exact_network(line, options["the same, SD"].alphas_cumprod)
mistakes = {
    "none": answers,
    "timestep k + 1": lambda x, k: answers(x, min(int(k) + 1, 999)),
    "timestep k - 1": lambda x, k: answers(x, max(int(k) - 1, 0)),
    "one step late": lambda x, k: answers(x, min(int(k) + 1000 // right_one.num_inference_steps, 999)),
    "trained on SD's table": of_sd,
    "guesses 2 % too long": lambda x, k: 1.02 * answers(x, k),
    "v taken for epsilon": as_v,
}
falls, numbers = {}, (25, 50, 100, 200)
print(f"{'error of the walk at':>22}" + "".join(f"{n:9d}" for n in numbers) + " steps")
for name, network in mistakes.items():
    falls[name] = [row.walk for row in pipelines.check_scheduler(right_one, numbers, count=100, network=network)]
    print(f"{name:>22}" + "".join(f"{walk:9.4f}" for walk in falls[name]))
assert all(falls[name][3] > 0.55 * falls[name][2] for name in ("timestep k + 1", *list(mistakes)[4:]))
assert all(a < 0.55 * b for b, a in zip(falls["one step late"][:-1], falls["one step late"][1:], strict=True))
assert all(early < right for early, right in zip(falls["timestep k - 1"], falls["none"], strict=True))
assert round(sum(late / right for late, right in zip(falls["one step late"], falls["none"], strict=True)) / 4, 1) == 3.6

# %% [markdown]
# Four stop halving. Two go on, and show what doubling cannot find. A network asked one whole *step* late is asked the right thing in the limit, so its error halves as well, only from 3.6 times the height. And one asked a timestep early is *nearer* to the truth here than the right loop: the mistake makes up for part of DDIM's own error, until that is the smaller of the two. So also compare with a sampler known to be right, at the same times and from the same noise, as was done for the strides.
#
# Last, the pipeline itself: `DiTPipeline` of the library, its code untouched, with the exact network in the transformer's place and no autoencoder.

# %%
pipe = DiTPipeline(pipelines.exact_transformer(pipelines.exact_network(four, right_one.alphas_cumprod)),
                   pipelines.no_autoencoder(), right_one)  # fmt: skip
pipe.set_progress_bar_config(disable=True)


def piped(gamma):
    answer = pipe([1] * 400, guidance_scale=gamma, num_inference_steps=50, output_type="pt",
                  generator=torch.Generator().manual_seed(3))  # fmt: skip
    return pipe.vae.points(answer.images)


drawn = {gamma: piped(gamma) for gamma in (0.0, 0.5, 1.0, 1.000001, 4.0)}

# %% tags=["hide-input"]
same_noise = torch.randn(400, 2, 1, 1, generator=torch.Generator().manual_seed(3), dtype=torch.float64).flatten(1)
free = guidance.classifier_free(four.pair(clock, label=1), 4.0)
ks = list(range(980, -1, -20))
wanted = ours(kernels.ddim(free, clock), ks, [*ks[1:], -1], same_noise)
print(f"gamma 4: largest difference from this book's DDIM {float((drawn[4.0] - wanted).abs().max()):.0e}")
for gamma, points in drawn.items():
    share = float(four.class_log_prob(points, 1).exp().mean())
    print(f"guidance_scale={gamma}: share of class 1 {share:.3f}; the same as at 1: {bool((points == drawn[1.0]).all())}")
assert (drawn[4.0] - wanted).abs().max() < 1e-5 and (drawn[0.0] == drawn[1.0]).all() and (drawn[0.5] == drawn[1.0]).all()
assert 0 < (drawn[1.000001] - drawn[1.0]).abs().max() < 1e-4

# %% [markdown]
# The pipeline does what this book's DDIM does under guidance, to $10^{-5}$. But `guidance_scale` is $\gamma$ only above 1: at 0, where our $\gamma$ ignores the label, and at 0.5, it draws what it draws at 1.
#
# ### Pitfall: to test guidance at `guidance_scale=1`
#
# A pipeline with `if guidance_scale > 1` does not run its guidance there: the test passes, whatever the line of guidance says. Take a scale a little above, for the rules of [chapter 19](19_guidance_as_practised.ipynb) as well:

# %%
def as_pipelines_do(kind, gamma):
    plain = pipelines.guided_network(answers, 1, 1.0, none=2)  # guidance off: the label alone
    return guided(kind, gamma) if gamma > 1 else plain


for gamma in (1.0, 1.000001):
    network = as_pipelines_do("swapped", gamma)
    (row,) = pipelines.check_scheduler(right_one, (50,), class_1, count=200, network=network)
    print(f"branches swapped, tested at {gamma}: error of the walk {row.walk:.3f}")

# %% [markdown]
# Tested at 1, a loop with swapped branches is as good as the right one. A millionth above, it is found out.
#
# ## In practice
#
# | if you | do | because |
# |---|---|---|
# | write or change a scheduler or a loop | run `check_scheduler` at $n$, $2n$, $4n$ steps, with numbers that do not divide $T$ among them | what does not halve, above what the last step leaves, is a mistake; one of a twenty-fifth of a standard deviation could not be seen in a picture of 600 points |
# | use `DDIMScheduler` with `trailing` or `linspace` | take an $n$ that divides $T$, with `trailing` or `leading`; or use `EulerDiscreteScheduler` | its stride is $\lfloor T / n \rfloor$: with `trailing`, at 300 steps it is as far off as at 25 |
# | change the solver of a trained model | `Other.from_config(pipe.scheduler.config)`, then look at the betas, `prediction_type`, `clip_sample`, `timestep_spacing` | defaults differ: Heun's are a table of its own, DDIM's cut at $\pm 1$ |
# | see a brightness that is always mediocre | look at `alphas_cumprod` of the first timestep | what the network takes for signal in your noise is no error of the steps, and no number of steps mends it |
# | test guidance | at a scale just above 1, against the class; at another scale, against a loop known to be right | at 1 many pipelines run no guidance, and $1^2 = 1$ |
# | can pay 20 network answers (10 steps) at $\gamma = 5$ | first order; from 80 answers (40 steps) on a method of second order | on two mixtures DPM-Solver++ is behind in the mean at 20 and ahead at 80 ([Deeper](#deeper-what-a-step-should-cost)) |
#
# ## Exercises
#
# Write your answer where the function says `raise NotImplementedError("your turn")`, run the cell, then run the check
# below it.

# %% [markdown]
# ### Exercise 20.1 (easy): a list of sigmas
#
# A scheduler shows `sigmas`, that is $\sigma_{\mathrm{edm}} = \sigma_t / \alpha_t$. Write the function that returns two things: the entry of `alphas_cumprod` at that level, and the factor by which $x_{\mathrm{edm}}$ must be multiplied before the network sees it.
#
# <details><summary>Hint</summary>
#
# $\alpha_t^2 + \sigma_t^2 = 1$. The network saw $x_t$.
#
# </details>

# %% tags=["exercise"]
def table_and_factor(sigma_edm):
    """alphas_cumprod, and what multiplies x_edm."""
    ### BEGIN SOLUTION
    alphabar = 1 / (1 + sigma_edm**2)
    return alphabar, alphabar**0.5
    ### END SOLUTION


# %%
exercises.check("20.1", table_and_factor)

# %% [markdown]
# ### Exercise 20.2 (medium): which scale runs?
#
# A loop applies the line of guidance `times` times, each time with the last result in the place of $\hat\varepsilon_c$; and if `swapped` is true, it has the branches the wrong way round each time. Write the function that returns the one scale at which a right loop gives the same. (With `times=0` no guidance is applied.)
#
# <details><summary>Hint</summary>
#
# Write the last result as $\hat\varepsilon_u + g\, (\hat\varepsilon_c - \hat\varepsilon_u)$. What does one more application do to $g$?
#
# </details>

# %% tags=["exercise"]
def scale_that_runs(gamma, times, swapped):
    """The scale of a right loop with the same result."""
    ### BEGIN SOLUTION
    once = 1 - gamma if swapped else gamma
    return once**times
    ### END SOLUTION


# %%
exercises.check("20.2", scale_that_runs)

# %% [markdown]
# ### Exercise 20.3 (research): how mediocre does it get?
#
# The data on a line are one Gaussian of mean $m$ and standard deviation $c$ (the brightness of pictures, say). A scheduler starts from $\mathcal N(0, 1)$ and says that its level is $\bar\alpha$, not zero. Steps and guesses are perfect, and there is no noise. Write the function that returns mean and standard deviation of what comes. What becomes of the mean as $\bar\alpha$ grows? (So [Lin et al. (2024)](https://arxiv.org/abs/2305.08891) explain why early latent models could not draw a black picture.)
#
# <details><summary>Hint</summary>
#
# $\eqref{eq-quantile-flow}$: which Gaussian does the network think that $x_T$ has? For two Gaussians $F_0^{-1}(F_T(x))$ is a straight line.
#
# </details>

# %% tags=["exercise"]
def mean_and_deviation(m, c, alphabar):
    """Of what comes, two numbers."""
    ### BEGIN SOLUTION
    believed = (alphabar * c**2 + 1 - alphabar) ** 0.5  # the deviation of x_T, to the network
    return m - c * alphabar**0.5 * m / believed, c / believed
    ### END SOLUTION


# %%
exercises.check("20.3", mean_and_deviation)

# %% [markdown]
# ## Remember
#
# 1. With exact answers on a line, where noiseless sampling should end is known point by point: $x_0 = F_0^{-1}(F_T(x_T))$. So a scheduler's error needs no random numbers, and splits into a start and a walk.
# 2. The walk of a right sampler halves, or better, when the steps double, here without guidance and above a thousandth. What stays above is a mistake. One that halves too, such as a network asked one step late, is found by comparing with a sampler known to be right.
# 3. `DDIMScheduler` (0.42.1) steps by $\lfloor T / n \rfloor$. With `trailing` timesteps it is right where $n$ divides $T$; elsewhere the share $1 - \frac{n}{T} \lfloor \frac{T}{n} \rfloor$ of the way is missing, and about 0.37 of it, in standard deviations, is the additional error on this mixture, from 60 steps on.
# 4. Tables, clipping and `prediction_type` belong to the network: a scheduler made with its own defaults may have another table, as Heun's, or cut at $\pm 1$, as DDIM's.
# 5. `guidance_scale` of `DiTPipeline` is $\gamma$ above 1, to $10^{-5}$ on exact answers; at 1 and below it is 1.
#
# **Where it comes from.** That the last entry of the table is not zero, and what this does to brightness: [Lin et al. (2024)](https://arxiv.org/abs/2305.08891). The coordinates $\sigma / \alpha$: [Karras et al. (2022)](https://arxiv.org/abs/2206.00364); the step $\eqref{eq-one-step}$ in these letters: [Kingma et al. (2021)](https://arxiv.org/abs/2107.00630). DPM-Solver++: [Lu et al. (2022)](https://arxiv.org/abs/2211.01095). The test by quantiles, the split of the error and the sizes are this chapter's.

# %% [markdown]
# ## Deeper: the letters of a step
#
# *For you if you read a scheduler's source. It adds the noise between two levels, which stands behind most of its local names, and what a point that stops short has of it.*
#
# A noising from one level, $s$, to a noisier one, $t$, is a noising as any other:
#
# $$ x_t = \alpha_{t|s}\, x_s + \sigma_{t|s}\, \varepsilon, \qquad \alpha_{t|s} = \frac{\alpha_t}{\alpha_s}, \qquad \sigma_{t|s}^2 = \sigma_t^2 - \alpha_{t|s}^2\, \sigma_s^2. \label{eq-one-step} $$
#
# In words: *the amplitude of a step is the ratio of the amplitudes; its noise is what is missing to the noise at its end.* With this line one reads the small letters of `DDPMScheduler`: `current_beta_t` is $\sigma_{t|s}^2$, and the noise of a step has the standard deviation $\sigma_{t|s}\, \sigma_s / \sigma_t$ (`fixed_small`).

# %%
ddpm = DDPMScheduler(**table, clip_sample=False)
ddpm.set_timesteps(50)
table_of = ddpm.alphas_cumprod.double()
pair_t, pair_s = ((table_of[k].sqrt(), (1 - table_of[k]).sqrt()) for k in (500, 480))
alpha_ts, sigma_ts = conventions.between(*pair_s, *pair_t)
torch.testing.assert_close(alpha_ts**2 * pair_s[1] ** 2 + sigma_ts**2, pair_t[1] ** 2)
torch.testing.assert_close(sigma_ts**2, 1 - table_of[500] / table_of[480])  # their current_beta_t
std = conventions.reverse_std(*pair_s, *pair_t)
torch.testing.assert_close(std**2, ddpm._get_variance(500).double(), rtol=1e-5, atol=0)
print(f"a step from 500 to 480: alpha {alpha_ts:.3f}, sigma {sigma_ts:.3f}, noise put back {std:.3f}")

# %% tags=["hide-input"]
level_of = {k: (table_of[k].sqrt(), (1 - table_of[k]).sqrt()) for k in (496, 497)}
left = conventions.between(*level_of[496], *level_of[497])[1]
print(f"300 steps, one timestep short near 500: noise of standard deviation {left:.2f} that the network is not told of")
assert round(float(left), 2) == 0.1

# %% [markdown]
# Every third step or so of the 300 stops one timestep short, which near $k = 500$ leaves a noise of standard deviation 0.1 in the point that the network does not know of.
#

# %% [markdown]
# ### Exercise 20.4 (hard): the level that nobody told
#
# A sampler stopped short: its point is at timestep $j$ of a table, and the network is asked at $k < j$. Write the function that returns the factor of the amplitude and the standard deviation of the noise that lie between the two, from the table `alphas_cumprod` (a tensor) and the two integers.
#
# <details><summary>Hint</summary>
#
# $\eqref{eq-one-step}$: which of the two is $t$, the noisier one? And the table holds squares.
#
# </details>

# %% tags=["exercise"]
def not_told(alphas_cumprod, j, k):
    """alpha_{t|s} and sigma_{t|s}, t where the point is and s where the network is asked."""
    ### BEGIN SOLUTION
    square = alphas_cumprod[j] / alphas_cumprod[k]
    return square.sqrt(), (1 - square).sqrt()
    ### END SOLUTION


# %%
exercises.check("20.4", not_told)

# %% [markdown]
# ## Deeper: what a step should cost
#
# *For you if you choose a solver and a number of steps. It counts answers of the network with guidance, at two scales.*
#
# Guidance asks twice at each time, in one batch; Heun asks at two times a step. At equal numbers of network answers, all exact, the distance from where the equation of that $\gamma$ takes each point:

# %% tags=["hide-input"]
exact_way = {g: pipelines.drive(schedulers["DPM-Solver++"], pipelines.guided_network(answers, 1, g, none=2), z, 500) for g in (1.0, 5.0)}
heun_steps = HeunDiscreteScheduler(**table, beta_schedule="linear")  # with its default timesteps, linspace
budget_of = {"Euler (DDIM's steps)": (schedulers["Euler, trailing"], 1), "DPM-Solver++": (schedulers["DPM-Solver++"], 1), "Heun": (heun_steps, 2)}
spent = {}
middle = {}
print(f"{'mean (median); network answers':>30}" + "".join(f"{n:16d}" for n in (20, 40, 80, 160)))
print(f"{'steps (Heun half as many)':>30}" + "".join(f"{n // 2:16d}" for n in (20, 40, 80, 160)))
for gamma, goal in exact_way.items():
    network = pipelines.guided_network(answers, 1, gamma, none=2)
    for name, (scheduler, times) in budget_of.items():
        runs = [pipelines.drive(scheduler, network, z, n // 2 // times) for n in (20, 40, 80, 160)]
        far = [(x - goal).abs() / unit for x in runs]
        spent[gamma, name], middle[gamma, name] = ([float(part) for part in parts] for parts in ([x.mean() for x in far], [x.median() for x in far]))
        print(f"gamma {gamma:g} {name:>21} " + "".join(f"{a:8.4f} ({b:.4f})" for a, b in zip(spent[gamma, name], middle[gamma, name], strict=True)))
e1, m1, h1, e5, m5, h5 = spent.values()
assert all(b < a for a, b in zip(e1, m1, strict=True)) and all(a < b for a, b in zip(e5[:1], m5[:1], strict=True)) and m5[2] < e5[2] / 2
assert all(h < min(e, m) for h, e, m in zip(h5[1:3], e5[1:3], m5[1:3], strict=True)) and m5[3] < h5[3] and h5[2] < m5[2] / 2
late, early = middle[5.0, "DPM-Solver++"], middle[5.0, "Euler (DDIM's steps)"]
assert all(a > b for a, b in zip(late[:2], early[:2], strict=True)) and all(a < b for a, b in zip(late[2:], early[2:], strict=True))
assert early[3] < 0.5 * e5[3] and 10 * m5[3] < e5[3] and 10 * late[3] < early[3] and e5[3] > 0.55 * e5[2]

# %% [markdown]
# (Heun asks at $2n - 1$ times, so it pays two answers less than the column says.) At $\gamma = 1$ the multistep method of second order is ahead at all four numbers. At $\gamma = 5$ with 20 answers it is behind first order, by mean and median; with 40 by the median; it is ahead from 80 on, and with 160 by a factor of more than ten. (From 40 answers on more than half of first order's mean comes from a twentieth of the starts. On another mixture, in the tests, the multistep method is ahead in the mean from 40 on.) Heun, with its own default timesteps, is ahead of both in the mean at 40 and 80 at this scale. An order is an order only for short steps ([chapter 10](10_general_case.ipynb#deeper-what-guidance-costs) has more scales, and counts calls of the guided model, of two answers each). What saves without any change of solver is to leave out the answers at which guidance does little ([chapter 15](15_classifier_free_guidance_on_digits.ipynb#deeper-what-it-costs)); the library's `ClassifierFreeGuidance(start=0.2, stop=0.9)` guides only between these shares of the steps. And these are errors of the *equation*; that at $\gamma = 5$ the equation itself misses what was ordered, [chapter 17](17_what_does_gamma_sample.ipynb) says.

# %% [markdown]
# ## Deeper: schedulers with noise
#
# *For you if you use DDPM or `eta` above 0. It adds the distribution where points cannot be followed, and its scatter.*
#
# With noise in the steps a start has no end of its own (so `check_scheduler` refuses these schedulers), but the ends still have a distribution. Sorted, their distance from the quantiles of the data is the Wasserstein distance on a line. Now there is scatter: 2,000 points of the data themselves are not at distance zero.

# %% tags=["hide-input"]
many = torch.randn(2000, 1, generator=torch.Generator().manual_seed(1)).double()
spread = pipelines.quantile(line, (torch.arange(2000).double() + 0.5) / 2000)


def from_truth(x):
    return float((x.sort(0).values - spread).abs().mean() / unit)


lucky = torch.tensor([from_truth(line.sample(2000, torch.Generator().manual_seed(k))[0]) for k in range(40)])
print(f"the data themselves: {lucky.mean():.4f}, of 40 draws all but two below {lucky.sort().values[-3]:.4f}")
noisy = {"fixed_small": (DDPMScheduler(clip_sample=False, variance_type="fixed_small", **table), {}),
         "fixed_large": (DDPMScheduler(clip_sample=False, variance_type="fixed_large", **table), {}),
         "DDIM, eta 1": (right_one, {"eta": 1.0}), "DDIM, eta 0": (right_one, {"eta": 0.0})}  # fmt: skip
of_noise = {}
for name, (scheduler, arguments) in noisy.items():
    of_noise[name] = [from_truth(pipelines.drive(scheduler, answers, many, n, generator=torch.Generator().manual_seed(2), **arguments)) for n in (20, 50, 200)]
    print(f"{name:>12}: " + ", ".join(f"{n} steps {d:.4f}" for n, d in zip((20, 50, 200), of_noise[name], strict=True)))
torch.testing.assert_close(torch.tensor(of_noise["fixed_small"]), torch.tensor(of_noise["DDIM, eta 1"]), atol=1e-4, rtol=0)

# %% [markdown]
# DDPM's `fixed_small` is DDIM with `eta=1`, to rounding, as [chapter 05](05_every_reverse_process_at_once.ipynb#deeper-ddpms-table) says. At 20 steps noise costs: it is 0.11 off, with `fixed_large` less, and without noise about two fifths of that, which is just within chance. At 200 steps all four rows are within what the data themselves have by chance: no order among them is shown, and a mistake of a fiftieth would not be seen. That is the price of noise for a *check*: the walk above told 0.0001 from 0.0004. So check the noiseless case first, and then one noisy *step* against yours, with the same noise ([chapter 05](05_every_reverse_process_at_once.ipynb) has its mean and variance).
#
# ## Deeper: the same in the plane
#
# *For you if you doubt that a line says anything about more dimensions. It measures the three settings of the first picture on the four blobs.*
#
# In the plane the flow has no formula. But our own sampler, in 150 steps of Heun, stands in for it, from the same starts.

# %% tags=["hide-input"]
grid = torch.cat([torch.linspace(1, 0.02, 121), torch.linspace(0.02, 0, 31)[1:]]).double()
assert len(grid) - 1 == 150
fine = draw(kernels.heun(four.denoiser(clock), clock), noise, grid)
size_of = float(fine.var(0).sum() ** 0.5)
for name, cloud in clouds.items():
    print(f"{name:>20}: mean distance from the fine solution {float((cloud - fine).norm(dim=1).mean()) / size_of:.4f} standard deviations")

# %% tags=["remove-cell"]
off = [float((cloud - fine).norm(dim=1).mean()) / size_of for cloud in clouds.values()]
assert off[0] > 0.35 and 1.6 < off[2] / off[1] < 1.9 and round(off[1], 3) == 0.025 and round(off[2], 3) == 0.043
assert [steps for _, steps in settings.values()][1:] == [50, 300]
assert 0.35 < of_noise["DDIM, eta 0"][0] / of_noise["fixed_small"][0] < 0.45 and of_noise["DDIM, eta 0"][0] < lucky.sort().values[-3]
assert lucky.mean() < 0.03 and max(row[2] for row in of_noise.values()) < lucky.sort().values[-3]
assert of_noise["fixed_large"][0] < of_noise["fixed_small"][0] - 0.02 and of_noise["DDIM, eta 0"][0] < of_noise["fixed_large"][0] - 0.02

# %% [markdown]
# The order is that of the line: 0.025 with 50 `leading` steps, 0.043 with 300 `trailing` ones.
#
# ## Deeper: a trained network behind their scheduler
#
# *For you if you have a network of your own. It puts the course's small digit network into `DDIMScheduler`, with guidance, and says what to translate.*
#
# The network is asked at a time between 0 and 1 and has a schedule in log-SNR. Their scheduler takes any table of betas: a thousand times of this schedule make one.

# %%
pocket = checkpoints.load("pocket").network
schedule = pocket.schedule
square = torch.cat([torch.ones(1).double(), schedule.alpha((torch.arange(1000) + 1.0).double() / 1000) ** 2])
betas = (1 - square[1:] / square[:-1]).clamp(max=0.9999)
digits_scheduler = DDIMScheduler(trained_betas=betas.tolist(), clip_sample=False, prediction_type="epsilon")

labels = torch.tensor([3, 7, 8])
both = guidance.classifier_free(network_pair(pocket, schedule, labels), 2.0)
begin = torch.randn(3, 1, 28, 28, generator=torch.Generator().manual_seed(5))

# %% tags=["hide-input"]
def compared(scheduler, both, begin):
    """Largest difference of a pixel between their DDIM and ours, 20 steps."""
    def asked_by_timestep(x, k):
        return both(x, (float(k) + 1) / 1000).eps

    with torch.no_grad():
        theirs = pipelines.drive(scheduler, asked_by_timestep, begin, 20)
        ks = scheduler.timesteps.tolist()
        return float((theirs - ours(kernels.ddim(both, schedule), ks, [*ks[1:], -1], begin)).abs().max())


rounded = compared(digits_scheduler, both, begin)
digits_scheduler.final_alpha_cumprod = schedule.alpha(torch.zeros(()).double()) ** 2
ended = compared(digits_scheduler, both, begin)
digits_scheduler.alphas_cumprod = square[1:]
in_double = guidance.classifier_free(network_pair(pocket.double(), schedule, labels), 2.0)
exactly = compared(digits_scheduler, in_double, begin.double())
print(f"largest difference of a pixel {rounded:.0e}; with the same end {ended:.0e}; and in float64 {exactly:.0e}")
assert 1e-4 < rounded < 1e-3 and ended < rounded and exactly < 1e-9
pocket = pocket.float()

# %% [markdown]
# The digits are the same. The fourth digit of a pixel differs for two reasons that the check tells apart: their last step goes to no noise at all and this schedule ends a little above that; the rest is rounding, of their table and of the network. What had to be translated: the table, its end, and the timestep, $t = (k + 1) / T$. The label goes in as it always did.
#
# ## Deeper: many processes
#
# *For you if you sample or train on more than one GPU. It shows what must be true of the parts, and says what this course has and has not.*
#
# Ten thousand samples for an evaluation are drawn by several processes. Two mistakes are easily made: every process has the same seed and draws the same samples, or the set depends on how many processes there were. Here the noise of each digit comes from the seed and from its own number, and process $r$ of $w$ draws the numbers from $\lfloor N r / w \rfloor$ up to $\lfloor N (r + 1) / w \rfloor$:

# %%
def drawn_by(numbers):
    numbers = torch.tensor(numbers)
    return sampling.generate(pocket, numbers % 10, 2.0, steps=4, index=numbers)


parts = [streaming.share(Path("digits.safetensors"), 6, rank, 2) for rank in (0, 1)]
print([(path.name, list(numbers)) for path, numbers in parts])
apart = torch.cat([drawn_by(list(numbers)) for _, numbers in parts])
together = drawn_by(list(range(6)))
print(f"two parts or one: no pixel differs by more than {float((apart - together).abs().max()):.0e}")
assert (apart - together).abs().max() < 1e-4

# %% [markdown]
# `torchrun --nproc_per_node 2 -m difflesson sample --count 10000 --out digits.safetensors` does this, a file for each process; the union is the set that one process draws, up to rounding. Training: `accelerate launch -m difflesson train pocket` splits the batch of the recipe over the processes, so that its size must be a multiple of their number, and is meant to learn what one process would, up to rounding. What is *not* here: no network that is itself spread over devices, no run on several machines was made for this page; bfloat16 (the default on CUDA) and `compiled=True`, which runs training through `torch.compile`, exist as options and were not timed or compared here.
#
# ## Deeper: when you have a real checkpoint
#
# *For you if you go to a large model now. Nothing in this section was run here: there is no network connection on this page.*
#
# What carries over is all that does not look at the network: the scheduler of the checkpoint can be checked as it stands, `check_scheduler(pipe.scheduler, (30, 60, 120))`, in seconds and without a GPU (with 25, 50 and 100 steps, which divide 1,000, the fault of this chapter is not found). (Give it a noiseless one, with a table `alphas_cumprod` or of flow matching; where that wants a `mu`, `from_config` with `use_dynamic_shifting=False`.) Its `alphas_cumprod` says what the start leaves. Then the loop: put `exact_network` in the place of the network, as was done with `DiTPipeline`; a pipeline that wants a text encoder needs one more stand-in. (The batch of `DiTPipeline` has the label first and "no label" second; that of `StableDiffusionPipeline` has them the other way round.) What the check does *not* show: whether the network fits the table it came with; whether labels or prompts reach it; the autoencoder. A latent is multiplied by a factor (0.18215 is the default of `AutoencoderKL`) to have a standard deviation near 1, and divided by it before decoding; forget one of the two and the sizes no longer fit, an error that exact answers do not see. So look, in this order: `scheduler.config` against the model card; one batch of real images through encoder, factor and much noise, and the loss of the network on it with each `prediction_type`, of which one is far below the others; unguided samples; then guidance.

# %% tags=["remove-cell"]
assert inspect.signature(AutoencoderKL.__init__).parameters["scaling_factor"].default == 0.18215
