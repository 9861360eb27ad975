//! What clients do that they must not: each gets one clear error, or is disconnected and told why, and those beside it are
//! served as if nothing had been.

#[allow(dead_code, reason = "not every test file uses all of it")]
mod support;

#[allow(dead_code, reason = "not every test file uses all of it")]
#[path = "support/raw.rs"]
mod raw;

use raw::{Numbers, Raw, good, seed};
use rota_ipc::Client;
use rota_ipc::client::{Error, Open, Request};
use rota_ipc::wire::{
    BLOCK_BYTES, BlockHeader, OP_BEGIN, OP_CANCEL, OP_FINISH, OP_GIVE_UP, Reason, Status, Submission, TensorRecord,
};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use support::{Daemon, Folder, PATIENCE, PATIENT, Witness, emulated, emulated_device, serve, small};

#[test]
fn each_mistake_of_a_library_user_gets_one_error_that_says_what_would_be_right() {
    let folder = Folder::new("mistakes");
    let daemon = serve(&folder);
    let mut witness = Witness::new(&daemon);
    let mut client = daemon.client_with(small());
    let refused = |result: Result<_, Error>| result.map(|_: rota_ipc::client::Session| ()).unwrap_err().to_string();
    let error = refused(client.open("ecco", PATIENT));
    assert_eq!(error, "the daemon refused: there is no model \"ecco\"; there are: echo, slow, wide");
    let error = refused(client.open("echo", Open { version: Some(7), ..PATIENT }));
    assert_eq!(error, "the daemon refused: model \"echo\" has no version 7; it has 1");
    let error = refused(client.open("slow", Open { slo: Some(Duration::from_millis(1999)), ..Open::default() }));
    assert!(
        error.contains("a batch of one of model \"slow\" takes 2000.000 ms; ask for at least 4000.000 ms"),
        "{error}"
    );
    let error = refused(client.open("echo", Open { slo: Some(Duration::ZERO), ..Open::default() }));
    assert!(error.contains("must be above 0"), "{error}");

    let session = client.open("echo", PATIENT).unwrap();
    let cases: [(&[u32], Reason, &str); 4] = [
        (&[1, 5], Reason::WrongShape, "input \"x\" has dimensions [1, 5] with 1 item(s); the model takes [batch, 4]"),
        (&[1, 4, 1], Reason::WrongShape, "input \"x\" has dimensions [1, 4, 1] with 1 item(s)"),
        (&[4], Reason::WrongShape, "input \"x\" has dimensions [4] with 4 item(s)"),
        (&[9, 4], Reason::TooManyItems, "9 items are more than the 8 that one batch of model \"echo\" can hold; split"),
    ];
    for (dims, reason, text) in cases {
        let mut request = client.request(&session).unwrap();
        request.input::<f32>("x", dims).unwrap();
        let answer = client.infer(request).unwrap();
        assert_eq!((answer.status, answer.reason), (Status::Failed, reason), "{}", answer.message());
        assert!(answer.message().contains(text), "{}", answer.message());
        witness.assert_served();
    }
    let mut request = client.request(&session).unwrap();
    assert!(matches!(request.input::<i32>("x", &[1, 4]), Err(Error::WrongElement { .. })));
    assert!(matches!(request.input::<f32>("X", &[1, 4]), Err(Error::UnknownTensor { known, .. }) if known == "x"));
    assert!(matches!(client.submit(request).unwrap_err().error, Error::MissingInput { tensor, .. } if tensor == "x"));
    witness.assert_served();
}

#[test]
fn an_output_that_does_not_fit_its_room_fails_and_is_not_written() {
    let folder = Folder::new("room");
    let daemon = serve(&folder);
    let mut witness = Witness::new(&daemon);
    let mut client = daemon.client_with(small());
    // Room is given in steps of 64 bytes.
    let ask = |client: &Client, model: &rota_ipc::client::Session, dims: [u32; 2]| -> Request {
        let mut request = client.request(model).unwrap();
        request.input::<f32>("x", &dims).unwrap().fill(1.0);
        request.output("y", 64).unwrap();
        request
    };
    for (model, dims) in [("echo", [8, 4]), ("wide", [2, 16])] {
        let session = client.open(model, PATIENT).unwrap();
        let answer = client.infer(ask(&client, &session, dims)).unwrap();
        assert_eq!((answer.status, answer.reason), (Status::Failed, Reason::OutputTooSmall), "{model}");
        assert_eq!(answer.message(), "output \"y\" needs 128 bytes and has room for 64", "{model}");
        assert!(answer.output::<f32>("y").is_err());
        let mut request = answer.into_request();
        request.output("y", 128).unwrap();
        let answer = client.infer(request).unwrap();
        assert_eq!(answer.output::<f32>("y").unwrap().data, [1.0; 32], "{model}");
        witness.assert_served();
    }
    let session = client.open("wide", PATIENT).unwrap();
    let mut request = client.request(&session).unwrap();
    request.input::<f32>("x", &[1, 4]).unwrap();
    assert!(matches!(client.submit(request).unwrap_err().error, Error::RoomUnknown { tensor, .. } if tensor == "y"));
}

