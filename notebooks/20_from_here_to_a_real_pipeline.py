# %% [markdown]
# # 20 · From here to a real pipeline: does your library do what these chapters say?
#
# TODO open with the question that the reader already has, in two or three sentences
#
# **After this chapter you can**
# * TODO three or four things, each with a verb: derive, predict, measure, choose
#
# **You need** TODO the chapters and the mathematics that this one builds on.
#
# *6 minutes to read, 1 more for Deeper, 5 seconds to run, on a laptop, without a GPU or a network connection.*

# %%
import math

import torch

from difflesson import exercises, plotting
from difflesson.schedule import cosine

torch.set_num_threads(1)  # small arrays: one thread is as fast, and a busy core then does no harm

# %% [markdown]
# ## TODO a picture of the question, before the first formula
#
# TODO say what happens and why, in words: who stops reading here has the idea. Then what is drawn, and what to look for

# %% tags=["hide-input"]
schedule = cosine()
times = torch.linspace(0, 1, 101)
with plotting.style():
    figure, axes = plotting.plt.subplots(figsize=(4.5, 2.6))
    axes.plot(times, schedule.alpha(times), color=plotting.COLOURS["conditional"])
    axes.plot(times, schedule.sigma(times), color=plotting.COLOURS["unconditional"])
    axes.text(0.3, 0.92, "$\\alpha_t$", color=plotting.COLOURS["conditional"])
    axes.text(0.3, 0.32, "$\\sigma_t$", color=plotting.COLOURS["unconditional"])
    axes.set(xlabel="$t$", ylabel="factor")
    # TODO draw the chapter's own picture, and look at the file under figures/
    shown = plotting.show(figure, "20_question", alt="Two curves over time: the factor of the signal falls from 1 to 0, the factor of the noise rises from 0 to 1.")
shown

# %% [markdown]
# *TODO a caption in italics, a paragraph of its own: what to conclude from the picture.*
#
# TODO one sentence that reads the picture
#
# ## TODO the derivation, in small steps; what the reader came for stands in the first half
#
# A noisy picture is the clean one times a factor, plus noise times another. A numbered equation has a label (the build
# numbers it). The next cell computes it: first as one writes it, then as the package has it. Elsewhere on this page it is
# called $\eqref{eq-forward-marginal}$.
#
# TODO replace the example; `python -m tools.ledger check` knows which labels exist
#
# $$ x_t = \alpha_t\, x_0 + \sigma_t\, \varepsilon. \label{eq-forward-marginal} $$

# %%
generator = torch.Generator().manual_seed(0)
x_0, eps = torch.randn(2, 1000, 2, generator=generator, dtype=torch.float64)
by_hand = schedule.alpha(0.5) * x_0 + schedule.sigma(0.5) * eps
compact = schedule.add_noise(x_0, eps, 0.5)
print(f"largest difference {float((by_hand - compact).abs().max()):.0e}")
torch.testing.assert_close(compact, by_hand)

# %% [markdown]
# TODO one sentence that reads the output. Papers are plain links, with an entry in book/references.bib:
# [Ho & Salimans (2022)](https://arxiv.org/abs/2207.12598).
#
# ### Pitfall: TODO the plausible wrong version
#
# TODO why one would write it. Then run it, and print how wrong it is

# %%
wrong = (1 - schedule.sigma(0.5)) * x_0 + schedule.sigma(0.5) * eps
lost = 1 - float(wrong.var() / compact.var())
print(f"with 1 - sigma for alpha, {lost:.0%} of the variance is lost")
assert lost > 0.1

# %% [markdown]
# TODO one sentence that reads the error
#
# ## In practice
#
# TODO the decision a practitioner takes home, three to six rows
#
# | if you have | do | because |
# |---|---|---|
# | TODO the first case | ... | ... |
# | ... | ... | ... |
# | ... | ... | ... |
#
# ## Exercises
#
# Write your answer where the function says `raise NotImplementedError("your turn")`, run the cell, then run the check
# below it.

# %% [markdown]
# ### Exercise 20.1 (easy): TODO a question
#
# TODO the task, and the signature in words. The example: which share of the variance of $x_t$ is signal, given
# $\log(\alpha_t^2 / \sigma_t^2)$?
#
# <details><summary>Hint</summary>
#
# TODO where to look: a step, not the formula.
#
# </details>

# %% tags=["exercise"]
def signal_share(log_snr):
    """alpha^2, a number in (0, 1)."""
    ### BEGIN SOLUTION
    return 1 / (1 + math.exp(-log_snr))
    ### END SOLUTION


# %%
exercises.check("20.1", signal_share)

# %% [markdown]
# ### Exercise 20.2 (medium): TODO a question
#
# TODO the task. The example: the same for the noise.
#
# <details><summary>Hint</summary>
#
# TODO where to look.
#
# </details>

# %% tags=["exercise"]
def noise_share(log_snr):
    """sigma^2, a number in (0, 1)."""
    ### BEGIN SOLUTION
    return 1 / (1 + math.exp(log_snr))
    ### END SOLUTION


# %%
exercises.check("20.2", noise_share)

# %% [markdown]
# ### Exercise 20.3 (hard): TODO a question
#
# TODO the task, of the kind that a research question begins with. The example: both shares at once.
#
# <details><summary>Hint</summary>
#
# TODO where to look.
#
# </details>

# %% tags=["exercise"]
def both_shares(log_snr):
    """(alpha^2, sigma^2), two numbers."""
    ### BEGIN SOLUTION
    signal = 1 / (1 + math.exp(-log_snr))
    return signal, 1 - signal
    ### END SOLUTION


# %%
exercises.check("20.3", both_shares)

# %% [markdown]
# ## Remember
#
# 1. TODO five lines at most
#
# **Where it comes from.** TODO for each result its paper and equation, or "derived here".

# %% [markdown]
# ## Deeper: TODO what the expert asks next
#
# TODO one line: what this section adds, and for whom. Nothing above depends on it. Leave Deeper out if there is none.
