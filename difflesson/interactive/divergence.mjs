// How far one step is from another, in nats, by Gauss-Hermite quadrature, as in difflesson/divergence.py; and how far
// samples are from samples.

// The positive nodes and their weights for N(0, 1), order 12: numpy.polynomial.hermite_e.hermegauss(12), weights summing
// to one. Exact for polynomials of degree below 24.
const POSITIVE = [
  [0.44440300194413895, 0.32166436151282995],
  [1.3403751971516167, 0.14696704804532995],
  [2.259464451000799, 0.029116687912364173],
  [3.2237098287700974, 0.0022033806875332],
  [4.2718258479322815, 4.837184922590644e-05],
  [5.500901704467748, 1.4999271676371623e-07],
];
const NODES = POSITIVE.flatMap(([node, weight]) => [[node, weight], [-node, weight]]);

// KL(step || other) = E[log step - log other] of two mixtures in the plane. Below a millionth of a nat it is summed as
// E[r - 1 - log r], r = other / step, whose terms are all positive, if the nodes see all of `other` (E[r] = 1).
export function kl(step, other) {
  let direct = 0, unseen = 0, small = 0;
  step.weights.forEach((share, k) => {
    const [m_1, m_2] = step.means[k], [u, v] = eigen(step.covs[k]);
    for (const [z_1, w_1] of NODES) {
      for (const [z_2, w_2] of NODES) {
        const x_1 = m_1 + u[0] * z_1 + v[0] * z_2, x_2 = m_2 + u[1] * z_1 + v[1] * z_2;
        const log_ratio = other.visit(x_1, x_2) - step.visit(x_1, x_2), weight = share * w_1 * w_2;
        const excess = Math.expm1(log_ratio); // r - 1
        direct -= weight * log_ratio;
        unseen += weight * excess;
        small += weight * (excess - log_ratio);
      }
    }
  });
  return direct < 1e-6 && Math.abs(unseen) < 1e-4 * Math.abs(direct) + 1e-13 ? small : direct;
}

// The axes of an ellipse: eigenvectors of a covariance [[a, b], [b, c]], each times its standard deviation, the longer last.
export function eigen([[a, b], [, c]]) {
  const middle = (a + c) / 2, half = Math.hypot((a - c) / 2, b), angle = Math.atan2(b, (a - c) / 2) / 2;
  const long = Math.sqrt(middle + half), short = Math.sqrt(Math.max((a * c - b * b) / (middle + half), 0));
  const cos = Math.cos(angle), sin = Math.sin(angle);
  return [[-short * sin, short * cos], [long * cos, long * sin]];
}

// The distance of two clouds of equally many points (2 N numbers each): how far apart their sorted shadows are on average,
// averaged over directions around the circle ("sliced Wasserstein distance", in the units of the plane).
export function sliced_distance(x, y, directions = 8) {
  let sum = 0;
  for (let d = 0; d < directions; d++) {
    const cos = Math.cos(Math.PI * d / directions), sin = Math.sin(Math.PI * d / directions);
    const [one, two] = [x, y].map(points => {
      const shadow = new Float64Array(points.length / 2);
      for (let i = 0; i < shadow.length; i++) shadow[i] = cos * points[2 * i] + sin * points[2 * i + 1];
      return shadow.sort();
    });
    for (let i = 0; i < one.length; i++) sum += Math.abs(one[i] - two[i]);
  }
  return sum / directions / (x.length / 2);
}
