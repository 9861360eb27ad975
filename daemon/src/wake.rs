//! Waking the poller from other threads.

use rustix::event::{EventfdFlags, eventfd};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering, fence};

/// An eventfd that is only written when the poller sleeps, or is about to.
///
/// The poller stores `asleep`, fences, and looks once more for work; a waker makes its work visible, fences, and looks at
/// `asleep`: at least one of the two sees the other (Dekker).
#[derive(Debug)]
pub struct Wake {
    event: OwnedFd,
    asleep: AtomicBool,
}

impl Wake {
    pub fn new() -> io::Result<Wake> {
        Ok(Wake { event: eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?, asleep: AtomicBool::new(false) })
    }

    /// Called after work was made visible to the poller.
    pub fn wake(&self) {
        fence(Ordering::SeqCst);
        if self.asleep.swap(false, Ordering::Relaxed) {
            // Fails only when the counter is full, and then the poller is woken anyway.
            let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
        }
    }

    /// The poller is about to sleep; it must look for work once more before it does.
    pub fn prepare_sleep(&self) {
        self.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    pub fn awake(&self) {
        self.asleep.store(false, Ordering::Relaxed);
    }

    /// Takes the wake-ups out of the eventfd.
    pub fn drain(&self) {
        let _ = rustix::io::read(&self.event, &mut [0u8; 8]);
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}
