//! Control messages on the Unix stream socket: a frame is a `u32` little-endian length and as many bytes of JSON.

use rustix::cmsg_space;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::{Serialize, de::DeserializeOwned};
use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Bytes of a frame's length.
pub const LENGTH_BYTES: usize = 4;
/// Descriptors that one message can carry: those of [`crate::control::Reply::Welcome`].
pub const DESCRIPTORS_MAX: usize = 4;

/// What is wrong with a frame. The stream can't be read further; its peer is disconnected.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// Longer than the reader, or the protocol, takes.
    #[error("a frame of {bytes} bytes; {bytes_max} are possible")]
    TooLong { bytes: usize, bytes_max: usize },
    /// The frame was whole, but no message of the protocol.
    #[error("not a message of this protocol: {0}")]
    Message(#[from] serde_json::Error),
    /// The peer hung up in the middle of a frame.
    #[error("the stream ended within a frame")]
    Cut,
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A message as a frame. Fails when its JSON is longer than `bytes_max`.
pub fn encode(message: &impl Serialize, bytes_max: usize) -> Result<Vec<u8>, FrameError> {
    let mut frame = vec![0; LENGTH_BYTES];
    serde_json::to_writer(&mut frame, message)?;
    let bytes = frame.len() - LENGTH_BYTES;
    if bytes > bytes_max {
        return Err(FrameError::TooLong { bytes, bytes_max });
    }
    let length = u32::try_from(bytes).map_err(|_| FrameError::TooLong { bytes, bytes_max: u32::MAX as usize })?;
    frame[..LENGTH_BYTES].copy_from_slice(&length.to_le_bytes());
    Ok(frame)
}

/// Puts frames together from a stream that gives whatever it has.
///
/// Holds at most one frame of `bytes_max` and one read. The length is checked before its bytes are waited for.
#[derive(Debug)]
pub struct FrameReader {
    bytes_max: usize,
    /// Bytes read; those before `start` were given out.
    buffer: Vec<u8>,
    start: usize,
}

/// What [`FrameReader::fill`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filled {
    /// Bytes came; there may be more.
    Some,
    /// Nothing now (a non-blocking stream).
    Blocked,
    /// The peer hung up.
    End,
}

impl FrameReader {
    /// `bytes_max` bounds a frame's JSON: [`crate::control::REQUEST_BYTES_MAX`] for the daemon.
    pub fn new(bytes_max: usize) -> FrameReader {
        FrameReader { bytes_max, buffer: Vec::new(), start: 0 }
    }

    /// Reads once. Call [`FrameReader::next`] until it has no frame before filling again: that bounds the buffer.
    pub fn fill(&mut self, stream: &mut impl Read) -> io::Result<Filled> {
        let mut bytes = [0; READ_BYTES];
        loop {
            return match stream.read(&mut bytes) {
                Ok(0) => Ok(Filled::End),
                Ok(count) => {
                    self.push(&bytes[..count]);
                    Ok(Filled::Some)
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(Filled::Blocked),
                Err(error) => Err(error),
            };
        }
    }

    /// Takes bytes that the caller has read.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next message, when its frame is whole.
    #[expect(clippy::should_implement_trait, reason = "it is no iterator: it can fail, and go on after more bytes")]
    pub fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, FrameError> {
        let unread = &self.buffer[self.start..];
        let Some((length, rest)) = unread.split_first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
        let bytes = u32::from_le_bytes(*length) as usize;
        if bytes > self.bytes_max {
            return Err(FrameError::TooLong { bytes, bytes_max: self.bytes_max });
        }
        let Some(json) = rest.get(..bytes) else { return Ok(None) };
        self.start += LENGTH_BYTES + bytes;
        Ok(Some(serde_json::from_slice(json)?))
    }

    /// Bytes that were read and not given out as messages.
    pub fn waiting_bytes(&self) -> usize {
        self.buffer.len() - self.start
    }

    /// Whether the bytes so far end within a frame: then a hang-up cut it.
    pub fn is_partial(&self) -> bool {
        self.start < self.buffer.len()
    }
}

const READ_BYTES: usize = 8 << 10;

/// Sends what it can of `bytes`, with `descriptors` (at most [`DESCRIPTORS_MAX`]) on the first; returns how many bytes went.
/// The descriptors go with the first byte: send the rest without them. Never raises SIGPIPE.
pub fn send_with_fds(socket: BorrowedFd<'_>, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        let text = format!("{} descriptors; a message carries {DESCRIPTORS_MAX}", descriptors.len());
        return Err(io::Error::new(ErrorKind::InvalidInput, text));
    }
    loop {
        match sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL) {
            Err(rustix::io::Errno::INTR) => {}
            sent => return Ok(sent?),
        }
    }
}

