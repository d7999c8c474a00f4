// "One step": where a step from a point should go, where guided Gaussian steps go, and what is lost, in nats.

import { GridDensity } from "./grid.mjs";
import { Plot } from "./plot.mjs";
import { beta, exact, KERNELS, nats, noised, orders, predicted, step_of } from "./step_kernels.mjs";
import { address, announcer, button, choice, element, handle, painter, slider, swatch, ticks } from "./controls.mjs";

const BOX = [-4, 4, -3, 3], CELLS = 64, SHORTEST = 0.002, EARLIEST = 0.01; // of t - s, and of s
const chapter = () => ({x: [-0.9, 0.2], t: 0.3, length: 0.09, label: 1, drawn: new Set(["small"]), zoom: false});
const start_of = ({t, length}) => Math.max(EARLIEST, t - length);
const in_nats = value => (value >= 0.001 ? value.toPrecision(3) : value.toExponential(1).replace("e", " × 10^").replace("^-", "⁻"))
  .replace(/ × 10⁻(\d+)/, (_, digits) => ` × 10⁻${[...digits].map(digit => "⁰¹²³⁴⁵⁶⁷⁸⁹"[digit]).join("")}`);

class Step {
  constructor(place) {
    this.place = place;
    this.link = address("one-step");
    this.state = chapter();
    this.canvas = element("canvas", {attributes: {role: "img"}});
    this.stage = element("div", {className: "stage"}, this.canvas);
    this.chart = element("canvas", {className: "chart", attributes: {role: "img"}});
    this.plot = new Plot(this.canvas, BOX);
    this.orders = new Plot(this.chart, [-4, 0, -10, 2]);
    this.paint = painter(() => this.frame());
    this.make_controls();
    this.lay_out();
    if (this.from_address()) place.scrollIntoView();
    window.addEventListener("hashchange", () => this.from_address());
    new ResizeObserver(this.paint).observe(this.stage);
  }

  make_controls() {
    const set = change => this.set(change), powers = [SHORTEST, 1].map(Math.log10);
    this.controls = {
      t: slider({name: "from time t", min: 0.05, max: 1, step: 0.01, text: t => t.toFixed(2), moved: t => set({t})}),
      length: slider({
        name: "length of the step", min: powers[0], max: powers[1], step: 0.02, moved: power => set({length: 10 ** power}),
        text: () => `to s = ${start_of(this.state).toFixed(3)}, β = ${beta(this.state.t, start_of(this.state)).toPrecision(2)}`,
      }),
      label: choice({name: "ask for", options: {0: "class 0", 1: "class 1"}, chosen: label => set({label: Number(label)})}),
      drawn: ticks({name: "drawn on the map", options: KERNELS, ticked: (name, on) => {
        this.state.drawn[on ? "add" : "delete"](name);
        set({});
      }}),
      zoom: ticks({name: "map", options: {zoom: ["follow the step", ""]}, ticked: (_, zoom) => set({zoom})}),
    };
    this.reset = button("The step of the chapter", () => set(chapter()));
    this.handle = handle({
      plot: this.plot, stage: this.stage, name: "the point x t", className: "centre", get: () => this.state.x,
      moved: ([x, y]) => set({x: [Math.min(Math.max(x, BOX[0]), BOX[1]), Math.min(Math.max(y, BOX[2]), BOX[3])]}),
    });
  }

  lay_out() {
    const {t, length, label, drawn, zoom} = this.controls, column = name => element("th", {scope: "col"}, name);
    this.rows = element("tbody");
    this.aloud = announcer();
    const head = element("tr", {}, column("step"), column("nats"), column("falls like"));
    const legend = element("p", {className: "note"}, swatch("truth"), "exact, given the class  ", swatch("unconditional"),
      "exact, without it  ", swatch("guided"), "gradient");
    this.place.append(
      element("div", {className: "board"}, element("div", {className: "map"}, length, this.stage, legend),
        element("div", {className: "beside"}, element("table", {}, element("thead", {}, head), this.rows), this.chart,
          element("p", {className: "note"}, "nats over β, both logarithmic; dashed: predicted for short steps"))),
      element("div", {className: "more"}, t, label, drawn, zoom, element("p", {className: "line"}, this.reset)),
      this.aloud,
    );
  }

  set(change) {
    Object.assign(this.state, change);
    const {x, t, label, drawn, zoom} = this.state;
    this.link.write({
      x: x.map(value => value.toFixed(2)).join(","), t: t.toFixed(2), s: start_of(this.state).toFixed(4), class: label,
      show: [...drawn].join(","), zoom: Number(zoom),
    });
    this.paint();
  }

  frame() {
    const begun = performance.now(), {x, t, label} = this.state, s = start_of(this.state);
    this.nats = nats(label, x, t, s);
    this.falls = orders(label, x, t, s, this.nats);
    this.draw_map(s);
    this.draw_orders(s);
    this.handle.show();
    for (const [name, control] of Object.entries(this.controls)) {
      control.show(name === "length" ? Math.log10(t - s) : name === "zoom" ? new Set(this.state.zoom ? ["zoom"] : []) : this.state[name]);
    }
    this.tell(s);
    this.cost = performance.now() - begun;
    return false;
  }

