//! The `rota` program: the command line over the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    rota::cli::main()
}
