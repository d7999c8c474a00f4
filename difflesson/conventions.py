"""The convention card as code: anybody's guidance scale, noise level and network output in our notation.

    x = alpha x0 + sigma eps,    alpha^2 + sigma^2 = 1,    guided = uncond + gamma (cond - uncond)

How strong is my guidance: table GUIDANCE, function `guidance_scale`. How noisy is my image: NOISE, `noise_level`,
`rescale`, and for one step `between`, `reverse_std`, `vp_sde`. What does my network output: OUTPUTS, `convert`.
`card` lists it all, and how each row was checked: "code" (that file was read in that repository), "copy" (read in
a copy of the repository), "blog" (read), "paper" (as the paper states it).
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

# name: (offset, their symbol, checked in, source), where gamma = their scale + offset: they differ in their zero
GUIDANCE = {
    "gamma": (0, "gamma", "blog", "this course, after Su, spaces.ac.cn/archives/9257"),
    "ho-salimans": (1, "w", "paper", "arXiv:2207.12598 eq. 6"),
    "imagen": (0, "w", "paper", "arXiv:2205.11487 eq. 2"),
    "imagen-pytorch": (0, "cond_scale", "code", "lucidrains/imagen-pytorch: imagen_pytorch/imagen_video.py"),
    "glide": (0, "guidance_scale", "code", "openai/glide-text2im: notebooks/text2im.ipynb"),
    "stable-diffusion": (0, "--scale", "code", "CompVis/stable-diffusion: ldm/models/diffusion/ddim.py"),
    "diffusers": (0, "guidance_scale", "code", "pipelines/stable_diffusion; off at <= 1, see issue 5882"),
    "diffusers-guider": (0, "guidance_scale", "code", "guiders/classifier_free_guidance.py"),
    "diffusers-original": (1, "guidance_scale", "code", "the same file, use_original_formulation=True"),
    "dit": (0, "cfg_scale", "code", "facebookresearch/DiT: models.py, forward_with_cfg"),
    "k-diffusion": (0, "cfg_scale", "copy", "crowsonkb/k-diffusion: train.py, make_cfg_model_fn"),
    "edm2": (0, "guidance", "code", "NVlabs/edm2: generate_images.py; autoguidance: uncond is a weak network"),
    "smalldiffusion": (1, "cfg_scale", "code", "yuanchenyang/smalldiffusion: model.py, predict_eps_cfg"),
    "flow-matching": (1, "cfg_scale", "copy", "facebookresearch/flow_matching: examples/image eval_loop.py"),
    "guided-diffusion-conditional": (1, "classifier_scale", "code",
                                     "openai/guided-diffusion: classifier_sample.py, --class_cond True"),
    "guided-diffusion-unconditional": (0, "classifier_scale", "code", "the same file, --class_cond False"),
}
LOWEST = {"diffusers": 1.0}  # its pipelines drop guidance below: asked for 0 they sample at gamma = 1
NOT_ONE_NUMBER = {
    "w": "ambiguous: plain conditional sampling is 0 in Ho & Salimans and 1 in Imagen",
    "cfg_scale": "ambiguous: plain conditional sampling is 1 in DiT and 0 in smalldiffusion",
    "classifier_scale": "ambiguous: it adds to gamma = 1 if the network it steers sees the label, to 0 if not",
    "clip_guidance_scale": "no gamma: it scales the gradient of a similarity, not of log p(y given x)",
    "cfg++": "no gamma: it guides x0 but renoises with the unconditional eps",
}


class Noise(NamedTuple):
    """`of(alpha, sigma)` is their number, `back(number)` our pair, `factor(alpha, sigma)` their x over ours."""

    formula: str
    of: Callable
    back: Callable
    checked: str
    source: str
    factor: Callable = lambda a, s: torch.ones_like(a)


def _unit(alpha, sigma):
    length = torch.hypot(alpha, sigma)
    return alpha / length, sigma / length


def _from_log_snr(value):  # halve the logarithm before the exponential, so that a tiny sigma survives
    return torch.exp(logsigmoid(value) / 2), torch.exp(logsigmoid(-value) / 2)


PAIR = (lambda a, s: (a, s), lambda pair: pair)
NOISE = {
    "difflesson": Noise("(alpha, sigma)", *PAIR, "blog", "this course"),
    "su": Noise("(abar_t, bbar_t) = (alpha, sigma)", *PAIR, "blog", "spaces.ac.cn/archives/9181"),
    "ho": Noise("alphabar_t = alpha^2; DDIM writes alpha_t; one step: alpha_t",
                lambda a, s: a**2, lambda v: (v.sqrt(), (1 - v).sqrt()),
                "code", "arXiv:2006.11239 eq. 4; openai/guided-diffusion: gaussian_diffusion.py"),
    "ho-variance": Noise("1 - alphabar_t = sigma^2; one step: beta_t",
                         lambda a, s: s**2, lambda v: ((1 - v).sqrt(), v.sqrt()),
                         "code", "arXiv:2006.11239 eq. 2; openai/guided-diffusion: gaussian_diffusion.py"),
    "song": Noise("integral of beta from 0 to t = -2 log alpha",
                  lambda a, s: torch.where(a > s, -torch.log1p(-(s**2)), -2 * a.log()),
                  lambda v: (torch.exp(-v / 2), torch.sqrt(-torch.expm1(-v))),
                  "code", "arXiv:2011.13456 eq. 11; yang-song/score_sde_pytorch: sde_lib.py"),
    "log-snr": Noise("lambda = 2 log(alpha / sigma), x is z_lambda",
                     lambda a, s: 2 * (a.log() - s.log()), _from_log_snr, "paper", "arXiv:2207.12598 sec. 2"),
    "vdm": Noise("gamma_t = -2 log(alpha / sigma), not a guidance scale",
                 lambda a, s: 2 * (s.log() - a.log()), lambda v: _from_log_snr(-v),
                 "code", "arXiv:2107.00630 eq. 4; google-research/vdm: model_vdm.py"),
    "dpm-solver": Noise("lambda_t = log(alpha / sigma), half of the log-snr",
                        lambda a, s: a.log() - s.log(), lambda v: _from_log_snr(2 * v),
                        "code", "arXiv:2206.00927; LuChengTHU/dpm-solver: dpm_solver_pytorch.py"),
    "edm": Noise("sigma_edm = sigma / alpha, x_edm = x / alpha",
                 lambda a, s: s / a, lambda v: _unit(torch.ones_like(v), v),
                 "code", "arXiv:2206.00364; k-diffusion: external.py; smalldiffusion: diffusion.py",
                 lambda a, s: 1 / a),
    "flow": Noise("t = sigma / (alpha + sigma), x_flow = x / (alpha + sigma) = (1 - t) x0 + t eps",
                  lambda a, s: s / (a + s), lambda v: _unit(1 - v, v),
                  "code", "arXiv:2403.03206; diffusers: scheduling_flow_match_euler_discrete.py",
                  lambda a, s: 1 / (a + s)),
    "flow-reversed": Noise("t = alpha / (alpha + sigma), x_flow = x / (alpha + sigma) = t x0 + (1 - t) eps",
                           lambda a, s: a / (a + s), lambda v: _unit(v, 1 - v),
                           "code", "arXiv:2209.03003; facebookresearch/flow_matching: path/affine.py",
                           lambda a, s: 1 / (a + s)),
}

# name: ((a, b) with output = a x0 + b eps, in words, checked in, source)
OUTPUTS = {
    "eps": (lambda alpha, sigma: (0, 1), "eps = (x - alpha x0) / sigma",
            "code", "arXiv:2006.11239; openai/guided-diffusion: gaussian_diffusion.py"),
    "x0": (lambda alpha, sigma: (1, 0), "x0 = (x - sigma eps) / alpha, EDM's D",
           "code", "openai/guided-diffusion: gaussian_diffusion.py; smalldiffusion: model.py, PredX0"),
    "v": (lambda alpha, sigma: (-sigma, alpha), "v = alpha eps - sigma x0",
          "code", "arXiv:2202.00512 app. D; k-diffusion: external.py; diffusers: scheduling_ddim.py"),
    "score": (lambda alpha, sigma: (0, -1 / sigma), "grad log p(x) = -eps / sigma; in EDM's x, alpha times it",
              "code", "arXiv:2011.13456; LuChengTHU/dpm-solver: dpm_solver_pytorch.py, model_wrapper"),
    "flow": (lambda alpha, sigma: (-1, 1), "velocity = eps - x0",
             "code", "arXiv:2403.03206; diffusers: scheduling_flow_match_euler_discrete.py"),
    "flow-reversed": (lambda alpha, sigma: (1, -1), "velocity = x0 - eps",
                      "code", "arXiv:2209.03003; facebookresearch/flow_matching: path/affine.py"),
}


def _pick(table: dict, argument: str, name: str):
    if name not in table:
        why = NOT_ONE_NUMBER.get(name, "unknown") if table is GUIDANCE else "unknown"
        raise ValueError(f"{argument} = {name!r} is {why}. Allowed: {', '.join(table)}")
    return table[name]


def _tensor(argument: str, value) -> Tensor:
    value = value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
    if not value.isfinite().all():
        raise ValueError(f"{argument} must be finite, got {value}")
    return value if value.is_floating_point() else value.double()


def _alpha_sigma(pair, given: str = "(alpha, sigma)") -> tuple[Tensor, Tensor]:
    if not (isinstance(pair, tuple | list) and len(pair) == 2):
        raise ValueError(f"{given} must be a pair (alpha, sigma)")
    alpha, sigma = (v if isinstance(v, Tensor) else torch.tensor(v, dtype=torch.float64) for v in pair)
    tolerance = max(1e-6, 8 * torch.finfo(alpha.dtype).eps)
    if not ((alpha >= 0) & (sigma >= 0) & ((alpha**2 + sigma**2 - 1).abs() <= tolerance)).all():  # nan: False
        raise ValueError(f"{given} must give alpha, sigma >= 0, alpha^2 + sigma^2 = 1, gives {alpha}, {sigma}")
    return alpha, sigma


def _like(level: Tensor, x: Tensor) -> Tensor:
    """A scalar or (batch,) level shaped to multiply x, in x's dtype and on its device."""
    if level.ndim > 1 or level.ndim == 1 and level.shape != x.shape[:1]:
        raise ValueError(f"levels must be scalar or (batch,), got {tuple(level.shape)} for x {tuple(x.shape)}")
    return level.reshape(level.shape + (1,) * (x.ndim - level.ndim)).to(x)


