-- What every accepted and every settled job pays for.

-- New rows come at the end of an index in the order of their ids, where pages are filled, not split in halves. Read
-- backwards they give the newest first as well.
DROP INDEX jobs_of_user;
CREATE INDEX jobs_of_user ON jobs (user_id, id);
DROP INDEX jobs_of_function;
CREATE INDEX jobs_of_function ON jobs (function_id, id);
DROP INDEX invocations_of_function;
CREATE INDEX invocations_of_function ON invocations (function_id, accepted_at);
DROP INDEX logs_of_function;
CREATE INDEX logs_of_function ON logs (function_id, accepted_at);

-- A foreign key locks the user's row anew for each of the user's jobs, from all processes at a time. What it is for
-- comes cheaper: jobs go with their user. One that is on its way just then goes when retention drops what is old.
ALTER TABLE jobs DROP CONSTRAINT jobs_user_id_fkey;
CREATE FUNCTION forget_jobs_of_users() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM jobs USING gone WHERE jobs.user_id = gone.id;
    RETURN NULL;
END
$$;
CREATE TRIGGER users_take_their_jobs AFTER DELETE ON users REFERENCING OLD TABLE AS gone
    FOR EACH STATEMENT EXECUTE FUNCTION forget_jobs_of_users();
