//! Parses and emits the messages of the control protocol.
//!
//! Parsing is strict: every reserved bit must be zero, every number in range, no byte left over.
//! So whatever parses is emitted again as the very same bytes. Emitting cuts what is too long (text
//! at a character boundary, lists at their bound) rather than failing.

mod keys;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{
    ErrorCode, Event, Features, HEADER_LEN, MAX_ERROR_TEXT, MAX_MACS, MAX_QUEUE_PAIRS,
    MAX_SOFTWARE, MAX_VALUES, Request, Table, VERSION,
};
use crate::wire::reader::Reader;
use crate::wire::{
    Capabilities, CareOf, EncapKinds, Longest, Mac, ParseError, Stamp, VifKey, VnetId,
};

/// Bit A of REGISTER.
const REGISTER_ACTIVE: u8 = 1;
/// Bit S of REGISTER.
const REGISTER_STAMP: u8 = 2;
/// The vnet id of FLUSH is valid.
const FLUSH_VNET: u8 = 1;
/// The MAC of FLUSH is valid.
const FLUSH_MAC: u8 = 2;
/// Bit R of LANE.
const LANE_READ: u8 = 1;
/// Address families, as IP versions.
const FAMILY_V4: u8 = 4;
const FAMILY_V6: u8 = 6;

mod code {
    pub(super) const REGISTER: u8 = 1;
    pub(super) const SET_ACTIVE: u8 = 2;
    pub(super) const ANNOUNCE: u8 = 3;
    pub(super) const RESOLVE: u8 = 4;
    pub(super) const STATS: u8 = 5;
    pub(super) const SHOW: u8 = 6;
    pub(super) const FLUSH: u8 = 7;
    pub(super) const SA_NEEDED: u8 = 32;
    pub(super) const SA_READY: u8 = 33;
    pub(super) const LATE: u8 = 8;
    pub(super) const LEARN: u8 = 9;
    pub(super) const FORGET: u8 = 10;
    pub(super) const MONITOR: u8 = 11;
    pub(super) const LANE_CLOSED: u8 = 12;
    pub(super) const HELLO: u8 = 13;
    pub(super) const REGISTERED: u8 = 129;
    pub(super) const CLAIMED: u8 = 130;
    pub(super) const LOST: u8 = 131;
    pub(super) const MAPPING: u8 = 132;
    pub(super) const UNRESOLVED: u8 = 133;
    pub(super) const INVALIDATE: u8 = 134;
    pub(super) const STATS_REQUEST: u8 = 135;
    pub(super) const ROW: u8 = 136;
    pub(super) const END: u8 = 137;
    pub(super) const ERROR: u8 = 138;
    pub(super) const GROUP_KEYS: u8 = 160;
    pub(super) const SA_OUT: u8 = 161;
    pub(super) const SA_IN: u8 = 162;
    pub(super) const SA_END: u8 = 163;
    pub(super) const REFUSED: u8 = 139;
    pub(super) const LANE: u8 = 140;
    pub(super) const CLOSE_LANE: u8 = 141;
    pub(super) const GROUP_LONGEST: u8 = 142;
    pub(super) const HELLO_BACK: u8 = 143;
    pub(super) const COLUMNS: u8 = 144;
}

