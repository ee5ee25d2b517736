# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Text: a corpus you can stop and resume
#
# A model learns to write from what it reads. The large profile reads 54 billion bytes, more than
# the memory of the machine, for hours, in eight processes at once; and somewhere in the middle the
# power fails. How do we hand out that text so that after the restart every process goes on with the
# very next document: none twice, none skipped?
#
# This chapter builds the reader, and looks at what it reads:
#
# ```python
# stream = stream_documents(list_shards("corpus"), start=Position(epoch=0, shard=3, row=1410))
# text, position = next(stream)            # position says where to resume after this text
# ```
#
# It needs the ranks of the first chapter and pyarrow, a library for files of columns. On a laptop
# it takes about 15 seconds.

# %%
#| default_exp data.files
# Which files of a folder hold data, and JSON out of them, line by line.

# %%
#| default_exp data.parquet
# Parquet files of text: a shard written whole, one row group read alone.

# %%
#| default_exp data.documents
# Documents: where text comes from, and how to store, stream and resume a corpus.

# %% [markdown]
# ## Four documents, by hand
#
# A *document* is one text that somebody wrote as a whole: a page, a story, an answer. A *corpus* is
# a sequence of documents. The boundary matters: what follows the end of a page has nothing to do
# with it, and a model that never sees where one ends learns connections that are not there.
#
# Put four documents into two files of two. To say where a reader stands we need two numbers, the
# file and the row; and a third one, because we may read the corpus more than once. Positions then
# compare like words in a dictionary: first by *epoch* (the count of complete passes), then by
# *shard* (the field's word for such a file), then by row.

# %%
#| export
from dataclasses import dataclass


# %%
#| export
@dataclass(frozen=True, order=True)
class Position:
    """Say which document of a corpus comes next; positions compare in reading order.

    Args:
        epoch: how many times the corpus has been read to its end.
        shard: index in the list of shards.
        row: index of the document in the shard.
    """

    epoch: int = 0
    shard: int = 0
    row: int = 0


# %%
files = [["a", "b"], ["c", "d"]]
order = [Position(epoch, shard, row) for epoch in (0, 1) for shard in (0, 1) for row in (0, 1)]
assert order == sorted(order)
assert Position(0, 1, 1) < Position(1, 0, 0)  # "d" comes before the second reading of "a"

# %% [markdown]
# A position is a *promise about what comes next*, not a note of what was read last. After "b" we
# store either (0, 0, 2), one past the end of the first file, or (0, 1, 0). Both promise "c", and a
# reader must treat them alike. We will test that.
#
# ## Text without a download
#
# Real text first. Every Python installation carries some: the help topics of the language
# reference, and the docstrings of the standard library. It is technical, but it is English, written
# by hundreds of people over thirty years, and it is on your disk.
#
# To collect docstrings we do not import the modules (importing runs code, and `import antigravity`
# opens a browser) but parse them: `ast.parse` turns source into a tree, and a docstring is the
# first statement of a module, class or function.

# %%
#| export
import ast
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path


# %%
#| export
def docstrings(source: bytes | str) -> Iterator[str]:
    """Read the docstrings of a Python file, its classes and their functions, top to bottom."""
    nodes: list[ast.AST] = [ast.parse(source)]
    while nodes:
        node = nodes.pop()
        text = ast.get_docstring(node)
        if text:
            yield text
        inner = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        nodes.extend(child for child in reversed(node.body) if isinstance(child, inner))


# %% [markdown]
# The list is a stack: the node on top is taken off and its children are put on, in reverse so that
# the first comes out first.

# %%
source = '''
"""A module."""
class Cat:
    """An animal."""
    def meow(self):
        """Make a noise."""
def feed(cat): """Give food."""
'''
assert list(docstrings(source)) == ["A module.", "An animal.", "Make a noise.", "Give food."]

# %% [markdown]
# The whole library, then, without its tests and without the tables of character sets, which hold no
# sentences.

# %%
#| export
SKIPPED_FOLDERS = frozenset(
    "site-packages dist-packages test tests idle_test idlelib lib2to3 distutils ensurepip "
    "turtledemo encodings pydoc_data __pycache__".split()
)


# %%
#| export
def python_docs() -> Iterator[str]:
    """Read the English that every Python installation carries: help topics, then docstrings.

    The documents come in an order that depends on the Python version only: topics by name, then
    docstrings by file and line. Nothing is imported or run: each source file of the standard
    library is parsed.

    Returns:
        About 7,000 documents, 2 MB. The first 80 (topics) take no time, the rest 3 seconds.
    """
    from pydoc_data.topics import topics  # half a megabyte that nobody else needs

    for name in sorted(topics):
        yield topics[name]
    library = Path(sysconfig.get_path("stdlib"))
    for entry in sorted(library.iterdir()):
        if entry.name not in SKIPPED_FOLDERS:  # never walk site-packages, which may be huge
            for source in [entry] if entry.suffix == ".py" else sorted(entry.rglob("*.py")):
                if not SKIPPED_FOLDERS & set(source.relative_to(library).parts):
                    yield from docstrings(source.read_bytes())


