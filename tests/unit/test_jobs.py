"""The table of moves: every row is allowed, nothing else is; code, SQL and documentation have the same one."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

from shared.jobs import (
    FINAL,
    PLATFORM_REASONS,
    TRANSITIONS,
    IllegalTransition,
    JobEvent,
    JobKind,
    JobStatus,
    Reason,
    Transition,
    after,
)
from shared.postgres.migrate import known_migrations
from shared.postgres.queries import queries

DOCUMENT = Path(__file__).parents[2] / "docs" / "reference" / "jobs.md"
ALLOWED = {(move.source, move.event) for move in TRANSITIONS}
EVERY_PAIR = list(itertools.product((None, *JobStatus), JobEvent))


@pytest.mark.parametrize("move", TRANSITIONS, ids=lambda move: f"{move.source}-{move.event}")
def test_row_of_the_table_is_allowed(move: Transition) -> None:
    assert after(move.source, move.event) is move.target


@pytest.mark.parametrize(("source", "event"), [pair for pair in EVERY_PAIR if pair not in ALLOWED])
def test_every_other_pair_is_refused(source: JobStatus | None, event: JobEvent) -> None:
    with pytest.raises(IllegalTransition):
        after(source, event)


def test_no_pair_stands_twice() -> None:
    assert len(ALLOWED) == len(TRANSITIONS)


def test_nothing_leaves_a_final_state_and_every_other_state_can_be_left() -> None:
    assert {move.source for move in TRANSITIONS} & FINAL == set()
    reached = {move.target for move in TRANSITIONS}
    assert reached - FINAL <= {move.source for move in TRANSITIONS}
    assert reached >= FINAL


def test_document_has_the_same_moves() -> None:
    assert tuple(_transition(row) for row in _document_rows("## Moves")) == TRANSITIONS


def test_document_has_the_same_states() -> None:
    states = [(row[0], row[1] == "yes") for row in _document_rows("## States")]
    assert states == [(status.value, status in FINAL) for status in JobStatus]


def test_document_has_the_same_reasons() -> None:
    rows = {row[0]: row[1] for row in _document_rows("## Reasons")}
    assert list(rows) == [reason.value for reason in Reason]
    assert {reason for reason, whose in rows.items() if whose == "platform"} == PLATFORM_REASONS


def test_sql_allows_the_same_states_and_kinds() -> None:
    schema = "\n".join(migration.text for migration in known_migrations())
    assert _check(schema, "jobs_status") == {status.value for status in JobStatus}
    assert _check(schema, "jobs_kind") == {kind.value for kind in JobKind}


def test_sql_knows_the_same_final_states() -> None:
    schema = "\n".join(migration.text for migration in known_migrations())
    found = re.search(r"jobs_final_has_end CHECK \(\(status IN \(([^)]*)\)", schema)
    assert found is not None
    assert _quoted(found[1]) == {status.value for status in FINAL}


def test_sql_that_settles_leaves_final_jobs_alone() -> None:
    guard = re.search(r"WHERE j\.status IN \(([^)]*)\)", queries("jobs")["settle_jobs"])
    assert guard is not None
    assert _quoted(guard[1]) == {status.value for status in JobStatus} - {status.value for status in FINAL}


def _document_rows(heading: str) -> list[list[str]]:
    """The cells of the first table below ``heading``."""
    section = DOCUMENT.read_text("utf-8").split(f"{heading}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines[2:]]


def _transition(row: list[str]) -> Transition:
    source, event, target, who = row
    return Transition(
        source=None if source == "(new)" else JobStatus(source),
        event=JobEvent(event),
        target=JobStatus(target),
        who=who,
    )


def _check(schema: str, constraint: str) -> set[str]:
    """The values of the newest definition of ``constraint``."""
    found = re.findall(rf"{constraint}\s+CHECK \(\w+ IN \(([^)]*)\)", schema)
    assert found, constraint
    return _quoted(found[-1])


def _quoted(text: str) -> set[str]:
    return set(re.findall(r"'([a-z_]+)'", text))