  draw_map(s) {
    const {x, t, label, drawn, zoom} = this.state, {plot} = this, truth = exact(label, x, t, s), free = exact(null, x, t, s);
    const [a, b] = truth.mean, size = zoom ? 5 * Math.sqrt(Math.max(truth.cov[0][0], truth.cov[1][1])) : 0;
    plot.box = zoom ? [a - size, a + size, b - size * 0.75, b + size * 0.75] : BOX;
    plot.begin();
    const slope = noised(t).class_gradient(x, label), far = 20 / Math.hypot(...slope);
    plot.line("guided", [], 1);
    plot.path([free.mean, free.mean.map((value, i) => value + far * slope[i])]);
    for (const [step, colour, dash] of [[free, "unconditional", []], [truth, "truth", [5, 3]]]) {
      const {mean, cov} = step, reach = [0, 1].map(i => 4.5 * Math.sqrt(cov[i][i])), ends = sign => mean.map((m, i) => m + sign * reach[i]);
      plot.line(colour, dash, 1.8);
      plot.contours(new GridDensity(points => step.log_prob(points), ends(-1), ends(1), CELLS));
    }
    const steps = [...drawn].map(name => [KERNELS[name][1], step_of(name, label, x, t, s)]);
    for (const [colour, {mean, cov}] of steps) {
      plot.line(colour, [], 1.5);
      plot.ellipses(mean, cov);
    }
    for (const [colour, {mean}, radius] of [["unconditional", free, 5], ["truth", truth, 7], ...steps.map(step => [...step, 4])]) {
      plot.disc(mean, colour, radius);
    }
  }

  // Divergences of all kernels over the length of the step, at this point; a line where the step is now.
  draw_orders(s) {
    const {x, t, label} = this.state, {orders: plot} = this, longest = Math.log10(t - EARLIEST), least = Math.log10(SHORTEST);
    const places = Array.from({length: 11}, (_, i) => t - 10 ** (least + i / 10 * (longest - least)));
    const log_beta = places.map(s => Math.log10(beta(t, s))), values = places.map(s => nats(label, x, t, s));
    plot.box = [log_beta[0] - 0.6, Math.max(0.1, log_beta.at(-1)), -10, 2];
    plot.begin();
    const log = value => Math.max(Math.log10(value), -12);
    plot.line("axis", [], 1);
    plot.path([[Math.log10(beta(t, s)), -10], [Math.log10(beta(t, s)), 2]]);
    for (const [name, [, colour]] of Object.entries(KERNELS)) {
      plot.line(colour, name === "mended_small" ? [2, 2] : [], this.state.drawn.has(name) ? 2.5 : 1.2);
      plot.path(values.map((row, i) => [log_beta[i], log(row[name])]));
    }
    plot.line("truth", [5, 3], 1);
    const expected = places.map(s => predicted(label, x, t, s));
    for (const name of ["none", "small", "large"]) plot.path(expected.map((row, i) => [log_beta[i], log(row[name])]));
  }

  tell(s) {
    const {x, t, label} = this.state, describe = name => `${KERNELS[name][0]} ${in_nats(this.nats[name])} nats`;
    this.rows.replaceChildren(...Object.entries(KERNELS).map(([name, [text, colour]]) => element("tr", {},
      element("th", {scope: "row"}, swatch(colour), text), element("td", {}, in_nats(this.nats[name])),
      element("td", {}, `β^${this.falls[name].toFixed(2)}`))));
    const [least] = Object.keys(KERNELS).sort((one, other) => this.nats[one] - this.nats[other]);
    const text = `One step from (${x.map(value => value.toFixed(2)).join(", ")}), t ${t.toFixed(2)} to s ${s.toFixed(3)}, class ${label}`;
    this.canvas.setAttribute("aria-label", `Map. ${text}: contours of the exact step, and of ${[...this.state.drawn].map(describe).join(", ")}.`);
    this.chart.setAttribute("aria-label", "Divergences over the length of the step: without a shift they fall like beta, with one like beta squared, with exact mean and covariance like beta cubed.");
    this.aloud.say(`${text}. ${[...this.state.drawn, least].map(describe).join(", ")}, the least.`);
  }

  // Take the state from the address. Returns whether there was one.
  from_address() {
    const fields = this.link.read();
    if (!fields) { this.paint(); return false; }
    const number = (name, least, most) => Math.min(Math.max(Number(fields.get(name)) || 0, least), most);
    const [x_1, x_2] = (fields.get("x") ?? "").split(",").map(Number);
    const t = number("t", 0.05, 1);
    this.state = {
      x: [x_1 || 0, x_2 || 0], t, length: t - number("s", 0, t - SHORTEST), label: Number(number("class", 0, 1) > 0),
      drawn: new Set((fields.get("show") ?? "").split(",").filter(name => Object.hasOwn(KERNELS, name))), zoom: fields.get("zoom") === "1",
    };
    this.paint();
    return true;
  }
}

export function one_step(place) {
  const step = new Step(place);
  place.step = step; // for tests, and for who opens the console
  return step.paint;
}
