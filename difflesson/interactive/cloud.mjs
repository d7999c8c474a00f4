// A cloud of guided samples that is drawn again as the setting changes, a batch of points at a time, so that no drag waits
// for it. Each point keeps its own start and its own noises: what moves on the screen is what the setting changes.

import { classifier_free, ddim, ddpm, reverse_sde, sample, standard_normal, time_grid } from "./kernels.mjs";

export const SAMPLERS = {
  ddim: {text: "DDIM (no noise)", kernel: ddim},
  ddpm: {text: "DDPM", kernel: ddpm},
  more: {text: "more noise (ρ = 2)", kernel: (denoiser, schedule) => reverse_sde(denoiser, schedule, 2)},
};
const BATCH = 100;

export class Cloud {
  constructor(count) {
    Object.assign(this, {count, stale: 0, next: 0, noises: [], states: [], start: standard_normal(2 * count, 1)});
  }

  // From now on points are drawn like this; until they have been, the old ones stay.
  set({mixture, schedule, label, gamma, sampler, steps}) {
    this.kernel = SAMPLERS[sampler].kernel(classifier_free(mixture.pair(schedule, label), gamma), schedule);
    this.times = time_grid(steps);
    if (this.states.length !== steps + 1) this.states = this.times.map(() => this.start.slice());
    this.stale = this.count / BATCH;
  }

  // What step k draws for all points.
  noise(k) { return this.noises[k] ??= standard_normal(2 * this.count, 1000 + k); }

  // Draw batches for so many milliseconds. Returns whether some are left.
  work(milliseconds) {
    const until = performance.now() + milliseconds;
    while (this.stale > 0 && performance.now() < until) {
      const [from, to] = [2 * BATCH * this.next, 2 * BATCH * (this.next + 1)];
      const states = sample(this.kernel, this.start.slice(from, to), this.times, k => this.noise(k).subarray(from, to));
      states.forEach((state, k) => this.states[k].set(state, from));
      this.next = (this.next + 1) % (this.count / BATCH);
      this.stale--;
    }
    return this.stale > 0;
  }

  // The points at the time of the grid that is nearest to t.
  at(t) { return this.states[Math.round((1 - t) * (this.states.length - 1))]; }

  // Mean and standard deviation of each coordinate of points, each with its standard error.
  static moments(points) {
    return [0, 1].map(axis => {
      const count = points.length / 2, central = [0, 0, 0, 0, 0];
      for (let i = axis; i < points.length; i += 2) central[1] += points[i] / count;
      for (let i = axis; i < points.length; i += 2) {
        const square = (points[i] - central[1]) ** 2;
        central[2] += square / count;
        central[4] += square ** 2 / count;
      }
      const spread = Math.sqrt(central[2]);
      const errors = [spread, Math.sqrt(central[4] / central[2] - central[2]) / 2].map(value => value / Math.sqrt(count));
      return {mean: [central[1], errors[0]], spread: [spread, errors[1]]};
    });
  }
}
