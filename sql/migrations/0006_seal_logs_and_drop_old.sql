-- Messages of the log may be sealed, and what is old goes.

ALTER TABLE logs ADD COLUMN sealed boolean NOT NULL DEFAULT false;

-- Whose payload, result or error is still to be dropped, by the time of their end.
CREATE INDEX jobs_with_content ON jobs (finished_at)
WHERE finished_at IS NOT NULL AND (payload IS NOT NULL OR result IS NOT NULL OR error IS NOT NULL);

-- Drops months of records that were over at a time. One that is in use stays until the next call.
CREATE FUNCTION drop_month_partitions(before timestamptz) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    child text;
    dropped integer := 0;
BEGIN
    PERFORM set_config('lock_timeout', '500ms', true);
    FOR child IN
        SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent IN ('invocations'::regclass, 'logs'::regclass) AND c.relname ~ '_\d{4}_\d{2}$'
          AND (to_date(right(c.relname, 7), 'YYYY_MM') + interval '1 month') AT TIME ZONE 'UTC' <= before
        ORDER BY c.relname
    LOOP
        BEGIN
            EXECUTE format('DROP TABLE %I', child);
            dropped := dropped + 1;
        EXCEPTION WHEN lock_not_available THEN
            NULL;
        END;
    END LOOP;
    RETURN dropped;
END
$$;
