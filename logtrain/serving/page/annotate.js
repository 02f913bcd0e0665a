// Marks an answer's entities: what the log does not have is underlined, and references to lines become buttons.

import { element } from "./markdown.js";

const BLOCKS = "p, li, td, th, h3, h4, h5, h6, pre";

// Marks what is below `root`; -> {total, unknown} counts. isFinal: whether the answer has ended; before, what touches its
// end may go on, and is not judged yet.
export function annotate(root, entities, source, isFinal, showLine) {
  const counts = { total: 0, unknown: 0 };
  const all = [...root.querySelectorAll(BLOCKS)].filter((block) => !block.querySelector(BLOCKS));
  all.push(...looseText(root));
  const last = all.at(-1);
  for (const block of all) {
    const nodes = textNodes(block);
    const text = nodes.map((node) => node.data).join("");
    const marks = [];
    for (const entity of entities(text)) {
      if (!isFinal && block === last && entity.stop === text.length) continue;
      const isKnown = has(source, entity, text.slice(entity.stop, entity.stop + 80));
      counts.total += 1;
      counts.unknown += isKnown ? 0 : 1;
      if (!isKnown || entity.kind === "line") marks.push({ ...entity, isKnown });
    }
    for (const mark of marks.reverse()) wrap(nodes, mark, showLine, source);
  }
  return counts;
}

// Whether a source has an entity, remembered: an answer is looked at anew for each of its tokens, and a log is long.
function has(source, { text, kind }, after) {
  source.answers ??= new Map();
  const key = `${kind} ${text}${kind === "number" ? ` ${after}` : ""}`;
  if (!source.answers.has(key)) source.answers.set(key, source.has(text, kind, after));
  return source.answers.get(key);
}

// Items of lists that hold text beside a block of their own.
function looseText(root) {
  return [...root.querySelectorAll("li, blockquote")]
    .filter((block) => block.querySelector(BLOCKS))
    .flatMap((block) => [...block.childNodes].filter((node) => node.nodeType === Node.TEXT_NODE && node.data.trim()));
}

function textNodes(block) {
  if (block.nodeType === Node.TEXT_NODE) return [block];
  const walker = document.createTreeWalker(block, NodeFilter.SHOW_TEXT);
  const nodes = [];
  while (walker.nextNode()) if (!walker.currentNode.parentElement.closest(".host")) nodes.push(walker.currentNode);
  return nodes;
}

function wrap(nodes, mark, showLine, source) {
  const starts = [];
  let length = 0;
  for (const node of nodes) {
    starts.push(length);
    length += node.data.length;
  }
  for (let at = nodes.length - 1; at >= 0; at -= 1) {
    const from = Math.max(mark.start - starts[at], 0);
    const to = Math.min(mark.stop - starts[at], nodes[at].data.length);
    if (from >= to) continue;
    const middle = nodes[at].splitText(from);
    middle.splitText(to - from);
    middle.replaceWith(marked(middle.data, mark, showLine, source));
  }
}

function marked(text, mark, showLine, source) {
  if (!mark.isKnown) {
    const hidden = element("span", { className: "hidden" }, " (not in the log)");
    return element("span", { className: "unknown", title: `${mark.text}: not in the log` }, text, hidden);
  }
  const numbers = mark.text.match(/\d+/g).map(Number);
  if (!numbers.every((number) => source.first <= number && number <= source.last)) return text;
  const button = element("button", { type: "button", className: "line" }, text);
  button.setAttribute("aria-label", `${text}: show in the log`);
  button.addEventListener("click", () => showLine(Math.min(...numbers), Math.max(...numbers)));
  return button;
}
