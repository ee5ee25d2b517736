"""The server: OpenAI's own client is the judge, beside raw requests that no client would send."""

import asyncio
import base64
import contextlib
import json
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import openai
import pytest
from chained import ALPHABET, TOKENIZER
from hypothesis import given, settings
from hypothesis import strategies as st
from running import JSON, Running

from nanochat_lib.model.gpt import GPT, GPTConfig
from nanochat_lib.serving.reply import ReplyText
from nanochat_lib.serving.server import create_app
from nanochat_lib.training.checkpoint import save_checkpoint


@pytest.fixture(scope="module")
def server():
    with Running() as running:
        yield running


def hello(**more) -> dict:
    return {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], **more}


# --- what the client expects ---------------------------------------------------------------------


def test_a_chat(server):
    answer = server.client().chat.completions.create(**hello())
    [choice] = answer.choices
    assert choice.message.content == ALPHABET and choice.finish_reason == "stop"
    prompt = TOKENIZER.render_for_completion(hello())
    assert answer.usage.prompt_tokens == len(prompt) and answer.usage.completion_tokens == 26
    assert answer.usage.total_tokens == len(prompt) + 26 and answer.object == "chat.completion"


def test_a_chat_as_a_stream(server):
    stream = server.client().chat.completions.create(
        **hello(stream=True, n=2, stream_options={"include_usage": True})
    )
    chunks = list(stream)
    texts, reasons = {0: "", 1: ""}, {}
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            if choice.finish_reason:
                reasons[choice.index] = choice.finish_reason
    assert texts == {0: ALPHABET, 1: ALPHABET} and reasons == {0: "stop", 1: "stop"}
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 52
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_many_at_once_without_waiting_for_each_other(server):
    async def ask(client, n: int) -> str:
        answer = await client.chat.completions.create(**hello(max_tokens=n))
        return answer.choices[0].message.content, answer.choices[0].finish_reason

    async def all_of_them():
        async with server.client(openai.AsyncOpenAI) as client:
            return await asyncio.gather(*(ask(client, n) for n in range(1, 25)))

    assert asyncio.run(all_of_them()) == [(ALPHABET[:n], "length") for n in range(1, 25)]


def test_completions_of_texts_and_tokens(server):
    client = server.client()
    answer = client.completions.create(model="tiny", prompt="W")
    assert answer.choices[0].text == "é" and answer.object == "text_completion"
    tokens = client.completions.create(model="tiny", prompt=[ord("a")], max_tokens=3)
    assert tokens.choices[0].text == "bcd"
    pieces = client.completions.create(model="tiny", prompt="W", stream=True)
    assert [c.choices[0].text for c in pieces if c.choices[0].text] == ["é"], "half a character"


def test_tool_steps_stand_beside_the_text(server):
    answer = httpx.post(
        f"{server.url}/v1/completions", json={"model": "tiny", "prompt": "Q"}, timeout=20
    ).json()
    assert answer["choices"][0]["text"] == "."
    assert answer["usage"]["completion_tokens"] == 10


@pytest.mark.parametrize("stop, expected", [("d", "abc"), (["xyz", "klm"], ALPHABET[:10])])
def test_stop_strings(server, stop, expected):
    for stream in (False, True):
        answer = server.client().chat.completions.create(**hello(stop=stop, stream=stream))
        if stream:
            choices = [chunk.choices[0] for chunk in answer]
            text = "".join(choice.delta.content or "" for choice in choices)
            reason = choices[-1].finish_reason
        else:
            text, reason = answer.choices[0].message.content, answer.choices[0].finish_reason
        assert (text, reason) == (expected, "stop")
    server.wait_until_idle()


def test_log_probabilities(server):
    answer = server.client().chat.completions.create(
        **hello(logprobs=True, top_logprobs=3, max_tokens=4)
    )
    content = answer.choices[0].logprobs.content
    assert [entry.token for entry in content] == list("abcd")
    for entry in content:
        assert entry.top_logprobs[0].token == entry.token and len(entry.top_logprobs) == 3
        assert entry.logprob == entry.top_logprobs[0].logprob <= 0
    old = server.client().completions.create(model="tiny", prompt="a", logprobs=2, max_tokens=2)
    assert old.choices[0].logprobs.tokens == ["b", "c"]


