// The page: what the buttons do.

import { Server } from "./api.js";
import { Attachment } from "./attachment.js";
import { Conversation, contentOf, keep, kept } from "./conversation.js";
import { entityRules } from "./entities.js";
import { LogView } from "./log.js";
import { element, printable } from "./markdown.js";
import { Turns } from "./turns.js";

const $ = (selector) => document.querySelector(selector);
const LONG_PASTE = 2000; // characters; longer ones are logs
const SETTINGS = { model: "", theme: "", system: "", max_tokens: "1024", temperature: "", top_p: "", seed: "", context: "", numbers: true };
const UNKEPT = ["key"]; // stays in this tab
const RESERVE = 300; // tokens of a question that is still to come: the longest task has fewer
const settings = { ...SETTINGS, key: sessionStorage.getItem("key") || "" };
const server = new Server(settings);
let conversation = new Conversation();
let attachment = null; // the log that goes with the next question
let running = null; // {turn, abort}
let isSending = false; // while the tokens of a question are counted
let counting = 0; // number of the last count of tokens
let excess = 0; // tokens too many

const turns = new Turns($("#turns"), { edit, again, turnTo, copy, showLog, showLine }, entityRules(RULES));
const view = new LogView($("#viewer"), unfold, () => ($("#question").focus(), document.body.classList.remove("viewing")));

function say(text, isWrong = false) {
  $("#status").textContent = printable(text);
  $("#status").classList.toggle("wrong", isWrong);
}

function draw() {
  const list = $("#turns");
  const isAtEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 80;
  turns.draw(conversation, running?.turn);
  $("#empty").hidden = conversation.path().length > 0;
  document.body.classList.toggle("running", running !== null);
  $("#stop").hidden = running === null;
  $("#send").hidden = running !== null;
  drawAttachment();
  if (isAtEnd) list.scrollTop = list.scrollHeight;
}

function drawAttachment() {
  const place = $("#attached");
  place.replaceChildren();
  if (!attachment) return;
  const chip = turns.chip(attachment.log, () => showLog(attachment.log));
  const remove = element("button", { type: "button", "aria-label": `remove ${printable(attachment.log.name)}` }, "×");
  remove.addEventListener("click", () => ((attachment = null), draw(), recount(), $("#question").focus()));
  place.append(chip, remove, element("span", {}, attachment.size()));
}

function save() {
  const { [UNKEPT[0]]: key, ...rest } = settings;
  sessionStorage.setItem("key", key);
  const facts = { nodes: conversation.nodes, system: conversation.system, draft: $("#question").value, log: attachment?.log };
  Promise.all([keep("settings", rest), keep("conversation", facts)]).catch(() => say("This browser keeps nothing: save the conversation as a file."));
}

// ---- questions and answers

async function send(text) {
  if (running || isSending) return;
  const question = text.trim();
  if (!question) return say(attachment ? "Ask something about the log." : "Ask something, or attach a log.");
  isSending = true;
  await recount(question);
  isSending = false;
  if (excess > 0) return;
  const path = conversation.path();
  const node = conversation.add(path.at(-1)?.id ?? 0, "user", question, attachment?.log ?? null);
  attachment = null;
  $("#question").value = "";
  await answer(node);
}

async function answer(question) {
  const abort = new AbortController();
  const messages = conversation.messages(conversation.upTo(question.id));
  const turn = conversation.add(question.id, "assistant", "");
  turn.model = settings.model;
  running = { turn, abort };
  say("The model answers.");
  draw();
  $("#turns").scrollTop = $("#turns").scrollHeight;
  let isWaiting = false;
  try {
    for await (const part of server.answer(settings.model, messages, sampling(), abort.signal)) {
      turn.content += part.text;
      turn.finish = part.finish || turn.finish;
      turn.usage = part.usage || turn.usage;
      if (part.text && !isWaiting) {
        isWaiting = true;
        requestAnimationFrame(() => ((isWaiting = false), running?.turn === turn && update(turn)));
      }
    }
    say("The answer is complete.");
  } catch (error) {
    turn.finish = "stopped";
    if (!abort.signal.aborted) turn.error = String(error.message || error);
    say(turn.error || "Stopped.", Boolean(turn.error));
  }
  running = null;
  if (!turn.content && !turn.error) takeBack(question, turn);
  draw();
  save();
  recount();
  $("#question").focus({ preventScroll: true });
}

// A question without an answer does not join the conversation; it may be asked again.
function takeBack(question, turn) {
  conversation.remove(turn);
  if (question.children.length) return;
  conversation.remove(question);
  if (!$("#question").value) $("#question").value = question.content;
  if (!attachment && question.log) attachment = Attachment.of(question.log);
  if (attachment) fit(attachment.show);
}

function update(turn) {
  const list = $("#turns");
  const isAtEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 80;
  turns.update(turn);
  if (isAtEnd) list.scrollTop = list.scrollHeight;
}

