# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # The learner's tool: a referee for code that nobody trusts
#
# An exercise needs a place to write in, somebody who says what is wrong, and the right to stop. So
# the tool has seven commands: `course start`, `status`, `grade`, `hint`, `solution`, `reset` and
# `watch`. Two things in them are hard, and this chapter is about these:
#
# - what a learner wrote is never lost, whatever command comes next;
# - what a learner wrote may do anything: loop for ever, eat all memory, print without end, call
#   `sys.exit`, crash the interpreter. Each must end as a sentence about the exercise.
#
# You need the chapter on the course tool. On a laptop the chapter takes about 10 seconds.

# %% [markdown]
# ## A place to write
#
# The exercises in `exercises/` are generated, so nobody may work there. `start` copies them to a
# workspace and writes one small file of its own, `.course/progress.json`. Its rule is short: it
# creates files that are not there, and opens no other for writing.

# %%
#| default_exp course.workspace
# Where a learner works, and what is remembered there.

# %%
#| export
import json
import os
from dataclasses import dataclass
from pathlib import Path

from nanochat_lib.common import atomic_write
from nanochat_lib.course.exercises import learner_cells
from nanochat_lib.course.manifest import CourseError, Exercise, Manifest, Problem, read_manifest

PROGRESS = ".course/progress.json"
DEFAULT = "my-course"
OURS = (
    "chapters",
    "exercises",
    "solutions",
    "nanochat_lib",
    "rustbpe",
    "tests",
    "records",
    ".venv",
    ".git",
)


