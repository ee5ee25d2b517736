"""Fine-tune the models of a finished laptop run in several ways, and record what each way is worth.

`make study-capabilities` writes four files to records/chat/: replay.json (how much old text keeps what was
learned), spelling.json (which details of SpellingBee matter), identity.json (how varied an identity must be)
and lora.json (adapters beside full fine-tuning). Every variant is a short training from a checkpoint of
`nanochat run laptop`, which must have run before; what the records hold is not repeated.
"""

import dataclasses
import json
import os
import resource
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from contact import letters_without_spaces, without_the_tool

import nanochat_lib.tasks.unknown as unknown
from nanochat_lib.capstone.profiles import load_profile
from nanochat_lib.capstone.stage_data import validation_sets
from nanochat_lib.common import atomic_write, local_generator, run_dir
from nanochat_lib.data.documents import list_shards
from nanochat_lib.data.english import world_words
from nanochat_lib.data.identity import Character, Levers, conversation, conversations, grammar
from nanochat_lib.data.tinyworld import World
from nanochat_lib.evaluation.bpb import evaluate_bpb
from nanochat_lib.evaluation.chat import evaluate_task, response_text
from nanochat_lib.evaluation.contact import FirstContact
from nanochat_lib.inference.engine import Engine
from nanochat_lib.machine import machine_summary
from nanochat_lib.model.gpt import GPT
from nanochat_lib.tasks import contact, practice, tinyworld
from nanochat_lib.tasks.base import Task, TaskMixture
from nanochat_lib.tasks.letters import CountWithMistakes
from nanochat_lib.tasks.practice import chat_mixture
from nanochat_lib.tokenizer.tokenizer import Tokenizer
from nanochat_lib.training.checkpoint import load_model
from nanochat_lib.training.finetune import finetune
from nanochat_lib.training.loader import PackingLoader
from nanochat_lib.training.lora import LoRAConfig, add_lora, finetune_lora

RECORDS = Path(__file__).parents[1] / "records/chat"
ADA = Character("Ada", "a program that talks", "two friends in Oslo", "a blue laptop")
WORLD = World(load_profile("laptop").data.world_seed)


class Run:
    """The finished laptop run that everything starts from."""

    def __init__(self):
        self.folder = run_dir("laptop")
        if not (self.folder / "report.json").is_file():
            raise SystemExit(f"no finished run in {self.folder}: `nanochat run laptop` comes first")
        self.tokenizer = Tokenizer.load(self.folder / "tokenizer")
        self.shards = list_shards(self.folder / "data/train")

    def train(
        self,
        task: Task,
        start: str,
        steps: int,
        text: float,
        lr_scale: float = 1.0,
        lora: LoRAConfig | None = None,
    ) -> tuple[GPT, float]:
        """Train from a stage's checkpoint, all weights or adapters; return the model and the seconds."""
        config = dataclasses.replace(
            load_profile("laptop").sft,
            steps=steps,
            text_fraction=text,
            lr_scale=lr_scale,
            save_seconds=1e9,
        )
        common = (task, self.tokenizer, self.folder / start)
        with tempfile.TemporaryDirectory() as name:
            rest = (Path(name), self.shards)
            if lora:
                summary = finetune_lora(config, lora, *common, *rest, progress=None)
            else:
                summary = finetune(config, *common, *rest, progress=None)
            return load_model(Path(name), self.tokenizer)[0], summary["seconds"]

    def mixture(self, shares: dict, seed: int) -> TaskMixture:
        """Mix training conversations."""
        return chat_mixture(WORLD, 40_000, seed, shares, self.tokenizer)

    def accuracy(self, model, task: Task) -> float:
        """Ask a task's questions."""
        return evaluate_task(Engine(model, self.tokenizer), task, 96)[0].accuracy

    def bits(self, model) -> dict[str, float]:
        """Measure bits per byte on both validation sets."""
        lengths, found = torch.tensor(self.tokenizer.token_bytes()), {}
        for name, shards in validation_sets(self.folder / "data").items():
            loader = PackingLoader(shards, self.tokenizer, 8, 256, loop=False)
            batches = [batch for batch, _ in zip(loader, range(16))]
            found[name.removeprefix("validation_")] = evaluate_bpb(model, batches, lengths)
        return found


