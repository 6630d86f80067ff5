-- Append records to a run if the lease is current and they continue it. Returns {"ok"}, {"lost"}, {"seq", last record}
-- or {"short", records found, records expected}.
-- KEYS: run, journal    ARGV: epoch, owner, seq, again, meta, begun, channel for news or "", bytes that it
--                        grows by, records
local row = redis.call('HMGET', KEYS[1], 'epoch', 'owner', 'seq')
if row[1] ~= ARGV[1] or row[2] ~= ARGV[2] then
  return {'lost'}
end
local first = 9
local seq, before, count = tonumber(row[3] or '0'), tonumber(ARGV[3]), #ARGV - first + 1
local found = redis.call('LLEN', KEYS[2])
if found ~= seq then
  return {'short', found, seq}
end
if seq ~= before then
  -- sent again after the reply was lost: what stands there already is ours, to the byte
  if ARGV[4] ~= '1' or count == 0 or seq < before + count then
    return {'seq', seq}
  end
  local there = redis.call('LRANGE', KEYS[2], before, before + count - 1)
  for place, record in ipairs(there) do
    if record ~= ARGV[first + place - 1] then
      return {'seq', seq}
    end
  end
  -- WAITAOF waits for what its own connection wrote last, and this may be another one than the first time
  redis.call('HINCRBY', KEYS[1], 'again', 1)
  return {'ok'}
end
for from = first, #ARGV, 1000 do -- a call of Lua takes some thousand arguments
  redis.call('RPUSH', KEYS[2], unpack(ARGV, from, math.min(from + 999, #ARGV)))
end
redis.call('HSET', KEYS[1], 'seq', string.format('%d', before + count), 'meta', ARGV[5], 'begun', ARGV[6])
redis.call('HINCRBY', KEYS[1], 'size', ARGV[8])
if ARGV[7] ~= '' then
  redis.pcall('PUBLISH', ARGV[7], '') -- who may not publish does without
end
return {'ok'}
