-- Queries of the health checks.

-- name: is_led
-- Whether a process leads task $1.
SELECT EXISTS (SELECT FROM leases WHERE name = $1 AND expires_at > now())