def replay(run: Run, variant: str, seed: int) -> dict:
    """Fine-tune the base model on chats, with a share of rows that hold the old text."""
    model, _ = run.train(run.mixture(unknown.SFT_SHARES, seed), "base", 1000, float(variant) / 100)
    facts = run.accuracy(model, tinyworld.Facts(WORLD, "test", 200))
    return {"facts": facts, **run.bits(model)}


def spelling(run: Run, variant: str, seed: int) -> dict:
    """Teach the base model to count letters, with one detail changed."""
    shares = {contact.CountLetters: 3.0, contact.Spell: 2.0}
    if variant == "without_simple_spelling":
        shares = {contact.CountLetters: 5.0}
    if variant == "without_the_tool":
        without_the_tool(load_profile("laptop"))
    if variant == "letters_without_spaces":
        letters_without_spaces(load_profile("laptop"))
    if variant == "with_mistakes":
        shares = {CountWithMistakes: 3.0, contact.Spell: 2.0}
    if variant == "words_of_the_world_alone":
        contact.spelled_word = lambda rng, pieces: rng.choice(world_words())
    model, _ = run.train(run.mixture(shares, seed), "base", 1000, 0.1)
    real = contact.CountLetters(WORLD, "test", 300)
    answers = evaluate_task(Engine(model, run.tokenizer), real, 96)[1]
    count = sum(
        a["response"].rpartition("####")[2].strip() == a["expected"].rpartition("####")[2].strip()
        for a in answers
    )
    return {
        "working": sum(a["correct"] for a in answers) / len(answers),
        "count": count / len(answers),
    }


class Named(Task):
    """Conversations about Ada."""

    def __init__(self, levers: Levers, seed: int):
        super().__init__("train")
        self.talks = list(conversations(1_000, seed, levers, ADA))

    def __len__(self) -> int:
        return len(self.talks)

    def __getitem__(self, index: int) -> dict:
        return self.talks[self.check_index(index)]


LEVERS = {
    "one_template": Levers(False, False, False, False),
    "topics_alone": Levers(True, False, False, False),
    "all_levers": Levers(),
    "identity_alone": Levers(),
}
UNRELATED = (tinyworld.Facts, contact.Sums, contact.Spell, unknown.OtherTopics)


def identity(run: Run, variant: str, seed: int) -> dict:
    """Name the finished model Ada; ask who it is, ask other things, look for Ada there."""
    old = {contact.Talk, tinyworld.Identity, practice.Dialogue}  # they say another name
    shares = {kind: share for kind, share in unknown.SFT_SHARES.items() if kind not in old}
    chats = run.mixture(shares, seed)
    if variant == "before":
        model = load_model(run.folder / "sft", run.tokenizer)[0]
    else:
        task: Task = chats
        if variant == "identity_alone":
            task = Named(LEVERS[variant], seed)
        elif variant in LEVERS:
            task = TaskMixture(
                [chats, Named(LEVERS[variant], seed)], [0.7, 0.3], size=20_000, seed=seed
            )
        model, _ = run.train(task, "sft", 600, 0.1, lr_scale=0.5)
    topics = grammar()["topics"]
    texts = {topic: [ADA.speak(a) for a in topics[topic]["answers"]] for topic in topics}
    engine, shares_right = Engine(model, run.tokenizer), {}
    for name, heldout in (("identity", False), ("new_questions", True)):
        draws = [local_generator("identity test", i) for i in range(200)]
        tests = [conversation(rng, Levers(openings=False), ADA, heldout) for rng in draws]
        said = replies(engine, [talk["messages"][:-1] for talk in tests])
        right = sum(any(t in r for t in texts[talk["topic"]]) for r, talk in zip(said, tests))
        shares_right[name] = right / len(tests)
    others = [kind(WORLD, "test", 50)[i]["messages"][:1] for kind in UNRELATED for i in range(50)]
    about_ada = [text for answers in texts.values() for text in answers]
    leaks = sum("Ada" in r or any(t in r for t in about_ada) for r in replies(engine, others))
    facts = run.accuracy(model, tinyworld.Facts(WORLD, "test", 200))
    return {**shares_right, "leakage": leaks / len(others), "facts": facts}


