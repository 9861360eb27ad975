//! Turns proto/onnx.proto into Rust, without protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto/onnx.proto");
    let files = protox::compile(["onnx.proto"], ["proto"])?;
    let mut config = prost_build::Config::new();
    // Weights stay where they are: slices of the file.
    config.bytes([".onnx.TensorProto.raw_data", ".onnx.TensorProto.string_data", ".onnx.AttributeProto"]);
    config.disable_comments(["."]);
    config.compile_fds(files)?;
    Ok(())
}
