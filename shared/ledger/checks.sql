-- The doctor's checks: a name, what is wrong (after "3 documents"), and a query for the ids of these documents, each once.

-- text: are ready, but their text is not stored
SELECT d.id FROM document d LEFT JOIN document_text t ON t.document_id = d.id AND t.text_version = d.text_version
WHERE d.state = 'ready' AND t.document_id IS NULL;

-- revision: are ready, but the live index holds another version of their text, or none
SELECT d.id FROM document d JOIN generation g ON g.state = 'live'
LEFT JOIN document_generation h ON h.document_id = d.id AND h.generation_id = g.id
WHERE d.state = 'ready' AND h.text_version IS DISTINCT FROM d.text_version;

-- empty: are ready, but have no chunks in the live index
SELECT d.id FROM document d JOIN generation g ON g.state = 'live'
WHERE d.state = 'ready'
  AND NOT EXISTS (SELECT 1 FROM chunk c WHERE c.document_id = d.id AND c.generation_id = g.id);

-- order: have missing or duplicate chunks
SELECT DISTINCT document_id FROM (
    SELECT document_id FROM chunk GROUP BY generation_id, document_id
    HAVING min(ordinal) <> 0 OR max(ordinal) <> count(*) - 1 OR count(DISTINCT ordinal) <> count(*)
) AS uneven;

-- unowned: have chunks that belong to no index
SELECT DISTINCT c.document_id FROM chunk c WHERE NOT EXISTS (
    SELECT 1 FROM document_generation h WHERE h.document_id = c.document_id AND h.generation_id = c.generation_id);

-- places: have chunks whose content differs from the text at their position
SELECT DISTINCT c.document_id FROM chunk c
JOIN document_text t ON t.document_id = c.document_id
JOIN document_generation h
  ON h.document_id = c.document_id AND h.generation_id = c.generation_id AND h.text_version = t.text_version
WHERE substr(t.content, c.char_start + 1, c.char_end - c.char_start) <> c.content;

-- count: have a wrong chunk count
SELECT d.id FROM document d JOIN generation g ON g.state = 'live'
WHERE d.state = 'ready'
  AND d.chunks <> (SELECT count(*) FROM chunk c WHERE c.document_id = d.id AND c.generation_id = g.id);

-- stuck: are stuck: their worker or their task was lost, and they were not queued again
SELECT d.id FROM document d LEFT JOIN task t ON t.document_id = d.id
WHERE coalesce(t.leased_until, t.published_at) < now() - interval '2 minutes'
   OR (t.lease IS NULL AND d.state = 'ingesting')
   OR (t.lease IS NOT NULL AND d.state NOT IN ('ingesting', 'ready'));
