// The view of an attached log: all its lines, or as it was folded; only the rows in sight are in the document.

import { element, printable } from "./markdown.js";

const ROW = 20; // pixels, as style.css has it
const AROUND = 20; // rows beyond those in sight
const count = (number, what) => `${number.toLocaleString("en")} ${what}${number === 1 ? "" : "s"}`;

export class LogView {
  // root: the aside; send(ranges): the lines that a user wants the model to have; closed(): after it was closed.
  constructor(root, send, closed) {
    Object.assign(this, { root, send, closed, log: null, mode: "all", rows: [], open: new Set(), marked: [0, -1] });
    this.title = root.querySelector("h2");
    this.modes = root.querySelector(".modes");
    this.scroller = root.querySelector(".lines");
    this.canvas = element("div", { className: "canvas" });
    this.scroller.append(this.canvas);
    this.scroller.addEventListener("scroll", () => this.draw(), { passive: true });
    root.querySelector(".close").addEventListener("click", () => this.close());
    const find = root.querySelector("input");
    find.addEventListener("keydown", (event) => {
      if (event.key !== "Enter") return;
      event.preventDefault();
      this.find(find.value, event.shiftKey);
      find.focus();
    });
    new ResizeObserver(() => this.draw()).observe(this.scroller);
  }

  show(log) {
    if (this.log !== log) this.open.clear();
    Object.assign(this, { log, marked: [0, -1], lines: linesOf(log.text) });
    this.root.hidden = false;
    this.title.textContent = `${printable(log.name)}: ${count(this.lines.length, "line")}`;
    this.choose(log.folded ? "folded" : "all");
  }

  close() {
    this.root.hidden = true;
    this.closed();
  }

  choose(mode) {
    this.mode = mode;
    const choices = this.log.folded ? [["folded", "Folded"], ["all", "All lines"]] : [];
    if (typeof mode === "number") choices.push([mode, this.log.folded.groups[mode].name]);
    this.modes.replaceChildren(
      ...choices.map(([value, name]) => {
        const button = element("button", { type: "button", "aria-pressed": String(value === mode) }, name);
        button.addEventListener("click", () => this.choose(value));
        return button;
      }),
    );
    this.fill();
    this.scroller.scrollTop = 0;
    this.scroller.setAttribute("aria-label", `${printable(this.log.name)}, ${mode === "all" ? "all lines" : "folded"}`);
    this.draw();
  }

  // The rows of the mode: {line}, {group}, {note} or {gap, isOpen}.
  fill() {
    const { folded } = this.log;
    if (this.mode === "all") this.rows = null; // row i is line i
    else if (typeof this.mode === "number") {
      this.rows = [];
      folded.group_of.forEach((group, line) => group === this.mode && this.rows.push({ line }));
    } else {
      const note = `${count(folded.tokens, "token")} instead of ${folded.tokens_before.toLocaleString("en")}`;
      this.rows = [{ note: `Folded: ${count(folded.groups.length, "template")}, ${note}` }];
      const told = new Set(folded.text.split("\n"));
      const groups = folded.groups.map((_, group) => ({ group, isTold: told.has(folded.groups[group].text) }));
      this.rows.push(...groups.filter((row) => row.isTold));
      const others = groups.filter((row) => !row.isTold);
      if (others.length) this.rows.push({ note: `${count(others.length, "more template")}, of which the model has no more than lines:` });
      this.rows.push(...others);
      this.rows.push({ note: "Lines that are whole, and gaps:" });
      this.rows.push(...this.unfoldedRows(folded));
    }
    this.length = this.rows ? this.rows.length : this.lines.length;
    this.canvas.style.height = `${this.length * ROW}px`;
  }

