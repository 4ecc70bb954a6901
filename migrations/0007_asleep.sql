-- Since when a database sleeps as it was left, in ms since 1970; NULL: it does not, or is packed, or cannot be. What is next to
-- be packed is found by the index, however many sleep.
ALTER TABLE databases ADD COLUMN asleep_since INTEGER;
UPDATE databases SET asleep_since = CAST(unixepoch('subsec') * 1000 AS INTEGER) WHERE state = 'suspended' AND has_files = 1;
CREATE INDEX databases_to_pack ON databases (asleep_since) WHERE asleep_since IS NOT NULL;
