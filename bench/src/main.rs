//! The `rota-bench` program: the command line over the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    rota_bench::cli::main()
}
