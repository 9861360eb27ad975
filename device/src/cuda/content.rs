//! What lies on a GPU by its content: once, however many networks have it, and for as long as one of them lives.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

/// Values by the hash of their content.
///
/// The lock is held to look and to note, never while a value is made, which may take seconds: whoever wants one that is being made waits for
/// that one, and nobody else waits.
pub(super) struct ByContent<V, E> {
    known: Mutex<HashMap<Hash, Weak<Shared<V, E>>>>,
}

type Hash = [u8; 32];

/// A value that was made, for whoever holds it.
pub(crate) struct Shared<V, E> {
    made: OnceLock<Result<V, E>>,
}

impl<V, E> Default for ByContent<V, E> {
    fn default() -> ByContent<V, E> {
        ByContent { known: Mutex::default() }
    }
}

impl<V, E: Clone> ByContent<V, E> {
    /// The value with this hash, made by `make` where nobody has it. After an error the next that asks tries again.
    pub fn get(&self, hash: Hash, make: impl FnOnce() -> Result<V, E>) -> Result<Arc<Shared<V, E>>, E> {
        let shared = {
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            known.get(&hash).and_then(Weak::upgrade).unwrap_or_else(|| {
                known.retain(|_, shared| shared.strong_count() > 0);
                let shared = Arc::new(Shared { made: OnceLock::new() });
                known.insert(hash, Arc::downgrade(&shared));
                shared
            })
        };
        match shared.made.get_or_init(make) {
            Ok(_) => Ok(shared),
            Err(error) => {
                let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
                if known.get(&hash).is_some_and(|known| std::ptr::eq(known.as_ptr(), &*shared)) {
                    known.remove(&hash);
                }
                Err(error.clone())
            }
        }
    }

    /// The sum of what `size` says of each value that is there.
    pub fn sum(&self, size: impl Fn(&V) -> u64) -> u64 {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let held: Vec<Arc<Shared<V, E>>> = known.values().filter_map(Weak::upgrade).collect();
        drop(known);
        held.iter().filter_map(|shared| shared.made.get()?.as_ref().ok()).map(size).sum()
    }
}

impl<V, E> Shared<V, E> {
    /// The value.
    pub fn value(&self) -> &V {
        let made = self.made.get().and_then(|made| made.as_ref().ok());
        made.expect("`ByContent::get` gives only what was made")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn who_wants_another_value_does_not_wait_for_one_that_is_being_made() {
        let values: ByContent<u32, String> = ByContent::default();
        let (started, is_started) = channel();
        let (release, is_released) = channel::<()>();
        std::thread::scope(|scope| {
            let slow = scope.spawn({
                let values = &values;
                move || {
                    let make = || {
                        started.send(()).unwrap();
                        is_released.recv().map_err(|_| "not released".to_owned()).map(|()| 1)
                    };
                    values.get([1; 32], make).unwrap()
                }
            });
            is_started.recv().unwrap();
            assert_eq!(*values.get([2; 32], || Ok(2)).unwrap().value(), 2);
            let same = scope.spawn(|| values.get([1; 32], || Err("it was made twice".to_owned())).unwrap());
            release.send(()).unwrap();
            assert!(Arc::ptr_eq(&slow.join().unwrap(), &same.join().unwrap()));
        });
    }

    #[test]
    fn a_value_goes_with_its_last_holder_and_an_error_with_whoever_met_it() {
        let values: ByContent<u32, String> = ByContent::default();
        let first = values.get([1; 32], || Ok(10)).unwrap();
        assert_eq!(*values.get([1; 32], || Ok(20)).unwrap().value(), 10);
        assert_eq!(values.sum(|&value| u64::from(value)), 10);
        drop(first);
        assert_eq!(*values.get([1; 32], || Ok(20)).unwrap().value(), 20);
        assert_eq!(values.get([3; 32], || Err("full".into())).map(drop), Err("full".to_owned()));
        assert_eq!(*values.get([3; 32], || Ok(30)).unwrap().value(), 30);
        assert_eq!(values.sum(|&value| u64::from(value)), 0, "nobody holds any");
    }
}
