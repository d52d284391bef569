-- Jobs that are worth nothing unless they start by a time, and jobs that go before others of their user.

ALTER TABLE jobs ADD COLUMN expires_at timestamptz;
ALTER TABLE jobs ADD COLUMN priority smallint NOT NULL DEFAULT 0 CHECK (priority BETWEEN -1 AND 1);
CREATE INDEX jobs_expiring ON jobs (expires_at) WHERE expires_at IS NOT NULL AND status IN ('scheduled', 'queued');
