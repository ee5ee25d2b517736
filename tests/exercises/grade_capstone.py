"""Grade the exercises of the capstone chapter."""

import math
import random

import pytest
import scipy.stats


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


def _lucky_train(luck: dict, gain: dict, calls: list):
    """Make a training in which the seed moves both versions alike, and b is better by its gain."""

    def train(version: str, seed: int) -> float:
        calls.append((version, seed))
        return luck[seed] + (gain[seed] if version == "a" else 0.0)

    return train


def grade_paired_gain(module) -> None:
    """Against scipy's interval; seeds must be paired, and each training run once."""
    rng = random.Random(0)
    for n in (2, 3, 5, 10):
        seeds = rng.sample(range(1_000), n)
        luck = {seed: rng.gauss(0, 10) for seed in seeds}
        gain = {seed: 0.5 + rng.gauss(0, 0.2) for seed in seeds}
        calls = []
        got = module.paired_gain(_lucky_train(luck, gain, calls), list(seeds))
        assert sorted(calls) == sorted((v, s) for v in "ab" for s in seeds), (
            f"trained {len(calls)} times for {n} seeds: each version once with each seed"
        )
        values = list(gain.values())
        low, high = scipy.stats.t.interval(
            0.95, n - 1, loc=sum(values) / n, scale=scipy.stats.sem(values)
        )
        want = (sum(values) / n, low, high)
        assert all(abs(a - b) < 2e-3 * max(1, abs(b)) for a, b in zip(got, want)), (
            f"{n} seeds with gains {[round(v, 3) for v in values]}: got {got}, expected {want}. The luck "
            "of a seed is large here, and cancels only within a pair"
        )
    for wrong in ([], [1], [1, 1], list(range(11))):
        with pytest.raises(ValueError):
            module.paired_gain(lambda version, seed: 1.0, wrong)


MUTANTS = {
    "save_interval": [
        """def save_interval(save_seconds, seconds_between_deaths):
    '''Lose a factor of 2: a death costs half an interval, not a whole one.'''
    interval = math.sqrt(save_seconds * seconds_between_deaths)
    return interval, save_seconds / interval + interval / (2 * seconds_between_deaths)""",
        """def save_interval(save_seconds, seconds_between_deaths):
    '''Forget what the deaths cost.'''
    interval = math.sqrt(2 * save_seconds * seconds_between_deaths)
    return interval, save_seconds / interval""",
        """def save_interval(save_seconds, seconds_between_deaths):
    '''Save as often as saving costs, whatever the machine's life.'''
    interval = 2 * save_seconds
    return interval, save_seconds / interval + interval / (2 * seconds_between_deaths)""",
    ],
    "stages_to_run": [
        """def stages_to_run(needs, edited, same_result):
    '''Let every stage that ran give the next ones a reason to run.'''
    running = []
    for stage, read in needs.items():
        if stage in edited or set(running).intersection(read):
            running.append(stage)
    return running""",
        """def stages_to_run(needs, edited, same_result):
    '''Skip a stage whose result would stay the same, even if it was edited.'''
    running = []
    for stage, read in needs.items():
        if stage in edited or set(running).intersection(read):
            if stage not in same_result:
                running.append(stage)
    return running""",
        """def stages_to_run(needs, edited, same_result):
    '''Count an edited stage as changed even if it does not run or comes out the same.'''
    running, changed = [], set(edited)
    for stage, read in needs.items():
        if stage in edited or changed.intersection(read):
            running.append(stage)
            if stage not in same_result:
                changed.add(stage)
    return running""",
    ],
    "paired_gain": [
        '''def paired_gain(train, seeds):
    """Treat both versions as separate samples: the luck of the seeds stays in."""
    n = len(seeds)
    if not 2 <= n <= 10 or len(set(seeds)) < n:
        raise ValueError("seeds")
    a, b = ([train(version, seed) for seed in seeds] for version in "ab")
    mean = sum(a) / n - sum(b) / n
    var = sum(sum((x - sum(v) / n) ** 2 for x in v) / (n - 1) for v in (a, b))
    half = T_95[n - 1] * math.sqrt(var / n)
    return mean, mean - half, mean + half
''',
        '''def paired_gain(train, seeds):
    """Give the spread of the gains instead of the error of their mean."""
    n = len(seeds)
    if not 2 <= n <= 10 or len(set(seeds)) < n:
        raise ValueError("seeds")
    gains = [train("a", seed) - train("b", seed) for seed in seeds]
    mean = sum(gains) / n
    half = T_95[n - 1] * math.sqrt(sum((g - mean) ** 2 for g in gains) / (n - 1))
    return mean, mean - half, mean + half
''',
        '''def paired_gain(train, seeds):
    """Use the normal distribution's 1.96, which is far too sure with few seeds."""
    n = len(seeds)
    if not 2 <= n <= 10 or len(set(seeds)) < n:
        raise ValueError("seeds")
    gains = [train("a", seed) - train("b", seed) for seed in seeds]
    mean = sum(gains) / n
    half = 1.96 * math.sqrt(sum((g - mean) ** 2 for g in gains) / (n - 1) / n)
    return mean, mean - half, mean + half
''',
    ],
}
