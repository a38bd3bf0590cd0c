-- Contexts: what a model wrote to situate a chunk within its document (ASKFOLDER_CONTEXT). They are embedded and searched with the
-- chunk, and are never part of what is quoted.

ALTER TABLE chunk ADD COLUMN context text; -- empty: the model gave none; NULL: none was asked for

ALTER TABLE document
    DROP CONSTRAINT document_stage_check,
    ADD CONSTRAINT document_stage_check CHECK (stage IN ('parsing', 'chunking', 'contexts', 'embedding', 'storing'));

-- Every context that was ever paid for: it stays while the chunk's content does, whatever is edited elsewhere in the document.
CREATE TABLE context_cache (
    document_id  bigint NOT NULL REFERENCES document ON DELETE CASCADE,
    model        text NOT NULL,
    content_hash bytea NOT NULL,       -- SHA-256 of the chunk's content
    text_hash    bytea NOT NULL,       -- SHA-256 of the document's last text with that chunk: a copy of a file pays nothing
    context      text NOT NULL,        -- empty: the model gave none
    PRIMARY KEY (document_id, model, content_hash)
);
CREATE INDEX context_cache_text ON context_cache (text_hash);
