// "One step": where a step from a point should go, where guided Gaussian steps go, and what is lost, in nats.

import { GridDensity } from "./grid.mjs";
import { Plot } from "./plot.mjs";
import { beta, exact, KERNELS, nats, noised, orders, predicted, step_of } from "./step_kernels.mjs";
import { address, announcer, button, choice, element, handle, painter, slider, swatch, tick, within } from "./controls.mjs";

const BOX = [-4, 4, -3, 3], CELLS = 64, SHORTEST = 0.0002, EARLIEST = 0.01; // of t - s, and of s
const chapter = () => ({x: [-0.9, 0.2], t: 0.3, length: 0.09, label: 1, drawn: new Set(["small"]), zoom: false});
const start_of = ({t, length}) => Math.max(EARLIEST, t - length);

function in_nats(value) {
  if (value >= 0.001) return value.toPrecision(3);
  const [digits, power] = value.toExponential(1).split("e-");
  return `${digits} × 10⁻${[...power].map(digit => "⁰¹²³⁴⁵⁶⁷⁸⁹"[digit]).join("")}`;
}

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
        text: () => `to s = ${start_of(this.state).toFixed(4)}, β = ${beta(this.state.t, start_of(this.state)).toPrecision(2)}`,
      }),
      label: choice({name: "ask for", options: {0: "class 0", 1: "class 1"}, chosen: label => set({label: Number(label)})}),
      zoom: tick({text: "the map follows the step", colour: "", ticked: zoom => set({zoom})}),
    };
    this.rows = Object.entries(KERNELS).map(([name, [text, colour]]) => {
      const box = tick({text, colour, ticked: on => {
        this.state.drawn[on ? "add" : "delete"](name);
        set({});
      }});
      const cells = [element("td"), element("td")];
      return {name, box, cells, row: element("tr", {}, element("th", {scope: "row"}, box), ...cells)};
    });
    this.reset = button("The step of the chapter", () => set(chapter()));
    this.handle = handle({
      plot: this.plot, stage: this.stage, name: "the point x t", className: "centre", get: () => this.state.x,
      moved: ([x, y]) => set({x: [Math.min(Math.max(x, BOX[0]), BOX[1]), Math.min(Math.max(y, BOX[2]), BOX[3])]}),
    });
  }

  lay_out() {
    const {t, length, label, zoom} = this.controls, column = name => element("th", {scope: "col"}, name);
    this.aloud = announcer();
    const body = element("tbody", {}, ...this.rows.map(({row}) => row));
    const head = element("tr", {}, column("variance"), column("nats"), column("falls like"));
    const legend = element("p", {className: "note"}, swatch("truth"), "exact, given the class  ", swatch("unconditional"),
      "exact, without it  ", swatch("guided"), "gradient");
    this.place.append(
      element("div", {className: "board"}, element("div", {className: "map"}, length, this.stage, legend),
        element("div", {className: "beside"}, element("table", {}, element("thead", {}, head), body), this.chart,
          element("p", {className: "note"}, "nats over β, in powers of ten; dashed: predicted for short steps"))),
      element("div", {className: "more"}, t, element("div", {className: "line"}, label, zoom, this.reset)),
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
      control.show(name === "length" ? Math.log10(t - s) : this.state[name]);
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
      const {mean, cov} = step, ends = sign => mean.map((m, i) => m + sign * 4.5 * Math.sqrt(cov[i][i]));
      plot.line(colour, dash, 1.8);
      plot.contours(new GridDensity(points => step.log_prob(points), ends(-1), ends(1), CELLS));
    }
    plot.disc(free.mean, "unconditional", 5);
    plot.disc(truth.mean, "truth", 7);
    for (const name of drawn) {
      const [, colour, dash] = KERNELS[name], {means: [mean], covs: [cov]} = step_of(name, label, x, t, s);
      plot.line(colour, dash, 1.5);
      plot.ellipses(mean, cov);
      plot.disc(mean, colour, 4);
    }
  }

  // Divergences of all kernels over the length of the step, at this point; a line where the step is now.
  draw_orders(s) {
    const {x, t, label} = this.state, {orders: plot} = this, longest = Math.log10(t - EARLIEST), least = Math.log10(SHORTEST);
    const places = Array.from({length: 9}, (_, i) => t - 10 ** (least + i / 8 * (longest - least)));
    const log_beta = places.map(s => Math.log10(beta(t, s))), values = places.map(s => nats(label, x, t, s));
    plot.box = [log_beta[0] - 0.6, Math.max(0.1, log_beta.at(-1)), -13, 2];
    plot.begin();
    const log = value => Math.max(Math.log10(value), -16);
    plot.line("axis", [], 1);
    plot.path([[Math.log10(beta(t, s)), -14], [Math.log10(beta(t, s)), 2]]);
    for (const [name, [, colour, dash]] of Object.entries(KERNELS)) {
      plot.line(colour, dash, this.state.drawn.has(name) ? 2.5 : 1.2);
      plot.path(values.map((row, i) => [log_beta[i], log(row[name])]));
    }
    plot.line("truth", [5, 3], 1);
    const expected = places.map(s => predicted(label, x, t, s));
    for (const name of ["none", "small", "large"]) plot.path(expected.map((row, i) => [log_beta[i], log(row[name])]));
  }

  tell(s) {
    const {x, t, label} = this.state, describe = name => `${KERNELS[name][0]} ${in_nats(this.nats[name])} nats`;
    for (const {name, box, cells: [nats, falls]} of this.rows) {
      box.show(this.state.drawn.has(name));
      nats.textContent = in_nats(this.nats[name]);
      falls.replaceChildren("β", element("sup", {}, this.falls[name].toFixed(2)));
    }
    const [least] = Object.keys(KERNELS).sort((one, other) => this.nats[one] - this.nats[other]);
    const text = `One step from (${x.map(value => value.toFixed(2)).join(", ")}), t ${t.toFixed(2)} to s ${s.toFixed(3)}, class ${label}`;
    this.canvas.setAttribute("aria-label", `Map. ${text}: contours of the exact step, and of ${[...this.state.drawn].map(describe).join(", ")}.`);
    this.chart.setAttribute("aria-label", "Divergences over the length of the step: without a shift they fall like beta, with one like beta squared, with exact mean and covariance like beta cubed.");
    this.aloud.say(`${text}. ${[...this.state.drawn].map(describe).join(", ")}; least: ${describe(least)}.`);
  }

  // Take the state from the address. Returns whether there was one.
  from_address() {
    this.paint();
    const fields = this.link.read();
    if (!fields) return false;
    try {
      this.state = from_fields(fields);
    } catch (error) {
      if (!(error instanceof RangeError)) throw error;
      this.aloud.say(`The address has a setting that cannot be read: ${error.message}.`);
      return false;
    }
    return true;
  }
}

// The state that an address names.  Throws: RangeError where it names none.
function from_fields(fields) {
  const read = (name, least, most) => within(name, fields.get(name) ?? "", least, most);
  const t = read("t", 0.05, 1), s = read("s", EARLIEST, t - SHORTEST), [x_1, x_2] = (fields.get("x") ?? "").split(",");
  const drawn = (fields.get("show") ?? "").split(",").filter(name => Object.hasOwn(KERNELS, name));
  return {
    x: [within("x", x_1, BOX[0], BOX[1]), within("x", x_2, BOX[2], BOX[3])], t, length: t - s,
    label: Number(read("class", 0, 1) > 0), drawn: new Set(drawn), zoom: fields.get("zoom") === "1",
  };
}

export function one_step(place) {
  const step = new Step(place);
  place.step = step; // for tests, and for who opens the console
  return step.paint;
}