def guidance_scale(value, source: str, target: str = "gamma"):
    """One convention's guidance scale in another's.

        eps_u + gamma (eps_c - eps_u) = (1 + w) eps_c - w eps_u,    w = gamma - 1        (eq-cfg-weight)

    gamma: 0 ignores the label, 1 is plain conditional, above 1 exaggerates, below 0 repels. The same for eps, x0, v
    and score, as the weights sum to one. With a classifier it is exact if that is the Bayes posterior: a network
    that sees the label has gamma = 1 before the first gradient (arXiv:2207.12598 sec. 3.1).

    value: float or Tensor.  source, target: keys of GUIDANCE.  Raises ValueError: unknown or ambiguous name, value
    not finite, or a value that the library would not act on.
    """
    result = value + _pick(GUIDANCE, "source", source)[0] - _pick(GUIDANCE, "target", target)[0]
    for argument, name, scale in (("value", source, value), ("result", target, result)):
        if (_tensor(argument, scale) < LOWEST.get(name, -torch.inf)).any():
            raise ValueError(f"{argument} = {scale} in {name!r} must be >= {LOWEST[name]}: below it guidance is off")
    return result


def _level(value, source: str) -> tuple[Tensor, Tensor]:
    back = _pick(NOISE, "source", source).back
    value = value if back is PAIR[1] else _tensor("value", value)
    return _alpha_sigma(back(value), f"value = {value} in {source!r}")


