//! Clients' memory, made known to the devices when a client comes and let go when it has gone: both take time, by its size, and wait neither
//! for models that are being loaded nor hold up who serves.

use crate::background::DeviceRole;
use rota_device::{Arena, Engine, WeakArena};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

/// What happened to a client's memory.
pub enum Change {
    /// Its client has come; the memory is gone when the client is.
    Came(WeakArena),
    /// Its client has gone; at most batches still have it.
    Gone(Arena),
}

/// The thread's whole state.
pub struct Keeper {
    engines: Vec<Arc<dyn Engine>>,
    /// Let go as soon as no batch has them.
    gone: Vec<Arena>,
}

/// Memory that a batch still has is looked at again after this.
const AGAIN: Duration = Duration::from_millis(10);

impl Keeper {
    pub fn new(devices: &[DeviceRole]) -> Keeper {
        let engines = devices.iter().filter_map(DeviceRole::engine).map(|(engine, ..)| Arc::clone(engine)).collect();
        Keeper { engines, gone: Vec::new() }
    }

    /// Works until nobody can send a change any more.
    pub fn run(mut self, changes: Receiver<Change>) {
        loop {
            let change = match self.gone.is_empty() {
                true => changes.recv().map_err(|_| RecvTimeoutError::Disconnected),
                false => changes.recv_timeout(AGAIN),
            };
            match change {
                Ok(Change::Came(arena)) => {
                    if let Some(arena) = arena.upgrade() {
                        self.engines.iter().for_each(|engine| engine.adopt(&arena));
                    }
                }
                Ok(Change::Gone(arena)) => self.gone.push(arena),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            let engines = &self.engines;
            self.gone.retain(|arena| !engines.iter().all(|engine| engine.let_go(arena)));
        }
    }
}
