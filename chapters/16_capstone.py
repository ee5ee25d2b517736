# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # The capstone: from raw text to a chat, in one command
#
# We have all the parts: text, tokenizer, model, optimizer, loader, tasks, fine-tuning, engine. Do
# they make a whole? And when somebody asks "how good is it?", what may we answer? This chapter
# ties the parts into one run that anybody can start, stop, kill and repeat, and that ends with a
# report in which no number was typed.
#
# ```python
# run_profile(load_profile("laptop"))   # minutes later: report.md, and a model that talks
# ```
#
# You need every chapter before this one, but only their names. Most of the work here is not
# machine learning: it is deciding what must be done again when something changed, and measuring
# with care. The chapter runs a small profile from start to end, kills a training process on the
# way, and takes about half a minute on a laptop.

# %%
#| default_exp capstone.pipeline
# Run stages in order, skipping what is up to date and continuing what was stopped.

# %%
#| export
import ast
import contextlib
import dataclasses
import difflib
import fcntl
import inspect
import json
import textwrap
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
import nanochat_lib
from nanochat_lib.common import atomic_write, fingerprint

# %%
import io
import linecache
import subprocess
import sys
import tempfile

import matplotlib.pyplot as plt

from nanochat_lib.evaluation.chat import wilson_interval
from nanochat_lib.model.attention import CausalSelfAttention

# %% [markdown]
# ## A pipeline of two stages
#
# Before the large thing, one that fits on a napkin: cut a text into words, then count them. Every
# stage reads folders and fills its own. That is the whole interface: whatever a stage passes on
# is a file, so we can look at it, and so can the next process after a crash.


# %%
def cut(folder: Path, inputs: dict[str, Path], text: str) -> dict:
    """Write the words of the text, one a line."""
    (folder / "words.txt").write_text("\n".join(text.split()), encoding="utf-8")
    return {"words": len(text.split())}


def count(folder: Path, inputs: dict[str, Path], most: int) -> dict:
    """Count the first words."""
    words = (inputs["cut"] / "words.txt").read_text(encoding="utf-8").split()[:most]
    (folder / "counts.json").write_text(
        json.dumps({word: words.count(word) for word in words}), encoding="utf-8"
    )
    return {}


# %% [markdown]
# A `Stage` gives such a function a name and says what it may see: which stages' folders, and
# which settings. It gets these and nothing else. So a stage cannot depend on a setting that it
# did not declare, and the declaration cannot go stale.


# %%
#| export
@dataclass(frozen=True)
class Stage:
    """Name one step of a run: a function from settings and folders to a filled folder.

    Args:
        name: also the name of its folder.
        run: called as run(folder, inputs, *settings): its own folder, and name -> folder of what it needs;
            returns a JSON record.
        needs: stages whose folders it reads.
        settings: parts of the profile that it is given; it sees no others.
        resumes: True if `run` continues from what it finds in its folder; else the folder is emptied first.
        writes: patterns of the names of its files; other files in its folder are somebody else's.
    """

    name: str
    run: Callable[..., dict]
    needs: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    resumes: bool = False
    writes: tuple[str, ...] = ("*",)


# %%
toy_stages = (
    Stage("cut", cut, settings=("text",)),
    Stage("count", count, needs=("cut",), settings=("most",)),
)


@dataclass(frozen=True)
class Toy:
    """Settings of the toy pipeline."""

    text: str = "a rose is a rose"
    most: int = 100


# %% [markdown]
# ## What does a result depend on?
#
# The laptop run takes minutes, a run on eight GPUs takes hours. Whoever changes the evaluation
# does not want to pretrain again; whoever changes the tokenizer must. So we have to know, for
# each stage, whether its old result is still *the* result. A stage's result is a function of
# three things: its settings, its inputs and its code. If none of them changed, neither did the
# result (our stages are deterministic: seeds are settings, and the chapters before this one
# checked that the rest is arithmetic).
#
# Comparing gigabytes is slow, so we compare fingerprints: 16 hex digits of a hash, from chapter
# "start".

# %%
# NBVAL_CHECK_OUTPUT
before = fingerprint({"most": 100}, {"cut": "the words"})
print(before, fingerprint({"most": 101}, {"cut": "the words"}))
assert before == fingerprint({"most": 100}, {"cut": "the words"})

# %% [markdown]
# Settings are easy to fingerprint, and inputs are the fingerprints of the stages before. Code is
# the third part, and the one that home-made caches forget. We could hash the file, but then a
# corrected comment would cost a pretraining run. So we hash the syntax tree, in which comments
# and layout do not exist, and blank the docstrings.


# %%
#| export
def code_skeleton(source: str) -> str:
    """Reduce source to what can change a result: comments, docstrings and layout fall away."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if not isinstance(body, list) or not body or not isinstance(body[0], ast.Expr):
            continue
        if isinstance(getattr(body[0].value, "value", None), str):
            body[0].value.value = ""
    return ast.dump(tree)


# %%
plain = "def double(x):\n    return 2 * x\n"
commented = 'def double(x):\n    """Add x to itself."""\n    # cheap\n    return 2*x\n'
recommented = commented.replace("cheap", "very cheap").replace("Add x", "Add a number")
assert code_skeleton(commented) == code_skeleton(recommented)
assert code_skeleton(plain) != code_skeleton(plain.replace("2", "3")), "a changed number must count"

# %% [markdown]
# A stage's own file is not enough: pretraining changes when attention does, three imports away.
# We follow the imports. The source is only parsed, never run, so this takes milliseconds where
# importing torch takes seconds.


# %%
#| export
def imported_modules(source: str, package: str) -> set[str]:
    """List the modules of `package` that a source imports anywhere, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name for name in found if name.startswith(f"{package}.")}


# %%
# NBVAL_CHECK_OUTPUT
example = "import json\nfrom nanochat_lib.common import fingerprint\n"
print(sorted(imported_modules(example, "nanochat_lib")))

# %% [markdown]
# The second name is no module, but we cannot tell from the text alone: `from package import
# thing` may name either. Names without a file are dropped in the next step, which walks from file
# to file until nothing new turns up.


# %%
#| export
def module_source(module: str) -> str | None:
    """Read a module of the library without importing it; None if it is a name and no module."""
    path = Path(nanochat_lib.__file__).parents[1] / (module.replace(".", "/") + ".py")
    return path.read_text(encoding="utf-8") if path.exists() else None


def code_fingerprints(run: Callable) -> dict[str, str]:
    """Fingerprint all library code that a stage can reach: its module, what that imports, and so on.

    Returns:
        Module name -> fingerprint. A function from outside the library counts as a module of its own.
    """
    waiting, found = {run.__module__}, {}
    if module_source(run.__module__) is None:
        source = textwrap.dedent(inspect.getsource(run))
        found[run.__qualname__] = fingerprint(code_skeleton(source))
        waiting = imported_modules(source, "nanochat_lib")
    while waiting:
        module = waiting.pop()
        source = module_source(module)
        if module in found or source is None:
            continue
        found[module] = fingerprint(code_skeleton(source))
        waiting |= imported_modules(source, "nanochat_lib")
    return dict(sorted(found.items()))


# %%
attention = code_fingerprints(CausalSelfAttention.forward)
print(attention)
assert "nanochat_lib.model.attention" in attention

# %% [markdown]
# Settings, inputs, code: this is all that a stage's result depends on, and we keep it in parts,
# because later we want to say *which* of them changed.


# %%
#| export
def stage_inputs(stage: Stage, profile: object, upstream: dict[str, str]) -> dict:
    """Collect everything that may change a stage's result, as JSON.

    Args:
        stage: the stage.
        profile: holds the settings.
        upstream: fingerprints of the stages before it.

    Returns:
        "settings" (name -> value), "inputs" (stage -> fingerprint) and "code" (module -> fingerprint).
    """
    settings = {}
    for name in stage.settings:
        part = getattr(profile, name)
        part = dataclasses.asdict(part) if dataclasses.is_dataclass(part) else {"": part}
        settings |= {f"{name}.{key}".rstrip("."): value for key, value in part.items()}
    inputs = {name: upstream[name] for name in stage.needs}
    everything = {"settings": settings, "inputs": inputs, "code": code_fingerprints(stage.run)}
    return json.loads(json.dumps(everything))  # tuples become lists, as in the stored record


# %%
# NBVAL_CHECK_OUTPUT
wanted = stage_inputs(toy_stages[1], Toy(), {"cut": "0123456789abcdef"})
print(wanted["settings"], wanted["inputs"], list(wanted["code"]))

# %% [markdown]
# ## When may a stage be skipped?
#
# Each stage keeps a record in its folder, `stage.json`: what its result depended on, whether it
# is finished, and the size of each file it wrote. The last is cheap insurance: people delete
# checkpoints to make room.

# %%
#| default_exp capstone.record
# What a stage leaves in its folder: a record, files, and the proof that the files are its own.

# %%
#| export
import json
from fnmatch import fnmatchcase
from nanochat_lib.common import atomic_write, remove_files


