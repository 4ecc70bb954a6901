//! dormouse-images
