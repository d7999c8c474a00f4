// A map of the plane on a canvas: what is drawn is given in the plane's coordinates. Points are flat, 2 N numbers.
// Colours are names, which interactive.css gives values for the light and the dark page.

import { eigen } from "./divergence.mjs";

export const SHARES = [0.5, 0.9, 0.99]; // of the mass, held by the contours
const RADII = SHARES.map(share => Math.sqrt(-2 * Math.log(1 - share))); // the same for a bell, in standard deviations

export class Plot {
  // box: [least x_1, largest x_1, least x_2, largest x_2], as wide to high as the canvas.
  constructor(canvas, box) { Object.assign(this, {canvas, box, pen: canvas.getContext("2d")}); }

  // Wipe the canvas, which may have another size or another screen by now, and draw the axes.
  begin() {
    const {canvas, pen} = this, scale = window.devicePixelRatio || 1;
    this.width = canvas.clientWidth;
    this.height = canvas.clientHeight;
    const size = [Math.round(this.width * scale), Math.round(this.height * scale)];
    if (canvas.width !== size[0] || canvas.height !== size[1]) [canvas.width, canvas.height] = size;
    this.style = getComputedStyle(canvas);
    pen.setTransform(scale, 0, 0, scale, 0, 0);
    pen.clearRect(0, 0, this.width, this.height);
    pen.lineJoin = "round";
    this.axes();
  }

  colour(name) { return this.style.getPropertyValue(`--interactive-${name}`); }

  // From the plane to the canvas, and back.
  at([x_1, x_2]) {
    const [a, b, c, d] = this.box;
    return [(x_1 - a) / (b - a) * this.width, (d - x_2) / (d - c) * this.height];
  }

  back([left, top]) {
    const [a, b, c, d] = this.box;
    return [a + left / this.width * (b - a), d - top / this.height * (d - c)];
  }

  // The same without a pair for each point: [least x_1, pixels a unit to the right, largest x_2, pixels a unit down].
  get scale() {
    const [a, b, c, d] = this.box;
    return [a, this.width / (b - a), d, this.height / (d - c)];
  }

  axes() {
    const {pen, box, width, height} = this;
    pen.fillStyle = pen.strokeStyle = this.colour("axis");
    pen.font = "12px sans-serif";
    pen.lineWidth = 1;
    for (const [axis, low, high, room] of [[0, box[0], box[1], width], [1, box[2], box[3], height]]) {
      const ticks = step_of(high - low, room / 55), digits = Math.max(0, -Math.floor(Math.log10(ticks) + 1e-9));
      for (let v = Math.ceil(low / ticks) * ticks; v < high; v += ticks) {
        const [left, top] = this.at(axis ? [box[0], v] : [v, box[2]]), text = (Math.abs(v) < ticks / 2 ? 0 : v).toFixed(digits);
        if (axis ? top < 16 || top > height - 18 : left < 14 || left > width - 22) continue;
        pen.beginPath();
        pen.moveTo(left, top);
        pen.lineTo(...(axis ? [left + 5, top] : [left, top - 5]));
        pen.stroke();
        pen.textAlign = axis ? "left" : "center";
        pen.fillText(text, ...(axis ? [left + 8, top + 4] : [left, top - 9]));
      }
    }
  }

  dots(points, colour) {
    const {pen, scale: [least, right, largest, down]} = this;
    pen.fillStyle = this.colour(colour);
    pen.globalAlpha = 0.5;
    for (let i = 0; i < points.length; i += 2) {
      pen.fillRect((points[i] - least) * right - 1, (largest - points[i + 1]) * down - 1, 2, 2);
    }
    pen.globalAlpha = 1;
  }

  // How the next lines are drawn.
  line(colour, dash = [], width = 1.5) {
    this.pen.strokeStyle = this.colour(colour);
    this.pen.setLineDash(dash);
    this.pen.lineWidth = width;
  }

  path(corners) {
    this.pen.beginPath();
    corners.forEach((corner, i) => this.pen[i ? "lineTo" : "moveTo"](...this.at(corner)));
    this.pen.stroke();
  }

  // Contours of a GridDensity, which hold SHARES of its mass.
  contours(grid) {
    grid.lines ??= grid.levels(SHARES).flatMap(level => grid.contour(level));
    for (const line of grid.lines) this.path(line);
  }

  // The same of N(mean, cov), or the ellipses at given radii in standard deviations.
  ellipses(mean, cov, radii = RADII) {
    const [short, long] = eigen(cov);
    for (const radius of radii) {
      this.path(Array.from({length: 65}, (_, i) => {
        const cos = radius * Math.cos(Math.PI * i / 32), sin = radius * Math.sin(Math.PI * i / 32);
        return [0, 1].map(axis => mean[axis] + cos * long[axis] + sin * short[axis]);
      }));
    }
  }

  // An arrow at each point. A long vector is shortened: `most`, in the plane's units, is never reached.
  arrows(points, vectors, colour, most) {
    const {pen, scale: [least, right, largest, down]} = this;
    this.line(colour, [], 1);
    pen.beginPath();
    for (let i = 0; i < points.length; i += 2) {
      const factor = most / (Math.hypot(vectors[i], vectors[i + 1]) + 2);
      const along = factor * vectors[i] * right, down_by = -factor * vectors[i + 1] * down;
      const tip = (points[i] - least) * right + along, tip_down = (largest - points[i + 1]) * down + down_by;
      pen.moveTo(tip - along, tip_down - down_by);
      pen.lineTo(tip, tip_down);
      pen.lineTo(tip - 0.35 * along - 0.21 * down_by, tip_down - 0.35 * down_by + 0.21 * along);
      pen.moveTo(tip, tip_down);
      pen.lineTo(tip - 0.35 * along + 0.21 * down_by, tip_down - 0.35 * down_by - 0.21 * along);
    }
    pen.stroke();
  }

  // A disc with a rim, for a centre of mass.
  disc(place, colour, radius = 5) {
    const {pen} = this;
    pen.beginPath();
    pen.arc(...this.at(place), radius, 0, 2 * Math.PI);
    pen.fillStyle = this.colour(colour);
    pen.fill();
    this.line("paper", [], 1);
    pen.stroke();
  }
}

// A distance of 1, 2 or 5 times a power of ten, so that about `wanted` of them make `length`.
function step_of(length, wanted) {
  const power = 10 ** Math.floor(Math.log10(length / wanted));
  return [1, 2, 5, 10].map(factor => factor * power).find(step => length / step <= wanted);
}
