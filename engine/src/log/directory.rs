//! The data directory: who uses it, whose it is, and how often it was started.

use std::fs;
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Version of `roost.json`.
const VERSION: u32 = 1;

/// What `roost.json` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Version of the directory.
    pub format: u32,
    /// Number of partitions.
    pub partitions: u32,
    /// Key of the hash, 32 hexadecimal digits.
    pub key: String,
    /// One more with each start.
    pub incarnation: u32,
    /// Address of the first record of the last complete checkpoint.
    pub checkpoint: Option<u64>,
    /// Number of the newest segment: if it is not there, it was lost.
    #[serde(default)]
    pub newest: u32,
    /// CRC-32C of the rest.
    #[serde(default)]
    pub check: u32,
}

/// A data directory that this process has locked.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    _lock: fs::File,
}

fn at(path: &Path, what: &str, e: &io::Error) -> String {
    format!("{}: {what}: {e}", path.display())
}

/// The directory's own name lies in its parent: without this a power cut may take away all that is in it.
fn sync_name(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // a parent that may not be read was not changed by us
    fs::File::open(parent).map_or(Ok(()), |parent| parent.sync_all())
}

impl Directory {
    /// Makes the directory if needed and locks it.
    ///
    /// # Errors
    /// It cannot be made or written, or another process uses it (the text names the pid).
    pub fn open(path: &Path) -> Result<Self, String> {
        let made = fs::create_dir_all(path.join("log")).and_then(|()| sync_name(path));
        made.map_err(|e| at(path, "cannot make the data directory", &e))?;
        let name = path.join("lock");
        let mut options = fs::OpenOptions::new();
        let opened = options.read(true).write(true).create(true).truncate(false).open(&name);
        let mut lock = opened.map_err(|e| at(&name, "cannot write to the data directory", &e))?;
        if lock.try_lock().is_err() {
            let mut pid = String::new();
            let _ = lock.read_to_string(&mut pid);
            return Err(format!(
                "{}: the data directory is in use by process {}; stop that broker, or use another --data DIR",
                path.display(),
                pid.trim()
            ));
        }
        let written = lock.set_len(0).and_then(|()| lock.rewind());
        let written = written.and_then(|()| write!(lock, "{}", std::process::id()));
        written.map_err(|e| at(&name, "cannot write", &e))?;
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder of the segments.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.path.join("log")
    }

    /// What `roost.json` says; `None` in a new directory.
    ///
    /// # Errors
    /// It cannot be read, or was written by a newer version.
    pub fn identity(&self) -> Result<Option<Identity>, String> {
        Self::identity_at(&self.path)
    }

    /// The same of a directory that is not locked.
    ///
    /// # Errors
    /// As [`Self::identity`].
    pub fn identity_at(path: &Path) -> Result<Option<Identity>, String> {
        let name = path.join("roost.json");
        let text = match fs::read_to_string(&name) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(at(&name, "cannot read", &e)),
        };
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        if let Some(format) = serde_json::from_str::<Format>(&text).ok().map(|f| f.format).filter(|f| *f > VERSION) {
            return Err(format!(
                "{}: the data directory has version {format}, this program knows {VERSION}: use a newer roost",
                name.display()
            ));
        }
        let damaged = |what: &str| {
            format!(
                "{}: damaged: {what}; bring it back from a backup, or begin with an empty directory (`roost data import`)",
                name.display()
            )
        };
        let identity: Identity = serde_json::from_str(&text).map_err(|e| damaged(&e.to_string()))?;
        if identity.check == identity.crc() { Ok(Some(identity)) } else { Err(damaged("its check is wrong")) }
    }

    /// Writes `roost.json` so that the old or the new one is there, whatever happens.
    ///
    /// # Errors
    /// As the operating system says.
    pub fn set_identity(&self, identity: &Identity) -> io::Result<()> {
        let identity = Identity { check: identity.crc(), ..identity.clone() };
        let text = serde_json::to_vec_pretty(&identity).map_err(io::Error::other)?;
        self.folder().replace("roost.json", &text)
    }

    /// The folder, to replace files in it.
    #[must_use]
    pub fn folder(&self) -> Folder {
        Folder { path: self.path.clone() }
    }

    /// Reads a file of the directory, if it is there.
    #[must_use]
    pub fn read(&self, name: &str) -> Option<Vec<u8>> {
        fs::read(self.path.join(name)).ok()
    }
}

/// Where files are replaced as a whole.
#[derive(Debug, Clone)]
pub struct Folder {
    path: PathBuf,
}

impl Folder {
    /// Replaces a file as a whole: the old or the new one is there, whatever happens.
    ///
    /// # Errors
    /// As the operating system says.
    pub fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let temporary = self.path.join(format!("{name}.new"));
        let mut file = fs::File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, self.path.join(name))?;
        fs::File::open(&self.path)?.sync_all()
    }
}

impl Identity {
    /// Of a new directory.
    #[must_use]
    pub const fn new(partitions: u32, key: String) -> Self {
        Self { format: VERSION, partitions, key, incarnation: 0, checkpoint: None, newest: 0, check: 0 }
    }

    fn crc(&self) -> u32 {
        let rest = Self { check: 0, ..self.clone() };
        serde_json::to_vec(&rest).map_or(0, |bytes| crc32c::crc32c(&bytes))
    }
}
