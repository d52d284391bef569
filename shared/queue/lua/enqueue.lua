-- Puts jobs on the queue; one that is there already, or ended a moment ago, is left alone, and so is one whose attempt
-- did.
-- ARGV: queue, most records a synchronous job may find waiting, the caller's clock in ms, then (id, message) pairs.
-- Returns one number a job: 1 queued, 0 was there, -1 refused because records wait for Postgres past the bound.
local gen = generation()
if not gen then return redis.error_reply('NOGENERATION the queue is being rebuilt') end
local max_backlog = tonumber(ARGV[2])
local backlog = -1
local answers, lined = {}, {}
-- How long somebody waits is counted from now, whatever the caller's clock says; a time by which a job must have started
-- is what its caller named.
local ahead
for i = 4, #ARGV, 2 do
    local id, message = ARGV[i], ARGV[i + 1]
    local m = parse(message)
    if m.reply ~= '-' and m.deadline > 0 then
        ahead = ahead or clock_ms() - tonumber(ARGV[3])
        if math.abs(ahead) > CLOCKS_AGREE_MS then
            m.deadline = m.deadline + ahead
            message = with_counts(message, m, m.attempt, m.lost)
        end
    end
    if m.reply ~= '-' and backlog < 0 then backlog = redis.call('XLEN', RECORDS) end
    if m.reply ~= '-' and backlog > max_backlog then
        answers[#answers + 1] = -1
    elseif has_ended(id) or (m.reply == '-' and has_ended(attempt_of(id, m.attempt)))
        or redis.call('HSETNX', MESSAGES, id, message) == 0 then
        answers[#answers + 1] = 0
    else
        admit(id, m, lined)
        if m.reply == '-' then tell(id, {status = 'queued', attempt = m.attempt - 1}) end
        answers[#answers + 1] = 1
    end
end
wake()
return answers
