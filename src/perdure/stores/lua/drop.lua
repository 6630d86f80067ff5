-- Take a blob from a run, and remove it if no other was given it.
-- KEYS: blob, marks    ARGV: mark of the run
redis.call('SREM', KEYS[2], ARGV[1])
if redis.call('EXISTS', KEYS[2]) == 0 then
  redis.call('DEL', KEYS[1])
end
return 1
