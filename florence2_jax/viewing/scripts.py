# SPDX-License-Identifier: Apache-2.0
"""The scripts of the pages; plain text, put into each page as it is.

`COMMON` comes first on every page, before the cards; it calls `start` when they are there. The page
of records keeps each card as inert text and makes it when it comes near the window: a thousand cost
little more than the few one looks at, and the first are seen before the last are read.
"""

COMMON = r"""
"use strict";
const all = (query, from = document) => [...from.querySelectorAll(query)];
const cards = document.getElementsByClassName("card");  // Grows while the page is read.
const count = document.getElementById("count");
const search = document.querySelector("input[type=search]");
const tip = document.getElementById("tip");

document.addEventListener("DOMContentLoaded", () => start());

// Switches: a place is shown while one of its kinds is on, with the first label that is on.
const switches = all("input[data-switch]");
function applySwitches(root) {
  const on = new Set(switches.filter(box => box.checked).map(box => box.dataset.switch));
  const shown = kind => switches.length === 0 || on.has(kind);
  for (const place of all("[data-kinds]", root)) {
    const kinds = place.dataset.kinds;
    place.classList.toggle("off", kinds !== "" && !kinds.split(" ").some(shown));
  }
  for (const chip of all(".chip", root)) {
    const first = all("b", chip).find(word => shown(word.dataset.kind));
    for (const word of all("b", chip)) word.classList.toggle("on", word === first);
  }
  // Words that belong to a place can be reached with the keyboard.
  for (const words of all("mark, tr[data-link], .tags li", root)) words.tabIndex = 0;
}
const labels = document.getElementById("labels");
if (labels) labels.onchange = () => document.body.classList.toggle("no-labels", !labels.checked);

// What belongs together lights up together, under the mouse or the keyboard.
let lit = [];
function light(event) {
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
}
document.addEventListener("mouseover", light);
document.addEventListener("focusin", light);
document.addEventListener("mousemove", event => {
  if (tip.hidden) return;
  const left = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8);
  const fits = event.clientY + 18 + tip.offsetHeight < innerHeight;
  tip.style.left = left + "px";
  tip.style.top = (fits ? event.clientY + 18 : event.clientY - tip.offsetHeight - 10) + "px";
});

// Keys: / finds, j and k step through the cards.
let step = card => { card.tabIndex = -1; card.focus({preventScroll: true});
  card.scrollIntoView({block: "start"}); };
document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.matches("input:not([type=checkbox]), select")) return;
  if (event.key === "/" && search) { event.preventDefault(); search.focus(); search.select(); }
  if (event.key !== "j" && event.key !== "k") return;
  const shown = [...cards].filter(card => card.getClientRects().length);
  const bar = document.querySelector(".bar");
  document.documentElement.style.setProperty("--bar",
    bar && getComputedStyle(bar).position === "sticky" ? bar.offsetHeight + "px" : "0px");
  const at = shown.indexOf(document.activeElement.closest(".card"));
  const next = at >= 0 ? at + (event.key === "j" ? 1 : -1)
    : shown.findIndex(card => card.getBoundingClientRect().bottom > innerHeight / 3);
  if (shown[next]) step(shown[next]);
});

const words = () => (search ? search.value : "").toLowerCase().split(/\s+/).filter(Boolean);
function tell(left, noun) {
  const few = left === cards.length ? "" : left.toLocaleString() + " of ";
  count.textContent = few + cards.length.toLocaleString() + " " + noun;
}
"""

