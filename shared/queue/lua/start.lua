-- Serves a function again: jobs of it that were parked while it was stopped become runnable, as far as its limit goes.
-- ARGV: queue, function, most jobs to move. Returns 1 if some are left to move: call it again.
local fn, most = ARGV[2], tonumber(ARGV[3])
if not generation() then return redis.error_reply('NOGENERATION the queue is being rebuilt') end
local parked = K .. 'parked:' .. fn
redis.call('SREM', STOPPED, fn)
redis.call('SADD', STARTING, fn)
local left = 1
for _ = 1, most do
    local next_job = redis.call('ZPOPMIN', parked)
    local id = next_job[1]
    if not id then left = 0 break end
    local message = redis.call('HGET', MESSAGES, id)
    if message and not let_run(id, parse(message)) then
        redis.call('ZADD', parked, next_job[2], id)
        left = 0
        break
    end
end
if left == 0 then redis.call('SREM', STARTING, fn) end
wake()
return left
