"""The policy for functions with a network, from the settings."""

from __future__ import annotations

from ipaddress import IPv4Network
from urllib.parse import parse_qs, urlsplit

from shared.settings import Settings
from worker.network.outside import EgressPolicy


def egress_policy(settings: Settings) -> EgressPolicy:
    """The policy. All servers in the settings count as the platform's own, except the functions' database."""
    urls = (
        settings.database_url.get_secret_value(),
        settings.redis_url.get_secret_value(),
        settings.s3_endpoint,
        settings.docker_host,
        settings.public_url,
        settings.registry_url,
    )
    return EgressPolicy(
        permitted=settings.function_egress,
        allow=tuple(map(IPv4Network, settings.function_egress_allow)),
        deny=tuple(map(IPv4Network, settings.function_egress_deny)),
        platform=tuple(sorted({host for url in urls for host in hosts_of(url)})),
        new_per_s=settings.function_egress_new_per_second,
    )


def hosts_of(url: str) -> list[str]:
    """The hosts that ``url`` names; none if it names a socket of this machine.

    Postgres takes several, separated by commas, and takes them as parameters too.
    """
    # Not by urlsplit, which newer Pythons have refuse several hosts with an IPv6 address among them.
    scheme, _, rest = url.partition("//")
    if scheme.lower() == "unix:":
        return []
    before_query, _, query = rest.partition("#")[0].partition("?")
    named = before_query.partition("/")[0].rpartition("@")[2].split(",")
    hosts = [urlsplit(f"//{one}").hostname or "" for one in named]
    for name, values in parse_qs(query).items():
        if name in ("host", "hostaddr"):
            hosts += [host for value in values for host in value.split(",")]
    return [host for host in hosts if host and not host.startswith("/")]
