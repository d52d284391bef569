-- Serves a function again: jobs of it that were parked while it was stopped become runnable, as far as its limit goes.
-- ARGV: queue, function, most jobs to move. Returns 1 if some are left to move: call it again.
local fn, most = ARGV[2], tonumber(ARGV[3])
if not generation() then return redis.error_reply('NOGENERATION the queue is being rebuilt') end
redis.call('SREM', STOPPED, fn)
redis.call('SADD', STARTING, fn)
local left = 1
for _ = 1, most do
    if not let_parked_run(fn) then left = 0 break end
end
if left == 0 then redis.call('SREM', STARTING, fn) end
wake()
return left
