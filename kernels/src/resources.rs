//! What each kernel takes of a multiprocessor: registers, shared memory, and so how many blocks run side by side.

use crate::launch::Kernel;

/// A kernel's needs on one architecture, as the compiler and linker said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    /// The kernel's name.
    pub kernel: String,
    /// `sm_80`, …
    pub architecture: String,
    /// Per thread.
    pub registers: u32,
    /// Per block, static.
    pub shared_bytes: u32,
    /// Per thread: spilled registers and arrays that did not fit. 0 in all kernels that we keep.
    pub local_bytes: u32,
}

/// What a multiprocessor has. NVIDIA's CUDA programming guide, table of technical specifications per compute capability.
struct Multiprocessor {
    warps: u32,
    blocks: u32,
    shared_bytes: u32,
    /// Kept by the system for each block.
    reserved_bytes: u32,
}

const REGISTERS: u32 = 65_536;
/// Registers are given out to whole warps in this many.
const REGISTER_UNIT: u32 = 256;

impl Multiprocessor {
    fn of(architecture: &str) -> Option<Multiprocessor> {
        let (warps, blocks, kib, reserved_bytes) = match architecture.trim_end_matches('a') {
            "sm_75" => (32, 16, 64, 0),
            "sm_80" => (64, 32, 164, 1024),
            "sm_86" => (48, 16, 100, 1024),
            "sm_89" => (48, 24, 100, 1024),
            // Here what the linker reports has the system's share in it.
            "sm_90" | "sm_100" => (64, 32, 228, 0),
            _ => return None,
        };
        Some(Multiprocessor { warps, blocks, shared_bytes: kib * 1024, reserved_bytes })
    }
}

impl Usage {
    /// Blocks of `threads` side by side on a multiprocessor, and the share of its warps that they fill, in percent. `None` for an
    /// architecture that we do not know.
    pub fn occupancy(&self, threads: u32) -> Option<(u32, u32)> {
        let machine = Multiprocessor::of(&self.architecture)?;
        let warps = threads.div_ceil(32);
        let per_warp = (self.registers * 32).next_multiple_of(REGISTER_UNIT).max(REGISTER_UNIT);
        let by_registers = REGISTERS / per_warp / warps;
        let by_shared = machine.shared_bytes / (self.shared_bytes + machine.reserved_bytes).max(1);
        let blocks = by_registers.min(by_shared).min(machine.blocks).min(machine.warps / warps);
        Some((blocks, blocks * warps * 100 / machine.warps))
    }
}

/// What the report of a build says of each kernel and architecture.
pub fn parse(report: &str) -> Vec<Usage> {
    let mut found = Vec::new();
    let (mut architecture, mut kernel) = ("", "");
    for line in report.lines() {
        if let Some(linked) = line.strip_prefix("linked ") {
            architecture = linked;
        } else if line.starts_with("compiled ") {
            architecture = "";
        } else if let Some((_, name)) = line.split_once("nvlink info    : Function properties for '") {
            kernel = name.split('\'').next().unwrap_or(name);
        } else if let Some((_, uses)) = line.split_once("nvlink info    : used ").filter(|_| !architecture.is_empty()) {
            let amount = |unit: &str| {
                let part = uses.split(", ").find(|part| part.ends_with(unit))?;
                part.split(' ').next()?.parse::<u32>().ok()
            };
            found.push(Usage {
                kernel: kernel.to_string(),
                architecture: architecture.to_string(),
                registers: amount(" registers").unwrap_or(0),
                shared_bytes: amount(" bytes smem").unwrap_or(0),
                local_bytes: amount(" stack").unwrap_or(0).max(amount(" bytes lmem").unwrap_or(0)),
            });
        }
    }
    found
}

/// The lines of a report in which a tool warns.
pub fn warnings(report: &str) -> Vec<&str> {
    report.lines().filter(|line| line.to_lowercase().contains("warning")).collect()
}

/// The table of `RESOURCES.md`: a line per kernel, columns per architecture.
pub fn table(usages: &[Usage], kernels: &[&Kernel]) -> String {
    let mut architectures: Vec<&str> = Vec::new();
    for usage in usages {
        if !architectures.contains(&usage.architecture.as_str()) {
            architectures.push(&usage.architecture);
        }
    }
    let mut text = format!("| kernel | threads | {} |\n| --- | --- |", architectures.join(" | "));
    text += &" --- |".repeat(architectures.len());
    for kernel in kernels {
        let threads = kernel.blocks.last().copied().unwrap_or(32);
        text += &format!("\n| {} | {threads} |", kernel.name);
        for architecture in &architectures {
            let usage = usages.iter().find(|usage| usage.kernel == kernel.name && usage.architecture == *architecture);
            text += &match usage {
                None => " missing |".to_string(),
                Some(usage) => {
                    let (blocks, percent) = usage.occupancy(threads).unwrap_or((0, 0));
                    format!(" {}, {} B, {blocks}, {percent} % |", usage.registers, usage.shared_bytes)
                }
            };
        }
    }
    text + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = "compiled gemm sm_80\nptxas info    : 0 bytes gmem\nlinked sm_80\n\
        nvlink info    : Function properties for 'rota_a':\n\
        nvlink info    : used 128 registers, used 1 barriers, 8 stack, 25344 bytes smem, 520 bytes cmem[0], 0 bytes lmem\n";

    #[test]
    fn a_report_gives_registers_shared_memory_and_spills() {
        let usage = parse(REPORT);
        let expected = Usage {
            kernel: "rota_a".into(),
            architecture: "sm_80".into(),
            registers: 128,
            shared_bytes: 25_344,
            local_bytes: 8,
        };
        assert_eq!(usage, [expected]);
    }

    /// Against NVIDIA's occupancy calculator.
    #[test]
    fn occupancy_is_what_runs_out_first() {
        let usage = |registers, shared_bytes, architecture: &str| Usage {
            kernel: String::new(),
            architecture: architecture.into(),
            registers,
            shared_bytes,
            local_bytes: 0,
        };
        let cases = [
            (usage(128, 0, "sm_80"), 256, (2, 25)),
            (usage(32, 0, "sm_80"), 256, (8, 100)),
            (usage(32, 48 * 1024, "sm_80"), 128, (3, 18)),
            (usage(32, 0, "sm_75"), 64, (16, 100)),
            (usage(32, 0, "sm_86"), 32, (16, 33)),
            (usage(255, 0, "sm_90a"), 256, (1, 12)),
        ];
        for (usage, threads, expected) in cases {
            assert_eq!(usage.occupancy(threads), Some(expected), "{usage:?}");
        }
    }

    #[test]
    fn a_warning_of_any_tool_is_found() {
        assert_eq!(warnings(REPORT), Vec::<&str>::new());
        assert_eq!(warnings("ptxas warning : Registers are spilled").len(), 1);
    }
}
