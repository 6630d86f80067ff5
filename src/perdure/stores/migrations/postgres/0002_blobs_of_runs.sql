-- Which runs were given a blob, so that it can go with the last of them; and how large a run is.
CREATE TABLE refs (
    run    bigint           NOT NULL,
    digest text COLLATE "C" NOT NULL,
    PRIMARY KEY (run, digest)
);

CREATE INDEX refs_digest ON refs (digest);

-- From the records as they stand: what else has such a name in it does no harm.
INSERT INTO refs
SELECT DISTINCT j.run, found[1]
FROM journal j, regexp_matches(encode(j.record, 'escape'), '"([0-9a-f]{64})"', 'g') AS found
WHERE position('"refs"'::bytea IN j.record) > 0 AND found[1] IN (SELECT digest FROM blobs);

ALTER TABLE runs ADD COLUMN size bigint NOT NULL DEFAULT 0; -- bytes of its records and of the blobs that came with them

UPDATE runs
SET size = (SELECT coalesce(sum(octet_length(record)), 0) FROM journal j WHERE j.run = runs.run)
         + (SELECT coalesce(sum(octet_length(content)), 0) FROM refs r JOIN blobs b USING (digest) WHERE r.run = runs.run);
