-- Somebody looks at the shop.
\set customer random(1, 20000)
\set product random(1, 2000)
SELECT id, name, attributes FROM customer WHERE id = :customer;
SELECT sku, price, stock FROM product WHERE id = :product;
SELECT p.id, p.at, p.state, count(*), sum(i.count * i.price)
FROM purchase p JOIN item i ON i.purchase = p.id
WHERE p.customer = :customer GROUP BY p.id ORDER BY p.at DESC LIMIT 10;
