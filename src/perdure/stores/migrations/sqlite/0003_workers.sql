-- What workers look for: runs that nobody holds, the most urgent first, and how many of a queue have begun since when.

ALTER TABLE perdure_runs ADD COLUMN flow     TEXT    NOT NULL DEFAULT '';
ALTER TABLE perdure_runs ADD COLUMN queue    TEXT    NOT NULL DEFAULT ''; -- empty: it was not submitted to any
ALTER TABLE perdure_runs ADD COLUMN priority INTEGER NOT NULL DEFAULT 0;
ALTER TABLE perdure_runs ADD COLUMN begun    REAL    NOT NULL DEFAULT 0;  -- when its latest life began; 0: never

UPDATE perdure_runs SET flow = coalesce(json_extract(meta, '$.flow'), '') WHERE meta <> '';

-- runs that somebody was executing may be taken up once nobody holds them
UPDATE perdure_runs SET wake = since WHERE wake = 0 AND status IN ('running', 'interrupted');

CREATE INDEX perdure_begun ON perdure_runs (begun) WHERE begun > 0;
CREATE INDEX perdure_held ON perdure_runs (owner) WHERE owner <> '';
