# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""A run's configuration: one table per role, merged from defaults, a file and flags, and validated in full."""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ctkd.certify.options import CertifyOptions, ExportOptions
from ctkd.errors import BadInput, CtkdError, nearest
from ctkd.hookspecs import Registration
from ctkd.options import Options, validate
from ctkd.pairs import check_pair
from ctkd.plugins import create, options_class, options_from, registry
from ctkd.recipes import check_header, source_of
from ctkd.settings import FILE, FLAG, Layers, nth, teacher_numbers, teacher_roles
from ctkd.shipped import drop_milestones, keep_one_epoch, scale_schedule, ship, ship_radius
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
"""Roles filled by a plugin, and the kind of plugin. Further teachers are the roles ``teacher.2``, ``teacher.3``, ..."""
SECTIONS: dict[str, type[Options]] = {
    "train": TrainOptions,
    "certify": CertifyOptions,
    "export": ExportOptions,
}
"""Roles that belong to core."""
BASE = {"data": "digits", "bound": "crown-ibp", "teacher": "pgd", "attack": "pgd", "propagation": "native"}
"""What a bare ``ctkd train`` uses. The model and eps come from the data set's file in ``ctkd/defaults``."""
TRAINING = {"bound": "ibp", "teacher": "none", "distill": "none", "attack": "pgd", "propagation": "native"}
"""Roles that a trained network no longer needs, and what stands for them."""
COMMAND_LINE = "command line"


@dataclass(frozen=True)
class Choice:
    """One plugin and its validated options."""

    entry: Registration
    options: Options

    @property
    def name(self) -> str:
        return self.entry.name

    def table(self) -> dict[str, Any]:
        return {"name": self.name, **_plain(self.options)}

    def create(self) -> Any:
        return create(self.entry, self.options)


@dataclass(frozen=True)
class RunConfig:
    """A validated configuration. ``sources`` says where each ``role.key`` came from."""

    data: Choice
    data_dir: Path | None
    model: Choice
    bound: Choice
    teachers: tuple[Choice, ...]
    distill: Choice
    attack: Choice
    propagation: Choice
    train: TrainOptions
    certify: CertifyOptions
    export: ExportOptions
    sources: Mapping[str, str]
    notices: tuple[str, ...] = ()
    """What is not wrong, but worth a warning before a training."""

    @property
    def taught(self) -> bool:
        """Whether there is a teacher at all."""
        return all(choice.name != "none" for choice in self.teachers)

    def tables(self) -> dict[str, Any]:
        """The whole configuration as plain tables, several teachers as a list; None is ``"none"``, as TOML has none."""
        tables: dict[str, Any] = {}
        for role in ROLES:
            if role == "teacher":
                several = [choice.table() for choice in self.teachers]
                tables[role] = several if len(several) > 1 else several[0]
                continue
            choice: Choice = getattr(self, role)
            tables[role] = choice.table()
        if self.data_dir is not None:
            tables["data"]["dir"] = str(self.data_dir.resolve())
        for role in SECTIONS:
            tables[role] = _plain(getattr(self, role))
        return tables


def _plain(options: Options) -> dict[str, Any]:
    return {key: "none" if value is None else value for key, value in options.model_dump(mode="json").items()}


def dump(config: RunConfig, *, sources: bool = False) -> str:
    """The configuration as TOML, with the source of each value as a comment on request."""
    import tomli_w

    if not sources:
        return tomli_w.dumps(config.tables())
    lines = []
    for role, content in config.tables().items():
        tables = content if isinstance(content, list) else [content]
        for i, table in enumerate(tables, start=1):
            lines.append(f"[{role}]" if len(tables) == 1 else f"[[{role}]]")
            for key, value in table.items():
                text = f"{key} = {_inline(value)}"
                lines.append(f"{text:<40} # {config.sources.get(f'{nth(role, i)}.{key}', 'default')}")
            lines.append("")
    return "\n".join(lines)


