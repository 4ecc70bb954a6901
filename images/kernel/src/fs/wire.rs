//! The FUSE protocol's messages, as laid out by Linux' `include/uapi/linux/fuse.h`, protocol 7.31.
//!
//! Only what this client sends or reads. All fields are little-endian, all structures free of padding; sizes are
//! checked at compile time.

/// Protocol version this client speaks. Servers with a lower minor are refused.
pub const MAJOR: u32 = 7;
pub const MINOR: u32 = 31;
/// Node id of the share's root.
pub const ROOT: u64 = 1;

/// Request codes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Opcode {
    Lookup = 1,
    GetAttr = 3,
    SetAttr = 4,
    ReadLink = 5,
    Symlink = 6,
    MkDir = 9,
    Unlink = 10,
    RmDir = 11,
    Rename = 12,
    Link = 13,
    Read = 15,
    Write = 16,
    StatFs = 17,
    FSync = 20,
    Init = 26,
    ReadDir = 28,
    FSyncDir = 30,
    Create = 35,
    BatchForget = 42,
    FAllocate = 43,
    SyncFs = 50,
}

/// `FUSE_INIT` flags asked for. What is left out matters as much: no writeback cache, no privileges killed by the
/// server, no locks, no ACLs, no READDIRPLUS.
pub mod flags {
    pub const ATOMIC_O_TRUNC: u32 = 1 << 3;
    pub const BIG_WRITES: u32 = 1 << 5;
    /// Reads and writes of any node at once are fine (there is one request at a time anyway).
    pub const ASYNC_DIO: u32 = 1 << 15;
    pub const NO_OPEN_SUPPORT: u32 = 1 << 17;
    pub const MAX_PAGES: u32 = 1 << 22;
    pub const NO_OPENDIR_SUPPORT: u32 = 1 << 24;
    pub const WANTED: u32 = ATOMIC_O_TRUNC | BIG_WRITES | ASYNC_DIO | NO_OPEN_SUPPORT | MAX_PAGES | NO_OPENDIR_SUPPORT;
}

/// `fuse_setattr_in::valid` bits.
pub mod valid {
    pub const SIZE: u32 = 1 << 3;
    pub const ATIME: u32 = 1 << 4;
    pub const MTIME: u32 = 1 << 5;
}

/// `fuse_fsync_in::fsync_flags`: content and length only, as `fdatasync`.
pub const FSYNC_DATA: u32 = 1;
/// Ours, not Linux': this client does other things until the answer comes.
pub const FSYNC_LATER: u32 = 1 << 31;

/// `fuse_fallocate_in::mode`: the file's length stays.
pub const FALLOCATE_KEEP_SIZE: u32 = 1;
/// Ours, not Linux': refused where a write would still need room, since the bytes are the template's. Answered by [`RoomOut`].
pub const FALLOCATE_OWN: u32 = 1 << 31;

/// A message or a part of one, as bytes.
///
/// # Safety
/// The type is `repr(C)`, has no padding, and every bit pattern of its size is a value of it.
pub unsafe trait Wire: Copy + Default {
    fn bytes(&self) -> &[u8] {
        // SAFETY: no padding, so every byte is initialised.
        unsafe { core::slice::from_raw_parts(core::ptr::from_ref(self).cast(), size_of::<Self>()) }
    }

    /// From the beginning of `bytes`; what is missing there is zero, as for an older peer's shorter message.
    fn parse(bytes: &[u8]) -> Self {
        let mut value = Self::default();
        let len = bytes.len().min(size_of::<Self>());
        // SAFETY: every bit pattern is a value; `len` fits both sides.
        unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), (&raw mut value).cast(), len) };
        value
    }
}

macro_rules! message {
    ($(#[$doc:meta])* $name:ident, $size:literal { $($field:ident: $type:ty),* $(,)? }) => {
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Default, Debug)]
        pub struct $name { $(pub $field: $type),* }
        const _: () = {
            assert!(size_of::<$name>() == $size);
            // No padding: the fields alone have the size.
            assert!(0 $(+ size_of::<$type>())* == $size);
        };
        // SAFETY: repr(C) of integers, without padding by the assertion above.
        unsafe impl Wire for $name {}
    };
}

