# SPDX-License-Identifier: Apache-2.0
"""The style sheet and the script of all pages; plain text, put into each page as it is.

`--c` is the colour of a label, `--ink` black or white, whichever can be read on it.
"""

STYLE = """
:root { color-scheme: light dark; --paper:#f4f5f7; --card:#fff; --text:#1b1d23; --soft:#646b79;
  --line:#dfe2e8; --tint:#eef0f4; --accent:#2557d6; --warn:#9a3a00; --warn-tint:#fff1e2; }
@media (prefers-color-scheme: dark) { :root { --paper:#121419; --card:#1b1e25; --text:#e7e9ee;
  --soft:#9aa2b1; --line:#2e333d; --tint:#252932; --accent:#83a6ff; --warn:#ffb27a;
  --warn-tint:#3a2716; } }
* { box-sizing: border-box }
body { margin:0; background:var(--paper); color:var(--text);
  font:15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif }
header, main, .top, .bar > div { max-width:1360px; margin:0 auto; padding:0 24px }
header { padding-top:28px }
h1 { font-size:27px; line-height:1.2; margin:0 0 6px; letter-spacing:-.01em;
  overflow-wrap:anywhere }
h2 { font-size:20px; margin:34px 0 2px } h2 + p { margin:0 0 14px; color:var(--soft) }
h3 { font-size:11.5px; letter-spacing:.07em; text-transform:uppercase; color:var(--soft);
  margin:18px 0 4px; font-weight:650 }
h3:first-child { margin-top:0 }
.lead { margin:0; color:var(--soft); max-width:110ch }
.soft, .by { color:var(--soft); font-size:13px } .by { margin-left:.5em; white-space:nowrap }
.top { padding-top:16px }
.legend { display:flex; flex-wrap:wrap; gap:4px 20px; color:var(--soft); font-size:13.5px;
  margin:12px 0 0; padding:0; list-style:none; align-items:center }
.legend svg { width:26px; height:17px; vertical-align:-3px; margin-right:7px; overflow:visible }
.legend svg * { stroke:var(--text); stroke-width:1.8; fill:none }
.legend svg .poly { fill:var(--text); fill-opacity:.2 }
.bar { position:sticky; top:0; z-index:9; margin-top:16px; background:var(--card);
  border-block:1px solid var(--line) }
.bar > div { display:flex; flex-wrap:wrap; gap:6px 16px; align-items:center; padding-block:9px }
.bar label { display:inline-flex; gap:6px; align-items:center; cursor:pointer }
.bar label[hidden] { display:none }
.bar small { color:var(--soft); font-variant-numeric:tabular-nums }
.bar input[type=checkbox] { accent-color:var(--accent); margin:0; width:15px; height:15px }
.bar input[type=search] { margin-left:auto; width:180px }
.bar input[type=search], .bar select { font:inherit; font-size:14px; padding:3px 10px;
  color:inherit; border:1px solid var(--line); border-radius:8px; background:var(--tint) }
main { padding-bottom:60px }
.card { background:var(--card); border:1px solid var(--line); border-radius:14px; margin:18px 0;
  padding:18px; content-visibility:auto; contain-intrinsic-size:auto 520px; display:grid;
  grid-template-columns:minmax(0,11fr) minmax(0,9fr); gap:6px 26px; align-items:start }
.card[hidden], section[hidden] { display:none }
.card > .head { grid-column:1/-1; display:flex; gap:4px 14px; align-items:baseline;
  flex-wrap:wrap; margin-bottom:6px }
.head b { overflow-wrap:anywhere } .head .score { margin-left:auto }
.prompt { flex-basis:100%; font-size:16px; overflow-wrap:anywhere }
.words { margin:2px 0 6px; white-space:pre-wrap; overflow-wrap:anywhere }
.figure { position:relative; aspect-ratio:var(--ratio); margin:0 auto;
  width:min(100%, 560px * var(--ratio)); border-radius:6px; background:var(--tint) }
.figure img { width:100%; height:100%; display:block; border-radius:6px;
  image-orientation:none }
.figure svg { position:absolute; inset:0; width:100%; height:100%; overflow:hidden;
  border-radius:6px; filter:drop-shadow(0 0 .6px rgb(0 0 0 / .9)) }
.no-image { position:absolute; inset:0; display:grid; place-content:center; text-align:center;
  padding:12px; color:var(--warn); background:var(--warn-tint); border-radius:6px }
.figure rect, .figure polygon { fill:var(--c); fill-opacity:0; stroke:var(--c); stroke-width:2;
  stroke-linejoin:round; vector-effect:non-scaling-stroke; pointer-events:all }
.figure .poly { fill-opacity:.2; stroke-width:1.4 }
.figure .crowd, .legend .crowd { stroke-dasharray:9 6 }
.figure .crowd.poly { stroke:none }
.figure .grounding, .legend .grounding { stroke-dasharray:.1 5; stroke-linecap:round }
.figure .grounding { stroke-width:2.6 }
.figure .asked { stroke-dasharray:.1 5; stroke-linecap:round; stroke-width:3 }
.dim svg :not(.lit), .dim .chip:not(.lit) { opacity:.22 }
.figure .lit { stroke-width:3.4 } .figure rect.lit { fill-opacity:.14 }
.chip { position:absolute; background:var(--c); color:var(--ink); pointer-events:none;
  font-size:12px; line-height:17px; padding:0 5px; border-radius:3px; white-space:nowrap;
  overflow:hidden; text-overflow:ellipsis }
.chip b { display:none; font-weight:600 } .chip b.on { display:inline }
.chip.above { transform:translateY(-100%) } .chip.lit { z-index:3 }
.chip.shy:not(.lit), .no-labels .chip:not(.lit), .off { display:none }
.notes { max-height:660px; overflow:auto; scrollbar-width:thin }
mark { background:color-mix(in srgb, var(--c) 26%, transparent); color:inherit; cursor:default;
  border-bottom:2.5px solid var(--c); border-radius:3px 3px 0 0; padding:0 1px }
mark.lit { background:var(--c); color:var(--ink) }
.tags { display:flex; flex-wrap:wrap; gap:4px; margin:10px 0 0; padding:0; list-style:none;
  font-size:13px; max-height:168px; overflow:auto }
.tags li { padding:0 7px; border-radius:5px; border:1px solid var(--line); cursor:default;
  overflow-wrap:anywhere }
.tags li.lit { background:var(--tint) }
.swatch { display:inline-block; width:10px; height:10px; border-radius:3px; background:var(--c);
  margin-right:6px; box-shadow:0 0 0 1px rgb(0 0 0 / .25) }
.qa { margin:0 } .qa dd { margin:0 0 6px; } .qa dt { font-weight:600 }
.list { margin:0; padding:0; list-style:none } .list li { margin:2px 0; overflow-wrap:anywhere }
summary { cursor:pointer; color:var(--accent); font-size:14px; margin-top:10px }
details table, .metrics { border-collapse:collapse; width:100% }
details table { font-size:13px } details td { padding:3px 8px 3px 0; vertical-align:top;
  border-top:1px solid var(--line); overflow-wrap:anywhere }
details tr.lit { background:var(--tint) }
pre { margin:6px 0 0; white-space:pre-wrap; overflow-wrap:anywhere; font-size:12.5px;
  background:var(--tint); padding:8px 10px; border-radius:8px }
.warn { color:var(--warn); background:var(--warn-tint); border-radius:8px; padding:6px 10px;
  margin:10px 0 0; overflow-wrap:anywhere; font-size:14px }
.badge { font-size:12.5px; border-radius:6px; padding:0 7px; background:var(--tint);
  border:1px solid var(--line); font-variant-numeric:tabular-nums; white-space:nowrap }
.card.pair { grid-template-columns:minmax(0,1fr) minmax(0,1fr) }
.card.told { grid-template-columns:minmax(0,2fr) minmax(0,3fr)
  minmax(0,3fr) }
.pair .figure { width:min(100%, 460px * var(--ratio)) }
.told .figure { width:min(100%, 320px * var(--ratio)) }
.metrics { background:var(--card); border:1px solid var(--line); border-radius:12px;
  border-spacing:0; border-collapse:separate; overflow:hidden }
.metrics th, .metrics td { text-align:left; padding:7px 14px; border-top:1px solid var(--line) }
.metrics thead th { border-top:0; font-size:12.5px; color:var(--soft); font-weight:600 }
.metrics .num { text-align:right; font-variant-numeric:tabular-nums; white-space:nowrap }
.metrics .bars { width:34% } .bars i { display:block; height:9px; border-radius:3px;
  background:var(--accent); min-width:2px } .bars i.blind { background:var(--soft);
  opacity:.55; height:6px; margin-top:3px }
.key i { display:inline-block; width:22px; height:9px; border-radius:3px; margin-right:6px;
  background:var(--accent) } .key i.blind { background:var(--soft); opacity:.55; height:6px;
  margin-left:14px; vertical-align:1px }
.empty { text-align:center; color:var(--soft); padding:80px 0 }
#tip { position:fixed; z-index:20; max-width:min(440px, 90vw); padding:7px 11px; font-size:13px;
  border-radius:8px; background:#14161b; color:#f2f3f6; white-space:pre-line; pointer-events:none;
  box-shadow:0 4px 18px rgb(0 0 0 / .35); overflow-wrap:anywhere }
#tip[hidden] { display:none }
@media (max-width: 860px) { .card, .card.pair, .card.told { grid-template-columns:minmax(0,1fr) }
  header, main, .top, .bar > div { padding-inline:14px } .metrics .bars { display:none }
  .metrics th, .metrics td { padding-inline:8px } }
"""

