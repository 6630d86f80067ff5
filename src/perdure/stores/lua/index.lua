-- The index: where runs are looked for without looking at all of them. It lies in another slot of a cluster than the
-- runs, so the two never change together. Therefore what it lists is always a superset of what is true, and whoever
-- reads it looks at the runs' own rows. To keep it one, every entry is
--   widened before the run changes, by anybody ("enter", "post", "lower"), and
--   narrowed after the run has changed ("settle", "rest", "forget"), only by whoever wrote it last: `guards` keeps the
--   epoch and sequence that are known to be under way, and one that is older narrows nothing.
-- KEYS: runs (by name), due (by wake), posted (by number of posts), begun (infinite while held), guards
-- ARGV: verb, run, then what each verb says
local runs, due, posted, begun, guards = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local verb, run = ARGV[1], ARGV[2]

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

if verb == 'lower' then -- ARGV: wake and number of posts taken of a record that is about to be appended
  -- returns whether "settle" would change anything afterwards
  local wake, taken = tonumber(ARGV[5]), tonumber(ARGV[6])
  local score = tonumber(redis.call('ZSCORE', due, run) or 'inf')
  if wake > 0 and score > wake then
    redis.call('ZADD', due, ARGV[5], run)
    score = wake
  end
  local count = redis.call('ZSCORE', posted, run)
  local exact = score == wake or (wake == 0 and score == math.huge)
  if exact and not (count and tonumber(count) <= taken) then
    return 0
  end
  return 1
end

if older then
  return 0
end

if verb == 'settle' then -- ARGV: as for "lower", of a record that was appended
  if tonumber(ARGV[5]) > 0 then
    redis.call('ZADD', due, ARGV[5], run)
  else
    redis.call('ZREM', due, run)
  end
  -- nobody can have posted more than was announced: an entry up to `taken` is of posts that stand in the journal,
  -- and what stands there does not leave it
  local count = redis.call('ZSCORE', posted, run)
  if count and tonumber(count) <= tonumber(ARGV[6]) then
    redis.call('ZREM', posted, run)
  end
elseif verb == 'rest' then -- ARGV: when the run began, which was released
  redis.call('ZADD', begun, ARGV[5], run)
elseif verb == 'forget' then -- the run was deleted
  redis.call('ZREM', runs, run)
  redis.call('ZREM', due, run)
  redis.call('ZREM', posted, run)
  redis.call('ZREM', begun, run)
end
return 0
