#!/bin/sh
# Runs in the function's folder with the handler, a Dart file or a compiled program. Of bin/main.dart, a compiled
# bin/main is preferred: it starts in milliseconds and needs no SDK.
handler="${1:-bin/main.dart}"
program="./${handler%.dart}"
if [ -f "$program" ] && [ -x "$program" ]; then
    exec "$program"
fi
# Where the SDK's own image has it, which is not on every search path.
PATH="$PATH:/usr/lib/dart/bin"
exec dart "./$handler"
