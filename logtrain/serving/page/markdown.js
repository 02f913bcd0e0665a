// Markdown -> DOM nodes. A model's text is never HTML: every character of it ends in a text node, links lead to http(s)
// only and show where, images are not loaded, and characters that steer or reorder text are shown as their escapes.

const MOST_DEPTH = 8; // quotes and lists within each other
const STEERING = /[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/gu; // as logtrain/core/printable.py has them
const INLINE =
  /(`{1,8})([^`]+)\1(?!`)|\*\*(?=\S)([^\n]{1,1000}?)\*\*|(?<![\w*])\*(?=[^\s*])([^*\n]{1,1000}?)(?<=\S)\*(?![\w*])|~~([^~\n]{1,1000})~~|!?\[([^\]\n]{0,300})\]\(([^)\s]{1,2000})\)|(https?:\/\/[^\s<>"'`)\]]+)|\\([*_`|#])/g;
const FENCE = /^ {0,3}(`{3,}|~{3,})[ \t]*([\w+#.-]*)[^`]*$/;
const HEADING = /^ {0,3}(#{1,6})[ \t]+(.*)$/;
const RULE = /^ {0,3}(?:(?:-[ \t]*){3,}|(?:\*[ \t]*){3,}|(?:_[ \t]*){3,})$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])[ \t]+(?=\S)/;
const DIVIDER = /^ {0,3}\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$/;

export function printable(text) {
  return text.replace(STEERING, (character) => {
    if ("\n\t\u200c\u200d".includes(character)) return character;
    const code = character.codePointAt(0);
    if (code < 0x100) return `\\x${code.toString(16).padStart(2, "0")}`;
    return code < 0x10000 ? `\\u${code.toString(16).padStart(4, "0")}` : `\\U${code.toString(16).padStart(8, "0")}`;
  });
}

export function element(name, properties = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key in node && !key.includes("-")) node[key] = value;
    else node.setAttribute(key, value);
  }
  node.append(...children);
  return node;
}

export function markdown(text) {
  const root = document.createDocumentFragment();
  blocks(printable(text.replaceAll("\r\n", "\n")).split("\n"), root, 0);
  orderHeadings(root);
  return root;
}

// Lets no heading be more than one level below the one before it, from the third on, as a screen reader expects.
function orderHeadings(root) {
  let [before, top] = [2, 0];
  for (const heading of root.querySelectorAll("h1, h2, h3, h4, h5, h6")) {
    const level = Number(heading.tagName[1]);
    top = top ? Math.min(top, level) : level;
    before = Math.min(before + 1, 3 + level - top, 6);
    heading.replaceWith(element(`h${before}`, {}, ...heading.childNodes));
  }
}

