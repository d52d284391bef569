-- Jobs and the records of their attempts.

-- name: fall_due
-- Move jobs whose time has come from scheduled to queued.
WITH due AS (
    SELECT id FROM jobs WHERE status = 'scheduled' AND run_at <= now() ORDER BY run_at LIMIT $1 FOR UPDATE SKIP LOCKED
), moved AS (
    UPDATE jobs SET status = 'queued' FROM due WHERE jobs.id = due.id RETURNING jobs.*
)
SELECT moved.*, v.number AS version FROM moved LEFT JOIN versions v ON v.id = moved.version_id ORDER BY moved.run_at, moved.id

-- name: job_of_user
-- One job, if it is this user's.
SELECT j.*, v.number AS version, f.name AS function_name
FROM jobs j LEFT JOIN versions v ON v.id = j.version_id LEFT JOIN functions f ON f.id = j.function_id
WHERE j.id = $1 AND j.user_id = $2

-- name: list_jobs
-- A page of a user's jobs with ids from $10 to $11, without what they were called with, newest first; filters that are
-- null match everything. At most $8 jobs, with results and errors of at most $9 bytes together, but for a single one
-- that has more; found is the number of jobs before these bytes were counted.
WITH page AS (
    SELECT id, coalesce(octet_length(result), 0) + coalesce(octet_length(error), 0) AS bytes FROM jobs
    WHERE user_id = $1 AND id < $2 AND id BETWEEN $10 AND $11
      AND ($3::uuid IS NULL OR function_id = $3) AND ($4::text[] IS NULL OR status = ANY ($4))
      AND ($5::uuid[] IS NULL OR id = ANY ($5)) AND ($6::uuid[] IS NULL OR id <> ALL ($6))
      AND ($7::text IS NULL OR reason = $7)
    ORDER BY id DESC LIMIT $8
), sized AS (
    SELECT id, sum(bytes) OVER (ORDER BY id DESC) - bytes AS before, count(*) OVER () AS found FROM page
)
SELECT j.id, j.kind, j.user_id, j.function_id, j.version_id, j.status, j.reason, j.attempt, j.lost, j.concurrency,
       NULL::bytea AS payload, j.result, j.error, j.queue_ms, j.sandbox_ms, j.run_ms, j.total_ms, j.created_at, j.run_at,
       j.started_at, j.finished_at, j.priority, j.expires_at, j.redrive_of, j.callback_url, j.chained_from,
       j.chain_refused, v.number AS version, f.name AS function_name, sized.found
FROM sized JOIN jobs j USING (id) LEFT JOIN versions v ON v.id = j.version_id LEFT JOIN functions f ON f.id = j.function_id
WHERE sized.before < $9
ORDER BY j.id DESC

-- name: to_repeat
-- Those of the user's jobs $2 that failed and can be repeated, with all that a repetition takes over from each.
SELECT id, payload, priority, callback_url, chain_depth FROM jobs
WHERE user_id = $1 AND id = ANY ($2) AND status = 'failed' AND kind = 'invoke' AND payload IS NOT NULL

-- name: redrivable
-- A page of a user's failed invokes that no job repeats yet, oldest first, without those whose function cannot be
-- called. Filters that are null match everything.
SELECT id, function_id FROM jobs j
WHERE user_id = $1 AND status = 'failed' AND kind = 'invoke' AND payload IS NOT NULL
  AND ($2::uuid IS NULL OR function_id = $2) AND ($3::text IS NULL OR reason = $3)
  AND NOT EXISTS (SELECT FROM jobs r WHERE r.redrive_of = j.id)
  AND EXISTS (SELECT FROM functions f WHERE f.id = j.function_id AND f.deleted_at IS NULL AND f.status = 'active')
ORDER BY id LIMIT $4

-- name: payload_of_job
-- The payload of a job.
SELECT payload FROM jobs WHERE id = $1

-- name: began
-- When the first attempt of job $2, accepted at $1, began, by the records that Postgres has.
SELECT min(started_at) FROM invocations WHERE accepted_at = $1 AND job_id = $2

-- name: parts_that_stand
-- For each of these jobs, whether its row still has a payload and a result.
SELECT id, payload IS NOT NULL AS payload, result IS NOT NULL AS result FROM jobs WHERE id = ANY ($1)

-- name: repetition_of
-- The job that repeats $1.
SELECT id FROM jobs WHERE redrive_of = $1

