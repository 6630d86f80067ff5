-- Keep a snapshot of a run if the lease is current, instead of the one before. Returns 1 if it is kept.
-- KEYS: run, snapshot    ARGV: epoch, owner, snapshot
local row = redis.call('HMGET', KEYS[1], 'epoch', 'owner')
if row[1] ~= ARGV[1] or row[2] ~= ARGV[2] then
  return 0
end
redis.call('SET', KEYS[2], ARGV[3])
return 1
