"""Write the pages that are made from the code, below the working folder."""

from __future__ import annotations

from pathlib import Path

from shared.reference.pages import PAGES

for name, page in PAGES.items():
    (Path("docs") / "reference" / name).write_text(page(), "utf-8")