def _inline(value: Any) -> str:
    """A value as TOML on one line."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key} = {_inline(part)}' for key, part in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_inline, value))}]"
    return json.dumps(value)


# Merging -------------------------------------------------------------------------------------------------


def resolve(flags: Mapping[str, Any] | None = None, file: Path | None = None, *, trained: bool = False) -> RunConfig:
    """Merge and validate.

    Args:
        flags: ``"role.key"`` -> value, as ``--set`` takes them; the highest rank.
        file: a TOML file with one table per role.
        trained: the file's run is trained: the plugins that only trained it are left out, and need not be there.

    Raises:
        BadInput: every mistake, one line each.
    """
    problems: list[str] = []
    layers = Layers()
    if file is not None:
        for role, key, value in _read(file, problems):
            if not (trained and role.split(".")[0] in TRAINING):
                layers.put(FILE, role, key, value, source_of(file))
        for role, name in TRAINING.items() if trained else ():
            layers.put(FILE, role, "name", name, "left out")
    for path, value in (flags or {}).items():
        role, key = split_path(path)
        if _known_role(role, key, path, problems):
            layers.put(FLAG, role, key, value, COMMAND_LINE)
    entries = _choose(layers, problems)
    scale_schedule(layers)
    keep_one_epoch(layers)
    drop_milestones(layers)
    config = _build(layers, entries, problems)
    if problems or config is None:
        raise BadInput(*dict.fromkeys(problems))
    check_pair(config)
    return config


def split_path(path: str) -> tuple[str, str]:
    """Role and key of ``role.key``; ``teacher.2.key`` belongs to the second teacher."""
    role, _, key = path.partition(".")
    number, _, rest = key.partition(".")
    if role == "teacher" and number.isdecimal() and int(number) > 0:
        return nth(role, int(number)), rest
    return role, key


def _kind(role: str) -> str:
    return ROLES[role.split(".")[0]]


def _known_role(role: str, key: str, path: str, problems: list[str]) -> bool:
    roles = [*ROLES, *SECTIONS]
    if role.split(".")[0] not in roles:
        problems.append(f"{path}: no section {role!r}: {nearest(role, roles)}")
        return False
    if not key:
        problems.append(f"{path}: write section.key, such as {role}.{'seed' if role in SECTIONS else 'name'}")
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
        if role == "recipe" and isinstance(table, dict):
            check_header(table, problems)
        elif role == "teacher" and isinstance(table, list) and all(isinstance(part, dict) for part in table):
            for i, part in enumerate(table, start=1):
                found += [(nth(role, i), key, value) for key, value in part.items()]
        elif "." in role:  # a quoted name
            problems.append(f"{file}: no section {role!r}; several teachers are written as [[teacher]] tables")
        elif not isinstance(table, dict):
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
            if name is None and role.startswith("teacher."):
                raise BadInput(f"{role}.name must be given, such as pgd: it says where the teacher comes from")
            if not isinstance(name, str):
                raise BadInput(f"{role}.name={name!r} must be the name of a plugin")
            entries[role] = registry().find(_kind(role), name, role)
        except BadInput as problem:
            problems.extend(problem.messages)

    _spell_out(layers)
    for role, name in BASE.items():
        layers.put(0, role, "name", name, "default")
    find("data")
    dataset = entries["data"].name if "data" in entries else ""
    ship(layers, f"{dataset}.toml", {})
    if layers.get("model", "name") is None:
        layers.put(0, "model", "name", "cnn-small", "default")
    if layers.get("train", "eps") is None and dataset:
        problems.append(f"data set {dataset!r} has no default radius: give --eps")
    layers.put(0, "distill", "name", "none" if layers.get("teacher", "name") == "none" else "features", "default")
    for i, number in enumerate(teacher_numbers(layers), start=1):
        if i != number:
            problems.append(
                f"teacher.{number}: there is no teacher.{i}; number further teachers 2, 3, ... without gaps"
            )
            break
    for role in [*(r for r in ROLES if r not in ("data", "teacher", "attack")), *teacher_roles(layers)]:
        find(role)
    brought = _brought(layers, entries, problems)
    for who, values in brought.items():
        _lay(layers, "name", values.get("name"), who, problems)
    find("attack")
    ship_radius(layers, dataset, {role: entry.name for role, entry in entries.items()})
    if "attack" in entries:
        _bring_attack(layers, entries["attack"], brought, problems)
    return entries


def _brought(layers: Layers, entries: Mapping[str, Registration], problems: list[str]) -> dict[str, Mapping[str, Any]]:
    """The attack options that bound method and objective, as configured, bring along."""
    found: dict[str, Mapping[str, Any]] = {}
    for role in ("bound", "distill"):
        if role not in entries:
            continue
        table = {key: value for key, value in layers.table(role).items() if key != "name"}
        try:
            options = validate(options_class(entries[role]), table, role, [])
            if options is not None:  # else it is reported where the configuration is built
                found[f"{role} {entries[role].name}"] = getattr(create(entries[role], options), "attack", {})
        except CtkdError as error:
            problems.append(str(error))
    return found


def _bring_attack(
    layers: Layers, attack: Registration, brought: Mapping[str, Mapping[str, Any]], problems: list[str]
) -> None:
    """Lay them below what was set. Those meant for another attack count only where this one has them, too."""
    try:
        fields = options_class(attack).model_fields
    except CtkdError as error:
        problems.append(str(error))
        return
    for who, values in brought.items():
        for key, value in values.items():
            if key == "name":
                continue
            if key in fields:
                _lay(layers, key, value, who, problems)
            elif values.get("name", BASE["attack"]) == attack.name:
                problems.append(f"{who} brings attack.{key}={value}, which is no option of attack {attack.name}")
            else:
                layers.notices.append(
                    f"{who} brings attack.{key}={value}, which attack {attack.name} does not have: it trains without"
                )


def _lay(layers: Layers, key: str, value: Any, who: str, problems: list[str]) -> None:
    known = layers.top("attack", key)
    if value is None:
        return
    if known is not None and known[0] == 0 and known[1] != value and known[2] != "default":
        problems.append(
            f"{known[2]} brings attack.{key}={known[1]} and {who} attack.{key}={value}: "
            f"choose one of them, or set attack.{key}"
        )
    layers.put(0, "attack", key, value, who)


def _spell_out(layers: Layers) -> None:
    """A model or data set may be given by an import path or a path; that stands for a plugin with this option."""
    for role in ("model", "data"):
        for rank, (name, source) in list(layers.values.get((role, "name"), {}).items()):
            if not isinstance(name, str) or name in registry().names(_kind(role)):
                continue
            if role == "model" and ":" in name:
                plugin, key = "import", "factory"
            elif role == "data" and name.endswith(".npz"):
                plugin, key = "npz", "path"
            elif role == "data" and ("/" in name or os.sep in name or Path(name).is_dir()):
                plugin, key = "folder", "path"
            else:
                continue
            layers.put(rank, role, "name", plugin, source)
            layers.put(rank, role, key, name, source)


def _validated(
    kind: type[Options], table: dict[str, Any], role: str, layers: Layers, problems: list[str]
) -> Options | None:
    """As ``validate``; messages name the file or recipe that set a value, for the user may not have."""
    found: list[str] = []
    options = validate(kind, table, role, found)
    for problem in found:  # begins with role.key
        known = layers.top(role, re.split(r"[= ]", problem.removeprefix(f"{role}."))[0])
        problems.append(f"{problem} ({known[2]} sets it)" if known is not None and known[0] == FILE else problem)
    return options


def check_imports(config: RunConfig, allowed: bool) -> None:
    """Raises: BadInput if a file, not the command line, names code to run and that was not allowed."""
    source = config.sources.get("model.factory")
    if config.model.name == "import" and source != COMMAND_LINE and not allowed:
        raise BadInput(
            f"{source} asks to import {config.model.table()['factory']} and run it; "
            "add --allow-import if you trust that file"
        )


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
            options = _validated(options_class(entry), table, role, layers, problems)
        except CtkdError as error:
            problems.append(str(error))
            continue
        if options is not None:
            choices[role] = Choice(entry, options)
    sections = {role: _validated(kind, layers.table(role), role, layers, problems) for role, kind in SECTIONS.items()}
    certify = sections["certify"]
    if isinstance(certify, CertifyOptions):
        for table in certify.stages:
            options_from("stage", table, "certify.stages", problems)
        for table in certify.further_attacks:
            if (options := options_from("attack", table, "certify.further_attacks", problems)) is not None:
                made = create(registry().find("attack", table["name"]), options)
                if getattr(made, "calls_teacher", False) or getattr(made, "reference", None) == "teacher":
                    problems.append(
                        f"certify.further_attacks: {table['name']} needs a teacher, and an evaluation has none"
                    )
    if len(choices) < len(ROLES) - 1 + len(teacher_roles(layers)) or None in sections.values():
        return None
    teachers = tuple(choices.pop(role) for role in teacher_roles(layers))
    return RunConfig(
        data_dir=data_dir,
        sources=layers.sources(),
        notices=tuple(layers.notices),
        teachers=teachers,
        **cast(Any, {**choices, **sections}),
    )
