use super::*;
use crate::control::{Reply, Request};
use proptest::prelude::*;
use std::os::unix::net::UnixStream;

fn questions() -> Vec<Request> {
    vec![
        Request::Hello { versions: vec![1, 2], client: "té".into(), slots: 64, arena_bytes: 1 << 26 },
        Request::Open { model: "m".into(), version: Some(3), slo_ms: None },
        Request::Status {},
    ]
}

proptest! {
    #[test]
    fn frames_are_read_whole_however_they_are_cut(cuts in proptest::collection::vec(1..40usize, 1..200)) {
        let bytes: Vec<u8> = questions().iter().flat_map(|question| encode(question, 1024).unwrap()).collect();
        let mut reader = FrameReader::new(1024);
        let mut read: Vec<Request> = Vec::new();
        let (mut rest, mut cuts) = (&bytes[..], cuts.into_iter().cycle());
        while !rest.is_empty() {
            let (chunk, after) = rest.split_at(cuts.next().unwrap().min(rest.len()));
            rest = after;
            reader.push(chunk);
            while let Some(question) = reader.next().unwrap() {
                read.push(question);
            }
        }
        prop_assert_eq!(read, questions());
        prop_assert!(!reader.is_partial());
    }
}

#[test]
fn too_long_a_frame_is_refused_before_its_bytes_come() {
    let mut reader = FrameReader::new(100);
    reader.push(&101u32.to_le_bytes());
    assert!(matches!(reader.next::<Request>(), Err(FrameError::TooLong { bytes: 101, bytes_max: 100 })));
    let long = Request::Load { model: "m".repeat(100), version: None };
    assert!(matches!(encode(&long, 100), Err(FrameError::TooLong { .. })));
}

#[test]
fn frame_that_is_no_message_is_refused() {
    for json in ["", "{}", "\"status\"", "{\"status\":{\"extra\":1}}", "{\"open\":{}}", "\u{0}"] {
        let mut reader = FrameReader::new(100);
        reader.push(&(json.len() as u32).to_le_bytes());
        reader.push(json.as_bytes());
        assert!(matches!(reader.next::<Request>(), Err(FrameError::Message(_))), "{json}");
    }
}

#[test]
fn fill_tells_bytes_silence_and_hang_up_apart() {
    let (mut ours, mut theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let mut reader = FrameReader::new(100);
    assert_eq!(reader.fill(&mut ours).unwrap(), Filled::Blocked);
    io::Write::write_all(&mut theirs, &[1, 0]).unwrap();
    assert_eq!(reader.fill(&mut ours).unwrap(), Filled::Some);
    drop(theirs);
    assert_eq!(reader.fill(&mut ours).unwrap(), Filled::End);
    assert!(reader.is_partial());
}

#[test]
fn descriptors_come_with_their_frame_though_the_stream_is_slow() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let pipes = || rustix::pipe::pipe().unwrap();
    let ((a, b), (c, d)) = (pipes(), pipes());
    let welcome = Reply::Welcome { version: 1, daemon: "rota".into(), slots: 8, arena_bytes: 4096 };
    let filler = Reply::Error { code: crate::control::ErrorCode::Limit, message: "x".repeat(1 << 20) };
    let mut writer = FrameWriter::default();
    writer.push(&filler, 2 << 20).unwrap();
    writer.push_with_fds(&welcome, 2 << 20, [a, b, c, d]).unwrap();
    assert!(!writer.flush(&ours).unwrap(), "a megabyte does not fit the socket");

    let (mut reader, mut descriptors, mut replies) = (FrameReader::new(2 << 20), Vec::new(), Vec::<Reply>::new());
    let mut bytes = vec![0; 5000];
    while replies.len() < 2 {
        writer.flush(&ours).unwrap();
        let count = recv_with_fds(theirs.as_fd(), &mut bytes, &mut descriptors).unwrap();
        reader.push(&bytes[..count]);
        while let Some(reply) = reader.next().unwrap() {
            replies.push(reply);
        }
    }
    assert_eq!(descriptors.len(), 4);
    assert_eq!((&replies[0], &replies[1], writer.waiting_bytes()), (&filler, &welcome, 0));
    rustix::io::write(&descriptors[1], b"x").unwrap();
    assert_eq!(rustix::io::read(&descriptors[0], &mut [0u8; 1][..]), Ok(1));
    let flags = rustix::io::fcntl_getfd(&descriptors[0]).unwrap();
    assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
}

#[test]
fn credentials_are_the_peers() {
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let found = peer_credentials(&ours).unwrap();
    assert_eq!(found.pid, std::process::id() as i32);
    assert_eq!(found.uid, rustix::process::getuid().as_raw());
}
