//! Triton's `config.pbtxt`, read for what Rota does too; the rest is named, so that nobody believes it in force.
//!
//! | field | here |
//! | --- | --- |
//! | `max_batch_size` above 0 | the largest batch |
//! | `max_batch_size` 0 or absent | nothing: the check on load finds out whether the model batches |
//! | `version_policy`, `default_model_filename` | as there |
//! | `input` with `name` and `dims` | sizes for the check on load and the profile |
//! | `platform`, `backend` | ONNX Runtime's, or the model is not served |
//! | `dynamic_batching { }` | always on |
//! | anything else | named in a warning |

mod text;

use crate::repository::{AllVersions, DEFAULT_MODEL_FILE, Settings, Versions};
use std::collections::BTreeSet;
use text::{Field, TextError, Value};

/// A `config.pbtxt` in Rota's own words.
#[derive(Debug, Clone, PartialEq)]
pub struct TritonConfig {
    pub settings: Settings,
    /// Name of the model's file in its version's folder.
    pub model_file: String,
    /// Fields that ask for what Rota does not do, or does in its own way.
    pub unused: BTreeSet<String>,
}

/// Reads a whole file. The message of an error begins with its line.
pub fn read(text: &str) -> Result<TritonConfig, TextError> {
    let fields = text::parse(text)?;
    let mut config = TritonConfig {
        settings: Settings::default(),
        model_file: DEFAULT_MODEL_FILE.to_string(),
        unused: BTreeSet::new(),
    };
    for field in &fields {
        config.take(field)?;
    }
    // The dimensions of a model that batches are given without the batch axis; its own field may come after them.
    let first_axis = usize::from(config.settings.max_batch.is_some());
    for field in fields.iter().filter(|field| field.name == "input") {
        config.take_sizes(field, first_axis)?;
    }
    Ok(config)
}

impl TritonConfig {
    fn take(&mut self, field: &Field) -> Result<(), TextError> {
        match field.name.as_str() {
            // The folder's name is the model's.
            "name" => drop(field.text()?),
            "platform" => field.must_be(&["", "onnxruntime_onnx"])?,
            "backend" => field.must_be(&["", "onnxruntime"])?,
            "max_batch_size" => {
                let most = field.number(0, i64::from(i32::MAX))? as u32;
                self.settings.max_batch = (most > 0).then_some(most);
            }
            "default_model_filename" => {
                let name = field.text()?;
                if name.is_empty() || name.contains('/') || name == ".." {
                    return Err(field.wrong("the name of a file in the version's folder"));
                }
                self.model_file = name.to_string();
            }
            "version_policy" => self.take_versions(field)?,
            "input" => self.note_unused(field, &["name", "data_type", "dims"])?,
            "output" => self.note_unused(field, &["name", "data_type", "dims"])?,
            // Its presence alone asks for what is always on.
            "dynamic_batching" => self.note_unused(field, &[])?,
            _ => match &field.value {
                Value::Message(fields) if !fields.is_empty() => self.note_unused(field, &[])?,
                _ => drop(self.unused.insert(field.name.clone())),
            },
        }
        Ok(())
    }

    fn note_unused(&mut self, field: &Field, used: &[&str]) -> Result<(), TextError> {
        let unused = field.message()?.iter().filter(|inner| !used.contains(&inner.name.as_str()));
        self.unused.extend(unused.map(|inner| format!("{}.{}", field.name, inner.name)));
        Ok(())
    }

    fn take_versions(&mut self, field: &Field) -> Result<(), TextError> {
        let [policy] = field.message()? else {
            return Err(field.wrong("one of latest, all, specific"));
        };
        let inner = policy.message()?;
        self.settings.versions = Some(match policy.name.as_str() {
            "all" => Versions::Named(AllVersions::All),
            "latest" => match inner.iter().find(|f| f.name == "num_versions") {
                Some(count) => Versions::Newest { latest: count.number(1, i64::from(u32::MAX))? as u32 },
                None => Versions::Named(AllVersions::Latest),
            },
            "specific" => {
                let numbers = inner.iter().filter(|f| f.name == "versions");
                Versions::These(numbers.map(|f| Ok(f.number(0, i64::MAX)? as u64)).collect::<Result<_, _>>()?)
            }
            _ => return Err(policy.wrong_name("one of latest, all, specific")),
        });
        Ok(())
    }

    fn take_sizes(&mut self, input: &Field, first_axis: usize) -> Result<(), TextError> {
        let fields = input.message()?;
        let name = fields.iter().find(|f| f.name == "name").map(Field::text).transpose()?;
        // With a reshape the dimensions are not the model's.
        let reshaped = fields.iter().any(|f| f.name == "reshape");
        for (axis, dim) in fields.iter().filter(|f| f.name == "dims").enumerate() {
            let size = dim.number(-1, i64::from(u32::MAX))?;
            if let (Some(name), true, false) = (name, size > 0, reshaped) {
                self.settings.shape.insert(format!("{name}:{}", first_axis + axis), size as u32);
            }
        }
        Ok(())
    }
}

impl Field {
    fn wrong(&self, wanted: &str) -> TextError {
        TextError { line: self.line, what: format!("{} must be {wanted}", self.name) }
    }

    fn wrong_name(&self, wanted: &str) -> TextError {
        TextError { line: self.line, what: format!("\"{}\" must be {wanted}", self.name) }
    }

    fn text(&self) -> Result<&str, TextError> {
        match &self.value {
            Value::Text(text) => Ok(text),
            _ => Err(self.wrong("a text in quotes")),
        }
    }

