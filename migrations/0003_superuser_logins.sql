-- Logins that are PostgreSQL's superuser in the guest. Only the operator makes them, and they expire.
ALTER TABLE roles ADD COLUMN superuser INTEGER NOT NULL DEFAULT 0 CHECK (superuser IN (0, 1));
