use trunkline::hub::{
    had::Had,
    token::{ResumeToken, TokenError},
};

const DEPLOYMENT: u32 = 0x0102_0304;

/// A resume token, as a node sends it.
pub fn token(bytes: &[u8]) {
    // As it is, with a correct checksum, and with a correct head of each version and checksum.
    let of_version = |version| with_checksum(&[&[version, 1, 2, 3, 4], bytes].concat());
    let tokens =
        [bytes.to_vec(), with_checksum(bytes), of_version(1), of_version(2), of_version(3)];
    for token in tokens {
        match ResumeToken::decode(&token, DEPLOYMENT) {
            Ok(decoded) => {
                let encoded = decoded.to_bytes();
                assert_eq!(encoded.len(), decoded.encoded_len());
                assert_eq!(ResumeToken::decode(&encoded, DEPLOYMENT).as_ref(), Ok(&decoded));
                assert_eq!(
                    ResumeToken::decode(&encoded, DEPLOYMENT + 1),
                    Err(TokenError::ForeignDeployment)
                );
                // A shard takes a byte at least, an epoch and a range two: a token makes a gateway
                // hold little more than was sent.
                let behind = decoded.behind.as_deref().unwrap_or_default();
                let shards = || decoded.shards.iter().chain(behind);
                let epochs = || shards().flat_map(Had::epochs);
                let ranges: usize = epochs().map(|epoch| epoch.more.len()).sum();
                let held = shards().count() + 2 * epochs().count() + 2 * ranges;
                assert!(held <= token.len());
            }
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
}

/// Appends the checksum of a token: FNV-1a of 32 bits.
fn with_checksum(body: &[u8]) -> Vec<u8> {
    let sum = body
        .iter()
        .fold(0x811c_9dc5_u32, |sum, byte| (sum ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    [body, &sum.to_be_bytes()].concat()
}
