//! What must hold for any bytes that arrive before a peer is trusted, or that a trusted one sends: the bodies of the
//! fuzz targets in `tests/fuzz`, and of a test over their seeds. It must never be part of a normal build, and never
//! test what only valid bytes do.

use bytes::{BufMut, Bytes, BytesMut};
use polyraft_raft::NodeId;
use rustls_pki_types::CertificateDer;

use crate::Lane;
use crate::frame::{Assembler, FrameError, Header};
use crate::hello::{HELLO_PREFIX_BYTES, WireHello};
use crate::tls::PeerName;

/// The link that the frames are read from.
const FROM: NodeId = NodeId(1);
const TO: NodeId = NodeId(2);
/// The longest frame that it takes.
const LIMIT: u32 = 4096;

/// What became of a stream: its frames, why it could not be read on, and whether it may end where it does.
type Read = (Vec<Bytes>, Option<FrameError>, bool);

fn read(stream: &Bytes, cut: usize) -> Read {
    let mut assembler = Assembler::new(FROM, TO, LIMIT);
    let mut frames = Vec::new();
    for at in (0..stream.len()).step_by(cut) {
        let chunk = stream.slice(at..(at + cut).min(stream.len()));
        if let Err(error) = assembler.push(chunk, &mut frames) {
            return (frames, Some(error), false);
        }
    }
    let ends = assembler.is_between_frames();
    (frames, None, ends)
}

/// What a link reads: first a hello, then frames.
pub fn link(data: &[u8]) {
    hello(data);
    frames(data);
}

/// A stream of frames. However it is cut, the same frames come out, and none is over the limit. The first byte
/// says how it is cut.
fn frames(data: &[u8]) {
    let Some((cut, stream)) = data.split_first() else {
        return;
    };
    let stream = Bytes::copy_from_slice(stream);
    let whole = read(&stream, stream.len().max(1));
    assert_eq!(read(&stream, usize::from(*cut) + 1), whole);
    let (frames, error, ends) = whole;
    assert!(frames.iter().all(|frame| frame.len() <= LIMIT as usize));
    if error.is_none() && ends && !frames.is_empty() {
        // All bytes are accounted for: headers and frames make up the stream again.
        let lane = Lane::from_wire(stream[5]).expect("it was read");
        let mut again = BytesMut::new();
        frames.iter().for_each(|frame| put(&mut again, lane, frame));
        assert_eq!(again, stream);
    }
}

fn put(out: &mut BytesMut, lane: Lane, frame: &[u8]) {
    let length = frame.len() as u32;
    Header {
        length,
        lane,
        from: FROM,
        to: TO,
    }
    .encode(out);
    out.put_slice(frame);
}

/// A hello. What is accepted has one encoding.
fn hello(data: &[u8]) {
    let Some((prefix, rest)) = data.split_first_chunk::<HELLO_PREFIX_BYTES>() else {
        return;
    };
    let Ok(length) = WireHello::rest_of(prefix) else {
        return;
    };
    let Some(rest) = rest.get(..length) else {
        return;
    };
    if let Ok(hello) = WireHello::decode(rest) {
        assert_eq!(hello.encode(), data[..HELLO_PREFIX_BYTES + length]);
        hello.hello.identity.validate().expect("it was accepted");
    }
}

/// The node's name in a certificate: as a URI, and inside DER. A name that is accepted has one spelling, and that
/// spelling is in the certificate.
pub fn certificate(data: &[u8]) {
    if let Some(uri) = std::str::from_utf8(data).ok()
        && let Some(name) = PeerName::parse(uri)
    {
        assert_eq!(name.to_string(), uri);
    }
    if let Ok(name) = PeerName::from_certificate(&CertificateDer::from(data)) {
        let uri = name.to_string();
        assert_eq!(PeerName::parse(&uri).as_ref(), Some(&name));
        assert!(data.windows(uri.len()).any(|part| part == uri.as_bytes()));
    }
}

#[cfg(test)]
#[path = "../../tests/fuzz/seeds.rs"]
mod kept;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FORMAT_VERSION, Hello, Identity};

    #[test]
    fn kept_inputs_do_no_harm() {
        kept::try_all("link", link);
        kept::try_all("certificate", certificate);
    }

    /// A seed that does not decode teaches a fuzzer nothing. `UPDATE=1` writes the seeds anew.
    #[test]
    fn seeds_decode() {
        for (target, name, data) in seeds() {
            let data = kept::seed(target, name, &data);
            let decodes = match (target, name) {
                (_, "append" | "liveness") => {
                    let (frames, error, ends) = read(&Bytes::copy_from_slice(&data[1..]), 9);
                    !frames.is_empty() && error.is_none() && ends
                }
                (_, "hello") => WireHello::decode(&data[HELLO_PREFIX_BYTES..]).is_ok(),
                (_, "uri") => PeerName::parse(std::str::from_utf8(&data).unwrap()).is_some(),
                _ => PeerName::from_certificate(&CertificateDer::from(&data[..])).is_ok(),
            };
            assert!(decodes, "{target}/{name}");
        }
    }
    /// Valid inputs for the targets, by target and name.
    fn seeds() -> Vec<(&'static str, &'static str, Vec<u8>)> {
        let identity = Identity {
            cluster: "eu-1.prod".into(),
            node: NodeId(3),
            store: 1 << 70,
            incarnation: 12,
            past: vec![4, 9],
        };
        let hello = WireHello {
            hello: Hello {
                identity: identity.clone(),
                version: FORMAT_VERSION,
            },
            to: NodeId(4),
            max_frame_bytes: 4 << 20,
            receive_window: 1 << 20,
            append_lanes: 2,
        };
        let stream = |lane, frames: &[&[u8]]| {
            let mut out = BytesMut::new();
            out.put_u8(40);
            frames.iter().for_each(|frame| put(&mut out, lane, frame));
            out.to_vec()
        };
        let name = PeerName::of(&identity);
        vec![
            (
                "link",
                "append",
                stream(Lane::Append(3), &[b"one", b"", &[7; 100]]),
            ),
            ("link", "liveness", stream(Lane::Liveness, &[b"beat"])),
            ("link", "hello", hello.encode()),
            ("certificate", "uri", name.to_string().into_bytes()),
            ("certificate", "der", sample_certificate(&name)),
        ]
    }

    fn sample_certificate(name: &PeerName) -> Vec<u8> {
        let params = crate::tls::dev::node_params(name).unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        certificate.der().to_vec()
    }
}