function blocks(lines, parent, depth) {
  let at = 0;
  while (at < lines.length) {
    const line = lines[at];
    const fence = FENCE.exec(line);
    const heading = HEADING.exec(line);
    if (!line.trim()) at += 1;
    else if (fence) at = codeBlock(lines, at, fence, parent);
    else if (heading) {
      const node = element(`h${heading[1].length}`);
      inline(heading[2].trimEnd().replace(/ #{1,9}$/, ""), node);
      parent.append(node);
      at += 1;
    } else if (RULE.test(line)) {
      parent.append(element("hr"));
      at += 1;
    } else if (isTable(lines, at)) at = table(lines, at, parent);
    else if (depth < MOST_DEPTH && QUOTE.test(line)) at = quote(lines, at, parent, depth);
    else if (depth < MOST_DEPTH && ITEM.test(line)) at = list(lines, at, parent, depth);
    else at = paragraph(lines, at, parent);
  }
}

function codeBlock(lines, at, fence, parent) {
  const close = new RegExp(`^ {0,3}${fence[1][0]}{${fence[1].length},}[ \\t]*$`);
  const from = (at += 1);
  while (at < lines.length && !close.test(lines[at])) at += 1;
  const code = element("code", {}, lines.slice(from, at).join("\n"));
  parent.append(element("pre", { tabIndex: 0, "aria-label": fence[2] ? `code, ${fence[2]}` : "code", role: "region" }, code));
  return at + 1;
}

const isTable = (lines, at) => lines[at].includes("|") && (lines[at + 1] || "").includes("|") && DIVIDER.test(lines[at + 1]);

const cells = (line) =>
  line
    .trim()
    .replace(/^\||(?<!\\)\|$/g, "")
    .split(/(?<!\\)\|/)
    .map((cell) => cell.trim());

function table(lines, at, parent) {
  const heads = cells(lines[at]);
  const sides = cells(lines[at + 1]).map((cell) => (cell.endsWith(":") ? (cell[0] === ":" ? "middle" : "end") : ""));
  const row = (values, name) =>
    element("tr", {}, ...heads.map((_, i) => {
      const cell = element(name, { className: sides[i] || "" });
      if (name === "th") cell.scope = "col";
      inline(values[i] || "", cell);
      return cell;
    }));
  const body = element("tbody");
  const head = element("thead", {}, row(heads, "th"));
  for (at += 2; at < lines.length && lines[at].includes("|") && lines[at].trim(); at += 1) {
    body.append(row(cells(lines[at]), "td"));
  }
  const whole = element("table", {}, head, body);
  parent.append(element("div", { className: "table", tabIndex: 0, role: "region", "aria-label": "table" }, whole));
  return at;
}

function quote(lines, at, parent, depth) {
  const inner = [];
  for (; at < lines.length && QUOTE.test(lines[at]); at += 1) inner.push(lines[at].replace(QUOTE, ""));
  const node = element("blockquote");
  blocks(inner, node, depth + 1);
  parent.append(node);
  return at;
}

function list(lines, at, parent, depth) {
  const [, indent, marker] = ITEM.exec(lines[at]);
  const isOrdered = /\d/.test(marker);
  const node = element(isOrdered ? "ol" : "ul");
  if (isOrdered) node.start = Number.parseInt(marker, 10);
  const isNext = (found) => found && found[1].length === indent.length && /\d/.test(found[2]) === isOrdered;
  for (let found = ITEM.exec(lines[at]); isNext(found); found = ITEM.exec(lines[at] || "")) {
    const width = indent.length + 1;
    const inner = [lines[at].slice(found[0].length)];
    for (at += 1; at < lines.length; at += 1) {
      const isBlank = !lines[at].trim();
      const isInside = /^ */.exec(lines[at])[0].length >= width;
      if (isBlank ? !/^ /.test(lines[at + 1] || "") : !isInside) break;
      inner.push(isBlank ? "" : lines[at].replace(new RegExp(`^ {0,${found[0].length}}`), ""));
    }
    const item = element("li");
    blocks(inner, item, depth + 1);
    node.append(item);
    while (at + 1 < lines.length && !lines[at].trim() && isNext(ITEM.exec(lines[at + 1]))) at += 1;
  }
  parent.append(node);
  return at;
}

function paragraph(lines, at, parent) {
  const from = at;
  const begins = (line) => !line.trim() || FENCE.test(line) || HEADING.test(line) || RULE.test(line) || ITEM.test(line);
  for (at += 1; at < lines.length && !begins(lines[at]) && !QUOTE.test(lines[at]) && !isTable(lines, at); ) at += 1;
  const node = element("p");
  inline(lines.slice(from, at).join("\n"), node);
  parent.append(node);
  return at;
}

function inline(text, parent) {
  let from = 0;
  for (const found of text.matchAll(INLINE)) {
    const [whole, , code, strong, emphasis, struck, label, target, url, escaped] = found;
    parent.append(text.slice(from, found.index));
    from = found.index + whole.length;
    if (code !== undefined) parent.append(element("code", {}, code.replace(/^ (.*) $/s, "$1")));
    else if (strong !== undefined) nested("strong", strong, parent);
    else if (emphasis !== undefined) nested("em", emphasis, parent);
    else if (struck !== undefined) nested("del", struck, parent);
    else if (url !== undefined) link(url, url, parent);
    else if (escaped !== undefined) parent.append(escaped);
    else if (/^https?:\/\//i.test(target)) link(label || target, target, parent);
    else parent.append(whole);
  }
  parent.append(text.slice(from));
}

function nested(name, text, parent) {
  const node = element(name);
  inline(text, node);
  parent.append(node);
}

function link(label, target, parent) {
  let host = "";
  try {
    host = new URL(target).host;
  } catch {
    parent.append(label);
    return;
  }
  parent.append(element("a", { href: target, rel: "noopener noreferrer nofollow", target: "_blank" }, label));
  if (!label.includes(host)) parent.append(element("span", { className: "host" }, ` (${host})`));
}
