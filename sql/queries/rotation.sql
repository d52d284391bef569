-- Seals anew what an old key sealed, and what is not sealed.

-- name: jobs_to_seal
-- A page of jobs in the order of their ids: the bytes of their texts, and whether one of these does not begin with $3.
SELECT id,
       coalesce(octet_length(payload), 0) + coalesce(octet_length(result), 0) + coalesce(octet_length(error), 0) AS bytes,
       kind = 'invoke' AND (coalesce(octet_length(payload) > 0 AND substring(payload FROM 1 FOR length($3::bytea)) <> $3, false)
                            OR coalesce(octet_length(result) > 0 AND substring(result FROM 1 FOR length($3::bytea)) <> $3, false)
                            OR coalesce(octet_length(error) > 0 AND substring(error FROM 1 FOR length($3::bytea)) <> $3, false))
           AS stale
FROM jobs WHERE id > $1 ORDER BY id LIMIT $2

-- name: hold_jobs
-- The texts of these jobs, locked until the transaction ends, in the order in which settles lock them.
SELECT id, payload, result, error FROM jobs WHERE id = ANY ($1) ORDER BY id FOR UPDATE

-- name: seal_jobs
-- Write the newly sealed texts into their rows.
UPDATE jobs SET payload = new.payload, result = new.result, error = new.error
FROM unnest($1::uuid[], $2::bytea[], $3::bytea[], $4::bytea[]) AS new (id, payload, result, error)
WHERE jobs.id = new.id

-- name: invocations_to_seal
-- A page of the records of attempts, in the order of their key.
SELECT accepted_at, job_id, epoch, error, request FROM invocations
WHERE (accepted_at, job_id, epoch) > ($1, $2, $3) ORDER BY accepted_at, job_id, epoch LIMIT $4

-- name: seal_invocations
-- Write the newly sealed texts into their rows.
UPDATE invocations AS i SET error = new.error, request = new.request
FROM unnest($1::timestamptz[], $2::uuid[], $3::bigint[], $4::text[], $5::jsonb[])
     AS new (accepted_at, job_id, epoch, error, request)
WHERE (i.accepted_at, i.job_id, i.epoch) = (new.accepted_at, new.job_id, new.epoch)

-- name: logs_to_seal
-- A page of log lines, in the order of their key.
SELECT accepted_at, job_id, epoch, seq, message, sealed FROM logs
WHERE (accepted_at, job_id, epoch, seq) > ($1, $2, $3, $4) ORDER BY accepted_at, job_id, epoch, seq LIMIT $5

-- name: seal_logs
-- Write the newly sealed messages into their rows.
UPDATE logs AS l SET message = new.message, sealed = true
FROM unnest($1::timestamptz[], $2::uuid[], $3::bigint[], $4::int[], $5::text[])
     AS new (accepted_at, job_id, epoch, seq, message)
WHERE (l.accepted_at, l.job_id, l.epoch, l.seq) = (new.accepted_at, new.job_id, new.epoch, new.seq)

-- name: webhook_secrets_to_seal
-- A page of the secrets that sign callbacks, in the order of their users.
SELECT user_id, secret, previous FROM webhook_secrets WHERE user_id > $1 ORDER BY user_id LIMIT $2

-- name: seal_webhook_secret
-- Write the newly sealed secrets into their row, unless it has others by now.
UPDATE webhook_secrets SET secret = $2, previous = $3
WHERE user_id = $1 AND secret = $4 AND previous IS NOT DISTINCT FROM $5
RETURNING true
