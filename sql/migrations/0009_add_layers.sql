-- What versions consist of: layers in the artifact store, by digest.

-- What the artifact store keeps by digest. Each use that is to come says so here before it looks whether the store has
-- it: what was not claimed for a while, and no version needs, is collected.
CREATE TABLE blobs (
    digest     text PRIMARY KEY CONSTRAINT blobs_digest_shape CHECK (digest ~ '^[0-9a-f]{64}$'),
    kind       text NOT NULL CONSTRAINT blobs_kind
               CHECK (kind IN ('artifact', 'base', 'runtime', 'dependencies', 'code', 'image')),
    bytes      bigint NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    claimed_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX blobs_claimed ON blobs (claimed_at);

-- The layers of a version, from the bottom up.
CREATE TABLE version_layers (
    version_id uuid NOT NULL REFERENCES versions ON DELETE CASCADE,
    position   smallint NOT NULL,
    digest     text NOT NULL REFERENCES blobs ON DELETE CASCADE,
    PRIMARY KEY (version_id, position)
);
CREATE INDEX version_layers_digest ON version_layers (digest);

-- What may turn out otherwise when it is done again is done once: what a set of dependencies was resolved to, and what
-- a base image was saved as. The first writer wins.
CREATE TABLE resolutions (
    key        text PRIMARY KEY,
    digest     text NOT NULL REFERENCES blobs ON DELETE CASCADE,
    created_at timestamptz NOT NULL DEFAULT now(),
    used_at    timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX resolutions_digest ON resolutions (digest);

-- What the layers stand on. NULL: built by a release that had none; its image is not used any more.
ALTER TABLE versions ADD COLUMN base text;
CREATE INDEX versions_artifact ON versions (artifact_sha256);

INSERT INTO blobs (digest, kind, bytes)
SELECT artifact_sha256, 'artifact', max(artifact_bytes) FROM versions
WHERE artifact_sha256 ~ '^[0-9a-f]{64}$' GROUP BY artifact_sha256;
