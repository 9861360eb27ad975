//! The Rota daemon: model repository, poller, control socket, command line.
//!
//! Threads: [`poller`] owns the rings, the requests and the dispatcher; each cpu device has its executor (in
//! `rota-device`); [`control`] owns sockets and the catalogue of models; [`background`] does whatever takes long, [`arenas`] what clients' memory takes.
#![forbid(unsafe_code)]

pub mod arenas;
pub mod background;
pub mod cli;
pub mod clock;
pub mod config;
pub mod control;
pub mod model;
pub mod planning;
pub mod poller;
pub mod profiles;
pub mod query;
pub mod repository;
pub mod serve;
pub mod sharing;
pub mod stats;
pub mod triton;
pub mod wake;
