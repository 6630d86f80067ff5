-- The index: where runs are looked for without looking at all of them. It lies in another slot of a cluster than the
-- runs, so the two never change together. Therefore what it lists is always a superset of what is true, and whoever
-- reads it looks at the runs' own rows. To keep it one, every entry is
--   widened before the run changes, by anybody ("enter", "post", "expect"), and
--   narrowed after the run has changed ("settle", "rest", "forget"), only by whoever wrote it last: `guards` keeps the
--   epoch and sequence that are known to be under way, and one that is older narrows nothing.
-- A place says where a run that has a date stands among the others, in characters that sort: "r" if it is executed (or
-- was, when its process died), "q" if not; priority (8), wake (16), queue and flow (8 each). It is empty without a date.
-- A place is right, or its run is `unsure`, or the run has no date: this holds for each row as it is, and as it will be
-- after any append that may still succeed. So whoever looks at the unsure ones need not look behind the others' places.
-- KEYS: runs (by name), places (of runs), ready (by priority and wake, the "q"), running (by wake, the "r"), dates (by
--       wake, both), unsure, posted (by number of posts), begun (infinite while held), guards
-- ARGV: verb, run, then what each verb says
local runs, places, ready, running, dates, unsure = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local posted, begun, guards = KEYS[7], KEYS[8], KEYS[9]
local verb, run = ARGV[1], ARGV[2]

local function apply(command, place)
  local wake, lane = string.sub(place, 10, 25), string.sub(place, 26)
  local function entry(set, before)
    if command == 'ZADD' then
      redis.call('ZADD', set, '0', before .. run .. lane)
    else
      redis.call('ZREM', set, before .. run .. lane)
    end
  end
  entry(dates, wake)
  if string.sub(place, 1, 1) == 'r' then
    entry(running, wake)
  else
    entry(ready, string.sub(place, 2, 9) .. wake)
  end
end

local function put(old, place)
  if old == place then
    return
  end
  if old ~= '' then
    apply('ZREM', old)
  end
  if place ~= '' then
    apply('ZADD', place)
    redis.call('HSET', places, run, place)
  else
    redis.call('HDEL', places, run)
  end
end

if verb == 'post' then -- ARGV: number of a post that is about to be made
  local score = redis.call('ZSCORE', posted, run)
  if not score or tonumber(score) < tonumber(ARGV[3]) then
    redis.call('ZADD', posted, ARGV[3], run)
  end
  return 0
end

local epoch, seq = tonumber(ARGV[3]), tonumber(ARGV[4])
local last_epoch, last_seq = string.match(redis.call('HGET', guards, run) or '0 0', '^(%d+) (%d+)$')
last_epoch, last_seq = tonumber(last_epoch), tonumber(last_seq)
local older = epoch < last_epoch or (epoch == last_epoch and seq < last_seq)
if not older then
  redis.call('HSET', guards, run, ARGV[3] .. ' ' .. ARGV[4])
end

if verb == 'enter' then -- the run is about to be claimed
  redis.call('ZADD', runs, '0', run)
  redis.call('ZADD', begun, '+inf', run)
  return 0
end

if verb == 'expect' then -- ARGV: place and number of posts taken of a record that is about to be appended
  -- returns whether "settle" would change anything afterwards
  local place, taken = ARGV[5], tonumber(ARGV[6])
  local old, doubted = redis.call('HGET', places, run) or '', redis.call('SISMEMBER', unsure, run) == 1
  if old ~= place and place ~= '' and not doubted then
    if old == '' then -- the run has no date, and nobody else is about to give it one
      put(old, place)
      old = place
    else
      redis.call('SADD', unsure, run)
      doubted = true
    end
  end
  local count = redis.call('ZSCORE', posted, run)
  if old == place and not doubted and not (count and tonumber(count) <= taken) then
    return 0
  end
  return 1
end

if older then
  return 0
end

if verb == 'settle' then -- ARGV: as for "expect", of a record that was appended
  put(redis.call('HGET', places, run) or '', ARGV[5])
  redis.call('SREM', unsure, run)
  -- nobody can have posted more than was announced: an entry up to `taken` is of posts that stand in the journal,
  -- and what stands there does not leave it
  local count = redis.call('ZSCORE', posted, run)
  if count and tonumber(count) <= tonumber(ARGV[6]) then
    redis.call('ZREM', posted, run)
  end
elseif verb == 'rest' then -- ARGV: when the run began, which was released
  redis.call('ZADD', begun, ARGV[5], run)
elseif verb == 'forget' then -- the run was deleted
  put(redis.call('HGET', places, run) or '', '')
  redis.call('ZREM', runs, run)
  redis.call('SREM', unsure, run)
  redis.call('ZREM', posted, run)
  redis.call('ZREM', begun, run)
end
return 0