def test_seeds_biases_and_temperature(server):
    ask = lambda **more: (  # noqa: E731
        server.client().chat.completions.create(**hello(**more)).choices[0].message.content
    )
    hot = {"temperature": 2.0, "extra_body": {"top_k": 200}, "max_tokens": 30}
    assert ask(seed=1, **hot) == ask(seed=1, **hot) != ask(seed=2, **hot)
    assert ask(logit_bias={str(ord("z")): 100}, max_tokens=3) == "zzz"


def test_a_repeated_beginning_is_counted_as_cached(server):
    messages = [{"role": "user", "content": "a rather long beginning of a chat"}]
    ask = lambda: server.client().chat.completions.create(model="tiny", messages=messages)  # noqa: E731
    first = ask()
    messages += [{"role": "assistant", "content": ALPHABET}, {"role": "user", "content": "more"}]
    second = ask()
    assert first.usage.prompt_tokens_details.cached_tokens == 0
    known = second.usage.prompt_tokens_details.cached_tokens
    assert first.usage.prompt_tokens <= known < second.usage.prompt_tokens


def test_models_tokens_health_and_metrics(server):
    client = server.client()
    assert [model.id for model in client.models.list()] == ["tiny"]
    get = lambda path: httpx.get(server.url + path)  # noqa: E731
    post = lambda path, body: httpx.post(server.url + path, json=body).json()  # noqa: E731
    tokens = post("/tokenize", {"prompt": "né"})
    assert tokens["tokens"] == TOKENIZER.encode("né") and tokens["count"] == 3
    assert tokens["pieces"] == ["n", "<C3>", "<A9>"]
    assert post("/detokenize", {"tokens": tokens["tokens"]}) == {"prompt": "né"}
    chat = post("/tokenize", {"messages": hello()["messages"]})
    assert chat["tokens"] == TOKENIZER.render_for_completion(hello())
    assert get("/health").json() == {"status": "ok"} and get("/ready").text == "ready"
    client.chat.completions.create(**hello())
    metrics = get("/metrics").text
    assert 'nanochat_requests_total{route="/v1/chat/completions",status="200"}' in metrics
    assert 'nanochat_tokens_total{kind="completion"}' in metrics and "nanochat_rows 0.0" in metrics


# --- errors --------------------------------------------------------------------------------------

WRONG = {
    "prompt too long": ({"messages": [{"role": "user", "content": "a" * 200}]}, "200|context"),
    "unknown model": ({"model": "gpt-5"}, "'gpt-5'.*'tiny'"),
    "no messages": ({"messages": []}, "messages"),
    "no user last": ({"messages": [{"role": "assistant", "content": "a"}]}, "user"),
    "two users": ({"messages": [{"role": "user", "content": "a"}] * 2}, "user|assistant"),
    "a picture": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        "message|content",
    ),
    "n too large": ({"n": 9}, "n is 9, at most 8"),
    "n of nothing": ({"n": 0}, "n:"),
    "wrong type": ({"temperature": "hot"}, "temperature"),
    "too hot": ({"temperature": 3}, "temperature"),
    "not a number": ({"temperature": float("nan")}, "temperature"),
    "no such token": ({"logit_bias": {"9999": 1}}, "9999"),
    "tools": (
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        "trained with one tool",
    ),
    "JSON": ({"response_format": {"type": "xml"}}, "response_format"),
    "unknown field": ({"temprature": 1}, "temprature"),
    "empty stop": ({"stop": ""}, "stop"),
    "max_tokens": ({"max_tokens": 0}, "max_tokens"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named(server, name):
    changed, message = WRONG[name]
    body = json.dumps(hello(**changed))
    answer = httpx.post(f"{server.url}/v1/chat/completions", content=body, headers=JSON, timeout=20)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert re.search(message, error["message"]), error["message"]


def test_the_client_raises_what_it_should(server):
    with pytest.raises(openai.BadRequestError, match="context"):
        server.client().chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "a" * 500}]
        )
    with pytest.raises(openai.NotFoundError):
        server.client().embeddings.create(model="tiny", input="a")


