"""Where a Python project may declare its packages, and what it is told where nothing is read."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from worker.build.dependency_manifest import dependency_key, read_dependency_manifest
from worker.build.plan import BuildRejected
from worker.build.python_packages import parse_python_packages
from worker.build.recipe import load_recipe

PROJECT = b'[project]\nname = "mine"\ndependencies = ["numpy>=1", "requests[socks] ; python_version > \'3\'"]\n'
INSTALL = Path(__file__).parents[2] / "runtimes" / "python" / "install.py"


@pytest.mark.parametrize(
    "files",
    [
        {"pyproject.toml": PROJECT},
        {"pyproject.toml": b"\xef\xbb\xbf" + PROJECT},
        {"pyproject.toml": PROJECT, "requirements.txt": b"# none\n"},
        {"pyproject.toml": PROJECT, "setup.cfg": b"[options]\ninstall_requires = other\n"},
    ],
)
def test_packages_of_a_pyproject_are_installed(files: dict[str, bytes]) -> None:
    found = parse_python_packages(files)
    assert found.lines == ("numpy>=1", "requests[socks] ; python_version > '3'")
    assert found.notes == ("the packages are those of project.dependencies in pyproject.toml",)


def test_a_requirements_file_goes_first() -> None:
    found = parse_python_packages(
        {"pyproject.toml": PROJECT, "requirements.txt": b"idna\n", "Pipfile": b"[packages]\nx='*'"}
    )
    assert (found.lines, found.notes) == (("idna",), ())


@pytest.mark.parametrize("lock", ["uv.lock", "poetry.lock", "pdm.lock"])
def test_a_lock_that_is_not_read_is_told_with_how_to_keep_to_it(lock: str) -> None:
    _, note = parse_python_packages({"pyproject.toml": PROJECT, lock: b""}).notes
    assert note.startswith(f"{lock} is not read, so packages are resolved anew; to keep to it: {lock[:-5]} export")


@pytest.mark.parametrize(
    ("files", "place"),
    [
        (
            {"pyproject.toml": b'[tool.poetry.dependencies]\npython = "^3.11"\nnumpy = "^1"\n'},
            "pyproject.toml, for Poetry",
        ),
        ({"pyproject.toml": b'[tool.flit.metadata]\nrequires = ["numpy"]\n'}, "pyproject.toml, for Flit"),
        ({"pyproject.toml": b'[project]\ndynamic = ["dependencies"]\n'}, "pyproject.toml, as dynamic"),
        ({"Pipfile": b'[packages]\nnumpy = "*"\n'}, "Pipfile"),
        ({"Pipfile": b'[packages]\nnumpy = "*"\n', "requirements.txt": b""}, "Pipfile"),
        ({"setup.cfg": b"[options]\ninstall_requires =\n    numpy\n"}, "setup.cfg"),
        ({"setup.py": b"setup(\n    install_requires=[\n        'numpy',\n    ],\n)\n"}, "setup.py"),
    ],
)
def test_packages_declared_where_nothing_is_read_are_refused_with_what_to_do(
    files: dict[str, bytes], place: str
) -> None:
    with pytest.raises(BuildRejected) as caught:
        parse_python_packages(files)
    assert caught.value.reason == "build_failed"
    assert caught.value.message.startswith(f"The packages are declared in {place}, which is not read: put them into")
    assert "requirements.txt" in caught.value.message


@pytest.mark.parametrize(
    "files",
    [
        {"pyproject.toml": b"[tool.ruff]\nline-length = 100\n"},
        {"pyproject.toml": b'[project]\nname = "mine"\ndependencies = []\n[dependency-groups]\ndev = ["pytest"]\n'},
        {"pyproject.toml": b'[tool.poetry.dependencies]\npython = "^3.11"\n'},
        {"Pipfile": b'[dev-packages]\npytest = "*"\n'},
        {"setup.cfg": b"[flake8]\nmax-line-length = 100\n"},
        {"setup.cfg": b"no sections\n"},
        {"setup.py": b"setup(install_requires=[])\n"},
    ],
)
def test_a_project_that_declares_no_packages_has_none(files: dict[str, bytes]) -> None:
    assert not parse_python_packages(files)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b'[project]\ndependencies = ["a", "x @ git+https://evil.example/x"]\n',
         "pyproject.toml: dependencies[1]: 'x @ git"),
        (b'[project]\ndependencies = ["-r other.txt"]\n', "pyproject.toml: dependencies[0]: "),
        (b'[project]\ndependencies = "numpy"\n', "project.dependencies is not a list"),
        (b'[project]\ndependencies = ["My_lib"]\n[tool.uv.sources]\nmy-lib = {path = "../lib"}\n',
         "has 'My_lib' from elsewhere"),
        (b"[project\n", "pyproject.toml is not TOML"),
        (b"[project]\nname = '\xe9'\n", "pyproject.toml is not UTF-8 text: save it as UTF-8"),
        (b"#" * 300_000, "is larger than"),
    ],
)  # fmt: skip
def test_a_pyproject_leads_nowhere_else(text: bytes, says: str) -> None:
    with pytest.raises(BuildRejected, match=re.escape(says)):
        parse_python_packages({"pyproject.toml": text})


def test_files_that_requirements_name_are_read_from_the_artifact(tmp_path: Path) -> None:
    files = {
        "requirements.txt": b"-r requirements/prod.txt\n",
        "requirements/prod.txt": b"-r base.txt\n-c ../limits.txt\nb\n",
        "requirements/base.txt": b"a\n",
        "limits.txt": b"a<3\n",
        "main.py": b"",
    }
    artifact = tmp_path / "a.tar.gz"
    with tarfile.open(artifact, "w:gz") as out:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            out.addfile(entry, io.BytesIO(content))
    for runtime in ("python", "python-flask"):
        found = read_dependency_manifest(artifact, load_recipe(runtime))
        assert found is not None
        assert dict(found.files) == {"requirements.txt": "-c constraints.txt\na\nb\n", "constraints.txt": "a<3\n"}
        assert "a<3" in dependency_key(found)


def own_index() -> str:
    code = "from pip._internal.models.index import PyPI; print(PyPI.simple_url)"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def install(folder: Path, address: str) -> subprocess.CompletedProcess[str]:
    """The install script, asked for nothing but what holds for Python 2."""
    (folder / "requirements.txt").write_text('idna ; python_version < "3"\n')
    (folder / "indexes.txt").write_text(f"requirements.txt:3 {address}\n")
    (folder / "target").mkdir()
    command = [sys.executable, str(INSTALL), "requirements.txt", "target"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, errors="replace")


@pytest.mark.parametrize("change", ["{}", "{}/", "{}//"])
def test_the_index_in_use_may_be_named(tmp_path: Path, change: str) -> None:
    ended = install(tmp_path, change.replace("{}", own_index()))
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("change", ["https://evil.example/simple", "{}/evil", "{}.example", "https://evil.example/?{}"])
def test_another_index_is_refused_before_anything_is_installed(tmp_path: Path, change: str) -> None:
    ended = install(tmp_path, change.replace("{}", own_index()))
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert line.startswith("requirements.txt:3: ")
    assert "is not the index in use" in line
