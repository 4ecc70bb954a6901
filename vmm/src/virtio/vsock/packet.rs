//! The packet header of virtio-vsock (virtio 1.2, section 5.10.6).

/// Bytes of a header.
pub const HEADER_LEN: usize = 44;

/// Stream sockets, the only type there is here.
const TYPE_STREAM: u16 = 1;

/// `op` values.
pub mod op {
    pub const REQUEST: u16 = 1;
    pub const RESPONSE: u16 = 2;
    pub const RST: u16 = 3;
    pub const SHUTDOWN: u16 = 4;
    pub const RW: u16 = 5;
    pub const CREDIT_UPDATE: u16 = 6;
    pub const CREDIT_REQUEST: u16 = 7;
}

/// Flags of [`op::SHUTDOWN`]: the sender will receive no more; will send no more.
pub mod shutdown {
    pub const RECEIVE: u32 = 1;
    pub const SEND: u32 = 2;
    pub const BOTH: u32 = 3;
}

/// A header, whichever way it goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    pub src_cid: u64,
    pub dst_cid: u64,
    pub src_port: u32,
    pub dst_port: u32,
    /// Bytes of payload after the header.
    pub len: u32,
    pub op: u16,
    pub flags: u32,
    /// Bytes of buffer the sender has for this connection.
    pub buf_alloc: u32,
    /// Bytes the sender has taken out of that buffer since the connection began, modulo 2^32.
    pub fwd_cnt: u32,
}

impl Header {
    /// The wire form.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[0..8].copy_from_slice(&self.src_cid.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.dst_cid.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.src_port.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.dst_port.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.len.to_le_bytes());
        bytes[28..30].copy_from_slice(&TYPE_STREAM.to_le_bytes());
        bytes[30..32].copy_from_slice(&self.op.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.flags.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.buf_alloc.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.fwd_cnt.to_le_bytes());
        bytes
    }

    /// Reads the wire form; `None` for a socket type other than stream.
    pub fn decode(bytes: &[u8; HEADER_LEN]) -> Option<Self> {
        let mut reader = crate::codec::Reader::new(bytes);
        let mut header = || -> Result<(Self, u16), crate::codec::Malformed> {
            let mut header = Self {
                src_cid: reader.u64()?,
                dst_cid: reader.u64()?,
                src_port: reader.u32()?,
                dst_port: reader.u32()?,
                len: reader.u32()?,
                ..Self::default()
            };
            let kind = reader.u16()?;
            header.op = reader.u16()?;
            header.flags = reader.u32()?;
            header.buf_alloc = reader.u32()?;
            header.fwd_cnt = reader.u32()?;
            Ok((header, kind))
        };
        let (header, kind) = header().ok()?;
        (kind == TYPE_STREAM).then_some(header)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_survives_the_wire_and_other_socket_types_do_not() {
        let header = Header {
            src_cid: 2,
            dst_cid: 3,
            src_port: 0x10001,
            dst_port: 5432,
            len: 9,
            op: op::RW,
            flags: 1,
            buf_alloc: 0x4_0000,
            fwd_cnt: u32::MAX,
        };
        let mut bytes = header.encode();
        assert_eq!(Header::decode(&bytes), Some(header));
        bytes[28] = 2;
        assert_eq!(Header::decode(&bytes), None);
    }
}
