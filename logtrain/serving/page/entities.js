// The entities of an answer and whether a log has them: the rules of logtrain/text/entities.py, held equal to it by
// tests/text/test_entities.py. RULES is the content of logtrain/text/entities.json.

export function entityRules(RULES) {
  const kinds = RULES.kinds.map(([kind]) => kind);
  const every = RULES.kinds.map(([, pattern]) => `(${pattern})`).join("|");
  const listMarker = new RegExp(RULES.list_marker, "g");
  const ordinal = new RegExp(RULES.ordinal);
  const general = new Set(RULES.general);

  // [{text, kind, start, stop}] of an answer, in their order.
  function entities(answer) {
    const markers = [...answer.matchAll(listMarker)].map((found) => [found.index, found.index + found[0].length]);
    const all = [];
    for (const found of answer.matchAll(new RegExp(every, "g"))) {
      const kind = kinds[found.slice(1).findIndex((group) => group !== undefined)];
      const start = found.index;
      const text = kind === "line" ? found[0] : found[0].replace(/[.,:-]+$/, "");
      const rest = answer.slice(start + text.length, start + text.length + 4);
      const isPlain = kind === "number" && (text.length === 1 || ordinal.test(rest));
      const isMarker = markers.some(([from, to]) => from <= start && start < to);
      if (isPlain || isMarker || !text || general.has(lower(text))) continue;
      all.push({ text, kind, start, stop: start + text.length });
    }
    return all;
  }
  return { entities, units: RULES.units };
}

const lower = (text) => text.replace(/[A-Z]/g, (letter) => letter.toLowerCase());
const isAlnum = (text) => /^[A-Za-z0-9]$/.test(text);
const isDigit = (text) => /^[0-9]$/.test(text);
const isSmallInteger = (text) => /^[0-9]{1,9}$/.test(text);
// Whether a dot and a digit stand there, in this order away from a text, which is part of an address then.
const isPart = (near, far, mark = ".") => near === mark && isDigit(far);

// A log, and what else an answer may take its entities from.
export class Source {
  constructor(log, more = "", first = 1, units = {}) {
    const numLines = log.split("\n").length - (log.endsWith("\n") ? 1 : 0);
    this.first = first;
    this.last = first + numLines - 1;
    this.lower = lower(`${log}\n${more}`.replaceAll("\\\\", "\\"));
    this.logLower = lower(log);
    this.units = units;
    this.counts = new Map();
  }

  // Whether the source has an entity; after: what follows it in the answer.
  has(text, kind, after) {
    if (kind === "line") {
      const numbers = text.match(/\d+/g);
      if (numbers.every((n) => n.length < 10 && this.first <= Number(n) && Number(n) <= this.last)) return true;
      return text[1] === "i" && numbers.every((n) => this.findsNumber(n)); // "line 873" of a program, in the log
    }
    if (kind === "number") return this.hasNumber(text, after);
    if (kind === "ip") {
      const at = text.includes(".") ? text.indexOf(":") : -1;
      if (this.finds(lower(text))) return true;
      return at >= 0 && this.finds(text.slice(0, at)) && this.findsNumber(text.slice(at + 1));
    }
    const name = lower(text.replaceAll("\\\\", "\\"));
    if (this.finds(name) || (name.endsWith("s") && this.finds(name.slice(0, -1)))) return true;
    const words = (text.match(/[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+/g) || []).join(" ").toLowerCase();
    return kind === "identifier" && words.includes(" ") && !/\d/.test(text) && this.finds(words);
  }

  hasNumber(text, after) {
    const isTime = text.includes(":");
    const plain = isTime ? text : text.replaceAll(",", "");
    if (this.findsNumber(text) || this.findsNumber(plain) || (isTime && this.findsNumber(`0${text}`))) return true;
    const unit = /^[ \t]?([A-Za-z]{1,3})\b/.exec(after);
    const power = unit && Object.hasOwn(this.units, unit[1].toLowerCase()) && this.units[unit[1].toLowerCase()];
    if (power && isSmallInteger(plain)) {
      return [1000n, 1024n].some((base) => this.findsNumber(String(BigInt(plain) * base ** BigInt(power))));
    }
    return isSmallInteger(plain) && this.isCount(Number(plain), after);
  }

  // Whether so many lines have one of the words that follow, or there are so many lines.
  isCount(number, after) {
    const found = /^(?:[ \t\n]+[A-Za-z]+){1,4}/.exec(after);
    const words = found ? found[0].toLowerCase().trim().split(/[ \t\n]+/).filter((word) => word.length >= 4) : [];
    const isAll = number === this.last - this.first + 1;
    if (isAll && words.some((word) => word.startsWith("line") || word === "entries")) return true;
    return words.some((word) => this.count(word.replace(/s$/, "")) === number);
  }

  // The number of lines of the log that have a word, as a part of one, too.
  count(word) {
    if (!this.counts.has(word)) {
      let count = 0;
      for (let at = this.logLower.indexOf(word); at >= 0; ) {
        count += 1;
        const end = this.logLower.indexOf("\n", at);
        at = end >= 0 ? this.logLower.indexOf(word, end) : -1;
      }
      this.counts.set(word, count);
    }
    return this.counts.get(word);
  }

  // Whether a text occurs with no letter, digit, or part of an address beside it.
  finds(text) {
    const [head, tail, where] = [text[0], text.at(-1), this.lower];
    for (let at = where.indexOf(text); at >= 0; at = where.indexOf(text, at + 1)) {
      const stop = at + text.length;
      const [far, before, after, next] = [where[at - 2], where[at - 1], where[stop], where[stop + 1]];
      if (isAlnum(head) && isAlnum(before)) continue;
      if (isAlnum(tail) && isAlnum(after)) continue;
      if (isDigit(head) && isPart(before, far)) continue;
      if (isDigit(tail) && isPart(after, next)) continue;
      return true;
    }
    return false;
  }

  // Whether a number occurs, not inside of a longer one, of an address or of a word; a unit may follow.
  findsNumber(text) {
    const where = this.lower;
    for (let at = where.indexOf(text); at >= 0; at = where.indexOf(text, at + 1)) {
      const stop = at + text.length;
      const [far, before, after, next] = [where[at - 2], where[at - 1], where[stop], where[stop + 1]];
      if (isAlnum(before) || isDigit(after) || isPart(before, far) || isPart(after, next)) continue;
      if (text.length <= 2 && (isPart(before, far, ":") || isPart(after, next, ":"))) continue; // of a time
      if (/^\p{L}{4}$/u.test(where.slice(stop, stop + 4))) continue;
      return true;
    }
    return false;
  }
}
