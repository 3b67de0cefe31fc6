"""The command line.

``worldsim --help`` imports neither torch, xarray, scipy nor pydantic: command modules import click alone,
and each command imports what it needs when it runs.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

import click

from worldsim import __version__
from worldsim.cli.terminal import speak_to_nobody
from worldsim.errors import ClusterError, DeviceError, WorldsimError, did_you_mean

DONE, SOME_FAILED, USAGE, ENVIRONMENT, INTERRUPTED = 0, 1, 2, 3, 130
"""Exit codes."""

COMMANDS = {
    "run": "running",
    "validate": "running",
    "plan": "planning",
    "why": "planning",
    "status": "kept",
    "show": "kept",
    "score": "scoring",
    "compare": "scoring",
    "report": "kept",
    "clean": "kept",
    "verify": "keeping",
    "compact": "keeping",
    "export": "keeping",
    "plugins": "installed",
    "schema": "installed",
    "doctor": "installed",
    "profile": "profiling",
}
"""Command -> the module that holds it."""


class Commands(click.Group):
    """A group that imports a command's module when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = getattr(import_module(f"worldsim.cli.{COMMANDS[cmd_name]}"), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[Any, Any, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            ctx.fail(f"there is no command {args[0]!r}; {did_you_mean(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="worldsim %(version)s")
def worldsim() -> None:
    """Find out whether a learned model understands a physical world or merely fits it.

    Exit codes: 0 all done, 1 some case failed, 2 usage or validation, 3 environment (device absent, folder
    unwritable, cluster lost), 130 interrupted.
    """


def main() -> NoReturn:
    """The console script: run what the command line says and leave with its exit code."""
    for number in (signal.SIGTERM, signal.SIGUSR1):  # a cluster's pre-emption ends a run as Ctrl-C does
        signal.signal(number, _interrupt)
    sys.exit(exit_code(sys.argv[1:]))


def _interrupt(number: int, frame: Any) -> NoReturn:
    raise KeyboardInterrupt


def exit_code(arguments: Sequence[str]) -> int:
    """Run one command; what worldsim raises on purpose is printed without a traceback."""
    try:
        given = tuple(arguments)  # a run that is stopped says with which arguments it goes on
        return int(worldsim.main(given, prog_name="worldsim", standalone_mode=False, obj=given) or DONE)
    except click.ClickException as error:
        error.show()
        return USAGE
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of a pipe has gone: nobody to tell
        speak_to_nobody()
        return DONE
    except (ClusterError, DeviceError) as error:
        click.echo(str(error), err=True)
        return ENVIRONMENT
    except OSError as error:
        click.echo(f"{error.filename or 'this machine'}: {error.strerror or error}", err=True)
        return ENVIRONMENT
    except WorldsimError as error:
        click.echo(str(error), err=True)
        return USAGE
