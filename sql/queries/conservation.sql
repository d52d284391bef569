-- Jobs that are not final, for the comparison with the queue.

-- name: open_page
-- A page of jobs that have not ended, in the order of their ids.
SELECT id, kind, status FROM jobs
WHERE status IN ('scheduled', 'queued', 'running') AND id > $1 ORDER BY id LIMIT $2

-- name: must_be_queued
-- Those of these jobs that have to be on the queue, each with a text that changes whenever the job moves.
SELECT id, concat_ws(' ', status, attempt, lost, epoch) AS moved FROM jobs
WHERE id = ANY ($1) AND status IN ('queued', 'running')