SCRIPT = """
"use strict";
const all = (query, from = document) => [...from.querySelectorAll(query)];
const cards = all(".card");

// An image that several cards show is in the page once.
for (const copy of all("img[data-copy]"))
  copy.src = document.getElementById(copy.dataset.copy).src;

// Switches: a place is shown while one of its kinds is on, with the first label that is on.
const switches = all("input[data-switch]");
for (const box of switches) {
  const found = new Set(all("[data-kinds~=" + box.dataset.switch + "]:not(.chip)").map(
    e => cards.indexOf(e.closest(".card")) + e.dataset.link));
  box.closest("label").hidden = found.size === 0;
  box.parentElement.querySelector("small").textContent = found.size.toLocaleString();
}
function applySwitches() {
  const on = new Set(switches.filter(box => box.checked).map(box => box.dataset.switch));
  const shown = kind => switches.length === 0 || on.has(kind);
  for (const place of all("[data-kinds]")) {
    const kinds = place.dataset.kinds;
    place.classList.toggle("off", kinds !== "" && !kinds.split(" ").some(shown));
  }
  for (const chip of all(".chip")) {
    const first = all("b", chip).find(word => shown(word.dataset.kind));
    for (const word of all("b", chip)) word.classList.toggle("on", word === first);
  }
}
for (const box of switches) box.onchange = applySwitches;
applySwitches();
const labels = document.getElementById("labels");
if (labels) labels.onchange = () => document.body.classList.toggle("no-labels", !labels.checked);

// What belongs together lights up together; a tip follows the mouse.
const tip = document.getElementById("tip");
let lit = [];
document.addEventListener("mouseover", event => {
  const at = event.target.closest("[data-link]");
  for (const element of lit) element.classList.remove("lit", "dim");
  lit = [];
  if (at) {
    const card = at.closest(".card");
    lit = all('[data-link="' + at.dataset.link + '"]', card);
    for (const element of lit) element.classList.add("lit");
    card.classList.add("dim");
    lit.push(card);
  }
  const told = event.target.closest("[data-tip]");
  tip.hidden = !told;
  if (told) tip.textContent = told.dataset.tip;
});
document.addEventListener("mousemove", event => {
  const left = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8);
  const fits = event.clientY + 18 + tip.offsetHeight < innerHeight;
  tip.style.left = left + "px";
  tip.style.top = (fits ? event.clientY + 18 : event.clientY - tip.offsetHeight - 10) + "px";
});

// Cards that hold the words looked for; one task alone; the worst first.
const search = document.querySelector("input[type=search]");
const count = document.getElementById("count");
const texts = new Map();
function find() {
  const words = (search ? search.value : "").toLowerCase().split(/\\s+/).filter(Boolean);
  let left = 0;
  for (const card of cards) {
    if (words.length && !texts.has(card)) texts.set(card, card.textContent.toLowerCase());
    card.hidden = !words.every(word => texts.get(card).includes(word));
    left += !card.hidden && !card.parentElement.hidden;
  }
  const noun = document.body.querySelector("main section") ? "answers" : "records";
  if (count) count.textContent = left === cards.length ? left.toLocaleString() + " " + noun
    : left.toLocaleString() + " of " + cards.length.toLocaleString() + " " + noun;
}
if (search) search.oninput = find;
const task = document.getElementById("task");
if (task) task.onchange = () => {
  for (const section of all("section[data-task]"))
    section.hidden = task.value !== "" && section.dataset.task !== task.value;
  find();
};
const order = document.getElementById("order");
if (order) order.onchange = () => {
  const place = card => order.value === "given" ? cards.indexOf(card)
    : card.dataset.score === "" ? Infinity : Number(card.dataset.score);
  for (const section of all("section[data-task]"))
    section.append(...all(".card", section).sort((a, b) => place(a) - place(b) || 0));
};
find();
"""
