//! How the poller sleeps: on all doorbells and the wake-up of the other threads at once, until the dispatcher is next due.

use super::Poller;
use crate::wake::Wake;
use rota_sched::Instant;
use rustix::event::{Timespec, epoll};
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

/// While it is busy, the poller looks this often whether a client that it does not poll rang, or one hung up.
pub(super) const BELL_INTERVAL: Duration = Duration::from_micros(50);
/// A client that was quiet for this long is no longer polled: it has to ring.
const QUIET: Duration = Duration::from_millis(5);
/// A sleep shorter than this is spun through: waking up takes longer.
const SLEEP_MIN: Duration = Duration::from_micros(20);
/// What the epoll set reports for [`Wake`]; clients are reported by slab key.
const WAKE: u64 = u64::MAX;

/// The epoll set, with the wake-up in it.
pub(super) fn epoll(wake: &Wake) -> io::Result<OwnedFd> {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    epoll::add(&epoll, wake, epoll::EventData::new_u64(WAKE), epoll::EventFlags::IN)?;
    Ok(epoll)
}

impl Poller {
    /// Adds a new client's doorbell.
    pub(super) fn watch(&self, key: usize) -> io::Result<()> {
        let doorbell = self.clients.entries[key].connection.doorbell();
        epoll::add(&self.epoll, doorbell, epoll::EventData::new_u64(key as u64), epoll::EventFlags::IN)?;
        Ok(())
    }

    /// Sleeps until a client rings, a device or another thread has something, or the dispatcher is due. Returns at once
    /// when work arrived while it made ready to sleep.
    pub(super) fn sleep(&mut self) {
        let timeout = self.dispatcher.next_timeout().map(|due| due.since(self.clock.now()));
        if timeout.is_some_and(|t| t < SLEEP_MIN) {
            return;
        }
        if self.arm_all() {
            self.wake.prepare_sleep();
            // Looked at after `prepare_sleep`, so that whatever comes later wakes us.
            let now = self.clock.now();
            let worked = self.take_finished() | self.take_commands(now);
            if worked {
                self.schedule(now);
                self.publish();
            } else {
                self.wait_for_bells(timeout);
            }
            self.wake.awake();
        }
        self.stop_polling_the_quiet();
    }

    /// Asks every polled client to ring. False when one has submitted meanwhile.
    fn arm_all(&mut self) -> bool {
        let mut index = 0;
        while let Some(&key) = self.clients.polled.get(index) {
            match self.clients.entries[key].connection.arm() {
                Ok(true) => index += 1,
                Ok(false) => return false,
                Err(poisoned) => self.disconnect(key, Some(poisoned.to_string())),
            }
        }
        true
    }

    /// Clients that were quiet are armed and leave the list; the others are polled again.
    fn stop_polling_the_quiet(&mut self) {
        let now = self.clock.now();
        let entries = &mut self.clients.entries;
        self.clients.polled.retain(|&key| {
            let client = &mut entries[key];
            // One with requests in flight is about to submit its next.
            let quiet = client.in_flight == 0 && now.since(client.last_heard) >= QUIET;
            // Armed here, whatever happened before: `arm_all` may have stopped at a client that stands earlier in the list.
            // One that has submitted meanwhile, or broke the protocol, is dealt with when its ring is drained.
            client.polled = !(quiet && client.connection.arm() == Ok(true));
            if client.polled {
                client.connection.disarm();
            }
            client.polled
        });
    }

    pub(super) fn look_at_bells(&mut self) {
        self.wait_for_bells(Some(Duration::ZERO));
    }

    fn wait_for_bells(&mut self, timeout: Option<Duration>) {
        let timeout = timeout.map(|t| Timespec { tv_sec: t.as_secs() as i64, tv_nsec: i64::from(t.subsec_nanos()) });
        let mut events = [const { std::mem::MaybeUninit::<epoll::Event>::uninit() }; 64];
        // An interrupted wait is a wake-up without events.
        let Ok((events, _)) = epoll::wait(&self.epoll, &mut events, timeout.as_ref()) else { return };
        let now = self.clock.now();
        for event in events {
            if event.data.u64() == WAKE {
                self.wake.drain();
                continue;
            }
            self.answer_bell(event.data.u64() as usize, now);
        }
    }

    fn answer_bell(&mut self, key: usize, now: Instant) {
        // A client that left during this very round of events.
        let Some(client) = self.clients.entries.get_mut(key) else { return };
        if client.dying {
            // Its doorbell stays readable for as long as it is watched.
            let _ = epoll::delete(&self.epoll, client.connection.doorbell());
        } else if client.connection.drain_doorbell() {
            self.clients.poll(key, now);
        } else {
            self.disconnect(key, None);
        }
    }
}