message!(
    /// `fuse_in_header`.
    InHeader, 40 {
        len: u32, opcode: u32, unique: u64, node: u64, uid: u32, gid: u32, pid: u32, extensions: u32,
    }
);
message!(
    /// `fuse_out_header`; `error` is 0 or a negated errno.
    OutHeader, 16 { len: u32, error: i32, unique: u64 }
);
message!(
    /// `fuse_attr`; times in seconds and ns.
    Attr, 88 {
        ino: u64, size: u64, blocks: u64, atime: u64, mtime: u64, ctime: u64, atime_ns: u32, mtime_ns: u32,
        ctime_ns: u32, mode: u32, nlink: u32, uid: u32, gid: u32, rdev: u32, block_size: u32, flags: u32,
    }
);
message!(
    /// `fuse_entry_out`: a node id, and one lookup of it to be forgotten later.
    EntryOut, 128 {
        node: u64, generation: u64, entry_valid: u64, attr_valid: u64, entry_valid_ns: u32, attr_valid_ns: u32,
        attr: Attr,
    }
);
message!(
    /// `fuse_attr_out`.
    AttrOut, 104 { attr_valid: u64, attr_valid_ns: u32, dummy: u32, attr: Attr }
);
message!(
    /// `fuse_init_in`.
    InitIn, 64 {
        major: u32, minor: u32, max_readahead: u32, flags: u32, flags2: u32, unused: [u32; 11],
    }
);
message!(
    /// `fuse_init_out`.
    InitOut, 64 {
        major: u32, minor: u32, max_readahead: u32, flags: u32, max_background: u16, congestion_threshold: u16,
        max_write: u32, time_granularity: u32, max_pages: u16, map_alignment: u16, flags2: u32, unused: [u32; 7],
    }
);
message!(
    /// `fuse_getattr_in`.
    GetAttrIn, 16 { flags: u32, dummy: u32, handle: u64 }
);
message!(
    /// `fuse_setattr_in`; `valid` says which fields count.
    SetAttrIn, 88 {
        valid: u32, padding: u32, handle: u64, size: u64, lock_owner: u64, atime: u64, mtime: u64, ctime: u64,
        atime_ns: u32, mtime_ns: u32, ctime_ns: u32, mode: u32, unused4: u32, uid: u32, gid: u32, unused5: u32,
    }
);
message!(
    /// `fuse_read_in`, for READ and READDIR.
    ReadIn, 40 {
        handle: u64, offset: u64, size: u32, read_flags: u32, lock_owner: u64, flags: u32, padding: u32,
    }
);
message!(
    /// `fuse_write_in`; the data follows.
    WriteIn, 40 {
        handle: u64, offset: u64, size: u32, write_flags: u32, lock_owner: u64, flags: u32, padding: u32,
    }
);
message!(
    /// `fuse_write_out`.
    WriteOut, 8 { size: u32, padding: u32 }
);
message!(
    /// `fuse_create_in`; the name follows. Answered by [`EntryOut`] and [`OpenOut`].
    CreateIn, 16 { flags: u32, mode: u32, umask: u32, open_flags: u32 }
);
message!(
    /// `fuse_open_out`.
    OpenOut, 16 { handle: u64, open_flags: u32, padding: u32 }
);
message!(
    /// [`EntryOut`] and [`OpenOut`]: what CREATE answers.
    CreateOut, 144 { entry: EntryOut, open: OpenOut }
);
message!(
    /// `fuse_mkdir_in`; the name follows.
    MkDirIn, 8 { mode: u32, umask: u32 }
);
message!(
    /// `fuse_rename_in`; old name and new name follow.
    RenameIn, 8 { directory: u64 }
);
message!(
    /// `fuse_link_in`; the new name follows.
    LinkIn, 8 { node: u64 }
);
message!(
    /// `fuse_fsync_in`, for FSYNC and FSYNCDIR.
    FSyncIn, 16 { handle: u64, flags: u32, padding: u32 }
);
message!(
    /// `fuse_fallocate_in`.
    FAllocateIn, 32 { handle: u64, offset: u64, len: u64, mode: u32, padding: u32 }
);
message!(
    /// The end of the bytes that have room, from the start of what was asked for.
    RoomOut, 8 { end: u64 }
);
message!(
    /// `fuse_syncfs_in`.
    SyncFsIn, 8 { padding: u64 }
);
message!(
    /// `fuse_batch_forget_in`; `count` times [`ForgetOne`] follow. Never answered.
    BatchForgetIn, 8 { count: u32, dummy: u32 }
);
message!(
    /// `fuse_forget_one`.
    ForgetOne, 16 { node: u64, lookups: u64 }
);
message!(
    /// `fuse_kstatfs`.
    StatFsOut, 80 {
        blocks: u64, free: u64, available: u64, files: u64, files_free: u64, block_size: u32, name_len: u32,
        fragment_size: u32, padding: u32, spare: [u32; 6],
    }
);
message!(
    /// `fuse_dirent`; the name follows, padded to 8 bytes.
    DirEntryOut, 24 { ino: u64, offset: u64, name_len: u32, kind: u32 }
);

/// Bytes that a directory entry with this much of a name takes.
pub fn dirent_len(name: usize) -> usize {
    (size_of::<DirEntryOut>() + name).next_multiple_of(8)
}
