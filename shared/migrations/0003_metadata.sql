-- What documents say of themselves, and their dates: what questions can be narrowed by.

ALTER TABLE document
    ADD COLUMN metadata  jsonb NOT NULL DEFAULT '{}',     -- names in lower case → values; worker/formats_metadata.py
    ADD COLUMN described boolean NOT NULL DEFAULT false,  -- its metadata was looked for; reconcile --rehash reads the others again
    ADD COLUMN dated     timestamptz;                     -- its own date, else the file's; NULL: nothing of it can be found

-- A folder's revision is mtime_ns-size; others say nothing of a time.
CREATE FUNCTION revision_time(revision text) RETURNS timestamptz
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN CASE WHEN revision ~ '^\d{1,19}-\d+$' THEN to_timestamp(split_part(revision, '-', 1)::float8 / 1e9) END;

UPDATE document SET dated = coalesce(revision_time(live_revision), ready_at, updated_at) WHERE live_revision IS NOT NULL;

CREATE INDEX document_metadata ON document USING gin (metadata jsonb_path_ops);
CREATE INDEX document_dated ON document (dated);
CREATE INDEX document_path ON document (key COLLATE "C"); -- whatever the source
