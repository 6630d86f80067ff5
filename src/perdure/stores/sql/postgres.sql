-- The statements of the PostgreSQL store. {s} is its schema, quoted. Each is one round trip and commits by itself.
-- {record}, {row} and {value} are limits in bytes: what is larger is not sent to us, and NULL or empty stands for it.
--
-- Who lives is told by the table "owners" and the server's clock, statement by statement: clock_timestamp() and not
-- now(), which stands still in a transaction.

-- name: claim_free
-- The run is ours if nobody has it. Its own row alone decides, so that this is one thing. (ours): our own name where a
-- lease in it can only be one that was granted to a reply that never reached us; else ''.
INSERT INTO {s}.runs AS r (goal, episode, epoch, owner, pid, host, since)
VALUES (%(goal)s, %(episode)s, nextval('{s}.epochs'), %(owner)s, %(pid)s, %(host)s,
        extract(epoch FROM clock_timestamp()))
ON CONFLICT (goal, episode) DO UPDATE
SET epoch = nextval('{s}.epochs'), owner = excluded.owner, pid = excluded.pid, host = excluded.host,
    since = extract(epoch FROM clock_timestamp())
WHERE r.owner IN ('', %(ours)s)
RETURNING run, epoch, since

-- name: holder
-- Who has the run, and whether the time of its owner has passed.
SELECT r.run, r.epoch, r.owner, r.pid, r.host, r.since, coalesce(o.until > clock_timestamp(), false)
FROM {s}.runs r LEFT JOIN {s}.owners o ON o.id = r.owner
WHERE r.goal = %(goal)s AND r.episode = %(episode)s

-- name: bury
-- An owner whose time has passed is removed. A heartbeat of its own that is under way at this moment is waited for, and
-- either saves it or finds it gone: nobody comes back.
DELETE FROM {s}.owners WHERE id = %(dead)s AND until <= clock_timestamp()

-- name: claim_dead
-- Take over from an owner that is gone, unless somebody else has.
UPDATE {s}.runs
SET epoch = nextval('{s}.epochs'), owner = %(owner)s, pid = %(pid)s, host = %(host)s,
    since = extract(epoch FROM clock_timestamp())
WHERE run = %(run)s AND epoch = %(epoch)s AND owner = %(dead)s
  AND NOT EXISTS (SELECT FROM {s}.owners WHERE id = %(dead)s)
RETURNING run, epoch, since

-- name: register
-- A handle begins to live. Those who died long ago are swept away.
WITH swept AS (DELETE FROM {s}.owners WHERE until < clock_timestamp() - interval '1 hour')
INSERT INTO {s}.owners (id, pid, host, until)
VALUES (%(owner)s, %(pid)s, %(host)s, clock_timestamp() + %(term)s * interval '1 second')
ON CONFLICT (id) DO NOTHING

-- name: heartbeat
-- It goes on living, unless it is late. Every lease of it goes on with it.
UPDATE {s}.owners SET until = clock_timestamp() + %(term)s * interval '1 second'
WHERE id = %(owner)s AND until > clock_timestamp()
RETURNING extract(epoch FROM clock_timestamp())::double precision

-- name: time
SELECT extract(epoch FROM clock_timestamp())::double precision

-- name: unregister
WITH gone AS (DELETE FROM {s}.owners WHERE id = %(owner)s RETURNING id)
SELECT pg_notify(%(channel)s, '') FROM gone

-- name: release
WITH freed AS (
    UPDATE {s}.runs SET owner = '' WHERE run = %(run)s AND epoch = %(epoch)s AND owner = %(owner)s
    RETURNING meta <> '' AS there
)
SELECT pg_notify(%(channel)s, '') FROM freed WHERE there

