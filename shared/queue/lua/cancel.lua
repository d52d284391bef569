-- Ends a job wherever it is. Of a cancel and a settle of the same job the first one counts.
-- ARGV: queue, id, status and reason for a job that does not run ("" for no reason), status and reason for one that
-- runs. If the latter status is "", a job that runs goes on.
-- Returns "queued" or "running" (where the job was), "ended" (within the last minute), or "absent": then an enqueue of
-- the job within the next minute does nothing.
local id = ARGV[2]
local message = redis.call('HGET', MESSAGES, id)
if not message then
    local gen, open = generation()
    -- While the queue is closed, the leader may not have enqueued the job yet.
    if not open then return redis.error_reply('NOGENERATION the queue is being rebuilt') end
    if has_ended(id) then return 'ended' end
    remember_end(id)
    return 'absent'
end
local m = parse(message)
local function reason_of(text) if text ~= '' then return text end end

local entry = redis.call('HGET', RUNNING, id)
if entry then
    if ARGV[5] == '' then return 'running' end
    local ended = known_of(entry, message, m)
    ended.status, ended.reason, ended.outcome = ARGV[5], reason_of(ARGV[6]), 'cancelled'
    release(id, m)
    forget(id, m)
    publish_end(id, m, closing_record(id, m, ended))
    redis.call('PUBLISH', 'cp:worker:' .. ended.worker, 'cancel ' .. id .. ' ' .. ended.epoch)
    wake()
    return 'running'
end
redis.call('ZREM', K .. 'user:' .. m.user, id)
redis.call('ZREM', K .. 'parked:' .. m.fn, id)
forget(id, m)
publish_end(id, m, closing_record(id, m, {status = ARGV[3], reason = reason_of(ARGV[4]), attempt = m.attempt - 1}))
wake()
return 'queued'
