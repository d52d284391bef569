#!/bin/sh
# Makes stand-ins for base images out of Debian packages, for machines that cannot pull from a registry.
#
#   images/build.sh [name …]        every folder beside this script that has an image.conf, if none is named
#   images/build.sh some/folder     the image.conf of a folder elsewhere
#
# A stand-in carries the tag that a user would pull, so that nothing else has to know about it, and the label
# org.containerpub.stand-in=true. A tag that exists already, pulled or made, is left alone. Packages come from the
# mirror that this machine's apt uses; the certificate authorities that this machine trusts go into the image.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=

say() { printf '%s\n' "images: $*" >&2; }
fail() { say "$*"; exit 1; }
clean() { [ -z "$root" ] || rm -rf --one-file-system "$root"; }
trap clean EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

check_machine() {
    [ "$(id -u)" = 0 ] || fail "a stand-in can only be made by root on Debian; pull $IMAGE instead, or run this with sudo"
    [ -r /etc/debian_version ] || fail "a stand-in can only be made on Debian; pull $IMAGE instead"
    command -v debootstrap >/dev/null || fail "debootstrap is missing: apt-get install debootstrap"
}

# The mirror that apt is configured with, or nothing, and then debootstrap takes its own.
apt_mirror() {
    apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' "Codename: $SUITE" 'Component: main' 2>/dev/null |
        head -n 1
}

make() {
    case $1 in
        */*) folder=$(cd "$1" && pwd) ;;
        *) folder=$here/$1 ;;
    esac
    [ -r "$folder/image.conf" ] || fail "there is no stand-in called $1"
    IMAGE='' SUITE='' PACKAGES='' PREPARE='' CHANGES=''
    . "$folder/image.conf"

    docker version >/dev/null 2>&1 || fail "no container engine answers: start Docker first"
    if docker image inspect "$IMAGE" >/dev/null 2>&1; then
        say "$IMAGE is there"
        return
    fi
    check_machine

    root=$(mktemp -d "${TMPDIR:-/var/tmp}/containerpub-image.XXXXXX")
    say "making $IMAGE from Debian $SUITE packages"
    mirror=$(apt_mirror)
    # shellcheck disable=SC2086
    if ! debootstrap --variant=minbase --include="$PACKAGES" "$SUITE" "$root/fs" $mirror >"$root/log" 2>&1; then
        tail -n 20 "$root/log" >&2
        fail "debootstrap failed; see the lines above"
    fi
    cp /etc/ssl/certs/ca-certificates.crt "$root/fs/etc/ssl/certs/ca-certificates.crt"
    [ -z "$PREPARE" ] || (cd "$root/fs" && eval "$PREPARE")

    set -- --change 'LABEL org.containerpub.stand-in=true'
    while IFS= read -r line; do
        [ -z "$line" ] || set -- "$@" --change "$line"
    done <<LINES
$CHANGES
LINES
    tar -C "$root/fs" --one-file-system --numeric-owner --sort=name \
        --exclude='./dev/*' --exclude='./proc/*' --exclude='./sys/*' --exclude='./run/*' --exclude='./tmp/*' \
        --exclude='./var/cache/apt/*' --exclude='./var/lib/apt/lists/*' --exclude='./var/log/*' \
        --exclude='./var/cache/debconf/*' --exclude='./usr/share/doc/*' --exclude='./usr/share/man/*' \
        --exclude='./usr/share/info/*' --exclude='./usr/share/locale/*' \
        --exclude='./etc/apt/sources.list' --exclude='./etc/hostname' --exclude='./etc/resolv.conf' \
        -c . | docker import "$@" - "$IMAGE" >/dev/null
    clean
    root=
    say "$IMAGE is ready"
}

if [ $# -eq 0 ]; then
    for conf in "$here"/*/image.conf; do
        set -- "$@" "$(basename "$(dirname "$conf")")"
    done
fi
for each in "$@"; do
    make "$each"
done
