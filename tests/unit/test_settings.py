"""Settings: where values come from, every mistake at once, no secret shown, every setting documented."""

from __future__ import annotations

import secrets
import subprocess
import sys
from base64 import b64encode
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from shared.errors import Misconfigured
from shared.settings import Settings, load, setting_names

ROOT = Path(__file__).parents[2]
SECRET = "Zk3v-9qLmT1xw8RnBc5yHd7gPf2sJa4e"
MISTAKES = {
    "PORT": "eighty",
    "MAX_BODY_BYTES": "-1",
    "REQUEST_TIMEOUT_SECONDS": "0",
    "ENGINE": "vm",
    "DATABASE_URL": "mysql://root:pw-of-the-database@db/x",
    "REDIS_URL": "http://:pw-of-the-redis@cache",
    "BCRYPT_COST": "3",
    "DOCKER_BASE_IMAGE": "python",
    "DOCKERFILE_RUNTIME": "perhaps",
    "DOCKERFILE_CGROUP_PARENT": "builds/../..",
    "LOG_LEVEL": "loud",
    "WORKER_QUEUES": "invoke,deploy",
    "ENCRYPTION_KEYS": "a:c2hvcnQ=",
}


def test_defaults_need_nothing_but_the_key() -> None:
    settings = load({"JWT_SECRET": SECRET}, needs_jwt=True)
    assert (settings.port, settings.max_body_bytes, settings.function_max_concurrent) == (8080, 6_000_000, 10)
    assert load({}).jwt_secret.get_secret_value() == ""


def test_every_mistake_is_reported_at_once_by_name_and_without_its_value() -> None:
    with pytest.raises(Misconfigured) as raised:
        load({**MISTAKES, "JWT_SECRET": "short"}, needs_jwt=True)
    for name in (*MISTAKES, "JWT_SECRET"):
        assert f"\n  {name}: " in raised.value.message
    for hostile in ("pw-of-the-database", "pw-of-the-redis", "short", "c2hvcnQ"):
        assert hostile not in raised.value.message


def test_a4_process_with_mistakes_ends_with_status_2_and_all_of_them(tmp_path: Path) -> None:
    for module in ("api", "worker", "scheduler"):
        done = subprocess.run(
            [sys.executable, "-m", module],
            env={**MISTAKES, "JWT_SECRET": "default", "PYTHONPATH": str(ROOT)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 2, (module, done)
        expected = {*MISTAKES, *(["JWT_SECRET"] if module == "api" else [])}
        for name in expected:
            assert f"\n  {name}: " in done.stderr, (module, name)
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "secret",
    ["", "x", "x" * 31, "x" * 64, "abcabcabc" * 10, "change-me-please-0123456789-abcdefgh", "secret" * 10, "ü" * 15],
)
def test_a4_key_that_is_short_or_a_placeholder_is_refused(secret: str) -> None:
    with pytest.raises(Misconfigured, match="JWT_SECRET"):
        load({"JWT_SECRET": secret}, needs_jwt=True)


def test_a4_there_is_no_default_key() -> None:
    assert Settings.model_fields["jwt_secret"].default == SecretStr("")
    with pytest.raises(Misconfigured, match="make one with"):
        load({}, needs_jwt=True)
    assert load({"JWT_SECRET": secrets.token_hex(32)}, needs_jwt=True).jwt_secret.get_secret_value()


def test_value_comes_from_the_environment_then_the_file_then_dotenv(tmp_path: Path) -> None:
    dotenv = tmp_path / ".env"
    dotenv.write_text("PORT=1001\nHOST=from-dotenv\nMAX_PAGE=500\nUNKNOWN=x\n")
    secret = tmp_path / "secret"
    secret.write_text("1002\n")
    assert load({}, dotenv=dotenv).port == 1001
    assert load({"PORT_FILE": str(secret)}, dotenv=dotenv).port == 1002
    assert load({"PORT_FILE": str(secret), "PORT": "1003"}, dotenv=dotenv).port == 1003
    assert load({"PORT": "1003"}, dotenv=dotenv).host == "from-dotenv"
    assert load({"PORT": ""}, dotenv=dotenv).port == 1001, "an empty variable is none"
    assert load({}, dotenv=tmp_path / "absent").port == 8080


def test_secret_from_a_file_loses_only_its_line_end(tmp_path: Path) -> None:
    path = tmp_path / "jwt"
    path.write_text(f" {SECRET} \r\n")
    assert load({"JWT_SECRET_FILE": str(path)}, needs_jwt=True).jwt_secret.get_secret_value() == f" {SECRET} "


def test_file_that_cannot_be_read_is_a_mistake_among_the_others(tmp_path: Path) -> None:
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe\xfd")
    with pytest.raises(Misconfigured) as raised:
        load({"JWT_SECRET_FILE": str(tmp_path / "absent"), "REDIS_URL_FILE": str(binary), "PORT": "x"})
    for name in ("JWT_SECRET_FILE", "REDIS_URL_FILE", "PORT"):
        assert f"\n  {name}: " in raised.value.message


def test_secrets_print_as_stars() -> None:
    secrets = [name for name, field in Settings.model_fields.items() if field.annotation is SecretStr]
    assert {"jwt_secret", "database_url", "redis_url", "s3_secret_access_key"} <= set(secrets)
    values = {name.upper(): SECRET for name in secrets}
    values |= {"DATABASE_URL": f"postgresql://u:{SECRET}@h/d", "REDIS_URL": f"redis://:{SECRET}@h"}
    values |= {"ENCRYPTION_KEYS": f"a:{b64encode(SECRET.encode()).decode()}"}
    settings = load(values)
    for shown in (repr(settings), str(settings), settings.model_dump_json(), str(settings.model_dump())):
        assert SECRET not in shown
        assert b64encode(SECRET.encode()).decode() not in shown
        assert "***" in shown


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError):
        load({}).port = 1


def test_settings_that_contradict_each_other_are_mistakes() -> None:
    for values, name in (
        ({"HEARTBEAT_SECONDS": "20", "LEASE_SECONDS": "30"}, "HEARTBEAT_SECONDS"),
        ({"FUNCTION_TIMEOUT_SECONDS": "901"}, "FUNCTION_TIMEOUT_SECONDS"),
        ({"FUNCTION_MAX_MEMORY_MB": "4096"}, "FUNCTION_MAX_MEMORY_MB"),
        ({"S3_BUCKET_NAME": "b", "S3_ACCESS_KEY_ID": "i"}, "S3_ACCESS_KEY_ID"),
    ):
        with pytest.raises(Misconfigured, match=name):
            load(values)


def test_lists_and_pairs_are_read() -> None:
    settings = load(
        {
            "CORS_ORIGINS": " https://a.example, ,https://b.example",
            "DOCKER_BASE_IMAGE": "python=python:3.12-slim,node=node:22",
            "BUILD_INDEX_HOSTS": "None",
        }
    )
    assert settings.cors_origins == ("https://a.example", "https://b.example")
    assert settings.base_images == {"python": "python:3.12-slim", "node": "node:22"}
    assert settings.index_hosts == ()
    assert load({}).index_hosts is None


def test_every_setting_is_documented_as_the_code_has_it() -> None:
    page = (ROOT / "docs" / "reference" / "settings.md").read_text()
    for name in setting_names():
        assert f"\n| `{name}` | " in page
    assert all(field.description for field in Settings.model_fields.values())
