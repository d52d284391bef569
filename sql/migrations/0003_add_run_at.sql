-- Jobs that are due later.

ALTER TABLE jobs ADD COLUMN run_at timestamptz;
ALTER TABLE jobs ADD CONSTRAINT jobs_scheduled_has_time CHECK (status <> 'scheduled' OR run_at IS NOT NULL);
CREATE INDEX jobs_due ON jobs (run_at) WHERE status = 'scheduled';
CREATE INDEX jobs_later_of_user ON jobs (user_id) WHERE status = 'scheduled';
