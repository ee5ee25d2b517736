"""No held-out question stands in any training text, at the sizes of the course's own profiles."""

import pytest

from nanochat_lib.capstone.profiles import load_profile
from nanochat_lib.capstone.stage_chat import stage_conversations
from nanochat_lib.capstone.stage_evaluation import all_tests, find_leaks
from nanochat_lib.data.synthetic import curriculum
from nanochat_lib.data.tinyworld import World
from nanochat_lib.evaluation.contact import FirstContact
from nanochat_lib.tasks.base import TaskSequence
from nanochat_lib.tasks.contamination import contamination, training_texts


@pytest.fixture(scope="module")
def micro():
    profile = load_profile("micro")
    data, chat = profile.data, profile.chat
    world = World(data.world_seed)
    documents = list(curriculum(world, data.warmup_documents, data.documents, data.seed))
    stages = [stage_conversations(stage, data, chat) for stage in ("mid", "sft")]
    conversations = TaskSequence(stages)
    # More questions than the profile asks: a leak should not hide behind a small test.
    tasks = all_tests(world, 200)
    del tasks["first_contact"], tasks["third_turn"]  # compared whole, below
    return documents, conversations, tasks


def test_nothing_held_out_was_trained_on(micro):
    documents, conversations, tasks = micro
    assert contamination(documents, tasks) == []
    assert contamination(training_texts(conversations), tasks) == []


def test_a_planted_question_is_found_in_documents_and_in_conversations(micro):
    documents, _, tasks = micro
    for name, task in tasks.items():
        question = task[0]["messages"][0]["content"]
        planted = [*documents[:5], f"Some say: {question.lower()} Others do not."]
        assert question in contamination(planted, tasks), f"a question of {name} slipped through"


def test_first_messages_leak_only_where_a_whole_question_is_one(micro):
    documents, conversations, tasks = micro
    tasks = tasks | {"first_contact": FirstContact(World(0))}
    assert find_leaks(documents[:5], [conversations.slice(0, 50)], tasks) == []

    class Planted(TaskSequence):
        def __getitem__(self, index: int) -> dict:
            self.check_index(index)
            question = {"role": "user", "content": "HI"}
            return {"messages": [question, {"role": "assistant", "content": "Bye, hi, thanks."}]}

    planted = Planted([conversations.slice(0, 2)])
    assert find_leaks(documents[:5], [planted], tasks) == ["hi"]