/// Receives into `bytes`, and appends the descriptors that came along (close-on-exec) to `descriptors`; returns how many
/// bytes came, 0 at the end. Fails with `InvalidData` when more descriptors came than [`DESCRIPTORS_MAX`].
pub fn recv_with_fds(socket: BorrowedFd<'_>, bytes: &mut [u8], descriptors: &mut Vec<OwnedFd>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        match recvmsg(socket, &mut [IoSliceMut::new(bytes)], &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            received => break received?,
        }
    };
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(came) = message {
            descriptors.extend(came);
        }
    }
    if received.flags.contains(ReturnFlags::CTRUNC) {
        return Err(io::Error::new(ErrorKind::InvalidData, "more descriptors came than the protocol has"));
    }
    Ok(received.bytes)
}

/// Frames that wait for a non-blocking stream to take them.
#[derive(Debug, Default)]
pub struct FrameWriter {
    /// Bytes to send; those before `start` went.
    buffer: Vec<u8>,
    start: usize,
    /// Descriptors, each with the place in `buffer` of the byte that they go with.
    descriptors: Option<(usize, [OwnedFd; DESCRIPTORS_MAX])>,
}

impl FrameWriter {
    /// Queues a message. Fails when its JSON is longer than `bytes_max`; then nothing was queued.
    pub fn push(&mut self, message: &impl Serialize, bytes_max: usize) -> Result<(), FrameError> {
        let frame = encode(message, bytes_max)?;
        self.buffer.extend_from_slice(&frame);
        Ok(())
    }

    /// Queues a message whose first byte carries `descriptors`. A connection does this once, at its welcome.
    pub fn push_with_fds(
        &mut self,
        message: &impl Serialize,
        bytes_max: usize,
        descriptors: [OwnedFd; DESCRIPTORS_MAX],
    ) -> Result<(), FrameError> {
        assert!(self.descriptors.is_none(), "only one message with descriptors can wait");
        let place = self.buffer.len();
        self.push(message, bytes_max)?;
        self.descriptors = Some((place, descriptors));
        Ok(())
    }

    /// Bytes that wait. The caller bounds them: a peer that reads no replies is disconnected.
    pub fn waiting_bytes(&self) -> usize {
        self.buffer.len() - self.start
    }

    /// Sends until nothing waits (true) or the stream takes no more (false).
    pub fn flush(&mut self, socket: impl AsFd) -> io::Result<bool> {
        while self.start < self.buffer.len() {
            let sent = match &self.descriptors {
                Some((place, descriptors)) if *place == self.start => {
                    let descriptors = descriptors.each_ref().map(|fd| fd.as_fd());
                    send_with_fds(socket.as_fd(), &self.buffer[self.start..], &descriptors)
                }
                Some((place, _)) => send_with_fds(socket.as_fd(), &self.buffer[self.start..*place], &[]),
                None => send_with_fds(socket.as_fd(), &self.buffer[self.start..], &[]),
            };
            let sent = match sent {
                Ok(sent) => sent,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            };
            if self.descriptors.as_ref().is_some_and(|(place, _)| *place == self.start) {
                self.descriptors = None;
            }
            self.start += sent;
        }
        self.buffer.clear();
        self.start = 0;
        Ok(true)
    }
}

/// Who is on the other end of a Unix socket, as of its connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// Process id; 0 when it lives in a namespace that we can't see.
    pub pid: i32,
    pub uid: u32,
    pub gid: u32,
}

/// The peer's credentials, from the kernel (`SO_PEERCRED`): the peer can't forge them.
pub fn peer_credentials(socket: impl AsFd) -> io::Result<Credentials> {
    let found = rustix::net::sockopt::socket_peercred(socket)?;
    Ok(Credentials {
        pid: rustix::process::Pid::as_raw(Some(found.pid)),
        uid: found.uid.as_raw(),
        gid: found.gid.as_raw(),
    })
}

#[cfg(test)]
mod tests;
