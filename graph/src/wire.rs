//! What a file may cost, checked before anything is built.
//!
//! Two bytes can make a message that takes a few hundred once decoded, so a small file could ask for any amount of memory. The
//! file is walked here first, in bounded depth and linear time, and what its messages will take is added up.

use crate::proto;

/// Bounds of what one file may ask for.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes that decoding may take beside the file itself. Weights stored as raw data take none: they stay slices of the file.
    pub memory_bytes: u64,
    /// Nodes, those of bodies included.
    pub nodes: u32,
    /// Graphs inside graphs.
    pub nesting: u32,
}

impl Default for Limits {
    /// Far above real models: the largest language models have some ten thousand nodes.
    fn default() -> Limits {
        Limits { memory_bytes: 512 << 20, nodes: 200_000, nesting: 8 }
    }
}

/// The file is not a model, or asks for too much. Its fault; nothing was built.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Not protobuf, or cut off.
    #[error("not an ONNX model: {what} at byte {at}")]
    Malformed { what: &'static str, at: usize },
    /// Its messages would take more than [`Limits::memory_bytes`].
    #[error("would take more than {limit} bytes beside its weights; weights that are not stored as raw_data count too")]
    Memory { limit: u64 },
    #[error("has more than {limit} nodes")]
    Nodes { limit: u32 },
    #[error("has graphs in graphs more than {limit} deep")]
    Nesting { limit: u32 },
}

/// The messages of onnx.proto that hold others, or numbers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Message {
    Model,
    Graph,
    Node,
    Attribute,
    Tensor,
    SparseTensor,
    ValueInfo,
    Type,
    TensorType,
    Shape,
    Dimension,
    Function,
    Training,
    Annotation,
    /// Holds a type.
    Wrapped,
    /// Text and single numbers.
    Flat,
}

enum Content {
    Message(Message),
    /// Packed numbers, each of so many bytes once decoded.
    Varints(u64),
    Fixed,
    /// Left in the file.
    Slice,
    Text,
    /// The name of a value that a node makes: stands for all that will be known of the value.
    Made,
}

impl Message {
    fn content(self, field: u64) -> Content {
        use Content::{Fixed, Slice, Text, Varints};
        use Message::*;
        Content::Message(match (self, field) {
            (Model, 7) | (Attribute, 6 | 11) | (Training, 1 | 2) => Graph,
            (Model, 20) => Training,
            (Model, 25) => Function,
            (Graph | Function, 1) if self == Graph => Node,
            (Function, 7) => Node,
            (Node, 5) | (Function, 11) => Attribute,
            (Graph, 5) | (Attribute, 5 | 10) | (SparseTensor, 1 | 2) => Tensor,
            (Graph, 15) | (Attribute, 22 | 23) => SparseTensor,
            (Graph, 11..=13) | (Function, 12) => ValueInfo,
            (Graph, 14) => Annotation,
            (Attribute, 14 | 15) | (ValueInfo, 2) | (Wrapped, 1 | 2) => Type,
            (Type, 1 | 8) => TensorType,
            (Type, 4 | 5 | 9) => Wrapped,
            (TensorType, 2) => Shape,
            (Shape, 1) => Dimension,
            (Model, 8 | 14 | 26) | (Node, 9 | 10) | (Graph | ValueInfo, 16 | 4) => Flat,
            (Function, 9 | 14) | (Training, 3 | 4) | (Annotation, 2) | (Tensor, 3 | 13 | 16) => Flat,
            (Attribute, 8) | (Tensor, 1 | 7 | 11) | (SparseTensor, 3) => return Varints(8),
            (Tensor, 5) => return Varints(4),
            (Attribute, 7) | (Tensor, 4 | 10) => return Fixed,
            (Attribute, 4 | 9) | (Tensor, 6 | 9) => return Slice,
            (Node, 2) => return Content::Made,
            _ => return Text,
        })
    }

    /// What one of them takes once decoded, the growth of the vector that it lies in included.
    fn memory_bytes(self) -> u64 {
        let bytes = match self {
            Message::Node => size_of::<proto::NodeProto>(),
            Message::Attribute => size_of::<proto::AttributeProto>(),
            Message::Tensor => size_of::<proto::TensorProto>(),
            Message::Graph | Message::Training | Message::Function => size_of::<proto::TrainingInfoProto>().max(512),
            Message::SparseTensor => size_of::<proto::SparseTensorProto>(),
            Message::ValueInfo => size_of::<proto::ValueInfoProto>(),
            _ => 96,
        };
        2 * bytes as u64
    }
}

/// Walks the file.
pub fn check(file: &[u8], limits: &Limits) -> Result<(), WireError> {
    let mut walk = Walk { file, at: 0, limits, memory_bytes: 0, nodes: 0, graphs: 0 };
    walk.message(Message::Model, file.len(), 0)
}

struct Walk<'a> {
    file: &'a [u8],
    at: usize,
    limits: &'a Limits,
    memory_bytes: u64,
    nodes: u32,
    /// How many graphs the walk stands in.
    graphs: u32,
}

