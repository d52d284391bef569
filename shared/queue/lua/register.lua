-- Puts attempts that a live worker still runs back into an emptied queue, under the epochs they had.
-- ARGV: queue, worker, then (id, epoch, message, claimed at ms: 0 if that is not known). It takes them only while the
-- queue is closed: once it is open, another worker may have claimed such a job. If two workers register the same job,
-- the later epoch counts: the other's lease had ended before the queue was lost. Returns how many attempts it took.
local gen, open = generation()
if not gen then return redis.error_reply('NOGENERATION the queue is being rebuilt') end
local function is_later(epoch, entry)
    if not entry then return true end
    local gen, count = string.match(epoch, '^(%d+)-(%d+)$')
    local other_gen, other_count = string.match(entry, '^(%d+)-(%d+) ')
    gen, count, other_gen, other_count = tonumber(gen), tonumber(count), tonumber(other_gen), tonumber(other_count)
    return gen > other_gen or (gen == other_gen and count > other_count)
end
local taken = 0
if open then return 0 end
for i = 3, #ARGV, 4 do
    local id, epoch, message = ARGV[i], ARGV[i + 1], ARGV[i + 2]
    if is_later(epoch, redis.call('HGET', RUNNING, id)) then
        local m = parse(message)
        local started = ARGV[i + 3] == '0' and clock_ms() or ARGV[i + 3]
        redis.call('HSET', RUNNING, id, table.concat({epoch, ARGV[2], m.user, m.fn, started, m.attempt}, ' '))
        redis.call('HSET', MESSAGES, id, message)
        -- The leader may have enqueued the job before its worker registered it.
        redis.call('ZREM', K .. 'user:' .. m.user, id)
        redis.call('ZREM', K .. 'parked:' .. m.fn, id)
        redis.call('SADD', K .. 'using:' .. m.user, id)
        if redis.call('EXISTS', K .. 'user:' .. m.user) == 1 then line_up(m.user) end
        if m.limit > 0 then redis.call('SADD', K .. 'admitted:' .. m.fn, id) end
        taken = taken + 1
    end
end
return taken