def read_json(path: Path) -> dict | list | float:
    """Read one stored piece of a run.

    Raises:
        ValueError: it is no JSON, with its name.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        way_out = "move its folder away, and nanochat run makes it again"
        raise ValueError(f"{path} is damaged ({error}): {way_out}") from error


def read_record(folder: Path) -> dict | None:
    """Read what a stage left in its folder, None if it never started.

    Raises:
        ValueError: there is a stage.json, but it is no record.
    """
    path = folder / "stage.json"
    record = read_json(path) if path.exists() else None
    if record is not None and not (
        isinstance(record, dict) and {"wanted", "state"} <= record.keys()
    ):
        raise ValueError(f"{path} is not the record of a stage: move {folder} away")
    return record


def file_sizes(folder: Path, patterns: tuple[str, ...] = ("*",)) -> dict[str, int]:
    """Map each file that matches a pattern to its size in bytes, without records and hidden ones."""
    files = {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {
        name.as_posix(): path.stat().st_size
        for name, path in files.items()
        if name.as_posix() not in ("stage.json", "seconds.json")
        and not any(part.startswith(".") for part in name.parts)
        and any(fnmatchcase(name.as_posix(), pattern) for pattern in patterns)
    }


# %% [markdown]
# The decision is a list of reasons, and the first that applies is shown to the user. "Why is it
# training again?" is the question that every pipeline gets asked, so ours answers before it is
# asked.


# %%
#| export
def reason_to_run(folder: Path, wanted: dict) -> str | None:
    """Say why a stage has to run; None if the result in its folder still stands.

    Args:
        folder: the stage's folder.
        wanted: what its result depends on now, from `stage_inputs`.
    """
    record = read_record(folder)
    if record is None:
        return "not run yet"
    for part in ("settings", "inputs", "code"):
        old, new = record["wanted"][part], wanted[part]
        changed = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
        if changed:
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            return f"{part} changed: {', '.join(changed[:3])}{more}"
    if record["state"] not in ("running", "done"):
        return "not run yet"
    if record["state"] == "running":
        return "continues where it was stopped"
    present = file_sizes(folder)
    broken = [name for name, size in record["files"].items() if present.get(name) != size]
    return f"{broken[0]} is missing or has another size" if broken else None


# %%
# NBVAL_CHECK_OUTPUT
with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    print(reason_to_run(folder, wanted))
    old = {"wanted": wanted | {"settings": {"most": 5}}, "state": "done", "files": {}}
    atomic_write(folder / "stage.json", json.dumps(old))
    print(reason_to_run(folder, wanted))
    atomic_write(folder / "stage.json", json.dumps(old | {"wanted": wanted, "state": "running"}))
    print(reason_to_run(folder, wanted))

# %% [markdown]
# ## Running a stage that may be killed
#
# A laptop's battery runs out; a cloud machine is taken back with two minutes' notice, or none.
# `kill -9` gives a program no chance to tidy up, so tidying up must not be needed. Two rules are
# enough:
#
# 1. The record is written *before* the work, saying "running", and again *after* it, saying
#    "done". Both writes are atomic. A folder whose record does not say "done" is unfinished,
#    whatever else is in it.
# 2. A stage either starts with an empty folder, or knows how to continue: training from its
#    newest checkpoint, evaluation after the last piece it finished.
#
# Cleaning has two traps. Files go one by one, and a kill may come in between: half a result would
# look like one, so the record says "removing" first. And somebody may have put notes there. Ours is
# what the record lists or, before it does, what the stage writes.


# %%
#| export
def strangers(folder: Path, writes: tuple[str, ...] = ("*",)) -> list[str]:
    """List the files in a stage's folder that the stage did not write; hidden ones do not count."""
    record = read_record(folder)
    if record is None:
        own = {}
    else:
        own = record["files"] if "files" in record else file_sizes(folder, writes)
    return sorted(file_sizes(folder).keys() - own.keys())


def check_no_strangers(folder: Path, writes: tuple[str, ...] = ("*",)) -> None:
    """Raise ValueError if files of somebody else stand where a stage is going to work."""
    found = strangers(folder, writes)
    if found:
        way_out = "move it away, or give the run another --name"
        raise ValueError(f"{folder / found[0]} was not written by this run: {way_out}")


def forget(folder: Path, writes: tuple[str, ...] = ("*",)) -> None:
    """Remove what a stage wrote. Its record stays, as the proof, until the next one replaces it.

    Args:
        folder: the stage's.
        writes: patterns of what the stage writes, for one that never finished.

    Raises:
        ValueError: there is a file that it did not write; then nothing is removed.
    """
    check_no_strangers(folder, writes)
    record = read_record(folder)
    if record is not None:
        atomic_write(folder / "stage.json", json.dumps(record | {"state": "removing"}))
        remove_files(folder, [*file_sizes(folder), "seconds.json"])


# %%
#| default_exp capstone.pipeline


# %% [markdown]
# The report says how long each stage took, over all attempts. A process that is killed cannot
# report, so a thread writes the time down once a second.


# %%
#| export
@contextlib.contextmanager
def stopwatch(path: Path, seconds_before: float) -> Iterator[Callable[[], float]]:
    """Keep the seconds spent in `path`, once a second, so that even kill -9 loses no more than one."""
    start, done = time.perf_counter(), threading.Event()

    def seconds() -> float:
        return seconds_before + time.perf_counter() - start

    def write() -> None:
        with contextlib.suppress(OSError):  # a full disk stops the stage itself, not its clock
            atomic_write(path, json.dumps(seconds()))

    def keep_writing() -> None:
        while not done.wait(1.0):
            write()

    writer = threading.Thread(target=keep_writing, daemon=True)
    writer.start()
    try:
        yield seconds
    finally:
        done.set()
        writer.join()
        write()


# %%
#| export
def run_stage(stage: Stage, profile: object, run_folder: Path, wanted: dict) -> dict:
    """Run one stage, or continue it, and record its result.

    The record is written twice: before the work with state "running", after it with "done". Whatever
    is in the folder without "done" is unfinished; what the stage made of other inputs is removed.

    Returns:
        The record: fingerprint, state, wanted, seconds over all attempts, files and what `run` returned.
    """
    folder, path = run_folder / stage.name, run_folder / stage.name / "stage.json"
    before = read_record(folder)
    clock, seconds_before = folder / "seconds.json", 0.0
    unfinished = before is not None and before["wanted"] == wanted and before["state"] == "running"
    if unfinished and clock.exists():
        seconds_before = read_json(clock)
    if not (unfinished and stage.resumes):
        forget(folder, stage.writes)
    record = {"stage": stage.name, "fingerprint": fingerprint(wanted), "wanted": wanted}
    atomic_write(path, json.dumps(record | {"state": "running"}, indent=1))
    with stopwatch(clock, seconds_before) as seconds:
        settings = [getattr(profile, name) for name in stage.settings]
        inputs = {name: run_folder / name for name in stage.needs}
        result = stage.run(folder, inputs, *settings)
        spent = seconds()
    record |= {"state": "done", "seconds": spent, "result": result}
    record["files"] = file_sizes(folder, stage.writes)
    atomic_write(path, json.dumps(record, indent=1))
    return record


# %% [markdown]
# Two processes in one run folder would each remove what the other writes. A lock file that holds
# a process number goes stale when its owner is killed. The operating system's own lock does not:
# it lives as long as the open file, and no longer.


# %%
#| export
@contextlib.contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Let one process at a time work in a run folder; the lock dies with its holder, even by kill -9.

    Raises:
        ValueError: another process holds the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"another process is working in {folder}: wait for it, or stop it"
            ) from None
        yield


# %% [markdown]
# People also type names of stages and settings, and mistype them. An error that names the nearest
# known word saves a look into the manual.


