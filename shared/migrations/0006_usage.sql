-- What was sent to models elsewhere: sums by day (UTC), purpose and model. Never what was said in it.

CREATE TABLE usage (
    day                date NOT NULL,
    purpose            text NOT NULL,
    model              text NOT NULL,
    calls              bigint NOT NULL,
    input_tokens       bigint NOT NULL,             -- neither written to a cache nor read from one
    output_tokens      bigint NOT NULL,
    cache_write_tokens bigint NOT NULL,
    cache_read_tokens  bigint NOT NULL,
    dollars            numeric,                     -- NULL: a call had no known price
    PRIMARY KEY (day, purpose, model)
);

-- What a day's cap is compared with. The row is the lock: all that spend from it pass here one after another.
CREATE TABLE budget (
    name     text NOT NULL CHECK (name IN ('embedding', 'answers')),
    day      date NOT NULL,
    spent    numeric NOT NULL DEFAULT 0,            -- dollars
    reserved numeric NOT NULL DEFAULT 0,            -- dollars, by calls that are under way: the sum of `reservation`
    PRIMARY KEY (name, day)
);

CREATE TABLE reservation (
    id         uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    name       text NOT NULL,
    day        date NOT NULL,
    dollars    numeric NOT NULL,
    expires_at timestamptz NOT NULL                 -- its process died
);
