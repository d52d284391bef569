-- What the artifact store keeps by digest: who needs it, and what was made only once.

-- name: claim_blob
-- Somebody is about to use this digest: it is not collected for a while. Waits for a collection that is at it.
INSERT INTO blobs (digest, kind, bytes) VALUES ($1, $2, $3)
ON CONFLICT (digest) DO UPDATE SET claimed_at = now()

-- name: resolved
-- What a key was resolved to, if it was; it counts as used and claimed now. The blob is locked first, as a collection
-- does it.
WITH claimed AS (
    UPDATE blobs SET claimed_at = now() WHERE digest = (SELECT digest FROM resolutions WHERE key = $1)
    RETURNING digest, kind, bytes
), used AS (
    UPDATE resolutions SET used_at = now() FROM claimed WHERE key = $1 AND resolutions.digest = claimed.digest
)
SELECT digest, kind, bytes FROM claimed

-- name: resolve
-- Note what a key was resolved to, unless another was faster.
INSERT INTO resolutions (key, digest) VALUES ($1, $2) ON CONFLICT (key) DO NOTHING

-- name: resolve_again
-- Note what a key is resolved to from now on: what it was before is lost.
UPDATE resolutions SET digest = $2, used_at = now() WHERE key = $1 AND digest = $3

-- name: unneeded_blobs
-- Digests that were not claimed since $1, that no version needs which can still run, and that no resolution used since $2
-- stands for.
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
-- Hold off those who would claim a digest while it is removed from the store; no row if it was claimed since $2.
SELECT kind FROM blobs WHERE digest = $1 AND claimed_at < $2 FOR UPDATE SKIP LOCKED

-- name: delete_blob
-- The store does not have it any more.
DELETE FROM blobs WHERE digest = $1
