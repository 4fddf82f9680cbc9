//! What to read before it is asked for.
