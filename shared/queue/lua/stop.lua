-- Stops a function: no worker gets its jobs until it is started again. ARGV: queue, function.
if not generation() then return redis.error_reply('NOGENERATION the queue is being rebuilt') end
redis.call('SADD', STOPPED, ARGV[2])
redis.call('SREM', STARTING, ARGV[2])
return 1
