-- Everything lives in the schema askfolder, which is first in the search path of every connection of ours.
-- The per-generation tables vector_<id> and lexical_<id> are made by shared/generations.py.

CREATE TABLE collection (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name       text NOT NULL UNIQUE,
    created_at timestamptz NOT NULL DEFAULT now()
);
INSERT INTO collection (name) VALUES ('default');

CREATE TABLE source (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    collection_id bigint NOT NULL REFERENCES collection,
    kind          text NOT NULL CHECK (kind IN ('folder', 'upload', 's3')),
    root          text NOT NULL,
    scanned_at    timestamptz,
    problem       text,            -- why the last scan could not be trusted
    created_at    timestamptz NOT NULL DEFAULT now(),
    UNIQUE (kind, root)
);

-- The ledger. `wanted` is the revision that the source has, `live` the one that answers; they differ while one is being made.
CREATE TABLE document (
    id               bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    source_id        bigint NOT NULL REFERENCES source,
    collection_id    bigint NOT NULL REFERENCES collection,
    key              text NOT NULL,          -- relative to the source's root
    state            text NOT NULL CHECK (state IN ('queued', 'ingesting', 'ready', 'failed', 'quarantined', 'excluded', 'deleted')),
    wanted_revision  text NOT NULL,          -- mtime_ns-size, or an ETag: "maybe changed"
    wanted_size      bigint NOT NULL,        -- bytes
    live_revision    text,                   -- NULL: nothing of it can be found
    live_sha256      bytea,                  -- of the file's bytes: "changed"
    text_version     bigint NOT NULL DEFAULT 0, -- counts the live texts; generations say which of them they hold
    title            text,
    format           text,
    chunks           integer NOT NULL DEFAULT 0, -- in the live generation
    stage            text CHECK (stage IN ('parsing', 'embedding')),
    progress_done    integer,
    progress_total   integer,
    attempts         integer NOT NULL DEFAULT 0,
    retries          integer NOT NULL DEFAULT 0, -- passing failures in a row; only the wait before the next try depends on it
    not_before       timestamptz,
    lease            uuid,
    leased_until     timestamptz,
    published_at     timestamptz,            -- a task is in the queue since
    error            text,                   -- a sentence for the person
    created_at       timestamptz NOT NULL DEFAULT now(),
    updated_at       timestamptz NOT NULL DEFAULT now(),
    deleted_at       timestamptz,
    UNIQUE (source_id, key)
);
CREATE INDEX document_state ON document (state, wanted_size);
CREATE INDEX document_hash ON document (source_id, live_sha256);

CREATE TABLE document_text (
    document_id  bigint PRIMARY KEY REFERENCES document ON DELETE CASCADE,
    text_version bigint NOT NULL,
    content      text NOT NULL,
    kind         text NOT NULL,      -- markdown | text | code
    headings     jsonb NOT NULL,     -- [[start, level, title], …], characters
    pages        jsonb NOT NULL      -- [[start, number], …], characters
);

-- Whatever decides what a vector is: chunks, vectors and statistics belong to a generation, one is live.
CREATE TABLE generation (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    embedder   text NOT NULL,
    model      text NOT NULL,
    model_path text NOT NULL DEFAULT '',   -- local: the directory that was named
    dimensions integer NOT NULL,
    chunker    text NOT NULL,              -- version and sizes
    template   text NOT NULL,
    state      text NOT NULL CHECK (state IN ('building', 'live', 'retired')),
    created_at timestamptz NOT NULL DEFAULT now(),
    live_at    timestamptz,
    UNIQUE (embedder, model, dimensions, chunker, template)
);
CREATE UNIQUE INDEX generation_one_live ON generation (state) WHERE state = 'live';
CREATE UNIQUE INDEX generation_one_building ON generation (state) WHERE state = 'building';

-- Which text of a document a generation holds, whole.
CREATE TABLE document_generation (
    document_id   bigint NOT NULL REFERENCES document ON DELETE CASCADE,
    generation_id bigint NOT NULL REFERENCES generation ON DELETE CASCADE,
    text_version  bigint NOT NULL,
    PRIMARY KEY (document_id, generation_id)
);

CREATE TABLE chunk (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    generation_id bigint NOT NULL REFERENCES generation ON DELETE CASCADE,
    document_id   bigint NOT NULL REFERENCES document ON DELETE CASCADE,
    ordinal       integer NOT NULL,
    content       text NOT NULL,
    heading_path  text[] NOT NULL,
    page          integer,
    char_start    integer NOT NULL,
    char_end      integer NOT NULL,
    input_hash    bytea NOT NULL,       -- SHA-256 of exactly the string that was embedded
    UNIQUE (generation_id, document_id, ordinal) DEFERRABLE INITIALLY DEFERRED
);
CREATE INDEX chunk_document ON chunk (document_id);

-- Every vector that was ever paid for: an edit, a copy, a crash, a move pays only for what is new.
CREATE TABLE vector_cache (
    collection_id bigint NOT NULL REFERENCES collection,
    model         text NOT NULL,
    dimensions    integer NOT NULL,
    input_hash    bytea NOT NULL,
    embedding     vector NOT NULL,
    PRIMARY KEY (collection_id, model, dimensions, input_hash)
);
ALTER TABLE vector_cache ALTER COLUMN embedding SET STORAGE EXTERNAL; -- floats do not compress

-- BM25 (Robertson & Zaragoza 2009, eq. 3.15) as an inner product: a document's vector holds the saturated term
-- frequencies, a question's the inverse document frequencies, both at the lexeme's hashed place.
CREATE FUNCTION lexeme_place(lexeme text) RETURNS bigint
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN 1 + ('x' || substr(md5(lexeme), 1, 8))::bit(32)::bigint % 1000000000;

CREATE FUNCTION bm25_document(words tsvector, average_length float8) RETURNS sparsevec
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
BEGIN ATOMIC
    WITH term AS (
        SELECT lexeme_place(lexeme) AS place, sum(coalesce(array_length(positions, 1), 1))::float8 AS tf
        FROM unnest(words) GROUP BY 1
    ), length AS (SELECT sum(tf) AS terms FROM term)
    SELECT ('{' || coalesce(string_agg(place || ':' ||
               round((tf * 2.2 / (tf + 1.2 * (0.25 + 0.75 * terms / average_length)))::numeric, 4), ',' ORDER BY place), '')
            || '}/1000000000')::sparsevec
    FROM term, length;
END;
