"""``register``, ``login``, ``logout``, ``me``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cli.commands import JsonFlag, in_session, output_of
from cli.environment import Environment
from cli.errors import ApiError, CliError, ExitStatus, NotLoggedIn, UsageError

if TYPE_CHECKING:
    from cli.session import Session

PASSWORD_VARIABLE = "CONTAINERPUB_PASSWORD"  # noqa: S105 - the variable's name

Email = Annotated[str | None, typer.Option("--email", help="The account's address; asked for when left out.")]
PasswordStdin = Annotated[
    bool, typer.Option("--password-stdin", help=f"Read the password from stdin. {PASSWORD_VARIABLE} works too.")
]


def register(
    ctx: typer.Context,
    email: Email = None,
    username: Annotated[str | None, typer.Option("--username", help="Public name of the account.")] = None,
    password_stdin: PasswordStdin = False,
    as_json: JsonFlag = False,
) -> ExitStatus:
    """Make an account and log in."""
    output = output_of(ctx, as_json)
    email = email or _ask(output.env, "Email: ", "--email")
    username = username or _ask(output.env, "Username: ", "--username")
    password = _password(output.env, from_stdin=password_stdin, repeat=True)

    async def action(session: Session) -> ExitStatus:
        await session.register(email, username, password)
        if output.as_json:
            output.document({"email": email, "username": username, "api_url": session.client.api_url})
        else:
            output.line(f"Registered {username} and logged in at {session.client.api_url}.")
        _mention_override(session)
        return ExitStatus.OK

    return in_session(output, action)


def login(
    ctx: typer.Context, email: Email = None, password_stdin: PasswordStdin = False, as_json: JsonFlag = False
) -> ExitStatus:
    """Log in; the tokens are kept in the configuration folder."""
    output = output_of(ctx, as_json)
    email = email or _ask(output.env, "Email: ", "--email")
    password = _password(output.env, from_stdin=password_stdin, repeat=False)

    async def action(session: Session) -> ExitStatus:
        try:
            await session.log_in(email, password)
        except ApiError as error:
            if error.http_status == 401:  # the usual hint, to run this very command, would lead in a circle
                raise NotLoggedIn(error.message, hint="Check the email and the password.", code=error.code) from error
            raise
        if output.as_json:
            output.document({"email": email, "api_url": session.client.api_url})
        else:
            output.line(f"Logged in as {email} at {session.client.api_url}.")
        _mention_override(session)
        return ExitStatus.OK

    return in_session(output, action)


def logout(ctx: typer.Context, as_json: JsonFlag = False) -> ExitStatus:
    """Revoke the login and forget its tokens."""
    output = output_of(ctx, as_json)

    async def action(session: Session) -> ExitStatus:
        from cli.client import Request

        if session.target.from_environment:
            raise UsageError("The token comes from AUTH_TOKEN, which this command cannot forget.", hint="Unset it.")
        try:
            await session.call(Request(method="POST", path="/api/auth/logout"), may_ask=False)
        except NotLoggedIn:
            pass  # nothing that the server would still accept
        except CliError as error:
            await session.forget()
            output.note("The tokens are removed here, but the server was not told: they stay valid until they expire.")
            raise error
        await session.forget()
        if output.as_json:
            output.document({"logged_out": True})
        else:
            output.line("Logged out.")
        return ExitStatus.OK

    return in_session(output, action)


def me(ctx: typer.Context, as_json: JsonFlag = False) -> ExitStatus:
    """Show who is logged in."""
    output = output_of(ctx, as_json)

    async def action(session: Session) -> ExitStatus:
        from cli.client import Request

        account = (await session.call(Request(method="GET", path="/api/auth/me"))).document
        if output.as_json:
            output.document(account)
        else:
            names = ("email", "username", "id", "created_at")
            output.fields([*((name, account.get(name)) for name in names), ("server", session.client.api_url)])
        return ExitStatus.OK

    return in_session(output, action)


def _ask(env: Environment, prompt: str, option: str) -> str:
    if env.interactive:
        try:
            answer = env.ask(prompt)
        except EOFError:
            answer = ""
        if answer:
            return answer
    raise UsageError(f"{option} is missing.", hint=f"Give it with {option}.")


def _password(env: Environment, *, from_stdin: bool, repeat: bool) -> str:
    if from_stdin:
        password = env.stdin.read().rstrip("\r\n")
    elif env.variables.get(PASSWORD_VARIABLE):
        password = env.variables[PASSWORD_VARIABLE]
    elif env.interactive:
        try:
            password = env.read_password("Password: ")
            if repeat and password != env.read_password("Password again: "):
                raise UsageError("The two passwords differ.", hint="Try again.")
        except EOFError:
            password = ""
    else:
        raise UsageError(
            "There is no terminal to ask for the password at.", hint=f"Use --password-stdin or set {PASSWORD_VARIABLE}."
        )
    if not password:
        raise UsageError("The password is empty.", hint=f"Use --password-stdin or set {PASSWORD_VARIABLE}.")
    return password


def _mention_override(session: Session) -> None:
    if session.target.from_environment:
        session.output.note("AUTH_TOKEN is set and goes before this login.")
