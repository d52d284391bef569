# Fits the heap to the sandbox's memory, and becomes Node.js.
#
# V8 sizes its heap by the machine. Left alone it would grow past the sandbox's memory and be killed, while garbage that
# it could have collected still lies about. What it may use is what Node.js itself and its young generation leave over.
memory=${FUNCTION_MAX_MEMORY_MB:-128}
young=$((memory / 64))
[ "$young" -ge 1 ] || young=1
[ "$young" -le 16 ] || young=16
old=$((memory - 40 - 3 * young))
[ "$old" -ge 12 ] || old=12
exec node --max-old-space-size="$old" --max-semi-space-size="$young" "${0%/*}/serve.cjs"