impl Walk<'_> {
    fn message(&mut self, message: Message, end: usize, depth: u32) -> Result<(), WireError> {
        if depth > DEPTH_MAX {
            return Err(self.malformed("messages nested too deep"));
        }
        self.take(message.memory_bytes())?;
        self.nodes += u32::from(message == Message::Node);
        self.graphs += u32::from(message == Message::Graph);
        if self.nodes > self.limits.nodes {
            return Err(WireError::Nodes { limit: self.limits.nodes });
        }
        if self.graphs > self.limits.nesting + 1 {
            return Err(WireError::Nesting { limit: self.limits.nesting });
        }
        while self.at < end {
            let key = self.varint(end)?;
            match key & 7 {
                0 => {
                    self.varint(end)?;
                    self.take(NUMBER_BYTES)?;
                }
                1 => self.skip(8, end)?,
                5 => self.skip(4, end)?,
                2 => {
                    let length = self.varint(end)?;
                    let inner = usize::try_from(length).ok().and_then(|length| self.at.checked_add(length));
                    let inner = inner
                        .filter(|&inner| inner <= end)
                        .ok_or_else(|| self.malformed("a field that ends past its message"))?;
                    self.content(message.content(key >> 3), inner, depth)?;
                }
                _ => return Err(self.malformed("a field of an unknown kind")),
            }
        }
        self.graphs -= u32::from(message == Message::Graph);
        Ok(())
    }

    fn content(&mut self, content: Content, end: usize, depth: u32) -> Result<(), WireError> {
        match content {
            Content::Message(message) => return self.message(message, end, depth + 1),
            Content::Varints(bytes) => {
                while self.at < end {
                    self.varint(end)?;
                    self.take(2 * bytes)?;
                }
            }
            Content::Fixed => self.take(2 * (end - self.at) as u64)?,
            Content::Slice => self.take(TEXT_BYTES)?,
            Content::Text => self.take(TEXT_BYTES + (end - self.at) as u64)?,
            Content::Made => self.take(VALUE_BYTES + (end - self.at) as u64)?,
        }
        self.at = end;
        Ok(())
    }

    fn take(&mut self, bytes: u64) -> Result<(), WireError> {
        self.memory_bytes = self.memory_bytes.saturating_add(bytes);
        let limit = self.limits.memory_bytes;
        if self.memory_bytes > limit { Err(WireError::Memory { limit }) } else { Ok(()) }
    }

    fn skip(&mut self, bytes: usize, end: usize) -> Result<(), WireError> {
        if end - self.at < bytes {
            return Err(self.malformed("a number that ends past its message"));
        }
        self.at += bytes;
        self.take(NUMBER_BYTES)
    }

    fn varint(&mut self, end: usize) -> Result<u64, WireError> {
        let mut value = 0u64;
        for index in 0..VARINT_BYTES_MAX {
            if self.at >= end {
                return Err(self.malformed("a number that is cut off"));
            }
            let byte = self.file[self.at];
            self.at += 1;
            value |= u64::from(byte & 0x7f).checked_shl(7 * index).unwrap_or(0);
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(self.malformed("a number of more than ten bytes"))
    }

    fn malformed(&self, what: &'static str) -> WireError {
        WireError::Malformed { what, at: self.at }
    }
}

/// Messages inside messages; prost stops at 100.
const DEPTH_MAX: u32 = 90;
const VARINT_BYTES_MAX: u32 = 10;
/// A number that may be one of an unpacked list, its vector's growth included.
const NUMBER_BYTES: u64 = 16;
/// A value of the graph, with its dimensions and its place in an outline.
const VALUE_BYTES: u64 = 1024;
/// A string or slice itself, its allocation's overhead and its vector's growth included.
const TEXT_BYTES: u64 = 80;

#[cfg(test)]
mod tests {
    use super::*;

    fn field(number: u8, content: &[u8]) -> Vec<u8> {
        let mut bytes = vec![number << 3 | 2];
        let mut length = content.len();
        while length >= 0x80 {
            bytes.push(length as u8 | 0x80);
            length >>= 7;
        }
        bytes.push(length as u8);
        bytes.extend_from_slice(content);
        bytes
    }

    #[test]
    fn a_small_file_can_not_ask_for_much_memory() {
        let nodes = [0x0a, 0x00].repeat(150_000);
        let limits = Limits { memory_bytes: 16 << 20, ..Limits::default() };
        assert_eq!(check(&field(7, &nodes), &limits), Err(WireError::Memory { limit: 16 << 20 }));
        let limits = Limits { nodes: 1000, ..Limits::default() };
        assert_eq!(check(&field(7, &nodes), &limits), Err(WireError::Nodes { limit: 1000 }));
    }

    #[test]
    fn graphs_nest_only_so_deep() {
        let mut graph = Vec::new();
        for _ in 0..20 {
            graph = field(1, &field(5, &field(6, &graph)));
        }
        assert_eq!(check(&field(7, &graph), &Limits::default()), Err(WireError::Nesting { limit: 8 }));
    }

    #[test]
    fn what_is_cut_off_is_refused_with_its_place() {
        let whole = field(7, &field(1, &field(4, b"Relu")));
        assert_eq!(check(&whole, &Limits::default()), Ok(()));
        for length in [1, whole.len() - 1] {
            assert!(matches!(check(&whole[..length], &Limits::default()), Err(WireError::Malformed { .. })));
        }
        let endless = [0xff; 12];
        assert!(matches!(check(&endless, &Limits::default()), Err(WireError::Malformed { at: 10, .. })));
    }
}
