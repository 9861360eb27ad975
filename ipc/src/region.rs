//! The three shared memory regions of a connection, and where everything lies in them.
//!
//! The daemon makes all three as memfds and seals their size, so that no client can truncate one under the daemon
//! (which would be a SIGBUS). Each word has one writer, and the MMU enforces it: the daemon maps the client region
//! read-only, and the daemon region is sealed against new writable mappings once the daemon has its own.
//! Pages are allocated and mapped up front: a first touch in the hot path would cost a page fault for each 4 KiB.

use crate::ring::{Ring, Slot};
use crate::wire::{BLOCK_BYTES, DESCRIPTOR_BYTES, RECORD_BYTES, SLOTS_MAX, SLOTS_MIN};
use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64};

/// Bytes of control words at the start of the client and of the daemon region; the ring follows.
pub const CONTROL_BYTES: usize = 4096;
/// Regions are multiples of this, whatever the machine's own page size: the layout must not depend on it.
pub const PAGE_BYTES: usize = 4096;
/// Client region: entries that the client published in the submission ring.
pub const SQ_TAIL: usize = 0;
/// Client region: entries that the client took from the completion ring.
pub const CQ_HEAD: usize = 128;
/// Daemon region: entries that the daemon published in the completion ring; the client's futex word.
pub const CQ_TAIL: usize = 0;
/// Daemon region: entries that the daemon took from the submission ring.
pub const SQ_HEAD: usize = 128;
/// Either region: how its owner wants to be woken.
pub const NEED_WAKE: usize = 256;
/// Daemon region: a [`State`].
pub const STATE: usize = 384;

/// What the daemon's state word says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum State {
    Serving = 1,
    /// No more submissions are taken; what was taken is still answered.
    Draining = 2,
    /// The client broke the protocol, and the daemon ended the connection.
    Poisoned = 3,
}

/// Entries of the submission ring: one for each request in flight and one for its cancel.
pub fn submission_entries(slots: u32) -> usize {
    2 * slots as usize
}

/// Bytes of the client region, whole pages.
pub fn client_bytes(slots: u32) -> usize {
    whole_pages(blocks_offset(slots) + slots as usize * BLOCK_BYTES)
}

/// Bytes of the daemon region, whole pages.
pub fn daemon_bytes(slots: u32) -> usize {
    whole_pages(records_offset(slots) + slots as usize * RECORD_BYTES)
}

/// Where block 0 lies in the client region.
pub fn blocks_offset(slots: u32) -> usize {
    CONTROL_BYTES + submission_entries(slots) * DESCRIPTOR_BYTES
}

/// Where record 0 lies in the daemon region.
pub fn records_offset(slots: u32) -> usize {
    CONTROL_BYTES + slots as usize * DESCRIPTOR_BYTES
}

/// One process's mappings of a connection's regions.
///
/// All access goes through atomics, because the peer may write at any time. Storing through the side that the peer
/// owns is a fault of the caller and ends the process (the mapping is read-only).
#[derive(Debug)]
pub struct Regions {
    slots: u32,
    client: MmapRaw,
    daemon: MmapRaw,
    arena: Arc<MmapRaw>,
}

