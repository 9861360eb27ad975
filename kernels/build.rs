//! Compiles `*.cu` with nvcc into one fat binary, which the crate embeds; without nvcc there is no image, and the program says so.
//!
//! Each file is compiled for each architecture on its own (relocatable, so that nvlink joins the cubins and plain text
//! the PTX) and kept outside Cargo's folder under the hash of what went into it: a kernel is compiled once per
//! change, not once per profile. What ptxas says about registers and spills is kept beside it and becomes `resources.txt`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::{env, fs, io, thread};

#[path = "src/cache.rs"]
#[allow(dead_code, reason = "shared with the library")]
mod cache;

/// The oldest architecture that the PTX is for; the driver compiles it for what has no machine code of its own in the image.
const PTX: &str = "75";
const ARCHITECTURES_DEFAULT: &str = "80,90a";
const FLAGS: &[&str] = &["-O3", "-std=c++17", "-rdc=true", "-Xptxas", "-v"];

fn main() {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR").expect("Cargo sets it"));
    let out = PathBuf::from(env::var("OUT_DIR").expect("Cargo sets it"));
    for changed in [".", "src/cache.rs", "../third_party/cuda/ready"] {
        println!("cargo:rerun-if-changed={}", root.join(changed).display());
    }
    for variable in ["CUDA_HOME", "ROTA_CUDA_ARCHS", "ROTA_CACHE", "PATH"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    let (image, resources, missing) = match nvcc(&root) {
        None => {
            let reason = "built without nvcc: run `make cuda`, or set CUDA_HOME, and build again";
            println!("cargo:warning=the CUDA device is left out: {reason}");
            ("None".to_string(), String::new(), reason)
        }
        Some(home) => {
            let (image, resources) = compile(&root, &home).unwrap_or_else(|error| panic!("{error}"));
            (format!("Some(include_bytes!({image:?}))"), resources, "")
        }
    };
    fs::write(out.join("resources.txt"), resources).expect("OUT_DIR can be written");
    let text = format!(
        "const IMAGE: Option<&[u8]> = {image};\nconst MISSING: &str = {missing:?};\n\
         const RESOURCES: &str = include_str!({:?});\n",
        out.join("resources.txt")
    );
    fs::write(out.join("image.rs"), text).expect("OUT_DIR can be written");
}

/// The toolkit: what `$CUDA_HOME` names, what `PATH` has, or what `make cuda` fetched.
fn nvcc(root: &Path) -> Option<PathBuf> {
    let named = env::var_os("CUDA_HOME").map(PathBuf::from);
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&path).filter_map(|bin| Some(bin.parent()?.to_path_buf()));
    let fetched = root.join("../third_party/cuda/nvidia/cu13");
    let fetched = root.join("../third_party/cuda/ready").exists().then_some(fetched);
    named.into_iter().chain(found).chain(fetched).find(|home| home.join("bin/nvcc").is_file())
}

/// One source for one target.
struct Job {
    source: PathBuf,
    /// `80`, `90a`, …; `None` for PTX.
    architecture: Option<String>,
}

/// The fat binary's path, and what ptxas said about each kernel.
fn compile(root: &Path, home: &Path) -> Result<(PathBuf, String), String> {
    let sources = cache::files(root, "cu").map_err(|error| error.to_string())?;
    let wanted = env::var("ROTA_CUDA_ARCHS").unwrap_or_else(|_| ARCHITECTURES_DEFAULT.to_string());
    let architectures: Vec<String> =
        wanted.split(',').map(|name| name.trim().trim_start_matches("sm_").to_string()).collect();
    let folder = cache::folder("kernels-cuda").map_err(|error| format!("the cache folder: {error}"))?;
    let common = common_hash(root, home).map_err(|error| format!("reading the kernels: {error}"))?;

    let targets = || std::iter::once(None).chain(architectures.iter().cloned().map(Some));
    let jobs = targets().flat_map(|architecture| {
        sources.iter().map(move |source| Job { source: source.clone(), architecture: architecture.clone() })
    });
    let objects = all(jobs.collect(), |job| object(root, home, &folder, &common, job))?;

    let mut hash = common.clone();
    for object in &objects {
        hash.add(object.as_os_str().as_encoded_bytes());
    }
    let image = folder.join(format!("{}.fatbin", hash.hex()));
    let broken = |error: io::Error| format!("the cache folder: {error}");
    cache::once(&image, |part| link(home, part, &architectures, &objects, sources.len()), broken)?;
    let mut resources = String::new();
    for (objects, architecture) in objects.chunks(sources.len()).zip(targets()) {
        for object in objects.iter().filter(|_| architecture.is_some()) {
            let log = object.with_extension("log");
            resources += &fs::read_to_string(&log).map_err(|error| format!("{}: {error}", log.display()))?;
        }
    }
    Ok((image, resources))
}

