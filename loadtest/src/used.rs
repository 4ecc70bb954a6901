//! Databases as an application leaves them: what is timed or weighed is one of these, never an empty one.

use std::hash::{BuildHasher, Hasher, RandomState};

use crate::client::{Client, ClientError, Target};
use crate::rest::{Created, Rest, RestError};

/// Rows of the largest table.
pub const ROWS: usize = 1000;
/// Sessions that each has had before it is measured, with a sleep after each.
const SESSIONS: usize = 3;

/// A schema as small applications have them.
const SCHEMA: &str = "
    create schema shop;
    create table shop.customer (id int primary key, name text not null, email text unique, since timestamptz default now());
    create table shop.item (id int primary key, name text not null, price numeric(10,2) not null, tags jsonb default '{}');
    create table shop.sale (id bigserial primary key, customer int references shop.customer, item int references shop.item,
                            quantity int not null check (quantity > 0), at timestamptz default now());
    create index on shop.sale (customer);
    create index on shop.item (name);
    create view shop.spent as select customer, sum(quantity * price) as total
        from shop.sale join shop.item on item.id = item group by customer;
    insert into shop.customer (id, name, email)
        select n, 'customer ' || n, 'c' || n || '@example.org' from generate_series(1, 200) n;
    insert into shop.item (id, name, price) select n, md5(n::text), n % 90 + 0.99 from generate_series(1, 300) n;
    insert into shop.sale (customer, item, quantity)
        select n % 200 + 1, n % 300 + 1, n % 5 + 1 from generate_series(1, 1000) n;";

/// What each session does.
const SESSION: [&str; 4] = [
    "select id, name from shop.customer where email = 'c77@example.org'",
    "insert into shop.sale (customer, item, quantity) values (77, 42, 1)",
    "update shop.item set price = price + 0.01 where id = 42",
    "select total from shop.spent where customer = 77",
];

/// Makes one that sleeps; `sleepless`: not by itself.
pub fn create(rest: &Rest, name: &str, sleepless: bool) -> Result<Created, RestError> {
    let created = match sleepless {
        true => rest.create_sleepless(name, "free")?,
        false => rest.create(name)?,
    };
    begin(rest, &created.target()?, &created.database.id, SESSIONS)?;
    Ok(created)
}

/// Uses a new one in so many sessions, and has it sleep after each.
pub fn begin(rest: &Rest, target: &Target, id: &str, sessions: usize) -> Result<(), RestError> {
    let failed = |source| RestError::Client { id: id.to_owned(), source };
    for session in 0..sessions {
        let mut client = Client::connect(target).map_err(failed)?;
        if session == 0 {
            client.query(SCHEMA).map_err(failed)?;
        }
        for sql in SESSION {
            client.query(sql).map_err(failed)?;
        }
        client.close().map_err(failed)?;
        rest.suspend(id)?;
    }
    Ok(())
}

/// The first query of a wake: a row found by an index, and checked.
pub fn first_query(row: usize) -> (String, String) {
    let row = row % ROWS + 1;
    let (customer, item) = (row % 200 + 1, row % 300 + 1);
    (format!("select customer || ',' || item from shop.sale where id = {row}"), format!("{customer},{item}"))
}

/// Whether the rows are what they were made as.
pub fn is_whole(client: &mut Client) -> Result<bool, ClientError> {
    Ok(client.value("select count(*) from shop.sale where id <= 1000")? == ROWS.to_string())
}

/// A number to choose by, another each time.
pub fn random() -> usize {
    RandomState::new().build_hasher().finish() as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_query_names_a_row_that_was_made() {
        let (sql, answer) = first_query(ROWS + 41);
        assert!(sql.ends_with("where id = 42"));
        // As SCHEMA makes it: n % 200 + 1, n % 300 + 1.
        assert_eq!(answer, "43,43");
        assert!(first_query(ROWS - 1).0.ends_with("where id = 1000"));
    }
}
