-- What the artifact store keeps by digest: which versions need it, and what was made once for all workers.

-- name: claim_blob
-- Keep a digest that is about to be used from being collected for a while. Waits for a collection that is removing it.
INSERT INTO blobs (digest, kind, bytes) VALUES ($1, $2, $3)
ON CONFLICT (digest) DO UPDATE SET claimed_at = now()

-- name: resolved
-- The layer that a key was resolved to, if any; marks it as used and claimed now. Locks the blob first, in the order in
-- which a collection locks.
WITH claimed AS (
    UPDATE blobs SET claimed_at = now() WHERE digest = (SELECT digest FROM resolutions WHERE key = $1)
    RETURNING digest, kind, bytes
), used AS (
    UPDATE resolutions SET used_at = now() FROM claimed WHERE key = $1 AND resolutions.digest = claimed.digest
)
SELECT digest, kind, bytes FROM claimed

-- name: resolve
-- Write down what a key was resolved to, unless another worker did before.
INSERT INTO resolutions (key, digest) VALUES ($1, $2) ON CONFLICT (key) DO NOTHING

-- name: resolve_again
-- Replace what a key was resolved to, because the store has lost it.
UPDATE resolutions SET digest = $2, used_at = now() WHERE key = $1 AND digest = $3

-- name: unneeded_blobs
-- Digests that were not claimed since $1, that no version which can still run needs, and that are not the answer of a
-- resolution used since $2.
SELECT digest FROM blobs b
WHERE b.claimed_at < $1 AND NOT EXISTS (
    SELECT 1 FROM version_layers l JOIN versions v ON v.id = l.version_id JOIN functions f ON f.id = v.function_id
    WHERE l.digest = b.digest AND v.status <> 'failed' AND f.deleted_at IS NULL
) AND NOT EXISTS (
    SELECT 1 FROM versions v JOIN functions f ON f.id = v.function_id
    WHERE v.artifact_sha256 = b.digest AND v.status <> 'failed' AND f.deleted_at IS NULL
) AND NOT EXISTS (
    SELECT 1 FROM resolutions r WHERE r.digest = b.digest AND r.used_at >= $2
)
ORDER BY b.claimed_at LIMIT $3

-- name: lock_unclaimed_blob
-- Block claims of a digest while it is removed from the store; no row if it was claimed since $2.
SELECT kind FROM blobs WHERE digest = $1 AND claimed_at < $2 FOR UPDATE SKIP LOCKED

-- name: delete_blob
-- Forget a digest that was removed from the store.
DELETE FROM blobs WHERE digest = $1
