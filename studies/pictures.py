"""Draw the pictures of the README: the pipeline, a learner's first minutes in a terminal, and the page.

`make pictures` writes figures/pipeline.svg and figures/learner.svg. The terminal is not staged: the commands
run in a new workspace, and what they print is what the picture shows. Nor is the page: where there is a run and a
Chromium, figures/page.png shows the newest run, exported as a file, at its answers.
"""

import os
import re
import shutil
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


QUESTIONS = (
    "How many r are in strawberry?",
    "Tom has 12 apples and buys 30 more. How many apples does he have?",
)


def page() -> dict[str, bytes]:
    """Talk to the newest run in a browser; picture the page, its tokens in the dark, and what a head reads."""
    from playwright.sync_api import sync_playwright

    from nanochat_lib.serving.one_file import ExportConfig, export_html

    found = {}
    with TemporaryDirectory() as folder, sync_playwright() as playwright:
        path = export_html(ExportConfig(output=Path(folder) / "page.html"))
        program = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        for theme, width in (("light", 1000), ("dark", 1000), ("narrow", 390)):
            scheme = "dark" if theme == "dark" else "light"
            size = {"width": width, "height": 640}
            sheet = browser.new_page(viewport=size, color_scheme=scheme)
            sheet.goto(path.as_uri())
            for question in QUESTIONS:
                sheet.fill("#text", question)
                sheet.keyboard.press("Enter")
                sheet.wait_for_selector("#send:visible")
            sheet.fill("#text", "Where does Mia live?")
            sheet.locator("details.step summary").first.click()
            if theme == "dark":
                sheet.locator("#inspect").check()
            sheet.locator("#cut span").first.wait_for()
            if theme == "dark":  # the token of the first answer that the model was least sure of
                doubt = "(odds => odds.indexOf(Math.min(...odds)))(path()[1].tokens.map((t) => t.logprob))"
                sheet.locator(".token").nth(sheet.evaluate(doubt)).hover()
            found[f"page_{theme}.png"] = sheet.screenshot()
            if theme == "light":
                sheet.get_by_role("button", name="Look inside").last.click()
                found["page_inside.png"] = sheet.locator("#inside").screenshot()
        browser.close()
    return found


if __name__ == "__main__":
    figures = library_root() / "figures"
    atomic_write(figures / "pipeline.svg", pipeline())
    atomic_write(figures / "learner.svg", learner())
    for name, picture in page().items():
        atomic_write(figures / name, picture)
