//! The image has every kernel, without spills or warnings, and RESOURCES.md says what each takes.

use std::path::Path;

use rota_kernels::resources::{parse, table, warnings};

const HEAD: &str = "# What each kernel takes of a multiprocessor

Registers per thread, shared memory per block, blocks side by side and the share of the multiprocessor's warps that they fill, for the
largest block that the kernel is launched with. Computed from what the compiler and linker say; not run on a GPU. `ROTA_UPDATE=1 cargo test -p rota-kernels
--test resources` writes this file.

";

#[test]
fn every_kernel_is_in_the_image_without_spills_local_arrays_and_warnings() {
    if rota_kernels::image().is_none() {
        return eprintln!("skipped: {}", rota_kernels::image_missing_reason());
    }
    let usages = parse(rota_kernels::resources());
    assert_eq!(warnings(rota_kernels::resources()), Vec::<&str>::new());
    let architectures: std::collections::BTreeSet<&str> = usages.iter().map(|usage| &usage.architecture[..]).collect();
    assert!(!architectures.is_empty());
    for architecture in architectures {
        for kernel in rota_kernels::kernels() {
            let usage = usages.iter().find(|usage| usage.kernel == kernel.name && usage.architecture == architecture);
            let usage = usage.unwrap_or_else(|| panic!("{} is not in the image for {architecture}", kernel.name));
            assert_eq!(usage.local_bytes, 0, "{} spills on {architecture}", kernel.name);
        }
        let known = rota_kernels::kernels().len();
        let built = usages.iter().filter(|usage| usage.architecture == architecture).count();
        assert_eq!(built, known, "kernels in the image for {architecture}, and in the catalogue");
    }
}

#[test]
fn the_table_of_resources_is_what_the_build_said() {
    let usages = parse(rota_kernels::resources());
    let default = ["sm_80", "sm_90a"];
    if usages.is_empty() || default.iter().any(|wanted| !usages.iter().any(|usage| usage.architecture == *wanted)) {
        return eprintln!("skipped: this build has no machine code for {default:?}");
    }
    let usages: Vec<_> = usages.into_iter().filter(|usage| default.contains(&&usage.architecture[..])).collect();
    let expected = format!("{HEAD}{}", table(&usages, &rota_kernels::kernels()));
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("RESOURCES.md");
    if std::env::var_os("ROTA_UPDATE").is_some() {
        std::fs::write(&path, &expected).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    for (line, (found, expected)) in found.lines().zip(expected.lines()).enumerate() {
        assert_eq!(found, expected, "RESOURCES.md, line {}: write it again with ROTA_UPDATE=1", line + 1);
    }
    assert_eq!(found.lines().count(), expected.lines().count(), "RESOURCES.md: write it again with ROTA_UPDATE=1");
}
