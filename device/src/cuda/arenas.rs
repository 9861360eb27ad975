//! Clients' arenas as the driver knows them: each registered once in this process, for all its GPUs.
//!
//! What NVIDIA's documentation says (driver API, `cuMemHostRegister`, `cuCtxDestroy`): with PORTABLE the memory is pinned for every
//! context, not just the one that registered it; with DEVICEMAP each context has an address for it; a second registration of the same range
//! is refused, whichever context asks. But the registration belongs to the context in which it was made, and goes when that is destroyed or
//! reset, as a lost GPU's is before it can come back. So whoever resets a context first hands what it registered to another GPU
//! ([`leave`]), and what could not be handed on is registered by the next that comes ([`join`]).
//!
//! It does not say what becomes of a copy under way from memory that is unregistered. So nobody unregisters memory that is in use: a client's is
//! let go when it has gone and its last batch has ended, and for the moment of handing on, GPUs are given no work with arenas ([`Giving`])
//! and end what they have.

use super::driver::Registration;
use super::gpu::Session;
use crate::Arena;
use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, Weak};

/// One for the process, as registrations are. Looking up takes a read lock and a hash; everything else is slow, and waits only for its like.
static ARENAS: LazyLock<Arenas> = LazyLock::new(Arenas::default);

#[derive(Default)]
struct Arenas {
    /// By where they begin. Locked for writing to put in or take out, and while the driver registers only when a GPU comes or is lost.
    known: RwLock<HashMap<usize, Known>>,
    /// All that were begun. Held by whoever changes registrations.
    sessions: Mutex<Vec<Weak<Session>>>,
    /// Read while work is given to a GPU, written while registrations move.
    giving: RwLock<()>,
}

/// An arena that somebody has asked for.
struct Known {
    /// `None`: every GPU refused; copies are right all the same, and slower.
    registration: Option<Registration>,
    /// By GPU: where its kernels find the arena.
    addresses: Vec<(u32, u64)>,
    /// Behind the registration, which is dropped first.
    memory: Arena,
}

