-- Replace all records and posts of a run, and remove its snapshot. Returns 1, 0 if there are not so many of them, or -1 if the lease is not current.
-- KEYS: run, journal, inbox, snapshot    ARGV: epoch, owner, meta, size, number of records, records, posts
local row = redis.call('HMGET', KEYS[1], 'epoch', 'owner')
if row[1] ~= ARGV[1] or row[2] ~= ARGV[2] then
  return -1
end
local first, count = 6, tonumber(ARGV[5])
if redis.call('LLEN', KEYS[2]) ~= count or redis.call('LLEN', KEYS[3]) ~= #ARGV - first + 1 - count then
  return 0
end
local function fill(list, from, to)
  redis.call('DEL', list)
  for at = from, to, 1000 do -- a call of Lua takes some thousand arguments
    redis.call('RPUSH', list, unpack(ARGV, at, math.min(at + 999, to)))
  end
end
fill(KEYS[2], first, first + count - 1)
fill(KEYS[3], first + count, #ARGV)
redis.call('DEL', KEYS[4])
redis.call('HSET', KEYS[1], 'meta', ARGV[3], 'size', ARGV[4])
return 1
