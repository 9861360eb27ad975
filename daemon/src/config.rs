//! The daemon's settings: a TOML file, every field optional, and what the command line puts over it.

use crate::query::Spec;
use rota_device::EngineChoice;
use rota_ipc::control::QueryDeclaration;
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// `rota.toml`. Units are in the names; every field has a default.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where clients connect; default: `$ROTA_SOCKET`, `$XDG_RUNTIME_DIR/rota.sock` or `/run/rota/rota.sock`.
    pub socket: Option<PathBuf>,
    /// Permissions of the socket, octal in a string.
    pub socket_mode: String,
    /// The model repository.
    pub repository: Option<PathBuf>,
    /// Where profiles are kept; default `$XDG_CACHE_HOME/rota` or `~/.cache/rota`.
    pub profile_cache: Option<PathBuf>,
    /// SLO of models that name none. Zero or absent: eight times ℓ(1), at least 10 ms.
    pub default_slo_ms: f64,
    /// How long the poller looks for work before it sleeps.
    pub spin_us: u64,
    /// A device's next batch is chosen this long before the device is free.
    pub prepare_lead_us: u64,
    /// … and its start is sent this long before.
    pub start_lead_us: u64,
    /// Because demand changed a plan is made at most once in this time; zero: never, only when models come and go.
    pub plan_interval_ms: u64,
    /// Models that share a leading part run it once for all of them.
    pub prefix: bool,
    pub limits: Limits,
    /// Applications of several models under one SLO each.
    pub query: Vec<QueryDeclaration>,
    /// Default: one cpu device on all cores but the first.
    pub device: Vec<DeviceSettings>,
}

/// What the daemon takes on, in all and of each user.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    pub connections_per_user: u32,
    /// All arenas together; they are real memory from the start. Default: half of the host's.
    pub arena_mb_per_user: u64,
    pub requests_per_user: u32,
    /// Requests in flight in all.
    pub requests_max: u32,
    pub sessions_max: u32,
    /// Queries in all: those of the settings and those that clients have declared.
    pub queries_max: u32,
    /// Queries that one user's clients have declared.
    pub queries_per_user: u32,
    /// Runs of queries that are open, in all.
    pub runs_max: u32,
    pub runs_per_user: u32,
    /// Largest arena of one connection.
    pub arena_mb: u64,
}

/// One `[[device]]`.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum DeviceSettings {
    /// A pool of cores with an inference engine.
    Cpu {
        /// Cores that it runs on; default: all that the process may use but the first.
        #[serde(default)]
        cores: Vec<usize>,
        /// Threads of the engine; default: as many as cores.
        #[serde(default)]
        threads: Option<usize>,
        /// "auto", "onnxruntime" or "rten".
        #[serde(default)]
        engine: EngineName,
        /// A profile file: ℓ(b) of the models that it names, which are then not measured.
        #[serde(default)]
        profiles: Option<PathBuf>,
    },
    /// NVIDIA GPUs, one device each.
    Cuda {
        /// Which, by the driver's numbers; default: all of the host.
        #[serde(default)]
        gpus: Vec<u32>,
        /// "fp32", "tf32" or "fp16".
        #[serde(default)]
        precision: PrecisionName,
        /// As for cores.
        #[serde(default)]
        profiles: Option<PathBuf>,
    },
    /// Devices that take as long as a profile file says.
    Emulated {
        #[serde(default = "one")]
        count: u32,
        /// The profile file; its models are served beside the repository's.
        profiles: PathBuf,
    },
}

#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
#[value(rename_all = "lower")]
pub enum EngineName {
    /// ONNX Runtime where its library is found, else rten
    #[default]
    Auto,
    /// Only where its library is found
    OnnxRuntime,
    /// Built in
    Rten,
}

