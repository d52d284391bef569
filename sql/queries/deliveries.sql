-- Callbacks that wait to be sent, and the secrets that sign them.

-- name: insert_deliveries
-- Callbacks that jobs which just ended ask for, within the transaction that ends them.
INSERT INTO deliveries (id, job_id, user_id, url, event)
SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::text[], $5::text[])

-- name: claim_deliveries
-- Claim up to $1 callbacks that are due, at most $2 at a time of one user, for $3 seconds. $4 and $5: users, and how
-- many callbacks of each are being sent already. The user with the fewest of these comes first.
WITH RECURSIVE owner AS (
    (SELECT user_id FROM deliveries WHERE status = 'pending' ORDER BY user_id LIMIT 1)
    UNION ALL
    SELECT (SELECT d.user_id FROM deliveries d WHERE d.status = 'pending' AND d.user_id > owner.user_id
            ORDER BY d.user_id LIMIT 1)
    FROM owner WHERE owner.user_id IS NOT NULL
), busy AS (
    SELECT * FROM unnest($4::uuid[], $5::int[]) AS busy (user_id, sending)
), due AS (
    SELECT d.id FROM owner LEFT JOIN busy USING (user_id) CROSS JOIN LATERAL (
        SELECT id, next_at, row_number() OVER (ORDER BY next_at) AS place FROM deliveries
        WHERE user_id = owner.user_id AND status = 'pending' AND next_at <= now()
        ORDER BY next_at LIMIT greatest($2 - coalesce(busy.sending, 0), 0)
    ) d
    WHERE owner.user_id IS NOT NULL
    ORDER BY d.place + coalesce(busy.sending, 0), d.next_at LIMIT $1
)
UPDATE deliveries SET attempts = attempts + 1, attempted_at = now(), next_at = now() + make_interval(secs => $3)
FROM due WHERE deliveries.id = due.id AND deliveries.status = 'pending' AND deliveries.next_at <= now()
RETURNING deliveries.*

-- name: end_delivery
-- How try $2 of a callback ended: delivered, dead, or pending again in $6 seconds.
UPDATE deliveries SET status = $3, last_status = $4, last_error = $5, next_at = now() + make_interval(secs => $6),
    delivered_at = CASE WHEN $3 = 'delivered' THEN now() END
WHERE id = $1 AND attempts = $2 AND status = 'pending'

-- name: list_deliveries
-- A page of a user's callbacks, newest first; filters that are null match everything.
SELECT * FROM deliveries
WHERE user_id = $1 AND id < $2 AND ($3::uuid IS NULL OR job_id = $3) AND ($4::text IS NULL OR status = $4)
ORDER BY id DESC LIMIT $5

-- name: redeliver
-- Send a callback once more, with all its tries anew; it keeps its id.
UPDATE deliveries SET status = 'pending', attempts = 0, next_at = now(), delivered_at = NULL
WHERE id = $1 AND user_id = $2
RETURNING *

-- name: webhook_secret
-- The secret of a user, made now if there is none yet.
WITH made AS (
    INSERT INTO webhook_secrets (user_id, secret) VALUES ($1, $2) ON CONFLICT (user_id) DO NOTHING RETURNING *
)
SELECT * FROM made UNION ALL SELECT * FROM webhook_secrets WHERE user_id = $1 LIMIT 1

-- name: rotate_webhook_secret
-- Give a user a new secret; for $3 seconds callbacks carry a signature by the old one too.
INSERT INTO webhook_secrets AS known (user_id, secret) VALUES ($1, $2)
ON CONFLICT (user_id) DO UPDATE SET
    previous = known.secret, previous_until = now() + make_interval(secs => $3), secret = excluded.secret,
    created_at = now()
RETURNING *
