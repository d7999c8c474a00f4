// The convention card computes: the formulas of `difflesson.conventions` (the names are the same), then the forms of the
// page. The card itself, which is names, offsets and words, comes from the package with the page: see book/conventions.py.
// What the package refuses is refused here, in its words: tests/book/test_conventions_page.py compares the two.

const conventions = (() => {
  const logSigmoid = v => Math.min(v, 0) - Math.log1p(Math.exp(-Math.abs(v)));
  // Halve the logarithm before the exponential, so that a tiny sigma survives.
  const fromLogSnr = v => [Math.exp(logSigmoid(v) / 2), Math.exp(logSigmoid(-v) / 2)];
  const fromFlow = v => [(1 - v) / Math.hypot(1 - v, v), v / Math.hypot(1 - v, v)];
  const pair = [(alpha, sigma) => [alpha, sigma], value => value];

  // name: their number from alpha and sigma; alpha and sigma from their number
  const NOISE = {
    "difflesson": pair,
    "su": pair,
    "ho": [(a, s) => a ** 2, v => [Math.sqrt(v), Math.sqrt(1 - v)]],
    "ho-variance": [(a, s) => s ** 2, v => [Math.sqrt(1 - v), Math.sqrt(v)]],
    "song": [(a, s) => a > s ? -Math.log1p(-(s ** 2)) : -2 * Math.log(a),
             v => [Math.exp(-v / 2), Math.sqrt(-Math.expm1(-v))]],
    "log-snr": [(a, s) => 2 * Math.log(a / s), fromLogSnr],
    "vdm": [(a, s) => 2 * Math.log(s / a), v => fromLogSnr(-v)],
    "dpm-solver": [(a, s) => Math.log(a / s), v => fromLogSnr(2 * v)],
    "edm": [(a, s) => s / a, v => [1 / Math.sqrt(1 + v ** 2), v / Math.sqrt(1 + v ** 2)]],
    "flow": [(a, s) => s / (a + s), fromFlow],
    "flow-reversed": [(a, s) => a / (a + s), v => fromFlow(1 - v)],
  };

  // name: x0 and eps from x, their number, alpha, sigma; their number from x0, eps, alpha, sigma
  const fromEps = (x, eps, a, s) => [(x - s * eps) / a, eps];
  const fromVelocity = (x, u, a, s) => [(x - s * u) / (a + s), (x + a * u) / (a + s)];
  const OUTPUTS = {
    "eps": [fromEps, (x0, eps) => eps],
    "x0": [(x, x0, a, s) => [x0, (x - a * x0) / s], x0 => x0],
    "v": [(x, v, a, s) => [a * x - s * v, s * x + a * v], (x0, eps, a, s) => a * eps - s * x0],
    "score": [(x, score, a, s) => fromEps(x, -s * score, a, s), (x0, eps, a, s) => -eps / s],
    "flow": [fromVelocity, (x0, eps) => eps - x0],
    "flow-reversed": [(x, u, a, s) => fromVelocity(x, -u, a, s), (x0, eps) => x0 - eps],
  };

  function finite(argument, value) {
    if (![value].flat().every(Number.isFinite)) throw new Error(`${argument} must be finite`);
    return value;
  }

  // `card` is the page's: offsets by which scales differ, and the lowest on which a library acts.
  function guidanceScale(card, value, source, target) {
    for (const [argument, name] of [["source", source], ["target", target]])
      if (name in card.ambiguous) throw new Error(`${argument} = '${name}': ${card.ambiguous[name]}`);
    const result = value + card.guidance[source].offset - card.guidance[target].offset;
    for (const [argument, name, scale] of [["value", source, value], ["result", target, result]]) {
      finite(argument, scale);
      if (scale < card.guidance[name].lowest)
        throw new Error(`${argument} = ${scale}: '${name}' has no guidance below ${card.guidance[name].lowest}`);
    }
    return result;
  }

  function level(value, source) {
    const [alpha, sigma] = NOISE[source][1](NOISE[source] === pair ? value : finite("value", value));
    if (!(Math.abs(alpha ** 2 + sigma ** 2 - 1) <= 1e-6 && alpha >= 0 && sigma >= 0))
      throw new Error(`${source} = ${value}: need alpha, sigma >= 0, alpha^2 + sigma^2 = 1`);
    return [alpha, sigma];
  }

  function noiseLevel(value, source, target = "difflesson") {
    return finite(`as ${target}`, NOISE[target][0](...level(value, source)));
  }

  function convert(value, source, target, x, alpha, sigma) {
    finite("value", value);
    finite("x", x);
    level([alpha, sigma], "difflesson");
    if (source === target) return value;
    const result = OUTPUTS[target][1](...OUTPUTS[source][0](x, value, alpha, sigma), alpha, sigma);
    const lost = source === "score" && target !== "eps" && sigma === 0; // -sigma score is 0, whatever eps was
    if (lost || !Number.isFinite(result))
      throw new Error(`${source} -> ${target} is singular at alpha = ${short(alpha)}, sigma = ${short(sigma)}`);
    return result;
  }

  const short = value => [value].flat().map(v => String(Number(v.toPrecision(6)))).join(", ");

  return {NOISE, OUTPUTS, guidanceScale, noiseLevel, convert, short, isPair: name => NOISE[name] === pair};
})();