-- name: settle_jobs
-- Move jobs forward to the state in their records. A final job, and one that a later epoch holds, stay as they are. A
-- record that comes a second time must not move a job back: an epoch's end counts once, unless it is final.
-- The row of a synchronous job is inserted here, and only at its end: before that, Postgres could not have it run.
-- A further attempt is due $21 seconds from now by this clock, since its worker's clock may be wrong.
-- Returns the jobs that ended now and that a callback or another job follows.
WITH settled AS (
INSERT INTO jobs AS j (id, kind, user_id, function_id, version_id, status, reason, attempt, lost, epoch, payload, result,
                       error, queue_ms, sandbox_ms, run_ms, total_ms, created_at, started_at, finished_at, run_at)
SELECT id, kind, user_id, function_id, version_id, status, reason, attempt, lost, epoch, payload, result, error,
       queue_ms, sandbox_ms, run_ms, total_ms, created_at, started_at, finished_at,
       now() + make_interval(secs => again_in_s)
FROM unnest($1::uuid[], $2::text[], $3::uuid[], $4::uuid[], $5::uuid[], $6::text[], $7::text[], $8::int[],
            $9::int[], $10::bigint[], $11::bytea[], $12::bytea[], $13::bytea[], $14::real[], $15::real[],
            $16::real[], $17::real[], $18::timestamptz[], $19::timestamptz[], $20::timestamptz[], $21::float8[])
     AS new (id, kind, user_id, function_id, version_id, status, reason, attempt, lost, epoch, payload, result, error,
             queue_ms, sandbox_ms, run_ms, total_ms, created_at, started_at, finished_at, again_in_s)
WHERE new.finished_at IS NOT NULL OR EXISTS (SELECT FROM jobs WHERE jobs.id = new.id)
ON CONFLICT (id) DO UPDATE SET
    status = excluded.status, reason = excluded.reason, attempt = excluded.attempt, lost = excluded.lost,
    epoch = coalesce(excluded.epoch, j.epoch), result = excluded.result, error = excluded.error,
    payload = CASE WHEN excluded.status = 'succeeded' THEN NULL ELSE j.payload END,
    queue_ms = excluded.queue_ms, sandbox_ms = excluded.sandbox_ms, run_ms = excluded.run_ms,
    total_ms = excluded.total_ms, started_at = excluded.started_at, finished_at = excluded.finished_at,
    run_at = coalesce(excluded.run_at, j.run_at)
WHERE j.status IN ('scheduled', 'queued', 'running')
  AND (j.epoch IS NULL OR excluded.epoch IS NULL OR j.epoch < excluded.epoch
       OR (j.epoch = excluded.epoch AND excluded.finished_at IS NOT NULL))
RETURNING j.id, j.kind, j.version_id, j.status, j.callback_url
)
SELECT settled.id FROM settled
LEFT JOIN versions v ON v.id = settled.version_id
    AND coalesce(v.settings ->> 'callback_url', v.settings ->> 'on_success', v.settings ->> 'on_failure') IS NOT NULL
WHERE settled.status IN ('succeeded', 'failed', 'cancelled') AND settled.kind = 'invoke'
  AND (settled.callback_url IS NOT NULL OR v.id IS NOT NULL)

-- name: fail_versions
-- Make the versions failed whose deploys $1 ended without success, for reasons $2, with messages $3.
UPDATE versions v SET status = 'failed', reason = new.reason, error = new.error
FROM unnest($1::uuid[], $2::text[], $3::text[]) AS new (job, reason, error)
JOIN jobs j ON j.id = new.job AND j.kind = 'deploy' AND j.status IN ('failed', 'cancelled')
WHERE v.id = j.version_id AND v.status = 'building'

-- name: insert_invocations
-- Insert the records of attempts. An attempt that succeeded after another one had ended its job is recorded as lost:
-- its worker had slept beyond its lease and registered the attempt with a rebuilt queue. Its result counts nowhere.
-- A record that is there already stays. An attempt that another process ended has two records, in any order: that
-- process's and its worker's. The second one fills in what the first one lacks, and replaces the outcome "lost".
INSERT INTO invocations AS known
                        (accepted_at, job_id, attempt, user_id, function_id, version_id, worker_id, epoch, outcome,
                         reason, error, start_kind, exit_code, queue_ms, sandbox_ms, run_ms, total_ms, cpu_ms,
                         peak_memory_bytes, timeout_ms, memory_mb, logs_truncated, request, started_at, finished_at)
SELECT accepted_at, job_id, attempt, user_id, function_id, version_id, worker_id, epoch,
       -- A scalar subquery is looked up by its key; EXISTS may be planned as a scan of all jobs.
       CASE WHEN outcome = 'succeeded' AND (SELECT j.epoch FROM jobs j WHERE j.id = job_id AND j.status = 'succeeded')
                                           IS DISTINCT FROM new.epoch
            THEN 'lost' ELSE outcome END,
       reason, error, start_kind, exit_code, queue_ms, sandbox_ms, run_ms, total_ms, cpu_ms, peak_memory_bytes,
       timeout_ms, memory_mb, logs_truncated, request, started_at, finished_at