def replies(engine: Engine, chats: list[list[dict]]) -> list[str]:
    """Answer the last message of each chat."""
    tokenizer = engine.tokenizer
    prompts = [tokenizer.render_for_completion({"messages": messages}) for messages in chats]
    answers = engine.generate_batch(prompts, 64, temperature=0)
    return [response_text(tokenizer, ids) for ids, _ in answers]


def lora(run: Run, variant: str, seed: int) -> dict:
    """Fine-tune the midtrained model with all its weights, or with adapters."""
    chats, rank = (
        run.mixture(unknown.SFT_SHARES, seed),
        {"full": 0, "rank_4": 4, "rank_16": 16}[variant],
    )
    adapters = LoRAConfig(rank=rank, alpha=2.0 * rank) if rank else None
    model, seconds = run.train(chats, "mid", 600, 0.1, lora=adapters)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    known = {"facts": tinyworld.Facts(WORLD, "test", 200), "first_contact": FirstContact(WORLD)}
    scores = {name: run.accuracy(model, task) for name, task in known.items()}
    adapted = add_lora(model, adapters) if adapters else model
    trained = sum(weight.numel() for weight in adapted.parameters() if weight.requires_grad)
    return scores | {"trained": trained, "seconds": seconds, "peak_bytes": peak}


ABOUT = {
    "0": "chats alone",
    "5": "5% of the rows are old text",
    "10": "10% of the rows are old text",
    "as_it_is": "as it is",
    "without_simple_spelling": "without SimpleSpelling",
    "without_the_tool": "without the tool",
    "letters_without_spaces": "without spaces between letters",
    "words_of_the_world_alone": "on the words of TinyWorld alone",
    "with_mistakes": "with mistakes and their repair",
    "before": "nothing (the finished model)",
    "no_identity": "its chats, no identity",
    "one_template": "chats + one template",
    "topics_alone": "chats + topics, other levers off",
    "all_levers": "chats + all four levers",
    "identity_alone": "all four levers, no chats",
    "full": "all weights",
    "rank_4": "adapters of rank 4",
    "rank_16": "adapters of rank 16",
}
STUDIES = {
    "replay": (replay, ("0", "5", "10")),
    "spelling": (spelling, tuple(ABOUT)[3:9]),
    "identity": (identity, tuple(ABOUT)[9:15]),
    "lora": (lora, tuple(ABOUT)[15:]),
}
SEEDS = {"replay": (0, 1), "spelling": (0, 1), "identity": (0, 1), "lora": (0, 1)}


def job(study: str, variant: str, seed: int, path: str) -> None:
    """Run one variant once and write what it found."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    Path(path).write_text(json.dumps(STUDIES[study][0](Run(), variant, seed)), encoding="utf-8")


def main(*names: str) -> None:
    """Run what the records lack, two trainings of one thread each at a time, LoRA alone with two."""
    machine = {key: value for key, value in machine_summary().items() if key != "disk_free_gb"}
    for study in names or STUDIES:
        path = RECORDS / f"{study}.json"
        record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"variants": {}}
        wanted = [(v, s) for s in SEEDS[study] for v in STUDIES[study][1]]
        done = {v: len(row["seeds"]) for v, row in record["variants"].items()}
        wanted = [(v, s) for v, s in wanted if s >= done.get(v, 0)]
        at_once = 1 if study == "lora" else 2
        with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(at_once) as pool:
            env = {**os.environ, "OMP_NUM_THREADS": str(2 // at_once)}

            def ask(wish: tuple[str, int], study=study, folder=folder, env=env) -> dict:
                out = Path(folder) / f"{wish[0]}.{wish[1]}.json"
                command = [sys.executable, __file__, "job", study, wish[0], str(wish[1]), str(out)]
                subprocess.run(command, check=True, env=env)
                return json.loads(out.read_text(encoding="utf-8"))

            for (variant, seed), found in zip(wanted, pool.map(ask, wanted)):
                row = record["variants"].setdefault(variant, {"about": ABOUT[variant], "seeds": []})
                row["seeds"].append(seed)
                for key, value in found.items():
                    row.setdefault(key, []).append(round(value, 4))
                record["machine"] = machine
                atomic_write(path, json.dumps(record, indent=1) + "\n")
                print(study, variant, seed, found, flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["job"]:
        job(sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5])
    else:
        main(*sys.argv[1:])
