// One reverse step at a time, as in difflesson/kernels.py: kernels (x, t, s) -> {mean, var}, the step N(mean, var I) of
// each point. Points are flat, 2 N numbers. A denoiser is (x, t) -> {x0, eps}; the step to the data, s = 0, adds no noise.

// Classifier-free guidance: eps = eps_u + gamma (eps_c - eps_u), and x0 likewise.
export function classifier_free({cond, uncond}, gamma) {
  return (x, t) => {
    const c = cond(x, t), u = uncond(x, t), mix = half => u[half].map((value, i) => value + gamma * (c[half][i] - value));
    return {x0: mix("x0"), eps: mix("eps")};
  };
}

// Variance of q(x_s | x_t, x_0): sigma_s^2 sigma_{t|s}^2 / sigma_t^2.
export function posterior_variance(schedule, t, s) {
  return (schedule.sigma(s) * schedule.transition(t, s)[1] / schedule.sigma(t)) ** 2;
}

// DDPM's ancestral step: the mean of q(x_s | x_t, x_0) at the predicted x0, with the "small" or the "large" variance.
export function ddpm(denoiser, schedule, variance = "small") {
  return (x, t, s) => {
    const [alpha_ts, sigma_ts] = schedule.transition(t, s), sigma_t = schedule.sigma(t), {x0} = denoiser(x, t);
    const keep = alpha_ts * (schedule.sigma(s) / sigma_t) ** 2, pull = schedule.alpha(s) * (sigma_ts / sigma_t) ** 2;
    const var_ = variance === "large" ? sigma_ts ** 2 : posterior_variance(schedule, t, s);
    return {mean: x0.map((clean, i) => keep * x[i] + pull * clean), var: s > 0 ? var_ : 0};
  };
}

// DDIM's step without noise: mean = alpha_s x0 + sigma_s eps.
export function ddim(denoiser, schedule) {
  return (x, t, s) => {
    const {x0, eps} = denoiser(x, t), alpha = schedule.alpha(s), sigma = schedule.sigma(s);
    return {mean: x0.map((clean, i) => alpha * clean + sigma * eps[i]), var: 0};
  };
}

// One Euler-Maruyama step of the reverse SDE whose noise is free:
// dx = -beta / 2 (x + (1 + rho^2) score) dt + rho sqrt(beta) dW.
export function reverse_sde(denoiser, schedule, rho = 1) {
  return (x, t, s) => {
    const step = schedule.beta(t) * (t - s), sigma = schedule.sigma(t), {eps} = denoiser(x, t);
    const mean = eps.map((noise, i) => x[i] + step / 2 * (x[i] - (1 + rho ** 2) * noise / sigma));
    return {mean, var: s > 0 ? rho ** 2 * step : 0};
  };
}

// Guidance as a shift of the mean, mean + gamma coefficient grad(x, t). Classifier guidance takes the step's variance for
// the coefficient. The one that is exact for the mean is sigma_{t|s}^2 / alpha_{t|s}, `exact_coefficient(schedule)`.
export function shift(kernel, grad, gamma, coefficient = step => step.var) {
  return (x, t, s) => {
    const step = kernel(x, t, s), slope = grad(x, t), far = gamma * coefficient(step, t, s);
    return {mean: step.mean.map((mean, i) => mean + far * slope[i]), var: step.var};
  };
}

export const exact_coefficient = schedule => (step, t, s) => {
  const [alpha_ts, sigma_ts] = schedule.transition(t, s);
  return sigma_ts ** 2 / alpha_ts;
};

// Decreasing times from 1 to 0, steps + 1 of them.
export const time_grid = steps => Array.from({length: steps + 1}, (_, k) => 1 - k / steps);

// The states of a sampler at each of the times, the start included. noise(k): what step k draws, 2 N standard normals.
export function sample(kernel, x, times, noise) {
  const states = [x];
  for (let k = 0; k + 1 < times.length; k++) {
    const {mean, var: variance} = kernel(states[k], times[k], times[k + 1]);
    const scale = Math.sqrt(variance), drawn = variance > 0 ? noise(k) : null;
    states.push(drawn ? mean.map((value, i) => value + scale * drawn[i]) : mean);
  }
  return states;
}

// Uniform numbers in (0, 1) that a seed decides (the generator "mulberry32").
export function uniform(seed) {
  return () => {
    seed = (seed + 0x6D2B79F5) | 0;
    let z = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    z = (z + Math.imul(z ^ (z >>> 7), 61 | z)) ^ z;
    return (((z ^ (z >>> 14)) >>> 0) + 0.5) / 4294967296;
  };
}

// Standard normal numbers that a seed decides, an even count of them, by Box and Muller's formula.
export function standard_normal(count, seed) {
  const draw = uniform(seed), found = new Float64Array(count);
  for (let i = 0; i < count; i += 2) {
    const radius = Math.sqrt(-2 * Math.log(draw())), angle = 2 * Math.PI * draw();
    found[i] = radius * Math.cos(angle);
    found[i + 1] = radius * Math.sin(angle);
  }
  return found;
}
