// What is computed for "Turn the knob": the truth at time t, beside which the dots are looked at.

import { sliced_distance } from "./divergence.mjs";
import { GridDensity } from "./grid.mjs";
import { standard_normal } from "./kernels.mjs";
import { Cloud } from "./cloud.mjs";
import { mixture_of } from "./knob_state.mjs";

const CELLS = 80;
const noises = {}; // standard normal numbers by seed

export class Truth {
  // Of a mixture, a class and a scale. The intended density is p(x) p(y | x)^gamma / Z.
  constructor({gamma, label, blobs}, schedule) {
    const mixture = mixture_of(blobs);
    Object.assign(this, {mixture, label, schedule, box: around(mixture)});
    this.clean = new GridDensity(x => {
      const log = mixture.log_prob(x), sure = mixture.class_log_prob(x, label);
      return log.map((value, i) => value + gamma * sure[i]);
    }, ...this.box, CELLS);
    this.other = mixture.labels.find(one => one !== label); // undefined where all are of the class
  }

  // The same with the noise of time t: mixtures `all`, `class`, `other`, and `told`, the intended density.
  at(t) {
    const alpha = this.schedule.alpha(t), sigma = this.schedule.sigma(t), all = this.mixture.noised(alpha, sigma);
    Object.assign(this, {alpha, sigma, all, class: all.given(this.label), drawn: {}});
    this.told = t > 0 ? this.clean.noised(alpha, sigma) : this.clean;
    return this;
  }

  // Density "told", "all", "class" or "other" on the grid; null where there is no other class.
  density(name) {
    if (name === "told") return this.told;
    if (name === "other" && this.other === undefined) return null;
    const mixture = name === "other" ? this.all.given(this.other) : this[name];
    return this.drawn[name] ??= new GridDensity(x => mixture.log_prob(x), ...this.box, CELLS);
  }

  // p(label | x) at points.
  sure(x) { return this.all.class_log_prob(x, this.label).map(Math.exp); }

  // Draws from the intended density, the same number at each call.
  draws(count, seed) {
    const noise = noises[seed] ??= standard_normal(2 * count, seed + 100);
    return this.drawn[seed] ??= this.clean.sample(count, seed).map((value, i) => this.alpha * value + this.sigma * noise[i]);
  }

  // What the dots are, with standard errors, and what they were to be: name -> [[value, error], intended]. Of the distance
  // the second is that of two sets of draws from the intended density: what chance alone gives.
  read_off(points) {
    const count = points.length / 2, [one, two] = Cloud.moments(points), {mean, spread} = this.told, sure = this.sure(points);
    const average = list => list.reduce((sum, value) => sum + value, 0) / list.length;
    const mass = average(sure), error = Math.sqrt(average(sure.map(p => (p - mass) ** 2)) / count);
    const intended = this.draws(count, 1);
    this.drawn.chance ??= sliced_distance(this.draws(count, 2), intended);
    return {
      "mean x₁": [one.mean, mean[0]],
      "mean x₂": [two.mean, mean[1]],
      "spread x₁": [one.spread, spread[0]],
      "spread x₂": [two.spread, spread[1]],
      "class mass": [[mass, error], this.told.expectation(x => this.sure(x))],
      "distance": [[sliced_distance(points, intended)], this.drawn.chance],
    };
  }
}

// A box that holds a mixture, also under noise.
function around({means, covs}) {
  const far = (axis, sign) => Math.max(4.5, ...means.map((mean, k) => sign * mean[axis] + 5 * Math.sqrt(covs[k][axis][axis])));
  return [-1, 1].map(sign => [0, 1].map(axis => sign * far(axis, sign)));
}
