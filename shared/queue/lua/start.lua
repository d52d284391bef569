-- Starts a stopped function: its parked jobs become runnable up to its limit.
-- ARGV: queue, function, most jobs to move. Returns 1 if there are more to move: then call it again.
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
