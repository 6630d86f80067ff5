-- What shortens the reading of long journals: the latest for each run, made anew by whoever executes it.
CREATE TABLE snapshots (
    run     bigint PRIMARY KEY,
    seq     bigint NOT NULL, -- sequence of the last record that it takes in
    content bytea  NOT NULL
);