def test_bodies_that_are_no_requests(server):
    url = f"{server.url}/v1/chat/completions"
    for body in (b"", b"{", b"[]", b"null", b'{"model": 1}', b"\xff\xfe", b'"text"'):
        answer = httpx.post(url, content=body, headers=JSON)
        assert answer.status_code == 400 and "error" in answer.json(), (body, answer.text)
    plain = httpx.post(url, content=json.dumps(hello()), headers={"Content-Type": "text/plain"})
    assert plain.status_code == 400 and "application/json" in plain.json()["error"]["message"]
    assert httpx.get(url).status_code == 405
    assert httpx.get(f"{server.url}/nowhere").json()["error"]["code"] == "not_found"
    large = httpx.post(url, content=b" " * 1_000_001)
    assert large.status_code == 413 and large.json()["error"]["code"] == "too_large"

    def pieces():
        for _ in range(12):
            yield b" " * 100_000

    assert httpx.post(url, content=pieces()).status_code == 413, "no length was announced"


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["messages", "n", "stop", "temperature", "seed", "stream", "logprobs"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.sampled_from(["role", "content", "type", "text"]), inner)
            ),
            max_leaves=8,
        ),
    )
)
def test_nothing_makes_it_fail(server, changed):
    body = json.dumps(hello(max_tokens=1) | changed)
    answer = httpx.post(f"{server.url}/v1/chat/completions", content=body, headers=JSON, timeout=20)
    assert answer.status_code in (200, 400), (body, answer.text)


def test_a_failing_model_is_an_error_and_the_next_request_an_answer(server):
    with pytest.raises(openai.InternalServerError, match="NaN"):
        server.client().completions.create(model="tiny", prompt="!")
    stream = server.client().completions.create(model="tiny", prompt="!", stream=True)
    with pytest.raises(openai.APIError, match="NaN"):
        list(stream)
    answer = server.client().chat.completions.create(**hello())
    assert answer.choices[0].message.content == ALPHABET


# --- crowds, and those who leave -----------------------------------------------------------------


def test_a_full_queue_turns_away_at_once():
    with Running(seconds=0.02, max_rows=1, max_waiting=2) as server:
        url, codes = f"{server.url}/v1/chat/completions", []

        async def crowd() -> None:
            async with httpx.AsyncClient(timeout=20) as client:

                async def one() -> None:
                    answer = await client.post(url, json=hello(max_tokens=5))
                    codes.append((answer.status_code, answer.headers.get("retry-after")))

                await asyncio.gather(*(one() for _ in range(10)))

        asyncio.run(crowd())
        assert codes.count((429, "1")) >= 6 and codes.count((200, None)) >= 3
        server.wait_until_idle()


@pytest.mark.parametrize("stream", [True, False])
def test_who_leaves_frees_his_row(stream):
    with Running(seconds=0.02) as server:
        url, worker = f"{server.url}/v1/chat/completions", server.service.worker
        if stream:
            with httpx.Client() as client:
                with client.stream("POST", url, json=hello(stream=True)) as answer:
                    for line in answer.iter_lines():
                        if '"content": "c"' in line:
                            break
        else:
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(url, json=hello(), timeout=0.15)
        end = time.monotonic() + 0.25  # the alphabet takes twice as long
        while worker.tickets or worker.engine.busy:
            assert time.monotonic() < end, "the row is still taken"
            time.sleep(0.005)


def test_sixty_four_clients_and_nothing_is_left_behind(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "studies"))
    from load import load

    with Running(max_rows=64) as server:
        tally = asyncio.run(load(server.url, "tiny", clients=64, seconds=10))
        assert tally.failures == [] and tally.replies > 64 and tally.left > 0
        server.wait_until_idle()
        engine = server.service.worker.engine
        assert not server.service.worker.tickets and engine.kept.taken <= engine.kept.room
        assert engine.cache.batch_size <= 64