impl Request {
    /// Parses a whole datagram.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let mut r = Reader::new(bytes);
        let (kind, xid) = r.header()?;
        if kind != code::STATS && xid != 0 {
            return Err(ParseError::Reserved);
        }
        let request = match kind {
            code::REGISTER => parse_register(&mut r)?,
            code::SET_ACTIVE => Self::SetActive { active: r.bool()? },
            code::ANNOUNCE => Self::Announce,
            code::RESOLVE => Self::Resolve { mac: r.mac()?, refresh: r.bool()? },
            code::STATS => {
                let n = r.count(MAX_VALUES)?;
                let samples = (0..n).map(|_| r.sample()).collect::<Result<_, _>>()?;
                Self::Stats { xid, samples }
            }
            code::SHOW => Self::Show { table: Table::from_code(r.u8()?)? },
            code::FLUSH => parse_flush(&mut r)?,
            code::SA_READY => Self::SaReady { number: r.session()? },
            code::SA_NEEDED => Self::SaNeeded { address: r.addr()? },
            code::MONITOR => Self::Monitor,
            code::LEARN => {
                let n = r.count(MAX_MACS)?;
                let macs = (0..n).map(|_| Ok((r.mac()?, r.optional_stamp()?)));
                Self::Learn { macs: macs.collect::<Result<_, _>>()? }
            }
            code::FORGET => {
                let n = r.count(MAX_MACS)?;
                Self::Forget { macs: (0..n).map(|_| r.mac()).collect::<Result<_, _>>()? }
            }
            code::LATE => Self::Late { mac: r.mac()?, sender: r.addr()? },
            code::LANE_CLOSED => Self::LaneClosed { lane: r.u32()? },
            code::HELLO => {
                Self::Hello { features: Features(r.u64()?), software: r.text(MAX_SOFTWARE)? }
            }
            _ => return Err(ParseError::Type),
        };
        r.end()?;
        Ok(request)
    }

    /// The message as a datagram.
    pub fn emit(&self) -> Vec<u8> {
        match self {
            Self::Register { key, capabilities, queue_pairs, active, stamp, learn, floor } => {
                let mut w = Writer::new(code::REGISTER, 0);
                w.u32(key.vnet.get()).mac(key.mac).u8(*queue_pairs);
                let a = if *active { REGISTER_ACTIVE } else { 0 };
                let s = if stamp.is_some() { REGISTER_STAMP } else { 0 };
                w.u8(a | s).u16(capabilities.0).u16(*learn);
                w.u64(stamp.unwrap_or_default().0).floor(*floor).done()
            }
            Self::SetActive { active } => {
                Writer::new(code::SET_ACTIVE, 0).u8((*active).into()).done()
            }
            Self::Announce => Writer::new(code::ANNOUNCE, 0).done(),
            Self::SaReady { number } => Writer::new(code::SA_READY, 0).u32(*number).done(),
            Self::SaNeeded { address } => Writer::new(code::SA_NEEDED, 0).addr(address).done(),
            Self::Resolve { mac, refresh } => {
                Writer::new(code::RESOLVE, 0).mac(*mac).u8((*refresh).into()).done()
            }
            Self::Stats { xid, samples } => {
                let mut w = Writer::new(code::STATS, *xid);
                w.count(samples.len(), MAX_VALUES);
                for sample in samples.iter().take(MAX_VALUES) {
                    w.sample(sample);
                }
                w.done()
            }
            Self::Monitor => Writer::new(code::MONITOR, 0).done(),
            Self::Learn { macs } => {
                let mut w = Writer::new(code::LEARN, 0);
                w.count(macs.len(), MAX_MACS);
                for (mac, stamp) in macs.iter().take(MAX_MACS) {
                    w.mac(*mac).u8(stamp.is_some().into()).u64(stamp.unwrap_or_default().0);
                }
                w.done()
            }
            Self::Forget { macs } => {
                let mut w = Writer::new(code::FORGET, 0);
                w.count(macs.len(), MAX_MACS);
                for mac in macs.iter().take(MAX_MACS) {
                    w.mac(*mac);
                }
                w.done()
            }
            Self::Late { mac, sender } => Writer::new(code::LATE, 0).mac(*mac).addr(sender).done(),
            Self::Show { table } => Writer::new(code::SHOW, 0).u8(table.code()).done(),
            Self::Flush { vnet, mac } => {
                let v = if vnet.is_some() { FLUSH_VNET } else { 0 };
                let m = if mac.is_some() { FLUSH_MAC } else { 0 };
                let mut w = Writer::new(code::FLUSH, 0);
                w.u8(v | m).u8(0).mac(mac.unwrap_or(Mac([0; 6])));
                w.u32(vnet.map_or(0, VnetId::get)).done()
            }
            Self::LaneClosed { lane } => Writer::new(code::LANE_CLOSED, 0).u32(*lane).done(),
            Self::Hello { features, software } => hello(code::HELLO, *features, software),
        }
    }
}

fn hello(kind: u8, features: Features, software: &str) -> Vec<u8> {
    Writer::new(kind, 0).u64(features.0).text(software, MAX_SOFTWARE).done()
}

fn parse_register(r: &mut Reader<'_>) -> Result<Request, ParseError> {
    let vnet = VnetId::new(r.u32()?).ok_or(ParseError::Value)?;
    let mac = r.mac()?;
    let queue_pairs = r.u8()?;
    let flags = r.u8()?;
    let capabilities = Capabilities(r.u16()?);
    let learn = r.u16()?;
    let stamp = r.u64()?;
    let floor = r.floor()?;
    if flags & !(REGISTER_ACTIVE | REGISTER_STAMP) != 0 {
        return Err(ParseError::Reserved);
    }
    let has_stamp = flags & REGISTER_STAMP != 0;
    if !(1..=MAX_QUEUE_PAIRS).contains(&queue_pairs) || (!has_stamp && stamp != 0) {
        return Err(ParseError::Value);
    }
    Ok(Request::Register {
        key: VifKey { vnet, mac },
        capabilities,
        queue_pairs,
        active: flags & REGISTER_ACTIVE != 0,
        stamp: has_stamp.then_some(Stamp(stamp)),
        learn,
        floor,
    })
}

