-- Documents in flight leave the wide row of `document`. A heartbeat updates one small row of `task`, in place (HOT): no index holds
-- a column that it changes. Every statement that locks both rows locks the document first.

CREATE TABLE task (
    document_id  bigint PRIMARY KEY REFERENCES document ON DELETE CASCADE,
    published_at timestamptz NOT NULL DEFAULT now(), -- when it was put in the queue
    lease        uuid,                               -- NULL: no worker has taken it yet
    leased_until timestamptz,
    worker       text,                               -- host:pid:pid of the worker and of its process that holds the lease
    stage        text CHECK (stage IN ('parsing', 'chunking', 'contexts', 'embedding', 'storing')),
    done         integer,                            -- chunks of this stage
    total        integer,
    updated_at   timestamptz,                        -- last progress
    CHECK ((lease IS NULL) = (leased_until IS NULL))
) WITH (fillfactor = 50);

-- A worker of the previous version cannot finish what it holds (its columns are gone): the document is queued again and the
-- interrupted attempt does not count. Whatever waited in the queue is published again.
UPDATE document SET state = CASE state WHEN 'ingesting' THEN 'queued' ELSE state END, attempts = greatest(attempts - 1, 0)
WHERE state = 'ingesting' OR lease IS NOT NULL;

DROP INDEX document_due, document_flying;
ALTER TABLE document
    DROP COLUMN published_at,
    DROP COLUMN lease,
    DROP COLUMN leased_until,
    DROP COLUMN worker,
    DROP COLUMN stage,
    DROP COLUMN progress_done,
    DROP COLUMN progress_total;
CREATE INDEX document_due ON document (large, bulk, (live_revision IS NULL), wanted_size, id) WHERE state = 'queued';

ALTER TABLE document RENAME COLUMN described TO metadata_read;
