"""The convention card as code: anybody's guidance scale, noise level and network output in our notation.

    x = alpha x0 + sigma eps,    alpha^2 + sigma^2 = 1,    guided = uncond + gamma (cond - uncond)

How strong is my guidance: GUIDANCE, `guidance_scale`. How noisy is my image: NOISE, `noise_level`, `rescale`;
over one step: STEPS, `between`, `reverse_std`, `vp_sde`. What does my network output: OUTPUTS, `convert`.
`card` lists it all, and how a row was checked: "code" (that file was read in that repository), "copy" (it was
read in a copy), "blog" (read in a copy), "paper" (as the paper states it; not compared with any code).
Values are checked on the CPU alone, see `checks`.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from difflesson.checks import as_tensor, holds
from difflesson.denoiser import Prediction

# name: (offset, their symbol, checked in, source), and gamma = their scale + offset: only their zeros differ
GUIDANCE = {
    "gamma": (0, "gamma", "blog", "this course, after Su, spaces.ac.cn/archives/9257"),
    "ho-salimans": (1, "w", "paper", "arXiv:2207.12598 eq. 6"),
    "imagen": (0, "w", "paper", "arXiv:2205.11487 eq. 2, as cited in diffusers' pipelines"),
    "glide": (0, "guidance_scale", "code", "openai/glide-text2im: notebooks/text2im.ipynb"),
    "stable-diffusion": (0, "--scale", "code", "CompVis/stable-diffusion: ldm/models/diffusion/ddim.py"),
    "diffusers": (0, "guidance_scale", "code", "huggingface/diffusers: most pipelines, off at <= 1 (issue 5882)"),
    "z-image": (1, "guidance_scale", "code", "diffusers: pipelines/z_image, pipelines/krea2, off at <= 0"),
    "diffusers-guider": (0, "guidance_scale", "code", "diffusers: guiders/classifier_free_guidance.py"),
    "diffusers-original": (1, "guidance_scale", "code", "the same with use_original_formulation=True"),
    "dit": (0, "cfg_scale", "code", "facebookresearch/DiT: models.py, forward_with_cfg"),
    "k-diffusion": (0, "cfg_scale", "copy", "crowsonkb/k-diffusion: train.py, make_cfg_model_fn"),
    "edm2": (0, "guidance", "code", "NVlabs/edm2: generate_images.py (uncond may be a weak network)"),
    "smalldiffusion": (1, "cfg_scale", "code", "yuanchenyang/smalldiffusion: model.py, predict_eps_cfg"),
    "flow-matching": (1, "cfg_scale", "copy", "facebookresearch/flow_matching: image example, eval_loop.py"),
    "guided-diffusion-conditional": (
        1, "classifier_scale", "code", "openai/guided-diffusion: classifier_sample.py --class_cond True"),
    "guided-diffusion-unconditional": (0, "classifier_scale", "code", "the same with --class_cond False"),
}
LOWEST = {"diffusers": 1.0, "z-image": 0.0}  # these pipelines drop guidance below, and sample at gamma = 1
NO_SINGLE_GAMMA = {
    "w": ("ambiguous: 0 is plain conditional for Ho & Salimans, 1 for Imagen", "paper", "see there"),
    "cfg_scale": ("ambiguous: 0 is plain conditional in smalldiffusion, 1 in DiT", "code", "see there"),
    "classifier_scale": ("ambiguous: adds to 1 if the network has the label, or to 0", "code", "see there"),
    "clip_guidance_scale": ("no log p(y given x)", "code", "crowsonkb/k-diffusion: sample_clip_guided.py"),
    "cosmos": ("gamma is 1 up to 1, and 1 + guidance_scale above", "code", "diffusers: pipelines/cosmos"),
    "flux": ("an input of a network that learned guided guesses", "code", "diffusers: pipelines/flux"),
    "cfg++": ("it guides x0 but renoises with the unconditional eps", "paper", "arXiv:2406.08070"),
}


def _from_log_snr(value):  # halve the logarithm before the exponential, so that a tiny sigma survives
    return torch.exp(logsigmoid(value) / 2), torch.exp(logsigmoid(-value) / 2)


# name: (their number from alpha, sigma; alpha, sigma from their number; in words, checked in, source)
PAIR = (lambda a, s: (a, s), lambda pair: pair)
NOISE = {
    "difflesson": (*PAIR, "(alpha, sigma)", "code", "this course"),
    "su": (*PAIR, "(abar_t, bbar_t) = (alpha, sigma)", "blog", "spaces.ac.cn/archives/9181"),
    "ho": (lambda a, s: a**2, lambda v: (v.sqrt(), (1 - v).sqrt()), "alphabar_t = alpha^2, DDIM's alpha_t",
           "code", "arXiv:2006.11239 eq. 4; openai/guided-diffusion: gaussian_diffusion.py"),
    "ho-variance": (lambda a, s: s**2, lambda v: ((1 - v).sqrt(), v.sqrt()), "sigma^2", "code", "see ho"),
    "song": (lambda a, s: torch.where(a > s, -torch.log1p(-(s**2)), -2 * a.log()),
             lambda v: (torch.exp(-v / 2), torch.sqrt(-torch.expm1(-v))), "integral of beta = -2 log alpha",
             "code", "arXiv:2011.13456 eq. 11; yang-song/score_sde_pytorch: sde_lib.py"),
    "log-snr": (lambda a, s: 2 * (a / s).log(), _from_log_snr,
                "lambda = 2 log(alpha / sigma), x = z_lambda", "paper", "arXiv:2207.12598 sec. 2"),
    "vdm": (lambda a, s: 2 * (s / a).log(), lambda v: _from_log_snr(-v), "gamma_t = 2 log(sigma / alpha)",
            "code", "arXiv:2107.00630 eq. 4; google-research/vdm: model_vdm.py"),
    "dpm-solver": (lambda a, s: (a / s).log(), lambda v: _from_log_snr(2 * v),
                   "lambda_t = log(alpha / sigma)", "code", "LuChengTHU/dpm-solver: dpm_solver_pytorch.py"),
    "edm": (lambda a, s: s / a, lambda v: (1 / (1 + v**2).sqrt(), v / (1 + v**2).sqrt()),
            "sigma_edm = sigma / alpha, x_edm = x / alpha",
            "code", "arXiv:2206.00364; k-diffusion: external.py; smalldiffusion: diffusion.py"),
    "flow": (lambda a, s: s / (a + s), lambda v: ((1 - v) / torch.hypot(1 - v, v), v / torch.hypot(1 - v, v)),
             "t = sigma / (alpha + sigma), x_flow = x / (alpha + sigma); data at t = 0",
             "code", "arXiv:2403.03206; diffusers: scheduling_flow_match_euler_discrete.py"),
    "flow-reversed": (lambda a, s: a / (a + s), lambda v: NOISE["flow"][1](1 - v),
                      "t = alpha / (alpha + sigma), x_flow = x / (alpha + sigma); data at t = 1",
                      "code", "arXiv:2209.03003; facebookresearch/flow_matching: path/affine.py"),
}
DIVISOR = {"edm": lambda a, s: a, "flow": lambda a, s: a + s, "flow-reversed": lambda a, s: a + s}  # of x
STEPS = {
    "Su's alpha_t, beta_t": ("alpha_{t|s}, sigma_{t|s}", "blog", "spaces.ac.cn/archives/9181"),
    "sigma_t of Su, Ho, DDIM": ("reverse std: sigma_{t|s} sigma_s / sigma_t or sigma_{t|s}", "blog", "same"),
    "Ho's alpha_t, beta_t": ("alpha_{t|s}^2, sigma_{t|s}^2", "code", "see ho"),
    "Song's f, g": ("dx = f x dt + g dW: f = -beta / 2 = d log alpha / dt, g^2 = beta", "code", "see song"),
}


def _from_flow(x, velocity, alpha, sigma):
    return Prediction((x - sigma * velocity) / (alpha + sigma), (x + alpha * velocity) / (alpha + sigma))


# name: (x0 and eps from x, their number, alpha, sigma; their number back; in words, checked in, source)
OUTPUTS = {
    "eps": (Prediction.from_eps, lambda p, a, s: p.eps, "eps = (x - alpha x0) / sigma",
            "code", "arXiv:2006.11239 eq. 4; openai/guided-diffusion: gaussian_diffusion.py"),
    "x0": (Prediction.from_x0, lambda p, a, s: p.x0, "x0 = (x - sigma eps) / alpha, EDM's D", "code", "the same"),
    "v": (Prediction.from_v, lambda p, a, s: a * p.eps - s * p.x0, "v = alpha eps - sigma x0",
          "code", "arXiv:2202.00512 app. D; k-diffusion: external.py; diffusers: scheduling_ddim.py"),
    "score": (Prediction.from_score, lambda p, a, s: p.score(s),
              "grad log p(x) = -eps / sigma; alpha times it for x_edm",
              "code", "arXiv:2011.13456; LuChengTHU/dpm-solver: dpm_solver_pytorch.py"),
    "flow": (_from_flow, lambda p, a, s: p.eps - p.x0, "velocity = eps - x0", "code", "see flow above"),
    "flow-reversed": (lambda x, velocity, a, s: _from_flow(x, -velocity, a, s), lambda p, a, s: p.x0 - p.eps,
                      "velocity = x0 - eps", "code", "see flow-reversed above"),
}


def _pick(table: dict, argument: str, name: str):
    if name not in table:
        why = NO_SINGLE_GAMMA.get(name, ["unknown"])[0] if table is GUIDANCE else "unknown"
        raise ValueError(f"{argument} = {name!r}: {why}. Allowed: {', '.join(table)}")
    return table[name]


def _tensor(argument: str, value) -> Tensor:
    if not isinstance(value, Tensor):
        value = as_tensor(argument, value, "a number or a tensor", torch.float64)
    if not holds(value.isfinite()):
        raise ValueError(f"{argument} must be finite, got {value}")
    return value if value.is_floating_point() else value.double()


def _alpha_sigma(pair, given: str = "(alpha, sigma)") -> tuple[Tensor, Tensor]:
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise ValueError(f"{given} must be a pair")
    alpha, sigma = (v if isinstance(v, Tensor) else torch.tensor(v, dtype=torch.float64) for v in pair)
    coarse = max(1e-6, *(4 * torch.finfo(v.dtype).eps for v in (alpha, sigma) if v.is_floating_point()))
    close = (alpha**2 + sigma**2 - 1).abs() <= coarse  # schedules come in float32
    if not holds(close & (alpha >= 0) & (sigma >= 0)):  # nan is not close to anything
        raise ValueError(f"{given}: need alpha, sigma >= 0, alpha^2 + sigma^2 = 1, got {alpha}, {sigma}")
    return alpha, sigma


def _like(level: Tensor, x: Tensor) -> Tensor:
    if level.ndim > 1 or level.ndim == 1 and level.shape != x.shape[:1]:
        raise ValueError(f"a level must be scalar or (batch,), got {tuple(level.shape)} for {tuple(x.shape)}")
    return level.reshape(level.shape + (1,) * (x.ndim - level.ndim)).to(x)  # (batch,) -> (batch, 1, ..., 1)


def guidance_scale(value, source: str, target: str = "gamma"):
    """One convention's guidance scale in another's.

        eps_u + gamma (eps_c - eps_u) = (1 + w) eps_c - w eps_u,    w = gamma - 1        (eq-cfg-weight)

    gamma = 0 ignores the label, 1 is plain conditional, above 1 exaggerates, below 0 repels; the same for all
    outputs, as the weights sum to one. A network that sees the label is at gamma = 1 before a classifier
    adds its gradient (exact for the Bayes posterior; arXiv:2207.12598 sec. 3.1).

    value: float or Tensor.  source, target: keys of GUIDANCE.
    Raises ValueError: unknown or ambiguous name, value not finite, or one that the library does not act on.
    """
    if isinstance(value, str):
        raise ValueError(f"value must be a number or a tensor, got {value!r}")
    result = value + _pick(GUIDANCE, "source", source)[0] - _pick(GUIDANCE, "target", target)[0]
    for argument, name, scale in (("value", source, value), ("result", target, result)):
        if not holds(_tensor(argument, scale) >= LOWEST.get(name, -torch.inf)):
            raise ValueError(f"{argument} = {scale}: {name!r} has no guidance below {LOWEST[name]}")
    return result


def _level(value, source: str) -> tuple[Tensor, Tensor]:
    back = _pick(NOISE, "source", source)[1]
    return _alpha_sigma(back(value if back is PAIR[1] else _tensor("value", value)), f"{source} = {value}")


def noise_level(value, source: str, target: str = "difflesson"):
    """The noise level of an image, from one convention to another (the image itself may need `rescale`).

        alphabar = alpha^2 = 1 / (1 + sigma_edm^2) = sigmoid(lambda) = exp(-int beta)    (eq-noise-level)

    value: float (taken as float64) or Tensor; for "difflesson" and "su" the pair (alpha, sigma).
    source, target: keys of NOISE. "ho" loses small noise (in float32, sigma = 1e-4), "edm", "log-snr" do not.
    Raises ValueError: unknown name, out of range, not variance preserving, or infinite in the target.
    """
    of, pair = _pick(NOISE, "target", target)[0], _level(value, source)
    return pair if of is PAIR[0] else _tensor(f"{source} = {value} as {target}", of(*pair))


def rescale(x: Tensor, value, source: str, target: str) -> Tensor:
    """The image in another scale: x_edm = x / alpha, x_flow = x / (alpha + sigma), else x (eq-noise-level).

    x: Float[Tensor, "batch *data"] in the source's scale.  value: its level there, scalar, (batch,) or pair.
    Raises ValueError as `noise_level` does. A score takes the inverse factor.
    """
    _pick(NOISE, "target", target)
    x, pair = _tensor("x", x), _level(value, source)
    here, there = (DIVISOR.get(name, lambda a, s: torch.ones_like(a))(*pair) for name in (source, target))
    return x * _like(_tensor(f"x_{target} / x_{source}", here / there), x)


def between(alpha_s, sigma_s, alpha_t, sigma_t) -> tuple[Tensor, Tensor]:
    """The step from s to t, s < t, is a noising too: x_t = alpha_{t|s} x_s + sigma_{t|s} eps.

        alpha_{t|s} = alpha_t / alpha_s,  sigma_{t|s}^2 = sigma_t^2 - alpha_{t|s}^2 sigma_s^2    (eq-one-step)

    So `noise_level` turns it into Su's (alpha_t, beta_t) by "su", Ho's alpha_t and beta_t by "ho" and
    "ho-variance", the integral of beta over the step by "song".  Source: arXiv:2107.00630.
    Raises ValueError: not variance preserving, alpha_s = 0, or s noisier than t.
    """
    alpha_s, sigma_s = _alpha_sigma((alpha_s, sigma_s), "(alpha_s, sigma_s)")
    alpha_t, sigma_t = _alpha_sigma((alpha_t, sigma_t), "(alpha_t, sigma_t)")
    if not holds((alpha_s > 0) & (alpha_t <= alpha_s)):
        raise ValueError(f"need alpha_s > 0 and alpha_s >= alpha_t, got {alpha_s} and {alpha_t}")
    ratio = alpha_t / alpha_s
    return ratio, (sigma_t**2 - ratio**2 * sigma_s**2).clamp(min=0).sqrt()


def reverse_std(alpha_s, sigma_s, alpha_t, sigma_t, eta: float = 1.0) -> Tensor:
    """What Su, Ho and DDIM call sigma_t, the noise put back: eta sigma_{t|s} sigma_s / sigma_t (eq-one-step).

    eta: 1 is the DDPM posterior, 0 is DDIM. Ho's and Su's larger choice is sigma_{t|s} itself, see `between`.
    Source: arXiv:2010.02502 eq. 16.  Raises ValueError: as `between`, sigma_t = 0, or eta < 0.
    """
    if not eta >= 0:
        raise ValueError(f"eta must be >= 0, got {eta}")
    noise = between(alpha_s, sigma_s, alpha_t, sigma_t)[1]
    std = eta * noise * _tensor("sigma_s", sigma_s) / _tensor("sigma_t", sigma_t)
    return _tensor(f"the reverse std at sigma_t = {sigma_t}", std)


def vp_sde(beta) -> tuple[Tensor, Tensor]:
    """Song's f = -beta / 2, g = sqrt(beta) in dx = f x dt + g dW; beta >= 0 is a rate, unlike Ho's beta_t."""
    return -_tensor("beta", beta) / 2, _tensor("sqrt(beta)", _tensor("beta", beta).sqrt())


def convert(value: Tensor, source: str, target: str, x: Tensor, alpha, sigma) -> Tensor:
    """What a network outputs, as another would: eps, x0, v, score, flow velocity.

        value -> (x0, eps) with x = alpha x0 + sigma eps -> theirs     (eq-parameterisations)

    value, x: Float[Tensor, "batch *data"], x in our scale, see `rescale`.  alpha, sigma: scalar or (batch,).
    Raises ValueError: unknown name, bad shape or level, not finite, or singular. Singular are, at sigma = 0,
    from x0 or score and to score (score to eps is 0); at alpha = 0, from eps or score, save into each other.
    """
    predict, answer = _pick(OUTPUTS, "source", source)[0], _pick(OUTPUTS, "target", target)[1]
    value, x = _tensor("value", value), _tensor("x", x)
    if value.shape != x.shape:
        raise ValueError(f"value {tuple(value.shape)} must have the shape of x {tuple(x.shape)}")
    alpha, sigma = (_like(level, x) for level in _alpha_sigma((alpha, sigma)))
    if source == target:
        return value
    result = answer(predict(x, value, alpha, sigma), alpha, sigma)
    lost = source == "score" and target != "eps" and not holds(sigma > 0)  # -sigma score is 0, whatever eps was
    if lost or not holds(result.isfinite()):
        raise ValueError(f"{source} -> {target} is singular at alpha = {alpha}, sigma = {sigma}")
    return result


def card() -> list[dict[str, str]]:
    """The convention card: one row for each convention, plain strings, the same keys in every row."""
    rows = [("guidance", name, f"gamma = {g[1]}{' + 1' * g[0]}", *g[2:]) for name, g in GUIDANCE.items()]
    rows += [("no single gamma", name, *rest) for name, rest in NO_SINGLE_GAMMA.items()]
    rows += [("noise", name, *rest) for name, (_, _, *rest) in NOISE.items()]
    rows += [("one step", name, *rest) for name, rest in STEPS.items()]
    rows += [("output", name, *rest) for name, (_, _, *rest) in OUTPUTS.items()]
    keys = ("question", "convention", "in our notation", "checked in", "source")
    return [dict(zip(keys, row, strict=True)) for row in rows]


def markdown(rows: list[dict[str, str]]) -> str:
    """Rows of `card` as a Markdown table."""
    if not rows:
        raise ValueError("rows must be one or more, of `card`")
    lines = [rows[0], ["---"] * len(rows[0]), *(row.values() for row in rows)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
