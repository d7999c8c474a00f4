// Puts the interactive parts into the places that a page has for them, and draws them again when its colours change.

import { turn_the_knob } from "./turn_the_knob.mjs";
import { one_step } from "./one_step.mjs";

const PARTS = {"turn-the-knob": turn_the_knob, "one-step": one_step};

const paints = [...document.querySelectorAll("[data-interactive]")].map(place => PARTS[place.dataset.interactive](place));
const repaint = () => { for (const paint of paints) paint(); };
new MutationObserver(repaint).observe(document.documentElement, {attributeFilter: ["data-theme"]});
