//! dormouse-api
