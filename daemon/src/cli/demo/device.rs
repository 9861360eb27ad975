//! What the demo's daemon serves on, as settings.

use super::Failure;
use crate::cli::infer::DeviceName;
use crate::config::{EngineName, PrecisionName};
use clap::ValueEnum;

#[derive(clap::Args)]
pub struct DeviceArguments {
    /// Where models run
    #[arg(long, value_enum, default_value = "cpu", global = true)]
    device: DeviceName,
    /// With --device cuda: which GPUs, by the driver's numbers [default: all]
    #[arg(long, value_name = "N,…", value_delimiter = ',', global = true)]
    gpus: Vec<u32>,
    /// With --device cuda: in what numbers products are computed [default: fp32]
    #[arg(long, value_enum, global = true)]
    precision: Option<PrecisionName>,
    /// With --device cpu: inference engine [default: auto]
    #[arg(long, value_enum, global = true)]
    engine: Option<EngineName>,
}

impl DeviceArguments {
    /// The `[[device]]` of the daemon's settings.
    pub fn settings(&self) -> Result<String, Failure> {
        match self.device {
            DeviceName::Cpu if !self.gpus.is_empty() || self.precision.is_some() => {
                Err("--gpus and --precision are for GPUs: add --device cuda".into())
            }
            DeviceName::Cuda if self.engine.is_some() => {
                Err("--engine is for cores, not for GPUs: leave it out, or --device cuda".into())
            }
            DeviceName::Cpu => {
                let engine = name(&self.engine.unwrap_or_default());
                Ok(format!("[[device]]\nkind = \"cpu\"\nengine = \"{engine}\"\n"))
            }
            DeviceName::Cuda => {
                let (gpus, precision) = (&self.gpus, name(&self.precision.unwrap_or_default()));
                Ok(format!("[[device]]\nkind = \"cuda\"\ngpus = {gpus:?}\nprecision = \"{precision}\"\n"))
            }
        }
    }
}

/// As the settings spell it, which is as the command line does.
fn name(value: &impl ValueEnum) -> String {
    value.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}
