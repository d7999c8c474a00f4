// The truth: Gaussian mixtures, as in difflesson/mixture.py, here in the plane. A mixture stays a mixture under noise,
// under conditioning on a label, and under one exact reverse step, so there is one class:
//
//     mixture.noised(alpha, sigma).given(label).score(x)  =  grad log p_t(x | label)
//
// Points are flat: N of them are 2 N numbers, x = [first point's x_1, x_2, second point's x_1, x_2, ...].

const LOG_TWO_PI = Math.log(2 * Math.PI);

export class GaussianMixture {
  // p(x) = sum_k weights[k] N(x; means[k], covs[k]), with a class label on each component.
  // weights: K numbers, summing to 1;  means: K pairs;  covs: K of [[a, b], [b, c]], positive definite;  labels: K integers.
  constructor(weights, means, covs, labels = weights.map((_, k) => k)) {
    const total = weights.reduce((sum, weight) => sum + weight, 0);
    if (!(weights.every(weight => weight >= 0) && Math.abs(total - 1) < 1e-5)) {
      throw new RangeError(`weights must be at least 0 and sum to 1, got ${weights}`);
    }
    Object.assign(this, {weights: weights.map(weight => weight / total), means, covs, labels});
    const count = weights.length;
    this.centre = Float64Array.from(means.flat()); // (2 K)
    this.precision = new Float64Array(3 * count); // the three numbers of each inverse covariance
    this.constant = new Float64Array(count); // log weight and log normaliser
    for (let k = 0; k < count; k++) {
      const [[a, b], [, c]] = covs[k], determinant = a * c - b * b;
      if (!(a > 0 && determinant > 0)) throw new RangeError(`covs must be positive definite, got ${covs[k]}`);
      this.precision.set([c / determinant, -b / determinant, a / determinant], 3 * k);
      this.constant[k] = Math.log(this.weights[k]) - LOG_TWO_PI - Math.log(determinant) / 2;
    }
    this.slopes = new Float64Array(2 * count); // what `visit` leaves: gradient of the log of each component at a point,
    this.shares = new Float64Array(count); // and p(k | x)
    this.logs = new Float64Array(count);
  }

  // The mixture of x_t = alpha x_0 + sigma eps: means alpha m, covariances alpha^2 C + sigma^2 I.
  noised(alpha, sigma) {
    const more = sigma ** 2, square = alpha ** 2;
    const covs = this.covs.map(([[a, b], [, c]]) => [[square * a + more, square * b], [square * b, square * c + more]]);
    return new GaussianMixture(this.weights, this.means.map(mean => mean.map(m => alpha * m)), covs, this.labels);
  }

  // The mixture of one class, p(x | label).
  given(label) {
    const kept = this.of(label), total = kept.reduce((sum, k) => sum + this.weights[k], 0);
    if (!(total > 0)) throw new RangeError(`label must have positive weight, ${label} has none`);
    const pick = list => kept.map(k => list[k]);
    return new GaussianMixture(
      pick(this.weights).map(weight => weight / total), pick(this.means), pick(this.covs), pick(this.labels),
    );
  }

  // Indices of the components of a class.
  of(label) { return [...this.labels.keys()].filter(k => this.labels[k] === label); }

  // Look at one point: leaves slopes and shares of the components, and returns log p(x).
  visit(x_1, x_2) {
    const {centre, precision, constant, slopes, shares, logs} = this, count = constant.length;
    let top = -Infinity, sum = 0;
    for (let k = 0; k < count; k++) {
      const d_1 = centre[2 * k] - x_1, d_2 = centre[2 * k + 1] - x_2;
      const g_1 = precision[3 * k] * d_1 + precision[3 * k + 1] * d_2;
      const g_2 = precision[3 * k + 1] * d_1 + precision[3 * k + 2] * d_2;
      slopes[2 * k] = g_1;
      slopes[2 * k + 1] = g_2;
      logs[k] = constant[k] - (d_1 * g_1 + d_2 * g_2) / 2;
      if (logs[k] > top) top = logs[k];
    }
    for (let k = 0; k < count; k++) sum += shares[k] = Math.exp(logs[k] - top);
    for (let k = 0; k < count; k++) shares[k] /= sum;
    return top + Math.log(sum);
  }

  // log p(x), N numbers.
  log_prob(x) {
    const found = new Float64Array(x.length / 2);
    for (let i = 0; i < found.length; i++) found[i] = this.visit(x[2 * i], x[2 * i + 1]);
    return found;
  }

  // grad log p(x) = sum_k p(k | x) C_k^{-1} (m_k - x), 2 N numbers.
  score(x) {
    const found = new Float64Array(x.length), {slopes, shares} = this, count = shares.length;
    for (let i = 0; i < x.length; i += 2) {
      this.visit(x[i], x[i + 1]);
      for (let k = 0; k < count; k++) {
        found[i] += shares[k] * slopes[2 * k];
        found[i + 1] += shares[k] * slopes[2 * k + 1];
      }
    }
    return found;
  }

