//! Arbitrary bytes on the control socket, in arbitrary pieces.

#![no_main]

use libfuzzer_sys::fuzz_target;
use rota_ipc::control::{REQUEST_BYTES_MAX, Request};
use rota_ipc::frame::{FrameReader, encode};

fuzz_target!(|data: &[u8]| {
    let Some((piece_bytes, mut rest)) = data.split_first() else { return };
    let piece_bytes = usize::from(*piece_bytes) + 1;
    let mut reader = FrameReader::new(REQUEST_BYTES_MAX);
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(piece_bytes.min(rest.len()));
        rest = after;
        reader.push(piece);
        loop {
            match reader.next::<Request>() {
                Ok(None) => break,
                // The daemon disconnects.
                Err(_) => return,
                Ok(Some(request)) => {
                    // What we understood can be said, and is understood again.
                    let frame = encode(&request, usize::MAX).expect("a request has a frame");
                    let mut again = FrameReader::new(usize::MAX);
                    again.push(&frame);
                    let again: Option<Request> = again.next().expect("our own frame");
                    assert_eq!(again.map(|again| kind(&again)), Some(kind(&request)));
                }
            }
        }
    }
});

/// All but the numbers' last digits, which JSON may round.
fn kind(request: &Request) -> String {
    match request {
        Request::Open { model, version, slo_ms } => format!("{model:?} {version:?} {}", slo_ms.is_some()),
        other => format!("{other:?}"),
    }
}
