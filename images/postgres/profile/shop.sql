-- A shop: customers, products, orders of theirs, and what was ordered.
CREATE TABLE customer (
    id bigserial PRIMARY KEY,
    email text UNIQUE NOT NULL,
    name varchar(80),
    attributes jsonb NOT NULL DEFAULT '{}',
    since timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE product (
    id serial PRIMARY KEY,
    sku text UNIQUE NOT NULL,
    price numeric(10, 2) NOT NULL,
    stock int NOT NULL CHECK (stock >= 0),
    tags text[],
    description text
);
CREATE TABLE purchase (
    id bigserial PRIMARY KEY,
    customer bigint NOT NULL REFERENCES customer,
    at timestamptz NOT NULL DEFAULT now(),
    state text NOT NULL DEFAULT 'new' CHECK (state IN ('new', 'paid', 'sent'))
);
CREATE TABLE item (
    purchase bigint REFERENCES purchase ON DELETE CASCADE,
    product int REFERENCES product,
    count int NOT NULL,
    price numeric(10, 2) NOT NULL,
    PRIMARY KEY (purchase, product)
);
INSERT INTO customer (email, name, attributes, since)
SELECT 'u' || i || '@example.com', initcap(md5(i::text)), jsonb_build_object('age', i % 90, 'city', 'c' || i % 50),
    timestamptz '2024-01-01' + i * interval '7 minutes'
FROM generate_series(1, 20000) i;
INSERT INTO product (sku, price, stock, tags, description)
SELECT 'sku-' || i, (i * 37 % 10000 + 1) / 100.0, 1000000, ARRAY['t' || i % 7, 't' || i % 11], (
        SELECT string_agg(word[1 + (i * n * 31) % array_length(word, 1)], ' ')
        FROM generate_series(1, 1 + i % 20) n
    )
FROM generate_series(1, 2000) i, (VALUES (string_to_array(
    'comfortable running shoes lightly waterproofed made of organic cotton and recycled materials for mountaineers '
    'who are travelling in winter easily washed beautifully stitched by hand with reinforced heels', ' '))) words (word);
INSERT INTO purchase (customer, at, state)
SELECT 1 + i * 7919 % 20000, timestamptz '2025-01-01' + i * interval '1 minute', (ARRAY['new', 'paid', 'sent'])[1 + i % 3]
FROM generate_series(1, 30000) i;
INSERT INTO item
SELECT p.id, 1 + p.id * n * 13 % 2000, n, n * 1.5
FROM purchase p, generate_series(1, 3) n
ON CONFLICT DO NOTHING;
CREATE TABLE copied (LIKE item INCLUDING ALL);
CREATE INDEX ON purchase (customer, at);
CREATE INDEX ON customer USING gin (attributes);
CREATE INDEX ON product USING gin (to_tsvector('english', description));
CREATE FUNCTION spent(who bigint) RETURNS numeric LANGUAGE plpgsql AS $$
DECLARE
    row record;
    sum numeric := 0;
BEGIN
    FOR row IN SELECT i.price, i.count FROM purchase p JOIN item i ON i.purchase = p.id WHERE p.customer = who LOOP
        sum := sum + row.price * row.count;
    END LOOP;
    RETURN sum;
END $$;
ANALYZE;
