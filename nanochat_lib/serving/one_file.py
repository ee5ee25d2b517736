# Generated from chapters/19_one_file.py by `course build`; edit that file.
"""A trained model as one HTML file: its weights in bytes, and all that a browser needs to run it."""

import base64
import copy
import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, Float32, Int8
from torch import Tensor

from nanochat_lib.common import atomic_write
from nanochat_lib.course.manifest import library_root
from nanochat_lib.model.gpt import GPT
from nanochat_lib.serving.runs import find_run, last_stage
from nanochat_lib.tokenizer.tokenizer import Tokenizer
from nanochat_lib.training.checkpoint import load_model

__all__ = [
    "round_rows",
    "rounded",
    "pack",
    "javascript_pattern",
    "source_hash",
    "in_script",
    "inside",
    "read_script",
    "one_file",
    "MOST_BYTES",
    "MARK",
    "ExportConfig",
    "export_html",
]


def round_rows(
    weight: Float[Tensor, "rows columns"],
) -> tuple[Int8[Tensor, "rows columns"], Float32[Tensor, " rows"]]:
    """Round each row to whole multiples of its largest weight's 127th part; return these and the parts."""
    steps = weight.float().abs().amax(1).clamp(min=1e-12) / 127
    return (weight.float() / steps[:, None]).round().to(torch.int8), steps


def rounded(model: GPT) -> GPT:
    """Copy a model and round its tables: what it computes is what the file will compute."""
    model = copy.deepcopy(model).float().cpu().eval()
    for weight in model.state_dict().values():
        if weight.dim() == 2:
            whole, steps = round_rows(weight)
            weight.copy_(whole * steps[:, None])
    return model


def pack(model: GPT) -> tuple[dict, bytes]:
    """Write the tables of a model as whole numbers and steps, one after the other.

    Returns:
        The contents, for JSON: `config`; `tensors`, name -> [rows, columns, place of the first byte], after whose
        int8 values, and zeros up to a multiple of 4 bytes, come the steps, float32, one a row; and
        `scalars`, name -> the number or numbers that are no table. And the bytes, little-endian.
    """
    tensors, scalars, data = {}, {}, bytearray()
    vocab_size = model.config.vocab_size  # padding rows stay at home
    for name, weight in model.state_dict().items():
        if weight.dim() < 2:
            scalars[name] = weight.tolist() if weight.numel() > 1 else weight.item()
            continue
        if name.startswith(("wte.", "lm_head.")) or name.endswith("value_embed.table.weight"):
            weight = weight[:vocab_size]
        whole, steps = round_rows(weight.cpu())
        tensors[name] = [*whole.shape, len(data)]
        data += whole.numpy().tobytes()
        data += bytes(-len(data) % 4) + steps.numpy().astype("<f4").tobytes()
    return {"config": asdict(model.config), "tensors": tensors, "scalars": scalars}, bytes(data)


def javascript_pattern(pattern: str) -> str:
    r"""Write a split pattern of ours for JavaScript's regular expressions with the flag u.

    Example: r"\s++|(?i:[st]|ll)" -> r"\p{White_Space}+|(?:[sS\u017ftT]|[lL][lL])"

    Args:
        pattern: made by `split_pattern`, or GPT-2's; of possessive quantifiers it is assumed that what follows
            them needs nothing of what they have matched, as it is there.

    Raises:
        ValueError: the pattern has a group of a kind that is not translated.
    """
    cases = {"s": r"sS\u017f", "k": r"kK\u212a"}

    def either_case(group: re.Match) -> str:
        in_class, out = False, ""
        for c in group[1]:
            in_class = (in_class or c == "[") and c != "]"
            both = cases.get(c.lower(), c.lower() + c.upper()) if c.isascii() and c.isalpha() else c
            out += both if in_class or both == c else f"[{both}]"
        return f"(?:{out})"

    found = re.sub(r"\(\?i:([\w|\[\]]*)\)", either_case, pattern)
    other = re.search(r"\(\?(?![:=!])", found)
    if other:
        raise ValueError(
            f"the pattern has {found[other.start() :][:12]!r}: no way to say it is known"
        )
    found = re.sub(r"([?+*]|\{[\d,]+\})\+", r"\1", found)
    return found.replace(r"\s", r"\p{White_Space}").replace(r"\S", r"\P{White_Space}")


