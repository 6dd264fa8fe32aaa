// SPDX-License-Identifier: Apache-2.0

//! Public keys of issuers, as a JSON Web Key Set has them.
//!
//! Owns reading the set and which keys can be used at all. A key that cannot be used is left
//! out and told of: issuers publish keys for other ends in the same set. Rule: RFC 7517, RFC 7518
//! §6, RFC 8037 §2.

use std::sync::Arc;

use base64::Engine as _;
use base64::alphabet::URL_SAFE;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde_json::{Map, Value};

/// Issuers pad or do not.
const LAX: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Declares the algorithms: name, word in a token.
macro_rules! algorithms {
    ($($name:ident $word:literal)*) => {
        /// How a token is signed: with a key whose secret half only the issuer has.
        ///
        /// Rule: RFC 7518 §3.1, RFC 8037 §3.1.
        #[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
        pub enum Algorithm { $(#[doc = concat!("`", $word, "`.")] $name,)* }

        impl Algorithm {
            /// Every algorithm that is taken.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The algorithm that `alg` means; none for what is not taken.
            pub fn of(word: &str) -> Option<Self> {
                match word { $($word => Some(Self::$name),)* _ => None }
            }

            /// As `alg` writes it.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $word,)* }
            }
        }
    };
}

algorithms! {
    Rs256 "RS256" Rs384 "RS384" Rs512 "RS512"
    Ps256 "PS256" Ps384 "PS384" Ps512 "PS512"
    Es256 "ES256" Es384 "ES384" Es512 "ES512"
    EdDsa "EdDSA"
}

/// A curve of elliptic keys.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Curve {
    /// `P-256`.
    P256,
    /// `P-384`.
    P384,
    /// `P-521`.
    P521,
}

impl Curve {
    /// Length of one coordinate in bytes.
    pub fn coordinate(self) -> usize {
        match self {
            Self::P256 => 32,
            Self::P384 => 48,
            Self::P521 => 66,
        }
    }
}

/// A public key.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum PublicKey {
    /// RSA, 2048 to 8192 bits.
    Rsa {
        /// Modulus, big-endian, without leading zeros.
        n: Arc<[u8]>,
        /// Exponent, big-endian, without leading zeros.
        e: Arc<[u8]>,
    },
    /// A point on a curve.
    Ec {
        /// The curve.
        curve: Curve,
        /// First coordinate, of the curve's length.
        x: Arc<[u8]>,
        /// Second coordinate, of the curve's length.
        y: Arc<[u8]>,
    },
    /// Ed25519, 32 bytes.
    Ed25519(Arc<[u8]>),
}

impl PublicKey {
    /// Tells whether a key of this kind may sign with `algorithm`.
    pub fn fits(&self, algorithm: Algorithm) -> bool {
        use Algorithm as A;
        match self {
            Self::Rsa { .. } => {
                matches!(algorithm, A::Rs256 | A::Rs384 | A::Rs512 | A::Ps256 | A::Ps384 | A::Ps512)
            }
            Self::Ec { curve: Curve::P256, .. } => algorithm == A::Es256,
            Self::Ec { curve: Curve::P384, .. } => algorithm == A::Es384,
            Self::Ec { curve: Curve::P521, .. } => algorithm == A::Es512,
            Self::Ed25519(_) => algorithm == A::EdDsa,
        }
    }

    /// Tells whether lengths are those that the type promises.
    pub fn is_well_formed(&self) -> bool {
        match self {
            // 2048 to 8192 bits.
            Self::Rsa { n, e } => {
                let leads = |bytes: &[u8]| bytes.first().is_some_and(|first| *first != 0);
                (256..=1024).contains(&n.len())
                    && n.first().is_some_and(|first| *first != 0)
                    && leads(e)
            }
            Self::Ec { curve, x, y } => {
                x.len() == curve.coordinate() && y.len() == curve.coordinate()
            }
            Self::Ed25519(x) => x.len() == 32,
        }
    }
}

/// One key of an issuer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Jwk {
    /// Its name (`kid`).
    pub id: Option<Arc<str>>,
    /// The only algorithm it signs with; none: any that fits.
    pub algorithm: Option<Algorithm>,
    /// The key.
    pub key: PublicKey,
}

/// The keys of an issuer, and why others of its set are left out.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Jwks {
    /// Those that can be used; never empty when made by [`Jwks::parse`].
    pub keys: Vec<Jwk>,
    /// One line for each that cannot.
    pub left_out: Vec<String>,
}

