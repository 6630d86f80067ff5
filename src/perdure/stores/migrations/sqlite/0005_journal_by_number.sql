-- Records by one number that has both, so that there is no index beside the table to be written with every record.

CREATE TABLE perdure_records (
    id     INTEGER PRIMARY KEY,                                -- run << 32 | seq
    record BLOB    NOT NULL,
    run    INTEGER GENERATED ALWAYS AS (id >> 32) VIRTUAL,
    seq    INTEGER GENERATED ALWAYS AS (id & 4294967295) VIRTUAL
) STRICT;

INSERT INTO perdure_records (id, record) SELECT run << 32 | seq, record FROM perdure_journal ORDER BY run, seq;
DROP TABLE perdure_journal;
ALTER TABLE perdure_records RENAME TO perdure_journal;
