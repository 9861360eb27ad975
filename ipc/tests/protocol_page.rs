//! docs/protocol.md is kept true: its messages are messages, and its numbers are the code's.

use rota_ipc::control::{REPLY_BYTES_MAX, REQUEST_BYTES_MAX, Reply, Request};
use rota_ipc::region::{
    CONTROL_BYTES, CQ_HEAD, CQ_TAIL, NEED_WAKE, PAGE_BYTES, SQ_HEAD, SQ_TAIL, STATE, State, blocks_offset,
    client_bytes, daemon_bytes, records_offset,
};
use rota_ipc::wire::*;
use std::mem::offset_of;

const PAGE: &str = include_str!("../../docs/protocol.md");

fn examples(kind: &str) -> Vec<&'static str> {
    let fence = format!("```json {kind}\n");
    PAGE.split(fence.as_str()).skip(1).map(|rest| rest.split("```").next().unwrap()).collect()
}

#[test]
fn every_example_is_a_message_and_every_message_has_an_example() {
    let requests: Vec<Request> =
        examples("request").iter().map(|json| serde_json::from_str(json).expect(json)).collect();
    let replies: Vec<Reply> = examples("reply").iter().map(|json| serde_json::from_str(json).expect(json)).collect();
    let name = |message: serde_json::Value| message.as_object().unwrap().keys().next().unwrap().clone();
    let requests: Vec<_> = requests.iter().map(|request| name(serde_json::to_value(request).unwrap())).collect();
    let replies: Vec<_> = replies.iter().map(|reply| name(serde_json::to_value(reply).unwrap())).collect();
    assert_eq!(requests, ["hello", "open", "close", "query", "declare", "models", "status", "load", "unload", "drain"]);
    assert_eq!(replies, ["welcome", "opened", "done", "query", "models", "status", "error", "poisoned"]);
}

/// The rows of the page's tables, as `field` and where it lies.
fn offset_of_row(table: &str, field: &str) -> usize {
    let table = PAGE.split(table).nth(1).unwrap_or_else(|| panic!("no table {table}"));
    let row = table.lines().find(|line| line.starts_with(&format!("| `{field}`"))).expect(field);
    row.split('|').nth(2).unwrap().trim().parse().expect(field)
}

macro_rules! check_offsets {
    ($table:literal, $type:ty: $($field:ident),+) => {
        $(assert_eq!(offset_of_row($table, stringify!($field)), offset_of!($type, $field), "{}", stringify!($field));)+
    };
}

#[test]
fn fields_lie_where_the_page_says() {
    check_offsets!("### Submission", Submission: op, priority, stage, slot, block_bytes, tag, deadline_ns, query);
    check_offsets!("| header |", BlockHeader: inputs, outputs, sessions, items, session);
    check_offsets!("| tensor record |", TensorRecord: offset, bytes, dtype, rank, tensor, session, dims);
    check_offsets!("### Completion", Completion: tag, slot, status, reason, outputs, arrival_ns, queued_ns);
    check_offsets!("### Completion", Completion: executing_ns, batch, device, record_bytes);
    check_offsets!("| output record |", OutputRecord: bytes, dtype, dims);
    for (field, offset) in [("sq_tail", SQ_TAIL), ("cq_head", CQ_HEAD), ("need_wake", NEED_WAKE)] {
        assert_eq!(offset_of_row("| client region", field), offset);
    }
    for (field, offset) in [("cq_tail", CQ_TAIL), ("sq_head", SQ_HEAD), ("need_wake", NEED_WAKE), ("state", STATE)] {
        assert_eq!(offset_of_row("| daemon region", field), offset);
    }
}

#[test]
fn numbers_are_the_pages() {
    for slots in [SLOTS_MIN, 64, SLOTS_MAX] {
        let s = slots as usize;
        assert_eq!((CONTROL_BYTES, PAGE_BYTES), (4096, 4096));
        assert_eq!((blocks_offset(slots), records_offset(slots)), (4096 + 128 * s, 4096 + 64 * s));
        assert_eq!(client_bytes(slots), (4096 + 128 * s + 2048 * s).next_multiple_of(4096));
        assert_eq!(daemon_bytes(slots), (4096 + 64 * s + 1024 * s).next_multiple_of(4096));
    }
    assert_eq!((REQUEST_BYTES_MAX, REPLY_BYTES_MAX), (65_536, 16_777_216));
    assert_eq!((SLOTS_MIN, SLOTS_MAX, SESSIONS_MAX, TENSORS_MAX, OUTPUTS_MAX, RANK_MAX), (8, 4096, 8, 31, 21, 8));
    assert_eq!((State::Serving as u32, State::Draining as u32, State::Poisoned as u32), (1, 2, 3));
    let dtypes: Vec<String> = DType::ALL
        .iter()
        .map(|dtype| format!("{} {}", *dtype as u8, serde_json::to_value(dtype).unwrap().as_str().unwrap()))
        .collect();
    assert!(PAGE.contains(&dtypes.join(", ")), "{}", dtypes.join(", "));
}
