//! The doorbell: a pair of stream sockets on which a byte wakes whoever sleeps, and whose hang-up says that the peer died.
//!
//! The two ends are different file descriptions, so a client can't change the flags of the daemon's end; we neither
//! block nor raise SIGPIPE whatever the flags are.

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// One end.
#[derive(Debug)]
pub struct Doorbell(OwnedFd);

/// Whether the other end of a doorbell still exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    Alive,
    Gone,
}

impl Doorbell {
    /// Both ends, non-blocking: ours and the peer's.
    pub fn pair() -> io::Result<(Doorbell, OwnedFd)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        Ok((Doorbell(ours), theirs))
    }

    /// Rings once. A full socket needs no other byte, and a peer that is gone is noticed by [`Doorbell::drain`]: neither
    /// is an error here.
    pub fn ring(&self) {
        let _ = send(&self.0, &[1], SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
    }

    /// Takes the rings out. It reads a few times at most, so that a peer who rings without end can't keep us.
    pub fn drain(&self) -> Peer {
        let mut bytes = [0u8; 1024];
        for _ in 0..DRAIN_READS_MAX {
            match recv(&self.0, &mut bytes[..], RecvFlags::DONTWAIT) {
                Ok((_, 0)) => return Peer::Gone,
                Ok((_, count)) if count < bytes.len() => return Peer::Alive,
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Peer::Alive,
                Err(_) => return Peer::Gone,
            }
        }
        Peer::Alive
    }
}

impl From<OwnedFd> for Doorbell {
    fn from(fd: OwnedFd) -> Doorbell {
        Doorbell(fd)
    }
}

impl AsFd for Doorbell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A socket's buffer holds a few hundred one-byte messages, so this empties it.
const DRAIN_READS_MAX: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drain_takes_all_rings_and_sees_the_hang_up() {
        let (ours, theirs) = Doorbell::pair().unwrap();
        let theirs = Doorbell::from(theirs);
        assert_eq!(ours.drain(), Peer::Alive);
        for _ in 0..10_000 {
            theirs.ring();
        }
        assert_eq!(ours.drain(), Peer::Alive);
        let mut byte = [0u8; 1];
        assert_eq!(recv(&ours, &mut byte[..], RecvFlags::DONTWAIT), Err(Errno::AGAIN));
        drop(theirs);
        assert_eq!(ours.drain(), Peer::Gone);
        ours.ring();
    }
}