def source_hash(text: str) -> str:
    """Name a script or a style in a content-security policy."""
    digest = base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
    return f"'sha256-{digest}'"


def in_script(data: object) -> str:
    """Write JSON that may stand inside a script element: no `<` can begin a tag there."""
    return json.dumps(data, ensure_ascii=True).replace("<", "\\u003c")


def inside(model: GPT, tokenizer: Tokenizer, name: str) -> dict:
    """Gather what the engine in a page wants to know, ready for JSON.

    Args:
        model: its tables are rounded.
        tokenizer: the one it was trained with.
        name: is shown; any text.
    """
    contents, data = pack(model)
    ranks = sorted(tokenizer.ranks, key=tokenizer.ranks.__getitem__)
    contents["name"] = name
    contents["tokenizer"] = {
        "pattern": javascript_pattern(tokenizer.pattern),
        "special_tokens": list(tokenizer.special_ids),
        "ranks": [base64.b64encode(token).decode("ascii") for token in ranks],
    }
    contents["weights"] = base64.b64encode(data).decode("ascii")
    return contents


def read_script(match: re.Match) -> str:
    """Put a script where the page names its file."""
    text = (library_root() / match[1]).read_text(encoding="utf-8")
    safe = text.replace("</script", "<\\/script")  # the same to JavaScript, and ends no element
    return f"<script>{safe}</script>"


def one_file(contents: dict) -> str:
    """Return a page that holds a model and all it needs to answer; `contents` come from `inside`."""
    page = (library_root() / "web/chat.html").read_text(encoding="utf-8")
    page = page.replace(' nonce="NONCE"', "")
    page = re.sub(r'<script src="/([\w./]+)"></script>', read_script, page)
    scripts = " ".join(map(source_hash, re.findall(r"<script>(.*?)</script>", page, re.DOTALL)))
    styles = " ".join(map(source_hash, re.findall(r"<style>(.*?)</style>", page, re.DOTALL)))
    policy = f"default-src 'none'; script-src {scripts}; style-src {styles}; base-uri 'none'; form-action 'none'"
    head, rest = page.split("<title>", 1)
    body, script = rest.split("<script>", 1)
    return (
        f'{head}<meta http-equiv="Content-Security-Policy" content="{policy}">\n<title>{body}'
        f'<script type="application/json" id="contents">{in_script(contents)}</script>\n'
        f"<script>{script}"
    )


MOST_BYTES = 200_000_000  # a browser holds such a page; each weight is a byte
MARK = '<html lang="en">\n<head>\n<meta charset="utf-8">'  # how our pages begin


@dataclass(frozen=True)
class ExportConfig:
    """Write a trained model as one HTML file that answers in any browser, without a server."""

    run: str | None = None
    """name of the run; the newest one by default"""
    stage: Literal["rl", "sft", "mid"] | None = None
    """rl by default, or sft if the run has no rl"""
    output: Path | None = None
    """the file; RUN.html in the present folder by default"""


def export_html(config: ExportConfig) -> Path:
    """Write the file, and say where it is.

    Raises:
        ValueError: there is no such model, it is too large for a browser, or the output is another kind of file.
    """
    folder = find_run(config.run, config.stage)
    tokenizer = Tokenizer.load(folder / "tokenizer")
    model, _ = load_model(folder / (config.stage or last_stage(folder)), tokenizer)
    if model.num_params() > MOST_BYTES:
        raise ValueError(
            f"{folder.name} has {model.num_params():,} weights, a page carries at most "
            f"{MOST_BYTES:,}: use `nanochat serve`"
        )
    path = Path(f"{folder.name}.html") if config.output is None else config.output
    if path.exists() and MARK not in path.read_text(encoding="utf-8", errors="replace")[:200]:
        raise ValueError(f"{path} is there already and is no page of ours: name another --output")
    text = one_file(inside(model, tokenizer, folder.name))
    atomic_write(path, text)
    print(f"{path}: {len(text) / 1e6:.1f} MB, open it in a browser; it needs no network")
    return path
