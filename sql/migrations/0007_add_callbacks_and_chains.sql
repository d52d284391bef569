-- What the end of a job brings about: a callback to its owner's address, and a job of another function of the owner.

ALTER TABLE jobs ADD COLUMN callback_url text;
ALTER TABLE jobs ADD COLUMN chain_depth smallint NOT NULL DEFAULT 0 CHECK (chain_depth BETWEEN 0 AND 8);
ALTER TABLE jobs ADD COLUMN chained_from uuid;
ALTER TABLE jobs ADD COLUMN chain_refused text;
CREATE UNIQUE INDEX jobs_chained_from ON jobs (chained_from) WHERE chained_from IS NOT NULL;

-- The few versions whose settings ask for either, so that a settle does not read the settings of the others.
CREATE INDEX versions_with_consequences ON versions (id)
    WHERE coalesce(settings ->> 'callback_url', settings ->> 'on_success', settings ->> 'on_failure') IS NOT NULL;

-- One callback of one job; its id is the webhook-id of every attempt. `next_at` is when it is due, and while somebody
-- sends it, when that attempt is given up.
CREATE TABLE deliveries (
    id           uuid PRIMARY KEY,
    job_id       uuid NOT NULL REFERENCES jobs ON DELETE CASCADE,
    user_id      uuid NOT NULL REFERENCES users ON DELETE CASCADE,
    url          text NOT NULL,
    event        text NOT NULL,
    status       text NOT NULL DEFAULT 'pending'
                 CONSTRAINT deliveries_status CHECK (status IN ('pending', 'delivered', 'dead')),
    attempts     integer NOT NULL DEFAULT 0,
    next_at      timestamptz NOT NULL DEFAULT now(),
    last_status  integer,
    last_error   text,
    created_at   timestamptz NOT NULL DEFAULT now(),
    attempted_at timestamptz,
    delivered_at timestamptz
);
CREATE INDEX deliveries_due ON deliveries (user_id, next_at) WHERE status = 'pending';
CREATE INDEX deliveries_of_user ON deliveries (user_id, id DESC);
CREATE INDEX deliveries_of_job ON deliveries (job_id);

-- What a user's callbacks are signed with. The one before signs along until its time is over.
CREATE TABLE webhook_secrets (
    user_id        uuid PRIMARY KEY REFERENCES users ON DELETE CASCADE,
    secret         text NOT NULL,
    created_at     timestamptz NOT NULL DEFAULT now(),
    previous       text,
    previous_until timestamptz
);
