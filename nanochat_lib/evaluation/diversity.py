# Generated from chapters/18_identity.py by `course build`; edit that file.
"""How varied texts are: distinct n-grams, their entropy, near-duplicates."""

import math
import re
from collections import Counter, defaultdict

__all__ = ["ngrams", "distinct_n", "ngram_entropy", "near_duplicates"]


def ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    """List the word n-grams of a text, lower case; one shorter n-gram if it has fewer words."""
    words = re.findall(r"\w+", text.lower())
    return [tuple(words[i : i + n]) for i in range(max(1, len(words) - n + 1))]


def distinct_n(texts: list[str], n: int = 2) -> float:
    """Divide the number of different n-grams by the number of all.

    Raises:
        ValueError: there is no text.
    """
    grams = [gram for text in texts for gram in ngrams(text, n)]
    if not grams:
        raise ValueError("no texts: diversity of nothing is not defined")
    return len(set(grams)) / len(grams)


def ngram_entropy(texts: list[str], n: int = 2) -> float:
    """Compute the entropy of the n-grams of all texts, in bits."""
    counts = Counter(gram for text in texts for gram in ngrams(text, n))
    total = counts.total()
    return -sum(count / total * math.log2(count / total) for count in counts.values())


def near_duplicates(texts: list[str], threshold: float = 0.7, n: int = 2) -> float:
    """Find the share of texts that have another text whose n-grams overlap with theirs.

    Args:
        texts: in any order.
        threshold: least Jaccard similarity of two sets of n-grams: what both have, over what either has.
        n: words of an n-gram.

    Returns:
        A share between 0 and 1.
    """
    sets = [frozenset(ngrams(text, n)) for text in texts]
    holders: dict[tuple[str, ...], list[int]] = defaultdict(list)  # n-gram -> texts before this
    near = set()
    for i, grams in enumerate(sets):
        shared = Counter(j for gram in grams for j in holders[gram])
        for j, both in shared.items():
            if both / (len(grams) + len(sets[j]) - both) >= threshold:
                near |= {i, j}
        for gram in grams:
            holders[gram].append(i)
    return len(near) / max(1, len(texts))
