-- Leadership, and what the leader keeps in order.

-- name: take_lease
-- Become or stay the holder; no row if somebody else's lease still runs. One that runs for longer than any is given was
-- taken before this clock was set back.
INSERT INTO leases (name, holder, expires_at) VALUES ($1, $2, now() + make_interval(secs => $3))
ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, expires_at = excluded.expires_at
WHERE leases.holder = excluded.holder OR leases.expires_at < now()
   OR leases.expires_at > now() + make_interval(secs => greatest(10 * $3, 60))
RETURNING holder

-- name: drop_lease
-- Give leadership up, so that the next one need not wait.
DELETE FROM leases WHERE name = $1 AND holder = $2

-- name: next_generation
-- A number for a rebuilt queue, above all earlier ones and above $1, which Redis has seen.
SELECT setval('queue_generation', greatest(nextval('queue_generation'), $1::bigint + 1))

-- name: make_partitions
-- Months of records ahead of time.
SELECT make_month_partitions((now() AT TIME ZONE 'UTC')::date, 3)
