//! Files that are made once and found again by the hash of what went into them. Shared by the build script and `host.rs`.

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

/// The folder called `name` in `$ROTA_CACHE`, else `$XDG_CACHE_HOME/rota`, else `~/.cache/rota`; made if it is not there.
pub fn folder(name: &str) -> io::Result<PathBuf> {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let path = set("ROTA_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|path| path.join("rota")))
        .or_else(|| set("HOME").map(|path| path.join(".cache/rota")))
        .unwrap_or_else(|| env::temp_dir().join("rota"))
        .join(name);
    fs::create_dir_all(&path)?;
    Ok(path)
}

/// Has `make` write the file beside `path` unless that exists, then renames it: nobody ever sees half of it. `wrong` says what a
/// rename that fails is to the caller.
pub fn once<E>(
    path: &Path,
    make: impl FnOnce(&Path) -> Result<(), E>,
    wrong: impl FnOnce(io::Error) -> E,
) -> Result<(), E> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    if path.exists() {
        return Ok(());
    }
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let extension = path.extension().unwrap_or_default().to_string_lossy();
    let part = path.with_extension(format!("{}-{number}.{extension}", process::id()));
    make(&part).inspect_err(|_| drop(fs::remove_file(&part)))?;
    fs::rename(&part, path).map_err(wrong)
}

/// Files of one kind in a folder, by name; none where there is no such folder.
pub fn files(place: &Path, extension: &str) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(place) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    found.retain(|path| path.extension().is_some_and(|found| found == extension));
    found.sort();
    Ok(found)
}

/// The hash of these files' contents and names.
pub fn content(paths: &[PathBuf]) -> io::Result<Hash> {
    let mut hash = Hash::new();
    for path in paths {
        hash.add(path.file_name().unwrap_or_default().as_encoded_bytes());
        hash.add(
            &fs::read(path).map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?,
        );
    }
    Ok(hash)
}

/// What to say of a source that was edited under the compiler: what it made must not be kept under the hash of what was read before.
pub const CHANGED: &str = "changed while it was compiled; build again";

/// 128 bits of FNV-1a: names of files in a cache of our own, no defence against anybody.
#[derive(Clone, PartialEq, Eq)]
pub struct Hash(u128);

impl Hash {
    /// Of nothing yet.
    pub fn new() -> Hash {
        Hash(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d)
    }

    /// `bytes` and their number, so that two strings differ from their concatenation.
    pub fn add(&mut self, bytes: &[u8]) {
        for &byte in bytes.iter().chain(&(bytes.len() as u64).to_le_bytes()) {
            self.0 = (self.0 ^ u128::from(byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b);
        }
    }

    /// As a file's name.
    pub fn hex(&self) -> String {
        format!("{:032x}", self.0)
    }
}
