"""Print the invocation records of a function, as they stand in the Postgres of a data folder."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import asyncpg
from rich.console import Console
from rich.table import Table

from shared.embedded.postgres import EmbeddedPostgres

COLUMNS = ("attempt", "outcome", "start_kind", "queue_ms", "sandbox_ms", "run_ms", "total_ms", "peak_memory_bytes")
QUERY = """
SELECT i.* FROM invocations i JOIN functions f ON f.id = i.function_id
WHERE f.name = $1 ORDER BY i.accepted_at
"""


async def main(data: Path, function: str) -> int:
    connection = await asyncpg.connect(EmbeddedPostgres(data.resolve() / "postgres").visit().dsn)
    rows = await connection.fetch(QUERY, function)
    await connection.close()
    table = Table("job_id", *COLUMNS)
    for row in rows:
        shown = (row[name] for name in COLUMNS)
        table.add_row(str(row["job_id"]), *(f"{item:.1f}" if isinstance(item, float) else str(item) for item in shown))
    Console(width=170).print(table)
    return 0 if rows else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main(Path(sys.argv[1]), sys.argv[2])))
