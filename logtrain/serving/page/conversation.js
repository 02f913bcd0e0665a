// A conversation as a tree: an edited question and an answer made again are branches beside the earlier ones.
// Rows are those of `logtrain prepare --format messages`: {"messages": [{"role", "content"}, ...]}.

const LEAST_LOG = 2000; // characters of a text that is an attachment by itself
const ROLES = ["system", "user", "assistant"];

export class Conversation {
  constructor(facts = {}) {
    this.nodes = facts.nodes || [{ id: 0, parent: null, role: "root", children: [], chosen: -1 }];
    this.system = facts.system || "";
  }

  // Adds a turn after another one, and chooses it. log: {name, text, sent, folded} or null.
  add(parent, role, content, log = null) {
    const node = { id: this.nodes.length, parent, role, content, log, children: [], chosen: -1, finish: null, model: "" };
    this.nodes.push(node);
    const above = this.nodes[parent];
    above.chosen = above.children.push(node.id) - 1;
    return node;
  }

  // The turns of the chosen branch, after the root.
  path() {
    const found = [];
    for (let node = this.nodes[0]; node.chosen >= 0; ) {
      node = this.nodes[node.children[node.chosen]];
      found.push(node);
    }
    return found;
  }

  // The turns up to a node, itself included.
  upTo(id) {
    const found = [];
    for (let node = this.nodes[id]; node.parent !== null; node = this.nodes[node.parent]) found.unshift(node);
    return found;
  }

  // Chooses the branch beside a turn, by +1 or -1.
  turnTo(node, by) {
    const above = this.nodes[node.parent];
    above.chosen = Math.min(Math.max(above.children.indexOf(node.id) + by, 0), above.children.length - 1);
  }

  // Takes a turn that has no turns after it away.
  remove(node) {
    const above = this.nodes[node.parent];
    above.children = above.children.filter((id) => id !== node.id);
    above.chosen = above.children.length - 1;
  }

  // What the server is asked with.
  messages(turns) {
    const isVain = (at) => turns[at]?.role === "assistant" && !turns[at].content; // an answer that failed
    const heard = turns.filter((turn, at) => !isVain(at) && !(turn.role === "user" && isVain(at + 1)));
    const said = heard.map((turn) => ({ role: turn.role, content: contentOf(turn) }));
    return this.system ? [{ role: "system", content: this.system }, ...said] : said;
  }

  // The chosen branch as a row, or every branch, the chosen one first.
  rows(isEvery) {
    if (!isEvery) return [{ messages: this.messages(this.path()) }];
    const chosen = this.path().at(-1);
    const leaves = this.nodes.filter((node) => node.parent !== null && !node.children.length && this.isThere(node));
    leaves.sort((a, b) => (b === chosen) - (a === chosen));
    return leaves.map((leaf) => ({ messages: this.messages(this.upTo(leaf.id)) }));
  }

  // Saves the conversation, or every branch, as a file; -> how many it has.
  download(isEvery) {
    const rows = this.rows(isEvery).filter((row) => row.messages.some((message) => message.role !== "system"));
    if (!rows.length) return 0;
    const text = JSON.stringify(rows.length === 1 ? rows[0] : rows, null, 1);
    const link = document.createElement("a");
    Object.assign(link, { href: URL.createObjectURL(new Blob([text], { type: "application/json" })), download: "conversation.json" });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    return rows.length;
  }

  isThere(node) {
    return node.parent === null || (this.nodes[node.parent].children.includes(node.id) && this.isThere(this.nodes[node.parent]));
  }

  // Of a file's text, JSON or a row a line. Throws an Error of one line.
  static load(text) {
    let rows;
    try {
      const whole = JSON.parse(text);
      rows = Array.isArray(whole) ? whole : [whole];
    } catch {
      try {
        rows = text.split("\n").filter((line) => line.trim()).map((line) => JSON.parse(line));
      } catch (error) {
        throw new Error(`not JSON: ${error.message}`);
      }
    }
    const conversation = new Conversation();
    rows.forEach((row, at) => conversation.addRow(row, at + 1));
    if (conversation.nodes.length === 1) throw new Error("no turn in it");
    const first = conversation.nodes[0];
    first.chosen = 0;
    for (const node of conversation.nodes) if (node.children.length) node.chosen = 0;
    return conversation;
  }

  addRow(row, number) {
    const messages = row && row.messages;
    if (!Array.isArray(messages)) throw new Error(`row ${number}: expected {"messages": [...]}`);
    let above = 0;
    messages.forEach((message, at) => {
      const { role, content } = message || {};
      if (!ROLES.includes(role) || typeof content !== "string") {
        throw new Error(`row ${number}, message ${at + 1}: expected a role of ${ROLES.join(", ")}, and content as text`);
      }
      if (role === "system") {
        if (at) throw new Error(`row ${number}, message ${at + 1}: a system message comes first`);
        this.system = content;
        return;
      }
      const children = this.nodes[above].children.map((id) => this.nodes[id]);
      const same = children.find((child) => child.role === role && contentOf(child) === content);
      above = same ? same.id : this.add(above, role, ...(role === "user" ? split(content) : [content])).id;
    });
  }
}

export const contentOf = (turn) => (turn.log ? `${turn.content}\n${turn.log.sent}` : turn.content);

// [question, log] of a message that may have a log after its first line.
function split(content) {
  const end = content.indexOf("\n");
  if (end < 0 || content.length - end <= LEAST_LOG) return [content, null];
  const sent = content.slice(end + 1);
  const lines = sent.split("\n");
  const isNumbered = lines.every((line, at) => line.startsWith(`L${at + 1} `));
  const text = isNumbered ? lines.map((line) => line.slice(line.indexOf(" ") + 1)).join("\n") : sent;
  return [content.slice(0, end), { name: "log", text, sent, folded: null }];
}

// ---- kept in this browser alone

function database() {
  return new Promise((resolve, reject) => {
    const opening = indexedDB.open("logtrain", 1);
    opening.onupgradeneeded = () => opening.result.createObjectStore("kept");
    opening.onsuccess = () => resolve(opening.result);
    opening.onerror = () => reject(opening.error);
  });
}

export async function keep(name, value) {
  const store = (await database()).transaction("kept", "readwrite").objectStore("kept");
  await new Promise((resolve, reject) => {
    const putting = store.put(value, name);
    putting.onsuccess = resolve;
    putting.onerror = () => reject(putting.error);
  });
}

export async function kept(name) {
  const store = (await database()).transaction("kept").objectStore("kept");
  return new Promise((resolve, reject) => {
    const getting = store.get(name);
    getting.onsuccess = () => resolve(getting.result);
    getting.onerror = () => reject(getting.error);
  });
}