# %%
#| export
@dataclass(frozen=True)
class Workspace:
    """Hold where the course is, and where the learner writes.

    Args:
        root: the folder of course.toml.
        folder: the learner's own.
    """

    root: Path
    folder: Path

    @property
    def manifest(self) -> Manifest:
        """What course.toml says."""
        return read_manifest(self.root)

    def file(self, slug: str) -> Path:
        """Return the learner's file of a chapter: script or notebook, the one that was saved last.

        Raises:
            CourseError: there is none.
        """
        both = [self.folder / f"{slug}{ending}" for ending in (".py", ".ipynb")]
        found = [path for path in both if path.is_file()]
        if not found:
            where = str(self.folder / f"{slug}.py")
            way_out = "`course start` adds what is missing"
            raise CourseError(Problem(where, 1, "is not there", way_out))
        return max(found, key=lambda path: path.stat().st_mtime)

    def progress(self) -> dict:
        """Read what was passed ("done"), asked ("hints") and tried ("tries"), and the "last" exercise.

        Raises:
            CourseError: the file is damaged.
        """
        path = self.folder / PROGRESS
        empty = {"done": {}, "hints": {}, "tries": {}, "last": ""}
        try:
            said = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
            if any(
                not isinstance(said.get(key, value), type(value)) for key, value in empty.items()
            ):
                raise ValueError("a field has the wrong type")
        except (ValueError, AttributeError) as error:
            way_out = "mend it, or remove it: only what is remembered there is forgotten"
            raise CourseError(Problem(str(path), 1, f"damaged: {error}", way_out)) from None
        return empty | said

    def remember(self, progress: dict) -> None:
        """Write what `progress` returned and somebody changed."""
        text = json.dumps(progress, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
        atomic_write(self.folder / PROGRESS, text)


# %%
#| export
def start_workspace(
    root: Path, folder: Path, notebooks: bool = False
) -> tuple[list[str], list[str]]:
    """Create what is missing in a workspace, and touch nothing else.

    Args:
        root: the folder of course.toml.
        folder: the workspace, new or not.
        notebooks: copy the exercises as notebooks, not as scripts.

    Returns:
        The names of the files that were created, and the exercises that files already there lack.

    Raises:
        CourseError: the folder is a part of the course itself, or a file.
    """
    inside = folder.resolve()
    for name in OURS:
        if inside == root.resolve() or inside.is_relative_to(root.resolve() / name):
            way_out = f"choose a folder of your own, such as {DEFAULT}"
            raise CourseError(Problem(str(folder), 1, "is a part of the course", way_out))
    if folder.exists() and not folder.is_dir():
        raise CourseError(Problem(str(folder), 1, "is a file", "name a folder"))
    space, created, lacking = Workspace(root, folder), [], []
    exercises = space.manifest.exercises
    for slug in dict.fromkeys(exercise.chapter for exercise in exercises):
        name = f"{slug}.ipynb" if notebooks else f"{slug}.py"
        if os.path.lexists(folder / name):
            text = "\n".join(cell.source for cell in learner_cells(folder / name))
            own = [e.name for e in exercises if e.chapter == slug]
            lacking += [f"{slug}.{n}" for n in own if f"def {n}(" not in text]
        else:
            text = (root / "exercises" / name).read_text(encoding="utf-8")
            atomic_write(folder / name, text)
            created.append(name)
    if not (folder / PROGRESS).exists():
        space.remember(space.progress())
    return created, lacking


# %%
#| export
def find_workspace(root: Path, place: Path) -> Workspace:
    """Return the workspace around `place`, or the default one of the course.

    Raises:
        CourseError: there is neither.
    """
    for folder in (place, *place.parents, root / DEFAULT):
        if (folder / PROGRESS).is_file():
            return Workspace(root, folder)
    what = "no workspace here or above"
    raise CourseError(
        Problem(str(place), 1, what, "`course start` makes one; or go to yours first")
    )


def pick(manifest: Manifest, wanted: str) -> list[Exercise]:
    """Return the exercises that "slug" or "slug.name" stands for.

    Raises:
        CourseError: none; the message lists those that could be meant.
    """
    slug, _, name = wanted.partition(".")
    own = [e for e in manifest.exercises if e.chapter == slug]
    chosen = [e for e in own if name in ("", e.name)]
    if not chosen:
        known = [f"{e.chapter}.{e.name}" for e in own or manifest.exercises]
        way_out = f"choose from {', '.join(known)}"
        raise CourseError(Problem("course.toml", 1, f"no exercise {wanted!r}", way_out))
    return chosen


# %% [markdown]
# A course of one exercise will do to try it:

# %%
import tempfile
from textwrap import dedent

root = Path(tempfile.mkdtemp())
toy = {
    "course.toml": """
        title = "a toy"
        parts = ["Toy"]
        [[chapter]]
        file = "00_toy"
        part = "Toy"
        asks = "what is twice a list?"
        level = "gentle"
        needs = []
        [[exercise]]
        chapter = "toy"
        name = "doubled"
        minutes = 5
        importance = 1
        hints = ["Whose list is it?", "Make a new list.", "A list comprehension."]
        """,
    "exercises/toy.py": """
        # %%
        #| exercise doubled
        def doubled(numbers):
            raise NotImplementedError("exercise toy.doubled")
        """,
    "solutions/toy.py": """
        # %%
        #| exercise doubled
        def doubled(numbers):
            return [2 * number for number in numbers]
        """,
    "tests/exercises/grade_toy.py": """
        def grade_doubled(module):
            numbers = [1, 2]
            assert module.doubled(numbers) == [2, 4]
            assert numbers == [1, 2], f"the caller's list is now {numbers}"

        IN_PLACE = (
            "def doubled(numbers):\\n"
            "    'Double in place: the list belongs to the caller.'\\n"
            "    numbers[:] = [2 * number for number in numbers]\\n"
            "    return numbers"
        )
        MUTANTS = {"doubled": [IN_PLACE]}
        """,
}
for name, text in toy.items():
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(dedent(text), encoding="utf-8")

folder = root / "my [first] course"
assert start_workspace(root, folder) == (["toy.py"], [])
mine = folder / "toy.py"
mine.write_text(mine.read_text(encoding="utf-8") + "\n# my own remark\n", encoding="utf-8")
assert start_workspace(root, folder) == ([], []), "a second call finds everything there"
assert "my own remark" in mine.read_text(encoding="utf-8")

# %% [markdown]
# ## The referee, inside
#
# The answer runs in a process of its own. There it meets files as learners leave them: a marker
# deleted, a helper added below, another exercise broken in the middle of a line. None of that is a
# mistake in *this* exercise. So the cells before the first exercise run whole, and of all others only
# imports, definitions and constants: no visible check of another exercise can speak first.

# %%
#| default_exp course.referee
# Grade one answer, in a process that may die of it.

# %%
#| export
import ast
import faulthandler
import importlib.util
import json
import os
import sys
import time
from pathlib import Path
from traceback import walk_tb
from types import ModuleType

from nanochat_lib.common import atomic_write
from nanochat_lib.course.exercises import learner_cells, load_exercise


# %%
#| export
def _quiet(node: ast.stmt) -> bool:
    """Say whether a statement only names something: an import, a definition, a constant."""
    if isinstance(node, ast.Assign | ast.AnnAssign):
        return not any(isinstance(part, ast.Call | ast.Await) for part in ast.walk(node))
    return isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef | ast.ClassDef)


def load_answer(path: Path, name: str) -> ModuleType:
    """Load a learner's file for the sake of one function; what is broken elsewhere does not matter.

    Args:
        path: a script or a notebook.
        name: the function.

    Raises:
        SyntaxError: in its own cell.
        LookupError: no cell defines it.
    """
    module, cells, trouble = ModuleType(path.stem), learner_cells(path), None
    module.__file__, module.__cells__ = str(path), []
    first = next((n for n, cell in enumerate(cells) if cell.has("exercise")), 0)
    for number, cell in enumerate(cells):
        try:
            tree = ast.parse("\n" * (cell.line - 1) + cell.code, str(path))
            if number >= first:
                tree.body = [node for node in tree.body if _quiet(node)]
            exec(compile(tree, str(path), "exec"), module.__dict__)
            module.__cells__.append(ast.unparse(tree))
        except Exception as error:
            trouble = trouble or error
            if f"def {name}(" in cell.source:
                raise
    if not hasattr(module, name):
        also = f"; a cell ended in {type(trouble).__name__}: {trouble}" if trouble else ""
        raise LookupError(f"no function {name} in {path.name}{also}")
    return module


# %% [markdown]
# A grader is a function of assertions. Those with a message speak for themselves. For the others the
# referee looks at the two sides of the comparison that failed, which is what one would ask next. It
# evaluates them again in the frame where they failed; the process ends anyway.


