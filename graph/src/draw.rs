//! Pictures of a model and of what it shares: Graphviz's text, and SVG.