impl Regions {
    /// The daemon's side: makes, maps and seals. Returns the client's descriptors: client region, daemon region, arena.
    ///
    /// It takes about as long as zeroing `arena_bytes`. Fails with `InvalidInput` when `slots` is no power of two in
    /// range or the arena is empty, and with the system's reason when memory or descriptors run out.
    pub fn create(slots: u32, arena_bytes: u64) -> io::Result<(Regions, [OwnedFd; 3])> {
        check_slots(slots)?;
        let arena_bytes = usize::try_from(arena_bytes)
            .ok()
            .and_then(|bytes| bytes.checked_next_multiple_of(PAGE_BYTES))
            .filter(|bytes| (1..=isize::MAX as usize).contains(bytes))
            .ok_or_else(|| invalid(format!("an arena of {arena_bytes} bytes can't be mapped")))?;
        let client_fd = memfd("rota-client", client_bytes(slots))?;
        let daemon_fd = memfd("rota-daemon", daemon_bytes(slots))?;
        let arena_fd = memfd("rota-arena", arena_bytes)?;
        let regions = Regions {
            slots,
            client: MmapOptions::new().len(client_bytes(slots)).populate().map_raw_read_only(client_fd.as_raw_fd())?,
            daemon: MmapOptions::new().len(daemon_bytes(slots)).populate().map_raw(daemon_fd.as_raw_fd())?,
            arena: Arc::new(MmapOptions::new().len(arena_bytes).populate().map_raw(arena_fd.as_raw_fd())?),
        };
        let size = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&client_fd, size)?;
        rustix::fs::fcntl_add_seals(&arena_fd, size)?;
        // Only now, because the seal would also forbid the mapping that we have just made.
        rustix::fs::fcntl_add_seals(&daemon_fd, size | SealFlags::FUTURE_WRITE)?;
        Ok((regions, [client_fd, daemon_fd, arena_fd]))
    }

    /// The client's side: maps what the daemon sent. Fails with `InvalidData` when a region is not as large as it was
    /// promised, because touching what is missing would be a SIGBUS.
    pub fn open(slots: u32, arena_bytes: u64, descriptors: &[OwnedFd; 3]) -> io::Result<Regions> {
        check_slots(slots)?;
        let arena_bytes =
            usize::try_from(arena_bytes).map_err(|_| invalid(format!("no room for {arena_bytes} bytes")))?;
        let [client, daemon, arena] = descriptors;
        for (name, fd, bytes) in [
            ("client region", client, client_bytes(slots)),
            ("daemon region", daemon, daemon_bytes(slots)),
            ("arena", arena, arena_bytes),
        ] {
            let found = rustix::fs::fstat(fd.as_fd())?.st_size;
            if found != bytes as i64 {
                let text = format!("the daemon's {name} has {found} bytes, but {bytes} were promised");
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
        }
        Ok(Regions {
            slots,
            client: MmapOptions::new().len(client_bytes(slots)).populate().map_raw(client.as_raw_fd())?,
            daemon: MmapOptions::new().len(daemon_bytes(slots)).populate().map_raw_read_only(daemon.as_raw_fd())?,
            arena: Arc::new(MmapOptions::new().len(arena_bytes).populate().map_raw(arena.as_raw_fd())?),
        })
    }

    pub fn slots(&self) -> u32 {
        self.slots
    }

    pub fn arena(&self) -> &Arc<MmapRaw> {
        &self.arena
    }

    /// The ring from client to daemon.
    pub fn submissions(&self) -> Ring<'_> {
        Ring {
            tail: word(&self.client, SQ_TAIL),
            head: word(&self.daemon, SQ_HEAD),
            need_wake: word(&self.daemon, NEED_WAKE),
            slots: ring_slots(&self.client, submission_entries(self.slots)),
        }
    }

    /// The ring from daemon to client.
    pub fn completions(&self) -> Ring<'_> {
        Ring {
            tail: word(&self.daemon, CQ_TAIL),
            head: word(&self.client, CQ_HEAD),
            need_wake: word(&self.client, NEED_WAKE),
            slots: ring_slots(&self.daemon, self.slots as usize),
        }
    }

    /// The daemon's word; see [`State`].
    pub fn state(&self) -> &AtomicU32 {
        word(&self.daemon, STATE)
    }

    /// The client's request block of `slot`. Panics when `slot` is out of range.
    pub fn block(&self, slot: u32) -> &[AtomicU64] {
        assert!(slot < self.slots, "slot {slot} of {}", self.slots);
        words(&self.client, blocks_offset(self.slots) + slot as usize * BLOCK_BYTES, BLOCK_BYTES / 8)
    }

    /// The daemon's result record of `slot`. Panics when `slot` is out of range.
    pub fn record(&self, slot: u32) -> &[AtomicU64] {
        assert!(slot < self.slots, "slot {slot} of {}", self.slots);
        words(&self.daemon, records_offset(self.slots) + slot as usize * RECORD_BYTES, RECORD_BYTES / 8)
    }
}

fn check_slots(slots: u32) -> io::Result<()> {
    if slots.is_power_of_two() && (SLOTS_MIN..=SLOTS_MAX).contains(&slots) {
        return Ok(());
    }
    Err(invalid(format!("{slots} request slots; it takes a power of two in {SLOTS_MIN}..={SLOTS_MAX}")))
}

fn invalid(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, text)
}

/// A memfd of `bytes`, its pages allocated. Without the allocation, running out of memory would show as a SIGBUS later.
fn memfd(name: &str, bytes: usize) -> io::Result<OwnedFd> {
    let fd = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    rustix::fs::ftruncate(&fd, bytes as u64)?;
    rustix::fs::fallocate(&fd, FallocateFlags::empty(), 0, bytes as u64)?;
    Ok(fd)
}

