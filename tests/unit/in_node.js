// Open an exported page without a browser: run its engine, and answer
// the requests of standard input, one line of JSON each.
"use strict";
const fs = require("fs");
const page = fs.readFileSync(process.argv[2], "utf8");
const scripts = page.split("<script>").slice(1).map((rest) => rest.split("</script>")[0]);
const engine = scripts.find((text) => text.includes("const nanochat ="));
const nanochat = new Function(`${engine}\nreturn nanochat;`)();
const server = nanochat.open(JSON.parse(page.split('id="contents">')[1].split("</script>")[0]));
const { tokenizer, model } = server;
async function reply({ prompt, ...dials }) {
  const found = { tokens: [], reason: null };
  for await (const { id, reason } of nanochat.generate(model, tokenizer, prompt, dials)) {
    if (reason) found.reason = reason;
    else found.tokens.push(id);
  }
  return found;
}
const answers = {
  encode: (texts) => texts.map((text) => tokenizer.encode(text)),
  decode: (rows) => rows.map((ids) => tokenizer.decode(ids)),
  readable: (ids) => ids.map((id) => tokenizer.readable(id)),
  prompt: (messages) => tokenizer.prompt(messages),
  calculate: (texts) => texts.map((text) => nanochat.calculate(text)),
  logits: (ids) => { model.read.length = 0; return ids.map((id) => Array.from(model.next(id))); },
  attention: ({ ids, layer, head }) => model.attention(ids, layer, head),
  generate: async (asks) => {
    const found = [], start = performance.now();
    for (const ask of asks) found.push(await reply(ask));
    return { found, seconds: (performance.now() - start) / 1000 };
  },
  fetch: async ({ route, body }) => {
    const answer = await server.fetch(route, { body: body && JSON.stringify(body) });
    return { status: answer.status, text: await answer.text() };
  },
};
(async () => {
  for await (const line of require("readline").createInterface({ input: process.stdin })) {
    const [name, ask] = JSON.parse(line);
    process.stdout.write(`${JSON.stringify(await answers[name](ask))}\n`);
  }
})();
