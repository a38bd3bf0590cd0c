-- Languages, and what lexemes weigh. A lexeme stands at the place of its configuration and itself, so that one question vector
-- holds what it is in each language, and rows of a language meet only their own.

ALTER TABLE document ADD COLUMN configuration text; -- PostgreSQL's text search configuration for its language

-- The configurations that a generation's chunks were indexed with: a question is read by each of them.
CREATE TABLE lexeme_configuration (
    generation_id bigint NOT NULL REFERENCES generation ON DELETE CASCADE,
    collection_id bigint NOT NULL REFERENCES collection,
    configuration text NOT NULL,
    PRIMARY KEY (generation_id, collection_id, configuration)
);

-- In how many chunks a lexeme stands; made in the background (worker/lexemes.py). Lexemes of one chunk are left out.
-- strong, stronger: where its weight is at least 1.6 and 1.8. At place 0 stands the number of all chunks.
CREATE TABLE lexeme_stats (
    generation_id bigint NOT NULL REFERENCES generation ON DELETE CASCADE,
    collection_id bigint NOT NULL REFERENCES collection,
    place         integer NOT NULL,
    chunks        integer NOT NULL,
    strong        integer NOT NULL,
    stronger      integer NOT NULL,
    PRIMARY KEY (generation_id, collection_id, place) INCLUDE (chunks, strong, stronger)
);

-- What the counts were made from: pg_stat's count of changed rows then.
ALTER TABLE generation ADD COLUMN counted_changes bigint;

DROP FUNCTION bm25_document;

-- BM25 (Robertson & Zaragoza 2009, eq. 3.15) as an inner product: a chunk's vector holds the saturated frequencies of its
-- lexemes, a question's vector their inverse document frequencies. content: words between spaces; exact: terms as they are,
-- each counted once and not as length.
CREATE FUNCTION bm25_chunk(configuration text, content text, exact text[], average_length float8) RETURNS sparsevec
LANGUAGE sql STABLE STRICT PARALLEL SAFE
BEGIN ATOMIC
    WITH word AS (
        SELECT lexeme_place(configuration || ':' || lexeme) AS place, coalesce(array_length(positions, 1), 1)::float8 AS tf
        FROM unnest(to_tsvector(configuration::regconfig, content))
    ), length AS (
        SELECT 0.25 + 0.75 * sum(tf) / average_length AS factor FROM word
    ), term AS (
        SELECT place, sum(tf) AS tf
        FROM (SELECT place, tf FROM word UNION ALL SELECT lexeme_place(e), 1 FROM unnest(exact) AS e) AS terms
        GROUP BY place
    )
    SELECT ('{' || coalesce(string_agg(place || ':' || round((tf * 2.2 / (tf + 1.2 * coalesce(factor, 0.25)))::numeric, 4), ',' ORDER BY place), '')
            || '}/1000000000')::sparsevec
    FROM term, length;
END;

-- What the index of a generation's lexical rows holds: each place, and again as a… and b… where the lexeme is strong in the chunk.
-- The cost keeps the planner from ever computing it for whole tables.
CREATE FUNCTION bm25_terms(bm25 sparsevec) RETURNS tsvector
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE COST 100000
BEGIN ATOMIC
    SELECT coalesce(array_to_tsvector(array_agg(term)), ''::tsvector)
    FROM unnest(string_to_array(substr(split_part(bm25::text, '}', 1), 2), ',')) AS entry,
         LATERAL (SELECT split_part(entry, ':', 1) AS place, split_part(entry, ':', 2)::float4 AS weight) AS e,
         LATERAL (VALUES (place), (CASE WHEN weight >= 1.6 THEN 'a' || place END), (CASE WHEN weight >= 1.8 THEN 'b' || place END)) AS t (term)
    WHERE term IS NOT NULL AND term <> '';
END;

-- Generations of before keep their vectors and are searched by those until the new one is built; their words are made anew.
DO $$
DECLARE number bigint;
BEGIN
    FOR number IN SELECT id FROM generation LOOP
        IF to_regclass(format('vector_%s', number)) IS NOT NULL THEN
            EXECUTE format('ALTER TABLE vector_%s ADD COLUMN document_id bigint', number);
            EXECUTE format('UPDATE vector_%1$s v SET document_id = c.document_id FROM chunk c WHERE c.id = v.chunk_id', number);
            EXECUTE format('ALTER TABLE vector_%s ALTER COLUMN document_id SET NOT NULL', number);
            EXECUTE format('DROP TABLE lexical_%s', number);
            EXECUTE format('CREATE TABLE lexical_%s (
                chunk_id      bigint PRIMARY KEY REFERENCES chunk ON DELETE CASCADE,
                document_id   bigint NOT NULL,
                collection_id bigint NOT NULL,
                bm25          sparsevec NOT NULL)', number);
            EXECUTE format('CREATE INDEX ON lexical_%s USING gin (bm25_terms(bm25)) WITH (fastupdate = off)', number);
        END IF;
    END LOOP;
END $$;
