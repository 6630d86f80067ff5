-- What shortens the reading of long journals: the latest for each run, made anew by whoever executes it.

CREATE TABLE perdure_snapshots (
    run     INTEGER PRIMARY KEY,
    seq     INTEGER NOT NULL, -- sequence of the last record that it takes in
    content BLOB    NOT NULL
) STRICT;
