use super::*;
use crate::wire::{BLOCK_BYTES, BlockHeader, DType, PRIORITIES, SESSIONS_MAX, TENSORS_MAX, TensorRecord};

/// The client's hand on the shared memory, as a hostile client has it.
struct Client {
    regions: Regions,
    submissions: Producer,
    completions: Consumer,
    doorbell: Doorbell,
}

const ARENA_BYTES: u64 = 65536;
const SLOTS: u32 = 8;

fn pair() -> (Connection, Client) {
    let (connection, [client, daemon, arena, doorbell]) = Connection::create(SLOTS, ARENA_BYTES).unwrap();
    let regions = Regions::open(SLOTS, ARENA_BYTES, &[client, daemon, arena]).unwrap();
    let (submissions, completions) = (Producer::default(), Consumer::default());
    (connection, Client { regions, submissions, completions, doorbell: doorbell.into() })
}

impl Client {
    fn write_block(&self, slot: u32, header: BlockHeader, tensors: &[TensorRecord]) -> u32 {
        let mut bytes = header.as_bytes().to_vec();
        bytes.extend_from_slice(tensors.as_bytes());
        bytes.truncate(BLOCK_BYTES);
        store_bytes(self.regions.block(slot), &bytes);
        (64 * (1 + tensors.len())) as u32
    }

    fn submit(&mut self, submission: Submission) -> u32 {
        assert_eq!(
            self.submissions.push(&self.regions.submissions(), &zerocopy::transmute!(submission)),
            Ok(true),
            "room in the submission ring"
        );
        self.submissions.publish(&self.regions.submissions())
    }

    fn pop(&mut self) -> Option<Completion> {
        let mut out = [Descriptor::default()];
        let count = self.completions.pop(&self.regions.completions(), &mut out).unwrap();
        (count == 1).then(|| zerocopy::transmute!(out[0]))
    }

    fn record(&self, completion: &Completion) -> Vec<u8> {
        let words = self.regions.record(completion.slot).iter();
        let mut bytes: Vec<u8> = words.flat_map(|word| word.load(Ordering::Relaxed).to_ne_bytes()).collect();
        bytes.truncate(completion.record_bytes as usize);
        bytes
    }
}

/// One f32 [2, 8] input and 64 bytes of output behind it.
fn good() -> (BlockHeader, [TensorRecord; 2]) {
    let mut header = BlockHeader { inputs: 1, outputs: 1, sessions: 1, items: 2, ..BlockHeader::default() };
    header.session[0] = 5;
    let mut input = TensorRecord { bytes: 64, dtype: DType::F32 as u8, rank: 2, ..TensorRecord::default() };
    input.dims[..2].copy_from_slice(&[2, 8]);
    let output = TensorRecord { offset: 64, bytes: 64, dtype: DType::F32 as u8, ..TensorRecord::default() };
    (header, [input, output])
}

#[test]
fn good_block_is_read_as_it_was_written() {
    let (connection, client) = pair();
    let (header, tensors) = good();
    let block_bytes = client.write_block(3, header, &tensors);
    let mut block = RequestBlock::default();
    connection.read_block(3, block_bytes, &mut block).unwrap();
    assert_eq!((block.header, block.sessions()), (header, &[5][..]));
    assert_eq!((block.inputs().len(), block.outputs().len()), (1, 1));
    let (input, output) = (block.inputs()[0], block.outputs()[0]);
    assert_eq!((input.offset, input.bytes, input.dtype, input.dims()), (0, 64, DType::F32, &[2, 8][..]));
    assert_eq!((output.offset, output.end(), output.dims()), (64, 128, &[][..]));
}

