# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # The pipeline: stages that resume, and results that may be kept
#
# A run on a laptop takes minutes, on eight GPUs hours. Whoever corrects the evaluation does not want
# to pretrain again; whoever changes the tokenizer must. When may an old result stand? This chapter
# builds the small machine that decides it, and that goes on where a killed run stopped:
#
# ```python
# run_stages(stages, settings, folder)    # runs what has to run, and says why
# ```
#
# You need fingerprints and atomic files from the ground. Nothing here is machine learning. On a
# laptop the chapter takes about 5 seconds.

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
import linecache
import tempfile


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
# to file until nothing new turns up. Some of that code reads a file of `data/`, such as the phrases of
# chapter `contact`: whoever adds a phrase wants the stage to run again, so these files count as code.


# %%
#| export
def module_source(module: str) -> str | None:
    """Read a module of the library without importing it; None if it is a name and no module."""
    path = Path(nanochat_lib.__file__).parents[1] / (module.replace(".", "/") + ".py")
    return path.read_text(encoding="utf-8") if path.exists() else None


def data_files() -> list[Path]:
    """List the files of `data/`, which code reads by name."""
    folder = Path(nanochat_lib.__file__).parents[1] / "data"
    return sorted(path for path in folder.glob("*") if path.is_file())


def code_fingerprints(run: Callable) -> dict[str, str]:
    """Fingerprint all library code that a stage can reach: its module, what that imports, and so on.

    Returns:
        Module name -> fingerprint, and the same for the files of `data/` that this code names. A function
        from outside the library counts as a module of its own.
    """
    waiting, found, code = {run.__module__}, {}, ""
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
        code += source
    for path in data_files():
        if f'"{path.name}"' in code:
            found[f"data/{path.name}"] = fingerprint(path.read_text(encoding="utf-8"))
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

# %%
scratch.cleanup()

# %% [markdown]
# ## Recap
#
# A stage is a function from settings and folders to a folder. Its result stands while its settings,
# its inputs and its code, compared by fingerprint, are what they were; a record says so, written
# last. A folder is emptied only by the names that a record lists. `nanochat_lib.capstone.pipeline`
# and `capstone.record` hold it; the capstone runs nanochat's stages through it.