# %%
#| export
def _comparison(path: str, line: int, frame) -> str:
    """Say what an assertion without a message compared."""
    source = Path(path).read_text(encoding="utf-8")
    asserts = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Assert)]
    test = next((n.test for n in asserts if n.lineno <= line <= n.end_lineno), None)
    if test is None:
        return "an assertion failed"
    try:
        if isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], ast.Eq):
            names = {**frame.f_globals, **frame.f_locals}
            sides = [eval(ast.unparse(s), names) for s in (test.left, *test.comparators)]
            got, expected = [f"{side!r:.300}" for side in sides]
            return f"{ast.unparse(test.left)} gave {got}, expected {expected}"
    except Exception:
        pass  # then the text of the assertion must do
    return f"this does not hold: {ast.unparse(test)}"


def _arguments(frame) -> str:
    """Say with what a function was called: the counter-example when it raised."""
    names = frame.f_code.co_varnames[: frame.f_code.co_argcount]
    values = [
        f"{name}={frame.f_locals.get(name)!r:.60}" for name in names if name in frame.f_locals
    ]
    return f"; called with {', '.join(values)}" if values else ""


def describe(error: BaseException, answer: str, grader: str, stub: str) -> dict:
    """Turn what ended a grading into a verdict.

    Args:
        error: what was raised.
        answer: the learner's file.
        grader: the grader's file.
        stub: what the untouched exercise raises.

    Returns:
        outcome ("todo" or "failed"), message, line (of the answer, or None), and at (of the grader).
    """
    frames = [
        (frame, frame.f_code.co_filename, line) for frame, line in walk_tb(error.__traceback__)
    ]
    lines = [line for _, file, line in frames if file == answer]
    line = error.lineno if isinstance(error, SyntaxError) else (lines or [None])[-1]
    judged = [(frame, line) for frame, file, line in frames if file == grader]
    kind, text = type(error).__name__, str(error)
    if isinstance(error, NotImplementedError) and stub in text:
        return {"outcome": "todo", "message": "not written yet", "line": line, "at": None}
    if isinstance(error, SystemExit):
        message = "it calls sys.exit: a function answers with `return`"
    elif isinstance(error, RecursionError):
        message = "it calls itself without end"
    elif isinstance(error, AssertionError) and frames and frames[-1][1] == grader:
        message = text or _comparison(grader, frames[-1][2], frames[-1][0])
    else:
        message = text if isinstance(error, LookupError) and not lines else f"{kind}: {text}"
        calls = [
            f for f, file, _ in frames if file == answer and stub.endswith(f".{f.f_code.co_name}")
        ]
        message += _arguments(calls[0]) if calls else ""
    at = judged[-1][1] if judged else None
    return {"outcome": "failed", "message": message, "line": line, "at": at}


# %% [markdown]
# The graders come with mutants: wrong answers that people give, each with a docstring that names the
# mistake. They are there to test the grader, and they have a second use. If exactly one of them fails
# at the same place as the answer does, its docstring is probably the diagnosis.


# %%
#| export
def likely_mistake(
    root: Path, slug: str, name: str, rules: ModuleType, verdict: dict
) -> str | None:
    """Find the known mistake that ends as this answer ended.

    Args:
        root: the folder of course.toml.
        slug: the chapter.
        name: the exercise.
        rules: its grader's module.
        verdict: from `describe`.
    """
    near, same = [], []
    for mutant in getattr(rules, "MUTANTS", {}).get(name, []):
        try:
            getattr(rules, f"grade_{name}")(load_exercise(root / f"solutions/{slug}.py", mutant))
        except BaseException as error:
            other = describe(error, "", rules.__file__, f"exercise {slug}.{name}")
            node = ast.parse(mutant).body[0]
            said = ast.get_docstring(node) if isinstance(node, ast.FunctionDef) else None
            if said and other["at"] == verdict["at"] is not None:
                (same if other["message"] == verdict["message"] else near).append(said)
    found = same or near
    return found[0] if len(found) == 1 else None


def judge(root: Path, path: Path, slug: str, name: str, result: Path) -> None:
    """Grade, and write the verdict as soon as it stands; the likely mistake follows if time is left.

    Args:
        root: the folder of course.toml.
        path: the learner's file.
        slug: the chapter.
        name: the exercise.
        result: the file for the verdict, in JSON.
    """
    begin, grader = time.monotonic(), root / f"tests/exercises/grade_{slug}.py"
    rules = None
    try:
        answer = load_answer(path, name)
        spec = importlib.util.spec_from_file_location(grader.stem, grader)
        rules = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(rules)
        begin = time.monotonic()
        getattr(rules, f"grade_{name}")(answer)
        verdict = {"outcome": "passed", "message": "", "line": None, "at": None}
    except BaseException as error:
        verdict = describe(error, str(path), str(grader), f"exercise {slug}.{name}")
    verdict["seconds"] = time.monotonic() - begin
    atomic_write(result, json.dumps(verdict))
    if rules and verdict["outcome"] == "failed":
        verdict["mistake"] = likely_mistake(root, slug, name, rules, verdict)
        atomic_write(result, json.dumps(verdict))


