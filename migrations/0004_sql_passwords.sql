-- Whether passwords have been set in SQL: the owner's, and other roles'. Then the database itself is asked for them.
ALTER TABLE databases ADD COLUMN sql_owner INTEGER NOT NULL DEFAULT 0 CHECK (sql_owner IN (0, 1));
ALTER TABLE databases ADD COLUMN sql_roles INTEGER NOT NULL DEFAULT 0 CHECK (sql_roles IN (0, 1));
