# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""What every registered plugin must satisfy, whatever its kind: registration, options, global state."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Callable
from typing import Any

from ctkd import plugins
from ctkd.hookspecs import Registration
from ctkd.options import Options, validate
from ctkd.testing.isolated import look
from ctkd.testing.state import Group, changes, preserved, seed_everything
from ctkd.testing.subject import HOOKS, ConformanceError, NotApplicable, Subject

LONGEST = 120
"""Characters of a summary: it stands in one line of a listing."""
MUTABLE = (list, dict, set, bytearray)
RESERVED = {"dataset": ("name", "dir")}
"""Names that options cannot have, beside ``name``."""


def is_registered(subject: Subject) -> None:
    """The registration names the plugin, says in one line what it is, and lists its papers."""
    entry = subject.entry
    contract = "Registration.{} " + f"of the list that {HOOKS[subject.kind]}() returns"
    if not entry.summary.strip() or "\n" in entry.summary or len(entry.summary) > LONGEST:
        subject.reject(
            f"the summary is {entry.summary!r}",
            f"{contract.format('summary')} is one line of at most {LONGEST} characters",
            "say in a few words what it does; details belong in the docstring",
        )
    if not isinstance(entry.papers, tuple):
        subject.reject(
            f"papers is a {type(entry.papers).__name__}",
            f"{contract.format('papers')} is a tuple",
            "write (paper,) for a single one",
        )


def registration_module(entry: Registration) -> Any:
    """The module that registered it."""
    registry = plugins.registry()
    for implementation in getattr(registry.manager.hook, HOOKS[entry.kind]).get_hookimpls():
        if any((found.name, found.target) == (entry.name, entry.target) for found in implementation.function()):
            return implementation.plugin
    return None


@functools.cache
def _seen(module: str, targets: tuple[str, ...]) -> dict[str, Any]:
    return look(module, targets)


def is_registered_without_being_loaded(subject: Subject) -> None:
    """Registering loads neither torch nor the implementation, and loading that changes no global state."""
    entry = subject.entry
    module = registration_module(entry)
    if getattr(module, "__spec__", None) is None:
        raise NotApplicable("it was registered in this process only, by a module without a file")
    others = plugins.registry().entries.values()
    targets = tuple(sorted({other.target for other in others if other.origin == entry.origin}))
    seen = _seen(module.__name__, targets)
    if seen["error"]:
        raise NotApplicable(f"{module.__name__} cannot be imported in a process of its own: {seen['error']}")
    if seen["loaded"]:
        subject.reject(
            f"importing {module.__name__} loads {', '.join(seen['loaded'])}",
            "ctkd.hookspecs: the registration module imports neither torch nor the implementation, so that listing "
            "plugins and `ctkd --help` stay fast",
            'keep the hooks in a light module, name the implementation as "module:Object" only, and import torch '
            "inside functions or under TYPE_CHECKING; a package's __init__.py counts, too",
        )
    _reject_changes(subject, seen["changed"].get(entry.target, []), f"importing {entry.target}")


def is_made_from_its_options(subject: Subject) -> None:
    """Its target is called with the validated options, and nothing happens to them."""
    options = subject.options()
    before = options.model_copy(deep=True)
    for _ in range(2):
        plugins.create(subject.entry, options)
    if options != before:
        subject.reject(
            "its constructor changed the options",
            "options are what the user set and what the run folder records",
            "copy what you need into attributes",
        )


