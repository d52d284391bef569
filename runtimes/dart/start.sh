#!/bin/sh
# Runs in the function's folder with the handler, a Dart file or a compiled program. A program that the artifact brought
# along goes first (of bin/main.dart it is bin/main), then what the build compiled. Where nothing was compiled, as with
# the process engine, the source is run.
handler="${1:-bin/main.dart}"
for program in "./${handler%.dart}" /compiled/main; do
    if [ -f "$program" ] && [ -x "$program" ]; then
        exec "$program"
    fi
done
PATH="$PATH:/usr/lib/dart/bin"
exec dart "./$handler"
