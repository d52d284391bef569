"""The Compose files are taken by Compose, and our image builds with the classic builder and runs without root."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from built_images import BUILD_S, platform_image

from shared.sealing import Keyring

ROOT = Path(__file__).parents[2]

REQUIRED = {
    "JWT_SECRET": "a" * 64,
    "ENCRYPTION_KEYS": f"key1:{'A' * 43}=",
    "POSTGRES_PASSWORD": "b" * 48,
    "REDIS_PASSWORD": "c" * 48,
    "S3_SECRET_ACCESS_KEY": "d" * 48,
    "DOCKER_GID": "999",
}


def run(
    *command: str, env: dict[str, str] | None = None, cwd: Path = ROOT, timeout_s: float = 120
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, timeout=timeout_s, check=False)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """What Compose reads, in a folder where nobody's .env is."""
    for name in ("compose.yaml", "compose.production.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "deploy", tmp_path / "deploy")
    return tmp_path


def write_env(project: Path, values: dict[str, str]) -> None:
    (project / ".env").write_text("".join(f"{name}={value}\n" for name, value in values.items()))


def surroundings() -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}


def test_compose_accepts_the_files(compose: tuple[str, ...], project: Path) -> None:
    write_env(project, REQUIRED)
    done = run(*compose, "config", env=surroundings(), cwd=project)
    assert done.returncode == 0, done.stderr
    services = yaml.safe_load(done.stdout)["services"]
    assert services["api"]["environment"]["JWT_SECRET"] == REQUIRED["JWT_SECRET"]
    password = REQUIRED["POSTGRES_PASSWORD"]
    for name in ("api", "worker", "scheduler", "migrate"):
        url = f"postgresql://containerpub:{password}@postgres:5432/containerpub"
        assert services[name]["environment"]["DATABASE_URL"] == url


@pytest.mark.parametrize("missing", sorted(REQUIRED))
def test_compose_says_what_to_set(compose: tuple[str, ...], project: Path, missing: str) -> None:
    write_env(project, {**REQUIRED, missing: ""})
    done = run(*compose, "config", env=surroundings(), cwd=project)
    assert done.returncode != 0
    assert f"Set {missing} in .env" in done.stderr


def test_production_starts_from_files_that_one_command_makes(compose: tuple[str, ...], project: Path) -> None:
    made = run("deploy/make-secrets.sh", env=surroundings(), cwd=project)
    assert made.returncode == 0, made.stderr
    env = project / ".env"
    env.write_text(env.read_text().replace("DOCKER_GID=\n", "DOCKER_GID=999\n"))
    secrets = {path.name: path.read_text() for path in (project / "secrets").iterdir()}
    assert len(secrets["jwt_secret"]) == 64
    assert len(Keyring.parse(secrets["encryption_keys"])) == 1
    assert secrets["postgres_password"] in secrets["database_url"]
    assert secrets["redis_password"] in secrets["redis_url"]
    assert (project / "secrets").stat().st_mode & 0o777 == 0o700

    done = run(*compose, "config", env=surroundings(), cwd=project)
    assert done.returncode == 0, done.stderr
    assert "in-a-file" not in done.stdout
    assert not any(value in done.stdout for value in secrets.values())
    assert yaml.safe_load(done.stdout)["services"]["worker"]["read_only"] is True

    again = run("deploy/make-secrets.sh", env=surroundings(), cwd=project)
    assert again.returncode == 0, again.stderr
    assert {path.name: path.read_text() for path in (project / "secrets").iterdir()} == secrets


@pytest.fixture(scope="module")
def image() -> str:
    return platform_image()


def in_image(image: str, *command: str) -> subprocess.CompletedProcess[str]:
    return run("docker", "run", "--rm", "--network", "none", "--read-only", "--cap-drop", "ALL", image, *command)


@pytest.mark.docker
@pytest.mark.timeout(BUILD_S + 60)
def test_the_image_has_the_command(image: str) -> None:
    done = in_image(image, "containerpub", "--help")
    assert done.returncode == 0, done.stderr
    assert "deploy" in done.stdout


@pytest.mark.docker
@pytest.mark.timeout(BUILD_S + 60)
def test_the_image_runs_without_root_and_holds_no_secret(image: str) -> None:
    assert in_image(image, "id", "-u").stdout.strip() == "10001"
    found = in_image(image, "find", "/opt/containerpub", "/var/lib/containerpub", "-name", ".env*").stdout
    assert found == ""
    environment = run("docker", "inspect", "--format", "{{json .Config.Env}}", image).stdout
    assert "SECRET" not in environment
    assert "PASSWORD" not in environment


@pytest.mark.docker
@pytest.mark.timeout(BUILD_S + 60)
def test_processes_in_the_image_name_every_mistake_at_once(image: str) -> None:
    unset = in_image(image, "python", "-m", "api")
    assert unset.returncode == 2
    assert "JWT_SECRET" in unset.stderr
    wrong = in_image(image, "env", "PORT=none", "DATABASE_URL=mysql://x", "python", "-m", "api")
    assert wrong.returncode == 2
    assert all(name in wrong.stderr for name in ("JWT_SECRET", "PORT", "DATABASE_URL"))


@pytest.mark.docker
@pytest.mark.timeout(BUILD_S + 60)
def test_the_image_brings_the_files_that_are_not_code(image: str) -> None:
    script = (
        "from shared.postgres.migrate import known_migrations; from shared.postgres.queries import nouns, queries; "
        "from shared.queue.scripts import SCRIPTS; from worker.engine.docker.hardening import seccomp_profile; "
        "from worker.build.recipe import load_recipe; "
        "assert known_migrations() and SCRIPTS and seccomp_profile() and load_recipe('python').files; "
        "[queries(noun) for noun in nouns()]; print('complete')"
    )
    done = in_image(image, "python", "-c", script)
    assert done.stdout.strip() == "complete", done.stderr
