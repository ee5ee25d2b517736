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
    free = {"a": set(), "b": {"a"}, "z": set()}
    said = module.rebuild_order({"a", "z"}, free)
    assert said == ["a", "b", "z"], f"got {said}: once a is done, b comes before z in the alphabet"
    before = {module_: set(found) for module_, found in graph.items()}
    assert graph == before, "the graph belongs to the caller"


def grade_shared_digits(module) -> None:
    """Rounding, not cutting; frames that differ; signs, whole numbers and several runs."""
    cases = [
        (["no numbers"], "no numbers"),
        (["a 1.25 b"], "a 1.25 b"),
        (["loss 2.1834", "loss 2.1782"], "loss 2.18"),
        (["1.999", "2.001"], "2.00"),
        (["0.4", "0.6"], "?"),
        (["-0.26 up", "-0.31 up"], "-0.3 up"),
        (["1.5", "1.50"], "1.5"),
        (["12 of 60", "12 of 60"], "12 of 60"),
        (["x 3 y 0.517", "x 3 y 0.522"], "x 3 y 0.52"),
        (["took 12 s", "took 45 s"], "took ? s"),
        (["2.18", "2.19", "2.31"], "2"),
        (["1.0 2.0 3.0", "1.0 2.4 9.0"], "1.0 2 ?"),
        (["", ""], ""),
    ]
    for runs, want in cases:
        got = module.shared_digits(list(runs))
        assert got == want, f"{runs}: got {got!r}, expected {want!r}"
    for runs in (["loss 2.1", "cost 2.1"], ["1 2", "1"], ["a", "a", "b"]):
        try:
            module.shared_digits(list(runs))
        except ValueError as error:
            assert runs[-1] in str(error), f"the message does not show the run: {error}"
            continue
        raise AssertionError(f"runs that differ in more than numbers were accepted: {runs}")


MUTANTS = {
    "rebuild_order": [
        """def rebuild_order(edited, graph):
    '''Look one step down only: what imports an importer is affected too.'''
    return sorted(m for m in graph if m in edited or graph[m] & edited)
""",
        """def rebuild_order(edited, graph):
    '''List what is affected in alphabetical order, whatever imports what.'''
    return sorted(m for m in graph if edited & (reachable({m}, graph) | {m}))
""",
        """def rebuild_order(edited, graph):
    '''Go level by level: all that is free at once, then all that this sets free.'''
    waiting = {m for m in graph if edited & (reachable({m}, graph) | {m})}
    order = []
    while waiting:
        free = sorted(m for m in waiting if not graph[m] & waiting)
        order += free
        waiting -= set(free)
    return order
""",
        """def rebuild_order(edited, graph):
    '''Forget the edited modules themselves.'''
    found = [m for m in graph if edited & (reachable({m}, graph) - {m})]
    return sorted(found, key=lambda m: (len(reachable({m}, graph)), m))
""",
    ],
    "shared_digits": [
        '''def shared_digits(runs):
    """Keep the beginning that the digits share: 1.999 and 2.001 then share nothing."""
    number = re.compile(r"-?[0-9]+(?:[.][0-9]+)?")
    frame = number.split(runs[0])
    for run in runs:
        if number.split(run) != frame:
            raise ValueError(f"{run!r}")
    import os.path
    shared = [os.path.commonprefix(v).rstrip(".") or "?" for v in zip(*map(number.findall, runs))]
    return "".join(a + b for a, b in zip(frame, [*shared, ""]))
''',
        '''def shared_digits(runs):
    """Compare the first two runs only."""
    number = re.compile(r"-?[0-9]+(?:[.][0-9]+)?")
    frame = number.split(runs[0])
    for run in runs:
        if number.split(run) != frame:
            raise ValueError(f"{run!r}")
    shared = []
    for versions in zip(*(number.findall(run) for run in runs[:2])):
        text = "?"
        for decimals in range(min(len(v.partition(".")[2]) for v in versions), -1, -1):
            rounded = {format(float(v), f".{decimals}f") for v in versions}
            if len(rounded) == 1:
                text = rounded.pop()
                break
        shared.append(text)
    return "".join(a + b for a, b in zip(frame, [*shared, ""]))
''',
        '''def shared_digits(runs):
    """Never look at what stands between the numbers."""
    number = re.compile(r"-?[0-9]+(?:[.][0-9]+)?")
    frame, shared = number.split(runs[0]), []
    for versions in zip(*(number.findall(run) for run in runs)):
        text = "?"
        for decimals in range(min(len(v.partition(".")[2]) for v in versions), -1, -1):
            rounded = {format(float(v), f".{decimals}f") for v in versions}
            if len(rounded) == 1:
                text = rounded.pop()
                break
        shared.append(text)
    return "".join(a + b for a, b in zip(frame, [*shared, ""]))
''',
    ],
}