FROM unnest($1::timestamptz[], $2::uuid[], $3::int[], $4::uuid[], $5::uuid[], $6::uuid[], $7::text[],
            $8::bigint[], $9::text[], $10::text[], $11::text[], $12::text[], $13::int[], $14::real[],
            $15::real[], $16::real[], $17::real[], $18::real[], $19::bigint[], $20::int[], $21::int[],
            $22::bool[], $23::jsonb[], $24::timestamptz[], $25::timestamptz[])
     AS new (accepted_at, job_id, attempt, user_id, function_id, version_id, worker_id, epoch, outcome, reason, error,
             start_kind, exit_code, queue_ms, sandbox_ms, run_ms, total_ms, cpu_ms, peak_memory_bytes, timeout_ms,
             memory_mb, logs_truncated, request, started_at, finished_at)
ON CONFLICT (accepted_at, job_id, epoch) DO UPDATE SET
    outcome = CASE known.outcome WHEN 'lost' THEN excluded.outcome ELSE known.outcome END,
    reason = CASE known.outcome WHEN 'lost' THEN coalesce(known.reason, excluded.reason) ELSE known.reason END,
    error = CASE known.outcome WHEN 'lost' THEN coalesce(known.error, excluded.error) ELSE known.error END,
    start_kind = coalesce(known.start_kind, excluded.start_kind),
    exit_code = coalesce(known.exit_code, excluded.exit_code),
    queue_ms = coalesce(known.queue_ms, excluded.queue_ms), sandbox_ms = coalesce(known.sandbox_ms, excluded.sandbox_ms),
    run_ms = coalesce(known.run_ms, excluded.run_ms), total_ms = coalesce(known.total_ms, excluded.total_ms),
    cpu_ms = coalesce(known.cpu_ms, excluded.cpu_ms),
    peak_memory_bytes = coalesce(known.peak_memory_bytes, excluded.peak_memory_bytes),
    timeout_ms = coalesce(known.timeout_ms, excluded.timeout_ms), memory_mb = coalesce(known.memory_mb, excluded.memory_mb),
    logs_truncated = known.logs_truncated OR excluded.logs_truncated,
    request = CASE known.request WHEN '{}' THEN excluded.request ELSE known.request END,
    started_at = coalesce(known.started_at, excluded.started_at)
WHERE known.outcome IN ('lost', 'cancelled')

-- name: insert_logs
-- Insert the log lines of attempts.
INSERT INTO logs (accepted_at, job_id, epoch, seq, attempt, function_id, stream, level, message, logged_at, sealed)
SELECT * FROM unnest($1::timestamptz[], $2::uuid[], $3::bigint[], $4::int[], $5::int[], $6::uuid[], $7::text[],
                     $8::text[], $9::text[], $10::timestamptz[], $11::bool[])
ON CONFLICT (accepted_at, job_id, epoch, seq) DO NOTHING

-- name: cancel_job
-- Cancel a job that is on no queue, because the reconciler has not put it there yet.
UPDATE jobs SET status = 'cancelled', finished_at = now() WHERE id = $1 AND status IN ('scheduled', 'queued')
RETURNING id

-- name: cancel_scheduled
-- End the jobs of a function that are not due yet.
UPDATE jobs SET status = 'cancelled', finished_at = now() WHERE function_id = $1 AND status = 'scheduled'
RETURNING id

-- name: expired
-- A page of jobs that have not started by their expires_at, in the order of their ids.
SELECT id, kind FROM jobs
WHERE expires_at <= now() AND status IN ('scheduled', 'queued') AND attempt = 0 AND id > $1 ORDER BY id LIMIT $2

-- name: expire_job
-- Fail a job that is on no queue and has not started by its expires_at.
UPDATE jobs SET status = 'failed', reason = 'expired', finished_at = now()
WHERE id = $1 AND status IN ('scheduled', 'queued') AND attempt = 0
RETURNING id

-- name: open_jobs
-- A page of the jobs that must be on the queue, in order of arrival, for a rebuild: at most $2 of them, with payloads
-- of at most $3 bytes together. A single job may have a larger one.
SELECT j.*, v.number AS version
FROM (
    SELECT id, sum(coalesce(pg_column_size(payload), 0)) OVER (ORDER BY id) - coalesce(pg_column_size(payload), 0) AS before
    FROM (SELECT id, payload FROM jobs WHERE status IN ('queued', 'running') AND id > $1 ORDER BY id LIMIT $2) AS page
) AS sized
JOIN jobs j ON j.id = sized.id
LEFT JOIN versions v ON v.id = j.version_id
WHERE sized.before < $3
ORDER BY j.id

