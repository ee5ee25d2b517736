"""Every exercise: the stub fails, the solution passes, and every plausible wrong answer fails."""

import ast
import importlib.util
from pathlib import Path

import pytest

from nanochat_lib.course.exercises import load_exercise, strip_solutions
from nanochat_lib.course.manifest import WORKSHOP, read_manifest

ROOT = Path(__file__).parents[2]
GRADERS = sorted((ROOT / "tests/exercises").glob("grade_*.py"))


def grader(slug: str):
    path = ROOT / f"tests/exercises/grade_{slug}.py"
    spec = importlib.util.spec_from_file_location(f"grade_{slug}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def names(slug: str) -> list[str]:
    return [name[6:] for name in vars(grader(slug)) if name.startswith("grade_")]


def slugs() -> list[str]:
    return [path.stem.removeprefix("grade_") for path in GRADERS]


@pytest.mark.parametrize("slug", slugs())
def test_stubs_fail(slug):
    module = load_exercise(ROOT / f"exercises/{slug}.py")
    for name in names(slug):
        with pytest.raises(NotImplementedError, match=f"exercise {slug}.{name}"):
            getattr(grader(slug), f"grade_{name}")(module)


@pytest.mark.parametrize("slug", slugs())
def test_solutions_pass_and_mutants_fail(slug):
    rules = grader(slug)
    solution = ROOT / f"solutions/{slug}.py"
    for name in names(slug):
        grade = getattr(rules, f"grade_{name}")
        grade(load_exercise(solution))
        assert len(rules.MUTANTS[name]) >= 2, f"{slug}.{name} needs two mutants"
        for mutant in rules.MUTANTS[name]:
            assert f"def {name}(" in mutant, f"a mutant of {slug}.{name} defines something else"
            # a grader that uses pytest.raises fails with an outcome, which is no Exception
            with pytest.raises((Exception, pytest.fail.Exception)) as caught:
                grade(load_exercise(solution, extra=mutant))
            assert not isinstance(caught.value, NameError | SyntaxError), "a broken mutant"


def test_breaking_only_the_learners_copy_turns_it_red(tmp_path):
    slug, name = slugs()[0], names(slugs()[0])[0]
    copy = tmp_path / f"{slug}.py"
    copy.write_text((ROOT / f"solutions/{slug}.py").read_text(encoding="utf-8"), encoding="utf-8")
    grade = getattr(grader(slug), f"grade_{name}")
    grade(load_exercise(copy))
    copy.write_text((ROOT / f"exercises/{slug}.py").read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(NotImplementedError):
        grade(load_exercise(copy))


def test_the_manifest_and_the_graders_name_the_same_exercises():
    listed = {(e.chapter, e.name) for e in read_manifest(ROOT).exercises}
    assert listed == {(slug, name) for slug in slugs() for name in names(slug)}


def test_every_chapter_on_ideas_has_an_experiment_and_there_is_enough_to_do():
    manifest = read_manifest(ROOT)
    ideas = [chapter.slug for chapter in manifest.chapters if chapter.part != WORKSHOP]
    for slug in ideas:
        text = (ROOT / f"solutions/{slug}.py").read_text(encoding="utf-8")
        assert "# **Experiment.** " in text, f"{slug}: nothing to change, train and measure"
    assert len(manifest.exercises) >= 45


@pytest.mark.parametrize("slug", slugs())
def test_every_wrong_answer_says_what_is_wrong_with_it(slug):
    """The learner's tool shows this line to whoever makes the same mistake."""
    for name, mutants in grader(slug).MUTANTS.items():
        for mutant in mutants:
            functions = [f for f in ast.parse(mutant).body if isinstance(f, ast.FunctionDef)]
            [own] = [f for f in functions if f.name == name]
            assert ast.get_docstring(own), f"{slug}.{name}: a wrong answer without a docstring"


def test_stripping_takes_the_region_and_nothing_else():
    text = (
        "# %%\nimport math\n\n\n# %%\n#| exercise half\ndef half(x):\n    '''Halve.'''\n"
        "    if x:\n        ### BEGIN SOLUTION\n        y = x\n        return y / 2\n"
        "        ### END SOLUTION\n    return 0\n\n\n# %%\nassert half(2) == 1\n"
    )
    stripped = strip_solutions("solutions/x.py", "x", text)
    assert stripped == text.replace(
        "        ### BEGIN SOLUTION\n        y = x\n        return y / 2\n        ### END SOLUTION\n",
        '        raise NotImplementedError("exercise x.half")\n',
    )
