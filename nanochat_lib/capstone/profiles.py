# Generated from chapters/20_capstone.py by `course build`; edit that file.
"""Profiles: every setting of a run, read from course.toml."""

import dataclasses
import math
import tomllib
import typing
from dataclasses import dataclass
from pathlib import Path

import nanochat_lib
from nanochat_lib.capstone.pipeline import nearest
from nanochat_lib.capstone.stage_chat import ChatDataConfig
from nanochat_lib.capstone.stage_data import DataConfig
from nanochat_lib.capstone.stage_evaluation import EvaluationConfig
from nanochat_lib.capstone.stage_tokenizer import TokenizerConfig
from nanochat_lib.training.finetune import FinetuneConfig
from nanochat_lib.training.pretrain import PretrainConfig
from nanochat_lib.training.rl_sampler import RLConfig

__all__ = ["Profile", "check_value", "fill_config", "manifest_path", "load_profile"]


@dataclass(frozen=True)
class Profile:
    """Hold every setting of a run; each stage has its own part."""

    name: str
    about: str = ""
    data: DataConfig = DataConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    base: PretrainConfig = PretrainConfig()
    chat: ChatDataConfig = ChatDataConfig()
    mid: FinetuneConfig = FinetuneConfig()
    sft: FinetuneConfig = FinetuneConfig()
    rl: RLConfig = RLConfig()
    evaluation: EvaluationConfig = EvaluationConfig()


def check_value(value: object, wanted: object, where: str) -> object:
    """Return a TOML value as the type a field wants, or say what it should have been.

    Raises:
        ValueError: the value has another type, or is none of the choices of a Literal.
    """
    choices = typing.get_args(wanted)
    if typing.get_origin(wanted) is typing.Literal:
        if value in choices:
            return value
        raise ValueError(f"{where} = {value!r}: must be one of {', '.join(map(repr, choices))}")
    if typing.get_origin(wanted) is tuple and isinstance(value, list):
        return tuple(value)
    allowed = choices or (wanted,)
    if float in allowed and type(value) is int:
        return float(value)
    if type(value) is float and not math.isfinite(value):
        raise ValueError(f"{where} = {value!r}: must be a finite number")
    if type(value) in allowed:  # not isinstance: True would pass as a number
        return value
    names = " or ".join(kind.__name__ for kind in allowed if kind is not type(None))
    raise ValueError(f"{where} = {value!r}: must be {names}")


def fill_config(start: object, table: dict, where: str) -> object:
    """Change a configuration by a TOML table; what the table leaves out stays as it is.

    Example: fill_config(DataConfig(), {"documents": 9}, "profile.mini.data") -> DataConfig(documents=9).

    Args:
        start: a dataclass object; fields that are dataclasses are changed by sub-tables.
        table: field name -> value.
        where: the table's name, for messages.

    Returns:
        A new object of the same class.

    Raises:
        ValueError: an unknown name (the nearest known one is given), or a value of the wrong type.
    """
    wanted = typing.get_type_hints(type(start))
    values = {}
    for key, value in table.items():
        if key not in wanted:
            raise ValueError(f"[{where}] has no setting {key!r}: {nearest(key, wanted)}")
        if not dataclasses.is_dataclass(wanted[key]):
            values[key] = check_value(value, wanted[key], f"{where}.{key}")
        elif isinstance(value, dict):
            values[key] = fill_config(getattr(start, key), value, f"{where}.{key}")
        else:
            raise ValueError(f"{where}.{key} = {value!r}: must be a table [{where}.{key}]")
    return dataclasses.replace(start, **values)


def manifest_path() -> Path:
    """Return the course.toml that lies beside the installed library."""
    return Path(nanochat_lib.__file__).parents[1] / "course.toml"


def load_profile(name: str, manifest: Path | None = None) -> Profile:
    """Read the profile `name` from a manifest.

    Args:
        name: a table [profile.NAME].
        manifest: a TOML file; course.toml if None.

    Raises:
        ValueError: no such file or profile, no TOML, or a setting that no stage knows.
    """
    manifest = manifest_path() if manifest is None else Path(manifest)
    if not manifest.is_file():
        raise ValueError(f"no {manifest}: run inside the course, or name a file with --manifest")
    try:
        profiles = tomllib.loads(manifest.read_text(encoding="utf-8-sig")).get("profile", {})
    except ValueError as error:  # no UTF-8, or no TOML
        raise ValueError(f"{manifest} cannot be read: {error}") from error
    if name not in profiles:
        raise ValueError(f"no profile {name!r} in {manifest.name}: {nearest(name, profiles)}")
    return fill_config(Profile(name), profiles[name], f"profile.{name}")
