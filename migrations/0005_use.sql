-- What is asked about all databases is answered without a look at each: sums that triggers keep, and an index by name.

-- How many databases are on each image, by template and state. It does not grow with databases.
CREATE TABLE image_use (
    image      TEXT    NOT NULL,
    pg_version INTEGER NOT NULL,
    -- '': the image's.
    template   TEXT    NOT NULL,
    state      TEXT    NOT NULL,
    databases  INTEGER NOT NULL,
    PRIMARY KEY (image, pg_version, template, state)
) STRICT, WITHOUT ROWID;

-- How many databases of each plan a tenant has.
CREATE TABLE plan_use (
    tenant_id TEXT    NOT NULL,
    plan      TEXT    NOT NULL,
    databases INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, plan)
) STRICT, WITHOUT ROWID;

-- Whether its first wake made its folders. Then a database without them has lost its data, and is not taken for a new one.
ALTER TABLE databases ADD COLUMN has_files INTEGER NOT NULL DEFAULT 0 CHECK (has_files IN (0, 1));
-- Until now a create made them.
UPDATE databases SET has_files = 1;

INSERT INTO image_use
    SELECT image, pg_version, coalesce(template, ''), state, count(*) FROM databases GROUP BY 1, 2, 3, 4;
INSERT INTO plan_use SELECT tenant_id, plan, count(*) FROM databases GROUP BY 1, 2;

CREATE TRIGGER databases_made AFTER INSERT ON databases BEGIN
    INSERT INTO image_use VALUES (NEW.image, NEW.pg_version, coalesce(NEW.template, ''), NEW.state, 1)
        ON CONFLICT DO UPDATE SET databases = databases + 1;
    INSERT INTO plan_use VALUES (NEW.tenant_id, NEW.plan, 1)
        ON CONFLICT DO UPDATE SET databases = databases + 1;
END;

CREATE TRIGGER databases_changed AFTER UPDATE OF image, pg_version, template, state ON databases BEGIN
    UPDATE image_use SET databases = databases - 1
        WHERE image = OLD.image AND pg_version = OLD.pg_version AND template = coalesce(OLD.template, '') AND state = OLD.state;
    INSERT INTO image_use VALUES (NEW.image, NEW.pg_version, coalesce(NEW.template, ''), NEW.state, 1)
        ON CONFLICT DO UPDATE SET databases = databases + 1;
END;

CREATE TRIGGER databases_moved AFTER UPDATE OF tenant_id, plan ON databases BEGIN
    UPDATE plan_use SET databases = databases - 1 WHERE tenant_id = OLD.tenant_id AND plan = OLD.plan;
    INSERT INTO plan_use VALUES (NEW.tenant_id, NEW.plan, 1)
        ON CONFLICT DO UPDATE SET databases = databases + 1;
END;

CREATE TRIGGER databases_gone AFTER DELETE ON databases BEGIN
    UPDATE image_use SET databases = databases - 1
        WHERE image = OLD.image AND pg_version = OLD.pg_version AND template = coalesce(OLD.template, '') AND state = OLD.state;
    UPDATE plan_use SET databases = databases - 1 WHERE tenant_id = OLD.tenant_id AND plan = OLD.plan;
END;

-- The command finds databases by name, whoever's they are.
CREATE INDEX databases_by_name ON databases (name);
