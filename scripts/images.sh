#!/bin/sh
# Base images for the runtimes: pulled where a registry answers, else made from the distribution's packages.
set -eu
cd "$(dirname "$0")/.."

provide() {
    image=$1 name=$2
    if docker image inspect "$image" >/dev/null 2>&1; then
        echo "images: $image is there"
    elif docker pull --quiet "$image" >/dev/null 2>&1; then
        echo "images: pulled $image"
    else
        echo "images: $image cannot be pulled; making a stand-in"
        images/build.sh "$name"
    fi
}

# All at a time: half of each is waiting for packages.
running=
for conf in images/*/image.conf; do
    provide "$(sed -n "s/^IMAGE=['\"]*\([^'\"]*\)['\"]*$/\1/p" "$conf")" "$(basename "$(dirname "$conf")")" &
    running="$running $!"
done
failed=0
for one in $running; do
    wait "$one" || failed=1
done
exit $failed
