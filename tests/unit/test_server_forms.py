"""The server's other shapes: answers in a form, calls left to the caller, and responses."""

import json
import re
from typing import Literal

import httpx
import openai
import pytest
from chained import ALPHABET, TOKENIZER, chained_gpt, counting_gpt
from pydantic import BaseModel
from running import Running

CALCULATOR = {
    "type": "function",
    "function": {
        "name": "calculator",
        "description": "works out a sum",
        "parameters": {
            "type": "object",
            "properties": {"expression": {"type": "string"}},
            "required": ["expression"],
        },
    },
}
ASKED = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def client():
    with Running() as running:
        yield running.client()


@pytest.fixture(scope="module")
def counting():
    with Running(model=counting_gpt()) as running:
        yield running.client()


def ask(client, **more):
    return client.chat.completions.create(**{"model": "tiny", "messages": ASKED, **more})


def refused(client, **more) -> dict:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, **more)
    return caught.value.body


# --- forms ---------------------------------------------------------------------------------------


class Person(BaseModel):
    name: Literal["Ann", "Bo"]
    age: int


def test_an_answer_is_parsed_into_its_type(client):
    dials = {"temperature": 2.0, "top_p": 0.9, "logit_bias": {str(ord("0")): 5}, "max_tokens": 60}
    for seed in range(4):
        answer = client.chat.completions.parse(
            model="tiny", messages=ASKED, response_format=Person, seed=seed, **dials
        )
        if answer.choices[0].finish_reason == "stop":
            assert isinstance(answer.choices[0].message.parsed, Person)


def test_any_object_pattern_and_choice(client):
    text = ask(client, response_format={"type": "text"}).choices[0].message.content
    assert text == ALPHABET
    shape = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": [{"a": 1}]}}}
    assert json.loads(ask(client, response_format=shape).choices[0].message.content) == {"a": 1}
    answer = ask(client, response_format={"type": "json_object"}, max_tokens=40, temperature=2.0)
    assert answer.choices[0].message.content.startswith("{")
    body = {"structured_outputs": {"regex": "[0-9]{3}-[0-9]{2}"}}
    answer = ask(client, extra_body=body, n=3, temperature=2.0)
    texts = [choice.message.content for choice in answer.choices]
    assert all(re.fullmatch("[0-9]{3}-[0-9]{2}", text) for text in texts)
    body = {"structured_outputs": {"choice": ["yes", "no"]}}
    assert ask(client, extra_body=body).choices[0].message.content in ("yes", "no")
    completion = client.completions.create(model="tiny", prompt="a", extra_body=body)
    assert (
        completion.choices[0].text in ("yes", "no")
        and completion.choices[0].finish_reason == "stop"
    )


def test_a_form_in_a_stream_with_its_odds(client):
    body = {"structured_outputs": {"regex": "[0-9]{5}"}}
    stream = ask(client, extra_body=body, stream=True, logprobs=True, top_logprobs=20)
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert re.fullmatch("[0-9]{5}", text)
    entries = [e for c in chunks if c.choices[0].logprobs for e in c.choices[0].logprobs.content]
    hidden = [top.logprob for top in entries[0].top_logprobs]
    assert len(entries) == 5 and min(hidden) == -9999.0 < max(hidden)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"extra_body": {"structured_outputs": {"regex": "("}}}, "the pattern"),
        ({"extra_body": {"structured_outputs": {}}}, "either regex or choice"),
        ({"extra_body": {"structured_outputs": {"choice": []}}}, "choice"),
        ({"response_format": {"type": "json_schema"}}, "json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": 3}}}},
            "the schema",
        ),
        (
            {
                "response_format": {"type": "json_object"},
                "extra_body": {"structured_outputs": {"choice": ["a"]}},
            },
            "not both",
        ),
    ],
)  # fmt: skip
def test_a_form_that_is_none_is_named(client, more, says):
    assert says in refused(client, **more)["message"]


