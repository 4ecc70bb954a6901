//! dormouse-pooler