# %%
#| export
def nearest(word: str, known: Iterable[str]) -> str:
    """Name the known words that somebody who wrote `word` may have meant."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"


# %%
# NBVAL_CHECK_OUTPUT
print(nearest("evalation", ["data", "evaluation"]), "|", nearest("x", ["data", "evaluation"]))

# %% [markdown]
# Now all stages in their order. A stage that ran, or would have to, changes nothing by itself for
# the next: its fingerprint does, as one of the next stage's inputs.


# %%
#| export
def run_stages(
    stages: tuple[Stage, ...],
    profile: object,
    run_folder: Path,
    start: str | None = None,
    announce: Callable[[str], None] = print,
) -> dict[str, dict]:
    """Bring every stage of a run up to date, in order, doing only the work that is missing.

    Args:
        stages: in order; a stage needs only earlier ones.
        profile: the settings.
        run_folder: holds one folder a stage.
        start: this stage and all after it run again, whatever their state.
        announce: receives one line a stage.

    Returns:
        Stage name -> record.

    Raises:
        ValueError: no stage is called `start`, another process is at work in the folder, or files
            of somebody else are in the way.
    """
    names = [stage.name for stage in stages]
    if start is not None and start not in names:
        raise ValueError(f"no stage {start!r}: {nearest(start, names)}")
    records, upstream, todo = {}, {}, []
    with only_one(run_folder):
        for stage in stages:  # look at all before any works for hours
            folder = run_folder / stage.name
            record = read_record(folder)
            if record and start and stage.name in names[names.index(start) :]:
                atomic_write(folder / "stage.json", json.dumps(record | {"state": "again"}))
            wanted = stage_inputs(stage, profile, upstream)
            upstream[stage.name] = fingerprint(wanted)
            reason = reason_to_run(folder, wanted)
            todo.append((stage, wanted, reason))
            continues = stage.resumes and record and record["state"] == "running"
            if reason and not continues:
                check_no_strangers(folder, stage.writes)
        for number, (stage, wanted, reason) in enumerate(todo, start=1):
            line = f"[{number}/{len(stages)}] {stage.name}"
            if reason is None:
                records[stage.name] = read_record(run_folder / stage.name)
                announce(f"{line}: up to date")
            else:
                announce(f"{line}: {reason}")
                records[stage.name] = run_stage(stage, profile, run_folder, wanted)
                announce(f"{line}: done, {records[stage.name]['seconds']:.1f} s")
    return records


# %% [markdown]
# Now the toy pipeline runs; then again, without changes; then with one setting changed. Seconds
# differ from machine to machine, so we print only the reasons.


# %%
# NBVAL_CHECK_OUTPUT
def show_reasons(stages: tuple[Stage, ...], settings: object, folder: Path) -> None:
    """Run stages and print why each ran."""
    lines = []
    run_stages(stages, settings, folder, announce=lines.append)
    print("; ".join(line for line in lines if ": done" not in line))


scratch = tempfile.TemporaryDirectory()
toy_run = Path(scratch.name) / "toy"
show_reasons(toy_stages, Toy(), toy_run)
show_reasons(toy_stages, Toy(), toy_run)
show_reasons(toy_stages, Toy(most=2), toy_run)
show_reasons(toy_stages, Toy(text="one rose", most=2), toy_run)
print(json.loads((toy_run / "count" / "counts.json").read_text(encoding="utf-8")))

# %% [markdown]
# ## The stages of nanochat
#
# Five stages make a chat model. Each is a module of its own, with its settings beside it, and
# that is no question of taste: a stage's fingerprint covers its module and all that it imports.
# If data and training shared a file, an edit to the training would regenerate the data, which
# would rebuild the tokenizer, which would...
#
# ```text
# data ──> tokenizer ──> base ──> sft ──> evaluation ──> report
#   └──────────┴───────────┴───────┴──────────┘   each may read all folders before it
# ```
#
# ### Data
#
# The corpus is TinyWorld from chapter "tinyworld": lists first, then the mixture. Real English is
# mixed in, from Python's own documentation, because a model that never saw real text cannot be
# measured on it. Three small functions prepare it.

# %%
#| default_exp capstone.stage_data
# Stage 1: write the corpus.

# %%
#| export
import re
from collections.abc import Iterable, Iterator
from nanochat_lib.common import local_generator
from nanochat_lib.data.documents import list_shards, python_docs, stream_documents, write_shards
from nanochat_lib.data.synthetic import curriculum, validation_documents
from nanochat_lib.data.tinyworld import World


# %%
#| export
@dataclass(frozen=True)
class DataConfig:
    """Size the corpus: synthetic documents, and a share of real English.

    The warm-up documents come first, then `documents` of the mix, with the English spread evenly among them.
    English is cut into passages of about `passage_bytes`, because a packed row crops what does not fit it.
    """

    world_seed: int = 0
    seed: int = 0
    warmup_documents: int = 1000
    documents: int = 4000
    validation_documents: int = 200
    english_bytes: int = 100_000
    english_validation_bytes: int = 20_000
    passage_bytes: int = 500


# %% [markdown]
# Packing crops a document that is longer than a row, so a manual page of 20,000 bytes would
# mostly be thrown away. We cut it between lines.


# %%
#| export
def passages(text: str, most_bytes: int) -> Iterator[str]:
    """Cut a text between lines into pieces of at most `most_bytes`; a longer line stays whole."""
    piece, size = [], 0
    for line in re.findall(r".*\n|.+", text):  # splitlines() would cut at form feeds and others too
        n_bytes = len(line.encode("utf-8"))
        if piece and size + n_bytes > most_bytes:
            yield "".join(piece)
            piece, size = [], 0
        piece.append(line)
        size += n_bytes
    if piece:
        yield "".join(piece)


# %%
# NBVAL_CHECK_OUTPUT
pieces = list(passages("one\ntwo\nthree is longer\n", most_bytes=8))
print(pieces)
assert "".join(pieces) == "one\ntwo\nthree is longer\n"

# %% [markdown]
# Training and validation never share a document, only the library it came from. If passages of
# one page stood on both sides, the validation score would reward remembering the page.


# %%
#| export
def english_passages(config: DataConfig) -> tuple[list[str], list[str]]:
    """Take passages of Python's documentation for training and for validation, never from one document.

    Returns:
        Training passages, shuffled, and validation passages (from every tenth document).
    """
    parts = {"train": [], "validation": []}
    room = {"train": config.english_bytes, "validation": config.english_validation_bytes}
    for i, text in enumerate(python_docs()):
        if max(room.values()) <= 0:
            break
        part = "validation" if i % 10 == 9 else "train"
        for passage in passages(text, config.passage_bytes):
            if room[part] > 0:
                parts[part].append(passage)
                room[part] -= len(passage.encode("utf-8"))
    local_generator("english", config.seed).shuffle(parts["train"])
    return parts["train"], parts["validation"]


# %%
#| export
def spread(documents: Iterable[str], extras: list[str], total: int) -> Iterator[str]:
    """Mix extras evenly into a stream of about `total` documents.

    Example: documents a b c d, extras x y, total 4 -> a b x c d y.
    """
    given = 0
    for number, document in enumerate(documents, start=1):
        yield document
        due = number * len(extras) // max(total, 1)
        yield from extras[given:due]
        given = max(given, due)


# %%
#| export
def prepare_data(folder: Path, inputs: dict[str, Path], config: DataConfig) -> dict:
    """Write the training shards and two validation sets; count documents and bytes of each."""
    world = World(config.world_seed)
    english, english_held_out = english_passages(config)
    if config.warmup_documents:
        warmup = curriculum(world, config.warmup_documents, 0, config.seed)
        write_shards(warmup, folder / "warmup")
    mixture = curriculum(world, 0, config.documents, config.seed)
    write_shards(spread(mixture, english, config.documents), folder / "train")
    # Another seed: validation asks for documents of the same kinds, not for the same documents.
    validation = validation_documents(world, config.validation_documents, config.seed + 1)
    write_shards(validation, folder / "validation_tinyworld")
    if english_held_out:
        write_shards(english_held_out, folder / "validation_english")
    counts = {}
    for part in ("train", "validation_english", "validation_tinyworld", "warmup"):
        shards = list_shards(folder / part) if (folder / part).exists() else []
        sizes = (
            [len(text.encode()) for text, _ in stream_documents(shards, loop=False)]
            if shards
            else []
        )
        counts[part] = {"documents": len(sizes), "bytes": sum(sizes)}
    english_bytes = sum(len(text.encode()) for text in english)
    return {"parts": counts, "english_share": english_bytes / counts["train"]["bytes"]}


# %% [markdown]
# Pretraining reads the warm-up, then the mixture. Fine-tuning, which keeps a share of text so that
# the facts are not forgotten, reads the mixture alone: lists hold no facts.


# %%
#| export
def training_shards(data: Path) -> list[Path]:
    """List the shards of pretraining text in reading order: the warm-up, if any, then the mixture."""
    warmup = data / "warmup"
    return (list_shards(warmup) if warmup.exists() else []) + list_shards(data / "train")


def validation_sets(data: Path) -> dict[str, list[Path]]:
    """Map the name of each validation set that was written to its shards."""
    names = ("validation_english", "validation_tinyworld")
    return {name: list_shards(data / name) for name in names if (data / name).exists()}


# %%
assert list(spread("abcd", ["x", "y"], total=4)) == list("abxcdy")
with tempfile.TemporaryDirectory() as name:
    tiny = DataConfig(
        warmup_documents=20, documents=80, english_bytes=3_000, validation_documents=5
    )
    print(prepare_data(Path(name), {}, tiny))

# %% [markdown]
# ### Tokenizer, base model, fine-tuning
#
# The next three stages only call what we have. The tokenizer learns from the whole training text,
# English included. Its record keeps the compression on both validation sets, because bits per
# byte and tokens per byte together tell where a loss comes from.

# %%
#| default_exp capstone.stage_tokenizer
# Stage 2: learn the vocabulary.

# %%
#| export
from nanochat_lib.data.documents import stream_documents
from nanochat_lib.tokenizer.bpe import split_pattern
from nanochat_lib.tokenizer.tokenizer import Tokenizer


# %%
#| export
@dataclass(frozen=True)
class TokenizerConfig:
    """Size the vocabulary, special tokens included, and say how many digits a token may hold."""

    vocab_size: int = 1024
    max_digits: int = 1


def train_tokenizer(folder: Path, inputs: dict[str, Path], config: TokenizerConfig) -> dict:
    """Learn the vocabulary from the training text; measure how it compresses the validation sets."""
    texts = (text for text, _ in stream_documents(training_shards(inputs["data"]), loop=False))
    tokenizer = Tokenizer.train(texts, config.vocab_size, split_pattern(config.max_digits))
    tokenizer.save(folder)
    bytes_per_token = {}
    for name, shards in validation_sets(inputs["data"]).items():
        texts = [text for text, _ in stream_documents(shards, loop=False)]
        n_tokens = sum(len(ids) for ids in tokenizer.encode(texts))
        bytes_per_token[name] = sum(len(text.encode()) for text in texts) / n_tokens
    return {"hash": tokenizer.hash, "bytes_per_token": bytes_per_token}


# %%
#| default_exp capstone.stage_base
# Stage 3: pretrain the base model.

# %%
#| export
from nanochat_lib.machine import machine_summary
from nanochat_lib.data.documents import list_shards
from nanochat_lib.training.pretrain import PretrainConfig, pretrain

# %% [markdown]
# Where a model was trained belongs to its record: seconds without a machine say nothing.


# %%
#| export
def train_base(folder: Path, inputs: dict[str, Path], config: PretrainConfig) -> dict:
    """Pretrain on the curriculum, in file order."""
    tokenizer = Tokenizer.load(inputs["tokenizer"])
    train_shards = training_shards(inputs["data"])
    validation_shards = list_shards(inputs["data"] / "validation_tinyworld")
    summary = pretrain(config, train_shards, validation_shards, tokenizer, folder)
    return {"summary": summary, "machine": machine_summary()}


# %%
#| default_exp capstone.stage_sft
# Stage 4: fine-tune on conversations.

# %%
#| export
from nanochat_lib.tasks.practice import chat_mixture
from nanochat_lib.training.finetune import FinetuneConfig, finetune

# %% [markdown]
# Fine-tuning reads conversations, and again some pretraining text, so that what the base model
# knew is not overwritten.


# %%
#| export
@dataclass(frozen=True)
class ChatDataConfig:
    """Count the training conversations; the loop reads them again when it needs more."""

    conversations: int = 4000
    seed: int = 0


def train_sft(
    folder: Path,
    inputs: dict[str, Path],
    data: DataConfig,
    chat: ChatDataConfig,
    config: FinetuneConfig,
) -> dict:
    """Fine-tune the base model on conversations, with some pretraining text among them."""
    tokenizer = Tokenizer.load(inputs["tokenizer"])
    conversations = chat_mixture(World(data.world_seed), chat.conversations, chat.seed)
    text_shards = list_shards(inputs["data"] / "train")
    return finetune(config, conversations, tokenizer, inputs["base"], folder, text_shards)


# %% [markdown]
# ### Evaluation
#
# Three models answer the same held-out questions: the one we started from, the base model and the
# fine-tuned one. The first two look like a waste of time. They are the control group: if an
# untrained network gets 25%, then 30% after training is no skill. The base model has never seen
# the markers of a conversation, so it shows what fine-tuning adds.

# %%
#| default_exp capstone.stage_evaluation
# Stage 5: measure the models against floors and against each other.

# %%
#| export
import math
from functools import partial
from itertools import chain, islice, product
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor
from nanochat_lib.common import atomic_write
from nanochat_lib.evaluation.bpb import BigramModel, bigram_counts, evaluate_bpb
from nanochat_lib.evaluation.chat import evaluate_task
from nanochat_lib.inference.engine import Engine
from nanochat_lib.model.gpt import GPT
from nanochat_lib.tasks.base import Task
from nanochat_lib.data.synthetic import OPENINGS
from nanochat_lib.tasks.contamination import contamination, training_texts
from nanochat_lib.tasks.tinyworld import heldout_tasks
from nanochat_lib.training.checkpoint import load_model
from nanochat_lib.training.loader import PackingLoader


# %%
#| export
@dataclass(frozen=True)
class EvaluationConfig:
    """Say how much is asked of the finished model, and of the two it is compared with."""

    questions: int = 200
    baseline_questions: int = 50
    max_tokens: int = 96
    batch_size: int = 64
    batches: int = 16
    samples: int = 4
    sample_tokens: int = 64
    temperature: float = 0.8
    seed: int = 0


# %%
#| export
def load_models(inputs: dict[str, Path], tokenizer: Tokenizer) -> dict[str, GPT]:
    """Load the two trained models, and build the one that training started from, on the CPU."""
    base, meta = load_model(inputs["base"], tokenizer)
    sft, _ = load_model(inputs["sft"], tokenizer)
    untrained = GPT(base.config)
    untrained.init_weights(torch.Generator().manual_seed(meta["pretrain"]["seed"]))
    return {"untrained": untrained, "base": base, "sft": sft}


# %% [markdown]
# Bits per byte get two floors from chapter "baseline": a model that finds all tokens equally
# likely, and one that counts pairs. Both have the same call as the GPT, so one function measures
# all five on the same batches.


# %%
#| export
def uniform_model(vocab_size: int) -> Callable[..., Tensor]:
    """Return a model that finds every token equally likely, with the call of `GPT`."""

    def losses(idx: Tensor, targets: Tensor, loss_reduction: str = "none") -> Tensor:
        return torch.full(targets.shape, math.log(vocab_size))

    return losses


def bigram_model(shards: list[Path], tokenizer: Tokenizer) -> BigramModel:
    """Count the bigrams of the training text."""
    ids = []
    for text, _ in stream_documents(shards, loop=False):
        ids += tokenizer.encode(text, prepend=tokenizer.bos_id)
    return BigramModel(bigram_counts(torch.tensor(ids), tokenizer.vocab_size))


# %%
coin = uniform_model(vocab_size=2)(torch.zeros(1, 3), torch.zeros(1, 3))
assert torch.allclose(coin, torch.full((1, 3), math.log(2))), (
    f"got {coin.tolist()}: are these nats?"
)


# %%
#| export
def measure_bits(
    models: dict[str, GPT], inputs: dict[str, Path], tokenizer: Tokenizer, config: EvaluationConfig
) -> dict[str, dict[str, float]]:
    """Measure bits per byte of every model and of two floors, all on the same batches.

    Returns:
        Validation set -> model -> bits per byte.
    """
    floors = {
        "uniform": uniform_model(tokenizer.vocab_size),
        "bigram": bigram_model(training_shards(inputs["data"]), tokenizer),
    }
    token_bytes = torch.tensor(tokenizer.token_bytes())
    sequence_len = models["base"].config.sequence_len
    bits = {}
    for name, shards in validation_sets(inputs["data"]).items():
        loader = PackingLoader(shards, tokenizer, 8, sequence_len, loop=False)
        batches = list(islice(loader, config.batches))
        bits[name.removeprefix("validation_")] = {
            name: evaluate_bpb(model, batches, token_bytes)
            for name, model in {**floors, **models}.items()
        }
    return bits


# %%
#| export
def story_samples(model: GPT, tokenizer: Tokenizer, config: EvaluationConfig) -> list[dict]:
    """Let the base model go on after the openings of stories."""
    openings = OPENINGS[: config.samples]
    prompts = [tokenizer.encode(text, prepend=tokenizer.bos_id) for text in openings]
    answers = Engine(model, tokenizer).generate_batch(
        prompts, config.sample_tokens, temperature=config.temperature, seed=config.seed
    )
    texts = [tokenizer.decode([i for i in ids if i != tokenizer.bos_id]) for ids, _ in answers]
    return [{"opening": o, "continuation": t} for o, t in zip(openings, texts)]


# %% [markdown]
# The stage consists of pieces, each of which leaves one file: bits per byte, the samples, the
# contamination check, and a file for each model and task. After a kill, only the piece in hand is
# lost.


# %%
#| export
def score_task(
    models: dict[str, GPT], model: str, tokenizer: Tokenizer, task: Task, config: EvaluationConfig
) -> dict:
    """Ask one model the questions of one task; keep the score and every answer."""
    limit = config.questions if model == "sft" else config.baseline_questions
    engine = Engine(models[model], tokenizer)
    score, answers = evaluate_task(engine, task, config.max_tokens, config.batch_size, limit)
    return {"score": dataclasses.asdict(score), "answers": answers}


# %%
#| export
def describe_model(model: GPT) -> dict:
    """Note the sizes of a model, and what a token costs in training."""
    return {
        "config": dataclasses.asdict(model.config),
        "parameters": model.num_params(),
        "flops_per_token": model.estimate_flops(),
    }


def describe_tasks(tasks: dict[str, Task]) -> dict[str, dict]:
    """Note what each task asks, and what a model gets that knows nothing."""
    names = ("title", "floor", "floor_name")
    return {key: {name: getattr(task, name) for name in names} for key, task in tasks.items()}


# %%
#| export
def evaluate_models(
    folder: Path,
    inputs: dict[str, Path],
    data: DataConfig,
    chat: ChatDataConfig,
    config: EvaluationConfig,
) -> dict:
    """Measure the untrained, the base and the fine-tuned model, one file a finished piece.

    Everything runs in float32 with fixed seeds, so a piece measured again comes out the same.
    """
    world, tokenizer = World(data.world_seed), Tokenizer.load(inputs["tokenizer"])
    models, tasks = load_models(inputs, tokenizer), heldout_tasks(world, config.questions)
    chats = chat_mixture(world, chat.conversations, chat.seed)
    documents = stream_documents(training_shards(inputs["data"]), loop=False)
    texts = chain((text for text, _ in documents), training_texts(chats))
    pieces = {
        "bits_per_byte": partial(measure_bits, models, inputs, tokenizer, config),
        "samples": partial(story_samples, models["base"], tokenizer, config),
        "contamination": partial(contamination, texts, tasks),
    }
    for model, task in product(models, tasks):
        piece = partial(score_task, models, model, tokenizer, tasks[task], config)
        pieces[f"{model}.{task}"] = piece
    for name in track(pieces, description="evaluation", disable=not Console().is_terminal):
        if not (folder / f"{name}.json").exists():
            atomic_write(folder / f"{name}.json", json.dumps(pieces[name](), indent=1))
    return describe_model(models["base"]) | {"tasks": describe_tasks(tasks)}


# %% [markdown]
# ## Profiles
#
# A *profile* holds every setting of a run. It is a dataclass of the stages' own dataclasses, with
# laptop-sized defaults; `course.toml` names what differs.

# %%
#| default_exp capstone.profiles
# Profiles: every setting of a run, read from course.toml.

# %%
#| export
import tomllib
import typing
from nanochat_lib.training.finetune import FinetuneConfig
from nanochat_lib.training.pretrain import PretrainConfig


# %%
#| export
@dataclass(frozen=True)
class Profile:
    """Hold every setting of a run; each stage has its own part."""

    name: str
    about: str = ""
    data: DataConfig = DataConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    base: PretrainConfig = PretrainConfig()
    chat: ChatDataConfig = ChatDataConfig()
    sft: FinetuneConfig = FinetuneConfig()
    evaluation: EvaluationConfig = EvaluationConfig()


# %% [markdown]
# Whoever edits a settings file makes typing mistakes. A program that ignores `documnts = 90_000`
# runs for an hour with the wrong corpus, so unknown names are errors. So are values of the wrong
# type.


# %%
#| export
import math


def check_value(value: object, wanted: object, where: str) -> object:
    """Return a TOML value as the type a field wants, or say what it should have been.

    Raises:
        ValueError: the value has another type, or is none of the choices of a Literal.
    """
    choices = typing.get_args(wanted)
    if typing.get_origin(wanted) is typing.Literal:
        if value in choices:
            return value
        raise ValueError(f"{where} = {value!r}: must be one of {', '.join(map(repr, choices))}")
    if typing.get_origin(wanted) is tuple and isinstance(value, list):
        return tuple(value)
    allowed = choices or (wanted,)
    if float in allowed and type(value) is int:
        return float(value)
    if type(value) is float and not math.isfinite(value):
        raise ValueError(f"{where} = {value!r}: must be a finite number")
    if type(value) in allowed:  # not isinstance: True would pass as a number
        return value
    names = " or ".join(kind.__name__ for kind in allowed if kind is not type(None))
    raise ValueError(f"{where} = {value!r}: must be {names}")


# %%
#| export
def fill_config(start: object, table: dict, where: str) -> object:
    """Change a configuration by a TOML table; what the table leaves out stays as it is.

    Example: fill_config(DataConfig(), {"documents": 9}, "profile.mini.data") -> DataConfig(documents=9).

    Args:
        start: a dataclass object; fields that are dataclasses are changed by sub-tables.
        table: field name -> value.
        where: the table's name, for messages.

    Returns:
        A new object of the same class.

    Raises:
        ValueError: an unknown name (the nearest known one is given), or a value of the wrong type.
    """
    wanted = typing.get_type_hints(type(start))
    values = {}
    for key, value in table.items():
        if key not in wanted:
            raise ValueError(f"[{where}] has no setting {key!r}: {nearest(key, wanted)}")
        if not dataclasses.is_dataclass(wanted[key]):
            values[key] = check_value(value, wanted[key], f"{where}.{key}")
        elif isinstance(value, dict):
            values[key] = fill_config(getattr(start, key), value, f"{where}.{key}")
        else:
            raise ValueError(f"{where}.{key} = {value!r}: must be a table [{where}.{key}]")
    return dataclasses.replace(start, **values)


# %%
# NBVAL_CHECK_OUTPUT
for table in ({"documnts": 9}, {"documents": "many"}, {"documents": True}):
    try:
        fill_config(DataConfig(), table, "profile.mini.data")
    except ValueError as error:
        print(error)

# %% [markdown]
# The last of these is a Python speciality: `True` is an `int`, and `isinstance` would let it
# through as 1.


# %%
#| export
def manifest_path() -> Path:
    """Return the course.toml that lies beside the installed library."""
    return Path(nanochat_lib.__file__).parents[1] / "course.toml"


def load_profile(name: str, manifest: Path | None = None) -> Profile:
    """Read the profile `name` from a manifest.

    Args:
        name: a table [profile.NAME].
        manifest: a TOML file; course.toml if None.

    Raises:
        ValueError: no such file or profile, no TOML, or a setting that no stage knows.
    """
    manifest = manifest_path() if manifest is None else Path(manifest)
    if not manifest.is_file():
        raise ValueError(f"no {manifest}: run inside the course, or name a file with --manifest")
    try:
        profiles = tomllib.loads(manifest.read_text(encoding="utf-8-sig")).get("profile", {})
    except ValueError as error:  # no UTF-8, or no TOML
        raise ValueError(f"{manifest} cannot be read: {error}") from error
    if name not in profiles:
        raise ValueError(f"no profile {name!r} in {manifest.name}: {nearest(name, profiles)}")
    return fill_config(Profile(name), profiles[name], f"profile.{name}")


# %% [markdown]
# ## The plan of a run
#
# Before an hour of computing comes a minute of arithmetic. Parameters follow from the sizes,
# tokens from the settings, and the work from both: `estimate_flops` (chapter "transformer")
# counts floating-point operations a token, forward and backward, so a training run costs that
# many times its tokens. A model on the `meta` device has shapes but no weights, so we can plan a
# model that would never fit into this machine.


# %%
# NBVAL_CHECK_OUTPUT
def plan(profile: Profile) -> dict[str, int]:
    """Derive what the two trainings of a profile cost, before any of it is computed."""
    with torch.device("meta"):
        model = GPT(profile.base.model_config(profile.tokenizer.vocab_size))
    steps = profile.base.steps(model.num_params())
    tokens = steps * profile.base.total_batch_tokens
    tokens += profile.sft.steps * profile.sft.total_batch_tokens
    flops = model.estimate_flops() * tokens
    return {"parameters": model.num_params(), "steps": steps, "tokens": tokens, "flops": flops}


d20 = Profile(
    "d20",
    tokenizer=TokenizerConfig(vocab_size=65_536),
    base=PretrainConfig(20, 64, sequence_len=2_048, total_batch_tokens=524_288),
)
work = plan(d20)
print(f"{work['parameters']:,} parameters, {work['steps']:,} steps, {work['flops']:.2e} operations")

# %% [markdown]
# This is nanochat's d20 at 20 tokens a parameter. An H100 multiplies bfloat16 matrices at up to
# 989e12 operations a second (NVIDIA's data sheet, dense). If eight of them reach 40% of that, the
# run takes hours, not days:

# %%
# NBVAL_CHECK_OUTPUT
print(f"{work['flops'] / (8 * 989e12 * 0.4) / 3600:.1f} hours")

# %% [markdown]
# ## Run it
#
# The `micro` profile passes through every stage in well under a minute. We cut it down further,
# so that the chapter stays short, and write it to a manifest of our own, as you would for an
# experiment.

# %%
manifest = Path(scratch.name) / "mine.toml"
manifest.write_text(
    """
