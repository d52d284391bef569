-- Accounts, functions and their versions, jobs, and the records that every attempt leaves.
-- Payloads and results are JSON text kept as bytea: jsonb refuses U+0000 and lone surrogates, which functions may use.

CREATE FUNCTION touch_updated_at() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.updated_at := now();
    RETURN NEW;
END
$$;

CREATE TABLE users (
    id            uuid PRIMARY KEY,
    email         text NOT NULL CONSTRAINT users_email_length CHECK (length(email) BETWEEN 3 AND 254),
    username      text NOT NULL CONSTRAINT users_username_shape CHECK (username ~ '^[a-z0-9][a-z0-9_-]{1,38}$'),
    password_hash text NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT now(),
    updated_at    timestamptz NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX users_email_unique ON users (lower(email));
CREATE UNIQUE INDEX users_username_unique ON users (username);

-- One row a log-in. Access tokens name it; a refresh token is used once, and its replay ends the session.
CREATE TABLE sessions (
    id           uuid PRIMARY KEY,
    user_id      uuid NOT NULL REFERENCES users ON DELETE CASCADE,
    refresh_hash bytea NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT now(),
    updated_at   timestamptz NOT NULL DEFAULT now(),
    expires_at   timestamptz NOT NULL,
    revoked_at   timestamptz
);
CREATE INDEX sessions_user ON sessions (user_id);

CREATE TABLE functions (
    id          uuid PRIMARY KEY,
    user_id     uuid NOT NULL REFERENCES users ON DELETE CASCADE,
    name        text NOT NULL CONSTRAINT functions_name_shape CHECK (name ~ '^[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?$'),
    status      text NOT NULL DEFAULT 'active' CONSTRAINT functions_status CHECK (status IN ('active', 'inactive')),
    last_number integer NOT NULL DEFAULT 0,
    created_at  timestamptz NOT NULL DEFAULT now(),
    updated_at  timestamptz NOT NULL DEFAULT now(),
    deleted_at  timestamptz
);
CREATE UNIQUE INDEX functions_name_unique ON functions (user_id, name) WHERE deleted_at IS NULL;

CREATE TABLE versions (
    id              uuid PRIMARY KEY,
    function_id     uuid NOT NULL REFERENCES functions ON DELETE CASCADE,
    number          integer NOT NULL CONSTRAINT versions_number_positive CHECK (number > 0),
    status          text NOT NULL DEFAULT 'building'
                    CONSTRAINT versions_status CHECK (status IN ('building', 'active', 'failed')),
    artifact_sha256 text NOT NULL,
    artifact_bytes  bigint NOT NULL,
    settings        jsonb NOT NULL,
    image           text,
    image_bytes     bigint,
    analysis        jsonb NOT NULL DEFAULT '{}',
    reason          text,
    error           text,
    build_log       text NOT NULL DEFAULT '',
    created_at      timestamptz NOT NULL DEFAULT now(),
    updated_at      timestamptz NOT NULL DEFAULT now(),
    activated_at    timestamptz,
    CONSTRAINT versions_number_unique UNIQUE (function_id, number)
);

CREATE TABLE aliases (
    function_id uuid NOT NULL REFERENCES functions ON DELETE CASCADE,
    name        text NOT NULL,
    version_id  uuid NOT NULL REFERENCES versions ON DELETE CASCADE,
    created_at  timestamptz NOT NULL DEFAULT now(),
    updated_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (function_id, name)
);

-- The durable record of every accepted unit of work. `epoch` is that of the attempt whose outcome the row shows:
-- (generation << 40) + counter, so that a later one always compares greater.
CREATE TABLE jobs (
    id          uuid PRIMARY KEY,
    kind        text NOT NULL CONSTRAINT jobs_kind CHECK (kind IN ('deploy', 'invoke', 'delete')),
    user_id     uuid NOT NULL REFERENCES users ON DELETE CASCADE,
    function_id uuid NOT NULL,
    version_id  uuid,
    status      text NOT NULL CONSTRAINT jobs_status
                CHECK (status IN ('scheduled', 'queued', 'running', 'succeeded', 'failed', 'cancelled')),
    reason      text,
    attempt     integer NOT NULL DEFAULT 0,
    lost        integer NOT NULL DEFAULT 0,
    epoch       bigint,
    concurrency integer NOT NULL DEFAULT 0,
    payload     bytea,
    result      bytea,
    error       bytea,
    queue_ms    real,
    sandbox_ms  real,
    run_ms      real,
    total_ms    real,
    created_at  timestamptz NOT NULL,
    started_at  timestamptz,
    finished_at timestamptz,
    updated_at  timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT jobs_final_has_end CHECK ((status IN ('succeeded', 'failed', 'cancelled')) = (finished_at IS NOT NULL)),
    CONSTRAINT jobs_failed_has_reason CHECK (status <> 'failed' OR reason IS NOT NULL)
);
CREATE INDEX jobs_of_user ON jobs (user_id, id DESC);
CREATE INDEX jobs_of_function ON jobs (function_id, id DESC);
CREATE INDEX jobs_open ON jobs (id) WHERE status IN ('scheduled', 'queued', 'running');

-- One row an attempt of an invoke job. Partitioned by the time in the job's UUIDv7, so that an upsert finds its row.
-- Keyed by epoch, not attempt number: an attempt that was handed back at a shutdown is delivered again as the same one.
CREATE TABLE invocations (
    accepted_at       timestamptz NOT NULL,
    job_id            uuid NOT NULL,
    attempt           integer NOT NULL,
    user_id           uuid NOT NULL,
    function_id       uuid NOT NULL,
    version_id        uuid NOT NULL,
    worker_id         text NOT NULL,
    epoch             bigint NOT NULL,
    outcome           text NOT NULL CONSTRAINT invocations_outcome
                      CHECK (outcome IN ('succeeded', 'failed', 'lost', 'handed_back', 'cancelled')),
    reason            text,
    error             text,
    start_kind        text CONSTRAINT invocations_start_kind CHECK (start_kind IN ('cold', 'paused', 'warm')),
    exit_code         integer,
    queue_ms          real,
    sandbox_ms        real,
    run_ms            real,
    total_ms          real,
    cpu_ms            real,
    peak_memory_bytes bigint,
    timeout_ms        integer,
    memory_mb         integer,
    logs_truncated    boolean NOT NULL DEFAULT false,
    request           jsonb NOT NULL DEFAULT '{}',
    started_at        timestamptz,
    finished_at       timestamptz,
    PRIMARY KEY (accepted_at, job_id, epoch)
) PARTITION BY RANGE (accepted_at);
CREATE INDEX invocations_of_function ON invocations (function_id, accepted_at DESC);

CREATE TABLE logs (
    accepted_at timestamptz NOT NULL,
    job_id      uuid NOT NULL,
    epoch       bigint NOT NULL,
    seq         integer NOT NULL,
    attempt     integer NOT NULL,
    function_id uuid NOT NULL,
    stream      text NOT NULL CONSTRAINT logs_stream CHECK (stream IN ('stdout', 'stderr', 'logger')),
    level       text NOT NULL CONSTRAINT logs_level CHECK (level IN ('debug', 'info', 'warning', 'error', 'critical')),
    message     text NOT NULL,
    logged_at   timestamptz NOT NULL,
    PRIMARY KEY (accepted_at, job_id, epoch, seq)
) PARTITION BY RANGE (accepted_at);
CREATE INDEX logs_of_function ON logs (function_id, accepted_at DESC);

-- Rows whose month has no partition yet must not be lost; the leader makes months ahead of time.
CREATE TABLE invocations_default PARTITION OF invocations DEFAULT;
CREATE TABLE logs_default PARTITION OF logs DEFAULT;

CREATE FUNCTION make_month_partitions(first date, months integer) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    parent text;
    lower_bound timestamptz;
    upper_bound timestamptz;
    child text;
    made integer := 0;
BEGIN
    FOR offset_months IN 0 .. months - 1 LOOP
        lower_bound := (date_trunc('month', first) + make_interval(months => offset_months)) AT TIME ZONE 'UTC';
        upper_bound := (date_trunc('month', first) + make_interval(months => offset_months + 1)) AT TIME ZONE 'UTC';
        FOREACH parent IN ARRAY ARRAY['invocations', 'logs'] LOOP
            child := parent || '_' || to_char(lower_bound AT TIME ZONE 'UTC', 'YYYY_MM');
            IF to_regclass(child) IS NULL THEN
                EXECUTE format('CREATE TABLE %I PARTITION OF %I FOR VALUES FROM (%L) TO (%L)',
                               child, parent, lower_bound, upper_bound);
                made := made + 1;
            END IF;
        END LOOP;
    END LOOP;
    RETURN made;
END
$$;
SELECT make_month_partitions((now() AT TIME ZONE 'UTC')::date, 3);

-- The leader's lease, and the number that a rebuilt queue is told apart by.
CREATE TABLE leases (
    name       text PRIMARY KEY,
    holder     text NOT NULL,
    expires_at timestamptz NOT NULL
);
CREATE SEQUENCE queue_generation;

CREATE TRIGGER users_touch BEFORE UPDATE ON users FOR EACH ROW EXECUTE FUNCTION touch_updated_at();
CREATE TRIGGER sessions_touch BEFORE UPDATE ON sessions FOR EACH ROW EXECUTE FUNCTION touch_updated_at();
CREATE TRIGGER functions_touch BEFORE UPDATE ON functions FOR EACH ROW EXECUTE FUNCTION touch_updated_at();
CREATE TRIGGER versions_touch BEFORE UPDATE ON versions FOR EACH ROW EXECUTE FUNCTION touch_updated_at();
CREATE TRIGGER aliases_touch BEFORE UPDATE ON aliases FOR EACH ROW EXECUTE FUNCTION touch_updated_at();
CREATE TRIGGER jobs_touch BEFORE UPDATE ON jobs FOR EACH ROW EXECUTE FUNCTION touch_updated_at();
