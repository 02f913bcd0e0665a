// The turns of a conversation on the screen.

import { annotate } from "./annotate.js";
import { Source } from "./entities.js";
import { numLines } from "./log.js";
import { element, markdown, printable } from "./markdown.js";

const NAMES = { user: "You", assistant: "Model" };

export class Turns {
  // list: the <ol>; act: {edit, again, turnTo, copy, showLog, showLine}; rules: those of entities.js.
  constructor(list, act, rules) {
    Object.assign(this, { list, act, rules, sources: new Map() });
  }

  draw(conversation, running) {
    this.conversation = conversation;
    this.list.replaceChildren(...conversation.path().map((turn) => this.turn(turn, turn === running)));
  }

  turn(turn, isRunning) {
    const item = element("li", { className: `turn ${turn.role}` });
    item.dataset.id = turn.id;
    item.append(element("h2", {}, NAMES[turn.role] || turn.role));
    const body = element("div", { className: "body" });
    item.append(body);
    if (turn.role === "assistant") this.fillAnswer(turn, item, !isRunning);
    else this.fillQuestion(turn, body);
    if (!isRunning) item.append(this.tools(turn));
    return item;
  }

  fillQuestion(turn, body) {
    body.append(element("p", { className: "question" }, printable(turn.content)));
    if (turn.log) body.append(this.chip(turn.log, () => this.act.showLog(turn.log)));
  }

  // The log that goes with the next question, with a button that takes it away.
  attached(attachment, remove) {
    const chip = this.chip(attachment.log, () => this.act.showLog(attachment.log));
    const button = element("button", { type: "button", "aria-label": `remove ${printable(attachment.log.name)}` }, "×");
    button.addEventListener("click", remove);
    return [chip, button, element("span", {}, attachment.size())];
  }

  // A form in the place of a question; send: what is done with the text, cancel: with none.
  edit(turn, send, cancel) {
    const item = this.list.querySelector(`[data-id="${turn.id}"]`);
    const box = element("textarea", { value: turn.content, rows: 4, "aria-label": "question, edited" });
    const done = element("button", { type: "submit" }, "Send");
    const leave = element("button", { type: "button" }, "Cancel");
    const form = element("form", { className: "edit" }, box, done, leave);
    leave.addEventListener("click", cancel);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (box.value.trim()) send(box.value.trim());
    });
    box.addEventListener("keydown", (event) => event.key === "Escape" && cancel());
    item.querySelector(".question").replaceWith(form);
    item.querySelector(".tools").remove();
    box.focus();
  }

  chip(log, act) {
    const size = `${numLines(log).toLocaleString("en")} lines${log.folded ? ", folded" : ""}`;
    const chip = element("button", { type: "button", className: "chip" }, `${printable(log.name)}, ${size}`);
    chip.addEventListener("click", act);
    return chip;
  }

  // The answer as far as it came, with its entities marked.
  fillAnswer(turn, item, isFinal) {
    const body = item.querySelector(".body");
    const content = markdown(turn.content);
    body.replaceChildren(content);
    if (!isFinal && !turn.content) body.append(element("p", { className: "waiting" }, "…"));
    item.querySelector(".facts")?.remove();
    const facts = [];
    const source = this.source(turn);
    if (source) {
      const { total, unknown } = annotate(body, this.rules.entities, source, isFinal, (first, last) =>
        this.act.showLine(source.log, first, last),
      );
      if (total) facts.push(`${unknown} of ${total} ${total === 1 ? "entity is" : "entities are"} not in the log`);
    }
    if (isFinal && turn.finish === "length") facts.push("cut at the most tokens of an answer");
    if (isFinal && turn.finish === "stopped") facts.push("stopped");
    if (isFinal && turn.error) facts.push(turn.error);
    if (isFinal && turn.usage) facts.push(`${turn.usage.prompt_tokens} tokens read, ${turn.usage.completion_tokens} written`);
    if (isFinal && turn.model) facts.push(turn.model);
    if (facts.length) item.append(element("p", { className: "facts" }, printable(facts.join(" · "))));
  }

  // What an answer may take its entities from: the last log before it, and what was asked.
  source(turn) {
    const before = this.conversation.upTo(turn.id).filter((other) => other.role === "user");
    const logs = before.map((other) => other.log).filter(Boolean);
    const log = logs.at(-1);
    if (!log) return null;
    const more = [...before.map((other) => other.content), ...logs.slice(0, -1).map((other) => other.text)].join("\n");
    const known = this.sources.get(log);
    if (known && known.more === more) return known;
    const source = Object.assign(new Source(log.text, more, 1, this.rules.units), { more, log });
    this.sources.clear();
    this.sources.set(log, source);
    return source;
  }

  tools(turn) {
    const tools = element("div", { className: "tools" });
    const add = (name, act, label = name) => {
      const button = element("button", { type: "button", "aria-label": label }, name);
      button.addEventListener("click", act);
      tools.append(button);
      return button;
    };
    const siblings = this.conversation.nodes[turn.parent].children;
    if (siblings.length > 1) {
      const at = siblings.indexOf(turn.id);
      add("‹", () => this.act.turnTo(turn, -1), "earlier branch").disabled = at === 0;
      tools.append(element("span", {}, `${at + 1} / ${siblings.length}`));
      add("›", () => this.act.turnTo(turn, 1), "later branch").disabled = at === siblings.length - 1;
    }
    add("Copy", () => this.act.copy(turn));
    if (turn.role === "user") add("Edit", () => this.act.edit(turn));
    else add("Regenerate", () => this.act.again(turn));
    return tools;
  }

  // Shows what came of the running answer.
  update(turn) {
    const item = this.list.querySelector(`[data-id="${turn.id}"]`);
    if (item) this.fillAnswer(turn, item, false);
  }
}