#[test]
fn a_client_that_asks_for_more_than_it_has_is_held_back_by_its_own_library() {
    let folder = Folder::new("more");
    let daemon = serve(&folder);
    let mut witness = Witness::new(&daemon);
    let mut client = daemon.client_with(small());
    let wide = client.open("wide", PATIENT).unwrap();
    let mut request = client.request(&wide).unwrap();
    let error = request.input::<f32>("x", &[1, 1 << 20]).unwrap_err();
    assert!(matches!(error, Error::ArenaExhausted { wanted: 4_194_304, arena: 65_536, .. }), "{error}");

    let slow = client.open("slow", PATIENT).unwrap();
    let ask = |client: &Client| {
        let mut request = client.request(&slow).unwrap();
        request.input::<f32>("x", &[1, 4]).unwrap();
        request
    };
    let tickets: Vec<_> = (0..8).map(|_| client.submit(ask(&client)).unwrap()).collect();
    let rejected = client.submit(ask(&client)).unwrap_err();
    assert!(matches!(rejected.error, Error::SlotsFull { slots: 8 }), "{rejected}");
    witness.assert_served();
    // Its request comes back, and has its turn when there is a place.
    assert!(client.cancel(tickets[7]).unwrap());
    assert_eq!(client.wait_for(tickets[7], PATIENCE).unwrap().unwrap().status, Status::Cancelled);
    client.submit(rejected.request).unwrap();
    witness.assert_served();
}