#[test]
fn largest_block_is_read() {
    let (connection, client) = pair();
    let mut header = BlockHeader { inputs: 10, outputs: 21, sessions: 8, items: 1, ..BlockHeader::default() };
    header.session = [9; SESSIONS_MAX];
    let tensors: [TensorRecord; TENSORS_MAX] = std::array::from_fn(|index| TensorRecord {
        offset: 64 * index as u64,
        bytes: 1,
        dtype: DType::Bool as u8,
        tensor: index as u8,
        session: if index < 10 { 0 } else { (index % 8) as u8 },
        ..TensorRecord::default()
    });
    let mut block = RequestBlock::default();
    let block_bytes = client.write_block(0, header, &tensors);
    assert_eq!(block_bytes as usize, BLOCK_BYTES);
    connection.read_block(0, block_bytes, &mut block).unwrap();
    assert_eq!((block.inputs().len(), block.outputs().len()), (10, 21));
}

#[test]
fn each_fault_of_a_block_has_its_reason_and_text() {
    type Spoil = fn(&mut BlockHeader, &mut [TensorRecord; 2]);
    let cases: &[(Spoil, Reason, &str)] = &[
        (|h, _| h.inputs = 0, Reason::BadBlock, "a request without an input"),
        (|h, _| h.inputs = 255, Reason::BadBlock, "255 inputs and 1 outputs, but the block has room for 2 tensors"),
        (|h, _| h.outputs = 22, Reason::BadBlock, "22 outputs; a request can name 21"),
        (|h, _| h.sessions = 0, Reason::BadBlock, "0 sessions; a request names 1 to 8"),
        (|h, _| h.sessions = 9, Reason::BadBlock, "9 sessions; a request names 1 to 8"),
        (|h, _| h.items = 0, Reason::BadBlock, "a request of no items; it brings at least 1"),
        (
            |h, _| h.reserved0 = 1,
            Reason::BadBlock,
            "reserved fields and unused sessions of a block's header must be zero",
        ),
        (
            |h, _| h.session[7] = 1,
            Reason::BadBlock,
            "reserved fields and unused sessions of a block's header must be zero",
        ),
        (
            |h, _| h.reserved[2] = 1,
            Reason::BadBlock,
            "reserved fields and unused sessions of a block's header must be zero",
        ),
        (|_, t| t[0].dtype = 0, Reason::WrongDtype, "input 0 has the unknown element type 0"),
        (|_, t| t[1].dtype = 14, Reason::WrongDtype, "output 0 has the unknown element type 14"),
        (|_, t| t[0].rank = 9, Reason::WrongShape, "input 0 has 9 dimensions; 8 are possible"),
        (|_, t| t[0].dims[2] = 1, Reason::BadBlock, "input 0: reserved fields and unused dimensions must be zero"),
        (|_, t| t[1].dims[0] = 1, Reason::BadBlock, "output 0: reserved fields and unused dimensions must be zero"),
        (|_, t| t[0].reserved = 1, Reason::BadBlock, "input 0: reserved fields and unused dimensions must be zero"),
        (|_, t| t[1].reserved0 = 1, Reason::BadBlock, "output 0: reserved fields and unused dimensions must be zero"),
        (|_, t| t[0].offset = 32, Reason::BadSpan, "input 0 starts at byte 32, which is no multiple of 64"),
        (|_, t| t[0].offset = 65536, Reason::BadSpan, "input 0 ends at byte 65600, past the arena's 65536"),
        (|_, t| t[1].bytes = 65536, Reason::BadSpan, "output 0 ends at byte 65600, past the arena's 65536"),
        (
            |_, t| (t[1].offset, t[1].bytes) = (u64::MAX - 63, u64::MAX),
            Reason::BadSpan,
            "output 0 ends at byte 36893488147419103167, past the arena's 65536",
        ),
        (|_, t| t[0].bytes = 60, Reason::BadBlock, "input 0 has 60 bytes, but F32 [2, 8] takes 64"),
        (
            |_, t| (t[0].rank, t[0].dims) = (8, [1 << 31; 8]),
            Reason::BadBlock,
            "input 0 has 64 bytes, but F32 [2147483648, 2147483648, 2147483648, 2147483648, 2147483648, 2147483648, \
             2147483648, 2147483648] takes more than memory can hold",
        ),
        // 2^62 elements of 4 bytes are 2^64: a product in 64 bits would wrap to 0.
        (
            |_, t| (t[0].bytes, t[0].dims) = (0, [1 << 31, 1 << 31, 0, 0, 0, 0, 0, 0]),
            Reason::BadBlock,
            "input 0 has 0 bytes, but F32 [2147483648, 2147483648] takes more than memory can hold",
        ),
        (|_, t| t[0].session = 1, Reason::BadBlock, "input 0 names session 1; inputs name none"),
        (|_, t| t[1].session = 1, Reason::BadBlock, "output 0 names session 1 of the block's 1"),
        (|_, t| t[1].rank = 1, Reason::BadBlock, "output 0 has 1 dimensions; the daemon says an output's"),
        (|_, t| t[1].offset = 0, Reason::BadSpan, "output 0 overlaps input 0 in the arena"),
    ];
    let (connection, client) = pair();
    let mut block = RequestBlock::default();
    for (spoil, reason, text) in cases {
        let (mut header, mut tensors) = good();
        spoil(&mut header, &mut tensors);
        let block_bytes = client.write_block(0, header, &tensors);
        let error = connection.read_block(0, block_bytes, &mut block).unwrap_err();
        assert_eq!((error.reason, error.text.as_str()), (*reason, *text));
        assert!(block.inputs().is_empty() && block.outputs().is_empty(), "after: {text}");
    }
}

