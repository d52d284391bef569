"""What the Compose files promise, read from the files as they stand."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from shared.settings import Settings, setting_names

ROOT = Path(__file__).parents[2]
OURS = {"api", "worker", "scheduler", "migrate", "sandboxes"}
ONE_SHOT = {"migrate", "sandboxes"}
IMAGES_OWN = {
    "postgres": {"POSTGRES_USER", "POSTGRES_PASSWORD", "POSTGRES_PASSWORD_FILE", "POSTGRES_DB", "FUNCTION_DB"},
    "redis": {"REDIS_PASSWORD", "REDIS_PASSWORD_FILE", "REDIS_MAXMEMORY"},
    "s3": {
        "S3_REGION",
        "S3_BUCKET_NAME",
        "S3_ACCESS_KEY_ID",
        "S3_SECRET_ACCESS_KEY",
        "S3_SECRET_ACCESS_KEY_FILE",
    },
    "registry": {"REGISTRY_STORAGE_DELETE_ENABLED", "OTEL_TRACES_EXPORTER"},
}
SECRETS = {"JWT_SECRET", "ENCRYPTION_KEYS", "POSTGRES_PASSWORD", "REDIS_PASSWORD", "S3_SECRET_ACCESS_KEY"}
_REFERENCE = re.compile(r"\$\{([A-Z0-9_]+)(:?[-?])?([^}]*)\}")

Services = dict[str, dict[str, Any]]


def load(name: str) -> dict[str, Any]:
    document = yaml.safe_load((ROOT / name).read_text("utf-8"))
    assert isinstance(document, dict)
    return document


@pytest.fixture(scope="module")
def base() -> Services:
    services: Services = load("compose.yaml")["services"]
    return services


@pytest.fixture(scope="module")
def production() -> Services:
    services: Services = load("compose.production.yaml")["services"]
    return services


def default_of(text: str) -> str:
    """``text`` with every reference replaced by its default, or by nothing."""
    return _REFERENCE.sub(lambda found: found[3] if found[2] in (":-", "-") else "", text)


def references(text: str) -> Iterator[tuple[str, str, str]]:
    for found in _REFERENCE.finditer(text):
        yield found[1], found[2] or "", found[3]


def seconds(text: str) -> float:
    number, unit = re.fullmatch(r"(\d+)(s|m)", text).groups()  # type: ignore[union-attr]
    return int(number) * (60 if unit == "m" else 1)


def test_all_that_a_platform_needs_is_there(base: Services) -> None:
    assert set(base) == OURS | {"postgres", "redis", "s3", "registry"}


def test_a_second_copy_of_layers_is_asked_for(base: Services) -> None:
    assert {name: service["profiles"] for name, service in base.items() if "profiles" in service} == {
        "registry": ["registry"]
    }
    assert default_of(base["worker"]["environment"]["DOCKER_REGISTRY"]) == ""
    assert not any("registry" in service.get("depends_on", {}) for service in base.values())


def test_every_service_has_a_health_check_or_ends_by_itself(base: Services) -> None:
    for name, service in base.items():
        assert ("healthcheck" in service) != (name in ONE_SHOT), name


def test_who_depends_on_a_service_waits_for_its_health_or_its_end(base: Services) -> None:
    for name, service in base.items():
        for other, how in service.get("depends_on", {}).items():
            expected = "service_completed_successfully" if other in ONE_SHOT else "service_healthy"
            assert how == {"condition": expected}, (name, other)


def test_images_are_named_by_a_version(base: Services) -> None:
    for name, service in base.items():
        image = default_of(service["image"])
        repository, _, tag = image.rpartition(":")
        assert repository, f"{name}: {image} has no tag"
        assert re.match(r"v?\d", tag), f"{name}: {image} is not a version"


def test_our_image_is_named_by_our_version(base: Services) -> None:
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE)
    assert version is not None
    assert {default_of(base[name]["image"]) for name in OURS} == {f"containerpub:{version[1]}"}


def test_only_the_api_has_a_port_and_on_loopback(base: Services, production: Services) -> None:
    ports = {name: service["ports"] for name, service in base.items() if "ports" in service}
    assert set(ports) == {"api"}
    assert all(default_of(port).startswith("127.0.0.1:") for published in ports.values() for port in published)
    assert not any("ports" in service for service in production.values())


def test_data_is_kept_in_named_volumes_on_a_network_without_a_way_out(base: Services) -> None:
    document = load("compose.yaml")
    assert document["networks"]["inside"] == {"internal": True}
    for name in ("postgres", "redis", "s3", "registry"):
        assert base[name]["networks"] == ["inside"]
        assert any(volume.split(":")[0] in document["volumes"] for volume in base[name]["volumes"]), name


def test_only_workers_have_the_engines_socket(base: Services, production: Services) -> None:
    for services in (base, production):
        for name, service in services.items():
            has = "docker.sock" in str(service.get("volumes", "")) or "docker.sock" in str(
                service.get("environment", "")
            )
            assert has == (name == "worker" and services is base), name
    assert "group_add" in base["worker"]
    assert all("privileged" not in service for service in (*base.values(), *production.values()))


def test_what_the_engine_mounts_has_one_path_on_host_and_worker(base: Services) -> None:
    folders = {name: base["worker"]["environment"][name] for name in ("SOCKET_DIR", "DATA_DIR")}
    for name, folder in folders.items():
        assert default_of(folder).startswith("/"), name
        assert f"{folder}:{folder}" in base["worker"]["volumes"], name
    assert base["sandboxes"]["volumes"] == [f"{folders['SOCKET_DIR']}:/sandboxes", f"{folders['DATA_DIR']}:/data"]
    # <folder>/d-<8>-<12>/<16>/s has to fit the address of a Unix socket.
    assert len(default_of(folders["SOCKET_DIR"])) + len("/d-12345678-123456789012/1234567890123456/s") <= 100


def test_only_workers_have_the_folder_that_sandboxes_get_their_code_from(base: Services) -> None:
    folder = base["worker"]["environment"]["DATA_DIR"]
    holders = {name for name, service in base.items() if any(folder in str(one) for one in service.get("volumes", ()))}
    assert holders == {"worker", "sandboxes"}
    document = load("compose.yaml")
    api = [volume.split(":") for volume in base["api"]["volumes"]]
    assert api == [["uploads", base["api"]["environment"]["DATA_DIR"]]]
    assert "uploads" in document["volumes"]


def test_redis_keeps_what_it_has(base: Services) -> None:
    script = (ROOT / "deploy/redis/redis.sh").read_text("utf-8")
    assert "./deploy/redis/redis.sh:/deploy/redis.sh:ro" in base["redis"]["volumes"]
    assert "--appendonly yes" in script
    assert "--maxmemory-policy noeviction" in script
    assert "requirepass" in script


def test_every_environment_name_is_a_setting_or_the_images_own(base: Services, production: Services) -> None:
    ours = {name for setting in setting_names() for name in (setting, f"{setting}_FILE")}
    for services in (base, production):
        for name, service in services.items():
            given = set(service.get("environment", {}))
            assert given <= (ours if name in OURS else IMAGES_OWN[name]), name


def test_fixed_settings_are_ones_that_processes_accept(base: Services) -> None:
    for name in ("api", "worker", "scheduler"):
        given = {key: default_of(value) for key, value in base[name]["environment"].items()}
        urls = {"DATABASE_URL": "postgresql://u:p@postgres:5432/d", "REDIS_URL": "redis://:p@redis:6379/0"}
        for key, url in urls.items():
            assert given[key].split("@")[-1].split("/")[0] == url.split("@")[-1].split("/")[0]
        Settings.model_validate({key: value for key, value in (given | urls).items() if value != ""})


def test_no_secret_has_a_default(base: Services) -> None:
    text = (ROOT / "compose.yaml").read_text("utf-8")
    found = {name: (how, sentence) for name, how, sentence in references(text) if name in SECRETS | {"DOCKER_GID"}}
    assert set(found) == SECRETS | {"DOCKER_GID"}
    for name, how, sentence in references(text):
        if name in found:
            assert how == ":?", name
            assert sentence.startswith(f"Set {name} in .env"), name
    for service in base.values():
        for name, value in service.get("environment", {}).items():
            if re.search(r"SECRET|PASSWORD|_URL$", name) and name != "PUBLIC_URL":
                assert default_of(value) in (
                    "",
                    "postgresql://containerpub:@postgres:5432/containerpub",
                    "redis://:@redis:6379/0",
                ), name


def test_production_takes_every_secret_from_a_file(base: Services, production: Services) -> None:
    files = load("compose.production.yaml")["secrets"]
    for name, service in base.items():
        over = production[name].get("environment", {})
        for key, value in service.get("environment", {}).items():
            if not any(reference in SECRETS for reference, _, _ in references(value)):
                continue
            assert over[key] == "", f"{name}: {key} stays in the environment"
            path = over[f"{key}_FILE"]
            assert path.startswith("/run/secrets/")
            secret = path.removeprefix("/run/secrets/")
            assert secret in production[name]["secrets"]
            assert files[secret]["file"] == f"${{SECRETS_DIR:-./secrets}}/{secret}"
    made = (ROOT / "deploy/make-secrets.sh").read_text("utf-8")
    assert set(files) == set(re.findall(r"^write (\w+) ", made, re.MULTILINE))
    assert "/secrets/" in (ROOT / ".gitignore").read_text("utf-8").splitlines()


def test_production_is_reached_by_the_env_file_that_names_the_marker() -> None:
    lines = (ROOT / "deploy/production.env.example").read_text("utf-8").splitlines()
    given = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    assert given["COMPOSE_FILE"] == "compose.yaml:compose.production.yaml"
    assert {name for name, value in given.items() if value == "in-a-file"} == SECRETS


def test_production_limits_restarts_and_closes(base: Services, production: Services) -> None:
    assert set(production) == set(base)
    for name, service in production.items():
        assert service["restart"] == ("no" if name in ONE_SHOT else "unless-stopped"), name
        assert service["logging"]["options"] == {"max-size": "10m", "max-file": "5"}, name
        assert "mem_limit" in service, name
        assert "pids_limit" in service, name
        assert "no-new-privileges:true" in service["security_opt"], name
        if name in OURS:
            assert service["read_only"] is True, name
            assert service["cap_drop"] == ["ALL"], name


def test_only_the_folders_maker_is_root(base: Services) -> None:
    assert {name for name in OURS if "user" in base[name]} == {"sandboxes"}
    assert base["sandboxes"]["network_mode"] == "none"
    users = re.findall(r"^USER (.+)$", (ROOT / "Dockerfile").read_text("utf-8"), re.MULTILINE)
    assert users == ["10001:10001"]
    command = base["sandboxes"]["command"]
    assert (command[3], command[5]) == ("10001", "10001")
    assert command[8:] == [volume.rpartition(":")[2] for volume in base["sandboxes"]["volumes"]]


def test_workers_get_the_time_to_drain(base: Services) -> None:
    worker = base["worker"]
    assert seconds(worker["stop_grace_period"]) >= 2 * float(worker["environment"]["DRAIN_SECONDS"])
    fields = Settings.model_fields
    to_answer = 4  # of api.__main__
    assert (
        seconds(base["api"]["stop_grace_period"])
        > fields["leave_seconds"].default + fields["drain_seconds"].default + to_answer
    )


def test_env_example_explains_every_variable_and_sets_none() -> None:
    lines = (ROOT / ".env.example").read_text("utf-8").splitlines()
    assert all(not line or line.startswith("#") for line in lines)
    explained = dict(line[1:].split("=", 1) for line in lines if re.match(r"#[A-Z0-9_]+=", line))
    used: dict[str, str] = {}
    for name in ("compose.yaml", "deploy/publish-postgres.yaml"):
        for variable, _, default in references((ROOT / name).read_text("utf-8")):
            used.setdefault(variable, "" if variable in SECRETS | {"DOCKER_GID"} else default)
    assert explained == used


def test_publishing_postgres_is_asked_for_and_on_loopback() -> None:
    services = load("deploy/publish-postgres.yaml")["services"]
    assert services == {
        "postgres": {"ports": ["127.0.0.1:${POSTGRES_PORT:-5432}:5432"], "networks": ["inside", "outside"]}
    }


def test_nothing_but_the_product_goes_to_the_builder() -> None:
    lines = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (ROOT / "Dockerfile").read_text("utf-8"), re.MULTILINE)
    assert {rule[1:] for rule in rules if rule.startswith("!")} == {name for line in copied for name in line.split()}


def test_the_how_tos_settings_exist() -> None:
    ours = {name for setting in setting_names() for name in (setting, f"{setting}_FILE")}
    text = (ROOT / "docs/how-to/add-workers.md").read_text("utf-8")
    block = re.search(r"^# worker\.env\n(.+?)^```", text, re.MULTILINE | re.DOTALL)
    assert block is not None
    names = {line.split("=")[0] for line in block[1].splitlines()}
    assert len(names) > 8
    assert names <= ours
    worker = load("compose.yaml")["services"]["worker"]["environment"]
    optional = {"DOCKER_REGISTRY", "DOCKER_BASE_IMAGE", "DOCKER_RUNTIME", "DRAIN_SECONDS", "LOG_FORMAT", "ENGINE"}
    assert set(worker) - optional - {"S3_REGION"} == {name.removesuffix("_FILE") for name in names}
    given = dict(line.split("=", 1) for line in block[1].splitlines())
    made = re.search(r"^install -d -o 10001 -g 10001 -m 0711 (.+)$", text, re.MULTILINE)
    assert made is not None
    assert made[1].split() == [given["SOCKET_DIR"], given["DATA_DIR"]]
    for folder in made[1].split():
        assert f" -v {folder}:{folder} " in text
