-- Tenants, databases, roles: see README.md.

CREATE TABLE tenants (
    seq         INTEGER PRIMARY KEY AUTOINCREMENT,
    id          TEXT    NOT NULL UNIQUE,
    name        TEXT    NOT NULL UNIQUE,
    key_hash    BLOB    UNIQUE CHECK (key_hash IS NULL OR length(key_hash) = 32),
    created_at  INTEGER NOT NULL
) STRICT;

CREATE TABLE databases (
    seq          INTEGER PRIMARY KEY AUTOINCREMENT,
    id           TEXT    NOT NULL UNIQUE,
    tenant_id    TEXT    NOT NULL REFERENCES tenants (id),
    name         TEXT    NOT NULL,
    state        TEXT    NOT NULL CHECK (state IN ('creating', 'running', 'suspending', 'suspended', 'resuming',
                                                   'stopped', 'deleting', 'error')),
    plan         TEXT    NOT NULL,
    -- The image the database was created from; kept by `dormouse image gc` while this row is here.
    image        TEXT    NOT NULL,
    -- NULL: the plan's.
    cool_down_ms INTEGER,
    -- Why it is stopped or in error, for its owner to read.
    message      TEXT,
    created_at   INTEGER NOT NULL,
    UNIQUE (tenant_id, name)
) STRICT;

CREATE INDEX databases_by_tenant ON databases (tenant_id, seq);
-- What the reconciler looks for at a start, however many databases are at rest.
CREATE INDEX databases_at_work ON databases (state)
    WHERE state NOT IN ('suspended', 'stopped', 'error');

CREATE TABLE roles (
    database_id TEXT NOT NULL REFERENCES databases (id) ON DELETE CASCADE,
    role        TEXT NOT NULL,
    -- "SCRAM-SHA-256$iterations:salt$StoredKey:ServerKey", as in pg_authid.
    verifier    TEXT NOT NULL,
    -- ms since 1970 after which it opens nothing; NULL: never.
    expires_at  INTEGER,
    PRIMARY KEY (database_id, role)
) STRICT, WITHOUT ROWID;

INSERT INTO tenants (id, name, key_hash, created_at)
VALUES ('tn_default', 'default', NULL, CAST(unixepoch('subsec') * 1000 AS INTEGER));
