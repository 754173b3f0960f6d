//! Which file systems can hold a store.
//!
//! SQLite's write-ahead log needs memory that all processes on the file share, and the store needs locks and renames that mean what
//! they say; network file systems promise neither. FUSE and 9p are let through: local disks come by them too (virtiofs, gVisor,
//! WSL), and the type does not tell.

use std::fmt;

/// A file system's type, from `statfs(2)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileSystem(u32);

/// `f_type` of the file systems that are refused (linux/magic.h and the file systems' own sources).
const NETWORK: [(u32, &str); 14] = [
    (0x0000_6969, "nfs"),
    (0x0000_517B, "smb"),
    (0xFF53_4D42, "cifs"),
    (0xFE53_4D42, "smb2"),
    (0x00C3_6400, "ceph"),
    (0x5346_414F, "afs"),
    (0x6B41_4653, "kafs"),
    (0x7375_7245, "coda"),
    (0x0000_564C, "ncp"),
    (0x0BD0_0BD0, "lustre"),
    (0x4750_4653, "gpfs"),
    (0x1983_0326, "beegfs"),
    (0x2003_0528, "orangefs"),
    (0x0116_1970, "gfs2"),
];

impl FileSystem {
    /// Takes the number as `statfs` reports it.
    pub const fn from_magic(magic: u32) -> Self {
        Self(magic)
    }

    /// The name of a network file system; `None` if the store can live here.
    pub fn network_name(self) -> Option<&'static str> {
        NETWORK.iter().find(|(magic, _)| *magic == self.0).map(|(_, name)| *name)
    }
}

impl fmt::Display for FileSystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.network_name() {
            Some(name) => f.write_str(name),
            None => write!(f, "type {:#x}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn network_file_systems_are_known_by_name_and_local_ones_pass() {
        assert_eq!(FileSystem::from_magic(0x6969).network_name(), Some("nfs"));
        assert_eq!(FileSystem::from_magic(0xFF53_4D42).network_name(), Some("cifs"));
        let local = [0xEF53, 0x5846_5342, 0x9123_683E, 0x0102_1994, 0x794C_7630];
        for magic in local {
            assert_eq!(FileSystem::from_magic(magic).network_name(), None);
        }
        let fuse_and_9p = [0x6573_5546, 0x0102_1997];
        for magic in fuse_and_9p {
            assert_eq!(FileSystem::from_magic(magic).network_name(), None);
        }
    }
}