    fn number(&self, least: i64, most: i64) -> Result<i64, TextError> {
        let number = match &self.value {
            Value::Number(text) => text.parse().ok().filter(|n| (least..=most).contains(n)),
            _ => None,
        };
        number.ok_or_else(|| self.wrong(&format!("a whole number from {least} to {most}")))
    }

    fn message(&self) -> Result<&[Field], TextError> {
        match &self.value {
            Value::Message(fields) => Ok(fields),
            _ => Err(self.wrong("a message in braces")),
        }
    }

    fn must_be(&self, possible: &[&str]) -> Result<(), TextError> {
        let found = self.text()?;
        if possible.contains(&found) {
            return Ok(());
        }
        let what = format!("{} \"{found}\" is not served; only ONNX models are (\"{}\")", self.name, possible[1]);
        Err(TextError { line: self.line, what })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLASSIFIER: &str = r#"
name: "densenet_onnx"
platform: "onnxruntime_onnx"
max_batch_size : 8
input [
  {
    name: "data_0"
    data_type: TYPE_FP32
    format: FORMAT_NCHW
    dims: [ 3, 224, 224 ]
    reshape { shape: [ 1, 3, 224, 224 ] }
  }
]
output [
  {
    name: "fc6_1"
    data_type: TYPE_FP32
    dims: [ 1000 ]
    label_filename: "densenet_labels.txt"
  }
]
"#;

    const RECOGNISER: &str = r#"
# Text recognition behind a detector.
backend: "onnxruntime"
input { name: "x" data_type: TYPE_FP32 dims: 3 dims: 48 dims: -1 }
input { name: "length" data_type: TYPE_INT64 dims: [ 1 ] }
output { name: "softmax" data_type: TYPE_FP32 dims: [ -1, 6625 ] }
max_batch_size: 16
instance_group [
  { count: 2 kind: KIND_GPU gpus: [ 0, 1 ] }
]
dynamic_batching {
  preferred_batch_size: [ 4, 8, 16 ]
  max_queue_delay_microseconds: 500
}
version_policy: { specific: { versions: [ 1, 3 ] } }
default_model_filename: "rec.onnx"
optimization { execution_accelerators {
  gpu_execution_accelerator : [ { name : "tensorrt"
    parameters { key: "precision_mode" value: "FP16" } } ]
}}
parameters: { key: "intra_op_thread_count", value: { string_value: "0" } }
model_warmup <>
"#;

    const UNBATCHED: &str = r#"
max_batch_size: 0
dynamic_batching { }
input < name: 'image' data_type: TYPE_UINT8 dims: [ -1, 320, 320, 3 ] >
version_policy { latest { num_versions: 2 } }
"#;

    fn shape(config: &TritonConfig) -> Vec<(&str, u32)> {
        config.settings.shape.iter().map(|(name, size)| (name.as_str(), *size)).collect()
    }

    fn unused(config: &TritonConfig) -> Vec<&str> {
        config.unused.iter().map(String::as_str).collect()
    }

    #[test]
    fn a_classifier_with_a_reshape_keeps_its_batch_and_no_sizes() {
        let config = read(CLASSIFIER).unwrap();
        assert_eq!(config.settings, Settings { max_batch: Some(8), ..Settings::default() });
        assert_eq!(config.model_file, "model.onnx");
        assert_eq!(unused(&config), ["input.format", "input.reshape", "output.label_filename"]);
    }

    #[test]
    fn what_is_not_supported_is_named_and_the_rest_is_used() {
        let config = read(RECOGNISER).unwrap();
        assert_eq!(config.settings.max_batch, Some(16));
        assert_eq!(config.settings.versions, Some(Versions::These(vec![1, 3])));
        assert_eq!(config.model_file, "rec.onnx");
        assert_eq!(shape(&config), [("length:1", 1), ("x:1", 3), ("x:2", 48)]);
        let expected = [
            "dynamic_batching.max_queue_delay_microseconds",
            "dynamic_batching.preferred_batch_size",
            "instance_group.count",
            "instance_group.gpus",
            "instance_group.kind",
            "model_warmup",
            "optimization.execution_accelerators",
            "parameters.key",
            "parameters.value",
        ];
        assert_eq!(unused(&config), expected);
    }

    #[test]
    fn without_a_batch_size_dimensions_are_the_models_own() {
        let config = read(UNBATCHED).unwrap();
        assert_eq!(config.settings.max_batch, None);
        assert_eq!(config.settings.versions, Some(Versions::Newest { latest: 2 }));
        assert_eq!(shape(&config), [("image:1", 320), ("image:2", 320), ("image:3", 3)]);
        assert!(config.unused.is_empty());
    }

    #[test]
    fn mistakes_are_told_with_their_line() {
        let cases = [
            ("max_batch_size: many", "line 1: max_batch_size must be a whole number from 0 to 2147483647"),
            ("\nmax_batch_size: -1", "line 2: max_batch_size must be a whole number"),
            ("platform: \"tensorrt_plan\"", "line 1: platform \"tensorrt_plan\" is not served; only ONNX models are"),
            ("name: x", "line 1: name must be a text in quotes"),
            ("default_model_filename: '../m.onnx'", "line 1: default_model_filename must be the name of a file"),
            ("version_policy { newest { } }", "line 1: \"newest\" must be one of latest, all, specific"),
            ("version_policy { all { } latest { } }", "line 1: version_policy must be one of"),
            ("input: 3", "line 1: input must be a message in braces"),
            ("input {\n name: 'x'\n dims: [ 3, x ]\n}", "line 3: dims must be a whole number"),
            ("input {", "line 1: expected '}'"),
        ];
        for (text, expected) in cases {
            let said = read(text).unwrap_err().to_string();
            assert!(said.starts_with(expected), "{text}\nsaid: {said}");
        }
    }
}
