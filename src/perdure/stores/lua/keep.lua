-- Store a blob if it is not there, and that a run was given it.
-- KEYS: blob, marks    ARGV: content, mark of the run
redis.call('SET', KEYS[1], ARGV[1], 'NX')
redis.call('SADD', KEYS[2], ARGV[2])
return 1
