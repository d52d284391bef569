-- Shared by every script of the queue; each script is this text followed by its own.
--
-- ARGV[1] is the queue's name ("invoke" or "build"). Its places, all under cp:{queue}:
--   messages          hash  job -> message                everything that is queued, parked or running
--   user:{user}       zset  job by time and priority      runnable jobs of one user
--   newcomers         zset  user by turn                  users with runnable jobs and nothing running
--   ring              zset  user by turn                  other users with runnable jobs, least recently served first
--   parked:{function} zset  job by time and priority      jobs over their function's limit, or of a stopped function
--   parking:{user}    set   function                      functions of a user that may have jobs parked
--   admitted:{function} set job                           jobs of a limited function that are runnable or running
--   running           hash  job -> epoch worker user function, when it was claimed (ms, by this clock), attempt
--   using:{user}      set   job                           running jobs of one user
--   idle              zset  worker by turn                workers that wait for any user's job
--   spare             zset  worker by turn                workers whose free slots are kept for newcomers
--   ended             zset  job by time ended             durable jobs, and attempts, that ended within the last minute
--   stopped           set   function                      functions whose jobs wait, all of them parked in the end
--   starting          set   function                      functions that were started again and have jobs parked still
-- and, for all queues: cp:generation (hash gen, open), cp:epoch (counter), cp:turn (counter), cp:records (stream),
-- cp:workers (hash worker -> beats), cp:watched (zset job by the time until which it has subscribers).
--
-- A message is a line (user function version limit attempt lost deadline reply priority, then what only Python reads),
-- and the payload. Users, functions and versions are known by their short names everywhere here (shared/ids.py).

-- A call without arguments only makes the script known to Redis. It answers whether processes may use the queue: the
-- queue is open, and Redis did not restart since it was opened (see shared/queue/scripts.py).
if #ARGV == 0 then
    local g = redis.call('HMGET', 'cp:generation', 'open', 'run')
    local run = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
    return g[1] == '1' and g[2] == run and 'usable' or 'known'
end

local QUEUE = ARGV[1]
local K = 'cp:' .. QUEUE .. ':'
local MESSAGES, RUNNING = K .. 'messages', K .. 'running'
local NEWCOMERS, RING, IDLE, SPARE = K .. 'newcomers', K .. 'ring', K .. 'idle', K .. 'spare'
local RECORDS = 'cp:records'
local ENDED, ENDED_KEPT_MS = K .. 'ended', 60000
local STOPPED, STARTING = K .. 'stopped', K .. 'starting'
local HEAD_START_MS = 600000
local CLOCKS_AGREE_MS = 1000
local MOST_LET_RUN = 1000

local function clock_ms()
    local t = redis.call('TIME')
    return t[1] * 1000 + math.floor(t[2] / 1000)
end

-- The first 48 bits of a UUIDv7 are the millisecond in which it was made: the order of arrival needs no field of its
-- own.
local function accepted_ms(id)
    return tonumber(string.sub(id, 1, 8) .. string.sub(id, 10, 13), 16)
end

local function parse(message)
    local user, fn, version, limit, attempt, lost, deadline, reply, priority, rest =
        string.match(message, '^(%S+) (%S+) (%S+) (%d+) (%d+) (%d+) (%d+) (%S+) (%-?%d+)() ')
    return {user = user, fn = fn, version = version, limit = tonumber(limit), attempt = tonumber(attempt),
            lost = tonumber(lost), deadline = tonumber(deadline), reply = reply, priority = tonumber(priority),
            rest = rest}
end

local function with_counts(message, m, attempt, lost)
    return table.concat({m.user, m.fn, m.version, m.limit, attempt, lost, string.format('%.0f', m.deadline), m.reply,
                         m.priority}, ' ') .. string.sub(message, m.rest)
end

-- Publishes a job's new state to its subscribers, with the attempt number that Postgres will have. A final state is not
-- published here: the drain publishes it once Postgres has it.
local function tell(id, what)
    if redis.call('ZSCORE', 'cp:watched', id) then
        what.kind = 'state'
        redis.call('PUBLISH', 'cp:events', id .. ' ' .. cjson.encode(what))
    end
end

local function next_turn() return redis.call('INCR', 'cp:turn') end

-- Puts a user with runnable jobs into the line where it belongs. A user that stands there already keeps its turn.
local function line_up(user)
    if redis.call('EXISTS', K .. 'using:' .. user) == 1 then
        if not redis.call('ZSCORE', RING, user) then
            redis.call('ZREM', NEWCOMERS, user)
            redis.call('ZADD', RING, next_turn(), user)
        end
    elseif not redis.call('ZSCORE', NEWCOMERS, user) then
        redis.call('ZREM', RING, user)
        redis.call('ZADD', NEWCOMERS, next_turn(), user)
    end
end

-- A job's place among its user's jobs: the time it was accepted, moved earlier or later by its priority. So a job waits
-- only for those later jobs of higher priority that were accepted within the head start after it.
local function place_of(id, m) return accepted_ms(id) - m.priority * HEAD_START_MS end

-- `lined` holds the users that this step has lined up already. Only a step that takes no user out of a line passes it.
local function to_user_queue(id, m, lined)
    redis.call('ZADD', K .. 'user:' .. m.user, place_of(id, m), id)
    if not (lined and lined[m.user]) then line_up(m.user) end
    if lined then lined[m.user] = true end
end

local stopped = {}
local function is_stopped(fn)
    if stopped[fn] == nil then stopped[fn] = redis.call('SISMEMBER', STOPPED, fn) == 1 end
    return stopped[fn]
