// "Turn the knob": guided samples of a mixture in the plane, beside what guidance is said to sample.

import { eigen } from "./divergence.mjs";
import { vp_linear } from "./schedule.mjs";
import { Plot } from "./plot.mjs";
import { Cloud, SAMPLERS } from "./cloud.mjs";
import { first, from_fields, LAYERS, MOST, of_the_chapter, STEPS, to_fields, with_axis } from "./knob_state.mjs";
import { Truth } from "./knob_truth.mjs";
import { address, announcer, button, choice, element, handle, painter, slider, ticks } from "./controls.mjs";

const BOX = [-4.75, 5.25, -3.75, 3.75], COUNT = 2000, FIELD = 25;
const schedule = vp_linear();

const colour_of = gamma => (gamma === 0 ? "unconditional" : gamma === 1 ? "conditional" : "guided");

function draw_map(plot, {layers, gamma}, truth, points, selected) {
  plot.begin();
  draw_arrows(plot, layers, gamma, truth);
  if (layers.has("dots")) plot.dots(points, colour_of(gamma));
  for (const name of ["all", "class", "other"]) {
    const density = layers.has(name) && truth.density(name);
    if (!density) continue;
    plot.line(LAYERS[name][1], [], 1.2);
    plot.contours(density);
  }
  if (layers.has("told")) {
    plot.line("truth", [5, 3], 1.8);
    plot.contours(truth.told);
  }
  if (selected !== null) {
    plot.line("text", [2, 3], 1);
    plot.ellipses(truth.mixture.means[selected], truth.mixture.covs[selected], [1]);
  }
}

// The exact scores at FIELD x FIELD places: without the label, with it, and guided.
function draw_arrows(plot, layers, gamma, truth) {
  if (!["arrows_u", "arrows_c", "arrows_g"].some(name => layers.has(name))) return;
  const places = new Float64Array(2 * FIELD * FIELD), gaps = [0, 1].map(i => (BOX[2 * i + 1] - BOX[2 * i]) / FIELD);
  for (let i = 0; i < FIELD * FIELD; i++) {
    places[2 * i] = BOX[0] + (i % FIELD + 0.5) * gaps[0];
    places[2 * i + 1] = BOX[2] + (Math.floor(i / FIELD) + 0.5) * gaps[1];
  }
  const free = truth.all.score(places), told = truth.class.score(places);
  const fields = {arrows_u: free, arrows_c: told, arrows_g: free.map((value, i) => value + gamma * (told[i] - value))};
  for (const [name, field] of Object.entries(fields)) {
    if (layers.has(name)) plot.arrows(places, field, LAYERS[name][1], 1.2 * gaps[0]);
  }
}

class Knob {
  constructor(place) {
    this.place = place;
    this.link = address("turn-the-knob");
    this.state = first();
    this.selected = null; // number of a blob
    this.cloud = new Cloud(COUNT);
    this.costs = {}; // milliseconds, for tests
    this.canvas = element("canvas", {attributes: {role: "img"}});
    this.stage = element("div", {className: "stage"}, this.canvas);
    this.plot = new Plot(this.canvas, BOX);
    this.paint = painter(now => this.frame(now));
    this.make_controls();
    this.make_blobs();
    this.lay_out();
    if (this.from_address()) place.scrollIntoView();
    else this.follow();
    window.addEventListener("hashchange", () => this.from_address());
    new ResizeObserver(this.paint).observe(this.stage);
  }

