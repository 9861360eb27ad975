//! Compiles `*.cu` with nvcc into one fat binary, which the crate embeds; without nvcc there is no image, and the program says so.
//!
//! Each file is compiled for each architecture on its own (relocatable, so that nvlink joins the cubins and plain text
//! the PTX) and kept outside Cargo's folder under the hash of what went into it: a kernel is compiled once per
//! change, not once per profile. What ptxas says about registers and spills is kept beside it and becomes `resources.txt`.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::{env, fs, io, thread};

#[path = "src/cache.rs"]
#[allow(dead_code, reason = "shared with the library")]
mod cache;

/// The driver compiles PTX for what has no machine code of its own in the image. The older one serves Turing; the newer has the
/// tensor-core instructions that came with Ampere.
const PTX: [&str; 2] = ["75", "80"];
/// Compressed, the image is about a third as large; the driver unpacks what it loads.
const FAT_FLAGS: [&str; 2] = ["-64", "-compress-all"];
/// Where `make cuda` puts NVIDIA's compiler.
const FETCHED: &str = "../third_party/cuda";
const ARCHITECTURES_DEFAULT: &str = "80,90a";
const FLAGS: &[&str] = &["-O3", "-std=c++17", "-rdc=true", "-Xptxas", "-v"];

fn main() {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR").expect("Cargo sets it"));
    let out = PathBuf::from(env::var("OUT_DIR").expect("Cargo sets it"));
    println!("cargo:rerun-if-changed={}", root.display());
    let fetched = root.join(FETCHED).join("ready");
    if fetched.exists() {
        // Cargo takes a file that is not there for changed; `make cuda` touches this script instead.
        println!("cargo:rerun-if-changed={}", fetched.display());
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
            // A copy: the cache may be emptied while what Cargo has built stays.
            let copy = out.join("kernels.fatbin");
            fs::copy(&image, &copy).unwrap_or_else(|error| panic!("{}: {error}", image.display()));
            (format!("Some(include_bytes!({copy:?}))"), resources, "")
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
    let fetched = root.join(FETCHED).join("ready").exists().then(|| root.join(FETCHED).join("nvidia/cu13"));
    named.into_iter().chain(found).chain(fetched).find(|home| home.join("bin/nvcc").is_file())
}

/// What code is made for.
#[derive(Clone)]
enum Target {
    /// Text that the driver compiles when it loads it, for GPUs of this architecture and every later one.
    Ptx(&'static str),
    /// Machine code: `80`, `90a`, …
    Machine(String),
}

impl Target {
    fn all() -> Vec<Target> {
        let wanted = env::var("ROTA_CUDA_ARCHS").unwrap_or_else(|_| ARCHITECTURES_DEFAULT.to_string());
        let machine = |name: &str| Target::Machine(name.trim().trim_start_matches("sm_").to_string());
        PTX.map(Target::Ptx).into_iter().chain(wanted.split(',').map(machine)).collect()
    }

    /// How nvcc calls it.
    fn name(&self) -> String {
        match self {
            Target::Ptx(architecture) => format!("compute_{architecture}"),
            Target::Machine(architecture) => format!("sm_{architecture}"),
        }
    }

    fn extension(&self) -> &'static str {
        match self {
            Target::Ptx(_) => "ptx",
            Target::Machine(_) => "cubin",
        }
    }
}

/// One source for one target.
struct Job {
    source: PathBuf,
    target: Target,
}

/// The fat binary's path, and what the tools said about each kernel.
fn compile(root: &Path, home: &Path) -> Result<(PathBuf, String), String> {
    let sources = cache::files(root, "cu").map_err(|error| error.to_string())?;
    let folder = cache::folder("kernels-cuda").map_err(|error| format!("the cache folder: {error}"))?;
    let common = common_hash(home).map_err(|error| format!("nvcc: {error}"))?;
    let targets = Target::all();
    let jobs = targets
        .iter()
        .flat_map(|target| sources.iter().map(move |source| Job { source: source.clone(), target: target.clone() }));
    let objects = all(jobs.collect(), |job| object(root, home, &folder, &common, job))?;
    let groups: Vec<(&Target, &[PathBuf])> = targets.iter().zip(objects.chunks(sources.len())).collect();

    let mut hash = common.clone();
    for flag in FAT_FLAGS {
        hash.add(flag.as_bytes());
    }
    for object in &objects {
        hash.add(object.as_os_str().as_encoded_bytes());
    }
    let image = folder.join(format!("{}.fatbin", hash.hex()));
    let log = image.with_extension("log");
    let make = |part: &Path| {
        let said = link(home, part, &groups)?;
        fs::write(&log, said).map_err(|error| format!("{}: {error}", log.display()))
    };
    cache::once(&image, make, |error| format!("{}: {error}", image.display()))?;
    let logs = objects.iter().map(|object| object.with_extension("log")).chain([log.clone()]);
    let read = |log: PathBuf| fs::read_to_string(&log).map_err(|error| format!("{}: {error}", log.display()));
    Ok((image, logs.map(read).collect::<Result<Vec<_>, _>>()?.concat()))
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

/// PTX or a cubin of one source, with what was said about it in a log beside it.
fn object(root: &Path, home: &Path, folder: &Path, common: &cache::Hash, job: &Job) -> Result<PathBuf, String> {
    let inputs = [headers(root).map_err(|error| error.to_string())?, vec![job.source.clone()]].concat();
    let before = cache::content(&inputs).map_err(|error| error.to_string())?;
    let mut hash = common.clone();
    hash.add(before.hex().as_bytes());
    let (target, kind) = (job.target.name(), job.target.extension());
    hash.add(target.as_bytes());
    let stem = job.source.file_stem().expect("a source has a name").to_string_lossy();
    let path = folder.join(format!("{stem}-{}.{kind}", hash.hex()));
    let broken = |error: io::Error| format!("the cache folder: {error}");
    let compile = |part: &Path| {
        let mut command = Command::new(home.join("bin/nvcc"));
        command.arg(format!("-{kind}")).args(FLAGS).arg(format!("-arch={target}"));
        command.arg("-I").arg(root).arg(&job.source).arg("-o").arg(part);
        let said = run(command)?;
        if cache::content(&inputs).map_err(|error| error.to_string())? != before {
            return Err(format!("{}: {}", job.source.display(), cache::CHANGED));
        }
        fs::write(path.with_extension("log"), format!("compiled {stem} {target}\n{said}")).map_err(broken)
    };
    cache::once(&path, compile, broken)?;
    Ok(path)
}

/// Joins each target's objects, and all targets into the fat binary `image`; returns what nvlink said.
fn link(home: &Path, image: &Path, groups: &[(&Target, &[PathBuf])]) -> Result<String, String> {
    let mut said = String::new();
    let mut fat = Command::new(home.join("bin/fatbinary"));
    fat.args(FAT_FLAGS).arg(format!("--create={}", image.display()));
    let mut scratch = Vec::new();
    for (target, objects) in groups {
        let joined = image.with_extension(format!("{}.{}", target.name(), target.extension()));
        match target {
            Target::Ptx(architecture) => {
                let written = fs::write(&joined, join_ptx(objects)?);
                written.map_err(|error| format!("{}: {error}", joined.display()))?;
                fat.arg(format!("--image3=kind=ptx,sm={architecture},file={}", joined.display()));
                // ptxas has to accept the joined text, as the driver will.
                let checked = image.with_extension("check");
                let mut check = Command::new(home.join("bin/ptxas"));
                check.arg(format!("-arch=sm_{architecture}")).arg("-O0").arg(&joined).arg("-o").arg(&checked);
                run(check)?;
                scratch.push(checked);
            }
            Target::Machine(architecture) => {
                let mut command = Command::new(home.join("bin/nvlink"));
                command.arg("-v").arg(format!("--arch=sm_{architecture}")).args(*objects).arg("-o").arg(&joined);
                said += &format!("linked {}\n{}", target.name(), run(command)?);
                fat.arg(format!("--image3=kind=elf,sm={architecture},file={}", joined.display()));
            }
        }
        scratch.push(joined);
    }
    run(fat)?;
    for path in scratch.iter().filter(|path| path.exists()) {
        fs::remove_file(path).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(said)
}

/// One PTX module out of several: the head of the first, then everybody's functions. What a template has in shared memory is
/// defined, weakly and by the same line, in each file that uses it; one definition is kept.
fn join_ptx(paths: &[PathBuf]) -> Result<String, String> {
    let mut joined = String::new();
    let mut once = HashSet::new();
    for path in paths {
        let text = fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
        for line in text.lines() {
            let only_once = [".version", ".target", ".address_size", ".weak"].iter().any(|word| line.starts_with(word));
            if !only_once || once.insert(line.to_string()) {
                joined += line;
                joined.push('\n');
            }
        }
    }
    Ok(joined)
}

fn headers(root: &Path) -> io::Result<Vec<PathBuf>> {
    Ok([cache::files(root, "cuh")?, cache::files(root, "h")?].concat())
}

/// What every object depends on besides sources and architecture.
fn common_hash(home: &Path) -> io::Result<cache::Hash> {
    let mut hash = cache::Hash::new();
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
