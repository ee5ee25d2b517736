"""Capabilities that one adds: letters with mistakes, an identity, its diversity, a server that writes it."""

import json
import random
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat_lib.data.english import asked_words, joined_word, real_words, word_pieces
from nanochat_lib.data.generator import ChatServer, generate, parse_conversation, request
from nanochat_lib.data.identity import (
    Character,
    Levers,
    conversations,
    grammar,
    topic_questions,
    write_identity,
)
from nanochat_lib.data.tinyworld import World
from nanochat_lib.data.words import is_heldout
from nanochat_lib.evaluation.diversity import distinct_n, near_duplicates, ngram_entropy, ngrams
from nanochat_lib.tasks.base import content_text
from nanochat_lib.tasks.contact import CountLetters, Spell, as_quoted
from nanochat_lib.tasks.custom_json import CustomJSON
from nanochat_lib.tasks.letters import CountWithMistakes, missed
from nanochat_lib.tasks.practice import chat_mixture
from nanochat_lib.tasks.spelling import count_aloud, count_answer, counted_aloud
from nanochat_lib.tokenizer.conversation import validate_conversation
from nanochat_lib.tokenizer.tokenizer import Tokenizer

WORLD = World(0)
TOKENIZER = Tokenizer.train(["The school is for pupils, and schools are where pupils go."] * 4, 300)


# --- letters --------------------------------------------------------------------------------------


@given(st.text("abrs", min_size=3, max_size=9), st.sampled_from("abrs"), st.integers(0, 9))
def test_a_missed_letter_is_read_not_learned_and_repaired(word, letter, seed):
    answer = count_answer(word, letter)
    wrong = missed(random.Random(seed), answer)
    if letter not in word:
        assert wrong is answer
        return
    right, said = content_text(answer), content_text(wrong)
    assert said != right and not counted_aloud(word, letter, said)
    assert said.endswith(f"I missed one.\n#### {word.count(letter)}")
    steps = said.partition(": ")[2].partition(". Check")[0].split()
    assert "".join(step[0] for step in steps) == word
    assert sum(step[1:] != "" for step in steps) == word.count(letter) - 1
    chat = {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": wrong}]}
    ids, mask = TOKENIZER.render_conversation(validate_conversation(chat))
    learned = "".join(TOKENIZER.decode([t]) for t, m in zip(ids, mask) if m)
    kept = learned.partition(". Check")[0].partition(":")[2].split()
    assert kept == count_aloud(word, letter).split()[: len(kept)], "a mistake is learned"


def test_mistakes_stay_in_practice():
    practice = CountWithMistakes(WORLD, "train", 400)
    repaired = sum("I missed one" in content_text(c["messages"][1]["content"]) for c in practice)
    assert 10 < repaired < 70
    for conversation in CountWithMistakes(WORLD, "test", 60):
        assert practice.evaluate(conversation, content_text(conversation["messages"][1]["content"]))


def test_a_shouted_word_is_quoted_as_it_was_shouted():
    assert as_quoted("sugar", "SPELL SUGAR") == "SUGAR"
    assert as_quoted("sugar", "Spell Sugar") == as_quoted("sugar", "spell sugar") == "sugar"
    shouted = 0
    for conversation in CountLetters(WORLD, "test", 300):
        question, answer = (m["content"] for m in conversation["messages"])
        parts = {part["type"]: part["text"] for part in answer}
        quoted = parts["python"].split('"')[1]
        shouted += quoted.isupper()
        assert quoted in question or quoted.capitalize() in question
        assert counted_aloud(conversation["word"], conversation["letter"], content_text(answer))
        assert eval(parts["python"]) == int(parts["python_output"])
    assert shouted > 5
    assert Spell(WORLD, "test", 5)[0]["messages"][1]["content"].startswith("I spell ")


def test_joined_words_use_the_tokens_and_are_never_held_out():
    pieces = word_pieces(TOKENIZER)
    assert "school" in pieces[0] and all(piece.isalpha() for part in pieces for piece in part)
    rng = random.Random(0)
    words = [joined_word(rng, pieces) for _ in range(2_000)]
    assert any(word.startswith("school") for word in words)
    assert not set(words) & ({w for w in words if is_heldout("word", w)} | asked_words())
    assert not set(words) & set(real_words(heldout=True))
    spelled = [
        content_text(c["messages"][1]["content"])
        for c in chat_mixture(WORLD, 400, shares={Spell: 1.0}, tokenizer=TOKENIZER)
    ]
    assert any("I spell school" in text and "I spell school:" not in text for text in spelled)


# --- identity -------------------------------------------------------------------------------------


def test_identity_conversations_are_valid_speak_for_the_character_and_keep_questions_back():
    ada = Character("Ada", "a thinker", "two friends", "a laptop")
    kept = {q for topic in grammar()["topics"] for q in topic_questions(topic, heldout=True)}
    assert len(kept) == len(grammar()["topics"]) and len(set(ada.speak("{maker}"))) > 1
    for talk in conversations(400, 3, character=ada):
        validate_conversation(talk)
        text = " ".join(message["content"] for message in talk["messages"])
        assert talk["messages"][-1]["role"] == "assistant" and "{" not in text
        assert "nanochat" not in text and not any(question in text for question in kept)
    asked = {talk["topic"] for talk in conversations(200, heldout=True)}
    assert asked == set(grammar()["topics"])
    assert list(conversations(5)) == list(conversations(5)) != list(conversations(5, seed=1))


@pytest.mark.parametrize("name", ["topics", "personas", "styles", "openings"])
def test_each_lever_adds_diversity_of_its_own(name):
    def texts(levers: Levers) -> list[str]:
        talks = conversations(600, levers=levers)
        return [" ".join(m["content"] for m in talk["messages"]) for talk in talks]

    fewer = texts(Levers(**{name: False}))
    assert near_duplicates(fewer) > near_duplicates(texts(Levers()))
    alone = {f: f == name for f in ("topics", "personas", "styles", "openings")}
    assert len(set(texts(Levers(**alone)))) > len(set(texts(Levers(*[False] * 4)))) == 1


def test_a_file_of_identity_can_be_trained_on(tmp_path):
    write_identity(tmp_path / "me.jsonl", 30, character=Character("Ada"))
    assert len(CustomJSON(tmp_path / "me.jsonl")) == 30
    for bad in (Character(" "), Character()):
        with pytest.raises(ValueError, match="name"):
            write_identity(tmp_path / "no.jsonl", 0 if bad.name.strip() else 3, character=bad)
    assert not (tmp_path / "no.jsonl").exists()


# --- diversity ------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from("abcd"), max_size=6).map(" ".join), min_size=1, max_size=12)
)
def test_near_duplicates_are_those_that_comparing_all_pairs_finds(texts):
    sets = [set(ngrams(text, 2)) for text in texts]
    near = [
        any(i != j and len(a & b) / len(a | b) >= 0.5 for j, b in enumerate(sets))
        for i, a in enumerate(sets)
    ]
    assert near_duplicates(texts, 0.5) == pytest.approx(sum(near) / len(texts))