[profile.mine]
about = "micro, smaller: for this chapter"
data = {warmup_documents = 300, documents = 900, validation_documents = 40, english_bytes = 20_000}
tokenizer = {vocab_size = 512}
chat = {conversations = 600}

[profile.mine.base]
depth = 2
smear = true
sequence_len = 192
total_batch_tokens = 1536
tokens = 90_000
eval_tokens = 3072
save_seconds = 0.3

[profile.mine.sft]
steps = 60
sequence_len = 192
total_batch_tokens = 1536
text_fraction = 0.15

[profile.mine.evaluation]
questions = 20
baseline_questions = 10
max_tokens = 48
batches = 2
samples = 1
sample_tokens = 32
""",
    encoding="utf-8",
)
profile = load_profile("mine", manifest)
work = plan(profile)
print(
    f"{work['parameters']:,} parameters, {work['tokens']:,} tokens, {work['flops']:.2e} operations"
)

# %% [markdown]
# What is missing is the report at the end, and the function that ties the stages together. First,
# how it looks.

# %%
#| default_exp capstone.layout
# How a report looks: tables, texts and a figure made of its numbers.

# %%
#| export
import io
import re
from matplotlib.figure import Figure
from rich.table import Table

MODELS = ("untrained", "base", "sft")

# %% [markdown]
# One layout for the terminal and for Markdown: a list of rows, the first of them the header.
# Every accuracy is written with its interval, because there is no function that writes it
# without.


# %%
#| export
def percent(score: dict) -> str:
    """Write a score with its interval: 41.5% [35, 48]."""
    low, high = 100 * score["low"], 100 * score["high"]
    return f"{100 * score['accuracy']:.1f}% [{low:.0f}, {high:.0f}]"


# %%
# NBVAL_CHECK_OUTPUT
print(percent({"accuracy": 0.3, "low": 0.108, "high": 0.603}))


# %%
#| export
def task_rows(report: dict) -> list[list[str]]:
    """Lay out the table of tasks: a header, then a row a task."""
    tasks = report["tasks"]
    counts = {model: sorted({row[model]["n"] for row in tasks.values()}) for model in MODELS}
    names = [f"{model}, n={'/'.join(map(str, counts[model]))}" for model in MODELS]
    rows = [["task", "floor", *names]]
    for key, row in tasks.items():
        scores = [percent(row[model]) for model in MODELS]
        rows.append([key.replace("_", " "), f"{100 * row['chance']['accuracy']:.1f}%", *scores])
    return rows


def floor_lines(report: dict) -> list[str]:
    """Say what each task asks, and what its floor is."""
    return [
        f"- {key.replace('_', ' ')}: {row['title']}; floor: {row['chance']['name']}."
        for key, row in report["tasks"].items()
    ]


# %%
#| export
def bits_rows(report: dict) -> list[list[str]]:
    """Lay out the table of bits per byte: a header, then a row a text."""
    texts = report["bits_per_byte"]
    columns = ["uniform", "bigram", *MODELS]
    header = ["bits per byte", *columns]
    return [header, *([text, *(f"{texts[text][c]:.3f}" for c in columns)] for text in texts)]


def stage_rows(report: dict) -> list[list[str]]:
    """Lay out the table of seconds: a header, a row a stage, the sum."""
    rows = [[stage, f"{seconds:.0f}"] for stage, seconds in report["stages"].items()]
    return [["stage", "seconds"], *rows, ["sum", f"{sum(report['stages'].values()):.0f}"]]


# %%
#| export
def markdown_table(rows: list[list[str]]) -> str:
    """Write rows, the first of them the header, as a Markdown table; numbers stand to the right."""
    rule = ["---", *["---:"] * (len(rows[0]) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [rows[0], rule, *rows[1:]])


def terminal_table(rows: list[list[str]]) -> Table:
    """Build the same table for the terminal; what follows a comma in the header goes below it."""
    table = Table(*(name.replace(", ", "\n") for name in rows[0]))
    for row in rows[1:]:
        table.add_row(*row)
    for column in table.columns[1:]:
        column.justify, column.no_wrap = "right", True
    return table


# %%
# NBVAL_CHECK_OUTPUT
print(markdown_table([["stage", "seconds"], ["data", "3"]]))


# %%
#| export
def quote(text: str) -> str:
    """Show what a model wrote as a Markdown quotation, line by line, with no character taken as markup."""
    return "\n".join(f">     {line}" for line in re.split(r"\r\n|\r|\n", text))


def show_tools(text: str) -> str:
    """Write calls of the calculator for people: [3*4 = 12] instead of four markers."""
    text = text.replace("<|python_end|><|output_start|>", " = ")
    return text.replace("<|python_start|>", "[").replace("<|output_end|>", "] ")


def transcript_text(transcript: list[dict]) -> str:
    """Write questions and answers as they stand in a terminal."""
    turns = []
    for turn in transcript:
        mark = "" if turn["correct"] else "      (wrong)"
        turns.append(f"> {turn['question']}\n{show_tools(turn['response'])}{mark}")
    return "\n\n".join(turns)


def machine_line(report: dict) -> str:
    """Name the machine in a line."""
    machine = report["machine"]
    gpus = f", {', '.join(machine['gpus'])}" if machine["gpus"] else ""
    return (
        f"{machine['cpu']}, {machine['cores']} cores{gpus}, {machine['memory_gb']} GB, "
        f"{machine['platform']}, Python {machine['python']}, torch {machine['torch']}"
    )


# %%
#| export
def loss_figure(losses: dict[str, list[float]], untrained_loss: float) -> bytes:
    """Draw the training loss of each stage over its steps, beside the loss of knowing nothing.

    Args:
        losses: stage -> loss of each step, in nats a token.
        untrained_loss: log of the vocabulary size, in nats.

    Returns:
        A PNG of 6.5 x 3 inches; the same losses give the same bytes.
    """
    figure = Figure(figsize=(6.5, 3), layout="constrained")
    axes = figure.subplots(1, len(losses), sharey=True, squeeze=False)[0]
    for ax, colour, (stage, values) in zip(axes, ("C0", "C1", "C2", "C3"), losses.items()):
        width = max(1, len(values) // 50)
        smooth = [
            sum(values[i : i + width]) / len(values[i : i + width]) for i in range(len(values))
        ]
        ax.plot(values, color="0.8", linewidth=0.5)
        ax.plot(smooth, color=colour)
        ax.axhline(untrained_loss, color="0.5", linestyle=":")
        ax.set_title(stage)
        ax.set_xlabel("step")
    axes[0].set_ylabel("loss (nats per token)")
    axes[0].text(0, untrained_loss, " log(vocabulary)", color="0.5", va="top")
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120, metadata={"Software": None})
    return file.getvalue()


# %%
#| export
REPORT = """# Report of the run `{name}`

