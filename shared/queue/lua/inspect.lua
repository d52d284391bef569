-- Reads a page of one key and reports each entry that contradicts the rest of the queue at this moment. It changes
-- nothing and is no step of the queue, so Redis need not know it for the queue to be open (see
-- shared/queue/scripts.py).
-- ARGV: queue, key, cursor, most entries of a page (a hint).
-- Returns {next cursor, {subject, what is wrong, ...}, {durable job, ...}, running, waiting, parked}. Only a page of
-- messages gives durable jobs and counts.
local key, cursor, most = ARGV[2], ARGV[3], tonumber(ARGV[4])
local wrong, durable = {}, {}
local running, waiting, parked = 0, 0, 0
local function complain(subject, what)
    wrong[#wrong + 1] = subject
    wrong[#wrong + 1] = what
end
local function on(flag) return flag and 1 or 0 end
local function message_of(id)
    local message = redis.call('HGET', MESSAGES, id)
    local m = message and parse(message)
    return m and m.user and m
end

local function check_message(id, message)
    local m = parse(message)
    if not m.user then return complain(id, 'has a message that cannot be read') end
    local entry = redis.call('HGET', RUNNING, id)
    local queued = redis.call('ZSCORE', K .. 'user:' .. m.user, id)
    local held = redis.call('ZSCORE', K .. 'parked:' .. m.fn, id)
    local places = on(entry) + on(queued) + on(held)
    running, waiting, parked = running + on(entry), waiting + on(queued), parked + on(held)
    if m.reply == '-' then durable[#durable + 1] = id end
    if places == 0 then complain(id, 'has a message and no place') end
    if places > 1 then complain(id, 'is in ' .. places .. ' places') end
    if entry and redis.call('SISMEMBER', K .. 'using:' .. m.user, id) == 0 then
        complain(id, 'runs and does not count against its user')
    end
    if m.limit > 0 and (entry or queued) and redis.call('SISMEMBER', K .. 'admitted:' .. m.fn, id) == 0 then
        complain(id, 'is admitted and does not count against its function')
    end
end

local checks = {
    running = {'HSCAN', function(_, id)
        if not message_of(id) then complain(id, 'is on the queue without a message') end
    end},
    user = {'ZSCAN', function(user, id)
        local m = message_of(id)
        if not m then complain(id, 'is on the queue without a message')
        elseif m.user ~= user then complain(id, 'stands in the queue of another user') end
    end},
    parked = {'ZSCAN', function(fn, id)
        local m = message_of(id)
        if not m then complain(id, 'is on the queue without a message')
        elseif m.fn ~= fn then complain(id, 'is parked at another function')
        elseif not is_stopped(fn) and redis.call('EXISTS', K .. 'admitted:' .. fn) == 0
            and redis.call('SISMEMBER', STARTING, fn) == 0 then
            complain(id, 'is parked, and nothing that ends will let it run')
        end
    end},
    using = {'SSCAN', function(user, id)
        local entry = redis.call('HGET', RUNNING, id)
        if not entry then complain(id, 'counts against its user and does not run')
        elseif string.match(entry, '^%S+ %S+ (%S+) ') ~= user then complain(id, 'counts against another user') end
    end},
    admitted = {'SSCAN', function(fn, id)
        local m = message_of(id)
        if not m or m.fn ~= fn or m.limit == 0 or not (redis.call('HEXISTS', RUNNING, id) == 1
                                                       or redis.call('ZSCORE', K .. 'user:' .. m.user, id)) then
            complain(id, 'counts against its function and is not admitted')
        end
    end},
    newcomers = {'ZSCAN', function(_, user)
        if redis.call('ZSCORE', RING, user) then complain('user ' .. user, 'stands in both lines') end
    end},
}

local next_cursor = '0'
local kind, owner = string.match(string.sub(key, #K + 1), '^(%a+):?(.*)$')
if kind == 'messages' then
    local page = redis.call('HSCAN', key, cursor, 'COUNT', most)
    next_cursor = page[1]
    for i = 1, #page[2], 2 do check_message(page[2][i], page[2][i + 1]) end
elseif checks[kind] then
    local scan, check = unpack(checks[kind])
    -- A user with runnable jobs and nothing running must stand in the line of newcomers.
    if kind == 'user' and cursor == '0' and redis.call('EXISTS', key) == 1
        and redis.call('EXISTS', K .. 'using:' .. owner) == 0 and not redis.call('ZSCORE', NEWCOMERS, owner) then
        complain('user ' .. owner, 'has jobs, runs nothing and does not stand in line for that')
    end
    local page = redis.call(scan, key, cursor, 'COUNT', most)
    next_cursor = page[1]
    for i = 1, #page[2], scan == 'SSCAN' and 1 or 2 do check(owner, page[2][i]) end
end
return {next_cursor, wrong, durable, running, waiting, parked}