/// While this is held, registrations stay where they are, and so do the addresses of arenas.
pub(crate) struct Giving(#[expect(dead_code, reason = "held, not read")] RwLockReadGuard<'static, ()>);

/// To be held while a GPU is given copies or kernels that reach arenas.
pub(super) fn giving() -> Giving {
    Giving(ARENAS.giving.read().unwrap_or_else(PoisonError::into_inner))
}

/// Registers an arena that is not known yet. Slow: it pins every page.
///
/// Leaves the thread in whichever context.
pub(super) fn register(memory: &Arena) {
    if !ARENAS.knows(memory) {
        let sessions = ARENAS.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        ARENAS.register(memory, sessions);
    }
}

/// As [`register`], but only when that is nobody's work at this moment: for a thread that serves. Whether it was done, which leaves the
/// thread in whichever context.
pub(super) fn register_unless_busy(memory: &Arena) -> bool {
    if ARENAS.knows(memory) {
        return false;
    }
    let Ok(sessions) = ARENAS.sessions.try_lock() else { return false };
    ARENAS.register(memory, sessions);
    true
}

/// Lets go of an arena that only the caller has any more; false while somebody else, a batch, still has it.
pub(super) fn let_go(memory: &Arena) -> bool {
    let _changing = ARENAS.sessions.lock().unwrap_or_else(PoisonError::into_inner);
    ARENAS.sweep();
    // The caller's, and ours.
    let unused = |known: &Known| Arc::strong_count(&known.memory) <= 2;
    let begin = memory.as_ptr() as usize;
    let mut known = ARENAS.known.write().unwrap_or_else(PoisonError::into_inner);
    match known.get(&begin).filter(|known| Arc::ptr_eq(&known.memory, memory)) {
        None => Arc::strong_count(memory) <= 1,
        Some(found) if !unused(found) => false,
        Some(_) => {
            let gone = known.remove(&begin);
            // Unpinning takes its time; others look up meanwhile.
            drop(known);
            drop(gone);
            true
        }
    }
}

/// Where kernels of GPU `ordinal` find the arena; `None` when it is not registered.
pub(super) fn address(memory: &Arena, ordinal: u32) -> Option<u64> {
    let known = ARENAS.known.read().unwrap_or_else(PoisonError::into_inner);
    let known = known.get(&(memory.as_ptr() as usize)).filter(|known| Arc::ptr_eq(&known.memory, memory))?;
    known.addresses.iter().find(|(gpu, _)| *gpu == ordinal).map(|(_, address)| *address)
}

/// A session has begun: arenas that nobody could register so far are registered with it, and its addresses of all are found.
pub(super) fn join(session: &Arc<Session>) {
    let mut sessions = ARENAS.sessions.lock().unwrap_or_else(PoisonError::into_inner);
    sessions.retain(|known| known.strong_count() > 0);
    sessions.push(Arc::downgrade(session));
    ARENAS.sweep();
    let mut known = ARENAS.known.write().unwrap_or_else(PoisonError::into_inner);
    for arena in known.values_mut() {
        // SAFETY: the range stays mapped while `memory` lives, which is kept beside the registration and dropped after it.
        arena.registration = arena.registration.take().or_else(|| unsafe { registered(session, &arena.memory) });
        arena.find_addresses(std::slice::from_ref(session));
    }
}

/// A session is over: what was registered in its context is another's from now on, where there is another. Called before the context is reset or
/// let go; again, where that has failed in between.
pub(super) fn leave(session: &Session) {
    // Dropped behind the lock, which the end of a session takes.
    let others: Vec<Arc<Session>>;
    let mut sessions = ARENAS.sessions.lock().unwrap_or_else(PoisonError::into_inner);
    sessions.retain(|known| known.strong_count() > 0 && !std::ptr::eq(known.as_ptr(), session));
    ARENAS.sweep();
    others = living(&sessions);
    let of_this = |arena: &Known| arena.registration.as_ref().map(|held| held.is_of(&session.context));
    let places: Vec<(usize, bool)> = {
        let known = ARENAS.known.read().unwrap_or_else(PoisonError::into_inner);
        let places = known.iter().map(|(&begin, arena)| (begin, of_this(arena)));
        places
            .filter(|(_, of_this)| *of_this != Some(false))
            .map(|(begin, of_this)| (begin, of_this.is_some()))
            .collect()
    };
    for (begin, is_registered) in places {
        // For each anew, so that the others' batches wait for one arena at most; and not for what no GPU can reach.
        let _nobody_gives = is_registered.then(|| ARENAS.giving.write().unwrap_or_else(PoisonError::into_inner));
        if is_registered {
            // One that can't end its work is lost, and its copies with it.
            others.iter().for_each(|other| drop(other.finish()));
        }
        let mut known = ARENAS.known.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(arena) = known.get_mut(&begin) {
            arena.hand_on(&others);
        }
    }
}

fn living(sessions: &[Weak<Session>]) -> Vec<Arc<Session>> {
    sessions.iter().filter_map(Weak::upgrade).filter(|session| !session.is_lost()).collect()
}

/// # Safety
/// The arena stays mapped until the registration is dropped.
unsafe fn registered(session: &Session, memory: &Arena) -> Option<Registration> {
    // SAFETY: the caller's promise.
    unsafe { Registration::new(&session.context, memory.as_mut_ptr(), memory.len()) }.ok()
}

impl Arenas {
    fn knows(&self, memory: &Arena) -> bool {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.get(&(memory.as_ptr() as usize)).is_some_and(|known| Arc::ptr_eq(&known.memory, memory))
    }

    fn register(&self, memory: &Arena, sessions: MutexGuard<'_, Vec<Weak<Session>>>) {
        self.sweep();
        // Somebody else may have been faster.
        if self.knows(memory) {
            return;
        }
        let living = living(&sessions);
        // SAFETY: the range stays mapped while `memory` lives, which is kept beside the registration and dropped after it.
        let registration = living.iter().find_map(|session| unsafe { registered(session, memory) });
        let mut arena = Known { registration, addresses: Vec::new(), memory: Arc::clone(memory) };
        arena.find_addresses(&living);
        self.known.write().unwrap_or_else(PoisonError::into_inner).insert(memory.as_ptr() as usize, arena);
        // Before the sessions, of which one may end here: that takes the lock.
        drop(sessions);
    }

    /// Lets go of what nobody has any more: what measuring a network used. The caller holds `sessions`.
    fn sweep(&self) {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        let unused: Vec<Known> =
            known.extract_if(|_, arena| Arc::strong_count(&arena.memory) == 1).map(|(_, arena)| arena).collect();
        drop(known);
        drop(unused);
    }
}

impl Known {
    /// Finds the arena's addresses for these sessions' GPUs anew.
    fn find_addresses(&mut self, sessions: &[Arc<Session>]) {
        for session in sessions {
            self.addresses.retain(|(gpu, _)| *gpu != session.ordinal());
            let address = self.registration.as_ref().and_then(|held| held.device_address(&session.context).ok());
            self.addresses.extend(address.map(|address| (session.ordinal(), address)));
        }
    }

    /// Registers it with the first of these sessions that can, instead of with whichever it was.
    fn hand_on(&mut self, to: &[Arc<Session>]) {
        let held = self.registration.take();
        self.addresses.clear();
        // Without another the registration ends with its context; or now, where that still answers.
        let Some(first) = to.first() else { return };
        if let Some(held) = held {
            held.end_from(&first.context);
        }
        // SAFETY: as in `register`.
        self.registration = to.iter().find_map(|session| unsafe { registered(session, &self.memory) });
        self.find_addresses(to);
    }
}
