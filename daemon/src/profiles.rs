//! Profiles that were measured before, one JSON file each, so that a daemon starts without measuring again.

mod given;

pub use given::Given;

use rota_device::Shape;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

/// Where profiles are kept. `None`: nowhere, each is measured anew.
#[derive(Debug, Clone)]
pub struct Store {
    pub folder: Option<PathBuf>,
}

/// What a profile depends on.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Key<'a> {
    /// SHA-256 of the model file.
    pub digest: &'a str,
    /// Engine and version.
    pub engine: &'a str,
    pub threads: usize,
    /// The shape class: per input, the batch axis holding 0.
    #[serde(serialize_with = "as_dims")]
    pub shapes: &'a [Shape],
}

#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    key: serde_json::Value,
    /// Largest batch size that was asked for; the last point may be below it when larger ones took too long.
    max_batch: u32,
    /// (b, ℓ(b) in nanoseconds).
    points: Vec<(u32, u64)>,
}

/// A profile that was measured, whatever for.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// Engine and version.
    pub engine: String,
    pub threads: u64,
    pub points: Vec<(u32, Duration)>,
    written: SystemTime,
}

fn as_dims<S: serde::Serializer>(shapes: &&[Shape], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(shapes.iter().map(Shape::dims))
}

impl Store {
    /// The points measured for `key` up to batch `max_batch`, if they are kept. A file that can't be read is as good as none.
    pub fn read(&self, key: &Key<'_>, max_batch: u32) -> Option<Vec<(u32, Duration)>> {
        let (path, key) = self.place(key)?;
        let kept: Kept = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
        let usable = kept.key == key && kept.max_batch == max_batch && !kept.points.is_empty();
        usable.then(|| kept.points.into_iter().map(|(b, ns)| (b, Duration::from_nanos(ns))).collect())
    }

    pub fn write(&self, key: &Key<'_>, max_batch: u32, points: &[(u32, Duration)]) -> io::Result<()> {
        let Some((path, key)) = self.place(key) else { return Ok(()) };
        let points = points.iter().map(|&(b, latency)| (b, crate::clock::nanos(latency))).collect();
        let kept = serde_json::to_vec_pretty(&Kept { key, max_batch, points })?;
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        // Another daemon may read meanwhile: it sees the old file or the new one.
        let unfinished = path.with_extension(format!("{}.part", std::process::id()));
        fs::write(&unfinished, kept)?;
        fs::rename(unfinished, path)
    }

    /// Every profile of a model file, by its digest, the one written last first. Files that can't be read are left out.
    pub fn of_model(&self, digest: &str) -> Vec<Found> {
        let files = self.folder.iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten();
        let read = |entry: io::Result<fs::DirEntry>| {
            let entry = entry.ok().filter(|entry| entry.path().extension().is_some_and(|end| end == "json"))?;
            let written = entry.metadata().and_then(|metadata| metadata.modified()).ok()?;
            let kept: Kept = serde_json::from_slice(&fs::read(entry.path()).ok()?).ok()?;
            let its = kept.key["digest"] == digest && !kept.points.is_empty();
            its.then(|| Found {
                engine: kept.key["engine"].as_str().unwrap_or("?").to_string(),
                threads: kept.key["threads"].as_u64().unwrap_or(0),
                points: kept.points.into_iter().map(|(b, ns)| (b, Duration::from_nanos(ns))).collect(),
                written,
            })
        };
        let mut found: Vec<Found> = files.filter_map(read).collect();
        found.sort_by(|a, b| b.written.cmp(&a.written).then_with(|| a.engine.cmp(&b.engine)));
        found
    }

    fn place(&self, key: &Key<'_>) -> Option<(PathBuf, serde_json::Value)> {
        let key = serde_json::to_value(key).ok()?;
        let hash = Sha256::digest(key.to_string());
        let name: String = hash[..12].iter().map(|byte| format!("{byte:02x}")).collect();
        Some((self.folder.as_ref()?.join(format!("{name}.json")), key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_found_again_under_its_own_key_only() {
        let folder = std::env::temp_dir().join(format!("rota-profiles-{}", std::process::id()));
        let store = Store { folder: Some(folder.clone()) };
        let shapes = [Shape::new(&[0, 3, 4]).unwrap()];
        let key = Key { digest: "d", engine: "rten", threads: 1, shapes: &shapes };
        let points = [(1, Duration::from_micros(10)), (2, Duration::from_micros(15))];
        assert_eq!(store.read(&key, 2), None);
        store.write(&key, 2, &points).unwrap();
        assert_eq!(store.read(&key, 2).as_deref(), Some(&points[..]));
        assert_eq!(store.read(&key, 4), None);
        assert_eq!(store.read(&Key { threads: 2, ..key }, 2), None);
        let found = store.of_model("d");
        assert_eq!((found.len(), &found[0].engine[..], found[0].threads), (1, "rten", 1));
        assert_eq!(found[0].points, points);
        assert_eq!(store.of_model("e"), []);
        fs::write(store.place(&key).unwrap().0, "{ torn").unwrap();
        assert_eq!(store.of_model("d"), []);
        assert_eq!(store.read(&key, 2), None);
        fs::remove_dir_all(folder).unwrap();
    }
}