Every number here was measured by this run, or derived from its settings; `report.json` holds them all.
Machine: {machine}.

The model has {parameters:,} parameters and costs {flops:,} floating-point operations a token in training.
Its corpus has {documents:,} documents ({megabytes:.1f} MB, {english:.1%} of it real English). The run took {minutes:.1f} minutes.

## What it can do

Answers to held-out questions, greedy, graded by program. In brackets: the 95% Wilson interval.

{tasks}

{floors}

Held-out questions found in any training text: {leaks}.

## How well it predicts text

Lower is better. `uniform` finds all tokens equally likely, `bigram` counts pairs in the training text.

{bits}

![Training loss of both stages over their steps](figures/loss.png)

## Where the time went

{stages}

## The base model continues a story

{samples}

## The first held-out questions of each task, answered

```text
{transcript}
```
"""


# %%
#| export
def render_report(report: dict, name: str) -> str:
    """Write the report card in Markdown."""
    samples = [f"{s['opening']} ...\n\n{quote(s['continuation'])}" for s in report["samples"]]
    parts = [report["data"]["parts"].get(part, {}) for part in ("warmup", "train")]
    documents, n_bytes = (sum(p.get(unit, 0) for p in parts) for unit in ("documents", "bytes"))
    return REPORT.format(
        name=name,
        machine=machine_line(report),
        parameters=report["model"]["parameters"],
        flops=report["model"]["flops_per_token"],
        documents=documents,
        megabytes=n_bytes / 1e6,
        english=report["data"]["english_share"] * parts[1]["bytes"] / n_bytes,
        minutes=sum(report["stages"].values()) / 60,
        tasks=markdown_table(task_rows(report)),
        floors="\n".join(floor_lines(report)),
        leaks=report["contamination"]["count"],
        bits=markdown_table(bits_rows(report)),
        stages=markdown_table(stage_rows(report)),
        samples="\n\n".join(samples),
        transcript=transcript_text(report["transcript"]),
    )


# %%
#| default_exp capstone.report
# The report card: what a run measured, gathered from its records.

# %%
#| export
import shlex
from urllib.parse import quote as url_quote

# %% [markdown]
# The report reads records and nothing else. It measures nothing, so it can be written again at
# any time, and the same records give the same bytes. That makes it safe to improve: nobody has to
# retrain to correct a table.


# %%
#| export
def collect_tasks(evaluation: Path, tasks: dict[str, dict]) -> dict[str, dict]:
    """Put the score of every model beside the floor of each task.

    Returns:
        Task -> {"title", "chance": {"accuracy", "name"}, model -> {"accuracy", "low", "high", "n"}}.
    """
    found = {}
    for key, task in tasks.items():
        row = {"title": task["title"]}
        row["chance"] = {"accuracy": task["floor"], "name": task["floor_name"]}
        for model in MODELS:
            row[model] = read_json(evaluation / f"{model}.{key}.json")["score"]
        found[key] = row
    return found


# %%
#| export
def collect_transcript(evaluation: Path, tasks: dict[str, dict], questions: int = 2) -> list[dict]:
    """Take the first held-out questions of each task with the fine-tuned model's answers, right or wrong."""
    keys = ("question", "response", "correct")
    return [
        {"task": task, **{key: answer[key] for key in keys}}
        for task in tasks
        for answer in read_json(evaluation / f"sft.{task}.json")["answers"][:questions]
    ]