# --- calls ---------------------------------------------------------------------------------------


def test_a_call_goes_to_the_caller_and_its_answer_comes_back(counting):
    first = ask(counting, tools=[CALCULATOR])
    [choice] = first.choices
    assert choice.finish_reason == "tool_calls" and choice.message.content == "Q"
    [call] = choice.message.tool_calls
    assert call.function.name == "calculator"
    assert json.loads(call.function.arguments) == {"expression": "3*4"}
    result = {"role": "tool", "tool_call_id": call.id, "content": "12"}
    second = ask(counting, messages=[*ASKED, choice.message, result], tools=[CALCULATOR])
    assert second.choices[0].message.content == "." and second.choices[0].finish_reason == "stop"
    before = [*ASKED, choice.message, result, second.choices[0].message]
    third = ask(counting, messages=[*before, *ASKED])
    assert third.choices[0].message.content == "Q."


def test_the_prompt_after_a_call_is_the_turn_that_the_model_knows(counting):
    call = {"id": "1", "type": "function"}
    call["function"] = {"name": "calculator", "arguments": '{"expression": "3*4"}'}
    turn = {"role": "assistant", "content": "Q", "tool_calls": [call]}
    result = {"role": "tool", "tool_call_id": "1", "content": "12"}
    url = str(counting.base_url).replace("/v1/", "/tokenize")
    sent = httpx.post(url, json={"messages": [*ASKED, turn, result]}).json()["tokens"]
    parts = [("text", "Q"), ("python", "3*4"), ("python_output", "12")]
    whole = {"role": "assistant", "content": [{"type": k, "text": t} for k, t in parts]}
    ids, _ = TOKENIZER.render_conversation({"messages": [*ASKED, whole]})
    assert sent == ids[:-1], "all but the token that ends the turn"


def test_without_tools_or_with_none_the_server_works_the_calculator(counting):
    for more in ({}, {"tools": [CALCULATOR], "tool_choice": "none"}):
        answer = ask(counting, **more)
        assert (
            answer.choices[0].message.content == "Q." and answer.choices[0].finish_reason == "stop"
        )
        assert answer.choices[0].message.tool_steps == [{"call": "3*4", "output": "12"}]


def test_a_call_in_a_stream(counting):
    chunks = list(ask(counting, tools=[CALCULATOR], stream=True))
    calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
    assert [json.loads(call.function.arguments) for call in calls] == [{"expression": "3*4"}]
    assert chunks[-1].choices[0].finish_reason == "tool_calls" and calls[0].index == 0


def test_an_answer_can_be_sent_back_as_it_came(counting):
    first = ask(counting).choices[0].message
    assert ask(counting, messages=[*ASKED, first, *ASKED]).choices[0].message.content == "Q."


def tool(name: str, *names: str) -> dict:
    properties = {each: {"type": "string"} for each in names}
    parameters = {"type": "object", "properties": properties}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


@pytest.mark.parametrize(
    "tools", [[tool("weather", "city")], [tool("calculator", "sum")], [CALCULATOR, tool("x")], [tool("calculator")]]
)  # fmt: skip
def test_a_tool_that_the_model_never_saw_is_refused(counting, tools):
    error = refused(counting, tools=tools)
    assert error["code"] == "unknown_tool" and "one tool" in error["message"]


def called(id: str = "1", name: str = "calculator", arguments: str = '{"expression": "1"}') -> dict:
    function = {"name": name, "arguments": arguments}
    return {"id": id, "type": "function", "function": function}


def turn(*calls: dict) -> dict:
    return {"role": "assistant", "content": None, "tool_calls": list(calls)}


