"""Grade the exercises of the capstone chapter."""

import math
import random


def simulated_loss(interval: float, save: float, life: float) -> float:
    """Play a run that dies at random, and return the share of time that brought nothing."""
    rng, useful, spent = random.Random(0), 0.0, 0.0
    for _ in range(20_000):
        death = rng.expovariate(1 / life)
        useful += interval * (death // (interval + save))
        spent += death
    return 1 - useful / spent


def grade_save_interval(module) -> None:
    """The derived optimum, and a simulation that knows no formula."""
    for save, life in ((1.0, 10_000.0), (30.0, 86_400.0), (0.2, 3_600.0)):
        interval, lost = module.save_interval(save, life)
        assert math.isclose(interval, math.sqrt(2 * save * life), rel_tol=1e-6), (
            f"{interval:.1f} s for c={save}, m={life}: set the derivative of c/t + t/(2m) to zero"
        )
        assert math.isclose(lost, math.sqrt(2 * save / life), rel_tol=1e-6), (
            f"lost share {lost:.5f}: put the interval into c/t + t/(2m), both terms"
        )
    interval, lost = module.save_interval(1.0, 10_000.0)
    assert abs(simulated_loss(interval, 1.0, 10_000.0) - lost) < 0.002
    for other in (interval / 3, interval * 3):
        assert simulated_loss(other, 1.0, 10_000.0) > simulated_loss(interval, 1.0, 10_000.0)


def grade_stages_to_run(module) -> None:
    """Chains, diamonds and results that stay the same on one side only."""
    run = module.stages_to_run
    chain = {"a": (), "b": ("a",), "c": ("b",), "d": ("c",)}
    assert run(chain, set(), set()) == [], "nothing was edited"
    assert run(chain, {"b"}, set()) == ["b", "c", "d"]
    assert run(chain, {"a"}, {"a"}) == ["a"], "a was edited, but its result stayed the same"
    assert run(chain, {"a"}, {"b"}) == ["a", "b"], "b's result is the same: c has no reason to run"
    assert run(chain, {"a", "d"}, {"b"}) == ["a", "b", "d"]
    assert run(chain, {"a"}, {"c", "d"}) == ["a", "b", "c"]
    diamond = {"a": (), "left": ("a",), "right": ("a",), "end": ("left", "right")}
    assert run(diamond, {"a"}, {"left"}) == ["a", "left", "right", "end"], "right still changed"
    assert run(diamond, {"a"}, {"left", "right"}) == ["a", "left", "right"]
    assert run(diamond, {"left"}, {"a"}) == ["left", "end"], "what does not run passes nothing on"


MUTANTS = {
    "save_interval": [
        """def save_interval(save_seconds, seconds_between_deaths):
    interval = math.sqrt(save_seconds * seconds_between_deaths)
    return interval, save_seconds / interval + interval / (2 * seconds_between_deaths)""",
        """def save_interval(save_seconds, seconds_between_deaths):
    interval = math.sqrt(2 * save_seconds * seconds_between_deaths)
    return interval, save_seconds / interval""",
        """def save_interval(save_seconds, seconds_between_deaths):
    interval = 2 * save_seconds
    return interval, save_seconds / interval + interval / (2 * seconds_between_deaths)""",
    ],
    "stages_to_run": [
        """def stages_to_run(needs, edited, same_result):
    running = []
    for stage, read in needs.items():
        if stage in edited or set(running).intersection(read):
            running.append(stage)
    return running""",
        """def stages_to_run(needs, edited, same_result):
    running = []
    for stage, read in needs.items():
        if stage in edited or set(running).intersection(read):
            if stage not in same_result:
                running.append(stage)
    return running""",
        """def stages_to_run(needs, edited, same_result):
    running, changed = [], set(edited)
    for stage, read in needs.items():
        if stage in edited or changed.intersection(read):
            running.append(stage)
            if stage not in same_result:
                changed.add(stage)
    return running""",
    ],
}
