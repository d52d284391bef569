-- Settles attempts and claims new ones, in one step.
-- ARGV: queue, worker, generation that the worker knows, free slots, how many of these are kept for newcomers (users
-- with nothing running), most running of one user, number of settles, then a settle as
--   (id, epoch, verb, record): verb "final" ends the job, "retry" takes it off the queue until it is due again,
--   "hand_back" returns the attempt unspent, "lose" counts the attempt as lost and puts the job back on the queue.
--   "note" ends nothing: the record adds to that of an attempt which another process ended.
-- Returns {{1, or 0 for a stale epoch, for each settle}, {id, epoch, message, claimed at ms, for each claim}}.
local worker, want, kept = ARGV[2], tonumber(ARGV[4]), tonumber(ARGV[5])
local user_max, settles = tonumber(ARGV[6]), tonumber(ARGV[7])
local gen, open = generation()
-- A worker that has not joined this generation must register first: until then all its epochs would be stale.
if gen ~= ARGV[3] then return redis.error_reply('NOGENERATION the queue is being rebuilt') end

local settled = {}
for s = 0, settles - 1 do
    local base = 8 + s * 4
    local id, epoch, verb, record = ARGV[base], ARGV[base + 1], ARGV[base + 2], ARGV[base + 3]
    local entry = verb ~= 'note' and redis.call('HGET', RUNNING, id)
    if verb == 'note' then
        redis.call('XADD', RECORDS, '*', 'r', record)
        settled[#settled + 1] = 1
    elseif not entry or string.sub(entry, 1, #epoch + 1) ~= epoch .. ' ' then
        settled[#settled + 1] = 0
    else
        local message = redis.call('HGET', MESSAGES, id)
        local m = parse(message)
        release(id, m)
        if verb == 'final' then
            forget(id, m)
            publish_end(id, m, record)
        elseif verb == 'retry' then
            forget(id, m)
            redis.call('XADD', RECORDS, '*', 'r', record)
            tell(id, {status = 'scheduled', attempt = m.attempt})
            -- An API process or the reconciler may still be about to enqueue the job as it was at an earlier attempt.
            for attempt = 1, m.attempt do remember_end(attempt_of(id, attempt)) end
        else
            if verb == 'lose' then
                redis.call('HSET', MESSAGES, id, with_counts(message, m, m.attempt + 1, m.lost + 1))
            end
            to_user_queue(id, m)
            redis.call('XADD', RECORDS, '*', 'r', record)
            tell(id, {status = 'queued', attempt = verb == 'lose' and m.attempt or m.attempt - 1})
        end
        settled[#settled + 1] = 1
    end
end

local claimed = {}
if want > 0 and open then
    local now = clock_ms()
    local taken = 0
    -- Every turn takes a job or drops a user from its line; expired jobs are bounded so that no call runs for long.
    for _ = 1, want * 2 + 100 do
        if taken == want then break end
        local user = redis.call('ZPOPMIN', NEWCOMERS)[1]
        if not user and want - taken > kept then user = redis.call('ZPOPMIN', RING)[1] end
        if not user then break end
        local mine, using = K .. 'user:' .. user, K .. 'using:' .. user
        if redis.call('SCARD', using) < user_max then
            local id = redis.call('ZPOPMIN', mine)[1]
            local message = id and redis.call('HGET', MESSAGES, id)
            if message then
                local m = parse(message)
                -- A durable job has to have started once by its deadline; its further attempts have none.
                if m.deadline > 0 and now > m.deadline and (m.reply ~= '-' or m.attempt == 1) then
                    forget(id, m)
                    -- The caller of a synchronous job waits no longer; a durable job's time to start is over.
                    local reason = m.reply == '-' and 'expired' or 'queue_timeout'
                    publish_end(id, m, closing_record(id, m, {status = 'failed', reason = reason,
                                                              attempt = m.attempt - 1}))
                elseif is_stopped(m.fn) then
                    if m.limit > 0 then redis.call('SREM', K .. 'admitted:' .. m.fn, id) end
                    park(id, m)
                else
                    local epoch = gen .. '-' .. redis.call('INCR', 'cp:epoch')
                    redis.call('HSET', RUNNING, id, table.concat({epoch, worker, user, m.fn, now, m.attempt}, ' '))
                    redis.call('SADD', using, id)
                    tell(id, {status = 'running', worker = worker, attempt = m.attempt})
                    claimed[#claimed + 1] = id
                    claimed[#claimed + 1] = epoch
                    claimed[#claimed + 1] = message
                    claimed[#claimed + 1] = now
                    taken = taken + 1
                end
            end
            if redis.call('EXISTS', mine) == 1 then line_up(user) end
        end
    end
    local left = want - taken
    redis.call('ZREM', left > kept and SPARE or IDLE, worker)
    if left > 0 then redis.call('ZADD', left > kept and IDLE or SPARE, next_turn(), worker)
    else redis.call('ZREM', SPARE, worker) end
elseif want > 0 then
    redis.call('ZADD', IDLE, next_turn(), worker)
else
    -- This worker is full or draining: a wake sent to it would be lost to the others.
    redis.call('ZREM', IDLE, worker)
    redis.call('ZREM', SPARE, worker)
end
wake()
return {settled, claimed}
