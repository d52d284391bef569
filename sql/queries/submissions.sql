-- Queries beside the INSERT of jobs, which shared/postgres/submissions.py makes of its list of columns.

-- name: there
-- Those of these jobs that exist.
SELECT id FROM jobs WHERE id = ANY ($1)

-- name: count_scheduled
-- Jobs of a user that are due later, counted up to $2.
SELECT count(*) FROM (SELECT FROM jobs WHERE user_id = $1 AND status = 'scheduled' LIMIT $2) AS found


