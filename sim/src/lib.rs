//! A discrete-event simulator in virtual time: it drives Rota's own dispatcher, and rival policies, on the same arrivals.
//!
//! Deterministic to the bit: a workload, a policy and a seed give one outcome, on every host. No clock is read.
#![forbid(unsafe_code)]

pub mod arrivals;
pub mod bound;
pub mod calls;
pub mod drops;
pub mod engine;
pub mod events;
pub mod fleet;
pub mod load;
pub mod overload;
pub mod parallel;
mod placement;
pub mod planning;
pub mod policy;
pub mod random;
pub mod record;
pub mod scenario;
pub mod standard;
pub mod suite;
pub mod svg;
pub mod synthetic;
pub mod trial;
pub mod workload;

/// A moment since the start of a run, or a length of time, in nanoseconds. Signed, because the rivals' rules subtract
/// freely; 292 years are enough.
pub type Nanos = i64;
