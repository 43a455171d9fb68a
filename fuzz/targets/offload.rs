//! Frames of guests with their virtio-net headers: what is accepted can be cut, completed and
//! answered, and no byte of payload is lost or made up on the way.

use vnet::offload::LEAD_LEN;
use vnet::offload::checksum::{self, Sum};
use vnet::offload::features::Offloads;
use vnet::offload::gso::Cut;
use vnet::offload::header::{self, Request};
use vnet::tunnel::too_big;
use vnet::wire::frame;

use super::Input;

pub(crate) fn run(data: &[u8]) {
    let mut input = Input(data);
    let offloads = Offloads::from_features(input.u64());
    let max_frame = usize::from(input.u16());
    let header = input.take(header::LEN);
    let bytes = input.0;
    let _ = frame::announces_sender(bytes);
    let lead = &bytes[..bytes.len().min(LEAD_LEN)];
    if let Some(answer) = too_big::answer(lead, bytes.len(), max_frame) {
        assert!(answer.frame.len() <= 14 + 8 + 48 + 128);
    }
    match Request::parse(header, lead, bytes.len(), offloads) {
        Ok(Request::Segment { layout, size }) => {
            if let Ok(cut) = Cut::new(lead, &layout, size, max_frame) {
                check_segments(&cut, bytes, max_frame);
            }
        }
        Ok(Request::Checksum { place, .. }) => {
            let mut copy = bytes.to_vec();
            let _ = checksum::complete(&mut copy, place.start, place.offset);
            let field = place.start + place.offset;
            assert!(field + 2 <= copy.len());
            assert_eq!(copy[..field], bytes[..field]);
            assert_eq!(copy[field + 2..], bytes[field + 2..]);
        }
        Ok(Request::Plain) | Err(_) => {}
    }
}

fn check_segments(cut: &Cut, frame: &[u8], max_frame: usize) {
    let mut next = cut.payload(0).start;
    for index in 0..cut.count() {
        let payload = cut.payload(index);
        assert_eq!(payload.start, next, "nothing is left out");
        assert!(!payload.is_empty() || cut.count() == 1);
        next = payload.end;
        let mut headers = [0; LEAD_LEN];
        let len = cut.write_header(index, &mut headers).expect("a segment that there is");
        assert!(len + payload.len() <= max_frame, "segments fit the path");
        let data = frame.get(payload).expect("payload within the frame");
        cut.complete(&mut headers[..len], Sum::of(data)).expect("room for the checksum");
    }
    assert!(next <= frame.len());
    assert!(cut.write_header(cut.count(), &mut [0; LEAD_LEN]).is_none());
}
