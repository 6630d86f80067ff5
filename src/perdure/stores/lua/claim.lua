-- Grant a run to an owner if nobody was granted it since `epoch` and `owner` were seen. Returns when, by this server's
-- clock, or nothing.
-- KEYS: run    ARGV: epoch seen, owner seen, new owner, its pid, its host
local row = redis.call('HMGET', KEYS[1], 'epoch', 'owner')
if (row[1] or '0') ~= ARGV[1] or (row[2] or '') ~= ARGV[2] then
  return false
end
local now = redis.call('TIME')
local since = now[1] .. '.' .. string.format('%06d', tonumber(now[2]))
redis.call('HSET', KEYS[1], 'epoch', string.format('%d', tonumber(ARGV[1]) + 1), 'owner', ARGV[3],
  'pid', ARGV[4], 'host', ARGV[5], 'since', since)
return since