// --- the forms ----------------------------------------------------------------------------------------------

function converter(card) {
  const make = (tag, attributes = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  };
  const number = (name, label, value) => {
    const input = make("input", {id: name, type: "number", step: "any", value, autocomplete: "off"});
    return [make("label", {for: name}, label, input), input];
  };
  const choice = (name, label, options, chosen) => {
    const select = make("select", {id: name, autocomplete: "off"});
    for (const [value, text] of options) select.append(make("option", {value}, text));
    select.value = chosen;
    return [make("label", {for: name}, label, select), select];
  };

  // A form, a line that is read aloud when it changes, and a table with one row for each convention.
  function build(question, labels, caption, update) {
    const said = make("output", {for: question});
    const rows = make("tbody");
    const head = make("tr", {}, ...["convention", "its number", "in our notation"].map(h => make("th", {scope: "col"}, h)));
    const table = make("table", {class: "table"}, make("caption", {}, caption), make("thead", {}, head), rows);
    const form = make("form", {id: question}, make("div", {class: "fields"}, ...labels), said, table);
    form.addEventListener("submit", event => event.preventDefault());
    const show = (names, words, compute) => {
      rows.replaceChildren(...names.map(name => {
        const cell = make("td");
        try {
          const value = compute(name);
          cell.append(make("data", {value: String(value)}, conventions.short(value)));
        } catch (error) {
          cell.append(make("span", {class: "refused"}, error.message));
        }
        return make("tr", {"data-convention": name}, make("th", {scope: "row"}, name), cell, make("td", {}, words(name)));
      }));
    };
    const refresh = () => {
      try {
        said.textContent = update(show);
        form.classList.remove("wrong");
      } catch (error) {
        said.textContent = error.message;
        form.classList.add("wrong");
        rows.replaceChildren();
      }
    };
    form.addEventListener("input", refresh);
    document.querySelector(`.converter[data-question="${question}"]`).append(form);
    return refresh;
  }
  const read = (input, what) => {
    if (!Number.isFinite(input.valueAsNumber)) throw new Error(`${what}: type a number`);
    return input.valueAsNumber;
  };

  // How strong is my guidance
  const [scaleLabel, scale] = number("scale", "guidance scale", 7.5);
  const named = Object.entries(card.guidance).map(([name, {symbol}]) => [name, `${name} (${symbol})`]);
  const ambiguous = Object.keys(card.ambiguous).map(name => [name, `only "${name}"`]);
  const [scaleOfLabel, scaleOf] = choice("scale-of", "of", [...named, ...ambiguous], "diffusers");
  const guidance = build("guidance", [scaleLabel, scaleOfLabel], "The same guidance, as others count it", show => {
    const value = read(scale, "guidance scale");
    const gamma = conventions.guidanceScale(card, value, scaleOf.value, "gamma");
    show(Object.keys(card.guidance), name => card.words[`guidance ${name}`],
      name => conventions.guidanceScale(card, value, scaleOf.value, name));
    return `gamma = ${conventions.short(gamma)}`;
  });

  // How noisy is my image
  const [levelLabel, level] = number("level", "noise level", 0.5);
  const [levelOfLabel, levelOf] = choice("level-of", "of", Object.keys(card.noise).map(name => [name, name]), "ho");
  let alphaSigma = null;
  const noise = build("noise", [levelLabel, levelOfLabel], "The same noise level, as others count it", show => {
    const source = levelOf.value, isPair = conventions.isPair(source), {clean, noise} = card.noise[source];
    const what = isPair ? "alpha" : "noise level"; // of a pair the first is typed, and the second follows
    levelLabel.firstChild.textContent = what;
    alphaSigma = null;
    const typed = read(level, what), value = isPair ? [typed, Math.sqrt(1 - typed ** 2)] : typed;
    try {
      alphaSigma = conventions.noiseLevel(value, source);
    } catch (error) {
      throw new Error(`${error.message}. From clean to pure noise, ${source} runs from ${clean} to ${noise}.`);
    }
    show(Object.keys(card.noise), name => card.words[`noise ${name}`], name => conventions.noiseLevel(value, source, name));
    return `alpha = ${conventions.short(alphaSigma[0])}, sigma = ${conventions.short(alphaSigma[1])}`;
  });

  // What does my network output
  const [valueLabel, value] = number("value", "output", -0.5);
  const [valueOfLabel, valueOf] = choice("value-of", "a guess of", card.outputs.map(name => [name, name]), "eps");
  const [xLabel, x] = number("noisy", "at x", 0.2);
  const output = build("output", [valueLabel, valueOfLabel, xLabel], "The same guess, as other networks make it", show => {
    if (!alphaSigma) throw new Error("needs the noise level above");
    const [guess, noisy] = [read(value, "output"), read(x, "x")];
    show(card.outputs, name => card.words[`output ${name}`],
      name => conventions.convert(guess, valueOf.value, name, noisy, ...alphaSigma));
    return `at the noise level above, alpha = ${conventions.short(alphaSigma[0])}, sigma = ${conventions.short(alphaSigma[1])}`;
  });

  guidance();
  noise();
  output();
  document.getElementById("noise").addEventListener("input", output); // the guess stands at that level
}

if (typeof document === "undefined") globalThis.conventions = conventions; // the tests, in Node
else converter(JSON.parse(document.getElementById("convention-card").textContent));
