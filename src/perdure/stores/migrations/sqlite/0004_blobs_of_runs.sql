-- Which runs were given a blob, so that it can go with the last of them; and how large a run is.

CREATE TABLE perdure_refs (
    run    INTEGER NOT NULL,
    digest TEXT    NOT NULL,
    PRIMARY KEY (run, digest)
) STRICT, WITHOUT ROWID;

CREATE INDEX perdure_referrers ON perdure_refs (digest);

-- From the records as they stand: what else has such a name in it does no harm.
INSERT OR IGNORE INTO perdure_refs
SELECT j.run, r.value
FROM perdure_journal j,
     json_tree(CASE WHEN json_valid(CAST(j.record AS TEXT)) THEN CAST(j.record AS TEXT) ELSE '[]' END) t,
     json_each(CASE WHEN t.key = 'refs' AND t.type = 'array' THEN t.value ELSE '[]' END) r
WHERE instr(j.record, CAST('"refs"' AS BLOB)) AND r.type = 'text'
  AND r.value IN (SELECT digest FROM perdure_blobs);

ALTER TABLE perdure_runs ADD COLUMN size INTEGER NOT NULL DEFAULT 0; -- bytes of its records and of the blobs that came with them

UPDATE perdure_runs
SET size = (SELECT coalesce(sum(length(record)), 0) FROM perdure_journal j WHERE j.run = perdure_runs.run)
         + (SELECT coalesce(sum(length(content)), 0) FROM perdure_refs r JOIN perdure_blobs b USING (digest)
            WHERE r.run = perdure_runs.run);
