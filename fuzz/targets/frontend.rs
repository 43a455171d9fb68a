//! Messages of a vhost-user frontend, in any order and size, as the filter sees them: what it lets
//! through has the form that the device needs, and answers keep the order of requests.

use vnet::vhost_user::filter::{Filter, HEADER_LEN, Header, MAX_DESCRIPTORS, MAX_PAYLOAD, Step};
use vnet::vhost_user::memory_table::check_file;

use super::Input;

pub(crate) fn run(data: &[u8]) {
    let mut input = Input(data);
    let rings = usize::from(input.u8() % 32) + 1;
    let mut filter = Filter::new(rings);
    while !input.0.is_empty() {
        let Some(header) = input.take(HEADER_LEN).first_chunk() else { return };
        let Ok(header) = Header::parse(header) else { return };
        assert!(usize::try_from(header.size).is_ok_and(|size| size <= MAX_PAYLOAD));
        let payload = input.take(header.size.try_into().unwrap_or(0));
        let descriptors = usize::from(input.u8()) % (MAX_DESCRIPTORS + 1);
        let Ok(steps) = filter.request(&header, payload, descriptors) else { return };
        assert!(steps.len() <= 4, "{steps:?}");
        for step in &steps {
            if let Step::Measure { regions, .. } = step {
                assert_eq!(regions.len(), descriptors, "a file for each");
                assert!(regions.iter().all(|region| check_file(0, region, u64::MAX).is_ok()));
            }
        }
        let forwards = steps.iter().filter(|step| matches!(step, Step::Forward { .. })).count();
        assert!(forwards <= 1, "{steps:?}");
        if let Some(awaited) = filter.awaited() {
            let mut answer = [0; 8];
            let wrong = Header { request: awaited.wrapping_add(1), flags: 5, size: 8 };
            let right = Header { request: awaited, flags: 5, size: 8 };
            if input.u8() == 0 {
                assert!(filter.reply(&wrong, &mut answer).is_err());
                return;
            }
            assert!(filter.reply(&right, &mut answer).is_ok());
            assert!(filter.reply(&right, &mut answer).is_err(), "only one answer is awaited");
        }
    }
}