def test_a_slow_reader_slows_nobody_else():
    with Running(seconds=0.002) as server:
        url = f"{server.url}/v1/chat/completions"
        with httpx.Client(timeout=20) as client:
            with client.stream("POST", url, json=hello(stream=True)):  # and never read on
                start = time.monotonic()
                answer = httpx.post(url, json=hello(), timeout=20).json()
                assert answer["choices"][0]["message"]["content"] == ALPHABET
                assert time.monotonic() - start < 5


def test_a_stop_signal_lets_replies_end_and_turns_new_ones_away():
    with Running(seconds=0.02) as server:
        url, found = f"{server.url}/v1/chat/completions", {}

        def first() -> None:
            found["first"] = httpx.post(url, json=hello(), timeout=20)

        thread = threading.Thread(target=first)
        thread.start()
        while not server.service.worker.tickets:
            time.sleep(0.005)
        server.server.handle_exit(signal.SIGTERM, None)
        late = httpx.post(url, json=hello(), timeout=20)
        assert late.status_code == 503 and late.json()["error"]["code"] == "draining"
        assert httpx.get(f"{server.url}/ready").status_code == 503
        thread.join()
        assert found["first"].json()["choices"][0]["message"]["content"] == ALPHABET
        server.thread.join(10)
        assert not server.thread.is_alive(), "it should have stopped by itself"


# --- the gate ------------------------------------------------------------------------------------


def test_the_key_opens_every_route_but_health():
    with Running(key="s3cret") as server:
        paths = ("/v1/models", "/metrics", "/ready", "/v1/chat/completions", "/", "/model.json")
        basic = lambda text: f"Basic {base64.b64encode(text).decode()}"  # noqa: E731
        wrong = ["Bearer wrong", "s3cret", "Bearer", "Basic s3cret", "Basic ?", basic(b"a:wrong")]
        for path in (*paths, "/web/engine.js"):
            for headers in ({}, *({"Authorization": text} for text in wrong)):
                answer = httpx.get(server.url + path, headers=headers)
                assert answer.status_code == 401, path
                assert answer.json()["error"]["code"] == "invalid_api_key"
        assert httpx.get(f"{server.url}/health").status_code == 200
        with pytest.raises(openai.AuthenticationError):
            server.client(key="wrong").models.list()
        answer = server.client(key="s3cret").chat.completions.create(**hello())
        assert answer.choices[0].message.content == ALPHABET
        answer = httpx.get(server.url, headers={"Authorization": basic(b"a:s3cret")})
        assert answer.status_code == 200, "a browser sends the key as a password"


def test_no_other_file_can_be_asked_for(server):
    assert (
        httpx.get(f"{server.url}/web/engine.js")
        .headers["content-type"]
        .startswith("text/javascript")
    )
    for name in (
        "../pyproject.toml",
        "%2e%2e/pyproject.toml",
        "chat.html",
        "vendor",
        "",
        "/etc/passwd",
    ):
        assert httpx.get(f"{server.url}/web/{name}").status_code == 404
    assert httpx.get(f"{server.url}/model.json").json()["error"]["code"] == "too_large"


def test_another_name_for_this_machine_is_refused():
    with Running(hosts=frozenset({"127.0.0.1", "localhost", "[::1]"})) as server:
        get = lambda host: httpx.get(f"{server.url}/health", headers={"Host": host})  # noqa: E731
        assert get("evil.example").status_code == 421
        assert get("localhost.evil.example:80").status_code == 421
        assert [get(h).status_code for h in ("localhost", "LOCALHOST:8000", "[::1]:80")] == [
            200
        ] * 3


def test_the_page_runs_its_own_script_alone(server):
    first, second = (httpx.get(server.url + "/") for _ in range(2))
    policy = first.headers["content-security-policy"]
    nonce = re.search(r"script-src 'nonce-([\w-]+)'", policy)[1]
    assert policy.startswith("default-src 'none'") and f'<script nonce="{nonce}">' in first.text
    assert "NONCE" not in first.text and first.text != second.text
    assert not re.search(r"innerHTML|document\.write|https?://(?!www\.w3\.org)", first.text)


def test_other_origins_get_no_permission(server):
    answer = httpx.options(
        f"{server.url}/v1/chat/completions",
        headers={"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"},
    )
    assert "access-control-allow-origin" not in answer.headers


