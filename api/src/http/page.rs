//! Pages of a list: a cursor that says where the next one starts.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;

use super::problem::Problem;
use crate::metadata::Page;

/// Rows of a page unless the client says.
const DEFAULT: i64 = 100;
const MOST: i64 = 1000;

/// Reads `limit` and `cursor`. The page asks for one row more than the limit, which tells if there is a next.
pub fn page(limit: Option<i64>, cursor: Option<&str>) -> Result<Page, Problem> {
    let limit = limit.unwrap_or(DEFAULT);
    if !(1..=MOST).contains(&limit) {
        return Err(Problem::invalid("limit", format!("must be from 1 to {MOST}")));
    }
    let after = match cursor {
        None => 0,
        Some(cursor) => read(cursor).ok_or_else(|| Problem::invalid("cursor", "is not one that a list gave"))?,
    };
    Ok(Page { after, limit: limit + 1 })
}

/// Cuts the rows to the page, and makes the cursor of the next one if there is one.
pub fn cut<T>(rows: &mut Vec<T>, page: Page, seq: impl Fn(&T) -> i64) -> Option<String> {
    let limit = usize::try_from(page.limit - 1).unwrap_or_default();
    if rows.len() <= limit {
        return None;
    }
    rows.truncate(limit);
    rows.last().map(|row| BASE64.encode(format!("after:{}", seq(row))))
}

fn read(cursor: &str) -> Option<i64> {
    let text = String::from_utf8(BASE64.decode(cursor).ok()?).ok()?;
    text.strip_prefix("after:")?.parse().ok().filter(|n| *n >= 0)
}
