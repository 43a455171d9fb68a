//! The control protocol: what parses says the same when it is written and read again.

use vnet::wire::control::{Event, MAX_LEN, Request};

pub(crate) fn run(data: &[u8]) {
    if let Ok(request) = Request::parse(data) {
        let bytes = request.emit();
        assert!(bytes.len() <= MAX_LEN);
        assert_eq!(Request::parse(&bytes).as_ref(), Ok(&request));
    }
    if let Ok(event) = Event::parse(data) {
        let bytes = event.emit();
        assert!(bytes.len() <= MAX_LEN);
        assert_eq!(Event::parse(&bytes).as_ref(), Ok(&event));
    }
}