impl EngineName {
    pub fn choice(self) -> EngineChoice {
        match self {
            EngineName::Auto => EngineChoice::Auto,
            EngineName::OnnxRuntime => EngineChoice::OnnxRuntime(None),
            EngineName::Rten => EngineChoice::Rten,
        }
    }
}

/// In what numbers products are computed on a GPU.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
#[value(rename_all = "lower")]
pub enum PrecisionName {
    /// As the model says
    #[default]
    Fp32,
    /// Products of numbers rounded to 10 bits, on tensor cores
    Tf32,
    /// Products of fp16, on tensor cores
    Fp16,
}

impl From<PrecisionName> for rota_device::cuda::Precision {
    fn from(name: PrecisionName) -> rota_device::cuda::Precision {
        use rota_device::cuda::Precision;
        match name {
            PrecisionName::Fp32 => Precision::Fp32,
            PrecisionName::Tf32 => Precision::Tf32,
            PrecisionName::Fp16 => Precision::Fp16,
        }
    }
}

fn one() -> u32 {
    1
}

impl Default for Config {
    fn default() -> Config {
        Config {
            socket: None,
            socket_mode: "0660".to_string(),
            repository: None,
            profile_cache: None,
            default_slo_ms: 0.0,
            spin_us: 50,
            prepare_lead_us: 200,
            start_lead_us: 100,
            plan_interval_ms: 3000,
            prefix: true,
            limits: Limits::default(),
            query: Vec::new(),
            device: Vec::new(),
        }
    }
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connections_per_user: 1024,
            arena_mb_per_user: half_of_memory_mb(),
            requests_per_user: 32_768,
            requests_max: 65_536,
            sessions_max: 4096,
            queries_max: 256,
            queries_per_user: 16,
            runs_max: 16_384,
            runs_per_user: 8192,
            arena_mb: 4096,
        }
    }
}

fn half_of_memory_mb() -> u64 {
    let info = rustix::system::sysinfo();
    (info.totalram as u64).saturating_mul(u64::from(info.mem_unit)) >> 21
}

/// What is wrong with `text`, with its line but without the drawing of it that the error shows by itself.
pub fn one_line(text: &str, error: &toml::de::Error) -> String {
    let message = error.message().replace('\n', ", ");
    match error.span().and_then(|span| text.get(..span.start)) {
        Some(before) => format!("line {}: {message}", before.matches('\n').count() + 1),
        None => message,
    }
}

/// What is wrong with the settings, and where.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{path}: {error}")]
    Read { path: PathBuf, error: std::io::Error },
    /// Not TOML, or not these settings; the text begins with the line.
    #[error("{path}: {text}")]
    Parse { path: PathBuf, text: String },
    #[error("{0}")]
    Value(String),
}

impl Config {
    pub fn read(path: &Path) -> Result<Config, ConfigError> {
        let text = std::fs::read_to_string(path);
        let text = text.map_err(|error| ConfigError::Read { path: path.to_path_buf(), error })?;
        let parsed = toml::from_str::<Config>(&text);
        let mut config =
            parsed.map_err(|error| ConfigError::Parse { path: path.to_path_buf(), text: one_line(&text, &error) })?;
        // Paths in the file are relative to the file.
        let base = path.parent().unwrap_or(Path::new("."));
        let own = [&mut config.socket, &mut config.repository, &mut config.profile_cache];
        own.into_iter().flatten().for_each(|p| *p = base.join(&*p));
        for device in &mut config.device {
            match device {
                DeviceSettings::Emulated { profiles, .. } => *profiles = base.join(&*profiles),
                DeviceSettings::Cpu { profiles, .. } | DeviceSettings::Cuda { profiles, .. } => {
                    profiles.iter_mut().for_each(|profiles| *profiles = base.join(&*profiles));
                }
            }
        }
        let queries = config.queries();
        queries.map_err(|error| ConfigError::Parse { path: path.to_path_buf(), text: error.to_string() })?;
        Ok(config)
    }

