# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""A run's configuration: one table per role, merged from defaults, a file and flags, and validated in full."""

from __future__ import annotations

import importlib.resources
import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctkd.certify.options import CertifyOptions, ExportOptions
from ctkd.errors import BadInput, CtkdError, nearest
from ctkd.hookspecs import Registration
from ctkd.options import Options, Radius, validate
from ctkd.plugins import options_class, registry
from ctkd.train.options import TrainOptions

ROLES = {
    "data": "dataset",
    "model": "model",
    "bound": "bound",
    "teacher": "teacher",
    "distill": "distill",
    "attack": "attack",
    "propagation": "propagation",
}
"""Roles filled by a plugin, and the kind of plugin."""
SECTIONS: dict[str, type[Options]] = {
    "train": TrainOptions,
    "certify": CertifyOptions,
    "export": ExportOptions,
}
"""Roles that belong to core."""
BASE = {"data": "digits", "bound": "crown-ibp", "teacher": "pgd", "attack": "pgd", "propagation": "native"}
"""What a bare ``ctkd train`` uses. The model and eps come from the data set's file in ``ctkd/defaults``."""
SCHEDULE = ("warmup", "ramp", "milestones", "average_from")
"""Moments of the training that scale with its length unless they are set with it."""


@dataclass(frozen=True)
class Choice:
    """One plugin and its validated options."""

    entry: Registration
    options: Options

    @property
    def name(self) -> str:
        return self.entry.name

    def create(self) -> Any:
        from ctkd.plugins import create

        return create(self.entry, self.options)


@dataclass(frozen=True)
class RunConfig:
    """A validated configuration. ``sources`` says where each ``role.key`` came from."""

    data: Choice
    data_dir: Path | None
    model: Choice
    bound: Choice
    teacher: Choice
    distill: Choice
    attack: Choice
    propagation: Choice
    train: TrainOptions
    certify: CertifyOptions
    export: ExportOptions
    sources: Mapping[str, str]

    def tables(self) -> dict[str, dict[str, Any]]:
        """The whole configuration as plain tables; None values are left out, as TOML has none."""
        tables: dict[str, dict[str, Any]] = {}
        for role in ROLES:
            choice: Choice = getattr(self, role)
            tables[role] = {"name": choice.name, **_plain(choice.options)}
        if self.data_dir is not None:
            tables["data"]["dir"] = str(self.data_dir.resolve())
        for role in SECTIONS:
            tables[role] = _plain(getattr(self, role))
        return tables


def _plain(options: Options) -> dict[str, Any]:
    return {key: value for key, value in options.model_dump(mode="json").items() if value is not None}


def dump(config: RunConfig, *, sources: bool = False) -> str:
    """The configuration as TOML, with the source of each value as a comment on request."""
    import tomli_w

    if not sources:
        return tomli_w.dumps(config.tables())
    lines = []
    for role, table in config.tables().items():
        lines.append(f"[{role}]")
        for key, value in table.items():
            text = f"{key} = {json.dumps(value)}"
            lines.append(f"{text:<40} # {config.sources.get(f'{role}.{key}', 'default')}")
        lines.append("")
    return "\n".join(lines)


# Merging -------------------------------------------------------------------------------------------------


