-- Functions, and what they were deployed as.

-- name: upsert_function
-- The function of a deploy, made if it is new, its row locked so that version numbers have no gaps.
INSERT INTO functions (id, user_id, name) VALUES ($1, $2, $3)
ON CONFLICT (user_id, name) WHERE deleted_at IS NULL DO UPDATE SET name = excluded.name
RETURNING id, last_number

-- name: newest_version
-- Artifact and settings of a function's newest version, to tell whether another deploy changes anything.
SELECT v.id, v.number, v.status, v.artifact_sha256, v.settings, a.version_id = v.id AS live
FROM versions v LEFT JOIN aliases a ON a.function_id = v.function_id AND a.name = 'live'
WHERE v.function_id = $1 ORDER BY v.number DESC LIMIT 1

-- name: insert_version
-- The next version of a function.
INSERT INTO versions (id, function_id, number, artifact_sha256, artifact_bytes, settings, build_log)
VALUES ($1, $2, $3, $4, $5, $6, $7)

-- name: set_last_number
-- Remember the newest version's number.
UPDATE functions SET last_number = $2 WHERE id = $1

-- name: list_functions
-- A page of a user's functions by name. One that no version serves yet has the status of its newest version.
SELECT f.id, f.name, CASE WHEN f.status = 'active' AND v.id IS NULL THEN coalesce(n.status, f.status) ELSE f.status END AS status,
       f.created_at, f.updated_at, v.number AS live_version, coalesce(v.settings, n.settings) AS settings
FROM functions f
LEFT JOIN aliases a ON a.function_id = f.id AND a.name = 'live'
LEFT JOIN versions v ON v.id = a.version_id
LEFT JOIN versions n ON n.function_id = f.id AND n.number = f.last_number
WHERE f.user_id = $1 AND f.deleted_at IS NULL AND f.name > $2
ORDER BY f.name LIMIT $3

-- name: function_by_reference
-- A user's function by id or by name. One that no version serves yet has the status of its newest version.
SELECT f.id, f.name, CASE WHEN f.status = 'active' AND v.id IS NULL THEN coalesce(n.status, f.status) ELSE f.status END AS status,
       f.created_at, f.updated_at, v.number AS live_version, coalesce(v.settings, n.settings) AS settings
FROM functions f
LEFT JOIN aliases a ON a.function_id = f.id AND a.name = 'live'
LEFT JOIN versions v ON v.id = a.version_id
LEFT JOIN versions n ON n.function_id = f.id AND n.number = f.last_number
WHERE f.user_id = $1 AND f.deleted_at IS NULL AND (f.id = $2 OR f.name = $3)

-- name: resolve_live
-- The function that an invoke names, and its live version.
SELECT f.id, f.name, f.status, v.id AS version_id, v.number, v.settings
FROM functions f
LEFT JOIN aliases a ON a.function_id = f.id AND a.name = 'live'
LEFT JOIN versions v ON v.id = a.version_id
WHERE f.user_id = $1 AND f.deleted_at IS NULL AND (f.id = $2 OR f.name = $3)

-- name: set_function_status
-- Stop or start a function; returns the live version.
UPDATE functions f SET status = $2 WHERE f.id = $1 AND f.deleted_at IS NULL
RETURNING (SELECT version_id FROM aliases a WHERE a.function_id = f.id AND a.name = 'live') AS live

-- name: stopped_functions
-- Functions whose jobs wait until they are started again.
SELECT id FROM functions WHERE status = 'inactive' AND deleted_at IS NULL

-- name: delete_function
-- Delete a function for its user at once; a delete job removes its sandboxes and versions.
UPDATE functions SET deleted_at = now(), status = 'inactive' WHERE id = $1 AND deleted_at IS NULL