fn parse_lane(r: &mut Reader<'_>) -> Result<Event, ParseError> {
    let (lane, pair, flags) = (r.u32()?, r.u8()?, r.u8()?);
    if flags & !LANE_READ != 0 {
        return Err(ParseError::Reserved);
    }
    if pair >= MAX_QUEUE_PAIRS {
        return Err(ParseError::Value);
    }
    let is_read = flags & LANE_READ != 0;
    Ok(Event::Lane { lane, pair, is_read, mac: r.mac()?, addr: r.addr()? })
}

fn parse_group_longest(r: &mut Reader<'_>) -> Result<Event, ParseError> {
    // No host asks for less than every path of IPv6 takes.
    let longest = Longest::new(r.u16()?, Ipv6Addr::UNSPECIFIED.into()).ok_or(ParseError::Value)?;
    r.zero::<2>()?;
    Ok(Event::GroupLongest { longest })
}

fn parse_flush(r: &mut Reader<'_>) -> Result<Request, ParseError> {
    let flags = r.u8()?;
    let reserved = r.u8()?;
    let (mac, vnet) = (r.mac()?, r.u32()?);
    if flags & !(FLUSH_VNET | FLUSH_MAC) != 0 || reserved != 0 {
        return Err(ParseError::Reserved);
    }
    let (has_vnet, has_mac) = (flags & FLUSH_VNET != 0, flags & FLUSH_MAC != 0);
    if (!has_mac && mac != Mac([0; 6])) || (vnet != 0) != has_vnet {
        return Err(ParseError::Value);
    }
    Ok(Request::Flush { vnet: VnetId::new(vnet), mac: has_mac.then_some(mac) })
}

