-- The question log: what was asked, what was answered, and what people thought of it (ASKFOLDER_QUESTION_LOG). Of documents it holds
-- places, never text; the answer holds words of those that it cites and goes with them: see `purge` in shared/documents.py.

CREATE TABLE question (
    id         uuid PRIMARY KEY,
    number     bigint GENERATED ALWAYS AS IDENTITY UNIQUE, -- the order that they are listed in
    asked_at   timestamptz NOT NULL,
    collection text,                                       -- that the question named
    question   text NOT NULL,
    answer     text NOT NULL,
    verdict    text NOT NULL,
    answerer   text NOT NULL,
    model      text,                                       -- NULL: none was asked
    timings    jsonb NOT NULL,                             -- milliseconds
    usage      jsonb NOT NULL,                             -- tokens
    rating     smallint CHECK (rating IN (-1, 1)),         -- thumb down, thumb up; NULL: none yet
    rated_at   timestamptz
);

-- What was looked at for an answer, and what it cites.
CREATE TABLE question_place (
    question_id  uuid NOT NULL REFERENCES question ON DELETE CASCADE,
    document_id  bigint NOT NULL REFERENCES document ON DELETE CASCADE,
    cited        boolean NOT NULL,
    ordinal      integer NOT NULL,     -- the passage's rank, or the citation's number
    char_start   integer NOT NULL,     -- characters of the document's text, as it was then
    char_end     integer NOT NULL,
    quote_sha256 bytea,                -- of a citation's words: whether they still stand there
    PRIMARY KEY (question_id, cited, ordinal)
);
CREATE INDEX question_place_document ON question_place (document_id);
