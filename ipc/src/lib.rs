//! Rota's shared-memory protocol, and the client library on it.
//!
//! A connection is one Unix socket for control messages ([`control`]), three sealed memory regions made by the daemon
//! ([`region`]) with a ring of 64-byte descriptors in each direction ([`ring`], [`wire`]), and a doorbell socket.
//! [`server`] is the daemon's side of one connection, [`client`] the other. `docs/protocol.md` says every byte.

pub mod control;
pub mod server;
pub mod wire;
