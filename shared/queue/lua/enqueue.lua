-- Puts jobs on the queue. It leaves out a job that is on the queue already, and one that ended, or whose attempt of
-- this number ended, within the last minute.
-- ARGV: queue, records that may wait for Postgres before synchronous jobs are refused, the caller's clock in ms, then
-- (id, message) pairs.
-- Returns one number a job: 1 put on the queue, 0 left out, -1 refused because too many records wait for Postgres.
local gen = generation()
if not gen then return redis.error_reply('NOGENERATION the queue is being rebuilt') end
local max_backlog = tonumber(ARGV[2])
local backlog = -1
local answers, lined = {}, {}
-- The deadline of a synchronous job is a wait that begins now: it is moved by the difference between the caller's clock
-- and this one. The deadline of a durable job is a time that its caller named, and stays.
local clock_lead
for i = 4, #ARGV, 2 do
    local id, message = ARGV[i], ARGV[i + 1]
    local m = parse(message)
    if m.reply ~= '-' and m.deadline > 0 then
        clock_lead = clock_lead or clock_ms() - tonumber(ARGV[3])
        if math.abs(clock_lead) > CLOCKS_AGREE_MS then
            m.deadline = m.deadline + clock_lead
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
