"""Which files of a project folder are not deployed.

Patterns are those of gitignore, read by ``pathspec``. A later rule goes before an earlier one: what never belongs to a
function, then the ``.gitignore`` files of the repository, then the project's ``.containerpubignore``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pathspec import GitIgnoreSpec

from cli.errors import UsageError
from shared.textfile import NotText, text_of

IGNORE_FILE = ".containerpubignore"
GIT_IGNORE_FILE = ".gitignore"
BY_DEFAULT = "by default"
NEVER_DEPLOYED = (
    # what version control, editors and systems keep
    *(".git", ".hg", ".svn", ".idea/", ".vscode/", ".DS_Store", "._*", "__MACOSX/", "Thumbs.db", "desktop.ini"),
    # what is installed or made anew
    *("__pycache__/", "*.py[cod]", ".venv/", "venv/", "env/", "node_modules/", ".tox/", ".nox/", ".dart_tool/"),
    *(".mypy_cache/", ".pytest_cache/", ".ruff_cache/", ".coverage", "htmlcov/"),
    # credentials
    *(".env", ".env.*", ".npmrc", ".pypirc", ".netrc", ".ssh/", ".aws/", "*.pem", "*.key", "*.p12", "*.pfx"),
    *("id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*"),
    IGNORE_FILE,
)
_VENV_MARK = "pyvenv.cfg"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The patterns of one file.

    :param base: the folder that the patterns are relative to, as a path from the project's folder that ends with
        ``/``, or empty; :param below: the project's folder within the file's, in the same form.
    """

    source: str
    spec: GitIgnoreSpec
    base: str = ""
    below: str = ""

    def verdict(self, name: str) -> str | bool | None:
        """The rule by which ``name`` is left out, False if a rule includes it, None if no rule is about it."""
        if not name.startswith(self.base):
            return None
        found = self.spec.check_file(self.below + name[len(self.base) :])
        if found.include is None or found.index is None:
            return None
        return f"{self.spec.patterns[found.index].pattern!s}, {self.source}" if found.include else False


def default_rules() -> Rules:
    return Rules(source=BY_DEFAULT, spec=GitIgnoreSpec.from_lines(NEVER_DEPLOYED))


def file_rules(path: Path, *, source: str, base: str = "", below: str = "") -> Rules | None:
    """The rules of an ignore file; None without one. Raises :class:`UsageError` if it cannot be read."""
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
    except OSError as error:
        raise UsageError(f"{source} cannot be read: {error.strerror}.") from error
    try:
        return Rules(
            source=source, spec=GitIgnoreSpec.from_lines(text_of(content).splitlines()), base=base, below=below
        )
    except NotText as error:
        raise UsageError(f"{source} cannot be read: {error}") from error
    except ValueError as error:
        raise UsageError(f"{source} has a pattern that is none: {error}.", hint="Remove or correct it.") from error


def repository_rules(folder: Path) -> list[Rules]:
    """The rules of the ``.gitignore`` files above ``folder``, up to the repository's own, the outermost first. A file
    that leaves the whole folder out does not count: the folder was named to be deployed."""
    found: list[Rules] = []
    below = ""
    here = folder
    while not (here / ".git").exists():
        if here.parent == here:
            return []  # in no repository
        below = f"{here.name}/{below}"
        here = here.parent
        rules = file_rules(here / GIT_IGNORE_FILE, source=str(here / GIT_IGNORE_FILE), below=below)
        if rules is not None and rules.spec.check_file(below).include is not True:
            found.append(rules)
    return found[::-1]


def left_out_by(name: str, path: Path, *, is_folder: bool, rules: Iterable[Rules]) -> str | None:
    """The rule by which an entry is left out; None if it is deployed.

    :param name: from the project's folder, ``/`` between its parts.
    """
    reason: str | None = None
    if is_folder:
        name += "/"
        if (path / _VENV_MARK).is_file():
            reason = f"a virtual environment, {BY_DEFAULT}"
    for each in rules:
        verdict = each.verdict(name)
        if verdict is not None:
            reason = verdict if isinstance(verdict, str) else None
    return reason


def project_rules(folder: Path) -> tuple[Sequence[Rules], Sequence[Rules]]:
    """The rules that hold in all of a project's folder: those before and those behind the rules of its own
    ``.gitignore`` files."""
    own = file_rules(folder / IGNORE_FILE, source=IGNORE_FILE)
    return (default_rules(), *repository_rules(folder)), () if own is None else (own,)
