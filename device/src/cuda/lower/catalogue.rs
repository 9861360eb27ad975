//! Which operators are supported: what `docs/operators.md` says, and what a model is refused for on load.

use super::{elementwise, rules};
use rota_graph::{Attribute, Graph};

/// Operators that only change how a tensor is looked at, or are computed with its shape while lowering.
const FREE: [(&str, &str); 15] = [
    ("Constant", "a weight"),
    ("ConstantOfShape", "computed while lowering; its shape has to be known then"),
    ("Dropout", "passes its input on; training is refused"),
    ("Expand", "a view"),
    ("Flatten", "a view"),
    ("Identity", "a view"),
    (
        "If",
        "its condition has to be known while lowering: it hangs on shapes, or on a small input without a batch axis",
    ),
    ("Range", "computed while lowering; its bounds have to be known then"),
    ("Reshape", "a view; of a turned tensor a copy"),
    ("Shape", "computed while lowering"),
    ("Size", "computed while lowering"),
    ("Slice", "a view; places have to be known while lowering"),
    ("Split", "views"),
    ("Squeeze", "a view"),
    ("Transpose", "a view, copied where a kernel takes dense tensors only"),
];
const UNSQUEEZE: (&str, &str) = ("Unsqueeze", "a view");

/// What operators with rules of their own do not do.
const LIMITS: [(&str, &str); 13] = [
    ("AveragePool", "pictures and sequences"),
    ("Conv", "pictures and sequences; normalisation, bias, residual and activation behind it are part of it"),
    ("ConvTranspose", "pictures and sequences"),
    ("GRU", "layout, clip and other activations than the usual are refused, and so are lengths"),
    ("Gather", "an index past the end fails the request"),
    ("GatherElements", "axes other than the picked one have to be whole"),
    ("LSTM", "as GRU; no input_forget"),
    ("LayerNormalization", "gives no means and variances"),
    ("MaxPool", "pictures and sequences; gives no places"),
    ("Pad", "pads have to be known while lowering"),
    ("RNN", "as GRU"),
    ("Resize", "the last two axes; nearest, linear, cubic; no antialiasing, no tf_crop_and_resize"),
    ("Upsample", "as Resize"),
];

/// Every supported operator and a note on it, by name.
pub fn operators() -> Vec<(&'static str, String)> {
    let limit =
        |name: &str| LIMITS.iter().find(|(limited, _)| *limited == name).map_or("", |(_, note)| note).to_owned();
    let free = FREE.iter().chain([&UNSQUEEZE]).map(|(name, note)| (*name, (*note).to_owned()));
    let ruled = rules::RULES.iter().map(|(name, _)| (*name, limit(name)));
    let fused = elementwise::OPERATORS.iter().map(|name| (*name, "element-wise: fused with its neighbours".to_owned()));
    let mut all: Vec<(&str, String)> = free.chain(ruled).chain(fused).collect();
    all.sort();
    all
}

/// `docs/operators.md`.
#[cfg(test)]
fn page() -> String {
    let mut page = String::from(
        "# Operators of the cuda device\n\n\
        Written from the tables of `device/src/cuda/lower/` (a test holds this page to them). A model with another operator is refused on load by name, and\n\
        served by the cpu device where there is one. All sizes are known when a model is lowered, since that is done for each batch size and shape class; so\n\
        whatever is computed from shapes and weights alone is computed then, by any of these operators.\n\n\
        Element types: f32, f16, bf16, 8- to 64-bit integers and bool; f64 and u64 only where they are computed while lowering. Floats are kept as f32 on the\n\
        device, or as f16 with `--precision fp16`; integers are computed in 64 bits.\n\n\
        | operator | |\n| --- | --- |\n",
    );
    for (name, note) in operators() {
        page.push_str(&format!("| {name} | {note} |\n"));
    }
    page
}

/// The first node of an operator that is not supported, bodies included.
pub fn unsupported(graph: &Graph) -> Option<String> {
    let known: std::collections::BTreeSet<&str> = operators().into_iter().map(|(name, _)| name).collect();
    fn look(graph: &Graph, known: &std::collections::BTreeSet<&str>) -> Option<String> {
        graph.nodes.iter().find_map(|node| {
            if !node.domain.is_empty() || !known.contains(node.operator.as_str()) {
                return Some(node.to_string());
            }
            let mut bodies = node.attributes.values().filter_map(|attribute| match attribute {
                Attribute::Body(body) => Some(&body.graph),
                _ => None,
            });
            bodies.find_map(|body| look(body, known))
        })
    }
    look(graph, &known)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `ROTA_WRITE=1 cargo test -p rota-device the_page` writes it.
    #[test]
    fn the_page_lists_what_the_tables_have() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operators.md");
        if std::env::var_os("ROTA_WRITE").is_some() {
            std::fs::write(&path, page()).unwrap();
        }
        let found = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            found == page(),
            "docs/operators.md is not what the tables say; run this test with ROTA_WRITE=1 to write it"
        );
    }

    #[test]
    fn every_operator_is_listed_once() {
        let names: Vec<&str> = operators().into_iter().map(|(name, _)| name).collect();
        assert!(names.windows(2).all(|pair| pair[0] < pair[1]), "{names:?}");
    }
}