impl Event {
    /// Parses a whole datagram.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let mut r = Reader::new(bytes);
        let (kind, xid) = r.header()?;
        if kind != code::STATS_REQUEST && xid != 0 {
            return Err(ParseError::Reserved);
        }
        let event = match kind {
            code::REGISTERED => Self::Registered {
                coa: r.care_of()?,
                group: r.addr()?,
                underlay_mtu: r.u32()?,
                policy: r.policy()?,
            },
            code::GROUP_KEYS => keys::parse_group_keys(&mut r)?,
            code::SA_OUT => keys::parse_sa_out(&mut r)?,
            code::SA_IN => keys::parse_sa_in(&mut r)?,
            code::SA_END => keys::parse_sa_end(&mut r)?,
            code::CLAIMED => Self::Claimed { mac: r.mac()?, stamp: Stamp(r.u64()?) },
            code::LOST => Self::Lost {
                mac: r.mac()?,
                stamp: Stamp(r.u64()?),
                coa: r.care_of()?,
                lifetime_ms: r.u32()?,
            },
            code::MAPPING => Self::Mapping {
                mac: r.mac()?,
                coa: r.care_of()?,
                stamp: Stamp(r.u64()?),
                lifetime_ms: r.u32()?,
            },
            code::UNRESOLVED => Self::Unresolved { mac: r.mac()?, hold_ms: r.u32()? },
            code::INVALIDATE => Self::Invalidate { mac: r.mac()? },
            code::REFUSED => Self::Refused { mac: r.mac()?, hold_ms: r.u32()? },
            code::STATS_REQUEST => Self::StatsRequest { xid },
            code::HELLO_BACK => {
                Self::Hello { features: Features(r.u64()?), software: r.text(MAX_SOFTWARE)? }
            }
            code::COLUMNS => Self::Columns { columns: r.columns()?.into() },
            code::ROW => Self::Row { cells: r.cells()? },
            code::END => Self::End,
            code::LANE => parse_lane(&mut r)?,
            code::CLOSE_LANE => Self::CloseLane { lane: r.u32()? },
            code::GROUP_LONGEST => parse_group_longest(&mut r)?,
            code::ERROR => {
                Self::Error { code: ErrorCode::from_code(r.u8()?)?, text: r.text(MAX_ERROR_TEXT)? }
            }
            _ => return Err(ParseError::Type),
        };
        r.end()?;
        Ok(event)
    }

    /// The message as a datagram.
    pub fn emit(&self) -> Vec<u8> {
        match self {
            Self::Registered { coa, group, underlay_mtu, policy } => {
                let mut w = Writer::new(code::REGISTERED, 0);
                w.care_of(coa).addr(group).u32(*underlay_mtu).policy(*policy).done()
            }
            Self::GroupKeys { salt, end, keys } => keys::emit_group_keys(*salt, *end, keys),
            Self::SaOut { to, keys } => keys::emit_sa_out(to, keys),
            Self::SaIn { keys } => keys::emit_sa_in(keys),
            Self::SaEnd { number } => keys::emit_sa_end(*number),
            Self::Claimed { mac, stamp } => {
                Writer::new(code::CLAIMED, 0).mac(*mac).u64(stamp.0).done()
            }
            Self::Lost { mac, stamp, coa, lifetime_ms } => {
                let mut w = Writer::new(code::LOST, 0);
                w.mac(*mac).u64(stamp.0).care_of(coa).u32(*lifetime_ms).done()
            }
            Self::Mapping { mac, coa, stamp, lifetime_ms } => {
                let mut w = Writer::new(code::MAPPING, 0);
                w.mac(*mac).care_of(coa).u64(stamp.0).u32(*lifetime_ms).done()
            }
            Self::Unresolved { mac, hold_ms } => {
                Writer::new(code::UNRESOLVED, 0).mac(*mac).u32(*hold_ms).done()
            }
            Self::Invalidate { mac } => Writer::new(code::INVALIDATE, 0).mac(*mac).done(),
            Self::Refused { mac, hold_ms } => {
                Writer::new(code::REFUSED, 0).mac(*mac).u32(*hold_ms).done()
            }
            Self::StatsRequest { xid } => Writer::new(code::STATS_REQUEST, *xid).done(),
            Self::Hello { features, software } => hello(code::HELLO_BACK, *features, software),
            Self::Columns { columns } => Writer::new(code::COLUMNS, 0).columns(columns).done(),
            Self::Row { cells } => Writer::new(code::ROW, 0).cells(cells).done(),
            Self::End => Writer::new(code::END, 0).done(),
            Self::Lane { lane, pair, is_read, mac, addr } => {
                let mut w = Writer::new(code::LANE, 0);
                let flags = if *is_read { LANE_READ } else { 0 };
                w.u32(*lane).u8(*pair).u8(flags).mac(*mac).addr(addr).done()
            }
            Self::CloseLane { lane } => Writer::new(code::CLOSE_LANE, 0).u32(*lane).done(),
            Self::GroupLongest { longest } => {
                Writer::new(code::GROUP_LONGEST, 0).u16(longest.number()).u16(0).done()
            }
            Self::Error { code, text } => {
                Writer::new(code::ERROR, 0).u8(code.code()).text(text, MAX_ERROR_TEXT).done()
            }
        }
    }
}

impl Table {
    /// All, in the order of their codes, which start at 1.
    const ALL: [Self; 6] =
        [Self::Vnets, Self::Vifs, Self::Varp, Self::Stats, Self::Peers, Self::Hosts];

    fn code(self) -> u8 {
        match self {
            Self::Vnets => 1,
            Self::Vifs => 2,
            Self::Varp => 3,
            Self::Stats => 4,
            Self::Peers => 5,
            Self::Hosts => 6,
        }
    }

    fn from_code(code: u8) -> Result<Self, ParseError> {
        Self::ALL.into_iter().find(|table| table.code() == code).ok_or(ParseError::Value)
    }
}

impl ErrorCode {
    /// All, in the order of their codes, which start at 1.
    const ALL: [Self; 7] = [
        Self::Invalid,
        Self::Denied,
        Self::NotFound,
        Self::Limit,
        Self::Failed,
        Self::Warning,
        Self::Taken,
    ];

    fn code(self) -> u8 {
        match self {
            Self::Invalid => 1,
            Self::Denied => 2,
            Self::NotFound => 3,
            Self::Limit => 4,
            Self::Failed => 5,
            Self::Warning => 6,
            Self::Taken => 7,
        }
    }

    fn from_code(code: u8) -> Result<Self, ParseError> {
        Self::ALL.into_iter().find(|error| error.code() == code).ok_or(ParseError::Value)
    }
}