def has_frozen_and_documented_options(subject: Subject) -> None:
    """The options are a frozen ``ctkd.options.Options``, and each of them says what it means."""
    options = subject.options_class
    if not (isinstance(options, type) and issubclass(options, Options)):
        subject.reject(
            f"its options are {options!r}",
            "options are a subclass of ctkd.options.Options: the class attribute Options of the target, or "
            "Registration.options",
            "write `class MyOptions(Options): ...` with one documented field for each option",
        )
    if not options.model_config.get("frozen") or options.model_config.get("extra") != "forbid":
        subject.reject(
            f"model_config of {options.__name__} is {dict(options.model_config)}",
            "options are frozen and refuse unknown names (frozen=True, extra='forbid'), as their base class sets it",
            "leave model_config alone",
        )
    values = subject.options()
    held = {name: type(getattr(values, name)) for name in options.model_fields}
    mutable = [
        f"{name} of {options.__name__} holds a {kind.__name__}" for name, kind in held.items() if kind in MUTABLE
    ]
    if mutable:
        subject.reject(
            f"option {mutable[0]}",
            "options are frozen, and so is what they hold",
            "declare a tuple or frozenset in its place",
        )
    silent = [name for name, field in options.model_fields.items() if not (field.description or "").strip()]
    if silent:
        subject.reject(
            f"{', '.join(silent)} of {options.__name__} {'has' if len(silent) == 1 else 'have'} no description",
            "each option says what it means, with unit and range: `ctkd plugins show` and the documentation print it",
            "write a docstring in the line below the field",
        )
    taken = [name for name in ("name", *RESERVED.get(subject.kind, ())) if name in options.model_fields]
    if taken:
        subject.reject(
            f"{options.__name__} has an option {taken[0]!r}",
            f"{taken[0]!r} is reserved: in a configuration it stands beside the options",
            "choose another name",
        )


def refuses_unknown_options(subject: Subject) -> None:
    """An option that does not exist is refused, in words."""
    problems: list[str] = []
    values = {**subject.values, "no_such_option_exists": 1}
    if validate(subject.options_class, values, subject.kind, problems) is not None:
        subject.reject(
            f"{subject.options_class.__name__} accepts an option that it does not have",
            "a mistyped option is an error, never ignored",
            "leave model_config alone, and let no validator drop unknown keys",
        )


def has_options_that_survive_a_config_file(subject: Subject) -> None:
    """Written to TOML and read again, as run folders do it, the options are the same."""
    import tomli_w

    from ctkd.config import Choice

    options = subject.options()
    try:
        table = tomllib.loads(tomli_w.dumps(Choice(subject.entry, options).table()))
    except (TypeError, ValueError) as error:
        subject.reject(
            f"its options cannot be written as TOML: {error}",
            "a run folder's config.toml holds all options and reproduces the run",
            "use numbers, texts, booleans, tuples, and None for a value that is not given",
        )
    table.pop("name")
    problems: list[str] = []
    again = validate(subject.options_class, table, subject.kind, problems)
    if again != options:
        subject.reject(
            f"options that were written to TOML and read again are {again!r}, not {options!r} {'; '.join(problems)}",
            "a run folder's config.toml holds all options and reproduces the run",
            "validators must accept what they return",
        )


COMMON: tuple[Callable[[Subject], None], ...] = (
    is_registered,
    is_registered_without_being_loaded,
    is_made_from_its_options,
    has_frozen_and_documented_options,
    refuses_unknown_options,
    has_options_that_survive_a_config_file,
)
"""Of every kind that is registered by name."""


def leaves_global_state_alone(exercise: Callable[[Subject], object], *groups: Group) -> Callable[[Subject], None]:
    """The check that using the plugin, which is what ``exercise`` does, changes none of the groups (or nothing)."""

    def leaves_global_state_alone(subject: Subject) -> None:
        """Using it changes no global state: random numbers, default dtype, threads, environment, warnings, ..."""
        with preserved():
            try:
                exercise(subject)  # what the first use imports may change much, and is not the plugin's doing
            except ConformanceError:
                raise NotApplicable("its use fails another check") from None
        with preserved():
            seed_everything(3)
            with preserved() as before:
                exercise(subject)
                found = changes(before, *groups)
        _reject_changes(subject, found, "using it")

    return leaves_global_state_alone


def _reject_changes(subject: Subject, found: list[str], when: str) -> None:
    if found:
        subject.reject(
            f"{when} changes {'; '.join(found)}",
            "a plugin leaves global state alone: core and other plugins depend on it, and results would depend on "
            "what ran before",
            "draw from the generator that you are given; set modes with a context manager (torch.no_grad(), "
            "warnings.catch_warnings(), torch.random.fork_rng()) that puts them back",
        )
