//! What models share, and where to cut them.
//!
//! ```
//! # let bytes = rota_graph::examples::heads(2);
//! use rota_graph::{Bytes, Graph, Index, Limits, Member, Outline, Worth};
//! let mut index = Index::new(Worth { weight_bytes: 64, ..Worth::default() });
//! for (number, file) in bytes.into_iter().enumerate() {
//!     let graph = Graph::read(Bytes::from(file), &Limits::default())?; // weights are slices of the file
//!     index.add(Member(number as u32), Outline::of(&graph)); // its hashes stay, its weights may go
//! }
//! let groups = index.groups();
//! assert_eq!(groups.len(), 1);
//! assert_eq!(groups[0].members, [Member(0), Member(1)]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Bytes in, bytes out: nothing here touches a file, a clock or a thread. The way through it:
//!
//! 1. [`Graph::read`] checks a file and makes a typed graph of it ([`mod@wire`] bounds what a hostile one can cost).
//! 2. [`infer`] finds element types and dimensions, [`items`] which axis of which tensor has the batch.
//! 3. [`Outline`] is what remains when the weights are dropped: hashes of content, and where a cut is allowed.
//! 4. [`Index`] holds the outlines of many models and finds the groups that share a leading part.
//! 5. [`split`] writes that part, and what is left of each member, as models of their own; [`draw`] draws them.
//! 6. [`stack()`] makes one model of what is left, where that is the same operators with other weights.

#![forbid(unsafe_code)]

pub mod dim;
pub mod draw;
#[doc(hidden)]
pub mod examples;
pub mod graph;
mod hash;
pub mod index;
pub mod infer;
pub mod items;
pub mod outline;
mod proto;
mod read;
mod split;
mod stack;
mod tensor;
pub mod wire;
mod write;

pub use bytes::Bytes;
pub use graph::{Attribute, Body, Graph, Node, NodeId, Source, Value, ValueId};
pub use hash::Hash;
pub use index::{Cut, Group, Index, Member, Refusal, Worth};
pub use outline::Outline;
pub use read::ReadError;
pub use split::{Feed, SplitError, Stage, split};
pub use stack::{Stack, StackError, StackOutput, alike, stack};
pub use tensor::{DType, Tensor};
pub use wire::Limits;