-- name: open_ids
-- A page of the jobs that must be on the queue, in order of arrival, for the reconciler; without those accepted within
-- the last $2 seconds. A job from the future was accepted by a wrong clock: it may be of any age and is not left out.
SELECT j.id, j.kind FROM jobs j
WHERE j.status IN ('queued', 'running') AND j.id > $1
  AND (j.created_at < now() - make_interval(secs => $2) OR j.created_at > now() + make_interval(secs => $2))
ORDER BY j.id LIMIT $3

-- name: open_of_function
-- Invoke jobs of a function that have not ended, the newest first.
SELECT id FROM jobs
WHERE function_id = $1 AND kind = 'invoke' AND status IN ('scheduled', 'queued', 'running')
ORDER BY id DESC LIMIT $2

-- name: still_open
-- Of these jobs, those that have not ended, in order of arrival.
SELECT j.*, v.number AS version FROM jobs j LEFT JOIN versions v ON v.id = j.version_id
WHERE j.id = ANY ($1) AND j.status IN ('queued', 'running') ORDER BY j.id

-- name: list_logs
-- A page of a function's log, newest first; filters that are null match everything. At most $8 lines, with messages of
-- at most $9 bytes together, but for a single one that has more; found is the number of lines before that, and cut is true
-- of the last line of an attempt that wrote more than is kept.
WITH page AS (
    SELECT accepted_at, job_id, epoch, seq, attempt, stream, level, message, logged_at, sealed
    FROM logs
    WHERE function_id = $1 AND ($2::uuid IS NULL OR job_id = $2) AND ($3::text[] IS NULL OR level = ANY ($3))
      AND (accepted_at, job_id, epoch, seq) < ($4, $5, $6, $7)
    ORDER BY accepted_at DESC, job_id DESC, epoch DESC, seq DESC LIMIT $8
), sized AS (
    SELECT *, sum(octet_length(message)) OVER (ORDER BY accepted_at DESC, job_id DESC, epoch DESC, seq DESC)
                  - octet_length(message) AS before, count(*) OVER () AS found
    FROM page
)
SELECT sized.*, i.logs_truncated AND seq = (
           SELECT max(l.seq) FROM logs l
           WHERE l.accepted_at = sized.accepted_at AND l.job_id = sized.job_id AND l.epoch = sized.epoch
       ) AS cut
FROM sized LEFT JOIN invocations i USING (accepted_at, job_id, epoch)
WHERE before < $9
ORDER BY accepted_at DESC, job_id DESC, epoch DESC, seq DESC

-- name: list_invocations
-- A page of a function's invocations, newest first: at most $6, with what they printed, their errors and requests of at
-- most $7 bytes together, but for a single one that has more; found is the number of invocations before that.
WITH page AS (
    SELECT * FROM invocations
    WHERE function_id = $1 AND ($2::uuid IS NULL OR job_id = $2) AND (accepted_at, job_id, epoch) < ($3, $4, $5)
    ORDER BY accepted_at DESC, job_id DESC, epoch DESC LIMIT $6
), weighed AS (
    SELECT accepted_at, job_id, epoch,
           coalesce(octet_length(error), 0) + coalesce(pg_column_size(request), 0) + coalesce((
               SELECT sum(octet_length(message)) FROM logs l
               WHERE l.accepted_at = page.accepted_at AND l.job_id = page.job_id AND l.epoch = page.epoch
           ), 0) AS bytes
    FROM page
), sized AS (
    SELECT accepted_at, job_id, epoch, count(*) OVER () AS found,
           sum(bytes) OVER (ORDER BY accepted_at DESC, job_id DESC, epoch DESC) - bytes AS before
    FROM weighed
)
SELECT page.*, sized.found FROM page JOIN sized USING (accepted_at, job_id, epoch)
WHERE sized.before < $7
ORDER BY accepted_at DESC, job_id DESC, epoch DESC

-- name: logs_of_job
-- The log lines of all attempts of a job, in order.
SELECT epoch, attempt, stream, level, message, sealed FROM logs
WHERE accepted_at = $1 AND job_id = $2 ORDER BY epoch, seq

-- name: logs_of_invocations
-- The log lines of these attempts, in order.
SELECT job_id, epoch, stream, level, message, sealed FROM logs
WHERE accepted_at = ANY ($1) AND job_id = ANY ($2) AND epoch = ANY ($3) ORDER BY job_id, epoch, seq
