-- What health checks ask.

-- name: is_led
-- Whether somebody holds a lease that has not run out.
SELECT EXISTS (SELECT FROM leases WHERE name = $1 AND expires_at > now())