# --- the text of a reply -------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(
    st.text(alphabet="abé\U0001f44b", max_size=12),
    st.lists(st.text("abé", min_size=1, max_size=3), max_size=3),
)
def test_pieces_join_to_the_text_before_the_first_stop(text, stops):
    reply = ReplyText(TOKENIZER, stops)
    pieces = [reply.feed(token) for token in text.encode()]
    joined = "".join(pieces) + reply.finish()
    ends = [text.find(stop) for stop in stops if stop in text]
    # Of two stops that overlap, the one that is complete first ends the text.
    if not ends:
        assert joined == text and not reply.stopped
    else:
        first = min(text.find(stop) + len(stop) for stop in stops if stop in text)
        begins = min(p for stop in stops if (p := text[:first].find(stop)) >= 0)
        assert joined == text[:begins] and reply.stopped
    assert not any(stop in "".join(pieces) for stop in stops)


# --- the command ---------------------------------------------------------------------------------


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "runs [1]"))
    model = GPT(GPTConfig(sequence_len=64, vocab_size=265, n_layer=1))
    run = tmp_path / "runs [1]/tiny"
    TOKENIZER.save(run / "tokenizer")
    meta = {"config": vars(model.config), "tokenizer_hash": TOKENIZER.hash}
    save_checkpoint(run / "sft", 1, model, [], meta)


def test_nanochat_serve_says_where_answers_and_stops(runs):
    command = [sys.executable, "-m", "nanochat_lib.cli", "serve", "--port", "0", "--device", "cpu"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8")
    try:
        line = process.stdout.readline()
        assert line.startswith("tiny: http://127.0.0.1:"), line
        url = line.split()[1] + "v1"
        client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
        answer = client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "hi"}], max_tokens=5
        )
        assert answer.usage.completion_tokens == 5
        busy = subprocess.run(
            [*command[:5], url.split(":")[2].split("/")[0]], capture_output=True, encoding="utf-8"
        )
        assert busy.returncode != 0 and "try --port" in busy.stderr, busy.stderr
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) in (0, -signal.SIGTERM)
    finally:
        process.kill()
        process.stdout.close()


@pytest.mark.parametrize("text", ["\ud800 b", " " * 600_000])
def test_texts_that_are_hard_to_encode_do_not_make_it_fail(server, text):
    messages = [{"role": "user", "content": text}]
    for path, body in (
        ("/v1/chat/completions", hello(messages=messages, max_tokens=1)),
        ("/v1/completions", {"model": "tiny", "prompt": text, "max_tokens": 1}),
        ("/tokenize", {"prompt": text}),
        ("/tokenize", {"messages": messages}),
    ):
        answer = httpx.post(server.url + path, content=json.dumps(body), headers=JSON, timeout=20)
        assert answer.status_code in (200, 400), (path, answer.text[:200])
    for wrong in (hello(**{text[:3]: 1}), hello(model=text[:3])):
        url = f"{server.url}/v1/chat/completions"
        answer = httpx.post(url, content=json.dumps(wrong), headers=JSON)
        assert answer.status_code == 400 and answer.json()["error"]["message"]


def test_a_prompt_that_is_too_long_is_named(server):
    body = {"model": "tiny", "prompt": "a" * 300}
    error = httpx.post(f"{server.url}/v1/completions", json=body).json()["error"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", "prompt")


def test_a_client_who_leaves_before_the_first_event_leaves_nothing_behind():
    with Running(seconds=0.5) as server:
        app = create_app(server.service)
        body = json.dumps(hello(stream=True)).encode()
        sent = iter([{"type": "http.request", "body": body}, {"type": "http.disconnect"}])

        async def receive():
            return next(sent)

        async def send(message):
            raise OSError("the client has gone")

        headers = [(b"content-type", b"application/json"), (b"host", b"x")]
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/chat/completions",
            "headers": headers,
        }
        scope |= {"query_string": b"", "http_version": "1.1", "asgi": {"version": "3.0"}}
        with contextlib.suppress(Exception):
            asyncio.run(app(scope, receive, send))
        server.wait_until_idle(6)  # the whole answer would take 13 seconds
