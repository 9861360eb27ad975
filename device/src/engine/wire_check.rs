//! Whether a model's file is well-formed protobuf, as far as rten's own reader will look.
//!
//! That reader does not end on a number of ten bytes or more that says it goes on, so files are walked here first: every
//! field of every message that ONNX has, without building anything. Linear in the file's size, in bounded depth.

/// Messages inside messages: attributes hold graphs, which hold nodes. No real model comes near.
const DEPTH_MAX: usize = 64;
/// Bytes of a number in protobuf's base-128 form.
const VARINT_BYTES_MAX: usize = 10;

/// Messages of onnx.proto3 that hold other messages or packed numbers.
#[derive(Clone, Copy)]
enum Message {
    Model,
    Graph,
    Node,
    Attribute,
    Tensor,
    ValueInfo,
    Type,
    TensorType,
    Shape,
    /// Numbers and text only.
    Flat,
}

/// What a length-delimited field holds.
enum Content {
    Message(Message),
    /// Packed numbers.
    Varints,
    /// Text, raw data, or a field that nobody reads.
    Bytes,
}

impl Message {
    /// By the field numbers of onnx.proto3.
    fn content(self, field: u64) -> Content {
        use Message::*;
        match (self, field) {
            (Model, 7) | (Attribute, 6 | 11) => Content::Message(Graph),
            (Model, 8 | 14) | (Tensor, 13) | (Shape, 1) => Content::Message(Flat),
            (Graph, 1) => Content::Message(Node),
            (Graph, 5) | (Attribute, 5 | 10) => Content::Message(Tensor),
            (Graph, 11..=13) => Content::Message(ValueInfo),
            (Node, 5) => Content::Message(Attribute),
            (Attribute, 14 | 15) | (ValueInfo, 2) => Content::Message(Type),
            (Type, 1) => Content::Message(TensorType),
            (TensorType, 2) => Content::Message(Shape),
            (Attribute, 8) | (Tensor, 1 | 5 | 7 | 11) => Content::Varints,
            _ => Content::Bytes,
        }
    }
}

/// Walks the file. The error says where it stops making sense.
pub(super) fn check(file: &[u8]) -> Result<(), String> {
    let mut walk = Walk { file, at: 0 };
    walk.message(Message::Model, file.len(), 0).map_err(|what| format!("not an ONNX model: {what} at byte {}", walk.at))
}

struct Walk<'a> {
    file: &'a [u8],
    at: usize,
}

impl Walk<'_> {
    fn message(&mut self, message: Message, end: usize, depth: usize) -> Result<(), &'static str> {
        if depth > DEPTH_MAX {
            return Err("messages are nested too deeply");
        }
        while self.at < end {
            let tag = self.varint(end)?;
            match tag & 7 {
                0 => drop(self.varint(end)?),
                1 => self.skip(8, end)?,
                5 => self.skip(4, end)?,
                2 => {
                    let length = usize::try_from(self.varint(end)?).map_err(|_| "a field is too long")?;
                    let inner = self.at.checked_add(length).filter(|inner| *inner <= end).ok_or("a field is cut")?;
                    match message.content(tag >> 3) {
                        Content::Message(nested) => self.message(nested, inner, depth + 1)?,
                        Content::Varints => {
                            while self.at < inner {
                                self.varint(inner)?;
                            }
                        }
                        Content::Bytes => self.at = inner,
                    }
                }
                _ => return Err("a field of unknown kind"),
            }
        }
        Ok(())
    }

    fn skip(&mut self, bytes: usize, end: usize) -> Result<(), &'static str> {
        self.at = self.at.checked_add(bytes).filter(|at| *at <= end).ok_or("a field is cut")?;
        Ok(())
    }

    fn varint(&mut self, end: usize) -> Result<u64, &'static str> {
        let mut value = 0u64;
        for (index, byte) in self.file[self.at..end].iter().take(VARINT_BYTES_MAX).enumerate() {
            if index + 1 == VARINT_BYTES_MAX && *byte > 1 {
                return Err("a number is too long");
            }
            value |= u64::from(byte & 0x7f) << (7 * index);
            if byte & 0x80 == 0 {
                self.at += index + 1;
                return Ok(value);
            }
        }
        Err("a number is cut")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn real_models_pass_and_what_hangs_the_reader_does_not() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/models");
        let mut models = 0;
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "onnx") {
                assert_eq!(check(&std::fs::read(&path).unwrap()), Ok(()), "{}", path.display());
                models += 1;
            }
        }
        assert!(models > 0);
        assert!(check(&[0xa5; 1000]).unwrap_err().contains("a number is too long"));
        // A graph (field 7) whose node (field 1) has an endless number.
        let mut nested = vec![7 << 3 | 2, 14, 1 << 3 | 2, 12, 3 << 3];
        nested.extend([0xff; 11]);
        assert!(check(&nested).unwrap_err().contains("a number is too long at byte 5"));
        assert!(check(&[7 << 3 | 2, 5, 0]).unwrap_err().contains("a field is cut"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_walked_to_an_end(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = check(&bytes);
        }
    }
}
