#!/bin/sh
# Runs a command with a container engine and the base images at hand, and stops only what it started itself.
#   scripts/with_engine.sh COMMAND [ARGUMENT …]
#
# Where an engine answers, that one is used. Else, as root on Debian, Docker is installed and started for the time of the
# command; Podman is installed beside it, and the tests start it themselves. Elsewhere the command runs without one, and says itself what it leaves out; in CI that is an error.
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

install_docker() {
    [ "$(id -u)" = 0 ] && [ -r /etc/debian_version ] || return 1
    if ! command -v dockerd >/dev/null || ! command -v debootstrap >/dev/null || ! command -v docker-compose >/dev/null ||
        ! command -v ip >/dev/null; then
        echo "engine: installing Docker"
        apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
            docker.io docker-compose debootstrap iptables iproute2 ca-certificates >/dev/null || return 1
    fi
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

# In CI nothing about Podman may be left out either: its tests fail where it is not.
install_podman() {
    [ "$(id -u)" = 0 ] && [ -r /etc/debian_version ] || return 0
    command -v podman >/dev/null && command -v runc >/dev/null && return 0
    echo "engine: installing Podman"
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
        podman runc tini >/dev/null; } || echo "engine: Podman could not be installed"
}

# Tests of clocks that jump.
install_faketime() {
    [ "$(id -u)" = 0 ] && [ -r /etc/debian_version ] || return 0
    [ -n "$(find /usr/lib -path '*/faketime/libfaketime.so.1' 2>/dev/null)" ] && return 0
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
        libfaketime >/dev/null; } || echo "engine: libfaketime could not be installed"
}

if answers || install_docker; then
    install_podman
    install_faketime
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