# %%
documents = list(python_docs())
corpus_bytes = sum(len(text.encode("utf-8")) for text in documents)
print(f"{len(documents):,} documents, {corpus_bytes / 1e6:.2f} MB")
assert len(documents) > 5_000 and corpus_bytes > 1.5e6

# %%
shortest = min(documents, key=len)
longest = max(documents, key=len)
print(repr(shortest), len(longest), repr(longest[:100]))

# %% [markdown]
# How much is that? The laptop profile reads a few megabytes. GPT-2 (2019) read 40 GB, which is
# 20,000 times as much, and FineWeb, the open corpus that today's small models start from, holds 15
# trillion tokens, about a thousand times more again. Everything below must work for them all, so
# nothing may ever hold the corpus in memory.
#
# ## What text looks like
#
# Two facts about text hold for every natural corpus, and both have consequences for us. The first
# is about lengths.

# %%
import matplotlib.pyplot as plt
import numpy as np

lengths = np.sort([len(text.encode("utf-8")) for text in documents])
shares_of_documents = np.arange(1, len(lengths) + 1) / len(lengths)
shares_of_bytes = np.cumsum(lengths) / lengths.sum()
print(f"median {np.median(lengths):.0f} bytes, mean {lengths.mean():.0f} bytes")
assert lengths.mean() > 2 * np.median(lengths)

# %%
# alt: two rising curves over document length; documents rise early, bytes rise late.
figure, axes = plt.subplots(figsize=(6.5, 3))
axes.semilogx(lengths, 100 * shares_of_documents, color="#33558b")
axes.semilogx(lengths, 100 * shares_of_bytes, color="#c4651d")
axes.text(7, 70, "of the documents", color="#33558b")
axes.text(1_300, 45, "of the bytes", color="#c4651d")
axes.set(xlabel="document length (bytes)", ylabel="share up to this length (%)")
axes.grid(alpha=0.3)
figure.tight_layout()
plt.show()

# %% [markdown]
# *Read both curves at 300 bytes: four documents in five are shorter, yet together they hold little
# more than a quarter of the text. Most documents are short, and most bytes are in long ones.*

# %%
short = lengths <= 300
in_short = lengths[short].sum() / lengths.sum()
print(f"{short.mean():.0%} of the documents hold {in_short:.0%} of the bytes")
assert short.mean() > 0.7 and in_short < 0.4

# %% [markdown]
# So "a batch of 32 documents" is no unit of work: it may be 2 KB or 200. The loader of the
# pretraining chapter will pack documents into rows of equal length. And whoever divides a corpus
# among processes should deal out many small portions rather than a few large ones, so that luck
# evens out.
#
# The second fact is about words. Count them, and sort the counts.

# %%
import re
from collections import Counter

words = Counter(word for text in documents for word in re.findall(r"[a-z]+", text.lower()))
frequencies = np.array([n for _, n in words.most_common()])
print(f"{len(words):,} different words in {frequencies.sum():,};", words.most_common(5))

# %%
ranks_of_words = np.arange(1, len(frequencies) + 1)
fitted = np.geomspace(1, 2_000, 30).astype(int) - 1  # every power of ten weighs the same
slope, offset = np.polyfit(np.log(ranks_of_words[fitted]), np.log(frequencies[fitted]), 1)
once = (frequencies == 1).mean()
print(f"slope {slope:.2f}; {once:.0%} of the words occur once")
assert -1.4 < slope < -0.7

# %%
# alt: word counts against rank on two logarithmic axes, close to a falling straight line.
figure, axes = plt.subplots(figsize=(6.5, 3))
axes.loglog(ranks_of_words, frequencies, ".", color="#33558b", markersize=3)
axes.loglog(ranks_of_words, np.exp(offset) * ranks_of_words**slope, color="grey")
for place in (1, 10, 100, 1_000):
    word = words.most_common(place)[-1][0]
    axes.annotate(word, (place, frequencies[place - 1]), xytext=(4, 5), textcoords="offset points")
axes.set(xlabel="rank of the word", ylabel="how often it occurs", ylim=(0.7, None))
axes.grid(alpha=0.3)
figure.tight_layout()
plt.show()

# %% [markdown]
# *Zipf's law: the word of rank r occurs about 1/r as often as the first, over three powers of ten.
# Notice the flat steps at the lower right: they are the words seen once, twice, three times.*
#
# A third or so of all the words occurs a single time, and however much more we read, new ones keep
# coming. That is why the next chapter cuts text into pieces smaller than words, and why the chapter
# after it cannot rely on counts alone.
#
# ## Duplicates
#
# Web pages are copied, and so are docstrings. A text that the model sees ten times it learns by
# heart instead of learning from; and a copy that falls into the test set turns the test into a
# memory check.

