// What a hand or a key can move: sliders, choices, handles on a map; what a screen reader says; the state in the address.

export function element(tag, properties = {}, ...children) {
  const {attributes = {}, ...plain} = properties, made = Object.assign(document.createElement(tag), plain);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

// A slider with its name and its value. text(value): what is read beside it and aloud. Returns its element; `show(value)`
// moves it without telling `moved`.
export function slider({name, min, max, step, text, moved}) {
  const input = element("input", {type: "range", min, max, step}), value = element("output");
  const box = element("label", {className: "slider"}, element("span", {className: "name"}, name), input, value);
  const say = () => {
    value.textContent = text(input.valueAsNumber);
    input.setAttribute("aria-valuetext", value.textContent);
  };
  input.addEventListener("input", () => { moved(input.valueAsNumber); say(); });
  box.show = number => { input.valueAsNumber = number; say(); };
  return box;
}

// One of several. options: value -> text. Returns its element; `show(value)` chooses without telling `chosen`.
export function choice({name, options, chosen}) {
  const group = `choice-${choice.count = (choice.count ?? 0) + 1}`, inputs = {};
  const box = element("fieldset", {className: "choice"}, element("legend", {}, name));
  for (const [value, text] of Object.entries(options)) {
    inputs[value] = element("input", {type: "radio", name: group, value});
    inputs[value].addEventListener("change", () => chosen(value));
    box.append(element("label", {}, inputs[value], ` ${text}`));
  }
  box.show = value => { inputs[value].checked = true; };
  return box;
}

// Any of several. options: value -> [text, colour or ""]. `show(set)` ticks those in the set.
export function ticks({name, options, ticked}) {
  const boxes = Object.entries(options).map(([value, [text, colour]]) => tick({text, colour, ticked: on => ticked(value, on)}));
  const box = element("fieldset", {className: "choice"}, element("legend", {}, name), ...boxes), values = Object.keys(options);
  box.show = set => boxes.forEach((one, i) => one.show(set.has(values[i])));
  return box;
}

// One box to tick, with the colour of what it shows.
export function tick({text, colour, ticked}) {
  const input = element("input", {type: "checkbox"}), box = element("label", {}, input, swatch(colour), text);
  input.addEventListener("change", () => ticked(input.checked));
  box.show = on => { input.checked = on; };
  return box;
}

export function swatch(colour) {
  return colour ? element("span", {className: "swatch", attributes: {style: `--swatch: var(--interactive-${colour})`}}) : "";
}

export function button(text, pressed) {
  const made = element("button", {type: "button", textContent: text});
  made.addEventListener("click", pressed);
  return made;
}

const ARROWS = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1]};

// A handle on a plot's stage, dragged by mouse or finger, moved by the arrow keys (a tenth, with Shift a hundredth).
// name: for screen readers;  get: () -> its place in the plane, or null where it is hidden;  moved(place).
export function handle({plot, stage, name, className, get, moved, grabbed = () => {}}) {
  const knob = element("span", {className: `handle ${className}`, tabIndex: 0, attributes: {
    "role": "slider", "aria-label": name, "aria-roledescription": "handle, four arrow keys", "aria-valuemin": -10,
    "aria-valuemax": 10,
  }});
  const box = plot.canvas;
  knob.addEventListener("pointerdown", event => {
    event.preventDefault();
    knob.setPointerCapture(event.pointerId);
    knob.focus({preventScroll: true});
    const start = plot.at(get()), {clientX, clientY} = event;
    const drag = now => moved(plot.back([start[0] + now.clientX - clientX, start[1] + now.clientY - clientY]));
    knob.addEventListener("pointermove", drag);
    for (const end of ["pointerup", "pointercancel"]) {
      knob.addEventListener(end, () => knob.removeEventListener("pointermove", drag), {once: true});
    }
  });
  knob.addEventListener("focus", grabbed);
  knob.addEventListener("keydown", event => {
    const [right, up] = ARROWS[event.key] ?? [0, 0], far = event.shiftKey ? 0.01 : 0.1, place = get();
    if (!right && !up) return;
    event.preventDefault();
    moved([place[0] + far * right, place[1] + far * up]);
  });
  stage.append(knob);
  knob.show = () => {
    const place = get();
    knob.hidden = !place;
    if (!place) return;
    const [left, top] = plot.at(place);
    knob.style.transform = `translate(${left + box.offsetLeft}px, ${top + box.offsetTop}px) translate(-50%, -50%)`;
    knob.setAttribute("aria-valuenow", place[0].toFixed(2));
    knob.setAttribute("aria-valuetext", `x 1 ${place[0].toFixed(2)}, x 2 ${place[1].toFixed(2)}`);
  };
  return knob;
}

// A line that screen readers say, half a second after the last change.
export function announcer() {
  const line = element("p", {className: "visually-hidden", attributes: {"aria-live": "polite"}});
  let waiting;
  line.say = text => {
    clearTimeout(waiting);
    waiting = setTimeout(() => { line.textContent = text; }, 500);
  };
  return line;
}

// The state in the address, behind "#name:", so that one can link to a setting. The browser is told seldom, it would
// refuse to be told at each step of a drag.
export function address(name) {
  let waiting;
  return {
    read() {
      const [, found] = window.location.hash.split(`#${name}:`);
      return found === undefined ? null : new URLSearchParams(found);
    },
    write(fields) {
      if (window.location.protocol === "about:") return;  // in a notebook's frame there is no address
      clearTimeout(waiting);
      waiting = setTimeout(() => {
        const text = new URLSearchParams(fields).toString().replaceAll("%2C", ",").replaceAll("%3B", ";");
        window.history.replaceState(null, "", `#${name}:${text}`);
      }, 300);
    },
  };
}

// A number from the address.  Throws: RangeError if it is none, or outside its range.
export function within(name, value, least, most) {
  const number = Number(value);
  if (value === "" || !(number >= least && number <= most)) throw new RangeError(`${name} must lie in [${least}, ${most}]`);
  return number;
}

// Calls draw(now) before the browser's next picture, once for any number of calls. draw says whether another must follow.
export function painter(draw) {
  let asked = false;
  const ask = () => {
    if (asked) return;
    asked = true;
    window.requestAnimationFrame(now => {
      asked = false;
      if (draw(now)) ask();
    });
  };
  return ask;
}
