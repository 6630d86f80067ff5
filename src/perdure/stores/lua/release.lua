-- Give a run up. Returns {sequence, when it began} if the lease was the latest one and its run is still there, also
-- when it is released a second time.
-- KEYS: run    ARGV: epoch, owner, channel for news
local row = redis.call('HMGET', KEYS[1], 'epoch', 'owner', 'seq', 'begun')
if row[1] ~= ARGV[1] or (row[2] ~= ARGV[2] and row[2] ~= '') then
  return false
end
redis.call('HSET', KEYS[1], 'owner', '')
if row[3] and row[3] ~= '0' then
  redis.pcall('PUBLISH', ARGV[3], '')
end
return {row[3] or '0', row[4] or '0'}