    /// Checks what the types can't.
    pub fn check(&self) -> Result<(), ConfigError> {
        let value = |text: String| Err(ConfigError::Value(text));
        if self.socket_permissions().is_none() {
            return value(format!("socket_mode = \"{}\" is not an octal mode such as \"0660\"", self.socket_mode));
        }
        if !self.default_slo_ms.is_finite() || self.default_slo_ms < 0.0 {
            return value(format!("default_slo_ms = {} must be zero or more", self.default_slo_ms));
        }
        if self.start_lead_us > self.prepare_lead_us {
            return value(format!(
                "start_lead_us = {} must be at most prepare_lead_us = {}",
                self.start_lead_us, self.prepare_lead_us
            ));
        }
        let l = &self.limits;
        if l.requests_max == 0 || l.sessions_max == 0 || l.requests_max > 1 << 24 || l.sessions_max > 1 << 20 {
            return value(format!(
                "limits: requests_max = {} must be 1 to {}, sessions_max = {} 1 to {}",
                l.requests_max,
                1 << 24,
                l.sessions_max,
                1 << 20
            ));
        }
        if l.queries_max == 0 || l.runs_max == 0 || l.queries_max > 1 << 12 || l.runs_max > 1 << 20 {
            return value(format!(
                "limits: queries_max = {} must be 1 to {}, runs_max = {} 1 to {}",
                l.queries_max,
                1 << 12,
                l.runs_max,
                1 << 20
            ));
        }
        self.queries().map(|_| ())
    }

    /// The queries, checked.
    pub fn queries(&self) -> Result<Vec<Spec>, ConfigError> {
        let specs = self.query.iter().map(Spec::check).collect::<Result<Vec<Spec>, String>>();
        let specs = specs.map_err(ConfigError::Value)?;
        if specs.len() > self.limits.queries_max as usize {
            let text = format!("{} queries are more than queries_max = {}", specs.len(), self.limits.queries_max);
            return Err(ConfigError::Value(text));
        }
        for (index, spec) in specs.iter().enumerate() {
            if specs[..index].iter().any(|earlier| earlier.name == spec.name) {
                return Err(ConfigError::Value(format!("there are two queries \"{}\"", spec.name)));
            }
        }
        Ok(specs)
    }

    pub fn socket_permissions(&self) -> Option<u32> {
        u32::from_str_radix(&self.socket_mode, 8).ok().filter(|mode| *mode <= 0o777)
    }

    pub fn spin(&self) -> Duration {
        Duration::from_micros(self.spin_us)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_empty_file_is_the_default_and_valid() {
        let config: Config = toml::from_str("").unwrap();
        config.check().unwrap();
        assert!(config.device.is_empty());
    }

    #[test]
    fn devices_parse_with_their_defaults() {
        let text = "[[device]]\nkind = \"cpu\"\ncores = [1]\n[[device]]\nkind = \"emulated\"\nprofiles = \"p.toml\"\n\
            [[device]]\nkind = \"cuda\"\ngpus = [1]\nprecision = \"tf32\"\nprofiles = \"h100.toml\"\n";
        let config: Config = toml::from_str(text).unwrap();
        assert_eq!(
            config.device[0],
            DeviceSettings::Cpu { cores: vec![1], threads: None, engine: EngineName::Auto, profiles: None }
        );
        assert_eq!(config.device[1], DeviceSettings::Emulated { count: 1, profiles: "p.toml".into() });
        let profiles = Some("h100.toml".into());
        assert_eq!(config.device[2], DeviceSettings::Cuda { gpus: vec![1], precision: PrecisionName::Tf32, profiles });
    }

    #[test]
    fn a_misspelt_key_is_refused_with_its_line() {
        let text = "spin_us = 5\nspinn_us = 6\n";
        let said = one_line(text, &toml::from_str::<Config>(text).unwrap_err());
        assert!(said.starts_with("line 2: unknown field `spinn_us`, expected one of `socket`"), "{said}");
    }
}
