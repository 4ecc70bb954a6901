-- The shop's owner wants reports, changes many rows, and looks after the tables.
\o /dev/null
SELECT count(*), sum(i), avg(i * 1.5), max(i % 1000) FROM generate_series(1, 500000) i;
SELECT i % 1000 AS part, count(*), sum(i::numeric), stddev(i) FROM generate_series(1, 100000) i GROUP BY part ORDER BY 2 DESC, 1 LIMIT 5;
SELECT c.attributes->>'city', count(*), sum(p.price * i.count)
FROM customer c JOIN purchase o ON o.customer = c.id JOIN item i ON i.purchase = o.id JOIN product p ON p.id = i.product
WHERE o.state = 'paid' GROUP BY 1 ORDER BY 3 DESC LIMIT 5;
SELECT customer, at, row_number() OVER (PARTITION BY customer ORDER BY at), sum(1) OVER (ORDER BY at)
FROM purchase ORDER BY at DESC LIMIT 3;
SELECT md5(string_agg(sku, ',' ORDER BY price, sku)) FROM product;
SELECT count(*) FROM product WHERE to_tsvector('english', description) @@ to_tsquery('english', 'shoe & waterproof | travels');
SELECT count(*) FROM customer WHERE attributes @> '{"city": "c7"}';
SELECT count(*) FROM customer WHERE email LIKE '%99@%' OR name ~* '^[a-c].*f$';
SELECT count(*) FROM product WHERE 't3' = ANY (tags);
SELECT date_trunc('day', at), count(DISTINCT customer) FROM purchase GROUP BY 1 HAVING count(*) > 10 ORDER BY 1;
SELECT jsonb_agg(to_jsonb(c)) FROM customer c WHERE id < 2000;
WITH RECURSIVE t(n, s) AS (SELECT 1, 'x' UNION ALL SELECT n + 1, left(s || n, 20) FROM t WHERE n < 5000)
SELECT count(*), max(s) FROM t;
SELECT sum(spent(id)) FROM customer WHERE id <= 3000;
EXPLAIN ANALYZE SELECT * FROM purchase JOIN customer ON customer = customer.id WHERE customer.id BETWEEN 100 AND 300;
DO $$ DECLARE x int := 0; BEGIN FOR i IN 1..200000 LOOP x := (x * 31 + i) % 65537; END LOOP; END $$;
UPDATE customer SET attributes = attributes || '{"seen": true}' WHERE id % 5 = 0;
DELETE FROM purchase WHERE at < '2025-01-03';
COPY customer TO STDOUT (FORMAT csv);
CREATE INDEX ON item (product, count);
BEGIN;
SAVEPOINT before;
INSERT INTO product (sku, price, stock) VALUES ('x', 1, 1);
ROLLBACK TO before;
COMMIT;
VACUUM ANALYZE;
CHECKPOINT;
