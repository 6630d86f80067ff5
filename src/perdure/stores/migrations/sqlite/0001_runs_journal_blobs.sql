-- The first schema. Rowid tables on purpose: without rowid, values of 1 KiB take three times the space.

-- one row a run: its lease, and its row in listings
CREATE TABLE perdure_runs (
    run     INTEGER PRIMARY KEY,
    goal    TEXT    NOT NULL,
    episode INTEGER NOT NULL,
    seq     INTEGER NOT NULL DEFAULT 0,  -- sequence of the last record
    status  TEXT    NOT NULL DEFAULT '',
    meta    TEXT    NOT NULL DEFAULT '', -- RunMeta as JSON; empty until there are records
    epoch   INTEGER NOT NULL,            -- fencing token of the last grant
    owner   TEXT    NOT NULL DEFAULT '', -- handle that holds the run; empty when released
    pid     INTEGER NOT NULL DEFAULT 0,
    host    TEXT    NOT NULL DEFAULT '',
    since   REAL    NOT NULL DEFAULT 0,
    UNIQUE (goal, episode)
) STRICT;

-- the truth: framed records, one line of JSON each, never updated
CREATE TABLE perdure_journal (
    run    INTEGER NOT NULL,
    seq    INTEGER NOT NULL,
    record BLOB    NOT NULL,
    PRIMARY KEY (run, seq)
) STRICT;

-- large values by sha256, each stored once
CREATE TABLE perdure_blobs (
    digest  TEXT PRIMARY KEY NOT NULL,
    content BLOB NOT NULL
) STRICT;

-- largest epoch of any deleted run: a run made again under the same name starts above it
CREATE TABLE perdure_floor (
    one   INTEGER PRIMARY KEY CHECK (one = 1),
    epoch INTEGER NOT NULL
) STRICT;

INSERT INTO perdure_floor VALUES (1, 0);
