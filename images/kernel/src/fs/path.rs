//! Path resolution: from a working directory and a path to a place in the tree.
//!
//! The working directory is a normalised absolute path. Nearly always it is the data directory, from whose node the
//! walk then starts; otherwise its text is put before the path. `..` goes back along the way the walk came, so it is
//! right through links and mounts without nodes knowing their parents.

use super::{Node, Tree};
use crate::errno::{Errno, Result};
use alloc::borrow::Cow;
use alloc::vec::Vec;

/// Bytes of a path.
const PATH_MAX: usize = 4096;
/// Symbolic links followed in one walk.
const LINKS_MAX: usize = 40;

/// What to do with the last name of a path.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Last {
    /// Look it up, and follow it if it is a link.
    Follow,
    /// Look it up.
    Keep,
    /// Leave it alone: it is only a name in its directory.
    Parent,
}

/// Where a walk ended.
pub struct Place<'a> {
    /// The directory that holds the name.
    pub directory: Node,
    /// The last name; `None` for paths that end in `/`, `.` or `..` of a directory, which is then both `directory`
    /// and `node`.
    pub name: Option<Cow<'a, [u8]>>,
    /// What has the name, if anything, and if it was asked for.
    pub node: Option<Node>,
    /// Slashes followed the name: it must be a directory.
    pub slash: bool,
}

impl Place<'_> {
    /// The node, or ENOENT.
    pub fn found(self) -> Result<Node> {
        self.node.ok_or(Errno::ENOENT)
    }

    /// The name, or the error for an operation on a directory by `.`, `..` or `/`.
    pub fn named(&self, otherwise: Errno) -> Result<&[u8]> {
        self.name.as_deref().ok_or(otherwise)
    }
}

impl Tree {
    pub fn walk<'a>(&self, cwd: &[u8], path: &'a [u8], last: Last) -> Result<Place<'a>> {
        // One list of the way here serves all walks: no allocation for the commonest.
        let mut way = self.way.take();
        let result = self.walk_along(&mut way, cwd, path, last);
        way.clear();
        self.way.replace(way);
        result
    }

    fn walk_along<'a>(&self, way: &mut Vec<Node>, cwd: &[u8], path: &'a [u8], last: Last) -> Result<Place<'a>> {
        if path.is_empty() {
            return Err(Errno::ENOENT);
        }
        if path.len() >= PATH_MAX {
            return Err(Errno::ENAMETOOLONG);
        }
        let mut text = Cow::Borrowed(path);
        way.push(self.root.clone());
        if path[0] != b'/' {
            if cwd == dormouse_abi::DATA_MOUNT.as_bytes() {
                way.push(self.data.clone());
            } else {
                text = Cow::Owned([cwd, b"/", path].concat());
            }
        }
        let mut at = 0;
        let mut links = 0;
        loop {
            let start = skip(&text, at, true);
            let end = skip(&text, start, false);
            let next = skip(&text, end, true);
            let directory = way[way.len() - 1].clone();
            if start == end {
                return Ok(Place { node: Some(directory.clone()), directory, name: None, slash: true });
            }
            at = next;
            match &text[start..end] {
                b"." => continue,
                b".." => {
                    if way.len() > 1 {
                        way.pop();
                    }
                    continue;
                }
                _ => {}
            }
            let is_last = next == text.len();
            let slash = is_last && next != end;
            let node = if is_last && last == Last::Parent { None } else { directory.lookup(&text[start..end])? };
            let follow = !is_last || slash || last == Last::Follow;
            if let Some(link) = node.as_ref().filter(|node| follow && node.is_link()) {
                links += 1;
                if links > LINKS_MAX {
                    return Err(Errno::ELOOP);
                }
                let target = link.readlink()?;
                if target.is_empty() {
                    return Err(Errno::ENOENT);
                }
                if target[0] == b'/' {
                    way.truncate(1);
                }
                text = Cow::Owned([target, &text[end..]].concat());
                at = 0;
                continue;
            }
            if is_last {
                if slash && node.as_ref().is_some_and(|node| !node.is_directory()) {
                    return Err(Errno::ENOTDIR);
                }
                let directory = directory.holder(&text[start..end]);
                let name = match text {
                    Cow::Borrowed(text) => Cow::Borrowed(&text[start..end]),
                    Cow::Owned(text) => Cow::Owned(text[start..end].to_vec()),
                };
                return Ok(Place { directory, name: Some(name), node, slash });
            }
            let node = node.ok_or(Errno::ENOENT)?;
            if !node.is_directory() {
                return Err(Errno::ENOTDIR);
            }
            way.push(node);
        }
    }
}

/// The first position from `at` whose byte is not a slash (`slashes`), or is one.
fn skip(text: &[u8], at: usize, slashes: bool) -> usize {
    text[at..].iter().position(|&byte| (byte == b'/') != slashes).map_or(text.len(), |found| at + found)
}

/// `path` seen from `cwd`, absolute, without `.`, `..` and doubled slashes. Links are not looked at.
pub fn normalise(cwd: &[u8], path: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(cwd.len() + path.len() + 1);
    let from = if path.first() == Some(&b'/') { &b""[..] } else { cwd };
    for part in from.split(|&byte| byte == b'/').chain(path.split(|&byte| byte == b'/')) {
        match part {
            b"" | b"." => {}
            b".." => out.truncate(out.iter().rposition(|&byte| byte == b'/').unwrap_or(0)),
            _ => {
                out.push(b'/');
                out.extend_from_slice(part);
            }
        }
    }
    if out.is_empty() {
        out.push(b'/');
    }
    out
}
