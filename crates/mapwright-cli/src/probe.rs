//! What this machine allows: read from /proc and /sys.
