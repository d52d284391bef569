-- Deletes what is not kept any longer, in portions of $2 rows. Times are in seconds before now.

-- name: drop_results
-- Results and errors of jobs that ended longer than $1 ago.
UPDATE jobs SET result = NULL, error = NULL
WHERE id IN (SELECT id FROM jobs
             WHERE finished_at < now() - make_interval(secs => $1) AND (result IS NOT NULL OR error IS NOT NULL)
             ORDER BY finished_at LIMIT $2 FOR UPDATE SKIP LOCKED)

-- name: drop_payloads
-- Payloads of jobs that ended longer than $1 ago.
UPDATE jobs SET payload = NULL
WHERE id IN (SELECT id FROM jobs
             WHERE finished_at < now() - make_interval(secs => $1) AND payload IS NOT NULL
             ORDER BY finished_at LIMIT $2 FOR UPDATE SKIP LOCKED)

-- name: delete_jobs
-- Jobs that ended longer than $1 ago; jobs with an id from $3 on are younger and not looked at.
DELETE FROM jobs
WHERE id IN (SELECT id FROM jobs
             WHERE id < $3 AND finished_at < now() - make_interval(secs => $1)
             ORDER BY id LIMIT $2 FOR UPDATE SKIP LOCKED)

-- name: drop_months
-- Whole months of records of jobs that were accepted longer than $1 ago.
SELECT drop_month_partitions(now() - make_interval(secs => $1))

-- name: delete_invocations
-- Records of attempts of jobs that were accepted longer than $1 ago.
DELETE FROM invocations
WHERE (accepted_at, job_id, epoch) IN (
    SELECT accepted_at, job_id, epoch FROM invocations
    WHERE accepted_at < now() - make_interval(secs => $1) ORDER BY accepted_at LIMIT $2)

-- name: delete_logs
-- Log lines of jobs that were accepted longer than $1 ago.
DELETE FROM logs
WHERE (accepted_at, job_id, epoch, seq) IN (
    SELECT accepted_at, job_id, epoch, seq FROM logs
    WHERE accepted_at < now() - make_interval(secs => $1) ORDER BY accepted_at LIMIT $2)

-- name: delete_idempotency_keys
-- Idempotency keys whose time has been over for longer than $1.
DELETE FROM idempotency_keys
WHERE (user_id, key) IN (
    SELECT user_id, key FROM idempotency_keys
    WHERE expires_at <= now() - make_interval(secs => $1) ORDER BY expires_at LIMIT $2)

-- name: delete_sessions
-- Sessions whose refresh token has been over, or which were ended, for longer than $1.
DELETE FROM sessions
WHERE id IN (SELECT id FROM sessions
             WHERE least(expires_at, revoked_at) < now() - make_interval(secs => $1) LIMIT $2)

-- name: delete_functions
-- Functions that were deleted longer than $1 ago and of which no job is kept, with their versions and build logs.
DELETE FROM functions
WHERE id IN (SELECT id FROM functions
             WHERE deleted_at < now() - make_interval(secs => $1)
               AND NOT EXISTS (SELECT FROM jobs WHERE jobs.function_id = functions.id)
             LIMIT $2)
