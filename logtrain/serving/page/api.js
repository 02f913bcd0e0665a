// The server: any that speaks OpenAI's API. Paths are relative, so that the page works below any address.

const CHARS_PER_TOKEN = 2.5; // of logs, where the server cannot tell
const SAMPLE = 20000; // characters of a long text that are counted for the whole

export class Server {
  constructor(settings) {
    this.settings = settings;
    this.canCount = true;
    this.sizes = new Map(); // model -> tokens of its context
  }

  async request(path, body, signal) {
    const headers = { "Content-Type": "application/json" };
    if (this.settings.key) headers.Authorization = `Bearer ${this.settings.key}`;
    const options = body === undefined ? { headers, signal } : { method: "POST", headers, signal, body: JSON.stringify(body) };
    const response = await fetch(path, options);
    if (!response.ok) throw await wrong(response);
    return response;
  }

  async models() {
    const { data } = await (await this.request("v1/models")).json();
    for (const model of data) if (model.max_model_len) this.sizes.set(model.id, model.max_model_len);
    return data.map((model) => model.id);
  }

  contextSize(model) {
    return Number(this.settings.context) || this.sizes.get(model) || 0;
  }

  // {count, isExact} of {prompt} or {messages}.
  async count(model, what) {
    if (this.canCount) {
      try {
        const { count, max_model_len: size } = await (await this.request("tokenize", { model, ...what })).json();
        if (size) this.sizes.set(model, size);
        return { count, isExact: true };
      } catch (error) {
        if (![404, 405, 501].includes(error.status)) throw error;
        this.canCount = false;
      }
    }
    const text = what.prompt ?? what.messages.map((message) => `${message.role}\n${message.content}\n`).join("");
    return { count: Math.ceil(text.length / CHARS_PER_TOKEN), isExact: false };
  }

  // Characters a token of a text, by pieces from its beginning, its middle and its end.
  async charsPerToken(model, text) {
    const third = SAMPLE / 3;
    const middle = text.length / 2;
    const sample = text.length <= SAMPLE ? text : text.slice(0, third) + text.slice(middle, middle + third) + text.slice(-third);
    const { count } = await this.count(model, { prompt: sample });
    return sample.length / Math.max(count, 1);
  }

  // A log folded to so many tokens; show: [[first, last], ...] numbers of lines that are to be whole.
  async fold(text, maxTokens, charsPerToken, show) {
    const asked = { text, max_tokens: maxTokens, chars_per_token: charsPerToken, show };
    return (await this.request("fold", asked)).json();
  }

  // Yields {text, reasoning, finish, usage} as the answer comes.
  async *answer(model, messages, sampling, signal) {
    const asked = { model, messages, stream: true, stream_options: { include_usage: true }, ...sampling };
    const response = await this.request("v1/chat/completions", asked, signal);
    for await (const data of events(response.body)) {
      if (data === "[DONE]") return;
      const part = JSON.parse(data);
      if (part.error) throw new Error(part.error.message || "the server stopped the answer");
      const choice = (part.choices || [])[0] || {};
      yield { text: choice.delta?.content || "", finish: choice.finish_reason || null, usage: part.usage || null };
    }
    throw new Error("the connection ended before the answer did");
  }
}

// The data of each server-sent event.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    waiting += value;
    const lines = waiting.split(/\r\n|\n|\r(?!$)/);
    waiting = lines.pop();
    for (const line of lines) if (line.startsWith("data:")) yield line.slice(5).trim();
  }
}

async function wrong(response) {
  const text = await response.text();
  let message = text.slice(0, 500);
  try {
    const facts = JSON.parse(text);
    message = facts.error?.message || facts.message || facts.detail || message;
  } catch {
    // not JSON: as it came
  }
  const error = new Error(`${response.status}: ${typeof message === "string" ? message : JSON.stringify(message)}`);
  error.status = response.status;
  return error;
}
