-- Who holds a lease, what waits since when, and what the scan may do to a source.

ALTER TABLE document
    ADD COLUMN worker    text,                            -- host:pid:pid of the worker and its process that holds the lease
    ADD COLUMN large     boolean GENERATED ALWAYS AS (wanted_size > 16000) STORED, -- a small one shouldn't wait for it
    ADD COLUMN bulk      boolean NOT NULL DEFAULT false,  -- found together with many others: a single drop passes by
    ADD COLUMN queued_at timestamptz,                     -- it waits, or is worked on, since
    ADD COLUMN ready_at  timestamptz,                     -- it was ingested at
    DROP CONSTRAINT document_stage_check,
    ADD CONSTRAINT document_stage_check CHECK (stage IN ('parsing', 'chunking', 'embedding', 'storing')),
    SET (fillfactor = 70);                                -- stage and heartbeat are updated in place
UPDATE document SET queued_at = updated_at WHERE state IN ('queued', 'ingesting');

DROP INDEX document_state;
CREATE INDEX document_key ON document (source_id, key COLLATE "C");
CREATE INDEX document_due ON document (large, bulk, (live_revision IS NULL), wanted_size, id)
    WHERE state = 'queued' AND published_at IS NULL;
CREATE INDEX document_flying ON document (id) WHERE published_at IS NOT NULL OR leased_until IS NOT NULL;
CREATE INDEX document_state ON document (state, id);
CREATE INDEX document_size ON document (source_id, wanted_size) WHERE live_sha256 IS NOT NULL;
CREATE INDEX document_ready ON document (ready_at);

ALTER TABLE source
    ADD COLUMN identity  text,                            -- device and inode of the root that was scanned
    ADD COLUMN asked_at  timestamptz,                     -- somebody wants a full scan …
    ADD COLUMN confirmed boolean NOT NULL DEFAULT false,  -- … that may remove what the guard held back
    ADD COLUMN rehash    boolean NOT NULL DEFAULT false,  -- … that reads every file again
    ADD COLUMN scan      jsonb,                           -- what the last full scan found
    ADD COLUMN held      boolean NOT NULL DEFAULT false;  -- the last scan was not carried out: `problem` says why

-- Worker processes that were there a moment ago: how much may be in flight, and whether anybody works at all.
CREATE TABLE worker (
    name      text PRIMARY KEY,      -- host:pid of the Celery main process
    processes integer NOT NULL,
    roots     text[] NOT NULL,       -- of the sources that it can read now
    seen_at   timestamptz NOT NULL DEFAULT now()
);

-- A title or a name may change without its chunks: purging asks which vectors nobody uses any more.
CREATE INDEX chunk_input ON chunk (input_hash);
