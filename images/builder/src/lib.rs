//! Images: what a database's virtual machine is made of.
//!
//! ```text
//!  images/postgres/recipe.sh ─▶ postgres.elf, boot.cpio, template ─┐
//!  images/kernel (cargo) ─────▶ kernel.elf ────────────────────────┼─▶ DORMOUSE_HOME/images/IMAGE, templates/TEMPLATE
//!  the VMM, once a memory size ▶ golden/MIB ───────────────────────┘   images/current-MAJOR ─▶ IMAGE
//! ```
//!
//! - [`manifest`] is the type of `image.json`, for who runs images;
//! - [`store`] knows the folders under `DORMOUSE_HOME`, lists what is there and collects what nobody needs;
//! - [`build()`] runs the recipes and packs the result;
//! - [`bake_and_rehearse`] has the VMM make a golden snapshot, and notes what a clone of it changes.
//!
//! Promises: an image and a template are named by the hash of their content, appear whole or not at all, and are
//! never changed; a build adds one and switches `current-MAJOR`, and never touches another. Nothing is removed but by
//! [`store::Store::collect`], which keeps what it is told is in use. Refuses to build twice at once in one tree.

mod build;
mod golden;
mod hash;
pub mod manifest;
mod recipe;
mod rehearse;
pub mod store;
mod tree;

/// The major version of PostgreSQL that is built, and that databases are made of, unless another is asked for.
pub const DEFAULT_MAJOR: u32 = 17;

pub use build::{BuildError, BuildOptions, Built, build};
pub use golden::GoldenError;
pub use hash::tree_hash;
pub use manifest::Manifest;
pub use recipe::RecipeError;
pub use rehearse::bake_and_rehearse;