# %%
#| export
def collect_report(run_folder: Path) -> dict:
    """Gather everything a run measured, from its stored records alone: the same files, the same report.

    Raises:
        ValueError: a stage is missing or unfinished.
    """
    records = {}
    for stage in ("data", "tokenizer", "base", "sft", "evaluation"):
        path = run_folder / stage / "stage.json"
        records[stage] = read_json(path) if path.exists() else {"state": "missing"}
        if records[stage]["state"] != "done":
            raise ValueError(
                f"stage {stage!r} of {run_folder} is not done: nanochat run finishes it"
            )
    evaluation, results = run_folder / "evaluation", {k: r["result"] for k, r in records.items()}
    tasks, machine = results["evaluation"].pop("tasks"), results["base"]["machine"]
    leaks = read_json(evaluation / "contamination.json")
    return {
        "profile": read_json(run_folder / "run.json")["profile"],
        "machine": {key: value for key, value in machine.items() if key != "disk_free_gb"},
        "stages": {stage: round(record["seconds"], 1) for stage, record in records.items()},
        "model": results["evaluation"],
        "data": results["data"],
        "tokenizer": results["tokenizer"],
        "training": {"base": results["base"]["summary"], "sft": results["sft"]},
        "bits_per_byte": read_json(evaluation / "bits_per_byte.json"),
        "tasks": collect_tasks(evaluation, tasks),
        "contamination": {"count": len(leaks), "examples": leaks[:3]},
        "samples": read_json(evaluation / "samples.json"),
        "transcript": collect_transcript(evaluation, tasks),
    }


# %%
#| export
def read_losses(folder: Path) -> list[float]:
    """Read the loss of every training step of a stage, in nats a token."""
    return read_json(folder / "losses.json")["losses"]


def keep_edited(run_folder: Path) -> None:
    """Copy a report.md that somebody wrote into, so that the next one does not take its place."""
    page, data = run_folder / "report.md", run_folder / "report.json"
    if page.exists() and data.exists():
        text = page.read_bytes()
        if text != render_report(read_json(data), run_folder.name).encode():
            atomic_write(run_folder / f"report-edited-{fingerprint(text.hex())}.md", text)


def write_report(run_folder: Path) -> dict:
    """Write report.json, report.md and figures/loss.png of a finished run, and return the report."""
    report = collect_report(run_folder)
    keep_edited(run_folder)
    losses = {stage: read_losses(run_folder / stage) for stage in ("base", "sft")}
    log_vocab = math.log(report["model"]["config"]["vocab_size"])
    atomic_write(run_folder / "figures" / "loss.png", loss_figure(losses, log_vocab))
    atomic_write(run_folder / "report.json", json.dumps(report, indent=1))
    atomic_write(run_folder / "report.md", render_report(report, run_folder.name))
    return report


# %% [markdown]
# The project's README shows results too. It holds two marks, and the program replaces what stands
# between them, so nobody copies numbers by hand, and nobody forgets to.

# %%
#| export
START, END = "<!-- measured:start -->", "<!-- measured:end -->"


def fill_readme(readme: Path, run_folder: Path) -> None:
    """Replace what stands between the two marks of a README by the results of a run.

    Raises:
        ValueError: the README lacks the marks.
    """
    report = read_json(run_folder / "report.json")
    before, start, rest = readme.read_text(encoding="utf-8").partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise ValueError(
            f"{readme} holds no {START} ... {END}: add both lines where results should go"
        )
    minutes = sum(report["stages"].values()) / 60
    block = f"""
*Written by `nanochat report {shlex.quote(run_folder.name)} --readme` from a run of {minutes:.1f} minutes on
{machine_line(report)}.*

{markdown_table(task_rows(report))}

{markdown_table(bits_rows(report))}

![Training loss of both stages over their steps](figures/{url_quote(run_folder.name)}_loss.png)

```text
{transcript_text(report["transcript"])}
```
"""
    figure = (run_folder / "figures" / "loss.png").read_bytes()
    atomic_write(readme.parent / "figures" / f"{run_folder.name}_loss.png", figure)
    atomic_write(readme, before + START + block + END + after)


# %%
#| default_exp capstone.run
# Tie the stages to a profile: one call from raw text to a report.

