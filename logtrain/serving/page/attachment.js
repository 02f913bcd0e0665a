// A log that goes with the next question: as it is, its lines numbered, or folded where it does not fit.

import { linesOf } from "./log.js";

const FOLDED_SHARE = 0.6; // of the room: the rest is for answers and further questions
const LEAST_CHARS_OF_FIT = 16; // characters a token; a text with more cannot fit

export class Attachment {
  constructor(name, text) {
    this.log = { name, text, sent: text, folded: null };
    this.show = [];
    this.tokens = 0;
    this.isExact = true;
  }

  // Lines of a log that the model was sent folded; they go after those that are waiting already.
  static more(log, waiting, first, last) {
    const before = waiting?.log.more && waiting.log.text === log.text ? `${waiting.log.sent}\n` : "";
    const lines = linesOf(log.text).slice(first - 1, last).map((line, at) => `L${first + at} ${line}`);
    return Attachment.of({ ...log, more: true, sent: before + lines.join("\n") });
  }

  // Of a log that was kept.
  static of(log) {
    return Object.assign(new Attachment(log.name, log.text), { log });
  }

  size() {
    const { folded } = this.log;
    if (!this.tokens) return "";
    const tokens = `${this.isExact ? "" : "about "}${this.tokens.toLocaleString("en")} tokens`;
    if (this.log.more) return `${linesOf(this.log.sent).length.toLocaleString("en")} lines of it, ${tokens}`;
    if (!folded) return tokens;
    return `folded: ${folded.shown.length.toLocaleString("en")} lines whole, ${tokens} instead of ${folded.tokens_before.toLocaleString("en")}`;
  }

  // Decides what is sent: everything, if there is room, or nothing is known of it (room 0). show: ranges of lines.
  async fit(server, settings, room, show) {
    const { text, sent, more } = this.log;
    if (more) {
      const { count, isExact } = await server.count(settings.model, { prompt: sent });
      Object.assign(this, { tokens: count, isExact });
      return;
    }
    const lines = linesOf(text);
    const whole = settings.numbers ? lines.map((line, at) => `L${at + 1} ${line}`).join("\n") : text;
    if (!room || (room > 0 && whole.length <= room * LEAST_CHARS_OF_FIT)) {
      const { count, isExact } = await server.count(settings.model, { prompt: whole });
      if (!room || count <= room) {
        Object.assign(this, { tokens: count, isExact, show: [] });
        this.log = { ...this.log, sent: whole, folded: null };
        return;
      }
    }
    if (room < 100) throw new Error(`${this.log.name}: the conversation leaves no room for a log; begin anew`);
    let charsPerToken = await server.charsPerToken(settings.model, text);
    for (const share of [FOLDED_SHARE, 1]) {
      const most = Math.floor(share * room);
      try {
        for (;;) {
          const folded = await server.fold(text, most, charsPerToken, show);
          const { count, isExact } = await server.count(settings.model, { prompt: folded.text });
          if (count <= most) {
            this.log = { ...this.log, sent: folded.text, folded: { ...folded, tokens: count } };
            Object.assign(this, { tokens: count, isExact, show });
            return;
          }
          charsPerToken = Math.min(folded.text.length / count, 0.97 * charsPerToken); // more tokens than the sample foretold
        }
      } catch (error) {
        if (share === 1 || error.status !== 400) throw error;
      }
    }
  }
}
