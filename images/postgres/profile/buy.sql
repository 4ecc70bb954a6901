-- Somebody buys a thing and pays.
\set customer random(1, 20000)
\set product random(1, 2000)
\set count random(1, 5)
BEGIN;
SELECT price FROM product WHERE id = :product;
UPDATE product SET stock = stock - :count WHERE id = :product;
INSERT INTO purchase (customer) VALUES (:customer) RETURNING id AS purchase \gset
INSERT INTO item SELECT :purchase, id, :count, price FROM product WHERE id = :product;
UPDATE purchase SET state = 'paid' WHERE id = :purchase;
UPDATE customer SET attributes = attributes || '{"bought": true}' WHERE id = :customer;
COMMIT;
