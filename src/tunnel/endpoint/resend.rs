//! Messages that the kernel refuses to cut into datagrams (UDP_SEGMENT) are sent again as smaller ones.

use std::io;
use std::net::IpAddr;

use super::Endpoint;
use crate::sys::iovec::{Gather, IoVec};
use crate::sys::mmsg::{BATCH, Message};
use crate::time::Instant;
use crate::tunnel::outgoing::{Batch, Staged};
use crate::underlay::Underlay;
use crate::underlay::segmentation::Remedy;

impl<U: Underlay> Endpoint<U> {
    /// What to do with a message that was refused, if that may be because it is many datagrams.
    pub(super) fn remedy(
        &mut self,
        error: &io::Error,
        staged: &Staged,
        now: Instant,
    ) -> Option<Remedy> {
        if staged.datagrams < 2 {
            return None;
        }
        let (errno, to) = (error.raw_os_error(), staged.route.to.ip());
        let remedy = self.segmentation.handle_refusal(errno, to, staged.datagrams, now)?;
        // Each try has fewer datagrams in a message, so that it comes to an end.
        (remedy.segments < staged.datagrams).then_some(remedy)
    }

    /// Sends a message again, as `remedy` says: in smaller ones.
    pub(super) fn send_again(
        &mut self,
        staged: &Staged,
        message: &Message<'_>,
        remedy: Remedy,
        batch: &Batch<'_>,
        now: Instant,
    ) {
        tell(remedy, message.to.ip());
        let smaller = staged.split(remedy.segments);
        let mut parts = Vec::new();
        let mut ends = Vec::with_capacity(smaller.len());
        let mut bytes = Gather::new(message.parts, 0);
        let mut left: usize = message.parts.iter().map(IoVec::len).sum();
        for staged in &smaller {
            let len = left.min(usize::from(message.segment) * staged.datagrams);
            // No more is asked for than is left.
            bytes.lend(len, &mut parts);
            left -= len;
            ends.push(parts.len());
        }
        let mut start = 0;
        let messages: Vec<Message<'_>> = smaller
            .iter()
            .zip(ends)
            .map(|(staged, end)| {
                let parts = parts.get(start..end).unwrap_or_default();
                start = end;
                Message { to: message.to, parts, segment: staged.segment }
            })
            .collect();
        let mut is_first = true;
        for (staged, messages) in smaller.chunks(BATCH).zip(messages.chunks(BATCH)) {
            let has_left = self.send_messages(staged, messages, batch, now);
            if std::mem::take(&mut is_first) && has_left {
                let (to, segments) = (message.to.ip(), remedy.segments);
                let learnt = self.segmentation.handle_smaller_sent(to, segments, now);
                learnt.into_iter().for_each(|learnt| tell(learnt, to));
            }
        }
    }
}

fn tell(remedy: Remedy, to: IpAddr) {
    if let Some(news) = remedy.news {
        log::warn!("towards {to}: {news}");
    }
}