RESULT = {"role": "tool", "tool_call_id": "1", "content": "1"}


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([*ASKED, RESULT], "answers no call"),
        ([*ASKED, turn(called("2")), RESULT], "answers no call"),
        ([*ASKED, turn(called())], "waits for an answer"),
        ([*ASKED, turn(called()), *ASKED], "waits for an answer"),
        ([*ASKED, turn(called()), RESULT, RESULT], "answers no call"),
        ([*ASKED, turn(called(), called("2")), RESULT], "one call at a time"),
        ([*ASKED, turn(called(arguments="{")), RESULT], "arguments"),
        ([*ASKED, turn(called(arguments="[1]")), RESULT], "arguments"),
        ([*ASKED, turn(called(arguments='{"expression": 3}')), RESULT], "arguments"),
        ([*ASKED, turn(called(name="other")), RESULT], "calculator"),
        ([turn(called()), RESULT], "a user's"),
        ([*ASKED, {"role": "assistant", "content": "x"}], "last message"),
        ([{"role": "user", "content": None}], "content is None"),
    ],
)
def test_a_chat_with_broken_calls_is_refused_by_place(counting, messages, says):
    error = refused(counting, messages=messages)
    assert says in error["message"] and error["param"] == "messages"


# --- responses -----------------------------------------------------------------------------------


def test_a_response(client):
    answer = client.responses.create(model="tiny", input="hello")
    assert answer.output_text == ALPHABET and answer.status == "completed"
    prompt = TOKENIZER.render_for_completion({"messages": ASKED})
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (len(prompt), 26)
    items = [{"role": "user", "content": "a"}, *answer.output, {"role": "user", "content": "b"}]
    again = client.responses.create(model="tiny", input=items, instructions="Be brief.")
    assert again.output_text == ALPHABET and again.instructions == "Be brief."
    cut = client.responses.create(model="tiny", input="hello", max_output_tokens=3)
    assert cut.output_text == "abc" and cut.status == "incomplete"
    assert cut.incomplete_details.reason == "max_output_tokens"


def test_a_response_in_a_stream(client):
    with client.responses.stream(model="tiny", input="hello") as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert [event.sequence_number for event in events] == list(range(len(events)))
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == ALPHABET == final.output_text and len(deltas) == 26
    assert events[0].type == "response.created" and events[-1].type == "response.completed"


def test_a_response_in_a_form(client):
    dials = {"temperature": 2.0, "max_output_tokens": 60}
    answer = client.responses.parse(model="tiny", input="hello", text_format=Person, **dials)
    if answer.status == "completed":
        assert isinstance(answer.output_parsed, Person)


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"input": []}, "input"),
        ({"input": "x" * 200}, "input"),
        ({"input": [{"role": "assistant", "content": "x"}]}, "input"),
        ({"input": "x", "previous_response_id": "resp_1"}, "previous_response_id"),
        ({"input": "x", "tools": [{"type": "web_search"}]}, "tools"),
        ({"input": "x", "model": "other"}, "model"),
        ({"input": "x", "text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format"),
    ],
)
def test_a_response_that_cannot_be_is_refused(client, more, param):
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(**{"model": "tiny", **more})
    assert caught.value.body["param"] == param


def test_an_engine_that_fails_ends_a_stream_with_an_error():
    def fail():
        raise RuntimeError("no memory")

    with Running() as server:
        server.service.worker.engine.step = fail
        stream = server.client().responses.create(model="tiny", input="hello", stream=True)
        events = list(stream)
    assert events[0].type == "response.created" and events[-1].type == "error"
    assert "no memory" in events[-1].message and events[-1].code == "engine_failed"


def test_samples_of_one_call_save_nothing():
    with Running(
        model=chained_gpt(["<|assistant_start|>", ALPHABET, "<|assistant_end|>"])
    ) as server:
        client = server.client()
        long = [{"role": "user", "content": "x" * 60}]
        first = ask(client, messages=long, n=3, max_tokens=2)
        assert first.usage.prompt_tokens_details.cached_tokens == 0
        second = ask(client, messages=long, n=3, max_tokens=2)
        assert second.usage.prompt_tokens_details.cached_tokens > 30