  // Second derivatives of log p at one point, [[a, b], [b, c]].
  hessian([x_1, x_2]) {
    const [mean_1, mean_2] = this.score([x_1, x_2]), {slopes, shares, precision} = this;
    let a = 0, b = 0, c = 0;
    shares.forEach((share, k) => {
      const g_1 = slopes[2 * k] - mean_1, g_2 = slopes[2 * k + 1] - mean_2;
      a += share * (g_1 * g_1 - precision[3 * k]);
      b += share * (g_1 * g_2 - precision[3 * k + 1]);
      c += share * (g_2 * g_2 - precision[3 * k + 2]);
    });
    return [[a, b], [b, c]];
  }

  // log p(label | x), N numbers.
  class_log_prob(x, label) {
    const kept = this.of(label), found = new Float64Array(x.length / 2), {logs} = this;
    for (let i = 0; i < found.length; i++) {
      const all = this.visit(x[2 * i], x[2 * i + 1]);
      let top = -Infinity, sum = 0;
      for (const k of kept) if (logs[k] > top) top = logs[k];
      for (const k of kept) sum += Math.exp(logs[k] - top);
      found[i] = top - all + Math.log(sum);
    }
    return found;
  }

  // grad log p(label | x) = grad log p(x | label) - grad log p(x), 2 N numbers.
  class_gradient(x, label) {
    const all = this.score(x);
    return this.given(label).score(x).map((slope, i) => slope - all[i]);
  }

  // The exact reverse kernel p(x_s | x_t = x) of one point x, again a mixture. With V = alpha^2 C + sigma^2 I at s and t,
  // component k has weight p(k | x), mean alpha_s m + alpha_{t|s} V_s V_t^{-1} (x - alpha_t m), and
  // covariance sigma_{t|s}^2 V_s V_t^{-1}.
  reverse(x, schedule, t, s) {
    const [alpha_ts, sigma_ts] = schedule.transition(t, s);
    const at_t = this.noised(schedule.alpha(t), schedule.sigma(t));
    const at_s = this.noised(schedule.alpha(s), schedule.sigma(s));
    at_t.visit(...x);
    const means = [], covs = [];
    at_t.shares.forEach((_, k) => {
      const [[a, b], [, c]] = at_s.covs[k], [g_1, g_2] = at_t.slopes.subarray(2 * k, 2 * k + 2);
      const [u, v, w] = at_t.precision.subarray(3 * k, 3 * k + 3), square = sigma_ts ** 2;
      const off = square * (a * v + b * w); // V_s and V_t have the same axes, so their quotient is symmetric
      covs.push([[square * (a * u + b * v), off], [off, square * (b * v + c * w)]]);
      const [m_1, m_2] = at_s.means[k];
      means.push([m_1 - alpha_ts * (a * g_1 + b * g_2), m_2 - alpha_ts * (b * g_1 + c * g_2)]);
    });
    return new GaussianMixture([...at_t.shares], means, covs, this.labels);
  }

  // Mean, a pair.
  get mean() { return [0, 1].map(i => this.weights.reduce((sum, weight, k) => sum + weight * this.means[k][i], 0)); }

  // Covariance, [[a, b], [b, c]].
  get cov() {
    const mean = this.mean;
    const entry = (i, j) => this.weights.reduce((sum, weight, k) => {
      const away = (this.means[k][i] - mean[i]) * (this.means[k][j] - mean[j]);
      return sum + weight * (this.covs[k][i][j] + away);
    }, 0);
    return [[entry(0, 0), entry(0, 1)], [entry(0, 1), entry(1, 1)]];
  }

  // The ideal denoiser, given the label if there is one: (x, t) -> {x0, eps}, with x = alpha x0 + sigma eps.
  denoiser(schedule, label = null) {
    const clean = label === null ? this : this.given(label);
    return (x, t) => {
      const alpha = schedule.alpha(t), sigma = schedule.sigma(t), score = clean.noised(alpha, sigma).score(x);
      return {
        x0: score.map((slope, i) => (x[i] + sigma ** 2 * slope) / alpha), // Tweedie's formula
        eps: score.map(slope => -sigma * slope),
      };
    };
  }

  // The ideal conditional and unconditional denoisers.
  pair(schedule, label) { return {cond: this.denoiser(schedule, label), uncond: this.denoiser(schedule)}; }
}

// N(mean, cov), a mixture of one component.
export const gaussian = (mean, cov) => new GaussianMixture([1], [mean], [cov], [0]);

// The mixture of the chapters: four blobs with full covariances, the left two class 0, the others 1.
export const four_blobs = () => new GaussianMixture(
  [0.30, 0.30, 0.25, 0.15],
  [[-2, -0.5], [-0.2, 1.4], [0.4, -0.6], [2.4, 1]],
  [[[0.5, 0.2], [0.2, 0.4]], [[0.4, -0.2], [-0.2, 0.3]], [[0.4, 0.1], [0.1, 0.5]], [[0.3, -0.1], [-0.1, 0.3]]],
  [0, 0, 1, 1],
);
