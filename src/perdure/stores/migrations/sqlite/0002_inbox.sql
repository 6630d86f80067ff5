-- What others than the holder of a run say to it, and when a suspended run is due.

ALTER TABLE perdure_runs ADD COLUMN posts INTEGER NOT NULL DEFAULT 0; -- number of the last post in its inbox
ALTER TABLE perdure_runs ADD COLUMN taken INTEGER NOT NULL DEFAULT 0; -- number of the last one that its journal has
ALTER TABLE perdure_runs ADD COLUMN wake  REAL    NOT NULL DEFAULT 0; -- when it can go on by itself; 0: not by a date

CREATE INDEX perdure_due ON perdure_runs (wake) WHERE wake > 0;
CREATE INDEX perdure_unread ON perdure_runs (run) WHERE posts > taken;

-- framed posts, one line of JSON each, never updated
CREATE TABLE perdure_inbox (
    run    INTEGER NOT NULL,
    number INTEGER NOT NULL,
    record BLOB    NOT NULL,
    PRIMARY KEY (run, number)
) STRICT;
