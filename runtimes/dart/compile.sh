# Runs as `sh -c SOURCE compile HANDLER TARGET` in an image with the function's code: compiles the handler in TARGET, and
# sends it as a ustar stream. An artifact that brings its program along needs none.
set -e
source="/function/$1"
cd "$2"
if [ -f "${source%.dart}" ] && [ -x "${source%.dart}" ]; then
    exec tar --format=ustar -cf - --files-from /dev/null
fi
# Where the SDK's own image has it, which is not on every search path.
PATH="$PATH:/usr/lib/dart/bin"
dart compile exe "$source" --output main >&2
exec tar --format=ustar -cf - main
