//! Prints where the stand-in driver is, after compiling it when it is not in the cache: `ROTA_CUDA_DRIVER=$(cargo run -q -p
//! rota-kernels --example standin) rota serve …` runs on pretended GPUs.

fn main() -> Result<(), rota_kernels::host::BuildError> {
    println!("{}", rota_kernels::standin::library()?.display());
    Ok(())
}
