//! Load and latency: what drives a running daemon, and what measures its parts side by side with peers.
//!
//! [`load`] is the load generator. Speed is only ever compared inside one run: contenders take turns, round after round.

#![forbid(unsafe_code)]

pub mod cli;
pub mod cores;
pub mod daemon;
pub mod engine;
pub mod folder;
pub mod gpu;
pub mod ipc;
pub mod load;
pub mod npy;
pub mod numbers;
pub mod prefix;
pub mod process;
pub mod queries;
pub mod rounds;
pub mod scheduler;
pub mod svg;
pub mod table;
pub mod timing;