# %%
copies = Counter(documents)
extra = sum(n - 1 for n in copies.values())
print(f"{extra} documents are copies; the most copied:", copies.most_common(2))
assert extra > 0

# %% [markdown]
# The `Counter` held all texts in memory. It is enough to hold a short hash of each: among n texts,
# two different ones share all 128 bits with a probability of about $n^2/2^{129}$, which for a
# billion documents is $10^{-21}$.

# %%
#| export
import hashlib
import re

from nanochat_lib.common import replace_surrogates


# %%
#| export
def drop_duplicates(documents: Iterable[str]) -> Iterator[str]:
    """Pass each different document once, the first time it comes.

    Keeps 16 bytes a document instead of its text, so the memory grows with the number of documents
    alone.
    """
    seen = set()
    for text in documents:
        digest = hashlib.blake2b(replace_surrogates(text).encode("utf-8"), digest_size=16).digest()
        if digest not in seen:
            seen.add(digest)
            yield text


# %%
assert list(drop_duplicates(["a", "b", "a", "c", "b"])) == ["a", "b", "c"]
unique = list(drop_duplicates(documents))
assert unique == list(dict.fromkeys(documents))  # the slow way agrees, order included
print(f"{len(unique):,} of {len(documents):,} are left")

# %% [markdown]
# Copies with one changed word slip through. Finding those is a subject of its own (the exercise
# measures how alike two texts are); exact copies are the cheap part that everybody should do.
#
# ## What goes wrong: a line that is two lines
#
# Data sets travel as *JSON lines*: one JSON value a line. So we split at line ends and parse. Here
# is a file with one document in it, which quotes a web page that contains the character U+2028,
# "line separator". JSON allows it inside a string, as it is.

# %%
import json
import tempfile

folder = Path(tempfile.mkdtemp())
page = {"text": "First line\N{LINE SEPARATOR}second line, in a caf\xe9"}
(folder / "pages.jsonl").write_text(json.dumps(page, ensure_ascii=False) + "\n", encoding="utf-8")

# %%
# NBVAL_CHECK_OUTPUT
lines = (folder / "pages.jsonl").read_text(encoding="utf-8").splitlines()
print(len(lines))
try:
    json.loads(lines[0])
except json.JSONDecodeError as error:
    print(error.msg)
print((folder / "pages.jsonl").read_text(encoding="latin-1")[-9:-3])

# %% [markdown]
# `str.splitlines` splits where *Unicode* ends a line: besides "\n" at nine other characters. A JSON
# lines file ends a line with "\n". Real benchmark files wake the bug up: one record of a published
# TriviaQA sample holds U+0085. The last line above is its sibling: without `encoding=`, Python reads
# text in the machine's locale, here Latin-1, and raises no error. We read bytes, as UTF-8.

# %%
#| export data.files
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa


# %%
#| export data.files
def numbered_json(path: Path | str) -> Iterator[tuple[int, object]]:
    """Read pairs of line number and JSON value, from a plain or a compressed file."""
    with io.BufferedReader(pa.input_stream(str(path), compression="detect")) as file:
        for number, line in enumerate(file, start=1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")  # a BOM is dropped
                if text.strip():
                    yield number, json.loads(text)
            except UnicodeDecodeError as error:
                guess = "UTF-16" if b"\0" in line else "Latin-1"
                raise ValueError(
                    f"{path}, line {number} is not UTF-8 at byte {error.start} ({guess}?): convert it"
                ) from error
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number} is no JSON: {error}") from error


# %%
#| export
def read_json_lines(path: Path | str) -> Iterator[dict | list]:
    """Read a file with one JSON value a line, as the Hugging Face hub spells data sets.

    Args:
        path: taken literally; .gz, .bz2 and .zst are decompressed.

    Raises:
        ValueError: a line is no JSON or not UTF-8, with its number.

    Source: https://jsonlines.org: the line end is "\\n", not every character Unicode calls a line
        end.
    """
    for _, value in numbered_json(path):
        yield value


# %%
assert list(read_json_lines(folder / "pages.jsonl")) == [page]

# %% [markdown]
# A broken line names itself, because "Expecting value: line 1 column 1" helps nobody with a file of
# a million lines:

# %%
# NBVAL_CHECK_OUTPUT
(folder / "broken.jsonl").write_text('{"text": "fine"}\n{"text": \n', encoding="utf-8")
try:
    list(read_json_lines(folder / "broken.jsonl"))
except ValueError as error:
    print(str(error).replace(str(folder), "..."))

# %% [markdown]
# Plain text files get the same care:


# %%
#| export
def read_text_files(paths: Iterable[Path | str]) -> Iterator[str]:
    """Read each file as one document.

    Raises:
        ValueError: a file is not UTF-8, with its name and the first wrong byte.
    """
    for path in paths:
        try:
            yield Path(path).read_bytes().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{path} is not UTF-8 at byte {error.start}: convert it first"
            ) from error


