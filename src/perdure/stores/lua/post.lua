-- Append a post to an inbox if it has the next number. Returns 1 if it was taken, 0 if the number is not the next, -1
-- if there is no such run.
-- KEYS: run, inbox    ARGV: number, record, again, channel for news
local seq = redis.call('HGET', KEYS[1], 'seq')
if not seq or seq == '0' then
  return -1
end
local number, count = tonumber(ARGV[1]), redis.call('LLEN', KEYS[2])
if count ~= number - 1 then
  if ARGV[3] ~= '1' or number < 1 or redis.call('LINDEX', KEYS[2], number - 1) ~= ARGV[2] then
    return 0
  end
  redis.call('HINCRBY', KEYS[1], 'again', 1) -- as in append.lua
  return 1
end
redis.call('RPUSH', KEYS[2], ARGV[2])
redis.call('HSET', KEYS[1], 'posts', ARGV[1])
redis.pcall('PUBLISH', ARGV[4], 'post')
return 1