function sampling() {
  const given = { max_tokens: Number(settings.max_tokens) || 1024 };
  for (const name of ["temperature", "top_p", "seed"]) if (settings[name] !== "") given[name] = Number(settings[name]);
  return given;
}

function again(turn) {
  if (!running) answer(conversation.nodes[turn.parent]);
}

function turnTo(turn, by) {
  if (running) return;
  conversation.turnTo(turn, by);
  draw();
  save();
  recount();
}

async function copy(turn) {
  const text = contentOf(turn);
  try {
    await navigator.clipboard.writeText(text);
    say("Copied.");
  } catch {
    say("The browser does not let this page copy; select the text instead.", true);
  }
}

function edit(turn) {
  if (running) return;
  const item = $(`#turns [data-id="${turn.id}"]`);
  const box = element("textarea", { value: turn.content, rows: 4, "aria-label": "question, edited" });
  const done = element("button", { type: "submit" }, "Send");
  const cancel = element("button", { type: "button" }, "Cancel");
  const form = element("form", { className: "edit" }, box, done, cancel);
  cancel.addEventListener("click", draw);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (box.value.trim()) answer(conversation.add(turn.parent, "user", box.value.trim(), turn.log));
  });
  box.addEventListener("keydown", (event) => event.key === "Escape" && draw());
  item.querySelector(".question").replaceWith(form);
  item.querySelector(".tools").remove();
  box.focus();
}

// ---- logs

async function attach(name, text) {
  const clean = text.replaceAll("\r\n", "\n").replaceAll("\0", "\\x00");
  if (!clean.trim()) return say(`${name}: nothing but blanks in it`, true);
  attachment = new Attachment(name, clean);
  draw();
  await fit([]);
  $("#question").focus();
}

// Counts the attached log, and folds it if it does not fit.
async function fit(show) {
  const one = attachment;
  say(`${one.log.name}: counting…`);
  try {
    const path = conversation.messages(conversation.path());
    const before = path.length ? (await server.count(settings.model, { messages: path })).count : 0;
    const size = server.contextSize(settings.model);
    const room = size ? size - (Number(settings.max_tokens) || 1024) - before - RESERVE : 0;
    await one.fit(server, settings, room, show);
    say(`${one.log.name}: ${one.size()}`);
  } catch (error) {
    say(String(error.message || error), true);
  }
  draw();
  save();
  recount();
}

// Lines of a folded log for the model: with the log, if it is still to be sent; else alone, with the next question.
async function unfold([first, last]) {
  const isWaiting = attachment?.log === view.log;
  if (!isWaiting) attachment = Attachment.more(view.log, attachment, first, last);
  await fit(isWaiting ? [...attachment.show, [first, last]] : []);
  if (isWaiting) view.show(attachment.log);
}

function showLog(log) {
  view.show(log);
  document.body.classList.add("viewing");
}

function showLine(log, first, last) {
  if (view.root.hidden || view.log !== log) showLog(log);
  view.goTo(first, last);
}

// ---- tokens

// draft: the question; without one, what is typed.
async function recount(draft = $("#question").value.trim()) {
  const number = (counting += 1);
  const meter = $("#meter");
  try {
    const said = conversation.messages(conversation.path());
    if (draft || !said.length) said.push({ role: "user", content: draft });
    const { count, isExact } = await server.count(settings.model, { messages: said });
    if (number !== counting) return;
    const used = count + (attachment?.tokens || 0);
    const size = server.contextSize(settings.model);
    const most = Number(settings.max_tokens) || 1024;
    excess = size ? used + most - size : 0;
    const about = isExact ? "" : "about ";
    const left = size ? ` of ${size.toLocaleString("en")}; ${Math.max(size - used, 0).toLocaleString("en")} left` : "";
    meter.textContent = `${about}${used.toLocaleString("en")} tokens${left}`;
    meter.classList.toggle("wrong", excess > 0);
    if (excess > 0) {
      const why = `${about}${used.toLocaleString("en")} tokens and an answer of up to ${most.toLocaleString("en")}`;
      say(`Too long: ${why} are ${excess.toLocaleString("en")} more than the model has room for. Shorten the question, begin anew, or allow a shorter answer.`, true);
    } else if ($("#status").textContent.startsWith("Too long")) say("");
  } catch (error) {
    if (number === counting) meter.textContent = "";
    if (error.status !== undefined) say(String(error.message), true);
  }
}

// ---- the rest of the page

function theme() {
  document.documentElement.dataset.theme = settings.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
}

async function loadModels() {
  const choice = $("#model");
  try {
    const models = await server.models();
    choice.replaceChildren(...models.map((name) => element("option", { value: name }, printable(name))));
    settings.model = models.includes(settings.model) ? settings.model : models[0] || "";
    choice.value = settings.model;
    say(models.length ? "" : "The server has no model.", !models.length);
  } catch (error) {
    say(`The server's models cannot be read: ${error.message}`, true);
  }
}

