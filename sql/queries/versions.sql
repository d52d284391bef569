-- Versions: read, built, run, and gone with their functions.

-- name: version_by_number
-- One version with its build log.
SELECT id, number, status, artifact_sha256, artifact_bytes, settings, base, analysis, reason, error,
       build_log, created_at, activated_at,
       ARRAY(SELECT b.kind || ' ' || b.digest || ' ' || b.bytes FROM version_layers l JOIN blobs b ON b.digest = l.digest
             WHERE l.version_id = v.id ORDER BY l.position) AS layers
FROM versions v WHERE function_id = $1 AND number = $2

-- name: list_versions
-- A page of a function's versions, newest first.
SELECT id, number, status, artifact_sha256, artifact_bytes, settings, base, analysis, reason, error,
       '' AS build_log, created_at, activated_at,
       ARRAY(SELECT b.kind || ' ' || b.digest || ' ' || b.bytes FROM version_layers l JOIN blobs b ON b.digest = l.digest
             WHERE l.version_id = v.id ORDER BY l.position) AS layers
FROM versions v WHERE function_id = $1 AND number < $2 ORDER BY number DESC LIMIT $3

-- name: version_to_run
-- All that a worker needs to build or start a version.
SELECT v.id, v.function_id, v.number, v.status, v.artifact_sha256, v.settings, v.base, v.image IS NOT NULL AS built,
       f.name, f.user_id,
       ARRAY(SELECT b.kind || ' ' || b.digest || ' ' || b.bytes FROM version_layers l JOIN blobs b ON b.digest = l.digest
             WHERE l.version_id = v.id ORDER BY l.position) AS layers
FROM versions v JOIN functions f ON f.id = v.function_id
WHERE v.id = $1

-- name: append_build_log
-- Append to the log of a build that is under way.
UPDATE versions SET build_log = build_log || $2 WHERE id = $1 AND status = 'building'

-- name: activate_version
-- Make a version that was built active. Returns its status then, and whether this build made it active. The text in
-- place of an image tells a worker of an older release that there is none.
WITH activated AS (
    UPDATE versions SET status = 'active', base = $2, image = 'layers:' || id::text, image_bytes = $3, analysis = $4,
                        activated_at = now()
    WHERE id = $1 AND status = 'building'
    RETURNING status
)
SELECT coalesce((SELECT status FROM activated), (SELECT status FROM versions WHERE id = $1)) AS status,
       EXISTS (SELECT 1 FROM activated) AS by_this_build

-- name: insert_version_layers
-- Write down the layers of a version, from the bottom up.
INSERT INTO version_layers (version_id, position, digest)
SELECT $1, place - 1, digest FROM unnest($2::text[]) WITH ORDINALITY AS given (digest, place)

-- name: move_live
-- Point live at a version, unless a newer one serves already.
INSERT INTO aliases (function_id, name, version_id)
SELECT v.function_id, 'live', v.id FROM versions v JOIN functions f ON f.id = v.function_id
WHERE v.id = $1 AND v.status = 'active' AND f.deleted_at IS NULL
ON CONFLICT (function_id, name) DO UPDATE SET version_id = excluded.version_id
WHERE (SELECT number FROM versions WHERE id = aliases.version_id) < (SELECT number FROM versions WHERE id = excluded.version_id)

-- name: live_version
-- The version that live points at, of a function that is not deleted.
SELECT a.version_id FROM aliases a JOIN functions f ON f.id = a.function_id
WHERE a.function_id = $1 AND a.name = 'live' AND f.deleted_at IS NULL

-- name: fail_version
-- Make a version whose build failed failed; the live version stays live.
UPDATE versions SET status = 'failed', reason = $2, error = $3 WHERE id = $1 AND status = 'building'

-- name: set_version_base
-- Set the base of a version that was built again because it had none, or that of another kind of engine ($3). The first
-- worker to do so wins.
UPDATE versions SET base = $2 WHERE id = $1 AND status = 'active' AND image IS NOT NULL AND base IS NOT DISTINCT FROM $3

-- name: delete_version_layers
-- Drop the layers that a version had before it was built again.
DELETE FROM version_layers WHERE version_id = $1

-- name: forget_built_versions
-- Mark the versions of a deleted function as not built, so that none of them runs any more.
UPDATE versions SET image = NULL, base = NULL WHERE function_id = $1 AND image IS NOT NULL

-- name: standing_versions
-- Those of these versions that may be called now or once they are built, each with its base. Images of other versions
-- can go.
SELECT v.id, v.base FROM versions v JOIN functions f ON f.id = v.function_id
WHERE v.id = ANY ($1) AND v.status <> 'failed' AND f.deleted_at IS NULL

-- name: versions_kept_warm
-- Live versions of which every worker keeps sandboxes ready.
SELECT v.id, v.function_id, v.number, v.status, v.artifact_sha256, v.settings, v.base, v.image IS NOT NULL AS built,
       f.name, f.user_id,
       ARRAY(SELECT b.kind || ' ' || b.digest || ' ' || b.bytes FROM version_layers l JOIN blobs b ON b.digest = l.digest
             WHERE l.version_id = v.id ORDER BY l.position) AS layers
FROM functions f JOIN aliases a ON a.function_id = f.id AND a.name = 'live' JOIN versions v ON v.id = a.version_id
WHERE f.deleted_at IS NULL AND f.status = 'active' AND v.image IS NOT NULL AND (v.settings ->> 'min_warm')::int > 0
