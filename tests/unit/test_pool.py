"""A pool of processes: one queue, and a death that only those notice who were being answered."""

import asyncio
import functools
import os
import re
import signal
import time

import openai
import pytest
from chained import ALPHABET, TOKENIZER, alphabet_gpt
from running import Running, ScriptedGPT

from nanochat_lib.inference.engine import Engine
from nanochat_lib.serving.pool import Pool


def make_engine(seconds: float, index: int) -> Engine:
    """Make the engine of a process; with `seconds` a slow one."""
    return Engine(ScriptedGPT(seconds) if seconds else alphabet_gpt(), TOKENIZER, max_rows=4)


def fail_to_start(index: int) -> Engine:
    raise RuntimeError("no weights")


def pool_of(n: int, make=functools.partial(make_engine, 0.0), **more) -> Pool:
    return Pool(make, n, TOKENIZER, limit=128, **{"max_rows": 4, **more})


def wait_for(true, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def ready(pool: Pool) -> bool:
    return all(member.ready for member in pool.members)


def hello(**more) -> dict:
    return {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], **more}


@pytest.fixture(scope="module")
def slow():
    pool = pool_of(2, functools.partial(make_engine, 0.05))
    with Running(worker=pool) as server:
        wait_for(lambda: ready(pool))
        yield server, pool


async def many(server: Running, n: int, **more) -> list:
    """Ask n times at once; an answer is a text, or the error that came."""
    client = server.client(openai.AsyncOpenAI)

    async def one(i: int):
        try:
            stream = await client.chat.completions.create(**hello(stream=True, seed=i, **more))
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        except openai.APIError as error:
            return error

    return await asyncio.gather(*(one(i) for i in range(n)))


def test_both_processes_answer_and_rows_limit_each(slow):
    server, pool = slow
    before = [member.served for member in pool.members]
    most = []

    async def watched():
        asked = asyncio.create_task(many(server, 24))
        while not asked.done():
            most.append(max(len(member.tickets) for member in pool.members))
            await asyncio.sleep(0.01)
        return await asked

    assert asyncio.run(watched()) == [ALPHABET] * 24
    served = [member.served - old for member, old in zip(pool.members, before)]
    assert sum(served) == 24 and min(served) >= 1 and max(most) <= 4 and pool.idle


def test_a_killed_process_is_noticed_by_its_callers_alone_and_replaced(slow):
    server, pool = slow
    victim = pool.members[0].process.pid

    async def killed():
        asked = asyncio.create_task(many(server, 8))
        while not all(member.tickets for member in pool.members):
            await asyncio.sleep(0.005)
        os.kill(victim, signal.SIGKILL)
        return await asked

    answers = asyncio.run(killed())
    lost = [answer for answer in answers if answer != ALPHABET]
    assert 1 <= len(lost) <= 4 and all("has ended; ask again" in str(error) for error in lost)
    assert asyncio.run(many(server, 4)) == [ALPHABET] * 4, "the other one goes on"
    wait_for(lambda: ready(pool))
    assert pool.members[0].process.pid != victim
    before = [member.served for member in pool.members]
    assert asyncio.run(many(server, 16)) == [ALPHABET] * 16
    assert all(member.served > old for member, old in zip(pool.members, before))


def test_callers_who_leave_free_their_rows(slow):
    server, pool = slow
    client = server.client()
    streams = [client.chat.completions.create(**hello(stream=True)) for _ in range(6)]
    for stream in streams:
        next(iter(stream))
        stream.close()
    wait_for(lambda: pool.idle, 10)
    assert client.chat.completions.create(**hello()).choices[0].message.content == ALPHABET


def test_forms_samples_and_usage_pass_through_the_pipe(slow):
    server, _ = slow
    body = {"structured_outputs": {"regex": "[0-9]{4}"}}
    answer = server.client().chat.completions.create(**hello(n=3, extra_body=body, temperature=2.0))
    texts = [choice.message.content for choice in answer.choices]
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert all(re.fullmatch("[0-9]{4}", text) for text in texts)
    assert answer.usage.completion_tokens == 12
    noted = server.client().chat.completions.create(**hello(logprobs=True, top_logprobs=2))
    assert [len(entry.top_logprobs) for entry in noted.choices[0].logprobs.content] == [2] * 26


def test_a_full_queue_and_a_drained_pool_say_so():
    pool = pool_of(1, functools.partial(make_engine, 0.02), max_rows=1, max_waiting=2)
    with Running(worker=pool) as server:
        wait_for(lambda: ready(pool))
        answers = asyncio.run(many(server, 8))
        refused = [answer for answer in answers if isinstance(answer, openai.RateLimitError)]
        assert refused and len(refused) + answers.count(ALPHABET) == 8
        pool.draining = True
        [answer] = asyncio.run(many(server, 1))
        assert isinstance(answer, openai.InternalServerError) and answer.status_code == 503


def test_a_process_that_never_starts_is_given_up(capfd):
    pool = pool_of(2, fail_to_start)
    with Running(worker=pool) as server:
        [waiting] = asyncio.run(many(server, 1))  # asked while there was hope
        assert "no worker could be started" in str(waiting)
        [refused] = asyncio.run(many(server, 1))
        assert refused.status_code == 503 and refused.body["code"] == "no_worker"
    assert capfd.readouterr().err.count("RuntimeError: no weights") == 6


def test_processes_end_with_their_parent():
    pool = pool_of(1)
    with Running(worker=pool):
        wait_for(lambda: ready(pool))
        process = pool.members[0].process
    assert process.wait(10) is not None and not pool.is_alive()
