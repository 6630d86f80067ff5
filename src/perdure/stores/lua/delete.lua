-- Remove a run if the lease is current; only its epoch stays, because epochs grow for ever. Returns 1 if it is gone.
-- KEYS: run, journal, inbox, snapshot    ARGV: epoch, owner, again
local row = redis.call('HMGET', KEYS[1], 'epoch', 'owner', 'deleted')
if row[1] ~= ARGV[1] or row[2] ~= ARGV[2] then
  if ARGV[3] == '1' and row[3] == ARGV[1] then
    return 1 -- the reply to the first time was lost
  end
  return 0
end
redis.call('DEL', KEYS[1], KEYS[2], KEYS[3], KEYS[4])
redis.call('HSET', KEYS[1], 'epoch', ARGV[1], 'deleted', ARGV[1])
return 1
