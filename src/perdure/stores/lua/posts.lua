-- How many posts a run should have, and those after a number.
-- KEYS: run, inbox    ARGV: number
return {redis.call('HGET', KEYS[1], 'posts') or '0', redis.call('LRANGE', KEYS[2], ARGV[1], -1)}
