"""``deliveries``, ``redeliver`` and ``webhook-secret``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cli.commands import JsonFlag, at_least, in_session, output_of
from cli.errors import ExitStatus

if TYPE_CHECKING:
    from cli.session import Session


def deliveries(
    ctx: typer.Context,
    job_id: Annotated[str | None, typer.Option("--job", metavar="ID", help="Only this job's.")] = None,
    status: Annotated[
        str | None, typer.Option("--status", help="Only those that are pending, delivered or dead.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", help="How many at most.")] = 20,
    as_json: JsonFlag = False,
) -> ExitStatus:
    """List callbacks of finished jobs, newest first."""
    output = output_of(ctx, as_json)
    at_least("--limit", limit, 1)

    async def action(session: Session) -> ExitStatus:
        from cli.session import job_path, pages

        path = "/api/deliveries" if job_id is None else job_path(job_id, "deliveries")
        found = await pages(session, path, {} if status is None else {"status": status}, limit=limit)
        if output.as_json:
            output.document({"items": found})
        else:
            columns = ("id", "job_id", "event", "status", "attempts", "last_error", "url")
            output.table([name.upper() for name in columns], [[each.get(name) for name in columns] for each in found])
        return ExitStatus.OK

    return in_session(output, action)


def redeliver(
    ctx: typer.Context,
    delivery_id: Annotated[str, typer.Argument(metavar="ID", help="The delivery's id.", show_default=False)],
    as_json: JsonFlag = False,
) -> ExitStatus:
    """Send a callback once more, under the same id."""
    output = output_of(ctx, as_json)

    async def action(session: Session) -> ExitStatus:
        from cli.client import Request
        from cli.session import delivery_path

        answer = await session.call(Request(method="POST", path=delivery_path(delivery_id, "redeliver")))
        if output.as_json:
            output.document(answer.document)
        else:
            output.line(f"Delivery {answer.document.get('id')} will be sent once more.")
        return ExitStatus.OK

    return in_session(output, action)


def webhook_secret(
    ctx: typer.Context,
    rotate: Annotated[
        bool, typer.Option("--rotate", help="Make another one; the one before signs along for a while.")
    ] = False,
    as_json: JsonFlag = False,
) -> ExitStatus:
    """Show the secret that your callbacks are signed with."""
    output = output_of(ctx, as_json)

    async def action(session: Session) -> ExitStatus:
        from cli.client import Request

        path, method = ("/api/webhook-secret/rotate", "POST") if rotate else ("/api/webhook-secret", "GET")
        found = (await session.call(Request(method=method, path=path))).document
        if output.as_json:
            output.document(found)
        else:
            output.line(str(found.get("secret")))
        return ExitStatus.OK

    return in_session(output, action)
