// Run the page's mathematics on cases that Python wrote: node run_cases.mjs FOLDER < cases.json > answers.json
// Each case has the numbers of a mixture, points, times; each answer what the modules in FOLDER say to it, by name.

import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const load = name => import(pathToFileURL(`${process.argv[2]}/${name}.mjs`));
const [{GaussianMixture, gaussian}, schedules, kernels, divergence, {GridDensity}] = await Promise.all(
  ["mixture", "schedule", "kernels", "divergence", "grid"].map(load),
);

function answer({weights, means, covs, labels, x, noise, label, gamma, rho, t, s, schedule: [kind, ...given], box}) {
  const mixture = new GaussianMixture(weights, means, covs, labels), schedule = schedules[kind](...given);
  const alpha = schedule.alpha(t), sigma = schedule.sigma(t), noisy = mixture.noised(alpha, sigma);
  const [transition, first] = [schedule.transition(t, s), x.slice(0, 2)];
  const found = {
    alpha, sigma, transition, beta: schedule.beta(t),
    log_prob: noisy.log_prob(x), score: noisy.score(x), hessian: noisy.hessian(first),
    class_log_prob: noisy.class_log_prob(x, label), class_gradient: noisy.class_gradient(x, label),
    class_score: noisy.given(label).score(x), mean: mixture.mean, cov: mixture.cov,
    ...mixture.denoiser(schedule, label)(x, t),
  };
  const pair = mixture.pair(schedule, label), guided = kernels.classifier_free(pair, gamma);
  const steps = {
    ddim: kernels.ddim(guided, schedule),
    small: kernels.ddpm(guided, schedule), large: kernels.ddpm(guided, schedule, "large"),
    sde: kernels.reverse_sde(guided, schedule, rho),
  };
  const grad = (points, time) => mixture.noised(schedule.alpha(time), schedule.sigma(time)).class_gradient(points, label);
  const free = variance => kernels.ddpm(pair.uncond, schedule, variance);
  for (const variance of ["small", "large"]) steps[`shifted_${variance}`] = kernels.shift(free(variance), grad, gamma);
  steps.patched = kernels.shift(free("large"), grad, gamma, kernels.exact_coefficient(schedule));
  for (const [name, kernel] of Object.entries(steps)) Object.assign(found, named(name, kernel(x, t, s), kernel(x, t, 0)));
  for (const [name, solver] of Object.entries({ddim: steps.ddim, ddpm: steps.small, sde: steps.sde})) {
    found[`run_${name}`] = kernels.sample(solver, x, kernels.time_grid(noise.length), k => noise[k]).at(-1);
  }
  for (const [name, clean] of [["free", mixture], ["told", mixture.given(label)]]) {
    const step = clean.reverse(first, schedule, t, s);
    found[`${name}_mean`] = step.mean;
    found[`${name}_cov`] = step.cov;
    found[`${name}_log_prob`] = step.log_prob(x);
    found[`${name}_kl_moments`] = divergence.kl(step, gaussian(step.mean, step.cov));
    for (const variance of ["small", "large"]) {
      const {mean, var: v} = steps[`shifted_${variance}`](first, t, s);
      found[`${name}_kl_${variance}`] = divergence.kl(step, gaussian([...mean], [[v, 0], [0, v]]));
    }
  }
  const told = points => {
    const log = mixture.log_prob(points), sure = mixture.class_log_prob(points, label);
    return log.map((value, i) => value + gamma * sure[i]);
  };
  const target = new GridDensity(told, ...box, 120), later = target.noised(alpha, sigma);
  const sure = points => mixture.class_log_prob(points, label).map(Math.exp);
  const sureLater = points => noisy.class_log_prob(points, label).map(Math.exp);
  Object.assign(found, {
    target_mean: target.mean, target_spread: target.spread, target_mass: target.expectation(sure),
    later_mean: later.mean, later_spread: later.spread, later_mass: later.expectation(sureLater),
    levels: target.levels([0.5, 0.9, 0.99]).map(level => target.weights.reduce((sum, w) => sum + (w >= level ? w : 0), 0)),
    drawn_mean: moments(target.sample(20000, 7)).mean, drawn_spread: moments(target.sample(20000, 7)).spread,
    sliced: divergence.sliced_distance(Float64Array.from(x), found.run_ddim),
    noise: Object.values(moments(kernels.standard_normal(40000, 3))).flat(),
    axes: divergence.eigen(covs[0]), ...contours(target, told),
  });
  return found;
}

// Whether each contour is closed, and how far the density is from its level on it, at most, as a share of it.
function contours(grid, log_density) {
  let open = 0, off = 0;
  const heaviest = grid.weights.indexOf(Math.max(...grid.weights));
  const unit = grid.weights[heaviest] / Math.exp(log_density(grid.points.slice(2 * heaviest, 2 * heaviest + 2))[0]);
  for (const level of grid.levels([0.5, 0.9])) {
    for (const line of grid.contour(level)) {
      if (line.at(-1) !== line[0]) open++;
      for (const log of log_density(line.flat())) off = Math.max(off, Math.abs(unit * Math.exp(log) / level - 1));
    }
  }
  return {open, off};
}

const named = (name, step, last) => (
  {[`${name}_mean`]: step.mean, [`${name}_var`]: step.var, [`${name}_last`]: last.mean, [`${name}_last_var`]: last.var}
);

function moments(x) {
  const axis = i => x.filter((_, j) => j % 2 === i), average = values => values.reduce((a, b) => a + b, 0) / values.length;
  const mean = [0, 1].map(i => average(axis(i)));
  return {mean, spread: [0, 1].map(i => Math.sqrt(average(axis(i).map(v => (v - mean[i]) ** 2))))};
}

const plain = (_, value) => ArrayBuffer.isView(value) ? [...value] : value;
process.stdout.write(JSON.stringify(JSON.parse(readFileSync(0, "utf8")).map(answer), plain));