def test_entropy_and_distinct_n_against_scipy_and_by_hand():
    from scipy.stats import entropy

    assert ngram_entropy(["a a b c"], 1) == pytest.approx(entropy([2, 1, 1], base=2))
    assert distinct_n(["a b a b", "A b"], 2) == 2 / 4
    assert distinct_n(["one"], 3) == 1.0
    with pytest.raises(ValueError):
        distinct_n([])


# --- a larger model as the writer -----------------------------------------------------------------

GOOD = '[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "I am nanochat."}]'


@pytest.fixture
def server():
    """A server whose replies a test scripts: pairs of a status and a text, the last one for ever."""

    class Handler(BaseHTTPRequestHandler):
        script, seen = [(200, GOOD)], []

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            Handler.seen.append((self.path, self.headers.get("Authorization"), body))
            status, text = Handler.script.pop(0) if len(Handler.script) > 1 else Handler.script[0]
            reply = {"choices": [{"message": {"role": "assistant", "content": text}}]}
            self.send_response(status)
            self.end_headers()
            self.wfile.write((json.dumps(reply) if status == 200 else text).encode())

        def log_message(self, *parts):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield ChatServer("m", f"http://127.0.0.1:{server.server_port}/v1/", pause=0.001), Handler
        server.shutdown()


def test_a_busy_server_is_asked_again_and_refusals_are_counted(server, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    chat, handler = server
    handler.script = [(503, "busy"), (429, "slow down"), (200, GOOD), (200, "no"), (200, GOOD)]
    assert generate(tmp_path / "a.jsonl", 2, chat) == 1
    path, key, body = handler.seen[-1]
    assert (path, key) == ("/v1/chat/completions", "Bearer secret")
    assert body["model"] == "m" and "nanochat" in body["messages"][0]["content"]
    assert [body["seed"] for *_, body in handler.seen] == [0, 0, 0, 1, 2]
    assert generate(tmp_path / "a.jsonl", 3, chat) == 0
    assert handler.seen[-1][2]["seed"] == 3, "a second call goes on"
    assert len(CustomJSON(tmp_path / "a.jsonl")) == 3


def test_a_server_that_refuses_or_is_absent_is_named(server, tmp_path):
    chat, handler = server
    handler.script = [(401, "no such key")]
    with pytest.raises(ValueError, match="401: no such key"):
        generate(tmp_path / "a.jsonl", 2, chat)
    handler.script = [(200, "I cannot do that.")]
    with pytest.raises(RuntimeError, match="20 replies in a row.*no JSON list"):
        generate(tmp_path / "a.jsonl", 2, chat)
    handler.script = [(500, "broken")]
    with pytest.raises(ConnectionError, match="4 attempts.*500: broken"):
        chat.ask("Hi")
    nobody = ChatServer("m", "http://127.0.0.1:9/v1", attempts=2, pause=0.001)
    with pytest.raises(ConnectionError, match="127.0.0.1:9.*2 attempts"):
        nobody.ask("Hi")
    assert not (tmp_path / "a.jsonl").exists()


@pytest.mark.parametrize(
    "reply",
    [
        "sure!",
        "[1, 2]",
        '[{"role": "user", "content": "Hi"}]',
        '[{"role": "assistant", "content": "Hi"}]',
        "[{'role': 'user'}]",
        "] [",
    ],
)
def test_what_is_no_conversation_is_refused(reply):
    with pytest.raises(ValueError):
        parse_conversation(reply)
    assert len(parse_conversation(f"Here it is:\n```json\n{GOOD}\n```\n")) == 2


def test_requests_differ_and_hold_the_facts():
    requests = {request(random.Random(seed), Character("Ada")) for seed in range(50)}
    assert len(requests) > 40 and all("My name is Ada." in text for text in requests)
