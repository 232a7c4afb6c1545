# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The ``ctkd`` command: finds sub-commands among the plugins and turns errors into one line and an exit code."""

from __future__ import annotations

import difflib
import io
import os
import sqlite3
import sys
import traceback
from collections.abc import Sequence

import click

from ctkd.attribution import attributed, is_own
from ctkd.distributed import launched, reports
from ctkd.errors import BadInput, CtkdError
from ctkd.plugins import load, registry

EPILOG = """\b
Examples:
  ctkd train --bound crown-ibp --teacher pgd
  ctkd certify runs/NAME --eps 0.15
  ctkd export runs/NAME benchmark --samples 20 --seed 1
  ctkd plugins show cc-ibp
"""
COMMAND = "ctkd.command"
"""Of click's context: the registration of the command that runs."""


class Commands(click.Group):
    """Sub-commands by name; their modules are imported only when one is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return registry().names("command")

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = registry().entries.get(("command", cmd_name))
        if entry is None:
            return None
        command: click.Command = load(entry.target, entry.origin)
        command.name = cmd_name
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and ("command", args[0]) not in registry().entries:
            close = difflib.get_close_matches(args[0], self.list_commands(ctx), n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise BadInput(f"no command {args[0]!r}: {hint}accepted: {', '.join(self.list_commands(ctx))}")
        if args:
            ctx.meta[COMMAND] = registry().entries["command", args[0]]
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, OSError, sqlite3.Error):
            raise
        except Exception:
            entry = ctx.meta.get(COMMAND)  # none where there is no such command
            if entry is None or is_own(entry):
                raise
            with attributed(entry):
                raise

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        entries = [(name, registry().entries["command", name].summary) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(entries)


@click.command(cls=Commands, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ctkd", message="%(prog)s %(version)s")
def cli() -> None:
    """Train small networks that can be proved robust (L-infinity), with the help of robust teachers."""
    for failure in registry().failures if launched()[0] == 0 else ():
        click.echo(f"warning: {failure}", err=True)


def run(arguments: Sequence[str]) -> int:
    """Run the command line; returns the exit code. Errors are one line each on standard error.

    Of several processes (``ctkd.distributed``) one reports.
    """
    _print_anywhere()
    try:
        for argument in arguments:
            if not argument.isprintable():
                raise BadInput(f"argument {argument!r} has characters that cannot be printed")
        result = cli.main(args=list(arguments), prog_name="ctkd", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except BadInput as error:
        for message in error.messages:
            _print_error(error, f"error: {message}")
        return error.exit_code
    except CtkdError as error:
        if os.environ.get("CTKD_TRACEBACK") and reports(error):
            traceback.print_exception(error)
        _print_error(error, f"error: {error}")
        return error.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message())
        return 0
    except click.UsageError as error:
        _print_error(error, f"error: {_usage(error)}")
        return 2
    except (click.Abort, KeyboardInterrupt) as error:
        _print_error(error, "interrupted")
        return 130
    except BrokenPipeError:
        return 1
    except sqlite3.Error as error:  # such as a results file that is damaged in its middle
        _print_error(error, f"error: a results file cannot be used: {error}; what is stored is left as it is")
        return 1
    except OSError as error:  # a full disk, a folder that vanished
        _print_error(error, f"error: {error.filename or 'output'}: {error.strerror or error}")
        return 1


def _print_anywhere() -> None:
    """What a terminal's encoding lacks, such as a Greek letter, is printed as its code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _print_error(error: BaseException, line: str) -> None:
    if reports(error):
        print(line, file=sys.stderr)


def _usage(error: click.UsageError) -> str:
    where = f" (see `{error.ctx.command_path} --help`)" if error.ctx else ""
    return " ".join(error.format_message().split()) + where