end

local function park(id, m)
    redis.call('ZADD', K .. 'parked:' .. m.fn, place_of(id, m), id)
    redis.call('SADD', K .. 'parking:' .. m.user, m.fn)
end

-- Makes a job runnable unless its function is at its limit of runnable and running jobs. Returns whether it did.
local function let_run(id, m, lined)
    if m.limit > 0 then
        local admitted = K .. 'admitted:' .. m.fn
        if redis.call('SCARD', admitted) >= m.limit then return false end
        redis.call('SADD', admitted, id)
    end
    to_user_queue(id, m, lined)
    return true
end

-- Makes a job runnable, or parks it.
local function admit(id, m, lined)
    if is_stopped(m.fn) or not let_run(id, m, lined) then park(id, m) end
end

-- Ends an attempt: the slot of its user is free again.
local function release(id, m)
    redis.call('HDEL', RUNNING, id)
    redis.call('SREM', K .. 'using:' .. m.user, id)
    if redis.call('EXISTS', K .. 'user:' .. m.user) == 1 then line_up(m.user) end
end

-- Makes the first parked job of a function runnable, if that job's own limit allows it. Returns false if no job is
-- parked, or its limit does not allow it.
local function let_parked_run(fn)
    local parked = K .. 'parked:' .. fn
    local next_job = redis.call('ZPOPMIN', parked)
    local id = next_job[1]
    if not id then return false end
    local message = redis.call('HGET', MESSAGES, id)
    if not message then return true end
    local m = parse(message)
    if not let_run(id, m) then
        redis.call('ZADD', parked, next_job[2], id)
        return false
    end
    if redis.call('EXISTS', parked) == 0 then redis.call('SREM', K .. 'parking:' .. m.user, fn) end
    return true
end

-- Ends a job: deletes its message and makes parked jobs of its function runnable in its place. As long as jobs are
-- parked, each admitted job that ends lets the next ones run. If more than MOST_LET_RUN become runnable by one end, as
-- jobs without a limit do, the leader makes the rest runnable.
local function forget(id, m)
    redis.call('HDEL', MESSAGES, id)
    if m.limit == 0 then return end
    local admitted = K .. 'admitted:' .. m.fn
    redis.call('SREM', admitted, id)
    if is_stopped(m.fn) then return end
    for _ = 1, MOST_LET_RUN do
        if redis.call('SCARD', admitted) >= m.limit or not let_parked_run(m.fn) then return end
    end
    redis.call('SADD', STARTING, m.fn)
end

-- The record of an end that no worker reports. It has the shape that shared/queue/records.py writes, without a result
-- and with short names.
local function closing_record(id, m, fields)
    fields.id, fields.user, fields['function'], fields.version = id, m.user, m.fn, m.version
    fields.queue, fields.attempt, fields.at_ms = QUEUE, fields.attempt or m.attempt, clock_ms()
    fields.lost = fields.lost or m.lost
    fields.kind = QUEUE == 'invoke' and 'invoke' or 'deploy'
    return cjson.encode(fields) .. '\n'
end

-- What Redis knows of a running attempt that another process ends now, for its closing record.
local function known_of(entry, message, m)
    local epoch, worker, started = string.match(entry, '^(%S+) (%S+) %S+ %S+ ?(%d*)')
    local known = {epoch = epoch, worker = worker, started_ms = tonumber(started)}
    local enqueued = tonumber(string.match(message, '^ %S+ (%d+)', m.rest))
    if known.started_ms and enqueued then
        known.queue_ms = math.max(0, known.started_ms - enqueued)
        known.total_ms = known.queue_ms + math.max(0, clock_ms() - known.started_ms)
    end
    return known
end

-- The name under which `ended` remembers one attempt of a job: an attempt that a retry follows ends, its job does not.
local function attempt_of(id, attempt) return id .. ':' .. attempt end

-- Remembers that a job ended. The API process that accepted a durable job and the reconciler may both enqueue it, the
-- slower of them after its end.
local function remember_end(id)
    local now = clock_ms()
    redis.call('ZADD', ENDED, now, id)
    redis.call('ZREMRANGEBYSCORE', ENDED, '-inf', now - ENDED_KEPT_MS)
end

local function has_ended(id)
    local at = redis.call('ZSCORE', ENDED, id)
    return at and tonumber(at) > clock_ms() - ENDED_KEPT_MS
end

local function publish_end(id, m, record)
    redis.call('XADD', RECORDS, '*', 'r', record)
    if m.reply ~= '-' then
        redis.call('PUBLISH', 'cp:reply:' .. m.reply, record)
    else
        remember_end(id)
    end
end

local function wake_one_of(line)
    local worker = redis.call('ZPOPMAX', line)[1]
    while worker do
        if redis.call('PUBLISH', 'cp:worker:' .. worker, 'wake ' .. QUEUE) > 0 then return true end
        worker = redis.call('ZPOPMAX', line)[1]
    end
    return false
end

-- Wakes the worker that went idle last, if it still listens: its sandboxes are the warmest. A woken worker wakes the
-- next one while there is work, so that they do not all come at once. A worker whose free slots are kept for newcomers
-- is woken for newcomers alone.
local function wake()
    if redis.call('EXISTS', NEWCOMERS) == 1 then
        if not wake_one_of(IDLE) then wake_one_of(SPARE) end
    elseif redis.call('EXISTS', RING) == 1 then
        wake_one_of(IDLE)
    end
end

local function generation()
    local g = redis.call('HMGET', 'cp:generation', 'gen', 'open')
    return g[1], g[2] == '1'
end