  make_controls() {
    const set = change => this.set(change), classes = {0: "class 0", 1: "class 1"};
    const samplers = Object.fromEntries(Object.entries(SAMPLERS).map(([name, {text}]) => [name, text]));
    this.controls = {
      gamma: slider({
        name: "guidance scale γ", min: 0, max: MOST, step: 0.1, text: value => value.toFixed(1), moved: gamma => set({gamma}),
      }),
      t: slider({name: "time t", min: 0, max: 1, step: 0.02, text: t => t.toFixed(2), moved: t => set({t})}),
      label: choice({name: "ask for", options: classes, chosen: label => set({label: Number(label)})}),
      sampler: choice({name: "sampler", options: samplers, chosen: sampler => set({sampler})}),
      steps: choice({
        name: "steps", options: Object.fromEntries(STEPS.map(n => [n, n])), chosen: steps => set({steps: Number(steps)}),
      }),
      layers: ticks({name: "show", options: LAYERS, ticked: (name, on) => {
        this.state.layers[on ? "add" : "delete"](name);
        set({});
      }}),
    };
    this.play = button("From noise to data", () => this.begin_or_stop());
    this.reset = button("The mixture of the chapter", () => { this.selected = null; set({blobs: of_the_chapter()}); });
    this.restart = button("Everything as at first", () => { this.selected = null; set(first()); });
  }

  make_blobs() {
    const {plot, stage} = this;
    const keep = ([x, y]) => [Math.min(Math.max(x, BOX[0]), BOX[1]), Math.min(Math.max(y, BOX[2]), BOX[3])];
    this.handles = this.state.blobs.map((_, k) => handle({
      plot, stage, name: `blob ${k + 1}`, className: "centre", get: () => this.state.blobs[k].mean,
      moved: mean => this.change_blob({mean: keep(mean)}),
      grabbed: () => { this.selected = k; this.paint(); },
    }));
    for (const [end, name] of [[1, "long axis of the blob"], [0, "short axis of the blob"]]) {
      this.handles.push(handle({
        plot, stage, name, className: "end", moved: at => this.change_blob({cov: with_axis(this.blob, end, at)}),
        get: () => (this.blob ? eigen(this.blob.cov)[end].map((far, i) => this.blob.mean[i] + far) : null),
      }));
    }
    this.weight = slider({
      name: "weight", min: 0.02, max: 1, step: 0.01, moved: weight => this.change_blob({weight}),
      text: () => `${(100 * this.truth.mixture.weights[this.selected]).toFixed(0)} %`,
    });
    this.belongs = choice({
      name: "belongs to", options: {0: "class 0", 1: "class 1"}, chosen: label => this.relabel(Number(label)),
    });
    this.panel = element("fieldset", {className: "blob"}, element("legend"), this.weight, this.belongs);
  }

  lay_out() {
    const {gamma, t, label, sampler, steps, layers} = this.controls;
    const column = name => element("th", {scope: "col"}, name);
    this.rows = element("tbody");
    this.note = element("p", {className: "note"});
    this.aloud = announcer();
    const table = element("table", {}, element("thead", {}, element("tr", {}, element("td"), column("dots"), column("intended"))));
    table.append(this.rows);
    this.place.append(
      element("div", {className: "board"}, element("div", {className: "map"}, gamma, this.stage),
        element("div", {className: "beside"}, table, this.note, sampler, label)),
      element("div", {className: "more"}, element("div", {className: "line"}, t, this.play), steps, layers, this.panel,
        element("p", {className: "line"}, this.reset, this.restart)),
      this.aloud,
    );
  }

  get blob() { return this.state.blobs[this.selected]; }

  set(change) {
    this.refused = "";
    Object.assign(this.state, change);
    this.link.write(to_fields(this.state));
    this.follow();
  }

  change_blob(change) { this.set({blobs: this.state.blobs.map(blob => (blob === this.blob ? {...blob, ...change} : blob))}); }

  relabel(label) {
    const others = this.state.blobs.filter(blob => blob !== this.blob);
    if (others.some(blob => blob.label !== label)) return this.change_blob({label});
    this.refused = `One blob must stay in class ${1 - label}.`;
    this.aloud.say(this.refused);
    this.paint();
  }

  // Compute what follows from the state, and begin to draw dots where they change.
  follow() {
    const {gamma, t, label, blobs, sampler, steps} = this.state, before = performance.now(), changed = name => (
      !this.last || this.last[name] !== this.state[name]
    );
    const truth = ["gamma", "label", "blobs"].some(changed);
    if (truth) this.truth = new Truth({gamma, label, blobs}, schedule);
    this.truth.at(t);
    if (truth || ["sampler", "steps"].some(changed)) {
      this.cloud.set({mixture: this.truth.mixture, schedule, label, gamma, sampler, steps});
      this.costs.begun = before;
    }
    this.last = {...this.state};
    this.costs.follow = performance.now() - before;
    this.paint();
  }

