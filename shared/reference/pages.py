"""The pages by their names in ``docs/reference``."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from shared.reference.project_file import project_file_page, project_file_schema_text
from shared.reference.settings import settings_page

PAGES: Mapping[str, Callable[[], str]] = {
    "settings.md": settings_page,
    "project-file.md": project_file_page,
    "containerpub.schema.json": project_file_schema_text,
}