impl Reader<'_> {
    /// The header's type and xid.
    fn header(&mut self) -> Result<(u8, u32), ParseError> {
        let (version, kind) = (self.u8()?, self.u8()?);
        if version != VERSION {
            return Err(ParseError::Version);
        }
        if self.u16()? != 0 {
            return Err(ParseError::Reserved);
        }
        Ok((kind, self.u32()?))
    }

    fn bool(&mut self) -> Result<bool, ParseError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(ParseError::Value),
        }
    }

    /// Whether there is one (8 bits), and it, or zero.
    fn optional_stamp(&mut self) -> Result<Option<Stamp>, ParseError> {
        match (self.bool()?, self.u64()?) {
            (true, stamp) => Ok(Some(Stamp(stamp))),
            (false, 0) => Ok(None),
            (false, _) => Err(ParseError::Value),
        }
    }

    pub(super) fn mac(&mut self) -> Result<Mac, ParseError> {
        self.array().map(Mac)
    }

    pub(super) fn count(&mut self, most: usize) -> Result<usize, ParseError> {
        let n = usize::from(self.u16()?);
        if n > most { Err(ParseError::Value) } else { Ok(n) }
    }

    pub(super) fn text(&mut self, longest: usize) -> Result<String, ParseError> {
        let len = self.count(longest)?;
        let bytes = self.bytes(len)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| ParseError::Value)
    }

    pub(super) fn addr(&mut self) -> Result<SocketAddr, ParseError> {
        let family = self.u8()?;
        self.zero::<1>()?;
        let port = self.u16()?;
        let octets: [u8; 16] = self.array()?;
        let ip = match (family, octets) {
            (FAMILY_V4, [a, b, c, d, rest @ ..]) if rest == [0; 12] => {
                IpAddr::V4(Ipv4Addr::new(a, b, c, d))
            }
            (FAMILY_V4, _) => return Err(ParseError::Reserved),
            (FAMILY_V6, _) => IpAddr::V6(Ipv6Addr::from(octets)),
            _ => return Err(ParseError::Value),
        };
        Ok(SocketAddr::new(ip, port))
    }

    fn care_of(&mut self) -> Result<CareOf, ParseError> {
        let kinds = EncapKinds(self.u8()?);
        self.zero::<1>()?;
        let capabilities = Capabilities(self.u16()?);
        let longest = self.u16()?;
        self.zero::<2>()?;
        let addr = self.addr()?;
        let longest = Longest::new(longest, addr.ip()).ok_or(ParseError::Value)?;
        Ok(CareOf { addr, kinds, capabilities, longest })
    }
}

/// A message under construction.
pub(super) struct Writer(Vec<u8>);

impl Writer {
    fn new(kind: u8, xid: u32) -> Self {
        let mut w = Self(Vec::with_capacity(HEADER_LEN + 64));
        w.u8(VERSION).u8(kind).u16(0).u32(xid);
        w
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    pub(super) fn u8(&mut self, value: u8) -> &mut Self {
        self.bytes(&value.to_be_bytes())
    }

    fn u16(&mut self, value: u16) -> &mut Self {
        self.bytes(&value.to_be_bytes())
    }

    fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes(&value.to_be_bytes())
    }

    pub(super) fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes(&value.to_be_bytes())
    }

    pub(super) fn mac(&mut self, mac: Mac) -> &mut Self {
        self.bytes(&mac.0)
    }

    pub(super) fn count(&mut self, n: usize, most: usize) -> &mut Self {
        self.u16(u16::try_from(n.min(most)).unwrap_or(u16::MAX))
    }

    pub(super) fn text(&mut self, text: &str, longest: usize) -> &mut Self {
        let end = text.floor_char_boundary(longest);
        let (cut, _) = text.split_at(end);
        self.count(cut.len(), longest).bytes(cut.as_bytes())
    }

    pub(super) fn addr(&mut self, addr: &SocketAddr) -> &mut Self {
        let (family, octets) = match addr.ip() {
            IpAddr::V4(ip) => {
                let [a, b, c, d] = ip.octets();
                (FAMILY_V4, [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
            }
            IpAddr::V6(ip) => (FAMILY_V6, ip.octets()),
        };
        self.u8(family).u8(0).u16(addr.port()).bytes(&octets)
    }

    fn care_of(&mut self, coa: &CareOf) -> &mut Self {
        self.u8(coa.kinds.0).u8(0).u16(coa.capabilities.0);
        self.u16(coa.longest.number()).u16(0).addr(&coa.addr)
    }

    fn done(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.0)
    }
}
