//! Ids and names: what a database, a tenant, a role may be called.
//!
//! A value of one of these types has been checked, so it may become a path, a command-line argument or a log
//! line as it is.

use std::fmt;

use crate::secret::{RandomError, random_text};

/// Characters of an id after its prefix.
const ID_LEN: usize = 20;
const ID_ALPHABET: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789";

/// A name that cannot be used, and why.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0}")]
pub struct NameError(String);

/// `db_` and 20 characters of `[a-z0-9]`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DatabaseId(String);

impl DatabaseId {
    pub fn random() -> Result<Self, RandomError> {
        Ok(Self(format!("db_{}", random_text(ID_LEN, ID_ALPHABET)?)))
    }

    /// The id, if `text` is one.
    pub fn parse(text: &str) -> Option<Self> {
        is_id(text, "db_").then(|| Self(text.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// `tn_` and 20 characters of `[a-z0-9]`, or [`TenantId::default_tenant`].
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TenantId(String);

/// The name of the tenant that owns what the operator creates.
pub const DEFAULT_TENANT: &str = "default";

impl TenantId {
    pub fn random() -> Result<Self, RandomError> {
        Ok(Self(format!("tn_{}", random_text(ID_LEN, ID_ALPHABET)?)))
    }

    /// The tenant of the operator's own databases; the first migration makes it.
    pub fn default_tenant() -> Self {
        Self("tn_default".into())
    }

    pub fn parse(text: &str) -> Option<Self> {
        (is_id(text, "tn_") || text == "tn_default").then(|| Self(text.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

macro_rules! text_like {
    ($($t:ty),*) => {$(
        impl fmt::Display for $t {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Debug for $t {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    )*};
}
text_like!(DatabaseId, TenantId);

fn is_id(text: &str, prefix: &str) -> bool {
    text.strip_prefix(prefix)
        .is_some_and(|rest| rest.len() == ID_LEN && rest.bytes().all(|b| ID_ALPHABET.contains(&b)))
}

/// Checks a database's or tenant's name: 1–63 of `[a-z0-9-]`.
pub fn check_name(name: &str) -> Result<(), NameError> {
    if name.is_empty() {
        return Err(NameError("must not be empty".into()));
    }
    if let Some(c) = name.chars().find(|c| !matches!(c, 'a'..='z' | '0'..='9' | '-')) {
        return Err(NameError(format!(
            "may have only the letters a-z, digits and hyphens; {c:?} is none of them"
        )));
    }
    if name.len() > 63 {
        return Err(NameError(format!("may have at most 63 characters; this has {}", name.len())));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_1_to_63_of_a_to_z_digits_and_hyphens() {
        let long = "a".repeat(63);
        for good in ["a", "hello", "0", "-", "a-b-3", &long] {
            assert_eq!(check_name(good), Ok(()), "{good}");
        }
        let too_long = "a".repeat(64);
        for bad in ["", "A", "a_b", "a b", "é", "a.b", "../x", "a\n", "a\0", &too_long] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn ids_are_parsed_only_as_they_are_made() {
        let id = DatabaseId::random().unwrap();
        assert_eq!(DatabaseId::parse(id.as_str()), Some(id.clone()));
        assert_ne!(DatabaseId::random().unwrap(), id);
        for bad in ["", "db_", "db_ABCDEFGHIJKLMNOPQRST", "db_../../../../etc/passw", "tn_aaaaaaaaaaaaaaaaaaaa", "db_aaaaaaaaaaaaaaaaaaaaa"] {
            assert_eq!(DatabaseId::parse(bad), None, "{bad}");
        }
        assert!(TenantId::parse(TenantId::default_tenant().as_str()).is_some());
        assert!(TenantId::parse(TenantId::random().unwrap().as_str()).is_some());
    }
}
