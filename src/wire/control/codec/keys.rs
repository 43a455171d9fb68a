//! The messages that carry keys.

use std::time::Duration;

use super::{Writer, code};
use crate::policy::{Floor, Level, Policy, Suite};
use crate::secret::{LEN, SALT_LEN, SaKey, Secret};
use crate::wire::ParseError;
use crate::wire::control::{
    Event, Lifetime, MAX_GROUP_KEYS, MAX_INBOUND, MAX_QUEUE_PAIRS, ReceiverKey, SenderKeys,
};
use crate::wire::esp::{SESSIONS, SPI_BIT, Spi};
use crate::wire::reader::Reader;

impl Reader<'_> {
    fn level(&mut self) -> Result<Level, ParseError> {
        Level::from_code(self.u8()?).ok_or(ParseError::Value)
    }

    pub(super) fn policy(&mut self) -> Result<Policy, ParseError> {
        let policy = Policy::from_codes(self.u8()?, self.u8()?).ok_or(ParseError::Value)?;
        self.zero::<2>()?;
        Ok(policy)
    }

    pub(super) fn floor(&mut self) -> Result<Floor, ParseError> {
        let floor = Floor { least: self.level()?, had: self.level()? };
        self.zero::<2>()?;
        Ok(floor)
    }

    fn suite(&mut self) -> Result<Suite, ParseError> {
        let suite = Suite::from_code(self.u8()?).ok_or(ParseError::Value)?;
        self.zero::<1>()?;
        Ok(suite)
    }

    fn secret(&mut self) -> Result<Secret, ParseError> {
        self.array::<LEN>().map(Secret::new)
    }

    pub(super) fn session(&mut self) -> Result<u32, ParseError> {
        let number = self.u32()?;
        if number < SESSIONS { Ok(number) } else { Err(ParseError::Value) }
    }

    fn lifetime(&mut self) -> Result<Lifetime, ParseError> {
        let usual = Duration::from_millis(self.u32()?.into());
        Ok(Lifetime { usual, hard: self.seconds()? })
    }

    fn seconds(&mut self) -> Result<Duration, ParseError> {
        self.u32().map(|seconds| Duration::from_secs(seconds.into()))
    }
}

impl Writer {
    pub(super) fn policy(&mut self, policy: Policy) -> &mut Self {
        let (sent, accepted) = policy.codes();
        self.u8(sent).u8(accepted).u16(0)
    }

    pub(super) fn floor(&mut self, floor: Floor) -> &mut Self {
        self.u8(floor.least.code()).u8(floor.had.code()).u16(0)
    }

    fn suite(&mut self, suite: Suite) -> &mut Self {
        self.u8(suite.code()).u8(0)
    }

    fn lifetime(&mut self, lifetime: Lifetime) -> &mut Self {
        self.u32(u32::try_from(lifetime.usual.as_millis()).unwrap_or(u32::MAX));
        self.seconds(lifetime.hard)
    }

    fn seconds(&mut self, duration: Duration) -> &mut Self {
        self.u32(u32::try_from(duration.as_secs()).unwrap_or(u32::MAX))
    }
}

pub(super) fn parse_group_keys(r: &mut Reader<'_>) -> Result<Event, ParseError> {
    let (salt, end) = (r.u16()?, r.seconds()?);
    let n = r.count(MAX_GROUP_KEYS)?;
    let keys = (0..n).map(|_| Ok((r.suite()?, r.secret()?))).collect::<Result<_, _>>()?;
    Ok(Event::GroupKeys { salt, end, keys })
}

pub(super) fn parse_sa_out(r: &mut Reader<'_>) -> Result<Event, ParseError> {
    let to = r.addr()?;
    let (suite, lifetime) = (r.suite()?, r.lifetime()?);
    let n = r.count(MAX_QUEUE_PAIRS.into())?;
    let key = |r: &mut Reader<'_>| {
        let spi = Spi(r.u32()?);
        if spi.0 & SPI_BIT == 0 {
            return Err(ParseError::Value);
        }
        Ok((spi, SaKey { key: r.secret()?, salt: r.array::<SALT_LEN>()? }))
    };
    let keys = (0..n).map(|_| key(r)).collect::<Result<_, _>>()?;
    Ok(Event::SaOut { to, keys: SenderKeys { suite, keys, lifetime } })
}

pub(super) fn parse_sa_in(r: &mut Reader<'_>) -> Result<Event, ParseError> {
    let n = r.count(MAX_INBOUND)?;
    let key = |r: &mut Reader<'_>| {
        let (suite, number, lifetime) = (r.suite()?, r.session()?, r.lifetime()?);
        Ok(ReceiverKey { number, suite, receiver: r.secret()?, lifetime })
    };
    let keys = (0..n).map(|_| key(r)).collect::<Result<_, _>>()?;
    Ok(Event::SaIn { keys })
}

pub(super) fn parse_sa_end(r: &mut Reader<'_>) -> Result<Event, ParseError> {
    Ok(Event::SaEnd { number: r.session()? })
}

pub(super) fn emit_group_keys(salt: u16, end: Duration, keys: &[(Suite, Secret)]) -> Vec<u8> {
    let mut w = Writer::new(code::GROUP_KEYS, 0);
    w.u16(salt).seconds(end).count(keys.len(), MAX_GROUP_KEYS);
    for (suite, key) in keys.iter().take(MAX_GROUP_KEYS) {
        w.suite(*suite).bytes(key.bytes());
    }
    w.done()
}

pub(super) fn emit_sa_out(to: &std::net::SocketAddr, out: &SenderKeys) -> Vec<u8> {
    let mut w = Writer::new(code::SA_OUT, 0);
    w.addr(to).suite(out.suite).lifetime(out.lifetime);
    w.count(out.keys.len(), MAX_QUEUE_PAIRS.into());
    for (spi, key) in out.keys.iter().take(MAX_QUEUE_PAIRS.into()) {
        w.u32(spi.0).bytes(key.key.bytes()).bytes(&key.salt);
    }
    w.done()
}

pub(super) fn emit_sa_in(keys: &[ReceiverKey]) -> Vec<u8> {
    let mut w = Writer::new(code::SA_IN, 0);
    w.count(keys.len(), MAX_INBOUND);
    for key in keys.iter().take(MAX_INBOUND) {
        w.suite(key.suite).u32(key.number).lifetime(key.lifetime).bytes(key.receiver.bytes());
    }
    w.done()
}

pub(super) fn emit_sa_end(number: u32) -> Vec<u8> {
    Writer::new(code::SA_END, 0).u32(number).done()
}
