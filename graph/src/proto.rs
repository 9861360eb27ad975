//! ONNX's messages, generated from proto/onnx.proto.

#![allow(clippy::all, missing_docs, reason = "generated: its documentation is in proto/onnx.proto")]

include!(concat!(env!("OUT_DIR"), "/onnx.rs"));
