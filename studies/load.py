"""Let many clients talk to a server at once, for a while, and say how it bore up.

`make load-test` starts `nanochat serve` for the newest run (or takes the address of a server that runs) and lets
64 clients stream replies for a minute. Each asks, reads to the end, and asks again; one in ten leaves in the
middle. It prints tokens a second, the spread of waits for the first token, and the server's memory before and
after, and ends with an error if any request failed or any row was left behind.
"""

import argparse
import asyncio
import json
import random
import re
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx

QUESTIONS = (
    "What is 12 + 30?",
    "How many r are in strawberry?",
    "Who are you?",
    "Tell me a story.",
    "Spell the word elephant",
    "Is the sheep pink?",
    "thanks",
    "What is the capital of France?",
)


@dataclass
class Tally:
    """What the clients saw."""

    replies: int = 0
    left: int = 0
    tokens: int = 0
    failures: list[str] = field(default_factory=list)
    first: list[float] = field(default_factory=list)


async def client(url: str, model: str, number: int, end: float, tally: Tally) -> None:
    """Ask and read until the time is over."""
    dice = random.Random(number)
    async with httpx.AsyncClient(timeout=60) as http:
        while time.monotonic() < end:
            messages = [{"role": "user", "content": dice.choice(QUESTIONS)}]
            body = {"model": model, "messages": messages, "stream": True, "temperature": 1.0}
            patience = dice.randint(2, 8) if dice.random() < 0.1 else None
            try:
                await one_reply(http, url, body, patience, tally)
            except (httpx.HTTPError, ValueError) as error:
                tally.failures.append(f"{type(error).__name__}: {error}")


async def one_reply(
    http: httpx.AsyncClient, url: str, body: dict, patience: int | None, tally: Tally
) -> None:
    """Stream one reply, or the first `patience` events of it."""
    start, seen = time.monotonic(), 0
    async with http.stream("POST", f"{url}/v1/chat/completions", json=body) as answer:
        if answer.status_code != 200:
            raise ValueError(f"{answer.status_code}: {(await answer.aread())[:200]!r}")
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line.removeprefix("data: "))
            if "error" in event:
                raise ValueError(event["error"]["message"])
            if event["choices"][0]["delta"].get("content"):
                if not seen:
                    tally.first.append(time.monotonic() - start)
                seen += 1
                if seen == patience:
                    tally.left += 1
                    return
    tally.replies += 1


async def load(url: str, model: str, clients: int, seconds: float) -> Tally:
    """Let the clients talk for a while."""
    tally, end = Tally(), time.monotonic() + seconds
    await asyncio.gather(*(client(url, model, i, end, tally) for i in range(clients)))
    return tally


def metric(url: str, name: str) -> float:
    """Read one number off /metrics."""
    text = httpx.get(f"{url}/metrics").text
    return float(re.search(rf"^{re.escape(name)} (\S+)", text, re.MULTILINE)[1])


def memory(pid: int) -> float | None:
    """Return a process's memory in MB, where the system tells."""
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        return None
    return int(re.search(r"VmRSS:\s+(\d+)", status.read_text(encoding="utf-8"))[1]) / 1024


def main() -> None:
    """Start a server if none is named, load it, and print what was seen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", help="of a server that runs; its memory is not measured")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60.0)
    args = parser.parse_args()
    url, process = args.url, None
    if url is None:
        command = [sys.executable, "-m", "nanochat_lib.cli", "serve", "--port", "0"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8")
        line = process.stdout.readline()
        url = line.split(": ")[1].split("/ ")[0]
    try:
        model = httpx.get(f"{url}/v1/models").json()["data"][0]["id"]
        asyncio.run(load(url, model, args.clients, 3))  # the first seconds take memory for good
        before = memory(process.pid) if process else None
        written = metric(url, 'nanochat_tokens_total{kind="completion"}')
        start = time.monotonic()
        tally = asyncio.run(load(url, model, args.clients, args.seconds))
        seconds = time.monotonic() - start
        time.sleep(0.5)
        written = metric(url, 'nanochat_tokens_total{kind="completion"}') - written
        rows, after = metric(url, "nanochat_rows"), memory(process.pid) if process else None
    finally:
        if process:
            process.terminate()
            process.wait(40)
    waits = statistics.quantiles(tally.first, n=100)
    print(
        f"{args.clients} clients, {seconds:.0f} s: {tally.replies} replies, {tally.left} left early"
    )
    print(
        f"{written / seconds:,.0f} tokens/s; first token after {1000 * waits[49]:.0f} ms in the middle, "
        f"{1000 * waits[94]:.0f} ms at 95%, {1000 * max(tally.first):.0f} ms at most"
    )
    if before:
        print(f"memory {before:.0f} MB before, {after:.0f} MB after")
    if tally.failures or rows:
        raise SystemExit(
            f"{len(tally.failures)} failures, {rows:.0f} rows left: {tally.failures[:3]}"
        )


if __name__ == "__main__":
    main()
