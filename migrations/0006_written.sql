-- Whether its layer has had data in it. Then an empty one has lost its data, and is not taken for a new one.
ALTER TABLE databases ADD COLUMN written INTEGER NOT NULL DEFAULT 0 CHECK (written IN (0, 1));
