# SPDX-License-Identifier: Apache-2.0
"""The script of the audit page; plain text, served as it is.

The token comes with the address, behind `#`, which browsers do not send; every request carries it.
"""

SCRIPT = r"""
"use strict";
const at = id => document.getElementById(id);
const token = location.hash.slice(1);
const session = [...crypto.getRandomValues(new Uint8Array(12))].map(b => b.toString(36)).join("-");
const QUESTIONS = {
  text: "Does this text describe the image?", region: "Is this what the box holds?",
  phrase: "Is this phrase where the boxes are?", question: "Is this the answer?" };
const KINDS = { category: "Is this the class of what the box holds?",
  text: "Is this what is written in the box?", phrase: "Does this phrase mean what the box holds?",
  brief: "Does this describe what the box holds?" };
const SVG = "http://www.w3.org/2000/svg";
let asked = null;       // The statement that is shown.
let past = [];          // Statements judged or put off in this window, the oldest first.
let place = 0;          // Of `asked` in `past`; its length for a new one.
let box = null;         // While a box is edited.
let isBusy = false;

async function api(name, body) {
  let reply;
  try {
    reply = await fetch("/api/" + name, { method: "POST", body: JSON.stringify(
      { session, who: at("who").value.trim(), ...body }),
      headers: { "Content-Type": "application/json", "X-Audit-Token": token } });
  } catch {
    throw new Error("The server does not answer. Nothing was kept; try again when it runs.");
  }
  const answer = await reply.json();
  if (!reply.ok) throw new Error(answer.error || reply.statusText);
  if ("num_asked" in answer) showProgress(answer);
  return answer;
}

// One thing at a time: a key pressed twice judges once.
async function doing(work) {
  if (isBusy) return;
  isBusy = true;
  document.body.classList.add("busy");
  try { at("message").hidden = true; await work(); }
  catch (error) { tell(error.message); }
  finally { isBusy = false; document.body.classList.remove("busy"); }
}
function tell(text) { at("message").textContent = text; at("message").hidden = false; }

function showProgress(answer) {
  at("progress").max = Math.max(answer.num_asked, 1);
  at("progress").value = answer.num_judged;
  at("count").textContent = answer.num_judged + " of " + answer.num_asked + " judged";
  at("count").title = Object.entries(answer.people).map(([who, n]) => who + ": " + n).join("\n");
}

async function next() {
  const answer = await api("next", {});
  place = past.length;
  await show(answer.asked);
}

async function judge(ruling, change) {
  const { id, key } = asked;
  await api("verdict", { id, key, ruling, ...change });
  if (place === past.length) past.push({ id, key });
  await forward();
}

async function forward() {
  place += 1;
  if (place >= past.length) return next();
  return show((await api("keep", past[place])).asked);
}

async function later() {
  if (place === past.length) {
    const { id, key } = asked;
    await api("skip", { id, key });
    past.push({ id, key });
  }
  await forward();
}

async function back() {
  if (place === 0) { tell("This is the first one of this window."); return; }
  const answer = await api("keep", past[place - 1]);
  if (!answer.held) { tell("Somebody else is looking at that one now."); return; }
  place -= 1;
  await show(answer.asked);
}

async function show(next) {
  asked = next;
  closeEditor();
  at("nothing").hidden = asked !== null;
  at("work").hidden = asked === null;
  if (asked === null) return;
  const lookup = asked.kind === "region" ? KINDS[asked.what] : QUESTIONS[asked.kind];
  at("question").textContent = lookup || QUESTIONS[asked.kind];
  showClaim();
  at("maker").textContent = (asked.is_added ? "Predicted by " : "Said by ") + asked.maker +
    (asked.score === null ? "" : ", score " + asked.score.toFixed(2));
  at("reasons").replaceChildren(...asked.reasons.map(reason => element("li", reason)));
  at("place").textContent = asked.id + " · " + asked.width + " × " + asked.height + " px";
  const last = asked.verdict;
  at("before").textContent = last ? past_tense(last) : "";
  for (const id of ["accept", "reject", "correct"])
    at(id).classList.toggle("chosen", Boolean(last) && last.ruling === id);
  at("figure").style.setProperty("--ratio", asked.width / asked.height);
  at("shapes").setAttribute("viewBox", "0 0 " + asked.width + " " + asked.height);
  draw();
  await showImage(asked.id);
}
function past_tense(last) {
  const ruling = { accept: "accepted", reject: "rejected", correct: "corrected" }[last.ruling];
  const what = last.text === null ? "" : " to: " + last.text;
  return last.who + " " + ruling + " it" + what + " (" + last.when.replace("T", " ") + ")";
}

function showClaim() {
  const claim = at("claim");
  let parts = [asked.text || "(something, without a label)"];
  if (asked.kind === "question") parts = [asked.what + "\n", element("mark", asked.text)];
  if (asked.kind === "phrase") {
    // Python counts characters, scripts count halves of those beyond 16 bits.
    const letters = [...asked.what], size = [...asked.text].length;
    parts = [letters.slice(0, asked.start).join(""), element("mark", asked.text),
      letters.slice(asked.start + size).join("")];
  }
  claim.replaceChildren(...parts);
  claim.classList.toggle("long", claim.textContent.length > 60);
  at("chip").textContent = asked.boxes.length ? asked.text.slice(0, 60) : "";
}

async function showImage(id) {
  const image = at("image");
  if (image.dataset.id !== id) {
    image.removeAttribute("src");
    image.dataset.id = id;
    const answer = await api("image", { id });
    image.alt = answer.error ? "The image cannot be shown: " + answer.error : id;
    if (answer.uri) { image.src = answer.uri; await image.decode().catch(() => {}); }
  }
  drawLoupe();
}

// Drawing.
function element(tag, text) {
  const made = document.createElement(tag);
  made.textContent = text;
  return made;
}
function add(tag, attributes, classes) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.setAttribute("class", classes);
  at("shapes").append(made);
  return made;
}
function rect([x0, y0, x1, y1], classes) {
  return add("rect", { x: x0, y: y0, width: Math.max(x1 - x0, 0), height: Math.max(y1 - y0, 0) },
    classes);
}
function draw() {
  at("shapes").replaceChildren();
  if (at("others").checked)
    for (const other of asked.others) for (const one of other.boxes) rect(one, "other");
  const mine = box ? [box] : asked.boxes;
  if (box) { rect([0, 0, asked.width, asked.height], "ground"); rect(asked.boxes[0], "mine old"); }
  if (!box) for (const one of mine) {
    if (!asked.rings.length) rect(one, "edge");
    rect(one, asked.rings.length ? "mine old" : "mine");
  }
  for (const ring of box ? [] : asked.rings) {
    const points = [];
    for (let k = 0; k + 1 < ring.length; k += 2) points.push(ring[k] + "," + ring[k + 1]);
    add("polygon", { points: points.join(" ") }, "edge");
    add("polygon", { points: points.join(" ") }, "mine");
  }
  if (box) {
    rect(box, "edge");
    rect(box, "mine");
    rect(box, "body");
    const r = 5 * asked.width / Math.max(at("shapes").clientWidth, 1);
    for (const [i, j] of [[0, 1], [2, 1], [0, 3], [2, 3]]) {
      const handle = rect([box[i] - r, box[j] - r, box[i] + r, box[j] + r], "handle");
      handle.dataset.corner = i + "" + j;
    }
  }
  placeChip(mine[0]);
  drawLoupe();
}
function placeChip(first) {
  const chip = at("chip");
  chip.hidden = !first || !chip.textContent;
  if (!first) return;
  const isRight = first[0] > 0.6 * asked.width;
  chip.style.left = isRight ? "auto" : 100 * first[0] / asked.width + "%";
  chip.style.right = isRight ? 100 - 100 * first[2] / asked.width + "%" : "auto";
  chip.style.top = 100 * first[1] / asked.height + "%";
  chip.classList.toggle("above", first[1] > 0.08 * asked.height);
}
// What is in a small box, enlarged.
function drawLoupe() {
  const first = box || (asked && asked.boxes[0]), image = at("image"), loupe = at("loupe");
  const share = first ? (first[2] - first[0]) * (first[3] - first[1]) : 0;
  loupe.hidden = !image.naturalWidth || !image.src || !first || asked.boxes.length > 1 ||
    share > 0.15 * asked.width * asked.height;
  if (loupe.hidden) return;
  const k = image.naturalWidth / asked.width, shape = loupe.width / loupe.height;
  const h = Math.max((first[3] - first[1]) * 1.5, (first[2] - first[0]) * 1.5 / shape, 12);
  const w = h * shape, x = (first[0] + first[2] - w) / 2, y = (first[1] + first[3] - h) / 2;
  const context = loupe.getContext("2d");
  context.clearRect(0, 0, loupe.width, loupe.height);
  context.drawImage(image, x * k, y * k, w * k, h * k, 0, 0, loupe.width, loupe.height);
  const zoom = loupe.width / w;
  context.strokeStyle = "#fff000";
  context.lineWidth = 2;
  context.strokeRect((first[0] - x) * zoom, (first[1] - y) * zoom, (first[2] - first[0]) * zoom,
    (first[3] - first[1]) * zoom);
}

// Correcting.
const NUMBERS = ["x0", "y0", "x1", "y1"];
function openEditor() {
  const hasBox = asked.boxes.length === 1, hasText = asked.kind !== "phrase";
  if (!hasBox && !hasText) {
    tell("A phrase of several boxes can be accepted or rejected.");
    return;
  }
  at("editor").hidden = false;
  at("rulings").hidden = at("moves").hidden = true;
  at("text-field").hidden = !hasText;
  at("box-field").hidden = !hasBox;
  const last = asked.verdict || {};
  at("text").value = last.text || (asked.is_clipped ? "" : asked.text);
  box = hasBox ? [...(last.box || asked.boxes[0])] : null;
  writeNumbers();
  draw();
  if (hasText) { at("text").focus(); at("text").select(); } else at("x0").focus();
}
function closeEditor() {
  at("editor").hidden = true;
  at("rulings").hidden = at("moves").hidden = false;
  box = null;
  if (document.activeElement) document.activeElement.blur();
}
function writeNumbers() {
  if (box) NUMBERS.forEach((id, k) => { at(id).value = Math.round(box[k] * 10) / 10; });
}
function readNumbers() {
  box = NUMBERS.map(id => at(id).valueAsNumber || 0);
  draw();
}
async function save() {
  const change = {}, text = at("text").value.trim();
  if (!at("text-field").hidden && text && text !== asked.text) change.text = text;
  if (box && box.some((v, k) => Math.abs(v - asked.boxes[0][k]) > 0.06)) change.box = box;
  if (!Object.keys(change).length) throw new Error("Nothing was changed. Cancel, then accept it.");
  await judge("correct", change);
}
let drag = null;
const shapes = at("shapes");
function pixel(event) {
  const frame = shapes.getBoundingClientRect();
  const clamp = (v, most) => Math.min(Math.max(v, 0), most);
  return [clamp((event.clientX - frame.left) / frame.width * asked.width, asked.width),
    clamp((event.clientY - frame.top) / frame.height * asked.height, asked.height)];
}
shapes.addEventListener("pointerdown", event => {
  if (!box) return;
  event.preventDefault();
  const [x, y] = pixel(event), target = event.target;
  if (target.dataset.corner) {
    const [i, j] = [...target.dataset.corner].map(Number);
    drag = { fixed: [box[2 - i], box[4 - j]] };
  } else if (target.classList.contains("body")) drag = { from: [x, y], start: [...box] };
  else drag = { fixed: [x, y] };
  shapes.setPointerCapture(event.pointerId);
});
shapes.addEventListener("pointermove", event => {
  if (!drag || !box) return;
  const [x, y] = pixel(event);
  if (drag.fixed) {
    const [u, v] = drag.fixed;
    box = [Math.min(u, x), Math.min(v, y), Math.max(u, x), Math.max(v, y)];
  } else {
    const [a, b, c, d] = drag.start;
    const dx = Math.min(Math.max(x - drag.from[0], -a), asked.width - c);
    const dy = Math.min(Math.max(y - drag.from[1], -b), asked.height - d);
    box = [a + dx, b + dy, c + dx, d + dy];
  }
  writeNumbers();
  draw();
});
for (const kind of ["pointerup", "pointercancel"])
  shapes.addEventListener(kind, () => { drag = null; });

// Buttons and keys.
const ACTIONS = {
  a: () => doing(() => judge("accept", {})), r: () => doing(() => judge("reject", {})),
  c: () => openEditor(), ArrowRight: () => doing(later), ArrowLeft: () => doing(back),
  o: () => { at("others").checked = !at("others").checked; draw(); } };
at("accept").onclick = ACTIONS.a;
at("reject").onclick = ACTIONS.r;
at("correct").onclick = ACTIONS.c;
at("skip").onclick = ACTIONS.ArrowRight;
at("back").onclick = ACTIONS.ArrowLeft;
at("others").onchange = draw;
at("cancel").onclick = () => { closeEditor(); draw(); };
at("help-button").onclick = () => at("help").showModal();
for (const id of NUMBERS) at(id).oninput = readNumbers;
at("editor").onsubmit = event => { event.preventDefault(); doing(save); };
at("text").onkeydown = event => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    doing(save);
  }
};
document.addEventListener("keydown", event => {
  if (at("help").open || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Escape" && !at("editor").hidden) { at("cancel").onclick(); return; }
  if (event.target.matches("input:not([type=checkbox]), textarea") || event.repeat) return;
  if (event.key === "?") { at("help").showModal(); return; }
  const action = ACTIONS[event.key];
  if (!action || at("hello").hidden === false || !at("editor").hidden) return;
  if (asked === null && event.key !== "ArrowLeft") return;
  event.preventDefault();
  action();
});
addEventListener("resize", () => { if (asked) draw(); });
setInterval(() => {
  if (!asked || isBusy) return;
  api("keep", { id: asked.id, key: asked.key }).then(answer => {
    if (!answer.held) tell("Somebody else has this one by now; both verdicts will be kept.");
  }).catch(error => tell(error.message));
}, 30000);

// Beginning.
at("who").value = localStorage.getItem("who") || "";
at("hello").onsubmit = event => {
  event.preventDefault();
  const who = at("who").value.trim();
  if (!who) return;
  localStorage.setItem("who", who);
  at("hello").hidden = true;
  doing(next);
};
if (!token) tell("This page needs the whole address that `florence2-jax audit serve` printed.");
else { at("hello").hidden = false; at("who").focus(); }
"""
