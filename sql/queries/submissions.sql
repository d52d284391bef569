-- About jobs that are submitted; their INSERT is made of the columns that shared/postgres/submissions.py lists.

-- name: there
-- Which of these jobs there are.
SELECT id FROM jobs WHERE id = ANY ($1)

-- name: count_scheduled
-- Jobs of a user that are due later, counted up to $2.
SELECT count(*) FROM (SELECT FROM jobs WHERE user_id = $1 AND status = 'scheduled' LIMIT $2) AS found

-- name: expire_idempotency_keys
-- Make keys free again whose time is over.
DELETE FROM idempotency_keys WHERE expires_at <= now()
