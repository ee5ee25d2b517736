"use strict";
// A GPT in plain JavaScript: tokenizer, model, calculator, sampling, and a server that lives in the page.
// It computes what nanochat_lib computes, one token at a time, in the order of its formulas. Nothing
// here touches the document, so that tests can run it without one.

const nanochat = (() => {
  // --- words become tokens ------------------------------------------------------------------------
  // Tokens are strings of bytes: one character, code 0 to 255, for each byte.
  const toBytes = (text) => Array.from(new TextEncoder().encode(text), (b) => String.fromCharCode(b));
  const fromBytes = (token) => Uint8Array.from(token, (c) => c.charCodeAt(0));

  class Tokenizer {
    constructor({ pattern, special_tokens, ranks }) {
      this.tokens = ranks.map(atob);
      this.ranks = new Map(this.tokens.map((token, id) => [token, id]));
      this.special = new Map(special_tokens.map((name, i) => [name, ranks.length + i]));
      this.names = special_tokens;
      this.bos = ranks.length;
      this.pattern = new RegExp(pattern, "gu");
    }
    encode(text) {
      return (text.match(this.pattern) ?? []).flatMap((word) => this.merge(toBytes(word)));
    }
    merge(parts) {  // inside one word: always the pair that was learned first, until none is known
      for (;;) {
        let best = Infinity, at = -1;
        for (let i = 0; i + 1 < parts.length; i++) {
          const rank = this.ranks.get(parts[i] + parts[i + 1]);
          if (rank < best) { best = rank; at = i; }
        }
        if (at < 0) return parts.map((part) => this.ranks.get(part));
        parts.splice(at, 2, parts[at] + parts[at + 1]);
      }
    }
    bytes(id) {
      return id < this.tokens.length ? fromBytes(this.tokens[id]) : new TextEncoder().encode(this.names[id - this.bos]);
    }
    decode(ids) {
      return new TextDecoder("utf-8", { ignoreBOM: true }).decode(Uint8Array.from(ids.flatMap((id) => [...this.bytes(id)])));
    }
    readable(id) {  // the text of a token, or its bytes as <C3> where they are no whole characters
      try { return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(this.bytes(id)); }
      catch { return [...this.bytes(id)].map((b) => `<${b.toString(16).toUpperCase().padStart(2, "0")}>`).join(""); }
    }
    prompt(messages) {  // a chat, up to the place where the assistant speaks
      messages = messages.slice();
      if (messages[0]?.role === "system") {
        const [system, first, ...rest] = messages;
        messages = [{ role: "user", content: `${system.content}\n\n${first?.content ?? ""}` }, ...rest];
      }
      const ids = [this.bos], mark = (name) => this.special.get(`<|${name}|>`);
      const names = { python: "python", python_output: "output" };
      for (const { role, content } of messages) {
        ids.push(mark(`${role}_start`));
        for (const { type, text } of typeof content === "string" ? [{ type: "text", text: content }] : content) {
          if (type === "text") ids.push(...this.encode(text));
          else ids.push(mark(`${names[type]}_start`), ...this.encode(text), mark(`${names[type]}_end`));
        }
        ids.push(mark(`${role}_end`));
      }
      return [...ids, mark("assistant_start")];
    }
  }

  // --- the calculator: exact fractions of whole numbers ---------------------------------------------
  const MAX_CHARACTERS = 200;
  const gcd = (a, b) => { while (b) [a, b] = [b, a % b]; return a < 0n ? -a : a; };
  function fraction(top, bottom) {
    if (bottom === 0n) throw new Error("division by zero");
    const shared = gcd(top, bottom) * (bottom < 0n ? -1n : 1n);
    return [top / shared, bottom / shared];
  }
  function lex(source) {  // numbers, texts, operators; anything else is no arithmetic
    const found = [], rule = /\s*(?:(\d+\.?\d*|\.\d+)|("""[^]*?"""|'''[^]*?'''|"[^"\n\r]*"|'[^'\n\r]*')|(\.count(?=\())|([-+*/()]))/y;
    source = source.trimEnd();
    while (rule.lastIndex < source.length) {
      const [, number, text, count, sign] = rule.exec(source) ?? [];
      if (number !== undefined) {
        if (/^0+[1-9]\d*$/.test(number)) throw new Error("a leading zero");
        found.push({ number });
      } else if (text !== undefined) {
        const quotes = /^('''|""")/.test(text) && text.length >= 6 ? 3 : 1;
        found.push({ text: text.slice(quotes, -quotes).replace(/\r\n?/g, "\n") });
      } else if (count || sign) found.push({ sign: count ?? sign });
      else throw new Error("no arithmetic");
    }
    return found;
  }
  function evaluate(tokens) {
    let i = 0;
    const next = (sign) => tokens[i]?.sign === sign && ++i;
    function sum() {
      let value = product();
      for (;;) {
        const plus = next("+");
        if (!plus && !next("-")) return value;
        const [a, b] = number(value), [c, d] = number(product());
        value = fraction(plus ? a * d + c * b : a * d - c * b, b * d);
      }
    }
    function product() {
      let value = signed();
      for (;;) {
        const times = next("*");
        if (!times && !next("/")) return value;
        if (tokens[i]?.sign === "*" || tokens[i]?.sign === "/") throw new Error("a power or floor division");
        const [a, b] = number(value), [c, d] = number(signed());
        value = times ? fraction(a * c, b * d) : fraction(a * d, b * c);
      }
    }
    function signed() {
      if (next("+")) return number(signed());
      if (!next("-")) return counted();
      const [a, b] = number(signed());
      return [-a, b];
    }
    function counted() {
      let value = atom();
      while (next(".count")) {
        next("(");
        const part = sum();
        if (typeof value !== "string" || typeof part !== "string" || !next(")")) throw new Error("no count");
        value = [BigInt(part ? value.split(part).length - 1 : [...value].length + 1), 1n];
      }
      return value;
    }
    function atom() {
      if (next("(")) {
        const value = sum();
        if (!next(")")) throw new Error("a parenthesis is open");
        return value;
      }
      const token = tokens[i++];
      if (token?.number !== undefined) {
        const [whole, rest = ""] = token.number.split(".");
        return fraction(BigInt(whole + rest), 10n ** BigInt(rest.length));
      }
      if (token?.text === undefined) throw new Error("no value");
      let text = token.text;
      while (tokens[i]?.text !== undefined) text += tokens[i++].text;  // neighbours are one text
      return text;
    }
    const value = number(sum());
    if (i < tokens.length) throw new Error("more than a value");
    return value;
  }
  function number(value) {
    if (typeof value === "string") throw new Error("a text is no number");
    return value;
  }
  function format([top, bottom]) {  // six decimals, halves to even
    const scaled = top * 10n ** 6n, sign = scaled < 0n, size = sign ? -scaled : scaled;
    let millionths = size / bottom;
    const twice = 2n * (size % bottom);
    if (twice > bottom || (twice === bottom && millionths % 2n)) millionths += 1n;
    const rest = String(millionths % 10n ** 6n).padStart(6, "0").replace(/0+$/, "");
    return `${sign && millionths ? "-" : ""}${millionths / 10n ** 6n}${rest && "."}${rest}`;
  }
  function calculate(expression) {
    let source = expression.replace(/^\p{White_Space}+|\p{White_Space}+$/gu, "");
    if (!/['"]/.test(source)) source = source.replace(/(?<=\d),(?=\d{3}(?!\d))/g, "");
    const allowed = /^(?:[0-9+\-*/(). ]|'[^'\\]*'|"[^"\\]*"|\.count(?=\())*$/;
    if ([...source].length > MAX_CHARACTERS || source.includes("\0") || !allowed.test(source)) return null;
    try { return format(evaluate(lex(source))); } catch { return null; }
  }

  // --- the model ------------------------------------------------------------------------------------
  const EPSILON = 2 ** -23;
  function unit(x, from = 0, size = x.length, out = x, to = from) {  // to a root-mean-square of 1
    let squares = 0;
    for (let i = 0; i < size; i++) squares += x[from + i] ** 2;
    const scale = 1 / Math.sqrt(squares / size + EPSILON);
    for (let i = 0; i < size; i++) out[to + i] = x[from + i] * scale;
    return out;
  }
  const sigmoid = (x) => 1 / (1 + Math.exp(-x));

  class Weight {  // rows of whole numbers from -127 to 127, each row times a step of its own
    constructor(buffer, [rows, columns, at]) {
      const whole = new Int8Array(buffer, at, rows * columns);
      const steps = new Float32Array(buffer, at + 4 * Math.ceil(rows * columns / 4), rows);
      this.rows = rows;
      this.columns = columns;
      this.values = new Float32Array(rows * columns);
      for (let i = 0; i < whole.length; i++) this.values[i] = whole[i] * steps[Math.floor(i / columns)];
    }
    row(i) { return this.values.subarray(i * this.columns, (i + 1) * this.columns); }
    times(x, out = new Float32Array(this.rows)) {
      const { values, rows, columns } = this, fours = columns - columns % 4;
      for (let row = 0, at = 0; row < rows; row++) {
        let a = 0, b = 0, c = 0, d = 0, i = 0;  // four sums: none waits for the one before
        for (; i < fours; i += 4, at += 4) {
          a += values[at] * x[i];
          b += values[at + 1] * x[i + 1];
          c += values[at + 2] * x[i + 2];
          d += values[at + 3] * x[i + 3];
        }
        for (; i < columns; i++) a += values[at++] * x[i];
        out[row] = a + b + c + d;
      }
      return out;
    }
  }

  class Model {
    constructor(about, buffer) {
      this.config = about.config;
      this.scalars = about.scalars;
      this.weights = {};
      for (const [name, place] of Object.entries(about.tensors)) this.weights[name] = new Weight(buffer, place);
      const { n_embd, n_head, n_kv_head, n_layer, sequence_len, rope_base } = this.config;
      this.size = n_embd / n_head;
      const half = this.size / 2;
      this.cos = new Float32Array(sequence_len * half);
      this.sin = new Float32Array(sequence_len * half);
      for (let i = 0; i < half; i++) {
        const speed = Math.fround(1 / Math.fround(rope_base ** Math.fround(2 * i / this.size)));
        for (let t = 0; t < sequence_len; t++) {
          this.cos[t * half + i] = Math.cos(Math.fround(t * speed));
          this.sin[t * half + i] = Math.sin(Math.fround(t * speed));
        }
      }
      const room = (sequence_len + 1) * n_kv_head * this.size;  // one more: some keys stand a place later
      this.keys = Array.from({ length: n_layer }, () => new Float32Array(room));
      this.values = Array.from({ length: n_layer }, () => new Float32Array(room));
      this.read = [];  // the tokens whose keys and values these are
      this.watch = null;  // {layer, head, rows}: where to leave the weights of attention
    }
    reuse(tokens) {  // keep what is already read of a text; the last token is always read anew
      let n = 0;
      while (n < tokens.length - 1 && this.read[n] === tokens[n]) n++;
      this.read.length = n;
      return n;
    }
    embedding(id) { return unit(this.weights["wte.weight"].row(id), 0, this.config.n_embd, new Float32Array(this.config.n_embd)); }
    next(id) {  // read one more token; return the scores of the token after it
      const { weights, scalars, config } = this, t = this.read.length, before = this.read[t - 1];
      const embedding = this.embedding(id), x = embedding.slice();
      if (config.smear && before !== undefined) {
        const gate = scalars["smear.scale"] * sigmoid(weights["smear.gate.weight"].times(x)[0]);
        this.embedding(before).forEach((value, i) => { x[i] += gate * value; });
      }
      this.read.push(id);
      for (let layer = 0; layer < config.n_layer; layer++) {
        const part = (name) => weights[`blocks.${layer}.${name}.weight`];
        const x0 = scalars.x0_lambdas?.[layer] ?? 0;
        if (x0) for (let i = 0; i < x.length; i++) x[i] += x0 * embedding[i];
        const mixed = part("attn.c_proj").times(this.attend(layer, id, t, unit(x.slice()), part));
        for (let i = 0; i < x.length; i++) x[i] += mixed[i];
        const wide = part("mlp.c_fc").times(unit(x.slice()));
        for (let i = 0; i < wide.length; i++) wide[i] = wide[i] > 0 ? wide[i] ** 2 : 0;
        const added = part("mlp.c_proj").times(wide);
        for (let i = 0; i < x.length; i++) x[i] += added[i];
      }
      const logits = weights["lm_head.weight"].times(unit(x));
      return logits.map((score) => config.softcap * Math.tanh(score / config.softcap));
    }
    attend(layer, id, t, h, part) {
      const { config, size } = this, heads = config.n_head, groups = config.n_kv_head;
      const q = this.turn(part("attn.c_q").times(h), t), k = this.turn(part("attn.c_k").times(h), t);
      const v = part("attn.c_v").times(h), keys = this.keys[layer], values = this.values[layer];
      const table = part("value_embed.table");
      if (table) {
        const row = table.row(id);
        part("value_embed.gate").times(h).forEach((gate, g) => {
          for (let i = g * size; i < (g + 1) * size; i++) v[i] += 2 * sigmoid(gate) * row[i];
        });
      }
      const plain = config.key_offset ? Math.floor(groups / 2) : groups;
      values.set(v, t * v.length);
      keys.set(k.subarray(0, plain * size), t * k.length);
      keys.set(k.subarray(plain * size), (t + 1) * k.length + plain * size);  // read by the next token only
      if (t === 0) keys.fill(0, plain * size, k.length);
      const out = new Float32Array(q.length), odds = new Float64Array(t + 1), width = k.length;
      for (let head = 0; head < heads; head++) {
        const from = head * size, at = Math.floor(head * groups / heads) * size;
        const query = q.subarray(from, from + size), mixed = new Float64Array(size);
        let most = -Infinity, total = 0;
        for (let s = 0, place = at; s <= t; s++, place += width) {
          let score = 0;
          for (let i = 0; i < size; i++) score += query[i] * keys[place + i];
          odds[s] = score / Math.sqrt(size);
          if (odds[s] > most) most = odds[s];
        }
        for (let s = 0; s <= t; s++) total += odds[s] = Math.exp(odds[s] - most);
        for (let s = 0, place = at; s <= t; s++, place += width) {
          const share = odds[s] /= total;
          for (let i = 0; i < size; i++) mixed[i] += share * values[place + i];
        }
        out.set(mixed, from);
        if (this.watch?.layer === layer && this.watch.head === head) this.watch.rows[t] = Array.from(odds);
      }
      return out;
    }
    turn(x, t) {  // rotate each head's pairs of channels by the angles of position t, then scale it
      const half = this.size / 2;
      for (let from = 0; from < x.length; from += this.size) {
        for (let i = 0; i < half; i++) {
          const a = x[from + i], b = x[from + half + i], cos = this.cos[t * half + i], sin = this.sin[t * half + i];
          x[from + i] = a * cos + b * sin;
          x[from + half + i] = b * cos - a * sin;
        }
        unit(x, from, this.size);
      }
      return x;
    }
    attention(tokens, layer, head) {  // row t: how much of each earlier token the head reads at token t
      this.read.length = 0;
      this.watch = { layer, head, rows: [] };
      for (const id of tokens) this.next(id);
      const { rows } = this.watch;
      this.watch = null;
      return rows;
    }
  }

  // --- answers --------------------------------------------------------------------------------------
  const MAX_CALL = 32;
  function inALoop(tokens, longest = 16, length = 24, times = 4) {
    for (let period = 1; period <= longest; period++) {
      const covered = period * Math.max(times, Math.ceil(length / period)), n = tokens.length;
      if (n < covered) continue;
      let same = true;
      for (let i = n - covered + period; same && i < n; i++) same = tokens[i] === tokens[i - period];
      if (same) return true;
    }
    return false;
  }
  function* uniforms(seed) {  // numbers in [0, 1) by a linear congruence of 2**48, its upper bits
    let state = (BigInt.asUintN(48, BigInt(Math.trunc(seed))) ^ 0x5DEECE66Dn);
    for (;;) {
      state = BigInt.asUintN(48, state * 0x5DEECE66Dn + 11n);
      yield Number(state >> 16n) / 2 ** 32;
    }
  }
  function logOdds(logits) {
    const most = Math.max(...logits);
    let total = 0;
    for (const score of logits) total += Math.exp(score - most);
    return Array.from(logits, (score) => score - most - Math.log(total));
  }
  function choose(logits, { temperature, topK }, uniform) {
    if (!temperature) return logits.indexOf(Math.max(...logits));
    const order = Array.from(logits.keys()).sort((a, b) => logits[b] - logits[a] || a - b);
    const kept = order.slice(0, topK), odds = kept.map((id) => Math.exp((logits[id] - logits[order[0]]) / temperature));
    let left = uniform * odds.reduce((a, b) => a + b);
    return kept.find((_, i) => (left -= odds[i]) < 0) ?? kept[0];
  }
  const pause = () => new Promise((go) => setTimeout(go));

  // Yield {id, forced, logits} for each token of an answer, and in the end {reason}.
  async function* generate(model, tokenizer, prompt, { maxTokens = Infinity, temperature = 0, topK = 50, seed = 42 } = {}) {
    const special = (name) => tokenizer.special.get(name), tokens = [], forced = [], luck = uniforms(seed);
    const budget = Math.min(maxTokens, model.config.sequence_len - prompt.length);
    let logits, call = null, rested = performance.now();
    for (const id of prompt.slice(model.reuse(prompt))) {
      logits = model.next(id);
      if (performance.now() - rested > 12) { await pause(); rested = performance.now(); }  // the page stays alive
    }
    for (;;) {
      const wasForced = forced.length > 0, id = wasForced ? forced.shift() : choose(logits, { temperature, topK }, luck.next().value);
      if (!wasForced && (id === special("<|assistant_end|>") || id === tokenizer.bos)) return yield { reason: "stop" };
      tokens.push(id);
      yield { id, forced: wasForced, logits };
      if (!wasForced && id === special("<|python_start|>")) call = [];
      else if (!wasForced && call) {
        const ended = id === special("<|python_end|>");
        const result = ended ? calculate(tokenizer.decode(call)) : null;
        call.push(id);
        if (ended || call.length > MAX_CALL) {
          call = null;
          if (!ended) forced.push(special("<|python_end|>"));
          forced.push(special("<|output_start|>"), ...tokenizer.encode(result || "error"), special("<|output_end|>"));
        }
      }
      if (tokens.length >= budget || inALoop(tokens)) return yield { reason: "length" };
      logits = model.next(id);
      if (performance.now() - rested > 12) { await pause(); rested = performance.now(); }
    }
  }

  // --- the server in the page: what fetch() would bring from `nanochat serve` ------------------------
  class Refused extends Error {}
  const json = (data, status = 200) => new Response(JSON.stringify(data), { status, headers: { "Content-Type": "application/json" } });

  class Server {
    constructor(about, buffer) {
      this.name = about.name;
      this.tokenizer = new Tokenizer(about.tokenizer);
      this.model = new Model(about, buffer);
      this.turn = Promise.resolve();  // one answer at a time: there is one cache
    }
    async fetch(route, { body, signal } = {}) {
      const ask = body === undefined ? {} : JSON.parse(body);
      try {
        if (route === "/v1/models") return json({ data: [{ id: this.name, max_model_len: this.model.config.sequence_len }] });
        if (route === "/tokenize") {
          const tokens = ask.messages ? this.tokenizer.prompt(ask.messages) : this.tokenizer.encode(ask.prompt);
          return json({ tokens, pieces: tokens.map((id) => this.tokenizer.readable(id)), count: tokens.length });
        }
        if (route === "/v1/chat/completions") return this.chat(ask, signal);
      } catch (error) {
        if (error instanceof Refused) return json({ error: { message: error.message } }, 400);
        throw error;
      }
      return json({ error: { message: `there is no ${route} here` } }, 404);
    }
    chat(ask, signal) {
      const prompt = this.tokenizer.prompt(ask.messages), limit = this.model.config.sequence_len;
      if (prompt.length >= limit) throw new Refused(`the prompt has ${prompt.length} tokens, the context ${limit}: make it shorter`);
      const events = this.events(ask, prompt, signal);
      return new Response(new ReadableStream({
        async pull(stream) {
          const { value, done } = await events.next();
          if (done) stream.close();
          else stream.enqueue(new TextEncoder().encode(`data: ${typeof value === "string" ? value : JSON.stringify(value)}\n\n`));
        },
        cancel: () => { events.return(); },
      }), { headers: { "Content-Type": "text/event-stream" } });
    }
    async *events(ask, prompt, signal) {
      const before = this.turn;
      let free;
      this.turn = new Promise((done) => { free = done; });
      await before;
      try {
        const { tokenizer } = this, utf8 = new TextDecoder("utf-8", { ignoreBOM: true });
        const dials = { temperature: ask.temperature, topK: ask.top_k, seed: ask.seed, maxTokens: ask.max_tokens };
        const entry = (odds, id) => ({ token: tokenizer.decode([id]), bytes: [...tokenizer.bytes(id)], id, logprob: odds[id] });
        const mark = (name) => tokenizer.special.get(name);
        let inside = null, call = "", n = 0;
        for await (const { id, logits, reason } of generate(this.model, tokenizer, prompt, dials)) {
          if (signal?.aborted) throw signal.reason;
          const delta = {}, choice = { index: 0, delta, finish_reason: reason ?? null, logprobs: null };
          if (reason) delta.content = utf8.decode();
          else {
            n += 1;
            const wasInside = inside !== null, ended = id === mark("<|output_end|>");
            if (id === mark("<|python_start|>") || id === mark("<|output_start|>")) { delta.content = utf8.decode(); inside = []; }
            else if (id === mark("<|python_end|>")) { call = tokenizer.decode(inside ?? []); inside = []; }
            else if (ended) { delta.tool_steps = [{ call, output: tokenizer.decode(inside ?? []) }]; inside = null; }
            else if (wasInside) inside.push(id);
            else delta.content = utf8.decode(tokenizer.bytes(id), { stream: true });
            if (ask.logprobs) {
              const odds = logOdds(logits), best = [...odds.keys()].sort((a, b) => odds[b] - odds[a]).slice(0, ask.top_logprobs ?? 0);
              choice.logprobs = { content: [{ ...entry(odds, id), inside_tool: wasInside || inside !== null || ended, top_logprobs: best.map((other) => entry(odds, other)) }] };
            }
          }
          yield { choices: [choice] };
        }
        yield { choices: [], usage: { prompt_tokens: prompt.length, completion_tokens: n, total_tokens: prompt.length + n } };
        yield "[DONE]";
      } finally { free(); }
    }
  }

  const open = (about) => new Server(about, Uint8Array.from(atob(about.weights), (c) => c.charCodeAt(0)).buffer);
  return { Tokenizer, Model, Server, calculate, generate, inALoop, open };
})();
