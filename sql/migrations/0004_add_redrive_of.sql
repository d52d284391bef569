-- Jobs that repeat one that failed; each failed job is repeated at most once.

ALTER TABLE jobs ADD COLUMN redrive_of uuid;
CREATE UNIQUE INDEX jobs_redrive_of ON jobs (redrive_of) WHERE redrive_of IS NOT NULL;
CREATE INDEX jobs_failed_of_user ON jobs (user_id, id) WHERE status = 'failed';