-- name: append
-- Any number of runs in one commit: those whose lease is current and that are where they were move on, and only their
-- records are kept. This is the check that fences every write. {rows}, {records} and {blobs} are the blocks below.
WITH moved AS (
    UPDATE {s}.runs r
    SET seq = n.last, status = n.status, meta = n.meta, taken = n.taken, wake = n.wake, begun = n.begun, flow = n.flow,
        queue = n.queue, priority = n.priority, size = r.size + n.grown
    FROM {rows}
    WHERE r.run = n.run AND r.epoch = n.epoch AND r.owner = %(owner)s AND r.seq = n.seq
    RETURNING r.run
), kept AS (
    INSERT INTO {s}.journal (run, seq, record)
    SELECT l.run, l.seq, l.record
    FROM {records} AS l (run, seq, record)
    JOIN moved USING (run)
){blobs}
SELECT run, CASE WHEN %(news)s THEN pg_notify(%(channel)s, '') END FROM moved

-- name: append_one
-- The way of most records: one, of one run of which nothing has changed that is looked for. Parameters by number, and few
-- of them: with those of "append" the driver takes longer than the commit.
WITH moved AS (
    UPDATE {s}.runs SET seq = $5::bigint, status = $6::text, meta = $7::text, size = size + $8::bigint
    WHERE run = $1::bigint AND epoch = $2::bigint AND owner = $3::text AND seq = $4::bigint
    RETURNING run
)
INSERT INTO {s}.journal (run, seq, record) SELECT run, $5::bigint, $9::bytea FROM moved

-- name: rows_of_many
-- One JSON array, which is far cheaper for the driver to send than an array for each column.
json_to_recordset(%(rows)s::json)
     AS n (run bigint, epoch bigint, seq bigint, last bigint, status text, meta text, taken bigint, wake float8,
           begun float8, flow text, queue text, priority int, grown bigint)

-- name: rows_of_one
-- A lone run, executed step by step, is worth a statement without either.
(VALUES (%(run)s::bigint, %(epoch)s::bigint, %(seq)s::bigint, %(last)s::bigint, %(status)s::text, %(meta)s::text,
         %(taken)s::bigint, %(wake)s::float8, %(begun)s::float8, %(flow)s::text, %(queue)s::text, %(priority)s::int,
         %(grown)s::bigint))
     AS n (run, epoch, seq, last, status, meta, taken, wake, begun, flow, queue, priority, grown)

-- name: records_of_many
unnest(%(of)s::bigint[], %(number)s::bigint[], %(record)b::bytea[])

-- name: records_of_one
(SELECT %(run)s::bigint, %(seq)s::bigint + u.number, u.record
 FROM unnest(%(record)b::bytea[]) WITH ORDINALITY AS u (record, number))

-- name: blobs
-- The part of "append" for items with large values. One that is there is locked, so that nobody removes it before it is
-- known that this run was given it too; in the order of their names, so that two never wait for each other.
, stored AS (
    INSERT INTO {s}.blobs (digest, content)
    SELECT DISTINCT ON (b.digest) b.digest, b.content
    FROM unnest(%(with)s::bigint[], %(digest)s::text[], %(content)b::bytea[]) AS b (run, digest, content)
    JOIN moved USING (run)
    ORDER BY b.digest
    ON CONFLICT (digest) DO UPDATE SET digest = excluded.digest
), given AS (
    INSERT INTO {s}.refs (run, digest)
    SELECT b.run, b.digest FROM unnest(%(with)s::bigint[], %(digest)s::text[]) AS b (run, digest) JOIN moved USING (run)
    ON CONFLICT DO NOTHING
)

-- name: place
-- Where a run is whose lease is current.
SELECT seq FROM {s}.runs WHERE run = %(run)s AND epoch = %(epoch)s AND owner = %(owner)s

-- name: hold
-- Nobody else gets a run whose lease is current, until this transaction ends.
SELECT seq, posts FROM {s}.runs WHERE run = %(run)s AND epoch = %(epoch)s AND owner = %(owner)s FOR UPDATE

-- name: read
-- A part of a journal is told by where it ends: with LIMIT the server would sort all that follows, for every part.
SELECT r.seq, j.seq, CASE WHEN octet_length(j.record) <= {record} THEN j.record END
FROM {s}.runs r LEFT JOIN {s}.journal j ON j.run = r.run AND j.seq > %(after)s AND j.seq <= %(till)s
WHERE r.goal = %(goal)s AND r.episode = %(episode)s ORDER BY j.seq

