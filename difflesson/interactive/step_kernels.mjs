// What "One step" compares: the exact step given the class, and six Gaussian ones, for one point. No drawing here.

import { four_blobs, gaussian } from "./mixture.mjs";
import { ddpm, exact_coefficient, shift } from "./kernels.mjs";
import { kl } from "./divergence.mjs";
import { ddpm_table } from "./schedule.mjs";

export const mixture = four_blobs();
export const schedule = ddpm_table();
export const KERNELS = { // variance and shift, name of its colour, dashes of its line
  none: ["large, no shift", "plain", []],
  small: ["small, shifted", "guided", []],
  large: ["large, shifted", "conditional", []],
  mended_small: ["small, exact coefficient", "mended", [2, 2]],
  mended_large: ["large, exact coefficient", "mended", []],
  moments: ["exact mean, covariance", "other", []],
};

export const noised = t => mixture.noised(schedule.alpha(t), schedule.sigma(t));
export const exact = (label, x, t, s) => (label === null ? mixture : mixture.given(label)).reverse(x, schedule, t, s);

// One of KERNELS as N(mean, cov): a mixture of one component. Guided by the class at scale 1.
export function step_of(name, label, x, t, s) {
  if (name === "moments") {
    const {mean, cov} = exact(label, x, t, s);
    return gaussian(mean, cov);
  }
  const variance = name.endsWith("small") ? "small" : "large", free = ddpm(mixture.denoiser(schedule), schedule, variance);
  const grad = (points, time) => noised(time).class_gradient(points, label);
  const gamma = name === "none" ? 0 : 1;
  const kernel = shift(free, grad, gamma, name.startsWith("mended") ? exact_coefficient(schedule) : undefined);
  const {mean, var: square} = kernel(Float64Array.from(x), t, s);
  return gaussian([...mean], [[square, 0], [0, square]]);
}

// Divergences of all KERNELS from the exact step, in nats, by name.
export function nats(label, x, t, s) {
  const truth = exact(label, x, t, s);
  return Object.fromEntries(Object.keys(KERNELS).map(name => [name, kl(truth, step_of(name, label, x, t, s))]));
}

// The length of a step, beta = sigma_{t|s}^2.
export const beta = (t, s) => schedule.transition(t, s)[1] ** 2;

// The power of beta with which each divergence falls as the step gets a little shorter.
export function orders(label, x, t, s, now = nats(label, x, t, s)) {
  const nearer = t - 0.9 * (t - s), then = nats(label, x, t, nearer), steps = Math.log(beta(t, s) / beta(t, nearer));
  return Object.fromEntries(Object.keys(KERNELS).map(name => [name, Math.log(now[name] / then[name]) / steps]));
}

// What the divergences of short steps are predicted to be: beta |g|^2 / 2 without a shift, beta^2 |H + c I|^2 / 4 with one,
// c = 1 for the large variance and 1 / sigma_t^2 for the small one. g: gradient of log p_t(y | x);  H: second derivatives
// of log p_t(x | y).
export function predicted(label, x, t, s) {
  const at_t = noised(t), length = beta(t, s), [g_1, g_2] = at_t.class_gradient(x, label);
  const [[a, b], [, d]] = at_t.given(label).hessian(x);
  const shape = c => length ** 2 * ((a + c) ** 2 + 2 * b ** 2 + (d + c) ** 2) / 4;
  return {none: length * (g_1 ** 2 + g_2 ** 2) / 2, small: shape(1 / schedule.sigma(t) ** 2), large: shape(1)};
}
