//! The one clock of the daemon: `CLOCK_MONOTONIC`, the same that clients stamp deadlines with.

use rota_sched::Instant;
use std::time::Duration;

/// Reads `CLOCK_MONOTONIC`, and places `std` instants (from devices) on the same scale.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    /// The same moment on both scales.
    anchor: (std::time::Instant, Instant),
}

impl Clock {
    pub fn new() -> Clock {
        Clock { anchor: (std::time::Instant::now(), now()) }
    }

    pub fn now(&self) -> Instant {
        now()
    }

    pub fn place(&self, at: std::time::Instant) -> Instant {
        match at.checked_duration_since(self.anchor.0) {
            Some(after) => self.anchor.1 + after,
            None => self.anchor.1 - self.anchor.0.duration_since(at),
        }
    }
}

impl Default for Clock {
    fn default() -> Self {
        Clock::new()
    }
}

fn now() -> Instant {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Instant(t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64)
}

/// Nanoseconds of a duration, saturating: what goes into descriptors.
pub fn nanos(d: Duration) -> u64 {
    u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)
}

pub fn millis(d: Duration) -> f64 {
    d.as_secs_f64() * 1e3
}