def noise_level(value, source: str, target: str = "difflesson"):
    """The noise level of an image, from one convention to another (the image may need `rescale`).

        alphabar = alpha^2 = 1 / (1 + sigma_edm^2) = sigmoid(lambda) = exp(-integral of beta)     (eq-noise-level)

    One number, except for "difflesson" and "su": the pair (alpha, sigma). Beware: alphabar cannot carry small
    noise (in float32 sigma = 1e-4 is lost); "edm", "song", "log-snr" and "ho-variance" can.

    value: float, Tensor or pair; floats become float64.  source, target: keys of NOISE.
    Raises ValueError: unknown name, out of range, not variance preserving, or infinite in the target.
    """
    of = _pick(NOISE, "target", target).of
    pair = _level(value, source)
    return pair if of is PAIR[0] else _tensor(f"{source} {value} as {target}", of(*pair))


def rescale(x: Tensor, value, source: str, target: str) -> Tensor:
    """The image in another convention's scale: x_edm = x / alpha, x_flow = x / (alpha + sigma)   (eq-noise-level).

    x: Float[Tensor, "batch *data"] in the source's scale; value: its level there, scalar or (batch,), or pair.
    Raises ValueError as `noise_level` does. A score takes the inverse factor.
    """
    pair = _level(value, source)
    factor = _pick(NOISE, "target", target).factor(*pair) / NOISE[source].factor(*pair)
    return _tensor("x", x) * _like(_tensor(f"scale of {target}", factor), x)


