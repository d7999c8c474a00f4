// The truth where there is no closed form: a density in the plane, known up to a constant, summed over a grid, as in
// difflesson/grid.py. What guidance is said to sample is of this kind, p(x) p(y | x)^gamma / Z.

import { uniform } from "./kernels.mjs";

export class GridDensity {
  // log_density: 2 N numbers -> N numbers, the logarithm up to a constant;  low, high: corners of the box, pairs;
  // cells: how many along each axis. The midpoint rule: accurate once the cells are smaller than the details.
  constructor(log_density, low, high, cells = 120) {
    this.lay(low, high, cells);
    const log = log_density(this.points);
    let top = -Infinity;
    for (const value of log) if (value > top) top = value;
    this.weights = this.normalised(log.map(value => Math.exp(value - top)));
  }

  // Midpoints of the cells, (2 cells^2): x_1 runs fastest.
  lay(low, high, cells) {
    const cell = [0, 1].map(i => (high[i] - low[i]) / cells), points = new Float64Array(2 * cells * cells);
    for (let j = 0; j < cells; j++) {
      for (let i = 0; i < cells; i++) {
        points[2 * (j * cells + i)] = low[0] + (i + 0.5) * cell[0];
        points[2 * (j * cells + i) + 1] = low[1] + (j + 0.5) * cell[1];
      }
    }
    Object.assign(this, {low, high, cells, cell, points});
  }

  normalised(weights) {
    const sum = weights.reduce((total, weight) => total + weight, 0);
    return weights.map(weight => weight / sum);
  }

  // The density of alpha x + sigma eps for x of this density: its shares spread by a bell along one axis, then the other.
  noised(alpha, sigma) {
    const {cells, low, high, cell} = this, noised = Object.create(GridDensity.prototype);
    noised.lay(low, high, cells);
    const bells = [0, 1].map(axis => { // bells[axis][to * cells + from]
      const bell = new Float64Array(cells * cells), place = i => low[axis] + (i + 0.5) * cell[axis];
      for (let to = 0; to < cells; to++) {
        for (let from = 0; from < cells; from++) {
          bell[to * cells + from] = Math.exp(-(((place(to) - alpha * place(from)) / sigma) ** 2) / 2);
        }
      }
      return bell;
    });
    const along = (weights, bell) => { // spreads the fast axis and turns the page
      const found = new Float64Array(cells * cells);
      for (let row = 0; row < cells; row++) {
        for (let to = 0; to < cells; to++) {
          let sum = 0;
          for (let from = 0; from < cells; from++) sum += weights[row * cells + from] * bell[to * cells + from];
          found[to * cells + row] = sum;
        }
      }
      return found;
    };
    noised.weights = noised.normalised(along(along(this.weights, bells[0]), bells[1]));
    return noised;
  }

  // E[f(x)] for f: 2 N numbers -> N numbers.
  expectation(f) { return f(this.points).reduce((sum, value, i) => sum + this.weights[i] * value, 0); }

  // Mean, a pair.
  get mean() { return [0, 1].map(axis => this.weights.reduce((sum, weight, i) => sum + weight * this.points[2 * i + axis], 0)); }

  // Standard deviation of each coordinate, a pair.
  get spread() {
    const mean = this.mean, away = (i, axis) => this.points[2 * i + axis] - mean[axis];
    return [0, 1].map(axis => Math.sqrt(this.weights.reduce((sum, weight, i) => sum + weight * away(i, axis) ** 2, 0)));
  }

  // Draw count points, 2 count numbers, ordered by cell: a cell by its share, a place in it at random.
  sample(count, seed) {
    const draw = uniform(seed), found = new Float64Array(2 * count);
    const wanted = Float64Array.from({length: count}, draw).sort();
    for (let n = 0, i = 0, below = 0; n < count; n++) {
      while (i + 1 < this.weights.length && below + this.weights[i] < wanted[n]) below += this.weights[i++];
      for (const axis of [0, 1]) found[2 * n + axis] = this.points[2 * i + axis] + (draw() - 0.5) * this.cell[axis];
    }
    return found;
  }

  // The densities whose contours hold these shares of the mass, for example [0.5, 0.9, 0.99].
  levels(shares) {
    const ranked = this.weights.filter(weight => weight > 1e-9).sort().reverse(), found = [];
    let mass = 0, i = 0;
    for (const share of shares) {
      while (mass + ranked[i] < share && i + 1 < ranked.length) mass += ranked[i++];
      found.push(ranked[i]);
    }
    return found;
  }

  // The lines on which the density is `level`, each a list of pairs; a closed one ends where it begins. Between the
  // midpoints of neighbouring cells the density is taken to be straight.
  contour(level) {
    const {cells, weights, points} = this, ends = new Map(); // crossed edge -> the one or two edges it is joined with
    const join = (one, other) => {
      ends.set(one, [...ends.get(one) ?? [], other]);
      ends.set(other, [...ends.get(other) ?? [], one]);
    };
    for (let j = 0; j + 1 < cells; j++) {
      for (let i = 0; i + 1 < cells; i++) {
        const a = j * cells + i, inside = weights[a] >= level; // most cells are not crossed, and are left at once
        if ((weights[a + 1] >= level) === inside && (weights[a + cells] >= level) === inside
          && (weights[a + cells + 1] >= level) === inside) continue;
        const corners = [weights[a], weights[a + 1], weights[a + cells + 1], weights[a + cells]];
        const edges = [2 * a, 2 * (a + 1) + 1, 2 * (a + cells), 2 * a + 1];
        const crossed = edges.filter((_, side) => (corners[side] >= level) !== (corners[(side + 1) % 4] >= level));
        join(crossed[0], crossed[1]);
        if (crossed.length === 4) join(crossed[2], crossed[3]);
      }
    }
    const place = edge => { // where the level is reached on an edge, along x_1 (even) or x_2 (odd)
      const from = edge >> 1, to = from + (edge & 1 ? cells : 1);
      const share = (level - weights[from]) / (weights[to] - weights[from]);
      return [0, 1].map(axis => points[2 * from + axis] + share * (points[2 * to + axis] - points[2 * from + axis]));
    };
    const lines = [], left = new Set(ends.keys());
    const open = [...ends.keys()].filter(edge => ends.get(edge).length === 1);
    for (const start of [...open, ...ends.keys()]) {
      if (!left.has(start)) continue;
      const line = [];
      for (let edge = start; edge !== undefined; edge = ends.get(edge).find(next => left.has(next))) {
        left.delete(edge);
        line.push(place(edge));
      }
      if (ends.get(start).length === 2) line.push(line[0]);
      lines.push(line);
    }
    return lines;
  }
}
