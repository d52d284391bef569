-- outside a transaction
-- Whose sessions retention deletes.
DROP INDEX CONCURRENTLY IF EXISTS sessions_over;
CREATE INDEX CONCURRENTLY sessions_over ON sessions (least(expires_at, revoked_at));