# %%
# NBVAL_CHECK_OUTPUT
(folder / "latin1.txt").write_bytes("café".encode("latin-1"))
try:
    list(read_text_files([folder / "latin1.txt"]))
except ValueError as error:
    print(str(error).replace(str(folder), "..."))

# %% [markdown]
# ## Files for a billion documents
#
# JSON lines are hard to read *from the middle*: to find row 1,000,000 you must pass all rows before
# it. Parquet solves that. A file is a sequence of *row groups*, each
# compressed by itself, and a footer says where each one starts. So a reader can fetch one group and
# nothing else. It is also how FineWeb and most of the hub are stored.
#
# Writing takes documents from any iterator and keeps one row group in memory. The name of a shard
# appears only when it is complete: the trick of `atomic_write`, for a file too large to hold.

# %%
#| export data.parquet
import os
from itertools import islice

import pyarrow as pa
import pyarrow.parquet as pq

from nanochat_lib.common import replace_surrogates

# The metadata travel inside each file, and prove later that we wrote it.
PROOF = {b"written_by": b"nanochat_lib write_shards"}
SCHEMA = pa.schema([pa.field("text", pa.string(), nullable=False)], metadata=PROOF)


def open_parquet(path: Path) -> pq.ParquetFile:
    """Open a parquet file.

    Raises:
        ValueError: it is something else, or cut short, with its name and the way out.
    """
    try:
        return pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        with open(path, "rb") as file:
            start = file.read(100).lstrip()
        what = f"it starts with {start[:12]!r}"
        if start.startswith(b"version https://git-lfs"):
            what = "it is a Git LFS pointer: run git lfs pull"
        elif start.startswith(b"<"):
            what = "it is a web page: download the file itself"
        elif start.startswith(b"PAR1"):
            what = "it is cut short: download or write it again"
        elif not start:
            what = "it is empty: download or write it again"
        raise ValueError(f"{path} is no parquet file; {what}") from error


def is_ours(path: Path) -> bool:
    """True if write_shards wrote this file."""
    try:
        with open_parquet(path) as file:
            return PROOF.items() <= (file.schema_arrow.metadata or {}).items()
    except ValueError:
        return False