def between(alpha_s, sigma_s, alpha_t, sigma_t) -> tuple[Tensor, Tensor]:
    """The step from s to t, s < t, is a noising too: x_t = alpha_{t|s} x_s + sigma_{t|s} eps.

        alpha_{t|s} = alpha_t / alpha_s,    sigma_{t|s}^2 = sigma_t^2 - alpha_{t|s}^2 sigma_s^2     (eq-one-step)

    So `noise_level` converts it: to Su's one-step (alpha_t, beta_t) by "su", Ho's alpha_t and beta_t by "ho" and
    "ho-variance", the integral of Song's beta over the step by "song".  Source: arXiv:2107.00630 app. A.
    Raises ValueError: not variance preserving, alpha_s = 0, or s noisier than t.
    """
    (alpha_s, sigma_s), (alpha_t, sigma_t) = _alpha_sigma((alpha_s, sigma_s)), _alpha_sigma((alpha_t, sigma_t))
    if (alpha_s == 0).any() or (alpha_t > alpha_s).any():
        raise ValueError(f"need alpha_s > 0 and alpha_s >= alpha_t, got {alpha_s} and {alpha_t}")
    ratio = alpha_t / alpha_s
    return ratio, (sigma_t**2 - ratio**2 * sigma_s**2).clamp(min=0).sqrt()


def reverse_std(alpha_s, sigma_s, alpha_t, sigma_t, eta: float = 1.0) -> Tensor:
    """What Su, Ho and DDIM call sigma_t: the noise put back on the way from t to s. It is not our sigma.

        eta sigma_{t|s} sigma_s / sigma_t;  eta = 1: DDPM posterior, eta = 0: DDIM     (eq-one-step)

    The larger choice of Ho and Su is sigma_{t|s} itself.  Source: arXiv:2010.02502 eq. 16, spaces.ac.cn/archives/9181.
    """
    step = between(alpha_s, sigma_s, alpha_t, sigma_t)[1]
    return _tensor("reverse std (sigma_t > 0?)", eta * step * sigma_s / sigma_t)


def vp_sde(beta) -> tuple[Tensor, Tensor]:
    """Song's dx = f x dt + g dW: f = -beta / 2 = d log alpha / dt, g = sqrt(beta). beta is a rate, Ho's a fraction."""
    beta = _tensor("beta", beta)
    return -beta / 2, _tensor("sqrt(beta), beta >= 0", beta.sqrt())


def convert(value: Tensor, source: str, target: str, x: Tensor, alpha, sigma) -> Tensor:
    """One parameterisation of the network's output as another: eps, x0, v, score, flow velocity.

        x = alpha x0 + sigma eps and value = a x0 + b eps, solved for x0 and eps     (eq-parameterisations)

    value, x: Float[Tensor, "batch *data"], x in our scale (see `rescale`).  alpha, sigma: scalar or (batch,).
    Raises ValueError: unknown name, bad shape or level, not finite, or singular: from x0 and to score at sigma = 0,
    from eps and score at alpha = 0 (but eps and score convert into each other).
    """
    rows = [_pick(OUTPUTS, argument, name)[0] for argument, name in (("source", source), ("target", target))]
    alpha, sigma = (_like(level, x) for level in _alpha_sigma((alpha, sigma)))
    if _tensor("value", value).shape != _tensor("x", x).shape:
        raise ValueError(f"value {tuple(value.shape)} must have the shape of x {tuple(x.shape)}")
    (a, b), (c, d) = (row(alpha, sigma) for row in rows)
    if {source, target} <= {"eps", "score"}:
        result = value * (d / b)
    else:
        result = ((c * b - d * a) * x + (d * alpha - c * sigma) * value) / (alpha * b - sigma * a)
    return _tensor(f"{source} -> {target} at alpha = {alpha}, sigma = {sigma}", result)
