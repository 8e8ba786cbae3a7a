//! What declarations are refused, and what accepted ones expand to.
