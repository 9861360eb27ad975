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
        let expiry = Some(self.runs_due).filter(|&due| due < Instant::MAX);
        let due = [self.dispatcher.next_timeout(), self.next_watch(), expiry].into_iter().flatten().min();
        let timeout = due.map(|due| due.since(self.clock.now()));
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

    /// Asks every polled client to ring. False when one has submitted meanwhile; those after it are not asked.
    fn arm_all(&mut self) -> bool {
        let mut index = 0;
        while let Some(&key) = self.clients.polled.get(index) {
            let client = &mut self.clients.entries[key];
            match client.connection.arm() {
                Ok(true) => client.armed = true,
                Ok(false) => return false,
                Err(poisoned) => {
                    self.disconnect(key, Some(poisoned.to_string()));
                    continue; // Another stands at `index` now.
                }
            }
            index += 1;
        }
        true
    }

    /// Clients that were quiet stay armed and leave the list; the others are polled again. One that is not armed stays however
    /// quiet it was: nothing would ever tell of its next submission.
    fn stop_polling_the_quiet(&mut self) {
        let now = self.clock.now();
        let entries = &mut self.clients.entries;
        self.clients.polled.retain(|&key| {
            let client = &mut entries[key];
            // One with requests in flight is about to submit its next.
            let stays = !client.armed || client.in_flight > 0 || now.since(client.last_heard) < QUIET;
            if stays {
                client.armed = false;
                client.connection.disarm();
            } else {
                client.polled = false;
            }
            stays
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

#[cfg(test)]
mod tests {
    use super::super::Options;
    use super::super::messages::ConnectionId;
    use super::*;
    use rota_ipc::region::Regions;
    use rota_ipc::ring::{AWAKE, Producer};
    use rota_ipc::server::Connection;
    use std::sync::Arc;
    use std::sync::atomic::Ordering;

    /// A poller without devices, and `count` clients that have said nothing since the clock began.
    fn poller(count: u64) -> (Poller, Vec<Regions>) {
        let options = Options {
            requests_max: 8,
            sessions_max: 8,
            requests_per_user: 8,
            queries_max: 1,
            runs_max: 1,
            runs_per_user: 1,
            spin: Duration::ZERO,
            prepare_lead: Duration::ZERO,
            start_lead: Duration::ZERO,
            plan_interval: Duration::ZERO,
        };
        let (_, commands) = std::sync::mpsc::channel();
        let wake = Arc::new(Wake::new().unwrap());
        let mut poller = Poller::new(options, Vec::new(), commands, Box::new(|_| {}), wake).unwrap();
        let clients = (0..count).map(|id| {
            let (connection, [client, daemon, arena, _]) = Connection::create(8, 4096).unwrap();
            let key = poller.clients.insert(ConnectionId(id), connection, 0, String::new(), Instant(0));
            poller.clients.poll(key, Instant(0));
            Regions::open(8, 4096, &[client, daemon, arena]).unwrap()
        });
        let clients = clients.collect();
        (poller, clients)
    }

    #[test]
    fn a_quiet_client_that_is_not_asked_to_ring_is_polled_on() {
        // The one that submits while the others are asked to ring stands before, between and behind them.
        for busy in 0..3 {
            let (mut poller, clients) = poller(3);
            let submissions = clients[busy].submissions();
            let mut producer = Producer::default();
            producer.push(&submissions, &[0; 8]).unwrap();
            assert_eq!(producer.publish(&submissions), AWAKE, "it has no cause to ring");
            poller.sleep();
            for (key, regions) in clients.iter().enumerate() {
                let rings = regions.submissions().need_wake.load(Ordering::Relaxed) != AWAKE;
                assert_eq!(poller.clients.polled.contains(&key), !rings, "client {key} while {busy} submits");
            }
            assert!(poller.clients.polled.contains(&busy));
        }
    }
}
