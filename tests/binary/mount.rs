//! A small file system of its own for a test, where the test may mount one.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// A file system of its own, for as long as this lives.
pub struct Mount(TempDir);

impl Mount {
    /// `None` if nothing can be mounted here, which is said.
    pub fn tmpfs(options: &str) -> Option<Self> {
        Self::with(&["-t", "tmpfs", "-o", options, "roadstead-test"])
    }

    /// A directory a second time: the same file system, and no hard link leads across.
    pub fn bind(directory: &Path) -> Option<Self> {
        Self::with(&["--bind", directory.to_str().unwrap()])
    }

    fn with(arguments: &[&str]) -> Option<Self> {
        let left_out = |why: &str| {
            writeln!(io::stderr(), "left out: a file system of a test ({why})")
                .expect("stderr takes a line");
        };
        if !rustix::process::geteuid().is_root() {
            left_out("not root");
            return None;
        }
        let mount = Self(TempDir::new().unwrap());
        fs::create_dir(mount.point()).unwrap();
        let mut command = Command::new("mount");
        command.args(arguments).arg(mount.point());
        let mounted = command.output().unwrap();
        if mounted.status.success() {
            return Some(mount);
        }
        left_out(String::from_utf8_lossy(&mounted.stderr).trim());
        None
    }

    pub fn point(&self) -> PathBuf {
        self.0.path().join("small")
    }

    pub fn at(&self, name: &str) -> String {
        self.point().join(name).to_str().unwrap().to_owned()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("--lazy").arg(self.point()).output());
    }
}