class Layers:
    """Values by role and key, one per rank; the highest rank wins."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, str], dict[int, tuple[Any, str]]] = {}

    def put(self, rank: int, role: str, key: str, value: Any, source: str) -> None:
        self.values.setdefault((role, key), {})[rank] = (value, source)

    def top(self, role: str, key: str, below: int | None = None) -> tuple[int, Any, str] | None:
        """Rank, value and source of the winner, among ranks below a limit if one is given."""
        known = {r: v for r, v in self.values.get((role, key), {}).items() if below is None or r < below}
        return (max(known), *known[max(known)]) if known else None

    def get(self, role: str, key: str) -> Any:
        found = self.top(role, key)
        return None if found is None else found[1]

    def table(self, role: str) -> dict[str, Any]:
        return {key: self.get(role, key) for known, key in self.values if known == role}

    def sources(self) -> dict[str, str]:
        return {f"{role}.{key}": found[2] for role, key in self.values if (found := self.top(role, key))}


SHIPPED, FILE, FLAG = 1, 2, 3


def resolve(flags: Mapping[str, Any] | None = None, file: Path | None = None) -> RunConfig:
    """Merge and validate.

    Args:
        flags: ``"role.key"`` -> value, as ``--set`` takes them; the highest rank.
        file: a TOML file with one table per role.

    Raises:
        BadInput: every mistake, one line each.
    """
    problems: list[str] = []
    layers = Layers()
    if file is not None:
        for role, key, value in _read(file, problems):
            layers.put(FILE, role, key, value, str(file))
    for path, value in (flags or {}).items():
        role, _, key = path.partition(".")
        if _known_role(role, key, path, problems):
            layers.put(FLAG, role, key, value, "command line")
    entries = _choose(layers, problems)
    _scale_schedule(layers)
    config = _build(layers, entries, problems)
    if problems or config is None:
        raise BadInput(*dict.fromkeys(problems))
    check_pair(config)
    return config


def _known_role(role: str, key: str, path: str, problems: list[str]) -> bool:
    roles = [*ROLES, *SECTIONS]
    if role not in roles:
        problems.append(f"{path}: no section {role!r}: {nearest(role, roles)}")
        return False
    if not key:
        problems.append(f"{path}: write section.key, such as {role}.{'name' if role in ROLES else 'seed'}")
        return False
    return True


def _read(file: Path, problems: list[str]) -> Iterable[tuple[str, str, Any]]:
    try:
        tables = tomllib.loads(file.read_text())
    except OSError as error:
        raise BadInput(f"config file {file} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"config file {file} is not TOML: {error}") from None
    found = []
    for role, table in tables.items():
        if not isinstance(table, dict):
            problems.append(f"{file}: {role!r} is not a table; write it under one of {', '.join([*ROLES, *SECTIONS])}")
        elif _known_role(role, "name", role, problems):
            found += [(role, key, value) for key, value in table.items()]
    return found


def _choose(layers: Layers, problems: list[str]) -> dict[str, Registration]:
    """Find the plugin of every role, and lay the shipped defaults for them below everything else."""
    entries: dict[str, Registration] = {}

    def find(role: str) -> None:
        name = layers.get(role, "name")
        try:
            if not isinstance(name, str):
                raise BadInput(f"{role}.name={name!r} must be the name of a plugin")
            entries[role] = registry().find(ROLES[role], name, role)
        except BadInput as problem:
            problems.extend(problem.messages)

    for role, name in BASE.items():
        layers.put(0, role, "name", name, "default")
    find("data")
    dataset = entries["data"].name if "data" in entries else ""
    _ship(layers, f"{dataset}.toml", {})
    if layers.get("model", "name") is None:
        layers.put(0, "model", "name", "cnn-small", "default")
    if layers.get("train", "eps") is None and dataset:
        problems.append(f"data set {dataset!r} has no default radius: give --eps")
    layers.put(0, "distill", "name", "none" if layers.get("teacher", "name") == "none" else "features", "default")
    for role in ROLES:
        if role != "data":
            find(role)
    eps = _number(layers.get("train", "eps"))
    for name in _default_files():
        stem, _, radius = name.removesuffix(".toml").rpartition("-")
        if stem == dataset and eps is not None and _number(radius.replace("_", "/")) == eps:
            _ship(layers, name, {role: entry.name for role, entry in entries.items()})
    return entries


def _default_files() -> list[str]:
    return sorted(f.name for f in importlib.resources.files("ctkd.defaults").iterdir() if f.name.endswith(".toml"))


def _ship(layers: Layers, name: str, chosen: Mapping[str, str]) -> None:
    """Lay one shipped file.

    Plain keys apply always, a sub-table only to the plugin it is named after, ``recipe.BOUND.ROLE`` only with that
    bound method.
    """
    path = importlib.resources.files("ctkd.defaults") / name
    if not path.is_file():
        return
    tables = tomllib.loads(path.read_text())
    for role, table in tables.items():
        if role == "recipe":
            continue
        for key, value in table.items():
            if not isinstance(value, dict):
                layers.put(SHIPPED, role, key, value, f"defaults/{name}")
            elif key == chosen.get(role):
                for option, content in value.items():
                    layers.put(SHIPPED, role, option, content, f"defaults/{name}")
    for role, table in tables.get("recipe", {}).get(chosen.get("bound"), {}).items():
        for option, content in table.items():
            layers.put(SHIPPED, role, option, content, f"defaults/{name}")


def _number(value: Any) -> float | None:
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(Radius).validate_python(value)
    except ValidationError:
        return None


def _scale_schedule(layers: Layers) -> None:
    """A longer or shorter training keeps its shape: moments set below the new length are scaled with it."""
    found = layers.top("train", "epochs")
    if found is None or found[0] <= SHIPPED or not isinstance(found[1], int):
        return
    rank, epochs, _ = found
    usual = layers.top("train", "epochs", below=FILE)
    before = usual[1] if usual is not None else TrainOptions.model_fields["epochs"].default
    for key in SCHEDULE:
        known = layers.top("train", key)
        if known is not None and known[0] > SHIPPED:
            continue
        value = known[1] if known is not None else TrainOptions.model_fields[key].default
        if value is None:
            continue
        many = isinstance(value, list | tuple)
        scaled = [round(v * epochs / before, 6) for v in (value if many else [value])]
        layers.put(rank, "train", key, scaled if many else scaled[0], "scaled with epochs")


def _build(layers: Layers, entries: Mapping[str, Registration], problems: list[str]) -> RunConfig | None:
    choices: dict[str, Choice] = {}
    data_dir: Path | None = None
    for role, entry in entries.items():
        table = layers.table(role)
        table.pop("name")
        if role == "data":
            folder = table.pop("dir", None)
            if folder is not None and not isinstance(folder, str):
                problems.append(f"data.dir={folder}: must be the path of a folder")
            else:
                data_dir = None if folder is None else Path(folder)
        try:
            options = validate(options_class(entry), table, role, problems)
        except CtkdError as error:
            problems.append(str(error))
            continue
        if options is not None:
            choices[role] = Choice(entry, options)
    sections = {role: validate(kind, layers.table(role), role, problems) for role, kind in SECTIONS.items()}
    certify = sections["certify"]
    if isinstance(certify, CertifyOptions):
        for stage in certify.stages:
            if stage not in registry().names("stage"):
                problems.append(f"certify.stages: {stage!r} is not known: {nearest(stage, registry().names('stage'))}")
    if len(choices) < len(ROLES) or any(section is None for section in sections.values()):
        return None
    return RunConfig(data_dir=data_dir, sources=layers.sources(), **choices, **sections)  # type: ignore[arg-type]


def check_pair(config: RunConfig) -> None:
    """Raises: BadInput if bound method, objective and teacher cannot work together, with the reason."""
    method, objective = config.bound.create(), config.distill.create()
    if config.distill.name == "none":
        return
    if config.teacher.name == "none":
        raise BadInput(
            f"distill.name={config.distill.name} needs a teacher, and teacher.name=none; "
            "choose a teacher such as --teacher pgd, or --distill none"
        )
    if not objective.reads & method.evaluates:
        raise BadInput(
            f"distill.name={config.distill.name} reads {_kinds(objective.reads)} enclosures, but "
            f"bound.name={config.bound.name} takes its loss on {_kinds(method.evaluates)} ones only, so it would do "
            "nothing; mtl-ibp evaluates points and boxes, and --distill features reads every kind"
        )


def _kinds(kinds: Iterable[str]) -> str:
    return " and ".join(sorted(kinds))
