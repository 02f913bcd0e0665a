// The page: what the buttons do.

import { Server } from "./api.js";
import { Attachment } from "./attachment.js";
import { Conversation, contentOf, keep, kept } from "./conversation.js";
import { entityRules } from "./entities.js";
import { listen } from "./listen.js";
import { LogView } from "./log.js";
import { element, printable } from "./markdown.js";
import { Meter } from "./meter.js";
import { drawTheme, keepSettings, mostTokens, recallSettings, sampling, settings } from "./settings.js";
import { Turns } from "./turns.js";

const $ = (selector) => document.querySelector(selector);
const RESERVE = 300; // tokens of a question that is still to come: the longest task has fewer
const server = new Server(settings);
let conversation = new Conversation();
let attachment = null; // the log that goes with the next question
let running = null; // {turn, abort}
let isSending = false; // while the tokens of a question are counted

const turns = new Turns($("#turns"), { edit, again, turnTo, copy, showLog, showLine }, entityRules(RULES));
const meter = new Meter($("#meter"), server);
const view = new LogView($("#viewer"), unfold, () => ($("#question").focus(), document.body.classList.remove("viewing")));

function say(text, isWrong = false) {
  $("#status").textContent = printable(text);
  $("#status").classList.toggle("wrong", isWrong);
}

// Changes what is shown; who saw the end of the conversation sees it afterwards.
function keepingEnd(change) {
  const list = $("#turns");
  const isAtEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 80;
  change();
  if (isAtEnd) list.scrollTop = list.scrollHeight;
}

function draw() {
  keepingEnd(() => turns.draw(conversation, running?.turn));
  $("#empty").hidden = conversation.path().length > 0;
  document.body.classList.toggle("running", running !== null);
  $("#stop").hidden = running === null;
  $("#send").hidden = running !== null;
  drawAttachment();
}

function drawAttachment() {
  const remove = () => ((attachment = null), draw(), recount(), $("#question").focus());
  $("#attached").replaceChildren(...(attachment ? turns.attached(attachment, remove) : []));
}

function save() {
  const facts = { nodes: conversation.nodes, system: conversation.system, draft: $("#question").value, log: attachment?.log };
  Promise.all([keepSettings(), keep("conversation", facts)]).catch(() => say("This browser keeps nothing: save the conversation as a file."));
}

// ---- questions and answers

async function send(text) {
  if (running || isSending) return;
  const question = text.trim();
  if (!question) return say(attachment ? "Ask something about the log." : "Ask something, or attach a log.");
  isSending = true;
  await recount(question);
  isSending = false;
  if (meter.excess > 0) return;
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
        requestAnimationFrame(() => ((isWaiting = false), running?.turn === turn && keepingEnd(() => turns.update(turn))));
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
  if (!running) turns.edit(turn, (text) => answer(conversation.add(turn.parent, "user", text, turn.log)), draw);
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
    const room = size ? size - mostTokens() - before - RESERVE : 0;
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
  const said = conversation.messages(conversation.path());
  if (draft || !said.length) said.push({ role: "user", content: draft });
  try {
    const problem = await meter.count(settings.model, said, attachment?.tokens || 0, mostTokens());
    if (problem) say(problem, true);
    else if (problem === "" && $("#status").textContent.startsWith("Too long")) say("");
  } catch (error) {
    say(String(error.message), true);
  }
}

// ---- the rest of the page

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
  const branches = conversation.download(isEvery);
  say(branches ? `Saved${isEvery ? `: ${branches} branches` : ""}.` : "Nothing to save: no question was answered.");
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

const actions = {
  ...{ send, attach, load, begin, download },
  typed: () => (recount(), save()),
  task(question) {
    if (attachment || conversation.path().some((turn) => turn.log)) send(question);
    else say("Attach a log first: paste it, drop a file, or choose one.", true);
  },
  stop: () => running?.abort.abort(),
  escape() {
    if (running) running.abort.abort();
    else if (!view.root.hidden) view.close();
  },
  choose: (model) => ((settings.model = model), save(), recount()),
  hasTurns: () => conversation.path().length > 0,
  hasBranches: () => conversation.rows(true).length > 1,
  set() {
    conversation.system = settings.system;
    save();
    loadModels().then(recount);
  },
};

async function start() {
  try {
    await recallSettings();
    const facts = await kept("conversation");
    if (facts) {
      conversation = new Conversation(facts);
      $("#question").value = facts.draft || "";
      if (facts.log) attachment = Attachment.of(facts.log);
    }
  } catch {
    say("This browser keeps nothing: save the conversation as a file.");
  }
  drawTheme();
  listen(actions);
  draw();
  await loadModels();
  if (attachment) await fit([]);
  else await recount();
  document.body.dataset.ready = "yes";
}

start();
