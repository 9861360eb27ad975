//! A file as magika's input: the tokens of its start and its end. The rule is written out in `models/README.md`.

/// Tokens of one file.
pub const TOKENS: usize = 2048;

const BLOCK: usize = 4096;
const HALF: usize = TOKENS / 2;
const PADDING: i32 = 256;
/// Files whose start has fewer bytes are too short to be told.
const BYTES_MIN: usize = 8;

/// The model's input for a file; `None` when the file is too short for the model.
pub fn tokens(file: &[u8]) -> Option<Vec<i32>> {
    let head = &file[..file.len().min(BLOCK)];
    let start = head.iter().position(|b| !is_space(*b)).unwrap_or(head.len());
    let head = &head[start..];
    let tail = &file[file.len().saturating_sub(BLOCK)..];
    let end = tail.iter().rposition(|b| !is_space(*b)).map_or(0, |last| last + 1);
    let tail = &tail[..end];
    if head.len() < BYTES_MIN {
        return None;
    }
    let head = &head[..head.len().min(HALF)];
    let tail = &tail[tail.len().saturating_sub(HALF)..];
    let mut tokens = vec![PADDING; TOKENS];
    tokens.iter_mut().zip(head).for_each(|(token, byte)| *token = i32::from(*byte));
    tokens[TOKENS - tail.len()..].iter_mut().zip(tail).for_each(|(token, byte)| *token = i32::from(*byte));
    Some(tokens)
}

/// `u8::is_ascii_whitespace` leaves out the vertical tab.
fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t'..=b'\r')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worked_examples_come_out() {
        let text = include_str!("../../../../models/magika-examples.json");
        let examples: Vec<serde_json::Value> = serde_json::from_str(text).unwrap();
        assert!(examples.len() >= 2);
        for example in &examples {
            let repeat = example["repeat"].as_u64().unwrap() as usize;
            let file = example["text"].as_str().unwrap().repeat(repeat);
            assert_eq!(file.len() as u64, example["bytes"].as_u64().unwrap());
            let tokens = tokens(file.as_bytes()).unwrap();
            let wanted = |key: &str| -> Vec<i32> {
                example[key].as_array().unwrap().iter().map(|t| t.as_i64().unwrap() as i32).collect()
            };
            assert_eq!(tokens[..8], wanted("first"));
            assert_eq!(tokens[1016..1024], wanted("before_middle"));
            assert_eq!(tokens[1024..1032], wanted("after_middle"));
            assert_eq!(tokens[2040..], wanted("last"));
            let padding = tokens.iter().filter(|t| **t == PADDING).count();
            assert_eq!(padding as u64, example["padding"].as_u64().unwrap());
        }
    }

    #[test]
    fn a_file_that_is_too_short_has_no_tokens() {
        assert_eq!(tokens(b""), None);
        assert_eq!(tokens(b"  \n1234567"), None);
        assert!(tokens(b"  \n12345678").is_some());
    }
}