# %%
#| export
from collections.abc import Callable
from nanochat_lib.common import atomic_write, run_dir
from nanochat_lib.training.checkpoint import FILES

SHARDS = (f"*/shard_{5 * '[0-9]'}.parquet",)
TRAINING = (*(f"step_{6 * '[0-9]'}/{name}" for name in FILES), "losses.json")
SCORES = tuple(f"{name}.json" for name in ("bits_per_byte", "samples", "contamination"))
SCORES += tuple(f"{model}.*.json" for model in MODELS)
STAGES = (
    Stage("data", prepare_data, settings=("data",), writes=SHARDS),
    Stage(
        "tokenizer",
        train_tokenizer,
        needs=("data",),
        settings=("tokenizer",),
        writes=("tokenizer.json",),
    ),
    Stage(
        "base",
        train_base,
        needs=("data", "tokenizer"),
        settings=("base",),
        resumes=True,
        writes=TRAINING,
    ),
    Stage(
        "sft",
        train_sft,
        needs=("data", "tokenizer", "base"),
        settings=("data", "chat", "sft"),
        resumes=True,
        writes=TRAINING,
    ),
    Stage(
        "evaluation",
        evaluate_models,
        needs=("data", "tokenizer", "base", "sft"),
        settings=("data", "chat", "evaluation"),
        resumes=True,
        writes=SCORES,
    ),
)


# %%
#| export
def claim_folder(run_folder: Path, profile: Profile) -> None:
    """Make a folder this profile's run, unless it holds something else.

    Raises:
        ValueError: it holds files that no run wrote, or the run of another profile.
    """
    path = run_folder / "run.json"
    there = sorted(entry.name for entry in run_folder.glob("[!.]*")) if run_folder.is_dir() else []
    about = read_json(path) if path.exists() else {}
    if there and not (isinstance(about, dict) and {"profile", "about"} <= about.keys()):
        raise ValueError(
            f"{run_folder} holds {there[0]}, and no run wrote that: give the run another --name"
        )
    if about and about["profile"] != profile.name:
        raise ValueError(
            f"{run_folder} is a run of profile {about['profile']!r}: give this one another --name"
        )
    atomic_write(path, json.dumps({"profile": profile.name, "about": profile.about}))


# %%
#| export
def run_profile(
    profile: Profile,
    run_folder: Path | None = None,
    start: str | None = None,
    announce: Callable[[str], None] = print,
) -> Path:
    """Bring a whole run up to date and write its report.

    Args:
        profile: every setting.
        run_folder: where the run lives; run_dir(profile.name) if None.
        start: stage to run again, with all after it; "report" repeats only the report.
        announce: receives one line a stage.

    Returns:
        The run's folder, with report.md and report.json in it.

    Raises:
        ValueError: no stage is called `start`, another process is at work in the folder, or it
            holds something else.
    """
    run_folder = run_folder or run_dir(profile.name)
    names = [*(stage.name for stage in STAGES), "report"]
    if start is not None and start not in names:
        raise ValueError(f"no stage {start!r}: {nearest(start, names)}")
    claim_folder(run_folder, profile)
    run_stages(STAGES, profile, run_folder, None if start == "report" else start, announce)
    write_report(run_folder)
    return run_folder


# %% [markdown]
# And off it goes. Training draws a progress bar in a terminal; here we keep its lines to
# ourselves.

# %%
# NBVAL_CHECK_OUTPUT
lines = []
with contextlib.redirect_stdout(io.StringIO()):
    mine = run_profile(profile, Path(scratch.name) / "mine", announce=lines.append)
print("\n".join(line for line in lines if ": done" not in line))

# %% [markdown]
# ## The cost, beside the estimate
#
# Did the run do what the plan said? It counted its own tokens and parameters:

# %%
# NBVAL_CHECK_OUTPUT
report = read_json(mine / "report.json")
tokens = sum(report["training"][stage]["tokens"] for stage in ("base", "sft"))
print(f"planned {work['parameters']:,} parameters and {work['tokens']:,} tokens")
print(f"counted {report['model']['parameters']:,} parameters and {tokens:,} tokens")
assert (report["model"]["parameters"], tokens) == (work["parameters"], work["tokens"])

# %% [markdown]
# And the disk? A checkpoint holds each weight in 4 bytes. Muon keeps one number beside each
# weight of a matrix inside the blocks, $12LC^2$ of them, and AdamW two beside each of the others.
# Two checkpoints are kept a training.

# %%
sizes = report["model"]["config"]
matrices = 12 * sizes["n_layer"] * sizes["n_embd"] ** 2
worked_out = 4 * work["parameters"] + 4 * matrices + 8 * (work["parameters"] - matrices)
newest = max((mine / "base").glob("step_*"))
measured = sum(path.stat().st_size for path in newest.glob("*.safetensors"))
print(f"a checkpoint: {worked_out / 1e6:.2f} MB worked out, {measured / 1e6:.2f} MB on disk")
assert 1 < measured / worked_out < 1.02, "more than names and shapes was added"

# %% [markdown]
# The small rest is the header with names and shapes. For the d20 model of 561M parameters the
# same sum gives several gigabytes a checkpoint, which is why only two are kept.
#
# ## Kill it
#
# A promise that was not tested is a hope. We train the base model once more, in a process of its
# own and into another folder, wait for its first checkpoint, and kill it with no chance to clean
# up.

# %%
killed = Path(scratch.name) / "killed"
program = f"""
from pathlib import Path
from nanochat_lib.capstone.profiles import load_profile
from nanochat_lib.capstone.stage_base import train_base
mine = Path({str(mine)!r})
inputs = {{"data": mine / "data", "tokenizer": mine / "tokenizer"}}
train_base(Path({str(killed)!r}), inputs, load_profile("mine", Path({str(manifest)!r})).base)
"""
process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.DEVNULL)
while not list(killed.glob("step_*/meta.json")) and process.poll() is None:
    time.sleep(0.02)
process.kill()
process.wait()
left = [path.name for path in killed.glob("step_*")]
assert left and newest.name not in left, f"{left}: the process was done before we killed it"

# %% [markdown]
# The same call continues, as the pipeline would make it. It has to end with the same weights as
# the run that nobody disturbed: not similar ones, the same bytes.

# %%
# NBVAL_CHECK_OUTPUT
inputs = {"data": mine / "data", "tokenizer": mine / "tokenizer"}
with contextlib.redirect_stdout(io.StringIO()):
    train_base(killed, inputs, profile.base)
weights = [
    (run / newest.name / "model.safetensors").read_bytes() for run in (mine / "base", killed)
]
print("same bytes:", weights[0] == weights[1])
assert weights[0] == weights[1], "resuming changed the weights: is a part of the state not saved?"

# %% [markdown]
# Two things make this work, both from chapter "pretraining": a checkpoint holds the loader's
# position and the optimizer's state beside the weights, and nothing is drawn from a random
# generator whose state is not saved.
#
# ## Reading a report card
#
# This is the table of our small run. It learned for seconds, so do not expect much; the question
# is what the numbers allow us to say.

# %%
print(markdown_table(task_rows(report)))

# %%
# alt: accuracy of three models on five tasks as dots with 95% intervals, and the floor of each task as a short grey line
figure, ax = plt.subplots(figsize=(6.5, 3), layout="constrained")
for i, model in enumerate(MODELS):
    rows = [row[model] for row in report["tasks"].values()]
    places = [x + 0.2 * (i - 1) for x in range(len(rows))]
    middle = [100 * row["accuracy"] for row in rows]
    below = [100 * (row["accuracy"] - row["low"]) for row in rows]
    above = [100 * (row["high"] - row["accuracy"]) for row in rows]
    ax.errorbar(places, middle, (below, above), fmt="o", color=f"C{i}", label=model, capsize=3)
floors = [100 * row["chance"]["accuracy"] for row in report["tasks"].values()]
ax.hlines(floors, [x - 0.4 for x in range(5)], [x + 0.4 for x in range(5)], color="0.5")
ax.set_xticks(range(5), [key.replace("_", "\n") for key in report["tasks"]])
ax.set_ylabel("held-out questions right (%)")
ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, frameon=False)
plt.show()

# %% [markdown]
# *Each dot is an accuracy, each bar its 95% interval, grey lines are the floors. Notice how long the
# bars are: ten questions, none of them answered, cannot tell a model that knows nothing from one
# that knows a quarter of the answers.*
#
# Two habits follow from the picture.
#
# **No accuracy without its floor.** 25% on four options is what a coin with four sides gets. And
# the floor is not always chance: on a task where most answers are 1, always saying "1" does well.
# The tasks bring their own floors for that reason.
#
# **No accuracy without its interval.** How long the bar is depends mostly on the number of
# questions:

# %%
# NBVAL_CHECK_OUTPUT
for n in (10, 50, 200, 1_000):
    low, high = wilson_interval(round(0.6 * n), n)
    print(f"60% of {n:>5} questions: {100 * low:.0f}% to {100 * high:.0f}%")

# %% [markdown]
# So 200 questions separate 60% from 70%, but not from 65%. To halve the interval takes four times
# the questions. And the interval knows only about the choice of questions: another training seed
# moves the result too, and nobody sees that in one run.
#
# One more line of the report deserves a look before any score is believed:

# %%
# NBVAL_CHECK_OUTPUT
print("held-out questions found in training text:", report["contamination"]["count"])

# %% [markdown]
# ## What goes wrong: a result that nobody computed
#
# Here is the cache that everybody writes first. It keys results by settings, which seems
# complete: same settings, same result.


# %%
def cached(function: Callable, settings: object, store: dict) -> object:
    """Return the stored result of these settings, or compute it."""
    key = fingerprint(function.__name__, settings)
    if key not in store:
        store[key] = function(settings)
    return store[key]


