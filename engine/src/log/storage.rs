//! The file layer below the log: a folder of files, as little of it as the log needs, so that tests can put a disk in
//! its place that forgets, tears and refuses.

use std::io;
use std::path::PathBuf;

/// An open file.
pub trait File: Send + Sync {
    /// Writes all of the bytes at a place, or fails; how much of them is there after a failure is not known.
    ///
    /// # Errors
    /// As the operating system says.
    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()>;

    /// Reads up to so many bytes from a place; fewer at the end of the file.
    ///
    /// # Errors
    /// As the operating system says.
    fn read_at(&self, len: usize, at: u64) -> io::Result<Vec<u8>>;

    /// What was written is safe when this returns without an error.
    ///
    /// # Errors
    /// As the operating system says; then nothing written since the last success can be relied on.
    fn sync(&self) -> io::Result<()>;

    /// Bytes in the file.
    ///
    /// # Errors
    /// As the operating system says.
    fn len(&self) -> io::Result<u64>;

    /// True without bytes.
    ///
    /// # Errors
    /// As the operating system says.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
}

/// A folder.
pub trait Storage: Send + Sync {
    /// Opens a file, which is made if `create`.
    ///
    /// # Errors
    /// As the operating system says.
    fn open(&self, name: &str, create: bool) -> io::Result<Box<dyn File>>;

    /// Names of all files.
    ///
    /// # Errors
    /// As the operating system says.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Gives a file another name, in place of what had it. Safe after [`Self::sync_names`].
    ///
    /// # Errors
    /// As the operating system says.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file. Safe after [`Self::sync_names`].
    ///
    /// # Errors
    /// As the operating system says.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Names are safe when this returns without an error.
    ///
    /// # Errors
    /// As the operating system says.
    fn sync_names(&self) -> io::Result<()>;
}

/// A folder of the operating system.
#[derive(Debug, Clone)]
pub struct Disk {
    /// Its path.
    pub path: PathBuf,
}

struct OsFile(std::fs::File);

impl File for OsFile {
    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::write_all_at(&self.0, bytes, at)
    }

    fn read_at(&self, len: usize, at: u64) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        let mut got = 0;
        while let Some(rest) = bytes.get_mut(got..).filter(|r| !r.is_empty()) {
            match std::os::unix::fs::FileExt::read_at(&self.0, rest, at + got as u64) {
                Ok(0) => break,
                Ok(n) => got += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        bytes.truncate(got);
        Ok(bytes)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }
}

impl Storage for Disk {
    fn open(&self, name: &str, create: bool) -> io::Result<Box<dyn File>> {
        let mut options = std::fs::OpenOptions::new();
        options.read(true).write(true).create(create);
        let file = options.open(self.path.join(name)).or_else(|e| match e.kind() {
            // what cannot be written may still be read
            io::ErrorKind::PermissionDenied if !create => std::fs::File::open(self.path.join(name)),
            _ => Err(e),
        })?;
        Ok(Box::new(OsFile(file)))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.path)? {
            names.extend(entry?.file_name().into_string().ok());
        }
        Ok(names)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.path.join(from), self.path.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.path.join(name))
    }

    fn sync_names(&self) -> io::Result<()> {
        std::fs::File::open(&self.path)?.sync_all()
    }
}
