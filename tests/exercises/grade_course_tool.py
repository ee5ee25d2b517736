"""Grades the exercises of the course tool."""

import random


def grade_rebuild_order(module) -> None:
    diamond = {"d": {"b", "c"}, "c": {"a"}, "b": {"a"}, "a": set(), "z": set()}
    assert module.rebuild_order({"c"}, diamond) == ["c", "d"], "is c before d, which imports it?"
    assert module.rebuild_order({"a"}, diamond) == ["a", "b", "c", "d"]
    assert module.rebuild_order({"z"}, diamond) == ["z"], "an edited module is affected itself"
    assert module.rebuild_order(set(), diamond) == []
    deep = {f"m{n}": {f"m{n + 1}"} for n in range(9)} | {"m9": set()}
    said = module.rebuild_order({"m9"}, deep)
    assert said == [f"m{n}" for n in reversed(range(10))], "how far down do you look?"
    generator = random.Random(1)
    names = list("hgfedcba")
    graph = {n: set(generator.sample(names[:k], min(k, 2))) for k, n in enumerate(names)}
    order = module.rebuild_order({"h"}, graph)
    assert all(order.index(m) < order.index(n) for n in order for m in graph[n] if m in order)
    before = {module_: set(found) for module_, found in graph.items()}
    assert graph == before, "the graph belongs to the caller"


def grade_unused_exports(module) -> None:
    texts = {
        "m.a": '__all__ = ["one", "two", "three"]\none = two = three = 1\nprint(three)',
        "m.b": 'from nanochat_lib.m.a import one as uno\n__all__ = ["twofold"]\ntwofold = uno',
    }
    assert module.unused_exports(texts) == ["m.a.three", "m.a.two", "m.b.twofold"]
    texts["m.c"] = (
        "def f():\n    from nanochat_lib.m.a import (\n        two,\n        three,\n    )"
    )
    assert module.unused_exports(texts) == ["m.b.twofold"], "imports stand inside functions, too"
    own = {"m.a": 'from nanochat_lib.m.a import one\n__all__ = ["one"]'}
    assert module.unused_exports(own) == ["m.a.one"], "only other modules count"
    same = {"a": '__all__ = ["x"]', "b": '__all__ = ["x"]', "c": "from nanochat_lib.b import x"}
    assert module.unused_exports(same) == ["a.x"], "two modules may export the same name"


MUTANTS = {
    "rebuild_order": [
        # looks one step down only
        """def rebuild_order(edited, graph):
    return sorted(m for m in graph if m in edited or graph[m] & edited)
""",
        # everything that is affected, but in alphabetical order
        """def rebuild_order(edited, graph):
    return sorted(m for m in graph if edited & (reachable({m}, graph) | {m}))
""",
        # forgets the edited modules themselves
        """def rebuild_order(edited, graph):
    found = [m for m in graph if edited & (reachable({m}, graph) - {m})]
    return sorted(found, key=lambda m: (len(reachable({m}, graph)), m))
""",
    ],
    "unused_exports": [
        # searches the text of the others: "two" is in "twofold"
        """def unused_exports(texts):
    found = []
    for module, text in texts.items():
        others = "".join(other for name, other in texts.items() if name != module)
        for node in ast.parse(text).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                names = ast.literal_eval(node.value)
                found += [f"{module}.{name}" for name in names if name not in others]
    return sorted(found)
""",
        # compares names without their modules, and only at the top level
        """def unused_exports(texts):
    exported, imported = set(), set()
    for module, text in texts.items():
        for node in ast.parse(text).body:
            if isinstance(node, ast.ImportFrom):
                imported |= {alias.asname or alias.name for alias in node.names}
            elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                exported |= {(module, name) for name in ast.literal_eval(node.value)}
    return sorted(f"{m}.{n}" for m, n in exported if n not in imported)
""",
    ],
}