#[test]
fn outputs_may_not_overlap_but_inputs_may_share_memory() {
    let (connection, client) = pair();
    let (header, [input, output]) = good();
    let mut block = RequestBlock::default();
    let two_inputs = BlockHeader { inputs: 2, ..header };
    let block_bytes = client.write_block(0, two_inputs, &[input, TensorRecord { tensor: 1, ..input }, output]);
    connection.read_block(0, block_bytes, &mut block).unwrap();

    let two_outputs = BlockHeader { outputs: 2, ..header };
    let second = TensorRecord { offset: 64, bytes: 1, tensor: 1, ..output };
    let block_bytes = client.write_block(0, two_outputs, &[input, output, second]);
    let error = connection.read_block(0, block_bytes, &mut block).unwrap_err();
    assert_eq!((error.reason, error.text.as_str()), (Reason::BadSpan, "output 1 overlaps output 0 in the arena"));
}

#[test]
fn block_bytes_must_be_whole_records_within_a_block() {
    let (connection, client) = pair();
    let (header, tensors) = good();
    client.write_block(0, header, &tensors);
    for block_bytes in [0, 1, 63, 65, 100, 2049, 2112, u32::MAX] {
        let error = connection.read_block(0, block_bytes, &mut RequestBlock::default()).unwrap_err();
        assert_eq!(error.reason, Reason::BadBlock, "{block_bytes} bytes: {error}");
    }
}

#[test]
fn submission_with_an_unknown_operation_reserved_bits_or_slot_is_refused() {
    let good = Submission { op: OP_INFER, slot: 7, ..Submission::default() };
    check_submission(&good, SLOTS).unwrap();
    check_submission(&Submission { op: OP_CANCEL, ..good }, SLOTS).unwrap();
    for (bad, reason) in [
        (Submission { op: 0, ..good }, Reason::BadDescriptor),
        (Submission { op: 3, ..good }, Reason::BadDescriptor),
        (Submission { priority: PRIORITIES, ..good }, Reason::BadDescriptor),
        (Submission { op: OP_CANCEL, priority: 1, ..good }, Reason::BadDescriptor),
        (Submission { reserved0: 1, ..good }, Reason::BadDescriptor),
        (Submission { reserved: [0, 0, 1], ..good }, Reason::BadDescriptor),
        (Submission { slot: SLOTS, ..good }, Reason::BadSlot),
    ] {
        assert_eq!(check_submission(&bad, SLOTS).unwrap_err().reason, reason);
    }
}

#[test]
fn completion_carries_its_record_and_is_visible_after_publish() {
    let (mut connection, mut client) = pair();
    let outputs = [OutputRecord { bytes: 64, dtype: DType::F32 as u8, rank: 1, ..OutputRecord::default() }; 2];
    let completion = Completion { tag: 9, slot: 2, status: 1, ..Completion::default() };
    connection.complete(completion, Record::Outputs(&outputs));
    assert_eq!(client.pop(), None);
    connection.publish();
    let got = client.pop().unwrap();
    assert_eq!(got, Completion { outputs: 2, record_bytes: 96, ..completion });
    assert_eq!(client.record(&got), outputs.as_bytes());
}