-- name: runs
SELECT run, goal, episode, CASE WHEN octet_length(meta) <= {row} THEN meta ELSE '' END, epoch, owner, pid, host, since, posts - taken, size,
       EXISTS (SELECT FROM {s}.owners o WHERE o.id = owner AND o.until > clock_timestamp())
FROM {s}.runs WHERE {where}

-- name: free
-- Condition: nobody has the run.
NOT EXISTS (SELECT FROM {s}.owners o WHERE o.id = owner AND o.until > clock_timestamp())

-- name: post
WITH moved AS (
    UPDATE {s}.runs SET posts = %(number)s
    WHERE goal = %(goal)s AND episode = %(episode)s AND meta <> '' AND posts = %(number)s - 1
    RETURNING run
), kept AS (
    INSERT INTO {s}.inbox (run, number, record) SELECT run, %(number)s, %(record)b FROM moved
)
SELECT pg_notify(%(channel)s, 'post') FROM moved

-- name: posted
-- Why a post was not taken: its run is not there, or its number is used; and by what.
SELECT i.record FROM {s}.runs r LEFT JOIN {s}.inbox i ON i.run = r.run AND i.number = %(number)s
WHERE r.goal = %(goal)s AND r.episode = %(episode)s AND r.meta <> ''

-- name: posts
SELECT w.goal, w.episode, i.number, CASE WHEN octet_length(i.record) <= {record} THEN i.record END
FROM unnest(%(goal)s::text[], %(episode)s::int[], %(after)s::bigint[]) AS w (goal, episode, after)
JOIN {s}.runs r ON r.goal = w.goal AND r.episode = w.episode
JOIN {s}.inbox i ON i.run = r.run AND i.number > w.after
ORDER BY i.run, i.number

-- name: delete
WITH gone AS (
    DELETE FROM {s}.runs WHERE run = %(run)s AND epoch = %(epoch)s AND owner = %(owner)s RETURNING run
), records AS (
    DELETE FROM {s}.journal USING gone WHERE journal.run = gone.run
), messages AS (
    DELETE FROM {s}.inbox USING gone WHERE inbox.run = gone.run
), snapshot AS (
    DELETE FROM {s}.snapshots USING gone WHERE snapshots.run = gone.run
), given AS (
    DELETE FROM {s}.refs USING gone WHERE refs.run = gone.run RETURNING refs.digest
)
SELECT run, ARRAY(SELECT digest FROM given) FROM gone

-- name: lock_blobs
-- Whoever is just giving one of them to a run is waited for. Another statement sees what he has done.
SELECT FROM {s}.blobs WHERE digest = ANY(%(digests)s::text[]) ORDER BY digest FOR UPDATE

-- name: collect
-- Blobs that no run was given any more, of those that are locked.
DELETE FROM {s}.blobs WHERE digest = ANY(%(digests)s::text[])
  AND NOT EXISTS (SELECT FROM {s}.refs r WHERE r.digest = blobs.digest)

-- name: rewrite
-- Another form of all that a run holds, which "hold" has just found to be so much.
WITH records AS (
    UPDATE {s}.journal SET record = l.record
    FROM unnest(%(record)b::bytea[]) WITH ORDINALITY AS l (record, number) WHERE run = %(run)s AND seq = l.number
), messages AS (
    UPDATE {s}.inbox SET record = l.record
    FROM unnest(%(post)b::bytea[]) WITH ORDINALITY AS l (record, number) WHERE run = %(run)s AND inbox.number = l.number
), stored AS (
    INSERT INTO {s}.blobs (digest, content)
    SELECT b.digest, b.content FROM unnest(%(digest)s::text[], %(content)b::bytea[]) AS b (digest, content)
    ORDER BY b.digest
    ON CONFLICT (digest) DO UPDATE SET digest = excluded.digest
), given AS (
    INSERT INTO {s}.refs (run, digest) SELECT %(run)s, b.digest FROM unnest(%(digest)s::text[]) AS b (digest)
    ON CONFLICT DO NOTHING
), taken AS (
    DELETE FROM {s}.refs WHERE run = %(run)s AND digest <> ALL(%(digest)s::text[]) RETURNING digest
), snapshot AS (
    DELETE FROM {s}.snapshots WHERE run = %(run)s
), row AS (
    UPDATE {s}.runs SET meta = %(meta)s, size = %(size)s WHERE run = %(run)s
)
SELECT coalesce(array_agg(digest), '{}') FROM taken

