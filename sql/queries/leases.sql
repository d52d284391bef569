-- Leadership of a task that one process at a time does (the scheduler's, an hourly sweep), and what the leader does.

-- name: take_leadership
-- Become or stay the leader of task $1 as $2, for $3 seconds; no row while another process leads. A leadership that
-- would last longer than any is given for was taken before this clock was set back, and is taken over.
INSERT INTO leases (name, holder, expires_at) VALUES ($1, $2, now() + make_interval(secs => $3))
ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, expires_at = excluded.expires_at
WHERE leases.holder = excluded.holder OR leases.expires_at < now()
   OR leases.expires_at > now() + make_interval(secs => greatest(10 * $3, 60))
RETURNING holder

-- name: drop_leadership
-- Give leadership up, so that the next leader need not wait until it runs out.
DELETE FROM leases WHERE name = $1 AND holder = $2

-- name: next_generation
-- A number for a rebuilt queue, above all earlier ones and above $1, which Redis has seen.
SELECT setval('queue_generation', greatest(nextval('queue_generation'), $1::bigint + 1))

-- name: make_partitions
-- Make the partitions for the records of this month and the next ones.
SELECT make_month_partitions((now() AT TIME ZONE 'UTC')::date, 3)

-- name: count_without_month
-- Records whose month has no partition, counted up to $1 a table.
SELECT (SELECT count(*) FROM (SELECT FROM invocations_default LIMIT $1) AS attempts)
     + (SELECT count(*) FROM (SELECT FROM logs_default LIMIT $1) AS lines)
