//! Rota's shared-memory protocol, and the client library on it.
//!
//! A connection is one Unix socket for control messages ([`control`], in frames: [`frame`]), three sealed memory regions
//! made by the daemon ([`region`]) with a ring of 64-byte descriptors in each direction ([`ring`], [`wire`]), and a doorbell socket.
//! [`server`] is the daemon's side of one connection, [`client`] the other. `docs/protocol.md` says every byte.

// Under loom only the ring is built: loom's atomics can't lie over mapped memory.
#[cfg(not(loom))]
pub mod client;
pub mod control;
#[cfg(not(loom))]
pub mod doorbell;
#[cfg(not(loom))]
pub mod frame;
#[cfg(not(loom))]
pub mod region;
pub mod ring;
#[cfg(not(loom))]
pub mod server;
pub mod wire;

#[cfg(not(loom))]
pub use client::{Client, ClientOptions};
