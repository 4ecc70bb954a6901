//! dormouse-loadtest
