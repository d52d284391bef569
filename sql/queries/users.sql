-- Accounts and their sessions.

-- name: insert_user
-- Register an account, unless the installation has as many as it may ($5; 0: no limit).
INSERT INTO users (id, email, username, password_hash)
SELECT $1, lower($2), $3, $4
WHERE $5::int = 0 OR (SELECT count(*) FROM users) < $5::int
RETURNING id, email, username, created_at

-- name: lock_registration
-- Hold a lock until the transaction ends, so that only one registration at a time counts the accounts.
SELECT pg_advisory_xact_lock(7265677)

-- name: user_by_email
-- The account of an e-mail address, with its password hash.
SELECT id, email, username, password_hash, created_at FROM users WHERE lower(email) = lower($1)

-- name: insert_session
-- Open a session.
INSERT INTO sessions (id, user_id, refresh_hash, expires_at) VALUES ($1, $2, $3, now() + make_interval(secs => $4))

-- name: session_user
-- The account behind an access token, if its session still stands.
SELECT u.id, u.email, u.username, u.created_at
FROM sessions s JOIN users u ON u.id = s.user_id
WHERE s.id = $1 AND s.revoked_at IS NULL AND s.expires_at > now()

-- name: rotate_session
-- Exchange a refresh token for the next one; no row if it is not the current one.
UPDATE sessions s SET refresh_hash = $3, expires_at = now() + make_interval(secs => $4)
FROM users u
WHERE s.id = $1 AND s.refresh_hash = $2 AND s.revoked_at IS NULL AND s.expires_at > now() AND u.id = s.user_id
RETURNING u.id, u.email, u.username, u.created_at

-- name: revoke_session
-- Log out, or end a session whose refresh token was replayed.
UPDATE sessions SET revoked_at = now() WHERE id = $1 AND revoked_at IS NULL