/// Does all jobs, as many at a time as Cargo allows, and returns their results in order.
fn all(jobs: Vec<Job>, work: impl Fn(&Job) -> Result<PathBuf, String> + Sync) -> Result<Vec<PathBuf>, String> {
    let workers: usize = env::var("NUM_JOBS").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    let next = Mutex::new(0..jobs.len());
    let results = Mutex::new(vec![None; jobs.len()]);
    thread::scope(|scope| {
        for _ in 0..workers.min(jobs.len()) {
            scope.spawn(|| {
                while let Some(index) = { next.lock().expect("no worker panics with it").next() } {
                    let result = work(&jobs[index]);
                    results.lock().expect("no worker panics with it")[index] = Some(result);
                }
            });
        }
    });
    let results = results.into_inner().expect("no worker panics with it");
    results.into_iter().map(|result| result.expect("every index was taken")).collect()
}

/// PTX or a cubin of one source, with ptxas's report beside the cubin.
fn object(root: &Path, home: &Path, folder: &Path, common: &cache::Hash, job: &Job) -> Result<PathBuf, String> {
    let mut hash = common.clone();
    hash.add(&fs::read(&job.source).map_err(|error| format!("{}: {error}", job.source.display()))?);
    let (kind, architecture) = match &job.architecture {
        None => ("ptx", format!("compute_{PTX}")),
        Some(architecture) => ("cubin", format!("sm_{architecture}")),
    };
    hash.add(architecture.as_bytes());
    let stem = job.source.file_stem().expect("a source has a name").to_string_lossy();
    let path = folder.join(format!("{stem}-{}.{kind}", hash.hex()));
    let broken = |error: io::Error| format!("the cache folder: {error}");
    let compile = |part: &Path| {
        let mut command = Command::new(home.join("bin/nvcc"));
        command.arg(format!("-{kind}")).args(FLAGS).arg(format!("-arch={architecture}"));
        command.arg("-I").arg(root).arg(&job.source).arg("-o").arg(part);
        let said = run(command)?;
        let log = format!("file {stem} {architecture}\n{said}");
        fs::write(path.with_extension("log"), log).map_err(broken)
    };
    cache::once(&path, compile, broken)?;
    Ok(path)
}

fn link(home: &Path, image: &Path, architectures: &[String], objects: &[PathBuf], files: usize) -> Result<(), String> {
    let (ptx, cubins) = objects.split_at(files);
    let joined = image.with_extension("ptx");
    fs::write(&joined, join_ptx(ptx)?).map_err(|error| format!("{}: {error}", joined.display()))?;
    let mut scratch = vec![joined.clone()];
    let mut fat = Command::new(home.join("bin/fatbinary"));
    fat.arg("-64").arg(format!("--create={}", image.display()));
    fat.arg(format!("--image3=kind=ptx,sm={PTX},file={}", joined.display()));
    for (architecture, cubins) in architectures.iter().zip(cubins.chunks(files)) {
        let linked = image.with_extension(format!("{architecture}.cubin"));
        let mut command = Command::new(home.join("bin/nvlink"));
        command.arg(format!("--arch=sm_{architecture}")).args(cubins).arg("-o").arg(&linked);
        run(command)?;
        fat.arg(format!("--image3=kind=elf,sm={architecture},file={}", linked.display()));
        scratch.push(linked);
    }
    run(fat)?;
    // ptxas has to accept the joined text, as the driver will.
    let mut check = Command::new(home.join("bin/ptxas"));
    check.arg(format!("-arch=sm_{PTX}")).arg("-O0").arg(&joined).arg("-o").arg(image.with_extension("check"));
    scratch.push(image.with_extension("check"));
    run(check)?;
    for path in scratch {
        fs::remove_file(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(())
}

/// One PTX module out of several: the head of the first, then everybody's functions. Names are ours and differ.
fn join_ptx(paths: &[PathBuf]) -> Result<String, String> {
    let mut joined = String::new();
    for path in paths {
        let text = fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
        for line in text.lines() {
            let head = [".version", ".target", ".address_size"].iter().any(|word| line.starts_with(word));
            if !head || !joined.contains(line) {
                joined += line;
                joined.push('\n');
            }
        }
    }
    Ok(joined)
}

/// What every object depends on besides its source and its architecture.
fn common_hash(root: &Path, home: &Path) -> io::Result<cache::Hash> {
    let mut hash = cache::Hash::new();
    for extension in ["cuh", "h"] {
        for header in cache::files(root, extension)? {
            hash.add(&fs::read(header)?);
        }
    }
    for flag in FLAGS {
        hash.add(flag.as_bytes());
    }
    hash.add(&Command::new(home.join("bin/nvcc")).arg("--version").output()?.stdout);
    Ok(hash)
}

/// What the command printed, or an error with all of it.
fn run(mut command: Command) -> Result<String, String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(said) } else { Err(format!("{command:?}\n{said}")) }
}
