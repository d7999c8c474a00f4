// The state of "Turn the knob", and its form in the address.

import { eigen } from "./divergence.mjs";
import { four_blobs, GaussianMixture } from "./mixture.mjs";
import { SAMPLERS } from "./cloud.mjs";
import { within } from "./controls.mjs";

export const STEPS = [25, 50, 100, 200];
export const MOST = 8; // the largest gamma
export const LAYERS = { // what the map can show: text, and name of its colour
  dots: ["dots", ""],
  told: ["intended", "truth"],
  other: ["the other class", "other"],
  all: ["density of all", "unconditional"],
  class: ["density of the class", "conditional"],
  arrows_u: ["score, no label", "unconditional"],
  arrows_c: ["score, label", "conditional"],
  arrows_g: ["score, guided", "guided"],
};

export function of_the_chapter() {
  const {weights, means, covs, labels} = four_blobs();
  return weights.map((weight, k) => ({weight, mean: means[k], cov: covs[k], label: labels[k]}));
}

export const first = () => ({
  gamma: 3, t: 0, label: 1, sampler: "ddim", steps: 50, layers: new Set(["dots", "told", "other"]), blobs: of_the_chapter(),
});

export function mixture_of(blobs) {
  const total = blobs.reduce((sum, {weight}) => sum + weight, 0);
  const [means, covs, labels] = ["mean", "cov", "label"].map(part => blobs.map(blob => blob[part]));
  return new GaussianMixture(blobs.map(({weight}) => weight / total), means, covs, labels);
}

const row = ({weight, mean, cov: [[a, b], [, c]], label}) => [weight, ...mean, a, b, c, label].map(v => +v.toPrecision(4));
const as_text = blobs => blobs.map(row).map(values => values.join(",")).join(";");

export function to_fields({gamma, t, label, sampler, steps, layers, blobs}) {
  const fields = {gamma: +gamma.toFixed(2), t: +t.toFixed(2), class: label, sampler, steps, show: [...layers].join(",")};
  return as_text(blobs) === as_text(of_the_chapter()) ? fields : {...fields, blobs: as_text(blobs)};
}

// The state that an address names; what it does not name is as at first.  Throws: RangeError where it names none.
export function from_fields(fields) {
  const state = first();
  const read = (name, least, most, otherwise) => within(name, fields.get(name) ?? otherwise, least, most);
  state.gamma = read("gamma", 0, MOST, state.gamma);
  state.t = read("t", 0, 1, state.t);
  state.label = read("class", 0, 1, state.label);
  state.steps = read("steps", 1, 1000, state.steps);
  state.sampler = fields.get("sampler") ?? state.sampler;
  if (!STEPS.includes(state.steps)) throw new RangeError(`steps must be one of ${STEPS}`);
  if (!Object.hasOwn(SAMPLERS, state.sampler)) throw new RangeError(`sampler must be one of ${Object.keys(SAMPLERS)}`);
  if (fields.has("show")) state.layers = new Set(fields.get("show").split(",").filter(name => Object.hasOwn(LAYERS, name)));
  if (fields.has("blobs")) state.blobs = fields.get("blobs").split(";").map(blob_of);
  if (state.blobs.length !== of_the_chapter().length) throw new RangeError("blobs must be four");
  mixture_of(state.blobs).given(state.label); // throws where there is none
  return state;
}

function blob_of(text) {
  const [weight, x, y, a, b, c, label] = text.split(",").map(value => within("blobs", value, -10, 10));
  return {
    weight: within("weight", weight, 0.02, 1), mean: [x, y], cov: [[a, b], [b, c]], label: Number(within("label", label, 0, 1) > 0),
  };
}

// A covariance of which one axis ends at a place; the other keeps its length, and turns with it.
export function with_axis({mean, cov}, end, at) {
  const lengths = eigen(cov).map(axis => Math.hypot(...axis)), along = [at[0] - mean[0], at[1] - mean[1]];
  lengths[end] = Math.min(Math.max(Math.hypot(...along), 0.2), 1.5);
  const angle = Math.atan2(along[1], along[0]), direction = [Math.cos(angle), Math.sin(angle)];
  const across = [-direction[1], direction[0]], entry = (i, j) => lengths[end] ** 2 * direction[i] * direction[j]
    + lengths[1 - end] ** 2 * across[i] * across[j];
  return [[entry(0, 0), entry(0, 1)], [entry(0, 1), entry(1, 1)]];
}
