"""Draw the pictures of the README: the pipeline, and a learner's first minutes in a terminal.

`make pictures` writes figures/pipeline.svg and figures/learner.svg. The terminal is not staged: the commands
run in a new workspace, and what they print is what the picture shows.
"""

import os
import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib
from rich.console import Console
from rich.text import Text

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402

from nanochat_lib.common import atomic_write  # noqa: E402
from nanochat_lib.course.manifest import library_root  # noqa: E402

STAGES = (
    ("text", "documents,\nin order", "#e8eef7"),
    ("tokenizer", "text becomes\nnumbers", "#e8eef7"),
    ("pretraining", "predict the\nnext token", "#e6f3ea"),
    ("fine-tuning", "answer, and\ncall a tool", "#f3e6ef"),
    ("RL", "practise for\na reward", "#f3e6ef"),
    ("evaluation", "score, floor,\ninterval", "#f3e6ef"),
    ("chat", "in your\nterminal", "#f7efe2"),
)
EXERCISE = "text.resemblance"
WRONG = """    words_a, words_b = set(a.lower().split()), set(b.lower().split())
    return len(words_a & words_b) / len(words_a | words_b)
"""


def pipeline() -> bytes:
    """Draw the stages from left to right, with what each of them is for."""
    figure, axes = plt.subplots(figsize=(10.5, 1.7))
    for i, (name, what, colour) in enumerate(STAGES):
        box = plt.Rectangle((i, 0), 0.84, 1, facecolor=colour, edgecolor="#33558b", linewidth=1)
        axes.add_patch(box)
        axes.text(i + 0.42, 0.74, name, ha="center", va="center", size=10, weight="bold")
        axes.text(i + 0.42, 0.32, what, ha="center", va="center", size=8.5, color="#444444")
        if i + 1 < len(STAGES):
            arrow = dict(arrowstyle="-|>", color="#33558b")
            axes.annotate("", (i + 1, 0.5), (i + 0.84, 0.5), arrowprops=arrow)
    axes.set(xlim=(-0.05, len(STAGES) - 0.1), ylim=(-0.05, 1.05))
    axes.axis("off")
    with TemporaryDirectory() as folder:
        path = Path(folder) / "pipeline.svg"
        plt.rcParams["svg.hashsalt"] = "nanochat"  # the same ids each time
        figure.savefig(path, metadata={"Date": None}, bbox_inches="tight", facecolor="white")
        return path.read_bytes()


def solved(stub: str, answer: str) -> str:
    """Put an answer where a file says that the exercise is not solved."""
    return stub.replace(f'    raise NotImplementedError("exercise {EXERCISE}")\n', answer)


def learner() -> str:
    """Run the loop of a learner in a new workspace, and export what the terminal showed."""
    root = library_root()
    console = Console(record=True, width=88, file=open(os.devnull, "w", encoding="utf-8"))
    with TemporaryDirectory() as folder:
        place = Path(folder) / "my-course"

        def show(*arguments: str, where: Path = place, said: str | None = None) -> None:
            """Run a command of the tool, and copy it and its output to the picture."""
            console.print(Text(f"$ course {said or ' '.join(arguments)}", style="bold"))
            environment = os.environ | {"COLUMNS": "88", "NO_COLOR": "1"}
            done = subprocess.run(
                [sys.executable, "-m", "nanochat_lib.course.learn", *arguments],
                cwd=where,
                capture_output=True,
                encoding="utf-8",
                env=environment,
            )
            text = (done.stdout + done.stderr).replace(str(place), "my-course").rstrip()
            console.print(Text(text))

        show("start", str(place), where=root, said="start")
        console.print(Text("$ cd my-course     # and write an answer into text.py", style="bold"))
        file = place / "text.py"
        stub = file.read_text(encoding="utf-8")
        file.write_text(solved(stub, WRONG), encoding="utf-8")
        show("grade", EXERCISE)
        show("hint", EXERCISE)
        solution = (root / "solutions/text.py").read_text(encoding="utf-8")
        body = solution.split(f"#| exercise {EXERCISE.partition('.')[2]}\n", 1)[1]
        body = body.split("### BEGIN SOLUTION\n", 1)[1].split("    ### END SOLUTION", 1)[0]
        file.write_text(solved(stub, body), encoding="utf-8")
        console.print(Text("$ # a second try", style="bold"))
        show("grade", EXERCISE)
    picture = console.export_svg(title="a learner's first minutes", unique_id="learner")
    return re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL)  # no fonts from the net


if __name__ == "__main__":
    figures = library_root() / "figures"
    atomic_write(figures / "pipeline.svg", pipeline())
    atomic_write(figures / "learner.svg", learner())
