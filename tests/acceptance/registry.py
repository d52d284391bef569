"""A registry of a test's own, in a container."""

from __future__ import annotations

import secrets
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

import bcrypt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

READY_S = 30.0


@dataclass(frozen=True, kw_only=True)
class Registry:
    name: str
    address: str  # host and port

    def docker(self, *arguments: str) -> str:
        return subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=60, check=True).stdout

    def run(self, script: str) -> str:
        """What ``script``, run in its container, prints."""
        return self.docker("exec", self.name, "sh", "-c", script)

    def blobs(self) -> list[str]:
        """Digests of what it holds."""
        return self.run("ls /var/lib/registry/docker/registry/v2/blobs/sha256/* 2>/dev/null || true").split()

    def stop(self) -> None:
        self.docker("pause", self.name)

    def go_on(self) -> None:
        self.docker("unpause", self.name)


@contextmanager
def registry(image: str, *, folder: Path | None = None, password: str = "") -> Iterator[Registry]:
    """Runs ``image``; with a ``folder`` for its files by TLS, for the user ``team``, and ``ca.pem`` vouches for it."""
    name = f"cp-registry-{secrets.token_hex(4)}"
    options: list[str] = ["--env", "REGISTRY_STORAGE_DELETE_ENABLED=true"]
    if folder is not None:
        _write_certificate(folder)
        hashed = bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode()
        (folder / "users").write_text(f"team:{hashed}\n")
        options += _secured(folder)
    command = ["docker", "run", "--detach", "--name", name, "--publish", "127.0.0.1::5000", *options, image]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    try:
        port = subprocess.run(
            ["docker", "port", name, "5000/tcp"], check=True, capture_output=True, text=True, timeout=60
        ).stdout.split(":")[-1]
        running = Registry(name=name, address=f"127.0.0.1:{int(port)}")
        _wait(running, tls=folder is not None)
        yield running
    finally:
        subprocess.run(["docker", "rm", "--force", "--volumes", name], check=True, capture_output=True, timeout=60)


def _secured(folder: Path) -> Sequence[str]:
    settings = {
        "REGISTRY_AUTH": "htpasswd",
        "REGISTRY_AUTH_HTPASSWD_REALM": "layers",
        "REGISTRY_AUTH_HTPASSWD_PATH": "/conf/users",
        "REGISTRY_HTTP_TLS_CERTIFICATE": "/conf/ca.pem",
        "REGISTRY_HTTP_TLS_KEY": "/conf/key.pem",
    }
    return ["--volume", f"{folder}:/conf:ro", *(f"--env={name}={value}" for name, value in settings.items())]


def _write_certificate(folder: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "registry")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "ca.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


def _wait(running: Registry, *, tls: bool) -> None:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    deadline = time.monotonic() + READY_S
    while True:
        try:
            urllib.request.urlopen(f"{'https' if tls else 'http'}://{running.address}/v2/", timeout=2, context=context)
        except urllib.error.HTTPError as error:
            if error.code == 401:
                return
        except OSError:
            pass
        else:
            return
        assert time.monotonic() < deadline, running.docker("logs", running.name)
        time.sleep(0.1)
