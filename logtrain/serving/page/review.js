// The page of a review: one row at a time. No text of a row becomes HTML; characters that steer or hide text are shown
// as their escapes, and what an answer names and the texts before it do not have is underlined.

import { annotate } from "./annotate.js";
import { kept } from "./conversation.js";
import { Source, entityRules } from "./entities.js";
import { element, printable } from "./markdown.js";
import { Rows } from "./rows.js";

const $ = (selector) => document.querySelector(selector);
const DONE = { accept: "accepted", edit: "edited", reject: "rejected", open: "undecided" };
const KEYS = { a: "accept", e: "edit", r: "reject", u: "open", j: "after", k: "before", ArrowRight: "after", ArrowLeft: "before", "?": "help" };
const rules = entityRules(RULES);
let rows = null;
let shown = null; // {row, parts, verdict, edits, note}
let isEditing = false;
let isSaving = false;
let chosen = ""; // colours, as they are set on the other page

function say(text, isWrong = false) {
  $("#status").textContent = printable(text);
  $("#status").classList.toggle("wrong", isWrong);
}

// ---- what is shown

async function show(row, said = "") {
  try {
    shown = await rows.parts(row);
  } catch (error) {
    return say(String(error.message), true);
  }
  isEditing = false;
  draw();
  history.replaceState(null, "", `#${row}`);
  $("#review").scrollTop = 0;
  $("#title").focus({ preventScroll: true });
  say([said, `${rows.decided.toLocaleString("en")} of ${rows.count.toLocaleString("en")} rows are decided.`].filter(Boolean).join(" "));
}

function draw() {
  const { row, verdict } = shown;
  const mark = element("span", { className: "verdict" }, DONE[verdict]);
  $("#title").replaceChildren(`Row ${row} `, mark);
  $("#number").value = row;
  $("#note").value = shown.note;
  for (const name of ["accept", "edit", "reject"]) $(`#${name}`).setAttribute("aria-pressed", String(verdict === name));
  for (const name of ["accept", "edit", "reject", "open"]) $(`#${name}`).hidden = isEditing;
  for (const name of ["save", "cancel"]) $(`#${name}`).hidden = !isEditing;
  $("#parts").replaceChildren(...shown.parts.map(drawPart));
  if (!isEditing) shown.parts.forEach(markUnknown);
}

const textOf = (part) => shown.edits[part.path] ?? part.text;

function drawPart(part, at) {
  const name = printable(part.name);
  const title = element("h3", { id: `part-${at}` }, name + (part.path in shown.edits ? ", edited" : ""));
  const box = isEditing
    ? element("textarea", { value: textOf(part), rows: Math.min(20, 2 + textOf(part).split("\n").length), "aria-labelledby": `part-${at}` })
    : element("pre", { tabIndex: 0, role: "region", "aria-labelledby": `part-${at}` }, printable(textOf(part)));
  return element("section", { className: part.is_answer ? "part answer" : "part" }, title, box);
}

// Underlines what an answer names and nothing before it has. Lines are no entities: what counts them is not the log alone.
function markUnknown(part, at) {
  if (!part.is_answer) return;
  const before = shown.parts.slice(0, at).filter((other) => !other.is_answer);
  const source = new Source(before.map(textOf).join("\n"), "", 1, rules.units);
  const entities = (text) => rules.entities(text).filter((entity) => entity.kind !== "line");
  const section = $("#parts").children[at];
  const { total, unknown } = annotate(section, entities, source, true, () => {});
  if (total) section.append(element("p", { className: "facts" }, `${unknown} of ${total} ${total === 1 ? "entity is" : "entities are"} not in the text before`));
}

// ---- what is decided

async function decide(verdict, edits = {}) {
  if (isSaving) return;
  isSaving = true;
  const { row } = shown;
  try {
    await rows.decide(row, verdict, edits, $("#note").value.trim());
  } catch (error) {
    say(`Not saved: ${error.message}`, true);
    return;
  } finally {
    isSaving = false;
  }
  const said = `Row ${row} is ${DONE[verdict]}.`;
  const next = verdict === "open" ? row : (rows.next(row, 1, $("#which").value || "open") ?? rows.next(row, 1, $("#which").value));
  await show(next ?? row, next === null ? `${said} It is the last one.` : said);
}

function beginEdit() {
  isEditing = true;
  draw();
  const answer = shown.parts.findIndex((part) => part.is_answer);
  $("#parts").children[Math.max(answer, 0)].querySelector("textarea").focus();
  say("Ctrl and Enter save, Escape leaves the row as it was.");
}

function saveEdit() {
  const boxes = [...document.querySelectorAll("#parts textarea")];
  const pairs = shown.parts.map((part, at) => [part, boxes[at].value]);
  const edits = Object.fromEntries(pairs.filter(([part, text]) => text !== part.text).map(([part, text]) => [part.path, text]));
  decide(Object.keys(edits).length ? "edit" : "accept", edits);
}

function cancelEdit() {
  isEditing = false;
  draw();
  $("#title").focus();
  say("The row is as it was.");
}

function move(by) {
  const next = rows.next(shown.row, by, $("#which").value);
  if (next === null) say(by > 0 ? "There is no row after this one." : "There is no row before this one.");
  else show(next);
}

const ACTS = {
  accept: () => decide("accept"),
  edit: beginEdit,
  reject: () => decide("reject"),
  open: () => decide("open"),
  save: saveEdit,
  cancel: cancelEdit,
  before: () => move(-1),
  after: () => move(1),
  help: () => $("#keys").showModal(),
};

function onKey(event) {
  if ($("#keys").open) return;
  if (isEditing && event.key === "Escape") return cancelEdit();
  if (isEditing && event.key === "Enter" && (event.ctrlKey || event.metaKey)) return saveEdit();
  if (event.target === $("#note") && ["Enter", "Escape"].includes(event.key)) return $("#title").focus();
  const isTyping = event.target.matches("input, textarea, select");
  if (isEditing || isTyping || event.ctrlKey || event.metaKey || event.altKey || !$("#single").checked) return;
  if (event.key.toLowerCase() === "n") {
    event.preventDefault();
    return $("#note").focus();
  }
  const name = KEYS[event.key] || KEYS[event.key.toLowerCase()];
  const scrolls = event.key.startsWith("Arrow") && event.target.matches("pre");
  if (!name || scrolls || event.repeat) return;
  event.preventDefault();
  ACTS[name]();
}

function theme() {
  document.documentElement.dataset.theme = chosen || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
}

async function start() {
  theme();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", theme);
  kept("settings").then((settings) => ((chosen = settings?.theme || ""), theme()), () => {});
  for (const [name, act] of Object.entries(ACTS)) $(`#${name}`).addEventListener("click", act);
  $("#number").addEventListener("change", () => show(Math.min(Math.max(Number($("#number").value) || 0, 0), rows.count - 1)));
  $("#which").addEventListener("change", () => {
    const which = $("#which").value;
    const first = rows.next(-1, 1, which);
    if (first === null) say(`No row is ${DONE[which]}.`);
    else show(first);
  });
  document.addEventListener("keydown", onKey);
  try {
    rows = await Rows.read();
    $("#about").textContent = printable(`${rows.file}, by ${rows.reviewer}`);
    const asked = Number(location.hash.slice(1));
    const isAsked = location.hash && Number.isInteger(asked) && asked < rows.count;
    await show(isAsked ? asked : (rows.next(-1, 1, "open") ?? 0));
  } catch (error) {
    say(String(error.message), true);
  }
  document.body.dataset.ready = "";
}

start();
