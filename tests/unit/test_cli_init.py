"""What ``init`` makes of an empty folder, and of one that has code."""

from __future__ import annotations

import io
import json
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from cli.app import main
from cli.environment import Environment
from cli.errors import ExitStatus
from cli.recognition import recognised

Init = Callable[..., tuple[ExitStatus, str, str]]

FLASK = "import flask\n\napplication = flask.Flask(__name__)\n"
FASTAPI = "from fastapi import FastAPI\n\napi: FastAPI = FastAPI(title='x')\n"
LAMBDA = "import json\n\ndef lambda_handler(event, context):\n    return 1\n"
EXPRESS = {"package.json": '{"dependencies": {"express": "^4"}}', "index.js": "require('express')().listen(3000)\n"}

CODE: dict[str, tuple[dict[str, str], str, str]] = {
    "Flask": ({"app.py": FLASK}, "python-flask", "app:application"),
    "Flask beside helpers": ({"app.py": FLASK, "main.py": "def handler(e): pass\n"}, "python-flask", "app:application"),
    "FastAPI": ({"api.py": FASTAPI}, "python-flask", "api:api"),
    "Starlette": ({"main.py": "app = Starlette(routes=[])\n"}, "python-flask", "main:app"),
    "Django": ({"wsgi.py": "application = get_wsgi_application()\n"}, "python-flask", "wsgi:application"),
    "Lambda": ({"lambda_function.py": LAMBDA, "helper.py": ""}, "python", "lambda_function:lambda_handler"),
    "handler": ({"main.py": "async def handler(event, context): pass\n"}, "python", "main:handler"),
    "marked": ({"work.py": "import x\n@x.function\ndef hello(e, c): pass\n"}, "python", "work:hello"),
    "Lambda in node": ({"index.js": "exports.handler = async (event) => 1;\n"}, "node", "index:handler"),
    "node module": (
        {"main.mjs": "export const handler = async () => 1\n", "package.json": "{}"}, "node", "main:handler",
    ),
    "node function": ({"package.json": "{}", "x.js": "export async function handler() {}\n"}, "node", "x:handler"),
    "Express": (EXPRESS, "node", "main:handler"),
    "node package": ({"package.json": "{}", "lib.js": ""}, "node", "main:handler"),
    "Dart": ({"pubspec.yaml": "name: x\n", "bin/main.dart": "void main() {}\n"}, "dart", "bin/main.dart"),
}  # fmt: skip


@pytest.fixture
def init(tmp_path: Path) -> Init:
    def call(*args: str) -> tuple[ExitStatus, str, str]:
        out, err = io.StringIO(), io.StringIO()
        env = Environment(
            stdin=io.StringIO(),
            stdout=out,
            stderr=err,
            variables={"HOME": str(tmp_path)},
            cwd=tmp_path,
            read_password=lambda prompt: "",
        )
        return main(["init", *args], env), out.getvalue(), err.getvalue()

    return call


def write(folder: Path, files: Mapping[str, str]) -> dict[str, bytes]:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return contents(folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", CODE)
def test_code_that_is_there_gets_a_project_file_and_stays_as_it_is(tmp_path: Path, init: Init, kind: str) -> None:
    files, runtime, handler = CODE[kind]
    before = write(tmp_path / "code", files)
    status, out, err = init("code")
    assert status is ExitStatus.OK, err
    after = contents(tmp_path / "code")
    assert {name: after[name] for name in before} == before
    assert tomllib.loads(after["containerpub.toml"].decode()) == {
        "name": "code",
        "runtime": runtime,
        "handler": handler,
    }
    assert f"runtime {runtime}, handler {handler}" in err
    assert sorted(Path(line).name for line in out.splitlines()) == sorted(set(after) - set(before))


def test_what_the_code_cannot_do_without_is_written_too(tmp_path: Path, init: Init) -> None:
    write(tmp_path / "web", {"app.py": FLASK})
    init("web")
    assert (tmp_path / "web" / "requirements.txt").read_text() == "flask\n"
    write(tmp_path / "own", {"app.py": FLASK, "pyproject.toml": ""})
    init("own")
    assert not (tmp_path / "own" / "requirements.txt").exists()
    write(tmp_path / "express", EXPRESS)
    _, _, err = init("express")
    assert "export async function handler" in (tmp_path / "express" / "main.mjs").read_text()
    assert "serves no application that listens" in err


def test_a_project_is_left_alone(tmp_path: Path, init: Init) -> None:
    for name in ("containerpub.toml", "function.json"):
        before = write(tmp_path / name[:4], {name: "", "main.py": ""})
        status, _, err = init(name[:4])
        assert status is ExitStatus.USAGE
        assert f"is a project already: it has {name}" in err
        assert contents(tmp_path / name[:4]) == before


def test_code_that_tells_nothing_is_not_written_over(tmp_path: Path, init: Init) -> None:
    before = write(tmp_path / "code", {"main.py": "x = 1\n"})
    status, _, err = init("code")
    assert status is ExitStatus.USAGE
    assert "already has main.py, and nothing tells what they are written for" in err
    assert contents(tmp_path / "code") == before


def test_a_folder_with_a_readme_gets_the_rest_of_the_template(tmp_path: Path, init: Init) -> None:
    write(tmp_path / "new", {"README.md": "mine", ".git/HEAD": ""})
    status, _, err = init("new")
    assert status is ExitStatus.OK, err
    assert (tmp_path / "new" / "README.md").read_text() == "mine"
    assert (tmp_path / "new" / "main.py").is_file()


def test_the_folder_gives_a_legal_name_and_the_readme_has_it(tmp_path: Path, init: Init) -> None:
    status, _, err = init("My Other")
    assert status is ExitStatus.OK, err
    folder = tmp_path / "My Other"
    assert tomllib.loads((folder / "containerpub.toml").read_text())["name"] == "my-other"
    assert "invoke my-other" in (folder / "README.md").read_text()
    assert "containerpub deploy 'My Other'" in err
    status, _, err = init("other", "--name", "My Other")
    assert status is ExitStatus.USAGE
    assert "--name my-other" in err
    assert not (tmp_path / "other").exists()


def test_with_json_it_says_what_it_wrote(tmp_path: Path, init: Init) -> None:
    write(tmp_path / "web", {"app.py": FLASK})
    status, out, _ = init("web", "--json")
    assert status is ExitStatus.OK
    found = json.loads(out)
    assert (found["name"], found["runtime"]) == ("web", "python-flask")
    assert found["files"] == ["containerpub.toml", "requirements.txt"]


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"notes.txt": "app = Flask()"},
        {"app.py": "def broken(:\n"},
        {"app.py": "\x00"},
        {"app.py": "app = Flask[0]\n"},
        {"not-a-module.py": FLASK},
        {"package.json/x": ""},
        {"lib/app.py": FLASK},
    ],
)
def test_what_tells_nothing_is_recognised_as_nothing(tmp_path: Path, files: dict[str, str]) -> None:
    write(tmp_path, files)
    assert recognised(tmp_path) is None
