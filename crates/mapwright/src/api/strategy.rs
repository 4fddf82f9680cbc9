//! Strategies: how a file is brought into memory.

use std::borrow::Cow;

/// How a file is brought into memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Strategy {
    /// The library chooses: `Buffer` for small files opened for reading, `Pager` where the machine allows it, else
    /// `Kernel`. [`Map::strategy`](crate::Map::strategy) says which and why.
    #[default]
    Auto,
    /// The whole file is read into memory when it is opened. Nothing of it is charged to the pager's budget.
    Buffer,
    /// The kernel's own mmap(2). Its page cache has no budget of ours, other programs' writes show at once, and dirty pages
    /// reach the file when the kernel likes. A page that cannot be read is an error inside
    /// [`checked`](crate::Map::checked), and SIGBUS outside.
    Kernel,
    /// This library's page cache, under the pager's budget.
    Pager,
}

impl std::fmt::Display for Strategy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Buffer => "buffer",
            Self::Kernel => "kernel",
            Self::Pager => "pager",
        })
    }
}

/// The strategy of a map and the reason for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    strategy: Strategy,
    reason: Cow<'static, str>,
}

impl Choice {
    pub(crate) fn new(strategy: Strategy, reason: impl Into<Cow<'static, str>>) -> Self {
        Self { strategy, reason: reason.into() }
    }

    /// The strategy in use: never [`Strategy::Auto`].
    pub fn strategy(&self) -> Strategy {
        self.strategy
    }

    /// Why this one.
    pub fn reason(&self) -> &str {
        &self.reason
    }
}

impl std::fmt::Display for Choice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.strategy, self.reason)
    }
}