#[test]
fn long_text_is_cut_between_characters_and_a_bad_slot_has_none() {
    let (mut connection, mut client) = pair();
    let text = format!("x{}", "é".repeat(600));
    connection.complete(Completion { slot: 1, ..Completion::default() }, Record::Text(&text));
    connection.complete(Completion { slot: SLOTS, ..Completion::default() }, Record::Text(&text));
    connection.publish();
    let got = client.pop().unwrap();
    assert_eq!(client.record(&got), &text.as_bytes()[..RECORD_BYTES - 1]);
    assert_eq!(client.pop().unwrap().record_bytes, 0);
}

#[test]
fn unread_completions_hold_their_room_and_a_client_that_ignores_it_is_poisoned() {
    let (mut connection, mut client) = pair();
    for slot in 0..SLOTS {
        assert_eq!(connection.room(0), Ok(SLOTS - slot));
        connection.reserve(0).unwrap();
        connection.complete(Completion { slot, ..Completion::default() }, Record::Text(""));
    }
    connection.publish();
    assert_eq!(connection.room(0), Ok(0));
    assert_eq!(connection.reserve(0), Err(Poisoned::NoRoom { capacity: SLOTS }));
    client.pop().unwrap();
    connection.reserve(0).unwrap();
    assert_eq!(connection.reserve(1), Err(Poisoned::NoRoom { capacity: SLOTS }));
}

#[test]
#[should_panic(expected = "a completion without promised room")]
fn completion_without_promised_room_is_our_own_fault() {
    let (mut connection, _client) = pair();
    for slot in 0..=SLOTS {
        connection.complete(Completion { slot: slot % SLOTS, ..Completion::default() }, Record::Text(""));
    }
}

#[test]
fn submission_is_popped_as_it_was_pushed_and_rings_only_a_sleeper() {
    let (mut connection, mut client) = pair();
    let submission = Submission { op: OP_INFER, slot: 3, tag: 99, reserved: [1, 2, 3], ..Submission::default() };
    assert_eq!(client.submit(submission), crate::ring::AWAKE);
    assert_eq!(connection.arm(), Ok(false), "work waits");
    let mut out = [Submission::default(); 4];
    assert_eq!(connection.pop(&mut out), Ok(1));
    assert_eq!(out[0], submission);
    assert_eq!(connection.arm(), Ok(true));
    assert_eq!(client.submit(submission), ASLEEP);
    client.doorbell.ring();
    assert!(connection.drain_doorbell());
    connection.disarm();
    assert_eq!(client.submit(submission), crate::ring::AWAKE);
    drop(client.doorbell);
    assert!(!connection.drain_doorbell());
}

#[test]
fn client_that_pins_need_wake_is_rung_once_for_each_publish() {
    let (mut connection, client) = pair();
    client.regions.completions().need_wake.store(ASLEEP_ON_DOORBELL, Ordering::Relaxed);
    for slot in 0..4 {
        connection.complete(Completion { slot, ..Completion::default() }, Record::Text(""));
    }
    for _ in 0..10 {
        connection.publish();
    }
    let mut rings = [0u8; 16];
    let (_, count) = rustix::net::recv(&client.doorbell, &mut rings[..], rustix::net::RecvFlags::DONTWAIT).unwrap();
    assert_eq!(count, 1);
}

#[test]
fn draining_and_poison_are_told_in_the_state_word() {
    let (mut connection, client) = pair();
    let state = || client.regions.state().load(Ordering::Acquire);
    assert_eq!(state(), State::Serving as u32);
    connection.set_draining();
    assert_eq!(state(), State::Draining as u32);
    connection.poison();
    assert_eq!(state(), State::Poisoned as u32);
    assert_eq!(client.doorbell.drain(), Peer::Alive);
}
