//! Checks of a store against its contract.