  frame(now) {
    const begun = performance.now();
    if (this.playing && now - this.moved_at > 40) {
      this.moved_at = now;
      this.state.t = Math.max(0, Math.round(50 * this.state.t - 1) / 50);
      if (this.state.t === 0) this.begin_or_stop();
      this.follow();
    }
    const busy = this.cloud.stale > 0, more = this.cloud.work(5), points = this.cloud.at(this.state.t);
    if (busy && !more) this.costs.sampling = performance.now() - this.costs.begun;
    draw_map(this.plot, this.state, this.truth, points, this.selected);
    this.show_controls();
    if (!more || now - (this.told_at ?? 0) > 250) {
      this.told_at = now;
      this.tell(points, more || this.playing);
    }
    this.costs.frame = performance.now() - begun;
    return more || this.playing;
  }

  show_controls() {
    for (const one of this.handles) one.show();
    this.state.blobs.forEach(({label}, k) => this.handles[k].classList.toggle("other", label !== this.state.label));
    for (const [name, control] of Object.entries(this.controls)) control.show(this.state[name]);
    this.panel.hidden = !this.blob;
    if (!this.blob) return;
    this.panel.firstChild.textContent = `blob ${this.selected + 1}`;
    this.weight.show(this.blob.weight);
    this.belongs.show(this.blob.label);
  }

  // The numbers beside the map.
  tell(points, more) {
    this.readings = this.truth.read_off(points);
    const rows = Object.entries(this.readings).map(([name, [got, intended]]) => {
      const small = Number(got[1] < 0.005), [value, error] = got.map((number, i) => number.toFixed(2 + small * (1 + i)));
      const cells = [error ? `${value} ± ${error}` : value, (name === "distance" ? "chance " : "") + intended.toFixed(2 + small)];
      return element("tr", {}, element("th", {scope: "row"}, name), ...cells.map(text => element("td", {}, text)));
    });
    this.rows.replaceChildren(...rows);
    const {"mean x₁": [[mean], intended], distance: [[far], chance]} = this.readings;
    const verdict = far > 3 * chance ? "The dots are not where they were meant to be" : "The dots are where they were meant to be";
    const text = this.refused || `${verdict}: ${far.toFixed(2)} away, by chance ${chance.toFixed(2)}.`;
    this.note.textContent = text;
    this.canvas.setAttribute("aria-label", `Map of ${COUNT} guided samples, dots, and of what was intended, contours. ${text}`);
    if (more) return;
    const {gamma, t} = this.state;
    this.aloud.say(`γ ${gamma.toFixed(1)}, t ${t.toFixed(2)}: mean of x 1 ${mean.toFixed(2)}, intended ${intended.toFixed(2)}. ${text}`);
  }

  // Run t from 1 to 0; for who wants no motion, a tenth at each press.
  begin_or_stop() {
    if (window.matchMedia("(prefers-reduced-motion: reduce)").matches) {
      const {t} = this.state;
      return this.set({t: t <= 0 ? 1 : Math.max(0, Math.ceil(10 * t - 1) / 10)});
    }
    this.playing = !this.playing;
    this.play.textContent = this.playing ? "Stop" : "From noise to data";
    this.moved_at = performance.now();
    if (this.playing) this.state.t = 1;
    this.set({});
  }

  // Take the state from the address. Returns whether there was one.
  from_address() {
    const fields = this.link.read();
    if (!fields) return false;
    try {
      this.state = from_fields(fields);
    } catch (error) {
      if (!(error instanceof RangeError)) throw error;
      this.refused = `The address has a setting that cannot be read: ${error.message}.`;
      return false;
    }
    this.selected = null;
    this.follow();
    return true;
  }
}

export function turn_the_knob(place) {
  const knob = new Knob(place);
  place.knob = knob; // for tests, and for who opens the console
  return knob.paint;
}
