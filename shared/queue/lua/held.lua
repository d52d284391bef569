-- Lists the attempts that a worker runs as far as Redis knows. ARGV: queue, worker, generation that the worker knows.
-- Returns {id, epoch, message, claimed at ms ("" if that is not known), ...}.
local worker = ARGV[2]
if generation() ~= ARGV[3] then return redis.error_reply('NOGENERATION the queue is being rebuilt') end
local held = {}
local entries = redis.call('HGETALL', RUNNING)
for i = 1, #entries, 2 do
    local epoch, holder, started = string.match(entries[i + 1], '^(%S+) (%S+) %S+ %S+ ?(%d*)')
    local message = holder == worker and redis.call('HGET', MESSAGES, entries[i])
    if message then
        held[#held + 1] = entries[i]
        held[#held + 1] = epoch
        held[#held + 1] = message
        held[#held + 1] = started
    end
end
return held