/// A change to a good request, and how that is answered.
type Wrong = (fn(&mut Submission, &mut BlockHeader, &mut Vec<TensorRecord>), Reason, &'static str);

#[test]
fn every_wrong_field_of_a_request_is_answered_with_its_own_error() {
    let cases: &[Wrong] = &[
        (|s, _, _| s.op = 7, Reason::BadDescriptor, "operation 7 is unknown"),
        (|s, _, _| s.priority = 4, Reason::BadDescriptor, "priority 4 is not below 4"),
        (|s, _, _| s.reserved0 = 1, Reason::BadDescriptor, "reserved field"),
        (|s, _, _| s.reserved[2] = 1, Reason::BadDescriptor, "reserved field"),
        (|s, _, _| s.query = 1, Reason::UnknownRun, "run 0x1 is not open"),
        (|s, _, _| s.query = u64::MAX, Reason::UnknownRun, "run 0xffffffffffffffff is not open"),
        (|s, _, _| s.stage = 1, Reason::BadDescriptor, "a stage without a query's run"),
        (|s, _, _| s.slot = 8, Reason::BadSlot, ""),
        (|s, _, _| s.slot = u32::MAX, Reason::BadSlot, ""),
        (|s, _, _| s.block_bytes = 0, Reason::BadBlock, "a request block of 0 bytes"),
        (|s, _, _| s.block_bytes = 128, Reason::BadBlock, "the block has room for 1 tensors"),
        (|s, _, _| s.block_bytes = 191, Reason::BadBlock, "a request block of 191 bytes"),
        (|s, _, _| s.block_bytes = u32::MAX, Reason::BadBlock, "at most 2048"),
        (|_, h, _| h.inputs = 0, Reason::BadBlock, "without an input"),
        (|_, h, _| h.outputs = 255, Reason::BadBlock, "255 outputs"),
        (|_, h, _| h.items = 0, Reason::BadBlock, "no items"),
        (|_, h, _| h.items = 3, Reason::WrongShape, "with 3 item(s)"),
        (|_, h, _| h.reserved0 = 1, Reason::BadBlock, "must be zero"),
        (|_, h, _| h.reserved[0] = 1, Reason::BadBlock, "must be zero"),
        (|_, h, _| h.session[7] = 1, Reason::BadBlock, "must be zero"),
        (|_, h, _| h.sessions = 0, Reason::BadBlock, "0 sessions"),
        (|_, h, _| h.sessions = 9, Reason::BadBlock, "9 sessions"),
        (|_, h, _| h.sessions = 2, Reason::BadBlock, "model \"echo\" is asked twice"),
        (|_, h, _| (h.sessions, h.session[1]) = (2, 99), Reason::UnknownSession, "session 99 is not open"),
        (|_, h, _| h.session[0] = 99, Reason::UnknownSession, "session 99 is not open"),
        (|_, h, _| h.session[0] = u32::MAX, Reason::UnknownSession, "is not open"),
        (|_, _, t| t[0].dtype = 0, Reason::WrongDtype, "unknown element type 0"),
        (|_, _, t| t[0].dtype = 6, Reason::WrongDtype, "input \"x\" is F32, not U32"),
        (|_, _, t| t[1].dtype = 6, Reason::WrongDtype, "output \"y\" is F32, not U32"),
        (|_, _, t| t[0].rank = 9, Reason::WrongShape, "9 dimensions"),
        (|_, _, t| t[0].reserved0 = 1, Reason::BadBlock, "must be zero"),
        (|_, _, t| t[0].reserved = 1, Reason::BadBlock, "must be zero"),
        (|_, _, t| t[0].dims[2] = 1, Reason::BadBlock, "must be zero"),
        (|_, _, t| t[0].offset = 32, Reason::BadSpan, "no multiple of 64"),
        (|_, _, t| t[0].offset = 4096, Reason::BadSpan, "past the arena's 4096"),
        (|_, _, t| t[1].offset = 1 << 63, Reason::BadSpan, "past the arena's 4096"),
        (|_, _, t| t[1].bytes = u64::MAX, Reason::BadSpan, "past the arena's 4096"),
        (|_, _, t| t[0].bytes = 28, Reason::BadBlock, "input 0 has 28 bytes"),
        (|_, _, t| t[0].dims[..2].copy_from_slice(&[u32::MAX; 2]), Reason::BadBlock, "input 0 has 32 bytes"),
        (|_, _, t| t[0].dims[..2].copy_from_slice(&[4, 2]), Reason::WrongShape, "[4, 2]"),
        (|_, _, t| t[0].session = 1, Reason::BadBlock, "inputs name none"),
        (|_, _, t| t[1].session = 1, Reason::BadBlock, "names session 1"),
        (|_, _, t| t[0].tensor = 1, Reason::WrongTensor, "input 1 does not exist; the model has 1"),
        (|_, _, t| t[1].tensor = 255, Reason::WrongTensor, "output 255 does not exist"),
        (|_, _, t| t[1].rank = 1, Reason::BadBlock, "the daemon says an output's"),
        (|_, _, t| t[1].offset = t[0].offset, Reason::BadSpan, "output 0 overlaps input 0"),
        (|_, _, t| t[1].bytes = 16, Reason::OutputTooSmall, "output \"y\" needs 32 bytes and has room for 16"),
        (
            |s, h, t| {
                (h.inputs, s.block_bytes) = (2, 256);
                t.insert(1, t[0]);
            },
            Reason::WrongTensor,
            "input \"x\" is given twice",
        ),
        (
            |s, h, t| {
                (h.outputs, s.block_bytes) = (2, 256);
                t.push(TensorRecord { offset: 3072, ..t[1] });
            },
            Reason::WrongTensor,
            "output \"y\" is given twice",
        ),
    ];
    let folder = Folder::new("fields");
    let daemon = serve(&folder);
    let mut witness = Witness::new(&daemon);
    let mut raw = Raw::connect(daemon.socket(), 8, 4096);
    let session = raw.open("echo");
    for (index, (spoil, reason, text)) in cases.iter().enumerate() {
        let (mut submission, mut header, mut tensors) = good(session, 3);
        submission.tag = index as u64;
        spoil(&mut submission, &mut header, &mut tensors);
        raw.write_block(3, header, &tensors);
        raw.submit(submission);
        let (completion, record) = raw.completion();
        let said = String::from_utf8(record).unwrap();
        assert_eq!(
            (completion.status, completion.reason),
            (Status::Failed as u8, *reason as u8),
            "case {index}: {said}"
        );
        assert_eq!((completion.tag, completion.slot), (index as u64, submission.slot), "case {index}");
        assert!(said.contains(text), "case {index}: \"{said}\" should contain \"{text}\"");
        witness.assert_served();
    }
    assert_serves_raw(&mut raw, session);
}

/// The connection itself is as good as before.
#[track_caller]
fn assert_serves_raw(raw: &mut Raw, session: u32) {
    let (submission, header, tensors) = good(session, 5);
    raw.write_block(5, header, &tensors);
    raw.submit(submission);
    let (completion, record) = raw.completion();
    assert_eq!(completion.status, Status::Ok as u8, "{}", String::from_utf8_lossy(&record));
}

#[test]
fn missing_inputs_are_named() {
    let folder = Folder::new("missing");
    let two = emulated("two", "1 = 0.0, 8 = 0.0")
        .replace("inputs = [", "inputs = [{ name = \"w\", dtype = \"f32\", dims = [\"batch\", 4] }, ");
    let profiles = folder.write("profiles.toml", two + &emulated("echo", "1 = 0.0, 8 = 0.0"));
    let daemon = Daemon::start(&folder, &emulated_device(1, &profiles));
    let mut raw = Raw::connect(daemon.socket(), 8, 4096);
    let session = raw.open("two");
    let (submission, header, tensors) = good(session, 0);
    raw.write_block(0, header, &tensors);
    raw.submit(submission);
    let (completion, record) = raw.completion();
    assert_eq!(completion.reason, Reason::WrongTensor as u8);
    assert_eq!(String::from_utf8(record).unwrap(), "input \"x\" is missing");
    Witness::new(&daemon).assert_served();
}

#[test]
fn a_slot_that_is_in_use_refuses_the_second_request_and_answers_the_first() {
    let folder = Folder::new("slot");
    let daemon = serve(&folder);
    let mut witness = Witness::new(&daemon);
    let mut raw = Raw::connect(daemon.socket(), 8, 4096);
    let session = raw.open("slow");
    let (mut submission, mut header, mut tensors) = good(session, 2);
    (header.items, tensors[0].dims[0], tensors[0].bytes) = (1, 1, 16);
    raw.write_block(2, header, &tensors);
    raw.submit(submission);
    submission.tag = 77;
    raw.submit(submission);
    let (completion, record) = raw.completion();
    assert_eq!((completion.tag, completion.reason), (77, Reason::BadSlot as u8));
    assert!(record.is_empty(), "the record belongs to the first request");
    witness.assert_served();
    // Cancelling what is not there, and what is, twice.
    for slot in [7, 8, u32::MAX, 2, 2] {
        raw.submit(Submission { op: OP_CANCEL, slot, ..Submission::default() });
    }
    let (completion, _) = raw.completion();
    assert_eq!((completion.tag, completion.status), (2, Status::Cancelled as u8));
    assert!(raw.completion_within(Duration::from_millis(20)).is_none(), "one completion");
    witness.assert_served();
}

#[test]
fn cursors_that_cannot_be_poison_their_client_and_nobody_else() {
    let folder = Folder::new("cursors");
    let mut daemon = serve(&folder);
    let mut witness = Witness::new(&daemon);
    type Break = fn(&mut Raw, u32);
    let cases: [(Break, &str); 5] = [
        (
            |raw, _| raw.regions.submissions().tail.store(17, Ordering::Release),
            "a ring's tail 17 is more than 16 entries past its head 0",
        ),
        (
            |raw, _| raw.regions.submissions().tail.store(u32::MAX, Ordering::Release),
            "a ring's tail 4294967295 is more than 16",
        ),
        (
            |raw, session| {
                assert_serves_raw(raw, session);
                raw.regions.submissions().tail.store(0, Ordering::Release);
            },
            "a ring's tail 0 is more than 16 entries past its head 1",
        ),
        (
            // The daemon looks at the head only when it may be out of room.
            |raw, session| {
                raw.regions.completions().head.store(1000, Ordering::Release);
                (0..9).for_each(|_| submit_without_reading(raw, session));
            },
            "a ring's head 1000 is outside 0..=8",
        ),
        (
            |raw, session| (0..9).for_each(|_| submit_without_reading(raw, session)),
            "a request came while all 8 request slots were in flight or their completions unread",
        ),
    ];
    for (index, (spoil, expected)) in cases.into_iter().enumerate() {
        let mut raw = Raw::connect(daemon.socket(), 8, 4096);
        let session = raw.open("echo");
        spoil(&mut raw, session);
        raw.doorbell.ring();
        let why = raw.poisoned();
        assert!(why.contains(expected), "case {index}: {why}");
        assert_eq!(raw.regions.state().load(Ordering::Acquire), rota_ipc::region::State::Poisoned as u32);
        witness.assert_served();
    }
    daemon.wait_until("only the witness is left", |status| status["clients"].as_array().unwrap().len() == 1);
}

/// A good request whose completion is left in the ring, which has eight entries.
fn submit_without_reading(raw: &mut Raw, session: u32) {
    let (submission, header, tensors) = good(session, 1);
    raw.write_block(1, header, &tensors);
    let before = raw.regions.completions().tail.load(Ordering::Acquire);
    raw.submit(submission);
    let begin = Instant::now();
    let poisoned = rota_ipc::region::State::Poisoned as u32;
    while raw.regions.completions().tail.load(Ordering::Acquire) == before
        && raw.regions.state().load(Ordering::Acquire) != poisoned
    {
        assert!(begin.elapsed() < PATIENCE, "neither answered nor poisoned");
    }
}

#[test]
fn a_client_poisoned_with_requests_in_flight_is_told_at_once_and_leaves_when_they_have_ended() {
    let folder = Folder::new("flight");
    let mut daemon = serve(&folder);
    let mut witness = Witness::new(&daemon);
    let before = daemon.open_files();
    let mut raw = Raw::connect(daemon.socket(), 8, 4096);
    let session = raw.open("slow");
    for slot in 0..4 {
        let (submission, mut header, mut tensors) = good(session, slot);
        (header.items, tensors[0].dims[0], tensors[0].bytes) = (1, 1, 16);
        raw.write_block(slot, header, &tensors);
        raw.submit(submission);
    }
    daemon.wait_until("all are taken", |status| status["requests_in_flight"] == 4);
    raw.regions.submissions().tail.store(1 << 20, Ordering::Release);
    raw.doorbell.ring();
    assert!(raw.poisoned().contains("a ring's tail"));
    witness.assert_served();
    daemon.wait_until("what ran has ended", |status| status["requests_in_flight"] == 0);
    daemon.wait_for_open_files(before);
    witness.assert_served();
}

/// Puts nonsense into a few words of a good request.
fn spoil(numbers: &mut Numbers, words: &mut [u64]) {
    for _ in 0..numbers.below(4) {
        let word = &mut words[numbers.below(words.len() as u64) as usize];
        *word = match numbers.below(3) {
            0 => numbers.odd(),
            // One byte, or one half, of it: most words hold several fields.
            1 => {
                let shift = 8 * numbers.below(8);
                *word & !(0xff << shift) | (numbers.odd() & 0xff) << shift
            }
            _ => *word & 0xffff_ffff | numbers.odd() << 32,
        };
    }
}

#[test]
fn each_of_thousands_of_nonsensical_requests_is_answered_exactly_once() {
    const SLOTS: u32 = 64;
    let mut numbers = seed();
    let folder = Folder::new("nonsense");
    let daemon = serve(&folder);
    let mut witness = Witness::new(&daemon);
    let mut raw = Raw::connect(daemon.socket(), SLOTS, 16 << 10);
    let sessions = [raw.open("echo"), raw.open("wide")];
    let (mut statuses, mut reasons) = ([0u32; 6], std::collections::BTreeSet::new());
    for round in 0..600u64 {
        // As many requests as slots at most, so that an honest client's room is never exceeded.
        let count = 1 + numbers.below(u64::from(SLOTS) / 4);
        let mut expected = std::collections::BTreeSet::new();
        for number in 0..count {
            let slot = (number * 4) as u32;
            let (submission, header, tensors) = good(sessions[numbers.below(2) as usize], slot);
            let mut block: Vec<u64> =
                [header].into_iter().flat_map(|h| -> [u64; 8] { zerocopy::transmute!(h) }).collect();
            block.extend(tensors.iter().flat_map(|t| -> [u64; 8] { zerocopy::transmute!(*t) }));
            block.resize(BLOCK_BYTES / 8, 0);
            let spoiled = if numbers.below(2) == 0 { 24 } else { 11 };
            spoil(&mut numbers, &mut block[..spoiled]);
            let words = raw.regions.block(slot);
            words.iter().zip(&block).for_each(|(word, value)| word.store(*value, Ordering::Relaxed));
            let mut descriptor: [u64; 8] = zerocopy::transmute!(submission);
            if numbers.below(2) == 0 {
                spoil(&mut numbers, &mut descriptor);
            }
            let mut submission: Submission = zerocopy::transmute!(descriptor);
            submission.tag = round << 32 | number;
            if ![OP_CANCEL, OP_BEGIN, OP_FINISH, OP_GIVE_UP].contains(&submission.op) {
                expected.insert(submission.tag);
            }
            raw.push(submission);
        }
        raw.publish();
        // What is in flight may be written over at any time, too.
        let slot = numbers.below(u64::from(SLOTS)) as u32;
        raw.regions.block(slot)[numbers.below(24) as usize].store(numbers.odd(), Ordering::Relaxed);
        while !expected.is_empty() {
            let (completion, _) = raw.completion();
            assert!(expected.remove(&completion.tag), "answered twice, or never asked: {completion:?}");
            let (status, reason) = (Status::from_code(completion.status), Reason::from_code(completion.reason));
            statuses[status.expect("a status") as usize] += 1;
            reasons.insert(reason.expect("a reason") as u8);
        }
        if round % 50 == 0 {
            witness.assert_served();
        }
    }
    assert!(raw.completion_within(Duration::from_millis(20)).is_none(), "more completions than requests");
    println!("ok {}, dropped {}, failed {}", statuses[1], statuses[2], statuses[5]);
    assert!(statuses[Status::Ok as usize] > 100 && statuses[Status::Failed as usize] > 1000, "{statuses:?}");
    assert!(reasons.len() >= 8, "the nonsense is of many kinds: {reasons:?}");
    assert_eq!(daemon.status()["requests_in_flight"], 0);
    witness.assert_served();
}

#[test]
fn whatever_clients_write_over_their_control_words_others_are_served() {
    let mut numbers = seed();
    let folder = Folder::new("words");
    let mut daemon = serve(&folder);
    let mut witness = Witness::new(&daemon);
    let before = daemon.open_files();
    let mut poisoned = 0;
    for _ in 0..150 {
        let mut raw = Raw::connect(daemon.socket(), 8, 4096);
        let session = raw.open("echo");
        for _ in 0..numbers.below(20) {
            match numbers.below(5) {
                0 => raw.regions.submissions().tail.store(numbers.odd() as u32, Ordering::Release),
                1 => raw.regions.completions().head.store(numbers.odd() as u32, Ordering::Release),
                2 => raw.regions.completions().need_wake.store(numbers.odd() as u32, Ordering::Release),
                3 => raw.doorbell.ring(),
                _ => {
                    let (submission, header, tensors) = good(session, numbers.below(8) as u32);
                    raw.write_block(submission.slot, header, &tensors);
                    // Its own ring may have been made nonsense of, and then it can't push.
                    if raw.producer.known_free(&raw.regions.submissions()) > 0 {
                        raw.submit(submission);
                    }
                }
            }
        }
        witness.assert_served();
        poisoned += u32::from(raw.regions.state().load(Ordering::Acquire) == rota_ipc::region::State::Poisoned as u32);
    }
    assert!(poisoned > 10, "the words were nonsense: {poisoned} were poisoned");
    daemon.wait_until("only the witness is left", |status| status["clients"].as_array().unwrap().len() == 1);
    daemon.wait_for_open_files(before);
}

#[test]
fn a_client_that_never_reads_its_answers_is_poisoned_and_the_others_are_served() {
    let folder = Folder::new("deaf");
    let daemon = serve(&folder);
    let mut witness = Witness::new(&daemon);
    let mut raw = Raw::connect(daemon.socket(), 16, 4096);
    let session = raw.open("echo");
    let mut submitted = 0;
    for slot in (0..16).cycle() {
        let (submission, header, tensors) = good(session, slot);
        raw.write_block(slot, header, &tensors);
        // The daemon takes nothing more from a poisoned client: then the ring stays full.
        match raw.producer.push(&raw.regions.submissions(), &zerocopy::transmute!(submission)).unwrap() {
            true => submitted += 1,
            false if raw.regions.state().load(Ordering::Acquire) == rota_ipc::region::State::Poisoned as u32 => break,
            false => {}
        }
        raw.publish();
        assert!(submitted < 10_000, "it is let write without end");
        witness.assert_served();
    }
    let why = raw.poisoned();
    assert!(why.contains("all 16 request slots were in flight or their completions unread"), "{why}");
    witness.assert_served();
}
