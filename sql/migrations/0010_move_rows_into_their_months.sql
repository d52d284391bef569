-- Rows that a clock months ahead left in a default partition kept the partition of their month from being made, and so the
-- leader from leading. They are moved into it.

CREATE OR REPLACE FUNCTION make_month_partitions(first date, months integer) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    parent text;
    lower_bound timestamptz;
    upper_bound timestamptz;
    child text;
    columns text;
    made integer := 0;
BEGIN
    FOR offset_months IN 0 .. months - 1 LOOP
        lower_bound := (date_trunc('month', first) + make_interval(months => offset_months)) AT TIME ZONE 'UTC';
        upper_bound := (date_trunc('month', first) + make_interval(months => offset_months + 1)) AT TIME ZONE 'UTC';
        FOREACH parent IN ARRAY ARRAY['invocations', 'logs'] LOOP
            child := parent || '_' || to_char(lower_bound AT TIME ZONE 'UTC', 'YYYY_MM');
            IF to_regclass(child) IS NULL THEN
                SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) INTO columns
                FROM pg_attribute WHERE attrelid = parent::regclass AND attnum > 0 AND NOT attisdropped;
                -- Nobody may add a row to the default partition between the move and the attachment.
                EXECUTE format('LOCK TABLE %I IN ACCESS EXCLUSIVE MODE', parent || '_default');
                EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING INDEXES)',
                               child, parent);
                EXECUTE format('WITH moved AS (DELETE FROM %I WHERE accepted_at >= %L AND accepted_at < %L RETURNING %s) '
                               'INSERT INTO %I (%s) SELECT %s FROM moved',
                               parent || '_default', lower_bound, upper_bound, columns, child, columns, columns);
                EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
                               parent, child, lower_bound, upper_bound);
                made := made + 1;
            END IF;
        END LOOP;
    END LOOP;
    RETURN made;
END
$$;
