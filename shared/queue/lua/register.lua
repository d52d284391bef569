-- Puts attempts that a live worker still runs back into an emptied queue, under the epoch they had.
-- ARGV: queue, worker, then (id, epoch, message). Only while the queue is closed: once it is open, such a job may have
-- been given to somebody else. Returns how many were taken.
local gen, open = generation()
if not gen then return redis.error_reply('NOGENERATION the queue is being rebuilt') end
local taken = 0
if open then return 0 end
for i = 3, #ARGV, 3 do
    local id, epoch, message = ARGV[i], ARGV[i + 1], ARGV[i + 2]
    if redis.call('HSETNX', RUNNING, id, '') == 1 then
        local m = parse(message)
        redis.call('HSET', RUNNING, id, table.concat({epoch, ARGV[2], m.user, m.fn}, ' '))
        redis.call('HSET', MESSAGES, id, message)
        -- It may have been put back as a job that waits before its worker was heard.
        redis.call('ZREM', K .. 'user:' .. m.user, id)
        redis.call('ZREM', K .. 'parked:' .. m.fn, id)
        redis.call('SADD', K .. 'using:' .. m.user, id)
        if redis.call('EXISTS', K .. 'user:' .. m.user) == 1 then line_up(m.user) end
        if m.limit > 0 then redis.call('SADD', K .. 'admitted:' .. m.fn, id) end
        taken = taken + 1
    end
end
return taken