function download(isEvery) {
  const rows = conversation.rows(isEvery).filter((row) => row.messages.some((message) => message.role !== "system"));
  if (!rows.length) return say("Nothing to save: no question was answered.");
  const text = JSON.stringify(rows.length === 1 ? rows[0] : rows, null, 1);
  const link = element("a", { href: URL.createObjectURL(new Blob([text], { type: "application/json" })), download: "conversation.json" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  say(isEvery ? `Saved: ${rows.length} branches.` : "Saved.");
}

async function load(file) {
  try {
    conversation = Conversation.load(await file.text());
    settings.system = conversation.system;
    attachment = null;
    say(`${file.name}: ${conversation.path().length} turns.`);
  } catch (error) {
    say(`${file.name}: ${error.message}`, true);
  }
  draw();
  save();
  recount();
}

function begin() {
  running?.abort.abort();
  conversation = new Conversation({ system: settings.system });
  attachment = null;
  if (!view.root.hidden) view.close();
  say("");
  draw();
  save();
  recount();
  $("#question").focus();
}

function fillSettings() {
  for (const input of $("#settings").querySelectorAll("[name]")) {
    if (input.type === "checkbox") input.checked = settings[input.name];
    else input.value = settings[input.name];
  }
}

function readSettings() {
  for (const input of $("#settings").querySelectorAll("[name]")) {
    settings[input.name] = input.type === "checkbox" ? input.checked : input.value.trim();
  }
  conversation.system = settings.system;
  theme();
  save();
  loadModels().then(recount);
}

function listen() {
  const question = $("#question");
  let pause = 0;
  question.addEventListener("input", () => (clearTimeout(pause), (pause = setTimeout(() => (recount(), save()), 400))));
  question.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send(question.value);
  });
  question.addEventListener("paste", (event) => {
    const text = event.clipboardData.getData("text");
    if (text.length <= LONG_PASTE) return;
    event.preventDefault();
    attach("pasted", text);
  });
  $("#composer").addEventListener("submit", (event) => (event.preventDefault(), send(question.value)));
  for (const button of document.querySelectorAll("[data-task]")) {
    button.addEventListener("click", () => {
      if (attachment || conversation.path().some((turn) => turn.log)) send(TASKS[button.dataset.task]);
      else say("Attach a log first: paste it, drop a file, or choose one.", true);
    });
  }
  $("#stop").addEventListener("click", () => running?.abort.abort());
  addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || $("dialog[open]")) return;
    if (running) running.abort.abort();
    else if (!view.root.hidden) view.close();
  });
  $("#choose").addEventListener("click", () => $("#file").click());
  $("#file").addEventListener("change", async ({ target }) => {
    if (target.files[0]) await attach(target.files[0].name, await target.files[0].text());
    target.value = "";
  });
  $("#load").addEventListener("click", () => $("#rows").click());
  $("#rows").addEventListener("change", async ({ target }) => (target.files[0] && (await load(target.files[0])), (target.value = "")));
  addEventListener("dragover", (event) => (event.preventDefault(), document.body.classList.add("dropping")));
  addEventListener("dragleave", (event) => !event.relatedTarget && document.body.classList.remove("dropping"));
  addEventListener("drop", async (event) => {
    event.preventDefault();
    document.body.classList.remove("dropping");
    const [file] = event.dataTransfer.files;
    if (file) await attach(file.name, await file.text());
  });
  $("#model").addEventListener("change", ({ target }) => ((settings.model = target.value), save(), recount()));
  $("#new").addEventListener("click", () => (conversation.path().length ? $("#sure").showModal() : begin()));
  $("#sure").addEventListener("close", () => $("#sure").returnValue === "yes" && begin());
  $("#save").addEventListener("click", () => {
    if (conversation.rows(true).length > 1) $("#which").showModal();
    else download(false);
  });
  $("#which").addEventListener("close", () => $("#which").returnValue && download($("#which").returnValue === "every"));
  $("#set").addEventListener("click", () => (fillSettings(), $("#settings").showModal()));
  $("#settings").addEventListener("close", readSettings);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", theme);
}

async function start() {
  try {
    Object.assign(settings, (await kept("settings")) || {});
    const facts = await kept("conversation");
    if (facts) {
      conversation = new Conversation(facts);
      $("#question").value = facts.draft || "";
      if (facts.log) attachment = Attachment.of(facts.log);
    }
  } catch {
    say("This browser keeps nothing: save the conversation as a file.");
  }
  theme();
  listen();
  draw();
  await loadModels();
  if (attachment) await fit([]);
  else await recount();
  document.body.dataset.ready = "yes";
}

start();
