"""Open the newest run as one HTML file in a headless Chromium, and compare its answers with our engine's.

`make bench-one-file` asks 200 held-out questions (first messages, a third of them as the third turn of a chat) of
the file and of the engine on the same rounded weights, greedily, and counts equal answers; compares the logits of
whole texts; and grades the answers of the exact weights and of the rounded ones. RECORD=1 keeps the numbers in
records/inference/one_file.json.
"""

import argparse
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import torch
from playwright.sync_api import sync_playwright

from nanochat_lib.capstone.profiles import load_profile
from nanochat_lib.common import atomic_write
from nanochat_lib.data.tinyworld import World
from nanochat_lib.evaluation.chat import response_text
from nanochat_lib.evaluation.contact import FirstContact
from nanochat_lib.inference.engine import Engine
from nanochat_lib.inference.packed import PackedGPT
from nanochat_lib.inference.row import Request
from nanochat_lib.machine import machine_summary
from nanochat_lib.serving.one_file import inside, one_file, rounded
from nanochat_lib.serving.runs import find_run, last_stage
from nanochat_lib.tokenizer.tokenizer import Tokenizer
from nanochat_lib.training.checkpoint import load_model

RECORD = Path(__file__).parents[1] / "records/inference/one_file.json"
MANY, LONGEST = 200, 112  # questions; tokens of an answer
ASK = """async (asks) => {
  const found = [], start = performance.now();
  for (const prompt of asks) {
    const tokens = [];
    for await (const { id } of nanochat.generate(here.model, here.tokenizer, prompt, { maxTokens: LONGEST })) {
      if (id !== undefined) tokens.push(id);
    }
    found.push(tokens);
  }
  return { found, seconds: (performance.now() - start) / 1000 };
}""".replace("LONGEST", str(LONGEST))
SCORE = "(ids) => { here.model.read.length = 0; return ids.map((id) => [...here.model.next(id)]); }"


def questions(world: World) -> list[tuple[FirstContact, dict]]:
    """List 200 held-out questions, each with the task that grades it."""
    fresh, later = FirstContact(world), FirstContact(world, before=2)
    chosen = [(fresh, fresh[i]) for i in range(MANY * 2 // 3)]
    return chosen + [(later, later[i]) for i in range(MANY - len(chosen))]


def answers(model, tokenizer: Tokenizer, prompts: list[list[int]]) -> list[list[int]]:
    """Answer greedily with our engine, as the page does."""
    engine = Engine(model, tokenizer)
    rows = [
        engine.submit(Request(ids, LONGEST, temperature=0.0, end_loops=True)) for ids in prompts
    ]
    while engine.busy:
        engine.step()
    return [row.tokens for row in rows]


def in_browser(path: Path, prompts: list[list[int]], texts: list[list[int]]) -> dict:
    """Open the file, and let it answer prompts and score texts."""
    with sync_playwright() as playwright:
        program = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page()
        start = time.perf_counter()
        page.goto(path.as_uri())
        page.wait_for_function("modelName !== null")
        opened = time.perf_counter() - start
        runs = [page.evaluate(ASK, prompts) for _ in range(3)]
        logits = [page.evaluate(SCORE, ids) for ids in texts]
        version = browser.version
        browser.close()
    seconds = statistics.median(run["seconds"] for run in runs)
    found = runs[0]["found"]
    written, read = sum(map(len, found)), sum(map(len, prompts))
    rates = {"rate": written / seconds, "read_rate": (written + read) / seconds}
    return {"found": found, "logits": logits, **rates, "opened": opened, "version": version}


def main() -> None:
    """Measure, print, and perhaps keep."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--record", action="store_true", help=f"write {RECORD.name}")
    args = parser.parse_args()
    torch.set_num_threads(1)
    folder = find_run(None)
    tokenizer = Tokenizer.load(folder / "tokenizer")
    model, _ = load_model(folder / last_stage(folder), tokenizer)
    small = rounded(model)
    chosen = questions(World(load_profile("laptop").data.world_seed))
    prompts = [tokenizer.render_for_completion(conversation) for _, conversation in chosen]
    page = one_file(inside(model, tokenizer, folder.name))
    ours, exact = answers(small, tokenizer, prompts), answers(model.eval(), tokenizer, prompts)
    texts = [(prompt + tokens) for prompt, tokens in zip(prompts, ours)][::10]
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "page.html"
        path.write_text(page, encoding="utf-8")
        theirs = in_browser(path, prompts, texts)
    apart = 0.0
    for ids, logits in zip(texts, theirs["logits"]):
        with torch.no_grad():
            apart = max(
                apart, (small(torch.tensor([ids]))[0] - torch.tensor(logits)).abs().max().item()
            )
    start = time.perf_counter()
    packed = PackedGPT(model)
    alone = [tokens for prompt in prompts[:50] for tokens in answers(packed, tokenizer, [prompt])]
    engine_rate = sum(map(len, alone)) / (time.perf_counter() - start)
    right = lambda rows: sum(  # noqa: E731
        task.evaluate(conversation, response_text(tokenizer, tokens))
        for (task, conversation), tokens in zip(chosen, rows)
    )
    table = {
        "bytes": len(page.encode()),
        "questions": len(prompts),
        "equal_answers": sum(a == b for a, b in zip(ours, theirs["found"])),
        "largest_difference_of_logits": apart,
        "equal_to_exact_weights": sum(a == b for a, b in zip(ours, exact)),
        "handled_exact": right(exact),
        "handled_rounded": right(theirs["found"]),
        "tokens_per_second": round(theirs["rate"]),  # of answers; the time to read questions counts
        "tokens_per_second_read_or_written": round(theirs["read_rate"]),
        "engine_tokens_per_second": round(engine_rate),
        "seconds_to_open": round(theirs["opened"], 2),
        "chromium": theirs["version"],
    }
    for name, value in table.items():
        print(f"{name:30} {value}")
    if args.record:
        machine = {key: value for key, value in machine_summary().items() if key != "disk_free_gb"}
        atomic_write(RECORD, json.dumps({**table, "machine": machine}, indent=1) + "\n")


if __name__ == "__main__":
    main()
