// Noise schedules, as in difflesson/schedule.py: x_t = alpha x_0 + sigma eps, with alpha = exp(-B / 2) and
// sigma^2 = 1 - exp(-B) of one increasing function, the integrated noise rate B(t). Times run from 0, data, to 1, noise.

class Schedule {
  // Both are functions of a time in [0, 1]: B(t), and its derivative beta(t).
  constructor(integrated_beta, beta) {
    this.integrated_beta = t => integrated_beta(as_time(t));
    this.beta = t => beta(as_time(t));
  }

  alpha(t) { return Math.exp(-this.integrated_beta(t) / 2); }

  sigma(t) { return Math.sqrt(-Math.expm1(-this.integrated_beta(t))); }

  // [alpha_{t|s}, sigma_{t|s}] of x_t = alpha_{t|s} x_s + sigma_{t|s} eps; needs s <= t.
  transition(t, s) {
    if (!(s <= t)) throw new RangeError(`s must not exceed t, got s=${s}, t=${t}`);
    const b = this.integrated_beta(t) - this.integrated_beta(s);
    return [Math.exp(-b / 2), Math.sqrt(-Math.expm1(-b))];
  }
}

function as_time(t) {
  if (!(t >= 0 && t <= 1)) throw new RangeError(`t must lie in [0, 1] (0 is data, 1 is noise), got ${t}`);
  return t;
}

// beta(t) = beta_min + t (beta_max - beta_min): the continuous limit of DDPM's linear table.
export function vp_linear(beta_min = 0.1, beta_max = 20) {
  const slope = beta_max - beta_min;
  return new Schedule(t => t * (beta_min + t * slope / 2), t => beta_min + t * slope);
}

// The schedule of a discrete DDPM, a table of noise variances, joined by constant rates in between. A node of the table
// belongs to the interval before it, also where rounding puts it a little beyond.
export function from_betas(betas) {
  const steps = betas.length, table = [0];
  for (const beta of betas) table.push(table.at(-1) - Math.log1p(-beta));
  const cell = t => Math.min(Math.max(Math.ceil(t * steps - 1e-9) - 1, 0), steps - 1);
  return new Schedule(
    t => { const i = cell(t); return table[i] + (t * steps - i) * (table[i + 1] - table[i]); },
    t => { const i = cell(t); return (table[i + 1] - table[i]) * steps; },
  );
}

// The table of the original DDPM, linear from 1e-4 to 0.02 in 1000 steps.
export function ddpm_table() {
  return from_betas(Array.from({length: 1000}, (_, k) => 1e-4 + (0.02 - 1e-4) * k / 999));
}
