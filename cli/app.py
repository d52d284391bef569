"""The ``containerpub`` command: ``main(args, env) -> ExitStatus``.

Importing this module must stay quick, since ``--help`` and every mistake on the command line wait for it: commands
import what they need inside their bodies.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from typer.main import get_command

from cli.commands import CliContext, JsonFlag, at_least, output_of
from cli.commands.accounts import login, logout, me, register
from cli.commands.deliveries import deliveries, redeliver, webhook_secret
from cli.commands.deploy import deploy
from cli.commands.functions import delete, list_functions, start, stop
from cli.commands.init import init
from cli.commands.invoke import invoke
from cli.commands.jobs import cancel, job, jobs, redrive
from cli.commands.logs import logs
from cli.environment import Environment
from cli.errors import CliError, ExitStatus
from cli.output import Output


class EngineChoice(StrEnum):
    AUTO = "auto"
    DOCKER = "docker"
    PROCESS = "process"


# No rich help: importing it would double the time that --help takes.
app = typer.Typer(name="containerpub", rich_markup_mode=None, no_args_is_help=True, pretty_exceptions_enable=False)

app.command()(register)
app.command()(login)
app.command()(logout)
app.command()(me)
app.command()(init)
app.command()(deploy)
app.command(name="list")(list_functions)
app.command()(invoke)
app.command()(job)
app.command()(jobs)
app.command()(cancel)
app.command()(redrive)
app.command()(deliveries)
app.command()(redeliver)
app.command(name="webhook-secret")(webhook_secret)
app.command()(logs)
app.command()(stop)
app.command()(start)
app.command()(delete)


@app.callback(invoke_without_command=True)
def containerpub(
    ctx: typer.Context,
    as_json: JsonFlag = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    """Deploy functions to a ContainerPub server and run them."""
    output = output_of(ctx, as_json)
    if version:
        from importlib.metadata import version as installed

        if output.as_json:
            output.document({"version": installed("containerpub")})
        else:
            output.line(installed("containerpub"))
        raise typer.Exit


@app.command()
def up(
    ctx: typer.Context,
    data: Annotated[Path | None, typer.Option("--data", help="Data folder; the user's own when left out.")] = None,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Port to listen on.")] = 8080,
    workers: Annotated[int, typer.Option("--workers", help="How many worker processes.")] = 2,
    engine: Annotated[EngineChoice, typer.Option("--engine", help="What runs the functions.")] = EngineChoice.AUTO,
) -> int:
    """Start a whole server on this machine."""
    env = output_of(ctx, False).env
    at_least("--workers", workers, 1)

    from cli.commands.up import run_up
    from cli.config import data_folder

    folder = env.cwd / data if data is not None else data_folder(env.variables)
    return run_up(folder, host, port, workers, engine.value)


@app.command()
def migrate(ctx: typer.Context) -> int:
    """Bring the database's schema up to date."""
    from cli.commands.migrate import run_migrate

    return run_migrate()


@app.command()
def check(
    ctx: typer.Context,
    data: Annotated[
        Path | None, typer.Option("--data", help="Data folder of `up`; the settings' servers when left out.")
    ] = None,
    patience: Annotated[float, typer.Option("--patience", help="Seconds that a job may be on its way.")] = 10,
    limit: Annotated[int, typer.Option("--limit", help="How many findings to name.")] = 20,
    as_json: JsonFlag = False,
) -> ExitStatus:
    """Check that every accepted job is where it belongs."""
    output = output_of(ctx, as_json)
    at_least("--patience", patience, 0)
    at_least("--limit", limit, 0)

    from cli.commands.check import run_check

    folder = output.env.cwd / data if data is not None else None
    return run_check(output, folder, patience_s=patience, limit=limit)


@app.command(name="rotate-keys")
def rotate_keys(ctx: typer.Context) -> int:
    """Seal everything in the database with the first of ENCRYPTION_KEYS."""
    from cli.commands.rotate_keys import run_rotate_keys

    return run_rotate_keys()


def main(args: Sequence[str], env: Environment) -> ExitStatus:
    """Run the command with ``args`` (without the program's name) and say how it ended.

    Writes to the environment's streams only. Raises nothing but what is a mistake in this program.
    """
    context = CliContext(env=env)
    try:
        with contextlib.redirect_stdout(env.stdout), contextlib.redirect_stderr(env.stderr):
            code = get_command(app).main(list(args), prog_name="containerpub", standalone_mode=False, obj=context)
        return ExitStatus(code or 0)
    except KeyboardInterrupt:
        return ExitStatus.INTERRUPTED
    except typer.TyperException as error:
        context.as_json = context.as_json or "--json" in args
        return _refused(error, context)
    except CliError as error:
        return _ended(error, context)


def _ended(error: CliError, context: CliContext) -> ExitStatus:
    if error.status is ExitStatus.OUTPUT_CLOSED:
        return error.status
    try:
        Output(context.env, as_json=context.as_json).error(error)
    except CliError as closed:
        return closed.status
    return error.status


def _refused(error: typer.TyperException, context: CliContext) -> ExitStatus:
    """The command line is wrong, or names no command at all, which shows the help."""
    if type(error).__name__ == "NoArgsIsHelpError":
        context.env.stderr.write(error.format_message() + "\n")
        return ExitStatus.USAGE
    command = getattr(getattr(error, "ctx", None), "command_path", "containerpub")
    return _ended(CliError(error.format_message(), hint=f"See `{command} --help`."), context)
