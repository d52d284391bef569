-- Puts the jobs that a silent worker ran back on the queue.
-- ARGV: queue, worker, beats last seen, lost attempts that end a job.
-- Returns {requeued, given up}, or -1 if the worker beat since.
local worker, seen, max_lost = ARGV[2], ARGV[3], tonumber(ARGV[4])
local beats = redis.call('HGET', 'cp:workers', worker) or '0'
if beats ~= seen then return -1 end
local requeued, given_up = 0, 0
local entries = redis.call('HGETALL', RUNNING)
for i = 1, #entries, 2 do
    local id = entries[i]
    if string.match(entries[i + 1], '^%S+ (%S+) ') == worker then
        local message = redis.call('HGET', MESSAGES, id)
        local m = parse(message)
        local lost = m.lost + 1
        local ended = known_of(entries[i + 1], message, m)
        ended.outcome, ended.lost = 'lost', lost
        release(id, m)
        if lost >= max_lost then
            forget(id, m)
            ended.status, ended.reason = 'failed', 'worker_lost'
            publish_end(id, m, closing_record(id, m, ended))
            given_up = given_up + 1
        else
            redis.call('HSET', MESSAGES, id, with_counts(message, m, m.attempt + 1, lost))
            to_user_queue(id, m)
            ended.status = 'queued'
            redis.call('XADD', RECORDS, '*', 'r', closing_record(id, m, ended))
            tell(id, {status = 'queued', attempt = m.attempt})
            requeued = requeued + 1
        end
    end
end
redis.call('ZREM', IDLE, worker)
redis.call('ZREM', SPARE, worker)
wake()
return {requeued, given_up}
