-- The first schema. All names are Perdure's own and stand in a schema of their own, beside the user's tables.

-- one row a run: its lease, and its row in listings
CREATE TABLE runs (
    run      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    goal     text COLLATE "C"  NOT NULL,
    episode  integer           NOT NULL,
    seq      bigint            NOT NULL DEFAULT 0,  -- sequence of the last record
    status   text              NOT NULL DEFAULT '',
    meta     text              NOT NULL DEFAULT '', -- RunMeta as JSON; empty until there are records
    epoch    bigint            NOT NULL,            -- fencing token of the last grant
    owner    text              NOT NULL DEFAULT '', -- handle that holds the run; empty when released
    pid      bigint            NOT NULL DEFAULT 0,
    host     text              NOT NULL DEFAULT '',
    since    double precision  NOT NULL DEFAULT 0,
    posts    bigint            NOT NULL DEFAULT 0,  -- number of the last post in its inbox
    taken    bigint            NOT NULL DEFAULT 0,  -- number of the last one that its journal has
    wake     double precision  NOT NULL DEFAULT 0,  -- from when on it may be taken up if nobody holds it; 0: never
    begun    double precision  NOT NULL DEFAULT 0,  -- when its latest life began; 0: never
    flow     text              NOT NULL DEFAULT '',
    queue    text              NOT NULL DEFAULT '', -- empty: it was not submitted to any
    priority integer           NOT NULL DEFAULT 0,
    UNIQUE (goal, episode)
);

CREATE INDEX runs_due ON runs (wake) WHERE wake > 0;
CREATE INDEX runs_unread ON runs (run) WHERE posts > taken;
CREATE INDEX runs_held ON runs (owner) WHERE owner <> '';
CREATE INDEX runs_begun ON runs (begun) WHERE begun > 0;

-- the truth: framed records, one line of JSON each, never updated
CREATE TABLE journal (
    run    bigint NOT NULL,
    seq    bigint NOT NULL,
    record bytea  NOT NULL,
    PRIMARY KEY (run, seq)
);

-- framed posts, one line of JSON each, never updated
CREATE TABLE inbox (
    run    bigint NOT NULL,
    number bigint NOT NULL,
    record bytea  NOT NULL,
    PRIMARY KEY (run, number)
);

-- large values by sha256, each stored once
CREATE TABLE blobs (
    digest  text COLLATE "C" PRIMARY KEY,
    content bytea NOT NULL
);

-- handles that live: each says so before its time has come; one that was late is removed and never comes back
CREATE TABLE owners (
    id    text COLLATE "C" PRIMARY KEY,
    pid   bigint NOT NULL,
    host  text NOT NULL,
    until timestamptz NOT NULL
);

-- fencing tokens: every grant of whatever run has a larger one
CREATE SEQUENCE epochs;