def main(arguments: list[str] | None = None) -> int:
    """Grade in this process, under a time limit, and end it.

    Args:
        arguments: root, answer, slug, name, verdict's file, trace's file, seconds; None takes them
            from the command line.
    """
    root, path, slug, name, result, trace, limit = arguments or sys.argv[1:]
    with open(trace, "w", encoding="utf-8") as file:
        faulthandler.enable(file)  # a crash says its line
        faulthandler.dump_traceback_later(float(limit), exit=True, file=file)
        judge(Path(root), Path(path), slug, name, Path(result))
        sys.stdout.flush()
        os._exit(0)  # threads that the answer left behind do not keep us


# %% [markdown]
# ## The referee, outside
#
# The parent trusts nothing but the file with the verdict. It looks twenty times a second: is the time
# up, is there too much memory, too much output? Then it kills the whole process group. A child that
# ended without a verdict died, and its exit status says how. For an endless loop, Python's
# `faulthandler` writes the line that was running into a file of its own.

# %%
#| default_exp course.grading
# Run the referee and survive it.

# %%
#| export
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from nanochat_lib.course.manifest import library_root

MOST_PRINTED = 10_000_000  # bytes


@dataclass(frozen=True)
class Verdict:
    """Hold what the referee says.

    Args:
        outcome: "passed", "todo" or "failed".
        message: what came out and what was expected.
        line: the line of the answer that it is about.
        mistake: a known mistake that ends the same way.
        seconds: what the grading took.
        printed: the end of what the answer printed.
    """

    outcome: str
    message: str = ""
    line: int | None = None
    mistake: str | None = None
    seconds: float = 0.0
    printed: str = ""


# %%
#| export
def resident_bytes(pid: int) -> int:
    """Return the memory that a process holds; 0 where nobody can tell."""
    with suppress(OSError, ValueError, IndexError):
        if Path("/proc/self/statm").exists():
            pages = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]
            return int(pages) * os.sysconf("SC_PAGE_SIZE")
        said = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True).stdout
        return int(said) * 1024
    return 0


def _watched(child: subprocess.Popen, printed: Path, seconds: float, memory_mb: int) -> str:
    """Wait for the child, and say why it had to be killed; "" if it ended by itself."""
    end, why = time.monotonic() + seconds, ""
    try:
        while child.poll() is None and not why:
            time.sleep(0.05)
            if resident_bytes(child.pid) > memory_mb * 1_000_000:
                why = f"it takes more than {memory_mb:,} MB of memory"
            elif printed.stat().st_size > MOST_PRINTED:
                why = f"it prints more than {MOST_PRINTED // 1_000_000} MB"
            elif time.monotonic() > end:
                why = "it is still running, and does not let itself be interrupted"
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    return why


def _death(code: int, trace: str, path: Path, seconds: float) -> Verdict:
    """Say how a child died that left no verdict."""
    shown = str(path).encode("ascii", "backslashreplace").decode()  # as faulthandler writes it
    found = re.search(rf'File "{re.escape(shown)}", line (\d+)', trace)
    line = int(found[1]) if found else None
    if code < 0:
        return Verdict("failed", f"it crashed Python itself ({signal.Signals(-code).name})", line)
    if "most recent call first" in trace:
        message = f"it is still running after {seconds:g} seconds: a loop that does not end?"
        return Verdict("failed", message, line, seconds=seconds)
    message = f"it ended Python itself (exit code {code}) before the grader was done"
    return Verdict("failed", message)