def grade(text: str) -> float:
    return text.count("4") / len(text)  # the bug: a share of characters, not of words


store: dict = {}
first = cached(grade, "4 4 5 4", store)

# %% [markdown]
# We find the bug, correct it, and run again:


# %%
# NBVAL_CHECK_OUTPUT
def grade(text: str) -> float:
    return text.split().count("4") / len(text.split())


second = cached(grade, "4 4 5 4", store)
print(f"reported {second:.2f}, correct {grade('4 4 5 4'):.2f}")
assert second == first != grade("4 4 5 4")

# %% [markdown]
# The corrected program reports the wrong number, with a fresh date on it. It is the worst kind of
# failure: nothing crashes, and the person who corrected the bug is the last to suspect the old
# result. Make-style caches that compare file times have a cousin of this bug: `git checkout`
# gives an old file a new time, and copying gives a new file an old one.
#
# In our pipeline the function's code is part of what its result depends on. The same correction,
# as a stage:


# %%
# NBVAL_CHECK_OUTPUT
def make_stage(source: str) -> tuple[Stage, ...]:
    """Write a stage as a module of its own, import it, and wrap it."""
    path = Path(scratch.name) / "grading.py"
    path.write_text(source, encoding="utf-8")
    linecache.clearcache()
    names = {"__name__": "grading"}
    exec(compile(source, str(path), "exec"), names)
    return (Stage("grade", names["grade"], settings=("text",)),)


buggy = "def grade(folder, inputs, text):\n    return {'score': text.count('4') / len(text)}\n"
fixed = buggy.replace("text.count('4') / len(text)", "text.split().count('4') / len(text.split())")
graded = Path(scratch.name) / "graded"
for source in (buggy, buggy, buggy + "    # a comment\n", fixed):
    show_reasons(make_stage(source), Toy(text="4 4 5 4"), graded)
print(read_record(graded / "grade")["result"])

# %% [markdown]
# What do we still not notice? Things outside the three parts: another version of torch, another
# processor, a compiled extension. Bits may then differ although nothing we fingerprint did. The
# report names machine and versions so that at least the reader knows.
#
# ## The command
#
# What remains is to give all this a name that can be typed. The command line comes from
# dataclasses, through tyro; torch is imported only after the arguments turned out to be good, so
# that a typing mistake costs a fraction of a second.

# %%
#| default_exp cli
# The command `nanochat`.

# %%
#| export
import os
import shlex
import sys
from typing import Annotated
import tyro
from nanochat_lib.common import base_dir, run_dir
from nanochat_lib.terminal import as_command


# %%
#| export
def physical_cores() -> int:
    """Count the cores this process may use: hyperthreads once, and no more than a container's quota."""
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    topology = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    siblings = {Path(topology.format(cpu)) for cpu in allowed}
    if siblings and all(path.exists() for path in siblings):
        cores = len({path.read_text(encoding="utf-8") for path in siblings})
    else:
        cores = len(allowed) or os.cpu_count() or 1
    quota = Path("/sys/fs/cgroup/cpu.max")
    limit, period = quota.read_text(encoding="utf-8").split() if quota.exists() else ("max", "1")
    return cores if limit == "max" else max(1, min(cores, round(int(limit) / int(period))))


# %%
#| export
@dataclass(frozen=True)
class RunArguments:
    """Run a profile of course.toml: data, tokenizer, base model, fine-tuning, evaluation, report.

    A stage whose settings, inputs and code have not changed is skipped, and one that was stopped
    continues, so the same command always finishes the run.
    """

    profile: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PROFILE")]
    """name of a table [profile.NAME]"""
    start: Annotated[str | None, tyro.conf.arg(name="from")] = None
    """run this stage and all after it again: data, tokenizer, base, sft, evaluation, report"""
    resume: bool = True
    """--no-resume starts again from the first stage"""
    name: str | None = None
    """name of the run's folder (default: the profile's name)"""
    manifest: Path | None = None
    """read profiles from this file instead of course.toml"""


@dataclass(frozen=True)
class ReportArguments:
    """Write a finished run's report again from its records, and print its tables."""

    run: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="RUN")] = None
    """name of the run (default: the newest)"""
    readme: Path | None = None
    """also write the results between the marks of this README"""


# %%
#| export
def print_report(report: dict, run_folder: Path) -> None:
    """Print the tables, where the report lies and how to talk to the model."""
    from rich.console import Console

    from nanochat_lib.capstone.layout import bits_rows, stage_rows, task_rows, terminal_table

    console = Console()
    for rows in (task_rows(report), bits_rows(report), stage_rows(report)):
        console.print(terminal_table(rows))
    talk = shlex.join([".venv/bin/nanochat", "chat", "--run", run_folder.name])
    for line in (f"report: {run_folder / 'report.md'}", f"talk to it: {talk}"):
        console.print(line, soft_wrap=True, markup=False)  # a [v2] in a name is no mark-up


# %%
#| export
def run_command(arguments: list[str]) -> None:
    """Run a profile, and print its report."""
    options = tyro.cli(RunArguments, prog="nanochat run", args=arguments)
    # These import torch, which takes seconds: only now, when the arguments are known to be good.
    from nanochat_lib.capstone.profiles import load_profile
    from nanochat_lib.capstone.record import read_json
    from nanochat_lib.capstone.run import run_profile

    profile = load_profile(options.profile, options.manifest)
    start = options.start or (None if options.resume else "data")
    name = profile.name if options.name is None else options.name
    run_folder = run_profile(profile, run_dir(name), start)
    print_report(read_json(run_folder / "report.json"), run_folder)


def report_command(arguments: list[str]) -> None:
    """Write a run's report again, and print it."""
    options = tyro.cli(ReportArguments, prog="nanochat report", args=arguments)
    from nanochat_lib.capstone.report import fill_readme, write_report

    runs = sorted(base_dir().glob("*/run.json"), key=lambda path: path.stat().st_mtime)
    if not runs and options.run is None:
        raise ValueError(f"no run in {base_dir()}: make one with nanochat run laptop")
    run_folder = runs[-1].parent if options.run is None else run_dir(options.run)
    found = write_report(run_folder)
    if options.readme:
        fill_readme(options.readme, run_folder)
    print_report(found, run_folder)


def chat_command(arguments: list[str]) -> None:
    """Talk to a trained model."""
    for option, value in zip(arguments, arguments[1:]):
        if option in ("-p", "--prompt") and value.startswith("-"):
            hint = shlex.quote(f"--prompt={value}")
            raise ValueError(f"{option} needs a text; one that begins with a dash goes as {hint}")
    from nanochat_lib.serving.cli import ChatConfig, chat

    options = tyro.cli(ChatConfig, prog="nanochat chat", args=arguments)
    if options.prompt is None and sys.stdin is None:
        raise ValueError("standard input is closed: give one message with --prompt")
    chat(options)


# %%
#| export
COMMANDS: dict[str, tuple[Callable[[list[str]], None], str]] = {
    "run": (run_command, "train a profile's model through all stages, resuming whatever is there"),
    "report": (report_command, "write and print the report of a finished run"),
    "chat": (chat_command, "talk to a trained model in the terminal"),
}


def usage() -> str:
    """List the commands."""
    lines = [f"  nanochat {name:8}{summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join(["usage:", *lines, "", "nanochat COMMAND --help lists a command's options"])


# %%
#| export
def main(arguments: list[str] | None = None) -> None:
    """Run one command; a mistake of the caller's ends in one line, not in a traceback."""
    arguments = sys.argv[1:] if arguments is None else arguments
    name, *rest = arguments or ["help"]
    if name in ("-h", "--help", "help"):
        with as_command("nanochat"):
            print(usage())
        return
    if name not in COMMANDS:
        sys.exit(f"nanochat: no command {name!r}: {nearest(name, COMMANDS)}")
    # The OpenMP library reads these when torch loads it. Threads that wait by spinning for long, its
    # default, take the cores from each other as soon as a second program wants them.
    os.environ.setdefault("OMP_NUM_THREADS", str(physical_cores()))
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    with as_command(f"nanochat {name}"):
        try:
            COMMANDS[name][0](rest)
        except KeyboardInterrupt:
            again = shlex.join(["nanochat", *arguments])
            print(f"\nstopped; the same command continues: {again}")
            sys.exit(130)


# %% [markdown]
# Two environment variables are set before torch is loaded. OpenMP's threads wait for each other by spinning: they burn their core until the others arrive.
# Alone on a machine that is fastest. With a second busy program, each waits for threads that are
# not running, on cores that it keeps from running them. Threads that sleep at once are no answer:
# waking them takes longer than the short waits inside a training step. So we let them spin
# briefly, then sleep. A laptop-sized step with two threads took 269 ms with
# `OMP_WAIT_POLICY=PASSIVE`, 183 ms with `GOMP_SPINCOUNT=10000` and 164 to 182 ms with the default,
# alone on a machine with two AVX2 cores (medians of 20 steps, 23 November 2026).

# %%
# NBVAL_CHECK_OUTPUT
try:
    main(["rnu"])
except SystemExit as stopped:
    print(stopped)
scratch.cleanup()

# %% [markdown]
# ## Recap
#
# A stage's result depends on its settings, its inputs and its code, so it is skipped exactly when
# their fingerprints match. A record before and after the work makes any moment a safe one to be
# killed at. And a number is a result when its floor, its interval and its machine stand beside
# it.
#
# `nanochat_lib.capstone` and `nanochat_lib.cli` are now in the library: `make speedrun` runs the
# laptop profile, `nanochat chat` talks to it. The exercises ask how often to save when machines
# die at random, and what can be skipped when a stage ran again but produced the same bytes. The
# last chapter turns the tool on the course itself.