PREDICTIONS = r"""
const texts = new Map();
function find() {
  const wanted = words();
  let left = 0;
  for (const card of cards) {
    if (wanted.length && !texts.has(card)) texts.set(card, card.textContent.toLowerCase());
    card.hidden = !wanted.every(word => texts.get(card).includes(word));
    left += !card.hidden && !card.parentElement.hidden;
  }
  tell(left, "answers");
}
function start() {
  // An image that several cards show is in the page once.
  for (const copy of all("img[data-copy]"))
    copy.src = document.getElementById(copy.dataset.copy).src;
  applySwitches(document);
  // Cards that hold the words looked for; one task alone; the worst first.
  const sections = all("section[data-task]"), given = [...cards];
  search.oninput = find;
  const task = document.getElementById("task");
  task.onchange = () => {
    for (const section of sections)
      section.hidden = task.value !== "" && section.dataset.task !== task.value;
    find();
  };
  const order = document.getElementById("order");
  order.onchange = () => {
    const place = card => order.value === "given" ? given.indexOf(card)
      : card.dataset.score === "" ? Infinity : Number(card.dataset.score);
    for (const section of sections)
      section.append(...all(".card", section).sort((a, b) => place(a) - place(b) || 0));
  };
  find();
}
"""

RECORDS = r"""
// A card holds its markup and its image as inert text, in two script elements of no language.
const made = new Set();
function make(card) {
  if (made.has(card)) return;
  made.add(card);
  const [markup, image] = card.children;
  image.insertAdjacentHTML("afterend", markup.textContent);
  const picture = card.querySelector("img");
  if (picture) picture.src = image.textContent;
  card.classList.add("made");
  card.style.minHeight = "";
  applySwitches(card);
  setAside(card);
}
function unmake(card, height) {
  // What somebody reads or has opened stays.
  if (!made.has(card) || card.contains(document.activeElement) || card.querySelector("[open]"))
    return;
  made.delete(card);
  while (card.children.length > 2) card.lastElementChild.remove();
  card.classList.remove("made");
  if (height) card.style.minHeight = height + "px";
}
const near = new IntersectionObserver(entries => {
  for (const entry of entries)
    if (entry.isIntersecting) make(entry.target);
    else unmake(entry.target, entry.boundingClientRect.height);
}, {rootMargin: "1500px 0px"});
// While the page is read, a card is whole when the next one begins.
let arriving = null;
const arrivals = new MutationObserver(changes => {
  for (const change of changes) for (const node of change.addedNodes)
    if (node.matches && node.matches(".later")) {
      if (arriving) near.observe(arriving);
      arriving = node;
    }
});
arrivals.observe(document.body, {childList: true, subtree: true});
const plainStep = step;
step = card => { make(card); plainStep(card); };

// Filters. Those of annotations (label, maker, score) must hold for one annotation together; a card
// is shown if it has such a one, and what else it has steps back.
let index = null;
const rowOf = new Map();
const filters = Object.fromEntries(all("[data-filter]").map(f => [f.dataset.filter, f]));
const resting = field => field.type === "range" ? "0" : "";
const isSet = name => filters[name].value !== resting(filters[name]);
const asked = {makers: "", score: 0, labels: null};

function offer(name, rows) {
  const field = filters[name];
  const into = field.list || field;
  for (const [value, text, num] of rows) {
    const option = document.createElement("option");
    option.value = value;
    option.textContent = field.list ? num.toLocaleString()
      : text + " (" + num.toLocaleString() + ")";
    into.append(option);
  }
  field.closest("label").hidden = rows.length < 2;
}
/** The numbers of the names looked for: the very name if there is one, else all that hold it. */
function namesLike(name) {
  if (!isSet(name)) return null;
  const wanted = filters[name].value.trim().toLowerCase();
  const hits = test => index[name].flatMap(([text], k) => test(text.toLowerCase()) ? [k] : []);
  const exact = hits(text => text === wanted);
  return new Set(exact.length ? exact : hits(text => text.includes(wanted)));
}
const isAsked = () => asked.makers !== "" || asked.score > 0 || asked.labels !== null;
const fits = ([, maker, score, ...named]) =>
  (asked.makers === "" || maker === Number(asked.makers)) &&
  (asked.score === 0 || (score !== null && score >= asked.score)) &&
  (asked.labels === null || named.some(name => asked.labels.has(name)));

const entities = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"', "&#x27;": "'"};
const texts = new Map();
function textOf(card) {
  if (!texts.has(card))
    texts.set(card, card.firstElementChild.textContent.replace(/<\/?mark[^>]*>/g, "")
      .replace(/<[^>]*>/g, " ").replace(/&(amp|lt|gt|quot|#x27);/g, e => entities[e])
      .toLowerCase());
  return texts.get(card);
}
function setAside(card) {
  const kept = isAsked() ? new Set(rowOf.get(card).notes.filter(fits).map(note => note[0])) : null;
  for (const element of all("[data-note], svg [data-link], .chip, tr[data-link]", card)) {
    const note = element.dataset.note || element.dataset.link.match(/^[a-z]\d+/)[0];
    element.classList.toggle("aside", kept !== null && !kept.has(note));
  }
}
function apply() {
  const wanted = words(), task = filters.tasks.value, origins = namesLike("origins");
  asked.makers = filters.makers.value;
  asked.score = Number(filters.score.value);
  asked.labels = namesLike("labels");
  let left = 0;
  for (const card of cards) {
    const row = rowOf.get(card);
    card.hidden = !((task === "" || row.tasks.includes(Number(task))) &&
      (origins === null || origins.has(row.origin)) &&
      (!isAsked() || row.notes.some(fits)) &&
      wanted.every(word => textOf(card).includes(word)));
    left += !card.hidden;
  }
  for (const card of made) setAside(card);
  tell(left, "records");
  document.getElementById("none").hidden = left > 0 || cards.length === 0;
  document.getElementById("clear").hidden = !Object.keys(filters).some(isSet);
  document.getElementById("least").textContent = asked.score ? asked.score.toFixed(2) : "any";
}

// The filters stand in the address, by name, so that a view can be sent on or gone back to.
const named = name => filters[name].tagName === "SELECT";
function write() {
  const state = new URLSearchParams();
  for (const name of Object.keys(filters)) if (isSet(name))
    state.set(name, named(name) ? index[name][Number(filters[name].value)][0]
      : filters[name].value);
  history.replaceState(null, "", "#" + state);
}
function read() {
  const state = new URLSearchParams(location.hash.slice(1));
  for (const [name, field] of Object.entries(filters)) {
    const value = state.get(name);
    const k = named(name) ? index[name].findIndex(([text]) => text === value) : -1;
    field.value = value === null || (named(name) && k < 0) ? resting(field)
      : named(name) ? String(k) : value;
  }
  apply();
}
function setUp() {
  const numbered = index.tasks.map(([text, num], k) => [String(k), text, num]);
  offer("tasks", numbered.filter(row => row[2]));
  const byNumber = name => index[name].map(([text, num], k) => [String(k), text, num])
    .filter(row => row[1].trim()).sort((a, b) => b[2] - a[2]);
  offer("makers", byNumber("makers"));
  for (const name of ["labels", "origins"])
    offer(name, byNumber(name).slice(0, 1000).map(([, text, num]) => [text, text, num]));
  filters.score.closest("label").hidden = !index.has_scores;
  for (const field of Object.values(filters)) field.addEventListener("input", () => {
    apply();
    write();
  });
  document.getElementById("clear").onclick = () => {
    for (const field of Object.values(filters)) field.value = resting(field);
    apply();
    write();
  };
  for (const box of switches) {
    const num = index.places[box.dataset.switch] || 0;
    box.closest("label").hidden = num === 0;
    box.parentElement.querySelector("small").textContent = num.toLocaleString();
    box.onchange = () => { for (const card of made) applySwitches(card); };
  }
}
function start() {
  arrivals.disconnect();
  if (arriving) near.observe(arriving);
  index = JSON.parse(document.getElementById("index").textContent);
  [...cards].forEach((card, k) => rowOf.set(card, index.records[k]));
  setUp();
  addEventListener("hashchange", read);
  read();
  document.getElementById("filters").inert = false;
}
"""
