#!/bin/sh
# Runs a command with a container engine and the base images at hand, and stops only what it started itself.
#   scripts/with_engine.sh COMMAND [ARGUMENT …]
#
# Where an engine answers, that one is used. Else, as root on Debian, Docker is installed and started for the time of the
# command. What tests need beside it is looked for piece by piece, and installed where root on Debian lacks it. Elsewhere
# the command runs without: tests say themselves what they leave out; in CI each of them fails.
set -eu
cd "$(dirname "$0")/.."
started=

answers() { docker version --format '{{.Server.Version}}' >/dev/null 2>&1; }

stop() {
    [ -n "$started" ] || return 0
    kill "$started" 2>/dev/null || return 0
    for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
        kill -0 "$started" 2>/dev/null || return 0
        sleep 0.5
    done
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

may_install() { [ "$(id -u)" = 0 ] && [ -r /etc/debian_version ]; }

lists=old
# Each package for itself: one that cannot be had keeps no other away.
install() {
    may_install || return 1
    if [ "$lists" = old ]; then
        lists=new
        apt-get update -qq || { echo "engine: apt-get update failed: nothing can be installed"; lists=none; }
    fi
    [ "$lists" = new ] || return 1
    for package in "$@"; do
        echo "engine: installing $package"
        DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$package" >/dev/null ||
            { echo "engine: $package could not be installed"; return 1; }
    done
}

has() { command -v "$1" >/dev/null 2>&1; }
has_compose() { has docker-compose || docker compose version >/dev/null 2>&1; }
has_faketime() { [ -n "$(find /usr/lib -path '*/faketime/libfaketime.so.1' 2>/dev/null)" ]; }

start_docker() {
    may_install || return 1
    has dockerd || install docker.io ca-certificates || return 1
    has iptables || install iptables || return 1
    echo "engine: starting dockerd"
    mkdir -p .cache
    dockerd >.cache/dockerd.log 2>&1 &
    started=$!
    for _ in $(seq 60); do
        answers && return 0
        kill -0 "$started" 2>/dev/null || { tail -n 5 .cache/dockerd.log; started=; return 1; }
        sleep 0.5
    done
    return 1
}

# What stands beside the engine: a Compose, stand-ins for base images, an outer world with addresses of its own, a second
# engine, clocks that jump.
complete() {
    may_install || return 0
    has_compose || install docker-compose || :
    has debootstrap || install debootstrap || :
    has ip || install iproute2 || :
    has podman || install podman || :
    has runc || install runc || :
    has catatonit || has docker-init || has tini || install tini || :
    has_faketime || install libfaketime || :
}

if answers || start_docker; then
    complete
    echo "engine: docker $(docker version --format '{{.Server.Version}}')"
    scripts/images.sh
    CONTAINERPUB_REQUIRE_DOCKER=1
    export CONTAINERPUB_REQUIRE_DOCKER
elif [ -n "${CI:-}" ]; then
    echo "engine: none answers and none could be installed; in CI nothing about containers may be left out"
    exit 1
else
    echo "engine: none answers; start Docker or Podman to run what needs containers"
fi
"$@"