# %%
#| export
def grade_file(
    root: Path, path: Path, slug: str, name: str, seconds: float = 60.0, memory_mb: int = 4000
) -> Verdict:
    """Grade one exercise in a process of its own.

    Args:
        root: the folder of course.toml.
        path: the learner's script or notebook.
        slug: the chapter.
        name: the exercise.
        seconds: the time limit.
        memory_mb: the limit on resident memory, in 10^6 bytes.
    """
    with tempfile.TemporaryDirectory(prefix="course-grade-") as place:
        printed, result, trace = (Path(place, name) for name in ("printed", "result", "trace"))
        work = Path(place, "work")
        work.mkdir()
        words = [root.resolve(), path.resolve(), slug, name, result, trace, seconds]
        paths = [str(library_root())]
        paths += [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
        settings = {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUTF8": "1", "MPLBACKEND": "agg"}
        settings["OMP_NUM_THREADS"] = "1"  # models this small lose time on a second thread
        with open(printed, "wb") as output:
            child = subprocess.Popen(
                [sys.executable, "-m", "nanochat_lib.course.referee", *map(str, words)],
                cwd=work, env=os.environ | settings, stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
            why = _watched(child, printed, seconds + 3, memory_mb)
        with open(printed, "rb") as output:
            output.seek(max(0, printed.stat().st_size - 1500))
            said = output.read().decode("utf-8", "replace").strip()
        if result.exists():
            fields = json.loads(result.read_text(encoding="utf-8"))
            return Verdict(**{k: v for k, v in fields.items() if k != "at"}, printed=said)
        if why:
            return Verdict("failed", why, printed=said)
        traced = trace.read_text(encoding="utf-8") if trace.exists() else ""
        death = _death(child.returncode, traced, path.resolve(), seconds)
        return Verdict(death.outcome, death.message, death.line, None, death.seconds, said)


# %% [markdown]
# Here is what a learner may do to the toy exercise, and what comes of it:

# %%
# NBVAL_CHECK_OUTPUT
answers = {
    "a loop": "while True: pass",  # on one line, or the line in the message would vary
    "sys.exit": "import sys\n    sys.exit()",
    "a crash": "import os\n    os.abort()",
    "a flood": "while True:\n        print('x' * 1_000_000)",
    "tripled": "return [3 * number for number in numbers]",
    "in place": "for i in range(len(numbers)):\n        numbers[i] *= 2\n    return numbers",
}
for kind, body in answers.items():
    attempt = folder / "attempt.py"
    attempt.write_text(f"# %%\ndef doubled(numbers):\n    {body}\n", encoding="utf-8")
    verdict = grade_file(root, attempt, "toy", "doubled", seconds=3.0)
    print(f"{kind:9} {verdict.message}")
    if verdict.line:
        print(f"{'':9} line {verdict.line}")
    if verdict.mistake:
        print(f"{'':9} known mistake: {verdict.mistake}")

# %% [markdown]
# The last one names its mistake, because a mutant makes the same.
#
# ## One exercise of a file
#
# `solution` shows an answer beside one's own, and `reset` puts one stub back. Both must find one
# exercise in a file that somebody edited. It is looked for by its function, since a marker may be gone.

# %%
#| default_exp course.one_exercise
# Find, show and reset one exercise of a learner's file.

# %%
#| export
import ast
import json
from datetime import datetime
from pathlib import Path

from nanochat_lib.common import atomic_write
from nanochat_lib.course.cells import lines_of, read_cells
from nanochat_lib.course.exercises import BEGIN, END, learner_cells


# %%
#| export
def function_source(path: Path, name: str) -> str:
    """Return the cell or the part of it that defines a function, without solution marks; "" if none.

    Args:
        path: a script or a notebook.
        name: the function.
    """
    for cell in learner_cells(path):
        try:
            tree = ast.parse(cell.code)
        except SyntaxError:
            if f"def {name}(" in cell.source:
                return cell.source.strip("\n")
            continue
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and node.name == name:
                lines = lines_of(cell.code)[node.lineno - 1 : node.end_lineno]
                return "\n".join(line for line in lines if line.strip() not in (BEGIN, END))
    return ""


def _backed_up(path: Path, data: bytes) -> Path:
    """Keep a copy beside the progress, under a name of its own."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S-%f")
    backup = path.parent / ".course/backup" / f"{path.stem}-{stamp}{path.suffix}"
    atomic_write(backup, data)
    return backup


# %% [markdown]
# A file from last month lacks the exercises that came since. Then the whole exercise is appended: what its
# file imports now, the task, the stub and the check that can be seen.


# %%
#| export
def missing_cells(fresh: Path, name: str, known: str) -> list[tuple[str, str]]:
    """Return (kind, source) of the cells that a file needs for an exercise it lacks.

    Args:
        fresh: the exercise file, a script.
        name: the exercise.
        known: the text of the learner's file; set-up that stands in it is left out.
    """
    cells = read_cells(fresh.read_text(encoding="utf-8"), str(fresh))
    first = next(n for n, cell in enumerate(cells) if cell.has("exercise"))
    set_up = []
    for cell in cells[:first]:
        for node in ast.parse(cell.code).body if cell.kind == "code" else []:
            statement = ast.get_source_segment(cell.code, node)
            set_up += [statement] if f"\n{statement}\n" not in f"\n{known}\n" else []
    heads = [n for n, c in enumerate(cells) if c.kind == "markdown" and c.source.startswith("## ")]
    stub = next(n for n, cell in enumerate(cells) if f"def {name}(" in cell.source)
    begin = max((n for n in heads if n < stub), default=stub)
    end = min((n for n in heads if n > stub), default=len(cells))
    found = [("code", "\n".join(set_up))] if set_up else []
    return found + [(cell.kind, cell.source.strip("\n")) for cell in cells[begin:end]]


def as_script(cells: list[tuple[str, str]]) -> str:
    """Write cells in percent format."""
    blocks = []
    for kind, source in cells:
        if kind == "markdown":
            lines = [f"# {line}".rstrip() for line in source.split("\n")]
            blocks.append("\n".join(["# %% [markdown]", *lines]))
        else:
            blocks.append(f"# %%\n{source}")
    return "\n\n".join(blocks)


def as_notebook_cell(kind: str, source: str) -> dict:
    """Write one cell as a notebook holds it."""
    cell = {"cell_type": kind, "metadata": {}, "source": source.splitlines(keepends=True)}
    return cell | ({"execution_count": None, "outputs": []} if kind == "code" else {})


# %%
#| export
def reset_exercise(path: Path, fresh: Path, name: str) -> Path:
    """Put the stub of one exercise back; everything else in the file stays as it is.

    Args:
        path: the learner's script or notebook.
        fresh: the exercise file that the stub comes from, a script.
        name: the exercise; if the file has lost it, or never had it, it is appended with its task.

    Returns:
        The backup of the file as it was.
    """
    data = path.read_bytes()
    stub = next(cell for cell in learner_cells(fresh) if f"def {name}(" in cell.source)
    source, cells = stub.source.strip("\n"), learner_cells(path)
    found = [n for n, cell in enumerate(cells) if f"def {name}(" in cell.source]
    known = "\n".join(cell.source for cell in cells)
    more = [] if found else missing_cells(fresh, name, known)
    if path.suffix == ".ipynb":
        notebook = json.loads(data.decode("utf-8-sig"))
        if found:
            codes = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
            codes[found[0]] |= {"source": source.splitlines(keepends=True), "outputs": []}
        notebook["cells"] += [as_notebook_cell(*cell) for cell in more]
        text = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
    else:
        lines = lines_of(data.decode("utf-8-sig"))
        begin, end = len(lines), len(lines)
        block = ["", as_script(more)]
        if found:
            block = ["", "", "# %%", *source.split("\n")]
            if len(cells) > 1:
                begin = cells[found[0]].line - 1
                end = begin + len(lines_of(cells[found[0]].source))
                block = [*source.split("\n"), "", ""]
        text = "\n".join([*lines[:begin], *block, *lines[end:]]).rstrip("\n") + "\n"
    backup = _backed_up(path, data)
    atomic_write(path, text)
    return backup


# %%
backup = reset_exercise(mine, root / "exercises/toy.py", "doubled")
assert backup.read_bytes().endswith(b"# my own remark\n"), "the file as it was"
assert "raise NotImplementedError" in function_source(mine, "doubled")

# %% [markdown]
# ## The commands
#
# What is left is talk. The words are the same in a terminal and in a pipe; a terminal adds colour. An
# exit code of 0 means passed, 1 not yet, 2 that the command could not do what was asked.

# %%
#| default_exp course.talk
# How verdicts are said, and in which order exercises come.

# %%
#| export
import sys
from pathlib import Path

from nanochat_lib.course.grading import Verdict
from nanochat_lib.course.manifest import Exercise, Manifest


# %%
#| export
def say(text: str = "", style: str | None = None) -> None:
    """Print a line, in colour where there is a terminal.

    Args:
        text: the line.
        style: a style of rich.
    """
    if style and sys.stdout is not None and sys.stdout.isatty():
        from rich.console import Console

        Console(highlight=False).print(text, style=style, markup=False, soft_wrap=True)
    else:
        print(text)


def key_of(exercise: Exercise) -> str:
    """Return "slug.name"."""
    return f"{exercise.chapter}.{exercise.name}"


def shortest(path: Path) -> Path:
    """Return the path as seen from here, where that is shorter."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def in_order(manifest: Manifest) -> list[Exercise]:
    """List the exercises as the map lists their chapters."""
    chapters = [chapter.slug for part in manifest.by_part().values() for chapter in part]
    return sorted(manifest.exercises, key=lambda exercise: chapters.index(exercise.chapter))


# %%
#| export
def show(exercise: Exercise, path: Path, verdict: Verdict) -> None:
    """Print a verdict.

    Args:
        exercise: what was graded.
        path: the learner's file.
        verdict: the referee's.
    """
    key = key_of(exercise)
    if verdict.outcome == "passed":
        return say(f"{key}: passed ({verdict.seconds:.1f} s)", "green")
    place = f"{shortest(path)}:{verdict.line}" if verdict.line else str(shortest(path))
    if verdict.outcome == "todo":
        return say(f"{key}: not written yet, see {place}", "yellow")
    say(f"{key}: not yet ({verdict.seconds:.1f} s)", "red")
    say(f"  {verdict.message}")
    if verdict.line:
        say(f"  at {place}")
    if verdict.mistake:
        say(f"  a known mistake that ends like this: {verdict.mistake}")
    if verdict.printed:
        say("  it printed: " + verdict.printed.replace("\n", "\n    "))
    say(f"  a hint: course hint {key}")


# %%
#| default_exp course.learn
# The learner's commands, and `grade` for notebooks.

# %%
#| export
import argparse
import os
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

from nanochat_lib.course.cli import main as run_command
from nanochat_lib.course.grading import grade_file
from nanochat_lib.course.manifest import (
    CourseError,
    Exercise,
    find_root,
    library_root,
    read_manifest,
)
from nanochat_lib.course.one_exercise import function_source, reset_exercise
from nanochat_lib.course.talk import in_order, key_of, say, shortest, show
from nanochat_lib.course.workspace import DEFAULT, Workspace, find_workspace, pick, start_workspace


# %%
#| export
def _root() -> Path:
    """Return the course around this folder, or the one that the library belongs to."""
    try:
        return find_root(Path.cwd())
    except CourseError:
        return library_root()


def _space() -> Workspace:
    return find_workspace(_root(), Path.cwd())


def _chosen(space: Workspace, wanted: str | None) -> list[Exercise]:
    """Take the exercises that were named, or the last one, or the next."""
    progress = space.progress()
    waiting = [e for e in in_order(space.manifest) if key_of(e) not in progress["done"]]
    last = [e for e in waiting if key_of(e) == progress["last"]]
    if not wanted and not waiting:
        print("every exercise is done")
    return pick(space.manifest, wanted) if wanted else (last or waiting)[:1]


# %%
#| export
def _graded(space: Workspace, exercises: list[Exercise], limits: dict) -> int:
    """Grade, show and remember; return 0 when all passed."""
    wrong = 0
    for exercise in exercises:
        path, key = space.file(exercise.chapter), key_of(exercise)
        verdict = grade_file(space.root, path, exercise.chapter, exercise.name, **limits)
        show(exercise, path, verdict)
        progress = space.progress()  # read late: a second terminal may have written meanwhile
        progress["tries"][key] = progress["tries"].get(key, 0) + (verdict.outcome != "todo")
        progress["last"] = key
        if verdict.outcome == "passed":
            progress["done"].setdefault(key, date.today().isoformat())
        else:
            wrong += 1
        space.remember(progress)
    return 1 if wrong else 0


def _grade(arguments: argparse.Namespace) -> int:
    space = _space()
    limits = {"seconds": arguments.seconds, "memory_mb": arguments.memory_mb}
    return _graded(space, _chosen(space, arguments.exercise), limits)


# %%
#| export
def _start(arguments: argparse.Namespace) -> int:
    root = _root()
    folder = Path(arguments.folder) if arguments.folder else root / DEFAULT
    created, lacking = start_workspace(root, folder, arguments.notebooks)
    folder = shortest(folder)
    print(f"{folder}: {len(created)} new files; what was there is as it was")
    for key in lacking:
        print(f"  your file has no {key}: course reset {key} appends it")
    if created:
        print(
            f"go on: cd {folder}, open start.py, then `course grade start`; `course status` is the map"
        )
    return 0


def _hint(arguments: argparse.Namespace) -> int:
    space = _space()
    for exercise in _chosen(space, arguments.exercise):
        progress, key = space.progress(), key_of(exercise)
        rung = min(progress["hints"].get(key, 0) + 1, len(exercise.hints))
        progress["hints"][key], progress["last"] = rung, key
        for number, hint in enumerate(exercise.hints[:rung], 1):
            say(f"{key}, hint {number} of {len(exercise.hints)}: {hint}", "cyan")
        if rung == len(exercise.hints):
            say(f"that was the last; course solution {key} --anyway shows an answer")
        space.remember(progress)
    return 0


def _solution(arguments: argparse.Namespace) -> int:
    space, hidden = _space(), 0
    for exercise in pick(space.manifest, arguments.exercise):
        key = key_of(exercise)
        if key not in space.progress()["done"] and not arguments.anyway:
            print(
                f"{key}: shown once you passed it, or with --anyway; course hint {key} helps first"
            )
            hidden = 1
            continue
        mine = function_source(space.file(exercise.chapter), exercise.name)
        other = function_source(space.root / f"solutions/{exercise.chapter}.py", exercise.name)
        say(f"--- yours: {key}", "bold")
        say(mine or "(not there)")
        say(f"--- one solution: {key}", "bold")
        say(other)
    return hidden


def _reset(arguments: argparse.Namespace) -> int:
    space = _space()
    chosen = pick(space.manifest, arguments.exercise)
    if "." not in arguments.exercise:
        names = " or ".join(map(key_of, chosen))
        print(f"one exercise at a time: {names}", file=sys.stderr)
        return 2
    exercise = chosen[0]
    path = space.file(exercise.chapter)
    fresh = space.root / f"exercises/{exercise.chapter}.py"
    backup = reset_exercise(path, fresh, exercise.name)
    progress = space.progress()
    for table in ("done", "hints", "tries"):
        progress[table].pop(key_of(exercise), None)
    space.remember(progress)
    print(f"{key_of(exercise)} is as new in {path}; your file as it was: {backup}")
    return 0


# %%
#| export
def _status(arguments: argparse.Namespace) -> int:
    space = _space()
    manifest, done = space.manifest, space.progress()["done"]
    ordered = in_order(manifest)
    waiting = [e for e in ordered if key_of(e) not in done]
    for part, chapters in manifest.by_part().items():
        own = {c.slug: [e for e in ordered if e.chapter == c.slug] for c in chapters}
        if arguments.markdown and any(own.values()):
            print(f"\n**{part}**\n")
        elif not arguments.markdown:
            say(part if chapters else f"{part}: to come", "bold")
        for slug, exercises in own.items():
            if not exercises and not arguments.markdown:
                print(f"  {slug:14}to read")
            for e in exercises:
                mark = "x" if key_of(e) in done else " "
                if arguments.markdown:
                    print(f"- [{mark}] {key_of(e)}")
                else:
                    arrow = "  <- next" if waiting and e is waiting[0] else ""
                    row = f"  {slug:14}[{mark}] {e.name:24}{e.minutes:>3} min{arrow}"
                    say(row, "green" if mark == "x" else None)
    left = sum(e.minutes for e in waiting)
    print(f"\n{len(ordered) - len(waiting)} of {len(ordered)} done, about {left} minutes left")
    if waiting and not arguments.markdown:
        path = shortest(space.folder / f"{waiting[0].chapter}.py")
        print(f"next: {path}, then course grade {key_of(waiting[0])}")
    return 0


# %% [markdown]
# `watch` looks at the time stamps once in half a second. File systems that tell of changes exist, and
# those that do not are where learners often are: network folders, containers.


# %%
#| export
def changed_files(folder: Path, seen: dict[Path, tuple]) -> list[Path]:
    """List the scripts and notebooks that were saved since the last call.

    Args:
        folder: where to look.
        seen: path -> time and size; updated in place.
    """
    now = {}
    for ending in ("*.py", "*.ipynb"):
        for path in folder.glob(ending):
            try:
                stat = path.stat()
            except FileNotFoundError:  # an editor is just replacing it
                continue
            now[path] = (stat.st_mtime_ns, stat.st_size)
    changed = [path for path, state in now.items() if seen.get(path) != state]
    seen.update(now)
    return sorted(changed)


def _watch(arguments: argparse.Namespace) -> int:
    space, seen = _space(), {}
    changed_files(space.folder, seen)
    print(f"watching {space.folder}: save a file and it is graded; Ctrl-C ends", flush=True)
    while True:
        time.sleep(0.5)
        for path in changed_files(space.folder, seen):
            own = [e for e in space.manifest.exercises if e.chapter == path.stem]
            try:
                _graded(space, own, {})
            except (CourseError, ValueError) as error:
                print(error)
            sys.stdout.flush()


# %%
#| export
def grade(wanted: str) -> None:
    """Grade, in a notebook, what its cells define so far; shows what `course grade` shows.

    Args:
        wanted: "slug.name".

    Raises:
        CourseError: no such exercise.
        RuntimeError: called outside IPython.
    """
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is None:
        raise RuntimeError("grade() reads a notebook's cells; in a terminal use `course grade`")
    history = shell.history_manager.input_hist_parsed
    text = "".join(
        f"# %%\n{source}\n\n" for source in history if "def " in source or "import" in source
    )
    root = library_root()
    with tempfile.TemporaryDirectory(prefix="course-cells-") as place:
        path = Path(place, "notebook.py")
        path.write_text(text, encoding="utf-8")
        for exercise in pick(read_manifest(root), wanted):
            verdict = grade_file(root, path, exercise.chapter, exercise.name)
            show(exercise, path, verdict)


# %%
#| export
def _commands(commands: argparse._SubParsersAction) -> None:
    """Add the learner's commands to those of the course tool."""
    command = commands.add_parser("start", help="make a workspace, or add what is new to it")
    command.add_argument("folder", nargs="?", metavar="DIR", help=f"{DEFAULT} when none is given")
    command.add_argument("--notebooks", action="store_true", help="notebooks instead of scripts")
    command.set_defaults(run=_start)
    command = commands.add_parser("status", help="what is done, what is next, what is left")
    command.add_argument("--markdown", action="store_true", help="a list to share")
    command.set_defaults(run=_status)
    command = commands.add_parser("grade", help="grade a chapter's exercises, or one")
    command.add_argument(
        "exercise", nargs="?", metavar="SLUG[.NAME]", help="the last one, or the next"
    )
    command.add_argument("--seconds", type=float, default=60.0, help="the time limit")
    command.add_argument("--memory-mb", type=int, default=4000, help="the limit on memory")
    command.set_defaults(run=_grade)
    command = commands.add_parser("hint", help="the next hint")
    command.add_argument("exercise", nargs="?", metavar="SLUG[.NAME]")
    command.set_defaults(run=_hint)
    command = commands.add_parser("solution", help="an answer beside yours")
    command.add_argument("exercise", metavar="SLUG[.NAME]")
    command.add_argument("--anyway", action="store_true", help="before you passed it")
    command.set_defaults(run=_solution)
    command = commands.add_parser("reset", help="one exercise as new; your file is kept")
    command.add_argument("exercise", metavar="SLUG.NAME")
    command.set_defaults(run=_reset)
    command = commands.add_parser("watch", help="grade whatever you save")
    command.set_defaults(run=_watch)


def main(arguments: list[str] | None = None) -> int:
    """Run the `course` command with everything it can do.

    Args:
        arguments: the words after `course`; None takes them from the command line.

    Returns:
        0 for passed, 1 for not yet, 2 when the command could not do what was asked.
    """
    return run_command(arguments, _commands)


# %%
# NBVAL_CHECK_OUTPUT
import shutil

here = Path.cwd()
os.chdir(folder)
assert main(["grade", "toy"]) == 1
assert main(["hint"]) == 0
assert main(["solution", "toy.doubled"]) == 1
assert main(["status"]) == 0
os.chdir(here)
shutil.rmtree(root)

# %% [markdown]
# ## What goes wrong
#
# - **A signal instead of a process.** `signal.alarm` looks simpler than a second process. It cannot
#   interrupt a matrix product, it does not survive `except BaseException`, and memory that an answer
#   took stays taken.
# - **A limit on address space.** `RLIMIT_AS` counts what is reserved, and torch reserves gigabytes
#   that it never touches. So the parent looks at resident memory.
# - **Verdicts on standard output.** The answer may print there too, and what it prints can look like
#   a verdict. The verdict has a file of its own.
#
# This is a fence against accidents: an answer that means harm can still write the learner's files,
# which are the learner's to harm. Code of strangers, such as a model's, needs the sandbox of a later
# chapter.
#
# ## Recap
#
# A workspace that only grows, a process that may die, a verdict in a file, and wrong answers that
# were written down once and now explain others.
#
# Now in the library: `nanochat_lib.course.workspace`, `referee`, `grading`, `one_exercise`,
# `talk` and `learn`. The exercise asks for the smallest example that goes wrong.
