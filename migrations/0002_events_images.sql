-- What happened to each database; its major version of Postgres, and the template that its layer lies over.

CREATE TABLE events (
    seq         INTEGER PRIMARY KEY AUTOINCREMENT,
    database_id TEXT    NOT NULL REFERENCES databases (id) ON DELETE CASCADE,
    at          INTEGER NOT NULL,
    kind        TEXT    NOT NULL,
    message     TEXT
) STRICT;

CREATE INDEX events_by_database ON events (database_id, seq);

ALTER TABLE databases ADD COLUMN pg_version INTEGER NOT NULL DEFAULT 17;
-- NULL: the image's. A database that was moved to another image keeps the template that its layer was begun on.
ALTER TABLE databases ADD COLUMN template TEXT;

-- How many databases each image has, and which are not on the newest.
CREATE INDEX databases_by_image ON databases (image, seq);
