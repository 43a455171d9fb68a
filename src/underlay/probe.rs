//! Whether this kernel cuts messages into datagrams (UDP_SEGMENT) without damage.
//!
//! Linux 7.0 to 7.1.4 mangles lengths and checksums in the UDP headers of messages whose datagrams
//! are all of one size (from commit b10b446 "udp: gso: Use single MSS length in UDP header for
//! GSO_PARTIAL" on; repaired by 78effd8 and 5f17ae0, in 7.1.5). If the last datagram is shorter
//! nothing happens; it must not be a tiny one either, which some network cards do not survive.
//!
//! Two things are asked, once per process. Does a message of equal datagrams come across loopback
//! as one with a shorter end does? That shows what the kernel itself cuts. And is its release one of
//! those above? The damage depends on the card as well, which cannot be tried from here; kernels
//! that were repaired under an old number lose one short datagram per message by it.

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, UdpSocket};
use std::ops::RangeInclusive;
use std::os::fd::AsFd;
use std::sync::OnceLock;
use std::time::Duration;

use crate::sys::iovec::IoVec;
use crate::sys::mmsg::{self, Message};

/// Releases with the fault: major, minor, patch.
const FAULTY: RangeInclusive<[u32; 3]> = [7, 0, 0]..=[7, 1, 4];
/// Length and number of the datagrams that are sent.
const SEGMENT: u16 = 1000;
const COUNT: usize = 8;
/// Loopback delivers before the sender goes on; this is for when it does not.
const PATIENCE: Duration = Duration::from_millis(5);

/// What was found out, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Messages of equal datagrams are sound.
    Sound,
    /// As far as the release tells, they are; there was no loopback to try them.
    Untried(String),
    /// They are damaged: the last datagram of each message has to be shorter.
    Damaging(&'static str),
}

/// Whether the last datagram of a message has to be shorter than the others. Finds out at the first
/// call, which takes a millisecond.
pub fn needs_short_ends() -> bool {
    static VERDICT: OnceLock<bool> = OnceLock::new();
    *VERDICT.get_or_init(|| {
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let release = release.trim();
        match judge(release, over_loopback) {
            Verdict::Sound => false,
            Verdict::Untried(why) => {
                log::debug!("UDP_SEGMENT was not tried, going by the release {release}: {why}");
                false
            }
            Verdict::Damaging(why) => {
                log::warn!(
                    "this kernel ({release}) damages UDP_SEGMENT messages of equal datagrams ({why}): working around \
                     it with a short datagram at the end of each message"
                );
                true
            }
        }
    })
}

/// Judges a kernel by its release, and by what `exchange` makes of a message: given its bytes and
/// the length of its datagrams, the datagrams that arrive.
pub fn judge(
    release: &str,
    mut exchange: impl FnMut(&[u8], u16) -> io::Result<Vec<Vec<u8>>>,
) -> Verdict {
    if parse(release).is_some_and(|release| FAULTY.contains(&release)) {
        return Verdict::Damaging("Linux 7.0 to 7.1.4 are known to");
    }
    let equal: Vec<u8> = (0..COUNT * usize::from(SEGMENT)).map(|n| (n % 251) as u8).collect();
    let uneven = equal.get(..equal.len() - usize::from(SEGMENT / 2)).unwrap_or_default();
    let mut passes = |bytes: &[u8]| -> io::Result<bool> {
        Ok(exchange(bytes, SEGMENT)?.iter().eq(bytes.chunks(SEGMENT.into())))
    };
    match (passes(uneven), passes(&equal)) {
        (Ok(true), Ok(true)) => Verdict::Sound,
        (Ok(true), Ok(false)) => Verdict::Damaging("one did not come across loopback as it was"),
        (Ok(false), _) => Verdict::Untried("nothing comes across loopback".to_owned()),
        (Err(error), _) | (_, Err(error)) => Verdict::Untried(error.to_string()),
    }
}

/// The first three numbers of a release such as `7.0.2-6-pve`; those that are missing are 0.
fn parse(release: &str) -> Option<[u32; 3]> {
    let version = release.split(|c: char| c != '.' && !c.is_ascii_digit()).next()?;
    let mut numbers = version.split('.').map(str::parse);
    let first = numbers.next()?.ok()?;
    let mut next = || numbers.next().and_then(Result::ok).unwrap_or(0);
    Some([first, next(), next()])
}

/// Sends a message from a socket to another on loopback, to be cut by the kernel.
fn over_loopback(bytes: &[u8], segment: u16) -> io::Result<Vec<Vec<u8>>> {
    let receiver = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    let sender = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    receiver.set_read_timeout(Some(PATIENCE))?;
    let parts = [IoVec::from_slice(bytes)];
    let to = receiver.local_addr()?;
    mmsg::send(sender.as_fd(), &[Message { to, parts: &parts, segment }])?;
    let mut datagrams = Vec::new();
    let mut buffer = [0; 2 * SEGMENT as usize];
    while datagrams.len() < bytes.len().div_ceil(segment.into()) {
        match receiver.recv_from(&mut buffer) {
            Ok((len, from)) if from == sender.local_addr()? => {
                datagrams.push(buffer.get(..len).unwrap_or_default().to_vec());
            }
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                break;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(datagrams)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(bytes: &[u8], segment: u16) -> Vec<Vec<u8>> {
        bytes.chunks(segment.into()).map(<[u8]>::to_vec).collect()
    }

    #[test]
    fn releases_are_told_apart() {
        for (release, is_faulty) in [
            ("6.18.44-cloud-amd64", false),
            ("7.0.0", true),
            ("7.0.2-6-pve", true),
            ("7.0-rc1", true),
            ("7.1.4", true),
            ("7.1.5", false),
            ("7.10.0", false),
            ("8.0.1", false),
            ("", false),
            ("what", false),
        ] {
            let verdict = judge(release, |bytes, segment| Ok(cut(bytes, segment)));
            assert_eq!(matches!(verdict, Verdict::Damaging(_)), is_faulty, "{release}");
        }
    }

    #[test]
    fn a_kernel_that_damages_equal_datagrams_is_found_out() {
        let mangles = |bytes: &[u8], segment: u16| {
            let mut datagrams = cut(bytes, segment);
            if bytes.len().is_multiple_of(segment.into()) {
                datagrams[3][17] ^= 1;
            }
            Ok(datagrams)
        };
        assert!(matches!(judge("6.1.0", mangles), Verdict::Damaging(_)));
        let loses = |bytes: &[u8], segment: u16| {
            let is_equal = bytes.len().is_multiple_of(segment.into());
            Ok(if is_equal { Vec::new() } else { cut(bytes, segment) })
        };
        assert!(matches!(judge("6.1.0", loses), Verdict::Damaging(_)));
    }

    #[test]
    fn without_loopback_the_release_decides() {
        let no_address = |_: &[u8], _| Err(ErrorKind::AddrNotAvailable.into());
        assert!(matches!(judge("6.1.0", no_address), Verdict::Untried(_)));
        assert!(matches!(judge("7.1.0", no_address), Verdict::Damaging(_)));
        let nothing = |_: &[u8], _| Ok(Vec::new());
        assert!(matches!(judge("6.1.0", nothing), Verdict::Untried(_)));
    }

    #[test]
    fn loopback_carries_the_messages() {
        let bytes: Vec<u8> = (0..8000_u32).map(|n| n as u8).collect();
        for len in [8000, 7500] {
            assert_eq!(over_loopback(&bytes[..len], 1000).unwrap(), cut(&bytes[..len], 1000));
        }
    }
}
