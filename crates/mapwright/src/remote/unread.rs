//! What a session has said and its client has not read yet.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use super::lease::lock;
use super::wire;

/// Messages that wait for a client to read. One that has so many is not going to.
const MAX_UNREAD: usize = 256;

/// What is to be sent.
pub(super) struct Message {
    pub(super) bytes: Vec<u8>,
    pub(super) descriptor: Option<OwnedFd>,
}

/// Messages in their order.
#[derive(Default)]
pub(super) struct Unread {
    messages: Mutex<VecDeque<Message>>,
    /// Nothing can be said to the client any more.
    broken: AtomicBool,
}

impl Unread {
    /// Sends a message, after those that wait; whether something is left for the session's thread to do, because the client is slow to
    /// read, or does not.
    pub(super) fn send(&self, socket: BorrowedFd<'_>, message: Message) -> bool {
        let mut messages = lock(&self.messages);
        if self.is_broken() {
            return false;
        }
        if messages.len() >= MAX_UNREAD {
            self.give_up(&mut messages);
        } else {
            messages.push_back(message);
        }
        self.send_from(socket, &mut messages);
        !messages.is_empty() || self.is_broken()
    }

    /// Sends what can be sent without waiting.
    pub(super) fn send_some(&self, socket: BorrowedFd<'_>) {
        self.send_from(socket, &mut lock(&self.messages));
    }

    fn send_from(&self, socket: BorrowedFd<'_>, messages: &mut VecDeque<Message>) {
        while let Some(Message { bytes, descriptor }) = messages.front() {
            let descriptor = descriptor.as_ref().map(AsFd::as_fd);
            match wire::send(socket, bytes, descriptor, false) {
                Ok(()) => _ = messages.pop_front(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => self.give_up(messages),
            }
        }
    }

    fn give_up(&self, messages: &mut VecDeque<Message>) {
        self.break_off();
        messages.clear();
    }

    /// Has nothing said from now on.
    pub(super) fn break_off(&self) {
        self.broken.store(true, Ordering::Release);
    }

    /// Whether nothing can be said any more.
    pub(super) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        lock(&self.messages).is_empty()
    }

    /// Forgets what waits.
    pub(super) fn clear(&self) {
        lock(&self.messages).clear();
    }
}
