-- What follows the end of a job: callbacks, and jobs of other functions.

-- name: completion_hooks
-- The callback and the following job, on the version that is live now, that each of these ended jobs asks for.
SELECT j.id, j.user_id, j.function_id, j.status, j.chain_depth,
       coalesce(j.callback_url, v.settings ->> 'callback_url') AS callback_url,
       next.name AS next_name, t.id AS next_id, a.version_id AS next_version,
       (tv.settings ->> 'concurrency')::int AS next_concurrency
FROM jobs j
LEFT JOIN versions v ON v.id = j.version_id
CROSS JOIN LATERAL (
    SELECT CASE j.status WHEN 'succeeded' THEN v.settings ->> 'on_success'
                         WHEN 'failed' THEN v.settings ->> 'on_failure' END AS name
) next
LEFT JOIN functions t ON t.user_id = j.user_id AND t.name = next.name AND t.deleted_at IS NULL
LEFT JOIN aliases a ON a.function_id = t.id AND a.name = 'live'
LEFT JOIN versions tv ON tv.id = a.version_id
WHERE j.id = ANY ($1) AND j.kind = 'invoke' AND j.status IN ('succeeded', 'failed', 'cancelled')

-- name: end_of_job
-- How a job ended, for the one that follows it.
SELECT j.id AS job, f.name AS function, j.status, j.reason, j.result, j.error
FROM jobs j LEFT JOIN functions f ON f.id = j.function_id WHERE j.id = $1

-- name: refuse_chains
-- Write into jobs why no job follows them although their function asks for one.
UPDATE jobs SET chain_refused = refused.why
FROM unnest($1::uuid[], $2::text[]) AS refused (id, why) WHERE jobs.id = refused.id
