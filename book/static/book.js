// The results of a search quote the pages they found, which a browser does not allow to pages opened from a disk.
if (window.location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;

// "Deeper" sections stand folded: the heading becomes the summary of a <details>. Without this script they are simply open.
// A section stays open where the address or a search points into it, and opens when a link does, or the printer comes.
function foldDeeper() {
  for (const section of document.querySelectorAll("section.deeper")) {
    const details = document.createElement("details"), summary = document.createElement("summary");
    details.className = "deeper";
    summary.append(section.querySelector(":scope > h2"));
    details.append(summary, ...section.childNodes);
    section.append(details);
    const openWhereFound = () => { if (details.querySelector(".highlighted")) details.open = true; };
    new MutationObserver(openWhereFound).observe(details, {childList: true, subtree: true});
  }
}

// An equation's address is its label: `#eq-cfg`. MathJax has it as the name of a target of its own.
function openWhatTheAddressNames() {
  const name = decodeURIComponent(window.location.hash.slice(1));
  const target = document.getElementById(name) ?? document.getElementById(`mjx-eqn:${name}`);
  if (!target) return;
  for (let e = target; e; e = e.parentElement) if (e.matches("details")) e.open = true;
  target.querySelector(":scope > details.deeper")?.setAttribute("open", "");
  target.scrollIntoView();
}

// An equation or a line of code or print wider than the page is set smaller, down to two thirds and for lines to 9 pixels;
// what is wider still scrolls in its box.
function fitWide(inside = document) {
  const boxes = [...inside.querySelectorAll("div.math, .cell_input pre, .cell_output pre")];
  for (const box of boxes) box.style.fontSize = "";
  const sizes = boxes.map(box => parseFloat(getComputedStyle(box).fontSize)); // all are measured before any is set
  const ratios = boxes.map(box => box.clientWidth / needed(box));
  boxes.forEach((box, i) => {
    if (box.matches(".cell_input pre") && ratios[i] < 0.8) return; // one very long line does not make a whole cell small
    const least = Math.max(2 / 3, box.matches("pre") ? 9 / sizes[i] : 0);
    if (ratios[i] < 1) box.style.fontSize = `${sizes[i] * Math.min(1, Math.max(0.98 * ratios[i], least))}px`;
  });
  for (const box of boxes) { // what scrolls still can be reached by the keyboard; the theme looked before
    if (box.matches("pre")) box.tabIndex = box.scrollWidth > box.clientWidth ? 0 : -1;
  }
}

// An equation without a number scrolls in a box of the theme's, inside ours.
function needed(box) {
  return Math.max(box.scrollWidth, box.querySelector("mjx-container")?.scrollWidth ?? 0);
}

// A line does not begin with the full stop of the formula before it, nor end with the bracket that opens before one.
function keepPunctuation() {
  for (const formula of document.querySelectorAll("span.math")) {
    const {previousSibling: before, nextSibling: after} = formula;
    const opening = before?.nodeType === Node.TEXT_NODE ? before.data.match(/[(\[“]+$/)?.[0] ?? "" : "";
    const closing = after?.nodeType === Node.TEXT_NODE ? after.data.match(/^[.,;:!?)\]”’]+/)?.[0] ?? "" : "";
    if (!opening && !closing) continue;
    const together = document.createElement("span");
    together.className = "together";
    formula.replaceWith(together);
    together.append(opening, formula, closing);
    if (opening) before.data = before.data.slice(0, -opening.length);
    if (closing) after.data = after.data.slice(closing.length);
  }
}

// A figure leads to its own file, which can be enlarged and saved.
function linkFigures() {
  for (const image of document.querySelectorAll(".bd-article figure > img")) {
    const link = document.createElement("a");
    link.href = image.src;
    image.replaceWith(link);
    link.append(image);
  }
}

// What the theme and MathJax say to a screen reader: a name other than the text on a button, a list that has other things
// than items, and a link, to an equation, inside what is hidden from it. The link gets a name and is shown.
function mendNames() {
  for (const list of document.querySelectorAll(".citation-list")) list.removeAttribute("role");
  for (const named of document.querySelectorAll(".search-button-field, summary[aria-label]")) named.removeAttribute("aria-label");
  for (const link of document.querySelectorAll("mjx-container a[href]")) {
    const formula = link.closest("mjx-container"), said = formula.querySelector("mjx-assistive-mml");
    link.setAttribute("aria-label", `equation ${said?.textContent.trim() ?? ""}`);
    link.closest("[aria-hidden]")?.removeAttribute("aria-hidden");
    said?.setAttribute("aria-hidden", "true");
  }
}

document.addEventListener("DOMContentLoaded", async () => {
  await window.MathJax?.startup?.promise; // it measures what it sets, and its equations are targets of links
  mendNames();
  keepPunctuation();
  linkFigures();
  foldDeeper();
  fitWide();
  openWhatTheAddressNames();
  // Sphinx marks what a search was for only on pages without a search field; the theme's pages all have one.
  if (!document.getElementById("search-results")) SphinxHighlight.highlightSearchWords();
  window.addEventListener("hashchange", openWhatTheAddressNames);
  let width = 0; // of the text; beside a column that folds it takes a moment to arrive at
  const resized = new ResizeObserver(([{contentRect}]) => {
    if (contentRect.width !== width) fitWide();
    width = contentRect.width;
  });
  document.querySelectorAll(".bd-article").forEach(text => resized.observe(text));
  document.addEventListener("toggle", event => fitWide(event.target), true); // what is folded has no width
  document.addEventListener("click", event => { // a second click on a link leaves the address as it is
    if (event.target.closest("a[href^='#']")) setTimeout(openWhatTheAddressNames);
  });
  window.addEventListener("beforeprint", () => {
    for (const details of document.querySelectorAll("details.deeper")) details.open = true;
  });
});
