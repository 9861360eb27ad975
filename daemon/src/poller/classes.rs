//! The shape classes of one model: which requests may share a batch.

use rota_device::{Shape, ShapeClass};
use rota_sched::{ClassId, Instant};
use std::sync::Arc;

/// Shape classes that a model can have in use at once. More would be queues too short to batch, and each costs a profile.
pub const CLASSES_MAX: usize = 64;
/// Longest input that the requests of a batch share: its content is part of the class.
pub const CONSTANT_BYTES_MAX: usize = 64 << 10;

/// The classes seen so far. Looked up by comparing shapes, most recent first: models have a handful of inputs and most have one class.
#[derive(Debug, Default)]
pub struct Classes {
    entries: Vec<Entry>,
    /// Index of the last hit.
    recent: usize,
}

#[derive(Debug)]
struct Entry {
    class: Arc<ShapeClass>,
    /// Requests of this class that wait or run.
    in_use: u32,
    last_used: Instant,
}

/// What [`Classes::intern`] found.
#[derive(Debug, PartialEq, Eq)]
pub enum Interned {
    Known(ClassId),
    /// New, under this number; an idle class had it before if `replaced`.
    New {
        id: ClassId,
        replaced: bool,
    },
    /// All classes are in use.
    Full,
}

/// The class of a request that is being admitted: buffers that are reused from request to request.
#[derive(Debug, Default)]
pub struct Candidate {
    /// One per input, the batch axis holding 0.
    pub shapes: Vec<Shape>,
    /// One per input: how many bytes of `constant_bytes` are its content; `None` for an input that each request has for itself.
    pub constants: Vec<Option<usize>>,
    pub constant_bytes: Vec<u8>,
}

impl Candidate {
    pub fn clear(&mut self) {
        self.shapes.clear();
        self.constants.clear();
        self.constant_bytes.clear();
    }

    fn is(&self, class: &ShapeClass) -> bool {
        if self.shapes != class.inputs {
            return false;
        }
        let mut rest = &self.constant_bytes[..];
        self.constants.iter().zip(&class.constants).all(|(mine, theirs)| match (mine, theirs) {
            (None, None) => true,
            (Some(bytes), Some(theirs)) => {
                let (head, tail) = rest.split_at(*bytes);
                rest = tail;
                *head == **theirs
            }
            _ => false,
        })
    }

    fn to_class(&self) -> ShapeClass {
        let mut rest = &self.constant_bytes[..];
        let constants = self.constants.iter().map(|bytes| {
            bytes.map(|bytes| {
                let (head, tail) = rest.split_at(bytes);
                rest = tail;
                Box::from(head)
            })
        });
        ShapeClass { inputs: self.shapes.clone(), constants: constants.collect() }
    }
}

impl Classes {
    /// The number of the candidate's class; a new class takes the place of the one idle for longest when all are taken.
    pub fn intern(&mut self, candidate: &Candidate, now: Instant) -> Interned {
        let hit = match self.entries.get(self.recent) {
            Some(entry) if candidate.is(&entry.class) => Some(self.recent),
            _ => self.entries.iter().position(|e| candidate.is(&e.class)),
        };
        if let Some(index) = hit {
            self.recent = index;
            self.entries[index].last_used = now;
            return Interned::Known(ClassId(index as u32));
        }
        let entry = Entry { class: Arc::new(candidate.to_class()), in_use: 0, last_used: now };
        if self.entries.len() < CLASSES_MAX {
            self.entries.push(entry);
            return Interned::New { id: ClassId(self.entries.len() as u32 - 1), replaced: false };
        }
        let idle = self.entries.iter().enumerate().filter(|(_, e)| e.in_use == 0).min_by_key(|(_, e)| e.last_used);
        match idle.map(|(index, _)| index) {
            Some(index) => {
                self.entries[index] = entry;
                Interned::New { id: ClassId(index as u32), replaced: true }
            }
            None => Interned::Full,
        }
    }

    pub fn get(&self, id: ClassId) -> &Arc<ShapeClass> {
        &self.entries[id.0 as usize].class
    }

    pub fn ids(&self) -> impl Iterator<Item = ClassId> + use<> {
        (0..self.entries.len() as u32).map(ClassId)
    }

    pub fn enter(&mut self, id: ClassId) {
        self.entries[id.0 as usize].in_use += 1;
    }

    pub fn leave(&mut self, id: ClassId) {
        self.entries[id.0 as usize].in_use -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(dims: &[u32], constant: Option<&[u8]>) -> Candidate {
        let mut c = Candidate::default();
        c.shapes.push(Shape::new(dims).unwrap());
        c.constants.push(None);
        if let Some(bytes) = constant {
            c.shapes.push(Shape::default());
            c.constants.push(Some(bytes.len()));
            c.constant_bytes.extend_from_slice(bytes);
        }
        c
    }

    #[test]
    fn equal_shapes_and_constants_are_one_class() {
        let mut classes = Classes::default();
        let first = classes.intern(&candidate(&[0, 3], Some(&[1, 2])), Instant(0));
        assert_eq!(first, Interned::New { id: ClassId(0), replaced: false });
        assert_eq!(classes.intern(&candidate(&[0, 3], Some(&[1, 2])), Instant(1)), Interned::Known(ClassId(0)));
        let other_constant = classes.intern(&candidate(&[0, 3], Some(&[1, 3])), Instant(2));
        assert_eq!(other_constant, Interned::New { id: ClassId(1), replaced: false });
        let other_shape = classes.intern(&candidate(&[0, 4], Some(&[1, 2])), Instant(3));
        assert_eq!(other_shape, Interned::New { id: ClassId(2), replaced: false });
        assert_eq!(classes.get(ClassId(1)).constants[1].as_deref(), Some(&[1u8, 3][..]));
    }

    #[test]
    fn the_class_idle_for_longest_makes_room_and_one_in_use_never_does() {
        let mut classes = Classes::default();
        for i in 0..CLASSES_MAX as u32 {
            classes.intern(&candidate(&[0, i + 1], None), Instant(u64::from(i)));
        }
        classes.enter(ClassId(0));
        let new = classes.intern(&candidate(&[0, 1000], None), Instant(100));
        assert_eq!(new, Interned::New { id: ClassId(1), replaced: true });
        for id in 1..CLASSES_MAX as u32 {
            classes.enter(ClassId(id));
        }
        assert_eq!(classes.intern(&candidate(&[0, 2000], None), Instant(101)), Interned::Full);
        classes.leave(ClassId(7));
        let again = classes.intern(&candidate(&[0, 2000], None), Instant(102));
        assert_eq!(again, Interned::New { id: ClassId(7), replaced: true });
    }
}