fn whole_pages(bytes: usize) -> usize {
    bytes.next_multiple_of(PAGE_BYTES)
}

fn word(map: &MmapRaw, offset: usize) -> &AtomicU32 {
    assert!(offset.is_multiple_of(align_of::<AtomicU32>()) && offset + size_of::<AtomicU32>() <= map.len());
    // SAFETY: the word lies inside the mapping (asserted), which is page-aligned and lives as long as the borrow; any
    // bit pattern is an AtomicU32; both processes access this memory by atomics only.
    unsafe { &*map.as_ptr().add(offset).cast::<AtomicU32>() }
}

fn words(map: &MmapRaw, offset: usize, count: usize) -> &[AtomicU64] {
    assert!(offset.is_multiple_of(align_of::<AtomicU64>()) && offset + count * size_of::<AtomicU64>() <= map.len());
    // SAFETY: as in `word`, for `count` words.
    unsafe { std::slice::from_raw_parts(map.as_ptr().add(offset).cast::<AtomicU64>(), count) }
}

fn ring_slots(map: &MmapRaw, count: usize) -> &[Slot] {
    assert!(CONTROL_BYTES + count * size_of::<Slot>() <= map.len());
    // SAFETY: as in `word`, for `count` slots: a slot is 64-byte-aligned because the mapping and CONTROL_BYTES are.
    unsafe { std::slice::from_raw_parts(map.as_ptr().add(CONTROL_BYTES).cast::<Slot>(), count) }
}

const _: () = {
    assert!(size_of::<Slot>() == DESCRIPTOR_BYTES);
    assert!(CONTROL_BYTES.is_multiple_of(align_of::<Slot>()) && STATE + 128 <= CONTROL_BYTES);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_hold_every_ring_block_and_record_without_overlap() {
        for slots in [SLOTS_MIN, 64, SLOTS_MAX] {
            let last_block = blocks_offset(slots) + slots as usize * BLOCK_BYTES;
            let last_record = records_offset(slots) + slots as usize * RECORD_BYTES;
            assert!(last_block <= client_bytes(slots) && last_record <= daemon_bytes(slots));
            assert_eq!(blocks_offset(slots), CONTROL_BYTES + 2 * slots as usize * DESCRIPTOR_BYTES);
        }
        let (regions, _) = Regions::create(8, 1).unwrap();
        assert_eq!(regions.arena().len(), PAGE_BYTES);
        assert_eq!(regions.block(7).len() * 8, BLOCK_BYTES);
        assert_eq!(regions.record(7).len() * 8, RECORD_BYTES);
    }

    #[test]
    fn bad_sizes_are_refused() {
        for (slots, bytes) in [(0, 4096), (4, 4096), (24, 4096), (8192, 4096), (8, 0), (8, u64::MAX)] {
            let error = Regions::create(slots, bytes).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{slots} slots, {bytes} bytes: {error}");
        }
    }

    #[test]
    fn client_can_neither_resize_a_region_nor_write_the_daemons() {
        let (daemon, descriptors) = Regions::create(8, 4096).unwrap();
        for fd in &descriptors {
            for bytes in [0, 1 << 20] {
                assert_eq!(rustix::fs::ftruncate(fd, bytes), Err(rustix::io::Errno::PERM));
            }
            assert_eq!(rustix::fs::fcntl_add_seals(fd, SealFlags::WRITE), Err(rustix::io::Errno::PERM));
        }
        let denied = MmapOptions::new().len(4096).map_raw(descriptors[1].as_raw_fd()).unwrap_err();
        assert_eq!(denied.kind(), io::ErrorKind::PermissionDenied);
        assert_eq!(rustix::io::write(&descriptors[1], b"x"), Err(rustix::io::Errno::PERM));
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        assert_eq!(rustix::fs::fallocate(&descriptors[1], punch, 0, 4096), Err(rustix::io::Errno::PERM));

        let client = Regions::open(8, 4096, &descriptors).unwrap();
        daemon.state().store(State::Draining as u32, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(client.state().load(std::sync::atomic::Ordering::Relaxed), State::Draining as u32);
        client.block(3)[1].store(77, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(daemon.block(3)[1].load(std::sync::atomic::Ordering::Relaxed), 77);
    }

    #[test]
    fn region_of_another_size_is_refused() {
        let (_daemon, descriptors) = Regions::create(8, 4096).unwrap();
        assert_eq!(Regions::open(16, 4096, &descriptors).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(Regions::open(8, 8192, &descriptors).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
