//! Where ONNX Runtime's library may lie.

use super::EngineError;
use super::onnxruntime::OnnxRuntime;
use std::path::{Path, PathBuf};

/// Names the library before any other place.
const VARIABLE: &str = "ROTA_ONNXRUNTIME";
/// The folder below which the library of an unpacked release or wheel is looked for.
const FOLDER: &str = "third_party/onnxruntime";
/// How deep below [`FOLDER`]: a wheel has `onnxruntime/capi/`, a release `onnxruntime-linux-x64-1.32.0/lib/`.
const DEPTH_MAX: usize = 4;
/// What the system's loader is asked for.
const SONAMES: [&str; 2] = ["libonnxruntime.so.1", "libonnxruntime.so"];

/// Opens the first library found: the one that the environment names, then below [`FOLDER`] in the current folder and in
/// every folder above the program, then what the system's loader finds.
pub(super) fn open() -> Result<OnnxRuntime, EngineError> {
    if let Some(library) = std::env::var_os(VARIABLE).filter(|value| !value.is_empty()) {
        return OnnxRuntime::open(Path::new(&library));
    }
    let folders = folders();
    if let Some(library) = folders.iter().find_map(|folder| library_below(folder, DEPTH_MAX)) {
        return OnnxRuntime::open(&library);
    }
    for soname in SONAMES {
        match OnnxRuntime::open(Path::new(soname)) {
            Err(EngineError::Unusable { .. }) => continue,
            opened => return opened,
        }
    }
    let looked: Vec<String> = folders.iter().map(|folder| folder.display().to_string()).collect();
    let looked = format!("{} and the system's library path", looked.join(", "));
    Err(EngineError::NotFound { variable: VARIABLE, looked })
}

fn folders() -> Vec<PathBuf> {
    let mut roots: Vec<PathBuf> = std::env::current_dir().into_iter().collect();
    if let Ok(program) = std::env::current_exe() {
        roots.extend(program.ancestors().skip(1).map(Path::to_owned));
    }
    let mut folders: Vec<PathBuf> = Vec::new();
    for root in roots {
        let folder = root.join(FOLDER);
        if folder.is_dir() && !folders.contains(&folder) {
            folders.push(folder);
        }
    }
    if folders.is_empty() { vec![PathBuf::from(FOLDER)] } else { folders }
}

/// The library below `folder`; of several the one whose path sorts last, so that the choice does not depend on the order of
/// a directory.
fn library_below(folder: &Path, depth: usize) -> Option<PathBuf> {
    let mut entries: Vec<PathBuf> = std::fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path()).collect();
    entries.sort();
    let is_library = |path: &&PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        (name == "libonnxruntime.so" || name.starts_with("libonnxruntime.so.")) && path.is_file()
    };
    if let Some(library) = entries.iter().rev().find(is_library) {
        return library.canonicalize().ok();
    }
    let below = depth.checked_sub(1)?;
    entries.iter().rev().filter(|path| path.is_dir()).find_map(|path| library_below(path, below))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_library_of_a_wheel_is_found_and_providers_are_not_mistaken_for_it() {
        let root = std::env::temp_dir().join(format!("rota-locate-{}", std::process::id()));
        let folder = root.join("onnxruntime/capi");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("libonnxruntime_providers_shared.so"), "").unwrap();
        assert_eq!(library_below(&root, DEPTH_MAX), None);
        std::fs::write(folder.join("libonnxruntime.so.1.32.0"), "").unwrap();
        let found = library_below(&root, DEPTH_MAX).unwrap();
        assert_eq!(found.file_name().unwrap(), "libonnxruntime.so.1.32.0");
        assert_eq!(library_below(&root, 1), None);
        std::fs::remove_dir_all(&root).unwrap();
    }
}
