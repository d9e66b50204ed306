"""The command line: finds the command's file, runs it, and turns what went wrong into a message and an exit code.

0 done, 1 unexpected, 2 usage or configuration, 3 finished and some trials failed, 4 the machine lacks something,
5 not shown by the evidence, 130 interrupted. The result goes to stdout, everything else to stderr.
"""

import difflib
import importlib
import json
import os
import pkgutil
import sys
from typing import Any, NoReturn

import click

from harness import __version__
from harness.errors import HarnessError


class Commands(click.Group):
    """One file per command in this folder; a file is imported when its command runs or is listed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        command: click.Command = importlib.import_module(f"{__name__}.{cmd_name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in self.list_commands(ctx) and not name.startswith("-"):
            near = difflib.get_close_matches(name, self.list_commands(ctx), n=1)
            raise click.UsageError(f"no command {name!r}" + (f"; did you mean {near[0]}?" if near else ""), ctx)
        return super().resolve_command(ctx, args)


@click.command(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="harness %(version)s")
@click.pass_context
def harness(ctx: click.Context) -> None:
    """Which fine-tuning method, at which bit-width, at what cost, and whether the difference is real.

    Start with: harness study tiny-methods
    """
    if os.environ.get("NO_COLOR"):
        ctx.color = False


def main() -> NoReturn:
    """What `harness` runs."""
    run(harness, sys.argv[1:])


def run(command: click.Command, arguments: list[str]) -> NoReturn:
    """Run a command line and exit. A command returns its exit code, or None when it is done."""
    as_json = "--json" in arguments
    try:
        code = command.main(arguments, prog_name="harness", standalone_mode=False)
        sys.stdout.flush()
    except HarnessError as error:
        _fail(error.message, error.remedy, error.exit_code, as_json)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(2)
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "harness"
        _fail(error.format_message(), f"{path} --help", 2, as_json)
    except click.ClickException as error:
        _fail(error.format_message(), None, 2, as_json)
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped", err=True)
        sys.exit(130)
    except BrokenPipeError:
        # whoever read the output has had enough (`| head`); the interpreter's last flush must find an open file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        if os.environ.get("HARNESS_DEBUG"):
            raise
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{error.strerror or error}", "check the path, its permissions and the free disk", 2, as_json)
    except Exception as error:
        if os.environ.get("HARNESS_DEBUG"):
            raise
        message = f"unexpected {type(error).__name__}: {error}"
        _fail(message, "please report this; HARNESS_DEBUG=1 shows the traceback", 1, as_json)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, remedy: str | None, code: int, as_json: bool) -> NoReturn:
    if as_json:
        problem: dict[str, Any] = {"error": message, "remedy": remedy, "exit_code": code}
        click.echo(json.dumps(problem))
    else:
        click.echo(f"error: {message}", err=True)
        for line in (remedy or "").splitlines():
            click.echo(f"  do: {line}", err=True)
    sys.exit(code)