/// Why a text is no key set.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InvalidJwks {
    /// No JSON, or no list of keys in it.
    #[error("this is no JSON Web Key Set, wanted {{\"keys\": [...]}}: {0}")]
    Form(String),
    /// Nothing in it can check a signature.
    #[error("it holds no key that can be used: {0}")]
    NoKeys(String),
}

impl Jwks {
    /// Reads a key set.
    ///
    /// # Errors
    ///
    /// [`InvalidJwks`]; a set with at least one key that can be used is good.
    pub fn parse(text: &[u8]) -> Result<Self, InvalidJwks> {
        let read: Result<Map<String, Value>, _> = serde_json::from_slice(text);
        let set = read.map_err(|error| InvalidJwks::Form(error.to_string()))?;
        let Some(Value::Array(all)) = set.get("keys") else {
            return Err(InvalidJwks::Form("it has no list keys".to_owned()));
        };
        let mut found = Self::default();
        for (index, value) in all.iter().enumerate() {
            match key(value) {
                Ok(key) => found.keys.push(key),
                Err(why) => found.left_out.push(format!("keys[{index}]: {why}")),
            }
        }
        match (found.keys.is_empty(), found.left_out.is_empty()) {
            (false, _) => Ok(found),
            (true, true) => Err(InvalidJwks::NoKeys("its list keys is empty".to_owned())),
            (true, false) => Err(InvalidJwks::NoKeys(found.left_out.join("; "))),
        }
    }
}

fn key(value: &Value) -> Result<Jwk, String> {
    let text = |name: &str| value.get(name).and_then(Value::as_str);
    if let Some(other) = text("use").filter(|word| *word != "sig") {
        return Err(format!("use is {other:?}, wanted \"sig\""));
    }
    let algorithm = match text("alg") {
        None => None,
        Some(word) => {
            let known = Algorithm::of(word);
            Some(known.ok_or_else(|| format!("alg {word:?} is not taken"))?)
        }
    };
    let bytes = |name: &str| -> Result<Vec<u8>, String> {
        let text = text(name).ok_or_else(|| format!("it has no text {name}"))?;
        LAX.decode(text).map_err(|_| format!("{name} is not base64url"))
    };
    let key = match text("kty") {
        Some("RSA") => rsa(bytes("n")?, bytes("e")?)?,
        Some("EC") => {
            let curve = match text("crv") {
                Some("P-256") => Curve::P256,
                Some("P-384") => Curve::P384,
                Some("P-521") => Curve::P521,
                other => return Err(format!("crv {other:?} is no curve of EC keys that is taken")),
            };
            let (x, y) = (padded(bytes("x")?, curve)?, padded(bytes("y")?, curve)?);
            PublicKey::Ec { curve, x, y }
        }
        Some("OKP") => match text("crv") {
            Some("Ed25519") => PublicKey::Ed25519(bytes("x")?.into()),
            other => return Err(format!("crv {other:?} is not taken, wanted Ed25519")),
        },
        other => return Err(format!("kty {other:?} is not taken, wanted RSA, EC or OKP")),
    };
    if !key.is_well_formed() {
        return Err("the key has another length than its kty and crv say".to_owned());
    }
    if let Some(algorithm) = algorithm.filter(|algorithm| !key.fits(*algorithm)) {
        return Err(format!("alg {} is not for keys of its kty and crv", algorithm.as_str()));
    }
    Ok(Jwk { id: text("kid").map(Arc::from), algorithm, key })
}

fn rsa(n: Vec<u8>, e: Vec<u8>) -> Result<PublicKey, String> {
    let trimmed = |bytes: Vec<u8>| -> Arc<[u8]> {
        let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
        bytes.into_iter().skip(zeros).collect()
    };
    let (n, e) = (trimmed(n), trimmed(e));
    if !(256..=1024).contains(&n.len()) {
        return Err(format!("RSA key of {} bits, wanted 2048 to 8192", n.len() * 8));
    }
    Ok(PublicKey::Rsa { n, e })
}

/// A coordinate at its full length: some issuers drop leading zeros.
fn padded(bytes: Vec<u8>, curve: Curve) -> Result<Arc<[u8]>, String> {
    let missing = curve.coordinate().checked_sub(bytes.len());
    let missing = missing.ok_or("a coordinate is too long for its crv")?;
    Ok(std::iter::repeat_n(0, missing).chain(bytes).collect())
}
