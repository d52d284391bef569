"""Runtimes say what they need in their recipe, and nothing is guessed."""

from __future__ import annotations

import pytest

from shared.errors import Invalid
from worker.build.recipe import Contract, known_runtimes, load_recipe


def test_the_python_recipe_is_complete() -> None:
    recipe = load_recipe("python")
    assert recipe.contract is Contract.HANDLER
    assert recipe.base_image
    assert recipe.argv[-1] == "/containerpub/serve.py"
    assert recipe.manifests[0] == "requirements.txt"
    assert recipe.install is not None
    assert recipe.analyze is not None


def test_every_known_runtime_loads() -> None:
    assert "python" in known_runtimes()
    for name in known_runtimes():
        assert load_recipe(name).name == name


def test_an_unknown_runtime_is_refused_with_the_known_ones() -> None:
    with pytest.raises(Invalid, match="python") as caught:
        load_recipe("cobol")
    assert caught.value.code == "unknown_runtime"
    assert caught.value.field == "runtime"


@pytest.mark.parametrize("name", ["", ".", "..", "../shared", "python/template", "python/../python", "__pycache__"])
def test_a_name_is_never_a_path(name: str) -> None:
    with pytest.raises(Invalid):
        load_recipe(name)


def test_the_image_holds_the_runtimes_files_and_no_build_scripts() -> None:
    paths = {file.path for file in load_recipe("python").files}
    assert "containerpub/serve.py" in paths
    assert "containerpub/containerpub_runtime/__init__.py" in paths
    assert "containerpub/sdk/containerpub/__init__.py" in paths
    ours = ("containerpub/serve.py", "containerpub/containerpub_runtime/", "containerpub/sdk/")
    assert all(path.startswith(ours) for path in paths)
    assert not {path for path in paths if "__pycache__" in path}


def test_the_node_recipe_puts_packages_where_node_looks_for_them() -> None:
    recipe = load_recipe("node")
    assert recipe.dependencies == "node_modules"
    paths = {file.path for file in recipe.files}
    assert {"containerpub/serve.cjs", "containerpub/start.sh", "node_modules/containerpub/index.js"} <= paths
    assert recipe.install is not None
    assert recipe.install.arguments("a", "b")[-2:] == ("a", "b")
    assert "{script}" not in recipe.install.arguments()
    assert recipe.check is not None
    assert recipe.check_files == (".js", ".mjs", ".cjs", "package.json")
    assert recipe.exhaustion is not None