-- name: blob
SELECT CASE WHEN octet_length(content) <= {value} THEN content ELSE '' END FROM {s}.blobs WHERE digest = %(digest)s

-- name: save_snapshot
-- The run is locked: nobody takes it, or removes it, before its snapshot is there.
WITH held AS (
    SELECT run FROM {s}.runs WHERE run = %(run)s AND epoch = %(epoch)s AND owner = %(owner)s FOR UPDATE
)
INSERT INTO {s}.snapshots (run, seq, content) SELECT run, %(seq)s::bigint, %(content)b FROM held
ON CONFLICT (run) DO UPDATE SET seq = excluded.seq, content = excluded.content
RETURNING run

-- name: load_snapshot
SELECT n.seq, CASE WHEN octet_length(n.content) <= {value} THEN n.content END
FROM {s}.runs JOIN {s}.snapshots n USING (run) WHERE goal = %(goal)s AND episode = %(episode)s

-- name: audit_epochs
-- The epoch that was granted last (nothing if none was, or if we may not ask), and the largest that any run has.
SELECT pg_sequence_last_value('{s}.epochs'::regclass), coalesce(max(epoch), 0) FROM {s}.runs

-- name: audit_may_ask
SELECT has_sequence_privilege('{s}.epochs'::regclass, 'USAGE') OR has_sequence_privilege('{s}.epochs'::regclass, 'SELECT')

-- name: audit_nobodys
-- Records ({table}: journal) or posts ({table}: inbox) of runs that have no row.
SELECT run, count(*) FROM {s}.{table} t
WHERE run > %(after)s AND NOT EXISTS (SELECT FROM {s}.runs r WHERE r.run = t.run)
GROUP BY run ORDER BY run LIMIT %(page)s

-- name: audit_orphans
SELECT digest FROM {s}.blobs b
WHERE digest > %(after)s AND NOT EXISTS (SELECT FROM {s}.refs f JOIN {s}.runs USING (run) WHERE f.digest = b.digest)
ORDER BY digest LIMIT %(page)s

-- name: audit_rows
SELECT run, goal, episode,
       owner <> '' AND EXISTS (SELECT FROM {s}.owners o WHERE o.id = owner AND o.until > clock_timestamp()),
       posts, (SELECT count(*) FROM {s}.inbox i WHERE i.run = r.run), meta,
       seq, status, taken, wake, begun, flow, queue, priority
FROM {s}.runs r WHERE {which} ORDER BY run LIMIT %(page)s

-- name: audit_row
SELECT row_to_json(r)::text FROM {s}.runs r WHERE goal = %(goal)s AND episode = %(episode)s

-- name: audit_snapshots
-- Those of whose runs neither the row nor any record is there. If there are records, the run is damaged.
SELECT run FROM {s}.snapshots n
WHERE run > %(after)s AND NOT EXISTS (SELECT FROM {s}.runs r WHERE r.run = n.run)
  AND NOT EXISTS (SELECT FROM {s}.journal j WHERE j.run = n.run)
ORDER BY run LIMIT %(page)s

-- name: audit_snapshot
-- Remove one of them.
DELETE FROM {s}.snapshots n
WHERE run = %(run)s AND NOT EXISTS (SELECT FROM {s}.runs r WHERE r.run = n.run)
  AND NOT EXISTS (SELECT FROM {s}.journal j WHERE j.run = n.run)
RETURNING content

-- name: audit_content
-- That of a blob which no run was given: it is locked.
SELECT content FROM {s}.blobs WHERE digest = ANY(%(digests)s::text[])
  AND NOT EXISTS (SELECT FROM {s}.refs r WHERE r.digest = blobs.digest)

-- name: audit_forget
-- What runs were given that are not there any more.
DELETE FROM {s}.refs WHERE digest = ANY(%(digests)s::text[])
  AND NOT EXISTS (SELECT FROM {s}.runs r WHERE r.run = refs.run)