# %%
#| export data.parquet
def write_shard(path: Path, documents: Iterable[str], row_group_size: int) -> None:
    """Write one parquet file, a row group at a time; the name appears when the file is whole.

    Args:
        path: the file; its folder must exist.
        documents: the texts, in order.
        row_group_size: documents a row group; the last may have fewer.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "wb") as file:
        with pq.ParquetWriter(file, SCHEMA, compression="zstd") as writer:
            documents = iter(documents)
            while batch := list(islice(documents, row_group_size)):
                batch = [replace_surrogates(text) for text in batch]
                writer.write_table(pa.table({"text": batch}, schema=SCHEMA))
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


# %% [markdown]
# Around it goes the loop over shards. `islice` takes the next documents without copying them;
# `chain` puts back the one that told us there is a next shard at all. The new corpus replaces an
# old one when it is complete, and only one that we wrote: FineWeb names its shards as we do.


# %%
#| export
import os
import tempfile
from itertools import chain


def write_shards(
    documents: Iterable[str],
    folder: Path | str,
    documents_per_shard: int = 10_000,
    row_group_size: int = 256,
) -> list[Path]:
    """Write documents as parquet files shard_00000.parquet, ... with one column, "text".

    Holds one row group in memory at a time. The new shards replace those of an earlier corpus when
    all are written, so documents may come from these. A kill during that last step, which only
    renames, can leave shards of both.

    Args:
        documents: any number of texts, in the order to keep.
        folder: created if missing.
        documents_per_shard: length of every shard but the last.
        row_group_size: documents that a reader loads at once, and that one rank takes at a time.

    Returns:
        The shards' paths in order.

    Raises:
        ValueError: there are no documents, a size is below 1, or the folder holds shards that
            write_shards did not write. An earlier corpus is then as it was.
    """
    if documents_per_shard < 1 or row_group_size < 1:
        raise ValueError(f"sizes start at 1: got {documents_per_shard} and {row_group_size}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    old = sorted(folder.glob("shard_*.parquet"))
    for path in old:
        if not is_ours(path):
            raise ValueError(f"{path} was not written by write_shards: choose another folder")
    with tempfile.TemporaryDirectory(prefix=".new_shards_", dir=folder) as place:
        documents, names = iter(documents), []
        for first in documents:
            shard = chain([first], islice(documents, documents_per_shard - 1))
            names.append(f"shard_{len(names):05d}.parquet")
            write_shard(Path(place, names[-1]), shard, row_group_size)
        if not names:
            raise ValueError(
                f"no documents to write to {folder}: is the source an iterator already used up?"
            )
        for name in names:
            os.replace(Path(place, name), folder / name)
    for path in old:
        if path.name not in names:
            path.unlink()
    return [folder / name for name in names]


# %%
# NBVAL_CHECK_OUTPUT
toy = [f"document {i}" for i in range(10)]
toy_shards = write_shards(toy, folder / "toy", documents_per_shard=6, row_group_size=2)
for shard in toy_shards:
    footer = pq.read_metadata(shard)
    print(shard.name, [footer.row_group(i).num_rows for i in range(footer.num_row_groups)])


# %%
#| export
def list_shards(folder: Path | str) -> list[Path]:
    """List the finished parquet files of a folder by name; one that Spark wrote as a folder counts.

    Raises:
        ValueError: there are none.
    """
    paths = [path for path in Path(folder).glob("*.parquet") if path.name[0] not in "._"]
    parts = [part for path in paths if path.is_dir() for part in path.glob("[!._]*.parquet")]
    shards = sorted(path for path in [*paths, *parts] if path.is_file())
    if not shards:
        raise ValueError(f"no parquet files in {folder}: write_shards makes them")
    return shards


# %% [markdown]
# Now the real corpus, and what the format costs or saves beside JSON lines:

# %%
assert list_shards(folder / "toy") == toy_shards
shards = write_shards(documents, folder / "docs", documents_per_shard=2_000, row_group_size=64)
parquet_bytes = sum(shard.stat().st_size for shard in shards)
json_bytes = sum(len(json.dumps({"text": text})) + 1 for text in documents)
print(
    f"{len(shards)} shards, {parquet_bytes / 1e6:.2f} MB; as JSON lines {json_bytes / 1e6:.2f} MB"
)
assert parquet_bytes < 0.6 * json_bytes

# %% [markdown]
# The compression (Zstandard) finds repetitions within a row group, so larger groups compress
# better. What speaks for small ones? Whoever wants one document must load its whole group.

# %%
for row_group_size in (8, 64, 512, 4_096):
    trial = write_shards(documents, folder / "trial", 10_000, row_group_size)[0]
    held = pq.ParquetFile(trial).read_row_group(0).nbytes
    disk = trial.stat().st_size
    print(f"groups of {row_group_size:5}: {disk / 1e6:.2f} MB on disk, {held / 1e3:6.1f} KB held")

# %% [markdown]
# From 8 to 64 documents a group saves a good part of the disk, beyond that little; the memory grows
# all the way. The default of 256 is a compromise, and with eight processes it still lets a corpus
# of 2,048 documents feed each of them.
#
# ## Streaming, the plain version
#
# The plain version is three loops. It is correct, and we keep it as the judge of the real one.


# %%
def stream_plainly(shards: list[Path]) -> Iterator[tuple[str, Position]]:
    """Read all shards for ever, each at once; the position comes after the document."""
    epoch = 0
    while True:
        for shard, path in enumerate(shards):
            for row, text in enumerate(pq.read_table(path)["text"].to_pylist()):
                yield text, Position(epoch, shard, row + 1)
        epoch += 1


# %%
# NBVAL_CHECK_OUTPUT
for text, position in islice(stream_plainly(toy_shards), 4, 12):
    print(text, position)

# %% [markdown]
# What it lacks: it loads a whole shard, it cannot start in the middle, and it knows no ranks. All
# three are solved by one list: the row groups that are ours, with the rows they hold. Only footers
# are read to make it, and a footer is a few kilobytes.

# %%
#| export data.parquet
from nanochat_lib.common import Ranks


# %%
#| export data.parquet
def row_groups(shards: list[Path], ranks: Ranks) -> Iterator[tuple[int, int, int, int]]:
    """List (shard, group, first row, end row) of the row groups that belong to a rank.

    Groups count through all shards, so that a corpus of many one-group shards still feeds every
    rank.
    """
    n_groups = 0
    for shard, path in enumerate(shards):
        with open_parquet(path) as file:
            metadata, row = file.metadata, 0
        for group in range(metadata.num_row_groups):
            end = row + metadata.row_group(group).num_rows
            if n_groups % ranks.world_size == ranks.rank:
                yield shard, group, row, end
            row, n_groups = end, n_groups + 1
    if n_groups <= ranks.rank:
        raise ValueError(
            f"{n_groups} row groups for {ranks.world_size} ranks leave rank {ranks.rank} "
            "without text: write the shards with a smaller row_group_size"
        )


# %%
# NBVAL_CHECK_OUTPUT
for rank in range(2):
    print(f"rank {rank} of 2:", list(row_groups(toy_shards, Ranks(rank, rank, 2))))

# %% [markdown]
# Each tuple says (shard, group, first row, end row). The groups are dealt like cards, through all
# shards without starting anew at each. Dealing anew would starve ranks: take shards of one group
# each, and rank 0 would get everything.
#
# The stream walks that list. A group that ends before the start is passed over without reading it;
# in the group where the start lies, the first rows are dropped; from there on everything is new.


# %%
#| export data.parquet
def read_row_group(path: Path, group: int, column: str = "text") -> list[str]:
    """Read the texts of one row group and nothing else of the file.

    Raises:
        ValueError: there is no such column, or one without text; the message names file and row.
    """
    with open_parquet(path) as file:
        if column not in file.schema_arrow.names:
            raise ValueError(f"{path} has columns {file.schema_arrow.names}, but no {column!r}")
        kind, start = file.schema_arrow.field(column).type, 0
        try:
            texts = file.read_row_group(group, columns=[column]).column(column).to_pylist()
        except (OSError, pa.ArrowException) as error:
            raise ValueError(f"{path} is damaged ({error}): download or write it again") from error
        for before in range(group):
            start += file.metadata.row_group(before).num_rows
    for row, text in enumerate(texts, start):
        if not isinstance(text, str):
            raise ValueError(
                f"{path}, row {row}: no text in {column!r}, which holds {kind}: {text!r:.60}"
            )
    return texts


# %%
#| export
from itertools import count


# %%
#| export
def _stream(
    shards: list[Path], start: Position, ranks: Ranks, loop: bool
) -> Iterator[tuple[str, Position]]:
    """Yield what stream_documents promises; apart, so that wrong arguments fail at the call."""
    for epoch in count(start.epoch) if loop else [start.epoch]:
        for shard, group, row, end in row_groups(shards, ranks):
            if Position(epoch, shard, end) <= start:
                continue
            for i, text in enumerate(read_row_group(shards[shard], group), start=row):
                if Position(epoch, shard, i) >= start:
                    yield text, Position(epoch, shard, i + 1)


# %% [markdown]
# Look at the first comparison. A position at the end of a group equals its end, so the group is
# skipped: nothing left in it. And (0, 0, 6), one past the last row of the first shard, and (0, 1,
# 0) lead to the same document, as promised above.
#
# One trap of generators remains: their body runs at the first `next`, so an error in the arguments
# would surface far from the call that made it. A plain function in front checks at once.


# %%
#| export
def stream_documents(
    shards: Iterable[Path | str],
    start: Position = Position(),
    ranks: Ranks = Ranks(),
    loop: bool = True,
) -> Iterator[tuple[str, Position]]:
    """Read a corpus document by document, each with the position to resume from after it.

    Rank r of w reads row groups r, r + w, r + 2w, ... so that no two ranks read the same document.
    Keep one position a rank, and resume with the same shards and the same number of ranks.

    Args:
        shards: parquet files with a column "text", in reading order.
        start: the first document to yield: a position that came with the last one used.
        ranks: this process among all.
        loop: start over at the end, for ever, with the epoch one higher.

    Returns:
        Pairs of the text and the position AFTER it.

    Raises:
        ValueError: no shards; a start beyond them; more ranks than row groups; a shard without
            "text".
    """
    shards = [Path(shard) for shard in shards]
    if not shards:
        raise ValueError("no shards to read: list_shards finds them in a folder")
    if start.shard >= len(shards):
        raise ValueError(f"{start} in a corpus of {len(shards)} shards: is it another corpus?")
    return _stream(shards, start, ranks, loop)


# %%
judged = list(islice(stream_plainly(toy_shards), 25))
assert list(islice(stream_documents(toy_shards), 25)) == judged

# %% [markdown]
# It agrees with the plain version over two and a half epochs. Now the property that this chapter is
# about: stop after *any* document, start again from the position that came with it, and the rest is
# the same. There are few enough cases to try them all.

# %%
for stop in range(20):
    position = judged[stop][1]
    assert list(islice(stream_documents(toy_shards, position), 5)) == judged[stop + 1 : stop + 6]
assert next(stream_documents(toy_shards, Position(0, 0, 6))) == next(
    stream_documents(toy_shards, Position(0, 1, 0))
)

# %% [markdown]
# And the ranks: together they read everything, no document twice, and each in the order of the
# file.

# %%
# NBVAL_CHECK_OUTPUT
parts = [
    [text for text, _ in stream_documents(toy_shards, ranks=Ranks(rank, rank, 3), loop=False)]
    for rank in range(3)
]
for rank, part in enumerate(parts):
    print(f"rank {rank}:", *(text.removeprefix("document ") for text in part))
assert sorted(sum(parts, [])) == toy

# %%
# NBVAL_CHECK_OUTPUT
try:
    list(stream_documents(toy_shards, ranks=Ranks(7, 7, 8), loop=False))
except ValueError as error:
    print(error)

# %% [markdown]
# ## What goes wrong: resuming by row group
#
# A tempting shortcut stores the number of the row group only: it is smaller and needs no counting
# inside. A well-known training script did so. On resume one must choose: read the group again from
# its start, or go on with the next.


# %%
def resume_by_group(position: Position, skip_ahead: bool) -> Position:
    """Forget the row inside the group (groups of 64), in one of two ways."""
    group = position.row // 64 + (1 if skip_ahead else 0)
    return Position(position.epoch, position.shard, 64 * group)


# %% [markdown]
# Let a run be interrupted ten times, at moments of nobody's choosing, and count what it read in one
# epoch:

# %%
from nanochat_lib.common import local_generator


def read_with_crashes(resume: object) -> Counter:
    """Read one epoch with ten interruptions, and count the documents by index."""
    dice, position, seen = local_generator("crashes", 1), Position(), Counter()
    stops = sorted(dice.sample(range(len(documents)), 10))
    starts = np.cumsum([0] + [pq.read_metadata(shard).num_rows for shard in shards])
    for stop in [*stops, len(documents)]:
        start = resume(position) if seen else position
        for _, after in stream_documents(shards, start=start, loop=False):
            position = after
            index = int(starts[after.shard]) + after.row - 1
            seen[index] += 1
            if index >= stop:
                break
    return seen


# %%
strategies = {
    "group again": lambda position: resume_by_group(position, skip_ahead=False),
    "next group": lambda position: resume_by_group(position, skip_ahead=True),
    "next document": lambda position: position,
}
for name, resume in strategies.items():
    seen = read_with_crashes(resume)
    twice, never = sum(n > 1 for n in seen.values()), len(documents) - len(seen)
    print(f"{name:14} {twice:4} read twice, {never:4} never read")
assert (twice, never) == (0, 0)

# %% [markdown]
# Half a group is lost or repeated at each stop, about 32 documents here, and about 500 with the
# groups of 1,024 that are usual. The loss curve shows nothing. But the run is no longer the one
# that an undisturbed machine would have made, so no two runs can be compared, and a bug that
# depends on the data cannot be found again. With the exact position the count is zero and zero.
#
# ## Data sets of others
#
# The Hugging Face hub holds the corpora that people train on, and the `datasets` library reads
# them: from the hub with `streaming=True` as we go, or from files in the same layout on our disk.
# Our function returns plain strings and names the row that has none; from there on everything above
# applies.


# %%
#| export data.files
NO_ROWS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
JSON_NAME = re.compile(r".+\.(json|jsonl|ndjson)(\.gz|\.bz2|\.zst)?")


def data_files(folder_or_file: Path) -> tuple[list[Path], list[Path]]:
    """List the parquet files and the JSON files of a local data set, each in order.

    Hidden parts of a path (those that begin with . or _), records about the data, copies and locks
    are no data.
    """
    if folder_or_file.is_file():
        files = [folder_or_file]
    else:
        files = sorted(path for path in folder_or_file.rglob("*") if path.is_file())
        names = {path: path.relative_to(folder_or_file).parts for path in files}
        files = [path for path in files if not any(part[0] in "._" for part in names[path])]
    parquet = [path for path in files if path.suffix == ".parquet"]
    lines = [path for path in files if JSON_NAME.fullmatch(path.name) and path.name not in NO_ROWS]
    return parquet, lines


def json_rows(path: Path) -> Iterator[tuple[str, object]]:
    """Read (place, row) pairs of JSON lines, or of one JSON list of rows."""
    with pa.input_stream(str(path), compression="detect") as file:
        is_list = (
            ".json" in path.suffixes and file.read(100).lstrip(b"\xef\xbb\xbf \r\n\t")[:1] == b"["
        )
    if not is_list:
        for count, (number, row) in enumerate(numbered_json(path)):
            yield f"line {number}, row {count}", row
        return
    with pa.input_stream(str(path), compression="detect") as file:
        try:
            rows = json.loads(file.read().decode("utf-8-sig"))
        except ValueError as error:
            raise ValueError(f"{path} is no JSON in UTF-8: {error}") from error
    yield from ((f"row {number}", row) for number, row in enumerate(rows))


# %%
#| export
def _local_texts(path: Path, column: str) -> Iterator[str]:
    """Read a column of a file or folder; parquet files where there are any, else JSON."""
    parquet, lines = data_files(path)
    if not parquet and not lines:
        raise ValueError(f"{path} holds no parquet and no JSON files")
    for file in parquet:
        for group in range(open_parquet(file).num_row_groups):
            yield from read_row_group(file, group, column)
    for file in [] if parquet else lines:
        for place, row in json_rows(file):
            if not isinstance(row, dict) or not isinstance(row.get(column), str):
                shown = (
                    f"its columns are {sorted(row)}"
                    if isinstance(row, dict)
                    else f"it is {row!r:.60}"
                )
                raise ValueError(f"{file}, {place} has no text in {column!r}; {shown}")
            yield row[column]


def from_datasets(
    name_or_path: str | Path,
    split: str = "train",
    column: str = "text",
    config: str | None = None,
    streaming: bool = True,
) -> Iterator[str]:
    """Read one text column of a Hugging Face data set: local files, or a name on the hub.

    Args:
        name_or_path: a file or a folder of parquet or JSON files, taken literally, or a name such
            as "HuggingFaceFW/fineweb-edu".
        split: which part of a data set on the hub; local files are one part, whatever its name.
        column: the column that holds the text.
        config: the subset on the hub, such as "sample-10BT".
        streaming: read as we go; False downloads and converts the whole data set first.

    Raises:
        ValueError: a row has no text in that column, or a folder holds no data files.
    """
    if Path(name_or_path).exists():
        yield from map(replace_surrogates, _local_texts(Path(name_or_path), column))
        return
    from datasets import load_dataset  # takes a second or two

    rows = load_dataset(str(name_or_path), config, split=split, streaming=streaming)
    for number, row in enumerate(rows):
        if not isinstance(row.get(column), str):
            raise ValueError(
                f"row {number} has no text in {column!r}; its columns are {sorted(row)}"
            )
        yield replace_surrogates(row[column])


# %% [markdown]
# The parquet files we wrote are such a data set, and so are JSON lines with more columns than we
# need. What goes wrong: `datasets` takes a path as a pattern, and `split[12].jsonl` reads its
# neighbour, without a word. We read local files ourselves.

# %%
rows = [{"id": i, "text": text, "url": "", "language": "en"} for i, text in enumerate(toy)]
(folder / "web.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
assert list(from_datasets(folder / "web.jsonl")) == toy
assert list(islice(from_datasets(folder / "docs"), 50)) == documents[:50]

# %%
# NBVAL_CHECK_OUTPUT
from datasets import load_dataset

for name in ("split1.jsonl", "split[12].jsonl"):
    (folder / name).write_text(json.dumps({"text": f"from {name}"}), encoding="utf-8")
asked = folder / "split[12].jsonl"
theirs = load_dataset("json", data_files=str(asked), split="train", streaming=True)
print("a pattern:", next(iter(theirs))["text"], "  a path:", next(from_datasets(asked)))

# %% [markdown]
# With a network, `from_datasets("HuggingFaceFW/fineweb-edu", config="sample-10BT")` yields the
# pages of the sample one by one, and `write_shards` makes a corpus of as many as you like:
#
# ```python
# pages = from_datasets("HuggingFaceFW/fineweb-edu", config="sample-10BT")
# write_shards(islice(pages, 100_000), "web")
# ```
#
# ## Cost
#
# Does streaming keep its promise? `tracemalloc` counts the bytes that Python objects hold, at their
# peak. First the whole corpus in a list, then the stream:

# %%
import tracemalloc


def peak_bytes(read: object) -> int:
    """Return the most memory that Python held while we read."""
    tracemalloc.start()
    read()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


whole = peak_bytes(lambda: [text for text, _ in stream_documents(shards, loop=False)])
streamed = peak_bytes(lambda: [None for _ in stream_documents(shards, loop=False)])
print(
    f"list {whole / 1e6:.2f} MB, stream {streamed / 1e6:.2f} MB of {corpus_bytes / 1e6:.2f} MB text"
)
assert streamed < whole / 3

# %% [markdown]
# The peak of the stream is its largest row group and does not grow with the corpus. And time:

# %%
import time

start = time.perf_counter()
n_bytes = sum(len(text) for text, _ in stream_documents(shards, loop=False))
rate = n_bytes / (time.perf_counter() - start)
print(f"{rate / 1e6:.0f} MB of text a second")

# %% [markdown]
# The laptop run of the last chapter trains on about ten thousand tokens a second, of some 3 bytes each:
# 30 KB of text, so reading takes a percent or so of the time. The large profile, on one node, reads 11.2
# billion tokens in about 3.4 hours (the first chapter's estimate):

# %%
# NBVAL_CHECK_OUTPUT
tokens = 20 * 561e6
text_bytes = 4.8 * tokens  # bytes a token, for a vocabulary of 65,536
per_process = text_bytes / (3.4 * 3_600) / 8
print(f"{text_bytes / 1e9:.0f} GB, {per_process / 1e6:.2f} MB a second for each of 8 processes")

# %% [markdown]
# Half a megabyte a second for each process: reading is not the bottleneck.

# %% [markdown]
# ## Recap
#
# A corpus is a sequence of documents in shards of row groups; a position names the next document,
# so a reader stops and resumes anywhere without losing or repeating one, and ranks share the row
# groups. Document lengths and word frequencies are both spread over powers of ten, and much of what
# follows (packing, subword tokens, smoothing) answers to that. The module
# `nanochat_lib.data.documents` now holds `write_shards`, `list_shards`, `stream_documents`,
# `python_docs`, `from_datasets`, `read_json_lines`, `read_text_files` and `drop_duplicates`.
#
# The exercises ask you to shuffle a stream that is too long to hold, to measure how alike two documents
# are, and to let a test leak into its training text and watch the score. Next: cutting text into the integers that a model can read.