  unfoldedRows(folded) {
    const rows = [];
    let next = 0;
    for (const line of [...folded.shown, this.lines.length]) {
      if (line > next) {
        const gap = [next + 1, line];
        const isOpen = this.open.has(next);
        rows.push({ gap, isOpen });
        if (isOpen) for (let inner = next; inner < line; inner += 1) rows.push({ line: inner, isInner: true });
      }
      if (line < this.lines.length) rows.push({ line });
      next = line + 1;
    }
    return rows;
  }

  draw() {
    if (this.root.hidden || !this.log) return;
    const from = Math.max(0, Math.floor(this.scroller.scrollTop / ROW) - AROUND);
    const to = Math.min(this.length, Math.ceil((this.scroller.scrollTop + this.scroller.clientHeight) / ROW) + AROUND);
    const focus = this.canvas.contains(document.activeElement) ? document.activeElement.dataset.row : undefined;
    const nodes = [];
    for (let at = from; at < to; at += 1) {
      const node = this.row(this.rows ? this.rows[at] : { line: at });
      node.style.top = `${at * ROW}px`;
      const button = node.querySelector("button");
      if (button) button.dataset.row = at;
      nodes.push(node);
    }
    this.canvas.replaceChildren(...nodes);
    if (focus !== undefined) this.canvas.querySelector(`[data-row="${focus}"]`)?.focus({ preventScroll: true });
  }

  row(row) {
    if (row.note) return element("div", { className: "row note" }, row.note);
    if (row.gap) return this.gapRow(row);
    if (row.group !== undefined) {
      const button = element("button", { type: "button" }, printable(this.log.folded.groups[row.group].text));
      button.addEventListener("click", () => this.choose(row.group));
      return element("div", { className: "row group" }, button);
    }
    const number = row.line + 1;
    const isMarked = this.marked[0] <= number && number <= this.marked[1];
    const className = `row${isMarked ? " marked" : ""}${row.isInner ? " inner" : ""}`;
    const label = element("span", { className: "number" }, String(number));
    return element("div", { className }, label, printable(this.lines[row.line]));
  }

  gapRow({ gap: [first, last], isOpen }) {
    const text = `${isOpen ? "▾" : "▸"} ${count(last - first + 1, "line")} folded, L${first}${last > first ? `–L${last}` : ""}`;
    const toggle = element("button", { type: "button", "aria-expanded": String(isOpen) }, text);
    toggle.addEventListener("click", () => {
      if (isOpen) this.open.delete(first - 1);
      else this.open.add(first - 1);
      this.fill();
      this.draw();
    });
    const node = element("div", { className: "row gap" }, toggle);
    if (isOpen) {
      const send = element("button", { type: "button" }, "Send these lines too");
      send.addEventListener("click", () => this.send([first, last]));
      node.append(send);
    }
    return node;
  }

  // Goes to the next line with a text, or the one before; the browser's own search sees only the rows in sight.
  find(text, isBackwards) {
    if (!text || !this.log) return;
    const [wanted, step, length] = [text.toLowerCase(), isBackwards ? -1 : 1, this.lines.length];
    for (let by = 1; by <= length; by += 1) {
      const at = (this.marked[0] - 1 + step * by + 2 * length) % length;
      if (this.lines[at].toLowerCase().includes(wanted)) return this.goTo(at + 1, at + 1);
    }
    this.title.textContent = `${printable(this.log.name)}: nothing found`;
  }

  // Scrolls to lines and marks them.
  goTo(first, last) {
    this.choose("all");
    this.marked = [first, last];
    this.scroller.scrollTop = Math.max(0, (first - 1) * ROW - this.scroller.clientHeight / 3);
    this.draw();
    this.scroller.focus({ preventScroll: true });
  }
}

const split = new WeakMap();

// The lines of a text, of which the last may lack its end.
export function linesOf(text) {
  const lines = text.split("\n");
  if (lines.length > 1 && lines.at(-1) === "") lines.pop();
  return lines;
}

export function numLines(log) {
  if (!split.has(log)) split.set(log, linesOf(log.text).length);
  return split.get(log);
}
