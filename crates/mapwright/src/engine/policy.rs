//! Which block to evict.
